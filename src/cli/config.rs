//! `sidelens config`: the effective settings.

use super::{CliError, ConfigArgs};

/// Prints every setting as TOML, as all layers together give it; keys of `auth` show as `***`.
pub(super) fn run(args: &ConfigArgs) -> Result<(), CliError> {
    print!("{}", toml::to_string(&args.load()?)?);
    Ok(())
}
