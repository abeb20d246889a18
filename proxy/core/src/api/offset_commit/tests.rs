use super::*;
use crate::ids::TopicId;
use crate::node::Topology;
use crate::route::{GroupTable, LinkMode, RouteRule, RouteRules, RuleMatch};
use crate::session::testing::{Rig, Sent, Source, TOPIC, Target};
use std::collections::HashMap;

#[test]
fn commits_go_out_physical_and_come_back_virtual_and_unknown_topics_stay_here() {
    let physical = [Some(Arc::from("old")), Some(Arc::from("new"))];
    let matches = RuleMatch::Exact(Arc::from("t"));
    let rule = RouteRule { matches, side: Source, mode: LinkMode::Continue, physical };
    let rules = RouteRules { default_side: Source, rules: vec![rule] };
    let topologies = ClusterSide::BOTH.map(|s| Arc::new(Topology::unknown(s)));
    let name: Arc<str> = Arc::from("t");
    let route = Arc::new(rules.initial_route(&name, &topologies));
    let topics = HashMap::from([(name, route)]);
    let virtual_names = [HashMap::new(), HashMap::new()];
    let routes = RouteTable { rules: Arc::new(rules), topics, names: HashMap::new(), virtual_names };
    let mut request = Struct::new(schema::request(key::OFFSET_COMMIT).unwrap().fields);
    for name in ["t", "unknown"] {
        let mut topic = request.new_element("Topics");
        topic.set("Name", name);
        let mut partition = topic.new_element("Partitions");
        partition.set("CommittedOffset", 7_i64);
        partition.set("CommittedMetadata", "mine");
        topic.push("Partitions", partition);
        request.push("Topics", topic);
    }
    let plan = to_home(&routes, Source, &mut request, false);
    let sent = request.structs("Topics").next().unwrap();
    assert_eq!((request.array("Topics").len(), sent.str("Name")), (1, "old"));
    assert_eq!(plan.refused[0].as_struct().unwrap().str("Name"), "unknown");
    let mut response = Struct::new(schema::response(key::OFFSET_COMMIT).unwrap().fields);
    let mut topic = response.new_element("Topics");
    topic.set("Name", "old");
    let partition = topic.new_element("Partitions");
    topic.push("Partitions", partition);
    response.push("Topics", topic);
    let mirrors = from_home(&plan, Source, &mut response, false);
    assert_eq!(response.structs("Topics").next().unwrap().str("Name"), "t");
    assert_eq!((mirrors[0].0.position, mirrors[0].0.metadata.as_str()), (7, "mine"));
}

#[test]
fn r28_a_tools_commit_is_refused_while_its_group_is_being_moved() {
    let commit = |rig: &mut Rig, generation: i32| {
        rig.ask(key::OFFSET_COMMIT, 7, |body| {
            body.set("GroupId", "g");
            body.set("GenerationIdOrMemberEpoch", generation);
            let mut topic = body.new_element("Topics");
            let mut partition = topic.new_element("Partitions");
            partition.set("CommittedOffset", 7_i64);
            topic.set("Name", TOPIC);
            topic.push("Partitions", partition);
            body.push("Topics", topic);
        });
    };
    let mut settled = Rig::new(Source, 0);
    commit(&mut settled, -1);
    assert_eq!(settled.one().node.side, Source);
    let mut rig = Rig::new(Source, 0);
    let moving = [(Arc::from("g"), Target)].into();
    rig.snapshot.groups = Arc::new(GroupTable { moving, ..GroupTable::default() });
    commit(&mut rig, -1);
    assert!(rig.sent().is_empty());
    // A member's own commit, before it comes to the rebalance, still goes to the old home.
    commit(&mut rig, 3);
    assert_eq!(rig.one().node.side, Source);
}

#[test]
fn r28_a_tools_commit_is_answered_when_it_stands_on_both_sides() {
    let answered = |generation: i32| {
        let mut rig = Rig::new(Source, 0);
        let topics = |body: &mut Struct, offset: Option<i64>| {
            let mut topic = body.new_element("Topics");
            let mut partition = topic.new_element("Partitions");
            if let Some(offset) = offset {
                partition.set("CommittedOffset", offset);
            }
            topic.set("Name", TOPIC);
            topic.push("Partitions", partition);
            body.push("Topics", topic);
        };
        rig.ask(key::OFFSET_COMMIT, 7, |body| {
            body.set("GroupId", "g");
            body.set("GenerationIdOrMemberEpoch", generation);
            topics(body, Some(7));
        });
        let sent = rig.one();
        rig.answer(&sent, |body| topics(body, None));
        rig
    };
    assert!(answered(3).reply().is_some(), "a member's commit follows within a second");
    let mut rig = answered(-1);
    assert!(rig.reply().is_none(), "answered before the other side has it");
    let errand = rig.errand().unwrap();
    let Errand::MirrorCommits(commits) = &errand.1 else { panic!("{:?}", errand.1) };
    assert_eq!((commits.len(), commits[0].position), (1, 7));
    rig.run_errand(errand, Err("the other side is down".to_owned()));
    assert!(rig.reply().is_some());
}

/// A commit of partition 0 of the topic and of others, by whatever they go.
fn ask(rig: &mut Rig, version: i16, others: &[&str]) {
    let by_id = version >= 10;
    rig.ask(key::OFFSET_COMMIT, version, |body| {
        body.set("GroupId", "g");
        body.set("GenerationIdOrMemberEpoch", 3);
        for name in [TOPIC].iter().chain(others) {
            let mut topic = body.new_element("Topics");
            match by_id {
                true => topic.set("TopicId", id_of(name)),
                false => topic.set("Name", *name),
            }
            let mut partition = topic.new_element("Partitions");
            partition.set("CommittedOffset", 107_i64);
            partition.set("CommittedLeaderEpoch", 2);
            partition.set("CommittedMetadata", "mine");
            topic.push("Partitions", partition);
            body.push("Topics", topic);
        }
    });
}

/// As clients know the one topic: by the id of the side that had it first.
fn id_of(name: &str) -> TopicId {
    TopicId([if name == TOPIC { 1 } else { 9 }; 16])
}

fn told(reply: &Struct, by_id: bool) -> Vec<(String, i16)> {
    let name = |topic: &Struct| match by_id {
        true => format!("{:?}", TopicId(topic.uuid("TopicId"))),
        false => topic.str("Name").to_owned(),
    };
    let rows = reply.structs("Topics").flat_map(|topic| {
        let errors = topic.structs("Partitions").map(|p| p.i16("ErrorCode")).collect::<Vec<_>>();
        errors.into_iter().map(move |error| (name(topic), error))
    });
    rows.collect()
}

#[test]
fn r27_positions_go_home_in_its_own_numbers_and_topics_in_its_own_names_and_ids() {
    for version in [9, 10] {
        let by_id = version >= 10;
        let mut rig = Rig::new(Target, 0);
        rig.flip(Target, 100, 40);
        rig.move_home("g", Target);
        ask(&mut rig, version, &["unknown"]);
        let sent = rig.one();
        assert_eq!((sent.node.side, sent.version), (Target, version));
        let topics: Vec<&Struct> = sent.body.structs("Topics").collect();
        assert_eq!(topics.len(), 1, "no broker is asked about the unknown one");
        let partition = topics[0].structs("Partitions").next().unwrap();
        let (offset, epoch) = (partition.i64("CommittedOffset"), partition.i32("CommittedLeaderEpoch"));
        assert_eq!((offset, epoch, partition.str("CommittedMetadata")), (47, -1, "mine"));
        if by_id {
            assert_eq!(topics[0].uuid("TopicId"), [2; 16]);
        }
        rig.answer(&sent, |body| {
            let mut topic = body.new_element("Topics");
            if by_id {
                topic.set("TopicId", TopicId([2; 16]));
            } else {
                topic.set("Name", TOPIC);
            }
            let partition = topic.new_element("Partitions");
            topic.push("Partitions", partition);
            body.push("Topics", topic);
        });
        let reply = rig.reply().expect("a member is answered at once");
        let name = |name: &str| if by_id { format!("{:?}", id_of(name)) } else { name.to_owned() };
        let error = if by_id { code::UNKNOWN_TOPIC_ID } else { code::UNKNOWN_TOPIC_OR_PARTITION };
        assert_eq!(told(&reply, by_id), [(name(TOPIC), code::NONE), (name("unknown"), error)]);
        assert_ne!(rig.node().side, Source);
    }
}

#[test]
fn a_commit_of_nothing_that_is_known_is_refused_here_and_an_empty_one_is_the_brokers() {
    for version in [9, 10] {
        let mut rig = Rig::new(Source, 0);
        rig.snapshot.routes = Arc::new({
            let mut routes = (*rig.snapshot.routes).clone();
            routes.topics.clear();
            routes.names.clear();
            routes
        });
        ask(&mut rig, version, &["unknown"]);
        assert!(rig.sent().is_empty());
        let by_id = version >= 10;
        let reply = rig.reply().expect("it is answered here");
        let name = |name: &str| if by_id { format!("{:?}", id_of(name)) } else { name.to_owned() };
        let error = if by_id { code::UNKNOWN_TOPIC_ID } else { code::UNKNOWN_TOPIC_OR_PARTITION };
        assert_eq!(told(&reply, by_id), [(name(TOPIC), error), (name("unknown"), error)]);
    }
    let mut rig = Rig::new(Source, 0);
    rig.ask(key::OFFSET_COMMIT, 9, |body| body.set("GroupId", "g"));
    assert_eq!(rig.one().api_key, key::OFFSET_COMMIT);
    // Another process has the state by now: it must not be written beside it.
    let mut rig = Rig::new(Source, 0);
    rig.snapshot.taken_over = true;
    ask(&mut rig, 9, &[]);
    assert!(rig.sent().is_empty());
    let reply = rig.reply().expect("it is answered here");
    assert_eq!(told(&reply, false), [(TOPIC.to_owned(), code::COORDINATOR_NOT_AVAILABLE)]);
}

#[test]
fn r28_only_what_the_home_has_accepted_is_copied_and_can_fail_to_be() {
    let mut rig = Rig::new(Source, 0);
    let offset_homes = [(Arc::from("g"), Target)].into();
    rig.snapshot.groups = Arc::new(GroupTable { offset_homes, ..GroupTable::default() });
    let topics = |body: &mut Struct, rows: [(i32, i16); 2]| {
        let mut topic = body.new_element("Topics");
        topic.set("Name", TOPIC);
        for (index, error) in rows {
            let mut partition = topic.new_element("Partitions");
            partition.set("PartitionIndex", index);
            if partition.has("ErrorCode") {
                partition.set("ErrorCode", error);
            }
            topic.push("Partitions", partition);
        }
        body.push("Topics", topic);
    };
    rig.ask(key::OFFSET_COMMIT, 7, |body| {
        body.set("GroupId", "g");
        body.set("GenerationIdOrMemberEpoch", 3);
        topics(body, [(0, 0), (1, 0)]);
    });
    let sent = rig.one();
    let rows = [(0, code::ILLEGAL_GENERATION), (1, code::NONE)];
    rig.answer(&sent, |body| topics(body, rows));
    let errand = rig.errand().expect("commits are read at the other side");
    let Errand::MirrorCommits(commits) = &errand.1 else { panic!("{:?}", errand.1) };
    assert_eq!(commits.iter().map(|commit| commit.partition).collect::<Vec<_>>(), [1]);
    rig.run_errand(errand, Ok(false));
    let reply = rig.reply().expect("answered");
    let errors: Vec<i16> = told(&reply, false).into_iter().map(|(_, error)| error).collect();
    assert_eq!(errors, [code::ILLEGAL_GENERATION, code::COORDINATOR_NOT_AVAILABLE]);
    // What was refused is copied nowhere, and nothing is waited for.
    rig.ask(key::OFFSET_COMMIT, 7, |body| {
        body.set("GroupId", "g");
        topics(body, [(0, 0), (1, 0)]);
    });
    let sent = rig.one();
    rig.answer(&sent, |body| topics(body, [(0, code::ILLEGAL_GENERATION), (1, code::ILLEGAL_GENERATION)]));
    assert!(rig.reply().is_some() && rig.errand().is_none());
}

#[test]
fn r27_a_position_in_a_partition_that_nobody_knows_is_stored_nowhere_nor_are_those_beside_it() {
    let mut rig = Rig::new(Source, 0);
    rig.flip(Target, 100, 40);
    rig.ask(key::OFFSET_COMMIT, 7, |body| {
        body.set("GroupId", "g");
        body.set("GenerationIdOrMemberEpoch", 3);
        let mut topic = body.new_element("Topics");
        topic.set("Name", TOPIC);
        for index in [0, 7] {
            let mut partition = topic.new_element("Partitions");
            partition.set("PartitionIndex", index);
            topic.push("Partitions", partition);
        }
        body.push("Topics", topic);
    });
    assert!(rig.sent().is_empty(), "it could not be told in virtual terms");
    let reply = rig.reply().expect("answered here");
    let refused = (TOPIC.to_owned(), code::UNKNOWN_TOPIC_OR_PARTITION);
    assert_eq!(told(&reply, false), [refused.clone(), refused]);
    let partitions = reply.structs("Topics").flat_map(|topic| topic.structs("Partitions"));
    assert_eq!(partitions.map(|p| p.i32("PartitionIndex")).collect::<Vec<_>>(), [0, 7]);
}

/// A client commits again and again without waiting. What was committed first must not come to stand behind what follows.
#[test]
fn r28_a_commit_that_a_later_one_has_overtaken_is_not_sent() {
    let mut rig = Rig::new(Source, 0);
    rig.move_home("g", Target);
    let errors = |rig: &mut Rig| rig.reply().map(|reply| told(&reply, false));
    let answered = |error| Some(vec![(TOPIC.to_owned(), error)]);
    ask(&mut rig, 7, &[]);
    ask(&mut rig, 7, &[]);
    let lookups = rig.sent();
    assert_eq!(lookups.iter().map(|lookup| lookup.api_key).collect::<Vec<_>>(), [key::FIND_COORDINATOR; 2]);
    rig.answer(&lookups[0], |body| body.set("ErrorCode", code::COORDINATOR_NOT_AVAILABLE));
    rig.answer(&lookups[1], |body| body.set("NodeId", 1));
    let second = rig.one();
    accept(&mut rig, &second);
    rig.pass(200);
    assert!(rig.sent().is_empty(), "the first one has come too late");
    assert_eq!(errors(&mut rig), answered(code::COORDINATOR_NOT_AVAILABLE));
    assert_eq!(errors(&mut rig), answered(code::NONE));

    // Lost together, the last one alone is sent again.
    ask(&mut rig, 7, &[]);
    ask(&mut rig, 7, &[]);
    let sent = rig.sent();
    assert_eq!(sent.len(), 2);
    rig.lose(&sent[1]);
    rig.pass(200);
    for lookup in rig.sent() {
        rig.answer(&lookup, |body| body.set("NodeId", 1));
    }
    let again = rig.sent();
    accept(&mut rig, again.last().expect("the last one"));
    assert_eq!((again.len(), errors(&mut rig)), (1, answered(code::COORDINATOR_NOT_AVAILABLE)));
    assert_eq!(errors(&mut rig), answered(code::NONE));
}

fn accept(rig: &mut Rig, commit: &Sent) {
    assert_eq!(commit.api_key, key::OFFSET_COMMIT);
    rig.answer(commit, |body| {
        let mut topic = body.new_element("Topics");
        topic.set("Name", TOPIC);
        let partition = topic.new_element("Partitions");
        topic.push("Partitions", partition);
        body.push("Topics", topic);
    });
}

fn moving(rig: &mut Rig) {
    let moving = [(Arc::from("g"), Target)].into();
    rig.snapshot.groups = Arc::new(GroupTable { moving, ..GroupTable::default() });
}

/// `commitAsync(); poll();` while the group is moved: the JoinGroup waits here, and comes before the commit that was sent.
#[test]
fn r28_a_commit_that_is_under_way_is_waited_for_before_the_groups_commits_are_copied() {
    let mut rig = Rig::new(Source, 0);
    rig.shared.groups.alive("g", "m", 3, Some(10_000), rig.now_ms);
    ask(&mut rig, 7, &[]);
    let under_way = rig.one();
    moving(&mut rig);
    assert!(rig.shared.groups.has_sent_commits("g"));
    rig.shared.groups.close_commits(&Arc::from("g"));
    ask(&mut rig, 7, &[]);
    rig.pass(100);
    assert!(rig.sent().is_empty(), "nobody would copy it");
    accept(&mut rig, &under_way);
    assert!(!rig.shared.groups.has_sent_commits("g"));
    assert_eq!(rig.reply().map(|reply| told(&reply, false)[0].1), Some(code::NONE));
    // Aborted: it goes where it was to go.
    rig.shared.groups.open_commits("g");
    rig.pass(100);
    assert_eq!(rig.one().node.side, Source);
}

#[test]
fn r28_a_members_commit_that_waited_for_the_move_is_told_of_a_rebalance() {
    let mut rig = Rig::new(Source, 0);
    rig.shared.groups.alive("g", "", 3, Some(10_000), rig.now_ms);
    rig.shared.groups.alive("g", "m", 3, Some(10_000), rig.now_ms);
    let told = |rig: &mut Rig| rig.reply().map(|reply| told(&reply, false)[0].1);
    let commit = |rig: &mut Rig, member: &str| {
        rig.ask(key::OFFSET_COMMIT, 7, |body| {
            body.set("GroupId", "g");
            body.set("MemberId", member);
            body.set("GenerationIdOrMemberEpoch", 3);
            let mut topic = body.new_element("Topics");
            topic.set("Name", TOPIC);
            let partition = topic.new_element("Partitions");
            topic.push("Partitions", partition);
            body.push("Topics", topic);
        });
    };
    moving(&mut rig);
    rig.shared.groups.close_commits(&Arc::from("g"));
    commit(&mut rig, "m");
    rig.move_home("g", Target);
    rig.shared.groups.open_commits("g");
    rig.pass(100);
    assert_eq!((told(&mut rig), rig.sent().len()), (Some(code::REBALANCE_IN_PROGRESS), 0));
    // On its way to the new home it has its generation of the old one.
    rig.shared.groups.splice("g", "m");
    commit(&mut rig, "m");
    assert_eq!((told(&mut rig), rig.sent().len()), (Some(code::REBALANCE_IN_PROGRESS), 0));
    // Of whom nobody knows here, the new home judges.
    commit(&mut rig, "somebody");
    assert_eq!(rig.sent().len(), 1);
}

#[test]
fn r28_a_commit_does_not_wait_for_longer_than_the_bound() {
    let mut rig = Rig::new(Source, 0);
    rig.shared.groups.close_commits(&Arc::from("g"));
    ask(&mut rig, 7, &[]);
    rig.pass(4_900);
    assert!(rig.reply().is_none());
    rig.pass(200);
    assert_eq!(rig.reply().map(|reply| told(&reply, false)[0].1), Some(code::COORDINATOR_NOT_AVAILABLE));
}

/// Whoever may commit may commit much: the other connections of its thread wait meanwhile.
#[test]
fn a_commit_of_very_many_partitions_is_answered_at_once() {
    const MANY: i32 = 100_000;
    let (name, group) = (Arc::<str>::from(TOPIC), Arc::<str>::from("g"));
    let route = Rig::new(Source, 0).snapshot.routes.topic(TOPIC).cloned().unwrap();
    let mut plan = Plan { routes: vec![route], ..Plan::default() };
    let mut response = Struct::new(schema::response(key::OFFSET_COMMIT).unwrap().fields);
    let mut topic = response.new_element("Topics");
    topic.set("Name", TOPIC);
    for index in 0..MANY {
        let (group, topic_name) = (Arc::clone(&group), Arc::clone(&name));
        let metadata = String::new();
        let commit =
            CommitMirror { group, topic: topic_name, partition: index, position: i64::from(index), metadata };
        plan.commits.insert((Arc::clone(&name), index), (commit, false));
        let mut partition = topic.new_element("Partitions");
        partition.set("PartitionIndex", index);
        topic.push("Partitions", partition);
    }
    response.push("Topics", topic);
    let began = std::time::Instant::now();
    let accepted = from_home(&plan, Source, &mut response, false);
    assert!(began.elapsed().as_secs() < 20, "{:?}", began.elapsed());
    let all = accepted.iter().enumerate();
    assert!(accepted.len() == 100_000 && all.into_iter().all(|(index, (c, _))| c.position == index as i64));
}
