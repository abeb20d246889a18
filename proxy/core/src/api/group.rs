//! Requests of a group, sent to the coordinator of its home.
//!
//! On a node of the home's side a request goes to the client's own broker, which judges for itself. From a node of the
//! other side it goes by a companion to the coordinator, which the operation looks up; the client never learns that it
//! is not there (RULES R29).

use super::common::CoordinatorType;
use super::key;
use crate::error_code as code;
use crate::ids::ClusterSide;
use crate::schema::{self, Struct};
use crate::session::{Answer, Class, CloseReason, Cx, ErrandDone, Operation, Step, UpstreamKey};
use std::borrow::Cow;
use std::collections::HashMap;
use std::hash::Hash;

/// How long a coordinator is looked for, milliseconds.
const PATIENCE_MS: i64 = 5_000;
const RETRY_MS: i64 = 100;

/// The calls of an operation on a group.
pub(super) const LOOKUP: u32 = 0;
pub(super) const REQUEST: u32 = 1;
/// Calls whose answer does not matter.
pub(super) const IGNORED: u32 = 2;

/// Groups and transactional ids that one connection is remembered for; few clients have more than one.
const REMEMBERED_MAX: usize = 1_000;

/// What is remembered of the groups and transactional ids that this connection speaks for.
#[derive(Debug, Default)]
pub struct Members {
    /// Coordinators that were looked up.
    coordinators: HashMap<(ClusterSide, CoordinatorType, String), i32>,
    /// The place of the last commit that was sent on, by group.
    commits: HashMap<String, u64>,
}

impl Members {
    /// The commit at `place` among the connection's requests is sent on now, perhaps once more. False: a later one was sent,
    /// behind which it would take the group back.
    pub(super) fn sends_commit(&mut self, group: &str, place: u64) -> bool {
        if self.commits.get(group).is_some_and(|last| *last > place) {
            return false;
        }
        let group = group.to_owned();
        make_room(&mut self.commits, &group);
        self.commits.insert(group, place);
        true
    }

    fn found(&mut self, key: (ClusterSide, CoordinatorType, String), broker: i32) {
        make_room(&mut self.coordinators, &key);
        self.coordinators.insert(key, broker);
    }
}

/// Whoever speaks for more is remembered anew.
fn make_room<K: Hash + Eq, V>(map: &mut HashMap<K, V>, key: &K) {
    if map.len() >= REMEMBERED_MAX && !map.contains_key(key) {
        map.clear();
    }
}

/// Finds the connection for a group, or for a transactional id.
pub(super) struct Finder {
    pub(super) group: String,
    kind: CoordinatorType,
    pub(super) class: Class,
    until_ms: Option<i64>,
    /// The side that a lookup is under way at: a second one would send the request twice.
    looking: Option<ClusterSide>,
    /// The lookup's part among the operation's calls.
    lookup: u32,
    /// Ask for the coordinator even on the home's side.
    pub(super) exact: bool,
}

/// Where a group's request goes.
pub(super) enum Found {
    At(UpstreamKey),
    /// The lookup is under way, or is to be repeated at the next wake.
    Later,
    /// No coordinator within the patience.
    Nowhere,
}

impl Finder {
    pub(super) fn new(group: String, class: Class) -> Finder {
        let kind = CoordinatorType::Group;
        Finder { group, kind, class, until_ms: None, looking: None, lookup: LOOKUP, exact: false }
    }

    /// For an operation that looks up several.
    pub(super) fn with_lookup(self, lookup: u32) -> Finder {
        Finder { lookup, ..self }
    }

    pub(super) fn find(&mut self, cx: &mut Cx<'_>, home: ClusterSide) -> Found {
        let cached = cx.core.members.coordinators.get(&self.key(home)).copied();
        if let Some(broker) = cached {
            return Found::At(cx.upstream(home, broker, self.class));
        }
        if cx.core.node.side == home && !self.exact {
            return Found::At(cx.upstream(home, cx.core.node.broker, self.class));
        }
        let until = *self.until_ms.get_or_insert(cx.now_ms + PATIENCE_MS);
        if cx.now_ms >= until {
            return Found::Nowhere;
        }
        // A broker that says nothing is not waited for longer than one that says no.
        cx.wake_at(until);
        if self.looking.is_some() {
            return Found::Later;
        }
        let version =
            cx.snapshot.topology(home).api_ranges.range(key::FIND_COORDINATOR).map_or(0, |r| r.1.min(3));
        let asked = cx.any_upstream(home).is_some_and(|upstream| {
            let mut body = request(key::FIND_COORDINATOR);
            body.set("Key", &*self.physical(cx, home));
            body.set("KeyType", self.kind as i8);
            cx.call(upstream, key::FIND_COORDINATOR, version, &body, self.lookup)
        });
        self.looking = asked.then_some(home);
        if !asked {
            cx.refresh(home);
            cx.wake_at(cx.now_ms + RETRY_MS);
        }
        Found::Later
    }

    /// Takes in the answer of a lookup. False: look again at the next wake.
    pub(super) fn found(&mut self, cx: &mut Cx<'_>, home: ClusterSide, answer: Answer) -> bool {
        // The group may have moved since it was asked.
        let home = self.looking.take().unwrap_or(home);
        if let Answer::Frame { frame, body_at, version } = answer
            && let Ok(response) = cx.decode(key::FIND_COORDINATOR, &frame, body_at, version)
            && response.i16("ErrorCode") == code::NONE
        {
            cx.core.members.found(self.key(home), response.i32("NodeId"));
            return true;
        }
        cx.wake_at(cx.now_ms + RETRY_MS);
        false
    }

    /// The coordinator is not where it was.
    pub(super) fn forget(&mut self, cx: &mut Cx<'_>, home: ClusterSide) {
        cx.core.members.coordinators.remove(&self.key(home));
        self.until_ms.get_or_insert(cx.now_ms + PATIENCE_MS);
        cx.wake_at(cx.now_ms + RETRY_MS);
    }

    fn key(&self, home: ClusterSide) -> (ClusterSide, CoordinatorType, String) {
        (home, self.kind, self.group.clone())
    }

    fn physical<'a>(&'a self, cx: &Cx<'_>, home: ClusterSide) -> Cow<'a, str> {
        match self.kind {
            CoordinatorType::Group => Cow::Borrowed(&self.group),
            CoordinatorType::Transaction => cx.snapshot.transactions.physical(&self.group, home),
        }
    }

    pub(super) fn is_over(&self, cx: &Cx<'_>) -> bool {
        self.until_ms.is_some_and(|until| cx.now_ms >= until)
    }
}

/// What is special about one API of a group, or of a transactional id.
pub(super) trait GroupApi: Send {
    /// The group, or the transactional id, whose home decides.
    fn group(&self) -> String;

    fn kind(&self) -> CoordinatorType {
        CoordinatorType::Group
    }

    /// What a companion for it blocks.
    fn class(&self) -> Class {
        Class::Produce
    }

    /// Where it goes.
    fn home(&self, cx: &Cx<'_>) -> ClusterSide {
        match self.kind() {
            CoordinatorType::Group => cx.snapshot.group_home(&self.group()),
            CoordinatorType::Transaction => cx.snapshot.transaction_home(&self.group()),
        }
    }

    /// Milliseconds to wait before it may go.
    fn waits_ms(&self, _cx: &Cx<'_>) -> Option<i64> {
        None
    }

    /// An answer that needs no broker.
    fn local(&mut self, _cx: &mut Cx<'_>, _home: ClusterSide) -> Option<Step> {
        None
    }

    /// What is to be done in the place of sending it now, or once more.
    fn instead(&mut self, _cx: &mut Cx<'_>) -> Option<Step> {
        None
    }

    /// The request in the home's terms.
    fn request(&mut self, cx: &mut Cx<'_>, home: ClusterSide) -> Struct;

    /// The answer in the client's terms.
    fn response(&mut self, cx: &mut Cx<'_>, home: ClusterSide, response: Struct) -> Step {
        let _ = (cx, home);
        Step::Reply(response)
    }

    /// The errand that it asked for when it took the response is done, or cannot be done.
    fn errand_done(&mut self, _done: ErrandDone) -> Step {
        Step::Pending
    }

    /// Whether it is to be seen through although the client has gone.
    fn is_change(&self) -> bool {
        false
    }

    /// What a client is told when no coordinator can be found.
    fn unavailable(&mut self, _cx: &mut Cx<'_>) -> Step {
        Step::Close(CloseReason::UpstreamLost)
    }
}

/// One request of a group.
pub(super) struct GroupCall<A> {
    api: A,
    finder: Finder,
    home: ClusterSide,
    sent_to: Option<UpstreamKey>,
    /// A coordinator may have carried it out, whatever became of the connection.
    was_sent: bool,
    is_gone: bool,
}

impl<A: GroupApi> GroupCall<A> {
    pub(super) fn new(api: A) -> GroupCall<A> {
        let finder = Finder { kind: api.kind(), ..Finder::new(api.group(), api.class()) };
        GroupCall { api, finder, home: ClusterSide::Source, sent_to: None, was_sent: false, is_gone: false }
    }

    /// At the home as it is now: it may have moved while this request waited.
    fn at_home(&mut self, cx: &mut Cx<'_>) -> Option<Step> {
        self.home = self.api.home(cx);
        // The client has chosen its node for the members' coordinator.
        self.finder.exact |= self.finder.kind == CoordinatorType::Group
            && self.home != cx.snapshot.group_home(&self.finder.group);
        self.api.local(cx, self.home)
    }

    fn go(&mut self, cx: &mut Cx<'_>) -> Step {
        if self.api.home(cx) != self.home
            && let Some(step) = self.at_home(cx)
        {
            return step;
        }
        if let Some(wait_ms) = self.api.waits_ms(cx) {
            cx.wake_at(cx.now_ms + wait_ms);
            return Step::Pending;
        }
        match self.finder.find(cx, self.home) {
            Found::Later => Step::Pending,
            Found::Nowhere => self.api.unavailable(cx),
            Found::At(upstream) => {
                if let Some(step) = self.api.instead(cx) {
                    return step;
                }
                let body = self.api.request(cx, self.home);
                self.sent_to = Some(upstream);
                if !cx.forward(upstream, &body, REQUEST) {
                    return self.without_address(cx);
                }
                self.was_sent = true;
                Step::Pending
            }
        }
    }
}

impl<A: GroupApi> Operation for GroupCall<A> {
    fn start(&mut self, cx: &mut Cx<'_>) -> Step {
        match self.at_home(cx) {
            Some(step) => step,
            None => self.go(cx),
        }
    }

    fn on_answer(&mut self, cx: &mut Cx<'_>, part: u32, answer: Answer) -> Step {
        match part {
            LOOKUP if self.sent_to.is_some() => Step::Pending,
            LOOKUP => {
                if self.finder.found(cx, self.home, answer) {
                    self.go(cx)
                } else {
                    Step::Pending
                }
            }
            REQUEST => self.on_response(cx, answer),
            _ => Step::Pending,
        }
    }

    fn on_errand_done(&mut self, _cx: &mut Cx<'_>, _part: u32, done: ErrandDone) -> Step {
        self.api.errand_done(done)
    }

    fn on_wake(&mut self, cx: &mut Cx<'_>) -> Step {
        if self.sent_to.is_some() {
            return Step::Pending;
        }
        cx.deadline_ms = None;
        self.go(cx)
    }

    fn on_client_gone(&mut self, _cx: &mut Cx<'_>) -> Step {
        self.is_gone = true;
        if self.api.is_change() && self.sent_to.is_some() { Step::Pending } else { Step::Done }
    }
}

impl<A: GroupApi> GroupCall<A> {
    fn on_response(&mut self, cx: &mut Cx<'_>, answer: Answer) -> Step {
        let native = self.sent_to.is_none_or(|u| u.class == Class::Native);
        let Answer::Frame { frame, body_at, version } = answer else {
            return if native { Step::Close(CloseReason::UpstreamLost) } else { self.again(cx) };
        };
        match cx.decode(cx.header.api_key, &frame, body_at, version) {
            Err(reason) => Step::Close(reason),
            Ok(response) if !native && is_elsewhere(&response) && !self.finder.is_over(cx) => self.again(cx),
            Ok(response) => self.api.response(cx, self.home, response),
        }
    }

    /// The broker is not among those the proxy knows of: it has come, or come back, since they were asked.
    fn without_address(&mut self, cx: &mut Cx<'_>) -> Step {
        cx.refresh(self.home);
        let native = self.sent_to.is_none_or(|u| u.class == Class::Native);
        if native || self.finder.is_over(cx) { self.api.unavailable(cx) } else { self.again(cx) }
    }

    /// A client that has gone asks again by itself, and has perhaps gone on since: sent once more, the end of its transaction
    /// would end the next one.
    fn again(&mut self, cx: &mut Cx<'_>) -> Step {
        if self.is_gone {
            return Step::Done;
        }
        self.finder.forget(cx, self.home);
        self.sent_to = None;
        Step::Pending
    }
}

impl<A> GroupCall<A> {
    pub(super) fn api(&self) -> &A {
        &self.api
    }

    pub(super) fn api_mut(&mut self) -> &mut A {
        &mut self.api
    }

    pub(super) fn was_sent(&self) -> bool {
        self.was_sent
    }
}

/// Whether an answer says that the coordinator is another broker, or not ready.
pub(super) fn is_elsewhere(response: &Struct) -> bool {
    let bad = |s: &Struct| {
        s.has("ErrorCode")
            && [code::NOT_COORDINATOR, code::COORDINATOR_NOT_AVAILABLE, code::COORDINATOR_LOAD_IN_PROGRESS]
                .contains(&s.i16("ErrorCode"))
    };
    let groups = response.has("Groups") && response.structs("Groups").any(bad);
    let topics = response.has("Topics")
        && response.structs("Topics").any(|t| t.has("Partitions") && t.structs("Partitions").any(bad));
    bad(response) || groups || topics
}

/// An empty request body.
pub(super) fn request(api_key: i16) -> Struct {
    schema::request(api_key).map_or_else(|| Struct::new(&[]), |m| Struct::new(m.fields))
}

/// A request of a group that holds nothing to translate.
pub(super) struct Plain {
    pub(super) request: Struct,
    pub(super) class: Class,
    pub(super) group: String,
}

impl GroupApi for Plain {
    fn group(&self) -> String {
        self.group.clone()
    }

    fn class(&self) -> Class {
        self.class
    }

    fn request(&mut self, _cx: &mut Cx<'_>, _home: ClusterSide) -> Struct {
        self.request.clone()
    }
}

#[cfg(test)]
mod tests;
