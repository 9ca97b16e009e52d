//! `sidelens decode-worker`: a process that decodes pictures for the service, which starts it. Not for people.

use std::os::unix::process::CommandExt;
use std::process::Command;

use super::CliError;
use crate::imaging;

/// The subcommand, as the service calls it.
const NAME: &str = "decode-worker";

/// Decodes until the service closes standard input.
pub(super) fn run() -> Result<(), CliError> {
    Ok(imaging::serve()?)
}

/// This program once more, as it is now: on Linux even where the file was replaced since.
pub(super) fn command() -> Command {
    let program =
        if cfg!(target_os = "linux") { Ok("/proc/self/exe".into()) } else { std::env::current_exe() };
    let mut command = Command::new(program.unwrap_or_else(|_| "sidelens".into()));
    command.arg0("sidelens").arg(NAME);
    command
}
