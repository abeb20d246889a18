//! TxnOffsetCommit (key 28): commits of a transaction go where the transaction is, which is where the group's commits
//! are (ADR 13). Where its members are on the other side, their coordinator is asked whether the member may commit, as
//! the coordinator of both would check it (KIP-447).

use super::group::{self, Finder, Found, GroupApi, GroupCall};
use super::offset_commit::METADATA_MAX;
use super::transactions::{self, NAMES};
use super::{common, key};
use crate::error_code as code;
use crate::ids::{ClusterSide, VirtualOffset};
use crate::schema::{Struct, Value};
use crate::session::{Answer, Class, Cx, Operation, Step};
use crate::timeline;
use std::sync::Arc;

/// The calls of the check, beside those of the commit itself.
const LOOKUP: u32 = 10;
const CHECK: u32 = 11;

/// The commit itself.
pub(super) struct TxnOffsetCommit {
    request: Struct,
    /// Its member was checked where the group's members are: commits are not read until this one is through.
    under_way: Option<Arc<()>>,
}

impl TxnOffsetCommit {
    /// Without the member, whom the coordinator that gets it does not know.
    fn without_member(&mut self, cx: &Cx<'_>) {
        self.under_way = Some(cx.shared.groups.commit_under_way(self.request.str("GroupId")));
        self.request.set("GenerationId", -1);
        self.request.set("MemberId", "");
        self.request.reset("GroupInstanceId");
    }

    fn refusal(&self, cx: &Cx<'_>, error: i16) -> Option<Step> {
        let mut response = cx.empty_response()?;
        for topic in self.request.structs("Topics") {
            let mut out = response.new_element("Topics");
            out.set("Name", topic.get("Name").clone());
            for partition in topic.structs("Partitions") {
                let mut element = out.new_element("Partitions");
                element.set("PartitionIndex", partition.i32("PartitionIndex"));
                element.set("ErrorCode", error);
                out.push("Partitions", element);
            }
            response.push("Topics", out);
        }
        Some(Step::Reply(response))
    }
}

impl GroupApi for TxnOffsetCommit {
    fn group(&self) -> String {
        self.request.str("GroupId").to_owned()
    }

    fn home(&self, cx: &Cx<'_>) -> ClusterSide {
        cx.snapshot.offset_home(self.request.str("GroupId"))
    }

    /// One that is under way comes before those that are read then.
    fn is_change(&self) -> bool {
        self.under_way.is_some()
    }

    fn local(&mut self, cx: &mut Cx<'_>, home: ClusterSide) -> Option<Step> {
        if cx.snapshot.taken_over {
            return self.refusal(cx, code::COORDINATOR_NOT_AVAILABLE);
        }
        let id = self.request.str("TransactionalId");
        let is_home = cx.snapshot.transaction_home(id) == home;
        let is_fenced = is_home && transactions::is_fenced(cx, &self.request, home, NAMES);
        let routes = &cx.snapshot.routes;
        let is_frozen = |t: &Struct| routes.topic(t.str("Name")).is_some_and(|r| r.frozen.is_some());
        let frozen = self.request.structs("Topics").any(is_frozen);
        let error = match is_home {
            true if is_fenced => code::INVALID_PRODUCER_EPOCH,
            true if frozen => code::UNKNOWN_TOPIC_OR_PARTITION,
            true => return None,
            false if cx.header.api_version >= 4 => code::TRANSACTION_ABORTABLE,
            false => code::ILLEGAL_GENERATION,
        };
        self.refusal(cx, error)
    }

    fn request(&mut self, cx: &mut Cx<'_>, home: ClusterSide) -> Struct {
        let mut request = self.request.clone();
        transactions::to_native(cx, &mut request, home, NAMES);
        for topic in request.structs_mut("Topics") {
            let name = topic.str("Name").to_owned();
            let Some(route) = cx.snapshot.routes.topic(&name).cloned() else { continue };
            let physical = common::physical_name(cx, &name, home);
            topic.set("Name", physical);
            for partition in topic.structs_mut("Partitions") {
                let Some(log) = route.timeline(partition.i32("PartitionIndex")) else { continue };
                let position = VirtualOffset(partition.i64("CommittedOffset"));
                let stored = timeline::to_stored(
                    log,
                    home,
                    position,
                    partition.str("CommittedMetadata"),
                    METADATA_MAX,
                );
                partition.set("CommittedOffset", stored.native);
                partition.set("CommittedLeaderEpoch", -1);
                partition.set("CommittedMetadata", stored.metadata);
            }
        }
        request
    }

    fn response(&mut self, cx: &mut Cx<'_>, home: ClusterSide, mut response: Struct) -> Step {
        common::names_to_virtual(cx, &mut response, home);
        // Its coordinator has it open. A broker that was away may ask one that it has taken the place of, to which the identity
        // at a new home is news; clients take that for the end.
        if cx.shared.transactions.is_open(self.request.str("TransactionalId")) {
            let partitions = response.structs_mut("Topics").flat_map(|topic| topic.structs_mut("Partitions"));
            let strange = partitions.filter(|p| p.i16("ErrorCode") == code::INVALID_PRODUCER_ID_MAPPING);
            strange.for_each(|partition| partition.set("ErrorCode", code::COORDINATOR_LOAD_IN_PROGRESS));
        }
        Step::Reply(response)
    }
}

/// The check of its member, and the commit.
pub(super) struct CommitInTransaction {
    call: GroupCall<TxnOffsetCommit>,
    /// Of the coordinator that has the members.
    finder: Finder,
    stage: Stage,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// The members' coordinator is looked for.
    Finding,
    /// It was asked, by a classic member's heartbeat.
    Classic,
    /// It was asked about a member of the consumer protocol (KIP-848).
    Consumer,
    Committing,
}

impl CommitInTransaction {
    pub(super) fn new(request: Struct) -> CommitInTransaction {
        let finder = Finder::new(request.str("GroupId").to_owned(), Class::Produce).with_lookup(LOOKUP);
        let call = GroupCall::new(TxnOffsetCommit { request, under_way: None });
        CommitInTransaction { call, finder, stage: Stage::Finding }
    }

    fn member(&self) -> (&str, i32) {
        let request = &self.call.api().request;
        (request.str("MemberId"), request.i32("GenerationId"))
    }

    fn commit(&mut self, cx: &mut Cx<'_>) -> Step {
        self.stage = Stage::Committing;
        cx.deadline_ms = None;
        self.call.start(cx)
    }

    fn commit_for_member(&mut self, cx: &mut Cx<'_>) -> Step {
        self.call.api_mut().without_member(cx);
        self.commit(cx)
    }

    fn refuse(&self, cx: &Cx<'_>, error: i16) -> Step {
        self.call.api().refusal(cx, error).unwrap_or(Step::Done)
    }

    fn check(&mut self, cx: &mut Cx<'_>) -> Step {
        let members = cx.snapshot.group_home(&self.finder.group);
        match self.finder.find(cx, members) {
            Found::Later => Step::Pending,
            Found::Nowhere => self.refuse(cx, code::COORDINATOR_NOT_AVAILABLE),
            Found::At(upstream) => {
                let (api_key, body) = self.question(cx, members);
                let range = cx.snapshot.topology(members).api_ranges.range(api_key);
                let version = range.map_or(0, |range| range.1.min(3));
                if !cx.call(upstream, api_key, version, &body, CHECK) {
                    return self.refuse(cx, code::COORDINATOR_NOT_AVAILABLE);
                }
                if self.stage == Stage::Finding {
                    self.stage = Stage::Classic;
                }
                Step::Pending
            }
        }
    }

    fn question(&self, cx: &Cx<'_>, members: ClusterSide) -> (i16, Struct) {
        let group = self.finder.group.as_str();
        let is_consumer = self.stage == Stage::Consumer && knows_consumers(cx, members);
        if is_consumer {
            let mut body = group::request(key::CONSUMER_GROUP_DESCRIBE);
            body.set("GroupIds", Value::Array(Some(vec![Value::from(group)])));
            return (key::CONSUMER_GROUP_DESCRIBE, body);
        }
        let (member, generation) = self.member();
        let mut body = group::request(key::HEARTBEAT);
        body.set("GroupId", group);
        body.set("GenerationId", generation);
        body.set("MemberId", member);
        body.set("GroupInstanceId", self.call.api().request.opt_text("GroupInstanceId").cloned());
        (key::HEARTBEAT, body)
    }

    fn on_check(&mut self, cx: &mut Cx<'_>, answer: Answer) -> Step {
        let members = cx.snapshot.group_home(&self.finder.group);
        let api_key =
            if self.stage == Stage::Consumer { key::CONSUMER_GROUP_DESCRIBE } else { key::HEARTBEAT };
        let Answer::Frame { frame, body_at, version } = answer else { return self.ask_again(cx, members) };
        let response = match cx.decode(api_key, &frame, body_at, version) {
            Ok(response) => response,
            Err(reason) => return Step::Close(reason),
        };
        match self.verdict(&response) {
            // In a rebalance the generation of before still commits (`GroupMetadataManager.validateOffsetCommit`).
            code::NONE | code::REBALANCE_IN_PROGRESS => self.commit_for_member(cx),
            code::NOT_COORDINATOR | code::COORDINATOR_NOT_AVAILABLE | code::COORDINATOR_LOAD_IN_PROGRESS => {
                self.ask_again(cx, members)
            }
            code::UNKNOWN_MEMBER_ID if self.stage == Stage::Classic && knows_consumers(cx, members) => {
                self.stage = Stage::Consumer;
                self.check(cx)
            }
            error => self.refuse(cx, error),
        }
    }

    /// What the members' coordinator says of the member.
    fn verdict(&self, response: &Struct) -> i16 {
        if self.stage == Stage::Classic {
            return response.i16("ErrorCode");
        }
        let Some(group) = response.structs("Groups").next() else { return code::UNKNOWN_MEMBER_ID };
        let (member, epoch) = self.member();
        let error = group.i16("ErrorCode");
        let known = group.structs("Members").find(|m| m.str("MemberId") == member);
        match known.map(|m| m.i32("MemberEpoch") == epoch) {
            _ if error == code::GROUP_ID_NOT_FOUND => code::UNKNOWN_MEMBER_ID,
            _ if error != code::NONE => error,
            Some(true) => code::NONE,
            Some(false) => code::ILLEGAL_GENERATION,
            None => code::UNKNOWN_MEMBER_ID,
        }
    }

    fn ask_again(&mut self, cx: &mut Cx<'_>, members: ClusterSide) -> Step {
        if self.finder.is_over(cx) {
            return self.refuse(cx, code::COORDINATOR_NOT_AVAILABLE);
        }
        self.stage = Stage::Finding;
        self.finder.forget(cx, members);
        Step::Pending
    }
}

fn knows_consumers(cx: &Cx<'_>, side: ClusterSide) -> bool {
    cx.snapshot.topology(side).api_ranges.range(key::CONSUMER_GROUP_DESCRIBE).is_some()
}

impl Operation for CommitInTransaction {
    fn start(&mut self, cx: &mut Cx<'_>) -> Step {
        let group = &self.finder.group;
        let (member, generation) = self.member();
        // A member that the proxy takes to the new home has its generation of before until it is there.
        if cx.shared.groups.is_spliced(group, member, generation) {
            return self.commit_for_member(cx);
        }
        let is_apart = cx.snapshot.group_home(group) != cx.snapshot.offset_home(group);
        // Version 2 and a producer that was not told a member name none: nobody checks it.
        let names_one = cx.header.api_version >= 3 && (generation >= 0 || !member.is_empty());
        if is_apart && names_one { self.check(cx) } else { self.commit(cx) }
    }

    fn on_answer(&mut self, cx: &mut Cx<'_>, part: u32, answer: Answer) -> Step {
        match part {
            LOOKUP => {
                let members = cx.snapshot.group_home(&self.finder.group);
                let is_found = self.finder.found(cx, members, answer) && self.stage == Stage::Finding;
                if is_found { self.check(cx) } else { Step::Pending }
            }
            CHECK => self.on_check(cx, answer),
            _ => self.call.on_answer(cx, part, answer),
        }
    }

    fn on_wake(&mut self, cx: &mut Cx<'_>) -> Step {
        match self.stage {
            Stage::Committing => self.call.on_wake(cx),
            Stage::Finding => {
                cx.deadline_ms = None;
                self.check(cx)
            }
            Stage::Classic | Stage::Consumer => Step::Pending,
        }
    }

    fn on_client_gone(&mut self, cx: &mut Cx<'_>) -> Step {
        if self.stage == Stage::Committing { self.call.on_client_gone(cx) } else { Step::Done }
    }
}

#[cfg(test)]
mod tests;
