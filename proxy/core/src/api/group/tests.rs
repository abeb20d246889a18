use super::*;
use crate::route::GroupTable;
use crate::schema::Str;
use crate::session::Event;
use crate::session::testing::{Rig, Sent, Source, TOPIC, Target};
use std::sync::Arc;

const COORDINATOR: i32 = 1;

/// A client of the source's node whose group lives at the target.
fn moved() -> Rig {
    let mut rig = Rig::new(Source, 0);
    rig.move_home("g", Target);
    rig
}

fn heartbeat(rig: &mut Rig) {
    rig.ask(key::HEARTBEAT, 3, |body| body.set("GroupId", "g"));
}

fn join(rig: &mut Rig) {
    rig.ask(key::JOIN_GROUP, 5, |body| {
        body.set("GroupId", "g");
        body.set("ProtocolType", "consumer");
        body.set("SessionTimeoutMs", 10_000);
        body.set("RebalanceTimeoutMs", 10_000);
    });
}

/// The target names the coordinator.
fn look_up(rig: &mut Rig) {
    let lookup = rig.one();
    assert_eq!((lookup.api_key, lookup.node.side), (key::FIND_COORDINATOR, Target));
    rig.answer(&lookup, |body| body.set("NodeId", COORDINATOR));
}

fn answer(rig: &mut Rig, to: &Sent, error: i16) {
    rig.answer(to, |body| body.set("ErrorCode", error));
}

#[test]
fn r29_a_member_at_the_wrong_side_never_learns_that_its_coordinator_is_elsewhere() {
    let mut rig = moved();
    heartbeat(&mut rig);
    look_up(&mut rig);
    let sent = rig.one();
    assert_eq!((sent.node.side, sent.node.broker), (Target, COORDINATOR));
    answer(&mut rig, &sent, code::NONE);
    // The coordinator moves from broker to broker: that is for the proxy to find out.
    for error in [code::NOT_COORDINATOR, code::COORDINATOR_NOT_AVAILABLE, code::COORDINATOR_LOAD_IN_PROGRESS]
    {
        heartbeat(&mut rig);
        let sent = rig.one();
        answer(&mut rig, &sent, error);
        rig.pass(RETRY_MS);
        look_up(&mut rig);
        let again = rig.one();
        assert_eq!(again.api_key, key::HEARTBEAT);
        answer(&mut rig, &again, code::NONE);
    }
    let replies: Vec<i16> = std::iter::from_fn(|| rig.reply()).map(|r| r.i16("ErrorCode")).collect();
    assert_eq!((replies, rig.closed.is_none()), (vec![code::NONE; 4], true));
}

/// A broker that was away when the cluster was looked at last coordinates the group again.
#[test]
fn r29_a_coordinator_without_an_address_is_looked_for() {
    let mut rig = moved();
    let known = rig.snapshot.topologies.clone();
    Arc::make_mut(&mut rig.snapshot.topologies[Target.index()]).brokers.remove(&COORDINATOR);
    heartbeat(&mut rig);
    look_up(&mut rig);
    assert!(rig.refreshed.contains(&Target), "nobody else has a reason to look at the cluster");
    assert!(rig.closed.is_none() && rig.sent().is_empty(), "the client waits");
    rig.snapshot.topologies = known;
    rig.pass(RETRY_MS);
    look_up(&mut rig);
    let sent = rig.one();
    assert_eq!((sent.node.broker, sent.api_key), (COORDINATOR, key::HEARTBEAT));
}

/// The client's own broker is not there: its connection ends, as without a proxy, and the cluster is looked at.
#[test]
fn r29_the_own_broker_without_an_address_is_looked_for() {
    let mut rig = moved();
    rig.snapshot.groups = Arc::new(GroupTable::default());
    Arc::make_mut(&mut rig.snapshot.topologies[Source.index()]).brokers.remove(&0);
    heartbeat(&mut rig);
    assert_eq!(rig.closed, Some(CloseReason::UpstreamLost));
    assert!(rig.refreshed.contains(&Source));
}

#[test]
fn r29_what_the_coordinator_means_is_passed_on() {
    let mut rig = moved();
    heartbeat(&mut rig);
    look_up(&mut rig);
    let sent = rig.one();
    answer(&mut rig, &sent, code::REBALANCE_IN_PROGRESS);
    assert_eq!(rig.reply().map(|r| r.i16("ErrorCode")), Some(code::REBALANCE_IN_PROGRESS));
}

#[test]
fn r19_a_parked_join_blocks_neither_heartbeats_nor_produce() {
    let mut rig = moved();
    rig.flip(Target, 100, 40);
    let gate = rig.shared.gates.get(&Arc::from(TOPIC), 0);
    crate::session::lock(&gate).release(0, 1, crate::producer::carry::Carry::default());
    join(&mut rig);
    look_up(&mut rig);
    let parked = rig.one();
    assert_eq!(parked.api_key, key::JOIN_GROUP);
    heartbeat(&mut rig);
    let beat = rig.one();
    rig.ask(key::LIST_OFFSETS, 5, |body| {
        let mut topic = body.new_element("Topics");
        let mut partition = topic.new_element("Partitions");
        partition.set("Timestamp", -1_i64);
        topic.set("Name", TOPIC);
        topic.push("Partitions", partition);
        body.push("Topics", topic);
    });
    let listed = rig.one();
    for other in [&beat, &listed] {
        assert_eq!(other.node.side, Target);
        assert_ne!(other.upstream, parked.upstream, "a broker answers a connection's requests one by one");
    }
}

#[test]
fn r19_the_loss_of_a_companion_fails_only_what_needs_it() {
    let mut rig = moved();
    join(&mut rig);
    look_up(&mut rig);
    let parked = rig.one();
    heartbeat(&mut rig);
    let beat = rig.one();
    rig.handle(Event::Lost { upstream: parked.upstream });
    assert!(rig.closed.is_none(), "the client's connection outlives a companion");
    answer(&mut rig, &beat, code::NONE);
    // The join is asked again at the coordinator; answers still come in the client's order.
    rig.pass(RETRY_MS);
    look_up(&mut rig);
    let again = rig.one();
    assert_eq!(again.api_key, key::JOIN_GROUP);
    answer(&mut rig, &again, code::NONE);
    let replies: Vec<Struct> = std::iter::from_fn(|| rig.reply()).collect();
    assert_eq!(replies.len(), 2);
}

#[test]
fn a_member_that_moves_leaves_its_old_home_also_a_static_one() {
    for instance in [None, Some("instance")] {
        let mut rig = Rig::new(Source, 0);
        let moving = [(Arc::from("g"), Target)].into();
        rig.snapshot.groups = Arc::new(GroupTable { moving, ..GroupTable::default() });
        rig.ask(key::JOIN_GROUP, 5, |body| {
            body.set("GroupId", "g");
            body.set("MemberId", "old-id");
            body.set("GroupInstanceId", instance.map(Str::from));
            body.set("ProtocolType", "consumer");
        });
        let alive = rig.one();
        assert_eq!(alive.api_key, key::HEARTBEAT, "it is parked");
        answer(&mut rig, &alive, code::NONE);
        rig.move_home("g", Target);
        rig.handle(Event::Wake);
        let left = rig.sent().into_iter().find(|sent| sent.api_key == key::LEAVE_GROUP);
        let left = left.unwrap_or_else(|| panic!("{instance:?}: it is still a member of the old home"));
        assert_eq!((left.node.side, left.body.str("MemberId")), (Source, "old-id"));
    }
}

/// The member's JoinGroup has come to the new home; the request there.
fn spliced(rig: &mut Rig) -> Sent {
    let moving = [(Arc::from("g"), Target)].into();
    rig.snapshot.groups = Arc::new(GroupTable { moving, ..GroupTable::default() });
    for member in ["a", "b"] {
        rig.shared.groups.alive("g", member, 1, None, rig.now_ms);
    }
    rig.ask(key::JOIN_GROUP, 5, |body| {
        body.set("GroupId", "g");
        body.set("MemberId", "a");
        body.set("ProtocolType", "consumer");
    });
    rig.shared.groups.park("g", "b", true, rig.now_ms);
    rig.move_home("g", Target);
    rig.sent();
    rig.handle(Event::Wake);
    let lookup = rig.sent().into_iter().find(|sent| sent.api_key == key::FIND_COORDINATOR).unwrap();
    rig.answer(&lookup, |body| body.set("NodeId", COORDINATOR));
    rig.one()
}

/// The new home answers with a generation that the member leads, of so many members.
fn lead(rig: &mut Rig, to: &Sent, members: usize) {
    rig.answer(to, |body| {
        body.set("GenerationId", 1);
        body.set("Leader", "new-id");
        body.set("MemberId", "new-id");
        for _ in 0..members {
            let member = body.new_element("Members");
            body.push("Members", member);
        }
    });
}

#[test]
fn r29_no_member_leads_the_new_home_before_the_others_have_come() {
    let mut rig = Rig::new(Source, 0);
    let join = spliced(&mut rig);
    assert_eq!((join.api_key, join.node.side, join.body.str("MemberId")), (key::JOIN_GROUP, Target, ""));
    lead(&mut rig, &join, 1);
    assert!(rig.reply().is_none(), "it would be given what the other member reads");
    rig.pass(49);
    assert!(rig.sent().is_empty(), "the others need a moment");
    rig.pass(1);
    let again = rig.one();
    assert_eq!((again.api_key, again.body.str("MemberId")), (key::JOIN_GROUP, "new-id"));
    lead(&mut rig, &again, 2);
    assert_eq!(rig.reply().map(|r| r.array("Members").len()), Some(2));
}

#[test]
fn a_member_that_never_comes_to_the_new_home_is_not_waited_for_for_ever() {
    let mut rig = Rig::new(Source, 0);
    let mut join = spliced(&mut rig);
    for _ in 0..=60 {
        lead(&mut rig, &join, 1);
        rig.pass(50);
        match rig.sent().pop() {
            Some(again) => join = again,
            None => break,
        }
    }
    assert_eq!(rig.reply().map(|r| r.array("Members").len()), Some(1));
}

fn commit(rig: &mut Rig) {
    rig.ask(key::OFFSET_COMMIT, 7, |body| {
        body.set("GroupId", "g");
        body.set("GenerationIdOrMemberEpoch", 1);
        committed(body, code::NONE);
    });
}

/// A topic of a commit or of its answer.
fn committed(body: &mut Struct, error: i16) {
    let mut topic = body.new_element("Topics");
    topic.set("Name", TOPIC);
    let mut partition = topic.new_element("Partitions");
    if partition.has("ErrorCode") {
        partition.set("ErrorCode", error);
    }
    topic.push("Partitions", partition);
    body.push("Topics", topic);
}

#[test]
fn r29_a_coordinator_that_has_moved_says_so_in_each_partition() {
    let mut rig = moved();
    commit(&mut rig);
    look_up(&mut rig);
    let sent = rig.one();
    rig.answer(&sent, |body| committed(body, code::NOT_COORDINATOR));
    assert!(rig.reply().is_none());
    rig.pass(RETRY_MS);
    look_up(&mut rig);
    let sent = rig.one();
    assert_eq!(sent.api_key, key::OFFSET_COMMIT);
    rig.answer(&sent, |body| committed(body, code::NONE));
    let reply = rig.reply().expect("an answer that says nothing of the kind is the client's");
    assert_eq!(crate::session::testing::only(&reply, "Topics").i16("ErrorCode"), code::NONE);
}

#[test]
fn r29_a_coordinator_that_has_moved_says_so_in_any_place_of_its_answer() {
    let (gone, other) = (code::NOT_COORDINATOR, code::REBALANCE_IN_PROGRESS);
    let commit = |errors: &[&[i16]]| {
        let message = schema::response(key::OFFSET_COMMIT).unwrap();
        let mut body = Struct::new(message.fields);
        for of_topic in errors {
            let mut topic = body.new_element("Topics");
            for error in *of_topic {
                let mut partition = topic.new_element("Partitions");
                partition.set("ErrorCode", *error);
                topic.push("Partitions", partition);
            }
            body.push("Topics", topic);
        }
        is_elsewhere(&body)
    };
    assert!(!commit(&[]) && !commit(&[&[]]) && !commit(&[&[code::NONE, other], &[other]]));
    assert!(commit(&[&[code::NONE, gone]]) && commit(&[&[gone, other]]), "in one partition of several");
    assert!(
        commit(&[&[code::NONE], &[gone]]) && commit(&[&[gone], &[], &[other]]),
        "in one topic of several"
    );
    let groups = |errors: &[i16]| {
        let message = schema::response(key::OFFSET_FETCH).unwrap();
        let mut body = Struct::new(message.fields);
        for error in errors {
            let mut group = body.new_element("Groups");
            group.set("ErrorCode", *error);
            body.push("Groups", group);
        }
        is_elsewhere(&body)
    };
    assert!(!groups(&[code::NONE, other]) && groups(&[code::NONE, gone]) && groups(&[gone, other]));
}

#[test]
fn r29_a_coordinator_that_has_moved_says_so_in_each_group() {
    let answered = |error: i16| {
        move |body: &mut Struct| {
            let mut group = body.new_element("Groups");
            group.set("GroupId", "g");
            group.set("ErrorCode", error);
            body.push("Groups", group);
        }
    };
    let mut rig = moved();
    rig.ask(key::OFFSET_FETCH, 8, |body| {
        let mut group = body.new_element("Groups");
        group.set("GroupId", "g");
        body.push("Groups", group);
    });
    look_up(&mut rig);
    let sent = rig.one();
    rig.answer(&sent, answered(code::COORDINATOR_LOAD_IN_PROGRESS));
    assert!(rig.reply().is_none());
    rig.pass(RETRY_MS);
    look_up(&mut rig);
    let sent = rig.one();
    rig.answer(&sent, answered(code::NONE));
    let reply = rig.reply().expect("an answer that says nothing of the kind is the client's");
    assert_eq!(reply.structs("Groups").next().map(|group| group.i16("ErrorCode")), Some(code::NONE));
}

#[test]
fn a_coordinator_is_looked_for_until_it_is_found_or_patience_ends() {
    let mut rig = moved();
    heartbeat(&mut rig);
    for _ in 0..2 {
        let lookup = rig.one();
        assert_eq!(lookup.body.str("Key"), "g");
        // One is under way: a second one would send the request twice.
        rig.handle(Event::Wake);
        assert!(rig.sent().is_empty());
        answer(&mut rig, &lookup, code::COORDINATOR_NOT_AVAILABLE);
        rig.pass(RETRY_MS - 1);
        assert!(rig.sent().is_empty());
        rig.pass(1);
    }
    look_up(&mut rig);
    let sent = rig.one();
    rig.handle(Event::Wake);
    assert!(rig.sent().is_empty(), "it is on its way");
    answer(&mut rig, &sent, code::NONE);
    // Found is found: nobody asks again.
    heartbeat(&mut rig);
    assert_eq!(rig.one().node.broker, COORDINATOR);

    let mut rig = moved();
    heartbeat(&mut rig);
    let _ = rig.one();
    rig.pass(PATIENCE_MS - 1);
    assert!(rig.closed.is_none());
    rig.pass(1);
    assert!(rig.closed.is_some(), "the client is to come again");
}

#[test]
fn a_side_of_which_no_broker_is_known_is_asked_for_them() {
    let mut rig = moved();
    let brokers = std::mem::take(&mut rig.topology(Target).brokers);
    heartbeat(&mut rig);
    assert!(rig.sent().is_empty() && rig.refreshed.contains(&Target));
    rig.topology(Target).brokers = brokers;
    rig.refreshed.clear();
    rig.pass(RETRY_MS);
    look_up(&mut rig);
    assert!(rig.refreshed.is_empty(), "they are known");
}

#[test]
fn at_the_homes_own_side_the_clients_broker_judges_for_itself() {
    let mut rig = Rig::new(Source, 0);
    heartbeat(&mut rig);
    let sent = rig.one();
    assert_eq!((sent.api_key, sent.node), (key::HEARTBEAT, rig.node()));
    answer(&mut rig, &sent, code::NOT_COORDINATOR);
    assert_eq!(rig.reply().map(|r| r.i16("ErrorCode")), Some(code::NOT_COORDINATOR));
    heartbeat(&mut rig);
    let sent = rig.one();
    rig.lose(&sent);
    assert!(rig.closed.is_some());
    // A transactional id's home is its own, whatever that of a group of the same name.
    let mut rig = Rig::new(Source, 0);
    rig.move_home("pay", Target);
    rig.ask(key::END_TXN, 3, |body| body.set("TransactionalId", "pay"));
    assert_eq!(rig.one().node, rig.node());
}

#[test]
fn commits_that_are_apart_are_read_at_their_coordinator_which_the_client_has_not_chosen() {
    let mut rig = Rig::new(Target, 0);
    let offset_homes = [(Arc::from("g"), Target)].into();
    rig.snapshot.groups = Arc::new(GroupTable { offset_homes, ..GroupTable::default() });
    rig.ask(key::OFFSET_FETCH, 7, |body| body.set("GroupId", "g"));
    look_up(&mut rig);
    let sent = rig.one();
    assert_eq!((sent.api_key, sent.node.side, sent.node.broker), (key::OFFSET_FETCH, Target, COORDINATOR));
}

#[test]
fn only_what_changes_something_is_seen_through_when_its_client_has_gone() {
    let mut rig = Rig::new(Source, 0);
    rig.ask(key::END_TXN, 3, |body| {
        body.set("TransactionalId", "pay");
        body.set("ProducerId", 1_i64);
    });
    let ended = rig.one();
    let topics = [Arc::from(TOPIC)].into();
    rig.begin_transaction("pay", &topics);
    rig.handle(Event::ClientGone);
    answer(&mut rig, &ended, code::NONE);
    assert!(rig.shared.transactions.all_open().is_empty(), "a flip waits for it");
    let mut rig = Rig::new(Source, 0);
    heartbeat(&mut rig);
    assert_eq!(rig.sent().len(), 1);
    rig.handle(Event::ClientGone);
    assert!(rig.session.is_finished(), "nobody waits for this one's answer");
}

#[test]
fn a_cluster_whose_versions_are_not_known_is_asked_for_a_coordinator_in_the_first() {
    let mut rig = moved();
    let mut topology = (*rig.snapshot.topologies[Target.index()]).clone();
    topology.api_ranges.0.clear();
    rig.snapshot.topologies[Target.index()] = Arc::new(topology);
    heartbeat(&mut rig);
    let lookup = rig.one();
    assert_eq!((lookup.api_key, lookup.version), (key::FIND_COORDINATOR, 0));
}

/// The coordinator of the home of before is found when the group has moved.
#[test]
fn r29_a_request_that_waited_for_its_coordinator_goes_to_the_home_as_it_is_then() {
    let asked: [fn(&mut Rig); 3] =
        [heartbeat, commit, |rig| rig.ask(key::OFFSET_FETCH, 7, |body| body.set("GroupId", "g"))];
    for ask in asked {
        let mut rig = Rig::new(Target, 0);
        ask(&mut rig);
        let lookup = rig.one();
        assert_eq!((lookup.api_key, lookup.node.side), (key::FIND_COORDINATOR, Source));
        rig.move_home("g", Target);
        rig.answer(&lookup, |body| body.set("NodeId", COORDINATOR));
        let sent = rig.one();
        assert_eq!((sent.node.side, sent.node.broker), (Target, 0), "the client's own node is at home now");
        // And back: what was found before is its coordinator on that side.
        rig.snapshot.groups = Arc::new(GroupTable::default());
        ask(&mut rig);
        let sent = rig.one();
        assert_eq!((sent.node.side, sent.node.broker), (Source, COORDINATOR));
    }
}

/// A move begins, or is over, while the coordinator is looked for.
#[test]
fn r29_a_member_that_waited_for_its_coordinator_takes_part_in_the_move() {
    let mut rig = Rig::new(Target, 0);
    join(&mut rig);
    let lookup = rig.one();
    let moving = [(Arc::from("g"), Target)].into();
    rig.snapshot.groups = Arc::new(GroupTable { moving, ..GroupTable::default() });
    rig.answer(&lookup, |body| body.set("NodeId", COORDINATOR));
    assert!(rig.sent().iter().all(|sent| sent.api_key != key::JOIN_GROUP), "it waits for the new home");
    rig.move_home("g", Target);
    rig.handle(Event::Wake);
    look_up(&mut rig);
    let joined = rig.one();
    assert_eq!((joined.api_key, joined.node.side), (key::JOIN_GROUP, Target));

    let mut rig = Rig::new(Target, 0);
    join(&mut rig);
    let lookup = rig.one();
    rig.move_home("g", Target);
    rig.answer(&lookup, |body| body.set("NodeId", COORDINATOR));
    look_up(&mut rig);
    assert_eq!(rig.one().node.side, Target);
}

#[test]
fn groups_and_members_are_remembered_when_their_coordinator_knows_them() {
    let mut rig = Rig::new(Source, 0);
    let beat = |rig: &mut Rig, error: i16| {
        rig.ask(key::HEARTBEAT, 3, |body| {
            body.set("GroupId", "g");
            body.set("MemberId", "m");
            body.set("GenerationId", 4);
        });
        let sent = rig.one();
        answer(rig, &sent, error);
        let _ = rig.reply();
        rig.shared.groups.names().len()
    };
    assert_eq!(beat(&mut rig, code::UNKNOWN_MEMBER_ID), 0, "anybody can make up a name");
    assert_eq!(beat(&mut rig, code::REBALANCE_IN_PROGRESS), 1);
    assert_eq!(rig.shared.groups.member("g", "m").map(|member| member.generation), Some(4));
}
