//! The `crossover` binary.

mod cli;
mod connection;
mod demo;
mod listener;
mod run;
mod runtime;
mod shutdown;
mod telemetry;
mod upstream;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
