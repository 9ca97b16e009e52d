//! Bulk work inside the process: a list of pictures and texts to tables of their vectors, part by part and resumable.
//!
//! A thread reads the lines of one shard (`list.rs`, `shard.rs`), a bounded number of them is worked on at once
//! (`work.rs`, `run.rs`), and what is done goes, in the order of the list (`window.rs`), into numbered tables of one directory
//! (`output.rs`). Behind each of them `_progress.json` is written anew (`record.rs`): what it counts is done, whatever
//! becomes of the process, and what it does not count is done again.

mod list;
mod output;
mod progress;
mod record;
mod run;
mod shard;
mod window;
mod work;

use std::{future::Future, io, path::PathBuf, pin::pin, time::Duration};

pub use output::{Output, OutputError};
pub use record::{Record, Summary};
pub use shard::Shard;

use self::{list::Lines, progress::Progress, run::Run};
use crate::{cache::TableError, domain::EmbedError, embedder::Embedder};

/// What is to be done.
pub struct Plan {
    /// The list's path; `-` is standard input.
    pub list: PathBuf,
    /// Whether lines are objects, whatever the list is called.
    pub is_json: bool,
    /// The longest line.
    pub max_line_bytes: usize,
    /// Which part of it.
    pub shard: Shard,
    /// Where the tables go.
    pub output: Output,
    /// Items of a table, at least one.
    pub table_items: usize,
    /// Items under way at once, at least one.
    pub max_in_flight: usize,
    /// Further attempts at what may pass.
    pub retries: u32,
    /// How long what is under way may take once it is to stop.
    pub stop_within: Duration,
}

/// How a run ended, if not by itself.
#[derive(Debug, Clone, PartialEq)]
pub enum End {
    /// All is done.
    Complete,
    /// It was told to.
    Stopped,
    /// The device is gone, with the reason.
    DeviceLost(String),
}

/// Why nothing more can be done.
#[derive(Debug, thiserror::Error)]
pub enum BulkError {
    /// The list.
    #[error("the list {} cannot be read: {source}", list.display())]
    List {
        /// Its path.
        list: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The output.
    #[error("{output} cannot be written: {source}")]
    Output {
        /// Its name.
        output: String,
        /// What the system or the object store says.
        source: io::Error,
    },
    /// A table.
    #[error(transparent)]
    Table(#[from] TableError),
    /// The model's first passes failed.
    #[error("the model does not work: {0}")]
    WarmUp(#[source] EmbedError),
    /// What is in the output is not of this program.
    #[error("{output}/_progress.json cannot be read ({source}); choose another `--output`, or remove it")]
    Record {
        /// The output's name.
        output: String,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// What is in the output was begun with something else.
    #[error(
        "{output} was begun with {what} {before}, and this is {now}; give it what it was begun with, choose another \
         `--output`, or remove it to begin anew"
    )]
    Other {
        /// The output's name.
        output: String,
        /// What differs.
        what: &'static str,
        /// How it was.
        before: String,
        /// How it is.
        now: String,
    },
}

/// Does what is left of `plan`, until `stop` ends: what is under way then is finished and written. Warms the model up
/// first, if anything is left.
///
/// # Errors
/// [`BulkError`]. What was written before stays, and counts.
pub async fn run(
    plan: &Plan,
    embedder: &Embedder,
    stop: impl Future<Output = ()>,
) -> Result<(Summary, End), BulkError> {
    let mut stop = pin!(stop);
    let _claim = plan.output.claim().map_err(|source| plan.unwritten(source))?;
    let mut record = plan.record(embedder).await?;
    let open = || Lines::open(&plan.list, plan.shard, record.next_line, plan.is_json, plan.max_line_bytes);
    let (lines, position) = open().map_err(|source| plan.unread(source))?;
    if let (Some(before), Some(now)) = (record.list_bytes, position.total)
        && before != now
    {
        return Err(plan.other("a list of", format!("{before} bytes"), format!("{now} bytes")));
    }
    record.list_bytes = position.total;
    let items_before = record.items;
    let mut end = End::Complete;
    let mut progress = Progress::new(position);
    if !record.complete {
        end = End::Stopped;
        let is_warm = tokio::select! {
            warm = embedder.warm_up() => warm.map(|()| true).map_err(BulkError::WarmUp)?,
            () = &mut stop => false,
        };
        if is_warm {
            progress.restart();
            let run = Run::new(plan, embedder, &mut record, &mut progress);
            end = run.until(lines, stop).await?;
        }
    }
    let (new_items, seconds) = (record.items - items_before, progress.seconds());
    let items_per_second = new_items as f64 / seconds;
    let output = plan.output.to_string();
    Ok((Summary { output, record, new_items, seconds, items_per_second }, end))
}

impl Plan {
    /// How far this shard is, if it was begun so that its vectors are the same, and as the same part.
    async fn record(&self, embedder: &Embedder) -> Result<Record, BulkError> {
        let info = embedder.info();
        let fresh = Record {
            model: info.spec.name.clone(),
            model_fingerprint: info.fingerprint.to_string(),
            pictures: embedder.picture_settings(),
            dimensions: info.spec.dimensions,
            shard: self.shard.to_string(),
            list_bytes: None,
            next_line: 0,
            tables: 0,
            items: 0,
            embedded: 0,
            failed: Default::default(),
            complete: false,
        };
        let written = self.output.read(record::NAME).await.map_err(|source| self.unwritten(source))?;
        let Some(written) = written else { return Ok(fresh) };
        let found: Record = serde_json::from_slice(&written)
            .map_err(|source| BulkError::Record { output: self.output.to_string(), source })?;
        for (what, before, now) in [
            ("the model", &found.model_fingerprint, fresh.model_fingerprint),
            ("the settings of pictures", &found.pictures, fresh.pictures),
            ("the shard", &found.shard, fresh.shard),
        ] {
            if *before != now {
                return Err(self.other(what, before.clone(), now));
            }
        }
        Ok(found)
    }

    fn unread(&self, source: io::Error) -> BulkError {
        BulkError::List { list: self.list.clone(), source }
    }

    fn unwritten(&self, source: io::Error) -> BulkError {
        BulkError::Output { output: self.output.to_string(), source }
    }

    fn other(&self, what: &'static str, before: String, now: String) -> BulkError {
        BulkError::Other { output: self.output.to_string(), what, before, now }
    }
}
