//! Rows to bytes, a row group at a time.

use std::{io::Write, sync::Arc};

use arrow_array::{
    ArrayRef, BooleanArray, FixedSizeListArray, Float32Array, Int32Array, RecordBatch, StringArray,
    TimestampMillisecondArray,
};
use arrow_schema::SchemaRef;
use parquet::{
    arrow::ArrowWriter,
    basic::Compression,
    file::properties::{EnabledStatistics, WriterProperties},
    schema::types::ColumnPath,
};

use super::{Row, TableError, of_writing, schema, vector_item};
use crate::{
    cache::{CacheKey, CachedVector},
    domain::Fingerprint,
};

/// Rows that are held at once: 8 MB for vectors of 512 components.
pub(super) const ROW_GROUP: usize = 4096;

/// Writes rows as they come, and holds one group of them. Nothing of it is a table before [`Self::finish`].
pub(crate) struct TableWriter<W: Write + Send> {
    writer: ArrowWriter<W>,
    schema: SchemaRef,
    width: usize,
    rows: Vec<Row>,
    n_rows: u64,
}

impl<W: Write + Send> TableWriter<W> {
    /// A table for vectors of up to `width` components.
    ///
    /// # Errors
    /// When the first bytes cannot be written.
    pub fn new(out: W, width: usize) -> Result<Self, TableError> {
        let schema = Arc::new(schema(width));
        let writer = ArrowWriter::try_new(out, schema.clone(), Some(properties())).map_err(of_writing)?;
        Ok(Self { writer, schema, width, rows: Vec::new(), n_rows: 0 })
    }

    /// Adds a row.
    ///
    /// # Errors
    /// When its vector is too wide, or a full group cannot be written.
    pub fn push(&mut self, row: Row) -> Result<(), TableError> {
        let dimensions = row.1.embedding.dimensions();
        if dimensions > self.width {
            let reason = format!("its vector has {dimensions} components, the table has {}", self.width);
            return Err(TableError::Row { row: self.n_rows, reason });
        }
        self.rows.push(row);
        self.n_rows += 1;
        if self.rows.len() == ROW_GROUP { self.write_group() } else { Ok(()) }
    }

    /// Writes what is left and the table's end; gives the number of rows.
    ///
    /// # Errors
    /// When the bytes cannot be written.
    pub fn finish(mut self) -> Result<u64, TableError> {
        if !self.rows.is_empty() {
            self.write_group()?;
        }
        self.writer.close().map_err(of_writing)?;
        Ok(self.n_rows)
    }

    fn write_group(&mut self) -> Result<(), TableError> {
        let cells: Vec<Cells> = self.rows.iter().map(|(key, value)| Cells::of(key, value)).collect();
        let batch = RecordBatch::try_new(self.schema.clone(), columns(&cells, self.width)?)?;
        self.writer.write(&batch).and_then(|()| self.writer.flush()).map_err(of_writing)?;
        self.rows.clear();
        Ok(())
    }
}

/// How every table is written.
pub(super) fn properties() -> WriterProperties {
    let [key, vector] = [&["key"][..], &["vector", "list", "element"]]
        .map(|path| ColumnPath::new(path.iter().map(ToString::to_string).collect()));
    WriterProperties::builder()
        .set_created_by(concat!("sidelens ", env!("CARGO_PKG_VERSION")).into())
        // Addresses and fingerprints repeat themselves. Digests and components do not: a dictionary of them would only
        // cost time. What fills up narrow vectors is compressed to next to nothing.
        .set_compression(Compression::SNAPPY)
        .set_column_compression(key.clone(), Compression::UNCOMPRESSED)
        .set_column_dictionary_enabled(key, false)
        .set_column_dictionary_enabled(vector.clone(), false)
        .set_column_statistics_enabled(vector, EnabledStatistics::None)
        .build()
}

/// What a row says in the columns that every table has.
pub(super) struct Cells<'a> {
    pub key: Option<&'a CacheKey>,
    pub fingerprint: Fingerprint,
    pub source: &'a str,
    pub dimensions: usize,
    pub vector: Option<&'a [f32]>,
    pub text_tokens: u32,
    pub truncated: bool,
    pub created_ms: u64,
}

impl<'a> Cells<'a> {
    pub fn of(key: &'a CacheKey, value: &'a CachedVector) -> Self {
        Self {
            key: Some(key),
            fingerprint: key.fingerprint(),
            source: value.source.as_str(),
            dimensions: value.embedding.dimensions(),
            vector: Some(value.embedding.as_slice()),
            text_tokens: value.text_tokens,
            truncated: value.truncated,
            created_ms: value.created_ms,
        }
    }
}

/// The columns of [`schema`]; `width` components are the most that a vector of them has.
pub(super) fn columns(rows: &[Cells], width: usize) -> Result<Vec<ArrayRef>, TableError> {
    let mut components = Vec::with_capacity(rows.len() * width);
    for row in rows {
        components.extend_from_slice(row.vector.unwrap_or_default());
        components.resize(components.len() + width - row.vector.map_or(0, <[f32]>::len), 0.0);
    }
    let are_there = rows.iter().map(|row| row.vector.is_some()).collect();
    let width = i32::try_from(width).unwrap_or(i32::MAX);
    let components = Arc::new(Float32Array::from(components));
    let vectors = FixedSizeListArray::try_new(vector_item(), width, components, Some(are_there))?;
    let created = rows.iter().map(|row| i64::try_from(row.created_ms).unwrap_or(i64::MAX));
    Ok(vec![
        Arc::new(StringArray::from_iter(rows.iter().map(|row| row.key.map(CacheKey::digest_hex)))),
        Arc::new(StringArray::from_iter_values(rows.iter().map(|row| row.fingerprint.to_string()))),
        Arc::new(StringArray::from_iter_values(rows.iter().map(|row| row.source))),
        Arc::new(Int32Array::from_iter_values(
            rows.iter().map(|row| i32::try_from(row.dimensions).unwrap_or(i32::MAX)),
        )),
        Arc::new(vectors),
        Arc::new(Int32Array::from_iter_values(
            rows.iter().map(|row| i32::try_from(row.text_tokens).unwrap_or(i32::MAX)),
        )),
        Arc::new(BooleanArray::from_iter(rows.iter().map(|row| Some(row.truncated)))),
        Arc::new(TimestampMillisecondArray::from_iter_values(created).with_timezone("UTC")),
    ])
}
