//! DeleteRecords (key 21): on every side up to the highest position whose virtual image is not above (RULES R25).

use super::split::{Asked, SplitApi, sides};
use crate::error_code as code;
use crate::ids::{ClusterSide, NativeOffset, VirtualOffset};
use crate::route::TopicRoute;
use crate::schema::Struct;
use crate::session::Cx;
use std::sync::Arc;

pub(super) struct DeleteRecords;

impl SplitApi for DeleteRecords {
    fn names(&self) -> (&'static str, &'static str) {
        ("Name", "PartitionIndex")
    }

    fn ask(
        &mut self,
        cx: &mut Cx<'_>,
        route: &Arc<TopicRoute>,
        partition: &Struct,
        mut out: Struct,
    ) -> Asked {
        let index = partition.i32("PartitionIndex");
        let moved = route.timeline(index).filter(|t| t.past_eras() > 0);
        let Some(timeline) = moved else { return Asked::Sides(vec![(route.owner, partition.clone())]) };
        if cx.snapshot.preparing.contains(&route.name) {
            out.set("ErrorCode", code::NOT_LEADER_OR_FOLLOWER);
            return Asked::Local(out);
        }
        let wanted = match partition.i64("Offset") {
            -1 => cx
                .shared
                .seen
                .get(&route.name, index)
                .map_or(0, |s| s.high_watermark)
                .max(timeline.current().virtual_start.0),
            offset => offset,
        };
        let asks = sides(route, index).into_iter().filter_map(|side| {
            let mut body = partition.clone();
            if side != route.owner || partition.i64("Offset") >= 0 {
                body.set("Offset", timeline.native_boundary_for_delete(side, VirtualOffset(wanted))?.0);
            }
            Some((side, body))
        });
        Asked::Sides(asks.collect())
    }

    fn merge(
        &mut self,
        cx: &mut Cx<'_>,
        route: &Arc<TopicRoute>,
        partition: &Struct,
        answers: &[(ClusterSide, Struct)],
    ) -> Struct {
        let index = partition.i32("PartitionIndex");
        let mut out = answers.first().map_or_else(|| partition.clone(), |(_, answer)| answer.clone());
        let Some(timeline) = route.timeline(index).filter(|t| t.past_eras() > 0) else { return out };
        for (side, answer) in answers {
            cx.shared.log_starts.note(&route.name, index, *side, NativeOffset(answer.i64("LowWatermark")));
        }
        out.set("LowWatermark", super::common::virtual_log_start(cx, route, index, timeline));
        out
    }
}
