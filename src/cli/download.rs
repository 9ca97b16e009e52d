//! `sidelens download`: a model of the hub onto this machine.

use clap::Args;

use super::{CliError, ConfigArgs};
use crate::{
    config::{HubModel, ModelSource},
    hub,
    telemetry::logging,
};

/// Which model, and the settings that say from where and to where.
#[derive(Debug, Clone, Args)]
pub struct DownloadArgs {
    /// The model's name on the hub: org/name, or org/name@revision.
    #[arg(value_name = "MODEL")]
    name: HubModel,
    #[command(flatten)]
    pub(super) config: ConfigArgs,
}

/// Downloads what is missing, and prints the directory.
pub(super) fn run(args: DownloadArgs) -> Result<(), CliError> {
    let config = args.config.load()?;
    logging::init(&config.log, None)?;
    if let ModelSource::Directory(dir) = ModelSource::from(args.name.to_string()) {
        tracing::warn!("there is a directory {} as well, which `--model` would take", dir.display());
    }
    println!("{}", hub::download(&args.name, &config.hub)?.dir.display());
    Ok(())
}
