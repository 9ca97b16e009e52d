//! The command line: one file per subcommand, and the flags they share.

// First, as its macros are known from here on. Tests keep those whose words they catch.
#[cfg(not(test))]
#[macro_use]
mod print;

mod args;
mod bench;
mod cache;
mod check;
mod config;
mod decode_worker;
mod descriptors;
mod download;
mod embed;
mod healthcheck;
mod meilisearch;
mod serve;
mod settings;
mod verify;
mod version;

use clap::{Parser, Subcommand};

pub use args::{AddressError, ConfigArgs, FileError, KeyArgs, KeyError, TrustArgs, TrustError};
pub use bench::{BenchArgs, BenchError};
pub use cache::{CacheCommand, CacheError, ExportArgs, ImportArgs, ServiceArgs};
pub use check::{CheckArgs, CheckError};
pub use download::DownloadArgs;
pub use embed::{EmbedArgs, EmbedCommandError};
pub use healthcheck::HealthcheckError;
pub use settings::{SettingsArgs, SettingsError};
pub use verify::{VerifyArgs, VerifyError};

use crate::{
    app::AppError,
    cache::CacheFileError,
    config::ConfigError,
    hub::HubError,
    imaging::ServeError,
    telemetry::{logging::LoggingError, traces::TracesError},
};

/// Image and text vectors for Meilisearch, beside it.
///
/// Without a command it serves.
#[derive(Debug, Parser)]
#[command(name = "sidelens", disable_version_flag = true, args_conflicts_with_subcommands = true)]
pub struct Cli {
    /// Prints the versions of Sidelens and libtorch and what this machine computes with.
    #[arg(short = 'V', long)]
    version: bool,
    #[command(flatten)]
    serve: ConfigArgs,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Answers embedding requests (what happens without a command, too).
    Serve(ConfigArgs),
    /// Asks the service with these settings, on this machine, whether it is ready: exit status 0 or 1.
    Healthcheck(ConfigArgs),
    /// Prints the effective settings as TOML, secrets hidden.
    Config(ConfigArgs),
    /// Prints the settings of a Meilisearch index that finds pictures and texts through Sidelens.
    Settings(SettingsArgs),
    /// Downloads a model of the hub, and prints its directory.
    Download(DownloadArgs),
    /// Checks that a model on this machine is whole and can be served.
    Verify(VerifyArgs),
    /// Embeds a list of pictures and texts, without a server, and writes Parquet.
    Embed(Box<EmbedArgs>),
    /// Asks a running service for vectors as Meilisearch does, and checks them: exit status 0 or 1.
    Check(CheckArgs),
    /// Moves vectors between a running service and a Parquet file.
    #[command(subcommand)]
    Cache(CacheCommand),
    /// Measures an embedding server under a load like Meilisearch's.
    Bench(Box<BenchArgs>),
    /// Decodes pictures that the service hands it.
    #[command(hide = true)]
    DecodeWorker,
}

/// Why a command failed; printed as one sentence.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// A setting is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The log filter is wrong.
    #[error(transparent)]
    Logging(#[from] LoggingError),
    /// The collector of traces cannot be reached as the settings say.
    #[error(transparent)]
    Traces(#[from] TracesError),
    /// Its vectors could not be kept.
    #[error(transparent)]
    CacheFile(#[from] CacheFileError),
    /// The service could not run.
    #[error(transparent)]
    App(#[from] AppError),
    /// The service is not ready.
    #[error(transparent)]
    Healthcheck(#[from] HealthcheckError),
    /// No Meilisearch settings.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// The model cannot be downloaded.
    #[error(transparent)]
    Hub(#[from] HubError),
    /// The model cannot be served.
    #[error(transparent)]
    Verify(#[from] VerifyError),
    /// Not everything is embedded.
    #[error(transparent)]
    Embed(#[from] EmbedCommandError),
    /// The service does not give vectors as it should.
    #[error(transparent)]
    Check(#[from] CheckError),
    /// No vectors were moved.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// Nothing was measured.
    #[error(transparent)]
    Bench(#[from] BenchError),
    /// No more pictures are decoded here.
    #[error(transparent)]
    DecodeWorker(#[from] ServeError),
    /// The settings cannot be written as TOML.
    #[error("cannot print the settings: {0}")]
    Print(#[from] toml::ser::Error),
    /// No runtime.
    #[error("cannot start: {0}")]
    Start(#[from] std::io::Error),
}

impl CliError {
    /// The exit status of the process.
    pub fn exit_status(&self) -> u8 {
        match self {
            Self::App(error) => error.exit_status(),
            Self::Embed(error) => error.exit_status(),
            _ => 1,
        }
    }
}

impl Cli {
    /// Runs the command.
    ///
    /// # Errors
    /// [`CliError`].
    pub fn run(self) -> Result<(), CliError> {
        if self.version {
            println!("{}", version::describe());
            return Ok(());
        }
        match self.command.unwrap_or(Command::Serve(self.serve)) {
            Command::Serve(args) => serve::run(args),
            Command::Healthcheck(args) => Ok(healthcheck::run(&args)?),
            Command::Config(args) => config::run(&args),
            Command::Settings(args) => settings::run(&args),
            Command::Download(args) => download::run(args),
            Command::Verify(args) => verify::run(&args),
            Command::Embed(args) => embed::run(&args),
            Command::Check(args) => check::run(&args),
            Command::Cache(command) => cache::run(&command),
            Command::Bench(args) => bench::run(&args),
            Command::DecodeWorker => decode_worker::run(),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn sets(line: &str) -> Vec<(String, String)> {
        let cli = Cli::try_parse_from(line.split(' ')).unwrap();
        match cli.command.unwrap_or(Command::Serve(cli.serve)) {
            Command::Serve(args) | Command::Config(args) | Command::Healthcheck(args) => args.sets(),
            Command::Settings(args) => args.config.sets(),
            Command::Download(args) => args.config.sets(),
            Command::Verify(args) => args.config.sets(),
            Command::Embed(args) => args.config.sets(),
            Command::Check(_) | Command::Cache(_) | Command::Bench(_) | Command::DecodeWorker => {
                panic!("it has no settings")
            }
        }
    }

    #[test]
    fn is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn serve_is_the_default_and_flags_are_settings() {
        let expected = [("batch.max_batch_size", "4"), ("server.listen", "[::]:0"), ("model.source", "demo")]
            .map(|(key, value)| (key.to_string(), value.to_string()));
        let flags = "--listen [::]:0 --model demo --set batch.max_batch_size=4";
        for line in ["sidelens", "sidelens serve", "sidelens config"] {
            assert_eq!(sets(&format!("{line} {flags}")), expected, "{line}");
        }
    }

    #[test]
    fn flags_before_a_command_are_refused_rather_than_lost() {
        assert!(Cli::try_parse_from(["sidelens", "--model", "demo", "serve"]).is_err());
        assert!(Cli::try_parse_from(["sidelens", "--set", "no-equals-sign"]).is_err());
    }
}
