//! The upstream connections of one client connection: its own broker and companions (DESIGN decision 1, RULES R19).

use crate::ids::VirtualNode;
use crate::producer::gate::{PathId, SessionId};
use crate::schema;
use crate::wire::header;
use bytes::Bytes;
use std::collections::{BTreeMap, VecDeque};

/// What a connection to a broker is used for. A parked JoinGroup or long poll must not block produce.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Class {
    /// The client's own broker: everything, in the client's order.
    Native,
    /// A companion for produce and for requests that are answered at once.
    Produce,
    /// A companion for long polls.
    Fetch,
    /// A companion for group membership.
    Group,
}

/// Which broker, and for what.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UpstreamKey {
    pub node: VirtualNode,
    pub class: Class,
}

/// One upstream connection, never reused. Doubles as the gate's path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UpstreamId {
    pub session: SessionId,
    pub index: u32,
}

impl UpstreamId {
    /// Unique among all connections: 2^24 upstreams a session and 2^40 sessions.
    #[must_use]
    pub fn path(self) -> PathId {
        PathId(self.session.0 << 24 | u64::from(self.index & 0x00ff_ffff))
    }
}

/// A request that an upstream has not answered yet.
#[derive(Clone, Debug)]
pub(super) struct Call {
    pub(super) correlation: i32,
    pub(super) api_key: i16,
    pub(super) version: i16,
    pub(super) slot: u64,
    pub(super) part: u32,
    pub(super) sent: bool,
    /// Where the response's body starts, once it has come.
    pub(super) body_at: usize,
}

struct Upstream {
    key: UpstreamKey,
    connected: bool,
    calls: VecDeque<Call>,
    next_correlation: i32,
}

pub(super) struct Upstreams {
    session: SessionId,
    next_index: u32,
    by_key: BTreeMap<UpstreamKey, UpstreamId>,
    all: BTreeMap<UpstreamId, Upstream>,
}

impl Upstreams {
    pub(super) fn new(session: SessionId) -> Upstreams {
        Upstreams { session, next_index: 0, by_key: BTreeMap::new(), all: BTreeMap::new() }
    }

    /// The live connection for a key.
    pub(super) fn find(&self, key: UpstreamKey) -> Option<UpstreamId> {
        self.by_key.get(&key).copied()
    }

    pub(super) fn open(&mut self, key: UpstreamKey) -> UpstreamId {
        let id = UpstreamId { session: self.session, index: self.next_index };
        self.next_index += 1;
        self.by_key.insert(key, id);
        let upstream = Upstream { key, connected: false, calls: VecDeque::new(), next_correlation: 0 };
        self.all.insert(id, upstream);
        id
    }

    /// Books a request and gives its correlation id. The caller sends it right away.
    pub(super) fn push(&mut self, id: UpstreamId, api_key: i16, version: i16, slot: u64, part: u32) -> i32 {
        let Some(upstream) = self.all.get_mut(&id) else { return 0 };
        let correlation = upstream.next_correlation;
        upstream.next_correlation = correlation.wrapping_add(1) & i32::MAX;
        let sent = upstream.connected;
        upstream.calls.push_back(Call { correlation, api_key, version, slot, part, sent, body_at: 0 });
        correlation
    }

    pub(super) fn connected(&mut self, id: UpstreamId) {
        if let Some(upstream) = self.all.get_mut(&id) {
            upstream.connected = true;
            upstream.calls.iter_mut().for_each(|call| call.sent = true);
        }
    }

    /// Matches a response with the oldest request of its connection: brokers answer in order.
    pub(super) fn answered(&mut self, id: UpstreamId, frame: &Bytes) -> Result<Option<Call>, String> {
        let Some(upstream) = self.all.get_mut(&id) else { return Ok(None) };
        let Some(mut call) = upstream.calls.pop_front() else {
            return Err("a response that nothing asked for".to_owned());
        };
        let message = schema::response(call.api_key).ok_or_else(|| "no schema".to_owned())?;
        let found = header::decode_response_header(message, call.version, frame).map_err(|e| e.to_string());
        match found {
            Ok((correlation, body_at)) if correlation == call.correlation => {
                call.body_at = body_at;
                Ok(Some(call))
            }
            Ok((correlation, _)) => {
                let error = format!("correlation id {correlation} where {} was due", call.correlation);
                upstream.calls.push_front(call);
                Err(error)
            }
            Err(error) => {
                upstream.calls.push_front(call);
                Err(error)
            }
        }
    }

    /// Forgets a connection and gives back what it never answered.
    pub(super) fn lost(&mut self, id: UpstreamId) -> VecDeque<Call> {
        let Some(upstream) = self.all.remove(&id) else { return VecDeque::new() };
        if self.by_key.get(&upstream.key) == Some(&id) {
            self.by_key.remove(&upstream.key);
        }
        upstream.calls
    }

    /// Whether a request of this key is still unanswered on the connection.
    pub(super) fn is_busy(&self, key: UpstreamKey, api_key: i16) -> bool {
        let upstream = self.find(key).and_then(|id| self.all.get(&id));
        upstream.is_some_and(|u| u.calls.iter().any(|c| c.api_key == api_key))
    }

    /// Whether nothing is unanswered on the connection; a connection that is not known has nothing to answer.
    pub(super) fn is_quiet(&self, id: UpstreamId) -> bool {
        self.all.get(&id).is_none_or(|upstream| upstream.calls.is_empty())
    }

    pub(super) fn ids(&self) -> Vec<UpstreamId> {
        self.all.keys().copied().collect()
    }
}
