//! OffsetFetch (key 9): committed positions of the group's home, as virtual ones (RULES R27).

use super::common;
use super::group::GroupApi;
use crate::error_code as code;
use crate::ids::{ClusterSide, TopicId};
use crate::route::TopicRoute;
use crate::schema::Struct;
use crate::session::{Cx, Step};
use crate::timeline;
use std::collections::HashMap;
use std::sync::Arc;

/// Between two looks at commits that are under way, milliseconds.
const LOOK_AGAIN_MS: i64 = 2;

pub(super) struct OffsetFetch {
    request: Struct,
}

impl OffsetFetch {
    pub(super) fn new(request: Struct) -> OffsetFetch {
        OffsetFetch { request }
    }
}

impl GroupApi for OffsetFetch {
    fn group(&self) -> String {
        let first = self.request.structs("Groups").next().map(|g| g.str("GroupId"));
        first.unwrap_or_else(|| self.request.str("GroupId")).to_owned()
    }

    fn home(&self, cx: &Cx<'_>) -> ClusterSide {
        cx.snapshot.offset_home(&self.group())
    }

    /// A commit whose member was found to be one before this was asked must be read by it.
    fn waits_ms(&self, cx: &Cx<'_>) -> Option<i64> {
        let group = self.group();
        let is_apart = cx.snapshot.group_home(&group) != cx.snapshot.offset_home(&group);
        (is_apart && cx.shared.groups.has_commits_under_way(&group)).then_some(LOOK_AGAIN_MS)
    }

    fn request(&mut self, cx: &mut Cx<'_>, home: ClusterSide) -> Struct {
        let mut request = self.request.clone();
        topics_to_home(cx, &mut request, home);
        for group in request.structs_mut("Groups") {
            topics_to_home(cx, group, home);
            if cx.snapshot.group_home(group.str("GroupId")) != home {
                // Commits are apart from their members, whom this coordinator does not know.
                group.reset("MemberId");
                group.reset("MemberEpoch");
            }
        }
        request
    }

    fn response(&mut self, cx: &mut Cx<'_>, home: ClusterSide, mut response: Struct) -> Step {
        let by_id = by_native_id(cx, home);
        topics_to_client(cx, &mut response, home, &by_id);
        for group in response.structs_mut("Groups") {
            if cx.snapshot.offset_home(group.str("GroupId")) == home {
                topics_to_client(cx, group, home, &by_id);
            } else {
                // A batch over groups of both homes: the client asks again for those of the other one.
                group.reset("Topics");
                group.set("ErrorCode", code::NOT_COORDINATOR);
            }
        }
        Step::Reply(response)
    }
}

fn topics_to_home(cx: &Cx<'_>, of: &mut Struct, home: ClusterSide) {
    for topic in of.structs_mut("Topics") {
        let by_id = topic.has("TopicId") && cx.header.api_version >= 10;
        if by_id {
            if let Some(route) = cx.snapshot.routes.topic_by_id(TopicId(topic.uuid("TopicId"))) {
                topic.set("TopicId", route.native_id(home));
            }
        } else {
            let physical = common::physical_name(cx, topic.str("Name"), home);
            topic.set("Name", physical);
        }
    }
}

type ByNativeId<'s> = HashMap<TopicId, &'s Arc<TopicRoute>>;

/// Topics by the ids of the home, where it tells topics by their ids.
fn by_native_id<'s>(cx: &Cx<'s>, home: ClusterSide) -> ByNativeId<'s> {
    if cx.header.api_version < 10 {
        return HashMap::new();
    }
    cx.snapshot.routes.topics.values().map(|route| (route.native_id(home), route)).collect()
}

fn topics_to_client(cx: &Cx<'_>, of: &mut Struct, home: ClusterSide, by_id: &ByNativeId<'_>) {
    for topic in of.structs_mut("Topics") {
        let Some(route) = route_of(cx, topic, home, by_id) else { continue };
        topic.set("Name", &route.name);
        if topic.has("TopicId") {
            topic.set("TopicId", route.virtual_id);
        }
        for partition in topic.structs_mut("Partitions") {
            if route.frozen.is_some() {
                // No position of it is certain: to be asked for again (RULES R26).
                partition.reset("Metadata");
                partition.set("CommittedOffset", -1_i64);
                partition.set("ErrorCode", code::UNSTABLE_OFFSET_COMMIT);
                continue;
            }
            let native = partition.i64("CommittedOffset");
            partition.set("CommittedLeaderEpoch", -1);
            let Some(timeline) = route.timeline(partition.i32("PartitionIndex")).filter(|_| native >= 0)
            else {
                continue;
            };
            let resolved = timeline::resolve(timeline, home, native, partition.str("Metadata"));
            partition.set("CommittedOffset", resolved.position.0);
            partition.set("Metadata", resolved.user_metadata);
        }
    }
}

/// The route of a topic the home names.
fn route_of(
    cx: &Cx<'_>,
    topic: &Struct,
    home: ClusterSide,
    by_id: &ByNativeId<'_>,
) -> Option<Arc<TopicRoute>> {
    if topic.has("TopicId") && cx.header.api_version >= 10 {
        return by_id.get(&TopicId(topic.uuid("TopicId"))).map(|route| Arc::clone(route));
    }
    let routes = &cx.snapshot.routes;
    routes.topic(routes.virtual_name(home, topic.str("Name"))).cloned()
}

#[cfg(test)]
mod tests;
