//! What must have happened in a run: a rule that was never needed is not tested.

macro_rules! seen {
    ($($name:ident),* $(,)?) => {
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum Seen { $($name),* }
        pub(crate) const ALL: &[Seen] = &[$(Seen::$name),*];
    };
}

seen! {
    CrashInPrepare, CrashInFence, CrashInDrain, CrashInBoundary, CrashInSeal, CrashInPublish,
    AbortInPrepare, AbortInFence, AbortInDrain, AbortInBoundary,
    DeadlineBeforeSeal, LossAborts, SealNotWritten, SealUnknownKept, SealUnknownLost, GraceRefuses,
    ThreeEras, Rollback,
    AckWithoutOffset, AckOfAnOlderEra, HoldExpired, HeldForwarded, StaleCompanion, Retried,
    LateAppend, ErrorAfterAppend, SuccessorAsked,
    HistoricRead, ReadOverBoundary, OutOfRange, Signalled,
    ListedLater, ListedEndOverSeal, ListedStartOfAnOlderEra, ListedNewestOfAnOlderEra,
    ListedByTimeInAnOlderEra, ListedByTimeBehindOlderEras, ListedNothing,
    CommitTagged, CommitUnanswered, CommitOfAnOlderEra, CommitInAnOlderEra, CommitOfAnOlderProcess, BegunAgain,
    DeletedLater, DeletedInAnOlderEra, DeletedOverEras, FloorNotStored, FloorHides, DeletionHoldsFlip,
    ElectionLosesTail, EpochFenced, Seeded,
    TransactionCommitted, TransactionAborted, TransactionLater, TransactionSpans, TransactionRefused,
    TransactionTimedOut, TransactorReplaced, TransactorFenced, TxnCoordinatorLoading,
    TransactionHoldsFlip, TransactionAbortsFlip, IdMoved, IdCameBack, AliasTaken, ReadOverAborted,
}

#[derive(Clone)]
pub(crate) struct Coverage([u64; ALL.len()]);

impl Default for Coverage {
    fn default() -> Coverage {
        Coverage([0; ALL.len()])
    }
}

impl Coverage {
    pub(crate) fn note(&mut self, seen: Seen) {
        self.0[seen as usize] += 1;
    }

    pub(crate) fn add(&mut self, other: &Coverage) {
        self.0.iter_mut().zip(other.0).for_each(|(own, other)| *own += other);
    }

    /// What has not happened once.
    pub(crate) fn missing(&self) -> Vec<Seen> {
        self.counts().filter(|(_, times)| *times == 0).map(|(seen, _)| seen).collect()
    }

    pub(crate) fn counts(&self) -> impl Iterator<Item = (Seen, u64)> + '_ {
        ALL.iter().map(|seen| (*seen, self.0[*seen as usize]))
    }
}
