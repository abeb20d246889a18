//! What of a consumer speaks to its group's coordinator: it commits where the consumer stands, and asks where it stood
//! when it begins again.

use crate::coverage::Seen;
use crate::wire;
use crate::world::{Ev, MS, Who, World, trace};
use bytes::Bytes;
use crossover_core::ids::{ClusterSide, TopicId, VirtualNode};
use crossover_core::schema::Struct;

/// Errors after which clients look for the coordinator again.
const RETRIABLE: [i16; 3] = [14, 15, 16];
/// Metadata of a client that look like the proxy's own.
const LOOKALIKE: &str = "xo1:1:1:";

/// A commit: partition, position, metadata.
type Commit = (i32, i64, String);

/// The consumer of the same number is its own group's only member.
pub(crate) struct Committer {
    group: String,
    commit_version: i16,
    fetch_version: i16,
    generation: i32,
    conn: Option<usize>,
    coordinator: Option<VirtualNode>,
    asked: Option<(i32, Asked)>,
    correlation: i32,
    tick_at: u64,
    /// Commits and looks at them that are still to come; the last one is a look.
    pub(crate) left: u32,
    commits: u32,
}

enum Asked {
    Coordinator,
    Commit(Vec<Commit>),
    /// The consumer begins again with the answer, or only looks.
    Fetch {
        begins: bool,
    },
}

impl Committer {
    pub(crate) fn unfinished(&self) -> Option<String> {
        (self.left > 0).then(|| format!("{} has {} commits left", self.group, self.left))
    }
}

pub(crate) fn group_of(consumer: usize) -> String {
    format!("group-{consumer}")
}

pub(crate) fn consumer_of(group: &str) -> Option<usize> {
    group.strip_prefix("group-")?.parse().ok()
}

impl World {
    pub(crate) fn add_committers(&mut self) {
        for index in 0..self.shape.consumers {
            let left = self.rng.between(2, 7) as u32;
            self.committers.push(Committer {
                group: group_of(index),
                commit_version: self.rng.pick(&[2, 6, 8, 10]),
                fetch_version: self.rng.pick(&[1, 5, 7, 8, 10]),
                generation: self.rng.pick(&[-1, 1]),
                conn: None,
                coordinator: None,
                asked: None,
                correlation: 0,
                tick_at: u64::MAX,
                left,
                commits: 0,
            });
            self.commit_later(index);
        }
    }

    fn commit_later(&mut self, index: usize) {
        let after = self.rng.up_to(self.shape.heal_at / 4);
        self.commit_in(index, after);
    }

    fn commit_in(&mut self, index: usize, after: u64) {
        let at = self.now + after;
        if at < self.committers[index].tick_at {
            self.committers[index].tick_at = at;
            self.plan_at(at, Ev::Tick(Who::Committer(index)));
        }
    }

    /// Something is going on: positions are worth most now.
    pub(crate) fn maybe_commit(&mut self) {
        if self.rng.chance(150) {
            let after = self.rng.up_to(5 * MS);
            self.commit_in(0, after);
        }
    }

    pub(crate) fn tick_committer(&mut self, index: usize) {
        let committer = &mut self.committers[index];
        if committer.tick_at > self.now {
            return;
        }
        committer.tick_at = u64::MAX;
        if committer.asked.is_some() || committer.left == 0 {
            return;
        }
        let Some(conn) = self.committing_conn(index) else { return self.commit_in(index, 50 * MS) };
        if self.committers[index].coordinator.is_none() {
            return self.ask_coordinator(index, conn);
        }
        let is_last = self.committers[index].left == 1;
        match is_last || self.rng.chance(350) {
            true => {
                let begins = !is_last && self.rng.chance(400);
                self.ask_commits(index, conn, begins);
            }
            false => self.commit(index, conn),
        }
    }

    fn committing_conn(&mut self, index: usize) -> Option<usize> {
        let Committer { conn: Some(conn), .. } = self.committers[index] else {
            let node = match self.committers[index].coordinator {
                Some(coordinator) => coordinator,
                None => self.some_node(),
            };
            let conn = self.connect(Who::Committer(index), node)?;
            self.committers[index].conn = Some(conn);
            return Some(conn);
        };
        Some(conn)
    }

    pub(crate) fn some_node(&mut self) -> VirtualNode {
        let side = self.rng.pick(&ClusterSide::BOTH);
        VirtualNode::new(side, self.rng.up_to(1) as i32)
    }

    fn drop_committer(&mut self, index: usize) {
        if let Some(conn) = self.committers[index].conn.take() {
            self.cut_client(conn);
        }
    }

    fn put(&mut self, index: usize, conn: usize, api: (i16, i16), asked: Asked, body: &Struct) {
        let committer = &mut self.committers[index];
        committer.correlation += 1;
        committer.asked = Some((committer.correlation, asked));
        let frame = wire::ask(api.0, api.1, committer.correlation, &committer.group, body);
        self.send(conn, frame);
    }

    fn ask_coordinator(&mut self, index: usize, conn: usize) {
        let mut body = wire::request(wire::FIND_COORDINATOR);
        body.set("Key", self.committers[index].group.as_str());
        self.put(index, conn, (wire::FIND_COORDINATOR, 3), Asked::Coordinator, &body);
    }

    fn commit(&mut self, index: usize, conn: usize) {
        let look = if self.rng.chance(200) { LOOKALIKE } else { "" };
        let committer = &mut self.committers[index];
        let mut body = wire::request(wire::OFFSET_COMMIT);
        body.set("GroupId", committer.group.as_str());
        body.set("GenerationIdOrMemberEpoch", committer.generation);
        let mut topic = body.new_element("Topics");
        topic.set("Name", wire::TOPIC);
        topic.set("TopicId", TopicId(wire::IDS[0]));
        let mut commits = Vec::new();
        for (partition, position) in self.consumers[index].positions() {
            committer.commits += 1;
            let metadata = format!("{look}{}", committer.commits);
            let mut out = topic.new_element("Partitions");
            out.set("PartitionIndex", partition);
            out.set("CommittedOffset", position);
            out.set("CommittedMetadata", metadata.as_str());
            topic.push("Partitions", out);
            commits.push((partition, position, metadata));
        }
        body.push("Topics", topic);
        let version = committer.commit_version;
        trace!(self, "consumer {index} commits {commits:?}");
        self.put(index, conn, (wire::OFFSET_COMMIT, version), Asked::Commit(commits), &body);
    }

    fn ask_commits(&mut self, index: usize, conn: usize, begins: bool) {
        let committer = &self.committers[index];
        let version = committer.fetch_version;
        let mut body = wire::request(wire::OFFSET_FETCH);
        let mut of = if version >= 8 { body.new_element("Groups") } else { body.clone() };
        of.set("GroupId", committer.group.as_str());
        let mut topic = of.new_element("Topics");
        topic.set("Name", wire::TOPIC);
        if topic.has("TopicId") {
            topic.set("TopicId", TopicId(wire::IDS[0]));
        }
        for (partition, _) in self.consumers[index].positions() {
            topic.push("PartitionIndexes", partition);
        }
        of.push("Topics", topic);
        match version >= 8 {
            true => body.push("Groups", of),
            false => body = of,
        }
        self.put(index, conn, (wire::OFFSET_FETCH, version), Asked::Fetch { begins }, &body);
    }

    pub(crate) fn committer_hears(&mut self, index: usize, conn: usize, frame: &Bytes) {
        let committer = &mut self.committers[index];
        if committer.conn != Some(conn) {
            return;
        }
        let Some((correlation, asked)) = committer.asked.take() else {
            return self.fail(format!("committer {index} got an answer to nothing"));
        };
        let api = match asked {
            Asked::Coordinator => (wire::FIND_COORDINATOR, 3),
            Asked::Commit(_) => (wire::OFFSET_COMMIT, committer.commit_version),
            Asked::Fetch { .. } => (wire::OFFSET_FETCH, committer.fetch_version),
        };
        let error = match wire::read_response(api.0, api.1, frame) {
            Ok((answered, _)) if answered != correlation => {
                return self.fail(format!("committer {index} got the answer to {answered}"));
            }
            Err(error) => return self.fail(format!("committer {index} cannot read an answer: {error}")),
            Ok((_, body)) => match asked {
                Asked::Coordinator => self.take_coordinator(index, &body),
                Asked::Commit(commits) => self.take_committed(index, commits, &body),
                Asked::Fetch { begins } => self.take_commits(index, begins, &body),
            },
        };
        match error {
            0 => {}
            error if RETRIABLE.contains(&error) => self.look_for_coordinator(index),
            error => self.fail(format!("committer {index}: error {error}")),
        }
    }

    fn look_for_coordinator(&mut self, index: usize) {
        self.drop_committer(index);
        self.committers[index].coordinator = None;
        let after = self.rng.between(20, 100) * MS;
        self.commit_in(index, after);
    }

    fn take_coordinator(&mut self, index: usize, body: &Struct) -> i16 {
        let error = body.i16("ErrorCode");
        if error == 0 {
            self.drop_committer(index);
            // One that stays at a node of a former home is served there (RULES R29).
            let stays = self.rng.chance(300);
            let elsewhere = self.some_node();
            let told = VirtualNode::from_virtual(body.i32("NodeId"));
            self.committers[index].coordinator = if stays { Some(elsewhere) } else { told };
            self.commit_in(index, 0);
        }
        error
    }

    /// One thing less to do.
    fn has_done(&mut self, index: usize) {
        self.committers[index].left -= 1;
        self.commit_later(index);
    }

    fn take_committed(&mut self, index: usize, commits: Vec<Commit>, body: &Struct) -> i16 {
        let answers = body.structs("Topics").flat_map(|t| t.structs("Partitions"));
        let errors: Vec<i16> = answers.map(|a| a.i16("ErrorCode")).collect();
        if errors.len() != commits.len() {
            self.fail(format!("committer {index} got {} answers to {} commits", errors.len(), commits.len()));
            return 0;
        }
        let incarnation = self.proxy.incarnation;
        for ((partition, position, metadata), error) in commits.into_iter().zip(&errors) {
            let is_told = *error == 0;
            self.oracle.committed_position(index, partition, (position, metadata), is_told, incarnation);
        }
        let error = errors.into_iter().find(|error| *error != 0).unwrap_or(0);
        if error == 0 {
            self.has_done(index);
        }
        error
    }

    fn take_commits(&mut self, index: usize, begins: bool, body: &Struct) -> i16 {
        let group = body.structs("Groups").next().unwrap_or(body);
        let error = if group.has("ErrorCode") { group.i16("ErrorCode") } else { 0 };
        let answers: Vec<&Struct> = group.structs("Topics").flat_map(|t| t.structs("Partitions")).collect();
        let errors = answers.iter().map(|a| a.i16("ErrorCode")).chain([error]);
        if let Some(error) = errors.into_iter().find(|error| *error != 0) {
            return error;
        }
        if answers.len() != self.shape.partitions as usize {
            self.fail(format!("committer {index} is told of {} partitions", answers.len()));
            return 0;
        }
        for answer in answers {
            let partition = answer.i32("PartitionIndex");
            let told = (answer.i64("CommittedOffset"), answer.str("Metadata").to_owned());
            trace!(self, "committer {index} hears of {told:?} of {partition}, begins {begins}");
            self.see_fetched(index, partition, told.0);
            let judged = self.oracle.fetched_position(index, partition, &told);
            self.judge(judged);
            if begins {
                self.begin_again(index, partition, told.0);
            }
        }
        self.has_done(index);
        0
    }

    fn see_fetched(&mut self, index: usize, partition: i32, position: i64) {
        let Some(commit) = self.oracle.commit(index, partition) else { return };
        let (eras, incarnation) = (commit.eras, commit.incarnation);
        if self.oracle.eras(partition) > eras {
            self.see(Seen::CommitOfAnOlderEra);
        }
        if self.oracle.owner(partition).first > position {
            self.see(Seen::CommitInAnOlderEra);
        }
        if self.proxy.incarnation != incarnation {
            self.see(Seen::CommitOfAnOlderProcess);
        }
    }

    pub(crate) fn committer_loses(&mut self, index: usize, conn: usize) {
        if self.committers[index].conn != Some(conn) {
            return;
        }
        let committer = &mut self.committers[index];
        committer.conn = None;
        if let Some((_, Asked::Commit(commits))) = committer.asked.take() {
            self.see(Seen::CommitUnanswered);
            let incarnation = self.proxy.incarnation;
            for (partition, position, metadata) in commits {
                self.oracle.committed_position(index, partition, (position, metadata), false, incarnation);
            }
        }
        self.look_for_coordinator(index);
    }
}
