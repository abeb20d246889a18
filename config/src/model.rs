//! The configuration as the program uses it: parsed values only, nothing left to validate.

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

/// A whole configuration file.
#[derive(Clone, Debug)]
pub struct Config {
    pub source: Cluster,
    pub target: Cluster,
    pub listener: Listener,
    pub limits: Limits,
    pub timeouts: Timeouts,
    pub routing: Routing,
    pub fence: Fence,
    pub admin: Admin,
    pub state: State,
    pub log: Log,
}

impl Config {
    #[must_use]
    pub fn cluster(&self, side: Side) -> &Cluster {
        match side {
            Side::Source => &self.source,
            Side::Target => &self.target,
        }
    }
}

/// One of the two clusters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Side {
    Source,
    Target,
}

impl Side {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Side::Source => "source",
            Side::Target => "target",
        }
    }
}

/// What `[source]` and `[target]` say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cluster {
    /// At least one, no duplicates.
    pub bootstrap: Vec<HostPort>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    /// Listened on, and given to clients.
    pub bootstrap: HostPort,
    /// Does not contain the ports of `bootstrap` and of the admin interface on the same host.
    pub node_ports: PortRange,
    /// Host in the addresses of the virtual nodes; never an unspecified address.
    pub advertised_host: String,
    pub max_connections: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes, without the four bytes of the length prefix; at most `i32::MAX`.
    pub frame_bytes_max: usize,
    /// Bytes, for the first request of a connection.
    pub first_frame_bytes_max: usize,
    pub in_flight_requests_max: usize,
    /// At most 8 s.
    pub hold_max: Duration,
    /// Bytes over all connections; at least `frame_bytes_max`.
    pub buffered_bytes_max: usize,
    /// Producer ids carried for one partition.
    pub carry_entries_max: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timeouts {
    pub connect: Duration,
    pub control_request: Duration,
    pub metadata_refresh: Duration,
    pub idle_pre_auth: Duration,
    pub frame: Duration,
    pub idle: Duration,
    pub companion_idle: Duration,
    /// Grace before a partition with lost produce may flip (RULES R2).
    pub loss_grace: Duration,
    pub shutdown: Duration,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Routing {
    pub default_side: Side,
    /// In the order of the file; no two with the same pattern, no two with the same physical topic on one side.
    pub routes: Vec<RouteRule>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteRule {
    pub pattern: RoutePattern,
    pub side: Side,
    pub mode: Mode,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RoutePattern {
    /// One topic, with its names in the two clusters.
    Exact { topic: String, source_topic: String, target_topic: String },
    /// All topics that start with this text; not empty. Names are the same in both clusters.
    Prefix(String),
}

/// What the other side holds at a cutover (DESIGN §4); the modes that are built.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    Continue,
    Identity,
}

impl Mode {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Mode::Continue => "continue",
            Mode::Identity => "identity",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fence {
    /// Principals as Kafka writes them, `Type:name`; nobody is fenced when empty.
    pub deny_write: Vec<String>,
}

#[derive(Clone, Debug)]
pub struct Admin {
    pub address: HostPort,
    /// Always present when `address` is not a loopback address.
    pub token: Option<Secret>,
    pub max_connections: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// Absolute, or relative to the working directory when the configuration file was named so.
    pub directory: PathBuf,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// In the syntax of `tracing_subscriber::EnvFilter`; not checked here.
    pub filter: String,
    pub format: LogFormat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
}

/// A host name or address, and a port ≥ 1. Written `host:port`, IPv6 addresses in brackets.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostPort {
    /// Without brackets.
    pub host: String,
    pub port: u16,
}

/// Why a text is not a [`HostPort`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HostPortError {
    #[error("has no port")]
    PortMissing,
    #[error("has a port that is not a number from 1 to 65535")]
    PortInvalid,
    #[error("has no host")]
    HostMissing,
    #[error("has a host with a character that no host name or address contains")]
    HostInvalid,
}

impl HostPort {
    /// The host as an address, `None` for a name.
    #[must_use]
    pub fn ip(&self) -> Option<IpAddr> {
        self.host.parse().ok()
    }

    /// `0.0.0.0` and `::`: an address to listen on, which no client can connect to.
    #[must_use]
    pub fn is_unspecified(&self) -> bool {
        self.ip().is_some_and(|ip| ip.is_unspecified())
    }

    /// Reachable from this machine only. Of names only `localhost` counts.
    #[must_use]
    pub fn is_loopback(&self) -> bool {
        self.ip().map_or(self.host.eq_ignore_ascii_case("localhost"), |ip| ip.is_loopback())
    }

    /// Whether two listeners at these addresses would want the same port of the same interface.
    #[must_use]
    pub(crate) fn shares_host(&self, other: &HostPort) -> bool {
        let same = self.host.eq_ignore_ascii_case(&other.host);
        same || self.is_unspecified() || other.is_unspecified() || (self.is_loopback() && other.is_loopback())
    }
}

impl FromStr for HostPort {
    type Err = HostPortError;

    fn from_str(text: &str) -> Result<HostPort, HostPortError> {
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (host, tail) = rest.split_once(']').ok_or(HostPortError::HostInvalid)?;
                (host, tail.strip_prefix(':').ok_or(HostPortError::PortMissing)?)
            }
            None => text.rsplit_once(':').ok_or(HostPortError::PortMissing)?,
        };
        if host.is_empty() {
            return Err(HostPortError::HostMissing);
        }
        let bracketed = text.starts_with('[');
        let valid = if bracketed {
            matches!(host.parse(), Ok(IpAddr::V6(_)))
        } else {
            host.len() <= 253
                && host.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_'))
        };
        if !valid {
            return Err(HostPortError::HostInvalid);
        }
        // `parse` alone would accept "+9092".
        let digits = !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
        match port.parse() {
            Ok(port) if digits && port > 0 => Ok(HostPort { host: host.to_owned(), port }),
            _ => Err(HostPortError::PortInvalid),
        }
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

/// Ports from `first` to `last`, both included; `1 ≤ first ≤ last`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortRange {
    pub first: u16,
    pub last: u16,
}

impl PortRange {
    #[must_use]
    pub fn contains(self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }

    /// Number of ports.
    #[must_use]
    pub fn count(self) -> usize {
        usize::from(self.last.saturating_sub(self.first)) + 1
    }

    pub(crate) fn parse(text: &str) -> Option<PortRange> {
        let (first, last) = text.split_once('-')?;
        let range = PortRange { first: first.trim().parse().ok()?, last: last.trim().parse().ok()? };
        (range.first > 0 && range.first <= range.last).then_some(range)
    }
}

/// A text that is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

/// Why a secret could not be read from its file.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    #[error("cannot be read: {0}")]
    Unreadable(#[source] std::io::Error),
    #[error("is empty")]
    Empty,
    #[error("holds something else than one line of visible ASCII characters, at most 4096")]
    NotOneLine,
}

impl Secret {
    /// Reads a secret from a file of one line; white space around it is dropped.
    ///
    /// # Errors
    /// When the file cannot be read, or holds nothing that fits an HTTP header.
    pub fn read(path: &Path) -> Result<Secret, SecretError> {
        let text = std::fs::read_to_string(path).map_err(SecretError::Unreadable)?;
        Secret::parse(&text)
    }

    /// The same from a text.
    ///
    /// # Errors
    /// [`SecretError::Empty`] and [`SecretError::NotOneLine`].
    pub fn parse(text: &str) -> Result<Secret, SecretError> {
        let text = text.trim();
        if text.is_empty() {
            return Err(SecretError::Empty);
        }
        if text.len() > 4_096 || !text.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(SecretError::NotOneLine);
        }
        Ok(Secret(text.to_owned()))
    }

    /// The secret itself.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}
