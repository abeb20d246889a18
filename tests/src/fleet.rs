//! Clients of several libraries on several topics, whose members come and go, and the verdict on each topic.

use crate::history::{Line, lines};
use crate::{check, end, wait_count, wait_for};
use anyhow::{Context, Result, ensure};
use crossover_harness::rig::{Driver, Rig};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

/// JVM start, a first rebalance and a first fetch, several at a time on a small machine.
const START_MAX: Duration = Duration::from_secs(120);
/// For every client to get on again.
const FLOWS_MAX: Duration = Duration::from_secs(60);
/// Acknowledged on each partition, of every producer, before anything is done.
const WARM: usize = 3;
/// Records per second of one producer.
const RATE: &str = "24";

/// A library: its driver, and the options that make its producer an idempotent one.
#[derive(Clone, Copy, Debug)]
pub struct Library {
    pub driver: &'static str,
    pub producer: &'static [&'static str],
}

pub const JAVA: Library = Library { driver: "java-4.3.1", producer: &[] };
pub const LIBRDKAFKA: Library = Library { driver: "librdkafka", producer: &["--idempotent", "true"] };
pub const FRANZ: Library = Library { driver: "franz", producer: &[] };
pub const LIBRARIES: [Library; 3] = [JAVA, LIBRDKAFKA, FRANZ];

/// The clients of all topics.
#[derive(Default)]
pub struct Fleet {
    topics: BTreeMap<String, Clients>,
    started: u32,
}

#[derive(Default)]
struct Clients {
    partitions: usize,
    producers: Vec<Driver>,
    /// By the library's driver.
    groups: BTreeMap<&'static str, Group>,
}

#[derive(Default)]
struct Group {
    members: Vec<Driver>,
    past: Vec<PathBuf>,
}

impl Fleet {
    /// A producer and a group of every library on each topic; returns when each producer has records acknowledged on
    /// every partition, and each group reads.
    ///
    /// # Errors
    /// One of them does not work.
    pub fn start(rig: &Rig, topics: &[&str], partitions: usize) -> Result<Fleet> {
        let mut fleet = Fleet::default();
        for topic in topics {
            for library in LIBRARIES {
                fleet.produce(rig, topic, partitions, library)?;
                fleet.join(rig, topic, library)?;
            }
        }
        fleet.flows_within(START_MAX)?;
        Ok(fleet)
    }

    /// Starts one more producer, on this many partitions of a topic.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn produce(&mut self, rig: &Rig, topic: &str, partitions: usize, library: Library) -> Result<()> {
        self.started += 1;
        let (number, count) = (self.started.to_string(), partitions.to_string());
        let mut args = vec!["--topic", topic, "--partitions", &count, "--rate", RATE, "--writer", &number];
        args.extend(library.producer);
        let name = format!("{topic}-{}-producer-{number}", library.driver);
        let driver = rig.driver(library.driver, "producer", &name, &args)?;
        let clients = self.topics.entry(topic.to_owned()).or_default();
        clients.partitions = clients.partitions.max(partitions);
        clients.producers.push(driver);
        Ok(())
    }

    /// One more member of the library's group of a topic.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn join(&mut self, rig: &Rig, topic: &str, library: Library) -> Result<()> {
        self.started += 1;
        let group = group_name(topic, library);
        let args = ["--topic", topic, "--group", &group, "--reset", "earliest"];
        let name = format!("{group}-member-{}", self.started);
        let driver = rig.driver(library.driver, "consumer", &name, &args)?;
        let clients = self.topics.entry(topic.to_owned()).or_default();
        clients.groups.entry(library.driver).or_default().members.push(driver);
        Ok(())
    }

    /// Ends the longest member of a group, in an orderly way.
    ///
    /// # Errors
    /// There is none, or it does not end well.
    pub fn leave(&mut self, topic: &str, library: Library) -> Result<()> {
        let group = self.topics.get_mut(topic).and_then(|clients| clients.groups.get_mut(library.driver));
        let group = group.context("no such group")?;
        ensure!(!group.members.is_empty(), "the group has no member");
        let member = group.members.remove(0);
        group.past.push(end(member)?);
        Ok(())
    }

    /// The newest member of a group has told that it runs.
    ///
    /// # Errors
    /// It does not.
    pub fn has_started(&mut self, topic: &str, library: Library) -> Result<()> {
        let group = self.topics.get_mut(topic).and_then(|clients| clients.groups.get_mut(library.driver));
        let newest = group.and_then(|group| group.members.last_mut()).context("no such member")?;
        wait_count(newest, "E.start", 1, START_MAX)
    }

    /// The members of a group stand still: SIGSTOP.
    ///
    /// # Errors
    /// There are none.
    pub fn pause_members(&self, topic: &str, library: Library) -> Result<()> {
        self.signal_members(topic, library, "STOP")
    }

    /// They go on.
    ///
    /// # Errors
    /// There are none.
    pub fn resume_members(&self, topic: &str, library: Library) -> Result<()> {
        self.signal_members(topic, library, "CONT")
    }

    fn signal_members(&self, topic: &str, library: Library, name: &str) -> Result<()> {
        let group = self.topics.get(topic).and_then(|clients| clients.groups.get(library.driver));
        for member in &group.context("no such group")?.members {
            crate::operator::signal(member.pid(), name)?;
        }
        Ok(())
    }

    /// Every producer gets records acknowledged on every partition, and every group reads on: nothing is held, and nobody
    /// is stranded.
    ///
    /// # Errors
    /// Somebody stands still, or has ended.
    pub fn flows(&mut self) -> Result<()> {
        self.flows_within(FLOWS_MAX)
    }

    fn flows_within(&mut self, limit: Duration) -> Result<()> {
        let mut wanted = Vec::new();
        for clients in self.topics.values_mut() {
            let more = clients.partitions * WARM;
            for producer in &mut clients.producers {
                wanted.push((producer.count("P.ok") + more, producer));
            }
        }
        for (count, producer) in wanted {
            wait_count(producer, "P.ok", count, limit)?;
        }
        for (topic, clients) in &mut self.topics {
            for group in clients.groups.values_mut() {
                let read = |group: &mut Group| {
                    group.members.iter_mut().map(|member| member.count("C.poll")).sum::<usize>()
                };
                let before = read(group);
                let what = format!("a group of {topic} to read on");
                wait_for(limit, &what, || Ok(read(group) > before + WARM))?;
                for member in &mut group.members {
                    ensure!(member.is_alive(), "{} has ended", member.name);
                }
            }
        }
        Ok(())
    }

    /// Ends the producers, lets every group read all that was acknowledged, ends the groups, and judges each topic.
    ///
    /// # Errors
    /// A client does not end well, a group does not read everything, or a verdict is not "pass".
    pub fn judge(self, rig: &Rig) -> Result<()> {
        self.judge_allowing(rig, &[])
    }

    /// As [`Fleet::judge`], with allowances for the checker.
    ///
    /// # Errors
    /// As there.
    pub fn judge_allowing(self, rig: &Rig, allowed: &[&str]) -> Result<()> {
        for (topic, clients) in self.topics {
            let producers = clients.producers.into_iter().map(end).collect::<Result<Vec<_>>>()?;
            let written = values(&producers, "P.ok", 0)?;
            ensure!(!written.is_empty(), "nothing was written to {topic}");
            let mut consumers = Vec::new();
            for group in clients.groups.into_values() {
                let members = group.members.iter().map(|member| member.history.clone());
                let all: Vec<PathBuf> = group.past.iter().cloned().chain(members).collect();
                wait_for(FLOWS_MAX, &format!("a group of {topic} to read everything: {all:?}"), || {
                    Ok(written.is_subset(&values(&all, "C.poll", 2)?))
                })?;
                group.members.into_iter().try_for_each(|member| end(member).map(drop))?;
                consumers.extend(all);
            }
            println!("{topic}: {}", check(rig, &topic, &producers, &consumers, allowed)?.trim());
        }
        Ok(())
    }
}

fn group_name(topic: &str, library: Library) -> String {
    format!("{topic}-{}", library.driver)
}

/// What tells one value from another: its writer, partition, and number there.
type Value = (String, i64, i64);

/// The values of these events; a producer's history names its writer once, a consumer's in each line.
fn values(histories: &[PathBuf], event: &str, writer_field: usize) -> Result<BTreeSet<Value>> {
    let mut all = BTreeSet::new();
    for history in histories {
        let started = lines(history, &["E.start"])?;
        let own =
            started.iter().flat_map(|line| &line.fields).find_map(|field| field.strip_prefix("writer="));
        for line in lines(history, &[event])? {
            let writer =
                if writer_field == 0 { own.context("no writer")? } else { &line.fields[writer_field] };
            all.insert((writer.to_owned(), line.number(0)?, sequence(&line)?));
        }
    }
    Ok(all)
}

fn sequence(line: &Line) -> Result<i64> {
    line.number(if line.event == "P.ok" { 1 } else { 3 })
}
