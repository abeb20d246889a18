//! Brokers that were away when a connection to them was last tried, or that ended one.
//!
//! A client whose broker has died is refused at its next attempt, and looks elsewhere. One that is accepted in the
//! broker's place, sends, and is cut off has used up an attempt: `kafka-console-producer` has four, and a broker's
//! successors lead only when its session is over (9 s). So a node refuses while its broker does, as long as there are
//! others; and it hangs up on the clients that it has, as the broker did. A whole cluster that is away is stood in for:
//! topics of the other one go on.

use crate::control::client;
use crate::runtime::{ControlEvent, Runtime};
use crossover_core::ids::VirtualNode;
use crossover_core::node::BrokerAddress;
use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// At most as many as there are brokers.
#[derive(Debug, Default)]
pub(crate) struct Missing(Mutex<HashSet<VirtualNode>>);

impl Missing {
    pub(crate) fn lost(&self, node: VirtualNode) {
        self.all().insert(node);
    }

    pub(crate) fn found(&self, node: VirtualNode) {
        self.all().remove(&node);
    }

    fn is_suspected(&self, node: VirtualNode) -> bool {
        self.all().contains(&node)
    }

    fn all(&self) -> MutexGuard<'_, HashSet<VirtualNode>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a client that connects to `node` is refused, as its broker would. Costs connections only where the last one ended
/// badly.
pub(crate) async fn refuses(runtime: &Runtime, node: VirtualNode) -> bool {
    if !runtime.missing.is_suspected(node) {
        return false;
    }
    let snapshot = runtime.snapshot();
    let topology = snapshot.topology(node.side);
    let Some(own) = topology.address(node.broker).filter(|_| topology.reachable) else { return false };
    if accepts(runtime, own).await {
        runtime.missing.found(node);
        return false;
    }
    let _ = runtime.control.try_send(ControlEvent::Refresh(node.side));
    // What is known of the others may be from before the whole cluster went.
    for (id, other) in &topology.brokers {
        if *id != node.broker && accepts(runtime, other).await {
            return true;
        }
    }
    false
}

async fn accepts(runtime: &Runtime, at: &BrokerAddress) -> bool {
    client::connect(&(at.host.clone(), at.port), runtime.config.timeouts.connect).await.is_ok()
}
