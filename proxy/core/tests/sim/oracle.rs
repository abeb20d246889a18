//! What must hold after every step. It is judged by the model's logs and by what clients were told, and knows nothing of
//! how the core numbers or routes anything: its virtual log is the owners' logs, one behind the other.

use crate::asker::{EARLIEST, LATEST, MAX_TIMESTAMP};
use crate::cluster::{Batch, Cluster};
use crate::txn_oracle::Txns;
use crate::wire::{COORDINATOR, Head, Kind, Mark};
use crossover_core::ids::ClusterSide;
use std::collections::BTreeMap;

/// A run of one cluster's log that is part of the virtual log.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run {
    pub(crate) side: ClusterSide,
    pub(crate) native: i64,
    pub(crate) first: i64,
    /// Exclusive, native. `None`: the side owns the partition.
    pub(crate) end: Option<i64>,
}

impl Run {
    /// Exclusive.
    fn virtual_end(&self, logs_end: i64) -> i64 {
        self.first + self.end.unwrap_or(logs_end) - self.native
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Written {
    /// Where it is: side and native base.
    at: Option<(ClusterSide, i64)>,
    /// The virtual offset a client was told, −1 where it was told none.
    acked: Option<i64>,
    /// An election took it away.
    lost: bool,
    /// A broker refused it once.
    refused: bool,
    /// A broker answered it with an error.
    erred: bool,
    /// When it came to the proxy for the first time.
    came: u64,
}

/// What a producer may rely on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Promise {
    /// Once, in order, without a gap; acknowledged is kept.
    Exactly,
    /// At most once, what is acknowledged in order, and kept where all replicas had it.
    AtMostOnce { all: bool },
    /// Once and in order; what a transaction has left out is left out.
    Transaction,
}

struct Writer {
    promise: Promise,
    batches: Vec<Written>,
    /// The highest number in the log, −1 for none.
    last: i64,
}

/// What a group has committed of a partition.
#[derive(Default)]
pub(crate) struct Committed {
    /// What it was told is committed, last.
    told: Option<(i64, String)>,
    /// What it was told is committed, before.
    former: Vec<(i64, String)>,
    /// What may be committed, now or later: nobody was told.
    unknown: Vec<(i64, String)>,
    /// When `told` was: how many eras there were, and which of the proxy's processes it was.
    pub(crate) eras: usize,
    pub(crate) incarnation: u32,
}

pub(crate) struct Oracle {
    /// By consumer and partition.
    commits: BTreeMap<(usize, i32), Committed>,
    runs: Vec<Vec<Run>>,
    writers: Vec<Writer>,
    /// Nothing below shows any more, by partition.
    pub(crate) floors: Vec<i64>,
    pub(crate) txns: Txns,
}

/// What held of a partition when a client asked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Before {
    first: i64,
    committed: i64,
    /// Native log starts, by side.
    starts: [i64; 2],
    floor: i64,
    /// The question is about what is decided only.
    stable: bool,
}

/// A batch in the virtual log, without its records that are deleted.
struct Shown {
    side: ClusterSide,
    native: i64,
    first: i64,
    end: i64,
    time: i64,
}

pub(crate) type Judged = Result<(), String>;

impl Oracle {
    pub(crate) fn new(partitions: i32) -> Oracle {
        let run = Run { side: ClusterSide::Source, native: 0, first: 0, end: None };
        let count = partitions as usize;
        let runs = vec![vec![run]; count];
        let (commits, writers, floors) = (BTreeMap::new(), Vec::new(), vec![0; count]);
        Oracle { commits, runs, writers, floors, txns: Txns::default() }
    }

    /// A producer of one partition; its number goes into the marks of its batches.
    pub(crate) fn add_writer(&mut self, promise: Promise) -> u32 {
        self.writers.push(Writer { promise, batches: Vec::new(), last: -1 });
        (self.writers.len() - 1) as u32
    }

    fn written(&mut self, mark: Mark) -> &mut Written {
        let writer = &mut self.writers[mark.producer as usize];
        let index = mark.number as usize;
        if writer.batches.len() <= index {
            writer.batches.resize(index + 1, Written::default());
        }
        &mut writer.batches[index]
    }

    pub(crate) fn owner(&self, partition: i32) -> Run {
        let runs = &self.runs[partition as usize];
        runs[runs.len() - 1]
    }

    pub(crate) fn eras(&self, partition: i32) -> usize {
        self.runs[partition as usize].len()
    }

    /// Whether an era after the first starts at `position`.
    pub(crate) fn starts_era(&self, partition: i32, position: i64) -> bool {
        self.runs[partition as usize].iter().skip(1).any(|run| run.first == position)
    }

    /// A cluster has appended a batch.
    pub(crate) fn appended(&mut self, side: ClusterSide, partition: i32, batch: &Batch) -> Judged {
        let mark = batch.mark;
        let owner = self.owner(partition);
        if owner.side != side {
            return Err(format!("{mark:?} was appended at the {side}, the {} owns {partition}", owner.side));
        }
        let writer = &mut self.writers[mark.producer as usize];
        let (number, last) = (i64::from(mark.number), writer.last);
        let is_next = match writer.promise {
            Promise::Exactly => number == last + 1,
            Promise::AtMostOnce { .. } => true,
            Promise::Transaction => number > last,
        };
        if !is_next {
            return Err(format!("{mark:?} was appended behind {last}: twice, or out of order"));
        }
        self.txns.may_append(mark)?;
        let writer = &mut self.writers[mark.producer as usize];
        writer.last = last.max(number);
        let written = self.written(mark);
        if written.at.is_some() {
            return Err(format!("{mark:?} was appended twice"));
        }
        written.at = Some((side, batch.base));
        Ok(())
    }

    /// Whether some log has a batch.
    pub(crate) fn is_written(&self, mark: Mark) -> bool {
        let batches = &self.writers[mark.producer as usize].batches;
        batches.get(mark.number as usize).is_some_and(|written| written.at.is_some())
    }

    /// A broker has not taken a batch.
    pub(crate) fn refused(&mut self, mark: Mark) {
        self.written(mark).refused = true;
    }

    /// A broker has answered a batch with an error.
    pub(crate) fn errs(&mut self, mark: Mark) {
        self.written(mark).erred = true;
    }

    /// Whether a broker has answered a batch with an error.
    pub(crate) fn has_erred(&mut self, mark: Mark) -> bool {
        self.written(mark).erred
    }

    /// An election took batches away that were not on all replicas.
    pub(crate) fn truncated(&mut self, side: ClusterSide, partition: i32, lost: &[Batch]) -> Judged {
        for batch in lost {
            let mark = batch.mark;
            if mark.producer == COORDINATOR {
                self.txns.undo(side, partition, mark);
                continue;
            }
            let writer = &mut self.writers[mark.producer as usize];
            let written = &mut writer.batches[mark.number as usize];
            written.at = None;
            written.lost = true;
            if written.acked.is_some() && writer.promise != (Promise::AtMostOnce { all: false }) {
                return Err(format!("the model lost {mark:?}, which was acknowledged"));
            }
            let placed = writer.batches.iter().rposition(|w| w.at.is_some());
            writer.last = placed.map_or(-1, |at| at as i64);
        }
        Ok(())
    }

    /// A producer was told that its batch is in the log.
    pub(crate) fn acked(&mut self, partition: i32, mark: Mark, base: i64, clusters: &[Cluster; 2]) -> Judged {
        let written = *self.written(mark);
        let promise = self.writers[mark.producer as usize].promise;
        let Some((side, native)) = written.at else {
            if promise == (Promise::AtMostOnce { all: false }) && written.lost {
                return Ok(());
            }
            return Err(format!("{mark:?} was acknowledged and is in no log"));
        };
        let log = &clusters[side.index()].logs[partition as usize];
        if promise != (Promise::AtMostOnce { all: false }) && native >= log.committed {
            return Err(format!("{mark:?} was acknowledged before all replicas had it"));
        }
        let shown = self.to_virtual(partition, side, native);
        if base >= 0 && shown != Some(base) {
            return Err(format!("{mark:?} was acknowledged at {base}, it is at {shown:?}"));
        }
        self.written(mark).acked = Some(base);
        Ok(())
    }

    fn to_virtual(&self, partition: i32, side: ClusterSide, native: i64) -> Option<i64> {
        let runs = self.runs[partition as usize].iter().filter(|r| r.side == side);
        let mut inside = runs.filter(|r| native >= r.native && r.end.is_none_or(|end| native < end));
        inside.next().map(|run| run.first + native - run.native)
    }

    /// Where a virtual position lies. Of runs that start together the last: the others are empty.
    fn run_of(&self, partition: i32, position: i64) -> Run {
        let runs = &self.runs[partition as usize];
        let after = runs.partition_point(|run| run.first <= position);
        runs[after.saturating_sub(1)]
    }

    /// The first position at or behind `position` that holds a record, as the logs are now.
    pub(crate) fn next_record(&self, partition: i32, position: i64, clusters: &[Cluster; 2]) -> i64 {
        let mut position = position.max(self.floors[partition as usize]);
        loop {
            let run = self.run_of(partition, position);
            let log = &clusters[run.side.index()].logs[partition as usize];
            let native = (position - run.first + run.native).max(log.start);
            match run.end {
                Some(end) if native >= end => position = run.virtual_end(end),
                _ => return native - run.native + run.first,
            }
        }
    }

    /// Exclusive.
    pub(crate) fn end(&self, partition: i32, clusters: &[Cluster; 2]) -> i64 {
        let run = self.owner(partition);
        run.virtual_end(clusters[run.side.index()].logs[partition as usize].end)
    }

    /// What every replica of the owner has. Exclusive.
    pub(crate) fn committed(&self, partition: i32, clusters: &[Cluster; 2]) -> i64 {
        let run = self.owner(partition);
        run.virtual_end(clusters[run.side.index()].logs[partition as usize].committed)
    }

    /// What is decided, of what every replica of the owner has. Exclusive.
    pub(crate) fn stable(&self, partition: i32, clusters: &[Cluster; 2]) -> i64 {
        let run = self.owner(partition);
        let log = &clusters[run.side.index()].logs[partition as usize];
        run.virtual_end(log.unstable.first(log.committed).max(log.start)).max(run.first)
    }

    /// A consumer at `position` was given a batch.
    pub(crate) fn read(&self, partition: i32, position: i64, head: &Head, clusters: &[Cluster; 2]) -> Judged {
        let end = head.base + i64::from(head.count);
        if end <= position {
            return Err(format!("at {position} a batch of {}..{end} was read", head.base));
        }
        let run = self.run_of(partition, head.base);
        let native = head.base - run.first + run.native;
        let log = &clusters[run.side.index()].logs[partition as usize];
        let Some(batch) = log.batch_at(native).filter(|b| b.base == native) else {
            return Err(format!("{:?} was read at {}, where no batch begins", head.mark, head.base));
        };
        if batch.mark != head.mark || batch.count != head.count || !head.sound {
            return Err(format!("{:?} was read at {}, {:?} is there", head.mark, head.base, batch.mark));
        }
        if run.end.is_some_and(|end| batch.end() > end) || batch.end() > log.committed {
            return Err(format!("{:?} was read behind the end of what is committed", head.mark));
        }
        let hole = self.next_record(partition, position, clusters);
        if head.base > position && head.base > hole {
            return Err(format!("at {position} the next record is {hole}, {} was read", head.base));
        }
        Ok(())
    }

    pub(crate) fn before(&self, partition: i32, stable: bool, clusters: &[Cluster; 2]) -> Before {
        let starts = ClusterSide::BOTH.map(|side| clusters[side.index()].logs[partition as usize].start);
        let (first, floor) = (self.next_record(partition, 0, clusters), self.floors[partition as usize]);
        let committed = match stable {
            true => self.stable(partition, clusters),
            false => self.committed(partition, clusters),
        };
        Before { first, committed, starts, floor, stable }
    }

    /// The batches of the virtual log that the logs begin with `starts`, above the floor, in order.
    fn shown<'a>(
        &'a self,
        partition: i32,
        (starts, floor): ([i64; 2], i64),
        clusters: &'a [Cluster; 2],
    ) -> impl Iterator<Item = Shown> + 'a {
        self.runs[partition as usize].iter().flat_map(move |run| {
            let start = starts[run.side.index()];
            let log = &clusters[run.side.index()].logs[partition as usize];
            let inside = |b: &&Batch| b.base >= run.native && run.end.is_none_or(|end| b.base < end);
            log.batches.iter().filter(inside).filter_map(move |batch| {
                let first = (run.first + batch.base.max(start) - run.native).max(floor);
                let (native, end) = (first - run.first + run.native, run.first + batch.end() - run.native);
                (first < end).then_some(Shown { side: run.side, native, first, end, time: batch.time })
            })
        })
    }

    /// When the record at a position was written.
    pub(crate) fn time_at(&self, partition: i32, position: i64, clusters: &[Cluster; 2]) -> Option<i64> {
        let mut all = self.shown(partition, ([0; 2], 0), clusters);
        all.find(|batch| batch.end > position).map(|batch| batch.time)
    }

    /// A client asked for a time, or one of the positions that have a number, and was told an offset and its time.
    pub(crate) fn listed(
        &self,
        partition: i32,
        timestamp: i64,
        before: &Before,
        told: (i64, i64),
        clusters: &[Cluster; 2],
    ) -> Judged {
        let now = self.before(partition, before.stable, clusters);
        let between = |what: &str, from: i64, to: i64| match (from..=to).contains(&told.0) {
            true => Ok(()),
            false => Err(format!("the {what} of {partition} is told as {}, it was {from} to {to}", told.0)),
        };
        match timestamp {
            EARLIEST => between("start", before.first, now.first),
            LATEST => between("end", before.committed, now.committed),
            _ => self.listed_record(partition, timestamp, before, told, clusters),
        }
    }

    /// What was there from the question to the answer must have been found; what was found must have been there in
    /// between.
    fn listed_record(
        &self,
        partition: i32,
        timestamp: i64,
        before: &Before,
        (offset, time): (i64, i64),
        clusters: &[Cluster; 2],
    ) -> Judged {
        let now = self.before(partition, before.stable, clusters);
        let lasting =
            self.shown(partition, (now.starts, now.floor), clusters).filter(|b| b.first < before.committed);
        let newest = timestamp == MAX_TIMESTAMP;
        let wanted = match newest {
            // The first of those that share the time.
            true => lasting.max_by_key(|b| (b.time, std::cmp::Reverse(b.first))),
            false => lasting.into_iter().find(|b| b.time >= timestamp),
        };
        // A log that still has what is hidden tells of that, and not of what comes behind it: a time is then answered with
        // the floor, which reads again rather than skips, and another log's newest record with its own.
        let least = if newest { wanted.as_ref().map_or(0, |b| b.time) } else { timestamp };
        let mut hidden = self.shown(partition, (before.starts, 0), clusters);
        let is_hidden = hidden.any(|b| b.first < now.floor && b.time >= least);
        if is_hidden && (newest || (before.floor..=now.floor).contains(&offset)) {
            return Ok(());
        }
        let wrong = |why: String| Err(format!("{timestamp} of {partition} is told to be at {offset}: {why}"));
        if offset < 0 {
            return wanted.map_or(Ok(()), |b| wrong(format!("{} was written at {}", b.first, b.time)));
        }
        let mut once = self.shown(partition, (before.starts, before.floor), clusters);
        let Some(found) = once.find(|b| (b.first..b.end).contains(&offset)) else {
            return wrong("no record is there".to_owned());
        };
        let native = found.native + offset - found.first;
        let log = &clusters[found.side.index()].logs[partition as usize];
        if offset >= now.committed || native < before.starts[found.side.index()] || native >= log.end {
            return wrong("not every replica has it".to_owned());
        }
        if found.time != time || found.time < timestamp {
            return wrong(format!("it was written at {}, {time} is told", found.time));
        }
        match wanted {
            Some(b) if newest && (b.time, -b.first) > (time, -offset) => {
                wrong(format!("{} is newer, or the first of its time", b.first))
            }
            Some(b) if !newest && b.first < offset => wrong(format!("{} comes first", b.first)),
            _ => Ok(()),
        }
    }

    /// A consumer has committed. `is_told`: it knows that the coordinator has it.
    pub(crate) fn committed_position(
        &mut self,
        consumer: usize,
        partition: i32,
        commit: (i64, String),
        is_told: bool,
        incarnation: u32,
    ) {
        let eras = self.eras(partition);
        let known = self.commits.entry((consumer, partition)).or_default();
        if is_told {
            known.former.extend(known.told.replace(commit));
            (known.eras, known.incarnation) = (eras, incarnation);
        } else {
            known.unknown.push(commit);
        }
    }

    /// A commit has come to the coordinator on a connection that is lost. If the proxy has sent it again, and it was told,
    /// it is committed once more behind later ones, as without a proxy for clients that repeat commits.
    pub(crate) fn committed_late(&mut self, consumer: usize, partition: i32) {
        let known = self.commits.entry((consumer, partition)).or_default();
        known.unknown.extend(known.former.iter().chain(&known.told).cloned());
    }

    /// What a consumer knows to be committed.
    pub(crate) fn commit(&self, consumer: usize, partition: i32) -> Option<&Committed> {
        self.commits.get(&(consumer, partition)).filter(|known| known.told.is_some())
    }

    /// A consumer was told what it has committed: exactly that, in whatever era it was.
    pub(crate) fn fetched_position(&self, consumer: usize, partition: i32, told: &(i64, String)) -> Judged {
        let known = self.commits.get(&(consumer, partition));
        let last = known.and_then(|known| known.told.as_ref());
        let unknown = known.map_or(&[][..], |known| &known.unknown[..]);
        if (last.is_none() && told.0 == -1) || last == Some(told) || unknown.contains(told) {
            return Ok(());
        }
        Err(format!(
            "consumer {consumer} is told {told:?} of {partition}, it has committed {last:?}, maybe {unknown:?}"
        ))
    }

    /// A broker has deleted records below its log start, which was at `was`: only what clients wanted deleted, and that
    /// is hidden for good.
    pub(crate) fn deleted(
        &self,
        side: ClusterSide,
        partition: i32,
        was: i64,
        clusters: &[Cluster; 2],
    ) -> Judged {
        let log = &clusters[side.index()].logs[partition as usize];
        let floor = self.floors[partition as usize];
        for run in self.runs[partition as usize].iter().filter(|run| run.side == side) {
            let (from, to) = (was.max(run.native), log.start.min(run.end.unwrap_or(log.end)));
            let last = run.first + to - 1 - run.native;
            if from < to && last >= floor {
                return Err(format!("{partition} was deleted up to {last}, the floor is {floor}"));
            }
        }
        Ok(())
    }

    /// A client was told that everything below `up_to` is deleted, and where the log starts.
    pub(crate) fn is_deleted(
        &self,
        partition: i32,
        up_to: i64,
        told: i64,
        clusters: &[Cluster; 2],
    ) -> Judged {
        let first = self.next_record(partition, 0, clusters);
        if told < up_to || told > first {
            return Err(format!(
                "{partition} is deleted up to {up_to}, it starts at {first}, {told} is told"
            ));
        }
        for run in self.runs[partition as usize].iter().filter(|run| run.first < up_to) {
            let log = &clusters[run.side.index()].logs[partition as usize];
            let image = run.native + up_to - run.first;
            if log.start < run.end.map_or(image, |end| image.min(end)) {
                return Err(format!("{partition} is deleted up to {up_to}, the {} has more", run.side));
            }
        }
        Ok(())
    }

    /// A consumer was told that its position is out of range.
    pub(crate) fn out_of_range(&self, partition: i32, position: i64, clusters: &[Cluster; 2]) -> Judged {
        let (first, end) = (self.next_record(partition, 0, clusters), self.end(partition, clusters));
        if position >= first && position <= end {
            return Err(format!("{position} of {first}..{end} was called out of range"));
        }
        Ok(())
    }

    /// SEAL has become durable: `old_end` and `new_start` are where it lets the eras meet.
    pub(crate) fn sealed(
        &mut self,
        partition: i32,
        to: ClusterSide,
        meeting: (i64, i64),
        clusters: &[Cluster; 2],
    ) -> Judged {
        let owner = self.owner(partition);
        let old_end = clusters[owner.side.index()].logs[partition as usize].end;
        let new_start = clusters[to.index()].logs[partition as usize].end;
        if owner.side == to {
            return Err(format!("{partition} was sealed to the {to}, which owns it"));
        }
        if (old_end, new_start) != meeting {
            return Err(format!(
                "{partition} was sealed at {meeting:?}, the logs end at {old_end}, {new_start}"
            ));
        }
        let first = owner.virtual_end(old_end);
        let runs = &mut self.runs[partition as usize];
        if let Some(last) = runs.last_mut() {
            last.end = Some(old_end);
        }
        runs.push(Run { side: to, native: new_start, first, end: None });
        Ok(())
    }

    /// A producer has sent a batch; it comes to the proxy at `at`.
    pub(crate) fn sent(&mut self, mark: Mark, at: u64) {
        let written = self.written(mark);
        if written.came == 0 {
            written.came = at;
        }
    }

    /// Whether the order of two batches is promised to hold in the log, for those that it does not hold for.
    fn may_swap(&self, first: Mark, second: Mark) -> bool {
        let writer = &self.writers[first.producer as usize];
        let of = |mark: Mark| writer.batches[mark.number as usize];
        let (first, second) = (of(first), of(second));
        // Of a batch that was not acknowledged nobody knows whether it is behind or before later ones; one that was
        // refused and sent again may stand behind those that were under way with it.
        let is_told = |w: Written| w.acked.is_some() && !w.refused;
        matches!(writer.promise, Promise::AtMostOnce { .. })
            && (!is_told(first) || !is_told(second) || first.came <= second.came)
    }

    /// Everything in the virtual log stands in order.
    pub(crate) fn whole(&self, partition: i32, clusters: &[Cluster; 2]) -> Judged {
        let mut before: Vec<Vec<Mark>> = vec![Vec::new(); self.writers.len()];
        for run in &self.runs[partition as usize] {
            let log = &clusters[run.side.index()].logs[partition as usize];
            let inside = |b: &&Batch| b.base >= run.native && run.end.is_none_or(|end| b.base < end);
            let records = log.batches.iter().filter(|b| !matches!(b.kind, Kind::Marker { .. }));
            for batch in records.filter(inside) {
                let mark = batch.mark;
                let before = &mut before[mark.producer as usize];
                let later = before.iter().find(|m| m.number >= mark.number && !self.may_swap(**m, mark));
                if let Some(later) = later {
                    return Err(format!("{mark:?} stands behind {later:?} in the virtual log"));
                }
                before.push(mark);
            }
        }
        Ok(())
    }
}
