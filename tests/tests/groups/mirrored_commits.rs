//! Both clusters hold every group's position: the home what members commit, the other one a mirror.

use anyhow::{Context, Result, ensure};
use crossover_harness::rig::{Driver, Rig, count};
use crossover_harness::{Cluster, Commit};
use crossover_tests::commits::{Positions, resolve_all};
use crossover_tests::history::{lines, written};
use crossover_tests::measure::now_us;
use crossover_tests::{flip, one_at_a_time, rig, wait_count};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

const WAIT: Duration = Duration::from_secs(60);
const PARTITIONS: usize = 4;
const RECORDS: usize = 300;
/// The mirror is at most so much behind.
const BEHIND_US: i64 = 3_000_000;
/// Group, client, options. One group's home is moved with its topic, the others stay at the source.
const GROUPS: [(&str, &str, &[&str]); 4] = [
    ("java", "java-3.9.2", &["--commit", "sync-each-second"]),
    ("moved", "java-3.9.2", &["--commit", "sync-each-second"]),
    ("librdkafka", "librdkafka", &[]),
    ("kafkajs", "kafkajs", &[]),
];

/// In the first era, after a cutover and after a rollback: 3 s after a group's last commit, its commits as either cluster
/// has them stand for the virtual positions that the group has committed, and neither cluster holds a number or an epoch
/// that is not its own.
#[test]
fn commits_stand_for_the_same_positions_on_both_clusters() -> Result<()> {
    let _turn = one_at_a_time();
    let mut rig = rig("3.9.2", "4.3.1", 2)?;
    rig.keep = true;
    for cluster in [&rig.source, &rig.target] {
        cluster.create_topic("orders", i32::try_from(PARTITIONS)?, 2, &[])?;
    }
    let mut members = Vec::new();
    for (group, client, options) in GROUPS {
        let mut args = vec!["--topic", "orders", "--group", group, "--reset", "earliest"];
        args.extend(options);
        members.push(rig.driver(client, "consumer", group, &args)?);
    }
    // Where each side's log ends natively.
    let mut ends = [[0_i64; PARTITIONS]; 2];
    for (era, verb) in [None, Some("cutover"), Some("rollback")].into_iter().enumerate() {
        if let Some(verb) = verb {
            flip(&rig, verb, &["orders"])?;
        }
        if verb == Some("cutover") {
            let output = rig.crossover(&["groups", "move", "moved", "--to", "target"])?;
            ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        }
        for (partition, count) in write(&rig, era)? {
            ends[era % 2][partition] += count;
        }
        for (index, (group, ..)) in GROUPS.iter().enumerate() {
            judge(&rig, group, &mut members[index], &ends)
                .with_context(|| format!("{group} in era {era}"))?;
        }
    }
    drop(members);
    rig.keep = std::env::var_os("CROSSOVER_KEEP").is_some();
    Ok(())
}

/// Writes an era's records; how many in each partition.
fn write(rig: &Rig, era: usize) -> Result<BTreeMap<usize, i64>> {
    let (writer, count) = ((era + 1).to_string(), PARTITIONS.to_string());
    let args = ["--topic", "orders", "--partitions", &count, "--rate", "200", "--writer", &writer];
    let mut producer = rig.driver("java-3.9.2", "producer", &format!("p{writer}"), &args)?;
    wait_count(&mut producer, "P.ok", RECORDS, WAIT)?;
    let history = producer.history.clone();
    ensure!(producer.stop(), "the producer did not end well");
    let mut counts = BTreeMap::new();
    for (partition, _) in written(&history)? {
        *counts.entry(partition).or_default() += 1;
    }
    Ok(counts)
}

fn judge(rig: &Rig, group: &str, member: &mut Driver, ends: &[[i64; PARTITIONS]; 2]) -> Result<()> {
    let total: i64 = ends.iter().flatten().sum();
    let (committed, last_us) = all_committed(member, total)?;
    std::thread::sleep(Duration::from_micros(u64::try_from(last_us + BEHIND_US - now_us()).unwrap_or(0)));
    let read_us = now_us();
    let found = [rig.source.commits(group)?, rig.target.commits(group)?];
    let tagged = found.each_ref().map(|all| all.iter().filter(|c| c.metadata.starts_with("xo1:")).count());
    println!(
        "{group}: read {} ms after the last commit; with a tag: {} at the source, {} at the target",
        (read_us - last_us) / 1000,
        tagged[0],
        tagged[1]
    );
    for (side, commits) in ["source", "target"].into_iter().zip(&found) {
        let positions = resolve_all(rig, side, "orders", commits)?;
        ensure!(
            positions == committed,
            "the {side} has {commits:?}, which is {positions:?}, not {committed:?}"
        );
    }
    for (cluster, (commits, ends)) in [&rig.source, &rig.target].into_iter().zip(found.iter().zip(ends)) {
        is_its_own(cluster, commits, ends)?;
    }
    Ok(())
}

/// Waits until a member has committed everything; the positions, and when it was told so.
fn all_committed(member: &mut Driver, total: i64) -> Result<(Positions, i64)> {
    let deadline = Instant::now() + WAIT;
    loop {
        let (positions, last_us) = last_commits(&member.history)?;
        if positions.values().sum::<i64>() == total {
            return Ok((positions, last_us));
        }
        ensure!(member.is_alive(), "the member has ended");
        ensure!(
            Instant::now() < deadline,
            "{positions:?} of {total}, {} read",
            count(&member.history, "C.poll")
        );
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn last_commits(history: &Path) -> Result<(Positions, i64)> {
    let (mut positions, mut last_us) = (Positions::new(), 0);
    for line in lines(history, &["C.commit"])? {
        ensure!(line.fields.first().is_some_and(|text| text == "ok"), "a commit failed: {:?}", line.fields);
        let pairs = line.fields.get(1).map_or("", String::as_str);
        for (partition, offset) in pairs.split(',').filter_map(|pair| pair.split_once('=')) {
            positions.insert(partition.parse()?, offset.parse()?);
        }
        last_us = line.at_us;
    }
    Ok((positions, last_us))
}

/// Whoever uses a cluster without the proxy must not be sent beyond its log, nor into an epoch it has never had.
fn is_its_own(cluster: &Cluster, commits: &[Commit], ends: &[i64; PARTITIONS]) -> Result<()> {
    let topic = cluster.topic("orders")?.context("the topic is gone")?;
    for commit in commits.iter().filter(|commit| commit.topic == "orders") {
        let partition = usize::try_from(commit.partition)?;
        let epoch = topic.partitions[partition].leader_epoch;
        ensure!((0..=ends[partition]).contains(&commit.offset), "{commit:?}, the log ends at {ends:?}");
        ensure!(commit.leader_epoch <= epoch, "{commit:?}, the epoch is {epoch}");
    }
    Ok(())
}

/// A commit that cannot be copied is copied later, even when no other one follows it.
#[test]
fn the_last_commit_reaches_a_cluster_that_was_away() -> Result<()> {
    let _turn = one_at_a_time();
    let mut rig = rig("3.9.2", "4.3.1", 1)?;
    rig.keep = true;
    for cluster in [&rig.source, &rig.target] {
        cluster.create_topic("orders", i32::try_from(PARTITIONS)?, 1, &[])?;
    }
    let args = ["--topic", "orders", "--group", "g", "--reset", "earliest", "--commit", "sync-each-second"];
    let mut member = rig.driver("java-3.9.2", "consumer", "g", &args)?;
    wait_count(&mut member, "C.assign", 1, WAIT)?;
    rig.target.stop_broker(1)?;
    let total = write(&rig, 0)?.values().sum();
    let (committed, _) = all_committed(&mut member, total)?;
    // Longer than between two copies: the mirror has failed at least once by then.
    std::thread::sleep(Duration::from_micros(BEHIND_US.unsigned_abs()));
    ensure!(member.stop(), "the member did not end well");
    rig.target.start_broker(1)?;
    let deadline = Instant::now() + WAIT;
    loop {
        // Just started, the coordinator has not loaded its groups.
        let found = rig
            .target
            .commits("g")
            .map_err(anyhow::Error::from)
            .and_then(|commits| resolve_all(&rig, "target", "orders", &commits));
        if found.as_ref().is_ok_and(|positions| *positions == committed) {
            break;
        }
        ensure!(Instant::now() < deadline, "the target has {found:?}, not {committed:?}");
        std::thread::sleep(Duration::from_millis(100));
    }
    rig.keep = std::env::var_os("CROSSOVER_KEEP").is_some();
    Ok(())
}
