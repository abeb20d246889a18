//! What must hold of transactions: all of one is committed or nothing, as its producer was told, and never what a producer
//! left whose transactional id another one has taken over.

use crate::oracle::{Judged, Oracle};
use crate::wire::Mark;
use crossover_core::ids::ClusterSide;
use std::collections::BTreeMap;

/// What a marker has made of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Open,
    Committed,
    Aborted,
}

#[derive(Default)]
struct Txn {
    /// Which transactional id, and which of its producers.
    chain: usize,
    instance: usize,
    marks: Vec<Mark>,
    /// What its producer wants to become of it.
    asked: Option<bool>,
    /// What its producer was told has become of it.
    told: Option<bool>,
    /// Its producer was fenced before that was decided.
    doomed: bool,
}

/// All transactions of a schedule.
#[derive(Default)]
pub(crate) struct Txns {
    all: Vec<Txn>,
    of: BTreeMap<Mark, usize>,
    fates: BTreeMap<Mark, Fate>,
    /// What each marker has decided: an election may take it away, and its coordinator writes it again.
    by_marker: BTreeMap<(ClusterSide, i32, Mark), Vec<Mark>>,
}

impl Txns {
    pub(crate) fn begin(&mut self, chain: usize, instance: usize) -> usize {
        self.all.push(Txn { chain, instance, ..Txn::default() });
        self.all.len() - 1
    }

    pub(crate) fn write(&mut self, txn: usize, mark: Mark) {
        self.all[txn].marks.push(mark);
        self.of.insert(mark, txn);
    }

    pub(crate) fn ask(&mut self, txn: usize, commit: bool) {
        self.all[txn].asked = Some(commit);
    }

    pub(crate) fn fate(&self, mark: Mark) -> Fate {
        self.fates.get(&mark).copied().unwrap_or(Fate::Open)
    }

    /// A new producer of the transactional id has its identity: what those before it have not ended is over.
    pub(crate) fn takes_over(&mut self, chain: usize, instance: usize) {
        let fates = &self.fates;
        let before = self.all.iter_mut().filter(|txn| txn.chain == chain && txn.instance < instance);
        for txn in before {
            let is_committed = |mark: &Mark| fates.get(mark) == Some(&Fate::Committed);
            txn.doomed |= !txn.marks.iter().any(is_committed);
        }
    }

    /// A batch comes to a log.
    pub(crate) fn may_append(&self, mark: Mark) -> Judged {
        let txn = self.of.get(&mark).map(|txn| &self.all[*txn]);
        match txn.and_then(|txn| txn.told) {
            Some(commit) => {
                Err(format!("{mark:?} was appended behind its transaction's end, commit {commit}"))
            }
            None => Ok(()),
        }
    }

    /// What a reader of committed records takes in, or leaves out.
    pub(crate) fn seen(&self, mark: Mark, is_taken: bool) -> Judged {
        let fate = self.fate(mark);
        match (fate, is_taken) {
            (Fate::Committed, true) | (Fate::Aborted, false) => Ok(()),
            _ => Err(format!("{mark:?} is {fate:?}, a reader takes it in: {is_taken}")),
        }
    }

    fn settle(&mut self, mark: Mark, fate: Fate) -> Judged {
        self.fates.insert(mark, fate);
        let Some(txn) = self.of.get(&mark).map(|txn| &self.all[*txn]) else {
            return Err(format!("{mark:?} belongs to no transaction"));
        };
        let commit = fate == Fate::Committed;
        let torn = txn.marks.iter().find(|other| ![fate, Fate::Open].contains(&self.fate(**other)));
        match () {
            () if torn.is_some() => Err(format!("{mark:?} is {fate:?}, {torn:?} of its transaction is not")),
            () if txn.told.is_some_and(|told| told != commit) => {
                Err(format!("{mark:?} is {fate:?}, its producer was told otherwise"))
            }
            () if commit && txn.asked != Some(true) => {
                Err(format!("{mark:?} is {fate:?}, nobody wanted that"))
            }
            () if commit && txn.doomed => {
                Err(format!("{mark:?} is {fate:?}, its producer was fenced before"))
            }
            () => Ok(()),
        }
    }

    /// What an election has taken away is to be decided again.
    pub(crate) fn undo(&mut self, side: ClusterSide, partition: i32, marker: Mark) {
        for mark in self.by_marker.remove(&(side, partition, marker)).unwrap_or_default() {
            self.fates.insert(mark, Fate::Open);
        }
    }
}

impl Oracle {
    /// A marker was appended, and ends what these batches were part of.
    pub(crate) fn decided(
        &mut self,
        side: ClusterSide,
        partition: i32,
        marker: Mark,
        marks: Vec<Mark>,
    ) -> Judged {
        let owner = self.owner(partition);
        if owner.side != side {
            return Err(format!("a marker was appended at the {side}, the {} owns {partition}", owner.side));
        }
        let fate = if marker.number & 1 == 1 { Fate::Committed } else { Fate::Aborted };
        let judged = marks.iter().try_for_each(|mark| self.txns.settle(*mark, fate));
        self.txns.by_marker.insert((side, partition, marker), marks);
        judged
    }

    /// A producer was told that its transaction is committed, or aborted.
    pub(crate) fn ended(&mut self, txn: usize, commit: bool) -> Judged {
        self.txns.all[txn].told = Some(commit);
        let against = if commit { Fate::Aborted } else { Fate::Committed };
        for mark in self.txns.all[txn].marks.clone() {
            if commit && !self.is_written(mark) {
                return Err(format!("{mark:?} is committed and in no log"));
            }
            if self.txns.fate(mark) == against {
                return Err(format!("{mark:?} is {against:?}, its producer is told: commit {commit}"));
            }
        }
        Ok(())
    }

    /// At the end nothing is open, and everything is as was told.
    pub(crate) fn all_ended(&self) -> Judged {
        for txn in &self.txns.all {
            for mark in txn.marks.iter().filter(|mark| self.is_written(**mark)) {
                match (self.txns.fate(*mark), txn.told) {
                    (Fate::Open, _) => return Err(format!("{mark:?} is still undecided")),
                    (Fate::Aborted, Some(true)) | (Fate::Committed, Some(false)) => {
                        return Err(format!("{mark:?} is not as its producer was told"));
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }
}
