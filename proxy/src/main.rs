//! The `crossover` binary.

mod cli;
mod demo;
mod run;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
