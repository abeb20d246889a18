//! What a broker does with produce, fetches and questions about its logs. An answer may have to wait, for replicas or for
//! records.

use crate::cluster::{Appended, code};
use crate::coverage::Seen;
use crate::wire::{self, Asked, BATCH};
use crate::world::{Ev, MS, World, trace};
use bytes::Bytes;
use crossover_core::ids::ClusterSide;
use crossover_core::schema::{Struct, Value};

/// What a broker has not answered yet.
pub(crate) enum Parked {
    Produce { asked: Asked, parts: Vec<PartAnswer> },
    Fetch { asked: Asked },
}

#[derive(Clone, Copy)]
pub(crate) struct PartAnswer {
    topic: usize,
    partition: i32,
    log: usize,
    error: i16,
    base: i64,
    /// Answered once all replicas have everything before it.
    wait: Option<i64>,
}

/// A produce request, as a leader looks at it.
struct Writing<'a> {
    side: ClusterSide,
    broker: i32,
    acks: i16,
    version: i16,
    transactional_id: Option<&'a str>,
}

impl World {
    pub(crate) fn produce(&mut self, link: usize, asked: Asked) {
        let (side, broker) = (self.links[link].side, self.links[link].broker);
        let (acks, version) = (asked.body.i16("Acks"), asked.version);
        let transactional_id = if version >= 3 { asked.body.opt_str("TransactionalId") } else { None };
        let writing = Writing { side, broker, acks, version, transactional_id };
        let mut parts = Vec::new();
        for (topic, data) in asked.body.structs("TopicData").enumerate() {
            for partition in data.structs("PartitionData") {
                let index = partition.i32("Index");
                let log = self.log_of(side, version >= 13, data, index);
                let mut part = PartAnswer { topic, partition: index, log: 0, error: 3, base: -1, wait: None };
                if let Some(log) = log {
                    part.log = log;
                    let records = partition.opt_bytes("Records").cloned().unwrap_or_default();
                    self.append(&writing, &records, &mut part);
                }
                parts.push(part);
            }
        }
        if acks == 0 {
            let refused = parts.iter().any(|p| p.error != 0);
            if refused {
                // A broker has no other way to tell it.
                self.links[link].broker_open = false;
                self.cut(link);
            }
            return self.finish(link, None);
        }
        if parts.iter().all(|p| p.wait.is_none()) {
            return self.answer_produce(link, &asked, &parts);
        }
        let timeout = u64::try_from(asked.body.i32("TimeoutMs")).unwrap_or(0) * MS;
        self.park(link, Parked::Produce { asked, parts }, timeout);
    }

    /// The log of a partition, by what a request calls its topic.
    pub(crate) fn log_of(
        &self,
        side: ClusterSide,
        by_id: bool,
        topic: &Struct,
        partition: i32,
    ) -> Option<usize> {
        let is = |name: &str, ids: &[[u8; 16]; 2]| match by_id {
            true => topic.uuid("TopicId") == ids[side.index()],
            false => topic.str("Name") == name,
        };
        let log = match () {
            () if is(wire::TOPIC, &wire::IDS) => partition,
            () if is(wire::AUDIT, &wire::AUDIT_IDS) => partition + self.shape.partitions,
            () => return None,
        };
        Some(log as usize).filter(|log| *log < self.clusters[side.index()].logs.len())
    }

    fn append(&mut self, writing: &Writing<'_>, records: &Bytes, part: &mut PartAnswer) {
        let (side, acks) = (writing.side, writing.acks);
        let time = self.now_ms() + self.clusters[side.index()].skew_ms - self.rng.up_to(30) as i64;
        let refusal = match self.clusters[side.index()].logs[part.log].leader == writing.broker {
            true => self.unverified(side, writing.transactional_id, writing.version, records, part.log),
            false => Some(code::NOT_LEADER),
        };
        if let Some(error) = refusal {
            part.error = error;
            wire::heads(records).iter().for_each(|head| self.oracle.refused(head.mark));
            return;
        }
        let log = &mut self.clusters[side.index()].logs[part.log];
        let appended = log.append(records, time, acks == -1);
        part.error = 0;
        match appended {
            Appended::Now { base, end } => {
                part.base = base;
                part.wait = (acks == -1).then_some(end);
                let log = &self.clusters[side.index()].logs[part.log];
                let batch = &log.batches[log.batches.len() - 1];
                trace!(
                    self,
                    "{side} {} appends {:?} at {base} pid {:x} seq {}",
                    part.log,
                    batch.mark,
                    batch.pid,
                    batch.sequence
                );
                let judged = self.oracle.appended(side, part.log as i32, batch);
                self.judge(judged);
                self.replicate_soon(side, part.log as i32);
            }
            Appended::Before { base, end } => {
                part.base = base;
                let watermark = self.clusters[side.index()].logs[part.log].high_watermark;
                part.wait = (acks == -1 && watermark < end).then_some(end);
            }
            Appended::Refused(error) => {
                if let Some(head) = wire::heads(records).first() {
                    trace!(self, "{side} {} refuses {:?}: {error}", part.log, head.mark);
                    self.oracle.refused(head.mark);
                }
                part.error = error;
            }
        }
    }

    pub(crate) fn replicate_soon(&mut self, side: ClusterSide, partition: i32) {
        let log = &mut self.clusters[side.index()].logs[partition as usize];
        if log.replicating || log.short {
            return;
        }
        log.replicating = true;
        let after = self.delay();
        self.plan(after, Ev::Replicate { side, partition });
    }

    pub(crate) fn on_replicate(&mut self, side: ClusterSide, partition: i32) {
        let log = &mut self.clusters[side.index()].logs[partition as usize];
        log.replicating = false;
        if log.short {
            return;
        }
        log.replicate();
        self.look_at_parked(side, partition);
    }

    pub(crate) fn on_isr_back(&mut self, side: ClusterSide, partition: i32) {
        self.clusters[side.index()].logs[partition as usize].short = false;
        self.replicate_soon(side, partition);
    }

    fn park(&mut self, link: usize, parked: Parked, timeout: u64) {
        let token = self.fresh();
        // A cut connection keeps its token: nobody will be told of the timeout.
        if self.links[link].token != u64::MAX {
            self.links[link].token = token;
        }
        self.links[link].parked = Some(parked);
        self.parked.push(link);
        self.plan(timeout, Ev::BrokerTimeout { link, token });
    }

    pub(crate) fn unpark(&mut self, link: usize) -> Option<Parked> {
        self.parked.retain(|l| *l != link);
        self.links[link].parked.take()
    }

    pub(crate) fn on_broker_timeout(&mut self, link: usize, token: u64) {
        if self.links[link].token != token && self.links[link].token != u64::MAX {
            return;
        }
        match self.unpark(link) {
            Some(Parked::Produce { asked, mut parts }) => {
                for part in parts.iter_mut().filter(|p| p.wait.is_some()) {
                    part.error = 7;
                }
                self.answer_produce(link, &asked, &parts);
            }
            Some(Parked::Fetch { asked }) => self.fetch(link, asked, false),
            None => {}
        }
    }

    /// Something has changed at a log: whoever waits for it looks again.
    pub(crate) fn look_at_parked(&mut self, side: ClusterSide, partition: i32) {
        for link in self.parked.clone() {
            if self.links[link].side != side || !self.links[link].broker_open {
                continue;
            }
            match self.unpark(link) {
                Some(Parked::Produce { asked, mut parts }) => {
                    self.settle(side, link, &mut parts);
                    if parts.iter().all(|p| p.wait.is_none()) {
                        self.answer_produce(link, &asked, &parts);
                    } else {
                        self.links[link].parked = Some(Parked::Produce { asked, parts });
                        self.parked.push(link);
                    }
                }
                Some(Parked::Fetch { asked }) => match self.is_worth(side, link, partition, &asked) {
                    true => self.fetch(link, asked, false),
                    false => {
                        self.links[link].parked = Some(Parked::Fetch { asked });
                        self.parked.push(link);
                    }
                },
                None => {}
            }
        }
    }

    /// `DelayedProduce`: a leader that is none any more answers 6, whatever it has appended.
    fn settle(&mut self, side: ClusterSide, link: usize, parts: &mut [PartAnswer]) {
        for part in parts.iter_mut() {
            let Some(end) = part.wait else { continue };
            let log = &self.clusters[side.index()].logs[part.log];
            if log.leader != self.links[link].broker {
                part.error = code::NOT_LEADER;
                part.wait = None;
                self.coverage.note(Seen::ErrorAfterAppend);
            } else if log.high_watermark >= end {
                part.wait = None;
            }
        }
    }

    /// Whether a parked fetch is answered now that something has changed at a log (`DelayedFetch.tryComplete`).
    fn is_worth(&self, side: ClusterSide, link: usize, partition: i32, asked: &Asked) -> bool {
        let logs = &self.clusters[side.index()].logs;
        let wanted = || asked.body.structs("Topics").flat_map(|t| t.structs("Partitions"));
        if logs[partition as usize].leader != self.links[link].broker {
            return wanted().any(|p| p.i32("Partition") == partition);
        }
        let there = wanted().map(|p| {
            let log = &logs[p.i32("Partition") as usize];
            let batches = log.readable_from(p.i64("FetchOffset"), asked.is_committed());
            (batches as i32 * BATCH).min(p.i32("PartitionMaxBytes"))
        });
        there.sum::<i32>() >= limits(asked).1
    }

    fn answer_produce(&mut self, link: usize, asked: &Asked, parts: &[PartAnswer]) {
        for part in parts.iter().filter(|part| part.error != 0) {
            let topic = asked.body.structs("TopicData").nth(part.topic);
            let mut data = topic.into_iter().flat_map(|topic| topic.structs("PartitionData"));
            let records = data.find(|data| data.i32("Index") == part.partition);
            let records = records.and_then(|data| data.opt_bytes("Records").cloned()).unwrap_or_default();
            wire::heads(&records).iter().for_each(|head| self.oracle.errs(head.mark));
        }
        let side = self.links[link].side;
        let mut body = wire::response(wire::PRODUCE);
        for (index, data) in asked.body.structs("TopicData").enumerate() {
            let mut topic = body.new_element("Responses");
            topic.set("Name", data.get("Name").clone());
            topic.set("TopicId", data.get("TopicId").clone());
            for part in parts.iter().filter(|p| p.topic == index) {
                let log = &self.clusters[side.index()].logs[part.log];
                let mut answer = topic.new_element("PartitionResponses");
                answer.set("Index", part.partition);
                answer.set("ErrorCode", part.error);
                answer.set("BaseOffset", part.base);
                answer.set("LogStartOffset", log.start);
                if part.error == code::NOT_LEADER && asked.version >= 10 {
                    let mut leader = answer.opt_struct("CurrentLeader").cloned().expect("a struct");
                    leader.set("LeaderId", log.leader);
                    leader.set("LeaderEpoch", log.epoch);
                    answer.set("CurrentLeader", Value::from(leader));
                }
                topic.push("PartitionResponses", answer);
            }
            body.push("Responses", topic);
        }
        self.respond(link, asked, &body);
    }

    /// `may_wait`: it has just come.
    pub(crate) fn fetch(&mut self, link: usize, asked: Asked, may_wait: bool) {
        let (body, is_enough) = self.fetched(link, &asked);
        let wait = u64::try_from(asked.body.i32("MaxWaitMs")).unwrap_or(0) * MS;
        if may_wait && !is_enough && wait > 0 {
            return self.park(link, Parked::Fetch { asked }, wait);
        }
        self.respond(link, &asked, &body);
    }

    /// The answer, and whether it need not wait.
    fn fetched(&mut self, link: usize, asked: &Asked) -> (Struct, bool) {
        let (side, broker) = (self.links[link].side, self.links[link].broker);
        let mut body = wire::response(wire::FETCH);
        let (max, least) = limits(asked);
        let mut room = max;
        let mut urgent = false;
        for data in asked.body.structs("Topics") {
            let mut topic = body.new_element("Responses");
            topic.set("Topic", data.get("Topic").clone());
            topic.set("TopicId", data.get("TopicId").clone());
            for wanted in data.structs("Partitions") {
                let answer =
                    self.fetch_partition(side, broker, asked, wanted, room, topic.new_element("Partitions"));
                let size = answer.bytes("Records").len() as i32;
                trace!(
                    self,
                    "{side} {broker} reads {} from {}, epoch {}: error {}, {size} bytes, diverges {:?}",
                    answer.i32("PartitionIndex"),
                    wanted.i64("FetchOffset"),
                    wanted.i32("CurrentLeaderEpoch"),
                    answer.i16("ErrorCode"),
                    answer.opt_struct("DivergingEpoch").map(|d| d.i64("EndOffset"))
                );
                room -= size;
                let diverges = answer.opt_struct("DivergingEpoch").is_some_and(|d| d.i64("EndOffset") >= 0);
                urgent |= answer.i16("ErrorCode") != 0 || diverges;
                topic.push("Partitions", answer);
            }
            body.push("Responses", topic);
        }
        (body, urgent || max - room >= least)
    }

    fn fetch_partition(
        &mut self,
        side: ClusterSide,
        broker: i32,
        asked: &Asked,
        wanted: &Struct,
        room: i32,
        mut answer: Struct,
    ) -> Struct {
        let partition = wanted.i32("Partition");
        let log = &self.clusters[side.index()].logs[partition as usize];
        answer.set("PartitionIndex", partition);
        answer.set("HighWatermark", -1_i64);
        answer.set("Records", Some(Bytes::new()));
        if let Err(error) = log.check_epoch(broker, wanted.i32("CurrentLeaderEpoch")) {
            if error == code::FENCED {
                self.see(Seen::EpochFenced);
            }
            answer.set("ErrorCode", error);
            return answer;
        }
        answer.set("HighWatermark", log.high_watermark);
        answer.set("LastStableOffset", log.stable());
        answer.set("LogStartOffset", log.start);
        let offset = wanted.i64("FetchOffset");
        let last = wanted.i32("LastFetchedEpoch");
        if asked.version >= 12 && last >= 0 {
            let (epoch, end) = log.epoch_end(last);
            if epoch < last || end < offset {
                let mut diverging = answer.opt_struct("DivergingEpoch").cloned().expect("a struct");
                diverging.set("Epoch", epoch);
                diverging.set("EndOffset", end);
                answer.set("DivergingEpoch", Value::from(diverging));
                return answer;
            }
        }
        if offset < log.start || offset > log.end {
            answer.set("ErrorCode", code::OUT_OF_RANGE);
            return answer;
        }
        let max = wanted.i32("PartitionMaxBytes").min(room) / BATCH;
        let records = log.read(offset, log.readable(asked.is_committed()), max.max(1) as usize);
        if asked.is_committed() {
            let end = wire::heads(&records).last().map_or(offset, |head| head.base + i64::from(head.count));
            answer.set("AbortedTransactions", Value::Array(Some(Vec::new())));
            for (pid, first) in log.unstable.aborted(offset, end) {
                let mut aborted = answer.new_element("AbortedTransactions");
                aborted.set("ProducerId", pid);
                aborted.set("FirstOffset", first);
                answer.push("AbortedTransactions", aborted);
            }
        }
        answer.set("Records", Some(records));
        answer
    }

    pub(crate) fn list_offsets(&mut self, link: usize, asked: &Asked) {
        let (side, broker) = (self.links[link].side, self.links[link].broker);
        let mut body = wire::response(wire::LIST_OFFSETS);
        for data in asked.body.structs("Topics") {
            let mut topic = body.new_element("Topics");
            topic.set("Name", data.get("Name").clone());
            for wanted in data.structs("Partitions") {
                let partition = wanted.i32("PartitionIndex");
                let log = &self.clusters[side.index()].logs[partition as usize];
                let mut answer = topic.new_element("Partitions");
                answer.set("PartitionIndex", partition);
                let led = log.check_epoch(broker, wanted.i32("CurrentLeaderEpoch"));
                match led.and_then(|()| log.list(wanted.i64("Timestamp"), asked.is_committed())) {
                    Ok((offset, time)) => {
                        answer.set("Offset", offset);
                        answer.set("Timestamp", time);
                        if asked.version >= 4 && offset >= 0 {
                            answer.set("LeaderEpoch", log.epoch_at(offset));
                        }
                    }
                    Err(code::OFFSET_NOT_AVAILABLE) if asked.version < 5 => answer.set("ErrorCode", 5_i16),
                    Err(error) => answer.set("ErrorCode", error),
                }
                topic.push("Partitions", answer);
            }
            body.push("Topics", topic);
        }
        self.respond(link, asked, &body);
    }

    pub(crate) fn end_epoch(&mut self, link: usize, asked: &Asked) {
        let (side, broker) = (self.links[link].side, self.links[link].broker);
        self.see(Seen::SuccessorAsked);
        let mut body = wire::response(wire::OFFSET_FOR_LEADER_EPOCH);
        for data in asked.body.structs("Topics") {
            let mut topic = body.new_element("Topics");
            topic.set("Topic", data.get("Topic").clone());
            for wanted in data.structs("Partitions") {
                let partition = wanted.i32("Partition");
                let log = &self.clusters[side.index()].logs[partition as usize];
                let mut answer = topic.new_element("Partitions");
                answer.set("Partition", partition);
                match log.check_epoch(broker, wanted.i32("CurrentLeaderEpoch")) {
                    Ok(()) => {
                        let (epoch, end) = log.epoch_end(wanted.i32("LeaderEpoch"));
                        answer.set("LeaderEpoch", epoch);
                        answer.set("EndOffset", end);
                    }
                    Err(error) => answer.set("ErrorCode", error),
                }
                topic.push("Partitions", answer);
            }
            body.push("Topics", topic);
        }
        self.respond(link, asked, &body);
    }

    pub(crate) fn delete(&mut self, link: usize, asked: &Asked) {
        let (side, broker) = (self.links[link].side, self.links[link].broker);
        let mut body = wire::response(wire::DELETE_RECORDS);
        for data in asked.body.structs("Topics") {
            let mut topic = body.new_element("Topics");
            topic.set("Name", data.get("Name").clone());
            for wanted in data.structs("Partitions") {
                let (partition, offset) = (wanted.i32("PartitionIndex"), wanted.i64("Offset"));
                let log = &mut self.clusters[side.index()].logs[partition as usize];
                let was = log.start;
                let deleted = match log.leader == broker {
                    true => log.delete_records(offset),
                    false => Err(code::NOT_LEADER),
                };
                trace!(self, "{side} {partition} is deleted up to {offset}: {deleted:?}");
                let mut answer = topic.new_element("Partitions");
                answer.set("PartitionIndex", partition);
                answer.set("LowWatermark", deleted.unwrap_or(-1));
                answer.set("ErrorCode", deleted.err().unwrap_or(0));
                topic.push("Partitions", answer);
                let judged = self.oracle.deleted(side, partition, was, &self.clusters);
                self.judge(judged);
            }
            body.push("Topics", topic);
        }
        self.respond(link, asked, &body);
    }
}

/// How many bytes a fetch wants at most, and at least.
fn limits(asked: &Asked) -> (i32, i32) {
    let max = asked.body.i32("MaxBytes");
    (max, asked.body.i32("MinBytes").min(max))
}
