//! Vectors as a Parquet table, for keeping and for pandas, DuckDB and Spark.
//!
//! | column | type | |
//! |---|---|---|
//! | `key` | string | digest of the content, 64 hex digits; with the next column it names a vector |
//! | `model_fingerprint` | string | which model, 32 hex digits, as in `/info` |
//! | `source` | string | `text`, `image`, or the picture's address |
//! | `dimensions` | int32 | components of the vector |
//! | `vector` | fixed-size list of float32 | of length one; filled up with zeros where a wider model has rows too |
//! | `text_tokens` | int32 | tokens of a text |
//! | `truncated` | boolean | whether a text lost its end |
//! | `created_at` | timestamp in ms, UTC | when it was computed |
//!
//! A table of items has more columns before these, see `items.rs`; where a row has no `key`, its item has no vector.

mod items;
mod read;
#[cfg(test)]
mod tests;
mod write;

use std::{io, sync::Arc};

use arrow_schema::{ArrowError, DataType, Field, Schema, TimeUnit};
use parquet::errors::ParquetError;

pub use items::{FailedItem, TableItem, write_items};
pub(super) use read::{Rows, models};
pub(super) use write::TableWriter;

use super::{CacheKey, CachedVector};

/// One row.
pub(super) type Row = (CacheKey, CachedVector);

/// Why a table cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// The file, or whoever takes its bytes.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// No Parquet, or damaged.
    #[error("it is no Parquet file that can be read: {0}")]
    Parquet(#[from] ParquetError),
    /// The same, said by the layer above.
    #[error("it is no Parquet file that can be read: {0}")]
    Arrow(#[from] ArrowError),
    /// Damaged so that its reader panics.
    #[error("it is no Parquet file that can be read: it is damaged")]
    Damaged,
    /// A column is not there, or holds something else.
    #[error("its column `{column}` should be {expected}, and is {found}")]
    Column {
        /// The column.
        column: &'static str,
        /// What it should hold.
        expected: &'static str,
        /// What it holds.
        found: String,
    },
    /// A row says what cannot be.
    #[error("its row {row} cannot be used: {reason}")]
    Row {
        /// The row, from 0.
        row: u64,
        /// What is wrong with it.
        reason: String,
    },
    /// A cache without a tier.
    #[error("nothing would keep its vectors: `cache.max_bytes` is 0, and there is no Redis")]
    NotKept,
    /// Vectors of another model.
    #[error(
        "it has vectors of the model {found}, and this service has {served}: vectors of another model, dtype or preprocessing are of no use"
    )]
    Fingerprint {
        /// The fingerprint that no served model has.
        found: String,
        /// Those of the served models.
        served: String,
    },
    /// Vectors of a model that is served, but not of its length.
    #[error("it has vectors of {found} components of the model {model}, whose vectors have {expected}")]
    Dimensions {
        /// The model's fingerprint.
        model: String,
        /// Components of the model's vectors.
        expected: usize,
        /// Components of one in the table.
        found: i32,
    },
}

/// What a writer failed with: a full disk says nothing of the file.
fn of_writing(error: ParquetError) -> TableError {
    match error {
        ParquetError::External(source) => source
            .downcast()
            .map_or_else(|source| ParquetError::External(source).into(), |error| TableError::Io(*error)),
        error => error.into(),
    }
}

fn column(name: &str, kind: DataType) -> Field {
    Field::new(name, kind, false)
}

fn vector_item() -> Arc<Field> {
    Arc::new(column("element", DataType::Float32))
}

/// The schema of a table whose widest vector has `width` components.
fn schema(width: usize) -> Schema {
    let width = i32::try_from(width).unwrap_or(i32::MAX);
    Schema::new(vec![
        column("key", DataType::Utf8),
        column("model_fingerprint", DataType::Utf8),
        column("source", DataType::Utf8),
        column("dimensions", DataType::Int32),
        column("vector", DataType::FixedSizeList(vector_item(), width)),
        column("text_tokens", DataType::Int32),
        column("truncated", DataType::Boolean),
        column("created_at", DataType::Timestamp(TimeUnit::Millisecond, Some("UTC".into()))),
    ])
}
