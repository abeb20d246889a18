//! Follows the metadata of one cluster.

use super::Control;
use super::client::{Address, Client, ClientError, request};
use crossover_core::api::key;
use crossover_core::ids::{ClusterSide, TopicId};
use crossover_core::node::{ApiRanges, BrokerAddress, PartitionInfo, TopicInfo, Topology};
use crossover_core::route::STATE_TOPIC;
use crossover_core::schema::{Struct, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

/// Between two looks that somebody asked for.
const COALESCE: Duration = Duration::from_millis(20);

/// The alarm, and how long nobody may have answered.
const UNREACHABLE: &str = "cluster-unreachable";
const UNREACHABLE_FOR: Duration = Duration::from_secs(10);
/// How long brokers may be away, or partitions without a leader, before it is told.
const AWAY_FOR: Duration = Duration::from_secs(3);
/// Partitions that an alarm names.
const NAMED_MAX: usize = 5;

/// Follows a cluster for ever.
pub(crate) async fn follow(control: Arc<Control>, side: ClusterSide) {
    let every = control.runtime.config.timeouts.metadata_refresh;
    let asked = &control.refresh[side.index()];
    let mut was_reachable = true;
    let mut last_seen: Option<Instant> = None;
    let mut away_since = None;
    loop {
        let reachable = refresh(&control, side).await;
        if reachable {
            last_seen = Some(Instant::now());
            control.lift(UNREACHABLE, side.as_str());
            tell_of_brokers(&control, side, &mut away_since);
        } else if last_seen.is_none_or(|at| at.elapsed() >= UNREACHABLE_FOR) {
            let why = control.problem_of(side).unwrap_or_default();
            let cause = format!("the {side} cannot be reached: {why}");
            let remedy = "bring it up, or correct its bootstrap addresses; what it owns waits until then";
            control.alarm(UNREACHABLE, side.as_str(), cause, remedy);
        }
        if reachable != was_reachable {
            match reachable {
                true => info!(%side, "the cluster is reachable again"),
                false => warn!(%side, "the cluster is not reachable"),
            }
            was_reachable = reachable;
        }
        let pause = if reachable { every } else { every.min(Duration::from_secs(1)) };
        let _ = timeout(pause, asked.notified()).await;
        sleep(COALESCE).await;
    }
}

/// Raises an alarm while brokers that hold replicas are not in their cluster, or partitions have no leader; not for a topic
/// that is just being created.
fn tell_of_brokers(control: &Control, side: ClusterSide, since: &mut Option<Instant>) {
    match away(&control.topology(side)) {
        None => {
            *since = None;
            control.lift("broker-away", side.as_str());
        }
        // The next look tells.
        Some(_) if since.get_or_insert_with(Instant::now).elapsed() < AWAY_FOR => {}
        Some(cause) => {
            let remedy = "bring it up, or move its replicas elsewhere with kafka-reassign-partitions; flips of these topics are refused until then";
            control.alarm("broker-away", side.as_str(), cause, remedy);
        }
    }
}

/// What the metadata of a cluster says of brokers that hold replicas and are not there, and of partitions without a leader.
fn away(topology: &Topology) -> Option<String> {
    let (mut brokers, mut affected, mut leaderless) = (BTreeSet::new(), 0, Vec::new());
    for topic in topology.topics.values() {
        for (index, partition) in topic.partitions.iter().enumerate() {
            let gone = partition.replicas.iter().filter(|id| !topology.brokers.contains_key(id));
            let gone: Vec<i32> = gone.copied().collect();
            affected += usize::from(!gone.is_empty());
            brokers.extend(gone);
            if !topology.brokers.contains_key(&partition.leader) {
                leaderless.push(format!("{}-{index}", topic.name));
            }
        }
    }
    if brokers.is_empty() && leaderless.is_empty() {
        return None;
    }
    leaderless.sort();
    let (count, more) = (leaderless.len(), if leaderless.len() > NAMED_MAX { ", …" } else { "" });
    leaderless.truncate(NAMED_MAX);
    let without = match count {
        0 => String::new(),
        count => format!("; {count} have no leader: {}{more}", leaderless.join(", ")),
    };
    let ids = brokers.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    Some(format!(
        "brokers of the {} that hold replicas are away: {ids}; {affected} partitions have replicas there{without}",
        topology.side
    ))
}

/// One look. False when no address of the cluster answers; what was known stays, marked unreachable.
pub(crate) async fn refresh(control: &Control, side: ClusterSide) -> bool {
    let known = control.topology(side);
    let result = read(&control.client, side, &addresses(control, side, &known)).await;
    match result {
        Ok(topology) => {
            let foreign = control.set_topology(topology).await.err();
            let fine = foreign.is_none();
            control.problem(side, foreign.map(|problem| problem.to_string()));
            fine
        }
        Err(error) => {
            control.problem(side, Some(error.to_string()));
            if known.reachable {
                // What was known has been accepted before.
                let _ = control.set_topology(Topology { reachable: false, ..(*known).clone() }).await;
            }
            false
        }
    }
}

/// One look with nothing but the configuration.
///
/// # Errors
/// No bootstrap address answers.
pub(crate) async fn look(
    client: &Client,
    config: &crossover_config::Config,
    side: ClusterSide,
) -> Result<Topology, ClientError> {
    let cluster = config.cluster(super::config_side(side));
    let addresses: Vec<Address> = cluster.bootstrap.iter().map(|a| (a.host.clone(), a.port)).collect();
    read(client, side, &addresses).await
}

/// The known brokers first, then every bootstrap address. Each time another broker is asked before the others: one that is cut
/// off from its controller goes on telling what was.
fn addresses(control: &Control, side: ClusterSide, known: &Topology) -> Vec<Address> {
    let count = known.brokers.len();
    let first = control.looks[side.index()].fetch_add(1, Ordering::Relaxed) % count.max(1);
    let brokers = known.brokers.values().cycle().skip(first).take(count).map(|b| (b.host.clone(), b.port));
    let bootstrap = &control.cluster_config(side).bootstrap;
    brokers.chain(bootstrap.iter().map(|a| (a.host.clone(), a.port))).collect()
}

async fn read(client: &Client, side: ClusterSide, addresses: &[Address]) -> Result<Topology, ClientError> {
    let mut last = None;
    for at in addresses {
        match read_from(client, side, at).await {
            Ok(topology) => return Ok(topology),
            Err(error) => last = Some(error),
        }
    }
    Err(last.unwrap_or_else(|| ClientError::Unreachable("none".to_owned(), 0, "no address".to_owned())))
}

async fn read_from(client: &Client, side: ClusterSide, at: &Address) -> Result<Topology, ClientError> {
    let mut body = request(key::METADATA);
    body.set("Topics", Value::Array(None));
    body.set("AllowAutoTopicCreation", false);
    let metadata = client.call(at, key::METADATA, i16::MAX, &body).await?;
    let mut topology = Topology::unknown(side);
    topology.reachable = true;
    metadata.str("ClusterId").clone_into(&mut topology.cluster_id);
    for broker in metadata.structs("Brokers") {
        let port = u16::try_from(broker.i32("Port")).unwrap_or(0);
        let address = BrokerAddress {
            host: broker.str("Host").to_owned(),
            port,
            rack: broker.opt_str("Rack").map(str::to_owned),
        };
        topology.brokers.insert(broker.i32("NodeId"), address);
    }
    topology.controller = Some(metadata.i32("ControllerId")).filter(|id| *id >= 0);
    for topic in
        metadata.structs("Topics").filter(|t| t.i16("ErrorCode") == 0 || !t.array("Partitions").is_empty())
    {
        let info = Arc::new(topic_info(topic));
        if !info.id.is_zero() {
            topology.topic_names.insert(info.id, Arc::clone(&info.name));
        }
        topology.topics.insert(Arc::clone(&info.name), info);
    }
    read_versions(client, at, &mut topology).await?;
    Ok(topology)
}

/// What every broker speaks, and the finalized features. A broker that is listed and does not answer is left out: it
/// will be asked again.
async fn read_versions(client: &Client, at: &Address, topology: &mut Topology) -> Result<(), ClientError> {
    let mut shared: Option<ApiRanges> = None;
    for broker in topology.brokers.values() {
        if let Ok(versions) = client.versions(&(broker.host.clone(), broker.port)).await {
            let ranges = ApiRanges(versions);
            shared = Some(shared.map_or_else(|| ranges.clone(), |s| s.intersect(&ranges)));
        }
    }
    topology.api_ranges = match shared {
        Some(shared) => shared,
        None => ApiRanges(client.versions(at).await?),
    };
    let newest = topology.api_ranges.range(key::API_VERSIONS).map_or(0, |r| r.1);
    if newest >= 3 {
        let mut body = request(key::API_VERSIONS);
        body.set("ClientSoftwareName", "crossover");
        body.set("ClientSoftwareVersion", env!("CARGO_PKG_VERSION"));
        let answer = client.call(at, key::API_VERSIONS, 3, &body).await?;
        topology.features = answer
            .structs("FinalizedFeatures")
            .map(|f| (f.str("Name").to_owned(), (f.i16("MinVersionLevel"), f.i16("MaxVersionLevel"))))
            .collect::<BTreeMap<_, _>>();
    }
    Ok(())
}

fn topic_info(topic: &Struct) -> TopicInfo {
    let mut partitions: BTreeMap<i32, PartitionInfo> = BTreeMap::new();
    for partition in topic.structs("Partitions") {
        let ids = |name| partition.ints(name).filter_map(|id| i32::try_from(id).ok()).collect();
        let info = PartitionInfo {
            leader: partition.i32("LeaderId"),
            epoch: partition.i32("LeaderEpoch"),
            replicas: ids("ReplicaNodes"),
            isr: ids("IsrNodes"),
        };
        partitions.insert(partition.i32("PartitionIndex"), info);
    }
    TopicInfo {
        name: Arc::from(topic.str("Name")),
        id: TopicId(topic.uuid("TopicId")),
        internal: topic.bool("IsInternal") || topic.str("Name") == STATE_TOPIC,
        partitions: partitions.into_values().collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing;
    use super::*;

    #[test]
    fn brokers_that_hold_replicas_and_are_not_there_are_told_of() {
        let control = testing::control([Some(&["orders"]), None], &[]);
        let mut topology = (*control.topology(ClusterSide::Source)).clone();
        let address = BrokerAddress { host: "h".to_owned(), port: 1, rack: None };
        topology.brokers = [(1, address.clone()), (2, address)].into();
        let partition = |leader, replicas: &[i32]| PartitionInfo {
            leader,
            epoch: 0,
            replicas: replicas.to_vec(),
            isr: replicas.to_vec(),
        };
        let topic = Arc::make_mut(topology.topics.get_mut("orders").unwrap());
        topic.partitions = vec![partition(1, &[1, 2]), partition(2, &[2])];
        assert_eq!(away(&topology), None);
        topology.brokers.remove(&2);
        let told = away(&topology).unwrap_or_default();
        assert!(told.contains("of the source that hold replicas are away: 2; 2 partitions"), "{told}");
        assert!(told.ends_with("1 have no leader: orders-1"), "{told}");
    }

    /// Broker 1, the first that is asked, is cut off from the controller: it goes on telling what was so before the election.
    #[tokio::test]
    async fn a_broker_that_is_behind_does_not_bring_leaders_of_before_back() {
        const KEYS: &[i16] = &[key::METADATA];
        let control = testing::control([Some(&["orders"]), Some(&["orders"])], &["orders"]);
        let behind = testing::broker(KEYS, |_, _, answer| {
            answer.set("ClusterId", "target");
            for id in [1, 2] {
                let mut broker = answer.new_element("Brokers");
                broker.set("NodeId", id);
                broker.set("Host", "127.0.0.1");
                broker.set("Port", 1);
                answer.push("Brokers", broker);
            }
            let mut topic = answer.new_element("Topics");
            topic.set("Name", "orders");
            topic.set("TopicId", Value::Uuid([9; 16]));
            let mut partition = topic.new_element("Partitions");
            partition.set("LeaderId", 1);
            partition.set("LeaderEpoch", 5);
            partition.set("ReplicaNodes", vec![1, 2]);
            partition.set("IsrNodes", vec![1, 2]);
            topic.push("Partitions", partition);
            answer.push("Topics", topic);
        })
        .await;
        testing::with_brokers(&control, ClusterSide::Target, &[(1, behind), (2, 1)]);
        {
            let mut state = control.state();
            let topology = Arc::make_mut(&mut state.topologies[ClusterSide::Target.index()]);
            let topic = Arc::make_mut(topology.topics.get_mut("orders").unwrap());
            topic.id = TopicId([9; 16]);
            let info = &mut topic.partitions[0];
            // What broker 2 has told.
            (info.leader, info.epoch) = (2, 6);
        }
        control.publish();
        assert!(refresh(&control, ClusterSide::Target).await);
        let topology = control.topology(ClusterSide::Target);
        let now = topology.partition("orders", 0).map(|p| (p.leader, p.epoch));
        assert_eq!(now, Some((2, 6)), "leader and epoch: back to who was deposed");
    }
}
