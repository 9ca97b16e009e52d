//! `sidelens embed`: the real program over the pictures of examples/catalogue.

mod here;

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{self, Child, Command, Stdio},
    thread,
    time::Duration,
};

use arrow_array::{Array, RecordBatch, cast::AsArray, types::Float32Type, types::Int64Type};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::{Value, json};
use sidelens::{
    config::{Config, DeviceChoice, ModelConfig},
    runtime,
};

use crate::support::{BucketServer, PictureServer, TestApp, refusal, sidelens};

const CATALOGUE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/catalogue");

/// What a table says of an item.
#[derive(Debug, Clone, PartialEq)]
struct Row {
    line: i64,
    id: String,
    image: Option<String>,
    source: String,
    error: Option<String>,
    vector: Option<Vec<f32>>,
}

fn rows_of(batch: &RecordBatch) -> Vec<Row> {
    let column = |name: &str| batch.column_by_name(name).expect("a column").clone();
    let text = |name: &str, i: usize| {
        let column = column(name);
        let column = column.as_string::<i32>();
        (!column.is_null(i)).then(|| column.value(i).to_owned())
    };
    let vectors = column("vector");
    let vector = |i| vectors.as_fixed_size_list().value(i).as_primitive::<Float32Type>().values().to_vec();
    let row = |i| Row {
        line: column("line").as_primitive::<Int64Type>().value(i),
        id: text("id", i).expect("every row has one"),
        image: text("image", i),
        source: text("source", i).expect("every row has one"),
        error: text("error", i),
        vector: (!vectors.is_null(i)).then(|| vector(i)),
    };
    (0..batch.num_rows()).map(row).collect()
}

fn rows_in(table: bytes::Bytes) -> Vec<Row> {
    let reader = ParquetRecordBatchReaderBuilder::try_new(table).expect("a table").build().expect("readable");
    reader.flat_map(|batch| rows_of(&batch.expect("readable"))).collect()
}

/// The tables of an output, in the order of their names.
fn tables(output: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(output).into_iter().flatten().map(|entry| entry.expect("readable").path());
    let mut tables: Vec<_> =
        entries.filter(|path| path.extension().is_some_and(|e| e == "parquet")).collect();
    tables.sort();
    tables
}

fn rows(output: &Path) -> Vec<Row> {
    tables(output).iter().flat_map(|table| rows_in(fs::read(table).expect("readable").into())).collect()
}

/// A list and an output of its own.
struct Work {
    dir: tempfile::TempDir,
    list: PathBuf,
}

impl Work {
    fn new(name: &str, lines: &[String]) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let list = dir.path().join(name);
        fs::write(&list, lines.join("\n")).expect("written");
        Self { dir, list }
    }

    fn output(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The command, which may read the catalogue.
    fn command(&self, args: &[&str]) -> Command {
        self.command_to(self.output("part-{shard}.parquet").to_str().expect("UTF-8"), args)
    }

    fn command_to(&self, output: &str, args: &[&str]) -> Command {
        let mut command =
            sidelens(&["embed", "--model", "demo", "--device", "cpu", "--json", "--output", output]);
        if !args.contains(&"--input") {
            command.arg("--input").arg(&self.list);
        }
        command.args(["--set", &format!("fetch.files_root={CATALOGUE}")]);
        command.args(["--set", "fetch.allow_networks=[\"127.0.0.0/8\"]"]).args(args);
        command
    }

    /// Runs it to its end.
    fn run(&self, args: &[&str]) -> process::Output {
        self.command(args).output().expect("it runs")
    }

    /// Runs it to its end, and feeds it a list.
    fn run_piped(&self, list: &str) -> process::Output {
        let mut command = self.command(&["--input", "-"]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("it starts");
        child.stdin.take().expect("piped").write_all(list.as_bytes()).expect("it reads");
        child.wait_with_output().expect("it ends")
    }

    /// Starts it, and waits until so many tables are written and counted.
    fn start_until(&self, tables: u64, args: &[&str]) -> Child {
        let mut command = self.command(args);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
        let progress = self.output("part-0.parquet/_progress.json");
        let are_there = || {
            let record: Value = serde_json::from_slice(&fs::read(&progress).ok()?).ok()?;
            (record["tables"].as_u64()? >= tables).then_some(())
        };
        let is_time = (0..6000).any(|_| {
            thread::sleep(Duration::from_millis(10));
            are_there().is_some()
        });
        if !is_time {
            child.kill().expect("it runs");
            panic!("waited a minute, in vain, for {tables} tables: {:?}", child.wait_with_output());
        }
        child
    }
}

fn summary(output: &process::Output, status: i32) -> Value {
    assert_eq!(output.status.code(), Some(status), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

fn pictures(n: usize) -> Vec<String> {
    // Every tenth is a webp or png.
    let names = (1..=n).filter(|i| i % 5 != 0).map(|i| format!("{i:04}.jpg"));
    names.collect()
}

fn cosine(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

async fn service() -> TestApp {
    let config = ModelConfig { device: DeviceChoice::Cpu, ..ModelConfig::default() };
    let model = runtime::load(&config).expect("the demo model loads");
    TestApp::spawn_with(model, |config: &mut Config| config.fetch.files_root = CATALOGUE.into()).await
}

/// The service's vector of a picture.
async fn vector(app: &TestApp, item: Value) -> Vec<f32> {
    let (status, body) = app.post("/embed", json!({ "inputs": [item] }).to_string()).await;
    assert_eq!(status, 200, "{body}");
    serde_json::from_value(body["data"][0]["embedding"].clone()).expect("numbers")
}

#[tokio::test]
async fn two_shards_cover_the_list_once_and_warm_the_service() {
    let mut lines: Vec<_> = pictures(20)
        .iter()
        .map(|name| json!({"id": format!("p-{name}"), "image": name}).to_string())
        .collect();
    lines.extend([
        json!({"id": 77, "text": "a red house"}).to_string(),
        String::new(),
        json!({"image": "gone.jpg"}).to_string(),
        "no object".into(),
    ]);
    let work = Work::new("list.jsonl", &lines);
    let outputs = ["part-0.parquet", "part-1.parquet"].map(|name| work.output(name));
    let mut found = Vec::new();
    for (i, output) in outputs.iter().enumerate() {
        let summary = summary(&work.run(&["--shard", &format!("{i}/2"), "--table-items", "4"]), 0);
        let rows = rows(output);
        assert_eq!(summary["items"], rows.len());
        assert_eq!(summary["complete"], true);
        assert!(rows.iter().all(|row| row.line % 2 == i as i64));
        assert!(rows.is_sorted_by_key(|row| row.line));
        found.extend(rows);
    }
    found.sort_by_key(|row| row.line);
    let expected: Vec<_> = (0..20).filter(|line| *line != 17).collect();
    assert_eq!(found.iter().map(|row| row.line).collect::<Vec<_>>(), expected);
    let by_id = |id: &str| found.iter().find(|row| row.id == id).expect("a row");
    let dead = by_id("18");
    assert_eq!((dead.error.as_deref(), &dead.vector), (Some("not_found"), &None));
    assert_eq!(by_id("19").error.as_deref(), Some("invalid_line"));
    assert_eq!((by_id("77").image.clone(), by_id("77").source.as_str()), (None, "text"));

    let cold = service().await;
    for row in found.iter().filter(|row| row.vector.is_some()) {
        let item = row.image.as_ref().map_or(json!("a red house"), |image| json!({ "image_url": image }));
        let theirs = vector(&cold, item).await;
        let ours = row.vector.as_ref().expect("filtered");
        assert!(cosine(&theirs, ours) > 0.99999, "{row:?}");
    }

    let warm = service().await;
    let mut import = sidelens(&["cache", "import", "--url", &warm.url("")]);
    import.args(&outputs);
    let imported = tokio::task::spawn_blocking(move || import.output()).await.expect("joined").expect("runs");
    assert_eq!(imported.status.code(), Some(0), "{imported:?}");
    for row in found.iter().filter(|row| row.vector.is_some()) {
        let item = row.image.as_ref().map_or(json!("a red house"), |image| json!({ "image_url": image }));
        assert_eq!(&vector(&warm, item).await, row.vector.as_ref().expect("filtered"));
    }
    assert_eq!(warm.metric("sidelens_cache_misses_total").await, 0.0);
    assert_eq!(warm.metric("sidelens_cache_hits_total{tier=\"memory\"}").await, 17.0);
}

/// A list whose last but one line does not end before the host's time is up.
fn held_up(host: &PictureServer) -> Work {
    let mut lines = pictures(20);
    lines.insert(15, host.url("slow"));
    Work::new("list.txt", &lines)
}

const BRIEF: [&str; 6] = ["--set", "fetch.first_byte_timeout_ms=300", "--retries", "0", "--table-items", "4"];

#[test]
fn a_killed_run_continues_behind_its_last_table() {
    let host = PictureServer::start("examples/catalogue");
    let work = held_up(&host);
    let mut child = work.start_until(3, &["--table-items", "4"]);
    child.kill().expect("it runs");
    child.wait().expect("it ends");
    let output = work.output("part-0.parquet");
    let before: Vec<_> = tables(&output).iter().map(|table| fs::read(table).expect("readable")).collect();
    // What was written and not counted is written anew.
    fs::write(output.join("000003.parquet"), "half a table").expect("written");
    let half = output.join(".sidelens-a1b2c3.part");
    fs::write(&half, "half a table").expect("written");

    let summary = summary(&work.run(&BRIEF), 0);
    assert_eq!((&summary["items"], &summary["new_items"]), (&json!(17), &json!(5)));
    assert_eq!(summary["failed"], json!({"timeout": 1}));
    let rows = rows(&output);
    assert_eq!(rows.iter().map(|row| row.line).collect::<Vec<_>>(), (0..17).collect::<Vec<_>>());
    assert_eq!(rows[15].error.as_deref(), Some("timeout"));
    for (table, before) in tables(&output).iter().zip(&before[..3]) {
        assert_eq!(&fs::read(table).expect("readable"), before);
    }
    assert!(!half.exists());
}

#[test]
fn a_stopped_run_writes_what_is_done_and_says_so() {
    let host = PictureServer::start("examples/catalogue");
    let work = held_up(&host);
    let child = work.start_until(3, &["--table-items", "4", "--set", "server.shutdown_timeout_s=1"]);
    let sent = Command::new("kill").args(["-TERM", &child.id().to_string()]).status();
    assert!(sent.expect("kill runs").success());
    let stopped = child.wait_with_output().expect("it ends");
    let record = summary(&stopped, 75);
    // Three whole tables, and the three pictures before the one that does not end.
    assert_eq!(
        (&record["items"], &record["tables"], &record["complete"]),
        (&json!(15), &json!(4), &json!(false))
    );
    assert!(String::from_utf8_lossy(&stopped.stderr).ends_with("the same command continues\n"));

    let record = summary(&work.run(&BRIEF), 0);
    assert_eq!((&record["items"], &record["new_items"]), (&json!(17), &json!(2)));
    let rows = rows(&work.output("part-0.parquet"));
    assert_eq!(rows.iter().map(|row| row.line).collect::<Vec<_>>(), (0..17).collect::<Vec<_>>());
}

#[test]
fn what_is_done_stays_as_it_is() {
    let work = Work::new("list.txt", &pictures(5));
    // Else the machine would choose.
    let run = |args: &[&str]| work.run(&[&["--dtype", "fp32"], args].concat());
    summary(&run(&[]), 0);
    let output = work.output("part-0.parquet");
    let files = || {
        let entries =
            fs::read_dir(&output).expect("a directory").map(|entry| entry.expect("readable").path());
        let mut files: Vec<_> = entries.map(|path| (fs::read(&path).expect("readable"), path)).collect();
        files.sort();
        files
    };
    let before = files();
    let again = summary(&run(&[]), 0);
    assert_eq!(
        (&again["complete"], &again["items"], &again["new_items"]),
        (&json!(true), &json!(4), &json!(0))
    );

    // The demo model's vectors depend on the type that they are computed in.
    let other = refusal(&work.run(&["--dtype", "bf16"]));
    assert!(
        other.contains("was begun with the model ") && other.contains("choose another `--output`"),
        "{other}"
    );
    let other = refusal(&run(&["--set", "image.decode=exact"]));
    assert!(other.contains("was begun with the settings of pictures fast, #ffffff, ignore"), "{other}");
    let other = refusal(&run(&["--shard", "0/2"]));
    assert!(other.contains("was begun with the shard 0/1, and this is 0/2"), "{other}");
    for (list, found) in [
        ("0001.jpg\n0002.jpg\n0004.jpg\n0003.jpg", "was begun with lines of the digest "),
        ("0001.jpg", "was begun with a list of 35 bytes, and this is 8 bytes"),
    ] {
        fs::write(&work.list, list).expect("written");
        let other = refusal(&run(&[]));
        assert!(other.contains(found), "{other}");
    }
    assert_eq!(files(), before);

    let everywhere =
        sidelens(&["embed", "--input", "a", "--output", "b", "--shard", "0/2"]).output().expect("it runs");
    let no_model = run(&["--model-name", "other"]);
    for (output, found) in [
        (everywhere, "write {shard} where its number belongs"),
        (no_model, "`--model-name` is `other`, and the settings have no names"),
    ] {
        let message = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{message}");
        assert!(message.contains(found), "{message}");
    }
}

#[test]
fn a_bad_list_is_told_by_the_status_again_and_again() {
    let work = Work::new("list.txt", &["0001.jpg".into(), "gone.jpg".into(), "too.jpg".into()]);
    for _ in 0..2 {
        let output = work.run(&[]);
        let message = String::from_utf8_lossy(&output.stderr);
        assert!(message.contains("remove the output") && message.contains("another output"), "{message}");
        let record = summary(&output, 65);
        assert_eq!((&record["failed"], &record["embedded"]), (&json!({"not_found": 2}), &json!(1)));
    }
    summary(&work.run(&["--max-failed", "67"]), 0);
}

#[test]
fn a_host_that_recovers_costs_no_vector() {
    let host = PictureServer::start("examples/catalogue");
    let work = Work::new("list.txt", &[host.url("third/0001.jpg")]);
    // The download itself asks twice.
    let record = summary(&work.run(&["--retries", "1"]), 0);
    assert_eq!((&record["embedded"], &record["failed"]), (&json!(1), &json!({})));
}

#[test]
fn a_bucket_is_written_as_a_directory_is() {
    let store = BucketServer::start();
    let work = Work::new("list.txt", &pictures(10));
    let config = work.output("sidelens.toml");
    let bucket = format!(
        "[[fetch.buckets]]\nurl = \"s3://vectors/pictures\"\nendpoint = \"{}\"\n\
         options = {{skip_signature = \"true\"}}\n",
        store.url()
    );
    fs::write(&config, bucket).expect("written");
    let run = || {
        let mut command =
            work.command_to("s3://vectors/out/part-{shard}", &["--table-items", "3", "--config"]);
        summary(&command.arg(&config).output().expect("it runs"), 0)
    };
    assert_eq!((&run()["new_items"], &run()["new_items"]), (&json!(8), &json!(0)));
    let objects = store.objects();
    let names: Vec<_> =
        objects.keys().map(|key| key.strip_prefix("vectors/out/part-0/").expect("below")).collect();
    assert_eq!(names, ["000000.parquet", "000001.parquet", "000002.parquet", "_progress.json"]);
    let tables = objects.into_values().take(3).flat_map(rows_in);
    assert_eq!(tables.map(|row| row.line).collect::<Vec<_>>(), (0..8).collect::<Vec<_>>());
}

#[test]
fn a_piped_list_goes_on_where_it_broke_off() {
    let work = Work::new("list.txt", &[]);
    let record = summary(&work.run_piped("0001.jpg\n0002.jpg\n"), 0);
    assert_eq!((&record["items"], &record["complete"]), (&json!(2), &json!(true)));
    let record = summary(&work.run_piped("0001.jpg\n0002.jpg\n"), 0);
    assert_eq!((&record["new_items"], &record["complete"]), (&json!(0), &json!(true)));
    let broken = refusal(&work.run_piped("0001.jpg\n0002.jpg\n0003.jpg\n0004.j"));
    assert!(broken.contains("line 3 has no end"), "{broken}");
    let record = summary(&work.run_piped("0001.jpg\n0002.jpg\n0003.jpg\n0004.jpg\n"), 0);
    assert_eq!(
        (&record["items"], &record["new_items"], &record["failed"]),
        (&json!(4), &json!(1), &json!({}))
    );
    let other = refusal(&work.run_piped("0001.jpg\n0003.jpg\n0002.jpg\n0004.jpg\n0006.jpg\n"));
    assert!(other.contains("was begun with lines of the digest"), "{other}");
    assert_eq!(rows(&work.output("part-0.parquet")).len(), 4);
}

#[test]
fn the_record_stands_before_the_first_table() {
    let host = PictureServer::start("examples/catalogue");
    let work = Work::new("list.txt", &[host.url("slow")]);
    let mut child = work.start_until(0, &[]);
    child.kill().expect("it runs");
    child.wait().expect("it ends");
    let progress = work.output("part-0.parquet/_progress.json");
    fs::remove_file(&progress).expect("removed");
    fs::create_dir(&progress).expect("made");
    let refused = refusal(&work.run(&[]));
    assert!(refused.contains("_progress.json cannot be read: "), "{refused}");
}

#[test]
fn another_writer_is_noticed() {
    let host = PictureServer::start("examples/catalogue");
    let work = held_up(&host);
    let child = work.start_until(3, &["--table-items", "4", "--set", "server.shutdown_timeout_s=1"]);
    // As by a process that no lock keeps out.
    let progress = work.output("part-0.parquet/_progress.json");
    let record = fs::read_to_string(&progress).expect("written");
    fs::write(&progress, record.replace("\"tables\": 3", "\"tables\": 4")).expect("written");
    let sent = Command::new("kill").args(["-TERM", &child.id().to_string()]).status();
    assert!(sent.expect("kill runs").success());
    let ended = child.wait_with_output().expect("it ends");
    let message = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(75), "{message}");
    assert!(message.contains("another process writes "), "{message}");
    assert_eq!(tables(&work.output("part-0.parquet")).len(), 3);
}

#[test]
fn one_that_comes_too_early_is_told_before_a_model_is_read() {
    let work = Work::new("list.txt", &["0001.jpg".into()]);
    let output = work.output("part-0.parquet");
    fs::create_dir(&output).expect("made");
    let lock = fs::File::open(&output).expect("opened");
    lock.lock().expect("nobody else has it");
    let early = work.run(&["--set", "model.image=/nowhere", "--set", "model.text=/nowhere"]);
    let message = String::from_utf8_lossy(&early.stderr);
    assert_eq!(early.status.code(), Some(75), "{message}");
    assert!(
        message.contains("another process is writing ") && message.contains("part-0.parquet"),
        "{message}"
    );
    drop(lock);
    summary(&work.run(&[]), 0);
}
