//! The table as others see it, and tables as others write them.

use std::{
    fs::File,
    io::{self, Read, Seek, Write},
};

use arrow_array::{
    Array, ArrayRef, Float32Array, LargeStringArray, ListArray, RecordBatch, StringArray,
    TimestampMicrosecondArray, cast::AsArray, types::Float32Type,
};
use parquet::{
    arrow::{ArrowWriter, arrow_reader::ParquetRecordBatchReaderBuilder},
    basic::Compression,
};

use super::*;
use crate::{
    cache::Source,
    domain::{Embedding, Fingerprint},
};

fn rows(n: usize) -> Vec<Row> {
    let of = |i: usize| {
        let embedding = Embedding::normalized(vec![i as f32, 1.0, -2.0]).unwrap();
        let source = Source::Url(format!("https://host/{i}.jpg").into());
        let value =
            CachedVector { created_ms: 1_700_000_000_123, ..CachedVector::of_image(embedding, source) };
        (CacheKey::text(Fingerprint::of(&[b"model"]), &i.to_string()), value)
    };
    (0..n).map(of).collect()
}

fn written(rows: &[Row], width: usize) -> File {
    let mut file = tempfile::tempfile().unwrap();
    let mut table = TableWriter::new(&mut file, width).unwrap();
    rows.iter().for_each(|row| table.push(row.clone()).unwrap());
    assert_eq!(table.finish().unwrap(), rows.len() as u64);
    file.rewind().unwrap();
    file
}

/// A disk that is full.
struct Full;

impl Write for Full {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::StorageFull.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_full_disk_is_no_damaged_table() {
    let write = |n| {
        let mut table = TableWriter::new(Full, 3)?;
        rows(n).into_iter().try_for_each(|row| table.push(row))?;
        table.finish()
    };
    for n in [0, 1, 10_000] {
        let failed = write(n).unwrap_err();
        assert!(matches!(failed, TableError::Io(_)), "{failed}");
    }
    let item = |row| TableItem { id: "1".into(), line: 0, image: None, outcome: Ok(row) };
    let items: Vec<_> = rows(1).into_iter().map(item).collect();
    let failed = write_items(Full, &items, Fingerprint::of(&[b"model"]), 3).unwrap_err();
    assert!(matches!(failed, TableError::Io(_)), "{failed}");
}

/// The only batch of a table, its columns by their Arrow types.
fn batch(file: File) -> RecordBatch {
    let batches: Vec<_> = ParquetRecordBatchReaderBuilder::try_new(file).unwrap().build().unwrap().collect();
    let [batch] = &batches[..] else { panic!("{} batches", batches.len()) };
    batch.as_ref().unwrap().clone()
}

/// The table with the columns that `change` gives in place of its own.
fn rewritten(batch: &RecordBatch, change: &[(&str, ArrayRef)]) -> File {
    let schema = batch.schema();
    let columns = schema.fields().iter().zip(batch.columns()).map(|(field, column)| {
        let changed = change.iter().find(|(name, _)| name == field.name());
        (field.name().clone(), changed.map_or(column, |(_, column)| column).clone())
    });
    let batch = RecordBatch::try_from_iter(columns).unwrap();
    let mut file = tempfile::tempfile().unwrap();
    let mut writer = ArrowWriter::try_new(&mut file, batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    file.rewind().unwrap();
    file
}

fn read(file: File) -> Result<Vec<Row>, TableError> {
    Rows::open(file)?.collect()
}

#[test]
fn the_schema_is_as_documented() {
    let rows = rows(2);
    let batch = batch(written(&rows, 3));
    assert_eq!(*batch.schema(), schema(3));
    let column = |name| batch.column_by_name(name).unwrap();
    assert_eq!(column("key").as_string::<i32>().value(1), rows[1].0.digest_hex().as_ref());
    assert_eq!(column("source").as_string::<i32>().value(1), "https://host/1.jpg");
    let vector = column("vector").as_fixed_size_list().value(1);
    assert_eq!(*vector.as_primitive::<Float32Type>().values(), *rows[1].1.embedding.as_slice());
}

#[test]
fn every_row_comes_back_in_groups_of_bounded_size() {
    for n in [0, 1, 4096, 10_000] {
        let file = written(&rows(n), 3);
        let groups = ParquetRecordBatchReaderBuilder::try_new(file.try_clone().unwrap()).unwrap();
        assert!(groups.metadata().row_groups().iter().all(|group| group.num_rows() <= 4096));
        assert_eq!(models(file.try_clone().unwrap()).unwrap().len(), n.min(1));
        assert!(read(file).unwrap() == rows(n), "{n} rows");
    }
}

#[test]
fn a_narrow_vector_is_filled_up_and_comes_back_narrow() {
    let file = written(&rows(2), 5);
    assert_eq!(Rows::open(file.try_clone().unwrap()).unwrap().width(), 5);
    assert!(read(file).unwrap() == rows(2));
    let mut table = TableWriter::new(Vec::new(), 2).unwrap();
    assert!(matches!(table.push(rows(1).remove(0)), Err(TableError::Row { row: 0, .. })));
}

#[test]
fn vectors_are_neither_counted_nor_gathered_in_a_dictionary_but_their_filling_is_compressed() {
    let wide = 2000;
    let file = written(&rows(1000), wide);
    let n_bytes = file.metadata().unwrap().len();
    assert!(n_bytes < 1000 * wide as u64 * 4 / 10, "{n_bytes} bytes, nearly all of them zeros");
    let builder = ParquetRecordBatchReaderBuilder::try_new(file).unwrap();
    let group = builder.metadata().row_group(0);
    let column =
        |path: &str| group.columns().iter().find(|column| column.column_path().string() == path).unwrap();
    let vector = column("vector.list.element");
    assert_eq!(vector.compression(), Compression::SNAPPY);
    assert_eq!((vector.dictionary_page_offset(), vector.statistics()), (None, None));
    let key = column("key");
    assert_eq!((key.compression(), key.dictionary_page_offset()), (Compression::UNCOMPRESSED, None));
}

#[test]
fn no_damage_to_the_end_of_a_table_makes_a_panic() {
    let mut whole = Vec::new();
    written(&rows(2), 3).read_to_end(&mut whole).unwrap();
    let end = whole.len() - 8;
    let footer = u32::from_le_bytes(whole[end..][..4].try_into().unwrap()) as usize;
    for at in end - footer..end {
        let mut damaged = whole.clone();
        damaged[at] ^= 1;
        let mut file = tempfile::tempfile().unwrap();
        std::io::Write::write_all(&mut file, &damaged).unwrap();
        // Some of it does no harm.
        _ = models(file.try_clone().unwrap());
        _ = read(file);
    }
}

#[test]
fn what_other_programs_make_of_it_is_read() {
    let rows = rows(3);
    let original = batch(written(&rows, 3));
    let as_lists = rows.iter().map(|(_, value)| Some(value.embedding.as_slice().iter().map(|x| Some(*x))));
    let lists: ArrayRef = Arc::new(ListArray::from_iter_primitive::<Float32Type, _, _>(as_lists));
    let sources = rows.iter().map(|(_, value)| value.source.as_str().to_owned());
    let large: ArrayRef = Arc::new(LargeStringArray::from_iter_values(sources));
    let micros = vec![1_700_000_000_123_000; 3];
    let micros: ArrayRef = Arc::new(TimestampMicrosecondArray::from(micros));
    let file = rewritten(&original, &[("vector", lists), ("source", large), ("created_at", micros)]);
    assert!(read(file).unwrap() == rows);
}

#[test]
fn what_cannot_be_is_refused_by_its_name() {
    let original = batch(written(&rows(2), 3));
    let check = |column: &str, changed: ArrayRef, expected: &str| {
        let message = read(rewritten(&original, &[(column, changed)])).unwrap_err().to_string();
        assert!(message.contains(expected), "{message}");
    };
    let strings = |text: &str| -> ArrayRef { Arc::new(StringArray::from(vec![text; 2])) };
    check("key", strings("ab"), "row 0 cannot be used: `key` is not 64 hex digits");
    check("model_fingerprint", strings("ab"), "`model_fingerprint`: a fingerprint is 32 hex digits");
    check("dimensions", strings("3"), "column `dimensions` should be int32");
    check(
        "dimensions",
        Arc::new(arrow_array::Int32Array::from(vec![3, 2])),
        "row 1 cannot be used: `vector`",
    );
    check("dimensions", Arc::new(arrow_array::Int32Array::from(vec![3, -1])), "row 1 cannot be used: ");
    check("dimensions", Arc::new(arrow_array::Int32Array::from(vec![3, 4])), "shorter than `dimensions`");
    check("source", Arc::new(StringArray::from(vec![None, Some("text")])), "null in places");
    let halved = |factor: f32| -> ArrayRef {
        let vectors = original.column_by_name("vector").unwrap().as_fixed_size_list();
        let components =
            vectors.values().as_primitive::<Float32Type>().unary::<_, Float32Type>(|x| x * factor);
        let DataType::FixedSizeList(item, width) = vectors.data_type() else { panic!("a list") };
        let components: Float32Array = components;
        Arc::new(arrow_array::FixedSizeListArray::new(item.clone(), *width, Arc::new(components), None))
    };
    check("vector", halved(0.5), "not of length one");
    check("vector", halved(f32::NAN), "not finite");
    let without_key = original.project(&[1, 2, 3, 4, 5, 6, 7]).unwrap();
    let message = read(rewritten(&without_key, &[])).unwrap_err().to_string();
    assert!(message.contains("column `key` should be a string, and is not there"), "{message}");
}

#[test]
fn items_without_a_vector_are_told_of_and_passed_over() {
    let model = Fingerprint::of(&[b"model"]);
    let rows = rows(5000);
    let item = |(i, row): (usize, &Row)| TableItem {
        id: format!("p{i}"),
        line: i as u64,
        image: (i > 0).then(|| format!("https://host/{i}.jpg?size=big")),
        outcome: match i % 5 {
            4 => Err(FailedItem {
                source: row.1.source.clone(),
                error: "not_found",
                message: "gone".into(),
                at_ms: 7,
            }),
            _ => Ok(row.clone()),
        },
    };
    let items: Vec<_> = rows.iter().enumerate().map(item).collect();
    let mut file = tempfile::tempfile().unwrap();
    write_items(&mut file, &items, model, 3).unwrap();
    file.rewind().unwrap();

    let first = ParquetRecordBatchReaderBuilder::try_new(file.try_clone().unwrap()).unwrap();
    let first = first.with_batch_size(5).build().unwrap().next().unwrap().unwrap();
    assert_eq!(*first.schema(), items::item_schema(3));
    let text = |name: &str| {
        let column = first.column_by_name(name).unwrap().as_string::<i32>().iter();
        column.map(|text| text.map(str::to_owned)).collect::<Vec<_>>()
    };
    assert_eq!(text("id"), ["p0", "p1", "p2", "p3", "p4"].map(|id| Some(id.into())));
    assert_eq!(text("image")[..2], [None, Some("https://host/1.jpg?size=big".into())]);
    assert_eq!(text("source")[4], Some("https://host/4.jpg".into()));
    assert_eq!((text("error")[3].clone(), text("error")[4].clone()), (None, Some("not_found".into())));
    assert_eq!(text("error_message")[4].as_deref(), Some("gone"));
    for name in ["key", "vector"] {
        let column = first.column_by_name(name).unwrap();
        assert_eq!((column.is_null(3), column.is_null(4)), (false, true), "{name}");
    }

    let vectors: Vec<_> =
        rows.into_iter().enumerate().filter(|(i, _)| i % 5 != 4).map(|(_, row)| row).collect();
    file.rewind().unwrap();
    assert!(read(file).unwrap() == vectors);
}
