//! Which side owns a topic, as one immutable table per [`Revision`], and everything else a request is planned with.

use crate::ids::{ClusterSide, Revision, TopicId, VirtualOffset};
use crate::node::{ApiRanges, NodeMap, PartitionInfo, Topology};
use crate::producer::transaction::TransactionTable;
use crate::timeline::Timeline;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

/// The proxy's own topic, with the copy of its state, on both sides (RULES R31).
pub const STATE_TOPIC: &str = "__crossover_state";

/// What the new owner holds at a flip (DESIGN §4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkMode {
    /// The virtual log goes on in the new owner; history stays where it was written.
    Continue,
    /// An offset-preserving replicator keeps both logs equal: delta 0, verified at the boundary.
    Identity,
}

impl LinkMode {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            LinkMode::Continue => "continue",
            LinkMode::Identity => "identity",
        }
    }
}

/// The virtual logs of a topic's partitions.
#[derive(Clone, Debug)]
pub enum Timelines {
    /// Never flipped: one era, the same for every partition but for those of which records were deleted (RULES R25).
    Initial { all: Arc<Timeline>, floored: BTreeMap<i32, Arc<Timeline>> },
    /// One per partition, by index.
    PerPartition(Vec<Arc<Timeline>>),
}

/// The route of one topic.
#[derive(Clone, Debug)]
pub struct TopicRoute {
    /// The name clients use.
    pub name: Arc<str>,
    pub owner: ClusterSide,
    pub mode: LinkMode,
    /// The topic's name in each cluster, by [`ClusterSide::index`].
    pub physical: [Arc<str>; 2],
    /// The stable id clients see: the id of the side that held era 0. Zero when that cluster has no topic ids.
    pub virtual_id: TopicId,
    /// Each side's own id, by [`ClusterSide::index`]; zero where unknown.
    pub native_ids: [TopicId; 2],
    pub timelines: Timelines,
    /// Set while the route must not be used (RULES R22, R26): every request gets a retriable error.
    pub frozen: Option<Arc<str>>,
}

impl TopicRoute {
    #[must_use]
    pub fn physical(&self, side: ClusterSide) -> &Arc<str> {
        &self.physical[side.index()]
    }

    #[must_use]
    pub fn native_id(&self, side: ClusterSide) -> TopicId {
        self.native_ids[side.index()]
    }

    /// The virtual log of a partition; `None` for a partition the topic does not have.
    #[must_use]
    pub fn timeline(&self, partition: i32) -> Option<&Arc<Timeline>> {
        match &self.timelines {
            Timelines::Initial { all, floored } => {
                (partition >= 0).then(|| floored.get(&partition).unwrap_or(all))
            }
            Timelines::PerPartition(all) => all.get(usize::try_from(partition).ok()?),
        }
    }

    /// Nothing of a partition below `floor` shows any more.
    pub fn raise_floor(&mut self, partition: i32, floor: VirtualOffset) {
        let Some(timeline) = self.timeline(partition) else { return };
        let raised = Arc::new(timeline.with_floor(floor));
        match &mut self.timelines {
            Timelines::Initial { floored, .. } => drop(floored.insert(partition, raised)),
            Timelines::PerPartition(all) => {
                let place = usize::try_from(partition).ok().and_then(|index| all.get_mut(index));
                place.into_iter().for_each(|place| *place = Arc::clone(&raised));
            }
        }
    }

    /// What names the topic's timelines: another one once the topic was deleted and created again.
    #[must_use]
    pub fn timeline_id(&self) -> u64 {
        self.timeline(0).map_or_else(|| timeline_id(self.virtual_id, &self.name), |t| t.id())
    }

    /// Whether the topic was ever flipped; until then every position is identical on the owner and in the virtual log.
    #[must_use]
    pub fn is_moved(&self) -> bool {
        matches!(self.timelines, Timelines::PerPartition(_))
    }
}

/// One rule of the configuration: the route of topics it names before any flip.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteRule {
    pub matches: RuleMatch,
    pub side: ClusterSide,
    pub mode: LinkMode,
    /// Physical names by [`ClusterSide::index`]; only for exact names.
    pub physical: [Option<Arc<str>>; 2],
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RuleMatch {
    Exact(Arc<str>),
    Prefix(Arc<str>),
}

/// The configured rules: an exact name before the longest prefix before the default.
#[derive(Clone, Debug)]
pub struct RouteRules {
    pub default_side: ClusterSide,
    pub rules: Vec<RouteRule>,
}

impl RouteRules {
    #[must_use]
    pub fn find(&self, topic: &str) -> Option<&RouteRule> {
        let rank = |rule: &RouteRule| match &rule.matches {
            RuleMatch::Exact(name) if **name == *topic => Some(usize::MAX),
            RuleMatch::Prefix(prefix) if topic.starts_with(&**prefix) => Some(prefix.len()),
            _ => None,
        };
        self.rules
            .iter()
            .filter_map(|rule| Some((rank(rule)?, rule)))
            .max_by_key(|(rank, _)| *rank)
            .map(|r| r.1)
    }

    /// The route of a topic that was never flipped.
    #[must_use]
    pub fn initial_route(&self, topic: &Arc<str>, topologies: &[Arc<Topology>; 2]) -> TopicRoute {
        let rule = self.find(topic);
        let owner = rule.map_or(self.default_side, |r| r.side);
        let physical = ClusterSide::BOTH.map(|side| {
            rule.and_then(|r| r.physical[side.index()].clone()).unwrap_or_else(|| Arc::clone(topic))
        });
        let native_ids = ClusterSide::BOTH
            .map(|s| topologies[s.index()].topic(&physical[s.index()]).map_or(TopicId::ZERO, |t| t.id));
        let virtual_id = native_ids[owner.index()];
        let timeline = Timeline::initial(timeline_id(virtual_id, topic), owner);
        TopicRoute {
            name: Arc::clone(topic),
            owner,
            mode: rule.map_or(LinkMode::Continue, |r| r.mode),
            physical,
            virtual_id,
            native_ids,
            timelines: Timelines::Initial { all: Arc::new(timeline), floored: BTreeMap::new() },
            frozen: None,
        }
    }
}

/// Names a topic's timelines in commit tags (RULES R27): a topic that is deleted and created again gets another.
#[must_use]
pub fn timeline_id(id: TopicId, name: &str) -> u64 {
    // FNV-1a: stable across processes and versions, which a tag that outlives both needs.
    let bytes = if id.is_zero() { name.as_bytes() } else { &id.0[..] };
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, b| (hash ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3))
}

/// The routes of all known topics. Immutable; published whole.
#[derive(Clone, Debug)]
pub struct RouteTable {
    pub rules: Arc<RouteRules>,
    pub topics: HashMap<Arc<str>, Arc<TopicRoute>>,
    /// Virtual topic id → virtual name.
    pub names: HashMap<TopicId, Arc<str>>,
    /// Physical name → virtual name, per side, only where they differ.
    pub virtual_names: [HashMap<Arc<str>, Arc<str>>; 2],
}

impl RouteTable {
    #[must_use]
    pub fn topic(&self, name: &str) -> Option<&Arc<TopicRoute>> {
        self.topics.get(name)
    }

    #[must_use]
    pub fn topic_by_id(&self, id: TopicId) -> Option<&Arc<TopicRoute>> {
        self.topics.get(self.names.get(&id)?)
    }

    /// The owner of a topic, known or not.
    #[must_use]
    pub fn owner(&self, name: &str) -> ClusterSide {
        self.topic(name).map_or_else(
            || self.rules.find(name).map_or(self.rules.default_side, |r| r.side),
            |route| route.owner,
        )
    }

    /// The virtual name of a topic that a cluster calls `physical`.
    #[must_use]
    pub fn virtual_name<'a>(&'a self, side: ClusterSide, physical: &'a str) -> &'a str {
        self.virtual_names[side.index()].get(physical).map_or(physical, |name| name)
    }
}

/// Where consumer groups live. A group without an entry is at home on the default side.
#[derive(Clone, Debug, Default)]
pub struct GroupTable {
    pub homes: BTreeMap<Arc<str>, ClusterSide>,
    /// Where the commits of groups are whose offsets are committed in transactions: with the transactions, wherever the
    /// members are (ADR 13). The commits of all others are where their members are.
    pub offset_homes: BTreeMap<Arc<str>, ClusterSide>,
    /// Groups that are being moved right now, with the side they move to.
    pub moving: BTreeMap<Arc<str>, ClusterSide>,
}

/// Everything one event of a connection is planned with. Loaded once per event, never re-read inside it.
#[derive(Clone, Debug)]
pub struct Snapshot {
    pub revision: Revision,
    pub topologies: [Arc<Topology>; 2],
    pub routes: Arc<RouteTable>,
    pub groups: Arc<GroupTable>,
    pub transactions: Arc<TransactionTable>,
    pub nodes: Arc<NodeMap>,
    /// The constant cluster id clients see.
    pub cluster_id: Arc<str>,
    /// What ApiVersions answers: the intersection of the policy table and both clusters.
    pub advertised: Arc<ApiRanges>,
    /// Finalized features both clusters share, at the lower level.
    pub features: Arc<BTreeMap<String, (i16, i16)>>,
    /// Another process serves this pair of clusters: this one takes no produce and no commits any more (RULES R31).
    pub taken_over: bool,
    /// Topics of a flip between PREPARE and RELEASE: their fetch waits are kept short (RULES R15).
    pub preparing: Arc<BTreeSet<Arc<str>>>,
}

impl Snapshot {
    #[must_use]
    pub fn topology(&self, side: ClusterSide) -> &Arc<Topology> {
        &self.topologies[side.index()]
    }

    #[must_use]
    pub fn group_home(&self, group: &str) -> ClusterSide {
        self.groups.homes.get(group).copied().unwrap_or(self.routes.rules.default_side)
    }

    /// Where a group's commits are.
    #[must_use]
    pub fn offset_home(&self, group: &str) -> ClusterSide {
        self.groups.offset_homes.get(group).copied().unwrap_or_else(|| self.group_home(group))
    }

    #[must_use]
    pub fn transaction_home(&self, id: &str) -> ClusterSide {
        self.transactions.home(id, self.routes.rules.default_side)
    }

    /// A topic's partition as the cluster of one side tells it.
    #[must_use]
    pub fn partition(&self, route: &TopicRoute, partition: i32, side: ClusterSide) -> Option<&PartitionInfo> {
        self.topology(side).partition(route.physical(side), partition)
    }

    /// The leader of a topic's partition on one side, by the virtual name.
    #[must_use]
    pub fn leader(&self, route: &TopicRoute, partition: i32, side: ClusterSide) -> Option<i32> {
        self.topology(side).leader(route.physical(side), partition)
    }
}
