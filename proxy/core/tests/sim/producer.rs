//! Producers: the Java client's (`RecordAccumulator`, `TransactionManager.canRetry`), librdkafka's, and plain ones that
//! repeat nothing.

use crate::coverage::Seen;
use crate::oracle::Promise;
use crate::wire::{self, Mark};
use crate::world::{Ev, MS, Who, World, trace};
use bytes::Bytes;
use crossover_core::ids::{TopicId, VirtualNode};
use crossover_core::producer::pid;
use crossover_core::schema::Struct;
use std::collections::{BTreeMap, VecDeque};

/// `max.in.flight.requests.per.connection` of an idempotent producer, and its default everywhere else.
const IN_FLIGHT_MAX: usize = 5;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Java,
    Librdkafka,
    /// Without a producer id.
    Plain,
}

pub(crate) struct Producer {
    kind: Kind,
    acks: i16,
    version: i16,
    pid: i64,
    epoch: i16,
    client_id: String,
    lots: Vec<Lot>,
    conns: BTreeMap<VirtualNode, ClientConn>,
    tick_at: u64,
    correlation: i32,
    timeout_ms: i32,
    /// Between two batches.
    pause: u64,
    backoff: u64,
}

/// What goes to one partition.
struct Lot {
    partition: i32,
    writer: u32,
    node: Option<VirtualNode>,
    learning: bool,
    batches: Vec<Batch>,
    /// The first that is not done.
    first: usize,
    planned: usize,
    next_sequence: i32,
    next_at: u64,
    acked: usize,
}

struct Batch {
    sequence: i32,
    count: i32,
    state: State,
    tried: bool,
    /// Sent while an earlier one was under way to another node: it may come first, and its refusal be heard last, as
    /// without a proxy.
    raced: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Waiting { from: u64 },
    InFlight { node: VirtualNode },
    Done,
}

struct ClientConn {
    conn: usize,
    requests: VecDeque<(i32, Vec<(usize, usize)>)>,
}

impl Producer {
    pub(crate) fn unfinished(&self) -> Option<String> {
        let lot = self.lots.iter().find(|l| l.first < l.planned)?;
        let at = lot.batches.get(lot.first).map(|b| b.state);
        Some(format!(
            "{} stands at {} of {} of {}: {at:?}",
            self.client_id, lot.first, lot.planned, lot.partition
        ))
    }

    fn is_idempotent(&self) -> bool {
        self.kind != Kind::Plain
    }
}

impl Lot {
    fn done(&mut self, index: usize) {
        self.batches[index].state = State::Done;
        while self.batches.get(self.first).is_some_and(|b| b.state == State::Done) {
            self.first += 1;
        }
    }

    /// Something is under way to another node.
    fn is_elsewhere(&self, node: VirtualNode) -> bool {
        let elsewhere = |b: &Batch| matches!(b.state, State::InFlight { node: other } if other != node);
        self.batches[self.first..].iter().any(elsewhere)
    }

    fn in_flight(&self) -> usize {
        self.batches[self.first..].iter().filter(|b| matches!(b.state, State::InFlight { .. })).count()
    }
}

impl World {
    pub(crate) fn add_producers(&mut self) {
        for index in 0..self.shape.producers {
            let kind = match index {
                0 => self.rng.pick(&[Kind::Java, Kind::Librdkafka]),
                _ => self.rng.pick(&[Kind::Java, Kind::Librdkafka, Kind::Plain, Kind::Plain]),
            };
            let acks = if kind == Kind::Plain { self.rng.pick(&[1, 1, -1, 0]) } else { -1 };
            let promise = match kind {
                Kind::Plain => Promise::AtMostOnce { all: acks == -1 },
                _ => Promise::Exactly,
            };
            let random = self.rng.next();
            let wanted = self.rng.between(4, 14) as usize;
            let mut lots = Vec::new();
            for partition in 0..self.shape.partitions {
                if partition > 0 && self.rng.chance(500) {
                    continue;
                }
                let writer = self.oracle.add_writer(promise);
                lots.push(Lot {
                    partition,
                    writer,
                    node: None,
                    learning: false,
                    batches: Vec::new(),
                    first: 0,
                    planned: wanted,
                    next_sequence: 0,
                    next_at: 0,
                    acked: 0,
                });
            }
            let timeout_ms = self.rng.pick(&[300, 1_500, 30_000]);
            self.producers.push(Producer {
                kind,
                acks,
                version: self.rng.pick(&[7, 9, 11, 13]),
                pid: if kind == Kind::Plain { -1 } else { pid::issue(random) },
                epoch: if kind == Kind::Plain { -1 } else { 0 },
                client_id: format!("producer-{index}"),
                lots,
                conns: BTreeMap::new(),
                tick_at: u64::MAX,
                correlation: 0,
                timeout_ms,
                pause: self.shape.heal_at / (wanted as u64 + 4),
                backoff: if kind == Kind::Java { 100 * MS } else { self.rng.between(30, 100) * MS },
            });
            for lot in 0..self.producers[index].lots.len() {
                self.learn_soon(index, lot);
            }
        }
    }

    /// The schedule is too short: there is more to be written.
    pub(crate) fn extend(&mut self) {
        for index in 0..self.producers.len() {
            self.producers[index].lots.iter_mut().for_each(|lot| lot.planned += 10);
            self.tick_soon(index, self.now);
        }
    }

    fn tick_soon(&mut self, index: usize, at: u64) {
        let at = at.max(self.now);
        if at < self.producers[index].tick_at {
            self.producers[index].tick_at = at;
            self.plan_at(at, Ev::Tick(Who::Producer(index)));
        }
    }

    fn learn_soon(&mut self, index: usize, lot: usize) {
        if !std::mem::replace(&mut self.producers[index].lots[lot].learning, true) {
            let after = self.delay() + self.rng.between(1, 20) * MS;
            self.plan(after, Ev::Learn { who: Who::Producer(index), partition: lot });
        }
    }

    pub(crate) fn producer_learns(&mut self, index: usize, lot: usize) {
        let known =
            if self.proxy.up { self.metadata(self.producers[index].lots[lot].partition) } else { None };
        let at = &mut self.producers[index].lots[lot];
        at.learning = false;
        match known {
            Some((node, _)) => {
                at.node = Some(node);
                self.tick_soon(index, self.now);
            }
            None => self.learn_soon(index, lot),
        }
    }

    /// A client's metadata are renewed although nothing failed.
    pub(crate) fn some_client_looks(&mut self) {
        let index = self.rng.up_to(self.producers.len() as u64 - 1) as usize;
        for lot in 0..self.producers[index].lots.len() {
            self.learn_soon(index, lot);
        }
        for index in 0..self.consumers.len() {
            self.consumer_looks(index);
        }
    }

    pub(crate) fn tick_producer(&mut self, index: usize) {
        if self.producers[index].tick_at > self.now {
            return;
        }
        self.producers[index].tick_at = u64::MAX;
        self.write(index);
        loop {
            let ready = self.ready(index);
            if ready.is_empty() {
                break;
            }
            let mut sent = false;
            for (node, lots) in ready {
                sent |= self.send_produce(index, node, &lots);
            }
            if !sent {
                break;
            }
        }
        let lots = self.producers[index].lots.iter();
        let due = lots.flat_map(|lot| {
            let more = (lot.batches.len() < lot.planned).then_some(lot.next_at);
            let retry = lot.batches[lot.first..].iter().filter_map(|b| match b.state {
                State::Waiting { from } if from > self.now => Some(from),
                _ => None,
            });
            more.into_iter().chain(retry)
        });
        if let Some(due) = due.min() {
            self.tick_soon(index, due);
        }
    }

    /// The application sends records.
    fn write(&mut self, index: usize) {
        for lot in 0..self.producers[index].lots.len() {
            let at = &self.producers[index].lots[lot];
            if at.batches.len() >= at.planned || at.next_at > self.now {
                continue;
            }
            for _ in 0..self.rng.between(1, 3) {
                let count = self.rng.between(1, 3) as i32;
                let at = &mut self.producers[index].lots[lot];
                if at.batches.len() < at.planned {
                    let sequence = at.next_sequence;
                    at.next_sequence = sequence.wrapping_add(count) & i32::MAX;
                    at.batches.push(Batch {
                        sequence,
                        count,
                        state: State::Waiting { from: 0 },
                        tried: false,
                        raced: false,
                    });
                }
            }
            let pause = self.producers[index].pause * 2;
            let next_at = self.now + self.rng.between(pause / 4, pause * 2).min(400 * MS);
            self.producers[index].lots[lot].next_at = next_at;
        }
    }

    /// The next batch of each partition that may be sent now, by the node it goes to.
    fn ready(&self, index: usize) -> BTreeMap<VirtualNode, Vec<(usize, usize)>> {
        let producer = &self.producers[index];
        let mut ready: BTreeMap<VirtualNode, Vec<(usize, usize)>> = BTreeMap::new();
        for (at, lot) in producer.lots.iter().enumerate() {
            let Some(node) = lot.node else { continue };
            let rest = &lot.batches[lot.first..];
            let next = rest.iter().position(|b| matches!(b.state, State::Waiting { .. }));
            let Some(next) = next.map(|n| n + lot.first) else { continue };
            let batch = &lot.batches[next];
            let State::Waiting { from } = batch.state else { continue };
            // A batch that is repeated goes alone (`shouldStopDrainBatchesForPartition`).
            let alone = producer.kind == Kind::Java && batch.tried && next != lot.first;
            // Kafka itself takes whatever batch of a producer comes first, also one whose predecessor it has refused: a
            // producer that has written nothing yet is not asked for more than Kafka promises.
            let is_new = producer.is_idempotent() && lot.acked == 0 && next != 0;
            // librdkafka waits for what is under way before it goes on at another broker.
            let waits = producer.kind == Kind::Librdkafka && lot.is_elsewhere(node);
            // A log recognises five batches of a producer: what is open must not be more.
            let too_far = producer.is_idempotent() && next >= lot.first + IN_FLIGHT_MAX;
            if too_far || from > self.now || alone || is_new || waits || lot.in_flight() >= IN_FLIGHT_MAX {
                continue;
            }
            let busy = producer.conns.get(&node).map_or(0, |c| c.requests.len());
            let has_room = busy < IN_FLIGHT_MAX;
            let mine = ready.entry(node).or_default();
            // librdkafka sends one partition per request.
            if has_room && (mine.is_empty() || producer.kind != Kind::Librdkafka) {
                mine.push((at, next));
            }
        }
        ready.retain(|_, lots| !lots.is_empty());
        ready
    }

    fn send_produce(&mut self, index: usize, node: VirtualNode, lots: &[(usize, usize)]) -> bool {
        let known = self.producers[index].conns.get(&node).map(|c| c.conn);
        let Some(conn) = known.or_else(|| self.connect(Who::Producer(index), node)) else {
            let again = self.now + 50 * MS;
            self.tick_soon(index, again);
            return false;
        };
        let producer = &mut self.producers[index];
        let mut body = wire::request(wire::PRODUCE);
        body.set("Acks", producer.acks);
        body.set("TimeoutMs", producer.timeout_ms);
        let mut topic = body.new_element("TopicData");
        topic.set("Name", wire::TOPIC);
        topic.set("TopicId", TopicId(wire::IDS[0]));
        for (lot, batch) in lots {
            let lot = &mut producer.lots[*lot];
            let mark = Mark { producer: lot.writer, number: *batch as u32 };
            let races = lot.is_elsewhere(node);
            let batch = &mut lot.batches[*batch];
            batch.raced = races;
            batch.state = State::InFlight { node };
            if batch.tried {
                self.coverage.note(Seen::Retried);
            }
            batch.tried = true;
            let sequence = if producer.kind == Kind::Plain { -1 } else { batch.sequence };
            let records: Bytes = wire::batch(producer.pid, producer.epoch, sequence, batch.count, mark);
            let mut partition = topic.new_element("PartitionData");
            partition.set("Index", lot.partition);
            partition.set("Records", Some(records));
            topic.push("PartitionData", partition);
        }
        body.push("TopicData", topic);
        producer.correlation += 1;
        let correlation = producer.correlation;
        let frame = wire::ask(wire::PRODUCE, producer.version, correlation, &producer.client_id, &body);
        let to = producer.conns.entry(node).or_insert_with(|| ClientConn { conn, requests: VecDeque::new() });
        if producer.acks == 0 {
            lots.iter().for_each(|(lot, batch)| producer.lots[*lot].done(*batch));
        } else {
            to.requests.push_back((correlation, lots.to_vec()));
        }
        trace!(self, "producer {index} sends {lots:?} to {node:?} by {conn}");
        let at = self.send(conn, frame);
        for (lot, batch) in lots {
            let mark = Mark { producer: self.producers[index].lots[*lot].writer, number: *batch as u32 };
            self.oracle.sent(mark, at);
        }
        true
    }

    pub(crate) fn producer_hears(&mut self, index: usize, conn: usize, frame: &Bytes) {
        let producer = &mut self.producers[index];
        let Some(at) = producer.conns.values_mut().find(|c| c.conn == conn) else { return };
        let Some((correlation, lots)) = at.requests.pop_front() else {
            return self.fail(format!("producer {index} got an answer to nothing"));
        };
        let (answered, body) = match wire::read_response(wire::PRODUCE, producer.version, frame) {
            Ok(read) => read,
            Err(error) => return self.fail(format!("producer {index} cannot read an answer: {error}")),
        };
        if answered != correlation {
            return self.fail(format!("producer {index} got the answer to {answered} for {correlation}"));
        }
        let mut answers: Vec<&Struct> =
            body.structs("Responses").flat_map(|t| t.structs("PartitionResponses")).collect();
        for (lot, batch) in lots {
            let partition = self.producers[index].lots[lot].partition;
            let Some(found) = answers.iter().position(|a| a.i32("Index") == partition) else {
                return self.fail(format!("an answer leaves out partition {partition}"));
            };
            let answer = answers.swap_remove(found);
            self.settle_batch(index, lot, batch, conn, answer);
        }
        self.tick_soon(index, self.now);
    }

    fn settle_batch(&mut self, index: usize, lot: usize, batch: usize, conn: usize, answer: &Struct) {
        let (error, base) = (answer.i16("ErrorCode"), answer.i64("BaseOffset"));
        let at = &self.producers[index].lots[lot];
        let mark = Mark { producer: at.writer, number: batch as u32 };
        let (partition, raced) = (at.partition, at.batches[batch].raced);
        trace!(self, "producer {index} hears of {mark:?}: error {error}, base {base}");
        match error {
            0 | 46 => {
                if base < 0 {
                    self.see(Seen::AckWithoutOffset);
                } else if base < self.oracle.owner(partition).first {
                    self.see(Seen::AckOfAnOlderEra);
                }
                let judged = self.oracle.acked(partition, mark, base, &self.clusters);
                self.judge(judged);
                self.producers[index].lots[lot].acked += 1;
                self.producers[index].lots[lot].done(batch);
            }
            // These producers leave nothing out. For 45 Java goes on, if the batch is not the first that is open;
            // librdkafka writes what it was told 6 of again under another epoch, also what is in the log.
            45 | 47 if self.producers[index].is_idempotent() && (!raced || error == 47) => {
                self.fail(format!(
                    "{mark:?} is refused with {error}: its producer cannot go on, or writes twice"
                ));
            }
            3 | 5 | 6 | 7 | 19 | 45 | 100 => {
                if !self.producers[index].is_idempotent() && !self.oracle.has_erred(mark) {
                    self.conns[conn].is_told_off = true;
                }
                if [3, 5, 6, 100].contains(&error) {
                    self.learn_soon(index, lot);
                    let hint = answer.opt_struct("CurrentLeader").map_or(-1, |l| l.i32("LeaderId"));
                    if let Some(node) = VirtualNode::from_virtual(hint) {
                        self.producers[index].lots[lot].node = Some(node);
                    }
                }
                self.give_back(index, lot, batch);
            }
            other => self.fail(format!("{mark:?} is refused with {other}")),
        }
    }

    /// To be sent again, by producers that do so.
    fn give_back(&mut self, index: usize, lot: usize, batch: usize) {
        let producer = &mut self.producers[index];
        let from = self.now + producer.backoff;
        match producer.is_idempotent() {
            true => producer.lots[lot].batches[batch].state = State::Waiting { from },
            false => producer.lots[lot].done(batch),
        }
    }

    pub(crate) fn producer_loses(&mut self, index: usize, conn: usize) {
        let producer = &mut self.producers[index];
        let found = producer.conns.iter().find(|(_, c)| c.conn == conn).map(|(node, _)| *node);
        let Some(lost) = found.and_then(|node| producer.conns.remove(&node)) else { return };
        for (lot, batch) in lost.requests.into_iter().flat_map(|(_, lots)| lots) {
            self.give_back(index, lot, batch);
        }
        for lot in 0..self.producers[index].lots.len() {
            self.learn_soon(index, lot);
        }
        self.tick_soon(index, self.now);
    }

    pub(crate) fn on_reply(&mut self, conn: usize, frame: &Bytes) {
        if !self.conns[conn].client_open {
            return;
        }
        match self.conns[conn].who {
            Who::Transactor(index) if self.is_asleep(index) => {
                let (frame, at) = (frame.clone(), self.wakes_at(index));
                self.plan_at(at, Ev::Reply { conn, frame });
            }
            Who::Transactor(index) => self.transactor_hears(index, conn, frame),
            Who::Producer(index) => self.producer_hears(index, conn, frame),
            Who::Consumer(index) => self.consumer_hears(index, conn, frame),
            Who::Asker(index) => self.asker_hears(index, conn, frame),
            Who::Committer(index) => self.committer_hears(index, conn, frame),
            Who::Deleter => self.deleter_hears(conn, frame),
        }
    }

    pub(crate) fn on_hangup(&mut self, conn: usize) {
        if let Who::Transactor(index) = self.conns[conn].who
            && self.is_asleep(index)
        {
            let at = self.wakes_at(index);
            return self.plan_at(at, Ev::Hangup { conn });
        }
        if !std::mem::replace(&mut self.conns[conn].client_open, false) {
            return;
        }
        trace!(self, "conn {conn} is lost");
        match self.conns[conn].who {
            Who::Producer(index) => self.producer_loses(index, conn),
            Who::Transactor(index) => self.transactor_loses(index, conn),
            Who::Consumer(index) => self.consumer_loses(index, conn),
            Who::Asker(index) => self.asker_loses(index, conn),
            Who::Committer(index) => self.committer_loses(index, conn),
            Who::Deleter => self.deleter_loses(conn),
        }
    }

    /// What Metadata says of a partition: the owner's leader as its brokers know it, and the virtual epoch.
    pub(crate) fn metadata(&self, log: i32) -> Option<(VirtualNode, i32)> {
        let (name, partition) = self.place(log);
        let route = self.proxy.route_of(name);
        let log = &self.clusters[route.owner.index()].logs[log as usize];
        if !self.clusters[route.owner.index()].is_up(log.leader) {
            return None;
        }
        let timeline = route.timeline(partition)?;
        let epoch = timeline.epoch_to_virtual(timeline.current().index, log.epoch).ok()?;
        let seen = crossover_core::session::Seen { epoch, high_watermark: -1, last_stable_offset: -1 };
        self.proxy.shared.seen.raise(&route.name, partition, seen);
        Some((VirtualNode::new(route.owner, log.leader), epoch))
    }
}
