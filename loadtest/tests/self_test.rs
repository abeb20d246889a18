//! The checker's own test: every mutation of a clean history must be caught by its rule, no clean history may be.
//!
//! A model broker with several writers and two groups makes clean histories from a seed; they pass through the text
//! format, so the parser is part of the test.

mod model;

use crossover_loadtest::checker::{Checker, Options, Report, Verdict};
use crossover_loadtest::deviations::Deviations;
use crossover_loadtest::ground_truth::LogRecord;
use crossover_loadtest::history::{Entry, Event, Reader};
use model::{Random, Run, polls};

const MUTANTS: u64 = 60;
const CLEAN: u64 = 1000;

fn judge(run: &Run, options: Options) -> Report {
    let mut checker = Checker::new(options);
    for (number, history) in run.producers.iter().chain(&run.consumers).enumerate() {
        let text = model::render(history);
        checker.add(&format!("history {number}"), false, Reader::new(text.as_bytes()));
    }
    if let Some(truth) = &run.truth {
        checker.add_ground_truth(truth.clone());
    }
    checker.finish()
}

/// Applies `mutate` to clean runs until `MUTANTS` were changed (it returns false if a run offers nothing to change).
fn every_mutant_fails(rule: &str, mutate: impl Fn(&mut Run, &mut Random) -> bool) {
    every_mutant_fails_with(rule, &Options::default(), mutate);
}

fn every_mutant_fails_with(rule: &str, options: &Options, mutate: impl Fn(&mut Run, &mut Random) -> bool) {
    let mut caught = 0;
    for seed in 1.. {
        assert!(seed < 20 * MUTANTS, "{rule}: only {caught} of {MUTANTS} mutants could be made");
        let mut random = Random::new(seed);
        let mut run = Run::new(&mut random);
        if !mutate(&mut run, &mut random) {
            continue;
        }
        let report = judge(&run, options.clone());
        assert_eq!(report.verdict, Verdict::Fail, "{rule}: mutant {seed} passed: {report:?}");
        assert!(report.violations(rule) > 0, "{rule}: mutant {seed} caught by others only: {report:?}");
        caught += 1;
        if caught == MUTANTS {
            return;
        }
    }
}

#[test]
fn clean_histories_raise_no_alarm() {
    for seed in 1..=CLEAN {
        let report = judge(&Run::new(&mut Random::new(seed)), Options::default());
        assert_eq!(report.verdict, Verdict::Pass, "seed {seed}: {report:?}");
        assert!(report.checks.iter().all(|check| check.id == "C19" || check.examined > 0), "{report:?}");
    }
}

#[test]
fn c1_a_record_lost_for_everybody() {
    every_mutant_fails("C1", |run, random| {
        let lost = run.random_ack(random);
        run.truth = None;
        run.remove_deliveries(lost);
        true
    });
}

#[test]
fn c1_a_record_lost_from_the_logs() {
    every_mutant_fails("C1", |run, random| {
        let records = run.records();
        let lost = random.below(records.len());
        records.remove(lost);
        true
    });
}

#[test]
fn c2_a_record_delivered_at_two_offsets() {
    every_mutant_fails("C2", |run, random| {
        run.edit_poll(random, |poll, at| {
            let mut again = poll.clone();
            if let Event::Poll { offset, .. } = &mut again.event {
                *offset += 1000;
            }
            at.push(again);
        })
    });
}

#[test]
fn c2_a_record_twice_in_the_logs() {
    every_mutant_fails("C2", |run, random| {
        let records = run.records();
        let mut copy: LogRecord = records[random.below(records.len())].clone();
        copy.offset += 1000;
        copy.cluster = ["source", "target"][random.below(2)].to_owned();
        records.push(copy);
        true
    });
}

#[test]
fn c3_two_values_swapped_for_readers() {
    every_mutant_fails("C3", Run::swap_deliveries);
}

#[test]
fn c3_two_values_swapped_in_a_log() {
    every_mutant_fails("C3", swap_in_a_log);
}

fn swap_in_a_log(run: &mut Run, random: &mut Random) -> bool {
    let records = run.records();
    let first = random.below(records.len());
    let one = records[first].clone();
    let same = |other: &LogRecord| {
        (&other.cluster, other.partition, other.writer) == (&one.cluster, one.partition, one.writer)
    };
    let Some(second) = (first + 1..records.len()).find(|at| same(&records[*at])) else { return false };
    (records[first].seq, records[second].seq) = (records[second].seq, records[first].seq);
    true
}

#[test]
fn c4_one_reader_sees_another_value() {
    every_mutant_fails("C4", |run, random| {
        run.edit_poll(random, |poll, _| {
            if let Event::Poll { seq, .. } = &mut poll.event {
                *seq += 1_000_000;
            }
        })
    });
}

#[test]
fn c5_an_offset_acked_too_low() {
    every_mutant_fails("C5", |run, random| {
        let history = random.below(run.producers.len());
        run.edit_ack(history, random, |ack| {
            let Event::Ok { offset, .. } = &mut ack.event else { return false };
            let late = *offset > 10;
            *offset -= 10;
            late
        })
    });
}

#[test]
fn c6_a_delivery_missing_inside_an_assignment() {
    every_mutant_fails("C6", |run, random| run.remove_inner_poll(random));
}

#[test]
fn c7_a_delivery_repeated_inside_an_assignment() {
    every_mutant_fails("C7", |run, random| {
        run.edit_poll(random, |poll, at| {
            let again = poll.clone();
            at.push(again);
        })
    });
}

#[test]
fn c7_two_deliveries_in_the_wrong_order() {
    every_mutant_fails("C7", |run, random| {
        let history = random.below(run.consumers.len());
        let entries = &mut run.consumers[history];
        let Some((first, second)) = model::neighbours(entries, random) else { return false };
        let (one, two) = (entries[first].event.clone(), entries[second].event.clone());
        (entries[first].event, entries[second].event) = (two, one);
        true
    });
}

#[test]
fn c8_a_group_misses_a_record() {
    every_mutant_fails("C8", |run, random| {
        let lost = run.random_ack(random);
        run.remove_deliveries_of_group(random.below(2), lost);
        true
    });
}

#[test]
fn c9_a_commit_lowered() {
    every_mutant_fails("C9", |run, random| {
        let history = random.below(run.consumers.len());
        let entries = &mut run.consumers[history];
        let commits = (0..entries.len()).filter(|at| matches!(entries[*at].event, Event::Committed(_)));
        let commits: Vec<usize> = commits.collect();
        let Some(at) = commits.get(random.below(commits.len().max(1))) else { return false };
        let mut lower = entries[*at].clone();
        let Event::Committed(offsets) = &mut lower.event else { return false };
        let Some((_, offset)) = offsets.first_mut().filter(|(_, offset)| *offset > 0) else { return false };
        *offset -= 1;
        entries.insert(at + 1, lower);
        true
    });
}

#[test]
fn c10_a_committed_record_delivered_to_another_member() {
    every_mutant_fails("C10", |run, random| run.redeliver_after_commit(random));
}

#[test]
fn c19_a_pause_over_the_limit() {
    let options = Options {
        max_ack_gap_us: Some(2_000_000),
        max_ack_latency_us: Some(2_000_000),
        ..Options::default()
    };
    every_mutant_fails_with("C19", &options, |run, random| {
        let history = random.below(run.producers.len());
        let entries = &mut run.producers[history];
        let from = 2 + random.below(entries.len() - 3);
        entries[from..].iter_mut().for_each(|entry| entry.at_us += 3_000_000);
        true
    });
}

#[test]
fn c22_a_reset() {
    every_mutant_fails("C22", |run, random| {
        run.insert_for_a_reader(random, Event::Reset("- gone".to_owned()))
    });
}

#[test]
fn a1_acked_at_another_offset() {
    every_mutant_fails("A1", |run, random| {
        let history = random.below(run.producers.len());
        let by = 1 + random.below(5) as i64;
        run.edit_ack(history, random, |ack| {
            let Event::Ok { offset, .. } = &mut ack.event else { return false };
            *offset += by;
            true
        })
    });
}

#[test]
fn a2_an_application_error() {
    every_mutant_fails("A2", |run, random| {
        let text = "gone".to_owned();
        let errors = [
            Event::CommitFailed(text.clone()),
            Event::ConsumerError(text.clone()),
            Event::Error(text),
            Event::Lost(vec![model::part(0)]),
        ];
        let error = errors[random.below(errors.len())].clone();
        run.insert_for_a_reader(random, error)
    });
}

#[test]
fn unfinished_empty_or_unreadable_histories_are_unknown() {
    let cut = |change: &dyn Fn(&mut String)| {
        let run = Run::new(&mut Random::new(1));
        let mut checker = Checker::new(Options::default());
        let mut first = model::render(&run.producers[0]);
        change(&mut first);
        checker.add("changed", false, Reader::new(first.as_bytes()));
        let rest = run.producers[1..].iter().chain(&run.consumers);
        rest.for_each(|history| checker.add("other", false, Reader::new(model::render(history).as_bytes())));
        checker.finish().verdict
    };
    assert_eq!(cut(&|_| {}), Verdict::Pass);
    assert_eq!(cut(&String::clear), Verdict::Unknown);
    assert_eq!(cut(&|text| text.truncate(text.rfind("E.end").unwrap_or(0) - 20)), Verdict::Unknown);
    assert_eq!(cut(&|text| text.insert_str(0, "x\n")), Verdict::Unknown);
    assert_eq!(cut(&|text| *text = text.replace("sent=", "sent=1")), Verdict::Unknown);
    assert_eq!(cut(&|text| *text = text.replacen("P.ok", "P.maybe", 1)), Verdict::Unknown);
}

#[test]
fn allowances_turn_exactly_their_violation_off() {
    let mut random = Random::new(5);
    let mut run = Run::new(&mut random);
    let records = run.records();
    let mut copy = records[3].clone();
    copy.offset += 1000;
    let writer = copy.writer;
    records.push(copy);
    assert_eq!(judge(&run, Options::default()).verdict, Verdict::Fail);
    let allowed = Options { allow_duplicates: [writer].into(), ..Options::default() };
    assert_eq!(judge(&run, allowed).verdict, Verdict::Pass);
    let other = Options { allow_duplicates: [writer + 1].into(), ..Options::default() };
    assert_eq!(judge(&run, other).verdict, Verdict::Fail);
}

#[test]
fn text_and_entries_are_the_same() {
    for seed in 1..20 {
        let run = Run::new(&mut Random::new(seed));
        for history in run.producers.iter().chain(&run.consumers) {
            let text = model::render(history);
            let back: Vec<Entry> = Reader::new(text.as_bytes()).map(|entry| entry.expect("valid")).collect();
            assert_eq!(&back, history);
        }
    }
    assert!(polls(&Run::new(&mut Random::new(1)).consumers[0]).next().is_some());
}

#[test]
fn garbage_never_panics() {
    let run = Run::new(&mut Random::new(1));
    let text = model::render(&run.consumers[0]).into_bytes();
    let mut random = Random::new(7);
    for _ in 0..2000 {
        let mut changed = text.clone();
        for _ in 0..=random.below(3) {
            let at = random.below(changed.len());
            changed[at] = u8::try_from(random.below(256)).expect("byte");
        }
        let mut checker = Checker::new(Options::default());
        checker.add("garbage", random.below(2) == 0, Reader::new(changed.as_slice()));
        let _ = checker.finish();
    }
}

/// The numbers of each writer are there whether they are tolerated or not.
#[test]
fn what_became_of_each_writers_records_is_counted() {
    for seed in 1..=MUTANTS {
        let mut random = Random::new(seed);
        let mut run = Run::new(&mut random);
        let clean = judge(&run, Options::default());
        assert!(clean.deviations.iter().all(|writer| writer.sent > 0 && !writer.any()), "{clean:?}");
        let records = run.records();
        let lost = records.remove(random.below(records.len()));
        let mut twice = records[random.below(records.len())].clone();
        twice.offset += 1000;
        records.push(twice.clone());
        let allowed = || [lost.writer, twice.writer].into_iter().collect();
        let options = Options { allow_loss: allowed(), allow_duplicates: allowed(), ..Options::default() };
        let report = judge(&run, options);
        assert_eq!(report.violations("C1") + report.violations("C2"), 0, "seed {seed}: {report:?}");
        let sum = |of: fn(&Deviations) -> u64| -> u64 { report.deviations.iter().map(of).sum() };
        assert_eq!(sum(|writer| writer.lost), 1, "seed {seed}: {lost:?}: {report:?}");
        assert_eq!(sum(|writer| writer.twice), 1, "seed {seed}: {twice:?}: {report:?}");
    }
}

#[test]
fn records_out_of_order_are_counted() {
    let mut counted = 0;
    for seed in 1..=MUTANTS {
        let mut random = Random::new(seed);
        let mut run = Run::new(&mut random);
        if swap_in_a_log(&mut run, &mut random) {
            let report = judge(&run, Options::default());
            assert!(
                report.deviations.iter().any(|writer| writer.out_of_order > 0),
                "seed {seed}: {report:?}"
            );
            counted += 1;
        }
    }
    assert!(counted > 10, "only {counted} runs could be changed");
}
