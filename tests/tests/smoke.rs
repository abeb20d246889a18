//! The smallest end-to-end run: one producer, one group, a cutover, a rollback, a second cutover.

use anyhow::Result;
use crossover_tests::{check, flip, one_at_a_time, rig, wait_count};
use std::time::Duration;

const WAIT: Duration = Duration::from_secs(60);

#[test]
fn a_topic_goes_over_and_back_under_live_traffic() -> Result<()> {
    let _turn = one_at_a_time();
    let mut rig = rig("3.9.2", "4.3.1", 2)?;
    rig.keep = true;
    for cluster in [&rig.source, &rig.target] {
        cluster.create_topic("orders", 12, 2, &[])?;
    }
    let kind = std::env::var("CROSSOVER_DRIVER").unwrap_or_else(|_| "java-3.9.2".to_owned());
    let mut producer = rig.driver(
        &kind,
        "producer",
        "p1",
        &["--topic", "orders", "--partitions", "12", "--rate", "500", "--writer", "1"],
    )?;
    let mut consumer =
        rig.driver(&kind, "consumer", "c1", &["--topic", "orders", "--group", "g1", "--reset", "earliest"])?;
    wait_count(&mut producer, "P.ok", 500, WAIT)?;
    wait_count(&mut consumer, "C.poll", 300, WAIT)?;
    for verb in ["cutover", "rollback", "cutover"] {
        for record in flip(&rig, verb, &["orders"])? {
            println!("{record}");
        }
        let (acked, read) = (producer.count("P.ok"), consumer.count("C.poll"));
        wait_count(&mut producer, "P.ok", acked + 1_500, WAIT)?;
        wait_count(&mut consumer, "C.poll", read + 1_500, WAIT)?;
    }
    let written = producer.history.clone();
    assert!(producer.stop(), "the producer did not end well");
    let total = crossover_harness::rig::count(&written, "P.ok");
    wait_count(&mut consumer, "C.poll", total, WAIT)?;
    let read = consumer.history.clone();
    assert!(consumer.stop(), "the consumer did not end well");
    println!("{}", check(&rig, "orders", &[written], &[read], &[])?);
    rig.keep = std::env::var_os("CROSSOVER_KEEP").is_some();
    Ok(())
}
