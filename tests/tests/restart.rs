//! The proxy is stopped and started again while clients live.

use anyhow::{Result, ensure};
use crossover_harness::rig::count;
use crossover_tests::{check, flip, one_at_a_time, rig, wait_count};
use std::time::Duration;

const WAIT: Duration = Duration::from_secs(60);

/// RULES R3: after a restart the gates must know what was appended since the last SEAL, or the next batch of every
/// idempotent producer looks like a gap and is refused for ever. librdkafka takes that refusal as fatal.
#[test]
fn r03_idempotent_producers_survive_a_restart_after_a_cutover() -> Result<()> {
    let _turn = one_at_a_time();
    let mut rig = rig("3.9.2", "4.3.1", 1)?;
    rig.keep = true;
    for cluster in [&rig.source, &rig.target] {
        cluster.create_topic("orders", 4, 1, &[])?;
    }
    let kind = std::env::var("CROSSOVER_DRIVER").unwrap_or_else(|_| "librdkafka".to_owned());
    let args =
        ["--topic", "orders", "--partitions", "4", "--rate", "200", "--writer", "1", "--idempotent", "true"];
    let mut producer = rig.driver(&kind, "producer", "p1", &args)?;
    let mut consumer =
        rig.driver(&kind, "consumer", "c1", &["--topic", "orders", "--group", "g1", "--reset", "earliest"])?;
    wait_count(&mut producer, "P.ok", 200, WAIT)?;
    flip(&rig, "cutover", &["orders"])?;
    let acked = producer.count("P.ok");
    wait_count(&mut producer, "P.ok", acked + 400, WAIT)?;
    rig.stop_proxy()?;
    rig.start_proxy()?;
    let acked = producer.count("P.ok");
    wait_count(&mut producer, "P.ok", acked + 400, WAIT)?;
    let written = producer.history.clone();
    ensure!(producer.stop(), "the producer did not end well");
    ensure!(
        count(&written, "P.fail") == 0 && count(&written, "E.error") == 0,
        "the producer saw errors: {}",
        written.display()
    );
    wait_count(&mut consumer, "C.poll", count(&written, "P.ok"), WAIT)?;
    let read = consumer.history.clone();
    ensure!(consumer.stop(), "the consumer did not end well");
    println!("{}", check(&rig, "orders", &[written], &[read], &[])?);
    rig.keep = std::env::var_os("CROSSOVER_KEEP").is_some();
    Ok(())
}
