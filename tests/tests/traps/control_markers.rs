//! A transaction's marker takes an offset that no consumer sees. A log that ends in one has its boundary behind it.

use anyhow::{Context, Result, ensure};
use crossover_harness::rig::{Driver, Rig};
use crossover_tests::history::{At, ends, reads_exactly, written};
use crossover_tests::live::wait_end;
use crossover_tests::{flip, one_at_a_time, rig, wait_count};
use std::collections::BTreeSet;
use std::time::Duration;

const PARTITIONS: usize = 4;
const RECORDS: usize = 200;
const WAIT: Duration = Duration::from_secs(90);
const COMMITTED: &[&str] = &["--conf", "isolation.level=read_committed"];
const UNCOMMITTED: &[&str] = &["--conf", "isolation.level=read_uncommitted"];
/// A client, its options, and whether it reads what was aborted.
const READERS: [(&str, &[&str], bool); 7] = [
    ("java-3.9.2", COMMITTED, false),
    ("java-4.3.1", UNCOMMITTED, true),
    ("librdkafka", COMMITTED, false),
    ("librdkafka", UNCOMMITTED, true),
    // The libraries' defaults.
    ("franz", &[], true),
    ("sarama", &[], true),
    ("kafkajs", &[], false),
];

/// One topic, what lies in it, and who reads it over the flips.
struct Log<'a> {
    rig: &'a Rig,
    topic: &'static str,
    all: BTreeSet<At>,
    aborted: BTreeSet<At>,
    writers: usize,
    live: Vec<(Driver, bool)>,
}

impl<'a> Log<'a> {
    /// A topic whose last transaction ended as `end` says, written beside the proxy.
    fn new(rig: &'a Rig, topic: &'static str, end: &str, number: usize) -> Result<Log<'a>> {
        for cluster in [&rig.source, &rig.target] {
            cluster.create_topic(topic, i32::try_from(PARTITIONS)?, 1, &[])?;
        }
        let (all, aborted) = (BTreeSet::new(), BTreeSet::new());
        let mut log = Log { rig, topic, all, aborted, writers: number, live: Vec::new() };
        log.write(&rig.source.bootstrap(), &["--transaction", "early"])?;
        let last =
            log.write(&rig.source.bootstrap(), &["--transaction", "late", "--transaction-end", end])?;
        if end == "abort" {
            log.aborted = last;
        }
        for (index, (client, options, sees_aborted)) in READERS.iter().enumerate().take(4) {
            let name = format!("{topic}-live-{index}");
            let mut args = vec!["--topic", topic, "--group", &name, "--reset", "earliest"];
            args.extend(*options);
            log.live.push((rig.driver(client, "consumer", &name, &args)?, *sees_aborted));
        }
        Ok(log)
    }

    fn write(&mut self, bootstrap: &str, options: &[&str]) -> Result<BTreeSet<At>> {
        self.writers += 1;
        let (count, writer) = (PARTITIONS.to_string(), self.writers.to_string());
        let mut args =
            vec!["--topic", self.topic, "--partitions", &count, "--rate", "500", "--writer", &writer];
        args.extend(options);
        let name = format!("writer-{writer}");
        let mut producer = self.rig.driver_at(bootstrap, "java-3.9.2", "producer", &name, &args)?;
        wait_count(&mut producer, "P.ok", RECORDS, WAIT)?;
        let history = producer.history.clone();
        ensure!(producer.stop(), "{name} did not end well");
        let written = written(&history)?;
        self.all.extend(written.iter().copied());
        Ok(written)
    }

    /// Writes the next era's records, whose first one lies right behind what was there.
    fn write_era(&mut self, markers: i64, when: &str) -> Result<()> {
        let before = ends(&self.all, PARTITIONS);
        let era = self.write(&self.rig.bootstrap, &[])?;
        for (partition, end) in before.iter().enumerate() {
            let first = era.range((partition, 0)..).next().context("a partition without a record")?;
            ensure!(
                *first == (partition, end + markers),
                "{}: {when} starts at {first:?}, not {end} + {markers}",
                self.topic
            );
        }
        Ok(())
    }

    fn expected(&self, sees_aborted: bool) -> BTreeSet<At> {
        let hidden = |at: &At| !sees_aborted && self.aborted.contains(at);
        self.all.iter().filter(|at| !hidden(at)).copied().collect()
    }

    /// What readers over the flips and readers from the start have read.
    fn judge(&mut self) -> Result<()> {
        for (mut driver, sees_aborted) in std::mem::take(&mut self.live) {
            let expected = self.expected(sees_aborted);
            wait_count(&mut driver, "C.poll", expected.len(), WAIT)?;
            let history = driver.history.clone();
            ensure!(driver.stop(), "{} did not end well", history.display());
            reads_exactly(&history, &expected)?;
        }
        for (index, (client, options, sees_aborted)) in READERS.iter().enumerate() {
            let expected = self.expected(*sees_aborted);
            let (name, count) = (format!("{}-late-{index}", self.topic), expected.len().to_string());
            let mut args = vec!["--topic", self.topic, "--group", &name, "--reset", "earliest"];
            args.extend(["--stop-at-end-count", &count]);
            args.extend(*options);
            let history = wait_end(self.rig.driver(client, "consumer", &name, &args)?, WAIT)?;
            reads_exactly(&history, &expected)?;
            println!("{}: {client} {options:?} reads {count} of {} records", self.topic, self.all.len());
        }
        Ok(())
    }
}

#[test]
fn a_log_that_ends_in_a_control_marker_is_read_over_exactly() -> Result<()> {
    let _turn = one_at_a_time();
    let mut rig = rig("3.9.2", "4.3.1", 1)?;
    rig.keep = true;
    let mut logs = [Log::new(&rig, "commits", "commit", 0)?, Log::new(&rig, "aborts", "abort", 10)?];
    let topics = ["commits", "aborts"];
    flip(&rig, "cutover", &topics)?;
    for log in &mut logs {
        log.write_era(1, "the era behind the marker")?;
    }
    flip(&rig, "rollback", &topics)?;
    for log in &mut logs {
        log.write_era(0, "the era back on the source")?;
        log.judge()?;
    }
    drop(logs);
    rig.keep = std::env::var_os("CROSSOVER_KEEP").is_some();
    Ok(())
}
