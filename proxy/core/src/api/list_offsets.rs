//! ListOffsets (key 2). A search goes to every side that holds eras; both logs are in time and offset order within their
//! eras, so the smallest virtual answer is the first record (RULES R24).
//!
//! Source: `ListOffsetsRequest.json`; KIP-79, KIP-734 (−3), KIP-405 (−4), KIP-1005 (−5).

use super::split::{Asked, SplitApi, owner_epoch, sides};
use crate::ids::{ClusterSide, NativeOffset};
use crate::route::TopicRoute;
use crate::schema::Struct;
use crate::session::{Cx, Seen};
use std::sync::Arc;

const EARLIEST: i64 = -2;
const MAX_TIMESTAMP: i64 = -3;

pub(super) struct ListOffsets {
    pub(super) committed: bool,
}

impl SplitApi for ListOffsets {
    fn names(&self) -> (&'static str, &'static str) {
        ("Name", "PartitionIndex")
    }

    fn ask(&mut self, _cx: &mut Cx<'_>, route: &Arc<TopicRoute>, partition: &Struct, _out: Struct) -> Asked {
        let index = partition.i32("PartitionIndex");
        let timestamp = partition.i64("Timestamp");
        let searched = timestamp >= 0 || timestamp == EARLIEST || timestamp == MAX_TIMESTAMP;
        let asked = if searched { sides(route, index) } else { vec![route.owner] };
        let ask = |side: ClusterSide| {
            let mut body = partition.clone();
            let epoch = partition.i32("CurrentLeaderEpoch");
            body.set(
                "CurrentLeaderEpoch",
                if side == route.owner { owner_epoch(route, index, epoch) } else { -1 },
            );
            (side, body)
        };
        Asked::Sides(asked.into_iter().map(ask).collect())
    }

    fn merge(
        &mut self,
        cx: &mut Cx<'_>,
        route: &Arc<TopicRoute>,
        partition: &Struct,
        answers: &[(ClusterSide, Struct)],
    ) -> Struct {
        let timestamp = partition.i64("Timestamp");
        let index = partition.i32("PartitionIndex");
        let owner = answers.iter().find(|(side, _)| *side == route.owner).or(answers.first());
        let mut out = owner.map_or_else(|| partition.clone(), |(_, answer)| answer.clone());
        let Some(timeline) = route.timeline(index).filter(|t| t.past_eras() > 0) else { return out };
        if timestamp == EARLIEST {
            for (side, answer) in answers {
                cx.shared.log_starts.note(&route.name, index, *side, NativeOffset(answer.i64("Offset")));
            }
            let start = super::common::virtual_log_start(cx, route, index, timeline);
            out.set("Offset", start);
            out.set("LeaderEpoch", -1);
            return out;
        }
        let current = timeline.current().index;
        if timestamp >= 0 || timestamp == MAX_TIMESTAMP {
            let found = answers.iter().filter(|(_, a)| a.i64("Offset") >= 0).filter_map(|(side, answer)| {
                let (era, offset) = timeline.record_on_side(*side, NativeOffset(answer.i64("Offset")))?;
                Some((offset, era, answer))
            });
            let best = if timestamp == MAX_TIMESTAMP {
                found.max_by_key(|(offset, _, answer)| (answer.i64("Timestamp"), std::cmp::Reverse(*offset)))
            } else {
                found.min_by_key(|(offset, _, _)| *offset)
            };
            match best {
                Some((offset, era, answer)) => {
                    out.set("Offset", offset.0);
                    out.set("Timestamp", answer.i64("Timestamp"));
                    let epoch = timeline.epoch_to_virtual(era, answer.i32("LeaderEpoch"));
                    out.set("LeaderEpoch", epoch.unwrap_or(-1));
                }
                None => {
                    out.set("Offset", -1_i64);
                    out.set("Timestamp", -1_i64);
                    out.set("LeaderEpoch", -1);
                }
            }
            return out;
        }
        let native = out.i64("Offset");
        if native >= 0 {
            let end = timeline.exclusive_to_virtual(current, NativeOffset(native)).0;
            out.set("Offset", end);
            if timestamp == -1 && !self.committed {
                cx.shared.seen.raise(
                    &route.name,
                    index,
                    Seen { high_watermark: end, last_stable_offset: -1, epoch: -1 },
                );
            }
        }
        let epoch = timeline.epoch_to_virtual(current, out.i32("LeaderEpoch"));
        out.set("LeaderEpoch", epoch.unwrap_or(-1));
        out
    }
}
