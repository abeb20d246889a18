//! A cluster on disk: its directory, its ports, its configuration files, and what of it outlives its processes.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{HarnessError, IoContext, Result};
use crate::ports::{PortLease, lease_ports};
use crate::properties::{self, Bound, NodeConfig};
use crate::spec::{ClusterSpec, Listener};
use crate::version::Version;

/// The listener of the harness itself and between the brokers.
pub(crate) const INTERNAL: &str = "PLAINTEXT";
const CONTROLLER: &str = "CONTROLLER";
const ZOOKEEPER: &str = "zookeeper";
const STATE_FILE: &str = "cluster.json";

/// The directory of one cluster, ours alone until dropped.
///
/// `server-<id>.properties` and `data-<id>/` of each node, `zookeeper.properties` and `zookeeper/`, `logs/`,
/// `cluster.json`.
#[derive(Debug)]
pub(crate) struct Layout {
    pub(crate) root: PathBuf,
    temporary: bool,
    _lock: File,
}

/// What a cluster that comes back to its directory keeps.
#[derive(Debug, Serialize, Deserialize)]
struct State {
    cluster_id: String,
    /// `<node id>/<listener>`, or `zookeeper`, to port.
    ports: BTreeMap<String, u16>,
}

/// A cluster laid out and ready to start.
pub(crate) struct Plan {
    pub(crate) layout: Layout,
    pub(crate) cluster_id: String,
    pub(crate) nodes: BTreeMap<i32, NodePlan>,
    /// Only in ZooKeeper mode.
    pub(crate) zookeeper: Option<PortLease>,
}

pub(crate) struct NodePlan {
    /// Listener name to port, without the controller's.
    pub(crate) ports: BTreeMap<String, u16>,
    pub(crate) votes: bool,
    pub(crate) leases: Vec<PortLease>,
}

impl Layout {
    fn create(spec: &ClusterSpec) -> Result<Self> {
        let root = match &spec.directory {
            // The nodes run in this directory: what they are told must not depend on ours.
            Some(given) => std::path::absolute(given).context("find", given)?,
            None => {
                std::env::temp_dir().join("crossover").join(format!("{}-{:08x}", spec.name, random::<4>()?))
            }
        };
        let logs = root.join("logs");
        fs::create_dir_all(&logs).context("create", &logs)?;
        let path = root.join(".lock");
        let lock = File::create(&path).context("create", &path)?;
        if lock.try_lock().is_err() {
            return Err(HarnessError::Spec(format!("{} belongs to a running cluster", root.display())));
        }
        Ok(Self { root, temporary: spec.directory.is_none(), _lock: lock })
    }

    pub(crate) fn logs(&self) -> PathBuf {
        self.root.join("logs")
    }

    pub(crate) fn log(&self, name: &str) -> PathBuf {
        self.logs().join(format!("{name}.log"))
    }

    pub(crate) fn server_properties(&self, id: i32) -> PathBuf {
        self.root.join(format!("server-{id}.properties"))
    }

    /// Puts another port into a node's configuration.
    pub(crate) fn replace_port(&self, id: i32, old: u16, new: u16) -> Result<()> {
        let path = self.server_properties(id);
        let text = fs::read_to_string(&path).context("read", &path)?;
        // Only in `listeners` and `advertised.listeners`: ports are leased once.
        write(&path, &text.replace(&format!(":{old}"), &format!(":{new}")))
    }

    pub(crate) fn zookeeper_properties(&self) -> PathBuf {
        self.root.join("zookeeper.properties")
    }

    fn data(&self, name: &str) -> PathBuf {
        self.root.join(format!("data-{name}"))
    }

    fn state(&self) -> PathBuf {
        self.root.join(STATE_FILE)
    }

    /// Of a temporary cluster only logs and configuration stay. To be called when its processes are gone.
    pub(crate) fn clean(&self) {
        if !self.temporary || std::env::var_os("CROSSOVER_KEEP").is_some() {
            return;
        }
        let entries = fs::read_dir(&self.root).into_iter().flatten().flatten();
        for entry in entries.filter(|e| e.file_name().to_string_lossy().starts_with("data-")) {
            // What cannot be removed is litter in the temporary directory, no failure of a test.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

impl Plan {
    /// Creates directory, ports and files of a checked specification.
    pub(crate) fn create(spec: &ClusterSpec, version: Version) -> Result<Self> {
        let layout = Layout::create(spec)?;
        let known = read_state(&layout)?;
        let leased = lease_all(spec, version, known.as_ref().map(|state| &state.ports))?;
        let cluster_id = match known {
            Some(state) => state.cluster_id,
            None => new_cluster_id()?,
        };
        write_state(&layout, &cluster_id, &leased)?;
        let plan = Self::assemble(spec, version, layout, cluster_id, leased);
        plan.write_files(spec, version)?;
        Ok(plan)
    }

    fn assemble(
        spec: &ClusterSpec,
        version: Version,
        layout: Layout,
        cluster_id: String,
        mut leased: BTreeMap<String, PortLease>,
    ) -> Self {
        let zookeeper = leased.remove(ZOOKEEPER);
        let mut nodes = BTreeMap::new();
        for (index, id) in spec.ids().enumerate() {
            let votes = !version.uses_zookeeper() && index < usize::from(spec.voters);
            nodes.insert(id, NodePlan { ports: BTreeMap::new(), votes, leases: Vec::new() });
        }
        for (key, lease) in leased {
            let Some((id, listener)) = key.split_once('/') else { continue };
            let Some(node) = id.parse().ok().and_then(|id: i32| nodes.get_mut(&id)) else { continue };
            node.ports.insert(listener.to_owned(), lease.port());
            node.leases.push(lease);
        }
        Self { layout, cluster_id, nodes, zookeeper }
    }

    fn write_files(&self, spec: &ClusterSpec, version: Version) -> Result<()> {
        if let Some(lease) = &self.zookeeper {
            let text = properties::zookeeper(&self.layout.data(ZOOKEEPER), lease.port());
            write(&self.layout.zookeeper_properties(), &text)?;
        }
        let voters: Vec<(i32, u16)> =
            self.nodes.iter().filter_map(|(id, node)| Some((*id, *node.ports.get(CONTROLLER)?))).collect();
        for (id, node) in &self.nodes {
            let bound = |l: Listener| {
                let port = *node.ports.get(&l.name)?;
                let advertised = node.ports.get(&relay_of(&l.name)).copied().unwrap_or(port);
                Some(Bound { name: l.name, protocol: l.protocol, port, advertised })
            };
            let listeners: Vec<Bound> = all_listeners(spec).filter_map(bound).collect();
            let text = properties::server(&NodeConfig {
                version,
                node_id: *id,
                brokers: spec.brokers,
                data: &self.layout.data(&id.to_string()),
                listeners: &listeners,
                voters: &voters,
                zookeeper: self.zookeeper.as_ref().map_or(0, PortLease::port),
                overrides: &spec.properties,
            });
            write(&self.layout.server_properties(*id), &text)?;
        }
        Ok(())
    }
}

/// What the port of the relay in front of a listener is kept under.
pub(crate) fn relay_of(listener: &str) -> String {
    format!("relay of {listener}")
}

/// The harness's own listener first: the first one is the one between brokers.
fn all_listeners(spec: &ClusterSpec) -> impl Iterator<Item = Listener> + '_ {
    let own = Listener { name: INTERNAL.to_owned(), protocol: INTERNAL.to_owned(), relayed: false };
    std::iter::once(own).chain(spec.listeners.iter().cloned())
}

/// Every port of the cluster by key; those of its last run where they are free.
fn lease_all(
    spec: &ClusterSpec,
    version: Version,
    known: Option<&BTreeMap<String, u16>>,
) -> Result<BTreeMap<String, PortLease>> {
    let mut keys = Vec::new();
    if version.uses_zookeeper() {
        keys.push(ZOOKEEPER.to_owned());
    }
    for (index, id) in spec.ids().enumerate() {
        keys.extend(all_listeners(spec).map(|listener| format!("{id}/{}", listener.name)));
        let relayed = spec.listeners.iter().filter(|listener| listener.relayed);
        keys.extend(relayed.map(|listener| format!("{id}/{}", relay_of(&listener.name))));
        if !version.uses_zookeeper() && index < usize::from(spec.voters) {
            keys.push(format!("{id}/{CONTROLLER}"));
        }
    }
    let mut leased = BTreeMap::new();
    for key in &keys {
        if let Some(port) = known.and_then(|ports| ports.get(key)) {
            leased.extend(PortLease::take(*port)?.map(|lease| (key.clone(), lease)));
        }
    }
    keys.retain(|key| !leased.contains_key(key));
    leased.extend(keys.iter().cloned().zip(lease_ports(keys.len())?));
    Ok(leased)
}

fn read_state(layout: &Layout) -> Result<Option<State>> {
    let path = layout.state();
    if !path.exists() {
        return Ok(None);
    }
    let text = fs::read_to_string(&path).context("read", &path)?;
    let state = serde_json::from_str(&text).map_err(io::Error::from).context("understand", &path)?;
    Ok(Some(state))
}

fn write_state(layout: &Layout, cluster_id: &str, leased: &BTreeMap<String, PortLease>) -> Result<()> {
    let ports = leased.iter().map(|(key, lease)| (key.clone(), lease.port())).collect();
    let state = State { cluster_id: cluster_id.to_owned(), ports };
    let path = layout.state();
    let text = serde_json::to_string_pretty(&state).map_err(io::Error::from).context("write", &path)?;
    write(&path, &text)
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).context("write", path)
}

/// 16 random bytes in URL-safe base64, as Kafka's `Uuid` prints them.
fn new_cluster_id() -> Result<String> {
    // The top bit is cleared: an id that begins with '-' would be an option to the format tool.
    Ok(base64_url(random::<16>()? & (u128::MAX >> 1)))
}

/// 22 characters for 128 bits: 21 of six bits and one for the last two.
fn base64_url(value: u128) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let digit = |bits: u128| ALPHABET.get((bits & 63) as usize).map_or('A', |byte| char::from(*byte));
    (0..21).map(|i| digit(value >> (122 - 6 * i))).chain([digit((value & 3) << 4)]).collect()
}

/// `N` (at most 16) random bytes as a number.
fn random<const N: usize>() -> Result<u128> {
    let mut bytes = [0; N];
    let failed = |e: getrandom::Error| HarnessError::Io {
        action: "draw random bytes".to_owned(),
        source: io::Error::other(e.to_string()),
    };
    getrandom::fill(&mut bytes).map_err(failed)?;
    Ok(bytes.iter().fold(0, |value, byte| value << 8 | u128::from(*byte)))
}

#[cfg(test)]
mod tests {
    use super::{base64_url, new_cluster_id};

    #[test]
    fn cluster_ids_are_kafka_uuids() {
        // java.util.Base64.getUrlEncoder().withoutPadding() over the same 16 bytes.
        assert_eq!(base64_url(0x00112233_44556677_8899aabb_ccddeeff), "ABEiM0RVZneImaq7zN3u_w");
        let id = new_cluster_id().unwrap();
        assert_eq!(id.len(), 22);
        assert!(!id.starts_with('-'));
    }
}
