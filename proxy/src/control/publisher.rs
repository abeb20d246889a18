//! Makes snapshots of what is known and publishes them.

use super::{Control, State};
use crossover_config::{Config, Mode, RoutePattern, Side};
use crossover_core::api::policy;
use crossover_core::ids::{ClusterSide, VirtualNode};
use crossover_core::node::{NodeMap, Topology};
use crossover_core::route::{
    GroupTable, LinkMode, RouteRule, RouteRules, RouteTable, RuleMatch, Snapshot, Timelines, TopicRoute,
};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use tracing::error;

impl Control {
    /// Takes in what a cluster looks like now.
    ///
    /// # Errors
    /// It is not the cluster that the state belongs to.
    pub(crate) async fn set_topology(&self, topology: Topology) -> anyhow::Result<()> {
        let side = topology.side;
        if let Err(problem) = self.check_binding(&topology).await {
            self.alarm(
                "foreign-cluster",
                side.as_str(),
                problem.to_string(),
                "point the configuration at the clusters this state belongs to, or name another state.directory",
            );
            return Err(problem);
        }
        let new_ports = {
            let mut state = self.state();
            state.topologies[side.index()] = Arc::new(topology);
            assign_ports(&self.runtime.config, &mut state)
        };
        match new_ports {
            Ok(ports) if ports.is_empty() => {}
            Ok(ports) => {
                if let Err(problem) = self.stored(move |store| store.put_ports(&ports)).await {
                    error!("the ports cannot be stored: {problem:#}");
                }
            }
            Err(exhausted) => {
                self.alarm("ports-exhausted", "", exhausted, "widen listener.node_ports and restart");
            }
        }
        self.publish();
        Ok(())
    }

    /// The store belongs to one pair of clusters (RULES R31).
    async fn check_binding(&self, topology: &Topology) -> anyhow::Result<()> {
        let (side, id) = (topology.side, topology.cluster_id.clone());
        let (own, other) = {
            let state = self.state();
            (state.cluster_ids[side.index()].clone(), state.cluster_ids[side.other().index()].clone())
        };
        match own {
            Some(known) if known == id => Ok(()),
            Some(known) => {
                let swapped = other.is_some_and(|o| o == id);
                let hint = if swapped { "; source and target are swapped" } else { "" };
                anyhow::bail!("the {side} is cluster {id}, the state belongs to {known}{hint}")
            }
            None if other.is_some_and(|o| o == id) => {
                anyhow::bail!(
                    "the {side} is cluster {id}, and so is the {}: they must be two clusters",
                    side.other()
                )
            }
            None => {
                self.state().cluster_ids[side.index()] = Some(id.clone());
                self.stored(move |store| store.bind(side, &id)).await
            }
        }
    }

    /// Publishes a snapshot of the state as it is. Under the state's lock: an older snapshot must never follow a newer.
    pub(crate) fn publish(&self) {
        let state = self.state();
        self.runtime.publish(snapshot(&self.runtime.config, &state));
    }
}

/// A node and the port it has from now on.
type NodePort = ((ClusterSide, i32), u16);

/// Gives every broker without a port the next free one (RULES R32).
fn assign_ports(config: &Config, state: &mut State) -> Result<Vec<NodePort>, String> {
    let mut fresh = Vec::new();
    for side in ClusterSide::BOTH {
        for broker in state.topologies[side.index()].brokers.clone().into_keys() {
            if state.ports.contains_key(&(side, broker)) {
                continue;
            }
            let used: BTreeSet<u16> = state.ports.values().copied().collect();
            let range = config.listener.node_ports;
            let free = (range.first..=range.last).find(|p| !used.contains(p));
            let port = free.ok_or_else(|| {
                format!(
                    "listener.node_ports {}-{} has no port left for broker {broker} of the {side}",
                    range.first, range.last
                )
            })?;
            state.ports.insert((side, broker), port);
            fresh.push(((side, broker), port));
        }
    }
    Ok(fresh)
}

/// The snapshot of a state.
pub(crate) fn snapshot(config: &Config, state: &State) -> Snapshot {
    let rules = Arc::new(rules(config));
    let routes = route_table(rules, state);
    let ports =
        state.ports.iter().map(|((side, broker), port)| (VirtualNode::new(*side, *broker), *port)).collect();
    let nodes = NodeMap { host: config.listener.advertised_host.clone(), ports };
    let id = state.cluster_ids[0].clone().or_else(|| state.cluster_ids[1].clone()).unwrap_or_default();
    let [source, target] = &state.topologies;
    Snapshot {
        revision: state.revision,
        topologies: state.topologies.clone(),
        routes: Arc::new(routes),
        groups: Arc::new(GroupTable { homes: state.homes.clone(), moving: state.moving.clone() }),
        nodes: Arc::new(nodes),
        cluster_id: Arc::from(id),
        advertised: Arc::new(policy::advertised(&source.api_ranges, &target.api_ranges)),
        features: Arc::new(shared_features(source, target)),
        preparing: Arc::new(state.preparing.clone()),
    }
}

/// Features both clusters have finalized, at the lower level.
fn shared_features(source: &Topology, target: &Topology) -> BTreeMap<String, (i16, i16)> {
    let seen = |t: &Topology| !t.api_ranges.0.is_empty();
    match (seen(source), seen(target)) {
        (true, false) => source.features.clone(),
        (false, true) => target.features.clone(),
        _ => {
            let both = source.features.iter().filter_map(|(name, (min, max))| {
                let (other_min, other_max) = target.features.get(name)?;
                Some((name.clone(), ((*min).min(*other_min), (*max).min(*other_max))))
            });
            both.collect()
        }
    }
}

pub(crate) fn rules(config: &Config) -> RouteRules {
    let rules = config.routing.routes.iter().map(|rule| {
        let (matches, physical) = match &rule.pattern {
            RoutePattern::Exact { topic, source_topic, target_topic } => (
                RuleMatch::Exact(Arc::from(topic.as_str())),
                [Some(Arc::from(source_topic.as_str())), Some(Arc::from(target_topic.as_str()))],
            ),
            RoutePattern::Prefix(prefix) => (RuleMatch::Prefix(Arc::from(prefix.as_str())), [None, None]),
        };
        RouteRule { matches, side: core_side(rule.side), mode: link_mode(rule.mode), physical }
    });
    RouteRules { default_side: core_side(config.routing.default_side), rules: rules.collect() }
}

pub(crate) fn core_side(side: Side) -> ClusterSide {
    match side {
        Side::Source => ClusterSide::Source,
        Side::Target => ClusterSide::Target,
    }
}

fn link_mode(mode: Mode) -> LinkMode {
    match mode {
        Mode::Continue => LinkMode::Continue,
        Mode::Identity => LinkMode::Identity,
    }
}

fn route_table(rules: Arc<RouteRules>, state: &State) -> RouteTable {
    let mut virtual_names: [HashMap<Arc<str>, Arc<str>>; 2] = [HashMap::new(), HashMap::new()];
    for rule in &rules.rules {
        let RuleMatch::Exact(name) = &rule.matches else { continue };
        for side in ClusterSide::BOTH {
            if let Some(physical) = rule.physical[side.index()].as_ref().filter(|p| *p != name) {
                virtual_names[side.index()].insert(Arc::clone(physical), Arc::clone(name));
            }
        }
    }
    let mut names: BTreeSet<Arc<str>> = state.topics.keys().cloned().collect();
    for side in ClusterSide::BOTH {
        for physical in state.topologies[side.index()].topics.keys() {
            names.insert(virtual_names[side.index()].get(physical).unwrap_or(physical).clone());
        }
    }
    let mut topics = HashMap::new();
    for name in names {
        let route = match state.topics.get(&name) {
            Some(stored) => stored_route(&name, stored, state),
            None => rules.initial_route(&name, &state.topologies),
        };
        let owner = &state.topologies[route.owner.index()];
        // A copy on the side that does not own the name is nobody's topic.
        if route.is_moved() || owner.topic(route.physical(route.owner)).is_some() {
            topics.insert(name, Arc::new(route));
        }
    }
    let ids = topics.values().filter(|r| !r.virtual_id.is_zero());
    let names = ids.map(|r| (r.virtual_id, Arc::clone(&r.name))).collect();
    RouteTable { rules, topics, names, virtual_names }
}

fn stored_route(name: &Arc<str>, stored: &super::StoredTopic, state: &State) -> TopicRoute {
    TopicRoute {
        name: Arc::clone(name),
        owner: stored.owner,
        mode: stored.mode,
        physical: stored.physical.clone(),
        virtual_id: stored.virtual_id,
        native_ids: stored.native_ids,
        timelines: Timelines::PerPartition(stored.timelines.clone()),
        frozen: frozen(stored, state).map(Arc::from),
    }
}

/// Why a topic must not be used (RULES R26): it is not the one whose timeline is stored.
fn frozen(stored: &super::StoredTopic, state: &State) -> Option<String> {
    for side in ClusterSide::BOTH {
        let topology = &state.topologies[side.index()];
        let Some(topic) = topology.topic(&stored.physical[side.index()]).filter(|_| topology.reachable)
        else {
            continue;
        };
        let known = stored.native_ids[side.index()];
        if !known.is_zero() && !topic.id.is_zero() && topic.id != known {
            return Some(format!("the topic was deleted and created again on the {side}"));
        }
        if topic.partitions.len() != stored.timelines.len() {
            let (has, had) = (topic.partitions.len(), stored.timelines.len());
            return Some(format!("the topic has {has} partitions on the {side}, its timeline has {had}"));
        }
    }
    None
}
