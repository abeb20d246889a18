//! A session between a client and brokers that the test plays: what the session sends is looked at, answered, or left.

use super::{
    CloseReason, Effect, Errand, ErrandDone, Event, Limits, Session, Shared, Ticket, TransactionPlan,
    UpstreamId,
};
use crate::ids::{ClusterSide, NativeOffset, Revision, TopicId, VirtualNode};
use crate::node::{ApiRanges, BrokerAddress, NodeMap, PartitionInfo, TopicInfo, Topology};
use crate::producer::gate::{ClientKey, SessionId};
use crate::producer::transaction::Identity;
use crate::route::{GroupTable, LinkMode, RouteRules, RouteTable, Snapshot, Timelines};
use crate::schema::{self, Str, Struct, Value};
use crate::timeline::Boundary;
use crate::wire::header;
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

pub(crate) use crate::ids::ClusterSide::{Source, Target};

/// The one topic, with [`PARTITIONS`] partitions. Partition `p` is led by broker `p` on either side.
pub(crate) const TOPIC: &str = "orders";
pub(crate) const PARTITIONS: i32 = 2;
/// Native leader epochs, by side.
pub(crate) const EPOCHS: [i32; 2] = [5, 3];
const PREFIX: usize = 4;

/// A request that the session sent to a broker.
#[derive(Clone, Debug)]
pub(crate) struct Sent {
    pub(crate) upstream: UpstreamId,
    pub(crate) node: VirtualNode,
    pub(crate) api_key: i16,
    pub(crate) version: i16,
    pub(crate) body: Struct,
    correlation: i32,
}

/// A session, what it is planned with, and what it did.
pub(crate) struct Rig {
    pub(crate) session: Session,
    pub(crate) snapshot: Snapshot,
    pub(crate) shared: Shared,
    pub(crate) now_ms: i64,
    pub(crate) closed: Option<CloseReason>,
    pub(crate) refreshed: BTreeSet<ClusterSide>,
    errands: VecDeque<(Ticket, Errand)>,
    others: Vec<Effect>,
    nodes: BTreeMap<UpstreamId, VirtualNode>,
    sent: VecDeque<Sent>,
    replies: VecDeque<Bytes>,
    asked: VecDeque<(i16, i16)>,
}

impl Rig {
    /// A client of broker `broker` of `side`; the topic is the source's, and was never flipped.
    pub(crate) fn new(side: ClusterSide, broker: i32) -> Rig {
        let node = VirtualNode::new(side, broker);
        let limits = Limits { in_flight_requests_max: 16, buffered_bytes_max: 1 << 20, hold_ms_max: 5000 };
        Rig {
            session: Session::new(SessionId(1), node, "client".to_owned(), limits, 7),
            snapshot: snapshot(),
            shared: Shared::default(),
            now_ms: 1_000,
            closed: None,
            refreshed: BTreeSet::new(),
            errands: VecDeque::new(),
            others: Vec::new(),
            nodes: BTreeMap::new(),
            sent: VecDeque::new(),
            replies: VecDeque::new(),
            asked: VecDeque::new(),
        }
    }

    pub(crate) fn node(&self) -> VirtualNode {
        self.session.core.node
    }

    pub(crate) fn client_key(&self, acks: i16) -> ClientKey {
        self.session.core.client_key(acks)
    }

    /// What the proxy knows of a cluster.
    pub(crate) fn topology(&mut self, side: ClusterSide) -> &mut Topology {
        Arc::make_mut(&mut self.snapshot.topologies[side.index()])
    }

    /// The first partition, as its cluster's metadata shows it.
    pub(crate) fn partition(&mut self, side: ClusterSide) -> &mut PartitionInfo {
        let topic = self.topology(side).topics.get_mut(TOPIC).expect("there");
        &mut Arc::make_mut(topic).partitions[0]
    }

    /// Publishes that the home of a group is `to`, and of no other one; the session is not woken.
    pub(crate) fn move_home(&mut self, group: &str, to: ClusterSide) {
        let homes = [(Arc::from(group), to)].into();
        self.snapshot.groups = Arc::new(GroupTable { homes, ..GroupTable::default() });
    }

    /// A transaction is open that takes in `topics`, at the home of its id.
    pub(crate) fn begin_transaction(&self, id: &str, topics: &BTreeSet<Arc<str>>) {
        let (home, producer) = (self.snapshot.transaction_home(id), Identity { pid: 1, epoch: 0 });
        let plan = TransactionPlan { revision: self.snapshot.revision, home, to: home, producer };
        self.shared.transactions.begin(id, topics, plan, 0);
        self.shared.transactions.answered(id, producer, true, 0);
    }

    /// Publishes a flip of all partitions; the session is not woken.
    pub(crate) fn flip(&mut self, to: ClusterSide, old_end: i64, new_start: i64) {
        let mut routes = (*self.snapshot.routes).clone();
        let mut route = (**routes.topic(TOPIC).unwrap()).clone();
        let sealed = (0..PARTITIONS).map(|p| {
            let boundary = Boundary {
                to,
                old_native_end: NativeOffset(old_end),
                new_native_start: NativeOffset(new_start),
                old_native_epoch: EPOCHS[to.other().index()],
                highest_virtual_epoch_seen: -1,
                new_native_epoch: EPOCHS[to.index()],
                identity: false,
                at_ms: 0,
            };
            Arc::new(route.timeline(p).unwrap().seal(&boundary).unwrap())
        });
        let sealed = sealed.collect();
        route.timelines = Timelines::PerPartition(sealed);
        route.owner = to;
        routes.topics.insert(Arc::clone(&route.name), Arc::new(route));
        self.snapshot.routes = Arc::new(routes);
        self.snapshot.revision.0 += 1;
    }

    /// What the virtual log shows of `native` in the current era.
    pub(crate) fn virtual_epoch(&self, native: i32) -> i32 {
        let timeline = self.snapshot.routes.topic(TOPIC).unwrap().timeline(0).unwrap();
        timeline.epoch_to_virtual(timeline.current().index, native).unwrap()
    }

    pub(crate) fn handle(&mut self, event: Event) {
        let was_due = matches!(event, Event::Timer);
        self.session.handle(event, &self.snapshot, &self.shared, self.now_ms);
        if let Some(due) = self.session.next_deadline_ms().filter(|_| was_due) {
            assert!(due > self.now_ms, "its connection would be busy with waking it");
        }
        for effect in self.session.drain_effects() {
            match effect {
                Effect::Dial { upstream, node, .. } => {
                    self.nodes.insert(upstream, node);
                }
                Effect::Send { upstream, frame } => {
                    let sent = self.decode(upstream, &frame.slice(PREFIX..));
                    self.sent.push_back(sent);
                }
                Effect::Reply(frame) => self.replies.push_back(frame.slice(PREFIX..)),
                Effect::Close(reason) => self.closed = Some(reason),
                Effect::Refresh(side) => {
                    self.refreshed.insert(side);
                }
                Effect::Errand { ticket, errand } => self.errands.push_back((ticket, errand)),
                other => self.others.push(other),
            }
        }
    }

    /// What else the session has asked for since the last call.
    pub(crate) fn others(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.others)
    }

    /// The next errand that the session has asked for.
    pub(crate) fn errand(&mut self) -> Option<(Ticket, Errand)> {
        self.errands.pop_front()
    }

    /// Tells the session what became of an errand; floors show from then on.
    pub(crate) fn run_errand(&mut self, (ticket, errand): (Ticket, Errand), done: ErrandDone) {
        if let (Errand::RaiseFloors(floors), Ok(_)) = (&errand, &done) {
            let mut routes = (*self.snapshot.routes).clone();
            for (topic, partition, floor) in floors {
                let mut route = (**routes.topic(topic).unwrap()).clone();
                route.raise_floor(*partition, *floor);
                routes.topics.insert(Arc::clone(topic), Arc::new(route));
            }
            self.snapshot.routes = Arc::new(routes);
        }
        self.handle(Event::ErrandDone { ticket, done });
    }

    fn decode(&self, upstream: UpstreamId, frame: &Bytes) -> Sent {
        let header = header::peek_request(frame).unwrap();
        let (api_key, version) = (header.api_key, header.api_version);
        let body = schema::request(api_key)
            .map(|m| schema::decode(m, version, &frame.slice(header.body_offset..)).unwrap())
            .unwrap();
        Sent {
            upstream,
            node: self.nodes[&upstream],
            api_key,
            version,
            body,
            correlation: header.correlation_id,
        }
    }

    /// The client sends a request.
    pub(crate) fn ask(&mut self, api_key: i16, version: i16, fill: impl FnOnce(&mut Struct)) {
        let message = schema::request(api_key).unwrap();
        let mut body = Struct::new(message.fields);
        fill(&mut body);
        let frame = header::encode_request(message, version, 9, Some(&Str::from("app")), &body).unwrap();
        self.asked.push_back((api_key, version));
        self.handle(Event::Frame(frame.slice(PREFIX..)));
    }

    /// The requests sent to brokers since the last call.
    pub(crate) fn sent(&mut self) -> Vec<Sent> {
        self.sent.drain(..).collect()
    }

    /// The one request sent since the last call.
    #[track_caller]
    pub(crate) fn one(&mut self) -> Sent {
        let mut sent = self.sent();
        assert_eq!(sent.len(), 1, "{sent:#?}");
        sent.remove(0)
    }

    /// A broker answers a request. Its connection must owe no earlier answer.
    pub(crate) fn answer(&mut self, to: &Sent, fill: impl FnOnce(&mut Struct)) {
        let message = schema::response(to.api_key).unwrap();
        let mut body = Struct::new(message.fields);
        fill(&mut body);
        let frame = header::encode_response(message, to.version, to.correlation, &body).unwrap();
        self.handle(Event::Answer { upstream: to.upstream, frame: frame.slice(PREFIX..) });
    }

    pub(crate) fn connect(&mut self, sent: &Sent) {
        self.handle(Event::Connected { upstream: sent.upstream });
    }

    pub(crate) fn lose(&mut self, sent: &Sent) {
        self.handle(Event::Lost { upstream: sent.upstream });
    }

    /// Lets time pass, with the timer the session asked for.
    pub(crate) fn pass(&mut self, ms: i64) {
        let until = self.now_ms + ms;
        while let Some(due) = self.session.next_deadline_ms().filter(|due| *due <= until) {
            self.now_ms = due.max(self.now_ms + 1);
            self.handle(Event::Timer);
        }
        self.now_ms = self.now_ms.max(until);
    }

    /// The client's next answer, if it is there.
    pub(crate) fn reply(&mut self) -> Option<Struct> {
        let frame = self.replies.pop_front()?;
        let (api_key, version) = self.asked.pop_front().unwrap();
        let message = schema::response(api_key).unwrap();
        let (_, at) = header::decode_response_header(message, version, &frame).unwrap();
        Some(schema::decode(message, version, &frame.slice(at..)).unwrap())
    }
}

/// The only partition of an answer's (or a request's) only topic.
#[track_caller]
pub(crate) fn only<'a>(message: &'a Struct, topics: &str) -> &'a Struct {
    let partitions: Vec<&Struct> = message.structs(topics).flat_map(|t| t.structs("Partitions")).collect();
    assert_eq!(partitions.len(), 1, "{message:#?}");
    partitions[0]
}

/// Puts into an OffsetForLeaderEpoch response what a leader says of the only partition.
pub(crate) fn epoch_end(body: &mut Struct, error: i16, epoch: i32, end: i64) {
    let mut topic = body.new_element("Topics");
    topic.set("Topic", TOPIC);
    let mut partition = topic.new_element("Partitions");
    partition.set("ErrorCode", error);
    partition.set("LeaderEpoch", epoch);
    partition.set("EndOffset", end);
    topic.push("Partitions", partition);
    body.push("Topics", topic);
}

/// A v2 batch of `count` records. Only its header is real.
pub(crate) fn batch(base: i64, count: i32, epoch: i32) -> Bytes {
    let mut out = base.to_be_bytes().to_vec();
    out.extend((49_i32 + 8).to_be_bytes());
    out.extend(epoch.to_be_bytes());
    out.push(2);
    out.extend([0; 4]);
    out.extend(0_i16.to_be_bytes());
    out.extend((count - 1).to_be_bytes());
    out.extend([0; 16]);
    out.extend((-1_i64).to_be_bytes());
    out.extend((-1_i16).to_be_bytes());
    out.extend((-1_i32).to_be_bytes());
    out.extend(count.to_be_bytes());
    out.extend(b"payload.");
    Bytes::from(out)
}

fn snapshot() -> Snapshot {
    let topologies = ClusterSide::BOTH.map(|side| Arc::new(topology(side)));
    let name: Arc<str> = Arc::from(TOPIC);
    let rules = Arc::new(RouteRules { default_side: Source, rules: Vec::new() });
    let route = Arc::new(rules.initial_route(&name, &topologies));
    assert_eq!(route.mode, LinkMode::Continue);
    let routes = RouteTable {
        rules,
        names: HashMap::from([(route.virtual_id, Arc::clone(&name))]),
        topics: HashMap::from([(name, route)]),
        virtual_names: [HashMap::new(), HashMap::new()],
    };
    let mut ports = BTreeMap::new();
    for side in ClusterSide::BOTH {
        for broker in 0..PARTITIONS {
            let node = VirtualNode::new(side, broker);
            ports.insert(node, u16::try_from(9100 + node.to_virtual()).unwrap());
        }
    }
    Snapshot {
        revision: Revision(1),
        topologies,
        routes: Arc::new(routes),
        groups: Arc::new(GroupTable::default()),
        transactions: Arc::default(),
        taken_over: false,
        nodes: Arc::new(NodeMap { host: "proxy".to_owned(), ports }),
        cluster_id: Arc::from("virtual"),
        advertised: Arc::new(ranges()),
        features: Arc::new(BTreeMap::new()),
        preparing: Arc::new(BTreeSet::new()),
    }
}

fn topology(side: ClusterSide) -> Topology {
    let mut topology = Topology::unknown(side);
    let id = TopicId([u8::try_from(side.index() + 1).unwrap(); 16]);
    let partitions = (0..PARTITIONS).map(|leader| PartitionInfo {
        leader,
        epoch: EPOCHS[side.index()],
        replicas: vec![leader],
        isr: vec![leader],
    });
    let info = TopicInfo { name: Arc::from(TOPIC), id, internal: false, partitions: partitions.collect() };
    for broker in 0..PARTITIONS {
        let address = BrokerAddress { host: side.as_str().to_owned(), port: 9092, rack: None };
        topology.brokers.insert(broker, address);
    }
    topology.topic_names.insert(id, Arc::clone(&info.name));
    topology.topics.insert(Arc::clone(&info.name), Arc::new(info));
    topology.api_ranges = ranges();
    topology.reachable = true;
    topology
}

/// All that the tables know.
fn ranges() -> ApiRanges {
    let of = |key: i16| schema::request(key).map(|m| (key, (m.versions.min, m.versions.max)));
    ApiRanges(schema::keys().iter().filter_map(|key| of(*key)).collect())
}

/// The answer to a produce of one partition.
pub(crate) fn answer_produce(rig: &mut Rig, to: &Sent, error: i16, base: i64) {
    let index =
        to.body.structs("TopicData").next().unwrap().structs("PartitionData").next().unwrap().i32("Index");
    rig.answer(to, |body| {
        let mut topic = body.new_element("Responses");
        let mut partition = topic.new_element("PartitionResponses");
        partition.set("Index", index);
        partition.set("ErrorCode", error);
        partition.set("BaseOffset", base);
        topic.set("Name", TOPIC);
        topic.set("PartitionResponses", Value::Array(Some(vec![partition.into()])));
        body.set("Responses", Value::Array(Some(vec![topic.into()])));
    });
}

/// Error code and base offset of the client's answer to such a one, if there is one.
pub(crate) fn produce_reply(rig: &mut Rig) -> Option<(i16, i64)> {
    let reply = rig.reply()?;
    let topic = reply.structs("Responses").next().unwrap().clone();
    let partition = topic.structs("PartitionResponses").next().unwrap().clone();
    Some((partition.i16("ErrorCode"), partition.i64("BaseOffset")))
}
