//! What is done of a shard: a small JSON file beside its tables, written anew after each of them.

use std::{collections::BTreeMap, fmt};

use blake3::Hash;
use serde::{Deserialize, Serialize};

use super::{BulkError, Output};
use crate::cache::TableItem;

/// The file's name. Readers of directories of tables pass over names that begin so.
const NAME: &str = "_progress.json";

/// How far a shard is. What it does not count is done again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// The model's name.
    pub model: String,
    /// What tells its vectors from those of others.
    pub model_fingerprint: String,
    /// The settings that change a picture's pixels.
    pub pictures: String,
    /// Components of a vector.
    pub dimensions: usize,
    /// Which part of the list, as `i/n`.
    pub shard: String,
    /// Bytes of the list, where it is a file.
    pub list_bytes: Option<u64>,
    /// Lines of the list before this one, from 0, are done.
    pub next_line: u64,
    /// Digest of the shard's lines among them; none before the first table.
    pub list_digest: Option<String>,
    /// Tables that are whole.
    pub tables: u64,
    /// Items in them.
    pub items: u64,
    /// Those with a vector.
    pub embedded: u64,
    /// Those without, by their kind of failure.
    pub failed: BTreeMap<String, u64>,
    /// Whether that is all; of a list without a size, as far as it went.
    pub complete: bool,
}

impl Record {
    /// That of `output`, if there is one.
    pub(super) async fn read(output: &Output) -> Result<Option<Self>, BulkError> {
        let written = output.read(NAME).await;
        let written = written.map_err(|source| BulkError::Reading { output: output.to_string(), source })?;
        let record = written.map(|written| serde_json::from_slice(&written)).transpose();
        record.map_err(|source| BulkError::Record { output: output.to_string(), source })
    }

    /// Puts it in the place of any before.
    pub(super) async fn write(&self, output: &Output) -> Result<(), BulkError> {
        let json = serde_json::to_vec_pretty(self).expect("a record is JSON");
        let written = output.write(NAME, json).await;
        written.map_err(|source| BulkError::Output { output: output.to_string(), source })
    }

    /// One more table, if it has items; up to the last of them the list has this digest.
    pub(super) fn count(&mut self, items: &[TableItem], digest: Option<Hash>) {
        let (Some(last), Some(digest)) = (items.last(), digest) else { return };
        self.next_line = last.line + 1;
        self.list_digest = Some(digest.to_string());
        self.tables += 1;
        self.items += items.len() as u64;
        for item in items {
            match &item.outcome {
                Ok(_) => self.embedded += 1,
                Err(failed) => *self.failed.entry(failed.error.into()).or_default() += 1,
            }
        }
    }

    /// Items without a vector.
    pub fn n_failed(&self) -> u64 {
        self.items - self.embedded
    }

    /// The share of items without a vector, in percent; 0 if there is no item.
    pub fn failed_percent(&self) -> f64 {
        if self.items == 0 { 0.0 } else { 100.0 * self.n_failed() as f64 / self.items as f64 }
    }
}

/// What came of a run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    /// Where the tables are.
    pub output: String,
    /// What is done, by this run and those before it.
    #[serde(flatten)]
    pub record: Record,
    /// Items of this run.
    pub new_items: u64,
    /// How long it took, without loading the model.
    pub seconds: f64,
    /// Of this run.
    pub items_per_second: f64,
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { output, record, new_items, seconds, items_per_second } = self;
        let state = if record.complete { "complete" } else { "to be continued" };
        writeln!(f, "{output}, shard {}: {state}", record.shard)?;
        write!(f, "{} items, {} embedded, {} failed", record.items, record.embedded, record.n_failed())?;
        let kinds = record.failed.iter().map(|(kind, n)| format!("{kind} {n}")).collect::<Vec<_>>();
        if !kinds.is_empty() {
            write!(f, " ({})", kinds.join(", "))?;
        }
        writeln!(f, "; vectors of {}, model {}", record.dimensions, record.model_fingerprint)?;
        match (record.complete, new_items) {
            (true, 0) => write!(f, "nothing was left to do"),
            _ => write!(f, "{new_items} items in {seconds:.1} s, {items_per_second:.1} a second"),
        }
    }
}
