//! ConsumerGroupHeartbeat (key 68) and ConsumerGroupDescribe (69): groups of the KIP-848 protocol, at their home.
//!
//! The coordinator assigns partitions by topic id. It is given, and gives, its own cluster's ids and names; clients know
//! the virtual ones. Such a group is not moved to another home yet: the plan refuses it.
//!
//! Source: KIP-848, `ConsumerGroupHeartbeatRequest.json`, `ConsumerGroupDescribeResponse.json`.

use super::common;
use super::group::GroupApi;
use super::group_batch::GroupBatch;
use crate::ids::{ClusterSide, TopicId};
use crate::route::TopicRoute;
use crate::schema::{Struct, Value};
use crate::session::{Cx, Step};
use std::sync::Arc;

pub(super) struct ConsumerGroupHeartbeat(pub(super) Struct);

impl GroupApi for ConsumerGroupHeartbeat {
    fn group(&self) -> String {
        self.0.str("GroupId").to_owned()
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
    use crate::session::testing::{Rig, Source, TOPIC};

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
}
