//! What must survive: owners, timelines, carry, group homes, ports, the intent of a flip, the ledger. One `redb` file in
//! the state directory; a call returns when its transaction is durable. A second process on the directory is refused.

use crate::control::writers::{Acl, Fences};
use anyhow::{Context, bail};
use crossover_admin_api::model::LedgerEntry;
use crossover_core::ids::{ClusterSide, TopicId, VirtualOffset};
use crossover_core::producer::carry::Carry;
use crossover_core::producer::transaction::{Identity, TransactionRoute, TransactionTable};
use crossover_core::route::LinkMode;
use crossover_core::timeline::Timeline;
use fs4::fs_std::FileExt;
use redb::{Database, ReadableTable, TableDefinition, WriteTransaction};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

const META: TableDefinition<'_, &str, &str> = TableDefinition::new("meta");
const TOPICS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("topics");
const CARRY: TableDefinition<'_, (&str, i32), &[u8]> = TableDefinition::new("carry");
const GROUPS: TableDefinition<'_, &str, &str> = TableDefinition::new("groups");
const OFFSET_HOMES: TableDefinition<'_, &str, &str> = TableDefinition::new("offset_homes");
const PORTS: TableDefinition<'_, (u8, i32), u16> = TableDefinition::new("ports");
const TRANSACTIONS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("transactions");
/// (topic, partition) → (timeline id, floor): beside the timelines, so that a SEAL never lowers one (RULES R25).
const FLOORS: TableDefinition<'_, (&str, i32), (u64, i64)> = TableDefinition::new("floors");
/// (side, topic as it is named there) → entries of its access control list that keep writers out.
const FENCES: TableDefinition<'_, (u8, &str), &[u8]> = TableDefinition::new("fences");
const LEDGER: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("ledger");

const FORMAT: &str = "1";
/// What of `meta` is part of the copy.
const META_COPIED: [&str; 4] = ["format", "revision", "source_cluster", "target_cluster"];
/// Entries of the ledger that are part of the copy: the newest.
const LEDGER_COPIED_MAX: usize = 1_000;
/// Entries of the ledger that one read gives at most.
const LEDGER_READ_MAX: usize = 1_000;

/// A topic that was flipped at least once.
#[derive(Clone, Debug)]
pub(crate) struct StoredTopic {
    pub(crate) owner: ClusterSide,
    pub(crate) mode: LinkMode,
    pub(crate) physical: [Arc<str>; 2],
    pub(crate) virtual_id: TopicId,
    pub(crate) native_ids: [TopicId; 2],
    pub(crate) timelines: Vec<Arc<Timeline>>,
}

/// The form in the file.
#[derive(Serialize, Deserialize)]
struct TopicRecord {
    owner: String,
    mode: String,
    physical: [String; 2],
    virtual_id: [u8; 16],
    native_ids: [[u8; 16]; 2],
    timelines: Vec<Vec<u8>>,
}

/// The form in the file. Identities are id and epoch.
#[derive(Serialize, Deserialize)]
struct TransactionRecord {
    home: String,
    aliases: [u32; 2],
    client: (i64, i16),
    native: (i64, i16),
    #[serde(default)]
    earlier: [Vec<(i64, i16)>; 2],
}

/// Below which virtual offset nothing of a partition shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Floor {
    /// It says nothing of a topic that was created again.
    pub(crate) timeline_id: u64,
    pub(crate) offset: VirtualOffset,
}

/// Floors by topic and partition.
pub(crate) type Floors = BTreeMap<(Arc<str>, i32), Floor>;

/// What a start finds.
#[derive(Default)]
pub(crate) struct Restored {
    pub(crate) cluster_ids: [Option<String>; 2],
    pub(crate) revision: u64,
    pub(crate) topics: BTreeMap<Arc<str>, StoredTopic>,
    pub(crate) carry: Vec<(Arc<str>, i32, Carry)>,
    pub(crate) floors: Floors,
    pub(crate) homes: BTreeMap<Arc<str>, ClusterSide>,
    pub(crate) offset_homes: BTreeMap<Arc<str>, ClusterSide>,
    pub(crate) transactions: TransactionTable,
    pub(crate) ports: BTreeMap<(ClusterSide, i32), u16>,
    pub(crate) fences: Fences,
    /// The operation whose intent was written and that was neither sealed nor aborted.
    pub(crate) intent: Option<String>,
    pub(crate) ledger_next: u64,
    /// The process before did not end by itself.
    pub(crate) unclean: bool,
}

/// Rows of the store under names that say which table they are of; the form of the copy in the clusters (RULES R31).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Rows(pub(crate) BTreeMap<String, Vec<u8>>);

impl Rows {
    /// Whether anything was ever moved.
    pub(crate) fn is_moved(&self) -> bool {
        self.revision() > 0
    }

    /// The clusters it was written for.
    pub(crate) fn cluster_ids(&self) -> [Option<String>; 2] {
        ClusterSide::BOTH.map(|side| {
            let id = self.0.get(&format!("meta/{}", cluster_key(side)))?;
            String::from_utf8(id.clone()).ok()
        })
    }

    pub(crate) fn revision(&self) -> u64 {
        let text = self.0.get("meta/revision").and_then(|value| std::str::from_utf8(value).ok());
        text.and_then(|text| text.parse().ok()).unwrap_or(0)
    }
}

/// Why the cluster that was found on a side is not the one that a state was written for (RULES R31).
pub(crate) fn foreign(bound: &[Option<String>; 2], side: ClusterSide, found: &str) -> Option<String> {
    let known = bound[side.index()].as_deref().filter(|known| *known != found)?;
    let hint = match bound[side.other().index()].as_deref() == Some(found) {
        true => "; source and target are swapped, or both are one cluster",
        false => "",
    };
    Some(format!("the {side} is cluster {found}, the state belongs to {known}{hint}"))
}

/// What to do about a [`foreign`] cluster.
pub(crate) const FOREIGN_REMEDY: &str = "point the configuration at the clusters this state belongs to; for another pair name another state.directory, and keep this one";

/// Another process holds the lock of the directory.
#[derive(Debug, thiserror::Error)]
#[error("state.directory {0} is in use by another crossover process; stop it, or name another directory")]
pub(crate) struct InUse(String);

/// What one flip makes durable, all or nothing.
pub(crate) struct Seal {
    pub(crate) revision: u64,
    pub(crate) topics: Vec<(Arc<str>, StoredTopic)>,
    pub(crate) carry: Vec<(Arc<str>, i32, Carry)>,
    pub(crate) ledger: Vec<LedgerEntry>,
}

/// A commit failed: what it was to write may be in the file or not, and only a start can tell. Any other error of a write
/// says that nothing of it is there.
#[derive(Debug, thiserror::Error)]
#[error("it is not known whether it is stored: {0}")]
pub(crate) struct Uncertain(redb::CommitError);

fn commit(write: WriteTransaction) -> anyhow::Result<()> {
    Ok(write.commit().map_err(Uncertain)?)
}

pub(crate) struct Store {
    database: Database,
    _lock: File,
}

impl Store {
    /// Opens or creates the state in `directory`.
    ///
    /// # Errors
    /// Another process has it, it cannot be read or written, or it is of another format.
    pub(crate) fn open(directory: &Path) -> anyhow::Result<Store> {
        let shown = directory.display();
        std::fs::create_dir_all(directory).with_context(|| {
            format!("state.directory {shown}: cannot be created; name a directory that crossover may write")
        })?;
        let lock = File::create(directory.join("lock")).with_context(|| {
            format!(
                "state.directory {shown}: not writable; let crossover write there, or name another directory"
            )
        })?;
        if !FileExt::try_lock_exclusive(&lock).unwrap_or(false) {
            bail!(InUse(shown.to_string()));
        }
        let database = Database::create(directory.join("state.redb"))
            .with_context(|| format!("state.directory {shown}: state.redb cannot be opened"))?;
        Store { database, _lock: lock }.prepared().with_context(|| format!("state.directory {shown}"))
    }

    /// With all tables, of this program's format.
    fn prepared(self) -> anyhow::Result<Store> {
        let write = self.database.begin_write()?;
        {
            let mut meta = write.open_table(META)?;
            let format = meta.get("format")?.map(|v| v.value().to_owned());
            match format.as_deref() {
                None => {
                    meta.insert("format", FORMAT)?;
                }
                Some(FORMAT) => {}
                Some(other) => bail!(
                    "it has format {other}, this program reads format {FORMAT}; use the program that wrote it"
                ),
            }
            write.open_table(TOPICS)?;
            write.open_table(CARRY)?;
            write.open_table(GROUPS)?;
            write.open_table(OFFSET_HOMES)?;
            write.open_table(TRANSACTIONS)?;
            write.open_table(PORTS)?;
            write.open_table(LEDGER)?;
            write.open_table(FLOORS)?;
            write.open_table(FENCES)?;
        }
        commit(write)?;
        Ok(self)
    }

    /// Reads everything.
    ///
    /// # Errors
    /// The file is damaged.
    pub(crate) fn restore(&self) -> anyhow::Result<Restored> {
        let read = self.database.begin_read()?;
        let meta = read.open_table(META)?;
        let text = |name: &str| -> anyhow::Result<Option<String>> {
            Ok(meta.get(name)?.map(|v| v.value().to_owned()))
        };
        let mut out = Restored {
            cluster_ids: [text("source_cluster")?, text("target_cluster")?],
            revision: text("revision")?.and_then(|r| r.parse().ok()).unwrap_or(0),
            intent: text("intent")?,
            unclean: text("running")?.is_some(),
            ..Restored::default()
        };
        for row in read.open_table(TOPICS)?.iter()? {
            let (name, record) = row?;
            let record: TopicRecord = serde_json::from_slice(record.value())?;
            out.topics.insert(
                Arc::from(name.value()),
                record.read().with_context(|| format!("topic {}", name.value()))?,
            );
        }
        for row in read.open_table(CARRY)?.iter()? {
            let (at, bytes) = row?;
            let (topic, partition) = at.value();
            out.carry.push((Arc::from(topic), partition, Carry::decode(bytes.value())?));
        }
        for row in read.open_table(FLOORS)?.iter()? {
            let (at, floor) = row?;
            let ((topic, partition), (timeline_id, offset)) = (at.value(), floor.value());
            let floor = Floor { timeline_id, offset: VirtualOffset(offset) };
            out.floors.insert((Arc::from(topic), partition), floor);
        }
        for (table, homes) in [(GROUPS, &mut out.homes), (OFFSET_HOMES, &mut out.offset_homes)] {
            for row in read.open_table(table)?.iter()? {
                let (group, side) = row?;
                let side = ClusterSide::parse(side.value());
                let side = side.context("a group's home is neither source nor target")?;
                homes.insert(Arc::from(group.value()), side);
            }
        }
        for row in read.open_table(TRANSACTIONS)?.iter()? {
            let (id, record) = row?;
            let record: TransactionRecord = serde_json::from_slice(record.value())?;
            let route = record.read().with_context(|| format!("transactional id {}", id.value()))?;
            out.transactions.0.insert(Arc::from(id.value()), route);
        }
        for row in read.open_table(PORTS)?.iter()? {
            let (node, port) = row?;
            let (side, broker) = node.value();
            out.ports.insert((ClusterSide::BOTH[usize::from(side.min(1))], broker), port.value());
        }
        for row in read.open_table(FENCES)?.iter()? {
            let (place, acls) = row?;
            let (side, topic) = place.value();
            let place = (ClusterSide::BOTH[usize::from(side.min(1))], Arc::from(topic));
            out.fences.insert(place, serde_json::from_slice(acls.value())?);
        }
        let last = read.open_table(LEDGER)?.last()?.map(|(sequence, _)| sequence.value());
        out.ledger_next = last.map_or(1, |s| s + 1);
        Ok(out)
    }

    /// Binds the store to a cluster (RULES R31).
    pub(crate) fn bind(&self, side: ClusterSide, cluster_id: &str) -> anyhow::Result<()> {
        self.put_meta(cluster_key(side), Some(cluster_id))
    }

    /// Takes a binding back that nothing depends on yet.
    pub(crate) fn unbind(&self, side: ClusterSide) -> anyhow::Result<()> {
        self.put_meta(cluster_key(side), None)
    }

    pub(crate) fn put_ports(&self, ports: &[((ClusterSide, i32), u16)]) -> anyhow::Result<()> {
        let write = self.database.begin_write()?;
        {
            let mut table = write.open_table(PORTS)?;
            for ((side, broker), port) in ports {
                table.insert((u8::from(*side == ClusterSide::Target), *broker), *port)?;
            }
        }
        commit(write)
    }

    /// Whether the process runs; what a start finds set was left by one that was killed.
    pub(crate) fn put_running(&self, running: bool) -> anyhow::Result<()> {
        self.put_meta("running", running.then_some("yes"))
    }

    /// The first durable write of a flip; `None` takes it back.
    pub(crate) fn put_intent(&self, operation: Option<&str>) -> anyhow::Result<()> {
        self.put_meta("intent", operation)
    }

    /// The second durable write of a flip: the commit point. It ends the intent.
    ///
    /// # Errors
    /// It is not sealed, or, if [`Uncertain`], a restart may find the seal all the same.
    pub(crate) fn seal(&self, seal: &Seal) -> anyhow::Result<()> {
        commit(self.prepare_seal(seal)?)
    }

    fn prepare_seal(&self, seal: &Seal) -> anyhow::Result<WriteTransaction> {
        let write = self.database.begin_write()?;
        {
            let mut meta = write.open_table(META)?;
            meta.insert("revision", seal.revision.to_string().as_str())?;
            meta.remove("intent")?;
            let mut topics = write.open_table(TOPICS)?;
            for (name, topic) in &seal.topics {
                topics.insert(&**name, serde_json::to_vec(&TopicRecord::of(topic))?.as_slice())?;
            }
            let mut carry = write.open_table(CARRY)?;
            for (topic, partition, content) in &seal.carry {
                carry.insert((&**topic, *partition), content.encode().as_slice())?;
            }
            let mut ledger = write.open_table(LEDGER)?;
            for entry in &seal.ledger {
                ledger.insert(entry.sequence, serde_json::to_vec(entry)?.as_slice())?;
            }
        }
        Ok(write)
    }

    /// Raises floors; one that is higher already stays.
    pub(crate) fn raise_floors(&self, floors: &Floors) -> anyhow::Result<()> {
        let write = self.database.begin_write()?;
        {
            let mut table = write.open_table(FLOORS)?;
            for ((topic, partition), floor) in floors {
                let at = (&**topic, *partition);
                let known = table.get(at)?.map(|known| known.value());
                let higher = known.is_some_and(|(id, at)| id == floor.timeline_id && at >= floor.offset.0);
                if !higher {
                    table.insert(at, (floor.timeline_id, floor.offset.0))?;
                }
            }
        }
        commit(write)
    }

    /// A topic has more partitions than it had.
    pub(crate) fn put_topic(
        &self,
        name: &str,
        topic: &StoredTopic,
        entry: &LedgerEntry,
    ) -> anyhow::Result<()> {
        let write = self.database.begin_write()?;
        {
            write
                .open_table(TOPICS)?
                .insert(name, serde_json::to_vec(&TopicRecord::of(topic))?.as_slice())?;
            write.open_table(LEDGER)?.insert(entry.sequence, serde_json::to_vec(entry)?.as_slice())?;
        }
        commit(write)
    }

    /// A topic was deleted: nothing of it stays.
    pub(crate) fn forget_topic(&self, name: &str, entry: &LedgerEntry) -> anyhow::Result<()> {
        let write = self.database.begin_write()?;
        {
            write.open_table(TOPICS)?.remove(name)?;
            let all = (name, i32::MIN)..=(name, i32::MAX);
            write.open_table(CARRY)?.retain_in(all.clone(), |_, _| false)?;
            write.open_table(FLOORS)?.retain_in(all, |_, _| false)?;
            write.open_table(LEDGER)?.insert(entry.sequence, serde_json::to_vec(entry)?.as_slice())?;
        }
        commit(write)
    }

    /// All that must outlive the store itself: everything but the older ledger and what concerns this process.
    pub(crate) fn rows(&self) -> anyhow::Result<Rows> {
        let read = self.database.begin_read()?;
        let mut rows = BTreeMap::new();
        let meta = read.open_table(META)?;
        for name in META_COPIED {
            if let Some(value) = meta.get(name)? {
                rows.insert(format!("meta/{name}"), value.value().as_bytes().to_vec());
            }
        }
        for row in read.open_table(TOPICS)?.iter()? {
            let (name, record) = row?;
            rows.insert(format!("topic/{}", name.value()), record.value().to_vec());
        }
        for row in read.open_table(CARRY)?.iter()? {
            let (at, bytes) = row?;
            let (topic, partition) = at.value();
            rows.insert(format!("carry/{partition}/{topic}"), bytes.value().to_vec());
        }
        for (table, name) in [(GROUPS, "group"), (OFFSET_HOMES, "offset-home")] {
            for row in read.open_table(table)?.iter()? {
                let (group, side) = row?;
                rows.insert(format!("{name}/{}", group.value()), side.value().as_bytes().to_vec());
            }
        }
        for row in read.open_table(TRANSACTIONS)?.iter()? {
            let (id, record) = row?;
            rows.insert(format!("transaction/{}", id.value()), record.value().to_vec());
        }
        for row in read.open_table(PORTS)?.iter()? {
            let (node, port) = row?;
            let (side, broker) = node.value();
            rows.insert(format!("port/{side}/{broker}"), port.value().to_string().into_bytes());
        }
        for row in read.open_table(FLOORS)?.iter()? {
            let (at, floor) = row?;
            let ((topic, partition), (id, offset)) = (at.value(), floor.value());
            rows.insert(format!("floor/{partition}/{topic}"), format!("{id} {offset}").into_bytes());
        }
        for row in read.open_table(FENCES)?.iter()? {
            let (place, acls) = row?;
            let (side, topic) = place.value();
            rows.insert(format!("fence/{side}/{topic}"), acls.value().to_vec());
        }
        for row in read.open_table(LEDGER)?.iter()?.rev().take(LEDGER_COPIED_MAX) {
            let (sequence, entry) = row?;
            rows.insert(format!("ledger/{:020}", sequence.value()), entry.value().to_vec());
        }
        Ok(Rows(rows))
    }

    /// Fills an empty store with rows.
    ///
    /// # Errors
    /// It is not empty, or a row cannot be understood; then it stays as it was.
    pub(crate) fn put_rows(&self, rows: &Rows) -> anyhow::Result<()> {
        anyhow::ensure!(
            !self.rows()?.is_moved(),
            "the state directory is not empty: move its content away first"
        );
        let write = self.database.begin_write()?;
        for (key, value) in &rows.0 {
            put_row(&write, key, value).with_context(|| format!("row {key}"))?;
        }
        // Whoever had the lost one did not end by itself: its produce may still be on its way (RULES R2).
        write.open_table(META)?.insert("running", "yes")?;
        commit(write)
    }

    pub(crate) fn put_home(
        &self,
        group: &str,
        side: ClusterSide,
        revision: u64,
        entry: &LedgerEntry,
    ) -> anyhow::Result<()> {
        let write = self.database.begin_write()?;
        {
            write.open_table(GROUPS)?.insert(group, side.as_str())?;
            write.open_table(META)?.insert("revision", revision.to_string().as_str())?;
            write.open_table(LEDGER)?.insert(entry.sequence, serde_json::to_vec(entry)?.as_slice())?;
        }
        commit(write)
    }

    /// The commits of a group have a home of their own; with `None`, not any more.
    pub(crate) fn put_offset_home(
        &self,
        group: &str,
        side: Option<ClusterSide>,
        entry: &LedgerEntry,
    ) -> anyhow::Result<()> {
        let write = self.database.begin_write()?;
        {
            let mut homes = write.open_table(OFFSET_HOMES)?;
            match side {
                Some(side) => drop(homes.insert(group, side.as_str())?),
                None => drop(homes.remove(group)?),
            }
            write.open_table(LEDGER)?.insert(entry.sequence, serde_json::to_vec(entry)?.as_slice())?;
        }
        commit(write)
    }

    /// A transactional id has another home.
    pub(crate) fn put_transaction(
        &self,
        id: &str,
        route: &TransactionRoute,
        entry: &LedgerEntry,
    ) -> anyhow::Result<()> {
        let write = self.database.begin_write()?;
        {
            let record = serde_json::to_vec(&TransactionRecord::of(route))?;
            write.open_table(TRANSACTIONS)?.insert(id, record.as_slice())?;
            write.open_table(LEDGER)?.insert(entry.sequence, serde_json::to_vec(entry)?.as_slice())?;
        }
        commit(write)
    }

    /// Writers are kept out of a topic on a side, by these entries; with `None`, not any more.
    pub(crate) fn put_fence(
        &self,
        side: ClusterSide,
        topic: &str,
        fence: Option<&[Acl]>,
    ) -> anyhow::Result<()> {
        let write = self.database.begin_write()?;
        {
            let mut fences = write.open_table(FENCES)?;
            let place = (u8::from(side == ClusterSide::Target), topic);
            match fence {
                Some(fence) => drop(fences.insert(place, serde_json::to_vec(fence)?.as_slice())?),
                None => drop(fences.remove(place)?),
            }
        }
        Ok(write.commit()?)
    }

    pub(crate) fn append(&self, entry: &LedgerEntry) -> anyhow::Result<()> {
        let write = self.database.begin_write()?;
        write.open_table(LEDGER)?.insert(entry.sequence, serde_json::to_vec(entry)?.as_slice())?;
        commit(write)
    }

    pub(crate) fn ledger(&self, since: u64) -> anyhow::Result<Vec<LedgerEntry>> {
        let read = self.database.begin_read()?;
        let table = read.open_table(LEDGER)?;
        let mut out = Vec::new();
        for row in table.range(since..)?.take(LEDGER_READ_MAX) {
            out.push(serde_json::from_slice(row?.1.value())?);
        }
        Ok(out)
    }

    /// The last entries of the ledger, at most so many, the oldest first.
    ///
    /// # Errors
    /// The file cannot be read, or holds what is no entry.
    pub(crate) fn ledger_tail(&self, count: usize) -> anyhow::Result<Vec<LedgerEntry>> {
        let read = self.database.begin_read()?;
        let table = read.open_table(LEDGER)?;
        let mut out = Vec::new();
        for row in table.iter()?.rev().take(count) {
            out.push(serde_json::from_slice(row?.1.value())?);
        }
        out.reverse();
        Ok(out)
    }

    fn put_meta(&self, name: &str, value: Option<&str>) -> anyhow::Result<()> {
        let write = self.database.begin_write()?;
        {
            let mut meta = write.open_table(META)?;
            match value {
                Some(value) => drop(meta.insert(name, value)?),
                None => drop(meta.remove(name)?),
            }
        }
        commit(write)
    }
}

fn cluster_key(side: ClusterSide) -> &'static str {
    match side {
        ClusterSide::Source => "source_cluster",
        ClusterSide::Target => "target_cluster",
    }
}

fn put_row(write: &WriteTransaction, key: &str, value: &[u8]) -> anyhow::Result<()> {
    let text = || Ok::<&str, anyhow::Error>(std::str::from_utf8(value)?);
    let (table, rest) = key.split_once('/').context("no table")?;
    let numbered = || {
        let (number, name) = rest.split_once('/').context("no number")?;
        Ok::<(i32, &str), anyhow::Error>((number.parse()?, name))
    };
    match table {
        "meta" => drop(write.open_table(META)?.insert(rest, text()?)?),
        "topic" => drop(write.open_table(TOPICS)?.insert(rest, value)?),
        "carry" => {
            let (partition, topic) = numbered()?;
            drop(write.open_table(CARRY)?.insert((topic, partition), value)?);
        }
        "group" => drop(write.open_table(GROUPS)?.insert(rest, text()?)?),
        "offset-home" => drop(write.open_table(OFFSET_HOMES)?.insert(rest, text()?)?),
        "ledger" => drop(write.open_table(LEDGER)?.insert(rest.parse::<u64>()?, value)?),
        "transaction" => drop(write.open_table(TRANSACTIONS)?.insert(rest, value)?),
        "port" => {
            let (side, broker) = numbered()?;
            drop(
                write
                    .open_table(PORTS)?
                    .insert((u8::try_from(side)?, broker.parse::<i32>()?), text()?.parse::<u16>()?)?,
            );
        }
        "floor" => {
            let ((partition, topic), (id, offset)) =
                (numbered()?, text()?.split_once(' ').context("no offset")?);
            drop(
                write
                    .open_table(FLOORS)?
                    .insert((topic, partition), (id.parse::<u64>()?, offset.parse::<i64>()?))?,
            );
        }
        "fence" => {
            let (side, topic) = numbered()?;
            drop(write.open_table(FENCES)?.insert((u8::try_from(side)?, topic), value)?);
        }
        other => bail!("no table {other}"),
    }
    Ok(())
}

impl TopicRecord {
    fn of(topic: &StoredTopic) -> TopicRecord {
        TopicRecord {
            owner: topic.owner.as_str().to_owned(),
            mode: topic.mode.as_str().to_owned(),
            physical: [topic.physical[0].to_string(), topic.physical[1].to_string()],
            virtual_id: topic.virtual_id.0,
            native_ids: [topic.native_ids[0].0, topic.native_ids[1].0],
            timelines: topic.timelines.iter().map(|t| t.encode()).collect(),
        }
    }

    fn read(self) -> anyhow::Result<StoredTopic> {
        let timelines = self.timelines.iter().map(|bytes| Ok(Arc::new(Timeline::decode(bytes)?)));
        let [source, target] = self.physical;
        let mode =
            if self.mode == LinkMode::Identity.as_str() { LinkMode::Identity } else { LinkMode::Continue };
        Ok(StoredTopic {
            owner: ClusterSide::parse(&self.owner).context("its owner is neither source nor target")?,
            mode,
            physical: [Arc::from(source), Arc::from(target)],
            virtual_id: TopicId(self.virtual_id),
            native_ids: self.native_ids.map(TopicId),
            timelines: timelines.collect::<anyhow::Result<_>>()?,
        })
    }
}

impl TransactionRecord {
    fn of(route: &TransactionRoute) -> TransactionRecord {
        let pair = |identity: Identity| (identity.pid, identity.epoch);
        TransactionRecord {
            home: route.home.as_str().to_owned(),
            aliases: route.aliases,
            client: pair(route.client),
            native: pair(route.native),
            earlier: route.earlier.each_ref().map(|natives| natives.iter().copied().map(pair).collect()),
        }
    }

    fn read(self) -> anyhow::Result<TransactionRoute> {
        let identity = |(pid, epoch)| Identity { pid, epoch };
        Ok(TransactionRoute {
            home: ClusterSide::parse(&self.home).context("its home is neither source nor target")?,
            aliases: self.aliases,
            client: identity(self.client),
            native: identity(self.native),
            earlier: self.earlier.map(|natives| natives.into_iter().map(identity).collect()),
        })
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;
    use redb::StorageBackend;
    use redb::backends::InMemoryBackend;
    use std::io;
    use std::sync::atomic::{AtomicBool, Ordering};

    /// A disk that takes all it is given, and, once it is told to, does not confirm it.
    #[derive(Clone, Debug, Default)]
    pub(crate) struct Disk {
        content: Arc<InMemoryBackend>,
        pub(crate) is_mute: Arc<AtomicBool>,
    }

    impl Disk {
        /// What a start finds.
        pub(crate) fn open(&self) -> Store {
            let database = Database::builder().create_with_backend(self.clone()).expect("opened");
            let lock = File::open(std::env::temp_dir()).expect("there");
            Store { database, _lock: lock }.prepared().expect("prepared")
        }
    }

    impl StorageBackend for Disk {
        fn len(&self) -> io::Result<u64> {
            self.content.len()
        }

        fn read(&self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
            self.content.read(offset, len)
        }

        fn set_len(&self, len: u64) -> io::Result<()> {
            self.content.set_len(len)
        }

        fn sync_data(&self, eventual: bool) -> io::Result<()> {
            self.content.sync_data(eventual)?;
            match self.is_mute.load(Ordering::Relaxed) {
                true => Err(io::Error::other("no answer")),
                false => Ok(()),
            }
        }

        fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
            self.content.write(offset, data)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> (Store, std::path::PathBuf) {
        use std::sync::atomic::{AtomicU32, Ordering};
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let directory = std::env::temp_dir().join(format!("crossover-store-{}-{number}", std::process::id()));
        (Store::open(&directory).expect("opened"), directory)
    }

    fn entry() -> LedgerEntry {
        LedgerEntry {
            sequence: 1,
            at_ms: 0,
            kind: "topic-deleted".to_owned(),
            operation: None,
            revision: 1,
            from: None,
            to: None,
            boundary: None,
            text: String::new(),
        }
    }

    fn floor(timeline_id: u64, offset: i64) -> Floors {
        let floor = Floor { timeline_id, offset: VirtualOffset(offset) };
        Floors::from([((Arc::from("orders"), 0), floor)])
    }

    #[test]
    fn r25_a_floor_survives_a_restart_never_sinks_and_is_of_one_topic_only() {
        let (store, directory) = store();
        store.raise_floors(&floor(7, 40)).expect("stored");
        store.raise_floors(&floor(7, 30)).expect("stored");
        drop(store);
        let store = Store::open(&directory).expect("opened again");
        assert_eq!(store.restore().expect("restored").floors, floor(7, 40));
        // Deleted and created again: the new topic starts at 0.
        store.raise_floors(&floor(8, 5)).expect("stored");
        assert_eq!(store.restore().expect("restored").floors, floor(8, 5));
        let _ = std::fs::remove_dir_all(directory);
    }

    #[test]
    fn r31_a_store_is_rebuilt_from_its_rows() {
        let (store, directory) = store();
        store.raise_floors(&floor(7, 100)).unwrap();
        store.bind(ClusterSide::Source, "abc").unwrap();
        store.put_ports(&[((ClusterSide::Target, 3), 9104)]).unwrap();
        store.put_home("g/with/slashes", ClusterSide::Target, 4, &entry()).unwrap();
        let identity = Identity { pid: 1000, epoch: 3 };
        let route = TransactionRoute {
            home: ClusterSide::Target,
            aliases: [0, 2],
            client: identity,
            native: Identity { pid: 7, epoch: 0 },
            earlier: [vec![Identity { pid: 5, epoch: 2 }], vec![]],
        };
        store.put_transaction("pay/1", &route, &entry()).unwrap();
        let fence = Acl::denies_writing("User:a");
        store.put_fence(ClusterSide::Target, "orders", Some(std::slice::from_ref(&fence))).unwrap();
        let place = (ClusterSide::Target, Arc::from("orders"));
        assert_eq!(store.restore().unwrap().fences, Fences::from([(place, vec![fence])]));
        assert_eq!(store.restore().unwrap().transactions.0.get("pay/1"), Some(&route));
        let rows = store.rows().unwrap();
        assert_eq!(rows.revision(), 4);
        let (other, other_directory) = self::store();
        other.put_rows(&rows).unwrap();
        assert_eq!(other.rows().unwrap(), rows);
        assert!(other.restore().unwrap().unclean, "produce of the lost process may still be on its way");
        assert!(other.put_rows(&rows).is_err());
        assert_eq!(other.ledger(0).unwrap(), store.ledger(0).unwrap());
        for directory in [directory, other_directory] {
            std::fs::remove_dir_all(directory).unwrap();
        }
    }

    #[test]
    fn r13_a_commit_that_fails_may_be_found_by_the_next_start() {
        let disk = testing::Disk::default();
        let store = disk.open();
        disk.is_mute.store(true, std::sync::atomic::Ordering::Relaxed);
        let uncertain = store.put_home("g", ClusterSide::Target, 1, &entry()).unwrap_err();
        assert!(uncertain.is::<Uncertain>());
        let refused = store.put_home("h", ClusterSide::Target, 1, &entry()).unwrap_err();
        assert!(!refused.is::<Uncertain>(), "nothing is written after that");
        disk.is_mute.store(false, std::sync::atomic::Ordering::Relaxed);
        drop(store);
        let found = disk.open().restore().unwrap().homes;
        assert_eq!(found, BTreeMap::from([(Arc::from("g"), ClusterSide::Target)]));
    }

    #[test]
    fn r26_nothing_of_a_deleted_topic_stays() {
        let (store, directory) = store();
        let orders: Arc<str> = Arc::from("orders");
        let timeline = Arc::new(Timeline::initial(7, ClusterSide::Source));
        let topic = StoredTopic {
            owner: ClusterSide::Source,
            mode: LinkMode::Continue,
            physical: [Arc::clone(&orders), Arc::clone(&orders)],
            virtual_id: TopicId::ZERO,
            native_ids: [TopicId::ZERO; 2],
            timelines: vec![timeline],
        };
        let names = ["orders", "orders-2"].map(Arc::<str>::from);
        let carry = names.iter().flat_map(|n| [0, 3].map(|p| (Arc::clone(n), p, Carry::default())));
        let seal = Seal {
            revision: 1,
            topics: names.iter().map(|n| (Arc::clone(n), topic.clone())).collect(),
            carry: carry.collect(),
            ledger: Vec::new(),
        };
        assert!(store.seal(&seal).is_ok());
        store.raise_floors(&floor(7, 40)).expect("stored");
        store.forget_topic("orders", &entry()).expect("stored");
        let left = store.restore().expect("restored");
        assert_eq!(left.topics.keys().map(|n| &**n).collect::<Vec<_>>(), ["orders-2"]);
        assert_eq!(
            left.carry.iter().map(|c| (&*c.0, c.1)).collect::<Vec<_>>(),
            [("orders-2", 0), ("orders-2", 3)]
        );
        assert!(left.floors.is_empty());
        let _ = std::fs::remove_dir_all(directory);
    }
}
