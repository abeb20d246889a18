//! ListOffsets (key 2): earliest positions and timestamps over all eras, latest ones from the owner.
//!
//! A side is asked once for a partition, however many eras it holds: its answer says by its position which era it is
//! of, and the first one in the virtual log wins.
//!
//! Source: KIP-79, KIP-734, KIP-405, KIP-1005, `ListOffsetsRequest.json`; RULES R21–R24.

use super::common;
use super::fan::{Ask, Plan};
use super::split::{self, Answers, Names, Said, Split};
use super::view;
use crate::bug::{self, Bug};
use crate::error_code as code;
use crate::ids::{ClusterSide, NativeOffset, VirtualOffset};
use crate::route::TopicRoute;
use crate::schema::Struct;
use crate::session::{Class, Cx, Seen, Step};
use crate::timeline::{RequestEpoch, Timeline};
use std::collections::HashSet;
use std::sync::Arc;

const LATEST: i64 = -1;
const EARLIEST: i64 = -2;
const MAX_TIMESTAMP: i64 = -3;
/// IsolationLevel: read_committed asks for the last stable offset.
const READ_COMMITTED: i8 = 1;
/// A side that hangs must not outlast the client's own patience.
const PATIENCE_MAX_MS: i64 = 10_000;
const NAMES: Names = Names { topic: "Name", partition: "PartitionIndex" };

/// A list offsets request.
pub(super) struct ListOffsets {
    request: Struct,
    split: Split,
    /// For each partition of the request, in its order: the era that was current when it was asked, or an error.
    planned: Vec<Result<u32, i16>>,
}

/// A position that is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Found {
    timestamp: i64,
    offset: VirtualOffset,
    epoch: i32,
}

impl ListOffsets {
    #[must_use]
    pub(super) fn new(mut request: Struct) -> ListOffsets {
        // Only a follower would send an id here, and there is none among the proxy's clients.
        request.set("ReplicaId", request.i32("ReplicaId").min(-1));
        ListOffsets { request, split: Split::new(NAMES), planned: Vec::new() }
    }

    /// Asks for one partition.
    fn ask(split: &mut Split, cx: &Cx<'_>, route: &Arc<TopicRoute>, partition: &Struct) -> Result<u32, i16> {
        if route.frozen.is_some() {
            return Err(code::LEADER_NOT_AVAILABLE);
        }
        let index = partition.i32("PartitionIndex");
        let timeline = route.timeline(index).ok_or(code::UNKNOWN_TOPIC_OR_PARTITION)?;
        for side in sides(timeline, partition.i64("Timestamp")) {
            let mut element = partition.clone();
            let is_owner = side == route.owner;
            let epoch = match timeline.request_epoch(partition.i32("CurrentLeaderEpoch")) {
                RequestEpoch::Native(epoch) if is_owner => epoch,
                _ => -1,
            };
            element.set("CurrentLeaderEpoch", epoch);
            let upstream = if is_owner {
                common::owner_upstream(cx, route, index, Class::Produce)
            } else {
                split::history_upstream(cx, route, index, side)
            };
            if let Some(upstream) = upstream {
                split.add(upstream, route, index, element);
            }
        }
        Ok(timeline.current().index)
    }

    fn result(
        &self,
        cx: &mut Cx<'_>,
        route: Option<&Arc<TopicRoute>>,
        partition: &Struct,
        planned: Result<u32, i16>,
        answers: &Answers<'_>,
    ) -> Result<Option<Found>, i16> {
        let era = planned?;
        let route = route.ok_or(code::LEADER_NOT_AVAILABLE)?;
        let index = partition.i32("PartitionIndex");
        let timeline = route.timeline(index).ok_or(code::LEADER_NOT_AVAILABLE)?;
        let mut asked = Asked { cx, route, timeline, index, answers };
        match partition.i64("Timestamp") {
            LATEST => asked.latest(era, self.isolation()).map(Some),
            EARLIEST => asked.earliest().map(Some),
            MAX_TIMESTAMP => asked.max_timestamp(),
            timestamp if timestamp >= 0 => asked.at(timestamp),
            _ => asked.tiered(era),
        }
    }

    fn isolation(&self) -> i8 {
        self.request.i8("IsolationLevel")
    }
}

/// Who is asked: only the owner for what is about its own log, or where its log holds all history.
fn sides(timeline: &Timeline, timestamp: i64) -> Vec<ClusterSide> {
    let owner = timeline.current();
    let over_all_eras = timestamp >= 0 || [EARLIEST, MAX_TIMESTAMP].contains(&timestamp);
    let is_owners = bug::is(Bug::R24OwnerOnly) && timestamp != EARLIEST;
    if !over_all_eras || is_owners || owner.holds_history || timeline.past_eras() == 0 {
        return vec![owner.side];
    }
    ClusterSide::BOTH.to_vec()
}

/// One partition, and what was said of it.
struct Asked<'a, 'c, 'x> {
    cx: &'a mut Cx<'c>,
    route: &'a TopicRoute,
    timeline: &'a Timeline,
    index: i32,
    answers: &'a Answers<'x>,
}

impl<'x> Asked<'_, '_, 'x> {
    fn of(&mut self, side: ClusterSide) -> Result<&'x Struct, i16> {
        match self.answers.of(self.cx, self.route, self.index, side) {
            Said::Well(found) => Ok(found),
            Said::Failed(error) => Err(error),
        }
    }

    fn all(&mut self, timestamp: i64) -> Vec<(ClusterSide, Result<&'x Struct, i16>)> {
        sides(self.timeline, timestamp).into_iter().map(|side| (side, self.of(side))).collect()
    }

    fn epoch(&self, era: u32, native: i32) -> i32 {
        self.timeline.epoch_to_virtual(era, native).unwrap_or(-1)
    }

    /// The owner's end. Asked of an owner that has meanwhile handed over: where the new era starts (RULES R21).
    fn latest(&mut self, planned: u32, isolation: i8) -> Result<Found, i16> {
        let current = self.timeline.current();
        let asked = self.timeline.era(planned).ok_or(code::LEADER_NOT_AVAILABLE)?;
        let answer = self.of(asked.side)?;
        if planned != current.index && !bug::is(Bug::R21LateEnd) {
            return Ok(Found { timestamp: -1, offset: current.virtual_start, epoch: -1 });
        }
        let native = NativeOffset(answer.i64("Offset"));
        let offset = if native.0 < 0 {
            VirtualOffset(native.0)
        } else {
            self.timeline.exclusive_to_virtual(current.index, native)
        };
        let mut seen = Seen { high_watermark: -1, last_stable_offset: offset.0, epoch: -1 };
        if isolation != READ_COMMITTED {
            seen = Seen { high_watermark: offset.0, last_stable_offset: -1, epoch: -1 };
        }
        self.cx.shared.seen.raise(&self.route.name, self.index, seen);
        let epoch = self.epoch(current.index, answer.i32("LeaderEpoch"));
        Ok(Found { timestamp: answer.i64("Timestamp"), offset, epoch })
    }

    /// The virtual log start (RULES R23), from what the sides have said just now. A side that did not answer matters
    /// only while its eras may still hold the first record.
    fn earliest(&mut self) -> Result<Found, i16> {
        let answers = self.all(EARLIEST);
        for (side, answer) in &answers {
            let start = answer.as_ref().map_or(-1, |a| a.i64("Offset"));
            if start >= 0 {
                self.cx.shared.log_starts.note(&self.route.name, self.index, *side, NativeOffset(start));
            }
        }
        let starts = self.cx.shared.log_starts.get(&self.route.name, self.index);
        let of = |side: ClusterSide| answers.iter().find(|(s, _)| *s == side).map(|(_, a)| a);
        let failed = |side| of(side).and_then(|a| a.as_ref().err()).copied();
        let Some(place) = self.timeline.locate_retained(VirtualOffset(0), starts) else {
            let error = ClusterSide::BOTH.into_iter().find_map(failed);
            return Err(error.unwrap_or(code::LEADER_NOT_AVAILABLE));
        };
        let Some(Ok(answer)) = of(place.side) else {
            return Err(failed(place.side).unwrap_or(code::LEADER_NOT_AVAILABLE));
        };
        let mut offset = self.timeline.log_start_to_virtual(starts).ok_or(code::LEADER_NOT_AVAILABLE)?;
        if bug::is(Bug::R23OwnersStart) {
            offset = offset.max(self.timeline.current().virtual_start);
        }
        // The epoch a broker gives belongs to its own log start, which may lie before the era.
        let is_its_start = answer.i64("Offset") == place.native.0;
        let epoch = if is_its_start { self.epoch(place.era, answer.i32("LeaderEpoch")) } else { -1 };
        Ok(Found { timestamp: -1, offset, epoch })
    }

    /// The first record at or after a time: of all sides' answers the first in the virtual log. A side without an
    /// answer that may hold an earlier one makes it a retriable error, never the next era's record (RULES R24).
    fn at(&mut self, timestamp: i64) -> Result<Option<Found>, i16> {
        let answers = self.all(timestamp);
        let found = answers
            .iter()
            .filter_map(|(side, answer)| self.record_at(*side, answer.as_ref().ok()?, timestamp));
        let first = found.min_by_key(|(_, found)| found.offset);
        for (side, answer) in &answers {
            let Err(error) = answer else { continue };
            let before = |era: u32| first.is_none_or(|(found, _)| era < found);
            let mut eras = self.timeline.eras().filter(|e| e.side == *side);
            let may_hold = eras.any(|e| before(e.index) && e.virtual_end() != Some(e.virtual_start));
            if may_hold && !bug::is(Bug::R24NextEra) {
                return Err(*error);
            }
        }
        Ok(first.map(|(_, found)| found))
    }

    fn record_at(&self, side: ClusterSide, answer: &Struct, timestamp: i64) -> Option<(u32, Found)> {
        let native = NativeOffset(answer.i64("Offset"));
        if native.0 < 0 {
            return None;
        }
        let floor = self.timeline.floor();
        if let Some((era, offset)) = self.timeline.record_on_side(side, native) {
            let epoch = self.epoch(era, answer.i32("LeaderEpoch"));
            return Some((
                era,
                Found { timestamp: answer.i64("Timestamp"), offset: offset.max(floor), epoch },
            ));
        }
        // Appended while the side was idle: all that is known of the side's next era is that it starts behind it.
        // Its start reads again rather than skips.
        let era = self.timeline.eras().find(|e| e.side == side && e.native_start > native)?;
        Some((era.index, Found { timestamp, offset: era.virtual_start.max(floor), epoch: -1 }))
    }

    /// The record with the largest timestamp, of all eras; the first of those that share it.
    fn max_timestamp(&mut self) -> Result<Option<Found>, i16> {
        let mut best: Option<Found> = None;
        for (side, answer) in self.all(MAX_TIMESTAMP) {
            let answer = answer?;
            let native = NativeOffset(answer.i64("Offset"));
            let record = if native.0 < 0 { None } else { self.timeline.record_on_side(side, native) };
            let Some((era, offset)) = record.filter(|(_, offset)| *offset >= self.timeline.floor()) else {
                continue;
            };
            let epoch = self.epoch(era, answer.i32("LeaderEpoch"));
            let found = Found { timestamp: answer.i64("Timestamp"), offset, epoch };
            let rank = |f: &Found| (f.timestamp, std::cmp::Reverse(f.offset));
            if best.as_ref().is_none_or(|b| rank(&found) > rank(b)) {
                best = Some(found);
            }
        }
        Ok(best)
    }

    /// Positions of the owner's own tiers (−4 and below); never below its era.
    fn tiered(&mut self, planned: u32) -> Result<Option<Found>, i16> {
        let current = self.timeline.current();
        if planned != current.index {
            return Err(code::LEADER_NOT_AVAILABLE);
        }
        let answer = self.of(current.side)?;
        let native = NativeOffset(answer.i64("Offset"));
        if native.0 < 0 {
            return Ok(None);
        }
        let exact = self.timeline.record_to_virtual(current.index, native);
        let offset = exact.unwrap_or_else(|| self.timeline.exclusive_to_virtual(current.index, native));
        let epoch = self.epoch(current.index, answer.i32("LeaderEpoch"));
        Ok(Some(Found { timestamp: answer.i64("Timestamp"), offset, epoch }))
    }
}

impl Plan for ListOffsets {
    fn asks(&mut self, cx: &mut Cx<'_>) -> Vec<Ask> {
        let mut told = HashSet::new();
        for topic in self.request.structs("Topics") {
            let route = common::route_of(cx, topic, "Name", false);
            for partition in topic.structs("Partitions") {
                let planned = match &route {
                    // As a broker answers a partition that is asked for twice.
                    _ if !told.insert((topic.str("Name"), partition.i32("PartitionIndex"))) => {
                        Err(code::INVALID_REQUEST)
                    }
                    Some(route) => ListOffsets::ask(&mut self.split, cx, route, partition),
                    None => Err(code::UNKNOWN_TOPIC_OR_PARTITION),
                };
                self.planned.push(planned);
            }
        }
        self.split.asks(&self.request)
    }

    fn merge(&mut self, cx: &mut Cx<'_>, answers: Vec<Option<Struct>>) -> Step {
        let mut planned = self.planned.iter().copied();
        self.split.merge(cx, &self.request, &answers, |cx, route, partition, answers, element| {
            let planned = planned.next().unwrap_or(Err(code::LEADER_NOT_AVAILABLE));
            let result = self.result(cx, route, partition, planned, answers);
            element.set("ErrorCode", result.err().unwrap_or(code::NONE));
            if let Ok(Some(found)) = result {
                element.set("Timestamp", found.timestamp);
                element.set("Offset", found.offset.0);
                element.set("LeaderEpoch", found.epoch);
            }
        })
    }

    fn patience_ms(&self) -> i64 {
        i64::from(self.request.i32("TimeoutMs")).clamp(view::PATIENCE_MS, PATIENCE_MAX_MS)
    }
}

#[cfg(test)]
mod tests;
