//! Arguments -> settings -> telemetry -> app -> run.

use std::process::ExitCode;

use clap::Parser;
use sidelens::cli::Cli;

fn main() -> ExitCode {
    match Cli::parse().run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("sidelens: {error}");
            ExitCode::from(error.exit_status())
        }
    }
}
