//! What cannot be moved is refused with its reason, and nothing changes.

use anyhow::{Context, Result, ensure};
use crossover_harness::rig::Rig;
use crossover_tests::{flip, one_at_a_time, rig, text};
use serde_json::Value;
use std::process::Output;
use std::time::{Duration, Instant};

const NOTICED_MAX: Duration = Duration::from_secs(30);

#[test]
fn plan_refusals() -> Result<()> {
    let _turn = one_at_a_time();
    let mut rig = rig("3.9.2", "4.3.1", 2)?;
    rig.keep = true;
    for (topic, source, target) in [("orders", 3, Some(3)), ("missing", 2, None), ("unequal", 3, Some(4))] {
        rig.source.create_topic(topic, source, 2, &[])?;
        if let Some(partitions) = target {
            rig.target.create_topic(topic, partitions, 2, &[])?;
        }
    }
    let known =
        |status: &Value| ["orders", "missing", "unequal"].iter().all(|name| owner(status, name).is_some());
    let before = await_status(&rig, known)?;

    refused(&rig, "unheard-of", "routes", "unheard-of does not exist")?;
    refused(&rig, "missing", "topic-exists", "missing does not exist on the target")?;
    refused(&rig, "unequal", "topic-exists", "3 partitions on the source and 4 on the target")?;
    // All or none: a good topic does not move with a bad one.
    refused_together(&rig, &["orders", "missing"])?;

    rig.target.kill_broker(2)?;
    refused(&rig, "orders", "replicas-in-sync", "on the target")?;
    unchanged(&rig, &before)?;
    rig.target.start_broker(2)?;
    rig.target.wait_in_sync("orders")?;

    // The same command succeeds when the reason is gone.
    let records = flip(&rig, "cutover", &["orders"])?;
    ensure!(records.iter().all(|record| record["ok"] == true), "{records:?}");
    let after = status(&rig)?;
    ensure!(owner(&after, "orders") == Some("target"), "{after}");
    // A repeated command finds its wish fulfilled: exit status 0, and nothing is moved again.
    ensure!(flip(&rig, "cutover", &["orders"])?.iter().all(|record| record["ok"] == true));
    unchanged(&rig, &after)?;
    // So does the plan, in the same words.
    for verb in ["plan", "cutover"] {
        let output = rig.crossover(&[verb, "orders"])?;
        let said = text(&output);
        ensure!(output.status.success(), "{verb} ended with {}: {said}", output.status);
        ensure!(said.contains("orders is already on the target; nothing to do."), "{verb} says: {said}");
    }
    rig.keep = false;
    Ok(())
}

/// Both the plan and the cutover say no, with the check's name and reason; the route table stays as it is.
fn refused(rig: &Rig, topic: &str, check: &str, reason: &str) -> Result<()> {
    let before = status(rig)?;
    let deadline = Instant::now() + NOTICED_MAX;
    loop {
        let plan = rig.crossover(&["plan", topic, "--json"])?;
        let text = text(&plan);
        let named = failed(&plan).is_some_and(|failed| {
            failed.iter().any(|(name, detail)| name == check && detail.contains(reason))
        });
        if named {
            ensure!(plan.status.code() == Some(1), "a refused plan must end with status 1: {text}");
            break;
        }
        // A broker that died is missed by its cluster only after a while.
        ensure!(
            Instant::now() < deadline,
            "the plan for {topic} does not fail {check} with {reason:?}:\n{text}"
        );
        std::thread::sleep(Duration::from_millis(500));
    }
    let cutover = rig.crossover(&["cutover", topic])?;
    let text = text(&cutover);
    ensure!(cutover.status.code() == Some(1), "the cutover of {topic} ended with {}: {text}", cutover.status);
    ensure!(text.contains(reason), "the cutover of {topic} does not say {reason:?}:\n{text}");
    println!("{topic}: {}", text.trim());
    unchanged(rig, &before)
}

fn refused_together(rig: &Rig, topics: &[&str]) -> Result<()> {
    let before = status(rig)?;
    let output = rig.crossover(&[&["cutover"], topics].concat())?;
    ensure!(output.status.code() == Some(1), "{topics:?}: {}", text(&output));
    unchanged(rig, &before)
}

/// Name and detail of the checks that refuse.
fn failed(plan: &Output) -> Option<Vec<(String, String)>> {
    let plan: Value = serde_json::from_slice(&plan.stdout).ok()?;
    let failed = plan["checks"].as_array()?.iter().filter(|check| check["result"] == "failed");
    let text = |check: &Value, field: &str| check[field].as_str().unwrap_or_default().to_owned();
    Some(failed.map(|check| (text(check, "name"), text(check, "detail"))).collect())
}

fn status(rig: &Rig) -> Result<Value> {
    let output = rig.crossover(&["status", "--partitions", "--json"])?;
    serde_json::from_slice(&output.stdout).with_context(|| text(&output))
}

fn owner<'a>(status: &'a Value, topic: &str) -> Option<&'a str> {
    let topics = status["topics"].as_array()?;
    topics.iter().find(|view| view["name"] == topic)?["owner"].as_str()
}

fn await_status(rig: &Rig, good: impl Fn(&Value) -> bool) -> Result<Value> {
    let deadline = Instant::now() + NOTICED_MAX;
    loop {
        let status = status(rig)?;
        if good(&status) {
            return Ok(status);
        }
        ensure!(Instant::now() < deadline, "not in time: {status}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Owners, eras and revision are as before, and no operation is left running.
fn unchanged(rig: &Rig, before: &Value) -> Result<()> {
    let after = status(rig)?;
    for field in ["revision", "operation"] {
        ensure!(after[field] == before[field], "{field} changed: {} to {}", before[field], after[field]);
    }
    for topic in ["orders", "missing", "unequal"] {
        let eras = |status: &Value| {
            let views = status["topics"].as_array().into_iter().flatten();
            let partitions = views.filter(|view| view["name"] == topic).map(|view| &view["partitions"]);
            partitions
                .flat_map(|all| all.as_array().cloned().unwrap_or_default())
                .map(|p| p["eras"].clone())
                .collect()
        };
        let (now, then): (Vec<Value>, Vec<Value>) = (eras(&after), eras(before));
        ensure!(owner(&after, topic) == owner(before, topic), "{topic} has another owner");
        ensure!(now == then, "the eras of {topic} changed:\n{then:?}\n{now:?}");
    }
    Ok(())
}
