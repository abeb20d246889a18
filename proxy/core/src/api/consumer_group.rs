//! ConsumerGroupHeartbeat (key 68) and ConsumerGroupDescribe (69): groups of the KIP-848 protocol, at their home.
//!
//! The coordinator assigns partitions by topic id. It is given, and gives, its own cluster's ids and names; clients know
//! the virtual ones.
//!
//! While such a group is moved, its members are told to own nothing; each commits and gives up what it had, and then joins at
//! the new home (live.md §7).
//!
//! Source: KIP-848, `ConsumerGroupHeartbeatRequest.json`, `ConsumerGroupDescribeResponse.json`.

use super::group::{self, Finder, Found, GroupApi, IGNORED};
use super::group_batch::GroupBatch;
use super::{common, key};
use crate::error_code as code;
use crate::ids::{ClusterSide, TopicId};
use crate::route::TopicRoute;
use crate::schema::{Struct, Value};
use crate::session::{Class, Cx, Step};
use std::sync::Arc;

/// How often members speak while their group is moved, milliseconds.
const MOVING_INTERVAL_MS: i32 = 200;

pub(super) struct ConsumerGroupHeartbeat(pub(super) Struct);

impl ConsumerGroupHeartbeat {
    /// The member is told to own nothing, and keeps its session at the old home.
    fn drain(&self, cx: &mut Cx<'_>, home: ClusterSide) -> Option<Step> {
        let (group, member, epoch) =
            (self.0.str("GroupId"), self.0.str("MemberId"), self.0.i32("MemberEpoch"));
        let mut response = cx.empty_response()?;
        response.set("HeartbeatIntervalMs", MOVING_INTERVAL_MS);
        if epoch == 0 {
            // Who joins now joins at the new home.
            response.set("ErrorCode", code::COORDINATOR_LOAD_IN_PROGRESS);
            return Some(Step::Reply(response));
        }
        let owned = self.0.opt_array("TopicPartitions").map(<[Value]>::len);
        cx.shared.groups.empty(group, member, owned);
        self.keep_alive(cx, home);
        response.set("MemberId", member);
        response.set("MemberEpoch", epoch);
        let nothing = response.new_element("Assignment");
        response.set("Assignment", Value::Struct(Some(nothing)));
        Some(Step::Reply(response))
    }

    /// A heartbeat that changes nothing.
    fn keep_alive(&self, cx: &mut Cx<'_>, home: ClusterSide) {
        let mut body = group::request(key::CONSUMER_GROUP_HEARTBEAT);
        for field in ["GroupId", "MemberId", "MemberEpoch"] {
            body.set(field, self.0.get(field).clone());
        }
        let mut finder = Finder::new(self.group(), Class::Produce);
        if let Found::At(upstream) = finder.find(cx, home) {
            let _ = cx.forward(upstream, &body, IGNORED);
        }
    }

    fn fence(cx: &Cx<'_>) -> Option<Step> {
        let mut response = cx.empty_response()?;
        response.set("ErrorCode", code::FENCED_MEMBER_EPOCH);
        Some(Step::Reply(response))
    }
}

impl GroupApi for ConsumerGroupHeartbeat {
    fn group(&self) -> String {
        self.0.str("GroupId").to_owned()
    }

    fn local(&mut self, cx: &mut Cx<'_>, home: ClusterSide) -> Option<Step> {
        let (group, member, epoch) =
            (self.0.str("GroupId"), self.0.str("MemberId"), self.0.i32("MemberEpoch"));
        if epoch >= 0 && cx.snapshot.groups.moving.contains_key(group) {
            return self.drain(cx, home);
        }
        // The move is over, one way or the other: who was told to own nothing joins anew, and loses nothing by it.
        let was_emptied = cx.shared.groups.take_emptied(group, member);
        if was_emptied && epoch > 0 { Self::fence(cx) } else { None }
    }

    fn request(&mut self, cx: &mut Cx<'_>, home: ClusterSide) -> Struct {
        let mut body = self.0.clone();
        let names: Vec<Value> = self
            .0
            .strs("SubscribedTopicNames")
            .map(|name| Value::from(common::physical_name(cx, name, home)))
            .collect();
        // Null says that nothing has changed, which is not the same as no topic.
        if body.array_mut("SubscribedTopicNames").is_some() {
            body.set("SubscribedTopicNames", Value::Array(Some(names)));
        }
        for topic in body.structs_mut("TopicPartitions") {
            let route = cx.snapshot.routes.topic_by_id(TopicId(topic.uuid("TopicId")));
            if let Some(route) = route {
                topic.set("TopicId", route.native_id(home));
            }
        }
        body
    }

    fn response(&mut self, cx: &mut Cx<'_>, home: ClusterSide, mut response: Struct) -> Step {
        if let Some(assignment) = response.opt_struct_mut("Assignment") {
            show_topics(cx, home, assignment);
        }
        if response.i16("ErrorCode") == code::GROUP_ID_NOT_FOUND && self.0.i32("MemberEpoch") > 0 {
            // Fatal to a client; the group was at another home when it last heard of it.
            response.set("ErrorCode", code::FENCED_MEMBER_EPOCH);
        }
        Step::Reply(response)
    }
}

pub(super) fn consumer_group_describe(request: Struct) -> GroupBatch {
    GroupBatch::new(request, "GroupIds", "Groups", false).shown_by(show_group)
}

/// A described group in virtual names and ids.
fn show_group(cx: &Cx<'_>, home: ClusterSide, group: &mut Struct) {
    for member in group.structs_mut("Members") {
        let names: Vec<Value> = member
            .strs("SubscribedTopicNames")
            .map(|name| Value::from(cx.snapshot.routes.virtual_name(home, name)))
            .collect();
        member.set("SubscribedTopicNames", Value::Array(Some(names)));
        for field in ["Assignment", "TargetAssignment"] {
            if let Some(assignment) = member.opt_struct_mut(field) {
                show_topics(cx, home, assignment);
            }
        }
    }
}

fn show_topics(cx: &Cx<'_>, home: ClusterSide, assignment: &mut Struct) {
    for topic in assignment.structs_mut("TopicPartitions") {
        let Some(route) = route_of(cx, home, TopicId(topic.uuid("TopicId"))) else { continue };
        topic.set("TopicId", route.virtual_id);
        if topic.has("TopicName") {
            topic.set("TopicName", &route.name);
        }
    }
}

/// The topic that has this id in the home's cluster.
fn route_of(cx: &Cx<'_>, home: ClusterSide, native: TopicId) -> Option<Arc<TopicRoute>> {
    let physical = cx.snapshot.topology(home).topic_names.get(&native)?;
    let name = cx.snapshot.routes.virtual_name(home, physical);
    cx.snapshot.routes.topic(name).cloned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::key;
    use crate::route::GroupTable;
    use crate::session::testing::{Rig, Source, TOPIC, Target};

    const SOURCE_ID: TopicId = TopicId([1; 16]);

    fn virtual_id(rig: &Rig) -> TopicId {
        rig.snapshot.routes.topic(TOPIC).unwrap().virtual_id
    }

    #[test]
    fn assignments_are_told_by_the_ids_that_each_side_knows() {
        let mut rig = Rig::new(Source, 0);
        let known = virtual_id(&rig);
        rig.ask(key::CONSUMER_GROUP_HEARTBEAT, 0, |body| {
            body.set("GroupId", "g");
            body.set("MemberId", "m");
            let mut topic = body.new_element("TopicPartitions");
            topic.set("TopicId", known);
            topic.set("Partitions", Value::Array(Some(vec![Value::from(0)])));
            body.set("TopicPartitions", Value::Array(Some(vec![topic.into()])));
        });
        let sent = rig.one();
        assert_eq!(sent.node.side, Source);
        let asked = sent.body.structs("TopicPartitions").next().unwrap();
        assert_eq!(TopicId(asked.uuid("TopicId")), SOURCE_ID);
        assert!(sent.body.clone().array_mut("SubscribedTopicNames").is_none(), "nothing has changed");
        rig.answer(&sent, |body| {
            let mut assignment = body.new_element("Assignment");
            let mut topic = assignment.new_element("TopicPartitions");
            topic.set("TopicId", SOURCE_ID);
            assignment.push("TopicPartitions", topic);
            body.set("Assignment", Value::Struct(Some(assignment)));
        });
        let reply = rig.reply().unwrap();
        let assignment = reply.opt_struct("Assignment").unwrap();
        let told = assignment.structs("TopicPartitions").next().unwrap();
        assert_eq!(TopicId(told.uuid("TopicId")), known);
    }

    fn heartbeat(rig: &mut Rig, epoch: i32, owned: Option<usize>) {
        rig.ask(key::CONSUMER_GROUP_HEARTBEAT, 0, |body| {
            body.set("GroupId", "g");
            body.set("MemberId", "m");
            body.set("MemberEpoch", epoch);
            let topics =
                owned.map(|count| (0..count).map(|_| Value::from(body.new_element("TopicPartitions"))));
            body.set("TopicPartitions", Value::Array(topics.map(Iterator::collect)));
        });
    }

    fn moving(to: Option<ClusterSide>) -> Arc<GroupTable> {
        let moving = to.map(|to| (Arc::from("g"), to)).into_iter().collect();
        Arc::new(GroupTable { moving, ..GroupTable::default() })
    }

    #[test]
    fn while_a_group_is_moved_its_members_give_up_what_they_own_and_then_join_anew() {
        let mut rig = Rig::new(Source, 0);
        rig.snapshot.groups = moving(Some(Target));
        for (owned, emptied) in [(None, false), (Some(0), true), (None, true)] {
            heartbeat(&mut rig, 5, owned);
            let kept_alive = rig.one();
            assert_eq!((kept_alive.node.side, kept_alive.body.i32("MemberEpoch")), (Source, 5));
            assert!(kept_alive.body.opt_array("TopicPartitions").is_none(), "nothing has changed there");
            let reply = rig.reply().unwrap();
            let assignment = reply.opt_struct("Assignment").expect("it is told what to own");
            assert!(assignment.array("TopicPartitions").is_empty());
            assert_eq!((reply.i16("ErrorCode"), reply.i32("MemberEpoch")), (0, 5));
            assert_eq!(rig.shared.groups.is_emptied("g", "m"), emptied);
        }
        // Who comes now comes too early.
        heartbeat(&mut rig, 0, Some(0));
        assert_eq!(rig.reply().unwrap().i16("ErrorCode"), code::COORDINATOR_LOAD_IN_PROGRESS);
        // The move is over, or was aborted: only a new beginning gives it partitions again.
        rig.snapshot.groups = moving(None);
        rig.sent();
        heartbeat(&mut rig, 5, None);
        assert_eq!(rig.reply().unwrap().i16("ErrorCode"), code::FENCED_MEMBER_EPOCH);
        assert!(rig.sent().is_empty());
        heartbeat(&mut rig, 0, Some(0));
        assert_eq!(rig.one().body.i32("MemberEpoch"), 0);
    }

    #[test]
    fn trap_6_a_member_never_hears_that_its_group_is_not_there() {
        let mut rig = Rig::new(Source, 0);
        heartbeat(&mut rig, 5, None);
        let sent = rig.one();
        rig.answer(&sent, |body| body.set("ErrorCode", code::GROUP_ID_NOT_FOUND));
        assert_eq!(rig.reply().unwrap().i16("ErrorCode"), code::FENCED_MEMBER_EPOCH);
    }
}
