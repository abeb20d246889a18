//! The decisions of a flip: when a log is quiet, where the eras meet, and what refuses it; and the [machine](Flip)
//! that takes them in order. No input or output here: the shell reads the clusters and shows what it read.

mod abort;
mod flip;

pub use abort::{Abort, Grown, Unsettled};
pub use flip::{
    Action, Ends, Event, Flip, Lead, Now, Outcome, Readings, Sealed, Step, Stored, Terms, Told, check_idle,
    fence_ms_max,
};

use crate::ids::{ClusterSide, NativeOffset, VirtualOffset};
use crate::timeline::{Boundary, SealError, Timeline};
use std::sync::Arc;

/// A partition of a topic by its virtual name.
pub type Part = (Arc<str>, i32);

/// What the leader of one partition said, in the order it was asked (RULES R11).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading {
    pub leader: i32,
    /// Its leader epoch; −1 where the cluster does not tell.
    pub epoch: i32,
    /// `ListOffsets` latest, asked before DescribeProducers.
    pub before: i64,
    /// `ListOffsets` latest with replica −1, behind the barrier.
    pub high_watermark: i64,
    /// `ListOffsets` latest with replica −2.
    pub log_end: i64,
    /// `ListOffsets` latest, read committed.
    pub last_stable: i64,
}

/// Why a log is not proven quiet. Worth asking again until the hold bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unquiet {
    #[error(
        "its ends differ: {before} before the barrier, high watermark {high_watermark}, log end {log_end}, last stable offset {last_stable}"
    )]
    Ends { before: i64, high_watermark: i64, log_end: i64, last_stable: i64 },
    #[error("leader or epoch changed: {was:?}, now {is:?}")]
    Leader { was: (i32, i32), is: (i32, i32) },
}

/// Why the new owner cannot start where PREPARE saw its end (RULES R12).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StartError {
    #[error(
        "the new owner's log went from {prepared} to {now} although it is idle: somebody writes to it directly"
    )]
    Grew { prepared: i64, now: i64 },
    #[error("the new owner's high watermark {high_watermark} is not its log end {log_end}")]
    NotReplicated { high_watermark: i64, log_end: i64 },
    #[error("the new owner did not tell its log end")]
    Unknown,
}

/// The end of a quiet log: all ends equal, one leader and epoch throughout.
///
/// # Errors
/// [`Unquiet`]: ask again, or abort.
pub fn quiet_end(expected: (i32, i32), reading: &Reading) -> Result<NativeOffset, Unquiet> {
    let is = (reading.leader, reading.epoch);
    if is != expected {
        return Err(Unquiet::Leader { was: expected, is });
    }
    let Reading { before, high_watermark, log_end, last_stable, .. } = *reading;
    if [before, high_watermark, last_stable].iter().all(|end| *end == log_end) {
        Ok(NativeOffset(log_end))
    } else {
        Err(Unquiet::Ends { before, high_watermark, log_end, last_stable })
    }
}

/// Where the new owner's era starts.
///
/// # Errors
/// [`StartError`]: abort.
pub fn start(prepared: i64, high_watermark: i64, log_end: i64) -> Result<NativeOffset, StartError> {
    if log_end < 0 {
        return Err(StartError::Unknown);
    }
    if log_end != prepared {
        return Err(StartError::Grew { prepared, now: log_end });
    }
    if high_watermark != log_end {
        return Err(StartError::NotReplicated { high_watermark, log_end });
    }
    Ok(NativeOffset(log_end))
}

/// Why an offset-preserving copy cannot take over yet. Worth asking again until the hold bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the copy stands at {log_end} (high watermark {high_watermark}), the virtual log ends at {wanted}")]
pub struct Behind {
    pub wanted: i64,
    pub high_watermark: i64,
    pub log_end: i64,
}

/// Where the era of an offset-preserving copy starts (mode `identity`): exactly at the virtual end.
///
/// # Errors
/// [`Behind`]: ask again, or abort.
pub fn caught_up(wanted: VirtualOffset, high_watermark: i64, log_end: i64) -> Result<NativeOffset, Behind> {
    if high_watermark == wanted.0 && log_end == wanted.0 {
        Ok(NativeOffset(log_end))
    } else {
        Err(Behind { wanted: wanted.0, high_watermark, log_end })
    }
}

/// What the next era of a partition is made of.
#[derive(Clone, Copy, Debug)]
pub struct Meeting {
    pub to: ClusterSide,
    pub old_end: NativeOffset,
    pub new_start: NativeOffset,
    pub old_epoch: i32,
    pub new_epoch: i32,
    /// The highest virtual epoch handed out; −1 when none.
    pub highest_epoch_seen: i32,
    pub identity: bool,
    /// Unix milliseconds.
    pub at_ms: i64,
}

/// Seals one partition. Clusters that tell no epochs count as epoch 0 throughout.
///
/// # Errors
/// [`SealError`]: abort.
pub fn seal(timeline: &Timeline, meeting: &Meeting) -> Result<Timeline, SealError> {
    timeline.seal(&Boundary {
        to: meeting.to,
        old_native_end: meeting.old_end,
        new_native_start: meeting.new_start,
        old_native_epoch: meeting.old_epoch.max(timeline.current().native_epoch_start),
        highest_virtual_epoch_seen: meeting.highest_epoch_seen,
        new_native_epoch: meeting.new_epoch.max(0),
        identity: meeting.identity,
        at_ms: meeting.at_ms,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(end: i64) -> Reading {
        Reading { leader: 1, epoch: 5, before: end, high_watermark: end, log_end: end, last_stable: end }
    }

    #[test]
    fn r11_all_ends_and_the_leader_must_agree() {
        assert_eq!(quiet_end((1, 5), &reading(7)), Ok(NativeOffset(7)));
        for other in [
            Reading { before: 6, ..reading(7) },
            Reading { high_watermark: 6, ..reading(7) },
            Reading { log_end: 8, ..reading(7) },
            Reading { last_stable: 3, ..reading(7) },
        ] {
            assert!(matches!(quiet_end((1, 5), &other), Err(Unquiet::Ends { .. })));
        }
        assert!(matches!(quiet_end((2, 5), &reading(7)), Err(Unquiet::Leader { .. })));
        assert!(matches!(quiet_end((1, 4), &reading(7)), Err(Unquiet::Leader { .. })));
    }

    #[test]
    fn r12_the_new_owner_must_not_have_moved() {
        assert_eq!(start(3, 3, 3), Ok(NativeOffset(3)));
        assert_eq!(start(3, 4, 4), Err(StartError::Grew { prepared: 3, now: 4 }));
        assert_eq!(start(3, 2, 3), Err(StartError::NotReplicated { high_watermark: 2, log_end: 3 }));
        assert_eq!(start(-1, -1, -1), Err(StartError::Unknown));
    }

    #[test]
    fn an_identical_copy_starts_exactly_at_the_virtual_end() {
        assert_eq!(caught_up(VirtualOffset(9), 9, 9), Ok(NativeOffset(9)));
        for (high_watermark, log_end) in [(8, 9), (8, 8), (9, 10), (10, 10), (-1, -1)] {
            let behind = Behind { wanted: 9, high_watermark, log_end };
            assert_eq!(caught_up(VirtualOffset(9), high_watermark, log_end), Err(behind));
        }
    }

    #[test]
    fn sealing_joins_the_eras() {
        let first = Timeline::initial(1, ClusterSide::Source);
        let meeting = Meeting {
            to: ClusterSide::Target,
            old_end: NativeOffset(10),
            new_start: NativeOffset(4),
            old_epoch: -1,
            new_epoch: 0,
            highest_epoch_seen: 57,
            identity: false,
            at_ms: 1,
        };
        let second = seal(&first, &meeting).expect("sealed");
        assert_eq!(second.current().virtual_start.0, 10);
        assert!(second.current().epoch_base > 57);
    }
}
