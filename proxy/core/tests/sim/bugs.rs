//! Deliberately wrong behaviour, one flag at a time. The simulator must notice each of them.

#[cfg(feature = "bug-flags")]
use crossover_core::bug::Bug as CoreBug;

/// A rule that the shell keeps, or one of the core's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bug {
    /// A flip does not wait until what was lost can have reached no log any more.
    R2NoGrace,
    /// After a start the gates open with what the last SEAL knew.
    R3NoSeed,
    /// After a start what was deleted shows again.
    R25FloorForgotten,
    /// Before a flip the cluster is not asked for open transactions.
    TxnNotThere,
    /// … nor what sessions have seen.
    TxnNotHere,
    /// A coordinator that does not tell all is taken to have told all.
    TxnIncomplete,
    /// After a start every transactional id is at home where it was at first.
    TxnHomeForgotten,
    #[cfg(feature = "bug-flags")]
    Core(CoreBug),
}

/// What only a rare meeting of failures shows.
#[cfg(feature = "bug-flags")]
const RARE: &[Bug] = &[
    Bug::Core(CoreBug::R3OtherPath),
    Bug::R2NoGrace,
    Bug::Core(CoreBug::R5NoOverlay),
    Bug::Core(CoreBug::TxnMoveMeanwhile),
];

#[cfg(feature = "bug-flags")]
const COMMON: &[Bug] = &[
    Bug::Core(CoreBug::R2PlainError),
    Bug::Core(CoreBug::R2LossIgnored),
    Bug::R3NoSeed,
    Bug::R25FloorForgotten,
    Bug::Core(CoreBug::R25OwnerOnly),
    Bug::Core(CoreBug::R25Uncut),
    Bug::Core(CoreBug::R25Shown),
    Bug::Core(CoreBug::R5NotCumulative),
    Bug::Core(CoreBug::R11Ends),
    Bug::Core(CoreBug::R11NoDrain),
    Bug::Core(CoreBug::R13PublishFirst),
    Bug::Core(CoreBug::R13UnknownReleased),
    Bug::Core(CoreBug::R16AbortLate),
    Bug::Core(CoreBug::R1Path),
    Bug::Core(CoreBug::R1Kept),
    Bug::Core(CoreBug::R2PlainAgain),
    Bug::Core(CoreBug::R3Gap),
    Bug::Core(CoreBug::R3Unconfirmed),
    Bug::Core(CoreBug::R4NoCarry),
    Bug::Core(CoreBug::R4Offset),
    Bug::Core(CoreBug::R6Visit),
    Bug::Core(CoreBug::R8Echo),
    Bug::Core(CoreBug::R8TimedOut),
    Bug::Core(CoreBug::R8Successor),
    Bug::Core(CoreBug::R14Stale),
    Bug::Core(CoreBug::R14Fence),
    Bug::Core(CoreBug::R17Moved),
    Bug::Core(CoreBug::R21Cut),
    Bug::Core(CoreBug::R21Ends),
    Bug::Core(CoreBug::R22Epoch),
    Bug::Core(CoreBug::R22Older),
    Bug::Core(CoreBug::R23Hole),
    Bug::Core(CoreBug::R23OwnersStart),
    Bug::Core(CoreBug::R21LateEnd),
    Bug::Core(CoreBug::R24OwnerOnly),
    Bug::Core(CoreBug::R24NextEra),
    Bug::Core(CoreBug::R27NoTag),
    Bug::Core(CoreBug::R27TagIgnored),
    Bug::Core(CoreBug::R27Skips),
    Bug::TxnNotThere,
    Bug::TxnNotHere,
    Bug::TxnIncomplete,
    Bug::TxnHomeForgotten,
    Bug::Core(CoreBug::TxnClosed),
    Bug::Core(CoreBug::TxnSince),
    Bug::Core(CoreBug::TxnJoins),
    Bug::Core(CoreBug::TxnMoveLeft),
    Bug::Core(CoreBug::TxnHomeStale),
    Bug::Core(CoreBug::TxnInitMoving),
    Bug::Core(CoreBug::TxnFenced),
    Bug::Core(CoreBug::TxnClientId),
    Bug::Core(CoreBug::TxnNative),
    Bug::Core(CoreBug::TxnSpans),
    Bug::Core(CoreBug::TxnSpansLater),
    Bug::Core(CoreBug::TxnAborted),
    Bug::Core(CoreBug::TxnEndsNext),
];

/// Every flag, and in how many schedules it must be caught. The long searches come first.
#[cfg(feature = "bug-flags")]
pub(crate) fn all() -> impl Iterator<Item = (Bug, u64)> {
    let rare = RARE.iter().map(|bug| (*bug, 200_000));
    rare.chain(COMMON.iter().map(|bug| (*bug, 20_000)))
}

/// Breaks the core's rule in this thread, where it is one of the core's.
pub(crate) fn switch(bug: Option<Bug>) {
    #[cfg(feature = "bug-flags")]
    crossover_core::bug::set(match bug {
        Some(Bug::Core(bug)) => Some(bug),
        _ => None,
    });
    #[cfg(not(feature = "bug-flags"))]
    let _ = bug;
}
