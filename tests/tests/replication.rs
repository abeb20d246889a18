//! What the plan says of a cluster that does not replicate.

use anyhow::{Result, bail, ensure};
use crossover_harness::rig::Rig;
use crossover_tests::{one_at_a_time, rig, wait_count};
use std::time::Duration;

const WAIT: Duration = Duration::from_secs(60);

/// RULES R10: a log end that the followers do not reach would keep the fence up until the hold bound.
#[test]
fn r10_a_stalled_follower_refuses_the_flip() -> Result<()> {
    let _turn = one_at_a_time();
    let mut rig = rig("3.9.2", "4.3.1", 2)?;
    rig.keep = true;
    // Broker 1 is the controller and must go on. While it is still joining, every topic is led by the other one.
    let topic = led_by_broker_1(&rig)?;
    let topic = topic.as_str();
    let args = [
        "--topic",
        topic,
        "--partitions",
        "1",
        "--rate",
        "50",
        "--writer",
        "1",
        "--acks",
        "1",
        "--idempotent",
        "false",
    ];
    let mut producer = rig.driver("java-3.9.2", "producer", "p1", &args)?;
    wait_count(&mut producer, "P.ok", 100, WAIT)?;
    let plan = |rig: &Rig| -> Result<String> {
        let output = rig.crossover(&["plan", topic, "--json"])?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let fine = plan(&rig)?;
    ensure!(!fine.contains("has not reached log end"), "refused although it replicates: {fine}");
    rig.source.pause_broker(2)?;
    // acks=1 goes on; the high watermark stands until the follower leaves the ISR.
    let acked = producer.count("P.ok");
    wait_count(&mut producer, "P.ok", acked + 50, WAIT)?;
    let refused = plan(&rig);
    rig.source.resume_broker(2)?;
    let refused = refused?;
    ensure!(refused.contains("has not reached log end"), "not refused: {refused}");
    rig.keep = std::env::var_os("CROSSOVER_KEEP").is_some();
    Ok(())
}

/// Creates topics on both sides until broker 1 of the source leads one.
fn led_by_broker_1(rig: &Rig) -> Result<String> {
    for number in 0..60 {
        let name = format!("t{number}");
        rig.source.create_topic(&name, 1, 2, &[])?;
        if rig.source.topic(&name)?.is_some_and(|t| t.partitions.iter().all(|p| p.leader == 1)) {
            rig.source.wait_in_sync(&name)?;
            rig.target.create_topic(&name, 1, 2, &[])?;
            rig.target.wait_in_sync(&name)?;
            return Ok(name);
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    bail!("broker 1 leads none of the topics")
}
