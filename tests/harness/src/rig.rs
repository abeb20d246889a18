//! Two clusters, a running Crossover between them, and client drivers: what the demo and the end-to-end tests share.

use std::collections::{BTreeMap, HashMap};
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use crate::error::{HarnessError, Result};
use crate::relay::Relay;
use crate::{Cluster, ClusterSpec, Listener};

const NODE_PORTS: u16 = 16;
/// The brokers' listener behind relays.
pub const RELAYED: &str = "RELAYED";
const READY_MAX: Duration = Duration::from_secs(60);
const DRIVER_END_MAX: Duration = Duration::from_secs(40);

/// What to set up.
#[derive(Clone, Debug)]
pub struct RigSpec {
    pub source: ClusterSpec,
    pub target: ClusterSpec,
    /// The `crossover` binary.
    pub crossover: PathBuf,
    /// The repository: drivers are found in it.
    pub repository: PathBuf,
    /// Added to the configuration file.
    pub extra_config: String,
    /// Put a [`Relay`] between the proxy and each broker.
    pub relayed: bool,
}

/// Both clusters, the proxy, and a folder for everything. Dropping it ends all processes.
pub struct Rig {
    pub source: Cluster,
    pub target: Cluster,
    pub directory: PathBuf,
    /// What clients are given.
    pub bootstrap: String,
    /// The admin API's URL.
    pub admin: String,
    /// By side (source, target) and broker, if asked for.
    pub relays: [BTreeMap<i32, Relay>; 2],
    proxy: Child,
    spec: RigSpec,
    /// Kept after the end: something failed.
    pub keep: bool,
}

/// A running client.
pub struct Driver {
    pub name: String,
    /// Its history file.
    pub history: PathBuf,
    child: Child,
    stdin: Option<ChildStdin>,
    tally: Tally,
}

/// How often each event occurs in a history that grows. Reads only what is new.
#[derive(Default)]
struct Tally {
    read_to: u64,
    /// Not yet ended by a line end.
    rest: Vec<u8>,
    counts: HashMap<String, usize>,
}

fn io(what: &str) -> impl FnOnce(std::io::Error) -> HarnessError + '_ {
    move |error| HarnessError::Spec(format!("{what}: {error}"))
}

impl Rig {
    /// Starts everything and waits until the proxy says that it is ready.
    ///
    /// # Errors
    /// A cluster or the proxy does not start.
    pub fn start(spec: RigSpec) -> Result<Rig> {
        static NEXT: AtomicU16 = AtomicU16::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let directory = std::env::temp_dir().join(format!("crossover-rig-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&directory).map_err(io("the rig's folder"))?;
        let [source_spec, target_spec] = [&spec.source, &spec.target].map(|cluster| {
            let mut cluster = cluster.clone();
            if spec.relayed {
                let (name, protocol) = (RELAYED.to_owned(), "PLAINTEXT".to_owned());
                cluster.listeners.push(Listener { name, protocol, relayed: true });
            }
            cluster
        });
        let (source, target) = std::thread::scope(|scope| {
            let source = scope.spawn(|| Cluster::start(&source_spec));
            let target = Cluster::start(&target_spec);
            (source.join(), target)
        });
        let source = source.map_err(|_| HarnessError::Spec("the source's start panicked".to_owned()))??;
        let target = target?;
        let relays = [relays(&source)?, relays(&target)?];
        let base = free_range(NODE_PORTS + 2)?;
        let (bootstrap, admin) = (format!("127.0.0.1:{base}"), format!("127.0.0.1:{}", base + 1));
        let config = format!(
            "[source]\nbootstrap = [{}]\n\n[target]\nbootstrap = [{}]\n\n[listener]\nbootstrap = \"{bootstrap}\"\nnode_ports = \"{}-{}\"\n\n[admin]\naddress = \"{admin}\"\n\n[state]\ndirectory = \"crossover-state\"\n\n{}",
            quoted(&seen_by_proxy(&source)),
            quoted(&seen_by_proxy(&target)),
            base + 2,
            base + 1 + NODE_PORTS,
            spec.extra_config,
        );
        std::fs::write(directory.join("crossover.toml"), config).map_err(io("crossover.toml"))?;
        let proxy = start_proxy(&spec.crossover, &directory)?;
        Ok(Rig {
            source,
            target,
            directory,
            bootstrap,
            admin: format!("http://{admin}"),
            relays,
            proxy,
            spec,
            keep: false,
        })
    }

    /// Runs a `crossover` command against the running proxy.
    ///
    /// # Errors
    /// It cannot be run; its exit status is the caller's to judge.
    pub fn crossover(&self, args: &[&str]) -> Result<Output> {
        command(self, args).output().map_err(io("crossover"))
    }

    /// Starts a client. `args` follow loadtest/README.md; bootstrap and history file are added.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn driver(&self, driver: &str, role: &str, name: &str, args: &[&str]) -> Result<Driver> {
        self.driver_at(&self.bootstrap, driver, role, name, args)
    }

    /// As [`Rig::driver`], at another bootstrap address.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn driver_at(
        &self,
        bootstrap: &str,
        driver: &str,
        role: &str,
        name: &str,
        args: &[&str],
    ) -> Result<Driver> {
        let history = self.directory.join(format!("{name}.history"));
        let log = std::fs::File::create(self.directory.join(format!("{name}.log")))
            .map_err(io("a driver's log"))?;
        let copy = log.try_clone().map_err(io("a driver's log"))?;
        let mut command = Command::new("bash");
        command.arg(self.spec.repository.join("tests/drivers/run.sh")).args([driver, role]);
        command.args(["--bootstrap", bootstrap]).arg("--out").arg(&history).args(args);
        command.stdin(Stdio::piped()).stdout(log).stderr(copy);
        let mut child = command.spawn().map_err(io("a driver"))?;
        let stdin = child.stdin.take();
        Ok(Driver { name: name.to_owned(), history, child, stdin, tally: Tally::default() })
    }

    /// Kills the proxy (SIGKILL); it can be started again.
    pub fn kill_proxy(&mut self) {
        let _ = self.proxy.kill();
        let _ = self.proxy.wait();
    }

    /// The process id of the proxy.
    #[must_use]
    pub fn proxy_pid(&self) -> u32 {
        self.proxy.id()
    }

    /// Whether the proxy still runs.
    pub fn is_proxy_alive(&mut self) -> bool {
        matches!(self.proxy.try_wait(), Ok(None))
    }

    /// Asks the proxy to end (SIGTERM) and waits; it can be started again.
    ///
    /// # Errors
    /// It does not end.
    pub fn stop_proxy(&mut self) -> Result<()> {
        signal(self.proxy.id(), "TERM");
        wait(&mut self.proxy, Duration::from_secs(30))
            .then_some(())
            .ok_or_else(|| HarnessError::Spec("the proxy does not end".to_owned()))
    }

    /// Starts the proxy again with the same configuration and state.
    ///
    /// # Errors
    /// It does not become ready.
    pub fn start_proxy(&mut self) -> Result<()> {
        self.proxy = start_proxy(&self.spec.crossover, &self.directory)?;
        Ok(())
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        signal(self.proxy.id(), "TERM");
        if !wait(&mut self.proxy, Duration::from_secs(5)) {
            let _ = self.proxy.kill();
            let _ = self.proxy.wait();
        }
        if !self.keep {
            let _ = std::fs::remove_dir_all(&self.directory);
        }
    }
}

impl Driver {
    /// Asks it to end, waits, and says whether it ended well.
    pub fn stop(mut self) -> bool {
        // No signal besides: one that meets an interpreter on its way out, its handlers already gone, kills it.
        drop(self.stdin.take());
        let ended = wait(&mut self.child, DRIVER_END_MAX);
        if !ended {
            let _ = self.child.kill();
        }
        let status = self.child.wait();
        let well = ended && status.as_ref().is_ok_and(ExitStatus::success);
        if !well {
            eprintln!("{}: ended in time: {ended}, {status:?}", self.name);
        }
        well
    }

    /// Lines of its history that carry an event.
    pub fn count(&mut self, event: &str) -> usize {
        let _ = self.tally.read_on(&self.history);
        self.tally.counts.get(event).copied().unwrap_or_default()
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it still runs.
    pub fn is_alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        drop(self.stdin.take());
        if matches!(self.child.try_wait(), Ok(None)) {
            signal(self.child.id(), "TERM");
            if !wait(&mut self.child, Duration::from_secs(3)) {
                let _ = self.child.kill();
            }
            let _ = self.child.wait();
        }
    }
}

impl Tally {
    fn read_on(&mut self, history: &Path) -> std::io::Result<()> {
        let mut file = std::fs::File::open(history)?;
        file.seek(SeekFrom::Start(self.read_to))?;
        let new = file.read_to_end(&mut self.rest)?;
        self.read_to += u64::try_from(new).unwrap_or_default();
        let whole = self.rest.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let lines = self.rest.drain(..whole).collect::<Vec<u8>>();
        for line in lines.split(|byte| *byte == b'\n') {
            let Some(event) = line.split(|byte| *byte == b'\t').nth(1) else { continue };
            *self.counts.entry(String::from_utf8_lossy(event).into_owned()).or_default() += 1;
        }
        Ok(())
    }
}

/// Lines of a history file that carry an event.
#[must_use]
pub fn count(history: &Path, event: &str) -> usize {
    let wanted = format!("\t{event}\t");
    let Ok(text) = std::fs::read(history) else { return 0 };
    String::from_utf8_lossy(&text).lines().filter(|line| line.contains(&wanted)).count()
}

/// A `crossover` command against a rig's proxy, to be run by the caller.
#[must_use]
pub fn command(rig: &Rig, args: &[&str]) -> Command {
    let mut command = Command::new(&rig.spec.crossover);
    command.args(args).args(["--admin", &rig.admin]).current_dir(&rig.directory).stdin(Stdio::null());
    command
}

/// A relay in front of every broker of a cluster that has the listener for it.
fn relays(cluster: &Cluster) -> Result<BTreeMap<i32, Relay>> {
    let addresses = cluster.relay_addresses(RELAYED).into_iter();
    addresses.map(|(id, listen, to)| Ok((id, Relay::start(listen, to)?))).collect()
}

fn seen_by_proxy(cluster: &Cluster) -> String {
    let relayed = cluster.relay_bootstrap(RELAYED);
    if relayed.is_empty() { cluster.bootstrap() } else { relayed }
}

fn start_proxy(crossover: &Path, directory: &Path) -> Result<Child> {
    let log = std::fs::OpenOptions::new().create(true).append(true).open(directory.join("crossover.log"));
    let log = log.map_err(io("crossover.log"))?;
    let mut command = Command::new(crossover);
    command.args(["run", "--config", "crossover.toml"]).current_dir(directory);
    command.env("CROSSOVER_FAILPOINTS", directory.join("failpoints"));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
    let mut child = command.spawn().map_err(io("crossover"))?;
    let stdout = child.stdout.take();
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut line = String::new();
        if let Some(stdout) = stdout {
            let _ = BufReader::new(stdout).read_line(&mut line);
        }
        let _ = sender.send(line);
    });
    let line = receiver.recv_timeout(READY_MAX).unwrap_or_default();
    if line.trim() != "ready" {
        let _ = child.kill();
        let _ = child.wait();
        let log = std::fs::read_to_string(directory.join("crossover.log")).unwrap_or_default();
        let _ = std::io::stderr().flush();
        return Err(HarnessError::Spec(format!("crossover did not become ready:\n{log}")));
    }
    Ok(child)
}

fn quoted(bootstrap: &str) -> String {
    bootstrap.split(',').map(|a| format!("\"{a}\"")).collect::<Vec<_>>().join(", ")
}

/// The first of `count` free ports in a row, below the kernel's ephemeral range.
fn free_range(count: u16) -> Result<u16> {
    let start = 10_000 + u16::try_from(std::process::id() % 500).unwrap_or(0) * 20;
    (0..1_000u16)
        .map(|i| 10_000 + (start - 10_000 + i * 20) % 20_000)
        .find(|base| (*base..base + count).all(|port| TcpListener::bind(("127.0.0.1", port)).is_ok()))
        .ok_or_else(|| HarnessError::Spec("no free ports".to_owned()))
}

fn signal(pid: u32, signal: &str) {
    let _ = Command::new("kill").args([format!("-{signal}"), pid.to_string()]).stderr(Stdio::null()).status();
}

fn wait(child: &mut Child, limit: Duration) -> bool {
    let deadline = Instant::now() + limit;
    loop {
        match child.try_wait() {
            Ok(Some(_)) | Err(_) => return true,
            Ok(None) if Instant::now() > deadline => return false,
            Ok(None) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}
