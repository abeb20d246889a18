//! What of a log is still to be decided, and what was decided against (`ProducerStateManager`, `TransactionIndex`).

use crate::cluster::Batch;
use crate::wire::Kind;
use std::collections::BTreeMap;

#[derive(Clone, Debug, Default)]
pub(crate) struct Unstable {
    /// By producer id: where its open transaction begins.
    open: BTreeMap<i64, i64>,
    done: Vec<Done>,
}

#[derive(Clone, Copy, Debug)]
struct Done {
    pid: i64,
    first: i64,
    /// Where the marker is.
    last: i64,
    commit: bool,
}

impl Unstable {
    pub(crate) fn append(&mut self, batch: &Batch) {
        match batch.kind {
            Kind::Plain => {}
            Kind::Transactional => {
                self.open.entry(batch.pid).or_insert(batch.base);
            }
            Kind::Marker { commit } => {
                if let Some(first) = self.open.remove(&batch.pid) {
                    self.done.push(Done { pid: batch.pid, first, last: batch.base, commit });
                }
            }
        }
    }

    /// Where the open transaction of a producer begins.
    pub(crate) fn began(&self, pid: i64) -> Option<i64> {
        self.open.get(&pid).copied()
    }

    pub(crate) fn is_open(&self) -> bool {
        !self.open.is_empty()
    }

    /// The first offset that is not decided for those who know everything below `known`; at most `known`.
    pub(crate) fn first(&self, known: i64) -> i64 {
        let open = self.open.values().copied();
        // Markers come in order, so the late ones are at the end.
        let late = self.done.iter().rev().take_while(|done| done.last >= known).map(|done| done.first);
        open.chain(late).fold(known, i64::min)
    }

    /// The producers whose transactions are aborted with a part in `from`..`to`, and where these begin.
    pub(crate) fn aborted(&self, from: i64, to: i64) -> impl Iterator<Item = (i64, i64)> + '_ {
        let inside = move |done: &&Done| !done.commit && done.last >= from && done.first < to;
        self.done.iter().filter(inside).map(|done| (done.pid, done.first))
    }
}
