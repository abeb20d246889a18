//! Live traffic by many client libraries over flips, and the verdict on it.

use crate::measure::{self, Window, machine_load, now_us};
use crate::{check, flip, wait_count};
use anyhow::{Context, Result, ensure};
use crossover_harness::rig::{Driver, Rig, count};
use serde_json::Value;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};

pub const TOPIC: &str = "orders";
pub const PARTITIONS: &str = "12";

/// JVM start, a first rebalance and a first fetch, several at a time on a small machine.
const START_MAX: Duration = Duration::from_secs(90);
/// Consumers read what is left.
const DRAIN_MAX: Duration = Duration::from_secs(60);
/// Seen before the first flip, so that cold brokers and JVMs are not taken for the proxy.
const WARM: usize = 400;
/// How often a flip is repeated that was refused because followers lag.
const REPEATS_MAX: u32 = 5;
/// Belongs to a flip: the command, and this long after it.
const AFTER_US: i64 = 1_000_000;

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

/// The running clients of a test.
pub struct Traffic {
    pub producers: Vec<Driver>,
    pub consumers: Vec<Driver>,
}

/// One flip as it was measured.
pub struct Flipped {
    pub verb: &'static str,
    pub window: Window,
    /// As long as the window, before it.
    pub control: Window,
    pub hold_ms: Option<f64>,
    pub load: String,
}

/// The topic on both sides, all replicas in sync.
///
/// # Errors
/// A cluster refuses.
pub fn create_topic(rig: &Rig) -> Result<()> {
    for cluster in [&rig.source, &rig.target] {
        let replicas = i16::try_from(cluster.broker_ids().len())?;
        cluster.create_topic(TOPIC, PARTITIONS.parse()?, replicas, &[])?;
        cluster.wait_in_sync(TOPIC)?;
    }
    Ok(())
}

impl Traffic {
    /// Starts a producer of each kind, and a group where it has one, and waits until all of them are warm.
    ///
    /// # Errors
    /// One of them does not work through the proxy.
    pub fn start(rig: &Rig, kinds: &[Kind], rate: u32) -> Result<Traffic> {
        let mut traffic = Traffic { producers: Vec::new(), consumers: Vec::new() };
        for kind in kinds.iter().filter(|kind| kind.has_group) {
            traffic.consumers.push(group(rig, kind, "live", &[])?);
        }
        for (index, kind) in kinds.iter().enumerate() {
            let (rate, writer) = (rate.to_string(), (index + 1).to_string());
            let mut args =
                vec!["--topic", TOPIC, "--partitions", PARTITIONS, "--rate", &rate, "--writer", &writer];
            args.extend(kind.producer);
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

    /// `flips` flips in turn, the first a cutover, with `between` before, between and after them.
    ///
    /// # Errors
    /// A flip fails, or a client ends.
    pub fn flip(&mut self, rig: &Rig, flips: usize, between: Duration) -> Result<Vec<Flipped>> {
        let mut done = Vec::new();
        sleep(between);
        for verb in ["cutover", "rollback"].into_iter().cycle().take(flips) {
            done.push(self.flip_once(rig, verb, between)?);
        }
        Ok(done)
    }

    /// One flip, and `after` it until the next thing may happen.
    ///
    /// # Errors
    /// The flip fails, or a client ends.
    pub fn flip_once(&mut self, rig: &Rig, verb: &'static str, after: Duration) -> Result<Flipped> {
        let began = now_us();
        let records = flip_when_quiet(rig, verb)?;
        let window = (began, now_us() + AFTER_US);
        let control = (2 * window.0 - window.1, window.0);
        let hold_ms = hold(&records)?;
        let load = machine_load();
        println!("{verb}: hold_ms {hold_ms:?}, command {} ms, {load}", (now_us() - began) / 1000);
        sleep(after);
        self.check_alive()?;
        Ok(Flipped { verb, window, control, hold_ms, load })
    }

    /// Moves the home of every group to a side, and waits until each reads on there.
    ///
    /// # Errors
    /// A group does not move, or does not read.
    pub fn move_groups(&mut self, rig: &Rig, side: &str, kinds: &[Kind]) -> Result<()> {
        for kind in kinds.iter().filter(|kind| kind.has_group) {
            let output = rig.crossover(&["groups", "move", &group_name("live", kind), "--to", side])?;
            let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
            ensure!(output.status.success(), "the group of {} did not move to {side}:\n{text}", kind.name);
        }
        for consumer in &mut self.consumers {
            let read = consumer.count("C.poll");
            wait_count(consumer, "C.poll", read + WARM, DRAIN_MAX)?;
        }
        Ok(())
    }

    fn check_alive(&mut self) -> Result<()> {
        for driver in self.producers.iter_mut().chain(&mut self.consumers) {
            ensure!(driver.is_alive(), "{} has ended: see {}", driver.name, driver.history.display());
        }
        Ok(())
    }

    /// Stops the producers, lets every group read to the end, and stops the groups.
    ///
    /// # Errors
    /// A group does not read everything, or a client does not end well.
    pub fn finish(mut self) -> Result<Histories> {
        let mut producers = Vec::new();
        for producer in self.producers.drain(..) {
            let (name, history) = (producer.name.clone(), producer.history.clone());
            ensure!(producer.stop(), "{name} did not end well: see {}", history.display());
            producers.push(history);
        }
        let written = producers.iter().map(|history| count(history, "P.ok")).sum();
        let mut consumers = Vec::new();
        for mut consumer in self.consumers.drain(..) {
            wait_count(&mut consumer, "C.poll", written, DRAIN_MAX)?;
            let (name, history) = (consumer.name.clone(), consumer.history.clone());
            ensure!(consumer.stop(), "{name} did not end well: see {}", history.display());
            consumers.push(history);
        }
        Ok(Histories { producers, consumers, written })
    }
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

/// What a run left behind.
pub struct Histories {
    pub producers: Vec<PathBuf>,
    pub consumers: Vec<PathBuf>,
    /// Acknowledged records.
    pub written: usize,
}

impl Histories {
    /// The checker's verdict with a direct read of both clusters: nothing is tolerated.
    ///
    /// # Errors
    /// The verdict is not "pass".
    pub fn judge(&self, rig: &Rig) -> Result<()> {
        println!("{}", check(rig, TOPIC, &self.producers, &self.consumers, &[])?);
        Ok(())
    }

    /// Prints what every client saw around the flips, beside as much time before each.
    ///
    /// # Errors
    /// The checker cannot measure.
    pub fn print_pauses(&self, flips: &[Flipped]) -> Result<()> {
        let windows: Vec<Window> = flips.iter().flat_map(|flip| [flip.window, flip.control]).collect();
        let all: Vec<PathBuf> = self.producers.iter().chain(&self.consumers).cloned().collect();
        println!("longest gap (longest wait of a record) in ms around each flip | as long before it");
        for (name, pauses) in measure::pauses(&all, &windows)? {
            let show = |ms: Option<f64>| ms.map_or("-".to_owned(), |ms| format!("{ms:.0}"));
            let each = pauses.iter().map(|p| format!("{:>5} ({:>5})", show(p.gap_ms), show(p.latency_ms)));
            let each: Vec<String> = each.collect();
            let pairs = flips.iter().zip(each.chunks(2));
            let pairs = pairs.map(|(flip, pair)| format!("{:>8}{}", flip.verb, pair.join(" |")));
            println!("{name:<24}{}", pairs.collect::<Vec<_>>().join("   "));
        }
        Ok(())
    }
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
fn group_name(which: &str, kind: &Kind) -> String {
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
    let (name, history) = (driver.name.clone(), driver.history.clone());
    ensure!(driver.stop(), "{name} did not end well: see {}", history.display());
    Ok(history)
}

/// The hold time of the operation, which its record must tell.
fn hold(records: &[Value]) -> Result<Option<f64>> {
    let record = records.first().context("the command printed no record")?;
    ensure!(record["ok"] == true, "the topic was not moved: {record}");
    Ok(record["hold_ms"].as_f64())
}
