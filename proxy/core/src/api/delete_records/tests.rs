use crate::api::key;
use crate::error_code as code;
use crate::ids::{ClusterSide, NativeOffset, Revision, VirtualOffset};
use crate::schema::Struct;
use crate::session::testing::{Rig, Sent, Source, TOPIC, Target, only};
use crate::session::{Errand, Event, Ticket};
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

/// (side, API, offset), ordered.
fn asked(sent: &[Sent]) -> Vec<(ClusterSide, i16, i64)> {
    let one = |s: &Sent| {
        let of = if s.api_key == key::LIST_OFFSETS { "Timestamp" } else { "Offset" };
        (s.node.side, s.api_key, only(&s.body, "Topics").i64(of))
    };
    let mut all: Vec<_> = sent.iter().map(one).collect();
    all.sort_unstable();
    all
}

fn answer(rig: &mut Rig, to: &Sent, error: i16, offset: i64) {
    rig.answer(to, |body: &mut Struct| {
        let mut topic = body.new_element("Topics");
        topic.set("Name", TOPIC);
        let mut partition = topic.new_element("Partitions");
        partition.set("ErrorCode", error);
        partition.set(if to.api_key == key::LIST_OFFSETS { "Offset" } else { "LowWatermark" }, offset);
        topic.push("Partitions", partition);
        body.push("Topics", topic);
    });
}

/// Answers the rehearsals well, and ends with the owner's high watermark.
fn rehearse(rig: &mut Rig, sent: &[Sent], end: i64) {
    for sent in sent {
        answer(rig, sent, 0, if sent.api_key == key::LIST_OFFSETS { end } else { 0 });
    }
}

fn floor(rig: &mut Rig) -> (Ticket, Errand) {
    rig.errand().expect("the floor is to be stored")
}

fn raised(to: i64) -> Errand {
    Errand::RaiseFloors(vec![(Arc::from(TOPIC), 0, VirtualOffset(to))])
}

fn reply(rig: &mut Rig) -> (i16, i64) {
    let reply = rig.reply().expect("answered");
    let partition = only(&reply, "Topics");
    (partition.i16("ErrorCode"), partition.i64("LowWatermark"))
}

const DELETE: i16 = key::DELETE_RECORDS;
const ENDS: i16 = key::LIST_OFFSETS;

#[test]
fn r25_nothing_is_deleted_before_the_floor_is_durable() {
    for version in 0..=2 {
        let mut rig = Rig::new(Source, 0);
        let sent = ask(&mut rig, version, 40);
        assert_eq!(asked(&sent), [(Source, ENDS, -1), (Source, DELETE, 0)]);
        rehearse(&mut rig, &sent, 100);
        assert!(rig.sent().is_empty());
        let errand = floor(&mut rig);
        assert_eq!(errand.1, raised(40));
        rig.run_errand(errand, Ok(true));
        let sent = rig.sent();
        assert_eq!(asked(&sent), [(Source, DELETE, 40)]);
        answer(&mut rig, &sent[0], 0, 40);
        assert_eq!(reply(&mut rig), (0, 40));
    }
}

#[test]
fn r25_a_floor_that_cannot_be_stored_deletes_nothing() {
    let mut rig = Rig::new(Source, 0);
    let sent = ask(&mut rig, 2, 40);
    rehearse(&mut rig, &sent, 100);
    let errand = floor(&mut rig);
    rig.run_errand(errand, Err("the disk is full".to_owned()));
    assert!(rig.sent().is_empty());
    assert_eq!(reply(&mut rig), (5, -1));
}

#[test]
fn r25_each_side_deletes_to_its_own_image() {
    // The era before ended at 100; the owner's began at native 10 and ends at 30 now.
    for (position, floor_at, owner) in [(105, 105, 15), (-1, 120, 30)] {
        let mut rig = Rig::new(Target, 0);
        rig.flip(Target, 100, 10);
        let sent = ask(&mut rig, 2, position);
        assert_eq!(asked(&sent), [(Source, DELETE, 0), (Target, ENDS, -1), (Target, DELETE, 0)]);
        rehearse(&mut rig, &sent, 30);
        let errand = floor(&mut rig);
        assert_eq!(errand.1, raised(floor_at));
        rig.run_errand(errand, Ok(true));
        let sent = rig.sent();
        assert_eq!(asked(&sent), [(Source, DELETE, 100), (Target, DELETE, owner)]);
        for sent in &sent {
            let low = only(&sent.body, "Topics").i64("Offset");
            answer(&mut rig, sent, 0, low);
        }
        assert_eq!(reply(&mut rig), (0, floor_at));
    }
}

#[test]
fn r25_a_new_leader_that_lags_behind_is_asked_again() {
    let mut rig = Rig::new(Target, 0);
    rig.flip(Target, 100, 10);
    let sent = ask(&mut rig, 2, 105);
    rehearse(&mut rig, &sent, 30);
    let errand = floor(&mut rig);
    rig.run_errand(errand, Ok(true));
    for sent in rig.sent() {
        let error = if sent.node.side == Source { code::OFFSET_OUT_OF_RANGE } else { code::NONE };
        answer(&mut rig, &sent, error, 15);
    }
    assert_eq!(reply(&mut rig), (code::LEADER_NOT_AVAILABLE, -1), "105 is in range");
}

#[test]
fn r25_a_position_in_history_leaves_the_owner_alone() {
    let mut rig = Rig::new(Target, 0);
    rig.flip(Target, 100, 10);
    let sent = ask(&mut rig, 2, 40);
    rehearse(&mut rig, &sent, 30);
    let errand = floor(&mut rig);
    rig.run_errand(errand, Ok(true));
    let sent = rig.sent();
    assert_eq!(asked(&sent), [(Source, DELETE, 40)]);
    answer(&mut rig, &sent[0], 0, 40);
    assert_eq!(reply(&mut rig), (0, 40));
}

#[test]
fn r25_a_position_beyond_the_end_is_out_of_range_and_hides_nothing() {
    for position in [121, -2] {
        let mut rig = Rig::new(Target, 0);
        rig.flip(Target, 100, 10);
        let sent = ask(&mut rig, 2, position);
        rehearse(&mut rig, &sent, 30);
        assert!(rig.errand().is_none() && rig.sent().is_empty());
        assert_eq!(reply(&mut rig).0, 1);
    }
}

#[test]
fn r25_what_one_side_refuses_hides_nothing() {
    // POLICY_VIOLATION of a compacted topic, TOPIC_AUTHORIZATION_FAILED.
    for (side, error) in [(Source, 44), (Target, 29)] {
        let mut rig = Rig::new(Target, 0);
        rig.flip(Target, 100, 10);
        for sent in ask(&mut rig, 2, 105) {
            match sent.api_key {
                key::LIST_OFFSETS => answer(&mut rig, &sent, 0, 30),
                _ => answer(&mut rig, &sent, if sent.node.side == side { error } else { 0 }, -1),
            }
        }
        assert!(rig.errand().is_none() && rig.sent().is_empty());
        assert_eq!(reply(&mut rig).0, error);
    }
}

#[test]
fn r25_the_floor_hides_the_records_of_a_side_that_is_down() {
    let mut rig = Rig::new(Target, 0);
    rig.flip(Target, 100, 10);
    let sent = ask(&mut rig, 2, 105);
    for sent in sent {
        match (sent.node.side, sent.api_key) {
            (Source, _) => rig.lose(&sent),
            (Target, key::LIST_OFFSETS) => answer(&mut rig, &sent, 0, 30),
            (Target, _) => answer(&mut rig, &sent, 0, 0),
        }
    }
    let errand = floor(&mut rig);
    rig.run_errand(errand, Ok(true));
    for sent in rig.sent() {
        match sent.node.side {
            Source => rig.lose(&sent),
            Target => answer(&mut rig, &sent, 0, 15),
        }
    }
    assert_eq!(reply(&mut rig).0, 5, "retriable");
    let timeline = Arc::clone(rig.snapshot.routes.topic(TOPIC).unwrap().timeline(0).unwrap());
    assert_eq!(timeline.floor(), VirtualOffset(105));
    // A fetch below the floor is out of range without anybody being asked.
    rig.ask(key::FETCH, 11, |body| {
        body.set("MaxWaitMs", 500);
        body.set("MinBytes", 1);
        body.set("MaxBytes", 1 << 20);
        body.set("SessionEpoch", -1);
        let mut topic = body.new_element("Topics");
        topic.set("Topic", TOPIC);
        let mut partition = topic.new_element("Partitions");
        partition.set("CurrentLeaderEpoch", -1);
        partition.set("FetchOffset", 104_i64);
        partition.set("PartitionMaxBytes", 1 << 20);
        topic.push("Partitions", partition);
        body.push("Topics", topic);
    });
    assert!(rig.sent().is_empty());
    let fetched = rig.reply().expect("answered");
    let partition = only(&fetched, "Responses");
    assert_eq!((partition.i16("ErrorCode"), partition.i64("LogStartOffset")), (1, 105));
}

#[test]
fn r25_deletions_are_held_while_a_flip_fences_the_topic() {
    let mut rig = Rig::new(Source, 0);
    let topic: Arc<str> = Arc::from(TOPIC);
    rig.shared.changes.close(&topic);
    assert!(ask(&mut rig, 2, 40).is_empty());
    assert!(rig.reply().is_none());
    rig.flip(Target, 100, 10);
    rig.shared.changes.open(TOPIC, Revision(rig.snapshot.revision.0));
    rig.handle(Event::Wake);
    assert_eq!(asked(&rig.sent()), [(Source, DELETE, 0), (Target, ENDS, -1), (Target, DELETE, 0)]);
    assert!(!rig.shared.changes.is_quiet(TOPIC), "the next flip waits for it");
    // Longer than the hold bound.
    let mut rig = Rig::new(Source, 0);
    rig.shared.changes.close(&topic);
    assert!(ask(&mut rig, 2, 40).is_empty());
    rig.pass(5_000);
    assert_eq!(reply(&mut rig).0, 6);
}

/// An unclean election has cut the old log off below its boundary, and that is known.
#[test]
fn r25_a_log_that_was_truncated_is_deleted_to_its_end() {
    let mut rig = Rig::new(Target, 0);
    rig.flip(Target, 100, 10);
    rig.shared.truncations.note(&Arc::from(TOPIC), 0, Source, Some(NativeOffset(95)));
    let sent = ask(&mut rig, 2, 105);
    rehearse(&mut rig, &sent, 30);
    let errand = floor(&mut rig);
    rig.run_errand(errand, Ok(true));
    let sent = rig.sent();
    let at_source = sent.iter().find(|sent| sent.node.side == Source).expect("the old log is deleted too");
    assert_eq!(only(&at_source.body, "Topics").i64("Offset"), 95);
}
