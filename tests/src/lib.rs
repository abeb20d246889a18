//! What the end-to-end tests share.

pub mod commits;
pub mod fault_run;
pub mod fault_table;
pub mod faults;
pub mod fleet;
pub mod history;
pub mod live;
pub mod measure;
pub mod operator;
pub mod paused;

use anyhow::{Context, Result, ensure};
use crossover_harness::ClusterSpec;
use crossover_harness::rig::{Driver, Rig, RigSpec};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::str::FromStr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Each test starts two clusters; one test at a time keeps a small machine responsive.
pub fn one_at_a_time() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A binary of the workspace, beside the test's own.
///
/// # Errors
/// It is not built.
pub fn binary(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let folder = own.parent().and_then(Path::parent).context("the test is not in a target folder")?;
    let path = folder.join(name);
    ensure!(path.exists(), "{} is not built: run `cargo build --workspace --bins` first", path.display());
    Ok(path)
}

#[must_use]
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Two clusters of these versions with a proxy between them.
///
/// # Errors
/// Something does not start.
pub fn rig(source: &str, target: &str, brokers: u8) -> Result<Rig> {
    rig_with(source, target, brokers, "")
}

/// As [`rig`], with more sections in the configuration file.
///
/// # Errors
/// Something does not start.
pub fn rig_with(source: &str, target: &str, brokers: u8, extra_config: &str) -> Result<Rig> {
    let spec = |version: &str, name: &str| ClusterSpec {
        name: name.to_owned(),
        ..ClusterSpec::new(version, brokers)
    };
    let rig = Rig::start(RigSpec {
        source: spec(source, "source"),
        target: spec(target, "target"),
        crossover: binary("crossover")?,
        repository: repository(),
        extra_config: extra_config.to_owned(),
        relayed: false,
    })?;
    Ok(rig)
}

/// What an environment variable says, or what is affordable without it.
///
/// # Errors
/// It says something else than a number.
pub fn setting<T: FromStr>(name: &str, default: T) -> Result<T> {
    let Ok(text) = std::env::var(name) else { return Ok(default) };
    text.parse().map_err(|_| anyhow::anyhow!("{name} is not a number: {text}"))
}

/// As [`rig`], with a relay in front of each broker.
///
/// # Errors
/// Something does not start.
pub fn relayed_rig(source: &str, target: &str, brokers: u8, properties: &[(&str, &str)]) -> Result<Rig> {
    let properties: Vec<_> = properties.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    let spec = |version: &str, name: &str| ClusterSpec {
        name: name.to_owned(),
        properties: properties.clone(),
        ..ClusterSpec::new(version, brokers)
    };
    let rig = Rig::start(RigSpec {
        source: spec(source, "source"),
        target: spec(target, "target"),
        crossover: binary("crossover")?,
        repository: repository(),
        // Flips follow each other quickly here, and a kill of the proxy is not followed by late arrivals.
        extra_config: "[timeouts]\nloss_grace_ms = 2000\n".to_owned(),
        relayed: true,
    })?;
    Ok(rig)
}

/// Flips topics and gives the last record the command prints.
///
/// # Errors
/// The flip did not succeed; what the command said is in the error.
pub fn flip(rig: &Rig, verb: &str, topics: &[&str]) -> Result<Vec<Value>> {
    let mut args = vec![verb];
    args.extend(topics);
    args.push("--json");
    let output = rig.crossover(&args)?;
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "crossover {verb} failed:\n{out}\n{err}");
    Ok(out.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
}

/// Waits until each client has `more` events of its kind than it has now.
///
/// # Errors
/// Not in time, or a client has ended.
pub fn wait_more<'a>(
    clients: impl IntoIterator<Item = (&'a mut Driver, &'a str)>,
    more: usize,
    limit: Duration,
) -> Result<()> {
    let clients = clients.into_iter();
    let all: Vec<_> = clients.map(|(client, event)| (client.count(event) + more, client, event)).collect();
    let deadline = Instant::now() + limit;
    for (wanted, client, event) in all {
        wait_count(client, event, wanted, deadline.saturating_duration_since(Instant::now()))?;
    }
    Ok(())
}

/// Waits until a driver's history has `count` events of a kind.
///
/// # Errors
/// Not in time, or the driver has ended.
pub fn wait_count(driver: &mut Driver, event: &str, count: usize, limit: Duration) -> Result<()> {
    let deadline = Instant::now() + limit;
    loop {
        let seen = driver.count(event);
        if seen >= count {
            return Ok(());
        }
        ensure!(driver.is_alive(), "{} has ended: see {}", driver.name, driver.history.display());
        ensure!(Instant::now() < deadline, "{}: {seen} of {count} {event} in {limit:?}", driver.name);
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Ends a client in an orderly way; its history.
///
/// # Errors
/// It does not end well.
pub fn end(driver: Driver) -> Result<PathBuf> {
    let (name, history) = (driver.name.clone(), driver.history.clone());
    ensure!(driver.stop(), "{name} did not end well: see {}", history.display());
    Ok(history)
}

/// The proxy has found nothing wrong: no log that somebody else writes to, no record out of its place.
///
/// # Errors
/// It has, or does not say.
pub fn no_alarms(rig: &Rig) -> Result<()> {
    let output = rig.crossover(&["status", "--json"])?;
    let status: Value = serde_json::from_slice(&output.stdout).with_context(|| text(&output))?;
    let alarms = status["alarms"].as_array().context("the status has no alarms")?;
    ensure!(alarms.is_empty(), "alarms: {alarms:?}");
    Ok(())
}

/// A configuration with source and target the other way round.
#[must_use]
pub fn swapped(config: &str) -> String {
    config.replace("[source]", "[x]").replace("[target]", "[source]").replace("[x]", "[target]")
}

/// Everything a command printed.
#[must_use]
pub fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Waits until something holds.
///
/// # Errors
/// Not in time, or asking fails.
pub fn wait_for(limit: Duration, what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + limit;
    while !holds()? {
        ensure!(Instant::now() < deadline, "waited {limit:?} for {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// The independent checker, to be run over histories and both clusters' logs.
///
/// # Errors
/// It is not built.
pub fn checker(rig: &Rig, topic: &str, producers: &[PathBuf], consumers: &[PathBuf]) -> Result<Command> {
    let mut command = Command::new(binary("crossover-check")?);
    command.arg("--producers").args(producers).arg("--consumers").args(consumers);
    command.args([
        "--source",
        &rig.source.bootstrap(),
        "--target",
        &rig.target.bootstrap(),
        "--topic",
        topic,
    ]);
    Ok(command)
}

/// Runs the checker; gives what it printed.
///
/// # Errors
/// The verdict is not "pass".
pub fn check(
    rig: &Rig,
    topic: &str,
    producers: &[PathBuf],
    consumers: &[PathBuf],
    more: &[&str],
) -> Result<String> {
    let mut command = checker(rig, topic, producers, consumers)?;
    let output = command.args(more).output()?;
    let text =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "the checker's verdict is not pass:\n{text}");
    Ok(text)
}
