//! Metadata (key 3): the topics of both sides as one cluster. Each topic is shown as its owner shows it, under the
//! proxy's addresses, ids and epochs.
//!
//! Source: `MetadataRequest.json`, `MetadataResponse.json`; KIP-516 (topic ids); RULES R22, R30, R32.

use super::fan::{self, Ask, Plan};
use super::view;
use crate::error_code as code;
use crate::ids::{ClusterSide, TopicId};
use crate::schema::{Struct, Value};
use crate::session::{Cx, Step};

/// A topic the client asked for.
struct Wanted {
    name: Option<String>,
    id: TopicId,
}

/// A metadata request.
pub(super) struct Metadata {
    request: Struct,
    /// `None`: all topics.
    wanted: Option<Vec<Wanted>>,
    /// Which ask went to which side.
    asked: Vec<ClusterSide>,
}

impl Metadata {
    #[must_use]
    pub(super) fn new(request: Struct) -> Metadata {
        Metadata { request, wanted: None, asked: Vec::new() }
    }

    fn read_topics(&mut self, cx: &Cx<'_>) {
        let topics = self.request.opt_array("Topics");
        let all = topics.is_none_or(|t| t.is_empty() && cx.header.api_version == 0);
        self.wanted = (!all).then(|| {
            let read = |topic: &Struct| {
                let id = TopicId(topic.uuid("TopicId"));
                let by_id = cx.snapshot.routes.topic_by_id(id).map(|r| r.name.to_string());
                let name = topic.opt_str("Name").map(str::to_owned);
                Wanted { name: name.or(by_id), id }
            };
            self.request.structs("Topics").map(read).collect()
        });
    }

    fn ask(&self, cx: &Cx<'_>, side: ClusterSide) -> Option<Ask> {
        let upstream = view::upstream(cx, side)?;
        let mut body = self.request.clone();
        let may_create = side == cx.snapshot.routes.rules.default_side;
        // Before version 4 a request cannot forbid it: then only topics that are there may be named.
        let must_exist = !may_create && cx.header.api_version < 4;
        if !may_create && !must_exist {
            body.set("AllowAutoTopicCreation", false);
        }
        if let Some(wanted) = &self.wanted {
            let mine = wanted.iter().filter_map(|w| w.name.as_deref());
            let mine = mine.filter(|name| cx.snapshot.routes.owner(name) == side);
            let is_there =
                |name: &&str| cx.snapshot.topology(side).topic(&physical(cx, name, side)).is_some();
            // A topic that was moved and is gone must not come up anew beside its timeline (RULES R26).
            let is_moved = |name: &&str| cx.snapshot.routes.topic(name).is_some_and(|r| r.is_moved());
            let mine: Vec<&str> =
                mine.filter(|name| is_there(name) || !(must_exist || is_moved(name))).collect();
            let operations =
                self.request.bool("IncludeClusterAuthorizedOperations") && side == cx.core.node.side;
            if mine.is_empty() && !operations {
                return None;
            }
            body.set("Topics", Vec::<Struct>::new());
            for name in mine {
                let mut topic = self.request.new_element("Topics");
                topic.set("Name", physical(cx, name, side).as_str());
                body.push("Topics", topic);
            }
        }
        Some(Ask::new(upstream, body))
    }

    fn add_named(
        &self,
        cx: &mut Cx<'_>,
        response: &mut Struct,
        wanted: &[Wanted],
        answers: &[Option<Struct>],
    ) {
        let told = ClusterSide::BOTH
            .map(|side| super::common::by_text(self.answer_of(answers, side), "Topics", "Name"));
        for topic in wanted {
            let Some(name) = topic.name.as_deref() else {
                let mut out = response.new_element("Topics");
                out.set("ErrorCode", code::UNKNOWN_TOPIC_ID);
                out.set("Name", if cx.header.api_version >= 12 { None } else { Some("") });
                out.set("TopicId", topic.id);
                response.push("Topics", out);
                continue;
            };
            // The owner may have changed since the request was sent: the newest route decides.
            let side = cx.snapshot.routes.owner(name);
            let physical = physical(cx, name, side);
            let found = told[side.index()].get(physical.as_str()).map(|topic| (*topic).clone());
            let mut out = found.unwrap_or_else(|| from_topology(cx, response, &physical, side));
            view::translate_topic(cx, &mut out, name, side);
            response.push("Topics", out);
        }
    }

    fn add_all(&self, cx: &mut Cx<'_>, response: &mut Struct, answers: &[Option<Struct>]) {
        for side in ClusterSide::BOTH {
            let topics: Vec<Struct> = match self.answer_of(answers, side) {
                Some(answer) => answer.structs("Topics").cloned().collect(),
                None => {
                    let known = cx.snapshot.topology(side).topics.values();
                    let mut known: Vec<_> = known.collect();
                    known.sort_by(|a, b| a.name.cmp(&b.name));
                    let element = response.new_element("Topics");
                    known.into_iter().map(|t| view::topic_from_topology(element.clone(), t)).collect()
                }
            };
            for mut topic in topics {
                let name = cx.snapshot.routes.virtual_name(side, topic.str("Name")).to_owned();
                if cx.snapshot.routes.owner(&name) == side {
                    view::translate_topic(cx, &mut topic, &name, side);
                    response.push("Topics", topic);
                }
            }
        }
    }

    fn answer_of<'a>(&self, answers: &'a [Option<Struct>], side: ClusterSide) -> Option<&'a Struct> {
        let index = self.asked.iter().position(|s| *s == side)?;
        answers.get(index)?.as_ref()
    }
}

/// What the owner calls a topic.
fn physical(cx: &Cx<'_>, name: &str, side: ClusterSide) -> String {
    super::common::physical_name(cx, name, side)
}

/// The last known state of a topic whose side does not answer (RULES R30).
fn from_topology(cx: &Cx<'_>, response: &Struct, physical: &str, side: ClusterSide) -> Struct {
    let mut element = response.new_element("Topics");
    let topology = cx.snapshot.topology(side);
    match topology.topic(physical) {
        Some(info) => view::topic_from_topology(element, info),
        None => {
            // What a side that cannot be asked may have is not known: the client should ask again.
            let error = if topology.reachable {
                code::UNKNOWN_TOPIC_OR_PARTITION
            } else {
                code::LEADER_NOT_AVAILABLE
            };
            element.set("ErrorCode", error);
            element
        }
    }
}

impl Plan for Metadata {
    fn asks(&mut self, cx: &mut Cx<'_>) -> Vec<Ask> {
        self.read_topics(cx);
        let mut asks = Vec::new();
        for side in ClusterSide::BOTH {
            if let Some(ask) = self.ask(cx, side) {
                self.asked.push(side);
                asks.push(ask);
            }
        }
        asks
    }

    fn merge(&mut self, cx: &mut Cx<'_>, answers: Vec<Option<Struct>>) -> Step {
        let Some(mut response) = cx.empty_response() else { return Step::Done };
        view::describe(cx, &mut response, "NodeId");
        response.set("ThrottleTimeMs", fan::throttle_ms(&answers));
        if let Some(own) = self.answer_of(&answers, cx.core.node.side) {
            let operations: Value = own.get("ClusterAuthorizedOperations").clone();
            response.set("ClusterAuthorizedOperations", operations);
        }
        match &self.wanted {
            Some(wanted) => self.add_named(cx, &mut response, wanted, &answers),
            None => self.add_all(cx, &mut response, &answers),
        }
        Step::Reply(response)
    }

    fn patience_ms(&self) -> i64 {
        view::PATIENCE_MS
    }
}
