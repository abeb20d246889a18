//! The stored form of a timeline. Version 1, big-endian:
//!
//! `version u8 | id u64 | floor i64 | era count u32`, then per era `flags u8 (bit 0: target, bit 1: holds history) |
//! native_start i64 | epoch_base i32 | native_epoch_start i32 | sealed_at_ms i64 | native_end i64 (not in the last)`.
//! What follows from the eras before (index, virtual start, visit) is not stored, so it cannot disagree.

use super::{Opening, SealError, Timeline};
use crate::ids::{ClusterSide, NativeOffset, VirtualOffset};

const VERSION: u8 = 1;
const FLAG_TARGET: u8 = 1;
const FLAG_HISTORY: u8 = 2;
const HEADER_LEN: usize = 1 + 8 + 8 + 4;
const ERA_LEN: usize = 1 + 8 + 4 + 4 + 8;
const END_LEN: usize = 8;

/// Why stored bytes are not a timeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    #[error("timeline format {0} is not known")]
    Version(u8),
    #[error("the length does not fit the number of eras")]
    Length,
    #[error("unknown era flags {0:#04x}")]
    Flags(u8),
    #[error("the floor {0} is negative")]
    Floor(i64),
    #[error("the first era does not start at 0")]
    FirstEra,
    #[error("an era contradicts the one before it: {0}")]
    Era(#[from] SealError),
}

impl Timeline {
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER_LEN + (self.past.len() + 1) * (ERA_LEN + END_LEN));
        out.push(VERSION);
        out.extend(self.id.to_be_bytes());
        out.extend(self.floor.0.to_be_bytes());
        out.extend((self.current.index + 1).to_be_bytes());
        for era in self.eras() {
            let target = if era.side == ClusterSide::Target { FLAG_TARGET } else { 0 };
            out.push(target | if era.holds_history { FLAG_HISTORY } else { 0 });
            out.extend(era.native_start.0.to_be_bytes());
            out.extend(era.epoch_base.to_be_bytes());
            out.extend(era.native_epoch_start.to_be_bytes());
            out.extend(era.sealed_at_ms.to_be_bytes());
            out.extend(era.native_end.map(|end| end.0.to_be_bytes()).into_iter().flatten());
        }
        out
    }

    /// The inverse of [`Timeline::encode`]; every invariant is checked again.
    ///
    /// # Errors
    /// [`DecodeError`] for anything that `encode` does not write.
    pub fn decode(bytes: &[u8]) -> Result<Timeline, DecodeError> {
        let mut input = Reader(bytes);
        match input.take::<1>()?[0] {
            VERSION => {}
            other => return Err(DecodeError::Version(other)),
        }
        let id = u64::from_be_bytes(input.take()?);
        let floor = VirtualOffset(i64::from_be_bytes(input.take()?));
        if floor.0 < 0 {
            return Err(DecodeError::Floor(floor.0));
        }
        let count = u32::from_be_bytes(input.take()?);
        let flips = count.checked_sub(1).ok_or(DecodeError::Length)?;
        let expected = u64::from(flips) * (ERA_LEN + END_LEN) as u64 + ERA_LEN as u64;
        if input.0.len() as u64 != expected {
            return Err(DecodeError::Length);
        }
        let mut timeline = first_era(id, &input.opening()?)?;
        timeline.floor = floor;
        for _ in 0..flips {
            let end = NativeOffset(i64::from_be_bytes(input.take()?));
            timeline.append(end, &input.opening()?)?;
        }
        Ok(timeline)
    }
}

fn first_era(id: u64, opening: &Opening) -> Result<Timeline, DecodeError> {
    let mut timeline = Timeline::initial(id, opening.side);
    let first = &mut timeline.current;
    let numbers = (opening.native_start, opening.epoch_base, opening.native_epoch_start);
    if opening.holds_history || numbers != (first.native_start, first.epoch_base, first.native_epoch_start) {
        return Err(DecodeError::FirstEra);
    }
    first.sealed_at_ms = opening.sealed_at_ms;
    Ok(timeline)
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let (head, rest) = self.0.split_first_chunk::<N>().ok_or(DecodeError::Length)?;
        self.0 = rest;
        Ok(*head)
    }

    fn opening(&mut self) -> Result<Opening, DecodeError> {
        let flags = self.take::<1>()?[0];
        if flags & !(FLAG_TARGET | FLAG_HISTORY) != 0 {
            return Err(DecodeError::Flags(flags));
        }
        Ok(Opening {
            side: if flags & FLAG_TARGET == 0 { ClusterSide::Source } else { ClusterSide::Target },
            native_start: NativeOffset(i64::from_be_bytes(self.take()?)),
            epoch_base: i32::from_be_bytes(self.take()?),
            native_epoch_start: i32::from_be_bytes(self.take()?),
            holds_history: flags & FLAG_HISTORY != 0,
            sealed_at_ms: i64::from_be_bytes(self.take()?),
        })
    }
}
