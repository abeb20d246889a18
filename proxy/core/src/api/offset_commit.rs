//! OffsetCommit (key 8): virtual positions to the group's home, in that cluster's own numbers (RULES R27, R28).

use super::group::{GroupApi, IGNORED};
use super::{common, key};
use crate::error_code as code;
use crate::ids::{ClusterSide, VirtualOffset};
use crate::route::{RouteTable, TopicRoute};
use crate::schema::{self, Struct, Value};
use crate::session::{CommitMirror, Cx, Effect, Errand, ErrandDone, Step};
use crate::timeline;
use std::collections::HashMap;
use std::sync::Arc;

/// The brokers' default `offset.metadata.max.bytes`.
pub(super) const METADATA_MAX: usize = 4096;

/// Between two looks whether commits may be sent, milliseconds.
const LOOK_AGAIN_MS: i64 = 10;

pub(super) struct OffsetCommit {
    original: Struct,
    plan: Plan,
    /// The home's answer, while what it has accepted is copied to the other side.
    response: Option<Struct>,
    /// The commits of the group are read at the other side.
    is_apart: bool,
    /// When it came, and the group's home then.
    arrived: Option<(i64, ClusterSide)>,
    /// Sent, and not answered yet: who copies the group's commits waits for it.
    under_way: Option<Arc<()>>,
}

/// What the answer is put together from.
#[derive(Default)]
struct Plan {
    routes: Vec<Arc<TopicRoute>>,
    /// By topic and partition, with whether it is tagged. One that comes twice is what it is last.
    commits: HashMap<(Arc<str>, i32), (CommitMirror, bool)>,
    /// Response topics that no broker is asked about.
    refused: Vec<Value>,
}

impl OffsetCommit {
    pub(super) fn new(request: Struct) -> OffsetCommit {
        OffsetCommit {
            original: request,
            plan: Plan::default(),
            response: None,
            is_apart: false,
            arrived: None,
            under_way: None,
        }
    }

    /// Whether it comes from outside of the group's membership: a tool, or a consumer that assigns itself.
    fn is_simple(&self) -> bool {
        self.original.i32("GenerationIdOrMemberEpoch") == -1
    }

    /// A member of a classic group that the proxy takes to its new home, or that does not know yet that it will be. There
    /// it would be told that it is no member, and lose its partitions for that.
    fn is_between_homes(&self, cx: &Cx<'_>, home: ClusterSide) -> bool {
        let [group, member] = ["GroupId", "MemberId"].map(|field| self.original.str(field));
        let generation = self.original.i32("GenerationIdOrMemberEpoch");
        let has_moved = self.arrived.is_some_and(|(_, before)| before != home);
        cx.shared.groups.is_spliced(group, member, generation)
            || has_moved && cx.shared.groups.member(group, member).is_some()
    }

    fn refuse_all(&self, cx: &Cx<'_>, error: i16) -> Option<Step> {
        let mut response = cx.empty_response()?;
        let topics = self.original.structs("Topics");
        topics.for_each(|topic| response.push("Topics", refuse(topic, error)));
        Some(Step::Reply(response))
    }
}

impl GroupApi for OffsetCommit {
    fn group(&self) -> String {
        self.original.str("GroupId").to_owned()
    }

    fn local(&mut self, cx: &mut Cx<'_>, home: ClusterSide) -> Option<Step> {
        if self.is_between_homes(cx, home) {
            return self.refuse_all(cx, code::REBALANCE_IN_PROGRESS);
        }
        self.arrived.get_or_insert((cx.now_ms, home));
        let moving = cx.snapshot.groups.moving.contains_key(self.original.str("GroupId"));
        if moving && self.is_simple() {
            return self.refuse_all(cx, code::UNKNOWN_MEMBER_ID);
        }
        if cx.snapshot.taken_over {
            return self.refuse_all(cx, code::COORDINATOR_NOT_AVAILABLE);
        }
        let (routes, by_id) = (&cx.snapshot.routes, cx.header.api_version >= 10);
        let usable = |t| usable_route(routes, t, by_id).is_some();
        if self.original.array("Topics").is_empty() || self.original.structs("Topics").any(usable) {
            return None;
        }
        self.refuse_all(cx, unknown_topic(by_id))
    }

    /// While the group's commits are copied to another home none is sent: nobody would copy it. And clients commit without
    /// waiting for the answer before: one whose coordinator was not found, or was lost, is not sent behind a later one.
    fn instead(&mut self, cx: &mut Cx<'_>) -> Option<Step> {
        let group = self.original.str("GroupId").to_owned();
        self.under_way = cx.shared.groups.send_commit(&group);
        let until = self.arrived.map_or(0, |(at, _)| at) + cx.core.limits.hold_ms_max;
        if self.under_way.is_none() && cx.now_ms < until {
            cx.wake_at(cx.now_ms + LOOK_AGAIN_MS);
            return Some(Step::Pending);
        }
        let place = cx.place();
        let may_go = self.under_way.is_some() && cx.core.members.sends_commit(&group, place);
        if may_go { None } else { self.refuse_all(cx, code::COORDINATOR_NOT_AVAILABLE) }
    }

    fn request(&mut self, cx: &mut Cx<'_>, home: ClusterSide) -> Struct {
        let mut request = self.original.clone();
        self.plan = to_home(&cx.snapshot.routes, home, &mut request, cx.header.api_version >= 10);
        request
    }

    fn response(&mut self, cx: &mut Cx<'_>, home: ClusterSide, mut response: Struct) -> Step {
        let accepted = from_home(&self.plan, home, &mut response, cx.header.api_version >= 10);
        for (commit, tagged) in &accepted {
            let (topic, partition) = (&commit.topic, commit.partition);
            cx.shared.groups.note_commit(&commit.group, topic, partition, *tagged, cx.now_ms);
        }
        self.plan.refused.drain(..).for_each(|topic| response.push("Topics", topic));
        if accepted.is_empty() {
            return Step::Reply(response);
        }
        let accepted = accepted.into_iter().map(|(commit, _)| commit).collect();
        let group = self.original.str("GroupId");
        self.is_apart = cx.snapshot.group_home(group) != cx.snapshot.offset_home(group);
        if self.is_simple() || self.is_apart {
            // What a tool has set is set on both sides when the tool says so (RULES R28); and the other side is the one that
            // is read where commits are apart from their members.
            cx.run_errand(IGNORED, Errand::MirrorCommits(accepted));
            self.response = Some(response);
            return Step::Pending;
        }
        cx.emit(Effect::Mirror(accepted));
        Step::Reply(response)
    }

    /// The home has accepted them: what cannot be copied now is copied later, unless the copy is what is read.
    fn errand_done(&mut self, done: ErrandDone) -> Step {
        let Some(mut response) = self.response.take() else { return Step::Pending };
        if self.is_apart && done != Ok(true) {
            let partitions = response.structs_mut("Topics").flat_map(|topic| topic.structs_mut("Partitions"));
            let accepted = partitions.filter(|partition| partition.i16("ErrorCode") == code::NONE);
            accepted.for_each(|partition| partition.set("ErrorCode", code::COORDINATOR_NOT_AVAILABLE));
        }
        Step::Reply(response)
    }
}

/// Puts a request into the home's names, ids and positions; topics without a route are taken out.
fn to_home(routes: &RouteTable, home: ClusterSide, request: &mut Struct, by_id: bool) -> Plan {
    let group: Arc<str> = Arc::from(request.str("GroupId"));
    let mut plan = Plan::default();
    let Some(topics) = request.array_mut("Topics") else { return plan };
    topics.retain_mut(|value| {
        let Value::Struct(Some(topic)) = value else { return false };
        let Some(route) = usable_route(routes, topic, by_id).cloned() else {
            plan.refused.push(refuse(topic, unknown_topic(by_id)));
            return false;
        };
        for partition in topic.structs_mut("Partitions") {
            let index = partition.i32("PartitionIndex");
            let Some(log) = route.timeline(index) else { continue };
            let position = partition.i64("CommittedOffset");
            let metadata = partition.str("CommittedMetadata").to_owned();
            let stored = timeline::to_stored(log, home, VirtualOffset(position), &metadata, METADATA_MAX);
            partition.set("CommittedOffset", stored.native);
            partition.set("CommittedLeaderEpoch", -1);
            partition.set("CommittedMetadata", stored.metadata.as_str());
            let (group, topic) = (Arc::clone(&group), Arc::clone(&route.name));
            let commit = CommitMirror { group, topic, partition: index, position, metadata };
            plan.commits.insert((Arc::clone(&route.name), index), (commit, stored.tagged));
        }
        common::to_physical(topic, "Name", "TopicId", &route, home);
        plan.routes.push(route);
        true
    });
    plan
}

/// The route of a topic all of whose partitions can be committed.
fn usable_route<'a>(routes: &'a RouteTable, topic: &Struct, by_id: bool) -> Option<&'a Arc<TopicRoute>> {
    let found = if by_id {
        routes.topic_by_id(crate::ids::TopicId(topic.uuid("TopicId")))
    } else {
        routes.topic(topic.str("Name"))
    };
    let known =
        |r: &TopicRoute| topic.structs("Partitions").all(|p| r.timeline(p.i32("PartitionIndex")).is_some());
    found.filter(|r| r.frozen.is_none() && known(r))
}

fn unknown_topic(by_id: bool) -> i16 {
    if by_id { code::UNKNOWN_TOPIC_ID } else { code::UNKNOWN_TOPIC_OR_PARTITION }
}

/// Puts a response back into what clients see, and gives the commits that were accepted.
fn from_home(
    plan: &Plan,
    home: ClusterSide,
    response: &mut Struct,
    by_id: bool,
) -> Vec<(CommitMirror, bool)> {
    let mut accepted = Vec::new();
    let by_native: HashMap<[u8; 16], &Arc<TopicRoute>> =
        plan.routes.iter().map(|route| (route.native_id(home).0, route)).collect();
    let by_physical: HashMap<&str, &Arc<TopicRoute>> =
        plan.routes.iter().map(|route| (&**route.physical(home), route)).collect();
    for topic in response.structs_mut("Topics") {
        let found = match by_id {
            true => by_native.get(&topic.uuid("TopicId")),
            false => by_physical.get(topic.str("Name")),
        };
        let Some(route) = found else { continue };
        for partition in topic.structs("Partitions").filter(|p| p.i16("ErrorCode") == code::NONE) {
            let at = (Arc::clone(&route.name), partition.i32("PartitionIndex"));
            accepted.extend(plan.commits.get(&at).cloned());
        }
        common::to_virtual(topic, "Name", "TopicId", route);
    }
    accepted
}

fn refuse(topic: &Struct, error: i16) -> Value {
    let fields = schema::response(key::OFFSET_COMMIT).map(|m| Struct::new(m.fields));
    let mut out = fields.map_or_else(|| Struct::new(&[]), |f| f.new_element("Topics"));
    out.set("Name", topic.str("Name"));
    out.set("TopicId", crate::ids::TopicId(topic.uuid("TopicId")));
    for partition in topic.structs("Partitions") {
        let mut element = out.new_element("Partitions");
        element.set("PartitionIndex", partition.i32("PartitionIndex"));
        element.set("ErrorCode", error);
        out.push("Partitions", element);
    }
    Value::from(out)
}

#[cfg(test)]
mod tests;
