//! What the clusters' logs really hold, read from the brokers directly and not through the proxy.

use std::collections::BTreeMap;

use serde::Serialize;

pub use crate::record_batch::BatchError;
use crate::record_batch::decode;
pub use crate::wire::WireError;
use crate::wire::{Connection, Leader};

/// One driver's record in one cluster's log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LogRecord {
    /// The caller's name of the cluster, such as `source`.
    pub cluster: String,
    pub topic: String,
    pub partition: u32,
    /// The cluster's own offset.
    pub offset: i64,
    pub writer: u32,
    pub seq: u64,
}

/// Dumped logs of any number of clusters.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct GroundTruth {
    pub records: Vec<LogRecord>,
}

/// Why a log could not be dumped.
#[derive(Debug, thiserror::Error)]
pub enum DumpError {
    #[error(transparent)]
    Wire(#[from] WireError),
    #[error("partition {partition}: {source}")]
    Batch { partition: i32, source: BatchError },
    #[error("partition {partition}: nothing readable at offset {offset}, the log ends at {end}")]
    Stuck { partition: i32, offset: i64, end: i64 },
    #[error("partition {partition} offset {offset}: a record of partition {value}")]
    Misplaced { partition: i32, offset: i64, value: u32 },
}

impl GroundTruth {
    /// Records per cluster and partition as `cluster topic-partition`, sorted.
    #[must_use]
    pub fn counts(&self) -> Vec<(String, u64)> {
        let mut counts = BTreeMap::new();
        for record in &self.records {
            let log = (&record.cluster, &record.topic, record.partition);
            *counts.entry(log).or_insert(0u64) += 1;
        }
        let named = counts
            .into_iter()
            .map(|((cluster, topic, partition), count)| (format!("{cluster} {topic}-{partition}"), count));
        named.collect()
    }
}

/// Reads every partition of `topic` from its start to the end it has now. `cluster` names the result; `bootstrap` is
/// `host:port[,…]`, plaintext. A topic the cluster does not have is an error (code 3).
///
/// # Errors
/// If any partition cannot be read completely.
pub fn dump(cluster: &str, bootstrap: &str, topic: &str) -> Result<GroundTruth, DumpError> {
    let mut truth = GroundTruth::default();
    for leader in any_broker(bootstrap)?.leaders(topic)? {
        dump_partition(cluster, topic, &leader, &mut truth)?;
    }
    Ok(truth)
}

fn any_broker(bootstrap: &str) -> Result<Connection, WireError> {
    let mut result = Err(WireError::Short);
    for address in bootstrap.split(',') {
        result = Connection::open(address);
        if result.is_ok() {
            break;
        }
    }
    result
}

fn dump_partition(
    cluster: &str,
    topic: &str,
    leader: &Leader,
    truth: &mut GroundTruth,
) -> Result<(), DumpError> {
    let partition = leader.partition;
    let mut connection = Connection::open(&leader.address)?;
    let mut offset = connection.offset(topic, partition, -2)?;
    let end = connection.offset(topic, partition, -1)?;
    while offset < end {
        let fetched = connection.fetch(topic, partition, offset)?;
        let decoded = decode(&fetched.records).map_err(|source| DumpError::Batch { partition, source })?;
        let next = decoded.next.filter(|next| *next > offset);
        let next = next.ok_or(DumpError::Stuck { partition, offset, end })?;
        // The first batch may begin below the position that was asked for.
        for (at, value) in decoded.values.into_iter().filter(|(at, _)| *at >= offset) {
            let Some((writer, number, seq)) = parse_value(&value) else { continue };
            if i32::try_from(number) != Ok(partition) {
                return Err(DumpError::Misplaced { partition, offset: at, value: number });
            }
            let (cluster, topic) = (cluster.to_owned(), topic.to_owned());
            truth.records.push(LogRecord { cluster, topic, partition: number, offset: at, writer, seq });
        }
        offset = next;
    }
    Ok(())
}

/// `run|writer|partition|seq|…` → (writer, partition, seq); `None` if it is not a driver's value.
fn parse_value(value: &[u8]) -> Option<(u32, u32, u64)> {
    let mut fields = value.split(|byte| *byte == b'|').skip(1);
    let mut field = || std::str::from_utf8(fields.next()?).ok();
    let writer = field()?.parse().ok()?;
    let partition = field()?.parse().ok()?;
    let seq = field()?.parse().ok()?;
    Some((writer, partition, seq))
}
