use super::*;
use crate::route::GroupTable;
use crate::schema::Str;
use crate::session::Event;
use crate::session::testing::{Rig, Sent, Source, Target};
use std::sync::Arc;

/// The member, which both homes would call otherwise, and its generation at the old one.
const MEMBER: &str = "old-id";
const GENERATION: i32 = 4;
const COORDINATOR: i32 = 1;

/// A client at this side's node while its group moves from the source to the target.
fn moving(side: ClusterSide) -> Rig {
    let mut rig = Rig::new(side, 0);
    rig.shared.groups.alive("g", MEMBER, GENERATION, Some(10_000), rig.now_ms);
    let moving = [(Arc::from("g"), Target)].into();
    rig.snapshot.groups = Arc::new(GroupTable { moving, ..GroupTable::default() });
    rig
}

/// The group is at the target from now on.
fn moved(rig: &mut Rig) {
    rig.move_home("g", Target);
    rig.handle(Event::Wake);
}

fn join(rig: &mut Rig, member: &str) {
    rig.ask(key::JOIN_GROUP, 5, |body| {
        body.set("GroupId", "g");
        body.set("MemberId", member);
        body.set("GroupInstanceId", Some(Str::from("instance")));
        body.set("ProtocolType", "consumer");
        body.set("SessionTimeoutMs", 10_000);
    });
}

/// The target names the coordinator.
fn look_up(rig: &mut Rig, lookup: &Sent, broker: i32) {
    assert_eq!((lookup.api_key, lookup.node.side), (key::FIND_COORDINATOR, Target));
    rig.answer(lookup, |body| body.set("NodeId", broker));
}

/// A member of the source's node that was parked, and has moved; the request to its new home.
fn spliced() -> (Rig, Sent) {
    let mut rig = moving(Source);
    join(&mut rig, MEMBER);
    let _ = rig.one();
    moved(&mut rig);
    let sent = rig.sent();
    assert_eq!((sent[0].api_key, sent[0].body.str("GroupId")), (key::LEAVE_GROUP, "g"));
    look_up(&mut rig, &sent[1], COORDINATOR);
    let joined = rig.one();
    assert_eq!(
        (joined.api_key, joined.node.side, joined.node.broker),
        (key::JOIN_GROUP, Target, COORDINATOR)
    );
    (rig, joined)
}

fn error(rig: &mut Rig, to: &Sent, error: i16) {
    rig.answer(to, |body| body.set("ErrorCode", error));
}

fn told(rig: &mut Rig) -> Option<i16> {
    rig.reply().map(|reply| reply.i16("ErrorCode"))
}

fn accept(rig: &mut Rig, to: &Sent) {
    rig.answer(to, |body| {
        body.set("MemberId", "new-id");
        body.set("GenerationId", 1);
    });
}

#[test]
fn a_parked_member_is_kept_alive_at_its_old_home() {
    let mut rig = moving(Source);
    join(&mut rig, MEMBER);
    for _ in 0..3 {
        let alive = rig.one();
        assert_eq!((alive.api_key, alive.version, alive.node), (key::HEARTBEAT, 3, rig.node()));
        assert_eq!((alive.body.str("GroupId"), alive.body.str("MemberId")), ("g", MEMBER));
        assert_eq!(alive.body.i32("GenerationId"), GENERATION);
        assert_eq!(alive.body.opt_str("GroupInstanceId"), Some("instance"));
        error(&mut rig, &alive, code::NONE);
        rig.pass(KEEP_ALIVE_MS - 1);
        // Wakes come for other reasons, too.
        rig.handle(Event::Wake);
        assert!(rig.sent().is_empty());
        rig.pass(1);
    }
    assert!(rig.shared.groups.is_drained("g", rig.now_ms), "it has come to the rebalance");
    assert!(rig.reply().is_none());
}

#[test]
fn a_member_is_parked_for_so_long_and_then_goes_to_the_old_home_as_if_nothing_were() {
    for member in ["", MEMBER] {
        let mut rig = moving(Source);
        join(&mut rig, member);
        rig.pass(PARKED_MAX_MS - 1);
        let sent = rig.sent();
        assert!(sent.iter().all(|sent| sent.api_key == key::HEARTBEAT), "{sent:?}");
        assert_eq!(sent.is_empty(), member.is_empty(), "one without a name has no session");
        rig.pass(1);
        let joined = rig.one();
        assert_eq!((joined.api_key, joined.node), (key::JOIN_GROUP, rig.node()));
        assert_eq!(joined.body.str("MemberId"), member);
        assert!(!rig.shared.groups.member("g", MEMBER).is_some_and(|known| known.parked));
    }
}

#[test]
fn a_member_without_a_name_does_not_keep_its_connection_busy_while_it_is_parked() {
    let mut rig = moving(Source);
    join(&mut rig, "");
    assert_eq!(rig.session.next_deadline_ms(), Some(rig.now_ms + KEEP_ALIVE_MS));
}

#[test]
fn a_parked_member_is_joined_to_the_new_home_on_its_behalf() {
    let (mut rig, joined) = spliced();
    assert_eq!(joined.body.str("MemberId"), "", "the new home has not given it a name yet");
    assert!(rig.shared.groups.is_spliced("g", MEMBER, GENERATION));
    rig.answer(&joined, |body| {
        body.set("ErrorCode", code::MEMBER_ID_REQUIRED);
        body.set("MemberId", "new-id");
    });
    let joined = rig.one();
    assert_eq!(
        (joined.api_key, joined.node.side, joined.body.str("MemberId")),
        (key::JOIN_GROUP, Target, "new-id")
    );
    assert!(rig.shared.groups.is_spliced("g", MEMBER, GENERATION) && rig.reply().is_none());
    accept(&mut rig, &joined);
    let reply = rig.reply().expect("the member sees one rebalance");
    assert_eq!((reply.i16("ErrorCode"), reply.str("MemberId")), (code::NONE, "new-id"));
    assert!(!rig.shared.groups.is_spliced("g", MEMBER, GENERATION));
    let member = rig.shared.groups.member("g", "new-id").expect("it is known");
    assert_eq!((member.generation, member.session_timeout_ms, member.parked), (1, 10_000, false));
}

#[test]
fn a_client_of_the_new_homes_node_asks_for_the_coordinator_all_the_same() {
    let mut rig = moving(Target);
    join(&mut rig, "");
    // It has no session at the old home: nothing is to be kept alive, and nothing to be left.
    assert!(rig.sent().is_empty());
    moved(&mut rig);
    let lookup = rig.one();
    look_up(&mut rig, &lookup, 0);
    let joined = rig.one();
    assert_eq!((joined.api_key, joined.node), (key::JOIN_GROUP, rig.node()));
    // Its own broker is the coordinator, which is not ready: the client has not chosen it, so this is not for it to know.
    error(&mut rig, &joined, code::COORDINATOR_LOAD_IN_PROGRESS);
    assert_eq!(told(&mut rig), None);
    rig.pass(100);
    let lookup = rig.one();
    look_up(&mut rig, &lookup, 0);
    let joined = rig.one();
    accept(&mut rig, &joined);
    assert_eq!(told(&mut rig), Some(code::NONE));
}

#[test]
fn r29_a_coordinator_that_has_moved_is_looked_for_until_patience_ends() {
    for error_code in
        [code::NOT_COORDINATOR, code::COORDINATOR_NOT_AVAILABLE, code::COORDINATOR_LOAD_IN_PROGRESS]
    {
        let (mut rig, joined) = spliced();
        error(&mut rig, &joined, error_code);
        assert!(rig.sent().is_empty() && rig.reply().is_none());
        rig.pass(100);
        let lookup = rig.one();
        look_up(&mut rig, &lookup, 0);
        let joined = rig.one();
        assert_eq!((joined.node.side, joined.node.broker), (Target, 0));
        rig.pass(5_000);
        error(&mut rig, &joined, error_code);
        assert_eq!(told(&mut rig), Some(error_code));
        assert!(!rig.shared.groups.is_spliced("g", MEMBER, GENERATION), "it has its answer");
    }
}

#[test]
fn r29_at_the_clients_own_node_the_broker_says_who_the_coordinator_is() {
    let mut rig = Rig::new(Source, 0);
    join(&mut rig, MEMBER);
    let joined = rig.one();
    assert_eq!((joined.api_key, joined.node), (key::JOIN_GROUP, rig.node()));
    error(&mut rig, &joined, code::NOT_COORDINATOR);
    assert_eq!(told(&mut rig), Some(code::NOT_COORDINATOR));
    join(&mut rig, "");
    let joined = rig.one();
    rig.answer(&joined, |body| {
        body.set("ErrorCode", code::MEMBER_ID_REQUIRED);
        body.set("MemberId", "its-id");
    });
    assert_eq!(told(&mut rig), Some(code::MEMBER_ID_REQUIRED), "the client joins again by itself");
    assert!(rig.sent().is_empty());
    join(&mut rig, "its-id");
    let joined = rig.one();
    rig.lose(&joined);
    assert!(rig.closed.is_some());
}

#[test]
fn a_member_that_its_coordinator_does_not_know_is_not_waited_for() {
    let mut rig = Rig::new(Source, 0);
    rig.shared.groups.alive("g", MEMBER, GENERATION, None, rig.now_ms);
    join(&mut rig, MEMBER);
    let joined = rig.one();
    error(&mut rig, &joined, code::UNKNOWN_MEMBER_ID);
    assert_eq!(told(&mut rig), Some(code::UNKNOWN_MEMBER_ID));
    assert!(rig.shared.groups.member("g", MEMBER).is_none());
}

#[test]
fn a_static_member_that_joins_anew_takes_the_place_of_the_one_before() {
    let mut rig = Rig::new(Source, 0);
    rig.shared.groups.alive("g", MEMBER, GENERATION, None, rig.now_ms);
    rig.shared.groups.stands_for("g", "instance", MEMBER);
    join(&mut rig, "");
    let joined = rig.one();
    accept(&mut rig, &joined);
    assert_eq!(told(&mut rig), Some(code::NONE));
    assert!(rig.shared.groups.member("g", MEMBER).is_none());
}

#[test]
fn a_client_that_goes_while_it_is_parked_is_not_waited_for() {
    let mut rig = moving(Source);
    join(&mut rig, MEMBER);
    rig.handle(Event::ClientGone);
    assert!(rig.shared.groups.member("g", MEMBER).is_none());
    // One that is asked for at its new home has gone from there, too.
    let (mut rig, _) = spliced();
    rig.handle(Event::ClientGone);
    assert!(!rig.shared.groups.is_spliced("g", MEMBER, GENERATION));
    // Its coordinator finds out about any other.
    let mut rig = Rig::new(Source, 0);
    rig.shared.groups.alive("g", MEMBER, GENERATION, None, rig.now_ms);
    join(&mut rig, MEMBER);
    rig.handle(Event::ClientGone);
    assert!(rig.shared.groups.member("g", MEMBER).is_some());
}

#[test]
fn a_coordinator_that_is_not_found_is_looked_for_again_and_not_for_ever() {
    let (mut rig, joined) = spliced();
    error(&mut rig, &joined, code::NOT_COORDINATOR);
    rig.pass(100);
    let lookup = rig.one();
    error(&mut rig, &lookup, code::COORDINATOR_NOT_AVAILABLE);
    assert!(rig.sent().is_empty());
    rig.pass(100);
    let lookup = rig.one();
    assert_eq!(lookup.api_key, key::FIND_COORDINATOR);
    // One is under way: a second one would join twice.
    rig.handle(Event::Wake);
    assert!(rig.sent().is_empty());
    rig.pass(5_000);
    assert_eq!(told(&mut rig), Some(code::COORDINATOR_LOAD_IN_PROGRESS));
}

#[test]
fn a_member_that_is_answered_for_want_of_a_coordinator_is_told_its_own_name() {
    let mut rig = Rig::new(Source, 0);
    rig.move_home("g", Target);
    join(&mut rig, MEMBER);
    rig.pass(5_000);
    let reply = rig.reply().expect("patience is over");
    assert_eq!(reply.i16("ErrorCode"), code::COORDINATOR_LOAD_IN_PROGRESS);
    assert_eq!((reply.str("MemberId"), reply.str("ProtocolName")), (MEMBER, ""));
}

#[test]
fn a_member_is_joined_once_however_many_ways_its_coordinator_is_found() {
    let mut rig = Rig::new(Source, 0);
    rig.move_home("g", Target);
    // Two requests of one connection look for it, each by itself.
    join(&mut rig, MEMBER);
    join(&mut rig, "another");
    let lookups = rig.sent();
    assert_eq!(lookups.len(), 2);
    look_up(&mut rig, &lookups[0], COORDINATOR);
    assert_eq!(rig.one().body.str("MemberId"), MEMBER);
    // The second one is woken, and goes where the first was told; then its own lookup is answered, too.
    rig.handle(Event::Wake);
    assert_eq!(rig.one().body.str("MemberId"), "another");
    look_up(&mut rig, &lookups[1], COORDINATOR);
    assert!(rig.sent().is_empty(), "it has joined already");
}

#[test]
fn while_it_is_parked_a_member_is_kept_alive_wherever_its_old_coordinator_is() {
    // A client of the target's node: the old home's coordinator is to be looked for.
    let mut rig = moving(Target);
    join(&mut rig, MEMBER);
    let lookup = rig.one();
    assert_eq!((lookup.api_key, lookup.node.side), (key::FIND_COORDINATOR, Source));
    rig.answer(&lookup, |body| body.set("NodeId", COORDINATOR));
    assert!(rig.sent().is_empty(), "it is parked until the move is over");
    rig.pass(KEEP_ALIVE_MS);
    let alive = rig.one();
    assert_eq!((alive.api_key, alive.node.side, alive.node.broker), (key::HEARTBEAT, Source, COORDINATOR));
    assert_eq!(alive.body.str("MemberId"), MEMBER);
}

#[test]
fn a_rebalance_that_takes_long_keeps_no_connection_busy() {
    let (mut rig, joined) = spliced();
    // Others join, and every new snapshot wakes all.
    for _ in 0..30 {
        rig.pass(1_000);
        rig.handle(Event::Wake);
    }
    assert_eq!(rig.session.next_deadline_ms(), None);
    accept(&mut rig, &joined);
    assert_eq!(told(&mut rig), Some(code::NONE));
}
