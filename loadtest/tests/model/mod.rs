//! A model of writers, two clusters' logs, and two groups of readers; makes clean histories from a seed.

use crossover_loadtest::ground_truth::{GroundTruth, LogRecord};
use crossover_loadtest::history::{Acks, End, Entry, Event, Part, Start};

pub(crate) const TOPIC: &str = "orders";
const PARTITIONS: u32 = 3;
const ROUNDS: usize = 120;

/// Small xorshift generator: the same seed gives the same run everywhere.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// Below `limit`, which is not 0.
    pub(crate) fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 33).expect("31 bits") % limit
    }
}

/// The histories of one run. Group 0 has the consumers 0 and 1, group 1 has 2 and 3.
pub(crate) struct Run {
    pub(crate) producers: Vec<Vec<Entry>>,
    pub(crate) consumers: Vec<Vec<Entry>>,
    pub(crate) truth: Option<GroundTruth>,
}

/// Identity of a record in all histories: partition, writer, seq.
pub(crate) type Id = (u32, u32, u64);

pub(crate) fn part(number: u32) -> Part {
    Part { topic: 0, number }
}

pub(crate) fn render(history: &[Entry]) -> String {
    let topics = [TOPIC.to_owned()];
    let mut text = String::new();
    for entry in history {
        entry.write(&topics, &mut text).expect("writes to a string");
        text.push('\n');
    }
    text
}

pub(crate) fn polls(history: &[Entry]) -> impl Iterator<Item = (usize, Id)> {
    history.iter().enumerate().filter_map(|(at, entry)| match entry.event {
        Event::Poll { part, writer, seq, .. } => Some((at, (part.number, writer, seq))),
        _ => None,
    })
}

/// Two deliveries of one partition in the same assignment, nothing of that partition between them.
pub(crate) fn neighbours(entries: &[Entry], random: &mut Random) -> Option<(usize, usize)> {
    let found: Vec<usize> = polls(entries).map(|(at, _)| at).collect();
    let first = *found.get(random.below(found.len().max(1)))?;
    let Event::Poll { part: wanted, .. } = entries[first].event else { return None };
    for (at, entry) in entries.iter().enumerate().skip(first + 1) {
        match &entry.event {
            Event::Assign(_) | Event::Revoke(_) => return None,
            Event::Poll { part, .. } if *part == wanted => return Some((first, at)),
            _ => {}
        }
    }
    None
}

impl Run {
    pub(crate) fn new(random: &mut Random) -> Self {
        let mut world = World::new(random);
        for round in 0..ROUNDS {
            world.now += 1 + i64::try_from(random.below(20_000)).expect("small");
            world.write(random);
            if round == ROUNDS / 2 {
                world.owner = "target";
                world.rebalance();
            }
            world.read(random);
        }
        world.finish()
    }

    pub(crate) fn records(&mut self) -> &mut Vec<LogRecord> {
        &mut self.truth.as_mut().expect("clean runs have a dump").records
    }

    pub(crate) fn random_ack(&self, random: &mut Random) -> Id {
        let history = &self.producers[random.below(self.producers.len())];
        let writer = start(history).writer.expect("a producer");
        loop {
            if let Event::Ok { part, seq, .. } = history[random.below(history.len())].event {
                return (part.number, writer, seq);
            }
        }
    }

    pub(crate) fn remove_deliveries(&mut self, id: Id) {
        self.remove_deliveries_of_group(0, id);
        self.remove_deliveries_of_group(1, id);
    }

    pub(crate) fn remove_deliveries_of_group(&mut self, group: usize, id: Id) {
        for history in &mut self.consumers[2 * group..2 * group + 2] {
            let found: Vec<usize> =
                polls(history).filter(|(_, other)| *other == id).map(|(at, _)| at).collect();
            found.iter().rev().for_each(|at| drop(history.remove(*at)));
            recount(history);
        }
    }

    /// Changes one delivery; what the closure pushes is inserted behind it.
    pub(crate) fn edit_poll(
        &mut self,
        random: &mut Random,
        edit: impl Fn(&mut Entry, &mut Vec<Entry>),
    ) -> bool {
        let which = random.below(self.consumers.len());
        let history = &mut self.consumers[which];
        let found: Vec<usize> = polls(history).map(|(at, _)| at).collect();
        let Some(at) = found.get(random.below(found.len().max(1))) else { return false };
        let mut behind = Vec::new();
        edit(&mut history[*at], &mut behind);
        history.splice(at + 1..at + 1, behind);
        recount(history);
        true
    }

    pub(crate) fn edit_ack(
        &mut self,
        history: usize,
        random: &mut Random,
        edit: impl Fn(&mut Entry) -> bool,
    ) -> bool {
        let history = &mut self.producers[history];
        let at = 1 + random.below(history.len() - 2);
        edit(&mut history[at])
    }

    /// Removes a delivery that has neighbours on both sides in its assignment.
    pub(crate) fn remove_inner_poll(&mut self, random: &mut Random) -> bool {
        let which = random.below(self.consumers.len());
        let history = &mut self.consumers[which];
        let Some((first, middle)) = neighbours(history, random) else { return false };
        let Event::Poll { part: wanted, .. } = history[first].event else { return false };
        let rest = history[middle + 1..].iter();
        let mut inside = rest.take_while(|entry| !matches!(entry.event, Event::Assign(_) | Event::Revoke(_)));
        if !inside.any(|entry| matches!(entry.event, Event::Poll { part, .. } if part == wanted)) {
            return false;
        }
        history.remove(middle);
        recount(history);
        true
    }

    /// All readers and acknowledgements agree on the wrong order of two values.
    pub(crate) fn swap_deliveries(&mut self, random: &mut Random) -> bool {
        let (partition, writer, seq) = self.random_ack(random);
        let exists =
            |id: Id| self.consumers.iter().any(|history| polls(history).any(|(_, other)| other == id));
        if !exists((partition, writer, seq + 1)) {
            return false;
        }
        let swapped = |other: u64| if other == seq { seq + 1 } else { seq };
        for entry in self.consumers.iter_mut().flatten() {
            if let Event::Poll { part, writer: by, seq: at, .. } = &mut entry.event
                && (part.number, *by) == (partition, writer)
                && (*at == seq || *at == seq + 1)
            {
                *at = swapped(*at);
            }
        }
        true
    }

    /// The second member of a group gets a record again after the first has committed it.
    pub(crate) fn redeliver_after_commit(&mut self, random: &mut Random) -> bool {
        let group = random.below(2);
        let (first, second) = (2 * group, 2 * group + 1);
        let committed = self.consumers[first].iter().find_map(|entry| match &entry.event {
            Event::Committed(offsets) => offsets.iter().find(|(_, next)| *next > 0).map(|(part, _)| *part),
            _ => None,
        });
        let Some(wanted) = committed else { return false };
        let again = self.consumers[first]
            .iter()
            .find(|entry| matches!(entry.event, Event::Poll { part, .. } if part == wanted));
        let Some(mut again) = again.cloned() else { return false };
        let history = &mut self.consumers[second];
        let at = history.len() - 1;
        again.at_us = history[at].at_us;
        history.insert(at, again);
        recount(history);
        true
    }

    pub(crate) fn insert_for_a_reader(&mut self, random: &mut Random, event: Event) -> bool {
        let which = random.below(self.consumers.len());
        let history = &mut self.consumers[which];
        let at = 1 + random.below(history.len() - 1);
        let at_us = history[at].at_us;
        history.insert(at, Entry { at_us, event });
        true
    }
}

fn start(history: &[Entry]) -> &Start {
    match &history[0].event {
        Event::Start(start) => start,
        other => panic!("{other:?} instead of a start"),
    }
}

/// A mutation must be caught by its rule, not by the count in the last line.
fn recount(history: &mut [Entry]) {
    let polled = polls(history).count() as u64;
    if let Some(Event::End(end)) = history.last_mut().map(|entry| &mut entry.event) {
        end.polled = Some(polled);
    }
}

struct World {
    now: i64,
    owner: &'static str,
    producers: Vec<Vec<Entry>>,
    consumers: Vec<Vec<Entry>>,
    /// Per partition: the client's view of the log.
    log: Vec<Vec<(u32, u64)>>,
    truth: Vec<LogRecord>,
    next_seq: Vec<Vec<u64>>,
    /// Per group and partition: next offset, and which of the group's two members owns it.
    position: Vec<Vec<usize>>,
    swapped: bool,
}

impl World {
    fn new(random: &mut Random) -> Self {
        let now = 1_700_000_000_000_000;
        let writers = 2 + random.below(2);
        let partitions = PARTITIONS as usize;
        let begin = |start: Start| vec![Entry { at_us: now, event: Event::Start(Box::new(start)) }];
        let base = |role: &str| Start {
            role: role.to_owned(),
            library: "model".to_owned(),
            version: "1".to_owned(),
            topics: vec![TOPIC.to_owned()],
            ..Start::default()
        };
        let producer = |writer: usize| {
            let writer = Some(u32::try_from(writer).expect("small"));
            begin(Start { writer, acks: Some(Acks::All), ..base("producer") })
        };
        let consumer = |number: usize| {
            let (group, reset) = (format!("group-{}", number / 2), "earliest".to_owned());
            begin(Start { group, member: number.to_string(), reset, ..base("consumer") })
        };
        let mut world = Self {
            now,
            owner: "source",
            producers: (0..writers).map(producer).collect(),
            consumers: (0..4).map(consumer).collect(),
            log: vec![Vec::new(); partitions],
            truth: Vec::new(),
            next_seq: vec![vec![0; partitions]; writers],
            position: vec![vec![0; partitions]; 2],
            swapped: false,
        };
        world.assign();
        world
    }

    fn owned(&self, member: usize) -> Vec<Part> {
        let own = |number: &u32| usize::from(number.is_multiple_of(2) == self.swapped) == member % 2;
        (0..PARTITIONS).filter(own).map(part).collect()
    }

    fn assign(&mut self) {
        for member in 0..4 {
            let event = Event::Assign(self.owned(member));
            self.consumers[member].push(Entry { at_us: self.now, event });
        }
    }

    fn rebalance(&mut self) {
        for member in 0..4 {
            self.commit(member);
            let event = Event::Revoke(self.owned(member));
            self.consumers[member].push(Entry { at_us: self.now, event });
        }
        self.swapped = true;
        self.now += 1000;
        self.assign();
    }

    /// A few records of random writers; acknowledgements of one batch come together and later than the sends.
    fn write(&mut self, random: &mut Random) {
        let writer = random.below(self.producers.len());
        let number = random.below(self.log.len());
        let sent_us = self.now;
        self.now += 1 + i64::try_from(random.below(30_000)).expect("small");
        for _ in 0..=random.below(4) {
            let seq = self.next_seq[writer][number];
            self.next_seq[writer][number] += 1;
            let (partition, writer_id) =
                (u32::try_from(number).expect("small"), u32::try_from(writer).expect("small"));
            let offset = i64::try_from(self.log[number].len()).expect("small");
            self.log[number].push((writer_id, seq));
            let event = Event::Ok { part: part(partition), seq, offset, sent_us };
            self.producers[writer].push(Entry { at_us: self.now, event });
            let (cluster, topic) = (self.owner.to_owned(), TOPIC.to_owned());
            self.truth.push(LogRecord { cluster, topic, partition, offset, writer: writer_id, seq });
        }
    }

    fn read(&mut self, random: &mut Random) {
        let member = random.below(4);
        self.deliver(member, 1 + random.below(6));
        if random.below(3) == 0 {
            self.commit(member);
        }
    }

    fn deliver(&mut self, member: usize, limit: usize) {
        self.now += 500;
        for part in self.owned(member) {
            let number = part.number as usize;
            for _ in 0..limit {
                let at = self.position[member / 2][number];
                let Some(&(writer, seq)) = self.log[number].get(at) else { break };
                self.position[member / 2][number] += 1;
                let offset = i64::try_from(at).expect("small");
                let event = Event::Poll { part, offset, writer, seq, sent_us: None };
                self.consumers[member].push(Entry { at_us: self.now, event });
            }
        }
    }

    fn commit(&mut self, member: usize) {
        self.now += 100;
        let next =
            |part: Part| i64::try_from(self.position[member / 2][part.number as usize]).expect("small");
        let offsets = self.owned(member).into_iter().map(|part| (part, next(part))).collect();
        self.consumers[member].push(Entry { at_us: self.now, event: Event::Committed(offsets) });
    }

    fn finish(mut self) -> Run {
        for member in 0..4 {
            self.deliver(member, usize::MAX);
            self.commit(member);
        }
        let at_us = self.now + 1000;
        for history in &mut self.producers {
            let sent = Some(history.len() as u64 - 1);
            let end = End { sent, ok: sent, failed: Some(0), polled: None };
            history.push(Entry { at_us, event: Event::End(end) });
        }
        for history in &mut self.consumers {
            history.push(Entry { at_us, event: Event::End(End::default()) });
            recount(history);
        }
        Run {
            producers: self.producers,
            consumers: self.consumers,
            truth: Some(GroundTruth { records: self.truth }),
        }
    }
}
