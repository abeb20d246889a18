//! Kafka's own tools on topics, records and groups that live on two clusters (RULES R10, R25, R26, R27).

use anyhow::{Context, Result, ensure};
use crossover_harness::Cluster;
use crossover_harness::rig::Rig;
use crossover_tests::{flip, one_at_a_time, rig, text};
use serde_json::Value;
use std::time::{Duration, Instant};

const DELETE_RECORDS: &str = "org.apache.kafka.tools.DeleteRecordsCommand";
const PERFORMANCE: &str = "org.apache.kafka.tools.ProducerPerformance";
/// For what follows a change: a mirrored commit, a metadata refresh.
const SOON: Duration = Duration::from_secs(20);

/// Runs a tool at an address and gives what it printed, errors included.
fn try_tool(rig: &Rig, at: &str, tool: &str, args: &[&str], stdin: Option<&str>) -> Result<(bool, String)> {
    let mut all = vec!["--bootstrap-server", at];
    all.extend(args);
    let output = rig.target.kafka().run_tool(tool, &all, stdin)?;
    Ok((output.status.success(), text(&output)))
}

/// As [`try_tool`], at the proxy; it must succeed.
fn tool(rig: &Rig, tool: &str, args: &[&str]) -> Result<String> {
    let (well, text) = try_tool(rig, &rig.bootstrap, tool, args, None)?;
    ensure!(well, "{tool} {args:?} failed:\n{text}");
    Ok(text)
}

fn produce(rig: &Rig, topic: &str, records: std::ops::Range<u32>) -> Result<()> {
    // With keys: all partitions get their share.
    let lines: String = records.map(|n| format!("k{n}:v{n}\n")).collect();
    let args = ["--topic", topic, "--property", "parse.key=true", "--property", "key.separator=:"];
    let (well, text) = try_tool(rig, &rig.bootstrap, "kafka-console-producer", &args, Some(&lines))?;
    ensure!(well && !text.contains("ERROR"), "the producer failed:\n{text}");
    Ok(())
}

/// The values a fresh consumer reads from the earliest offset, ascending.
fn consume(rig: &Rig, topic: &str, group: &str, count: usize) -> Result<Vec<u32>> {
    let max = count.to_string();
    let args = [
        "--topic",
        topic,
        "--group",
        group,
        "--from-beginning",
        "--max-messages",
        &max,
        "--timeout-ms",
        "30000",
    ];
    let text = tool(rig, "kafka-console-consumer", &args)?;
    let mut values: Vec<u32> = text.lines().filter_map(|l| l.strip_prefix('v')?.parse().ok()).collect();
    values.sort_unstable();
    Ok(values)
}

/// Offsets by partition, at the proxy or in a cluster; `time`: −2 earliest, −1 latest.
fn offsets(rig: &Rig, at: &str, topic: &str, time: &str) -> Result<Vec<i64>> {
    let (well, text) = try_tool(rig, at, "kafka-get-offsets", &["--topic", topic, "--time", time], None)?;
    ensure!(well, "kafka-get-offsets failed:\n{text}");
    let mut rows: Vec<(i32, i64)> = text
        .lines()
        .filter_map(|line| {
            let (partition, offset) = line.strip_prefix(&format!("{topic}:"))?.split_once(':')?;
            Some((partition.parse().ok()?, offset.parse().ok()?))
        })
        .collect();
    rows.sort_unstable();
    Ok(rows.into_iter().map(|(_, offset)| offset).collect())
}

fn partitions(cluster: &Cluster, topic: &str) -> Result<Option<usize>> {
    Ok(cluster.topic(topic)?.map(|t| t.partitions.len()))
}

fn status(rig: &Rig) -> Result<Value> {
    let output = rig.crossover(&["status", "--json"])?;
    serde_json::from_slice(&output.stdout).context("status is no JSON")
}

/// A topic's row in `status`.
fn row(rig: &Rig, topic: &str) -> Result<Option<Value>> {
    let all = status(rig)?;
    let topics = all["topics"].as_array().cloned().unwrap_or_default();
    Ok(topics.into_iter().find(|t| t["name"] == topic))
}

fn is_frozen(rig: &Rig, topic: &str) -> Result<bool> {
    Ok(row(rig, topic)?.is_some_and(|t| t["frozen"].is_string()))
}

fn until(what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + SOON;
    while !holds()? {
        ensure!(Instant::now() < deadline, "not within {SOON:?}: {what}");
        std::thread::sleep(Duration::from_millis(200));
    }
    Ok(())
}

/// Topic `orders` with two partitions, made through the proxy, written before and after a cutover.
fn moved() -> Result<Rig> {
    let mut rig = rig("3.9.2", "4.3.1", 1)?;
    rig.keep = true;
    tool(
        &rig,
        "kafka-topics",
        &["--create", "--topic", "orders", "--partitions", "2", "--replication-factor", "1"],
    )?;
    ensure!(partitions(&rig.source, "orders")? == Some(2), "created on the source");
    ensure!(partitions(&rig.target, "orders")?.is_none(), "a new topic is the owner's alone");
    produce(&rig, "orders", 0..100)?;
    flip(&rig, "cutover", &["orders", "--create"])?;
    produce(&rig, "orders", 100..150)?;
    Ok(rig)
}

fn done(mut rig: Rig) {
    rig.keep = std::env::var_os("CROSSOVER_KEEP").is_some();
}

/// RULES R26: a topic that lives on both sides is changed on both, and one that is deleted leaves nothing behind.
#[test]
fn r26_topic_tools_act_on_both_sides_and_a_deleted_topic_starts_anew() -> Result<()> {
    let _turn = one_at_a_time();
    let rig = moved()?;
    tool(&rig, "kafka-topics", &["--alter", "--topic", "orders", "--partitions", "4"])?;
    for cluster in [&rig.source, &rig.target] {
        ensure!(partitions(cluster, "orders")? == Some(4), "enlarged on both sides");
    }
    ensure!(!is_frozen(&rig, "orders")?, "served while and after it is enlarged");
    produce(&rig, "orders", 150..250)?;
    ensure!(offsets(&rig, &rig.bootstrap, "orders", "-1")?.len() == 4, "the new partitions show");
    ensure!(
        offsets(&rig, &rig.target.bootstrap(), "orders", "-1")?[2..].iter().all(|end| *end > 0),
        "and are used"
    );
    ensure!(consume(&rig, "orders", "all", 250)? == (0..250).collect::<Vec<_>>(), "every record once");

    let set = [
        "--alter",
        "--entity-type",
        "topics",
        "--entity-name",
        "orders",
        "--add-config",
        "retention.ms=7654321",
    ];
    tool(&rig, "kafka-configs", &set)?;
    let describe = ["--describe", "--entity-type", "topics", "--entity-name", "orders"];
    for at in [rig.source.bootstrap(), rig.target.bootstrap(), rig.bootstrap.clone()] {
        let (_, text) = try_tool(&rig, &at, "kafka-configs", &describe, None)?;
        ensure!(text.contains("retention.ms=7654321"), "not set at {at}:\n{text}");
    }

    // Unequal partitions freeze the route; when they are equal again it goes on by itself.
    let alter = ["--alter", "--topic", "orders", "--partitions", "5"];
    let (well, text) = try_tool(&rig, &rig.source.bootstrap(), "kafka-topics", &alter, None)?;
    ensure!(well, "{text}");
    until("the route is frozen", || is_frozen(&rig, "orders"))?;
    let alarms = status(&rig)?["alarms"].to_string();
    ensure!(alarms.contains("frozen-route") && alarms.contains("orders"), "no alarm: {alarms}");
    tool(&rig, "kafka-topics", &alter)?;
    ensure!(!is_frozen(&rig, "orders")?, "the change that was half done is completed through the proxy");
    ensure!(!status(&rig)?["alarms"].to_string().contains("frozen-route"), "its alarm is over");
    produce(&rig, "orders", 250..300)?;
    flip(&rig, "rollback", &["orders"])?;
    produce(&rig, "orders", 300..350)?;
    ensure!(consume(&rig, "orders", "again", 350)? == (0..350).collect::<Vec<_>>(), "every record once");

    tool(&rig, "kafka-topics", &["--delete", "--topic", "orders"])?;
    for cluster in [&rig.source, &rig.target] {
        ensure!(partitions(cluster, "orders")?.is_none(), "deleted on both sides");
    }
    ensure!(row(&rig, "orders")?.is_none(), "its timeline is gone");
    tool(
        &rig,
        "kafka-topics",
        &["--create", "--topic", "orders", "--partitions", "1", "--replication-factor", "1"],
    )?;
    produce(&rig, "orders", 1000..1020)?;
    // The same group: its commits went with the old topic, and no copy of them comes back.
    ensure!(
        consume(&rig, "orders", "again", 20)? == (1000..1020).collect::<Vec<_>>(),
        "only the new records"
    );
    ensure!(offsets(&rig, &rig.bootstrap, "orders", "-1")? == [20], "which begin at 0");
    flip(&rig, "cutover", &["orders", "--create"])?;
    produce(&rig, "orders", 1020..1030)?;
    ensure!(offsets(&rig, &rig.bootstrap, "orders", "-1")? == [30], "and go on after the next cutover");
    done(rig);
    Ok(())
}

/// Deletes partition 0 of `orders` up to an offset through the proxy.
fn delete_records(rig: &Rig, offset: i64) -> Result<String> {
    let file = rig.directory.join("delete.json");
    let of = format!("{{\"topic\":\"orders\",\"partition\":0,\"offset\":{offset}}}");
    std::fs::write(&file, format!("{{\"version\":1,\"partitions\":[{of}]}}"))?;
    let limits = rig.directory.join("delete.properties");
    std::fs::write(&limits, "default.api.timeout.ms=12000\nrequest.timeout.ms=6000\n")?;
    let (file, limits) = (file.display().to_string(), limits.display().to_string());
    let args = ["--offset-json-file", &file, "--command-config", &limits];
    Ok(try_tool(rig, &rig.bootstrap, DELETE_RECORDS, &args, None)?.1)
}

/// RULES R25: what a client has deleted never shows again, whatever the side that held it does.
#[test]
fn r25_deleted_records_stay_deleted_with_a_side_down_and_after_a_restart() -> Result<()> {
    let _turn = one_at_a_time();
    let mut rig = moved()?;
    let boundary = offsets(&rig, &rig.source.bootstrap(), "orders", "-1")?[0];
    let end = offsets(&rig, &rig.bootstrap, "orders", "-1")?[0];
    ensure!(boundary > 20 && end > boundary + 5, "boundary {boundary}, end {end}");
    let earliest = |rig: &Rig, at: &str| Ok::<_, anyhow::Error>(offsets(rig, at, "orders", "-2")?[0]);

    let text = delete_records(&rig, end + 1)?;
    ensure!(text.contains("OffsetOutOfRange"), "beyond the end:\n{text}");
    ensure!(earliest(&rig, &rig.bootstrap)? == 0, "and nothing is hidden for it");
    let text = delete_records(&rig, 10)?;
    ensure!(text.contains("low_watermark: 10"), "{text}");
    ensure!(
        earliest(&rig, &rig.bootstrap)? == 10 && earliest(&rig, &rig.source.bootstrap())? == 10,
        "in history"
    );

    // The side that holds the history is down: an error, and hidden all the same.
    let ids = rig.source.broker_ids();
    rig.source.stop_broker(ids[0])?;
    let text = delete_records(&rig, 15)?;
    ensure!(text.contains("rror") && !text.contains("low_watermark"), "no error:\n{text}");
    rig.source.start_broker(ids[0])?;
    until("the source is reachable", || {
        Ok(status(&rig)?["ready"] == true && earliest(&rig, &rig.bootstrap).is_ok())
    })?;
    ensure!(earliest(&rig, &rig.source.bootstrap())? == 10, "the source has not deleted it");
    ensure!(earliest(&rig, &rig.bootstrap)? == 15, "and yet it is gone");
    rig.stop_proxy()?;
    rig.start_proxy()?;
    ensure!(earliest(&rig, &rig.bootstrap)? == 15, "also after a restart");
    let total: i64 = offsets(&rig, &rig.bootstrap, "orders", "-1")?.iter().sum();
    let left = usize::try_from(total - 15)?;
    ensure!(consume(&rig, "orders", "left", left)?.len() == left, "a reader starts behind it");

    // Over the boundary, and to the end: each side to its own image.
    let text = delete_records(&rig, boundary + 2)?;
    ensure!(text.contains(&format!("low_watermark: {}", boundary + 2)), "{text}");
    ensure!(earliest(&rig, &rig.source.bootstrap())? == boundary, "all of the history");
    ensure!(earliest(&rig, &rig.target.bootstrap())? == 2, "two records of the owner");
    let text = delete_records(&rig, -1)?;
    ensure!(text.contains(&format!("low_watermark: {end}")), "{text}");
    ensure!(earliest(&rig, &rig.bootstrap)? == end, "nothing is left");
    flip(&rig, "rollback", &["orders"])?;
    produce(&rig, "orders", 200..250)?;
    ensure!(earliest(&rig, &rig.bootstrap)? == end, "nor after the next flip");
    ensure!(offsets(&rig, &rig.bootstrap, "orders", "-1")?[0] > end, "where it goes on");
    done(rig);
    Ok(())
}

/// Whether a cluster has commits of a group.
fn knows(rig: &Rig, at: &str, group: &str) -> Result<bool> {
    let (_, text) = try_tool(rig, at, "kafka-consumer-groups", &["--describe", "--group", group], None)?;
    Ok(text.contains("orders"))
}

/// RULES R27: a group that is deleted at its home is deleted on the other side too, wherever its home is.
#[test]
fn r27_groups_of_both_homes_are_described_and_deleted_with_their_copies() -> Result<()> {
    let _turn = one_at_a_time();
    let rig = moved()?;
    for group in ["at-source", "at-target", "offsets"] {
        consume(&rig, "orders", group, 150)?;
    }
    for group in ["at-source", "at-target", "offsets"] {
        until("the commits are copied", || knows(&rig, &rig.target.bootstrap(), group))?;
    }
    let output = rig.crossover(&["groups", "move", "at-target", "--to", "target"])?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let args = ["--describe", "--group", "at-source", "--group", "at-target"];
    let text = tool(&rig, "kafka-consumer-groups", &args)?;
    ensure!(text.contains("at-source") && text.contains("at-target"), "not both:\n{text}");
    ensure!(!text.contains("rror"), "{text}");

    let args = ["--delete-offsets", "--group", "offsets", "--topic", "orders:0"];
    tool(&rig, "kafka-consumer-groups", &args)?;
    let (_, text) = try_tool(
        &rig,
        &rig.target.bootstrap(),
        "kafka-consumer-groups",
        &["--describe", "--offsets", "--group", "offsets"],
        None,
    )?;
    let left: Vec<&str> = text.lines().filter(|l| l.contains("orders")).collect();
    ensure!(
        left.len() == 1 && left[0].split_whitespace().nth(2) == Some("1"),
        "the copy of partition 0 stays:\n{text}"
    );

    tool(&rig, "kafka-consumer-groups", &["--delete", "--group", "at-source", "--group", "at-target"])?;
    // Longer than it takes to copy commits.
    std::thread::sleep(Duration::from_secs(2));
    for at in [rig.source.bootstrap(), rig.target.bootstrap(), rig.bootstrap.clone()] {
        for group in ["at-source", "at-target"] {
            ensure!(!knows(&rig, &at, group)?, "{group} is still known at {at}");
        }
    }
    done(rig);
    Ok(())
}

/// RULES R10: the plan names a transactional producer, also one that the proxy has never seen.
#[test]
fn r10_the_plan_names_transactional_producers() -> Result<()> {
    let _turn = one_at_a_time();
    let mut rig = rig("3.9.2", "4.3.1", 1)?;
    rig.keep = true;
    for cluster in [&rig.source, &rig.target] {
        cluster.create_topic("orders", 1, 1, &[])?;
        cluster.create_topic("plain", 1, 1, &[])?;
    }
    produce(&rig, "plain", 0..10)?;
    let servers = format!("bootstrap.servers={}", rig.source.bootstrap());
    let args = [
        "--topic",
        "orders",
        "--num-records",
        "20",
        "--throughput",
        "100",
        "--record-size",
        "10",
        "--transactional-id",
        "payments-1",
        "--transaction-duration-ms",
        "50",
        "--producer-props",
        &servers,
    ];
    let output = rig.source.kafka().run_tool(PERFORMANCE, &args, None)?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let output = rig.crossover(&["plan", "orders", "--json"])?;
    let plan = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(plan.contains("payments-1"), "it does not name the transactional id: {plan}");
    flip(&rig, "cutover", &["plain"])?;
    flip(&rig, "cutover", &["orders"])?;
    rig.keep = std::env::var_os("CROSSOVER_KEEP").is_some();
    Ok(())
}
