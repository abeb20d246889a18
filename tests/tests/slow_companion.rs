//! RULES R1: a producer without sequence numbers moves from a slow companion to its fast direct connection, again and
//! again, and its records stay in order.

use anyhow::{Result, ensure};
use crossover_harness::relay::Fault;
use crossover_tests::live::{KINDS, PARTITIONS, TOPIC, create_topic, group};
use crossover_tests::{check, flip, one_at_a_time, relayed_rig, setting, wait_count};
use std::time::Duration;

const WAIT: Duration = Duration::from_secs(60);
const SLOW: Duration = Duration::from_millis(60);

#[test]
fn r01_an_unsequenced_producer_keeps_its_order_when_it_leaves_a_slow_companion() -> Result<()> {
    ensure!(std::env::var_os("CROSSOVER_BUG").is_none(), "a rule is switched off");
    println!("{}", leave_companions()?);
    Ok(())
}

/// The test above can fail. For a binary that was built with `--features crossover/bug-flags`.
#[test]
#[ignore = "needs CROSSOVER_BUG=R1Path and a binary that heeds it"]
fn r01_without_the_rule_the_order_is_lost() -> Result<()> {
    ensure!(std::env::var("CROSSOVER_BUG").is_ok_and(|bug| bug == "R1Path"), "set CROSSOVER_BUG=R1Path");
    let why = leave_companions().err().map(|why| format!("{why:#}")).unwrap_or_default();
    ensure!(why.contains("verdict: fail") && why.contains("order"), "no record was out of order: {why}");
    println!("{why}");
    Ok(())
}

/// What the checker says.
fn leave_companions() -> Result<String> {
    let _turn = one_at_a_time();
    let moves: usize = setting("CROSSOVER_FLIPS", 100)?;
    let mut rig = relayed_rig("3.9.2", "4.3.1", 1, &[])?;
    rig.keep = true;
    create_topic(&rig)?;
    let producer = [
        "--topic",
        TOPIC,
        "--partitions",
        PARTITIONS,
        "--rate",
        "400",
        "--writer",
        "1",
        "--acks",
        "1",
        "--idempotent",
        "false",
        "--linger-ms",
        "0",
        // It learns of a flip soon after, while batches are under way through the companion.
        "--conf",
        "metadata.max.age.ms=250,max.in.flight.requests.per.connection=5,batch.size=200",
    ];
    let mut producer = rig.driver("java-3.9.2", "producer", "p1", &producer)?;
    let mut consumer = group(&rig, &KINDS[0], "live", &[])?;
    wait_count(&mut producer, "P.ok", 500, WAIT)?;
    for relay in rig.relays.iter().flat_map(|side| side.values()) {
        relay.set(Fault::LateCompanions(SLOW));
    }
    for number in 0..moves {
        flip(&rig, if number.is_multiple_of(2) { "cutover" } else { "rollback" }, &[TOPIC])?;
        let acked = producer.count("P.ok");
        wait_count(&mut producer, "P.ok", acked + 300, WAIT)?;
    }
    let written = producer.history.clone();
    ensure!(producer.stop(), "the producer did not end well");
    wait_count(&mut consumer, "C.poll", crossover_harness::rig::count(&written, "P.ok"), WAIT)?;
    let read = consumer.history.clone();
    ensure!(consumer.stop(), "the consumer did not end well");
    let verdict = check(&rig, TOPIC, &[written], &[read], &[])?;
    rig.keep = false;
    Ok(verdict)
}
