//! What the proxy knows of the two physical clusters, and the addresses under which it presents their brokers.

mod topology;

pub use topology::{ApiRanges, BrokerAddress, PartitionInfo, TopicInfo, Topology};

use crate::ids::VirtualNode;
use std::collections::BTreeMap;

/// The proxy's own addresses: one port per virtual node (RULES R32), all on one advertised host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeMap {
    pub host: String,
    pub ports: BTreeMap<VirtualNode, u16>,
}

impl NodeMap {
    #[must_use]
    pub fn port(&self, node: VirtualNode) -> Option<u16> {
        self.ports.get(&node).copied()
    }
}
