//! The proxy is stopped, killed and started again while clients live.

use anyhow::{Result, ensure};
use crossover_harness::rig::{Driver, Rig, count};
use crossover_tests::faults::wait_until_well;
use crossover_tests::live::{KINDS, Traffic, create_topic, writer_of};
use crossover_tests::{check, flip, one_at_a_time, rig, swapped, wait_count};
use std::process::Command;
use std::time::Duration;

const WAIT: Duration = Duration::from_secs(60);
/// `timeouts.loss_grace` by default, and a little.
const GRACE: Duration = Duration::from_millis(10_500);

/// Two clusters with topic `orders`, and a producer and a group on it.
fn started() -> Result<(Rig, Driver, Driver)> {
    let mut rig = rig("3.9.2", "4.3.1", 1)?;
    rig.keep = true;
    for cluster in [&rig.source, &rig.target] {
        cluster.create_topic("orders", 4, 1, &[])?;
    }
    let kind = std::env::var("CROSSOVER_DRIVER").unwrap_or_else(|_| "librdkafka".to_owned());
    let args =
        ["--topic", "orders", "--partitions", "4", "--rate", "200", "--writer", "1", "--idempotent", "true"];
    let mut producer = rig.driver(&kind, "producer", "p1", &args)?;
    let consumer =
        rig.driver(&kind, "consumer", "c1", &["--topic", "orders", "--group", "g1", "--reset", "earliest"])?;
    wait_count(&mut producer, "P.ok", 200, WAIT)?;
    Ok((rig, producer, consumer))
}

fn goes_on(producer: &mut Driver) -> Result<()> {
    let acked = producer.count("P.ok");
    wait_count(producer, "P.ok", acked + 400, WAIT)
}

/// Ends the clients and lets the checker judge.
fn judge(rig: &mut Rig, producer: Driver, mut consumer: Driver) -> Result<()> {
    let written = producer.history.clone();
    ensure!(producer.stop(), "the producer did not end well");
    ensure!(
        count(&written, "P.fail") == 0 && count(&written, "E.error") == 0,
        "the producer saw errors: {}",
        written.display()
    );
    wait_count(&mut consumer, "C.poll", count(&written, "P.ok"), WAIT)?;
    let read = consumer.history.clone();
    ensure!(consumer.stop(), "the consumer did not end well");
    println!("{}", check(rig, "orders", &[written], &[read], &[])?);
    rig.keep = std::env::var_os("CROSSOVER_KEEP").is_some();
    Ok(())
}

/// RULES R3: after a restart the gates must know what was appended since the last SEAL, or the next batch of every
/// idempotent producer looks like a gap and is refused for ever. librdkafka takes that refusal as fatal.
#[test]
fn r03_idempotent_producers_survive_a_restart_after_a_cutover() -> Result<()> {
    let _turn = one_at_a_time();
    let (mut rig, mut producer, consumer) = started()?;
    flip(&rig, "cutover", &["orders"])?;
    goes_on(&mut producer)?;
    rig.stop_proxy()?;
    rig.start_proxy()?;
    goes_on(&mut producer)?;
    // A clean end leaves nothing to wait for.
    flip(&rig, "rollback", &["orders"])?;
    goes_on(&mut producer)?;
    judge(&mut rig, producer, consumer)
}

/// RULES R2: what a killed proxy had sent may still reach a log, so a partition flips only after a grace time.
#[test]
fn r02_no_flip_within_the_grace_time_after_a_kill() -> Result<()> {
    let _turn = one_at_a_time();
    let (mut rig, mut producer, consumer) = started()?;
    flip(&rig, "cutover", &["orders"])?;
    goes_on(&mut producer)?;
    Command::new("kill").args(["-KILL", &rig.proxy_pid().to_string()]).status()?;
    rig.stop_proxy()?;
    rig.start_proxy()?;
    let early = flip(&rig, "rollback", &["orders"]);
    let why = early.err().map(|e| e.to_string()).unwrap_or_default();
    ensure!(why.contains("did not end by itself"), "the rollback was not refused for the kill: {why:?}");
    goes_on(&mut producer)?;
    std::thread::sleep(GRACE);
    flip(&rig, "rollback", &["orders"])?;
    goes_on(&mut producer)?;
    judge(&mut rig, producer, consumer)
}

/// RULES R31: a state that belongs to other clusters must not be used with these.
#[test]
fn r31_swapped_clusters_are_refused_at_start() -> Result<()> {
    let _turn = one_at_a_time();
    let mut rig = rig("3.9.2", "4.3.1", 1)?;
    rig.stop_proxy()?;
    let file = rig.directory.join("crossover.toml");
    let config = std::fs::read_to_string(&file)?;
    std::fs::write(&file, swapped(&config))?;
    let problem = rig.start_proxy().err().map(|e| e.to_string()).unwrap_or_default();
    ensure!(problem.contains("source and target are swapped"), "not refused: {problem:?}");
    let checked = rig.crossover(&["check", "--config", "crossover.toml"])?;
    let said = String::from_utf8_lossy(&checked.stderr);
    ensure!(!checked.status.success() && said.contains("are swapped"), "`check` says nothing: {said:?}");
    std::fs::write(&file, config)?;
    Ok(rig.start_proxy()?)
}

/// A clean end and start under load, before any migration and in the fourth era: the same ports, nothing lost, nothing
/// twice, no reset, for every library.
#[test]
fn r32_every_client_survives_a_clean_restart() -> Result<()> {
    let _turn = one_at_a_time();
    let mut rig = rig("3.9.2", "4.3.1", 2)?;
    rig.keep = true;
    create_topic(&rig)?;
    let mut traffic = Traffic::start(&rig, &KINDS, 60)?;
    for flips in [0, 3] {
        traffic.flip(&rig, flips, Duration::from_secs(2))?;
        rig.stop_proxy()?;
        rig.start_proxy()?;
        wait_until_well(&rig, &mut traffic)?;
    }
    // While the only proxy is away no broker is within reach: sarama's and franz-go's groups tell the application so. kafkajs
    // sends to all leaders at once and begins anew when one cannot be reached, without waiting for the others; what they
    // append meanwhile it sends again under new sequences (`sendMessages.js`; so on any Kafka).
    let kafkajs = writer_of(&KINDS, "kafkajs");
    let allowed = ["--allow-errors", "C.error,E.error", "--allow-duplicates", &kafkajs];
    traffic.finish()?.judge_allowing(&rig, &allowed)?;
    rig.keep = std::env::var_os("CROSSOVER_KEEP").is_some();
    Ok(())
}
