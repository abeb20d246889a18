use crate::api::key;
use crate::ids::ClusterSide;
use crate::schema::Struct;
use crate::session::testing::{EPOCHS, Rig, Sent, Source, TOPIC, Target, only};

const V: i16 = 7;

/// Asks for partition 0.
fn ask(rig: &mut Rig, timestamp: i64) -> Vec<Sent> {
    ask_with(rig, timestamp, -1)
}

fn ask_with(rig: &mut Rig, timestamp: i64, epoch: i32) -> Vec<Sent> {
    rig.ask(key::LIST_OFFSETS, V, |body| {
        body.set("ReplicaId", -1);
        let mut topic = body.new_element("Topics");
        topic.set("Name", TOPIC);
        let mut partition = topic.new_element("Partitions");
        partition.set("Timestamp", timestamp);
        partition.set("CurrentLeaderEpoch", epoch);
        topic.push("Partitions", partition);
        body.push("Topics", topic);
    });
    rig.sent()
}

#[track_caller]
fn of(sent: &[Sent], side: ClusterSide) -> Sent {
    sent.iter().find(|s| s.node.side == side).expect("asked").clone()
}

/// (error, timestamp, offset, epoch)
fn answer(rig: &mut Rig, to: &Sent, (error, timestamp, offset, epoch): (i16, i64, i64, i32)) {
    rig.answer(to, |body| {
        let mut topic = body.new_element("Topics");
        topic.set("Name", TOPIC);
        let mut partition = topic.new_element("Partitions");
        partition.set("ErrorCode", error);
        partition.set("Timestamp", timestamp);
        partition.set("Offset", offset);
        partition.set("LeaderEpoch", epoch);
        topic.push("Partitions", partition);
        body.push("Topics", topic);
    });
}

fn reply(rig: &mut Rig) -> (i16, i64, i64) {
    let reply: Struct = rig.reply().expect("answered");
    let partition = only(&reply, "Topics");
    (partition.i16("ErrorCode"), partition.i64("Timestamp"), partition.i64("Offset"))
}

/// Source 0..100, target 100..110 (its 10..20), source again from 110 (its 100).
fn twice_flipped() -> Rig {
    let mut rig = Rig::new(Source, 0);
    rig.flip(Target, 100, 10);
    rig.flip(Source, 20, 100);
    rig
}

#[test]
fn before_any_flip_only_the_owner_is_asked() {
    for timestamp in [-1, -2, -3, 12] {
        let mut rig = Rig::new(Source, 0);
        let sent = ask_with(&mut rig, timestamp, EPOCHS[0]);
        assert_eq!((sent.len(), sent[0].node), (1, rig.node()));
        assert_eq!(only(&sent[0].body, "Topics").i32("CurrentLeaderEpoch"), EPOCHS[0]);
        answer(&mut rig, &sent[0], (0, 5, 42, EPOCHS[0]));
        assert_eq!(reply(&mut rig).2, 42);
    }
}

#[test]
fn r21_latest_is_the_owners_end_and_raises_what_is_known() {
    let mut rig = Rig::new(Target, 0);
    rig.flip(Target, 100, 10);
    let sent = ask_with(&mut rig, -1, EPOCHS[0]);
    assert_eq!((sent.len(), sent[0].node.side), (1, Target));
    assert_eq!(only(&sent[0].body, "Topics").i32("CurrentLeaderEpoch"), -1);
    answer(&mut rig, &sent[0], (0, -1, 15, EPOCHS[1]));
    let reply = rig.reply().unwrap();
    let partition = only(&reply, "Topics");
    assert_eq!((partition.i64("Offset"), partition.i32("LeaderEpoch")), (105, rig.virtual_epoch(EPOCHS[1])));
    assert_eq!(rig.shared.seen.get(&std::sync::Arc::from(TOPIC), 0).unwrap().high_watermark, 105);
}

#[test]
fn r21_latest_asked_before_a_flip_is_never_below_the_new_era() {
    let mut rig = Rig::new(Source, 0);
    let sent = ask(&mut rig, -1);
    rig.flip(Target, 100, 10);
    answer(&mut rig, &sent[0], (0, -1, 97, EPOCHS[0]));
    assert_eq!(reply(&mut rig), (0, -1, 100));
}

#[test]
fn r24_earliest_is_the_first_record_of_the_oldest_era_that_has_one() {
    for (source, target, earliest) in [(30, 0, 30), (100, 0, 100), (103, 12, 102), (103, 20, 113)] {
        let mut rig = twice_flipped();
        let sent = ask(&mut rig, -2);
        assert_eq!(sent.len(), 2);
        answer(&mut rig, &of(&sent, Target), (0, -1, target, EPOCHS[1]));
        answer(&mut rig, &of(&sent, Source), (0, -1, source, EPOCHS[0]));
        assert_eq!(reply(&mut rig), (0, -1, earliest), "source {source} target {target}");
    }
}

#[test]
fn r24_a_time_is_found_in_the_first_era_that_has_it() {
    // (source's answer, target's answer) → virtual
    let none = (0, -1, -1, -1);
    for (source, target, found) in [
        ((0, 50, 60, 5), (0, 55, 12, 3), (0, 50, 60)),
        ((0, 70, 105, 5), (0, 55, 12, 3), (0, 55, 102)),
        ((0, 70, 105, 5), none, (0, 70, 115)),
        (none, none, (0, -1, -1)),
    ] {
        let mut rig = twice_flipped();
        let sent = ask(&mut rig, 50);
        answer(&mut rig, &of(&sent, Source), source);
        answer(&mut rig, &of(&sent, Target), target);
        assert_eq!(reply(&mut rig), found);
    }
}

#[test]
fn r24_records_that_belong_to_no_era_hide_none_that_do() {
    // The target held records (its 0..10) before it became the owner, and one of them is the first of that time.
    let mut rig = Rig::new(Target, 0);
    rig.flip(Target, 100, 10);
    let sent = ask(&mut rig, 50);
    answer(&mut rig, &of(&sent, Source), (0, -1, -1, -1));
    answer(&mut rig, &of(&sent, Target), (0, 60, 4, 3));
    assert_eq!(reply(&mut rig), (0, 50, 100));
    // Behind the source's last era there is nothing of the virtual log.
    let sent = ask(&mut rig, 50);
    answer(&mut rig, &of(&sent, Source), (0, 60, 101, 5));
    answer(&mut rig, &of(&sent, Target), (0, -1, -1, -1));
    assert_eq!(reply(&mut rig), (0, -1, -1));
}

#[test]
fn r24_an_era_whose_side_is_down_is_never_passed_over() {
    for timestamp in [-2, 50, -3] {
        // The older era's side is down.
        let mut rig = Rig::new(Target, 0);
        rig.flip(Target, 100, 10);
        let sent = ask(&mut rig, timestamp);
        answer(&mut rig, &of(&sent, Target), (0, 60, 12, 3));
        rig.lose(&of(&sent, Source));
        assert_eq!(reply(&mut rig).0, 5, "timestamp {timestamp}");
        assert!(rig.refreshed.contains(&Source));
    }
}

#[test]
fn r30_a_side_that_cannot_have_the_answer_may_be_down() {
    for timestamp in [-2, 50] {
        let mut rig = twice_flipped();
        let sent = ask(&mut rig, timestamp);
        answer(&mut rig, &of(&sent, Source), (0, 50, 60, 5));
        rig.lose(&of(&sent, Target));
        assert_eq!((reply(&mut rig).0, timestamp), (0, timestamp));
    }
    // Known to be down, it is not even asked.
    let mut rig = twice_flipped();
    let mut down = (**rig.snapshot.topology(Target)).clone();
    down.reachable = false;
    rig.snapshot.topologies[1] = std::sync::Arc::new(down);
    let sent = ask(&mut rig, 50);
    assert_eq!(sent.len(), 1);
    answer(&mut rig, &sent[0], (0, 70, 105, 5));
    assert_eq!(reply(&mut rig).0, 5);
}

#[test]
fn r24_the_largest_timestamp_of_all_eras() {
    let mut rig = twice_flipped();
    let sent = ask(&mut rig, -3);
    answer(&mut rig, &of(&sent, Source), (0, 70, 105, 5));
    answer(&mut rig, &of(&sent, Target), (0, 90, 12, 3));
    assert_eq!(reply(&mut rig), (0, 90, 102));
}

#[test]
fn r24_tiers_are_the_owners_own() {
    let mut rig = Rig::new(Target, 0);
    rig.flip(Target, 100, 10);
    let sent = ask(&mut rig, -4);
    assert_eq!((sent.len(), sent[0].node.side), (1, Target));
    answer(&mut rig, &sent[0], (0, -1, 4, 3));
    assert_eq!(reply(&mut rig), (0, -1, 100));
}

#[test]
fn a_companions_lost_leadership_is_a_retriable_error_and_the_own_brokers_passes() {
    let mut rig = Rig::new(Source, 0);
    rig.flip(Target, 100, 10);
    let sent = ask(&mut rig, -1);
    answer(&mut rig, &sent[0], (74, -1, -1, -1));
    assert_eq!(reply(&mut rig).0, 5);
    let mut rig = Rig::new(Source, 0);
    let sent = ask(&mut rig, -1);
    answer(&mut rig, &sent[0], (6, -1, -1, -1));
    assert_eq!(reply(&mut rig).0, 6);
}

#[test]
fn unknown_partitions_and_partitions_asked_twice_are_refused() {
    let mut rig = Rig::new(Source, 0);
    rig.ask(key::LIST_OFFSETS, V, |body| {
        for name in [TOPIC, "nothing"] {
            let mut topic = body.new_element("Topics");
            topic.set("Name", name);
            for _ in 0..2 {
                let mut partition = topic.new_element("Partitions");
                partition.set("Timestamp", -1_i64);
                topic.push("Partitions", partition);
            }
            body.push("Topics", topic);
        }
    });
    let sent = rig.one();
    answer(&mut rig, &sent, (0, -1, 9, 5));
    let reply = rig.reply().unwrap();
    let codes = reply.structs("Topics").flat_map(|t| t.structs("Partitions")).map(|p| p.i16("ErrorCode"));
    assert_eq!(codes.collect::<Vec<_>>(), [0, 42, 3, 42]);
}

#[test]
fn partitions_of_several_brokers_are_split_and_every_version_goes_through() {
    for version in 1..=11 {
        let mut rig = Rig::new(Source, 0);
        rig.flip(Target, 100, 10);
        rig.ask(key::LIST_OFFSETS, version, |body| {
            let mut topic = body.new_element("Topics");
            topic.set("Name", TOPIC);
            for index in 0..2 {
                let mut partition = topic.new_element("Partitions");
                partition.set("PartitionIndex", index);
                partition.set("Timestamp", -1_i64);
                topic.push("Partitions", partition);
            }
            body.push("Topics", topic);
        });
        let sent = rig.sent();
        assert_eq!(sent.iter().map(|s| s.node.broker).collect::<Vec<_>>(), [0, 1]);
        for to in &sent {
            let index = only(&to.body, "Topics").i32("PartitionIndex");
            assert_eq!(index, to.node.broker);
            rig.answer(to, |body| {
                let mut topic = body.new_element("Topics");
                topic.set("Name", TOPIC);
                let mut partition = topic.new_element("Partitions");
                partition.set("PartitionIndex", index);
                partition.set("Offset", 20 + i64::from(index));
                topic.push("Partitions", partition);
                body.push("Topics", topic);
            });
        }
        let reply = rig.reply().unwrap();
        let found = reply.structs("Topics").flat_map(|t| t.structs("Partitions"));
        let found = found.map(|p| (p.i32("PartitionIndex"), p.i64("Offset")));
        assert_eq!(found.collect::<Vec<_>>(), [(0, 110), (1, 111)], "version {version}");
    }
}
