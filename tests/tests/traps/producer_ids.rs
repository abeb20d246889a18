//! Both clusters hand out producer ids from the same numbers. A producer of the one must not be taken for one of the other.

use anyhow::{Context, Result, ensure};
use crossover_harness::Cluster;
use crossover_harness::rig::{Driver, Rig};
use crossover_tests::history::{Name, acknowledged, delivered};
use crossover_tests::live::{KINDS, Kind, PARTITIONS, TOPIC, create_topic};
use crossover_tests::paused::Paused;
use crossover_tests::{end, one_at_a_time, rig, text, wait_count, wait_more};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

const RATE: &str = "40";
const RECORDS: usize = 200;
const WAIT: Duration = Duration::from_secs(90);
/// The writers' numbers are those of their places in `KINDS`, behind these.
const DIRECT: i64 = 100;

/// Producers of every library write through the proxy, and as many, with the same ids and sequence numbers, directly to the
/// target. The topic goes to the target, back, and again: every acknowledged record lies in one of the logs, once.
#[test]
fn producer_ids_of_both_clusters_do_not_collide() -> Result<()> {
    let _turn = one_at_a_time();
    let mut rig = rig("3.9.2", "4.3.1", 1)?;
    rig.keep = true;
    create_topic(&rig)?;
    let kinds: Vec<Kind> = KINDS.into_iter().filter(|kind| kind.has_group).collect();
    let mut direct = start(&rig, &kinds, &rig.target.bootstrap(), DIRECT)?;
    let mut through = start(&rig, &kinds, &rig.bootstrap, 0)?;
    for verb in ["cutover", "rollback", "cutover"] {
        go_on(&mut through)?;
        // Somebody who writes to the idle side during a flip would make it abort, and rightly so.
        let idle = direct.iter().map(Paused::new).collect::<Result<Vec<_>>>()?;
        let output = rig.crossover(&[verb, TOPIC, "--force"])?;
        ensure!(output.status.success(), "{verb}: {}", text(&output));
        drop(idle);
        go_on(&mut direct)?;
        println!("{verb}: both write on");
    }
    go_on(&mut through)?;
    let mut wanted: BTreeMap<Name, usize> = BTreeMap::new();
    for (producers, first) in [(direct, DIRECT), (through, 0)] {
        for (index, producer) in producers.into_iter().enumerate() {
            let history = end(producer)?;
            let failed = crossover_harness::rig::count(&history, "P.fail");
            ensure!(failed == 0, "{failed} records failed: {}", history.display());
            wanted.extend(acknowledged(&history, writer(first, index)?)?.into_iter().map(|name| (name, 0)));
        }
    }
    for history in [read(&rig, &rig.source, "source")?, read(&rig, &rig.target, "target")?] {
        for name in delivered(&history)? {
            *wanted.entry(name).or_default() += 1;
        }
    }
    let wrong: Vec<_> = wanted.iter().filter(|(_, times)| **times != 1).take(5).collect();
    ensure!(wrong.is_empty(), "not once in the logs (writer, partition, number; times): {wrong:?}");
    println!("{} records, each once", wanted.len());
    rig.keep = std::env::var_os("CROSSOVER_KEEP").is_some();
    Ok(())
}

fn writer(first: i64, index: usize) -> Result<i64> {
    Ok(first + i64::try_from(index)? + 1)
}

fn start(rig: &Rig, kinds: &[Kind], bootstrap: &str, first: i64) -> Result<Vec<Driver>> {
    let start = |(index, kind): (usize, &Kind)| {
        let writer = writer(first, index)?.to_string();
        let mut args =
            vec!["--topic", TOPIC, "--partitions", PARTITIONS, "--rate", RATE, "--writer", &writer];
        args.extend(kind.producer);
        let name = format!("{}-producer-{writer}", kind.name);
        Ok(rig.driver_at(bootstrap, kind.driver, "producer", &name, &args)?)
    };
    let mut started: Vec<Driver> = kinds.iter().enumerate().map(start).collect::<Result<_>>()?;
    go_on(&mut started)?;
    Ok(started)
}

/// Each has more records acknowledged.
fn go_on(producers: &mut [Driver]) -> Result<()> {
    wait_more(producers.iter_mut().map(|producer| (producer, "P.ok")), RECORDS, WAIT)
}

/// A cluster's whole log, by a reader of its own.
fn read(rig: &Rig, cluster: &Cluster, name: &str) -> Result<PathBuf> {
    let bootstrap = cluster.bootstrap();
    let ends = rig.target.kafka().run_tool(
        "kafka-get-offsets",
        &["--bootstrap-server", &bootstrap, "--topic", TOPIC],
        None,
    )?;
    let ends = text(&ends);
    let end = |line: &str| line.rsplit_once(':').and_then(|(_, end)| end.trim().parse::<usize>().ok());
    let records: usize = ends.lines().filter_map(end).sum();
    ensure!(records > 0, "the log is empty: {ends}");
    let name = format!("reader-{name}");
    let args = ["--topic", TOPIC, "--group", &name, "--reset", "earliest"];
    let mut reader = rig.driver_at(&bootstrap, "java-3.9.2", "consumer", &name, &args)?;
    wait_count(&mut reader, "C.poll", records, WAIT).context("the log cannot be read whole")?;
    crossover_tests::end(reader)
}
