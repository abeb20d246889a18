//! Jars by version: resolved once by Maven, offline from then on.
//!
//! One entry is a folder `<kind>/<version>` with `lib/*.jar` and `SHA256SUMS`. It is built beside its place and renamed
//! into it, so an entry that exists is whole; the sums find what was damaged later.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;

use crate::error::{HarnessError, IoContext, Result};
use crate::prerequisites;
use crate::version::Version;

/// Pinned, so that two machines resolve in the same way.
const PLUGIN: &str = "org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy-dependencies";
const MANIFEST: &str = "SHA256SUMS";

/// `$CROSSOVER_CACHE`, else `$XDG_CACHE_HOME/crossover`, else `~/.cache/crossover`.
pub(crate) fn root() -> PathBuf {
    let set = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    set("CROSSOVER_CACHE")
        .or_else(|| set("XDG_CACHE_HOME").map(|dir| dir.join("crossover")))
        .or_else(|| set("HOME").map(|dir| dir.join(".cache/crossover")))
        .unwrap_or_else(|| std::env::temp_dir().join("crossover-cache"))
}

/// The jars of `artifacts` (`group:artifact`, at `version`) and all they need, with a logger that writes to stderr.
pub(crate) fn jars(kind: &str, version: Version, artifacts: &[&str]) -> Result<Vec<PathBuf>> {
    static VERIFIED: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());
    let parent = root().join(kind);
    let entry = parent.join(version.to_string());
    fs::create_dir_all(&parent).context("create", &parent)?;

    // Held to the end: a second process waits instead of resolving the same or reading a half-removed entry.
    let path = parent.join(format!(".lock-{version}"));
    let lock = File::create(&path).context("create", &path)?;
    lock.lock().context("lock", &path)?;

    let known = |entry| VERIFIED.lock().is_ok_and(|set| set.contains(entry));
    if !known(&entry) {
        if !is_intact(&entry)? {
            resolve(&entry, version, artifacts)?;
        }
        if let Ok(mut set) = VERIFIED.lock() {
            set.insert(entry.clone());
        }
    }
    listed_jars(&entry)
}

/// Compares every file with the sum written when it was resolved.
fn is_intact(entry: &Path) -> Result<bool> {
    if !entry.join(MANIFEST).exists() {
        return Ok(false);
    }
    let status = Command::new("sha256sum")
        .args(["--check", "--strict", "--status", MANIFEST])
        .current_dir(entry)
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .context("run sha256sum in", entry)?;
    if !status.success() {
        eprintln!("harness: {}", HarnessError::CacheDamaged(entry.to_owned()));
    }
    Ok(status.success())
}

fn resolve(entry: &Path, version: Version, artifacts: &[&str]) -> Result<()> {
    let maven = prerequisites::maven()?;
    eprintln!("harness: fetching {} {version} from Maven Central (once)", artifacts.join(", "));
    let building = entry.with_file_name(format!(".building-{version}"));
    remove(&building)?;
    fs::create_dir_all(&building).context("create", &building)?;
    let pom = building.join("pom.xml");
    fs::write(&pom, pom_text(version, artifacts)).context("write", &pom)?;

    let mut command = Command::new(maven);
    command
        // -C: a download whose checksum is not the repository's fails the build.
        .args([
            "-B",
            "-q",
            "-C",
            "-Dstyle.color=never",
            PLUGIN,
            "-DincludeScope=runtime",
            "-DoutputDirectory=lib",
        ])
        .current_dir(&building);
    run(command, "mvn dependency:copy-dependencies")?;
    write_manifest(&building)?;
    remove(entry)?;
    fs::rename(&building, entry).context("rename to", entry)
}

fn remove(dir: &Path) -> Result<()> {
    if dir.exists() { fs::remove_dir_all(dir).context("remove", dir) } else { Ok(()) }
}

/// Kafka's tools bring a logger binding of their own; with two bindings slf4j takes either.
fn pom_text(version: Version, artifacts: &[&str]) -> String {
    const OTHER_LOGGERS: [&str; 4] = [
        "org.slf4j:slf4j-log4j12",
        "org.slf4j:slf4j-reload4j",
        "org.apache.logging.log4j:log4j-slf4j-impl",
        "org.apache.logging.log4j:log4j-slf4j2-impl",
    ];
    let pair = |name: &str| {
        let (group, artifact) = name.split_once(':').unwrap_or((name, ""));
        format!("<groupId>{group}</groupId><artifactId>{artifact}</artifactId>")
    };
    let exclusions: String =
        OTHER_LOGGERS.iter().map(|n| format!("<exclusion>{}</exclusion>", pair(n))).collect();
    let dependency = |name: &str, version: &str| {
        let pair = pair(name);
        format!(
            "    <dependency>{pair}<version>{version}</version><exclusions>{exclusions}</exclusions></dependency>\n"
        )
    };
    let own: String = artifacts.iter().map(|name| dependency(name, &version.to_string())).collect();
    format!(
        "<project xmlns=\"http://maven.apache.org/POM/4.0.0\">\n  <modelVersion>4.0.0</modelVersion>\n  \
         <groupId>crossover</groupId><artifactId>jars</artifactId><version>1</version><packaging>pom</packaging>\n  \
         <dependencies>\n{own}{}  </dependencies>\n</project>\n",
        dependency("org.slf4j:slf4j-simple", "1.7.36")
    )
}

fn write_manifest(building: &Path) -> Result<()> {
    let lib = building.join("lib");
    let mut names = Vec::new();
    for item in fs::read_dir(&lib).context("list", &lib)? {
        let name = item.context("list", &lib)?.file_name();
        names.push(Path::new("lib").join(name));
    }
    names.sort();
    let mut command = Command::new("sha256sum");
    command.arg("--").args(names).current_dir(building);
    let sums = run(command, "sha256sum")?;
    let path = building.join(MANIFEST);
    fs::write(&path, sums).context("write", &path)
}

/// Runs a command to its end and returns its standard output.
fn run(mut command: Command, name: &str) -> Result<String> {
    let failed = |source| HarnessError::Io { action: format!("run {name}"), source };
    let output = command.stdin(Stdio::null()).output().map_err(failed)?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(text);
    }
    Err(HarnessError::Command {
        command: name.to_owned(),
        status: output.status.to_string(),
        output: format!("{text}{}", String::from_utf8_lossy(&output.stderr)).trim().to_owned(),
    })
}

/// Only what the manifest lists: a stray file in the folder does not get onto the class path.
fn listed_jars(entry: &Path) -> Result<Vec<PathBuf>> {
    let path = entry.join(MANIFEST);
    let text = fs::read_to_string(&path).context("read", &path)?;
    let jars: Option<Vec<PathBuf>> =
        text.lines().map(|line| line.split_once("  ").map(|(_, file)| entry.join(file))).collect();
    jars.filter(|jars| !jars.is_empty()).ok_or_else(|| HarnessError::CacheDamaged(entry.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::pom_text;

    #[test]
    fn the_pom_names_every_artifact_at_the_version_and_no_second_logger() {
        let pom = pom_text(
            "3.9.2".parse().unwrap(),
            &["org.apache.kafka:kafka_2.13", "org.apache.kafka:kafka-tools"],
        );
        assert_eq!(pom.matches("<version>3.9.2</version>").count(), 2);
        assert_eq!(pom.matches("<artifactId>slf4j-simple</artifactId>").count(), 1);
        assert_eq!(pom.matches("<artifactId>slf4j-reload4j</artifactId>").count(), 3);
        assert_eq!(pom.matches("<dependency>").count(), pom.matches("</dependency>").count());
    }
}
