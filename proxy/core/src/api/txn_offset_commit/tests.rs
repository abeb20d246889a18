use super::super::key;
use super::*;
use crate::producer::transaction::{Identity, TransactionRoute, TransactionTable};
use crate::route::GroupTable;
use crate::session::testing::{Rig, Sent, Source, TOPIC, Target, only};
use crate::session::{Errand, Event};
use std::collections::BTreeMap;

const ID: &str = "pay";
const GROUP: &str = "g";
/// `Errors.FENCED_INSTANCE_ID`.
const FENCED_INSTANCE_ID: i16 = 82;
const CLIENT: Identity = Identity { pid: 1000, epoch: 3 };
const NATIVE: Identity = Identity { pid: 7, epoch: 0 };

/// Transactions and the group's commits are on the target, its members on the source, where the client is.
fn apart() -> Rig {
    let mut rig = Rig::new(Source, 0);
    rig.flip(Target, 100, 40);
    let route = TransactionRoute {
        home: Target,
        aliases: [0, 0],
        client: CLIENT,
        native: NATIVE,
        earlier: Default::default(),
    };
    rig.snapshot.transactions = Arc::new(TransactionTable(BTreeMap::from([(Arc::from(ID), route)])));
    let offset_homes = BTreeMap::from([(Arc::from(GROUP), Target)]);
    rig.snapshot.groups = Arc::new(GroupTable { offset_homes, ..GroupTable::default() });
    rig
}

fn commit(rig: &mut Rig, member: &str, generation: i32) {
    rig.ask(key::TXN_OFFSET_COMMIT, 3, |body| {
        body.set("TransactionalId", ID);
        body.set("GroupId", GROUP);
        body.set("ProducerId", CLIENT.pid);
        body.set("ProducerEpoch", CLIENT.epoch);
        body.set("MemberId", member);
        body.set("GenerationId", generation);
        topics(body, Some(120), 0);
    });
}

fn topics(body: &mut Struct, offset: Option<i64>, error: i16) {
    let mut topic = body.new_element("Topics");
    topic.set("Name", TOPIC);
    let mut partition = topic.new_element("Partitions");
    match offset {
        Some(offset) => partition.set("CommittedOffset", offset),
        None => partition.set("ErrorCode", error),
    }
    topic.push("Partitions", partition);
    body.push("Topics", topic);
}

/// The commit, once the target's coordinator is found.
fn committed(rig: &mut Rig) -> Sent {
    let lookup = rig.one();
    assert_eq!((lookup.api_key, lookup.node.side), (key::FIND_COORDINATOR, Target));
    rig.answer(&lookup, |body| body.set("NodeId", 1));
    let sent = rig.one();
    assert_eq!((sent.api_key, sent.node.side, sent.node.broker), (key::TXN_OFFSET_COMMIT, Target, 1));
    sent
}

fn told(rig: &mut Rig) -> Option<i16> {
    Some(only(&rig.reply()?, "Topics").i16("ErrorCode"))
}

fn check(rig: &mut Rig, error: i16) {
    let heartbeat = rig.one();
    assert_eq!((heartbeat.api_key, heartbeat.node.side), (key::HEARTBEAT, Source));
    assert_eq!((heartbeat.body.str("MemberId"), heartbeat.body.i32("GenerationId")), ("m", 4));
    rig.answer(&heartbeat, |body| body.set("ErrorCode", error));
}

#[test]
fn trap_7_a_members_commit_in_a_transaction_of_the_other_side_is_checked_where_its_group_is() {
    for valid in [code::NONE, code::REBALANCE_IN_PROGRESS] {
        let mut rig = apart();
        commit(&mut rig, "m", 4);
        check(&mut rig, valid);
        let sent = committed(&mut rig);
        assert_eq!((sent.body.str("MemberId"), sent.body.i32("GenerationId")), ("", -1));
        assert_eq!((sent.body.i64("ProducerId"), sent.body.i16("ProducerEpoch")), (NATIVE.pid, NATIVE.epoch));
        assert_eq!(only(&sent.body, "Topics").i64("CommittedOffset"), 60, "in the target's own numbers");
        rig.answer(&sent, |body| topics(body, None, 0));
        assert_eq!(told(&mut rig), Some(code::NONE));
        assert!(!rig.shared.groups.has_commits_under_way(GROUP));
    }
}

#[test]
fn trap_7_a_member_of_the_generation_before_commits_nothing() {
    for refused in [code::ILLEGAL_GENERATION, FENCED_INSTANCE_ID] {
        let mut rig = apart();
        commit(&mut rig, "m", 4);
        check(&mut rig, refused);
        assert!(rig.sent().is_empty());
        assert_eq!(told(&mut rig), Some(refused));
    }
}

#[test]
fn trap_7_the_members_coordinator_is_looked_for_again_when_it_has_moved() {
    let mut rig = apart();
    commit(&mut rig, "m", 4);
    check(&mut rig, code::NOT_COORDINATOR);
    rig.pass(200);
    check(&mut rig, code::NONE);
    let sent = committed(&mut rig);
    rig.answer(&sent, |body| topics(body, None, 0));
    assert_eq!(told(&mut rig), Some(code::NONE));
}

#[test]
fn trap_7_a_member_of_the_consumer_protocol_is_looked_up() {
    for (epoch, verdict) in [(4, None), (5, Some(code::ILLEGAL_GENERATION))] {
        let mut rig = apart();
        commit(&mut rig, "m", 4);
        check(&mut rig, code::UNKNOWN_MEMBER_ID);
        let question = rig.one();
        assert_eq!((question.api_key, question.node.side), (key::CONSUMER_GROUP_DESCRIBE, Source));
        rig.answer(&question, |body| {
            let mut group = body.new_element("Groups");
            group.set("GroupId", GROUP);
            let mut member = group.new_element("Members");
            member.set("MemberId", "m");
            member.set("MemberEpoch", epoch);
            group.push("Members", member);
            body.push("Groups", group);
        });
        if verdict.is_none() {
            let sent = committed(&mut rig);
            rig.answer(&sent, |body| topics(body, None, 0));
        }
        assert_eq!(told(&mut rig), Some(verdict.unwrap_or(code::NONE)));
    }
}

#[test]
fn trap_7_where_members_and_commits_are_together_the_coordinator_checks_for_itself() {
    let mut rig = Rig::new(Source, 0);
    let offset_homes = BTreeMap::from([(Arc::from(GROUP), Source)]);
    rig.snapshot.groups = Arc::new(GroupTable { offset_homes, ..GroupTable::default() });
    commit(&mut rig, "m", 4);
    let sent = rig.one();
    assert_eq!((sent.api_key, sent.node.side), (key::TXN_OFFSET_COMMIT, Source));
    assert_eq!((sent.body.str("MemberId"), sent.body.i32("GenerationId")), ("m", 4));
}

#[test]
fn r31_a_process_that_was_taken_over_takes_no_commits_of_transactions() {
    let mut rig = apart();
    rig.snapshot.taken_over = true;
    commit(&mut rig, "m", 4);
    check(&mut rig, code::NONE);
    assert!(rig.sent().is_empty());
    assert_eq!(told(&mut rig), Some(code::COORDINATOR_NOT_AVAILABLE));
}

#[test]
fn trap_7_a_member_on_its_way_to_the_new_home_commits_with_the_generation_it_knows() {
    let mut rig = apart();
    rig.shared.groups.alive(GROUP, "m", 4, Some(10_000), 0);
    rig.shared.groups.splice(GROUP, "m");
    let homes = BTreeMap::from([(Arc::from(GROUP), Target)]);
    let offset_homes = homes.clone();
    rig.snapshot.groups = Arc::new(GroupTable { homes, offset_homes, ..GroupTable::default() });
    commit(&mut rig, "m", 4);
    let sent = committed(&mut rig);
    assert_eq!((sent.body.str("MemberId"), sent.body.i32("GenerationId")), ("", -1));
    rig.answer(&sent, |body| topics(body, None, 0));
    assert_eq!(told(&mut rig), Some(code::NONE));
    // Once it is there, the generation of before is what it is.
    rig.shared.groups.spliced(GROUP, "m");
    commit(&mut rig, "m", 4);
    assert_eq!(rig.one().body.i32("GenerationId"), 4);
}

#[test]
fn trap_7_commits_are_read_where_they_are_and_not_before_those_that_are_under_way() {
    let mut rig = apart();
    commit(&mut rig, "m", 4);
    check(&mut rig, code::NONE);
    let sent = committed(&mut rig);
    rig.ask(key::OFFSET_FETCH, 7, |body| {
        body.set("GroupId", GROUP);
        body.set("RequireStable", true);
    });
    rig.pass(50);
    assert!(rig.sent().is_empty(), "it would miss the commit");
    rig.answer(&sent, |body| topics(body, None, 0));
    rig.pass(50);
    let fetch = rig.one();
    assert_eq!((fetch.api_key, fetch.node.side), (key::OFFSET_FETCH, Target));
    // A commit whose client has gone is still under way.
    commit(&mut rig, "m", 4);
    check(&mut rig, code::NONE);
    let _sent = rig.one();
    rig.handle(Event::ClientGone);
    assert!(rig.shared.groups.has_commits_under_way(GROUP));
}

#[test]
fn trap_7_a_commit_beside_the_transactions_is_told_when_it_is_where_commits_are_read() {
    for (done, error) in [(Ok(true), code::NONE), (Ok(false), code::COORDINATOR_NOT_AVAILABLE)] {
        let mut rig = apart();
        rig.ask(key::OFFSET_COMMIT, 7, |body| {
            body.set("GroupId", GROUP);
            body.set("GenerationIdOrMemberEpoch", 4);
            topics(body, Some(120), 0);
        });
        let sent = rig.one();
        assert_eq!(sent.node.side, Source, "its coordinator judges the member");
        rig.answer(&sent, |body| topics(body, None, 0));
        let errand = rig.errand().expect("it is to be copied");
        assert!(matches!(&errand.1, Errand::MirrorCommits(commits) if commits[0].position == 120));
        assert!(rig.reply().is_none());
        rig.run_errand(errand, done);
        assert_eq!(told(&mut rig), Some(error));
    }
}

#[test]
fn trap_7_an_identity_that_is_news_to_a_coordinator_of_before_is_asked_for_again() {
    for (is_open, told_of) in
        [(true, code::COORDINATOR_LOAD_IN_PROGRESS), (false, code::INVALID_PRODUCER_ID_MAPPING)]
    {
        let mut rig = apart();
        if is_open {
            rig.begin_transaction(ID, &[Arc::from("t")].into());
        }
        commit(&mut rig, "m", 4);
        check(&mut rig, code::NONE);
        let sent = committed(&mut rig);
        rig.answer(&sent, |body| topics(body, None, code::INVALID_PRODUCER_ID_MAPPING));
        assert_eq!(told(&mut rig), Some(told_of));
    }
}
