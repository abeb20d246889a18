//! The proxy's store: what was durable when the process ended is what the next one finds. Timelines and carry are kept in
//! their stored form, so that a restart reads what a flip wrote.

use crossover_core::ids::ClusterSide;
use crossover_core::producer::carry::Carry;
use crossover_core::producer::transaction::TransactionTable;
use crossover_core::timeline::Timeline;
use std::sync::Arc;

#[derive(Clone, Debug)]
pub(crate) struct StoredTopic {
    pub(crate) owner: ClusterSide,
    timelines: Vec<Vec<u8>>,
    carry: Vec<Vec<u8>>,
}

impl StoredTopic {
    pub(crate) fn new(owner: ClusterSide, parts: &[(Arc<Timeline>, Carry)]) -> StoredTopic {
        let timelines = parts.iter().map(|(timeline, _)| timeline.encode()).collect();
        let carry = parts.iter().map(|(_, carry)| carry.encode()).collect();
        StoredTopic { owner, timelines, carry }
    }

    pub(crate) fn read(&self) -> Vec<(Arc<Timeline>, Carry)> {
        let parts = self.timelines.iter().zip(&self.carry);
        let read = parts.map(|(timeline, carry)| {
            let timeline = Timeline::decode(timeline).expect("a timeline that was encoded");
            (Arc::new(timeline), Carry::decode(carry).expect("a carry that was encoded"))
        });
        read.collect()
    }
}

/// What is durable.
#[derive(Clone, Debug, Default)]
pub(crate) struct Disk {
    pub(crate) revision: u64,
    pub(crate) topic: Option<StoredTopic>,
    /// By partition: what clients have deleted.
    pub(crate) floors: Vec<i64>,
    pub(crate) intent: bool,
    /// Where transactional ids are at home.
    pub(crate) transactions: Arc<TransactionTable>,
    /// Set while a process runs: the next one finds out that this one was killed.
    pub(crate) running: bool,
}
