//! Why a flip ends with its old owner.

use super::{Behind, Part, StartError, Unquiet};
use crate::ids::ClusterSide;
use crate::timeline::SealError;
use std::sync::Arc;

/// The reason of an abort. Each leaves the old owner serving, and nothing changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Abort {
    #[error("an operator asked for it")]
    Asked,
    #[error("the topics do not have the same number of partitions on both sides")]
    PartitionCounts,
    #[error("a topic was changed by a client while the flip was prepared: repeat it")]
    Changed,
    #[error("transactional id {id} has had a transaction open for {open_ms} ms")]
    OpenTransaction { id: Arc<str>, open_ms: i64 },
    #[error("{}-{}: the {side} has not replicated everything", .part.0, .part.1)]
    NotReplicated { part: Part, side: ClusterSide },
    #[error(transparent)]
    Grown(#[from] Grown),
    #[error("{}-{}: a connection with produce in flight was lost", .0.0, .0.1)]
    Lost(Part),
    #[error("{}-{}: produce in flight was not answered within the hold bound", .0.0, .0.1)]
    NotDrained(Part),
    #[error("no boundary within {hold_ms} ms{}", .why.as_ref().map(|(part, why)| format!("; {}-{}: {why}", part.0, part.1)).unwrap_or_default())]
    NoBoundary { hold_ms: i64, why: Option<(Part, Unsettled)> },
    #[error("{}-{}: {why}", .part.0, .part.1)]
    Start { part: Part, why: StartError },
    #[error("{}-{}: {why}", .part.0, .part.1)]
    Seal { part: Part, why: SealError },
    #[error("{}-{}: the log went from {was} to {now} under the fence", .part.0, .part.1)]
    Moved { part: Part, was: i64, now: i64 },
    #[error("the hold bound of {hold_ms} ms has passed before SEAL")]
    Late { hold_ms: i64 },
    #[error("SEAL cannot be stored")]
    NotStored,
    /// Something outside of the machine failed; its text says what.
    #[error("{0}")]
    Failed(String),
    /// The machine was told something it had not asked for.
    #[error("a step of the flip ended out of turn")]
    OutOfTurn,
}

/// Why a partition has no boundary yet. Worth asking again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unsettled {
    #[error(transparent)]
    Unquiet(#[from] Unquiet),
    #[error(transparent)]
    Behind(#[from] Behind),
    #[error("a producer has a transaction open")]
    Transaction,
    /// It is asked of one that does not lead any more, or an unclean election has cut the log.
    #[error(
        "its leader tells an end at virtual offset {end}, and clients have been shown records up to {shown}; if an unclean election has cut the log, repeat with --force"
    )]
    Short { end: i64, shown: i64 },
}

/// The idle side has moved since it lost ownership (RULES R12).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{}-{}: the {side} ended at {left} when it lost ownership and is at {end} now; somebody writes to it directly",
    .part.0, .part.1
)]
pub struct Grown {
    pub part: Part,
    pub side: ClusterSide,
    pub left: i64,
    pub end: i64,
}
