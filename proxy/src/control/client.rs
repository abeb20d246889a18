//! The proxy's own Kafka client: metadata, boundaries, mirrored commits. One connection per broker, one request at a time.

use bytes::{Bytes, BytesMut};
use crossover_core::api::key;
use crossover_core::schema::{self, Str, Struct};
use crossover_core::wire::frame::FrameDecoder;
use crossover_core::wire::header;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

const RESPONSE_BYTES_MAX: usize = 256 * 1024 * 1024;
const CLIENT_ID: &str = "crossover";

/// A broker's address.
pub(crate) type Address = (String, u16);
/// The versions a broker speaks, per API key.
pub(crate) type Versions = BTreeMap<i16, (i16, i16)>;

/// A request in the newest version that both sides know, at most `version_max`.
#[derive(Clone, Copy)]
pub(crate) struct Call<'a> {
    pub(crate) api_key: i16,
    pub(crate) version_max: i16,
    pub(crate) body: &'a Struct,
}

/// Why a call got no answer.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum ClientError {
    #[error("{0}:{1} cannot be reached: {2}")]
    Unreachable(String, u16, String),
    #[error("the connection to {0}:{1} was lost: {2}")]
    Lost(String, u16, String),
    #[error("{0}:{1} did not answer within {2:?}")]
    Timeout(String, u16, Duration),
    #[error("{0}:{1} answers what is not Kafka: {2}")]
    NotKafka(String, u16, String),
    #[error("{0}:{1} does not speak {2}")]
    Unsupported(String, u16, &'static str),
}

struct Connection {
    stream: TcpStream,
    /// Who asks.
    client_id: Option<Str>,
    decoder: FrameDecoder,
    versions: Versions,
    correlation: i32,
}

type Slot = Arc<tokio::sync::Mutex<Option<Connection>>>;

/// Connections to the brokers of both clusters, made when needed.
pub(crate) struct Client {
    connect: Duration,
    request: Duration,
    slots: Mutex<HashMap<Address, Slot>>,
}

impl Client {
    pub(crate) fn new(connect: Duration, request: Duration) -> Client {
        Client { connect, request, slots: Mutex::new(HashMap::new()) }
    }

    /// Sends a request in the newest version that both know, at most `version_max`, and decodes the answer.
    ///
    /// # Errors
    /// [`ClientError`]; the connection is then dropped, the next call makes a new one.
    pub(crate) async fn call(
        &self,
        at: &Address,
        api_key: i16,
        version_max: i16,
        body: &Struct,
    ) -> Result<Struct, ClientError> {
        let answers = self.calls(at, &[Call { api_key, version_max, body }]).await?;
        answers.into_iter().next().ok_or_else(|| not_kafka(at, "no answer"))
    }

    /// Sends several requests at once. A broker takes up a connection's next request when it has answered the one
    /// before (`SocketServer` mutes the channel meanwhile), so they are carried out strictly in their order.
    ///
    /// # Errors
    /// As [`Client::call`]; then nothing is known of any of them.
    pub(crate) async fn calls(&self, at: &Address, calls: &[Call<'_>]) -> Result<Vec<Struct>, ClientError> {
        let slot = self.slot(at);
        let mut guard = slot.lock().await;
        let reused = guard.is_some();
        let first = self.calls_on(&mut guard, at, calls).await;
        match first {
            // A connection that stood idle may have been closed by the broker meanwhile.
            Err(ClientError::Lost(..) | ClientError::NotKafka(..) | ClientError::Unreachable(..))
                if reused =>
            {
                self.calls_on(&mut guard, at, calls).await
            }
            other => other,
        }
    }

    /// What a broker speaks.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub(crate) async fn versions(&self, at: &Address) -> Result<Versions, ClientError> {
        let slot = self.slot(at);
        let mut guard = slot.lock().await;
        if guard.is_none() {
            *guard = Some(self.dial(at).await?);
        }
        Ok(guard.as_ref().map(|c| c.versions.clone()).unwrap_or_default())
    }

    fn slot(&self, at: &Address) -> Slot {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(slots.entry(at.clone()).or_default())
    }

    async fn calls_on(
        &self,
        slot: &mut Option<Connection>,
        at: &Address,
        calls: &[Call<'_>],
    ) -> Result<Vec<Struct>, ClientError> {
        // Taken out while it is used: a call that is dropped half-way leaves no connection with a stale answer behind.
        let mut connection = match slot.take() {
            Some(connection) => connection,
            None => self.dial(at).await?,
        };
        let mut versioned = Vec::new();
        for call in calls {
            let message = schema::request(call.api_key).ok_or_else(|| not_kafka(at, "no schema"))?;
            let spoken = connection.versions.get(&call.api_key).copied().unwrap_or((0, -1));
            let version = spoken.1.min(message.versions.max).min(call.version_max);
            if version < spoken.0.max(message.versions.min) {
                *slot = Some(connection);
                return Err(ClientError::Unsupported(at.0.clone(), at.1, message.name));
            }
            versioned.push((call.api_key, version, call.body));
        }
        let answers = timeout(self.request, connection.exchange(at, &versioned)).await;
        let answers = answers.map_err(|_| ClientError::Timeout(at.0.clone(), at.1, self.request))??;
        *slot = Some(connection);
        Ok(answers)
    }

    async fn dial(&self, at: &Address) -> Result<Connection, ClientError> {
        Connection::open(at, self.connect, self.request, Some(Str::from(CLIENT_ID))).await
    }
}

/// A connection to a broker that has answered on it. Behind an address there may be something else that accepts connections in
/// a dead broker's place: a load balancer, a relay, a kernel's queue. What is written to those is lost, and
/// nobody can tell it from what a broker has read and not answered.
///
/// # Errors
/// As [`Client::call`], after `limit` at the latest.
pub(crate) async fn connect(at: &Address, limit: Duration) -> Result<TcpStream, ClientError> {
    let opened = timeout(limit, Connection::open(at, limit, limit, None)).await;
    Ok(opened.map_err(|_| ClientError::Timeout(at.0.clone(), at.1, limit))??.stream)
}

impl Connection {
    async fn open(
        at: &Address,
        connect: Duration,
        answer: Duration,
        client_id: Option<Str>,
    ) -> Result<Connection, ClientError> {
        let unreachable = |why: String| ClientError::Unreachable(at.0.clone(), at.1, why);
        let stream = timeout(connect, TcpStream::connect((at.0.as_str(), at.1)))
            .await
            .map_err(|_| unreachable(format!("no connection within {connect:?}")))?
            .map_err(|e| unreachable(e.to_string()))?;
        let _ = stream.set_nodelay(true);
        let decoder = FrameDecoder::responses(RESPONSE_BYTES_MAX);
        let versions = Versions::new();
        let mut connection = Connection { stream, client_id, decoder, versions, correlation: 0 };
        let empty = request(key::API_VERSIONS);
        let asked = [(key::API_VERSIONS, 0, &empty)];
        let answers = timeout(answer, connection.exchange(at, &asked))
            .await
            .map_err(|_| ClientError::Timeout(at.0.clone(), at.1, answer))??;
        let ranges = answers.iter().flat_map(|answer| answer.structs("ApiKeys"));
        connection.versions =
            ranges.map(|r| (r.i16("ApiKey"), (r.i16("MinVersion"), r.i16("MaxVersion")))).collect();
        Ok(connection)
    }

    /// Sends all, then reads as many answers.
    async fn exchange(
        &mut self,
        at: &Address,
        calls: &[(i16, i16, &Struct)],
    ) -> Result<Vec<Struct>, ClientError> {
        let broken = |e: &dyn std::fmt::Display| not_kafka(at, &e.to_string());
        let (mut frames, mut expected) = (BytesMut::new(), Vec::new());
        for (api_key, version, body) in calls {
            let (Some(asked), Some(answered)) = (schema::request(*api_key), schema::response(*api_key))
            else {
                return Err(not_kafka(at, "no schema"));
            };
            self.correlation = self.correlation.wrapping_add(1) & i32::MAX;
            let frame =
                header::encode_request(asked, *version, self.correlation, self.client_id.as_ref(), body);
            frames.extend_from_slice(&frame.map_err(|e| broken(&e))?);
            expected.push((answered, *version, self.correlation));
        }
        self.stream.write_all(&frames).await.map_err(|e| lost(at, &e))?;
        let mut answers = Vec::new();
        for (answered, version, expected) in expected {
            let frame = self.read_frame(at).await?;
            let (correlation, body_at) =
                header::decode_response_header(answered, version, &frame).map_err(|e| broken(&e))?;
            if correlation != expected {
                return Err(not_kafka(at, "the wrong correlation id"));
            }
            let answer = schema::decode(answered, version, &frame.slice(body_at..));
            answers.push(answer.map_err(|e| broken(&e))?);
        }
        Ok(answers)
    }

    async fn read_frame(&mut self, at: &Address) -> Result<Bytes, ClientError> {
        loop {
            if let Some(frame) = self.decoder.next_frame().map_err(|e| not_kafka(at, &e.to_string()))? {
                return Ok(frame);
            }
            let spare: &mut BytesMut = self.decoder.spare();
            match self.stream.read_buf(spare).await {
                Ok(0) => return Err(lost(at, &"the broker closed it")),
                Ok(_) => {}
                Err(e) => return Err(lost(at, &e)),
            }
        }
    }
}

fn lost(at: &Address, why: &dyn std::fmt::Display) -> ClientError {
    ClientError::Lost(at.0.clone(), at.1, why.to_string())
}

fn not_kafka(at: &Address, why: &str) -> ClientError {
    ClientError::NotKafka(at.0.clone(), at.1, why.to_owned())
}

/// An empty request body of an API that has a table.
#[must_use]
pub(crate) fn request(api_key: i16) -> Struct {
    schema::request(api_key).map_or_else(|| Struct::new(&[]), |m| Struct::new(m.fields))
}
