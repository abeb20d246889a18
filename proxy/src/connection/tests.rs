//! Real sockets on both sides: a client of bytes, and brokers that answer what they are asked.

use super::*;
use crate::shutdown::Shutdown;
use crossover_config::{Config, Side};
use crossover_core::ids::ClusterSide;
use crossover_core::node::{ApiRanges, BrokerAddress, Topology};
use crossover_core::route::Snapshot;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::net::TcpListener;
use tokio::time::timeout;

const DESCRIBE_LOG_DIRS: i16 = 35;
const FIND_COORDINATOR: i16 = 10;
const API_VERSIONS: i16 = 18;
const PATIENCE: Duration = Duration::from_secs(10);

/// What a broker saw of the proxy.
#[derive(Default)]
struct Seen {
    connections: AtomicUsize,
    requests: AtomicUsize,
    /// Connections that ended with an end of stream, and with an error.
    ended: AtomicUsize,
    reset: AtomicUsize,
}

#[derive(Clone, Copy)]
enum Manner {
    Answers {
        after: Duration,
    },
    /// Reads, and never says a word.
    Silent,
    /// Hangs up on the first request.
    HangsUp,
}

struct Broker {
    port: u16,
    seen: Arc<Seen>,
}

impl Broker {
    async fn start(manner: Manner) -> Broker {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let seen = Arc::new(Seen::default());
        let by_listener = Arc::clone(&seen);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                by_listener.connections.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(answer(stream, manner, Arc::clone(&by_listener)));
            }
        });
        Broker { port, seen }
    }
}

async fn answer(mut stream: TcpStream, manner: Manner, seen: Arc<Seen>) {
    let mut decoder = FrameDecoder::requests(1 << 20);
    loop {
        match stream.read_buf(decoder.spare()).await {
            Ok(0) => {
                seen.ended.fetch_add(1, Ordering::SeqCst);
                return;
            }
            Err(_) => {
                seen.reset.fetch_add(1, Ordering::SeqCst);
                return;
            }
            Ok(_) => {}
        };
        while let Some(frame) = decoder.next_frame().unwrap() {
            if is_greeting(&frame) {
                let _ = stream.write_all(&response_to(&frame)).await;
                continue;
            }
            seen.requests.fetch_add(1, Ordering::SeqCst);
            match manner {
                Manner::Silent => {}
                Manner::HangsUp => return,
                Manner::Answers { after } => {
                    sleep(after).await;
                    let _ = stream.write_all(&response_to(&frame)).await;
                }
            }
        }
    }
}

/// What the proxy begins a connection with.
fn is_greeting(request: &[u8]) -> bool {
    request[..2] == API_VERSIONS.to_be_bytes()
}

/// DescribeLogDirs v1: throttle time, no results. FindCoordinator v0: no error, node 0 without a host. ApiVersions v0: no
/// error, no APIs.
fn response_to(request: &[u8]) -> Vec<u8> {
    let body = match i16::from_be_bytes([request[0], request[1]]) {
        FIND_COORDINATOR => 12,
        API_VERSIONS => 6,
        _ => 8,
    };
    let mut out = (4 + body as i32).to_be_bytes().to_vec();
    out.extend_from_slice(&request[4..8]);
    out.resize(out.len() + body, 0);
    out
}

fn request(key: i16, version: i16, correlation: i32, body: &[u8]) -> Vec<u8> {
    let mut frame = [key.to_be_bytes(), version.to_be_bytes()].concat();
    frame.extend_from_slice(&correlation.to_be_bytes());
    frame.extend_from_slice(&[0, 1, b't']);
    frame.extend_from_slice(body);
    [&(frame.len() as i32).to_be_bytes()[..], &frame].concat()
}

/// A request that any broker of the client's own side answers.
fn relayed(correlation: i32) -> Vec<u8> {
    request(DESCRIBE_LOG_DIRS, 1, correlation, &[0xff; 4])
}

fn config() -> Config {
    crossover_config::parse(crossover_config::SMALLEST, Path::new("crossover.toml")).unwrap()
}

struct Proxy {
    runtime: Arc<Runtime>,
    shutdown: Shutdown,
    client: TcpStream,
    decoder: FrameDecoder,
    _events: mpsc::Receiver<ControlEvent>,
}

impl Proxy {
    async fn start(config: Config, source: &Broker, target: &Broker) -> Proxy {
        let mut snapshot = crate::control::first_snapshot(&config);
        snapshot.topologies =
            [(ClusterSide::Source, source), (ClusterSide::Target, target)].map(|(side, broker)| {
                let mut topology = Topology::unknown(side);
                let address = BrokerAddress { host: "127.0.0.1".to_owned(), port: broker.port, rack: None };
                topology.brokers.insert(0, address);
                topology.api_ranges = ranges();
                topology.reachable = true;
                Arc::new(topology)
            });
        snapshot.advertised = Arc::new(ranges());
        let (runtime, events) = Runtime::new(config, snapshot);
        let (shutdown, ending) = Shutdown::new();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (stream, peer) = listener.accept().await.unwrap();
        let node = VirtualNode::new(ClusterSide::Source, 0);
        tokio::spawn(serve(Arc::clone(&runtime), stream, node, peer, ending));
        Proxy { runtime, shutdown, client, decoder: FrameDecoder::responses(1 << 20), _events: events }
    }

    async fn send(&mut self, bytes: &[u8]) {
        self.client.write_all(bytes).await.unwrap();
    }

    /// The correlation id of the next answer; `None` when the proxy has closed.
    async fn next(&mut self) -> Option<i32> {
        loop {
            if let Some(frame) = self.decoder.next_frame().unwrap() {
                return Some(i32::from_be_bytes(*frame.first_chunk().unwrap()));
            }
            let read = timeout(PATIENCE, self.client.read_buf(self.decoder.spare())).await;
            if matches!(read.expect("an answer or an end in time"), Ok(0) | Err(_)) {
                return None;
            }
        }
    }
}

fn ranges() -> ApiRanges {
    ApiRanges([(0, (8, 8)), (DESCRIBE_LOG_DIRS, (1, 1)), (FIND_COORDINATOR, (0, 0))].into())
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let wait = async {
        while !holds() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("not in time: {what}"));
}

const AT_ONCE: Manner = Manner::Answers { after: Duration::ZERO };

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let broker = Broker::start(AT_ONCE).await;
    let mut proxy = Proxy::start(config(), &broker, &broker).await;
    let all: Vec<u8> = (0..1000).flat_map(relayed).collect();
    proxy.send(&all).await;
    for correlation in 0..1000 {
        assert_eq!(proxy.next().await, Some(correlation));
    }
    assert_eq!(broker.seen.connections.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn one_read_cannot_exceed_the_requests_in_flight() {
    let broker = Broker::start(Manner::Silent).await;
    let mut config = config();
    config.limits.in_flight_requests_max = 4;
    let mut proxy = Proxy::start(config, &broker, &broker).await;
    let all: Vec<u8> = (0..100).flat_map(relayed).collect();
    proxy.send(&all).await;
    until("the first requests", || broker.seen.requests.load(Ordering::SeqCst) >= 4).await;
    sleep(Duration::from_millis(200)).await;
    assert_eq!(broker.seen.requests.load(Ordering::SeqCst), 4);
}

#[tokio::test]
async fn what_the_limit_held_back_goes_on_without_another_read() {
    let broker = Broker::start(AT_ONCE).await;
    let mut config = config();
    config.limits.in_flight_requests_max = 3;
    let mut proxy = Proxy::start(config, &broker, &broker).await;
    proxy.send(&(0..50).flat_map(relayed).collect::<Vec<u8>>()).await;
    for correlation in 0..50 {
        assert_eq!(proxy.next().await, Some(correlation));
    }
}

#[tokio::test]
async fn bytes_may_come_one_at_a_time() {
    let broker = Broker::start(AT_ONCE).await;
    let mut proxy = Proxy::start(config(), &broker, &broker).await;
    let _ = proxy.client.set_nodelay(true);
    for byte in [relayed(7), relayed(8)].concat() {
        proxy.send(&[byte]).await;
        tokio::task::yield_now().await;
    }
    assert_eq!(proxy.next().await, Some(7));
    assert_eq!(proxy.next().await, Some(8));
}

#[tokio::test]
async fn bad_lengths_close_the_connection() {
    let broker = Broker::start(AT_ONCE).await;
    let limit = config().limits.first_frame_bytes_max;
    for length in [-1, 0, 7, i32::MAX, limit as i32 + 1] {
        let mut proxy = Proxy::start(config(), &broker, &broker).await;
        proxy.send(&length.to_be_bytes()).await;
        assert_eq!(proxy.next().await, None, "{length}");
        assert_eq!(proxy.runtime.metrics.bad_requests.get(), 1, "{length}");
        until("the session's end", || proxy.runtime.sessions.len() == 0).await;
    }
    assert_eq!(broker.seen.connections.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_client_that_speaks_tls_is_known_by_its_first_bytes() {
    let broker = Broker::start(AT_ONCE).await;
    // The head of a ClientHello in a record of TLS 1.0, as clients of every version send it; and bytes that are none.
    for (bytes, about) in [([0x16, 3, 1, 2, 0, 1], About::Tls), ([0x16, 4, 1, 2, 0, 1], About::BadFrame)] {
        let mut proxy = Proxy::start(config(), &broker, &broker).await;
        proxy.send(&bytes).await;
        assert_eq!(proxy.next().await, None);
        let peer = proxy.client.local_addr().unwrap().ip();
        let again = proxy.runtime.warned.of(peer, about, std::time::Instant::now());
        assert_eq!(again, None, "{about:?} is what was logged a moment ago");
    }
}

#[tokio::test]
async fn only_the_first_frame_has_the_small_limit() {
    let broker = Broker::start(AT_ONCE).await;
    let mut config = config();
    config.limits.first_frame_bytes_max = 1024;
    config.limits.frame_bytes_max = 4096;
    let mut proxy = Proxy::start(config, &broker, &broker).await;
    // A second frame that starts in the same read as the first, above the first's limit.
    proxy.send(&[&relayed(1)[..], &2000_i32.to_be_bytes()].concat()).await;
    assert_eq!(proxy.next().await, Some(1));
    proxy.send(&[0; 100]).await;
    sleep(Duration::from_millis(50)).await;
    assert_eq!(proxy.runtime.sessions.len(), 1);
}

#[tokio::test]
async fn a_half_close_of_the_client_ends_session_and_upstream_without_a_reset() {
    let broker = Broker::start(AT_ONCE).await;
    let mut proxy = Proxy::start(config(), &broker, &broker).await;
    proxy.send(&relayed(1)).await;
    assert_eq!(proxy.next().await, Some(1));
    proxy.client.shutdown().await.unwrap();
    assert_eq!(proxy.next().await, None);
    until("the upstream's end", || broker.seen.ended.load(Ordering::SeqCst) == 1).await;
    assert_eq!(broker.seen.reset.load(Ordering::SeqCst), 0);
    until("the session's end", || proxy.runtime.sessions.len() == 0).await;
}

#[tokio::test]
async fn late_answers_for_a_client_that_has_gone_do_not_reset_the_upstream() {
    let broker = Broker::start(Manner::Answers { after: Duration::from_millis(100) }).await;
    let mut proxy = Proxy::start(config(), &broker, &broker).await;
    proxy.send(&(0..5).flat_map(relayed).collect::<Vec<u8>>()).await;
    until("the first request", || broker.seen.requests.load(Ordering::SeqCst) >= 1).await;
    proxy.client.shutdown().await.unwrap();
    until("the upstream's end", || broker.seen.ended.load(Ordering::SeqCst) == 1).await;
    assert_eq!(broker.seen.requests.load(Ordering::SeqCst), 5);
    assert_eq!(broker.seen.reset.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn the_loss_of_its_broker_closes_the_client() {
    let broker = Broker::start(Manner::HangsUp).await;
    let mut proxy = Proxy::start(config(), &broker, &broker).await;
    proxy.send(&relayed(1)).await;
    assert_eq!(proxy.next().await, None);
    until("the session's end", || proxy.runtime.sessions.len() == 0).await;
    assert_eq!(proxy.runtime.metrics.upstreams_lost.get(), 1);
}

#[tokio::test]
async fn a_frame_that_dribbles_in_is_cut_off() {
    let broker = Broker::start(AT_ONCE).await;
    for first in [true, false] {
        let mut config = config();
        config.timeouts.idle_pre_auth = Duration::from_millis(if first { 300 } else { 60_000 });
        config.timeouts.frame = Duration::from_millis(if first { 60_000 } else { 300 });
        let mut proxy = Proxy::start(config, &broker, &broker).await;
        if !first {
            proxy.send(&relayed(1)).await;
            assert_eq!(proxy.next().await, Some(1));
        }
        proxy.send(&1000_i32.to_be_bytes()).await;
        let dribbled = async {
            while proxy.client.write_all(&[0]).await.is_ok() && proxy.runtime.sessions.len() > 0 {
                sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(Duration::from_secs(3), dribbled).await.expect("the end of the connection");
    }
}

#[tokio::test]
async fn a_silent_client_is_closed_but_not_while_it_waits_for_an_answer() {
    let broker = Broker::start(Manner::Answers { after: Duration::from_millis(600) }).await;
    let mut config = config();
    config.timeouts.idle = Duration::from_millis(300);
    let mut proxy = Proxy::start(config, &broker, &broker).await;
    proxy.send(&relayed(1)).await;
    assert_eq!(proxy.next().await, Some(1));
    let answered = Instant::now();
    assert_eq!(proxy.next().await, None);
    assert!(answered.elapsed() >= Duration::from_millis(250), "closed right after its answer");
}

#[tokio::test]
async fn at_shutdown_what_is_in_flight_is_answered_and_nothing_more_is_taken() {
    let broker = Broker::start(Manner::Answers { after: Duration::from_millis(200) }).await;
    let mut proxy = Proxy::start(config(), &broker, &broker).await;
    proxy.send(&relayed(1)).await;
    until("the request", || broker.seen.requests.load(Ordering::SeqCst) == 1).await;
    proxy.shutdown.request();
    sleep(Duration::from_millis(50)).await;
    proxy.send(&relayed(2)).await;
    assert_eq!(proxy.next().await, Some(1));
    assert_eq!(proxy.next().await, None);
    assert_eq!(broker.seen.requests.load(Ordering::SeqCst), 1);
}

/// Of what a producer without sequences has sent and nobody has read, Java turns the order round when it sends it again.
#[tokio::test]
async fn at_shutdown_a_producer_is_read_from_until_it_has_nothing_under_way() {
    let broker = Broker::start(Manner::Answers { after: Duration::from_millis(100) }).await;
    let mut proxy = Proxy::start(config(), &broker, &broker).await;
    // No transactional id, acks 1, a timeout, no topics.
    let produce = request(0, 8, 1, &[0xff, 0xff, 0, 1, 0, 0, 0, 9, 0, 0, 0, 0]);
    proxy.send(&[produce, relayed(2)].concat()).await;
    until("the request", || broker.seen.requests.load(Ordering::SeqCst) == 1).await;
    proxy.shutdown.request();
    sleep(Duration::from_millis(50)).await;
    proxy.send(&relayed(3)).await;
    let answered = [proxy.next().await, proxy.next().await, proxy.next().await, proxy.next().await];
    assert_eq!(answered, [Some(1), Some(2), Some(3), None]);
}

/// Java throws away answers that it has not read when a write meets a reset, and sends what they answer again.
#[tokio::test]
async fn at_shutdown_a_client_that_goes_on_writing_reads_its_answers_and_the_end() {
    let broker = Broker::start(Manner::Answers { after: Duration::from_millis(100) }).await;
    let mut proxy = Proxy::start(config(), &broker, &broker).await;
    proxy.send(&[relayed(1), relayed(2)].concat()).await;
    until("the requests", || broker.seen.requests.load(Ordering::SeqCst) == 2).await;
    proxy.shutdown.request();
    sleep(Duration::from_millis(50)).await;
    proxy.send(&relayed(3)).await;
    until("the end of the session", || proxy.runtime.sessions.len() == 0).await;
    for correlation in 4..20 {
        proxy.send(&relayed(correlation)).await;
        sleep(Duration::from_millis(5)).await;
    }
    assert_eq!([proxy.next().await, proxy.next().await], [Some(1), Some(2)]);
    let end = timeout(PATIENCE, proxy.client.read_buf(proxy.decoder.spare())).await;
    assert_eq!(end.expect("an end in time").expect("no reset"), 0);
}

#[tokio::test]
async fn an_idle_companion_ends_and_is_dialled_again() {
    let (own, other) = (Broker::start(AT_ONCE).await, Broker::start(AT_ONCE).await);
    let mut config = config();
    config.timeouts.companion_idle = Duration::from_millis(150);
    // The group is at home where this client is not connected.
    config.routing.default_side = Side::Target;
    let mut proxy = Proxy::start(config, &own, &other).await;
    for round in 1..=2 {
        proxy.send(&relayed(0)).await;
        assert_eq!(proxy.next().await, Some(0));
        proxy.send(&request(FIND_COORDINATOR, 0, round, &[0, 1, b'g'])).await;
        assert_eq!(proxy.next().await, Some(round));
        let round = usize::try_from(round).unwrap();
        assert_eq!(other.seen.connections.load(Ordering::SeqCst), round);
        until("the companion's end", || other.seen.ended.load(Ordering::SeqCst) == round).await;
    }
    assert_eq!(own.seen.connections.load(Ordering::SeqCst), 1);
    assert_eq!(own.seen.ended.load(Ordering::SeqCst), 0);
    assert_eq!(proxy.runtime.metrics.upstreams_lost.get(), 0);
}

#[tokio::test]
async fn a_panic_of_a_connection_leaves_nothing_at_the_gates() {
    use crossover_core::producer::gate::{Admission, ClientKey, PathId, Submission};
    let broker = Broker::start(AT_ONCE).await;
    let mut config = config();
    // No instant is that far away: the second frame that has not come whole panics.
    config.timeouts.frame = Duration::MAX;
    let mut proxy = Proxy::start(config, &broker, &broker).await;
    proxy.send(&relayed(1)).await;
    assert_eq!(proxy.next().await, Some(1));
    let gate = proxy.runtime.shared.gates.get(&Arc::from("orders"), 0);
    let (session, client, path) = (SessionId(0), ClientKey(0), PathId(0));
    let node = VirtualNode::new(ClusterSide::Source, 0);
    let submission = Submission {
        session,
        node,
        client,
        path,
        era: 0,
        batch: None,
        native: None,
        hold: None,
        arrived_ms: 0,
        is_left: false,
    };
    let admitted = crossover_core::session::lock(&gate).admit(0, &submission);
    assert!(matches!(admitted, Admission::Forward(_)));
    proxy.send(&[0]).await;
    assert_eq!(proxy.next().await, None, "its client learns that it is over");
    until("the session's end", || proxy.runtime.sessions.len() == 0).await;
    let is_free = || crossover_core::session::lock(&gate).in_flight() == 0;
    until("what it had in flight is given up", is_free).await;
}

/// A client whose node's broker has answered it once, and has died. `other`: the port of another broker of the cluster.
async fn of_a_dead_broker(other: u16) -> Proxy {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mortal = Broker { port: listener.local_addr().unwrap().port(), seen: Arc::default() };
    let mut proxy = Proxy::start(config(), &mortal, &mortal).await;
    let mut snapshot = Snapshot::clone(&proxy.runtime.snapshot());
    let address = BrokerAddress { host: "127.0.0.1".to_owned(), port: other, rack: None };
    Arc::make_mut(&mut snapshot.topologies[0]).brokers.insert(1, address);
    proxy.runtime.publish(snapshot);
    proxy.send(&relayed(1)).await;
    let (mut stream, _) = listener.accept().await.unwrap();
    let mut decoder = FrameDecoder::requests(1 << 20);
    for _ in ["greeting", "request"] {
        let asked = loop {
            stream.read_buf(decoder.spare()).await.unwrap();
            if let Some(frame) = decoder.next_frame().unwrap() {
                break frame;
            }
        };
        stream.write_all(&response_to(&asked)).await.unwrap();
    }
    assert_eq!(proxy.next().await, Some(1));
    proxy
}

#[tokio::test]
async fn r30_a_client_of_a_dead_broker_is_hung_up_on_as_its_broker_did() {
    let other = Broker::start(AT_ONCE).await;
    let mut proxy = of_a_dead_broker(other.port).await;
    assert_eq!(proxy.next().await, None);
}

#[tokio::test]
async fn r30_a_cluster_that_is_gone_as_a_whole_is_stood_in_for() {
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let mut proxy = of_a_dead_broker(gone).await;
    assert!(timeout(Duration::from_millis(500), proxy.next()).await.is_err(), "nobody has hung up");
}

/// A load balancer, or the kernel's queue of a broker that is starting: what is written there is lost, and must not count as sent.
#[tokio::test]
async fn r02_what_accepts_in_a_brokers_place_is_no_broker() {
    for hangs_up in [true, false] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = ("127.0.0.1".to_owned(), listener.local_addr().unwrap().port());
        tokio::spawn(async move {
            let mut open = Vec::new();
            while let Ok((stream, _)) = listener.accept().await {
                open.push(stream);
                if hangs_up {
                    open.clear();
                }
            }
        });
        assert!(crate::control::client::connect(&at, Duration::from_millis(300)).await.is_err());
    }
    let broker = Broker::start(AT_ONCE).await;
    let at = ("127.0.0.1".to_owned(), broker.port);
    assert!(crate::control::client::connect(&at, PATIENCE).await.is_ok());
}

/// A broker that is killed: what it has answered is on its way, and the end of its connections right behind it.
async fn answers_lost_with_their_broker(pause: Duration) -> Vec<i32> {
    const ASKED: i32 = 5;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let broker = Broker { port: listener.local_addr().unwrap().port(), seen: Arc::new(Seen::default()) };
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut decoder, mut frames) = (FrameDecoder::requests(1 << 20), Vec::new());
                while frames.len() < ASKED as usize {
                    while let Some(frame) = decoder.next_frame().unwrap() {
                        if is_greeting(&frame) {
                            let _ = stream.write_all(&response_to(&frame)).await;
                        } else {
                            frames.push(frame);
                        }
                    }
                    if frames.len() < ASKED as usize
                        && stream.read_buf(decoder.spare()).await.unwrap_or(0) == 0
                    {
                        return;
                    }
                }
                // All but the last.
                let answers: Vec<u8> =
                    frames[..frames.len() - 1].iter().flat_map(|frame| response_to(frame)).collect();
                let _ = stream.write_all(&answers).await;
                sleep(pause).await;
            });
        }
    });
    let mut lost = Vec::new();
    for _ in 0..20 {
        let mut config = config();
        config.limits.in_flight_requests_max = 100;
        let mut proxy = Proxy::start(config, &broker, &broker).await;
        proxy.send(&(0..ASKED).flat_map(relayed).collect::<Vec<u8>>()).await;
        let mut got = 0;
        while proxy.next().await.is_some() {
            got += 1;
        }
        lost.push(ASKED - 1 - got);
    }
    lost
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_broker_has_answered_before_it_died_reaches_the_client() {
    let late = answers_lost_with_their_broker(Duration::from_millis(200)).await;
    assert!(late.iter().all(|lost| *lost == 0), "it died long after: {late:?}");
    let lost = answers_lost_with_their_broker(Duration::ZERO).await;
    assert!(lost.iter().all(|lost| *lost == 0), "answers that the client never got, by attempt: {lost:?}");
}
