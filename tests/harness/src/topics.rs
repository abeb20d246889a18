//! What a cluster's brokers know, and topics.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use crate::cluster::{CALL_LIMIT, Cluster, poll};
use crate::error::{HarnessError, Result};
use crate::wire::{Commit, Connection, Metadata, NewTopic, TopicInfo};

/// For a topic to exist everywhere.
const CREATE_LIMIT: Duration = Duration::from_secs(60);
const REQUEST_TIMED_OUT: i16 = 7;
const TOPIC_ALREADY_EXISTS: i16 = 36;
const NOT_CONTROLLER: i16 = 41;

impl Cluster {
    /// What the first answering broker knows; `topics`: `None` for all.
    ///
    /// # Errors
    /// No broker answers.
    pub fn metadata(&self, topics: Option<&[&str]>) -> Result<Metadata> {
        let mut last = HarnessError::Spec("no broker of the cluster is running".to_owned());
        for (_, address) in self.answering() {
            match ask(address, topics) {
                Ok(metadata) => return Ok(metadata),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// Names of all topics but the internal ones, ascending.
    ///
    /// # Errors
    /// As [`Cluster::metadata`].
    pub fn topics(&self) -> Result<Vec<String>> {
        let topics = self.metadata(None)?.topics;
        let mut names: Vec<String> = topics.into_iter().filter(|t| !t.is_internal).map(|t| t.name).collect();
        names.sort();
        Ok(names)
    }

    /// One topic; `None` if it does not exist.
    ///
    /// # Errors
    /// As [`Cluster::metadata`].
    pub fn topic(&self, name: &str) -> Result<Option<TopicInfo>> {
        let topics = self.metadata(Some(&[name]))?.topics;
        Ok(topics.into_iter().find(|topic| topic.name == name && topic.error_code == 0))
    }

    /// The commits of a group, read at its coordinator.
    ///
    /// # Errors
    /// No broker answers, or the coordinator refuses.
    pub fn commits(&self, group: &str) -> Result<Vec<Commit>> {
        let none = HarnessError::Spec("no broker of the cluster is running".to_owned());
        let (_, any) = *self.answering().first().ok_or(none)?;
        let coordinator = Connection::open(any, CALL_LIMIT)?.find_group_coordinator(group)?;
        Connection::open(self.broker_address(coordinator)?, CALL_LIMIT)?.commits(group)
    }

    /// Where each partition's log ends at its leader, replicated or not, by partition number.
    ///
    /// # Errors
    /// No such topic, or a leader does not answer for its partitions.
    pub fn log_ends(&self, topic: &str) -> Result<Vec<i64>> {
        let known = self.topic(topic)?.ok_or(HarnessError::Malformed("the topic does not exist"))?;
        let mut led: BTreeMap<i32, Vec<i32>> = BTreeMap::new();
        for p in &known.partitions {
            led.entry(p.leader).or_default().push(p.partition);
        }
        let mut ends = BTreeMap::new();
        for (leader, partitions) in led {
            let mut leader = Connection::open(self.broker_address(leader)?, CALL_LIMIT)?;
            ends.extend(leader.log_ends(topic, &partitions)?);
        }
        Ok(ends.into_values().collect())
    }

    /// Creates a topic and returns when every answering broker knows a leader of each partition. No JVM involved.
    ///
    /// # Errors
    /// The broker's refusal ([`HarnessError::Refused`]), or it did not appear within 60 s.
    pub fn create_topic(
        &self,
        name: &str,
        partitions: i32,
        replication_factor: i16,
        configs: &[(&str, &str)],
    ) -> Result<()> {
        let topic = NewTopic { name, partitions, replication_factor, configs };
        // A lost answer may have been a yes; then the next attempt finds the topic there.
        let mut may_exist = false;
        poll(&format!("creation of {name}"), CREATE_LIMIT, || match self.create_once(&topic) {
            Ok(()) => Ok(Ok(())),
            Err(HarnessError::Refused { code: TOPIC_ALREADY_EXISTS, .. }) if may_exist => Ok(Ok(())),
            Err(error @ HarnessError::Refused { code: NOT_CONTROLLER, .. }) => Ok(Err(error.to_string())),
            Err(
                error @ (HarnessError::Refused { code: REQUEST_TIMED_OUT, .. } | HarnessError::Io { .. }),
            ) => {
                may_exist = true;
                Ok(Err(error.to_string()))
            }
            Err(error) => Err(error),
        })?;
        self.wait_for_topic(name, "a leader everywhere", |topic| {
            usize::try_from(partitions).is_ok_and(|count| topic.partitions.len() == count)
                && topic.partitions.iter().all(|p| p.leader >= 0)
        })
    }

    /// Returns when every answering broker sees all replicas of a topic in sync.
    ///
    /// # Errors
    /// That did not happen within 60 s.
    pub fn wait_in_sync(&self, topic: &str) -> Result<()> {
        self.wait_for_topic(topic, "all replicas in sync", |topic| {
            topic.partitions.iter().all(|p| p.leader >= 0 && p.isr.len() == p.replicas.len())
        })
    }

    /// Makes the next replica of every partition the preferred leader. Nobody's leader changes before
    /// [`Cluster::elect_preferred`].
    ///
    /// # Errors
    /// The cluster refuses.
    pub fn rotate_replicas(&self, topic: &str) -> Result<()> {
        let known = self.topic(topic)?.ok_or(HarnessError::Malformed("the topic does not exist"))?;
        let rotated = known.partitions.into_iter().map(|p| {
            let mut replicas = p.replicas;
            replicas.rotate_left(1);
            (p.partition, replicas)
        });
        let rotated: Vec<_> = rotated.collect();
        self.controller()?.reassign(topic, &rotated, CALL_LIMIT)
    }

    /// Spreads a topic's partitions over these brokers, as many replicas as before, and waits until all are in sync.
    ///
    /// # Errors
    /// The cluster refuses, or they do not come into sync within 60 s.
    pub fn spread(&self, topic: &str, brokers: &[i32]) -> Result<()> {
        let known = self.topic(topic)?.ok_or(HarnessError::Malformed("the topic does not exist"))?;
        let spread = known.partitions.into_iter().enumerate().map(|(index, p)| {
            let from = brokers.iter().cycle().skip(index % brokers.len().max(1));
            (p.partition, from.take(p.replicas.len()).copied().collect())
        });
        let spread: Vec<(i32, Vec<i32>)> = spread.collect();
        self.controller()?.reassign(topic, &spread, CALL_LIMIT)?;
        self.wait_for_topic(topic, "its new replicas", |topic| {
            topic.partitions.iter().zip(&spread).all(|(p, (_, wanted))| {
                let mut now = p.replicas.clone();
                let mut wanted = wanted.clone();
                now.sort_unstable();
                wanted.sort_unstable();
                p.leader >= 0 && now == wanted && p.isr.len() == wanted.len()
            })
        })
    }

    /// An election that gives every partition to its preferred leader.
    ///
    /// # Errors
    /// The cluster refuses.
    pub fn elect_preferred(&self, topic: &str) -> Result<()> {
        let known = self.topic(topic)?.ok_or(HarnessError::Malformed("the topic does not exist"))?;
        let partitions: Vec<i32> = known.partitions.iter().map(|p| p.partition).collect();
        self.controller()?.elect_preferred(topic, &partitions, CALL_LIMIT)
    }

    /// A connection to a broker that passes on what only the controller does.
    fn controller(&self) -> Result<Connection> {
        let controller = self.metadata(Some(&[]))?.controller_id;
        let any = self.answering().first().map(|(_, address)| *address);
        let address = self.broker_address(controller).ok().or(any);
        Connection::open(address.ok_or(HarnessError::Broker(controller, "is not running"))?, CALL_LIMIT)
    }

    fn create_once(&self, topic: &NewTopic<'_>) -> Result<()> {
        let controller = self.metadata(Some(&[]))?.controller_id;
        let address = self.broker_address(controller).or_else(|_| {
            // None at the moment: any broker says so with a code that is tried again.
            let any = self.answering().first().map(|(_, address)| *address);
            any.ok_or(HarnessError::Broker(controller, "is not of this cluster"))
        })?;
        Connection::open(address, CALL_LIMIT)?.create_topic(topic, CALL_LIMIT / 2)
    }

    fn wait_for_topic(&self, name: &str, what: &str, done: impl Fn(&TopicInfo) -> bool) -> Result<()> {
        poll(&format!("{what} for topic {name}"), CREATE_LIMIT, || {
            for (id, address) in self.answering() {
                let seen = match ask(address, Some(&[name])) {
                    Ok(metadata) => metadata.topics.into_iter().next(),
                    Err(error) => return Ok(Err(format!("broker {id}: {error}"))),
                };
                if !seen.as_ref().is_some_and(|topic| topic.error_code == 0 && done(topic)) {
                    return Ok(Err(format!("broker {id} knows {seen:?}")));
                }
            }
            Ok(Ok(()))
        })
    }
}

fn ask(address: SocketAddr, topics: Option<&[&str]>) -> Result<Metadata> {
    Connection::open(address, CALL_LIMIT)?.metadata(topics)
}
