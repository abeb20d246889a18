//! A position next to a boundary is the last one that the old side can express, or the first of the new one; off by one
//! there is a lost record, a second delivery, or a reset.

use anyhow::{Context, Result, ensure};
use crossover_harness::rig::Rig;
use crossover_tests::history::{At, ends, reads_exactly, written};
use crossover_tests::live::wait_end;
use crossover_tests::{flip, one_at_a_time, rig, wait_count};
use std::collections::BTreeSet;
use std::time::Duration;

/// Positions before and behind a boundary.
const AROUND: i64 = 20;
/// One for each position: partition `i` stands for the boundary − 20 + i.
const PARTITIONS: usize = 41;
/// Of each partition in each era; more than `AROUND`.
const RECORDS: usize = 30;
const CLIENTS: [&str; 2] = ["java-3.9.2", "librdkafka"];
const WAIT: Duration = Duration::from_secs(90);

/// A group without members, and where it stands.
struct Group {
    name: String,
    client: &'static str,
    positions: Vec<i64>,
}

/// The log of the test.
struct Edges<'a> {
    rig: &'a Rig,
    records: BTreeSet<At>,
    writers: usize,
    resumed: usize,
}

impl Edges<'_> {
    /// Writes an era's records; gives where they end.
    fn write(&mut self) -> Result<Vec<i64>> {
        self.writers += 1;
        let (count, writer) = (PARTITIONS.to_string(), self.writers.to_string());
        let args = ["--topic", "edges", "--partitions", &count, "--rate", "1000", "--writer", &writer];
        let mut producer = self.rig.driver("java-3.9.2", "producer", &format!("p{writer}"), &args)?;
        wait_count(&mut producer, "P.ok", RECORDS * PARTITIONS, WAIT)?;
        let history = producer.history.clone();
        ensure!(producer.stop(), "the producer did not end well");
        self.records.extend(written(&history)?);
        Ok(ends(&self.records, PARTITIONS))
    }

    /// Commits every position around a boundary, up to the log's end, for a group of each client.
    fn commit(&self, name: &str, boundary: &[i64]) -> Result<Vec<Group>> {
        let ends = ends(&self.records, PARTITIONS);
        let around = boundary.iter().zip(&ends).zip(-AROUND..).map(|((at, end), by)| (at + by).min(*end));
        let positions: Vec<i64> = around.collect();
        let pairs = positions.iter().enumerate().map(|(partition, at)| format!("{partition}={at}"));
        let pairs = pairs.collect::<Vec<_>>().join(",");
        let mut groups = Vec::new();
        for client in CLIENTS {
            let group = format!("{name}-{client}");
            let args = ["--topic", "edges", "--group", &group, "--commit-at", &pairs];
            let driver = self.rig.driver(client, "consumer", &format!("commits-{group}"), &args)?;
            let history = wait_end(driver, WAIT)?;
            let done = crossover_tests::history::lines(&history, &["C.commit"])?;
            ensure!(done.len() == 1 && done[0].fields[0] == "ok", "not committed: {}", history.display());
            groups.push(Group { name: group, client, positions: positions.clone() });
        }
        Ok(groups)
    }

    /// Reads on from the commits, with nothing else to start from: each record from there once, in order.
    fn resume(&mut self, groups: &[Group], when: &str) -> Result<()> {
        for group in groups {
            let rest: BTreeSet<At> =
                self.records.iter().filter(|(p, offset)| *offset >= group.positions[*p]).copied().collect();
            let count = rest.len().to_string();
            let mut args = vec!["--topic", "edges", "--group", &group.name, "--reset", "none"];
            args.extend(["--stop-at-end-count", &count]);
            let name = format!("resumes-{}", group.name);
            let history = wait_end(self.rig.driver(group.client, "consumer", &name, &args)?, WAIT)
                .with_context(|| format!("{} {when}", group.name))?;
            reads_exactly(&history, &rest).with_context(|| format!("{} {when}", group.name))?;
            self.resumed += 1;
        }
        Ok(())
    }

    fn move_home(&self, groups: &[Group], side: &str) -> Result<()> {
        for group in groups {
            let output = self.rig.crossover(&["groups", "move", &group.name, "--to", side])?;
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            ensure!(output.status.success(), "{} did not move to the {side}: {text}", group.name);
        }
        Ok(())
    }
}

#[test]
fn every_position_around_a_boundary_is_resumed_exactly() -> Result<()> {
    let _turn = one_at_a_time();
    let mut rig = rig("3.9.2", "4.3.1", 1)?;
    rig.keep = true;
    for cluster in [&rig.source, &rig.target] {
        cluster.create_topic("edges", i32::try_from(PARTITIONS)?, 1, &[])?;
    }
    let mut edges = Edges { rig: &rig, records: BTreeSet::new(), writers: 0, resumed: 0 };
    let first = edges.write()?;
    let (before, before_2) = (edges.commit("before", &first)?, edges.commit("before-2", &first)?);
    flip(&rig, "cutover", &["edges"])?;
    let second = edges.write()?;
    let (after, after_2) = (edges.commit("after", &first)?, edges.commit("after-2", &first)?);
    let (moved, moved_2) = (edges.commit("moved", &first)?, edges.commit("moved-2", &first)?);
    edges.move_home(&moved, "target")?;
    edges.move_home(&moved_2, "target")?;
    let behind = edges.commit("behind", &second)?;
    for groups in [&before, &after, &moved] {
        edges.resume(groups, "after the cutover")?;
    }
    flip(&rig, "rollback", &["edges"])?;
    edges.write()?;
    for groups in [&before_2, &after_2, &moved_2, &behind] {
        edges.resume(groups, "after the rollback")?;
    }
    for (name, boundary) in [("back-1", &first), ("back-2", &second)] {
        let back = edges.commit(name, boundary)?;
        edges.resume(&back, "committed and read after the rollback")?;
    }
    println!("{} groups read on from {PARTITIONS} positions each", edges.resumed);
    rig.keep = std::env::var_os("CROSSOVER_KEEP").is_some();
    Ok(())
}
