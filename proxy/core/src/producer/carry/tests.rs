use super::CarryVerdict::{AlreadyAppended, Duplicate, Gap, NewEpoch, Next, Overlap, StaleEpoch, Unknown};
use super::*;
use proptest::prelude::*;

const P: i64 = (1 << 62) | (7 << 16);
const MAX: i32 = i32::MAX;

fn at(offset: i64) -> Option<VirtualOffset> {
    Some(VirtualOffset(offset))
}

fn row(pid: i64, epoch: i32, last_sequence: i32) -> DescribedProducer {
    DescribedProducer { pid, epoch, last_sequence, last_timestamp_ms: 0 }
}

/// Batches acknowledged in epoch 1 at time 0.
fn acked(batches: &[(i32, i32, Option<VirtualOffset>)]) -> Carry {
    let mut carry = Carry::default();
    for &(first, last, base) in batches {
        carry.record_ack(P, 1, first, last, base, 0);
    }
    carry
}

#[test]
fn r04_retries_are_told_from_new_batches() {
    // Six batches of two; the first is no longer remembered.
    let six =
        [(0, 1, at(50)), (2, 3, at(52)), (4, 5, at(54)), (6, 7, None), (8, 9, at(58)), (10, 11, at(60))];
    let carry = acked(&six);
    let cases = [
        (1, 10, 11, Duplicate(at(60))),
        (1, 2, 3, Duplicate(at(52))),
        (1, 6, 7, Duplicate(None)),
        (1, 0, 1, AlreadyAppended),
        (1, 2, 5, AlreadyAppended),
        (1, 11, 11, AlreadyAppended),
        (1, 10, 12, Overlap),
        (1, 11, 12, Overlap),
        (1, 0, 500, Overlap),
        (1, 12, 12, Next),
        (1, 12, 900, Next),
        (1, 13, 13, Gap),
        (1, 1_000_000, 1_000_001, Gap),
        (0, 10, 11, StaleEpoch),
        (0, 12, 12, StaleEpoch),
        (2, 0, 3, NewEpoch),
        (2, 12, 12, NewEpoch),
        (1, -1, -1, Gap),
        (1, -5, 3, Gap),
        (1, 9, 8, Overlap),
    ];
    for (epoch, first, last, expected) in cases {
        assert_eq!(carry.judge(P, epoch, first, last), expected, "epoch {epoch}, {first}..={last}");
    }
    assert_eq!(carry.judge(P + (1 << 16), 1, 10, 11), Unknown);
}

#[test]
fn r04_sequences_wrap_also_inside_a_batch() {
    let carry = acked(&[(MAX - 3, MAX - 2, at(10)), (MAX - 1, 1, at(12)), (2, 2, at(15))]);
    let cases = [
        (MAX - 1, 1, Duplicate(at(12))),
        (MAX - 3, MAX - 2, Duplicate(at(10))),
        (MAX, 0, AlreadyAppended),
        (MAX - 9, MAX - 8, AlreadyAppended),
        (MAX, 3, Overlap),
        (3, 3, Next),
        (4, 4, Gap),
    ];
    for (first, last, expected) in cases {
        assert_eq!(carry.judge(P, 1, first, last), expected, "{first}..={last}");
    }
    let at_the_end = acked(&[(MAX - 1, MAX, at(1))]);
    assert_eq!(at_the_end.judge(P, 1, 0, 4), Next);
    assert_eq!(at_the_end.judge(P, 1, 1, 4), Gap);
    assert_eq!(at_the_end.judge(P, 1, MAX, 0), Overlap);
}

#[test]
fn r04_acknowledgements_in_any_order_give_the_same_memory() {
    let one = (MAX - 1, 0, at(1));
    let (two, three) = ((1, 4, at(4)), (5, 5, at(8)));
    let ordered = acked(&[one, two, three]);
    for order in [[one, three, two], [three, two, one], [two, one, three]] {
        assert_eq!(acked(&order), ordered);
    }
    assert_eq!(acked(&[one, one, two, three, two]), ordered);
    assert_eq!(ordered.get(P).unwrap().last_sequence, 5);
}

#[test]
fn r04_a_known_offset_is_kept_and_an_unknown_one_filled() {
    assert_eq!(acked(&[(0, 1, None), (0, 1, at(9))]).judge(P, 1, 0, 1), Duplicate(at(9)));
    assert_eq!(acked(&[(0, 1, at(9)), (0, 1, None)]).judge(P, 1, 0, 1), Duplicate(at(9)));
}

#[test]
fn epochs_replace_each_other_upwards_only() {
    let mut carry = acked(&[(40, 44, at(9))]);
    carry.record_ack(P, 2, 0, 3, at(20), 5);
    assert_eq!(carry.judge(P, 2, 0, 3), Duplicate(at(20)));
    assert_eq!(carry.judge(P, 2, 40, 44), Gap);
    carry.record_ack(P, 1, 45, 49, at(14), 6);
    assert_eq!(carry.judge(P, 2, 4, 4), Next);
    assert_eq!(carry.judge(P, 1, 45, 49), StaleEpoch);
}

#[test]
fn impossible_acknowledgements_are_not_recorded() {
    let mut carry = Carry::default();
    for (pid, epoch, first, last) in [(-1, 0, 0, 0), (P, -1, 0, 0), (P, 0, -1, 0), (P, 0, 0, -1)] {
        carry.record_ack(pid, epoch, first, last, at(0), 0);
    }
    assert!(carry.is_empty());
}

#[test]
fn r05_rows_overlay_only_what_they_are_ahead_of() {
    let cases = [
        // (epoch, last) of the row, then whether it is newer than epoch 1, last 11.
        (1, 11, false),
        (1, 10, false),
        (1, 12, true),
        (1, -1, false),
        (1, MAX, false),
        (1, HALF + 10, true),
        (1, HALF + 11, false),
        (0, 500, false),
        (2, 0, true),
        (2, -1, true),
        (-1, 500, false),
        (40_000, 500, false),
        (1, -2, false),
    ];
    for (epoch, last, newer) in cases {
        let mut carry = acked(&[(10, 11, at(60))]);
        assert_eq!(
            carry.overlay_described(&[row(P, epoch, last)], 0, 0),
            usize::from(newer),
            "{epoch} {last}"
        );
        assert_eq!(carry.get(P).unwrap().last_sequence, if newer { last } else { 11 });
    }
}

#[test]
fn r05_rows_that_name_no_producer_or_no_sequence_are_passed_over() {
    let mut carry = Carry::default();
    assert_eq!(carry.overlay_described(&[row(-1, 0, 5), row(5, 0, -2), row(-1, 0, -2)], 0, 0), 0);
    assert!(carry.is_empty());
}

#[test]
fn r05_a_row_ahead_keeps_the_batches_that_were_seen() {
    let mut carry = acked(&[(10, 11, at(60))]);
    carry.overlay_described(&[row(P, 1, 20)], 0, 0);
    assert_eq!(carry.judge(P, 1, 10, 11), Duplicate(at(60)));
    assert_eq!(carry.judge(P, 1, 12, 20), AlreadyAppended);
    assert_eq!(carry.judge(P, 1, 21, 22), Next);
    // The acknowledgement comes after the row.
    carry.record_ack(P, 1, 12, 20, at(62), 0);
    assert_eq!(carry.judge(P, 1, 12, 20), Duplicate(at(62)));
}

#[test]
fn r05_a_new_row_has_no_offsets_and_an_empty_epoch_starts_at_zero() {
    let mut carry = Carry::default();
    carry.overlay_described(&[row(5, 0, 7), row(6, 3, -1)], 4, 0);
    assert_eq!(carry.judge(5, 0, 7, 7), AlreadyAppended);
    assert_eq!(carry.judge(5, 0, 8, 8), Next);
    assert_eq!(carry.judge(6, 3, 0, 2), Next);
    assert_eq!(carry.judge(6, 3, 1, 2), Gap);
}

#[test]
fn r05_the_first_producer_and_the_first_epoch_of_a_cluster_count_like_any_other() {
    let mut carry = Carry::default();
    assert_eq!(carry.overlay_described(&[row(0, 0, 0)], 0, 0), 1);
    assert_eq!(carry.judge(0, 0, 0, 0), AlreadyAppended);
    carry.record_ack(0, 0, 1, 1, at(0), 0);
    assert_eq!(carry.judge(0, 0, 1, 1), Duplicate(at(0)), "the first of a log");
}

#[test]
fn r06_only_rows_of_this_visit_count() {
    let mut carry = Carry::default();
    let rows = [row(pid::with_visit(P, 1), 1, 100), row(pid::with_visit(P, 2), 1, 50), row(77, 0, 3)];
    assert_eq!(carry.overlay_described(&rows, 2, 0), 2);
    assert_eq!(carry.get(P).unwrap().last_sequence, 50);
    assert_eq!(carry.get(77).unwrap().last_sequence, 3);
    let pids: Vec<i64> = carry.iter().map(|(pid, _)| pid).collect();
    assert_eq!(pids, [77, P]);
}

#[test]
fn r04_an_owner_knows_producers_of_this_visit_that_have_written_lately() {
    let now = 10 * EXPIRY_MS;
    let rows = |pid: i64, last_sequence: i32, age_ms: i64| {
        [DescribedProducer { last_timestamp_ms: now - age_ms, ..row(pid, 0, last_sequence) }]
    };
    let known = |rows: &[DescribedProducer]| known_to_owner(rows, 2, now).collect::<Vec<_>>();
    let here = pid::with_visit(P, 2);
    assert_eq!(known(&rows(here, 0, 0)), [P], "as clients know it");
    assert_eq!(known(&rows(here, 0, RECALL_AGE_MAX_MS - 1)), [P]);
    assert_eq!(known(&rows(0, 7, 0)), [0], "others have no visits");
    for unknown in [rows(here, 0, RECALL_AGE_MAX_MS), rows(here, -1, 0), rows(P, 0, 0), rows(-1, 0, 0)] {
        assert_eq!(known(&unknown), [], "{unknown:?}");
    }
}

#[test]
fn r05_merging_is_cumulative() {
    let previous = acked(&[(0, 1, at(10)), (2, 3, at(12))]);
    let mut idle = Carry::default();
    idle.merge(&previous);
    assert_eq!(idle, previous);

    let mut continued = acked(&[(4, 5, at(14))]);
    continued.merge(&previous);
    assert_eq!(continued, acked(&[(0, 1, at(10)), (2, 3, at(12)), (4, 5, at(14))]));

    let mut later_epoch = Carry::default();
    later_epoch.record_ack(P, 2, 0, 0, at(99), 0);
    let expected = later_epoch.clone();
    later_epoch.merge(&previous);
    assert_eq!(later_epoch, expected);

    // So is the count of those that there was no room for.
    let crowded = || {
        let mut carry = Carry::with_limit(1);
        (0..3).for_each(|pid| carry.record_ack(pid, 0, 0, 0, None, pid));
        carry
    };
    let mut both = Carry::default();
    both.merge(&crowded());
    both.merge(&crowded());
    assert_eq!((crowded().evicted(), both.evicted()), (2, 4));
}

#[test]
fn r05_entries_expire_24_hours_after_their_last_batch() {
    let mut carry = Carry::default();
    carry.record_ack(1, 0, 0, 0, at(0), 1_000);
    carry.record_ack(2, 0, 0, 0, at(1), 2_000);
    carry.record_ack(1, 0, 1, 1, at(2), 3_000);
    assert_eq!(carry.expire(2_000 + EXPIRY_MS - 1), 0);
    assert_eq!(carry.expire(2_000 + EXPIRY_MS), 1);
    assert!(carry.get(1).is_some() && carry.get(2).is_none());
    assert_eq!(carry.expire(3_000 + EXPIRY_MS), 1);
    assert!(carry.is_empty());
}

#[test]
fn r05_a_clock_set_back_does_not_keep_an_entry_for_ever() {
    let mut carry = Carry::default();
    carry.record_ack(1, 0, 0, 0, at(0), i64::MAX);
    assert_eq!(carry.expire(5_000), 0);
    assert_eq!(carry.expire(5_000 + EXPIRY_MS), 1);
}

#[test]
fn r05_the_age_of_a_listed_producer_is_bounded_by_the_flip() {
    let now = 10 * EXPIRY_MS;
    for (timestamp, seen) in [
        (now - 5, now - 5),
        (now + 5, now),
        (i64::MAX, now),
        (0, now - LISTED_AGE_MAX_MS),
        (i64::MIN, now - LISTED_AGE_MAX_MS),
    ] {
        let mut carry = Carry::default();
        carry.overlay_described(
            &[DescribedProducer { last_timestamp_ms: timestamp, ..row(P, 0, 0) }],
            0,
            now,
        );
        assert_eq!(carry.get(P).unwrap().last_seen_ms, seen, "{timestamp}");
        assert_eq!(carry.expire(now), 0);
    }
}

#[test]
fn r05_the_size_is_capped_and_the_oldest_go() {
    let mut carry = Carry::with_limit(3);
    for (pid, now) in [(1, 10), (2, 20), (3, 30), (1, 40), (4, 50)] {
        carry.record_ack(pid, 0, 0, 0, at(0), now);
    }
    let pids: Vec<i64> = carry.iter().map(|(pid, _)| pid).collect();
    assert_eq!((pids, carry.evicted()), (vec![1, 3, 4], 1));
    carry.set_limit(1);
    let pids: Vec<i64> = carry.iter().map(|(pid, _)| pid).collect();
    assert_eq!((pids, carry.evicted()), (vec![4], 3));
    carry.set_limit(0);
    assert_eq!((carry.len(), Carry::with_limit(0).limit), (1, 1), "the newest is always kept");
}

#[test]
fn r05_up_to_the_limit_nobody_goes_and_beyond_it_a_few_at_once() {
    let mut carry = Carry::with_limit(128);
    assert!(carry.is_empty());
    (0..128).for_each(|pid| carry.record_ack(pid, 0, 0, 0, None, pid));
    assert_eq!((carry.len(), carry.evicted(), carry.is_empty()), (128, 0, false));
    carry.set_limit(128);
    assert_eq!(carry.len(), 128);
    carry.record_ack(128, 0, 0, 0, None, 128);
    assert_eq!((carry.len(), carry.evicted()), (127, 2), "a 64th part of the limit");
    assert_eq!(carry.iter().next().map(|(pid, _)| pid), Some(2), "the oldest");
}

#[test]
fn r05_the_default_cap_holds_under_many_producers() {
    let mut carry = Carry::default();
    for pid in 0..25_000 {
        carry.record_ack(pid, 0, 0, 0, None, pid);
        assert!(carry.len() <= PIDS_MAX);
    }
    assert!(carry.len() > PIDS_MAX * 9 / 10);
    assert_eq!(carry.evicted(), 25_000 - u64::try_from(carry.len()).unwrap());
    assert!(carry.get(24_999).is_some() && carry.get(14_000).is_none());
}

#[test]
fn a_producer_that_has_written_nothing_in_its_epoch_is_stored_too() {
    let mut carry = Carry::default();
    carry.overlay_described(&[row(P, 3, -1)], 0, 5);
    assert_eq!(Carry::decode(&carry.encode()), Ok(carry.clone()));
    assert_eq!(carry.judge(P, 3, 0, 4), Next);
}

#[test]
fn decoding_refuses_what_encoding_does_not_write() {
    let good = acked(&[(0, 1, at(10)), (2, 3, None)]).encode();
    assert_eq!(good.len(), 5 + 23 + 2 * 16);
    let with = |at: usize, bytes: &[u8]| {
        let mut out = good.clone();
        out[at..at + bytes.len()].copy_from_slice(bytes);
        out
    };
    let cases = [
        (Vec::new(), CarryDecodeError::Truncated),
        (with(0, &[2]), CarryDecodeError::Version(2)),
        (good[..good.len() - 1].to_vec(), CarryDecodeError::Truncated),
        ([&good[..], &[0]].concat(), CarryDecodeError::Trailing(1)),
        (with(1, &[0xFF; 4]), CarryDecodeError::Truncated),
        (with(5, &(-1_i64).to_be_bytes()), CarryDecodeError::Entry(-1)),
        (with(5, &(P + 1).to_be_bytes()), CarryDecodeError::Entry(P + 1)),
        (with(13, &[0xFF; 2]), CarryDecodeError::Entry(P)),
        (with(27, &[6]), CarryDecodeError::Entry(P)),
        (with(28, &[0xFF; 4]), CarryDecodeError::Entry(P)),
        (with(36, &(-2_i64).to_be_bytes()), CarryDecodeError::Entry(P)),
    ];
    for (bytes, expected) in cases {
        assert_eq!(Carry::decode(&bytes), Err(expected));
    }
    // One without batches, which has written nothing in its epoch: before that there is nothing.
    let mut empty = Carry::default();
    empty.overlay_described(&[row(P, 3, -1)], 0, 5);
    let mut before = empty.encode();
    before[15..19].copy_from_slice(&(-2_i32).to_be_bytes());
    assert_eq!(Carry::decode(&before), Err(CarryDecodeError::Entry(P)));
    let twice = [&[1, 0, 0, 0, 2], &good[5..], &good[5..]].concat();
    assert_eq!(Carry::decode(&twice), Err(CarryDecodeError::Entry(P)));
}

/// (pid, epoch, first, last, base, time) of an acknowledgement.
type Ack = (i64, i16, i32, i32, Option<i64>, i64);

fn operations() -> impl Strategy<Value = Vec<Ack>> {
    let sequence = || prop_oneof![0..40_i32, (MAX - 40)..=MAX];
    let operation =
        (0..4_i64, 0..3_i16, sequence(), sequence(), proptest::option::of(0..1_000_i64), 0..1_000_i64);
    proptest::collection::vec(operation, 0..60)
}

fn carry_of(operations: &[Ack]) -> Carry {
    let mut carry = Carry::default();
    for &(pid, epoch, first, last, base, now) in operations {
        carry.record_ack(pid, epoch, first, last, base.map(VirtualOffset), now);
    }
    carry
}

/// A sequence of an unbounded count, as it stands in a batch.
fn wrapped(sequence: i64) -> i32 {
    i32::try_from(sequence.rem_euclid(1 << 31)).unwrap()
}

proptest! {
    #[test]
    fn encoding_round_trips(operations in operations()) {
        let carry = carry_of(&operations);
        prop_assert_eq!(Carry::decode(&carry.encode()), Ok(carry));
    }

    #[test]
    fn decoding_never_panics(mut bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        if let Some(version) = bytes.first_mut() {
            *version = codec::VERSION;
        }
        if let Ok(carry) = Carry::decode(&bytes) {
            prop_assert_eq!(carry.encode(), bytes);
        }
    }

    #[test]
    fn damaged_encodings_never_panic(operations in operations(), at: prop::sample::Index, byte: u8) {
        let mut bytes = carry_of(&operations).encode();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        if let Ok(carry) = Carry::decode(&bytes) {
            prop_assert_eq!(carry.encode(), bytes);
        }
    }

    #[test]
    fn r05_merging_never_takes_a_producer_back(a in operations(), b in operations()) {
        let (a, b) = (carry_of(&a), carry_of(&b));
        let mut both = a.clone();
        both.merge(&b);
        for (pid, entry) in a.iter().chain(b.iter()) {
            let merged = both.get(pid).unwrap();
            prop_assert!(!is_newer((entry.epoch, entry.last_sequence), (merged.epoch, merged.last_sequence)));
            prop_assert!(merged.last_seen_ms >= entry.last_seen_ms || merged.epoch > entry.epoch);
            prop_assert!(merged.batches.len() <= BATCHES_MAX);
        }
        let again = both.clone();
        both.merge(&a);
        both.merge(&b);
        prop_assert_eq!(both, again);
    }

    #[test]
    fn judging_never_panics(operations in operations(), epoch: i16, first: i32, last: i32) {
        let carry = carry_of(&operations);
        for pid in [0, 1, i64::MIN, i64::MAX] {
            let known = carry.get(pid).is_some();
            prop_assert_eq!(carry.judge(pid, epoch, first, last) == Unknown, !known);
        }
    }

    /// A producer's contiguous batches, numbered without wrap as the model; every other batch against them.
    #[test]
    fn r04_verdicts_agree_with_unbounded_sequences(
        start in (1_i64 << 31) - 30..(1_i64 << 31) + 5,
        sizes in proptest::collection::vec(1_i64..6, 1..10),
        first_from in -60_i64..10,
        size in 1_i64..8,
    ) {
        let mut carry = Carry::default();
        let (mut next, mut appended) = (start, Vec::new());
        for &size in &sizes {
            let base = VirtualOffset(next * 2);
            carry.record_ack(P, 0, wrapped(next), wrapped(next + size - 1), Some(base), 0);
            appended.push((next, next + size - 1, base));
            next += size;
        }
        let (first, last) = (next + first_from, next + first_from + size - 1);
        let remembered = &appended[appended.len().saturating_sub(BATCHES_MAX)..];
        let expected = match remembered.iter().find(|b| (b.0, b.1) == (first, last)) {
            Some(known) => Duplicate(Some(known.2)),
            None if first == next => Next,
            None if first > next => Gap,
            None if last < next => AlreadyAppended,
            None => Overlap,
        };
        prop_assert_eq!(carry.judge(P, 0, wrapped(first), wrapped(last)), expected);
    }
}
