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

/// What happens to bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fault {
    #[default]
    None,
    /// Each piece is passed on this much later, in both directions.
    Late(Duration),
    /// Requests arrive, answers are swallowed.
    DropAnswers,
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
    /// Ended by a reset: no end of the stream may be sent before it.
    reset: Arc<AtomicBool>,
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
        let reset = Arc::new(AtomicBool::new(false));
        let id = {
            let mut state = self.state();
            state.next += 1;
            let id = state.next;
            let pair = Pair { client: client3, broker: broker3, reset: Arc::clone(&reset) };
            state.connections.insert(id, pair);
            id
        };
        let (answers, reset2) = (Arc::clone(&self), Arc::clone(&reset));
        let back = thread::spawn(move || answers.pass(id, broker2, client2, None, &reset2));
        self.pass(id, client, broker, Some(Requests::default()), &reset);
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
        reset: &AtomicBool,
    ) {
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            let Some(piece) = buffer.get(..count) else { break };
            if !self.wait_until_passing(requests.is_some()) {
                continue;
            }
            let produced = requests.as_mut().is_some_and(|requests| requests.ends_produce(piece));
            if to.write_all(piece).is_err() {
                break;
            }
            if produced && self.state().cut_if_asked(id) {
                break;
            }
        }
        if !reset.load(Ordering::SeqCst) {
            // A half-closed connection stays half open, as it would without us.
            let _ = to.shutdown(Shutdown::Write);
        }
    }

    /// Waits while the fault says so; false when the piece is not to be passed on at all.
    fn wait_until_passing(&self, is_request: bool) -> bool {
        loop {
            let (fault, ended) = {
                let state = self.state();
                (state.fault, state.ended)
            };
            match fault {
                _ if ended => return true,
                Fault::None => return true,
                Fault::Late(by) => {
                    thread::sleep(by);
                    return true;
                }
                Fault::DropAnswers => return is_request,
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
}

/// Follows the frames of a stream of requests.
#[derive(Default)]
struct Requests {
    /// Length prefix and API key, as far as they are here.
    head: Vec<u8>,
    /// Of the current request, still to come.
    left: usize,
    is_produce: bool,
}

impl Requests {
    /// Whether a produce request ends in this piece.
    fn ends_produce(&mut self, mut piece: &[u8]) -> bool {
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
        self.reset.store(cut == Cut::Rst, Ordering::SeqCst);
        for stream in [&self.client, &self.broker] {
            match cut {
                Cut::Fin => {
                    let _ = stream.shutdown(Shutdown::Both);
                }
                // The reset is sent when the last handle is closed; the shutdown wakes the thread that holds it.
                Cut::Rst => {
                    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
                    let _ = stream.shutdown(Shutdown::Read);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Requests;

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
