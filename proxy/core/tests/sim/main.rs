//! A deterministic simulator of the core: the real sessions, gates, timelines and flip decisions in a model world, one
//! thread and one seed, with what must hold judged after every step.

mod asker;
mod broker;
mod bugs;
mod cluster;
mod committer;
mod consumer;
mod coordinator;
mod coverage;
mod deleter;
mod faults;
mod net;
mod operator;
mod oracle;
mod producer;
mod proxy;
mod queue;
mod rng;
mod store;
mod transactor;
mod txn_client;
mod txn_coordinator;
mod txn_move;
mod txn_oracle;
mod txn_reader;
mod unstable;
mod wire;
mod world;

use coverage::Coverage;
#[cfg(feature = "bug-flags")]
use std::sync::Mutex;
#[cfg(feature = "bug-flags")]
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A schedule is tens of thousands of small allocations.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

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
    let (from, to) = variable("CROSSOVER_SEEDS").map_or((0, u64::MAX), |text| seeds(&text));
    let budget = match to {
        u64::MAX => variable("CROSSOVER_SIM_SECONDS").map_or(10, |s| s.parse().expect("seconds")),
        _ => u64::MAX / 2_000,
    };
    let (seed, started) = (AtomicU64::new(from), Instant::now());
    let until = Seeds { next: &seed, to, started, budget: Duration::from_secs(budget) };
    let played = on_all_cores(|| until.play());
    let cores = played.len();
    let mut all = Played::default();
    played.iter().for_each(|played| all.add(played));
    if let Some(seed) = all.violated {
        let why = replay(seed);
        panic!("seed {seed}: {why}\nrepeat it with CROSSOVER_SEED={seed}");
    }
    let per_core = all.schedules as f64 / started.elapsed().as_secs_f64() / cores as f64;
    println!(
        "seeds {from}..{}: {} schedules, {} events, {} flips, {per_core:.0} schedules/s on each of {cores} cores",
        from + all.schedules,
        all.schedules,
        all.events,
        all.flips
    );
    for (seen, times) in all.coverage.counts() {
        println!("{times:>10} {seen:?}");
    }
    // A rule that was never needed was not tested. Few schedules need few rules.
    let missing = all.coverage.missing();
    assert!(all.schedules < COVERING || missing.is_empty(), "never seen: {missing:?}");
}

/// The same on every core, and what each has to say.
fn on_all_cores<T: Send>(work: impl Fn() -> T + Sync) -> Vec<T> {
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..cores).map(|_| scope.spawn(&work)).collect();
        let ends = threads.into_iter().map(|thread| thread.join());
        ends.map(|end| end.unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
    })
}

/// The seeds that are still to be played.
struct Seeds<'a> {
    next: &'a AtomicU64,
    to: u64,
    started: Instant,
    budget: Duration,
}

/// What one thread has played.
#[derive(Default)]
struct Played {
    schedules: u64,
    events: u64,
    flips: u64,
    coverage: Coverage,
    /// The lowest seed whose schedule broke a rule.
    violated: Option<u64>,
}

impl Seeds<'_> {
    /// Until none is left, the time is over, or one has broken a rule.
    fn play(&self) -> Played {
        let mut played = Played::default();
        while self.started.elapsed() < self.budget {
            let seed = self.next.fetch_add(1, Ordering::Relaxed);
            if seed >= self.to {
                break;
            }
            let _naming = Naming(seed);
            let outcome = world::play(seed, None, false);
            played.schedules += 1;
            played.events += outcome.events;
            played.flips += u64::from(outcome.flips);
            played.coverage.add(&outcome.coverage);
            if outcome.violation.is_some() {
                played.violated = Some(seed);
                self.next.store(self.to, Ordering::Relaxed);
            }
        }
        played
    }
}

impl Played {
    fn add(&mut self, other: &Played) {
        self.schedules += other.schedules;
        self.events += other.events;
        self.flips += other.flips;
        self.coverage.add(&other.coverage);
        self.violated = self.violated.into_iter().chain(other.violated).min();
    }
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
    let most: Option<u64> = variable("CROSSOVER_SIM_BUDGET").map(|n| n.parse().expect("a number"));
    let wanted = variable("CROSSOVER_SIM_BUG").unwrap_or_default();
    let bugs: Vec<_> = bugs::all().filter(|(bug, _)| format!("{bug:?}").contains(&wanted)).collect();
    let (next, missed) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    on_all_cores(|| {
        while let Some((bug, budget)) = bugs.get(next.fetch_add(1, Ordering::Relaxed)) {
            let caught = (0..most.unwrap_or(*budget)).find_map(|seed| {
                let _naming = Naming(seed);
                world::play(seed, Some(*bug), false).violation.map(|why| (seed, why))
            });
            match caught {
                Some((seed, why)) => println!("{bug:?} is caught by schedule {}: {why}", seed + 1),
                None => missed.lock().expect("no thread panics with it").push(format!("{bug:?} in {budget}")),
            }
        }
    });
    let missed = missed.into_inner().expect("no thread panics with it");
    assert!(!bugs.is_empty(), "no bug's name contains {wanted}");
    assert!(missed.is_empty(), "not caught: {missed:?}");
}
