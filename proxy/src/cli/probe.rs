//! Asks a broker who it is: ApiVersions v0, then Metadata without topics. Small enough to be read here, and independent of
//! the schema tables, so that `check` also says something about a broker those do not understand.

use std::time::Duration;

use crossover_config::HostPort;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const METADATA: i16 = 3;
const API_VERSIONS: i16 = 18;
/// The first Metadata version with a cluster id, and the last one before the flexible encoding.
const METADATA_VERSIONS: (i16, i16) = (2, 8);
/// Largest answer in bytes; that of a cluster of 1,000 brokers is far below.
const FRAME_BYTES_MAX: usize = 1024 * 1024;

/// What a broker says about its cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) cluster_id: Option<String>,
    pub(super) brokers: usize,
}

/// Why an address is no usable broker.
#[derive(Debug, thiserror::Error)]
pub(super) enum ProbeError {
    #[error("cannot be connected to: {0}")]
    Connect(#[source] std::io::Error),
    #[error("did not answer within {} ms; is it a listener with TLS or SASL?", .0.as_millis())]
    Timeout(Duration),
    #[error("closed the connection; is it a listener with TLS or SASL?")]
    Closed(#[source] std::io::Error),
    #[error("does not answer as a Kafka broker")]
    NotKafka,
    #[error("speaks no version of Metadata from 2 to 8, as every broker since 1.0 does")]
    Versions,
}

/// Connects and asks. `timeout` is for connecting, and again for both answers together.
pub(super) async fn probe(address: &HostPort, timeout: Duration) -> Result<Found, ProbeError> {
    let connected =
        tokio::time::timeout(timeout, TcpStream::connect((address.host.as_str(), address.port))).await;
    let mut stream = connected.map_err(|_| ProbeError::Timeout(timeout))?.map_err(ProbeError::Connect)?;
    tokio::time::timeout(timeout, ask(&mut stream)).await.map_err(|_| ProbeError::Timeout(timeout))?
}

async fn ask(stream: &mut TcpStream) -> Result<Found, ProbeError> {
    let versions = exchange(stream, API_VERSIONS, 0, 1, &[]).await?;
    let (min, max) = metadata_versions(&versions).ok_or(ProbeError::NotKafka)?;
    let version = max.min(METADATA_VERSIONS.1);
    if version < min.max(METADATA_VERSIONS.0) {
        return Err(ProbeError::Versions);
    }
    let answer = exchange(stream, METADATA, version, 2, &metadata_request(version)).await?;
    parse_metadata(&answer, version).ok_or(ProbeError::NotKafka)
}

async fn exchange(
    stream: &mut TcpStream,
    key: i16,
    version: i16,
    correlation: i32,
    body: &[u8],
) -> Result<Vec<u8>, ProbeError> {
    let mut frame = Vec::new();
    frame.extend(key.to_be_bytes());
    frame.extend(version.to_be_bytes());
    frame.extend(correlation.to_be_bytes());
    frame.extend(15_i16.to_be_bytes());
    frame.extend(b"crossover-check");
    frame.extend(body);
    let length = (frame.len() as u32).to_be_bytes();
    stream.write_all(&length).await.map_err(ProbeError::Closed)?;
    stream.write_all(&frame).await.map_err(ProbeError::Closed)?;
    let length = stream.read_u32().await.map_err(ProbeError::Closed)? as usize;
    if !(4..=FRAME_BYTES_MAX).contains(&length) {
        return Err(ProbeError::NotKafka);
    }
    let answered = stream.read_i32().await.map_err(ProbeError::Closed)?;
    if answered != correlation {
        return Err(ProbeError::NotKafka);
    }
    let mut answer = vec![0; length - 4];
    stream.read_exact(&mut answer).await.map_err(ProbeError::Closed)?;
    Ok(answer)
}

/// No topics, and from version 4 on no creation of topics, from 8 on no authorised operations.
fn metadata_request(version: i16) -> Vec<u8> {
    let mut body = vec![0, 0, 0, 0];
    let flags = match version {
        8.. => 3,
        4.. => 1,
        _ => 0,
    };
    body.extend(std::iter::repeat_n(0, flags));
    body
}

/// The range of Metadata in an ApiVersions v0 response.
pub(super) fn metadata_versions(answer: &[u8]) -> Option<(i16, i16)> {
    let mut input = Input(answer);
    if input.i16()? != 0 {
        return None;
    }
    for _ in 0..input.i32()? {
        let (key, min, max) = (input.i16()?, input.i16()?, input.i16()?);
        if key == METADATA {
            return Some((min, max));
        }
    }
    None
}

/// The head of a Metadata response, versions 2 to 8.
pub(super) fn parse_metadata(answer: &[u8], version: i16) -> Option<Found> {
    let mut input = Input(answer);
    if version >= 3 {
        input.i32()?; // throttle time
    }
    let brokers = usize::try_from(input.i32()?).ok()?;
    for _ in 0..brokers {
        input.i32()?; // node id
        input.string()?; // host
        input.i32()?; // port
        input.string()?; // rack
    }
    let cluster_id = input.string()?.map(|id| String::from_utf8_lossy(id).into_owned());
    Some(Found { cluster_id, brokers })
}

/// Bytes that are read from the front; `None` past the end.
struct Input<'b>(&'b [u8]);

impl<'b> Input<'b> {
    fn take(&mut self, count: usize) -> Option<&'b [u8]> {
        let (head, tail) = self.0.split_at_checked(count)?;
        self.0 = tail;
        Some(head)
    }

    fn i16(&mut self) -> Option<i16> {
        self.take(2)?.try_into().ok().map(i16::from_be_bytes)
    }

    fn i32(&mut self) -> Option<i32> {
        self.take(4)?.try_into().ok().map(i32::from_be_bytes)
    }

    /// A nullable string.
    fn string(&mut self) -> Option<Option<&'b [u8]>> {
        match self.i16()? {
            -1 => Some(None),
            length => self.take(usize::try_from(length).ok()?).map(Some),
        }
    }
}
