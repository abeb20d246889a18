//! `crossover run`: not built into this binary yet.

use crossover_config::Config;

/// Serves until SIGTERM.
///
/// # Errors
/// Always, until the shell is in place.
#[expect(clippy::unused_async, reason = "the signature the command line relies on")]
pub(crate) async fn run(_config: Config) -> anyhow::Result<()> {
    anyhow::bail!("`run` is not built yet")
}

/// The stored state as text, or as JSON.
///
/// # Errors
/// Always, until the store is in place.
pub(crate) fn show_state(_config: &Config, _json: bool) -> anyhow::Result<String> {
    anyhow::bail!("`state show` is not built yet")
}
