//! Tables of items: rows as of any table, each with the item that it is of, and items without a vector among them.

use std::{io::Write, sync::Arc};

use arrow_array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use arrow_schema::{DataType, Field, Schema};
use parquet::arrow::ArrowWriter;

use super::{
    TableError, of_writing, schema,
    write::{Cells, ROW_GROUP, columns, properties},
};
use crate::{
    cache::{CacheKey, CachedVector, Source, value::now_ms},
    domain::Fingerprint,
};

/// An item of a list, and what became of it.
#[derive(Debug, Clone, PartialEq)]
pub struct TableItem {
    /// What its list calls it.
    pub id: String,
    /// Its line there, from 0.
    pub line: u64,
    /// Its picture, as its list names it.
    pub image: Option<String>,
    /// Its vector, or why there is none.
    pub outcome: Result<(CacheKey, CachedVector), FailedItem>,
}

/// An item without a vector.
#[derive(Debug, Clone, PartialEq)]
pub struct FailedItem {
    /// Where the vector would have come from.
    pub source: Source,
    /// The kind of failure, in one word.
    pub error: &'static str,
    /// A sentence about it.
    pub message: String,
    /// When, in milliseconds since 1970.
    pub at_ms: u64,
}

impl FailedItem {
    /// A failure of this moment.
    pub fn now(source: Source, error: &'static str, message: String) -> Self {
        Self { source, error, message, at_ms: now_ms() }
    }
}

/// Writes the items as a table, whose vectors are those of `model`, of `dimensions` components.
///
/// # Errors
/// [`TableError`] when `out` fails.
pub fn write_items(
    out: impl Write + Send,
    items: &[TableItem],
    model: Fingerprint,
    dimensions: usize,
) -> Result<(), TableError> {
    let schema = Arc::new(item_schema(dimensions));
    let mut writer = ArrowWriter::try_new(out, schema.clone(), Some(properties())).map_err(of_writing)?;
    for group in items.chunks(ROW_GROUP) {
        let cells: Vec<Cells> = group.iter().map(|item| item.cells(model, dimensions)).collect();
        let mut all = item_columns(group);
        all.extend(columns(&cells, dimensions)?);
        let batch = RecordBatch::try_new(schema.clone(), all)?;
        writer.write(&batch).and_then(|()| writer.flush()).map_err(of_writing)?;
    }
    writer.close().map_err(of_writing)?;
    Ok(())
}

/// The columns of [`schema`] behind those of the item. Without a vector there is no key either.
pub(super) fn item_schema(dimensions: usize) -> Schema {
    let mut fields = vec![
        Field::new("id", DataType::Utf8, false),
        Field::new("line", DataType::Int64, false),
        Field::new("image", DataType::Utf8, true),
        Field::new("error", DataType::Utf8, true),
        Field::new("error_message", DataType::Utf8, true),
    ];
    fields.extend(schema(dimensions).fields().iter().map(|field| {
        let is_of_vector = ["key", "vector"].contains(&field.name().as_str());
        field.as_ref().clone().with_nullable(is_of_vector)
    }));
    Schema::new(fields)
}

fn item_columns(items: &[TableItem]) -> Vec<ArrayRef> {
    let failures = || items.iter().map(|item| item.outcome.as_ref().err());
    vec![
        Arc::new(StringArray::from_iter_values(items.iter().map(|item| &item.id))),
        Arc::new(Int64Array::from_iter_values(
            items.iter().map(|item| i64::try_from(item.line).unwrap_or(i64::MAX)),
        )),
        Arc::new(StringArray::from_iter(items.iter().map(|item| item.image.as_deref()))),
        Arc::new(StringArray::from_iter(failures().map(|failed| Some(failed?.error)))),
        Arc::new(StringArray::from_iter(failures().map(|failed| Some(&failed?.message)))),
    ]
}

impl TableItem {
    fn cells(&self, model: Fingerprint, dimensions: usize) -> Cells<'_> {
        match &self.outcome {
            Ok((key, value)) => Cells::of(key, value),
            Err(failed) => Cells {
                key: None,
                fingerprint: model,
                source: failed.source.as_str(),
                dimensions,
                vector: None,
                text_tokens: 0,
                truncated: false,
                created_ms: failed.at_ms,
            },
        }
    }
}
