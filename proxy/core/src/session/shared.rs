//! What all sessions share: the gates, the watermarks seen, and who still uses companions.

use super::changes::TopicChanges;
use super::transactions::TransactionRegistry;
use crate::ids::{ClusterSide, NativeOffset};
use crate::producer::gate::{GateSignal, PartitionGate, SessionId};
use crate::timeline::LogStarts;
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

/// Leaves each gate a trillion numbers, and room for sixteen million deletions of topics.
const FORGOTTEN_SHIFT: u32 = 40;

/// One partition's gate, shared by every session that produces to it.
pub type SharedGate = Arc<Mutex<PartitionGate>>;

/// Locks; a panic of another holder does not spread (the gate's invariants hold between its methods).
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The gates of all partitions produced to since the start, or restored from the store.
#[derive(Default)]
pub struct GateRegistry {
    gates: RwLock<HashMap<(Arc<str>, i32), SharedGate>>,
    /// How often a topic was forgotten: numbers of its gates are those of no gate before.
    forgotten: AtomicU64,
}

impl GateRegistry {
    /// The gate of a partition of a topic by its virtual name. Callers have checked that the partition exists.
    pub fn get(&self, topic: &Arc<str>, partition: i32) -> SharedGate {
        let key = (Arc::clone(topic), partition);
        if let Some(gate) = self.gates.read().unwrap_or_else(PoisonError::into_inner).get(&key) {
            return Arc::clone(gate);
        }
        let mut gates = self.gates.write().unwrap_or_else(PoisonError::into_inner);
        let first = self.forgotten.load(Ordering::Relaxed) << FORGOTTEN_SHIFT;
        let gate = || Arc::new(Mutex::new(PartitionGate::numbered_from(first)));
        Arc::clone(gates.entry(key).or_insert_with(gate))
    }

    /// Puts a restored gate in place, before any session runs.
    pub fn restore(&self, topic: &Arc<str>, partition: i32, gate: PartitionGate) {
        let mut gates = self.gates.write().unwrap_or_else(PoisonError::into_inner);
        gates.insert((Arc::clone(topic), partition), Arc::new(Mutex::new(gate)));
    }

    /// A session has ended without telling what became of its batches. Whom that wakes, and whether a gate is drained now.
    pub fn abandon(&self, session: SessionId, now_ms: i64) -> GateSignal {
        let mut all = GateSignal::default();
        for gate in self.gates.read().unwrap_or_else(PoisonError::into_inner).values() {
            let signal = lock(gate).abandon(now_ms, session);
            all.wake.extend(signal.wake);
            all.drained |= signal.drained;
        }
        all
    }

    /// Forgets a topic's gates. Batches in flight of it are of a log that is gone.
    fn forget(&self, topic: &str) {
        self.forgotten.fetch_add(1, Ordering::Relaxed);
        self.gates.write().unwrap_or_else(PoisonError::into_inner).retain(|(t, _), _| **t != *topic);
    }

    /// All gates of a topic, by partition.
    #[must_use]
    pub fn of_topic(&self, topic: &str) -> BTreeMap<i32, SharedGate> {
        let gates = self.gates.read().unwrap_or_else(PoisonError::into_inner);
        gates.iter().filter(|((t, _), _)| **t == *topic).map(|((_, p), g)| (*p, Arc::clone(g))).collect()
    }
}

/// The highest ends clients may already have seen, per partition, in virtual offsets: what an answer from an older
/// era carries (RULES R21), and the highest virtual epoch handed out (RULES R22).
#[derive(Default)]
pub struct SeenRegistry {
    seen: RwLock<HashMap<(Arc<str>, i32), Seen>>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    pub high_watermark: i64,
    pub last_stable_offset: i64,
    pub epoch: i32,
}

impl SeenRegistry {
    pub fn get(&self, topic: &Arc<str>, partition: i32) -> Option<Seen> {
        let seen = self.seen.read().unwrap_or_else(PoisonError::into_inner);
        seen.get(&(Arc::clone(topic), partition)).copied()
    }

    /// Raises what is known; never lowers it.
    pub fn raise(&self, topic: &Arc<str>, partition: i32, seen: Seen) {
        let known = self.get(topic, partition).unwrap_or_default();
        let raised = Seen {
            high_watermark: known.high_watermark.max(seen.high_watermark),
            last_stable_offset: known.last_stable_offset.max(seen.last_stable_offset),
            epoch: known.epoch.max(seen.epoch),
        };
        if raised != known {
            let mut all = self.seen.write().unwrap_or_else(PoisonError::into_inner);
            let entry = all.entry((Arc::clone(topic), partition)).or_default();
            entry.high_watermark = entry.high_watermark.max(raised.high_watermark);
            entry.last_stable_offset = entry.last_stable_offset.max(raised.last_stable_offset);
            entry.epoch = entry.epoch.max(raised.epoch);
        }
    }
}

/// The native log starts of both sides, as last told by brokers; they only rise.
#[derive(Default)]
pub struct LogStartRegistry {
    known: RwLock<HashMap<(Arc<str>, i32), LogStarts>>,
}

impl LogStartRegistry {
    #[must_use]
    pub fn get(&self, topic: &Arc<str>, partition: i32) -> LogStarts {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        known.get(&(Arc::clone(topic), partition)).copied().unwrap_or_default()
    }

    pub fn note(&self, topic: &Arc<str>, partition: i32, side: ClusterSide, start: NativeOffset) {
        if self.get(topic, partition)[side.index()].is_some_and(|known| known >= start) {
            return;
        }
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        let entry = &mut known.entry((Arc::clone(topic), partition)).or_default()[side.index()];
        *entry = (*entry).max(Some(start));
    }
}

/// Old logs that end below the boundary at which they were sealed: an unclean election has cut records off (RULES R21).
#[derive(Default)]
pub struct TruncationRegistry {
    /// By side, as log starts.
    ends: RwLock<HashMap<(Arc<str>, i32), LogStarts>>,
}

impl TruncationRegistry {
    /// The end of a side's log where it is too low; what lies between it and the boundary is gone.
    #[must_use]
    pub fn get(&self, topic: &Arc<str>, partition: i32, side: ClusterSide) -> Option<NativeOffset> {
        let ends = self.ends.read().unwrap_or_else(PoisonError::into_inner);
        ends.get(&(Arc::clone(topic), partition)).and_then(|ends| ends[side.index()])
    }

    /// `None` when the log is whole.
    pub fn note(&self, topic: &Arc<str>, partition: i32, side: ClusterSide, end: Option<NativeOffset>) {
        if self.get(topic, partition, side) == end {
            return;
        }
        let mut ends = self.ends.write().unwrap_or_else(PoisonError::into_inner);
        ends.entry((Arc::clone(topic), partition)).or_default()[side.index()] = end;
    }

    fn forget(&self, topic: &str) {
        self.ends.write().unwrap_or_else(PoisonError::into_inner).retain(|(t, _), _| **t != *topic);
    }
}

/// Who used what lately: the evidence for the plan and for "may I stop the source?".
#[derive(Default)]
pub struct Traffic {
    topics: Mutex<HashMap<Arc<str>, TopicTraffic>>,
}

/// What was seen of one topic. Times are milliseconds of the caller's monotonic clock.
#[derive(Clone, Debug, Default)]
pub struct TopicTraffic {
    /// Sessions whose produce to the topic went by a companion, with the last time.
    pub companion_produce: BTreeMap<SessionId, i64>,
    /// Sessions whose fetch of the topic went by a companion, with the last time.
    pub companion_fetch: BTreeMap<SessionId, i64>,
    /// Sessions that produced to it directly, with the last time.
    pub direct_produce: BTreeMap<SessionId, i64>,
}

impl Traffic {
    /// Updates what is known of a topic.
    pub fn note(&self, topic: &Arc<str>, update: impl FnOnce(&mut TopicTraffic)) {
        let mut topics = lock(&self.topics);
        update(topics.entry(Arc::clone(topic)).or_default());
    }

    #[must_use]
    pub fn of_topic(&self, topic: &str) -> TopicTraffic {
        lock(&self.topics).get(topic).cloned().unwrap_or_default()
    }

    /// A session has ended.
    pub fn forget(&self, session: SessionId) {
        for traffic in lock(&self.topics).values_mut() {
            traffic.companion_produce.remove(&session);
            traffic.companion_fetch.remove(&session);
            traffic.direct_produce.remove(&session);
        }
    }
}

/// What all sessions share.
#[derive(Default)]
pub struct Shared {
    pub gates: GateRegistry,
    pub seen: SeenRegistry,
    pub log_starts: LogStartRegistry,
    pub truncations: TruncationRegistry,
    pub traffic: Traffic,
    pub groups: crate::group::GroupRegistry,
    pub changes: TopicChanges,
    pub transactions: TransactionRegistry,
}

impl Shared {
    /// Forgets what was learnt of a topic that is deleted: one that is created again under the name has another log.
    pub fn forget_topic(&self, topic: &str) {
        self.gates.forget(topic);
        self.seen.seen.write().unwrap_or_else(PoisonError::into_inner).retain(|(t, _), _| **t != *topic);
        self.truncations.forget(topic);
        self.log_starts
            .known
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|(t, _), _| **t != *topic);
        lock(&self.traffic.topics).remove(topic);
        self.groups.forget_topic(topic);
        self.transactions.forget_topic(topic);
    }
}
