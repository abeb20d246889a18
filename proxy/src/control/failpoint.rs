//! Where tests stop a flip, to place a failure between two of its steps. Compiled in only with the feature `failpoints`.
//!
//! The folder that `CROSSOVER_FAILPOINTS` names: while it holds a file named after a step, the flip writes
//! `<step>.reached` when it has done that step, and waits until the file is gone.

#[cfg(feature = "failpoints")]
pub(crate) async fn reached(step: &str) {
    let Some(folder) = std::env::var_os("CROSSOVER_FAILPOINTS").map(std::path::PathBuf::from) else { return };
    let hold = folder.join(step);
    if !hold.exists() {
        return;
    }
    if let Err(problem) = std::fs::write(folder.join(format!("{step}.reached")), []) {
        tracing::error!("failpoint {step}: {problem}");
    }
    while hold.exists() {
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
}

#[cfg(not(feature = "failpoints"))]
#[expect(clippy::unused_async, reason = "the same call with and without the feature")]
pub(crate) async fn reached(_step: &str) {}
