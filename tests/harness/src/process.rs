//! Child processes that do not outlive us and are ended by handle, never by name.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use crate::error::{HarnessError, IoContext, Result};
use crate::prerequisites;

const POLL: Duration = Duration::from_millis(20);
/// How much of a log an error message shows, in lines.
const TAIL: usize = 25;

/// A running program with its log file; killed when dropped.
#[derive(Debug)]
pub(crate) struct Process {
    name: String,
    log: PathBuf,
    child: Child,
}

impl Process {
    /// Starts `command` in `dir`; output is appended to `log`.
    pub(crate) fn start(mut command: Command, name: &str, dir: &Path, log: PathBuf) -> Result<Self> {
        let out = append(&log)?;
        let err = out.try_clone().context("open", &log)?;
        command.current_dir(dir).stdin(Stdio::null()).stdout(out).stderr(err);
        let child = spawn(command, name)?;
        Ok(Self { name: name.to_owned(), log, child })
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Fails with the end of the log if the program is not running any more.
    pub(crate) fn check_alive(&mut self) -> Result<()> {
        match self.child.try_wait() {
            Ok(None) => Ok(()),
            Ok(Some(status)) => Err(self.exited(status)),
            Err(source) => Err(HarnessError::Io { action: format!("wait for {}", self.name), source }),
        }
    }

    /// Sends a signal by name (`TERM`, `STOP`, `CONT`). The id cannot be another's: it is not reaped while we hold it.
    pub(crate) fn signal(&self, signal: &str) -> Result<()> {
        let pid = self.child.id().to_string();
        let status = Command::new("sh").args(["-c", "kill -s \"$0\" \"$1\"", signal, &pid]).status();
        match status {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => Err(HarnessError::Command {
                command: format!("kill -s {signal} ({})", self.name),
                status: status.to_string(),
                output: String::new(),
            }),
            Err(source) => Err(HarnessError::Io { action: format!("signal {}", self.name), source }),
        }
    }

    /// Waits for the end; the status of a program that ends within `limit`.
    pub(crate) fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let deadline = Instant::now() + limit;
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) => return Ok(status),
                Ok(None) if Instant::now() < deadline => thread::sleep(POLL),
                Ok(None) => {
                    let what = format!("the end of {}", self.name);
                    return Err(HarnessError::Timeout { what, after: limit, last: tail(&self.log) });
                }
                Err(source) => {
                    return Err(HarnessError::Io { action: format!("wait for {}", self.name), source });
                }
            }
        }
    }

    /// Waits for a program that is expected to succeed.
    pub(crate) fn wait_success(&mut self, limit: Duration) -> Result<()> {
        let status = self.wait(limit)?;
        if status.success() { Ok(()) } else { Err(self.exited(status)) }
    }

    /// SIGTERM and wait; what does not end within `limit` is killed and reported.
    pub(crate) fn terminate(mut self, limit: Duration) -> Result<()> {
        if self.child.try_wait().ok().flatten().is_none() {
            self.signal("TERM")?;
        }
        self.wait(limit).map(|_| ())
    }

    /// SIGKILL; returns when the process is gone.
    pub(crate) fn kill(mut self) {
        self.kill_now();
    }

    fn kill_now(&mut self) {
        // Both fail only if it has already been reaped.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    fn exited(&self, status: ExitStatus) -> HarnessError {
        HarnessError::Exited { name: self.name.clone(), status: status.to_string(), log: tail(&self.log) }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill_now();
    }
}

/// A small JVM running `class`: heap in MiB, quick to start rather than fast at its peak, except with `CROSSOVER_JIT=full`.
pub(crate) fn java(heap_mb: u16, classpath: &OsStr, class: &str) -> Result<Command> {
    let java = prerequisites::java()?;
    let mut command = dies_with_parent(&java);
    command
        // In the environment, so that a process list stays readable.
        .env("CLASSPATH", classpath)
        .arg(format!("-Xmx{heap_mb}m"))
        .args(["-XX:+UseSerialGC", "-XX:+ExitOnOutOfMemoryError"])
        .arg(format!("-XX:TieredStopAtLevel={}", jit_level()))
        // Its file in a shared folder is found locked now and then, and the JVM says so among a tool's words.
        .arg("-XX:-UsePerfData")
        .args(["-Djava.awt.headless=true", "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn"])
        .args(["-Dorg.slf4j.simpleLogger.showDateTime=true"])
        .arg("-Dorg.slf4j.simpleLogger.dateTimeFormat=yyyy-MM-dd'T'HH:mm:ss.SSS")
        .arg(class);
    Ok(command)
}

/// What is measured for minutes runs as in production; what is up for seconds does not pay for the optimizing compiler.
fn jit_level() -> u8 {
    if std::env::var_os("CROSSOVER_JIT").is_some_and(|jit| jit == "full") { 4 } else { 1 }
}

/// Through `setpriv` the kernel kills the program when we die, however we die.
fn dies_with_parent(program: &Path) -> Command {
    static SETPRIV: OnceLock<bool> = OnceLock::new();
    let available = *SETPRIV.get_or_init(|| {
        let mut probe = Command::new("setpriv");
        probe.args(["--pdeathsig", "KILL", "true"]).stderr(Stdio::null());
        probe.status().is_ok_and(|status| status.success())
    });
    if !available {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(program);
    command
}

type Request = (Command, Sender<io::Result<Child>>);

/// Spawns on one thread that lives as long as the process: the parent-death signal is tied to the *thread* that
/// spawned, and callers run on pool threads that end when idle.
pub(crate) fn spawn(command: Command, name: &str) -> Result<Child> {
    static SPAWNER: OnceLock<Sender<Request>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (sender, requests) = channel::<Request>();
        thread::spawn(move || {
            for (mut command, reply) in requests {
                let _ = reply.send(command.spawn());
            }
        });
        sender
    });
    let (reply, answer) = channel();
    let gone = || io::Error::other("the spawning thread has ended");
    let child = match spawner.send((command, reply)) {
        Ok(()) => answer.recv().unwrap_or_else(|_| Err(gone())),
        Err(_) => Err(gone()),
    };
    child.map_err(|source| HarnessError::Io { action: format!("start {name}"), source })
}

fn append(path: &Path) -> Result<File> {
    OpenOptions::new().create(true).append(true).open(path).context("open", path)
}

/// The last lines of a log, for error messages.
fn tail(path: &Path) -> String {
    let text = std::fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    let start = lines.len().saturating_sub(TAIL);
    format!("{}\n{}", path.display(), lines.get(start..).unwrap_or_default().join("\n"))
}
