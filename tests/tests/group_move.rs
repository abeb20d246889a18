//! A classic group's home moves to the other cluster and back while its topic flips, and once more right behind a restart
//! of the proxy: no record lost or delivered twice after its commit, no reset, no error.

use anyhow::{Result, ensure};
use crossover_harness::rig::count;
use crossover_tests::{check, flip, one_at_a_time, rig, text, wait_count};
use std::time::Duration;

const WAIT: Duration = Duration::from_secs(60);

#[test]
fn a_group_moves_with_its_topic_and_back() -> Result<()> {
    let _turn = one_at_a_time();
    let mut rig = rig("3.9.2", "4.3.1", 2)?;
    rig.keep = true;
    for cluster in [&rig.source, &rig.target] {
        cluster.create_topic("orders", 12, 2, &[])?;
    }
    let kind = std::env::var("CROSSOVER_DRIVER").unwrap_or_else(|_| "java-3.9.2".to_owned());
    let strategy = std::env::var("CROSSOVER_STRATEGY").unwrap_or_else(|_| "eager".to_owned());
    let producer = ["--topic", "orders", "--partitions", "12", "--rate", "300", "--writer", "1"];
    let mut producer = rig.driver(&kind, "producer", "p1", &producer)?;
    let group = ["--topic", "orders", "--group", "g1", "--reset", "earliest", "--strategy", &strategy];
    let mut first = rig.driver(&kind, "consumer", "c1", &group)?;
    let mut second = rig.driver(&kind, "consumer", "c2", &group)?;
    wait_count(&mut producer, "P.ok", 500, WAIT)?;
    wait_count(&mut first, "C.poll", 100, WAIT)?;
    wait_count(&mut second, "C.poll", 100, WAIT)?;
    for (verb, side) in [(Some("cutover"), "target"), (Some("rollback"), "source"), (None, "target")] {
        if let Some(verb) = verb {
            flip(&rig, verb, &["orders"])?;
        } else {
            // Its members have said nothing yet to the process that is to move them.
            rig.kill_proxy();
            rig.start_proxy()?;
        }
        let output = rig.crossover(&["groups", "move", "g1", "--to", side])?;
        let said = text(&output);
        println!("{said}");
        ensure!(output.status.success(), "the group did not move to the {side}:\n{said}");
        for member in [&mut first, &mut second] {
            let read = member.count("C.poll");
            wait_count(member, "C.poll", read + 300, WAIT)?;
        }
    }
    let written = producer.history.clone();
    ensure!(producer.stop(), "the producer did not end well");
    let total = count(&written, "P.ok");
    let deadline = std::time::Instant::now() + WAIT;
    while first.count("C.poll") + second.count("C.poll") < total {
        ensure!(std::time::Instant::now() < deadline, "the group does not read everything");
        std::thread::sleep(Duration::from_millis(100));
    }
    let read = [first.history.clone(), second.history.clone()];
    for history in &read {
        ensure!(count(history, "C.lost") == 0, "a member lost its partitions");
    }
    ensure!(first.stop() && second.stop(), "a member did not end well");
    println!("{}", check(&rig, "orders", &[written], &read, &[])?);
    rig.keep = false;
    Ok(())
}
