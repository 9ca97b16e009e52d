//! Arguments -> settings -> telemetry -> app -> run.

use std::io::{self, Write};

use clap::Parser;
use sidelens::{cli::Cli, runtime::bound_kernels, shutdown};

fn main() {
    // SAFETY: No other thread has begun.
    unsafe { bound_kernels() };
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
