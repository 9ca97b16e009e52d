//! AVIF and large lossless WebP, decoded in processes that may die, hang and be killed.

use std::{
    fs,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use base64::{Engine, prelude::BASE64_STANDARD};
use prometheus::IntCounter;
use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process, prlimit};
use serde_json::{Value, json};
use sidelens::{
    domain::{Filter, ImageSpec, Resize},
    imaging::{ImagingError, ImagingOptions, WorkerCommand, Workers, prepare},
};
use tokio::task::JoinHandle;

use crate::support::{Running, answer, client, decode_worker};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/formats").join(name)
}

/// A child of this process or of another.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Process(i32);

impl Process {
    /// Those of `parent`, the dead that nobody waited for included.
    fn children_of(parent: u32) -> Vec<Self> {
        let pids = fs::read_dir("/proc").expect("Linux").filter_map(|entry| {
            entry.expect("readable").file_name().to_string_lossy().parse().ok().map(Process)
        });
        let parent = parent.to_string();
        pids.filter(|process| process.stat().is_some_and(|stat| stat[1] == parent)).collect()
    }

    /// Its fields from the state on; none where it is gone.
    fn stat(self) -> Option<Vec<String>> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.0)).ok()?;
        let (_, fields) = stat.rsplit_once(") ")?;
        Some(fields.split(' ').map(str::to_owned).collect())
    }

    /// Ticks of CPU time.
    fn ticks(self) -> u64 {
        let stat = self.stat().expect("it lives");
        stat[11..13].iter().map(|field| field.parse::<u64>().expect("a number")).sum()
    }

    fn is_gone(self) -> bool {
        self.stat().is_none()
    }

    fn id(self) -> Pid {
        Pid::from_raw(self.0).expect("not zero")
    }

    fn signal(self, signal: Signal) {
        kill_process(self.id(), signal).expect("it lives");
    }
}

fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !condition() {
        assert!(begin.elapsed() < Duration::from_secs(30), "{what}: not within 30 s");
        thread::sleep(Duration::from_millis(2));
    }
}

/// The program with the demo model, and who asks it.
struct Service {
    running: Running,
    client: reqwest::Client,
}

impl Service {
    async fn start(sets: &[&str]) -> Self {
        let mut args = vec!["--model", "demo", "--device", "cpu"];
        // On a busy machine, too, it is the worker that ends first.
        args.extend(["--set", "cache.max_bytes=0", "--set", "batch.deadline_ms=30000"]);
        sets.iter().for_each(|set| args.extend(["--set", set]));
        let service =
            Self { running: tokio::task::block_in_place(|| Running::start(&args)), client: client() };
        let url = format!("{}/ready", service.running.url);
        while answer(service.client.get(&url)).await.0 != 200 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        service
    }

    fn ask(&self, file: &str) -> JoinHandle<(u16, Value)> {
        let encoded = BASE64_STANDARD.encode(fs::read(fixture(file)).expect("readable"));
        let body = json!({ "inputs": [{ "image": format!("data:image/avif;base64,{encoded}") }] });
        let request = self.client.post(format!("{}/embed", self.running.url)).body(body.to_string());
        tokio::spawn(answer(request))
    }

    async fn answers(&self, file: &str) -> Value {
        let (status, body) = self.ask(file).await.expect("no panic");
        assert_eq!(status, 200, "{body}");
        body
    }

    fn workers(&self) -> Vec<Process> {
        Process::children_of(self.running.pid())
    }

    fn worker(&self) -> Process {
        let workers = self.workers();
        assert_eq!(workers.len(), 1, "{workers:?}");
        workers[0]
    }

    async fn n_lost(&self) -> u64 {
        let request = self.client.get(format!("{}/metrics", self.running.url)).send().await;
        let text = request.expect("an answer").text().await.expect("UTF-8");
        let value = text.lines().find_map(|line| line.strip_prefix("sidelens_decode_workers_lost_total "));
        value.expect("the series").parse().expect("a number")
    }

    /// What comes of a picture to whose worker something is done in the middle, and the worker.
    async fn interrupted(&self, what: impl FnOnce(Process)) -> (u16, Value, Process) {
        self.answers("420_full.avif").await;
        let worker = self.worker();
        let ticks = worker.ticks();
        let asked = self.ask("large.avif");
        tokio::task::block_in_place(|| wait_until("it decodes", || worker.ticks() > ticks));
        what(worker);
        let (status, body) = asked.await.expect("no panic");
        (status, body["error"].clone(), worker)
    }
}

#[cfg_attr(not(feature = "torch"), ignore = "needs the feature `torch`")]
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_dies_costs_one_picture() {
    let service = Service::start(&[]).await;
    assert_eq!(service.workers(), [], "none before it is needed");
    let vectors = service.answers("420_full.avif").await;
    let first = service.worker();
    let told = |file: &str| fs::read_to_string(format!("/proc/{}/{file}", first.0)).expect("readable");
    assert!(told("environ").split_terminator('\0').all(|variable| variable.starts_with("LD_LIBRARY_PATH=")));
    assert!(told("status").contains("NoNewPrivs:\t1\n"));
    assert_eq!(told("oom_score_adj"), "1000\n");
    let limits = told("limits");
    for (name, limit) in [("Max open files", "0"), ("Max core file size", "0")] {
        let line = limits.lines().find_map(|line| line.strip_prefix(name)).expect("listed");
        assert_eq!(line.split_whitespace().next(), Some(limit), "{name}");
    }
    service.answers("large.avif").await;
    assert_eq!(service.worker(), first, "it is used again");

    for (n, (signal, expected, words)) in [
        // A system that is short of memory kills so: the fault is no item's, and the request may be sent again.
        (Signal::KILL, (500, None), "its process was killed"),
        (Signal::USR1, (500, None), "its process was killed"),
        (Signal::ABORT, (400, Some("corrupt")), "signal: 6"),
        (Signal::XCPU, (400, Some("corrupt")), "`image.timeout_ms` 10000"),
    ]
    .into_iter()
    .enumerate()
    {
        let (status, error, worker) = service.interrupted(|worker| worker.signal(signal)).await;
        assert_eq!((status, error["kind"].as_str()), expected, "{error}");
        assert!(error["message"].as_str().expect("words").contains(words), "{error}");
        assert!(worker.is_gone(), "it was waited for");
        assert_eq!(service.n_lost().await, n as u64 + 1);
        assert_eq!(service.answers("420_full.avif").await, vectors);
    }

    // One that is killed while it is idle is no picture's fault.
    service.worker().signal(Signal::KILL);
    assert_eq!(service.answers("420_full.avif").await, vectors);
    assert_eq!(service.n_lost().await, 4);
}

#[cfg_attr(not(feature = "torch"), ignore = "needs the feature `torch`")]
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_told_to_end_finishes_its_picture() {
    let service = Service::start(&[]).await;
    let (status, error, worker) = service
        .interrupted(|worker| {
            [Signal::TERM, Signal::INT, Signal::HUP].into_iter().for_each(|signal| worker.signal(signal));
        })
        .await;
    assert_eq!((status, error), (200, Value::Null));
    assert_eq!((service.worker(), service.n_lost().await), (worker, 0));
}

#[cfg_attr(not(feature = "torch"), ignore = "needs the feature `torch`")]
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_stands_still_is_replaced() {
    let service = Service::start(&["image.timeout_ms=400"]).await;
    let (status, error, worker) = service.interrupted(|worker| worker.signal(Signal::STOP)).await;
    // Not the picture's fault: it may be sent again.
    assert_eq!((status, &error["type"]), (500, &json!("internal")), "{error}");
    assert!(worker.is_gone());
    service.answers("420_full.avif").await;
    assert_ne!(service.worker(), worker);
}

#[cfg_attr(not(feature = "torch"), ignore = "needs the feature `torch`")]
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_has_no_more_memory_than_it_may_take() {
    let service = Service::start(&[]).await;
    let (status, error, _) = service
        .interrupted(|worker| {
            let least = Rlimit { current: Some(1 << 20), maximum: None };
            prlimit(Some(worker.id()), Resource::As, least).expect("it lives");
        })
        .await;
    assert_eq!((status, &error["kind"]), (400, &json!("too_many_pixels")), "{error}");
    service.answers("large.avif").await;
}

#[cfg_attr(not(feature = "torch"), ignore = "needs the feature `torch`")]
#[tokio::test(flavor = "multi_thread")]
async fn workers_end_with_the_service() {
    let mut service = Service::start(&[]).await;
    service.answers("420_full.avif").await;
    let idle = service.worker();
    service.running.signal("KILL");
    service.running.ended();
    tokio::task::block_in_place(|| wait_until("it ends", || idle.is_gone()));
}

#[test]
fn a_worker_gives_what_would_come_without() {
    // Other tests of this process have workers, too.
    const NAME: &str = "worker-of-this-test";
    let command: WorkerCommand = || {
        let mut command = decode_worker();
        command.arg0(NAME);
        command
    };
    let lost = IntCounter::new("lost", "Lost.").expect("a name");
    let workers = Workers::new(command, Duration::from_millis(300), lost.clone());
    let here = ImagingOptions { timeout_ms: 60_000, ..ImagingOptions::REFERENCE };
    let there = ImagingOptions { workers: Some(Arc::new(workers)), ..here.clone() };
    let files = fs::read_dir(fixture("")).expect("readable").map(|entry| entry.expect("readable").path());
    let mut n_errors = 0;
    for file in files.filter(|path| path.extension().is_some_and(|extension| extension == "avif")) {
        let whole = fs::read(&file).expect("readable");
        for encoded in [&whole[..], &whole[..whole.len() / 2]] {
            for (max_pixels, max_memory_bytes) in
                [(50_000_000, 512 << 20), (100, 512 << 20), (50_000_000, 1000)]
            {
                let limited = |options: &ImagingOptions| ImagingOptions {
                    max_pixels,
                    max_memory_bytes,
                    ..options.clone()
                };
                let expected = prepare(encoded, &SMALL, &limited(&here));
                n_errors += usize::from(expected.is_err());
                assert_eq!(prepare(encoded, &SMALL, &limited(&there)), expected, "{}", file.display());
            }
        }
    }
    assert!(n_errors > 50, "{n_errors}");
    assert_eq!(lost.get(), 0);

    let of_this_test = || {
        let is_worker = |process: &Process| {
            let line = fs::read_to_string(format!("/proc/{}/cmdline", process.0)).unwrap_or_default();
            line.starts_with(NAME)
        };
        Process::children_of(std::process::id()).into_iter().filter(is_worker).count()
    };
    assert_eq!(of_this_test(), 1, "one thread, one worker");
    wait_until("nobody has a use for it", || of_this_test() == 0);
}

const SMALL: ImageSpec = ImageSpec {
    resize: Resize::ShortestEdge(16),
    crop: None,
    filter: Filter::Bicubic,
    rescale_factor: 1.0 / 255.0,
    mean: [0.5; 3],
    std: [0.5; 3],
};

#[test]
fn a_lossless_webp_takes_its_tables_to_a_worker() {
    let start = |command| {
        let lost = IntCounter::new("lost", "Lost.").expect("a name");
        Some(Arc::new(Workers::new(command, Duration::from_secs(60), lost)))
    };
    let limited = |max_memory_bytes, workers: &Option<Arc<Workers>>| ImagingOptions {
        max_memory_bytes,
        workers: workers.clone(),
        ..ImagingOptions::REFERENCE
    };
    // None of them can be started, so what would go there fails.
    let nowhere = start(|| Command::new("/nonexistent/sidelens"));
    for n_groups in [20, 300, 4000] {
        let tables = (n_groups - 1) * 5 * 4096;
        let file = of_groups(n_groups);
        let error = prepare(&file, &SMALL, &limited(tables, &nowhere)).expect_err("it does not fit");
        assert!(matches!(error, ImagingError::NoDecoder { format: "WebP", .. }), "{n_groups}: {error}");
        let pixels = prepare(&file, &SMALL, &limited(tables * 2, &nowhere));
        assert_eq!(pixels, prepare(&file, &SMALL, &ImagingOptions::REFERENCE), "{n_groups}");
        assert!(pixels.is_ok(), "{n_groups}: {pixels:?}");
    }
    let there = start(decode_worker);
    // A worker may take 64 MiB beside that.
    let error = prepare(&of_groups(5000), &SMALL, &limited(1 << 20, &there)).expect_err("it does not fit");
    assert!(matches!(error, ImagingError::TooMuchMemory { format: "WebP", .. }), "{error}");
    let photo = fs::read(fixture("lossless.webp")).expect("readable");
    let pixels = prepare(&photo, &SMALL, &limited(100_000, &there));
    assert_eq!(pixels, prepare(&photo, &SMALL, &ImagingOptions::REFERENCE));
}

/// Bits, the lowest first.
#[derive(Default)]
struct Bits {
    bytes: Vec<u8>,
    open: u64,
    n_open: u32,
}

impl Bits {
    fn put(&mut self, value: u64, n: u32) {
        self.open |= value << self.n_open;
        self.n_open += n;
        while self.n_open >= 8 {
            self.bytes.push(self.open as u8);
            (self.open, self.n_open) = (self.open >> 8, self.n_open - 8);
        }
    }

    /// A code of one symbol.
    fn simple(&mut self, symbol: u64) {
        self.put(0b101, 3);
        self.put(symbol, 8);
    }

    /// A code of symbols of 1 to 10 bits, which takes a table of 1024 entries.
    fn deep(&mut self) {
        // In the order of the format: 17, 18, 0, 1, 2, 3, 4, 5, 16, 6, 7, 8, 9, 10. Lengths up to 6 have three bits, others four.
        self.put(10 << 1, 5);
        for length in [0, 0, 0, 3, 3, 3, 3, 3, 0, 3, 4, 4, 4, 4] {
            self.put(length, 3);
        }
        // Eleven symbols, as a number of four bits.
        self.put(0b1001_0011, 8);
        for length in [10, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1_u64] {
            let (code, n) = if length <= 6 { (length - 1, 3) } else { (12 + length - 7, 4) };
            self.put(code.reverse_bits() >> (64 - n), n);
        }
    }
}

/// A lossless WebP of 4x4 pixels and so many groups of codes, each of which becomes tables of 20 KiB.
fn of_groups(n_groups: u64) -> Vec<u8> {
    let mut bits = Bits::default();
    bits.put(0x2f, 8);
    bits.put(3 | 3 << 14, 32);
    // No transform, no cache of colours, groups by blocks of four pixels: one block, whose group is the last.
    bits.put(0b00100, 6);
    bits.put(0, 1);
    for symbol in [(n_groups - 1) & 255, (n_groups - 1) >> 8, 0, 0, 0] {
        bits.simple(symbol);
    }
    (1..n_groups).for_each(|_| (0..5).for_each(|_| bits.deep()));
    (0..5).for_each(|_| bits.simple(1));
    // All that is open, to an even length.
    bits.put(0, 8);
    bits.bytes.resize(bits.bytes.len().next_multiple_of(2), 0);
    let length = bits.bytes.len() as u32;
    [b"RIFF", &(length + 12).to_le_bytes()[..], b"WEBPVP8L", &length.to_le_bytes(), &bits.bytes].concat()
}
