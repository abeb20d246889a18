//! A client that asks for positions (ListOffsets): where the log starts and ends, its newest record, the first one of a
//! time. It asks again until it is answered.

use crate::coverage::Seen;
use crate::oracle::Before;
use crate::wire;
use crate::world::{Ev, MS, Who, World, trace};
use bytes::Bytes;
use crossover_core::ids::VirtualNode;
use crossover_core::schema::Struct;

pub(crate) const LATEST: i64 = -1;
pub(crate) const EARLIEST: i64 = -2;
pub(crate) const MAX_TIMESTAMP: i64 = -3;
/// Errors after which clients ask again (`ListOffsetsHandler`, `OffsetFetcherUtils`).
const RETRIABLE: [i16; 6] = [5, 6, 7, 74, 75, 78];

pub(crate) struct Asker {
    version: i16,
    client_id: String,
    isolation: i8,
    /// Where it believes each partition is; it looks again only after an error, or now and then.
    places: Vec<Option<(VirtualNode, i32)>>,
    conn: Option<(VirtualNode, usize)>,
    asked: Option<Asked>,
    /// What it wants to know, until it does: partition and time.
    question: Option<(i32, i64)>,
    correlation: i32,
    tick_at: u64,
    /// Questions that are still to be answered.
    pub(crate) left: u32,
}

#[derive(Clone, Copy)]
struct Asked {
    correlation: i32,
    before: Before,
    eras: usize,
}

impl Asker {
    pub(crate) fn unfinished(&self) -> Option<String> {
        (self.left > 0).then(|| format!("{} has {} questions left", self.client_id, self.left))
    }
}

impl World {
    pub(crate) fn add_askers(&mut self) {
        let left = self.rng.between(2, 6) as u32;
        self.askers.push(Asker {
            version: self.rng.pick(&[1, 4, 7, 11]),
            client_id: "asker".to_owned(),
            isolation: self.rng.pick(&[0, 1]),
            places: vec![None; self.shape.partitions as usize],
            conn: None,
            asked: None,
            question: None,
            correlation: 0,
            tick_at: u64::MAX,
            left,
        });
        self.ask_later(0);
    }

    fn ask_later(&mut self, index: usize) {
        let after = self.rng.up_to(self.shape.heal_at / 4);
        self.ask_in(index, after);
    }

    fn ask_in(&mut self, index: usize, after: u64) {
        let at = self.now + after;
        if at < self.askers[index].tick_at {
            self.askers[index].tick_at = at;
            self.plan_at(at, Ev::Tick(Who::Asker(index)));
        }
    }

    /// Something is going on: questions are worth most now.
    pub(crate) fn maybe_ask(&mut self) {
        if self.rng.chance(200) {
            let after = self.rng.up_to(5 * MS);
            self.ask_in(0, after);
        }
    }

    pub(crate) fn tick_asker(&mut self, index: usize) {
        let asker = &mut self.askers[index];
        if asker.tick_at > self.now {
            return;
        }
        asker.tick_at = u64::MAX;
        if asker.asked.is_some() || asker.left == 0 {
            return;
        }
        let (partition, timestamp) = match asker.question {
            Some(question) => question,
            None => self.new_question(index),
        };
        match self.asking_place(index, partition) {
            Some((conn, epoch)) => self.ask_positions(index, conn, epoch, partition, timestamp),
            None => self.ask_in(index, 50 * MS),
        }
    }

    fn new_question(&mut self, index: usize) -> (i32, i64) {
        let partition = self.rng.up_to(self.shape.partitions as u64 - 1) as i32;
        let kind = match self.rng.up_to(9) {
            0 | 1 => EARLIEST,
            2 | 3 => LATEST,
            4 if self.askers[index].version >= 7 => MAX_TIMESTAMP,
            _ => self.some_time(partition),
        };
        self.askers[index].question = Some((partition, kind));
        (partition, kind)
    }

    /// About when some record was written.
    fn some_time(&mut self, partition: i32) -> i64 {
        let end = self.oracle.end(partition, &self.clusters);
        let position = self.rng.up_to(end.max(0) as u64) as i64;
        let time = self.oracle.time_at(partition, position, &self.clusters).unwrap_or(self.now_ms());
        time + self.rng.pick(&[-1, 0, 0, 1])
    }

    /// The connection to ask by, and the epoch it believes in.
    fn asking_place(&mut self, index: usize, partition: i32) -> Option<(usize, i32)> {
        if !self.proxy.up {
            return None;
        }
        let known = self.askers[index].places[partition as usize];
        let place = match known {
            Some(known) if !self.rng.chance(200) => known,
            _ => self.metadata(partition)?,
        };
        self.askers[index].places[partition as usize] = Some(place);
        let (node, epoch) = place;
        match self.askers[index].conn {
            Some((at, conn)) if at == node => return Some((conn, epoch)),
            Some((_, conn)) => self.cut_client(conn),
            None => {}
        }
        let conn = self.connect(Who::Asker(index), node)?;
        self.askers[index].conn = Some((node, conn));
        Some((conn, epoch))
    }

    fn ask_positions(&mut self, index: usize, conn: usize, epoch: i32, partition: i32, timestamp: i64) {
        let stable = self.askers[index].version >= 2 && self.askers[index].isolation == 1;
        let before = self.oracle.before(partition, stable, &self.clusters);
        let eras = self.oracle.eras(partition);
        let asker = &mut self.askers[index];
        asker.correlation += 1;
        let correlation = asker.correlation;
        asker.asked = Some(Asked { correlation, before, eras });
        let mut body = wire::request(wire::LIST_OFFSETS);
        body.set("ReplicaId", -1);
        body.set("TimeoutMs", if asker.version >= 10 { 3_000 } else { 0 });
        body.set("IsolationLevel", if asker.version >= 2 { asker.isolation } else { 0 });
        let mut topic = body.new_element("Topics");
        topic.set("Name", wire::TOPIC);
        let mut wanted = topic.new_element("Partitions");
        wanted.set("PartitionIndex", partition);
        wanted.set("CurrentLeaderEpoch", if asker.version >= 4 { epoch } else { -1 });
        wanted.set("Timestamp", timestamp);
        topic.push("Partitions", wanted);
        body.push("Topics", topic);
        let frame = wire::ask(wire::LIST_OFFSETS, asker.version, correlation, &asker.client_id, &body);
        trace!(self, "asker {index} asks for {timestamp} of {partition}");
        self.send(conn, frame);
    }

    pub(crate) fn asker_hears(&mut self, index: usize, conn: usize, frame: &Bytes) {
        let asker = &mut self.askers[index];
        if asker.conn.is_none_or(|(_, own)| own != conn) {
            return;
        }
        let (Some(asked), Some(question)) = (asker.asked.take(), asker.question) else {
            return self.fail(format!("asker {index} got an answer to nothing"));
        };
        match wire::read_response(wire::LIST_OFFSETS, asker.version, frame) {
            Ok((answered, body)) if answered == asked.correlation => {
                let mut answers = body.structs("Topics").flat_map(|t| t.structs("Partitions"));
                match answers.next() {
                    Some(answer) => self.take_position(index, question, asked, answer),
                    None => self.fail(format!("asker {index} got no answer")),
                }
            }
            Ok((answered, _)) => self.fail(format!("asker {index} got the answer to {answered}")),
            Err(error) => self.fail(format!("asker {index} cannot read an answer: {error}")),
        }
    }

    fn take_position(
        &mut self,
        index: usize,
        (partition, timestamp): (i32, i64),
        asked: Asked,
        answer: &Struct,
    ) {
        let error = answer.i16("ErrorCode");
        let (offset, time) = (answer.i64("Offset"), answer.i64("Timestamp"));
        trace!(self, "asker {index} hears of {timestamp} of {partition}: error {error}, {offset} at {time}");
        if error != 0 {
            if !RETRIABLE.contains(&error) {
                return self.fail(format!("asker {index}: error {error} for {timestamp} of {partition}"));
            }
            self.see(Seen::ListedLater);
            self.askers[index].places[partition as usize] = None;
            let after = self.rng.between(20, 100) * MS;
            return self.ask_in(index, after);
        }
        let judged = self.oracle.listed(partition, timestamp, &asked.before, (offset, time), &self.clusters);
        self.judge(judged);
        self.see_listed(partition, timestamp, offset, asked.eras);
        let asker = &mut self.askers[index];
        asker.question = None;
        asker.left -= 1;
        self.ask_later(index);
    }

    fn see_listed(&mut self, partition: i32, timestamp: i64, offset: i64, eras: usize) {
        let is_older = offset >= 0 && offset < self.oracle.owner(partition).first;
        let is_moved = self.oracle.eras(partition) > 1;
        match timestamp {
            LATEST if self.oracle.eras(partition) > eras => self.see(Seen::ListedEndOverSeal),
            EARLIEST if is_older => self.see(Seen::ListedStartOfAnOlderEra),
            MAX_TIMESTAMP if is_older => self.see(Seen::ListedNewestOfAnOlderEra),
            time if time >= 0 && is_older => self.see(Seen::ListedByTimeInAnOlderEra),
            time if time >= 0 && is_moved && offset >= 0 => self.see(Seen::ListedByTimeBehindOlderEras),
            time if time >= 0 && is_moved => self.see(Seen::ListedNothing),
            _ => {}
        }
    }

    pub(crate) fn asker_loses(&mut self, index: usize, conn: usize) {
        let asker = &mut self.askers[index];
        if asker.conn.is_none_or(|(_, own)| own != conn) {
            return;
        }
        asker.conn = None;
        asker.asked = None;
        asker.places.fill(None);
        self.ask_in(index, 20 * MS);
    }
}
