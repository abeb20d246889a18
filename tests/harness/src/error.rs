use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Why the harness could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum HarnessError {
    /// Not `major.minor.patch` in digits.
    #[error("{0:?} is not a Kafka version such as 4.3.1")]
    Version(String),
    /// A specification that cannot be started, with the reason.
    #[error("cluster specification: {0}")]
    Spec(String),
    /// A program of the machine is missing or too old.
    #[error("{missing}; type: {command}")]
    Prerequisite { missing: String, command: String },
    /// A file or process operation failed.
    #[error("{action}: {source}")]
    Io { action: String, source: io::Error },
    /// A program ended with a failure; `output` is the end of what it said.
    #[error("{command} failed ({status}):\n{output}")]
    Command { command: String, status: String, output: String },
    /// A cached file differs from the manifest written when it was resolved.
    #[error("the cache {0} does not match its manifest")]
    CacheDamaged(PathBuf),
    /// A broker or ZooKeeper ended by itself; `log` is the end of its log.
    #[error("{name} ended by itself ({status}); last lines of its log:\n{log}")]
    Exited { name: String, status: String, log: String },
    /// Something did not happen in time.
    #[error("{what} did not happen within {after:?}: {last}")]
    Timeout { what: String, after: Duration, last: String },
    /// The cluster has no broker of this id, or it is not in the state the call needs.
    #[error("broker {0} {1}")]
    Broker(i32, &'static str),
    /// No free port below the ephemeral range.
    #[error("no {0} free loopback ports below the ephemeral range")]
    Ports(usize),
    /// A peer answered something else than the protocol allows.
    #[error("malformed answer: {0}")]
    Malformed(&'static str),
    /// A broker answered with a Kafka error code.
    #[error("{request} was answered with error code {code}{}", message.as_deref().map(|m| format!(": {m}")).unwrap_or_default())]
    Refused { request: &'static str, code: i16, message: Option<String> },
    /// None of the classes known for this tool is in the jars of this version.
    #[error("Kafka {version} has no class for the tool {tool}")]
    NoSuchTool { version: String, tool: String },
}

pub(crate) type Result<T> = std::result::Result<T, HarnessError>;

/// Names the action and the path of a failed file operation.
pub(crate) trait IoContext<T> {
    fn context(self, action: &str, path: &Path) -> Result<T>;
}

impl<T> IoContext<T> for io::Result<T> {
    fn context(self, action: &str, path: &Path) -> Result<T> {
        self.map_err(|source| HarnessError::Io { action: format!("{action} {}", path.display()), source })
    }
}
