//! The verdict of the independent checker over all histories and both clusters' logs.

use std::ffi::{OsStr, OsString};
use std::process::Stdio;

use super::TOPIC;
use super::drivers::{Cast, Driver};
use super::repository::Repository;
use super::stage::Stage;

/// Runs the checker and shows its report; `true` when nothing was lost, written twice, reordered or misread.
pub(super) async fn judge(repository: &Repository, stage: &Stage, cast: &Cast) -> anyhow::Result<bool> {
    let mut checker = repository.checker()?;
    // Named without their folder, which is gone when somebody reads this.
    if let Some(folder) = cast.producers.first().and_then(|driver| driver.history.path().parent()) {
        checker.arg("--folder").arg(folder);
    }
    let files = |drivers: &'static str, of: &[Driver]| {
        let names = of.iter().filter_map(|driver| driver.history.path().file_name().map(OsStr::to_owned));
        [drivers.into()].into_iter().chain(names).collect::<Vec<OsString>>()
    };
    checker.args(files("--producers", &cast.producers)).args(files("--consumers", &cast.consumers));
    checker.args([
        "--source",
        &stage.source_address(),
        "--target",
        &stage.target_address(),
        "--topic",
        TOPIC,
    ]);
    let status = checker.stdin(Stdio::null()).kill_on_drop(true).status().await?;
    println!();
    if status.success() {
        println!(
            "PASS: {} records acknowledged, each once in the two clusters' logs, in order, and read by every group.",
            cast.acknowledged()
        );
    } else {
        println!("FAIL: see the checker's report above.");
    }
    Ok(status.success())
}
