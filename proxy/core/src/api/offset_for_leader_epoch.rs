//! OffsetForLeaderEpoch (key 23): older eras are answered from the timeline, the current one by its owner.
//!
//! Source: KIP-320, `OffsetForLeaderEpochRequest.json`; RULES R22.

use super::common;
use super::fan::{Ask, Plan};
use super::split::{Answers, Names, Said, Split};
use super::view;
use crate::error_code as code;
use crate::ids::NativeOffset;
use crate::route::TopicRoute;
use crate::schema::Struct;
use crate::session::{Class, Cx, Step};
use crate::timeline::{RequestEpoch, Timeline};
use std::sync::Arc;

const NAMES: Names = Names { topic: "Topic", partition: "Partition" };

/// An offset for leader epoch request.
pub(super) struct OffsetForLeaderEpoch {
    request: Struct,
    split: Split,
}

impl OffsetForLeaderEpoch {
    #[must_use]
    pub(super) fn new(mut request: Struct) -> OffsetForLeaderEpoch {
        // Only a follower would send an id here, and there is none among the proxy's clients.
        request.set("ReplicaId", request.i32("ReplicaId").min(-1));
        OffsetForLeaderEpoch { request, split: Split::new(NAMES) }
    }
}

/// The end of the epoch that was asked for: (epoch, exclusive end), or an error.
fn result(
    cx: &mut Cx<'_>,
    route: Option<&Arc<TopicRoute>>,
    partition: &Struct,
    answers: &Answers<'_>,
) -> Result<(i32, i64), i16> {
    let route = route.ok_or(code::UNKNOWN_TOPIC_OR_PARTITION)?;
    let index = partition.i32("Partition");
    let timeline = route.timeline(index).ok_or(code::UNKNOWN_TOPIC_OR_PARTITION)?;
    if route.frozen.is_some() {
        return Err(code::LEADER_NOT_AVAILABLE);
    }
    // After a flip in the meantime, the epoch may be one of an older era by now.
    if let Some((epoch, end)) = timeline.epoch_end(partition.i32("LeaderEpoch")) {
        return Ok((epoch, end.0));
    }
    let answer = match answers.of(cx, route, index, route.owner) {
        Said::Well(answer) => answer,
        Said::Failed(error) => return Err(error),
    };
    let end = timeline.epoch_end_to_virtual(answer.i32("LeaderEpoch"), NativeOffset(answer.i64("EndOffset")));
    end.map(|(epoch, end)| (epoch, end.0)).map_err(|_| code::LEADER_NOT_AVAILABLE)
}

fn native(timeline: &Timeline, epoch: i32) -> i32 {
    match timeline.request_epoch(epoch) {
        RequestEpoch::Native(epoch) | RequestEpoch::Unknown(epoch) => epoch,
        RequestEpoch::Older(_) => -1,
    }
}

impl Plan for OffsetForLeaderEpoch {
    fn asks(&mut self, cx: &mut Cx<'_>) -> Vec<Ask> {
        for topic in self.request.structs("Topics") {
            let Some(route) = common::route_of(cx, topic, "Topic", false) else { continue };
            for partition in topic.structs("Partitions") {
                let index = partition.i32("Partition");
                let Some(timeline) = route.timeline(index) else { continue };
                if route.frozen.is_some() || timeline.epoch_end(partition.i32("LeaderEpoch")).is_some() {
                    continue;
                }
                let mut element = partition.clone();
                element.set("CurrentLeaderEpoch", native(timeline, partition.i32("CurrentLeaderEpoch")));
                element.set("LeaderEpoch", native(timeline, partition.i32("LeaderEpoch")));
                if let Some(upstream) = common::owner_upstream(cx, &route, index, Class::Produce) {
                    self.split.add(upstream, &route, index, element);
                }
            }
        }
        self.split.asks(&self.request)
    }

    fn merge(&mut self, cx: &mut Cx<'_>, answers: Vec<Option<Struct>>) -> Step {
        self.split.merge(cx, &self.request, &answers, |cx, route, partition, answers, element| {
            match result(cx, route, partition, answers) {
                Ok((epoch, end)) => {
                    element.set("LeaderEpoch", epoch);
                    element.set("EndOffset", end);
                }
                Err(error) => element.set("ErrorCode", error),
            }
        })
    }

    fn patience_ms(&self) -> i64 {
        view::PATIENCE_MS
    }
}

#[cfg(test)]
mod tests;
