use super::*;
use crate::session::Event;
use crate::session::testing::{EPOCHS, PARTITIONS, Rig, Sent, Source, TOPIC, Target, batch, only};
use std::sync::Arc;

const V: i16 = 12;
const WAIT_MS: i32 = 500;

/// A sessionless fetch of (partition, position)s.
fn fetch(rig: &mut Rig, wait_ms: i32, wanted: &[(i32, i64)]) {
    rig.ask(key::FETCH, V, |body| fill(body, wait_ms, wanted));
}

fn fill(body: &mut Struct, wait_ms: i32, wanted: &[(i32, i64)]) {
    body.set("MaxWaitMs", wait_ms);
    body.set("MinBytes", 1);
    body.set("MaxBytes", 1_000_000);
    let mut topic = body.new_element("Topics");
    topic.set("Topic", TOPIC);
    for (index, position) in wanted {
        let mut partition = topic.new_element("Partitions");
        partition.set("Partition", *index);
        partition.set("FetchOffset", *position);
        partition.set("PartitionMaxBytes", 100_000);
        topic.push("Partitions", partition);
    }
    if !wanted.is_empty() {
        body.push("Topics", topic);
    }
}

/// What a broker says of one partition.
#[derive(Clone)]
struct Is {
    index: i32,
    error: i16,
    high_watermark: i64,
    log_start: i64,
    records: Vec<u8>,
    aborted: Vec<(i64, i64)>,
}

fn is(index: i32, high_watermark: i64, records: &[bytes::Bytes]) -> Is {
    Is { index, error: 0, high_watermark, log_start: 0, records: records.concat(), aborted: Vec::new() }
}

fn error(index: i32, error: i16) -> Is {
    Is { index, error, high_watermark: -1, log_start: -1, records: Vec::new(), aborted: Vec::new() }
}

fn answer(rig: &mut Rig, to: &Sent, partitions: &[Is]) {
    rig.answer(to, |body| {
        let mut topic = body.new_element("Responses");
        topic.set("Topic", TOPIC);
        for p in partitions {
            let mut out = topic.new_element("Partitions");
            out.set("PartitionIndex", p.index);
            out.set("ErrorCode", p.error);
            out.set("HighWatermark", p.high_watermark);
            out.set("LastStableOffset", p.high_watermark);
            out.set("LogStartOffset", p.log_start);
            out.set("Records", Some(bytes::Bytes::from(p.records.clone())));
            for (producer, first) in &p.aborted {
                let mut aborted = out.new_element("AbortedTransactions");
                aborted.set("ProducerId", *producer);
                aborted.set("FirstOffset", *first);
                out.push("AbortedTransactions", aborted);
            }
            topic.push("Partitions", out);
        }
        body.push("Responses", topic);
    });
}

/// The base offsets of the batches a partition's answer carries.
fn bases(partition: &Struct) -> Vec<i64> {
    let records = partition.bytes("Records");
    crate::producer::batch::Batches::new(records).map(|b| b.unwrap().base_offset).collect()
}

fn partitions(response: &Struct) -> Vec<&Struct> {
    response.structs("Responses").flat_map(|t| t.structs("Partitions")).collect()
}

#[test]
fn before_any_flip_a_fetch_is_one_long_poll_at_the_own_broker() {
    let mut rig = Rig::new(Source, 0);
    fetch(&mut rig, WAIT_MS, &[(0, 40)]);
    let sent = rig.one();
    assert_eq!(
        (sent.node, sent.body.i32("MaxWaitMs"), sent.body.i32("SessionEpoch")),
        (rig.node(), WAIT_MS, -1)
    );
    assert_eq!(only(&sent.body, "Topics").i64("FetchOffset"), 40);
    answer(&mut rig, &sent, &[is(0, 42, &[batch(40, 2, EPOCHS[0])])]);
    let reply = rig.reply().unwrap();
    let partition = only(&reply, "Responses");
    assert_eq!((bases(partition), partition.i64("HighWatermark")), (vec![40], 42));
}

#[test]
fn r18_a_stale_client_reads_the_new_owner_by_a_companion_in_virtual_offsets() {
    let mut rig = Rig::new(Source, 0);
    rig.flip(Target, 100, 10);
    fetch(&mut rig, WAIT_MS, &[(0, 103)]);
    let sent = rig.one();
    assert_eq!((sent.node.side, sent.node.broker), (Target, 0));
    let asked = only(&sent.body, "Topics");
    assert_eq!((asked.i64("FetchOffset"), sent.body.i32("MaxWaitMs")), (13, WAIT_MS));
    answer(&mut rig, &sent, &[is(0, 15, &[batch(13, 2, EPOCHS[1])])]);
    let reply = rig.reply().unwrap();
    let partition = only(&reply, "Responses");
    assert_eq!((bases(partition), partition.i64("HighWatermark")), (vec![103], 105));
    let epoch = i32::from_be_bytes(partition.bytes("Records")[12..16].try_into().unwrap());
    assert_eq!(epoch, rig.virtual_epoch(EPOCHS[1]));
}

#[test]
fn r22_an_older_epoch_is_no_reason_for_the_owner_to_refuse() {
    let mut rig = Rig::new(Target, 0);
    rig.flip(Target, 100, 10);
    let current = rig.virtual_epoch(EPOCHS[1]);
    for (sent_epoch, native) in [(EPOCHS[0], -1), (current, EPOCHS[1]), (-1, -1)] {
        rig.ask(key::FETCH, V, |body| {
            fill(body, WAIT_MS, &[(0, 103)]);
            let topic = body.structs_mut("Topics").next().unwrap();
            topic.structs_mut("Partitions").next().unwrap().set("CurrentLeaderEpoch", sent_epoch);
        });
        let sent = rig.one();
        assert_eq!(only(&sent.body, "Topics").i32("CurrentLeaderEpoch"), native);
        answer(&mut rig, &sent, &[is(0, 15, &[batch(13, 2, EPOCHS[1])])]);
        assert!(rig.reply().is_some());
    }
}

#[test]
fn r23_history_is_cut_at_the_era_end_and_goes_on_in_the_next_era() {
    let mut rig = Rig::new(Target, 0);
    rig.flip(Target, 100, 10);
    fetch(&mut rig, WAIT_MS, &[(0, 98)]);
    let sent = rig.one();
    assert_eq!((sent.node.side, sent.body.i32("MaxWaitMs")), (Source, 0));
    // The source's log has grown behind the boundary: that belongs to no era.
    answer(&mut rig, &sent, &[is(0, 105, &[batch(98, 2, 5), batch(100, 5, 5)])]);
    let reply = rig.reply().unwrap();
    assert_eq!(bases(only(&reply, "Responses")), [98]);

    fetch(&mut rig, WAIT_MS, &[(0, 100)]);
    let sent = rig.one();
    assert_eq!((sent.node.side, only(&sent.body, "Topics").i64("FetchOffset")), (Target, 10));
}

#[test]
fn r23_an_era_without_more_records_is_passed_within_the_same_fetch() {
    // Either nothing comes although all of the era is readable, or what comes belongs to a later era.
    for records in [vec![], vec![batch(100, 5, 5)]] {
        let mut rig = Rig::new(Target, 0);
        rig.flip(Target, 100, 10);
        fetch(&mut rig, WAIT_MS, &[(0, 98)]);
        let sent = rig.one();
        answer(&mut rig, &sent, &[is(0, 105, &records)]);
        let sent = rig.one();
        assert_eq!((sent.node.side, only(&sent.body, "Topics").i64("FetchOffset")), (Target, 10));
        answer(&mut rig, &sent, &[is(0, 12, &[batch(10, 2, 3)])]);
        assert_eq!(bases(only(&rig.reply().unwrap(), "Responses")), [100]);
    }
}

#[test]
fn r21_history_behind_a_lagging_high_watermark_is_waited_for_not_skipped() {
    let mut rig = Rig::new(Target, 0);
    rig.flip(Target, 100, 10);
    fetch(&mut rig, WAIT_MS, &[(0, 98)]);
    let sent = rig.one();
    answer(&mut rig, &sent, &[is(0, 98, &[])]);
    assert!(rig.sent().is_empty(), "the records up to 100 are still to come");
    rig.pass(60);
    let sent = rig.one();
    assert_eq!((sent.node.side, only(&sent.body, "Topics").i64("FetchOffset")), (Source, 98));
    answer(&mut rig, &sent, &[is(0, 100, &[batch(98, 2, 5)])]);
    assert_eq!(bases(only(&rig.reply().unwrap(), "Responses")), [98]);
}

#[test]
fn r21_what_was_cut_off_an_old_log_reads_as_a_hole() {
    // The source ended at 100; an election cut its log to 95.
    for position in [95, 97] {
        let mut rig = Rig::new(Target, 0);
        rig.flip(Target, 100, 10);
        let refusal = |rig: &mut Rig, sent: &Sent| match position {
            95 => answer(rig, sent, &[is(0, 95, &[])]),
            _ => answer(rig, sent, &[error(0, 1)]),
        };
        fetch(&mut rig, WAIT_MS, &[(0, position)]);
        let sent = rig.one();
        refusal(&mut rig, &sent);
        for start in rig.sent() {
            start_is(&mut rig, &start, 0);
        }
        for start in rig.sent() {
            start_is(&mut rig, &start, 0);
        }
        assert!(rig.sent().is_empty(), "not known to be cut off yet: it is waited for");
        rig.shared.truncations.note(&Arc::from(TOPIC), 0, Source, Some(NativeOffset(95)));
        rig.pass(60);
        let sent = rig.one();
        refusal(&mut rig, &sent);
        let mut sent = rig.sent();
        for start in sent.iter().filter(|s| s.api_key == key::LIST_OFFSETS) {
            start_is(&mut rig, start, 0);
        }
        sent.extend(rig.sent());
        let read = sent.into_iter().rfind(|s| s.api_key == key::FETCH);
        let read = read.unwrap_or_else(|| panic!("at {position}: the next era is not read"));
        assert_eq!((read.node.side, only(&read.body, "Topics").i64("FetchOffset")), (Target, 10));
    }
}

#[test]
fn r21_history_carries_the_owners_ends() {
    let mut rig = Rig::new(Target, 0);
    rig.flip(Target, 100, 10);
    fetch(&mut rig, WAIT_MS, &[(0, 100)]);
    let sent = rig.one();
    answer(&mut rig, &sent, &[is(0, 40, &[batch(10, 1, 3)])]);
    assert_eq!(only(&rig.reply().unwrap(), "Responses").i64("HighWatermark"), 130);
    fetch(&mut rig, WAIT_MS, &[(0, 50)]);
    let sent = rig.one();
    answer(&mut rig, &sent, &[is(0, 100, &[batch(50, 1, 5)])]);
    let reply = rig.reply().unwrap();
    let partition = only(&reply, "Responses");
    assert_eq!((partition.i64("HighWatermark"), partition.i64("LastStableOffset")), (130, 130));
}

#[test]
fn transactions_aborted_behind_the_era_are_not_shown_in_it() {
    let mut rig = Rig::new(Source, 0);
    rig.flip(Target, 100, 10);
    rig.flip(Source, 20, 100);
    fetch(&mut rig, WAIT_MS, &[(0, 90)]);
    let sent = rig.one();
    let mut found = is(0, 130, &[batch(90, 10, 5), batch(100, 30, 5)]);
    found.aborted = vec![(7, 95), (8, 120)];
    answer(&mut rig, &sent, &[found]);
    let reply = rig.reply().unwrap();
    let partition = only(&reply, "Responses");
    assert_eq!(bases(partition), [90]);
    let aborted =
        partition.structs("AbortedTransactions").map(|a| (a.i64("ProducerId"), a.i64("FirstOffset")));
    assert_eq!(aborted.collect::<Vec<_>>(), [(7, 95)]);
}

#[test]
fn r18_a_parked_poll_moves_to_the_new_owner_when_the_flip_is_published() {
    let mut rig = Rig::new(Source, 0);
    fetch(&mut rig, 30_000, &[(0, 100)]);
    let old = rig.one();
    rig.flip(Target, 100, 10);
    rig.handle(Event::Wake);
    let new = rig.one();
    assert_eq!((new.node.side, only(&new.body, "Topics").i64("FetchOffset")), (Target, 10));
    answer(&mut rig, &new, &[is(0, 11, &[batch(10, 1, 3)])]);
    assert_eq!(bases(only(&rig.reply().unwrap(), "Responses")), [100]);
    // What the old owner says now is dropped, and until then it is asked nothing more.
    fetch(&mut rig, 30_000, &[(0, 60), (0, 60)]);
    assert!(rig.sent().is_empty());
    answer(&mut rig, &old, &[is(0, 100, &[])]);
    assert_eq!(rig.one().node, rig.node());
}

#[test]
fn r18_a_poll_that_was_empty_once_moves_too() {
    let mut rig = Rig::new(Target, 0);
    rig.flip(Target, 100, 10);
    rig.flip(Source, 20, 100);
    // Partition 1 in history, partition 0 at the end: the fetch spans both sides.
    fetch(&mut rig, 30_000, &[(0, 110), (1, 105)]);
    let first = rig.sent();
    let owner = first.iter().find(|s| s.node.side == Source).unwrap().clone();
    answer(&mut rig, &owner, &[is(0, 100, &[])]);
    let again = rig.one();
    assert_eq!((again.node.side, again.body.i32("MaxWaitMs") > 0), (Source, true));
    rig.flip(Target, 100, 20);
    rig.handle(Event::Wake);
    let moved = rig.one();
    assert_eq!((moved.node, only(&moved.body, "Topics").i64("FetchOffset")), (rig.node(), 20));
}

#[test]
fn r15_polls_of_a_topic_that_is_about_to_flip_are_short() {
    let mut rig = Rig::new(Source, 0);
    rig.snapshot.preparing = Arc::new([Arc::from(TOPIC)].into());
    fetch(&mut rig, WAIT_MS, &[(0, 100)]);
    assert_eq!(rig.one().body.i32("MaxWaitMs"), 25);
}

#[test]
fn a_companion_that_is_no_leader_is_never_shown_to_the_client() {
    let mut rig = Rig::new(Source, 0);
    rig.flip(Target, 100, 10);
    fetch(&mut rig, WAIT_MS, &[(0, 100)]);
    for code in [6, 74, 75, 5, 3] {
        let sent = rig.one();
        answer(&mut rig, &sent, &[error(0, code)]);
        assert!(rig.reply().is_none() && rig.refreshed.contains(&Target));
        rig.pass(50);
    }
    let sent = rig.one();
    rig.lose(&sent);
    rig.pass(400);
    let reply = rig.reply().unwrap();
    let partition = only(&reply, "Responses");
    assert_eq!((partition.i16("ErrorCode"), bases(partition).len()), (0, 0));
}

/// A client whose epoch is from before the owner's last election would be refused for ever without learning of it.
#[test]
fn a_companion_is_asked_with_the_newest_epoch_that_the_proxy_knows() {
    let mut rig = Rig::new(Source, 0);
    rig.flip(Target, 100, 10);
    let known = rig.virtual_epoch(EPOCHS[Target.index()]);
    let mut topology = (*rig.snapshot.topologies[Target.index()]).clone();
    let mut info = (**topology.topic(TOPIC).unwrap()).clone();
    info.partitions[0].epoch += 4;
    topology.topics.insert(Arc::clone(&info.name), Arc::new(info));
    rig.snapshot.topologies[Target.index()] = Arc::new(topology);
    rig.ask(key::FETCH, V, |body| {
        fill(body, WAIT_MS, &[(0, 100)]);
        let partitions = body.structs_mut("Topics").flat_map(|t| t.structs_mut("Partitions"));
        partitions.for_each(|p| p.set("CurrentLeaderEpoch", known));
    });
    let sent = rig.one();
    assert_eq!(only(&sent.body, "Topics").i32("CurrentLeaderEpoch"), EPOCHS[Target.index()] + 4);
}

#[test]
fn a_broker_without_an_address_is_looked_for() {
    let mut rig = Rig::new(Source, 0);
    rig.topology(Source).brokers.remove(&0);
    fetch(&mut rig, WAIT_MS, &[(0, 0)]);
    assert!(rig.sent().is_empty() && rig.refreshed.contains(&Source));
}

#[test]
fn a_leader_that_is_to_tell_its_log_start_is_looked_for() {
    let mut rig = Rig::new(Source, 0);
    rig.flip(Target, 100, 10);
    rig.flip(Source, 30, 100);
    rig.topology(Target).brokers.remove(&0);
    fetch(&mut rig, WAIT_MS, &[(0, 0)]);
    let sent = rig.one();
    answer(&mut rig, &sent, &[error(0, code::OFFSET_OUT_OF_RANGE)]);
    let start = rig.one();
    assert_eq!((start.node.side, start.api_key), (Source, key::LIST_OFFSETS));
    rig.answer(&start, |body| {
        let mut topic = body.new_element("Topics");
        topic.set("Name", TOPIC);
        let mut partition = topic.new_element("Partitions");
        partition.set("Offset", 105_i64);
        topic.push("Partitions", partition);
        body.push("Topics", topic);
    });
    // All of the first era is gone: whether the second still has records is the target's to tell.
    assert!(rig.sent().is_empty() && rig.refreshed.contains(&Target));
}

#[test]
fn r21_history_that_was_asked_before_a_flip_carries_the_new_eras_start() {
    let mut rig = Rig::new(Target, 0);
    rig.flip(Target, 100, 10);
    fetch(&mut rig, WAIT_MS, &[(0, 50)]);
    let sent = rig.one();
    assert_eq!(sent.node.side, Source);
    rig.flip(Source, 30, 100);
    answer(&mut rig, &sent, &[is(0, 100, &[batch(50, 1, EPOCHS[0])])]);
    let reply = rig.reply().unwrap();
    assert_eq!(only(&reply, "Responses").i64("HighWatermark"), 120);
}

#[test]
fn r21_without_an_answer_the_end_is_not_below_the_start_of_the_era() {
    let mut rig = Rig::new(Source, 0);
    let seen = crate::session::Seen { high_watermark: 20, last_stable_offset: 20, epoch: -1 };
    rig.shared.seen.raise(&Arc::from(TOPIC), 0, seen);
    rig.flip(Target, 100, 10);
    fetch(&mut rig, WAIT_MS, &[(0, 100)]);
    let sent = rig.one();
    rig.lose(&sent);
    rig.pass(1_000);
    let reply = rig.reply().unwrap();
    let partition = only(&reply, "Responses");
    assert_eq!((partition.i64("HighWatermark"), partition.i64("LastStableOffset")), (100, 100));
}

#[test]
fn the_own_brokers_errors_pass() {
    let mut rig = Rig::new(Source, 0);
    fetch(&mut rig, WAIT_MS, &[(0, 100)]);
    let sent = rig.one();
    answer(&mut rig, &sent, &[error(0, 6)]);
    assert_eq!(only(&rig.reply().unwrap(), "Responses").i16("ErrorCode"), 6);
    fetch(&mut rig, WAIT_MS, &[(0, 100)]);
    let sent = rig.one();
    rig.lose(&sent);
    assert!(rig.closed.is_some());
}

#[test]
fn r18_one_sides_news_do_not_wait_for_the_other_side() {
    let mut rig = Rig::new(Source, 0);
    rig.flip(Target, 100, 10);
    fetch(&mut rig, WAIT_MS, &[(0, 100), (1, 50)]);
    let sent = rig.sent();
    assert_eq!(sent.len(), 2);
    assert!(sent.iter().all(|s| s.body.i32("MaxBytes") == 500_000));
    let owner = sent.iter().find(|s| s.node.side == Target).unwrap();
    answer(&mut rig, owner, &[is(0, 12, &[batch(10, 2, 3)])]);
    assert!(rig.reply().is_none());
    rig.pass(100);
    let reply = rig.reply().unwrap();
    let found: Vec<_> = partitions(&reply).iter().map(|p| (p.i32("PartitionIndex"), bases(p))).collect();
    assert_eq!(found, [(0, vec![100]), (1, vec![])]);
}

#[test]
fn r18_an_upstream_that_is_always_late_is_waited_for_longer_and_longer() {
    let mut rig = Rig::new(Source, 0);
    rig.flip(Target, 100, 10);
    let mut delivered = false;
    for position in 100..110 {
        fetch(&mut rig, WAIT_MS, &[(0, position), (1, 50)]);
        let sent = rig.sent();
        let (Some(owner), slow) = (
            sent.iter().find(|s| s.node.side == Target).cloned(),
            sent.iter().find(|s| s.node.side == Source).cloned(),
        ) else {
            panic!("the owner is free")
        };
        answer(&mut rig, &owner, &[is(0, 1000, &[batch(position - 90, 1, 3)])]);
        rig.pass(700);
        // The slow one always takes 700 ms.
        answer(&mut rig, &slow.unwrap(), &[is(1, 100, &[batch(50, 10, 5)])]);
        let reply = rig.reply().unwrap();
        delivered |= partitions(&reply).iter().any(|p| bases(p) == [50]);
    }
    assert!(delivered);
}

#[test]
fn a_slow_own_broker_is_waited_for() {
    let mut rig = Rig::new(Source, 0);
    fetch(&mut rig, WAIT_MS, &[(0, 40)]);
    let sent = rig.one();
    rig.pass(5_000);
    assert!(rig.reply().is_none());
    answer(&mut rig, &sent, &[is(0, 42, &[batch(40, 2, 5)])]);
    assert_eq!(bases(only(&rig.reply().unwrap(), "Responses")), [40]);
}

#[test]
fn a_client_that_does_not_wait_gets_the_first_answer() {
    let mut rig = Rig::new(Source, 0);
    rig.ask(key::FETCH, V, |body| {
        fill(body, WAIT_MS, &[(0, 40)]);
        body.set("MinBytes", 0);
    });
    let sent = rig.one();
    answer(&mut rig, &sent, &[is(0, 40, &[])]);
    assert!(rig.reply().is_some() && rig.sent().is_empty());
}

#[test]
fn an_early_empty_answer_is_not_asked_again_at_once() {
    let mut rig = Rig::new(Source, 0);
    fetch(&mut rig, WAIT_MS, &[(0, 40)]);
    let sent = rig.one();
    answer(&mut rig, &sent, &[is(0, 40, &[])]);
    assert!(rig.sent().is_empty());
    rig.pass(50);
    assert!(rig.one().body.i32("MaxWaitMs") <= WAIT_MS - 10);
}

#[test]
fn r20_no_preferred_replica_in_either_direction() {
    let mut rig = Rig::new(Source, 0);
    rig.ask(key::FETCH, V, |body| {
        fill(body, WAIT_MS, &[(0, 40)]);
        body.set("RackId", "a");
    });
    let sent = rig.one();
    assert_eq!(sent.body.str("RackId"), "");
}

#[test]
fn r23_only_a_position_below_the_virtual_log_start_is_out_of_range() {
    // The source has dropped everything up to 120 of its log: its era 0 (0..100) is gone.
    let mut rig = Rig::new(Target, 0);
    rig.flip(Target, 100, 10);
    fetch(&mut rig, WAIT_MS, &[(0, 50)]);
    let sent = rig.one();
    answer(&mut rig, &sent, &[error(0, 1)]);
    let start = rig.one();
    assert_eq!((start.api_key, start.node.side), (key::LIST_OFFSETS, Source));
    start_is(&mut rig, &start, 120);
    let start = rig.one();
    assert_eq!((start.api_key, start.node.side), (key::LIST_OFFSETS, Target));
    start_is(&mut rig, &start, 0);
    let reply = rig.reply().unwrap();
    let partition = only(&reply, "Responses");
    assert_eq!((partition.i16("ErrorCode"), partition.i64("LogStartOffset")), (1, 100));
}

#[test]
fn r23_a_hole_between_eras_reads_as_the_next_record() {
    // The target has dropped its era 1 (virtual 100..110), but the source's era 0 is all there.
    let mut rig = Rig::new(Source, 0);
    rig.flip(Target, 100, 10);
    rig.flip(Source, 20, 100);
    fetch(&mut rig, WAIT_MS, &[(0, 105)]);
    let sent = rig.one();
    assert_eq!(sent.node.side, Target);
    answer(&mut rig, &sent, &[error(0, 1)]);
    let start = rig.one();
    start_is(&mut rig, &start, 20);
    let start = rig.one();
    assert_eq!((start.api_key, start.node.side), (key::LIST_OFFSETS, Source));
    start_is(&mut rig, &start, 0);
    let sent = rig.one();
    assert_eq!((sent.node.side, only(&sent.body, "Topics").i64("FetchOffset")), (Source, 100));
    answer(&mut rig, &sent, &[is(0, 101, &[batch(100, 1, 5)])]);
    assert_eq!(bases(only(&rig.reply().unwrap(), "Responses")), [110]);
}

#[test]
fn a_position_beyond_the_owners_end_is_the_owners_to_judge() {
    let mut rig = Rig::new(Target, 0);
    rig.flip(Target, 100, 10);
    rig.shared.log_starts.note(&Arc::from(TOPIC), 0, Source, NativeOffset(0));
    fetch(&mut rig, WAIT_MS, &[(0, 900)]);
    let sent = rig.one();
    answer(&mut rig, &sent, &[error(0, 1)]);
    let start = rig.one();
    start_is(&mut rig, &start, 0);
    assert_eq!(only(&rig.reply().unwrap(), "Responses").i16("ErrorCode"), 1);
}

fn start_is(rig: &mut Rig, to: &Sent, start: i64) {
    let index = only(&to.body, "Topics").i32("PartitionIndex");
    rig.answer(to, |body| {
        let mut topic = body.new_element("Topics");
        topic.set("Name", TOPIC);
        let mut partition = topic.new_element("Partitions");
        partition.set("PartitionIndex", index);
        partition.set("Offset", start);
        topic.push("Partitions", partition);
        body.push("Topics", topic);
    });
}

/// A fetch within a session; returns what was answered: (session id, error, partitions).
fn in_session(rig: &mut Rig, id: i32, epoch: i32, wanted: &[(i32, i64)], forgotten: &[i32]) -> Option<Sent> {
    rig.ask(key::FETCH, V, |body| {
        fill(body, WAIT_MS, wanted);
        body.set("SessionId", id);
        body.set("SessionEpoch", epoch);
        if !forgotten.is_empty() {
            let mut topic = body.new_element("ForgottenTopicsData");
            topic.set("Topic", TOPIC);
            topic.set("Partitions", forgotten.to_vec());
            body.push("ForgottenTopicsData", topic);
        }
    });
    rig.sent().pop()
}

fn indexes(response: &Struct) -> Vec<i32> {
    partitions(response).iter().map(|p| p.i32("PartitionIndex")).collect()
}

fn asked(sent: &Sent) -> Vec<i32> {
    sent.body.structs("Topics").flat_map(|t| t.structs("Partitions")).map(|p| p.i32("Partition")).collect()
}

#[test]
fn r17_an_incremental_answer_tells_only_news() {
    let mut rig = Rig::new(Source, 0);
    let sent = in_session(&mut rig, 0, 0, &[(0, 40), (1, 50)], &[]).unwrap();
    answer(&mut rig, &sent, &[is(0, 41, &[batch(40, 1, 5)]), is(1, 50, &[])]);
    let reply = rig.reply().unwrap();
    let id = reply.i32("SessionId");
    assert!(id > 0);
    assert_eq!(indexes(&reply), [0, 1]);

    // Both are still members; only what is new is told.
    let sent = in_session(&mut rig, id, 1, &[(0, 41)], &[]).unwrap();
    let mut members = asked(&sent);
    members.sort_unstable();
    assert_eq!(members, [0, 1]);
    answer(&mut rig, &sent, &[is(0, 41, &[]), is(1, 51, &[batch(50, 1, 5)])]);
    let reply = rig.reply().unwrap();
    assert_eq!((reply.i32("SessionId"), indexes(&reply)), (id, vec![1]));

    // A high watermark that has moved is news, though nothing to be woken for.
    let sent = in_session(&mut rig, id, 2, &[(1, 51)], &[]).unwrap();
    rig.pass(i64::from(WAIT_MS));
    answer(&mut rig, &sent, &[is(0, 44, &[]), is(1, 51, &[])]);
    assert_eq!(indexes(&rig.reply().unwrap()), [0]);

    // What is forgotten is asked no more.
    let sent = in_session(&mut rig, id, 3, &[], &[0]).unwrap();
    assert_eq!(asked(&sent), [1]);
}

#[test]
fn r17_wrong_sessions_and_epochs_are_refused() {
    let mut rig = Rig::new(Source, 0);
    assert!(in_session(&mut rig, 1234, 1, &[], &[]).is_none());
    assert_eq!(rig.reply().unwrap().i16("ErrorCode"), 70);
    let sent = in_session(&mut rig, 0, 0, &[(0, 40)], &[]).unwrap();
    answer(&mut rig, &sent, &[is(0, 41, &[batch(40, 1, 5)])]);
    let id = rig.reply().unwrap().i32("SessionId");
    assert!(in_session(&mut rig, id, 2, &[], &[]).is_none());
    assert_eq!(rig.reply().unwrap().i16("ErrorCode"), 71);
    // The session itself is none the worse for it.
    assert!(in_session(&mut rig, id, 1, &[(0, 41)], &[]).is_some());
}

#[test]
fn r17_a_sessions_partitions_take_turns() {
    let mut rig = Rig::new(Source, 0);
    let sent = in_session(&mut rig, 0, 0, &[(0, 40), (1, 50)], &[]).unwrap();
    assert_eq!(asked(&sent), [0, 1]);
    answer(&mut rig, &sent, &[is(0, 90, &[batch(40, 1, 5)]), is(1, 90, &[])]);
    let id = rig.reply().unwrap().i32("SessionId");
    let sent = in_session(&mut rig, id, 1, &[(0, 41)], &[]).unwrap();
    assert_eq!(asked(&sent), [1, 0], "what has got records stands behind what has not");
}

#[test]
fn r17_topics_are_known_by_their_virtual_id() {
    let mut rig = Rig::new(Source, 0);
    rig.flip(Target, 100, 10);
    let id = rig.snapshot.routes.topic(TOPIC).unwrap().virtual_id;
    rig.ask(key::FETCH, 13, |body| {
        fill(body, WAIT_MS, &[(0, 100)]);
        body.structs_mut("Topics").next().unwrap().set("TopicId", id);
    });
    let sent = rig.one();
    let native = rig.snapshot.routes.topic(TOPIC).unwrap().native_id(Target);
    assert_eq!(sent.body.structs("Topics").next().unwrap().uuid("TopicId"), native.0);
    rig.answer(&sent, |body| {
        let mut topic = body.new_element("Responses");
        topic.set("TopicId", native);
        let mut out = topic.new_element("Partitions");
        out.set("HighWatermark", 12_i64);
        out.set("Records", Some(batch(10, 2, 3)));
        topic.push("Partitions", out);
        body.push("Responses", topic);
    });
    let reply = rig.reply().unwrap();
    assert_eq!(reply.structs("Responses").next().unwrap().uuid("TopicId"), id.0);
    assert_eq!(bases(only(&reply, "Responses")), [100]);
}

#[test]
fn every_version_goes_through() {
    for version in 4..=18 {
        let mut rig = Rig::new(Source, 0);
        rig.flip(Target, 100, 10);
        let (id, native) = {
            let route = rig.snapshot.routes.topic(TOPIC).unwrap();
            (route.virtual_id, route.native_id(Target))
        };
        rig.ask(key::FETCH, version, |body| {
            fill(body, WAIT_MS, &[(PARTITIONS - 1, 100)]);
            body.structs_mut("Topics").next().unwrap().set("TopicId", id);
        });
        let sent = rig.one();
        rig.answer(&sent, |body| {
            let mut topic = body.new_element("Responses");
            topic.set("Topic", TOPIC);
            topic.set("TopicId", native);
            let mut out = topic.new_element("Partitions");
            out.set("PartitionIndex", PARTITIONS - 1);
            out.set("HighWatermark", 12_i64);
            out.set("Records", Some(batch(10, 2, 3)));
            topic.push("Partitions", out);
            body.push("Responses", topic);
        });
        assert_eq!(bases(only(&rig.reply().unwrap(), "Responses")), [100], "version {version}");
    }
}

/// A franz-go client of a node, at a cutover's boundary (virtual 100, target 40), `age_ms` after the SEAL.
fn franz(side: ClusterSide, broker: i32, age_ms: i64) -> Rig {
    let mut rig = Rig::new(side, broker);
    rig.ask(key::API_VERSIONS, 3, |body| {
        body.set("ClientSoftwareName", "kgo");
        body.set("ClientSoftwareVersion", "1.22.2");
    });
    rig.reply().unwrap();
    rig.flip(Target, 100, 40);
    rig.now_ms = age_ms;
    rig
}

fn preferred(reply: &Struct) -> i32 {
    only(reply, "Responses").i32("PreferredReadReplica")
}

#[test]
fn r20_a_consumer_is_sent_on_once_and_served_when_it_comes_back() {
    let mut rig = franz(Source, 0, 20_000);
    fetch(&mut rig, WAIT_MS, &[(0, 120)]);
    let reply = rig.reply().unwrap();
    assert!(only(&reply, "Responses").bytes("Records").is_empty());
    assert_eq!(preferred(&reply), crate::ids::to_virtual_node(Target, 0));
    assert!(rig.sent().is_empty());
    fetch(&mut rig, WAIT_MS, &[(0, 120)]);
    let sent = rig.one();
    assert_eq!(sent.node.side, Target);
    answer(&mut rig, &sent, &[is(0, 61, &[batch(60, 1, 3)])]);
    let reply = rig.reply().unwrap();
    assert_eq!((bases(only(&reply, "Responses")), preferred(&reply)), (vec![120], -1));
    // The next era is another matter.
    rig.flip(Source, 61, 100);
    rig.flip(Target, 100, 61);
    fetch(&mut rig, WAIT_MS, &[(0, 121)]);
    assert!(preferred(&rig.reply().unwrap()) >= 0);
}

#[test]
fn r20_nobody_is_sent_on_right_after_a_flip_or_from_history() {
    for (age_ms, position) in [(100, 120), (20_000, 99)] {
        let mut rig = franz(Source, 0, age_ms);
        fetch(&mut rig, WAIT_MS, &[(0, position)]);
        assert!(rig.reply().is_none());
        assert_eq!(rig.sent().len(), 1);
    }
}

#[test]
fn r20_unknown_clients_are_not_sent_on() {
    let mut rig = Rig::new(Source, 0);
    rig.flip(Target, 100, 40);
    rig.now_ms = 100_000;
    fetch(&mut rig, WAIT_MS, &[(0, 120)]);
    assert_eq!(rig.one().node.side, Target);
    assert!(rig.reply().is_none());
}

#[test]
fn r20_a_new_leader_is_named_instead_of_an_error() {
    let mut rig = franz(Target, 0, 20_000);
    fetch(&mut rig, WAIT_MS, &[(0, 120)]);
    let sent = rig.one();
    // The leader changes while the fetch is under way.
    rig.partition(Target).leader = 1;
    answer(&mut rig, &sent, &[error(0, code::NOT_LEADER_OR_FOLLOWER)]);
    let reply = rig.reply().unwrap();
    assert_eq!(only(&reply, "Responses").i16("ErrorCode"), 0);
    assert_eq!(preferred(&reply), crate::ids::to_virtual_node(Target, 1));
}

#[test]
fn r20_a_node_that_does_not_lead_a_moved_topic_sends_on_or_serves() {
    let mut rig = franz(Target, 1, 20_000);
    fetch(&mut rig, WAIT_MS, &[(0, 120)]);
    assert_eq!(preferred(&rig.reply().unwrap()), crate::ids::to_virtual_node(Target, 0));
    fetch(&mut rig, WAIT_MS, &[(0, 120)]);
    assert_eq!(rig.one().node, crate::ids::VirtualNode::new(Target, 0));
}
