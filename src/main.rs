//! Arguments -> settings -> telemetry -> app -> run.

use std::io::{self, Write};

use clap::Parser;
use sidelens::{cli::Cli, shutdown};

fn main() {
    let status = match Cli::parse().run() {
        Ok(()) => 0,
        Err(error) => {
            // Nobody is left to be told where this fails.
            let _ = writeln!(io::stderr(), "sidelens: {error}");
            error.exit_status()
        }
    };
    shutdown::exit(status)
}
