//! The few Kafka requests a log dump needs: Metadata 4, ListOffsets 1, Fetch 4. These are the highest versions without
//! flexible fields that every broker from 0.11 to 4.x accepts (4.x removed lower ones, KIP-896).

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

/// Longest wait for a connection, and for one answer.
const TIMEOUT: Duration = Duration::from_secs(15);
/// Largest accepted answer in bytes.
const MAX_ANSWER: usize = 64 << 20;
/// Bytes asked for per fetch; one larger batch still comes whole.
const FETCH_BYTES: i32 = 4 << 20;

const FETCH: (i16, i16) = (1, 4);
const LIST_OFFSETS: (i16, i16) = (2, 1);
const METADATA: (i16, i16) = (3, 4);

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    #[error("{address}: {source}")]
    Io { address: String, source: io::Error },
    #[error("the answer is {0} bytes long")]
    AnswerTooLong(i32),
    #[error("the answer ends early")]
    Short,
    #[error("the answer belongs to another request")]
    Correlation,
    #[error("{what}: Kafka error code {code}")]
    Kafka { what: &'static str, code: i16 },
}

/// One partition and the address of its leader.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Leader {
    pub partition: i32,
    pub address: String,
}

/// One answer to Fetch.
pub(crate) struct Fetched {
    pub records: Vec<u8>,
}

/// A blocking plaintext connection to one broker.
pub(crate) struct Connection {
    stream: TcpStream,
    address: String,
    correlation: i32,
}

impl Connection {
    pub(crate) fn open(address: &str) -> Result<Self, WireError> {
        let io = |source| WireError::Io { address: address.to_owned(), source };
        let mut last = io::Error::new(io::ErrorKind::NotFound, "no such address");
        for candidate in address.to_socket_addrs().map_err(io)? {
            match TcpStream::connect_timeout(&candidate, TIMEOUT) {
                Ok(stream) => {
                    stream.set_read_timeout(Some(TIMEOUT)).map_err(io)?;
                    stream.set_write_timeout(Some(TIMEOUT)).map_err(io)?;
                    stream.set_nodelay(true).map_err(io)?;
                    return Ok(Self { stream, address: address.to_owned(), correlation: 0 });
                }
                Err(error) => last = error,
            }
        }
        Err(io(last))
    }

    /// Leaders of all partitions of a topic; never creates it.
    pub(crate) fn leaders(&mut self, topic: &str) -> Result<Vec<Leader>, WireError> {
        let mut body = Writer::default();
        body.i32(1).string(topic).u8(0);
        let answer = self.call(METADATA, &body)?;
        let mut answer = Cursor(&answer);
        answer.i32()?; // throttle time
        let mut brokers = Vec::new();
        for _ in 0..answer.i32()? {
            let node = answer.i32()?;
            let host = answer.string()?;
            let port = answer.i32()?;
            answer.string()?; // rack
            brokers.push((node, format!("{host}:{port}")));
        }
        answer.string()?; // cluster id
        answer.i32()?; // controller
        let mut leaders = Vec::new();
        for _ in 0..answer.i32()? {
            answer.ok("metadata of the topic")?;
            answer.string()?;
            answer.u8()?; // is internal
            for _ in 0..answer.i32()? {
                leaders.push(partition_leader(&mut answer, &brokers)?);
            }
        }
        Ok(leaders)
    }

    /// Offset for the timestamp −1 (end) or −2 (start).
    pub(crate) fn offset(&mut self, topic: &str, partition: i32, timestamp: i64) -> Result<i64, WireError> {
        let mut body = Writer::default();
        body.i32(-1).i32(1).string(topic).i32(1).i32(partition).i64(timestamp);
        let answer = self.call(LIST_OFFSETS, &body)?;
        let mut answer = Cursor(&answer);
        answer.i32()?;
        answer.string()?;
        answer.i32()?;
        answer.i32()?; // partition
        answer.ok("offset")?;
        answer.i64()?; // timestamp
        answer.i64()
    }

    /// Batches from the one that holds `offset`; the last may be cut.
    pub(crate) fn fetch(&mut self, topic: &str, partition: i32, offset: i64) -> Result<Fetched, WireError> {
        let mut body = Writer::default();
        body.i32(-1).i32(500).i32(1).i32(FETCH_BYTES).u8(0); // read_uncommitted
        body.i32(1).string(topic).i32(1).i32(partition).i64(offset).i32(FETCH_BYTES);
        let answer = self.call(FETCH, &body)?;
        let mut answer = Cursor(&answer);
        answer.i32()?; // throttle time
        answer.i32()?;
        answer.string()?;
        answer.i32()?;
        answer.i32()?; // partition
        answer.ok("fetch")?;
        answer.i64()?; // high watermark
        answer.i64()?; // last stable offset
        for _ in 0..answer.i32()?.max(0) {
            answer.i64()?;
            answer.i64()?; // aborted transaction
        }
        let length = answer.i32()?.max(0);
        let records = answer.take(usize::try_from(length).unwrap_or(0))?.to_vec();
        Ok(Fetched { records })
    }

    fn call(&mut self, (key, version): (i16, i16), body: &Writer) -> Result<Vec<u8>, WireError> {
        self.correlation += 1;
        let mut header = Writer::default();
        header.i16(key).i16(version).i32(self.correlation).string("crossover-check");
        let length = i32::try_from(header.0.len() + body.0.len()).map_err(|_| WireError::Short)?;
        let mut frame = length.to_be_bytes().to_vec();
        frame.extend_from_slice(&header.0);
        frame.extend_from_slice(&body.0);
        self.exchange(&frame)
    }

    fn exchange(&mut self, frame: &[u8]) -> Result<Vec<u8>, WireError> {
        let io = |source| WireError::Io { address: self.address.clone(), source };
        self.stream.write_all(frame).map_err(io)?;
        let mut prefix = [0; 8];
        self.stream.read_exact(&mut prefix).map_err(io)?;
        let mut prefix = Cursor(&prefix);
        let (length, correlation) = (prefix.i32()?, prefix.i32()?);
        let rest = usize::try_from(length).ok().and_then(|length| length.checked_sub(4));
        let rest = rest.filter(|rest| *rest <= MAX_ANSWER).ok_or(WireError::AnswerTooLong(length))?;
        if correlation != self.correlation {
            return Err(WireError::Correlation);
        }
        let mut answer = vec![0; rest];
        self.stream.read_exact(&mut answer).map_err(io)?;
        Ok(answer)
    }
}

fn partition_leader(answer: &mut Cursor<'_>, brokers: &[(i32, String)]) -> Result<Leader, WireError> {
    let code = answer.i16()?;
    let partition = answer.i32()?;
    let node = answer.i32()?;
    for _ in 0..2 {
        for _ in 0..answer.i32()? {
            answer.i32()?; // replicas, in-sync replicas
        }
    }
    let address = brokers.iter().find(|(id, _)| *id == node).map(|(_, address)| address.clone());
    // 9 (a replica is away) still names a leader; without one there is 5.
    let address = address.ok_or(WireError::Kafka { what: "leader", code })?;
    Ok(Leader { partition, address })
}

#[derive(Default)]
struct Writer(Vec<u8>);

impl Writer {
    fn u8(&mut self, value: u8) -> &mut Self {
        self.0.push(value);
        self
    }

    fn i16(&mut self, value: i16) -> &mut Self {
        self.0.extend(value.to_be_bytes());
        self
    }

    fn i32(&mut self, value: i32) -> &mut Self {
        self.0.extend(value.to_be_bytes());
        self
    }

    fn i64(&mut self, value: i64) -> &mut Self {
        self.0.extend(value.to_be_bytes());
        self
    }

    /// Topic names are at most 249 bytes, so the cut never happens to a valid one.
    fn string(&mut self, text: &str) -> &mut Self {
        let bytes = text.as_bytes().get(..text.len().min(0x7fff)).unwrap_or_default();
        self.i16(i16::try_from(bytes.len()).unwrap_or(i16::MAX));
        self.0.extend_from_slice(bytes);
        self
    }
}

/// Reads big-endian fields; ends with an error instead of a panic.
pub(crate) struct Cursor<'a>(pub(crate) &'a [u8]);

impl<'a> Cursor<'a> {
    pub(crate) fn take(&mut self, length: usize) -> Result<&'a [u8], WireError> {
        let (head, tail) = self.0.split_at_checked(length).ok_or(WireError::Short)?;
        self.0 = tail;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        self.take(N)?.try_into().map_err(|_| WireError::Short)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, WireError> {
        Ok(u8::from_be_bytes(self.array()?))
    }

    pub(crate) fn i16(&mut self) -> Result<i16, WireError> {
        Ok(i16::from_be_bytes(self.array()?))
    }

    pub(crate) fn i32(&mut self) -> Result<i32, WireError> {
        Ok(i32::from_be_bytes(self.array()?))
    }

    pub(crate) fn i64(&mut self) -> Result<i64, WireError> {
        Ok(i64::from_be_bytes(self.array()?))
    }

    /// Zig-zag varint of a record.
    pub(crate) fn varint(&mut self) -> Result<i64, WireError> {
        let mut raw = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.u8()?;
            raw |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok((raw >> 1).cast_signed() ^ -(raw & 1).cast_signed());
            }
        }
        Err(WireError::Short)
    }

    fn string(&mut self) -> Result<String, WireError> {
        let length = self.i16()?;
        let bytes = self.take(usize::try_from(length).unwrap_or(0))?;
        Ok(String::from_utf8_lossy(bytes).into_owned())
    }

    fn ok(&mut self, what: &'static str) -> Result<(), WireError> {
        match self.i16()? {
            0 => Ok(()),
            code => Err(WireError::Kafka { what, code }),
        }
    }
}
