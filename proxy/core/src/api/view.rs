//! The virtual cluster: the brokers of both sides at the proxy's addresses, and topics as their owner shows them.

use super::common;
use crate::error_code as code;
use crate::ids::{ClusterSide, TopicId, VirtualNode, to_virtual_node};
use crate::node::TopicInfo;
use crate::route::TopicRoute;
use crate::schema::{Struct, Value};
use crate::session::{Cx, Seen, UpstreamKey};

/// How long the answer of a side is waited for before its last known topology stands in (RULES R30), milliseconds.
pub(super) const PATIENCE_MS: i64 = 3_000;

/// A broker as clients see it.
pub(super) struct Broker<'a> {
    pub node: VirtualNode,
    pub host: &'a str,
    pub port: u16,
    pub rack: Option<&'a str>,
}

/// Who is asked about the topics of `side`. `None` while it is known to be down: then its last known topology stands in
/// without a wait (RULES R30).
pub(super) fn upstream(cx: &Cx<'_>, side: ClusterSide) -> Option<UpstreamKey> {
    cx.any_upstream(side).filter(|_| cx.snapshot.topology(side).reachable)
}

/// The brokers of both sides. One without a port yet is left out.
pub(super) fn brokers<'a>(cx: &'a Cx<'_>) -> impl Iterator<Item = Broker<'a>> {
    ClusterSide::BOTH.into_iter().flat_map(move |side| {
        cx.snapshot.topology(side).brokers.iter().filter_map(move |(id, broker)| {
            let node = VirtualNode::new(side, *id);
            let (host, port) = common::address(cx, node)?;
            Some(Broker { node, host, port, rack: broker.rack.as_deref() })
        })
    })
}

/// Brokers, cluster id and controller of the virtual cluster; `id_field` is what the API calls a broker's id.
pub(super) fn describe(cx: &Cx<'_>, response: &mut Struct, id_field: &str) {
    for broker in brokers(cx) {
        let mut out = response.new_element("Brokers");
        out.set(id_field, broker.node.to_virtual());
        out.set("Host", broker.host);
        out.set("Port", i32::from(broker.port));
        out.set("Rack", broker.rack);
        response.push("Brokers", out);
    }
    response.set("ClusterId", &cx.snapshot.cluster_id);
    response.set("ControllerId", controller(cx));
}

/// The virtual id of a live broker to send controller requests to, of the default side if that is reachable; −1
/// where none is known.
pub(super) fn controller(cx: &Cx<'_>) -> i32 {
    let default = cx.snapshot.routes.rules.default_side;
    let sides = [default, default.other()];
    let reachable = sides.into_iter().filter(|s| cx.snapshot.topology(*s).reachable);
    reachable.chain(sides).find_map(|side| controller_of(cx, side)).unwrap_or(-1)
}

fn controller_of(cx: &Cx<'_>, side: ClusterSide) -> Option<i32> {
    let topology = cx.snapshot.topology(side);
    let with_port = |id: &i32| cx.snapshot.nodes.port(VirtualNode::new(side, *id)).is_some();
    let preferred = topology.any_broker().filter(with_port);
    preferred.or_else(|| topology.brokers.keys().copied().find(with_port)).map(|id| to_virtual_node(side, id))
}

/// Puts the fields of a topic that Metadata and DescribeTopicPartitions share into virtual terms. `topic` comes from
/// `side`, the topic's owner.
pub(super) fn translate_topic(cx: &mut Cx<'_>, topic: &mut Struct, name: &str, side: ClusterSide) {
    let route = cx.snapshot.routes.topic(name).cloned();
    topic.set("Name", name);
    let native = TopicId(topic.uuid("TopicId"));
    match &route {
        Some(route) if route.frozen.is_some() => {
            let id = route.virtual_id;
            topic.set("TopicId", id);
            topic.set("ErrorCode", code::LEADER_NOT_AVAILABLE);
            topic.reset("Partitions");
            return;
        }
        // Known under this id, or flipped: then the virtual id stays whatever the owner says.
        Some(route) if route.is_moved() || native.is_zero() || route.native_id(side) == native => {
            topic.set("TopicId", route.virtual_id);
        }
        // New, or deleted and created again: the owner's own id is what the next route table will show.
        _ if topic.i16("ErrorCode") == code::NONE => cx.refresh(side),
        _ => {}
    }
    if let Some(partitions) = topic.array_mut("Partitions") {
        partitions.retain(|p| {
            let index = p.as_struct().map_or(-1, |p| p.i32("PartitionIndex"));
            route.as_ref().is_none_or(|r| r.timeline(index).is_some())
        });
    }
    for partition in topic.structs_mut("Partitions") {
        translate_partition(cx, partition, route.as_deref(), side);
    }
}

fn translate_partition(cx: &Cx<'_>, partition: &mut Struct, route: Option<&TopicRoute>, side: ClusterSide) {
    for field in ["ReplicaNodes", "IsrNodes", "OfflineReplicas", "EligibleLeaderReplicas", "LastKnownElr"] {
        if partition.has(field) {
            translate_nodes(partition, field, side);
        }
    }
    let leader = partition.i32("LeaderId");
    let index = partition.i32("PartitionIndex");
    if leader >= 0 && common::address(cx, VirtualNode::new(side, leader)).is_none() {
        return without_leader(partition);
    }
    partition.set("LeaderId", to_virtual_node(side, leader));
    let Some((route, timeline)) = route.and_then(|r| Some((r, r.timeline(index)?))) else { return };
    match timeline.epoch_to_virtual(timeline.current().index, partition.i32("LeaderEpoch")) {
        Ok(epoch) => {
            partition.set("LeaderEpoch", epoch);
            if leader >= 0 && epoch >= 0 {
                cx.shared.seen.raise(&route.name, index, Seen { epoch, ..Seen::default() });
            }
        }
        // The broker's epoch fell back: no epoch that could be shown would be true (RULES R22).
        Err(_) => without_leader(partition),
    }
}

fn without_leader(partition: &mut Struct) {
    partition.set("ErrorCode", code::LEADER_NOT_AVAILABLE);
    partition.set("LeaderId", -1);
    partition.set("LeaderEpoch", -1);
}

/// Native broker ids of an array as virtual ones.
pub(super) fn translate_nodes(of: &mut Struct, field: &str, side: ClusterSide) {
    for value in of.array_mut(field).into_iter().flatten() {
        if let Some(id) = value.as_int().and_then(|id| i32::try_from(id).ok()) {
            *value = Value::from(to_virtual_node(side, id));
        }
    }
}

/// A topic as the last known topology shows it, in native terms: `element` is an empty topic of the response.
pub(super) fn topic_from_topology(mut element: Struct, info: &TopicInfo) -> Struct {
    element.set("Name", &info.name);
    element.set("TopicId", info.id);
    element.set("IsInternal", info.internal);
    for (index, partition) in (0i32..).zip(&info.partitions) {
        let mut out = element.new_element("Partitions");
        out.set("PartitionIndex", index);
        out.set("LeaderId", partition.leader);
        out.set("LeaderEpoch", partition.epoch);
        out.set("ReplicaNodes", partition.replicas.clone());
        out.set("IsrNodes", partition.isr.clone());
        if partition.leader < 0 {
            out.set("ErrorCode", code::LEADER_NOT_AVAILABLE);
        }
        element.push("Partitions", out);
    }
    element
}
