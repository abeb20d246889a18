//! Judges the histories of a run: exit code 0 pass, 1 fail, 2 unknown.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Parser;
use crossover_loadtest::checker::{Checker, Options, Report, Verdict};
use crossover_loadtest::deviations::Deviations;
use crossover_loadtest::windows::{WindowGap, gap_in_windows};
use crossover_loadtest::{ground_truth, history};

/// Judges client histories, optionally against both clusters' logs. Rules: loadtest/README.md.
#[derive(Parser)]
#[command(version)]
struct Cli {
    /// The folder that histories are in, where they are named without one.
    #[arg(long)]
    folder: Option<PathBuf>,
    /// Histories of producers.
    #[arg(long, num_args = 1.., required = true)]
    producers: Vec<PathBuf>,
    /// Histories of consumers.
    #[arg(long, num_args = 1..)]
    consumers: Vec<PathBuf>,
    /// Histories that may lack their end because the process was killed on purpose.
    #[arg(long, num_args = 1..)]
    killed: Vec<PathBuf>,
    /// Bootstrap address of the source cluster, to dump its log.
    #[arg(long, requires = "topic")]
    source: Option<String>,
    /// Bootstrap address of the target cluster.
    #[arg(long, requires = "topic")]
    target: Option<String>,
    /// Topic to dump; may be given more than once.
    #[arg(long)]
    topic: Vec<String>,
    /// Writers that may write a record twice.
    #[arg(long, value_delimiter = ',')]
    allow_duplicates: Vec<u32>,
    /// Writers whose acknowledged records may be missing.
    #[arg(long, value_delimiter = ',')]
    allow_loss: Vec<u32>,
    /// Histories of consumers to which records may be delivered again.
    #[arg(long, num_args = 1..)]
    allow_redelivery: Vec<PathBuf>,
    /// Events that do not count as application errors, such as `C.commit`.
    #[arg(long, value_delimiter = ',')]
    allow_errors: Vec<String>,
    /// Longest allowed time between two acknowledgements of a writer.
    #[arg(long)]
    max_ack_gap_ms: Option<i64>,
    /// Longest allowed time from send to acknowledgement.
    #[arg(long)]
    max_ack_latency_ms: Option<i64>,
    /// Window to measure pauses in, as START:END in unix microseconds; may be given more than once.
    #[arg(long, value_parser = window)]
    window: Vec<(i64, i64)>,
    /// Print the report as JSON.
    #[arg(long)]
    json: bool,
}

fn window(text: &str) -> Result<(i64, i64), String> {
    let bounds = text.split_once(':').and_then(|(start, end)| Some((start.parse().ok()?, end.parse().ok()?)));
    bounds.filter(|(start, end)| start <= end).ok_or_else(|| "expected START:END in microseconds".to_owned())
}

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(Verdict::Pass) => ExitCode::SUCCESS,
        Ok(Verdict::Fail) => ExitCode::from(1),
        Ok(Verdict::Unknown) => ExitCode::from(2),
        Err(error) => {
            eprintln!("crossover-check: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run(cli: &Cli) -> anyhow::Result<Verdict> {
    if let Some(folder) = &cli.folder {
        std::env::set_current_dir(folder).with_context(|| format!("--folder {}", folder.display()))?;
    }
    if let Some(stray) = cli.killed.iter().find(|path| !files(cli).any(|file| file == *path)) {
        bail!("--killed {}: not among the histories", stray.display());
    }
    if let Some(stray) = cli.allow_redelivery.iter().find(|path| !cli.consumers.contains(path)) {
        bail!("--allow-redelivery {}: not among the consumers", stray.display());
    }
    let mut checker = Checker::new(options(cli));
    for path in files(cli) {
        checker.add_file(path, cli.killed.contains(path));
    }
    add_logs(cli, &mut checker);
    let report = checker.finish();
    let windows = measure(cli)?;
    if cli.json {
        let value = serde_json::json!({ "report": &report, "windows": windows });
        println!("{}", serde_json::to_string_pretty(&value)?);
    } else {
        print(&report, &windows);
    }
    Ok(report.verdict)
}

fn files(cli: &Cli) -> impl Iterator<Item = &PathBuf> {
    cli.producers.iter().chain(&cli.consumers)
}

fn options(cli: &Cli) -> Options {
    Options {
        allow_duplicates: cli.allow_duplicates.iter().copied().collect(),
        allow_loss: cli.allow_loss.iter().copied().collect(),
        allow_redelivery: cli.allow_redelivery.iter().map(|path| path.display().to_string()).collect(),
        allow_errors: cli.allow_errors.iter().cloned().collect(),
        max_ack_gap_us: cli.max_ack_gap_ms.map(|ms| ms.saturating_mul(1000)),
        max_ack_latency_us: cli.max_ack_latency_ms.map(|ms| ms.saturating_mul(1000)),
    }
}

fn add_logs(cli: &Cli, checker: &mut Checker) {
    for (cluster, bootstrap) in [("source", &cli.source), ("target", &cli.target)] {
        let Some(bootstrap) = bootstrap else { continue };
        for topic in &cli.topic {
            match ground_truth::dump(cluster, bootstrap, topic) {
                Ok(truth) => checker.add_ground_truth(truth),
                Err(error) => checker.add_doubt(format!("log of {topic} on {cluster}: {error}")),
            }
        }
    }
}

fn measure(cli: &Cli) -> anyhow::Result<Vec<(String, Vec<WindowGap>)>> {
    if cli.window.is_empty() {
        return Ok(Vec::new());
    }
    let measured = files(cli).map(|path| {
        let entries = history::read(path).with_context(|| path.display().to_string())?;
        Ok((path.display().to_string(), gap_in_windows(&entries, &cli.window)))
    });
    measured.collect()
}

fn print(report: &Report, windows: &[(String, Vec<WindowGap>)]) {
    println!("{:<5}{:<52}{:>12}{:>12}", "id", "check", "examined", "violations");
    for check in &report.checks {
        println!("{:<5}{:<52}{:>12}{:>12}", check.id, check.title, check.examined, check.violations);
        for example in &check.examples {
            println!("       {example}");
        }
    }
    println!(
        "\nThe longest gap between two acknowledgements, or deliveries, and the longest wait of a record for its own:"
    );
    println!("{:>10}{:>8}{:>12}{:>14}  history", "records", "failed", "gap ms", "latency ms");
    for client in &report.clients {
        let (gap, latency) = (ms(client.longest_gap_us), ms(client.longest_latency_us));
        println!("{:>10}{:>8}{gap:>12.1}{latency:>14.1}  {}", client.records, client.failed, client.name);
    }
    for writer in report.deviations.iter().filter(|writer| writer.any()) {
        let Deviations { lost, twice, out_of_order, name, .. } = writer;
        println!("{lost} lost, {twice} twice, {out_of_order} out of order  {name}");
    }
    for (log, count) in &report.log_records {
        println!("{count:>10}  in the log of {log}");
    }
    for (name, gaps) in windows {
        for gap in gaps {
            let show = |us: Option<i64>| us.map_or("-".to_owned(), |us| format!("{:.1}", ms(us)));
            let (silence, latency) = (show(gap.longest_gap_us), show(gap.longest_latency_us));
            println!(
                "window {}:{}  gap {silence} ms  latency {latency} ms  {name}",
                gap.start_us, gap.end_us
            );
        }
    }
    for doubt in &report.doubts {
        println!("unknown: {doubt}");
    }
    println!("verdict: {}", format!("{:?}", report.verdict).to_lowercase());
}

fn ms(us: i64) -> f64 {
    // Display only; microsecond counts of any run are far below 2^52.
    us as f64 / 1000.0
}
