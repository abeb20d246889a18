//! Both clusters and the proxy between them.

use std::fs::File;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use crossover_harness::{Cluster, ClusterSpec, free_ports};
use serde::Deserialize;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use super::{Directory, PARTITIONS, TOPIC};

const SOURCE_VERSION: &str = "3.9.2";
const TARGET_VERSION: &str = "4.3.1";
const BROKERS: u8 = 2;
/// Ports of virtual nodes: both clusters' brokers, and as many to spare.
const NODE_PORTS: usize = 8;
const READY_LIMIT: Duration = Duration::from_secs(30);
const STOP_LIMIT: Duration = Duration::from_secs(15);
/// Longer than the command's own limits, so that its explanation arrives.
const FLIP_LIMIT: Duration = Duration::from_secs(60);

/// What `cutover --json` and `rollback --json` print for a topic.
#[derive(Debug, Deserialize)]
pub(super) struct FlipRecord {
    pub(super) ok: bool,
    pub(super) owner: String,
    pub(super) hold_ms: Option<f64>,
    pub(super) reason: Option<String>,
    pub(super) partitions: Vec<serde_json::Value>,
}

pub(super) struct Stage {
    // Dropped in this order: the proxy before the brokers it is connected to.
    proxy: Child,
    source: Started,
    target: Started,
    ports: Ports,
}

/// A cluster, and the directory it writes to: dropped in this order.
struct Started {
    cluster: Cluster,
    _directory: Arc<Directory>,
}

pub(super) struct Clusters {
    source: Started,
    target: Started,
}

impl Clusters {
    /// The part of a configuration that names them, and what they have.
    pub(super) fn introduction(&self) -> String {
        format!(
            "Source: Kafka {SOURCE_VERSION}, target: Kafka {TARGET_VERSION}, {BROKERS} brokers each; both have a topic {TOPIC} of {PARTITIONS} partitions.\n\n{}\nCtrl-C ends them.\n",
            cluster_sections(&self.source.cluster.bootstrap(), &self.target.cluster.bootstrap())
        )
    }
}

struct Ports {
    bootstrap: u16,
    admin: u16,
    first_node: u16,
}

impl Stage {
    /// Two clusters with the topic, and a proxy that is ready.
    pub(super) async fn start(directory: &Arc<Directory>) -> anyhow::Result<Stage> {
        let Clusters { source, target } = start_clusters(directory).await?;
        let ports = choose_ports()?;
        let path = &directory.path;
        let config = path.join("crossover.toml");
        std::fs::write(&config, configuration(&source.cluster, &target.cluster, &ports, path))?;
        let proxy = start_proxy(&config, &path.join("crossover.log")).await?;
        Ok(Stage { proxy, source, target, ports })
    }

    pub(super) fn introduce(&self) {
        println!("Source: Kafka {SOURCE_VERSION}, {BROKERS} brokers, {}", self.source.cluster.bootstrap());
        println!("Target: Kafka {TARGET_VERSION}, {BROKERS} brokers, {}", self.target.cluster.bootstrap());
        println!("Crossover: clients connect to {}, operators to {}", self.clients_address(), self.admin());
    }

    pub(super) fn clients_address(&self) -> String {
        format!("127.0.0.1:{}", self.ports.bootstrap)
    }

    pub(super) fn source_address(&self) -> String {
        self.source.cluster.bootstrap()
    }

    pub(super) fn target_address(&self) -> String {
        self.target.cluster.bootstrap()
    }

    fn admin(&self) -> String {
        format!("http://127.0.0.1:{}", self.ports.admin)
    }

    /// Who owns the topic, as `crossover status` says.
    pub(super) async fn owner(&self) -> anyhow::Result<String> {
        let status: serde_json::Value = self.ask(&["status"]).await?;
        let topics = status["topics"].as_array().map(Vec::as_slice).unwrap_or_default();
        let topic = topics.iter().find(|topic| topic["name"] == TOPIC);
        let owner = topic.and_then(|topic| topic["owner"].as_str());
        Ok(owner.with_context(|| format!("`crossover status` does not know {TOPIC}"))?.to_owned())
    }

    /// `command` is `cutover` or `rollback`.
    pub(super) async fn flip(&self, command: &str) -> anyhow::Result<FlipRecord> {
        self.ask(&[command, TOPIC]).await
    }

    /// Runs a command of this program against the proxy and reads the first line it prints.
    async fn ask<T: for<'de> Deserialize<'de>>(&self, arguments: &[&str]) -> anyhow::Result<T> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(arguments).args(["--json", "--admin", &self.admin()]);
        let output = command.stdin(Stdio::null()).kill_on_drop(true).output();
        let output = timeout(FLIP_LIMIT, output).await.context("the command does not end")??;
        let text = String::from_utf8_lossy(&output.stdout);
        let Some(line) = text.lines().next() else {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!("`crossover {}` failed ({}): {}", arguments.join(" "), output.status, said.trim());
        };
        serde_json::from_str(line).with_context(|| format!("`crossover {}`: {line}", arguments.join(" ")))
    }

    /// Everything ends in an orderly way; what does not is killed.
    pub(super) async fn stop(&mut self) {
        if let Some(id) = self.proxy.id() {
            let mut kill = Command::new("sh");
            let sent = kill.args(["-c", "kill -s TERM \"$0\"", &id.to_string()]).status().await;
            if sent.is_ok_and(|status| status.success())
                && timeout(STOP_LIMIT, self.proxy.wait()).await.is_ok()
            {
                return;
            }
        }
        // It is gone already when this fails.
        let _ = self.proxy.kill().await;
    }
}

/// Two clusters with the topic.
pub(super) async fn start_clusters(directory: &Arc<Directory>) -> anyhow::Result<Clusters> {
    let (source, target) = tokio::try_join!(
        start_cluster("source", SOURCE_VERSION, directory),
        start_cluster("target", TARGET_VERSION, directory)
    )?;
    Ok(Clusters { source, target })
}

async fn start_cluster(name: &str, version: &str, directory: &Arc<Directory>) -> anyhow::Result<Started> {
    let (place, directory) = (Some(directory.path.join(name)), Arc::clone(directory));
    let spec = ClusterSpec { name: name.to_owned(), directory: place, ..ClusterSpec::new(version, BROKERS) };
    let started = tokio::task::spawn_blocking(move || {
        let cluster = Cluster::start(&spec)?;
        cluster.create_topic(TOPIC, i32::from(PARTITIONS), i16::from(BROKERS), &[])?;
        cluster.wait_in_sync(TOPIC)?;
        Ok::<_, crossover_harness::HarnessError>(Started { cluster, _directory: directory })
    });
    started.await?.with_context(|| format!("start the {name} cluster"))
}

/// Leased until this process ends: a row of ports for the virtual nodes, and two others.
fn choose_ports() -> anyhow::Result<Ports> {
    let free = free_ports(4 * NODE_PORTS)?;
    let in_a_row = |row: &&[u16]| row.windows(2).all(|pair| matches!(pair, [a, b] if a + 1 == *b));
    let row = free.windows(NODE_PORTS).find(in_a_row).context("no free ports in a row")?;
    let mut others = free.iter().filter(|port| !row.contains(port)).copied();
    match (row.first(), others.next(), others.next()) {
        (Some(&first_node), Some(bootstrap), Some(admin)) => Ok(Ports { bootstrap, admin, first_node }),
        _ => bail!("no free ports"),
    }
}

fn configuration(source: &Cluster, target: &Cluster, ports: &Ports, directory: &Path) -> String {
    let last_node = usize::from(ports.first_node) + NODE_PORTS - 1;
    format!(
        "{}\n[listener]\nbootstrap = \"127.0.0.1:{}\"\nnode_ports = \"{}-{last_node}\"\n\n\
         [admin]\naddress = \"127.0.0.1:{}\"\n\n[state]\ndirectory = {:?}\n",
        cluster_sections(&source.bootstrap(), &target.bootstrap()),
        ports.bootstrap,
        ports.first_node,
        ports.admin,
        directory.join("state").display().to_string(),
    )
}

fn cluster_sections(source: &str, target: &str) -> String {
    let list = |addresses: &str| {
        let quoted: Vec<String> = addresses.split(',').map(|address| format!("{address:?}")).collect();
        quoted.join(", ")
    };
    format!("[source]\nbootstrap = [{}]\n\n[target]\nbootstrap = [{}]\n", list(source), list(target))
}

async fn start_proxy(config: &Path, log: &Path) -> anyhow::Result<Child> {
    let mut command = dies_with_parent(&std::env::current_exe()?).await;
    command.args(["run", "--config"]).arg(config);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(File::create(log)?).kill_on_drop(true);
    let mut proxy = command.spawn().context("start the proxy")?;
    let mut said = BufReader::new(proxy.stdout.take().context("the proxy has no output")?);
    let mut line = String::new();
    let read = timeout(READY_LIMIT, said.read_line(&mut line)).await;
    ensure!(
        matches!(read, Ok(Ok(_))) && line.trim() == "ready",
        "the proxy did not become ready: {}",
        std::fs::read_to_string(log).unwrap_or_default().lines().last().unwrap_or("it logged nothing")
    );
    Ok(proxy)
}

/// Through `setpriv` the kernel ends the program when we die, however we die. Called on the main thread, because the
/// signal is tied to the thread that spawned.
async fn dies_with_parent(program: &Path) -> Command {
    const SETPRIV: [&str; 3] = ["--pdeathsig", "TERM", "--"];
    let mut probe = Command::new("setpriv");
    let probe = probe.args(SETPRIV).arg("true").stdin(Stdio::null()).stderr(Stdio::null()).status().await;
    if !probe.is_ok_and(|status| status.success()) {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args(SETPRIV).arg(program);
    command
}

#[cfg(test)]
mod tests {
    use super::cluster_sections;

    #[test]
    fn the_clusters_are_shown_as_a_configuration_has_them() {
        let shown = cluster_sections("127.0.0.1:19092,127.0.0.1:19093", "127.0.0.1:29092");
        let text = format!("{shown}\n[listener]\nbootstrap = \"127.0.0.1:9092\"\n");
        let config = crossover_config::parse(&text, std::path::Path::new("crossover.toml")).expect("valid");
        let named = [&config.source, &config.target].map(|cluster| cluster.bootstrap.len());
        assert_eq!(named, [2, 1]);
    }
}
