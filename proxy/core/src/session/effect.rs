//! What a session is told and what it asks for.

use super::upstream::UpstreamId;
use crate::ids::{ClusterSide, NativeOffset, VirtualNode, VirtualOffset};
use crate::producer::gate::{HoldReason, SessionId};
use crate::producer::transaction::Identity;
use bytes::Bytes;
use std::sync::Arc;

/// What happened.
#[derive(Debug)]
pub enum Event {
    /// A whole request of the client, without its length prefix.
    Frame(Bytes),
    /// An upstream connection is established.
    Connected { upstream: UpstreamId },
    /// A whole response of a broker, without its length prefix.
    Answer { upstream: UpstreamId, frame: Bytes },
    /// An upstream connection could not be made or has ended.
    Lost { upstream: UpstreamId },
    /// What became of an [`Effect::Errand`].
    ErrandDone { ticket: Ticket, done: ErrandDone },
    /// A gate, the route table, the topology or a group changed: whatever waits should look again.
    Wake,
    /// [`super::Session::next_deadline_ms`] has come.
    Timer,
    /// The client closed its side.
    ClientGone,
}

/// What is to be done.
#[derive(Debug)]
pub enum Effect {
    /// Connect to a broker; frames sent meanwhile are queued in order.
    Dial {
        upstream: UpstreamId,
        node: VirtualNode,
        host: String,
        port: u16,
    },
    /// Send a frame, length prefix included.
    Send {
        upstream: UpstreamId,
        frame: Bytes,
    },
    /// Stop writing and read to the end: upstream connections are never reset (live.md §5).
    HangUp {
        upstream: UpstreamId,
    },
    /// Send a response to the client, length prefix included.
    Reply(Bytes),
    /// Close the client's connection.
    Close(CloseReason),
    /// Give these sessions an [`Event::Wake`].
    Wake(Vec<SessionId>),
    /// A fenced partition has just become quiet.
    GateDrained,
    /// The topology of this side is out of date.
    Refresh(ClusterSide),
    /// A group committed at its home: the other side gets a copy (DESIGN decision 5).
    Mirror(Vec<CommitMirror>),
    /// Do this and tell the outcome with [`Event::ErrandDone`]: the operation waits for it.
    Errand {
        ticket: Ticket,
        errand: Errand,
    },
    /// A batch was held as long as is allowed and is answered with a retriable error (RULES R9).
    /// A broker acknowledged a batch at an offset that lies outside of its era: it is in no client's view.
    StrayAppend {
        topic: Arc<str>,
        partition: i32,
        side: ClusterSide,
        native: NativeOffset,
    },
    HoldExpired {
        topic: Arc<str>,
        partition: i32,
        reason: Option<HoldReason>,
    },
    /// A broker sent something that is not a Kafka response to what was asked.
    BadAnswer {
        upstream: UpstreamId,
        error: String,
    },
}

/// Names the operation that waits for an errand, and which one of its errands it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket {
    pub(super) slot: u64,
    pub part: u32,
}

/// What only the control tasks can do for an operation: it must be durable before the operation goes on, or it is about
/// something that the proxy itself has stored in a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Errand {
    /// Nothing of these partitions below the position may show again (RULES R25). Done: durable and published.
    RaiseFloors(Vec<(Arc<str>, i32, VirtualOffset)>),
    /// These topics were changed in all clusters that have them (RULES R26). Done: both clusters show it, what is stored
    /// of the topics follows it, and that is published.
    TopicsChanged(Vec<TopicChanged>),
    /// A group, or some of its commits, was deleted at its home: the copies at the other side go too (RULES R27). Done:
    /// false where there was no copy.
    ForgetCommits { group: Arc<str>, partitions: Option<Vec<(Arc<str>, i32)>> },
    /// A tool has committed at its group's home: the other side gets it too (RULES R28). Done: false where that side
    /// could not take it in time; then it gets it later.
    MirrorCommits(Vec<CommitMirror>),
    /// A transactional id is to be at home at `to`, and this producer goes on there. Done: durable and published; false
    /// where the id is another producer's.
    MoveTransactionalId { id: Arc<str>, to: ClusterSide, client: Identity },
    /// The commits of a group are to be at home at `to`, where a transaction takes them in. Done: durable and published.
    MoveOffsets { group: Arc<str>, to: ClusterSide },
}

/// How a topic was changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TopicChanged {
    Deleted(Arc<str>),
    /// It has so many partitions now.
    Enlarged(Arc<str>, i32),
}

/// What became of an errand: whether there was anything to do, or why it could not be done. It may be asked for again.
pub type ErrandDone = Result<bool, String>;

/// A commit to be copied to the cluster that is not the group's home.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommitMirror {
    pub group: Arc<str>,
    pub topic: Arc<str>,
    pub partition: i32,
    /// The virtual position.
    pub position: i64,
    /// The client's own metadata.
    pub metadata: String,
}

/// Why a client's connection is closed, and thereby who is to blame.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CloseReason {
    /// The client sent what no Kafka broker would accept.
    #[error("bad request: {0}")]
    BadRequest(String),
    /// A broker's connection ended while a request that only it can answer was waiting, as a broker's end would look; or
    /// produce without sequence numbers was given up.
    #[error("the broker's connection ended")]
    UpstreamLost,
    /// A broker answered what is not Kafka.
    #[error("bad response of a broker: {0}")]
    BadResponse(String),
    /// An invariant of the proxy did not hold.
    #[error("internal: {0}")]
    Internal(String),
}
