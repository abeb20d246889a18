//! The clients: processes of real client libraries that log what they see.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use super::history::History;
use super::repository::Repository;
use super::{PARTITIONS, TOPIC};

const RECORDS_PER_SECOND: u32 = 250;
/// Flush, leave the group, close, and on a loaded machine the end of a JVM.
const STOP_LIMIT: Duration = Duration::from_secs(30);

/// A client library.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kind {
    pub(super) name: &'static str,
    /// Succeeds where the library's runtime is there.
    probe: &'static [&'static str],
}

const JAVA: Kind = Kind { name: "java", probe: &["java", "-version"] };
const LIBRDKAFKA: Kind = Kind { name: "librdkafka", probe: &["python3", "-c", "import venv, ensurepip"] };
const FRANZ: Kind = Kind { name: "franz", probe: &["go", "version"] };

/// The clients that can run here, set up; Java at least, because the brokers need it anyway.
pub(super) async fn choose(repository: &Repository, short: bool) -> anyhow::Result<Vec<Kind>> {
    let wanted: &[Kind] = if short { &[LIBRDKAFKA] } else { &[JAVA, LIBRDKAFKA, FRANZ] };
    let mut chosen = Vec::new();
    for kind in wanted {
        match is_usable(repository, kind).await {
            Ok(()) => chosen.push(*kind),
            Err(why) => println!("Without {}: {why:#}", kind.name),
        }
    }
    if chosen.is_empty() {
        is_usable(repository, &JAVA).await.context("the Java client cannot be set up")?;
        chosen.push(JAVA);
    }
    Ok(chosen)
}

async fn is_usable(repository: &Repository, kind: &Kind) -> anyhow::Result<()> {
    if let [program, arguments @ ..] = kind.probe {
        let mut probe = Command::new(program);
        let status = quiet(probe.args(arguments)).stderr(Stdio::null()).status().await;
        ensure!(status.is_ok_and(|status| status.success()), "`{}` does not run here", kind.probe.join(" "));
    }
    let output = quiet(repository.setup().arg(kind.name)).stderr(Stdio::piped()).output().await?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "its setup failed: {}",
        said.lines().last().unwrap_or("it said nothing")
    );
    Ok(())
}

fn quiet(command: &mut Command) -> &mut Command {
    command.stdin(Stdio::null()).stdout(Stdio::null()).kill_on_drop(true)
}

/// One running driver.
pub(super) struct Driver {
    pub(super) name: &'static str,
    pub(super) history: History,
    log: PathBuf,
    child: Child,
}

impl Driver {
    /// Closing its standard input asks it to flush, close and end; so does our death.
    async fn stop(&mut self) -> anyhow::Result<()> {
        drop(self.child.stdin.take());
        let status = timeout(STOP_LIMIT, self.child.wait()).await;
        let status = status.map_err(|_| anyhow::anyhow!("the {} client does not end", self.name))??;
        ensure!(status.success(), "the {} client ended with {status}; see {}", self.name, self.log.display());
        Ok(())
    }

    /// Fails if it has ended by itself.
    fn check_alive(&mut self) -> anyhow::Result<()> {
        if let (Some(status), true) = (self.child.try_wait()?, self.child.stdin.is_some()) {
            bail!("the {} client ended by itself ({status}); see {}", self.name, self.log.display());
        }
        Ok(())
    }
}

/// All clients of the demo; killed when dropped.
pub(super) struct Cast {
    directory: PathBuf,
    pub(super) producers: Vec<Driver>,
    pub(super) consumers: Vec<Driver>,
}

impl Cast {
    pub(super) fn new(directory: &Path) -> anyhow::Result<Cast> {
        std::fs::create_dir_all(directory)?;
        Ok(Cast { directory: directory.to_owned(), producers: Vec::new(), consumers: Vec::new() })
    }

    pub(super) fn start_producer(
        &mut self,
        repository: &Repository,
        kind: &Kind,
        bootstrap: &str,
        writer: u32,
    ) -> anyhow::Result<()> {
        let numbers =
            [("--partitions", u32::from(PARTITIONS)), ("--rate", RECORDS_PER_SECOND), ("--writer", writer)];
        let mut options = numbers.map(|(name, value)| [name.to_owned(), value.to_string()]).concat();
        // What is promised is promised to idempotent producers; librdkafka's are so only when told.
        options.extend(["--idempotent", "true"].map(str::to_owned));
        let driver = self.start(repository, kind, "producer", bootstrap, &options)?;
        self.producers.push(driver);
        Ok(())
    }

    pub(super) fn start_consumer(
        &mut self,
        repository: &Repository,
        kind: &Kind,
        bootstrap: &str,
    ) -> anyhow::Result<()> {
        let group = format!("{TOPIC}-{}", kind.name);
        let options = ["--group", &group, "--reset", "earliest"].map(str::to_owned);
        let driver = self.start(repository, kind, "consumer", bootstrap, &options)?;
        self.consumers.push(driver);
        Ok(())
    }

    fn start(
        &self,
        repository: &Repository,
        kind: &Kind,
        role: &str,
        bootstrap: &str,
        options: &[String],
    ) -> anyhow::Result<Driver> {
        let stem = self.directory.join(format!("{}-{role}", kind.name));
        let (out, log) = (stem.with_extension("tsv"), stem.with_extension("log"));
        let said = File::create(&log)?;
        let mut command = repository.driver();
        command.args([kind.name, role, "--bootstrap", bootstrap, "--topic", TOPIC]).args(options);
        command.arg("--out").arg(&out).stdin(Stdio::piped()).stdout(said.try_clone()?).stderr(said);
        let child =
            command.kill_on_drop(true).spawn().with_context(|| format!("start the {} client", kind.name))?;
        Ok(Driver { name: kind.name, history: History::new(out), log, child })
    }

    /// Reads what was logged meanwhile.
    ///
    /// # Errors
    /// A client has ended by itself.
    pub(super) fn refresh(&mut self) -> anyhow::Result<()> {
        for driver in self.producers.iter_mut().chain(&mut self.consumers) {
            driver.check_alive()?;
            driver.history.refresh()?;
        }
        Ok(())
    }

    pub(super) async fn stop_producers(&mut self) -> anyhow::Result<()> {
        stop_all(&mut self.producers).await
    }

    pub(super) async fn stop_consumers(&mut self) -> anyhow::Result<()> {
        stop_all(&mut self.consumers).await
    }

    pub(super) fn acknowledged(&self) -> u64 {
        self.producers.iter().map(|driver| driver.history.acknowledged()).sum()
    }

    pub(super) fn delivered(&self) -> u64 {
        self.consumers.iter().map(|driver| driver.history.delivered()).sum()
    }

    pub(super) fn errors(&self) -> u64 {
        self.producers.iter().chain(&self.consumers).map(|driver| driver.history.errors()).sum()
    }
}

/// Asks all before it waits for one.
async fn stop_all(drivers: &mut [Driver]) -> anyhow::Result<()> {
    for driver in drivers.iter_mut() {
        drop(driver.child.stdin.take());
    }
    for driver in drivers {
        driver.stop().await?;
    }
    Ok(())
}
