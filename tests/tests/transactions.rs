//! Transactions across flips: each is wholly in the log of one side, once, and its producer is told of no error.

use anyhow::{Context, Result, ensure};
use crossover_harness::rig::{Driver, Rig};
use crossover_tests::history::{Name, acknowledged, delivered, lines, reads_once_in_order};
use crossover_tests::live::{PARTITIONS, TOPIC, create_topic};
use crossover_tests::{end, flip, no_alarms, one_at_a_time, rig, text, wait_count, wait_more};
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

const WAIT: Duration = Duration::from_secs(90);
/// Committed by each producer between two flips.
const BETWEEN: usize = 200;

const PRODUCERS: [&str; 5] = ["java-3.9.2", "java-4.3.1", "librdkafka", "franz", "sarama"];
const READERS: [(&str, &[&str]); 2] =
    [("java-4.3.1", &["--conf", "isolation.level=read_committed"]), ("librdkafka", &[])];

/// Trap 7: producers of every library commit and abort through cutovers and rollbacks, and a restart of the proxy.
#[test]
fn trap_7_transactions_go_on_over_flips() -> Result<()> {
    over_flips("3.9.2", "4.3.1")
}

/// The same where both clusters would offer transaction.version 2.
#[test]
fn trap_7_transactions_go_on_over_flips_between_new_clusters() -> Result<()> {
    over_flips("4.3.1", "4.3.1")
}

fn over_flips(source: &str, target: &str) -> Result<()> {
    let _turn = one_at_a_time();
    let mut rig = rig(source, target, 1)?;
    rig.keep = true;
    create_topic(&rig)?;
    let mut readers = READERS.iter().map(|r| reader(&rig, "live", r)).collect::<Result<Vec<_>>>()?;
    let writers = PRODUCERS.iter().enumerate();
    let mut producers =
        writers.map(|(index, kind)| producer(&rig, index + 1, kind)).collect::<Result<Vec<_>>>()?;
    commit(&mut producers)?;
    for command in ["cutover", "rollback", "cutover"] {
        println!("{command}: {:?}", flip(&rig, command, &[TOPIC])?);
        commit(&mut producers)?;
    }
    rig.stop_proxy()?;
    rig.start_proxy()?;
    commit(&mut producers)?;
    println!("rollback: {:?}", flip(&rig, "rollback", &[TOPIC])?);
    commit(&mut producers)?;
    no_alarms(&rig)?;
    let histories = producers.into_iter().map(end).collect::<Result<Vec<_>>>()?;
    let (committed, aborted) = outcome(&histories)?;
    for reader in &mut readers {
        wait_count(reader, "C.poll", committed.len(), WAIT)?;
    }
    for late in READERS.iter().map(|r| reader(&rig, "late", r)) {
        let mut late = late?;
        wait_count(&mut late, "C.poll", committed.len(), WAIT)?;
        readers.push(late);
    }
    for reader in readers {
        let name = reader.history.display().to_string();
        let history = end(reader)?;
        ensure!(!delivered(&history)?.iter().any(|name| aborted.contains(name)), "{name}: what was aborted");
        reads_once_in_order(&history, &committed).context(name)?;
    }
    println!(
        "{} records committed, {} aborted; each reader has read those, once, in order",
        committed.len(),
        aborted.len()
    );
    Ok(())
}

/// A transaction that does not end keeps the flip from its topic: an operator sees it, aborts it, and the flip goes on. Its
/// producer is told that it was fenced.
#[test]
fn trap_7_a_hung_transaction_is_shown_and_can_be_aborted() -> Result<()> {
    let _turn = one_at_a_time();
    let mut rig = rig("3.9.2", "4.3.1", 1)?;
    rig.keep = true;
    create_topic(&rig)?;
    let args = ["--topic", TOPIC, "--partitions", PARTITIONS, "--rate", "50", "--writer", "1"];
    let args = [&args[..], &["--transaction", "hung"]].concat();
    let mut producer = rig.driver("java-4.3.1", "producer", "hung", &args)?;
    wait_count(&mut producer, "P.ok", 100, WAIT)?;
    let refused = flip(&rig, "cutover", &[TOPIC]).err().context("the flip did not wait")?.to_string();
    ensure!(refused.contains("transactional id hung has had a transaction open"), "{refused}");
    let shown = rig.crossover(&["transactions", "--json"])?;
    let open: Value = serde_json::from_slice(&shown.stdout).with_context(|| text(&shown))?;
    let open = open.as_array().context("no list")?;
    ensure!(open.len() == 1, "{open:?}");
    ensure!(open[0]["transactional_id"] == "hung" && open[0]["side"] == "source", "{open:?}");
    ensure!(open[0]["topics"][0] == TOPIC && open[0]["open_ms"].as_i64() > Some(0), "{open:?}");
    println!("{}", text(&rig.crossover(&["transactions"])?));
    let aborted = rig.crossover(&["transactions", "abort", "hung"])?;
    ensure!(aborted.status.success(), "{}", text(&aborted));
    println!("{}", text(&aborted));
    flip(&rig, "cutover", &[TOPIC])?;
    wait_count(&mut producer, "P.fail", 1, WAIT)?;
    let again = rig.crossover(&["transactions", "abort", "hung"])?;
    ensure!(
        !again.status.success() && text(&again).contains("No transaction of hung is open"),
        "{}",
        text(&again)
    );
    no_alarms(&rig)?;
    rig.keep = false;
    Ok(())
}

fn producer(rig: &Rig, writer: usize, kind: &str) -> Result<Driver> {
    let (id, writer) = (format!("pay-{writer}"), writer.to_string());
    let args = ["--topic", TOPIC, "--partitions", PARTITIONS, "--rate", "200", "--writer", &writer];
    let args = [&args[..], &["--transaction", &id, "--transaction-records", "20"]].concat();
    Ok(rig.driver(kind, "producer", &format!("{kind}-transactions"), &args)?)
}

fn reader(rig: &Rig, which: &str, (kind, more): &(&str, &[&str])) -> Result<Driver> {
    let group = format!("{kind}-{which}");
    let args = [&["--topic", TOPIC, "--group", &group, "--reset", "earliest"][..], *more].concat();
    Ok(rig.driver(kind, "consumer", &group, &args)?)
}

/// Every producer commits more.
fn commit(producers: &mut [Driver]) -> Result<()> {
    wait_more(producers.iter_mut().map(|producer| (producer, "P.ok")), BETWEEN, WAIT)
}

/// What was committed, and what was aborted.
fn outcome(histories: &[PathBuf]) -> Result<(BTreeSet<Name>, BTreeSet<Name>)> {
    let (mut committed, mut aborted) = (BTreeSet::new(), BTreeSet::new());
    for (history, writer) in histories.iter().zip(1..) {
        let failed = lines(history, &["P.fail", "E.error"])?;
        ensure!(
            failed.is_empty(),
            "{}: the application was told of an error: {:?}",
            history.display(),
            failed.first().map(|line| &line.fields)
        );
        committed.extend(acknowledged(history, writer)?);
        for line in lines(history, &["P.aborted"])? {
            aborted.insert((writer, line.at()?.0, line.number(1)?));
        }
    }
    ensure!(!aborted.is_empty(), "nothing was aborted");
    Ok((committed, aborted))
}
