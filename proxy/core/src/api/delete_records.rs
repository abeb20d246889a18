//! DeleteRecords (key 21): the virtual log start is raised for good, then each side is deleted to its own image of it.
//!
//! 1. The owner is asked for its high watermark, and every side whether it would delete at all (DeleteRecords to 0
//!    deletes nothing, and is refused where the topic's policy or an ACL refuses): nothing may be hidden for a request
//!    that is refused.
//! 2. The floor is made durable. From then on the records are gone for clients, whatever becomes of the rest.
//! 3. Both sides delete. A side that is down makes it a retriable error; asked again, nothing is deleted twice.
//!
//! Held while a flip fences the topic. Source: KIP-107, `DeleteRecordsRequest.json`, `kafka.cluster.Partition`; RULES R25.

use super::fan::{self, Ask, Plan};
use super::split::{self, Answers, Names, Said, Split};
use super::{common, fetch_entry, group, key, view};
use crate::bug::{self, Bug};
use crate::error_code as code;
use crate::ids::{ClusterSide, NativeOffset, VirtualOffset};
use crate::route::TopicRoute;
use crate::schema::Struct;
use crate::session::{Change, ChangeKind, Class, Cx, Errand, ErrandDone, Step, UpstreamKey};
use std::sync::Arc;

/// The owner's high watermark, as DeleteRecords and as ListOffsets call it.
const HIGH_WATERMARK: i64 = -1;
/// Deletes nothing.
const REHEARSAL: i64 = 0;
const NAMES: Names = Names { topic: "Name", partition: "PartitionIndex" };

/// A delete records request.
pub(super) struct DeleteRecords {
    request: Struct,
    /// Held until the answer is made: a flip waits for it.
    change: Option<Change>,
    rehearsals: Split,
    ends: Split,
    deletions: Split,
    /// How many asks were made before those of `ends`, and before those of `deletions`.
    asked: [usize; 2],
    /// For each partition of the request, in its order: up to where it is deleted, or an error.
    agreed: Vec<Result<VirtualOffset, i16>>,
    floors: Floors,
}

/// Step 2.
enum Floors {
    NotYet,
    Asked,
    Durable,
    /// They could not be stored: nothing is deleted.
    Failed,
}

/// How far `side` is deleted. `None`: nothing of it lies there.
fn boundary(
    cx: &Cx<'_>,
    route: &TopicRoute,
    index: i32,
    side: ClusterSide,
    position: VirtualOffset,
) -> Option<NativeOffset> {
    let timeline = route.timeline(index)?;
    if bug::is(Bug::R25OwnerOnly) && side != timeline.current().side {
        return None;
    }
    let native = timeline.native_boundary_for_delete(side, position)?;
    // A log that was truncated has no records up to the end of its era.
    let end = cx.shared.truncations.get(&route.name, index, side);
    Some(end.map_or(native, |end| native.min(end)))
}

/// The connection to a partition's leader on one side; `None` while there is none.
fn upstream(cx: &Cx<'_>, route: &TopicRoute, index: i32, side: ClusterSide) -> Option<UpstreamKey> {
    if side == route.owner {
        return common::owner_upstream(cx, route, index, Class::Produce);
    }
    split::history_upstream(cx, route, index, side)
}

impl DeleteRecords {
    #[must_use]
    pub(super) fn new(request: Struct) -> DeleteRecords {
        DeleteRecords {
            request,
            change: None,
            rehearsals: Split::new(NAMES),
            ends: Split::new(NAMES),
            deletions: Split::new(NAMES),
            asked: [0; 2],
            agreed: Vec::new(),
            floors: Floors::NotYet,
        }
    }

    /// Calls `see` with each partition of the request.
    fn each(&self, cx: &mut Cx<'_>, mut see: impl FnMut(&mut Cx<'_>, Option<&Arc<TopicRoute>>, &Struct)) {
        for topic in self.request.structs("Topics") {
            let route = common::route_of(cx, topic, "Name", false);
            topic.structs("Partitions").for_each(|partition| see(cx, route.as_ref(), partition));
        }
    }

    /// Step 1: how far a partition is to be deleted, from what its sides have said.
    fn agree(
        cx: &mut Cx<'_>,
        route: Option<&Arc<TopicRoute>>,
        partition: &Struct,
        rehearsals: &Answers<'_>,
        ends: &Answers<'_>,
    ) -> Result<VirtualOffset, i16> {
        let route = route.ok_or(code::UNKNOWN_TOPIC_OR_PARTITION)?;
        let index = partition.i32("PartitionIndex");
        let timeline = route.timeline(index).ok_or(code::UNKNOWN_TOPIC_OR_PARTITION)?;
        if route.frozen.is_some() {
            return Err(code::NOT_LEADER_OR_FOLLOWER);
        }
        for side in ClusterSide::BOTH {
            let is_held = timeline.eras().any(|era| era.side == side);
            match rehearsals.of(cx, route, index, side) {
                Said::Failed(error) if side == route.owner => return Err(error),
                Said::Failed(error) if is_held && !fetch_entry::is_elsewhere(error) => return Err(error),
                // History whose side is down stays there, below the floor.
                Said::Failed(_) | Said::Well(_) => {}
            }
        }
        let end = match ends.of(cx, route, index, route.owner) {
            Said::Well(found) => NativeOffset(found.i64("Offset")),
            Said::Failed(error) => return Err(error),
        };
        let end = timeline.exclusive_to_virtual(timeline.current().index, end);
        match partition.i64("Offset") {
            HIGH_WATERMARK => Ok(end),
            position if position < 0 || VirtualOffset(position) > end => Err(code::OFFSET_OUT_OF_RANGE),
            position => Ok(VirtualOffset(position)),
        }
    }

    /// The virtual low watermark once all sides have deleted, or an error.
    fn result(
        cx: &mut Cx<'_>,
        route: Option<&Arc<TopicRoute>>,
        partition: &Struct,
        agreed: Result<VirtualOffset, i16>,
        deletions: &Answers<'_>,
    ) -> Result<i64, i16> {
        let position = agreed?;
        let route = route.ok_or(code::NOT_LEADER_OR_FOLLOWER)?;
        let index = partition.i32("PartitionIndex");
        let timeline = route.timeline(index).ok_or(code::NOT_LEADER_OR_FOLLOWER)?;
        for side in ClusterSide::BOTH {
            if boundary(cx, route, index, side, position).is_none() {
                continue;
            }
            let answer = match deletions.of(cx, route, index, side) {
                Said::Well(answer) => answer,
                // The position is in the log: a new leader does not know yet how much of it is on all replicas.
                Said::Failed(code::OFFSET_OUT_OF_RANGE) => return Err(code::LEADER_NOT_AVAILABLE),
                Said::Failed(error) => return Err(error),
            };
            let native = NativeOffset(answer.i64("LowWatermark"));
            if native.0 >= 0 {
                cx.shared.log_starts.note(&route.name, index, side, native);
            }
        }
        // A side that was not asked may not be known: then all that is known is what was deleted.
        let start = common::virtual_log_start(cx, route, index, timeline);
        Ok(if start >= 0 { start } else { position.0 })
    }
}

impl Plan for DeleteRecords {
    fn begin(&mut self, cx: &mut Cx<'_>) -> bool {
        let topics = self.request.structs("Topics").filter_map(|t| common::route_of(cx, t, "Name", false));
        let topics = topics.map(|route| Arc::clone(&route.name)).collect();
        self.change = cx.shared.changes.begin(topics, ChangeKind::Records, cx.snapshot.revision);
        self.change.is_some()
    }

    fn asks(&mut self, cx: &mut Cx<'_>) -> Vec<Ask> {
        let (mut rehearsals, mut ends) = (Split::new(NAMES), Split::new(NAMES));
        self.each(cx, |cx, route, partition| {
            let Some(route) = route.filter(|route| route.frozen.is_none()) else { return };
            let index = partition.i32("PartitionIndex");
            let Some(timeline) = route.timeline(index) else { return };
            for side in ClusterSide::BOTH.into_iter().filter(|s| timeline.eras().any(|e| e.side == *s)) {
                let Some(upstream) = upstream(cx, route, index, side) else { continue };
                let mut element = partition.clone();
                element.set("Offset", REHEARSAL);
                rehearsals.add(upstream, route, index, element);
                if side == route.owner {
                    let mut element =
                        group::request(key::LIST_OFFSETS).new_element("Topics").new_element("Partitions");
                    element.set("PartitionIndex", index);
                    element.set("CurrentLeaderEpoch", -1);
                    element.set("Timestamp", HIGH_WATERMARK);
                    ends.add(upstream, route, index, element);
                }
            }
        });
        let mut asks = rehearsals.asks(&self.request);
        self.asked[0] = asks.len();
        let mut body = group::request(key::LIST_OFFSETS);
        body.set("ReplicaId", -1);
        let of_ends = ends.asks(&body).into_iter().map(|ask| {
            let version = fan::list_offsets_version(cx, ask.upstream.node.side);
            ask.of(key::LIST_OFFSETS, version)
        });
        asks.extend(of_ends);
        self.asked[1] = asks.len();
        (self.rehearsals, self.ends) = (rehearsals, ends);
        asks
    }

    fn errand(&mut self, cx: &mut Cx<'_>, answers: &[Option<Struct>]) -> Option<Errand> {
        if !matches!(self.floors, Floors::NotYet) {
            return None;
        }
        self.floors = Floors::Asked;
        let rehearsals = self.rehearsals.answers(&answers[..self.asked[0]]);
        let ends = self.ends.answers(&answers[self.asked[0]..self.asked[1]]);
        let (mut agreed, mut floors) = (Vec::new(), Vec::new());
        self.each(cx, |cx, route, partition| {
            let result = DeleteRecords::agree(cx, route, partition, &rehearsals, &ends);
            if let (Ok(position), Some(route)) = (result, route) {
                floors.push((Arc::clone(&route.name), partition.i32("PartitionIndex"), position));
            }
            agreed.push(result);
        });
        self.agreed = agreed;
        (!floors.is_empty()).then_some(Errand::RaiseFloors(floors))
    }

    fn errand_done(&mut self, done: ErrandDone) {
        self.floors = if done.is_ok() { Floors::Durable } else { Floors::Failed };
    }

    fn more(&mut self, cx: &mut Cx<'_>, _answers: &[Option<Struct>]) -> Vec<Ask> {
        if !matches!(self.floors, Floors::Durable) || !self.deletions.is_empty() {
            return Vec::new();
        }
        let mut deletions = Split::new(NAMES);
        let mut agreed = self.agreed.iter().copied();
        self.each(cx, |cx, route, partition| {
            let (Some(Ok(position)), Some(route)) = (agreed.next(), route) else { return };
            let index = partition.i32("PartitionIndex");
            for side in ClusterSide::BOTH {
                let Some(native) = boundary(cx, route, index, side, position) else { continue };
                let mut element = partition.clone();
                element.set("Offset", native.0);
                if let Some(upstream) = upstream(cx, route, index, side) {
                    deletions.add(upstream, route, index, element);
                }
            }
        });
        let asks = deletions.asks(&self.request);
        self.deletions = deletions;
        asks
    }

    fn merge(&mut self, cx: &mut Cx<'_>, answers: Vec<Option<Struct>>) -> Step {
        let throttle_ms = fan::throttle_ms(&answers);
        let is_stored = matches!(self.floors, Floors::Durable);
        let deletions = answers.get(self.asked[1]..).unwrap_or_default();
        let mut agreed = self.agreed.iter().copied();
        let step =
            self.deletions.merge(cx, &self.request, deletions, |cx, route, partition, answers, element| {
                // Still held by a flip, or its leader has not spoken.
                let agreed = agreed.next().unwrap_or(Err(code::NOT_LEADER_OR_FOLLOWER));
                let agreed =
                    agreed.and_then(|v| if is_stored { Ok(v) } else { Err(code::LEADER_NOT_AVAILABLE) });
                let result = DeleteRecords::result(cx, route, partition, agreed, answers);
                element.set("LowWatermark", result.unwrap_or(-1));
                element.set("ErrorCode", result.err().unwrap_or(code::NONE));
            });
        match step {
            Step::Reply(mut response) => {
                response.set("ThrottleTimeMs", throttle_ms);
                Step::Reply(response)
            }
            other => other,
        }
    }

    fn patience_ms(&self) -> i64 {
        i64::from(self.request.i32("TimeoutMs")).max(view::PATIENCE_MS)
    }

    fn is_change(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests;
