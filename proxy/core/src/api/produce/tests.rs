use super::*;
use crate::ids::VirtualNode;
use crate::producer::carry::DescribedProducer;
use crate::producer::gate::FAILED_WINDOW_MS;
use crate::producer::gate::{PathId, SessionId};
use crate::session::testing::{
    PARTITIONS, Rig, Sent, Source, TOPIC, Target, answer_produce as answer, epoch_end, only,
    produce_reply as reply,
};
use crate::session::{Event, SharedGate, lock};

const PID: i64 = 1 << 62;
const VERSION: i16 = 10;
/// Where the boundary of [`Rig::flip`] lies in these tests: source end 100, target start 40.
const ENDS: (i64, i64) = (100, 40);

/// A v2 batch of one record with a right checksum.
fn records(pid: i64, sequence: i32) -> Bytes {
    let mut body = 0_i16.to_be_bytes().to_vec();
    body.extend(0_i32.to_be_bytes());
    body.extend([0; 16]);
    body.extend(pid.to_be_bytes());
    body.extend(if pid < 0 { -1_i16 } else { 0 }.to_be_bytes());
    body.extend(sequence.to_be_bytes());
    body.extend(1_i32.to_be_bytes());
    body.extend(b"payload");
    let mut out = 0_i64.to_be_bytes().to_vec();
    out.extend(i32::try_from(body.len() + 9).unwrap().to_be_bytes());
    out.extend((-1_i32).to_be_bytes());
    out.push(2);
    out.extend(crate::producer::crc::checksum(&body).to_be_bytes());
    out.extend(body);
    Bytes::from(out)
}

fn produce(rig: &mut Rig, acks: i16, pid: i64, sequence: i32) {
    rig.ask(key::PRODUCE, VERSION, |body| {
        let mut topic = body.new_element("TopicData");
        let mut partition = topic.new_element("PartitionData");
        partition.set("Index", 0_i32);
        partition.set("Records", Value::Bytes(Some(records(pid, sequence))));
        topic.set("Name", TOPIC);
        topic.set("PartitionData", Value::Array(Some(vec![partition.into()])));
        body.set("Acks", acks);
        body.set("TimeoutMs", 1_000_i32);
        body.set("TopicData", Value::Array(Some(vec![topic.into()])));
    });
}

/// The client sends a batch, its broker appends it; the client's answer.
fn append(rig: &mut Rig, sequence: i32, base: i64) -> Option<(i16, i64)> {
    produce(rig, -1, PID, sequence);
    let sent = rig.one();
    answer(rig, &sent, 0, base);
    reply(rig)
}

/// Batch 0 is appended at 40; a fence has held batch 1 when it is sent.
fn hold_the_second(rig: &mut Rig) {
    append(rig, 0, 40);
    lock(&gate_of(rig)).fence();
    produce(rig, -1, PID, 1);
    lock(&gate_of(rig)).release_unchanged();
    rig.handle(Event::Wake);
}

/// Batches 1 and 2 are sent again in their order, and appended at 41 and 42; the client's answers.
fn repeated(rig: &mut Rig) -> [Option<(i16, i64)>; 2] {
    assert!(rig.reply().is_none());
    rig.pass(60);
    let again = rig.sent();
    assert_eq!(again.iter().map(batch_of).collect::<Vec<_>>(), [(PID, 1), (PID, 2)]);
    answer(rig, &again[0], 0, 41);
    answer(rig, &again[1], 0, 42);
    [reply(rig), reply(rig)]
}

/// The producer id and first sequence in a request.
fn batch_of(sent: &Sent) -> (i64, i32) {
    let topic = sent.body.structs("TopicData").next().unwrap();
    let partition = topic.structs("PartitionData").next().unwrap();
    let header = batch::peek(partition.opt_bytes("Records").unwrap()).unwrap();
    (header.producer_id, header.base_sequence)
}

/// A client of the source's node after a cutover: its produce goes through a companion.
fn stale() -> Rig {
    let mut rig = Rig::new(Source, 0);
    flip(&mut rig, Target, ENDS.0, ENDS.1);
    rig
}

fn gate_of(rig: &Rig) -> SharedGate {
    rig.shared.gates.get(&Arc::from(TOPIC), 0)
}

fn flip(rig: &mut Rig, to: ClusterSide, old_end: i64, new_start: i64) {
    rig.flip(to, old_end, new_start);
    let era = rig.snapshot.routes.topic(TOPIC).unwrap().timeline(0).unwrap().current().index;
    for partition in 0..PARTITIONS {
        let gate = rig.shared.gates.get(&Arc::from(TOPIC), partition);
        let mut gate = lock(&gate);
        let carry = gate.carry().clone();
        gate.fence();
        gate.release(0, era, carry);
    }
}

#[test]
fn a_stale_producer_is_served_by_the_owner_in_virtual_offsets() {
    let mut rig = stale();
    produce(&mut rig, -1, PID, 0);
    let sent = rig.one();
    assert_eq!(sent.node.side, Target);
    answer(&mut rig, &sent, 0, 40);
    assert_eq!(reply(&mut rig), Some((0, 100)));
}

#[test]
fn r02_sequenced_batches_of_a_lost_companion_are_sent_again_in_order() {
    let mut rig = stale();
    produce(&mut rig, -1, PID, 0);
    let first = rig.one();
    answer(&mut rig, &first, 0, 40);
    reply(&mut rig);
    produce(&mut rig, -1, PID, 1);
    produce(&mut rig, -1, PID, 2);
    let sent = rig.sent();
    assert_eq!(sent.iter().map(batch_of).collect::<Vec<_>>(), [(PID, 1), (PID, 2)]);
    rig.connect(&first);
    rig.lose(&first);
    rig.pass(100);
    let again = rig.sent();
    assert_eq!(batch_of(&again[0]), (PID, 1), "{again:#?}");
    answer(&mut rig, &again[0], 0, 41);
    assert_eq!(reply(&mut rig), Some((0, 101)));
    rig.pass(100);
    let rest: Vec<_> = again.into_iter().skip(1).chain(rig.sent()).collect();
    assert_eq!(rest.iter().map(batch_of).collect::<Vec<_>>(), [(PID, 2)]);
}

#[test]
fn r02_a_batch_without_sequence_is_never_sent_twice() {
    let mut rig = stale();
    produce(&mut rig, -1, -1, -1);
    let sent = rig.one();
    rig.connect(&sent);
    rig.lose(&sent);
    rig.pass(1_000);
    assert!(rig.sent().is_empty());
}

/// Answered with an error only, it would be overtaken by what the client has sent behind it.
#[test]
fn r02_a_batch_without_sequence_that_is_lost_ends_the_connection() {
    let mut rig = stale();
    produce(&mut rig, -1, -1, -1);
    let sent = rig.one();
    rig.connect(&sent);
    rig.lose(&sent);
    assert_eq!(rig.closed, Some(CloseReason::UpstreamLost));
    assert_eq!(reply(&mut rig), Some((code::REQUEST_TIMED_OUT, -1)));
}

/// What other brokers have appended would be written twice if the client did not hear of it.
#[test]
fn r02_a_connection_that_ends_for_a_lost_batch_is_told_what_became_of_the_others() {
    let mut rig = stale();
    produce_to(&mut rig, VERSION, &[(1, -1, -1)]);
    let other = rig.one();
    produce(&mut rig, -1, -1, -1);
    let lost = rig.one();
    produce_to(&mut rig, VERSION, &[(1, -1, -1)]);
    let behind = rig.one();
    rig.connect(&lost);
    rig.lose(&lost);
    assert!(rig.closed.is_none());
    produce(&mut rig, -1, -1, -1);
    assert!(rig.sent().is_empty(), "nothing more is taken");
    answer(&mut rig, &other, 0, 40);
    assert!(rig.closed.is_none());
    answer(&mut rig, &behind, 0, 41);
    assert_eq!(rig.closed, Some(CloseReason::UpstreamLost));
    let told = [reply(&mut rig), reply(&mut rig), reply(&mut rig), reply(&mut rig)];
    assert_eq!(told, [Some((0, 100)), Some((code::REQUEST_TIMED_OUT, -1)), Some((0, 101)), None]);
}

#[test]
fn r02_a_connection_that_ends_waits_for_answers_no_longer_than_the_hold_bound() {
    let mut rig = stale();
    produce_to(&mut rig, VERSION, &[(1, -1, -1)]);
    produce(&mut rig, -1, -1, -1);
    let lost = rig.sent().remove(1);
    rig.connect(&lost);
    rig.lose(&lost);
    rig.pass(4_900);
    assert!(rig.closed.is_none());
    rig.pass(200);
    assert_eq!(rig.closed, Some(CloseReason::UpstreamLost));
}

/// As its client would, whose own attempts to connect are refused meanwhile.
#[test]
fn r08_a_batch_without_sequence_waits_for_a_leader_beyond_the_hold_bound() {
    for acks in [0, 1] {
        let mut rig = stale();
        produce(&mut rig, acks, -1, -1);
        let mut waited = 0;
        while waited < 20_000 {
            let sent = rig.sent();
            // Nobody is there.
            rig.lose(&sent[0]);
            rig.pass(RECONNECT_MS);
            waited += RECONNECT_MS;
        }
        let sent = rig.sent();
        rig.connect(&sent[0]);
        if acks == 1 {
            answer(&mut rig, &sent[0], 0, 40);
            assert_eq!(reply(&mut rig), Some((0, 100)));
        }
        assert!(rig.closed.is_none(), "acks={acks}");
    }
}

/// It has sent them, as far as it knows.
#[test]
fn r07_silent_produce_that_waits_is_sent_although_its_client_has_gone() {
    let mut rig = stale();
    lock(&gate_of(&rig)).fence();
    produce(&mut rig, 0, -1, -1);
    rig.handle(Event::ClientGone);
    lock(&gate_of(&rig)).release_unchanged();
    let later =
        Submission { node: rig.node(), client: rig.client_key(0), ..of_another_session(&rig, 1, None) };
    let admission = lock(&gate_of(&rig)).admit(rig.now_ms, &later);
    assert!(matches!(admission, Admission::Hold { reason: HoldReason::Kept, .. }), "{admission:?}");
    rig.handle(Event::Wake);
    assert_eq!(batch_of(&rig.one()), (-1, -1));
}

#[test]
fn r09_a_batch_without_sequence_that_is_held_too_long_ends_the_connection() {
    let mut rig = stale();
    lock(&gate_of(&rig)).fence();
    produce(&mut rig, -1, -1, -1);
    rig.pass(5_100);
    assert_eq!(rig.closed, Some(CloseReason::UpstreamLost));
    assert_eq!(reply(&mut rig), Some((code::NOT_LEADER_OR_FOLLOWER, -1)));
}

#[test]
fn r04_a_batch_the_owner_has_forgotten_is_a_duplicate_without_offset() {
    let mut rig = stale();
    let row = DescribedProducer { pid: PID, epoch: 0, last_sequence: 9, last_timestamp_ms: rig.now_ms };
    lock(&gate_of(&rig)).seed(&[row], 0, rig.now_ms);
    produce(&mut rig, -1, PID, 9);
    let sent = rig.one();
    answer(&mut rig, &sent, 0, 49);
    assert_eq!(reply(&mut rig), Some((0, 109)));
    produce(&mut rig, -1, PID, 2);
    let sent = rig.one();
    answer(&mut rig, &sent, code::OUT_OF_ORDER_SEQUENCE_NUMBER, -1);
    assert_eq!(reply(&mut rig), Some((0, -1)));
}

#[test]
fn r06_the_second_visit_to_a_cluster_has_producer_ids_of_its_own() {
    let mut rig = stale();
    flip(&mut rig, Source, 60, 100);
    produce(&mut rig, -1, PID, 0);
    let sent = rig.one();
    assert_eq!(batch_of(&sent), (pid::with_visit(PID, 1), 0));
    answer(&mut rig, &sent, 0, 100);
    assert_eq!(reply(&mut rig), Some((0, 120)));
}

#[test]
fn r07_silent_produce_is_done_when_the_request_behind_it_is_answered() {
    let mut rig = stale();
    produce(&mut rig, 0, -1, -1);
    let sent = rig.sent();
    assert_eq!(sent.iter().map(|s| s.api_key).collect::<Vec<_>>(), [key::PRODUCE, key::API_VERSIONS]);
    let gate = gate_of(&rig);
    assert_eq!(lock(&gate).in_flight(), 1);
    rig.answer(&sent[1], |_| {});
    assert_eq!(lock(&gate).in_flight(), 0);
    assert!(rig.reply().is_none());
}

#[test]
fn r07_a_client_without_acknowledgements_loses_its_connection_with_its_broker_but_not_with_a_companion() {
    let (mut own, mut companion) = (Rig::new(Source, 0), stale());
    for rig in [&mut own, &mut companion] {
        produce(rig, 0, -1, -1);
        let sent = rig.sent();
        rig.connect(&sent[0]);
        rig.lose(&sent[0]);
    }
    assert!(own.closed.is_some(), "it writes on to a broker that does not lead");
    assert!(companion.closed.is_none());
}

#[test]
fn r07_silent_produce_waits_for_a_leader_although_its_client_is_connected_to_the_owner() {
    let mut rig = Rig::new(Source, 0);
    rig.partition(Source).leader = -1;
    produce(&mut rig, 0, -1, -1);
    assert!(rig.sent().is_empty());
    rig.partition(Source).leader = 1;
    rig.pass(RETRY_MS);
    assert_eq!(rig.one().node, VirtualNode::new(Source, 1));
}

/// Its client waits for the answer, and looks for no other leader before.
#[test]
fn r08_what_a_fence_has_held_is_repeated_at_the_leader_and_not_at_the_clients_own_broker() {
    for pid in [-1, PID] {
        let mut rig = Rig::new(Source, 0);
        lock(&gate_of(&rig)).fence();
        produce(&mut rig, 1, pid, 0);
        lock(&gate_of(&rig)).release_unchanged();
        rig.handle(Event::Wake);
        let own = rig.one();
        assert_eq!(own.node, VirtualNode::new(Source, 0));
        rig.partition(Source).leader = 1;
        answer(&mut rig, &own, code::NOT_LEADER_OR_FOLLOWER, -1);
        rig.pass(RETRY_MS);
        assert_eq!(rig.one().node, VirtualNode::new(Source, 1));
    }
}

/// It listens before it is listed again, and says itself that it does not lead: held here, produce would be refused only when
/// its leader is known.
#[test]
fn r08_who_is_connected_to_a_broker_that_is_not_listed_asks_it() {
    let mut rig = Rig::new(Source, 0);
    let known = rig.topology(Source).clone();
    rig.topology(Source).brokers.remove(&0);
    produce(&mut rig, 1, -1, -1);
    assert!(rig.sent().is_empty(), "nobody knows where it is");
    rig.topology(Source).keep_addresses(&known);
    rig.pass(RETRY_MS);
    let sent = rig.one();
    answer(&mut rig, &sent, code::NOT_LEADER_OR_FOLLOWER, -1);
    assert_eq!(reply(&mut rig), Some((code::NOT_LEADER_OR_FOLLOWER, -1)));
}

/// A broker that does not lead hangs up on acks=0, and all that has gathered meanwhile would be lost.
#[test]
fn r07_silent_produce_that_has_waited_is_told_who_does_not_lead() {
    let mut rig = stale();
    produce(&mut rig, 0, -1, -1);
    let sent = rig.sent();
    assert_eq!(sent[0].body.i16("Acks"), 0);
    rig.lose(&sent[0]);
    rig.pass(RECONNECT_MS);
    let again = rig.one();
    assert_eq!(again.body.i16("Acks"), 1);
    rig.connect(&again);
    answer(&mut rig, &again, code::NOT_LEADER_OR_FOLLOWER, -1);
    rig.pass(RETRY_MS);
    let third = rig.one();
    answer(&mut rig, &third, 0, 40);
    assert_eq!(lock(&gate_of(&rig)).in_flight(), 0);
    assert!(rig.reply().is_none() && rig.closed.is_none());
}

#[test]
fn r07_silent_produce_goes_to_the_leader_whomever_its_client_is_connected_to() {
    for (acks, broker) in [(0, 0), (1, 1), (-1, 1)] {
        let mut rig = Rig::new(Source, 1);
        produce(&mut rig, acks, -1, -1);
        assert_eq!(rig.sent()[0].node, VirtualNode::new(Source, broker), "acks={acks}");
    }
}

#[test]
fn r08_an_answer_that_proves_that_nothing_was_appended_is_not_the_clients() {
    let mut rig = stale();
    produce(&mut rig, -1, PID, 0);
    let sent = rig.one();
    answer(&mut rig, &sent, code::NOT_LEADER_OR_FOLLOWER, -1);
    assert!(rig.reply().is_none());
    assert!(rig.refreshed.contains(&Target));
    rig.pass(100);
    let again = rig.one();
    answer(&mut rig, &again, 0, 40);
    assert_eq!(reply(&mut rig), Some((0, 100)));
}

#[test]
fn r08_a_timeout_is_the_clients() {
    let mut rig = stale();
    produce(&mut rig, -1, PID, 0);
    let sent = rig.one();
    answer(&mut rig, &sent, code::REQUEST_TIMED_OUT, -1);
    assert_eq!(reply(&mut rig), Some((code::REQUEST_TIMED_OUT, -1)));
}

#[test]
fn r09_after_the_hold_bound_a_held_batch_is_answered() {
    let mut rig = stale();
    lock(&gate_of(&rig)).fence();
    produce(&mut rig, -1, PID, 0);
    rig.pass(4_900);
    assert!(rig.reply().is_none() && rig.sent().is_empty());
    rig.pass(200);
    assert_eq!(reply(&mut rig), Some((code::NOT_LEADER_OR_FOLLOWER, -1)));
}

#[test]
fn r08_what_waits_behind_a_batch_that_failed_fails_with_it() {
    let mut rig = stale();
    lock(&gate_of(&rig)).fence();
    produce(&mut rig, -1, PID, 0);
    rig.pass(1_000);
    produce(&mut rig, -1, PID, 1);
    produce(&mut rig, -1, PID + (1 << 20), 0);
    // The hold bound of the first one: the leader comes back a moment later.
    rig.pass(4_100);
    lock(&gate_of(&rig)).release_unchanged();
    rig.handle(Event::Wake);
    let refused = Some((code::NOT_LEADER_OR_FOLLOWER, -1));
    assert_eq!((reply(&mut rig), reply(&mut rig)), (refused, refused));
    let sent = rig.one();
    assert_eq!(batch_of(&sent).0, PID + (1 << 20), "another producer is not concerned");
    // The client sends both again, and they pass.
    produce(&mut rig, -1, PID, 0);
    produce(&mut rig, -1, PID, 1);
    assert_eq!(batch_of(&rig.one()), (PID, 0));
}

#[test]
fn r08_a_refusal_of_the_broker_fails_what_waits_for_it() {
    let mut rig = stale();
    produce(&mut rig, -1, PID, 0);
    produce(&mut rig, -1, PID, 1);
    let sent = rig.one();
    answer(&mut rig, &sent, code::REQUEST_TIMED_OUT, -1);
    rig.handle(Event::Wake);
    let refused = Some((code::REQUEST_TIMED_OUT, -1));
    assert_eq!((reply(&mut rig), reply(&mut rig)), (refused, refused));
    assert!(rig.sent().is_empty());
}

#[test]
fn r08_what_the_broker_misses_because_of_a_hidden_failure_is_tried_again_behind_it() {
    let mut rig = stale();
    assert_eq!(append(&mut rig, 0, 40), Some((0, 100)));
    produce(&mut rig, -1, PID, 1);
    produce(&mut rig, -1, PID, 2);
    let sent = rig.sent();
    // The broker became the leader between the two.
    answer(&mut rig, &sent[0], code::NOT_LEADER_OR_FOLLOWER, -1);
    answer(&mut rig, &sent[1], code::OUT_OF_ORDER_SEQUENCE_NUMBER, -1);
    assert_eq!(repeated(&mut rig), [Some((0, 101)), Some((0, 102))]);
    // A gap that is the client's own is the client's to hear of.
    produce(&mut rig, -1, PID, 3);
    let sent = rig.one();
    answer(&mut rig, &sent, code::OUT_OF_ORDER_SEQUENCE_NUMBER, -1);
    assert_eq!(reply(&mut rig), Some((code::OUT_OF_ORDER_SEQUENCE_NUMBER, -1)));
}

#[test]
fn r08_a_moved_topic_is_served_by_its_leader_whatever_the_client_knows() {
    // The client believes that broker 1 leads partition 0 of the source, which broker 0 does.
    let mut rig = Rig::new(Source, 1);
    flip(&mut rig, Target, ENDS.0, ENDS.1);
    lock(&gate_of(&rig)).fence();
    produce(&mut rig, -1, PID, 0);
    assert!(rig.sent().is_empty());
    flip(&mut rig, Source, 60, 100);
    rig.handle(Event::Wake);
    let sent = rig.one();
    assert_eq!(sent.node, VirtualNode::new(Source, 0));
    answer(&mut rig, &sent, 0, 100);
    assert_eq!(reply(&mut rig), Some((0, 120)));
    // And so does what comes later, until its metadata ages.
    produce(&mut rig, -1, PID, 1);
    let sent = rig.one();
    assert_eq!(sent.node, VirtualNode::new(Source, 0));
    answer(&mut rig, &sent, 0, 101);
    assert_eq!(reply(&mut rig), Some((0, 121)));
}

#[test]
fn while_a_flip_is_prepared_a_connection_has_one_produce_under_way() {
    let mut rig = Rig::new(Source, 0);
    rig.snapshot.preparing = Arc::new([Arc::from(TOPIC)].into());
    produce(&mut rig, -1, PID, 0);
    let first = rig.one();
    produce(&mut rig, -1, PID, 1);
    assert!(rig.sent().is_empty(), "the second would lengthen the drain");
    answer(&mut rig, &first, 0, 7);
    assert_eq!(reply(&mut rig), Some((0, 7)));
    rig.handle(Event::Wake);
    let second = rig.one();
    assert_eq!(batch_of(&second).1, 1);
    answer(&mut rig, &second, 0, 8);
    assert_eq!(reply(&mut rig), Some((0, 8)));
}

/// The broker stands still; the flip ends at its bound. A client whose batch was given up would lose its connection, and what is
/// under way there would be written twice.
#[test]
fn r02_a_flip_that_ends_at_its_bound_costs_a_client_without_sequences_nothing() {
    let mut rig = Rig::new(Source, 0);
    rig.snapshot.preparing = Arc::new([Arc::from(TOPIC)].into());
    produce(&mut rig, -1, -1, -1);
    let first = rig.one();
    produce(&mut rig, -1, -1, -1);
    rig.pass(400);
    assert!(rig.sent().is_empty(), "it may be the last one before the drain");
    let gate = gate_of(&rig);
    lock(&gate).fence();
    rig.pass(crate::cutover::fence_ms_max(5_000));
    rig.snapshot.preparing = Arc::default();
    lock(&gate).release_unchanged();
    rig.handle(Event::Wake);
    let second = rig.one();
    answer(&mut rig, &first, 0, 7);
    answer(&mut rig, &second, 0, 8);
    assert_eq!([reply(&mut rig), reply(&mut rig)], [Some((0, 7)), Some((0, 8))]);
}

#[test]
fn while_a_flip_is_prepared_nobody_waits_long_for_a_busy_connection() {
    let mut rig = Rig::new(Source, 0);
    rig.snapshot.preparing = Arc::new([Arc::from(TOPIC)].into());
    produce(&mut rig, -1, PID, 0);
    let _first = rig.one();
    produce(&mut rig, -1, PID, 1);
    rig.pass(600);
    assert_eq!(batch_of(&rig.one()).1, 1);
}

#[test]
fn r08_a_batch_that_comes_again_does_not_share_the_error_of_a_later_one() {
    let mut rig = stale();
    append(&mut rig, 0, 40);
    // 2 is here before 1, which the client sends again: only 2 is refused for the gap.
    produce(&mut rig, -1, PID, 2);
    produce(&mut rig, -1, PID, 1);
    assert!(rig.sent().is_empty());
    rig.pass(350);
    rig.handle(Event::Wake);
    // Not 45: the client may have 1 acknowledged elsewhere before it hears this.
    assert_eq!(reply(&mut rig), Some((code::NOT_LEADER_OR_FOLLOWER, -1)));
    let sent = rig.one();
    assert_eq!(batch_of(&sent), (PID, 1));
    answer(&mut rig, &sent, 0, 41);
    assert_eq!(reply(&mut rig), Some((0, 101)));
}

#[test]
fn r08_at_its_leader_a_gap_is_the_clients_own() {
    let mut rig = Rig::new(Target, 0);
    flip(&mut rig, Target, ENDS.0, ENDS.1);
    append(&mut rig, 0, 40);
    produce(&mut rig, -1, PID, 2);
    rig.pass(350);
    assert!(rig.sent().is_empty());
    assert_eq!(reply(&mut rig), Some((code::NOT_LEADER_OR_FOLLOWER, -1)), "a flip may have delayed it");
    rig.pass(FAILED_WINDOW_MS);
    produce(&mut rig, -1, PID, 2);
    assert!(rig.sent().is_empty());
    assert_eq!(reply(&mut rig), Some((code::OUT_OF_ORDER_SEQUENCE_NUMBER, -1)));
}

#[test]
fn r08_what_a_broker_misses_behind_a_batch_that_failed_is_not_called_missing() {
    // Without any flip: librdkafka would write the first one again under another epoch.
    let mut rig = Rig::new(Source, 0);
    append(&mut rig, 0, 40);
    produce(&mut rig, -1, PID, 1);
    produce(&mut rig, -1, PID, 2);
    let sent = rig.sent();
    // Appended, and then the leader stepped down.
    answer(&mut rig, &sent[0], code::NOT_LEADER_OR_FOLLOWER, 41);
    assert_eq!(reply(&mut rig), Some((code::NOT_LEADER_OR_FOLLOWER, 41)));
    answer(&mut rig, &sent[1], code::OUT_OF_ORDER_SEQUENCE_NUMBER, -1);
    assert_eq!(reply(&mut rig), Some((code::NOT_LEADER_OR_FOLLOWER, -1)));
    rig.pass(FAILED_WINDOW_MS);
    // It has given the first one up, and must learn what that means; again and again, if it does not listen.
    for _ in 0..2 {
        produce(&mut rig, -1, PID, 2);
        let sent = rig.one();
        answer(&mut rig, &sent, code::OUT_OF_ORDER_SEQUENCE_NUMBER, -1);
        assert_eq!(reply(&mut rig), Some((code::OUT_OF_ORDER_SEQUENCE_NUMBER, -1)));
    }
}

#[test]
fn r08_the_echo_of_a_hidden_failure_is_not_told_after_the_hold_bound_either() {
    let mut rig = stale();
    append(&mut rig, 0, 40);
    append(&mut rig, 1, 41);
    produce(&mut rig, -1, PID, 2);
    produce(&mut rig, -1, PID, 3);
    let sent = rig.sent();
    answer(&mut rig, &sent[0], code::NOT_LEADER_OR_FOLLOWER, -1);
    rig.pass(60);
    let again = rig.one();
    rig.pass(5_000);
    answer(&mut rig, &sent[1], code::OUT_OF_ORDER_SEQUENCE_NUMBER, -1);
    answer(&mut rig, &again, 0, 42);
    let refused = Some((code::NOT_LEADER_OR_FOLLOWER, -1));
    assert_eq!((reply(&mut rig), reply(&mut rig)), (Some((0, 102)), refused));
}

#[test]
fn r08_a_leader_that_steps_down_after_a_long_silence_is_as_hidden_as_another() {
    let mut rig = stale();
    produce(&mut rig, 1, -1, -1);
    let sent = rig.one();
    rig.pass(9_000);
    answer(&mut rig, &sent, code::NOT_LEADER_OR_FOLLOWER, -1);
    rig.pass(RETRY_MS);
    let again = rig.one();
    answer(&mut rig, &again, code::NONE, 42);
    assert_eq!(reply(&mut rig).map(|told| told.0), Some(code::NONE));
}

/// A batch without sequences that its leader has appended at 40 before it stepped down.
fn left_behind() -> Rig {
    let mut rig = stale();
    produce(&mut rig, -1, -1, -1);
    let sent = rig.one();
    answer(&mut rig, &sent, code::NOT_LEADER_OR_FOLLOWER, 40);
    assert!(rig.sent().is_empty() && rig.reply().is_none(), "nobody knows yet who is next");
    rig
}

/// Another broker leads, so many epochs later.
fn succeed(rig: &mut Rig, epochs: i32) {
    let info = rig.partition(Target);
    (info.leader, info.epoch) = (1 - info.leader, info.epoch + epochs);
    rig.pass(RETRY_MS);
}

/// The next leader began at `end`.
fn began_at(rig: &mut Rig, error: i16, end: i64) {
    let question = rig.one();
    assert_eq!(question.api_key, key::OFFSET_FOR_LEADER_EPOCH);
    let wanted = only(&question.body, "Topics");
    let epoch = wanted.i32("LeaderEpoch");
    assert_eq!(wanted.i32("CurrentLeaderEpoch"), epoch + 1);
    rig.answer(&question, |body| epoch_end(body, error, epoch, end));
}

const STEPPED_DOWN: Option<(i16, i64)> = Some((code::NOT_LEADER_OR_FOLLOWER, 100));

#[test]
fn r08_a_batch_that_the_next_leader_does_not_have_is_sent_to_it() {
    let mut rig = left_behind();
    succeed(&mut rig, 1);
    began_at(&mut rig, code::NONE, 40);
    rig.pass(RETRY_MS);
    let again = rig.one();
    assert_eq!(again.api_key, key::PRODUCE);
    answer(&mut rig, &again, code::NONE, 40);
    assert_eq!(reply(&mut rig), Some((code::NONE, 100)));
}

#[test]
fn r08_a_batch_without_sequence_that_the_next_leader_has_is_not_repeated() {
    let mut rig = left_behind();
    succeed(&mut rig, 1);
    began_at(&mut rig, code::NONE, 41);
    rig.pass(RETRY_MS);
    assert!(rig.sent().is_empty());
    assert_eq!(reply(&mut rig), STEPPED_DOWN);
}

#[test]
fn r08_a_batch_without_sequence_is_not_repeated_where_it_is_not_known_who_has_led() {
    let mut rig = left_behind();
    succeed(&mut rig, 2);
    assert!(rig.sent().is_empty());
    assert_eq!(reply(&mut rig), STEPPED_DOWN);
}

#[test]
fn r08_a_next_leader_that_does_not_lead_yet_is_asked_again_until_the_hold_bound() {
    let mut rig = left_behind();
    succeed(&mut rig, 1);
    began_at(&mut rig, code::UNKNOWN_LEADER_EPOCH, -1);
    rig.pass(RETRY_MS);
    let _never_answered = rig.one();
    assert!(rig.reply().is_none());
    rig.pass(5_000);
    assert_eq!(reply(&mut rig), STEPPED_DOWN);
    lock(&gate_of(&rig)).fence();
    assert!(lock(&gate_of(&rig)).is_drained(), "nothing is left in flight");
}

#[test]
fn r08_a_client_that_goes_while_the_next_leader_is_asked_leaves_nothing_in_flight() {
    let mut rig = left_behind();
    succeed(&mut rig, 1);
    rig.handle(Event::ClientGone);
    began_at(&mut rig, code::NONE, 40);
    rig.pass(RETRY_MS);
    assert!(rig.sent().is_empty());
    lock(&gate_of(&rig)).fence();
    assert!(lock(&gate_of(&rig)).is_drained());
}

#[test]
fn r08_what_came_later_does_not_hear_the_echo_of_a_batch_that_a_fence_held() {
    let mut rig = Rig::new(Source, 0);
    hold_the_second(&mut rig);
    let held = rig.one();
    answer(&mut rig, &held, code::NOT_LEADER_OR_FOLLOWER, -1);
    rig.pass(30);
    produce(&mut rig, -1, PID, 2);
    let sent = rig.sent();
    // The broker became the leader between the two. The client knows of neither.
    answer(&mut rig, &sent[0], code::NOT_LEADER_OR_FOLLOWER, -1);
    answer(&mut rig, &sent[1], code::OUT_OF_ORDER_SEQUENCE_NUMBER, -1);
    assert_eq!(repeated(&mut rig), [Some((0, 41)), Some((0, 42))]);
    // Long after nothing is repeated any more, a gap is the client's own.
    rig.pass(FAILED_WINDOW_MS);
    produce(&mut rig, -1, PID, 4);
    let sent = rig.one();
    answer(&mut rig, &sent, code::OUT_OF_ORDER_SEQUENCE_NUMBER, -1);
    assert_eq!(reply(&mut rig), Some((code::OUT_OF_ORDER_SEQUENCE_NUMBER, -1)));
}

#[test]
fn r01_a_batch_that_is_repeated_keeps_its_place_before_what_came_later() {
    let mut rig = stale();
    produce(&mut rig, -1, -1, -1);
    let first = rig.one();
    let later = of_another_session(&rig, 1, None);
    let waits = |rig: &Rig| matches!(lock(&gate_of(rig)).admit(rig.now_ms, &later), Admission::Hold { .. });
    assert!(waits(&rig), "while the first one is under way");
    answer(&mut rig, &first, code::NOT_LEADER_OR_FOLLOWER, -1);
    assert!(waits(&rig), "while it waits to be repeated");
    rig.pass(60);
    let again = rig.one();
    answer(&mut rig, &again, 0, 40);
    assert_eq!(reply(&mut rig), Some((0, 100)));
    assert!(!waits(&rig));
}

/// A produce request of these partitions, each with a batch of one record.
fn produce_to(rig: &mut Rig, version: i16, partitions: &[(i32, i64, i32)]) {
    rig.ask(key::PRODUCE, version, |body| {
        body.set("Acks", -1_i16);
        body.set("TimeoutMs", 1_000_i32);
        let mut topic = body.new_element("TopicData");
        match version {
            13.. => topic.set("TopicId", crate::ids::TopicId([1; 16])),
            _ => topic.set("Name", TOPIC),
        }
        for (index, pid, sequence) in partitions {
            let mut partition = topic.new_element("PartitionData");
            partition.set("Index", *index);
            partition.set("Records", Value::Bytes(Some(records(*pid, *sequence))));
            topic.push("PartitionData", partition);
        }
        body.push("TopicData", topic);
    });
}

fn partitions_of(sent: &Sent) -> Vec<i32> {
    let topics = sent.body.structs("TopicData");
    topics
        .flat_map(|topic| topic.structs("PartitionData").map(|p| p.i32("Index")).collect::<Vec<_>>())
        .collect()
}

/// Without routes.
fn forget_topics(rig: &mut Rig) {
    let mut routes = (*rig.snapshot.routes).clone();
    routes.topics.clear();
    routes.names.clear();
    rig.snapshot.routes = Arc::new(routes);
}

#[test]
fn what_no_broker_may_see_is_answered_here() {
    let refused = |version: i16, pid: i64, change: fn(&mut Rig)| {
        let mut rig = Rig::new(Source, 0);
        change(&mut rig);
        produce_to(&mut rig, version, &[(1, pid, 0)]);
        assert!(rig.sent().is_empty());
        let reply = rig.reply().expect("answered");
        let topic = reply.structs("Responses").next().unwrap().clone();
        let partition = topic.structs("PartitionResponses").next().unwrap().clone();
        let offsets = ["BaseOffset", "LogAppendTimeMs", "LogStartOffset"].map(|name| partition.i64(name));
        assert_eq!((partition.i32("Index"), offsets), (1, [-1; 3]));
        partition.i16("ErrorCode")
    };
    assert_eq!(refused(12, PID, forget_topics), code::UNKNOWN_TOPIC_OR_PARTITION);
    assert_eq!(refused(13, PID, forget_topics), code::UNKNOWN_TOPIC_ID);
    assert_eq!(refused(12, PID, |rig| rig.snapshot.taken_over = true), code::NOT_LEADER_OR_FOLLOWER);
    assert_eq!(refused(12, -2, |_| {}), code::INVALID_RECORD, "brokers would never recognise a retry");
    let mut rig = stale();
    produce_to(&mut rig, 12, &[(7, PID, 0)]);
    assert_eq!(reply(&mut rig), Some((code::UNKNOWN_TOPIC_OR_PARTITION, -1)));
}

#[test]
fn each_leader_gets_its_own_partitions_and_the_client_one_answer() {
    for version in [VERSION, 13] {
        let mut rig = stale();
        produce_to(&mut rig, version, &[(0, PID, 0), (1, PID, 0)]);
        let sent = rig.sent();
        assert_eq!(
            sent.iter().map(|s| (s.node.broker, partitions_of(s))).collect::<Vec<_>>(),
            [(0, vec![0]), (1, vec![1])]
        );
        let respond = |rig: &mut Rig, to: &Sent, index: i32, base: i64| {
            rig.answer(to, |body| {
                body.set("ThrottleTimeMs", 10 * (index + 1));
                let mut topic = body.new_element("Responses");
                match version {
                    13.. => topic.set("TopicId", crate::ids::TopicId([2; 16])),
                    _ => topic.set("Name", TOPIC),
                }
                let mut partition = topic.new_element("PartitionResponses");
                partition.set("Index", index);
                partition.set("BaseOffset", base);
                topic.push("PartitionResponses", partition);
                body.push("Responses", topic);
            });
        };
        respond(&mut rig, &sent[1], 1, 45);
        assert!(rig.reply().is_none());
        respond(&mut rig, &sent[0], 0, 40);
        let reply = rig.reply().expect("both have answered");
        let topic = reply.structs("Responses").next().unwrap();
        let rows: Vec<(i32, i16, i64)> = topic
            .structs("PartitionResponses")
            .map(|p| (p.i32("Index"), p.i16("ErrorCode"), p.i64("BaseOffset")))
            .collect();
        assert_eq!(rows, [(0, 0, 100), (1, 0, 105)]);
        let (name, id) = if version >= 13 { ("", [1; 16]) } else { (TOPIC, [0; 16]) };
        assert_eq!((topic.str("Name"), topic.uuid("TopicId")), (name, id), "as the client calls it");
        assert_eq!(reply.i32("ThrottleTimeMs"), 20, "the longest");
    }
}

#[test]
fn r08_a_partition_that_a_broker_does_not_answer_is_left_open() {
    let mut rig = Rig::new(Source, 0);
    produce(&mut rig, -1, PID, 0);
    let sent = rig.one();
    rig.answer(&sent, |_| {});
    assert_eq!(reply(&mut rig), Some((code::REQUEST_TIMED_OUT, -1)));
    assert!(lock(&gate_of(&rig)).unknown_since_ms().is_some());
    // Another topic's answer is not its own.
    produce(&mut rig, -1, PID, 1);
    let sent = rig.one();
    rig.answer(&sent, |body| {
        let mut topic = body.new_element("Responses");
        topic.set("Name", "another");
        let partition = topic.new_element("PartitionResponses");
        topic.push("PartitionResponses", partition);
        body.push("Responses", topic);
    });
    assert_eq!(reply(&mut rig), Some((code::REQUEST_TIMED_OUT, -1)));
}

#[test]
fn the_time_that_a_batch_has_waited_is_not_the_brokers() {
    let timeout = |waited: i64| {
        let mut rig = stale();
        lock(&gate_of(&rig)).fence();
        produce(&mut rig, -1, PID, 0);
        rig.pass(waited);
        lock(&gate_of(&rig)).release_unchanged();
        rig.handle(Event::Wake);
        rig.one().body.i32("TimeoutMs")
    };
    assert_eq!([timeout(0), timeout(300), timeout(1_500)], [1_000, 700, 1]);
}

#[test]
fn r02_one_acknowledgement_is_as_good_for_a_repetition_as_all() {
    for acks in [-1, 1] {
        let mut rig = stale();
        produce(&mut rig, acks, PID, 0);
        let sent = rig.one();
        rig.connect(&sent);
        rig.lose(&sent);
        assert!(rig.closed.is_none() && rig.reply().is_none());
        rig.pass(RETRY_MS);
        assert_eq!(batch_of(&rig.one()), (PID, 0));
    }
}

#[test]
fn r02_what_no_broker_can_have_seen_is_sent_again_without_sequences_too() {
    let mut rig = stale();
    produce(&mut rig, -1, -1, -1);
    let sent = rig.one();
    // It was never connected.
    rig.lose(&sent);
    assert!(rig.closed.is_none());
    assert_eq!(lock(&gate_of(&rig)).unknown_since_ms(), None, "nothing is open");
    rig.pass(RECONNECT_MS);
    let again = rig.one();
    answer(&mut rig, &again, 0, 40);
    assert_eq!(reply(&mut rig), Some((0, 100)));
}

#[test]
fn r06_only_ids_of_the_proxy_change_with_the_visit() {
    let mut rig = stale();
    flip(&mut rig, Source, 60, 100);
    produce(&mut rig, -1, 5_000, 0);
    assert_eq!(batch_of(&rig.one()), (5_000, 0));
}

#[test]
fn a_retry_is_made_when_its_time_has_come_and_not_before() {
    let mut rig = stale();
    produce(&mut rig, -1, PID, 0);
    let sent = rig.one();
    answer(&mut rig, &sent, code::NOT_LEADER_OR_FOLLOWER, -1);
    rig.pass(RETRY_MS - 1);
    rig.handle(Event::Wake);
    assert!(rig.sent().is_empty());
    rig.now_ms += 1;
    rig.handle(Event::Wake);
    assert_eq!(batch_of(&rig.one()), (PID, 0));
}

#[test]
fn an_append_that_lies_in_no_era_is_told_to_the_operator_and_has_no_offset() {
    let strays = |rig: &mut Rig| {
        let others = rig.others().into_iter();
        others.filter(|effect| matches!(effect, Effect::StrayAppend { native: NativeOffset(7), .. })).count()
    };
    let mut rig = stale();
    produce(&mut rig, -1, PID, 0);
    let sent = rig.one();
    answer(&mut rig, &sent, 0, 7);
    assert_eq!((reply(&mut rig), strays(&mut rig)), (Some((0, -1)), 1));
    // A refusal with a number is none, nor is an append in its place.
    produce(&mut rig, -1, PID, 1);
    let sent = rig.one();
    answer(&mut rig, &sent, code::REQUEST_TIMED_OUT, 7);
    assert_eq!(
        (reply(&mut rig).map(|(error, _)| error), strays(&mut rig)),
        (Some(code::REQUEST_TIMED_OUT), 0)
    );
    let mut rig = Rig::new(Source, 0);
    produce(&mut rig, -1, PID, 0);
    let sent = rig.one();
    answer(&mut rig, &sent, 0, 0);
    assert_eq!(reply(&mut rig), Some((0, 0)), "the first of a log");
    assert!(!rig.others().iter().any(|effect| matches!(effect, Effect::StrayAppend { .. })));
}

#[test]
fn a_leaders_hints_are_told_in_virtual_terms() {
    let mut rig = Rig::new(Target, 1);
    flip(&mut rig, Target, ENDS.0, ENDS.1);
    produce(&mut rig, -1, PID, 0);
    let sent = rig.one();
    rig.answer(&sent, |body| {
        let mut topic = body.new_element("Responses");
        topic.set("Name", TOPIC);
        let mut partition = topic.new_element("PartitionResponses");
        partition.set("ErrorCode", code::REQUEST_TIMED_OUT);
        partition.set("LogStartOffset", 42_i64);
        let mut leader = partition.new_element("CurrentLeader");
        leader.set("LeaderId", 1);
        leader.set("LeaderEpoch", 4);
        partition.set("CurrentLeader", Value::Struct(Some(leader)));
        topic.push("PartitionResponses", partition);
        body.push("Responses", topic);
    });
    let reply = rig.reply().expect("answered");
    let topic = reply.structs("Responses").next().unwrap().clone();
    let partition = topic.structs("PartitionResponses").next().unwrap();
    let leader = partition.opt_struct("CurrentLeader").expect("a hint");
    assert_eq!(leader.i32("LeaderId"), VirtualNode::new(Target, 1).to_virtual());
    assert_eq!(leader.i32("LeaderEpoch"), rig.virtual_epoch(4));
    assert_eq!(partition.i64("LogStartOffset"), -1, "that of the source is not known yet");
}

#[test]
fn only_a_leader_that_is_none_makes_the_topology_old() {
    for (error, is_old) in [(code::NOT_LEADER_OR_FOLLOWER, true), (code::REQUEST_TIMED_OUT, false)] {
        let mut rig = Rig::new(Source, 0);
        produce(&mut rig, -1, PID, 0);
        let sent = rig.one();
        answer(&mut rig, &sent, error, -1);
        assert_eq!(reply(&mut rig), Some((error, -1)));
        assert_eq!(rig.refreshed.contains(&Source), is_old);
    }
}

#[test]
fn traffic_is_noted_by_the_way_it_takes() {
    let mut rig = Rig::new(Source, 0);
    append(&mut rig, 0, 10);
    let seen = rig.shared.traffic.of_topic(TOPIC);
    assert_eq!((seen.direct_produce.len(), seen.companion_produce.len()), (1, 0));
    let mut rig = stale();
    append(&mut rig, 0, 40);
    let seen = rig.shared.traffic.of_topic(TOPIC);
    assert_eq!((seen.direct_produce.len(), seen.companion_produce.len()), (0, 1));
}

#[test]
fn a_client_that_goes_leaves_nothing_held_and_what_is_in_flight_is_waited_for() {
    let mut rig = stale();
    produce_to(&mut rig, VERSION, &[(0, PID, 0), (1, PID, 0)]);
    let sent = rig.sent();
    answer(&mut rig, &sent[0], code::NOT_LEADER_OR_FOLLOWER, -1);
    let gates = [0, 1].map(|partition| rig.shared.gates.get(&Arc::from(TOPIC), partition));
    rig.handle(Event::ClientGone);
    // The first one waits to be repeated: with nobody to answer, it is dropped. The second is where it is.
    assert_eq!(gates.each_ref().map(|gate| lock(gate).in_flight()), [0, 1]);
    assert!(!rig.session.is_idle(), "its outcome decides whether the partition is quiet");
    rig.pass(1_000);
    assert!(rig.sent().is_empty());
    rig.answer(&sent[1], |body| {
        let mut topic = body.new_element("Responses");
        topic.set("Name", TOPIC);
        let mut partition = topic.new_element("PartitionResponses");
        partition.set("Index", 1);
        partition.set("BaseOffset", 40_i64);
        topic.push("PartitionResponses", partition);
        body.push("Responses", topic);
    });
    assert_eq!(lock(&gates[1]).in_flight(), 0);
    assert!(rig.session.is_idle());
    // A batch that a fence holds is no longer held.
    let mut rig = stale();
    lock(&gate_of(&rig)).fence();
    produce(&mut rig, -1, PID, 0);
    assert_eq!(lock(&gate_of(&rig)).held(), 1);
    rig.handle(Event::ClientGone);
    assert_eq!(lock(&gate_of(&rig)).held(), 0);
    assert!(rig.session.is_idle());
}

#[test]
fn r08_when_nothing_is_repeated_any_more_a_gap_is_the_clients_own_again() {
    let mut rig = Rig::new(Target, 0);
    flip(&mut rig, Target, ENDS.0, ENDS.1);
    hold_the_second(&mut rig);
    // Twice: it is repeated once, however often that takes.
    for _ in 0..2 {
        let held = rig.one();
        answer(&mut rig, &held, code::NOT_LEADER_OR_FOLLOWER, -1);
        rig.pass(30);
    }
    let held = rig.one();
    answer(&mut rig, &held, 0, 41);
    assert_eq!(reply(&mut rig), Some((0, 101)));
    assert_eq!(append(&mut rig, 2, 42), Some((0, 102)));
    rig.pass(FAILED_WINDOW_MS);
    produce(&mut rig, -1, PID, 4);
    assert!(rig.sent().is_empty());
    assert_eq!(reply(&mut rig), Some((code::OUT_OF_ORDER_SEQUENCE_NUMBER, -1)), "hidden from nobody");
}

#[test]
fn only_batches_of_one_producer_and_epoch_come_before_each_other() {
    let batch = |epoch, first| Some(BatchId { pid: PID, epoch, first, last: first });
    assert!(is_before(batch(0, 1), batch(0, 2)) && !is_before(batch(0, 2), batch(0, 1)));
    assert!(!is_before(batch(0, 1), batch(1, 2)) && !is_before(batch(1, 1), batch(0, 2)));
    assert!(!is_before(None, batch(0, 2)) && !is_before(batch(0, 1), None) && !is_before(None, None));
}

#[test]
fn r01_who_wants_other_acknowledgements_is_another_producer() {
    let mut rig = stale();
    produce(&mut rig, 1, -1, -1);
    let admitted = |client| {
        let other = Submission { client, ..of_another_session(&rig, 1, None) };
        matches!(lock(&gate_of(&rig)).admit(rig.now_ms, &other), Admission::Forward(_))
    };
    assert_eq!([-1, 0, 1].map(|acks| admitted(rig.client_key(acks))), [true, true, false]);
}

#[test]
fn r01_what_queues_behind_an_earlier_batch_keeps_its_place_before_what_came_later() {
    let mut rig = Rig::new(Source, 0);
    rig.snapshot.preparing = Arc::new([Arc::from(TOPIC)].into());
    produce(&mut rig, -1, -1, -1);
    let first = rig.one();
    produce(&mut rig, -1, -1, -1);
    assert!(rig.sent().is_empty());
    answer(&mut rig, &first, 0, 7);
    let later = Submission { arrived_ms: rig.now_ms + 1, ..of_another_session(&rig, 0, None) };
    let admission = lock(&gate_of(&rig)).admit(rig.now_ms, &later);
    assert!(matches!(admission, Admission::Hold { reason: HoldReason::Kept, .. }), "{admission:?}");
}

/// The same client's next batch (acks=-1), which comes by another connection.
fn of_another_session(rig: &Rig, era: u32, sequence: Option<i32>) -> Submission {
    Submission {
        session: SessionId(2),
        node: VirtualNode::new(Target, 7),
        client: rig.client_key(-1),
        path: PathId(2),
        era,
        batch: sequence.map(|first| BatchId { pid: PID, epoch: 0, first, last: first }),
        native: None,
        hold: None,
        arrived_ms: rig.now_ms,
        is_left: false,
    }
}

/// The sessions that are to be woken, since this was last asked.
fn woken(rig: &mut Rig) -> Vec<SessionId> {
    let others = rig.others().into_iter();
    others
        .flat_map(|effect| if let Effect::Wake(sessions) = effect { sessions } else { Vec::new() })
        .collect()
}

#[test]
fn r03_what_another_connection_keeps_behind_a_batch_is_woken_by_its_outcome() {
    for error in [code::NONE, code::REQUEST_TIMED_OUT] {
        let mut rig = stale();
        produce(&mut rig, -1, PID, 0);
        let sent = rig.one();
        let next = of_another_session(&rig, 1, Some(1));
        let admission = lock(&gate_of(&rig)).admit(rig.now_ms, &next);
        assert!(matches!(admission, Admission::Hold { reason: HoldReason::OtherPath, .. }), "{admission:?}");
        assert!(woken(&mut rig).is_empty());
        answer(&mut rig, &sent, error, 40);
        assert!(woken(&mut rig).contains(&SessionId(2)), "after {error}");
    }
}

#[test]
fn a_flip_is_told_when_the_last_batch_behind_its_fence_is_answered() {
    let mut rig = stale();
    produce(&mut rig, -1, PID, 0);
    produce(&mut rig, -1, PID + (1 << 20), 0);
    let sent = rig.sent();
    lock(&gate_of(&rig)).fence();
    let drained = |rig: &mut Rig| rig.others().iter().any(|effect| matches!(effect, Effect::GateDrained));
    answer(&mut rig, &sent[0], 0, 40);
    assert!(!drained(&mut rig), "the second one is under way");
    answer(&mut rig, &sent[1], 0, 41);
    assert!(drained(&mut rig));
}

#[test]
fn r08_what_waits_behind_a_batch_that_is_given_up_is_told_at_once() {
    let mut rig = stale();
    lock(&gate_of(&rig)).fence();
    produce(&mut rig, -1, PID, 0);
    rig.pass(1_000);
    produce(&mut rig, -1, PID, 1);
    // The hold bound of the first one. That of the second is a second later, which is too late to keep their order.
    rig.pass(4_000);
    let refused = Some((code::NOT_LEADER_OR_FOLLOWER, -1));
    assert_eq!(reply(&mut rig), refused);
    assert!(woken(&mut rig).contains(&SessionId(1)));
    rig.handle(Event::Wake);
    assert_eq!(reply(&mut rig), refused);
    assert!(woken(&mut rig).is_empty(), "nothing waits any more");
}

#[test]
fn while_a_flip_is_prepared_a_connection_that_is_free_again_goes_on_at_once() {
    let mut rig = Rig::new(Source, 0);
    rig.snapshot.preparing = Arc::new([Arc::from(TOPIC)].into());
    // Two partitions: the gate of the one knows nothing of what waits for the other.
    produce_to(&mut rig, VERSION, &[(1, PID, 0)]);
    let first = rig.one();
    produce(&mut rig, -1, PID, 0);
    assert!(rig.sent().is_empty() && woken(&mut rig).is_empty());
    // Whatever it says.
    rig.answer(&first, |_| {});
    assert_eq!(woken(&mut rig), [SessionId(1)]);
    rig.handle(Event::Wake);
    assert_eq!(partitions_of(&rig.one()), [0]);
}

#[test]
fn r08_the_echo_of_a_failure_that_is_hidden_once_is_hidden_too() {
    let mut rig = Rig::new(Source, 0);
    hold_the_second(&mut rig);
    // Only the first one was held.
    produce(&mut rig, -1, PID, 2);
    let sent = rig.sent();
    answer(&mut rig, &sent[0], code::NOT_LEADER_OR_FOLLOWER, -1);
    answer(&mut rig, &sent[1], code::OUT_OF_ORDER_SEQUENCE_NUMBER, -1);
    assert_eq!(repeated(&mut rig), [Some((0, 41)), Some((0, 42))]);
}

#[test]
fn r08_a_failure_is_hidden_until_its_own_repetition_ends_and_not_that_of_another_batch() {
    let mut rig = Rig::new(Source, 0);
    hold_the_second(&mut rig);
    produce(&mut rig, -1, PID, 2);
    produce(&mut rig, -1, PID, 3);
    let sent = rig.sent();
    answer(&mut rig, &sent[0], code::NOT_LEADER_OR_FOLLOWER, -1);
    // This one is the client's to repeat. The third misses the first, which the client does not know to have failed.
    answer(&mut rig, &sent[1], code::REQUEST_TIMED_OUT, -1);
    answer(&mut rig, &sent[2], code::OUT_OF_ORDER_SEQUENCE_NUMBER, -1);
    rig.pass(60);
    let again = rig.one();
    assert_eq!(batch_of(&again), (PID, 1));
    answer(&mut rig, &again, 0, 41);
    let timed_out = Some((code::REQUEST_TIMED_OUT, -1));
    assert_eq!([reply(&mut rig), reply(&mut rig), reply(&mut rig)], [Some((0, 41)), timed_out, timed_out]);
}

#[test]
fn r08_what_fails_with_a_batch_is_all_that_comes_behind_the_earliest_that_failed() {
    let batch = |first| Some(BatchId { pid: PID, epoch: 0, first, last: first });
    let key = || ((Arc::from(TOPIC), 0), Some(PID));
    let after = |failed: &[(i32, i16)]| {
        let mut held = HeldPartitions::default();
        failed.iter().for_each(|&(first, error)| held.fail(key(), error, batch(first)));
        [1, 3, 5, 7].map(|first| held.failure(&key(), batch(first)))
    };
    let (six, seven) = (Some(code::NOT_LEADER_OR_FOLLOWER), Some(code::REQUEST_TIMED_OUT));
    assert_eq!(after(&[(5, code::REQUEST_TIMED_OUT)]), [None, None, seven, seven]);
    let both = [(5, code::REQUEST_TIMED_OUT), (3, code::NOT_LEADER_OR_FOLLOWER)];
    assert_eq!(after(&both), [None, six, six, six], "with the error of the earliest");
    assert_eq!(after(&[both[1], both[0]]), [None, six, six, six], "whichever failed first");
}

#[test]
fn a_leader_that_a_client_is_told_of_comes_with_its_address() {
    let mut rig = Rig::new(Source, 0);
    produce(&mut rig, -1, PID, 0);
    let sent = rig.one();
    rig.answer(&sent, |body| {
        let mut topic = body.new_element("Responses");
        topic.set("Name", TOPIC);
        let mut partition = topic.new_element("PartitionResponses");
        partition.set("ErrorCode", code::NOT_LEADER_OR_FOLLOWER);
        partition.set("BaseOffset", -1_i64);
        let mut leader = partition.new_element("CurrentLeader");
        leader.set("LeaderId", 1);
        leader.set("LeaderEpoch", 6);
        partition.set("CurrentLeader", Value::Struct(Some(leader)));
        topic.push("PartitionResponses", partition);
        body.push("Responses", topic);
        let mut broker = body.new_element("NodeEndpoints");
        broker.set("NodeId", 1);
        broker.set("Host", "source");
        broker.set("Port", 9092);
        body.push("NodeEndpoints", broker);
    });
    let reply = rig.reply().expect("answered");
    let node = VirtualNode::new(Source, 1);
    let endpoints: Vec<(i32, &str, i32)> =
        reply.structs("NodeEndpoints").map(|e| (e.i32("NodeId"), e.str("Host"), e.i32("Port"))).collect();
    assert_eq!(endpoints, [(node.to_virtual(), "proxy", 9100 + node.to_virtual())], "the proxy's");
}

#[test]
fn r07_what_is_asked_behind_silent_produce_is_what_every_broker_answers() {
    let mut rig = stale();
    produce(&mut rig, 0, -1, -1);
    let probe = rig.sent().pop().expect("asked");
    assert_eq!((probe.api_key, probe.version), (key::API_VERSIONS, 0));
}

#[test]
fn produce_to_an_owner_of_which_no_broker_is_known_waits_until_one_is() {
    let mut rig = stale();
    let brokers = std::mem::take(&mut rig.topology(Target).brokers);
    produce(&mut rig, -1, PID, 0);
    assert!(rig.sent().is_empty() && rig.reply().is_none());
    assert!(rig.refreshed.contains(&Target));
    rig.topology(Target).brokers = brokers;
    rig.pass(RETRY_MS);
    assert_eq!(batch_of(&rig.one()), (PID, 0));
}

#[test]
fn r03_what_waits_behind_a_batch_of_a_client_that_goes_is_woken() {
    let mut rig = stale();
    lock(&gate_of(&rig)).fence();
    produce(&mut rig, -1, PID, 0);
    lock(&gate_of(&rig)).release_unchanged();
    let next = of_another_session(&rig, 1, Some(1));
    let admission = lock(&gate_of(&rig)).admit(rig.now_ms, &next);
    assert!(matches!(admission, Admission::Hold { reason: HoldReason::Kept, .. }), "{admission:?}");
    assert!(woken(&mut rig).is_empty());
    rig.handle(Event::ClientGone);
    assert_eq!(woken(&mut rig), [SessionId(2)]);
}

#[test]
fn r03_a_gap_is_waited_for_after_a_flip_and_refused_at_once_after_a_start() {
    let refused = |flipped_at_ms: Option<i64>| {
        let mut rig = Rig::new(Target, 0);
        rig.flip(Target, ENDS.0, ENDS.1);
        let mut carry = carry::Carry::default();
        carry.record_ack(PID, 0, 0, 0, None, 0);
        let mut gate = crate::producer::gate::PartitionGate::restored(1, carry.clone());
        gate.seed(&[], 0, 1_000);
        rig.shared.gates.restore(&Arc::from(TOPIC), 0, gate);
        if let Some(at) = flipped_at_ms {
            let _ = lock(&gate_of(&rig)).release(at, 1, carry);
        }
        produce(&mut rig, -1, PID, 2);
        assert!(rig.sent().is_empty());
        reply(&mut rig)
    };
    assert_eq!(refused(Some(1_000)), None, "its predecessor may be on its way by another connection");
    assert_eq!(refused(None), Some((code::NOT_LEADER_OR_FOLLOWER, -1)), "its client is to send it again");
}

#[test]
fn r08_the_first_offset_of_a_log_is_a_place_too_when_a_leader_steps_down() {
    let mut rig = Rig::new(Source, 0);
    flip(&mut rig, Target, 100, 0);
    produce(&mut rig, -1, -1, -1);
    let sent = rig.one();
    answer(&mut rig, &sent, code::NOT_LEADER_OR_FOLLOWER, 0);
    succeed(&mut rig, 1);
    began_at(&mut rig, code::NONE, 1);
    rig.pass(60);
    assert!(rig.sent().is_empty(), "it is in the log, which would take it twice");
    assert_eq!(reply(&mut rig), STEPPED_DOWN);
}

/// A batch without sequences, and one behind it, that wait for one of their client on another connection; its ticket.
fn waiting_for_their_own() -> (Rig, Ticket) {
    let mut rig = Rig::new(Source, 0);
    // So that it is known who the client is.
    assert_eq!(append(&mut rig, 0, 39), Some((code::NONE, 39)));
    let client = rig.client_key(1);
    let earlier = Submission { path: PathId(99), client, ..of_another_session(&rig, 0, None) };
    let admission = lock(&gate_of(&rig)).admit(rig.now_ms, &earlier);
    let Admission::Forward(ticket) = admission else { panic!("{admission:?}") };
    (0..2).for_each(|_| produce(&mut rig, 1, -1, -1));
    assert!(rig.sent().is_empty(), "they may not overtake it");
    (rig, ticket)
}

#[test]
fn r01_a_batch_that_waits_for_its_own_client_waits_longer_than_the_hold_bound() {
    let (mut rig, ticket) = waiting_for_their_own();
    (0..4).for_each(|_| rig.pass(5_000));
    assert!(
        rig.closed.is_none() && rig.reply().is_none(),
        "its client would write again what it has unanswered"
    );
    let signal = lock(&gate_of(&rig)).complete(rig.now_ms, ticket, Outcome::Appended(None));
    assert!(signal.wake.contains(&SessionId(1)));
    rig.handle(Event::Wake);
    let sent = rig.sent();
    assert_eq!(sent.len(), 2);
    answer(&mut rig, &sent[0], code::NONE, 40);
    assert_eq!(reply(&mut rig), Some((code::NONE, 40)));
    assert!(rig.closed.is_none());
}

#[test]
fn r01_a_fence_that_comes_after_it_has_its_own_bound() {
    let (mut rig, ticket) = waiting_for_their_own();
    (0..2).for_each(|_| rig.pass(5_000));
    lock(&gate_of(&rig)).fence();
    let _ = lock(&gate_of(&rig)).complete(rig.now_ms, ticket, Outcome::Appended(None));
    rig.handle(Event::Wake);
    rig.pass(4_000);
    assert!(rig.sent().is_empty() && rig.closed.is_none());
    lock(&gate_of(&rig)).release_unchanged();
    rig.handle(Event::Wake);
    assert_eq!(rig.sent().len(), 2);
}

#[test]
fn r01_a_batch_waits_for_its_own_client_no_longer_than_clients_wait() {
    let (mut rig, _) = waiting_for_their_own();
    (0..7).for_each(|_| rig.pass(4_999));
    assert!(rig.closed.is_some());
}

#[test]
fn r09_the_operator_is_told_what_a_batch_was_held_for_until_the_bound() {
    let mut rig = stale();
    lock(&gate_of(&rig)).fence();
    produce(&mut rig, -1, PID, 0);
    rig.pass(5_000);
    let expired = rig.others().into_iter().find_map(|effect| match effect {
        Effect::HoldExpired { topic, partition, reason } => Some((topic, partition, reason)),
        _ => None,
    });
    assert_eq!(expired, Some((Arc::from(TOPIC), 0, Some(HoldReason::Fence))));
}

#[test]
fn everything_that_waits_behind_a_fence_is_counted_as_held() {
    let mut rig = stale();
    lock(&gate_of(&rig)).fence();
    (0..3).for_each(|sequence| produce(&mut rig, -1, PID, sequence));
    assert_eq!(lock(&gate_of(&rig)).held(), 3, "also what queues behind the first of its connection");
    lock(&gate_of(&rig)).release_unchanged();
    rig.handle(Event::Wake);
    assert_eq!((rig.sent().len(), lock(&gate_of(&rig)).held()), (1, 2), "one, to begin with");
}

#[test]
fn r14_a_batch_that_was_planned_with_another_route_table_asks_again_a_moment_later() {
    let mut rig = Rig::new(Source, 0);
    // The gate is in the new era; this session has not seen its routes yet.
    let _ = lock(&gate_of(&rig)).release(0, 1, carry::Carry::default());
    produce(&mut rig, -1, PID, 0);
    assert!(rig.sent().is_empty());
    assert_eq!(rig.session.next_deadline_ms(), Some(rig.now_ms + 1));
    rig.flip(Target, ENDS.0, ENDS.1);
    rig.pass(1);
    assert_eq!(rig.one().node.side, Target);
}

/// The topic was deleted and created again while a batch was under way.
#[test]
fn r26_the_answer_of_a_log_that_is_gone_is_nobody_elses() {
    const OTHER: i64 = PID + (1 << 20);
    let mut rig = Rig::new(Source, 0);
    produce(&mut rig, -1, PID, 0);
    let of_the_old = rig.one();
    rig.shared.forget_topic(TOPIC);
    produce(&mut rig, -1, OTHER, 0);
    let of_the_new = rig.one();
    answer(&mut rig, &of_the_old, code::NONE, 5);
    let gate = gate_of(&rig);
    lock(&gate).fence();
    assert!(!lock(&gate).is_drained(), "a batch is under way");
    assert!(lock(&gate).carry().is_empty(), "the new log has acknowledged nothing");
    answer(&mut rig, &of_the_new, code::NONE, 0);
    assert!(lock(&gate).is_drained() && lock(&gate).carry().get(OTHER).is_some());
}

#[test]
fn nothing_is_kept_for_partitions_that_are_not_there() {
    let mut rig = Rig::new(Source, 0);
    let ask = |rig: &mut Rig| {
        rig.ask(key::PRODUCE, 9, |body| {
            body.set("Acks", -1_i16);
            let mut topic = body.new_element("TopicData");
            topic.set("Name", TOPIC);
            for index in 2..2_000 {
                let mut partition = topic.new_element("PartitionData");
                partition.set("Index", index);
                partition.set("Records", Value::Bytes(Some(records(PID, 0))));
                topic.push("PartitionData", partition);
            }
            body.push("TopicData", topic);
        });
    };
    ask(&mut rig);
    assert!(rig.sent().is_empty() && rig.refreshed.contains(&Source), "they may be new");
    assert!(rig.shared.gates.of_topic(TOPIC).is_empty());
    rig.pass(6_000);
    assert_eq!(reply(&mut rig).map(|(error, _)| error), Some(code::NOT_LEADER_OR_FOLLOWER));
}

#[test]
fn r01_a_batch_without_sequence_is_not_sent_for_a_client_that_has_gone() {
    let mut rig = stale();
    produce(&mut rig, -1, -1, -1);
    let sent = rig.one();
    rig.connect(&sent);
    rig.handle(Event::ClientGone);
    // It refuses; the client has sent the batch again by another connection to the same node, and the one behind it.
    answer(&mut rig, &sent, code::NOT_LEADER_OR_FOLLOWER, -1);
    let next =
        Submission { node: rig.node(), arrived_ms: rig.now_ms + 1, ..of_another_session(&rig, 1, None) };
    let admission = lock(&gate_of(&rig)).admit(rig.now_ms, &next);
    rig.pass(100);
    assert!(rig.sent().is_empty(), "a ghost is sent; what its client has sent since: {admission:?}");
}

/// The leader's machine has died without a word (no FIN, no RST), or stands still. After request.timeout.ms (30 s) its client has
/// ended the connection and has come to the next leader, which was elected 20 s ago. The old connection of the proxy is
/// waited for, 30 s more (connection.rs, ORPHAN_MS).
#[test]
fn r02_what_was_left_at_a_leader_of_before_keeps_nobody_from_the_next_one() {
    // Never flipped: the log has the whole history of its producers.
    let mut rig = Rig::new(Source, 1);
    let left = of_another_session(&rig, 0, Some(0));
    let gate = gate_of(&rig);
    let ticket = match lock(&gate).admit(rig.now_ms, &left) {
        Admission::Forward(ticket) => ticket,
        other => panic!("{other:?}"),
    };
    rig.now_ms += 30_000;
    lock(&gate).leave(ticket);
    let topic: Arc<str> = Arc::from(TOPIC);
    let info = rig.topology(Source).topics.get_mut(&topic).unwrap();
    let info = &mut Arc::make_mut(info).partitions[0];
    (info.leader, info.epoch) = (1, info.epoch + 1);
    rig.snapshot.revision.0 += 1;
    let began = rig.now_ms;
    let mut told = Vec::new();
    let mut sent = Vec::new();
    while sent.is_empty() && rig.now_ms < began + 29_000 {
        produce(&mut rig, -1, PID, 0);
        rig.pass(5_100);
        sent = rig.sent();
        told.push((rig.now_ms - began, reply(&mut rig)));
    }
    assert!(
        rig.now_ms - began < 6_000 && !sent.is_empty(),
        "after {} ms nothing has been sent to the leader; its client was told {told:?}",
        rig.now_ms - began
    );
}
