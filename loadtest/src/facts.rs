//! What the checks need of all histories, in compact tables.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::history::{Acks, Entry, Event, HistoryError, Part, Start};

/// Index of a (topic, partition) in [`Facts::partitions`].
pub(crate) type Tp = u32;

/// At most this many examples of anything are kept; all are counted.
pub(crate) const EXAMPLES: usize = 20;

/// Identity of a produced record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Value {
    pub tp: Tp,
    pub writer: u32,
    pub seq: u64,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Ack {
    pub value: Value,
    /// Negative if the library did not tell.
    pub offset: i64,
    pub sent_us: i64,
    pub at_us: i64,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Poll {
    pub value: Value,
    pub offset: i64,
    pub at_us: i64,
    pub reader: u32,
    /// The offset delivered before in the same assignment, or −1.
    pub previous: i64,
}

/// Offsets committed for a partition of a group: the next one to read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Commit {
    pub group: u32,
    pub tp: Tp,
    pub offset: i64,
    pub at_us: i64,
}

#[derive(Debug)]
pub(crate) struct Writer {
    pub name: String,
    pub number: u32,
    pub acks: Acks,
    pub acked: u64,
    pub failed: u64,
    pub longest_gap_us: i64,
    pub longest_latency_us: i64,
    /// When that latency began and ended.
    pub slowest: (i64, i64),
}

#[derive(Debug)]
pub(crate) struct Reader {
    pub name: String,
    pub group: u32,
    pub polled: u64,
    pub longest_gap_us: i64,
}

#[derive(Debug)]
pub(crate) struct Group {
    pub name: String,
    pub topics: BTreeSet<u32>,
    /// Every member starts at the beginning where nothing is committed.
    pub from_earliest: bool,
}

/// Something wrong that was seen while reading: all are counted, some are kept.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    pub count: u64,
    pub examples: Vec<String>,
}

impl Findings {
    pub(crate) fn add(&mut self, text: impl FnOnce() -> String) {
        self.count += 1;
        if self.examples.len() < EXAMPLES {
            self.examples.push(text());
        }
    }
}

#[derive(Debug, Default)]
pub(crate) struct Facts {
    pub topics: Vec<String>,
    pub partitions: Vec<(u32, u32)>,
    pub acks: Vec<Ack>,
    pub polls: Vec<Poll>,
    pub commits: Vec<Commit>,
    pub writers: Vec<Writer>,
    pub readers: Vec<Reader>,
    pub groups: Vec<Group>,
    pub backwards: Findings,
    /// Readers for which a step backwards is no finding.
    pub allow_redelivery: BTreeSet<String>,
    pub commit_regressions: Findings,
    pub resets: Findings,
    /// Application errors by event name.
    pub errors: BTreeMap<&'static str, Findings>,
    /// Reasons why the histories cannot be judged.
    pub doubts: Vec<String>,
    tp_index: HashMap<(u32, u32), Tp>,
}

impl Facts {
    /// Takes one history. `killed`: the process was killed on purpose, so an unfinished history is expected.
    pub(crate) fn add<I>(&mut self, name: &str, killed: bool, entries: I)
    where
        I: Iterator<Item = Result<Entry, HistoryError>>,
    {
        let mut file = FileState::new(name);
        for entry in entries {
            match entry {
                Ok(entry) => self.take(&mut file, entry),
                Err(HistoryError::Truncated { .. }) if killed => break,
                Err(error) => return self.doubt(format!("{name}: {error}")),
            }
        }
        self.finish_file(&file, killed);
    }

    /// A broken file gives one reason per line; the first ones are enough to tell "unknown".
    pub(crate) fn doubt(&mut self, reason: String) {
        if self.doubts.len() < 10 * EXAMPLES {
            self.doubts.push(reason);
        }
    }

    pub(crate) fn tp_name(&self, tp: Tp) -> String {
        let known = self.partitions.get(tp as usize);
        let Some((topic, number)) = known else { return format!("?-{tp}") };
        let topic = self.topics.get(*topic as usize).map_or("?", String::as_str);
        format!("{topic}-{number}")
    }

    pub(crate) fn value_name(&self, value: Value) -> String {
        format!("{} writer {} seq {}", self.tp_name(value.tp), value.writer, value.seq)
    }

    /// Interned number of a partition.
    pub(crate) fn tp(&mut self, topic: &str, number: u32) -> Tp {
        let topic = self.topic(topic);
        self.tp_of(topic, number)
    }

    fn tp_of(&mut self, topic: u32, number: u32) -> Tp {
        let next = index(self.partitions.len());
        let tp = *self.tp_index.entry((topic, number)).or_insert(next);
        if tp == next {
            self.partitions.push((topic, number));
        }
        tp
    }

    fn topic(&mut self, name: &str) -> u32 {
        if let Some(found) = self.topics.iter().position(|topic| topic == name) {
            return index(found);
        }
        self.topics.push(name.to_owned());
        index(self.topics.len() - 1)
    }

    fn take(&mut self, file: &mut FileState, entry: Entry) {
        let at_us = entry.at_us;
        file.entries += 1;
        match entry.event {
            Event::Start(start) => self.start(file, &start),
            Event::Ok { part, seq, offset, sent_us } => self.ok(file, part, seq, offset, sent_us, at_us),
            Event::Fail { part, seq, code, text } => {
                file.records += 1;
                if let Some(writer) = file.writer.and_then(|writer| self.writers.get_mut(writer)) {
                    writer.failed += 1;
                }
                self.error(
                    "P.fail",
                    file,
                    at_us,
                    &format!("partition {} seq {seq}: {code} {text}", part.number),
                );
            }
            Event::Poll { part, offset, writer, seq, .. } => {
                self.poll(file, part, offset, writer, seq, at_us);
            }
            Event::Other { part, offset } => {
                file.records += 1;
                let tp = self.part(file, part);
                self.step(file, tp, offset);
            }
            Event::Misplaced { part, offset, value_part } => {
                file.records += 1;
                let text = format!("offset {offset} of {} holds a record of {value_part}", part.number);
                self.error("C.misplaced", file, at_us, &text);
            }
            Event::Assign(parts) | Event::Revoke(parts) => self.forget(file, &parts),
            Event::Lost(parts) => {
                self.forget(file, &parts);
                self.error("C.lost", file, at_us, &format!("{} partitions", parts.len()));
            }
            Event::Committed(offsets) => self.committed(file, &offsets, at_us),
            Event::CommitFailed(text) => self.error("C.commit", file, at_us, &text),
            Event::ConsumerError(text) => self.error("C.error", file, at_us, &text),
            Event::Error(text) => self.error("E.error", file, at_us, &text),
            Event::Reset(text) => self.resets.add(|| format!("{}: at {at_us}: {text}", file.name)),
            Event::Note(_) => {}
            Event::End(end) => file.end = Some(end),
        }
    }

    fn start(&mut self, file: &mut FileState, start: &Start) {
        if file.entries != 1 {
            return self.doubt(format!("{}: E.start is not the first line, or twice", file.name));
        }
        file.topics = start.topics.iter().map(|topic| self.topic(topic)).collect();
        if start.role == "producer" {
            self.start_writer(file, start);
        } else {
            self.start_reader(file, start);
        }
    }

    fn start_writer(&mut self, file: &mut FileState, start: &Start) {
        let (Some(number), Some(acks)) = (start.writer, start.acks) else {
            return self.doubt(format!("{}: E.start without writer or acks", file.name));
        };
        if let Some(other) = self.writers.iter().find(|writer| writer.number == number) {
            self.doubt(format!("{}: writer {number} is also {}", file.name, other.name));
        }
        file.writer = Some(self.writers.len());
        self.writers.push(Writer {
            name: file.name.clone(),
            number,
            acks,
            acked: 0,
            failed: 0,
            longest_gap_us: 0,
            longest_latency_us: 0,
            slowest: (0, 0),
        });
    }

    fn start_reader(&mut self, file: &mut FileState, start: &Start) {
        let group = self.groups.iter().position(|group| group.name == start.group).unwrap_or_else(|| {
            let (name, topics) = (start.group.clone(), BTreeSet::new());
            self.groups.push(Group { name, topics, from_earliest: true });
            self.groups.len() - 1
        });
        if let Some(entry) = self.groups.get_mut(group) {
            entry.topics.extend(&file.topics);
            entry.from_earliest &= start.reset == "earliest";
        }
        file.reader = Some(self.readers.len());
        let name = file.name.clone();
        self.readers.push(Reader { name, group: index(group), polled: 0, longest_gap_us: 0 });
    }

    fn ok(&mut self, file: &mut FileState, part: Part, seq: u64, offset: i64, sent_us: i64, at_us: i64) {
        file.records += 1;
        let tp = self.part(file, part);
        let gap = file.gap(at_us);
        let Some(writer) = file.writer.and_then(|writer| self.writers.get_mut(writer)) else {
            return self.doubt(format!("{}: P.ok without a writer", file.name));
        };
        writer.acked += 1;
        writer.longest_gap_us = writer.longest_gap_us.max(gap);
        if at_us - sent_us > writer.longest_latency_us {
            writer.longest_latency_us = at_us - sent_us;
            writer.slowest = (sent_us, at_us);
        }
        let value = Value { tp, writer: writer.number, seq };
        self.acks.push(Ack { value, offset, sent_us, at_us });
    }

    fn poll(&mut self, file: &mut FileState, part: Part, offset: i64, writer: u32, seq: u64, at_us: i64) {
        file.records += 1;
        let tp = self.part(file, part);
        let gap = file.gap(at_us);
        let Some((number, reader)) =
            file.reader.and_then(|reader| Some((reader, self.readers.get_mut(reader)?)))
        else {
            return self.doubt(format!("{}: C.poll without a reader", file.name));
        };
        reader.polled += 1;
        reader.longest_gap_us = reader.longest_gap_us.max(gap);
        let previous = self.step(file, tp, offset);
        let value = Value { tp, writer, seq };
        self.polls.push(Poll { value, offset, at_us, reader: index(number), previous });
    }

    /// Rule C7; returns the offset delivered before.
    fn step(&mut self, file: &mut FileState, tp: Tp, offset: i64) -> i64 {
        let previous = file.positions.insert(tp, offset).unwrap_or(-1);
        if offset <= previous && !self.allow_redelivery.contains(&file.name) {
            let name = self.tp_name(tp);
            self.backwards.add(|| format!("{}: {name}: {offset} after {previous}", file.name));
        }
        previous
    }

    fn forget(&mut self, file: &mut FileState, parts: &[Part]) {
        for part in parts {
            let tp = self.part(file, *part);
            file.positions.remove(&tp);
            file.commits.remove(&tp);
        }
    }

    /// Rule C9 inside one assignment; across members the order of two log lines proves nothing.
    fn committed(&mut self, file: &mut FileState, offsets: &[(Part, i64)], at_us: i64) {
        let Some(group) = file.reader.and_then(|reader| self.readers.get(reader)).map(|reader| reader.group)
        else {
            return self.doubt(format!("{}: C.commit without a reader", file.name));
        };
        for &(part, offset) in offsets {
            let tp = self.part(file, part);
            let before = file.commits.insert(tp, offset).unwrap_or(-1);
            if offset < before {
                let name = self.tp_name(tp);
                self.commit_regressions.add(|| format!("{}: {name}: {offset} after {before}", file.name));
            }
            self.commits.push(Commit { group, tp, offset, at_us });
        }
    }

    fn part(&mut self, file: &FileState, part: Part) -> Tp {
        let topic = file.topics.get(usize::from(part.topic)).copied().unwrap_or(u32::MAX);
        self.tp_of(topic, part.number)
    }

    fn error(&mut self, event: &'static str, file: &FileState, at_us: i64, text: &str) {
        self.errors.entry(event).or_default().add(|| format!("{}: at {at_us}: {text}", file.name));
    }

    fn finish_file(&mut self, file: &FileState, killed: bool) {
        let name = &file.name;
        if file.entries == 0 {
            return self.doubt(format!("{name}: empty"));
        }
        if file.writer.is_none() && file.reader.is_none() {
            self.doubt(format!("{name}: no usable E.start"));
        }
        let Some(end) = file.end else {
            if !killed {
                self.doubt(format!("{name}: no E.end, the driver died"));
            }
            return;
        };
        let counted = if file.writer.is_some() { end.sent } else { end.polled };
        if counted.is_some_and(|counted| counted != file.records) {
            self.doubts
                .push(format!("{name}: E.end counts {counted:?} records, the file has {}", file.records));
        }
        // A reader may rightly have been given no partition; what nobody read is C1's and C8's business.
        if file.records == 0 && file.writer.is_some() {
            self.doubt(format!("{name}: no record"));
        }
    }
}

/// State while one file is read.
struct FileState {
    name: String,
    topics: Vec<u32>,
    entries: u64,
    records: u64,
    writer: Option<usize>,
    reader: Option<usize>,
    last_us: Option<i64>,
    positions: HashMap<Tp, i64>,
    commits: HashMap<Tp, i64>,
    end: Option<crate::history::End>,
}

impl FileState {
    fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            topics: Vec::new(),
            entries: 0,
            records: 0,
            writer: None,
            reader: None,
            last_us: None,
            positions: HashMap::new(),
            commits: HashMap::new(),
            end: None,
        }
    }

    fn gap(&mut self, at_us: i64) -> i64 {
        let gap = self.last_us.map_or(0, |last_us| at_us - last_us);
        self.last_us = Some(at_us);
        gap
    }
}

/// Table sizes stay far below 2^32: a table that large would not fit into memory.
fn index(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}
