//! A cluster's group coordinator, as far as commits go: one broker has the commits of all groups, and another one when
//! that one is gone.

use crate::committer::consumer_of;
use crate::coverage::Seen;
use crate::wire::{self, Asked};
use crate::world::{MS, World, trace};
use crossover_core::ids::ClusterSide;
use crossover_core::schema::{Struct, Value};
use crossover_core::timeline::TAG_PREFIX;
use std::collections::BTreeMap;

const LOADING: i16 = 14;
const NOT_COORDINATOR: i16 = 16;

#[derive(Default)]
pub(crate) struct Coordinator {
    broker: i32,
    /// It reads the commits until then.
    loading_until: u64,
    /// By group and partition: the offset and the metadata.
    commits: BTreeMap<(String, i32), (i64, String)>,
}

impl World {
    /// What `__consumer_offsets` has is led by another broker.
    pub(crate) fn move_coordinator(&mut self, side: ClusterSide, to: i32) {
        let until = self.now + self.rng.between(10, 500) * MS;
        let coordinator = &mut self.clusters[side.index()].coordinator;
        if coordinator.broker != to {
            coordinator.broker = to;
            coordinator.loading_until = until;
            trace!(self, "{side} groups are coordinated by {to}");
        }
    }

    pub(crate) fn coordinate(&mut self, link: usize, asked: &Asked) {
        let body = match asked.key {
            wire::FIND_COORDINATOR => self.say_coordinator(link, asked),
            wire::OFFSET_COMMIT => self.commit_offsets(link, asked),
            _ => self.fetch_offsets(link, asked),
        };
        self.respond(link, asked, &body);
    }

    fn say_coordinator(&self, link: usize, asked: &Asked) -> Struct {
        let side = self.links[link].side;
        let mut body = wire::response(wire::FIND_COORDINATOR);
        let cluster = &self.clusters[side.index()];
        let is_of_transactions = asked.version >= 1 && asked.body.i8("KeyType") == 1;
        let broker = match is_of_transactions {
            true => cluster.transactions.broker,
            false => cluster.coordinator.broker,
        };
        body.set("NodeId", broker);
        body.set("Host", side.as_str());
        body.set("Port", 9092);
        body
    }

    fn refusal(&self, link: usize) -> i16 {
        let coordinator = &self.clusters[self.links[link].side.index()].coordinator;
        match () {
            () if coordinator.broker != self.links[link].broker => NOT_COORDINATOR,
            () if coordinator.loading_until > self.now => LOADING,
            () => 0,
        }
    }

    /// Whether a request names the topic as this cluster does.
    fn names_topic(&self, link: usize, by_id: bool, topic: &Struct) -> bool {
        match by_id {
            true => topic.uuid("TopicId") == wire::IDS[self.links[link].side.index()],
            false => topic.str("Name") == wire::TOPIC,
        }
    }

    fn commit_offsets(&mut self, link: usize, asked: &Asked) -> Struct {
        let (error, side) = (self.refusal(link), self.links[link].side);
        let group = asked.body.str("GroupId");
        let mut body = wire::response(wire::OFFSET_COMMIT);
        for data in asked.body.structs("Topics") {
            let error = if self.names_topic(link, asked.version >= 10, data) { error } else { 3 };
            let mut topic = body.new_element("Topics");
            topic.set("Name", data.get("Name").clone());
            topic.set("TopicId", data.get("TopicId").clone());
            for partition in data.structs("Partitions") {
                let index = partition.i32("PartitionIndex");
                let mut answer = topic.new_element("Partitions");
                answer.set("PartitionIndex", index);
                answer.set("ErrorCode", error);
                topic.push("Partitions", answer);
                if error != 0 {
                    continue;
                }
                let commit =
                    (partition.i64("CommittedOffset"), partition.str("CommittedMetadata").to_owned());
                trace!(self, "{side} {group} commits {commit:?} of {index}");
                if commit.1.starts_with(TAG_PREFIX) {
                    self.see(Seen::CommitTagged);
                }
                let late = self.is_cut(link).then(|| consumer_of(group)).flatten();
                late.into_iter().for_each(|consumer| self.oracle.committed_late(consumer, index));
                let commits = &mut self.clusters[side.index()].coordinator.commits;
                commits.insert((group.to_owned(), index), commit);
            }
            body.push("Topics", topic);
        }
        body
    }

    fn fetch_offsets(&self, link: usize, asked: &Asked) -> Struct {
        let error = self.refusal(link);
        let mut body = wire::response(wire::OFFSET_FETCH);
        if asked.version < 8 {
            let group = asked.body.str("GroupId");
            self.fetch_group(link, (group, error), asked.version, &asked.body, &mut body);
            body.set("ErrorCode", if asked.version >= 2 { error } else { 0 });
            return body;
        }
        for wanted in asked.body.structs("Groups") {
            let mut group = body.new_element("Groups");
            let name = wanted.str("GroupId");
            group.set("GroupId", name);
            self.fetch_group(link, (name, error), asked.version, wanted, &mut group);
            group.set("ErrorCode", error);
            body.push("Groups", group);
        }
        body
    }

    fn fetch_group(
        &self,
        link: usize,
        (group, error): (&str, i16),
        version: i16,
        wanted: &Struct,
        out: &mut Struct,
    ) {
        // Since version 2 an error of the whole group is told without its topics.
        if error != 0 && version >= 2 {
            return;
        }
        let commits = &self.clusters[self.links[link].side.index()].coordinator.commits;
        for data in wanted.structs("Topics") {
            let error = if self.names_topic(link, version >= 10, data) { error } else { 3 };
            let mut topic = out.new_element("Topics");
            topic.set("Name", data.get("Name").clone());
            if topic.has("TopicId") {
                topic.set("TopicId", data.get("TopicId").clone());
            }
            for index in data.array("PartitionIndexes").iter().filter_map(Value::as_int) {
                let known = commits.get(&(group.to_owned(), index as i32)).filter(|_| error == 0);
                let (offset, metadata) = known.cloned().unwrap_or((-1, String::new()));
                let mut answer = topic.new_element("Partitions");
                answer.set("PartitionIndex", index as i32);
                answer.set("CommittedOffset", offset);
                answer.set("Metadata", metadata.as_str());
                answer.set("ErrorCode", error);
                topic.push("Partitions", answer);
            }
            out.push("Topics", topic);
        }
    }
}
