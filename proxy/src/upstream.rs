//! One connection to a broker, on behalf of one client connection.

use crate::control::client;
use crate::missing::Missing;
use bytes::{Bytes, BytesMut};
use crossover_core::ids::VirtualNode;
use crossover_core::session::{ErrandDone, Ticket, UpstreamId};
use crossover_core::wire::frame::FrameDecoder;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tracing::debug;

/// The largest answer of a broker: a fetch with the defaults of all clients is far below.
const RESPONSE_BYTES_MAX: usize = 256 * 1024 * 1024;
/// Writes are gathered up to this size.
const GATHER_BYTES_MAX: usize = 256 * 1024;

/// What an upstream, or a control task, tells a client's connection.
#[derive(Debug)]
pub(crate) enum UpstreamEvent {
    Connected(UpstreamId),
    Frame(UpstreamId, Bytes),
    /// Sent once, last.
    Lost(UpstreamId),
    /// The broker of the connection's own node is away, and others of its cluster are not.
    NodeGone,
    /// An errand of the connection is done, or cannot be done.
    ErrandDone(Ticket, ErrandDone),
}

/// Where a broker is, and how long to try.
pub(crate) struct Dial {
    pub(crate) id: UpstreamId,
    pub(crate) node: VirtualNode,
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) connect: Duration,
    /// How long to read on after the half close.
    pub(crate) linger: Duration,
}

/// Connects, sends what `queue` brings and reports what comes back. When `queue` closes, the connection is half
/// closed and read to its end: it is never reset, because what a broker has read it will still append.
pub(crate) async fn run(
    dial: Dial,
    queue: mpsc::UnboundedReceiver<Bytes>,
    events: &mpsc::Sender<UpstreamEvent>,
    missing: &Missing,
) {
    let id = dial.id;
    let connected = client::connect(&(dial.host, dial.port), dial.connect).await;
    if let Err(error) = &connected {
        debug!(node = ?dial.node, %error, "no connection to a broker");
    }
    if let Ok(stream) = connected {
        missing.found(dial.node);
        if events.send(UpstreamEvent::Connected(id)).await.is_ok() {
            let (read, write) = stream.into_split();
            let mut writer = tokio::spawn(write_all(write, queue));
            let reading = read_all(id, read, events);
            tokio::pin!(reading);
            tokio::select! {
                () = &mut reading => missing.lost(dial.node),
                // Dropping the writer's half is the half close.
                written = &mut writer => {
                    let _ = timeout(dial.linger, reading).await;
                    if !matches!(written, Ok(Written::All)) {
                        missing.lost(dial.node);
                    }
                }
            }
            writer.abort();
        }
    } else {
        missing.lost(dial.node);
    }
    let _ = events.send(UpstreamEvent::Lost(id)).await;
}

/// How a writer has ended.
enum Written {
    /// Its queue was closed.
    All,
    Failed,
}

/// Writes until the queue closes, then half closes. On an error what is queued is dropped: the reader learns the rest.
async fn write_all(mut socket: OwnedWriteHalf, mut queue: mpsc::UnboundedReceiver<Bytes>) -> Written {
    let mut gathered = BytesMut::new();
    while let Some(frame) = queue.recv().await {
        gathered.extend_from_slice(&frame);
        while gathered.len() < GATHER_BYTES_MAX {
            let Ok(frame) = queue.try_recv() else { break };
            gathered.extend_from_slice(&frame);
        }
        if socket.write_all(&gathered).await.is_err() {
            return Written::Failed;
        }
        gathered.clear();
    }
    let _ = socket.shutdown().await;
    Written::All
}

/// Reads to the end of the stream. Answers that nobody waits for any more are read all the same: a socket that is
/// closed with unread bytes is reset, and a reset may take requests away that the broker has not read yet.
async fn read_all(id: UpstreamId, mut socket: OwnedReadHalf, events: &mpsc::Sender<UpstreamEvent>) {
    let mut decoder = FrameDecoder::responses(RESPONSE_BYTES_MAX);
    loop {
        match socket.read_buf(decoder.spare()).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        loop {
            match decoder.next_frame() {
                Ok(Some(frame)) => {
                    let _ = events.send(UpstreamEvent::Frame(id, frame)).await;
                }
                Ok(None) => break,
                Err(_) => return,
            }
        }
    }
}
