//! Bytes to rows, a thousand at a time.
//!
//! What another program wrote is read too, such as the rows that DuckDB or pandas chose from a table: columns may come
//! in any order and with others, vectors as lists of any size, times in any unit. Rows without a key are passed over:
//! their items have no vector.

use std::{
    collections::BTreeSet,
    fs::File,
    panic::{AssertUnwindSafe, catch_unwind},
};

use arrow_array::{
    Array, ArrayRef, ArrowPrimitiveType, BooleanArray, Float32Array, Int32Array, ListArray, RecordBatch,
    StringArray, cast::AsArray, types::Int32Type, types::TimestampMicrosecondType,
    types::TimestampMillisecondType, types::TimestampNanosecondType,
};
use arrow_schema::{DataType, TimeUnit};
use parquet::arrow::{
    ProjectionMask,
    arrow_reader::{
        ArrowPredicateFn, ArrowReaderOptions, ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder,
        RowFilter,
    },
};

use super::{Row, TableError};
use crate::{
    cache::{CacheKey, CachedVector, Source},
    domain::{Embedding, Fingerprint},
};

/// Rows that are held at once.
const BATCH: usize = 1024;

/// The rows of a table, in its order.
pub(crate) struct Rows {
    reader: ParquetRecordBatchReader,
    batch: Option<Batch>,
    /// Rows before the batch.
    before: u64,
    at: usize,
}

/// What `read` makes of a file. `parquet` panics over some damage: that is an error like others here, and whoever gets one
/// reads on no further.
fn caught<T>(read: impl FnOnce() -> Result<T, TableError>) -> Result<T, TableError> {
    catch_unwind(AssertUnwindSafe(read)).unwrap_or(Err(TableError::Damaged))
}

/// What the file is, without its rows.
fn open(file: File) -> Result<ParquetRecordBatchReaderBuilder<File>, TableError> {
    // The schema of Parquet alone: what Arrow adds to it has several types for one content.
    let options = ArrowReaderOptions::new().with_skip_arrow_metadata(true);
    Ok(ParquetRecordBatchReaderBuilder::try_new_with_options(file, options)?.with_batch_size(BATCH))
}

/// The models whose vectors a table has, each with the length of its vectors there.
///
/// # Errors
/// [`TableError`] when it is none.
pub(crate) fn models(file: File) -> Result<BTreeSet<(String, i32)>, TableError> {
    caught(|| read_models(open(file)?))
}

fn read_models(
    builder: ParquetRecordBatchReaderBuilder<File>,
) -> Result<BTreeSet<(String, i32)>, TableError> {
    let mask = ProjectionMask::columns(builder.parquet_schema(), ["model_fingerprint", "dimensions"]);
    let mut found = BTreeSet::new();
    for batch in builder.with_projection(mask).build()? {
        let batch = batch?;
        let (fingerprints, dimensions) =
            (strings(&batch, "model_fingerprint")?, numbers(&batch, "dimensions")?);
        let mut last = None;
        for model in fingerprints.iter().flatten().zip(dimensions.values()) {
            // Mostly there is one.
            if last.replace(model) != Some(model) {
                found.insert((model.0.to_owned(), *model.1));
            }
        }
    }
    Ok(found)
}

impl Rows {
    /// The rows of `file`.
    ///
    /// # Errors
    /// [`TableError`] when it is no table.
    pub fn open(file: File) -> Result<Self, TableError> {
        let reader = caught(|| {
            let builder = open(file)?;
            let key = ProjectionMask::columns(builder.parquet_schema(), ["key"]);
            let with_key = ArrowPredicateFn::new(key, |batch| Ok(with_key(&batch)));
            Ok(builder.with_row_filter(RowFilter::new(vec![Box::new(with_key)])).build()?)
        })?;
        let mut rows = Self { reader, batch: None, before: 0, at: 0 };
        rows.next_batch()?;
        Ok(rows)
    }

    /// Components of the first row's vector with what fills it up; 0 if there is no row.
    pub fn width(&self) -> usize {
        self.batch.as_ref().map_or(0, |batch| batch.vector.value(0).len())
    }

    fn next_batch(&mut self) -> Result<(), TableError> {
        self.before += self.batch.as_ref().map_or(0, |batch| batch.key.len() as u64);
        self.at = 0;
        self.batch = None;
        self.batch = caught(|| self.reader.next().map(|batch| Batch::new(&batch?)).transpose())?;
        Ok(())
    }

    fn next_row(&mut self) -> Result<Option<Row>, TableError> {
        if self.batch.as_ref().is_some_and(|batch| self.at == batch.key.len()) {
            self.next_batch()?;
        }
        let Some(batch) = &self.batch else { return Ok(None) };
        let row = batch
            .row(self.at)
            .map_err(|reason| TableError::Row { row: self.before + self.at as u64, reason })?;
        self.at += 1;
        Ok(Some(row))
    }
}

impl Iterator for Rows {
    type Item = Result<Row, TableError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_row().transpose()
    }
}

/// The columns of a thousand rows; none of them is empty.
struct Batch {
    key: StringArray,
    model_fingerprint: StringArray,
    source: StringArray,
    dimensions: Int32Array,
    vector: ListArray,
    components: Float32Array,
    text_tokens: Int32Array,
    truncated: BooleanArray,
    created_ms: Vec<i64>,
}

impl Batch {
    fn new(batch: &RecordBatch) -> Result<Self, TableError> {
        let vector = whole(batch, "vector", "a list of float32", |column| column.as_list_opt().cloned())?;
        let components = vector.values().as_primitive_opt().cloned();
        let components =
            components.ok_or_else(|| wrong("vector", "a list of float32", vector.data_type()))?;
        Ok(Self {
            key: strings(batch, "key")?,
            model_fingerprint: strings(batch, "model_fingerprint")?,
            source: strings(batch, "source")?,
            dimensions: numbers(batch, "dimensions")?,
            text_tokens: numbers(batch, "text_tokens")?,
            truncated: whole(batch, "truncated", "boolean", |column| column.as_boolean_opt().cloned())?,
            created_ms: whole(batch, "created_at", "a timestamp", milliseconds)?,
            vector,
            components,
        })
    }

    fn row(&self, i: usize) -> Result<Row, String> {
        let fingerprint: Fingerprint = self
            .model_fingerprint
            .value(i)
            .parse()
            .map_err(|error| format!("`model_fingerprint`: {error}"))?;
        let key = CacheKey::restored(fingerprint, self.key.value(i)).ok_or("`key` is not 64 hex digits")?;
        let [start, end] = [i, i + 1].map(|i| usize::try_from(self.vector.value_offsets()[i]).unwrap_or(0));
        let listed = self.components.values().get(start..end).unwrap_or_default();
        let dimensions = usize::try_from(self.dimensions.value(i)).unwrap_or(0);
        let (vector, filling) =
            listed.split_at_checked(dimensions).ok_or("`vector` is shorter than `dimensions`")?;
        if filling.iter().any(|x| *x != 0.0) {
            return Err("`vector` is longer than `dimensions`".into());
        }
        let unsigned = |n: i64| u64::try_from(n).unwrap_or(0);
        let value = CachedVector {
            embedding: Embedding::restored(vector.into()).map_err(|error| error.to_string())?,
            text_tokens: u32::try_from(self.text_tokens.value(i)).unwrap_or(0),
            truncated: self.truncated.value(i),
            source: Source::restored(self.source.value(i)),
            created_ms: unsigned(self.created_ms[i]),
        };
        Ok((key, value))
    }
}

/// Which rows have a key; all of a table without such a column, which is refused for that.
fn with_key(batch: &RecordBatch) -> BooleanArray {
    let nulls = batch.column_by_name("key").and_then(|column| column.nulls());
    let is_there = |i| nulls.is_none_or(|nulls| nulls.is_valid(i));
    (0..batch.num_rows()).map(|i| Some(is_there(i))).collect()
}

fn strings(batch: &RecordBatch, name: &'static str) -> Result<StringArray, TableError> {
    whole(batch, name, "a string", |column| column.as_string_opt().cloned())
}

fn numbers(batch: &RecordBatch, name: &'static str) -> Result<Int32Array, TableError> {
    whole(batch, name, "int32", |column| column.as_primitive_opt::<Int32Type>().cloned())
}

/// The column `name`, without nulls.
fn whole<T>(
    batch: &RecordBatch,
    name: &'static str,
    expected: &'static str,
    cast: impl Fn(&ArrayRef) -> Option<T>,
) -> Result<T, TableError> {
    let not_there = || TableError::Column { column: name, expected, found: "not there".into() };
    let column = batch.column_by_name(name).ok_or_else(not_there)?;
    if column.null_count() > 0 {
        return Err(TableError::Column { column: name, expected, found: "null in places".into() });
    }
    cast(column).ok_or_else(|| wrong(name, expected, column.data_type()))
}

fn wrong(column: &'static str, expected: &'static str, found: &DataType) -> TableError {
    TableError::Column { column, expected, found: found.to_string() }
}

fn milliseconds(column: &ArrayRef) -> Option<Vec<i64>> {
    fn divided<T: ArrowPrimitiveType<Native = i64>>(column: &ArrayRef, by: i64) -> Option<Vec<i64>> {
        Some(column.as_primitive_opt::<T>()?.values().iter().map(|time| time / by).collect())
    }
    match column.data_type() {
        DataType::Timestamp(TimeUnit::Millisecond, _) => divided::<TimestampMillisecondType>(column, 1),
        DataType::Timestamp(TimeUnit::Microsecond, _) => divided::<TimestampMicrosecondType>(column, 1000),
        DataType::Timestamp(TimeUnit::Nanosecond, _) => divided::<TimestampNanosecondType>(column, 1_000_000),
        _ => None,
    }
}
