//! DeleteRecords (key 21): each side is deleted to its own image of the virtual position.
//!
//! The owner is asked first: only its broker can refuse a position beyond the end, and history must not be deleted for
//! a request that is refused. A side that is down makes it a retriable error; asked again, nothing is deleted twice.
//! The durable floor is not raised here.
//!
//! Source: KIP-107, `DeleteRecordsRequest.json`; RULES R25.

use super::common;
use super::fan::{Ask, Plan};
use super::split::{self, Answers, Names, Said, Split};
use super::view;
use crate::error_code as code;
use crate::ids::{ClusterSide, NativeOffset, VirtualOffset};
use crate::route::TopicRoute;
use crate::schema::Struct;
use crate::session::{Class, Cx, Step};
use crate::timeline::Timeline;
use std::sync::Arc;

/// The owner's high watermark.
const HIGH_WATERMARK: i64 = -1;
const NAMES: Names = Names { topic: "Name", partition: "PartitionIndex" };

/// A delete records request.
pub(super) struct DeleteRecords {
    request: Struct,
    split: Split,
    round: u8,
    /// For each partition of the request, in its order: the revision of its plan, or an error.
    planned: Vec<Result<Planned, i16>>,
}

/// What a partition was planned with. After a flip the rest of the plan is void.
#[derive(Clone, Copy, Debug)]
struct Planned {
    owner: ClusterSide,
    era: u32,
}

/// How far `side` is deleted. `None`: nothing of it lies there.
fn boundary(timeline: &Timeline, side: ClusterSide, position: i64) -> Option<NativeOffset> {
    let current = timeline.current();
    match position {
        HIGH_WATERMARK if side == current.side => Some(NativeOffset(HIGH_WATERMARK)),
        HIGH_WATERMARK => timeline.native_boundary_for_delete(side, current.virtual_start),
        // What makes no sense is the owner's to refuse.
        p if p < 0 => (side == current.side).then_some(NativeOffset(p)),
        p => timeline.native_boundary_for_delete(side, VirtualOffset(p)),
    }
}

impl DeleteRecords {
    #[must_use]
    pub(super) fn new(request: Struct) -> DeleteRecords {
        DeleteRecords { request, split: Split::new(NAMES), round: 0, planned: Vec::new() }
    }

    fn plan(
        split: &mut Split,
        cx: &Cx<'_>,
        route: &Arc<TopicRoute>,
        partition: &Struct,
    ) -> Result<Planned, i16> {
        let index = partition.i32("PartitionIndex");
        let timeline = route.timeline(index).ok_or(code::UNKNOWN_TOPIC_OR_PARTITION)?;
        if route.frozen.is_some() || cx.snapshot.preparing.contains(&route.name) {
            // A boundary that is being read must not move: again after the flip.
            return Err(code::NOT_LEADER_OR_FOLLOWER);
        }
        if let Some(native) = boundary(timeline, route.owner, partition.i64("Offset")) {
            let mut element = partition.clone();
            element.set("Offset", native.0);
            if let Some(upstream) = common::owner_upstream(cx, route, index, Class::Produce) {
                split.add(upstream, route, index, element);
            }
        }
        Ok(Planned { owner: route.owner, era: timeline.current().index })
    }

    /// Whether the partition's plan still holds, and its owner has not refused.
    fn owner_agrees(
        cx: &mut Cx<'_>,
        route: &TopicRoute,
        partition: &Struct,
        planned: Result<Planned, i16>,
        answers: &Answers<'_>,
    ) -> Result<(), i16> {
        let planned = planned?;
        let index = partition.i32("PartitionIndex");
        let timeline = route.timeline(index).ok_or(code::NOT_LEADER_OR_FOLLOWER)?;
        if timeline.current().index != planned.era || cx.snapshot.preparing.contains(&route.name) {
            return Err(code::NOT_LEADER_OR_FOLLOWER);
        }
        if boundary(timeline, planned.owner, partition.i64("Offset")).is_none() {
            return Ok(());
        }
        match answers.of(cx, route, index, planned.owner) {
            Said::Well(_) => Ok(()),
            Said::Failed(error) => Err(error),
        }
    }

    /// The virtual low watermark once all sides have deleted, or an error.
    fn result(
        cx: &mut Cx<'_>,
        route: Option<&Arc<TopicRoute>>,
        partition: &Struct,
        planned: Result<Planned, i16>,
        answers: &Answers<'_>,
    ) -> Result<i64, i16> {
        planned?;
        let route = route.ok_or(code::UNKNOWN_TOPIC_OR_PARTITION)?;
        let index = partition.i32("PartitionIndex");
        DeleteRecords::owner_agrees(cx, route, partition, planned, answers)?;
        let timeline = route.timeline(index).ok_or(code::NOT_LEADER_OR_FOLLOWER)?;
        let position = partition.i64("Offset");
        let mut low = VirtualOffset(position.max(0));
        for side in ClusterSide::BOTH {
            if boundary(timeline, side, position).is_none() {
                continue;
            }
            let answer = match answers.of(cx, route, index, side) {
                Said::Well(answer) => answer,
                Said::Failed(error) => return Err(error),
            };
            let native = NativeOffset(answer.i64("LowWatermark"));
            if native.0 >= 0 {
                cx.shared.log_starts.note(&route.name, index, side, native);
                if side == timeline.current().side && position < 0 {
                    low = timeline.exclusive_to_virtual(timeline.current().index, native);
                }
            }
        }
        // A side that was not asked may not be known: then all that is known is what was deleted.
        let start = common::virtual_log_start(cx, route, index, timeline);
        Ok(if start >= 0 { start } else { low.0 })
    }
}

impl Plan for DeleteRecords {
    fn asks(&mut self, cx: &mut Cx<'_>) -> Vec<Ask> {
        for topic in self.request.structs("Topics") {
            let route = common::route_of(cx, topic, "Name", false);
            for partition in topic.structs("Partitions") {
                let planned = match &route {
                    Some(route) => DeleteRecords::plan(&mut self.split, cx, route, partition),
                    None => Err(code::UNKNOWN_TOPIC_OR_PARTITION),
                };
                self.planned.push(planned);
            }
        }
        self.split.asks(&self.request)
    }

    fn more(&mut self, cx: &mut Cx<'_>, answers: &[Option<Struct>]) -> Vec<Ask> {
        self.round += 1;
        if self.round > 1 {
            return Vec::new();
        }
        let mut agreed = Vec::new();
        let indexed = self.split.answers(answers);
        let mut planned = self.planned.iter().copied();
        for topic in self.request.structs("Topics") {
            let route = common::route_of(cx, topic, "Name", false);
            for partition in topic.structs("Partitions") {
                let planned = planned.next().unwrap_or(Err(code::LEADER_NOT_AVAILABLE));
                let Some(route) = &route else { continue };
                if DeleteRecords::owner_agrees(cx, route, partition, planned, &indexed).is_ok() {
                    agreed.push((Arc::clone(route), partition.clone()));
                }
            }
        }
        for (route, mut element) in agreed {
            let (index, side) = (element.i32("PartitionIndex"), route.owner.other());
            let timeline = route.timeline(index);
            let Some(native) = timeline.and_then(|t| boundary(t, side, element.i64("Offset"))) else {
                continue;
            };
            element.set("Offset", native.0);
            if let Some(upstream) = split::history_upstream(cx, &route, index, side) {
                self.split.add(upstream, &route, index, element);
            }
        }
        self.split.asks(&self.request)
    }

    fn merge(&mut self, cx: &mut Cx<'_>, answers: Vec<Option<Struct>>) -> Step {
        let mut planned = self.planned.iter().copied();
        self.split.merge(cx, &self.request, &answers, |cx, route, partition, answers, element| {
            let planned = planned.next().unwrap_or(Err(code::LEADER_NOT_AVAILABLE));
            let result = DeleteRecords::result(cx, route, partition, planned, answers);
            element.set("LowWatermark", result.unwrap_or(-1));
            element.set("ErrorCode", result.err().unwrap_or(code::NONE));
        })
    }

    fn patience_ms(&self) -> i64 {
        i64::from(self.request.i32("TimeoutMs")).max(view::PATIENCE_MS)
    }
}

#[cfg(test)]
mod tests;
