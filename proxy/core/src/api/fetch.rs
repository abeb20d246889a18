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
use crate::ids::{ClusterSide, NativeOffset};
use crate::schema::{self, Struct};
use crate::session::{Answer, Class, CloseReason, Cx, Operation, Step, UpstreamKey};
use std::collections::HashMap;

pub use super::fetch_session::ClientSessions;

/// How long over its time a poll is still waited for whose upstream still owes an earlier answer.
const STRAGGLER_MS: i64 = 100;
/// The shortest time between two polls of one upstream: a broker may answer at once with nothing.
const AGAIN_MS: i64 = 20;
/// Calls with this bit ask for the log start of one entry, of the target where the second bit is set too.
const START_BIT: u32 = 1 << 31;
const SIDE_BIT: u32 = 1 << 30;
/// ListOffsets: the log start.
const EARLIEST: i64 = -2;
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
    sent_ms: i64,
    /// Not polled again before.
    again_ms: i64,
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
        Fetch {
            request,
            session: None,
            entries: Vec::new(),
            parts: Vec::new(),
            started_ms: 0,
            throttle_ms: 0,
        }
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
            None => self.parts.push(Part {
                upstream: target.upstream,
                entries: vec![index],
                state: PartState::Blocked,
                sent_ms: 0,
                again_ms: 0,
            }),
        }
    }

    /// Takes entries whose era has ended, and those that are due for another try, to where they are read now.
    fn replace(&mut self, cx: &mut Cx<'_>) {
        for index in 0..self.entries.len() {
            let entry = &self.entries[index];
            let due = entry.is_open()
                && entry.target.is_none()
                && entry.retry_at_ms.is_none_or(|at| at <= cx.now_ms);
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
        let mut live = self.parts.iter().filter(|p| !p.entries.is_empty());
        live.next().is_some_and(|p| p.entries.len() == self.entries.len()) && live.next().is_none()
    }

    fn is_history(&self, part: &Part) -> bool {
        part.entries.iter().any(|e| self.entries[*e].target.is_some_and(|t| t.end.is_some()))
    }

    /// Sends every part that is due and whose upstream is free.
    fn send(&mut self, cx: &mut Cx<'_>) {
        let news = self.entries.iter().any(Entry::has_news);
        let waits = self.waits();
        for index in 0..self.parts.len() {
            let part = &self.parts[index];
            let poll = match part.state {
                PartState::Blocked => self.is_single() && !self.is_history(part),
                PartState::Empty if !news && waits && cx.now_ms < self.ends_ms() => true,
                _ => continue,
            };
            if !part.entries.iter().any(|e| self.entries[*e].is_open()) {
                self.parts[index].state = PartState::Over;
                continue;
            }
            if cx.is_busy(part.upstream, key::FETCH) {
                continue;
            }
            if cx.now_ms < part.again_ms {
                cx.wake_at(part.again_ms);
                continue;
            }
            let wait = if poll { self.poll_ms(cx, part) } else { 0 };
            let (upstream, body) = (part.upstream, self.request_for(part, wait));
            let sent = cx.forward(upstream, &body, u32::try_from(index).unwrap_or(u32::MAX));
            let state = if poll { PartState::Polling } else { PartState::Probing };
            self.parts[index].state = if sent { state } else { PartState::Over };
            self.parts[index].sent_ms = cx.now_ms;
            self.parts[index].again_ms = if poll { cx.now_ms + AGAIN_MS } else { cx.now_ms };
            if !sent {
                // A broker without a known address: what is known is out of date.
                cx.refresh(upstream.node.side);
                for entry in self.parts[index].entries.clone() {
                    self.entries[entry].delay(cx);
                }
            }
        }
    }

    /// Whether nothing is worth waiting for: a client that takes an empty answer, or one that is throttled, gets the
    /// first one.
    fn waits(&self) -> bool {
        self.request.i32("MinBytes") > 0 && self.throttle_ms == 0
    }

    /// Asks for the log starts that answers wait for.
    fn ask_starts(&mut self, cx: &mut Cx<'_>) {
        for index in 0..self.entries.len() {
            let Some(side) = self.entries[index].take_start_wanted() else { continue };
            if !self.ask_start(cx, index, side) {
                cx.refresh(side);
                self.entries[index].delay(cx);
            }
        }
    }

    fn ask_start(&self, cx: &mut Cx<'_>, index: usize, side: ClusterSide) -> bool {
        let entry = &self.entries[index];
        let (Some(route), Some(target)) = (&entry.route, entry.target) else { return false };
        let leader = cx.snapshot.leader(route, entry.key.partition, side);
        let upstream = match leader {
            _ if target.side == side => target.upstream,
            Some(leader) => cx.upstream(side, leader, Class::Fetch),
            None => return false,
        };
        let Some(message) = schema::request(key::LIST_OFFSETS) else { return false };
        let range = cx.snapshot.topology(side).api_ranges.range(key::LIST_OFFSETS);
        let version = range.map_or(message.versions.min, |(_, max)| max.min(message.versions.max));
        let mut body = Struct::new(message.fields);
        body.set("ReplicaId", -1);
        let mut topic = body.new_element("Topics");
        topic.set("Name", route.physical(side));
        let mut partition = topic.new_element("Partitions");
        partition.set("PartitionIndex", entry.key.partition);
        partition.set("Timestamp", EARLIEST);
        topic.push("Partitions", partition);
        body.push("Topics", topic);
        let part = u32::try_from(index).unwrap_or(u32::MAX)
            | START_BIT
            | if side == ClusterSide::Target { SIDE_BIT } else { 0 };
        cx.call(upstream, key::LIST_OFFSETS, version, &body, part)
    }

    fn on_start_answer(&mut self, cx: &mut Cx<'_>, part: u32, answer: Answer) -> Step {
        let side = if part & SIDE_BIT == 0 { ClusterSide::Source } else { ClusterSide::Target };
        let index = (part & !(START_BIT | SIDE_BIT)) as usize;
        let Some(entry) = self.entries.get_mut(index).filter(|e| e.is_judging()) else {
            return Step::Pending;
        };
        let mut start = None;
        if let Answer::Frame { frame, body_at, version } = answer {
            let response = match cx.decode(key::LIST_OFFSETS, &frame, body_at, version) {
                Ok(response) => response,
                Err(reason) => return Step::Close(reason),
            };
            let mut found = response.structs("Topics").flat_map(|t| t.structs("Partitions"));
            start = found.next().filter(|p| p.i16("ErrorCode") == code::NONE).map(|p| p.i64("Offset"));
        }
        match (start.filter(|s| *s >= 0), &entry.route) {
            (Some(start), Some(route)) => {
                cx.shared.log_starts.note(&route.name, entry.key.partition, side, NativeOffset(start));
                entry.judge(cx);
            }
            _ => {
                cx.refresh(side);
                entry.delay(cx);
            }
        }
        self.advance(cx)
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
        // A broker that sends the client to a follower (by its rack) would answer without records.
        let mut body = self.request.clone_without(&["Topics", "ForgottenTopicsData", "RackId"]);
        body.set("SessionId", 0);
        body.set("SessionEpoch", -1);
        body.set("MaxWaitMs", i32::try_from(wait_ms).unwrap_or(0));
        if !self.is_single() {
            let share = i32::try_from(self.parts.iter().filter(|p| !p.entries.is_empty()).count().max(1))
                .unwrap_or(1);
            body.set("MaxBytes", (self.request.i32("MaxBytes") / share).max(1));
            body.set("MinBytes", self.request.i32("MinBytes").min(1));
        }
        let mut topics: Vec<(usize, Struct)> = Vec::new();
        for index in &part.entries {
            let entry = &self.entries[*index];
            let (Some(target), Some(route)) = (entry.target, &entry.route) else { continue };
            if !entry.is_open() {
                continue;
            }
            let same = |(owner, _): &(usize, Struct)| {
                self.entries[*owner].route.as_ref().is_some_and(|r| r.name == route.name)
            };
            let place = topics.iter().rposition(same).unwrap_or_else(|| {
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
    fn absorb(&mut self, cx: &mut Cx<'_>, part: usize, mut response: Struct) {
        self.throttle_ms = self.throttle_ms.max(i64::from(response.i32("ThrottleTimeMs")));
        let indexes = self.parts[part].entries.clone();
        let top = response.i16("ErrorCode");
        let empty = !response
            .structs("Responses")
            .flat_map(|t| t.structs("Partitions"))
            .any(|p| !p.bytes("Records").is_empty());
        let by_id = cx.header.api_version >= 13;
        let mut places: HashMap<(Vec<u8>, i32), usize> = HashMap::new();
        for index in indexes.iter().copied() {
            let entry = &self.entries[index];
            let (Some(route), Some(target)) = (&entry.route, entry.target) else { continue };
            let id = route.native_id(target.side);
            let named = if by_id { id.0.to_vec() } else { route.physical(target.side).as_bytes().to_vec() };
            places.insert((named, entry.key.partition), index);
        }
        for topic in response.structs_mut("Responses") {
            let named =
                if by_id { topic.uuid("TopicId").to_vec() } else { topic.str("Topic").as_bytes().to_vec() };
            let mut place = (named, 0);
            for answer in topic.structs_mut("Partitions") {
                place.1 = answer.i32("PartitionIndex");
                if let Some(index) = places.get(&place) {
                    let answer = std::mem::replace(answer, Struct::new(answer.schema()));
                    self.entries[*index].take(cx, answer, empty);
                }
            }
        }
        if top != code::NONE {
            let hidden = self.parts[part].upstream.class != Class::Native && fetch_entry::is_elsewhere(top);
            for index in &indexes {
                if hidden {
                    self.entries[*index].delay(cx);
                } else {
                    self.entries[*index].answer_error(top);
                }
            }
        }
        let more = indexes.iter().any(|i| self.entries[*i].target.is_some() && self.entries[*i].is_open());
        self.parts[part].state = if more { PartState::Empty } else { PartState::Over };
    }

    /// Decides whether to answer, to go on waiting, or to ask again.
    fn advance(&mut self, cx: &mut Cx<'_>) -> Step {
        self.replace(cx);
        self.send(cx);
        self.ask_starts(cx);
        self.replace(cx);
        let news = self.entries.iter().any(Entry::has_news);
        let over = cx.now_ms >= self.ends_ms();
        let judging = self.entries.iter().any(Entry::is_judging);
        let unsent = self.entries.iter().any(|e| e.is_open() && e.target.is_none());
        let live = || self.parts.iter().filter(|p| !p.entries.is_empty());
        let is_in = |states: &[PartState]| live().any(|p| states.contains(&p.state));
        let open = judging || is_in(&[PartState::Probing, PartState::Polling, PartState::Blocked]);
        let done =
            if news { !judging && !is_in(&[PartState::Probing]) } else { !open && (over || !self.waits()) };
        if self.entries.is_empty() || done && (news || over || !unsent) {
            return self.answer(cx);
        }
        if !news && !over {
            cx.wake_at(self.ends_ms());
            return Step::Pending;
        }
        match self.patient_until(cx, news) {
            Some(until) if cx.now_ms >= until => self.answer(cx),
            Some(until) => {
                cx.wake_at(until);
                Step::Pending
            }
            None => Step::Pending,
        }
    }

    /// Until when a fetch that has news, or whose time is over, waits for what it has asked. `None`: as long as the
    /// client does, because there is nothing else to answer with.
    fn patient_until(&self, cx: &Cx<'_>, news: bool) -> Option<i64> {
        let live = self.parts.iter().filter(|p| !p.entries.is_empty());
        let until = live.filter_map(|part| match part.state {
            PartState::Polling if !news && self.is_single() && part.upstream.class == Class::Native => {
                Some(None)
            }
            PartState::Probing => Some(Some(part.sent_ms + cx.core.fetch.patience_ms(part.upstream))),
            PartState::Polling if !news => {
                Some(Some(part.sent_ms.max(self.ends_ms()) + cx.core.fetch.patience_ms(part.upstream)))
            }
            PartState::Blocked if !news => Some(Some(self.ends_ms() + STRAGGLER_MS)),
            _ => None,
        });
        let until: Vec<Option<i64>> = until.collect();
        if until.contains(&None) {
            return None;
        }
        let soonest = if news { cx.now_ms } else { self.ends_ms() };
        let judged = self.entries.iter().any(Entry::is_judging).then_some(self.ends_ms() + STRAGGLER_MS);
        Some(until.into_iter().flatten().chain(judged).max().unwrap_or(soonest))
    }

    fn answer(&mut self, cx: &mut Cx<'_>) -> Step {
        let Some(mut response) = cx.empty_response() else { return Step::Done };
        let news = self.entries.iter().any(Entry::has_news);
        for part in self.parts.iter().filter(|p| !p.entries.is_empty()) {
            // A poll is dropped without loss where another has news: it is asked again first thing.
            if part.state == PartState::Probing || (part.state == PartState::Polling && !news) {
                cx.core.fetch.was_late(part.upstream);
            }
        }
        let full = self.session.as_ref().is_none_or(FetchSession::is_full);
        let mut topics: Vec<(usize, Struct)> = Vec::new();
        for (index, entry) in self.entries.iter().enumerate() {
            let Some(partition) = entry.written(cx, full) else { continue };
            let same = |(owner, _): &(usize, Struct)| {
                let owner = &self.entries[*owner].key;
                owner.topic == entry.key.topic && owner.id == entry.key.id
            };
            let place = topics.iter().rposition(same).unwrap_or_else(|| {
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
        if part & START_BIT != 0 {
            return self.on_start_answer(cx, part, answer);
        }
        // What has moved meanwhile is the new owner's to answer.
        self.replace(cx);
        let index = part as usize;
        let Some(asked) = self.parts.get_mut(index) else { return Step::Pending };
        asked.state = PartState::Over;
        let (upstream, entries) = (asked.upstream, asked.entries.clone());
        match answer {
            Answer::Lost { .. } if upstream.class == Class::Native => {
                return Step::Close(CloseReason::UpstreamLost);
            }
            Answer::Lost { .. } => {
                cx.refresh(upstream.node.side);
                entries.iter().for_each(|i| self.entries[*i].delay(cx));
            }
            Answer::Frame { frame, body_at, version } => {
                match cx.decode(key::FETCH, &frame, body_at, version) {
                    Ok(response) => self.absorb(cx, index, response),
                    Err(reason) => return Step::Close(reason),
                }
            }
        }
        self.advance(cx)
    }

    fn on_wake(&mut self, cx: &mut Cx<'_>) -> Step {
        cx.deadline_ms = None;
        self.advance(cx)
    }
}

#[cfg(test)]
mod tests;
