//! Failures placed between the steps of a flip.

use crate::live::{TOPIC, Traffic};
use crate::operator::{Hold, REACHED_MAX, status};
use crate::{flip, text};
use anyhow::{Context, Result, bail, ensure};
use crossover_harness::rig::{Rig, command};
use serde_json::Value;
use std::process::Output;
use std::thread::{self, JoinHandle, sleep};
use std::time::{Duration, Instant};

/// Steps of a flip, each a place where a failure can be put behind it. What comes before `SEAL` may end in an abort.
pub const STEPS: [&str; 8] = ["PREPARE", "FENCE", "DRAIN", "BOUNDARY", "CARRY", "SEAL", "PUBLISH", "RELEASE"];

/// The hold bound, PREPARE, and a loaded machine.
const ENDED_MAX: Duration = Duration::from_secs(60);
/// For clients to get on after a failure: sessions end after 6 s, and libraries back off.
const FLOWS_MAX: Duration = Duration::from_secs(60);
/// Records that every producer must get acknowledged, and every group must read, before the next case.
const FLOWS: usize = 20;
const LOOK: Duration = Duration::from_millis(2);
const AGAIN: Duration = Duration::from_millis(500);

/// A flip that is under way, and stands still behind a step.
pub struct Stopped {
    hold: Hold,
    running: JoinHandle<Result<Output>>,
    verb: &'static str,
}

/// How a flip with a failure in it ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    Flipped,
    /// With the reason that the operator is told.
    Aborted(String),
    /// The command could not tell: the proxy was killed.
    Unknown,
}

/// Starts a flip and returns when it stands behind `step`. A flip that is refused because of the failure before it is
/// tried again until it is allowed (RULES R2, R10).
///
/// # Errors
/// It does not get there.
pub fn stop_behind(rig: &Rig, verb: &'static str, step: &str) -> Result<Stopped> {
    stop_all_behind(rig, verb, &[TOPIC], step)
}

/// As [`stop_behind`], a flip of several topics.
///
/// # Errors
/// As there.
pub fn stop_all_behind(rig: &Rig, verb: &'static str, topics: &[&str], step: &str) -> Result<Stopped> {
    let deadline = Instant::now() + REACHED_MAX;
    loop {
        match try_stop_behind(rig, verb, topics, step) {
            Err(refused) if is_passing(&refused) && Instant::now() < deadline => sleep(AGAIN),
            other => return other,
        }
    }
}

fn is_passing(refused: &anyhow::Error) -> bool {
    let why = refused.to_string();
    ["unknown-outcomes", "did not end by itself", "log-ends", "unclean"].iter().any(|name| why.contains(name))
}

fn try_stop_behind(rig: &Rig, verb: &'static str, topics: &[&str], step: &str) -> Result<Stopped> {
    let hold = Hold::behind(rig, step)?;
    let mut command = command(rig, &[&[verb], topics, &["--json"]].concat());
    let running = thread::spawn(move || Ok(command.output()?));
    if hold.reached_or(|| running.is_finished())? {
        return Ok(Stopped { hold, running, verb });
    }
    drop(hold);
    let output = running.join().map_err(|_| anyhow::anyhow!("the command panicked"))??;
    bail!("the {verb} ended before {step}: {}", text(&output));
}

impl Stopped {
    /// Lets the flip go on.
    ///
    /// # Errors
    /// The file cannot be removed.
    pub fn go_on(&self) -> Result<()> {
        self.hold.go_on()
    }

    /// Waits for the command.
    ///
    /// # Errors
    /// It does not end, or says something that is neither success nor an abort.
    pub fn outcome(self) -> Result<Outcome> {
        let deadline = Instant::now() + ENDED_MAX;
        while !self.running.is_finished() {
            ensure!(Instant::now() < deadline, "the {} does not end", self.verb);
            sleep(LOOK);
        }
        let output = self.running.join().map_err(|_| anyhow::anyhow!("the command panicked"))??;
        if output.status.success() {
            return Ok(Outcome::Flipped);
        }
        let out = String::from_utf8_lossy(&output.stdout);
        let record = out.lines().find_map(|line| serde_json::from_str::<Value>(line).ok());
        let reason = record.as_ref().and_then(|record| record["reason"].as_str());
        Ok(reason.map_or(Outcome::Unknown, |reason| Outcome::Aborted(reason.to_owned())))
    }
}

/// Waits until everything is well again: all replicas in sync, every producer acknowledged, every group reading.
///
/// # Errors
/// It does not become well.
pub fn wait_until_well(rig: &Rig, traffic: &mut Traffic) -> Result<()> {
    for cluster in [&rig.source, &rig.target] {
        cluster.wait_in_sync(TOPIC)?;
    }
    traffic.flows(FLOWS, FLOWS_MAX)
}

/// After a loss of connections or of the proxy, a partition flips only after the grace time (RULES R2).
///
/// # Errors
/// It does not flip within a minute.
pub fn flip_when_allowed(rig: &Rig, verb: &str, topics: &[&str]) -> Result<()> {
    let deadline = Instant::now() + ENDED_MAX;
    loop {
        match flip(rig, verb, topics) {
            Ok(_) => return Ok(()),
            Err(refused) if Instant::now() > deadline => return Err(refused),
            Err(_) => sleep(AGAIN),
        }
    }
}

/// Which side owns the topic.
///
/// # Errors
/// The proxy does not say.
pub fn owner(rig: &Rig) -> Result<String> {
    let status = status(rig)?;
    let topics = status["topics"].as_array().context("a status without topics")?;
    let topic = topics.iter().find(|topic| topic["name"] == TOPIC).context("the topic is not shown")?;
    Ok(topic["owner"].as_str().context("a topic without an owner")?.to_owned())
}
