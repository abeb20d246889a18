//! What every task of the process shares: the published snapshot, the core's shared state, the sessions, the clock.

use crate::missing::Missing;
use crate::telemetry::Metrics;
use crate::upstream::UpstreamEvent;
use crate::warned::Warned;
use arc_swap::ArcSwap;
use crossover_config::Config;
use crossover_core::ids::{ClusterSide, VirtualNode};
use crossover_core::producer::gate::SessionId;
use crossover_core::route::Snapshot;
use crossover_core::session::{ClientIdentity, CommitMirror, Errand, Shared, Ticket};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::{Notify, mpsc, watch};

/// What connections tell the control tasks. Bounded: what does not fit is dropped where that is harmless (a refresh
/// that is already asked for) and counted where it is not (a mirrored commit, which the next commit repeats).
#[derive(Debug)]
pub(crate) enum ControlEvent {
    /// The topology of this side is out of date.
    Refresh(ClusterSide),
    /// A batch was acknowledged outside of its era.
    StrayAppend {
        topic: Arc<str>,
        partition: i32,
        side: ClusterSide,
        native: crossover_core::ids::NativeOffset,
    },
    /// Commits at a group's home, for the other side.
    Mirror(Vec<CommitMirror>),
    /// What an operation of a connection waits for. One that found no room is told so.
    Errand { ticket: Ticket, errand: Errand, asker: mpsc::Sender<UpstreamEvent> },
}

/// Shared by all tasks of one process.
pub(crate) struct Runtime {
    pub(crate) config: Config,
    /// Loaded once per event, published whole by [`Runtime::publish`].
    snapshot: ArcSwap<Snapshot>,
    published: watch::Sender<u64>,
    pub(crate) shared: Shared,
    pub(crate) sessions: Sessions,
    pub(crate) metrics: Metrics,
    /// Of what clients send that is not Kafka.
    pub(crate) warned: Warned,
    pub(crate) missing: Missing,
    pub(crate) control: mpsc::Sender<ControlEvent>,
    /// A fenced partition has become quiet: the flip looks at its gates again.
    pub(crate) drained: Notify,
    started: Instant,
    started_unix_ms: i64,
}

impl Runtime {
    /// `first` is the snapshot to serve with; the receiver is for the control tasks.
    pub(crate) fn new(config: Config, first: Snapshot) -> (Arc<Runtime>, mpsc::Receiver<ControlEvent>) {
        let (control, events) = mpsc::channel(4096);
        let runtime = Runtime {
            config,
            snapshot: ArcSwap::from_pointee(first),
            published: watch::Sender::new(0),
            shared: Shared::default(),
            sessions: Sessions::default(),
            metrics: Metrics::default(),
            warned: Warned::default(),
            missing: Missing::default(),
            control,
            drained: Notify::new(),
            started: Instant::now(),
            started_unix_ms: unix_ms(),
        };
        (Arc::new(runtime), events)
    }

    pub(crate) fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshot.load_full()
    }

    /// Puts a new snapshot in place and lets every session look again.
    pub(crate) fn publish(&self, snapshot: Snapshot) {
        self.snapshot.store(Arc::new(snapshot));
        self.published.send_modify(|n| *n += 1);
        self.sessions.wake_all();
    }

    /// Changes with every [`Runtime::publish`]: the listener follows the node map by it.
    pub(crate) fn watch_published(&self) -> watch::Receiver<u64> {
        self.published.subscribe()
    }

    /// The `now_ms` of the core: Unix milliseconds at the start plus the monotonic clock since, so that it never goes
    /// back in a process and yet means the same in what is stored.
    pub(crate) fn now_ms(&self) -> i64 {
        self.started_unix_ms
            .saturating_add(i64::try_from(self.started.elapsed().as_millis()).unwrap_or(i64::MAX))
    }
}

fn unix_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// The live client connections.
#[derive(Default)]
pub(crate) struct Sessions {
    next: AtomicU64,
    live: Mutex<HashMap<SessionId, SessionHandle>>,
}

/// One client connection, as others see it.
#[derive(Clone)]
pub(crate) struct SessionHandle {
    pub(crate) node: VirtualNode,
    /// Notified to make the session take an `Event::Wake` with the latest snapshot.
    pub(crate) wake: Arc<Notify>,
    /// Updated by the connection when it learns more.
    pub(crate) client: Arc<Mutex<ClientIdentity>>,
}

impl Sessions {
    pub(crate) fn next_id(&self) -> SessionId {
        SessionId(self.next.fetch_add(1, Ordering::Relaxed))
    }

    pub(crate) fn add(&self, id: SessionId, handle: SessionHandle) {
        self.lock().insert(id, handle);
    }

    pub(crate) fn remove(&self, id: SessionId) {
        self.lock().remove(&id);
    }

    pub(crate) fn get(&self, id: SessionId) -> Option<SessionHandle> {
        self.lock().get(&id).cloned()
    }

    pub(crate) fn len(&self) -> usize {
        self.lock().len()
    }

    pub(crate) fn wake(&self, ids: &[SessionId]) {
        let live = self.lock();
        ids.iter().filter_map(|id| live.get(id)).for_each(|handle| handle.wake.notify_one());
    }

    pub(crate) fn wake_all(&self) {
        self.lock().values().for_each(|handle| handle.wake.notify_one());
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<SessionId, SessionHandle>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
