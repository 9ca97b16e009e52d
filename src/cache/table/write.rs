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

use super::{Row, TableError, schema, vector_item};

/// Rows that are held at once: 8 MB for vectors of 512 components.
const ROW_GROUP: usize = 4096;

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
        let [key, vector] = ["key", "vector.list.element"].map(ColumnPath::from);
        let properties = WriterProperties::builder()
            .set_created_by(concat!("sidelens ", env!("CARGO_PKG_VERSION")).into())
            // Addresses and fingerprints repeat themselves. Digests and vectors do not: they would only cost time.
            .set_compression(Compression::SNAPPY)
            .set_column_compression(key.clone(), Compression::UNCOMPRESSED)
            .set_column_compression(vector.clone(), Compression::UNCOMPRESSED)
            .set_column_dictionary_enabled(key, false)
            .set_column_dictionary_enabled(vector.clone(), false)
            .set_column_statistics_enabled(vector, EnabledStatistics::None)
            .build();
        let writer = ArrowWriter::try_new(out, schema.clone(), Some(properties))?;
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
        self.writer.close()?;
        Ok(self.n_rows)
    }

    fn write_group(&mut self) -> Result<(), TableError> {
        let batch = RecordBatch::try_new(self.schema.clone(), columns(&self.rows, self.width)?)?;
        self.writer.write(&batch)?;
        self.writer.flush()?;
        self.rows.clear();
        Ok(())
    }
}

fn columns(rows: &[Row], width: usize) -> Result<Vec<ArrayRef>, TableError> {
    let mut components = Vec::with_capacity(rows.len() * width);
    for (_, value) in rows {
        components.extend_from_slice(value.embedding.as_slice());
        components.resize(components.len().next_multiple_of(width.max(1)), 0.0);
    }
    let width = i32::try_from(width).unwrap_or(i32::MAX);
    let vectors =
        FixedSizeListArray::try_new(vector_item(), width, Arc::new(Float32Array::from(components)), None)?;
    let created = rows.iter().map(|(_, value)| i64::try_from(value.created_ms).unwrap_or(i64::MAX));
    Ok(vec![
        Arc::new(StringArray::from_iter_values(rows.iter().map(|(key, _)| key.digest_hex()))),
        Arc::new(StringArray::from_iter_values(rows.iter().map(|(key, _)| key.fingerprint().to_string()))),
        Arc::new(StringArray::from_iter_values(rows.iter().map(|(_, value)| value.source.as_str()))),
        Arc::new(Int32Array::from_iter_values(
            rows.iter().map(|(_, value)| i32::try_from(value.embedding.dimensions()).unwrap_or(i32::MAX)),
        )),
        Arc::new(vectors),
        Arc::new(Int32Array::from_iter_values(
            rows.iter().map(|(_, value)| i32::try_from(value.text_tokens).unwrap_or(i32::MAX)),
        )),
        Arc::new(BooleanArray::from_iter(rows.iter().map(|(_, value)| Some(value.truncated)))),
        Arc::new(TimestampMillisecondArray::from_iter_values(created).with_timezone("UTC")),
    ])
}
