//! Logs, and the counters behind `/metrics`.

use crossover_config::{Log, LogFormat};
use std::fmt::Write as _;
use std::io::IsTerminal as _;
use std::sync::atomic::{AtomicU64, Ordering};
use tracing_subscriber::EnvFilter;

/// Logs go to standard error; standard output carries the one line `ready`.
///
/// # Errors
/// When the filter of the configuration cannot be parsed.
pub(crate) fn init(log: &Log) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(&log.filter).map_err(|e| anyhow::anyhow!("log.filter: {e}"))?;
    let colours = std::io::stderr().is_terminal();
    let builder =
        tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colours).with_writer(std::io::stderr);
    match log.format {
        LogFormat::Text => builder.init(),
        LogFormat::Json => builder.json().init(),
    }
    Ok(())
}

/// A count that only rises.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What the process counts.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    pub(crate) connections: Counter,
    pub(crate) connections_refused: Counter,
    pub(crate) requests: Counter,
    pub(crate) client_bytes_in: Counter,
    pub(crate) client_bytes_out: Counter,
    pub(crate) upstreams: Counter,
    pub(crate) upstreams_lost: Counter,
    pub(crate) bad_requests: Counter,
    pub(crate) bad_answers: Counter,
    pub(crate) control_dropped: Counter,
    pub(crate) holds_expired: Counter,
    pub(crate) flips_done: Counter,
    pub(crate) flips_aborted: Counter,
    pub(crate) group_moves_done: Counter,
    pub(crate) group_moves_aborted: Counter,
}

impl Metrics {
    /// Prometheus text format 0.0.4.
    pub(crate) fn render(&self) -> String {
        let counters: [(&str, &str, &Counter); 15] = [
            ("connections_total", "Client connections accepted.", &self.connections),
            ("connections_refused_total", "Client connections over the limit.", &self.connections_refused),
            ("requests_total", "Client requests.", &self.requests),
            ("client_bytes_in_total", "Bytes read from clients.", &self.client_bytes_in),
            ("client_bytes_out_total", "Bytes written to clients.", &self.client_bytes_out),
            ("upstreams_total", "Connections dialled to brokers.", &self.upstreams),
            ("upstreams_lost_total", "Broker connections that failed or ended.", &self.upstreams_lost),
            ("bad_requests_total", "Connections closed because of what the client sent.", &self.bad_requests),
            ("bad_answers_total", "Broker answers that are not Kafka.", &self.bad_answers),
            (
                "control_events_dropped_total",
                "Notices to the control tasks that found no room.",
                &self.control_dropped,
            ),
            (
                "holds_expired_total",
                "Held batches that were answered with a retriable error.",
                &self.holds_expired,
            ),
            (
                "flips_done_total",
                "Cutovers and rollbacks that were released to the new owner.",
                &self.flips_done,
            ),
            ("flips_aborted_total", "Cutovers and rollbacks that were aborted.", &self.flips_aborted),
            ("group_moves_done_total", "Groups that were moved to another home.", &self.group_moves_done),
            (
                "group_moves_aborted_total",
                "Moves of groups that were aborted: each stays at its home.",
                &self.group_moves_aborted,
            ),
        ];
        let mut out = String::new();
        for (name, help, counter) in counters {
            let value = counter.get();
            let _ = write!(
                out,
                "# HELP crossover_{name} {help}\n# TYPE crossover_{name} counter\ncrossover_{name} {value}\n"
            );
        }
        out
    }
}
