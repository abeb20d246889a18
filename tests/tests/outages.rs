//! A whole cluster is down: that costs only what lives on it (RULES R30).

use anyhow::{Context, Result, ensure};
use crossover_harness::Cluster;
use crossover_tests::faults::{owner, wait_until_well};
use crossover_tests::live::{KINDS, TOPIC, Traffic, create_topic, group, wait_end};
use crossover_tests::{flip, one_at_a_time, rig, wait_count, wait_more};
use std::time::{Duration, Instant};

/// Longer than clients wait for an answer, than metadata is refreshed after an error, and than sessions last.
const OUTAGE: Duration = Duration::from_secs(60);
/// The longest that any client may stand still meanwhile.
const STILL_MAX: Duration = Duration::from_secs(5);
const RATE: u32 = 40;
const WELL: Duration = Duration::from_secs(60);

fn kill(cluster: &Cluster) -> Result<()> {
    cluster.broker_ids().into_iter().try_for_each(|broker| Ok(cluster.kill_broker(broker)?))
}

/// Every client goes on for the whole outage.
fn stays_well(traffic: &mut Traffic) -> Result<()> {
    let until = Instant::now() + OUTAGE;
    let mut seen = vec![(0, Instant::now()); traffic.producers.len() + traffic.consumers.len()];
    while Instant::now() < until {
        let producers = traffic.producers.iter_mut().map(|client| (client, "P.ok"));
        let consumers = traffic.consumers.iter_mut().map(|client| (client, "C.poll"));
        for ((client, event), (count, since)) in producers.chain(consumers).zip(&mut seen) {
            ensure!(client.is_alive(), "{} has ended: see {}", client.name, client.history.display());
            let now = client.count(event);
            if now > *count {
                (*count, *since) = (now, Instant::now());
            }
            ensure!(
                since.elapsed() < STILL_MAX,
                "{} stands still while the other cluster is down",
                client.name
            );
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

/// A producer with four attempts, as `kafka-console-producer` has them, loses nothing when a leader dies: not directly, for
/// the dead broker refuses it, and not through the proxy.
#[test]
fn r30_a_dead_leader_uses_up_no_attempts() -> Result<()> {
    let _turn = one_at_a_time();
    let mut rig = rig("3.9.2", "4.3.1", 3)?;
    rig.keep = true;
    let mut writers = Vec::new();
    for (topic, at) in [("via", rig.bootstrap.clone()), ("direct", rig.source.bootstrap())] {
        rig.source.create_topic(topic, 6, 3, &[("min.insync.replicas", "1")])?;
        let args =
            ["--topic", topic, "--partitions", "6", "--rate", "100", "--writer", "1", "--conf", "retries=3"];
        let mut writer = rig.driver_at(&at, "java-3.9.2", "producer", topic, &args)?;
        wait_count(&mut writer, "P.ok", 300, WELL)?;
        writers.push(writer);
    }
    // Each leads some partitions of both topics; the first one is the only voter of the controllers.
    let last = *rig.source.broker_ids().last().context("no broker")?;
    rig.source.kill_broker(last)?;
    wait_more(writers.iter_mut().map(|writer| (writer, "P.ok")), 1_500, WELL)?;
    let failed: Vec<usize> = writers.iter_mut().map(|writer| writer.count("P.fail")).collect();
    println!("records given up: {} through the proxy, {} directly", failed[0], failed[1]);
    ensure!(
        failed[0] <= failed[1],
        "a dead leader cost {} records through the proxy, {} directly",
        failed[0],
        failed[1]
    );
    rig.keep = false;
    Ok(())
}

#[test]
fn r30_the_target_is_down_before_a_cutover() -> Result<()> {
    let _turn = one_at_a_time();
    let mut rig = rig("3.9.2", "4.3.1", 2)?;
    rig.keep = true;
    create_topic(&rig)?;
    let mut traffic = Traffic::start(&rig, &KINDS, RATE)?;
    kill(&rig.target)?;
    stays_well(&mut traffic)?;
    let refused = flip(&rig, "cutover", &[TOPIC]).err().map(|e| e.to_string()).unwrap_or_default();
    ensure!(refused.contains("target"), "the cutover is not refused for the target: {refused:?}");
    rig.target.start_all()?;
    wait_until_well(&rig, &mut traffic)?;
    flip(&rig, "cutover", &[TOPIC])?;
    wait_until_well(&rig, &mut traffic)?;
    traffic.finish()?.judge(&rig)?;
    rig.keep = false;
    Ok(())
}

#[test]
fn r30_the_source_is_down_after_a_cutover() -> Result<()> {
    let _turn = one_at_a_time();
    let mut rig = rig("3.9.2", "4.3.1", 2)?;
    rig.keep = true;
    create_topic(&rig)?;
    let mut traffic = Traffic::start(&rig, &KINDS, RATE)?;
    flip(&rig, "cutover", &[TOPIC])?;
    for kind in KINDS.iter().filter(|kind| kind.has_group) {
        // A group's home is a thing of its own: it must be on the living side.
        let output = rig.crossover(&["groups", "move", &format!("live-{}", kind.name), "--to", "target"])?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    wait_until_well(&rig, &mut traffic)?;
    kill(&rig.source)?;
    stays_well(&mut traffic)?;
    let refused = flip(&rig, "rollback", &[TOPIC]).err().map(|e| e.to_string()).unwrap_or_default();
    ensure!(refused.contains("source"), "the rollback is not refused for the source: {refused:?}");
    ensure!(owner(&rig)? == "target", "the refused rollback moved the topic");
    rig.source.start_all()?;
    wait_until_well(&rig, &mut traffic)?;
    flip(&rig, "rollback", &[TOPIC])?;
    wait_until_well(&rig, &mut traffic)?;
    let mut histories = traffic.finish()?;
    // History, on both sides, is all there for who comes later.
    let all = histories.written.to_string();
    let late = group(&rig, &KINDS[1], "late", &["--stop-at-end-count", &all])?;
    histories.consumers.push(wait_end(late, Duration::from_secs(120))?);
    histories.judge(&rig)?;
    rig.keep = false;
    Ok(())
}
