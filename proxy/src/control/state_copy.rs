//! The state's copy in both clusters: a compacted topic with a row for every row of the store (RULES R31).
//!
//! A SEAL is durable in the local store; the copy follows within moments and is what `crossover state restore` reads when
//! the store is lost. After any change of the store its rows are compared with what each cluster was given last (after a
//! start, or a write that failed, with what is there), and the difference is written. A write that takes several batches is framed by the row [`WRITING`]: a reader that finds
//! it knows that the copy is torn, and takes the other cluster's.

use super::Control;
use super::client::{Address, Client, request};
use super::records::{self, Record};
use crate::store::Rows;
use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use crossover_core::api::key;
use crossover_core::ids::ClusterSide;
use crossover_core::node::Topology;
use crossover_core::producer::transaction::Identity;
use crossover_core::route::STATE_TOPIC;
use crossover_core::schema::{Struct, Value};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tracing::{info, warn};

/// The row that is there while a write of several batches is under way.
const WRITING: &str = "writing";
/// The key of the operation that was about to flip last: no row, which would begin with the number of its part.
const INTENT: &[u8] = b"intent";
/// The largest part of a row in one record, and the largest batch: `max.message.bytes` is 1 MiB by default.
const PART_BYTES: usize = 256 * 1024;
const BATCH_BYTES: usize = 600 * 1024;
const FETCH_BYTES: i32 = 8 * 1024 * 1024;
/// Between two attempts at a cluster that does not take it.
const AGAIN: Duration = Duration::from_secs(1);
/// What is not on a cluster after this is shown as an alarm.
const LATE: Duration = Duration::from_secs(30);
const REPLICAS_MAX: usize = 3;
const TOPIC_ALREADY_EXISTS: i16 = 36;

/// Keeps one cluster's copy up to date, for ever.
pub(crate) async fn run(control: Arc<Control>, side: ClusterSide) {
    let mut given = Given::default();
    let mut late_since = None;
    loop {
        let changed = control.store_changed[side.index()].notified();
        match bring_up_to_date(&control, side, &mut given).await {
            Ok(written) => {
                if written > 0 {
                    info!(%side, records = written, "the copy of the state is up to date");
                }
                late_since = None;
                changed.await;
            }
            Err(problem) => {
                let since = *late_since.get_or_insert_with(std::time::Instant::now);
                if since.elapsed() > LATE {
                    let cause = format!("the {side} does not take the copy of the state: {problem:#}");
                    let remedy = "let crossover create and write topic __crossover_state there; until then keep state.directory safe";
                    control.alarm("state-copy-late", side.as_str(), cause, remedy);
                }
                control.refresh[side.index()].notify_one();
                tokio::time::sleep(AGAIN).await;
            }
        }
    }
}

/// The parts of rows, by their keys.
type Parts = BTreeMap<String, Vec<u8>>;

/// What a cluster has been given.
#[derive(Default)]
struct Given {
    /// `None`: a process before this one, or a write that failed, has left nobody knows what.
    parts: Option<Parts>,
    /// The topic is known to be there.
    created: bool,
}

async fn bring_up_to_date(control: &Control, side: ClusterSide, given: &mut Given) -> anyhow::Result<usize> {
    // The copy is the other process's: rows of this one, which is behind, would stand in the place of newer ones.
    if control.is_taken_over() {
        return Ok(0);
    }
    let rows = control.stored_quietly(|store| store.rows()).await?;
    // Nothing was ever moved: nothing is put on anybody's cluster.
    if !rows.is_moved() && given.parts.as_ref().is_none_or(BTreeMap::is_empty) {
        return Ok(0);
    }
    let wanted = parts_of(&rows);
    if given.parts.as_ref() == Some(&wanted) {
        return Ok(0);
    }
    let topology = control.topology(side);
    ensure!(topology.reachable, "it is not reachable");
    if !given.created {
        create(&control.client, control, &topology).await?;
        given.created = true;
    }
    let leader = topology.partition(STATE_TOPIC, 0).map(|p| p.leader);
    let at = control.address(side, leader.context("the topic has no leader yet")?)?;
    let known = match given.parts.take() {
        Some(known) => known,
        None => left_there(control, &topology, rows.revision()).await?,
    };
    let records = difference(&known, &wanted);
    let written = records.len();
    for batch in batches(records) {
        write(&control.client, &at, &batch, control.runtime.now_ms()).await?;
    }
    given.parts = Some(wanted);
    Ok(written)
}

/// What a cluster's copy holds, whoever wrote it.
async fn left_there(control: &Control, topology: &Topology, revision: u64) -> anyhow::Result<Parts> {
    let parts = read_parts(&control.client, topology).await?.unwrap_or_default();
    let copied = parts.get(&part_key("meta/revision", 0)).and_then(|part| part.get(4..));
    let copied = copied.and_then(|text| std::str::from_utf8(text).ok()?.parse::<u64>().ok()).unwrap_or(0);
    ensure!(
        copied <= revision,
        "it has a copy of revision {copied} already, and this process is at {revision}"
    );
    Ok(parts)
}

/// What is to be there for rows.
fn parts_of(rows: &Rows) -> Parts {
    let mut all = Parts::new();
    for (key, value) in &rows.0 {
        let parts: Vec<&[u8]> = value.chunks(PART_BYTES).collect();
        let count = parts.len().max(1);
        for index in 0..count {
            let part = parts.get(index).copied().unwrap_or_default();
            let framed = [&u32::try_from(count).unwrap_or(u32::MAX).to_be_bytes()[..], part].concat();
            all.insert(part_key(key, index), framed);
        }
    }
    all
}

/// What is to be written to get from one set of parts to another.
fn difference(old: &Parts, new: &Parts) -> Vec<Record> {
    let record = |key: &str, value: Option<&Vec<u8>>| Record { key: key.into(), value: value.cloned() };
    let writing = part_key(WRITING, 0);
    let is_kept = |key: &str| new.contains_key(key) || key == writing || key.as_bytes() == INTENT;
    let gone = old.keys().filter(|key| !is_kept(key)).map(|key| record(key, None));
    let changed = new.iter().filter(|(key, value)| old.get(*key) != Some(*value));
    let changed = changed.map(|(key, value)| record(key, Some(value)));
    // A write that was not finished ends with this one.
    let torn = old.contains_key(&writing).then(|| record(&writing, None));
    gone.chain(changed).chain(torn).collect()
}

fn part_key(key: &str, index: usize) -> String {
    format!("{index}/{key}")
}

/// One batch where it fits; otherwise the first says that a write is under way, and the last that it is over.
fn batches(records: Vec<Record>) -> Vec<Vec<Record>> {
    let size = |r: &Record| r.key.len() + r.value.as_ref().map_or(0, Vec::len) + 32;
    let mut out: Vec<Vec<Record>> = Vec::new();
    let mut filled = BATCH_BYTES;
    for record in records {
        if filled + size(&record) > BATCH_BYTES {
            out.push(Vec::new());
            filled = 0;
        }
        filled += size(&record);
        if let Some(last) = out.last_mut() {
            last.push(record);
        }
    }
    if out.len() > 1 {
        let row = |value: Option<&[u8]>| Record {
            key: part_key(WRITING, 0).into(),
            value: value.map(<[u8]>::to_vec),
        };
        out.insert(0, vec![row(Some(&[0, 0, 0, 1]))]);
        if let Some(last) = out.last_mut() {
            last.push(row(None));
        }
    }
    out
}

pub(super) async fn create(client: &Client, control: &Control, topology: &Topology) -> anyhow::Result<()> {
    let side = topology.side;
    if topology.topic(STATE_TOPIC).is_some() {
        return Ok(());
    }
    let mut body = request(key::CREATE_TOPICS);
    let mut topic = body.new_element("Topics");
    topic.set("Name", STATE_TOPIC);
    topic.set("NumPartitions", 1);
    topic.set("ReplicationFactor", i16::try_from(topology.brokers.len().min(REPLICAS_MAX))?);
    for (name, value) in [("cleanup.policy", "compact"), ("compression.type", "uncompressed")] {
        let mut config = topic.new_element("Configs");
        config.set("Name", name);
        config.set("Value", value);
        topic.push("Configs", config);
    }
    body.push("Topics", topic);
    body.set("timeoutMs", 10_000);
    let at = match topology.controller {
        Some(controller) => control.address(side, controller)?,
        None => control.any_address(side)?,
    };
    let answer = client.call(&at, key::CREATE_TOPICS, 5, &body).await?;
    let error = answer.structs("Topics").next().map_or(0, |topic| topic.i16("ErrorCode"));
    ensure!([0, TOPIC_ALREADY_EXISTS].contains(&error), "CreateTopics answers error {error}");
    control.refresh[side.index()].notify_one();
    Ok(())
}

async fn write(client: &Client, at: &Address, records: &[Record], now_ms: i64) -> anyhow::Result<()> {
    match produce(client, at, None, records::encode(records, now_ms)?).await? {
        0 => Ok(()),
        error => bail!("Produce answers error {error}"),
    }
}

/// Writes which operation is about to flip, in an open transaction of `id`. Gives the broker's error code. The row is no
/// part of the copy: readers of that skip it.
pub(super) async fn write_intent(
    client: &Client,
    at: &Address,
    id: &str,
    operation: &str,
    (producer, sequence): (Identity, i32),
    now_ms: i64,
) -> anyhow::Result<i16> {
    let record = Record { key: INTENT.to_vec(), value: Some(operation.as_bytes().to_vec()) };
    let batch = records::encode_transactional(&[record], now_ms, producer, sequence)?;
    produce(client, at, Some(id), batch).await
}

async fn produce(client: &Client, at: &Address, id: Option<&str>, batch: Bytes) -> anyhow::Result<i16> {
    let mut body = request(key::PRODUCE);
    let mut topic = body.new_element("TopicData");
    let mut partition = topic.new_element("PartitionData");
    partition.set("Index", 0);
    partition.set("Records", Value::Bytes(Some(batch)));
    topic.set("Name", STATE_TOPIC);
    topic.push("PartitionData", partition);
    body.set("Acks", -1_i16);
    body.set("TimeoutMs", 5_000);
    body.push("TopicData", topic);
    body.set("TransactionalId", id);
    // From version 12 on a transaction begins by itself.
    let answer = client.call(at, key::PRODUCE, 11, &body).await?;
    let error = only_partition(&answer, "PartitionResponses").map(|p| p.i16("ErrorCode"));
    error.context("Produce answers nothing")
}

fn only_partition<'a>(answer: &'a Struct, partitions: &'static str) -> Option<&'a Struct> {
    answer.structs("Responses").flat_map(|topic| topic.structs(partitions)).next()
}

/// A cluster's copy; `None` where it has none.
///
/// # Errors
/// It cannot be read, or is torn.
pub(crate) async fn read(client: &Client, topology: &Topology) -> anyhow::Result<Option<Rows>> {
    let Some(latest) = read_parts(client, topology).await? else { return Ok(None) };
    assemble(&latest).with_context(|| format!("topic {STATE_TOPIC} of the {}", topology.side))
}

/// What stands in a cluster's copy, whole or not; `None` where there is no topic for it.
async fn read_parts(client: &Client, topology: &Topology) -> anyhow::Result<Option<Parts>> {
    let side = topology.side;
    let Some(info) = topology.partition(STATE_TOPIC, 0) else { return Ok(None) };
    let broker = topology.brokers.get(&info.leader);
    let broker = broker.with_context(|| format!("topic {STATE_TOPIC} has no leader on the {side}"))?;
    let at = (broker.host.clone(), broker.port);
    let mut latest = Parts::new();
    let mut position = 0;
    loop {
        let answer = client.call(&at, key::FETCH, 12, &fetch(position)).await?;
        let partition = only_partition(&answer, "Partitions").context("Fetch answers nothing")?;
        let error = partition.i16("ErrorCode");
        ensure!(error == 0, "topic {STATE_TOPIC} of the {side}: Fetch answers error {error}");
        let (records, next) = records::decode(partition.bytes("Records"))?;
        for Record { key, value } in records {
            let key = String::from_utf8(key).context("a key that is not ours")?;
            match value {
                Some(value) => drop(latest.insert(key, value)),
                None => drop(latest.remove(&key)),
            }
        }
        match next {
            Some(next) if next > position && next < partition.i64("HighWatermark") => position = next,
            _ => return Ok(Some(latest)),
        }
    }
}

fn fetch(position: i64) -> Struct {
    let mut body = request(key::FETCH);
    let mut topic = body.new_element("Topics");
    let mut partition = topic.new_element("Partitions");
    partition.set("Partition", 0);
    partition.set("CurrentLeaderEpoch", -1);
    partition.set("FetchOffset", position);
    partition.set("LastFetchedEpoch", -1);
    partition.set("LogStartOffset", -1_i64);
    partition.set("PartitionMaxBytes", FETCH_BYTES);
    topic.set("Topic", STATE_TOPIC);
    topic.push("Partitions", partition);
    body.set("ReplicaId", -1);
    body.set("MaxWaitMs", 100);
    body.set("MinBytes", 0);
    body.set("MaxBytes", FETCH_BYTES);
    body.set("SessionEpoch", -1);
    body.push("Topics", topic);
    body
}

/// Rows from their parts.
fn assemble(latest: &Parts) -> anyhow::Result<Option<Rows>> {
    if latest.is_empty() {
        return Ok(None);
    }
    ensure!(
        !latest.contains_key(&format!("0/{WRITING}")),
        "the copy is torn: its last write was not finished"
    );
    let mut rows = Rows::default();
    for (at, first) in latest {
        let Some(key) = at.strip_prefix("0/") else { continue };
        let (count, start) = first.split_first_chunk::<4>().context("a row without a count")?;
        let mut value = start.to_vec();
        for index in 1..u32::from_be_bytes(*count) {
            let part = latest.get(&format!("{index}/{key}")).context("a row without all of its parts")?;
            value.extend(part.get(4..).context("a part without a count")?);
        }
        rows.0.insert(key.to_owned(), value);
    }
    Ok(Some(rows))
}

/// At a start: the clusters must not know more of this migration than the store does.
///
/// # Errors
/// They do: the store was lost, or is an old one.
pub(crate) async fn check_store(control: &Control) -> anyhow::Result<()> {
    let known = control.state().revision.0;
    for side in ClusterSide::BOTH {
        let topology = control.topology(side);
        if !topology.reachable {
            continue;
        }
        match read(&control.client, &topology).await {
            Ok(Some(copy)) if copy.revision() > known => bail!(
                "state.directory {} has revision {known}, and topic {STATE_TOPIC} on the {side} has revision {}: the state was lost or is an old one, or another Crossover runs for this pair: stop that first; then run `crossover state restore`, or, if another migration left that topic behind, delete it on both clusters",
                control.runtime.config.state.directory.display(),
                copy.revision()
            ),
            Ok(_) => {}
            // Whether it is a migration's beginning or the end of its state is what the copy would tell.
            Err(problem) if known == 0 => bail!(
                "state.directory {} is empty, and the copy of the state on the {side} cannot be read: {problem:#}; make topic {STATE_TOPIC} readable there, or, if another migration left it behind, delete it on both clusters",
                control.runtime.config.state.directory.display()
            ),
            Err(problem) => warn!(%side, "the copy of the state cannot be read: {problem:#}"),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(all: &[(&str, usize)]) -> Rows {
        Rows(all.iter().map(|(key, size)| ((*key).to_owned(), vec![7; *size])).collect())
    }

    fn apply(latest: &mut Parts, batches: Vec<Vec<Record>>) {
        for Record { key, value } in batches.into_iter().flatten() {
            let key = String::from_utf8(key).unwrap();
            match value {
                Some(value) => drop(latest.insert(key, value)),
                None => drop(latest.remove(&key)),
            }
        }
    }

    #[test]
    fn r31_the_copy_follows_and_gives_the_rows_back() {
        let steps = [
            rows(&[("a", 1), ("b", 0)]),
            rows(&[("a", 1), ("b", 3 * PART_BYTES + 1), ("c", 2)]),
            rows(&[("b", PART_BYTES), ("c", 2)]),
        ];
        let (mut latest, mut old) = (Parts::new(), Rows::default());
        for new in steps {
            apply(&mut latest, batches(difference(&parts_of(&old), &parts_of(&new))));
            assert_eq!(assemble(&latest).unwrap().unwrap(), new);
            assert!(difference(&parts_of(&new), &parts_of(&new)).is_empty());
            old = new;
        }
    }

    #[test]
    fn r31_what_a_write_that_failed_has_left_in_the_copy_goes_with_the_next_one() {
        let new = rows(&[("a", 10), ("b", 3 * PART_BYTES), ("c", PART_BYTES)]);
        let all = batches(difference(&Parts::new(), &parts_of(&new)));
        // By then the large one is deleted, and another has come.
        for next in [rows(&[("a", 10)]), rows(&[("c", PART_BYTES), ("d", 4 * PART_BYTES)])] {
            for end in 0..=all.len() {
                let mut latest = Parts::from([("intent".to_owned(), vec![1])]);
                apply(&mut latest, all[..end].to_vec());
                let records = difference(&latest, &parts_of(&next));
                apply(&mut latest, batches(records));
                assert_eq!(assemble(&latest).unwrap().unwrap(), next, "{end}");
                assert_eq!(latest.len(), parts_of(&next).len() + 1, "{end}: the intent is not its own");
            }
        }
    }

    #[test]
    fn r31_a_torn_copy_is_recognised_wherever_it_ends() {
        let new = rows(&[("a", 10), ("b", 3 * PART_BYTES), ("c", PART_BYTES)]);
        let all = batches(difference(&Parts::new(), &parts_of(&new)));
        assert!(all.len() > 2);
        for end in 1..all.len() {
            let mut latest = BTreeMap::new();
            apply(&mut latest, all[..end].to_vec());
            assert!(assemble(&latest).is_err(), "after {end} of {} batches", all.len());
        }
    }

    /// A lost state, and a copy that does not say so: to begin anew would write to clusters that others own.
    #[tokio::test]
    async fn r31_an_empty_state_does_not_begin_beside_a_copy_that_cannot_be_read() {
        use crate::store::testing::Disk;
        use crossover_core::node::{BrokerAddress, PartitionInfo, TopicInfo};
        let control = crate::control::testing::restored(&Disk::default());
        let mut topology = Topology::unknown(ClusterSide::Source);
        topology.reachable = true;
        control.state().topologies[0] = Arc::new(topology.clone());
        assert!(check_store(&control).await.is_ok(), "nothing was ever moved");
        let leader = PartitionInfo { leader: 1, epoch: 0, replicas: vec![1], isr: vec![1] };
        let id = crossover_core::ids::TopicId::ZERO;
        let name: Arc<str> = Arc::from(STATE_TOPIC);
        let info = TopicInfo { name: Arc::clone(&name), id, internal: true, partitions: vec![leader] };
        topology.topics.insert(name, Arc::new(info));
        // Nobody listens there.
        let address = BrokerAddress { host: "127.0.0.1".to_owned(), port: 1, rack: None };
        topology.brokers.insert(1, address);
        control.state().topologies[0] = Arc::new(topology);
        assert!(check_store(&control).await.is_err());
        control.state().revision.0 = 1;
        assert!(check_store(&control).await.is_ok(), "a state that is there is newer than nothing");
    }
}
