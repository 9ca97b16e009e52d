//! What is done of a shard: a small JSON file beside its tables, written anew after each of them.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};

use crate::cache::TableItem;

/// The file's name. Readers of directories of tables pass over names that begin so.
pub(super) const NAME: &str = "_progress.json";

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
    /// Tables that are whole.
    pub tables: u64,
    /// Items in them.
    pub items: u64,
    /// Those with a vector.
    pub embedded: u64,
    /// Those without, by their kind of failure.
    pub failed: BTreeMap<String, u64>,
    /// Whether that is all.
    pub complete: bool,
}

impl Record {
    /// One more table, if it has items.
    pub(super) fn count(&mut self, items: &[TableItem]) {
        let Some(last) = items.last() else { return };
        self.next_line = last.line + 1;
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
