//! Transactional producers: when an application begins, writes and ends, and how the instances of one transactional id follow
//! each other. What a library does with answers is in `txn_client.rs`.

use crate::coverage::Seen;
use crate::oracle::Promise;
use crate::wire::Mark;
use crate::world::{Ev, MS, Who, World, trace};
use crossover_core::ids::VirtualNode;
use crossover_core::producer::transaction;
use std::collections::{BTreeMap, VecDeque};

/// Which library. Java adds the partitions it has records for in one request, one request at a time; franz-go adds each
/// with a request of its own, all at once, on whichever connection; librdkafka writes one partition per request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Library {
    Java,
    Librdkafka,
    Franz,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// It has no identity yet.
    Init,
    /// It asks for its next epoch, after an error (KIP-360).
    Bump,
    /// Between two transactions.
    Idle,
    Open,
    Ending,
    /// It has ended, was fenced, or its process has died.
    Over,
}

/// What becomes of an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Destiny {
    Lives,
    /// Its process dies in the middle of a transaction.
    Dies,
    /// It stands still in the middle of a transaction, and goes on when another one has its place.
    Sleeps,
}

/// One instance of an application.
pub(crate) struct Transactor {
    /// Which transactional id, counted.
    pub(crate) chain: usize,
    pub(crate) id: String,
    pub(crate) library: Library,
    pub(crate) client_id: String,
    pub(crate) versions: Versions,
    pub(crate) timeout_ms: i32,
    pub(crate) identity: Option<(i64, i16)>,
    pub(crate) stage: Stage,
    pub(crate) lots: Vec<Lot>,
    /// Of the open transaction, in the oracle's books.
    pub(crate) txn: usize,
    pub(crate) began_at: u64,
    pub(crate) commits: bool,
    /// An error has to be followed by an abort, and that by a new epoch.
    pub(crate) has_failed: bool,
    /// When it gives up a transaction that it does not want to commit.
    gives_up_at: u64,
    next_at: u64,
    asleep_until: u64,
    destiny: Destiny,
    /// When that comes true.
    destiny_at: u64,
    /// Transactions that are still to be ended, by this instance or by the next one.
    pub(crate) left: u32,
    /// Another instance has begun.
    pub(crate) replaced: bool,
    /// The coordinator has ended its transaction because it took too long.
    pub(crate) timed_out: bool,
    /// It does not know what became of a beginning, or of its first InitProducerId. If that comes late, or if it does not end what it believes was never
    /// begun, its coordinator fences it, also without a proxy.
    pub(crate) unsure: bool,
    // The library's.
    pub(crate) conns: BTreeMap<VirtualNode, Line>,
    pub(crate) talks: Vec<Line>,
    pub(crate) finder: Option<Line>,
    pub(crate) coordinator: Option<VirtualNode>,
    pub(crate) correlation: i32,
    pub(crate) not_before: u64,
    pub(crate) tick_at: u64,
}

#[derive(Clone, Copy)]
pub(crate) struct Versions {
    pub(crate) init: i16,
    pub(crate) add: i16,
    pub(crate) end: i16,
    pub(crate) produce: i16,
}

/// A connection, and what was asked on it.
pub(crate) struct Line {
    pub(crate) conn: usize,
    pub(crate) asked: VecDeque<(i32, What)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum What {
    Find,
    Init,
    /// Partitions, by lot.
    Add(Vec<usize>),
    End,
    /// Batches: lot and number.
    Produce(Vec<(usize, usize)>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Joined {
    /// The transaction has nothing to do with it.
    No,
    Wanted,
    Asked,
    Yes,
}

/// What goes to one partition.
pub(crate) struct Lot {
    pub(crate) log: i32,
    pub(crate) writer: u32,
    pub(crate) node: Option<VirtualNode>,
    pub(crate) learning: bool,
    pub(crate) joined: Joined,
    /// When the transaction comes to write to it, and what.
    joins_at: u64,
    counts: Vec<i32>,
    pub(crate) batches: Vec<Batch>,
    /// The first that is not done.
    pub(crate) first: usize,
    pub(crate) next_sequence: i32,
}

pub(crate) struct Batch {
    pub(crate) count: i32,
    /// Given when it is sent for the first time.
    pub(crate) sequence: Option<i32>,
    pub(crate) state: Sent,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sent {
    Waiting { from: u64 },
    InFlight { node: VirtualNode },
    Done,
}

impl Lot {
    pub(crate) fn done(&mut self, index: usize) {
        self.batches[index].state = Sent::Done;
        while self.batches.get(self.first).is_some_and(|b| b.state == Sent::Done) {
            self.first += 1;
        }
    }

    fn is_busy(&self) -> bool {
        self.first < self.batches.len() || [Joined::Wanted, Joined::Asked].contains(&self.joined)
    }

    /// What has no sequence yet is not sent any more.
    fn leave_out(&mut self) {
        self.counts.clear();
        for index in self.first..self.batches.len() {
            if self.batches[index].sequence.is_none() {
                self.done(index);
            }
        }
    }
}

impl Transactor {
    pub(crate) fn unfinished(&self) -> Option<String> {
        (self.stage != Stage::Over).then(|| {
            let lot = self.lots.iter().find(|lot| lot.is_busy());
            let lot = lot.map(|l| (l.log, l.joined, l.batches.get(l.first).map(|b| b.state)));
            format!("{} is {:?}, has {} transactions left, {lot:?}", self.client_id, self.stage, self.left)
        })
    }

    pub(crate) fn is_over(&self) -> bool {
        self.stage == Stage::Over
    }
}

impl World {
    pub(crate) fn add_transactors(&mut self) {
        for chain in 0..self.shape.chains {
            let left = self.rng.between(4, 10) as u32;
            self.add_instance(chain, left);
        }
    }

    fn add_instance(&mut self, chain: usize, left: u32) {
        let index = self.transactors.len();
        let library = self.rng.pick(&[Library::Java, Library::Librdkafka, Library::Franz]);
        let lots = (0..self.logs()).map(|log| Lot {
            log,
            writer: self.oracle.add_writer(Promise::Transaction),
            node: None,
            learning: false,
            joined: Joined::No,
            joins_at: 0,
            counts: Vec::new(),
            batches: Vec::new(),
            first: 0,
            next_sequence: 0,
        });
        let lots = lots.collect();
        let versions = Versions {
            init: self.rng.pick(&[3, 4, 5]),
            add: self.rng.pick(&[0, 2, 3]),
            end: self.rng.pick(&[0, 2, 4]),
            produce: self.rng.pick(&[7, 9, 11]),
        };
        let destiny = match self.healed {
            true => Destiny::Lives,
            false => self.rng.pick(&[Destiny::Lives, Destiny::Lives, Destiny::Dies, Destiny::Sleeps]),
        };
        self.transactors.push(Transactor {
            chain,
            id: format!("transactions-{chain}"),
            library,
            client_id: format!("transactor-{chain}-{index}"),
            versions,
            timeout_ms: self.rng.pick(&[1_500, 6_000, 30_000]),
            identity: None,
            stage: Stage::Init,
            lots,
            txn: 0,
            began_at: 0,
            commits: true,
            has_failed: false,
            gives_up_at: u64::MAX,
            next_at: 0,
            asleep_until: 0,
            destiny,
            destiny_at: self.now + self.rng.up_to(self.shape.heal_at / 2),
            left,
            replaced: false,
            timed_out: false,
            unsure: false,
            conns: BTreeMap::new(),
            talks: Vec::new(),
            finder: None,
            coordinator: None,
            correlation: 0,
            not_before: 0,
            tick_at: u64::MAX,
        });
        for lot in 0..self.transactors[index].lots.len() {
            self.transactor_looks(index, lot);
        }
        self.transact_soon(index, self.now);
    }

    pub(crate) fn transact_soon(&mut self, index: usize, at: u64) {
        let at = at.max(self.now);
        if at < self.transactors[index].tick_at {
            self.transactors[index].tick_at = at;
            self.plan_at(at, Ev::Tick(Who::Transactor(index)));
        }
    }

    pub(crate) fn transactor_looks(&mut self, index: usize, lot: usize) {
        if !std::mem::replace(&mut self.transactors[index].lots[lot].learning, true) {
            let after = self.delay() + self.rng.between(1, 20) * MS;
            self.plan(after, Ev::Learn { who: Who::Transactor(index), partition: lot });
        }
    }

    pub(crate) fn transactor_learns(&mut self, index: usize, lot: usize) {
        let known = if self.proxy.up { self.metadata(self.transactors[index].lots[lot].log) } else { None };
        let at = &mut self.transactors[index].lots[lot];
        at.learning = false;
        match known {
            Some((node, _)) => {
                at.node = Some(node);
                self.transact_soon(index, self.now);
            }
            None => self.transactor_looks(index, lot),
        }
    }

    pub(crate) fn is_asleep(&self, index: usize) -> bool {
        self.wakes_at(index) > self.now
    }

    pub(crate) fn wakes_at(&self, index: usize) -> u64 {
        self.transactors[index].asleep_until
    }

    pub(crate) fn tick_transactor(&mut self, index: usize) {
        let at = &mut self.transactors[index];
        if at.tick_at > self.now {
            return;
        }
        at.tick_at = u64::MAX;
        if at.stage == Stage::Over {
            return;
        }
        if at.asleep_until > self.now {
            let until = at.asleep_until;
            return self.transact_soon(index, until);
        }
        if [Stage::Open, Stage::Ending].contains(&at.stage)
            && at.destiny != Destiny::Lives
            && at.destiny_at <= self.now
        {
            return self.meet_destiny(index);
        }
        self.go_through(index);
        self.talk(index);
        self.produce_in_transaction(index);
        self.plan_next(index);
    }

    fn go_through(&mut self, index: usize) {
        let at = &self.transactors[index];
        match at.stage {
            Stage::Idle if at.left == 0 => self.quit(index),
            Stage::Idle if at.next_at <= self.now => self.begin_transaction(index),
            Stage::Open => self.write_on(index),
            _ => {}
        }
    }

    fn quit(&mut self, index: usize) {
        self.transactors[index].stage = Stage::Over;
        self.drop_lines(index);
    }

    fn begin_transaction(&mut self, index: usize) {
        let (chain, healed) = (self.transactors[index].chain, self.healed);
        let txn = self.oracle.txns.begin(chain, index);
        let span = self.shape.heal_at / 60;
        let commits = self.rng.chance(700);
        let gives_up_at = if commits { u64::MAX } else { self.now + self.rng.up_to(2 * span) };
        let count = self.transactors[index].lots.len() as u64;
        let sure = self.rng.up_to(count - 1) as usize;
        for lot in 0..count as usize {
            if lot != sure && self.rng.chance(500) {
                continue;
            }
            let batches = if lot == sure { self.rng.between(1, 4) } else { self.rng.between(1, 3) };
            let counts = (0..batches).map(|_| self.rng.between(1, 3) as i32).collect();
            let later = if !healed && self.rng.chance(300) { self.rng.up_to(span) } else { 0 };
            let at = &mut self.transactors[index].lots[lot];
            (at.joins_at, at.counts) = (self.now + later, counts);
        }
        let at = &mut self.transactors[index];
        (at.txn, at.began_at, at.gives_up_at) = (txn, self.now, gives_up_at);
        (at.commits, at.has_failed) = (commits, false);
        at.stage = Stage::Open;
        trace!(self, "transactor {index} begins transaction {txn}, commit {commits}");
        self.write_on(index);
    }

    /// The application writes, and ends its transaction when all of it is settled.
    fn write_on(&mut self, index: usize) {
        let (now, txn) = (self.now, self.transactors[index].txn);
        if self.transactors[index].gives_up_at <= now {
            self.transactors[index].commits = false;
        }
        let gives_up = self.transactors[index].has_failed || self.transactors[index].gives_up_at <= now;
        for lot in &mut self.transactors[index].lots {
            if gives_up {
                lot.leave_out();
                // What was to be written has been announced, and Java says so to the coordinator all the same.
                continue;
            }
            if lot.joins_at <= now && !lot.counts.is_empty() {
                if lot.joined == Joined::No {
                    lot.joined = Joined::Wanted;
                }
                for count in std::mem::take(&mut lot.counts) {
                    let mark = Mark { producer: lot.writer, number: lot.batches.len() as u32 };
                    self.oracle.txns.write(txn, mark);
                    lot.batches.push(Batch { count, sequence: None, state: Sent::Waiting { from: 0 } });
                }
            }
        }
        let at = &mut self.transactors[index];
        if at.has_failed {
            // An error ends it; partitions that were to be added are not.
            at.lots.iter_mut().filter(|l| l.joined == Joined::Wanted).for_each(|l| l.joined = Joined::No);
        }
        if at.lots.iter().any(|lot| lot.is_busy() || !lot.counts.is_empty()) {
            return;
        }
        if at.lots.iter().all(|lot| lot.joined == Joined::No) {
            // The coordinator knows nothing of it.
            return self.has_ended(index, false);
        }
        at.commits &= !at.has_failed;
        at.stage = Stage::Ending;
        let commits = at.commits;
        self.oracle.txns.ask(txn, commits);
    }

    /// It was told that its transaction is over, or that never one was begun.
    pub(crate) fn has_ended(&mut self, index: usize, commit: bool) {
        let txn = self.transactors[index].txn;
        trace!(self, "transactor {index} has ended transaction {txn}, commit {commit}");
        let judged = self.oracle.ended(txn, commit);
        self.judge(judged);
        self.see(if commit { Seen::TransactionCommitted } else { Seen::TransactionAborted });
        let pause = self.shape.heal_at / 12;
        let pause = if self.healed || self.rng.chance(300) { 0 } else { self.rng.up_to(pause * 2) };
        let at = &mut self.transactors[index];
        at.lots.iter_mut().for_each(|lot| lot.joined = Joined::No);
        at.left = at.left.saturating_sub(1);
        at.stage = if at.has_failed { Stage::Bump } else { Stage::Idle };
        at.next_at = self.now + pause;
        self.transact_soon(index, self.now);
    }

    fn meet_destiny(&mut self, index: usize) {
        let destiny = self.transactors[index].destiny;
        trace!(self, "transactor {index} {destiny:?}");
        let after = match destiny {
            Destiny::Lives => return,
            Destiny::Dies => {
                self.quit(index);
                self.rng.pick(&[1, 100, 1_000, 4_000]) * MS
            }
            Destiny::Sleeps => {
                let until = self.now + self.rng.between(20, 2_000) * MS;
                let at = &mut self.transactors[index];
                (at.asleep_until, at.destiny) = (until, Destiny::Lives);
                self.transact_soon(index, until);
                self.rng.between(1, 1_000) * MS
            }
        };
        self.plan(after, Ev::Replace { transactor: index });
    }

    /// Another instance of the application begins.
    pub(crate) fn on_replace(&mut self, index: usize) {
        if std::mem::replace(&mut self.transactors[index].replaced, true) {
            return;
        }
        let (chain, left) = (self.transactors[index].chain, self.transactors[index].left);
        // What is left, its successor does.
        self.transactors[index].left = 0;
        self.see(Seen::TransactorReplaced);
        self.add_instance(chain, left.max(1));
    }

    /// It cannot go on. Without a reason that is the proxy's fault.
    pub(crate) fn is_fatal(&mut self, index: usize, what: &What, error: i16) {
        let at = &self.transactors[index];
        trace!(self, "transactor {index} is told {error} for {what:?}: it cannot go on");
        if !at.replaced && !at.timed_out && !at.unsure {
            let name = at.client_id.clone();
            return self
                .fail(format!("{name} is told {error} for {what:?}, which is fatal, without a cause"));
        }
        self.see(Seen::TransactorFenced);
        self.quit(index);
        if !self.transactors[index].replaced {
            let after = self.rng.up_to(300) * MS;
            self.plan(after, Ev::Replace { transactor: index });
        }
    }

    /// A coordinator has ended what took too long, by the name that it has for the transactional id.
    pub(crate) fn excuse(&mut self, name: &str) {
        let id = transaction::of_physical(name);
        self.transactors.iter_mut().filter(|t| t.id == id).for_each(|t| t.timed_out = true);
    }

    fn plan_next(&mut self, index: usize) {
        let at = &self.transactors[index];
        let retries = at.lots.iter().flat_map(|lot| {
            lot.batches[lot.first..].iter().filter_map(|b| match b.state {
                Sent::Waiting { from } => Some(from),
                _ => None,
            })
        });
        let joins = at.lots.iter().filter(|lot| !lot.counts.is_empty()).map(|lot| lot.joins_at);
        let own = [at.next_at, at.gives_up_at, at.destiny_at, at.not_before];
        let due = retries.chain(joins).chain(own).filter(|at| *at > self.now && *at < u64::MAX).min();
        if let Some(due) = due {
            self.transact_soon(index, due);
        }
    }

    /// Whether transactions are still to come to their end.
    pub(crate) fn is_transacting(&self) -> bool {
        self.transactors.iter().any(|t| !t.is_over() || (t.left > 0 && !t.replaced))
            || self.clusters.iter().any(|c| c.transactions.all.values().any(|t| t.is_open()))
    }
}
