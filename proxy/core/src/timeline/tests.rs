//! The timeline against a brute-force model: two logs written slot by slot, every slot knowing its virtual offset.

use proptest::prelude::*;
use proptest::test_runner::TestCaseError;

use super::*;
use crate::ids::ClusterSide::{Source, Target};

const ID: u64 = 0xc0ffee;
const ROOMY: usize = 4096;

/// One native slot: which virtual offset it shows (none for what was appended to an idle side), and whether there is a
/// record in it or a hole (a transaction marker).
#[derive(Clone, Copy, Debug)]
struct Slot {
    image: Option<i64>,
    record: bool,
}

/// One flip of the model: what is written before it, and what is found on the new owner.
#[derive(Clone, Copy, Debug)]
struct Step {
    /// Slots the owner appends in its era; bit i of `holes` says that slot i is a hole.
    written: u8,
    holes: u8,
    /// Slots appended to the idle side (a forced flip).
    stray: u8,
    /// Leader elections of the era: before SEAL.
    elections: u8,
    /// An offset-preserving copy is made and sealed as such, where the logs allow it.
    identity: bool,
}

#[derive(Clone)]
struct Model {
    timeline: Timeline,
    logs: [Vec<Slot>; 2],
    /// By virtual offset: is there a record?
    log: Vec<bool>,
    epochs: [i32; 2],
    highest_epoch: i32,
}

impl Model {
    fn new() -> Model {
        Model {
            timeline: Timeline::initial(ID, Source),
            logs: [Vec::new(), Vec::new()],
            log: Vec::new(),
            epochs: [0, 0],
            highest_epoch: -1,
        }
    }

    fn build(steps: &[Step]) -> Model {
        let mut model = Model::new();
        steps.iter().for_each(|step| model.step(*step));
        model
    }

    fn side(&self) -> ClusterSide {
        self.timeline.current().side
    }

    fn step(&mut self, step: Step) {
        self.write(step);
        let to = self.side().other();
        let stray = Slot { image: None, record: true };
        self.logs[to.index()].extend(std::iter::repeat_n(stray, usize::from(step.stray)));
        let identity = step.identity && self.copy_to(to);
        let boundary = Boundary {
            to,
            old_native_end: NativeOffset(self.logs[self.side().index()].len() as i64),
            new_native_start: NativeOffset(self.logs[to.index()].len() as i64),
            old_native_epoch: self.epochs[self.side().index()],
            highest_virtual_epoch_seen: self.highest_epoch,
            new_native_epoch: self.epochs[to.index()],
            identity,
            at_ms: 1_700_000_000_000 + self.log.len() as i64,
        };
        self.timeline = self.timeline.seal(&boundary).expect("a boundary read from the logs");
        self.see_epoch();
    }

    fn write(&mut self, step: Step) {
        let owner = self.side().index();
        for i in 0..step.written {
            let record = step.holes & (1 << (i % 8)) == 0;
            self.logs[owner].push(Slot { image: Some(self.log.len() as i64), record });
            self.log.push(record);
        }
        for _ in 0..step.elections {
            self.epochs[owner] += 1;
            self.see_epoch();
        }
    }

    fn see_epoch(&mut self) {
        let era = self.timeline.current();
        let epoch =
            self.timeline.epoch_to_virtual(era.index, self.epochs[era.side.index()]).expect("in range");
        assert!(epoch >= self.highest_epoch, "virtual epochs fall");
        self.highest_epoch = epoch;
    }

    /// Makes `to` a full offset-preserving copy; false when what stands there already forbids it.
    fn copy_to(&mut self, to: ClusterSide) -> bool {
        let copy = &mut self.logs[to.index()];
        let skewed = self.timeline.on_side(to).any(|era| era.virtual_start.0 != era.native_start.0);
        if skewed || !copy.iter().enumerate().all(|(n, slot)| slot.image == Some(n as i64)) {
            return false;
        }
        let rest = self.log.iter().enumerate().skip(copy.len());
        copy.extend(rest.map(|(v, record)| Slot { image: Some(v as i64), record: *record }));
        true
    }

    fn end(&self) -> i64 {
        self.log.len() as i64
    }

    /// What a consumer that starts at `from` is given: every place read to its cut, then the next one.
    fn consume(&self, from: i64) -> Vec<i64> {
        let mut out = Vec::new();
        let mut place = Some(self.timeline.locate(VirtualOffset(from)));
        while let Some(at) = place {
            let log = &self.logs[at.side.index()];
            let end = at.end.map_or(log.len(), |end| end.0 as usize);
            for (n, slot) in log.iter().enumerate().take(end).skip(at.native.0 as usize) {
                let v = self.timeline.record_to_virtual(at.era, NativeOffset(n as i64));
                assert_eq!(v.map(|v| v.0), slot.image, "slot {n} of {}", at.side);
                out.extend(v.filter(|_| slot.record).map(|v| v.0));
            }
            place = self.timeline.next_place(at.era);
        }
        out
    }

    fn expected(&self, from: i64) -> Vec<i64> {
        (from..self.end()).filter(|v| self.log[*v as usize]).collect()
    }

    fn lowest_native_at_or_above(&self, side: ClusterSide, v: i64) -> Option<i64> {
        let position = self.logs[side.index()].iter().position(|slot| slot.image.is_some_and(|i| i >= v));
        position.map(|n| n as i64)
    }
}

fn step() -> impl Strategy<Value = Step> {
    let sizes = (0u8..12, any::<u8>(), prop_oneof![3 => Just(0u8), 1 => 1u8..4], 0u8..4);
    (sizes, prop::bool::weighted(0.3)).prop_map(|((written, holes, stray, elections), identity)| Step {
        written,
        holes,
        stray,
        elections,
        identity,
    })
}

/// Up to 8 eras; what is written last is in the current one.
fn steps() -> impl Strategy<Value = (Vec<Step>, Step)> {
    (prop::collection::vec(step(), 0..8), step())
}

fn model((flips, last): &(Vec<Step>, Step)) -> Model {
    let mut model = Model::build(flips);
    model.write(*last);
    model
}

fn plain(written: u8) -> Step {
    Step { written, holes: 0, stray: 0, elections: 0, identity: false }
}

/// Source 0..10, target 10..15, source 15..18 natively adjacent to the first era, target current.
fn four_eras() -> Timeline {
    Model::build(&[plain(10), plain(5), plain(3)]).timeline
}

fn boundary(to: ClusterSide, old_end: i64, new_start: i64) -> Boundary {
    Boundary {
        to,
        old_native_end: NativeOffset(old_end),
        new_native_start: NativeOffset(new_start),
        old_native_epoch: 0,
        highest_virtual_epoch_seen: -1,
        new_native_epoch: 0,
        identity: false,
        at_ms: 1,
    }
}

/// Every timeline of 3 flips with eras of 0..=2 slots, 0..=1 stray ones, with and without identity: 6³ · 2³ models.
fn small_models() -> impl Iterator<Item = Model> {
    (0..6u32.pow(3) * 8).map(|n| {
        let digit = |i: u32| n / 8 / 6u32.pow(i) % 6;
        let flips: Vec<Step> = (0..3)
            .map(|i| Step {
                written: (digit(i) % 3) as u8,
                holes: 0,
                stray: (digit(i) / 3) as u8,
                elections: i as u8,
                identity: n >> i & 1 == 1,
            })
            .collect();
        let mut model = Model::build(&flips);
        model.write(plain(2));
        model
    })
}

fn check_positions(model: &Model) -> Result<(), TestCaseError> {
    let timeline = &model.timeline;
    for v in 0..=model.end() {
        prop_assert_eq!(model.consume(v), model.expected(v), "resume at {}", v);
        let place = timeline.locate(VirtualOffset(v));
        prop_assert!(place.end.is_none_or(|end| place.native < end), "an empty place at {}", v);
        if v < model.end() {
            prop_assert_eq!(
                timeline.record_to_virtual(place.era, place.native),
                Some(VirtualOffset(v)),
                "round trip of {}",
                v
            );
        }
    }
    let beyond = timeline.locate(VirtualOffset(model.end() + 20));
    prop_assert_eq!((beyond.era, beyond.end), (timeline.current().index, None));
    for side in ClusterSide::BOTH {
        for (n, slot) in model.logs[side.index()].iter().enumerate() {
            let found = timeline.record_on_side(side, NativeOffset(n as i64));
            // What comes after the last slot of the model's owner is not written yet, so only written slots are asked.
            prop_assert_eq!(found.map(|(_, v)| v.0), slot.image, "slot {} of {}", n, side);
        }
    }
    Ok(())
}

fn check_eras(model: &Model) -> Result<(), TestCaseError> {
    let timeline = &model.timeline;
    let eras: Vec<&Era> = timeline.eras().collect();
    for pair in eras.windows(2) {
        let (old, new) = (pair[0], pair[1]);
        prop_assert_eq!(old.virtual_end(), Some(new.virtual_start));
        prop_assert!(new.epoch_base >= old.epoch_base + EPOCH_GAP);
        prop_assert_eq!(timeline.era(new.index), Some(new));
    }
    for side in ClusterSide::BOTH {
        let visits: Vec<u16> = timeline.on_side(side).map(|era| era.visit).collect();
        prop_assert_eq!(visits, (0..timeline.on_side(side).count() as u16).collect::<Vec<_>>());
        let mut end = 0;
        for era in timeline.on_side(side) {
            prop_assert!(era.native_start.0 >= end);
            end = era.native_end.map_or(i64::MAX, |end| end.0);
        }
    }
    prop_assert_eq!(Timeline::decode(&timeline.encode()), Ok(timeline.clone()));
    Ok(())
}

fn check_commits(model: &Model, later: &Timeline) -> Result<(), TestCaseError> {
    let timeline = &model.timeline;
    for side in ClusterSide::BOTH {
        let mut before = -1;
        for v in 0..=model.end() {
            let stored = to_stored(timeline, side, VirtualOffset(v), "mine", ROOMY);
            for seen_by in [timeline, later] {
                let found = resolve(seen_by, side, stored.native, &stored.metadata);
                prop_assert_eq!(found.position.0, v, "{:?} on {}", &stored, side);
                prop_assert_eq!(found.user_metadata, "mine");
                prop_assert_eq!(found.tagged, stored.tagged);
            }
            prop_assert!(stored.native >= before, "stored numbers fall at {}", v);
            before = stored.native;
            check_number(model, side, v, &stored)?;
            check_over_limit(model, later, side, v)?;
        }
    }
    Ok(())
}

/// The stored number is the largest that skips no record, and stands alone wherever it says it all.
fn check_number(
    model: &Model,
    side: ClusterSide,
    v: i64,
    stored: &StoredCommit,
) -> Result<(), TestCaseError> {
    let timeline = &model.timeline;
    let eras = timeline.on_side(side).count();
    let expected = match model.lowest_native_at_or_above(side, v) {
        Some(n) if eras > 0 => n,
        _ if side == model.side() => model.logs[side.index()].len() as i64,
        _ => timeline.side_end(side).map_or(0, |end| end.0),
    };
    prop_assert_eq!(stored.native, expected, "{} on {}", v, side);
    let alone = resolve(timeline, side, stored.native, "").position.0 == v;
    prop_assert_eq!(stored.tagged, eras == 0 || !alone);
    Ok(())
}

fn check_over_limit(model: &Model, later: &Timeline, side: ClusterSide, v: i64) -> Result<(), TestCaseError> {
    let user = "é".repeat(40);
    let stored = to_stored(&model.timeline, side, VirtualOffset(v), &user, 81);
    for seen_by in [&model.timeline, later] {
        let found = resolve(seen_by, side, stored.native, &stored.metadata);
        prop_assert!(found.position.0 <= v, "{:?} on {} skips to {:?}", &stored, side, found);
        if stored.tagged {
            prop_assert_eq!(found.position.0, v);
            prop_assert!(stored.metadata.len() <= 81 && user.starts_with(&found.user_metadata));
        } else {
            prop_assert_eq!(&stored.metadata, &user);
        }
    }
    if let Some(n) = model.lowest_native_at_or_above(side, v) {
        prop_assert!(stored.native <= n);
    }
    Ok(())
}

/// R25, R23 by counting slots.
fn check_deletes(model: &Model) -> Result<(), TestCaseError> {
    let timeline = &model.timeline;
    for v in 0..=model.end() {
        let mut starts: LogStarts = [Some(NativeOffset(0)); 2];
        for side in ClusterSide::BOTH {
            let cut = timeline.native_boundary_for_delete(side, VirtualOffset(v)).map_or(0, |n| n.0);
            let log = &model.logs[side.index()];
            prop_assert!(cut as usize <= log.len());
            let (deleted, kept) = log.split_at(cut as usize);
            prop_assert!(deleted.iter().all(|slot| slot.image.is_none_or(|i| i < v)), "r25 deletes too much");
            let visible = timeline.on_side(side).next().is_some();
            prop_assert!(!visible || kept.iter().all(|slot| slot.image.is_none_or(|i| i >= v)));
            starts[side.index()] = Some(NativeOffset(cut));
        }
        prop_assert_eq!(timeline.log_start_to_virtual(starts), Some(VirtualOffset(v)));
        let floored = timeline.with_floor(VirtualOffset(v));
        prop_assert_eq!(
            floored.log_start_to_virtual([Some(NativeOffset(0)); 2]),
            Some(VirtualOffset(v)),
            "the floor alone hides what is below"
        );
    }
    Ok(())
}

/// Any log starts: the log start is the first retained slot of the place walk, and nothing retained is skipped.
fn check_log_start(model: &Model, cuts: [u16; 2]) -> Result<(), TestCaseError> {
    let timeline = &model.timeline;
    let cut = |side: ClusterSide| usize::from(cuts[side.index()]) % (model.logs[side.index()].len() + 1);
    let starts = ClusterSide::BOTH.map(|side| Some(NativeOffset(cut(side) as i64)));
    let retained = |v: &i64| {
        let place = timeline.locate(VirtualOffset(*v));
        place.native.0 >= cut(place.side) as i64
    };
    for v in 0..=model.end() {
        let expected = (v..model.end()).find(retained).unwrap_or(model.end());
        let place = timeline.locate_retained(VirtualOffset(v), starts);
        let found = place.and_then(|place| timeline.record_to_virtual(place.era, place.native));
        prop_assert_eq!(found, Some(VirtualOffset(expected)), "r23 from {}", v);
    }
    let first = (0..model.end()).find(retained).unwrap_or(model.end());
    prop_assert_eq!(timeline.log_start_to_virtual(starts), Some(VirtualOffset(first)));
    Ok(())
}

fn check_epochs(model: &Model) -> Result<(), TestCaseError> {
    let timeline = &model.timeline;
    let mut below = -1;
    for era in timeline.eras() {
        let start = era.native_epoch_start;
        for native in start..start + 2 * EPOCH_GAP {
            let epoch = timeline.epoch_to_virtual(era.index, native).expect("in range");
            prop_assert!(epoch > below && epoch >= era.epoch_base);
            match era.virtual_end() {
                None => prop_assert_eq!(timeline.request_epoch(epoch), RequestEpoch::Native(native)),
                Some(end) => {
                    prop_assert_eq!(timeline.request_epoch(epoch), RequestEpoch::Older(era.index));
                    prop_assert_eq!(timeline.epoch_end(epoch), Some((epoch, end)));
                }
            }
        }
        below = timeline.epoch_to_virtual(era.index, i32::MAX / 2).expect("clamped or in range");
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn resume_at_any_position_loses_and_duplicates_nothing(spec in steps()) {
        let model = model(&spec);
        check_positions(&model)?;
        check_eras(&model)?;
    }

    #[test]
    fn r21_ends_stay_inside_their_era_and_rise(spec in steps(), low in -5i64..40) {
        let model = model(&spec);
        let timeline = &model.timeline;
        let leo = NativeOffset(model.logs[model.side().index()].len() as i64);
        prop_assert_eq!(timeline.exclusive_to_virtual(timeline.current().index, leo).0, model.end());
        let position = timeline.locate(VirtualOffset(model.end()));
        prop_assert_eq!(position.native, leo, "the position after the last record is the high watermark");
        for era in timeline.eras() {
            let (a, b) = (NativeOffset(low), NativeOffset(low + 1));
            let (a, b) =
                (timeline.exclusive_to_virtual(era.index, a), timeline.exclusive_to_virtual(era.index, b));
            prop_assert!(era.virtual_start <= a && a <= b);
            prop_assert!(era.virtual_end().is_none_or(|end| b <= end));
        }
    }

    #[test]
    fn r22_epochs_rise_strictly_over_every_flip(spec in steps()) {
        check_epochs(&model(&spec))?;
    }

    #[test]
    fn r23_log_start_is_the_first_retained_record(spec in steps(), cuts in any::<[u16; 2]>()) {
        check_log_start(&model(&spec), cuts)?;
    }

    #[test]
    fn r25_deletes_reach_to_the_position_on_each_side(spec in steps()) {
        check_deletes(&model(&spec))?;
    }

    #[test]
    fn r27_commits_resolve_to_themselves_now_and_after_later_flips(
        spec in steps(),
        flips in prop::collection::vec(step(), 1..4),
    ) {
        let before = model(&spec);
        let mut later = model(&spec);
        flips.iter().for_each(|step| later.step(*step));
        check_commits(&before, &later.timeline)?;
    }

    #[test]
    fn decode_never_panics_and_only_accepts_what_encode_writes(
        spec in steps(),
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        length in any::<prop::sample::Index>(),
    ) {
        let mut bytes = model(&spec).timeline.encode();
        for (at, value) in edits {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        prop_assert_eq!(Timeline::decode(&bytes[..length.index(bytes.len())]).ok(), None);
        if let Ok(timeline) = Timeline::decode(&bytes) {
            prop_assert_eq!(timeline.encode(), bytes);
        }
    }

    #[test]
    fn no_position_or_metadata_panics(
        spec in steps(), v in any::<i64>(), n in any::<i64>(), epoch in any::<i32>(), era in 0u32..10,
        metadata in "(xo1:)?[0-9a-fé:]{0,12}", limit in 0usize..64,
    ) {
        let timeline = model(&spec).timeline;
        let (v, n) = (VirtualOffset(v), NativeOffset(n));
        let place = timeline.locate(v);
        let _ = timeline.next_place(place.era);
        let _ = timeline.record_to_virtual(era, n);
        let _ = timeline.exclusive_to_virtual(era, n);
        let _ = timeline.locate_retained(v, [Some(n), Some(n)]);
        let _ = timeline.epoch_to_virtual(era, epoch);
        let _ = timeline.batch_epoch_to_virtual(era, n, epoch);
        let _ = timeline.epoch_end_to_virtual(epoch, n);
        let _ = timeline.epoch_end(epoch);
        for side in ClusterSide::BOTH {
            let _ = timeline.record_on_side(side, n);
            let _ = timeline.native_boundary_for_delete(side, v);
            let _ = resolve(&timeline, side, n.0, &metadata);
            let stored = to_stored(&timeline, side, v, &metadata, limit);
            if stored.tagged {
                prop_assert_eq!(resolve(&timeline, side, stored.native, &stored.metadata).position, v);
            }
        }
    }
}

#[test]
fn every_small_timeline_agrees_with_the_model() {
    for model in small_models() {
        let mut later = model.clone();
        later.step(Step { stray: 1, ..plain(1) });
        later.step(plain(0));
        check_positions(&model)
            .and_then(|()| check_eras(&model))
            .and_then(|()| check_deletes(&model))
            .and_then(|()| check_commits(&model, &later.timeline))
            .unwrap_or_else(|error| panic!("{error}: {:?}", model.timeline));
    }
}

#[test]
fn adjacent_eras_of_one_side_are_cut() {
    let timeline = four_eras();
    let place = timeline.locate(VirtualOffset(9));
    assert_eq!((place.side, place.native.0, place.end), (Source, 9, Some(NativeOffset(10))));
    assert_eq!(timeline.record_to_virtual(0, NativeOffset(10)), None, "that record is era 2's");
    assert_eq!(timeline.record_on_side(Source, NativeOffset(10)), Some((2, VirtualOffset(15))));
    let next = timeline.next_place(0).expect("three eras follow");
    assert_eq!((next.era, next.side, next.native.0), (1, Target, 0));
    assert_eq!(timeline.next_place(3), None);
}

#[test]
fn r06_visits_count_the_entries_of_each_side() {
    let visits: Vec<u16> = four_eras().eras().map(|era| era.visit).collect();
    assert_eq!(visits, [0, 0, 1, 1]);
}

#[test]
fn identity_reads_history_at_the_owner_and_stores_native_commits() {
    let copied = Step { identity: true, ..plain(10) };
    let timeline = Model::build(&[copied]).timeline;
    let place = timeline.locate(VirtualOffset(3));
    assert_eq!((place.era, place.side, place.native.0, place.end), (1, Target, 3, None));
    let stored = to_stored(&timeline, Target, VirtualOffset(0), "", ROOMY);
    assert_eq!((stored.native, stored.tagged), (0, false));
}

#[test]
fn seal_refuses_what_would_be_ambiguous() {
    let start = Timeline::initial(ID, Source);
    assert_eq!(start.seal(&boundary(Source, 5, 5)), Err(SealError::SameSide(Source)));
    let flipped = start.seal(&boundary(Target, 100, 40)).expect("a plain flip");
    assert_eq!(
        flipped.seal(&boundary(Source, 39, 100)),
        Err(SealError::EndBelowStart { side: Target, start: 40, end: 39 })
    );
    assert_eq!(
        flipped.seal(&boundary(Source, 50, 99)),
        Err(SealError::StartBelowFormerEnd { side: Source, end: 100, start: 99 })
    );
    assert!(matches!(
        start.seal(&boundary(Target, 5, -1)),
        Err(SealError::StartBelowFormerEnd { start: -1, .. })
    ));
    let without_epoch = Boundary { new_native_epoch: -1, ..boundary(Target, 5, 5) };
    assert_eq!(start.seal(&without_epoch), Err(SealError::EpochBelowStart { epoch: -1, start: 0 }));
    let identity = Boundary { identity: true, ..boundary(Target, 100, 99) };
    assert_eq!(start.seal(&identity), Err(SealError::NotIdentical(Target)));
    let skewed = flipped.seal(&boundary(Source, 50, 100)).expect("back");
    let identity = Boundary { identity: true, ..boundary(Target, 110, 120) };
    assert_eq!(skewed.seal(&identity), Err(SealError::NotIdentical(Target)), "era 1 has a delta");
    assert_eq!(
        flipped.seal(&boundary(Source, i64::MAX, 100)),
        Err(SealError::OffsetOverflow),
        "100 + (i64::MAX − 40)"
    );
}

#[test]
fn r21_an_end_read_late_or_truncated_stays_inside_its_era() {
    let timeline = Timeline::initial(ID, Source).seal(&boundary(Target, 100, 40)).expect("a plain flip");
    let end = |era, n| timeline.exclusive_to_virtual(era, NativeOffset(n)).0;
    assert_eq!([end(0, 90), end(0, 100), end(0, 130)], [90, 100, 100]);
    assert_eq!([end(1, 0), end(1, 40), end(1, 41)], [100, 100, 101]);
    assert_eq!(end(1, i64::MAX), i64::MAX, "a broker may say anything");
    let timeline = Timeline::initial(ID, Source).seal(&boundary(Target, 100, 160)).expect("a plain flip");
    assert_eq!(timeline.exclusive_to_virtual(1, NativeOffset(i64::MIN)).0, 100);
}

#[test]
fn r22_base_lies_above_everything_handed_out() {
    let start = Timeline::initial(ID, Source);
    let sealed = |old, seen| Boundary {
        old_native_epoch: old,
        highest_virtual_epoch_seen: seen,
        new_native_epoch: 3,
        ..boundary(Target, 10, 0)
    };
    let base = |old, seen| start.seal(&sealed(old, seen)).map(|timeline| timeline.current().epoch_base);
    assert_eq!(base(57, 12), Ok(57 + 1024));
    assert_eq!(base(57, 60), Ok(60 + 1024), "an epoch handed out and since fallen back still counts");
    assert_eq!(base(i32::MAX - 1023, 0), Err(SealError::EpochOverflow));

    let timeline = start.seal(&sealed(57, 57)).expect("a plain flip");
    let top = 57 + 1023;
    assert_eq!(timeline.epoch_to_virtual(0, 58), Ok(58));
    assert_eq!(timeline.epoch_to_virtual(0, 50_000), Ok(top), "learnt late");
    assert_eq!(timeline.epoch_to_virtual(1, 3), Ok(top + 1));
    let fallen = EpochError::BelowStart { era: 1, native: 2, start: 3 };
    assert_eq!(timeline.epoch_to_virtual(1, 2), Err(fallen));
    assert_eq!(timeline.epoch_to_virtual(1, -1), Ok(-1));
    assert_eq!(
        timeline.epoch_to_virtual(1, i32::MAX),
        Err(EpochError::Overflow { era: 1, native: i32::MAX })
    );
    assert_eq!(timeline.epoch_to_virtual(2, 3), Err(EpochError::UnknownEra(2)));
    let fallen = Boundary { old_native_epoch: 2, ..boundary(Source, 5, 10) };
    assert_eq!(timeline.seal(&fallen), Err(SealError::EpochBelowStart { epoch: 2, start: 3 }));
}

#[test]
fn r22_older_epochs_are_answered_without_the_owner() {
    let flip = Boundary { old_native_epoch: 57, new_native_epoch: 3, ..boundary(Target, 10, 0) };
    let timeline = Timeline::initial(ID, Source).seal(&flip).expect("a plain flip");
    assert_eq!(timeline.request_epoch(57), RequestEpoch::Older(0));
    assert_eq!(timeline.epoch_end(57), Some((57, VirtualOffset(10))));
    assert_eq!(timeline.request_epoch(57 + 1024 + 2), RequestEpoch::Native(5));
    assert_eq!(timeline.epoch_end(57 + 1024 + 2), None);
    assert_eq!(timeline.request_epoch(-1), RequestEpoch::Unknown(-1));
    let end = |epoch, n| timeline.epoch_end_to_virtual(epoch, NativeOffset(n)).expect("in range");
    assert_eq!(end(4, 6), (57 + 1025, VirtualOffset(16)));
    assert_eq!(end(1, 0), (57 + 1023, VirtualOffset(10)), "nothing of the asked epoch");
    assert_eq!(end(-1, -1), (-1, VirtualOffset(-1)));
    assert_eq!([end(-1, 6), end(4, -1)], [(-1, VirtualOffset(6)), (4, VirtualOffset(-1))], "undefined");
    assert_eq!(end(3, 0), (57 + 1024, VirtualOffset(10)), "the first of the era");
    let new_topic = Timeline::initial(ID, Source).seal(&boundary(Target, 10, 0)).expect("a plain flip");
    let end = new_topic.epoch_end_to_virtual(0, NativeOffset(5));
    assert_eq!(end, Ok((1024, VirtualOffset(15))), "leaders begin with epoch 0");
}

#[test]
fn r22_the_history_of_a_copy_may_carry_older_epochs() {
    let flip = Boundary { new_native_epoch: 3, identity: true, ..boundary(Target, 10, 10) };
    let timeline = Timeline::initial(ID, Source).seal(&flip).expect("a verified copy");
    let batch = |offset, epoch| timeline.batch_epoch_to_virtual(1, NativeOffset(offset), epoch);
    assert_eq!(batch(9, 1), Ok(1023));
    assert_eq!(batch(9, 3), Ok(1024));
    assert_eq!(batch(10, 2), Err(EpochError::BelowStart { era: 1, native: 2, start: 3 }));
}

#[test]
fn r23_an_unknown_log_start_is_never_guessed() {
    let timeline = four_eras();
    let at = |n: i64| Some(NativeOffset(n));
    assert_eq!(timeline.log_start_to_virtual([None, at(0)]), None);
    assert_eq!(timeline.log_start_to_virtual([at(4), None]), Some(VirtualOffset(4)), "not needed");
    assert_eq!(timeline.log_start_to_virtual([at(10), None]), None);
    assert_eq!(timeline.log_start_to_virtual([at(11), at(5)]), Some(VirtualOffset(16)));
    assert_eq!(timeline.log_start_to_virtual([at(13), at(5)]), Some(VirtualOffset(18)));
    let floored = timeline.with_floor(VirtualOffset(12)).with_floor(VirtualOffset(7));
    assert_eq!(floored.floor(), VirtualOffset(12));
    assert_eq!(floored.log_start_to_virtual([at(0), at(0)]), Some(VirtualOffset(12)));
}

#[test]
fn r25_each_side_is_deleted_to_its_own_image() {
    let timeline = four_eras();
    let cut = |side, v| timeline.native_boundary_for_delete(side, VirtualOffset(v)).map(|n| n.0);
    assert_eq!([cut(Source, 4), cut(Target, 4)], [Some(4), None]);
    assert_eq!([cut(Source, 0), cut(Target, 10)], [Some(0), Some(0)], "nothing, of a log that is there");
    assert_eq!([cut(Source, 12), cut(Target, 12)], [Some(10), Some(2)]);
    assert_eq!([cut(Source, 16), cut(Target, 16)], [Some(11), Some(5)]);
    assert_eq!([cut(Source, 20), cut(Target, 20)], [Some(13), Some(7)]);
    assert_eq!(cut(Source, -1), None);
}

#[test]
fn r27_a_boundary_number_never_skips_the_foreign_era() {
    let timeline = four_eras();
    let at = |n, metadata: &str| resolve(&timeline, Source, n, metadata).position.0;
    assert_eq!(at(10, ""), 10, "committed in era 0: not the start of era 2");
    assert_eq!(at(11, ""), 16);
    let stored = to_stored(&timeline, Source, VirtualOffset(12), "mine", ROOMY);
    let expected = StoredCommit { native: 10, metadata: "xo1:c0ffee:12:mine".into(), tagged: true };
    assert_eq!(stored, expected);
    assert_eq!(at(stored.native, &stored.metadata), 12);
    assert_eq!(at(-1, ""), -1, "no commit stays no commit");
}

#[test]
fn r27_a_number_without_image_is_the_start_of_the_sides_next_era() {
    let timeline = Timeline::initial(ID, Source)
        .seal(&boundary(Target, 100, 40))
        .and_then(|timeline| timeline.seal(&boundary(Source, 60, 110)))
        .and_then(|timeline| timeline.seal(&boundary(Target, 115, 60)))
        .expect("three flips");
    let at = |side, n| resolve(&timeline, side, n, "").position.0;
    assert_eq!([at(Source, 100), at(Source, 101), at(Source, 110), at(Source, 111)], [100, 120, 120, 121]);
    assert_eq!([at(Target, 0), at(Target, 40), at(Target, 41)], [100, 100, 101]);
    assert_eq!(at(Source, 900), 125, "past the side's last era: the next one there is not known");
    assert_eq!(resolve(&Timeline::initial(ID, Source), Target, 77, "").position.0, 0);
}

#[test]
fn r27_a_commit_to_a_side_never_entered_is_always_tagged() {
    let start = Timeline::initial(ID, Source);
    let stored = to_stored(&start, Target, VirtualOffset(0), "", ROOMY);
    assert!(stored.tagged, "the first era there starts above 0, the number alone would skip to it");
    let flipped = start.seal(&boundary(Target, 100, 0)).expect("a plain flip");
    assert_eq!(resolve(&flipped, Target, stored.native, &stored.metadata).position.0, 0);
}

#[test]
fn r27_tags_of_others_and_lookalikes() {
    let timeline = four_eras();
    let found = |metadata: &str| {
        let found = resolve(&timeline, Source, 5, metadata);
        (found.position.0, found.user_metadata, found.tagged)
    };
    assert_eq!(found("xo1:c0ffee:12:a:b"), (12, "a:b".into(), true));
    assert_eq!(found("xo1:bad:12:a"), (5, "a".into(), false), "another timeline's");
    for mine in ["xo1:", "xo1:c0ffee:12", "xo1:C0FFEE:12:", "xo1:c0ffee:+12:", "xo1:0c0ffee:12:", "xo2:1:1:"]
    {
        assert_eq!(found(mine), (5, mine.into(), false), "no tag of ours");
    }
    let lookalike = "xo1:c0ffee:1:spoof";
    let stored = to_stored(&timeline, Source, VirtualOffset(5), lookalike, ROOMY);
    assert_eq!((stored.native, stored.tagged), (5, true));
    let back = resolve(&timeline, Source, stored.native, &stored.metadata);
    assert_eq!((back.position.0, back.user_metadata.as_str()), (5, lookalike));
}

#[test]
fn r27_over_the_metadata_limit_the_position_comes_first() {
    let timeline = four_eras();
    let store = |side, v, user: &str, max| to_stored(&timeline, side, VirtualOffset(v), user, max);
    let user = "x".repeat(30);
    assert_eq!(
        store(Source, 12, &user, 40),
        StoredCommit { native: 10, metadata: user.clone(), tagged: false },
        "re-reads from 10"
    );
    let cut = store(Target, 5, &user, 40);
    assert_eq!((cut.native, cut.tagged, cut.metadata.len()), (0, true, 40), "the target starts at 10");
    let lookalike = format!("xo1:c0ffee:99:{user}");
    let cut = store(Source, 12, &lookalike, 50);
    assert_eq!(resolve(&timeline, Source, cut.native, &cut.metadata).position.0, 12);
    assert_eq!(cut.metadata.len(), 50);
    let full = store(Target, 5, &"x".repeat(40), 40);
    assert_eq!(full.metadata.len(), 40, "without the proxy it would be accepted");
    // What somebody has written to the idle side lies between its eras.
    let strays = Timeline::initial(ID, Source)
        .seal(&boundary(Target, 10, 0))
        .and_then(|timeline| timeline.seal(&boundary(Source, 5, 13)))
        .expect("two flips");
    let stored = to_stored(&strays, Source, VirtualOffset(12), &user, 40);
    assert_eq!(stored, StoredCommit { native: 10, metadata: user.clone(), tagged: false });
    let refused = store(Target, 5, &user, 20);
    assert!(refused.metadata.len() > 20 && refused.metadata.ends_with(&user), "the broker refuses it");
}

#[test]
fn r27_metadata_that_fits_behind_its_tag_to_the_byte_keeps_it() {
    let timeline = four_eras();
    let (tag, user) = ("xo1:c0ffee:12:", "x".repeat(30));
    let store = |max| to_stored(&timeline, Source, VirtualOffset(12), &user, max);
    let exact = store(tag.len() + user.len());
    assert_eq!((exact.tagged, exact.metadata), (true, format!("{tag}{user}")));
    assert!(!store(tag.len() + user.len() - 1).tagged, "a byte less, and it is read again from before");
}

#[test]
fn r27_over_the_metadata_limit_the_end_of_an_era_is_a_number_that_re_reads_nothing() {
    // Somebody has written three records to the source while it was idle.
    let timeline = Timeline::initial(ID, Source)
        .seal(&boundary(Target, 10, 0))
        .and_then(|timeline| timeline.seal(&boundary(Source, 5, 13)))
        .expect("two flips");
    let user = "x".repeat(30);
    let stored = to_stored(&timeline, Source, VirtualOffset(10), &user, 40);
    assert_eq!(stored, StoredCommit { native: 10, metadata: user, tagged: false });
    assert_eq!(resolve(&timeline, Source, stored.native, "").position, VirtualOffset(10));
}

#[test]
fn decode_names_what_is_wrong() {
    let bytes = four_eras().encode();
    let edited = |at: usize, value: u8| {
        let mut bytes = bytes.clone();
        bytes[at] = value;
        Timeline::decode(&bytes)
    };
    assert_eq!(edited(0, 9), Err(DecodeError::Version(9)));
    assert_eq!(edited(9, 0x80), Err(DecodeError::Floor(i64::MIN)));
    assert_eq!(edited(17, 0xff), Err(DecodeError::Length), "an era count beyond the input");
    assert_eq!(edited(21, 4), Err(DecodeError::Flags(4)));
    assert_eq!(edited(29, 7), Err(DecodeError::FirstEra));
    assert_eq!(edited(21, 1), Err(DecodeError::Era(SealError::SameSide(Target))));
    let not_rising = Err(DecodeError::Era(SealError::EpochNotRising(0x300)));
    assert_eq!(edited(65, 3), not_rising, "above the era before, but not by a gap");
    assert_eq!(Timeline::decode(&[]), Err(DecodeError::Length));
    let longer = [bytes.as_slice(), &[0]].concat();
    assert_eq!(Timeline::decode(&longer), Err(DecodeError::Length));
}
