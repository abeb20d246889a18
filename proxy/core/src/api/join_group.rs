//! JoinGroup (key 11), and the splice that moves a classic group's home: a member's JoinGroup is parked while the
//! group's commits are copied, then sent to the new home on the member's behalf. The member sees one rebalance.

use super::group::{Finder, Found, IGNORED, LOOKUP, REQUEST, request};
use super::key;
use crate::error_code as code;
use crate::ids::ClusterSide;
use crate::schema::Struct;
use crate::session::{Answer, Class, CloseReason, Cx, Operation, Step, UpstreamKey};

/// Between two heartbeats to the old home for a parked member, milliseconds.
const KEEP_ALIVE_MS: i64 = 1_000;
/// How long a member is parked at most, milliseconds; then it goes to the old home as if nothing were.
const PARKED_MAX_MS: i64 = 20_000;

/// How long the first member at the new home waits for the others, milliseconds; as long as Kafka's own initial delay.
const GATHER_MAX_MS: i64 = 3_000;
const GATHER_LOOK_MS: i64 = 50;

pub(super) struct JoinGroup {
    request: Struct,
    finder: Finder,
    home: ClusterSide,
    sent_to: Option<UpstreamKey>,
    /// Since when it waits for the new home.
    parked_ms: Option<i64>,
    next_keep_alive_ms: i64,
    /// It has waited: it goes to the group's home, wherever that is.
    has_waited: bool,
    /// The request goes to the new home, on the member's behalf.
    spliced: bool,
    /// What it was called at the old home.
    old_member: String,
    /// Until when it waits there for the other members.
    gather_until_ms: Option<i64>,
}

impl JoinGroup {
    pub(super) fn new(request: Struct) -> JoinGroup {
        let finder = Finder::new(request.str("GroupId").to_owned(), Class::Group);
        JoinGroup {
            request,
            finder,
            home: ClusterSide::Source,
            sent_to: None,
            parked_ms: None,
            next_keep_alive_ms: 0,
            has_waited: false,
            spliced: false,
            old_member: String::new(),
            gather_until_ms: None,
        }
    }

    /// A move may have begun, or be over, while the coordinator was looked for.
    fn go_on(&mut self, cx: &mut Cx<'_>) -> Step {
        if self.has_waited {
            self.go(cx)
        } else if self.is_moving(cx) {
            self.park(cx)
        } else if cx.snapshot.group_home(self.request.str("GroupId")) != self.home {
            self.unpark(cx)
        } else {
            self.go(cx)
        }
    }

    fn go(&mut self, cx: &mut Cx<'_>) -> Step {
        match self.finder.find(cx, self.home) {
            Found::Later => Step::Pending,
            Found::Nowhere => self.error(cx, code::COORDINATOR_LOAD_IN_PROGRESS),
            Found::At(upstream) => {
                self.sent_to = Some(upstream);
                let sent = cx.forward(upstream, &self.request, REQUEST);
                if sent { Step::Pending } else { self.error(cx, code::COORDINATOR_LOAD_IN_PROGRESS) }
            }
        }
    }

    fn error(&self, cx: &Cx<'_>, error: i16) -> Step {
        let Some(mut response) = cx.empty_response() else { return Step::Done };
        response.set("ErrorCode", error);
        response.set("MemberId", self.request.str("MemberId"));
        response.set("ProtocolName", "");
        Step::Reply(response)
    }

    /// Waits, and keeps the session at the old home alive.
    fn park(&mut self, cx: &mut Cx<'_>) -> Step {
        let (group, member) = (self.request.str("GroupId"), self.request.str("MemberId"));
        let since = *self.parked_ms.get_or_insert(cx.now_ms);
        cx.shared.groups.park(group, member, true, cx.now_ms);
        if cx.now_ms - since >= PARKED_MAX_MS {
            return self.unpark(cx);
        }
        if cx.now_ms >= self.next_keep_alive_ms {
            self.next_keep_alive_ms = cx.now_ms + KEEP_ALIVE_MS;
            self.keep_alive(cx);
        }
        cx.wake_at(self.next_keep_alive_ms);
        Step::Pending
    }

    /// Tells the old home that the member lives. One that has no name yet has no session.
    fn keep_alive(&self, cx: &mut Cx<'_>) {
        let (group, member) = (self.request.str("GroupId"), self.request.str("MemberId"));
        if member.is_empty() {
            return;
        }
        let mut finder = Finder::new(group.to_owned(), Class::Produce);
        if let Found::At(upstream) = finder.find(cx, self.home) {
            let mut body = request(key::HEARTBEAT);
            body.set("GroupId", group);
            body.set("GenerationId", cx.shared.groups.member(group, member).map_or(-1, |m| m.generation));
            body.set("MemberId", member);
            body.set("GroupInstanceId", self.request.opt_text("GroupInstanceId").cloned());
            let _ = cx.call(upstream, key::HEARTBEAT, self.version(cx, key::HEARTBEAT, 3), &body, IGNORED);
        }
    }

    /// The move is over, one way or the other.
    fn unpark(&mut self, cx: &mut Cx<'_>) -> Step {
        let group = self.request.str("GroupId").to_owned();
        let member = self.request.str("MemberId").to_owned();
        self.parked_ms = None;
        self.has_waited = true;
        cx.deadline_ms = None;
        cx.shared.groups.park(&group, &member, false, cx.now_ms);
        let now = cx.snapshot.group_home(&group);
        if now != self.home {
            self.leave_old_home(cx, &group, &member);
            cx.shared.groups.splice(&group, &member);
            self.home = now;
            self.finder.exact = true;
            self.request.set("MemberId", "");
            self.spliced = true;
            self.old_member = member;
        }
        self.go(cx)
    }

    /// Static members too, although they never leave by themselves: a group that has members takes no commits from us,
    /// neither those that are mirrored nor those of the move back, until their sessions end.
    fn leave_old_home(&self, cx: &mut Cx<'_>, group: &str, member: &str) {
        if member.is_empty() {
            return;
        }
        let mut finder = Finder::new(group.to_owned(), Class::Produce);
        if let Found::At(upstream) = finder.find(cx, self.home) {
            let mut body = request(key::LEAVE_GROUP);
            body.set("GroupId", group);
            body.set("MemberId", member);
            let _ =
                cx.call(upstream, key::LEAVE_GROUP, self.version(cx, key::LEAVE_GROUP, 2), &body, IGNORED);
        }
    }

    fn version(&self, cx: &Cx<'_>, api_key: i16, most: i16) -> i16 {
        cx.snapshot.topology(self.home).api_ranges.range(api_key).map_or(0, |r| r.1.min(most))
    }

    fn on_response(&mut self, cx: &mut Cx<'_>, answer: Answer) -> Step {
        let native = self.sent_to.is_none_or(|u| u.class == Class::Native);
        let Answer::Frame { frame, body_at, version } = answer else {
            return if native { Step::Close(CloseReason::UpstreamLost) } else { self.again(cx) };
        };
        let response = match cx.decode(key::JOIN_GROUP, &frame, body_at, version) {
            Ok(response) => response,
            Err(reason) => return Step::Close(reason),
        };
        let error = response.i16("ErrorCode");
        let group = self.request.str("GroupId").to_owned();
        match error {
            code::NONE if self.is_early(cx, &response) => {
                self.request.set("MemberId", response.str("MemberId"));
                self.sent_to = None;
                cx.wake_at(cx.now_ms + GATHER_LOOK_MS);
                Step::Pending
            }
            code::NONE => {
                let timeout = i64::from(self.request.i32("SessionTimeoutMs"));
                let (member, generation) = (response.str("MemberId"), response.i32("GenerationId"));
                cx.shared.groups.alive(&group, member, generation, Some(timeout), cx.now_ms);
                if let Some(instance) = self.request.opt_str("GroupInstanceId") {
                    cx.shared.groups.stands_for(&group, instance, member);
                }
                Step::Reply(response)
            }
            code::MEMBER_ID_REQUIRED if self.spliced => {
                self.request.set("MemberId", response.str("MemberId"));
                self.go(cx)
            }
            code::NOT_COORDINATOR | code::COORDINATOR_NOT_AVAILABLE | code::COORDINATOR_LOAD_IN_PROGRESS
                if (!native || self.spliced) && !self.finder.is_over(cx) =>
            {
                self.again(cx)
            }
            code::UNKNOWN_MEMBER_ID => {
                cx.shared.groups.left(&group, self.request.str("MemberId"));
                Step::Reply(response)
            }
            _ => Step::Reply(response),
        }
    }

    /// With an answer, the member is told where it is.
    fn told(&self, cx: &Cx<'_>, step: Step) -> Step {
        if self.spliced && !matches!(step, Step::Pending) {
            cx.shared.groups.spliced(self.request.str("GroupId"), &self.old_member);
        }
        step
    }

    /// It leads a generation without all members that are on their way (RULES R29). In a cooperative group it would be
    /// given partitions that the others go on reading. Until it has synchronised, the coordinator answers the same join
    /// again, and takes it for the next generation when another member has come.
    fn is_early(&mut self, cx: &Cx<'_>, response: &Struct) -> bool {
        if !self.spliced || response.str("Leader") != response.str("MemberId") {
            return false;
        }
        let until = *self.gather_until_ms.get_or_insert(cx.now_ms + GATHER_MAX_MS);
        let here = response.array("Members").len();
        cx.now_ms < until && here < cx.shared.groups.coming(self.request.str("GroupId"))
    }

    fn again(&mut self, cx: &mut Cx<'_>) -> Step {
        self.finder.forget(cx, self.home);
        self.sent_to = None;
        Step::Pending
    }

    fn is_moving(&self, cx: &Cx<'_>) -> bool {
        cx.snapshot.groups.moving.contains_key(self.request.str("GroupId"))
    }
}

impl Operation for JoinGroup {
    fn start(&mut self, cx: &mut Cx<'_>) -> Step {
        self.home = cx.snapshot.group_home(self.request.str("GroupId"));
        self.go_on(cx)
    }

    fn on_answer(&mut self, cx: &mut Cx<'_>, part: u32, answer: Answer) -> Step {
        let step = match part {
            LOOKUP if self.parked_ms.is_none() && self.sent_to.is_some() => Step::Pending,
            LOOKUP if self.parked_ms.is_none() => {
                if self.finder.found(cx, self.home, answer) {
                    self.go_on(cx)
                } else {
                    Step::Pending
                }
            }
            LOOKUP => {
                let _ = self.finder.found(cx, self.home, answer);
                Step::Pending
            }
            REQUEST => self.on_response(cx, answer),
            _ => Step::Pending,
        };
        self.told(cx, step)
    }

    fn on_wake(&mut self, cx: &mut Cx<'_>) -> Step {
        if self.parked_ms.is_some() {
            cx.deadline_ms = None;
            let step = if self.is_moving(cx) { self.park(cx) } else { self.unpark(cx) };
            return self.told(cx, step);
        }
        if self.sent_to.is_some() {
            return Step::Pending;
        }
        cx.deadline_ms = None;
        let step = self.go_on(cx);
        self.told(cx, step)
    }

    fn on_client_gone(&mut self, cx: &mut Cx<'_>) -> Step {
        if self.parked_ms.is_some() {
            cx.shared.groups.left(self.request.str("GroupId"), self.request.str("MemberId"));
        }
        self.told(cx, Step::Done)
    }
}

#[cfg(test)]
mod tests;
