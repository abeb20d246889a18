//! The verdict over all histories of a run, by the named rules of `README.md`.

use std::collections::BTreeSet;
use std::path::Path;

use serde::Serialize;

use crate::checks;
use crate::deviations::Deviations;
use crate::facts::Facts;
use crate::ground_truth::GroundTruth;
use crate::history::{self, Entry, HistoryError};

/// Clock reading and logging happen a little after the fact; C5 ignores smaller overlaps (microseconds).
pub(crate) const CLOCK_SLACK_US: i64 = 5_000;

/// What is tolerated, and optional limits.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Writers that may write a record twice (not idempotent, under faults).
    pub allow_duplicates: BTreeSet<u32>,
    /// Writers whose acknowledged records may be missing (acks=1, under faults).
    pub allow_loss: BTreeSet<u32>,
    /// Histories of readers to which a record may be delivered again (C7, C10): libraries that do so after a change of
    /// leader on any Kafka.
    pub allow_redelivery: BTreeSet<String>,
    /// Events that do not count as application errors: `P.fail`, `C.commit`, `C.lost`, `C.error`, `C.misplaced`,
    /// `E.error`.
    pub allow_errors: BTreeSet<String>,
    /// Limit of C19: longest time between two acknowledgements of a writer, in microseconds.
    pub max_ack_gap_us: Option<i64>,
    /// Limit of C19: longest time from send to acknowledgement, in microseconds.
    pub max_ack_latency_us: Option<i64>,
}

/// Outcome; a violation outweighs a doubt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    Pass,
    Fail,
    Unknown,
}

/// One rule's result.
#[derive(Debug, Clone, Serialize)]
pub struct Check {
    pub id: &'static str,
    pub title: &'static str,
    /// How many things were compared.
    pub examined: u64,
    pub violations: u64,
    /// The first violations in words.
    pub examples: Vec<String>,
}

/// One writer or reader in numbers.
#[derive(Debug, Clone, Serialize)]
pub struct Client {
    pub name: String,
    /// Acknowledged or delivered records.
    pub records: u64,
    pub failed: u64,
    /// Longest time between two acknowledgements or deliveries.
    pub longest_gap_us: i64,
    /// Longest time from send to acknowledgement; 0 for readers.
    pub longest_latency_us: i64,
}

/// Everything that was found.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    pub verdict: Verdict,
    pub checks: Vec<Check>,
    /// Why the run cannot be judged; empty unless something is unreadable, unfinished or missing.
    pub doubts: Vec<String>,
    pub clients: Vec<Client>,
    /// What went wrong with each writer's records, whether it was tolerated or not; empty unless logs were dumped.
    pub deviations: Vec<Deviations>,
    /// Records per cluster log, if dumped.
    pub log_records: Vec<(String, u64)>,
}

impl Report {
    /// Violations of the named rule; 0 for a rule that does not exist.
    #[must_use]
    pub fn violations(&self, id: &str) -> u64 {
        self.checks.iter().filter(|check| check.id == id).map(|check| check.violations).sum()
    }
}

/// Collects histories, then judges them.
#[derive(Debug, Default)]
pub struct Checker {
    options: Options,
    facts: Facts,
    truth: Option<GroundTruth>,
}

impl Checker {
    #[must_use]
    pub fn new(options: Options) -> Self {
        let mut facts = Facts::default();
        facts.allow_redelivery.clone_from(&options.allow_redelivery);
        Self { options, facts, ..Self::default() }
    }

    /// Adds a history file. `killed`: the process was killed on purpose, a missing end is no doubt.
    pub fn add_file(&mut self, path: &Path, killed: bool) {
        let name = path.display().to_string();
        match history::open(path) {
            Ok(reader) => self.add(&name, killed, reader),
            Err(error) => self.add_doubt(format!("{name}: {error}")),
        }
    }

    /// Adds a history from memory or any other source.
    pub fn add<I>(&mut self, name: &str, killed: bool, entries: I)
    where
        I: Iterator<Item = Result<Entry, HistoryError>>,
    {
        self.facts.add(name, killed, entries);
    }

    /// Adds a reason why the run cannot be judged.
    pub fn add_doubt(&mut self, reason: String) {
        self.facts.doubt(reason);
    }

    /// Adds the dumped logs of one topic; a second call extends the first.
    pub fn add_ground_truth(&mut self, truth: GroundTruth) {
        match &mut self.truth {
            Some(known) => known.records.extend(truth.records),
            None => self.truth = Some(truth),
        }
    }

    /// Applies every rule.
    #[must_use]
    pub fn finish(mut self) -> Report {
        if self.facts.acks.is_empty() {
            self.add_doubt("no acknowledged record at all".to_owned());
        } else if self.facts.readers.is_empty() && self.truth.is_none() {
            self.add_doubt("neither a reader nor a log to compare with".to_owned());
        }
        let log_records = self.truth.as_ref().map(GroundTruth::counts).unwrap_or_default();
        let (checks, deviations) = checks::run(&mut self.facts, &self.options, self.truth.as_ref());
        let verdict = if checks.iter().any(|check| check.violations > 0) {
            Verdict::Fail
        } else if self.facts.doubts.is_empty() {
            Verdict::Pass
        } else {
            Verdict::Unknown
        };
        let clients = clients(&self.facts);
        Report { verdict, checks, doubts: self.facts.doubts, clients, deviations, log_records }
    }
}

fn clients(facts: &Facts) -> Vec<Client> {
    let writers = facts.writers.iter().map(|writer| Client {
        name: writer.name.clone(),
        records: writer.acked,
        failed: writer.failed,
        longest_gap_us: writer.longest_gap_us,
        longest_latency_us: writer.longest_latency_us,
    });
    let readers = facts.readers.iter().map(|reader| Client {
        name: reader.name.clone(),
        records: reader.polled,
        failed: 0,
        longest_gap_us: reader.longest_gap_us,
        longest_latency_us: 0,
    });
    writers.chain(readers).collect()
}
