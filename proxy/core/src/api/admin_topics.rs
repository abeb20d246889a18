//! CreateTopics (key 19), DeleteTopics (20) and CreatePartitions (37): at the side that owns the topic. A topic that was
//! ever flipped lives on both sides; changing its shape is refused.
//!
//! Source: KIP-4, KIP-195, KIP-516, `CreateTopicsRequest.json`, `DeleteTopicsRequest.json`,
//! `CreatePartitionsRequest.json`.

use super::common;
use super::fan::{self, Ask, Plan};
use super::key;
use crate::error_code as code;
use crate::ids::{ClusterSide, TopicId, VirtualNode};
use crate::schema::{Struct, Value};
use crate::session::{Cx, Step};

/// How long after the client's own time limit an answer may come, milliseconds.
const GRACE_MS: i64 = 5_000;

type Refusal = (i16, &'static str);

/// One topic of the request.
struct Entry {
    /// `None` for an id that nothing is known of.
    name: Option<String>,
    id: TopicId,
    by_id: bool,
    place: Result<ClusterSide, Refusal>,
    body: Option<Struct>,
}

/// A request that creates, deletes or enlarges topics.
pub(super) struct TopicsChange {
    api_key: i16,
    request: Struct,
    /// The field of the request with the topics, and that of the response.
    topics: &'static str,
    results: &'static str,
    entries: Vec<Entry>,
    asked: Vec<ClusterSide>,
}

impl TopicsChange {
    #[must_use]
    pub(super) fn new(api_key: i16, version: i16, request: Struct) -> TopicsChange {
        let (topics, results) = match api_key {
            key::CREATE_TOPICS => ("Topics", "Topics"),
            key::CREATE_PARTITIONS => ("Topics", "Results"),
            _ if version >= 6 => ("Topics", "Responses"),
            _ => ("TopicNames", "Responses"),
        };
        TopicsChange { api_key, request, topics, results, entries: Vec::new(), asked: Vec::new() }
    }

    fn read(&self, cx: &Cx<'_>) -> Vec<Entry> {
        let read = |value: &Value| {
            let mut entry = Entry {
                name: None,
                id: TopicId::ZERO,
                by_id: false,
                place: Ok(ClusterSide::Source),
                body: None,
            };
            if let Some(topic) = value.as_struct() {
                entry.name = topic.opt_str("Name").map(str::to_owned);
                entry.body = Some(topic.clone());
                if self.api_key == key::DELETE_TOPICS && entry.name.is_none() {
                    entry.by_id = true;
                    entry.id = TopicId(topic.uuid("TopicId"));
                    entry.name = cx.snapshot.routes.topic_by_id(entry.id).map(|r| r.name.to_string());
                }
            } else {
                entry.name = value.as_str().map(str::to_owned);
            }
            entry.place = self.place(cx, &entry);
            entry
        };
        self.request.array(self.topics).iter().map(read).collect()
    }

    fn place(&self, cx: &Cx<'_>, entry: &Entry) -> Result<ClusterSide, Refusal> {
        let name = entry.name.as_deref().ok_or((code::UNKNOWN_TOPIC_ID, "no topic has this id"))?;
        let route = cx.snapshot.routes.topic(name);
        if route.is_some_and(|r| r.is_moved()) && self.api_key != key::CREATE_TOPICS {
            return Err((
                code::POLICY_VIOLATION,
                "the topic was moved between clusters and lives in both: it cannot be deleted or enlarged through the proxy",
            ));
        }
        if cx.snapshot.preparing.contains(name) {
            return Err((code::REQUEST_TIMED_OUT, "the topic is being moved: try again"));
        }
        let side = cx.snapshot.routes.owner(name);
        if cx.any_upstream(side).is_none() {
            return Err((code::REQUEST_TIMED_OUT, "the topic's cluster is not known yet"));
        }
        let is_foreign = |id: i64| {
            let node = i32::try_from(id).ok().and_then(VirtualNode::from_virtual);
            node.is_none_or(|n| n.side != side)
        };
        let assignments = entry.body.as_ref().filter(|_| self.api_key != key::DELETE_TOPICS);
        if assignments.is_some_and(|b| b.structs("Assignments").any(|a| a.ints("BrokerIds").any(is_foreign)))
        {
            return Err((
                code::INVALID_REQUEST,
                "a replica is assigned to a broker that is not of the topic's cluster",
            ));
        }
        Ok(side)
    }

    /// A topic as the cluster is asked about it.
    fn element(&self, cx: &Cx<'_>, entry: &Entry, side: ClusterSide) -> Value {
        let name = entry.name.as_deref().unwrap_or_default();
        let physical = common::physical_name(cx, name, side);
        let Some(mut body) = entry.body.clone() else { return Value::from(physical) };
        if entry.by_id {
            let id = cx.snapshot.routes.topic(name).map_or(TopicId::ZERO, |r| r.native_id(side));
            body.set("TopicId", id);
        } else {
            body.set("Name", physical);
        }
        if self.api_key != key::DELETE_TOPICS {
            for assignment in body.structs_mut("Assignments") {
                for id in assignment.array_mut("BrokerIds").into_iter().flatten() {
                    let virtual_id = id.as_int().and_then(|id| i32::try_from(id).ok());
                    if let Some(node) = virtual_id.and_then(VirtualNode::from_virtual) {
                        *id = Value::from(node.broker);
                    }
                }
            }
        }
        Value::from(body)
    }

    fn result(&self, cx: &Cx<'_>, entry: &Entry, answers: &[Option<Struct>], empty: Struct) -> Struct {
        let mut out = empty;
        match entry.place {
            Err((error, message)) => {
                out.set("ErrorCode", error);
                out.set("ErrorMessage", message);
            }
            Ok(side) => match self.found(cx, entry, answers, side) {
                Some(found) => out = found.clone(),
                None => {
                    out.set("ErrorCode", code::REQUEST_TIMED_OUT);
                    out.set("ErrorMessage", "the cluster has not answered");
                }
            },
        }
        // A broker tells no name of an id that it does not know.
        let unnamed = entry.by_id && entry.name.is_none();
        out.set("Name", entry.name.as_deref().filter(|_| !unnamed));
        if out.has("TopicId") && self.api_key == key::DELETE_TOPICS {
            let known = entry.name.as_deref().and_then(|n| cx.snapshot.routes.topic(n));
            out.set(
                "TopicId",
                if entry.by_id { entry.id } else { known.map_or(TopicId::ZERO, |r| r.virtual_id) },
            );
        }
        out
    }

    fn found<'a>(
        &self,
        cx: &Cx<'_>,
        entry: &Entry,
        answers: &'a [Option<Struct>],
        side: ClusterSide,
    ) -> Option<&'a Struct> {
        let name = entry.name.as_deref()?;
        let answer = answers.get(self.asked.iter().position(|s| *s == side)?)?.as_ref()?;
        let physical = common::physical_name(cx, name, side);
        let native = cx.snapshot.routes.topic(name).map_or(TopicId::ZERO, |r| r.native_id(side));
        answer.structs(self.results).find(|r| {
            r.str("Name") == physical
                || (entry.by_id && r.has("TopicId") && TopicId(r.uuid("TopicId")) == native)
        })
    }
}

impl Plan for TopicsChange {
    fn asks(&mut self, cx: &mut Cx<'_>) -> Vec<Ask> {
        self.entries = self.read(cx);
        let mut asks = Vec::new();
        for side in ClusterSide::BOTH {
            let mine = self.entries.iter().filter(|e| e.place == Ok(side));
            let elements: Vec<Value> = mine.map(|e| self.element(cx, e, side)).collect();
            let Some(upstream) = cx.any_upstream(side).filter(|_| !elements.is_empty()) else { continue };
            let mut body = self.request.clone();
            body.set(self.topics, elements);
            self.asked.push(side);
            asks.push(Ask { upstream, body });
        }
        asks
    }

    fn merge(&mut self, cx: &mut Cx<'_>, answers: Vec<Option<Struct>>) -> Step {
        let Some(mut response) = cx.empty_response() else { return Step::Done };
        response.set("ThrottleTimeMs", fan::throttle_ms(&answers));
        let mut changed = Vec::new();
        for entry in &self.entries {
            let out = self.result(cx, entry, &answers, response.new_element(self.results));
            if let (Ok(side), code::NONE | code::REQUEST_TIMED_OUT) = (entry.place, out.i16("ErrorCode"))
                && !changed.contains(&side)
            {
                changed.push(side);
            }
            response.push(self.results, out);
        }
        for side in changed {
            cx.refresh(side);
        }
        Step::Reply(response)
    }

    fn patience_ms(&self) -> i64 {
        let field = if self.api_key == key::CREATE_TOPICS { "timeoutMs" } else { "TimeoutMs" };
        i64::from(self.request.i32(field)).clamp(0, 300_000) + GRACE_MS
    }
}
