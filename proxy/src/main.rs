//! The `crossover` binary.

mod cli;
mod connection;
mod control;
mod demo;
mod listener;
mod missing;
mod run;
mod runtime;
mod shutdown;
mod store;
mod telemetry;
mod upstream;
mod warned;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
