//! The harness with real brokers. The first run on a machine fetches the jars (about 200 MB) from Maven Central.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use crossover_harness::{Cluster, ClusterSpec, HarnessError, Kafka, clients_classpath, run_tool};

/// Each test starts up to two clusters; one test at a time keeps a small machine responsive.
fn one_at_a_time() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs one step and prints how long it took.
fn timed<T>(what: &str, step: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let value = step();
    println!("{:>6} ms  {what}", start.elapsed().as_millis());
    value
}

fn start(spec: &ClusterSpec) -> Result<Cluster> {
    timed(&format!("start {} ({} brokers)", spec.name, spec.brokers), || Ok(Cluster::start(spec)?))
}

fn disturb(cluster: &Cluster) -> Result<()> {
    let version = cluster.version();
    timed(&format!("{version}: create topic"), || {
        cluster.create_topic("orders", 4, 2, &[("retention.ms", "-1")])
    })?;
    ensure!(cluster.topics()? == ["orders"]);
    let topic = cluster.topic("orders")?.context("topic is gone")?;
    ensure!(topic.partitions.len() == 4 && topic.partitions.iter().all(|p| p.replicas.len() == 2));

    timed(&format!("{version}: kill broker 2"), || cluster.kill_broker(2))?;
    ensure!(matches!(cluster.kill_broker(2), Err(HarnessError::Broker(2, _))));
    timed(&format!("{version}: restart it"), || cluster.start_broker(2))?;
    timed(&format!("{version}: in sync again"), || cluster.wait_in_sync("orders"))?;
    timed(&format!("{version}: clean stop"), || cluster.stop_broker(2))?;
    let marker = cluster.directory().join("data-2/.kafka_cleanshutdown");
    ensure!(marker.exists(), "a clean stop leaves {}", marker.display());
    timed(&format!("{version}: restart it"), || cluster.start_broker(2))?;
    timed(&format!("{version}: in sync again"), || cluster.wait_in_sync("orders"))?;
    Ok(())
}

#[test]
fn two_versions_side_by_side_survive_a_kill() -> Result<()> {
    let _turn = one_at_a_time();
    let source = start(&ClusterSpec { name: "source".into(), ..ClusterSpec::new("3.9.2", 2) })?;
    let target = start(&ClusterSpec { name: "target".into(), ..ClusterSpec::new("4.3.1", 2) })?;
    ensure!(source.cluster_id() != target.cluster_id());
    for cluster in [&source, &target] {
        ensure!(cluster.broker_ids() == [1, 2]);
        ensure!(cluster.metadata(None)?.brokers == [1, 2]);
        disturb(cluster)?;
    }
    timed("stop both", || {
        source.stop();
        target.stop();
    });
    Ok(())
}

#[test]
fn older_versions_by_the_same_call() -> Result<()> {
    let _turn = one_at_a_time();
    for version in ["2.8.2", "3.4.1"] {
        let cluster = start(&ClusterSpec::new(version, 1))?;
        cluster.create_topic("orders", 2, 1, &[])?;
        ensure!(cluster.metadata(None)?.topics.iter().any(|t| t.name == "__consumer_offsets"));
        let refusal = cluster.create_topic("orders", 2, 1, &[]);
        ensure!(matches!(refusal, Err(HarnessError::Refused { code: 36, .. })), "{refusal:?}");

        timed(&format!("{version}: kill"), || cluster.kill_broker(1))?;
        timed(&format!("{version}: restart it"), || cluster.start_broker(1))?;
        ensure!(cluster.topics()? == ["orders"]);
    }
    Ok(())
}

#[test]
fn three_voters_elect_another_controller() -> Result<()> {
    let _turn = one_at_a_time();
    let spec = ClusterSpec { voters: 3, first_node_id: 11, ..ClusterSpec::new("4.3.1", 3) };
    let cluster = start(&spec)?;
    ensure!(cluster.metadata(None)?.brokers == [11, 12, 13]);
    cluster.kill_broker(11)?;
    // Needs a controller, which only the two others can be now.
    timed("create topic after the kill of a voter", || cluster.create_topic("orders", 1, 2, &[]))?;
    timed("restart the voter", || cluster.start_broker(11))?;
    Ok(())
}

#[test]
fn a_cluster_continues_in_its_directory_and_a_pause_is_not_a_death() -> Result<()> {
    let _turn = one_at_a_time();
    let directory = std::env::temp_dir().join(format!("crossover-harness-test-{}", std::process::id()));
    let spec = ClusterSpec { directory: Some(directory.clone()), ..ClusterSpec::new("4.3.1", 1) };
    let cluster = start(&spec)?;
    let second = Cluster::start(&spec);
    ensure!(matches!(second, Err(HarnessError::Spec(_))), "a directory serves one cluster: {second:?}");
    cluster.create_topic("orders", 1, 1, &[])?;
    let (id, bootstrap) = (cluster.cluster_id().to_owned(), cluster.bootstrap());

    cluster.pause_broker(1)?;
    ensure!(cluster.metadata(None).is_err());
    cluster.resume_broker(1)?;
    ensure!(cluster.topics()? == ["orders"]);
    timed("stop", || cluster.stop());

    let cluster = start(&spec)?;
    ensure!(cluster.cluster_id() == id && cluster.bootstrap() == bootstrap);
    ensure!(cluster.topics()? == ["orders"]);
    drop(cluster);
    std::fs::remove_dir_all(&directory)?;
    Ok(())
}

#[test]
fn the_tools_of_every_version_run() -> Result<()> {
    let _turn = one_at_a_time();
    for version in ["2.8.2", "4.3.1"] {
        let cluster = start(&ClusterSpec::new(version, 1))?;
        cluster.create_topic("orders", 1, 1, &[])?;
        let (kafka, bootstrap) = (cluster.kafka(), cluster.bootstrap());
        let server = ["--bootstrap-server", bootstrap.as_str()];
        let with = |rest: &[&'static str]| [&server[..], rest].concat();

        let output = timed("kafka-topics", || kafka.run_tool("kafka-topics", &with(&["--list"]), None))?;
        ensure!(String::from_utf8_lossy(&output.stdout).lines().any(|l| l == "orders"), "{output:?}");
        let args = with(&["--topic", "orders"]);
        let output =
            timed("console-producer", || kafka.run_tool("kafka-console-producer", &args, Some("a\nb\n")))?;
        ensure!(output.status.success(), "{output:?}");
        let args = with(&["--topic", "orders", "--from-beginning", "--max-messages", "2"]);
        let output = timed("console-consumer", || kafka.run_tool("kafka-console-consumer", &args, None))?;
        ensure!(output.stdout == b"a\nb\n", "{output:?}");
    }
    let others = ["kafka-consumer-groups", "kafka-get-offsets", "kafka-configs", "kafka-leader-election"];
    for version in ["2.8.2", "3.4.1", "3.9.2", "4.3.1"] {
        for tool in others.into_iter().chain(["kafka-reassign-partitions", "kafka-acls"]) {
            // Without arguments each of them says which it needs.
            let output = run_tool(version, tool, &[], None)?;
            let text = String::from_utf8([output.stdout, output.stderr].concat())?;
            let usage = text.contains("bootstrap-server") || text.contains("broker-list");
            ensure!(usage, "{version} {tool}: {text}");
        }
    }
    let missing = run_tool("4.3.1", "kafka-nothing", &[], None);
    ensure!(matches!(missing, Err(HarnessError::NoSuchTool { .. })));
    Ok(())
}

/// This test binary again, running one test with a variable set.
fn again(test: &str, variable: &str, value: &Path) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["--exact", test, "--nocapture"]).env(variable, value);
    Ok(command)
}

/// A child starts a cluster and is killed before it can clean up.
#[test]
fn brokers_do_not_outlive_the_process_that_started_them() -> Result<()> {
    const CHILD: &str = "CROSSOVER_TEST_ORPHAN";
    if let Some(directory) = std::env::var_os(CHILD) {
        let directory = Some(directory.into());
        // From a thread that ends: the brokers must live on with the process.
        let spec = ClusterSpec { warm_coordinator: false, directory, ..ClusterSpec::new("2.8.2", 1) };
        let cluster = std::thread::spawn(move || Cluster::start(&spec)).join();
        let cluster = cluster.ok().context("panic")??;
        ensure!(cluster.topics()?.is_empty());
        println!("pid={}", cluster.broker_pid(1).context("no process")?);
        std::thread::park();
    }
    let _turn = one_at_a_time();
    let name = "brokers_do_not_outlive_the_process_that_started_them";
    let directory = std::env::temp_dir().join(format!("crossover-harness-orphan-{}", std::process::id()));
    let mut child = again(name, CHILD, &directory)?.stdout(Stdio::piped()).spawn()?;
    let mut lines = BufReader::new(child.stdout.take().context("no output")?).lines();
    let pid = lines.find_map(|line| Some(line.ok()?.split_once("pid=")?.1.to_owned()));
    child.kill()?;
    child.wait()?;
    let process = Path::new("/proc").join(pid.context("the child started no broker")?);
    let gone =
        || !std::fs::read_to_string(process.join("cmdline")).is_ok_and(|text| text.contains("kafka.Kafka"));
    let deadline = Instant::now() + Duration::from_secs(20);
    while !gone() {
        ensure!(Instant::now() < deadline, "{} is still running", process.display());
        std::thread::sleep(Duration::from_millis(20));
    }
    std::fs::remove_dir_all(&directory)?;
    Ok(())
}

/// The same test runs once more as a child whose path has no Maven.
#[test]
fn what_is_cached_needs_neither_maven_nor_a_network() -> Result<()> {
    const OFFLINE: &str = "CROSSOVER_TEST_OFFLINE";
    if std::env::var_os(OFFLINE).is_some() {
        let jars = timed("resolve from the cache", || Kafka::resolve("4.3.1"))?.classpath();
        ensure!(jars.to_string_lossy().contains("kafka-clients-4.3.1.jar"));
        ensure!(!clients_classpath("4.3.1")?.is_empty());
        ensure!(Command::new("mvn").arg("--version").output().is_err(), "Maven is on the path");
        return Ok(());
    }
    let _turn = one_at_a_time();
    timed("resolve", || Kafka::resolve("4.3.1"))?;
    timed("resolve the client", || clients_classpath("4.3.1"))?;
    let bin = std::env::temp_dir().join(format!("crossover-harness-bin-{}", std::process::id()));
    std::fs::create_dir_all(&bin)?;
    let found = Command::new("sh").args(["-c", "command -v sha256sum"]).output()?;
    let sha256sum = String::from_utf8(found.stdout)?;
    std::os::unix::fs::symlink(sha256sum.trim(), bin.join("sha256sum"))?;
    let name = "what_is_cached_needs_neither_maven_nor_a_network";
    let output = again(name, OFFLINE, &bin)?.env("PATH", &bin).output()?;
    std::fs::remove_dir_all(&bin)?;
    let text = String::from_utf8_lossy(&output.stdout);
    print!("{text}");
    ensure!(output.status.success() && text.contains("1 passed"), "{output:?}");
    Ok(())
}
