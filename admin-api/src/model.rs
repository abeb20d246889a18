//! What the API sends and takes: plain data with public fields, no type of the core.
//!
//! Times are milliseconds since the Unix epoch (`*_at_ms`, `*_ms` of an instant) or durations in milliseconds (`took_ms`,
//! `hold_ms`, `pause`). Offsets are virtual where the name says so, otherwise of the named cluster.

use crossover_core::ids::ClusterSide;
use serde_json::{Map, Value};

use crate::schema::{model, words};

words! {
    /// The role of a cluster.
    pub enum Side {
        Source = "source",
        Target = "target",
    }

    /// What the other cluster holds at a cutover.
    pub enum Mode {
        Continue = "continue",
        Identity = "identity",
    }

    /// What a rule of the route table names.
    pub enum RouteKind {
        /// One topic.
        Exact = "exact",
        /// All topics with a prefix.
        Prefix = "prefix",
        /// All other topics.
        Default = "default",
    }

    /// Outcome of one check of a plan.
    pub enum CheckResult {
        Passed = "passed",
        /// Refuses the operation.
        Failed = "failed",
        /// Worth knowing; does not refuse.
        Warned = "warned",
        /// Could not or need not be done; the detail says why.
        NotDone = "not_done",
    }

    /// What an operation does.
    pub enum OperationKind {
        Cutover = "cutover",
        Rollback = "rollback",
        GroupMove = "group_move",
    }

    /// How far an operation is. Until SEAL it can be aborted and returns to the old owner by itself; from SEAL on it is completed.
    pub enum OperationState {
        Prepare = "PREPARE",
        Fence = "FENCE",
        Drain = "DRAIN",
        Boundary = "BOUNDARY",
        Carry = "CARRY",
        Seal = "SEAL",
        Publish = "PUBLISH",
        Release = "RELEASE",
        Done = "DONE",
        Aborted = "ABORTED",
    }
}

impl OperationState {
    /// Nothing more will happen.
    #[must_use]
    pub fn is_final(self) -> bool {
        matches!(self, OperationState::Done | OperationState::Aborted)
    }
}

impl OperationView {
    /// The checks that refused it.
    pub fn failed(&self) -> impl Iterator<Item = &Check> {
        self.checks.iter().filter(|check| check.result == CheckResult::Failed)
    }
}

impl From<ClusterSide> for Side {
    fn from(side: ClusterSide) -> Side {
        match side {
            ClusterSide::Source => Side::Source,
            ClusterSide::Target => Side::Target,
        }
    }
}

impl From<Side> for ClusterSide {
    fn from(side: Side) -> ClusterSide {
        match side {
            Side::Source => ClusterSide::Source,
            Side::Target => ClusterSide::Target,
        }
    }
}

model! {
    /// Everything an operator asks first.
    pub struct Status {
        /// Version of the route table; a mutation names it.
        pub revision: u64,
        /// Clients can connect and be served.
        pub ready: bool,
        /// The operation that is running, if any.
        pub operation: Option<OperationView>,
        /// The operation that ended last, if any has since the start of the process.
        pub last_operation: Option<OperationView>,
        pub topics: Vec<TopicView>,
        pub groups: Vec<GroupView>,
        /// Producers with connections that have not followed a topic to its owner.
        pub producers_not_moved: Vec<ProducerView>,
        pub may_stop_source: Verdict,
        pub alarms: Vec<Alarm>,
    }

    /// A yes or no with its grounds.
    pub struct Verdict {
        pub answer: bool,
        /// Why not; empty when the answer is yes.
        pub reasons: Vec<String>,
    }

    /// Something that needs a person.
    pub struct Alarm {
        pub name: String,
        pub cause: String,
        pub remedy: String,
        pub since_ms: u64,
    }

    /// A topic as clients see it.
    pub struct TopicView {
        pub name: String,
        pub owner: Side,
        pub mode: Mode,
        /// Its name in the source cluster.
        pub source_topic: String,
        /// Its name in the target cluster.
        pub target_topic: String,
        /// Client connections served for this topic through a companion in the last 30 s.
        pub companions: u32,
        /// Producers with a connection to the former owner.
        pub producers_not_moved: u32,
        /// Why every request for it gets a retriable error; absent when it is served.
        pub frozen: Option<String>,
        /// Partitions with a produce request whose outcome is unknown since a connection was lost; they cannot be
        /// flipped until `timeouts.loss_grace_ms` has passed.
        pub unknown_partitions: Vec<i32>,
        /// Empty while the owner's cluster has not been seen since the start: how many there are is not known then.
        pub partitions: Vec<PartitionView>,
    }

    /// A partition and its timeline.
    pub struct PartitionView {
        pub partition: i32,
        /// In order; the last one belongs to the owner.
        pub eras: Vec<EraView>,
    }

    /// The time between two flips of one partition.
    pub struct EraView {
        pub index: u32,
        pub side: Side,
        /// First virtual offset.
        pub virtual_start: i64,
        /// First offset in the log of its cluster.
        pub native_start: i64,
        /// Offset after the last one; absent while the era is open.
        pub native_end: Option<i64>,
        /// Virtual leader epoch at its start.
        pub epoch_base: i32,
        /// When the flip that began it was sealed; absent for the first era.
        pub sealed_at_ms: Option<u64>,
        /// Whether its cluster still retains records of it; absent when not known.
        pub retained: Option<bool>,
    }

    /// A producer that still reaches a topic through its former owner's address.
    pub struct ProducerView {
        pub topic: String,
        pub client_id: String,
        /// Client library and version as announced; may be empty.
        pub software: String,
        /// Address of the client.
        pub peer: String,
    }

    /// A consumer group.
    pub struct GroupView {
        pub group: String,
        /// The side whose coordinator runs it.
        pub home: Side,
        /// The side that has its commits: another one only where they are part of transactions.
        pub commits: Side,
        /// Partitions whose committed position exists only as a virtual offset.
        pub tagged_commits: u32,
    }

    /// One cluster as Crossover sees it.
    pub struct ClusterView {
        pub side: Side,
        /// Absent until it has answered once.
        pub cluster_id: Option<String>,
        pub reachable: bool,
        /// Node id of the controller in its own numbering.
        pub controller: Option<i32>,
        pub bootstrap: Vec<String>,
        pub brokers: Vec<BrokerView>,
        /// What is wrong; absent when nothing is.
        pub problem: Option<String>,
    }

    /// One broker.
    pub struct BrokerView {
        /// Id in its own cluster.
        pub id: i32,
        /// Id clients see.
        pub virtual_id: i32,
        /// Its own address.
        pub address: String,
        /// The address clients are given.
        pub virtual_address: String,
        pub reachable: bool,
    }

    /// A rule of the route table as it holds now.
    pub struct RouteView {
        pub kind: RouteKind,
        /// Topic or prefix; empty for the default.
        pub pattern: String,
        pub side: Side,
        pub mode: Mode,
        pub source_topic: Option<String>,
        pub target_topic: Option<String>,
    }

    /// The route table.
    pub struct Routes {
        pub revision: u64,
        pub routes: Vec<RouteView>,
    }

    /// Asks what a cutover or rollback would do; changes nothing.
    #[derive(Default)]
    #[serde(default, deny_unknown_fields)]
    pub struct PlanRequest {
        pub topics: Vec<String>,
        /// The wanted owner; the target when absent.
        pub to: Option<Side>,
        /// Create missing topics on the new owner.
        pub create: bool,
        /// Go on where a check allows an override.
        pub force: bool,
        /// Move the groups of the topics as well.
        pub with_groups: bool,
        /// Groups to move as well.
        pub groups: Vec<String>,
    }

    /// Starts a cutover or a rollback of all named topics together.
    #[derive(Default)]
    #[serde(default, deny_unknown_fields)]
    pub struct FlipRequest {
        /// The revision the caller has seen; may be given as the header `If-Match` instead.
        pub expected_revision: Option<u64>,
        pub topics: Vec<String>,
        /// Create missing topics on the new owner.
        pub create: bool,
        /// Go on where a check allows an override; the consequences are in the plan.
        pub force: bool,
        /// Move the groups of the topics as well.
        pub with_groups: bool,
        /// Groups to move as well.
        pub groups: Vec<String>,
    }

    /// Stops an operation; possible until SEAL.
    #[derive(Default)]
    #[serde(default, deny_unknown_fields)]
    pub struct AbortRequest {
        /// Only if this operation is the running one; whichever runs when absent.
        pub operation: Option<String>,
    }

    /// A transaction that is open in a cluster.
    pub struct TransactionView {
        /// As its client knows it.
        pub transactional_id: String,
        pub side: Side,
        /// Its coordinator's word for it, as `Ongoing`.
        pub state: String,
        /// As the cluster knows it.
        pub producer_id: i64,
        /// Since when it is open, milliseconds.
        pub open_ms: i64,
        /// After so long its coordinator aborts it by itself, milliseconds.
        pub timeout_ms: i64,
        /// What it writes to, as clients name it.
        pub topics: Vec<String>,
    }

    /// Ends a transaction without its client.
    #[serde(deny_unknown_fields)]
    pub struct TransactionAbortRequest {
        pub transactional_id: String,
    }

    /// Moves the coordinator of a group.
    #[serde(deny_unknown_fields)]
    pub struct GroupMoveRequest {
        /// The revision the caller has seen; may be given as the header `If-Match` instead.
        pub expected_revision: Option<u64>,
        pub group: String,
        pub to: Side,
    }

    /// What an operation would do, and whether it may.
    pub struct Plan {
        /// The revision the plan was made with.
        pub revision: u64,
        pub to: Side,
        pub topics: Vec<String>,
        pub groups: Vec<String>,
        pub checks: Vec<Check>,
        /// How long produce requests are expected to be held.
        pub expected_pause_ms: Option<f64>,
        /// The operation would be refused.
        pub refused: bool,
        /// All is as it is wanted already: the operation would succeed at once.
        pub nothing_to_do: bool,
    }

    /// One check.
    pub struct Check {
        pub name: String,
        pub result: CheckResult,
        pub detail: String,
        /// What to do; empty when nothing.
        pub remedy: String,
    }

    /// A running or finished operation.
    pub struct OperationView {
        pub id: String,
        pub kind: OperationKind,
        pub topics: Vec<String>,
        pub groups: Vec<String>,
        pub to: Side,
        pub state: OperationState,
        pub started_ms: u64,
        pub finished_ms: Option<u64>,
        /// States entered so far, in order.
        pub steps: Vec<Step>,
        /// The checks of PREPARE.
        pub checks: Vec<Check>,
        /// Longest time a produce request was held, once known: from the end of FENCE, when the gates close, to RELEASE,
        /// when they open.
        pub hold_ms: Option<f64>,
        /// The revision it published, once it has.
        pub revision: Option<u64>,
        /// Why it was aborted, or what is noteworthy.
        pub reason: Option<String>,
        /// What to do about the reason.
        pub remedy: Option<String>,
        pub partitions: Vec<BoundaryView>,
    }

    /// A state an operation went through.
    pub struct Step {
        pub name: OperationState,
        pub at_ms: u64,
        /// Absent while it lasts.
        pub took_ms: Option<f64>,
    }

    /// Where a partition changed its owner.
    pub struct BoundaryView {
        pub topic: String,
        pub partition: i32,
        /// First virtual offset of the new era.
        pub virtual_boundary: i64,
        pub old_native_end: i64,
        pub new_native_start: i64,
    }

    /// One record of the append-only ledger.
    pub struct LedgerEntry {
        /// Strictly rising.
        pub sequence: u64,
        pub at_ms: u64,
        /// `cutover`, `rollback`, `abort`, `group-home`, `topic-deleted`, …
        pub kind: String,
        pub operation: Option<String>,
        pub revision: u64,
        pub from: Option<Side>,
        pub to: Option<Side>,
        pub boundary: Option<BoundaryView>,
        pub text: String,
    }

    /// A part of the ledger.
    pub struct Ledger {
        pub entries: Vec<LedgerEntry>,
        /// Ask with `since` = this for what follows.
        pub next: u64,
    }

    /// One offset in both number spaces.
    pub struct Translation {
        pub topic: String,
        pub partition: i32,
        /// What clients see; absent when the native offset lies in no era.
        pub virtual_offset: Option<i64>,
        /// The cluster that holds it.
        pub side: Option<Side>,
        /// Offset in that cluster.
        pub native_offset: Option<i64>,
        /// Index of the era.
        pub era: Option<u32>,
        /// What this means in words.
        pub explanation: String,
    }

    /// Whether the process lives and serves.
    pub struct Health {
        pub live: bool,
        pub ready: bool,
        /// Why not ready; empty when ready.
        pub reasons: Vec<String>,
    }

    /// Something that happened.
    pub struct Event {
        pub at_ms: u64,
        /// One word, for example `step`, `alarm`, `operation`, `cluster`.
        pub kind: String,
        pub topic: Option<String>,
        /// One sentence for people.
        pub text: String,
        /// The same for machines.
        pub fields: Map<String, Value>,
    }
}

/// What `translate` is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TranslateQuery {
    pub topic: String,
    /// ≥ 0.
    pub partition: i32,
    /// ≥ 0; virtual when `side` is absent, else of that cluster.
    pub offset: i64,
    pub side: Option<Side>,
}
