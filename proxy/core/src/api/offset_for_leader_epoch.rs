//! OffsetForLeaderEpoch (key 23): older eras are answered here, the current one by its owner (RULES R22).

use super::split::{Asked, SplitApi, owner_epoch};
use crate::ids::{ClusterSide, NativeOffset};
use crate::route::TopicRoute;
use crate::schema::Struct;
use crate::session::Cx;
use std::sync::Arc;

pub(super) struct OffsetForLeaderEpoch;

impl SplitApi for OffsetForLeaderEpoch {
    fn names(&self) -> (&'static str, &'static str) {
        ("Topic", "Partition")
    }

    fn ask(
        &mut self,
        _cx: &mut Cx<'_>,
        route: &Arc<TopicRoute>,
        partition: &Struct,
        mut out: Struct,
    ) -> Asked {
        let index = partition.i32("Partition");
        let epoch = partition.i32("LeaderEpoch");
        if let Some((epoch, end)) = route.timeline(index).and_then(|t| t.epoch_end(epoch)) {
            out.set("LeaderEpoch", epoch);
            out.set("EndOffset", end.0);
            return Asked::Local(out);
        }
        let mut body = partition.clone();
        body.set("LeaderEpoch", owner_epoch(route, index, epoch));
        body.set("CurrentLeaderEpoch", owner_epoch(route, index, partition.i32("CurrentLeaderEpoch")));
        Asked::Sides(vec![(route.owner, body)])
    }

    fn merge(
        &mut self,
        _cx: &mut Cx<'_>,
        route: &Arc<TopicRoute>,
        partition: &Struct,
        answers: &[(ClusterSide, Struct)],
    ) -> Struct {
        let mut out = answers.first().map_or_else(|| partition.clone(), |(_, answer)| answer.clone());
        if let Some(timeline) = route.timeline(partition.i32("Partition")) {
            let native = (out.i32("LeaderEpoch"), NativeOffset(out.i64("EndOffset")));
            let shown = timeline.epoch_end_to_virtual(native.0, native.1);
            let (epoch, end) = shown.map_or((-1, -1), |(epoch, end)| (epoch, end.0));
            out.set("LeaderEpoch", epoch);
            out.set("EndOffset", end);
        }
        out
    }
}
