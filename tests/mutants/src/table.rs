//! What is known of mutants already: a table on disk to which each run adds.

use crate::site::Site;
use crate::suites::Verdict;
use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The share of mutants that must be caught, in per cent.
const WANTED_PERCENT: usize = 90;
const HEAD: &str = "seed\tdigest\tid\tplace\tfunction\tchange\toutcome\tby\tseconds\n";

/// What became of a mutant, as it stands in the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Known {
    /// `caught`, `timeout`, `survived`, or `unbuildable`: that is no mutant at all.
    pub(crate) outcome: String,
    by: String,
}

/// The rows of one seed and one state of the sources.
pub(crate) struct Table {
    path: PathBuf,
    /// Seed and digest, which begin each row.
    run: String,
    known: BTreeMap<u32, Known>,
}

impl Table {
    /// Reads the table; where rows are of the same mutant, the last counts.
    ///
    /// # Errors
    /// When it is there and cannot be read.
    pub(crate) fn open(path: PathBuf, seed: u64, digest: u64) -> Result<Table> {
        let run = format!("{seed}\t{digest:016x}");
        if !path.exists() {
            std::fs::write(&path, HEAD).with_context(|| path.display().to_string())?;
        }
        let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let rows = text.lines().filter_map(|line| line.strip_prefix(&run)?.strip_prefix('\t'));
        let known = rows.filter_map(|row| {
            let [id, _, _, _, outcome, by, _] = row.split('\t').collect::<Vec<_>>().try_into().ok()?;
            Some((id.parse().ok()?, Known { outcome: outcome.to_owned(), by: by.to_owned() }))
        });
        let known = known.collect();
        Ok(Table { path, run, known })
    }

    pub(crate) fn is_unbuildable(&self, site: &Site) -> bool {
        self.known(site).is_some_and(|known| known.outcome == "unbuildable")
    }

    pub(crate) fn known(&self, site: &Site) -> Option<&Known> {
        self.known.get(&site.id)
    }

    /// # Errors
    /// When the table cannot be written.
    pub(crate) fn add_unbuildable(&mut self, site: &Site) -> Result<()> {
        self.add(site, "unbuildable", "", Duration::ZERO)
    }

    /// # Errors
    /// When the table cannot be written.
    pub(crate) fn add_verdict(&mut self, site: &Site, verdict: &Verdict, took: Duration) -> Result<()> {
        match verdict {
            Verdict::Survived => self.add(site, "survived", "", took),
            Verdict::Failed(by) => self.add(site, "caught", by, took),
            Verdict::TimedOut(suite) => self.add(site, "timeout", suite, took),
        }
    }

    fn add(&mut self, site: &Site, outcome: &str, by: &str, took: Duration) -> Result<()> {
        let Site { id, file, line, function, change, .. } = site;
        let (run, seconds) = (&self.run, took.as_secs_f64());
        let row =
            format!("{run}\t{id}\t{file}:{line}\t{function}\t{change}\t{outcome}\t{by}\t{seconds:.1}\n");
        let mut file = OpenOptions::new().append(true).open(&self.path)?;
        file.write_all(row.as_bytes())?;
        self.known.insert(*id, Known { outcome: outcome.to_owned(), by: by.to_owned() });
        Ok(())
    }

    /// Prints what these came to. True when enough of them are caught.
    pub(crate) fn summary(&self, sites: &[&Site]) -> bool {
        let of = |site: &Site| self.known(site).map_or("", |known| known.outcome.as_str());
        let count = |outcome: &str| sites.iter().filter(|site| of(site) == outcome).count();
        let mut survivors: Vec<&Site> = sites.iter().copied().filter(|site| of(site) == "survived").collect();
        survivors.sort_by_key(|site| site.id);
        for Site { id, file, line, function, change, .. } in &survivors {
            println!("survived {id}: {file}:{line} {function}: {change}");
        }
        let by = |suite: &str| {
            let known = sites.iter().filter_map(|site| self.known(site));
            known.filter(|known| known.outcome == "caught" && known.by.starts_with(suite)).count()
        };
        let (total, hung) = (sites.len(), count("timeout"));
        let caught = total - survivors.len();
        println!(
            "{caught} of {total} mutants are caught: {} by unit tests, {} by the simulator, {hung} because they hang",
            by("unit"),
            by("sim")
        );
        caught * 100 >= total * WANTED_PERCENT
    }
}

/// For tests and people: where the table is.
pub(crate) fn path_below(target: &Path) -> PathBuf {
    target.join("mutants.tsv")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::site::Form;

    fn site(id: u32) -> Site {
        let (file, function, change) = ("a.rs".to_owned(), "f".to_owned(), "`<` → `<=`".to_owned());
        Site { id, file, line: 3, function, change, form: Form::Chain { at: 0 } }
    }

    #[test]
    fn rows_are_known_again_for_the_same_seed_and_sources() {
        let path = std::env::temp_dir().join(format!("crossover-mutants-{}.tsv", std::process::id()));
        let mut table = Table::open(path.clone(), 1, 7).expect("a new table");
        let took = Duration::from_millis(1_500);
        table.add_verdict(&site(1), &Verdict::Survived, took).expect("written");
        table.add_verdict(&site(2), &Verdict::Failed("unit: a".to_owned()), took).expect("written");
        table.add_unbuildable(&site(3)).expect("written");
        let again = Table::open(path.clone(), 1, 7).expect("the table");
        assert_eq!(again.known(&site(2)).map(|known| known.by.as_str()), Some("unit: a"));
        assert!(again.is_unbuildable(&site(3)) && !again.summary(&[&site(1), &site(2)]));
        table.add_verdict(&site(1), &Verdict::TimedOut("sim".to_owned()), took).expect("written");
        let again = Table::open(path.clone(), 1, 7).expect("the table");
        assert!(again.summary(&[&site(1), &site(2)]), "the last row counts");
        for (seed, digest) in [(2, 7), (1, 8)] {
            let other = Table::open(path.clone(), seed, digest).expect("the table");
            assert_eq!(other.known(&site(1)), None);
        }
        std::fs::remove_file(path).expect("removed");
    }
}
