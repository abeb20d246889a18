//! Live traffic by many client libraries over flips, and the verdict on it.

use crate::history::{At, Line, lines};
use crate::measure::{self, Pause, Window, machine_load, now_us};
use crate::{check, end, flip, text, wait_count, wait_for, wait_more};
use anyhow::{Context, Result, ensure};
use crossover_harness::rig::{Driver, Rig, count};
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

pub const TOPIC: &str = "orders";
pub const PARTITIONS: &str = "12";

/// JVM start, a first rebalance and a first fetch, several at a time on a small machine.
const START_MAX: Duration = Duration::from_secs(90);
/// A group that has got nothing for so long has read everything.
const QUIET: Duration = Duration::from_secs(4);
/// Consumers read what is left.
const DRAIN_MAX: Duration = Duration::from_secs(60);
/// Seen before the first flip, so that cold brokers and JVMs are not taken for the proxy.
const WARM: usize = 400;
/// How often a flip is repeated that was refused because followers lag.
const REPEATS_MAX: u32 = 5;
/// Half of a window.
const HALF_US: i64 = 1_000_000;

/// A kind of client.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    pub name: &'static str,
    /// As `tests/drivers/run.sh` takes it.
    pub driver: &'static str,
    /// Options of its producer besides the common ones.
    pub producer: &'static [&'static str],
    pub has_group: bool,
}

/// Every client library, as an application would use it: idempotent where the library can.
pub const KINDS: [Kind; 7] = [
    Kind { name: "java-3.9.2", driver: "java-3.9.2", producer: &[], has_group: true },
    Kind { name: "java-4.3.1", driver: "java-4.3.1", producer: &[], has_group: true },
    Kind { name: "librdkafka", driver: "librdkafka", producer: &["--idempotent", "true"], has_group: true },
    Kind { name: "franz", driver: "franz", producer: &[], has_group: true },
    Kind { name: "sarama", driver: "sarama", producer: &["--idempotent", "true"], has_group: true },
    Kind { name: "kafkajs", driver: "kafkajs", producer: &["--idempotent", "true"], has_group: true },
    Kind {
        name: "java-acks-1",
        driver: "java-3.9.2",
        producer: &["--acks", "1", "--idempotent", "false"],
        has_group: false,
    },
];

/// Those of the kinds that `CROSSOVER_KINDS` (comma list of names) asks for; all without it.
///
/// # Errors
/// There is no such kind.
pub fn chosen(kinds: &[Kind]) -> Result<Vec<Kind>> {
    let Ok(wanted) = std::env::var("CROSSOVER_KINDS") else { return Ok(kinds.to_vec()) };
    let known = |name: &str| kinds.iter().find(|kind| kind.name == name).copied();
    wanted.split(',').map(|name| known(name).with_context(|| format!("no kind {name}"))).collect()
}

/// The number of a kind's producer in its records and for the checker.
///
/// # Panics
/// There is no such kind.
#[must_use]
pub fn writer_of(kinds: &[Kind], name: &str) -> String {
    let index = kinds.iter().position(|kind| kind.name == name).expect("a kind of this name");
    (index + 1).to_string()
}

/// The running clients of a test.
pub struct Traffic {
    pub producers: Vec<Driver>,
    pub consumers: Vec<Driver>,
    /// Histories of members that others took the place of, by group.
    past: Vec<Vec<PathBuf>>,
    flips: usize,
}

/// One flip as it was measured.
pub struct Flipped {
    pub verb: &'static str,
    /// Two seconds around the fence.
    pub window: Window,
    /// As long, halfway between the flip before (or the start) and this one.
    pub control: Window,
    pub hold_ms: f64,
}

/// The topic on both sides, all replicas in sync.
///
/// # Errors
/// A cluster refuses.
pub fn create_topic(rig: &Rig) -> Result<()> {
    create_topic_named(rig, TOPIC)
}

/// Another topic on both sides, all replicas in sync.
///
/// # Errors
/// A cluster refuses.
pub fn create_topic_named(rig: &Rig, topic: &str) -> Result<()> {
    for cluster in [&rig.source, &rig.target] {
        let replicas = i16::try_from(cluster.broker_ids().len())?;
        cluster.create_topic(topic, PARTITIONS.parse()?, replicas, &[])?;
        cluster.wait_in_sync(topic)?;
    }
    Ok(())
}

impl Traffic {
    /// Starts a producer of each kind, and a group where it has one, and waits until all of them are warm.
    ///
    /// # Errors
    /// One of them does not work through the proxy.
    pub fn start(rig: &Rig, kinds: &[Kind], rate: u32) -> Result<Traffic> {
        Traffic::start_with(rig, kinds, rate, &[])
    }

    /// As [`Traffic::start`], with more options for every client.
    ///
    /// # Errors
    /// One of them does not work through the proxy.
    pub fn start_with(rig: &Rig, kinds: &[Kind], rate: u32, more: &[&str]) -> Result<Traffic> {
        let mut traffic =
            Traffic { producers: Vec::new(), consumers: Vec::new(), past: Vec::new(), flips: 0 };
        for kind in kinds.iter().filter(|kind| kind.has_group) {
            traffic.consumers.push(group(rig, kind, "live", more)?);
            traffic.past.push(Vec::new());
        }
        for (index, kind) in kinds.iter().enumerate() {
            let (rate, writer) = (rate.to_string(), (index + 1).to_string());
            let mut args =
                vec!["--topic", TOPIC, "--partitions", PARTITIONS, "--rate", &rate, "--writer", &writer];
            args.extend(kind.producer);
            args.extend(more);
            traffic.producers.push(rig.driver(
                kind.driver,
                "producer",
                &format!("{}-producer", kind.name),
                &args,
            )?);
        }
        for producer in &mut traffic.producers {
            wait_count(producer, "P.ok", WARM, START_MAX)?;
        }
        for consumer in &mut traffic.consumers {
            wait_count(consumer, "C.poll", WARM, START_MAX)?;
        }
        Ok(traffic)
    }

    /// `flips` flips in turn, the very first a cutover, with `between` before, between and after them.
    ///
    /// # Errors
    /// A flip fails, or a client ends.
    pub fn flip(&mut self, rig: &Rig, flips: usize, between: Duration) -> Result<Vec<Flipped>> {
        let mut done = Vec::new();
        let around = |at_us: i64| (at_us - HALF_US, at_us + HALF_US);
        sleep(between);
        for _ in 0..flips {
            let verb = if self.flips.is_multiple_of(2) { "cutover" } else { "rollback" };
            self.flips += 1;
            let began = now_us();
            let records = flip_when_quiet(rig, verb)?;
            let record = records.first().context("the command printed no record")?;
            ensure!(record["ok"] == true, "the topic was not moved: {record}");
            let hold_ms =
                record["hold_ms"].as_f64().context("the operation does not say how long it held")?;
            println!(
                "{verb}: hold {hold_ms:.1} ms ({}), command {} ms, {}",
                steps(record),
                (now_us() - began) / 1000,
                machine_load()
            );
            let half = i64::try_from(between.as_micros())? / 2;
            let (window, control) = (around(fenced_at_us(record)?), around(began - half));
            done.push(Flipped { verb, window, control, hold_ms });
            sleep(between);
            self.check_alive()?;
        }
        Ok(done)
    }

    /// Moves the home of every group to a side, and waits until each reads on there.
    ///
    /// # Errors
    /// A group does not move, or does not read.
    pub fn move_groups(&mut self, rig: &Rig, side: &str, kinds: &[Kind]) -> Result<()> {
        for kind in kinds.iter().filter(|kind| kind.has_group) {
            let output = rig.crossover(&["groups", "move", &group_name("live", kind), "--to", side])?;
            let said = text(&output);
            ensure!(output.status.success(), "the group of {} did not move to {side}:\n{said}", kind.name);
        }
        for consumer in &mut self.consumers {
            let read = consumer.count("C.poll");
            wait_count(consumer, "C.poll", read + WARM, DRAIN_MAX)?;
        }
        Ok(())
    }

    /// Ends every group's member, and starts another one that goes on from the commits.
    ///
    /// # Errors
    /// A member does not end well, or the next one does not read.
    pub fn replace_members(&mut self, rig: &Rig, kinds: &[Kind]) -> Result<()> {
        let members = std::mem::take(&mut self.consumers);
        let kinds = kinds.iter().filter(|kind| kind.has_group);
        for ((kind, member), past) in kinds.zip(members).zip(&mut self.past) {
            past.push(end(member)?);
            let group = group_name("live", kind);
            let mut args = vec!["--topic", TOPIC, "--group", &group];
            args.extend(only_from_commits(kind));
            let name = format!("{}-live-group-{}", kind.name, past.len());
            self.consumers.push(rig.driver(kind.driver, "consumer", &name, &args)?);
        }
        for consumer in &mut self.consumers {
            wait_count(consumer, "C.poll", WARM, START_MAX)?;
        }
        Ok(())
    }

    /// A second member for every group; returns when each has got partitions.
    ///
    /// # Errors
    /// One does not join.
    pub fn second_members(&self, rig: &Rig, kinds: &[Kind]) -> Result<Vec<Driver>> {
        let mut members = Vec::new();
        for kind in kinds.iter().filter(|kind| kind.has_group) {
            let group = group_name("live", kind);
            let mut args = vec!["--topic", TOPIC, "--group", &group, "--member", "second"];
            args.extend(only_from_commits(kind));
            members.push(rig.driver(
                kind.driver,
                "consumer",
                &format!("{}-second-member", kind.name),
                &args,
            )?);
        }
        for member in &mut members {
            wait_count(member, "C.assign", 1, START_MAX)?;
            wait_count(member, "C.poll", WARM, START_MAX)?;
        }
        Ok(members)
    }

    /// Ends second members: the first ones take over.
    ///
    /// # Errors
    /// One does not end well.
    pub fn end_members(&mut self, members: Vec<Driver>) -> Result<()> {
        for (member, past) in members.into_iter().zip(&mut self.past) {
            past.push(end(member)?);
        }
        Ok(())
    }

    /// Every producer gets so many more records acknowledged, and every group reads as many.
    ///
    /// # Errors
    /// Somebody stands still, or has ended.
    pub fn flows(&mut self, records: usize, limit: Duration) -> Result<()> {
        let producers = self.producers.iter_mut().map(|client| (client, "P.ok"));
        let all = producers.chain(self.consumers.iter_mut().map(|client| (client, "C.poll")));
        wait_more(all, records, limit)
    }

    fn check_alive(&mut self) -> Result<()> {
        for driver in self.producers.iter_mut().chain(&mut self.consumers) {
            ensure!(driver.is_alive(), "{} has ended: see {}", driver.name, driver.history.display());
        }
        Ok(())
    }

    /// As [`Traffic::finish`] where acknowledged records may be missing: groups read until nothing more comes.
    ///
    /// # Errors
    /// A client does not end well, or a group reads on for ever.
    pub fn finish_lossy(mut self) -> Result<Histories> {
        let producers = self.producers.drain(..).map(end).collect::<Result<Vec<_>>>()?;
        let written = producers.iter().map(|history| count(history, "P.ok")).sum();
        for consumer in &mut self.consumers {
            let mut before = 0;
            wait_for(DRAIN_MAX, &format!("{} to have read everything", consumer.name), || {
                sleep(QUIET);
                let now = consumer.count("C.poll");
                Ok(std::mem::replace(&mut before, now) == now)
            })?;
        }
        let consumers = self.consumers.drain(..).map(end).collect::<Result<Vec<_>>>()?;
        Ok(Histories { producers, consumers, written })
    }

    /// Stops the producers, lets every group read to the end, and stops the groups.
    ///
    /// # Errors
    /// A group does not read everything, or a client does not end well.
    pub fn finish(mut self) -> Result<Histories> {
        let producers = self.producers.drain(..).map(end).collect::<Result<Vec<_>>>()?;
        let written = producers.iter().map(|history| sent(history)).sum::<Result<usize>>()?;
        let mut consumers = Vec::new();
        for (mut consumer, past) in self.consumers.drain(..).zip(self.past) {
            if past.is_empty() {
                wait_count(&mut consumer, "C.poll", written, DRAIN_MAX)?;
            } else {
                // A rebalance may deliver records to the next member again.
                let all = [past.as_slice(), std::slice::from_ref(&consumer.history)].concat();
                let what = format!("the group of {} to have read everything", consumer.name);
                wait_for(DRAIN_MAX, &what, || Ok(delivered(&all)?.len() >= written))?;
            }
            consumers.extend(past);
            consumers.push(end(consumer)?);
        }
        Ok(Histories { producers, consumers, written })
    }
}

/// The records that a producer calls sent. Of kafkajs only those whose offset it knows: after a broker's failure it may call
/// records sent that its retry has left out (`sendMessages.js`); whether they may be missing is for the verdict to say.
fn sent(history: &Path) -> Result<usize> {
    if !history.to_string_lossy().contains("kafkajs") {
        return Ok(count(history, "P.ok"));
    }
    let told = lines(history, &["P.ok"])?.iter().map(Line::at).collect::<Result<Vec<At>>>()?;
    Ok(told.iter().filter(|(_, offset)| *offset != -1).count())
}

/// Does what the remedy of `log-ends` says: on a machine with many times more load than processors, followers may lag for
/// longer than the dry run waits, and the flip is refused before anybody is held. Any other refusal is a failure.
fn flip_when_quiet(rig: &Rig, verb: &str) -> Result<Vec<Value>> {
    let mut repeats = 0..REPEATS_MAX;
    loop {
        match flip(rig, verb, &[TOPIC]) {
            Err(refused) if refused.to_string().contains("log-ends:") && repeats.next().is_some() => {
                println!("{verb} is repeated, followers lag; {}: {refused}", machine_load());
                sleep(Duration::from_secs(3));
            }
            result => return result,
        }
    }
}

/// Commits are all there is to start from. Who must reset fails; where a library cannot fail, it skips what the checker then
/// misses.
fn only_from_commits(kind: &Kind) -> [&'static str; 2] {
    let cannot_fail = ["sarama", "kafkajs"].contains(&kind.driver);
    ["--reset", if cannot_fail { "latest" } else { "none" }]
}

/// Where the records lie that a group was given.
fn delivered(histories: &[PathBuf]) -> Result<BTreeSet<At>> {
    let mut all = BTreeSet::new();
    for history in histories {
        for line in lines(history, &["C.poll"])? {
            all.insert(line.at()?);
        }
    }
    Ok(all)
}

/// What a run left behind.
pub struct Histories {
    pub producers: Vec<PathBuf>,
    pub consumers: Vec<PathBuf>,
    /// Acknowledged records.
    pub written: usize,
}

impl Histories {
    /// No group was delivered a record twice. The checker sees that only where a library tells of its commits; it holds
    /// where every rebalance is an orderly one, in which members commit before they give up partitions.
    ///
    /// # Errors
    /// A group has more deliveries than there are records.
    pub fn delivered_once(&self) -> Result<()> {
        let mut twice = Vec::new();
        for history in &self.consumers {
            let mut seen = BTreeSet::new();
            let again = lines(history, &["C.poll"])?;
            let again = again.iter().filter_map(|line| line.at().ok()).filter(|at| !seen.insert(*at)).count();
            if again > 0 {
                twice.push(format!("{again} in {}", history.display()));
            }
        }
        ensure!(twice.is_empty(), "records were delivered twice: {}", twice.join(", "));
        Ok(())
    }

    /// The checker's verdict with a direct read of both clusters: nothing is tolerated.
    ///
    /// # Errors
    /// The verdict is not "pass".
    pub fn judge(&self, rig: &Rig) -> Result<()> {
        self.judge_allowing(rig, &[])
    }

    /// As [`Histories::judge`], with allowances for the checker.
    ///
    /// # Errors
    /// The verdict is not "pass".
    pub fn judge_allowing(&self, rig: &Rig, allowed: &[&str]) -> Result<()> {
        println!("{}", check(rig, TOPIC, &self.producers, &self.consumers, allowed)?);
        Ok(())
    }

    /// What every client saw around the flips, beside as many windows without one.
    ///
    /// # Errors
    /// The checker cannot measure.
    pub fn pauses(&self, flips: &[Flipped]) -> Result<Vec<Pauses>> {
        let mut all = Vec::new();
        for (producer, histories) in [(true, &self.producers), (false, &self.consumers)] {
            let windows = flips.iter().flat_map(|flip| [flip.window, flip.control]).collect::<Vec<Window>>();
            for (client, seen) in measure::pauses(histories, &windows)? {
                let ms = |pause: &Pause| if producer { pause.latency_ms } else { pause.gap_ms };
                let of = |first: usize| seen.iter().skip(first).step_by(2).filter_map(ms).collect();
                all.push(Pauses { client, flips: of(0), controls: of(1) });
            }
        }
        Ok(all)
    }
}

/// The longest pause of one client in each window, in milliseconds: of a producer the longest wait for an
/// acknowledgement, of a consumer the longest time without a record.
pub struct Pauses {
    pub client: String,
    pub flips: Vec<f64>,
    pub controls: Vec<f64>,
}

impl Pauses {
    /// How far the flips' pauses are above those of the control windows: their medians, and their maxima.
    #[must_use]
    pub fn excess_ms(&self) -> (f64, f64) {
        let max = |all: &[f64]| all.iter().copied().fold(0.0, f64::max);
        (median(&self.flips) - median(&self.controls), max(&self.flips) - max(&self.controls))
    }
}

impl std::fmt::Display for Pauses {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let show = |all: &[f64]| all.iter().map(|ms| format!("{ms:>5.0}")).collect::<String>();
        let (median, max) = self.excess_ms();
        write!(
            f,
            "{:<24} flips{} | control{} | median {median:+.0}, max {max:+.0}",
            self.client,
            show(&self.flips),
            show(&self.controls)
        )
    }
}

#[must_use]
pub fn median(all: &[f64]) -> f64 {
    let mut sorted = all.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
}

/// A group of a kind that reads the topic from its start.
///
/// # Errors
/// It cannot be started.
pub fn group(rig: &Rig, kind: &Kind, which: &str, more: &[&str]) -> Result<Driver> {
    let group = group_name(which, kind);
    let mut args = vec!["--topic", TOPIC, "--group", &group, "--reset", "earliest"];
    args.extend(more);
    Ok(rig.driver(kind.driver, "consumer", &format!("{}-{which}-group", kind.name), &args)?)
}

/// As [`group`] names it.
#[must_use]
pub fn group_name(which: &str, kind: &Kind) -> String {
    format!("{which}-{}", kind.name)
}

/// Waits until a client has ended by itself.
///
/// # Errors
/// Not in time, or not well.
pub fn wait_end(mut driver: Driver, limit: Duration) -> Result<PathBuf> {
    let deadline = Instant::now() + limit;
    while driver.is_alive() {
        ensure!(Instant::now() < deadline, "{} does not end: see {}", driver.name, driver.history.display());
        sleep(Duration::from_millis(50));
    }
    end(driver)
}

/// When clients began to wait, unix microseconds.
fn fenced_at_us(record: &Value) -> Result<i64> {
    let steps = record["steps"].as_array().context("the record has no steps")?;
    let fence = steps.iter().find(|step| step["name"] == "FENCE").context("there was no fence")?;
    Ok(fence["at_ms"].as_i64().context("the fence has no time")? * 1000)
}

fn steps(record: &Value) -> String {
    let steps = record["steps"].as_array().into_iter().flatten();
    let shown = steps.filter_map(|step| {
        let name = step["name"].as_str()?;
        Some(format!("{name} {:.1}", step["took_ms"].as_f64()?))
    });
    shown.collect::<Vec<_>>().join(", ")
}
