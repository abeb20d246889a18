//! One client connection: what it asked, what was asked upstream for it, and the order of the answers.
//!
//! The session is a pure machine: [`Session::handle`] takes an [`Event`] and leaves [`Effect`]s behind. Requests are
//! answered in the order they came (Kafka clients pipeline and match answers by position), while the work behind
//! them overlaps. Each request is an [`Operation`]; its file under `api/` holds all that is special about its key.

mod changes;
mod effect;
mod operation;
mod shared;
#[cfg(test)]
pub(crate) mod testing;
mod transactions;
mod upstream;

pub use changes::{Change, ChangeKind, TopicChanges};
pub use effect::{CloseReason, CommitMirror, Effect, Errand, ErrandDone, Event, Ticket, TopicChanged};
pub use operation::{Answer, Cx, Operation, Step};
pub use shared::{
    GateRegistry, LogStartRegistry, Seen, SeenRegistry, Shared, SharedGate, TopicTraffic, Traffic,
    TruncationRegistry, lock,
};
pub use transactions::{Begun, TransactionPlan, TransactionRegistry, TransactionSeen};
pub use upstream::{Class, UpstreamId, UpstreamKey};

use crate::api;
use crate::ids::VirtualNode;
use crate::producer::gate::{ClientKey, SessionId};
use crate::route::Snapshot;
use crate::schema;
use crate::wire::header::{self, RequestHeader};
use bytes::Bytes;
use std::collections::{BTreeMap, VecDeque};
use upstream::Upstreams;

/// Bounds of one session.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Requests taken from the client and not answered yet; above it the socket is not read.
    pub in_flight_requests_max: usize,
    /// Bytes of requests taken and not answered yet; above it the socket is not read.
    pub buffered_bytes_max: usize,
    /// How long produce is held or retried on the client's behalf, milliseconds.
    pub hold_ms_max: i64,
}

/// Who is at the other end.
#[derive(Clone, Debug, Default)]
pub struct ClientIdentity {
    pub peer_host: String,
    pub client_id: String,
    /// From ApiVersions v3+; empty when the client did not say (then it is treated as unknown).
    pub software: String,
    pub software_version: String,
}

/// The parts of a session that operations work with.
pub struct SessionCore {
    pub id: SessionId,
    /// The node whose address the client connected to.
    pub node: VirtualNode,
    pub client: ClientIdentity,
    pub limits: Limits,
    pub fetch: api::fetch::ClientSessions,
    pub members: api::group::Members,
    /// Partitions with produce that waits to be sent: later produce of the same partition queues behind it.
    pub produce: api::produce::HeldPartitions,
    /// Nothing more is taken from the client, and its connection ends when the produce that it has in flight is answered; at
    /// the latest then, in milliseconds.
    pub ends_at_ms: Option<i64>,
    upstreams: Upstreams,
    effects: Vec<Effect>,
    random: u64,
}

impl SessionCore {
    /// The client for producers without sequences (RULES R1). A producer has one setting of `acks`.
    #[must_use]
    pub fn client_key(&self, acks: i16) -> ClientKey {
        let name = self.client.client_id.bytes().chain([0]).chain(self.client.peer_host.bytes());
        let bytes = name.chain([0]).chain(acks.to_be_bytes());
        ClientKey(bytes.fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3)))
    }

    /// The connection for a key, dialled if there is none. `None` when the broker has no known address.
    fn connect(&mut self, snapshot: &Snapshot, key: UpstreamKey) -> Option<UpstreamId> {
        if let Some(id) = self.upstreams.find(key) {
            return Some(id);
        }
        let topology = snapshot.topology(key.node.side);
        let address = match key.class {
            Class::Native => topology.address(key.node.broker)?,
            _ => topology.brokers.get(&key.node.broker)?,
        };
        let id = self.upstreams.open(key);
        let (host, port) = (address.host.clone(), address.port);
        self.effects.push(Effect::Dial { upstream: id, node: key.node, host, port });
        Some(id)
    }

    /// Dials the companions this client will need at once if a flip that is being prepared comes to pass, so that
    /// the hold does not include their connects.
    fn dial_ahead(&mut self, snapshot: &Snapshot, shared: &Shared, now_ms: i64) {
        for topic in snapshot.preparing.iter() {
            let Some(route) = snapshot.routes.topic(topic) else { continue };
            let traffic = shared.traffic.of_topic(topic);
            let produced = [&traffic.direct_produce, &traffic.companion_produce];
            let last_ms = produced.iter().filter_map(|by| by.get(&self.id)).max();
            let to = route.owner.other();
            if self.node.side == to || last_ms.is_none_or(|at| now_ms - at > DIAL_AHEAD_MS) {
                continue;
            }
            let partitions =
                snapshot.topology(to).topic(route.physical(to)).map_or(0, |t| t.partitions.len());
            for partition in 0..partitions {
                let leader = i32::try_from(partition).ok().and_then(|p| snapshot.leader(route, p, to));
                if let Some(broker) = leader {
                    self.connect(
                        snapshot,
                        UpstreamKey { node: VirtualNode::new(to, broker), class: Class::Produce },
                    );
                }
            }
        }
    }

    /// Splitmix64 over the seed the shell gave: the core itself draws no randomness.
    pub fn next_random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// How recently a client must have produced to a topic for its companions to be dialled ahead (RULES R15).
const DIAL_AHEAD_MS: i64 = 30_000;

struct Slot {
    header: RequestHeader,
    operation: Option<Box<dyn Operation>>,
    reply: Option<Bytes>,
    /// acks=0: nothing is ever sent back.
    silent: bool,
    deadline_ms: Option<i64>,
    bytes: usize,
}

/// One client connection.
pub struct Session {
    core: SessionCore,
    slots: BTreeMap<u64, Slot>,
    order: VecDeque<u64>,
    next_slot: u64,
    buffered: usize,
    /// Nothing is read from the client or sent to it any more; what is in flight upstream is still waited for, because
    /// its outcome decides whether a partition is quiet.
    client_gone: bool,
}

impl Session {
    #[must_use]
    pub fn new(id: SessionId, node: VirtualNode, peer_host: String, limits: Limits, seed: u64) -> Session {
        Session {
            core: SessionCore {
                id,
                node,
                client: ClientIdentity { peer_host, ..ClientIdentity::default() },
                limits,
                fetch: api::fetch::ClientSessions::default(),
                members: api::group::Members::default(),
                produce: api::produce::HeldPartitions::default(),
                ends_at_ms: None,
                upstreams: Upstreams::new(id),
                effects: Vec::new(),
                random: seed,
            },
            slots: BTreeMap::new(),
            order: VecDeque::new(),
            next_slot: 0,
            buffered: 0,
            client_gone: false,
        }
    }

    #[must_use]
    pub fn id(&self) -> SessionId {
        self.core.id
    }

    /// Whether the shell should read more from the client: back-pressure is "stop reading".
    #[must_use]
    pub fn wants_read(&self) -> bool {
        !self.is_over()
            && self.slots.len() < self.core.limits.in_flight_requests_max
            && self.buffered < self.core.limits.buffered_bytes_max
    }

    /// Nothing more is taken from the client.
    fn is_over(&self) -> bool {
        self.client_gone || self.core.ends_at_ms.is_some()
    }

    /// The connection is over and nothing of it is in flight upstream that must still be waited for.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.client_gone && self.slots.is_empty()
    }

    /// Nothing is asked that is not answered.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.slots.is_empty()
    }

    /// When [`Event::Timer`] is due, milliseconds of the caller's monotonic clock.
    #[must_use]
    pub fn next_deadline_ms(&self) -> Option<i64> {
        let end = self.core.ends_at_ms.filter(|_| !self.client_gone);
        self.slots.values().filter_map(|s| s.deadline_ms).chain(end).min()
    }

    /// Applies one event. What it leads to is left in [`Session::drain_effects`].
    pub fn handle(&mut self, event: Event, snapshot: &Snapshot, shared: &Shared, now_ms: i64) {
        match event {
            Event::Frame(_) if self.is_over() => {}
            Event::Frame(frame) => self.on_frame(frame, snapshot, shared, now_ms),
            Event::Answer { upstream, frame } => self.on_answer(upstream, frame, snapshot, shared, now_ms),
            Event::Connected { upstream } => self.core.upstreams.connected(upstream),
            Event::Lost { upstream } => self.on_lost(upstream, snapshot, shared, now_ms),
            Event::ErrandDone { ticket, done } => {
                self.step(ticket.slot, snapshot, shared, now_ms, |operation, cx| {
                    operation.on_errand_done(cx, ticket.part, done)
                });
            }
            Event::Wake | Event::Timer => self.wake_all(snapshot, shared, now_ms),
            Event::ClientGone => self.on_client_gone(snapshot, shared, now_ms),
        }
        self.flush();
        self.end_if_due(snapshot, shared, now_ms);
    }

    /// Ends a connection that is to end, once it has been told what its produce has come to.
    fn end_if_due(&mut self, snapshot: &Snapshot, shared: &Shared, now_ms: i64) {
        let Some(latest) = self.core.ends_at_ms else { return };
        let is_awaited = |slot: &Slot| {
            slot.header.api_key == api::key::PRODUCE && slot.operation.is_some() && !slot.silent
        };
        if now_ms >= latest || !self.slots.values().any(is_awaited) {
            self.close(CloseReason::UpstreamLost, snapshot, shared, now_ms);
        }
    }

    pub fn drain_effects(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.core.effects)
    }

    fn on_frame(&mut self, frame: Bytes, snapshot: &Snapshot, shared: &Shared, now_ms: i64) {
        let header = match header::peek_request(&frame) {
            Ok(header) => header,
            Err(error) => {
                return self.close(CloseReason::BadRequest(error.to_string()), snapshot, shared, now_ms);
            }
        };
        if let Some(id) = &header.client_id
            && self.core.client.client_id != id.as_str()
        {
            self.core.client.client_id = id.as_str().to_owned();
        }
        let started = match api::open(&header, &frame, snapshot) {
            Ok(operation) => operation,
            Err(reason) => return self.close(reason, snapshot, shared, now_ms),
        };
        let slot = Slot {
            silent: started.silent,
            operation: Some(started.operation),
            reply: None,
            deadline_ms: None,
            bytes: frame.len(),
            header,
        };
        let seq = self.next_slot;
        self.next_slot += 1;
        self.buffered += slot.bytes;
        if !slot.silent {
            self.order.push_back(seq);
        }
        self.slots.insert(seq, slot);
        self.step(seq, snapshot, shared, now_ms, |operation, cx| operation.start(cx));
    }

    fn on_answer(&mut self, id: UpstreamId, frame: Bytes, snapshot: &Snapshot, shared: &Shared, now_ms: i64) {
        let call = match self.core.upstreams.answered(id, &frame) {
            Ok(Some(call)) => call,
            Ok(None) => return,
            Err(error) => {
                self.core.effects.push(Effect::BadAnswer { upstream: id, error });
                self.core.effects.push(Effect::HangUp { upstream: id });
                return self.on_lost(id, snapshot, shared, now_ms);
            }
        };
        let was_late_fetch = call.api_key == api::key::FETCH && !self.slots.contains_key(&call.slot);
        self.step(call.slot, snapshot, shared, now_ms, |operation, cx| {
            operation.on_answer(
                cx,
                call.part,
                Answer::Frame { frame, body_at: call.body_at, version: call.version },
            )
        });
        if was_late_fetch {
            // The upstream is free again: a fetch that waited for it may go on (RULES R18).
            self.wake_all(snapshot, shared, now_ms);
        }
    }

    fn on_lost(&mut self, id: UpstreamId, snapshot: &Snapshot, shared: &Shared, now_ms: i64) {
        for call in self.core.upstreams.lost(id) {
            let answer = Answer::Lost { sent: call.sent };
            self.step(call.slot, snapshot, shared, now_ms, |operation, cx| {
                operation.on_answer(cx, call.part, answer)
            });
        }
    }

    fn wake_all(&mut self, snapshot: &Snapshot, shared: &Shared, now_ms: i64) {
        self.core.produce.restart();
        self.core.dial_ahead(snapshot, shared, now_ms);
        let slots: Vec<u64> = self.slots.keys().copied().collect();
        for seq in slots {
            // This is what it had asked for. One that asks for nothing more would be woken without end.
            if let Some(slot) = self.slots.get_mut(&seq) {
                slot.deadline_ms = slot.deadline_ms.filter(|due| *due > now_ms);
            }
            self.step(seq, snapshot, shared, now_ms, |operation, cx| operation.on_wake(cx));
        }
    }

    /// The client has hung up: what was not sent is dropped, what is in flight is waited for (its outcome decides
    /// whether a partition is quiet).
    fn on_client_gone(&mut self, snapshot: &Snapshot, shared: &Shared, now_ms: i64) {
        self.client_gone = true;
        let slots: Vec<u64> = self.slots.keys().copied().collect();
        for seq in slots {
            self.step_client_gone(seq, snapshot, shared, now_ms);
        }
        self.order.clear();
        self.slots.retain(|_, slot| slot.operation.is_some());
        self.buffered = self.slots.values().map(|slot| slot.bytes).sum();
    }

    fn step_client_gone(&mut self, seq: u64, snapshot: &Snapshot, shared: &Shared, now_ms: i64) {
        self.step(seq, snapshot, shared, now_ms, |operation, cx| operation.on_client_gone(cx));
    }

    fn step(
        &mut self,
        seq: u64,
        snapshot: &Snapshot,
        shared: &Shared,
        now_ms: i64,
        apply: impl FnOnce(&mut dyn Operation, &mut Cx<'_>) -> Step,
    ) {
        let Some(slot) = self.slots.get_mut(&seq) else { return };
        // It keeps its place while it works: should it panic, what it has in flight can still be given up.
        let Some(operation) = slot.operation.as_deref_mut() else { return };
        let mut cx = Cx::new(&mut self.core, snapshot, shared, now_ms, seq, &slot.header, slot.deadline_ms);
        let step = apply(operation, &mut cx);
        slot.deadline_ms = cx.deadline_ms;
        if !matches!(step, Step::Pending | Step::Close(_)) {
            slot.operation = None;
        }
        match step {
            Step::Pending => {}
            Step::Done => self.finish(seq, None),
            Step::Reply(body) => {
                let header = &slot.header;
                let encoded =
                    schema::response(header.api_key).ok_or_else(|| "no schema".to_owned()).and_then(|m| {
                        header::encode_response(m, header.api_version, header.correlation_id, &body)
                            .map_err(|e| e.to_string())
                    });
                match encoded {
                    Ok(frame) => self.finish(seq, Some(frame)),
                    Err(error) => self.close(CloseReason::Internal(error), snapshot, shared, now_ms),
                }
            }
            Step::ReplyFrame(frame) => self.finish(seq, Some(frame)),
            Step::Close(reason) => {
                // It may still have something in flight: it ends when that is answered.
                if self.client_gone {
                    self.step_client_gone(seq, snapshot, shared, now_ms);
                } else {
                    self.close(reason, snapshot, shared, now_ms);
                }
            }
        }
    }

    fn finish(&mut self, seq: u64, reply: Option<Bytes>) {
        let Some(slot) = self.slots.get_mut(&seq) else { return };
        if slot.silent || self.client_gone || reply.is_none() {
            self.buffered = self.buffered.saturating_sub(slot.bytes);
            self.slots.remove(&seq);
            self.order.retain(|s| *s != seq);
        } else {
            slot.reply = reply;
            slot.deadline_ms = None;
        }
    }

    /// Hands out the answers that are next in the client's order.
    fn flush(&mut self) {
        while let Some(seq) = self.order.front() {
            let Some(slot) = self.slots.get_mut(seq) else { break };
            let Some(reply) = slot.reply.take() else { break };
            self.buffered = self.buffered.saturating_sub(slot.bytes);
            self.core.effects.push(Effect::Reply(reply));
            self.slots.remove(seq);
            self.order.pop_front();
        }
    }

    fn close(&mut self, reason: CloseReason, snapshot: &Snapshot, shared: &Shared, now_ms: i64) {
        if !self.client_gone {
            self.core.effects.push(Effect::Close(reason));
            self.on_client_gone(snapshot, shared, now_ms);
        }
    }

    /// Gives up what is still in flight: its outcome stays unknown. For a client that has gone, when waiting is over.
    pub fn abandon(&mut self, snapshot: &Snapshot, shared: &Shared, now_ms: i64) {
        self.client_gone = true;
        for id in self.core.upstreams.ids() {
            self.on_lost(id, snapshot, shared, now_ms);
        }
        self.on_client_gone(snapshot, shared, now_ms);
    }

    /// Whether an upstream owes no answer, so that it may be ended without anything being lost.
    #[must_use]
    pub fn is_upstream_quiet(&self, id: UpstreamId) -> bool {
        self.core.upstreams.is_quiet(id)
    }

    /// Who is at the other end, as far as it has said.
    #[must_use]
    pub fn client(&self) -> &ClientIdentity {
        &self.core.client
    }
}
