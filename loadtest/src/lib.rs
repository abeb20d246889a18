//! Histories of load drivers and the checker that judges them.
//!
//! Drivers (`tests/drivers`) write one history per process: [`history`] reads it. [`checker`] decides from all
//! histories of a run, and optionally from a direct dump of both clusters' logs ([`ground_truth`]), whether
//! anything acknowledged was lost, duplicated, reordered, renumbered or delivered twice. [`windows`] measures the
//! pauses around given moments. The format is specified in this crate's `README.md`.

pub mod checker;
mod checks;
pub mod deviations;
mod facts;
pub mod ground_truth;
pub mod history;
mod record_batch;
pub mod windows;
mod wire;
