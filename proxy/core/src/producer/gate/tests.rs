use super::*;
use crate::ids::ClusterSide;

const NOW: i64 = 1_000_000;

/// Each connection is one to another node.
fn node(path: u64) -> VirtualNode {
    VirtualNode::new(ClusterSide::Source, i32::try_from(path).unwrap())
}

fn submission(path: u64, seq: Option<(i32, i32)>, era: u32) -> Submission {
    Submission {
        session: SessionId(path),
        node: node(path),
        client: ClientKey(7),
        path: PathId(path),
        era,
        batch: seq.map(|(first, last)| BatchId { pid: 1 << 62, epoch: 0, first, last }),
        native: None,
        hold: None,
        arrived_ms: NOW,
        is_left: false,
    }
}

fn forwarded(admission: Admission) -> Ticket {
    match admission {
        Admission::Forward(ticket) => ticket,
        other => panic!("not forwarded: {other:?}"),
    }
}

fn reason(admission: Admission) -> HoldReason {
    match admission {
        Admission::Hold { reason, .. } => reason,
        other => panic!("not held: {other:?}"),
    }
}

fn acked(offset: i64) -> Outcome {
    Outcome::Appended(Some(VirtualOffset(offset)))
}

/// A gate in era 1 whose carry ends at sequence 9.
fn flipped() -> PartitionGate {
    let mut gate = PartitionGate::default();
    let ticket = forwarded(gate.admit(NOW, &submission(1, Some((0, 9)), 0)));
    gate.fence();
    gate.complete(NOW, ticket, acked(100));
    let carry = gate.carry().clone();
    gate.release(NOW, 1, carry);
    gate
}

#[test]
fn r01_a_batch_without_sequence_waits_for_the_same_client_on_another_connection() {
    let mut gate = PartitionGate::default();
    let ticket = forwarded(gate.admit(NOW, &submission(1, None, 0)));
    forwarded(gate.admit(NOW, &submission(1, None, 0)));
    assert_eq!(reason(gate.admit(NOW, &submission(2, None, 0))), HoldReason::OtherPath);
    let signal = gate.complete(NOW, ticket, acked(0));
    assert_eq!(signal.wake, [SessionId(2)]);
}

/// Instances of an application share a client id, and often a host.
#[test]
fn r01_another_connection_to_the_same_node_is_another_instance_s() {
    let mut gate = PartitionGate::default();
    let other = Submission { node: node(1), ..submission(2, None, 0) };
    let ticket = forwarded(gate.admit(NOW, &submission(1, None, 0)));
    forwarded(gate.admit(NOW, &other));
    // The first one's leader has changed: its own next batch takes another way.
    let moved = Submission { path: PathId(9), ..submission(1, None, 0) };
    assert_eq!(reason(gate.admit(NOW, &moved)), HoldReason::OtherPath);
    forwarded(gate.admit(NOW, &Submission { node: node(1), ..submission(3, None, 0) }));
    // A connection that has ended is followed by one of the same instance.
    gate.leave(ticket);
    assert_eq!(
        reason(gate.admit(NOW, &Submission { node: node(1), ..submission(4, None, 0) })),
        HoldReason::OtherPath
    );
}

#[test]
fn r01_what_came_first_goes_first_although_it_asks_later() {
    let mut gate = PartitionGate::default();
    let under_way = forwarded(gate.admit(NOW, &submission(1, None, 0)));
    // Its connection's turn is interrupted between its arrival and the question.
    let interrupted = submission(1, None, 0);
    let next = Submission { arrived_ms: NOW + 9, ..submission(2, None, 0) };
    assert_eq!(reason(gate.admit(NOW + 9, &next)), HoldReason::OtherPath);
    let interrupted = forwarded(gate.admit(NOW + 10, &interrupted));
    gate.complete(NOW + 11, under_way, acked(0));
    assert_eq!(reason(gate.admit(NOW + 50, &next)), HoldReason::OtherPath);
    gate.complete(NOW + 51, interrupted, acked(1));
    forwarded(gate.admit(NOW + 51, &next));
}

#[test]
fn r01_what_is_kept_of_a_client_goes_in_the_order_it_came() {
    let mut gate = PartitionGate::default();
    gate.fence();
    let held = |gate: &mut PartitionGate, submission: Submission| match gate.admit(NOW, &submission) {
        Admission::Hold { hold, .. } => Submission { hold: Some(hold), ..submission },
        other => panic!("not held: {other:?}"),
    };
    let first = held(&mut gate, submission(1, None, 0));
    let second = held(&mut gate, submission(2, None, 0));
    gate.release_unchanged();
    assert_eq!(reason(gate.admit(NOW, &second)), HoldReason::Kept);
    let ticket = forwarded(gate.admit(NOW, &first));
    assert_eq!(reason(gate.admit(NOW, &second)), HoldReason::OtherPath);
    assert_eq!(gate.complete(NOW, ticket, acked(0)).wake, [SessionId(2)]);
    forwarded(gate.admit(NOW, &second));
}

#[test]
fn r01_what_waits_for_a_leader_is_waited_for_and_let_go() {
    let mut gate = PartitionGate::default();
    let hold = gate.queue(&submission(1, None, 0).kept());
    assert_eq!(reason(gate.admit(NOW, &submission(2, None, 0))), HoldReason::Kept);
    assert_eq!(gate.drop_hold(NOW, hold).wake, [SessionId(1), SessionId(2)]);
    forwarded(gate.admit(NOW, &submission(2, None, 0)));
}

#[test]
fn r01_a_sequenced_batch_waits_for_its_producer_on_another_connection() {
    let mut gate = PartitionGate::default();
    let ticket = forwarded(gate.admit(NOW, &submission(1, Some((0, 4)), 0)));
    assert_eq!(reason(gate.admit(NOW, &submission(2, Some((5, 9)), 0))), HoldReason::OtherPath);
    gate.complete(NOW, ticket, acked(0));
    forwarded(gate.admit(NOW, &submission(2, Some((5, 9)), 0)));
}

#[test]
fn r03_a_gap_waits_for_its_predecessor_and_is_then_refused() {
    let mut gate = flipped();
    let early = submission(1, Some((20, 24)), 1);
    assert_eq!(reason(gate.admit(NOW, &early)), HoldReason::Gap);
    // One that a flip may have delayed comes later still: for long it is not called missing.
    for (after, refusal) in [
        (GAP_WAIT_MS, Refusal::BehindFailed),
        (FAILED_WINDOW_MS - 1, Refusal::BehindFailed),
        (FAILED_WINDOW_MS, Refusal::OutOfOrderSequence),
    ] {
        assert_eq!(gate.admit(NOW + after, &early), Admission::Refuse(refusal), "{after} ms after the flip");
    }
    forwarded(gate.admit(NOW, &submission(1, Some((10, 19)), 1)));
}

#[test]
fn r08_behind_a_batch_that_failed_a_gap_is_not_called_missing() {
    let much_later = NOW + 10 * FAILED_WINDOW_MS;
    let behind = submission(1, Some((20, 24)), 1);
    let refused = |gate: &mut PartitionGate, at_ms| match gate.admit(at_ms, &behind) {
        Admission::Refuse(refusal) => refusal,
        other => panic!("{other:?}"),
    };
    for outcome in [Outcome::NotAppended, Outcome::Unknown] {
        let mut gate = flipped();
        assert_eq!(refused(&mut gate, much_later), Refusal::OutOfOrderSequence);
        let ticket = forwarded(gate.admit(much_later, &submission(2, Some((10, 19)), 1)));
        gate.complete(much_later, ticket, outcome);
        assert_eq!(refused(&mut gate, much_later), Refusal::BehindFailed, "{outcome:?}");
        assert_eq!(refused(&mut gate, much_later + FAILED_WINDOW_MS), Refusal::OutOfOrderSequence);
    }
    // One that was held, and then given up, has failed as well.
    let mut gate = flipped();
    gate.fence();
    let held = gate.admit(much_later, &submission(2, Some((10, 19)), 1));
    let Admission::Hold { hold, .. } = held else { panic!("not held") };
    gate.release_unchanged();
    gate.drop_hold(much_later, hold);
    assert_eq!(refused(&mut gate, much_later), Refusal::BehindFailed);
    // A client that was told that something is missing knows it.
    let mut gate = flipped();
    let ticket = forwarded(gate.admit(much_later, &submission(2, Some((10, 19)), 1)));
    gate.complete(much_later, ticket, Outcome::OutOfOrder);
    assert_eq!(refused(&mut gate, much_later), Refusal::OutOfOrderSequence);
    // After a start nobody knows what failed before it.
    let mut gate = flipped();
    gate.seed(&[], 0, much_later);
    assert_eq!(refused(&mut gate, much_later), Refusal::BehindFailed);
}

/// A log without state of the producer would take it, and call what belongs before it a duplicate.
#[test]
fn r03_nobody_begins_in_the_middle_while_the_beginning_may_have_failed() {
    let much_later = NOW + 10 * FAILED_WINDOW_MS;
    let (first, later) = (submission(1, Some((0, 3)), 1), submission(1, Some((4, 7)), 1));
    let new = || {
        let mut gate = PartitionGate::default();
        gate.release(NOW, 1, Carry::default());
        gate
    };
    // A log forgets producers that are idle for a day.
    forwarded(new().admit(much_later, &later));
    let mut gate = new();
    let ticket = forwarded(gate.admit(much_later, &first));
    gate.complete(much_later, ticket, Outcome::NotAppended);
    assert_eq!(gate.admit(much_later, &later), Admission::Refuse(Refusal::BehindFailed));
    let ticket = forwarded(gate.admit(much_later, &first));
    gate.complete(much_later, ticket, acked(0));
    forwarded(gate.admit(much_later, &later));
    let mut gate = new();
    assert_eq!(reason(gate.admit(NOW, &later)), HoldReason::Gap, "a flip may have delayed what came before");
    forwarded(gate.admit(NOW + FAILED_WINDOW_MS, &later));
}

#[test]
fn r03_the_second_batch_of_an_era_waits_until_the_first_is_appended() {
    let mut gate = flipped();
    let first = forwarded(gate.admit(NOW, &submission(1, Some((10, 14)), 1)));
    assert_eq!(reason(gate.admit(NOW, &submission(1, Some((15, 19)), 1))), HoldReason::Unconfirmed);
    assert_eq!(gate.complete(NOW, first, acked(200)).wake, [SessionId(1)]);
    forwarded(gate.admit(NOW, &submission(1, Some((15, 19)), 1)));
    forwarded(gate.admit(NOW, &submission(1, Some((20, 24)), 1)));
}

#[test]
fn r03_a_batch_waits_for_its_predecessor_that_is_kept_on_another_connection() {
    let mut gate = flipped();
    let first = forwarded(gate.admit(NOW, &submission(1, Some((10, 14)), 1)));
    let second = submission(2, Some((15, 19)), 1);
    let Admission::Hold { hold, .. } = gate.admit(NOW, &second) else { panic!("not held") };
    // Long after the flip, and with the first one still under way on its own connection.
    let later = NOW + GAP_WINDOW_MS;
    let third = submission(1, Some((20, 24)), 1);
    assert_eq!(reason(gate.admit(later, &third)), HoldReason::Kept);
    gate.complete(later, first, acked(200));
    assert_eq!(reason(gate.admit(later, &third)), HoldReason::Kept);
    let ticket = forwarded(gate.admit(later, &Submission { hold: Some(hold), ..second }));
    assert_eq!(gate.complete(later, ticket, acked(205)).wake, [SessionId(1)]);
    forwarded(gate.admit(later, &third));
}

#[test]
fn r03_epochs() {
    let mut gate = flipped();
    let epoch = |epoch, first, last| Submission {
        batch: Some(BatchId { pid: 1 << 62, epoch, first, last }),
        ..submission(1, None, 1)
    };
    assert_eq!(reason(gate.admit(NOW, &epoch(1, 5, 9))), HoldReason::Gap);
    let much_later = gate.admit(NOW + FAILED_WINDOW_MS, &epoch(1, 5, 9));
    assert_eq!(much_later, Admission::Refuse(Refusal::OutOfOrderSequence));
    let ticket = forwarded(gate.admit(NOW, &epoch(1, 0, 9)));
    gate.complete(NOW, ticket, acked(300));
    assert_eq!(gate.admit(NOW, &epoch(0, 10, 14)), Admission::Refuse(Refusal::InvalidProducerEpoch));
}

#[test]
fn r04_a_retry_over_a_flip_is_answered_with_its_first_offset() {
    let mut gate = flipped();
    let retry = gate.admit(NOW, &submission(3, Some((0, 9)), 1));
    assert_eq!(retry, Admission::Duplicate(Some(VirtualOffset(100))));
    assert_eq!(gate.in_flight(), 0);
}

#[test]
fn r14_a_batch_planned_with_another_era_does_not_pass() {
    let mut gate = flipped();
    assert_eq!(reason(gate.admit(NOW, &submission(1, Some((10, 19)), 0))), HoldReason::Stale);
    assert_eq!(gate.in_flight(), 0);
}

#[test]
fn the_fence_holds_and_proves_the_drain() {
    let mut gate = PartitionGate::default();
    let ticket = forwarded(gate.admit(NOW, &submission(1, Some((0, 4)), 0)));
    gate.fence();
    assert!(!gate.is_drained());
    assert_eq!(reason(gate.admit(NOW, &submission(1, Some((5, 9)), 0))), HoldReason::Fence);
    assert!(gate.complete(NOW, ticket, acked(0)).drained);
    assert!(gate.is_drained());
    // The fence is lifted: nobody waits for the drain any more.
    let lifted = GateSignal { wake: vec![SessionId(1)], drained: false };
    assert_eq!((gate.release_unchanged(), gate.is_fenced()), (lifted.clone(), false));
    gate.fence();
    assert_eq!(reason(gate.admit(NOW, &submission(1, Some((5, 9)), 0))), HoldReason::Fence);
    assert_eq!(gate.release(NOW, 1, Carry::default()), lifted);
}

/// Held on the connection to a node that is stale, and sent directly by the same producer meanwhile (RULES R3).
#[test]
fn r03_what_a_producer_has_held_elsewhere_goes_first() {
    let mut gate = PartitionGate::default();
    gate.fence();
    let held = submission(1, Some((0, 4)), 0);
    let Admission::Hold { hold, .. } = gate.admit(NOW, &held) else { panic!("not held") };
    gate.release(NOW, 1, Carry::default());
    let next = submission(2, Some((5, 9)), 1);
    let mut other = submission(3, Some((0, 4)), 1);
    other.batch = Some(BatchId { pid: (1 << 62) + (1 << 16), epoch: 0, first: 0, last: 4 });
    assert_eq!(reason(gate.admit(NOW, &next)), HoldReason::Kept);
    forwarded(gate.admit(NOW, &other));
    let ticket = forwarded(gate.admit(NOW, &Submission { hold: Some(hold), era: 1, ..held }));
    assert_eq!(reason(gate.admit(NOW, &next)), HoldReason::OtherPath);
    assert_eq!(gate.complete(NOW, ticket, acked(0)).wake, [SessionId(2)]);
    forwarded(gate.admit(NOW, &next));
}

/// Without sequences it is the client that counts (RULES R1).
#[test]
fn r01_what_a_client_has_held_elsewhere_goes_first() {
    let mut gate = PartitionGate::default();
    gate.fence();
    let held = submission(1, None, 0);
    let Admission::Hold { hold, .. } = gate.admit(NOW, &held) else { panic!("not held") };
    gate.release(NOW, 1, Carry::default());
    let next = submission(2, None, 1);
    assert_eq!(reason(gate.admit(NOW, &next)), HoldReason::Kept);
    forwarded(gate.admit(NOW, &Submission { client: ClientKey(99), ..next }));
    forwarded(gate.admit(NOW, &Submission { hold: Some(hold), era: 1, ..held }));
    assert_eq!(reason(gate.admit(NOW, &next)), HoldReason::OtherPath);
}

#[test]
fn a_hold_that_is_dropped_lets_the_others_go_on() {
    let mut gate = PartitionGate::default();
    gate.fence();
    let Admission::Hold { hold, .. } = gate.admit(NOW, &submission(1, Some((0, 4)), 0)) else {
        panic!("not held")
    };
    gate.release(NOW, 1, Carry::default());
    assert_eq!(reason(gate.admit(NOW, &submission(2, Some((5, 9)), 1))), HoldReason::Kept);
    assert_eq!(gate.drop_hold(NOW, hold).wake, [SessionId(2)]);
    // One that is gone holds nobody up.
    assert_eq!(reason(gate.admit(NOW, &submission(2, Some((5, 9)), 0))), HoldReason::Stale);
    assert_eq!(gate.drop_hold(NOW, hold), GateSignal::default());
    assert_eq!(
        reason(gate.admit(NOW, &submission(2, Some((5, 9)), 1))),
        HoldReason::Gap,
        "it may come again"
    );
    forwarded(gate.admit(NOW, &submission(2, Some((0, 4)), 1)));
}

#[test]
fn a_batch_queued_behind_a_waiting_one_does_not_block_it() {
    let mut gate = flipped();
    let first = forwarded(gate.admit(NOW, &submission(1, Some((10, 14)), 1)));
    let second = submission(1, Some((15, 19)), 1);
    let Admission::Hold { hold, .. } = gate.admit(NOW, &second) else { panic!("not held") };
    gate.queue(&submission(1, Some((20, 24)), 1).kept());
    gate.complete(NOW, first, acked(200));
    forwarded(gate.admit(NOW, &Submission { hold: Some(hold), ..second }));
}

/// A gate in era 1 after a start: the owner lists the producer up to sequence 29, last written `age_ms` ago.
fn seeded(age_ms: i64) -> PartitionGate {
    let carry = flipped().carry().clone();
    let mut gate = PartitionGate::restored(1, carry);
    gate.fence();
    let row =
        DescribedProducer { pid: 1 << 62, epoch: 0, last_sequence: 29, last_timestamp_ms: NOW - age_ms };
    assert_eq!(gate.seed(&[row], 0, NOW), 1);
    gate.release_unchanged();
    gate
}

#[test]
fn r04_what_only_the_owner_can_place_is_asked_of_it() {
    let mut gate = seeded(5_000);
    let retry = submission(1, Some((20, 29)), 1);
    let Admission::Recall(ticket) = gate.admit(NOW, &retry) else { panic!("the owner is not asked") };
    gate.complete(NOW, ticket, acked(120));
    assert_eq!(gate.admit(NOW, &retry), Admission::Duplicate(Some(VirtualOffset(120))));
    forwarded(gate.admit(NOW, &submission(1, Some((30, 34)), 1)));
}

#[test]
fn r04_an_owner_that_may_have_forgotten_the_producer_is_not_asked() {
    let mut gate = seeded(20 * 60 * 1000);
    assert_eq!(gate.admit(NOW, &submission(1, Some((20, 29)), 1)), Admission::Duplicate(None));
}

#[test]
fn r04_a_new_owner_is_not_asked_for_what_lies_with_the_old_one() {
    let mut gate = seeded(5_000);
    gate.fence();
    let carry = gate.carry().clone();
    gate.release(NOW, 2, carry);
    assert_eq!(gate.admit(NOW, &submission(1, Some((20, 29)), 2)), Admission::Duplicate(None));
}

#[test]
fn producers_that_have_not_written_for_a_day_are_forgotten_when_there_are_many() {
    let mut gate = PartitionGate::default();
    let write = |gate: &mut PartitionGate, pid: i64, now_ms: i64| {
        let mut one = submission(1, Some((0, 0)), 0);
        one.batch = one.batch.map(|batch| BatchId { pid, ..batch });
        let ticket = forwarded(gate.admit(now_ms, &one));
        gate.complete(now_ms, ticket, acked(pid));
    };
    (0..20_000).for_each(|pid| write(&mut gate, pid, NOW));
    let under_way = forwarded(gate.admit(NOW, &submission(2, Some((0, 0)), 0)));
    (20_000..50_000).for_each(|pid| write(&mut gate, pid, NOW + carry::EXPIRY_MS));
    assert!(gate.pids.len() < 40_000, "{}", gate.pids.len());
    assert!(gate.in_flight.contains_key(&under_way) && gate.pids.contains_key(&(1 << 62)));
}

#[test]
fn r02_what_a_session_leaves_behind_blocks_neither_a_flip_nor_other_connections() {
    let mut gate = PartitionGate::default();
    let known = forwarded(gate.admit(NOW, &submission(1, Some((0, 9)), 0)));
    gate.complete(NOW, known, acked(0));
    forwarded(gate.admit(NOW, &submission(1, Some((10, 19)), 0)));
    forwarded(gate.admit(NOW, &submission(1, None, 0)));
    let another = Submission { client: ClientKey(8), ..submission(3, None, 0) };
    let lasting = forwarded(gate.admit(NOW, &another));
    assert_eq!(reason(gate.admit(NOW, &submission(2, Some((20, 29)), 0))), HoldReason::OtherPath);
    gate.fence();
    assert_eq!(reason(gate.admit(NOW, &submission(1, Some((20, 29)), 0))), HoldReason::Fence);
    let signal = gate.abandon(NOW, SessionId(1));
    assert_eq!((signal.wake.as_slice(), gate.in_flight(), gate.held()), (&[SessionId(2)][..], 1, 0));
    assert_eq!(gate.unknown_since_ms(), Some(NOW), "a flip may not take it for quiet");
    assert!(gate.complete(NOW, lasting, acked(30)).drained);
    gate.release_unchanged();
    forwarded(gate.admit(NOW, &submission(2, Some((10, 19)), 0)));
}

/// A transactional id that was at the other side for a transaction: a log that was never flipped does not know its producer.
#[test]
fn r03_in_era_0_a_native_id_begins_with_one_batch_too() {
    let mut gate = PartitionGate::default();
    let known = forwarded(gate.admit(NOW, &submission(1, Some((0, 9)), 0)));
    gate.complete(NOW, known, acked(0));
    let moved = |seq| Submission { native: Some(8), ..submission(1, Some(seq), 0) };
    let first = forwarded(gate.admit(NOW, &moved((10, 19))));
    assert_eq!(reason(gate.admit(NOW, &moved((20, 29)))), HoldReason::Unconfirmed);
    gate.complete(NOW, first, Outcome::NotAppended);
    let refusal = gate.admit(NOW, &moved((20, 29)));
    assert_eq!(refusal, Admission::Refuse(Refusal::BehindFailed), "the first comes again");
    let first = forwarded(gate.admit(NOW, &moved((10, 19))));
    gate.complete(NOW, first, acked(10));
    forwarded(gate.admit(NOW, &moved((20, 29))));
    forwarded(gate.admit(NOW, &moved((30, 39))));
}

/// Idle for longer than anybody remembers producers, or pushed out of the carry; long after the flip. Its batch fails once.
#[test]
fn r03_a_batch_that_failed_itself_lacks_nobody_before_it() {
    let mut gate = PartitionGate::default();
    gate.fence();
    gate.release(NOW - 10 * FAILED_WINDOW_MS, 1, Carry::default());
    let batch = submission(1, Some((50, 59)), 1);
    let ticket = forwarded(gate.admit(NOW, &batch));
    gate.complete(NOW, ticket, Outcome::NotAppended);
    let mut refused = 0;
    let mut at = NOW + 100;
    while !matches!(gate.admit(at, &Submission { arrived_ms: at, ..batch }), Admission::Forward(_)) {
        refused += 1;
        at += 100;
        assert!(at < NOW + 120_000);
    }
    assert_eq!(refused, 0, "refused for {} ms", at - NOW);
}

/// Not carried, and it writes again right after a flip: one before it may still be on its way, as long as a client waits for an
/// answer; not longer, however often it is refused.
#[test]
fn r03_a_producer_that_is_not_carried_goes_on_when_nothing_can_be_on_its_way_any_more() {
    let mut gate = PartitionGate::default();
    gate.fence();
    gate.release(NOW, 1, Carry::default());
    let mut at = NOW + 10;
    let mut refused = Vec::new();
    loop {
        let batch = Submission { arrived_ms: at, ..submission(1, Some((50, 59)), 1) };
        let mut hold = None;
        let mut told = gate.admit(at, &batch);
        if let Admission::Hold { hold: held, deadline_ms: Some(deadline), .. } = told {
            (at, hold) = (deadline, Some(held));
            told = gate.admit(at, &Submission { hold, ..batch });
        }
        if matches!(told, Admission::Forward(_)) {
            break;
        }
        refused.push(told);
        hold.map(|hold| gate.drop_hold(at, hold));
        at += 100;
        assert!(at < NOW + 300_000, "{}", refused.len());
    }
    assert!(at - NOW <= FAILED_WINDOW_MS + 100, "for {} ms: {:?}", at - NOW, refused.last());
    assert!(refused.iter().all(|told| *told == Admission::Refuse(Refusal::BehindFailed)), "{refused:?}");
}

/// A producer that is started again and again, each time with an id of its own, and refused each time (too large, not allowed).
#[test]
fn producers_that_are_always_refused_are_forgotten() {
    let mut gate = PartitionGate::default();
    for pid in 0..100_000_i64 {
        let at = NOW + pid * 1_000;
        let batch = Some(BatchId { pid, epoch: 0, first: 0, last: 0 });
        let ticket =
            forwarded(gate.admit(at, &Submission { batch, arrived_ms: at, ..submission(1, None, 0) }));
        gate.complete(at, ticket, Outcome::NotAppended);
    }
    assert!(gate.pids.len() <= 2 * PRODUCERS_MIN, "{} remembered after a day", gate.pids.len());
}

/// In era 1 a transactional id writes to the topic, is at the other side for a transaction, and comes back under another
/// alias for another topic. Then the proxy is started again.
#[test]
fn r13_what_an_id_wrote_under_an_earlier_alias_is_known_after_a_start() {
    use crate::producer::transaction::{Identity, TransactionRoute, TransactionTable};
    let client = Identity { pid: 1000, epoch: 3 };
    let native = |pid| Identity { pid, epoch: 0 };
    let mut route = TransactionRoute::moved(None, (ClusterSide::Target, 2), client, native(7));
    for (home, alias, pid) in [(ClusterSide::Source, 1, 9), (ClusterSide::Target, 3, 8)] {
        route = TransactionRoute::moved(Some(&route), (home, alias), client, native(pid));
    }
    let table = TransactionTable(BTreeMap::from([(std::sync::Arc::from("pay"), route)]));
    // What SEAL has stored, and what the owner lists: it wrote up to 99 under alias 2, as producer 7.
    let mut carry = Carry::default();
    carry.record_ack(client.pid, client.epoch, 30, 39, None, NOW);
    let mut gate = PartitionGate::restored(1, carry);
    let rows: Vec<_> = table
        .clients_of(ClusterSide::Target, Identity { pid: 7, epoch: 0 })
        .map(|known| DescribedProducer {
            pid: known.pid,
            epoch: i32::from(known.epoch),
            last_sequence: 99,
            last_timestamp_ms: NOW,
        })
        .collect();
    gate.seed(&rows, 0, NOW);
    let batch = Some(BatchId { pid: client.pid, epoch: client.epoch, first: 100, last: 100 });
    let told = [10, FAILED_WINDOW_MS + 10].map(|after| {
        let at = NOW + after;
        gate.admit(at, &Submission { batch, arrived_ms: at, ..submission(1, None, 1) })
    });
    assert!(matches!(told[0], Admission::Forward(_)), "{told:?}");
}
