//! Clients ignore leaders with an epoch below one they have seen, and truncate to what an older epoch ended at.

use anyhow::{Context, Result, ensure};
use crossover_harness::Cluster;
use crossover_tests::live::{KINDS, Kind, TOPIC, Traffic, create_topic};
use crossover_tests::{one_at_a_time, rig};
use std::time::Duration;

const EPOCH: i32 = 55;
const RATE: u32 = 60;
const BETWEEN: Duration = Duration::from_secs(5);
/// Those that look at epochs.
const CLIENTS: [&str; 4] = ["java-3.9.2", "java-4.3.1", "librdkafka", "franz"];

/// The source's leader epochs are above 50, the target's near 0; clients live through a cutover and a rollback, and members
/// that come later start from commits of every era.
#[test]
fn leader_epochs_of_the_source_are_far_above_the_targets() -> Result<()> {
    let _turn = one_at_a_time();
    let mut rig = rig("3.9.2", "4.3.1", 2)?;
    rig.keep = true;
    create_topic(&rig)?;
    raise_epochs(&rig.source)?;
    let kinds: Vec<Kind> = KINDS.into_iter().filter(|kind| CLIENTS.contains(&kind.name)).collect();
    let mut traffic = Traffic::start(&rig, &kinds, RATE)?;
    for _ in 0..2 {
        traffic.flip(&rig, 1, BETWEEN)?;
        println!("epochs: source {:?}, target {:?}", epochs(&rig.source)?, epochs(&rig.target)?);
        ensure!(epochs(&rig.target)?.iter().all(|epoch| *epoch < 10), "the target's epochs are not low");
        traffic.replace_members(&rig, &kinds)?;
    }
    traffic.finish()?.judge(&rig)?;
    rig.keep = std::env::var_os("CROSSOVER_KEEP").is_some();
    Ok(())
}

/// Elections until every partition has a high epoch.
fn raise_epochs(cluster: &Cluster) -> Result<()> {
    while epochs(cluster)?.iter().any(|epoch| *epoch < EPOCH) {
        cluster.rotate_replicas(TOPIC)?;
        cluster.elect_preferred(TOPIC)?;
    }
    cluster.wait_in_sync(TOPIC)?;
    Ok(())
}

fn epochs(cluster: &Cluster) -> Result<Vec<i32>> {
    let topic = cluster.topic(TOPIC)?.context("the topic is gone")?;
    Ok(topic.partitions.iter().map(|p| p.leader_epoch).collect())
}
