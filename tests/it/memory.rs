//! Memory does not grow with what waits. The service runs in a process of its own, this binary once more, so
//! that its peak is nobody else's.

use std::{
    env, fs,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::json;
use sidelens::{
    domain::{Embedding, Prepared, Resize},
    runtime::{
        Backend, BackendError,
        stub::{StubBackend, StubRecord, stub_model},
    },
};

use crate::support::{Running, STUB_DIMENSIONS, TestApp, answer, client, slow_model};

/// Room for bodies; far below what is sent.
const ROOM: usize = 32 << 20;
/// Set where the child is to have no more than that.
const LITTLE_ROOM: &str = "MEMORY_TEST_LITTLE_ROOM";
/// The part of the child's first line before its address.
const SERVES: &str = "serves at ";
/// 55 KB, a multiple of three, so that its base64 needs no padding.
const PHOTO: &[u8] = include_bytes!("../../src/load/photo.jpg");

/// The service, when this binary is started by [`Service::start`]; ends with its standard input.
#[tokio::test]
#[ignore = "a process of its own, started by the other tests of this file"]
async fn child() {
    let with_little_room = env::var_os(LITTLE_ROOM).is_some();
    let delay = Duration::from_millis(if with_little_room { 50 } else { 0 });
    let stub = StubBackend::new(STUB_DIMENSIONS).with_delay(delay);
    let record = stub.record();
    let mut model = stub_model(STUB_DIMENSIONS);
    model.engines[0].backend = Box::new(Forgetful { stub, record });
    let image = model.spec.image.as_mut().expect("the stub sees");
    (image.resize, image.crop) = (Resize::ShortestEdge(224), Some([224, 224]));
    let app = TestApp::spawn_with(model, |config| {
        if with_little_room {
            (config.server.max_body_bytes, config.server.max_inflight_body_bytes) = (ROOM, ROOM);
            (config.fetch.connect_timeout_ms, config.fetch.timeout_ms) = (1000, 1000);
            config.batch.deadline_ms = 2000;
        }
        config.batch.max_queue_items = 1 << 20;
        config.cache.max_bytes = 0;
    })
    .await;
    println!("\n{SERVES}{}", app.address());
    tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new())).await.unwrap().unwrap();
}

/// A stub that keeps nothing of what it was given.
struct Forgetful {
    stub: StubBackend,
    record: StubRecord,
}

impl Backend for Forgetful {
    fn embed(&mut self, batch: &[Prepared]) -> Result<Vec<Embedding>, BackendError> {
        let vectors = self.stub.embed(batch);
        self.record.clear();
        vectors
    }
}

struct Service {
    child: Child,
    address: SocketAddr,
}

impl Service {
    fn start(with_little_room: bool) -> Self {
        let mut command = Command::new(env::current_exe().expect("this binary"));
        command.args(["memory::child", "--exact", "--ignored", "--nocapture"]);
        // How much of what was given back the allocator keeps for each thread is chance, which is not what is tested here.
        command.env("MALLOC_ARENA_MAX", "1");
        if with_little_room {
            command.env(LITTLE_ROOM, "");
        }
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("starts");
        let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let address = lines.find_map(|line| {
            line.expect("UTF-8").strip_prefix(SERVES).map(|a| a.parse().expect("an address"))
        });
        // Read on, so that the child can print.
        thread::spawn(move || lines.for_each(drop));
        Self { child, address: address.expect("it serves") }
    }

    /// The most memory that it has had, in bytes.
    fn peak(&self) -> usize {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("it lives");
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("Linux");
        line.trim().trim_end_matches(" kB").parse::<usize>().expect("a number") << 10
    }

    /// Sends `n` pictures of 55 KB, no two alike.
    fn post_pictures(&self, seed: usize, n: usize) -> Option<String> {
        // What follows the end of a JPEG is not looked at.
        let end = |i: usize| format!("{}\"}}", BASE64_STANDARD.encode(format!("{:09}", seed * 10_000 + i)));
        self.post(&format!("{{\"image\":\"{}", BASE64_STANDARD.encode(PHOTO)), end, n)
    }

    /// Sends `n` items, which are `start` and then an `end` of one length, over a connection of its own; the status, or
    /// none where the connection broke first.
    fn post(&self, start: &str, end: impl Fn(usize) -> String, n: usize) -> Option<String> {
        let mut stream = TcpStream::connect(self.address).ok()?;
        let length = 10 + n * (start.len() + end(0).len() + 1) + 2;
        let head = format!("POST /embed HTTP/1.1\r\nhost: test\r\ncontent-length: {length}\r\n");
        stream.write_all(head.as_bytes()).ok()?;
        stream.write_all(b"connection: close\r\n\r\n{\"inputs\":").ok()?;
        for i in 0..n {
            stream.write_all(if i == 0 { b"[" } else { b"," }).ok()?;
            stream.write_all(start.as_bytes()).ok()?;
            stream.write_all(end(i).as_bytes()).ok()?;
        }
        stream.write_all(b"]}").ok()?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).ok()?;
        Some(String::from_utf8_lossy(answer.get(9..12)?).into_owned())
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // Fails where it has ended already, which is fine.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
#[cfg(target_os = "linux")]
fn memory_is_the_same_however_many_inputs_wait() {
    let peak_of = |n_connections: usize, n_inputs: usize| {
        let service = Service::start(true);
        let idle = service.peak();
        let statuses: Vec<_> = thread::scope(|scope| {
            let post = |seed| {
                let service = &service;
                scope.spawn(move || service.post_pictures(seed, n_inputs))
            };
            let posts: Vec<_> = (0..n_connections).map(post).collect();
            posts.into_iter().map(|post| post.join().expect("no panic")).collect()
        });
        // Nobody could answer thousands in time.
        let refused = statuses.iter().flatten().filter(|status| *status == "503").count();
        assert!(refused > 0 || n_connections <= 40, "{statuses:?}");
        service.peak() - idle
    };
    // As many as Meilisearch sends, which the room is just large enough for.
    let few = peak_of(40, 10);
    let many = peak_of(600, 50);
    // Besides a full room each connection has its buffers, 32 KB.
    assert!(many < few * 3, "{few} bytes with 400 inputs waiting, {many} with 30,000");
}

/// Posts so many bytes, and looks what they took.
#[cfg(target_os = "linux")]
fn assert_in_memory_once(body: usize, post: impl FnOnce(&Service) -> Option<String>) {
    let service = Service::start(false);
    let idle = service.peak();
    assert_eq!(post(&service).as_deref(), Some("200"));
    let taken = service.peak() - idle;
    assert!(taken < body * 5 / 4, "{taken} bytes for a body of {body}");
}

#[test]
#[cfg(target_os = "linux")]
fn a_body_of_a_hundred_megabytes_is_in_memory_once() {
    const PICTURES: usize = 1370;
    let body = PICTURES * PHOTO.len() / 3 * 4;
    assert_in_memory_once(body, |service| service.post_pictures(0, PICTURES));
}

#[test]
#[cfg(target_os = "linux")]
fn a_hundred_megabytes_of_texts_are_in_memory_once() {
    const TEXTS: usize = 1000;
    let text = format!("\"{}", "a long description ".repeat(5500));
    let body = TEXTS * text.len();
    assert_in_memory_once(body, |service| service.post(&text, |i| format!("{i:09}\""), TEXTS));
}

/// Each number of tokens has kernels of its own, of which only some are kept.
#[cfg_attr(not(feature = "torch"), ignore = "needs the feature `torch`")]
#[tokio::test]
#[cfg(target_os = "linux")]
async fn texts_of_every_length_take_no_more_memory_than_some() {
    let dir = tempfile::tempdir().expect("a directory");
    let write = |name: &str, contents: &[u8]| fs::write(dir.path().join(name), contents).expect("writable");
    let fixture =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/models/sentence-transformers/bert-mean");
    for name in ["config.json", "model.safetensors"] {
        write(name, &fs::read(fixture.join(name)).expect("the fixture"));
    }
    let tokenizer = json!({"version": "1.0", "added_tokens": [], "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": {"type": "BertProcessing", "sep": ["b", 1], "cls": ["b", 1]},
        "model": {"type": "WordLevel", "unk_token": "b", "vocab": {"a": 0, "b": 1}}});
    write("tokenizer.json", tokenizer.to_string().as_bytes());
    write("tokenizer_config.json", br#"{"tokenizer_class": "PreTrainedTokenizerFast"}"#);
    let model = dir.path().to_str().expect("UTF-8");
    let service = Running::start(&["--model", model, "--device", "cpu", "--dtype", "bf16"]);
    let client = client();
    while answer(client.get(format!("{}/ready", service.url))).await.0 != 200 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let post = async |n_words: usize, n_texts: usize| {
        let texts = vec!["a ".repeat(n_words); n_texts];
        let texts = texts.iter().enumerate().map(|(i, text)| format!("{text}{i}")).collect::<Vec<_>>();
        let request = client.post(format!("{}/embed", service.url)).json(&json!({"input": texts}));
        let (status, body) = answer(request).await;
        assert_eq!(status, 200, "{body}");
    };
    let resident = || {
        let status = fs::read_to_string(format!("/proc/{}/status", service.pid())).expect("it lives");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("Linux");
        line.trim().trim_end_matches(" kB").parse::<usize>().expect("a number") >> 10
    };
    for n_texts in 1..=8 {
        post(1, n_texts).await;
    }
    let before = resident();
    for n_words in 1..160 {
        post(n_words, 1 + n_words % 8).await;
    }
    let grown = resident().saturating_sub(before);
    assert!(grown < 250, "{grown} MB beside {before}");
}

#[tokio::test]
async fn few_pictures_wait_as_pixels() {
    let (model, brake) = slow_model(STUB_DIMENSIONS);
    let app = TestApp::spawn_with(model, |config| {
        config.batch.max_batch_size = 1;
        config.image.threads = 1;
    })
    .await;
    brake.set(Duration::from_millis(100));
    let item = |i: u32| {
        let picture = [PHOTO, format!("{i:09}").as_bytes()].concat();
        format!(r#"{{"image":"{}"}}"#, BASE64_STANDARD.encode(picture))
    };
    let items: Vec<_> = (0..12).map(item).collect();
    let request = app.client.post(app.url("/embed")).body(format!(r#"{{"inputs":[{}]}}"#, items.join(",")));
    let answered = tokio::spawn(answer(request));
    let mut deepest = 0.0_f64;
    while !answered.is_finished() {
        deepest = deepest.max(app.metric("sidelens_queue_depth").await);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(answered.await.expect("no panic").0, 200);
    // Three batches of one, and the one that a thread may be at.
    assert!((1.0..=4.0).contains(&deepest), "{deepest} waited");
}
