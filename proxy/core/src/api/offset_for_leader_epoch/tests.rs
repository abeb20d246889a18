use crate::api::key;
use crate::session::testing::{EPOCHS, Rig, Source, TOPIC, Target, epoch_end, only};

fn ask(rig: &mut Rig, version: i16, current: i32, epoch: i32) {
    rig.ask(key::OFFSET_FOR_LEADER_EPOCH, version, |body| {
        let mut topic = body.new_element("Topics");
        topic.set("Topic", TOPIC);
        let mut partition = topic.new_element("Partitions");
        partition.set("CurrentLeaderEpoch", current);
        partition.set("LeaderEpoch", epoch);
        topic.push("Partitions", partition);
        body.push("Topics", topic);
    });
}

fn reply(rig: &mut Rig) -> (i16, i32, i64) {
    let reply = rig.reply().expect("answered");
    let partition = only(&reply, "Topics");
    (partition.i16("ErrorCode"), partition.i32("LeaderEpoch"), partition.i64("EndOffset"))
}

#[test]
fn r22_older_eras_are_answered_without_asking() {
    let mut rig = Rig::new(Source, 0);
    rig.flip(Target, 100, 10);
    let current = rig.virtual_epoch(EPOCHS[1]);
    ask(&mut rig, 4, current, EPOCHS[0]);
    assert!(rig.sent().is_empty());
    assert_eq!(reply(&mut rig), (0, EPOCHS[0], 100));
}

#[test]
fn r22_the_current_era_is_the_owners() {
    for version in 2..=4 {
        let mut rig = Rig::new(Source, 0);
        rig.flip(Target, 100, 10);
        let current = rig.virtual_epoch(EPOCHS[1]);
        ask(&mut rig, version, EPOCHS[0], current);
        let sent = rig.one();
        let asked = only(&sent.body, "Topics");
        assert_eq!(
            (sent.node.side, asked.i32("CurrentLeaderEpoch"), asked.i32("LeaderEpoch")),
            (Target, -1, EPOCHS[1])
        );
        rig.answer(&sent, |body| epoch_end(body, 0, EPOCHS[1], 25));
        assert_eq!(reply(&mut rig), (0, current, 115));
    }
}

#[test]
fn r22_an_epoch_asked_before_a_flip_is_answered_from_the_new_timeline() {
    let mut rig = Rig::new(Source, 0);
    ask(&mut rig, 4, EPOCHS[0], EPOCHS[0]);
    let sent = rig.one();
    rig.flip(Target, 100, 10);
    rig.answer(&sent, |body| epoch_end(body, 0, EPOCHS[0], 97));
    assert_eq!(reply(&mut rig), (0, EPOCHS[0], 100));
}

#[test]
fn errors_of_the_own_broker_pass_and_a_lost_companion_is_retriable() {
    let mut rig = Rig::new(Source, 0);
    ask(&mut rig, 4, EPOCHS[0], EPOCHS[0]);
    let sent = rig.one();
    rig.answer(&sent, |body| epoch_end(body, 74, -1, -1));
    assert_eq!(reply(&mut rig).0, 74);
    rig.flip(Target, 100, 10);
    let current = rig.virtual_epoch(EPOCHS[1]);
    ask(&mut rig, 4, current, current);
    let sent = rig.one();
    rig.lose(&sent);
    assert_eq!(reply(&mut rig).0, 5);
}
