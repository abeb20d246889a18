use super::super::key;
use super::*;
use crate::route::{GroupTable, RouteTable};
use crate::session::testing::{Rig, Sent, Source, TOPIC, Target, only};

/// As clients know the topic, and as the target does.
const VIRTUAL_ID: TopicId = TopicId([1; 16]);
const TARGET_ID: TopicId = TopicId([2; 16]);

/// A client at the target's node, with topic and group at the target.
fn flipped() -> Rig {
    let mut rig = Rig::new(Target, 0);
    rig.flip(Target, 100, 40);
    rig.move_home("g", Target);
    rig
}

/// Gives the topic another name at the target.
fn rename(rig: &mut Rig, name: &str) {
    let mut routes: RouteTable = (*rig.snapshot.routes).clone();
    let mut route = (**routes.topic(TOPIC).unwrap()).clone();
    route.physical[Target.index()] = Arc::from(name);
    routes.virtual_names[Target.index()].insert(Arc::from(name), Arc::clone(&route.name));
    routes.topics.insert(Arc::clone(&route.name), Arc::new(route));
    rig.snapshot.routes = Arc::new(routes);
}

fn committed(element: &mut Struct, offset: i64, metadata: &str) {
    element.set("CommittedOffset", offset);
    element.set("CommittedLeaderEpoch", 3);
    element.set("Metadata", metadata);
}

/// Asks for a group's commit of the topic and of one without a route, with as many names as the version has.
fn ask_group(rig: &mut Rig, version: i16, group: &str) {
    rig.ask(key::OFFSET_FETCH, version, |body| {
        let mut element = body.new_element("Groups");
        element.set("GroupId", group);
        element.set("MemberId", "m");
        element.set("MemberEpoch", 7);
        for (name, id) in [(TOPIC, VIRTUAL_ID), ("unknown", TopicId([9; 16]))] {
            let mut topic = element.new_element("Topics");
            match version {
                10.. => topic.set("TopicId", id),
                _ => topic.set("Name", name),
            }
            topic.set("PartitionIndexes", vec![0]);
            element.push("Topics", topic);
        }
        body.push("Groups", element);
    });
}

fn answer_group(rig: &mut Rig, sent: &Sent, group: &str, offset: i64, metadata: &str) {
    rig.answer(sent, |body| {
        let mut element = body.new_element("Groups");
        element.set("GroupId", group);
        for name in ["new", "unknown"] {
            let mut topic = element.new_element("Topics");
            let is_known = name == "new";
            match sent.version {
                10.. => topic.set("TopicId", if is_known { TARGET_ID } else { TopicId([9; 16]) }),
                _ => topic.set("Name", name),
            }
            let mut partition = topic.new_element("Partitions");
            committed(&mut partition, offset, metadata);
            topic.push("Partitions", partition);
            element.push("Topics", topic);
        }
        body.push("Groups", element);
    });
}

#[test]
fn r27_topics_go_home_in_its_own_names_and_ids_and_positions_come_back_virtual() {
    for version in [8, 9, 10] {
        let mut rig = flipped();
        rename(&mut rig, "new");
        ask_group(&mut rig, version, "g");
        let sent = rig.one();
        assert_eq!((sent.node, sent.version), (rig.node(), version));
        let group = sent.body.structs("Groups").next().unwrap();
        let topics: Vec<&Struct> = group.structs("Topics").collect();
        match version {
            10.. => assert_eq!(topics.iter().map(|t| t.uuid("TopicId")[0]).collect::<Vec<_>>(), [2, 9]),
            _ => assert_eq!(topics.iter().map(|t| t.str("Name")).collect::<Vec<_>>(), ["new", "unknown"]),
        }
        if version >= 9 {
            assert_eq!((group.str("MemberId"), group.i32("MemberEpoch")), ("m", 7), "they are together");
        }
        answer_group(&mut rig, &sent, "g", 47, "mine");
        let reply = rig.reply().expect("answered");
        let topics: Vec<&Struct> =
            reply.structs("Groups").flat_map(|group| group.structs("Topics")).collect();
        match version {
            10.. => assert_eq!(topics[0].uuid("TopicId"), VIRTUAL_ID.0),
            _ => assert_eq!(topics[0].str("Name"), TOPIC),
        }
        let positions = |topic: &Struct| {
            let partition = topic.structs("Partitions").next().unwrap();
            (
                partition.i64("CommittedOffset"),
                partition.i32("CommittedLeaderEpoch"),
                partition.i16("ErrorCode"),
            )
        };
        assert_eq!(positions(topics[0]), (107, -1, code::NONE));
        assert_eq!(topics[0].structs("Partitions").next().unwrap().str("Metadata"), "mine");
        assert_eq!(positions(topics[1]).0, 47, "nothing is known of it");
    }
}

#[test]
fn r27_before_batches_of_groups_it_is_the_same() {
    for (committed_offset, position) in [(47, 107), (40, 100), (0, 100), (-1, -1)] {
        let mut rig = flipped();
        rename(&mut rig, "new");
        rig.ask(key::OFFSET_FETCH, 7, |body| {
            body.set("GroupId", "g");
            let mut topic = body.new_element("Topics");
            topic.set("Name", TOPIC);
            topic.set("PartitionIndexes", vec![0]);
            body.push("Topics", topic);
        });
        let sent = rig.one();
        assert_eq!(sent.body.structs("Topics").next().map(|topic| topic.str("Name")), Some("new"));
        rig.answer(&sent, |body| {
            let mut topic = body.new_element("Topics");
            topic.set("Name", "new");
            let mut partition = topic.new_element("Partitions");
            committed(&mut partition, committed_offset, "");
            topic.push("Partitions", partition);
            body.push("Topics", topic);
        });
        let reply = rig.reply().expect("answered");
        assert_eq!(only(&reply, "Topics").i64("CommittedOffset"), position);
        assert_eq!(only(&reply, "Topics").i32("CommittedLeaderEpoch"), -1);
    }
}

#[test]
fn r27_commits_that_are_apart_are_read_without_the_members_who_are_not_there() {
    let mut rig = Rig::new(Source, 0);
    rig.flip(Target, 100, 40);
    let offset_homes = [(Arc::from("g"), Target)].into();
    rig.snapshot.groups = Arc::new(GroupTable { offset_homes, ..GroupTable::default() });
    ask_group(&mut rig, 9, "g");
    let lookup = rig.one();
    rig.answer(&lookup, |body| body.set("NodeId", 1));
    let sent = rig.one();
    assert_eq!((sent.api_key, sent.node.side), (key::OFFSET_FETCH, Target));
    let group = sent.body.structs("Groups").next().unwrap();
    assert_eq!((group.opt_str("MemberId"), group.i32("MemberEpoch")), (None, -1));
}

#[test]
fn r27_a_group_of_the_other_home_is_asked_for_again_by_its_client() {
    let mut rig = Rig::new(Source, 0);
    rig.flip(Target, 100, 40);
    rig.move_home("moved", Target);
    rig.ask(key::OFFSET_FETCH, 9, |body| {
        for name in ["g", "moved"] {
            let mut group = body.new_element("Groups");
            group.set("GroupId", name);
            body.push("Groups", group);
        }
    });
    let sent = rig.one();
    assert_eq!(sent.node, rig.node(), "the first one decides");
    rig.answer(&sent, |body| {
        for name in ["g", "moved"] {
            let mut group = body.new_element("Groups");
            group.set("GroupId", name);
            let mut topic = group.new_element("Topics");
            topic.set("Name", TOPIC);
            let mut partition = topic.new_element("Partitions");
            committed(&mut partition, 47, "");
            topic.push("Partitions", partition);
            group.push("Topics", topic);
            body.push("Groups", group);
        }
    });
    let reply = rig.reply().expect("answered");
    let groups: Vec<(i16, usize)> = reply
        .structs("Groups")
        .map(|group| (group.i16("ErrorCode"), group.structs("Topics").count()))
        .collect();
    assert_eq!(
        groups,
        [(code::NONE, 1), (code::NOT_COORDINATOR, 0)],
        "a position of another home is not told"
    );
}

#[test]
fn r27_commits_under_way_are_waited_for_only_where_they_are_apart_from_their_members() {
    for is_apart in [false, true] {
        let mut rig = Rig::new(Source, 0);
        if is_apart {
            let offset_homes = [(Arc::from("g"), Target)].into();
            rig.snapshot.groups = Arc::new(GroupTable { offset_homes, ..GroupTable::default() });
        }
        let under_way = rig.shared.groups.commit_under_way("g");
        rig.ask(key::OFFSET_FETCH, 7, |body| body.set("GroupId", "g"));
        assert_eq!(rig.sent().is_empty(), is_apart);
        drop(under_way);
        rig.pass(LOOK_AGAIN_MS);
        assert_eq!(rig.sent().is_empty(), !is_apart);
    }
}
