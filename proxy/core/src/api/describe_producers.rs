//! DescribeProducers (key 61): asked of the owner's leaders; producer ids as clients know them, positions virtual.
//!
//! Source: KIP-664, `DescribeProducersResponse.json`; RULES R6.

use super::common;
use super::fan::{self, Ask, Plan};
use super::view;
use crate::error_code as code;
use crate::ids::{ClusterSide, NativeOffset};
use crate::producer::{pid, transaction};
use crate::route::TopicRoute;
use crate::schema::{Struct, Value};
use crate::session::{Class, Cx, Step, UpstreamKey};
use std::collections::BTreeMap;

/// A describe producers request.
pub(super) struct DescribeProducers {
    request: Struct,
    asked: Vec<UpstreamKey>,
    /// The leader that was asked, by topic and partition.
    places: BTreeMap<(String, i32), usize>,
}

impl DescribeProducers {
    #[must_use]
    pub(super) fn new(request: Struct) -> DescribeProducers {
        DescribeProducers { request, asked: Vec::new(), places: BTreeMap::new() }
    }

    fn leader(cx: &Cx<'_>, name: &str, partition: i32) -> Option<UpstreamKey> {
        let route = cx.snapshot.routes.topic(name).filter(|r| r.frozen.is_none())?;
        let leader = cx.snapshot.leader(route, partition, route.owner)?;
        Some(cx.upstream(route.owner, leader, Class::Produce))
    }

    fn result(
        &self,
        cx: &Cx<'_>,
        name: &str,
        index: i32,
        answers: &[Option<Struct>],
        empty: Struct,
    ) -> Struct {
        let mut failed = empty;
        failed.set("PartitionIndex", index);
        let Some(route) = cx.snapshot.routes.topic(name).filter(|r| r.timeline(index).is_some()) else {
            failed.set("ErrorCode", code::UNKNOWN_TOPIC_OR_PARTITION);
            return failed;
        };
        failed.set("ErrorCode", code::NOT_LEADER_OR_FOLLOWER);
        let Some(ask) = self.places.get(&(name.to_owned(), index)).copied() else { return failed };
        let side = self.asked[ask].node.side;
        let found = answers.get(ask).and_then(Option::as_ref).and_then(|answer| {
            let mut topics = answer.structs("Topics").filter(|t| t.str("Name") == &**route.physical(side));
            topics.find_map(|t| t.structs("Partitions").find(|p| p.i32("PartitionIndex") == index))
        });
        // An answer of a side that is no longer the owner says nothing of the current era.
        match found.filter(|_| side == route.owner) {
            Some(found) => translate(route, index, side, found.clone()),
            None => failed,
        }
    }
}

fn translate(route: &TopicRoute, index: i32, side: ClusterSide, mut partition: Struct) -> Struct {
    let Some(timeline) = route.timeline(index) else { return partition };
    let era = timeline.current().index;
    for producer in partition.structs_mut("ActiveProducers") {
        let pid = transaction::to_client(side, producer.i64("ProducerId"));
        producer.set("ProducerId", pid::client_pid(pid));
        let start = producer.i64("CurrentTxnStartOffset");
        if start >= 0 {
            let start = timeline.record_to_virtual(era, NativeOffset(start)).map_or(-1, |v| v.0);
            producer.set("CurrentTxnStartOffset", start);
        }
    }
    partition
}

impl Plan for DescribeProducers {
    fn asks(&mut self, cx: &mut Cx<'_>) -> Vec<Ask> {
        let mut bodies: BTreeMap<UpstreamKey, BTreeMap<String, Vec<i32>>> = BTreeMap::new();
        for topic in self.request.structs("Topics") {
            let name = topic.str("Name");
            for index in topic.ints("PartitionIndexes").filter_map(|i| i32::try_from(i).ok()) {
                if let Some(key) = DescribeProducers::leader(cx, name, index) {
                    bodies.entry(key).or_default().entry(name.to_owned()).or_default().push(index);
                }
            }
        }
        let mut asks = Vec::new();
        for (upstream, topics) in bodies {
            let mut body = self.request.clone_without(&["Topics"]);
            for (name, indexes) in topics {
                let mut topic = body.new_element("Topics");
                topic.set("Name", common::physical_name(cx, &name, upstream.node.side));
                for index in &indexes {
                    self.places.insert((name.clone(), *index), asks.len());
                }
                topic.set("PartitionIndexes", indexes);
                body.push("Topics", topic);
            }
            self.asked.push(upstream);
            asks.push(Ask::new(upstream, body));
        }
        asks
    }

    fn merge(&mut self, cx: &mut Cx<'_>, answers: Vec<Option<Struct>>) -> Step {
        let Some(mut response) = cx.empty_response() else { return Step::Done };
        response.set("ThrottleTimeMs", fan::throttle_ms(&answers));
        for topic in self.request.structs("Topics") {
            let mut out = response.new_element("Topics");
            out.set("Name", topic.get("Name").clone());
            for index in topic.ints("PartitionIndexes").filter_map(|i| i32::try_from(i).ok()) {
                let empty = out.new_element("Partitions");
                let found: Value = self.result(cx, topic.str("Name"), index, &answers, empty).into();
                out.push("Partitions", found);
            }
            response.push("Topics", out);
        }
        Step::Reply(response)
    }

    fn patience_ms(&self) -> i64 {
        view::PATIENCE_MS
    }
}
