//! The configuration files of one node.

use std::path::Path;

use crate::version::Version;

/// Everything the files of one node depend on.
pub(crate) struct NodeConfig<'a> {
    pub(crate) version: Version,
    pub(crate) node_id: i32,
    /// Brokers of the cluster.
    pub(crate) brokers: u8,
    pub(crate) data: &'a Path,
    /// The first is the one between brokers.
    pub(crate) listeners: &'a [Bound],
    /// `(node id, port)` of the KRaft voters; empty with ZooKeeper.
    pub(crate) voters: &'a [(i32, u16)],
    /// ZooKeeper's port, 0 with KRaft.
    pub(crate) zookeeper: u16,
    /// Replace or add to ours.
    pub(crate) overrides: &'a [(String, String)],
}

/// A listener with its ports.
pub(crate) struct Bound {
    pub(crate) name: String,
    /// Security protocol.
    pub(crate) protocol: String,
    pub(crate) port: u16,
    /// What clients are told.
    pub(crate) advertised: u16,
}

/// `server.properties`.
pub(crate) fn server(config: &NodeConfig<'_>) -> String {
    let mut entries = Properties::default();
    entries.set("log.dirs", config.data.display());
    if config.version.uses_zookeeper() {
        zookeeper_mode(config, &mut entries);
    } else {
        kraft_mode(config, &mut entries);
    }
    listeners(config, &mut entries);
    internal_topics(config, &mut entries);
    small(&mut entries);
    for (key, value) in config.overrides {
        entries.set(key, value);
    }
    entries.render()
}

/// `zookeeper.properties` of a stand-alone server.
pub(crate) fn zookeeper(data: &Path, port: u16) -> String {
    let mut entries = Properties::default();
    entries.set("dataDir", data.display());
    entries.set("clientPort", port);
    entries.set("clientPortAddress", "127.0.0.1");
    entries.set("admin.enableServer", false);
    entries.set("maxClientCnxns", 0);
    entries.set("tickTime", 1000);
    // `dump` tells which brokers still have a session.
    entries.set("4lw.commands.whitelist", "ruok,dump");
    entries.render()
}

fn zookeeper_mode(config: &NodeConfig<'_>, entries: &mut Properties) {
    entries.set("broker.id", config.node_id);
    entries.set("zookeeper.connect", format!("127.0.0.1:{}", config.zookeeper));
    entries.set("zookeeper.session.timeout.ms", 6000);
}

fn kraft_mode(config: &NodeConfig<'_>, entries: &mut Properties) {
    let votes = config.voters.iter().any(|(id, _)| *id == config.node_id);
    entries.set("process.roles", if votes { "broker,controller" } else { "broker" });
    entries.set("node.id", config.node_id);
    let voters: Vec<String> =
        config.voters.iter().map(|(id, port)| format!("{id}@127.0.0.1:{port}")).collect();
    entries.set("controller.quorum.voters", voters.join(","));
    entries.set("controller.listener.names", "CONTROLLER");
    // A killed broker may come back only when its session is over; the default is 9 s.
    entries.set("broker.session.timeout.ms", 6000);
    entries.set("broker.heartbeat.interval.ms", 1000);
}

fn listeners(config: &NodeConfig<'_>, entries: &mut Properties) {
    let address = |name: &str, port: u16| format!("{name}://127.0.0.1:{port}");
    let mut bound: Vec<String> = config.listeners.iter().map(|l| address(&l.name, l.port)).collect();
    let advertised: Vec<String> = config.listeners.iter().map(|l| address(&l.name, l.advertised)).collect();
    entries.set("advertised.listeners", advertised.join(","));
    let own = config.voters.iter().find(|(id, _)| *id == config.node_id);
    bound.extend(own.map(|(_, port)| format!("CONTROLLER://127.0.0.1:{port}")));
    entries.set("listeners", bound.join(","));

    let mut protocols: Vec<String> =
        config.listeners.iter().map(|l| format!("{}:{}", l.name, l.protocol)).collect();
    if !config.voters.is_empty() {
        protocols.push("CONTROLLER:PLAINTEXT".to_owned());
    }
    entries.set("listener.security.protocol.map", protocols.join(","));
    if let Some(first) = config.listeners.first() {
        entries.set("inter.broker.listener.name", &first.name);
    }
}

/// As many replicas as there are brokers, and still writable when one broker is down.
fn internal_topics(config: &NodeConfig<'_>, entries: &mut Properties) {
    let replicas = config.brokers.min(3);
    let min_isr = replicas.saturating_sub(1).max(1);
    entries.set("offsets.topic.replication.factor", replicas);
    entries.set("offsets.topic.num.partitions", 3);
    entries.set("transaction.state.log.replication.factor", replicas);
    entries.set("transaction.state.log.min.isr", min_isr);
    entries.set("transaction.state.log.num.partitions", 3);
    if config.version.has_share_groups() {
        entries.set("share.coordinator.state.topic.replication.factor", replicas);
        entries.set("share.coordinator.state.topic.min.isr", min_isr);
        entries.set("share.coordinator.state.topic.num.partitions", 3);
    }
}

fn small(entries: &mut Properties) {
    entries.set("group.initial.rebalance.delay.ms", 0);
    // The default buffer alone takes 128 MiB of heap.
    entries.set("log.cleaner.dedupe.buffer.size", 2_097_152);
    entries.set("num.network.threads", 2);
    entries.set("num.io.threads", 3);
}

/// In the order of first mention; a later value replaces an earlier one.
#[derive(Default)]
struct Properties(Vec<(String, String)>);

impl Properties {
    fn set(&mut self, key: &str, value: impl ToString) {
        let value = value.to_string();
        match self.0.iter_mut().find(|(known, _)| known == key) {
            Some(entry) => entry.1 = value,
            None => self.0.push((key.to_owned(), value)),
        }
    }

    /// `java.util.Properties` reads a backslash as an escape and takes no line break inside a value.
    fn render(&self) -> String {
        let line = |(key, value): &(String, String)| {
            let value = value.replace('\\', "\\\\").replace('\n', "\\n");
            format!("{key}={value}\n")
        };
        self.0.iter().map(line).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{Bound, NodeConfig, server};

    fn render(version: &str, node_id: i32, voters: &[(i32, u16)], overrides: &[(String, String)]) -> String {
        server(&NodeConfig {
            version: version.parse().unwrap(),
            node_id,
            brokers: 2,
            data: Path::new("/data"),
            listeners: &[Bound {
                name: "PLAINTEXT".to_owned(),
                protocol: "PLAINTEXT".to_owned(),
                port: 21_000,
                advertised: 21_000,
            }],
            voters,
            zookeeper: 22_000,
            overrides,
        })
    }

    #[test]
    fn only_a_voter_is_a_controller() {
        let voter = render("4.3.1", 1, &[(1, 23_000)], &[]);
        assert!(voter.contains("process.roles=broker,controller\n"));
        assert!(voter.contains("\nlisteners=PLAINTEXT://127.0.0.1:21000,CONTROLLER://127.0.0.1:23000\n"));
        let other = render("4.3.1", 2, &[(1, 23_000)], &[]);
        assert!(other.contains("process.roles=broker\n"));
        assert!(other.contains("\nlisteners=PLAINTEXT://127.0.0.1:21000\n"));
        assert!(other.contains("controller.quorum.voters=1@127.0.0.1:23000\n"));
    }

    #[test]
    fn zookeeper_mode_has_no_kraft_keys() {
        let text = render("2.8.2", 1, &[], &[]);
        assert!(text.contains("broker.id=1\n") && text.contains("zookeeper.connect=127.0.0.1:22000\n"));
        assert!(!text.contains("process.roles") && !text.contains("CONTROLLER"));
    }

    #[test]
    fn an_override_replaces_ours_and_keeps_backslashes() {
        let text = render("4.3.1", 1, &[(1, 23_000)], &[("num.io.threads".into(), "a\\b".into())]);
        assert_eq!(text.matches("num.io.threads=").count(), 1);
        assert!(text.contains("num.io.threads=a\\\\b\n"));
    }
}
