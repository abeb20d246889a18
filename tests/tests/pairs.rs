//! Pairs of Kafka versions besides 3.9 to 4.x: back to an older release, and from ZooKeeper times. The proxy offers what
//! both clusters speak, so each pair is another protocol for every client.

use anyhow::Result;
use crossover_tests::live::{KINDS, Kind, Traffic, create_topic};
use crossover_tests::measure::machine_load;
use crossover_tests::{one_at_a_time, rig};
use std::time::Duration;

/// Records per second of one producer.
const RATE: u32 = 60;
const BETWEEN: Duration = Duration::from_secs(5);
/// One of each library: what a second Java version or acks=1 would add does not depend on the pair.
const CLIENTS: [&str; 5] = ["java-3.9.2", "librdkafka", "franz", "sarama", "kafkajs"];

/// The library of the oldest cluster's time; its producers are not idempotent and take acks=1 by default.
const OLDEST: Kind = Kind { name: "java-2.8.2", driver: "java-2.8.2", producer: &[], has_group: true };

/// A cutover and a rollback under a producer and a group of each client, the groups' homes after them; nothing is tolerated.
fn over_and_back(source: &str, target: &str, more: &[Kind]) -> Result<()> {
    let _turn = one_at_a_time();
    let mut rig = rig(source, target, 2)?;
    rig.keep = true;
    create_topic(&rig)?;
    let mut kinds: Vec<Kind> = KINDS.into_iter().filter(|kind| CLIENTS.contains(&kind.name)).collect();
    kinds.extend(more);
    let mut traffic = Traffic::start(&rig, &kinds, RATE)?;
    println!("{source} to {target}: all clients work; {}", machine_load());
    traffic.flip(&rig, 1, BETWEEN)?;
    traffic.move_groups(&rig, "target", &kinds)?;
    traffic.flip(&rig, 1, BETWEEN)?;
    traffic.move_groups(&rig, "source", &kinds)?;
    let histories = traffic.finish()?;
    histories.judge(&rig)?;
    histories.delivered_once()?;
    rig.keep = std::env::var_os("CROSSOVER_KEEP").is_some();
    Ok(())
}

#[test]
fn from_4_3_1_back_to_3_9_2() -> Result<()> {
    over_and_back("4.3.1", "3.9.2", &[])
}

#[test]
fn from_zookeeper_mode_2_8_2_to_4_3_1() -> Result<()> {
    over_and_back("2.8.2", "4.3.1", &[OLDEST])
}
