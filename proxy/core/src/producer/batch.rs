//! Record batches as bytes: the header of a produced batch, and the batches of a fetched run patched in place.
//!
//! Layout (`DefaultRecordBatch`): `BaseOffset@0:8 Length@8:4 PartitionLeaderEpoch@12:4 Magic@16:1 CRC@17:4 Attributes@21:2
//! LastOffsetDelta@23:4 BaseTimestamp@27:8 MaxTimestamp@35:8 ProducerId@43:8 ProducerEpoch@51:2 BaseSequence@53:4
//! Count@57:4`, records from 61. The checksum covers everything from 21, so base offset and leader epoch are free to
//! change. Entries of magic 0 and 1 (`LegacyRecord`) share `Offset@0:8 Size@8:4 Magic@16:1`, have their attributes at 17
//! and no leader epoch; the offset of a compressed one is that of its last record. All integers are big-endian.

pub use super::crc::rewrite_producer;
use crate::ids::VirtualOffset;
use thiserror::Error;

/// Bytes of a v2 batch before its records.
pub const HEADER_SIZE: usize = 61;
pub(super) const CRC_AT: usize = 17;
pub(super) const PRODUCER_ID_AT: usize = 43;
/// Offset and length: what `length` does not count.
const PREFIX: usize = 12;
const LEADER_EPOCH_AT: usize = 12;
const MAGIC_AT: usize = 16;
const LEGACY_ATTRIBUTES_AT: usize = 17;
const LAST_OFFSET_DELTA_AT: usize = 23;
/// The shortest length of an entry of magic 0 (`LegacyRecord.RECORD_OVERHEAD_V0`).
const LEGACY_LENGTH_MIN: usize = 14;
const COMPRESSION_MASK: u8 = 0x07;
const TRANSACTIONAL: i16 = 0x10;
const CONTROL: i16 = 0x20;
/// Sequences count 0 ..= 2^31 − 1 and then start again.
const SEQUENCES: i64 = 1 << 31;

/// Why bytes are not the batch they should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum BatchError {
    #[error("record batch is incomplete")]
    Incomplete,
    #[error("record batch has an impossible length of {0}")]
    Length(i32),
    #[error("record batch has magic {0}, only 2 is supported here")]
    Magic(i8),
    #[error("record batch has impossible offsets: base {base}, last delta {delta}")]
    Offsets { base: i64, delta: i32 },
    #[error("offset {offset} cannot be moved by {shift}")]
    Shift { offset: i64, shift: i64 },
    /// Its inner records carry absolute offsets under compression: it cannot be moved in place.
    #[error("compressed record set of magic 0 at offset {0} cannot be renumbered")]
    CompressedMagic0(i64),
}

/// The header of a v2 batch, as it stands: nothing but the size is checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchHeader {
    pub base_offset: i64,
    /// Bytes behind this field.
    pub length: i32,
    pub leader_epoch: i32,
    pub magic: i8,
    pub crc: u32,
    pub attributes: i16,
    pub last_offset_delta: i32,
    /// Milliseconds since 1970.
    pub base_timestamp: i64,
    /// Milliseconds since 1970.
    pub max_timestamp: i64,
    /// −1 for producers without sequences.
    pub producer_id: i64,
    pub producer_epoch: i16,
    /// −1 for producers without sequences.
    pub base_sequence: i32,
    pub count: i32,
}

impl BatchHeader {
    #[must_use]
    pub fn is_transactional(&self) -> bool {
        self.attributes & TRANSACTIONAL != 0
    }

    #[must_use]
    pub fn is_control(&self) -> bool {
        self.attributes & CONTROL != 0
    }

    /// The sequence of the last record, which wraps from 2^31 − 1 to 0; −1 for a batch without sequences.
    #[must_use]
    pub fn last_sequence(&self) -> i32 {
        if self.base_sequence == -1 {
            return -1;
        }
        let last = i64::from(self.base_sequence) + i64::from(self.last_offset_delta);
        i32::try_from(last.rem_euclid(SEQUENCES)).unwrap_or(-1)
    }

    /// Bytes of the whole batch.
    ///
    /// # Errors
    /// [`BatchError::Length`] where the length does not even hold the header.
    pub fn size(&self) -> Result<usize, BatchError> {
        entry_size(self.length, HEADER_SIZE)
    }
}

/// Reads the header of the first batch of a produce request's partition. What stands behind the batch is not looked at.
///
/// # Errors
/// [`BatchError::Incomplete`], [`BatchError::Magic`] or [`BatchError::Length`]; a broker refuses all of these.
pub fn peek(records: &[u8]) -> Result<BatchHeader, BatchError> {
    let magic = i8::from_be_bytes(field(records, MAGIC_AT)?);
    if magic != 2 {
        return Err(BatchError::Magic(magic));
    }
    let header = BatchHeader {
        base_offset: i64::from_be_bytes(field(records, 0)?),
        length: i32::from_be_bytes(field(records, 8)?),
        leader_epoch: i32::from_be_bytes(field(records, LEADER_EPOCH_AT)?),
        magic,
        crc: u32::from_be_bytes(field(records, CRC_AT)?),
        attributes: i16::from_be_bytes(field(records, 21)?),
        last_offset_delta: i32::from_be_bytes(field(records, LAST_OFFSET_DELTA_AT)?),
        base_timestamp: i64::from_be_bytes(field(records, 27)?),
        max_timestamp: i64::from_be_bytes(field(records, 35)?),
        producer_id: i64::from_be_bytes(field(records, PRODUCER_ID_AT)?),
        producer_epoch: i16::from_be_bytes(field(records, 51)?),
        base_sequence: i32::from_be_bytes(field(records, 53)?),
        count: i32::from_be_bytes(field(records, 57)?),
    };
    if header.size()? > records.len() { Err(BatchError::Incomplete) } else { Ok(header) }
}

/// One complete entry of a fetched run: a batch, or a record or compressed set of magic 0 or 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FetchedBatch<'a> {
    /// Where it starts in the run.
    pub position: usize,
    pub bytes: &'a [u8],
    /// Of the first record; for a compressed set of magic 0 or 1, of the last one.
    pub base_offset: i64,
    /// Less than 2^63 − 1, so that one more is an offset too.
    pub last_offset: i64,
    pub magic: i8,
}

/// The complete entries of fetched records. An incomplete tail, which brokers leave where the size limit cut, ends
/// the iteration silently; impossible bytes end it with an error.
#[derive(Clone, Debug)]
pub struct Batches<'a> {
    records: &'a [u8],
    position: usize,
}

impl<'a> Batches<'a> {
    #[must_use]
    pub fn new(records: &'a [u8]) -> Batches<'a> {
        Batches { records, position: 0 }
    }

    /// What is not read yet: after the end of the iteration, the incomplete tail.
    #[must_use]
    pub fn rest(&self) -> &'a [u8] {
        self.records.get(self.position..).unwrap_or_default()
    }
}

impl<'a> Iterator for Batches<'a> {
    type Item = Result<FetchedBatch<'a>, BatchError>;

    fn next(&mut self) -> Option<Self::Item> {
        let entry = read_entry(self.rest(), self.position).transpose()?;
        match &entry {
            Ok(entry) => self.position += entry.bytes.len(),
            Err(_) => self.records = &[],
        }
        Some(entry)
    }
}

/// What [`translate_fetched`] did. Offsets are `None` when there was no complete batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Translated {
    /// The new base offset of the first batch.
    pub first: Option<VirtualOffset>,
    /// Behind the last offset of the last batch.
    pub end: Option<VirtualOffset>,
    /// Complete batches; 0 also when the only batch is cut short.
    pub batches: usize,
    /// Bytes of the complete batches.
    pub bytes: usize,
}

/// Moves every complete batch of fetched records by `shift` and maps its partition leader epoch; a negative epoch
/// means "none" and stays. An incomplete tail is left alone: clients ignore it.
///
/// # Errors
/// For impossible bytes, offsets that would leave the range, and compressed sets of magic 0 that would have to move.
/// Some batches may be patched already then: the records must not be handed out.
pub fn translate_fetched(
    records: &mut [u8],
    shift: i64,
    epoch: impl Fn(i32) -> i32,
) -> Result<Translated, BatchError> {
    let mut done = Translated::default();
    while let Some(entry) = read_entry(records.get(done.bytes..).unwrap_or_default(), done.bytes)? {
        let (magic, size) = (entry.magic, entry.bytes.len());
        if magic == 0 && shift != 0 && is_compressed_legacy(entry.bytes) {
            return Err(BatchError::CompressedMagic0(entry.base_offset));
        }
        let base = shifted(entry.base_offset, shift)?;
        let end = shifted(entry.last_offset + 1, shift)?;
        let native_epoch = i32::from_be_bytes(field(entry.bytes, LEADER_EPOCH_AT)?);

        let batch = records.get_mut(done.bytes..).unwrap_or_default();
        put(batch, 0, base.to_be_bytes())?;
        if magic >= 2 && native_epoch >= 0 {
            put(batch, LEADER_EPOCH_AT, epoch(native_epoch).to_be_bytes())?;
        }
        done.first = done.first.or(Some(VirtualOffset(base)));
        done.end = Some(VirtualOffset(end));
        done.batches += 1;
        done.bytes += size;
    }
    Ok(done)
}

/// How much of fetched records belongs to an era.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// Bytes to keep.
    pub len: usize,
    pub end: CutEnd,
}

/// Where an era's part of fetched records ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CutEnd {
    /// With the records: all of them belong to the era, an incomplete tail that may be the era's included.
    Records,
    /// At the era's end: the rest belongs to a later era.
    Era,
    /// Before a batch that begins in the era and ends behind it. Boundaries lie between batches, so the log is not the
    /// one that was sealed.
    Spanning { base_offset: i64, last_offset: i64 },
}

/// Finds the batches that lie wholly below `native_end`, the first offset behind an era. Two eras of one side are
/// adjacent in its log: without this cut a reader would skip the other side's era between them.
///
/// # Errors
/// For impossible bytes before the cut.
pub fn cut_at(records: &[u8], native_end: i64) -> Result<Cut, BatchError> {
    let mut batches = Batches::new(records);
    while let Some(batch) = batches.next().transpose()? {
        if batch.base_offset >= native_end {
            return Ok(Cut { len: batch.position, end: CutEnd::Era });
        }
        if batch.last_offset >= native_end {
            let FetchedBatch { base_offset, last_offset, .. } = batch;
            return Ok(Cut { len: batch.position, end: CutEnd::Spanning { base_offset, last_offset } });
        }
    }
    let tail = batches.rest();
    let foreign = field(tail, 0).is_ok_and(|base| i64::from_be_bytes(base) >= native_end);
    if foreign {
        return Ok(Cut { len: records.len() - tail.len(), end: CutEnd::Era });
    }
    Ok(Cut { len: records.len(), end: CutEnd::Records })
}

/// The entry at the start of `records`; `None` where it is not complete.
fn read_entry(records: &[u8], position: usize) -> Result<Option<FetchedBatch<'_>>, BatchError> {
    if records.len() <= MAGIC_AT {
        return Ok(None);
    }
    let magic = i8::from_be_bytes(field(records, MAGIC_AT)?);
    let minimum = match magic {
        0 | 1 => PREFIX + LEGACY_LENGTH_MIN,
        2.. => HEADER_SIZE,
        _ => return Err(BatchError::Magic(magic)),
    };
    let size = entry_size(i32::from_be_bytes(field(records, 8)?), minimum)?;
    let Some(bytes) = records.get(..size) else { return Ok(None) };

    let base = i64::from_be_bytes(field(bytes, 0)?);
    let delta = if magic < 2 { 0 } else { i32::from_be_bytes(field(bytes, LAST_OFFSET_DELTA_AT)?) };
    let last = base.checked_add(i64::from(delta)).filter(|&last| base >= 0 && delta >= 0 && last < i64::MAX);
    let last_offset = last.ok_or(BatchError::Offsets { base, delta })?;
    Ok(Some(FetchedBatch { position, bytes, base_offset: base, last_offset, magic }))
}

fn is_compressed_legacy(entry: &[u8]) -> bool {
    entry.get(LEGACY_ATTRIBUTES_AT).is_some_and(|attributes| attributes & COMPRESSION_MASK != 0)
}

fn shifted(offset: i64, shift: i64) -> Result<i64, BatchError> {
    offset.checked_add(shift).filter(|&o| o >= 0).ok_or(BatchError::Shift { offset, shift })
}

/// The size of an entry with this length field, prefix included.
fn entry_size(length: i32, minimum: usize) -> Result<usize, BatchError> {
    let size = usize::try_from(length).ok().and_then(|l| l.checked_add(PREFIX));
    size.filter(|&s| s >= minimum).ok_or(BatchError::Length(length))
}

fn field<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N], BatchError> {
    bytes.get(at..).and_then(|b| b.first_chunk::<N>()).copied().ok_or(BatchError::Incomplete)
}

pub(super) fn put<const N: usize>(bytes: &mut [u8], at: usize, value: [u8; N]) -> Result<(), BatchError> {
    let place = bytes.get_mut(at..).and_then(|b| b.first_chunk_mut::<N>()).ok_or(BatchError::Incomplete)?;
    *place = value;
    Ok(())
}

#[cfg(test)]
pub(super) mod tests;
