use std::path::PathBuf;

use crate::error::{HarnessError, Result};
use crate::version::Version;

/// What to start.
#[derive(Debug, Clone)]
pub struct ClusterSpec {
    /// Such as `4.3.1`. Before 3.3 with ZooKeeper, from then on KRaft.
    pub version: String,
    /// 1 to 5.
    pub brokers: u8,
    /// The first broker's id; the others follow.
    pub first_node_id: i32,
    /// Added to every broker's `server.properties`, replacing what the harness sets.
    pub properties: Vec<(String, String)>,
    /// Part of the directory's name and of error messages.
    pub name: String,
    /// Where data and logs live and stay; a cluster that was here before continues with its data, cluster id and,
    /// where free, ports. `None`: a temporary directory of which only the logs stay.
    pub directory: Option<PathBuf>,
    /// How many brokers are KRaft controllers too, 1 to `brokers`; ignored with ZooKeeper.
    pub voters: u8,
    /// Listeners besides `PLAINTEXT`, each on a port of its own; their security settings go into `properties`.
    pub listeners: Vec<Listener>,
    /// Wait until a group coordinator answers too, so that the first consumer does not wait for
    /// `__consumer_offsets` to be created.
    pub warm_coordinator: bool,
}

/// A client listener besides `PLAINTEXT`.
#[derive(Debug, Clone)]
pub struct Listener {
    /// Such as `SASL`.
    pub name: String,
    /// `PLAINTEXT`, `SSL`, `SASL_PLAINTEXT` or `SASL_SSL`.
    pub protocol: String,
    /// Brokers tell clients another port, where a [`crate::relay::Relay`] is to be put in front of this one.
    pub relayed: bool,
}

impl ClusterSpec {
    /// Node ids from 1, one voter, nothing special.
    pub fn new(version: &str, brokers: u8) -> Self {
        Self {
            version: version.to_owned(),
            brokers,
            first_node_id: 1,
            properties: Vec::new(),
            name: format!("kafka-{version}"),
            directory: None,
            voters: 1,
            listeners: Vec::new(),
            warm_coordinator: true,
        }
    }

    pub(crate) fn check(&self) -> Result<Version> {
        let refuse = |reason: &str| Err(HarnessError::Spec(reason.to_owned()));
        if !(1..=5).contains(&self.brokers) {
            return refuse("brokers must be 1 to 5");
        }
        if !(1..=self.brokers).contains(&self.voters) {
            return refuse("voters must be 1 to the number of brokers");
        }
        if self.first_node_id < 0 {
            return refuse("first_node_id must not be negative");
        }
        if self.name.is_empty()
            || !self.name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
        {
            return refuse("name must be letters, digits, '-', '_' and '.'");
        }
        self.version.parse()
    }

    pub(crate) fn ids(&self) -> impl Iterator<Item = i32> + use<> {
        self.first_node_id..self.first_node_id + i32::from(self.brokers)
    }
}
