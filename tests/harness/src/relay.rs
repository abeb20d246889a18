//! A TCP relay in front of one broker that a test can make faulty: slow, silent, cut off.
//!
//! Everything that a test does to it holds at once for the connections there are and for those to come. Two threads per
//! connection; a test has tens of them.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use socket2::SockRef;

use crate::error::{HarnessError, Result};

/// How often a thread that must not pass anything on looks whether it may.
const LOOK: Duration = Duration::from_millis(5);
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
const PRODUCE: [u8; 2] = [0, 0];
const API_VERSIONS: [u8; 2] = [0, 18];
/// What the proxy calls itself, with the length before it.
const OWN_CLIENT_ID: &[u8] = b"\x00\x09crossover";
/// Length, API key, version and correlation id, then the client id.
const OWN_BEGIN: usize = 12 + OWN_CLIENT_ID.len();

/// What happens to bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fault {
    #[default]
    None,
    /// Each piece is passed on this much later, in both directions.
    Late(Duration),
    /// As `Late`, but only requests, and only on connections that began with a produce request, or with one behind
    /// ApiVersions: clients begin with others, so these are the proxy's companions.
    LateCompanions(Duration),
    /// As `Late`, but not on the proxy's own connections: what it asks for itself is answered promptly.
    LateClients(Duration),
    /// Requests arrive, answers are swallowed.
    DropAnswers,
    /// As `DropAnswers`, but not on the proxy's own connections.
    DropClientAnswers,
    /// Nothing passes in either direction; connections stay open.
    Stall,
}

/// How a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// As after a close: both sides see an end.
    Fin,
    /// As after a crash of the peer's machine or a firewall: both sides see a reset.
    Rst,
    /// The client sees an end at once, the broker only behind everything that the client has sent before.
    Near,
}

/// A relay. Its connections end when it is dropped.
pub struct Relay {
    shared: Arc<Shared>,
    listen: SocketAddr,
}

struct Shared {
    to: SocketAddr,
    state: Mutex<State>,
}

/// Both ends of a relayed connection.
struct Pair {
    client: TcpStream,
    broker: TcpStream,
    about: Arc<About>,
}

/// What the threads of both directions know of their connection.
#[derive(Default)]
struct About {
    /// Ended by a reset: no end of the stream may be sent before it.
    reset: AtomicBool,
    /// It carries what the proxy asks for itself.
    is_own: AtomicBool,
}

#[derive(Default)]
struct State {
    fault: Fault,
    /// Which connection to cut behind the next produce request that passes it, and how.
    cut_behind_produce: Option<Cut>,
    /// New connections are closed at once.
    refusing: bool,
    ended: bool,
    connections: BTreeMap<u64, Pair>,
    next: u64,
    /// Connections that have been cut behind a produce request.
    cut: usize,
    /// Produce requests that came while there was a fault.
    faulted: usize,
}

impl Relay {
    /// Listens on `listen` and relays to `to`.
    ///
    /// # Errors
    /// The address is taken.
    pub fn start(listen: SocketAddr, to: SocketAddr) -> Result<Relay> {
        let listener = TcpListener::bind(listen)
            .map_err(|source| HarnessError::Io { action: format!("listen on {listen}"), source })?;
        let shared = Arc::new(Shared { to, state: Mutex::default() });
        let accepting = Arc::clone(&shared);
        thread::spawn(move || {
            for stream in listener.incoming() {
                if accepting.state().ended {
                    return;
                }
                if let Ok(client) = stream {
                    let shared = Arc::clone(&accepting);
                    thread::spawn(move || shared.serve(client));
                }
            }
        });
        Ok(Relay { shared, listen })
    }

    pub fn set(&self, fault: Fault) {
        self.shared.state().fault = fault;
    }

    /// Ends every connection there is.
    pub fn cut(&self, cut: Cut) {
        for pair in std::mem::take(&mut self.shared.state().connections).into_values() {
            pair.end(cut);
        }
    }

    /// The next connection that carries a produce request is cut as soon as the whole request is passed on: the broker
    /// gets it, its answer is lost.
    pub fn cut_behind_next_produce(&self, cut: Cut) {
        self.shared.state().cut_behind_produce = Some(cut);
    }

    /// How many connections have been cut behind a produce request.
    #[must_use]
    pub fn cut_behind_produce(&self) -> usize {
        self.shared.state().cut
    }

    /// How many produce requests of clients came while the relay was faulty; several that come at once may be taken for one.
    #[must_use]
    pub fn faulted_produce(&self) -> usize {
        self.shared.state().faulted
    }

    /// New connections are closed at once, as by a machine without the service.
    pub fn refuse(&self, refusing: bool) {
        self.shared.state().refusing = refusing;
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.shared.state().ended = true;
        self.cut(Cut::Fin);
        // Wakes the thread that accepts.
        let _ = TcpStream::connect_timeout(&self.listen, CONNECT_LIMIT);
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve(self: Arc<Self>, client: TcpStream) {
        if self.state().refusing {
            return;
        }
        let Ok(broker) = TcpStream::connect_timeout(&self.to, CONNECT_LIMIT) else { return };
        let copy = |stream: &TcpStream| {
            let _ = stream.set_nodelay(true);
            stream.try_clone()
        };
        let copies = [&client, &broker, &client, &broker].map(copy);
        let [Ok(client2), Ok(broker2), Ok(client3), Ok(broker3)] = copies else { return };
        let about = Arc::new(About::default());
        let id = {
            let mut state = self.state();
            state.next += 1;
            let id = state.next;
            let pair = Pair { client: client3, broker: broker3, about: Arc::clone(&about) };
            state.connections.insert(id, pair);
            id
        };
        let (answers, about2) = (Arc::clone(&self), Arc::clone(&about));
        let back = thread::spawn(move || answers.pass(id, broker2, client2, None, &about2));
        self.pass(id, client, broker, Some(Requests::default()), &about);
        let _ = back.join();
        self.state().connections.remove(&id);
    }

    /// Passes on what comes until one end closes. `requests` is there in the direction from the client.
    fn pass(
        &self,
        id: u64,
        mut from: TcpStream,
        mut to: TcpStream,
        mut requests: Option<Requests>,
        about: &About,
    ) {
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            let Some(piece) = buffer.get(..count) else { break };
            let produced = requests.as_mut().is_some_and(|requests| requests.ends_produce(piece));
            if requests.as_ref().is_some_and(Requests::is_own) {
                about.is_own.store(true, Ordering::SeqCst);
            }
            let is_own = about.is_own.load(Ordering::SeqCst);
            if produced && !is_own {
                self.state().note_produce();
            }
            if !self.wait_until_passing(requests.as_ref(), is_own) {
                continue;
            }
            if to.write_all(piece).is_err() {
                break;
            }
            if produced && self.state().cut_if_asked(id) {
                break;
            }
        }
        if !about.reset.load(Ordering::SeqCst) {
            // A half-closed connection stays half open, as it would without us.
            let _ = to.shutdown(Shutdown::Write);
        }
    }

    /// Waits while the fault says so; false when the piece is not to be passed on at all.
    fn wait_until_passing(&self, requests: Option<&Requests>, is_own: bool) -> bool {
        loop {
            let (fault, ended) = {
                let state = self.state();
                (state.fault, state.ended)
            };
            match fault {
                _ if ended => return true,
                Fault::None => return true,
                Fault::LateClients(_) | Fault::DropClientAnswers if is_own => return true,
                Fault::Late(by) | Fault::LateClients(by) => {
                    thread::sleep(by);
                    return true;
                }
                Fault::LateCompanions(by) => {
                    if requests.is_some_and(|requests| requests.began_with_produce == Some(true)) {
                        thread::sleep(by);
                    }
                    return true;
                }
                Fault::DropAnswers | Fault::DropClientAnswers => return requests.is_some(),
                Fault::Stall => thread::sleep(LOOK),
            }
        }
    }
}

impl State {
    fn cut_if_asked(&mut self, id: u64) -> bool {
        let Some(cut) = self.cut_behind_produce else { return false };
        let Some(pair) = self.connections.remove(&id) else { return false };
        self.cut_behind_produce = None;
        self.cut += 1;
        pair.end(cut);
        true
    }

    fn note_produce(&mut self) {
        if self.fault != Fault::None {
            self.faulted += 1;
        }
    }
}

/// Follows the frames of a stream of requests.
#[derive(Default)]
struct Requests {
    /// The stream's first bytes, up to the end of the client id if that is the proxy's.
    begin: Vec<u8>,
    /// Length prefix and API key, as far as they are here.
    head: Vec<u8>,
    /// Of the current request, still to come.
    left: usize,
    is_produce: bool,
    began_with_produce: Option<bool>,
}

impl Requests {
    /// The first request names the proxy itself as its client.
    fn is_own(&self) -> bool {
        self.begin.ends_with(OWN_CLIENT_ID) && self.begin.len() == OWN_BEGIN
    }

    /// Whether a produce request ends in this piece.
    fn ends_produce(&mut self, mut piece: &[u8]) -> bool {
        let missing = OWN_BEGIN.saturating_sub(self.begin.len());
        self.begin.extend(piece.iter().take(missing));
        let mut ended = false;
        while !piece.is_empty() {
            if self.left == 0 {
                let missing = 6 - self.head.len();
                let (now, rest) = piece.split_at(missing.min(piece.len()));
                self.head.extend(now);
                piece = rest;
                let [a, b, c, d, key @ ..] = self.head.as_slice() else { break };
                if key.len() < PRODUCE.len() {
                    break;
                }
                let length = usize::try_from(i32::from_be_bytes([*a, *b, *c, *d])).unwrap_or(2);
                self.is_produce = key == PRODUCE;
                if key != API_VERSIONS {
                    self.began_with_produce.get_or_insert(self.is_produce);
                }
                self.left = length.saturating_sub(PRODUCE.len());
                self.head.clear();
            }
            let now = self.left.min(piece.len());
            self.left -= now;
            piece = piece.get(now..).unwrap_or_default();
            ended |= self.left == 0 && self.is_produce;
        }
        ended
    }
}

impl Pair {
    fn end(self, cut: Cut) {
        self.about.reset.store(cut == Cut::Rst, Ordering::SeqCst);
        let streams = [&self.client, &self.broker];
        for stream in streams.iter().take(if cut == Cut::Near { 1 } else { 2 }) {
            match cut {
                Cut::Fin | Cut::Near => {
                    let _ = stream.shutdown(Shutdown::Both);
                }
                // The reset is sent when the last handle is closed; the shutdown wakes the thread that holds it.
                Cut::Rst => {
                    let _ = SockRef::from(*stream).set_linger(Some(Duration::ZERO));
                    let _ = stream.shutdown(Shutdown::Read);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Requests;

    #[test]
    fn the_proxys_own_connections_are_told_from_those_of_clients() {
        let stream = |id: &str| {
            let mut out = vec![0, 0, 0, 60, 0, 18, 0, 3, 0, 0, 0, 1, 0, u8::try_from(id.len()).unwrap()];
            out.extend(id.as_bytes());
            out.resize(64, 0);
            out
        };
        for (id, own) in [("crossover", true), ("crossover2", false), ("orders-app", false), ("", false)] {
            for size in [1, 7, 64] {
                let mut requests = Requests::default();
                for piece in stream(id).chunks(size) {
                    requests.ends_produce(piece);
                }
                assert_eq!(requests.is_own(), own, "{id:?} in pieces of {size}");
            }
        }
    }

    fn frame(key: u8, length: u8) -> Vec<u8> {
        let mut out = vec![0, 0, 0, length, 0, key];
        out.resize(4 + usize::from(length), 7);
        out
    }

    #[test]
    fn the_end_of_a_produce_request_is_seen_however_it_is_cut_up() {
        let stream = [frame(3, 20), frame(0, 30), frame(1, 9)].concat();
        let end = 24 + 34;
        for size in 1..=stream.len() {
            let mut requests = Requests::default();
            let mut passed = 0;
            for piece in stream.chunks(size) {
                passed += piece.len();
                let holds_end = passed >= end && passed - piece.len() < end;
                assert_eq!(requests.ends_produce(piece), holds_end, "pieces of {size}, {passed} passed");
            }
        }
    }
}
