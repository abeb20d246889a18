//! Clients that stand still.

use anyhow::{Result, ensure};
use crossover_harness::rig::Driver;

/// A client that is stopped for a while, with all its processes.
pub struct Paused(Vec<u32>);

impl Paused {
    /// # Errors
    /// It is gone.
    pub fn new(driver: &Driver) -> Result<Paused> {
        let mut all = vec![driver.pid()];
        let mut next = 0;
        while let Some(pid) = all.get(next) {
            let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
            all.extend(children.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
            next += 1;
        }
        let paused = Paused(all);
        ensure!(paused.signal("-STOP"), "{} cannot be stopped", driver.name);
        Ok(paused)
    }

    fn signal(&self, signal: &str) -> bool {
        let all = self.0.iter().map(ToString::to_string);
        let status = std::process::Command::new("kill").arg(signal).args(all).status();
        status.is_ok_and(|status| status.success())
    }
}

impl Drop for Paused {
    fn drop(&mut self) {
        self.signal("-CONT");
    }
}
