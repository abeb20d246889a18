use crate::api::key;
use crate::schema::Struct;
use crate::session::testing::{Rig, Sent, Source, TOPIC, Target, only};
use std::sync::Arc;

fn ask(rig: &mut Rig, version: i16, offset: i64) -> Vec<Sent> {
    rig.ask(key::DELETE_RECORDS, version, |body| {
        body.set("TimeoutMs", 1000);
        let mut topic = body.new_element("Topics");
        topic.set("Name", TOPIC);
        let mut partition = topic.new_element("Partitions");
        partition.set("Offset", offset);
        topic.push("Partitions", partition);
        body.push("Topics", topic);
    });
    rig.sent()
}

fn asked(sent: &Sent) -> (crate::ids::ClusterSide, i64) {
    (sent.node.side, only(&sent.body, "Topics").i64("Offset"))
}

fn answer(rig: &mut Rig, to: &Sent, error: i16, low: i64) {
    rig.answer(to, |body: &mut Struct| {
        let mut topic = body.new_element("Topics");
        topic.set("Name", TOPIC);
        let mut partition = topic.new_element("Partitions");
        partition.set("ErrorCode", error);
        partition.set("LowWatermark", low);
        topic.push("Partitions", partition);
        body.push("Topics", topic);
    });
}

fn reply(rig: &mut Rig) -> (i16, i64) {
    let reply = rig.reply().expect("answered");
    let partition = only(&reply, "Topics");
    (partition.i16("ErrorCode"), partition.i64("LowWatermark"))
}

#[test]
fn before_any_flip_the_owner_deletes() {
    for version in 0..=2 {
        let mut rig = Rig::new(Source, 0);
        let sent = ask(&mut rig, version, 40);
        assert_eq!((sent.len(), asked(&sent[0])), (1, (Source, 40)));
        answer(&mut rig, &sent[0], 0, 40);
        assert_eq!(reply(&mut rig), (0, 40));
    }
}

#[test]
fn r25_each_side_deletes_to_its_own_image_the_owner_first() {
    for (position, owner) in [(105, 15), (-1, -1)] {
        let mut rig = Rig::new(Target, 0);
        rig.flip(Target, 100, 10);
        let sent = ask(&mut rig, 2, position);
        assert_eq!((sent.len(), asked(&sent[0])), (1, (Target, owner)));
        answer(&mut rig, &sent[0], 0, 15);
        let history = rig.one();
        assert_eq!(asked(&history), (Source, 100));
        answer(&mut rig, &history, 0, 100);
        assert_eq!(reply(&mut rig), (0, 105));
    }
}

#[test]
fn r25_history_is_not_deleted_for_a_position_that_the_owner_refuses() {
    let mut rig = Rig::new(Target, 0);
    rig.flip(Target, 100, 10);
    let sent = ask(&mut rig, 2, 900);
    assert_eq!((sent.len(), sent[0].node.side), (1, Target));
    answer(&mut rig, &sent[0], 1, -1);
    assert!(rig.sent().is_empty());
    assert_eq!(reply(&mut rig).0, 1);
}

#[test]
fn r25_a_position_in_history_leaves_the_owner_alone() {
    let mut rig = Rig::new(Target, 0);
    rig.flip(Target, 100, 10);
    let sent = ask(&mut rig, 2, 40);
    assert_eq!((sent.len(), asked(&sent[0])), (1, (Source, 40)));
    answer(&mut rig, &sent[0], 0, 40);
    assert_eq!(reply(&mut rig), (0, 40));
}

#[test]
fn r25_a_side_that_is_down_is_a_retriable_error() {
    let mut rig = Rig::new(Target, 0);
    rig.flip(Target, 100, 10);
    let sent = ask(&mut rig, 2, 105);
    answer(&mut rig, &sent[0], 0, 15);
    let history = rig.one();
    rig.lose(&history);
    assert_eq!(reply(&mut rig).0, 5);
}

#[test]
fn r25_nothing_is_deleted_during_a_flip() {
    let mut rig = Rig::new(Source, 0);
    rig.snapshot.preparing = Arc::new([Arc::from(TOPIC)].into());
    assert!(ask(&mut rig, 2, 40).is_empty());
    assert_eq!(reply(&mut rig).0, 6);
    // A flip that begins between the two rounds stops the second.
    let mut rig = Rig::new(Target, 0);
    rig.flip(Target, 100, 10);
    let sent = ask(&mut rig, 2, 105);
    rig.snapshot.preparing = Arc::new([Arc::from(TOPIC)].into());
    answer(&mut rig, &sent[0], 0, 15);
    assert!(rig.sent().is_empty());
    assert_eq!(reply(&mut rig).0, 6);
}
