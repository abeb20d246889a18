//! Deliberately wrong behaviour, one flag at a time. The simulator must notice each of them.

#[cfg(feature = "bug-flags")]
use crossover_core::bug::Bug as CoreBug;

/// A rule that the shell keeps, or that the driver of a flip does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bug {
    /// A flip goes on although a connection with produce in flight was lost.
    R2LossIgnored,
    /// A flip does not wait until what was lost can have reached no log any more.
    R2NoGrace,
    /// After a start the gates open with what the last SEAL knew.
    R3NoSeed,
    /// The carry is what the old owner lists.
    R5NotCumulative,
    /// The carry is what the proxy saw acknowledged.
    R5NoOverlay,
    /// The boundary is the high watermark, whatever the log end is.
    R11Ends,
    /// Nobody waits until the gates are quiet.
    R11NoDrain,
    /// The new owner takes produce before SEAL is durable.
    R13PublishFirst,
    /// After a SEAL of unknown outcome the old owner goes on.
    R13UnknownReleased,
    /// An abort is obeyed although SEAL is being written.
    R16AbortLate,
    #[cfg(feature = "bug-flags")]
    Core(CoreBug),
}

#[cfg(feature = "bug-flags")]
pub(crate) const ALL: &[Bug] = &[
    Bug::R2LossIgnored,
    Bug::R2NoGrace,
    Bug::R3NoSeed,
    Bug::R5NotCumulative,
    Bug::R5NoOverlay,
    Bug::R11Ends,
    Bug::R11NoDrain,
    Bug::R13PublishFirst,
    Bug::R13UnknownReleased,
    Bug::R16AbortLate,
    Bug::Core(CoreBug::R1Path),
    Bug::Core(CoreBug::R1Kept),
    Bug::Core(CoreBug::R2PlainAgain),
    Bug::Core(CoreBug::R3Gap),
    Bug::Core(CoreBug::R3Unconfirmed),
    Bug::Core(CoreBug::R3OtherPath),
    Bug::Core(CoreBug::R4NoCarry),
    Bug::Core(CoreBug::R4Offset),
    Bug::Core(CoreBug::R6Visit),
    Bug::Core(CoreBug::R8TimedOut),
    Bug::Core(CoreBug::R8Echo),
    Bug::Core(CoreBug::R14Stale),
    Bug::Core(CoreBug::R14Fence),
    Bug::Core(CoreBug::R17Moved),
    Bug::Core(CoreBug::R21Cut),
    Bug::Core(CoreBug::R21Ends),
    Bug::Core(CoreBug::R22Epoch),
    Bug::Core(CoreBug::R22Older),
    Bug::Core(CoreBug::R23Hole),
];

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
