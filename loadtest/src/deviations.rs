//! What became of each writer's records, in numbers: also where the rules tolerate it, so that a run can be compared with
//! a control.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde::{Deserialize, Serialize};

use crate::checks::{ClientView, Logs};
use crate::facts::{Facts, Tp, Value};

/// One writer's records, as the dumped logs and the readers show them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deviations {
    /// The writer's history.
    pub name: String,
    /// Acknowledged; with acks=0, given to the network.
    pub sent: u64,
    /// Of these, in no log.
    pub lost: u64,
    /// Copies in the logs beyond the first.
    pub twice: u64,
    /// First copies that stand behind a later record of the same writer and partition.
    pub out_of_order: u64,
}

impl Deviations {
    #[must_use]
    pub fn any(&self) -> bool {
        self.lost + self.twice + self.out_of_order > 0
    }
}

pub(crate) fn of_writers(facts: &Facts, logs: &Logs, view: &ClientView) -> Vec<Deviations> {
    let mut by_writer: BTreeMap<u32, Deviations> = BTreeMap::new();
    for writer in &facts.writers {
        let entry = by_writer.entry(writer.number).or_default();
        entry.name.clone_from(&writer.name);
        entry.sent = writer.acked;
    }
    for ack in facts.acks.iter().filter(|ack| !logs.copies.contains_key(&ack.value)) {
        by_writer.entry(ack.value.writer).or_default().lost += 1;
    }
    for (value, copies) in &logs.copies {
        by_writer.entry(value.writer).or_default().twice += u64::from(copies.saturating_sub(1));
    }
    for value in out_of_order(logs, view) {
        by_writer.entry(value.writer).or_default().out_of_order += 1;
    }
    by_writer.into_values().collect()
}

/// Seen by readers over both clusters, or in one cluster's log; what is out of order in both counts once.
fn out_of_order(logs: &Logs, view: &ClientView) -> HashSet<Value> {
    let mut found = HashSet::new();
    behind_later(view.told.iter().map(|(_, _, value)| *value), &mut found);
    for log in logs.by_log.values() {
        behind_later(log.iter().map(|(_, value)| *value), &mut found);
    }
    found
}

/// `values` in the order of their offsets, partition by partition.
fn behind_later(values: impl Iterator<Item = Value>, found: &mut HashSet<Value>) {
    let mut highest: HashMap<(Tp, u32), u64> = HashMap::new();
    let mut seen = HashSet::new();
    for value in values.filter(|value| seen.insert(*value)) {
        let highest = highest.entry((value.tp, value.writer)).or_insert(value.seq);
        if value.seq < *highest {
            found.insert(value);
        }
        *highest = value.seq.max(*highest);
    }
}
