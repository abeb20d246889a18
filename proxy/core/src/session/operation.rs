//! One request of a client, from its arrival to its answer.

use super::SessionCore;
use super::effect::{CloseReason, Effect, Errand, ErrandDone, Ticket};
use super::shared::Shared;
use super::upstream::{Class, UpstreamId, UpstreamKey};
use crate::ids::{ClusterSide, VirtualNode};
use crate::producer::gate::{GateSignal, PathId};
use crate::route::Snapshot;
use crate::schema::{self, Struct};
use crate::wire::header::{self, RequestHeader};
use bytes::Bytes;

/// What an operation wants after an event.
#[derive(Debug)]
pub enum Step {
    /// Nothing to say yet.
    Pending,
    /// Answer the client with this body, in the version it asked in.
    Reply(Struct),
    /// Answer the client with this frame (length prefix included).
    ReplyFrame(Bytes),
    /// Over, without an answer (acks=0, or the client has gone).
    Done,
    /// Close the client's connection.
    Close(CloseReason),
}

/// What came back for a call.
#[derive(Debug)]
pub enum Answer {
    /// The response; its body starts at `body_at`. Not validated yet: use [`Cx::decode`].
    Frame { frame: Bytes, body_at: usize, version: i16 },
    /// The connection ended. `sent` is false when it was never established: then the broker cannot have seen it.
    Lost { sent: bool },
}

/// A request's machine. Implemented once per Kafka API, in `api/`.
pub trait Operation: Send {
    /// The request has arrived; earlier requests of the connection have been started before it.
    fn start(&mut self, cx: &mut Cx<'_>) -> Step;

    /// A call it made is answered, or lost.
    fn on_answer(&mut self, cx: &mut Cx<'_>, part: u32, answer: Answer) -> Step;

    /// An errand it asked for is done, or cannot be done.
    fn on_errand_done(&mut self, _cx: &mut Cx<'_>, _part: u32, _done: ErrandDone) -> Step {
        Step::Pending
    }

    /// Something it may wait for has changed, or its deadline has come.
    fn on_wake(&mut self, _cx: &mut Cx<'_>) -> Step {
        Step::Pending
    }

    /// The client has gone. Operations that do not have to learn their outcome end here.
    fn on_client_gone(&mut self, _cx: &mut Cx<'_>) -> Step {
        Step::Done
    }
}

/// What an operation may look at and ask for while it handles one event.
pub struct Cx<'a> {
    pub core: &'a mut SessionCore,
    pub snapshot: &'a Snapshot,
    pub shared: &'a Shared,
    pub now_ms: i64,
    pub header: &'a RequestHeader,
    /// When this operation wants [`Operation::on_wake`] at the latest.
    pub deadline_ms: Option<i64>,
    slot: u64,
}

impl<'a> Cx<'a> {
    pub(super) fn new(
        core: &'a mut SessionCore,
        snapshot: &'a Snapshot,
        shared: &'a Shared,
        now_ms: i64,
        slot: u64,
        header: &'a RequestHeader,
        deadline_ms: Option<i64>,
    ) -> Cx<'a> {
        Cx { core, snapshot, shared, now_ms, header, deadline_ms, slot }
    }

    /// The request's place among those of its connection.
    #[must_use]
    pub fn place(&self) -> u64 {
        self.slot
    }

    /// The connection a request for `broker` of `side` goes by: the client's own where that is its broker.
    #[must_use]
    pub fn upstream(&self, side: ClusterSide, broker: i32, class: Class) -> UpstreamKey {
        let node = VirtualNode::new(side, broker);
        UpstreamKey { node, class: if node == self.core.node { Class::Native } else { class } }
    }

    /// Where a request goes that any broker of `side` can answer: the client's own broker if it is of that side.
    /// `None` while no broker of the side is known.
    #[must_use]
    pub fn any_upstream(&self, side: ClusterSide) -> Option<UpstreamKey> {
        if self.core.node.side == side {
            return Some(self.upstream(side, self.core.node.broker, Class::Native));
        }
        let broker = self.snapshot.topology(side).any_broker()?;
        Some(self.upstream(side, broker, Class::Produce))
    }

    /// Sends a request upstream, dialling first if need be. `part` comes back with the answer. False when the
    /// broker has no known address: then no answer will come.
    #[must_use]
    pub fn call(&mut self, key: UpstreamKey, api_key: i16, version: i16, body: &Struct, part: u32) -> bool {
        let Some(message) = schema::request(api_key) else { return false };
        let Some(id) = self.connect(key) else { return false };
        let correlation = self.core.upstreams.push(id, api_key, version, self.slot, part);
        match header::encode_request(message, version, correlation, self.header.client_id.as_ref(), body) {
            Ok(frame) => {
                self.core.effects.push(Effect::Send { upstream: id, frame });
                true
            }
            Err(_) => {
                // A body that cannot be encoded was built wrong: end the connection it was booked on.
                self.core.upstreams.lost(id);
                self.core.effects.push(Effect::HangUp { upstream: id });
                false
            }
        }
    }

    /// As [`Cx::call`], in the version and with the API key of the client's own request.
    #[must_use]
    pub fn forward(&mut self, key: UpstreamKey, body: &Struct, part: u32) -> bool {
        self.call(key, self.header.api_key, self.header.api_version, body, part)
    }

    /// Sends a request that the broker does not answer (Produce with acks=0).
    #[must_use]
    pub fn send_silent(&mut self, key: UpstreamKey, api_key: i16, version: i16, body: &Struct) -> bool {
        let Some(message) = schema::request(api_key) else { return false };
        let Some(id) = self.connect(key) else { return false };
        let client_id = self.header.client_id.as_ref();
        let Ok(frame) = header::encode_request(message, version, 0, client_id, body) else { return false };
        self.core.effects.push(Effect::Send { upstream: id, frame });
        true
    }

    /// The connection for a key, dialled if there is none.
    pub fn connect(&mut self, key: UpstreamKey) -> Option<UpstreamId> {
        self.core.connect(self.snapshot, key)
    }

    /// The gate's name for a connection.
    pub fn path(&mut self, key: UpstreamKey) -> Option<PathId> {
        self.connect(key).map(UpstreamId::path)
    }

    /// Whether a request of this API is still unanswered on the connection for `key`.
    #[must_use]
    pub fn is_busy(&self, key: UpstreamKey, api_key: i16) -> bool {
        self.core.upstreams.is_busy(key, api_key)
    }

    /// Validates and decodes a response to a call of `api_key`.
    ///
    /// # Errors
    /// The broker's response is not what its API says; the client's connection should be closed with it.
    pub fn decode(
        &self,
        api_key: i16,
        frame: &Bytes,
        body_at: usize,
        version: i16,
    ) -> Result<Struct, CloseReason> {
        let message =
            schema::response(api_key).ok_or_else(|| CloseReason::Internal("no schema".to_owned()))?;
        schema::decode(message, version, &frame.slice(body_at..))
            .map_err(|error| CloseReason::BadResponse(format!("{} v{version}: {error}", message.name)))
    }

    /// An empty response body of the client's API, with the schema's defaults.
    #[must_use]
    pub fn empty_response(&self) -> Option<Struct> {
        schema::response(self.header.api_key).map(|m| Struct::new(m.fields))
    }

    /// Asks to be woken at `at_ms` at the latest.
    pub fn wake_at(&mut self, at_ms: i64) {
        self.deadline_ms = Some(self.deadline_ms.map_or(at_ms, |d| d.min(at_ms)));
    }

    /// Passes on what a gate asked for.
    pub fn signal(&mut self, signal: GateSignal) {
        if !signal.wake.is_empty() {
            self.core.effects.push(Effect::Wake(signal.wake));
        }
        if signal.drained {
            self.core.effects.push(Effect::GateDrained);
        }
    }

    pub fn emit(&mut self, effect: Effect) {
        self.core.effects.push(effect);
    }

    /// Asks for what only the control tasks can do; [`Operation::on_errand_done`] follows, with `part`.
    pub fn run_errand(&mut self, part: u32, errand: Errand) {
        self.core.effects.push(Effect::Errand { ticket: Ticket { slot: self.slot, part }, errand });
    }

    /// The client's connection is to end, so that it sends everything again that has no answer. What it has in flight is answered
    /// before, as far as that comes within the hold bound; what waits is given up.
    pub fn end_soon(&mut self) {
        if self.core.ends_at_ms.is_none() {
            self.core.ends_at_ms = Some(self.now_ms + self.core.limits.hold_ms_max);
            let own = self.core.id;
            self.emit(Effect::Wake(vec![own]));
        }
    }

    pub fn refresh(&mut self, side: ClusterSide) {
        self.core.effects.push(Effect::Refresh(side));
    }
}
