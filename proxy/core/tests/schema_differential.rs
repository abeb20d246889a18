//! The codec against an independent implementation, the crate `kafka-protocol`.

use bytes::{Bytes, BytesMut};
use crossover_core::schema::{self, Field, Message, Str, Struct, Type, Value};
use kafka_protocol::messages::{
    ApiKey, FetchRequest, FetchResponse, FindCoordinatorRequest, JoinGroupRequest, MetadataResponse,
    OffsetCommitRequest, ProduceRequest, RequestKind, ResponseKind, fetch_request, fetch_response,
    find_coordinator_response, join_group_request, metadata_response, offset_commit_request, produce_request,
};
use kafka_protocol::messages::{BrokerId, FindCoordinatorResponse, GroupId, ProducerId, TopicName};
use kafka_protocol::protocol::{Encodable, StrBytes};

const ROUNDS: u64 = 12;

/// Their list of API versions has these requests, their codec ends one version before.
const NOT_THEIRS: [(&str, i16); 3] =
    [("OffsetCommitRequest", 10), ("OffsetFetchRequest", 10), ("InitProducerIdRequest", 6)];

/// Every API and version both know: values drawn at random are encoded by us, understood by them, encoded by them to
/// the same bytes, and decoded by us to the same values.
#[test]
fn random_messages_encode_to_the_same_bytes() {
    let mut compared = 0;
    let mut failures = Vec::new();
    for key in schema::keys() {
        let Ok(api) = ApiKey::try_from(*key) else { continue };
        let theirs = api.valid_versions();
        for message in [schema::request(*key), schema::response(*key)].into_iter().flatten() {
            for version in message.versions.min.max(theirs.min)..=message.versions.max.min(theirs.max) {
                if !NOT_THEIRS.contains(&(message.name, version)) {
                    let outcome =
                        (0..ROUNDS).try_for_each(|seed| compare_random(api, message, version, seed));
                    failures.extend(outcome.err().map(|e| format!("{} v{version}: {e}", message.name)));
                    compared += 1;
                }
            }
        }
    }
    assert!(failures.is_empty(), "{} of {compared} differ:\n{}", failures.len(), failures.join("\n"));
    assert!(compared > 400, "only {compared} messages compared");
}

fn compare_random(api: ApiKey, message: &'static Message, version: i16, seed: u64) -> Result<(), String> {
    let value = Random::new(seed).fields(message.fields, version);
    let mut ours = BytesMut::new();
    schema::encode(message, version, &value, &mut ours).map_err(|e| e.to_string())?;
    let ours = ours.freeze();
    let mut theirs = BytesMut::new();
    match message.kind {
        schema::Kind::Request => RequestKind::decode(api, &mut ours.clone(), version)
            .and_then(|decoded| decoded.encode(&mut theirs, version)),
        schema::Kind::Response => ResponseKind::decode(api, &mut ours.clone(), version)
            .and_then(|decoded| decoded.encode(&mut theirs, version)),
    }
    .map_err(|e| format!("{e:#}: {value:?}"))?;
    if ours != theirs {
        return Err(format!("{ours:?} is {theirs:?} to them: {value:?}"));
    }
    match schema::decode(message, version, &ours) {
        Ok(again) if again == value => Ok(()),
        other => Err(format!("{value:?} comes back as {other:?}")),
    }
}

/// Draws values that a version can carry.
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn fields(&mut self, fields: &'static [Field], version: i16) -> Struct {
        let mut out = Struct::new(fields);
        for field in fields.iter().filter(|f| f.versions.contains(version)) {
            let tagged_default = field.is_tagged(version) && self.next().is_multiple_of(2);
            if !tagged_default {
                let null = field.nullable.contains(version) && self.next().is_multiple_of(4);
                out.set(field.name, self.value(field.ty, null, version));
            }
        }
        out
    }

    fn value(&mut self, ty: Type, null: bool, version: i16) -> Value {
        match ty {
            Type::Bool => Value::Bool(self.next().is_multiple_of(2)),
            Type::Float64 => Value::Float(self.next() as f64 / 7.0),
            Type::Uuid => Value::Uuid([self.next() as u8; 16]),
            Type::String => Value::String((!null).then(|| Str::from("né".repeat(self.next() as usize % 90)))),
            Type::Bytes | Type::Records => {
                Value::Bytes((!null).then(|| Bytes::from(vec![7; self.next() as usize % 300])))
            }
            Type::Array(element) => Value::Array((!null).then(|| {
                let count = self.next() % 3;
                (0..count).map(|_| self.value(*element, false, version)).collect()
            })),
            Type::Struct(fields) => Value::Struct((!null).then(|| self.fields(fields, version))),
            integer => {
                let (least, most) = integer.int_range().expect("an integer type");
                let drawn = i128::from(self.next()) % (i128::from(most) - i128::from(least) + 1);
                Value::Int((i128::from(least) + drawn) as i64)
            }
        }
    }
}

/// Bytes of theirs, through our decoder and encoder.
fn same_bytes<M: Encodable + kafka_protocol::protocol::Message>(
    table: Option<&'static Message>,
    message: &M,
) -> usize {
    let table = table.expect("a table");
    let range = table.versions.min.max(M::VERSIONS.min)..=table.versions.max.min(M::VERSIONS.max);
    let mut versions = 0;
    for version in range {
        let mut theirs = BytesMut::new();
        // A message that uses a field the version lacks is theirs to refuse.
        if message.encode(&mut theirs, version).is_err() {
            continue;
        }
        let theirs = theirs.freeze();
        let value = schema::decode(table, version, &theirs)
            .unwrap_or_else(|e| panic!("{} v{version}: {e}", table.name));
        let mut ours = BytesMut::new();
        schema::encode(table, version, &value, &mut ours)
            .unwrap_or_else(|e| panic!("{} v{version}: {e}", table.name));
        assert_eq!(ours, theirs, "{} v{version}", table.name);
        versions += 1;
    }
    versions
}

fn text(text: &'static str) -> StrBytes {
    StrBytes::from_static_str(text)
}

fn topic(name: &'static str) -> TopicName {
    TopicName(text(name))
}

#[test]
fn their_metadata_response_round_trips() {
    let partition = metadata_response::MetadataResponsePartition::default()
        .with_partition_index(3)
        .with_leader_id(BrokerId(2))
        .with_replica_nodes(vec![BrokerId(2), BrokerId(1)])
        .with_isr_nodes(vec![BrokerId(2)]);
    let answer = metadata_response::MetadataResponseTopic::default()
        .with_name(Some(topic("orders")))
        .with_partitions(vec![partition]);
    let broker = metadata_response::MetadataResponseBroker::default()
        .with_node_id(BrokerId(2))
        .with_host(text("broker"))
        .with_port(9092);
    let message = MetadataResponse::default().with_brokers(vec![broker]).with_topics(vec![answer]);
    let tagged = message.clone().with_unknown_tagged_field(99, Bytes::from_static(b"later"));
    assert_eq!(same_bytes(schema::response(3), &message), 14);
    assert!(same_bytes(schema::response(3), &tagged) >= 5);
}

#[test]
fn their_fetch_messages_round_trip() {
    let partition = fetch_request::FetchPartition::default().with_partition(1).with_fetch_offset(77);
    let wanted =
        fetch_request::FetchTopic::default().with_topic(topic("orders")).with_partitions(vec![partition]);
    let request = FetchRequest::default().with_max_wait_ms(500).with_topics(vec![wanted]);
    assert!(same_bytes(schema::request(1), &request) >= 9);

    let aborted =
        fetch_response::AbortedTransaction::default().with_producer_id(ProducerId(5)).with_first_offset(70);
    let leader = fetch_response::LeaderIdAndEpoch::default().with_leader_id(BrokerId(4)).with_leader_epoch(9);
    let data = fetch_response::PartitionData::default()
        .with_partition_index(1)
        .with_high_watermark(80)
        .with_aborted_transactions(Some(vec![aborted]))
        .with_records(Some(Bytes::from_static(b"records")));
    let endpoint =
        fetch_response::NodeEndpoint::default().with_node_id(BrokerId(4)).with_host(text("b4")).with_port(1);
    let answer = |data| fetch_response::FetchableTopicResponse::default().with_partitions(vec![data]);
    let plain = FetchResponse::default().with_responses(vec![answer(data.clone())]);
    let moved = FetchResponse::default()
        .with_responses(vec![answer(data.with_current_leader(leader))])
        .with_node_endpoints(vec![endpoint]);
    assert_eq!(same_bytes(schema::response(1), &plain), 15);
    assert!(same_bytes(schema::response(1), &moved) >= 3);
}

#[test]
fn their_other_messages_round_trip() {
    let partition = produce_request::PartitionProduceData::default()
        .with_index(2)
        .with_records(Some(Bytes::from_static(b"records")));
    let data = produce_request::TopicProduceData::default()
        .with_name(topic("orders"))
        .with_partition_data(vec![partition]);
    let produce = ProduceRequest::default().with_acks(-1).with_timeout_ms(30_000).with_topic_data(vec![data]);
    assert!(same_bytes(schema::request(0), &produce) >= 10);

    let commit = offset_commit_request::OffsetCommitRequestPartition::default()
        .with_committed_offset(42)
        .with_committed_metadata(Some(text("x")));
    let commit = offset_commit_request::OffsetCommitRequestTopic::default()
        .with_name(topic("orders"))
        .with_partitions(vec![commit]);
    let commit = OffsetCommitRequest::default().with_group_id(GroupId(text("g"))).with_topics(vec![commit]);
    assert!(same_bytes(schema::request(8), &commit) >= 8);

    let protocol = join_group_request::JoinGroupRequestProtocol::default()
        .with_name(text("range"))
        .with_metadata(Bytes::from_static(&[0, 1, 2]));
    let join = JoinGroupRequest::default()
        .with_group_id(GroupId(text("g")))
        .with_protocol_type(text("consumer"))
        .with_protocols(vec![protocol]);
    assert_eq!(same_bytes(schema::request(11), &join), 10);

    let one = FindCoordinatorRequest::default().with_key(text("g"));
    let many = FindCoordinatorRequest::default().with_coordinator_keys(vec![text("g"), text("h")]);
    assert_eq!((same_bytes(schema::request(10), &one), same_bytes(schema::request(10), &many)), (4, 3));
    let found = find_coordinator_response::Coordinator::default()
        .with_key(text("g"))
        .with_host(text("b"))
        .with_port(9);
    let found = FindCoordinatorResponse::default().with_coordinators(vec![found]);
    assert_eq!(same_bytes(schema::response(10), &found), 3);
}
