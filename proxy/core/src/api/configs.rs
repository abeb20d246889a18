//! DescribeConfigs (key 32), AlterConfigs (33) and IncrementalAlterConfigs (44): topics at their owner, a broker at the
//! broker that its virtual id names, a group at its home, everything else at the default side.
//!
//! Source: KIP-133, KIP-339, `DescribeConfigsRequest.json`, `AlterConfigsRequest.json`.

use super::common;
use super::fan::{self, Ask, Plan};
use super::key;
use crate::error_code as code;
use crate::ids::{ClusterSide, VirtualNode};
use crate::schema::Struct;
use crate::session::{Class, Cx, Step, UpstreamKey};
use std::collections::BTreeMap;

const TOPIC: i8 = 2;
const BROKER: i8 = 4;
const BROKER_LOGGER: i8 = 8;
const GROUP: i8 = 32;

/// How long brokers are waited for, milliseconds.
const PATIENCE_MS: i64 = 15_000;

/// Where a resource is dealt with.
enum Place {
    Refused(i16, &'static str),
    /// The index of the ask, and the resource's name in it.
    Asked(usize, String),
}

/// A request about configurations.
pub(super) struct Configs {
    request: Struct,
    is_change: bool,
    results: &'static str,
    places: Vec<Place>,
}

impl Configs {
    #[must_use]
    pub(super) fn new(api_key: i16, request: Struct) -> Configs {
        let is_change = api_key != key::DESCRIBE_CONFIGS;
        let results = if is_change { "Responses" } else { "Results" };
        Configs { request, is_change, results, places: Vec::new() }
    }

    fn topic(&self, cx: &Cx<'_>, name: &str) -> Result<(UpstreamKey, String), (i16, &'static str)> {
        let route = cx.snapshot.routes.topic(name);
        if self.is_change && route.is_some_and(|r| r.is_moved()) {
            return Err((
                code::POLICY_VIOLATION,
                "the topic is being migrated: change its configuration in both clusters",
            ));
        }
        if self.is_change && cx.snapshot.preparing.contains(name) {
            return Err((code::REQUEST_TIMED_OUT, "the topic is being moved: try again"));
        }
        let side = cx.snapshot.routes.owner(name);
        let upstream =
            cx.any_upstream(side).ok_or((code::REQUEST_TIMED_OUT, "the topic's cluster is not known yet"))?;
        Ok((upstream, common::physical_name(cx, name, side)))
    }

    fn place(&self, cx: &Cx<'_>, resource: &Struct) -> Result<(UpstreamKey, String), (i16, &'static str)> {
        let name = resource.str("ResourceName");
        let at = |side| {
            let upstream = cx.any_upstream(side);
            let upstream = upstream.ok_or((code::REQUEST_TIMED_OUT, "the cluster is not known yet"))?;
            Ok((upstream, name.to_owned()))
        };
        match resource.i8("ResourceType") {
            TOPIC => self.topic(cx, name),
            // The empty name stands for the defaults of a cluster's brokers.
            BROKER | BROKER_LOGGER if !name.is_empty() => {
                let node = name.parse().ok().and_then(VirtualNode::from_virtual);
                let node = node.filter(|n| cx.snapshot.topology(n.side).brokers.contains_key(&n.broker));
                let node = node.ok_or((code::INVALID_REQUEST, "no broker has this id"))?;
                Ok((cx.upstream(node.side, node.broker, Class::Produce), node.broker.to_string()))
            }
            GROUP => at(cx.snapshot.group_home(name)),
            // Tools ask any broker for what is a cluster's, and must not get now one cluster's answer, now the other's.
            _ => at(cx.snapshot.routes.rules.default_side),
        }
    }
}

impl Plan for Configs {
    fn asks(&mut self, cx: &mut Cx<'_>) -> Vec<Ask> {
        let mut asks: Vec<Ask> = Vec::new();
        let mut known: BTreeMap<UpstreamKey, usize> = BTreeMap::new();
        for resource in self.request.structs("Resources") {
            let (upstream, name) = match self.place(cx, resource) {
                Ok(found) => found,
                Err((error, message)) => {
                    self.places.push(Place::Refused(error, message));
                    continue;
                }
            };
            let index = *known.entry(upstream).or_insert(asks.len());
            if index == asks.len() {
                let mut body = self.request.clone();
                body.reset("Resources");
                asks.push(Ask { upstream, body });
            }
            let mut resource = resource.clone();
            resource.set("ResourceName", name.as_str());
            asks[index].body.push("Resources", resource);
            self.places.push(Place::Asked(index, name));
        }
        asks
    }

    fn merge(&mut self, cx: &mut Cx<'_>, answers: Vec<Option<Struct>>) -> Step {
        let Some(mut response) = cx.empty_response() else { return Step::Done };
        response.set("ThrottleTimeMs", fan::throttle_ms(&answers));
        for (resource, place) in self.request.structs("Resources").zip(&self.places) {
            let mut out = response.new_element(self.results);
            match place {
                Place::Refused(error, message) => {
                    out.set("ErrorCode", *error);
                    out.set("ErrorMessage", *message);
                }
                Place::Asked(index, name) => {
                    let is_it = |r: &&Struct| {
                        r.i8("ResourceType") == resource.i8("ResourceType") && r.str("ResourceName") == name
                    };
                    let answer = answers.get(*index).and_then(Option::as_ref);
                    match answer.and_then(|a| a.structs(self.results).find(is_it)) {
                        Some(found) => out = found.clone(),
                        None => out.set("ErrorCode", code::REQUEST_TIMED_OUT),
                    }
                }
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
