//! Which topics clients are changing, and which must not be changed because they are being flipped (RULES R25, R26).
//!
//! What the gate of a partition is for produce, this is for a topic's shape, settings and records: a change asks before
//! it begins, a flip closes the topics it fences and waits until the changes that had begun are over.

use super::shared::lock;
use crate::ids::Revision;
use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex};

/// What may go on beside a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeKind {
    /// Of records (DeleteRecords): any number at a time.
    Records,
    /// Of the topic: one at a time.
    Topic,
}

#[derive(Debug, Default)]
struct Entry {
    closed: bool,
    /// Changes planned with an older route table would go to the wrong side.
    since: Revision,
    records: u32,
    topic: bool,
}

/// The changes under way, by virtual topic name.
#[derive(Clone, Debug, Default)]
pub struct TopicChanges {
    topics: Arc<Mutex<HashMap<Arc<str>, Entry>>>,
}

/// A change that has begun. It is over when this is dropped.
#[derive(Debug)]
pub struct Change {
    all: TopicChanges,
    topics: BTreeSet<Arc<str>>,
    kind: ChangeKind,
}

impl TopicChanges {
    /// Begins a change of all `topics`, planned with the route table of `revision`. `None`: not now. Ask again.
    #[must_use]
    pub fn begin(&self, topics: BTreeSet<Arc<str>>, kind: ChangeKind, revision: Revision) -> Option<Change> {
        let mut all = lock(&self.topics);
        let is_free = |entry: &Entry| {
            !entry.closed && revision >= entry.since && !(kind == ChangeKind::Topic && entry.topic)
        };
        if !topics.iter().all(|topic| all.get(topic).is_none_or(is_free)) {
            return None;
        }
        for topic in &topics {
            let entry = all.entry(Arc::clone(topic)).or_default();
            match kind {
                ChangeKind::Records => entry.records += 1,
                ChangeKind::Topic => entry.topic = true,
            }
        }
        Some(Change { all: self.clone(), topics, kind })
    }

    /// From now on no change of the topic begins. Those under way go on.
    pub fn close(&self, topic: &Arc<str>) {
        lock(&self.topics).entry(Arc::clone(topic)).or_default().closed = true;
    }

    /// Lets changes begin again that are planned with the route table of `since` or a later one.
    pub fn open(&self, topic: &str, since: Revision) {
        if let Some(entry) = lock(&self.topics).get_mut(topic) {
            entry.closed = false;
            entry.since = entry.since.max(since);
        }
    }

    /// Whether no change of the topic is under way.
    #[must_use]
    pub fn is_quiet(&self, topic: &str) -> bool {
        lock(&self.topics).get(topic).is_none_or(|entry| entry.records == 0 && !entry.topic)
    }

    /// Whether the topic itself is being changed, so that the clusters may differ for a while.
    #[must_use]
    pub fn is_changing(&self, topic: &str) -> bool {
        lock(&self.topics).get(topic).is_some_and(|entry| entry.topic)
    }
}

impl Drop for Change {
    fn drop(&mut self) {
        let mut all = lock(&self.all.topics);
        for topic in &self.topics {
            let Some(entry) = all.get_mut(topic) else { continue };
            match self.kind {
                ChangeKind::Records => entry.records = entry.records.saturating_sub(1),
                ChangeKind::Topic => entry.topic = false,
            }
            // Names come from clients: what says nothing is not kept.
            if entry.records == 0 && !entry.topic && !entry.closed && entry.since == Revision::default() {
                all.remove(topic);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> BTreeSet<Arc<str>> {
        names.iter().map(|name| Arc::from(*name)).collect()
    }

    #[test]
    fn r26_a_flip_waits_for_changes_that_began_and_holds_later_ones() {
        let changes = TopicChanges::default();
        let topic: Arc<str> = Arc::from("orders");
        let begun = changes.begin(names(&["orders", "other"]), ChangeKind::Records, Revision(3));
        assert!(begun.is_some());
        changes.close(&topic);
        assert!(changes.begin(names(&["orders"]), ChangeKind::Records, Revision(3)).is_none());
        assert!(!changes.is_quiet("orders"), "the flip waits");
        drop(begun);
        assert!(changes.is_quiet("orders"));
        changes.open("orders", Revision(4));
        assert!(changes.begin(names(&["orders"]), ChangeKind::Records, Revision(3)).is_none(), "old owner");
        assert!(changes.begin(names(&["orders"]), ChangeKind::Records, Revision(4)).is_some());
    }

    #[test]
    fn r26_a_topic_is_changed_by_one_at_a_time_and_nothing_is_kept_of_it() {
        let changes = TopicChanges::default();
        let first = changes.begin(names(&["a", "b"]), ChangeKind::Topic, Revision(0));
        assert!(changes.begin(names(&["b"]), ChangeKind::Topic, Revision(0)).is_none());
        let records = changes.begin(names(&["b"]), ChangeKind::Records, Revision(0));
        assert!(records.is_some() && changes.is_changing("b"));
        drop((first, records));
        assert!(lock(&changes.topics).is_empty());
    }
}
