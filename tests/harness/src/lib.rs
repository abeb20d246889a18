//! Real Apache Kafka for the demo, the tests and the load test.
//!
//! [`Kafka::resolve`] brings the jars of one version from Maven Central into a cache, [`Cluster::start`] runs one to
//! three brokers of it as JVM processes on loopback and waits until they serve, [`Kafka::run_tool`] runs Kafka's own
//! command line tools. Everything blocks: call it from `spawn_blocking` in async code. Linux only.
//!
//! ```no_run
//! # fn main() -> Result<(), crossover_harness::HarnessError> {
//! use crossover_harness::{Cluster, ClusterSpec};
//! let source = Cluster::start(&ClusterSpec::new("3.9.2", 2))?;
//! source.create_topic("orders", 3, 2, &[("retention.ms", "-1")])?;
//! source.kill_broker(2)?;
//! source.start_broker(2)?;
//! # Ok(()) }
//! ```

mod cache;
mod cluster;
mod error;
mod kafka;
mod layout;
mod ports;
mod prerequisites;
mod process;
mod properties;
pub mod relay;
pub mod rig;
mod spec;
mod tools;
mod topics;
mod version;
mod wire;

pub use cluster::Cluster;
pub use error::HarnessError;
pub use kafka::{Kafka, clients_classpath};
pub use ports::{PortLease, free_ports, lease_ports};
pub use prerequisites::{ensure_prerequisites, java};
pub use spec::{ClusterSpec, Listener};
pub use tools::run_tool;
pub use version::Version;
pub use wire::{Commit, Metadata, PartitionInfo, TopicInfo};
