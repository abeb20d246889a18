//! Record batches of our own: keys and values, uncompressed.
//!
//! Source: `DefaultRecordBatch`, `DefaultRecord` (message format 2). Only what the copy of the state needs; client
//! records are never taken apart.

use anyhow::{Context, ensure};
use bytes::Bytes;
use crossover_core::producer::crc;
use crossover_core::producer::transaction::Identity;

/// Of a batch: everything before its records.
const HEADER_BYTES: usize = 61;
/// Of a batch: what its length does not count.
const PREFIX_BYTES: usize = 12;
const CRC_AT: usize = 17;
const MAGIC: u8 = 2;
const TRANSACTIONAL: i16 = 0x10;
/// A varint of a 32-bit number.
const VARINT_BYTES_MAX: u32 = 5;

/// A record; without a value it deletes the key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) key: Vec<u8>,
    pub(crate) value: Option<Vec<u8>>,
}

/// A batch with these records, written at `now_ms`.
///
/// # Errors
/// More than 2^31 records or bytes.
pub(crate) fn encode(records: &[Record], now_ms: i64) -> anyhow::Result<Bytes> {
    encode_as(records, now_ms, 0, Identity { pid: -1, epoch: -1 }, -1)
}

/// The same as part of a transaction.
///
/// # Errors
/// As [`encode`].
pub(crate) fn encode_transactional(
    records: &[Record],
    now_ms: i64,
    producer: Identity,
    sequence: i32,
) -> anyhow::Result<Bytes> {
    encode_as(records, now_ms, TRANSACTIONAL, producer, sequence)
}

fn encode_as(
    records: &[Record],
    now_ms: i64,
    attributes: i16,
    producer: Identity,
    sequence: i32,
) -> anyhow::Result<Bytes> {
    let mut body = Vec::new();
    for (delta, record) in (0_i32..).zip(records) {
        let mut one = vec![0]; // attributes
        put_varint(&mut one, 0); // timestamp delta
        put_varint(&mut one, delta);
        put_bytes(&mut one, Some(&record.key))?;
        put_bytes(&mut one, record.value.as_deref())?;
        put_varint(&mut one, 0); // headers
        put_varint(&mut body, i32::try_from(one.len())?);
        body.extend(one);
    }
    let count = i32::try_from(records.len())?;
    let mut out = Vec::with_capacity(HEADER_BYTES + body.len());
    out.extend(0_i64.to_be_bytes()); // base offset
    out.extend(i32::try_from(HEADER_BYTES - PREFIX_BYTES + body.len())?.to_be_bytes());
    out.extend((-1_i32).to_be_bytes()); // leader epoch
    out.push(MAGIC);
    out.extend([0; 4]); // checksum, below
    out.extend(attributes.to_be_bytes());
    out.extend((count - 1).to_be_bytes());
    out.extend(now_ms.to_be_bytes());
    out.extend(now_ms.to_be_bytes());
    out.extend(producer.pid.to_be_bytes());
    out.extend(producer.epoch.to_be_bytes());
    out.extend(sequence.to_be_bytes());
    out.extend(count.to_be_bytes());
    out.extend(body);
    let checksum = crc::checksum(&out[CRC_AT + 4..]).to_be_bytes();
    out[CRC_AT..CRC_AT + 4].copy_from_slice(&checksum);
    Ok(Bytes::from(out))
}

/// The records of a fetch answer, and the offset behind them; `None` when there is no whole batch in it.
///
/// # Errors
/// Compressed, damaged, or of another format.
pub(crate) fn decode(mut bytes: &[u8]) -> anyhow::Result<(Vec<Record>, Option<i64>)> {
    let (mut records, mut next) = (Vec::new(), None);
    while bytes.len() >= PREFIX_BYTES {
        let length = usize::try_from(i32::from_be_bytes(fixed(bytes, 8)?)).context("a negative length")?;
        // The last batch of an answer may be cut off.
        let Some(batch) = bytes.get(..PREFIX_BYTES + length) else { break };
        next = Some(decode_batch(batch, &mut records)?);
        bytes = &bytes[batch.len()..];
    }
    Ok((records, next))
}

/// The offset behind the batch.
fn decode_batch(batch: &[u8], records: &mut Vec<Record>) -> anyhow::Result<i64> {
    ensure!(batch.len() >= HEADER_BYTES && batch[16] == MAGIC, "a batch of another format");
    let checksum = u32::from_be_bytes(fixed(batch, CRC_AT)?);
    ensure!(checksum == crc::checksum(&batch[CRC_AT + 4..]), "a damaged batch");
    let attributes = i16::from_be_bytes(fixed(batch, 21)?);
    ensure!(attributes & 0x07 == 0, "a compressed batch");
    let end = i64::from_be_bytes(fixed(batch, 0)?) + i64::from(i32::from_be_bytes(fixed(batch, 23)?)) + 1;
    let is_control = attributes & 0x20 != 0;
    let mut rest = &batch[HEADER_BYTES..];
    while !rest.is_empty() && !is_control {
        let length = usize::try_from(take_varint(&mut rest)?).context("a negative length")?;
        let mut one = rest.get(..length).context("a record longer than its batch")?;
        rest = &rest[length..];
        one = one.get(1..).context("an empty record")?;
        take_varint_64(&mut one)?;
        take_varint(&mut one)?;
        let key = take_bytes(&mut one)?.unwrap_or_default();
        records.push(Record { key, value: take_bytes(&mut one)? });
    }
    Ok(end)
}

fn fixed<const N: usize>(bytes: &[u8], at: usize) -> anyhow::Result<[u8; N]> {
    Ok(bytes.get(at..at + N).context("truncated")?.try_into()?)
}

fn put_varint(out: &mut Vec<u8>, value: i32) {
    let mut zigzag = ((value << 1) ^ (value >> 31)).cast_unsigned();
    while zigzag >= 0x80 {
        out.push((zigzag & 0x7f) as u8 | 0x80);
        zigzag >>= 7;
    }
    out.push(zigzag as u8);
}

fn put_bytes(out: &mut Vec<u8>, bytes: Option<&[u8]>) -> anyhow::Result<()> {
    match bytes {
        None => put_varint(out, -1),
        Some(bytes) => {
            put_varint(out, i32::try_from(bytes.len())?);
            out.extend(bytes);
        }
    }
    Ok(())
}

fn take_varint(bytes: &mut &[u8]) -> anyhow::Result<i32> {
    Ok(i32::try_from(take_zigzag(bytes, VARINT_BYTES_MAX)?)?)
}

fn take_varint_64(bytes: &mut &[u8]) -> anyhow::Result<i64> {
    take_zigzag(bytes, 10)
}

fn take_zigzag(bytes: &mut &[u8], bytes_max: u32) -> anyhow::Result<i64> {
    let mut value = 0_u64;
    for index in 0..bytes_max {
        let (first, rest) = bytes.split_first().context("truncated")?;
        *bytes = rest;
        value |= u64::from(first & 0x7f) << (7 * index);
        if first & 0x80 == 0 {
            return Ok((value >> 1).cast_signed() ^ -(value & 1).cast_signed());
        }
    }
    anyhow::bail!("a number too long")
}

fn take_bytes(bytes: &mut &[u8]) -> anyhow::Result<Option<Vec<u8>>> {
    let Ok(length) = usize::try_from(take_varint(bytes)?) else { return Ok(None) };
    let (taken, rest) = bytes.split_at_checked(length).context("truncated")?;
    *bytes = rest;
    Ok(Some(taken.to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(key: &str, value: Option<&[u8]>) -> Record {
        Record { key: key.as_bytes().to_vec(), value: value.map(<[u8]>::to_vec) }
    }

    #[test]
    fn what_is_written_is_read() {
        let long = vec![7; 100_000];
        let records = [record("a", Some(b"1")), record("b", None), record("", Some(&long))];
        let batch = encode(&records, 1_700_000_000_000).unwrap();
        let two = [&batch[..], &batch, &batch[..batch.len() - 1]].concat();
        let (read, next) = decode(&two).unwrap();
        assert_eq!((read.len(), next), (6, Some(3)));
        assert_eq!(read[..3], records);
    }

    #[test]
    fn hostile_bytes_are_refused() {
        let batch = encode(&[record("key", Some(b"value"))], 5).unwrap();
        for at in 0..batch.len() {
            for value in [0, 1, 0x7f, 0xff] {
                let mut damaged = batch.to_vec();
                damaged[at] = value;
                // An error or a record, never a panic; behind the checksum's place only the same bytes pass.
                let read = decode(&damaged);
                assert!(at < CRC_AT || damaged == batch || read.is_err(), "byte {at} as {value}");
            }
        }
    }
}
