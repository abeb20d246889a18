//! Changes the core in small ways, one at a time, and asks its tests whether they notice.
//!
//! Every change of a sample is built into one copy of the workspace behind a switch that is read from the environment
//! (mutant schemata), so that a mutant costs a run of the tests and no build. The sources themselves are never touched.

mod enumerate;
mod instrument;
mod scratch;
mod site;
mod suites;
mod table;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use scratch::Scratch;
use site::Site;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use suites::{Suites, Verdict};
use table::Table;

const CORE: &str = "proxy/core/src";
/// What decides about timelines, flips, producers and groups. Files, or folders with all that is below.
const CHANGED: [&str; 12] = [
    "timeline",
    "cutover",
    "producer",
    "group",
    "api/produce.rs",
    "api/offset_commit.rs",
    "api/offset_fetch.rs",
    "api/init_producer_id.rs",
    "api/end_txn.rs",
    "api/join_group.rs",
    "api/group.rs",
    "session/transactions.rs",
];

/// Changes the core in small ways, one at a time, and asks its unit tests and the simulator whether they notice.
/// Exit code 1 when fewer than 90 % are noticed.
#[derive(Parser)]
struct Cli {
    /// How many changes.
    #[arg(long, default_value_t = 300)]
    sample: usize,
    /// Which ones.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The schedules of the simulator.
    #[arg(long, default_value = "0..4000")]
    schedules: String,
    /// Ask again about those that were not noticed the last time, because the tests are better now.
    #[arg(long)]
    survivors: bool,
    /// Only say which changes there are.
    #[arg(long)]
    list: bool,
}

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(why) => {
            eprintln!("{why:#}");
            ExitCode::from(2)
        }
    }
}

fn run(cli: &Cli) -> Result<bool> {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize()?;
    let target = repository.join("target");
    let below = target.join("mutants");
    std::fs::create_dir_all(&below)?;
    let sites = all_sites(&repository)?;
    let ordered = site::in_order_of(cli.seed, &sites);
    if cli.list {
        let chosen: BTreeSet<u32> = ordered.iter().take(cli.sample).map(|site| site.id).collect();
        sites.iter().for_each(|site| list(site, chosen.contains(&site.id)));
        return Ok(true);
    }
    let mut table = Table::open(table::path_below(&target), cli.seed, digest_of(&repository, &sites)?)?;
    println!("{} changes are possible, {} are tried", sites.len(), cli.sample.min(sites.len()));
    let is_new = |table: &Table, site: &Site| match table.known(site) {
        Some(known) => cli.survivors && known.outcome == "survived",
        None => true,
    };
    let mut chosen = choose(&ordered, cli.sample, &table);
    if chosen.iter().any(|site| is_new(&table, site)) {
        let scratch = Scratch::new(&below);
        chosen = build(&scratch, &repository, &ordered, cli.sample, &mut table)?;
        let mut suites = Suites::new(scratch.programs()?, below.join("output.txt"), &cli.schedules);
        suites.calibrate()?;
        let new: Vec<&Site> = chosen.iter().copied().filter(|site| is_new(&table, site)).collect();
        ask(&new, &suites, &mut table)?;
    }
    Ok(table.summary(&chosen))
}

fn list(site: &Site, is_chosen: bool) {
    let Site { id, file, line, function, change, .. } = site;
    println!("{} {id}: {file}:{line} {function}: {change}", if is_chosen { "*" } else { " " });
}

fn ask(sites: &[&Site], suites: &Suites, table: &mut Table) -> Result<()> {
    for (nth, site) in (1..).zip(sites) {
        let (verdict, took) = suites.judge(site.id)?;
        let seconds = took.as_secs_f64();
        let said = match &verdict {
            Verdict::Survived => "SURVIVED".to_owned(),
            Verdict::Failed(by) => format!("caught by {by}"),
            Verdict::TimedOut(suite) => format!("hangs in {suite}"),
        };
        println!("{nth}/{} {said}, {seconds:.1} s: {}:{} {}", sites.len(), site.file, site.line, site.change);
        table.add_verdict(site, &verdict, took)?;
    }
    Ok(())
}

fn choose<'a>(ordered: &[&'a Site], sample: usize, table: &Table) -> Vec<&'a Site> {
    let possible = ordered.iter().copied().filter(|site| !table.is_unbuildable(site));
    possible.take(sample).collect()
}

/// Writes the copy and finds out which of the sample do not build; the next in order take their places.
fn build<'a>(
    scratch: &Scratch,
    repository: &Path,
    ordered: &[&'a Site],
    sample: usize,
    table: &mut Table,
) -> Result<Vec<&'a Site>> {
    loop {
        let chosen = choose(ordered, sample, table);
        let instrumented = scratch.write(repository, &chosen)?;
        let unbuildable = scratch.unbuildable(&instrumented)?;
        if unbuildable.is_empty() {
            return Ok(chosen);
        }
        for site in chosen.iter().filter(|site| unbuildable.contains(&site.id)) {
            table.add_unbuildable(site)?;
        }
    }
}

/// All sites of the sources, numbered.
fn all_sites(repository: &Path) -> Result<Vec<Site>> {
    let mut sites = Vec::new();
    for part in CHANGED {
        let mut files = Vec::new();
        collect(&repository.join(CORE).join(part), &mut files)?;
        for path in files {
            let text = std::fs::read_to_string(&path)?;
            let file = path.strip_prefix(repository)?.to_string_lossy().into_owned();
            sites.extend(enumerate::sites_of(&file, &text)?);
        }
    }
    ensure!(!sites.is_empty(), "nothing to change");
    (1..).zip(&mut sites).for_each(|(id, site)| site.id = id);
    Ok(sites)
}

/// Of all of the core but its tests (better tests leave what is known of a mutant that was caught), and of the changes
/// that are possible, which have their numbers in that order.
fn digest_of(repository: &Path, sites: &[Site]) -> Result<u64> {
    let mut files = Vec::new();
    collect(&repository.join(CORE), &mut files)?;
    let mut all = String::new();
    for file in files {
        let text = std::fs::read_to_string(&file)?;
        all.push_str(&enumerate::program_of(&text).with_context(|| file.display().to_string())?);
    }
    for Site { id, file, function, change, .. } in sites {
        all.push_str(&format!("{id} {file} {function} {change}\n"));
    }
    Ok(site::digest(all.as_bytes()))
}

/// The source files at or below a path, in the order of their names, without those of tests.
fn collect(path: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    if path.is_dir() {
        let entries = std::fs::read_dir(path)?.map(|entry| Ok(entry?.path()));
        let entries: BTreeSet<PathBuf> = entries.collect::<Result<_>>()?;
        return entries.iter().try_for_each(|path| collect(path, files));
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    if name.ends_with(".rs") && !name.ends_with("tests.rs") && name != "testing.rs" {
        ensure!(path.is_file(), "{} is not there", path.display());
        files.push(path.to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_core_has_many_sites_and_none_in_its_tests() -> Result<()> {
        let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize()?;
        let sites = all_sites(&repository)?;
        assert!(sites.len() > 1_000, "{}", sites.len());
        assert!(sites.iter().all(|site| !site.file.ends_with("tests.rs")));
        for part in CHANGED {
            let file = format!("{CORE}/{part}");
            assert!(sites.iter().any(|site| site.file.starts_with(&file)), "{part}");
        }
        Ok(())
    }
}
