//! Consumers of known libraries leave the companions for the owner's node, unknown ones stay; all of them read exactly.

use anyhow::{Context, Result, ensure};
use crossover_harness::rig::{Driver, Rig};
use crossover_tests::live::{KINDS, Kind, TOPIC, Traffic, create_topic};
use crossover_tests::{one_at_a_time, rig};
use serde_json::Value;
use std::time::{Duration, Instant};

/// librdkafka is sent on a minute after a flip.
const MOVED_MAX: Duration = Duration::from_secs(110);

/// The client connections that the topic is served to through companions.
fn companions(rig: &Rig) -> Result<u64> {
    let output = rig.crossover(&["status", "--json"])?;
    let status: Value = serde_json::from_slice(&output.stdout)?;
    let topics = status["topics"].as_array().context("a status without topics")?;
    let topic = topics.iter().find(|topic| topic["name"] == TOPIC).context("the topic is not shown")?;
    topic["companions"].as_u64().context("no number of companions")
}

fn wait_for_companions(rig: &Rig, clients: &mut [Driver], at_most: u64) -> Result<Duration> {
    let began = Instant::now();
    loop {
        let now = companions(rig)?;
        if now <= at_most {
            return Ok(began.elapsed());
        }
        ensure!(began.elapsed() < MOVED_MAX, "{now} connections are still on companions");
        ensure!(clients.iter_mut().all(Driver::is_alive), "a client has ended");
        std::thread::sleep(Duration::from_millis(200));
    }
}

#[test]
fn r20_consumers_move_to_the_owner() -> Result<()> {
    let _turn = one_at_a_time();
    let mut rig = rig("3.9.2", "4.3.1", 2)?;
    rig.keep = true;
    create_topic(&rig)?;
    let kinds: Vec<Kind> = KINDS.into_iter().filter(|kind| kind.has_group).collect();
    let mut traffic = Traffic::start(&rig, &kinds, 60)?;
    // Each client has a connection to each of two brokers. Producers move when their metadata ages, as do the
    // consumers of Java, sarama and kafkajs, which get no signal.
    let stay = 2 * (kinds.len() as u64 + 4);
    for verb in ["cutover", "rollback"] {
        traffic.flip(&rig, 1, Duration::from_millis(200))?;
        println!("{} connections on companions", companions(&rig)?);
        let took = wait_for_companions(&rig, &mut traffic.consumers, stay)?;
        println!("{verb}: at most {stay} connections on companions after {took:.1?}");
    }
    traffic.finish()?.judge(&rig)?;
    rig.keep = false;
    Ok(())
}
