//! `sidelens embed`: a list of pictures and texts to Parquet, without a server.

use std::{num::NonZeroUsize, path::PathBuf, pin::pin, time::Duration};

use clap::Args;
use serde_json::json;

use super::{CliError, ConfigArgs, decode_worker, descriptors};
use crate::{
    app::{self, AppError, Rooms},
    bulk::{self, BulkError, End, Output, OutputError, Plan, Shard, Summary},
    config::Config,
    shutdown,
    telemetry::logging,
};

/// The exit status of flags that do not fit, as clap has it.
const EXIT_USAGE: u8 = 2;
/// The exit status of a run that is to be continued, or to be begun later: `EX_TEMPFAIL`.
const EXIT_CONTINUE: u8 = 75;
/// That of one whose list is bad: `EX_DATAERR`.
const EXIT_TOO_MANY_FAILED: u8 = 65;
/// Of a line beside the picture that may be in it.
const LINE_MARGIN_BYTES: usize = 64 << 10;

/// Which list, and where to.
///
/// The output is a directory of Parquet tables, one per 10,000 items, which pandas, DuckDB and Spark read as one. It is
/// resumable: the same command continues where the last one ended, however it did.
#[derive(Debug, Clone, Args)]
pub struct EmbedArgs {
    /// The list: a picture's address or path a line; in a .jsonl or .ndjson file an object {"id": ..., "image": ...} or
    /// {"id": ..., "text": ...}. Either may be packed as .gz; `-` is standard input.
    #[arg(long, value_name = "LIST")]
    input: PathBuf,
    /// The directory to write, such as out/part-{shard}.parquet, or a bucket's: s3://bucket/part-{shard}.parquet.
    /// {shard} stands for the shard's number.
    #[arg(long, value_name = "OUTPUT")]
    output: String,
    /// Which part of the list, counted from 0: of 0/4 are the lines 0, 4, 8, ...
    #[arg(long, value_name = "i/n", default_value_t = Shard::WHOLE)]
    shard: Shard,
    /// Lines are JSON objects, whatever the list is called.
    #[arg(long)]
    jsonl: bool,
    /// Items of a table; after a crash up to four times as many are done again, or what was under way.
    #[arg(long, value_name = "N", default_value = "10000")]
    table_items: NonZeroUsize,
    /// Further attempts at a picture whose host fails, and at what fails for reasons of Sidelens's own.
    #[arg(long, value_name = "N", default_value_t = 3)]
    retries: u32,
    /// The most items without a vector, in percent, for which the exit status is still 0.
    #[arg(long, value_name = "PERCENT", default_value_t = 50.0, value_parser = percent)]
    max_failed: f64,
    /// Which of several models, by its name in `[[models]]`; the first unless said.
    #[arg(long, value_name = "NAME")]
    model_name: Option<String>,
    /// Prints the summary as one JSON object.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    pub(super) config: ConfigArgs,
}

/// Why not everything is embedded.
#[derive(Debug, thiserror::Error)]
pub enum EmbedCommandError {
    /// Parts that would be written over each other.
    #[error("`--output` is {0}, the same for every shard; write {{shard}} where its number belongs")]
    NoShardInOutput(String),
    /// No such model.
    #[error("`--model-name` is `{name}`, and the settings have {known}")]
    NoModel {
        /// What was asked for.
        name: String,
        /// Those that there are.
        known: String,
    },
    /// Nowhere to write.
    #[error(transparent)]
    Output(#[from] OutputError),
    /// The work itself.
    #[error(transparent)]
    Bulk(#[from] BulkError),
    /// A signal.
    #[error("stopped before the end; the same command continues")]
    Stopped,
    /// All is done, but not well.
    #[error(
        "{n_failed} of {items} items failed, more than `--max-failed` {max_failed} percent; the column `error` says why. \
         They are done all the same: remove the output to begin anew, or list them for another output"
    )]
    TooManyFailed {
        /// Items without a vector.
        n_failed: u64,
        /// All items.
        items: u64,
        /// The limit.
        max_failed: f64,
    },
}

impl EmbedCommandError {
    pub(super) fn exit_status(&self) -> u8 {
        match self {
            Self::NoShardInOutput(_) | Self::NoModel { .. } => EXIT_USAGE,
            Self::Stopped | Self::Bulk(BulkError::Taken { .. } | BulkError::Shared { .. }) => EXIT_CONTINUE,
            Self::TooManyFailed { .. } => EXIT_TOO_MANY_FAILED,
            _ => 1,
        }
    }
}

/// Embeds until all is done, or until SIGTERM, SIGINT or SIGHUP.
pub(super) fn run(args: &EmbedArgs) -> Result<(), CliError> {
    if args.shard.has_others() && args.shard.name(&args.output) == args.output {
        return Err(EmbedCommandError::NoShardInOutput(args.output.clone()).into());
    }
    let mut config = args.config.load()?;
    args.choose_model(&mut config)?;
    logging::init(&config.log, None)?;
    descriptors::raise_limit();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let outcome = runtime.block_on(embed(args, config));
    // A list that is a pipe, or a decoder still busy, must not hold up the exit.
    runtime.shutdown_background();
    let (summary, end) = outcome?;
    match args.json {
        true => println!("{}", json!(summary)),
        false => println!("{summary}"),
    }
    let record = &summary.record;
    match end {
        End::DeviceLost(reason) => Err(AppError::DeviceLost(reason).into()),
        End::Stopped => Err(EmbedCommandError::Stopped.into()),
        End::Complete if record.failed_percent() > args.max_failed => {
            let (n_failed, items) = (record.n_failed(), record.items);
            Err(EmbedCommandError::TooManyFailed { n_failed, items, max_failed: args.max_failed }.into())
        }
        End::Complete => Ok(()),
    }
}

async fn embed(args: &EmbedArgs, config: Config) -> Result<(Summary, End), CliError> {
    let output =
        Output::new(&args.shard.name(&args.output), &config.fetch).map_err(EmbedCommandError::Output)?;
    bulk::look_for(&args.input).map_err(EmbedCommandError::Bulk)?;
    let claim = output.claim().map_err(EmbedCommandError::Bulk)?;
    let mut stop = pin!(shutdown::requested()?);
    let rooms = Rooms::open(&config, decode_worker::command)?;
    let models = tokio::select! {
        models = app::load_models(&config) => models?,
        () = &mut stop => return Err(EmbedCommandError::Stopped.into()),
    };
    let models = rooms.join(&config, models)?;
    let embedder = models.default_model();
    let plan = Plan {
        list: args.input.clone(),
        is_json: args.jsonl,
        // A picture may stand in its line, four bytes for three.
        max_line_bytes: config.fetch.max_bytes / 3 * 4 + LINE_MARGIN_BYTES,
        shard: args.shard,
        output,
        claim,
        table_items: args.table_items.get(),
        // Neither the network nor the device waits for the other.
        max_in_flight: config.fetch.max_concurrent + embedder.max_kept(),
        retries: args.retries,
        stop_within: Duration::from_secs(config.server.shutdown_timeout_s),
    };
    let outcome = bulk::run(&plan, embedder, stop).await;
    models.shut_down().await;
    Ok(outcome.map_err(EmbedCommandError::Bulk)?)
}

impl EmbedArgs {
    /// Leaves the one model that is needed.
    fn choose_model(&self, config: &mut Config) -> Result<(), EmbedCommandError> {
        let Some(name) = &self.model_name else {
            config.models.truncate(1);
            return Ok(());
        };
        let known: Vec<_> = config.models.iter().filter_map(|model| model.name.clone()).collect();
        config.models.retain(|model| model.name.as_ref() == Some(name));
        match config.models.is_empty() {
            false => Ok(()),
            true => {
                let known = if known.is_empty() { "no names".into() } else { known.join(", ") };
                Err(EmbedCommandError::NoModel { name: name.clone(), known })
            }
        }
    }
}

fn percent(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(percent) if (0.0..=100.0).contains(&percent) => Ok(percent),
        _ => Err("it is a number from 0 to 100".into()),
    }
}
