//! Heartbeat (key 12) and LeaveGroup (key 13). While a group's home is being moved, heartbeats are answered with
//! REBALANCE_IN_PROGRESS here, so that all members come to a rebalance, and still keep the old session alive.

use super::group::{Finder, Found, GroupApi, IGNORED};
use crate::error_code as code;
use crate::ids::ClusterSide;
use crate::schema::Struct;
use crate::session::{Class, Cx, Step};

pub(super) struct Heartbeat(pub(super) Struct);

impl Heartbeat {
    fn alive(&self, cx: &Cx<'_>) {
        let (group, member) = (self.0.str("GroupId"), self.0.str("MemberId"));
        cx.shared.groups.alive(group, member, self.0.i32("GenerationId"), None, cx.now_ms);
        if let Some(instance) = self.0.opt_str("GroupInstanceId") {
            cx.shared.groups.stands_for(group, instance, member);
        }
    }
}

impl GroupApi for Heartbeat {
    fn group(&self) -> String {
        self.0.str("GroupId").to_owned()
    }

    fn local(&mut self, cx: &mut Cx<'_>, home: ClusterSide) -> Option<Step> {
        let (group, member) = (self.0.str("GroupId"), self.0.str("MemberId"));
        let is_moving = cx.snapshot.groups.moving.contains_key(group);
        // Whom nobody knows is a member when its coordinator says so.
        if is_moving || cx.shared.groups.member(group, member).is_some() {
            self.alive(cx);
        }
        if !is_moving {
            return None;
        }
        let mut finder = Finder::new(group.to_owned(), Class::Produce);
        if let Found::At(upstream) = finder.find(cx, home) {
            let _ = cx.forward(upstream, &self.0, IGNORED);
        }
        let mut response = cx.empty_response()?;
        response.set("ErrorCode", code::REBALANCE_IN_PROGRESS);
        Some(Step::Reply(response))
    }

    fn request(&mut self, _cx: &mut Cx<'_>, _home: ClusterSide) -> Struct {
        self.0.clone()
    }

    fn response(&mut self, cx: &mut Cx<'_>, _home: ClusterSide, response: Struct) -> Step {
        match response.i16("ErrorCode") {
            code::NONE | code::REBALANCE_IN_PROGRESS => self.alive(cx),
            code::UNKNOWN_MEMBER_ID => cx.shared.groups.left(self.0.str("GroupId"), self.0.str("MemberId")),
            _ => {}
        }
        Step::Reply(response)
    }
}

pub(super) struct LeaveGroup(pub(super) Struct);

impl GroupApi for LeaveGroup {
    fn group(&self) -> String {
        self.0.str("GroupId").to_owned()
    }

    fn request(&mut self, cx: &mut Cx<'_>, _home: ClusterSide) -> Struct {
        let group = self.0.str("GroupId");
        cx.shared.groups.left(group, self.0.str("MemberId"));
        self.0.structs("Members").for_each(|m| cx.shared.groups.left(group, m.str("MemberId")));
        self.0.clone()
    }
}
