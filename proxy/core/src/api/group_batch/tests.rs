use crate::api::key;
use crate::route::GroupTable;
use crate::schema::{Struct, Value};
use crate::session::testing::{Rig, Sent, Source, TOPIC, Target};
use crate::session::{Errand, ErrandDone};
use std::collections::BTreeMap;
use std::sync::Arc;

/// A client of the source; the groups `t1` and `t2` are at home on the target.
fn rig() -> Rig {
    let mut rig = Rig::new(Source, 0);
    let homes = BTreeMap::from(["t1", "t2"].map(|g| (Arc::from(g), Target)));
    rig.snapshot.groups = Arc::new(GroupTable { homes, ..GroupTable::default() });
    rig
}

fn names(request: &Struct, field: &str) -> Vec<String> {
    request.strs(field).map(str::to_owned).collect()
}

fn ask(rig: &mut Rig, api: i16, version: i16, field: &str, groups: &[&str]) -> Vec<Sent> {
    let groups: Vec<Value> = groups.iter().map(|g| Value::from(*g)).collect();
    rig.ask(api, version, |body| body.set(field, groups));
    rig.sent()
}

/// The coordinator of every group is broker 1.
fn found(rig: &mut Rig, sent: &Sent) -> Vec<Sent> {
    assert_eq!(sent.api_key, key::FIND_COORDINATOR);
    rig.answer(sent, |body| body.set("NodeId", 1));
    rig.sent()
}

fn answer(rig: &mut Rig, sent: &Sent, request: &str, results: &str, error: i16) {
    let groups = names(&sent.body, request);
    rig.answer(sent, |body| {
        for group in groups {
            let mut row = body.new_element(results);
            row.set("GroupId", group);
            row.set("ErrorCode", error);
            body.push(results, row);
        }
    });
}

fn reply(rig: &mut Rig, results: &str) -> Vec<(String, i16)> {
    let reply = rig.reply().expect("answered");
    reply.structs(results).map(|g| (g.str("GroupId").to_owned(), g.i16("ErrorCode"))).collect()
}

fn row(group: &str, error: i16) -> (String, i16) {
    (group.to_owned(), error)
}

#[test]
fn r27_groups_of_different_homes_are_described_at_their_homes() {
    for version in 0..=6 {
        let mut rig = rig();
        let sent = ask(&mut rig, key::DESCRIBE_GROUPS, version, "Groups", &["t1", "s1", "t2", "s2"]);
        let own: Vec<_> = sent.iter().filter(|s| s.api_key == key::DESCRIBE_GROUPS).collect();
        assert_eq!((own.len(), own[0].node.side), (1, Source));
        assert_eq!(names(&own[0].body, "Groups"), ["s1", "s2"]);
        let mut others = Vec::new();
        for lookup in sent.iter().filter(|s| s.api_key == key::FIND_COORDINATOR) {
            assert_eq!(lookup.node.side, Target);
            others.extend(found(&mut rig, lookup));
        }
        let asked: Vec<_> =
            others.iter().map(|s| (s.node.side, s.node.broker, names(&s.body, "Groups"))).collect();
        let group = |g: &str| vec![g.to_owned()];
        assert_eq!(asked, [(Target, 1, group("t1")), (Target, 1, group("t2"))]);
        answer(&mut rig, own[0], "Groups", "Groups", 0);
        assert!(rig.reply().is_none());
        others.iter().for_each(|sent| answer(&mut rig, sent, "Groups", "Groups", 0));
        assert_eq!(reply(&mut rig, "Groups"), [row("t1", 0), row("s1", 0), row("t2", 0), row("s2", 0)]);
    }
}

#[test]
fn r27_a_coordinator_that_has_moved_is_looked_up_again() {
    let mut rig = rig();
    let sent = ask(&mut rig, key::DESCRIBE_GROUPS, 5, "Groups", &["t1"]);
    let sent = found(&mut rig, &sent[0]);
    answer(&mut rig, &sent[0], "Groups", "Groups", 16);
    assert!(rig.reply().is_none() && rig.sent().is_empty());
    rig.pass(100);
    let lookup = rig.one();
    let sent = found(&mut rig, &lookup);
    answer(&mut rig, &sent[0], "Groups", "Groups", 0);
    assert_eq!(reply(&mut rig, "Groups"), [row("t1", 0)]);
}

/// Deletes the groups `t1` and `s1`; their homes answer with `errors`, the errands end with `copies`.
fn delete(errors: [i16; 2], copies: [Option<ErrandDone>; 2]) -> Vec<(String, i16)> {
    let mut rig = rig();
    let sent = ask(&mut rig, key::DELETE_GROUPS, 2, "GroupsNames", &["t1", "s1"]);
    let [own, lookup] = &sent[..] else { panic!("{sent:?}") };
    let other = found(&mut rig, lookup);
    answer(&mut rig, &other[0], "GroupsNames", "Results", errors[0]);
    assert!(rig.errand().is_none(), "the copies come last");
    answer(&mut rig, own, "GroupsNames", "Results", errors[1]);
    let mut told = Vec::new();
    while let Some(errand) = rig.errand() {
        told.push(errand);
    }
    assert_eq!(told.len(), copies.iter().flatten().count());
    let wanted = ["t1", "s1"].into_iter().zip(copies).filter_map(|(g, done)| Some((g, done?)));
    for ((ticket, errand), (group, done)) in told.into_iter().zip(wanted) {
        assert_eq!(errand, Errand::ForgetCommits { group: Arc::from(group), partitions: None });
        assert!(rig.reply().is_none(), "not before the copies are gone");
        rig.run_errand((ticket, errand), done);
    }
    reply(&mut rig, "Results")
}

#[test]
fn r27_deleting_a_group_deletes_its_copies_too() {
    assert_eq!(delete([0, 0], [Some(Ok(true)), Some(Ok(false))]), [row("t1", 0), row("s1", 0)]);
}

#[test]
fn r27_a_copy_that_stays_is_a_retriable_error_and_a_repetition_deletes_it() {
    let down = || Some(Err("the source cannot be reached".to_owned()));
    assert_eq!(delete([0, 0], [down(), Some(Ok(true))]), [row("t1", 15), row("s1", 0)]);
    // The home does not know it any more.
    assert_eq!(delete([69, 0], [Some(Ok(true)), Some(Ok(true))]), [row("t1", 0), row("s1", 0)]);
    // Nobody ever knew it.
    assert_eq!(delete([69, 0], [Some(Ok(false)), Some(Ok(true))]), [row("t1", 69), row("s1", 0)]);
}

#[test]
fn r27_a_group_that_its_home_keeps_keeps_its_copies() {
    // NON_EMPTY_GROUP.
    assert_eq!(delete([68, 0], [None, Some(Ok(true))]), [row("t1", 68), row("s1", 0)]);
}

/// Deletes the commits of partitions 0 and 1; the home refuses partition 1.
fn delete_offsets(done: ErrandDone) -> (i16, Vec<i64>) {
    let mut rig = rig();
    rig.ask(key::OFFSET_DELETE, 0, |body| {
        body.set("GroupId", "s1");
        let mut topic = body.new_element("Topics");
        topic.set("Name", TOPIC);
        for index in 0..2 {
            let mut partition = topic.new_element("Partitions");
            partition.set("PartitionIndex", index);
            topic.push("Partitions", partition);
        }
        body.push("Topics", topic);
    });
    let sent = rig.one();
    assert_eq!(sent.node.side, Source);
    rig.answer(&sent, |body| {
        let mut topic = body.new_element("Topics");
        topic.set("Name", TOPIC);
        for index in 0..2_i16 {
            let mut partition = topic.new_element("Partitions");
            partition.set("PartitionIndex", i32::from(index));
            // GROUP_SUBSCRIBED_TO_TOPIC
            partition.set("ErrorCode", 86 * index);
            topic.push("Partitions", partition);
        }
        body.push("Topics", topic);
    });
    assert!(rig.reply().is_none(), "not before the copies are gone");
    let errand = rig.errand().expect("the copies are to go");
    let partitions = Some(vec![(Arc::from(TOPIC), 0)]);
    assert_eq!(errand.1, Errand::ForgetCommits { group: Arc::from("s1"), partitions });
    rig.run_errand(errand, done);
    let reply = rig.reply().expect("answered");
    let partitions = reply.structs("Topics").flat_map(|t| t.structs("Partitions"));
    (reply.i16("ErrorCode"), partitions.map(|p| i64::from(p.i16("ErrorCode"))).collect())
}

#[test]
fn r27_deleting_commits_deletes_their_copies_too() {
    assert_eq!(delete_offsets(Ok(true)), (0, vec![0, 86]));
    assert_eq!(delete_offsets(Err("the target cannot be reached".to_owned())), (15, vec![]));
}

#[test]
fn a_group_that_is_named_again_is_asked_about_once_and_told_of_each_time() {
    let mut rig = rig();
    let sent = ask(&mut rig, key::DESCRIBE_GROUPS, 4, "Groups", &["t1", "s", "t1", "s"]);
    assert_eq!(sent.len(), 2, "a lookup and a request");
    let (lookup, own) = if sent[0].api_key == key::FIND_COORDINATOR { (0, 1) } else { (1, 0) };
    assert_eq!(names(&sent[own].body, "Groups"), ["s"]);
    let others = found(&mut rig, &sent[lookup]);
    answer(&mut rig, &sent[own], "Groups", "Groups", 7);
    answer(&mut rig, &others[0], "Groups", "Groups", 8);
    let reply = rig.reply().expect("answered");
    let rows: Vec<_> = reply.structs("Groups").map(|g| (g.str("GroupId"), g.i16("ErrorCode"))).collect();
    assert_eq!(rows, [("t1", 8), ("s", 7), ("t1", 8), ("s", 7)]);
}
