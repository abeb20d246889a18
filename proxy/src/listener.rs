//! The addresses clients connect to: the bootstrap address and one port per virtual node.

use crate::connection;
use crate::missing;
use crate::runtime::Runtime;
use crate::shutdown::ShutdownReceiver;
use anyhow::Context;
use crossover_core::ids::{ClusterSide, VirtualNode};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tracing::{error, warn};

/// What a listener presents.
#[derive(Clone, Copy)]
enum Presents {
    /// Any live broker: clients come here to learn the others.
    Bootstrap,
    Node(VirtualNode),
}

/// All listening sockets of the process.
pub(crate) struct Listeners {
    runtime: Arc<Runtime>,
    shutdown: ShutdownReceiver,
    bootstrap: Option<TcpListener>,
    nodes: BTreeMap<VirtualNode, Option<TcpListener>>,
}

impl Listeners {
    /// Binds the bootstrap address and the ports of all nodes known so far.
    ///
    /// # Errors
    /// An address cannot be bound.
    pub(crate) async fn bind(runtime: Arc<Runtime>, shutdown: ShutdownReceiver) -> anyhow::Result<Listeners> {
        let address = &runtime.config.listener.bootstrap;
        let bootstrap = bind(&address.host, address.port, BOOTSTRAP).await?;
        warn_of_kept_ports(&runtime);
        let mut listeners = Listeners {
            runtime: Arc::clone(&runtime),
            shutdown,
            bootstrap: Some(bootstrap),
            nodes: BTreeMap::new(),
        };
        for (node, port) in runtime.snapshot().nodes.ports.clone() {
            let listener = bind(&runtime.config.listener.bootstrap.host, port, NODE).await?;
            listeners.nodes.insert(node, Some(listener));
        }
        Ok(listeners)
    }

    /// Accepts until shutdown, follows new nodes, then waits for the open connections.
    pub(crate) async fn run(mut self) {
        let mut published = self.runtime.watch_published();
        let mut acceptors = JoinSet::new();
        let open = Arc::new(AtomicUsize::new(0));
        if let Some(listener) = self.bootstrap.take() {
            acceptors.spawn(accept(
                Arc::clone(&self.runtime),
                listener,
                Presents::Bootstrap,
                Arc::clone(&open),
                self.shutdown.clone(),
            ));
        }
        loop {
            self.bind_new_nodes().await;
            for (node, listener) in &mut self.nodes {
                if let Some(listener) = listener.take() {
                    acceptors.spawn(accept(
                        Arc::clone(&self.runtime),
                        listener,
                        Presents::Node(*node),
                        Arc::clone(&open),
                        self.shutdown.clone(),
                    ));
                }
            }
            let mut shutdown = self.shutdown.clone();
            tokio::select! {
                () = shutdown.requested() => break,
                changed = published.changed() => if changed.is_err() { break },
            }
        }
        acceptors.shutdown().await;
        let deadline = tokio::time::Instant::now() + self.runtime.config.timeouts.shutdown;
        while open.load(Ordering::Relaxed) > 0 && tokio::time::Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// A node that vanished keeps its listener until the end: its clients may still be there.
    async fn bind_new_nodes(&mut self) {
        for (node, port) in self.runtime.snapshot().nodes.ports.clone() {
            if self.nodes.contains_key(&node) {
                continue;
            }
            match bind(&self.runtime.config.listener.bootstrap.host, port, NODE).await {
                Ok(listener) => {
                    self.nodes.insert(node, Some(listener));
                }
                Err(problem) => error!("{problem:#}"),
            }
        }
    }
}

/// What an address is for, and what can be done where it is taken.
type Purpose = (&'static str, &'static str);
const BOOTSTRAP: Purpose = ("listener.bootstrap", "free the port, or choose another in the configuration");
/// A broker keeps the port it was given, for clients know it (RULES R32).
const NODE: Purpose =
    ("listener.node_ports", "free the port: a broker has it since it was first seen, and clients know it");

async fn bind(host: &str, port: u16, (field, remedy): Purpose) -> anyhow::Result<TcpListener> {
    let listener = TcpListener::bind((host, port)).await;
    listener.with_context(|| format!("{field}: cannot listen on {host}:{port}; {remedy}"))
}

/// The configuration may name another range than the one that brokers have their ports from.
fn warn_of_kept_ports(runtime: &Runtime) {
    let range = runtime.config.listener.node_ports;
    let snapshot = runtime.snapshot();
    let ports = snapshot.nodes.ports.values();
    let kept: Vec<u16> = ports.copied().filter(|port| !range.contains(*port)).collect();
    if !kept.is_empty() {
        warn!(
            "listener.node_ports {}-{} is for brokers that are added; those that are known keep their ports {kept:?}, which clients know: let clients through to these too",
            range.first, range.last
        );
    }
}

async fn accept(
    runtime: Arc<Runtime>,
    listener: TcpListener,
    presents: Presents,
    open: Arc<AtomicUsize>,
    shutdown: ShutdownReceiver,
) {
    let mut turn = 0;
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(problem) => {
                // Out of file descriptors, as a rule: the others must end before more can come.
                warn!(%problem, "cannot accept");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        turn += 1;
        let node = match presents {
            Presents::Node(node) => Some(node),
            Presents::Bootstrap => live_node(&runtime, turn),
        };
        let Some(node) = node else { continue };
        let count = OpenCount::new(Arc::clone(&open));
        if open.load(Ordering::Relaxed) > runtime.config.listener.max_connections {
            runtime.metrics.connections_refused.add(1);
            continue;
        }
        let (runtime, shutdown) = (Arc::clone(&runtime), shutdown.clone());
        tokio::spawn(async move {
            if matches!(presents, Presents::Node(_)) && missing::refuses(&runtime, node).await {
                return;
            }
            connection::serve(runtime, stream, node, peer, shutdown).await;
            drop(count);
        });
    }
}

/// A broker for a client that has not chosen one: of a reachable side, the default side first.
fn live_node(runtime: &Runtime, turn: usize) -> Option<VirtualNode> {
    let snapshot = runtime.snapshot();
    let default = snapshot.routes.rules.default_side;
    let alive = |side: &ClusterSide| {
        let topology = snapshot.topology(*side);
        topology.reachable && !topology.brokers.is_empty()
    };
    let side = [default, default.other()].into_iter().find(alive)?;
    let brokers = &snapshot.topology(side).brokers;
    let broker = brokers.keys().nth(turn % brokers.len())?;
    Some(VirtualNode::new(side, *broker))
}

/// Counts a connection as long as it lives, also when its task panics.
struct OpenCount(Arc<AtomicUsize>);

impl OpenCount {
    fn new(open: Arc<AtomicUsize>) -> OpenCount {
        open.fetch_add(1, Ordering::Relaxed);
        OpenCount(open)
    }
}

impl Drop for OpenCount {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
