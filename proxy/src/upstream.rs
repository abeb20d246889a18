//! One connection to a broker, on behalf of one client connection.

use bytes::{Bytes, BytesMut};
use crossover_core::session::UpstreamId;
use crossover_core::wire::frame::FrameDecoder;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;
use tokio::time::timeout;

/// The largest answer of a broker: a fetch with the defaults of all clients is far below.
const RESPONSE_BYTES_MAX: usize = 256 * 1024 * 1024;
/// Writes are gathered up to this size.
const GATHER_BYTES_MAX: usize = 256 * 1024;

/// What an upstream tells its client's connection.
#[derive(Debug)]
pub(crate) enum UpstreamEvent {
    Connected(UpstreamId),
    Frame(UpstreamId, Bytes),
    /// Sent once, last.
    Lost(UpstreamId),
}

/// Where a broker is, and how long to try.
pub(crate) struct Dial {
    pub(crate) id: UpstreamId,
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) connect: Duration,
    /// How long to read on after the half close.
    pub(crate) linger: Duration,
}

/// Connects, sends what `queue` brings and reports what comes back. When `queue` closes, the connection is half
/// closed and read to its end: it is never reset, because what a broker has read it will still append.
pub(crate) async fn run(dial: Dial, queue: mpsc::UnboundedReceiver<Bytes>, events: mpsc::Sender<UpstreamEvent>) {
    let id = dial.id;
    let connected = timeout(dial.connect, TcpStream::connect((dial.host.as_str(), dial.port))).await;
    if let Ok(Ok(stream)) = connected {
        let _ = stream.set_nodelay(true);
        if events.send(UpstreamEvent::Connected(id)).await.is_ok() {
            let (read, write) = stream.into_split();
            let writer = tokio::spawn(write_all(write, queue, dial.linger));
            read_all(id, read, &events).await;
            writer.abort();
        }
    }
    let _ = events.send(UpstreamEvent::Lost(id)).await;
}

async fn write_all(mut socket: OwnedWriteHalf, mut queue: mpsc::UnboundedReceiver<Bytes>, linger: Duration) {
    let mut gathered = BytesMut::new();
    while let Some(frame) = queue.recv().await {
        gathered.extend_from_slice(&frame);
        while gathered.len() < GATHER_BYTES_MAX {
            let Ok(frame) = queue.try_recv() else { break };
            gathered.extend_from_slice(&frame);
        }
        if socket.write_all(&gathered).await.is_err() {
            return;
        }
        gathered.clear();
    }
    let _ = socket.shutdown().await;
    // The reader sees the end of the stream, or this task is aborted; the half stays open meanwhile.
    tokio::time::sleep(linger).await;
}

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
                    if events.send(UpstreamEvent::Frame(id, frame)).await.is_err() {
                        return;
                    }
                }
                Ok(None) => break,
                Err(_) => return,
            }
        }
    }
}
