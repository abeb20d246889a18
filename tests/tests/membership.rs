//! Brokers that are added, that move to other addresses, and that go for good, under load and between flips.

use anyhow::{Context, Result, ensure};
use crossover_harness::rig::Rig;
use crossover_tests::live::{KINDS, Kind, TOPIC, Traffic};
use crossover_tests::{flip, one_at_a_time, rig};
use std::time::Duration;

const RATE: u32 = 20;
const PARTITIONS: i32 = 12;
const REPLICAS: i16 = 3;
const FLOWS: usize = 60;
const FLOWS_MAX: Duration = Duration::from_secs(60);
/// The last broker comes later.
const LATE: i32 = 4;
/// Goes away, and comes back at another address.
const MOVED: i32 = 3;
/// Goes for good.
const LEAVING: i32 = 2;
const COMMITS: &str = "__consumer_offsets";

/// The proxy never restarts, and no client does.
#[test]
fn brokers_come_move_and_go() -> Result<()> {
    let _turn = one_at_a_time();
    let mut rig = rig("3.9.2", "4.3.1", 4)?;
    rig.keep = true;
    forget_the_late_brokers(&mut rig)?;
    for cluster in [&rig.source, &rig.target] {
        cluster.create_topic(TOPIC, PARTITIONS, REPLICAS, &[("min.insync.replicas", "2")])?;
        cluster.wait_in_sync(TOPIC)?;
    }
    // Leaders change while their side owns the topic, as on a bare cluster. There acks=1 loses records (it is left out), and
    // kafkajs too: its retry leaves out what has moved to a broker that has answered already (`sendMessages.js`), and as
    // an idempotent producer it confuses its sequence numbers besides. sarama tells of every connection that a broker ends.
    let kinds = KINDS[1..6].iter().copied().map(|kind| match kind.name {
        "kafkajs" => Kind { producer: &["--idempotent", "false"], ..kind },
        _ => kind,
    });
    let kinds: Vec<Kind> = kinds.collect();
    let mut traffic = Traffic::start(&rig, &kinds, RATE)?;

    for cluster in [&rig.source, &rig.target] {
        cluster.start_broker(LATE)?;
        cluster.spread(TOPIC, &[2, 3, LATE])?;
        cluster.elect_preferred(TOPIC)?;
        leads(cluster.topic(TOPIC)?.context("no topic")?.partitions.iter().map(|p| p.leader), LATE)?;
    }
    traffic.flows(FLOWS, FLOWS_MAX).context("with added brokers")?;
    flip(&rig, "cutover", &[TOPIC])?;
    traffic.flows(FLOWS, FLOWS_MAX).context("at an added broker of the target")?;

    for cluster in [&mut rig.source, &mut rig.target] {
        cluster.stop_broker(MOVED)?;
        cluster.start_broker_elsewhere(MOVED)?;
        cluster.wait_in_sync(TOPIC)?;
        cluster.elect_preferred(TOPIC)?;
    }
    traffic.flows(FLOWS, FLOWS_MAX).context("with brokers at other addresses")?;
    flip(&rig, "rollback", &[TOPIC])?;
    traffic.flows(FLOWS, FLOWS_MAX).context("at a broker of the source that has moved")?;

    for cluster in [&rig.source, &rig.target] {
        for topic in [TOPIC, COMMITS] {
            if cluster.topic(topic)?.is_some() {
                cluster.spread(topic, &[1, MOVED, LATE])?;
                cluster.elect_preferred(topic)?;
            }
        }
        cluster.stop_broker(LEAVING)?;
    }
    traffic.flows(FLOWS, FLOWS_MAX).context("without the brokers that have gone")?;
    for verb in ["cutover", "rollback"] {
        flip(&rig, verb, &[TOPIC])?;
        traffic.flows(FLOWS, FLOWS_MAX).context(verb)?;
    }
    let kafkajs = kinds.len().to_string();
    traffic.finish()?.judge_allowing(
        &rig,
        &["--allow-duplicates", &kafkajs, "--allow-loss", &kafkajs, "--allow-errors", "C.error"],
    )?;
    rig.keep = std::env::var_os("CROSSOVER_KEEP").is_some();
    Ok(())
}

/// A proxy that has never seen them.
fn forget_the_late_brokers(rig: &mut Rig) -> Result<()> {
    rig.stop_proxy()?;
    std::fs::remove_dir_all(rig.directory.join("crossover-state"))?;
    for cluster in [&rig.source, &rig.target] {
        cluster.stop_broker(LATE)?;
    }
    Ok(rig.start_proxy()?)
}

fn leads(leaders: impl Iterator<Item = i32>, broker: i32) -> Result<()> {
    ensure!(leaders.into_iter().any(|leader| leader == broker), "broker {broker} leads nothing");
    Ok(())
}
