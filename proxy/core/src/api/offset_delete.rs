//! OffsetDelete (key 47): forgets commits at the group's home, and then their copies at the other side.
//!
//! Source: KIP-496, `OffsetDeleteRequest.json`; RULES R27.

use super::common;
use super::group::{GroupApi, IGNORED};
use crate::error_code as code;
use crate::ids::ClusterSide;
use crate::schema::Struct;
use crate::session::{Cx, Errand, ErrandDone, Step};
use std::sync::Arc;

pub(super) struct OffsetDelete {
    request: Struct,
    /// The home's answer, while the copies are dealt with.
    response: Option<Struct>,
}

impl OffsetDelete {
    pub(super) fn new(request: Struct) -> OffsetDelete {
        OffsetDelete { request, response: None }
    }

    /// The commits that are gone from the home: those it says it has deleted, and all that were named where it does not
    /// know the group (any more).
    fn deleted(&self, response: &Struct) -> Vec<(Arc<str>, i32)> {
        let of = match response.i16("ErrorCode") {
            code::NONE => response,
            code::GROUP_ID_NOT_FOUND => &self.request,
            _ => return Vec::new(),
        };
        let topics = of.structs("Topics").flat_map(|topic| {
            let well = |p: &&Struct| !p.has("ErrorCode") || p.i16("ErrorCode") == code::NONE;
            let name: Arc<str> = Arc::from(topic.str("Name"));
            let partitions = topic.structs("Partitions").filter(well);
            partitions.map(move |p| (Arc::clone(&name), p.i32("PartitionIndex")))
        });
        topics.collect()
    }
}

impl GroupApi for OffsetDelete {
    fn group(&self) -> String {
        self.request.str("GroupId").to_owned()
    }

    fn request(&mut self, cx: &mut Cx<'_>, home: ClusterSide) -> Struct {
        let mut request = self.request.clone();
        for topic in request.structs_mut("Topics") {
            let physical = common::physical_name(cx, topic.str("Name"), home);
            topic.set("Name", physical);
        }
        request
    }

    fn response(&mut self, cx: &mut Cx<'_>, home: ClusterSide, mut response: Struct) -> Step {
        common::names_to_virtual(cx, &mut response, home);
        let deleted = self.deleted(&response);
        if deleted.is_empty() {
            return Step::Reply(response);
        }
        let group = Arc::from(self.request.str("GroupId"));
        cx.run_errand(IGNORED, Errand::ForgetCommits { group, partitions: Some(deleted) });
        self.response = Some(response);
        Step::Pending
    }

    fn errand_done(&mut self, done: ErrandDone) -> Step {
        let Some(mut response) = self.response.take() else { return Step::Pending };
        if done.is_err() {
            // The client looks for the coordinator and asks again: deleting twice does no harm.
            response.reset("Topics");
            response.set("ErrorCode", code::COORDINATOR_NOT_AVAILABLE);
        }
        Step::Reply(response)
    }

    fn is_change(&self) -> bool {
        true
    }
}
