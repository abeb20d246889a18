//! Bodies that no client of good faith sends: every one is refused without a panic and without memory for its claims.

use bytes::{BufMut, Bytes, BytesMut};
use crossover_core::schema::{self, Mark, Message, Problem, Struct, Value};
use crossover_core::wire::header::{self, HeaderError};
use proptest::prelude::*;

fn request(key: i16) -> &'static Message {
    schema::request(key).expect("a table")
}

fn response(key: i16) -> &'static Message {
    schema::response(key).expect("a table")
}

/// `validate` and `decode` must refuse for the same reason.
fn problem(message: &'static Message, version: i16, body: &[u8]) -> Option<Problem> {
    let verdict = schema::validate(message, version, body).err().map(|e| e.problem);
    let decoded = schema::decode(message, version, &Bytes::copy_from_slice(body)).err().map(|e| e.problem);
    assert_eq!(verdict, decoded);
    verdict
}

fn encode(message: &'static Message, version: i16, value: &Struct) -> Bytes {
    let mut out = BytesMut::new();
    schema::encode(message, version, value, &mut out).expect("it can be encoded");
    out.freeze()
}

/// A Fetch response with something in every kind of field.
fn fetch_response(version: i16) -> Struct {
    let mut body = Struct::new(response(1).fields);
    let mut topic = body.new_element("Responses");
    if version < 13 {
        topic.set("Topic", "orders");
    } else {
        topic.set("TopicId", [9; 16]);
    }
    let mut partition = topic.new_element("Partitions");
    partition.set("HighWatermark", 1000_i64);
    partition.set("Records", Bytes::from_static(b"some records"));
    let mut aborted = partition.new_element("AbortedTransactions");
    aborted.set("FirstOffset", 900_i64);
    partition.push("AbortedTransactions", aborted);
    if version >= 12 {
        let mut leader = partition.new_element("CurrentLeader");
        leader.set("LeaderId", 3);
        leader.set("LeaderEpoch", 8);
        partition.set("CurrentLeader", leader);
    }
    topic.push("Partitions", partition);
    body.push("Responses", topic);
    if version >= 16 {
        let mut node = body.new_element("NodeEndpoints");
        node.set("NodeId", 3);
        node.set("Host", "broker-3");
        node.set("Port", 9092);
        body.push("NodeEndpoints", node);
    }
    body
}

#[test]
fn a_huge_array_count_is_refused() {
    // The 8-byte body that makes naive decoders reserve gigabytes.
    let body = [0x7f, 0xff, 0xff, 0xff, 0, 0, 0, 0];
    for version in 0..=8 {
        assert_eq!(problem(request(3), version, &body), Some(Problem::Length(0x7fff_ffff)), "v{version}");
    }
}

#[test]
fn negative_and_null_lengths() {
    for version in [0, 1, 8] {
        assert_eq!(
            problem(request(3), version, &(-2_i32).to_be_bytes()),
            Some(Problem::Length(-2)),
            "v{version}"
        );
    }
    // Null means "all topics" from version 1 on, and nothing in version 0.
    assert_eq!(problem(request(3), 0, &(-1_i32).to_be_bytes()), Some(Problem::Null));
    assert_eq!(problem(request(3), 1, &(-1_i32).to_be_bytes()), None);
    let name = [[0, 0, 0, 1].as_slice(), &(-1_i16).to_be_bytes()].concat();
    assert_eq!(problem(request(3), 1, &name), Some(Problem::Null));
    let name = [[0, 0, 0, 1].as_slice(), &(-2_i16).to_be_bytes()].concat();
    assert_eq!(problem(request(3), 1, &name), Some(Problem::Length(-2)));
}

#[test]
fn compact_lengths() {
    let huge = [0xff, 0xff, 0xff, 0xff, 0x0f];
    assert_eq!(problem(request(3), 9, &huge), Some(Problem::Length(0xffff_fffe)));
    assert_eq!(problem(request(3), 9, &[0xff, 0xff, 0xff, 0xff, 0x1f]), Some(Problem::Varint));
    assert_eq!(problem(request(3), 9, &[0xff, 0xff, 0xff, 0xff, 0xff, 0x01]), Some(Problem::Varint));
    // A string that would end beyond the body.
    assert_eq!(problem(request(3), 9, &[2, 200, 1, b'a', 0, 0, 0]), Some(Problem::Truncated));
}

#[test]
fn strings_are_utf8_and_short() {
    assert_eq!(problem(request(3), 0, &[0, 0, 0, 1, 0, 2, 0xc3, 0x28]), Some(Problem::Utf8));
    let mut body = BytesMut::from(&[2, 0x81, 0x80, 0x02][..]);
    body.put_bytes(b'a', 0x8000);
    body.put_slice(&[0, 0, 0, 0, 0]);
    assert_eq!(problem(request(3), 9, &body), Some(Problem::Length(0x8000)));
}

#[test]
fn every_truncation_and_a_trailing_byte_are_refused() {
    for version in 4..=18 {
        let body = encode(response(1), version, &fetch_response(version));
        assert_eq!(problem(response(1), version, &body), None);
        for length in 0..body.len() {
            assert!(problem(response(1), version, &body[..length]).is_some(), "v{version} cut at {length}");
        }
        let longer = [&body, &[0][..]].concat();
        assert_eq!(problem(response(1), version, &longer), Some(Problem::Trailing(1)), "v{version}");
    }
}

#[test]
fn unknown_versions_are_refused() {
    for version in [-1, 3, 19, i16::MAX, i16::MIN] {
        assert_eq!(problem(response(1), version, &[]), Some(Problem::Version(version)));
    }
}

/// Heartbeat v4, with the tagged fields to be tried at its end.
fn heartbeat(tags: &[u8]) -> Vec<u8> {
    [&[2, b'g', 0, 0, 0, 1, 2, b'm', 0][..], tags].concat()
}

#[test]
fn tagged_fields_are_bounded_and_ordered() {
    assert_eq!(problem(request(12), 4, &heartbeat(&[0])), None);
    assert_eq!(problem(request(12), 4, &heartbeat(&[65])), Some(Problem::TagCount(65)));
    assert_eq!(problem(request(12), 4, &heartbeat(&[2, 5, 0, 5, 0])), Some(Problem::TagOrder(5)));
    assert_eq!(problem(request(12), 4, &heartbeat(&[2, 5, 0, 4, 0])), Some(Problem::TagOrder(4)));
    assert_eq!(problem(request(12), 4, &heartbeat(&[1, 5, 9, 0])), Some(Problem::Length(9)));
    let most: Vec<u8> = std::iter::once(64).chain((0..64).flat_map(|tag| [tag, 0])).collect();
    assert_eq!(problem(request(12), 4, &heartbeat(&most)), None);
    let mut large = heartbeat(&[1, 5, 0x81, 0x80, 0x04]);
    large.resize(large.len() + 0x1_0001, 0);
    assert_eq!(problem(request(12), 4, &large), Some(Problem::TagBytes));
}

#[test]
fn a_known_tag_has_to_fill_its_size() {
    let body = encode(response(1), 12, &fetch_response(12));
    // The tagged CurrentLeader: tag 1, 9 bytes, node 3, epoch 8, no tagged fields.
    let leader = [1, 9, 0, 0, 0, 3, 0, 0, 0, 8, 0];
    let at = body.windows(leader.len()).position(|w| w == leader).expect("the tagged field");
    for size in [0, 8, 10] {
        let mut body = body.to_vec();
        body[at + 1] = size;
        assert_eq!(problem(response(1), 12, &body), Some(Problem::TagSize(1)), "size {size}");
    }
}

#[test]
fn unknown_tagged_fields_are_kept() {
    let body = heartbeat(&[2, 5, 3, b'a', b'b', b'c', 0xff, 1, 0]);
    let value = schema::decode(request(12), 4, &Bytes::from(body.clone())).expect("a good body");
    let tags: Vec<(u32, &[u8])> = value.unknown_tags().map(|(tag, content)| (tag, &**content)).collect();
    assert_eq!(tags, [(5, &b"abc"[..]), (255, &b""[..])]);
    assert_eq!(encode(request(12), 4, &value), body);
}

#[test]
fn decoding_is_bounded_in_memory() {
    // Each partition number of 4 bytes would become a value of ten times that.
    let count = 4_000_000_usize;
    let mut body = BytesMut::new();
    for number in [-1, 500, 1, i32::MAX] {
        body.put_i32(number);
    }
    body.put_u8(0);
    body.put_i32(0);
    body.put_i32(-1);
    body.put_i32(0);
    body.put_i32(1);
    body.put_slice(b"\0\x01t");
    body.put_i32(count as i32);
    body.put_bytes(0, 4 * count);
    assert_eq!(schema::validate(request(1), 7, &body), Ok(()));
    let error = schema::decode(request(1), 7, &body.freeze()).expect_err("too much");
    assert!(matches!(error.problem, Problem::Budget(memory) if memory > schema::REQUEST_BUDGET), "{error}");
}

#[test]
fn patches_hit_what_they_mean() {
    for version in 4..=18 {
        let mut body = encode(response(1), version, &fetch_response(version)).to_vec();
        let patched = schema::patch(response(1), version, &mut body, |field, content| match field.mark {
            Mark::Position => {
                if let Ok(old) = <[u8; 8]>::try_from(&*content) {
                    content.copy_from_slice(&(i64::from_be_bytes(old) + 5).to_be_bytes());
                }
            }
            Mark::NodeId if field.name != "PreferredReadReplica" => {
                content.copy_from_slice(&70_i32.to_be_bytes())
            }
            _ => {}
        });
        assert_eq!(patched, Ok(()));
        let value = schema::decode(response(1), version, &Bytes::from(body)).expect("still valid");
        let partition = value.structs("Responses").flat_map(|t| t.structs("Partitions")).next().expect("one");
        assert_eq!(partition.i64("HighWatermark"), 1005);
        assert_eq!(
            partition.structs("AbortedTransactions").map(|a| a.i64("FirstOffset")).collect::<Vec<_>>(),
            [905]
        );
        assert_eq!(partition.bytes("Records"), b"some records");
        if version >= 12 {
            assert_eq!(partition.opt_struct("CurrentLeader").map(|l| l.i32("LeaderId")), Some(70));
        }
        assert_eq!(
            value.structs("NodeEndpoints").map(|n| n.i32("NodeId")).max(),
            (version >= 16).then_some(70)
        );
    }
}

#[test]
fn visits_come_in_wire_order_with_their_bytes() {
    let body = encode(response(1), 12, &fetch_response(12));
    let mut seen = Vec::new();
    schema::visit(response(1), 12, &body, |field, range| seen.push((field.name, body[range].to_vec())))
        .expect("valid");
    let names: Vec<&str> = seen.iter().map(|(name, _)| *name).collect();
    assert_eq!(names[..5], ["ErrorCode", "SessionId", "Topic", "PartitionIndex", "ErrorCode"]);
    assert!(seen.contains(&("Topic", b"orders".to_vec())));
    assert!(seen.contains(&("Records", b"some records".to_vec())));
    assert!(seen.contains(&("LeaderEpoch", vec![0, 0, 0, 8])));
}

#[test]
fn values_that_do_not_fit_are_refused_and_leave_nothing_behind() {
    let mut body = Struct::new(request(12).fields);
    body.set("GenerationId", 1_i64 << 40);
    let mut out = BytesMut::from(&b"before"[..]);
    let error = schema::encode(request(12), 4, &body, &mut out).expect_err("no int32");
    assert_eq!((error.field, error.problem), ("GenerationId", schema::Misfit::Range(1 << 40)));
    assert_eq!(out, &b"before"[..]);

    let mut body = Struct::new(request(12).fields);
    body.set("GroupId", Value::String(None));
    assert_eq!(
        schema::encode(request(12), 4, &body, &mut out).map_err(|e| e.problem),
        Err(schema::Misfit::Null)
    );

    let mut body = Struct::new(request(10).fields);
    body.push("CoordinatorKeys", "g");
    let problem = schema::encode(request(10), 3, &body, &mut out).map_err(|e| e.problem);
    assert_eq!(problem, Err(schema::Misfit::NotInVersion(3)));
    let other = Struct::new(request(12).fields);
    assert_eq!(
        schema::encode(request(10), 3, &other, &mut out).map_err(|e| e.problem),
        Err(schema::Misfit::Schema)
    );
}

#[test]
#[should_panic(expected = "\"Generation\" is not a field")]
fn a_wrong_name_panics_with_both_names() {
    let _ = Struct::new(request(12).fields).i32("Generation");
}

#[test]
#[should_panic(expected = "\"CommittedOffset\" is not an int32")]
fn a_wrong_type_panics_whatever_the_value() {
    let topics = Struct::new(request(8).fields).new_element("Topics");
    let _ = topics.new_element("Partitions").i32("CommittedOffset");
}

#[test]
fn headers_of_every_api_round_trip() {
    let client = schema::Str::from("client");
    for key in schema::keys() {
        for version in request(*key).versions.min..=request(*key).versions.max {
            for client_id in [None, Some(&client)] {
                let body = Struct::new(request(*key).fields);
                let frame =
                    header::encode_request(request(*key), version, 77, client_id, &body).expect("defaults");
                assert_eq!(
                    frame.len() - 4,
                    u32::from_be_bytes(frame[..4].try_into().expect("4 bytes")) as usize
                );
                let frame = frame.slice(4..);
                let read = header::peek_request(&frame).expect("our own header");
                assert_eq!((read.api_key, read.api_version, read.correlation_id), (*key, version, 77));
                assert_eq!(read.client_id.as_ref(), client_id);
                assert_eq!(
                    schema::decode(request(*key), version, &frame.slice(read.body_offset..)),
                    Ok(body)
                );
            }
            let body = Struct::new(response(*key).fields);
            let frame =
                header::encode_response(response(*key), version, 78, &body).expect("defaults").slice(4..);
            let (correlation, at) =
                header::decode_response_header(response(*key), version, &frame).expect("ours");
            assert_eq!((correlation, at > 4), (78, *key != 18 && response(*key).is_flexible(version)));
            assert_eq!(schema::decode(response(*key), version, &frame.slice(at..)), Ok(body));
        }
    }
}

#[test]
fn bad_headers_are_refused() {
    let peek = |bytes: &[u8]| header::peek_request(&Bytes::copy_from_slice(bytes));
    let unknown = HeaderError::UnknownApi { api_key: 999, api_version: 2, correlation_id: 5 };
    assert_eq!(peek(&[3, 0xe7, 0, 2, 0, 0, 0, 5]), Err(unknown));
    let problem = |bytes: &[u8]| match peek(bytes) {
        Err(HeaderError::Malformed(error)) => Some(error.problem),
        _ => None,
    };
    assert_eq!(problem(&[]), Some(Problem::Truncated));
    assert_eq!(problem(&[0, 3, 0, 0, 0, 0, 0, 5]), Some(Problem::Truncated));
    assert_eq!(problem(&[0, 3, 0, 0, 0, 0, 0, 5, 0xff, 0xfe]), Some(Problem::Length(-2)));
    assert_eq!(problem(&[0, 3, 0, 0, 0, 0, 0, 5, 0x7f, 0xff]), Some(Problem::Truncated));
    assert_eq!(problem(&[0, 3, 0, 0, 0, 0, 0, 5, 0, 1, 0xff]), Some(Problem::Utf8));
    assert_eq!(problem(&[0, 3, 0, 9, 0, 0, 0, 5, 0xff, 0xff, 65]), Some(Problem::TagCount(65)));
    assert_eq!(problem(&[0, 3, 0, 9, 0, 0, 0, 5, 0xff, 0xff, 1, 0, 200]), Some(Problem::Truncated));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn mutated_bodies_never_panic(
        version in 4_i16..=18,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in prop::option::weighted(0.2, any::<prop::sample::Index>()),
    ) {
        let mut body = encode(response(1), version, &fetch_response(version)).to_vec();
        for (place, byte) in changes {
            let at = place.index(body.len());
            body[at] = byte;
        }
        if let Some(cut) = cut {
            body.truncate(cut.index(body.len()));
        }
        check_any(response(1), version, &body);
    }

    #[test]
    fn random_bodies_never_panic(
        key in prop::sample::select(schema::keys()),
        wanted in any::<prop::sample::Index>(),
        body in prop::collection::vec(prop_oneof![Just(0_u8), 0..4_u8, any::<u8>()], 0..120),
    ) {
        for message in [request(key), response(key)] {
            let versions = usize::try_from(message.versions.max - message.versions.min + 1).unwrap_or(1);
            check_any(message, message.versions.min + wanted.index(versions) as i16, &body);
        }
        let _ = header::peek_request(&Bytes::from(body));
    }
}

/// What decodes, encodes; and what we encode decodes to the same.
fn check_any(message: &'static Message, version: i16, body: &[u8]) {
    if problem(message, version, body).is_some() {
        return;
    }
    let value = schema::decode(message, version, &Bytes::copy_from_slice(body)).expect("it was valid");
    let again = encode(message, version, &value);
    assert_eq!(encode(message, version, &schema::decode(message, version, &again).expect("our own")), again);
}
