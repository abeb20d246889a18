//! Rules of exactness that a test can switch off, to show that it notices (docs/adr/0008-bug-flags.md).
//!
//! Without the feature `bug-flags` every question is answered with a constant, and nothing of this is in the binary.

/// A rule that is broken on purpose. The names are those of RULES.md.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// Produce without sequences does not wait for what is under way on another connection.
    R1Path,
    /// … nor for what is kept on another connection.
    R1Kept,
    /// Produce without sequences whose connection was lost is sent again.
    R2PlainAgain,
    /// Produce without sequences that is given up is answered with an error.
    R2PlainError,
    /// A flip goes on although a connection with produce in flight was lost.
    R2LossIgnored,
    /// A batch whose predecessor is missing, or kept on another connection, passes.
    R3Gap,
    /// The second batch of a producer passes before the new owner has confirmed the first.
    R3Unconfirmed,
    /// The same producer is let through on two connections at a time.
    R3OtherPath,
    /// What the old owner has is not recognised.
    R4NoCarry,
    /// It is recognised, and acknowledged at another offset.
    R4Offset,
    /// The carry is what the old owner lists.
    R5NotCumulative,
    /// The carry is what the proxy saw acknowledged.
    R5NoOverlay,
    /// Batches go to a cluster that is entered again under the old producer id.
    R6Visit,
    /// A timeout, which leaves open whether the batch was appended, is retried without sequences.
    R8TimedOut,
    /// R8: what a leader has appended before it stepped down is sent to the next one, whatever that says.
    R8Successor,
    /// The refusal of a batch whose predecessor is being repeated is passed on.
    R8Echo,
    /// The boundary is the high watermark, whatever the log end is.
    R11Ends,
    /// Nobody waits until the gates are quiet.
    R11NoDrain,
    /// The new owner takes produce before SEAL is durable.
    R13PublishFirst,
    /// After a SEAL of unknown outcome the old owner goes on.
    R13UnknownReleased,
    /// The gate lets produce pass that was planned with another route table.
    R14Stale,
    /// The fence of a gate does not hold.
    R14Fence,
    /// An abort is obeyed although SEAL is being written.
    R16AbortLate,
    /// A fetch at an owner shows a moved partition as idle.
    R17Moved,
    /// A read goes over the end of its era.
    R21Cut,
    /// Ends of an older era are handed out as they are.
    R21Ends,
    /// Epochs are not moved by an era.
    R22Epoch,
    /// An epoch of an older era is sent to the owner.
    R22Older,
    /// A hole between eras is out of range.
    R23Hole,
    /// The log starts where the owner's does.
    R23OwnersStart,
    /// An end that the old owner has told is taken for one of the new owner.
    R21LateEnd,
    /// Times are looked for at the owner only.
    R24OwnerOnly,
    /// A side that does not answer is passed over.
    R24NextEra,
    /// Records are deleted at the owner only.
    R25OwnerOnly,
    /// A side is deleted over the end of the era in which the position lies.
    R25Uncut,
    /// What was deleted can be read as long as its side has it.
    R25Shown,
    /// A position without a native image is stored as the number that comes next to it.
    R27NoTag,
    /// The number beside a tag is taken, not what the tag says.
    R27TagIgnored,
    /// A number at which two eras of a side meet is the start of the second one.
    R27Skips,
    /// A transaction begins on a topic that a flip has closed.
    TxnClosed,
    /// A transaction begins that was planned with the route table from before a flip.
    TxnSince,
    /// Those that join a transaction do not wait until its transactional id has moved.
    TxnJoins,
    /// A transactional id moves while its coordinator is asked for an identity.
    TxnMoveMeanwhile,
    /// A move whose client has gone is over for those that wait for it.
    TxnMoveLeft,
    /// A route table from before the move of a transactional id is believed.
    TxnHomeStale,
    /// A new producer gets its identity where its transactional id is about to leave.
    TxnInitMoving,
    /// A producer whose transactional id is another one's is not told so.
    TxnFenced,
    /// Producer ids that the target has allocated look like the source's.
    TxnClientId,
    /// Batches keep the identity that their client knows.
    TxnNative,
    /// A transaction begins with topics of both clusters.
    TxnSpans,
    /// A transaction takes in a topic of the other cluster.
    TxnSpansLater,
    /// Aborted transactions are named at native offsets.
    TxnAborted,
    /// The end that a fenced producer is told of is that of the next one's transaction.
    TxnEndsNext,
}

#[cfg(feature = "bug-flags")]
mod switch {
    use super::Bug;
    use std::cell::Cell;

    thread_local! {
        static BROKEN: Cell<Option<Bug>> = const { Cell::new(None) };
    }

    /// Breaks a rule in this thread, or none.
    pub fn set(bug: Option<Bug>) {
        BROKEN.set(bug);
    }

    /// The flags that make sense for a whole process.
    #[must_use]
    pub fn named(name: &str) -> Option<Bug> {
        let all = [Bug::R1Path, Bug::R1Kept, Bug::R2PlainAgain, Bug::R2LossIgnored, Bug::R11NoDrain];
        all.into_iter().find(|bug| format!("{bug:?}") == name)
    }

    pub(crate) fn is(bug: Bug) -> bool {
        BROKEN.get() == Some(bug)
    }
}

#[cfg(not(feature = "bug-flags"))]
mod switch {
    pub(crate) const fn is(_: super::Bug) -> bool {
        false
    }
}

pub(crate) use switch::is;
#[cfg(feature = "bug-flags")]
pub use switch::{named, set};
