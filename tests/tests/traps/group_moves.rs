//! A group that moves to another coordinator again and again: its members must neither be thrown out, nor skip or repeat
//! records, and both clusters must agree on where it stands. `CROSSOVER_MOVES` sets how often each group moves.

use anyhow::{Context, Result, ensure};
use crossover_harness::rig::{Driver, Rig, count};
use crossover_tests::commits::{Positions, resolve_all};
use crossover_tests::history::{At, ends, lines, written};
use crossover_tests::live::{TOPIC, create_topic};
use crossover_tests::measure::machine_load;
use crossover_tests::{check, end, flip, one_at_a_time, rig, setting, text, wait_count, wait_for, wait_more};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const PARTITIONS: usize = 12;
const MOVES: usize = 6;
const RATE: &str = "60";
/// What each member reads between two moves.
const RECORDS: usize = 60;
const WAIT: Duration = Duration::from_secs(90);
const STARTED: usize = 20;
/// Members look at the time after each poll, and a commit takes a while.
const SLACK_US: i64 = 500_000;
const SYNC: &[&str] = &["--commit", "sync-each-second"];
const WRITERS: [&str; 2] = ["java-3.9.2", "franz"];
/// What libraries say only in their logs.
const FORBIDDEN: [&str; 7] = [
    "GROUP_ID_NOT_FOUND",
    "group id does not exist",
    "Unexpected error in commit",
    "FENCED_INSTANCE_ID",
    "OFFSET_OUT_OF_RANGE",
    "is out of range for partition",
    "Truncation detected",
];

/// One group of two members.
struct Group {
    name: &'static str,
    client: &'static str,
    /// Empty: a library with an assignor of its own.
    strategy: &'static str,
    is_static: bool,
    /// Commits each second, and when it gives up partitions; else as the library does by default.
    each_second: bool,
}

impl Group {
    const fn new(name: &'static str, client: &'static str, strategy: &'static str) -> Group {
        Group { name, client, strategy, is_static: false, each_second: true }
    }

    /// Everything that was delivered longer ago is committed.
    fn interval_us(&self) -> i64 {
        if self.each_second { 1_000_000 } else { 5_000_000 }
    }
}

/// librdkafka with cooperative members and manual commits strands them by itself (loadtest/README.md).
const GROUPS: [Group; 9] = [
    Group::new("java-eager", "java-3.9.2", "eager"),
    Group { is_static: true, ..Group::new("java-static", "java-3.9.2", "eager") },
    Group::new("java-cooperative", "java-4.3.1", "cooperative"),
    Group { each_second: false, ..Group::new("java-cooperative-auto", "java-4.3.1", "cooperative") },
    Group::new("librdkafka-eager", "librdkafka", "eager"),
    Group { each_second: false, ..Group::new("librdkafka-cooperative", "librdkafka", "cooperative") },
    Group::new("franz-cooperative", "franz", "cooperative"),
    Group { is_static: true, ..Group::new("franz-static", "franz", "eager") },
    Group::new("streams", "streams-4.3.1", ""),
];

#[test]
fn groups_that_move_to_and_fro_under_load_lose_nothing_and_are_told_nothing() -> Result<()> {
    let _turn = one_at_a_time();
    let moves: usize = setting("CROSSOVER_MOVES", MOVES)?;
    let mut rig = rig("3.9.2", "4.3.1", 2)?;
    rig.keep = true;
    create_topic(&rig)?;
    let (mut writers, mut members) = start(&rig)?;
    let mut verbs = ["cutover", "rollback"].into_iter().cycle();
    for number in 0..moves {
        // The home is the owner of the topic, and it is not, in turns.
        if number % 2 == 1 {
            flip(&rig, verbs.next().unwrap_or_default(), &[TOPIC])?;
        }
        let side = if number % 2 == 0 { "target" } else { "source" };
        let took = move_all(&rig, side)?;
        wait_more(members.iter_mut().flatten().map(|member| (member, "C.poll")), RECORDS, WAIT)?;
        println!("move {number} to the {side}: {took:?} s; {}", machine_load());
    }
    wait_more(writers.iter_mut().map(|writer| (writer, "P.ok")), RECORDS, WAIT)?;
    let written = writers.into_iter().map(end).collect::<Result<Vec<PathBuf>>>()?;
    let read = read_all(members, &written)?;
    both_hold_the_end(&rig, &written)?;
    for (group, histories) in GROUPS.iter().zip(&read) {
        judge(group, histories).with_context(|| group.name)?;
    }
    println!("{}", check(&rig, TOPIC, &written, &read.concat(), &[])?);
    rig.keep = std::env::var_os("CROSSOVER_KEEP").is_some();
    Ok(())
}

fn start(rig: &Rig) -> Result<(Vec<Driver>, Vec<Vec<Driver>>)> {
    let mut members = Vec::new();
    for group in &GROUPS {
        members.push((1..=2).map(|number| member(rig, group, number)).collect::<Result<Vec<_>>>()?);
    }
    let count = PARTITIONS.to_string();
    let mut writers = Vec::new();
    for (index, client) in WRITERS.iter().enumerate() {
        let writer = (index + 1).to_string();
        let args = ["--topic", TOPIC, "--partitions", &count, "--rate", RATE, "--writer", &writer];
        writers.push(rig.driver(client, "producer", &format!("writer-{client}"), &args)?);
    }
    for member in members.iter_mut().flatten() {
        wait_count(member, "C.poll", STARTED, WAIT)?;
    }
    Ok((writers, members))
}

fn member(rig: &Rig, group: &Group, number: usize) -> Result<Driver> {
    let name = format!("{}-{number}", group.name);
    let mut args = vec!["--topic", TOPIC, "--group", group.name, "--reset", "earliest"];
    args.extend(["--member", &name]);
    if !group.strategy.is_empty() {
        args.extend(["--strategy", group.strategy]);
    }
    if group.is_static {
        args.extend(["--static-id", &name]);
    }
    if group.each_second {
        args.extend(SYNC);
    }
    Ok(rig.driver(group.client, "consumer", &name, &args)?)
}

/// Moves every group; how long each took, in seconds.
fn move_all(rig: &Rig, side: &str) -> Result<Vec<f64>> {
    let mut took = Vec::new();
    for group in &GROUPS {
        let began = Instant::now();
        let output = rig.crossover(&["groups", "move", group.name, "--to", side])?;
        ensure!(output.status.success(), "{} did not move to the {side}: {}", group.name, text(&output));
        took.push((began.elapsed().as_secs_f64() * 10.0).round() / 10.0);
    }
    Ok(took)
}

/// Lets every group read to the end, and ends its members, which commit what they have.
fn read_all(members: Vec<Vec<Driver>>, written: &[PathBuf]) -> Result<Vec<Vec<PathBuf>>> {
    let total: usize = written.iter().map(|history| count(history, "P.ok")).sum();
    let mut read = Vec::new();
    for (group, members) in GROUPS.iter().zip(members) {
        let histories: Vec<PathBuf> = members.iter().map(|member| member.history.clone()).collect();
        wait_for(WAIT, &format!("{} to read everything", group.name), || {
            let delivered = histories.iter().map(|history| Ok(lines(history, &["C.poll"])?.len()));
            Ok(delivered.sum::<Result<usize>>()? >= total)
        })?;
        read.push(members.into_iter().map(end).collect::<Result<Vec<_>>>()?);
    }
    Ok(read)
}

/// What either cluster holds for a group stands for the end of the log.
fn both_hold_the_end(rig: &Rig, histories: &[PathBuf]) -> Result<()> {
    let mut all = BTreeSet::new();
    for history in histories {
        all.extend(written(history)?);
    }
    let ends = ends(&all, PARTITIONS).into_iter().enumerate();
    let ends = ends.map(|(partition, end)| Ok((i32::try_from(partition)?, end)));
    let ends = ends.collect::<Result<Positions>>()?;
    for group in &GROUPS {
        for (side, cluster) in [("source", &rig.source), ("target", &rig.target)] {
            let mut found = Positions::new();
            wait_for(WAIT, "the commits of both clusters to agree", || {
                found = resolve_all(rig, side, TOPIC, &cluster.commits(group.name)?)?;
                Ok(found == ends)
            })
            .with_context(|| format!("{}: the {side} has {found:?}, not {ends:?}", group.name))?;
        }
    }
    Ok(())
}

fn judge(group: &Group, histories: &[PathBuf]) -> Result<()> {
    for history in histories {
        let told = lines(history, &["C.lost", "C.reset", "C.error", "E.error"])?;
        let failed = lines(history, &["C.commit"])?;
        let failed = failed.into_iter().filter(|line| line.fields.first().is_some_and(|f| f == "fail"));
        let told: Vec<_> = told.into_iter().chain(failed).map(|line| (line.event, line.fields)).collect();
        ensure!(told.is_empty(), "{}: {told:?}", history.display());
        let said = forbidden(history)?;
        ensure!(said.is_empty(), "{} has logged {said:?}", history.display());
    }
    owned_by_one(histories)?;
    let (again, longest_us) = delivered_again(histories)?;
    println!("{}: {again} records delivered again, the longest stretch {} ms", group.name, longest_us / 1000);
    ensure!(longest_us <= group.interval_us() + SLACK_US, "more than what is delivered between two commits");
    Ok(())
}

/// No member is given a partition that the other one has not given up.
fn owned_by_one(histories: &[PathBuf]) -> Result<()> {
    let mut events = Vec::new();
    for (member, history) in histories.iter().enumerate() {
        for line in lines(history, &["C.assign", "C.revoke"])? {
            let parts = line.fields.first().cloned().unwrap_or_default();
            // What is given up in the same microsecond is given up before.
            events.push((line.at_us, line.event == "C.assign", member, parts));
        }
    }
    events.sort();
    let mut owners: BTreeMap<String, usize> = BTreeMap::new();
    for (at_us, is_assigned, member, parts) in events {
        for part in parts.split(',').filter(|part| !part.is_empty()) {
            if !is_assigned {
                owners.remove(part);
            } else if let Some(other) = owners.insert(part.to_owned(), member) {
                ensure!(other == member, "partition {part} has two members at {at_us}");
            }
        }
    }
    Ok(())
}

fn forbidden(history: &Path) -> Result<Vec<String>> {
    let log = std::fs::read_to_string(history.with_extension("log"))?;
    let is_bad = |line: &&str| {
        FORBIDDEN.iter().any(|text| line.contains(text)) || line.to_lowercase().contains("fatal")
    };
    Ok(log.lines().filter(is_bad).map(str::to_owned).collect())
}

/// How many records the members of a group were given more than once, and the longest stretch that was repeated: the time
/// between the first deliveries of its first record and of the last one before it was repeated.
fn delivered_again(histories: &[PathBuf]) -> Result<(usize, i64)> {
    let mut all: Vec<(i64, At)> = Vec::new();
    for history in histories {
        for line in lines(history, &["C.poll"])? {
            all.push((line.at_us, line.at()?));
        }
    }
    all.sort_unstable();
    let mut first: BTreeMap<At, i64> = BTreeMap::new();
    let (mut again, mut longest_us) = (0, 0);
    for (at_us, at) in all {
        let Some(first_us) = first.get(&at) else {
            first.insert(at, at_us);
            continue;
        };
        again += 1;
        let last_us = first.range((at.0, 0)..(at.0 + 1, 0)).next_back().map_or(*first_us, |(_, us)| *us);
        longest_us = longest_us.max(last_us - first_us);
    }
    Ok((again, longest_us))
}
