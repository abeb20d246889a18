//! Decodes v2 record batches (Kafka `DefaultRecordBatch`) as far as a log dump needs.

use crate::wire::{Cursor, WireError};

/// Bytes before the part that `batchLength` counts.
const PREFIX: usize = 12;
/// Bytes of a batch before its records.
const HEADER: usize = 61;

/// Why a log cannot be decoded.
#[derive(Debug, thiserror::Error)]
pub enum BatchError {
    #[error("offset {0}: not a v2 batch")]
    Magic(i64),
    #[error("offset {0}: wrong CRC")]
    Crc(i64),
    #[error("offset {0}: compressed; produce without compression to dump logs")]
    Compressed(i64),
    #[error("offset {offset}: {source}")]
    Malformed { offset: i64, source: WireError },
}

/// What a run of batches holds.
#[derive(Debug, Default)]
pub(crate) struct Decoded {
    /// (offset, value); control records are left out.
    pub values: Vec<(i64, Vec<u8>)>,
    /// Offset after the last complete batch.
    pub next: Option<i64>,
}

/// Decodes all complete batches; a cut last one is ignored.
pub(crate) fn decode(mut bytes: &[u8]) -> Result<Decoded, BatchError> {
    let mut decoded = Decoded::default();
    while let Some((batch, rest)) = split(bytes) {
        decode_batch(batch, &mut decoded)?;
        bytes = rest;
    }
    Ok(decoded)
}

fn split(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let length = i32::from_be_bytes(bytes.get(8..PREFIX)?.try_into().ok()?);
    let length = usize::try_from(length).ok()?.checked_add(PREFIX)?;
    bytes.split_at_checked(length).filter(|_| length >= HEADER)
}

fn decode_batch(batch: &[u8], decoded: &mut Decoded) -> Result<(), BatchError> {
    let mut header = Cursor(batch);
    let base = header.i64().map_err(|source| BatchError::Malformed { offset: -1, source })?;
    let malformed = |source| BatchError::Malformed { offset: base, source };
    header.take(8).map_err(malformed)?; // length, leader epoch
    if header.u8().map_err(malformed)? != 2 {
        return Err(BatchError::Magic(base));
    }
    let crc = header.i32().map_err(malformed)?.cast_unsigned();
    if crc32c::crc32c(header.0) != crc {
        return Err(BatchError::Crc(base));
    }
    let attributes = header.i16().map_err(malformed)?;
    let last_delta = header.i32().map_err(malformed)?;
    decoded.next = Some(base + i64::from(last_delta) + 1);
    let is_control = attributes & 0x20 != 0;
    if is_control {
        return Ok(());
    }
    if attributes & 7 != 0 {
        return Err(BatchError::Compressed(base));
    }
    header.take(30).map_err(malformed)?; // timestamps, producer id, epoch, sequence
    let count = header.i32().map_err(malformed)?;
    for _ in 0..count {
        decoded.values.push(record(&mut header, base).map_err(malformed)?);
    }
    Ok(())
}

fn record(records: &mut Cursor<'_>, base: i64) -> Result<(i64, Vec<u8>), WireError> {
    let length = records.varint()?;
    let mut record = Cursor(records.take(size(length)?)?);
    record.u8()?; // attributes
    record.varint()?; // timestamp
    let offset = base.checked_add(record.varint()?).ok_or(WireError::Short)?;
    nullable(&mut record)?; // key
    let value = nullable(&mut record)?;
    Ok((offset, value.to_vec()))
}

/// Length −1 (null) reads as empty.
fn nullable<'a>(record: &mut Cursor<'a>) -> Result<&'a [u8], WireError> {
    let length = record.varint()?;
    record.take(size(length.max(0))?)
}

fn size(length: i64) -> Result<usize, WireError> {
    usize::try_from(length).map_err(|_| WireError::Short)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One record, offset 7, value `v`, laid out by hand from the format's definition.
    fn batch() -> Vec<u8> {
        let record = [0, 0, 0, 1, 2, b'v', 0];
        let mut tail = vec![0, 0]; // attributes
        tail.extend(0i32.to_be_bytes()); // last offset delta
        tail.extend([0; 16]); // timestamps
        tail.extend([0xff; 14]); // no producer id
        tail.extend(1i32.to_be_bytes());
        tail.push(14); // record length 7
        tail.extend(record);
        let mut bytes = 7i64.to_be_bytes().to_vec();
        bytes.extend(i32::try_from(tail.len() + 9).expect("short").to_be_bytes());
        bytes.extend([0, 0, 0, 0, 2]);
        bytes.extend(crc32c::crc32c(&tail).to_be_bytes());
        bytes.extend(tail);
        bytes
    }

    #[test]
    fn a_batch_is_decoded_and_a_cut_one_ignored() {
        let mut two = batch();
        two.extend(&batch()[..30]);
        let decoded = decode(&two).expect("valid");
        assert_eq!(decoded.values, [(7, b"v".to_vec())]);
        assert_eq!(decoded.next, Some(8));
    }

    #[test]
    fn every_changed_byte_is_an_error_or_in_the_unprotected_part() {
        for at in PREFIX..batch().len() {
            let mut changed = batch();
            changed[at] ^= 0x41;
            let leader_epoch = (12..16).contains(&at);
            assert_eq!(decode(&changed).is_err(), !leader_epoch, "byte {at}");
        }
    }

    #[test]
    fn a_compressed_batch_is_refused() {
        let mut bytes = batch();
        bytes[22] = 3;
        let crc = crc32c::crc32c(&bytes[21..]);
        bytes[17..21].copy_from_slice(&crc.to_be_bytes());
        assert!(matches!(decode(&bytes), Err(BatchError::Compressed(7))));
    }

    #[test]
    fn cut_and_hostile_lengths_never_panic() {
        let whole = batch();
        for length in 0..whole.len() {
            assert!(decode(&whole[..length]).expect("ignored").values.is_empty());
        }
        let mut hostile = whole;
        hostile[57..61].copy_from_slice(&i32::MAX.to_be_bytes());
        let crc = crc32c::crc32c(&hostile[21..]);
        hostile[17..21].copy_from_slice(&crc.to_be_bytes());
        assert!(decode(&hostile).is_err());
    }
}
