//! Bulk work inside the process: a list of pictures and texts to tables of their vectors, part by part and resumable.
//!
//! A thread reads the lines of one shard (`list.rs`, `line.rs`, `shard.rs`), a bounded number of them is worked on at once
//! (`work.rs`, `run.rs`), and what is done goes, in the order of the list (`window.rs`), into numbered tables of one directory
//! (`output.rs`). Behind each of them `_progress.json` is written anew (`record.rs`): what it counts is done, whatever
//! becomes of the process, and what it does not count is done again.

mod line;
mod list;
mod output;
mod progress;
mod record;
mod run;
mod shard;
mod window;
mod work;

use std::{
    future::Future,
    io,
    iter::Peekable,
    panic::resume_unwind,
    path::{Path, PathBuf},
    pin::{Pin, pin},
    time::Duration,
};

use rustix::fs::Access;
use tokio::task::spawn_blocking;

pub use output::{Claim, Output, OutputError};
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
    /// What keeps others out of there.
    pub claim: Claim,
    /// Items of a table, at least one.
    pub table_items: usize,
    /// Items under way at once, at least one.
    pub max_in_flight: usize,
    /// Further attempts at what may pass.
    pub retries: u32,
    /// How long what is under way may take once it is to stop.
    pub stop_within: Duration,
}

/// How a run ended.
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
    /// The record in the output, which a first run does not find.
    #[error("{output}/_progress.json cannot be read: {source}")]
    Reading {
        /// The output's name.
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
    /// It is somebody else's for now.
    #[error("another process is writing {output}; after its end, the same command continues")]
    Taken {
        /// The output's name.
        output: String,
    },
    /// Somebody else's record is in the place of ours.
    #[error("another process writes {output} as well; stop all but one, and run that one's command again")]
    Shared {
        /// The output's name.
        output: String,
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

/// Finds out whether `list` may be read, before a model is. It is not opened for that: to whoever writes to a pipe, closing
/// it again would be the end.
///
/// # Errors
/// [`BulkError::List`].
pub fn look_for(list: &Path) -> Result<(), BulkError> {
    match list.as_os_str() == "-" {
        true => Ok(()),
        false => rustix::fs::access(list, Access::READ_OK)
            .map_err(|error| BulkError::List { list: list.into(), source: error.into() }),
    }
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
    let mut record = plan.record(embedder).await?;
    let opened = Lines::open(&plan.list, plan.shard, plan.is_json, plan.max_line_bytes);
    let (lines, position) = opened.map_err(|source| plan.unread(source))?;
    if let (Some(before), Some(now)) = (record.list_bytes, position.total)
        && before != now
    {
        return Err(plan.other("a list of", format!("{before} bytes"), format!("{now} bytes")));
    }
    record.list_bytes = position.total;
    let items_before = record.items;
    let mut progress = Progress::new(position);
    let end = go_on(plan, embedder, lines, &mut record, &mut progress, pin!(stop)).await?;
    let (new_items, seconds) = (record.items - items_before, progress.seconds());
    let items_per_second = new_items as f64 / seconds;
    let output = plan.output.to_string();
    Ok((Summary { output, record, new_items, seconds, items_per_second }, end))
}

async fn go_on(
    plan: &Plan,
    embedder: &Embedder,
    lines: Lines,
    record: &mut Record,
    progress: &mut Progress,
    mut stop: Pin<&mut impl Future<Output = ()>>,
) -> Result<End, BulkError> {
    let mut lines = tokio::select! {
        left = plan.left(lines, record) => left?,
        () = &mut stop => return Ok(End::Stopped),
    };
    // In memory already.
    let is_over = lines.peek().is_none();
    if is_over && record.complete {
        return Ok(End::Complete);
    }
    record.complete = false;
    // An output that cannot be written is told before the first table is due.
    record.write(&plan.output).await?;
    tokio::select! {
        warm = embedder.warm_up() => warm.map_err(BulkError::WarmUp)?,
        () = &mut stop => return Ok(End::Stopped),
    }
    progress.restart();
    Run::new(plan, embedder, record, progress).until(lines, stop).await
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
            list_digest: None,
            tables: 0,
            items: 0,
            embedded: 0,
            failed: Default::default(),
            complete: false,
        };
        let Some(found) = Record::read(&self.output).await? else { return Ok(fresh) };
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

    /// The lines that `record` does not count, behind those that it does; the first of them is read.
    async fn left(&self, mut lines: Lines, record: &Record) -> Result<Peekable<Lines>, BulkError> {
        let next_line = record.next_line;
        let reading = spawn_blocking(move || {
            let digest = lines.skip_to(next_line)?;
            let mut lines = lines.peekable();
            lines.peek();
            Ok((digest.to_string(), lines))
        });
        let read = reading.await.unwrap_or_else(|panic| resume_unwind(panic.into_panic()));
        let (now, lines) = read.map_err(|source| self.unread(source))?;
        match &record.list_digest {
            Some(before) if *before != now => Err(self.other("lines of the digest", before.clone(), now)),
            _ => Ok(lines),
        }
    }

    fn unread(&self, source: io::Error) -> BulkError {
        BulkError::List { list: self.list.clone(), source }
    }

    fn other(&self, what: &'static str, before: String, now: String) -> BulkError {
        BulkError::Other { output: self.output.to_string(), what, before, now }
    }
}
