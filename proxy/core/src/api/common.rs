//! What several APIs need: names and ids between clients and clusters, leaders, hints and their addresses.

use crate::ids::{ClusterSide, NativeOffset, TopicId, VirtualNode, to_virtual_node};
use crate::route::TopicRoute;
use crate::schema::Struct;
use crate::session::{Class, Cx, Seen, UpstreamKey};
use crate::timeline::Timeline;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

/// What a coordinator is asked for (`FindCoordinatorRequest.CoordinatorType`); share groups are not offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(i8)]
pub enum CoordinatorType {
    Group = 0,
    Transaction = 1,
}

impl CoordinatorType {
    #[must_use]
    pub fn of(number: i8) -> Option<CoordinatorType> {
        [CoordinatorType::Group, CoordinatorType::Transaction].into_iter().find(|kind| *kind as i8 == number)
    }
}

/// Where a batch is sent now.
pub struct ProduceTarget {
    pub upstream: UpstreamKey,
    pub era: u32,
}

/// The route of the topic a request's struct names: by the virtual id in `TopicId` where `by_id`, else by the
/// virtual name in `name_field`. `None` for a topic the proxy does not know (yet).
#[must_use]
pub fn route_of(cx: &Cx<'_>, topic: &Struct, name_field: &str, by_id: bool) -> Option<Arc<TopicRoute>> {
    let routes = &cx.snapshot.routes;
    let found = if by_id {
        routes.topic_by_id(TopicId(topic.uuid("TopicId")))
    } else {
        routes.topic(topic.str(name_field))
    };
    found.cloned()
}

/// Puts a topic's name and id into the numbering of one cluster.
pub fn to_physical(
    topic: &mut Struct,
    name_field: &str,
    id_field: &str,
    route: &TopicRoute,
    side: ClusterSide,
) {
    topic.set(name_field, route.physical(side));
    topic.set(id_field, route.native_id(side));
}

/// Puts a topic's name and id into what clients see.
pub fn to_virtual(topic: &mut Struct, name_field: &str, id_field: &str, route: &TopicRoute) {
    topic.set(name_field, &route.name);
    topic.set(id_field, route.virtual_id);
}

/// The elements of an answer's array by a text in them: who asks for many is told of many.
pub fn by_text<'a>(answer: Option<&'a Struct>, array: &str, text: &str) -> HashMap<&'a str, &'a Struct> {
    let elements = answer.into_iter().flat_map(|answer| answer.structs(array));
    elements.map(|element| (element.str(text), element)).collect()
}

/// Puts the names of a response's `Topics` into what clients see.
pub fn names_to_virtual(cx: &Cx<'_>, response: &mut Struct, side: ClusterSide) {
    for topic in response.structs_mut("Topics") {
        let name = cx.snapshot.routes.virtual_name(side, topic.str("Name")).to_owned();
        topic.set("Name", name);
    }
}

/// Where produce of a partition goes now, see [`owner_upstream`]. `None` while no leader is known.
///
/// What must go `to_leader` waits for one, at whatever node its client is: with acks=0 a broker that does not lead can only
/// close the connection, and franz-go goes on writing to it until its metadata expires; and what is repeated without the
/// client's knowledge would be refused by its own broker for as long as the client does not look for the leader.
#[must_use]
pub fn produce_target(cx: &Cx<'_>, topic: &str, partition: i32, to_leader: bool) -> Option<ProduceTarget> {
    let route = cx.snapshot.routes.topic(topic)?;
    let era = route.timeline(partition)?.current().index;
    let upstream = match to_leader {
        true => cx.upstream(route.owner, cx.snapshot.leader(route, partition, route.owner)?, Class::Produce),
        false => owner_upstream(cx, route, partition, Class::Produce)?,
    };
    Some(ProduceTarget { upstream, era })
}

/// Whether the owner has the topic, but not this partition of it, as far as its topology is known.
pub fn lacks_partition(cx: &Cx<'_>, topic: &str, partition: i32) -> bool {
    let Some(route) = cx.snapshot.routes.topic(topic) else { return false };
    let (topology, physical) = (cx.snapshot.topology(route.owner), route.physical(route.owner));
    topology.topic(physical).is_some() && topology.partition(physical, partition).is_none()
}

/// The connection to a partition's owner: the client's own where its broker is of that side, which then judges its
/// leadership itself.
///
/// A topic that was moved is served by its leader at any node: the client's metadata may be from before the owner's
/// brokers changed their leaders, of which it could not learn while they were not the owner's.
#[must_use]
pub fn owner_upstream(cx: &Cx<'_>, route: &TopicRoute, partition: i32, class: Class) -> Option<UpstreamKey> {
    let node = cx.core.node;
    let leader = cx.snapshot.leader(route, partition, route.owner);
    if node.side == route.owner && (!route.is_moved() || leader.is_none()) {
        return Some(cx.upstream(node.side, node.broker, class));
    }
    Some(cx.upstream(route.owner, leader?, class))
}

/// A native log start seen in an answer of `era`'s side, as clients see it; −1 where an older era's side has not been
/// heard of (clients take −1 as "not told").
pub fn log_start(cx: &Cx<'_>, route: &TopicRoute, partition: i32, side: ClusterSide, native: i64) -> i64 {
    if native < 0 {
        return native;
    }
    let Some(timeline) = route.timeline(partition) else { return -1 };
    cx.shared.log_starts.note(&route.name, partition, side, NativeOffset(native));
    virtual_log_start(cx, route, partition, timeline)
}

/// The virtual log start of a partition as far as it is known; −1 where it is not.
#[must_use]
pub fn virtual_log_start(cx: &Cx<'_>, route: &TopicRoute, partition: i32, timeline: &Timeline) -> i64 {
    let starts = cx.shared.log_starts.get(&route.name, partition);
    timeline.log_start_to_virtual(starts).map_or(-1, |v| v.0)
}

/// A broker's `CurrentLeader` hint in virtual terms. A hint of an era that is over, or one that cannot be shown, is
/// taken out.
pub fn translate_current_leader(
    cx: &Cx<'_>,
    partition: &mut Struct,
    side: ClusterSide,
    route: &TopicRoute,
    index: i32,
    era: u32,
) {
    let timeline = route.timeline(index);
    let Some(leader) = partition.opt_struct_mut("CurrentLeader") else { return };
    let id = leader.i32("LeaderId");
    let native = leader.i32("LeaderEpoch");
    let epoch =
        timeline.filter(|t| t.current().index == era).and_then(|t| t.epoch_to_virtual(era, native).ok());
    match epoch {
        Some(epoch) if id >= 0 => {
            leader.set("LeaderId", to_virtual_node(side, id));
            leader.set("LeaderEpoch", epoch);
            cx.shared.seen.raise(&route.name, index, Seen { epoch, ..Seen::default() });
        }
        _ => partition.reset("CurrentLeader"),
    }
}

/// The addresses of all leaders that hints of a Produce or Fetch response name (KIP-951).
pub fn add_endpoints(cx: &Cx<'_>, response: &mut Struct, partitions_field: &str) {
    let mut nodes = BTreeSet::new();
    for topic in response.structs("Responses") {
        for partition in topic.structs(partitions_field) {
            let leader = partition.opt_struct("CurrentLeader").map_or(-1, |l| l.i32("LeaderId"));
            nodes.extend(VirtualNode::from_virtual(leader));
        }
    }
    response.reset("NodeEndpoints");
    for node in nodes {
        let Some((host, port)) = address(cx, node) else { continue };
        let mut endpoint = response.new_element("NodeEndpoints");
        endpoint.set("NodeId", node.to_virtual());
        endpoint.set("Host", host);
        endpoint.set("Port", i32::from(port));
        response.push("NodeEndpoints", endpoint);
    }
}

/// Where clients reach a virtual node.
#[must_use]
pub fn address<'a>(cx: &'a Cx<'_>, node: VirtualNode) -> Option<(&'a str, u16)> {
    cx.snapshot.nodes.port(node).map(|port| (cx.snapshot.nodes.host.as_str(), port))
}

/// What a side calls a topic, known or not.
#[must_use]
pub fn physical_name(cx: &Cx<'_>, name: &str, side: ClusterSide) -> String {
    let routes = &cx.snapshot.routes;
    if let Some(route) = routes.topic(name) {
        return route.physical(side).to_string();
    }
    let rule = routes.rules.find(name).and_then(|r| r.physical[side.index()].as_deref());
    rule.unwrap_or(name).to_owned()
}
