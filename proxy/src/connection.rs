//! One client connection: the task that feeds its session and carries out what the session asks for.

use crate::missing;
use crate::runtime::{ControlEvent, Runtime, SessionHandle};
use crate::shutdown::ShutdownReceiver;
use crate::upstream::{self, Dial, UpstreamEvent};
use crate::warned::About;
use bytes::{Bytes, BytesMut};
use crossover_core::ids::VirtualNode;
use crossover_core::producer::gate::SessionId;
use crossover_core::session::{CloseReason, Effect, Errand, Event, Limits, Session, Ticket, UpstreamId};
use crossover_core::wire::frame::{FrameDecoder, FrameError};
use std::collections::HashMap;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tracing::{debug, error, warn};

/// How long an answer may still be awaited for a client that has gone.
const ORPHAN_MS: i64 = 30_000;
/// How long a client that was hung up on is still listened to: what it sends to a socket that is closed is answered with a
/// reset, and a reset takes away what the client has not read yet.
const LINGER: Duration = Duration::from_secs(2);
/// The same when the process ends. All others wait so long, and sarama's default retries end after less than half a second.
const LINGER_AT_END: Duration = Duration::from_millis(200);
/// How long a producer is still read from when the process ends, so that its connection ends in a moment when it has nothing
/// under way. What it has sent and nobody has read it sends again; and Java without sequences turns the order of two such
/// batches round. Shorter than the fetches that are waited for take, as a rule.
const READ_ON: Duration = Duration::from_millis(300);
/// Who has neither asked nor been answered since has no answer that it could miss. Some clients do not look at a connection
/// that they do not use.
const RECENT: Duration = Duration::from_secs(1);
/// The API key that a produce request begins with.
const PRODUCE: [u8; 2] = [0, 0];
/// Events of upstreams that wait for this task; a full channel stops reading from the brokers.
const UPSTREAM_EVENTS: usize = 64;

/// Serves one client until it leaves.
pub(crate) async fn serve(
    runtime: Arc<Runtime>,
    stream: TcpStream,
    node: VirtualNode,
    peer: SocketAddr,
    shutdown: ShutdownReceiver,
) {
    let _ = stream.set_nodelay(true);
    runtime.metrics.connections.add(1);
    let (mut read, write) = stream.into_split();
    let mut connection = Connection::new(runtime, node, peer, write);
    let process = shutdown.clone();
    let ran = unharmed(connection.run(&mut read, shutdown)).await;
    let ended = catch_unwind(AssertUnwindSafe(|| connection.end()));
    if ran.is_err() || ended.is_err() {
        error!(%peer, "a client connection ended in a panic");
        connection.leave();
    }
    let lingers = connection.hung_up && connection.active.elapsed() < RECENT;
    drop(connection);
    if lingers {
        discard_for_a_while(read, process).await;
    }
}

async fn discard_for_a_while(read: OwnedReadHalf, mut process: ShutdownReceiver) {
    let at_end = async {
        process.requested().await;
        sleep(LINGER_AT_END).await;
    };
    tokio::select! {
        _ = timeout(LINGER, discard(read)) => {}
        () = at_end => {}
    }
}

/// Reads until the client has closed its end too. With unread requests the socket would end in a reset, and Java gives up
/// what it has not read yet when a reset meets it in a write: answers to produce, which it would send again.
async fn discard(mut read: OwnedReadHalf) {
    let mut unwanted = [0; 4096];
    while read.read(&mut unwanted).await.is_ok_and(|count| count > 0) {}
}

/// Runs a future to its end, or to its panic. What the others share of this connection must be given back.
async fn unharmed(run: impl Future<Output = ()>) -> std::thread::Result<()> {
    let mut run = std::pin::pin!(run);
    poll_fn(|cx| match catch_unwind(AssertUnwindSafe(|| run.as_mut().poll(cx))) {
        Ok(Poll::Pending) => Poll::Pending,
        Ok(Poll::Ready(())) => Poll::Ready(Ok(())),
        Err(panic) => Poll::Ready(Err(panic)),
    })
    .await
}

/// What this task knows of one of its upstreams.
struct Upstream {
    queue: mpsc::UnboundedSender<Bytes>,
    companion: bool,
    used: Instant,
}

/// What came from the client and is not a request yet.
struct Input {
    decoder: FrameDecoder,
    /// Nothing whole has come yet: the limits are tight.
    first: bool,
    /// Since when a frame is half received. Not moved by further bytes of it, or one byte a minute would hold it open.
    partial_since: Option<Instant>,
}

struct Connection {
    runtime: Arc<Runtime>,
    id: SessionId,
    session: Session,
    handle: SessionHandle,
    upstreams: HashMap<UpstreamId, Upstream>,
    events: mpsc::Sender<UpstreamEvent>,
    from_upstreams: mpsc::Receiver<UpstreamEvent>,
    client: Option<OwnedWriteHalf>,
    /// Answers that the socket has not taken yet.
    out: BytesMut,
    gone_at_ms: Option<i64>,
    /// It was this end that closed first.
    hung_up: bool,
    /// The process ends, or the node's broker has gone: what is in flight is answered, nothing more is taken.
    ending: bool,
    /// Until then it is read from although the process ends.
    read_until: Option<Instant>,
    /// It has sent produce.
    produces: bool,
    opened: Instant,
    /// The last byte from or to the client, or the last answer that is on its way to it.
    active: Instant,
    node: VirtualNode,
    peer: SocketAddr,
}

impl Connection {
    fn new(runtime: Arc<Runtime>, node: VirtualNode, peer: SocketAddr, client: OwnedWriteHalf) -> Connection {
        let id = runtime.sessions.next_id();
        let limits = &runtime.config.limits;
        let limits = Limits {
            in_flight_requests_max: limits.in_flight_requests_max,
            buffered_bytes_max: limits.buffered_bytes_max,
            hold_ms_max: i64::try_from(limits.hold_max.as_millis()).unwrap_or(i64::MAX),
        };
        let session = Session::new(id, node, peer.ip().to_string(), limits, seed());
        let handle = SessionHandle {
            node,
            wake: Arc::new(Notify::new()),
            client: Arc::new(Mutex::new(session.client().clone())),
        };
        runtime.sessions.add(id, handle.clone());
        let (events, from_upstreams) = mpsc::channel(UPSTREAM_EVENTS);
        Connection {
            runtime,
            id,
            session,
            handle,
            upstreams: HashMap::new(),
            events,
            from_upstreams,
            client: Some(client),
            out: BytesMut::new(),
            gone_at_ms: None,
            hung_up: false,
            ending: false,
            read_until: None,
            produces: false,
            opened: Instant::now(),
            active: Instant::now(),
            node,
            peer,
        }
    }

    async fn run(&mut self, read: &mut OwnedReadHalf, mut shutdown: ShutdownReceiver) {
        let decoder = FrameDecoder::requests(self.runtime.config.limits.first_frame_bytes_max);
        let mut input = Input { decoder, first: true, partial_since: None };
        loop {
            // Also what an earlier read brought and the limits held back.
            self.take_frames(&mut input);
            let drained = self.session.is_idle() && self.out.is_empty();
            if self.ending && drained && self.client.is_some() {
                if self.reads_on() && self.has_sent_more(read, &mut input) {
                    continue;
                }
                self.hang_up();
            }
            let waited_enough = self.gone_at_ms.is_some_and(|at| self.runtime.now_ms() - at > ORPHAN_MS);
            if self.session.is_finished() || waited_enough {
                return;
            }
            let reading = self.may_read();
            let expiry = self.expiry(&mut input, reading);
            let due = self.due();
            let companions_due = self.companions_due();
            let wake = Arc::clone(&self.handle.wake);
            tokio::select! {
                read = read.read_buf(input.decoder.spare()), if reading => match read {
                    Ok(0) | Err(_) => self.client_gone(),
                    Ok(count) => {
                        self.active = Instant::now();
                        self.runtime.metrics.client_bytes_in.add(count as u64);
                    }
                },
                written = write_some(&mut self.client, &mut self.out), if !self.out.is_empty() => match written {
                    Ok(count) => {
                        self.active = Instant::now();
                        self.runtime.metrics.client_bytes_out.add(count as u64);
                    }
                    Err(_) => self.client_gone(),
                },
                Some(event) = self.from_upstreams.recv() => self.on_upstreams(event),
                () = wake.notified() => self.apply(Event::Wake),
                () = sleep_until(due) => self.apply(Event::Timer),
                () = sleep_until(companions_due.unwrap_or(due)), if companions_due.is_some() => {
                    self.close_idle_companions();
                }
                () = sleep_until(expiry.unwrap_or(due)), if expiry.is_some() => {
                    debug!(peer = %self.peer, "closing a silent client connection");
                    self.hang_up();
                }
                () = shutdown.requested(), if !self.ending => self.end_soon(),
                () = sleep_until(self.read_until.unwrap_or(due)), if self.read_until.is_some() => {
                    self.read_until = None;
                }
            }
        }
    }

    /// The process ends.
    fn end_soon(&mut self) {
        self.ending = true;
        self.read_until = self.produces.then(|| Instant::now() + READ_ON);
    }

    fn reads_on(&self) -> bool {
        self.read_until.is_some_and(|until| Instant::now() < until)
    }

    /// Looks once more before the connection ends.
    fn has_sent_more(&mut self, read: &OwnedReadHalf, input: &mut Input) -> bool {
        let count = read.try_read_buf(input.decoder.spare()).unwrap_or(0);
        self.runtime.metrics.client_bytes_in.add(count as u64);
        count > 0
    }

    /// Whether another request may be taken from the client.
    fn may_read(&self) -> bool {
        let room = self.out.len() < self.runtime.config.limits.buffered_bytes_max;
        let takes_more = !self.ending || self.reads_on();
        self.client.is_some() && takes_more && room && self.session.wants_read()
    }

    /// When the client has been silent for too long: before its first request, inside a request, or with nothing
    /// asked. `None` while it is not its turn.
    fn expiry(&self, input: &mut Input, reading: bool) -> Option<Instant> {
        let timeouts = &self.runtime.config.timeouts;
        self.client.as_ref()?;
        if input.decoder.is_empty() {
            input.partial_since = None;
        } else if input.partial_since.is_none() || !reading {
            // While the proxy itself does not read, the client's time stands still.
            input.partial_since = Some(Instant::now());
        }
        match input.partial_since {
            _ if input.first => Some(self.opened + timeouts.idle_pre_auth),
            Some(since) if reading => Some(since + timeouts.frame),
            _ => self.session.is_idle().then(|| self.active + timeouts.idle),
        }
    }

    fn due(&self) -> Instant {
        let now = self.runtime.now_ms();
        let session = self.session.next_deadline_ms().unwrap_or(i64::MAX);
        let orphan = self.gone_at_ms.map_or(i64::MAX, |at| at + ORPHAN_MS + 1);
        let wait = session.min(orphan).saturating_sub(now).clamp(0, 3_600_000);
        Instant::now() + Duration::from_millis(u64::try_from(wait).unwrap_or(0))
    }

    /// Hands whole frames to the session, as many as its limits allow.
    fn take_frames(&mut self, input: &mut Input) {
        while self.may_read() {
            match input.decoder.next_frame() {
                Ok(None) => return,
                Ok(Some(frame)) => {
                    self.runtime.metrics.requests.add(1);
                    input.partial_since = None;
                    self.produces |= frame.starts_with(&PRODUCE);
                    self.apply(Event::Frame(frame));
                    if std::mem::take(&mut input.first) {
                        let limit = self.runtime.config.limits.frame_bytes_max;
                        let known = std::mem::replace(&mut input.decoder, FrameDecoder::requests(limit));
                        input.decoder.feed(&known.into_rest());
                    }
                }
                Err(error) => {
                    self.runtime.metrics.bad_requests.add(1);
                    self.warn_of_frame(error, input.first);
                    return self.hang_up();
                }
            }
        }
    }

    fn warn_of_frame(&self, error: FrameError, first: bool) {
        let tls = first && begins_tls(error);
        let about = if tls { About::Tls } else { About::BadFrame };
        let Some(kept_back) = self.kept_back(about) else { return };
        match tls {
            true => warn!(
                peer = %self.peer, kept_back,
                "closing a client connection: a client speaks TLS; this listener has none: set security.protocol=PLAINTEXT there"
            ),
            false => {
                warn!(peer = %self.peer, %error, kept_back, "closing a client connection: bad frame");
            }
        }
    }

    /// `None` when a line about this was logged a moment ago; else how many were not.
    fn kept_back(&self, about: About) -> Option<u64> {
        self.runtime.warned.of(self.peer.ip(), about, std::time::Instant::now())
    }

    fn companions_due(&self) -> Option<Instant> {
        let companions = self.upstreams.values().filter(|upstream| upstream.companion);
        companions.map(|upstream| upstream.used + self.runtime.config.timeouts.companion_idle).min()
    }

    /// Ends the companions that have not been used for long (RULES R19). The session forgets them first, so that
    /// nothing can be sent on one that is closing.
    fn close_idle_companions(&mut self) {
        let now = Instant::now();
        let idle = self.runtime.config.timeouts.companion_idle;
        let mut ended = Vec::new();
        for (id, upstream) in &mut self.upstreams {
            if !upstream.companion || upstream.used + idle > now {
                continue;
            }
            match self.session.is_upstream_quiet(*id) {
                true => ended.push(*id),
                false => upstream.used = now,
            }
        }
        for upstream in ended {
            self.upstreams.remove(&upstream);
            self.apply(Event::Lost { upstream });
        }
    }

    fn on_upstreams(&mut self, event: UpstreamEvent) {
        self.on_upstream(event);
        // What has already arrived is taken along, so that answers leave in one write.
        for _ in 0..UPSTREAM_EVENTS {
            let Ok(event) = self.from_upstreams.try_recv() else { break };
            self.on_upstream(event);
        }
    }

    fn on_upstream(&mut self, event: UpstreamEvent) {
        match event {
            UpstreamEvent::Connected(upstream) => self.apply(Event::Connected { upstream }),
            UpstreamEvent::Frame(upstream, frame) => self.apply(Event::Answer { upstream, frame }),
            // As its broker's connections ended. Who is served by other brokers through this node stays: its next request to
            // this one ends the connection.
            UpstreamEvent::NodeGone => self.ending |= !self.upstreams.values().any(|known| known.companion),
            UpstreamEvent::ErrandDone(ticket, done) => self.apply(Event::ErrandDone { ticket, done }),
            UpstreamEvent::Lost(upstream) => {
                // One that this side ended is not in the map any more, and not lost.
                if self.upstreams.remove(&upstream).is_some() {
                    self.runtime.metrics.upstreams_lost.add(1);
                }
                self.apply(Event::Lost { upstream });
            }
        }
    }

    fn apply(&mut self, event: Event) {
        let asks = matches!(event, Event::Frame(_));
        let runtime = Arc::clone(&self.runtime);
        self.session.handle(event, &runtime.snapshot(), &runtime.shared, runtime.now_ms());
        if asks {
            self.tell_client();
        }
        self.carry_out();
    }

    fn tell_client(&self) {
        let mut known = self.handle.client.lock().unwrap_or_else(PoisonError::into_inner);
        let client = self.session.client();
        if known.client_id != client.client_id || known.software != client.software {
            known.clone_from(client);
        }
    }

    fn carry_out(&mut self) {
        for effect in self.session.drain_effects() {
            match effect {
                Effect::Dial { upstream, node, host, port } => self.dial(upstream, node, host, port),
                Effect::Send { upstream, frame } => {
                    if let Some(known) = self.upstreams.get_mut(&upstream) {
                        known.used = Instant::now();
                        let _ = known.queue.send(frame);
                    }
                }
                Effect::HangUp { upstream } => {
                    self.upstreams.remove(&upstream);
                }
                Effect::Reply(frame) => {
                    if self.client.is_some() {
                        // The idle time starts anew: an answer that took longer must not be cut off by it.
                        self.active = Instant::now();
                        self.out.extend_from_slice(&frame);
                    }
                }
                Effect::Close(reason) => self.close(&reason),
                Effect::Wake(sessions) => self.runtime.sessions.wake(&sessions),
                Effect::GateDrained => self.runtime.drained.notify_one(),
                Effect::Refresh(side) => self.control(ControlEvent::Refresh(side)),
                Effect::Mirror(commits) => self.control(ControlEvent::Mirror(commits)),
                Effect::Errand { ticket, errand } => self.run_errand(ticket, errand),
                Effect::StrayAppend { topic, partition, side, native } => {
                    self.control(ControlEvent::StrayAppend { topic, partition, side, native });
                }
                Effect::HoldExpired { topic, partition, reason } => {
                    self.runtime.metrics.holds_expired.add(1);
                    warn!(%topic, partition, ?reason, "a held batch was not sent in time");
                }
                Effect::BadAnswer { upstream, error } => {
                    self.runtime.metrics.bad_answers.add(1);
                    warn!(?upstream, error, "a broker answered what is not Kafka");
                }
            }
        }
    }

    fn dial(&mut self, id: UpstreamId, node: VirtualNode, host: String, port: u16) {
        self.runtime.metrics.upstreams.add(1);
        // What waits in it is bounded by what the session takes from its client.
        let (queue, frames) = mpsc::unbounded_channel();
        let companion = node != self.node;
        self.upstreams.insert(id, Upstream { queue, companion, used: Instant::now() });
        let linger = Duration::from_millis(ORPHAN_MS.unsigned_abs());
        let dial = Dial { id, node, host, port, connect: self.runtime.config.timeouts.connect, linger };
        let (runtime, events) = (Arc::clone(&self.runtime), self.events.clone());
        tokio::spawn(async move {
            upstream::run(dial, frames, &events, &runtime.missing).await;
            if !companion && missing::refuses(&runtime, node).await {
                let _ = events.send(UpstreamEvent::NodeGone).await;
            }
        });
    }

    fn run_errand(&self, ticket: Ticket, errand: Errand) {
        let asker = self.events.clone();
        let event = ControlEvent::Errand { ticket, errand, asker: asker.clone() };
        if self.runtime.control.try_send(event).is_err() {
            self.runtime.metrics.control_dropped.add(1);
            let busy = UpstreamEvent::ErrandDone(ticket, Err("the control tasks are busy".to_owned()));
            // Not from here: the channel may be full, and this task is the one that empties it.
            tokio::spawn(async move { asker.send(busy).await });
        }
    }

    fn control(&self, event: ControlEvent) {
        if self.runtime.control.try_send(event).is_err() {
            self.runtime.metrics.control_dropped.add(1);
        }
    }

    fn close(&mut self, reason: &CloseReason) {
        match reason {
            CloseReason::BadRequest(_) => self.runtime.metrics.bad_requests.add(1),
            CloseReason::BadResponse(_) => self.runtime.metrics.bad_answers.add(1),
            CloseReason::UpstreamLost | CloseReason::Internal(_) => {}
        }
        match reason {
            CloseReason::UpstreamLost => {
                let client = &self.session.client().client_id;
                debug!(peer = %self.peer, node = ?self.node, client, %reason, "closing a client connection");
            }
            CloseReason::BadRequest(_) => {
                if let Some(kept_back) = self.kept_back(About::BadRequest) {
                    let client = &self.session.client().client_id;
                    warn!(peer = %self.peer, client, %reason, kept_back, "closing a client connection");
                }
            }
            CloseReason::BadResponse(_) | CloseReason::Internal(_) => {
                warn!(peer = %self.peer, client = self.session.client().client_id, %reason, "closing a client connection")
            }
        }
        self.hang_up_after_answers();
    }

    /// The client is still there.
    fn hang_up(&mut self) {
        self.hang_up_after_answers();
        self.apply(Event::ClientGone);
    }

    /// What its broker has answered before it went has been answered.
    fn hang_up_after_answers(&mut self) {
        self.hung_up |= self.client.is_some();
        if let Some(mut client) = self.client.take() {
            let out = std::mem::take(&mut self.out);
            tokio::spawn(async move { timeout(LINGER, client.write_all(&out)).await });
        }
        self.drop_client();
    }

    fn client_gone(&mut self) {
        self.drop_client();
        self.apply(Event::ClientGone);
    }

    fn drop_client(&mut self) {
        self.client = None;
        self.out.clear();
        self.gone_at_ms.get_or_insert(self.runtime.now_ms());
    }

    fn end(&mut self) {
        let runtime = Arc::clone(&self.runtime);
        self.session.abandon(&runtime.snapshot(), &runtime.shared, runtime.now_ms());
        self.carry_out();
        self.forget();
    }

    fn forget(&self) {
        self.runtime.sessions.remove(self.id);
        self.runtime.shared.traffic.forget(self.id);
    }

    /// Nothing of a session that has failed stays at the gates: a flip would wait for it, and so would other producers.
    fn leave(&self) {
        self.forget();
        let signal = self.runtime.shared.gates.abandon(self.id, self.runtime.now_ms());
        self.runtime.sessions.wake(&signal.wake);
        self.runtime.drained.notify_one();
    }
}

/// A TLS record of a handshake, whatever its version, read as a length: its first bytes are 0x16 0x03.
fn begins_tls(error: FrameError) -> bool {
    matches!(error, FrameError::TooLong { length, .. } if length >> 16 == 0x1603)
}

/// Writes what the socket takes now.
async fn write_some(client: &mut Option<OwnedWriteHalf>, out: &mut BytesMut) -> std::io::Result<usize> {
    match client {
        Some(socket) => socket.write_buf(out).await,
        None => std::future::pending().await,
    }
}

fn seed() -> u64 {
    let mut bytes = [0; 8];
    match getrandom::fill(&mut bytes) {
        Ok(()) => u64::from_ne_bytes(bytes),
        // Without the system's randomness the time has to do: ids need to differ, not to be secret.
        Err(_) => std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |t| u64::try_from(t.as_nanos() & u128::from(u64::MAX)).unwrap_or(0)),
    }
}

#[cfg(test)]
mod tests;
