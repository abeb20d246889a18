//! A small HTTP client for the admin API: one connection for each request.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use crossover_admin_api::ApiError;
use crossover_config::{HostPort, Secret};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::TcpStream;

/// Largest answer that is read, in bytes.
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longer than the server's own bound, so that its explanation arrives.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(40);

/// Why the admin API gave no answer that can be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    #[error("\"{url}\" is not an address of an admin API; write it as http://host:port")]
    Address { url: String },
    #[error(
        "no Crossover answers at {address} ({reason}); start it with `crossover run`, or name its address with --admin"
    )]
    Unreachable { address: String, reason: String },
    #[error("{0}")]
    Refused(ApiError),
    #[error("the answer of {address} is not that of an admin API ({reason}); check --admin")]
    Answer { address: String, reason: String },
}

pub(crate) struct Client {
    address: HostPort,
    token: Option<Secret>,
}

impl Client {
    pub(crate) fn new(url: &str, token: Option<Secret>) -> Result<Client, ClientError> {
        let rest = url.strip_prefix("http://").map(|rest| rest.strip_suffix('/').unwrap_or(rest));
        match rest.and_then(|rest| rest.parse().ok()) {
            Some(address) => Ok(Client { address, token }),
            None => Err(ClientError::Address { url: url.to_owned() }),
        }
    }

    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.ask(Method::GET, path, Bytes::new()).await
    }

    pub(crate) async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, ClientError> {
        let body = serde_json::to_vec(body).map_err(|error| self.answer_error(error))?;
        self.ask(Method::POST, path, Bytes::from(body)).await
    }

    /// Opens the stream of events.
    pub(crate) async fn events(&self) -> Result<Events, ClientError> {
        let response = self.send(Method::GET, "/v1/events", Bytes::new()).await?;
        if !response.status().is_success() {
            return Err(self.refusal(response).await);
        }
        Ok(Events { body: response.into_body(), buffer: BytesMut::new() })
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<T, ClientError> {
        let answer = async {
            let response = self.send(method, path, body).await?;
            if !response.status().is_success() {
                return Err(self.refusal(response).await);
            }
            let body = self.read(response).await?;
            serde_json::from_slice(&body).map_err(|error| self.answer_error(error))
        };
        match tokio::time::timeout(ANSWER_TIMEOUT, answer).await {
            Ok(answer) => answer,
            Err(_) => Err(self.unreachable("it accepts connections and does not answer")),
        }
    }

    async fn send(&self, method: Method, path: &str, body: Bytes) -> Result<Response<Incoming>, ClientError> {
        let address = (self.address.host.as_str(), self.address.port);
        let stream = match tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return Err(self.unreachable(error)),
            Err(_) => return Err(self.unreachable("no connection within 5 s")),
        };
        let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = handshake.map_err(|error| self.unreachable(error))?;
        // Ends by itself with the connection, which ends when the response has been read or dropped.
        tokio::spawn(connection);
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, self.address.to_string())
            .header(CONTENT_TYPE, "application/json");
        if let Some(token) = &self.token {
            request = request.header(AUTHORIZATION, format!("Bearer {}", token.expose()));
        }
        let request = request.body(Full::new(body)).map_err(|error| self.answer_error(error))?;
        sender.send_request(request).await.map_err(|error| self.unreachable(error))
    }

    async fn refusal(&self, response: Response<Incoming>) -> ClientError {
        let status = response.status();
        match self.read(response).await {
            Ok(body) => match serde_json::from_slice(&body) {
                Ok(error) => ClientError::Refused(error),
                Err(_) => self.answer_error(format!("status {status}")),
            },
            Err(error) => error,
        }
    }

    async fn read(&self, response: Response<Incoming>) -> Result<Bytes, ClientError> {
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
        body.map(http_body_util::Collected::to_bytes).map_err(|error| self.unreachable(error))
    }

    fn unreachable(&self, reason: impl ToString) -> ClientError {
        ClientError::Unreachable { address: self.address.to_string(), reason: reason.to_string() }
    }

    fn answer_error(&self, reason: impl ToString) -> ClientError {
        ClientError::Answer { address: self.address.to_string(), reason: reason.to_string() }
    }
}

/// The data of server-sent events, one after the other.
pub(crate) struct Events {
    body: Incoming,
    buffer: BytesMut,
}

impl Events {
    /// The kind and data of the next event; `None` when the server has ended the stream.
    pub(crate) async fn next(&mut self) -> Option<(String, String)> {
        loop {
            if let Some(end) = self.buffer.windows(2).position(|pair| pair == b"\n\n") {
                let block = self.buffer.split_to(end + 2);
                if let Some(event) = parse_event(&String::from_utf8_lossy(&block)) {
                    return Some(event);
                }
                continue;
            }
            if self.buffer.len() > ANSWER_BYTES_MAX {
                return None;
            }
            let frame = self.body.frame().await?.ok()?;
            if let Some(data) = frame.data_ref() {
                self.buffer.extend_from_slice(data);
            }
        }
    }
}

/// A block of lines; comments give `None`.
pub(crate) fn parse_event(block: &str) -> Option<(String, String)> {
    let field = |name: &str| {
        block
            .lines()
            .filter_map(|line| line.strip_prefix(name))
            .map(|value| value.trim_start().to_owned())
            .next()
    };
    Some((field("event:").unwrap_or_default(), field("data:")?))
}

/// Percent-encodes a value for a path segment or a query.
pub(crate) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'.' | b'-' | b'_' | b'~' => out.push(char::from(byte)),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}
