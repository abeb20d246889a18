//! Since Fetch and Produce 13 a topic is its id, not its name. A topic that moves must keep it; one that is made anew must not
//! inherit anything of the old one.

use anyhow::{Context, Result, ensure};
use crossover_harness::rig::{Driver, Rig};
use crossover_tests::history::{At, Name, ends, lines, reads_exactly, written};
use crossover_tests::live::{TOPIC, wait_end};
use crossover_tests::paused::Paused;
use crossover_tests::{check, end, flip, one_at_a_time, rig, text, wait_count, wait_for, wait_more};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Group, client, options.
type Reader = (&'static str, &'static str, &'static [&'static str]);
/// Where records lie.
type Records = BTreeMap<Name, At>;

const API_VERSIONS: &str = "org.apache.kafka.tools.BrokerApiVersionsCommand";
const PARTITIONS: usize = 6;
const RATE: &str = "60";
const RECORDS: usize = 240;
const WAIT: Duration = Duration::from_secs(90);
const SYNC: [&str; 2] = ["--commit", "sync-each-second"];
/// A reader would make the deleted topic again by asking for it, with one partition.
const NO_CREATION: &str = "allow.auto.create.topics=false";
/// All of them speak of topics by id.
const READERS: [Reader; 3] = [
    ("classic", "java-4.3.1", &["--strategy", "cooperative", "--conf", NO_CREATION]),
    ("kip-848", "java-4.3.1", &["--protocol", "consumer", "--conf", NO_CREATION]),
    ("franz", "franz", &[]),
];
const WRITERS: [&str; 2] = ["java-4.3.1", "franz"];
/// How the libraries call it in their logs when an id is not known, or is another topic's.
const WRONG_ID: [&str; 5] = [
    "unknown_topic_id",
    "unknown topic id",
    "inconsistent_topic_id",
    "inconsistent topic id",
    "topic id issues",
];

/// Over a cutover, a rollback and a second cutover nobody is told that an id is not known. Then the topic is deleted and
/// made anew through the proxy: who reads on reads the new topic from 0, or says that it cannot.
#[test]
fn a_topic_keeps_its_id_over_flips_and_loses_it_when_it_is_made_anew() -> Result<()> {
    let _turn = one_at_a_time();
    let mut rig = rig("4.3.1", "4.3.1", 2)?;
    rig.keep = true;
    create(&rig)?;
    speaks_of_ids(&rig)?;
    let id = topic_id(&rig)?;
    over_flips(&rig, &id)?;
    made_anew(&rig, &id)?;
    rig.keep = std::env::var_os("CROSSOVER_KEEP").is_some();
    Ok(())
}

fn over_flips(rig: &Rig, id: &str) -> Result<()> {
    let mut readers = READERS.iter().map(|reader| read(rig, reader, "flips")).collect::<Result<Vec<_>>>()?;
    let mut writers = Vec::new();
    for (index, client) in WRITERS.iter().enumerate() {
        writers.push(write(rig, client, index + 1)?);
    }
    go_on(&mut writers, &mut readers)?;
    for verb in ["cutover", "rollback", "cutover"] {
        flip(rig, verb, if verb == "cutover" { &[TOPIC, "--create"] } else { &[TOPIC] })?;
        go_on(&mut writers, &mut readers)?;
        ensure!(topic_id(rig)? == id, "the {verb} has changed the topic's id");
    }
    let written = writers.into_iter().map(end).collect::<Result<Vec<PathBuf>>>()?;
    let total: usize = written.iter().map(|history| crossover_harness::rig::count(history, "P.ok")).sum();
    for reader in &mut readers {
        wait_count(reader, "C.poll", total, WAIT)?;
    }
    let read = readers.into_iter().map(end).collect::<Result<Vec<PathBuf>>>()?;
    println!("{}", check(rig, TOPIC, &written, &read, &[])?);
    for history in written.iter().chain(&read) {
        let told = wrong_ids(history)?;
        ensure!(told.is_empty(), "{} was told of a wrong id: {told:?}", history.display());
    }
    Ok(())
}

/// The same groups read on, their positions far above 0, while the topic is replaced under them. One producer sleeps
/// meanwhile, and wakes up with the old topic's id and sequence numbers.
fn made_anew(rig: &Rig, old_id: &str) -> Result<()> {
    let mut readers = READERS.iter().map(|reader| read(rig, reader, "anew")).collect::<Result<Vec<_>>>()?;
    let mut sleeper = write(rig, "java-4.3.1", 11)?;
    go_on(std::slice::from_mut(&mut sleeper), &mut readers)?;
    let asleep = Paused::new(&sleeper)?;
    let begun = starts(&written(&sleeper.history)?);
    tool(rig, &["--delete", "--topic", TOPIC])?;
    create(rig)?;
    let id = topic_id(rig)?;
    ensure!(id != old_id, "the new topic has the old one's id");
    drop(asleep);
    let writer = write(rig, "java-4.3.1", 12)?;
    let mut new = Records::new();
    for (driver, number) in [(sleeper, 11), (writer, 12)] {
        new.extend(written_anew(driver, number, &begun)?);
    }
    let places: BTreeSet<At> = new.values().copied().collect();
    let length: i64 = ends(&places, PARTITIONS).iter().sum();
    ensure!(
        places.len() == new.len() && usize::try_from(length)? == new.len(),
        "{} records up to {:?}: the new topic does not begin at 0, or has holes",
        new.len(),
        ends(&places, PARTITIONS)
    );
    for (kind, reader) in READERS.iter().zip(readers) {
        reads_on(rig, kind, reader, &new).with_context(|| kind.0)?;
    }
    reads_from_start(rig, "new", &places)?;
    flip(rig, "cutover", &[TOPIC, "--create"])?;
    reads_from_start(rig, "new-moved", &places)
}

/// The first offset of each partition.
fn starts(written: &BTreeSet<At>) -> Vec<i64> {
    let first = |partition| written.range((partition, 0)..).next().map_or(0, |(_, offset)| *offset);
    (0..PARTITIONS).map(first).collect()
}

/// Waits for records of the new topic, ends the producer, and gives them: they lie below where the sleeper had begun to
/// write to the old one.
fn written_anew(mut driver: Driver, number: i64, begun: &[i64]) -> Result<Records> {
    let of_new = |history: &Path| -> Result<Records> {
        let all = lines(history, &["P.ok"])?;
        let all = all.iter().map(|line| Ok(((number, line.at()?.0, line.number(1)?), line.at()?)));
        let all = all.collect::<Result<Records>>()?;
        Ok(all.into_iter().filter(|(_, (partition, offset))| *offset < begun[*partition]).collect())
    };
    let history = driver.history.clone();
    wait_for(WAIT, "records in the new topic", || {
        ensure!(driver.is_alive(), "{} has ended", driver.name);
        Ok(of_new(&history)?.len() >= RECORDS)
    })
    .with_context(|| history.display().to_string())?;
    end(driver)?;
    let failed = crossover_harness::rig::count(&history, "P.fail");
    ensure!(failed == 0, "{failed} records failed: {}", history.display());
    of_new(&history)
}

/// A member that has lived through it reads the new topic from its start. franz-go never adopts the id of a topic that was
/// made anew: it tells the application, which has to start again.
fn reads_on(rig: &Rig, kind: &Reader, mut reader: Driver, new: &Records) -> Result<()> {
    let history = reader.history.clone();
    let mut told = 0;
    wait_for(WAIT, "the new topic to be read, or an error", || {
        ensure!(reader.is_alive(), "{} has ended", reader.name);
        told = reader.count("C.error");
        Ok(read_anew(&history, new)? == new.len() || told > 0)
    })
    .with_context(|| history.display().to_string())?;
    end(reader)?;
    let so_far = read_anew(&history, new)?;
    println!("{}: {so_far} of {} new records read, {told} errors", kind.0, new.len());
    if so_far < new.len() {
        ensure!(kind.1 == "franz" && so_far == 0, "it read {so_far} and told {told} errors");
        let mut again = read(rig, kind, "again")?;
        wait_count(&mut again, "C.poll", new.len(), WAIT)?;
        let history = end(again)?;
        ensure!(read_anew(&history, new)? == new.len(), "{} has read something else", history.display());
    }
    Ok(())
}

/// How many of the new topic's records it has delivered: each partition's from 0, none twice, where they lie.
fn read_anew(history: &Path, new: &Records) -> Result<usize> {
    let mut next = [0; PARTITIONS];
    for line in lines(history, &["C.poll"])? {
        let (partition, offset) = line.at()?;
        let name = (line.number(2)?, partition, line.number(3)?);
        let Some(place) = new.get(&name) else { continue };
        ensure!(*place == (partition, offset), "{name:?} lies at {place:?}, not at {partition}-{offset}");
        ensure!(
            next[partition] == offset,
            "partition {partition} goes on at {offset}, not {}",
            next[partition]
        );
        next[partition] += 1;
    }
    Ok(usize::try_from(next.iter().sum::<i64>())?)
}

fn reads_from_start(rig: &Rig, name: &str, records: &BTreeSet<At>) -> Result<()> {
    for kind in &READERS {
        let (name, count) = (format!("{name}-{}", kind.0), records.len().to_string());
        let mut args = vec!["--topic", TOPIC, "--group", &name, "--reset", "earliest"];
        args.extend(["--stop-at-end-count", &count]);
        args.extend(kind.2);
        let history = wait_end(rig.driver(kind.1, "consumer", &name, &args)?, WAIT)?;
        reads_exactly(&history, records)?;
    }
    Ok(())
}

fn read(rig: &Rig, (group, client, options): &Reader, when: &str) -> Result<Driver> {
    let mut args = vec!["--topic", TOPIC, "--group", group, "--reset", "earliest"];
    args.extend(SYNC);
    args.extend(*options);
    Ok(rig.driver(client, "consumer", &format!("{group}-{when}"), &args)?)
}

fn write(rig: &Rig, client: &str, writer: usize) -> Result<Driver> {
    let (count, writer) = (PARTITIONS.to_string(), writer.to_string());
    let args = ["--topic", TOPIC, "--partitions", &count, "--rate", RATE, "--writer", &writer];
    Ok(rig.driver(client, "producer", &format!("{client}-writer-{writer}"), &args)?)
}

/// Everybody gets on.
fn go_on(writers: &mut [Driver], readers: &mut [Driver]) -> Result<()> {
    let writers = writers.iter_mut().map(|writer| (writer, "P.ok"));
    wait_more(writers.chain(readers.iter_mut().map(|reader| (reader, "C.poll"))), RECORDS, WAIT)
}

/// Kafka's own tool at the proxy; what it printed.
fn tool(rig: &Rig, args: &[&str]) -> Result<String> {
    let all = [&["--bootstrap-server", &rig.bootstrap][..], args].concat();
    let output = rig.target.kafka().run_tool("kafka-topics", &all, None)?;
    ensure!(output.status.success(), "kafka-topics {args:?}: {}", text(&output));
    Ok(text(&output))
}

fn create(rig: &Rig) -> Result<()> {
    let count = PARTITIONS.to_string();
    tool(rig, &["--create", "--topic", TOPIC, "--partitions", &count, "--replication-factor", "2"])?;
    Ok(())
}

/// The id that clients are told.
fn topic_id(rig: &Rig) -> Result<String> {
    let described = tool(rig, &["--describe", "--topic", TOPIC])?;
    let id = described.split_whitespace().skip_while(|word| *word != "TopicId:").nth(1);
    Ok(id.with_context(|| format!("no id: {described}"))?.to_owned())
}

/// Without these versions the test would try nothing.
fn speaks_of_ids(rig: &Rig) -> Result<()> {
    let args = ["--bootstrap-server", &rig.bootstrap];
    let output = rig.target.kafka().run_tool(API_VERSIONS, &args, None)?;
    let said = text(&output);
    for (api, first) in [("Produce(0)", 13), ("Fetch(1)", 13)] {
        let line = said.lines().find(|line| line.contains(api)).with_context(|| said.clone())?;
        let usable =
            line.split("usable: ").nth(1).and_then(|rest| rest.split(']').next()?.parse::<i32>().ok());
        ensure!(usable.is_some_and(|version| version >= first), "no topic ids in {line}");
    }
    Ok(())
}

/// What a client has logged about ids.
fn wrong_ids(history: &Path) -> Result<Vec<String>> {
    let log = std::fs::read_to_string(history.with_extension("log"))?;
    let is_wrong = |line: &&str| WRONG_ID.iter().any(|text| line.to_lowercase().contains(text));
    Ok(log.lines().filter(is_wrong).map(str::to_owned).collect())
}
