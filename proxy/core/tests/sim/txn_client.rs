//! What libraries do for a transactional producer: which requests they send when, and what they take an answer for
//! (`org.apache.kafka.clients.producer.internals.TransactionManager`, `Sender`).

use crate::coverage::Seen;
use crate::transactor::{Joined, Library, Line, Sent, Stage, Versions, What};
use crate::txn_coordinator::{CONCURRENT, FENCED, LOADING, NOT_COORDINATOR};
use crate::wire::{self, Mark};
use crate::world::{MS, Who, World, trace};
use bytes::Bytes;
use crossover_core::ids::VirtualNode;
use crossover_core::schema::{Struct, Value};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

const IN_FLIGHT_MAX: usize = 5;
const NOT_AVAILABLE: i16 = 15;
const SPANNING: i16 = 44;
const BAD_EPOCH: i16 = 47;
const BAD_STATE: i16 = 48;
const BAD_MAPPING: i16 = 49;
const OUT_OF_ORDER: i16 = 45;
const ABORTABLE: i16 = 120;

/// What an answer means to a library.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Done,
    /// Ask again later.
    Again,
    /// … whoever coordinates then.
    Elsewhere,
    /// The transaction is to be aborted.
    Abort,
    Fatal,
}

fn verdict(what: &What, error: i16) -> Verdict {
    match error {
        0 => Verdict::Done,
        LOADING | CONCURRENT => Verdict::Again,
        3 if matches!(what, What::Add(_)) => Verdict::Again,
        NOT_AVAILABLE | NOT_COORDINATOR if *what == What::Find => Verdict::Again,
        NOT_AVAILABLE | NOT_COORDINATOR => Verdict::Elsewhere,
        BAD_EPOCH | BAD_STATE | BAD_MAPPING | FENCED => Verdict::Fatal,
        _ if matches!(what, What::Add(_)) => Verdict::Abort,
        _ => Verdict::Fatal,
    }
}

impl World {
    /// Asks the coordinator what is to be asked now.
    pub(crate) fn talk(&mut self, index: usize) {
        let at = &self.transactors[index];
        if at.not_before > self.now {
            return;
        }
        let is_busy = at.talks.iter().any(|line| !line.asked.is_empty());
        let wanted = |joined: Joined| at.lots.iter().enumerate().filter(move |(_, l)| l.joined == joined);
        let new: Vec<usize> = wanted(Joined::Wanted).map(|(lot, _)| lot).collect();
        let asks: Vec<What> = match at.stage {
            Stage::Init | Stage::Bump if !is_busy => vec![What::Init],
            Stage::Open if at.library == Library::Franz => new.iter().map(|l| What::Add(vec![*l])).collect(),
            Stage::Open if !is_busy && !new.is_empty() => vec![What::Add(new)],
            Stage::Ending if !is_busy => vec![What::End],
            _ => Vec::new(),
        };
        if asks.is_empty() {
            return;
        }
        let Some(node) = at.coordinator else { return self.find_coordinator(index) };
        for what in asks {
            let Some(line) = self.line_to(index, node) else { return self.later(index, 50) };
            self.ask_transaction(index, line, what);
        }
    }

    /// One of the connections to the coordinator, by its place.
    fn line_to(&mut self, index: usize, node: VirtualNode) -> Option<usize> {
        let lines = if self.transactors[index].library == Library::Franz { 2 } else { 1 };
        let line = self.rng.up_to(lines - 1) as usize;
        while self.transactors[index].talks.len() <= line {
            let conn = self.connect(Who::Transactor(index), node)?;
            self.transactors[index].talks.push(Line { conn, asked: VecDeque::new() });
        }
        Some(line)
    }

    fn later(&mut self, index: usize, ms: u64) {
        let at = self.now + ms * MS;
        self.transactors[index].not_before = at;
        self.transact_soon(index, at);
    }

    fn find_coordinator(&mut self, index: usize) {
        if self.transactors[index].finder.is_none() {
            let node = self.some_node();
            let Some(conn) = self.connect(Who::Transactor(index), node) else { return self.later(index, 50) };
            self.transactors[index].finder = Some(Line { conn, asked: VecDeque::new() });
        }
        let mut body = wire::request(wire::FIND_COORDINATOR);
        body.set("Key", self.transactors[index].id.as_str());
        body.set("KeyType", 1_i8);
        let at = &mut self.transactors[index];
        let line = at.finder.as_mut().expect("it was made");
        if line.asked.is_empty() {
            at.correlation += 1;
            line.asked.push_back((at.correlation, What::Find));
            let (conn, correlation) = (line.conn, at.correlation);
            let frame = wire::ask(wire::FIND_COORDINATOR, 3, correlation, &at.client_id, &body);
            self.send(conn, frame);
        }
    }

    fn ask_transaction(&mut self, index: usize, line: usize, what: What) {
        let body = self.transaction_request(index, &what);
        trace!(self, "transactor {index} asks {what:?}");
        let at = &mut self.transactors[index];
        let (key, version) = api(at.versions, &what);
        if let What::Add(lots) = &what {
            lots.iter().for_each(|lot| at.lots[*lot].joined = Joined::Asked);
        }
        at.correlation += 1;
        let line = &mut at.talks[line];
        line.asked.push_back((at.correlation, what));
        let (conn, correlation) = (line.conn, at.correlation);
        let frame = wire::ask(key, version, correlation, &at.client_id, &body);
        self.send(conn, frame);
    }

    fn transaction_request(&self, index: usize, what: &What) -> Struct {
        let at = &self.transactors[index];
        let (pid, epoch) = at.identity.unwrap_or((-1, -1));
        match what {
            What::Init => {
                let mut body = wire::request(wire::INIT_PRODUCER_ID);
                body.set("TransactionalId", at.id.as_str());
                body.set("TransactionTimeoutMs", at.timeout_ms);
                body.set("ProducerId", pid);
                body.set("ProducerEpoch", epoch);
                body
            }
            What::Add(lots) => {
                let mut body = wire::request(wire::ADD_PARTITIONS_TO_TXN);
                body.set("V3AndBelowTransactionalId", at.id.as_str());
                body.set("V3AndBelowProducerId", pid);
                body.set("V3AndBelowProducerEpoch", epoch);
                let mut topics: BTreeMap<_, Struct> = BTreeMap::new();
                for lot in lots {
                    let (name, partition) = self.place(at.lots[*lot].log);
                    let topic = topics.entry(name).or_insert_with(|| body.new_element("V3AndBelowTopics"));
                    topic.set("Name", name);
                    topic.push("Partitions", Value::Int(i64::from(partition)));
                }
                topics.into_values().for_each(|topic| body.push("V3AndBelowTopics", topic));
                body
            }
            _ => {
                let mut body = wire::request(wire::END_TXN);
                body.set("TransactionalId", at.id.as_str());
                body.set("ProducerId", pid);
                body.set("ProducerEpoch", epoch);
                body.set("Committed", at.commits);
                body
            }
        }
    }

    pub(crate) fn transactor_hears(&mut self, index: usize, conn: usize, frame: &Bytes) {
        let at = &mut self.transactors[index];
        let lines = at.conns.values_mut().chain(&mut at.talks).chain(&mut at.finder);
        let Some(line) = lines.into_iter().find(|line| line.conn == conn) else { return };
        let Some((correlation, what)) = line.asked.pop_front() else {
            return self.fail(format!("transactor {index} got an answer to nothing"));
        };
        let (key, version) = api(at.versions, &what);
        let body = match wire::read_response(key, version, frame) {
            Ok((answered, body)) if answered == correlation => body,
            other => return self.fail(format!("transactor {index} got {other:?} for {correlation}")),
        };
        match what {
            What::Produce(sent) => self.take_produced(index, &sent, &body),
            what => self.take_answer(index, what, &body),
        }
        self.transact_soon(index, self.now);
    }

    fn take_answer(&mut self, index: usize, what: What, body: &Struct) {
        let error = match &what {
            What::Add(lots) => {
                let answers = body.structs("ResultsByTopicV3AndBelow");
                let errors = answers.flat_map(|t| t.structs("ResultsByPartition"));
                let errors: Vec<i16> = errors.map(|p| p.i16("PartitionErrorCode")).collect();
                if errors.len() != lots.len() {
                    return self.fail(format!("transactor {index} got {} of {lots:?}", errors.len()));
                }
                errors.into_iter().find(|error| *error != 0).unwrap_or(0)
            }
            _ => body.i16("ErrorCode"),
        };
        trace!(self, "transactor {index} hears of {what:?}: error {error}");
        let verdict = verdict(&what, error);
        if let What::Add(lots) = &what {
            self.take_added(index, lots, verdict);
        }
        match verdict {
            Verdict::Done => self.take_done(index, &what, body),
            Verdict::Again => {
                self.see(Seen::TransactionLater);
                // It asks whichever broker it likes.
                if let Some(line) = self.transactors[index].finder.take_if(|_| what == What::Find) {
                    self.cut_client(line.conn);
                }
                let ms = self.rng.between(20, 100);
                self.later(index, ms);
            }
            Verdict::Elsewhere => {
                self.transactors[index].coordinator = None;
                let ms = self.rng.between(20, 100);
                self.later(index, ms);
            }
            Verdict::Abort => self.must_abort(index, &what, error),
            Verdict::Fatal => self.is_fatal(index, &what, error),
        }
    }

    fn take_added(&mut self, index: usize, lots: &[usize], verdict: Verdict) {
        let joined = match verdict {
            Verdict::Done => Joined::Yes,
            Verdict::Abort | Verdict::Fatal => Joined::No,
            Verdict::Again | Verdict::Elsewhere => Joined::Wanted,
        };
        lots.iter().for_each(|lot| self.transactors[index].lots[*lot].joined = joined);
    }

    fn take_done(&mut self, index: usize, what: &What, body: &Struct) {
        match what {
            What::Find => {
                let node = VirtualNode::from_virtual(body.i32("NodeId"));
                let old = std::mem::take(&mut self.transactors[index].talks);
                for line in old {
                    self.lose_asked(index, line.asked);
                    self.cut_client(line.conn);
                }
                self.transactors[index].coordinator = node;
            }
            What::Init => self.take_identity(index, (body.i64("ProducerId"), body.i16("ProducerEpoch"))),
            What::End => {
                let commits = self.transactors[index].commits;
                self.has_ended(index, commits);
            }
            What::Add(_) | What::Produce(_) => {}
        }
    }

    fn take_identity(&mut self, index: usize, told: (i64, i16)) {
        let at = &mut self.transactors[index];
        let was = at.identity.replace(told);
        if at.stage == Stage::Init {
            let chain = at.chain;
            self.oracle.txns.takes_over(chain, index);
        }
        let others = self.transactors.iter().enumerate().filter(|(other, _)| *other != index);
        let mut others = others.map(|(_, other)| other.identity);
        if others.any(|other| other == Some(told)) || was == Some(told) {
            return self.fail(format!("transactor {index} is told {told:?}, which somebody has"));
        }
        let at = &mut self.transactors[index];
        at.stage = Stage::Idle;
        at.lots.iter_mut().for_each(|lot| lot.next_sequence = 0);
    }

    /// The error is no end: an abort is.
    fn must_abort(&mut self, index: usize, what: &What, error: i16) {
        trace!(self, "transactor {index} must abort: {error} for {what:?}");
        if error == SPANNING {
            self.see(Seen::TransactionSpans);
            // Another request of it may have been carried out and repeated by the proxy: what the client takes for not begun is
            // open, and its next InitProducerId fences it.
            self.transactors[index].unsure = true;
            let logs: BTreeSet<i32> = self.transactors[index].lots.iter().map(|lot| lot.log).collect();
            if logs.iter().all(|log| *log < self.shape.partitions) {
                return self.fail(format!("transactor {index} is told that its transaction spans clusters"));
            }
        }
        let at = &self.transactors[index];
        let is_told_why = at.replaced || at.timed_out || at.unsure || self.disturbed_at >= at.began_at;
        if [BAD_EPOCH, BAD_STATE, BAD_MAPPING, ABORTABLE].contains(&error) && !is_told_why {
            let name = at.client_id.clone();
            return self.fail(format!("{name} is told {error} for {what:?} without a cause"));
        }
        self.transactors[index].has_failed = true;
    }

    /// The next batches that may be sent now, by the node they go to.
    fn ready_in_transaction(&self, index: usize) -> BTreeMap<VirtualNode, Vec<(usize, usize)>> {
        let at = &self.transactors[index];
        let mut ready: BTreeMap<VirtualNode, Vec<(usize, usize)>> = BTreeMap::new();
        for (number, lot) in at.lots.iter().enumerate() {
            let rest = &lot.batches[lot.first..];
            let Some(node) = lot.node.filter(|_| lot.joined == Joined::Yes) else { continue };
            let waits = |state: Sent| matches!(state, Sent::Waiting { .. });
            let Some(next) = rest.iter().position(|b| waits(b.state)) else { continue };
            let elsewhere = |s: Sent| matches!(s, Sent::InFlight { node: other } if other != node);
            let under_way = rest.iter().filter(|b| matches!(b.state, Sent::InFlight { .. })).count();
            let is_due = matches!(rest[next].state, Sent::Waiting { from } if from <= self.now);
            // A batch that is repeated goes alone (`shouldStopDrainBatchesForPartition`).
            let alone = at.library == Library::Java && rest[next].sequence.is_some() && next != 0;
            let stays = at.library != Library::Java && rest.iter().any(|b| elsewhere(b.state));
            let busy = at.conns.get(&node).map_or(0, |line| line.asked.len());
            if !is_due || alone || stays || under_way >= IN_FLIGHT_MAX || busy >= IN_FLIGHT_MAX {
                continue;
            }
            let mine = ready.entry(node).or_default();
            if mine.is_empty() || at.library != Library::Librdkafka {
                mine.push((number, lot.first + next));
            }
        }
        ready
    }

    pub(crate) fn produce_in_transaction(&mut self, index: usize) {
        if !matches!(self.transactors[index].stage, Stage::Open) {
            return;
        }
        loop {
            let ready = self.ready_in_transaction(index);
            let mut sent = false;
            for (node, batches) in ready {
                sent |= self.send_in_transaction(index, node, &batches);
            }
            if !sent {
                return;
            }
        }
    }

    fn send_in_transaction(&mut self, index: usize, node: VirtualNode, sent: &[(usize, usize)]) -> bool {
        if !self.transactors[index].conns.contains_key(&node) {
            let Some(conn) = self.connect(Who::Transactor(index), node) else {
                self.transact_soon(index, self.now + 50 * MS);
                return false;
            };
            self.transactors[index].conns.insert(node, Line { conn, asked: VecDeque::new() });
        }
        let body = self.produce_request(index, node, sent);
        let at = &mut self.transactors[index];
        at.correlation += 1;
        let correlation = at.correlation;
        let frame = wire::ask(wire::PRODUCE, at.versions.produce, correlation, &at.client_id, &body);
        let line = at.conns.get_mut(&node).expect("it was made");
        line.asked.push_back((correlation, What::Produce(sent.to_vec())));
        let conn = line.conn;
        trace!(self, "transactor {index} sends {sent:?} to {node:?} by {conn}");
        self.send(conn, frame);
        true
    }

    fn produce_request(&mut self, index: usize, node: VirtualNode, sent: &[(usize, usize)]) -> Struct {
        let mut body = wire::request(wire::PRODUCE);
        body.set("TransactionalId", self.transactors[index].id.as_str());
        body.set("Acks", -1_i16);
        body.set("TimeoutMs", 30_000);
        let mut topics: BTreeMap<&'static str, Struct> = BTreeMap::new();
        for (lot, batch) in sent {
            let (name, partition) = self.place(self.transactors[index].lots[*lot].log);
            let at = &mut self.transactors[index];
            let (lot, identity) = (&mut at.lots[*lot], at.identity.expect("an identity"));
            let mark = Mark { producer: lot.writer, number: *batch as u32 };
            let next = lot.next_sequence;
            let batch = &mut lot.batches[*batch];
            if batch.sequence.is_none() {
                lot.next_sequence = next.wrapping_add(batch.count) & i32::MAX;
            }
            let sequence = *batch.sequence.get_or_insert(next);
            batch.state = Sent::InFlight { node };
            let records = wire::transactional(identity, sequence, batch.count, mark);
            let topic = topics.entry(name).or_insert_with(|| body.new_element("TopicData"));
            topic.set("Name", name);
            let mut data = topic.new_element("PartitionData");
            data.set("Index", partition);
            data.set("Records", Some(records));
            topic.push("PartitionData", data);
        }
        topics.into_values().for_each(|topic| body.push("TopicData", topic));
        body
    }

    fn take_produced(&mut self, index: usize, sent: &[(usize, usize)], body: &Struct) {
        for (lot, batch) in sent {
            let (name, partition) = self.place(self.transactors[index].lots[*lot].log);
            let topics = body.structs("Responses").filter(|topic| topic.str("Name") == name);
            let mut answers = topics.flat_map(|topic| topic.structs("PartitionResponses"));
            match answers.find(|answer| answer.i32("Index") == partition) {
                Some(answer) => self.settle_in_transaction(index, *lot, *batch, answer),
                None => return self.fail(format!("an answer leaves out {name} {partition}")),
            }
        }
    }

    fn settle_in_transaction(&mut self, index: usize, lot: usize, batch: usize, answer: &Struct) {
        let (error, base) = (answer.i16("ErrorCode"), answer.i64("BaseOffset"));
        let at = &self.transactors[index].lots[lot];
        let (log, is_first) = (at.log, at.first == batch);
        let mark = Mark { producer: at.writer, number: batch as u32 };
        trace!(self, "transactor {index} hears of {mark:?}: error {error}, base {base}");
        match error {
            0 | 46 => {
                let judged = self.oracle.acked(log, mark, base, &self.clusters);
                self.judge(judged);
                self.transactors[index].lots[lot].done(batch);
            }
            3 | 5 | 6 | 7 | 19 | 20 | 100 => {
                if [3, 5, 6, 100].contains(&error) {
                    self.transactor_looks(index, lot);
                    let hint = answer.opt_struct("CurrentLeader").map_or(-1, |l| l.i32("LeaderId"));
                    if let Some(node) = VirtualNode::from_virtual(hint) {
                        self.transactors[index].lots[lot].node = Some(node);
                    }
                }
                self.repeat_in_transaction(index, lot, batch);
            }
            // One that is not the next waits for those before it (`canRetry`).
            OUT_OF_ORDER if !is_first => self.repeat_in_transaction(index, lot, batch),
            _ => {
                self.see(Seen::TransactionRefused);
                self.transactors[index].lots[lot].done(batch);
                self.must_abort(index, &What::Produce(Vec::new()), error);
            }
        }
    }

    fn repeat_in_transaction(&mut self, index: usize, lot: usize, batch: usize) {
        let from = self.now + 100 * MS;
        self.transactors[index].lots[lot].batches[batch].state = Sent::Waiting { from };
    }

    pub(crate) fn transactor_loses(&mut self, index: usize, conn: usize) {
        let at = &mut self.transactors[index];
        if at.is_over() {
            return;
        }
        if at.finder.as_ref().is_some_and(|line| line.conn == conn) {
            at.finder = None;
            return self.later(index, 20);
        }
        if let Some(place) = at.talks.iter().position(|line| line.conn == conn) {
            let line = at.talks.remove(place);
            at.coordinator = None;
            self.lose_asked(index, line.asked);
            return self.later(index, 20);
        }
        let found = at.conns.iter().find(|(_, line)| line.conn == conn).map(|(node, _)| *node);
        let Some(line) = found.and_then(|node| at.conns.remove(&node)) else { return };
        self.lose_asked(index, line.asked);
        for lot in 0..self.transactors[index].lots.len() {
            self.transactor_looks(index, lot);
        }
        self.transact_soon(index, self.now);
    }

    /// What was not answered is asked again.
    fn lose_asked(&mut self, index: usize, asked: VecDeque<(i32, What)>) {
        for (_, what) in asked {
            match what {
                What::Add(lots) => {
                    self.transactors[index].unsure = true;
                    lots.iter().for_each(|l| self.transactors[index].lots[*l].joined = Joined::Wanted);
                }
                What::Produce(sent) => {
                    sent.iter().for_each(|(lot, batch)| self.repeat_in_transaction(index, *lot, *batch));
                }
                // If it is carried out behind its repetition, it takes the identity of that away.
                What::Init => self.transactors[index].unsure |= self.transactors[index].identity.is_none(),
                What::Find | What::End => {}
            }
        }
    }

    /// Its process ends.
    pub(crate) fn drop_lines(&mut self, index: usize) {
        let at = &mut self.transactors[index];
        let (conns, talks) = (std::mem::take(&mut at.conns), std::mem::take(&mut at.talks));
        let lines = conns.into_values().chain(talks).chain(at.finder.take());
        let conns: Vec<usize> = lines.map(|line| line.conn).collect();
        conns.into_iter().for_each(|conn| self.cut_client(conn));
    }
}

fn api(versions: Versions, what: &What) -> (i16, i16) {
    match what {
        What::Find => (wire::FIND_COORDINATOR, 3),
        What::Init => (wire::INIT_PRODUCER_ID, versions.init),
        What::Add(_) => (wire::ADD_PARTITIONS_TO_TXN, versions.add),
        What::End => (wire::END_TXN, versions.end),
        What::Produce(_) => (wire::PRODUCE, versions.produce),
    }
}
