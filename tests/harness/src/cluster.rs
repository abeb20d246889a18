//! A running cluster: started, asked, disturbed, stopped.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::error::{HarnessError, Result};
use crate::kafka::Kafka;
use crate::layout::{INTERNAL, Layout, NodePlan, Plan};
use crate::ports::{PortLease, lease_ports};
use crate::process::{self, Process};
use crate::spec::ClusterSpec;
use crate::version::Version;
use crate::wire::{Connection, Metadata};

/// Starting takes 2–5 s; a loaded machine needs several times as long.
const START_LIMIT: Duration = Duration::from_secs(120);
/// A clean stop takes 1–3 s.
const STOP_LIMIT: Duration = Duration::from_secs(30);
/// For a whole cluster: brokers that have lost the controller quorum wait for it for minutes.
const STOP_ALL_LIMIT: Duration = Duration::from_secs(10);
/// One question to one broker.
pub(crate) const CALL_LIMIT: Duration = Duration::from_secs(10);
/// Between two questions of a wait.
const POLL: Duration = Duration::from_millis(50);
const HEAP_MB: u16 = 256;
const SIDE_HEAP_MB: u16 = 96;
const PROBE_GROUP: &str = "crossover-harness-probe";

/// A running cluster. Its processes are killed when it is dropped, and by the kernel when this process dies.
///
/// The methods take `&self`: one thread may disturb brokers while others use the cluster.
#[derive(Debug)]
pub struct Cluster {
    kafka: Kafka,
    name: String,
    id: String,
    warm_coordinator: bool,
    nodes: BTreeMap<i32, Node>,
    zookeeper: Option<ZooKeeper>,
    layout: Layout,
}

#[derive(Debug)]
struct Node {
    /// Listener name to port.
    ports: BTreeMap<String, u16>,
    votes: bool,
    running: Mutex<Option<Running>>,
    /// Held while the broker is down too: its ports stay its own.
    leases: Vec<PortLease>,
}

#[derive(Debug)]
struct Running {
    process: Process,
    paused: bool,
}

#[derive(Debug)]
struct ZooKeeper {
    address: SocketAddr,
    process: Mutex<Process>,
    _lease: PortLease,
}

impl Cluster {
    /// Resolves the version, lays the cluster out, starts it, and returns when every broker serves and knows all
    /// others (and the group coordinator, if asked for). Takes 3–6 s with cached jars.
    ///
    /// # Errors
    /// A specification that cannot be started, missing jars or programs, a node that ends by itself, or a cluster
    /// that does not serve within 120 s; the end of the log is part of the message.
    pub fn start(spec: &ClusterSpec) -> Result<Self> {
        let version = spec.check()?;
        let kafka = Kafka::resolve(&spec.version)?;
        let Plan { layout, cluster_id, nodes, zookeeper } = Plan::create(spec, version)?;
        let zookeeper = zookeeper.map(|lease| ZooKeeper::start(&kafka, &layout, lease)).transpose()?;
        let nodes = nodes.into_iter().map(|(id, plan)| (id, Node::new(plan))).collect();
        let (name, warm_coordinator) = (spec.name.clone(), spec.warm_coordinator);
        let mut cluster = Self { kafka, name, id: cluster_id, warm_coordinator, nodes, zookeeper, layout };
        if cluster.zookeeper.is_none() {
            cluster.format()?;
        }
        let ids = cluster.broker_ids();
        for id in &ids {
            cluster.launch(*id)?;
        }
        cluster.wait_until_serving(&ids)?;
        // With ZooKeeper the cluster has chosen an id of its own.
        if let Some(id) = cluster.metadata(Some(&[]))?.cluster_id {
            cluster.id = id;
        }
        Ok(cluster)
    }

    /// Addresses of all brokers, for `bootstrap.servers`.
    pub fn bootstrap(&self) -> String {
        self.listener_bootstrap(INTERNAL).unwrap_or_default()
    }

    /// Like [`Cluster::bootstrap`] for one of the additional listeners.
    pub fn listener_bootstrap(&self, listener: &str) -> Option<String> {
        let address = |node: &Node| node.ports.get(listener).map(|port| format!("127.0.0.1:{port}"));
        let all: Option<Vec<String>> = self.nodes.values().map(address).collect();
        all.map(|addresses| addresses.join(","))
    }

    /// Where the relays of a relayed listener must be: broker id, the address clients are told, the broker's own.
    pub fn relay_addresses(&self, listener: &str) -> Vec<(i32, SocketAddr, SocketAddr)> {
        let relay = crate::layout::relay_of(listener);
        let of = |(id, node): (&i32, &Node)| {
            Some((*id, loopback(*node.ports.get(&relay)?), loopback(*node.ports.get(listener)?)))
        };
        self.nodes.iter().filter_map(of).collect()
    }

    /// Like [`Cluster::listener_bootstrap`], by the relays.
    pub fn relay_bootstrap(&self, listener: &str) -> String {
        let addresses = self.relay_addresses(listener).into_iter().map(|(_, at, _)| at.to_string());
        addresses.collect::<Vec<_>>().join(",")
    }

    /// Ascending.
    pub fn broker_ids(&self) -> Vec<i32> {
        self.nodes.keys().copied().collect()
    }

    /// Where a broker listens (or will, while it is down).
    ///
    /// # Errors
    /// No broker of this id.
    pub fn broker_address(&self, id: i32) -> Result<SocketAddr> {
        self.node(id).map(Node::address)
    }

    /// The process id of a running broker, for looking at its memory.
    pub fn broker_pid(&self, id: i32) -> Option<u32> {
        self.nodes.get(&id)?.lock().as_ref().map(|running| running.process.id())
    }

    /// What the brokers say it is.
    pub fn cluster_id(&self) -> &str {
        &self.id
    }

    /// The version it runs.
    pub fn version(&self) -> Version {
        self.kafka.version
    }

    /// The jars it runs, for tools of the same version.
    pub fn kafka(&self) -> &Kafka {
        &self.kafka
    }

    /// Data, configuration and logs; of a temporary one only the latter two stay after a drop.
    pub fn directory(&self) -> &Path {
        &self.layout.root
    }

    /// `broker-<id>.log` (all starts of one broker), `format-<id>.log`, `zookeeper.log`.
    pub fn logs_dir(&self) -> PathBuf {
        self.layout.logs()
    }

    /// Stops a broker cleanly (SIGTERM) and waits for its end.
    ///
    /// # Errors
    /// It is not running, or has not ended within 30 s; then it has been killed.
    pub fn stop_broker(&self, id: i32) -> Result<()> {
        let running = self.take(id)?;
        if running.paused {
            running.process.signal("CONT")?;
        }
        running.process.terminate(STOP_LIMIT)
    }

    /// Kills a broker (SIGKILL) and returns when it is gone.
    ///
    /// # Errors
    /// It is not running.
    pub fn kill_broker(&self, id: i32) -> Result<()> {
        self.take(id)?.process.kill();
        Ok(())
    }

    /// Freezes a broker (SIGSTOP): its connections stay open and nothing answers.
    ///
    /// # Errors
    /// It is not running.
    pub fn pause_broker(&self, id: i32) -> Result<()> {
        self.set_paused(id, true)
    }

    /// Ends a [`Cluster::pause_broker`] (SIGCONT).
    ///
    /// # Errors
    /// It is not running.
    pub fn resume_broker(&self, id: i32) -> Result<()> {
        self.set_paused(id, false)
    }

    /// Starts a stopped or killed broker again, on the same ports and data, and returns when it serves and every other
    /// running broker knows it. After a kill that takes up to 6 s more: the cluster waits for the session's end.
    ///
    /// # Errors
    /// It is running already, ends by itself, or does not serve within 120 s.
    pub fn start_broker(&self, id: i32) -> Result<()> {
        if self.node(id)?.lock().is_some() {
            return Err(HarnessError::Broker(id, "is running already"));
        }
        if let Some(zookeeper) = &self.zookeeper {
            zookeeper.wait_until_gone(id)?;
        }
        self.launch(id)?;
        self.wait_until_serving(&[id])
    }

    /// Gives a stopped broker another port on the harness's listener, and starts it there.
    ///
    /// # Errors
    /// It runs, or no port is free; else as [`Cluster::start_broker`].
    pub fn start_broker_elsewhere(&mut self, id: i32) -> Result<()> {
        if self.node(id)?.lock().is_some() {
            return Err(HarnessError::Broker(id, "is running"));
        }
        let leases = lease_ports(1)?;
        let node = self.nodes.get_mut(&id).ok_or(HarnessError::Broker(id, "is not of this cluster"))?;
        let new = leases.first().map_or(0, PortLease::port);
        let old = node.ports.insert(INTERNAL.to_owned(), new).unwrap_or_default();
        self.layout.replace_port(id, old, new)?;
        node.leases.extend(leases);
        self.start_broker(id)
    }

    /// Like [`Cluster::start_broker`] for every broker that is down; the only way back when all are.
    ///
    /// # Errors
    /// As [`Cluster::start_broker`].
    pub fn start_all(&self) -> Result<()> {
        let down: Vec<i32> =
            self.nodes.iter().filter(|(_, n)| n.lock().is_none()).map(|(id, _)| *id).collect();
        for id in &down {
            if let Some(zookeeper) = &self.zookeeper {
                zookeeper.wait_until_gone(*id)?;
            }
            self.launch(*id)?;
        }
        self.wait_until_serving(&down)
    }

    /// Stops everything, cleanly where that works within 10 s. Data and logs stay as for a drop.
    pub fn stop(self) {
        // The controllers last: a broker leaves cleanly only while there is one.
        for votes in [false, true] {
            let group = self.nodes.values().filter(|node| node.votes == votes);
            let mut running: Vec<Running> = group.filter_map(|node| node.lock().take()).collect();
            for broker in &running {
                // Who has ended already cannot be signalled; who is paused has nothing to hear it with.
                let _ = broker.process.signal("TERM").and_then(|()| broker.process.signal("CONT"));
            }
            let deadline = Instant::now() + STOP_ALL_LIMIT;
            for broker in &mut running {
                let _ = broker.process.wait(deadline.saturating_duration_since(Instant::now()));
            }
        }
    }

    // === inside ===

    /// Of the brokers that run and are not paused: id and address.
    pub(crate) fn answering(&self) -> Vec<(i32, SocketAddr)> {
        let answers = |node: &Node| node.lock().as_ref().is_some_and(|running| !running.paused);
        self.nodes.iter().filter(|(_, node)| answers(node)).map(|(id, node)| (*id, node.address())).collect()
    }

    fn node(&self, id: i32) -> Result<&Node> {
        self.nodes.get(&id).ok_or(HarnessError::Broker(id, "is not of this cluster"))
    }

    fn take(&self, id: i32) -> Result<Running> {
        self.node(id)?.lock().take().ok_or(HarnessError::Broker(id, "is not running"))
    }

    fn set_paused(&self, id: i32, paused: bool) -> Result<()> {
        let mut guard = self.node(id)?.lock();
        let running = guard.as_mut().ok_or(HarnessError::Broker(id, "is not running"))?;
        running.process.signal(if paused { "STOP" } else { "CONT" })?;
        running.paused = paused;
        Ok(())
    }

    /// Gives every KRaft node its storage; a node that has one keeps it. At once for all: it is mostly JVM start.
    fn format(&self) -> Result<()> {
        let mut formatting = Vec::new();
        for id in self.nodes.keys() {
            let mut command =
                process::java(SIDE_HEAP_MB, &self.kafka.classpath(), "kafka.tools.StorageTool")?;
            command.args(["format", "--ignore-formatted", "-t", &self.id, "-c"]);
            command.arg(self.layout.server_properties(*id));
            formatting.push(self.process(command, &format!("format-{id}"))?);
        }
        formatting.iter_mut().try_for_each(|process| process.wait_success(START_LIMIT))
    }

    fn launch(&self, id: i32) -> Result<()> {
        let mut command = process::java(HEAP_MB, &self.kafka.classpath(), "kafka.Kafka")?;
        command.arg(self.layout.server_properties(id));
        let process = self.process(command, &format!("broker-{id}"))?;
        *self.node(id)?.lock() = Some(Running { process, paused: false });
        Ok(())
    }

    fn process(&self, command: std::process::Command, name: &str) -> Result<Process> {
        let log = self.layout.log(name);
        Process::start(command, &format!("{name} of {}", self.name), &self.layout.root, log)
    }

    /// Returns when every answering broker lists all of `expected`; fails as soon as one of the processes has ended.
    fn wait_until_serving(&self, expected: &[i32]) -> Result<()> {
        let what = format!("{} to serve", self.name);
        poll(&what, START_LIMIT, || {
            self.check_alive(expected)?;
            for (id, address) in self.answering() {
                if let Err(reason) = self.probe(address, expected) {
                    return Ok(Err(format!("broker {id}: {reason}")));
                }
            }
            Ok(Ok(()))
        })
    }

    fn check_alive(&self, ids: &[i32]) -> Result<()> {
        if let Some(zookeeper) = &self.zookeeper {
            lock(&zookeeper.process).check_alive()?;
        }
        for id in ids {
            if let Some(running) = self.node(*id)?.lock().as_mut() {
                running.process.check_alive()?;
            }
        }
        Ok(())
    }

    fn probe(&self, address: SocketAddr, expected: &[i32]) -> std::result::Result<(), String> {
        let ask = || {
            let mut connection = Connection::open(address, CALL_LIMIT)?;
            connection.api_versions()?;
            let metadata = connection.metadata(Some(&[]))?;
            let complete = expected.iter().all(|id| metadata.brokers.contains(id));
            if !complete || metadata.controller_id < 0 {
                return Ok(Some(metadata));
            }
            if self.warm_coordinator {
                connection.find_group_coordinator(PROBE_GROUP)?;
            }
            Ok(None)
        };
        match ask() {
            Ok(None) => Ok(()),
            Ok(Some(Metadata { brokers, controller_id, .. })) => {
                Err(format!("knows brokers {brokers:?} and controller {controller_id}"))
            }
            Err::<_, HarnessError>(error) => Err(error.to_string()),
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for node in self.nodes.values() {
            drop(node.lock().take());
        }
        drop(self.zookeeper.take());
        self.layout.clean();
    }
}

impl Node {
    fn new(plan: NodePlan) -> Self {
        let NodePlan { ports, votes, leases } = plan;
        Self { ports, votes, running: Mutex::new(None), leases }
    }

    fn address(&self) -> SocketAddr {
        loopback(self.ports.get(INTERNAL).copied().unwrap_or_default())
    }

    fn lock(&self) -> MutexGuard<'_, Option<Running>> {
        lock(&self.running)
    }
}

impl ZooKeeper {
    /// Brokers may start at the same time: they wait for it.
    fn start(kafka: &Kafka, layout: &Layout, lease: PortLease) -> Result<Self> {
        let class = "org.apache.zookeeper.server.quorum.QuorumPeerMain";
        let mut command = process::java(SIDE_HEAP_MB, &kafka.classpath(), class)?;
        command.arg(layout.zookeeper_properties());
        let process = Process::start(command, "zookeeper", &layout.root, layout.log("zookeeper"))?;
        Ok(Self { address: loopback(lease.port()), process: Mutex::new(process), _lease: lease })
    }

    /// A broker that was killed has a session for some more seconds, and a new one of its id would end at once.
    fn wait_until_gone(&self, id: i32) -> Result<()> {
        let path = format!("/brokers/ids/{id}");
        poll(&format!("the end of the session of broker {id}"), START_LIMIT, || {
            Ok(match self.sessions() {
                Ok(text) if text.lines().any(|line| line.trim() == path) => {
                    Err("it is still there".to_owned())
                }
                Ok(_) => Ok(()),
                Err(error) => Err(error.to_string()),
            })
        })
    }

    /// What the `dump` command says: the ephemeral nodes of every session.
    fn sessions(&self) -> std::io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&self.address, CALL_LIMIT)?;
        stream.set_read_timeout(Some(CALL_LIMIT))?;
        stream.write_all(b"dump")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        if text.contains("Session") { Ok(text) } else { Err(std::io::Error::other(text)) }
    }
}

/// Asks until the answer is yes (`Ok(Ok)`); an inner error says why not yet, an outer one ends the wait.
pub(crate) fn poll<T>(
    what: &str,
    limit: Duration,
    mut ask: impl FnMut() -> Result<std::result::Result<T, String>>,
) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        match ask()? {
            Ok(value) => return Ok(value),
            Err(last) if Instant::now() >= deadline => {
                return Err(HarnessError::Timeout { what: what.to_owned(), after: limit, last });
            }
            Err(_) => thread::sleep(POLL),
        }
    }
}

/// A panic in one test thread must not keep another from stopping its brokers.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn loopback(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}
