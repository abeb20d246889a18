//! When everything is on the target, clients leave the proxy: what it has stored there must be the target's own.

use anyhow::{Context, Result, ensure};
use crossover_harness::rig::{Driver, Rig};
use crossover_tests::history::{Name, acknowledged, delivered};
use crossover_tests::live::{KINDS, Kind, TOPIC, Traffic, create_topic, group_name};
use crossover_tests::{end, one_at_a_time, rig, wait_count, wait_for, wait_more};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

const RATE: u32 = 40;
const BETWEEN: Duration = Duration::from_secs(3);
const WAIT: Duration = Duration::from_secs(90);
/// Each group reads so many records in the target's era, and leaves about as many unread.
const RECORDS: usize = 400;

/// Groups of every library read over a cutover and move; then the proxy and the source go, and the same groups go on at
/// the target, where every offset is another one: with the record behind the last one they had read.
#[test]
fn clients_leave_the_proxy_for_the_target() -> Result<()> {
    let _turn = one_at_a_time();
    let mut rig = rig("3.9.2", "4.3.1", 1)?;
    rig.keep = true;
    create_topic(&rig)?;
    let kinds: Vec<Kind> = KINDS.into_iter().filter(|kind| kind.has_group).collect();
    // What a library commits by itself may be behind what it has given out: then a record is given again, and must be.
    let mut traffic = Traffic::start_with(&rig, &kinds, RATE, &["--commit", "sync-each-second"])?;
    traffic.flip(&rig, 1, BETWEEN)?;
    traffic.move_groups(&rig, "target", &kinds)?;
    traffic.flows(RECORDS, WAIT)?;
    let through_proxy = end_all(&mut traffic.consumers)?;
    wait_more(traffic.producers.iter_mut().map(|producer| (producer, "P.ok")), RECORDS, WAIT)?;
    let written = end_all(&mut traffic.producers)?;
    let writers = written.iter().enumerate();
    let written = writers.map(|(index, history)| acknowledged(history, i64::try_from(index)? + 1));
    let written: BTreeSet<Name> = written.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect();
    rig.stop_proxy()?;
    rig.source.broker_ids().into_iter().try_for_each(|broker| rig.source.stop_broker(broker))?;
    for (kind, history) in kinds.iter().zip(through_proxy) {
        let read = delivered(&history)?;
        let unread: BTreeSet<Name> = written.iter().filter(|name| !read.contains(name)).copied().collect();
        goes_on(&rig, kind, &unread).with_context(|| kind.name)?;
    }
    Ok(())
}

fn end_all(clients: &mut Vec<Driver>) -> Result<Vec<std::path::PathBuf>> {
    clients.drain(..).map(end).collect()
}

/// The group reads, directly, what it had not read, each partition in the order of the log, and nothing else.
fn goes_on(rig: &Rig, kind: &Kind, unread: &BTreeSet<Name>) -> Result<()> {
    let group = group_name("live", kind);
    let lags = lags(rig, &group)?;
    let lag: i64 = lags.values().sum();
    ensure!(
        lags.len() == 12 && lags.values().all(|lag| *lag >= 0),
        "commits beyond the target's log: {lags:?}"
    );
    ensure!(lag == i64::try_from(unread.len())?, "it lags by {lag}, and has not read {}", unread.len());
    let name = format!("{}-direct", kind.name);
    let args = ["--topic", TOPIC, "--group", &group, "--reset", "earliest"];
    let mut direct = rig.driver_at(&rig.target.bootstrap(), kind.driver, "consumer", &name, &args)?;
    wait_count(&mut direct, "C.poll", unread.len(), WAIT)?;
    wait_for(WAIT, "everything to be committed", || Ok(self::lags(rig, &group)?.values().sum::<i64>() == 0))?;
    let read = delivered(&end(direct)?)?;
    let again = read.iter().filter(|name| !unread.contains(name)).count();
    let distinct: BTreeSet<Name> = read.iter().copied().collect();
    ensure!(again == 0 && distinct.len() == read.len(), "{again} of {} records were given again", read.len());
    ensure!(distinct == *unread, "{} of {} records were read", distinct.len(), unread.len());
    println!("{}: {} records unread, all read directly, none again", kind.name, unread.len());
    Ok(())
}

/// What the target's own tool says of a group, by partition.
fn lags(rig: &Rig, group: &str) -> Result<BTreeMap<i32, i64>> {
    let bootstrap = rig.target.bootstrap();
    let args = ["--bootstrap-server", &bootstrap, "--describe", "--group", group];
    let output = rig.target.kafka().run_tool("kafka-consumer-groups", &args, None)?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let row = |line: &str| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let number = |index: usize| columns.get(index)?.parse::<i64>().ok();
        (columns.get(1) == Some(&TOPIC)).then_some(())?;
        Some((i32::try_from(number(2)?).ok()?, number(5)?))
    };
    Ok(text.lines().filter_map(row).collect())
}
