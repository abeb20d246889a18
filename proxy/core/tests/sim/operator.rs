//! The operator, and what carries out a flip, as `control/flip.rs` does it: the core's machine decides, here is what it
//! asks for, in a model world.

use crate::bugs::Bug;
use crate::coverage::Seen;
use crate::store::StoredTopic;
use crate::txn_move::described;
use crate::wire::TOPIC;
use crate::world::{Ev, MS, World, trace};
use crossover_core::cutover::{
    self, Abort, Action, Ends, Event, Lead, Now, Outcome, Part, Reading, Readings, Step, Stored, Terms, Told,
};
use crossover_core::ids::ClusterSide;
use crossover_core::producer::carry::Carry;
use crossover_core::session::lock;
use crossover_core::timeline::Timeline;
use std::collections::BTreeMap;
use std::sync::Arc;

/// As `flip.rs` has them.
const PREPARE_PAUSE: u64 = 150 * MS;
const DRAIN_LOOK: u64 = 5 * MS;
const CHANGES_LOOK: u64 = 5 * MS;
const TRANSACTIONS_LOOK: u64 = 10 * MS;

/// Which log is read, and for what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Which {
    Old,
    New,
    OldAgain,
}

/// What happens next of an action.
#[derive(Clone, Copy, Debug)]
pub(crate) enum At {
    Prepare,
    Ask,
    Read {
        which: Which,
        part: usize,
        step: u32,
    },
    Settled,
    /// Before the cluster is asked for open transactions, and when it has answered.
    Transactions,
    TransactionsTold {
        here: bool,
    },
    Closing,
    IntentStored,
    Look {
        serial: u32,
    },
    Deadline,
    Stored,
    Published,
}

/// What one partition's leaders have said.
#[derive(Clone, Debug, Default)]
struct Heard {
    before: i64,
    high_watermark: i64,
    log_end: i64,
    last_stable: i64,
    producers: Vec<(i64, i16, i32)>,
    transaction: bool,
    new: (i64, i64),
    again: (i64, i64),
}

pub(crate) struct Flip {
    pub(crate) serial: u32,
    to: ClusterSide,
    machine: cutover::Flip,
    /// What the machine waits for.
    action: Action,
    heard: Vec<Heard>,
    reads: usize,
    failed: bool,
    abort_asked: bool,
    looks: u32,
    /// So long it waits for changes of the topic.
    closing_until: u64,
    /// So long it waits for transactions, while it does.
    transactions_until: Option<u64>,
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
        let route = self.proxy.route();
        let to = route.owner.other();
        trace!(self, "flip {} to the {to}", self.flip_serial);
        let terms = Terms {
            to,
            force: false,
            fence_ms_max: cutover::fence_ms_max(self.shape.hold_ms),
            carry_entries_max: usize::MAX,
        };
        self.flip = Some(Flip {
            serial: self.flip_serial,
            to,
            machine: cutover::Flip::new(terms, vec![route]),
            action: Action::Prepare,
            heard: vec![Heard::default(); self.shape.partitions as usize],
            reads: 0,
            failed: false,
            abort_asked: false,
            looks: 0,
            closing_until: 0,
            transactions_until: None,
        });
        self.go_on(At::Prepare);
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
            At::Prepare => self.prepare(),
            At::Ask => self.ask(&[Which::Old, Which::New]),
            At::Read { which, part, step } => self.read(which, part, step),
            At::Settled => self.tell(Event::Settled),
            At::Transactions => self.look_at_transactions(),
            At::TransactionsTold { here } => self.transactions_told(here),
            At::Closing => self.closing(),
            At::IntentStored => self.intent_stored(),
            At::Look { serial } => self.look(serial),
            At::Deadline => self.deadline(),
            At::Stored => self.stored(),
            At::Published => self.tell(Event::Published),
        }
    }

    fn the_flip(&mut self) -> &mut Flip {
        self.flip.as_mut().expect("a flip under way")
    }

    /// Tells the machine what came of its action, and begins the next one.
    pub(crate) fn tell(&mut self, event: Event) {
        let ms = self.now_ms();
        let flip = self.flip.as_mut().expect("a flip under way");
        let was = flip.machine.step();
        let now = Now { ms, abort_asked: flip.abort_asked };
        let is_fencing = matches!(event, Event::Closed);
        flip.action = flip.machine.on(now, event, &self.proxy.shared);
        let (action, step) = (flip.action.clone(), flip.machine.step());
        if is_fencing {
            self.go_on_in(self.shape.hold_ms as u64 * MS, At::Deadline);
        }
        if step != was {
            trace!(self, "flip {step:?}");
            self.maybe_ask();
            self.maybe_commit();
            self.maybe_disturb();
        }
        self.act(action);
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Prepare => self.go_on(At::Prepare),
            Action::Read { after_ms } => self.go_on_in(after_ms as u64 * MS, At::Ask),
            Action::Settle => {
                self.proxy.preparing = true;
                self.publish();
                self.go_on_in(PREPARE_PAUSE, At::Settled);
            }
            Action::CloseTransactions if self.transactors.is_empty() => self.tell(Event::NoTransactions),
            Action::CloseTransactions => {
                self.close_transactions();
                self.the_flip().transactions_until = Some(self.now + self.shape.hold_ms as u64 * MS);
                self.look_at_transactions();
            }
            Action::CloseTopics => {
                let name = Arc::clone(self.proxy.name());
                self.proxy.shared.changes.close(&name);
                self.the_flip().closing_until = self.now + self.shape.hold_ms as u64 * MS;
                let after = self.rng.between(20, 500);
                self.go_on_in(after, At::Closing);
            }
            Action::StoreIntent => {
                let after = self.rng.between(200, 5_000);
                self.go_on_in(after, At::IntentStored);
            }
            Action::AwaitDrain => self.look_in(DRAIN_LOOK),
            Action::ReadAgain => self.ask(&[Which::OldAgain]),
            Action::Commit => {
                let committed = !self.the_flip().abort_asked;
                self.tell(Event::Committed(committed));
            }
            Action::Seal => {
                let after = self.rng.between(200, 20_000);
                self.go_on_in(after, At::Stored);
            }
            Action::Publish => self.publish_flip(),
            Action::Release => {
                self.open_transactions();
                self.wake_all();
                self.tell(Event::Released);
            }
            Action::End(outcome) => self.ended(&outcome),
        }
    }

    /// Changes of the topic that had begun come to their end first (RULES R25).
    fn closing(&mut self) {
        if self.proxy.shared.changes.is_quiet(TOPIC) {
            return self.tell(Event::Closed);
        }
        self.see(Seen::DeletionHoldsFlip);
        let (now, flip) = (self.now, self.the_flip());
        if flip.abort_asked || now >= flip.closing_until {
            return self.tell(Event::Failed("a change of the topic is not over".to_owned()));
        }
        self.go_on_in(CHANGES_LOOK, At::Closing);
    }

    fn look_at_transactions(&mut self) {
        let here = self.look_here();
        let after = self.rng.between(50, 5_000);
        self.go_on_in(after, At::TransactionsTold { here });
    }

    fn transactions_told(&mut self, here: bool) {
        let side = self.the_flip().to.other();
        let here = here && !self.is(Bug::TxnNotHere);
        let there = self.look_there(side) && !self.is(Bug::TxnNotThere);
        if !here && !there {
            self.the_flip().transactions_until = None;
            return self.tell(Event::NoTransactions);
        }
        self.see(Seen::TransactionHoldsFlip);
        let (now, flip) = (self.now, self.the_flip());
        if flip.abort_asked || flip.transactions_until.is_some_and(|until| now >= until) {
            self.see(Seen::TransactionAbortsFlip);
            return self.tell(Event::Failed("a transaction is open".to_owned()));
        }
        self.go_on_in(TRANSACTIONS_LOOK, At::Transactions);
    }

    fn prepare(&mut self) {
        for side in ClusterSide::BOTH {
            if !self.look_at(side) {
                return self.tell(Event::Failed("a side cannot be reached".to_owned()));
            }
        }
        self.publish();
        let [source, target] = ClusterSide::BOTH.map(|side| self.leads(side));
        match (source, target) {
            (Some(source), Some(target)) => self.tell(Event::Leads([source, target])),
            _ => self.tell(Event::Failed("no leader".to_owned())),
        }
    }

    fn part(&self, partition: i32) -> Part {
        (Arc::clone(self.proxy.name()), partition)
    }

    fn leads(&self, side: ClusterSide) -> Option<BTreeMap<Part, Lead>> {
        let topology = self.proxy.topology(side);
        let lead = |partition: i32| {
            let info = topology.partition(TOPIC, partition)?;
            let known = topology.brokers.contains_key(&info.leader);
            known.then(|| (self.part(partition), Lead { leader: info.leader, epoch: info.epoch }))
        };
        (0..self.shape.partitions).map(lead).collect()
    }

    /// Both sides at a time; each leader is asked its questions one after the other (RULES R11).
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
        let key = self.part(part as i32);
        let flip = self.flip.as_mut().expect("a flip under way");
        let (side, last) = match which {
            Which::Old => (flip.to.other(), 4),
            Which::New => (flip.to, 1),
            Which::OldAgain => (flip.to.other(), 1),
        };
        let lead = flip.machine.leads(side)[&key];
        let cluster = &self.clusters[side.index()];
        let stalled = cluster.brokers[lead.leader as usize].stalled_until;
        if stalled > self.now {
            let serial = flip.serial;
            return self.plan_at(stalled, Ev::Flip { serial, step: At::Read { which, part, step } });
        }
        let log = &cluster.logs[part];
        let fine = cluster.is_up(lead.leader) && log.check_epoch(lead.leader, lead.epoch).is_ok();
        flip.failed |= !fine;
        let heard = &mut flip.heard[part];
        match (which, step) {
            (Which::Old, 0) => heard.before = log.high_watermark,
            (Which::Old, 1) => {
                heard.producers = log.producers();
                heard.transaction = log.unstable.is_open();
            }
            (Which::Old, 2) => heard.high_watermark = log.high_watermark,
            (Which::Old, 3) => heard.log_end = log.end,
            (Which::Old, _) => heard.last_stable = log.stable(),
            (Which::New, 0) => heard.new.0 = log.high_watermark,
            (Which::New, _) => heard.new.1 = log.end,
            (Which::OldAgain, 0) => heard.again.0 = log.high_watermark,
            (Which::OldAgain, _) => heard.again.1 = log.end,
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
        let now = self.now_ms();
        let flip = self.flip.as_ref().expect("a flip under way");
        if flip.failed {
            return self.tell(Event::Failed("a leader does not answer, or is none".to_owned()));
        }
        let heard = flip.heard.iter().enumerate().map(|(part, heard)| (self.part(part as i32), heard));
        let ends = |(high_watermark, log_end): (i64, i64)| Ends { high_watermark, log_end };
        if flip.action == Action::ReadAgain {
            let again = heard.map(|(part, heard)| (part, ends(heard.again))).collect();
            return self.tell(Event::Ends(again));
        }
        let leads = flip.machine.leads(flip.to.other());
        let mut readings = Readings::default();
        for (part, heard) in heard {
            let lead = leads[&part];
            let reading = Reading {
                leader: lead.leader,
                epoch: lead.epoch,
                before: heard.before,
                high_watermark: heard.high_watermark,
                log_end: heard.log_end,
                last_stable: heard.last_stable,
            };
            let side = flip.to.other();
            let producers = described(&self.proxy.transactions, side, &heard.producers, now);
            readings.old.insert(part.clone(), Told { reading, producers, transaction: heard.transaction });
            readings.new.insert(part, ends(heard.new));
        }
        self.tell(Event::Read(readings));
    }

    fn intent_stored(&mut self) {
        if !self.healed && self.rng.chance(20) {
            return self.tell(Event::Failed("the intent cannot be stored".to_owned()));
        }
        self.disk.intent = true;
        self.tell(Event::IntentStored);
    }

    /// A gate has become quiet.
    pub(crate) fn look_at_drain(&mut self) {
        if self.flip.as_ref().is_some_and(|flip| flip.action == Action::AwaitDrain) {
            self.look_in(20);
        }
    }

    fn look_in(&mut self, after: u64) {
        let flip = self.the_flip();
        flip.looks += 1;
        let serial = flip.looks;
        self.go_on_in(after, At::Look { serial });
    }

    fn look(&mut self, serial: u32) {
        let flip = self.the_flip();
        if flip.action == Action::AwaitDrain && flip.looks == serial {
            self.tell(Event::Looked);
        }
    }

    fn deadline(&mut self) {
        if matches!(self.the_flip().action, Action::Read { .. } | Action::ReadAgain) {
            self.tell(Event::Late);
        }
    }

    fn stored(&mut self) {
        let luck = if self.healed { 1000 } else { self.rng.up_to(999) };
        let stored = match luck {
            0..=19 => {
                self.see(Seen::SealNotWritten);
                Stored::NotWritten
            }
            20..=49 => {
                let durable = self.rng.chance(500);
                self.see(if durable { Seen::SealUnknownKept } else { Seen::SealUnknownLost });
                if durable {
                    self.make_durable();
                }
                Stored::Unknown
            }
            _ => {
                self.make_durable();
                Stored::Durable
            }
        };
        self.tell(Event::Stored(stored));
    }

    /// The commit point.
    fn make_durable(&mut self) {
        let flip = self.flip.as_ref().expect("a flip under way");
        let to = flip.to;
        let sealed: Vec<(Arc<Timeline>, Carry)> =
            flip.machine.sealed().iter().map(|s| (Arc::clone(&s.timeline), s.carry.clone())).collect();
        let meetings: Vec<(i64, i64)> = flip.machine.sealed().iter().map(meeting).collect();
        self.disk.revision = self.disk.revision.max(1) + 1;
        self.disk.topic = Some(StoredTopic::new(to, &sealed));
        self.disk.intent = false;
        self.flips_sealed += 1;
        trace!(self, "sealed {meetings:?}");
        for (partition, meeting) in meetings.into_iter().enumerate() {
            let judged = self.oracle.sealed(partition as i32, to, meeting, &self.clusters);
            self.judge(judged);
        }
        if to == ClusterSide::Source {
            self.see(Seen::Rollback);
        }
    }

    fn publish_flip(&mut self) {
        let flip = self.flip.as_ref().expect("a flip under way");
        let timelines: Vec<_> = flip.machine.sealed().iter().map(|s| Arc::clone(&s.timeline)).collect();
        self.shown_first = timelines.iter().map(|t| t.current().virtual_start.0).collect();
        self.proxy.moved = Some((flip.to, timelines));
        self.proxy.revision += 1;
        self.publish();
        for partition in 0..self.shape.partitions {
            if lock(&self.proxy.gate(partition)).held() > 0 {
                self.see(Seen::HeldForwarded);
            }
        }
        let after = self.rng.up_to(150);
        self.go_on_in(after, At::Published);
    }

    fn ended(&mut self, outcome: &Outcome) {
        let step = self.the_flip().machine.step();
        self.flip = None;
        match outcome {
            Outcome::Flipped => {}
            Outcome::Aborted(why) => {
                trace!(self, "the flip is aborted: {why}");
                self.see_abort(step, why);
                self.disk.intent = false;
                self.open_transactions();
                self.wake_all();
            }
            Outcome::Unknown => {
                trace!(self, "nobody knows whether SEAL is durable");
                self.proxy.unsealed = true;
                self.proxy.preparing = false;
                self.publish();
                return self.operate_in(200, 2_000);
            }
        }
        let revision = self.proxy.snapshot.revision;
        self.proxy.shared.changes.open(TOPIC, revision);
        self.proxy.preparing = false;
        self.publish();
        self.operate_in(20, 900);
    }

    fn see_abort(&mut self, step: Step, why: &Abort) {
        match (why, step) {
            (Abort::Asked, Step::Prepare) => self.see(Seen::AbortInPrepare),
            (Abort::Asked, Step::Drain) => self.see(Seen::AbortInDrain),
            (Abort::Asked, _) => self.see(Seen::AbortInBoundary),
            (Abort::Lost(_), _) => self.see(Seen::LossAborts),
            (Abort::NotDrained(_) | Abort::NoBoundary { .. } | Abort::Late { .. }, _) => {
                self.see(Seen::DeadlineBeforeSeal);
            }
            _ => {}
        }
    }

    /// Kills the proxy, or asks for an abort, some time after a step.
    fn maybe_disturb(&mut self) {
        if self.healed || self.shape.faults == 0 {
            return;
        }
        if self.rng.chance(25) {
            let is_short = self.the_flip().machine.step() == Step::Publish;
            let after = self.rng.up_to(if is_short { 150 } else { 3_000 });
            self.plan(after, Ev::Fault(crate::faults::Fault::Crash));
        } else if self.rng.chance(25) {
            let after = self.rng.up_to(3_000);
            self.plan(after, Ev::Abort);
        }
    }

    /// Past the point of no return the machine does not listen.
    pub(crate) fn on_abort(&mut self) {
        if let Some(flip) = self.flip.as_mut() {
            flip.abort_asked = true;
            if flip.machine.step() == Step::Fence {
                self.see(Seen::AbortInFence);
            }
        }
    }

    /// The process ends in the middle of it: what was being written may be durable.
    pub(crate) fn crash_flip(&mut self) {
        let Some(flip) = self.flip.as_ref() else { return };
        let (step, is_sealing) = (flip.machine.step(), flip.action == Action::Seal);
        self.see(match step {
            Step::Prepare => Seen::CrashInPrepare,
            Step::Fence => Seen::CrashInFence,
            Step::Drain => Seen::CrashInDrain,
            Step::Boundary | Step::Carry => Seen::CrashInBoundary,
            Step::Seal => Seen::CrashInSeal,
            Step::Publish | Step::Release => Seen::CrashInPublish,
        });
        if is_sealing && self.rng.chance(500) {
            self.make_durable();
        }
        self.flip = None;
        self.operate_in(200, 2_000);
    }
}

fn meeting(sealed: &cutover::Sealed) -> (i64, i64) {
    (sealed.old_end.0, sealed.timeline.current().native_start.0)
}
