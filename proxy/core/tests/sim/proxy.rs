//! The proxy's shell, as `connection.rs`, `publisher.rs` and `seed.rs` are it: it feeds sessions, carries out what they ask
//! for, publishes snapshots, and finds its way after a start.

use crate::bugs::Bug;
use crate::cluster::{BROKERS, Cluster, Log};
use crate::committer::group_of;
use crate::coverage::Seen;
use crate::store::Disk;
use crate::txn_move::described;
use crate::wire::{AUDIT, AUDIT_IDS, IDS, PRODUCE, TOPIC};
use crate::world::{Ev, MS, Shape, World, trace};
use bytes::Bytes;
use crossover_core::ids::{ClusterSide, Revision, TopicId, VirtualNode, VirtualOffset};
use crossover_core::node::{ApiRanges, BrokerAddress, NodeMap, PartitionInfo, TopicInfo, Topology};
use crossover_core::producer::gate::{PartitionGate, SessionId};
use crossover_core::producer::transaction::TransactionTable;
use crossover_core::route::{GroupTable, LinkMode, RouteRules, RouteTable, Snapshot, Timelines, TopicRoute};
use crossover_core::schema;
use crossover_core::session::{
    CloseReason, Effect, Errand, Event, Limits, Session, Shared, SharedGate, Ticket, lock,
};
use crossover_core::timeline::Timeline;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

/// As `connection.rs` has it.
const ORPHAN: u64 = 30_000 * MS;
/// How long a task may be preempted between loading a snapshot and asking a gate.
const STALE: u64 = 300;
/// As `seed.rs` has it.
const SEED_AGAIN: u64 = 100 * MS;

/// What is the same in every process.
struct Fixed {
    rules: Arc<RouteRules>,
    ranges: Arc<ApiRanges>,
    nodes: Arc<NodeMap>,
    name: Arc<str>,
    /// The topic that stays, where there is one.
    audit: Option<Arc<str>>,
    partitions: usize,
    groups: Arc<GroupTable>,
}

pub(crate) struct Proxy {
    pub(crate) up: bool,
    /// Counts the processes.
    pub(crate) incarnation: u32,
    pub(crate) shared: Shared,
    pub(crate) snapshot: Snapshot,
    /// The one before, which a connection's task may have loaded just before a new one was published, and since when.
    stale: Option<Snapshot>,
    published_at: u64,
    pub(crate) revision: u64,
    topologies: [Arc<Topology>; 2],
    /// Where a moved topic is.
    pub(crate) moved: Option<(ClusterSide, Vec<Arc<Timeline>>)>,
    /// Where transactional ids are at home.
    pub(crate) transactions: Arc<TransactionTable>,
    /// Whoever acts now has loaded what was published last.
    pub(crate) is_shown: bool,
    /// What clients have deleted, by partition.
    floors: Vec<i64>,
    pub(crate) preparing: bool,
    pub(crate) unseeded: BTreeSet<i32>,
    pub(crate) unsealed: bool,
    pub(crate) unclean_since_ms: Option<i64>,
    sessions: BTreeMap<SessionId, usize>,
    next_session: u64,
    refreshing: [bool; 2],
    fixed: Fixed,
}

impl Proxy {
    pub(crate) fn new(clusters: &[Cluster; 2], shape: &Shape) -> Proxy {
        let of = |key: i16| schema::request(key).map(|m| (key, (m.versions.min, m.versions.max)));
        let mut ports = BTreeMap::new();
        for side in ClusterSide::BOTH {
            for broker in 0..BROKERS {
                let node = VirtualNode::new(side, broker);
                ports.insert(node, 9100 + node.to_virtual() as u16);
            }
        }
        let homes = (0..shape.consumers).map(|consumer| (Arc::from(group_of(consumer)), shape.home));
        let fixed = Fixed {
            rules: Arc::new(RouteRules { default_side: ClusterSide::Source, rules: Vec::new() }),
            ranges: Arc::new(ApiRanges(schema::keys().iter().filter_map(|key| of(*key)).collect())),
            nodes: Arc::new(NodeMap { host: "proxy".to_owned(), ports }),
            name: Arc::from(TOPIC),
            audit: shape.audit.then(|| Arc::from(AUDIT)),
            partitions: shape.partitions as usize,
            groups: Arc::new(GroupTable { homes: homes.collect(), ..GroupTable::default() }),
        };
        let topologies = ClusterSide::BOTH.map(|side| Arc::new(topology(side, clusters, &fixed)));
        let transactions = Arc::default();
        let snapshot = snapshot(&fixed, 1, &topologies, None, (&[], &transactions), false);
        Proxy {
            up: true,
            incarnation: 0,
            shared: Shared::default(),
            snapshot,
            stale: None,
            published_at: 0,
            revision: 1,
            topologies,
            moved: None,
            transactions,
            is_shown: false,
            floors: vec![0; shape.partitions as usize],
            preparing: false,
            unseeded: BTreeSet::new(),
            unsealed: false,
            unclean_since_ms: None,
            sessions: BTreeMap::new(),
            next_session: 0,
            refreshing: [false; 2],
            fixed,
        }
    }

    pub(crate) fn session(&mut self, node: VirtualNode, hold_ms: i64, seed: u64) -> Session {
        let id = SessionId(self.next_session);
        self.next_session += 1;
        let limits =
            Limits { in_flight_requests_max: 100, buffered_bytes_max: 1 << 24, hold_ms_max: hold_ms };
        Session::new(id, node, "client".to_owned(), limits, seed)
    }

    pub(crate) fn name(&self) -> &Arc<str> {
        &self.fixed.name
    }

    pub(crate) fn gate(&self, partition: i32) -> SharedGate {
        self.shared.gates.get(&self.fixed.name, partition)
    }

    pub(crate) fn route(&self) -> Arc<TopicRoute> {
        self.route_of(TOPIC)
    }

    pub(crate) fn route_of(&self, topic: &str) -> Arc<TopicRoute> {
        Arc::clone(self.snapshot.routes.topic(topic).expect("a topic of the model"))
    }

    pub(crate) fn topology(&self, side: ClusterSide) -> &Topology {
        &self.topologies[side.index()]
    }

    /// Why produce is still held.
    pub(crate) fn held(&self) -> Option<String> {
        if self.unsealed || !self.unseeded.is_empty() {
            return Some("partitions are closed".to_owned());
        }
        let gates = self.shared.gates.of_topic(TOPIC);
        let busy = gates.iter().find(|(_, gate)| {
            let gate = lock(gate);
            gate.is_fenced() || gate.held() > 0
        });
        busy.map(|(partition, gate)| {
            let gate = lock(gate);
            format!("the gate of {partition} is fenced {} and holds {}", gate.is_fenced(), gate.held())
        })
    }
}

fn topology(side: ClusterSide, clusters: &[Cluster; 2], fixed: &Fixed) -> Topology {
    let cluster = &clusters[side.index()];
    let mut topology = Topology::unknown(side);
    for broker in (0..BROKERS).filter(|b| cluster.is_up(*b)) {
        let address = BrokerAddress { host: side.as_str().to_owned(), port: 9092, rack: None };
        topology.brokers.insert(broker, address);
    }
    let (moved, stays) = cluster.logs.split_at(fixed.partitions);
    let topics = [(Some(&fixed.name), IDS, moved), (fixed.audit.as_ref(), AUDIT_IDS, stays)];
    for (name, ids, logs) in topics {
        let Some(name) = name else { continue };
        let info = topic_info(name, TopicId(ids[side.index()]), logs);
        topology.topic_names.insert(info.id, Arc::clone(name));
        topology.topics.insert(Arc::clone(name), Arc::new(info));
    }
    topology.api_ranges = (*fixed.ranges).clone();
    topology.reachable = true;
    topology
}

fn topic_info(name: &Arc<str>, id: TopicId, logs: &[Log]) -> TopicInfo {
    let partitions = logs.iter().map(|log| PartitionInfo {
        leader: log.leader,
        epoch: log.epoch,
        replicas: vec![0, 1],
        isr: vec![0, 1],
    });
    TopicInfo { name: Arc::clone(name), id, internal: false, partitions: partitions.collect() }
}

fn snapshot(
    fixed: &Fixed,
    revision: u64,
    topologies: &[Arc<Topology>; 2],
    moved: Option<&(ClusterSide, Vec<Arc<Timeline>>)>,
    (floors, transactions): (&[i64], &Arc<TransactionTable>),
    preparing: bool,
) -> Snapshot {
    let mut route = fixed.rules.initial_route(&fixed.name, topologies);
    if let Some((owner, timelines)) = moved {
        route.owner = *owner;
        route.timelines = Timelines::PerPartition(timelines.clone());
    }
    for (partition, floor) in (0..).zip(floors).filter(|(_, floor)| **floor > 0) {
        route.raise_floor(partition, VirtualOffset(*floor));
    }
    assert_eq!(route.mode, LinkMode::Continue);
    let mut routes = RouteTable {
        rules: Arc::clone(&fixed.rules),
        names: HashMap::from([(route.virtual_id, Arc::clone(&fixed.name))]),
        topics: HashMap::from([(Arc::clone(&fixed.name), Arc::new(route))]),
        virtual_names: [HashMap::new(), HashMap::new()],
    };
    if let Some(audit) = &fixed.audit {
        let route = fixed.rules.initial_route(audit, topologies);
        routes.names.insert(route.virtual_id, Arc::clone(audit));
        routes.topics.insert(Arc::clone(audit), Arc::new(route));
    }
    let preparing: BTreeSet<Arc<str>> = preparing.then(|| Arc::clone(&fixed.name)).into_iter().collect();
    Snapshot {
        revision: Revision(revision),
        topologies: topologies.clone(),
        routes: Arc::new(routes),
        groups: Arc::clone(&fixed.groups),
        transactions: Arc::clone(transactions),
        taken_over: false,
        nodes: Arc::clone(&fixed.nodes),
        cluster_id: Arc::from("virtual"),
        advertised: Arc::clone(&fixed.ranges),
        features: Arc::new(BTreeMap::new()),
        preparing: Arc::new(preparing),
    }
}

impl World {
    pub(crate) fn publish(&mut self) {
        let proxy = &mut self.proxy;
        let (fixed, revision, moved) = (&proxy.fixed, proxy.revision, proxy.moved.as_ref());
        let durable = (&proxy.floors[..], &proxy.transactions);
        let next = snapshot(fixed, revision, &proxy.topologies, moved, durable, proxy.preparing);
        let last = std::mem::replace(&mut proxy.snapshot, next);
        if proxy.stale.is_none() || self.now - proxy.published_at >= STALE {
            proxy.stale = Some(last);
            proxy.published_at = self.now;
        }
        let all: Vec<SessionId> = self.proxy.sessions.keys().copied().collect();
        self.wake(&all);
    }

    pub(crate) fn wake_all(&mut self) {
        let all: Vec<SessionId> = self.proxy.sessions.keys().copied().collect();
        self.wake(&all);
    }

    pub(crate) fn wake(&mut self, sessions: &[SessionId]) {
        for session in sessions {
            let Some(conn) = self.proxy.sessions.get(session).copied() else { continue };
            if !std::mem::replace(&mut self.conns[conn].waking, true) {
                let after = self.rng.between(1, 200);
                self.plan(after, Ev::Wake { conn });
            }
        }
    }

    pub(crate) fn on_request(&mut self, conn: usize, frame: Bytes, sent_at: u64) {
        if self.conns[conn].proxy_open {
            // A snapshot is loaded when the request is there: one that was shown before it was sent, perhaps because of
            // that, or a newer one.
            let loaded_at = &mut self.conns[conn].loaded_at;
            *loaded_at = sent_at.max(*loaded_at);
            let first = self.conns[conn].session.as_ref().map(Session::id);
            if let Some(id) = first {
                self.proxy.sessions.insert(id, conn);
            }
            self.apply(conn, Event::Frame(frame));
        }
    }

    pub(crate) fn on_client_gone(&mut self, conn: usize) {
        if self.conns[conn].proxy_open {
            self.drop_client(conn);
            self.apply(conn, Event::ClientGone);
        }
    }

    /// The model's other side keeps no copies of commits: whether a copy could be made is drawn.
    pub(crate) fn on_errand(&mut self, conn: usize, ticket: Ticket, errand: Errand) {
        if let Errand::MoveTransactionalId { id, to, client } = &errand {
            // It goes on although its client has gone, but not in another process.
            let is_of_this = self.conns[conn].incarnation == self.proxy.incarnation && self.proxy.up;
            if is_of_this && !self.begin_move((conn, ticket), id, *to, *client) {
                self.plan(MS, Ev::Errand { conn, ticket, errand });
            }
            return;
        }
        if self.conns[conn].session.is_none() {
            // The process that was asked has ended.
            return;
        }
        let done = match &errand {
            Errand::MirrorCommits(_) => Ok(self.rng.chance(900)),
            Errand::RaiseFloors(floors) => self.raise_floors(floors),
            other => return self.fail(format!("the model knows no errand {other:?}")),
        };
        self.apply(conn, Event::ErrandDone { ticket, done });
    }

    fn raise_floors(&mut self, floors: &[(Arc<str>, i32, VirtualOffset)]) -> Result<bool, String> {
        if !self.healed && self.rng.chance(20) {
            self.see(Seen::FloorNotStored);
            return Err("the floor cannot be stored".to_owned());
        }
        let mut raised = false;
        for (_, partition, floor) in floors {
            let index = *partition as usize;
            if floor.0 > self.proxy.floors[index] {
                raised = true;
                self.proxy.floors[index] = floor.0;
                self.hidden[index] = (self.now + STALE, floor.0);
                self.oracle.floors[index] = floor.0;
                trace!(self, "the floor of {partition} is {}", floor.0);
            }
        }
        if raised {
            self.disk.floors = self.proxy.floors.clone();
            self.publish();
        }
        Ok(raised)
    }

    pub(crate) fn on_wake(&mut self, conn: usize) {
        self.conns[conn].waking = false;
        self.apply(conn, Event::Wake);
    }

    pub(crate) fn on_timer(&mut self, conn: usize, at: u64) {
        if self.conns[conn].timer_at != at {
            return;
        }
        self.conns[conn].timer_at = u64::MAX;
        let due = self.conns[conn].session.as_ref().and_then(Session::next_deadline_ms);
        match due {
            Some(due) if due <= self.now_ms() => self.apply(conn, Event::Timer),
            _ => self.arm(conn),
        }
    }

    pub(crate) fn on_answer(&mut self, link: usize, frame: Bytes) {
        let at = &self.links[link];
        if at.proxy_open {
            let (conn, upstream) = (at.conn, at.id);
            self.apply(conn, Event::Answer { upstream, frame });
        }
    }

    pub(crate) fn on_lost(&mut self, link: usize) {
        let at = &mut self.links[link];
        if !std::mem::replace(&mut at.proxy_open, false) {
            return;
        }
        let (conn, upstream) = (at.conn, at.id);
        self.conns[conn].upstreams.remove(&upstream);
        self.apply(conn, Event::Lost { upstream });
    }

    pub(crate) fn apply(&mut self, conn: usize, event: Event) {
        let Some(mut session) = self.conns[conn].session.take() else { return };
        let now_ms = self.now_ms();
        // A connection's task never goes back to a snapshot older than one it has used.
        let may_be_stale = self.conns[conn].loaded_at < self.proxy.published_at;
        let is_recent = self.now - self.proxy.published_at < STALE;
        let is_stale = may_be_stale && is_recent && !self.proxy.is_shown && self.rng.chance(300);
        if !is_stale {
            self.conns[conn].loaded_at = self.now;
        }
        let snapshot = match &self.proxy.stale {
            Some(stale) if is_stale => stale,
            _ => &self.proxy.snapshot,
        };
        session.handle(event, snapshot, &self.proxy.shared, now_ms);
        let effects = session.drain_effects();
        self.conns[conn].session = Some(session);
        effects.into_iter().for_each(|effect| self.carry_out(conn, effect));
        if self.conns[conn].session.as_ref().is_some_and(Session::is_finished) {
            return self.end(conn);
        }
        self.arm(conn);
    }

    fn arm(&mut self, conn: usize) {
        let due = self.conns[conn].session.as_ref().and_then(Session::next_deadline_ms);
        let Some(due) = due else { return };
        let at = self.moment(due).max(self.now + 50);
        if at < self.conns[conn].timer_at {
            self.conns[conn].timer_at = at;
            self.plan_at(at, Ev::Timer { conn, at });
        }
    }

    fn carry_out(&mut self, conn: usize, effect: Effect) {
        match effect {
            Effect::Dial { upstream, node, .. } => self.dial(conn, upstream, node),
            Effect::Send { upstream, frame } => {
                let frame = frame.slice(4..);
                if self.conns[conn].is_told_off && frame.starts_with(&PRODUCE.to_be_bytes()) {
                    self.fail(format!("conn {conn} goes on after an error that no broker said"));
                }
                if let Some(link) = self.conns[conn].upstreams.get(&upstream).copied() {
                    self.pass_on(link, frame);
                }
            }
            Effect::HangUp { upstream } => {
                if let Some(link) = self.conns[conn].upstreams.remove(&upstream) {
                    self.half_close(link);
                }
            }
            Effect::Reply(frame) => self.reply(conn, frame.slice(4..)),
            Effect::Close(reason) => self.close(conn, &reason),
            Effect::Wake(sessions) => self.wake(&sessions),
            Effect::GateDrained => self.look_at_drain(),
            Effect::Refresh(side) => self.refresh(side),
            Effect::StrayAppend { side, native, .. } => {
                self.fail(format!("the {side} acknowledged a batch at {} outside of its era", native.0));
            }
            Effect::HoldExpired { .. } => self.see(Seen::HoldExpired),
            Effect::BadAnswer { error, .. } => self.fail(format!("a broker's answer is called bad: {error}")),
            Effect::Errand { ticket, errand } => {
                let after = self.rng.between(200, 5_000);
                self.plan(after, Ev::Errand { conn, ticket, errand });
            }
            Effect::Mirror(_) => {}
        }
    }

    fn reply(&mut self, conn: usize, frame: Bytes) {
        if !self.conns[conn].proxy_open {
            return;
        }
        let at = self.delay() + self.now;
        let to = &mut self.conns[conn].to_client;
        *to = at.max(*to);
        let at = *to;
        self.plan_at(at, Ev::Reply { conn, frame });
    }

    fn close(&mut self, conn: usize, reason: &CloseReason) {
        trace!(self, "conn {conn} is closed: {reason}");
        if *reason != CloseReason::UpstreamLost {
            self.fail(format!("a client's connection is closed: {reason}"));
        }
        let after = self.delay();
        let at = self.conns[conn].to_client.max(self.now + after);
        self.plan_at(at, Ev::Hangup { conn });
        self.drop_client(conn);
    }

    fn drop_client(&mut self, conn: usize) {
        self.conns[conn].proxy_open = false;
        if !std::mem::replace(&mut self.conns[conn].gone, true) {
            self.plan(ORPHAN, Ev::Orphan { conn });
        }
    }

    pub(crate) fn on_orphan(&mut self, conn: usize) {
        self.end(conn);
    }

    fn end(&mut self, conn: usize) {
        let Some(mut session) = self.conns[conn].session.take() else { return };
        session.abandon(&self.proxy.snapshot, &self.proxy.shared, self.now_ms());
        let effects = session.drain_effects();
        effects.into_iter().for_each(|effect| self.carry_out(conn, effect));
        self.proxy.sessions.remove(&session.id());
        self.proxy.shared.traffic.forget(session.id());
        for link in std::mem::take(&mut self.conns[conn].upstreams).into_values() {
            self.half_close(link);
        }
    }

    pub(crate) fn refresh(&mut self, side: ClusterSide) {
        if !std::mem::replace(&mut self.proxy.refreshing[side.index()], true) {
            let after = self.delay() + self.rng.between(1, 20) * MS;
            let incarnation = self.proxy.incarnation;
            self.plan(after, Ev::Refresh { side, incarnation });
        }
    }

    pub(crate) fn on_refresh(&mut self, side: ClusterSide, incarnation: u32) {
        if incarnation == self.proxy.incarnation && self.proxy.up {
            self.proxy.refreshing[side.index()] = false;
            self.look_at(side);
            self.publish();
        }
    }

    /// Reads a cluster's metadata. False when no broker answers.
    pub(crate) fn look_at(&mut self, side: ClusterSide) -> bool {
        let reachable = self.clusters[side.index()].is_reachable();
        let known = &mut self.proxy.topologies[side.index()];
        *known = match reachable {
            true => Arc::new(topology(side, &self.clusters, &self.proxy.fixed)),
            false => Arc::new(Topology { reachable: false, ..(**known).clone() }),
        };
        reachable
    }

    /// `kill -9`: what it has written to its sockets may still arrive.
    pub(crate) fn crash(&mut self) {
        if !self.proxy.up {
            return;
        }
        trace!(self, "the proxy is killed");
        self.crash_flip();
        self.proxy.up = false;
        self.proxy.incarnation += 1;
        self.moves.clear();
        self.disturbed_at = self.now;
        for link in 0..self.links.len() {
            if std::mem::replace(&mut self.links[link].proxy_open, false) {
                self.leave(link);
            }
        }
        for conn in 0..self.conns.len() {
            if self.conns[conn].session.take().is_some() {
                self.conns[conn].proxy_open = false;
                let after = self.delay();
                self.plan(after, Ev::Hangup { conn });
            }
        }
        self.proxy.sessions.clear();
        let after = self.rng.between(50, 1_500) * MS;
        self.plan(after, Ev::Restart);
    }

    pub(crate) fn on_restart(&mut self) {
        let Disk { revision, topic, floors, running, transactions, .. } = self.disk.clone();
        trace!(self, "the proxy starts, unclean {running}");
        let now_ms = self.now_ms();
        self.disk.intent = false;
        self.disk.running = true;
        let forgets = self.is(Bug::R25FloorForgotten);
        let transactions = if self.is(Bug::TxnHomeForgotten) { Arc::default() } else { transactions };
        let proxy = &mut self.proxy;
        proxy.up = true;
        proxy.shared = Shared::default();
        proxy.revision = revision.max(1);
        proxy.preparing = false;
        proxy.refreshing = [false; 2];
        proxy.unsealed = false;
        proxy.unseeded.clear();
        proxy.unclean_since_ms = running.then_some(now_ms);
        proxy.floors.fill(0);
        if !forgets {
            proxy.floors[..floors.len()].copy_from_slice(&floors);
        }
        proxy.moved = None;
        proxy.transactions = transactions;
        proxy.stale = None;
        if let Some(stored) = topic {
            let parts = stored.read();
            for (partition, (timeline, carry)) in parts.iter().enumerate() {
                let mut gate = PartitionGate::restored(timeline.current().index, carry.clone());
                gate.fence();
                proxy.shared.gates.restore(&proxy.fixed.name, partition as i32, gate);
                proxy.unseeded.insert(partition as i32);
            }
            proxy.moved = Some((stored.owner, parts.into_iter().map(|(timeline, _)| timeline).collect()));
        }
        for side in ClusterSide::BOTH {
            self.look_at(side);
        }
        self.publish();
        self.proxy.stale = None;
        let incarnation = self.proxy.incarnation;
        self.plan(0, Ev::Seed { incarnation });
    }

    /// After a start, the gates of moved partitions learn what was appended since the last SEAL (RULES R3).
    pub(crate) fn on_seed(&mut self, incarnation: u32) {
        if incarnation != self.proxy.incarnation || self.proxy.unseeded.is_empty() {
            return;
        }
        let route = self.proxy.route();
        for partition in self.proxy.unseeded.clone() {
            let known = self.proxy.topology(route.owner).leader(TOPIC, partition);
            let cluster = &self.clusters[route.owner.index()];
            let log = &cluster.logs[partition as usize];
            if known != Some(log.leader) || !cluster.is_up(log.leader) {
                self.refresh(route.owner);
                continue;
            }
            let rows = described(&self.proxy.transactions, route.owner, &log.producers(), self.now_ms());
            let visit = route.timeline(partition).map_or(0, |t| t.current().visit);
            let gate = self.proxy.gate(partition);
            let signal = {
                let mut gate = lock(&gate);
                if !self.is(Bug::R3NoSeed) {
                    gate.seed(&rows, visit, self.now_ms());
                }
                gate.release_unchanged()
            };
            self.proxy.unseeded.remove(&partition);
            self.see(Seen::Seeded);
            self.wake(&signal.wake);
        }
        self.plan(SEED_AGAIN, Ev::Seed { incarnation });
    }
}
