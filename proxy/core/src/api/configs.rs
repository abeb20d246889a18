//! DescribeConfigs (key 32), AlterConfigs (33) and IncrementalAlterConfigs (44): topics at their owner, changes also at
//! the other side where the topic exists there; a broker at the broker that its virtual id names; a group at its home;
//! everything else at the default side. Changes of a topic are held while a flip fences it.
//!
//! Source: KIP-133, KIP-339, `DescribeConfigsRequest.json`, `AlterConfigsRequest.json`; RULES R26.

use super::both_sides::{self, Changes, Fared, Item, Refusal, Rounds};
use super::common;
use super::fan::{self, Ask, Plan};
use super::key;
use crate::error_code as code;
use crate::ids::{ClusterSide, VirtualNode};
use crate::schema::Struct;
use crate::session::{Change, ChangeKind, Class, Cx, Step, UpstreamKey};
use std::sync::Arc;

const TOPIC: i8 = 2;
const BROKER: i8 = 4;
const BROKER_LOGGER: i8 = 8;
const GROUP: i8 = 32;

/// How long brokers are waited for, milliseconds.
const PATIENCE_MS: i64 = 15_000;

/// A request about configurations.
pub(super) struct Configs {
    request: Struct,
    resources: Vec<Struct>,
    is_change: bool,
    results: &'static str,
    /// By resource.
    rounds: Rounds,
    /// Held until the answer is made: a flip waits for it.
    change: Option<Change>,
}

impl Configs {
    #[must_use]
    pub(super) fn new(api_key: i16, request: Struct) -> Configs {
        let is_change = api_key != key::DESCRIBE_CONFIGS;
        let results = if is_change { "Responses" } else { "Results" };
        let resources = request.structs("Resources").cloned().collect();
        Configs { request, resources, is_change, results, rounds: Rounds::default(), change: None }
    }

    fn topic(&self, cx: &Cx<'_>, name: &str) -> Result<Vec<UpstreamKey>, Refusal> {
        if self.is_change {
            return both_sides::places(cx, name, false);
        }
        let upstream = cx.any_upstream(cx.snapshot.routes.owner(name));
        let upstream = upstream
            .ok_or_else(|| (code::REQUEST_TIMED_OUT, "the topic's cluster is not known yet".to_owned()))?;
        Ok(vec![upstream])
    }

    fn places(&self, cx: &Cx<'_>, resource: &Struct) -> Result<Vec<UpstreamKey>, Refusal> {
        let name = resource.str("ResourceName");
        let at = |side| {
            let upstream = cx.any_upstream(side);
            let unknown = || (code::REQUEST_TIMED_OUT, "the cluster is not known yet".to_owned());
            Ok(vec![upstream.ok_or_else(unknown)?])
        };
        match resource.i8("ResourceType") {
            TOPIC => self.topic(cx, name),
            // The empty name stands for the defaults of a cluster's brokers.
            BROKER | BROKER_LOGGER if !name.is_empty() => {
                let node = broker(name);
                let node = node.filter(|n| cx.snapshot.topology(n.side).brokers.contains_key(&n.broker));
                let node = node.ok_or_else(|| (code::INVALID_REQUEST, "no broker has this id".to_owned()))?;
                Ok(vec![cx.upstream(node.side, node.broker, Class::Produce)])
            }
            GROUP => at(cx.snapshot.group_home(name)),
            // Tools ask any broker for what is a cluster's, and must not get now one cluster's answer, now the other's.
            _ => at(cx.snapshot.routes.rules.default_side),
        }
    }

    fn is_rehearsal(&self) -> bool {
        self.is_change && self.request.bool("ValidateOnly")
    }
}

/// What a side calls a resource.
fn physical(cx: &Cx<'_>, resource: &Struct, side: ClusterSide) -> String {
    let name = resource.str("ResourceName");
    match resource.i8("ResourceType") {
        TOPIC => common::physical_name(cx, name, side),
        BROKER | BROKER_LOGGER => broker(name).map_or_else(|| name.to_owned(), |n| n.broker.to_string()),
        _ => name.to_owned(),
    }
}

/// The broker that a resource's name means.
fn broker(name: &str) -> Option<VirtualNode> {
    name.parse().ok().and_then(VirtualNode::from_virtual)
}

impl Changes for Configs {
    fn body(&self, cx: &Cx<'_>, side: ClusterSide, items: &[usize], rehearsal: bool) -> Struct {
        let mut body = self.request.clone();
        let resources = items.iter().map(|item| {
            let mut resource = self.resources[*item].clone();
            let name = physical(cx, &resource, side);
            resource.set("ResourceName", name);
            resource
        });
        body.set("Resources", resources.collect::<Vec<Struct>>());
        if rehearsal {
            body.set("ValidateOnly", true);
        }
        body
    }

    fn found<'a>(
        &self,
        cx: &Cx<'_>,
        item: usize,
        side: ClusterSide,
        answer: &'a Struct,
    ) -> Option<&'a Struct> {
        let resource = &self.resources[item];
        let name = physical(cx, resource, side);
        answer
            .structs(self.results)
            .find(|r| r.i8("ResourceType") == resource.i8("ResourceType") && r.str("ResourceName") == name)
    }
}

impl Plan for Configs {
    fn begin(&mut self, cx: &mut Cx<'_>) -> bool {
        if !self.is_change {
            return true;
        }
        let topics = self.resources.iter().filter(|r| r.i8("ResourceType") == TOPIC);
        let names = topics.map(|r| Arc::from(r.str("ResourceName"))).collect();
        self.change = cx.shared.changes.begin(names, ChangeKind::Topic, cx.snapshot.revision);
        self.change.is_some()
    }

    fn asks(&mut self, cx: &mut Cx<'_>) -> Vec<Ask> {
        let items = self.resources.iter().map(|r| Item::at(self.places(cx, r))).collect();
        let can_rehearse = self.is_change && !self.is_rehearsal();
        self.rounds = Rounds::new(items, can_rehearse);
        self.more(cx, &[])
    }

    fn more(&mut self, cx: &mut Cx<'_>, answers: &[Option<Struct>]) -> Vec<Ask> {
        let mut rounds = std::mem::take(&mut self.rounds);
        let asks = rounds.next(cx, self, answers);
        self.rounds = rounds;
        asks
    }

    fn merge(&mut self, cx: &mut Cx<'_>, answers: Vec<Option<Struct>>) -> Step {
        let Some(mut response) = cx.empty_response() else { return Step::Done };
        response.set("ThrottleTimeMs", fan::throttle_ms(&answers));
        if self.rounds.items.is_empty() {
            let held = || Err((code::REQUEST_TIMED_OUT, "the topic is being moved: try again".to_owned()));
            self.rounds.items = self.resources.iter().map(|_| Item::at(held())).collect();
        }
        for (index, resource) in self.resources.iter().enumerate() {
            let mut out = response.new_element(self.results);
            match self.rounds.fared(cx, self, index, &answers) {
                Fared::Refused((error, message)) => {
                    out.set("ErrorCode", error);
                    out.set("ErrorMessage", message);
                }
                Fared::Told(found) => out = found.clone(),
            }
            out.set("ResourceType", resource.get("ResourceType").clone());
            out.set("ResourceName", resource.get("ResourceName").clone());
            if !self.is_change && matches!(resource.i8("ResourceType"), BROKER) {
                hide_addresses(cx, &mut out, resource.str("ResourceName"));
            }
            response.push(self.results, out);
        }
        Step::Reply(response)
    }

    fn patience_ms(&self) -> i64 {
        PATIENCE_MS
    }

    fn is_change(&self) -> bool {
        self.is_change
    }
}

/// A broker's id and listeners are those of the virtual node; other addresses are not shown.
fn hide_addresses(cx: &Cx<'_>, result: &mut Struct, id: &str) {
    let node = id.parse().ok().and_then(VirtualNode::from_virtual);
    let node = node.unwrap_or(VirtualNode { side: ClusterSide::Source, broker: -1 });
    let listener = common::address(cx, node).map(|(host, port)| format!("PLAINTEXT://{host}:{port}"));
    for config in result.structs_mut("Configs") {
        let shown = match config.str("Name") {
            "broker.id" | "node.id" => Some(id.to_owned()),
            "advertised.listeners" | "listeners" => listener.clone(),
            "zookeeper.connect" | "controller.quorum.voters" | "controller.quorum.bootstrap.servers" => None,
            _ => continue,
        };
        config.set("Value", shown.clone());
        config.reset("Synonyms");
    }
}
