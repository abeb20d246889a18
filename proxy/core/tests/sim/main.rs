//! A deterministic simulator of the core: the real sessions, gates, timelines and flip decisions in a model world, one
//! thread and one seed, with what must hold judged after every step.

mod bugs;
mod cluster;
mod consumer;
mod coverage;
mod faults;
mod net;
mod operator;
mod oracle;
mod producer;
mod proxy;
mod queue;
mod rng;
mod store;
mod wire;
mod world;

use coverage::Coverage;
use std::time::{Duration, Instant};

/// So many schedules see everything.
const COVERING: u64 = 20_000;

/// `from..to`, or one seed.
fn seeds(text: &str) -> (u64, u64) {
    let number = |text: &str| text.trim().parse().expect("a number");
    match text.split_once("..") {
        Some((from, to)) => (number(from), number(to)),
        None => (number(text), number(text) + 1),
    }
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// Says which seed it was when the core, or the model, panics.
struct Naming(u64);

impl Drop for Naming {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("seed {}: repeat it with CROSSOVER_SEED={}", self.0, self.0);
        }
    }
}

/// Prints what happened, and fails where it must not have.
fn replay(seed: u64) -> String {
    let outcome = world::play(seed, None, true);
    outcome.trace.iter().for_each(|line| println!("{line}"));
    outcome.violation.unwrap_or_else(|| "nothing".to_owned())
}

#[test]
fn schedules_hold() {
    if let Some(seed) = variable("CROSSOVER_SEED") {
        let why = replay(seeds(&seed).0);
        assert_eq!(why, "nothing");
        return;
    }
    let (mut seed, to) = variable("CROSSOVER_SEEDS").map_or((0, u64::MAX), |text| seeds(&text));
    let budget = match to {
        u64::MAX => variable("CROSSOVER_SIM_SECONDS").map_or(10, |s| s.parse().expect("seconds")),
        _ => u64::MAX / 2_000,
    };
    let (from, started) = (seed, Instant::now());
    let (mut events, mut flips) = (0, 0);
    let mut coverage = Coverage::default();
    while seed < to && started.elapsed() < Duration::from_secs(budget) {
        let _naming = Naming(seed);
        let outcome = world::play(seed, None, false);
        if let Some(why) = outcome.violation {
            replay(seed);
            panic!("seed {seed}: {why}\nrepeat it with CROSSOVER_SEED={seed}");
        }
        events += outcome.events;
        flips += u64::from(outcome.flips);
        coverage.add(&outcome.coverage);
        seed += 1;
    }
    let (count, took) = (seed - from, started.elapsed().as_secs_f64());
    println!(
        "seeds {from}..{seed}: {count} schedules, {events} events, {flips} flips, {:.0} schedules/s",
        count as f64 / took
    );
    for (seen, times) in coverage.counts() {
        println!("{times:>10} {seen:?}");
    }
    // A rule that was never needed was not tested. Few schedules need few rules.
    assert!(count < COVERING || coverage.missing().is_empty(), "never seen: {:?}", coverage.missing());
}

/// A seed says everything.
#[test]
fn a_seed_repeats_its_schedule() {
    for seed in 0..40 {
        let [one, other] = [false, true].map(|traced| world::play(seed, None, traced));
        assert_eq!((one.digest, one.events), (other.digest, other.events), "seed {seed}");
    }
}

/// The suite's own test: what is broken on purpose is noticed.
#[cfg(feature = "bug-flags")]
#[test]
fn every_bug_flag_is_caught() {
    let budget: u64 = variable("CROSSOVER_SIM_BUDGET").map_or(20_000, |n| n.parse().expect("a number"));
    let wanted = variable("CROSSOVER_SIM_BUG");
    let mut missed = Vec::new();
    for bug in bugs::ALL {
        let name = format!("{bug:?}");
        if wanted.as_ref().is_some_and(|wanted| !name.contains(wanted)) {
            continue;
        }
        let caught = (0..budget).find_map(|seed| {
            let _naming = Naming(seed);
            world::play(seed, Some(*bug), false).violation.map(|why| (seed, why))
        });
        match caught {
            Some((seed, why)) => println!("{name} is caught by schedule {}: {why}", seed + 1),
            None => missed.push(name),
        }
    }
    assert!(missed.is_empty(), "not caught within {budget} schedules: {missed:?}");
}
