//! Before any flip.

use super::{Place, run, run_with};
use anyhow::{Result, ensure};
use crossover_harness::Kafka;
use crossover_harness::rig::Rig;
use crossover_tests::measure::now_us;
use crossover_tests::{one_at_a_time, rig, wait_count};
use std::thread::scope;
use std::time::Duration;

const WAIT: Duration = Duration::from_secs(60);
const RECORDS: usize = 200;
const NOT_COMMITTED: &str = "a group does not commit what it has read";

/// What each tool is asked. `BROKER` stands for a broker's id, `TIME` for a time inside the log.
const QUESTIONS: [(&str, &[&str]); 23] = [
    ("kafka-topics", &["--list"]),
    ("kafka-topics", &["--describe"]),
    ("kafka-topics", &["--describe", "--topic", "orders"]),
    ("kafka-topics", &["--describe", "--topics-with-overrides"]),
    ("kafka-topics", &["--describe", "--under-replicated-partitions"]),
    ("kafka-consumer-groups", &["--list"]),
    ("kafka-consumer-groups", &["--list", "--state"]),
    ("kafka-consumer-groups", &["--describe", "--group", "live"]),
    ("kafka-consumer-groups", &["--describe", "--group", "live", "--members", "--verbose"]),
    ("kafka-consumer-groups", &["--describe", "--group", "live", "--state"]),
    ("kafka-consumer-groups", &["--describe", "--all-groups", "--offsets"]),
    ("kafka-get-offsets", &[]),
    ("kafka-get-offsets", &["--topic", "orders"]),
    ("kafka-get-offsets", &["--topic", "orders", "--time", "earliest"]),
    ("kafka-get-offsets", &["--topic", "orders", "--time", "max-timestamp"]),
    ("kafka-get-offsets", &["--topic-partitions", "orders:1-3,short", "--time", "TIME"]),
    ("kafka-configs", &["--describe", "--entity-type", "topics", "--entity-name", "short"]),
    ("kafka-configs", &["--describe", "--entity-type", "topics", "--entity-name", "short", "--all"]),
    ("kafka-configs", &["--describe", "--entity-type", "topics"]),
    ("kafka-configs", &["--describe", "--entity-type", "brokers"]),
    ("kafka-configs", &["--describe", "--entity-type", "brokers", "--entity-default"]),
    ("kafka-configs", &["--describe", "--entity-type", "brokers", "--entity-name", "BROKER", "--all"]),
    ("kafka-configs", &["--describe", "--entity-type", "clients"]),
];

/// A newer release's tools speak newer protocols: DescribeTopicPartitions instead of Metadata, for one.
#[test]
fn tools_say_what_they_say_at_the_source() -> Result<()> {
    let _turn = one_at_a_time();
    let mut rig = rig("3.9.2", "4.3.1", 2)?;
    rig.keep = true;
    let topics = Filled::new(&rig)?;
    let mut different = Vec::new();
    for kafka in [rig.source.kafka(), rig.target.kafka()] {
        for (tool, args) in QUESTIONS {
            different.extend(difference(&rig, kafka, tool, args, &topics.time)?);
        }
        different.extend(console_difference(&rig, kafka)?);
    }
    ensure!(different.is_empty(), "{} differences:\n{}", different.len(), different.join("\n"));
    drop(topics);
    rig.keep = std::env::var_os("CROSSOVER_KEEP").is_some();
    Ok(())
}

/// Topics with records, a group with a member, and one without.
struct Filled {
    _member: crossover_harness::rig::Driver,
    /// In the middle of the log, unix milliseconds.
    time: String,
}

impl Filled {
    fn new(rig: &Rig) -> Result<Filled> {
        for cluster in [&rig.source, &rig.target] {
            cluster.create_topic("orders", 4, 2, &[])?;
            let settings = [("retention.ms", "86400000"), ("segment.bytes", "1048576")];
            cluster.create_topic("short", 2, 2, &settings)?;
        }
        rig.target.create_topic("other-cluster", 1, 1, &[])?;
        let args = |topic, partitions, writer| {
            ["--topic", topic, "--partitions", partitions, "--rate", "200", "--writer", writer]
        };
        let mut orders = rig.driver("java-3.9.2", "producer", "p1", &args("orders", "4", "1"))?;
        let mut short = rig.driver("java-3.9.2", "producer", "p2", &args("short", "2", "2"))?;
        wait_count(&mut orders, "P.ok", RECORDS, WAIT)?;
        let time = (now_us() / 1000).to_string();
        wait_count(&mut orders, "P.ok", 2 * RECORDS, WAIT)?;
        wait_count(&mut short, "P.ok", RECORDS, WAIT)?;
        let history = orders.history.clone();
        ensure!(orders.stop() && short.stop(), "a producer did not end well");
        let written = crossover_harness::rig::count(&history, "P.ok");
        let past = member(rig, "past", written)?;
        ensure!(past.stop(), "the group's member did not end well");
        Ok(Filled { _member: member(rig, "live", written)?, time })
    }
}

/// A group that has read and committed everything.
fn member(rig: &Rig, group: &str, written: usize) -> Result<crossover_harness::rig::Driver> {
    let args = ["--topic", "orders", "--group", group, "--reset", "earliest", "--commit", "sync-each-second"];
    let mut member = rig.driver("java-3.9.2", "consumer", group, &args)?;
    wait_count(&mut member, "C.poll", written, WAIT)?;
    let deadline = std::time::Instant::now() + WAIT;
    let bootstrap = rig.source.bootstrap();
    let args = ["--describe", "--group", group, "--offsets"];
    // group, topic, partition, position, end, lag …
    let lags = |line: &String| line.split(' ').nth(5).is_none_or(|lag| lag != "0" && lag != "LAG");
    while run(rig.source.kafka(), &bootstrap, "kafka-consumer-groups", &args)?.iter().any(lags) {
        ensure!(std::time::Instant::now() < deadline, NOT_COMMITTED);
    }
    Ok(member)
}

/// How a tool's words through the proxy differ from its words at the source.
fn difference(rig: &Rig, kafka: &Kafka, tool: &str, args: &[&str], time: &str) -> Result<Option<String>> {
    let ask = |bootstrap: &str, broker: &str, place: Place| {
        let args: Vec<String> =
            args.iter().map(|arg| arg.replace("BROKER", broker).replace("TIME", time)).collect();
        let lines = run(kafka, bootstrap, tool, &args.iter().map(String::as_str).collect::<Vec<_>>())?;
        Ok::<_, anyhow::Error>(comparable(&lines, place))
    };
    let source = rig.source.bootstrap();
    let (direct, proxied) = scope(|scope| {
        let direct = scope.spawn(|| ask(&source, "1", Place::Source));
        let proxied = ask(&rig.bootstrap, "2", Place::Proxy);
        (direct.join(), proxied)
    });
    let direct = direct.map_err(|_| anyhow::anyhow!("a tool's thread panicked"))??;
    Ok(compare(&format!("{tool} {args:?} of {}", kafka.version), &direct, &proxied?))
}

/// Lines without what may differ: addresses are left out, the source's node ids made the proxy's (V = 2·n), and the
/// target's nodes not looked at.
fn comparable(lines: &[String], place: Place) -> Vec<String> {
    let mut lines: Vec<String> = lines.iter().filter_map(|line| super::normal(line, place)).collect();
    lines.sort();
    lines
}

fn compare(what: &str, direct: &[String], proxied: &[String]) -> Option<String> {
    println!("{what}: {} lines, the first: {:?}", direct.len(), direct.first());
    let only = |these: &[String], those: &[String], sign: &str| {
        let lines = these.iter().filter(|line| !those.contains(line));
        lines.map(|line| format!("  {sign} {line}\n")).collect::<String>()
    };
    let problem = only(direct, proxied, "source") + &only(proxied, direct, "proxy ");
    (direct != proxied || direct.is_empty() && !may_be_empty(what)).then(|| format!("{what}\n{problem}"))
}

fn may_be_empty(what: &str) -> bool {
    what.contains("under-replicated") || what.contains("clients")
}

/// The console producer's records are the same records to a console consumer at both places.
fn console_difference(rig: &Rig, kafka: &Kafka) -> Result<Option<String>> {
    let topic = format!("typed-{}", kafka.version);
    rig.source.create_topic(&topic, 1, 2, &[])?;
    let source = rig.source.bootstrap();
    for (bootstrap, text) in [(&rig.bootstrap, "k1:by proxy\nk2:\n"), (&source, "k3:directly\n")] {
        let args =
            ["--topic", &topic, "--property", "parse.key=true", "--property", "key.separator=:", "--sync"];
        run_with(kafka, bootstrap, "kafka-console-producer", &args, Some(text))?;
    }
    let shown = ["print.key", "print.offset", "print.partition", "print.timestamp", "print.headers"];
    let shown: Vec<String> = shown.iter().map(|name| format!("{name}=true")).collect();
    let mut args =
        vec!["--topic", topic.as_str(), "--from-beginning", "--max-messages", "3", "--timeout-ms", "30000"];
    shown.iter().for_each(|property| args.extend(["--property", property.as_str()]));
    let read = |bootstrap: &str| run(kafka, bootstrap, "kafka-console-consumer", &args);
    let (direct, proxied) = (read(&source)?, read(&rig.bootstrap)?);
    ensure!(proxied.iter().any(|line| line.ends_with("k1 by proxy")), "not what was typed: {proxied:?}");
    Ok(compare(&format!("kafka-console-consumer of {}", kafka.version), &direct, &proxied))
}
