//! A copy of the workspace in which every mutant of a sample stands behind its switch, built once for all of them.

use crate::instrument::{Instrumented, SWITCH, instrument};
use crate::site::Site;
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const CRATE: &str = "crossover-core";
const ROOT: &str = "proxy/core/src/lib.rs";

/// The copy and where it is built. Both stay for the next run, which builds only what has changed.
pub(crate) struct Scratch {
    copy: PathBuf,
    build: PathBuf,
}

/// The test programs of the copy.
pub(crate) struct Programs {
    pub(crate) unit: PathBuf,
    pub(crate) simulator: PathBuf,
    /// Where cargo would start them.
    pub(crate) directory: PathBuf,
}

impl Scratch {
    pub(crate) fn new(below: &Path) -> Scratch {
        Scratch { copy: below.join("copy"), build: below.join("build") }
    }

    /// Brings the copy up to date with the repository, with switches for these sites.
    ///
    /// # Errors
    /// When files cannot be read or written.
    pub(crate) fn write(&self, repository: &Path, sites: &[&Site]) -> Result<BTreeMap<String, Instrumented>> {
        let mut instrumented = BTreeMap::new();
        let mut files = BTreeSet::new();
        for file in tracked(repository)? {
            let from = repository.join(&file);
            if !from.is_file() {
                continue;
            }
            let mut content = std::fs::read(&from).with_context(|| file.clone())?;
            let here: Vec<&Site> = sites.iter().copied().filter(|site| site.file == file).collect();
            if !here.is_empty() {
                let with = instrument(&String::from_utf8(content)?, &here);
                content = with.text.clone().into_bytes();
                instrumented.insert(file.clone(), with);
            }
            if file == ROOT {
                content.extend(SWITCH.bytes());
            }
            put(&self.copy.join(&file), &content)?;
            files.insert(self.copy.join(&file));
        }
        remove_others(&self.copy, &files)?;
        Ok(instrumented)
    }

    /// The sites with which the copy does not build, as far as the compiler has got; none when it builds.
    ///
    /// # Errors
    /// When something else does not build.
    pub(crate) fn unbuildable(&self, instrumented: &BTreeMap<String, Instrumented>) -> Result<BTreeSet<u32>> {
        let (built, messages) = self.cargo(&["check", "-p", CRATE, "--lib"])?;
        let mut found = BTreeSet::new();
        for message in messages.iter().filter(|m| m["message"]["level"] == "error") {
            let spans = message["message"]["spans"].as_array().into_iter().flatten();
            let mut guilty: BTreeSet<u32> = BTreeSet::new();
            for span in spans.filter(|span| span["is_primary"] == true) {
                let with = span["file_name"].as_str().and_then(|file| instrumented.get(file));
                guilty.extend(with.iter().flat_map(|with| at(with, span)));
            }
            let text = message["message"]["rendered"].as_str().unwrap_or_default();
            let summary = text.starts_with("error: aborting") || text.starts_with("error: could not compile");
            ensure!(
                !guilty.is_empty() || summary,
                "the copy does not build, and no mutant is to blame:\n{text}"
            );
            found.extend(guilty);
        }
        ensure!(built || !found.is_empty(), "the copy does not build");
        Ok(found)
    }

    /// Builds the test programs.
    ///
    /// # Errors
    /// When they do not build.
    pub(crate) fn programs(&self) -> Result<Programs> {
        let (built, messages) =
            self.cargo(&["test", "--release", "-p", CRATE, "--lib", "--test", "sim", "--no-run"])?;
        for message in messages.iter().filter(|m| m["message"]["level"] == "error") {
            eprintln!("{}", message["message"]["rendered"].as_str().unwrap_or_default());
        }
        ensure!(built, "the tests of the copy do not build");
        let program = |kind: &str| -> Result<PathBuf> {
            let mut found = messages.iter().filter(|m| m["target"]["kind"][0] == kind);
            let path = found.find_map(|m| m["executable"].as_str());
            Ok(PathBuf::from(path.with_context(|| format!("no test program of the kind {kind}"))?))
        };
        let directory = self.copy.join("proxy/core");
        Ok(Programs { unit: program("lib")?, simulator: program("test")?, directory })
    }

    /// Whether cargo succeeded, and what it said.
    fn cargo(&self, arguments: &[&str]) -> Result<(bool, Vec<Value>)> {
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.args(arguments).args(["--locked", "--message-format=json"]).current_dir(&self.copy);
        // A changed text may be silly; that is no reason not to run it.
        cargo.env("RUSTFLAGS", "--cap-lints allow").env("CARGO_TARGET_DIR", &self.build);
        let output = cargo.stderr(Stdio::inherit()).output().context("cargo does not start")?;
        let lines = String::from_utf8(output.stdout)?;
        let messages = lines.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        Ok((output.status.success(), messages))
    }
}

/// The innermost sites around what the compiler points at, or those of the same line.
fn at(with: &Instrumented, span: &Value) -> Vec<u32> {
    let number = |key: &str| span[key].as_u64().and_then(|n| usize::try_from(n).ok()).unwrap_or(0);
    let (start, end) = (number("byte_start"), number("byte_end"));
    let around = with.spans.iter().filter(|(range, _)| range.start <= start && end <= range.end);
    if let Some((_, ids)) = around.min_by_key(|(range, _)| range.end - range.start) {
        return ids.clone();
    }
    let line = |at: usize| with.text[..at].bytes().filter(|byte| *byte == b'\n').count() + 1;
    let lines = number("line_start")..=number("line_end");
    let near = with.spans.iter().filter(|(range, _)| lines.contains(&line(range.start)));
    near.flat_map(|(_, ids)| ids.clone()).collect()
}

/// Everything that belongs to the workspace, relative to it.
fn tracked(repository: &Path) -> Result<Vec<String>> {
    let mut git = Command::new("git");
    git.args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]).current_dir(repository);
    let output = git.output().context("git does not start")?;
    if !output.status.success() {
        bail!("git ls-files: {}", String::from_utf8_lossy(&output.stderr));
    }
    let names = String::from_utf8(output.stdout)?;
    Ok(names.split('\0').filter(|name| !name.is_empty()).map(str::to_owned).collect())
}

/// Leaves a file alone that says the same already: cargo goes by times.
fn put(path: &Path, content: &[u8]) -> Result<()> {
    if std::fs::read(path).is_ok_and(|old| old == content) {
        return Ok(());
    }
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory)?;
    }
    std::fs::write(path, content).with_context(|| path.display().to_string())
}

fn remove_others(directory: &Path, files: &BTreeSet<PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            remove_others(&path, files)?;
        } else if !files.contains(&path) {
            std::fs::remove_file(&path)?;
        }
    }
    Ok(())
}
