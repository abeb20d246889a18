//! Makes snapshots of what is known and publishes them.

use super::{Control, State, StoredTopic};
use crossover_config::{Config, Mode, RoutePattern, Side};
use crossover_core::api::policy;
use crossover_core::ids::{ClusterSide, VirtualNode};
use crossover_core::node::{NodeMap, Topology};
use crossover_core::route::{
    GroupTable, LinkMode, RouteRule, RouteRules, RouteTable, RuleMatch, Snapshot, Timelines, TopicRoute,
};
use crossover_core::session::{ChangeKind, TopicChanges};
use crossover_core::timeline::Timeline;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use tracing::error;

impl Control {
    /// Takes in what a cluster looks like now.
    ///
    /// # Errors
    /// It is not the cluster that the state belongs to.
    pub(crate) async fn set_topology(&self, mut topology: Topology) -> anyhow::Result<()> {
        let side = topology.side;
        if let Err(problem) = self.check_binding(&topology).await {
            self.alarm("foreign-cluster", side.as_str(), problem.to_string(), crate::store::FOREIGN_REMEDY);
            return Err(problem);
        }
        let new_ports = {
            let mut state = self.state();
            topology.keep_addresses(&state.topologies[side.index()]);
            topology.keep_newer(&state.topologies[side.index()]);
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
        if let Err(problem) = self.enlarge().await {
            error!("partitions that were added cannot be stored, their topics stay frozen: {problem:#}");
        }
        self.publish();
        Ok(())
    }

    /// Gives partitions that both sides have got meanwhile a timeline of their own (RULES R26).
    async fn enlarge(&self) -> anyhow::Result<()> {
        let (revision, names) = {
            let state = self.state();
            let has_more =
                |(_, stored): &(&Arc<str>, &StoredTopic)| enlarged(stored, &state.topologies).is_some();
            let names = state.topics.iter().filter(has_more).map(|(name, _)| Arc::clone(name));
            (state.revision, names.collect::<Vec<_>>())
        };
        if names.is_empty() {
            return Ok(());
        }
        let _shapes = self.shapes.lock().await;
        for name in names {
            // A flip that closed the topic seals what it has read; one that comes now waits.
            let changes = &self.runtime.shared.changes;
            let topics = BTreeSet::from([Arc::clone(&name)]);
            let Some(_turn) = changes.begin(topics, ChangeKind::Records, revision) else { continue };
            let topic = {
                let state = self.state();
                state.topics.get(&name).and_then(|stored| enlarged(stored, &state.topologies))
            };
            let Some(topic) = topic else { continue };
            let text = format!("topic {name} has {} partitions now", topic.timelines.len());
            let entry = self.entry("topic-enlarged", None, text);
            let (at, stored) = (Arc::clone(&name), topic.clone());
            self.stored(move |store| store.put_topic(&at, &stored, &entry)).await?;
            self.state().topics.insert(name, topic);
        }
        Ok(())
    }

    /// The store belongs to one pair of clusters (RULES R31).
    async fn check_binding(&self, topology: &Topology) -> anyhow::Result<()> {
        let (side, id) = (topology.side, topology.cluster_id.clone());
        let bound = self.state().cluster_ids.clone();
        if let Some(problem) = crate::store::foreign(&bound, side, &id) {
            anyhow::bail!(problem);
        }
        match &bound[side.index()] {
            Some(_) => Ok(()),
            None if bound[side.other().index()].as_ref() == Some(&id) => {
                self.unbind_unused(side.other()).await?;
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

    /// Which of the two was meant is not known: a state that holds nothing yet must not keep the wrong one for ever.
    async fn unbind_unused(&self, side: ClusterSide) -> anyhow::Result<()> {
        {
            let mut state = self.state();
            if !state.topics.is_empty() || !state.homes.is_empty() || !state.offset_homes.is_empty() {
                return Ok(());
            }
            state.cluster_ids[side.index()] = None;
        }
        self.stored(move |store| store.unbind(side)).await
    }

    /// Publishes a snapshot of the state as it is. Under the state's lock: an older snapshot must never follow a newer.
    pub(crate) fn publish(&self) {
        let mut frozen = BTreeMap::new();
        {
            let mut state = self.state();
            let changes = &self.runtime.shared.changes;
            let next = snapshot(&self.runtime.config, &state, changes);
            for route in next.routes.topics.values() {
                let id = route.timeline_id();
                let known = state.timeline_ids.insert(Arc::clone(&route.name), id);
                if known.is_some_and(|known| known != id) {
                    // Deleted and created again: nothing of what was learnt holds for the new topic.
                    self.runtime.shared.forget_topic(&route.name);
                }
                if let (true, Some(why)) = (route.is_moved(), &route.frozen) {
                    frozen.insert(Arc::clone(&route.name), Arc::clone(why));
                }
            }
            self.runtime.publish(next);
        }
        self.alarm_frozen(&frozen);
    }

    /// A frozen route waits for a person (RULES R26).
    fn alarm_frozen(&self, frozen: &BTreeMap<Arc<str>, Arc<str>>) {
        let remedy = "give both sides the same number of partitions, or delete the topic through the proxy and create it again";
        for (topic, why) in frozen {
            if self.alarm("frozen-route", topic, format!("topic {topic}: {why}"), remedy) {
                self.refresh.iter().for_each(tokio::sync::Notify::notify_one);
            }
        }
        let raised = self.alarms_named("frozen-route");
        for topic in raised.iter().filter(|topic| !frozen.contains_key(topic.as_str())) {
            self.lift("frozen-route", topic);
        }
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
pub(crate) fn snapshot(config: &Config, state: &State, changes: &TopicChanges) -> Snapshot {
    let rules = Arc::new(rules(config));
    let routes = route_table(rules, state, changes);
    let ports =
        state.ports.iter().map(|((side, broker), port)| (VirtualNode::new(*side, *broker), *port)).collect();
    let nodes = NodeMap { host: config.listener.advertised_host.clone(), ports };
    let id = state.cluster_ids[0].clone().or_else(|| state.cluster_ids[1].clone()).unwrap_or_default();
    let [source, target] = &state.topologies;
    Snapshot {
        revision: state.revision,
        topologies: state.topologies.clone(),
        routes: Arc::new(routes),
        groups: Arc::new(GroupTable {
            homes: state.homes.clone(),
            offset_homes: state.offset_homes.clone(),
            moving: state.moving.clone(),
        }),
        transactions: Arc::clone(&state.transactions),
        taken_over: state.taken_over,
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

fn route_table(rules: Arc<RouteRules>, state: &State, changes: &TopicChanges) -> RouteTable {
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
        let mut route = match state.topics.get(&name) {
            Some(stored) => stored_route(&name, stored, state, changes),
            None => rules.initial_route(&name, &state.topologies),
        };
        for ((_, partition), floor) in
            state.floors.range((Arc::clone(&name), 0)..=(Arc::clone(&name), i32::MAX))
        {
            if floor.timeline_id == route.timeline_id() {
                route.raise_floor(*partition, floor.offset);
            }
        }
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

fn stored_route(name: &Arc<str>, stored: &StoredTopic, state: &State, changes: &TopicChanges) -> TopicRoute {
    TopicRoute {
        name: Arc::clone(name),
        owner: stored.owner,
        mode: stored.mode,
        physical: stored.physical.clone(),
        virtual_id: stored.virtual_id,
        native_ids: stored.native_ids,
        timelines: Timelines::PerPartition(stored.timelines.clone()),
        frozen: frozen(stored, &state.topologies, changes.is_changing(name)).map(Arc::from),
    }
}

/// A topic as it is when both sides have more partitions than it had, as many as each other. A new one's timeline starts
/// now, on the owner's side: whatever the other side's holds was not written through the proxy.
fn enlarged(stored: &StoredTopic, topologies: &[Arc<Topology>; 2]) -> Option<StoredTopic> {
    let mut wanted = None;
    for side in ClusterSide::BOTH {
        let topology = &topologies[side.index()];
        let Some(topic) = topology.topic(&stored.physical[side.index()]) else {
            if side == stored.owner {
                return None;
            }
            continue;
        };
        let known = stored.native_ids[side.index()];
        let is_it = known.is_zero() || topic.id.is_zero() || topic.id == known;
        let count = topic.partitions.len();
        if !topology.reachable || !is_it || wanted.is_some_and(|wanted| wanted != count) {
            return None;
        }
        wanted = Some(count);
    }
    let wanted = wanted.filter(|wanted| *wanted > stored.timelines.len())?;
    let id = stored.timelines.first()?.id();
    let mut all = stored.clone();
    all.timelines.resize_with(wanted, || Arc::new(Timeline::initial(id, stored.owner)));
    Some(all)
}

/// Why a topic must not be used (RULES R26): it is not the one whose timeline is stored. While a client changes it
/// through the proxy, the sides may differ in their partitions.
fn frozen(stored: &StoredTopic, topologies: &[Arc<Topology>; 2], changing: bool) -> Option<String> {
    for side in ClusterSide::BOTH {
        let topology = &topologies[side.index()];
        let Some(topic) = topology.topic(&stored.physical[side.index()]).filter(|_| topology.reachable)
        else {
            continue;
        };
        let known = stored.native_ids[side.index()];
        if !known.is_zero() && !topic.id.is_zero() && topic.id != known {
            return Some(format!("the topic was deleted and created again on the {side}"));
        }
        if topic.partitions.len() != stored.timelines.len() && !changing {
            let (has, had) = (topic.partitions.len(), stored.timelines.len());
            return Some(format!("the topic has {has} partitions on the {side}, its timeline has {had}"));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crossover_core::ids::{NativeOffset, TopicId, VirtualOffset};
    use crossover_core::node::{PartitionInfo, TopicInfo};
    use crossover_core::timeline::Boundary;

    const IDS: [TopicId; 2] = [TopicId([1; 16]), TopicId([2; 16])];

    /// A side whose topic has `partitions`; none where it has no such topic.
    fn side(side: ClusterSide, partitions: Option<usize>, id: TopicId) -> Arc<Topology> {
        let mut topology = Topology::unknown(side);
        topology.reachable = true;
        let partition = PartitionInfo { leader: 1, epoch: 0, replicas: vec![1], isr: vec![1] };
        if let Some(count) = partitions {
            let name: Arc<str> = Arc::from("orders");
            let info = TopicInfo {
                name: Arc::clone(&name),
                id,
                internal: false,
                partitions: vec![partition; count],
            };
            topology.topics.insert(name, Arc::new(info));
        }
        Arc::new(topology)
    }

    fn sides(source: Option<usize>, target: Option<usize>) -> [Arc<Topology>; 2] {
        [side(ClusterSide::Source, source, IDS[0]), side(ClusterSide::Target, target, IDS[1])]
    }

    /// Two partitions that were moved to the target once.
    fn stored() -> StoredTopic {
        let boundary = Boundary {
            to: ClusterSide::Target,
            old_native_end: NativeOffset(100),
            new_native_start: NativeOffset(10),
            old_native_epoch: 0,
            highest_virtual_epoch_seen: 0,
            new_native_epoch: 0,
            identity: false,
            at_ms: 1,
        };
        let timeline = Arc::new(Timeline::initial(7, ClusterSide::Source).seal(&boundary).expect("sealed"));
        StoredTopic {
            owner: ClusterSide::Target,
            mode: LinkMode::Continue,
            physical: [Arc::from("orders"), Arc::from("orders")],
            virtual_id: IDS[0],
            native_ids: IDS,
            timelines: vec![timeline; 2],
        }
    }

    #[test]
    fn r26_a_partition_born_in_an_era_has_a_timeline_that_starts_there() {
        let stored = stored();
        let all = enlarged(&stored, &sides(Some(3), Some(3))).expect("enlarged");
        assert_eq!(all.timelines[..2], stored.timelines[..]);
        let born = &all.timelines[2];
        assert_eq!((born.past_eras(), born.current().side, born.id()), (0, ClusterSide::Target, 7));
        assert_eq!(born.locate(VirtualOffset(5)).native, NativeOffset(5));
        // The other side may not have the topic any more.
        assert!(enlarged(&stored, &sides(None, Some(3))).is_some());
    }

    #[test]
    fn r26_partitions_that_one_side_lacks_have_no_timeline() {
        for (source, target) in [(Some(2), Some(3)), (Some(3), Some(2)), (Some(3), None), (Some(2), Some(2))]
        {
            assert!(enlarged(&stored(), &sides(source, target)).is_none(), "{source:?} {target:?}");
        }
        let mut down = sides(Some(3), Some(3));
        Arc::make_mut(&mut down[0]).reachable = false;
        assert!(enlarged(&stored(), &down).is_none());
        let recreated =
            [side(ClusterSide::Source, Some(3), TopicId([9; 16])), sides(None, Some(3))[1].clone()];
        assert!(enlarged(&stored(), &recreated).is_none());
    }

    #[test]
    fn r26_unequal_partitions_and_another_topic_id_freeze_the_route() {
        let stored = stored();
        assert_eq!(frozen(&stored, &sides(Some(2), Some(2)), false), None);
        let unequal = sides(Some(2), Some(3));
        assert!(
            frozen(&stored, &unequal, false).is_some_and(|why| why.contains("3 partitions on the target"))
        );
        assert_eq!(frozen(&stored, &unequal, true), None, "a client is changing it through the proxy");
        let recreated = [side(ClusterSide::Source, Some(2), TopicId([9; 16])), unequal[1].clone()];
        for changing in [false, true] {
            let why = frozen(&stored, &recreated, changing);
            assert!(why.is_some_and(|why| why.contains("created again on the source")));
        }
    }

    #[test]
    fn r25_floors_show_in_the_table_unless_they_are_of_a_topic_that_is_gone() {
        let mut state = State::from_restored(&crate::store::Restored::default());
        state.topologies = sides(Some(2), Some(2));
        let rules = Arc::new(RouteRules { default_side: ClusterSide::Source, rules: Vec::new() });
        let id = crossover_core::route::timeline_id(IDS[0], "orders");
        for (partition, timeline_id) in [(0, id), (1, id + 1)] {
            let floor = crate::store::Floor { timeline_id, offset: VirtualOffset(40) };
            state.floors.insert((Arc::from("orders"), partition), floor);
        }
        let table = route_table(rules, &state, &TopicChanges::default());
        let route = table.topic("orders").expect("there");
        let floors = [0, 1].map(|p| route.timeline(p).expect("there").floor().0);
        assert_eq!((floors, route.is_moved()), ([40, 0], false));
    }
}
