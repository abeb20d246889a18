//! Which transactions are open, as far as requests of clients tell, and which topics take no new ones.
//!
//! What the gate of a partition is for produce, this is for transactions: a flip closes its topics to transactions that
//! begin, waits until those that had begun are over, and only then fences produce; a transaction that produces behind the
//! fence could not end (protocol.md §3.6).

use super::shared::lock;
use crate::bug::{self, Bug};
use crate::ids::{ClusterSide, Revision};
use crate::producer::transaction::Identity;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex};

/// Transactional ids that are remembered when they have no transaction open. The oldest are forgotten first.
const REMEMBERED_MAX: usize = 10_000;
/// How long the first request of a transactional id of which nothing is known waits for one that says more, milliseconds.
const STRANGER_MS: i64 = 1_000;
/// Topics that are remembered of one transactional id, and of one transaction. What is beyond is known to its cluster only.
const TOPICS_MAX: usize = 10_000;

/// What was seen of one transactional id. Times are milliseconds of the caller's clock.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TransactionSeen {
    /// Since when its transaction is open.
    pub open_ms: Option<i64>,
    /// What the open transaction writes to.
    pub topics: BTreeSet<Arc<str>>,
    /// What any transaction of it wrote to.
    pub written: BTreeSet<Arc<str>>,
    /// Groups whose offsets the open transaction commits.
    pub groups: BTreeSet<Arc<str>>,
    /// The producer that its coordinator last served, as far as seen.
    pub producer: Option<Identity>,
    pub last_ms: i64,
}

/// What a request is planned with: where its transactional id is at home, and where all it takes in is.
#[derive(Clone, Copy, Debug)]
pub struct TransactionPlan {
    pub revision: Revision,
    pub home: ClusterSide,
    pub to: ClusterSide,
    /// Whose request it is, as the client knows itself.
    pub producer: Identity,
}

/// What is known of an open transaction for those that join it on other connections: some clients add partitions on several
/// at once.
#[derive(Debug)]
struct Opening {
    /// Whose transaction it is: who has taken something in, and until then who came first.
    producer: Identity,
    /// Of the plan it began with.
    revision: Revision,
    /// Where it is open. `None`: its transactional id is being moved.
    at: Option<ClusterSide>,
    /// Requests that may yet take something in, and whose they are: one that is fenced may have come first.
    asked: HashMap<Identity, u32>,
    /// One of them has.
    taken: bool,
}

impl Opening {
    /// Nobody else has a part in it, nor may yet have.
    fn is_of(&self, producer: Identity) -> bool {
        self.producer == producer && self.asked.keys().all(|asked| *asked == producer)
    }
}

#[derive(Debug, Default)]
struct Inner {
    seen: HashMap<Arc<str>, TransactionSeen>,
    /// By transactional id; as many as are open.
    openings: HashMap<Arc<str>, Opening>,
    /// Transactional ids of which nothing is known but that they have asked, and since when.
    strangers: HashMap<Arc<str>, i64>,
    /// Transactional ids that have moved since the start.
    homes: HashMap<Arc<str>, ClusterSide>,
    /// Transactional ids whose coordinator is being asked for an identity, while somebody else holds their token.
    asking: HashMap<Arc<str>, Arc<()>>,
    closed: BTreeSet<Arc<str>>,
    /// Groups whose commits are being moved, with how many times.
    closed_groups: BTreeMap<Arc<str>, usize>,
    /// Transactional ids whose home nobody knows.
    closed_ids: BTreeSet<Arc<str>>,
    /// Transactions planned with an older route table would begin on the wrong side.
    since: Revision,
}

/// The transactions of all sessions.
#[derive(Debug, Default)]
pub struct TransactionRegistry {
    inner: Mutex<Inner>,
}

impl TransactionSeen {
    /// It writes to one of `topics`, or its transactions have done so before.
    fn may_write_to(&self, topics: &[Arc<str>]) -> bool {
        topics.iter().any(|topic| self.topics.contains(topic) || self.written.contains(topic))
    }
}

/// Whether a transaction may go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begun {
    /// It begins now.
    First,
    /// It is open already.
    Again,
    /// Not now. Ask again.
    Hold,
}

impl TransactionRegistry {
    /// A transaction of `id` takes in `topics`. Whoever is let in says with [`Self::answered`] what became of it; where its
    /// plan moves the transactional id, whoever moves it says with [`Self::moved`] that this is done.
    pub fn begin(&self, id: &str, topics: &BTreeSet<Arc<str>>, plan: TransactionPlan, now_ms: i64) -> Begun {
        let mut inner = lock(&self.inner);
        let is_open = inner.openings.contains_key(id);
        let joins_late = |o: &Opening| plan.revision < o.revision || o.at != Some(plan.home);
        let is_late = (plan.revision < inner.since && !bug::is(Bug::TxnSince))
            || inner.openings.get(id).is_some_and(|o| joins_late(o) && !bug::is(Bug::TxnJoins))
            || inner.is_elsewhere(id, plan.home);
        // What is asked of the old home meanwhile would not count at the new one: whoever gets that identity would be taken
        // for an earlier producer, and the one before it would go on.
        let would_move = !is_open && plan.home != plan.to && !bug::is(Bug::TxnMoveMeanwhile);
        let must_stay = would_move && inner.is_asking(id);
        if is_late || must_stay || inner.closed_ids.contains(id) || inner.must_wait(id, topics, is_open) {
            return Begun::Hold;
        }
        inner.make_room(id);
        inner.strangers.remove(id);
        let seen = inner.seen.entry(Arc::from(id)).or_default();
        seen.open_ms.get_or_insert(now_ms);
        seen.last_ms = now_ms;
        extend(&mut seen.topics, topics);
        let at = (plan.home == plan.to).then_some(plan.to);
        let opening = inner.openings.entry(Arc::from(id)).or_insert(Opening {
            producer: plan.producer,
            revision: plan.revision,
            at,
            asked: HashMap::new(),
            taken: false,
        });
        *opening.asked.entry(plan.producer).or_default() += 1;
        if is_open { Begun::Again } else { Begun::First }
    }

    /// Whether a request that does not say where its transaction will write comes too early: nothing is known of `id`,
    /// perhaps since a start, and another request of its client may say more.
    pub fn is_stranger(&self, id: &str, now_ms: i64) -> bool {
        let inner = &mut *lock(&self.inner);
        if inner.seen.contains_key(id) {
            return false;
        }
        if inner.strangers.len() >= REMEMBERED_MAX {
            inner.strangers.retain(|_, since| now_ms - *since < STRANGER_MS);
        }
        let since = *inner.strangers.entry(Arc::from(id)).or_insert(now_ms);
        now_ms - since < STRANGER_MS
    }

    /// The transactional id is at home at `to` from now on. Said before that is published: whoever has planned with another
    /// home plans again.
    pub fn moved(&self, id: &str, to: ClusterSide) {
        let inner = &mut *lock(&self.inner);
        inner.homes.insert(Arc::from(id), to);
        if let Some(opening) = inner.openings.get_mut(id) {
            opening.at = Some(to);
        }
    }

    /// A request of `producer` that was let in has `taken` something in, or may have, or has not. True if with it a
    /// transaction is over that nothing else is in, nor may yet be.
    pub fn answered(&self, id: &str, producer: Identity, taken: bool, now_ms: i64) -> bool {
        let inner = &mut *lock(&self.inner);
        let Some(opening) = inner.openings.get_mut(id) else { return false };
        // Else what it had asked is over, and its transactional id has a transaction of another producer by now.
        let Some(left) = opening.asked.get_mut(&producer) else { return false };
        *left -= 1;
        if *left == 0 {
            opening.asked.remove(&producer);
        }
        if taken {
            opening.taken = true;
            opening.producer = producer;
        }
        if let Some(seen) = inner.seen.get_mut(id).filter(|_| taken) {
            extend(&mut seen.written, &seen.topics);
            seen.producer = Some(producer);
            seen.last_ms = now_ms;
        }
        !opening.taken && opening.asked.is_empty() && inner.end(id)
    }

    /// Its cluster knows of no transaction of `id`. One that may yet be begun by what is under way goes on.
    pub fn end_unless_asked(&self, id: &str) {
        let mut inner = lock(&self.inner);
        if inner.openings.get(id).is_none_or(|opening| opening.asked.is_empty()) {
            inner.end(id);
        }
    }

    /// Whether a request of `id` was taken into a transaction that is not over.
    #[must_use]
    pub fn is_open(&self, id: &str) -> bool {
        lock(&self.inner).openings.get(id).is_some_and(|opening| opening.taken)
    }

    /// The coordinator of `id` at `home` is asked for an identity, and the id stays there until what this returns is dropped.
    /// `None`: not now, for the id is being moved, or has been.
    #[must_use]
    pub fn ask_identity(&self, id: &str, home: ClusterSide) -> Option<Arc<()>> {
        let inner = &mut *lock(&self.inner);
        let is_moving = inner.openings.get(id).is_some_and(|opening| opening.at != Some(home));
        if (is_moving && !bug::is(Bug::TxnInitMoving)) || inner.is_elsewhere(id, home) {
            return None;
        }
        if inner.asking.len() >= REMEMBERED_MAX {
            inner.asking.retain(|_, token| Arc::strong_count(token) > 1);
        }
        Some(Arc::clone(inner.asking.entry(Arc::from(id)).or_default()))
    }

    /// Its coordinator has given `id` to a producer; who had it before is fenced.
    pub fn given(&self, id: &str, producer: Identity) {
        if let Some(seen) = lock(&self.inner).seen.get_mut(id) {
            seen.producer = Some(producer);
        }
    }

    /// Whether another producer has `id`, as far as seen.
    #[must_use]
    pub fn is_anothers(&self, id: &str, producer: Identity) -> bool {
        let inner = lock(&self.inner);
        inner.seen.get(id).and_then(|seen| seen.producer).is_some_and(|known| known != producer)
    }

    /// Transactions of `id` would write to `topics` now, and could not with what they wrote to before.
    pub fn turns_to(&self, id: &str, topics: &BTreeSet<Arc<str>>) {
        if let Some(seen) = lock(&self.inner).seen.get_mut(id) {
            seen.written.clone_from(topics);
        }
    }

    /// The topic was deleted.
    pub(super) fn forget_topic(&self, topic: &str) {
        for seen in lock(&self.inner).seen.values_mut() {
            seen.written.remove(topic);
            seen.topics.remove(topic);
        }
    }

    /// The transaction is over, whoever began it. True if one was open.
    pub fn end(&self, id: &str) -> bool {
        lock(&self.inner).end(id)
    }

    /// The transaction of `producer` is over. What another producer of `id` has open meanwhile goes on. True if one was open.
    pub fn end_of(&self, id: &str, producer: Identity) -> bool {
        let inner = &mut *lock(&self.inner);
        let is_its = inner.openings.get(id).is_none_or(|opening| opening.is_of(producer));
        (is_its || bug::is(Bug::TxnEndsNext)) && inner.end(id)
    }

    /// From now on no transaction that writes to these topics begins. Those under way go on.
    pub fn close(&self, topics: &[Arc<str>]) {
        lock(&self.inner).closed.extend(topics.iter().cloned());
    }

    /// Lets transactions begin again that are planned with the route table of `since` or a later one.
    pub fn open(&self, topics: &[Arc<str>], since: Revision) {
        let mut inner = lock(&self.inner);
        inner.closed.retain(|topic| !topics.contains(topic));
        inner.since = inner.since.max(since);
    }

    /// The open transaction of `id` takes in the offsets of `group`. False: not now, for they are being moved.
    pub fn take_offsets(&self, id: &str, group: &str) -> bool {
        let mut inner = lock(&self.inner);
        let may = !inner.closed_groups.contains_key(group);
        let Some(seen) = inner.seen.get_mut(id) else { return may };
        if may {
            seen.groups.insert(Arc::from(group));
        }
        seen.groups.contains(group)
    }

    /// From now on no transaction takes in the offsets of `group`. Those that have them go on.
    pub fn close_group(&self, group: &Arc<str>) {
        *lock(&self.inner).closed_groups.entry(Arc::clone(group)).or_default() += 1;
    }

    /// Transactions may take the offsets of `group` in again, as far as whoever calls this is concerned.
    pub fn open_group(&self, group: &str) {
        let closed = &mut lock(&self.inner).closed_groups;
        if let Some(count) = closed.get_mut(group) {
            *count -= 1;
            closed.retain(|_, count| *count > 0);
        }
    }

    /// From now on no transaction of `id` begins.
    pub fn close_id(&self, id: &Arc<str>) {
        lock(&self.inner).closed_ids.insert(Arc::clone(id));
    }

    /// Transactional ids whose open transaction commits offsets of `group`.
    #[must_use]
    pub fn open_with_offsets(&self, group: &str) -> BTreeMap<Arc<str>, TransactionSeen> {
        self.which(|seen| seen.open_ms.is_some() && seen.groups.contains(group))
    }

    /// What transactions of `id` have written to, as far as seen.
    #[must_use]
    pub fn written_by(&self, id: &str) -> BTreeSet<Arc<str>> {
        lock(&self.inner).seen.get(id).map_or_else(BTreeSet::new, |seen| seen.written.clone())
    }

    /// Transactional ids whose transaction is open, and writes to one of `topics` or may yet: it did so before.
    #[must_use]
    pub fn open_on(&self, topics: &[Arc<str>]) -> BTreeMap<Arc<str>, TransactionSeen> {
        self.which(|seen| seen.open_ms.is_some() && seen.may_write_to(topics))
    }

    /// Transactional ids that have written to one of `topics`.
    #[must_use]
    pub fn written_to(&self, topics: &[Arc<str>]) -> BTreeMap<Arc<str>, TransactionSeen> {
        self.which(|seen| topics.iter().any(|topic| seen.written.contains(topic)))
    }

    /// All open transactions.
    #[must_use]
    pub fn all_open(&self) -> BTreeMap<Arc<str>, TransactionSeen> {
        self.which(|seen| seen.open_ms.is_some())
    }

    fn which(&self, wanted: impl Fn(&TransactionSeen) -> bool) -> BTreeMap<Arc<str>, TransactionSeen> {
        let inner = lock(&self.inner);
        let found = inner.seen.iter().filter(|(_, seen)| wanted(seen));
        found.map(|(id, seen)| (Arc::clone(id), seen.clone())).collect()
    }
}

fn extend(known: &mut BTreeSet<Arc<str>>, more: &BTreeSet<Arc<str>>) {
    let room = TOPICS_MAX.saturating_sub(known.len());
    known.extend(more.iter().take(room).cloned());
}

impl Inner {
    /// A transaction that is open and writes to a closed topic, or has written to it before, is waited for: it goes on. No
    /// other one takes in a closed topic, nor does one begin that most likely will.
    fn must_wait(&self, id: &str, topics: &BTreeSet<Arc<str>>, is_open: bool) -> bool {
        if self.closed.is_empty() || bug::is(Bug::TxnClosed) {
            return false;
        }
        let closed: Vec<Arc<str>> = self.closed.iter().cloned().collect();
        let takes_in = topics.iter().any(|topic| self.closed.contains(topic));
        let is_of_them = self.seen.get(id).is_some_and(|seen| seen.may_write_to(&closed));
        if is_open { takes_in && !is_of_them } else { takes_in || is_of_them }
    }

    /// It has moved away from `home`, which a route table from before does not know.
    fn is_elsewhere(&self, id: &str, home: ClusterSide) -> bool {
        self.homes.get(id).is_some_and(|known| *known != home) && !bug::is(Bug::TxnHomeStale)
    }

    fn is_asking(&self, id: &str) -> bool {
        self.asking.get(id).is_some_and(|token| Arc::strong_count(token) > 1)
    }

    fn end(&mut self, id: &str) -> bool {
        self.openings.remove(id);
        let Some(seen) = self.seen.get_mut(id) else { return false };
        seen.topics.clear();
        seen.groups.clear();
        seen.open_ms.take().is_some()
    }

    fn make_room(&mut self, id: &str) {
        if self.seen.len() < REMEMBERED_MAX || self.seen.contains_key(id) {
            return;
        }
        let idle = self.seen.iter().filter(|(_, seen)| seen.open_ms.is_none());
        if let Some(oldest) = idle.min_by_key(|(_, seen)| seen.last_ms).map(|(id, _)| Arc::clone(id)) {
            self.seen.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::ClusterSide::{Source, Target};

    fn topics(names: &[&str]) -> BTreeSet<Arc<str>> {
        names.iter().map(|name| Arc::from(*name)).collect()
    }

    fn begin(all: &TransactionRegistry, id: &str, names: &[&str], revision: u64) -> Begun {
        all.begin(id, &topics(names), at_source(revision), 5)
    }

    const PRODUCER: Identity = Identity { pid: 7, epoch: 0 };

    fn at_source(revision: u64) -> TransactionPlan {
        TransactionPlan { revision: Revision(revision), home: Source, to: Source, producer: PRODUCER }
    }

    fn answered(all: &TransactionRegistry, id: &str, taken: bool) -> bool {
        all.answered(id, PRODUCER, taken, 5)
    }

    #[test]
    fn trap_7_those_that_join_wait_until_the_transactional_id_has_moved() {
        let all = TransactionRegistry::default();
        let (before, after) = (at_source(3), TransactionPlan { home: Target, to: Target, ..at_source(3) });
        let moving = TransactionPlan { to: Target, ..before };
        let join = |plan| all.begin("a", &topics(&["orders"]), plan, 5);
        assert_eq!(join(moving), Begun::First);
        assert_eq!(join(moving), Begun::Hold);
        all.moved("a", Target);
        assert_eq!(join(moving), Begun::Hold, "planned before that");
        assert_eq!(join(after), Begun::Again);
        // The owner of what it takes in is known from the same table.
        assert_eq!(join(TransactionPlan { revision: Revision(2), ..after }), Begun::Hold);
        assert!(all.end("a"));
        assert_eq!(join(before), Begun::Hold, "a table from before the move");
        assert_eq!(join(after), Begun::First, "what has ended leaves nothing behind");
        all.open(&[], Revision(4));
        assert_eq!(join(after), Begun::Hold, "a flip was published since");
        assert_eq!(join(TransactionPlan { revision: Revision(4), ..after }), Begun::Again);
    }

    #[test]
    fn trap_7_what_a_producer_of_before_is_told_ends_no_transaction_of_the_next_one() {
        let all = TransactionRegistry::default();
        assert_eq!(begin(&all, "a", &["orders"], 0), Begun::First);
        assert!(all.end("a"), "its successor has asked for an identity");
        let next = Identity { epoch: 1, ..PRODUCER };
        let plan = TransactionPlan { producer: next, ..at_source(0) };
        assert_eq!(all.begin("a", &topics(&["orders"]), plan, 5), Begun::First);
        assert!(!answered(&all, "a", false) && all.all_open().len() == 1);
        assert!(all.answered("a", next, false, 5));
    }

    #[test]
    fn trap_7_a_producer_that_is_fenced_ends_no_transaction_of_the_next_one() {
        let all = TransactionRegistry::default();
        let next = Identity { epoch: 1, ..PRODUCER };
        let plan = TransactionPlan { producer: next, ..at_source(0) };
        assert_eq!(all.begin("a", &topics(&["orders"]), plan, 5), Begun::First);
        assert!(!all.end_of("a", PRODUCER) && all.all_open().len() == 1);
        assert!(all.end_of("a", next) && !all.end_of("a", next) && all.all_open().is_empty());
    }

    #[test]
    fn trap_7_requests_of_a_fenced_producer_that_came_first_end_no_transaction_of_the_next_one() {
        let all = TransactionRegistry::default();
        let next = Identity { epoch: 1, ..PRODUCER };
        assert_eq!(begin(&all, "a", &["orders"], 0), Begun::First);
        let plan = TransactionPlan { producer: next, ..at_source(0) };
        assert_eq!(all.begin("a", &topics(&["orders"]), plan, 5), Begun::Again);
        assert!(!all.end_of("a", PRODUCER), "the next one may have begun");
        assert!(!all.answered("a", next, true, 6));
        assert!(!all.answered("a", PRODUCER, false, 7), "it is refused: it was fenced");
        assert!(all.is_open("a") && all.all_open().len() == 1);
        assert!(!all.end_of("a", PRODUCER) && all.end_of("a", next));
    }

    #[test]
    fn trap_7_an_id_stays_where_its_coordinator_is_asked_for_an_identity() {
        let all = TransactionRegistry::default();
        let moving = TransactionPlan { to: Target, ..at_source(0) };
        let begin = |plan| all.begin("a", &topics(&["orders"]), plan, 5);
        let tokens = [all.ask_identity("a", Source), all.ask_identity("a", Source)];
        assert!(tokens.iter().all(Option::is_some));
        assert_eq!(begin(moving), Begun::Hold);
        assert_eq!(all.begin("b", &topics(&["orders"]), moving, 5), Begun::First, "another id");
        assert_eq!(begin(at_source(0)), Begun::First, "it does not move");
        assert!(all.end("a"));
        let [one, other] = tokens;
        drop(one);
        assert_eq!(begin(moving), Begun::Hold, "the other one is not answered");
        drop(other);
        assert_eq!(begin(moving), Begun::First);
        assert!(all.ask_identity("a", Source).is_none() && all.ask_identity("a", Target).is_none());
        all.moved("a", Target);
        assert!(all.ask_identity("a", Source).is_none(), "planned before that");
        assert!(all.ask_identity("a", Target).is_some());
        assert!(all.end("a") && all.ask_identity("a", Source).is_none(), "also when that is over");
        for number in 0..2 * REMEMBERED_MAX {
            assert!(all.ask_identity(&number.to_string(), Source).is_some());
        }
        assert!(lock(&all.inner).asking.len() <= REMEMBERED_MAX);
    }

    #[test]
    fn trap_7_what_may_yet_begin_is_not_forgotten() {
        let all = TransactionRegistry::default();
        assert_eq!(begin(&all, "a", &["orders"], 0), Begun::First);
        all.end_unless_asked("a");
        assert_eq!(all.all_open().len(), 1);
        assert!(!all.answered("a", PRODUCER, true, 8), "its client has gone, and perhaps it has begun");
        assert_eq!(all.all_open().values().map(|seen| seen.last_ms).collect::<Vec<_>>(), [8]);
        all.end_unless_asked("a");
        all.end_unless_asked("never begun");
        assert!(all.all_open().is_empty());
    }

    #[test]
    fn trap_7_topics_are_written_to_when_a_coordinator_says_so_and_as_long_as_they_are_there() {
        let all = TransactionRegistry::default();
        assert_eq!(begin(&all, "a", &["orders", "nowhere"], 0), Begun::First);
        assert!(answered(&all, "a", false) && all.written_by("a").is_empty());
        assert_eq!(begin(&all, "a", &["orders", "other"], 0), Begun::First);
        assert!(!answered(&all, "a", true));
        all.forget_topic("other");
        assert_eq!(all.written_by("a"), topics(&["orders"]));
        assert_eq!(all.all_open()["a"].topics, topics(&["orders"]));
        all.turns_to("a", &topics(&["new"]));
        assert_eq!(all.written_by("a"), topics(&["new"]));
        let many: BTreeSet<Arc<str>> =
            (0..2 * TOPICS_MAX).map(|number| Arc::from(number.to_string())).collect();
        assert_eq!(all.begin("b", &many, at_source(0), 5), Begun::First);
        assert!(!answered(&all, "b", true) && all.written_by("b").len() == TOPICS_MAX);
    }

    #[test]
    fn trap_7_nothing_is_known_of_a_stranger_for_a_second() {
        let all = TransactionRegistry::default();
        assert!(
            all.is_stranger("a", 0)
                && all.is_stranger("a", STRANGER_MS - 1)
                && !all.is_stranger("a", STRANGER_MS)
        );
        assert!(all.is_stranger("b", STRANGER_MS));
        assert_eq!(begin(&all, "b", &["orders"], 0), Begun::First);
        assert!(!all.is_stranger("b", STRANGER_MS) && all.end("b") && !all.is_stranger("b", STRANGER_MS));
        for number in 0..2 * REMEMBERED_MAX {
            assert!(all.is_stranger(&number.to_string(), 10 * STRANGER_MS * number as i64));
        }
        assert!(lock(&all.inner).strangers.len() <= REMEMBERED_MAX);
    }

    #[test]
    fn trap_7_a_transaction_is_open_as_long_as_one_request_may_have_begun_it() {
        let all = TransactionRegistry::default();
        let orders = ["orders"];
        assert_eq!(begin(&all, "a", &orders, 0), Begun::First);
        assert!(answered(&all, "a", false), "nothing was taken in");
        assert_eq!(begin(&all, "a", &orders, 0), Begun::First);
        assert_eq!(begin(&all, "a", &orders, 0), Begun::Again);
        assert!(!answered(&all, "a", false), "the other one may have been");
        assert!(!answered(&all, "a", true));
        assert_eq!(begin(&all, "a", &orders, 0), Begun::Again);
        assert!(!answered(&all, "a", false) && !answered(&all, "a", false));
        assert!(all.end("a") && !answered(&all, "a", false) && !answered(&all, "never begun", true));
        assert_eq!(begin(&all, "a", &orders, 0), Begun::First);
        assert!(answered(&all, "a", false), "what the last one has taken in is over");
    }

    #[test]
    fn trap_7_a_flip_lets_transactions_end_and_none_begin() {
        let all = TransactionRegistry::default();
        let orders = [Arc::from("orders")];
        assert_eq!(begin(&all, "a", &["orders"], 0), Begun::First);
        assert_eq!(begin(&all, "b", &["other"], 0), Begun::First);
        assert!(!answered(&all, "a", true) && !answered(&all, "b", true));
        all.close(&orders);
        assert_eq!(begin(&all, "c", &["orders", "other"], 0), Begun::Hold);
        assert_eq!(begin(&all, "new", &["other"], 0), Begun::First, "nothing says that it will write there");
        assert!(all.end("new"));
        // What is waited for goes on: it would not end otherwise. Another one would come too late.
        assert_eq!(begin(&all, "a", &["orders"], 0), Begun::Again);
        assert_eq!(begin(&all, "b", &["orders"], 0), Begun::Hold);
        assert_eq!(begin(&all, "b", &["other"], 0), Begun::Again);
        assert_eq!(all.open_on(&orders).len(), 1);
        assert!(all.end("a") && all.end("b") && !all.end("b") && !all.end("never begun"));
        assert!(all.open_on(&orders).is_empty());
        assert_eq!(all.written_to(&orders).len(), 1);
        // Its first request may be about offsets only.
        assert_eq!(begin(&all, "a", &[], 0), Begun::Hold);
        assert_eq!(begin(&all, "b", &[], 0), Begun::First);
        assert!(all.end("b"));
        all.open(&orders, Revision(1));
        assert_eq!(begin(&all, "c", &["orders"], 0), Begun::Hold, "it would begin at the old owner");
        assert_eq!(begin(&all, "c", &["orders"], 1), Begun::First);
    }

    #[test]
    fn trap_7_a_transaction_that_has_its_offsets_only_so_far_is_waited_for() {
        let all = TransactionRegistry::default();
        let orders = [Arc::from("orders")];
        assert_eq!(begin(&all, "a", &["orders"], 0), Begun::First);
        assert!(!answered(&all, "a", true) && all.end("a"));
        assert_eq!(begin(&all, "a", &[], 0), Begun::First);
        all.close(&orders);
        assert_eq!(all.open_on(&orders).len(), 1, "it wrote there before, and may again");
        assert_eq!(begin(&all, "a", &["orders"], 0), Begun::Again);
        assert!(all.end("a") && all.open_on(&orders).is_empty());
    }

    #[test]
    fn trap_7_offsets_that_are_being_moved_are_taken_in_afterwards_only() {
        let all = TransactionRegistry::default();
        let group: Arc<str> = Arc::from("g");
        assert_eq!(begin(&all, "a", &["orders"], 0), Begun::First);
        assert_eq!(begin(&all, "b", &["orders"], 0), Begun::First);
        assert!(!answered(&all, "b", true) && all.take_offsets("a", "g"));
        all.close_group(&group);
        assert!(!all.take_offsets("b", "g"), "they are being moved");
        assert!(all.take_offsets("a", "g"), "it has them: it would not end otherwise");
        assert!(all.take_offsets("b", "other"));
        assert_eq!(all.open_with_offsets("g").len(), 1);
        assert!(all.end("a") && all.open_with_offsets("g").is_empty());
        all.open_group("g");
        assert!(all.take_offsets("b", "g"));
        assert_eq!(all.written_by("b"), topics(&["orders"]));
    }

    #[test]
    fn an_open_transaction_tells_what_it_has_taken_in_and_since_when_it_is_open() {
        let all = TransactionRegistry::default();
        assert_eq!(all.begin("a", &topics(&["orders"]), at_source(0), 5), Begun::First);
        assert_eq!(all.begin("a", &topics(&["other"]), at_source(0), 9), Begun::Again);
        assert!(!all.answered("a", PRODUCER, true, 9) && all.take_offsets("a", "g"));
        let both = topics(&["orders", "other"]);
        let seen = TransactionSeen {
            open_ms: Some(5),
            topics: both.clone(),
            written: both,
            groups: topics(&["g"]),
            producer: Some(PRODUCER),
            last_ms: 9,
        };
        assert_eq!(all.all_open(), BTreeMap::from([(Arc::from("a"), seen.clone())]));
        assert!(all.end("a") && all.all_open().is_empty());
        assert_eq!(all.written_to(&[Arc::from("nothing"), Arc::from("other")]).len(), 1);
        assert_eq!(all.written_to(&[Arc::from("nothing")]).len(), 0);
        // The next one has taken in nothing yet.
        assert_eq!(all.begin("a", &topics(&[]), at_source(0), 20), Begun::First);
        let next = TransactionSeen {
            open_ms: Some(20),
            topics: topics(&[]),
            groups: topics(&[]),
            last_ms: 20,
            ..seen
        };
        assert_eq!(all.all_open(), BTreeMap::from([(Arc::from("a"), next)]));
    }

    #[test]
    fn topics_are_opened_one_by_one_and_never_for_older_plans() {
        let all = TransactionRegistry::default();
        let [orders, other]: [Arc<str>; 2] = ["orders", "other"].map(Arc::from);
        all.close(&[Arc::clone(&orders), Arc::clone(&other)]);
        all.open(&[Arc::clone(&orders)], Revision(7));
        assert_eq!(begin(&all, "a", &["orders"], 7), Begun::First);
        assert_eq!(begin(&all, "b", &["other"], 7), Begun::Hold);
        all.open(&[other], Revision(3));
        assert_eq!(begin(&all, "b", &["other"], 6), Begun::Hold, "7 has been published before");
        assert_eq!(begin(&all, "b", &["other"], 7), Begun::First);
        assert_eq!(begin(&all, "a", &["orders"], 7), Begun::Again, "what is open goes on");
    }

    #[test]
    fn what_is_remembered_is_bounded_and_open_transactions_are_never_forgotten() {
        let all = TransactionRegistry::default();
        assert_eq!(begin(&all, "open", &["orders"], 0), Begun::First);
        for number in 0..REMEMBERED_MAX + 50 {
            let id = format!("id-{number}");
            assert_eq!(begin(&all, &id, &["orders"], 0), Begun::First);
            assert!(all.end(&id));
        }
        assert_eq!(all.all_open().len(), 1);
        assert_eq!(lock(&all.inner).seen.len(), REMEMBERED_MAX);
        // One that is known takes nobody's place, and the oldest goes first.
        assert_eq!(begin(&all, &format!("id-{}", REMEMBERED_MAX + 49), &["orders"], 0), Begun::First);
        assert_eq!(lock(&all.inner).seen.len(), REMEMBERED_MAX);
        assert!(all.end(&format!("id-{}", REMEMBERED_MAX + 49)));
        assert_eq!(all.begin("early", &topics(&[]), at_source(0), 1), Begun::First);
        assert!(all.end("early"));
        assert_eq!(begin(&all, "late", &["orders"], 0), Begun::First);
        assert!(!lock(&all.inner).seen.contains_key("early"));
    }
}
