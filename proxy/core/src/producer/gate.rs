//! The gate of one partition: which produce may pass, in which order, and what has been acknowledged.
//!
//! Every produce of every connection asks the gate before it is sent and tells it the outcome afterwards. The gate
//! holds produce while the partition is fenced, proves that nothing is in flight (the drain), and after a flip keeps
//! sequences contiguous per (partition, producer id): a log without producer state accepts whatever comes first, and
//! the batch that was overtaken is then refused for ever (RULES R1, R3, R4).

use super::carry::{self, Carry, CarryVerdict, DescribedProducer};
use crate::bug::{self, Bug};
use crate::ids::{VirtualNode, VirtualOffset};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// One client connection of the proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId(pub u64);

/// One upstream connection. Two batches on the same path cannot overtake each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PathId(pub u64);

/// A client for producers without sequences: hash of client id and peer host (RULES R1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClientKey(pub u64);

/// Producers of a partition before those that have expired are looked for.
const PRODUCERS_MIN: usize = 10_000;

/// Names an admitted batch until its outcome is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ticket(u64);

/// Names a batch that was held by the fence until it is admitted or dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HoldId(u64);

/// How long a batch that arrives before its predecessor waits for it after a flip, in milliseconds.
pub const GAP_WAIT_MS: i64 = 300;
/// How long after a flip a gap is still taken for a batch on its way by another connection.
pub const GAP_WINDOW_MS: i64 = 5_000;

/// How long a gap is taken for a predecessor that is to come again, in milliseconds: after a flip or a start, and after a
/// batch of the producer failed. A client repeats what failed within seconds; one that has given it up learns after this
/// that it must begin anew. Less than Java's `delivery.timeout.ms` (120 s), and far more than any library's
/// `retry.backoff`.
pub const FAILED_WINDOW_MS: i64 = 30_000;

/// Failed batches of a producer that are remembered; more than an idempotent producer has in flight.
const FAILED_MAX: usize = 8;

/// When a batch that was planned with another route table asks again, in milliseconds.
const STALE_RETRY_MS: i64 = 1;

/// The identity of a sequenced batch, with the producer id the client knows (visit 0).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchId {
    pub pid: i64,
    pub epoch: i16,
    pub first: i32,
    pub last: i32,
}

impl BatchId {
    /// Sequences wrap at 2^31.
    fn records(self) -> i32 {
        (self.last.wrapping_sub(self.first) & i32::MAX).saturating_add(1)
    }
}

/// A batch that asks to pass.
#[derive(Clone, Copy, Debug)]
pub struct Submission {
    pub session: SessionId,
    /// What the client is connected to.
    pub node: VirtualNode,
    pub client: ClientKey,
    pub path: PathId,
    /// The era whose owner the batch would be sent to.
    pub era: u32,
    /// `None` for producers without sequences.
    pub batch: Option<BatchId>,
    /// The producer id under which the owner gets it, where that is not the client's: its log orders by that one.
    pub native: Option<i64>,
    /// Set when the batch was held before.
    pub hold: Option<HoldId>,
    /// When the batch arrived from the client, milliseconds of the caller's monotonic clock.
    pub arrived_ms: i64,
    /// Its client has gone.
    pub is_left: bool,
}

/// A batch that is kept without being asked for.
#[derive(Clone, Copy, Debug)]
pub struct Kept {
    pub session: SessionId,
    pub node: VirtualNode,
    pub client: ClientKey,
    pub batch: Option<BatchId>,
    /// Set when the batch was kept before.
    pub hold: Option<HoldId>,
    /// When its request came, in milliseconds.
    pub arrived_ms: i64,
    /// Its client has gone, and takes it for sent.
    pub is_left: bool,
}

impl Submission {
    fn kept(&self) -> Kept {
        Kept {
            session: self.session,
            node: self.node,
            client: self.client,
            batch: self.batch,
            hold: self.hold,
            arrived_ms: self.arrived_ms,
            is_left: self.is_left,
        }
    }
}

/// The gate's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// Send it; then tell the outcome.
    Forward(Ticket),
    /// As [`Admission::Forward`], but everything of it is in the log already: only the owner can still tell where. If
    /// it does not remember the batch any more, the batch is a duplicate of unknown offset, not an error (RULES R4).
    Recall(Ticket),
    /// Keep it; ask again when woken, or at the deadline if there is one.
    Hold { hold: HoldId, reason: HoldReason, deadline_ms: Option<i64> },
    /// It is in the log already: error 0 and this base offset, or unknown where it is `None` (RULES R4). A hold it had
    /// is still to be dropped, as after a refusal.
    Duplicate(Option<VirtualOffset>),
    /// Refuse it.
    Refuse(Refusal),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum HoldReason {
    Fence,
    /// An earlier batch of the same producer is kept on another connection.
    Kept,
    /// An earlier batch of the same producer is under way on another connection.
    OtherPath,
    /// An earlier batch of the same producer must be appended before the new owner can order them itself.
    Unconfirmed,
    /// The predecessor has not arrived yet.
    Gap,
    /// It was planned with a route table from before or after the gate's era (RULES R14).
    Stale,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// 45
    OutOfOrderSequence,
    /// 6: the batch before it has failed, and will come again. 45 would make a client take it for not appended and write it
    /// anew under another epoch, while it may be in the log (RULES R8).
    BehindFailed,
    /// 47
    InvalidProducerEpoch,
}

/// What became of an admitted batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Acknowledged; the base offset, if the broker told one.
    Appended(Option<VirtualOffset>),
    /// Refused with a code that proves that nothing was appended.
    NotAppended,
    /// The client was told that one before it is missing: nothing was appended, and it need not come again.
    OutOfOrder,
    /// The answer never came, or it leaves the outcome open.
    Unknown,
}

/// What a change of the gate asks its caller to do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GateSignal {
    /// Sessions that hold something and should ask again.
    pub wake: Vec<SessionId>,
    /// The partition is fenced and its last batch in flight has just been answered.
    pub drained: bool,
}

#[derive(Clone, Debug)]
struct InFlight {
    session: SessionId,
    node: VirtualNode,
    path: PathId,
    client: ClientKey,
    batch: Option<BatchId>,
    native: Option<i64>,
    era: u32,
    /// Its client has gone.
    is_left: bool,
}

impl InFlight {
    /// Whether a batch without sequences must not overtake it: it may be of the same producer, on another way. A producer
    /// has one connection to a broker, and another one when that has ended. So who is connected to the same node
    /// meanwhile is another instance of an application, which often share their client id and, behind a translation of
    /// addresses, their host.
    fn may_be_overtaken_by(&self, submission: &Submission) -> bool {
        let is_another = self.session != submission.session && self.node == submission.node && !self.is_left;
        self.batch.is_none()
            && self.client == submission.client
            && self.path != submission.path
            && !is_another
    }
}

#[derive(Clone, Debug, Default)]
struct PidState {
    /// The owner has acknowledged a batch of this producer in this era and under this native id: from then on it orders
    /// them itself.
    confirmed: Option<Confirmed>,
    /// The owner had this producer in its state when it was asked after a start.
    is_known_to_owner: bool,
    in_flight: BTreeSet<Ticket>,
    /// In the order in which they failed, each once; at most [`FAILED_MAX`].
    failed: Vec<FailedBatch>,
}

/// An era, and the producer id in the owner's log where that is not the client's.
type Confirmed = (u32, Option<i64>);

/// A batch that has ended in a way that lets its client send it again.
#[derive(Clone, Copy, Debug)]
struct FailedBatch {
    epoch: i16,
    first: i32,
    at_ms: i64,
}

impl FailedBatch {
    fn is_recent(&self, now_ms: i64) -> bool {
        now_ms - self.at_ms < FAILED_WINDOW_MS
    }

    fn is_before(&self, batch: BatchId) -> bool {
        self.epoch == batch.epoch && carry::is_before(self.first, batch.first)
    }
}

impl PidState {
    fn fail(&mut self, now_ms: i64, batch: BatchId) {
        let BatchId { epoch, first, .. } = batch;
        self.failed.retain(|f| f.is_recent(now_ms) && (f.epoch, f.first) != (epoch, first));
        // The oldest goes.
        self.failed.drain(..(self.failed.len() + 1).saturating_sub(FAILED_MAX));
        self.failed.push(FailedBatch { epoch, first, at_ms: now_ms });
    }

    fn has_failed(&self, now_ms: i64) -> bool {
        self.failed.iter().any(|failed| failed.is_recent(now_ms))
    }
}

/// The gate of one partition. Pure; the caller serialises access.
#[derive(Debug, Default)]
pub struct PartitionGate {
    fenced: bool,
    era: u32,
    flipped_at_ms: Option<i64>,
    /// When it was seeded after a start: every producer may have had something in flight.
    started_at_ms: Option<i64>,
    next_id: u64,
    carry: Carry,
    pids: HashMap<i64, PidState>,
    /// At so many producers those that have not written for long are looked for.
    expire_at: usize,
    in_flight: BTreeMap<Ticket, InFlight>,
    held: BTreeMap<HoldId, SessionId>,
    /// Batches that are kept, for whatever reason, in the order they came: those of one client, or of one producer,
    /// must not overtake each other by another connection (RULES R1, R3).
    kept: BTreeMap<HoldId, Kept>,
    waiting: BTreeSet<SessionId>,
    /// Behind the last record of idempotent producers that was acknowledged: their acknowledgements come when all replicas
    /// that are in sync have it.
    acked_end: Option<VirtualOffset>,
    /// When an outcome last became unknown and was not resolved since.
    unknown_since_ms: Option<i64>,
}

impl PartitionGate {
    /// A gate as it stands after a start: the durable carry and the current era.
    #[must_use]
    pub fn restored(era: u32, carry: Carry) -> PartitionGate {
        PartitionGate { era, carry, ..PartitionGate::default() }
    }

    /// The gate of a log that has the place of another one: what it numbers is not taken for the other's.
    #[must_use]
    pub fn numbered_from(first: u64) -> PartitionGate {
        PartitionGate { next_id: first, ..PartitionGate::default() }
    }

    /// Decides about one batch.
    pub fn admit(&mut self, now_ms: i64, submission: &Submission) -> Admission {
        if self.fenced && !bug::is(Bug::R14Fence) {
            return self.hold(submission, HoldReason::Fence, None);
        }
        if submission.era != self.era && !bug::is(Bug::R14Stale) {
            return self.wait(submission, HoldReason::Stale, Some(now_ms + STALE_RETRY_MS));
        }
        let Some(batch) = submission.batch else {
            let under_way = self.in_flight.values().any(|f| f.may_be_overtaken_by(submission));
            if under_way && !bug::is(Bug::R1Path) {
                return self.wait(submission, HoldReason::OtherPath, None);
            }
            if self.is_behind(submission) && !bug::is(Bug::R1Kept) {
                return self.wait(submission, HoldReason::Kept, None);
            }
            return self.forward(submission);
        };
        self.admit_sequenced(now_ms, submission, batch)
    }

    /// Whether an earlier batch without sequences of the same client is kept on a connection to another node, or on one whose
    /// client has gone. Earlier by when it came: a connection's turn may be interrupted between that and the question.
    fn is_behind(&self, submission: &Submission) -> bool {
        let own = (submission.arrived_ms, submission.hold.unwrap_or(HoldId(u64::MAX)));
        let is_earlier = |id: &HoldId, kept: &Kept| (kept.arrived_ms, *id) < own;
        let of_client = |kept: &Kept| {
            let is_another = kept.node == submission.node && !kept.is_left;
            kept.batch.is_none() && kept.client == submission.client && !is_another
        };
        let mut kept = self.kept.iter().filter(|(_, kept)| of_client(kept));
        kept.any(|(id, kept)| is_earlier(id, kept))
    }

    /// Whether a batch of the same producer that must come before is kept on another connection.
    fn awaits_kept(&self, submission: &Submission, batch: BatchId) -> bool {
        let comes_before = |b: &BatchId| {
            (b.pid, b.epoch) == (batch.pid, batch.epoch) && carry::is_before(b.first, batch.first)
        };
        let mut elsewhere = self.kept.values().filter(|kept| kept.session != submission.session);
        elsewhere.any(|kept| kept.batch.as_ref().is_some_and(comes_before))
    }

    fn admit_sequenced(&mut self, now_ms: i64, submission: &Submission, batch: BatchId) -> Admission {
        let in_flight = self.pids.get(&batch.pid).map(|p| &p.in_flight);
        let others: Vec<&InFlight> =
            in_flight.into_iter().flatten().filter_map(|t| self.in_flight.get(t)).collect();
        // Whose client has gone is sent again with all that came behind it, and a log that knows the producer tells a second
        // time from a first. Its connection may stand still for long, with the broker behind it.
        let is_known = self.is_known_to_log(submission, batch);
        let elsewhere = others.iter().any(|f| f.path != submission.path && !(f.is_left && is_known));
        let alone = others.is_empty();
        if elsewhere && !bug::is(Bug::R3OtherPath) {
            return self.wait(submission, HoldReason::OtherPath, None);
        }
        if self.awaits_kept(submission, batch) && !bug::is(Bug::R3Gap) {
            return self.wait(submission, HoldReason::Kept, None);
        }
        if self.era == 0 && submission.native.is_none() {
            // Nothing was re-based: the owner has this producer's whole history and judges for itself.
            return self.forward(submission);
        }
        let verdict = self.judge(batch);
        match verdict {
            _ if bug::is(Bug::R4NoCarry) => {}
            CarryVerdict::Duplicate(Some(offset)) if bug::is(Bug::R4Offset) => {
                return Admission::Duplicate(Some(VirtualOffset(offset.0 + 1)));
            }
            CarryVerdict::Duplicate(Some(offset)) => return Admission::Duplicate(Some(offset)),
            CarryVerdict::Duplicate(None) | CarryVerdict::AlreadyAppended => {
                return self.recall(submission, batch.pid);
            }
            CarryVerdict::StaleEpoch => {
                return Admission::Refuse(Refusal::InvalidProducerEpoch);
            }
            CarryVerdict::Overlap => {
                return Admission::Refuse(Refusal::OutOfOrderSequence);
            }
            _ if alone && self.lacks_predecessor(now_ms, verdict, batch) && !bug::is(Bug::R3Gap) => {
                return self.gap(now_ms, submission, batch);
            }
            CarryVerdict::Gap | CarryVerdict::NewEpoch | CarryVerdict::Next | CarryVerdict::Unknown => {}
        }
        let confirmed = self.is_confirmed(submission, batch);
        if !confirmed && !alone && !bug::is(Bug::R3Unconfirmed) {
            return self.wait(submission, HoldReason::Unconfirmed, None);
        }
        self.forward(submission)
    }

    /// The log has this producer's history, and orders its batches itself.
    fn is_known_to_log(&self, submission: &Submission, batch: BatchId) -> bool {
        (self.era == 0 && submission.native.is_none()) || self.is_confirmed(submission, batch)
    }

    fn is_confirmed(&self, submission: &Submission, batch: BatchId) -> bool {
        let in_log = Some((self.era, submission.native));
        self.pids.get(&batch.pid).is_some_and(|state| state.confirmed == in_log)
    }

    /// A log takes whatever comes first of a producer that it does not know, and what belongs before it is refused for
    /// ever. So nobody may begin in the middle while the beginning may have failed.
    fn lacks_predecessor(&self, now_ms: i64, verdict: CarryVerdict, batch: BatchId) -> bool {
        let begins_late = verdict == CarryVerdict::Unknown && batch.first != 0;
        verdict.lacks_predecessor(batch.first) || (begins_late && self.awaits_failed(now_ms, batch))
    }

    /// The proxy does not know where the batch lies. An owner that has this producer's state cannot append it again, and
    /// remembers the last five batches.
    fn recall(&mut self, submission: &Submission, pid: i64) -> Admission {
        if !self.pids.get(&pid).is_some_and(|p| p.is_known_to_owner) {
            return Admission::Duplicate(None);
        }
        match self.forward(submission) {
            Admission::Forward(ticket) => Admission::Recall(ticket),
            other => other,
        }
    }

    /// Nothing of this producer is under way and the batch is not the next one: wait a little for its predecessor,
    /// then refuse, because a log without state would accept it and refuse the predecessor for ever.
    fn gap(&mut self, now_ms: i64, submission: &Submission, batch: BatchId) -> Admission {
        let recent = self.flipped_at_ms.is_some_and(|at| now_ms - at < GAP_WINDOW_MS);
        let deadline = submission.arrived_ms + GAP_WAIT_MS;
        if recent && now_ms < deadline {
            return self.wait(submission, HoldReason::Gap, Some(deadline));
        }
        Admission::Refuse(match self.awaits_failed(now_ms, batch) {
            true => Refusal::BehindFailed,
            false => Refusal::OutOfOrderSequence,
        })
    }

    /// Whether a batch that a broker misses before this one has lately failed, or may have, and is therefore to come again.
    /// Of a producer that is not carried only the broker knows what is missing.
    #[must_use]
    pub fn explains_gap(&self, now_ms: i64, batch: BatchId) -> bool {
        let verdict = self.judge(batch);
        let is_gap = verdict == CarryVerdict::Unknown || verdict.lacks_predecessor(batch.first);
        is_gap && self.awaits_failed(now_ms, batch)
    }

    fn judge(&self, batch: BatchId) -> CarryVerdict {
        self.carry.judge(batch.pid, batch.epoch, batch.first, batch.last)
    }

    /// Whether what is missing before this batch has lately failed, or may have. A batch that failed itself lacks nobody by
    /// that.
    fn awaits_failed(&self, now_ms: i64, batch: BatchId) -> bool {
        let turns = [self.flipped_at_ms, self.started_at_ms].into_iter().flatten();
        let has_turned = turns.max().is_some_and(|at| now_ms - at < FAILED_WINDOW_MS);
        let mut failed = self.pids.get(&batch.pid).into_iter().flat_map(|state| &state.failed);
        let has_failed = failed.any(|f| f.is_recent(now_ms) && f.is_before(batch));
        (has_turned || has_failed) && !bug::is(Bug::R8Echo)
    }

    fn forward(&mut self, submission: &Submission) -> Admission {
        let ticket = Ticket(self.fresh_id());
        if let Some(id) = submission.hold {
            self.held.remove(&id);
            self.kept.remove(&id);
        }
        self.in_flight.insert(
            ticket,
            InFlight {
                session: submission.session,
                node: submission.node,
                path: submission.path,
                client: submission.client,
                batch: submission.batch,
                native: submission.native,
                era: self.era,
                is_left: submission.is_left,
            },
        );
        if let Some(batch) = submission.batch {
            self.pids.entry(batch.pid).or_default().in_flight.insert(ticket);
        }
        Admission::Forward(ticket)
    }

    fn hold(&mut self, submission: &Submission, reason: HoldReason, deadline_ms: Option<i64>) -> Admission {
        let hold = self.keep(&submission.kept());
        self.held.insert(hold, submission.session);
        Admission::Hold { hold, reason, deadline_ms }
    }

    /// Keeps a batch that queues behind an earlier one of its own connection.
    pub fn queue(&mut self, kept: &Kept) -> HoldId {
        let hold = self.keep(kept);
        if self.fenced {
            self.held.insert(hold, kept.session);
        } else {
            self.waiting.insert(kept.session);
        }
        hold
    }

    fn keep(&mut self, kept: &Kept) -> HoldId {
        let hold = kept.hold.unwrap_or_else(|| HoldId(self.fresh_id()));
        self.kept.insert(hold, *kept);
        hold
    }

    /// Keeps a batch that the fence did not hold, or keeps it held if it did.
    fn wait(&mut self, submission: &Submission, reason: HoldReason, deadline_ms: Option<i64>) -> Admission {
        self.waiting.insert(submission.session);
        let hold = self.keep(&submission.kept());
        Admission::Hold { hold, reason, deadline_ms }
    }

    /// The client of an admitted batch has gone: what comes of it now, comes later.
    pub fn leave(&mut self, ticket: Ticket) {
        if let Some(entry) = self.in_flight.get_mut(&ticket) {
            entry.is_left = true;
        }
    }

    /// The client of a held batch has gone, or the batch is answered otherwise.
    pub fn drop_hold(&mut self, now_ms: i64, hold: HoldId) -> GateSignal {
        self.held.remove(&hold);
        let Some(kept) = self.kept.remove(&hold) else { return GateSignal::default() };
        if let Some(batch) = kept.batch {
            self.pids.entry(batch.pid).or_default().fail(now_ms, batch);
            self.make_room(now_ms);
        }
        GateSignal { wake: self.take_waiting(), drained: false }
    }

    /// Tells what became of an admitted batch.
    pub fn complete(&mut self, now_ms: i64, ticket: Ticket, outcome: Outcome) -> GateSignal {
        let Some(entry) = self.in_flight.remove(&ticket) else { return GateSignal::default() };
        if let Some(batch) = entry.batch {
            let state = self.pids.entry(batch.pid).or_default();
            state.in_flight.remove(&ticket);
            if let Outcome::Appended(offset) = outcome {
                let end = offset.map(|base| VirtualOffset(base.0 + i64::from(batch.records())));
                self.acked_end = self.acked_end.max(end);
                state.confirmed = Some((entry.era, entry.native));
                self.carry.record_ack(batch.pid, batch.epoch, batch.first, batch.last, offset, now_ms);
            } else if outcome != Outcome::OutOfOrder {
                state.fail(now_ms, batch);
            }
            self.make_room(now_ms);
        }
        if outcome == Outcome::Unknown {
            self.unknown_since_ms = Some(now_ms);
        }
        GateSignal { wake: self.take_waiting(), drained: self.is_drained() }
    }

    /// Producers come and go; what has not written for as long as brokers remember it is forgotten here too.
    fn make_room(&mut self, now_ms: i64) {
        if self.pids.len() < self.expire_at.max(PRODUCERS_MIN) {
            return;
        }
        self.carry.expire(now_ms);
        let carry = &self.carry;
        self.pids.retain(|pid, state| {
            !state.in_flight.is_empty() || state.has_failed(now_ms) || carry.get(*pid).is_some()
        });
        self.expire_at = 2 * self.pids.len();
    }

    /// As [`PartitionGate::complete`] for a batch that was not acknowledged and may be sent again: it keeps its place
    /// before what came later, until it is admitted anew or [dropped](PartitionGate::drop_hold).
    pub fn complete_kept(
        &mut self,
        now_ms: i64,
        ticket: Ticket,
        outcome: Outcome,
        kept: Kept,
    ) -> (GateSignal, HoldId) {
        // Tickets and holds are numbered together.
        let hold = HoldId(ticket.0);
        self.kept.insert(hold, kept);
        (self.complete(now_ms, ticket, outcome), hold)
    }

    /// A session has ended and has not said what became of its batches: nobody else ever will.
    pub fn abandon(&mut self, now_ms: i64, session: SessionId) -> GateSignal {
        let of_session =
            |(ticket, entry): (&Ticket, &InFlight)| (entry.session == session).then_some(*ticket);
        let in_flight: Vec<Ticket> = self.in_flight.iter().filter_map(of_session).collect();
        let kept = self.kept.iter().filter(|(_, kept)| kept.session == session);
        let kept: Vec<HoldId> = kept.map(|(hold, _)| *hold).collect();
        let told = in_flight.into_iter().map(|t| self.complete(now_ms, t, Outcome::Unknown));
        let mut signals: Vec<GateSignal> = told.collect();
        signals.extend(kept.into_iter().map(|hold| self.drop_hold(now_ms, hold)));
        self.held.retain(|_, holder| *holder != session);
        self.waiting.remove(&session);
        let drained = signals.iter().any(|signal| signal.drained);
        GateSignal { wake: signals.into_iter().flat_map(|signal| signal.wake).collect(), drained }
    }

    /// From now on nothing passes. Batches in flight are still answered.
    pub fn fence(&mut self) {
        self.fenced = true;
    }

    #[must_use]
    pub fn is_fenced(&self) -> bool {
        self.fenced
    }

    /// Fenced, and nothing is in flight.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        self.fenced && self.in_flight.is_empty()
    }

    /// Lifts the fence to the same owner: the flip was aborted.
    pub fn release_unchanged(&mut self) -> GateSignal {
        self.fenced = false;
        GateSignal { wake: self.take_all(), drained: false }
    }

    /// Lifts the fence to a new owner in a new era.
    pub fn release(&mut self, now_ms: i64, era: u32, carry: Carry) -> GateSignal {
        self.fenced = false;
        self.era = era;
        self.carry = carry;
        self.flipped_at_ms = Some(now_ms);
        self.pids.clear();
        GateSignal { wake: self.take_all(), drained: false }
    }

    /// After a start: takes over what the owner lists of its producers. `visit` as in [`Carry::overlay_described`].
    /// Returns how many rows were news.
    pub fn seed(&mut self, rows: &[DescribedProducer], visit: u16, now_ms: i64) -> usize {
        self.started_at_ms = Some(now_ms);
        for pid in carry::known_to_owner(rows, visit, now_ms) {
            self.pids.entry(pid).or_default().is_known_to_owner = true;
        }
        self.carry.overlay_described(rows, visit, now_ms)
    }

    /// What was acknowledged so far, cumulative over eras (RULES R5).
    #[must_use]
    pub fn carry(&self) -> &Carry {
        &self.carry
    }

    /// The log ends here or behind it, unless it has lost what was replicated.
    #[must_use]
    pub fn acked_end(&self) -> Option<VirtualOffset> {
        self.acked_end
    }

    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// Batches held by the fence.
    #[must_use]
    pub fn held(&self) -> usize {
        self.held.len()
    }

    /// Since when an outcome is unknown (RULES R2), milliseconds.
    #[must_use]
    pub fn unknown_since_ms(&self) -> Option<i64> {
        self.unknown_since_ms
    }

    /// The barrier and the grace time have passed: what was unknown is settled.
    pub fn resolve_unknown(&mut self) {
        self.unknown_since_ms = None;
    }

    fn take_waiting(&mut self) -> Vec<SessionId> {
        std::mem::take(&mut self.waiting).into_iter().collect()
    }

    fn take_all(&mut self) -> Vec<SessionId> {
        let mut all = std::mem::take(&mut self.waiting);
        all.extend(self.held.values().copied());
        all.into_iter().collect()
    }

    fn fresh_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }
}

#[cfg(test)]
mod tests;
