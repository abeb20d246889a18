//! One cluster as last seen: an immutable snapshot that requests carry with them.

use crate::ids::{ClusterSide, TopicId};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// The address of one broker in its own cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BrokerAddress {
    pub host: String,
    pub port: u16,
    pub rack: Option<String>,
}

/// One partition as its cluster's metadata shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionInfo {
    /// The leader's broker id; −1 when there is none.
    pub leader: i32,
    /// The native leader epoch; −1 when the cluster does not tell.
    pub epoch: i32,
    pub replicas: Vec<i32>,
    pub isr: Vec<i32>,
}

/// One topic as its cluster's metadata shows it. `partitions[i]` is partition `i`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicInfo {
    pub name: Arc<str>,
    /// Zero when the cluster has no topic ids (Kafka < 2.8).
    pub id: TopicId,
    pub internal: bool,
    pub partitions: Vec<PartitionInfo>,
}

/// The versions that every broker of a cluster speaks, per API key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ApiRanges(pub BTreeMap<i16, (i16, i16)>);

impl ApiRanges {
    /// The ranges both sides share; keys missing on either side are dropped.
    #[must_use]
    pub fn intersect(&self, other: &ApiRanges) -> ApiRanges {
        let shared = self.0.iter().filter_map(|(key, (min, max))| {
            let (other_min, other_max) = other.0.get(key)?;
            let range = ((*min).max(*other_min), (*max).min(*other_max));
            (range.0 <= range.1).then_some((*key, range))
        });
        ApiRanges(shared.collect())
    }

    #[must_use]
    pub fn range(&self, key: i16) -> Option<(i16, i16)> {
        self.0.get(&key).copied()
    }

    #[must_use]
    pub fn contains(&self, key: i16, version: i16) -> bool {
        self.range(key).is_some_and(|(min, max)| (min..=max).contains(&version))
    }
}

/// One cluster as last seen.
#[derive(Clone, Debug)]
pub struct Topology {
    pub side: ClusterSide,
    pub cluster_id: String,
    pub controller: Option<i32>,
    /// Every broker the cluster lists, alive by its own account.
    pub brokers: BTreeMap<i32, BrokerAddress>,
    /// Where brokers were that it does not list any more. One that has just started listens before it is listed, and tells
    /// its clients itself that it does not lead.
    pub former: BTreeMap<i32, BrokerAddress>,
    pub topics: HashMap<Arc<str>, Arc<TopicInfo>>,
    pub topic_names: HashMap<TopicId, Arc<str>>,
    /// The intersection over all brokers.
    pub api_ranges: ApiRanges,
    /// Finalized features: name → (min level, max level). From ApiVersions v3+.
    pub features: BTreeMap<String, (i16, i16)>,
    /// False while no broker of the cluster can be reached; the rest is then the last known state.
    pub reachable: bool,
}

impl Topology {
    /// A cluster that has never been seen.
    #[must_use]
    pub fn unknown(side: ClusterSide) -> Topology {
        Topology {
            side,
            cluster_id: String::new(),
            controller: None,
            brokers: BTreeMap::new(),
            former: BTreeMap::new(),
            topics: HashMap::new(),
            topic_names: HashMap::new(),
            api_ranges: ApiRanges::default(),
            features: BTreeMap::new(),
            reachable: false,
        }
    }

    /// Where a broker is, or was.
    #[must_use]
    pub fn address(&self, broker: i32) -> Option<&BrokerAddress> {
        self.brokers.get(&broker).or_else(|| self.former.get(&broker))
    }

    /// Keeps of an earlier look the addresses of brokers that are not listed now.
    pub fn keep_addresses(&mut self, known: &Topology) {
        let before = known.former.iter().chain(&known.brokers);
        self.former = before.map(|(id, address)| (*id, address.clone())).collect();
        self.former.retain(|id, _| !self.brokers.contains_key(id));
    }

    /// Keeps of an earlier look what the broker that was asked now does not know yet: the leaders of a later epoch, and
    /// partitions that were added (KIP-320, `Metadata.updateLatestMetadata`). Only where both are of the same topic; one that
    /// was created again begins anew. Before Kafka 2.8 topics have no ids to tell.
    pub fn keep_newer(&mut self, known: &Topology) {
        for (name, topic) in &mut self.topics {
            let Some(known) = known.topics.get(name).filter(|k| k.id == topic.id && !k.id.is_zero()) else {
                continue;
            };
            let is_behind = known.partitions.len() > topic.partitions.len()
                || topic.partitions.iter().zip(&known.partitions).any(|(now, was)| was.epoch > now.epoch);
            if is_behind {
                let topic = Arc::make_mut(topic);
                for (now, was) in topic.partitions.iter_mut().zip(&known.partitions) {
                    if was.epoch > now.epoch {
                        now.clone_from(was);
                    }
                }
                topic.partitions.extend(known.partitions.iter().skip(topic.partitions.len()).cloned());
            }
        }
    }

    #[must_use]
    pub fn topic(&self, name: &str) -> Option<&Arc<TopicInfo>> {
        self.topics.get(name)
    }

    #[must_use]
    pub fn topic_by_id(&self, id: TopicId) -> Option<&Arc<TopicInfo>> {
        self.topics.get(self.topic_names.get(&id)?)
    }

    #[must_use]
    pub fn partition(&self, topic: &str, partition: i32) -> Option<&PartitionInfo> {
        self.topics.get(topic)?.partitions.get(usize::try_from(partition).ok()?)
    }

    /// The leader of a partition, if it has one that the cluster lists as a broker.
    #[must_use]
    pub fn leader(&self, topic: &str, partition: i32) -> Option<i32> {
        let leader = self.partition(topic, partition)?.leader;
        self.brokers.contains_key(&leader).then_some(leader)
    }

    /// Any broker, preferring the controller: where requests go that every broker can answer.
    #[must_use]
    pub fn any_broker(&self) -> Option<i32> {
        self.controller
            .filter(|c| self.brokers.contains_key(c))
            .or_else(|| self.brokers.keys().next().copied())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster(id: u8, epochs: &[i32]) -> Topology {
        let mut topology = Topology::unknown(ClusterSide::Source);
        let info =
            |epoch: &i32| PartitionInfo { leader: *epoch, epoch: *epoch, replicas: vec![], isr: vec![] };
        let (name, id): (Arc<str>, _) = (Arc::from("t"), TopicId([id; 16]));
        let partitions = epochs.iter().map(info).collect();
        let topic = TopicInfo { name: Arc::clone(&name), id, internal: false, partitions };
        topology.topics.insert(name, Arc::new(topic));
        topology
    }

    fn leaders(mut now: Topology, was: &Topology) -> Vec<i32> {
        now.keep_newer(was);
        now.topics["t"].partitions.iter().map(|partition| partition.leader).collect()
    }

    #[test]
    fn a_broker_that_is_behind_takes_nothing_back() {
        assert_eq!(leaders(cluster(1, &[5, 7]), &cluster(1, &[6, 6])), [6, 7]);
        assert_eq!(leaders(cluster(1, &[5]), &cluster(1, &[4, 9])), [5, 9], "a partition was added");
        assert_eq!(leaders(cluster(1, &[5, 0]), &cluster(1, &[5])), [5, 0]);
    }

    #[test]
    fn a_topic_that_was_created_again_begins_anew() {
        assert_eq!(leaders(cluster(2, &[0]), &cluster(1, &[6, 6])), [0]);
        assert_eq!(leaders(cluster(0, &[0]), &cluster(0, &[6])), [0], "nobody can tell");
    }
}
