//! Requests about partitions, split by the broker that is asked, and their answers found again.
//!
//! One partition may be asked of both sides: the parts are known by (virtual topic, partition, side).

use super::fan::{self, Ask};
use super::{common, fetch_entry};
use crate::error_code as code;
use crate::ids::ClusterSide;
use crate::route::TopicRoute;
use crate::schema::Struct;
use crate::session::{Class, Cx, Step, UpstreamKey};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

type PartKey = (Arc<str>, i32, ClusterSide);
/// A topic and the elements of its partitions.
type Wanted = (Arc<TopicRoute>, Vec<Struct>);

/// How an API names the topic and the partition in the arrays `Topics` and `Partitions`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Names {
    pub topic: &'static str,
    pub partition: &'static str,
}

/// The parts asked so far, over all rounds.
pub(super) struct Split {
    names: Names,
    /// By broker: topics in the order they were added, with their partitions.
    pending: BTreeMap<UpstreamKey, Vec<Wanted>>,
    pending_keys: BTreeMap<UpstreamKey, Vec<PartKey>>,
    asked: Vec<UpstreamKey>,
    places: HashMap<PartKey, usize>,
}

/// What one side said of a partition.
#[derive(Clone, Copy, Debug)]
pub(super) enum Said<'a> {
    Well(&'a Struct),
    /// An error to be passed on. Down, or without a leader: a retriable one.
    Failed(i16),
}

/// All answers, indexed once.
pub(super) struct Answers<'a> {
    split: &'a Split,
    found: Vec<HashMap<(&'a str, i32), &'a Struct>>,
}

impl Split {
    pub(super) fn new(names: Names) -> Split {
        Split {
            names,
            pending: BTreeMap::new(),
            pending_keys: BTreeMap::new(),
            asked: Vec::new(),
            places: HashMap::new(),
        }
    }

    /// Whether nothing was asked yet.
    pub(super) fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Adds a partition's element to what `upstream` is asked in the next round. A broker refuses a partition it is
    /// asked for twice, so the second time is left out.
    pub(super) fn add(
        &mut self,
        upstream: UpstreamKey,
        route: &Arc<TopicRoute>,
        index: i32,
        element: Struct,
    ) {
        let key = (Arc::clone(&route.name), index, upstream.node.side);
        if self.places.insert(key.clone(), usize::MAX).is_some() {
            return;
        }
        self.pending_keys.entry(upstream).or_default().push(key);
        let topics = self.pending.entry(upstream).or_default();
        // The partitions of a topic come one after the other: only the last topic can be the same.
        match topics.last_mut().filter(|(last, _)| last.name == route.name) {
            Some((_, partitions)) => partitions.push(element),
            None => topics.push((Arc::clone(route), vec![element])),
        }
    }

    /// The requests of this round, made after the client's own.
    pub(super) fn asks(&mut self, request: &Struct) -> Vec<Ask> {
        let mut asks = Vec::new();
        for (upstream, topics) in std::mem::take(&mut self.pending) {
            let mut body = request.clone_without(&["Topics"]);
            for (route, partitions) in topics {
                let mut topic = body.new_element("Topics");
                topic.set(self.names.topic, route.physical(upstream.node.side));
                topic.set("Partitions", partitions);
                body.push("Topics", topic);
            }
            for key in self.pending_keys.remove(&upstream).unwrap_or_default() {
                self.places.insert(key, self.asked.len());
            }
            self.asked.push(upstream);
            asks.push(Ask::new(upstream, body));
        }
        asks
    }

    /// Indexes the answers to all asks, in the order the asks were made.
    pub(super) fn answers<'a>(&'a self, answers: &'a [Option<Struct>]) -> Answers<'a> {
        let index = |answer: &'a Option<Struct>| {
            let topics = answer.iter().flat_map(|a| a.structs("Topics"));
            let partitions = topics.flat_map(|t| t.structs("Partitions").map(move |p| (t, p)));
            partitions.map(|(t, p)| ((t.str(self.names.topic), p.i32(self.names.partition)), p)).collect()
        };
        Answers { split: self, found: answers.iter().map(index).collect() }
    }
}

impl Split {
    /// Puts the client's answer together in the order of its request; `fill` completes a partition's element.
    pub(super) fn merge(
        &self,
        cx: &mut Cx<'_>,
        request: &Struct,
        answers: &[Option<Struct>],
        mut fill: impl FnMut(&mut Cx<'_>, Option<&Arc<TopicRoute>>, &Struct, &Answers<'_>, &mut Struct),
    ) -> Step {
        let Some(mut response) = cx.empty_response() else { return Step::Done };
        response.set("ThrottleTimeMs", fan::throttle_ms(answers));
        let answers = self.answers(answers);
        for topic in request.structs("Topics") {
            let route = common::route_of(cx, topic, self.names.topic, false);
            let mut out = response.new_element("Topics");
            out.set(self.names.topic, topic.get(self.names.topic).clone());
            for partition in topic.structs("Partitions") {
                let mut element = out.new_element("Partitions");
                element.set(self.names.partition, partition.i32(self.names.partition));
                fill(cx, route.as_ref(), partition, &answers, &mut element);
                out.push("Partitions", element);
            }
            response.push("Topics", out);
        }
        Step::Reply(response)
    }
}

impl<'a> Answers<'a> {
    /// What `side` said of a partition. Where the client's own broker is not the leader its error passes, and the
    /// client looks for the leader; where a companion's is not, that is the proxy's to put right.
    pub(super) fn of(&self, cx: &mut Cx<'_>, route: &TopicRoute, index: i32, side: ClusterSide) -> Said<'a> {
        let ask = self.split.places.get(&(Arc::clone(&route.name), index, side)).copied();
        let upstream = ask.and_then(|a| self.split.asked.get(a));
        let found = ask.and_then(|a| self.found.get(a)?.get(&(&**route.physical(side), index)));
        let Some(found) = found else {
            cx.refresh(side);
            return Said::Failed(code::LEADER_NOT_AVAILABLE);
        };
        match found.i16("ErrorCode") {
            code::NONE => Said::Well(found),
            error
                if fetch_entry::is_elsewhere(error) && upstream.is_some_and(|u| u.class != Class::Native) =>
            {
                cx.refresh(side);
                Said::Failed(code::LEADER_NOT_AVAILABLE)
            }
            error => Said::Failed(error),
        }
    }
}

/// The leader on a side that does not own the partition (any more); `None` while that side is down.
pub(super) fn history_upstream(
    cx: &Cx<'_>,
    route: &TopicRoute,
    index: i32,
    side: ClusterSide,
) -> Option<UpstreamKey> {
    let reachable = cx.snapshot.topology(side).reachable;
    let leader = cx.snapshot.leader(route, index, side).filter(|_| reachable)?;
    Some(cx.upstream(side, leader, Class::Produce))
}
