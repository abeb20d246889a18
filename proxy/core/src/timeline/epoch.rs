//! Virtual leader epochs (R22): era k shows `epoch_base + native − native_epoch_start`, and every flip rises.

use super::{Boundary, Era, Opening, SealError, Timeline};
use crate::bug::{self, Bug};
use crate::ids::{NativeOffset, VirtualOffset};

/// How far a new era's epochs start above everything the era before handed out; what lies between is left to epochs of
/// the old era that are learnt after SEAL.
pub const EPOCH_GAP: i32 = 1024;

/// A native epoch that has no virtual one: the caller alarms and stops the route.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EpochError {
    #[error("era {era} starts at leader epoch {start}, the broker says {native}")]
    BelowStart { era: u32, native: i32, start: i32 },
    #[error("leader epoch {native} of era {era} exceeds the virtual range")]
    Overflow { era: u32, native: i32 },
    #[error("there is no era {0}")]
    UnknownEra(u32),
}

/// A leader epoch a client sent, as the owner is told it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestEpoch {
    /// An epoch of the current era, in the owner's numbers.
    Native(i32),
    /// An epoch of this older era: −1 goes upstream.
    Older(u32),
    /// A sentinel (negative): goes upstream as it is.
    Unknown(i32),
}

impl Timeline {
    /// base(k+1): above the old era's epoch at SEAL and above everything handed out.
    pub(super) fn next_epoch_base(&self, boundary: &Boundary) -> Result<i32, SealError> {
        let old = &self.current;
        let (epoch, start) = (boundary.old_native_epoch, old.native_epoch_start);
        if epoch < start {
            return Err(SealError::EpochBelowStart { epoch, start });
        }
        let highest = unclamped(old, epoch).max(i64::from(boundary.highest_virtual_epoch_seen));
        i32::try_from(highest + i64::from(EPOCH_GAP)).map_err(|_| SealError::EpochOverflow)
    }

    pub(super) fn check_epochs(&self, opening: &Opening) -> Result<(), SealError> {
        if opening.native_epoch_start < 0 {
            return Err(SealError::EpochBelowStart { epoch: opening.native_epoch_start, start: 0 });
        }
        let lowest = i64::from(self.current.epoch_base) + i64::from(EPOCH_GAP);
        if i64::from(opening.epoch_base) < lowest {
            return Err(SealError::EpochNotRising(opening.epoch_base));
        }
        Ok(())
    }

    /// The virtual leader epoch of `native` in `era`. Sentinels (negative) pass unchanged; an epoch of an older era
    /// stays below the next era's base, however late it is learnt.
    ///
    /// # Errors
    /// [`EpochError`]: the broker's epoch fell back or the range is exhausted; the route must stop.
    pub fn epoch_to_virtual(&self, era: u32, native: i32) -> Result<i32, EpochError> {
        if native < 0 {
            return Ok(native);
        }
        let found = self.era(era).ok_or(EpochError::UnknownEra(era))?;
        let start = found.native_epoch_start;
        if native < start {
            return Err(EpochError::BelowStart { era, native, start });
        }
        if bug::is(Bug::R22Epoch) {
            return Ok(native);
        }
        let ceiling = self.era_after(found).map_or(i32::MAX, |next| next.epoch_base - 1);
        let epoch = unclamped(found, native);
        match i32::try_from(epoch) {
            Ok(epoch) => Ok(epoch.min(ceiling)),
            Err(_) if ceiling < i32::MAX => Ok(ceiling),
            Err(_) => Err(EpochError::Overflow { era, native }),
        }
    }

    /// The virtual leader epoch of a batch at `offset` read in `era`: as [`Timeline::epoch_to_virtual`], but in the
    /// history an identity copy holds an epoch below the era's start is no fault. It shows as the last epoch before
    /// the era.
    ///
    /// # Errors
    /// As [`Timeline::epoch_to_virtual`].
    pub fn batch_epoch_to_virtual(
        &self,
        era: u32,
        offset: NativeOffset,
        native: i32,
    ) -> Result<i32, EpochError> {
        match (self.epoch_to_virtual(era, native), self.era(era)) {
            (Err(EpochError::BelowStart { .. }), Some(found))
                if found.holds_history && offset < found.native_start =>
            {
                Ok(found.epoch_base - 1)
            }
            (result, _) => result,
        }
    }

    /// The owner's epoch for one a client sent. An epoch above all the owner has stays above, so that the broker
    /// answers UNKNOWN_LEADER_EPOCH itself.
    #[must_use]
    pub fn request_epoch(&self, epoch: i32) -> RequestEpoch {
        if epoch < 0 {
            return RequestEpoch::Unknown(epoch);
        }
        let current = &self.current;
        if epoch < current.epoch_base {
            return RequestEpoch::Older(self.era_of_epoch(epoch).index);
        }
        let native = i64::from(epoch) - i64::from(current.epoch_base) + i64::from(current.native_epoch_start);
        RequestEpoch::Native(i32::try_from(native).unwrap_or(i32::MAX))
    }

    /// OffsetForLeaderEpoch of an older era, answered without asking: the epoch asked and the start of the next era.
    /// `None` for the current era (ask the owner) and for sentinels.
    #[must_use]
    pub fn epoch_end(&self, epoch: i32) -> Option<(i32, VirtualOffset)> {
        match self.request_epoch(epoch) {
            RequestEpoch::Older(era) => Some((epoch, self.era(era)?.virtual_end()?)),
            RequestEpoch::Native(_) | RequestEpoch::Unknown(_) => None,
        }
    }

    /// The owner's own OffsetForLeaderEpoch answer in virtual numbers. An epoch from before the current era means that
    /// nothing of the asked epoch is there: the end is the era's start. Undefined (negative) values pass unchanged.
    ///
    /// # Errors
    /// [`EpochError::Overflow`] when the virtual range is exhausted.
    pub fn epoch_end_to_virtual(
        &self,
        native_epoch: i32,
        native_end: NativeOffset,
    ) -> Result<(i32, VirtualOffset), EpochError> {
        let current = &self.current;
        if native_epoch < 0 || native_end.0 < 0 {
            return Ok((native_epoch, VirtualOffset(native_end.0)));
        }
        if native_epoch < current.native_epoch_start {
            return Ok((current.epoch_base - 1, current.virtual_start));
        }
        let epoch = self.epoch_to_virtual(current.index, native_epoch)?;
        Ok((epoch, self.exclusive_to_virtual(current.index, native_end)))
    }

    fn era_of_epoch(&self, epoch: i32) -> &Era {
        self.eras().rfind(|era| era.epoch_base <= epoch).unwrap_or(&self.current)
    }

    fn era_after(&self, era: &Era) -> Option<&Era> {
        era.index.checked_add(1).and_then(|next| self.era(next))
    }
}

fn unclamped(era: &Era, native: i32) -> i64 {
    i64::from(era.epoch_base) + i64::from(native) - i64::from(era.native_epoch_start)
}
