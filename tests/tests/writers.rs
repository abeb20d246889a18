//! Writers that bypass the proxy are kept out of a log that has lost its ownership, by the cluster itself (`[fence]`). Needs
//! `cargo build -p crossover -p crossover-loadtest` first.

use anyhow::{Context, Result, ensure};
use crossover_harness::ClusterSpec;
use crossover_harness::rig::{Rig, RigSpec, count};
use crossover_tests::faults::flip_when_allowed;
use crossover_tests::live::{KINDS, PARTITIONS, TOPIC, Traffic, create_topic};
use crossover_tests::{binary, flip, no_alarms, one_at_a_time, repository, text, wait_for};
use serde_json::Value;
use std::time::Duration;

/// Every client of these clusters is this principal, the proxy and the brokers too.
const FENCE: &str = "[fence]\ndeny_write = [\"User:*\"]\n\n[timeouts]\nloss_grace_ms = 2000\n";
const IDEMPOTENT: [&str; 4] = ["java-3.9.2", "java-4.3.1", "librdkafka", "franz"];
const RATE: u32 = 60;
const WAIT: Duration = Duration::from_secs(60);
const RECORDS: usize = 200;

#[test]
fn writers_around_the_proxy_are_kept_out_of_the_old_log() -> Result<()> {
    to_and_fro("3.9.2", "4.3.1")
}

/// The authorizer of ZooKeeper times, and the other way round.
#[test]
fn writers_are_kept_out_by_2_8_2() -> Result<()> {
    to_and_fro("2.8.2", "3.9.2")
}

fn to_and_fro(source: &str, target: &str) -> Result<()> {
    let _turn = one_at_a_time();
    let mut rig = guarded_rig(source, target)?;
    rig.keep = true;
    create_topic(&rig)?;
    // The others may write twice what a killed proxy did not answer.
    let idempotent = KINDS.into_iter().filter(|kind| IDEMPOTENT.contains(&kind.name)).collect::<Vec<_>>();
    let mut traffic = Traffic::start(&rig, &idempotent, RATE)?;
    flip(&rig, "cutover", &[TOPIC])?;
    wait_kept_out(&rig, 1)?;
    is_refused(&rig, &rig.source.bootstrap(), "source")?;
    goes_on(&rig, &mut traffic, "source")?;

    // What was put there survives the process, and is taken away by the next one.
    rig.kill_proxy();
    rig.start_proxy()?;
    traffic.flows(RECORDS, WAIT)?;
    flip_when_allowed(&rig, "rollback", &[TOPIC])?;
    wait_kept_out(&rig, 2)?;
    is_refused(&rig, &rig.target.bootstrap(), "target")?;
    goes_on(&rig, &mut traffic, "target")?;

    flip(&rig, "cutover", &[TOPIC])?;
    wait_kept_out(&rig, 3)?;
    goes_on(&rig, &mut traffic, "source")?;
    let histories = traffic.finish()?;
    histories.judge_allowing(&rig, &["--allow-errors", "C.commit,C.lost,C.error"])?;
    rig.keep = false;
    Ok(())
}

/// Both clusters with an authorizer that lets everybody do what no entry is about.
fn guarded_rig(source: &str, target: &str) -> Result<Rig> {
    let spec = |version: &str, name: &str| {
        let class = match version {
            "2.8.2" => "kafka.security.authorizer.AclAuthorizer",
            _ => "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        };
        let properties = [("authorizer.class.name", class), ("allow.everyone.if.no.acl.found", "true")];
        let properties = properties.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
        ClusterSpec { name: name.to_owned(), properties, ..ClusterSpec::new(version, 2) }
    };
    Ok(Rig::start(RigSpec {
        source: spec(source, "source"),
        target: spec(target, "target"),
        crossover: binary("crossover")?,
        repository: repository(),
        extra_config: FENCE.to_owned(),
        relayed: false,
    })?)
}

/// Every broker has been seen to keep writers out, for the `flips`-th time.
fn wait_kept_out(rig: &Rig, flips: usize) -> Result<()> {
    wait_for(WAIT, "writers to be kept out", || {
        let ledger = rig.crossover(&["ledger", "--json"])?;
        Ok(text(&ledger).matches("writers-fenced").count() >= flips)
    })
}

/// A producer that knows nothing of the proxy; its records would be in no virtual log.
fn is_refused(rig: &Rig, bootstrap: &str, side: &str) -> Result<()> {
    let args = ["--topic", TOPIC, "--partitions", PARTITIONS, "--rate", "20", "--writer", "99"];
    let name = format!("around-at-the-{side}");
    let mut around = rig.driver_at(bootstrap, "java-3.9.2", "producer", &name, &args)?;
    wait_for(WAIT, "the writer to be refused", || Ok(around.count("P.fail") > 0 || !around.is_alive()))?;
    let history = around.history.clone();
    let _ = around.stop();
    ensure!(count(&history, "P.ok") == 0, "it has written to the {side}: {}", history.display());
    let said = std::fs::read_to_string(&history)?;
    let why = said.lines().find(|line| line.contains("P.fail")).context("it was not refused")?;
    ensure!(why.contains("uthoriz"), "refused for another reason: {why}");
    Ok(())
}

/// Everybody behind the proxy writes and reads, nothing is wrong, and the plan of the next flip says who is kept out.
fn goes_on(rig: &Rig, traffic: &mut Traffic, next: &str) -> Result<()> {
    traffic.flows(RECORDS, WAIT)?;
    for producer in &mut traffic.producers {
        ensure!(
            producer.count("P.fail") == 0,
            "{} was refused: {}",
            producer.name,
            producer.history.display()
        );
    }
    no_alarms(rig)?;
    let plan = rig.crossover(&["plan", TOPIC, "--to", next, "--json"])?;
    let plan: Value = serde_json::from_slice(&plan.stdout).with_context(|| text(&plan))?;
    let checks = plan["checks"].as_array().context("a plan without checks")?;
    let fence = checks.iter().find(|check| check["name"] == "broker-side-fence");
    ensure!(fence.is_some_and(|fence| fence["result"] == "passed"), "the plan says {fence:?}");
    Ok(())
}
