//! The table of what failures behind the steps of a flip led to.

use anyhow::{Context, Result};
use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::PathBuf;

/// Cases of one step, failure and repetition: both owners and both directions, or both directions where the proxy itself
/// is hit.
const CASES_MIN: usize = 2;

/// One flip with one failure in it.
pub struct Row {
    pub step: String,
    pub failure: String,
    pub hit: String,
    pub verb: String,
    pub outcome: String,
    pub well_after_s: String,
}

impl Row {
    pub const TITLES: &str = "step\tfailure\tof\tflip\toutcome\twell after s";

    fn parse(line: &str) -> Option<Row> {
        let fields: Vec<&str> = line.split('\t').collect();
        let &[step, failure, hit, verb, outcome, well_after_s] = fields.as_slice() else { return None };
        let [step, failure, hit, verb, outcome, well_after_s] =
            [step, failure, hit, verb, outcome, well_after_s].map(str::to_owned);
        Some(Row { step, failure, hit, verb, outcome, well_after_s })
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fields = [&self.step, &self.failure, &self.hit, &self.verb, &self.outcome, &self.well_after_s];
        let fields: Vec<String> = fields.into_iter().map(|field| field.replace(['\t', '\n'], " ")).collect();
        f.write_str(&fields.join("\t"))
    }
}

/// What was found exact so far, by whichever run.
pub struct Table {
    path: PathBuf,
    rows: Vec<Row>,
}

impl Table {
    /// `CROSSOVER_TABLE`, or `target/faults.tsv`; an empty one if there is none.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn open() -> Result<Table> {
        let default = || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../target/faults.tsv"));
        let path = std::env::var_os("CROSSOVER_TABLE").map_or_else(default, PathBuf::from);
        let text = match fs::read_to_string(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => String::new(),
            other => other.with_context(|| format!("{} cannot be read", path.display()))?,
        };
        let rows = text.lines().skip(1).filter_map(Row::parse).collect();
        Ok(Table { path, rows })
    }

    /// How often this failure was put behind this step, for each owner and direction.
    #[must_use]
    pub fn repeats(&self, step: &str, failure: &str) -> usize {
        let mut counts = std::collections::BTreeMap::new();
        for row in self.rows.iter().filter(|row| row.step == step && row.failure == failure) {
            *counts.entry((&row.hit, &row.verb)).or_insert(0) += 1;
        }
        if counts.len() < CASES_MIN { 0 } else { counts.into_values().min().unwrap_or(0) }
    }

    /// Adds the cases of a run whose verdict is good.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn add(&self, rows: &[Row]) -> Result<()> {
        let mut file = OpenOptions::new().create(true).append(true).open(&self.path)?;
        let mut text = String::new();
        if file.metadata()?.len() == 0 {
            text = format!("{}\n", Row::TITLES);
        }
        rows.iter().for_each(|row| text.push_str(&format!("{row}\n")));
        Ok(file.write_all(text.as_bytes())?)
    }
}
