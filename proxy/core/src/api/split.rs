//! Requests about partitions, each of which may concern other brokers: taken apart by broker, put together again.

use super::common;
use crate::error_code as code;
use crate::ids::ClusterSide;
use crate::route::TopicRoute;
use crate::schema::Struct;
use crate::session::{Answer, Class, Cx, Operation, Step, UpstreamKey};
use std::collections::BTreeMap;
use std::sync::Arc;

/// How long brokers are waited for, milliseconds.
const PATIENCE_MS: i64 = 10_000;

/// What becomes of one partition of a request.
pub(super) enum Asked {
    /// Answered here.
    Local(Struct),
    /// Asked of these sides, in their terms.
    Sides(Vec<(ClusterSide, Struct)>),
}

/// What is special about an API.
pub(super) trait SplitApi: Send {
    /// The names of the topic's name and of the partition's index.
    fn names(&self) -> (&'static str, &'static str);

    /// `out` is the partition's empty answer.
    fn ask(&mut self, cx: &mut Cx<'_>, route: &Arc<TopicRoute>, partition: &Struct, out: Struct) -> Asked;

    /// Puts one partition's answer together. Every side that was asked has answered without an error.
    fn merge(
        &mut self,
        cx: &mut Cx<'_>,
        route: &Arc<TopicRoute>,
        partition: &Struct,
        answers: &[(ClusterSide, Struct)],
    ) -> Struct;
}

struct Part {
    topic: usize,
    request: Struct,
    route: Option<Arc<TopicRoute>>,
    asked: Vec<(ClusterSide, Option<UpstreamKey>, Struct)>,
    answers: Vec<(ClusterSide, Struct)>,
    done: Option<Struct>,
}

/// A request that is taken apart.
pub(super) struct Split<A> {
    api: A,
    request: Struct,
    parts: Vec<Part>,
    /// Which (part, side) each call carries.
    calls: Vec<(UpstreamKey, Vec<(usize, ClusterSide)>)>,
    open: usize,
    throttle_ms: i64,
    until_ms: i64,
}

impl<A: SplitApi> Split<A> {
    pub(super) fn new(api: A, request: Struct) -> Split<A> {
        Split { api, request, parts: Vec::new(), calls: Vec::new(), open: 0, throttle_ms: 0, until_ms: 0 }
    }

    fn read(&mut self, cx: &mut Cx<'_>, response: &Struct) {
        let (name, index) = self.api.names();
        for (number, topic) in self.request.structs("Topics").enumerate() {
            let route = cx.snapshot.routes.topic(topic.str(name)).filter(|r| r.frozen.is_none()).cloned();
            for partition in topic.structs("Partitions") {
                let mut out = response.new_element("Topics").new_element("Partitions");
                out.set(index, partition.i32(index));
                let known = route.as_ref().filter(|r| r.timeline(partition.i32(index)).is_some());
                let mut part = Part {
                    topic: number,
                    request: partition.clone(),
                    route: known.cloned(),
                    asked: Vec::new(),
                    answers: Vec::new(),
                    done: None,
                };
                match known {
                    None => {
                        out.set("ErrorCode", code::UNKNOWN_TOPIC_OR_PARTITION);
                        part.done = Some(out);
                    }
                    Some(route) => match self.api.ask(cx, route, partition, out.clone()) {
                        Asked::Local(answer) => part.done = Some(answer),
                        Asked::Sides(asks) if asks.is_empty() => {
                            out.set("ErrorCode", code::OFFSET_OUT_OF_RANGE);
                            part.done = Some(out);
                        }
                        Asked::Sides(asks) => {
                            let aim = |side| upstream(cx, route, partition.i32(index), side);
                            part.asked =
                                asks.into_iter().map(|(side, body)| (side, aim(side), body)).collect();
                            if part.asked.iter().any(|(_, upstream, _)| upstream.is_none()) {
                                out.set("ErrorCode", code::LEADER_NOT_AVAILABLE);
                                part.done = Some(out);
                            }
                        }
                    },
                }
                if part.done.as_ref().is_some_and(|d| d.i16("ErrorCode") != code::NONE) {
                    cx.refresh(cx.snapshot.routes.owner(topic.str(name)));
                }
                self.parts.push(part);
            }
        }
    }

    fn send(&mut self, cx: &mut Cx<'_>) {
        let (name, _) = self.api.names();
        let mut by_upstream: BTreeMap<UpstreamKey, Vec<(usize, usize)>> = BTreeMap::new();
        for (number, part) in self.parts.iter().enumerate().filter(|(_, p)| p.done.is_none()) {
            for (ask, (_, upstream, _)) in part.asked.iter().enumerate() {
                if let Some(upstream) = upstream {
                    by_upstream.entry(*upstream).or_default().push((number, ask));
                }
            }
        }
        for (upstream, asks) in by_upstream {
            let mut body = self.request.clone();
            let mut topics: BTreeMap<usize, Struct> = BTreeMap::new();
            let mut carried = Vec::new();
            for (number, ask) in asks {
                let part = &self.parts[number];
                let (side, _, partition) = &part.asked[ask];
                let Some(route) = &part.route else { continue };
                let topic = topics.entry(part.topic).or_insert_with(|| {
                    let mut topic = self.request.new_element("Topics");
                    topic.set(name, route.physical(*side));
                    topic
                });
                topic.push("Partitions", partition.clone());
                carried.push((number, *side));
            }
            body.set("Topics", topics.into_values().collect::<Vec<_>>());
            let call = u32::try_from(self.calls.len()).unwrap_or(u32::MAX);
            if cx.forward(upstream, &body, call) {
                self.open += 1;
            }
            self.calls.push((upstream, carried));
        }
    }

    fn absorb(&mut self, cx: &mut Cx<'_>, call: usize, response: &Struct) {
        let (name, index) = self.api.names();
        self.throttle_ms = self.throttle_ms.max(i64::from(response.i32("ThrottleTimeMs")));
        let Some((upstream, carried)) = self.calls.get(call).cloned() else { return };
        for topic in response.structs("Topics") {
            for answer in topic.structs("Partitions") {
                let found = carried.iter().find(|(number, side)| {
                    let part = &self.parts[*number];
                    let named = part.route.as_ref().is_some_and(|r| **r.physical(*side) == *topic.str(name));
                    named && part.request.i32(index) == answer.i32(index)
                });
                let Some((number, side)) = found else { continue };
                if answer.i16("ErrorCode") != code::NONE {
                    cx.refresh(upstream.node.side);
                }
                self.parts[*number].answers.push((*side, answer.clone()));
            }
        }
    }

    fn finish(&mut self, cx: &mut Cx<'_>) -> Step {
        if self.open > 0 && cx.now_ms < self.until_ms {
            cx.deadline_ms = Some(self.until_ms);
            return Step::Pending;
        }
        let Some(mut response) = cx.empty_response() else { return Step::Done };
        let (name, index) = self.api.names();
        let mut topics: Vec<Struct> = self
            .request
            .structs("Topics")
            .map(|topic| {
                let mut out = response.new_element("Topics");
                out.set(name, topic.get(name).clone());
                out
            })
            .collect();
        for part in std::mem::take(&mut self.parts) {
            let answer = match (part.done, &part.route) {
                (Some(done), _) => done,
                (None, Some(route)) if part.answers.len() == part.asked.len() => {
                    let bad = part.answers.iter().find(|(_, a)| a.i16("ErrorCode") != code::NONE);
                    match bad {
                        Some((_, bad)) => failed(&response, index, &part.request, bad.i16("ErrorCode")),
                        None => self.api.merge(cx, route, &part.request, &part.answers),
                    }
                }
                // A side that does not answer: a retriable error, never a guess (RULES R24).
                _ => failed(&response, index, &part.request, code::LEADER_NOT_AVAILABLE),
            };
            topics[part.topic].push("Partitions", answer);
        }
        response.set("Topics", topics);
        response.set("ThrottleTimeMs", self.throttle_ms);
        Step::Reply(response)
    }
}

impl<A: SplitApi> Operation for Split<A> {
    fn start(&mut self, cx: &mut Cx<'_>) -> Step {
        self.until_ms = cx.now_ms + PATIENCE_MS;
        let Some(response) = cx.empty_response() else { return Step::Done };
        self.read(cx, &response);
        self.send(cx);
        self.finish(cx)
    }

    fn on_answer(&mut self, cx: &mut Cx<'_>, part: u32, answer: Answer) -> Step {
        self.open = self.open.saturating_sub(1);
        if let Answer::Frame { frame, body_at, version } = answer {
            match cx.decode(cx.header.api_key, &frame, body_at, version) {
                Ok(response) => self.absorb(cx, part as usize, &response),
                Err(reason) => return Step::Close(reason),
            }
        }
        self.finish(cx)
    }

    fn on_wake(&mut self, cx: &mut Cx<'_>) -> Step {
        self.finish(cx)
    }
}

fn failed(response: &Struct, index: &str, request: &Struct, error: i16) -> Struct {
    let mut out = response.new_element("Topics").new_element("Partitions");
    out.set(index, request.i32(index));
    out.set("ErrorCode", error);
    out
}

fn upstream(cx: &Cx<'_>, route: &TopicRoute, partition: i32, side: ClusterSide) -> Option<UpstreamKey> {
    if side == route.owner {
        return common::owner_upstream(cx, route, partition, Class::Produce);
    }
    let leader = cx.snapshot.leader(route, partition, side)?;
    Some(cx.upstream(side, leader, Class::Produce))
}

/// A leader epoch a client sent, for the owner; −1 for one of an older era (RULES R22).
pub(super) fn owner_epoch(route: &TopicRoute, partition: i32, epoch: i32) -> i32 {
    match route.timeline(partition).map(|t| t.request_epoch(epoch)) {
        Some(
            crate::timeline::RequestEpoch::Native(epoch) | crate::timeline::RequestEpoch::Unknown(epoch),
        ) => epoch,
        _ => -1,
    }
}

/// The sides that hold eras of a partition.
pub(super) fn sides(route: &TopicRoute, partition: i32) -> Vec<ClusterSide> {
    let holds = |side: &ClusterSide| {
        route.timeline(partition).is_some_and(|t| {
            let copy = t.current().holds_history;
            t.eras().any(|era| era.side == *side && (!copy || era.index == t.current().index))
        })
    };
    ClusterSide::BOTH.into_iter().filter(holds).collect()
}
