//! The durable form of a carry.
//!
//! `version:u8 = 1, producers:u32`, then per producer `pid:i64 epoch:i16 last_sequence:i32 last_seen_ms:i64 batches:u8`
//! and per batch `first:i32 last:i32 base:i64` (−1: unknown). Big-endian.

use super::{AckedBatch, BATCHES_MAX, Carry, CarryEntry};
use crate::ids::VirtualOffset;
use crate::producer::pid;
use thiserror::Error;

pub(super) const VERSION: u8 = 1;
const ENTRY_SIZE_MIN: usize = 23;
const UNKNOWN_BASE: i64 = -1;

/// Why bytes are not an encoded carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum CarryDecodeError {
    #[error("carry has the unknown format version {0}")]
    Version(u8),
    #[error("carry ends too early")]
    Truncated,
    #[error("carry has {0} bytes behind its end")]
    Trailing(usize),
    #[error("carry has an impossible entry for producer id {0}")]
    Entry(i64),
}

impl Carry {
    /// The durable form: producers and batches, not the limit nor the count of evictions.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![VERSION];
        // More than 2^32 producers do not fit into memory; the limit is far below.
        out.extend(u32::try_from(self.len()).unwrap_or(u32::MAX).to_be_bytes());
        for (pid, entry) in self.iter() {
            out.extend(pid.to_be_bytes());
            out.extend(entry.epoch.to_be_bytes());
            out.extend(entry.last_sequence.to_be_bytes());
            out.extend(entry.last_seen_ms.to_be_bytes());
            let batches = entry.batches.get(..BATCHES_MAX).unwrap_or(&entry.batches);
            out.push(u8::try_from(batches.len()).unwrap_or(0));
            for batch in batches {
                out.extend(batch.first.to_be_bytes());
                out.extend(batch.last.to_be_bytes());
                out.extend(batch.base.map_or(UNKNOWN_BASE, |v| v.0).to_be_bytes());
            }
        }
        out
    }

    /// Reads the durable form, under the default limit.
    ///
    /// # Errors
    /// For anything that [`Carry::encode`] does not write. Memory stays in proportion to `bytes`.
    pub fn decode(bytes: &[u8]) -> Result<Carry, CarryDecodeError> {
        let mut reader = Reader(bytes);
        let version = u8::from_be_bytes(reader.take()?);
        if version != VERSION {
            return Err(CarryDecodeError::Version(version));
        }
        let count = u32::from_be_bytes(reader.take()?);
        let room = u32::try_from(reader.0.len() / ENTRY_SIZE_MIN).unwrap_or(u32::MAX);
        if count > room {
            return Err(CarryDecodeError::Truncated);
        }
        let mut carry = Carry::default();
        for _ in 0..count {
            let (pid, entry) = read_entry(&mut reader)?;
            let after_last = carry.entries.last_key_value().is_none_or(|(&last, _)| pid > last);
            if !after_last {
                return Err(CarryDecodeError::Entry(pid));
            }
            carry.entries.insert(pid, entry);
        }
        if !reader.0.is_empty() {
            return Err(CarryDecodeError::Trailing(reader.0.len()));
        }
        carry.evict();
        Ok(carry)
    }
}

fn read_entry(reader: &mut Reader<'_>) -> Result<(i64, CarryEntry), CarryDecodeError> {
    let pid = i64::from_be_bytes(reader.take()?);
    let epoch = i16::from_be_bytes(reader.take()?);
    let last_sequence = i32::from_be_bytes(reader.take()?);
    let last_seen_ms = i64::from_be_bytes(reader.take()?);
    let count = usize::from(u8::from_be_bytes(reader.take()?));
    let possible = pid >= 0 && pid == pid::client_pid(pid) && epoch >= 0 && last_sequence >= -1;
    if !possible || count > BATCHES_MAX || (last_sequence < 0 && count > 0) {
        return Err(CarryDecodeError::Entry(pid));
    }
    let mut batches = Vec::with_capacity(count);
    for _ in 0..count {
        let first = i32::from_be_bytes(reader.take()?);
        let last = i32::from_be_bytes(reader.take()?);
        let base = i64::from_be_bytes(reader.take()?);
        if first < 0 || last < 0 || base < UNKNOWN_BASE {
            return Err(CarryDecodeError::Entry(pid));
        }
        batches.push(AckedBatch { first, last, base: (base >= 0).then_some(VirtualOffset(base)) });
    }
    Ok((pid, CarryEntry { epoch, last_sequence, batches, last_seen_ms }))
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], CarryDecodeError> {
        let (head, rest) = self.0.split_first_chunk::<N>().ok_or(CarryDecodeError::Truncated)?;
        self.0 = rest;
        Ok(*head)
    }
}
