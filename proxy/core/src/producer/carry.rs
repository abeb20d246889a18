//! What was appended to one partition, producer by producer, cumulative over all eras.
//!
//! A new owner of the log has no state of the producers that come over to it: it would append a retry of what the old
//! owner has already. So retries over a flip are answered from here (RULES R4). The proxy's own record of what was
//! acknowledged and the brokers' DescribeProducers complete each other (R5): a broker forgets by record timestamp and
//! keeps one batch per producer over a restart, and the proxy has not seen what was written around it.
//!
//! Keys are producer ids as clients know them (visit 0). Sequences are compared mod 2^31 with a half-range window.

use super::pid;
use crate::ids::VirtualOffset;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

mod codec;
pub use codec::CarryDecodeError;

/// Batches kept per producer: as many as a broker recognises (`ProducerStateEntry.NUM_BATCHES_TO_RETAIN`), which is
/// also the most an idempotent producer may have in flight.
pub const BATCHES_MAX: usize = 5;
/// Producers kept per partition unless configured otherwise.
pub const PIDS_MAX: usize = 10_000;
/// How long a producer is kept after its last batch, milliseconds.
pub const EXPIRY_MS: i64 = 24 * 60 * 60 * 1_000;
/// The oldest a producer may look that a broker lists. Its time is that of its records, not of their append: a back-fill
/// of last year's events is as alive as any other producer.
const LISTED_AGE_MAX_MS: i64 = EXPIRY_MS / 2;
/// A listed producer whose last record is younger than this is not forgotten by its broker soon, milliseconds. The
/// shortest `producer.id.expiration.ms` in sensible use is an hour.
const RECALL_AGE_MAX_MS: i64 = 15 * 60 * 1000;
/// Half of the sequence space: nearer is before or after, farther is the other way round.
const HALF: i32 = 1 << 30;

/// One acknowledged batch: first and last sequence, and its base offset where it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AckedBatch {
    pub first: i32,
    pub last: i32,
    pub base: Option<VirtualOffset>,
}

/// What is known of one producer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CarryEntry {
    pub epoch: i16,
    /// Everything up to here is appended; −1 when nothing is in this epoch.
    pub last_sequence: i32,
    /// The latest batches seen acknowledged, oldest first; at most [`BATCHES_MAX`].
    pub batches: Vec<AckedBatch>,
    /// When the last batch was seen, milliseconds of the caller's clock.
    pub last_seen_ms: i64,
}

/// A row of a DescribeProducers answer (KIP-664).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DescribedProducer {
    /// The native id, visit included.
    pub pid: i64,
    pub epoch: i32,
    pub last_sequence: i32,
    /// The largest timestamp of its records, milliseconds since 1970.
    pub last_timestamp_ms: i64,
}

/// What the carry says of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CarryVerdict {
    /// The producer is not carried.
    Unknown,
    /// A later epoch has written already.
    StaleEpoch,
    /// The first batch of a later epoch: only sequence 0 may follow.
    NewEpoch,
    /// Exactly one of the last batches; its base offset where it is known.
    Duplicate(Option<VirtualOffset>),
    /// Wholly appended, in batches that are not remembered.
    AlreadyAppended,
    /// Partly appended.
    Overlap,
    /// The one that must come next.
    Next,
    /// A batch before it is missing.
    Gap,
}

impl CarryVerdict {
    /// Whether a batch with this first sequence lacks one before it.
    #[must_use]
    pub fn lacks_predecessor(self, first: i32) -> bool {
        self == CarryVerdict::Gap || (self == CarryVerdict::NewEpoch && first != 0)
    }
}

/// The carry of one partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Carry {
    entries: BTreeMap<i64, CarryEntry>,
    limit: usize,
    evicted: u64,
}

impl Default for Carry {
    fn default() -> Carry {
        Carry::with_limit(PIDS_MAX)
    }
}

impl Carry {
    /// An empty carry for at most `limit` producers, but at least one.
    #[must_use]
    pub fn with_limit(limit: usize) -> Carry {
        Carry { entries: BTreeMap::new(), limit: limit.max(1), evicted: 0 }
    }

    /// Changes the limit; the oldest producers above it go.
    pub fn set_limit(&mut self, limit: usize) {
        self.limit = limit.max(1);
        self.evict();
    }

    /// Judges a batch against what is appended.
    #[must_use]
    pub fn judge(&self, pid: i64, epoch: i16, first: i32, last: i32) -> CarryVerdict {
        let Some(entry) = self.get(pid) else { return CarryVerdict::Unknown };
        match epoch.cmp(&entry.epoch) {
            std::cmp::Ordering::Less => CarryVerdict::StaleEpoch,
            std::cmp::Ordering::Greater => CarryVerdict::NewEpoch,
            std::cmp::Ordering::Equal => entry.judge(first, last),
        }
    }

    /// Records that a batch was acknowledged. Answers may come in any order; an older epoch changes nothing.
    pub fn record_ack(
        &mut self,
        pid: i64,
        epoch: i16,
        first: i32,
        last: i32,
        virtual_base: Option<VirtualOffset>,
        now_ms: i64,
    ) {
        if pid < 0 || epoch < 0 || first < 0 || last < 0 {
            return;
        }
        let batch = AckedBatch { first, last, base: virtual_base };
        self.absorb(
            pid,
            CarryEntry { epoch, last_sequence: last, batches: vec![batch], last_seen_ms: now_ms },
        );
    }

    /// Takes over what the owner lists, where it is newer than what is carried, and returns how many rows were.
    ///
    /// `visit` is the owner's: a side that was left and entered again still lists the producers of earlier visits,
    /// and these rows say less than the carry. Rows of ids that the proxy did not issue count in every visit.
    pub fn overlay_described(&mut self, rows: &[DescribedProducer], visit: u16, now_ms: i64) -> usize {
        let mut newer = 0;
        for row in rows.iter().filter(|r| r.pid >= 0 && r.last_sequence >= -1) {
            let ours = is_of_visit(row.pid, visit);
            let Some(epoch) = i16::try_from(row.epoch).ok().filter(|&e| e >= 0 && ours) else { continue };
            let known = self.get(row.pid);
            if known.is_some_and(|k| !is_newer((epoch, row.last_sequence), (k.epoch, k.last_sequence))) {
                continue;
            }
            newer += 1;
            let last_seen_ms = row.last_timestamp_ms.clamp(now_ms.saturating_sub(LISTED_AGE_MAX_MS), now_ms);
            let entry =
                CarryEntry { epoch, last_sequence: row.last_sequence, batches: Vec::new(), last_seen_ms };
            self.absorb(row.pid, entry);
        }
        newer
    }

    /// Adds what an earlier carry of the same partition knows.
    pub fn merge(&mut self, previous: &Carry) {
        self.evicted = self.evicted.saturating_add(previous.evicted);
        for (&pid, entry) in &previous.entries {
            self.absorb(pid, entry.clone());
        }
    }

    /// Forgets producers [`EXPIRY_MS`] after their last batch and returns how many. Times ahead of `now_ms` are set to
    /// it: a clock that was set back must not keep a producer for ever.
    pub fn expire(&mut self, now_ms: i64) -> usize {
        let before = self.entries.len();
        self.entries.retain(|_, entry| {
            entry.last_seen_ms = entry.last_seen_ms.min(now_ms);
            now_ms.saturating_sub(entry.last_seen_ms) < EXPIRY_MS
        });
        before - self.entries.len()
    }

    #[must_use]
    pub fn get(&self, pid: i64) -> Option<&CarryEntry> {
        self.entries.get(&pid::client_pid(pid))
    }

    /// All producers in the order of their ids.
    pub fn iter(&self) -> impl Iterator<Item = (i64, &CarryEntry)> {
        self.entries.iter().map(|(&pid, entry)| (pid, entry))
    }

    /// Producers carried.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Producers that the limit has pushed out before they expired. Not part of the encoded form.
    #[must_use]
    pub fn evicted(&self) -> u64 {
        self.evicted
    }

    fn absorb(&mut self, pid: i64, entry: CarryEntry) {
        match self.entries.entry(pid::client_pid(pid)) {
            Entry::Vacant(place) => {
                place.insert(entry);
                self.evict();
            }
            Entry::Occupied(mut known) => known.get_mut().absorb(entry),
        }
    }

    /// Lets the oldest go. A little more than needed at a time, so that a partition at its limit is not searched for
    /// every new producer.
    fn evict(&mut self) {
        let Some(over) = self.entries.len().checked_sub(self.limit).filter(|&over| over > 0) else { return };
        let count = over.max(self.limit / 64).min(self.entries.len());
        let mut by_age: Vec<_> = self.entries.iter().map(|(&pid, entry)| (entry.last_seen_ms, pid)).collect();
        by_age.sort_unstable();
        for (_, pid) in by_age.iter().take(count) {
            self.entries.remove(pid);
        }
        self.evicted = self.evicted.saturating_add(u64::try_from(count).unwrap_or(u64::MAX));
    }
}

/// Producers, by the id clients know, of which the owner that listed these rows has state and keeps it for a while: a
/// broker forgets by record timestamp, so rows with old ones do not count. `visit` as in [`Carry::overlay_described`].
pub fn known_to_owner(rows: &[DescribedProducer], visit: u16, now_ms: i64) -> impl Iterator<Item = i64> + '_ {
    rows.iter()
        .filter(move |r| r.pid >= 0 && r.last_sequence >= 0 && is_of_visit(r.pid, visit))
        .filter(move |r| now_ms.saturating_sub(r.last_timestamp_ms) < RECALL_AGE_MAX_MS)
        .map(|r| pid::client_pid(r.pid))
}

fn is_of_visit(pid: i64, visit: u16) -> bool {
    !pid::is_issued(pid) || pid::visit_of(pid) == visit
}

impl CarryEntry {
    fn judge(&self, first: i32, last: i32) -> CarryVerdict {
        if let Some(known) = self.batches.iter().find(|b| (b.first, b.last) == (first, last)) {
            return CarryVerdict::Duplicate(known.base);
        }
        if first < 0 || last < 0 {
            return CarryVerdict::Gap;
        }
        if first == next_sequence(self.last_sequence) {
            return CarryVerdict::Next;
        }
        let Some(first_behind) = behind(first, self.last_sequence) else { return CarryVerdict::Gap };
        match behind(last, self.last_sequence) {
            Some(last_behind) if last_behind <= first_behind => CarryVerdict::AlreadyAppended,
            _ => CarryVerdict::Overlap,
        }
    }

    /// Takes in another account of the same producer: the later epoch wins, within an epoch what is ahead.
    fn absorb(&mut self, other: CarryEntry) {
        let last_seen_ms = self.last_seen_ms.max(other.last_seen_ms);
        match other.epoch.cmp(&self.epoch) {
            std::cmp::Ordering::Less => return,
            std::cmp::Ordering::Greater => *self = other,
            std::cmp::Ordering::Equal => {
                if is_ahead(other.last_sequence, self.last_sequence) {
                    self.last_sequence = other.last_sequence;
                }
                other.batches.into_iter().for_each(|batch| self.remember(batch));
            }
        }
        self.last_seen_ms = last_seen_ms;
    }

    /// Keeps the latest batches in order of their sequences. A known offset is never replaced.
    fn remember(&mut self, batch: AckedBatch) {
        match self.batches.iter_mut().find(|b| (b.first, b.last) == (batch.first, batch.last)) {
            Some(known) => known.base = known.base.or(batch.base),
            None => self.batches.push(batch),
        }
        let newest = self.last_sequence;
        self.batches.sort_by_key(|b| (std::cmp::Reverse(distance(b.last, newest)), b.first));
        let surplus = self.batches.len().saturating_sub(BATCHES_MAX);
        self.batches.drain(..surplus);
    }
}

/// (epoch, last sequence) `a` is later than `b`.
fn is_newer(a: (i16, i32), b: (i16, i32)) -> bool {
    a.0 > b.0 || (a.0 == b.0 && is_ahead(a.1, b.1))
}

/// Sequence `a` comes before `b`.
#[must_use]
pub fn is_before(a: i32, b: i32) -> bool {
    (1..HALF).contains(&distance(a, b))
}

/// Sequence `a` comes after `b`; −1 comes before all.
fn is_ahead(a: i32, b: i32) -> bool {
    a >= 0 && (b < 0 || (1..HALF).contains(&distance(b, a)))
}

/// How far `a` lies behind `last`, 0 for equal; `None` when it is ahead, or there is no last.
fn behind(a: i32, last: i32) -> Option<i32> {
    Some(distance(a, last)).filter(|d| last >= 0 && (0..HALF).contains(d))
}

/// Steps from `from` up to `to`, mod 2^31.
fn distance(from: i32, to: i32) -> i32 {
    to.wrapping_sub(from) & i32::MAX
}

/// 0 follows −1 (nothing yet) as well as 2^31 − 1.
fn next_sequence(last: i32) -> i32 {
    last.wrapping_add(1) & i32::MAX
}

#[cfg(test)]
mod tests;
