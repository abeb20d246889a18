//! `crossover demo`: not built into this binary yet.

/// Options of the demo.
#[derive(clap::Args, Debug)]
pub(crate) struct DemoArgs {
    /// A shorter run: fewer clients, one cutover and one rollback.
    #[arg(long)]
    pub(crate) short: bool,
}

/// Runs the demo; `false` when its verdict fails.
///
/// # Errors
/// Always, until the demo is in place.
#[expect(clippy::unused_async, reason = "the signature the command line relies on")]
pub(crate) async fn run(args: DemoArgs) -> anyhow::Result<bool> {
    anyhow::bail!("`demo` (short: {}) is not built yet", args.short)
}
