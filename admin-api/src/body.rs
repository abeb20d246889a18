//! Response bodies: complete ones, and the stream of events.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::{Body, Frame, SizeHint};
use tokio::sync::{broadcast, mpsc};

use crate::model::Event;

/// A comment is sent after this time without events, so that both ends notice a lost connection.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// Events on their way to one reader; beyond it the broadcast channel drops the oldest.
const QUEUE: usize = 64;

pub(crate) enum ResponseBody {
    Full(Full<Bytes>),
    Events(mpsc::Receiver<Bytes>),
}

impl ResponseBody {
    pub(crate) fn events(events: broadcast::Receiver<Event>) -> ResponseBody {
        let (sender, receiver) = mpsc::channel(QUEUE);
        tokio::spawn(pump(events, sender));
        ResponseBody::Events(receiver)
    }
}

async fn pump(mut events: broadcast::Receiver<Event>, sender: mpsc::Sender<Bytes>) {
    // The first bytes tell the reader that it misses nothing from now on.
    let mut next = Bytes::from_static(b": connected\n\n");
    loop {
        if sender.send(next).await.is_err() {
            return;
        }
        let received = tokio::select! {
            () = sender.closed() => return,
            received = tokio::time::timeout(KEEP_ALIVE, events.recv()) => received,
        };
        next = match received {
            Err(_) => Bytes::from_static(b": still here\n\n"),
            Ok(Ok(event)) => encode(&event),
            Ok(Err(broadcast::error::RecvError::Lagged(lost))) => {
                Bytes::from(format!("event: lagged\ndata: {{\"lost\":{lost}}}\n\n"))
            }
            Ok(Err(broadcast::error::RecvError::Closed)) => return,
        };
    }
}

fn encode(event: &Event) -> Bytes {
    // JSON has no raw line breaks; a kind with one would forge an event.
    let kind: String = event.kind.chars().filter(|c| !c.is_control()).collect();
    match serde_json::to_string(event) {
        Ok(json) => Bytes::from(format!("event: {kind}\ndata: {json}\n\n")),
        Err(_) => Bytes::from_static(b": an event could not be written\n\n"),
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match &mut *self {
            ResponseBody::Full(full) => Pin::new(full).poll_frame(cx),
            ResponseBody::Events(events) => {
                events.poll_recv(cx).map(|chunk| chunk.map(|chunk| Ok(Frame::data(chunk))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            ResponseBody::Full(full) => full.is_end_stream(),
            ResponseBody::Events(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            ResponseBody::Full(full) => full.size_hint(),
            ResponseBody::Events(_) => SizeHint::default(),
        }
    }
}
