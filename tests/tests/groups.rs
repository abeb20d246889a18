//! Groups that move along with a topic.

#[path = "groups/mirrored_commits.rs"]
mod mirrored_commits;

use anyhow::{Result, ensure};
use crossover_harness::rig::{Driver, Rig, command, count};
use crossover_tests::{check, flip, one_at_a_time, rig, text, wait_count, wait_for, wait_more};
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

/// Groups of the KIP-848 protocol move with their topic and back, and stay where a move is aborted: every record is read
/// once, and no member loses what it has.
#[test]
fn kip_848_groups_move_with_their_topic_and_back() -> Result<()> {
    let _turn = one_at_a_time();
    let mut rig = rig("4.3.1", "4.3.1", 2)?;
    rig.keep = true;
    for cluster in [&rig.source, &rig.target] {
        cluster.create_topic("orders", 12, 2, &[])?;
    }
    let args = ["--topic", "orders", "--partitions", "12", "--rate", "200", "--writer", "1"];
    let producer = rig.driver("java-4.3.1", "producer", "p1", &args)?;
    let mut members = Vec::new();
    for kind in KIP_848 {
        let group = ["--topic", "orders", "--group", kind, "--reset", "earliest", "--protocol", "consumer"];
        for number in [1, 2] {
            let mut member = rig.driver(kind, "consumer", &format!("{kind}-{number}"), &group)?;
            wait_count(&mut member, "C.poll", 100, WAIT)?;
            members.push(member);
        }
    }
    read_on(&mut members)?;
    all_are_kip_848(&rig)?;
    for kind in KIP_848 {
        let moving = command(&rig, &["groups", "move", kind, "--to", "target"]).spawn()?;
        wait_for(WAIT, "the move to begin", || {
            let aborted = rig.crossover(&["abort"])?;
            Ok(aborted.status.success())
        })?;
        ensure!(!moving.wait_with_output()?.status.success(), "{kind}: the move was not aborted");
    }
    read_on(&mut members)?;
    for (verb, side) in [("cutover", "target"), ("rollback", "source"), ("cutover", "target")] {
        flip(&rig, verb, &["orders"])?;
        for kind in KIP_848 {
            let output = rig.crossover(&["groups", "move", kind, "--to", side])?;
            println!("{}", text(&output));
            ensure!(output.status.success(), "{kind}: the group did not move to the {side}");
        }
        read_on(&mut members)?;
    }
    let written = producer.history.clone();
    ensure!(producer.stop(), "the producer did not end well");
    let total = count(&written, "P.ok") * KIP_848.len();
    wait_for(WAIT, "the groups to read everything", || {
        Ok(members.iter_mut().map(|member| member.count("C.poll")).sum::<usize>() >= total)
    })?;
    let read: Vec<_> = members.iter().map(|member| member.history.clone()).collect();
    ensure!(members.into_iter().all(Driver::stop), "a member did not end well");
    for history in &read {
        ensure!(count(history, "C.lost") == 0, "{}: it lost its partitions", history.display());
    }
    println!("{}", check(&rig, "orders", &[written], &read, &[])?);
    rig.keep = false;
    Ok(())
}

/// Libraries with the KIP-848 protocol; each has a group of its name.
const KIP_848: [&str; 3] = ["java-4.3.1", "librdkafka", "franz"];

/// A library may fall back to the classic protocol and say nothing.
fn all_are_kip_848(rig: &Rig) -> Result<()> {
    let args = ["--bootstrap-server", &rig.bootstrap, "--list", "--type", "consumer"];
    let listed = text(&rig.target.kafka().run_tool("kafka-consumer-groups", &args, None)?);
    let is_listed = |kind: &&str| listed.lines().any(|line| line.split_whitespace().next() == Some(kind));
    let other: Vec<_> = KIP_848.iter().filter(|kind| !is_listed(kind)).collect();
    ensure!(other.is_empty(), "not of the KIP-848 protocol: {other:?} in:\n{listed}");
    Ok(())
}

/// Every member reads more.
fn read_on(members: &mut [Driver]) -> Result<()> {
    wait_more(members.iter_mut().map(|member| (member, "C.poll")), 300, WAIT)
}
