//! The rules. Tables are sorted by what a rule compares and walked once, so 20 million records stay in bounds.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::checker::{CLOCK_SLACK_US, Check, Options};
use crate::deviations::{self, Deviations};
use crate::facts::{Ack, Facts, Findings, Poll, Tp, Value};
use crate::ground_truth::GroundTruth;
use crate::history::Acks;

/// More groups than this cannot be told apart by the bit set of C1 and C8.
const MAX_GROUPS: usize = 64;

pub(crate) fn run(
    facts: &mut Facts,
    options: &Options,
    truth: Option<&GroundTruth>,
) -> (Vec<Check>, Vec<Deviations>) {
    if facts.groups.len() > MAX_GROUPS {
        facts.doubt(format!("more than {MAX_GROUPS} groups"));
    }
    let logs = truth.map(|truth| Logs::new(facts, truth));
    let logs = logs.as_ref();
    let seen = Seen::new(facts);
    let (lost, unseen) = loss(facts, options, &seen, logs);
    let view = ClientView::new(facts);
    let deviations = logs.map(|logs| deviations::of_writers(facts, logs, &view)).unwrap_or_default();
    let checks = vec![
        lost,
        duplicates(facts, options, &seen, logs),
        order(facts, options, &view, logs),
        one_value_per_offset(facts, &view),
        acks_ascend(facts),
        skips(facts, &view),
        found("C7", "no step backwards inside one assignment", facts.polls.len(), &facts.backwards),
        unseen,
        found("C9", "commits do not go back", facts.commits.len(), &facts.commit_regressions),
        redelivery(facts, options),
        pauses(facts, options),
        found("C22", "no silent reset", facts.readers.len(), &facts.resets),
        acked_offset_is_read_offset(facts, options, &seen),
        application_errors(facts, options),
    ];
    (checks, deviations)
}

fn check(id: &'static str, title: &'static str, examined: usize, findings: Findings) -> Check {
    let Findings { count, examples } = findings;
    Check { id, title, examined: examined as u64, violations: count, examples }
}

fn found(id: &'static str, title: &'static str, examined: usize, findings: &Findings) -> Check {
    let findings = Findings { count: findings.count, examples: findings.examples.clone() };
    check(id, title, examined, findings)
}

/// Deliveries sorted by value, then offset.
struct Seen {
    polls: Vec<Poll>,
}

impl Seen {
    fn new(facts: &Facts) -> Self {
        let mut polls = facts.polls.clone();
        polls.sort_unstable_by_key(|poll| (poll.value, poll.offset));
        Self { polls }
    }

    fn of(&self, value: Value) -> &[Poll] {
        let from = self.polls.partition_point(|poll| poll.value < value);
        let rest = self.polls.get(from..).unwrap_or_default();
        let length = rest.partition_point(|poll| poll.value == value);
        rest.get(..length).unwrap_or_default()
    }
}

/// The dumped logs: how often a value is in any of them, and each log in offset order.
pub(crate) struct Logs {
    pub copies: HashMap<Value, u32>,
    pub by_log: BTreeMap<(String, Tp), Vec<(i64, Value)>>,
}

impl Logs {
    fn new(facts: &mut Facts, truth: &GroundTruth) -> Self {
        let mut copies = HashMap::new();
        let mut by_log: BTreeMap<(String, Tp), Vec<(i64, Value)>> = BTreeMap::new();
        for record in &truth.records {
            let tp = facts.tp(&record.topic, record.partition);
            let value = Value { tp, writer: record.writer, seq: record.seq };
            *copies.entry(value).or_insert(0) += 1;
            by_log.entry((record.cluster.clone(), tp)).or_default().push((record.offset, value));
        }
        by_log.values_mut().for_each(|log| log.sort_unstable());
        Self { copies, by_log }
    }
}

/// C1 and C8 share the question which groups saw an acknowledged value.
fn loss(facts: &Facts, options: &Options, seen: &Seen, logs: Option<&Logs>) -> (Check, Check) {
    let starts = group_starts(facts);
    let exempt: HashSet<u32> =
        facts.writers.iter().filter(|w| w.acks == Acks::Zero).map(|w| w.number).collect();
    let (mut lost, mut unseen, mut examined) = (Findings::default(), Findings::default(), 0);
    for ack in facts.acks.iter().filter(|ack| !exempt.contains(&ack.value.writer)) {
        examined += 1;
        let polls = seen.of(ack.value);
        let in_log = logs.map(|logs| logs.copies.contains_key(&ack.value));
        let allowed = options.allow_loss.contains(&ack.value.writer);
        if in_log == Some(false) || (in_log.is_none() && polls.is_empty() && !facts.readers.is_empty()) {
            if !allowed {
                lost.add(|| format!("{} acked at offset {}", facts.value_name(ack.value), ack.offset));
            }
            continue;
        }
        let groups = polls.iter().filter_map(|poll| facts.readers.get(poll.reader as usize));
        let groups = groups.fold(0u64, |set, reader| set | 1u64.checked_shl(reader.group).unwrap_or(0));
        for group in missing(facts, &starts, ack, groups) {
            unseen.add(|| format!("{} not seen by group {group}", facts.value_name(ack.value)));
        }
    }
    let lost = check("C1", "no acknowledged record lost", examined, lost);
    (lost, check("C8", "every group saw every acknowledged record", examined, unseen))
}

/// First offset each group was given per partition.
fn group_starts(facts: &Facts) -> HashMap<(u32, Tp), i64> {
    let mut starts = HashMap::new();
    for poll in &facts.polls {
        if let Some(reader) = facts.readers.get(poll.reader as usize) {
            let start = starts.entry((reader.group, poll.value.tp)).or_insert(poll.offset);
            *start = poll.offset.min(*start);
        }
    }
    starts
}

/// Names of the groups that should have seen the value and did not. `groups`: bit set of those that did.
fn missing<'a>(
    facts: &'a Facts,
    starts: &'a HashMap<(u32, Tp), i64>,
    ack: &'a Ack,
    groups: u64,
) -> impl Iterator<Item = &'a str> {
    let topic = facts.partitions.get(ack.value.tp as usize).map(|(topic, _)| *topic);
    facts.groups.iter().zip(0u32..).take(MAX_GROUPS).filter_map(move |(group, number)| {
        let reads_topic = topic.is_some_and(|topic| group.topics.contains(&topic));
        let saw = groups & 1u64.checked_shl(number).unwrap_or(0) != 0;
        let start = starts.get(&(number, ack.value.tp));
        let expected = group.from_earliest || start.is_some_and(|start| ack.offset > *start);
        (reads_topic && !saw && expected).then_some(group.name.as_str())
    })
}

fn duplicates(facts: &Facts, options: &Options, seen: &Seen, logs: Option<&Logs>) -> Check {
    let mut findings = Findings::default();
    let strict = |value: Value| !options.allow_duplicates.contains(&value.writer);
    for pair in seen.polls.windows(2) {
        let [first, second] = pair else { continue };
        if first.value == second.value && first.offset != second.offset && strict(first.value) {
            findings.add(|| {
                format!("{} at offsets {} and {}", facts.value_name(first.value), first.offset, second.offset)
            });
        }
    }
    for (value, copies) in logs.iter().flat_map(|logs| &logs.copies) {
        if *copies > 1 && strict(*value) {
            findings.add(|| format!("{} is {copies} times in the logs", facts.value_name(*value)));
        }
    }
    let examined = seen.polls.len() + logs.map_or(0, |logs| logs.copies.len());
    check("C2", "no duplicate", examined, findings)
}

/// Every (partition, offset) → value that any client was told, sorted, without repetitions.
pub(crate) struct ClientView {
    pub told: Vec<(Tp, i64, Value)>,
}

impl ClientView {
    fn new(facts: &Facts) -> Self {
        let acks = facts.acks.iter().filter(|ack| ack.offset >= 0);
        let acks = acks.map(|ack| (ack.value.tp, ack.offset, ack.value));
        let polls = facts.polls.iter().map(|poll| (poll.value.tp, poll.offset, poll.value));
        let mut told: Vec<_> = acks.chain(polls).collect();
        told.sort_unstable();
        told.dedup();
        Self { told }
    }

    /// A known offset strictly between the two.
    fn between(&self, tp: Tp, low: i64, high: i64) -> Option<i64> {
        let at = self.told.partition_point(|(other, offset, _)| (*other, *offset) <= (tp, low));
        let (other, offset, _) = self.told.get(at)?;
        (*other == tp && *offset < high).then_some(*offset)
    }
}

fn order(facts: &Facts, options: &Options, view: &ClientView, logs: Option<&Logs>) -> Check {
    let mut findings = Findings::default();
    let told = view.told.iter().map(|(_, offset, value)| (*offset, *value));
    let mut examined = ascending(facts, options, "client view", told, &mut findings);
    for ((cluster, _), log) in logs.iter().flat_map(|logs| &logs.by_log) {
        examined += ascending(facts, options, cluster, log.iter().copied(), &mut findings);
    }
    check("C3", "order per writer and partition", examined, findings)
}

/// `entries` in (partition, offset) order. Of writers that may duplicate, only first occurrences count.
fn ascending(
    facts: &Facts,
    options: &Options,
    place: &str,
    entries: impl Iterator<Item = (i64, Value)>,
    findings: &mut Findings,
) -> usize {
    let mut last: HashMap<(Tp, u32), (u64, i64)> = HashMap::new();
    let mut repeated: HashSet<Value> = HashSet::new();
    let mut examined = 0;
    for (offset, value) in entries {
        examined += 1;
        if options.allow_duplicates.contains(&value.writer) && !repeated.insert(value) {
            continue;
        }
        let before = last.insert((value.tp, value.writer), (value.seq, offset));
        if let Some((seq, at)) = before.filter(|(seq, _)| *seq >= value.seq) {
            findings.add(|| {
                format!("{place}: {} at offset {offset}, after seq {seq} at {at}", facts.value_name(value))
            });
        }
    }
    examined
}

fn one_value_per_offset(facts: &Facts, view: &ClientView) -> Check {
    let mut findings = Findings::default();
    for pair in view.told.windows(2) {
        let [(tp, offset, first), (other_tp, other_offset, second)] = pair else { continue };
        if (tp, offset) == (other_tp, other_offset) {
            findings.add(|| {
                format!("offset {offset}: {} and {}", facts.value_name(*first), facts.value_name(*second))
            });
        }
    }
    check("C4", "one value per offset", view.told.len(), findings)
}

/// An acknowledged offset is above every offset acknowledged before its send. Walks sends and acknowledgements
/// of a partition together in time order.
fn acks_ascend(facts: &Facts) -> Check {
    let mut by_partition: BTreeMap<Tp, Vec<&Ack>> = BTreeMap::new();
    for ack in facts.acks.iter().filter(|ack| ack.offset >= 0) {
        by_partition.entry(ack.value.tp).or_default().push(ack);
    }
    let mut findings = Findings::default();
    for acks in by_partition.values() {
        let mut finished = acks.clone();
        finished.sort_unstable_by_key(|ack| ack.at_us);
        let mut started = acks.clone();
        started.sort_unstable_by_key(|ack| ack.sent_us);
        let mut finished = finished.into_iter().peekable();
        let mut highest = -1;
        for ack in started {
            while let Some(earlier) = finished.next_if(|other| other.at_us + CLOCK_SLACK_US < ack.sent_us) {
                highest = highest.max(earlier.offset);
            }
            if ack.offset <= highest {
                let name = facts.value_name(ack.value);
                findings.add(|| format!("{name} acked at {}, {highest} was acked before", ack.offset));
            }
        }
    }
    check("C5", "acknowledged offsets ascend in time", facts.acks.len(), findings)
}

fn skips(facts: &Facts, view: &ClientView) -> Check {
    let mut findings = Findings::default();
    for poll in facts.polls.iter().filter(|poll| poll.previous >= 0 && poll.offset > poll.previous + 1) {
        let tp = poll.value.tp;
        if let Some(at) = view.between(tp, poll.previous, poll.offset) {
            let reader = facts.readers.get(poll.reader as usize).map_or("?", |reader| &reader.name);
            let (name, from, to) = (facts.tp_name(tp), poll.previous, poll.offset);
            findings.add(|| format!("{reader}: {name}: from {from} to {to}, but {at} holds a record"));
        }
    }
    check("C6", "no known record skipped inside one assignment", facts.polls.len(), findings)
}

/// Walks commits and deliveries of all groups together in time order.
fn redelivery(facts: &Facts, options: &Options) -> Check {
    let mut commits = facts.commits.clone();
    commits.sort_by_key(|commit| commit.at_us);
    let mut polls: Vec<&Poll> = facts.polls.iter().collect();
    polls.sort_by_key(|poll| poll.at_us);
    let mut commits = commits.into_iter().peekable();
    let mut committed: HashMap<(u32, Tp), i64> = HashMap::new();
    let mut findings = Findings::default();
    for poll in polls {
        while let Some(commit) = commits.next_if(|commit| commit.at_us < poll.at_us) {
            committed.insert((commit.group, commit.tp), commit.offset);
        }
        let Some(reader) = facts.readers.get(poll.reader as usize) else { continue };
        if options.allow_redelivery.contains(&reader.name) {
            continue;
        }
        let Some(next) = committed.get(&(reader.group, poll.value.tp)).filter(|next| poll.offset < **next)
        else {
            continue;
        };
        let (name, at) = (facts.tp_name(poll.value.tp), poll.offset);
        findings.add(|| format!("{}: {name} offset {at} after the commit of {next}", reader.name));
    }
    check("C10", "nothing delivered again after its commit", facts.commits.len(), findings)
}

fn pauses(facts: &Facts, options: &Options) -> Check {
    let mut findings = Findings::default();
    for writer in &facts.writers {
        if options.max_ack_gap_us.is_some_and(|limit| writer.longest_gap_us > limit) {
            findings
                .add(|| format!("{}: {} us without an acknowledgement", writer.name, writer.longest_gap_us));
        }
        if options.max_ack_latency_us.is_some_and(|limit| writer.longest_latency_us > limit) {
            let ((from, to), waited) = (writer.slowest, writer.longest_latency_us);
            findings.add(|| format!("{}: a record waited {waited} us ({from} to {to})", writer.name));
        }
    }
    let limits = [options.max_ack_gap_us, options.max_ack_latency_us].iter().flatten().count();
    let title =
        if limits == 0 { "pauses within their limits (none given)" } else { "pauses within their limits" };
    check("C19", title, limits * facts.writers.len(), findings)
}

fn acked_offset_is_read_offset(facts: &Facts, options: &Options, seen: &Seen) -> Check {
    let mut findings = Findings::default();
    for ack in facts.acks.iter().filter(|ack| ack.offset >= 0) {
        let polls = seen.of(ack.value);
        let (Some(first), Some(last)) = (polls.first(), polls.last()) else { continue };
        let fits = if options.allow_duplicates.contains(&ack.value.writer) {
            polls.iter().any(|poll| poll.offset == ack.offset)
        } else {
            first.offset == ack.offset && last.offset == ack.offset
        };
        if !fits {
            let name = facts.value_name(ack.value);
            findings.add(|| format!("{name} acked at {}, read at {}", ack.offset, first.offset));
        }
    }
    check("A1", "records are read at the acknowledged offset", facts.acks.len(), findings)
}

fn application_errors(facts: &Facts, options: &Options) -> Check {
    let mut sum = Findings::default();
    for (event, findings) in &facts.errors {
        if !options.allow_errors.contains(*event) {
            sum.count += findings.count;
            sum.examples.extend(findings.examples.iter().map(|text| format!("{event} {text}")));
        }
    }
    check("A2", "no error shown to an application", facts.writers.len() + facts.readers.len(), sum)
}
