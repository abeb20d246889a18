//! RULES R31: two processes on two machines serve one pair of clusters. The earlier one learns of it at its next flip.

use anyhow::{Context, Result, ensure};
use crossover_harness::rig::Rig;
use crossover_tests::live::{PARTITIONS, TOPIC, create_topic};
use crossover_tests::{binary, flip, one_at_a_time, rig, text, wait_count, wait_for};
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

const WAIT: Duration = Duration::from_secs(60);

/// A second process with a state of its own, restored from the clusters.
struct Second {
    process: Child,
    bootstrap: String,
    admin: String,
}

impl Drop for Second {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Second {
    fn start(rig: &Rig) -> Result<Second> {
        let directory = rig.directory.join("second");
        std::fs::create_dir_all(&directory)?;
        let first = std::fs::read_to_string(rig.directory.join("crossover.toml"))?;
        // Another machine: the restored state has the same ports there.
        let moved = first.replace("127.0.0.1:", "127.0.0.2:");
        let own = moved.lines().map(|line| {
            let is_cluster = line.starts_with("bootstrap = [");
            if is_cluster { line.replace("127.0.0.2:", "127.0.0.1:") } else { line.to_owned() }
        });
        let own: Vec<String> = own.collect();
        let (bootstrap, admin) =
            (rig.bootstrap.replace("127.0.0.1", "127.0.0.2"), rig.admin.replace("127.0.0.1", "127.0.0.2"));
        std::fs::write(directory.join("crossover.toml"), own.join("\n"))?;
        let crossover = || -> Result<Command> {
            let mut command = Command::new(binary("crossover")?);
            command.current_dir(&directory).stdin(Stdio::null());
            Ok(command)
        };
        let restored = crossover()?.args(["state", "restore", "--config", "crossover.toml"]).output()?;
        ensure!(restored.status.success(), "not restored: {}", text(&restored));
        let log = std::fs::File::create(directory.join("crossover.log"))?;
        let mut run = crossover()?;
        run.args(["run", "--config", "crossover.toml"]).stdout(Stdio::piped()).stderr(log);
        let mut process = run.spawn()?;
        let mut line = String::new();
        BufReader::new(process.stdout.take().context("no output")?).read_line(&mut line)?;
        ensure!(line.trim() == "ready", "the second process is not ready: {line:?}");
        Ok(Second { process, bootstrap, admin })
    }

    fn flip(&self, rig: &Rig, verb: &str) -> Result<String> {
        let path: PathBuf = binary("crossover")?;
        let output = Command::new(path)
            .args([verb, TOPIC, "--admin", &self.admin])
            .current_dir(&rig.directory)
            .output()?;
        ensure!(output.status.success(), "{verb} by the second process: {}", text(&output));
        Ok(text(&output))
    }
}

#[test]
fn r31_a_process_that_another_machine_has_replaced_takes_no_more_writes() -> Result<()> {
    let _turn = one_at_a_time();
    let mut rig = rig("3.9.2", "4.3.1", 1)?;
    rig.keep = true;
    create_topic(&rig)?;
    let args = |writer| ["--topic", TOPIC, "--partitions", PARTITIONS, "--rate", "50", "--writer", writer];
    let mut before = rig.driver("java-3.9.2", "producer", "first", &args("1"))?;
    wait_count(&mut before, "P.ok", 50, WAIT)?;
    flip(&rig, "cutover", &[TOPIC])?;
    let log = rig.directory.join("crossover.log");
    wait_for(WAIT, "the copies to be written", || {
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        Ok(text.matches("the copy of the state is up to date").count() >= 2)
    })?;

    let second = Second::start(&rig)?;
    let mut after = rig.driver_at(&second.bootstrap, "java-4.3.1", "producer", "second", &args("2"))?;
    wait_count(&mut after, "P.ok", 50, WAIT)?;
    let refused = flip(&rig, "rollback", &[TOPIC]).err().map(|e| format!("{e:#}")).unwrap_or_default();
    ensure!(refused.contains("another crossover process has taken over"), "not refused: {refused}");
    let status = text(&rig.crossover(&["status"])?);
    ensure!(status.contains("taken-over"), "no alarm:\n{status}");

    // What was under way is over; from then on nothing is taken, and the second process goes on.
    let (old, new) = (before.count("P.ok"), after.count("P.ok"));
    wait_count(&mut after, "P.ok", new + 100, WAIT)?;
    let taken = before.count("P.ok") - old;
    ensure!(taken < 20, "the first process has taken {taken} more records");
    println!("{}", second.flip(&rig, "rollback")?);
    let new = after.count("P.ok");
    wait_count(&mut after, "P.ok", new + 50, WAIT)?;

    // Started again, it finds that its state is an old one.
    rig.stop_proxy()?;
    let refused = rig.start_proxy().err().map(|e| e.to_string()).unwrap_or_default();
    ensure!(refused.contains("state restore"), "an old state was not refused: {refused}");
    drop(second);
    rig.keep = false;
    Ok(())
}
