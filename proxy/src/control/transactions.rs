//! Which transactional ids write to topics, and which have a transaction open, by what their cluster knows.
//!
//! Source: KIP-664, `DescribeProducersResponse.json`, `ListTransactionsResponse.json`.

use super::Control;
use super::boundary::{Lead, Part};
use super::client::{Address, Call, ClientError, request};
use anyhow::ensure;
use crossover_admin_api::model::TransactionView;
use crossover_core::api::key;
use crossover_core::cutover::Abort;
use crossover_core::error_code as code;
use crossover_core::ids::ClusterSide;
use crossover_core::producer::transaction;
use crossover_core::route::TopicRoute;
use crossover_core::schema::{Struct, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::time::{sleep, timeout};

/// Between two looks at transactions that are still open.
const LOOK_AGAIN: Duration = Duration::from_millis(10);
/// So long a request that begins a transaction may be under way to a coordinator that has not heard of it, milliseconds.
const BEGINNING_MS: i64 = 2_000;
/// `transaction.max.timeout.ms` of brokers with defaults: then a coordinator has aborted what its client left.
const TRANSACTION_MAX_MS: i64 = 15 * 60 * 1_000;

/// What coordinators write their transactions to (`org.apache.kafka.common.internals.Topic`).
const TRANSACTION_LOG: &str = "__transaction_state";

/// The transactions of these states hold partitions (`org.apache.kafka.coordinator.transaction.TransactionState`).
const OPEN_STATES: [&str; 4] = ["Ongoing", "PrepareCommit", "PrepareAbort", "PrepareEpochFence"];

/// Whether a transaction in this state holds partitions.
pub(crate) fn is_open(state: &str) -> bool {
    OPEN_STATES.contains(&state)
}

/// What a cluster knows of transactional producers.
#[derive(Debug, Default)]
pub(crate) struct Transactions {
    /// Producers of each partition (DescribeProducers).
    pub(crate) producers: BTreeMap<Part, Vec<i64>>,
    /// Transactional ids by producer id (ListTransactions).
    pub(crate) ids: BTreeMap<i64, String>,
    /// Physical topics in open transactions, with the transactional id (DescribeTransactions).
    pub(crate) open: BTreeMap<String, String>,
    /// Transactional ids with an open transaction.
    pub(crate) open_ids: BTreeSet<String>,
    /// Why not all coordinators could be asked.
    pub(crate) incomplete: Option<String>,
    /// A part of the transaction log has no leader. What is open there cannot go on; what has written shows in the producers
    /// of the logs; so flips do not wait for it. But it is not over.
    pub(crate) is_cut: bool,
}

impl Transactions {
    /// Transactional ids that write to the partitions.
    pub(crate) fn writers(&self, leads: &[Lead]) -> BTreeSet<String> {
        let mut names = BTreeSet::new();
        for lead in leads {
            names.extend(self.open.get(&*lead.physical));
            let producers = self.producers.get(&lead.part).into_iter().flatten();
            names.extend(producers.filter_map(|pid| self.ids.get(pid)));
        }
        names.into_iter().map(|name| transaction::of_physical(name).to_owned()).collect()
    }
}

impl Control {
    /// Asks the leaders of the partitions for their producers, and every broker of the side for its transactions.
    ///
    /// # Errors
    /// A leader does not answer.
    pub(crate) async fn transactions(
        &self,
        side: ClusterSide,
        leads: &[Lead],
    ) -> anyhow::Result<Transactions> {
        let mut found = Transactions::default();
        let mut by_leader: BTreeMap<i32, Vec<Lead>> = BTreeMap::new();
        for lead in leads {
            by_leader.entry(lead.leader).or_default().push(lead.clone());
        }
        for (leader, leads) in by_leader {
            let at = self.address(side, leader)?;
            for (part, told) in self.describe_producers(&at, &leads).await? {
                found.producers.insert(part, told?.rows.iter().map(|row| row.pid).collect());
            }
        }
        self.list_open(side, &mut found).await;
        Ok(found)
    }

    /// Every broker's transactions.
    async fn list_open(&self, side: ClusterSide, found: &mut Transactions) {
        let brokers: Vec<i32> = self.topology(side).brokers.keys().copied().collect();
        let (mut told, mut views) = (BTreeSet::new(), Vec::new());
        for broker in brokers {
            let Ok(at) = self.address(side, broker) else { continue };
            match self.list_transactions(&at, found).await {
                Ok(view) => {
                    told.insert(broker);
                    views.extend(view);
                }
                // Before Kafka 3.0 only the producers of a log tell.
                Err(ClientError::Unsupported(..)) => {}
                Err(problem) => found.incomplete = Some(problem.to_string()),
            }
        }
        found.is_cut = views.iter().flat_map(Coordinators::values).any(|(leader, _)| *leader < 0);
        if let Some(why) = untold(&told, &views) {
            found.incomplete = Some(why);
            self.refresh[side.index()].notify_one();
        }
    }

    /// Whose client has died on this side is not waited for when its transaction is over.
    pub(crate) async fn look_for_ended(&self, side: ClusterSide) {
        let mut found = Transactions::default();
        self.list_open(side, &mut found).await;
        self.forget_ended(side, &found);
    }

    /// Waits until no transaction that writes to one of these topics is open. None may begin meanwhile.
    ///
    /// # Errors
    /// One is still open after `bound`, or an operator has asked for an abort.
    pub(crate) async fn transactions_end(
        &self,
        side: ClusterSide,
        routes: &[Arc<TopicRoute>],
        bound: Duration,
    ) -> anyhow::Result<()> {
        let topics: Vec<Arc<str>> = routes.iter().map(|route| Arc::clone(&route.name)).collect();
        let registry = &self.runtime.shared.transactions;
        let began = Instant::now();
        loop {
            // Before the cluster is asked: one that ends while the cluster answers may still have markers to come, and was
            // perhaps not there yet when the cluster looked.
            let here = registry.open_on(&topics).into_iter().next();
            let mut found = Transactions::default();
            let left = bound.saturating_sub(began.elapsed()).max(LOOK_AGAIN);
            if timeout(left, self.list_open(side, &mut found)).await.is_err() {
                found.incomplete = Some(format!("a broker has not answered within {left:.1?}"));
            }
            self.forget_ended(side, &found);
            // A start of the proxy forgets what was open: then only the cluster knows.
            let there = routes.iter().find_map(|route| found.open.get(&**route.physical(side)));
            let (id, open_ms) = match (here, there) {
                // A coordinator that does not tell all may have markers of a transaction to come that is over for its client.
                // Behind SEAL they would make the old log grow.
                (None, None) if found.incomplete.is_some() => {
                    ensure!(!self.is_abort_asked(), Abort::Asked);
                    let why = found.incomplete.unwrap_or_default();
                    ensure!(began.elapsed() < bound, "the {side} does not tell all its transactions: {why}");
                    sleep(LOOK_AGAIN).await;
                    continue;
                }
                (None, None) => return Ok(()),
                (Some((id, seen)), _) => (id, seen.open_ms.map_or(0, |at| self.runtime.now_ms() - at)),
                (None, Some(id)) => (Arc::from(transaction::of_physical(id)), 0),
            };
            ensure!(!self.is_abort_asked(), Abort::Asked);
            ensure!(began.elapsed() < bound, Abort::OpenTransaction { id, open_ms });
            let _ = timeout(LOOK_AGAIN, self.runtime.drained.notified()).await;
        }
    }

    /// A client that has died does not end its transaction; its coordinator does, after the transaction's timeout.
    fn forget_ended(&self, side: ClusterSide, found: &Transactions) {
        if found.incomplete.is_some() || found.is_cut {
            return;
        }
        // Before Kafka 3.0 nobody can ask.
        let silent_ms = if found.ids.is_empty() { TRANSACTION_MAX_MS } else { BEGINNING_MS };
        let now = self.runtime.now_ms();
        let open: BTreeSet<&str> = found.open_ids.iter().map(|id| transaction::of_physical(id)).collect();
        let (registry, snapshot) = (&self.runtime.shared.transactions, self.runtime.snapshot());
        let of_side = registry.all_open().into_iter().filter(|(id, _)| snapshot.transaction_home(id) == side);
        for (id, seen) in of_side {
            if now - seen.last_ms > silent_ms && !open.contains(&*id) {
                registry.end_unless_asked(&id);
            }
        }
    }

    /// What a broker coordinates, between two looks at who coordinates what as that broker knows it.
    async fn list_transactions(
        &self,
        at: &Address,
        found: &mut Transactions,
    ) -> Result<[Coordinators; 2], ClientError> {
        let (view, list) = (coordinators_request(), request(key::LIST_TRANSACTIONS));
        let [view, list] = [(key::METADATA, &view), (key::LIST_TRANSACTIONS, &list)]
            .map(|(api_key, body)| Call { api_key, version_max: i16::MAX, body });
        let answers = self.client.calls(at, &[view, list, view]).await?;
        let [before, listed, after] = &answers[..] else { return Ok(Default::default()) };
        // A coordinator that is still loading leaves out what it has not read yet.
        let error = listed.i16("ErrorCode");
        if error != code::NONE {
            found.incomplete = Some(format!("ListTransactions answers error {error}"));
        }
        for transaction in listed.structs("TransactionStates") {
            let id = transaction.str("TransactionalId").to_owned();
            found.ids.insert(transaction.i64("ProducerId"), id);
        }
        let open = open_ids(listed);
        found.open_ids.extend(open.iter().cloned());
        for transaction in self.describe_transactions(at, &open).await? {
            let id = transaction.str("TransactionalId");
            let topics = transaction.structs("Topics").map(|t| (t.str("Topic").to_owned(), id.to_owned()));
            found.open.extend(topics);
        }
        Ok([before, after].map(coordinators))
    }

    async fn describe_transactions(
        &self,
        at: &Address,
        ids: &BTreeSet<String>,
    ) -> Result<Vec<Struct>, ClientError> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let mut body = request(key::DESCRIBE_TRANSACTIONS);
        body.set("TransactionalIds", ids.iter().map(|id| Value::from(id.as_str())).collect::<Vec<_>>());
        let answer = self.client.call(at, key::DESCRIBE_TRANSACTIONS, i16::MAX, &body).await?;
        Ok(answer.structs("TransactionStates").cloned().collect())
    }

    /// What is open in either cluster, the longest first.
    ///
    /// # Errors
    /// A cluster that is there does not say.
    pub(crate) async fn open_transactions(&self) -> anyhow::Result<Vec<TransactionView>> {
        let all = self.open_by_physical_id().await?;
        let mut views: Vec<TransactionView> = all.into_values().map(|(view, _)| view).collect();
        views.sort_by_key(|view| std::cmp::Reverse(view.open_ms));
        Ok(views)
    }

    /// Takes the producers of an id their transactions away, as a new instance of the application would: the coordinator
    /// aborts what is open and fences them.
    ///
    /// # Errors
    /// A coordinator does not do it.
    pub(crate) async fn abort_transactions_of(&self, id: &str) -> anyhow::Result<Vec<TransactionView>> {
        let mut aborted = Vec::new();
        for ((side, physical), (view, timeout_ms)) in self.open_by_physical_id().await? {
            if view.transactional_id == id {
                self.init_transactions(side, &physical, timeout_ms).await?;
                self.runtime.shared.transactions.end(id);
                let text = format!("an operator aborted the transaction of {id} on the {side}");
                let entry = self.entry("transaction-aborted", None, text);
                self.stored(move |store| store.append(&entry)).await?;
                aborted.push(view);
            }
        }
        Ok(aborted)
    }

    /// By side, and by the name that the side has for the transactional id; with the transaction's timeout.
    async fn open_by_physical_id(
        &self,
    ) -> anyhow::Result<BTreeMap<(ClusterSide, String), (TransactionView, i32)>> {
        let (snapshot, now) = (self.runtime.snapshot(), i64::try_from(self.now())?);
        let mut all = BTreeMap::new();
        for side in ClusterSide::BOTH.into_iter().filter(|side| self.topology(*side).reachable) {
            let brokers: Vec<i32> = self.topology(side).brokers.keys().copied().collect();
            for broker in brokers {
                let at = self.address(side, broker)?;
                let body = request(key::LIST_TRANSACTIONS);
                let listed = match self.client.call(&at, key::LIST_TRANSACTIONS, i16::MAX, &body).await {
                    // Before Kafka 3.0 nobody can ask.
                    Err(ClientError::Unsupported(..)) => break,
                    listed => listed?,
                };
                for told in self.describe_transactions(&at, &open_ids(&listed)).await? {
                    let timeout_ms = told.i32("TransactionTimeoutMs");
                    let topics = told.structs("Topics").map(|topic| topic.str("Topic"));
                    let topics = topics.map(|topic| snapshot.routes.virtual_name(side, topic).to_owned());
                    let view = TransactionView {
                        transactional_id: transaction::of_physical(told.str("TransactionalId")).to_owned(),
                        side: side.into(),
                        state: told.str("TransactionState").to_owned(),
                        producer_id: told.i64("ProducerId"),
                        open_ms: (now - told.i64("TransactionStartTimeMs")).max(0),
                        timeout_ms: i64::from(timeout_ms),
                        topics: topics.collect(),
                    };
                    all.insert((side, told.str("TransactionalId").to_owned()), (view, timeout_ms));
                }
            }
        }
        Ok(all)
    }
}

/// Which broker coordinates each partition of the transaction log, with the leader's epoch.
type Coordinators = BTreeMap<i32, (i32, i32)>;

fn coordinators_request() -> Struct {
    let mut body = request(key::METADATA);
    let mut topic = body.new_element("Topics");
    topic.set("Name", TRANSACTION_LOG);
    body.push("Topics", topic);
    body.set("AllowAutoTopicCreation", false);
    body
}

/// None where the log does not exist: then nobody has begun a transaction yet. None either where Crossover's principal may
/// not describe it.
fn coordinators(metadata: &Struct) -> Coordinators {
    let partitions = metadata.structs("Topics").flat_map(|topic| topic.structs("Partitions"));
    partitions.map(|p| (p.i32("PartitionIndex"), (p.i32("LeaderId"), p.i32("LeaderEpoch")))).collect()
}

/// Why those who told may not have told all: a coordinator moved while they were asked, or is not one of them. A broker that
/// has just come back may coordinate before the next look at the cluster's metadata finds it; an old one cannot tell.
fn untold(told: &BTreeSet<i32>, views: &[Coordinators]) -> Option<String> {
    let first = views.first()?;
    if views.iter().any(|view| view != first) {
        return Some("coordinators move".to_owned());
    }
    let (partition, (leader, _)) =
        first.iter().find(|(_, (leader, _))| *leader >= 0 && !told.contains(leader))?;
    Some(format!("broker {leader} coordinates {TRANSACTION_LOG}-{partition} and has not told its own"))
}

/// Of a coordinator's list, those that hold partitions.
fn open_ids(listed: &Struct) -> BTreeSet<String> {
    let open = listed.structs("TransactionStates").filter(|t| is_open(t.str("TransactionState")));
    open.map(|transaction| transaction.str("TransactionalId").to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part() -> Part {
        (Arc::from("orders"), 0)
    }

    #[test]
    fn trap_7_coordinators_that_were_not_asked_have_not_told_all() {
        let brokers = BTreeSet::from([0, 1]);
        let view = |leaders: &[(i32, i32)]| -> Coordinators { (0..).zip(leaders.iter().copied()).collect() };
        let told = |views: &[Coordinators]| untold(&brokers, views).unwrap_or_default();
        assert_eq!(told(&[]), "", "before Kafka 3.0");
        assert_eq!(told(&[view(&[]), view(&[])]), "", "no transaction has ever begun");
        assert_eq!(told(&[view(&[(0, 4), (1, 7)]), view(&[(0, 4), (1, 7)])]), "");
        assert_eq!(told(&[view(&[(0, 4)]), view(&[(0, 5)])]), "coordinators move");
        assert_eq!(told(&[view(&[(0, 4)]), view(&[(1, 5)])]), "coordinators move");
        assert!(
            told(&[view(&[(0, 4), (2, 7)])]).starts_with("broker 2 coordinates __transaction_state-1 and")
        );
        assert_eq!(told(&[view(&[(-1, 4)])]), "", "nobody could tell");
    }

    #[test]
    fn r10_a_transactional_producer_shows_in_any_of_its_traces() {
        let lead = Lead { part: part(), physical: Arc::from("orders.physical"), leader: 1, epoch: 0 };
        let writers = |found: &Transactions| found.writers(std::slice::from_ref(&lead));
        let mut found = Transactions {
            ids: BTreeMap::from([(7, "pay.__crossover.1".to_owned())]),
            ..Transactions::default()
        };
        found.producers.insert(part(), vec![5]);
        assert!(writers(&found).is_empty(), "idempotent only");
        found.producers.insert(part(), vec![5, 7]);
        assert_eq!(writers(&found), BTreeSet::from(["pay".to_owned()]));
        found.open.insert("orders.physical".to_owned(), "other".to_owned());
        assert_eq!(writers(&found).len(), 2, "nothing written yet");
    }

    use super::super::testing;
    use crossover_core::ids::Revision;
    use crossover_core::producer::transaction::Identity;
    use crossover_core::session::TransactionPlan;

    fn metadata_of(answer: &mut Struct, leader: i32) {
        let mut topic = answer.new_element("Topics");
        topic.set("Name", TRANSACTION_LOG);
        let mut partition = topic.new_element("Partitions");
        partition.set("PartitionIndex", 0);
        partition.set("LeaderId", leader);
        partition.set("LeaderEpoch", 4);
        topic.push("Partitions", partition);
        answer.push("Topics", topic);
    }

    const KEYS: &[i16] = &[key::METADATA, key::LIST_TRANSACTIONS, key::DESCRIBE_TRANSACTIONS];

    async fn ends(control: &Control) -> Result<(), String> {
        let routes = vec![Arc::clone(control.runtime.snapshot().routes.topic("orders").unwrap())];
        let bound = Duration::from_millis(400);
        control.transactions_end(ClusterSide::Source, &routes, bound).await.map_err(|e| format!("{e:#}"))
    }

    /// One broker of a cluster with a single-replica log of transactions is gone for good. Nobody has ever used a transaction.
    #[tokio::test]
    async fn trap_7_a_topic_without_transactions_moves_although_a_coordinator_is_dead() {
        let control = testing::control([Some(&["orders"]), Some(&["orders"])], &[]);
        let port = testing::broker(KEYS, |api, _, answer| {
            if api == key::METADATA {
                metadata_of(answer, -1);
            }
        });
        testing::with_brokers(&control, ClusterSide::Source, &[(1, port.await)]);
        assert_eq!(ends(&control).await, Ok(()));
    }

    /// A cluster in its upgrade to Kafka 3: broker 0 speaks no ListTransactions yet, and coordinates what is open.
    #[tokio::test]
    async fn trap_7_a_coordinator_that_cannot_list_has_not_told_that_nothing_is_open() {
        let control = testing::control([Some(&["orders"]), Some(&["orders"])], &[]);
        let old = testing::broker(&[key::METADATA], |_, _, answer| metadata_of(answer, 0)).await;
        let new = testing::broker(KEYS, |api, _, answer| match api {
            key::METADATA => metadata_of(answer, 0),
            key::LIST_TRANSACTIONS => {
                let mut other = answer.new_element("TransactionStates");
                other.set("TransactionalId", "other");
                other.set("ProducerId", 9_i64);
                other.set("TransactionState", "Empty");
                answer.push("TransactionStates", other);
            }
            _ => {}
        });
        testing::with_brokers(&control, ClusterSide::Source, &[(0, old), (1, new.await)]);
        let producer = Identity { pid: 7, epoch: 0 };
        let side = ClusterSide::Source;
        let plan = TransactionPlan { revision: Revision(0), home: side, to: side, producer };
        let registry = &control.runtime.shared.transactions;
        let began = control.runtime.now_ms() - 3_000;
        registry.begin("pay", &BTreeSet::from([Arc::from("orders")]), plan, began);
        registry.answered("pay", producer, true, began);
        let ended = ends(&control).await;
        assert!(ended.is_err() && registry.is_open("pay"), "{ended:?}, open: {}", registry.is_open("pay"));
    }
}
