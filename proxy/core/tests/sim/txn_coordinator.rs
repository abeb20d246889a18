//! A cluster's transaction coordinator (`TransactionCoordinator`, `TransactionMetadata`; clients below transaction.version 2):
//! one broker has all transactional ids, and another one when that one is gone. What ends a transaction are markers, which
//! come to the logs later than the answer to the client.

use crate::coverage::Seen;
use crate::wire::{self, Asked, Kind};
use crate::world::{Ev, MS, World, trace};
use bytes::Bytes;
use crossover_core::ids::ClusterSide;
use crossover_core::schema::{Struct, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

pub(crate) const LOADING: i16 = 14;
pub(crate) const NOT_COORDINATOR: i16 = 16;
const NOT_ENOUGH_REPLICAS: i16 = 19;
const BAD_EPOCH: i16 = 47;
const BAD_STATE: i16 = 48;
const BAD_MAPPING: i16 = 49;
pub(crate) const CONCURRENT: i16 = 51;
pub(crate) const FENCED: i16 = 90;
const ABORTABLE: i16 = 120;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Empty,
    Ongoing,
    /// Decided; markers are still to be written.
    Prepared {
        commit: bool,
    },
    Complete {
        commit: bool,
    },
}

/// What is known of one transactional id.
#[derive(Clone, Debug)]
pub(crate) struct Transaction {
    pub(crate) pid: i64,
    pub(crate) epoch: i16,
    /// The epoch before, where its producer has asked for the next one: it may ask again.
    before: Option<i16>,
    pub(crate) state: State,
    pub(crate) timeout_ms: i32,
    /// Logs in the open transaction.
    pub(crate) parts: BTreeSet<usize>,
    /// Of its decision, or its beginning: what was planned for another one is dropped.
    serial: u32,
}

impl Transaction {
    /// Whether it holds partitions.
    pub(crate) fn is_open(&self) -> bool {
        matches!(self.state, State::Ongoing | State::Prepared { .. })
    }

    fn is_of(&self, pid: i64, epoch: i16) -> Result<(), i16> {
        match () {
            () if self.pid != pid => Err(BAD_MAPPING),
            () if self.epoch != epoch => Err(FENCED),
            () => Ok(()),
        }
    }
}

#[derive(Default)]
pub(crate) struct TxnCoordinator {
    pub(crate) broker: i32,
    /// It reads the transactional ids until then.
    pub(crate) loading_until: u64,
    next_pid: i64,
    serial: u32,
    pub(crate) all: BTreeMap<Arc<str>, Transaction>,
}

impl TxnCoordinator {
    fn fresh(&mut self) -> u32 {
        self.serial += 1;
        self.serial
    }
}

impl World {
    /// What `__transaction_state` has is led by another broker.
    pub(crate) fn move_txn_coordinator(&mut self, side: ClusterSide, to: i32) {
        if self.transactors.is_empty() || self.clusters[side.index()].transactions.broker == to {
            return;
        }
        let until = self.now + self.rng.pick(&[5, 50, 500, 3_000]) * MS + self.rng.up_to(20 * MS);
        let coordinator = &mut self.clusters[side.index()].transactions;
        (coordinator.broker, coordinator.loading_until) = (to, until);
        trace!(self, "{side} transactions are coordinated by {to}");
    }

    pub(crate) fn transact(&mut self, link: usize, asked: &Asked) {
        // Carried out late, behind its repetition, it would fence the producer, end its next transaction, or begin one that
        // nobody ends, also without a proxy: what KIP-890 is for.
        if self.is_cut(link) || self.conns[self.links[link].conn].gone {
            let mut body = wire::response(asked.key);
            body.set("ErrorCode", CONCURRENT);
            return self.respond(link, asked, &body);
        }
        let body = match asked.key {
            wire::INIT_PRODUCER_ID => self.init_producer(link, asked),
            wire::ADD_PARTITIONS_TO_TXN => self.add_partitions(link, asked),
            _ => self.end_transaction(link, asked),
        };
        self.respond(link, asked, &body);
    }

    /// Whether the broker at the other end of a connection has the transactional ids.
    fn coordinates(&mut self, link: usize) -> Result<(), i16> {
        let coordinator = &self.clusters[self.links[link].side.index()].transactions;
        match () {
            () if coordinator.broker != self.links[link].broker => Err(NOT_COORDINATOR),
            () if coordinator.loading_until > self.now => {
                self.see(Seen::TxnCoordinatorLoading);
                Err(LOADING)
            }
            () => Ok(()),
        }
    }

    fn init_producer(&mut self, link: usize, asked: &Asked) -> Struct {
        let name: Arc<str> = Arc::from(asked.body.str("TransactionalId"));
        let side = self.links[link].side;
        let expected = (asked.version >= 3 && asked.body.i64("ProducerId") >= 0)
            .then(|| (asked.body.i64("ProducerId"), asked.body.i16("ProducerEpoch")));
        let timeout_ms = asked.body.i32("TransactionTimeoutMs");
        let given = self.coordinates(link).and_then(|()| self.init(side, &name, expected, timeout_ms));
        trace!(self, "{side} InitProducerId of {name} {expected:?}: {given:?}");
        let mut body = wire::response(wire::INIT_PRODUCER_ID);
        match given {
            Ok((pid, epoch)) => {
                body.set("ProducerId", pid);
                body.set("ProducerEpoch", epoch);
            }
            Err(error) => body.set("ErrorCode", told(error, asked.version >= 4)),
        }
        body
    }

    /// Gives a producer its identity, and takes it from the one before (`prepareInitProducerIdTransit`).
    pub(crate) fn init(
        &mut self,
        side: ClusterSide,
        name: &Arc<str>,
        expected: Option<(i64, i16)>,
        timeout_ms: i32,
    ) -> Result<(i64, i16), i16> {
        let coordinator = &mut self.clusters[side.index()].transactions;
        let serial = coordinator.fresh();
        let Some(known) = coordinator.all.get_mut(name) else {
            let (pid, epoch) = (coordinator.next_pid, 0);
            coordinator.next_pid += 1;
            let (state, parts) = (State::Empty, BTreeSet::new());
            let new = Transaction { pid, epoch, before: None, state, timeout_ms, parts, serial };
            coordinator.all.insert(Arc::clone(name), new);
            return Ok((pid, epoch));
        };
        if let Some((pid, epoch)) = expected
            && (pid, epoch) != (known.pid, known.epoch)
        {
            let again = pid == known.pid && Some(epoch) == known.before && !known.is_open();
            return if again { Ok((known.pid, known.epoch)) } else { Err(FENCED) };
        }
        match known.state {
            State::Prepared { .. } => Err(CONCURRENT),
            State::Ongoing => {
                // Whoever has it open is fenced, and the next attempt gets the epoch after that.
                known.epoch += 1;
                self.decide(side, name, false);
                Err(CONCURRENT)
            }
            State::Empty | State::Complete { .. } => {
                known.before = expected.map(|(_, epoch)| epoch);
                known.epoch += 1;
                (known.state, known.timeout_ms, known.serial) = (State::Empty, timeout_ms, serial);
                known.parts.clear();
                Ok((known.pid, known.epoch))
            }
        }
    }

    fn add_partitions(&mut self, link: usize, asked: &Asked) -> Struct {
        let side = self.links[link].side;
        let name: Arc<str> = Arc::from(asked.body.str("V3AndBelowTransactionalId"));
        let producer = (asked.body.i64("V3AndBelowProducerId"), asked.body.i16("V3AndBelowProducerEpoch"));
        let mut body = wire::response(wire::ADD_PARTITIONS_TO_TXN);
        let mut logs = BTreeSet::new();
        for topic in asked.body.structs("V3AndBelowTopics") {
            let indexes = topic.ints("Partitions");
            logs.extend(indexes.filter_map(|index| self.log_of(side, false, topic, index as i32)));
        }
        let done = self.coordinates(link).and_then(|()| self.take_in(side, &name, producer, &logs));
        trace!(self, "{side} {name} takes in {logs:?} as {producer:?}: {done:?}");
        let error = done.map_or_else(|error| told(error, asked.version >= 2), |()| 0);
        for topic in asked.body.structs("V3AndBelowTopics") {
            let mut out = body.new_element("ResultsByTopicV3AndBelow");
            out.set("Name", topic.get("Name").clone());
            for index in topic.ints("Partitions") {
                let mut partition = out.new_element("ResultsByPartition");
                partition.set("PartitionIndex", Value::Int(index));
                partition.set("PartitionErrorCode", error);
                out.push("ResultsByPartition", partition);
            }
            body.push("ResultsByTopicV3AndBelow", out);
        }
        body
    }

    fn take_in(
        &mut self,
        side: ClusterSide,
        name: &Arc<str>,
        (pid, epoch): (i64, i16),
        logs: &BTreeSet<usize>,
    ) -> Result<(), i16> {
        let coordinator = &mut self.clusters[side.index()].transactions;
        let serial = coordinator.fresh();
        let known = coordinator.all.get_mut(name).ok_or(BAD_MAPPING)?;
        known.is_of(pid, epoch)?;
        match known.state {
            State::Prepared { .. } => return Err(CONCURRENT),
            State::Ongoing => {}
            State::Empty | State::Complete { .. } => {
                (known.state, known.serial) = (State::Ongoing, serial);
                known.parts.clear();
                let after = known.timeout_ms as u64 * MS;
                let (name, what) = (Arc::clone(name), Due::Timeout);
                self.plan(after, Ev::Transaction { side, name, serial, what });
            }
        }
        let coordinator = &mut self.clusters[side.index()].transactions;
        coordinator.all.get_mut(name).expect("known").parts.extend(logs);
        Ok(())
    }

    fn end_transaction(&mut self, link: usize, asked: &Asked) -> Struct {
        let side = self.links[link].side;
        let name: Arc<str> = Arc::from(asked.body.str("TransactionalId"));
        let producer = (asked.body.i64("ProducerId"), asked.body.i16("ProducerEpoch"));
        let commit = asked.body.bool("Committed");
        let done = self.coordinates(link).and_then(|()| self.end_as(side, &name, producer, commit));
        trace!(self, "{side} EndTxn of {name} as {producer:?}, commit {commit}: {done:?}");
        let mut body = wire::response(wire::END_TXN);
        body.set("ErrorCode", done.map_or_else(|error| told(error, asked.version >= 2), |()| 0));
        body
    }

    fn end_as(
        &mut self,
        side: ClusterSide,
        name: &Arc<str>,
        (pid, epoch): (i64, i16),
        commit: bool,
    ) -> Result<(), i16> {
        let known = self.clusters[side.index()].transactions.all.get(name).ok_or(BAD_MAPPING)?;
        known.is_of(pid, epoch)?;
        match known.state {
            State::Ongoing => {
                self.decide(side, name, commit);
                Ok(())
            }
            State::Complete { commit: was } if was == commit => Ok(()),
            State::Prepared { commit: was } if was == commit => Err(CONCURRENT),
            State::Empty | State::Complete { .. } | State::Prepared { .. } => Err(BAD_STATE),
        }
    }

    /// The decision is durable. From now on markers are under way.
    fn decide(&mut self, side: ClusterSide, name: &Arc<str>, commit: bool) {
        let coordinator = &mut self.clusters[side.index()].transactions;
        let serial = coordinator.fresh();
        let known = coordinator.all.get_mut(name).expect("an open transaction");
        (known.state, known.serial) = (State::Prepared { commit }, serial);
        for log in known.parts.clone() {
            let after = match self.rng.up_to(9) {
                0 if !self.healed => self.rng.between(20, 800) * MS,
                _ => self.rng.between(100, 4_000),
            };
            let (name, what) = (Arc::clone(name), Due::Marker { log });
            self.plan(after, Ev::Transaction { side, name, serial, what });
        }
    }

    pub(crate) fn on_transaction(&mut self, side: ClusterSide, name: Arc<str>, serial: u32, what: Due) {
        let known = self.clusters[side.index()].transactions.all.get(&name);
        let Some(known) = known.filter(|known| known.serial == serial) else { return };
        let (broker, until) = (
            self.clusters[side.index()].transactions.broker,
            self.clusters[side.index()].transactions.loading_until,
        );
        if until > self.now || !self.clusters[side.index()].is_up(broker) {
            // Whoever coordinates next goes on where this one was.
            let after = self.rng.between(5, 50) * MS;
            return self.plan(after, Ev::Transaction { side, name, serial, what });
        }
        match what {
            Due::Timeout if known.state == State::Ongoing => self.time_out(side, &name),
            Due::Timeout => {}
            Due::Marker { log } => {
                let producer = (known.pid, known.epoch);
                if let State::Prepared { commit } = known.state {
                    self.mark(side, name, serial, producer, commit, log);
                }
            }
        }
    }

    /// The coordinator ends what its client has left, and fences that client.
    fn time_out(&mut self, side: ClusterSide, name: &Arc<str>) {
        trace!(self, "{side} the transaction of {name} times out");
        self.see(Seen::TransactionTimedOut);
        let all = &mut self.clusters[side.index()].transactions.all;
        all.get_mut(name).expect("an open transaction").epoch += 1;
        self.excuse(name);
        self.decide(side, name, false);
    }

    /// Writes a marker, until all replicas have it (`TransactionMarkerChannelManager`).
    fn mark(
        &mut self,
        side: ClusterSide,
        name: Arc<str>,
        serial: u32,
        producer: (i64, i16),
        commit: bool,
        index: usize,
    ) {
        let bytes = wire::marker(producer, commit, serial);
        let mark = wire::heads(&bytes)[0].mark;
        let cluster = &self.clusters[side.index()];
        let log = &cluster.logs[index];
        let can = cluster.is_up(log.leader)
            && cluster.brokers[log.leader as usize].stalled_until <= self.now
            && !log.short;
        let written = log.batches.iter().rev().find(|b| b.mark == mark).map(|b| b.end());
        if written.is_some_and(|end| end <= log.committed) {
            return self.has_marked(side, &name, index);
        }
        if can && written.is_none() {
            self.append_marker(side, index, &bytes, producer.0);
        }
        let after = self.rng.between(200, 10_000);
        self.plan(after, Ev::Transaction { side, name, serial, what: Due::Marker { log: index } });
    }

    fn append_marker(&mut self, side: ClusterSide, index: usize, bytes: &Bytes, pid: i64) {
        let time = self.now_ms() + self.clusters[side.index()].skew_ms;
        let log = &mut self.clusters[side.index()].logs[index];
        let began = log.unstable.began(pid);
        let of_it = log.batches.iter().rev().take_while(|b| began.is_some_and(|began| b.base >= began));
        let marks = of_it.filter(|b| b.pid == pid && b.kind == Kind::Transactional).map(|b| b.mark).collect();
        log.append(bytes, time, true);
        let batch = &log.batches[log.batches.len() - 1];
        let (mark, at) = (batch.mark, batch.base);
        trace!(self, "{side} {index} appends {mark:?} of pid {pid} at {at}: {marks:?}");
        let judged = self.oracle.decided(side, index as i32, mark, marks);
        self.judge(judged);
        self.replicate_soon(side, index as i32);
        self.look_at_parked(side, index as i32);
    }

    fn has_marked(&mut self, side: ClusterSide, name: &Arc<str>, log: usize) {
        let known =
            self.clusters[side.index()].transactions.all.get_mut(name).expect("a decided transaction");
        known.parts.remove(&log);
        if let (State::Prepared { commit }, true) = (known.state, known.parts.is_empty()) {
            known.state = State::Complete { commit };
            trace!(self, "{side} the transaction of {name} is complete");
        }
    }

    /// Why a leader that finds no open transaction of a producer does not take its batch (KIP-890, `VerificationGuard`).
    pub(crate) fn unverified(
        &self,
        side: ClusterSide,
        name: Option<&str>,
        version: i16,
        records: &Bytes,
        log: usize,
    ) -> Option<i16> {
        let cluster = &self.clusters[side.index()];
        let head = *wire::heads(records).first().filter(|head| head.kind == Kind::Transactional)?;
        if cluster.logs[log].unstable.began(head.pid).is_some() {
            return None;
        }
        if cluster.transactions.loading_until > self.now || !cluster.is_up(cluster.transactions.broker) {
            return Some(NOT_ENOUGH_REPLICAS);
        }
        let known = name.and_then(|name| cluster.transactions.all.get(name));
        let Some(known) = known.filter(|known| known.pid == head.pid) else { return Some(BAD_MAPPING) };
        match known.state {
            _ if known.epoch != head.epoch => Some(BAD_EPOCH),
            State::Prepared { .. } => Some(NOT_ENOUGH_REPLICAS),
            State::Ongoing if known.parts.contains(&log) => None,
            _ if version >= 11 => Some(ABORTABLE),
            _ => Some(BAD_STATE),
        }
    }
}

/// What comes to be done for a transaction.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Due {
    Timeout,
    Marker { log: usize },
}

/// Since some version of each API there is a code for a producer that is fenced (KIP-588).
fn told(error: i16, knows_fenced: bool) -> i16 {
    if error == FENCED && !knows_fenced { BAD_EPOCH } else { error }
}
