//! Runs the test programs with one mutant, or with none.

use crate::scratch::Programs;
use anyhow::{Context, Result, ensure};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// What a mutant may use, in KiB: one that collects for ever must not take the machine with it.
const MEMORY_KIB: u64 = 6 << 20;
/// A mutant that takes so many times as long as no mutant hangs.
const PATIENCE: u32 = 10;
const SHORTEST_LIMIT: Duration = Duration::from_secs(20);
const LONGEST_LIMIT: Duration = Duration::from_secs(600);

struct Suite {
    name: &'static str,
    program: PathBuf,
    arguments: Vec<String>,
    limit: Duration,
}

/// The suites in the order in which they are asked.
pub(crate) struct Suites {
    suites: Vec<Suite>,
    directory: PathBuf,
    /// What the last one said.
    output: PathBuf,
    /// The range of schedules that the simulator plays.
    seeds: String,
}

/// What became of one mutant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Survived,
    /// By which suite, and its first test that failed.
    Failed(String),
    /// In which suite.
    TimedOut(String),
}

impl Suites {
    pub(crate) fn new(programs: Programs, output: PathBuf, seeds: &str) -> Suites {
        let suite = |name, program, arguments: &[&str]| {
            let arguments = arguments.iter().map(|&argument| argument.to_owned()).collect();
            Suite { name, program, arguments, limit: LONGEST_LIMIT }
        };
        let suites = vec![
            suite("unit", programs.unit, &[]),
            suite("sim", programs.simulator, &["--exact", "schedules_hold"]),
        ];
        Suites { suites, directory: programs.directory, output, seeds: seeds.to_owned() }
    }

    /// Runs everything without a mutant, which also says how long a mutant may take.
    ///
    /// # Errors
    /// When a test fails, or none is there.
    pub(crate) fn calibrate(&mut self) -> Result<()> {
        for index in 0..self.suites.len() {
            let name = self.suites[index].name;
            let (verdict, took) = self.run(&self.suites[index], 0)?;
            let said = std::fs::read_to_string(&self.output)?;
            ensure!(verdict == Verdict::Survived, "{name} fails without a mutant: {verdict:?}\n{said}");
            ensure!(!said.contains("ok. 0 passed"), "{name} has no tests");
            let limit = (took * PATIENCE).clamp(SHORTEST_LIMIT, LONGEST_LIMIT);
            println!(
                "{name}: {:.1} s without a mutant, at most {} s with one",
                took.as_secs_f64(),
                limit.as_secs()
            );
            self.suites[index].limit = limit;
        }
        Ok(())
    }

    /// The first suite that notices the mutant, and how long all took.
    ///
    /// # Errors
    /// When a program does not start.
    pub(crate) fn judge(&self, id: u32) -> Result<(Verdict, Duration)> {
        let mut all = Duration::ZERO;
        for suite in &self.suites {
            let (verdict, took) = self.run(suite, id)?;
            all += took;
            if verdict != Verdict::Survived {
                return Ok((verdict, all));
            }
        }
        Ok((Verdict::Survived, all))
    }

    fn run(&self, suite: &Suite, id: u32) -> Result<(Verdict, Duration)> {
        let limited = format!("ulimit -v {MEMORY_KIB}; ulimit -c 0; exec \"$0\" \"$@\"");
        let mut command = Command::new("sh");
        command.arg("-c").arg(limited).arg(&suite.program).args(&suite.arguments);
        command.current_dir(&self.directory).env("CROSSOVER_MUTANT", id.to_string());
        command.env("CROSSOVER_SEEDS", &self.seeds);
        // The same examples for every mutant, and none that a former one has left behind.
        command.env("PROPTEST_RNG_SEED", "1").env("PROPTEST_DISABLE_FAILURE_PERSISTENCE", "1");
        let said = File::create(&self.output).with_context(|| self.output.display().to_string())?;
        command.stdin(Stdio::null()).stderr(said.try_clone()?).stdout(said);
        let started = Instant::now();
        let ended = wait(command, started + suite.limit)?;
        let verdict = match ended {
            None => Verdict::TimedOut(suite.name.to_owned()),
            Some(status) if status.success() => Verdict::Survived,
            Some(_) => Verdict::Failed(format!("{}: {}", suite.name, first_failure(&self.output)?)),
        };
        Ok((verdict, started.elapsed()))
    }
}

/// `None`: it was ended.
fn wait(mut command: Command, until: Instant) -> Result<Option<ExitStatus>> {
    let mut child = command.spawn().context("a test program does not start")?;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= until {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn first_failure(output: &Path) -> Result<String> {
    let said = String::from_utf8_lossy(&std::fs::read(output)?).into_owned();
    let mut failed = said.lines().filter_map(|line| line.strip_prefix("test ")?.strip_suffix(" ... FAILED"));
    // A program that was aborted has not come to say it.
    Ok(failed.next().unwrap_or("ended").to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.arg("-c").arg(script);
        command
    }

    #[test]
    fn what_hangs_is_ended() {
        let until = |ms| Instant::now() + Duration::from_millis(ms);
        assert_eq!(wait(shell("exec sleep 60"), until(50)).expect("started"), None);
        let failed = wait(shell("exit 3"), until(60_000)).expect("started");
        assert_eq!(failed.and_then(|status| status.code()), Some(3));
    }
}
