//! Arguments -> settings -> telemetry -> app -> run.

use clap::Parser;
use sidelens::{cli::Cli, shutdown};

fn main() {
    let status = match Cli::parse().run() {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("sidelens: {error}");
            error.exit_status()
        }
    };
    shutdown::exit(status)
}
