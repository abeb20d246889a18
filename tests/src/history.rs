//! What tests read out of histories themselves, where the checker has no question for it (format: loadtest/README.md).

use anyhow::{Context, Result, bail, ensure};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// A partition and an offset.
pub type At = (usize, i64);

/// One event with its fields.
pub struct Line {
    pub at_us: i64,
    pub event: String,
    pub fields: Vec<String>,
}

impl Line {
    /// # Errors
    /// No such field, or no number.
    pub fn number(&self, field: usize) -> Result<i64> {
        let text = self.fields.get(field).with_context(|| format!("{} has no field {field}", self.event))?;
        text.parse().with_context(|| format!("{text:?} is no number"))
    }

    /// The partition and the offset of a `P.ok` or `C.poll`.
    ///
    /// # Errors
    /// It is another event.
    pub fn at(&self) -> Result<At> {
        let offset = if self.event == "P.ok" { 2 } else { 1 };
        Ok((usize::try_from(self.number(0)?)?, self.number(offset)?))
    }
}

/// The events of a history whose names are among `events`; a last line that is not whole yet is left out.
///
/// # Errors
/// The file cannot be read.
pub fn lines(history: &Path, events: &[&str]) -> Result<Vec<Line>> {
    let text = std::fs::read_to_string(history).with_context(|| history.display().to_string())?;
    let mut all = Vec::new();
    let (whole, _) = text.rsplit_once('\n').unwrap_or_default();
    for line in whole.lines() {
        let mut fields = line.split('\t').map(str::to_owned);
        let (Some(at), Some(event)) = (fields.next(), fields.next()) else { continue };
        if events.contains(&event.as_str()) {
            all.push(Line { at_us: at.parse()?, event, fields: fields.collect() });
        }
    }
    Ok(all)
}

/// Where a producer's acknowledged records lie.
///
/// # Errors
/// As [`lines`].
pub fn written(history: &Path) -> Result<BTreeSet<At>> {
    lines(history, &["P.ok"])?.iter().map(Line::at).collect()
}

/// A record as its producer named it, wherever it lies: writer, partition, number.
pub type Name = (i64, usize, i64);

/// The records a producer had acknowledged.
///
/// # Errors
/// As [`lines`].
pub fn acknowledged(history: &Path, writer: i64) -> Result<BTreeSet<Name>> {
    let name = |line: &Line| Ok((writer, line.at()?.0, line.number(1)?));
    lines(history, &["P.ok"])?.iter().map(name).collect()
}

/// The records a consumer was given, in their order.
///
/// # Errors
/// As [`lines`].
pub fn delivered(history: &Path) -> Result<Vec<Name>> {
    let name = |line: &Line| Ok((line.number(2)?, line.at()?.0, line.number(3)?));
    lines(history, &["C.poll"])?.iter().map(name).collect()
}

/// The first offset behind each partition's records.
#[must_use]
pub fn ends(written: &BTreeSet<At>, partitions: usize) -> Vec<i64> {
    let mut ends = vec![0; partitions];
    for (partition, offset) in written {
        ends[*partition] = ends[*partition].max(offset + 1);
    }
    ends
}

/// A consumer delivered exactly these records of each partition, in order, and told of no error and no reset.
///
/// # Errors
/// It did not.
pub fn reads_exactly(history: &Path, records: &BTreeSet<At>) -> Result<()> {
    let mut rest = records.clone();
    for line in lines(history, &["C.poll", "C.other", "C.reset", "C.error", "C.lost", "E.error"])? {
        if line.event != "C.poll" {
            bail!("{}: {} {:?}", history.display(), line.event, line.fields);
        }
        let (partition, offset) = line.at()?;
        let next = rest.range((partition, 0)..(partition + 1, 0)).next().copied();
        ensure!(
            next == Some((partition, offset)),
            "{}: {partition} goes on at {offset}, not at {next:?}",
            history.display()
        );
        rest.remove(&(partition, offset));
    }
    ensure!(
        rest.is_empty(),
        "{}: not read: {} records, the first {:?}",
        history.display(),
        rest.len(),
        rest.first()
    );
    Ok(())
}

/// A consumer was given exactly these records, wherever they lie: each once, and each writer's in their order.
///
/// # Errors
/// It was not.
pub fn reads_once_in_order(history: &Path, expected: &BTreeSet<Name>) -> Result<()> {
    let read = delivered(history)?;
    let mut last: BTreeMap<(i64, usize), i64> = BTreeMap::new();
    for name @ (writer, partition, sequence) in read.iter().copied() {
        let before = last.insert((writer, partition), sequence);
        ensure!(before.is_none_or(|before| before < sequence), "{name:?} behind {before:?}");
    }
    let distinct: BTreeSet<Name> = read.iter().copied().collect();
    let lost = expected.difference(&distinct).next();
    let strange = distinct.difference(expected).next();
    ensure!(lost.is_none() && strange.is_none(), "lost {lost:?}, not expected {strange:?}");
    Ok(())
}
