//! AVIF, decoded in processes that may die, hang and be killed.

use std::{
    fs,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
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
    imaging::{Avif, ImagingOptions, WorkerCommand, Workers, prepare},
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
    assert_eq!(service.n_lost().await, 3);
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
    let there = ImagingOptions { avif: Avif::InWorkers(Arc::new(workers)), ..here.clone() };
    let spec = ImageSpec {
        resize: Resize::ShortestEdge(16),
        crop: None,
        filter: Filter::Bicubic,
        rescale_factor: 1.0 / 255.0,
        mean: [0.5; 3],
        std: [0.5; 3],
    };
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
                let expected = prepare(encoded, &spec, &limited(&here));
                n_errors += usize::from(expected.is_err());
                assert_eq!(prepare(encoded, &spec, &limited(&there)), expected, "{}", file.display());
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
