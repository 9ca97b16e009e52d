//! What goes out comes back; what is damaged, of another model or half written does no harm.

use std::{
    os::unix::{fs::symlink, net::UnixListener},
    panic::catch_unwind,
};

use bytes::Bytes;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use tempfile::TempDir;
use tokio::task::spawn_blocking;

use super::*;
use crate::{
    cache::{CachedVector, Source, memory::weight, tests::config},
    domain::Embedding,
    telemetry::Metrics,
};

const MAX: u64 = 1 << 30;

fn model(name: &str) -> Fingerprint {
    Fingerprint::of(&[name.as_bytes()])
}

/// Models by name and length.
fn served(models: &[(&str, usize)]) -> Vec<Served> {
    let served =
        |(name, dimensions): &(&str, usize)| Served { fingerprint: model(name), dimensions: *dimensions };
    models.iter().map(served).collect()
}

fn row(model_name: &str, dimensions: usize, name: &str) -> Row {
    let seed = blake3::hash(name.as_bytes());
    let components = (0..dimensions).map(|i| f32::from(seed.as_bytes()[i % 32]) + 1.0).collect();
    let embedding = Embedding::normalized(components).unwrap();
    let value = match name.strip_prefix("https:") {
        Some(_) => CachedVector::of_image(embedding, Source::Url(name.into())),
        None => CachedVector::of_text(embedding, 7, true),
    };
    (CacheKey::text(model(model_name), name), value)
}

async fn cache(rows: &[Row]) -> VectorCache {
    let cache = VectorCache::new(&config(1 << 24), Metrics::new()).unwrap();
    for (key, value) in rows {
        cache.put(*key, value.clone(), &Dropped::default()).await;
    }
    cache
}

fn file() -> (TempDir, std::path::PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("vectors.parquet");
    (dir, path)
}

/// Reads the file into an empty cache.
async fn warmed(path: &Path, models: &[(&str, usize)]) -> (VectorCache, Result<Taken, TableError>) {
    let (fresh, path) = (cache(&[]).await, path.to_owned());
    let served = served(models);
    let taken = spawn_blocking({
        let fresh = fresh.clone();
        move || fresh.warm(&path, &served)
    });
    let taken = taken.await.unwrap();
    (fresh, taken)
}

async fn holds(cache: &VectorCache, rows: &[Row]) {
    for (key, value) in rows {
        assert_eq!(cache.peek(key).await.as_ref(), Some(value));
    }
}

fn names(dir: &TempDir) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[tokio::test]
async fn what_is_saved_warms_the_next_start() {
    let (dir, path) = file();
    let rows = [row("a", 8, "red"), row("a", 8, "https://host/a.jpg?token=x"), row("b", 12, "red")];
    assert_eq!(cache(&rows).await.save(&path, MAX).unwrap(), 3);
    let (fresh, taken) = warmed(&path, &[("a", 8), ("b", 12)]).await;
    assert_eq!(taken.unwrap(), Taken { rows: 3, of_others: 0, dropped: 0 });
    holds(&fresh, &rows).await;
    let (fresh, taken) = warmed(&path, &[("a", 8)]).await;
    assert_eq!(taken.unwrap(), Taken { rows: 2, of_others: 1, dropped: 0 });
    holds(&fresh, &rows[..2]).await;
    assert_eq!(fresh.peek(&rows[2].0).await, None);
    let (fresh, taken) = warmed(&path, &[("a", 9), ("b", 12)]).await;
    assert_eq!(taken.unwrap(), Taken { rows: 1, of_others: 2, dropped: 0 }, "of the wrong length");
    holds(&fresh, &rows[2..]).await;
    assert_eq!(names(&dir), ["vectors.parquet"]);
    assert_eq!(warmed(&dir.path().join("none"), &[("a", 8)]).await.1.unwrap(), Taken::default());
}

#[tokio::test]
async fn old_rows_stay_and_newer_ones_of_the_same_key_win() {
    let (_dir, path) = file();
    let (old, kept) = (row("a", 8, "red"), row("other", 4, "blue"));
    cache(&[old.clone(), kept.clone()]).await.save(&path, MAX).unwrap();
    let new = (old.0, CachedVector { text_tokens: 9, ..old.1.clone() });
    let rows = [new, row("a", 8, "green"), kept];
    assert_eq!(cache(&rows[..2]).await.save(&path, MAX).unwrap(), 3);
    let (fresh, taken) = warmed(&path, &[("a", 8), ("other", 4)]).await;
    assert_eq!(taken.unwrap().rows, 3);
    holds(&fresh, &rows).await;
}

#[tokio::test]
async fn the_file_keeps_the_newest_within_its_limit_and_memory_takes_what_it_has_room_for() {
    let (_dir, path) = file();
    let old: Vec<_> = (0..20).map(|i| row("a", 8, &format!("old {i}"))).collect();
    cache(&old).await.save(&path, MAX).unwrap();
    let new = [row("a", 8, "new")];
    let room_for_ten = u64::from(weight(&new[0].1)) * 10;
    assert_eq!(cache(&new).await.save(&path, room_for_ten).unwrap(), 10);
    holds(&warmed(&path, &[("a", 8)]).await.0, &new).await;

    let small = VectorCache::new(&config(room_for_ten / 2), Metrics::new()).unwrap();
    let taken = spawn_blocking(move || small.warm(&path, &served(&[("a", 8)]))).await.unwrap();
    assert_eq!(taken.unwrap().rows, 5);
}

/// Rows from the oldest to the newest.
fn dated(n: u64) -> Vec<Row> {
    let row = |i: u64| {
        let (key, value) = row("a", 8, &format!("row {i:02}"));
        (key, CachedVector { created_ms: 1_700_000_000_000 + i, ..value })
    };
    (0..n).map(row).collect()
}

#[tokio::test]
async fn of_more_than_the_file_may_hold_it_keeps_the_newest() {
    let (_dir, path) = file();
    let rows = dated(20);
    let room_for_ten = u64::from(weight(&rows[0].1)) * 10;
    assert_eq!(cache(&rows).await.save(&path, room_for_ten).unwrap(), 10);
    holds(&warmed(&path, &[("a", 8)]).await.0, &rows[10..]).await;

    // Computed again, or from Redis: what memory holds may be older than what the file has.
    assert_eq!(cache(&rows[5..12]).await.save(&path, room_for_ten).unwrap(), 10);
    holds(&warmed(&path, &[("a", 8)]).await.0, &rows[10..]).await;
}

#[tokio::test]
async fn what_came_last_outlives_restarts_with_a_memory_that_the_file_fills() {
    let (_dir, path) = file();
    let rows = dated(13);
    let room_for_ten = u64::from(weight(&rows[0].1)) * 10;
    cache(&rows[..10]).await.save(&path, room_for_ten).unwrap();

    let full = VectorCache::new(&config(room_for_ten), Metrics::new()).unwrap();
    let warmed_up = spawn_blocking({
        let (full, path) = (full.clone(), path.clone());
        move || full.warm(&path, &served(&[("a", 8)]))
    });
    assert_eq!(warmed_up.await.unwrap().unwrap().rows, 10);
    for (key, value) in &rows[10..] {
        full.put(*key, value.clone(), &Dropped::default()).await;
    }
    full.memory.settle().await;
    assert_eq!(full.memory.rows().count(), 10);
    holds(&full, &rows[3..]).await;
    assert_eq!(full.save(&path, room_for_ten).unwrap(), 10);
    holds(&warmed(&path, &[("a", 8)]).await.0, &rows[3..]).await;
}

#[tokio::test]
async fn a_write_that_fails_half_way_leaves_the_old_file() {
    let (dir, path) = file();
    let rows = [row("a", 8, "red")];
    cache(&rows).await.save(&path, MAX).unwrap();
    let failed = replace_file(&path, |file| {
        let mut table = TableWriter::new(file, 8)?;
        (0..5000).try_for_each(|i| table.push(row("a", 8, &i.to_string())))?;
        Err::<(), TableError>(io::Error::other("no space left").into())
    });
    assert!(matches!(failed, Err(TableError::Io(_))));
    assert_eq!(names(&dir), ["vectors.parquet"]);
    let (fresh, taken) = warmed(&path, &[("a", 8)]).await;
    assert_eq!(taken.unwrap().rows, 1);
    holds(&fresh, &rows).await;
}

#[tokio::test]
async fn a_file_that_cannot_be_read_is_told_and_set_aside() {
    let (dir, path) = file();
    let rows: Vec<_> = (0..10_000).map(|i| row("a", 8, &i.to_string())).collect();
    cache(&rows).await.save(&path, MAX).unwrap();
    let whole = fs::read(&path).unwrap();
    let mut damaged = whole.clone();
    damaged[whole.len() / 2..][..2000].fill(0xff);
    for bytes in [&b"no table"[..], &whole[..whole.len() / 2], &[], &damaged] {
        fs::write(&path, bytes).unwrap();
        assert!(warmed(&path, &[("a", 8)]).await.1.is_err(), "{} bytes", bytes.len());
        let new = [row("a", 8, "new")];
        cache(&new).await.save(&path, MAX).unwrap();
        assert_eq!(names(&dir), ["vectors.parquet", "vectors.parquet.unreadable"]);
        assert_eq!(fs::read(dir.path().join("vectors.parquet.unreadable")).unwrap(), bytes);
        let (fresh, taken) = warmed(&path, &[("a", 8)]).await;
        assert!(taken.unwrap().rows >= 1);
        holds(&fresh, &new).await;
    }
}

#[tokio::test]
async fn a_byte_that_makes_the_reader_panic_costs_that_file_alone() {
    let (dir, path) = file();
    cache(&[row("a", 8, "old")]).await.save(&path, MAX).unwrap();
    let whole = fs::read(&path).unwrap();
    let panics = |bytes: &Vec<u8>| {
        let bytes = Bytes::copy_from_slice(bytes);
        let read = || ParquetRecordBatchReaderBuilder::try_new(bytes).and_then(|table| table.build());
        catch_unwind(|| read().map(|batches| batches.take_while(Result::is_ok).count())).is_err()
    };
    let damaged = |at: usize| {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        bytes
    };
    let bytes = (0..whole.len()).rev().map(damaged).find(panics);
    let bytes = bytes.expect("`parquet` panics at no byte: what catches that can go");
    fs::write(&path, &bytes).unwrap();
    let message = warmed(&path, &[("a", 8)]).await.1.unwrap_err().to_string();
    assert!(message.contains("damaged"), "{message}");
    let new = [row("a", 8, "new")];
    cache(&new).await.save(&path, MAX).unwrap();
    assert_eq!(fs::read(dir.path().join("vectors.parquet.unreadable")).unwrap(), bytes);
    holds(&warmed(&path, &[("a", 8)]).await.0, &new).await;
}

#[tokio::test]
async fn what_a_link_leads_to_is_replaced_and_the_link_stays() {
    let (dir, path) = file();
    fs::create_dir(dir.path().join("data")).unwrap();
    symlink("data/vectors.parquet", &path).unwrap();
    let target = dir.path().join("data/vectors.parquet");
    let rows = [row("a", 8, "red"), row("a", 8, "green")];
    for n in 1..=2 {
        // At first nothing is there.
        assert_eq!(cache(&rows[..n]).await.save(&path, MAX).unwrap(), n as u64);
        assert!(path.is_symlink() && !target.is_symlink());
        holds(&warmed(&target, &[("a", 8)]).await.0, &rows[..n]).await;
    }
    fs::write(&target, "no table").unwrap();
    cache(&rows).await.save(&path, MAX).unwrap();
    assert!(path.is_symlink() && dir.path().join("data/vectors.parquet.unreadable").is_file());
    assert_eq!(names(&dir), ["data", "vectors.parquet"]);
}

#[test]
fn what_a_killed_process_left_goes_at_the_next_start() {
    let (dir, path) = file();
    let others = dir.path().join("vectors.parquet-2");
    let left = |path: &Path| part_of(path).unwrap().keep().unwrap().1;
    let (ours, of_another) = (left(&path), left(&others));
    let under_way = part_of(&path).unwrap();
    let config = CacheConfig { file: path.to_str().unwrap().into(), ..config(0) };
    check_file(&config).unwrap();
    assert!(!ours.exists() && of_another.exists() && under_way.path().exists(), "{:?}", names(&dir));
}

#[test]
fn what_is_no_file_is_not_replaced_by_one() {
    let (dir, path) = file();
    let _socket = UnixListener::bind(&path).unwrap();
    let link = dir.path().join("link");
    symlink("vectors.parquet", &link).unwrap();
    let circle = dir.path().join("circle");
    symlink("circle", &circle).unwrap();
    for path in [&path, &link, &circle] {
        let written = replace_file(path, |file| file.write_all(b"a table"));
        assert!(written.is_err() && !path.is_file(), "{}", path.display());
    }
    assert_eq!(names(&dir), ["circle", "link", "vectors.parquet"]);
}

#[tokio::test]
async fn what_is_no_file_is_left_alone() {
    let (dir, path) = file();
    fs::create_dir(&path).unwrap();
    fs::write(path.join("photo.jpg"), "mine").unwrap();
    let message = cache(&[row("a", 8, "red")]).await.save(&path, MAX).unwrap_err().to_string();
    assert!(message.contains("no regular file"), "{message}");
    assert_eq!(names(&dir), ["vectors.parquet"]);
    assert_eq!(fs::read(path.join("photo.jpg")).unwrap(), b"mine");
}

#[tokio::test]
async fn an_export_is_imported_where_its_models_are_served() {
    let rows = [row("a", 8, "red"), row("b", 12, "red"), row("a", 8, "https://host/a.jpg")];
    let mut table = Vec::new();
    assert_eq!(cache(&rows).await.export(&mut table).unwrap(), 3);
    let import = async |models: &'static [(&'static str, usize)]| {
        let (fresh, table) = (cache(&[]).await, table.clone());
        let served = served(models);
        let importing = fresh.clone();
        let taken = spawn_blocking(move || importing.import(&table[..], &served)).await.unwrap();
        (fresh, taken)
    };
    let (fresh, taken) = import(&[("b", 12), ("a", 8), ("c", 8)]).await;
    assert_eq!(taken.unwrap().rows, 3);
    holds(&fresh, &rows).await;

    let (fresh, taken) = import(&[("a", 8)]).await;
    let message = taken.unwrap_err().to_string();
    assert!(
        message.contains(&model("b").to_string()) && message.contains(&model("a").to_string()),
        "{message}"
    );
    assert_eq!(fresh.memory.rows().count(), 0, "refused whole");

    let (fresh, taken) = import(&[("a", 8), ("b", 11)]).await;
    let message = taken.unwrap_err().to_string();
    assert!(message.contains("12 components") && message.contains("have 11"), "{message}");
    assert_eq!(fresh.memory.rows().count(), 0, "refused whole");
    let (_, taken) = import(&[]).await;
    assert!(matches!(taken, Err(TableError::Fingerprint { .. })));
}
