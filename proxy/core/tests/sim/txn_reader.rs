//! What a consumer of committed records makes of a run of batches (`CompletedFetch`): which producers' batches it leaves out
//! follows from the aborted transactions that the answer names and the markers that it meets.

use crate::wire::{Head, Kind};
use crossover_core::schema::Struct;
use std::collections::BTreeSet;

/// The aborted transactions of one answer.
pub(crate) struct Reader {
    /// Producer id and first offset, the first one last.
    named: Vec<(i64, i64)>,
    aborted: BTreeSet<i64>,
}

impl Reader {
    pub(crate) fn new(answer: &Struct) -> Reader {
        let aborted = answer.structs("AbortedTransactions");
        let mut named: Vec<_> = aborted.map(|a| (a.i64("ProducerId"), a.i64("FirstOffset"))).collect();
        named.sort_by_key(|(_, first)| std::cmp::Reverse(*first));
        Reader { named, aborted: BTreeSet::new() }
    }

    /// Whether a reader takes the next batch in. `None`: it is no record of a transaction.
    pub(crate) fn takes(&mut self, head: &Head) -> Option<bool> {
        let last = head.base + i64::from(head.count) - 1;
        while let Some((pid, first)) = self.named.last().copied()
            && first <= last
        {
            self.aborted.insert(pid);
            self.named.pop();
        }
        match head.kind {
            Kind::Plain => None,
            Kind::Transactional => Some(!self.aborted.contains(&head.pid)),
            Kind::Marker { commit } => {
                if !commit {
                    self.aborted.remove(&head.pid);
                }
                None
            }
        }
    }
}
