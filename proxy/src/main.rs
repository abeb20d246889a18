//! The `crossover` binary.

mod cli;
mod demo;
mod run;
mod runtime;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
