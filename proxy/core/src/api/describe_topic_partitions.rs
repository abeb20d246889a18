//! DescribeTopicPartitions (key 75): Metadata's topics in pages, with eligible leader replicas.
//!
//! Source: KIP-966, `DescribeTopicPartitionsRequest.json`, `DescribeTopicPartitionsResponse.json`.

use super::common;
use super::fan::{self, Ask, Plan};
use super::view;
use crate::error_code as code;
use crate::ids::ClusterSide;
use crate::schema::Struct;
use crate::session::{Cx, Step};
use std::collections::BTreeSet;

/// As brokers limit a page, `max.request.partition.size.limit`.
const PAGE_MAX: i32 = 2000;

/// A describe topic partitions request.
pub(super) struct DescribeTopicPartitions {
    request: Struct,
    /// By virtual name, in the order of the pages.
    wanted: BTreeSet<String>,
    asked: Vec<ClusterSide>,
}

impl DescribeTopicPartitions {
    #[must_use]
    pub(super) fn new(request: Struct) -> DescribeTopicPartitions {
        DescribeTopicPartitions { request, wanted: BTreeSet::new(), asked: Vec::new() }
    }

    /// No topics stands for all topics: those that their owner has.
    fn read_topics(&mut self, cx: &Cx<'_>) {
        if self.request.array("Topics").is_empty() {
            for side in ClusterSide::BOTH {
                let names = cx.snapshot.topology(side).topics.keys();
                let names = names.map(|name| cx.snapshot.routes.virtual_name(side, name));
                let shown = names.filter(|name| cx.snapshot.routes.owner(name) == side);
                self.wanted.extend(shown.map(str::to_owned));
            }
        } else {
            self.wanted.extend(self.request.structs("Topics").map(|t| t.str("Name").to_owned()));
        }
        if let Some(cursor) = self.request.opt_struct("Cursor") {
            let from = cursor.str("TopicName");
            self.wanted.retain(|name| name.as_str() >= from);
        }
    }

    /// A topic with its partitions from `first` on, at most `room` of them, and whether any are left.
    fn topic(
        &self,
        cx: &mut Cx<'_>,
        name: &str,
        answers: &[Option<Struct>],
        element: Struct,
        (first, room): (i32, usize),
    ) -> (Struct, Option<i32>) {
        let side = cx.snapshot.routes.owner(name);
        let physical = common::physical_name(cx, name, side);
        let answer = self.asked.iter().position(|s| *s == side).and_then(|i| answers.get(i)?.as_ref());
        let found = answer.and_then(|a| a.structs("Topics").find(|t| t.str("Name") == physical)).cloned();
        // A page of the broker may have ended before this topic: the last known state stands in, as if it was down.
        let complete = found.filter(|t| {
            let known = cx.snapshot.topology(side).topic(&physical).map_or(0, |info| info.partitions.len());
            t.i16("ErrorCode") != code::NONE || t.array("Partitions").len() >= known
        });
        let mut topic = complete.unwrap_or_else(|| match cx.snapshot.topology(side).topic(&physical) {
            Some(info) => view::topic_from_topology(element, info),
            None => {
                let mut element = element;
                element.set("ErrorCode", code::UNKNOWN_TOPIC_OR_PARTITION);
                element
            }
        });
        view::translate_topic(cx, &mut topic, name, side);
        let mut rest = None;
        if let Some(partitions) = topic.array_mut("Partitions") {
            let index = |v: &crate::schema::Value| v.as_struct().map_or(-1, |p| p.i32("PartitionIndex"));
            partitions.sort_by_key(index);
            partitions.retain(|p| index(p) >= first);
            rest = partitions.get(room).map(index);
            partitions.truncate(room);
        }
        (topic, rest)
    }
}

impl Plan for DescribeTopicPartitions {
    fn asks(&mut self, cx: &mut Cx<'_>) -> Vec<Ask> {
        self.read_topics(cx);
        let mut asks = Vec::new();
        for side in ClusterSide::BOTH {
            let mine: Vec<&String> =
                self.wanted.iter().filter(|n| cx.snapshot.routes.owner(n) == side).collect();
            let Some(upstream) = view::upstream(cx, side).filter(|_| !mine.is_empty()) else { continue };
            let mut body = self.request.clone_without(&["Topics", "Cursor", "ResponsePartitionLimit"]);
            for name in mine {
                let mut topic = body.new_element("Topics");
                topic.set("Name", common::physical_name(cx, name, side));
                body.push("Topics", topic);
            }
            self.asked.push(side);
            asks.push(Ask::new(upstream, body));
        }
        asks
    }

    fn merge(&mut self, cx: &mut Cx<'_>, answers: Vec<Option<Struct>>) -> Step {
        let Some(mut response) = cx.empty_response() else { return Step::Done };
        response.set("ThrottleTimeMs", fan::throttle_ms(&answers));
        let limit = self.request.i32("ResponsePartitionLimit").clamp(1, PAGE_MAX);
        let mut room = usize::try_from(limit).unwrap_or(1);
        let cursor = self.request.opt_struct("Cursor");
        let cursor = cursor.map(|c| (c.str("TopicName").to_owned(), c.i32("PartitionIndex")));
        for name in &self.wanted {
            let first = cursor.as_ref().filter(|(topic, _)| topic == name).map_or(0, |(_, index)| *index);
            let mut next = Some(first);
            if room > 0 {
                let element = response.new_element("Topics");
                let (topic, rest) = self.topic(cx, name, &answers, element, (first, room));
                room -= topic.array("Partitions").len().min(room);
                response.push("Topics", topic);
                next = rest;
            }
            if let Some(index) = next {
                let mut at = response.new_element("NextCursor");
                at.set("TopicName", name);
                at.set("PartitionIndex", index);
                response.set("NextCursor", at);
                break;
            }
        }
        Step::Reply(response)
    }

    fn patience_ms(&self) -> i64 {
        view::PATIENCE_MS
    }
}
