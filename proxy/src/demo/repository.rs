//! The checkout this binary was built from: the client drivers and the checker are there.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::ensure;
use tokio::process::Command;

pub(super) struct Repository(PathBuf);

impl Repository {
    /// `$CROSSOVER_REPOSITORY`, else where the binary was compiled.
    pub(super) fn find() -> anyhow::Result<Repository> {
        let set: Option<OsString> =
            std::env::var_os("CROSSOVER_REPOSITORY").filter(|value| !value.is_empty());
        let root = match set {
            Some(root) => PathBuf::from(root),
            None => Path::new(env!("CARGO_MANIFEST_DIR")).join(".."),
        };
        ensure!(
            root.join("tests/drivers/run.sh").is_file(),
            "the client drivers are not in {}; set CROSSOVER_REPOSITORY to a checkout of Crossover",
            root.display()
        );
        Ok(Repository(root))
    }

    /// Becomes the driver; see `loadtest/README.md`.
    pub(super) fn driver(&self) -> Command {
        Command::new(self.0.join("tests/drivers/run.sh"))
    }

    /// Fetches and builds drivers.
    pub(super) fn setup(&self) -> Command {
        Command::new(self.0.join("tests/drivers/setup.sh"))
    }

    /// The checker: built beside this binary, else built now.
    pub(super) fn checker(&self) -> anyhow::Result<Command> {
        let beside = std::env::current_exe()?.with_file_name("crossover-check");
        if beside.is_file() {
            return Ok(Command::new(beside));
        }
        let mut cargo = Command::new("cargo");
        cargo.current_dir(&self.0).args([
            "run",
            "-q",
            "-p",
            "crossover-loadtest",
            "--bin",
            "crossover-check",
            "--",
        ]);
        Ok(cargo)
    }
}
