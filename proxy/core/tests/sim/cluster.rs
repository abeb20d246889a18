//! A Kafka cluster as far as its clients can tell: leaders and epochs, replicated logs, what a log remembers of its
//! idempotent producers (`ProducerStateEntry`, `ProducerAppendInfo`), retention.

use crate::asker::{EARLIEST, LATEST, MAX_TIMESTAMP};
use crate::coordinator::Coordinator;
use crate::rng::Rng;
use crate::txn_coordinator::TxnCoordinator;
use crate::unstable::Unstable;
use crate::wire::{self, Head, Kind, Mark};
use bytes::{Bytes, BytesMut};
use std::collections::{BTreeMap, VecDeque};

pub(crate) const BROKERS: i32 = 2;
/// Batches per producer that a log recognises.
const REMEMBERED: usize = 5;

pub(crate) mod code {
    pub(crate) const OUT_OF_RANGE: i16 = 1;
    pub(crate) const NOT_LEADER: i16 = 6;
    pub(crate) const NOT_ENOUGH_REPLICAS: i16 = 19;
    pub(crate) const OUT_OF_ORDER: i16 = 45;
    pub(crate) const BAD_EPOCH: i16 = 47;
    pub(crate) const CORRUPT: i16 = 2;
    pub(crate) const FENCED: i16 = 74;
    pub(crate) const UNKNOWN_EPOCH: i16 = 75;
    pub(crate) const OFFSET_NOT_AVAILABLE: i16 = 78;
}

#[derive(Clone, Debug)]
pub(crate) struct Batch {
    pub(crate) base: i64,
    pub(crate) count: i32,
    pub(crate) pid: i64,
    pub(crate) pid_epoch: i16,
    pub(crate) sequence: i32,
    pub(crate) mark: Mark,
    pub(crate) kind: Kind,
    /// Unix milliseconds, as its log's clock shows them: those of later batches may be lower.
    pub(crate) time: i64,
    pub(crate) bytes: Bytes,
}

impl Batch {
    pub(crate) fn end(&self) -> i64 {
        self.base + i64::from(self.count)
    }
}

#[derive(Clone, Debug, Default)]
struct Producer {
    epoch: i16,
    /// (first, last, base)
    batches: VecDeque<(i32, i32, i64)>,
}

pub(crate) struct Log {
    pub(crate) leader: i32,
    pub(crate) epoch: i32,
    pub(crate) batches: Vec<Batch>,
    pub(crate) start: i64,
    pub(crate) end: i64,
    /// What the leader says; after an election it may lag behind `committed`.
    pub(crate) high_watermark: i64,
    /// What no clean election takes away.
    pub(crate) committed: i64,
    /// (epoch, its first offset)
    epochs: Vec<(i32, i64)>,
    producers: BTreeMap<i64, Producer>,
    pub(crate) unstable: Unstable,
    /// Fewer replicas in sync than acks=all needs.
    pub(crate) short: bool,
    pub(crate) replicating: bool,
}

/// What became of a produced batch.
pub(crate) enum Appended {
    /// At this offset; it ends behind `end`.
    Now {
        base: i64,
        end: i64,
    },
    /// It is there already.
    Before {
        base: i64,
        end: i64,
    },
    Refused(i16),
}

impl Log {
    pub(crate) fn new(leader: i32, epoch: i32, start: i64) -> Log {
        Log {
            leader,
            epoch,
            batches: Vec::new(),
            start,
            end: start,
            high_watermark: start,
            committed: start,
            epochs: vec![(epoch, start)],
            producers: BTreeMap::new(),
            unstable: Unstable::default(),
            short: false,
            replicating: false,
        }
    }

    pub(crate) fn append(&mut self, bytes: &Bytes, time: i64, all: bool) -> Appended {
        let Some(head) = wire::heads(bytes).first().copied().filter(|h| h.sound) else {
            return Appended::Refused(code::CORRUPT);
        };
        if all && self.short {
            return Appended::Refused(code::NOT_ENOUGH_REPLICAS);
        }
        if head.pid >= 0 && !matches!(head.kind, Kind::Marker { .. }) {
            match self.judge(&head) {
                Ok(None) => {}
                Ok(Some((base, end))) => return Appended::Before { base, end },
                Err(error) => return Appended::Refused(error),
            }
        }
        let batch = Batch {
            base: self.end,
            count: head.count,
            pid: head.pid,
            pid_epoch: head.epoch,
            sequence: head.sequence,
            mark: head.mark,
            kind: head.kind,
            time,
            bytes: wire::placed(bytes, self.end, self.epoch),
        };
        let (base, end) = (batch.base, batch.end());
        self.remember(&batch);
        self.unstable.append(&batch);
        self.batches.push(batch);
        self.end = end;
        Appended::Now { base, end }
    }

    /// Whether the batch is there already.
    fn judge(&self, head: &Head) -> Result<Option<(i64, i64)>, i16> {
        let Some(known) = self.producers.get(&head.pid) else { return Ok(None) };
        let last = head.sequence.wrapping_add(head.count - 1) & i32::MAX;
        if head.epoch == known.epoch
            && let Some((_, _, base)) = known.batches.iter().find(|b| (b.0, b.1) == (head.sequence, last))
        {
            return Ok(Some((*base, base + i64::from(head.count))));
        }
        if head.epoch < known.epoch {
            return Err(code::BAD_EPOCH);
        }
        let next = known.batches.back().map_or(0, |b| b.1.wrapping_add(1) & i32::MAX);
        let wanted = if head.epoch > known.epoch { 0 } else { next };
        if head.sequence == wanted { Ok(None) } else { Err(code::OUT_OF_ORDER) }
    }

    fn remember(&mut self, batch: &Batch) {
        if batch.pid < 0 {
            return;
        }
        let known = self.producers.entry(batch.pid).or_default();
        if known.epoch != batch.pid_epoch {
            *known = Producer { epoch: batch.pid_epoch, batches: VecDeque::new() };
        }
        // A marker has no sequences; a log has heard of a producer by it all the same.
        if matches!(batch.kind, Kind::Marker { .. }) {
            return;
        }
        let last = batch.sequence.wrapping_add(batch.count - 1) & i32::MAX;
        known.batches.push_back((batch.sequence, last, batch.base));
        if known.batches.len() > REMEMBERED {
            known.batches.pop_front();
        }
    }

    /// (pid, epoch, last sequence, −1 for none)
    pub(crate) fn producers(&self) -> Vec<(i64, i16, i32)> {
        let rows = self.producers.iter();
        rows.map(|(pid, p)| (*pid, p.epoch, p.batches.back().map_or(-1, |b| b.1))).collect()
    }

    /// The last stable offset: nothing below it is still to be decided (`UnifiedLog.fetchLastStableOffsetMetadata`).
    pub(crate) fn stable(&self) -> i64 {
        self.unstable.first(self.high_watermark).max(self.start).min(self.high_watermark)
    }

    /// As far as a reader may see.
    pub(crate) fn readable(&self, committed: bool) -> i64 {
        if committed { self.stable() } else { self.high_watermark }
    }

    /// Another replica leads: it has all that is committed, and of the rest what it got. Gives what is lost.
    pub(crate) fn elect(&mut self, leader: i32, rng: &mut Rng) -> Vec<Batch> {
        let tail = self.batches.iter().filter(|b| b.base >= self.committed).count();
        let lost = rng.up_to(tail as u64) as usize;
        let cut = self.cut(self.batches.len() - lost);
        self.leader = leader;
        self.epoch += rng.between(1, 2) as i32;
        self.epochs.push((self.epoch, self.end));
        self.lag(rng);
        cut
    }

    /// A new leader learns the high watermark late.
    fn lag(&mut self, rng: &mut Rng) {
        if rng.chance(500) {
            let back = rng.up_to(3) as usize;
            let at = self.batches.iter().rev().filter(|b| b.end() <= self.committed).nth(back);
            let lagging = at.map_or(self.start, |b| b.base).max(self.start);
            self.high_watermark = lagging.min(self.committed);
        } else {
            self.high_watermark = self.committed;
        }
    }

    /// Keeps the first `keep` batches.
    fn cut(&mut self, keep: usize) -> Vec<Batch> {
        let lost = self.batches.split_off(keep);
        if let Some(first) = lost.first() {
            self.end = first.base;
            self.epochs.retain(|(_, start)| *start <= first.base);
            let kept = std::mem::take(&mut self.batches);
            self.producers.clear();
            self.unstable = Unstable::default();
            kept.iter().for_each(|b| {
                self.remember(b);
                self.unstable.append(b);
            });
            self.batches = kept;
        }
        self.high_watermark = self.high_watermark.min(self.end);
        lost
    }

    /// All replicas have everything.
    pub(crate) fn replicate(&mut self) {
        self.high_watermark = self.end;
        self.committed = self.end;
    }

    pub(crate) fn index_of(&self, offset: i64) -> usize {
        self.batches.partition_point(|b| b.end() <= offset)
    }

    pub(crate) fn batch_at(&self, offset: i64) -> Option<&Batch> {
        self.batches.get(self.index_of(offset)).filter(|b| b.base <= offset)
    }

    /// Retention, or DeleteRecords. Whole batches stay readable, as segments do.
    pub(crate) fn delete_to(&mut self, offset: i64) {
        self.start = self.start.max(offset.min(self.high_watermark));
    }

    /// DeleteRecords (`Partition.deleteRecordsOnLeader`): where the log starts now. −1: as much as can be.
    pub(crate) fn delete_records(&mut self, offset: i64) -> Result<i64, i16> {
        let to = if offset == LATEST { self.high_watermark } else { offset };
        if !(0..=self.high_watermark).contains(&to) {
            return Err(code::OUT_OF_RANGE);
        }
        self.delete_to(to);
        Ok(self.start)
    }

    /// The batches from `offset` on that end by `until`, at most `max`.
    pub(crate) fn read(&self, offset: i64, until: i64, max: usize) -> Bytes {
        let mut out = BytesMut::new();
        let readable = |b: &&Batch| b.end() <= until;
        for batch in self.batches[self.index_of(offset)..].iter().take_while(readable).take(max) {
            out.extend_from_slice(&batch.bytes);
        }
        out.freeze()
    }

    /// How many batches from `offset` on a reader may see.
    pub(crate) fn readable_from(&self, offset: i64, committed: bool) -> usize {
        let until = self.readable(committed);
        self.batches[self.index_of(offset)..].iter().take_while(|b| b.end() <= until).count()
    }

    pub(crate) fn check_epoch(&self, broker: i32, epoch: i32) -> Result<(), i16> {
        if broker != self.leader {
            return Err(code::NOT_LEADER);
        }
        match epoch {
            e if e < 0 || e == self.epoch => Ok(()),
            e if e < self.epoch => Err(code::FENCED),
            _ => Err(code::UNKNOWN_EPOCH),
        }
    }

    /// The end of the last epoch that is not after `epoch`, as a leader tells followers and consumers that may diverge.
    pub(crate) fn epoch_end(&self, epoch: i32) -> (i32, i64) {
        let at = self.epochs.partition_point(|(e, _)| *e <= epoch);
        let end = self.epochs.get(at).map_or(self.end, |(_, start)| *start);
        match at.checked_sub(1) {
            Some(before) => (self.epochs[before].0, end),
            None => (-1, -1),
        }
    }

    /// The position and the time of what a client asks for (`Partition.fetchOffsetForTimestamp`). −1 of both: there is
    /// no such record. Records that are not on all replicas do not exist; a new leader that does not know yet what is
    /// on all of them says so.
    pub(crate) fn list(&self, timestamp: i64, committed: bool) -> Result<(i64, i64), i16> {
        let is_lagging = self.epochs.last().is_some_and(|(_, start)| *start > self.high_watermark);
        let retained = &self.batches[self.index_of(self.start)..];
        let end = self.readable(committed);
        let readable = |b: &&Batch| b.end() <= end;
        let found = match timestamp {
            EARLIEST => return Ok((self.start, -1)),
            LATEST if is_lagging => return Err(code::OFFSET_NOT_AVAILABLE),
            LATEST => return Ok((end, -1)),
            MAX_TIMESTAMP => {
                let known = retained.iter().rev().filter(|b| is_lagging || readable(b));
                known.max_by_key(|b| b.time).filter(readable)
            }
            _ => retained.iter().find(|b| b.time >= timestamp).filter(readable),
        };
        match found {
            Some(batch) => Ok((batch.base.max(self.start), batch.time)),
            None if is_lagging => Err(code::OFFSET_NOT_AVAILABLE),
            None => Ok((-1, -1)),
        }
    }

    pub(crate) fn epoch_at(&self, offset: i64) -> i32 {
        let at = self.epochs.partition_point(|(_, start)| *start <= offset);
        self.epochs[at.saturating_sub(1)].0
    }
}

pub(crate) struct Broker {
    pub(crate) up: bool,
    /// Answers nothing before this time.
    pub(crate) stalled_until: u64,
}

pub(crate) struct Cluster {
    pub(crate) brokers: Vec<Broker>,
    pub(crate) logs: Vec<Log>,
    /// Its clocks against true time.
    pub(crate) skew_ms: i64,
    pub(crate) coordinator: Coordinator,
    pub(crate) transactions: TxnCoordinator,
}

impl Cluster {
    pub(crate) fn new(partitions: i32, rng: &mut Rng) -> Cluster {
        let epoch = rng.up_to(5) as i32;
        // A log that has been used before starts anywhere.
        let logs = (0..partitions).map(|p| {
            let start = if rng.chance(500) { rng.up_to(20) as i64 } else { 0 };
            Log::new(p % BROKERS, epoch, start)
        });
        let logs = logs.collect();
        let brokers = (0..BROKERS).map(|_| Broker { up: true, stalled_until: 0 }).collect();
        let skew_ms = rng.pick(&[0, 0, -400, 250]);
        let (coordinator, transactions) = (Coordinator::default(), TxnCoordinator::default());
        Cluster { brokers, logs, skew_ms, coordinator, transactions }
    }

    pub(crate) fn is_up(&self, broker: i32) -> bool {
        self.brokers[broker as usize].up
    }

    pub(crate) fn is_reachable(&self) -> bool {
        self.brokers.iter().any(|b| b.up)
    }
}
