//! Reads log ends and producers at their leaders, in the order that proves a log quiet (RULES R11).

use super::Control;
use super::client::{Address, Call, request};
use anyhow::Context;
use crossover_core::api::key;
use crossover_core::cutover::Reading;
use crossover_core::ids::ClusterSide;
use crossover_core::producer::carry::DescribedProducer;
use crossover_core::producer::transaction::Identity;
use crossover_core::route::TopicRoute;
use crossover_core::schema::{Struct, Value};
use std::collections::BTreeMap;
use std::sync::Arc;

pub(crate) use crossover_core::cutover::Part;

/// The newest version of ListOffsets whose answers are understood.
const LIST_OFFSETS_MAX: i16 = 8;
const LATEST: i64 = -1;
pub(crate) const EARLIEST: i64 = -2;
/// An ordinary consumer: the answer is the high watermark.
const CONSUMER: i32 = -1;
/// The debugging consumer: the answer is the log end.
const DEBUGGER: i32 = -2;

/// One partition with what its cluster's metadata says of it.
#[derive(Clone, Debug)]
pub(crate) struct Lead {
    pub(crate) part: Part,
    pub(crate) physical: Arc<str>,
    pub(crate) leader: i32,
    pub(crate) epoch: i32,
}

/// What one partition's leader said behind the barrier.
pub(crate) struct Quiet {
    pub(crate) lead: Lead,
    pub(crate) reading: Reading,
    pub(crate) producers: Vec<DescribedProducer>,
    /// A producer has a transaction open.
    pub(crate) transaction: bool,
}

/// What a leader tells of one partition's producers.
#[derive(Default)]
pub(crate) struct Producers {
    pub(crate) rows: Vec<DescribedProducer>,
    /// A producer has a transaction open.
    pub(crate) open: bool,
}

impl Control {
    /// The leaders of all partitions of routes on one side.
    ///
    /// # Errors
    /// Names the partition without a leader, or the topic that is missing.
    pub(crate) fn leads(&self, routes: &[Arc<TopicRoute>], side: ClusterSide) -> anyhow::Result<Vec<Lead>> {
        let topology = self.topology(side);
        let mut leads = Vec::new();
        for route in routes {
            let physical = route.physical(side);
            let Some(topic) = topology.topic(physical) else {
                anyhow::bail!("topic {physical} does not exist on the {side}");
            };
            for (index, info) in topic.partitions.iter().enumerate() {
                let partition = i32::try_from(index).unwrap_or(i32::MAX);
                anyhow::ensure!(
                    topology.brokers.contains_key(&info.leader),
                    "partition {physical}-{partition} has no leader on the {side}"
                );
                leads.push(Lead {
                    part: (Arc::clone(&route.name), partition),
                    physical: Arc::clone(physical),
                    leader: info.leader,
                    epoch: info.epoch,
                });
            }
        }
        Ok(leads)
    }

    /// The whole sequence of R11, leaders side by side.
    ///
    /// # Errors
    /// A leader does not answer, or answers with an error code.
    pub(crate) async fn read_quiet(&self, side: ClusterSide, leads: &[Lead]) -> anyhow::Result<Vec<Quiet>> {
        let reads = by_leader(leads).into_iter().map(|(leader, leads)| self.read_leader(side, leader, leads));
        let mut all = Vec::new();
        for part in join_all(reads).await {
            all.extend(part?);
        }
        Ok(all)
    }

    async fn read_leader(
        &self,
        side: ClusterSide,
        leader: i32,
        leads: Vec<Lead>,
    ) -> anyhow::Result<Vec<Quiet>> {
        let at = self.address(side, leader)?;
        let high_watermark = ends_request(&leads, LATEST, CONSUMER, false);
        let log_end = ends_request(&leads, LATEST, DEBUGGER, false);
        let last_stable = ends_request(&leads, LATEST, CONSUMER, true);
        let producers = producers_request(&leads);
        // Both at once: the broker carries them out one after the other.
        let asked = [
            list_offsets(&high_watermark),
            Call { api_key: key::DESCRIBE_PRODUCERS, version_max: 0, body: &producers },
        ];
        let answers = self.boundary_clients[0].calls(&at, &asked).await?;
        let [before, producers] = answers.as_slice() else {
            anyhow::bail!("not every question was answered");
        };
        let before = read_offsets(before, &leads)?;
        let mut producers = read_producers(producers, &leads)?;
        // Behind the barrier nothing depends on their order.
        let [high_watermark, log_end, last_stable] =
            self.ask_ends(&at, &leads, [&high_watermark, &log_end, &last_stable]).await?;
        let mut all = Vec::new();
        for lead in leads {
            let end = |of: &BTreeMap<Part, i64>| of.get(&lead.part).copied().unwrap_or(-1);
            let reading = Reading {
                leader,
                epoch: lead.epoch,
                before: end(&before),
                high_watermark: end(&high_watermark),
                log_end: end(&log_end),
                last_stable: end(&last_stable),
            };
            let told = producers.remove(&lead.part);
            let told = told.with_context(|| format!("DescribeProducers left out {}", lead.physical))??;
            all.push(Quiet { lead, reading, producers: told.rows, transaction: told.open });
        }
        Ok(all)
    }

    /// High watermark and log end of the idle side, leaders side by side.
    pub(crate) async fn read_ends(
        &self,
        side: ClusterSide,
        leads: &[Lead],
    ) -> anyhow::Result<BTreeMap<Part, (i64, i64)>> {
        let reads = by_leader(leads).into_iter().map(|(leader, leads)| async move {
            let at = self.address(side, leader)?;
            let high_watermark = ends_request(&leads, LATEST, CONSUMER, false);
            let log_end = ends_request(&leads, LATEST, DEBUGGER, false);
            self.ask_ends(&at, &leads, [&high_watermark, &log_end]).await
        });
        let mut all = BTreeMap::new();
        for read in join_all(reads).await {
            let [high_watermark, log_end] = read?;
            for (part, end) in log_end {
                let watermark = high_watermark.get(&part).copied().unwrap_or(-1);
                all.insert(part, (watermark, end));
            }
        }
        Ok(all)
    }

    /// Asks a leader for several ends side by side, each on a connection of its own.
    async fn ask_ends<const N: usize>(
        &self,
        at: &Address,
        leads: &[Lead],
        bodies: [&Struct; N],
    ) -> anyhow::Result<[BTreeMap<Part, i64>; N]> {
        let asked = self.boundary_clients.iter().zip(bodies).map(|(client, body)| async move {
            let answer = client.call(at, key::LIST_OFFSETS, LIST_OFFSETS_MAX, body).await?;
            read_offsets(&answer, leads)
        });
        let read = join_all(asked).await.into_iter().collect::<anyhow::Result<Vec<_>>>()?;
        read.try_into().map_err(|_| anyhow::anyhow!("not every question was answered"))
    }

    /// The first offset of each partition.
    pub(crate) async fn read_starts(
        &self,
        side: ClusterSide,
        leads: &[Lead],
    ) -> anyhow::Result<BTreeMap<Part, i64>> {
        let mut all = BTreeMap::new();
        for (leader, leads) in by_leader(leads) {
            let at = self.address(side, leader)?;
            let earliest = ends_request(&leads, EARLIEST, CONSUMER, false);
            let answer = self.client.call(&at, key::LIST_OFFSETS, LIST_OFFSETS_MAX, &earliest).await?;
            all.extend(read_offsets(&answer, &leads)?);
        }
        Ok(all)
    }

    pub(crate) fn address(&self, side: ClusterSide, broker: i32) -> anyhow::Result<Address> {
        let topology = self.topology(side);
        let address = topology.brokers.get(&broker);
        let address =
            address.ok_or_else(|| anyhow::anyhow!("broker {broker} of the {side} has no address"))?;
        Ok((address.host.clone(), address.port))
    }

    /// Any broker of a side.
    pub(crate) fn any_address(&self, side: ClusterSide) -> anyhow::Result<Address> {
        let topology = self.topology(side);
        let broker =
            topology.any_broker().ok_or_else(|| anyhow::anyhow!("no broker of the {side} is known"))?;
        self.address(side, broker)
    }

    /// Rows of a side's producers under the identities that their clients know (`crossover_core::producer::transaction`).
    pub(crate) fn as_clients_know(
        &self,
        side: ClusterSide,
        rows: Vec<DescribedProducer>,
    ) -> Vec<DescribedProducer> {
        let table = Arc::clone(&self.state().transactions);
        let known = rows.into_iter().flat_map(|row| {
            let epoch = i16::try_from(row.epoch).unwrap_or(-1);
            let clients: Vec<Identity> = table.clients_of(side, Identity { pid: row.pid, epoch }).collect();
            clients.into_iter().map(move |client| DescribedProducer {
                pid: client.pid,
                epoch: i32::from(client.epoch),
                ..row
            })
        });
        known.collect()
    }

    /// What a leader tells of the producers of each partition, or why it does not.
    ///
    /// # Errors
    /// It does not answer.
    pub(crate) async fn describe_producers(
        &self,
        at: &Address,
        leads: &[Lead],
    ) -> anyhow::Result<BTreeMap<Part, anyhow::Result<Producers>>> {
        let body = producers_request(leads);
        let answer = self.client.call(at, key::DESCRIBE_PRODUCERS, 0, &body).await?;
        read_producers(&answer, leads)
    }
}

fn list_offsets(body: &Struct) -> Call<'_> {
    Call { api_key: key::LIST_OFFSETS, version_max: LIST_OFFSETS_MAX, body }
}

fn ends_request(leads: &[Lead], timestamp: i64, replica: i32, committed: bool) -> Struct {
    let mut body = request(key::LIST_OFFSETS);
    body.set("ReplicaId", replica);
    body.set("IsolationLevel", i8::from(committed));
    body.set("TimeoutMs", 5_000);
    for (physical, leads) in by_topic(leads) {
        let mut topic = body.new_element("Topics");
        topic.set("Name", &physical);
        for lead in leads {
            let mut partition = topic.new_element("Partitions");
            partition.set("PartitionIndex", lead.part.1);
            partition.set("CurrentLeaderEpoch", lead.epoch);
            partition.set("Timestamp", timestamp);
            topic.push("Partitions", partition);
        }
        body.push("Topics", topic);
    }
    body
}

fn read_offsets(answer: &Struct, leads: &[Lead]) -> anyhow::Result<BTreeMap<Part, i64>> {
    let mut ends = BTreeMap::new();
    for_each_partition(answer, leads, |lead, partition| {
        let error = partition.i16("ErrorCode");
        let (topic, partition_index) = (&lead.physical, lead.part.1);
        anyhow::ensure!(error == 0, "{topic}-{partition_index}: ListOffsets answers error {error}");
        ends.insert(lead.part.clone(), partition.i64("Offset"));
        Ok(())
    })?;
    anyhow::ensure!(ends.len() == leads.len(), "ListOffsets left out a partition");
    Ok(ends)
}

fn producers_request(leads: &[Lead]) -> Struct {
    let mut body = request(key::DESCRIBE_PRODUCERS);
    for (physical, leads) in by_topic(leads) {
        let mut topic = body.new_element("Topics");
        topic.set("Name", &physical);
        let indexes = leads.iter().map(|l| Value::from(l.part.1)).collect();
        topic.set("PartitionIndexes", Value::Array(Some(indexes)));
        body.push("Topics", topic);
    }
    body
}

fn read_producers(
    answer: &Struct,
    leads: &[Lead],
) -> anyhow::Result<BTreeMap<Part, anyhow::Result<Producers>>> {
    let mut all = BTreeMap::new();
    for_each_partition(answer, leads, |lead, partition| {
        all.insert(lead.part.clone(), producers_of(lead, partition));
        Ok(())
    })?;
    Ok(all)
}

fn producers_of(lead: &Lead, partition: &Struct) -> anyhow::Result<Producers> {
    let error = partition.i16("ErrorCode");
    anyhow::ensure!(error == 0, "{}-{}: DescribeProducers answers error {error}", lead.physical, lead.part.1);
    let mut told = Producers::default();
    for row in partition.structs("ActiveProducers") {
        told.open |= row.i64("CurrentTxnStartOffset") >= 0;
        told.rows.push(DescribedProducer {
            pid: row.i64("ProducerId"),
            epoch: row.i32("ProducerEpoch"),
            last_sequence: row.i32("LastSequence"),
            last_timestamp_ms: row.i64("LastTimestamp"),
        });
    }
    Ok(told)
}

fn by_leader(leads: &[Lead]) -> BTreeMap<i32, Vec<Lead>> {
    let mut all: BTreeMap<i32, Vec<Lead>> = BTreeMap::new();
    for lead in leads {
        all.entry(lead.leader).or_default().push(lead.clone());
    }
    all
}

fn by_topic(leads: &[Lead]) -> BTreeMap<Arc<str>, Vec<&Lead>> {
    let mut all: BTreeMap<Arc<str>, Vec<&Lead>> = BTreeMap::new();
    for lead in leads {
        all.entry(Arc::clone(&lead.physical)).or_default().push(lead);
    }
    all
}

fn for_each_partition(
    answer: &Struct,
    leads: &[Lead],
    mut see: impl FnMut(&Lead, &Struct) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    for topic in answer.structs("Topics") {
        for partition in topic.structs("Partitions") {
            let index = partition.i32("PartitionIndex");
            let found = leads.iter().find(|l| l.part.1 == index && *l.physical == *topic.str("Name"));
            if let Some(lead) = found {
                see(lead, partition)?;
            }
        }
    }
    Ok(())
}

/// Runs futures side by side and gives their results in order.
pub(super) async fn join_all<T>(futures: impl IntoIterator<Item = impl Future<Output = T>>) -> Vec<T> {
    let mut pending: Vec<_> = futures.into_iter().map(Box::pin).collect();
    let mut done: Vec<Option<T>> = pending.iter().map(|_| None).collect();
    std::future::poll_fn(|cx| {
        let mut open = false;
        for (future, slot) in pending.iter_mut().zip(&mut done) {
            if slot.is_none() {
                match future.as_mut().poll(cx) {
                    std::task::Poll::Ready(value) => *slot = Some(value),
                    std::task::Poll::Pending => open = true,
                }
            }
        }
        if open { std::task::Poll::Pending } else { std::task::Poll::Ready(()) }
    })
    .await;
    done.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Behind a start: the gates of one leader are opened by one answer (control/seed.rs).
    #[test]
    fn r13_a_partition_that_cannot_be_described_keeps_no_other_one_closed() {
        let lead =
            |name: &str| Lead { part: (Arc::from(name), 0), physical: Arc::from(name), leader: 1, epoch: 0 };
        let leads = [lead("orders"), lead("secret")];
        let message = crossover_core::schema::response(key::DESCRIBE_PRODUCERS).unwrap();
        let mut answer = Struct::new(message.fields);
        for (name, error) in [("orders", 0_i16), ("secret", 29)] {
            let mut topic = answer.new_element("Topics");
            topic.set("Name", name);
            let mut partition = topic.new_element("Partitions");
            partition.set("PartitionIndex", 0);
            partition.set("ErrorCode", error);
            topic.push("Partitions", partition);
            answer.push("Topics", topic);
        }
        let told = read_producers(&answer, &leads).unwrap();
        assert!(told[&leads[0].part].is_ok(), "orders stays held too");
        assert!(told[&leads[1].part].is_err());
    }
}
