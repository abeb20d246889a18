//! The virtual cluster through whole sessions: every version of each API that shows it, against two scripted clusters.

use super::key;
use crate::error_code as code;
use crate::ids::{ClusterSide, NativeOffset, Revision, TopicId, VirtualNode};
use crate::node::{ApiRanges, BrokerAddress, NodeMap, PartitionInfo, TopicInfo, Topology};
use crate::producer::gate::SessionId;
use crate::producer::pid;
use crate::route::{
    GroupTable, LinkMode, RouteRule, RouteRules, RouteTable, RuleMatch, STATE_TOPIC, Snapshot, Timelines,
};
use crate::schema::{self, Struct, Value};
use crate::session::{
    ChangeKind, CloseReason, Effect, Errand, ErrandDone, Event, Limits, Session, Shared, TopicChanged,
    UpstreamId,
};
use crate::timeline::Boundary;
use crate::wire::header;
use ClusterSide::{Source, Target};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

const PROXY: &str = "proxy.example";
const PLAIN: TopicId = TopicId([0xA1; 16]);
const PLAIN_COPY: TopicId = TopicId([0xB1; 16]);
const MOVED: TopicId = TopicId([0xA2; 16]);
const MOVED_COPY: TopicId = TopicId([0xB2; 16]);
const RENAMED: TopicId = TopicId([0xA3; 16]);
const ON_TARGET: TopicId = TopicId([0xB4; 16]);
const LONELY: TopicId = TopicId([0xB5; 16]);
const OPENED_LATER: TopicId = TopicId([0xA9; 16]);

/// What a broker answers; `None`: it hangs up.
type Broker<'a> = dyn FnMut(&Asked) -> Option<Struct> + 'a;

/// A request as it arrived at a broker.
#[derive(Debug)]
struct Asked {
    node: VirtualNode,
    version: i16,
    body: Struct,
}

struct World {
    snapshot: Snapshot,
    shared: Shared,
    session: Session,
    now_ms: i64,
    /// What the brokers were asked, in order.
    asked: Vec<Asked>,
    dialled: HashMap<UpstreamId, VirtualNode>,
    refreshed: BTreeSet<ClusterSide>,
    errands: Vec<Errand>,
    /// What becomes of errands.
    errand_done: ErrandDone,
    closed: Option<CloseReason>,
}

fn topic(name: &str, id: TopicId, partitions: &[(i32, i32)], replicas: &[i32]) -> Arc<TopicInfo> {
    let partitions = partitions.iter().map(|(leader, epoch)| PartitionInfo {
        leader: *leader,
        epoch: *epoch,
        replicas: replicas.to_vec(),
        isr: replicas.to_vec(),
    });
    Arc::new(TopicInfo {
        name: Arc::from(name),
        id,
        internal: name.starts_with("__"),
        partitions: partitions.collect(),
    })
}

fn topology(side: ClusterSide, brokers: &[i32], topics: Vec<Arc<TopicInfo>>) -> Arc<Topology> {
    let mut topology = Topology::unknown(side);
    topology.cluster_id = format!("native-{side}");
    topology.controller = brokers.last().copied();
    topology.brokers = brokers
        .iter()
        .map(|id| {
            let host = format!("native-{side}-{id}");
            (*id, BrokerAddress { host, port: 9092, rack: Some(format!("rack-{id}")) })
        })
        .collect();
    topology.topic_names = topics.iter().map(|t| (t.id, Arc::clone(&t.name))).collect();
    topology.topics = topics.into_iter().map(|t| (Arc::clone(&t.name), t)).collect();
    topology.reachable = true;
    Arc::new(topology)
}

fn rule(matches: RuleMatch, side: ClusterSide, physical: [Option<Arc<str>>; 2]) -> RouteRule {
    RouteRule { matches, side, mode: LinkMode::Continue, physical }
}

fn routes(topologies: &[Arc<Topology>; 2]) -> RouteTable {
    let renamed: Arc<str> = Arc::from("renamed");
    let physical = [Some(Arc::from("native.renamed")), None];
    let rules = RouteRules {
        default_side: Source,
        rules: vec![
            rule(RuleMatch::Exact(Arc::clone(&renamed)), Source, physical),
            rule(RuleMatch::Prefix(Arc::from("new.")), Target, [None, None]),
        ],
    };
    let names = ["plain", "moved", "renamed", "new.orders", "lonely", "__consumer_offsets"];
    let mut topics = HashMap::new();
    for name in names {
        let name: Arc<str> = Arc::from(name);
        let mut route = rules.initial_route(&name, topologies);
        if &*name == "moved" {
            let before = Arc::clone(route.timeline(0).expect("partition 0"));
            let boundary = Boundary {
                to: Target,
                old_native_end: NativeOffset(100),
                new_native_start: NativeOffset(10),
                old_native_epoch: 4,
                highest_virtual_epoch_seen: 4,
                new_native_epoch: 2,
                identity: false,
                at_ms: 1,
            };
            route.timelines =
                Timelines::PerPartition(vec![Arc::new(before.seal(&boundary).expect("sealed"))]);
            route.owner = Target;
        }
        topics.insert(name, Arc::new(route));
    }
    let ids =
        topics.values().filter(|r| !r.virtual_id.is_zero()).map(|r| (r.virtual_id, Arc::clone(&r.name)));
    let names = ids.collect();
    let virtual_names = [HashMap::from([(Arc::from("native.renamed"), renamed)]), HashMap::new()];
    RouteTable { rules: Arc::new(rules), topics, names, virtual_names }
}

fn snapshot() -> Snapshot {
    let source = vec![
        topic("plain", PLAIN, &[(1, 5), (2, 7)], &[1, 2]),
        topic("moved", MOVED, &[(1, 4)], &[1, 2]),
        topic("native.renamed", RENAMED, &[(2, 0)], &[2]),
        topic("__consumer_offsets", TopicId([0xA5; 16]), &[(1, 0)], &[1]),
    ];
    let target = vec![
        topic("plain", PLAIN_COPY, &[(3, 1), (3, 1)], &[3]),
        topic("moved", MOVED_COPY, &[(3, 6)], &[3, 1]),
        topic("new.orders", ON_TARGET, &[(1, 0)], &[1]),
        topic("lonely", LONELY, &[(1, 0)], &[1]),
        topic("__consumer_offsets", TopicId([0xB6; 16]), &[(1, 0)], &[1]),
    ];
    let topologies = [topology(Source, &[1, 2], source), topology(Target, &[1, 3], target)];
    let nodes =
        [(Source, 1), (Source, 2), (Target, 1), (Target, 3)].map(|(side, id)| VirtualNode::new(side, id));
    let ports = nodes.into_iter().map(|n| (n, 20_000 + u16::try_from(n.to_virtual()).expect("small")));
    let ranges = schema::keys().iter().map(|k| {
        let versions = schema::request(*k).expect("table").versions;
        (*k, (versions.min, versions.max))
    });
    Snapshot {
        revision: Revision(7),
        routes: Arc::new(routes(&topologies)),
        topologies,
        transactions: Arc::default(),
        taken_over: false,
        groups: Arc::new(GroupTable {
            homes: BTreeMap::from([(Arc::from("at-target"), Target)]),
            offset_homes: BTreeMap::new(),
            moving: BTreeMap::from([(Arc::from("on-the-way"), Target)]),
        }),
        nodes: Arc::new(NodeMap { host: PROXY.to_owned(), ports: ports.collect() }),
        cluster_id: Arc::from("virtual-cluster"),
        advertised: Arc::new(ApiRanges(ranges.collect())),
        features: Arc::new(BTreeMap::new()),
        preparing: Arc::new(BTreeSet::from([Arc::from("renamed")])),
    }
}

impl World {
    fn at(side: ClusterSide, broker: i32) -> World {
        let limits = Limits { in_flight_requests_max: 10, buffered_bytes_max: 1 << 20, hold_ms_max: 1_000 };
        World {
            snapshot: snapshot(),
            shared: Shared::default(),
            session: Session::new(
                SessionId(1),
                VirtualNode::new(side, broker),
                "client".to_owned(),
                limits,
                42,
            ),
            now_ms: 1_000,
            asked: Vec::new(),
            dialled: HashMap::new(),
            refreshed: BTreeSet::new(),
            errands: Vec::new(),
            errand_done: Ok(true),
            closed: None,
        }
    }

    /// Sends a request and plays the brokers until it is answered. The client's frame comes back raw.
    fn run(&mut self, api: i16, version: i16, body: &Struct, broker: &mut Broker<'_>) -> Option<Bytes> {
        let message = schema::request(api).expect("table");
        let frame =
            header::encode_request(message, version, 77, None, body).expect("a request of this version");
        self.frame(frame.slice(4..), broker)
    }

    fn frame(&mut self, frame: Bytes, broker: &mut Broker<'_>) -> Option<Bytes> {
        self.event(Event::Frame(frame), broker)
    }

    /// Lets something happen and plays the brokers until nothing more does.
    fn event(&mut self, event: Event, broker: &mut Broker<'_>) -> Option<Bytes> {
        let mut events = VecDeque::from([event]);
        let mut reply = None;
        self.asked.clear();
        self.errands.clear();
        while let Some(event) = events.pop_front() {
            self.session.handle(event, &self.snapshot, &self.shared, self.now_ms);
            for effect in self.session.drain_effects() {
                match effect {
                    Effect::Dial { upstream, node, .. } => {
                        self.dialled.insert(upstream, node);
                        events.push_back(Event::Connected { upstream });
                    }
                    Effect::Send { upstream, frame } => {
                        let frame = frame.slice(4..);
                        let head = header::peek_request(&frame).expect("a request");
                        let message = schema::request(head.api_key).expect("table");
                        let body =
                            schema::decode(message, head.api_version, &frame.slice(head.body_offset..));
                        let node = self.dialled[&upstream];
                        let asked = Asked { node, version: head.api_version, body: body.expect("a body") };
                        let answer = broker(&asked).map(|answer| {
                            let message = schema::response(head.api_key).expect("table");
                            header::encode_response(message, head.api_version, head.correlation_id, &answer)
                                .expect("the test's broker speaks this version")
                                .slice(4..)
                        });
                        self.asked.push(asked);
                        events.push_back(match answer {
                            Some(frame) => Event::Answer { upstream, frame },
                            None => Event::Lost { upstream },
                        });
                    }
                    Effect::Reply(frame) => reply = Some(frame.slice(4..)),
                    Effect::Close(reason) => self.closed = Some(reason),
                    Effect::Refresh(side) => {
                        self.refreshed.insert(side);
                    }
                    Effect::Errand { ticket, errand } => {
                        self.errands.push(errand);
                        events.push_back(Event::ErrandDone { ticket, done: self.errand_done.clone() });
                    }
                    _ => {}
                }
            }
        }
        reply
    }

    /// As [`World::run`], decoded; checked not to hold anything native.
    fn ask(&mut self, api: i16, version: i16, body: &Struct, broker: &mut Broker<'_>) -> Struct {
        let frame = self.run(api, version, body, broker);
        let frame =
            frame.unwrap_or_else(|| panic!("API {api} v{version} is answered, not {:?}", self.closed));
        assert_nothing_native(&frame);
        let message = schema::response(api).expect("table");
        let (correlation, at) = header::decode_response_header(message, version, &frame).expect("a header");
        assert_eq!(correlation, 77);
        schema::decode(message, version, &frame.slice(at..)).expect("a body of this version")
    }

    fn asked_nodes(&self) -> Vec<VirtualNode> {
        self.asked.iter().map(|a| a.node).collect()
    }
}

fn assert_nothing_native(frame: &Bytes) {
    let holds = |needle: &[u8]| frame.windows(needle.len()).any(|w| w == needle);
    assert!(!holds(b"native"), "a native host, topic or cluster id in {frame:?}");
    for id in [PLAIN_COPY, MOVED_COPY, LONELY] {
        assert!(!holds(&id.0), "a native topic id in {frame:?}");
    }
}

fn request(api: i16) -> Struct {
    Struct::new(schema::request(api).expect("table").fields)
}

fn response(api: i16) -> Struct {
    Struct::new(schema::response(api).expect("table").fields)
}

fn versions(api: i16) -> std::ops::RangeInclusive<i16> {
    let versions = schema::request(api).expect("table").versions;
    versions.min..=versions.max
}

fn no_broker(asked: &Asked) -> Option<Struct> {
    panic!("no broker is needed: {asked:?}")
}

fn find<'a>(of: &'a Struct, array: &str, field: &str, name: &str) -> &'a Struct {
    of.structs(array).find(|t| t.str(field) == name).unwrap_or_else(|| panic!("{name} is missing in {of:?}"))
}

fn ints(of: &Struct, field: &str) -> Vec<i64> {
    of.ints(field).collect()
}

// ---- ApiVersions ----

#[test]
fn api_versions_are_answered_here_in_every_version() {
    for version in versions(key::API_VERSIONS) {
        let mut world = World::at(Source, 1);
        world.snapshot.features = Arc::new(BTreeMap::from([
            ("transaction.version".to_owned(), (0, 2)),
            ("group.version".to_owned(), (0, 1)),
            ("share.version".to_owned(), (0, 1)),
        ]));
        let mut ranges = BTreeMap::from([(0, (3, 11)), (18, (0, 4))]);
        world.snapshot.advertised = Arc::new(ApiRanges(ranges.clone()));
        let mut body = request(key::API_VERSIONS);
        if version >= 3 {
            body.set("ClientSoftwareName", "apache-kafka-java");
            body.set("ClientSoftwareVersion", "4.1.0");
        }
        let answer = world.ask(key::API_VERSIONS, version, &body, &mut no_broker);
        let shown =
            answer.structs("ApiKeys").map(|k| (k.i16("ApiKey"), (k.i16("MinVersion"), k.i16("MaxVersion"))));
        assert_eq!(shown.collect::<BTreeMap<_, _>>(), std::mem::take(&mut ranges));
        let features: Vec<_> =
            answer.structs("FinalizedFeatures").map(|f| (f.str("Name"), f.i16("MaxVersionLevel"))).collect();
        assert_eq!(features, if version >= 3 { vec![("transaction.version", 1)] } else { vec![] });
    }
}

#[test]
fn api_versions_of_the_future_are_refused_in_version_0() {
    for version in [5, 9, i16::MAX] {
        let mut world = World::at(Source, 1);
        // Header version 2: key, version, correlation id, client id (null), no tags; the body is of the future.
        let mut frame = vec![0, 18];
        frame.extend_from_slice(&version.to_be_bytes());
        frame.extend_from_slice(&[0, 0, 0, 77, 0xff, 0xff, 0, 1, 2, 3]);
        let reply = world.frame(Bytes::from(frame), &mut no_broker).expect("answered");
        let message = schema::response(key::API_VERSIONS).expect("table");
        let (correlation, at) = header::decode_response_header(message, 0, &reply).expect("header version 0");
        let answer = schema::decode(message, 0, &reply.slice(at..)).expect("body version 0");
        assert_eq!((correlation, answer.i16("ErrorCode")), (77, code::UNSUPPORTED_VERSION));
        let own = answer.structs("ApiKeys").next().expect("its own range");
        assert_eq!((own.i16("ApiKey"), own.i16("MaxVersion")), (key::API_VERSIONS, 4));
        assert!(world.closed.is_none());
    }
}

#[test]
fn a_software_name_that_brokers_refuse_is_refused() {
    for (name, version) in [("", "1"), ("a b", "1"), ("-a", "1"), ("a", "1."), ("é", "1")] {
        let mut body = request(key::API_VERSIONS);
        body.set("ClientSoftwareName", name);
        body.set("ClientSoftwareVersion", version);
        let answer = World::at(Source, 1).ask(key::API_VERSIONS, 4, &body, &mut no_broker);
        assert_eq!(answer.i16("ErrorCode"), code::INVALID_REQUEST, "{name:?} {version:?}");
    }
}

#[test]
fn what_is_not_advertised_closes_the_connection() {
    let mut world = World::at(Source, 1);
    world.snapshot.advertised = Arc::new(ApiRanges(BTreeMap::from([(0, (0, 13)), (3, (0, 12))])));
    assert!(world.run(key::METADATA, 13, &request(key::METADATA), &mut no_broker).is_none());
    assert!(matches!(world.closed, Some(CloseReason::BadRequest(_))));
    // Produce 0 is advertised for old librdkafka and has no table.
    let mut world = World::at(Source, 1);
    let frame = Bytes::from_static(&[0, 0, 0, 0, 0, 0, 0, 77, 0xff, 0xff, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]);
    world.snapshot.advertised = Arc::new(ApiRanges(BTreeMap::from([(0, (0, 13))])));
    assert!(world.frame(frame, &mut no_broker).is_none());
    assert!(matches!(world.closed, Some(CloseReason::BadRequest(_))));
}

// ---- Metadata and DescribeTopicPartitions ----

/// A broker that shows what its cluster's topology holds.
fn metadata_broker(snapshot: &Snapshot) -> impl FnMut(&Asked) -> Option<Struct> + use<> {
    let topologies = snapshot.topologies.clone();
    move |asked| {
        let topology = &topologies[asked.node.side.index()];
        let mut out = response(key::METADATA);
        for (id, broker) in &topology.brokers {
            let mut row = out.new_element("Brokers");
            row.set("NodeId", *id);
            row.set("Host", &broker.host);
            row.set("Port", i32::from(broker.port));
            out.push("Brokers", row);
        }
        out.set("ClusterId", &topology.cluster_id);
        out.set("ControllerId", topology.controller.unwrap_or(-1));
        for topic in wanted_topics(asked, topology) {
            let mut row = native_topic(topology, out.new_element("Topics"), &topic, false);
            if asked.version < 10 {
                row.reset("TopicId");
            }
            out.push("Topics", row);
        }
        Some(out)
    }
}

fn wanted_topics(asked: &Asked, topology: &Topology) -> Vec<String> {
    let all = asked.body.is_null("Topics") || (asked.version == 0 && asked.body.array("Topics").is_empty());
    if all {
        topology.topics.keys().map(|n| n.to_string()).collect()
    } else {
        asked.body.structs("Topics").map(|t| t.str("Name").to_owned()).collect()
    }
}

fn native_topic(topology: &Topology, mut row: Struct, name: &str, elr: bool) -> Struct {
    row.set("Name", name);
    let Some(info) = topology.topic(name) else {
        row.set("ErrorCode", code::UNKNOWN_TOPIC_OR_PARTITION);
        return row;
    };
    row.set("TopicId", info.id);
    row.set("IsInternal", info.internal);
    for (index, partition) in (0i32..).zip(&info.partitions) {
        let mut out = row.new_element("Partitions");
        out.set("PartitionIndex", index);
        out.set("LeaderId", partition.leader);
        out.set("LeaderEpoch", partition.epoch);
        out.set("ReplicaNodes", partition.replicas.clone());
        out.set("IsrNodes", partition.isr.clone());
        out.set("OfflineReplicas", partition.replicas.clone());
        if elr {
            out.set("EligibleLeaderReplicas", partition.replicas.clone());
            out.set("LastKnownElr", partition.replicas.clone());
        }
        row.push("Partitions", out);
    }
    row
}

fn ask_topics(version: i16, names: &[&str]) -> Struct {
    let mut body = request(key::METADATA);
    body.set("Topics", Vec::<Struct>::new());
    for name in names {
        let mut topic = body.new_element("Topics");
        topic.set("Name", *name);
        body.push("Topics", topic);
    }
    if version >= 4 {
        body.set("AllowAutoTopicCreation", true);
    }
    body
}

fn all_topics(version: i16) -> Struct {
    let mut body = ask_topics(version, &[]);
    if version >= 1 {
        body.set("Topics", None::<Vec<Value>>);
    }
    body
}

fn check_brokers(answer: &Struct, id_field: &str) {
    let brokers = answer.structs("Brokers").map(|b| (b.i32(id_field), b.str("Host"), b.i32("Port")));
    let expected = [(2, PROXY, 20_002), (4, PROXY, 20_004), (3, PROXY, 20_003), (7, PROXY, 20_007)];
    assert_eq!(brokers.collect::<Vec<_>>(), expected);
}

#[test]
fn metadata_shows_each_topic_of_its_owner_in_every_version() {
    for version in versions(key::METADATA) {
        for (side, broker) in [(Source, 1), (Target, 3)] {
            let mut world = World::at(side, broker);
            let mut cluster = metadata_broker(&world.snapshot);
            let names = ["plain", "moved", "renamed", "nowhere"];
            let answer = world.ask(key::METADATA, version, &ask_topics(version, &names), &mut cluster);
            check_brokers(&answer, "NodeId");
            let shown: Vec<&str> = answer.structs("Topics").map(|t| t.str("Name")).collect();
            assert_eq!(shown, names);
            if version >= 1 {
                assert_eq!(answer.i32("ControllerId"), 4);
            }
            if version >= 2 {
                assert_eq!(answer.str("ClusterId"), "virtual-cluster");
            }
            let moved = find(&answer, "Topics", "Name", "moved");
            let partition = moved.structs("Partitions").next().expect("partition 0");
            assert_eq!(partition.i32("LeaderId"), 7);
            assert_eq!(
                (ints(partition, "ReplicaNodes"), ints(partition, "IsrNodes")),
                (vec![7, 3], vec![7, 3])
            );
            if version >= 5 {
                assert_eq!(ints(partition, "OfflineReplicas"), [7, 3]);
            }
            if version >= 7 {
                // Base 4 + 1024 at native epoch 2; the leader is at native epoch 6 (RULES R22).
                assert_eq!(partition.i32("LeaderEpoch"), 4 + 1024 + 4);
                assert_eq!(world.shared.seen.get(&Arc::from("moved"), 0).expect("seen").epoch, 1032);
            }
            let plain = find(&answer, "Topics", "Name", "plain");
            let leaders: Vec<i32> = plain.structs("Partitions").map(|p| p.i32("LeaderId")).collect();
            assert_eq!(leaders, [2, 4]);
            if version >= 10 {
                assert_eq!((plain.uuid("TopicId"), moved.uuid("TopicId")), (PLAIN.0, MOVED.0));
            }
            assert_eq!(find(&answer, "Topics", "Name", "renamed").i16("ErrorCode"), code::NONE);
            let nowhere = find(&answer, "Topics", "Name", "nowhere");
            assert_eq!(nowhere.i16("ErrorCode"), code::UNKNOWN_TOPIC_OR_PARTITION);
            assert!(world.refreshed.is_empty());
            check_metadata_requests(&world, version);
        }
    }
}

fn check_metadata_requests(world: &World, version: i16) {
    for asked in &world.asked {
        let names: Vec<&str> = asked.body.structs("Topics").map(|t| t.str("Name")).collect();
        match asked.node.side {
            Source => assert_eq!(names, ["plain", "native.renamed", "nowhere"]),
            Target => assert_eq!(names, ["moved"]),
        }
        if version >= 4 {
            assert_eq!(asked.body.bool("AllowAutoTopicCreation"), asked.node.side == Source);
        }
    }
    assert_eq!(world.asked.len(), 2);
}

#[test]
fn metadata_of_all_topics_shows_no_copy_twice_in_every_version() {
    for version in versions(key::METADATA) {
        let mut world = World::at(Target, 1);
        let mut cluster = metadata_broker(&world.snapshot);
        let answer = world.ask(key::METADATA, version, &all_topics(version), &mut cluster);
        let mut shown: Vec<&str> = answer.structs("Topics").map(|t| t.str("Name")).collect();
        shown.sort_unstable();
        assert_eq!(shown, ["__consumer_offsets", "moved", "new.orders", "plain", "renamed"]);
        let offsets = find(&answer, "Topics", "Name", "__consumer_offsets");
        assert_eq!(offsets.structs("Partitions").next().expect("partition 0").i32("LeaderId"), 2);
    }
}

#[test]
fn r26_a_topic_is_never_created_on_the_side_that_is_not_the_default() {
    for version in versions(key::METADATA) {
        let mut world = World::at(Target, 1);
        let mut cluster = metadata_broker(&world.snapshot);
        let answer = world.ask(key::METADATA, version, &ask_topics(version, &["new.unheard"]), &mut cluster);
        let unheard = find(&answer, "Topics", "Name", "new.unheard");
        assert_eq!(unheard.i16("ErrorCode"), code::UNKNOWN_TOPIC_OR_PARTITION);
        let allowed = |a: &Asked| version < 4 || a.body.bool("AllowAutoTopicCreation");
        let named = |a: &Asked| !a.body.array("Topics").is_empty();
        assert!(!world.asked.iter().any(|a| named(a) && allowed(a)), "v{version}");
    }
}

#[test]
fn r26_a_moved_topic_that_is_gone_does_not_come_up_anew() {
    let mut world = World::at(Source, 1);
    // Moved there and back, and then deleted in the cluster itself.
    let mut routes = (*world.snapshot.routes).clone();
    let mut route = (**routes.topic("moved").expect("there")).clone();
    route.owner = Source;
    routes.topics.insert(Arc::clone(&route.name), Arc::new(route));
    world.snapshot.routes = Arc::new(routes);
    let mut without = (*world.snapshot.topologies[0]).clone();
    without.topics.remove("moved");
    world.snapshot.topologies[0] = Arc::new(without);
    let mut body = ask_topics(9, &["moved"]);
    body.set("AllowAutoTopicCreation", true);
    let answer = world.ask(key::METADATA, 9, &body, &mut no_broker);
    assert_eq!(errors(&answer, "Topics"), [row("moved", code::UNKNOWN_TOPIC_OR_PARTITION)]);
    assert!(world.asked.is_empty());
}

#[test]
fn r30_metadata_of_a_lost_side_is_what_was_last_known() {
    for lost in ClusterSide::BOTH {
        for version in versions(key::METADATA) {
            let mut world = World::at(Source, 1);
            let mut cluster = metadata_broker(&world.snapshot);
            let mut half = |asked: &Asked| if asked.node.side == lost { None } else { cluster(asked) };
            let answer = world.ask(key::METADATA, version, &all_topics(version), &mut half);
            check_brokers(&answer, "NodeId");
            let mut shown: Vec<&str> = answer.structs("Topics").map(|t| t.str("Name")).collect();
            shown.sort_unstable();
            assert_eq!(shown, ["__consumer_offsets", "moved", "new.orders", "plain", "renamed"]);
            assert!(answer.structs("Topics").all(|t| t.i16("ErrorCode") == code::NONE));
            let moved = find(&answer, "Topics", "Name", "moved");
            assert_eq!(moved.structs("Partitions").next().expect("partition 0").i32("LeaderId"), 7);
        }
    }
}

#[test]
fn r30_a_side_known_to_be_down_is_not_waited_for() {
    let mut world = World::at(Source, 1);
    let mut down = (*world.snapshot.topologies[1]).clone();
    down.reachable = false;
    world.snapshot.topologies[1] = Arc::new(down);
    let mut cluster = metadata_broker(&world.snapshot);
    let answer = world.ask(key::METADATA, 12, &all_topics(12), &mut cluster);
    assert_eq!(world.asked_nodes(), [VirtualNode::new(Source, 1)]);
    assert_eq!(answer.structs("Topics").count(), 5);
    // The other way round the controller moves to the side that lives.
    let mut world = World::at(Target, 1);
    let mut down = (*world.snapshot.topologies[0]).clone();
    down.reachable = false;
    world.snapshot.topologies[0] = Arc::new(down);
    let answer = world.ask(key::METADATA, 12, &all_topics(12), &mut cluster);
    assert_eq!(answer.i32("ControllerId"), 7);
}

#[test]
fn metadata_by_id_knows_virtual_ids_only() {
    for version in 10..=13 {
        let mut world = World::at(Source, 2);
        let mut cluster = metadata_broker(&world.snapshot);
        let mut body = ask_topics(version, &[]);
        for id in [MOVED, OPENED_LATER] {
            let mut topic = body.new_element("Topics");
            topic.set("TopicId", id);
            topic.set("Name", None::<&str>);
            body.push("Topics", topic);
        }
        let answer = world.ask(key::METADATA, version, &body, &mut cluster);
        let shown: Vec<_> =
            answer.structs("Topics").map(|t| (t.i16("ErrorCode"), t.uuid("TopicId"))).collect();
        assert_eq!(shown, [(code::NONE, MOVED.0), (code::UNKNOWN_TOPIC_ID, OPENED_LATER.0)]);
        assert_eq!(answer.structs("Topics").next().expect("moved").str("Name"), "moved");
    }
    // The id that the topic has in its new cluster is no id of the virtual cluster.
    let mut world = World::at(Source, 2);
    let mut body = ask_topics(12, &[]);
    let mut topic = body.new_element("Topics");
    topic.set("TopicId", MOVED_COPY);
    topic.set("Name", None::<&str>);
    body.push("Topics", topic);
    let reply = world.run(key::METADATA, 12, &body, &mut no_broker).expect("answered");
    let message = schema::response(key::METADATA).expect("table");
    let (_, at) = header::decode_response_header(message, 12, &reply).expect("header");
    let answer = schema::decode(message, 12, &reply.slice(at..)).expect("body");
    assert_eq!(answer.structs("Topics").next().expect("one").i16("ErrorCode"), code::UNKNOWN_TOPIC_ID);
}

#[test]
fn a_topic_without_a_route_is_shown_under_its_owners_id_and_makes_the_topology_refresh() {
    let mut world = World::at(Source, 1);
    let mut later = (*world.snapshot.topologies[0]).clone();
    later.topics.insert(Arc::from("later"), topic("later", OPENED_LATER, &[(2, 0)], &[2]));
    let mut cluster = metadata_broker(&Snapshot {
        topologies: [Arc::new(later), Arc::clone(&world.snapshot.topologies[1])],
        ..world.snapshot.clone()
    });
    let answer = world.ask(key::METADATA, 12, &ask_topics(12, &["later"]), &mut cluster);
    let later = find(&answer, "Topics", "Name", "later");
    assert_eq!((later.uuid("TopicId"), later.i16("ErrorCode")), (OPENED_LATER.0, code::NONE));
    assert_eq!(later.structs("Partitions").next().expect("partition 0").i32("LeaderId"), 4);
    assert_eq!(world.refreshed, BTreeSet::from([Source]));
}

#[test]
fn frozen_topics_and_leaders_without_an_address_have_no_leader() {
    let mut world = World::at(Source, 1);
    let mut routes = (*world.snapshot.routes).clone();
    let mut frozen = (**routes.topic("plain").expect("route")).clone();
    frozen.frozen = Some(Arc::from("test"));
    routes.topics.insert(Arc::from("plain"), Arc::new(frozen));
    world.snapshot.routes = Arc::new(routes);
    let mut nodes = (*world.snapshot.nodes).clone();
    nodes.ports.remove(&VirtualNode::new(Target, 3));
    world.snapshot.nodes = Arc::new(nodes);
    let mut cluster = metadata_broker(&world.snapshot);
    let answer = world.ask(key::METADATA, 12, &ask_topics(12, &["plain", "moved"]), &mut cluster);
    let plain = find(&answer, "Topics", "Name", "plain");
    assert_eq!((plain.i16("ErrorCode"), plain.array("Partitions").len()), (code::LEADER_NOT_AVAILABLE, 0));
    let moved = find(&answer, "Topics", "Name", "moved").structs("Partitions").next().expect("partition 0");
    assert_eq!((moved.i16("ErrorCode"), moved.i32("LeaderId")), (code::LEADER_NOT_AVAILABLE, -1));
    assert_eq!(answer.structs("Brokers").count(), 3);
}

#[test]
fn a_flip_between_question_and_answer_is_answered_by_the_new_owner() {
    let mut world = World::at(Source, 1);
    let after = world.snapshot.clone();
    let mut before = (*world.snapshot.routes).clone();
    let mut route = (**before.topic("moved").expect("route")).clone();
    route.owner = Source;
    before.topics.insert(Arc::from("moved"), Arc::new(route));
    world.snapshot.routes = Arc::new(before);
    let message = schema::request(key::METADATA).expect("table");
    let frame = header::encode_request(message, 12, 77, None, &ask_topics(12, &["moved"])).expect("encodes");
    world.session.handle(Event::Frame(frame.slice(4..)), &world.snapshot, &world.shared, 0);
    let mut upstream_of = None;
    for effect in world.session.drain_effects() {
        if let Effect::Send { upstream, frame } = effect {
            let head = header::peek_request(&frame.slice(4..)).expect("a request");
            upstream_of = Some((upstream, head.correlation_id));
        }
    }
    let (upstream, correlation) = upstream_of.expect("the old owner was asked");
    let asked = Asked { node: VirtualNode::new(Source, 1), version: 12, body: ask_topics(12, &["moved"]) };
    let native = metadata_broker(&after)(&asked).expect("answer");
    let message = schema::response(key::METADATA).expect("table");
    let answer = header::encode_response(message, 12, correlation, &native).expect("encodes").slice(4..);
    world.session.handle(Event::Answer { upstream, frame: answer }, &after, &world.shared, 1);
    let reply = world.session.drain_effects().into_iter().find_map(|e| match e {
        Effect::Reply(frame) => Some(frame.slice(4..)),
        _ => None,
    });
    let reply = reply.expect("answered");
    assert_nothing_native(&reply);
    let (_, at) = header::decode_response_header(message, 12, &reply).expect("header");
    let answer = schema::decode(message, 12, &reply.slice(at..)).expect("body");
    let moved = find(&answer, "Topics", "Name", "moved").structs("Partitions").next().expect("partition 0");
    assert_eq!(moved.i32("LeaderId"), 7);
}

#[test]
fn silence_of_a_side_ends_after_its_time() {
    let mut world = World::at(Source, 1);
    let message = schema::request(key::METADATA).expect("table");
    let frame = header::encode_request(message, 12, 77, None, &ask_topics(12, &["moved"])).expect("encodes");
    world.session.handle(Event::Frame(frame.slice(4..)), &world.snapshot, &world.shared, 1_000);
    let deadline = world.session.next_deadline_ms().expect("a deadline");
    world.session.handle(Event::Timer, &world.snapshot, &world.shared, deadline - 1);
    let replies = |world: &mut World| {
        world.session.drain_effects().iter().filter(|e| matches!(e, Effect::Reply(_))).count()
    };
    assert_eq!(replies(&mut world), 0);
    world.session.handle(Event::Timer, &world.snapshot, &world.shared, deadline);
    assert_eq!(replies(&mut world), 1);
}

#[test]
fn topic_partitions_come_in_pages() {
    let api = key::DESCRIBE_TOPIC_PARTITIONS;
    let mut world = World::at(Source, 1);
    let topologies = world.snapshot.topologies.clone();
    let mut cluster = move |asked: &Asked| {
        let mut out = response(api);
        for wanted in asked.body.structs("Topics") {
            let element = out.new_element("Topics");
            out.push(
                "Topics",
                native_topic(&topologies[asked.node.side.index()], element, wanted.str("Name"), true),
            );
        }
        Some(out)
    };
    let mut seen = Vec::new();
    let mut cursor: Option<Struct> = None;
    for _ in 0..10 {
        let mut body = request(api);
        for name in ["plain", "moved"] {
            let mut topic = body.new_element("Topics");
            topic.set("Name", name);
            body.push("Topics", topic);
        }
        body.set("ResponsePartitionLimit", 1);
        if let Some(from) = &cursor {
            let mut at = body.new_element("Cursor");
            at.set("TopicName", from.get("TopicName").clone());
            at.set("PartitionIndex", from.get("PartitionIndex").clone());
            body.set("Cursor", at);
        }
        let answer = world.ask(api, 0, &body, &mut cluster);
        for topic in answer.structs("Topics") {
            for partition in topic.structs("Partitions") {
                assert_eq!(ints(partition, "EligibleLeaderReplicas"), ints(partition, "ReplicaNodes"));
                assert_eq!(ints(partition, "LastKnownElr"), ints(partition, "ReplicaNodes"));
                let at = (topic.str("Name").to_owned(), partition.i32("PartitionIndex"));
                seen.push((at, partition.i32("LeaderId"), topic.uuid("TopicId")));
            }
        }
        cursor = answer.opt_struct("NextCursor").cloned();
        if cursor.is_none() {
            break;
        }
    }
    let at = |name: &str, index: i32| (name.to_owned(), index);
    let expected = [(at("moved", 0), 7, MOVED.0), (at("plain", 0), 2, PLAIN.0), (at("plain", 1), 4, PLAIN.0)];
    assert_eq!(seen, expected);
    let all = world.ask(api, 0, &request(api), &mut cluster);
    let shown: Vec<&str> = all.structs("Topics").map(|t| t.str("Name")).collect();
    assert_eq!(shown, ["__consumer_offsets", "moved", "new.orders", "plain", "renamed"]);
}

#[test]
fn describe_cluster_shows_brokers_and_refuses_controllers() {
    for version in versions(key::DESCRIBE_CLUSTER) {
        let mut world = World::at(Target, 3);
        let answer =
            world.ask(key::DESCRIBE_CLUSTER, version, &request(key::DESCRIBE_CLUSTER), &mut no_broker);
        check_brokers(&answer, "BrokerId");
        assert_eq!((answer.str("ClusterId"), answer.i32("ControllerId")), ("virtual-cluster", 4));
        if version >= 1 {
            let mut body = request(key::DESCRIBE_CLUSTER);
            body.set("EndpointType", 2);
            let answer = world.ask(key::DESCRIBE_CLUSTER, version, &body, &mut no_broker);
            assert_eq!((answer.i16("ErrorCode"), answer.array("Brokers").len()), (115, 0));
        }
    }
}

// ---- FindCoordinator, InitProducerId, transactions ----

/// Broker 3 of the target and broker 2 of the source coordinate everything.
fn coordinator_broker(asked: &Asked) -> Option<Struct> {
    let mut out = response(key::FIND_COORDINATOR);
    let (id, host) = if asked.node.side == Source { (2, "native-source-2") } else { (3, "native-target-3") };
    let put = |row: &mut Struct| {
        row.set("NodeId", id);
        row.set("Host", host);
        row.set("Port", 9092);
    };
    if asked.version >= 4 {
        for name in asked.body.strs("CoordinatorKeys") {
            let mut row = out.new_element("Coordinators");
            row.set("Key", name);
            put(&mut row);
            out.push("Coordinators", row);
        }
    } else {
        put(&mut out);
    }
    Some(out)
}

fn coordinator_request(version: i16, kind: i8, name: &str) -> Struct {
    let mut body = request(key::FIND_COORDINATOR);
    if version >= 1 {
        body.set("KeyType", kind);
    }
    if version >= 4 {
        body.push("CoordinatorKeys", name);
    } else {
        body.set("Key", name);
    }
    body
}

#[test]
fn coordinators_are_found_at_home_in_every_version() {
    for version in versions(key::FIND_COORDINATOR) {
        let cases = [
            (0, "any", code::NONE, 4, Some(Source)),
            (0, "at-target", code::NONE, 7, Some(Target)),
            (0, "on-the-way", code::NONE, 4, Some(Source)),
            (1, "at-target", code::NONE, 4, Some(Source)),
            (2, "any", code::INVALID_REQUEST, -1, None),
        ];
        for (kind, name, error, node, asked) in cases {
            if version == 0 && kind != 0 {
                continue;
            }
            let mut world = World::at(Target, 1);
            let body = coordinator_request(version, kind, name);
            let answer = world.ask(key::FIND_COORDINATOR, version, &body, &mut coordinator_broker);
            let found = answer.structs("Coordinators").next().unwrap_or(&answer);
            assert_eq!((found.i16("ErrorCode"), found.i32("NodeId")), (error, node), "{name} v{version}");
            if error == code::NONE {
                assert_eq!((found.str("Host"), found.i32("Port")), (PROXY, 20_000 + node));
            }
            assert_eq!(world.asked_nodes().first().map(|n| n.side), asked);
        }
    }
}

#[test]
fn a_batch_of_groups_is_split_by_home_and_survives_half_an_answer() {
    for version in 4..=6 {
        let mut body = coordinator_request(version, 0, "at-target");
        body.push("CoordinatorKeys", "here");
        let mut world = World::at(Source, 1);
        let answer = world.ask(key::FIND_COORDINATOR, version, &body, &mut coordinator_broker);
        let nodes: Vec<_> = answer.structs("Coordinators").map(|c| (c.str("Key"), c.i32("NodeId"))).collect();
        assert_eq!(nodes, [("at-target", 7), ("here", 4)]);
        let mut half =
            |asked: &Asked| if asked.node.side == Target { None } else { coordinator_broker(asked) };
        let answer = World::at(Source, 1).ask(key::FIND_COORDINATOR, version, &body, &mut half);
        let errors: Vec<_> = answer.structs("Coordinators").map(|c| c.i16("ErrorCode")).collect();
        assert_eq!(errors, [code::COORDINATOR_NOT_AVAILABLE, code::NONE]);
    }
}

fn producer_broker(_: &Asked) -> Option<Struct> {
    let mut out = response(key::INIT_PRODUCER_ID);
    out.set("ProducerId", 4_711_i64);
    out.set("ProducerEpoch", 9);
    Some(out)
}

#[test]
fn r06_producers_get_an_id_of_the_proxy_and_transactional_ones_their_coordinators() {
    for version in versions(key::INIT_PRODUCER_ID) {
        let mut world = World::at(Source, 1);
        let mut body = request(key::INIT_PRODUCER_ID);
        body.set("TransactionalId", None::<&str>);
        let mut ids = BTreeSet::new();
        for _ in 0..3 {
            let answer = world.ask(key::INIT_PRODUCER_ID, version, &body, &mut producer_broker);
            assert!(pid::is_issued(answer.i64("ProducerId")));
            assert_eq!(answer.i16("ProducerEpoch"), 0);
            ids.insert(answer.i64("ProducerId"));
        }
        assert_eq!(ids.len(), 3);
        body.set("TransactionalId", "tx");
        let answer = World::at(Source, 1).ask(key::INIT_PRODUCER_ID, version, &body, &mut producer_broker);
        assert_eq!((answer.i64("ProducerId"), answer.i16("ProducerEpoch")), (4_711, 9));
    }
}

#[test]
fn r30_producer_ids_of_a_dead_node_come_through_the_other_side() {
    let mut body = request(key::INIT_PRODUCER_ID);
    body.set("TransactionalId", None::<&str>);
    let mut world = World::at(Source, 1);
    let mut half = |asked: &Asked| if asked.node.side == Source { None } else { producer_broker(asked) };
    let answer = world.ask(key::INIT_PRODUCER_ID, 4, &body, &mut half);
    assert!(pid::is_issued(answer.i64("ProducerId")));
    body.set("TransactionalId", "tx");
    let mut world = World::at(Source, 1);
    assert!(world.run(key::INIT_PRODUCER_ID, 4, &body, &mut half).is_none());
    assert_eq!(world.closed, Some(CloseReason::UpstreamLost));
}

fn add_partitions(names: &[&str]) -> Struct {
    let mut body = request(key::ADD_PARTITIONS_TO_TXN);
    body.set("V3AndBelowTransactionalId", "tx");
    for name in names {
        let mut topic = body.new_element("V3AndBelowTopics");
        topic.set("Name", *name);
        topic.set("Partitions", vec![0, 1]);
        body.push("V3AndBelowTopics", topic);
    }
    body
}

#[test]
fn transactions_take_topics_of_one_side_only_in_every_version_clients_use() {
    for version in 0..=3 {
        let results = |answer: &Struct| -> Vec<(String, i16)> {
            let topics = answer.structs("ResultsByTopicV3AndBelow");
            let rows = topics.flat_map(|t| {
                let errors = t.structs("ResultsByPartition").map(|p| p.i16("PartitionErrorCode"));
                errors.map(|e| (t.str("Name").to_owned(), e)).collect::<Vec<_>>()
            });
            rows.collect()
        };
        let mut world = World::at(Source, 2);
        let body = add_partitions(&["plain", "moved"]);
        let answer = world.ask(key::ADD_PARTITIONS_TO_TXN, version, &body, &mut no_broker);
        let row = |name: &str, error| (name.to_owned(), error);
        let expected = [row("plain", 44), row("plain", 44), row("moved", 44), row("moved", 44)];
        assert_eq!(results(&answer), expected);
        assert!(world.shared.transactions.all_open().is_empty());
        let mut broker = |asked: &Asked| {
            let mut out = response(key::ADD_PARTITIONS_TO_TXN);
            for topic in asked.body.structs("V3AndBelowTopics") {
                assert_eq!(topic.str("Name"), "native.renamed");
                let mut row = out.new_element("ResultsByTopicV3AndBelow");
                row.set("Name", topic.get("Name").clone());
                let partition = row.new_element("ResultsByPartition");
                row.push("ResultsByPartition", partition);
                out.push("ResultsByTopicV3AndBelow", row);
            }
            Some(out)
        };
        let answer = World::at(Source, 2).ask(
            key::ADD_PARTITIONS_TO_TXN,
            version,
            &add_partitions(&["renamed"]),
            &mut broker,
        );
        assert_eq!(results(&answer), [row("renamed", code::NONE)]);
    }
}

// ---- Topics ----

/// Does what it is told, unless a side is to refuse: the results carry the names (or ids) that were asked for.
fn judging(
    api: i16,
    topics: &'static str,
    results: &'static str,
    judge: impl Fn(&Asked, &str) -> i16,
) -> impl FnMut(&Asked) -> Option<Struct> {
    move |asked| {
        let mut out = response(api);
        for wanted in asked.body.array(topics) {
            let mut row = out.new_element(results);
            let name = match wanted.as_struct() {
                Some(topic) if topic.has("ResourceName") => topic.opt_str("ResourceName"),
                Some(topic) => topic.opt_str("Name"),
                None => wanted.as_str(),
            };
            match wanted.as_struct().filter(|t| t.has("ResourceName")) {
                Some(resource) => {
                    row.set("ResourceType", resource.get("ResourceType").clone());
                    row.set("ResourceName", name);
                }
                None => row.set("Name", name),
            }
            if api == key::DELETE_TOPICS && asked.version >= 6 {
                let id = TopicId(wanted.as_struct().expect("a struct").uuid("TopicId"));
                row.set("TopicId", if id.is_zero() { PLAIN } else { id });
                row.set("Name", name.or(Some("plain")));
            }
            row.set("ErrorCode", judge(asked, name.unwrap_or_default()));
            out.push(results, row);
        }
        Some(out)
    }
}

fn obedient(api: i16, topics: &'static str, results: &'static str) -> impl FnMut(&Asked) -> Option<Struct> {
    judging(api, topics, results, |_, _| code::NONE)
}

fn create_topics(names: &[&str], replicas: &[i32]) -> Struct {
    let mut body = request(key::CREATE_TOPICS);
    for name in names {
        let mut topic = body.new_element("Topics");
        topic.set("Name", *name);
        if replicas.is_empty() {
            topic.set("NumPartitions", 1);
            topic.set("ReplicationFactor", 1);
        } else {
            topic.set("NumPartitions", -1);
            topic.set("ReplicationFactor", -1);
            assign(&mut topic, replicas);
        }
        body.push("Topics", topic);
    }
    body
}

fn assign(topic: &mut Struct, replicas: &[i32]) {
    topic.set("Assignments", Vec::<Struct>::new());
    let mut assignment = topic.new_element("Assignments");
    assignment.set("BrokerIds", replicas.to_vec());
    topic.push("Assignments", assignment);
}

fn create_partitions(names: &[&str], count: i32) -> Struct {
    let mut body = request(key::CREATE_PARTITIONS);
    for name in names {
        let mut topic = body.new_element("Topics");
        topic.set("Name", *name);
        topic.set("Count", count);
        topic.set("Assignments", None::<Vec<Value>>);
        body.push("Topics", topic);
    }
    body
}

fn delete_topics(version: i16, names: &[&str]) -> (Struct, &'static str) {
    let mut body = request(key::DELETE_TOPICS);
    let field = if version >= 6 { "Topics" } else { "TopicNames" };
    for name in names {
        if version >= 6 {
            let mut topic = body.new_element(field);
            topic.set("Name", *name);
            body.push(field, topic);
        } else {
            body.push(field, *name);
        }
    }
    (body, field)
}

fn errors(answer: &Struct, array: &str) -> Vec<(String, i16)> {
    answer.structs(array).map(|t| (t.str("Name").to_owned(), t.i16("ErrorCode"))).collect()
}

fn row(name: &str, error: i16) -> (String, i16) {
    (name.to_owned(), error)
}

/// The sides that were asked, with whether it was a rehearsal.
fn rounds(world: &World) -> Vec<(ClusterSide, bool)> {
    let is_rehearsal = |body: &Struct| body.has("ValidateOnly") && body.bool("ValidateOnly");
    world.asked.iter().map(|a| (a.node.side, is_rehearsal(&a.body))).collect()
}

#[test]
fn topics_are_created_on_the_side_of_their_rule_in_every_version() {
    for version in versions(key::CREATE_TOPICS) {
        let mut world = World::at(Source, 1);
        let mut broker = obedient(key::CREATE_TOPICS, "Topics", "Topics");
        let body = create_topics(&["fresh", "new.fresh"], &[]);
        let answer = world.ask(key::CREATE_TOPICS, version, &body, &mut broker);
        assert_eq!(errors(&answer, "Topics"), [row("fresh", 0), row("new.fresh", 0)]);
        assert_eq!(world.asked_nodes(), [VirtualNode::new(Source, 1), VirtualNode::new(Target, 3)]);
        assert_eq!(world.refreshed, BTreeSet::from([Source, Target]));
        // Virtual 7 and 3 are brokers 3 and 1 of the target; 2 is of the source.
        let mut world = World::at(Source, 1);
        let answer =
            world.ask(key::CREATE_TOPICS, version, &create_topics(&["new.fresh"], &[7, 3]), &mut broker);
        assert_eq!(errors(&answer, "Topics"), [row("new.fresh", 0)]);
        let sent = world.asked[0].body.structs("Topics").next().expect("one").structs("Assignments").next();
        assert_eq!(ints(sent.expect("one"), "BrokerIds"), [3, 1]);
        let mut world = World::at(Source, 1);
        let answer =
            world.ask(key::CREATE_TOPICS, version, &create_topics(&["new.fresh"], &[7, 2]), &mut no_broker);
        assert_eq!(errors(&answer, "Topics"), [row("new.fresh", code::INVALID_REQUEST)]);
        assert!(world.refreshed.is_empty());
    }
}

#[test]
fn r26_a_topic_on_both_sides_is_enlarged_on_both_in_every_version() {
    for version in versions(key::CREATE_PARTITIONS) {
        let mut world = World::at(Target, 1);
        let mut broker = obedient(key::CREATE_PARTITIONS, "Topics", "Results");
        let body = create_partitions(&["plain", "moved", "renamed"], 5);
        let answer = world.ask(key::CREATE_PARTITIONS, version, &body, &mut broker);
        assert_eq!(errors(&answer, "Results"), [row("plain", 0), row("moved", 0), row("renamed", 0)]);
        // Each is rehearsed where it is not owned, then enlarged at its owner, then at the other side.
        let both = [
            (Source, true),
            (Target, true),
            (Source, false),
            (Target, false),
            (Source, false),
            (Target, false),
        ];
        assert_eq!(rounds(&world), both);
        let enlarged = ["plain", "moved", "renamed"].map(|n| TopicChanged::Enlarged(Arc::from(n), 5));
        assert_eq!(world.errands, [Errand::TopicsChanged(enlarged.to_vec())]);
    }
}

#[test]
fn r26_a_topic_on_one_side_is_the_owners_alone() {
    let mut world = World::at(Source, 1);
    let mut broker = obedient(key::CREATE_PARTITIONS, "Topics", "Results");
    world.ask(key::CREATE_PARTITIONS, 3, &create_partitions(&["renamed", "new.orders"], 5), &mut broker);
    assert_eq!(rounds(&world), [(Source, false), (Target, false)]);
    // Both clusters have it, each its own.
    world.ask(key::CREATE_PARTITIONS, 3, &create_partitions(&["__consumer_offsets"], 5), &mut broker);
    assert_eq!(rounds(&world), [(Source, false)]);
}

#[test]
fn r26_what_the_other_side_would_refuse_is_done_on_neither() {
    let mut world = World::at(Target, 1);
    let mut broker = judging(key::CREATE_PARTITIONS, "Topics", "Results", |asked, _| {
        if asked.node.side == Source { code::POLICY_VIOLATION } else { code::NONE }
    });
    let answer = world.ask(key::CREATE_PARTITIONS, 3, &create_partitions(&["moved"], 5), &mut broker);
    assert_eq!(errors(&answer, "Results"), [row("moved", code::POLICY_VIOLATION)]);
    assert_eq!(rounds(&world), [(Source, true)]);
    assert!(world.errands.is_empty());
}

#[test]
fn r26_what_only_the_owner_has_done_is_a_retriable_error_and_a_repetition_completes_it() {
    let mut world = World::at(Target, 1);
    let mut broker = obedient(key::CREATE_PARTITIONS, "Topics", "Results");
    let mut fails_at_the_end = |asked: &Asked| {
        let rehearsal = asked.body.bool("ValidateOnly");
        if asked.node.side == Source && !rehearsal { None } else { broker(asked) }
    };
    let body = create_partitions(&["moved"], 2);
    let answer = world.ask(key::CREATE_PARTITIONS, 3, &body, &mut fails_at_the_end);
    assert_eq!(errors(&answer, "Results"), [row("moved", code::REQUEST_TIMED_OUT)]);
    assert!(world.errands.is_empty());
    assert_eq!(world.refreshed, BTreeSet::from([Source, Target]));
    // The owner shows two partitions by now, and would refuse to be enlarged to two.
    let mut grown = (*world.snapshot.topologies[1]).clone();
    let moved = topic("moved", MOVED_COPY, &[(3, 6), (3, 0)], &[3, 1]);
    grown.topics.insert(Arc::clone(&moved.name), moved);
    world.snapshot.topologies[1] = Arc::new(grown);
    let mut broker = obedient(key::CREATE_PARTITIONS, "Topics", "Results");
    let answer = world.ask(key::CREATE_PARTITIONS, 3, &body, &mut broker);
    assert_eq!(errors(&answer, "Results"), [row("moved", 0)]);
    assert_eq!(rounds(&world), [(Source, true), (Source, false)]);
    assert_eq!(world.errands.len(), 1);
}

#[test]
fn r26_replicas_are_assigned_on_the_side_whose_brokers_are_named() {
    let mut world = World::at(Target, 1);
    let mut broker = obedient(key::CREATE_PARTITIONS, "Topics", "Results");
    let mut body = create_partitions(&["moved"], 2);
    body.structs_mut("Topics").for_each(|topic| assign(topic, &[3, 7]));
    world.ask(key::CREATE_PARTITIONS, 3, &body, &mut broker);
    assert_eq!(world.asked.len(), 3);
    for asked in &world.asked {
        let topic = asked.body.structs("Topics").next().expect("one");
        let assigned: Vec<i64> = topic.structs("Assignments").flat_map(|a| ints(a, "BrokerIds")).collect();
        assert_eq!(assigned, if asked.node.side == Target { vec![1, 3] } else { vec![] });
    }
    // Brokers of both sides in one topic mean nothing.
    body.structs_mut("Topics").for_each(|topic| assign(topic, &[2, 7]));
    let answer = world.ask(key::CREATE_PARTITIONS, 3, &body, &mut no_broker);
    assert_eq!(errors(&answer, "Results"), [row("moved", code::INVALID_REQUEST)]);
}

#[test]
fn r26_a_topic_on_both_sides_is_deleted_on_both_in_every_version() {
    for version in versions(key::DELETE_TOPICS) {
        let mut world = World::at(Source, 1);
        let (body, field) = delete_topics(version, &["plain", "moved", "renamed"]);
        let mut broker = obedient(key::DELETE_TOPICS, field, "Responses");
        let answer = world.ask(key::DELETE_TOPICS, version, &body, &mut broker);
        assert_eq!(errors(&answer, "Responses"), [row("plain", 0), row("moved", 0), row("renamed", 0)]);
        assert_eq!(rounds(&world), [(Source, false), (Target, false), (Source, false), (Target, false)]);
        let deleted = ["plain", "moved", "renamed"].map(|n| TopicChanged::Deleted(Arc::from(n)));
        assert_eq!(world.errands, [Errand::TopicsChanged(deleted.to_vec())]);
    }
}

#[test]
fn r26_a_deletion_that_one_side_has_done_before_is_completed() {
    for gone in [Source, Target] {
        let mut world = World::at(Source, 1);
        let (body, field) = delete_topics(5, &["moved"]);
        let mut broker = judging(key::DELETE_TOPICS, field, "Responses", |asked, _| {
            if asked.node.side == gone { code::UNKNOWN_TOPIC_OR_PARTITION } else { code::NONE }
        });
        let answer = world.ask(key::DELETE_TOPICS, 5, &body, &mut broker);
        assert_eq!(errors(&answer, "Responses"), [row("moved", 0)]);
        assert_eq!(rounds(&world), [(Target, false), (Source, false)]);
        assert_eq!(world.errands.len(), 1);
    }
    // A topic that was moved is the proxy's to forget even where no cluster has it any more.
    let (body, field) = delete_topics(5, &["moved", "renamed"]);
    let mut world = World::at(Source, 1);
    let mut broker = judging(key::DELETE_TOPICS, field, "Responses", |_, _| code::UNKNOWN_TOPIC_OR_PARTITION);
    let answer = world.ask(key::DELETE_TOPICS, 5, &body, &mut broker);
    let expected = [row("moved", 0), row("renamed", code::UNKNOWN_TOPIC_OR_PARTITION)];
    assert_eq!(errors(&answer, "Responses"), expected);
    assert_eq!(world.errands, [Errand::TopicsChanged(vec![TopicChanged::Deleted(Arc::from("moved"))])]);
}

#[test]
fn r26_a_deletion_is_not_confirmed_before_what_is_stored_follows() {
    let mut world = World::at(Source, 1);
    world.errand_done = Err("the target still shows it".to_owned());
    let (body, field) = delete_topics(5, &["moved"]);
    let mut broker = obedient(key::DELETE_TOPICS, field, "Responses");
    let answer = world.ask(key::DELETE_TOPICS, 5, &body, &mut broker);
    assert_eq!(errors(&answer, "Responses"), [row("moved", code::REQUEST_TIMED_OUT)]);
}

#[test]
fn r26_nothing_is_changed_while_a_side_that_has_the_topic_is_down() {
    let mut world = World::at(Source, 1);
    world.snapshot.topologies[1] =
        Arc::new(Topology { reachable: false, ..(*world.snapshot.topologies[1]).clone() });
    let (body, _) = delete_topics(5, &["plain"]);
    let answer = world.ask(key::DELETE_TOPICS, 5, &body, &mut no_broker);
    assert_eq!(errors(&answer, "Responses"), [row("plain", code::REQUEST_TIMED_OUT)]);
    let answer = world.ask(key::CREATE_PARTITIONS, 3, &create_partitions(&["plain"], 5), &mut no_broker);
    assert_eq!(errors(&answer, "Results"), [row("plain", code::REQUEST_TIMED_OUT)]);
    assert!(world.asked.is_empty());
    // What lives on one side only costs nothing (R30).
    let mut broker = obedient(key::CREATE_PARTITIONS, "Topics", "Results");
    let answer = world.ask(key::CREATE_PARTITIONS, 3, &create_partitions(&["renamed"], 5), &mut broker);
    assert_eq!(errors(&answer, "Results"), [row("renamed", 0)]);
}

#[test]
fn r26_changes_of_a_fenced_topic_are_held() {
    let mut world = World::at(Source, 1);
    let plain: Arc<str> = Arc::from("plain");
    world.shared.changes.close(&plain);
    let body = create_partitions(&["plain"], 5);
    assert!(world.run(key::CREATE_PARTITIONS, 3, &body, &mut no_broker).is_none(), "held");
    world.shared.changes.open("plain", Revision(8));
    world.snapshot.revision = Revision(8);
    let mut broker = obedient(key::CREATE_PARTITIONS, "Topics", "Results");
    let frame = world.event(Event::Wake, &mut broker);
    assert!(frame.is_some(), "goes on when the flip is over");
    assert!(world.shared.changes.is_quiet("plain"), "and is over with its answer");
    // Longer than the hold bound: a retriable error.
    world.shared.changes.close(&plain);
    assert!(world.run(key::CREATE_PARTITIONS, 3, &body, &mut no_broker).is_none());
    world.now_ms += 1_000;
    assert!(world.event(Event::Timer, &mut no_broker).is_some());
    assert!(world.asked.is_empty());
}

#[test]
fn r26_a_flip_waits_for_a_change_whose_client_has_gone() {
    let mut world = World::at(Source, 1);
    let message = schema::request(key::CREATE_PARTITIONS).expect("table");
    let frame = header::encode_request(message, 3, 77, None, &create_partitions(&["renamed"], 5));
    let frame = frame.expect("a request").slice(4..);
    world.session.handle(Event::Frame(frame), &world.snapshot, &world.shared, world.now_ms);
    world.session.handle(Event::ClientGone, &world.snapshot, &world.shared, world.now_ms);
    assert!(!world.shared.changes.is_quiet("renamed"));
    world.session.abandon(&world.snapshot, &world.shared, world.now_ms);
    assert!(world.shared.changes.is_quiet("renamed"));
}

#[test]
fn r26_a_moved_topic_that_is_gone_from_its_owner_is_not_created_beside_its_timeline() {
    let mut world = World::at(Source, 1);
    let mut without = (*world.snapshot.topologies[1]).clone();
    without.topics.remove("moved");
    world.snapshot.topologies[1] = Arc::new(without);
    let answer = world.ask(key::CREATE_TOPICS, 7, &create_topics(&["moved"], &[]), &mut no_broker);
    assert_eq!(errors(&answer, "Topics"), [row("moved", code::POLICY_VIOLATION)]);
}

#[test]
fn r31_the_copy_of_the_state_is_not_a_clients_to_delete() {
    let mut world = World::at(Source, 1);
    let (body, _) = delete_topics(5, &[STATE_TOPIC]);
    let answer = world.ask(key::DELETE_TOPICS, 5, &body, &mut no_broker);
    assert_eq!(errors(&answer, "Responses"), [row(STATE_TOPIC, code::POLICY_VIOLATION)]);
    assert!(world.asked.is_empty());
}

#[test]
fn topics_are_deleted_by_their_virtual_id() {
    let mut body = request(key::DELETE_TOPICS);
    for id in [PLAIN, OPENED_LATER] {
        let mut topic = body.new_element("Topics");
        topic.set("Name", None::<&str>);
        topic.set("TopicId", id);
        body.push("Topics", topic);
    }
    let mut world = World::at(Source, 1);
    let answer =
        world.ask(key::DELETE_TOPICS, 6, &body, &mut obedient(key::DELETE_TOPICS, "Topics", "Responses"));
    let shown: Vec<_> = answer
        .structs("Responses")
        .map(|r| (r.opt_str("Name"), r.uuid("TopicId"), r.i16("ErrorCode")))
        .collect();
    let expected = [(Some("plain"), PLAIN.0, 0), (None, OPENED_LATER.0, code::UNKNOWN_TOPIC_ID)];
    assert_eq!(shown, expected);
    // Each side is asked by its own id.
    let ids: Vec<_> =
        world.asked.iter().flat_map(|a| a.body.structs("Topics").map(|t| t.uuid("TopicId"))).collect();
    assert_eq!(ids, [PLAIN.0, PLAIN_COPY.0]);
}

#[test]
fn a_change_without_an_answer_is_a_timeout_and_the_topology_is_read_again() {
    let mut world = World::at(Source, 1);
    let answer = world.ask(key::CREATE_TOPICS, 7, &create_topics(&["fresh"], &[]), &mut |_| None);
    assert_eq!(errors(&answer, "Topics"), [("fresh".to_owned(), code::REQUEST_TIMED_OUT)]);
    assert_eq!(world.refreshed, BTreeSet::from([Source]));
}

// ---- Configurations and producers ----

fn resources(api: i16, rows: &[(i8, &str)]) -> Struct {
    let mut body = request(api);
    for (kind, name) in rows {
        let mut row = body.new_element("Resources");
        row.set("ResourceType", *kind);
        row.set("ResourceName", *name);
        body.push("Resources", row);
    }
    body
}

#[test]
fn configs_are_described_at_the_owner_and_at_the_broker_that_is_named() {
    let api = key::DESCRIBE_CONFIGS;
    for version in versions(api) {
        let mut world = World::at(Source, 1);
        let mut broker = |asked: &Asked| {
            let mut out = response(api);
            for wanted in asked.body.structs("Resources") {
                let mut row = out.new_element("Results");
                row.set("ResourceType", wanted.get("ResourceType").clone());
                row.set("ResourceName", wanted.get("ResourceName").clone());
                let listener = format!("PLAINTEXT://native-{}:9092", asked.node.broker);
                let broker_id = asked.node.broker.to_string();
                for (name, value) in [("advertised.listeners", &listener), ("node.id", &broker_id)] {
                    if wanted.i8("ResourceType") == 4 {
                        let mut config = row.new_element("Configs");
                        config.set("Name", name);
                        config.set("Value", value);
                        row.push("Configs", config);
                    }
                }
                out.push("Results", row);
            }
            Some(out)
        };
        let wanted = [(2, "renamed"), (2, "moved"), (4, "7"), (4, "9"), (4, "x")];
        let answer = world.ask(api, version, &resources(api, &wanted), &mut broker);
        let shown: Vec<_> =
            answer.structs("Results").map(|r| (r.str("ResourceName"), r.i16("ErrorCode"))).collect();
        let expected = [("renamed", 0), ("moved", 0), ("7", 0), ("9", 42), ("x", 42)];
        assert_eq!(shown, expected);
        let asked: Vec<_> = world
            .asked
            .iter()
            .flat_map(|a| {
                a.body.structs("Resources").map(|r| (a.node.side, r.str("ResourceName").to_owned()))
            })
            .collect();
        assert!(asked.contains(&(Source, "native.renamed".to_owned())));
        assert!(asked.contains(&(Target, "moved".to_owned())));
        assert!(asked.contains(&(Target, "3".to_owned())));
        let configs = find(&answer, "Results", "ResourceName", "7");
        let value = |name| find(configs, "Configs", "Name", name).str("Value");
        assert_eq!(
            (value("advertised.listeners"), value("node.id")),
            ("PLAINTEXT://proxy.example:20007", "7")
        );
    }
}

#[test]
fn what_is_a_clusters_is_asked_of_the_default_side_whichever_node_the_client_asks() {
    let mut world = World::at(Target, 3);
    let described = resources(key::DESCRIBE_CONFIGS, &[(4, ""), (32, "at-target"), (32, "any")]);
    world.ask(key::DESCRIBE_CONFIGS, 4, &described, &mut |_| Some(response(key::DESCRIBE_CONFIGS)));
    let asked: Vec<_> = world
        .asked
        .iter()
        .flat_map(|a| a.body.structs("Resources").map(|r| (a.node.side, r.str("ResourceName").to_owned())))
        .collect();
    let name = str::to_owned;
    assert_eq!(asked, [(Source, name("")), (Source, name("any")), (Target, name("at-target"))]);
    for api in [key::DESCRIBE_ACLS, key::DESCRIBE_CLIENT_QUOTAS, key::DESCRIBE_USER_SCRAM_CREDENTIALS] {
        for version in versions(api) {
            let mut world = World::at(Target, 3);
            world.ask(api, version, &request(api), &mut |_| Some(response(api)));
            assert!(world.asked_nodes().iter().all(|node| node.side == Source), "{api}");
            assert_eq!(world.asked.len(), 1);
        }
    }
}

#[test]
fn r26_settings_of_a_topic_on_both_sides_are_changed_on_both_in_every_version() {
    for api in [key::ALTER_CONFIGS, key::INCREMENTAL_ALTER_CONFIGS] {
        for version in versions(api) {
            let mut world = World::at(Target, 1);
            let mut broker = obedient(api, "Resources", "Responses");
            let wanted = [(2, "plain"), (2, "moved"), (2, "renamed"), (4, "4")];
            let answer = world.ask(api, version, &resources(api, &wanted), &mut broker);
            let shown: Vec<_> =
                answer.structs("Responses").map(|r| (r.str("ResourceName"), r.i16("ErrorCode"))).collect();
            assert_eq!(shown, [("plain", 0), ("moved", 0), ("renamed", 0), ("4", 0)]);
            let mut changed: Vec<_> = world
                .asked
                .iter()
                .filter(|a| !a.body.bool("ValidateOnly"))
                .flat_map(|a| {
                    a.body.structs("Resources").map(|r| (r.str("ResourceName").to_owned(), a.node.side))
                })
                .collect();
            changed.sort();
            let expected = [
                ("2", Source),
                ("moved", Source),
                ("moved", Target),
                ("native.renamed", Source),
                ("plain", Source),
                ("plain", Target),
            ];
            assert_eq!(changed, expected.map(|(name, side)| (name.to_owned(), side)));
        }
    }
}

#[test]
fn r26_settings_that_one_side_refuses_are_changed_on_neither() {
    let api = key::INCREMENTAL_ALTER_CONFIGS;
    let mut world = World::at(Target, 1);
    let mut broker = judging(api, "Resources", "Responses", |asked, _| {
        if asked.node.side == Source { code::INVALID_REQUEST } else { code::NONE }
    });
    let answer = world.ask(api, 1, &resources(api, &[(2, "moved")]), &mut broker);
    assert_eq!(answer.structs("Responses").next().expect("one").i16("ErrorCode"), code::INVALID_REQUEST);
    assert_eq!(rounds(&world), [(Source, true)]);
}

#[test]
fn r26_settings_are_held_while_a_flip_fences_the_topic() {
    let api = key::INCREMENTAL_ALTER_CONFIGS;
    let mut world = World::at(Target, 1);
    world.shared.changes.close(&Arc::from("moved"));
    assert!(world.run(api, 1, &resources(api, &[(2, "moved")]), &mut no_broker).is_none());
    assert!(world.asked.is_empty());
    // What is read is not held.
    let mut broker = obedient(key::DESCRIBE_CONFIGS, "Resources", "Results");
    let mut world = World::at(Target, 1);
    world.shared.changes.close(&Arc::from("moved"));
    world.ask(key::DESCRIBE_CONFIGS, 4, &resources(key::DESCRIBE_CONFIGS, &[(2, "moved")]), &mut broker);
    let begun = world.shared.changes.begin([Arc::from("moved")].into(), ChangeKind::Records, Revision(9));
    assert!(begun.is_none());
}

#[test]
fn producers_are_described_by_the_owners_leader_as_clients_know_them() {
    let mut body = request(key::DESCRIBE_PRODUCERS);
    for (name, indexes) in [("plain", vec![0, 1]), ("moved", vec![0, 9])] {
        let mut topic = body.new_element("Topics");
        topic.set("Name", name);
        topic.set("PartitionIndexes", indexes);
        body.push("Topics", topic);
    }
    let known = pid::issue(5);
    let mut broker = |asked: &Asked| {
        let mut out = response(key::DESCRIBE_PRODUCERS);
        for wanted in asked.body.structs("Topics") {
            let mut topic = out.new_element("Topics");
            topic.set("Name", wanted.get("Name").clone());
            for index in wanted.ints("PartitionIndexes") {
                let mut partition = topic.new_element("Partitions");
                partition.set("PartitionIndex", Value::Int(index));
                let mut producer = partition.new_element("ActiveProducers");
                producer.set("ProducerId", pid::with_visit(known, 3));
                producer.set("CurrentTxnStartOffset", 12_i64);
                partition.push("ActiveProducers", producer);
                topic.push("Partitions", partition);
            }
            out.push("Topics", topic);
        }
        Some(out)
    };
    let mut world = World::at(Source, 1);
    let answer = world.ask(key::DESCRIBE_PRODUCERS, 0, &body, &mut broker);
    let mut shown = Vec::new();
    for topic in answer.structs("Topics") {
        for partition in topic.structs("Partitions") {
            let producer = partition.structs("ActiveProducers").next();
            let start = producer.map(|p| {
                assert_eq!(p.i64("ProducerId"), known);
                p.i64("CurrentTxnStartOffset")
            });
            shown.push((
                topic.str("Name"),
                partition.i32("PartitionIndex"),
                partition.i16("ErrorCode"),
                start,
            ));
        }
    }
    // Native 12 of the target is virtual 100 + 2.
    let expected = [
        ("plain", 0, 0, Some(12)),
        ("plain", 1, 0, Some(12)),
        ("moved", 0, 0, Some(102)),
        ("moved", 9, code::UNKNOWN_TOPIC_OR_PARTITION, None),
    ];
    assert_eq!(shown, expected);
    let nodes = [VirtualNode::new(Source, 1), VirtualNode::new(Source, 2), VirtualNode::new(Target, 3)];
    assert_eq!(world.asked_nodes(), nodes);
}
