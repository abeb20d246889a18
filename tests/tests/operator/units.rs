//! Several operations, and several topics in one.

use super::{PARTITIONS, TOPICS, done, judged, under_traffic};
use anyhow::{Result, ensure};
use crossover_tests::fleet::Fleet;
use crossover_tests::operator::{Hold, Running, consistent, post, revision};
use crossover_tests::{flip, one_at_a_time, rig, text, wait_for};
use serde_json::json;
use std::time::Duration;

/// For a broker that died to be missed.
const NOTICED_MAX: Duration = Duration::from_secs(60);

/// Operations are not queued: while one runs, another one is refused with the name of the first, whatever its topics.
#[test]
fn two_cutovers_at_once() -> Result<()> {
    let _turn = one_at_a_time();
    let (rig, mut fleet) = under_traffic()?;
    // The same topic, then the other one, while the first operation stands behind its fence.
    for second in TOPICS {
        let hold = Hold::behind(&rig, "FENCE")?;
        let first = Running::start(&rig, &["cutover", "orders"])?;
        hold.reached()?;
        let refused = rig.crossover(&["cutover", second])?;
        ensure!(refused.status.code() == Some(1), "the second ended with {}", refused.status);
        let said = text(&refused);
        ensure!(said.contains("is running") && said.contains("cutover-"), "not refused for it: {said}");
        let request = json!({ "topics": [second], "expected_revision": revision(&rig)? });
        post(&rig, "/v1/cutover", &request)?.refused(409, "is running")?;
        drop(hold);
        let first = first.output()?;
        ensure!(first.status.success(), "the first did not end well: {}", text(&first));
        consistent(&rig, &["orders"], "target")?;
        consistent(&rig, &["payments"], "source")?;
        fleet.flows()?;
        flip(&rig, "rollback", &["orders"])?;
    }
    // With nothing between them but chance: each is carried out whole or refused whole.
    for round in 0..3 {
        let both =
            [Running::start(&rig, &["cutover", "orders"])?, Running::start(&rig, &["cutover", "orders"])?];
        let ended = both.into_iter().map(Running::output).collect::<Result<Vec<_>>>()?;
        let codes: Vec<_> = ended.iter().map(|output| output.status.code()).collect();
        ensure!(codes.contains(&Some(0)), "round {round}: nobody won: {}", text(&ended[0]));
        consistent(&rig, &["orders"], "target")?;
        flip(&rig, "rollback", &["orders"])?;
    }
    consistent(&rig, &TOPICS, "source")?;
    fleet.flows()?;
    judged(rig, fleet)
}

/// Twenty flips of one unit, each begun when the command of the one before has ended.
#[test]
fn twenty_flips_without_a_pause() -> Result<()> {
    let _turn = one_at_a_time();
    let (rig, mut fleet) = under_traffic()?;
    for round in 0..20 {
        let (verb, owner) = if round % 2 == 0 { ("cutover", "target") } else { ("rollback", "source") };
        let records = flip(&rig, verb, &TOPICS)?;
        ensure!(records.len() == TOPICS.len() && records.iter().all(|r| r["ok"] == true), "{records:?}");
        println!("{round}: held {} ms", records[0]["hold_ms"]);
        consistent(&rig, &TOPICS, owner)?;
    }
    fleet.flows()?;
    judged(rig, fleet)
}

/// RULES R16: one topic that cannot be moved keeps all others where they are, and the reason names it.
#[test]
fn r16_one_refused_topic_keeps_the_whole_unit() -> Result<()> {
    let _turn = one_at_a_time();
    let mut rig = rig("3.9.2", "4.3.1", 2)?;
    rig.keep = true;
    for topic in TOPICS {
        for cluster in [&rig.source, &rig.target] {
            cluster.create_topic(topic, i32::try_from(PARTITIONS)?, 2, &[])?;
        }
    }
    rig.source.create_topic("unequal", 3, 2, &[])?;
    rig.target.create_topic("unequal", 5, 2, &[])?;
    rig.source.create_topic("missing", 3, 2, &[])?;
    rig.target.create_topic("lagging", 1, 2, &[])?;
    rig.source.create_topic("lagging", 1, 2, &[])?;
    let mut fleet = Fleet::start(&rig, &TOPICS, PARTITIONS)?;
    let refused = |unit: &[&str], reasons: &[&str]| -> Result<()> {
        let output = rig.crossover(&[&["cutover"], unit].concat())?;
        let said = text(&output);
        ensure!(output.status.code() == Some(1), "{unit:?} ended with {}: {said}", output.status);
        for reason in reasons {
            ensure!(said.contains(reason), "{unit:?} is not refused with {reason:?}:\n{said}");
        }
        consistent(&rig, &TOPICS, "source")
    };
    refused(
        &["orders", "payments", "unequal"],
        &["unequal has 3 partitions on the source and 5 on the target", "Remedy: add partitions"],
    )?;
    refused(&["orders", "payments", "missing"], &["missing does not exist on the target", "--create"])?;
    // With a topic that can be created and one that cannot be moved, the first is not left behind half made.
    refused(&["missing", "orders", "unequal", "--create"], &["unequal has 3 partitions"])?;
    ensure!(rig.target.topic("missing")?.is_none(), "a refused unit has created a topic");
    // Every name that is wrong is told at once.
    refused(&["orders", "unheard", "of"], &["topic unheard does not exist", "topic of does not exist"])?;
    rig.target.kill_broker(2)?;
    wait_for(NOTICED_MAX, "the dead broker to be missed", || {
        let plan = rig.crossover(&["plan", "lagging"])?;
        Ok(text(&plan).contains("FAILED    replicas-in-sync"))
    })?;
    refused(&["orders", "payments", "lagging"], &["replicas-in-sync"])?;
    rig.target.start_broker(2)?;
    for topic in ["orders", "payments", "lagging"] {
        rig.target.wait_in_sync(topic)?;
    }
    fleet.flows()?;
    flip(&rig, "cutover", &["orders", "payments", "lagging"])?;
    // One of the unit is there already: the wish of the others is refused with it, and told so.
    let output = rig.crossover(&["cutover", "orders", "missing", "--create"])?;
    ensure!(text(&output).contains("topic orders is already on the target"), "{}", text(&output));
    ensure!(output.status.code() == Some(1), "ended with {}", output.status);
    consistent(&rig, &TOPICS, "target")?;
    fleet.flows()?;
    fleet.judge(&rig)?;
    done(&mut rig);
    Ok(())
}
