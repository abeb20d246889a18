//! Groups that move along with a topic.

#[path = "groups/mirrored_commits.rs"]
mod mirrored_commits;

use anyhow::{Result, ensure};
use crossover_harness::rig::{Driver, count};
use crossover_tests::{check, flip, one_at_a_time, rig, wait_count, wait_for};
use std::time::Duration;

const WAIT: Duration = Duration::from_secs(60);

/// A group named in a cutover has moved when the command ends; one with a position that has no place on the target
/// refuses the whole operation, and nothing moves.
#[test]
fn groups_move_along_or_refuse_the_cutover() -> Result<()> {
    let _turn = one_at_a_time();
    let mut rig = rig("3.9.2", "4.3.1", 1)?;
    rig.keep = true;
    for cluster in [&rig.source, &rig.target] {
        cluster.create_topic("orders", 4, 1, &[])?;
    }
    rig.source.create_topic("only-here", 1, 1, &[])?;
    let args = |topic, partitions, writer| {
        ["--topic", topic, "--partitions", partitions, "--rate", "100", "--writer", writer]
    };
    let mut producer = rig.driver("java-3.9.2", "producer", "p1", &args("orders", "4", "1"))?;
    let mut other = rig.driver("java-3.9.2", "producer", "p2", &args("only-here", "1", "2"))?;
    let group = |topic, group| {
        ["--topic", topic, "--group", group, "--reset", "earliest", "--commit", "sync-each-second"]
    };
    let mut fits = rig.driver("java-3.9.2", "consumer", "c1", &group("orders", "fits"))?;
    let mut both = rig.driver("java-3.9.2", "consumer", "c2", &group("orders,only-here", "both"))?;
    wait_count(&mut producer, "P.ok", 200, WAIT)?;
    wait_count(&mut other, "P.ok", 200, WAIT)?;
    wait_count(&mut fits, "C.commit", 2, WAIT)?;
    wait_count(&mut both, "C.commit", 2, WAIT)?;
    let refused = flip(&rig, "cutover", &["orders", "--group", "both"])
        .err()
        .map(|e| e.to_string())
        .unwrap_or_default();
    ensure!(refused.contains("does not exist on the target"), "not refused: {refused:?}");
    flip(&rig, "cutover", &["orders", "--group", "fits"])?;
    let read = fits.count("C.poll");
    wait_count(&mut fits, "C.poll", read + 200, WAIT)?;
    let read = both.count("C.poll");
    wait_count(&mut both, "C.poll", read + 200, WAIT)?;
    rig.keep = std::env::var_os("CROSSOVER_KEEP").is_some();
    Ok(())
}

/// A group of the KIP-848 protocol stays at its home and reads over flips; a move of it is refused.
#[test]
fn a_kip_848_group_reads_over_flips_and_is_not_moved() -> Result<()> {
    let _turn = one_at_a_time();
    let mut rig = rig("4.3.1", "4.3.1", 2)?;
    rig.keep = true;
    for cluster in [&rig.source, &rig.target] {
        cluster.create_topic("orders", 12, 2, &[])?;
    }
    let args = ["--topic", "orders", "--partitions", "12", "--rate", "200", "--writer", "1"];
    let producer = rig.driver("java-4.3.1", "producer", "p1", &args)?;
    let group = ["--topic", "orders", "--group", "new", "--reset", "earliest", "--protocol", "consumer"];
    let mut members = Vec::new();
    for name in ["c1", "c2"] {
        let mut member = rig.driver("java-4.3.1", "consumer", name, &group)?;
        wait_count(&mut member, "C.poll", 100, WAIT)?;
        members.push(member);
    }
    for verb in ["cutover", "rollback"] {
        flip(&rig, verb, &["orders"])?;
        for member in &mut members {
            let read = member.count("C.poll");
            wait_count(member, "C.poll", read + 300, WAIT)?;
        }
    }
    let moved = rig.crossover(&["groups", "move", "new", "--to", "target"])?;
    let said = String::from_utf8_lossy(&moved.stderr).into_owned() + &String::from_utf8_lossy(&moved.stdout);
    ensure!(!moved.status.success() && said.contains("KIP-848"), "a move was not refused for this: {said}");
    let written = producer.history.clone();
    ensure!(producer.stop(), "the producer did not end well");
    let total = count(&written, "P.ok");
    wait_for(WAIT, "the group to read everything", || {
        Ok(members.iter_mut().map(|member| member.count("C.poll")).sum::<usize>() >= total)
    })?;
    let read: Vec<_> = members.iter().map(|member| member.history.clone()).collect();
    ensure!(members.into_iter().all(Driver::stop), "a member did not end well");
    println!("{}", check(&rig, "orders", &[written], &read, &[])?);
    rig.keep = false;
    Ok(())
}
