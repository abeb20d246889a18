//! Takes a transactional id to another home, between two of its transactions (protocol.md §3.6; live.md §6c).
//!
//! The old home says that the producer is the one it serves and has nothing open; the new home gives it an identity
//! there; both are durable before the producer's next request goes on.

use super::client::{ClientError, request};
use super::{Control, transactions};
use anyhow::{Context, bail, ensure};
use crossover_core::api::key;
use crossover_core::error_code as code;
use crossover_core::ids::ClusterSide;
use crossover_core::producer::transaction::{self, Identity, TransactionRoute};
use crossover_core::schema::{Struct, Value};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::time::sleep;
use tracing::info;

/// How long a coordinator may take: markers of the last transaction, a load, an election.
const PATIENCE: Duration = Duration::from_secs(5);
const LOOK_AGAIN: Duration = Duration::from_millis(10);
/// Aliases that were given to somebody else: by a move that ended before it was durable, or by a user of that cluster.
const ALIASES_TRIED: u32 = 20;
/// `transaction.timeout.ms` of clients that say nothing, and whose old home cannot be asked.
const TIMEOUT_MS: i32 = 60_000;
/// `Errors.TRANSACTIONAL_ID_NOT_FOUND`.
const TRANSACTIONAL_ID_NOT_FOUND: i16 = 105;

/// Errors that pass.
const BUSY: [i16; 4] = [
    code::COORDINATOR_LOAD_IN_PROGRESS,
    code::COORDINATOR_NOT_AVAILABLE,
    code::NOT_COORDINATOR,
    code::CONCURRENT_TRANSACTIONS,
];

/// What the old home says.
enum Told {
    /// It serves this producer, which has nothing open.
    Idle { timeout_ms: i32 },
    /// It serves another one.
    Fenced,
}

impl Control {
    /// Brings a transactional id home to `to`. `Ok(false)`: it is another producer's.
    ///
    /// # Errors
    /// Not now; it may be asked for again.
    pub(crate) async fn move_transactional_id(
        &self,
        id: &Arc<str>,
        to: ClusterSide,
        client: Identity,
    ) -> anyhow::Result<bool> {
        let _turn = self.transactional_ids.lock(id).await;
        let snapshot = self.runtime.snapshot();
        let from = snapshot.transaction_home(id);
        if from == to {
            return Ok(snapshot.transactions.to_native(id, to, client).is_some());
        }
        let Some(native) = snapshot.transactions.to_native(id, from, client) else { return Ok(false) };
        let told = self.old_home(id, from, client, native).await?;
        let Told::Idle { timeout_ms } = told else { return Ok(false) };
        let known = snapshot.transactions.0.get(id).map_or([None, None], |route| route.aliases.map(Some));
        // A side that was home before has seen this producer's sequences.
        let was_there = known[to.index()].is_some() || to == snapshot.routes.rules.default_side;
        let first = known[to.index()].unwrap_or(0) + u32::from(was_there);
        let (alias, native) = self.new_home(id, to, first, timeout_ms).await?;
        let route = TransactionRoute::moved(snapshot.transactions.0.get(id), (to, alias), client, native);
        self.store_home(id, from, route).await?;
        info!(%id, %to, alias, "a transactional id has moved");
        Ok(true)
    }

    async fn old_home(
        &self,
        id: &str,
        side: ClusterSide,
        client: Identity,
        native: Identity,
    ) -> anyhow::Result<Told> {
        if !self.topology(side).reachable {
            // What it would commit is gone with it; the producer has just begun another transaction. Whether it was fenced
            // before, nobody can ask.
            let is_fenced = self.runtime.shared.transactions.is_anothers(id, client);
            return Ok(if is_fenced { Told::Fenced } else { Told::Idle { timeout_ms: TIMEOUT_MS } });
        }
        let name = self.runtime.snapshot().transactions.physical(id, side).into_owned();
        let deadline = Instant::now() + PATIENCE;
        loop {
            let described = match self.describe_transaction(side, &name).await {
                Ok(described) => described,
                // Before Kafka 3.0 nobody can ask.
                Err(problem) if is_unsupported(&problem) => {
                    return Ok(Told::Idle { timeout_ms: TIMEOUT_MS });
                }
                Err(problem) => return Err(problem),
            };
            let error = described.i16("ErrorCode");
            let served = (described.i64("ProducerId"), described.i16("ProducerEpoch"));
            let is_open = transactions::is_open(described.str("TransactionState"));
            match error {
                code::NONE if served != (native.pid, native.epoch) => return Ok(Told::Fenced),
                code::NONE if !is_open => {
                    return Ok(Told::Idle { timeout_ms: described.i32("TransactionTimeoutMs") });
                }
                TRANSACTIONAL_ID_NOT_FOUND => return Ok(Told::Fenced),
                _ => {}
            }
            ensure!(Instant::now() < deadline, "the {side} still has a transaction of {name} open");
            sleep(LOOK_AGAIN).await;
        }
    }

    async fn describe_transaction(&self, side: ClusterSide, name: &str) -> anyhow::Result<Struct> {
        let mut body = request(key::DESCRIBE_TRANSACTIONS);
        body.set("TransactionalIds", Value::Array(Some(vec![Value::from(name)])));
        let at = self.transaction_coordinator(side, name).await?;
        let answer = self.client.call(&at, key::DESCRIBE_TRANSACTIONS, i16::MAX, &body).await?;
        let described = answer.structs("TransactionStates").next().cloned();
        described.context("DescribeTransactions left out the transactional id")
    }

    /// An identity that the new home has never seen write: its first sequences may be any.
    async fn new_home(
        &self,
        id: &str,
        side: ClusterSide,
        first: u32,
        timeout_ms: i32,
    ) -> anyhow::Result<(u32, Identity)> {
        for number in first..first + ALIASES_TRIED {
            let name = if number == 0 { id.to_owned() } else { transaction::alias(id, number) };
            let native = self.init_transactions(side, &name, timeout_ms).await?;
            if native.epoch == 0 {
                return Ok((number, native));
            }
        }
        bail!("the {side} knows {ALIASES_TRIED} aliases of {id} already, from {first}")
    }

    pub(super) async fn init_transactions(
        &self,
        side: ClusterSide,
        name: &str,
        timeout_ms: i32,
    ) -> anyhow::Result<Identity> {
        let mut body = request(key::INIT_PRODUCER_ID);
        body.set("TransactionalId", name);
        body.set("TransactionTimeoutMs", timeout_ms);
        let deadline = Instant::now() + PATIENCE;
        loop {
            let at = self.transaction_coordinator(side, name).await?;
            let answer = self.client.call(&at, key::INIT_PRODUCER_ID, 4, &body).await?;
            let error = answer.i16("ErrorCode");
            if error == code::NONE {
                return Ok(Identity { pid: answer.i64("ProducerId"), epoch: answer.i16("ProducerEpoch") });
            }
            let in_time = BUSY.contains(&error) && Instant::now() < deadline;
            ensure!(in_time, "InitProducerId of {name} answers error {error}");
            sleep(LOOK_AGAIN).await;
        }
    }

    pub(super) async fn store_home(
        &self,
        id: &Arc<str>,
        from: ClusterSide,
        route: TransactionRoute,
    ) -> anyhow::Result<()> {
        let to = route.home;
        let text = format!("transactional id {id} moved to the {to} between two transactions");
        let mut entry = self.entry("transactional-id-home", None, text);
        entry.from = Some(from.into());
        entry.to = Some(to.into());
        let (name, stored) = (Arc::clone(id), route.clone());
        let stored = self.stored(move |store| store.put_transaction(&name, &stored, &entry)).await;
        self.transaction_stored(id, stored).context("the home of the transactional id cannot be stored")?;
        self.runtime.shared.transactions.moved(id, to);
        Arc::make_mut(&mut self.state().transactions).0.insert(Arc::clone(id), route);
        self.publish();
        Ok(())
    }
}

/// Asks again while the coordinator is busy with the transaction before.
///
/// # Errors
/// It does not answer.
pub(super) async fn retried<F: Future<Output = anyhow::Result<i16>>>(
    ask: impl Fn() -> F,
) -> anyhow::Result<i16> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let error = ask().await?;
        if error != code::CONCURRENT_TRANSACTIONS || Instant::now() >= deadline {
            return Ok(error);
        }
        sleep(LOOK_AGAIN).await;
    }
}

fn is_unsupported(problem: &anyhow::Error) -> bool {
    matches!(problem.downcast_ref::<ClientError>(), Some(ClientError::Unsupported(..)))
}

/// One move of a transactional id at a time; others do not wait for it.
#[derive(Default)]
pub(crate) struct Turns([tokio::sync::Mutex<()>; 16]);

impl Turns {
    async fn lock(&self, id: &str) -> tokio::sync::MutexGuard<'_, ()> {
        let number =
            id.bytes().fold(0_usize, |sum, byte| sum.wrapping_mul(31).wrapping_add(usize::from(byte)));
        self.0[number % self.0.len()].lock().await
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing;
    use super::*;
    use crossover_core::ids::Revision;
    use crossover_core::session::TransactionPlan;
    use std::collections::BTreeSet;

    /// An instance that was fenced wakes up when the old home is down, and begins a transaction on a topic of the other side.
    #[tokio::test]
    async fn trap_7_a_fenced_producer_takes_no_id_along_when_its_old_home_cannot_be_asked() {
        const KEYS: &[i16] = &[key::FIND_COORDINATOR, key::INIT_PRODUCER_ID];
        let control = testing::control([Some(&["orders"]), Some(&["orders"])], &["orders"]);
        let port = testing::broker(KEYS, |_, _, answer| answer.set("ProducerId", 7_i64)).await;
        testing::with_brokers(&control, ClusterSide::Target, &[(1, port)]);
        let (fenced, successor) = (Identity { pid: 1000, epoch: 3 }, Identity { pid: 1000, epoch: 4 });
        let id: Arc<str> = Arc::from("pay");
        // The successor's transactions have gone through this proxy.
        let (home, registry) = (ClusterSide::Source, &control.runtime.shared.transactions);
        let plan = TransactionPlan { revision: Revision(0), home, to: home, producer: successor };
        registry.begin(&id, &BTreeSet::from([Arc::from("local")]), plan, 5);
        registry.answered(&id, successor, true, 6);
        registry.end_of(&id, successor);
        Arc::make_mut(&mut control.state().topologies[home.index()]).reachable = false;
        control.publish();
        let told = control.move_transactional_id(&id, ClusterSide::Target, fenced).await;
        let table = Arc::clone(&control.state().transactions);
        let [old, new] = [fenced, successor].map(|who| table.to_native(&id, ClusterSide::Target, who));
        assert!(
            !matches!(told, Ok(true)),
            "it was let in as {old:?}; its successor is {new:?} there: None is PRODUCER_FENCED"
        );
    }
}
