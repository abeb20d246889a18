//! CreateTopics (key 19), DeleteTopics (20) and CreatePartitions (37): at the side that owns the topic, and at the other
//! side too where the topic exists there. What is stored of a topic follows before the client is answered.
//!
//! A topic that is created is the owner's alone: the other side gets it at its first cutover. Held while a flip fences
//! the topic. Source: KIP-4, KIP-195, KIP-516, `CreateTopicsRequest.json`, `DeleteTopicsRequest.json`,
//! `CreatePartitionsRequest.json`; RULES R26.

use super::both_sides::{self, Changes, Fared, Item, Refusal, Rounds};
use super::common;
use super::fan::{self, Ask, Plan};
use super::key;
use crate::error_code as code;
use crate::ids::{ClusterSide, TopicId, VirtualNode};
use crate::schema::{Struct, Value};
use crate::session::{Change, ChangeKind, Cx, Errand, ErrandDone, Step, TopicChanged, UpstreamKey};
use std::sync::Arc;

/// How long after the client's own time limit an answer may come, milliseconds.
const GRACE_MS: i64 = 5_000;

/// One topic of the request.
struct Entry {
    /// `None` for an id that nothing is known of.
    name: Option<String>,
    /// As clients know it.
    id: TopicId,
    by_id: bool,
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
    /// By entry.
    rounds: Rounds,
    /// Held until the answer is made: a flip waits for it.
    change: Option<Change>,
    follow: Follow,
}

/// What is stored of the topics follows what the clusters have done.
enum Follow {
    NotYet,
    /// Under way, or not in time, for these entries.
    Asked(Vec<usize>),
    Done(Vec<usize>),
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
        TopicsChange {
            api_key,
            request,
            topics,
            results,
            entries: Vec::new(),
            rounds: Rounds::default(),
            change: None,
            follow: Follow::NotYet,
        }
    }

    fn read(&self, cx: &Cx<'_>) -> Vec<Entry> {
        let read = |value: &Value| {
            let mut entry = Entry { name: None, id: TopicId::ZERO, by_id: false, body: None };
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
            if let Some(route) = entry.name.as_deref().and_then(|name| cx.snapshot.routes.topic(name)) {
                entry.id = route.virtual_id;
            }
            entry
        };
        self.request.array(self.topics).iter().map(read).collect()
    }

    fn is_rehearsal(&self) -> bool {
        let field = if self.api_key == key::CREATE_TOPICS { "validateOnly" } else { "ValidateOnly" };
        self.request.has(field) && self.request.bool(field)
    }

    fn item(&self, cx: &Cx<'_>, entry: &Entry) -> Item {
        let mut item = Item::at(self.places(cx, entry));
        let route = entry.name.as_deref().and_then(|name| cx.snapshot.routes.topic(name));
        let (Ok(places), Some(route)) = (&item.places, route) else { return item };
        match self.api_key {
            key::DELETE_TOPICS => item.gone_is_fine = route.is_moved() || places.len() > 1,
            // Where it has got as far before, the other side is what is left to do.
            key::CREATE_PARTITIONS => {
                let wanted = entry.body.as_ref().map_or(0, |b| b.i32("Count"));
                let has = |side: ClusterSide| {
                    let topic = cx.snapshot.topology(side).topic(route.physical(side));
                    topic.is_some_and(|t| i32::try_from(t.partitions.len()).is_ok_and(|n| n == wanted))
                };
                let done: Vec<_> = places.iter().map(|u| u.node.side).filter(|side| has(*side)).collect();
                if done.len() < places.len() {
                    item.done = done;
                }
            }
            _ => {}
        }
        item
    }

    fn places(&self, cx: &Cx<'_>, entry: &Entry) -> Result<Vec<UpstreamKey>, Refusal> {
        let refuse = |error, text: &str| Err((error, text.to_owned()));
        let Some(name) = entry.name.as_deref() else {
            return refuse(code::UNKNOWN_TOPIC_ID, "no topic has this id");
        };
        let route = cx.snapshot.routes.topic(name);
        let recreated = route.is_some_and(|r| both_sides::is_recreated(cx, r));
        // Deleting it is how an operator ends a freeze, and so is enlarging it on the side that lags.
        let frozen_is_fine = self.api_key != key::CREATE_PARTITIONS || !recreated;
        let mut places = both_sides::places(cx, name, frozen_is_fine)?;
        if self.api_key == key::CREATE_TOPICS {
            places.truncate(1);
            if route.is_some_and(|r| r.is_moved() && !both_sides::is_there(cx, r, r.owner)) {
                return refuse(
                    code::POLICY_VIOLATION,
                    "a topic of this name was moved between the clusters and is gone from its owner: delete it here first, then create it",
                );
            }
        }
        self.check_assignments(entry, &places)?;
        Ok(places)
    }

    /// Replicas are assigned by virtual broker ids, which are all of one side.
    fn check_assignments(&self, entry: &Entry, places: &[UpstreamKey]) -> Result<(), Refusal> {
        let body = entry.body.as_ref().filter(|_| self.api_key != key::DELETE_TOPICS);
        let sides = body.map(assigned_sides).unwrap_or_default();
        let there = |side: &Option<ClusterSide>| places.iter().any(|u| Some(u.node.side) == *side);
        if sides.is_empty() || (sides.len() == 1 && sides.iter().all(there)) {
            return Ok(());
        }
        Err((
            code::INVALID_REQUEST,
            "a replica is assigned to a broker that is not of the topic's cluster".to_owned(),
        ))
    }

    /// A topic as one cluster is asked about it.
    fn element(&self, cx: &Cx<'_>, entry: &Entry, side: ClusterSide) -> Value {
        let name = entry.name.as_deref().unwrap_or_default();
        let physical = common::physical_name(cx, name, side);
        let Some(mut body) = entry.body.clone() else { return Value::from(physical) };
        if entry.by_id {
            let id = self.native_id(cx, name, side);
            body.set("TopicId", id);
            return Value::from(body);
        }
        body.set("Name", physical);
        if self.api_key != key::DELETE_TOPICS {
            if assigned_sides(&body).contains(&Some(side.other())) {
                // Which brokers of this side are meant, nobody has said: it chooses itself.
                body.set("Assignments", None::<Vec<Value>>);
            }
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

    /// The id a side has the topic under now, also where it was created again.
    fn native_id(&self, cx: &Cx<'_>, name: &str, side: ClusterSide) -> TopicId {
        let Some(route) = cx.snapshot.routes.topic(name) else { return TopicId::ZERO };
        let now = cx.snapshot.topology(side).topic(route.physical(side)).map(|t| t.id);
        now.unwrap_or_else(|| route.native_id(side))
    }

    /// Which entries all their sides have done, and what that means for what is stored of them.
    fn done(&self, cx: &Cx<'_>, answers: &[Option<Struct>]) -> Vec<(usize, TopicChanged)> {
        let change = |(index, entry): (usize, &Entry)| {
            let name: Arc<str> = Arc::from(entry.name.as_deref()?);
            let route = cx.snapshot.routes.topic(&name)?;
            let said_so = matches!(
                self.rounds.fared(cx, self, index, answers),
                Fared::Told(word) if word.i16("ErrorCode") == code::NONE || route.is_moved()
            );
            if !said_so || !self.rounds.is_done(cx, self, index, answers) {
                return None;
            }
            let changed = match self.api_key {
                key::DELETE_TOPICS => TopicChanged::Deleted(name),
                key::CREATE_PARTITIONS => TopicChanged::Enlarged(name, entry.body.as_ref()?.i32("Count")),
                _ => return None,
            };
            Some((index, changed))
        };
        self.entries.iter().enumerate().filter_map(change).collect()
    }

    fn result(&self, cx: &Cx<'_>, index: usize, answers: &[Option<Struct>], empty: Struct) -> Struct {
        let entry = &self.entries[index];
        let mut out = empty;
        let mut refuse = |(error, text): Refusal| {
            out.set("ErrorCode", error);
            out.set("ErrorMessage", text.as_str());
        };
        match self.rounds.fared(cx, self, index, answers) {
            Fared::Refused(refusal) => refuse(refusal),
            Fared::Told(_) if matches!(&self.follow, Follow::Asked(open) if open.contains(&index)) => {
                refuse((
                    code::REQUEST_TIMED_OUT,
                    "done, but the clusters do not all show it yet: try again".to_owned(),
                ));
            }
            Fared::Told(word) => out = word.clone(),
        }
        // The topic that clients knew is deleted, also where only the proxy still knew it.
        let is_followed = matches!(&self.follow, Follow::Done(done) if done.contains(&index));
        if is_followed && self.rounds.items[index].is_gone(out.i16("ErrorCode")) {
            out.set("ErrorCode", code::NONE);
            out.set("ErrorMessage", None::<&str>);
        }
        // A broker tells no name of an id that it does not know.
        let unnamed = entry.by_id && entry.name.is_none();
        out.set("Name", entry.name.as_deref().filter(|_| !unnamed));
        if out.has("TopicId") && self.api_key == key::DELETE_TOPICS {
            out.set("TopicId", entry.id);
        }
        out
    }
}

/// The sides of the brokers that replicas are assigned to; `None` for an id that is no broker's.
fn assigned_sides(body: &Struct) -> Vec<Option<ClusterSide>> {
    let node = |id: i64| i32::try_from(id).ok().and_then(VirtualNode::from_virtual).map(|n| n.side);
    let mut sides: Vec<_> =
        body.structs("Assignments").flat_map(|a| a.ints("BrokerIds").map(node).collect::<Vec<_>>()).collect();
    sides.sort_unstable();
    sides.dedup();
    sides
}

impl Changes for TopicsChange {
    fn body(&self, cx: &Cx<'_>, side: ClusterSide, items: &[usize], rehearsal: bool) -> Struct {
        let mut body = self.request.clone();
        body.set(
            self.topics,
            both_sides::elements(items, |item| self.element(cx, &self.entries[item], side)),
        );
        if rehearsal {
            body.set("ValidateOnly", true);
        }
        body
    }

    fn found<'a>(
        &self,
        cx: &Cx<'_>,
        item: usize,
        side: ClusterSide,
        answer: &'a Struct,
    ) -> Option<&'a Struct> {
        let entry = &self.entries[item];
        let name = entry.name.as_deref()?;
        let physical = common::physical_name(cx, name, side);
        let native = self.native_id(cx, name, side);
        answer.structs(self.results).find(|r| {
            r.str("Name") == physical
                || (entry.by_id && r.has("TopicId") && TopicId(r.uuid("TopicId")) == native)
        })
    }
}

impl Plan for TopicsChange {
    fn begin(&mut self, cx: &mut Cx<'_>) -> bool {
        self.entries = self.read(cx);
        let names = self.entries.iter().filter_map(|e| e.name.as_deref()).map(Arc::from).collect();
        self.change = cx.shared.changes.begin(names, ChangeKind::Topic, cx.snapshot.revision);
        self.change.is_some()
    }

    fn asks(&mut self, cx: &mut Cx<'_>) -> Vec<Ask> {
        let items = self.entries.iter().map(|entry| self.item(cx, entry)).collect();
        let can_rehearse = self.api_key == key::CREATE_PARTITIONS && !self.is_rehearsal();
        self.rounds = Rounds::new(items, can_rehearse);
        self.more(cx, &[])
    }

    fn more(&mut self, cx: &mut Cx<'_>, answers: &[Option<Struct>]) -> Vec<Ask> {
        let mut rounds = std::mem::take(&mut self.rounds);
        let asks = rounds.next(cx, self, answers);
        self.rounds = rounds;
        asks
    }

    fn errand(&mut self, cx: &mut Cx<'_>, answers: &[Option<Struct>]) -> Option<Errand> {
        if !matches!(self.follow, Follow::NotYet) || self.is_rehearsal() {
            return None;
        }
        let (indexes, changed): (Vec<usize>, Vec<_>) = self.done(cx, answers).into_iter().unzip();
        if changed.is_empty() {
            return None;
        }
        self.follow = Follow::Asked(indexes);
        Some(Errand::TopicsChanged(changed))
    }

    fn errand_done(&mut self, done: ErrandDone) {
        if let (Ok(_), Follow::Asked(indexes)) = (done, &mut self.follow) {
            self.follow = Follow::Done(std::mem::take(indexes));
        }
    }

    fn merge(&mut self, cx: &mut Cx<'_>, answers: Vec<Option<Struct>>) -> Step {
        let Some(mut response) = cx.empty_response() else { return Step::Done };
        response.set("ThrottleTimeMs", fan::throttle_ms(&answers));
        if self.rounds.items.is_empty() {
            let held = || Err((code::REQUEST_TIMED_OUT, "the topic is being moved: try again".to_owned()));
            self.rounds.items = self.entries.iter().map(|_| Item::at(held())).collect();
        }
        for index in 0..self.entries.len() {
            let out = self.result(cx, index, &answers, response.new_element(self.results));
            response.push(self.results, out);
        }
        let changed: Vec<_> =
            self.rounds.items.iter().flat_map(|i| i.places.iter().flatten()).map(|u| u.node.side).collect();
        for side in ClusterSide::BOTH.into_iter().filter(|side| changed.contains(side)) {
            cx.refresh(side);
        }
        Step::Reply(response)
    }

    fn patience_ms(&self) -> i64 {
        let field = if self.api_key == key::CREATE_TOPICS { "timeoutMs" } else { "TimeoutMs" };
        i64::from(self.request.i32(field)).clamp(0, 300_000) + GRACE_MS
    }

    fn is_change(&self) -> bool {
        true
    }
}
