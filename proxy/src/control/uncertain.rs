//! The disk has not said whether it took a write: a restart may find it or not. Whatever would then stand at one of two
//! homes only is not taken until that restart (DESIGN decision 10).

use super::Control;
use crate::store::Uncertain;
use std::sync::Arc;
use tokio::task::JoinError;

/// For the operator of a process whose disk has left it open what it holds.
pub(crate) const REMEDY: &str = "look at the disk of state.directory, then restart crossover";
const ALARM: &str = "home-unknown";

/// Whether a failed store call may have written all the same.
pub(crate) fn is_uncertain(problem: &anyhow::Error) -> bool {
    problem.is::<Uncertain>() || problem.is::<JoinError>()
}

impl Control {
    /// The home of a group, or of its commits, was to be stored. Both homes have the same commits then: if nobody knows
    /// which one a restart finds, neither gets another.
    pub(crate) fn home_stored(&self, group: &Arc<str>, stored: anyhow::Result<()>) -> anyhow::Result<()> {
        if let Err(problem) = &stored
            && is_uncertain(problem)
        {
            self.runtime.shared.groups.close_commits(group);
            self.runtime.shared.transactions.close_group(group);
            let cause = format!("group {group} takes no more commits: {problem:#}");
            self.alarm(ALARM, group, cause, REMEDY);
        }
        stored
    }

    /// The home of a transactional id was to be stored. A transaction that began at one home could not go on at the other.
    pub(crate) fn transaction_stored(&self, id: &Arc<str>, stored: anyhow::Result<()>) -> anyhow::Result<()> {
        if let Err(problem) = &stored
            && is_uncertain(problem)
        {
            self.runtime.shared.transactions.close_id(id);
            let cause = format!("no transaction of {id} begins any more: {problem:#}");
            self.alarm(ALARM, id, cause, REMEDY);
        }
        stored
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::testing::restored as control;
    use crate::store::testing::Disk;
    use crossover_core::ids::{ClusterSide, Revision};
    use crossover_core::producer::transaction::Identity;
    use crossover_core::session::{Begun, TransactionPlan};
    use std::collections::BTreeSet;
    use std::sync::atomic::Ordering;

    #[tokio::test]
    async fn r13_a_group_whose_home_may_be_stored_or_not_takes_no_more_commits() {
        let disk = Disk::default();
        let control = control(&disk);
        let group: Arc<str> = Arc::from("g");
        control.state().offset_homes.insert(Arc::clone(&group), ClusterSide::Target);
        disk.is_mute.store(true, Ordering::Relaxed);
        assert!(control.forget_offset_home("g").await.is_err());
        let shared = &control.runtime.shared;
        assert!(shared.groups.send_commit("g").is_none() && shared.groups.send_commit("h").is_some());
        assert!(!shared.transactions.take_offsets("pay", "g"));
        // Another attempt that fails, for its own reasons, does not open them.
        shared.transactions.close_group(&group);
        shared.transactions.open_group("g");
        assert!(!shared.transactions.take_offsets("pay", "g"));
        assert_eq!(control.alarms_named(ALARM), ["g"]);
    }

    #[tokio::test]
    async fn r13_a_transactional_id_whose_home_may_be_stored_or_not_begins_nothing() {
        let disk = Disk::default();
        let control = control(&disk);
        disk.is_mute.store(true, Ordering::Relaxed);
        let producer = Identity { pid: 1, epoch: 0 };
        let route = crossover_core::producer::transaction::TransactionRoute {
            home: ClusterSide::Target,
            aliases: [0, 0],
            client: producer,
            native: producer,
            earlier: Default::default(),
        };
        let id: Arc<str> = Arc::from("pay");
        assert!(control.store_home(&id, ClusterSide::Source, route).await.is_err());
        let side = ClusterSide::Source;
        let plan = TransactionPlan { revision: Revision(0), home: side, to: side, producer };
        let begin = |id| control.runtime.shared.transactions.begin(id, &BTreeSet::new(), plan, 5);
        assert_eq!((begin("pay"), begin("other")), (Begun::Hold, Begun::First));
        assert_eq!(control.alarms_named(ALARM), ["pay"]);
    }
}
