//! A frozen route through every API that names topics (RULES R26): retriable errors, and no broker is asked for more than
//! is the group's own.

use super::key;
use crate::ids::ClusterSide;
use crate::schema::Struct;
use crate::session::testing::{Rig, Source, TOPIC, Target, batch, only};
use std::sync::Arc;

fn rig_at(side: ClusterSide) -> Rig {
    let mut rig = Rig::new(side, 0);
    rig.flip(Target, 100, 10);
    let mut routes = (*rig.snapshot.routes).clone();
    let mut route = (**routes.topic(TOPIC).unwrap()).clone();
    route.frozen = Some(Arc::from("it was created again"));
    routes.topics.insert(Arc::clone(&route.name), Arc::new(route));
    rig.snapshot.routes = Arc::new(routes);
    rig
}

/// Asks about partition 0 of the topic and gives the one error of the answer.
fn error(
    api: i16,
    version: i16,
    topics: &str,
    name: &str,
    partitions: &str,
    fill: impl Fn(&mut Struct),
) -> i16 {
    let mut rig = rig_at(Target);
    rig.ask(api, version, |body| {
        if body.has("GroupId") {
            body.set("GroupId", "g");
        }
        if body.has("Acks") {
            body.set("Acks", -1_i16);
        }
        let mut topic = body.new_element(topics);
        topic.set(name, TOPIC);
        let mut partition = topic.new_element(partitions);
        fill(&mut partition);
        topic.push(partitions, partition);
        body.push(topics, topic);
    });
    assert!(rig.sent().is_empty(), "API {api}: no broker is asked");
    let reply = rig.reply().unwrap_or_else(|| panic!("API {api} is answered"));
    let (topics, partitions) = match api {
        key::PRODUCE => ("Responses", "PartitionResponses"),
        key::FETCH => ("Responses", "Partitions"),
        _ => ("Topics", "Partitions"),
    };
    let errors: Vec<i16> =
        reply.structs(topics).flat_map(|t| t.structs(partitions)).map(|p| p.i16("ErrorCode")).collect();
    assert_eq!(errors.len(), 1, "API {api}");
    errors[0]
}

#[test]
fn r26_a_frozen_route_gives_retriable_errors() {
    let nothing = |_: &mut Struct| {};
    let records = |p: &mut Struct| p.set("Records", Some(batch(0, 1, 0)));
    assert_eq!(error(key::PRODUCE, 9, "TopicData", "Name", "PartitionData", records), 3);
    assert_eq!(error(key::FETCH, 11, "Topics", "Topic", "Partitions", nothing), 3);
    assert_eq!(error(key::LIST_OFFSETS, 7, "Topics", "Name", "Partitions", nothing), 5);
    assert_eq!(error(key::OFFSET_FOR_LEADER_EPOCH, 4, "Topics", "Topic", "Partitions", nothing), 5);
    assert_eq!(error(key::DELETE_RECORDS, 2, "Topics", "Name", "Partitions", nothing), 6);
    assert_eq!(error(key::OFFSET_COMMIT, 8, "Topics", "Name", "Partitions", nothing), 3);
}

#[test]
fn r26_committed_positions_of_a_frozen_route_are_unstable() {
    // On the group's home side: its own broker is asked.
    let mut rig = rig_at(Source);
    rig.ask(key::OFFSET_FETCH, 7, |body| {
        body.set("GroupId", "g");
        let mut topic = body.new_element("Topics");
        topic.set("Name", TOPIC);
        topic.set("PartitionIndexes", vec![0]);
        body.push("Topics", topic);
    });
    let sent = rig.one();
    rig.answer(&sent, |body| {
        let mut topic = body.new_element("Topics");
        topic.set("Name", TOPIC);
        let mut partition = topic.new_element("Partitions");
        partition.set("CommittedOffset", 7_i64);
        partition.set("Metadata", "tag of a position that is not told");
        topic.push("Partitions", partition);
        body.push("Topics", topic);
    });
    let reply = rig.reply().expect("answered");
    let partition = only(&reply, "Topics");
    assert_eq!((partition.i16("ErrorCode"), partition.i64("CommittedOffset")), (88, -1));
    assert_eq!(partition.str("Metadata"), "");
}
