//! Fetch (key 1): every position is read from the cluster that holds its era, and the client sees one log.
//!
//! The fetch session a client sees is the proxy's own, so that any partition can be answered in any response and an
//! idle partition learns of a flip at once; upstream fetches are sessionless. What a client still asks of a node that
//! does not own a partition, and history below a boundary, is read by a companion: one mechanism for both.
//!
//! A fetch that goes to one upstream is a long poll there. One that spans several first probes each without waiting,
//! then polls those that had nothing; the first news answers it, and what is still under way is dropped (RULES R18).
//!
//! Source: KIP-227, KIP-392, KIP-516, `FetchRequest.json`, `FetchResponse.json`; RULES R17, R18, R21, R30.

use super::fetch_entry::{self, Entry};
use super::fetch_session::FetchSession;
use super::{common, key};
use crate::error_code as code;
use crate::ids::TopicId;
use crate::schema::{Struct, Value};
use crate::session::{Answer, Class, CloseReason, Cx, Operation, Step, UpstreamKey};

pub use super::fetch_session::ClientSessions;

/// How long parts of one fetch wait for each other's probes, and how long over its time a poll is still waited for.
const STRAGGLER_MS: i64 = 100;
/// The longest poll on each upstream when a fetch spans several: the loser's answer is dropped, and its upstream
/// gets no new fetch until it has come.
const SPANNING_POLL_MS: i64 = 200;
/// The longest poll while a flip of one of the topics is being prepared.
const PREPARING_POLL_MS: i64 = 25;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PartState {
    /// Not sent: its upstream still owes the answer to an earlier fetch.
    Blocked,
    /// Asked what is there, without waiting.
    Probing,
    Polling,
    /// Answered, nothing there.
    Empty,
    /// Answered, or given up.
    Over,
}

/// The entries that one upstream is asked for together.
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
    started_ms: i64,
    throttle_ms: i64,
}

impl Fetch {
    #[must_use]
    pub fn new(request: Struct) -> Fetch {
        Fetch { request, session: None, entries: Vec::new(), parts: Vec::new(), started_ms: 0, throttle_ms: 0 }
    }

    fn ends_ms(&self) -> i64 {
        self.started_ms + i64::from(self.request.i32("MaxWaitMs")).max(0)
    }

    /// Aims an entry and puts it into the part of its upstream that is not sent yet.
    fn place(&mut self, cx: &mut Cx<'_>, index: usize) {
        self.entries[index].aim(cx);
        let Some(target) = self.entries[index].target else { return };
        let open = |p: &&mut Part| p.upstream == target.upstream && p.state == PartState::Blocked;
        match self.parts.iter_mut().find(open) {
            Some(part) => part.entries.push(index),
            None => self.parts.push(Part { upstream: target.upstream, entries: vec![index], state: PartState::Blocked }),
        }
    }

    /// Takes entries whose era has ended, and those that are due for another try, to where they are read now.
    fn replace(&mut self, cx: &mut Cx<'_>) {
        for index in 0..self.entries.len() {
            let entry = &self.entries[index];
            let due = entry.is_open() && entry.target.is_none() && entry.retry_at_ms.is_none_or(|at| at <= cx.now_ms);
            if due || entry.has_moved(cx) {
                for part in &mut self.parts {
                    part.entries.retain(|i| *i != index);
                }
                self.place(cx, index);
            } else if let Some(at) = entry.retry_at_ms.filter(|_| entry.target.is_none()) {
                cx.wake_at(at);
            }
        }
    }

    fn is_single(&self) -> bool {
        let live: Vec<&Part> = self.parts.iter().filter(|p| !p.entries.is_empty()).collect();
        live.len() == 1 && live[0].entries.len() == self.entries.len()
    }

    fn is_history(&self, part: &Part) -> bool {
        part.entries.iter().any(|e| self.entries[*e].target.is_some_and(|t| t.end.is_some()))
    }

    /// Sends every part that is due and whose upstream is free.
    fn send(&mut self, cx: &mut Cx<'_>) {
        let news = self.entries.iter().any(Entry::has_news);
        for index in 0..self.parts.len() {
            let part = &self.parts[index];
            let poll = match part.state {
                PartState::Blocked => self.is_single() && !self.is_history(part),
                PartState::Empty if !news && cx.now_ms < self.ends_ms() => true,
                _ => continue,
            };
            if part.entries.is_empty() {
                self.parts[index].state = PartState::Over;
                continue;
            }
            if cx.is_busy(part.upstream, key::FETCH) {
                continue;
            }
            let wait = if poll { self.poll_ms(cx, part) } else { 0 };
            let (upstream, body) = (part.upstream, self.request_for(part, wait));
            let sent = cx.forward(upstream, &body, u32::try_from(index).unwrap_or(u32::MAX));
            let state = if poll { PartState::Polling } else { PartState::Probing };
            self.parts[index].state = if sent { state } else { PartState::Over };
            if !sent {
                for entry in self.parts[index].entries.clone() {
                    self.entries[entry].delay(cx);
                }
            }
        }
    }

    fn poll_ms(&self, cx: &Cx<'_>, part: &Part) -> i64 {
        let topics = part.entries.iter().filter_map(|e| self.entries[*e].route.as_ref());
        let preparing = topics.into_iter().any(|r| cx.snapshot.preparing.contains(&r.name));
        let cap = match (preparing, self.is_single()) {
            (true, _) => PREPARING_POLL_MS,
            (false, true) => i64::MAX,
            (false, false) => SPANNING_POLL_MS,
        };
        (self.ends_ms() - cx.now_ms).clamp(0, cap)
    }

    /// The sub-request of one part: sessionless, in that cluster's names, ids, offsets and epochs.
    fn request_for(&self, part: &Part, wait_ms: i64) -> Struct {
        let mut body = self.request.clone();
        body.set("SessionId", 0);
        body.set("SessionEpoch", -1);
        body.set("ForgottenTopicsData", Value::Array(Some(Vec::new())));
        body.set("MaxWaitMs", i32::try_from(wait_ms).unwrap_or(0));
        if !self.is_single() {
            let share = i32::try_from(self.parts.iter().filter(|p| !p.entries.is_empty()).count().max(1)).unwrap_or(1);
            body.set("MaxBytes", (self.request.i32("MaxBytes") / share).max(1));
            body.set("MinBytes", self.request.i32("MinBytes").min(1));
        }
        let mut topics: Vec<(usize, Struct)> = Vec::new();
        for index in &part.entries {
            let entry = &self.entries[*index];
            let (Some(target), Some(route)) = (entry.target, &entry.route) else { continue };
            let same = |(owner, _): &(usize, Struct)| self.entries[*owner].route.as_ref().is_some_and(|r| r.name == route.name);
            let place = topics.iter().position(same).unwrap_or_else(|| {
                let mut topic = self.request.new_element("Topics");
                common::to_physical(&mut topic, "Topic", "TopicId", route, target.side);
                topics.push((*index, topic));
                topics.len() - 1
            });
            if let Some(partition) = entry.to_request(&topics[place].1) {
                topics[place].1.push("Partitions", partition);
            }
        }
        body.set("Topics", topics.into_iter().map(|(_, t)| t).collect::<Vec<_>>());
        body
    }

    /// Takes in one part's response.
    fn absorb(&mut self, cx: &mut Cx<'_>, part: usize, response: &Struct) {
        self.throttle_ms = self.throttle_ms.max(i64::from(response.i32("ThrottleTimeMs")));
        let indexes = self.parts[part].entries.clone();
        let top = response.i16("ErrorCode");
        let empty = !response.structs("Responses").flat_map(|t| t.structs("Partitions")).any(|p| !p.bytes("Records").is_empty());
        let by_id = cx.header.api_version >= 13;
        for topic in response.structs("Responses") {
            for answer in topic.structs("Partitions") {
                let partition = answer.i32("PartitionIndex");
                let found = indexes.iter().copied().find(|i| {
                    let entry = &self.entries[*i];
                    let (Some(route), Some(target)) = (&entry.route, entry.target) else { return false };
                    let same = if by_id {
                        TopicId(topic.uuid("TopicId")) == route.native_id(target.side)
                    } else {
                        topic.str("Topic") == &**route.physical(target.side)
                    };
                    same && entry.key.partition == partition
                });
                if let Some(index) = found {
                    self.entries[index].take(cx, answer, empty);
                }
            }
        }
        if top != code::NONE {
            indexes.iter().for_each(|i| self.entries[*i].answer_error(top));
        }
        let more = indexes.iter().any(|i| self.entries[*i].target.is_some() && !self.entries[*i].has_news());
        self.parts[part].state = if more { PartState::Empty } else { PartState::Over };
    }

    /// Decides whether to answer, to go on waiting, or to ask again.
    fn advance(&mut self, cx: &mut Cx<'_>) -> Step {
        self.replace(cx);
        self.send(cx);
        let count = |state: PartState| self.parts.iter().filter(|p| p.state == state && !p.entries.is_empty()).count();
        let (probing, polling, blocked) = (count(PartState::Probing), count(PartState::Polling), count(PartState::Blocked));
        let over = cx.now_ms >= self.ends_ms();
        let late = cx.now_ms >= self.ends_ms() + STRAGGLER_MS;
        let news = self.entries.iter().any(Entry::has_news);
        if self.entries.is_empty() || late {
            return self.answer(cx);
        }
        if news && (probing == 0 || cx.now_ms >= self.started_ms + STRAGGLER_MS) {
            return self.answer(cx);
        }
        if over && probing + polling + blocked == 0 {
            return self.answer(cx);
        }
        if news {
            cx.wake_at(self.started_ms + STRAGGLER_MS);
        }
        cx.wake_at(if over { self.ends_ms() + STRAGGLER_MS } else { self.ends_ms() });
        Step::Pending
    }

    fn answer(&mut self, cx: &mut Cx<'_>) -> Step {
        let Some(mut response) = cx.empty_response() else { return Step::Done };
        let full = self.session.as_ref().is_none_or(FetchSession::is_full);
        let mut topics: Vec<(usize, Struct)> = Vec::new();
        for (index, entry) in self.entries.iter().enumerate() {
            let Some(partition) = entry.written(cx, full) else { continue };
            let same = |(owner, _): &(usize, Struct)| {
                let owner = &self.entries[*owner].key;
                owner.topic == entry.key.topic && owner.id == entry.key.id
            };
            let place = topics.iter().position(same).unwrap_or_else(|| {
                let mut topic = response.new_element("Responses");
                topic.set("Topic", entry.key.topic.as_str());
                topic.set("TopicId", entry.key.id);
                topics.push((index, topic));
                topics.len() - 1
            });
            topics[place].1.push("Partitions", partition);
        }
        response.set("Responses", topics.into_iter().map(|(_, t)| t).collect::<Vec<_>>());
        response.set("ThrottleTimeMs", self.throttle_ms);
        if let Some(mut session) = self.session.take() {
            session.answered(&self.entries);
            response.set("SessionId", session.id());
            cx.core.fetch.put_back(session);
        }
        common::add_endpoints(cx, &mut response, "Partitions");
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
            None => fetch_entry::entries_of(&self.request),
        };
        self.advance(cx)
    }

    fn on_answer(&mut self, cx: &mut Cx<'_>, part: u32, answer: Answer) -> Step {
        let index = part as usize;
        let Some(asked) = self.parts.get_mut(index) else { return Step::Pending };
        asked.state = PartState::Over;
        let (upstream, entries) = (asked.upstream, asked.entries.clone());
        match answer {
            Answer::Lost { .. } if upstream.class == Class::Native => return Step::Close(CloseReason::UpstreamLost),
            Answer::Lost { .. } => {
                cx.refresh(upstream.node.side);
                entries.iter().for_each(|i| self.entries[*i].delay(cx));
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
