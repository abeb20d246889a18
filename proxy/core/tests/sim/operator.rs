//! The operator, and the flip as `control/flip.rs` runs it: the same questions in the same order, the same reasons to abort.

use crate::bugs::Bug;
use crate::coverage::Seen;
use crate::proxy::described;
use crate::store::StoredTopic;
use crate::wire::TOPIC;
use crate::world::{Ev, MS, World, trace};
use crossover_core::cutover::{self, Meeting, Reading};
use crossover_core::ids::{ClusterSide, NativeOffset};
use crossover_core::producer::carry::Carry;
use crossover_core::session::lock;
use crossover_core::timeline::Timeline;
use std::sync::Arc;

/// As `flip.rs` has them.
const PREPARE_PAUSE: u64 = 150 * MS;
const REREAD_PAUSE: u64 = 3 * MS;
const DRAIN_LOOK: u64 = 5 * MS;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stage {
    Prepare,
    Fence,
    Drain,
    Boundary,
    Recheck,
    Seal,
    Publish,
}

/// Which log is read, and for what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Which {
    Old,
    New,
    OldAgain,
}

/// Where a flip goes on.
#[derive(Clone, Copy, Debug)]
pub(crate) enum At {
    Begin,
    Read { which: Which, part: usize, step: u32 },
    Settled,
    IntentStored,
    Look,
    Reread,
    Deadline,
    Stored,
    Release,
    SealedLate,
}

#[derive(Clone, Copy, Debug)]
struct Lead {
    leader: i32,
    epoch: i32,
}

/// What one partition's leaders have said.
#[derive(Clone, Debug, Default)]
struct Told {
    before: i64,
    high_watermark: i64,
    log_end: i64,
    last_stable: i64,
    producers: Vec<(i64, i16, i32)>,
    new: (i64, i64),
    again: (i64, i64),
}

pub(crate) struct Flip {
    pub(crate) serial: u32,
    to: ClusterSide,
    pub(crate) stage: Stage,
    old: Vec<Lead>,
    new: Vec<Lead>,
    told: Vec<Told>,
    prepared: Vec<(i64, i64)>,
    reads: usize,
    failed: bool,
    deadline: u64,
    sealed: Vec<(Arc<Timeline>, Carry)>,
    meetings: Vec<(i64, i64)>,
    fenced: bool,
    abort_asked: bool,
    looking: bool,
}

impl World {
    pub(crate) fn on_operate(&mut self) {
        self.operating = false;
        let enough = self.flips_sealed >= self.shape.flips.max(1);
        if self.flip.is_some() || (enough && (self.healed || self.flips_sealed > self.shape.flips)) {
            return;
        }
        if !self.start_flip() {
            self.operate_in(100, 800);
        }
    }

    fn operate_in(&mut self, from: u64, to: u64) {
        if !std::mem::replace(&mut self.operating, true) {
            let after = self.rng.between(from, to) * MS;
            self.plan(after, Ev::Operate);
        }
    }

    /// The plan's checks, as `plan.rs` has them.
    fn start_flip(&mut self) -> bool {
        if !self.proxy.up || self.proxy.unsealed || !self.proxy.unseeded.is_empty() || !self.is_settled() {
            return false;
        }
        self.flip_serial += 1;
        let to = self.proxy.route().owner.other();
        trace!(self, "flip {} to the {to}", self.flip_serial);
        self.flip = Some(Flip {
            serial: self.flip_serial,
            to,
            stage: Stage::Prepare,
            old: Vec::new(),
            new: Vec::new(),
            told: vec![Told::default(); self.shape.partitions as usize],
            prepared: Vec::new(),
            reads: 0,
            failed: false,
            deadline: u64::MAX,
            sealed: Vec::new(),
            meetings: Vec::new(),
            fenced: false,
            abort_asked: false,
            looking: false,
        });
        self.proxy.preparing = true;
        self.publish();
        self.go_on(At::Begin);
        self.maybe_disturb();
        true
    }

    /// Nothing that was lost can still reach a log (RULES R2).
    fn is_settled(&mut self) -> bool {
        let grace = if self.is(Bug::R2NoGrace) { 0 } else { self.shape.grace_ms };
        let now = self.now_ms();
        let mut settled = self.proxy.unclean_since_ms.is_none_or(|at| now - at >= grace);
        for gate in self.proxy.shared.gates.of_topic(TOPIC).values() {
            let mut gate = lock(gate);
            match gate.unknown_since_ms() {
                Some(at) if now - at < grace => settled = false,
                Some(_) => gate.resolve_unknown(),
                None => {}
            }
        }
        if !settled {
            self.see(Seen::GraceRefuses);
        }
        settled
    }

    fn go_on(&mut self, step: At) {
        let after = self.rng.between(10, 800);
        self.go_on_in(after, step);
    }

    fn go_on_in(&mut self, after: u64, step: At) {
        let serial = self.flip_serial;
        self.plan(after, Ev::Flip { serial, step });
    }

    pub(crate) fn on_flip(&mut self, serial: u32, step: At) {
        if self.flip.as_ref().is_none_or(|f| f.serial != serial) {
            return;
        }
        match step {
            At::Begin => self.begin_flip(),
            At::Read { which, part, step } => self.read(which, part, step),
            At::Settled => self.settled(),
            At::IntentStored => self.intent_stored(),
            At::Look => self.look(),
            At::Reread => self.read_boundary(),
            At::Deadline => self.deadline(),
            At::Stored => self.stored(),
            At::Release => self.release(),
            At::SealedLate => self.sealed_late(),
        }
    }

    fn the_flip(&mut self) -> &mut Flip {
        self.flip.as_mut().expect("a flip under way")
    }

    fn stage(&mut self, stage: Stage) {
        trace!(self, "flip {stage:?}");
        self.the_flip().stage = stage;
        self.maybe_disturb();
    }

    fn begin_flip(&mut self) {
        for side in ClusterSide::BOTH {
            if !self.look_at(side) {
                return self.abort_flip("a side cannot be reached");
            }
        }
        self.publish();
        let to = self.the_flip().to;
        let [old, new] = [to.other(), to].map(|side| self.leads(side));
        let (Some(old), Some(new)) = (old, new) else { return self.abort_flip("no leader") };
        self.the_flip().old = old;
        self.the_flip().new = new;
        self.read_boundary();
    }

    fn leads(&self, side: ClusterSide) -> Option<Vec<Lead>> {
        let topology = self.proxy.topology(side);
        let lead = |partition: i32| {
            let info = topology.partition(TOPIC, partition)?;
            let known = topology.brokers.contains_key(&info.leader);
            known.then_some(Lead { leader: info.leader, epoch: info.epoch })
        };
        (0..self.shape.partitions).map(lead).collect()
    }

    /// Both sides at a time; each leader is asked its questions one after the other (RULES R11).
    fn read_boundary(&mut self) {
        self.ask(&[Which::Old, Which::New]);
    }

    fn ask(&mut self, all: &[Which]) {
        let parts = self.shape.partitions as usize;
        self.the_flip().reads = parts * all.len();
        self.the_flip().failed = false;
        for part in 0..parts {
            for which in all {
                self.go_on(At::Read { which: *which, part, step: 0 });
            }
        }
    }

    fn read(&mut self, which: Which, part: usize, step: u32) {
        let flip = self.flip.as_mut().expect("a flip under way");
        let (side, lead, last) = match which {
            Which::Old => (flip.to.other(), flip.old[part], 4),
            Which::New => (flip.to, flip.new[part], 1),
            Which::OldAgain => (flip.to.other(), flip.old[part], 1),
        };
        let cluster = &self.clusters[side.index()];
        let stalled = cluster.brokers[lead.leader as usize].stalled_until;
        if stalled > self.now {
            let serial = flip.serial;
            return self.plan_at(stalled, Ev::Flip { serial, step: At::Read { which, part, step } });
        }
        let log = &cluster.logs[part];
        let fine = cluster.is_up(lead.leader) && log.check_epoch(lead.leader, lead.epoch).is_ok();
        flip.failed |= !fine;
        let told = &mut flip.told[part];
        match (which, step) {
            (Which::Old, 0) => told.before = log.high_watermark,
            (Which::Old, 1) => told.producers = log.producers(),
            (Which::Old, 2) => told.high_watermark = log.high_watermark,
            (Which::Old, 3) => told.log_end = log.end,
            (Which::Old, _) => told.last_stable = log.high_watermark,
            (Which::New, 0) => told.new.0 = log.high_watermark,
            (Which::New, _) => told.new.1 = log.end,
            (Which::OldAgain, 0) => told.again.0 = log.high_watermark,
            (Which::OldAgain, _) => told.again.1 = log.end,
        }
        if fine && step < last {
            let after = self.rng.between(5, 300);
            return self.go_on_in(after, At::Read { which, part, step: step + 1 });
        }
        flip.reads -= 1;
        if flip.reads == 0 {
            self.all_read();
        }
    }

    fn all_read(&mut self) {
        if self.the_flip().failed {
            return self.abort_flip("a leader does not answer, or is none");
        }
        match self.the_flip().stage {
            Stage::Prepare => self.prepared(),
            Stage::Boundary => self.boundary(),
            _ => self.rechecked(),
        }
    }

    fn prepared(&mut self) {
        let route = self.proxy.route();
        let flip = self.flip.as_mut().expect("a flip under way");
        flip.prepared = flip.told.iter().map(|told| told.new).collect();
        let to = flip.to;
        for (partition, (watermark, end)) in flip.prepared.clone().into_iter().enumerate() {
            if watermark != end {
                return self.abort_flip("the new owner has not replicated everything");
            }
            let timeline = route.timeline(partition as i32).expect("a timeline");
            let left = timeline.eras().rfind(|era| era.side == to).and_then(|era| era.native_end);
            if left.is_some_and(|left| left.0 != end) {
                return self.abort_flip("the idle side has moved");
            }
        }
        self.go_on_in(PREPARE_PAUSE, At::Settled);
    }

    fn settled(&mut self) {
        if self.the_flip().abort_asked {
            self.see(Seen::AbortInPrepare);
            return self.abort_flip("an operator asked for it");
        }
        self.stage(Stage::Fence);
        let name = Arc::clone(self.proxy.name());
        self.proxy.shared.changes.close(&name);
        let after = self.rng.between(200, 5_000);
        self.go_on_in(after, At::IntentStored);
    }

    fn intent_stored(&mut self) {
        if !self.healed && self.rng.chance(20) {
            return self.abort_flip("the intent cannot be stored");
        }
        self.disk.intent = true;
        for partition in 0..self.shape.partitions {
            lock(&self.proxy.gate(partition)).fence();
        }
        let deadline = self.now + self.shape.hold_ms as u64 * MS;
        self.the_flip().fenced = true;
        self.the_flip().deadline = deadline;
        let serial = self.flip_serial;
        self.plan_at(deadline, Ev::Flip { serial, step: At::Deadline });
        self.stage(Stage::Drain);
        self.look_at_drain();
    }

    /// A gate has become quiet.
    pub(crate) fn look_at_drain(&mut self) {
        let draining = self.flip.as_mut().filter(|f| f.stage == Stage::Drain);
        if let Some(flip) = draining
            && !std::mem::replace(&mut flip.looking, true)
        {
            self.go_on_in(20, At::Look);
        }
    }

    fn look(&mut self) {
        self.the_flip().looking = false;
        if self.the_flip().stage != Stage::Drain {
            return;
        }
        if self.has_lost() {
            return self.abort_flip("a connection with produce in flight was lost");
        }
        let mut gates = (0..self.shape.partitions).map(|p| self.proxy.gate(p));
        if self.is(Bug::R11NoDrain) || gates.all(|gate| lock(&gate).is_drained()) {
            self.stage(Stage::Boundary);
            if self.flip.is_some() {
                self.read_boundary();
            }
            return;
        }
        if self.the_flip().abort_asked {
            self.see(Seen::AbortInDrain);
            return self.abort_flip("an operator asked for it");
        }
        self.the_flip().looking = true;
        self.go_on_in(DRAIN_LOOK, At::Look);
    }

    fn has_lost(&mut self) -> bool {
        let mut gates = (0..self.shape.partitions).map(|p| self.proxy.gate(p));
        let lost = gates.any(|gate| lock(&gate).unknown_since_ms().is_some());
        if self.is(Bug::R2LossIgnored) {
            return false;
        }
        if lost {
            self.see(Seen::LossAborts);
        }
        lost
    }

    fn deadline(&mut self) {
        if [Stage::Drain, Stage::Boundary, Stage::Recheck].contains(&self.the_flip().stage) {
            self.see(Seen::DeadlineBeforeSeal);
            self.abort_flip("the hold bound has passed");
        }
    }

    fn boundary(&mut self) {
        let flip = self.flip.as_ref().expect("a flip under way");
        let mut meetings = Vec::new();
        for (part, told) in flip.told.iter().enumerate() {
            let lead = flip.old[part];
            let reading = Reading {
                leader: lead.leader,
                epoch: lead.epoch,
                before: told.before,
                high_watermark: told.high_watermark,
                log_end: told.log_end,
                last_stable: told.last_stable,
            };
            let mut quiet = cutover::quiet_end((lead.leader, lead.epoch), &reading);
            if self.is(Bug::R11Ends) {
                quiet = Ok(NativeOffset(told.high_watermark));
            }
            let Ok(old_end) = quiet else {
                if flip.abort_asked {
                    self.see(Seen::AbortInBoundary);
                    return self.abort_flip("an operator asked for it");
                }
                return self.go_on_in(REREAD_PAUSE, At::Reread);
            };
            match cutover::start(flip.prepared[part].1, told.new.0, told.new.1) {
                Ok(start) => meetings.push((old_end.0, start.0)),
                Err(_) => return self.abort_flip("the new owner has moved"),
            }
        }
        self.the_flip().meetings = meetings;
        self.carry();
    }

    fn carry(&mut self) {
        let (route, now) = (self.proxy.route(), self.now_ms());
        let flip = self.flip.as_ref().expect("a flip under way");
        let mut sealed = Vec::new();
        for (part, told) in flip.told.iter().enumerate() {
            let partition = part as i32;
            let timeline = route.timeline(partition).expect("a timeline");
            let mut carry = lock(&self.proxy.gate(partition)).carry().clone();
            if self.is(Bug::R5NotCumulative) {
                carry = Carry::default();
            }
            if !self.is(Bug::R5NoOverlay) {
                carry.overlay_described(&described(&told.producers, now), timeline.current().visit, now);
            }
            carry.expire(now);
            let seen = self.proxy.shared.seen.get(self.proxy.name(), partition);
            let (old_end, new_start) = flip.meetings[part];
            let meeting = Meeting {
                to: flip.to,
                old_end: NativeOffset(old_end),
                new_start: NativeOffset(new_start),
                old_epoch: flip.old[part].epoch,
                new_epoch: flip.new[part].epoch,
                highest_epoch_seen: seen.map_or(-1, |s| s.epoch),
                identity: false,
                at_ms: now,
            };
            match cutover::seal(timeline, &meeting) {
                Ok(next) => sealed.push((Arc::new(next), carry)),
                Err(error) => return self.abort_flip(&error.to_string()),
            }
        }
        self.the_flip().sealed = sealed;
        self.stage(Stage::Recheck);
        if self.flip.is_some() {
            self.ask(&[Which::OldAgain]);
        }
    }

    fn rechecked(&mut self) {
        let flip = self.flip.as_ref().expect("a flip under way");
        let moved = flip.told.iter().zip(&flip.meetings).any(|(told, meeting)| told.again.1 != meeting.0);
        if moved && !self.is(Bug::R11Ends) && !self.is(Bug::R11NoDrain) {
            return self.abort_flip("the log has moved under the fence");
        }
        if self.has_lost() {
            return self.abort_flip("a connection with produce in flight was lost");
        }
        if self.the_flip().abort_asked {
            self.see(Seen::AbortInBoundary);
            return self.abort_flip("an operator asked for it");
        }
        self.stage(Stage::Seal);
        if self.is(Bug::R13PublishFirst) {
            return self.publish_flip();
        }
        let after = self.rng.between(200, 20_000);
        self.go_on_in(after, At::Stored);
    }

    fn stored(&mut self) {
        let luck = if self.healed { 1000 } else { self.rng.up_to(999) };
        match luck {
            0..=19 => {
                self.see(Seen::SealNotWritten);
                self.abort_flip("SEAL cannot be stored")
            }
            20..=49 => {
                let durable = self.rng.chance(500);
                self.see(if durable { Seen::SealUnknownKept } else { Seen::SealUnknownLost });
                if durable {
                    self.make_durable();
                }
                trace!(self, "nobody knows whether SEAL is durable");
                if self.is(Bug::R13UnknownReleased) {
                    return self.abort_flip("nobody knows whether SEAL is durable");
                }
                self.proxy.unsealed = true;
                self.flip = None;
                self.proxy.preparing = false;
                self.publish();
                self.operate_in(200, 2_000);
            }
            _ => self.publish_flip(),
        }
    }

    /// The commit point.
    fn make_durable(&mut self) {
        let flip = self.flip.as_ref().expect("a flip under way");
        let to = flip.to;
        self.disk.revision = self.disk.revision.max(1) + 1;
        self.disk.topic = Some(StoredTopic::new(to, &flip.sealed));
        self.disk.intent = false;
        self.flips_sealed += 1;
        trace!(self, "sealed {:?}", flip.meetings);
        for (partition, meeting) in flip.meetings.clone().into_iter().enumerate() {
            let judged = self.oracle.sealed(partition as i32, to, meeting, &self.clusters);
            self.judge(judged);
        }
        if to == ClusterSide::Source {
            self.see(Seen::Rollback);
        }
    }

    fn publish_flip(&mut self) {
        if !self.is(Bug::R13PublishFirst) {
            self.make_durable();
        }
        self.stage(Stage::Publish);
        let Some(flip) = &self.flip else { return };
        let timelines: Vec<_> = flip.sealed.iter().map(|(timeline, _)| Arc::clone(timeline)).collect();
        self.shown_first = timelines.iter().map(|t| t.current().virtual_start.0).collect();
        self.proxy.moved = Some((flip.to, timelines));
        self.proxy.revision += 1;
        self.publish();
        let after = self.rng.up_to(150);
        self.go_on_in(after, At::Release);
    }

    fn release(&mut self) {
        let now = self.now_ms();
        for (partition, (timeline, carry)) in self.the_flip().sealed.clone().into_iter().enumerate() {
            let gate = self.proxy.gate(partition as i32);
            if lock(&gate).held() > 0 {
                self.see(Seen::HeldForwarded);
            }
            let signal = lock(&gate).release(now, timeline.current().index, carry);
            self.wake(&signal.wake);
        }
        if self.is(Bug::R13PublishFirst) {
            let after = self.rng.between(200, 20_000);
            return self.go_on_in(after, At::SealedLate);
        }
        self.flip = None;
        self.end_flip();
    }

    /// A flip that published first writes SEAL at last.
    fn sealed_late(&mut self) {
        self.make_durable();
        self.flip = None;
        self.end_flip();
    }

    fn end_flip(&mut self) {
        let revision = self.proxy.snapshot.revision;
        self.proxy.shared.changes.open(TOPIC, revision);
        self.proxy.preparing = false;
        self.publish();
        self.operate_in(20, 900);
    }

    fn abort_flip(&mut self, why: &str) {
        trace!(self, "the flip is aborted: {why}");
        let Some(flip) = self.flip.take() else { return };
        if flip.fenced {
            for partition in 0..self.shape.partitions {
                let signal = lock(&self.proxy.gate(partition)).release_unchanged();
                self.wake(&signal.wake);
            }
        }
        self.disk.intent = false;
        self.end_flip();
    }

    /// Kills the proxy, or asks for an abort, some time after a step.
    fn maybe_disturb(&mut self) {
        if self.healed || self.shape.faults == 0 {
            return;
        }
        if self.rng.chance(25) {
            let is_short = self.the_flip().stage == Stage::Publish;
            let after = self.rng.up_to(if is_short { 150 } else { 3_000 });
            self.plan(after, Ev::Fault(crate::faults::Fault::Crash));
        } else if self.rng.chance(25) {
            let after = self.rng.up_to(3_000);
            self.plan(after, Ev::Abort);
        }
    }

    pub(crate) fn on_abort(&mut self) {
        if self.is(Bug::R16AbortLate) && self.flip.as_ref().is_some_and(|f| f.stage == Stage::Seal) {
            self.make_durable();
            return self.abort_flip("an operator asked for it");
        }
        if let Some(flip) = self.flip.as_mut().filter(|f| f.stage < Stage::Seal) {
            flip.abort_asked = true;
            if flip.stage == Stage::Fence {
                self.see(Seen::AbortInFence);
            }
        }
    }

    /// The process ends in the middle of it: what was being written may be durable.
    pub(crate) fn crash_flip(&mut self) {
        let Some(stage) = self.flip.as_ref().map(|f| f.stage) else { return };
        self.see(match stage {
            Stage::Prepare => Seen::CrashInPrepare,
            Stage::Fence => Seen::CrashInFence,
            Stage::Drain => Seen::CrashInDrain,
            Stage::Boundary | Stage::Recheck => Seen::CrashInBoundary,
            Stage::Seal => Seen::CrashInSeal,
            Stage::Publish => Seen::CrashInPublish,
        });
        if stage == Stage::Seal && self.rng.chance(500) {
            self.make_durable();
        }
        self.flip = None;
        self.operate_in(200, 2_000);
    }
}
