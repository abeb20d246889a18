//! Clients that come, go and change topics while flips run.

use super::{PARTITIONS, TOPICS, done, judged, two_clusters, under_traffic};
use anyhow::{Context, Result, ensure};
use crossover_harness::rig::Rig;
use crossover_tests::fleet::{FRANZ, Fleet, JAVA, LIBRARIES, LIBRDKAFKA, Library};
use crossover_tests::operator::{Hold, Running, consistent, status};
use crossover_tests::{flip, one_at_a_time, text, wait_for};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const WAIT: Duration = Duration::from_secs(60);
/// What a flip may be refused with while its topic is changed; the remedy is to repeat it.
const REPEATED: [&str; 6] = [
    "was changed by a client",
    "a client's change of it",
    "The route table is at",
    "partitions on the",
    "do not have the same number of partitions",
    // A partition that was just made.
    "ListOffsets answers error 6",
];

/// Kafka's own tool, at the proxy.
fn topics_tool(rig: &Rig, args: &[&str]) -> Result<()> {
    let all = [&["--bootstrap-server", &rig.bootstrap][..], args].concat();
    let output = rig.target.kafka().run_tool("kafka-topics", &all, None)?;
    ensure!(output.status.success(), "kafka-topics {args:?}: {}", text(&output));
    Ok(())
}

/// Flips the topics to and fro until told to stop; gives the owner in the end and how many flips were carried out.
fn flip_until(rig: &Rig, topics: &[&str], stop: &AtomicBool) -> Result<(&'static str, u32)> {
    let (mut owner, mut flips) = ("source", 0);
    while !stop.load(Ordering::SeqCst) {
        let (verb, other) = if owner == "source" { ("cutover", "target") } else { ("rollback", "source") };
        match flip(rig, verb, topics) {
            Ok(_) => (owner, flips) = (other, flips + 1),
            Err(refused) => {
                let why = refused.to_string();
                let passing = REPEATED.iter().find(|reason| why.contains(**reason));
                println!("{verb} is to be repeated: {}", passing.with_context(|| format!("refused: {why}"))?);
            }
        }
    }
    Ok((owner, flips))
}

/// RULES R26: topics are created and enlarged through the proxy while flips run, and are written to at once.
#[test]
fn topics_are_created_and_enlarged_while_flips_run() -> Result<()> {
    let _turn = one_at_a_time();
    let (rig, mut fleet) = under_traffic()?;
    let stop = AtomicBool::new(false);
    let (owner, flips) = std::thread::scope(|scope| -> Result<(&str, u32)> {
        let flipping = scope.spawn(|| flip_until(&rig, &TOPICS, &stop));
        let changed = change_topics(&rig, &mut fleet);
        stop.store(true, Ordering::SeqCst);
        let flipped = flipping.join().map_err(|_| anyhow::anyhow!("the flips panicked"))?;
        changed?;
        flipped
    })?;
    println!("{flips} flips meanwhile");
    ensure!(flips > 2, "nothing was tried: {flips} flips");
    consistent(&rig, &TOPICS, owner)?;
    consistent(&rig, &["new-0", "new-1"], "source")?;
    fleet.flows()?;
    flip(&rig, "cutover", &["new-0", "new-1", "--create"])?;
    fleet.flows()?;
    judged(rig, fleet)
}

fn change_topics(rig: &Rig, fleet: &mut Fleet) -> Result<()> {
    for (number, library) in [(0, FRANZ), (1, LIBRDKAFKA)] {
        let name = format!("new-{number}");
        topics_tool(rig, &["--create", "--topic", &name, "--partitions", "3", "--replication-factor", "1"])?;
        fleet.produce(rig, &name, 3, library)?;
        fleet.join(rig, &name, library)?;
        let count = PARTITIONS + number + 1;
        topics_tool(rig, &["--alter", "--topic", "orders", "--partitions", &count.to_string()])?;
        fleet.produce(rig, "orders", count, library)?;
        fleet.flows().with_context(|| format!("after {name} and {count} partitions of orders"))?;
    }
    Ok(())
}

/// Groups that move along, while members of them join and leave at that moment.
#[test]
fn groups_move_along_while_members_come_and_go() -> Result<()> {
    let _turn = one_at_a_time();
    let (rig, mut fleet) = under_traffic()?;
    let mut owner = "source";
    for (round, step) in ["PREPARE", "FENCE", "SEAL", "RELEASE"].into_iter().enumerate() {
        let (verb, other) = if owner == "source" { ("cutover", "target") } else { ("rollback", "source") };
        let hold = Hold::behind(&rig, step)?;
        let command = Running::start(&rig, &[&[verb, "--with-groups"][..], &TOPICS].concat())?;
        hold.reached()?;
        for library in [FRANZ, LIBRDKAFKA] {
            fleet.join(&rig, "orders", library)?;
            fleet.has_started("orders", library)?;
        }
        drop(hold);
        for library in [FRANZ, LIBRDKAFKA] {
            fleet.leave("orders", library)?;
        }
        let ended = command.output()?;
        println!("{step}: {} {}", ended.status, text(&ended).trim());
        let homes = homes(&rig)?;
        let moved = homes.iter().all(|(_, home)| home == other);
        ensure!(ended.status.success() == moved, "it ended with {}, the homes are {homes:?}", ended.status);
        // Members that are still on their way to the rebalance may keep a group at its home; then it is told, and once
        // they have come the group moves.
        for (group, _) in homes.iter().filter(|(_, home)| home != other) {
            ensure!(text(&ended).contains(group.as_str()), "{group} stays, and it is not told");
            let again = rig.crossover(&["groups", "move", group, "--to", other])?;
            ensure!(again.status.success(), "round {round}: {}", text(&again));
        }
        owner = other;
        consistent(&rig, &TOPICS, owner)?;
        fleet.flows()?;
    }
    judged(rig, fleet)
}

fn homes(rig: &Rig) -> Result<Vec<(String, String)>> {
    let status = status(rig)?;
    let groups = status["groups"].as_array().context("a status without groups")?;
    let row = |group: &serde_json::Value| {
        Some((group["group"].as_str()?.to_owned(), group["home"].as_str()?.to_owned()))
    };
    groups.iter().map(|group| row(group).context("a group without a name")).collect()
}

/// A group that cannot move along is told, and the exit status says that not everything was done.
#[test]
fn a_group_that_does_not_move_along_is_told() -> Result<()> {
    let _turn = one_at_a_time();
    let mut rig = two_clusters()?;
    let mut fleet = Fleet::default();
    fleet.produce(&rig, "orders", PARTITIONS, FRANZ)?;
    fleet.join(&rig, "orders", FRANZ)?;
    fleet.flows()?;
    // Passes PREPARE; the member stops polling before the group is moved.
    let hold = Hold::behind(&rig, "RELEASE")?;
    let command = Running::start(&rig, &["cutover", "orders", "--with-groups"])?;
    hold.reached()?;
    fleet.pause_members("orders", FRANZ)?;
    drop(hold);
    let ended = command.output()?;
    fleet.resume_members("orders", FRANZ)?;
    let said = text(&ended);
    ensure!(said.contains("orders is on the target"), "{said}");
    ensure!(said.contains("not all members came to the rebalance"), "the reason is not told: {said}");
    ensure!(said.contains("crossover groups move"), "the remedy is not told: {said}");
    ensure!(ended.status.code() == Some(1), "it ended with {}: {said}", ended.status);
    fleet.flows()?;
    // Repeated, the command has nothing to do but to move the group.
    let again = rig.crossover(&["cutover", "orders", "--with-groups"])?;
    ensure!(again.status.success(), "{}", text(&again));
    ensure!(homes(&rig)? == [("orders-franz".to_owned(), "target".to_owned())], "{:?}", homes(&rig)?);
    fleet.flows()?;
    fleet.judge(&rig)?;
    done(&mut rig);
    Ok(())
}

/// Members and producers that start and end while a flip stands behind each step.
#[test]
fn clients_come_and_go_at_every_step() -> Result<()> {
    let _turn = one_at_a_time();
    let (rig, mut fleet) = under_traffic()?;
    let mut owner = "source";
    for (number, step) in crossover_tests::faults::STEPS.into_iter().enumerate() {
        let (verb, other) = if owner == "source" { ("cutover", "target") } else { ("rollback", "source") };
        let library: Library = LIBRARIES[number % LIBRARIES.len()];
        let hold = Hold::behind(&rig, step)?;
        let command = Running::start(&rig, &[&[verb][..], &TOPICS].concat())?;
        hold.reached()?;
        fleet.join(&rig, "orders", library)?;
        if library.driver != JAVA.driver {
            fleet.produce(&rig, "payments", PARTITIONS, library)?;
        }
        fleet.has_started("orders", library)?;
        fleet.leave("orders", library)?;
        drop(hold);
        let ended = command.output()?;
        let said = text(&ended);
        println!("{step}, {}: {} {}", library.driver, ended.status, said.lines().last().unwrap_or_default());
        if ended.status.success() {
            owner = other;
        } else {
            // A client that takes longer to come than produce may be held.
            let late = ["hold bound", "no boundary within", "within the hold"];
            ensure!(late.iter().any(|reason| said.contains(reason)), "behind {step}: {said}");
        }
        fleet.flows().with_context(|| format!("after {step}"))?;
        consistent(&rig, &TOPICS, owner)?;
    }
    wait_for(WAIT, "all members to be known", || Ok(homes(&rig)?.len() >= TOPICS.len() * LIBRARIES.len()))?;
    judged(rig, fleet)
}
