//! Hostile frames against a running proxy: each connection is closed or answered in time, memory stays bounded, and a
//! good client next to it notices nothing.

use anyhow::{Context, Result, bail, ensure};
use crossover_tests::live::{KINDS, Traffic, create_topic};
use crossover_tests::measure::{machine_load, memory};
use crossover_tests::{one_at_a_time, rig_with};
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

/// Short, so that slow attackers are seen to be cut off within the test.
const CONFIG: &str = "[timeouts]\nidle_pre_auth_ms = 2000\nframe_ms = 2000\n";
/// Everything ends within this: both timeouts, and a loaded machine.
const END_MAX: Duration = Duration::from_secs(10);
/// Memory over the whole test, attackers and good clients together.
const GROWTH_KIB_MAX: u64 = 160 * 1024;

const PRODUCE: i16 = 0;
const FETCH: i16 = 1;
const METADATA: i16 = 3;
const OFFSET_COMMIT: i16 = 8;
const JOIN_GROUP: i16 = 11;
const API_VERSIONS: i16 = 18;

/// What must happen to a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// The proxy ends it, without an answer to the last request.
    Closed,
    /// It ends it while the bytes still come, one by one.
    CutOff,
    /// As many answers come, and it stays open.
    Answered(usize),
}

struct Attack {
    name: String,
    /// A valid ApiVersions goes first, and is answered: larger frames are allowed from then on.
    introduced: bool,
    bytes: Vec<u8>,
    /// Sent in pieces of this size, with a pause between them.
    piece: usize,
    fate: Fate,
}

#[test]
fn bad_input() -> Result<()> {
    let _turn = one_at_a_time();
    let mut rig = rig_with("3.9.2", "4.3.1", 1, CONFIG)?;
    rig.keep = true;
    create_topic(&rig)?;
    let traffic = Traffic::start(&rig, &KINDS[..1], 100)?;
    let before = memory(rig.proxy_pid())?;
    let mut wrong = Vec::new();
    for attack in attacks() {
        if let Err(problem) = run(&rig.bootstrap, &attack) {
            wrong.push(format!("{}: {problem:#}", attack.name));
        }
        ensure!(rig.is_proxy_alive(), "{} ended the proxy", attack.name);
    }
    let after = memory(rig.proxy_pid())?;
    println!(
        "resident {} KiB before, {} KiB after, peak {} KiB; {}",
        before.resident,
        after.resident,
        after.peak,
        machine_load()
    );
    // The good clients went on all the time; the checker says whether they noticed.
    traffic.finish()?.judge(&rig)?;
    ensure!(wrong.is_empty(), "{} attacks had another end:\n{}", wrong.len(), wrong.join("\n"));
    let growth = after.peak.saturating_sub(before.resident);
    ensure!(growth < GROWTH_KIB_MAX, "the proxy's memory grew by {growth} KiB");
    rig.keep = false;
    Ok(())
}

/// Rows B1 to B11 of the corpus.
fn attacks() -> Vec<Attack> {
    [lengths(), slow(), keys(), client_ids(), tags(), arrays(), varints(), boundaries()].concat()
}

impl Clone for Attack {
    fn clone(&self) -> Attack {
        Attack { name: self.name.clone(), bytes: self.bytes.clone(), ..*self }
    }
}

fn closed(name: impl Into<String>, introduced: bool, bytes: Vec<u8>) -> Attack {
    Attack { name: name.into(), introduced, bytes, piece: usize::MAX, fate: Fate::Closed }
}

/// B1 and B2: the length prefix.
fn lengths() -> Vec<Attack> {
    let odd = [-1, i32::MIN, 0, 1, 3, 7].map(|length: i32| {
        let body = vec![0; usize::try_from(length).unwrap_or(0)];
        closed(format!("B1 length {length}"), false, [&length.to_be_bytes()[..], &body].concat())
    });
    let large = [(i32::MAX, false), (101 << 20, true), (513 << 10, false)].map(|(length, introduced)| {
        closed(
            format!("B2 length {length}, introduced {introduced}"),
            introduced,
            length.to_be_bytes().to_vec(),
        )
    });
    [&odd[..], &large].concat()
}

/// B3 and B4: clients that do not go on.
fn slow() -> Vec<Attack> {
    let length = (90_i32 << 20).to_be_bytes().to_vec();
    // Three times as long as a frame may take to arrive.
    let trickle = [length, vec![0; 300]].concat();
    vec![
        Attack { piece: 1, fate: Fate::CutOff, ..closed("B3 90 MiB, byte by byte", true, trickle) },
        closed("B4 nothing", false, Vec::new()),
        closed("B4 half a prefix", false, vec![0, 0]),
    ]
}

/// B5: what is not offered.
fn keys() -> Vec<Attack> {
    let pairs = [
        (999, 0),
        (-1, 0),
        (METADATA, i16::MAX),
        (METADATA, -1),
        (METADATA, 100),
        (PRODUCE, -1),
        (FETCH, 99),
    ];
    let mut all: Vec<Attack> = pairs
        .iter()
        .map(|(key, version)| {
            closed(format!("B5 key {key} version {version}"), true, request(*key, *version, &[0; 8]))
        })
        .collect();
    // KIP-511: a client of a later time gets error 35 in the oldest form, and asks again on the same connection.
    let again = [request(API_VERSIONS, 99, &[0; 8]), request(API_VERSIONS, 0, &[])].concat();
    all.push(Attack { fate: Fate::Answered(2), ..closed("B5 ApiVersions of a later time", false, again) });
    all
}

/// B6: the client id of the header.
fn client_ids() -> Vec<Attack> {
    let with = |length: i16, bytes: &[u8]| {
        let header = [&API_VERSIONS.to_be_bytes()[..], &0_i16.to_be_bytes(), &1_i32.to_be_bytes()].concat();
        framed(&[&header[..], &length.to_be_bytes(), bytes].concat())
    };
    vec![
        closed("B6 length -2", false, with(-2, &[])),
        closed("B6 length 32767 of 4 bytes", false, with(i16::MAX, b"abcd")),
        closed("B6 not UTF-8", false, with(2, &[0xff, 0xfe])),
    ]
}

/// B7: tagged fields of the header.
fn tags() -> Vec<Attack> {
    const MOST: [u8; 5] = [0xff, 0xff, 0xff, 0xff, 0x0f];
    let body = [0x01, 0, 0, 0x00];
    let with =
        |name: &str, tags: &[u8]| closed(format!("B7 {name}"), true, flexible(METADATA, 9, tags, &body));
    let many = [&[0x80, 0x89, 0x7a][..], &[0; 2 * 2_000_000]].concat();
    vec![
        with("2^32-1 tags", &MOST),
        with("a tag of 2^32-1 bytes", &[&[1, 0][..], &MOST].concat()),
        with("the same tag twice", &[2, 5, 0, 5, 0]),
        with("tags in falling order", &[2, 9, 0, 5, 0]),
        with("2 million tags", &many),
    ]
}

/// B8 and B9: counts of arrays.
fn arrays() -> Vec<Attack> {
    let counts = [i32::MAX, -2, 1_000_000];
    let mut all = Vec::new();
    for count in counts {
        let count_bytes = count.to_be_bytes();
        let produce =
            [&[0xff, 0xff][..], &1_i16.to_be_bytes(), &1_000_i32.to_be_bytes(), &count_bytes].concat();
        let fetch = [&(-1_i32).to_be_bytes()[..], &[0; 8], &[0, 0, 4, 0, 0], &count_bytes].concat();
        let commit =
            [&[0, 1, b'g'][..], &(-1_i32).to_be_bytes(), &[0, 0], &(-1_i64).to_be_bytes(), &count_bytes];
        let join =
            [&[0, 1, b'g'][..], &10_000_i32.to_be_bytes(), &10_000_i32.to_be_bytes(), &[0, 0]].concat();
        let join = [&join[..], &[0, 8], b"consumer", &count_bytes].concat();
        let bodies = [
            (METADATA, 1, count_bytes.to_vec()),
            (PRODUCE, 3, produce),
            (FETCH, 4, fetch),
            (OFFSET_COMMIT, 2, commit.concat()),
            (JOIN_GROUP, 1, join),
        ];
        let named = bodies.map(|(key, version, body)| {
            closed(format!("B8 key {key}: an array of {count}"), true, request(key, version, &body))
        });
        all.extend(named);
    }
    let compact = flexible(METADATA, 9, &[0], &[0xff, 0xff, 0xff, 0xff, 0x0f, 0, 0, 0, 0]);
    all.push(closed("B8 a compact array of 2^32-2", true, compact));
    // Four million empty names: two bytes each on the wire, far more as a decoded value.
    let names: u32 = 4 << 20;
    let many = [&names.to_be_bytes()[..], &vec![0; names as usize * 2]].concat();
    all.push(closed("B9 four million empty topic names", true, request(METADATA, 1, &many)));
    all
}

/// B10: integers of variable length, and lengths that may not be 0.
fn varints() -> Vec<Attack> {
    let metadata = |name: &str, topics: &[u8]| {
        let body = [topics, &[0, 0, 0, 0]].concat();
        closed(format!("B10 {name}"), true, flexible(METADATA, 9, &[0], &body))
    };
    vec![
        metadata("six bytes", &[0x82, 0x80, 0x80, 0x80, 0x80, 0x00]),
        metadata("eleven bytes", &[0xff; 11]),
        metadata("a name that may not be null", &[2, 0, 0]),
        metadata("a name longer than the frame", &[2, 0xff, 0x7f, b'a', 0]),
    ]
}

/// B11: where a frame ends.
fn boundaries() -> Vec<Attack> {
    let metadata = request(METADATA, 1, &0_i32.to_be_bytes());
    let answered = |name: &str, count: usize, piece: usize, bytes: Vec<u8>| Attack {
        piece,
        fate: Fate::Answered(count),
        ..closed(format!("B11 {name}"), true, bytes)
    };
    vec![
        closed("B11 a byte too many", true, request(METADATA, 1, &[0, 0, 0, 0, 7])),
        closed("B11 a byte too few", true, request(METADATA, 1, &[0, 0, 0])),
        answered("two frames in one segment", 2, usize::MAX, [&metadata[..], &metadata].concat()),
        answered("a frame byte by byte", 1, 1, metadata),
    ]
}

fn framed(body: &[u8]) -> Vec<u8> {
    let length = i32::try_from(body.len()).expect("a frame of the test is small");
    [&length.to_be_bytes()[..], body].concat()
}

/// With a header of version 1.
fn request(key: i16, version: i16, body: &[u8]) -> Vec<u8> {
    let header =
        [&key.to_be_bytes()[..], &version.to_be_bytes(), &1_i32.to_be_bytes(), &[0, 1, b'x']].concat();
    framed(&[&header[..], body].concat())
}

/// With a header of version 2 and these bytes as its tagged fields.
fn flexible(key: i16, version: i16, tags: &[u8], body: &[u8]) -> Vec<u8> {
    let header =
        [&key.to_be_bytes()[..], &version.to_be_bytes(), &1_i32.to_be_bytes(), &[0, 1, b'x']].concat();
    framed(&[&header[..], tags, body].concat())
}

fn run(address: &str, attack: &Attack) -> Result<()> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(END_MAX))?;
    stream.set_write_timeout(Some(END_MAX))?;
    if attack.introduced {
        stream.write_all(&request(API_VERSIONS, 0, &[]))?;
        answer(&mut stream)?.context("not even a good ApiVersions is answered")?;
    }
    let sent = send(&mut stream, attack);
    match attack.fate {
        Fate::Closed => {
            ensure!(answer(&mut stream)?.is_none(), "it was answered");
            Ok(())
        }
        Fate::CutOff => {
            ensure!(sent.is_err(), "it was not cut off while its frame arrived");
            Ok(())
        }
        Fate::Answered(count) => {
            sent?;
            for number in 0..count {
                answer(&mut stream)?.with_context(|| format!("closed after {number} of {count} answers"))?;
            }
            // Still open: one more request is served.
            stream.write_all(&request(API_VERSIONS, 0, &[]))?;
            answer(&mut stream)?.context("closed behind the answers").map(|_| ())
        }
    }
}

/// The proxy may close in between; that is seen by reading.
fn send(stream: &mut TcpStream, attack: &Attack) -> std::io::Result<()> {
    if attack.piece == usize::MAX {
        return stream.write_all(&attack.bytes);
    }
    for piece in attack.bytes.chunks(attack.piece) {
        stream.write_all(piece)?;
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// One answer, or `None` when the connection was closed.
fn answer(stream: &mut TcpStream) -> Result<Option<Vec<u8>>> {
    let began = Instant::now();
    let mut length = [0; 4];
    match stream.read_exact(&mut length) {
        Ok(()) => {}
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
            bail!("neither closed nor answered within {:?}", began.elapsed());
        }
        // Closed with unread input is a reset.
        Err(_) => return Ok(None),
    }
    let length = usize::try_from(i32::from_be_bytes(length))?;
    ensure!(length < 1 << 20, "an answer of {length} bytes");
    let mut body = vec![0; length];
    stream.read_exact(&mut body)?;
    Ok(Some(body))
}
