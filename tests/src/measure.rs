//! Numbers around a run: the machine's load, a process's memory, and pauses as clients saw them.

use anyhow::{Context, Result};
use serde_json::Value;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Unix microseconds, the clock of the histories.
#[must_use]
pub fn now_us() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}

/// The load averages of the last 1, 5 and 15 minutes, and the number of processors.
#[must_use]
pub fn machine_load() -> String {
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load: Vec<&str> = load.split_whitespace().take(3).collect();
    let processors = std::thread::available_parallelism().map_or(0, usize::from);
    format!("load {} on {processors} processors", load.join(" "))
}

/// Memory of a process in KiB.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    pub resident: u64,
    /// The most it ever was.
    pub peak: u64,
}

/// # Errors
/// The process is gone.
pub fn memory(pid: u32) -> Result<Memory> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).context("the process is gone")?;
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).context("no such field")?;
        Ok::<u64, anyhow::Error>(line.trim().trim_end_matches("kB").trim().parse()?)
    };
    Ok(Memory { resident: field("VmRSS:")?, peak: field("VmHWM:")? })
}

/// A stretch of time, unix microseconds.
pub type Window = (i64, i64);

/// What one client saw in one window, in milliseconds; absent where it has no event to tell by.
#[derive(Clone, Copy, Debug)]
pub struct Pause {
    /// Longest time between two acknowledgements or deliveries.
    pub gap_ms: Option<f64>,
    /// Longest wait of one record.
    pub latency_ms: Option<f64>,
}

/// The checker's measurement of each history: its name, and a pause per window.
///
/// # Errors
/// The checker cannot read a history.
pub fn pauses(histories: &[PathBuf], windows: &[Window]) -> Result<Vec<(String, Vec<Pause>)>> {
    let mut command = Command::new(crate::binary("crossover-check")?);
    command.arg("--json").arg("--producers").args(histories);
    for (start, end) in windows {
        command.args(["--window", &format!("{start}:{end}")]);
    }
    let output = command.output()?;
    let report: Value = serde_json::from_slice(&output.stdout)
        .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
    let measured = report["windows"].as_array().context("the checker measured nothing")?;
    let measured = measured.iter().map(|entry| {
        let path = entry[0].as_str().context("a measurement without a name")?;
        let name = PathBuf::from(path).file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let windows = entry[1].as_array().context("a measurement without windows")?;
        Ok((name, windows.iter().map(pause).collect()))
    });
    measured.collect()
}

fn pause(window: &Value) -> Pause {
    let ms = |name: &str| window[name].as_f64().map(|us| us / 1000.0);
    Pause { gap_ms: ms("longest_gap_us"), latency_ms: ms("longest_latency_us") }
}

/// Processor time a process has used, in seconds.
///
/// # Errors
/// The process is gone.
pub fn cpu_seconds(pid: u32) -> Result<f64> {
    let mut nanos = 0_u64;
    for task in std::fs::read_dir(format!("/proc/{pid}/task")).context("the process is gone")? {
        let text = std::fs::read_to_string(task?.path().join("schedstat")).unwrap_or_default();
        nanos += text.split_whitespace().next().and_then(|n| n.parse::<u64>().ok()).unwrap_or_default();
    }
    Ok(Duration::from_nanos(nanos).as_secs_f64())
}
