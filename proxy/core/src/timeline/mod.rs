//! The virtual log of one partition: an ordered list of eras, each a run of one cluster's log shown at a constant delta.
//!
//! Positions follow three rules (protocol reference §5.3): a request position rounds up, a record maps exactly, an
//! exclusive position (high watermark, log end) is "previous record + 1". Every read is cut at the native end of its
//! era, because two eras of one side are adjacent in that side's log.

mod codec;
mod commit;
mod epoch;

#[cfg(test)]
mod tests;

use crate::bug::{self, Bug};
use crate::ids::{ClusterSide, NativeOffset, VirtualOffset};

pub use codec::DecodeError;
pub use commit::{ResolvedCommit, StoredCommit, TAG_PREFIX, resolve, to_stored};
pub use epoch::{EPOCH_GAP, EpochError, RequestEpoch};

/// The period of one partition between two flips. Virtual offset = native offset + (`virtual_start` − `native_start`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Era {
    /// 0 for the era before any flip.
    pub index: u32,
    pub side: ClusterSide,
    /// The first virtual offset of the era; at most that of the next era (equal when nothing was written).
    pub virtual_start: VirtualOffset,
    pub native_start: NativeOffset,
    /// Exclusive; `None` while the era is the current one.
    pub native_end: Option<NativeOffset>,
    /// The virtual epoch of `native_epoch_start` (R22).
    pub epoch_base: i32,
    pub native_epoch_start: i32,
    /// How often this partition had entered this side before: 0 at the first time (R6).
    pub visit: u16,
    /// Identity mode: this side's log also holds everything below `virtual_start`, at delta 0.
    pub holds_history: bool,
    /// When the SEAL that opened this era was written, in Unix milliseconds; 0 for era 0.
    pub sealed_at_ms: i64,
}

impl Era {
    /// The virtual offset of a native one in this era, without a range check; saturates.
    fn shift(&self, native: NativeOffset) -> VirtualOffset {
        VirtualOffset(clamp_i64(self.delta() + i128::from(native.0)))
    }

    /// The native offset of a virtual one in this era, without a range check; saturates.
    fn unshift(&self, offset: VirtualOffset) -> NativeOffset {
        NativeOffset(clamp_i64(i128::from(offset.0) - self.delta()))
    }

    fn delta(&self) -> i128 {
        i128::from(self.virtual_start.0) - i128::from(self.native_start.0)
    }

    /// Exclusive; `None` while the era is the current one.
    #[must_use]
    pub fn virtual_end(&self) -> Option<VirtualOffset> {
        self.native_end.map(|end| self.shift(end))
    }

    /// The virtual offset of the record at `native`, read in this era.
    fn record(&self, native: NativeOffset) -> Option<VirtualOffset> {
        let first = if self.holds_history { NativeOffset(0) } else { self.native_start };
        let inside = native >= first && self.native_end.is_none_or(|end| native < end);
        inside.then(|| self.shift(native))
    }
}

/// Where a virtual position is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The index of the era.
    pub era: u32,
    pub side: ClusterSide,
    pub native: NativeOffset,
    /// The native position at which reads of this era are cut; `None` in the current era.
    pub end: Option<NativeOffset>,
}

/// The native log start of each side, indexed by [`ClusterSide::index`]. `None`: not known, the side is down.
pub type LogStarts = [Option<NativeOffset>; 2];

/// What SEAL makes durable about one partition: where the current era ends and the next one starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Boundary {
    /// The new owner; the other side than the current era's.
    pub to: ClusterSide,
    /// The old owner's log end, trailing markers included.
    pub old_native_end: NativeOffset,
    /// The new owner's log end before its first record of the new era.
    pub new_native_start: NativeOffset,
    /// The old owner's leader epoch at SEAL.
    pub old_native_epoch: i32,
    /// The highest virtual epoch this proxy handed out (never what a client merely claimed); −1 when none.
    pub highest_virtual_epoch_seen: i32,
    /// The new owner's leader epoch at SEAL.
    pub new_native_epoch: i32,
    /// The new owner's log is an offset-preserving copy of the whole virtual log.
    pub identity: bool,
    /// Unix milliseconds.
    pub at_ms: i64,
}

/// Why a boundary cannot be sealed; the partition stays with its old owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    #[error("the partition is already on {0}")]
    SameSide(ClusterSide),
    #[error("the era starts at {start} on {side} and cannot end at {end}")]
    EndBelowStart { side: ClusterSide, start: i64, end: i64 },
    #[error("a former era ends at {end} on {side}; the next one cannot start at {start}")]
    StartBelowFormerEnd { side: ClusterSide, end: i64, start: i64 },
    #[error("identity needs every era on {0} at delta 0 and its log end at the virtual end")]
    NotIdentical(ClusterSide),
    #[error("leader epoch {epoch} lies below the start of its era, {start}")]
    EpochBelowStart { epoch: i32, start: i32 },
    #[error("virtual epoch {0} does not lie above every epoch of the era before")]
    EpochNotRising(i32),
    #[error("virtual offsets are exhausted")]
    OffsetOverflow,
    #[error("virtual leader epochs are exhausted")]
    EpochOverflow,
    #[error("visits of {0} are exhausted")]
    VisitOverflow(ClusterSide),
}

/// The start of an era, as SEAL and the store describe it; everything else of [`Era`] follows from the eras before.
struct Opening {
    side: ClusterSide,
    native_start: NativeOffset,
    epoch_base: i32,
    native_epoch_start: i32,
    holds_history: bool,
    sealed_at_ms: i64,
}

/// The eras of one partition, oldest first. Immutable: a flip makes a new one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timeline {
    id: u64,
    floor: VirtualOffset,
    past: Vec<Era>,
    current: Era,
}

impl Timeline {
    /// A partition that was never flipped: offsets and epochs of `side` are shown unchanged.
    ///
    /// `id` names the timeline in commit tags: a recreated topic needs a new one.
    #[must_use]
    pub fn initial(id: u64, side: ClusterSide) -> Timeline {
        let current = Era {
            index: 0,
            side,
            virtual_start: VirtualOffset(0),
            native_start: NativeOffset(0),
            native_end: None,
            epoch_base: 0,
            native_epoch_start: 0,
            visit: 0,
            holds_history: false,
            sealed_at_ms: 0,
        };
        Timeline { id, floor: VirtualOffset(0), past: Vec::new(), current }
    }

    /// Ends the current era and opens the next one on the other side.
    ///
    /// # Errors
    /// [`SealError`] when the boundary would make an offset or an epoch ambiguous or fall back.
    pub fn seal(&self, boundary: &Boundary) -> Result<Timeline, SealError> {
        let opening = Opening {
            side: boundary.to,
            native_start: boundary.new_native_start,
            epoch_base: self.next_epoch_base(boundary)?,
            native_epoch_start: boundary.new_native_epoch,
            holds_history: boundary.identity,
            sealed_at_ms: boundary.at_ms,
        };
        let mut next = self.clone();
        next.append(boundary.old_native_end, &opening)?;
        Ok(next)
    }

    /// The one way an era comes into being, for SEAL and for the store alike, so that both keep the invariants.
    fn append(&mut self, old_native_end: NativeOffset, opening: &Opening) -> Result<(), SealError> {
        let side = opening.side;
        if side == self.current.side {
            return Err(SealError::SameSide(side));
        }
        self.check_native(old_native_end, opening)?;
        let virtual_start = self.current.delta() + i128::from(old_native_end.0);
        let virtual_start = i64::try_from(virtual_start).map_err(|_| SealError::OffsetOverflow)?;
        if opening.holds_history && !self.is_identical(opening, virtual_start) {
            return Err(SealError::NotIdentical(side));
        }
        self.check_epochs(opening)?;
        let visit = u16::try_from(self.on_side(side).count()).map_err(|_| SealError::VisitOverflow(side))?;
        let next = Era {
            index: self.current.index.checked_add(1).ok_or(SealError::VisitOverflow(side))?,
            side,
            virtual_start: VirtualOffset(virtual_start),
            native_start: opening.native_start,
            native_end: None,
            epoch_base: opening.epoch_base,
            native_epoch_start: opening.native_epoch_start,
            visit,
            holds_history: opening.holds_history,
            sealed_at_ms: opening.sealed_at_ms,
        };
        let mut ended = std::mem::replace(&mut self.current, next);
        ended.native_end = Some(old_native_end);
        self.past.push(ended);
        Ok(())
    }

    fn check_native(&self, old_native_end: NativeOffset, opening: &Opening) -> Result<(), SealError> {
        let old = &self.current;
        if old_native_end < old.native_start {
            let (start, end) = (old.native_start.0, old_native_end.0);
            return Err(SealError::EndBelowStart { side: old.side, start, end });
        }
        // A start below a former end (an unclean truncation) would give one native offset two virtual ones.
        let former = self.side_end(opening.side).unwrap_or(NativeOffset(0));
        if opening.native_start < former {
            let (end, start) = (former.0, opening.native_start.0);
            return Err(SealError::StartBelowFormerEnd { side: opening.side, end, start });
        }
        Ok(())
    }

    fn is_identical(&self, opening: &Opening, virtual_start: i64) -> bool {
        opening.native_start.0 == virtual_start && self.on_side(opening.side).all(|era| era.delta() == 0)
    }

    /// The name of the timeline in commit tags.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Everything below was deleted by a client and never shows again (R25).
    #[must_use]
    pub fn floor(&self) -> VirtualOffset {
        self.floor
    }

    /// The same timeline with the floor raised to `floor`; a floor never sinks.
    #[must_use]
    pub fn with_floor(&self, floor: VirtualOffset) -> Timeline {
        Timeline { floor: self.floor.max(floor), ..self.clone() }
    }

    #[must_use]
    pub fn current(&self) -> &Era {
        &self.current
    }

    #[must_use]
    pub fn era(&self, index: u32) -> Option<&Era> {
        if index == self.current.index {
            return Some(&self.current);
        }
        self.past.get(usize::try_from(index).ok()?)
    }

    /// How often the partition was flipped.
    #[must_use]
    pub fn past_eras(&self) -> usize {
        self.past.len()
    }

    /// All eras, oldest first; never empty.
    pub fn eras(&self) -> impl DoubleEndedIterator<Item = &Era> {
        self.past.iter().chain(std::iter::once(&self.current))
    }

    /// The eras of one side, oldest first: both their native and their virtual ranges rise.
    fn on_side(&self, side: ClusterSide) -> impl DoubleEndedIterator<Item = &Era> {
        self.eras().filter(move |era| era.side == side)
    }

    /// The end of the last era on a side that is not the owner; `None` for the owner and for a side never entered.
    fn side_end(&self, side: ClusterSide) -> Option<NativeOffset> {
        self.on_side(side).next_back().and_then(|era| era.native_end)
    }

    /// Where a request position is read: the era that holds it, or the owner when its log holds all history.
    ///
    /// Sentinels (negative positions) are the caller's; here they read as 0. The floor and the log start are not
    /// applied, see [`Timeline::locate_retained`].
    #[must_use]
    pub fn locate(&self, position: VirtualOffset) -> Place {
        let position = position.max(VirtualOffset(0));
        let era = self.era_of(position);
        Place { era: era.index, side: era.side, native: era.unshift(position), end: era.native_end }
    }

    fn era_of(&self, position: VirtualOffset) -> &Era {
        if self.current.holds_history || position >= self.current.virtual_start {
            return &self.current;
        }
        // The last era that starts at or below: an empty era is passed over in favour of the one after it.
        let after = self.past.partition_point(|era| era.virtual_start <= position);
        after.checked_sub(1).and_then(|i| self.past.get(i)).unwrap_or(&self.current)
    }

    /// Where reading goes on once `era` is read to its native end; `None` after the current era.
    #[must_use]
    pub fn next_place(&self, era: u32) -> Option<Place> {
        self.era(era).and_then(Era::virtual_end).map(|end| self.locate(end))
    }

    /// Like [`Timeline::locate`], but records that a side has dropped read as "next record" (R23): the place of the
    /// first position ≥ `position` that may still hold a record, never below the floor.
    ///
    /// `None` when the log start of a side that matters is not known: a retriable error, never a guess (R24).
    #[must_use]
    pub fn locate_retained(&self, position: VirtualOffset, starts: LogStarts) -> Option<Place> {
        let mut place = self.locate(position.max(self.floor));
        loop {
            let start = starts[place.side.index()]?;
            if place.end.is_none_or(|end| start < end) {
                place.native = place.native.max(start);
                return Some(place);
            }
            place = self.next_place(place.era)?;
        }
    }

    /// The virtual log start (R23): the first retained record of the oldest era that has one, never below the floor.
    ///
    /// `None` when the log start of a side that matters is not known.
    #[must_use]
    pub fn log_start_to_virtual(&self, starts: LogStarts) -> Option<VirtualOffset> {
        let place = self.locate_retained(VirtualOffset(0), starts)?;
        self.era(place.era).map(|era| era.shift(place.native))
    }

    /// The virtual offset of a record read in `era`; `None` outside the era.
    #[must_use]
    pub fn record_to_virtual(&self, era: u32, native: NativeOffset) -> Option<VirtualOffset> {
        self.era(era)?.record(native)
    }

    /// The oldest era in which the record at `native` of `side` shows, and its virtual offset; `None` for a record
    /// that belongs to no era (appended while the side was idle).
    #[must_use]
    pub fn record_on_side(&self, side: ClusterSide, native: NativeOffset) -> Option<(u32, VirtualOffset)> {
        self.on_side(side).find_map(|era| Some((era.index, era.record(native)?)))
    }

    /// An exclusive position (high watermark, LSO, log end) of `era`, clamped into the era (R21): never below its
    /// start, never past its end. An index this timeline does not have reads as the current era.
    #[must_use]
    pub fn exclusive_to_virtual(&self, era: u32, native: NativeOffset) -> VirtualOffset {
        let era = self.era(era).unwrap_or(&self.current);
        let position = era.shift(native).max(era.virtual_start);
        era.virtual_end().map_or(position, |end| position.min(end))
    }

    /// How far `side` is deleted by DeleteRecords(`position`) (R25): its highest native position whose virtual image
    /// is ≤ `position`; `None` when nothing of this side lies there.
    #[must_use]
    pub fn native_boundary_for_delete(
        &self,
        side: ClusterSide,
        position: VirtualOffset,
    ) -> Option<NativeOffset> {
        if position < VirtualOffset(0) {
            return None;
        }
        if self.copy_holds(side, position) {
            return Some(NativeOffset(position.0));
        }
        let era = self.on_side(side).rfind(|era| era.virtual_start <= position)?;
        let native = era.unshift(position);
        let end = era.native_end.filter(|_| !bug::is(Bug::R25Uncut));
        Some(end.map_or(native, |end| native.min(end)))
    }

    /// Whether `position` lies in what `side` holds as an offset-preserving copy.
    fn copy_holds(&self, side: ClusterSide, position: VirtualOffset) -> bool {
        self.on_side(side).any(|era| era.holds_history && position < era.virtual_start)
    }
}

fn clamp_i64(value: i128) -> i64 {
    i64::try_from(value).unwrap_or(if value < 0 { i64::MIN } else { i64::MAX })
}
