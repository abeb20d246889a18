//! Connections and what travels on them. A broker works through what it has received although the other end is gone; what
//! was still under way may arrive or not, but never without what went before it.

use crate::cluster::{Appended, code};
use crate::coverage::Seen;
use crate::wire::{self, Asked};
use crate::world::{Ev, MS, Who, World, trace};
use bytes::Bytes;
use crossover_core::ids::{ClusterSide, VirtualNode};
use crossover_core::schema::{Struct, Value};
use crossover_core::session::{Session, UpstreamId};
use std::collections::{BTreeMap, VecDeque};

/// Bytes of one batch.
const BATCH: i32 = 73;

/// A client's connection.
pub(crate) struct Conn {
    pub(crate) who: Who,
    node: VirtualNode,
    pub(crate) session: Option<Session>,
    /// The client takes it for open.
    pub(crate) client_open: bool,
    /// The proxy takes it for open.
    pub(crate) proxy_open: bool,
    pub(crate) upstreams: BTreeMap<UpstreamId, usize>,
    pub(crate) timer_at: u64,
    pub(crate) waking: bool,
    /// When it last used the newest snapshot.
    pub(crate) loaded_at: u64,
    pub(crate) gone: bool,
    to_proxy: u64,
    pub(crate) to_client: u64,
}

/// A connection of the proxy to a broker.
pub(crate) struct Link {
    pub(crate) id: UpstreamId,
    pub(crate) conn: usize,
    pub(crate) side: ClusterSide,
    pub(crate) broker: i32,
    pub(crate) proxy_open: bool,
    pub(crate) broker_open: bool,
    pub(crate) established: bool,
    /// Sent before the connection was established.
    early: Vec<Bytes>,
    inbox: VecDeque<Bytes>,
    busy: bool,
    parked: Option<Parked>,
    token: u64,
    /// What arrives later was lost with the connection.
    until: u64,
    to_broker: u64,
    to_proxy: u64,
}

/// What a broker has not answered yet.
enum Parked {
    Produce { asked: Asked, parts: Vec<PartAnswer> },
    Fetch { asked: Asked },
}

#[derive(Clone, Copy)]
struct PartAnswer {
    topic: usize,
    partition: i32,
    error: i16,
    base: i64,
    /// Answered once all replicas have everything before it.
    wait: Option<i64>,
}

impl World {
    pub(crate) fn connect(&mut self, who: Who, node: VirtualNode) -> Option<usize> {
        if !self.proxy.up {
            return None;
        }
        let session = self.proxy.session(node, self.shape.hold_ms, self.rng.next());
        self.conns.push(Conn {
            who,
            node,
            session: Some(session),
            client_open: true,
            proxy_open: true,
            upstreams: BTreeMap::new(),
            timer_at: u64::MAX,
            waking: false,
            loaded_at: 0,
            gone: false,
            to_proxy: 0,
            to_client: 0,
        });
        Some(self.conns.len() - 1)
    }

    /// A client sends a request. When it comes to the proxy.
    pub(crate) fn send(&mut self, conn: usize, frame: Bytes) -> u64 {
        let at = self.delay() + self.now;
        let to = &mut self.conns[conn].to_proxy;
        *to = at.max(*to);
        let at = *to;
        self.plan_at(at, Ev::Request { conn, frame });
        at
    }

    /// The client's end closes, or the way to it does: both ends learn it, each in its time.
    pub(crate) fn cut_client(&mut self, conn: usize) {
        let (one, other) = (self.delay(), self.delay());
        let to_proxy = self.conns[conn].to_proxy.max(self.now + one);
        self.plan_at(to_proxy, Ev::ClientGone { conn });
        self.plan(other, Ev::Hangup { conn });
    }

    pub(crate) fn dial(&mut self, conn: usize, id: UpstreamId, node: VirtualNode) {
        if self.conns[conn].node.side != node.side {
            self.see(Seen::StaleCompanion);
        }
        let link = self.links.len();
        self.links.push(Link {
            id,
            conn,
            side: node.side,
            broker: node.broker,
            proxy_open: true,
            broker_open: true,
            established: false,
            early: Vec::new(),
            inbox: VecDeque::new(),
            busy: false,
            parked: None,
            token: 0,
            until: u64::MAX,
            to_broker: 0,
            to_proxy: 0,
        });
        self.conns[conn].upstreams.insert(id, link);
        let after = self.delay();
        self.plan(after, Ev::Dialled { link, conn });
    }

    pub(crate) fn on_dialled(&mut self, link: usize, conn: usize) {
        if !self.links[link].proxy_open {
            return;
        }
        let (side, broker) = (self.links[link].side, self.links[link].broker);
        if !self.clusters[side.index()].is_up(broker) || !self.links[link].broker_open {
            self.links[link].broker_open = false;
            return self.on_lost(link);
        }
        self.links[link].established = true;
        let early = std::mem::take(&mut self.links[link].early);
        early.into_iter().for_each(|frame| self.pass_on(link, frame));
        let upstream = self.links[link].id;
        self.apply(conn, crossover_core::session::Event::Connected { upstream });
    }

    pub(crate) fn pass_on(&mut self, link: usize, frame: Bytes) {
        if !self.links[link].established {
            return self.links[link].early.push(frame);
        }
        let at = self.delay() + self.now;
        let to = &mut self.links[link].to_broker;
        *to = at.max(*to);
        let at = *to;
        self.plan_at(at, Ev::BrokerIn { link, frame });
    }

    /// The connection breaks. What is under way arrives up to some moment.
    pub(crate) fn cut(&mut self, link: usize) {
        if !self.links[link].proxy_open {
            return;
        }
        let survives = if self.rng.chance(300) { 0 } else { self.rng.up_to(self.shape.pace * 2) };
        self.links[link].until = self.now + survives;
        let after = self.delay();
        let at = self.links[link].to_proxy.max(self.now + after);
        if self.links[link].busy || !self.links[link].inbox.is_empty() {
            self.see(Seen::LateAppend);
        }
        trace!(self, "cut link {link}");
        self.links[link].token = u64::MAX;
        self.plan_at(at, Ev::Lost { link });
    }

    /// Whether nobody waits at the other end for what a broker does.
    pub(crate) fn is_cut(&self, link: usize) -> bool {
        self.links[link].until != u64::MAX || !self.links[link].proxy_open
    }

    /// The proxy's process has ended: what it has written arrives up to some moment, and nobody is told anything.
    pub(crate) fn leave(&mut self, link: usize) {
        if self.links[link].until == u64::MAX && self.rng.chance(500) {
            self.links[link].until = self.now + self.rng.up_to(self.shape.pace * 2);
        }
        if self.links[link].busy {
            self.see(Seen::LateAppend);
        }
        self.links[link].token = u64::MAX;
    }

    /// The proxy ends the connection, orderly: what it has sent arrives, no answer is read any more.
    pub(crate) fn half_close(&mut self, link: usize) {
        self.links[link].proxy_open = false;
    }

    pub(crate) fn on_broker_in(&mut self, link: usize, frame: Bytes) {
        let at = &mut self.links[link];
        if !at.broker_open || self.now > at.until {
            return;
        }
        at.inbox.push_back(frame);
        self.run_soon(link);
    }

    /// Brokers take a connection's next request only when the last one is answered.
    fn run_soon(&mut self, link: usize) {
        let at = &mut self.links[link];
        if at.busy || at.inbox.is_empty() {
            return;
        }
        at.busy = true;
        let (side, broker) = (at.side, at.broker);
        let mut after = self.rng.between(10, 400);
        if !self.healed && self.rng.chance(self.shape.rough) {
            after = self.rng.between(5, 300) * MS;
        }
        let stalled = self.clusters[side.index()].brokers[broker as usize].stalled_until;
        let at = stalled.max(self.now + after);
        self.plan_at(at, Ev::BrokerRun { link });
    }

    pub(crate) fn on_broker_run(&mut self, link: usize) {
        let at = &mut self.links[link];
        if !at.broker_open {
            return;
        }
        let Some(frame) = at.inbox.pop_front() else { return };
        let asked = match wire::read_request(&frame) {
            Ok(asked) => asked,
            Err(error) => return self.fail(format!("a broker cannot read a request: {error}")),
        };
        match asked.key {
            wire::PRODUCE => self.produce(link, asked),
            wire::FETCH => self.fetch(link, asked, true),
            wire::LIST_OFFSETS => self.list_offsets(link, &asked),
            wire::FIND_COORDINATOR | wire::OFFSET_COMMIT | wire::OFFSET_FETCH => {
                self.coordinate(link, &asked)
            }
            wire::DELETE_RECORDS => self.delete(link, &asked),
            wire::API_VERSIONS => self.respond(link, &asked, &wire::response(wire::API_VERSIONS)),
            other => self.fail(format!("the model knows no API {other}")),
        }
    }

    pub(crate) fn respond(&mut self, link: usize, asked: &Asked, body: &Struct) {
        let frame = wire::answer(asked.key, asked.version, asked.correlation, body);
        self.finish(link, Some(frame));
    }

    /// The connection's next request may be taken.
    fn finish(&mut self, link: usize, frame: Option<Bytes>) {
        let lose = !self.healed && frame.is_some() && self.rng.chance(self.shape.rough / 4);
        if lose && self.links[link].until == u64::MAX {
            self.cut(link);
        } else if let Some(frame) = frame
            && self.links[link].proxy_open
            && self.links[link].until == u64::MAX
        {
            let at = self.delay() + self.now;
            let to = &mut self.links[link].to_proxy;
            *to = at.max(*to);
            let at = *to;
            self.plan_at(at, Ev::Answer { link, frame });
        }
        self.links[link].busy = false;
        self.run_soon(link);
    }

    fn produce(&mut self, link: usize, asked: Asked) {
        let (side, broker) = (self.links[link].side, self.links[link].broker);
        let acks = asked.body.i16("Acks");
        let mut parts = Vec::new();
        for (topic, data) in asked.body.structs("TopicData").enumerate() {
            let named = match asked.version >= 13 {
                true => data.uuid("TopicId") == wire::IDS[side.index()],
                false => data.str("Name") == wire::TOPIC,
            };
            for partition in data.structs("PartitionData") {
                let index = partition.i32("Index");
                let mut part = PartAnswer { topic, partition: index, error: 3, base: -1, wait: None };
                if named {
                    let records = partition.opt_bytes("Records").cloned().unwrap_or_default();
                    self.append(side, broker, acks, &records, &mut part);
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

    fn append(&mut self, side: ClusterSide, broker: i32, acks: i16, records: &Bytes, part: &mut PartAnswer) {
        let time = self.now_ms() + self.clusters[side.index()].skew_ms - self.rng.up_to(30) as i64;
        let log = &mut self.clusters[side.index()].logs[part.partition as usize];
        if log.leader != broker {
            part.error = code::NOT_LEADER;
            wire::heads(records).iter().for_each(|head| self.oracle.refused(head.mark));
            return;
        }
        let appended = log.append(records, time, acks == -1);
        part.error = 0;
        match appended {
            Appended::Now { base, end } => {
                part.base = base;
                part.wait = (acks == -1).then_some(end);
                let log = &self.clusters[side.index()].logs[part.partition as usize];
                let batch = &log.batches[log.batches.len() - 1];
                trace!(
                    self,
                    "{side} {} appends {:?} at {base} pid {:x} seq {}",
                    part.partition,
                    batch.mark,
                    batch.pid,
                    batch.sequence
                );
                let judged = self.oracle.appended(side, part.partition, batch);
                self.judge(judged);
                self.replicate_soon(side, part.partition);
            }
            Appended::Before { base, end } => {
                part.base = base;
                let watermark = self.clusters[side.index()].logs[part.partition as usize].high_watermark;
                part.wait = (acks == -1 && watermark < end).then_some(end);
            }
            Appended::Refused(error) => {
                if let Some(head) = wire::heads(records).first() {
                    trace!(self, "{side} {} refuses {:?}: {error}", part.partition, head.mark);
                    self.oracle.refused(head.mark);
                }
                part.error = error;
            }
        }
    }

    fn replicate_soon(&mut self, side: ClusterSide, partition: i32) {
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

    fn unpark(&mut self, link: usize) -> Option<Parked> {
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
            let log = &self.clusters[side.index()].logs[part.partition as usize];
            if log.leader != self.links[link].broker {
                part.error = code::NOT_LEADER;
                part.wait = None;
                self.coverage.note(Seen::ErrorAfterAppend);
            } else if log.high_watermark >= end {
                part.wait = None;
            }
        }
    }

    fn is_worth(&self, side: ClusterSide, link: usize, partition: i32, asked: &Asked) -> bool {
        let log = &self.clusters[side.index()].logs[partition as usize];
        let mut parts = asked.body.structs("Topics").flat_map(|t| t.structs("Partitions"));
        parts.any(|p| {
            p.i32("Partition") == partition
                && (log.leader != self.links[link].broker || log.high_watermark > p.i64("FetchOffset"))
        })
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
                let log = &self.clusters[side.index()].logs[part.partition as usize];
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
    fn fetch(&mut self, link: usize, asked: Asked, may_wait: bool) {
        let (body, news) = self.fetched(link, &asked);
        let wait = u64::try_from(asked.body.i32("MaxWaitMs")).unwrap_or(0) * MS;
        if may_wait && !news && wait > 0 {
            return self.park(link, Parked::Fetch { asked }, wait);
        }
        self.respond(link, &asked, &body);
    }

    fn fetched(&mut self, link: usize, asked: &Asked) -> (Struct, bool) {
        let (side, broker) = (self.links[link].side, self.links[link].broker);
        let mut body = wire::response(wire::FETCH);
        let mut room = asked.body.i32("MaxBytes");
        let mut news = false;
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
                news |= size > 0 || answer.i16("ErrorCode") != 0 || diverges;
                topic.push("Partitions", answer);
            }
            body.push("Responses", topic);
        }
        (body, news)
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
        answer.set("LastStableOffset", log.high_watermark);
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
        answer.set("Records", Some(log.read(offset, max.max(1) as usize)));
        answer
    }

    fn list_offsets(&mut self, link: usize, asked: &Asked) {
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
                match led.and_then(|()| log.list(wanted.i64("Timestamp"))) {
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

    fn delete(&mut self, link: usize, asked: &Asked) {
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

    /// A broker dies: nothing of what it has received is done any more.
    pub(crate) fn kill_broker(&mut self, side: ClusterSide, broker: i32) {
        self.clusters[side.index()].brokers[broker as usize].up = false;
        for link in 0..self.links.len() {
            let at = &self.links[link];
            if at.side == side && at.broker == broker && at.broker_open {
                self.unpark(link);
                self.links[link].inbox.clear();
                self.links[link].broker_open = false;
                if self.links[link].established {
                    self.cut(link);
                }
            }
        }
    }
}
