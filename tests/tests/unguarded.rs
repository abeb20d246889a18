//! Producers that Kafka itself does not guard: acks=0, acks=1, and libraries without idempotence. A flip without a failure
//! costs them nothing; failures in a flip cost them no more than the same failures cost them on bare Kafka. Needs
//! `cargo build -p crossover -p crossover-loadtest --features crossover/failpoints` first.
//!
//! `CROSSOVER_FAULTS` (default 12) says how many failures; `CROSSOVER_FLIPS` (default 12) how many flips without one;
//! `CROSSOVER_RATE` (default 100) is the records per second of each producer; `CROSSOVER_FAILURES=KillBroker,Election` picks some.

use anyhow::{Context, Result, ensure};
use crossover_harness::relay::Cut;
use crossover_harness::rig::Rig;
use crossover_tests::fault_run::{Failure, Hit, Run};
use crossover_tests::faults::STEPS;
use crossover_tests::live::{Histories, Kind, TOPIC, Traffic, create_topic};
use crossover_tests::measure::machine_load;
use crossover_tests::{checker, one_at_a_time, rig, setting};
use serde_json::Value;
use std::time::Duration;

/// The defaults of sarama and kafkajs are not idempotent. One group reads what everybody writes.
const CLIENTS: [Kind; 8] = [
    Kind {
        has_group: true,
        ..producer("java-acks-1", "java-3.9.2", &["--acks", "1", "--idempotent", "false"])
    },
    producer("java-acks-0", "java-4.3.1", &["--acks", "0", "--idempotent", "false"]),
    producer("librdkafka-acks-1", "librdkafka", &["--acks", "1"]),
    producer("librdkafka-acks-0", "librdkafka", &["--acks", "0"]),
    producer("franz-acks-1", "franz", &["--acks", "1", "--idempotent", "false"]),
    producer("franz-acks-0", "franz", &["--acks", "0", "--idempotent", "false"]),
    producer("sarama-default", "sarama", &[]),
    producer("kafkajs-default", "kafkajs", &["--idempotent", "false"]),
];

const fn producer(name: &'static str, driver: &'static str, producer: &'static [&'static str]) -> Kind {
    Kind { name, driver, producer, has_group: false }
}

const FAILURES: [Failure; 6] = [
    Failure::Election,
    Failure::Cut(Cut::Fin),
    Failure::LoseAnswer(Cut::Rst),
    Failure::KillBroker,
    Failure::Cut(Cut::Rst),
    Failure::PauseBroker,
];

/// Those that are asked for, in turn.
fn failures(count: usize) -> Result<Vec<Failure>> {
    let wanted = std::env::var("CROSSOVER_FAILURES").unwrap_or_default();
    let is_wanted =
        |failure: &Failure| wanted.split(',').any(|name| format!("{failure:?}").starts_with(name));
    let picked: Vec<Failure> = FAILURES.into_iter().filter(is_wanted).collect();
    ensure!(!picked.is_empty(), "CROSSOVER_FAILURES: {wanted} names none of {FAILURES:?}");
    Ok(picked.into_iter().cycle().take(count).collect())
}

const BETWEEN: Duration = Duration::from_secs(3);

/// What became of one writer's records, as the checker counts it.
#[derive(Debug)]
struct Deviations {
    sent: u64,
    lost: u64,
    twice: u64,
    out_of_order: u64,
}

impl Deviations {
    fn read(value: &Value) -> Result<Deviations> {
        let number = |name: &str| value[name].as_u64().with_context(|| format!("no {name} in {value}"));
        let (sent, lost) = (number("sent")?, number("lost")?);
        Ok(Deviations { sent, lost, twice: number("twice")?, out_of_order: number("out_of_order")? })
    }

    fn any(&self) -> bool {
        self.lost + self.twice + self.out_of_order > 0
    }
}

/// Not one record of theirs is lost, written twice or overtaken.
#[test]
fn flips_cost_them_nothing() -> Result<()> {
    let _turn = one_at_a_time();
    let mut rig = rig("3.9.2", "4.3.1", 3)?;
    rig.keep = true;
    create_topic(&rig)?;
    let flips = setting("CROSSOVER_FLIPS", 12)?;
    let mut traffic = Traffic::start(&rig, &CLIENTS, setting("CROSSOVER_RATE", 100)?)?;
    traffic.flip(&rig, flips, BETWEEN)?;
    let told = deviations(&rig, &traffic.finish()?)?;
    print("through the proxy, without failures", &told);
    let wrong: Vec<_> = told.iter().filter(|writer| writer.any()).collect();
    ensure!(wrong.is_empty(), "{flips} flips were noticed: {wrong:?}");
    rig.keep = false;
    Ok(())
}

#[test]
fn failures_cost_them_no_more_than_on_bare_kafka() -> Result<()> {
    let _turn = one_at_a_time();
    let (faults, rate) = (setting("CROSSOVER_FAULTS", 12)?, setting("CROSSOVER_RATE", 100)?);
    let (proxied, outages) = proxied(faults, rate)?;
    let bare = bare(&outages, rate)?;
    print("bare Kafka", &bare);
    print("in flips", &proxied);
    let costs = |all: &[Deviations]| {
        let sum = |of: fn(&Deviations) -> u64| all.iter().map(of).sum::<u64>();
        [sum(|w| w.lost), sum(|w| w.twice), sum(|w| w.out_of_order)]
    };
    for (what, (bare, proxied)) in
        ["lost", "twice", "out of order"].into_iter().zip(costs(&bare).into_iter().zip(costs(&proxied)))
    {
        println!("{faults} failures: {what}: {bare} on bare Kafka, {proxied} in flips");
        ensure!(proxied <= bare, "{what}: {proxied} in flips, {bare} on bare Kafka");
    }
    Ok(())
}

/// The control: no proxy, no flip, and failures that last as long.
fn bare(outages: &[Duration], rate: u32) -> Result<Vec<Deviations>> {
    let mut run = Run::start_bare(&CLIENTS, rate)?;
    for (failure, outage) in failures(outages.len())?.into_iter().zip(outages) {
        run.fault(failure, *outage).with_context(|| format!("{failure:?} on bare Kafka"))?;
        println!("bare\t{failure:?}\t{:.1}\t{}", outage.as_secs_f64(), machine_load());
    }
    judge(run)
}

/// With how long each failure lasted.
fn proxied(faults: usize, rate: u32) -> Result<(Vec<Deviations>, Vec<Duration>)> {
    let mut run = Run::start_with(&CLIENTS, rate)?;
    for (step, failure) in STEPS.into_iter().cycle().zip(failures(faults)?) {
        run.case(step, failure, writes_to(step)).with_context(|| format!("{failure:?} behind {step}"))?;
    }
    let outages = std::mem::take(&mut run.outages);
    Ok((judge(run)?, outages))
}

/// Who is hit has the produce: else nothing could be lost.
fn writes_to(step: &str) -> Hit {
    if ["SEAL", "PUBLISH", "RELEASE"].contains(&step) { Hit::NewOwner } else { Hit::OldOwner }
}

fn judge(run: Run) -> Result<Vec<Deviations>> {
    let Run { mut rig, traffic, .. } = run;
    let told = deviations(&rig, &traffic.finish_lossy()?)?;
    rig.keep = std::env::var_os("CROSSOVER_KEEP").is_some();
    Ok(told)
}

/// The checker's numbers, whatever its verdict is.
fn deviations(rig: &Rig, histories: &Histories) -> Result<Vec<Deviations>> {
    let mut command = checker(rig, TOPIC, &histories.producers, &histories.consumers)?;
    let output = command.arg("--json").output()?;
    let value: Value = serde_json::from_slice(&output.stdout)
        .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
    let doubts = value["report"]["doubts"].as_array().context("a report without doubts")?;
    ensure!(doubts.is_empty(), "the run cannot be judged: {doubts:?}");
    let writers = value["report"]["deviations"].as_array().context("a report without deviations")?;
    ensure!(writers.len() == CLIENTS.len(), "the checker counts {} writers", writers.len());
    writers.iter().map(Deviations::read).collect()
}

fn print(title: &str, all: &[Deviations]) {
    println!("{title}:\n{:>9}{:>7}{:>7}{:>14}", "sent", "lost", "twice", "out of order");
    for (kind, writer) in CLIENTS.iter().zip(all) {
        let Deviations { sent, lost, twice, out_of_order } = writer;
        println!("{sent:>9}{lost:>7}{twice:>7}{out_of_order:>14}  {}", kind.name);
    }
}
