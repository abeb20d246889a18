//! `crossover demo`: two real clusters, live clients, a cutover, a rollback, a second cutover, and a verdict.
//!
//! The verdict is the checker's: it reads what the clients logged and both clusters' logs, and asks the proxy nothing.

use anyhow::{Context, bail, ensure};
use crossover_harness::rig::{Driver, Rig, RigSpec, count};
use crossover_harness::{ClusterSpec, ensure_prerequisites};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

const TOPIC: &str = "orders";
const PARTITIONS: i32 = 12;
/// How long clients run around each flip.
const PHASE: Duration = Duration::from_secs(6);
const SHORT_PHASE: Duration = Duration::from_secs(3);
const START_MAX: Duration = Duration::from_secs(90);
const DRAIN_MAX: Duration = Duration::from_secs(40);

/// Options of the demo.
#[derive(clap::Args, Debug)]
pub(crate) struct DemoArgs {
    /// A shorter run: one kind of client, one cutover and one rollback.
    #[arg(long)]
    pub(crate) short: bool,
    /// Keep the folder with configuration, logs and histories.
    #[arg(long)]
    pub(crate) keep: bool,
}

/// Clients of one library: a producer and a group.
struct Pair {
    library: String,
    producer: Driver,
    consumer: Driver,
}

/// Runs the demo; `false` when its verdict fails.
///
/// # Errors
/// Something could not be started, or a flip failed.
pub(crate) async fn run(args: DemoArgs) -> anyhow::Result<bool> {
    tokio::select! {
        verdict = tokio::task::spawn_blocking(move || blocking(&args)) => verdict?,
        _ = tokio::signal::ctrl_c() => bail!("interrupted"),
    }
}

fn blocking(args: &DemoArgs) -> anyhow::Result<bool> {
    let repository = repository()?;
    say("checking for Java and Maven");
    ensure_prerequisites()?;
    say("starting Kafka 3.9.2 (source) and Kafka 4.3.1 (target), two brokers each; the first run fetches them");
    let spec = |version: &str, name: &str| ClusterSpec { name: name.to_owned(), ..ClusterSpec::new(version, 2) };
    let mut rig = Rig::start(RigSpec {
        source: spec("3.9.2", "source"),
        target: spec("4.3.1", "target"),
        crossover: std::env::current_exe()?,
        repository,
        extra_config: String::new(),
    })?;
    rig.keep = true;
    for cluster in [&rig.source, &rig.target] {
        cluster.create_topic(TOPIC, PARTITIONS, 2, &[])?;
    }
    say(&format!("crossover is ready: clients connect to {}", rig.bootstrap));
    let verdict = drive(&rig, args.short);
    let fine = matches!(verdict, Ok(true));
    rig.keep = args.keep || !fine;
    if rig.keep {
        say(&format!("configuration, logs and histories are in {}", rig.directory.display()));
    }
    verdict
}

fn drive(rig: &Rig, short: bool) -> anyhow::Result<bool> {
    let mut pairs = start_clients(rig, short)?;
    wait_until("the first records", START_MAX, &mut pairs, |p| p.producer.count("P.ok") > 200 && p.consumer.count("C.poll") > 100)?;
    let phase = if short { SHORT_PHASE } else { PHASE };
    watch(&pairs, "source", phase);
    let flips: &[&str] = if short { &["cutover", "rollback"] } else { &["cutover", "rollback", "cutover"] };
    for verb in flips {
        let owner = if *verb == "cutover" { "target" } else { "source" };
        let started = unix_us();
        say(&format!("crossover {verb} {TOPIC}"));
        let held = flip(rig, verb)?;
        watch(&pairs, owner, phase);
        let pauses: Vec<String> =
            pairs.iter().map(|p| format!("{} {:.0} ms", p.library, pause(&p.producer.history, started))).collect();
        say(&format!("  held for {held:.1} ms inside the proxy; longest wait for an acknowledgement: {}", pauses.join(", ")));
    }
    finish(rig, pairs)
}

fn start_clients(rig: &Rig, short: bool) -> anyhow::Result<Vec<Pair>> {
    let mut libraries = vec!["java-3.9.2"];
    if !short {
        let with = |program: &str, library| runs(program).then_some(library);
        libraries.extend(with("python3", "librdkafka"));
        libraries.extend(with("go", "franz"));
    }
    say(&format!("starting a producer and a consumer group of each: {} (the first run fetches them)", libraries.join(", ")));
    let mut pairs = Vec::new();
    for (number, library) in libraries.iter().enumerate() {
        let writer = (number + 1).to_string();
        let rate = if short { "600" } else { "400" };
        let partitions = PARTITIONS.to_string();
        let producer = ["--topic", TOPIC, "--partitions", &partitions, "--rate", rate, "--writer", &writer, "--acks", "all"];
        let group = format!("group-{library}");
        let consumer = ["--topic", TOPIC, "--group", &group, "--reset", "earliest"];
        pairs.push(Pair {
            library: (*library).to_owned(),
            producer: rig.driver(library, "producer", &format!("producer-{library}"), &producer)?,
            consumer: rig.driver(library, "consumer", &format!("consumer-{library}"), &consumer)?,
        });
    }
    Ok(pairs)
}

/// One line a second: who owns the topic, and how fast it goes.
fn watch(pairs: &[Pair], owner: &str, phase: Duration) {
    let totals = || {
        let produced: usize = pairs.iter().map(|p| p.producer.count("P.ok")).sum();
        let consumed: usize = pairs.iter().map(|p| p.consumer.count("C.poll")).sum();
        (produced, consumed)
    };
    let end = Instant::now() + phase;
    let (mut last, mut at) = (totals(), Instant::now());
    while Instant::now() < end {
        std::thread::sleep(Duration::from_secs(1));
        let (now, took) = (totals(), at.elapsed().as_secs_f64());
        at = Instant::now();
        let rate = |now: usize, last: usize| (now.saturating_sub(last)) as f64 / took;
        println!(
            "  owner {owner:<7} {:>9} acknowledged ({:>6.0}/s) {:>9} consumed ({:>6.0}/s)",
            now.0,
            rate(now.0, last.0),
            now.1,
            rate(now.1, last.1)
        );
        last = now;
    }
}

fn flip(rig: &Rig, verb: &str) -> anyhow::Result<f64> {
    let output = rig.crossover(&[verb, TOPIC, "--json"])?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "crossover {verb} failed:\n{text}{}", String::from_utf8_lossy(&output.stderr));
    let records: Vec<Value> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    Ok(records.iter().find_map(|r| r["hold_ms"].as_f64()).unwrap_or(0.0))
}

fn finish(rig: &Rig, mut pairs: Vec<Pair>) -> anyhow::Result<bool> {
    say("stopping the producers; the groups read what is left");
    let (mut producers, mut consumers, mut rest) = (Vec::new(), Vec::new(), Vec::new());
    let mut clean = true;
    for pair in pairs.drain(..) {
        producers.push(pair.producer.history.clone());
        clean &= pair.producer.stop();
        rest.push(pair.consumer);
    }
    let total: usize = producers.iter().map(|h| count(h, "P.ok")).sum();
    let deadline = Instant::now() + DRAIN_MAX;
    while rest.iter().any(|c| c.count("C.poll") < total) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(100));
    }
    for consumer in rest {
        consumers.push(consumer.history.clone());
        clean &= consumer.stop();
    }
    if !clean {
        say("a client did not end by itself");
    }
    say("reading both clusters directly and comparing with what the clients logged");
    let output = checker()?
        .arg("--producers")
        .args(&producers)
        .arg("--consumers")
        .args(&consumers)
        .args(["--source", &rig.source.bootstrap(), "--target", &rig.target.bootstrap(), "--topic", TOPIC])
        .output()
        .context("crossover-check cannot be run")?;
    print!("{}", String::from_utf8_lossy(&output.stdout));
    eprint!("{}", String::from_utf8_lossy(&output.stderr));
    Ok(clean && output.status.success())
}

/// The independent checker: a program of its own, beside this one.
fn checker() -> anyhow::Result<Command> {
    let own = std::env::current_exe()?;
    let beside = own.with_file_name("crossover-check");
    ensure!(beside.exists(), "{} is missing: build it with `cargo build --workspace --bins`", beside.display());
    Ok(Command::new(beside))
}

/// The longest time between two acknowledgements that ended after `since`, milliseconds.
fn pause(history: &Path, since_us: u64) -> f64 {
    let Ok(text) = std::fs::read_to_string(history) else { return 0.0 };
    let acks = text.lines().filter_map(|line| {
        let mut fields = line.split('\t');
        let at: u64 = fields.next()?.parse().ok()?;
        (fields.next()? == "P.ok").then_some(at)
    });
    let mut last = None;
    let mut longest = 0;
    for at in acks.filter(|at| *at >= since_us) {
        longest = longest.max(at.saturating_sub(last.unwrap_or(at)));
        last = Some(at);
    }
    longest as f64 / 1000.0
}

fn wait_until(what: &str, limit: Duration, pairs: &mut [Pair], done: impl Fn(&Pair) -> bool) -> anyhow::Result<()> {
    let deadline = Instant::now() + limit;
    while !pairs.iter().all(&done) {
        for pair in &mut *pairs {
            ensure!(pair.producer.is_alive() && pair.consumer.is_alive(), "a {} client has ended early", pair.library);
        }
        ensure!(Instant::now() < deadline, "{what} did not come within {limit:?}");
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

fn runs(program: &str) -> bool {
    Command::new(program).arg("--help").output().is_ok()
}

fn repository() -> anyhow::Result<PathBuf> {
    let given = std::env::var_os("CROSSOVER_REPOSITORY").map(PathBuf::from);
    let path = given.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join(".."));
    ensure!(
        path.join("tests/drivers/run.sh").exists(),
        "the client drivers are not in {}; name the repository in CROSSOVER_REPOSITORY",
        path.display()
    );
    Ok(path)
}

fn unix_us() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

fn say(text: &str) {
    println!("{text}");
}
