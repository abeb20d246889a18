//! A leader has appended a batch without sequences, and stepped down before its followers had it. Whether the batch is in the
//! log the next leader can tell: what the one before wrote is there as far as to where the next one began. A batch behind
//! that is in no log, and is sent again without its client's knowledge, who would write it twice with all that
//! its request and its connection have unanswered.
//!
//! Source: `DelayedProduce`, `LeaderEpochFileCache.endOffsetFor`, KIP-320; RULES R8; ADR 11.

use super::{Part, Produce, RETRY_MS, State};
use crate::api::key;
use crate::bug::{self, Bug};
use crate::error_code as code;
use crate::ids::ClusterSide;
use crate::schema::{self, Struct};
use crate::session::{Answer, Class, Cx};

/// The version of the question that every offered broker knows.
const VERSION: i16 = 3;

/// What is to be found out of a batch.
pub(super) struct Question {
    side: ClusterSide,
    /// Who appended it, and in which epoch of its leadership.
    leader: i32,
    epoch: i32,
    /// Where, in its own offsets.
    base: i64,
    /// What it answered.
    answer: Struct,
    until_ms: i64,
    is_asked: bool,
}

impl Part {
    /// Keeps the answer of a leader that stepped down behind an append, until the next leader has told what that means. False
    /// where that cannot be known, or is not needed: a log that knows the producer tells a second time from a first.
    pub(super) fn doubts(&mut self, cx: &Cx<'_>, answer: &Struct) -> bool {
        let State::InFlight { side, leader: (leader, epoch), .. } = self.state else { return false };
        let is_behind_append =
            answer.i16("ErrorCode") == code::NOT_LEADER_OR_FOLLOWER && answer.i64("BaseOffset") >= 0;
        if !is_behind_append
            || !self.is_hidden()
            || self.batch.is_some()
            || self.is_left
            || self.was_asked
            || epoch < 0
        {
            return false;
        }
        self.was_asked = true;
        self.question = Some(Question {
            side,
            leader,
            epoch,
            base: answer.i64("BaseOffset"),
            answer: answer.clone(),
            until_ms: cx.now_ms + cx.core.limits.hold_ms_max,
            is_asked: false,
        });
        true
    }

    /// The leader's answer again, now that as much is known as can be: without a place where the batch is in no log.
    fn told(&mut self, cx: &mut Cx<'_>, is_nowhere: bool) {
        let Some(Question { mut answer, .. }) = self.question.take() else { return };
        if is_nowhere {
            answer.set("BaseOffset", -1_i64);
        }
        self.on_response(cx, &answer);
    }
}

impl Produce {
    /// Asks the leaders that are next, as far as they are known.
    pub(super) fn ask_successors(&mut self, cx: &mut Cx<'_>) {
        for index in 0..self.parts.len() {
            let Some(question) = &self.parts[index].question else { continue };
            if cx.now_ms >= question.until_ms {
                self.parts[index].told(cx, false);
                continue;
            }
            cx.wake_at(question.until_ms);
            if question.is_asked {
                continue;
            }
            let side = question.side;
            match next_leader(cx, &self.parts[index].at, question) {
                Next::Leads(leader) if self.ask_successor(cx, index, leader) => {}
                Next::Unknown | Next::Leads(_) => {
                    cx.refresh(side);
                    cx.wake_at(cx.now_ms + RETRY_MS);
                }
                Next::Never => self.parts[index].told(cx, false),
            }
        }
    }

    fn ask_successor(&mut self, cx: &mut Cx<'_>, index: usize, leader: i32) -> bool {
        let part = &mut self.parts[index];
        let (body, Some(question)) = (part.question_for(cx), &mut part.question) else { return false };
        let upstream = cx.upstream(question.side, leader, Class::Produce);
        let call = self.next_call;
        self.next_call += 1;
        let send = |body: Struct| cx.call(upstream, key::OFFSET_FOR_LEADER_EPOCH, VERSION, &body, call);
        question.is_asked = body.is_some_and(send);
        if question.is_asked {
            self.questions.insert(call, index);
        }
        question.is_asked
    }

    /// What the next leader says.
    pub(super) fn on_successor(&mut self, cx: &mut Cx<'_>, index: usize, answer: Answer) {
        let part = &mut self.parts[index];
        let Some(question) = &mut part.question else { return };
        let end = match answer {
            Answer::Lost { .. } => None,
            Answer::Frame { frame, body_at, version } => {
                let read = cx.decode(key::OFFSET_FOR_LEADER_EPOCH, &frame, body_at, version).ok();
                read.and_then(|body| end_of_epoch(&body))
            }
        };
        match end {
            Some(end) => {
                let is_nowhere = question.base >= end || bug::is(Bug::R8Successor);
                part.told(cx, is_nowhere);
            }
            // It does not lead yet, or not any more.
            None => question.is_asked = false,
        }
    }
}

enum Next {
    Leads(i32),
    /// The topology is on its way.
    Unknown,
    /// Others have led between the two: then the epoch in which the batch was appended is not certain.
    Never,
}

fn next_leader(cx: &Cx<'_>, at: &(std::sync::Arc<str>, i32), question: &Question) -> Next {
    let Some(route) = cx.snapshot.routes.topic(&at.0) else { return Next::Never };
    let topology = cx.snapshot.topology(question.side);
    match cx.snapshot.partition(route, at.1, question.side) {
        Some(now) if now.epoch > question.epoch + 1 => Next::Never,
        Some(now) if now.epoch == question.epoch + 1 && now.leader == question.leader => Next::Never,
        Some(now) if now.epoch == question.epoch + 1 && topology.brokers.contains_key(&now.leader) => {
            Next::Leads(now.leader)
        }
        _ => Next::Unknown,
    }
}

impl Part {
    fn question_for(&self, cx: &Cx<'_>) -> Option<Struct> {
        let question = self.question.as_ref()?;
        let route = cx.snapshot.routes.topic(&self.at.0)?;
        let mut body = Struct::new(schema::request(key::OFFSET_FOR_LEADER_EPOCH)?.fields);
        body.set("ReplicaId", -1_i32);
        let mut topic = body.new_element("Topics");
        topic.set("Topic", &**route.physical(question.side));
        let mut partition = topic.new_element("Partitions");
        partition.set("Partition", self.at.1);
        partition.set("CurrentLeaderEpoch", question.epoch + 1);
        partition.set("LeaderEpoch", question.epoch);
        topic.push("Partitions", partition);
        body.push("Topics", topic);
        Some(body)
    }
}

/// Behind the last record of the epoch that was asked for.
fn end_of_epoch(body: &Struct) -> Option<i64> {
    let partition = body.structs("Topics").next()?.structs("Partitions").next()?;
    let end = partition.i64("EndOffset");
    (partition.i16("ErrorCode") == code::NONE && end >= 0).then_some(end)
}
