//! Kafka requests and answers as clients and brokers write and read them, and record batches with a value that says which
//! producer wrote them as its how-many-th.

use bytes::{Bytes, BytesMut};
use crossover_core::schema::{self, Str, Struct};
use crossover_core::wire::header;

pub(crate) const TOPIC: &str = "orders";
/// Of the topic, by side.
pub(crate) const IDS: [[u8; 16]; 2] = [[1; 16], [2; 16]];
/// A second topic, which is never moved; some transactions write to it too.
pub(crate) const AUDIT: &str = "audit";
pub(crate) const AUDIT_IDS: [[u8; 16]; 2] = [[3; 16], [4; 16]];
const PREFIX: usize = 4;
const HEADER: usize = 61;
const PAYLOAD: usize = 12;
/// Bytes of one batch.
pub(crate) const BATCH: i32 = (HEADER + PAYLOAD) as i32;

pub(crate) const PRODUCE: i16 = 0;
pub(crate) const FETCH: i16 = 1;
pub(crate) const LIST_OFFSETS: i16 = 2;
pub(crate) const OFFSET_COMMIT: i16 = 8;
pub(crate) const OFFSET_FETCH: i16 = 9;
pub(crate) const FIND_COORDINATOR: i16 = 10;
pub(crate) const API_VERSIONS: i16 = 18;
pub(crate) const DELETE_RECORDS: i16 = 21;
pub(crate) const OFFSET_FOR_LEADER_EPOCH: i16 = 23;
pub(crate) const INIT_PRODUCER_ID: i16 = 22;
pub(crate) const ADD_PARTITIONS_TO_TXN: i16 = 24;
pub(crate) const END_TXN: i16 = 26;

/// In the place of a producer's number: a coordinator has written it.
pub(crate) const COORDINATOR: u32 = u32::MAX;

/// What a batch is, by its attributes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Plain,
    Transactional,
    /// Ends a transaction.
    Marker {
        commit: bool,
    },
}

/// Who wrote a batch, and its number among that producer's batches of the partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Mark {
    pub(crate) producer: u32,
    pub(crate) number: u32,
}

/// A batch as it stands in bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Head {
    pub(crate) base: i64,
    pub(crate) leader_epoch: i32,
    pub(crate) pid: i64,
    pub(crate) epoch: i16,
    pub(crate) sequence: i32,
    pub(crate) count: i32,
    pub(crate) mark: Mark,
    pub(crate) sound: bool,
    pub(crate) kind: Kind,
}

/// Bits of a batch's attributes.
const TRANSACTIONAL: u16 = 0x10;
const CONTROL: u16 = 0x20;

pub(crate) fn batch(pid: i64, epoch: i16, sequence: i32, count: i32, mark: Mark) -> Bytes {
    written(0, (pid, epoch), sequence, count, mark)
}

pub(crate) fn transactional(producer: (i64, i16), sequence: i32, count: i32, mark: Mark) -> Bytes {
    written(TRANSACTIONAL, producer, sequence, count, mark)
}

/// `serial` tells this marker from others of the cluster.
pub(crate) fn marker(producer: (i64, i16), commit: bool, serial: u32) -> Bytes {
    let mark = Mark { producer: COORDINATOR, number: serial << 1 | u32::from(commit) };
    written(TRANSACTIONAL | CONTROL, producer, -1, 1, mark)
}

fn written(attributes: u16, (pid, epoch): (i64, i16), sequence: i32, count: i32, mark: Mark) -> Bytes {
    let mut out = BytesMut::with_capacity(HEADER + PAYLOAD);
    out.extend_from_slice(&0_i64.to_be_bytes());
    out.extend_from_slice(&((HEADER + PAYLOAD - 12) as i32).to_be_bytes());
    out.extend_from_slice(&(-1_i32).to_be_bytes());
    out.extend_from_slice(&[2, 0, 0, 0, 0]);
    out.extend_from_slice(&attributes.to_be_bytes());
    out.extend_from_slice(&(count - 1).to_be_bytes());
    out.extend_from_slice(&[0; 16]);
    out.extend_from_slice(&pid.to_be_bytes());
    out.extend_from_slice(&epoch.to_be_bytes());
    out.extend_from_slice(&sequence.to_be_bytes());
    out.extend_from_slice(&count.to_be_bytes());
    out.extend_from_slice(&mark.producer.to_be_bytes());
    out.extend_from_slice(&mark.number.to_be_bytes());
    out.extend_from_slice(&count.to_be_bytes());
    let crc = crc32c::crc32c(&out[21..]);
    out[17..21].copy_from_slice(&crc.to_be_bytes());
    out.freeze()
}

fn at<const N: usize>(bytes: &[u8], from: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[from..from + N]);
    out
}

/// The batches of a run, and nothing else: an incomplete tail is left out.
pub(crate) fn heads(records: &[u8]) -> Vec<Head> {
    let mut all = Vec::new();
    for bytes in records.chunks_exact(HEADER + PAYLOAD) {
        let crc = u32::from_be_bytes(at(bytes, 17));
        let (producer, number) = (u32::from_be_bytes(at(bytes, 61)), u32::from_be_bytes(at(bytes, 65)));
        let kind = match u16::from_be_bytes(at(bytes, 21)) {
            bits if bits & CONTROL != 0 => Kind::Marker { commit: number & 1 == 1 },
            bits if bits & TRANSACTIONAL != 0 => Kind::Transactional,
            _ => Kind::Plain,
        };
        all.push(Head {
            base: i64::from_be_bytes(at(bytes, 0)),
            leader_epoch: i32::from_be_bytes(at(bytes, 12)),
            pid: i64::from_be_bytes(at(bytes, 43)),
            epoch: i16::from_be_bytes(at(bytes, 51)),
            sequence: i32::from_be_bytes(at(bytes, 53)),
            count: i32::from_be_bytes(at(bytes, 57)),
            mark: Mark { producer, number },
            sound: crc == crc32c::crc32c(&bytes[21..]),
            kind,
        });
    }
    all
}

/// A batch as a log holds it.
pub(crate) fn placed(bytes: &[u8], base: i64, leader_epoch: i32) -> Bytes {
    let mut out = BytesMut::from(bytes);
    out[0..8].copy_from_slice(&base.to_be_bytes());
    out[12..16].copy_from_slice(&leader_epoch.to_be_bytes());
    out.freeze()
}

pub(crate) fn request(key: i16) -> Struct {
    Struct::new(schema::request(key).expect("a table").fields)
}

pub(crate) fn response(key: i16) -> Struct {
    Struct::new(schema::response(key).expect("a table").fields)
}

/// A request frame without its length prefix.
pub(crate) fn ask(key: i16, version: i16, correlation: i32, client: &str, body: &Struct) -> Bytes {
    let message = schema::request(key).expect("a table");
    let frame = header::encode_request(message, version, correlation, Some(&Str::from(client)), body);
    frame.expect("encodes").slice(PREFIX..)
}

/// A request as a broker reads it.
pub(crate) struct Asked {
    pub(crate) key: i16,
    pub(crate) version: i16,
    pub(crate) correlation: i32,
    pub(crate) body: Struct,
}

impl Asked {
    /// Whether the question is about what is decided only (`isolation.level`).
    pub(crate) fn is_committed(&self) -> bool {
        self.body.i8("IsolationLevel") == 1
    }
}

pub(crate) fn read_request(frame: &Bytes) -> Result<Asked, String> {
    let head = header::peek_request(frame).map_err(|e| e.to_string())?;
    let message = schema::request(head.api_key).ok_or("no table")?;
    let body = schema::decode(message, head.api_version, &frame.slice(head.body_offset..))
        .map_err(|e| e.to_string())?;
    Ok(Asked { key: head.api_key, version: head.api_version, correlation: head.correlation_id, body })
}

/// An answer's frame without its length prefix.
pub(crate) fn answer(key: i16, version: i16, correlation: i32, body: &Struct) -> Bytes {
    let message = schema::response(key).expect("a table");
    header::encode_response(message, version, correlation, body).expect("encodes").slice(PREFIX..)
}

pub(crate) fn read_response(key: i16, version: i16, frame: &Bytes) -> Result<(i32, Struct), String> {
    let message = schema::response(key).ok_or("no table")?;
    let (correlation, body) =
        header::decode_response_header(message, version, frame).map_err(|e| e.to_string())?;
    let body = schema::decode(message, version, &frame.slice(body..)).map_err(|e| e.to_string())?;
    Ok((correlation, body))
}
