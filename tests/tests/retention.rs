//! RULES R21, R23: retention takes history away between two eras, and from under readers.

use anyhow::{Context, Result, ensure};
use crossover_harness::rig::Rig;
use crossover_tests::history::{At, reads_exactly, written};
use crossover_tests::live::{TOPIC, create_topic, wait_end};
use crossover_tests::{end, flip, one_at_a_time, rig, text, wait_count};
use serde_json::Value;
use std::collections::BTreeSet;
use std::time::Duration;

const PARTITIONS: usize = 12;
const WAIT: Duration = Duration::from_secs(90);
const BETWEEN: usize = 600;
/// With what each library reads on from a position that is gone.
const READERS: [(&str, &str); 6] = [
    ("java-3.9.2", "none"),
    ("java-4.3.1", "none"),
    ("librdkafka", "none"),
    ("franz", "none"),
    ("sarama", "earliest"),
    ("kafkajs", "earliest"),
];

/// One partition's meeting of two eras.
struct Meeting {
    boundary: i64,
    old_end: i64,
    new_start: i64,
}

/// Source, target, source, target; then the source deletes up to the middle of its second era.
#[test]
fn r23_what_retention_takes_between_eras_reads_as_the_next_record() -> Result<()> {
    let _turn = one_at_a_time();
    let mut rig = rig("3.9.2", "4.3.1", 1)?;
    rig.keep = true;
    create_topic(&rig)?;
    let args = ["--topic", TOPIC, "--partitions", "12", "--rate", "400", "--writer", "1"];
    let mut producer = rig.driver("java-4.3.1", "producer", "writer", &args)?;
    wait_count(&mut producer, "P.ok", BETWEEN, WAIT)?;
    let mut meetings = Vec::new();
    for verb in ["cutover", "rollback", "cutover"] {
        meetings.push(self::meetings(&flip(&rig, verb, &[TOPIC])?)?);
        let seen = producer.count("P.ok");
        wait_count(&mut producer, "P.ok", seen + BETWEEN, WAIT)?;
    }
    let [to_target, to_source, back] = &meetings[..] else { unreachable!() };
    let second_era = |partition: usize| (&to_source[partition], &back[partition]);
    let cuts: Vec<i64> = (0..PARTITIONS)
        .map(|partition| {
            let (start, end) = second_era(partition);
            (start.new_start + end.old_end) / 2
        })
        .collect();
    let plan = text(&rig.crossover(&["plan", TOPIC, "--to", "source"])?);
    ensure!(plan.contains("the history ends"), "the plan does not say until when history lasts:\n{plan}");
    delete_on_source(&rig, &cuts)?;
    let all = written(&end(producer)?)?;
    let is_kept = |(partition, offset): &At| {
        let (start, end) = second_era(*partition);
        let cut = start.boundary + cuts[*partition] - start.new_start;
        let is_gone = *offset < to_target[*partition].boundary
            || (start.boundary..cut.min(end.boundary)).contains(offset);
        !is_gone
    };
    let expected: BTreeSet<At> = all.iter().copied().filter(is_kept).collect();
    println!("{} of {} records are left", expected.len(), all.len());
    ensure!(expected.len() < all.len() * 3 / 4, "too little was deleted");
    for (kind, reset) in READERS {
        reads_over_the_hole(&rig, kind, reset, to_source, &expected).context(kind)?;
        reads_from_the_start(&rig, kind, &expected).context(kind)?;
    }
    rig.keep = false;
    Ok(())
}

fn meetings(flipped: &[Value]) -> Result<Vec<Meeting>> {
    let parts = flipped.last().and_then(|all| all["partitions"].as_array()).context("no partitions")?;
    let number = |part: &Value, name: &str| part[name].as_i64().with_context(|| name.to_owned());
    let mut all = parts.iter().collect::<Vec<_>>();
    all.sort_by_key(|part| part["partition"].as_i64());
    ensure!(all.len() == PARTITIONS, "{} partitions", all.len());
    let meeting = |part: &&Value| {
        Ok(Meeting {
            boundary: number(part, "virtual_boundary")?,
            old_end: number(part, "old_native_end")?,
            new_start: number(part, "new_native_start")?,
        })
    };
    all.iter().map(meeting).collect()
}

/// As retention does it: the cluster itself moves its log starts.
fn delete_on_source(rig: &Rig, cuts: &[i64]) -> Result<()> {
    let rows = cuts.iter().enumerate();
    let rows = rows.map(|(partition, offset)| {
        format!(r#"{{"topic":"{TOPIC}","partition":{partition},"offset":{offset}}}"#)
    });
    let file = rig.directory.join("deleted.json");
    std::fs::write(
        &file,
        format!(r#"{{"partitions":[{}],"version":1}}"#, rows.collect::<Vec<_>>().join(",")),
    )?;
    let (bootstrap, file) = (rig.source.bootstrap(), file.display().to_string());
    let args = ["--bootstrap-server", &bootstrap, "--offset-json-file", &file];
    let output = rig.source.kafka().run_tool("org.apache.kafka.tools.DeleteRecordsCommand", &args, None)?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// A group has committed the first position of the hole.
fn reads_over_the_hole(
    rig: &Rig,
    kind: &str,
    reset: &str,
    holes: &[Meeting],
    expected: &BTreeSet<At>,
) -> Result<()> {
    let group = format!("{kind}-hole");
    let positions: Vec<String> =
        holes.iter().enumerate().map(|(partition, hole)| format!("{partition}={}", hole.boundary)).collect();
    let args = ["--topic", TOPIC, "--group", &group, "--commit-at", &positions.join(",")];
    wait_end(rig.driver("java-4.3.1", "consumer", &format!("{group}-commit"), &args)?, WAIT)?;
    let behind: BTreeSet<At> = expected
        .iter()
        .copied()
        .filter(|(partition, offset)| *offset >= holes[*partition].boundary)
        .collect();
    read(rig, kind, &group, reset, &behind)
}

fn reads_from_the_start(rig: &Rig, kind: &str, expected: &BTreeSet<At>) -> Result<()> {
    read(rig, kind, &format!("{kind}-start"), "earliest", expected)
}

fn read(rig: &Rig, kind: &str, group: &str, reset: &str, expected: &BTreeSet<At>) -> Result<()> {
    let count = expected.len().to_string();
    let args = ["--topic", TOPIC, "--group", group, "--reset", reset, "--stop-at-end-count", &count];
    let history = wait_end(rig.driver(kind, "consumer", group, &args)?, WAIT)?;
    reads_exactly(&history, expected)?;
    println!("{group}: {count} records, in order");
    Ok(())
}
