//! The client matrix: every library and version, each producing, consuming, committing, seeking and rebalancing across a
//! cutover, an aborted flip and a rollback. Needs `cargo build -p crossover --features failpoints` and
//! `cargo build -p crossover-loadtest` first.
//!
//! A client that cannot be fetched here (its package manager is missing) is reported as not run; `CROSSOVER_KINDS` (comma
//! list) picks some.

use anyhow::{Context, Result, ensure};
use crossover_harness::rig::Rig;
use crossover_tests::faults::{Outcome, stop_behind, wait_until_well};
use crossover_tests::history::{ends, reads_exactly, written};
use crossover_tests::live::{KINDS, Kind, TOPIC, Traffic, chosen, create_topic, group, wait_end};
use crossover_tests::operator::post;
use crossover_tests::{flip, one_at_a_time, repository, rig};
use serde_json::json;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

const RATE: u32 = 20;
const READ_MAX: Duration = Duration::from_secs(120);
const PARTITIONS: usize = 12;
/// Old clients, and one that is in no other run.
const MORE: [Kind; 3] = [
    Kind { name: "java-2.8.2", driver: "java-2.8.2", producer: &[], has_group: true },
    Kind { name: "java-3.4.1", driver: "java-3.4.1", producer: &[], has_group: true },
    Kind { name: "aiokafka", driver: "aiokafka", producer: &["--idempotent", "true"], has_group: true },
];
/// Who can be told to commit a position, and so to start from it.
const SEEKERS: [&str; 5] = ["java-2.8.2", "java-3.4.1", "java-3.9.2", "java-4.3.1", "librdkafka"];

#[test]
fn every_client_across_flips() -> Result<()> {
    let _turn = one_at_a_time();
    let kinds = available()?;
    let mut rig = rig("3.9.2", "4.3.1", 2)?;
    rig.keep = true;
    create_topic(&rig)?;
    let mut traffic = Traffic::start(&rig, &kinds, RATE)?;

    flip(&rig, "cutover", &[TOPIC])?;
    wait_until_well(&rig, &mut traffic).context("after the cutover")?;
    let second = traffic.second_members(&rig, &kinds).context("a rebalance at the target")?;
    abort(&rig, "rollback")?;
    wait_until_well(&rig, &mut traffic).context("after an aborted rollback")?;
    traffic.end_members(second)?;
    flip(&rig, "rollback", &[TOPIC])?;
    wait_until_well(&rig, &mut traffic).context("after the rollback")?;
    traffic.replace_members(&rig, &kinds).context("new members that go on from the commits")?;
    abort(&rig, "cutover")?;
    wait_until_well(&rig, &mut traffic).context("after an aborted cutover")?;

    let histories = traffic.finish()?;
    histories.judge_allowing(
        &rig,
        &allowed(&histories.consumers).iter().map(String::as_str).collect::<Vec<_>>(),
    )?;
    read_again(&rig, &kinds, &histories.producers)?;
    seek(&rig, &kinds, &histories.producers)?;
    rig.keep = std::env::var_os("CROSSOVER_KEEP").is_some();
    Ok(())
}

/// The kinds whose libraries are here, or can be fetched.
fn available() -> Result<Vec<Kind>> {
    let mut kinds = Vec::new();
    for kind in chosen(&[&KINDS[..], &MORE].concat())? {
        let setup = repository().join("tests/drivers/setup.sh");
        let output = Command::new("bash").arg(setup).arg(kind.driver).output()?;
        if output.status.success() {
            kinds.push(kind);
        } else {
            println!("NOT RUN: {}: {}", kind.name, String::from_utf8_lossy(&output.stderr).trim());
        }
    }
    ensure!(!kinds.is_empty(), "no client can be run here");
    println!("clients: {}", kinds.iter().map(|kind| kind.name).collect::<Vec<_>>().join(", "));
    Ok(kinds)
}

/// A flip that an operator takes back behind DRAIN, with every client held.
fn abort(rig: &Rig, verb: &'static str) -> Result<()> {
    let stopped = stop_behind(rig, verb, "DRAIN")?;
    let answer = post(rig, "/v1/abort", &json!({}))?;
    ensure!(answer.status == 200, "no abort: {}", answer.body);
    stopped.go_on()?;
    let outcome = stopped.outcome()?;
    ensure!(matches!(outcome, Outcome::Aborted(_)), "the {verb} was not aborted: {outcome:?}");
    Ok(())
}

/// A rebalance may deliver again what was not committed: that is for the library. Nothing may be left out.
fn allowed(consumers: &[PathBuf]) -> Vec<String> {
    consumers.iter().flat_map(|path| ["--allow-redelivery".to_owned(), path.display().to_string()]).collect()
}

fn log_of(producers: &[PathBuf]) -> Result<BTreeSet<(usize, i64)>> {
    let mut log = BTreeSet::new();
    for history in producers {
        log.extend(written(history)?);
    }
    Ok(log)
}

/// A new group of every library reads the log through all eras, from its earliest offset.
fn read_again(rig: &Rig, kinds: &[Kind], producers: &[PathBuf]) -> Result<()> {
    let log = log_of(producers)?;
    let count = log.len().to_string();
    for kind in kinds.iter().filter(|kind| kind.has_group) {
        let reader = group(rig, kind, "again", &["--stop-at-end-count", &count])?;
        let history = wait_end(reader, READ_MAX)?;
        reads_exactly(&history, &log).with_context(|| format!("{} from the earliest offset", kind.name))?;
    }
    println!("read again from the earliest offset: {count} records by each library");
    Ok(())
}

/// A member that is told its positions starts exactly there: in the middle of each partition.
fn seek(rig: &Rig, kinds: &[Kind], producers: &[PathBuf]) -> Result<()> {
    let log = log_of(producers)?;
    let middles: Vec<i64> = ends(&log, PARTITIONS).iter().map(|end| end / 2).collect();
    let rest: BTreeSet<_> = log.iter().copied().filter(|(p, offset)| *offset >= middles[*p]).collect();
    let at =
        middles.iter().enumerate().map(|(p, offset)| format!("{p}={offset}")).collect::<Vec<_>>().join(",");
    let count = rest.len().to_string();
    for kind in kinds.iter().filter(|kind| SEEKERS.contains(&kind.name)) {
        let name = format!("seek-{}", kind.name);
        let commits = ["--topic", TOPIC, "--group", &name, "--commit-at", &at];
        wait_end(rig.driver(kind.driver, "consumer", &format!("{name}-commits"), &commits)?, READ_MAX)?;
        let reads = ["--topic", TOPIC, "--group", &name, "--reset", "none", "--stop-at-end-count", &count];
        let history = wait_end(rig.driver(kind.driver, "consumer", &name, &reads)?, READ_MAX)?;
        reads_exactly(&history, &rest).with_context(|| format!("{} from committed positions", kind.name))?;
    }
    Ok(())
}
