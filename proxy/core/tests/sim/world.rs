//! One schedule: the clusters, the proxy, the clients and the operator under one clock and one source of chance.

use crate::asker::Asker;
use crate::bugs::{self, Bug};
use crate::cluster::{Cluster, Log};
use crate::committer::Committer;
use crate::consumer::Consumer;
use crate::coverage::{Coverage, Seen};
use crate::deleter::Deleter;
use crate::faults::Fault;
use crate::net::{Conn, Link};
use crate::operator::Flip;
use crate::oracle::Oracle;
use crate::producer::Producer;
use crate::proxy::Proxy;
use crate::queue::Queue;
use crate::rng::Rng;
use crate::store::Disk;
use crate::transactor::Transactor;
use crate::txn_coordinator::Due;
use crate::txn_move::{Move, Moving};
use crate::wire;
use bytes::Bytes;
use crossover_core::ids::ClusterSide;
use crossover_core::session::{Errand, Ticket};
use std::sync::Arc;

pub(crate) const MS: u64 = 1_000;
/// After this the schedule is stuck.
const PATIENCE: u64 = 150_000 * MS;
const EVENTS_MIN: u64 = 300;
/// Unix time at the start, so that nothing is taken for older than it can be.
const EPOCH_MS: i64 = 1_700_000_000_000;

/// A client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Who {
    Producer(usize),
    Consumer(usize),
    Asker(usize),
    Committer(usize),
    Transactor(usize),
    Deleter,
}

/// What happens next.
#[derive(Debug)]
pub(crate) enum Ev {
    /// A request has arrived at the proxy.
    Request {
        conn: usize,
        frame: Bytes,
        sent_at: u64,
    },
    /// The proxy learns that the client has hung up.
    ClientGone {
        conn: usize,
    },
    /// An answer has arrived at the client.
    Reply {
        conn: usize,
        frame: Bytes,
    },
    /// The client learns that its connection has ended.
    Hangup {
        conn: usize,
    },
    Dialled {
        link: usize,
        conn: usize,
    },
    /// A request has arrived at a broker.
    BrokerIn {
        link: usize,
        frame: Bytes,
    },
    /// A broker takes the next request of a connection.
    BrokerRun {
        link: usize,
    },
    /// A broker waits no longer for what an answer waits for.
    BrokerTimeout {
        link: usize,
        token: u64,
    },
    /// An answer has arrived at the proxy.
    Answer {
        link: usize,
        frame: Bytes,
    },
    /// The proxy learns that a connection to a broker has ended.
    Lost {
        link: usize,
    },
    Timer {
        conn: usize,
        at: u64,
    },
    Wake {
        conn: usize,
    },
    Orphan {
        conn: usize,
    },
    /// The control tasks have done what a request waits for.
    Errand {
        conn: usize,
        ticket: Ticket,
        errand: Errand,
    },
    /// The control tasks move a transactional id.
    Move {
        serial: u64,
        step: Moving,
    },
    /// A coordinator does what comes next for a transaction.
    Transaction {
        side: ClusterSide,
        name: Arc<str>,
        serial: u32,
        what: Due,
    },
    /// An application gets another instance.
    Replace {
        transactor: usize,
    },
    Replicate {
        side: ClusterSide,
        partition: i32,
    },
    Refresh {
        side: ClusterSide,
        incarnation: u32,
    },
    Tick(Who),
    /// A client learns where a partition is.
    Learn {
        who: Who,
        partition: usize,
    },
    Fault(Fault),
    Heal,
    Elect {
        side: ClusterSide,
        partition: i32,
    },
    BrokerUp {
        side: ClusterSide,
        broker: i32,
    },
    IsrBack {
        side: ClusterSide,
        partition: i32,
    },
    Restart,
    Seed {
        incarnation: u32,
    },
    Operate,
    Flip {
        serial: u32,
        step: crate::operator::At,
    },
    Abort,
}

/// What a schedule is made of, drawn from its seed.
pub(crate) struct Shape {
    pub(crate) partitions: i32,
    pub(crate) producers: usize,
    pub(crate) consumers: usize,
    pub(crate) hold_ms: i64,
    pub(crate) grace_ms: i64,
    pub(crate) pace: u64,
    /// Per mille of deliveries that take long.
    pub(crate) rough: u64,
    pub(crate) flips: u32,
    pub(crate) faults: u64,
    pub(crate) heal_at: u64,
    /// Where the groups are.
    pub(crate) home: ClusterSide,
    /// Transactional ids.
    pub(crate) chains: usize,
    /// Whether there is a topic that stays where it is.
    pub(crate) audit: bool,
}

pub(crate) struct World {
    pub(crate) now: u64,
    pub(crate) rng: Rng,
    pub(crate) queue: Queue<Ev>,
    pub(crate) shape: Shape,
    pub(crate) clusters: [Cluster; 2],
    pub(crate) proxy: Proxy,
    pub(crate) disk: Disk,
    pub(crate) conns: Vec<Conn>,
    pub(crate) links: Vec<Link>,
    pub(crate) parked: Vec<usize>,
    pub(crate) producers: Vec<Producer>,
    pub(crate) consumers: Vec<Consumer>,
    pub(crate) askers: Vec<Asker>,
    pub(crate) committers: Vec<Committer>,
    pub(crate) deleter: Deleter,
    pub(crate) transactors: Vec<Transactor>,
    pub(crate) moves: Vec<Move>,
    /// When the proxy last ended: the next process does not know what was open then.
    pub(crate) disturbed_at: u64,
    pub(crate) flip: Option<Flip>,
    pub(crate) flip_serial: u32,
    pub(crate) flips_sealed: u32,
    pub(crate) operating: bool,
    pub(crate) oracle: Oracle,
    pub(crate) coverage: Coverage,
    pub(crate) bug: Option<Bug>,
    pub(crate) healed: bool,
    pub(crate) events: u64,
    pub(crate) violation: Option<String>,
    pub(crate) trace: Option<Vec<String>>,
    pub(crate) fresh: u64,
    /// Below this nothing of a partition has been shown for a while.
    pub(crate) hidden: Vec<(u64, i64)>,
    /// Where the newest published era of each partition starts.
    pub(crate) shown_first: Vec<i64>,
}

/// What a schedule came to.
pub(crate) struct Outcome {
    pub(crate) events: u64,
    pub(crate) flips: u32,
    pub(crate) violation: Option<String>,
    pub(crate) coverage: Coverage,
    pub(crate) trace: Vec<String>,
    /// Of all that happened: equal for equal seeds.
    pub(crate) digest: u64,
}

/// Of a hundred schedules so many have transactions: they cost more than others.
const WITH_TRANSACTIONS: u64 = 25;
impl Shape {
    /// What there is of transactions, from a source of its own: schedules without them are what they were before.
    fn draw_transactions(&mut self, rng: &mut Rng) {
        if rng.up_to(99) < WITH_TRANSACTIONS {
            self.chains = rng.pick(&[1, 1, 2]);
            self.audit = rng.chance(600);
            self.producers = self.producers.min(2);
        }
    }

    fn draw(rng: &mut Rng) -> Shape {
        Shape {
            partitions: rng.between(1, 2) as i32,
            producers: rng.pick(&[1, 1, 2, 3]),
            consumers: rng.pick(&[1, 1, 1, 2]),
            hold_ms: rng.pick(&[300, 1_000, 5_000, 5_000]),
            grace_ms: 6_000,
            pace: rng.pick(&[300, 1_000, 3_000]),
            rough: rng.pick(&[0, 5, 30]),
            flips: rng.between(1, 4) as u32,
            faults: rng.pick(&[0, 2, 5, 10]),
            heal_at: rng.between(400, 2_000) * MS,
            home: rng.pick(&ClusterSide::BOTH),
            chains: 0,
            audit: false,
        }
    }
}

/// Lets a trace line be made only when somebody reads it.
macro_rules! trace {
    ($world:expr, $($arg:tt)*) => {
        if let Some(lines) = &mut $world.trace {
            lines.push(format!("{:>12.3} {}", $world.now as f64 / 1000.0, format_args!($($arg)*)));
        }
    };
}
pub(crate) use trace;

/// Plays the schedule of a seed.
pub(crate) fn play(seed: u64, bug: Option<Bug>, traced: bool) -> Outcome {
    bugs::switch(bug);
    let mut world = World::new(seed, bug, traced);
    world.begin();
    let mut digest = 0_u64;
    while world.violation.is_none() && !world.is_over() {
        let Some((at, event)) = world.queue.pop() else {
            world.fail("nothing is to happen any more, and not everything is done".to_owned());
            break;
        };
        world.now = world.now.max(at);
        if world.now > world.shape.heal_at + PATIENCE {
            let why = world.unfinished().unwrap_or_default();
            world.fail(format!("stuck: {why}"));
            break;
        }
        world.events += 1;
        digest = digest.rotate_left(5) ^ at.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        world.happen(event);
    }
    if world.violation.is_none() {
        world.judge_the_end();
    }
    Outcome {
        events: world.events,
        flips: world.flips_sealed,
        violation: world.violation,
        coverage: world.coverage,
        trace: world.trace.unwrap_or_default(),
        digest,
    }
}

impl World {
    fn new(seed: u64, bug: Option<Bug>, traced: bool) -> World {
        let mut rng = Rng::new(seed);
        let mut shape = Shape::draw(&mut rng);
        shape.draw_transactions(&mut Rng::new(seed ^ 0x7478_6e73));
        let mut clusters = [(); 2].map(|()| Cluster::new(shape.partitions, &mut rng));
        if shape.audit {
            clusters.iter_mut().for_each(|cluster| cluster.logs.push(Log::new(0, 0, 0)));
        }
        let logs = clusters[0].logs.len() as i32;
        let proxy = Proxy::new(&clusters, &shape);
        World {
            now: 0,
            queue: Queue::new(),
            proxy,
            disk: Disk::default(),
            conns: Vec::new(),
            links: Vec::new(),
            parked: Vec::new(),
            producers: Vec::new(),
            consumers: Vec::new(),
            askers: Vec::new(),
            committers: Vec::new(),
            deleter: Deleter::default(),
            transactors: Vec::new(),
            moves: Vec::new(),
            disturbed_at: 0,
            flip: None,
            flip_serial: 0,
            flips_sealed: 0,
            operating: false,
            oracle: Oracle::new(logs),
            coverage: Coverage::default(),
            bug,
            healed: false,
            events: 0,
            violation: None,
            trace: traced.then(Vec::new),
            fresh: 0,
            hidden: vec![(0, 0); shape.partitions as usize],
            shown_first: vec![0; shape.partitions as usize],
            shape,
            clusters,
            rng,
        }
    }

    fn begin(&mut self) {
        self.add_producers();
        self.add_consumers();
        self.add_askers();
        self.add_committers();
        self.add_deleter();
        self.add_transactors();
        self.plan_faults();
        let first = self.rng.between(1, 200) * MS;
        self.plan(first, Ev::Operate);
        self.plan(self.shape.heal_at, Ev::Heal);
        self.disk.running = true;
    }

    fn happen(&mut self, event: Ev) {
        match event {
            Ev::Request { conn, frame, sent_at } => self.on_request(conn, frame, sent_at),
            Ev::ClientGone { conn } => self.on_client_gone(conn),
            Ev::Reply { conn, frame } => self.on_reply(conn, &frame),
            Ev::Hangup { conn } => self.on_hangup(conn),
            Ev::Dialled { link, conn } => self.on_dialled(link, conn),
            Ev::BrokerIn { link, frame } => self.on_broker_in(link, frame),
            Ev::BrokerRun { link } => self.on_broker_run(link),
            Ev::BrokerTimeout { link, token } => self.on_broker_timeout(link, token),
            Ev::Answer { link, frame } => self.on_answer(link, frame),
            Ev::Lost { link } => self.on_lost(link),
            Ev::Timer { conn, at } => self.on_timer(conn, at),
            Ev::Wake { conn } => self.on_wake(conn),
            Ev::Orphan { conn } => self.on_orphan(conn),
            Ev::Errand { conn, ticket, errand } => self.on_errand(conn, ticket, errand),
            Ev::Move { serial, step } => self.on_move(serial, step),
            Ev::Transaction { side, name, serial, what } => self.on_transaction(side, name, serial, what),
            Ev::Replace { transactor } => self.on_replace(transactor),
            Ev::Replicate { side, partition } => self.on_replicate(side, partition),
            Ev::Refresh { side, incarnation } => self.on_refresh(side, incarnation),
            Ev::Tick(who) => self.on_tick(who),
            Ev::Learn { who, partition } => self.on_learn(who, partition),
            Ev::Fault(fault) => self.on_fault(fault),
            Ev::Heal => self.on_heal(),
            Ev::Elect { side, partition } => self.on_elect(side, partition),
            Ev::BrokerUp { side, broker } => self.on_broker_up(side, broker),
            Ev::IsrBack { side, partition } => self.on_isr_back(side, partition),
            Ev::Restart => self.on_restart(),
            Ev::Seed { incarnation } => self.on_seed(incarnation),
            Ev::Operate => self.on_operate(),
            Ev::Flip { serial, step } => self.on_flip(serial, step),
            Ev::Abort => self.on_abort(),
        }
    }

    fn on_tick(&mut self, who: Who) {
        match who {
            Who::Producer(index) => self.tick_producer(index),
            Who::Consumer(index) => self.tick_consumer(index),
            Who::Asker(index) => self.tick_asker(index),
            Who::Committer(index) => self.tick_committer(index),
            Who::Transactor(index) => self.tick_transactor(index),
            Who::Deleter => self.tick_deleter(),
        }
    }

    fn on_learn(&mut self, who: Who, partition: usize) {
        match who {
            Who::Producer(index) => self.producer_learns(index, partition),
            Who::Consumer(index) => self.consumer_learns(index, partition),
            Who::Transactor(index) => self.transactor_learns(index, partition),
            // These look at the metadata when they need them.
            Who::Asker(_) | Who::Committer(_) | Who::Deleter => {}
        }
    }

    pub(crate) fn now_ms(&self) -> i64 {
        EPOCH_MS + (self.now / MS) as i64
    }

    /// The moment at which the core's clock shows `ms`.
    pub(crate) fn moment(&self, ms: i64) -> u64 {
        ((ms - EPOCH_MS).max(0) as u64).saturating_mul(MS)
    }

    pub(crate) fn plan(&mut self, after: u64, event: Ev) {
        self.queue.push(self.now.saturating_add(after), event);
    }

    pub(crate) fn plan_at(&mut self, at: u64, event: Ev) {
        self.queue.push(at.max(self.now), event);
    }

    /// How long a message is under way.
    pub(crate) fn delay(&mut self) -> u64 {
        if !self.healed && self.rng.chance(self.shape.rough) {
            return self.rng.between(5, 400) * MS;
        }
        self.rng.between(20, self.shape.pace)
    }

    /// How many logs each cluster has.
    pub(crate) fn logs(&self) -> i32 {
        self.clusters[0].logs.len() as i32
    }

    /// The topic and the partition of a log.
    pub(crate) fn place(&self, log: i32) -> (&'static str, i32) {
        match log - self.shape.partitions {
            other @ 0.. => (wire::AUDIT, other),
            _ => (wire::TOPIC, log),
        }
    }

    pub(crate) fn fresh(&mut self) -> u64 {
        self.fresh += 1;
        self.fresh
    }

    pub(crate) fn is(&self, bug: Bug) -> bool {
        self.bug == Some(bug)
    }

    pub(crate) fn see(&mut self, seen: Seen) {
        self.coverage.note(seen);
    }

    pub(crate) fn fail(&mut self, why: String) {
        trace!(self, "VIOLATION {why}");
        self.violation.get_or_insert(why);
    }

    pub(crate) fn judge(&mut self, judged: Result<(), String>) {
        if let Err(why) = judged {
            self.fail(why);
        }
    }

    fn is_over(&mut self) -> bool {
        let may_be = self.healed && self.flips_sealed >= 1 && self.flip.is_none();
        // Asked before every event: first what is found without putting it into words.
        if !may_be || self.is_asking() || self.consumers.iter().any(|c| self.is_behind(c)) {
            return false;
        }
        if self.unfinished().is_some() {
            return false;
        }
        if self.events < EVENTS_MIN {
            self.extend();
            return false;
        }
        true
    }

    /// Whether clients still have to do with positions.
    fn is_asking(&self) -> bool {
        self.askers.iter().any(|a| a.left > 0)
            || self.committers.iter().any(|c| c.left > 0)
            || self.deleter.left > 0
            || self.is_transacting()
    }

    /// What is still to be done.
    fn unfinished(&self) -> Option<String> {
        if !self.healed || !self.proxy.up {
            return Some("not healed".to_owned());
        }
        if self.flips_sealed < 1 || self.flip.is_some() {
            return Some("no flip, or one under way".to_owned());
        }
        if let Some(why) = self.proxy.held() {
            return Some(why);
        }
        let producer = self.producers.iter().find_map(Producer::unfinished);
        let asker = producer.or_else(|| self.askers.iter().find_map(Asker::unfinished));
        let positions = asker.or_else(|| self.committers.iter().find_map(Committer::unfinished));
        let positions = positions.or_else(|| self.deleter.unfinished());
        let positions = positions.or_else(|| self.transactors.iter().find_map(Transactor::unfinished));
        positions.or_else(|| self.consumers.iter().find_map(|c| self.behind(c)))
    }

    fn judge_the_end(&mut self) {
        let judged = self.oracle.all_ended();
        self.judge(judged);
        for partition in 0..self.logs() {
            let judged = self.oracle.whole(partition, &self.clusters);
            self.judge(judged);
            if self.oracle.eras(partition) >= 3 {
                self.see(Seen::ThreeEras);
            }
        }
        if self.flips_sealed == 0 || self.events < EVENTS_MIN {
            self.fail(format!("{} events and {} flips", self.events, self.flips_sealed));
        }
    }
}
