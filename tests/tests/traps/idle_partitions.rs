//! A broker never mentions an idle partition in an incremental fetch session, so only the proxy can tell that it moved.

use anyhow::{Context, Result, ensure};
use crossover_harness::rig::{Driver, Rig};
use crossover_tests::history::{At, lines};
use crossover_tests::live::{KINDS, Kind};
use crossover_tests::measure::{machine_load, now_us};
use crossover_tests::{check, flip, one_at_a_time, rig, wait_count};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

const PARTITIONS: usize = 50;
/// Each partition has a record every ten seconds.
const RATE: &str = "5";
const WAIT: Duration = Duration::from_secs(120);
/// From a record's acknowledgement, when it certainly is in the log, to its delivery.
const LATE_MS: f64 = 2_000.0;

/// Every partition is idle when its topic flips; the first record after the flip reaches every kind of consumer promptly,
/// long before metadata ages (five minutes by default).
#[test]
fn the_first_record_of_an_idle_partition_after_a_flip_is_delivered_promptly() -> Result<()> {
    let _turn = one_at_a_time();
    let mut rig = rig("3.9.2", "4.3.1", 2)?;
    rig.keep = true;
    for cluster in [&rig.source, &rig.target] {
        cluster.create_topic("idle", i32::try_from(PARTITIONS)?, 2, &[])?;
        cluster.wait_in_sync("idle")?;
    }
    let kinds: Vec<Kind> = KINDS.into_iter().filter(|kind| kind.has_group).collect();
    let mut consumers: Vec<Driver> = kinds.iter().map(|kind| reader(&rig, kind)).collect::<Result<_>>()?;
    let args = ["--topic", "idle", "--partitions", "50", "--rate", RATE, "--writer", "1"];
    let mut producer = rig.driver("java-3.9.2", "producer", "p1", &args)?;
    // A round in which every session learns all partitions, and one that shows how late records are without a flip.
    every_partition(&mut producer)?;
    let mut marks = vec![("no flip", now_us())];
    every_partition(&mut producer)?;
    for verb in ["cutover", "rollback"] {
        flip(&rig, verb, &["idle"])?;
        marks.push((verb, now_us()));
        println!("{verb}, {}", machine_load());
        every_partition(&mut producer)?;
    }
    let written = producer.history.clone();
    ensure!(producer.stop(), "the producer did not end well");
    let total = crossover_harness::rig::count(&written, "P.ok");
    let mut read = Vec::new();
    for mut consumer in consumers.drain(..) {
        wait_count(&mut consumer, "C.poll", total, WAIT)?;
        read.push(consumer.history.clone());
        ensure!(consumer.stop(), "a consumer did not end well");
    }
    println!("{}", check(&rig, "idle", std::slice::from_ref(&written), &read, &[])?);
    for (kind, history) in kinds.iter().zip(&read) {
        judge(kind, &written, history, &marks)?;
    }
    rig.keep = std::env::var_os("CROSSOVER_KEEP").is_some();
    Ok(())
}

fn reader(rig: &Rig, kind: &Kind) -> Result<Driver> {
    let args = ["--topic", "idle", "--group", kind.name, "--reset", "earliest"];
    Ok(rig.driver(kind.driver, "consumer", &format!("{}-reader", kind.name), &args)?)
}

/// Waits until each partition has another record.
fn every_partition(producer: &mut Driver) -> Result<()> {
    // Acknowledgements reach the file a little late: a few more than one each.
    let so_far = producer.count("P.ok");
    wait_count(producer, "P.ok", so_far + PARTITIONS + 5, WAIT)
}

/// How late the first record of each partition was after each mark.
fn judge(kind: &Kind, written: &Path, read: &Path, marks: &[(&str, i64)]) -> Result<()> {
    let acked: BTreeMap<At, i64> = at_us(written, "P.ok")?.into_iter().collect();
    let read = at_us(read, "C.poll")?;
    for (verb, mark) in marks {
        let mut late_ms = BTreeMap::new();
        for (at, read_us) in &read {
            let acked_us = acked.get(at).context("a record that nobody has written")?;
            if acked_us > mark {
                late_ms.entry(at.0).or_insert((read_us - acked_us) as f64 / 1000.0);
            }
        }
        ensure!(late_ms.len() == PARTITIONS, "{} read {} partitions", kind.name, late_ms.len());
        let (worst, ms) =
            late_ms.iter().max_by(|a, b| a.1.total_cmp(b.1)).context("no partition was read")?;
        println!("{:<12} {verb:<9} the latest is partition {worst:>2}, after {ms:.0} ms", kind.name);
        ensure!(*ms < LATE_MS, "{}: after the {verb} a record waits {ms:.0} ms", kind.name);
    }
    Ok(())
}

fn at_us(history: &Path, event: &str) -> Result<Vec<(At, i64)>> {
    lines(history, &[event])?.iter().map(|line| Ok((line.at()?, line.at_us))).collect()
}
