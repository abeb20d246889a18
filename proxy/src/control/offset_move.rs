//! Takes the commits of a group to where its transactions are (ADR 13): a transaction cannot commit offsets in another
//! cluster than its own. The members stay where they are.

use super::client::request;
use super::transaction_move::retried;
use super::{Control, group_move};
use anyhow::{Context, bail, ensure};
use crossover_core::api::key;
use crossover_core::error_code as code;
use crossover_core::ids::ClusterSide;
use crossover_core::producer::transaction::{self, Identity};
use crossover_core::schema::{Struct, Value};
use crossover_core::session::CommitMirror;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tracing::info;

/// How long transactions that have the commits may take to end.
const PATIENCE: Duration = Duration::from_secs(5);
const LOOK_AGAIN: Duration = Duration::from_millis(10);
/// Of the proxy's own transaction, milliseconds.
const TRANSACTION_TIMEOUT_MS: i32 = 10_000;

impl Control {
    /// Brings the commits of a group home to `to`, as soon as no open transaction has them.
    ///
    /// # Errors
    /// Not now; it may be asked for again.
    pub(crate) async fn move_offsets(&self, group: &Arc<str>, to: ClusterSide) -> anyhow::Result<bool> {
        if self.runtime.snapshot().groups.offset_homes.get(group) == Some(&to) {
            return Ok(true);
        }
        let _closed = self.close_commits(group).await?;
        let _turn = self.commits.lock().await;
        if self.runtime.snapshot().groups.offset_homes.get(group) == Some(&to) {
            return Ok(true);
        }
        let transactions = &self.runtime.shared.transactions;
        transactions.close_group(group);
        let moved = self.try_move_offsets(group, to).await;
        transactions.open_group(group);
        let count = moved?;
        info!(%group, %to, count, "the commits of a group have moved");
        Ok(true)
    }

    async fn try_move_offsets(&self, group: &Arc<str>, to: ClusterSide) -> anyhow::Result<usize> {
        let began = Instant::now();
        while let Some(id) = self.runtime.shared.transactions.open_with_offsets(group).into_keys().next() {
            ensure!(
                began.elapsed() < PATIENCE,
                "transactional id {id} has its commits in an open transaction"
            );
            self.look_for_ended(self.runtime.snapshot().transaction_home(&id)).await;
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        let snapshot = self.runtime.snapshot();
        let from = snapshot.offset_home(group);
        let mut count = 0;
        if from != to {
            let commits = self.stable_commits(from, group, PATIENCE).await?;
            count = commits.len();
            // What is still to be copied is older than what is copied now.
            self.pending_mirrors().forget(group, None);
            if snapshot.group_home(group) == to {
                // Members may live there: then a simple commit is refused (live.md §8).
                self.store_in_transaction(to, group, &commits).await?;
            } else {
                self.store_commits(to, group, commits.iter().cloned()).await?;
            }
            let copied = self.stable_commits(to, group, PATIENCE).await?;
            group_move::ensure_copied(&commits, &copied)?;
        }
        let text = format!("transactions commit offsets of group {group} on the {to}; {count} commits moved");
        let mut entry = self.entry("group-offsets", None, text);
        entry.from = Some(from.into());
        entry.to = Some(to.into());
        let name = Arc::clone(group);
        let stored = self.stored(move |store| store.put_offset_home(&name, Some(to), &entry)).await;
        self.home_stored(group, stored).context("the home of the commits cannot be stored")?;
        self.state().offset_homes.insert(Arc::clone(group), to);
        self.publish();
        Ok(count)
    }

    /// A group was deleted. One of its name that comes later is another one.
    pub(crate) async fn forget_offset_home(&self, group: &str) -> anyhow::Result<()> {
        if !self.state().offset_homes.contains_key(group) {
            return Ok(());
        }
        let text = format!("group {group} was deleted; its commits have no home of their own any more");
        let (entry, name) = (self.entry("group-offsets", None, text), Arc::<str>::from(group));
        let deleted = Arc::clone(&name);
        let stored = self.stored(move |store| store.put_offset_home(&deleted, None, &entry)).await;
        self.home_stored(&name, stored).context("the deletion cannot be stored")?;
        self.state().offset_homes.remove(group);
        self.publish();
        Ok(())
    }

    /// All commits of a group, once no transaction has some of them pending.
    ///
    /// # Errors
    /// They are still not certain after `patience`, or cannot be read.
    pub(crate) async fn stable_commits(
        &self,
        side: ClusterSide,
        group: &str,
        patience: Duration,
    ) -> anyhow::Result<Vec<CommitMirror>> {
        let began = Instant::now();
        loop {
            match self.read_commits(side, group).await {
                Err(problem) if problem.is::<group_move::Unstable>() && began.elapsed() < patience => {
                    tokio::time::sleep(LOOK_AGAIN).await;
                }
                read => return read,
            }
        }
    }

    /// Stores commits in a group that may have members.
    async fn store_in_transaction(
        &self,
        side: ClusterSide,
        group: &str,
        commits: &[CommitMirror],
    ) -> anyhow::Result<()> {
        let id = transaction::of_offsets(group);
        let producer = self.init_transactions(side, &id, TRANSACTION_TIMEOUT_MS).await?;
        let coordinator = self.transaction_coordinator(side, &id).await?;
        let mut body = begun(key::ADD_OFFSETS_TO_TXN, &id, producer);
        body.set("GroupId", group);
        let added = retried(|| async {
            let answer = self.client.call(&coordinator, key::ADD_OFFSETS_TO_TXN, 3, &body).await?;
            Ok(answer.i16("ErrorCode"))
        });
        judged("AddOffsetsToTxn", added.await?)?;
        let mut body = begun(key::TXN_OFFSET_COMMIT, &id, producer);
        body.set("GroupId", group);
        body.set("GenerationId", -1);
        if !self.put_commits(side, &mut body, commits.iter().cloned()) {
            return Ok(());
        }
        let at = self.coordinator(side, group).await?;
        let answer = self.client.call(&at, key::TXN_OFFSET_COMMIT, 3, &body).await?;
        for partition in answer.structs("Topics").flat_map(|topic| topic.structs("Partitions")) {
            judged("TxnOffsetCommit", partition.i16("ErrorCode"))?;
        }
        let mut body = begun(key::END_TXN, &id, producer);
        body.set("Committed", Value::from(true));
        let ended = self.client.call(&coordinator, key::END_TXN, 3, &body).await?;
        judged("EndTxn", ended.i16("ErrorCode"))
    }
}

fn begun(api_key: i16, id: &str, producer: Identity) -> Struct {
    let mut body = request(api_key);
    body.set("TransactionalId", id);
    body.set("ProducerId", producer.pid);
    body.set("ProducerEpoch", producer.epoch);
    body
}

fn judged(api: &str, error: i16) -> anyhow::Result<()> {
    match error {
        code::NONE => Ok(()),
        error => bail!("{api} answers error {error}"),
    }
}
