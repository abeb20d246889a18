//! Which topics transactional producers write to, by what their cluster knows: producers whose transactions the topic's
//! log has seen, and transactional ids whose producer has written to it, or has it in an open transaction.
//!
//! Source: KIP-664, `DescribeProducersResponse.json`, `ListTransactionsResponse.json`.

use super::Control;
use super::boundary::{Lead, Part};
use super::client::{Address, ClientError, request};
use crossover_core::api::key;
use crossover_core::ids::ClusterSide;
use crossover_core::schema::Value;
use std::collections::{BTreeMap, BTreeSet};

/// The transactions of these states hold partitions (`org.apache.kafka.coordinator.transaction.TransactionState`).
const OPEN_STATES: [&str; 4] = ["Ongoing", "PrepareCommit", "PrepareAbort", "PrepareEpochFence"];

/// What a cluster knows of transactional producers.
#[derive(Debug, Default)]
pub(crate) struct Transactions {
    /// Producers of each partition, and whether the log has seen a transaction of theirs (DescribeProducers).
    pub(crate) producers: BTreeMap<Part, Vec<(i64, bool)>>,
    /// Transactional ids by producer id (ListTransactions).
    pub(crate) ids: BTreeMap<i64, String>,
    /// Physical topics in open transactions, with the transactional id (DescribeTransactions).
    pub(crate) open: BTreeMap<String, String>,
    /// Why not all coordinators could be asked.
    pub(crate) incomplete: Option<String>,
}

impl Transactions {
    /// Why a partition's topic is taken for transactional.
    pub(crate) fn evidence(&self, part: &Part, physical: &str) -> Option<String> {
        if let Some(id) = self.open.get(physical) {
            return Some(format!("{} is in an open transaction of {id}", part.0));
        }
        let producers = self.producers.get(part)?;
        producers.iter().find_map(|(pid, seen)| match self.ids.get(pid) {
            Some(id) => Some(format!("{}-{} was written by transactional id {id}", part.0, part.1)),
            None if *seen => Some(format!("{}-{} holds transactions of producer {pid}", part.0, part.1)),
            None => None,
        })
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
                let producers = told.rows.iter().map(|r| (r.pid, told.transactional.contains(&r.pid)));
                found.producers.insert(part, producers.collect());
            }
        }
        let brokers: Vec<i32> = self.topology(side).brokers.keys().copied().collect();
        for broker in brokers {
            let at = self.address(side, broker)?;
            match self.list_transactions(&at, &mut found).await {
                Ok(()) => {}
                // Before Kafka 3.0 only the producers of a log tell.
                Err(ClientError::Unsupported(..)) => {}
                Err(problem) => found.incomplete = Some(problem.to_string()),
            }
        }
        Ok(found)
    }

    async fn list_transactions(&self, at: &Address, found: &mut Transactions) -> Result<(), ClientError> {
        let answer =
            self.client.call(at, key::LIST_TRANSACTIONS, i16::MAX, &request(key::LIST_TRANSACTIONS)).await?;
        let mut open = BTreeSet::new();
        for transaction in answer.structs("TransactionStates") {
            let id = transaction.str("TransactionalId").to_owned();
            if OPEN_STATES.contains(&transaction.str("TransactionState")) {
                open.insert(id.clone());
            }
            found.ids.insert(transaction.i64("ProducerId"), id);
        }
        if open.is_empty() {
            return Ok(());
        }
        let mut body = request(key::DESCRIBE_TRANSACTIONS);
        body.set("TransactionalIds", open.into_iter().map(|id| Value::from(id.as_str())).collect::<Vec<_>>());
        let answer = self.client.call(at, key::DESCRIBE_TRANSACTIONS, i16::MAX, &body).await?;
        for transaction in answer.structs("TransactionStates") {
            let id = transaction.str("TransactionalId");
            let topics = transaction.structs("Topics").map(|t| (t.str("Topic").to_owned(), id.to_owned()));
            found.open.extend(topics);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn part() -> Part {
        (Arc::from("orders"), 0)
    }

    fn told(producers: &[(i64, bool)]) -> Transactions {
        let ids = BTreeMap::from([(7, "payments-1".to_owned())]);
        let producers = BTreeMap::from([(part(), producers.to_vec())]);
        Transactions { producers, ids, ..Transactions::default() }
    }

    #[test]
    fn r10_a_transactional_producer_shows_in_any_of_its_traces() {
        let why = |found: &Transactions| found.evidence(&part(), "orders.physical");
        assert_eq!(why(&told(&[(5, false)])), None, "idempotent only");
        assert!(why(&told(&[(5, false), (7, false)])).is_some_and(|w| w.contains("payments-1")));
        assert!(why(&told(&[(5, true)])).is_some_and(|w| w.contains("producer 5")));
        let mut open = told(&[]);
        open.open.insert("orders.physical".to_owned(), "payments-2".to_owned());
        assert!(why(&open).is_some_and(|w| w.contains("payments-2")), "nothing written yet");
        assert_eq!(open.evidence(&(Arc::from("other"), 0), "other"), None);
    }
}
