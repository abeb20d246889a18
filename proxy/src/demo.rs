//! `crossover demo`: two real clusters, live clients, a cutover, a rollback and a second cutover, and a verdict.
//!
//! The verdict is not this program's: an independent checker reads what the clients logged and both clusters' logs.

mod drivers;
mod history;
mod repository;
mod screen;
mod stage;
mod verdict;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::signal::unix::{Signal, SignalKind, signal};

use drivers::{Cast, Kind};
use repository::Repository;
use screen::Screen;
use stage::Stage;

const TOPIC: &str = "orders";
const PARTITIONS: u16 = 12;
/// How long consumers get to read what was acknowledged once producers have stopped.
const CONSUMERS_CATCH_UP: Duration = Duration::from_secs(20);
/// A rebalance delay of the broker, a JVM start and a first fetch, on a loaded machine.
const CLIENTS_START: Duration = Duration::from_secs(40);

/// How often a flip is repeated that was refused because followers lag, and how long after the refusal.
const REPEATS_MAX: u32 = 3;
const REPEAT_PAUSE: Duration = Duration::from_secs(3);

/// Options of the demo.
#[derive(clap::Args, Debug)]
pub(crate) struct DemoArgs {
    /// A shorter run: one producer and one consumer group, less time between the flips.
    #[arg(long)]
    pub(crate) short: bool,
    /// Only the two clusters, each with the topic `orders`, until Ctrl-C: for trying Crossover with a configuration of
    /// one's own.
    #[arg(long, conflicts_with = "short")]
    pub(crate) clusters_only: bool,
}

/// Runs the demo; `false` when its verdict fails. Ctrl-C and SIGTERM end it, and what it started, early.
///
/// # Errors
/// Something of it could not be started, or a flip was refused.
pub(crate) async fn run(args: DemoArgs) -> anyhow::Result<bool> {
    let directory = Directory::create()?;
    let mut terminate = signal(SignalKind::terminate())?;
    if args.clusters_only {
        return clusters_only(&directory, terminate).await;
    }
    // Dropping the story drops its processes, and that kills them.
    let result = tokio::select! {
        result = story(&args, &directory) => result,
        _ = tokio::signal::ctrl_c() => return Err(interrupted()),
        _ = terminate.recv() => return Err(interrupted()),
    };
    if !matches!(result, Ok(true)) {
        directory.keep.store(true, Ordering::Relaxed);
        eprintln!("Logs, histories and the configuration are in {}", directory.path.display());
    }
    result
}

/// Ctrl-C is what ends it, and no failure.
async fn clusters_only(directory: &Arc<Directory>, mut terminate: Signal) -> anyhow::Result<bool> {
    println!("Two Kafka clusters are being started …");
    let shown = async {
        let clusters = stage::start_clusters(directory).await?;
        print!("{}", clusters.introduction());
        std::future::pending().await
    };
    tokio::select! {
        failed = shown => return failed,
        _ = tokio::signal::ctrl_c() => {}
        _ = terminate.recv() => {}
    }
    println!("Both clusters are being ended; nothing will be left running.");
    Ok(true)
}

fn interrupted() -> anyhow::Error {
    // A cluster that is just starting is waited for: it cannot be told to stop before it has.
    eprintln!("Everything that was started is being ended.");
    anyhow::anyhow!("interrupted; nothing is left running")
}

async fn story(args: &DemoArgs, directory: &Arc<Directory>) -> anyhow::Result<bool> {
    let repository = Repository::find()?;
    let between = Duration::from_secs(if args.short { 4 } else { 8 });
    println!("Two Kafka clusters and the client libraries are being prepared …");
    let (kinds, stage) = tokio::join!(drivers::choose(&repository, args.short), Stage::start(directory));
    let (kinds, mut stage) = (kinds?, stage?);
    stage.introduce();
    let mut cast = start_clients(&repository, &stage, &kinds, &directory.path).await?;
    let mut screen = Screen::new(stage.owner().await?);
    screen.until_everyone_works(&mut cast, CLIENTS_START).await?;
    screen.watch(&mut cast, between).await?;
    for (number, command) in ["cutover", "rollback", "cutover"].into_iter().enumerate() {
        screen.say(&format!("Flip {} of 3 begins: the clients go on meanwhile", number + 1));
        flip(command, &stage, &mut cast, &mut screen, between).await?;
    }
    println!("The producers stop; the consumers read what is left.");
    cast.stop_producers().await?;
    screen.until_drained(&mut cast, CONSUMERS_CATCH_UP).await?;
    cast.stop_consumers().await?;
    let passed = verdict::judge(&repository, &stage, &cast).await?;
    stage.stop().await;
    Ok(passed)
}

async fn start_clients(
    repository: &Repository,
    stage: &Stage,
    kinds: &[Kind],
    directory: &Path,
) -> anyhow::Result<Cast> {
    let names: Vec<&str> = kinds.iter().map(|kind| kind.name).collect();
    println!("Clients: {}; each a producer and a consumer group on topic {TOPIC}.", names.join(", "));
    let mut cast = Cast::new(&directory.join("clients"))?;
    for (index, kind) in kinds.iter().enumerate() {
        let writer = u32::try_from(index + 1).context("too many clients")?;
        cast.start_consumer(repository, kind, &stage.clients_address())?;
        cast.start_producer(repository, kind, &stage.clients_address(), writer)?;
    }
    Ok(cast)
}

/// One cutover or rollback, then the time after it, and what the producers saw of it.
async fn flip(
    command: &str,
    stage: &Stage,
    cast: &mut Cast,
    screen: &mut Screen,
    after: Duration,
) -> anyhow::Result<()> {
    let mut repeats = 0..REPEATS_MAX;
    let (began_us, ended_us, record) = loop {
        screen.say(&format!("crossover {command} {TOPIC}"));
        let began_us = history::now_us();
        let record = screen.watch_until(cast, stage.flip(command)).await??;
        let ended_us = history::now_us();
        if record.ok {
            break (began_us, ended_us, record);
        }
        let reason = record.reason.unwrap_or_default();
        // On a machine with far more load than processors followers lag now and then; the remedy is to repeat.
        if !reason.starts_with("log-ends:") || repeats.next().is_none() {
            bail!("{command} did not move {TOPIC}: {reason}");
        }
        screen.say(&format!("refused, nothing was changed: {reason}"));
        screen.watch(cast, REPEAT_PAUSE).await?;
    };
    screen.owner(&record.owner);
    screen.flipped(&record, Duration::from_micros(u64::try_from(ended_us - began_us).unwrap_or(0)));
    screen.watch(cast, after).await?;
    screen.pauses(cast, began_us, ended_us);
    Ok(())
}

/// The demo's own directory; removed when the last who writes to it has ended, unless it is to be kept.
struct Directory {
    path: PathBuf,
    keep: AtomicBool,
}

impl Directory {
    fn create() -> anyhow::Result<Arc<Directory>> {
        let path = std::env::temp_dir().join(format!("crossover-demo-{}", std::process::id()));
        std::fs::create_dir_all(&path).with_context(|| format!("cannot create {}", path.display()))?;
        Ok(Arc::new(Directory { path, keep: AtomicBool::new(false) }))
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        if !self.keep.load(Ordering::Relaxed) {
            // What cannot be removed is litter in the temporary directory, no failure of the demo.
            let _ = std::fs::remove_dir_all(&self.path);
        }
    }
}
