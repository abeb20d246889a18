//! As much of the Kafka protocol as it takes to ask a broker how it is and to create a topic.
//!
//! The versions are non-flexible ones that every broker from 2.8 to 4.3 speaks (KIP-896 removed older ones).

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use crate::error::{HarnessError, Result};

/// Longest answer taken, in bytes.
const MAX_FRAME: usize = 16 << 20;
const CLIENT_ID: &str = "crossover-harness";

const METADATA: (i16, i16) = (3, 7);
const LIST_OFFSETS: (i16, i16) = (2, 1);
const OFFSET_FETCH: (i16, i16) = (9, 5);
const FIND_COORDINATOR: (i16, i16) = (10, 1);
const API_VERSIONS: (i16, i16) = (18, 0);
const CREATE_TOPICS: (i16, i16) = (19, 4);
const ELECT_LEADERS: (i16, i16) = (43, 1);
/// Its first version is flexible.
const ALTER_PARTITION_REASSIGNMENTS: (i16, i16) = (45, 0);
/// KIP-460: back to the first replica.
const PREFERRED: u8 = 0;
/// Asks for the log's end, not only for what is replicated (`ListOffsetsRequest.DEBUGGING_REPLICA_ID`).
const DEBUGGING: i32 = -2;
const LATEST: i64 = -1;
/// The first replica leads already.
const ELECTION_NOT_NEEDED: i16 = 84;

/// What one broker knows of its cluster.
#[derive(Debug, Clone)]
pub struct Metadata {
    pub cluster_id: Option<String>,
    /// −1 while there is none. With KRaft a random broker: it forwards.
    pub controller_id: i32,
    /// Ids of the brokers that are up, ascending.
    pub brokers: Vec<i32>,
    pub topics: Vec<TopicInfo>,
}

/// One topic of a metadata answer.
#[derive(Debug, Clone)]
pub struct TopicInfo {
    pub error_code: i16,
    pub name: String,
    pub is_internal: bool,
    /// By partition number, ascending.
    pub partitions: Vec<PartitionInfo>,
}

/// One partition of a metadata answer.
#[derive(Debug, Clone)]
pub struct PartitionInfo {
    pub error_code: i16,
    pub partition: i32,
    /// −1 while there is none.
    pub leader: i32,
    /// Rises with each election.
    pub leader_epoch: i32,
    pub replicas: Vec<i32>,
    pub isr: Vec<i32>,
}

/// A group's commit for one partition, as `__consumer_offsets` has it.
#[derive(Debug, Clone)]
pub struct Commit {
    pub topic: String,
    pub partition: i32,
    pub offset: i64,
    /// −1 for none.
    pub leader_epoch: i32,
    pub metadata: String,
}

/// A topic to create.
pub(crate) struct NewTopic<'a> {
    pub(crate) name: &'a str,
    pub(crate) partitions: i32,
    pub(crate) replication_factor: i16,
    pub(crate) configs: &'a [(&'a str, &'a str)],
}

/// One connection to one broker.
pub(crate) struct Connection {
    stream: TcpStream,
    correlation: i32,
}

impl Connection {
    /// `limit` bounds the connect and every single read and write.
    pub(crate) fn open(address: SocketAddr, limit: Duration) -> Result<Self> {
        let open = || {
            let stream = TcpStream::connect_timeout(&address, limit)?;
            stream.set_read_timeout(Some(limit))?;
            stream.set_write_timeout(Some(limit))?;
            stream.set_nodelay(true)?;
            Ok(stream)
        };
        let stream =
            open().map_err(|source| HarnessError::Io { action: format!("connect to {address}"), source })?;
        Ok(Self { stream, correlation: 0 })
    }

    /// Succeeds when the broker processes requests.
    pub(crate) fn api_versions(&mut self) -> Result<()> {
        let answer = self.call(API_VERSIONS, &[])?;
        refused("ApiVersions", Reader(&answer).i16()?, None)
    }

    /// `topics`: `None` for all, never creates one.
    pub(crate) fn metadata(&mut self, topics: Option<&[&str]>) -> Result<Metadata> {
        let mut body = Vec::new();
        match topics {
            None => put_i32(&mut body, -1),
            Some(names) => put_array(&mut body, names, |body, name| put_string(body, name)),
        }
        body.push(0);
        read_metadata(&self.call(METADATA, &body)?)
    }

    /// The coordinator of a consumer group; creates `__consumer_offsets` when it is the first of its cluster.
    pub(crate) fn find_group_coordinator(&mut self, group: &str) -> Result<i32> {
        let mut body = Vec::new();
        put_string(&mut body, group);
        body.push(0);
        let answer = self.call(FIND_COORDINATOR, &body)?;
        let mut reader = Reader(&answer);
        let _throttle = reader.i32()?;
        let code = reader.i16()?;
        let message = reader.nullable_string()?;
        refused("FindCoordinator", code, message)?;
        reader.i32()
    }

    /// All commits of a group; only its coordinator knows them.
    pub(crate) fn commits(&mut self, group: &str) -> Result<Vec<Commit>> {
        let mut body = Vec::new();
        put_string(&mut body, group);
        put_i32(&mut body, -1);
        let answer = self.call(OFFSET_FETCH, &body)?;
        let mut reader = Reader(&answer);
        let _throttle = reader.i32()?;
        let topics = reader.array(|r| Ok((r.string()?, r.array(read_commit)?)))?;
        refused("OffsetFetch", reader.i16()?, None)?;
        let named = |(topic, commits): (String, Vec<Commit>)| {
            commits.into_iter().map(move |commit| Commit { topic: topic.clone(), ..commit })
        };
        Ok(topics.into_iter().flat_map(named).collect())
    }

    /// Where the logs of partitions that this broker leads end.
    pub(crate) fn log_ends(&mut self, topic: &str, partitions: &[i32]) -> Result<Vec<(i32, i64)>> {
        let mut body = Vec::new();
        put_i32(&mut body, DEBUGGING);
        put_array(&mut body, &[topic], |body, topic| {
            put_string(body, topic);
            put_array(body, partitions, |body, partition| {
                put_i32(body, *partition);
                body.extend(LATEST.to_be_bytes());
            });
        });
        let answer = self.call(LIST_OFFSETS, &body)?;
        let topics = Reader(&answer).array(|r| {
            let _topic = r.string()?;
            r.array(|r| {
                let (partition, code) = (r.i32()?, r.i16()?);
                let (_timestamp, offset) = (r.i64()?, r.i64()?);
                refused("ListOffsets", code, None)?;
                Ok((partition, offset))
            })
        })?;
        Ok(topics.into_iter().flatten().collect())
    }

    /// Only the controller of a ZooKeeper cluster does it; KRaft brokers forward.
    pub(crate) fn create_topic(&mut self, topic: &NewTopic<'_>, limit: Duration) -> Result<()> {
        let mut body = Vec::new();
        put_array(&mut body, &[topic], |body, topic| {
            put_string(body, topic.name);
            put_i32(body, topic.partitions);
            body.extend(topic.replication_factor.to_be_bytes());
            put_i32(body, 0);
            put_array(body, topic.configs, |body, (key, value)| {
                put_string(body, key);
                put_string(body, value);
            });
        });
        put_i32(&mut body, i32::try_from(limit.as_millis()).unwrap_or(i32::MAX));
        body.push(0);
        let answer = self.call(CREATE_TOPICS, &body)?;
        let mut reader = Reader(&answer);
        let _throttle = reader.i32()?;
        let results = reader.array(|r| Ok((r.string()?, r.i16()?, r.nullable_string()?)))?;
        match results.into_iter().next() {
            Some((_, code, message)) => refused("CreateTopics", code, message),
            None => Err(HarnessError::Malformed("CreateTopics without a result")),
        }
    }

    /// Gives partitions back to the first of their replicas.
    pub(crate) fn elect_preferred(&mut self, topic: &str, partitions: &[i32], limit: Duration) -> Result<()> {
        let mut body = vec![PREFERRED];
        put_array(&mut body, &[topic], |body, topic| {
            put_string(body, topic);
            put_array(body, partitions, |body, partition| put_i32(body, *partition));
        });
        put_i32(&mut body, i32::try_from(limit.as_millis()).unwrap_or(i32::MAX));
        let answer = self.call(ELECT_LEADERS, &body)?;
        let mut reader = Reader(&answer);
        let _throttle = reader.i32()?;
        refused("ElectLeaders", reader.i16()?, None)?;
        let topics = reader.array(|r| {
            let _topic = r.string()?;
            r.array(|r| Ok((r.i32()?, r.i16()?, r.nullable_string()?)))
        })?;
        let failed =
            topics.into_iter().flatten().find(|(_, code, _)| ![0, ELECTION_NOT_NEEDED].contains(code));
        failed.map_or(Ok(()), |(_, code, message)| refused("ElectLeaders", code, message))
    }

    /// Sets the replicas of partitions, the preferred leader first. Returns before they are in sync.
    pub(crate) fn reassign(
        &mut self,
        topic: &str,
        replicas: &[(i32, Vec<i32>)],
        limit: Duration,
    ) -> Result<()> {
        let compact = |len: usize| u8::try_from(len + 1).unwrap_or(u8::MAX);
        let mut body = vec![0];
        put_i32(&mut body, i32::try_from(limit.as_millis()).unwrap_or(i32::MAX));
        body.extend([compact(1), compact(topic.len())]);
        body.extend(topic.as_bytes());
        body.push(compact(replicas.len()));
        for (partition, on) in replicas {
            put_i32(&mut body, *partition);
            body.push(compact(on.len()));
            on.iter().for_each(|broker| put_i32(&mut body, *broker));
            body.push(0);
        }
        body.extend([0, 0]);
        let answer = self.call(ALTER_PARTITION_REASSIGNMENTS, &body)?;
        let mut reader = Reader(&answer);
        let (_tags, _throttle) = (reader.u8()?, reader.i32()?);
        refused("AlterPartitionReassignments", reader.i16()?, None)
    }

    /// One request and its answer without header.
    fn call(&mut self, (key, version): (i16, i16), body: &[u8]) -> Result<Vec<u8>> {
        self.correlation += 1;
        let mut payload = Vec::new();
        payload.extend(key.to_be_bytes());
        payload.extend(version.to_be_bytes());
        put_i32(&mut payload, self.correlation);
        put_string(&mut payload, CLIENT_ID);
        payload.extend_from_slice(body);
        let mut frame = Vec::new();
        put_i32(&mut frame, count(payload.len()));
        frame.append(&mut payload);

        let answer = self.exchange(&frame).map_err(|source| HarnessError::Io {
            action: format!("ask the broker (API key {key})"),
            source,
        })?;
        let mut reader = Reader(&answer);
        if reader.i32()? != self.correlation {
            return Err(HarnessError::Malformed("correlation id of another request"));
        }
        Ok(reader.0.to_vec())
    }

    fn exchange(&mut self, frame: &[u8]) -> std::io::Result<Vec<u8>> {
        self.stream.write_all(frame)?;
        let mut size = [0; 4];
        self.stream.read_exact(&mut size)?;
        let size = usize::try_from(i32::from_be_bytes(size)).ok().filter(|size| *size <= MAX_FRAME);
        let size = size.ok_or_else(|| std::io::Error::other("answer of an impossible size"))?;
        let mut answer = vec![0; size];
        self.stream.read_exact(&mut answer)?;
        Ok(answer)
    }
}

fn refused(request: &'static str, code: i16, message: Option<String>) -> Result<()> {
    if code == 0 { Ok(()) } else { Err(HarnessError::Refused { request, code, message }) }
}

/// Without its topic.
fn read_commit(reader: &mut Reader<'_>) -> Result<Commit> {
    let (partition, offset, leader_epoch) = (reader.i32()?, reader.i64()?, reader.i32()?);
    let metadata = reader.nullable_string()?.unwrap_or_default();
    refused("OffsetFetch", reader.i16()?, None)?;
    Ok(Commit { topic: String::new(), partition, offset, leader_epoch, metadata })
}

fn read_metadata(answer: &[u8]) -> Result<Metadata> {
    let mut reader = Reader(answer);
    let _throttle = reader.i32()?;
    let mut brokers = reader.array(|r| {
        let id = r.i32()?;
        let (_host, _port, _rack) = (r.string()?, r.i32()?, r.nullable_string()?);
        Ok(id)
    })?;
    brokers.sort_unstable();
    let cluster_id = reader.nullable_string()?;
    let controller_id = reader.i32()?;
    let topics = reader.array(read_topic)?;
    Ok(Metadata { cluster_id, controller_id, brokers, topics })
}

fn read_topic(reader: &mut Reader<'_>) -> Result<TopicInfo> {
    let error_code = reader.i16()?;
    let name = reader.string()?;
    let is_internal = reader.u8()? != 0;
    let mut partitions = reader.array(|r| {
        let partition = PartitionInfo {
            error_code: r.i16()?,
            partition: r.i32()?,
            leader: r.i32()?,
            leader_epoch: r.i32()?,
            replicas: r.array(Reader::i32)?,
            isr: r.array(Reader::i32)?,
        };
        let _offline_replicas = r.array(Reader::i32)?;
        Ok(partition)
    })?;
    partitions.sort_unstable_by_key(|p| p.partition);
    Ok(TopicInfo { error_code, name, is_internal, partitions })
}

// === writing ===

fn put_i32(out: &mut Vec<u8>, value: i32) {
    out.extend(value.to_be_bytes());
}

/// Strings here are names, far below 32 KiB; a longer one gets a wrong length, which the broker refuses.
fn put_string(out: &mut Vec<u8>, text: &str) {
    out.extend(i16::try_from(text.len()).unwrap_or(i16::MAX).to_be_bytes());
    out.extend_from_slice(text.as_bytes());
}

fn put_array<T>(out: &mut Vec<u8>, items: &[T], put: impl Fn(&mut Vec<u8>, &T)) {
    put_i32(out, count(items.len()));
    for item in items {
        put(out, item);
    }
}

fn count(len: usize) -> i32 {
    i32::try_from(len).unwrap_or(i32::MAX)
}

// === reading ===

/// What is left of an answer.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(len).ok_or(HarnessError::Malformed("truncated"))?;
        self.0 = rest;
        Ok(head)
    }

    fn fixed<const N: usize>(&mut self) -> Result<[u8; N]> {
        self.take(N)?.try_into().map_err(|_| HarnessError::Malformed("truncated"))
    }

    fn u8(&mut self) -> Result<u8> {
        Ok(u8::from_be_bytes(self.fixed()?))
    }

    fn i16(&mut self) -> Result<i16> {
        Ok(i16::from_be_bytes(self.fixed()?))
    }

    fn i32(&mut self) -> Result<i32> {
        Ok(i32::from_be_bytes(self.fixed()?))
    }

    fn i64(&mut self) -> Result<i64> {
        Ok(i64::from_be_bytes(self.fixed()?))
    }

    fn nullable_string(&mut self) -> Result<Option<String>> {
        let len = self.i16()?;
        let Ok(len) = usize::try_from(len) else { return Ok(None) };
        let text = std::str::from_utf8(self.take(len)?);
        text.map(|t| Some(t.to_owned())).map_err(|_| HarnessError::Malformed("text is not UTF-8"))
    }

    fn string(&mut self) -> Result<String> {
        self.nullable_string()?.ok_or(HarnessError::Malformed("null where a text must be"))
    }

    /// Grows with what is really there, not with the announced length. Null reads as empty.
    fn array<T>(&mut self, item: impl Fn(&mut Self) -> Result<T>) -> Result<Vec<T>> {
        let len = self.i32()?;
        let mut items = Vec::new();
        for _ in 0..len {
            items.push(item(self)?);
        }
        Ok(items)
    }
}

#[cfg(test)]
mod tests {
    use super::{put_i32, put_string, read_metadata};

    fn metadata_answer() -> Vec<u8> {
        let mut out = Vec::new();
        put_i32(&mut out, 0);
        put_i32(&mut out, 1);
        put_i32(&mut out, 7);
        put_string(&mut out, "127.0.0.1");
        put_i32(&mut out, 9092);
        out.extend((-1i16).to_be_bytes());
        put_string(&mut out, "cluster");
        put_i32(&mut out, 7);
        put_i32(&mut out, 1);
        out.extend([0, 0]);
        put_string(&mut out, "orders");
        out.push(0);
        put_i32(&mut out, 1);
        out.extend([0, 0]);
        for value in [0, 7, 3, 1, 7, 1, 7, 0] {
            put_i32(&mut out, value);
        }
        out
    }

    #[test]
    fn a_metadata_answer_is_read_whole() {
        let metadata = read_metadata(&metadata_answer()).unwrap();
        assert_eq!((metadata.controller_id, metadata.brokers.as_slice()), (7, &[7][..]));
        assert_eq!(metadata.cluster_id.as_deref(), Some("cluster"));
        assert_eq!(metadata.topics[0].name, "orders");
        assert_eq!(metadata.topics[0].partitions[0].isr, [7]);
        assert_eq!(metadata.topics[0].partitions[0].leader_epoch, 3);
    }

    #[test]
    fn a_truncated_answer_is_an_error_at_every_length() {
        let whole = metadata_answer();
        for len in 0..whole.len() {
            assert!(read_metadata(&whole[..len]).is_err(), "{len}");
        }
    }
}
