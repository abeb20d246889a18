//! One process serves a pair of clusters (RULES R31). A lock keeps a second one off the same state directory; across
//! machines, a fixed transactional id does: who takes it fences whoever had it before. A flip writes its intent under it
//! before it fences anything, so a process that was fenced learns it there, changes nothing, and takes no more writes.
//!
//! Source: KIP-98; ADR 10.

use super::client::request;
use super::{Control, state_copy, transaction_move};
use anyhow::{Context, bail, ensure};
use crossover_core::api::key;
use crossover_core::error_code as code;
use crossover_core::ids::ClusterSide;
use crossover_core::producer::transaction::Identity;
use crossover_core::route::STATE_TOPIC;
use crossover_core::schema::{Struct, Value};
use std::time::Duration;
use tracing::{info, warn};

/// Where the id lives. A flip needs both clusters, so one of them is enough to tell two processes apart.
const SIDE: ClusterSide = ClusterSide::Source;
/// Its transactions hold one record.
const TRANSACTION_TIMEOUT_MS: i32 = 10_000;
/// How long a new topic may take to have a leader.
const CREATED_MAX: Duration = Duration::from_secs(5);
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// The alarm of a cluster that lets this process not have its id.
const UNCLAIMED: &str = "pair-unclaimed";

/// The intent could not be written because a later process has the pair.
#[derive(Debug, thiserror::Error)]
#[error("another crossover process has taken over this pair of clusters")]
pub(crate) struct TakenOver;

/// This process among those that have had the pair.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Claim {
    identity: Identity,
    /// Of the next batch.
    sequence: i32,
}

/// For the operator of a process that another one has taken the pair from.
pub(crate) const REMEDY: &str = "stop this process and point its clients at the other one; if the other one is the mistake, stop it and restart this one";

impl Control {
    /// At a start: takes the pair over. Before anything was ever moved nothing is put on anybody's cluster.
    pub(crate) async fn take_over(&self) {
        if self.state().revision.0 == 0 {
            return;
        }
        let mut claim = self.claim_of_pair.lock().await;
        match self.new_claim().await {
            Ok(taken) => *claim = Some(taken),
            // Taken at the next flip, which needs the cluster anyway.
            Err(problem) => warn!("the pair of clusters cannot be claimed yet: {problem:#}"),
        }
    }

    /// Does ahead of a flip's intent what takes long at the first one, while nothing waits for it.
    pub(crate) async fn prepare_claim(&self) {
        if !self.is_taken_over()
            && let Err(problem) = self.try_prepare_claim().await
        {
            // The intent meets the same, and tells it.
            info!("the pair of clusters cannot be claimed yet: {problem:#}");
        }
    }

    async fn try_prepare_claim(&self) -> anyhow::Result<()> {
        self.create_state_topic().await?;
        let mut claim = self.claim_of_pair.lock().await;
        if claim.is_none() {
            let taken = self.new_claim().await?;
            // Another process may have moved topics before this one claimed the pair.
            state_copy::check_store(self).await?;
            self.lift(UNCLAIMED, "pair");
            *claim = Some(taken);
        }
        Ok(())
    }

    /// Writes the intent of a flip to the state topic, under the id that only the latest process has.
    ///
    /// # Errors
    /// [`TakenOver`], or it cannot be written.
    pub(crate) async fn announce_intent(&self, operation: &str) -> anyhow::Result<()> {
        if self.is_taken_over() {
            bail!(TakenOver);
        }
        self.create_state_topic().await?;
        let mut claim = self.claim_of_pair.lock().await;
        let taken = match *claim {
            Some(taken) => taken,
            None => match self.new_claim().await {
                Ok(taken) => {
                    // Another process may have moved topics before this one claimed the pair.
                    state_copy::check_store(self).await?;
                    self.lift(UNCLAIMED, "pair");
                    taken
                }
                Err(problem) => {
                    let cause = format!("the pair of clusters cannot be claimed: {problem:#}");
                    let remedy = "let crossover use transactional ids that begin with __crossover_state on the source; until then make sure that no second process is started for the pair";
                    self.alarm(UNCLAIMED, "pair", cause, remedy);
                    return state_copy::check_store(self).await;
                }
            },
        };
        *claim = Some(taken);
        let written = self.write_intent(operation, taken).await;
        match written {
            Ok(()) => {
                *claim = Some(Claim { sequence: taken.sequence + 1, ..taken });
                Ok(())
            }
            Err(problem) => {
                // What became of it is not known: the next one begins with a claim of its own, unless this is not ours.
                if problem.is::<TakenOver>() {
                    self.taken_over().await;
                } else {
                    *claim = None;
                }
                Err(problem)
            }
        }
    }

    pub(crate) fn is_taken_over(&self) -> bool {
        self.state().taken_over
    }

    /// The other process may move topics at any time: what this one takes could go to the wrong side.
    async fn taken_over(&self) {
        self.state().taken_over = true;
        self.publish();
        self.alarm(
            "taken-over",
            "pair",
            format!("{TakenOver}: this one takes no more produce and no more commits"),
            REMEDY,
        );
        let entry = self.entry("taken-over", None, TakenOver.to_string());
        if let Err(problem) = self.stored(move |store| store.append(&entry)).await {
            warn!("the ledger cannot be written: {problem:#}");
        }
    }

    async fn new_claim(&self) -> anyhow::Result<Claim> {
        let identity = self.init_transactions(SIDE, &self.pair_id(), TRANSACTION_TIMEOUT_MS).await?;
        info!(epoch = identity.epoch, "this process has claimed the pair of clusters");
        Ok(Claim { identity, sequence: 0 })
    }

    fn pair_id(&self) -> String {
        let state = self.state();
        let [source, target] = state.cluster_ids.each_ref().map(|id| id.as_deref().unwrap_or_default());
        format!("{STATE_TOPIC}.{source}.{target}")
    }

    async fn create_state_topic(&self) -> anyhow::Result<()> {
        state_copy::create(&self.client, self, &self.topology(SIDE)).await?;
        let until = std::time::Instant::now() + CREATED_MAX;
        while self.topology(SIDE).leader(STATE_TOPIC, 0).is_none() {
            ensure!(std::time::Instant::now() < until, "topic {STATE_TOPIC} has no leader on the {SIDE}");
            super::topology::refresh(self, SIDE).await;
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        Ok(())
    }

    async fn write_intent(&self, operation: &str, claim: Claim) -> anyhow::Result<()> {
        let id = self.pair_id();
        let coordinator = self.transaction_coordinator(SIDE, &id).await?;
        let mut body = request(key::ADD_PARTITIONS_TO_TXN);
        body.set("V3AndBelowTransactionalId", id.as_str());
        body.set("V3AndBelowProducerId", claim.identity.pid);
        body.set("V3AndBelowProducerEpoch", claim.identity.epoch);
        let mut topic = body.new_element("V3AndBelowTopics");
        topic.set("Name", STATE_TOPIC);
        topic.set("Partitions", vec![0]);
        body.push("V3AndBelowTopics", topic);
        transaction_move::retried(|| async {
            let answer = self.client.call(&coordinator, key::ADD_PARTITIONS_TO_TXN, 3, &body).await?;
            let mut topics = answer.structs("ResultsByTopicV3AndBelow");
            let result = topics.find_map(|topic| topic.structs("ResultsByPartition").next());
            Ok(result.map_or(-1, |result| result.i16("PartitionErrorCode")))
        })
        .await
        .and_then(|error| judged("AddPartitionsToTxn", error))?;
        let leader = self.topology(SIDE).leader(STATE_TOPIC, 0);
        let at = self.address(SIDE, leader.context("the topic has no leader any more")?)?;
        let producer = (claim.identity, claim.sequence);
        let error =
            state_copy::write_intent(&self.client, &at, &id, operation, producer, self.runtime.now_ms());
        judged("Produce", error.await?)?;
        let ended = self.client.call(&coordinator, key::END_TXN, 3, &self.end(&id, claim)).await?;
        judged("EndTxn", ended.i16("ErrorCode"))
    }

    fn end(&self, id: &str, claim: Claim) -> Struct {
        let mut body = request(key::END_TXN);
        body.set("TransactionalId", id);
        body.set("ProducerId", claim.identity.pid);
        body.set("ProducerEpoch", claim.identity.epoch);
        body.set("Committed", Value::from(true));
        body
    }
}

fn judged(api: &str, error: i16) -> anyhow::Result<()> {
    match error {
        code::NONE => Ok(()),
        code::PRODUCER_FENCED | code::INVALID_PRODUCER_EPOCH => bail!(TakenOver),
        error => bail!("the intent cannot be written to topic {STATE_TOPIC}: {api} answers error {error}"),
    }
}
