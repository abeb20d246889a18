//! The control tasks: they follow both clusters, publish snapshots, run flips and answer the operators.

mod backend;
mod boundary;
pub(crate) mod client;
mod errand;
mod failpoint;
mod flip;
mod group_move;
pub(crate) mod history;
mod mirror;
mod offset_move;
mod plan;
mod publisher;
mod records;
mod seed;
pub(crate) mod state_copy;
mod takeover;
#[cfg(test)]
mod testing;
pub(crate) mod topology;
mod transaction_move;
mod transactions;
mod uncertain;
mod unknown;
mod watch;
pub(crate) mod writers;

pub(crate) use backend::AdminBackend;
pub(crate) use publisher::core_side;

use crate::runtime::{ControlEvent, Runtime};
use crate::store::{Floors, Restored, Store, StoredTopic};
use client::Client;
use crossover_admin_api::model::{Alarm, BoundaryView, Event, LedgerEntry, OperationState, OperationView};
use crossover_config::{Cluster, Config, Side};
use crossover_core::ids::{ClusterSide, Revision};
use crossover_core::node::Topology;
use crossover_core::producer::gate::PartitionGate;
use crossover_core::producer::transaction::TransactionTable;
use crossover_core::route::Snapshot;
use crossover_core::session::TopicChanges;
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{Notify, broadcast, mpsc};

/// Past operations that are remembered for `GET /v1/operations/{id}`.
const OPERATIONS_MAX: usize = 200;

const ABORT_POSSIBLE: u8 = 0;
const ABORT_ASKED: u8 = 1;
const ABORT_TOO_LATE: u8 = 2;

/// What the route table is made of.
pub(crate) struct State {
    pub(crate) revision: Revision,
    pub(crate) topologies: [Arc<Topology>; 2],
    pub(crate) topics: BTreeMap<Arc<str>, StoredTopic>,
    pub(crate) homes: BTreeMap<Arc<str>, ClusterSide>,
    pub(crate) offset_homes: BTreeMap<Arc<str>, ClusterSide>,
    pub(crate) moving: BTreeMap<Arc<str>, ClusterSide>,
    /// Shared with snapshots, which hold it as it was.
    pub(crate) transactions: Arc<TransactionTable>,
    pub(crate) preparing: BTreeSet<Arc<str>>,
    /// Another process has the pair of clusters (RULES R31).
    pub(crate) taken_over: bool,
    pub(crate) ports: BTreeMap<(ClusterSide, i32), u16>,
    pub(crate) cluster_ids: [Option<String>; 2],
    /// Below which nothing shows (RULES R25).
    pub(crate) floors: Floors,
    /// The timelines that what sessions share was learnt of, by topic.
    pub(crate) timeline_ids: BTreeMap<Arc<str>, u64>,
}

/// Shared by the control tasks.
pub(crate) struct Control {
    pub(crate) runtime: Arc<Runtime>,
    pub(crate) client: Client,
    /// Connections for what is read under the fence: nothing else may be in its way there, and three questions are put
    /// side by side.
    pub(crate) boundary_clients: [Client; 3],
    pub(crate) store: Arc<Store>,
    /// Somebody found the topology of a side out of date.
    pub(crate) refresh: [Notify; 2],
    /// At the metadata of each side, so far.
    looks: [AtomicUsize; 2],
    /// The store has changed: the copy on a side is out of date.
    pub(crate) store_changed: [Notify; 2],
    state: Mutex<State>,
    closed: Mutex<seed::Closed>,
    problems: Mutex<[Option<String>; 2]>,
    /// Held while commits of a group are written: a mirrored commit must not overwrite the copy of a move.
    commits: tokio::sync::Mutex<()>,
    /// Held while what is stored of a topic's partitions changes outside of a flip.
    shapes: tokio::sync::Mutex<()>,
    /// What shows brokers that this is the latest process of the pair.
    claim_of_pair: tokio::sync::Mutex<Option<takeover::Claim>>,
    /// Held while a transactional id is moved.
    transactional_ids: transaction_move::Turns,
    /// Who is kept out of logs that have lost their ownership.
    writers: writers::Writers,
    /// Commits that are still to be copied to the side that is not their group's home.
    mirrors: Mutex<mirror::Pending>,
    /// Clients can connect.
    serving: AtomicBool,
    /// Since when the process runs, if the one before it did not end by itself (RULES R2).
    unclean_since_ms: Option<i64>,
    /// By name and subject.
    alarms: Mutex<BTreeMap<(String, String), Alarm>>,
    operations: Mutex<Vec<OperationView>>,
    running: Mutex<Option<String>>,
    /// One of the `ABORT_*`: an abort and SEAL exclude each other.
    abort: AtomicU8,
    events: broadcast::Sender<Event>,
    ledger_next: AtomicU64,
}

impl Control {
    /// # Errors
    /// The restored state does not fit.
    pub(crate) fn new(runtime: Arc<Runtime>, store: Store, restored: Restored) -> Arc<Control> {
        let timeouts = &runtime.config.timeouts;
        let new_client = || Client::new(timeouts.connect, timeouts.control_request);
        let (client, boundary_clients) = (new_client(), [(); 3].map(|()| new_client()));
        let state = State::from_restored(&restored);
        let mut closed = seed::Closed::default();
        for (topic, partition, mut carry) in restored.carry {
            let index = usize::try_from(partition).unwrap_or(usize::MAX);
            let era = state
                .topics
                .get(&topic)
                .and_then(|t| t.timelines.get(index))
                .map_or(0, |t| t.current().index);
            carry.set_limit(runtime.config.limits.carry_entries_max);
            let mut gate = PartitionGate::restored(era, carry);
            gate.fence();
            runtime.shared.gates.restore(&topic, partition, gate);
            closed.unseeded.insert((topic, partition));
        }
        let unclean_since_ms = restored.unclean.then(|| runtime.now_ms());
        Arc::new(Control {
            runtime,
            client,
            boundary_clients,
            store: Arc::new(store),
            refresh: [Notify::new(), Notify::new()],
            looks: [AtomicUsize::new(0), AtomicUsize::new(0)],
            store_changed: [Notify::new(), Notify::new()],
            state: Mutex::new(state),
            closed: Mutex::new(closed),
            problems: Mutex::new([None, None]),
            commits: tokio::sync::Mutex::new(()),
            shapes: tokio::sync::Mutex::new(()),
            claim_of_pair: tokio::sync::Mutex::new(None),
            transactional_ids: transaction_move::Turns::default(),
            writers: writers::Writers::new(restored.fences),
            mirrors: Mutex::new(mirror::Pending::default()),
            serving: AtomicBool::new(false),
            unclean_since_ms,
            alarms: Mutex::new(BTreeMap::new()),
            operations: Mutex::new(Vec::new()),
            running: Mutex::new(None),
            abort: AtomicU8::new(ABORT_POSSIBLE),
            events: broadcast::Sender::new(256),
            ledger_next: AtomicU64::new(restored.ledger_next),
        })
    }

    /// Starts the tasks that run as long as the process.
    pub(crate) fn start(self: &Arc<Control>, events: mpsc::Receiver<ControlEvent>) {
        for side in ClusterSide::BOTH {
            tokio::spawn(topology::follow(Arc::clone(self), side));
            tokio::spawn(state_copy::run(Arc::clone(self), side));
        }
        tokio::spawn(mirror::run(Arc::clone(self), events));
        tokio::spawn(watch::run(Arc::clone(self)));
        tokio::spawn(writers::run(Arc::clone(self)));
        tokio::spawn(seed::run(Arc::clone(self)));
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn pending_mirrors(&self) -> MutexGuard<'_, mirror::Pending> {
        self.mirrors.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn topology(&self, side: ClusterSide) -> Arc<Topology> {
        Arc::clone(&self.state().topologies[side.index()])
    }

    pub(crate) fn cluster_config(&self, side: ClusterSide) -> &Cluster {
        self.runtime.config.cluster(config_side(side))
    }

    /// What keeps a cluster from being reached, for the operator.
    pub(crate) fn problem(&self, side: ClusterSide, problem: Option<String>) {
        self.problems.lock().unwrap_or_else(PoisonError::into_inner)[side.index()] = problem;
    }

    pub(crate) fn problem_of(&self, side: ClusterSide) -> Option<String> {
        self.problems.lock().unwrap_or_else(PoisonError::into_inner)[side.index()].clone()
    }

    /// Raises an alarm, one per name and subject; it stays until the process ends or it is lifted, with the
    /// latest cause. True the
    /// first time.
    pub(crate) fn alarm(&self, name: &str, subject: &str, cause: String, remedy: &str) -> bool {
        let mut alarms = self.alarms.lock().unwrap_or_else(PoisonError::into_inner);
        let at = (name.to_owned(), subject.to_owned());
        if let Some(known) = alarms.get_mut(&at) {
            known.cause = cause;
            return false;
        }
        tracing::error!(name, cause, remedy, "alarm");
        self.event("alarm", None, format!("{name}: {cause}"));
        let since_ms = self.now();
        alarms.insert(at, Alarm { name: name.to_owned(), cause, remedy: remedy.to_owned(), since_ms });
        true
    }

    /// The subjects of an alarm.
    pub(crate) fn alarms_named(&self, name: &str) -> Vec<String> {
        let alarms = self.alarms.lock().unwrap_or_else(PoisonError::into_inner);
        alarms.keys().filter(|(n, _)| n == name).map(|(_, subject)| subject.clone()).collect()
    }

    /// Ends an alarm whose cause is seen to be gone.
    pub(crate) fn lift(&self, name: &str, subject: &str) {
        let mut alarms = self.alarms.lock().unwrap_or_else(PoisonError::into_inner);
        if alarms.remove(&(name.to_owned(), subject.to_owned())).is_some() {
            tracing::info!(name, subject, "the cause of the alarm is gone");
        }
    }

    pub(crate) fn alarms(&self) -> Vec<Alarm> {
        self.alarms.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// Unix milliseconds.
    pub(crate) fn now(&self) -> u64 {
        u64::try_from(self.runtime.now_ms()).unwrap_or(0)
    }

    pub(crate) fn event(&self, kind: &str, topic: Option<&str>, text: String) {
        let event = Event {
            at_ms: self.now(),
            kind: kind.to_owned(),
            topic: topic.map(str::to_owned),
            text,
            fields: Map::<String, Value>::new(),
        };
        // Nobody needs to be watching.
        let _ = self.events.send(event);
    }

    pub(crate) fn subscribe(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }

    /// A ledger entry with the next sequence; the caller stores it.
    pub(crate) fn entry(&self, kind: &str, operation: Option<&str>, text: String) -> LedgerEntry {
        LedgerEntry {
            sequence: self.ledger_next.fetch_add(1, Ordering::Relaxed),
            at_ms: self.now(),
            kind: kind.to_owned(),
            operation: operation.map(str::to_owned),
            revision: self.state().revision.0,
            from: None,
            to: None,
            boundary: None::<BoundaryView>,
            text,
        }
    }

    /// Runs a store call away from the tasks of the connections.
    pub(crate) async fn stored<T: Send + 'static>(
        &self,
        call: impl FnOnce(&Store) -> anyhow::Result<T> + Send + 'static,
    ) -> anyhow::Result<T> {
        let result = self.stored_quietly(call).await;
        self.store_changed.iter().for_each(Notify::notify_one);
        result
    }

    /// As [`Control::stored`], for what changes nothing.
    pub(crate) async fn stored_quietly<T: Send + 'static>(
        &self,
        call: impl FnOnce(&Store) -> anyhow::Result<T> + Send + 'static,
    ) -> anyhow::Result<T> {
        let store = Arc::clone(&self.store);
        tokio::task::spawn_blocking(move || call(&store)).await?
    }

    /// Claims the one place for an operation; `Err` names the one that has it.
    pub(crate) fn claim(&self, id: &str) -> Result<(), String> {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(other) = &*running {
            return Err(other.clone());
        }
        *running = Some(id.to_owned());
        self.abort.store(ABORT_POSSIBLE, Ordering::SeqCst);
        Ok(())
    }

    pub(crate) fn unclaim(&self) {
        *self.running.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    pub(crate) fn running(&self) -> Option<String> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// False when the operation is past SEAL.
    pub(crate) fn ask_abort(&self) -> bool {
        let result =
            self.abort.compare_exchange(ABORT_POSSIBLE, ABORT_ASKED, Ordering::SeqCst, Ordering::SeqCst);
        result != Err(ABORT_TOO_LATE)
    }

    pub(crate) fn is_abort_asked(&self) -> bool {
        self.abort.load(Ordering::SeqCst) == ABORT_ASKED
    }

    /// From here on an abort is refused. False when one was asked for before.
    pub(crate) fn pass_the_point_of_no_return(&self) -> bool {
        let result =
            self.abort.compare_exchange(ABORT_POSSIBLE, ABORT_TOO_LATE, Ordering::SeqCst, Ordering::SeqCst);
        result.is_ok()
    }

    /// Clients can connect from now on.
    pub(crate) fn set_serving(&self) {
        self.serving.store(true, Ordering::SeqCst);
    }

    pub(crate) fn is_serving(&self) -> bool {
        self.serving.load(Ordering::SeqCst)
    }

    /// Shows the operations of earlier processes.
    pub(crate) fn show_history(&self, entries: &[LedgerEntry]) {
        history::operations(entries).iter().for_each(|view| self.show(view));
    }

    /// Shows the newest state of an operation.
    pub(crate) fn show(&self, view: &OperationView) {
        let mut all = self.operations.lock().unwrap_or_else(PoisonError::into_inner);
        match all.iter_mut().find(|o| o.id == view.id) {
            Some(known) => known.clone_from(view),
            None => {
                // Groups that follow a flip are operations too, and may be many: the flip stays.
                let oldest = all.iter().position(|o| o.state.is_final());
                if let Some(oldest) = oldest.filter(|_| all.len() >= OPERATIONS_MAX) {
                    all.remove(oldest);
                }
                all.push(view.clone());
            }
        }
    }

    /// Tells those who watch of a step, with the reason where it is an abort.
    pub(crate) fn step_event(&self, view: &OperationView) {
        let reason = view.reason.as_ref().filter(|_| view.state.is_final());
        let why = reason.map(|reason| format!(": {reason}")).unwrap_or_default();
        let state = match view.state {
            OperationState::Aborted if view.failed().next().is_some() => "was refused".to_owned(),
            state => state.to_string(),
        };
        self.event("step", None, format!("{} {state}{why}", view.id));
    }

    /// The one that ended last.
    pub(crate) fn last_operation(&self) -> Option<OperationView> {
        let all = self.operations.lock().unwrap_or_else(PoisonError::into_inner);
        // Moves of groups that come along are operations too: of those that end at once the first to begin counts.
        all.iter().rev().filter(|o| o.state.is_final()).max_by_key(|o| o.finished_ms).cloned()
    }

    pub(crate) fn operation(&self, id: &str) -> Option<OperationView> {
        let all = self.operations.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter().find(|o| o.id == id).cloned()
    }
}

/// A side in the configuration's words.
fn config_side(side: ClusterSide) -> Side {
    match side {
        ClusterSide::Source => Side::Source,
        ClusterSide::Target => Side::Target,
    }
}

/// What is served before anything is known: nothing.
pub(crate) fn first_snapshot(config: &Config) -> Snapshot {
    publisher::snapshot(config, &State::from_restored(&Restored::default()), &TopicChanges::default())
}

impl State {
    fn from_restored(restored: &Restored) -> State {
        State {
            revision: Revision(restored.revision),
            topologies: ClusterSide::BOTH.map(|side| Arc::new(Topology::unknown(side))),
            topics: restored.topics.clone(),
            homes: restored.homes.clone(),
            offset_homes: restored.offset_homes.clone(),
            moving: BTreeMap::new(),
            transactions: Arc::new(restored.transactions.clone()),
            preparing: BTreeSet::new(),
            taken_over: false,
            ports: restored.ports.clone(),
            cluster_ids: restored.cluster_ids.clone(),
            floors: restored.floors.clone(),
            timeline_ids: BTreeMap::new(),
        }
    }
}
