//! A client that deletes records up to a virtual position (DeleteRecords). It asks again until it is done.

use crate::coverage::Seen;
use crate::wire;
use crate::world::{Ev, MS, Who, World, trace};
use bytes::Bytes;
use crossover_core::ids::VirtualNode;
use crossover_core::schema::Struct;

/// DeleteRecords to the high watermark.
const ALL: i64 = -1;
/// Errors after which clients ask again (`DeleteRecordsHandler`).
const RETRIABLE: [i16; 5] = [5, 6, 7, 74, 78];

#[derive(Default)]
pub(crate) struct Deleter {
    version: i16,
    conn: Option<(VirtualNode, usize)>,
    /// Of the request under way, and the committed end when it was sent.
    asked: Option<(i32, i64)>,
    /// What is to be deleted, until it is: partition and offset.
    wanted: Option<(i32, i64)>,
    correlation: i32,
    tick_at: u64,
    pub(crate) left: u32,
}

impl Deleter {
    pub(crate) fn unfinished(&self) -> Option<String> {
        (self.left > 0).then(|| format!("{:?} is still to be deleted", self.wanted))
    }
}

impl World {
    pub(crate) fn add_deleter(&mut self) {
        let (version, left) = (self.rng.pick(&[0, 1, 2]), self.rng.pick(&[0, 0, 1, 2]));
        self.deleter = Deleter { version, left, tick_at: u64::MAX, ..Deleter::default() };
        let first = self.rng.between(self.shape.heal_at / 4, self.shape.heal_at);
        self.delete_in(first);
    }

    fn delete_in(&mut self, after: u64) {
        let at = self.now + after;
        if at < self.deleter.tick_at {
            self.deleter.tick_at = at;
            self.plan_at(at, Ev::Tick(Who::Deleter));
        }
    }

    pub(crate) fn tick_deleter(&mut self) {
        if self.deleter.tick_at > self.now {
            return;
        }
        self.deleter.tick_at = u64::MAX;
        if self.deleter.asked.is_some() || self.deleter.left == 0 {
            return;
        }
        let (partition, offset) = match self.deleter.wanted {
            Some(wanted) => wanted,
            None => self.some_deletion(),
        };
        match self.deleting_conn(partition) {
            Some(conn) => self.delete_records(conn, partition, offset),
            None => self.delete_in(50 * MS),
        }
    }

    fn some_deletion(&mut self) -> (i32, i64) {
        let partition = self.rng.up_to(self.shape.partitions as u64 - 1) as i32;
        let first = self.oracle.next_record(partition, 0, &self.clusters);
        let end = self.oracle.committed(partition, &self.clusters).max(first);
        let offset =
            if self.rng.chance(100) { ALL } else { self.rng.between(first as u64, end as u64) as i64 };
        self.deleter.wanted = Some((partition, offset));
        (partition, offset)
    }

    fn deleting_conn(&mut self, partition: i32) -> Option<usize> {
        let (node, _) = self.metadata(partition).filter(|_| self.proxy.up)?;
        match self.deleter.conn {
            // One that has not looked at the metadata lately.
            Some((_, conn)) if self.rng.chance(500) => return Some(conn),
            Some((at, conn)) if at == node => return Some(conn),
            Some((_, conn)) => self.cut_client(conn),
            None => {}
        }
        let conn = self.connect(Who::Deleter, node)?;
        self.deleter.conn = Some((node, conn));
        Some(conn)
    }

    fn delete_records(&mut self, conn: usize, partition: i32, offset: i64) {
        let committed = self.oracle.committed(partition, &self.clusters);
        self.deleter.correlation += 1;
        let correlation = self.deleter.correlation;
        self.deleter.asked = Some((correlation, committed));
        let mut body = wire::request(wire::DELETE_RECORDS);
        body.set("TimeoutMs", 3_000);
        let mut topic = body.new_element("Topics");
        topic.set("Name", wire::TOPIC);
        let mut wanted = topic.new_element("Partitions");
        wanted.set("PartitionIndex", partition);
        wanted.set("Offset", offset);
        topic.push("Partitions", wanted);
        body.push("Topics", topic);
        trace!(self, "{partition} is to be deleted up to {offset}");
        let frame = wire::ask(wire::DELETE_RECORDS, self.deleter.version, correlation, "deleter", &body);
        self.send(conn, frame);
    }

    pub(crate) fn deleter_hears(&mut self, conn: usize, frame: &Bytes) {
        if self.deleter.conn.is_none_or(|(_, own)| own != conn) {
            return;
        }
        let Some((correlation, committed)) = self.deleter.asked.take() else {
            return self.fail("the deleter got an answer to nothing".to_owned());
        };
        let body = match wire::read_response(wire::DELETE_RECORDS, self.deleter.version, frame) {
            Ok((answered, body)) if answered == correlation => body,
            other => return self.fail(format!("the deleter got {other:?} for {correlation}")),
        };
        let answer = body.structs("Topics").flat_map(|t| t.structs("Partitions")).next();
        match (answer, self.deleter.wanted) {
            (Some(answer), Some(wanted)) => self.take_deleted(wanted, committed, answer),
            _ => self.fail("the deleter got no answer".to_owned()),
        }
    }

    fn take_deleted(&mut self, (partition, offset): (i32, i64), committed: i64, answer: &Struct) {
        let (error, told) = (answer.i16("ErrorCode"), answer.i64("LowWatermark"));
        trace!(self, "{partition} is deleted up to {offset}: error {error}, {told}");
        if error != 0 {
            if !RETRIABLE.contains(&error) {
                return self.fail(format!("{partition} cannot be deleted up to {offset}: error {error}"));
            }
            self.see(Seen::DeletedLater);
            let after = self.rng.between(20, 100) * MS;
            return self.delete_in(after);
        }
        let up_to = if offset == ALL { committed } else { offset };
        let judged = self.oracle.is_deleted(partition, up_to, told, &self.clusters);
        self.judge(judged);
        if self.oracle.owner(partition).first > up_to {
            self.see(Seen::DeletedInAnOlderEra);
        } else if self.oracle.eras(partition) > 1 {
            self.see(Seen::DeletedOverEras);
        }
        self.deleter.wanted = None;
        self.deleter.left -= 1;
        let after = self.rng.up_to(self.shape.heal_at / 4);
        self.delete_in(after);
    }

    pub(crate) fn deleter_loses(&mut self, conn: usize) {
        if self.deleter.conn.is_some_and(|(_, own)| own == conn) {
            self.deleter.conn = None;
            self.deleter.asked = None;
            self.delete_in(20 * MS);
        }
    }
}
