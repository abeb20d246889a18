//! Consumers: they read each partition from the first record to the end, with and without fetch sessions.

use crate::coverage::Seen;
use crate::txn_reader::Reader;
use crate::wire::{self, BATCH};
use crate::world::{Ev, MS, Who, World, trace};
use bytes::Bytes;
use crossover_core::ids::{TopicId, VirtualNode};
use crossover_core::schema::Struct;
use std::collections::{BTreeMap, BTreeSet};

pub(crate) struct Consumer {
    version: i16,
    client_id: String,
    software: &'static str,
    places: Vec<Place>,
    fetchers: BTreeMap<VirtualNode, Fetcher>,
    tick_at: u64,
    correlation: i32,
    wait_ms: i32,
    /// Bytes that an answer is to have at least, and batches that it may have.
    least: i32,
    batches: i32,
    /// It reads what is committed only.
    committed: bool,
}

impl Consumer {
    pub(crate) fn positions(&self) -> impl Iterator<Item = (i32, i64)> + '_ {
        self.places.iter().map(|place| (place.partition, place.position))
    }
}

/// Where it stands in one partition.
struct Place {
    partition: i32,
    position: i64,
    node: Option<VirtualNode>,
    epoch: i32,
    last_epoch: i32,
    learning: bool,
    /// No answer to what it has asked may show an end below.
    least_end: i64,
    /// … or records below.
    least_record: i64,
}

/// The fetches at one node.
struct Fetcher {
    conn: usize,
    /// Of the request under way, and whether it asks who the proxy is.
    asked: Option<(i32, bool)>,
    introduced: bool,
    session: i32,
    epoch: i32,
    /// What the session knows of each partition.
    known: BTreeMap<usize, (i64, i32)>,
}

impl World {
    pub(crate) fn add_consumers(&mut self) {
        for index in 0..self.shape.consumers {
            let places = (0..self.shape.partitions).map(|partition| Place {
                partition,
                position: self.clusters[0].logs[partition as usize].start,
                node: None,
                epoch: -1,
                last_epoch: -1,
                learning: false,
                least_end: 0,
                least_record: 0,
            });
            let places = places.collect();
            self.consumers.push(Consumer {
                version: self.rng.pick(&[4, 11, 12, 17]),
                client_id: format!("consumer-{index}"),
                software: self.rng.pick(&["apache-kafka-java", "librdkafka", "kgo", ""]),
                places,
                fetchers: BTreeMap::new(),
                tick_at: u64::MAX,
                correlation: 0,
                wait_ms: self.rng.pick(&[100, 500, 1_000]),
                least: self.rng.pick(&[1, 1, 2 * BATCH, 3 * BATCH]),
                batches: self.rng.pick(&[1, 3, 6, 12]),
                committed: self.shape.chains > 0 && self.rng.chance(600),
            });
            // Some come late, and have history to read.
            let after = if self.rng.chance(400) { self.rng.up_to(self.shape.heal_at) } else { 0 };
            for place in 0..self.shape.partitions as usize {
                self.consumers[index].places[place].learning = true;
                self.plan(after, Ev::Learn { who: Who::Consumer(index), partition: place });
            }
        }
    }

    /// What it has not read yet.
    pub(crate) fn behind(&self, consumer: &Consumer) -> Option<String> {
        let place = consumer.places.iter().find(|place| self.has_more(place))?;
        let end = self.oracle.end(place.partition, &self.clusters);
        Some(format!("{} stands at {} of {end} of {}", consumer.client_id, place.position, place.partition))
    }

    pub(crate) fn is_behind(&self, consumer: &Consumer) -> bool {
        consumer.places.iter().any(|place| self.has_more(place))
    }

    /// A hole up to the end leaves a consumer where it is.
    fn has_more(&self, place: &Place) -> bool {
        let next = self.oracle.next_record(place.partition, place.position, &self.clusters);
        next < self.oracle.end(place.partition, &self.clusters)
    }

    fn consume_soon(&mut self, index: usize, after: u64) {
        let at = self.now + after;
        if at < self.consumers[index].tick_at {
            self.consumers[index].tick_at = at;
            self.plan_at(at, Ev::Tick(Who::Consumer(index)));
        }
    }

    fn look_again(&mut self, index: usize, place: usize, from: u64, to: u64) {
        if !std::mem::replace(&mut self.consumers[index].places[place].learning, true) {
            let after = self.rng.between(from, to) * MS;
            self.plan(after, Ev::Learn { who: Who::Consumer(index), partition: place });
        }
    }

    pub(crate) fn consumer_looks(&mut self, index: usize) {
        for place in 0..self.consumers[index].places.len() {
            if self.rng.chance(500) {
                self.look_again(index, place, 1, 20);
            }
        }
    }

    pub(crate) fn consumer_learns(&mut self, index: usize, place: usize) {
        let known =
            if self.proxy.up { self.metadata(self.consumers[index].places[place].partition) } else { None };
        let at = &mut self.consumers[index].places[place];
        at.learning = false;
        match known {
            Some((node, epoch)) => {
                if epoch < at.epoch {
                    let was = at.epoch;
                    return self.fail(format!("consumer {index} is told epoch {epoch} after {was}"));
                }
                at.node = Some(node);
                at.epoch = epoch;
                self.consume_soon(index, 0);
            }
            None => self.look_again(index, place, 20, 100),
        }
    }

    pub(crate) fn tick_consumer(&mut self, index: usize) {
        if self.consumers[index].tick_at > self.now {
            return;
        }
        self.consumers[index].tick_at = u64::MAX;
        let nodes: BTreeSet<VirtualNode> =
            self.consumers[index].places.iter().filter_map(|p| p.node).collect();
        for node in nodes {
            if !self.consumers[index].fetchers.contains_key(&node) {
                let Some(conn) = self.connect(Who::Consumer(index), node) else {
                    self.consume_soon(index, 50 * MS);
                    continue;
                };
                let fetcher = Fetcher {
                    conn,
                    asked: None,
                    introduced: false,
                    session: 0,
                    epoch: 0,
                    known: BTreeMap::new(),
                };
                self.consumers[index].fetchers.insert(node, fetcher);
            }
            self.fetch_at(index, node);
        }
    }

    fn fetch_at(&mut self, index: usize, node: VirtualNode) {
        let consumer = &mut self.consumers[index];
        let Some(fetcher) = consumer.fetchers.get_mut(&node).filter(|f| f.asked.is_none()) else { return };
        consumer.correlation += 1;
        let (conn, correlation) = (fetcher.conn, consumer.correlation);
        fetcher.asked = Some((correlation, !fetcher.introduced));
        let frame = if fetcher.introduced {
            let asked = consumer.places.iter_mut().filter(|p| p.node == Some(node));
            asked.for_each(|p| {
                let (since, floor) = self.hidden[p.partition as usize];
                p.least_end = self.shown_first[p.partition as usize];
                p.least_record = if since <= self.now { floor } else { 0 };
            });
            let mut body = fetch_body(consumer.version, &consumer.places, fetcher, node, consumer.batches);
            body.set("MaxWaitMs", consumer.wait_ms);
            body.set("MinBytes", consumer.least);
            body.set("IsolationLevel", i8::from(consumer.committed));
            wire::ask(wire::FETCH, consumer.version, correlation, &consumer.client_id, &body)
        } else {
            let mut body = wire::request(wire::API_VERSIONS);
            body.set("ClientSoftwareName", consumer.software);
            body.set("ClientSoftwareVersion", "1");
            wire::ask(wire::API_VERSIONS, 3, correlation, &consumer.client_id, &body)
        };
        trace!(
            self,
            "consumer {index} asks at {node:?} for {:?}",
            self.consumers[index].places.iter().map(|p| p.position).collect::<Vec<_>>()
        );
        self.send(conn, frame);
    }

    pub(crate) fn consumer_hears(&mut self, index: usize, conn: usize, frame: &Bytes) {
        let consumer = &mut self.consumers[index];
        let found = consumer.fetchers.iter_mut().find(|(_, f)| f.conn == conn);
        let Some((node, fetcher)) = found else { return };
        let node = *node;
        let Some((correlation, introduces)) = fetcher.asked.take() else {
            return self.fail(format!("consumer {index} got an answer to nothing"));
        };
        if introduces {
            fetcher.introduced = true;
            return self.consume_soon(index, 0);
        }
        match wire::read_response(wire::FETCH, consumer.version, frame) {
            Ok((answered, body)) if answered == correlation => self.take(index, node, &body),
            Ok((answered, _)) => {
                self.fail(format!("consumer {index} got the answer to {answered} for {correlation}"))
            }
            Err(error) => self.fail(format!("consumer {index} cannot read an answer: {error}")),
        }
    }

    fn take(&mut self, index: usize, node: VirtualNode, body: &Struct) {
        let error = body.i16("ErrorCode");
        let fetcher = self.consumers[index].fetchers.get_mut(&node).expect("the fetcher that asked");
        if error != 0 {
            return self.fail(format!("consumer {index}: fetch error {error}"));
        }
        fetcher.session = body.i32("SessionId");
        fetcher.epoch = if fetcher.session == 0 { 0 } else { fetcher.epoch + 1 };
        let answers = body.structs("Responses").flat_map(|t| t.structs("Partitions"));
        for answer in answers {
            self.take_partition(index, node, answer);
        }
        self.consume_soon(index, 0);
    }

    fn take_partition(&mut self, index: usize, node: VirtualNode, answer: &Struct) {
        let partition = answer.i32("PartitionIndex");
        let Some(place) = self.consumers[index].places.iter().position(|p| p.partition == partition) else {
            return self.fail(format!("consumer {index} was answered {partition}, which it did not ask for"));
        };
        trace!(
            self,
            "consumer {index} hears of {partition} by {node:?}: error {}, ends {} {}, {} bytes",
            answer.i16("ErrorCode"),
            answer.i64("LogStartOffset"),
            answer.i64("HighWatermark"),
            answer.bytes("Records").len()
        );
        let known = self.consumers[index].fetchers[&node].known.get(&place).copied();
        let at = &self.consumers[index].places[place];
        if at.node != Some(node) || known.is_none_or(|(position, _)| position != at.position) {
            return;
        }
        match answer.i16("ErrorCode") {
            0 => {}
            1 => return self.out_of_range(index, place),
            3 | 5 | 6 | 74 | 75 | 78 | 100 => {
                self.consumers[index].places[place].node = None;
                return self.look_again(index, place, 20, 100);
            }
            other => return self.fail(format!("consumer {index}: error {other} of {partition}")),
        }
        if answer.has("PreferredReadReplica")
            && let Some(other) = VirtualNode::from_virtual(answer.i32("PreferredReadReplica"))
        {
            self.see(Seen::Signalled);
            self.consumers[index].places[place].node = Some(other);
            return;
        }
        if answer.opt_struct("DivergingEpoch").is_some_and(|d| d.i64("EndOffset") >= 0) {
            return self.fail(format!("consumer {index} is told that its log diverges: {answer:?}"));
        }
        self.check_ends(index, place, answer);
        self.take_records(index, place, answer);
    }

    fn take_records(&mut self, index: usize, place: usize, answer: &Struct) {
        let mut reader = self.consumers[index].committed.then(|| Reader::new(answer));
        for head in wire::heads(answer.bytes("Records")) {
            if let Some(is_taken) = reader.as_mut().and_then(|reader| reader.takes(&head)) {
                if !is_taken {
                    self.see(Seen::ReadOverAborted);
                }
                let judged = self.oracle.txns.seen(head.mark, is_taken);
                self.judge(judged);
            }
            let at = &self.consumers[index].places[place];
            let (partition, position) = (at.partition, at.position);
            if head.base + i64::from(head.count) <= position {
                // A broker starts with the batch that holds the position, clients drop what is before it.
                return self.fail(format!("at {position} a batch from {} was read", head.base));
            }
            if head.base + i64::from(head.count) <= at.least_record {
                return self.fail(format!("{} was read, which is deleted", head.base));
            }
            if self.oracle.starts_era(partition, head.base) {
                self.see(Seen::ReadOverBoundary);
            }
            let judged = self.oracle.read(partition, position, &head, &self.clusters);
            self.judge(judged);
            let at = &mut self.consumers[index].places[place];
            if head.leader_epoch < at.last_epoch {
                let was = at.last_epoch;
                return self.fail(format!("at {position} epoch {} follows {was}", head.leader_epoch));
            }
            at.last_epoch = head.leader_epoch;
            at.position = head.base + i64::from(head.count);
            let eras = self.oracle.eras(partition);
            if eras > 1 && self.oracle.owner(partition).first > position {
                self.see(Seen::HistoricRead);
            }
        }
    }

    /// What answers say of the log's ends never goes back, and is never more than there is.
    fn check_ends(&mut self, index: usize, place: usize, answer: &Struct) {
        let (watermark, start) = (answer.i64("HighWatermark"), answer.i64("LogStartOffset"));
        let at = &self.consumers[index].places[place];
        let (partition, least) = (at.partition, at.least_end);
        if watermark >= 0 && watermark < least {
            return self
                .fail(format!("consumer {index} is told the end {watermark}, its era starts at {least}"));
        }
        let committed = self.oracle.committed(partition, &self.clusters);
        if watermark > committed {
            return self.fail(format!("consumer {index} is told the end {watermark}, it is {committed}"));
        }
        let stable = answer.i64("LastStableOffset");
        let decided = self.oracle.stable(partition, &self.clusters);
        if self.consumers[index].committed && stable > decided {
            return self.fail(format!("consumer {index} is told the stable end {stable}, it is {decided}"));
        }
        let first = self.oracle.next_record(partition, 0, &self.clusters);
        if start > first {
            self.fail(format!("consumer {index} is told the start {start}, it is {first}"));
        }
    }

    fn out_of_range(&mut self, index: usize, place: usize) {
        self.see(Seen::OutOfRange);
        let at = &self.consumers[index].places[place];
        let (partition, position) = (at.partition, at.position);
        if position < self.hidden[partition as usize].1 {
            self.see(Seen::FloorHides);
        }
        let judged = self.oracle.out_of_range(partition, position, &self.clusters);
        self.judge(judged);
        trace!(self, "consumer {index} is out of range at {position} of {partition}");
        // auto.offset.reset = earliest
        let first = self.oracle.next_record(partition, 0, &self.clusters);
        self.consumers[index].places[place].position = first;
        self.consumers[index].places[place].last_epoch = -1;
    }

    /// It begins where it has committed that it stood, or with the first record.
    pub(crate) fn begin_again(&mut self, index: usize, partition: i32, committed: i64) {
        self.see(Seen::BegunAgain);
        let first = self.oracle.next_record(partition, 0, &self.clusters);
        let conns: Vec<usize> = self.consumers[index].fetchers.values().map(|f| f.conn).collect();
        conns.into_iter().for_each(|conn| self.cut_client(conn));
        let consumer = &mut self.consumers[index];
        consumer.fetchers.clear();
        let Some(place) = consumer.places.iter_mut().find(|p| p.partition == partition) else { return };
        place.position = if committed < 0 { first } else { committed };
        place.last_epoch = -1;
        self.consume_soon(index, 20 * MS);
    }

    pub(crate) fn consumer_loses(&mut self, index: usize, conn: usize) {
        let consumer = &mut self.consumers[index];
        consumer.fetchers.retain(|_, f| f.conn != conn);
        for place in 0..self.consumers[index].places.len() {
            self.look_again(index, place, 20, 100);
        }
        self.consume_soon(index, 20 * MS);
    }
}

fn fetch_body(
    version: i16,
    places: &[Place],
    fetcher: &mut Fetcher,
    node: VirtualNode,
    batches: i32,
) -> Struct {
    let mut body = wire::request(wire::FETCH);
    body.set("ReplicaId", -1);
    body.set("MaxBytes", BATCH * batches);
    body.set("SessionId", fetcher.session);
    body.set("SessionEpoch", if version < 7 { -1 } else { fetcher.epoch });
    let mut topic = body.new_element("Topics");
    topic.set("Topic", wire::TOPIC);
    topic.set("TopicId", TopicId(wire::IDS[0]));
    let mut forgotten = Vec::new();
    for (index, place) in places.iter().enumerate() {
        if place.node != Some(node) {
            if fetcher.known.remove(&index).is_some() {
                forgotten.push(place.partition);
            }
            continue;
        }
        let state = (place.position, place.epoch);
        if fetcher.known.insert(index, state) == Some(state) && fetcher.session != 0 {
            continue;
        }
        let mut partition = topic.new_element("Partitions");
        partition.set("Partition", place.partition);
        partition.set("CurrentLeaderEpoch", place.epoch);
        partition.set("FetchOffset", place.position);
        if version >= 12 {
            partition.set("LastFetchedEpoch", place.last_epoch);
        }
        partition.set("PartitionMaxBytes", BATCH * batches);
        topic.push("Partitions", partition);
    }
    if !topic.array("Partitions").is_empty() {
        body.push("Topics", topic);
    }
    if !forgotten.is_empty() && version >= 7 {
        let mut topic = body.new_element("ForgottenTopicsData");
        topic.set("Topic", wire::TOPIC);
        topic.set("TopicId", TopicId(wire::IDS[0]));
        for partition in forgotten {
            topic.push("Partitions", partition);
        }
        body.push("ForgottenTopicsData", topic);
    }
    body
}
