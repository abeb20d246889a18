//! After flips: positions, times and groups of one log whose records lie in both clusters.

use super::run;
use anyhow::{Context, Result, ensure};
use crossover_harness::Kafka;
use crossover_harness::rig::Rig;
use crossover_tests::commits::resolve_all;
use crossover_tests::history::{reads_exactly, written};
use crossover_tests::live::wait_end;
use crossover_tests::measure::now_us;
use crossover_tests::{flip, one_at_a_time, rig, wait_count};
use std::process::Command;
use std::time::Duration;

const WAIT: Duration = Duration::from_secs(60);
const PARTITIONS: usize = 4;
/// At least, in each era.
const RECORDS: usize = 400;

/// The virtual log as its writers know it.
#[derive(Default)]
struct Log {
    /// Records of each partition.
    ends: [i64; PARTITIONS],
    /// The ends of each era that is over, and a time (unix milliseconds) after all its records and before all later ones.
    eras: Vec<([i64; PARTITIONS], i64)>,
}

/// One record as the console consumer shows it.
struct Shown {
    partition: usize,
    offset: i64,
    time: i64,
}

impl Log {
    /// Writes an era's records.
    fn write(&mut self, rig: &Rig) -> Result<()> {
        let writer = (self.eras.len() + 1).to_string();
        let args = ["--topic", "orders", "--partitions", "4", "--rate", "400", "--writer", &writer];
        let mut producer = rig.driver("java-3.9.2", "producer", &format!("p{writer}"), &args)?;
        wait_count(&mut producer, "P.ok", RECORDS, WAIT)?;
        let history = producer.history.clone();
        ensure!(producer.stop(), "the producer did not end well");
        for (partition, _) in written(&history)? {
            self.ends[partition] += 1;
        }
        // The next era's first record is written by a process that does not run yet.
        self.eras.push((self.ends, now_us() / 1000 + 1));
        Ok(())
    }

    fn total(&self) -> i64 {
        self.ends.iter().sum()
    }

    /// Every record in the order of the log, as read through the proxy.
    fn shown(&self, rig: &Rig) -> Result<Vec<Shown>> {
        let total = self.total().to_string();
        let mut args = vec!["--topic", "orders", "--from-beginning", "--max-messages", &total];
        args.extend(["--timeout-ms", "60000"]);
        for shown in
            ["print.partition=true", "print.offset=true", "print.timestamp=true", "print.value=false"]
        {
            args.extend(["--property", shown]);
        }
        let lines = run(rig.source.kafka(), &rig.bootstrap, "kafka-console-consumer", &args)?;
        let field = |line: &str, name: &str| -> Result<i64> {
            let word = line.split(' ').find_map(|word| word.strip_prefix(name));
            Ok(word.with_context(|| format!("no {name} in {line:?}"))?.parse()?)
        };
        let mut all = Vec::new();
        for line in &lines {
            let partition = usize::try_from(field(line, "Partition:")?)?;
            all.push(Shown { partition, offset: field(line, "Offset:")?, time: field(line, "CreateTime:")? });
        }
        all.sort_by_key(|record| (record.partition, record.offset));
        let wanted = (0..PARTITIONS).flat_map(|p| (0..self.ends[p]).map(move |offset| (p, offset)));
        ensure!(all.iter().map(|r| (r.partition, r.offset)).eq(wanted), "the offsets have holes or repeat");
        Ok(all)
    }
}

/// The first record of each partition that is not older than a time.
fn at_time(shown: &[Shown], time: i64) -> Result<[i64; PARTITIONS]> {
    let mut at = [0; PARTITIONS];
    for (partition, at) in at.iter_mut().enumerate() {
        let found = shown.iter().find(|r| r.partition == partition && r.time >= time);
        *at = found.context("no record is so new")?.offset;
    }
    Ok(at)
}

/// What `kafka-get-offsets` says of each partition, in lines such as `orders:0:17`.
fn offsets(rig: &Rig, kafka: &Kafka, time: &str) -> Result<[i64; PARTITIONS]> {
    let lines = run(kafka, &rig.bootstrap, "kafka-get-offsets", &["--topic", "orders", "--time", time])?;
    numbers(lines.iter().flat_map(|line| line.split(':')), &["orders"])
}

/// The positions in a table of `kafka-consumer-groups`. Not by lines: after a reset the tool prints the whole table in one.
fn positions(lines: &[String]) -> Result<[i64; PARTITIONS]> {
    numbers(lines.iter().flat_map(|line| line.split(' ')), &["g", "orders"])
}

/// Of each partition the number that stands behind `names` and the partition's.
fn numbers<'a>(words: impl Iterator<Item = &'a str>, names: &[&str]) -> Result<[i64; PARTITIONS]> {
    let words: Vec<&str> = words.collect();
    let mut all = [-1; PARTITIONS];
    for row in words.windows(names.len() + 2).filter(|row| row.starts_with(names)) {
        let partition: usize = row[names.len()].parse().with_context(|| format!("{row:?}"))?;
        *all.get_mut(partition).with_context(|| format!("{row:?}"))? = row[names.len() + 1].parse()?;
    }
    Ok(all)
}

#[test]
fn offsets_topics_and_groups_are_of_one_log() -> Result<()> {
    let _turn = one_at_a_time();
    let mut rig = rig("3.9.2", "4.3.1", 2)?;
    rig.keep = true;
    for cluster in [&rig.source, &rig.target] {
        cluster.create_topic("orders", i32::try_from(PARTITIONS)?, 2, &[])?;
    }
    let mut log = Log::default();
    log.write(&rig)?;
    let id = topic(&rig, false)?;
    for verb in ["cutover", "rollback", "cutover"] {
        flip(&rig, verb, &["orders"])?;
        ensure!(offsets(&rig, rig.source.kafka(), "latest")? == log.ends, "before the {verb}'s first record");
        log.write(&rig)?;
        ensure!(topic(&rig, verb == "cutover")? == id, "the topic has another id after the {verb}");
        for kafka in [rig.source.kafka(), rig.target.kafka()] {
            ensure!(offsets(&rig, kafka, "latest")? == log.ends, "latest after the {verb}: {:?}", log.ends);
            ensure!(offsets(&rig, kafka, "earliest")? == [0; PARTITIONS], "earliest after the {verb}");
        }
    }
    times(&rig, &log)?;
    group(&rig, &log)?;
    rig.keep = std::env::var_os("CROSSOVER_KEEP").is_some();
    Ok(())
}

/// The topic's id, as `kafka-topics` shows it; every leader must be of one side.
fn topic(rig: &Rig, at_target: bool) -> Result<String> {
    let args = ["--describe", "--topic", "orders"];
    let lines = run(rig.target.kafka(), &rig.bootstrap, "kafka-topics", &args)?;
    let after = |line: &str, word: &str| {
        line.split(' ').skip_while(|w| *w != word).nth(1).unwrap_or_default().to_owned()
    };
    let leaders: Vec<String> = lines.iter().map(|l| after(l, "Leader:")).filter(|l| !l.is_empty()).collect();
    let right = |leader: &String| leader.parse::<i32>().is_ok_and(|id| (id % 2 == 1) == at_target);
    ensure!(leaders.len() == PARTITIONS && leaders.iter().all(right), "leaders {leaders:?}");
    let id = lines.iter().map(|line| after(line, "TopicId:")).find(|id| !id.is_empty());
    id.context("no topic id")
}

/// Times between the eras, inside each of them, and the newest.
fn times(rig: &Rig, log: &Log) -> Result<()> {
    let shown = log.shown(rig)?;
    let kafka = rig.target.kafka();
    for (ends, time) in &log.eras[..log.eras.len() - 1] {
        ensure!(at_time(&shown, *time)? == *ends, "the test's own times are wrong");
        ensure!(offsets(rig, kafka, &time.to_string())? == *ends, "the time between two eras");
    }
    for (ends, _) in &log.eras {
        // 50 records before the era's end.
        let near =
            shown.iter().find(|r| r.partition == 0 && r.offset == ends[0] - 50).context("too short")?;
        let (expected, time) = (at_time(&shown, near.time)?, near.time.to_string());
        let found = offsets(rig, kafka, &time)?;
        ensure!(found == expected, "{time} is at {found:?}, not {expected:?}");
    }
    for (partition, offset) in offsets(rig, kafka, "max-timestamp")?.into_iter().enumerate() {
        let mine = || shown.iter().filter(|r| r.partition == partition);
        let newest = mine().map(|r| r.time).max();
        let found = mine().find(|r| r.offset == offset).map(|r| r.time);
        ensure!(found == newest, "the newest record of {partition} is not at {offset}");
    }
    Ok(())
}

/// A group that has read everything has no lag, through tools of both versions.
fn group(rig: &Rig, log: &Log) -> Result<()> {
    let all = log.total().to_string();
    let args = ["--topic", "orders", "--group", "g", "--reset", "earliest", "--stop-at-end-count", &all];
    wait_end(rig.driver("java-3.9.2", "consumer", "g", &args)?, WAIT)?;
    for kafka in [rig.source.kafka(), rig.target.kafka()] {
        let lines = run(kafka, &rig.bootstrap, "kafka-consumer-groups", &["--describe", "--group", "g"])?;
        ensure!(positions(&lines)? == log.ends, "committed: {lines:?}, not {:?}", log.ends);
        // group, topic, partition, position, end, lag
        let lags = lines.iter().filter_map(|line| line.split(' ').nth(5)?.parse::<i64>().ok());
        let lags: Vec<i64> = lags.collect();
        ensure!(lags == [0; PARTITIONS], "lags {lags:?}");
    }
    Ok(())
}

/// `--reset-offsets` of a group without members, to positions in eras of both clusters: a consumer that must not reset
/// reads from exactly there, every record once.
#[test]
fn offsets_of_an_empty_group_are_reset_into_any_era() -> Result<()> {
    let _turn = one_at_a_time();
    let mut rig = rig("3.9.2", "4.3.1", 2)?;
    rig.keep = true;
    for cluster in [&rig.source, &rig.target] {
        cluster.create_topic("orders", i32::try_from(PARTITIONS)?, 2, &[])?;
    }
    let mut log = Log::default();
    log.write(&rig)?;
    for verb in ["cutover", "rollback"] {
        flip(&rig, verb, &["orders"])?;
        log.write(&rig)?;
    }
    group(&rig, &log)?;
    let shown = log.shown(&rig)?;
    let [(first, after_first), (second, _), _] = log.eras[..] else { return Ok(()) };
    reset(&rig, &log, &["--to-earliest"], [0; PARTITIONS])?;
    reset(&rig, &log, &["--to-datetime", &date(after_first)?], first)?;
    // Inside the era whose records only the target has.
    let inside = shown.iter().find(|r| r.partition == 1 && r.offset == first[1] + 30).context("too short")?;
    reset(&rig, &log, &["--to-datetime", &date(inside.time)?], at_time(&shown, inside.time)?)?;
    let offset = second[2] - 7;
    reset(&rig, &log, &["--to-offset", &offset.to_string()], [offset; PARTITIONS])?;
    flip(&rig, "cutover", &["orders"])?;
    reset(&rig, &log, &["--to-datetime", &date(inside.time)?], at_time(&shown, inside.time)?)?;
    rig.keep = std::env::var_os("CROSSOVER_KEEP").is_some();
    Ok(())
}

/// Resets group `g`, and reads the rest with a consumer that has nothing but the commits to start from.
fn reset(rig: &Rig, log: &Log, to: &[&str], expected: [i64; PARTITIONS]) -> Result<()> {
    // The older tool for every other question.
    let kafka = if to.len() == 1 { rig.source.kafka() } else { rig.target.kafka() };
    let mut args = vec!["--group", "g", "--topic", "orders", "--execute", "--reset-offsets"];
    args.extend(to);
    let lines = run(kafka, &rig.bootstrap, "kafka-consumer-groups", &args)?;
    ensure!(positions(&lines)? == expected, "{to:?}: {lines:?}, not {expected:?}");
    // The tool has ended: both sides have it (RULES R28).
    for (side, cluster) in [("source", &rig.source), ("target", &rig.target)] {
        let found = resolve_all(rig, side, "orders", &cluster.commits("g")?)?;
        let found: Vec<i64> = found.into_values().collect();
        ensure!(found == expected, "{to:?}: the {side} has {found:?}, not {expected:?}");
    }
    let rest = (log.total() - expected.iter().sum::<i64>()).to_string();
    let args = ["--topic", "orders", "--group", "g", "--reset", "none", "--stop-at-end-count", &rest];
    let name = format!("reads{}", to.join("-"));
    let history = wait_end(rig.driver("java-3.9.2", "consumer", &name, &args)?, WAIT)?;
    let rest = (0..PARTITIONS).flat_map(|p| (expected[p]..log.ends[p]).map(move |offset| (p, offset)));
    reads_exactly(&history, &rest.collect()).with_context(|| format!("after {to:?}"))
}

/// As `--to-datetime` takes it, in UTC.
fn date(ms: i64) -> Result<String> {
    let at = format!("@{}.{:03}", ms / 1000, ms % 1000);
    let output = Command::new("date").args(["-u", "-d", &at, "+%Y-%m-%dT%H:%M:%S.%3N"]).output()?;
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}
