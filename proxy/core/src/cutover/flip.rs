//! The flip of one unit as a machine: PREPARE → FENCE → DRAIN → BOUNDARY → CARRY → SEAL → PUBLISH → RELEASE.
//!
//! It says what is to be done next, is told what came of it, and decides. The shell asks brokers, waits and writes; the
//! simulator does the same in a model world. Whatever goes wrong before SEAL opens the gates to the old owner; after
//! it there is no way back (DESIGN decision 4, RULES R10–R16).

use super::{Abort, Grown, Meeting, Part, Reading, StartError, Unsettled, caught_up, quiet_end, seal, start};
use crate::bug::{self, Bug};
use crate::ids::{ClusterSide, NativeOffset};
use crate::producer::carry::{Carry, DescribedProducer};
use crate::route::{LinkMode, TopicRoute};
use crate::session::{Shared, SharedGate, lock};
use crate::timeline::Timeline;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Between two readings of a log that is not quiet yet, milliseconds.
const REREAD_MS: i64 = 3;

/// How long a flip may keep gates closed, where produce may be held for `hold_ms_max` milliseconds: less, so that what came
/// right before the fence outlasts a flip that ends at its bound. Given up, a batch without sequences costs its client the
/// connection, and what is under way there is written twice.
#[must_use]
pub fn fence_ms_max(hold_ms_max: i64) -> i64 {
    hold_ms_max - hold_ms_max / 5
}

/// What is flipped, and within which limits.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    pub to: ClusterSide,
    /// Growth of the idle side is accepted (RULES R12).
    pub force: bool,
    /// From the fence to SEAL, milliseconds; see [`fence_ms_max`].
    pub fence_ms_max: i64,
    /// Producers carried per partition.
    pub carry_entries_max: usize,
}

/// The leader of a partition as its cluster's metadata has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lead {
    pub leader: i32,
    /// −1 where the cluster does not tell.
    pub epoch: i32,
}

/// What the old owner's leader told of a partition, in the order of RULES R11.
#[derive(Clone, Debug)]
pub struct Told {
    pub reading: Reading,
    pub producers: Vec<DescribedProducer>,
    /// A producer has a transaction open.
    pub transaction: bool,
}

/// The ends of a log, at its leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ends {
    pub high_watermark: i64,
    pub log_end: i64,
}

/// Both sides, read side by side.
#[derive(Clone, Debug, Default)]
pub struct Readings {
    pub old: BTreeMap<Part, Told>,
    pub new: BTreeMap<Part, Ends>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    Prepare,
    Fence,
    Drain,
    Boundary,
    Carry,
    Seal,
    Publish,
    Release,
}

/// What is to be done next. Each is answered by one [`Event`]: its own, [`Event::Failed`] or [`Event::Late`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Fresh metadata of both sides, warm connections. [`Event::Leads`].
    Prepare,
    /// After a pause, both sides at once; each leader of the old owner in the order of RULES R11. [`Event::Read`].
    Read { after_ms: i64 },
    /// [`Event::IntentStored`].
    StoreIntent,
    /// Let sessions prepare themselves: dial their companions, keep their fetches short, have little in flight.
    /// [`Event::Settled`].
    Settle,
    /// From now on no transaction that writes to the topics begins; wait until those under way are over.
    /// [`Event::NoTransactions`].
    CloseTransactions,
    /// From now on no client changes the topics; wait for changes under way, then check that what was read still holds
    /// (RULES R26). [`Event::Closed`].
    CloseTopics,
    /// Until a gate is drained, a few milliseconds at most. [`Event::Looked`].
    AwaitDrain,
    /// The old owner's ends once more. [`Event::Ends`].
    ReadAgain,
    /// From now on an abort is refused. [`Event::Committed`] says whether none came before.
    Commit,
    /// Make [`Flip::sealed`] durable in one write. [`Event::Stored`].
    Seal,
    /// Show every session the new owner. [`Event::Published`].
    Publish,
    /// The gates are open: wake all sessions. [`Event::Released`].
    Release,
    /// Nothing more.
    End(Outcome),
}

/// How it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Flipped,
    /// The gates are open to the old owner: wake all sessions.
    Aborted(Abort),
    /// Nobody knows whether SEAL is durable. Either owner may be the one a restart finds, so the gates stay fenced
    /// (DESIGN decision 10).
    Unknown,
}

/// What came of an [`Action`].
#[derive(Clone, Debug)]
pub enum Event {
    /// By [`ClusterSide::index`].
    Leads([BTreeMap<Part, Lead>; 2]),
    Read(Readings),
    Settled,
    NoTransactions,
    Closed,
    IntentStored,
    Looked,
    Ends(BTreeMap<Part, Ends>),
    Committed(bool),
    Stored(Stored),
    Published,
    Released,
    /// It could not be done.
    Failed(String),
    /// It was not done before [`Flip::deadline_ms`].
    Late,
}

/// What the disk said of SEAL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    Durable,
    NotWritten,
    Unknown,
}

/// When an event is told, milliseconds of the caller's monotonic clock, and what the operator wants by then.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    pub ms: i64,
    pub abort_asked: bool,
}

/// A partition that is ready to be sealed.
#[derive(Clone, Debug)]
pub struct Sealed {
    pub part: Part,
    pub old_end: NativeOffset,
    pub timeline: Arc<Timeline>,
    pub carry: Carry,
}

/// A flip under way.
pub struct Flip {
    terms: Terms,
    routes: Vec<Arc<TopicRoute>>,
    step: Step,
    leads: [BTreeMap<Part, Lead>; 2],
    prepared: BTreeMap<Part, i64>,
    /// Empty unless this flip holds them closed.
    fenced: BTreeMap<Part, SharedGate>,
    deadline_ms: i64,
    /// Why there was no boundary the last time.
    unsettled: Option<(Part, Unsettled)>,
    sealed: Vec<Sealed>,
    /// SEAL is being written, or may have been.
    sealing: bool,
}

impl Flip {
    /// Routes of topics that exist and that the other side owns. The first action is [`Action::Prepare`].
    #[must_use]
    pub fn new(terms: Terms, routes: Vec<Arc<TopicRoute>>) -> Flip {
        Flip {
            terms,
            routes,
            step: Step::Prepare,
            leads: [BTreeMap::new(), BTreeMap::new()],
            prepared: BTreeMap::new(),
            fenced: BTreeMap::new(),
            deadline_ms: i64::MAX,
            unsettled: None,
            sealed: Vec::new(),
            sealing: false,
        }
    }

    /// Decides.
    pub fn on(&mut self, now: Now, event: Event, shared: &Shared) -> Action {
        match self.next(now, event, shared) {
            Ok(action) => action,
            Err(_) if self.step > Step::Seal => self.leave_closed(),
            Err(abort) => {
                self.let_go();
                Action::End(Outcome::Aborted(abort))
            }
        }
    }

    /// Opens what this flip has fenced to the old owner, unless SEAL may be durable. True if sessions are to be woken.
    pub fn let_go(&mut self) -> bool {
        if self.sealing {
            return false;
        }
        let fenced = std::mem::take(&mut self.fenced);
        fenced.values().for_each(|gate| drop(lock(gate).release_unchanged()));
        !fenced.is_empty()
    }

    #[must_use]
    pub fn step(&self) -> Step {
        self.step
    }

    /// Until when everything before SEAL must be done, of the clock of [`Now`].
    #[must_use]
    pub fn deadline_ms(&self) -> i64 {
        self.deadline_ms
    }

    /// The leaders of one side, as PREPARE found them.
    #[must_use]
    pub fn leads(&self, side: ClusterSide) -> &BTreeMap<Part, Lead> {
        &self.leads[side.index()]
    }

    /// What SEAL makes durable.
    #[must_use]
    pub fn sealed(&self) -> &[Sealed] {
        &self.sealed
    }

    fn next(&mut self, now: Now, event: Event, shared: &Shared) -> Result<Action, Abort> {
        match (self.step, event) {
            (_, Event::Failed(why)) => Err(Abort::Failed(why)),
            (_, Event::Late) => {
                Err(Abort::NoBoundary { hold_ms: self.terms.fence_ms_max, why: self.unsettled.take() })
            }
            (Step::Prepare, Event::Leads(leads)) => self.lead(leads),
            (Step::Prepare, Event::Read(readings)) => self.check_dry(&readings),
            // Two clusters and a disk are written to: nobody is to be slowed down for a flip meanwhile.
            (Step::Prepare, Event::IntentStored) => {
                check_asked(now)?;
                Ok(Action::Settle)
            }
            (Step::Prepare, Event::Settled) => {
                check_asked(now)?;
                Ok(Action::CloseTransactions)
            }
            (Step::Prepare, Event::NoTransactions) => {
                check_asked(now)?;
                self.step = Step::Fence;
                Ok(Action::CloseTopics)
            }
            (Step::Fence, Event::Closed) => {
                self.fence(now, shared);
                Ok(Action::AwaitDrain)
            }
            (Step::Drain, Event::Looked) => self.drain(now),
            (Step::Boundary, Event::Read(readings)) => self.meet(now, readings, shared),
            (Step::Carry, Event::Ends(ends)) => self.check_still(now, &ends),
            (Step::Seal, Event::Committed(true)) => self.commit(now),
            (Step::Seal, Event::Committed(false)) => Err(Abort::Asked),
            (Step::Seal, Event::Stored(stored)) => self.stored(now, stored),
            (Step::Publish, Event::Published) => {
                self.step = Step::Release;
                self.release(now);
                Ok(Action::Release)
            }
            (Step::Release, Event::Released) if bug::is(Bug::R13PublishFirst) => Ok(Action::Seal),
            (Step::Release, Event::Released | Event::Stored(_)) => Ok(Action::End(Outcome::Flipped)),
            _ => Err(Abort::OutOfTurn),
        }
    }

    fn lead(&mut self, leads: [BTreeMap<Part, Lead>; 2]) -> Result<Action, Abort> {
        let [source, target] = &leads;
        if !source.keys().eq(target.keys()) {
            return Err(Abort::PartitionCounts);
        }
        // Partitions that were added since the routes were read have their timelines in newer routes only.
        if source.keys().any(|part| self.route(part).and_then(|route| route.timeline(part.1)).is_none()) {
            return Err(Abort::Changed);
        }
        self.leads = leads;
        Ok(Action::Read { after_ms: 0 })
    }

    /// Everything that can refuse the flip before anybody waits.
    fn check_dry(&mut self, readings: &Readings) -> Result<Action, Abort> {
        for (part, ends) in &readings.new {
            let route = self.route(part).ok_or(Abort::Changed)?;
            if route.mode == LinkMode::Continue && ends.high_watermark != ends.log_end {
                return Err(Abort::NotReplicated { part: part.clone(), side: self.terms.to });
            }
            if !self.terms.force {
                check_idle(route, part.1, self.terms.to, ends.log_end)?;
            }
        }
        self.prepared = readings.new.iter().map(|(part, ends)| (part.clone(), ends.log_end)).collect();
        Ok(Action::StoreIntent)
    }

    fn fence(&mut self, now: Now, shared: &Shared) {
        for part in self.leads(self.terms.to.other()).keys().cloned().collect::<Vec<_>>() {
            let gate = shared.gates.get(&part.0, part.1);
            lock(&gate).fence();
            self.fenced.insert(part, gate);
        }
        self.deadline_ms = now.ms.saturating_add(self.terms.fence_ms_max);
        self.step = Step::Drain;
    }

    fn drain(&mut self, now: Now) -> Result<Action, Abort> {
        let busy =
            self.fenced.iter().find(|(_, gate)| !lock(gate).is_drained()).map(|(part, _)| part.clone());
        self.check_no_loss()?;
        let busy = busy.filter(|_| !bug::is(Bug::R11NoDrain));
        let Some(busy) = busy else {
            self.step = Step::Boundary;
            return Ok(Action::Read { after_ms: 0 });
        };
        check_asked(now)?;
        if now.ms >= self.deadline_ms { Err(Abort::NotDrained(busy)) } else { Ok(Action::AwaitDrain) }
    }

    /// Produce whose outcome became unknown may still reach the old log (RULES R2).
    fn check_no_loss(&self) -> Result<(), Abort> {
        let is_lost = |gate: &SharedGate| lock(gate).unknown_since_ms().is_some();
        match self.fenced.iter().find(|(_, gate)| is_lost(gate)) {
            Some((part, _)) if !bug::is(Bug::R2LossIgnored) => Err(Abort::Lost(part.clone())),
            _ => Ok(()),
        }
    }

    /// Where the eras meet; read again until everything agrees.
    fn meet(&mut self, now: Now, readings: Readings, shared: &Shared) -> Result<Action, Abort> {
        let mut sealed = Vec::new();
        self.unsettled = None;
        for (part, told) in readings.old {
            let route = self.route(&part).ok_or(Abort::Changed)?;
            let timeline = route.timeline(part.1).ok_or(Abort::Changed)?;
            // A marker may still be under way behind the answer that has ended its transaction.
            if told.transaction {
                self.unsettled = Some((part, Unsettled::Transaction));
                continue;
            }
            match self.boundary(&part, route, timeline, &told.reading, readings.new.get(&part))? {
                Ok(ends) => {
                    if let Some(short) = self.is_short(shared, &part, timeline, ends.0) {
                        self.unsettled = Some((part, short));
                        continue;
                    }
                    let carry = self.carry(now, &part, timeline, &told.producers)?;
                    let next = seal(timeline, &self.meeting(now, shared, &part, ends));
                    let next = next.map_err(|why| Abort::Seal { part: part.clone(), why })?;
                    sealed.push(Sealed { part, old_end: ends.0, timeline: Arc::new(next), carry });
                }
                Err(why) => self.unsettled = Some((part, why)),
            }
        }
        if self.unsettled.is_some() {
            check_asked(now)?;
            return Ok(Action::Read { after_ms: REREAD_MS });
        }
        self.sealed = sealed;
        self.step = Step::Carry;
        Ok(Action::ReadAgain)
    }

    /// A boundary below what was acknowledged or read would take records out of the log that clients have relied upon,
    /// whatever a broker says of itself: it may have been deposed and not know it.
    fn is_short(
        &self,
        shared: &Shared,
        part: &Part,
        timeline: &Timeline,
        old_end: NativeOffset,
    ) -> Option<Unsettled> {
        let end = timeline.exclusive_to_virtual(timeline.current().index, old_end).0;
        let acked = self.fenced.get(part).and_then(|gate| lock(gate).acked_end()).map_or(0, |end| end.0);
        let read = shared.seen.get(&part.0, part.1).map_or(0, |seen| seen.high_watermark);
        let shown = acked.max(read);
        (end < shown && !self.terms.force && !bug::is(Bug::R11Ends) && !bug::is(Bug::R11NoDrain))
            .then_some(Unsettled::Short { end, shown })
    }

    /// Where one partition's old log ends and its new one starts; the inner error is worth asking again.
    fn boundary(
        &self,
        part: &Part,
        route: &TopicRoute,
        timeline: &Timeline,
        reading: &Reading,
        new: Option<&Ends>,
    ) -> Result<Result<(NativeOffset, NativeOffset), Unsettled>, Abort> {
        let expected = self.leads(self.terms.to.other()).get(part).ok_or(Abort::Changed)?;
        let old_end = match quiet_end((expected.leader, expected.epoch), reading) {
            _ if bug::is(Bug::R11Ends) => NativeOffset(reading.high_watermark),
            Ok(end) => end,
            Err(why) => return Ok(Err(why.into())),
        };
        let failed = |why: StartError| Abort::Start { part: part.clone(), why };
        let Ends { high_watermark, log_end } = new.copied().ok_or_else(|| failed(StartError::Unknown))?;
        match route.mode {
            LinkMode::Continue => {
                let was = self.prepared.get(part).copied().unwrap_or(-1);
                let start = start(was, high_watermark, log_end).map_err(failed)?;
                Ok(Ok((old_end, start)))
            }
            LinkMode::Identity => {
                let wanted = timeline.exclusive_to_virtual(timeline.current().index, old_end);
                let start = caught_up(wanted, high_watermark, log_end);
                Ok(start.map(|start| (old_end, start)).map_err(Unsettled::from))
            }
        }
    }

    /// What the partition's producers have had acknowledged, cumulative over the eras (RULES R5).
    fn carry(
        &self,
        now: Now,
        part: &Part,
        timeline: &Timeline,
        producers: &[DescribedProducer],
    ) -> Result<Carry, Abort> {
        let gate = self.fenced.get(part).ok_or(Abort::Changed)?;
        let mut carry =
            if bug::is(Bug::R5NotCumulative) { Carry::default() } else { lock(gate).carry().clone() };
        if !bug::is(Bug::R5NoOverlay) {
            carry.overlay_described(producers, timeline.current().visit, now.ms);
        }
        carry.expire(now.ms);
        carry.set_limit(self.terms.carry_entries_max);
        Ok(carry)
    }

    fn meeting(
        &self,
        now: Now,
        shared: &Shared,
        part: &Part,
        (old_end, new_start): (NativeOffset, NativeOffset),
    ) -> Meeting {
        let to = self.terms.to;
        let epoch = |side| self.leads(side).get(part).map_or(-1, |lead| lead.epoch);
        Meeting {
            to,
            old_end,
            new_start,
            old_epoch: epoch(to.other()),
            new_epoch: epoch(to),
            highest_epoch_seen: shared.seen.get(&part.0, part.1).map_or(-1, |seen| seen.epoch),
            identity: self.route(part).is_some_and(|route| route.mode == LinkMode::Identity),
            at_ms: now.ms,
        }
    }

    /// A leader that has changed meanwhile refuses the epoch it is asked with (RULES R11).
    fn check_still(&mut self, now: Now, ends: &BTreeMap<Part, Ends>) -> Result<Action, Abort> {
        let end = |part: &Part| ends.get(part).map_or(-1, |ends| ends.log_end);
        let moved = self.sealed.iter().find(|sealed| end(&sealed.part) != sealed.old_end.0);
        if let Some(sealed) = moved.filter(|_| !bug::is(Bug::R11Ends) && !bug::is(Bug::R11NoDrain)) {
            let (part, was) = (sealed.part.clone(), sealed.old_end.0);
            return Err(Abort::Moved { now: end(&part), part, was });
        }
        self.check_no_loss()?;
        self.check_in_time(now)?;
        self.step = Step::Seal;
        Ok(Action::Commit)
    }

    fn check_in_time(&self, now: Now) -> Result<(), Abort> {
        let in_time = now.ms < self.deadline_ms;
        if in_time { Ok(()) } else { Err(Abort::Late { hold_ms: self.terms.fence_ms_max }) }
    }

    fn commit(&mut self, now: Now) -> Result<Action, Abort> {
        self.check_in_time(now)?;
        if bug::is(Bug::R13PublishFirst) {
            self.step = Step::Publish;
            return Ok(Action::Publish);
        }
        self.sealing = true;
        Ok(Action::Seal)
    }

    fn stored(&mut self, now: Now, stored: Stored) -> Result<Action, Abort> {
        match stored {
            Stored::NotWritten => {
                self.sealing = false;
                Err(Abort::NotStored)
            }
            Stored::Unknown if bug::is(Bug::R13UnknownReleased) => {
                self.sealing = false;
                Err(Abort::NotStored)
            }
            Stored::Unknown => Ok(self.leave_closed()),
            Stored::Durable if now.abort_asked && bug::is(Bug::R16AbortLate) => {
                self.sealing = false;
                Err(Abort::Asked)
            }
            Stored::Durable => {
                self.step = Step::Publish;
                Ok(Action::Publish)
            }
        }
    }

    /// Only a restart finds out which owner may take writes.
    fn leave_closed(&mut self) -> Action {
        self.fenced.clear();
        Action::End(Outcome::Unknown)
    }

    /// All gates open before anybody is woken: a request whose partitions open one after the other would go out in as
    /// many pieces.
    fn release(&mut self, now: Now) {
        let fenced = std::mem::take(&mut self.fenced);
        for sealed in &self.sealed {
            if let Some(gate) = fenced.get(&sealed.part) {
                lock(gate).release(now.ms, sealed.timeline.current().index, sealed.carry.clone());
            }
        }
    }

    fn route(&self, part: &Part) -> Option<&Arc<TopicRoute>> {
        self.routes.iter().find(|route| route.name == part.0)
    }
}

fn check_asked(now: Now) -> Result<(), Abort> {
    if now.abort_asked { Err(Abort::Asked) } else { Ok(()) }
}

/// The idle side must stand where it was when it lost ownership (RULES R12).
///
/// # Errors
/// [`Grown`]: somebody has written to it.
pub fn check_idle(route: &TopicRoute, partition: i32, side: ClusterSide, end: i64) -> Result<(), Grown> {
    let eras = route.timeline(partition).map(|timeline| timeline.eras());
    let left = eras.and_then(|mut eras| eras.rfind(|era| era.side == side)).and_then(|era| era.native_end);
    match left.filter(|left| route.mode == LinkMode::Continue && left.0 != end) {
        Some(left) => Err(Grown { part: (Arc::clone(&route.name), partition), side, left: left.0, end }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests;
