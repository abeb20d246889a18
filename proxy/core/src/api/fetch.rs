//! Fetch (key 1): every position is read from the cluster that holds its era, and the client sees one log.
//!
//! The fetch session a client sees is the proxy's own (KIP-227): any partition can be answered in any response, so
//! an idle partition learns of a flip at once. Upstream fetches are sessionless. What a client still asks of a node
//! that does not own a partition, and history below a boundary, is read by a companion: one mechanism for both.
//!
//! Source: KIP-227, KIP-392, KIP-516, `FetchRequest.json`, `FetchResponse.json`; RULES R17, R18, R21, R30.

use super::fetch_answer::{self, Entry, Result_};
use super::fetch_session::FetchSession;
use super::{common, key};
use crate::error_code as code;
use crate::ids::{ClusterSide, NativeOffset, VirtualOffset};
use crate::schema::{self, Struct, Value};
use crate::session::{Answer, Class, CloseReason, Cx, Operation, Step, UpstreamKey};
use crate::timeline::RequestEpoch;
use std::collections::BTreeMap;
use std::sync::Arc;

pub use super::fetch_session::ClientSessions;

/// How long parts of one fetch wait for each other, milliseconds.
const STRAGGLER_MS: i64 = 100;
/// The longest poll on each upstream when a fetch spans several: the loser's answer is dropped, and its upstream
/// gets no new fetch until it has come.
const SPANNING_POLL_MS: i64 = 200;
/// The longest poll while a flip of one of the topics is being prepared.
const PREPARING_POLL_MS: i64 = 25;

/// Where an entry is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    pub upstream: UpstreamKey,
    pub side: ClusterSide,
    pub era: usize,
    pub native: NativeOffset,
    /// The era's native end: nothing at or after it may be handed out from this read.
    pub end: Option<NativeOffset>,
}

enum PartState {
    /// Its upstream still owes the answer to an earlier fetch.
    Blocked,
    InFlight,
    Done,
}

struct Part {
    upstream: UpstreamKey,
    entries: Vec<usize>,
    state: PartState,
}

/// A fetch request.
pub struct Fetch {
    request: Struct,
    session: Option<FetchSession>,
    entries: Vec<Entry>,
    parts: Vec<Part>,
    round: u32,
    long_poll: bool,
    started_ms: i64,
    throttle_ms: i64,
}

impl Fetch {
    #[must_use]
    pub fn new(request: Struct) -> Fetch {
        Fetch {
            request,
            session: None,
            entries: Vec::new(),
            parts: Vec::new(),
            round: 0,
            long_poll: false,
            started_ms: 0,
            throttle_ms: 0,
        }
    }

    fn max_wait_ms(&self) -> i64 {
        i64::from(self.request.i32("MaxWaitMs")).max(0)
    }

    /// Gives every entry its target, and every target's upstream its part.
    fn plan(&mut self, cx: &mut Cx<'_>) {
        let mut by_upstream: BTreeMap<UpstreamKey, Vec<usize>> = BTreeMap::new();
        for (index, entry) in self.entries.iter_mut().enumerate() {
            if entry.result.is_some() {
                continue;
            }
            entry.target = target_of(cx, entry);
            if let Some(target) = entry.target {
                by_upstream.entry(target.upstream).or_default().push(index);
            }
        }
        self.parts = by_upstream
            .into_iter()
            .map(|(upstream, entries)| Part { upstream, entries, state: PartState::Blocked })
            .collect();
        let history = |e: &Entry| e.target.is_some_and(|t| t.end.is_some());
        self.long_poll = self.parts.len() == 1 && !self.entries.iter().any(history);
    }

    /// Sends every part whose upstream is free. Parts of a spanning fetch first ask what is there, without waiting,
    /// so that no upstream starves the others; only then they all wait for something to come.
    fn send(&mut self, cx: &mut Cx<'_>) {
        for index in 0..self.parts.len() {
            let upstream = self.parts[index].upstream;
            if !matches!(self.parts[index].state, PartState::Blocked) || cx.is_busy(upstream, key::FETCH) {
                continue;
            }
            let body = self.request_for(cx, &self.parts[index]);
            let part = (self.round << 8) | u32::try_from(index).unwrap_or(0);
            let sent = cx.forward(upstream, &body, part);
            self.parts[index].state = if sent { PartState::InFlight } else { PartState::Done };
        }
    }

    fn wait_for_part(&self, cx: &Cx<'_>, part: &Part) -> i64 {
        let left = (self.started_ms + self.max_wait_ms() - cx.now_ms).max(0);
        let preparing =
            part.entries.iter().any(|e| self.entries[*e].topic().is_some_and(|t| cx.snapshot.preparing.contains(t)));
        let cap = match (self.long_poll, preparing) {
            (false, _) => 0,
            (true, true) => PREPARING_POLL_MS,
            (true, false) if self.parts.len() > 1 => SPANNING_POLL_MS,
            (true, false) => i64::MAX,
        };
        left.min(cap)
    }

    /// The sub-request of one part: sessionless, in that cluster's names, ids, offsets and epochs.
    fn request_for(&self, cx: &Cx<'_>, part: &Part) -> Struct {
        let mut body = self.request.clone();
        body.set("SessionId", 0);
        body.set("SessionEpoch", -1);
        body.set("ForgottenTopicsData", Value::Array(Some(Vec::new())));
        body.set("MaxWaitMs", self.wait_for_part(cx, part));
        let share = i32::try_from(self.parts.len().max(1)).unwrap_or(1);
        body.set("MaxBytes", (self.request.i32("MaxBytes") / share).max(1));
        let mut topics: Vec<(usize, Struct)> = Vec::new();
        for index in &part.entries {
            let entry = &self.entries[*index];
            let (Some(target), Some(route)) = (entry.target, &entry.route) else { continue };
            let place = topics.iter().position(|(owner, _)| self.entries[*owner].same_topic(entry));
            let place = place.unwrap_or_else(|| {
                let mut topic = self.request.new_element("Topics");
                topic.set("Topic", entry.key.topic.clone());
                common::to_physical(&mut topic, "Topic", "TopicId", route, target.side);
                topics.push((*index, topic));
                topics.len() - 1
            });
            let partition = partition_request(&topics[place].1, entry, target);
            topics[place].1.push("Partitions", Value::from(partition));
        }
        let topics = topics.into_iter().map(|(_, t)| Value::from(t)).collect();
        body.set("Topics", Value::Array(Some(topics)));
        body
    }

    /// Takes in one part's response.
    fn absorb(&mut self, cx: &mut Cx<'_>, part: usize, response: &Struct) {
        self.throttle_ms = self.throttle_ms.max(i64::from(response.i32("ThrottleTimeMs")));
        let indexes = self.parts[part].entries.clone();
        let top = response.i16("ErrorCode");
        for topic in response.structs("Responses") {
            for answer in topic.structs("Partitions") {
                let by_id = cx.header.api_version >= 13;
                let found = indexes.iter().copied().find(|i| self.entries[*i].is_answered_by(topic, answer, by_id));
                if let Some(index) = found {
                    self.entries[index].take(cx, answer);
                }
            }
        }
        if top != code::NONE {
            for index in indexes {
                self.entries[index].fail(cx, top);
            }
        }
    }

    /// Decides whether to answer, to go on waiting, or to ask again.
    fn advance(&mut self, cx: &mut Cx<'_>) -> Step {
        self.send(cx);
        let over = cx.now_ms >= self.started_ms + self.max_wait_ms();
        let pending = self.parts.iter().any(|p| !matches!(p.state, PartState::Done));
        let something = self.entries.iter().any(Entry::has_news);
        let moved = self.entries.iter().any(|e| e.has_moved(cx));
        if moved || (over && !self.only_started(cx)) || (something && (self.long_poll || !pending)) {
            return self.answer(cx);
        }
        if something {
            cx.wake_at(self.started_ms + STRAGGLER_MS);
            return if cx.now_ms >= self.started_ms + STRAGGLER_MS { self.answer(cx) } else { Step::Pending };
        }
        if !pending {
            if over || self.long_poll {
                return self.answer(cx);
            }
            return self.next_round(cx);
        }
        // The broker keeps the time of a long poll; the proxy only guards against one that does not answer.
        cx.wake_at(self.started_ms + self.max_wait_ms() + STRAGGLER_MS);
        Step::Pending
    }

    /// A poll with no time left still gets its first answer.
    fn only_started(&self, cx: &Cx<'_>) -> bool {
        let waiting = self.parts.iter().any(|p| matches!(p.state, PartState::InFlight | PartState::Blocked));
        waiting && cx.now_ms < self.started_ms + self.max_wait_ms() + STRAGGLER_MS
    }

    fn next_round(&mut self, cx: &mut Cx<'_>) -> Step {
        self.round += 1;
        if self.entries.iter().any(Entry::is_delayed) && self.round > 1 {
            // An owner without a known leader: look again shortly rather than spin.
            cx.wake_at(cx.now_ms + STRAGGLER_MS);
        }
        for entry in &mut self.entries {
            entry.next_round();
        }
        self.plan(cx);
        if self.parts.is_empty() {
            cx.wake_at(self.started_ms + self.max_wait_ms());
            return if cx.now_ms >= self.started_ms + self.max_wait_ms() { self.answer(cx) } else { Step::Pending };
        }
        let history = |e: &Entry| e.target.is_some_and(|t| t.end.is_some());
        self.long_poll = self.round > 0 && !self.entries.iter().any(history);
        self.send(cx);
        cx.wake_at(self.started_ms + self.max_wait_ms() + STRAGGLER_MS);
        Step::Pending
    }

    fn answer(&mut self, cx: &mut Cx<'_>) -> Step {
        let Some(mut response) = cx.empty_response() else { return Step::Done };
        let full = self.session.as_ref().is_none_or(FetchSession::is_full);
        fetch_answer::write(cx, &mut response, &mut self.entries, full);
        response.set("ThrottleTimeMs", self.throttle_ms);
        if let Some(mut session) = self.session.take() {
            session.answered(&self.entries);
            response.set("SessionId", session.id());
            cx.core.fetch.put_back(session);
        }
        common::add_endpoints(cx, &mut response);
        Step::Reply(response)
    }

    fn refuse(cx: &Cx<'_>, error: i16) -> Step {
        let Some(mut response) = cx.empty_response() else { return Step::Done };
        response.set("ErrorCode", error);
        Step::Reply(response)
    }
}

impl Operation for Fetch {
    fn start(&mut self, cx: &mut Cx<'_>) -> Step {
        self.started_ms = cx.now_ms;
        let follower = self.request.i32("ReplicaId") >= 0
            || self.request.opt_struct("ReplicaState").is_some_and(|r| r.i32("ReplicaId") >= 0);
        if follower {
            return Step::Close(CloseReason::BadRequest("a follower's fetch".to_owned()));
        }
        let random = cx.core.next_random();
        match cx.core.fetch.begin(&self.request, cx.header.api_version, random) {
            Ok(session) => self.session = session,
            Err(error) => return Fetch::refuse(cx, error),
        }
        self.entries = match &self.session {
            Some(session) => session.entries(),
            None => fetch_answer::entries_of(&self.request),
        };
        for entry in &mut self.entries {
            entry.resolve(cx);
        }
        self.plan(cx);
        self.advance(cx)
    }

    fn on_answer(&mut self, cx: &mut Cx<'_>, part: u32, answer: Answer) -> Step {
        if part >> 8 != self.round {
            return Step::Pending;
        }
        let index = (part & 0xff) as usize;
        let Some(entry) = self.parts.get_mut(index) else { return Step::Pending };
        entry.state = PartState::Done;
        let native = entry.upstream.class == Class::Native;
        match answer {
            Answer::Lost { .. } if native => return Step::Close(CloseReason::UpstreamLost),
            Answer::Lost { .. } => {
                cx.refresh(entry.upstream.node.side);
                for index in entry.entries.clone() {
                    self.entries[index].delay();
                }
            }
            Answer::Frame { frame, body_at, version } => match cx.decode(key::FETCH, &frame, body_at, version) {
                Ok(response) => self.absorb(cx, index, &response),
                Err(reason) => return Step::Close(reason),
            },
        }
        self.advance(cx)
    }

    fn on_wake(&mut self, cx: &mut Cx<'_>) -> Step {
        cx.deadline_ms = None;
        self.advance(cx)
    }
}

/// Where an entry's position is read now; `None` where nothing can be read, with the reason in its result.
fn target_of(cx: &mut Cx<'_>, entry: &mut Entry) -> Option<Target> {
    let route = Arc::clone(entry.route.as_ref()?);
    let timeline = Arc::clone(route.timeline(entry.key.partition)?);
    let place = timeline.locate(VirtualOffset(entry.position));
    let era = timeline.era(place.era)?;
    let owner_read = place.era + 1 == timeline.eras().len();
    let broker = if owner_read && era.side == cx.core.node.side {
        Some(cx.core.node.broker)
    } else {
        cx.snapshot.leader(&route, entry.key.partition, era.side)
    };
    let Some(broker) = broker else {
        // No leader, or the side that holds this history is down: no records, and nothing else is delayed (R30).
        cx.refresh(era.side);
        entry.result = Some(Result_::Delayed);
        return None;
    };
    entry.upstream_epoch = match timeline.request_epoch(entry.current_leader_epoch) {
        RequestEpoch::Native(epoch) if owner_read => epoch,
        RequestEpoch::Unknown(epoch) if owner_read => epoch,
        _ => -1,
    };
    entry.upstream_last_epoch = match timeline.request_epoch(entry.last_fetched_epoch) {
        RequestEpoch::Native(epoch) if owner_read && entry.last_fetched_epoch >= 0 => epoch,
        _ => -1,
    };
    let upstream = cx.upstream(era.side, broker, Class::Fetch);
    if upstream.class != Class::Native {
        let (session, now) = (cx.core.id, cx.now_ms);
        cx.shared.traffic.note(&route.name, |t| {
            t.companion_fetch.insert(session, now);
        });
    }
    Some(Target { upstream, side: era.side, era: place.era, native: place.native, end: place.end })
}

fn partition_request(topic: &Struct, entry: &Entry, target: Target) -> Struct {
    let mut partition = topic.new_element("Partitions");
    partition.set("Partition", entry.key.partition);
    partition.set("CurrentLeaderEpoch", entry.upstream_epoch);
    partition.set("FetchOffset", target.native.0);
    partition.set("LastFetchedEpoch", entry.upstream_last_epoch);
    partition.set("LogStartOffset", -1_i64);
    partition.set("PartitionMaxBytes", entry.max_bytes);
    partition
}

/// Kept here so that the message tables name the key once.
#[must_use]
pub fn response_fields() -> Option<Struct> {
    schema::response(key::FETCH).map(|m| Struct::new(m.fields))
}
