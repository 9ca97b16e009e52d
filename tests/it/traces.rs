//! Traces, as a collector sees them: of the real program, since a process has one subscriber for all its services.

use std::{
    fs::{self, File},
    net::TcpListener,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use opentelemetry_proto::tonic::trace::v1::{Span, span::SpanKind, status::StatusCode};
use reqwest::Client;
use serde_json::{Value, json};

use crate::support::{Collector, PictureServer, Running, answer, attributes, client, sidelens};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const CALLER: &str = "b7ad6b7169203331";

/// A serving program, what it logs, and who asks it.
struct Served {
    running: Running,
    log: tempfile::NamedTempFile,
    client: Client,
}

impl Served {
    /// With these settings, and what else `prepare` does to its surroundings; ready.
    async fn start(settings: &[String], prepare: impl FnOnce(&mut Command)) -> Self {
        let log = tempfile::NamedTempFile::new().expect("a file");
        let mut command = sidelens(&["serve", "--model", "demo", "--device", "cpu"]);
        for setting in settings {
            command.args(["--set", setting]);
        }
        prepare(&mut command);
        command.stderr(File::create(log.path()).expect("a file"));
        let running = tokio::task::spawn_blocking(|| Running::start_command(command)).await.expect("started");
        let served = Self { running, log, client: client() };
        for _ in 0..4000 {
            if answer(served.client.get(format!("{}/ready", served.running.url))).await.0 == 200 {
                return served;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("it is never ready:\n{}", served.logged());
    }

    async fn embed(&self, inputs: Value, traceparent: Option<&str>) -> (u16, Value) {
        let mut request = self.client.post(format!("{}/embed", self.running.url)).bearer_auth("hunter2-key");
        if let Some(traceparent) = traceparent {
            request = request.header("traceparent", traceparent).header("tracestate", "shop=1");
        }
        answer(request.body(json!({ "inputs": inputs }).to_string())).await
    }

    fn logged(&self) -> String {
        fs::read_to_string(self.log.path()).expect("readable")
    }

    /// Stops it, and returns what it logged.
    async fn stop(mut self) -> String {
        self.running.signal("TERM");
        tokio::task::spawn_blocking(move || {
            let status = self.running.ended();
            assert_eq!(status.code(), Some(0), "{}", self.logged());
            self.logged()
        })
        .await
        .expect("joined")
    }
}

fn setting(key: &str, value: impl std::fmt::Display) -> String {
    format!("{key}={value}")
}

fn caller(trace: &str, flags: &str) -> String {
    format!("00-{trace}-{CALLER}-{flags}")
}

fn hex(id: &[u8]) -> String {
    id.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The spans of this name, oldest first.
fn named<'a>(spans: &'a [Span], name: &str) -> Vec<&'a Span> {
    let mut found: Vec<_> = spans.iter().filter(|span| span.name == name).collect();
    found.sort_by_key(|span| span.start_time_unix_nano);
    found
}

/// The one child of `parent` of this name, which lies within it.
fn child<'a>(spans: &'a [Span], parent: &Span, name: &str) -> &'a Span {
    let found: Vec<_> =
        named(spans, name).into_iter().filter(|span| span.parent_span_id == parent.span_id).collect();
    let [child] = found[..] else { panic!("{} spans `{name}` below `{}`", found.len(), parent.name) };
    let within = parent.start_time_unix_nano..=parent.end_time_unix_nano;
    assert!(within.contains(&child.start_time_unix_nano), "{name} begins outside of {}", parent.name);
    assert!(within.contains(&child.end_time_unix_nano), "{name} ends outside of {}", parent.name);
    assert!(child.start_time_unix_nano <= child.end_time_unix_nano, "{name} ends before it begins");
    child
}

#[tokio::test]
async fn a_request_is_followed_from_its_caller_to_the_device() {
    let (collector, pictures) = (Collector::start(), PictureServer::start("tests/fixtures/images"));
    let settings = [
        setting("traces.endpoint", collector.url()),
        setting("traces.service_name", "pictures-of-the-shop"),
        setting("fetch.allow_networks", "[\"127.0.0.1/32\"]"),
        setting("auth.api_keys", "[\"hunter2-key\"]"),
        setting("log.level", "debug"),
    ];
    let served = Served::start(&settings, |command| {
        command.env("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=tests");
        command.env("OTEL_EXPORTER_OTLP_HEADERS", "x-other=1");
        command.env("SIDELENS_TRACES__HEADERS__AUTHORIZATION", "Bearer hunter2-token");
    })
    .await;
    let picture = pictures.url("untraced/exact_224.png?sig=hunter2");
    let inputs = json!([{ "image_url": picture }, "a red house"]);
    let (status, body) = served.embed(inputs, Some(&caller(TRACE, "01"))).await;
    assert_eq!(status, 200, "{body}");
    // Cached by now, and not to be traced by the caller's own word.
    let (status, body) = served.embed(json!(["a red house"]), Some(&caller(TRACE, "00"))).await;
    assert_eq!(status, 200, "{body}");
    let log = served.stop().await;
    let taken = collector.taken();

    let spans = &taken.spans;
    assert!(spans.iter().all(|span| hex(&span.trace_id) == TRACE), "warming up is in no trace");
    assert_eq!(spans.len(), 9, "{:?}", spans.iter().map(|span| &span.name).collect::<Vec<_>>());
    let [request] = named(spans, "POST /embed")[..] else { panic!("one request") };
    assert_eq!(hex(&request.parent_span_id), CALLER);
    assert_eq!((request.kind(), request.trace_state.as_str()), (SpanKind::Server, "shop=1"));
    let facts = attributes(&request.attributes);
    for (name, value) in [
        ("http.request.method", "POST"),
        ("http.route", "/embed"),
        ("http.response.status_code", "200"),
        ("sidelens.inputs", "2"),
        ("sidelens.lane", "bulk"),
    ] {
        assert_eq!(facts[name], value, "{name}");
    }
    assert!(facts["sidelens.model"].contains("demo"), "{facts:?}");

    let image = child(spans, request, "image");
    assert_eq!(attributes(&image.attributes)["sidelens.cache"], "miss");
    let fetch = child(spans, image, "fetch");
    let facts = attributes(&fetch.attributes);
    assert!(picture.starts_with(&format!("http://{}/", facts["server.address"])), "{facts:?}");
    let bytes = fs::metadata(Path::new("tests/fixtures/images/exact_224.png")).expect("a file").len();
    let found = ["http.response.status_code", "sidelens.outcome", "sidelens.bytes"].map(|name| &facts[name]);
    assert_eq!(found, ["200", "ok", &bytes.to_string()]);
    let decode = child(spans, image, "decode");
    let facts = attributes(&decode.attributes);
    assert_eq!((facts["sidelens.format"].as_str(), facts["sidelens.pixels"].as_str()), ("PNG", "50176"));
    let queue = child(spans, image, "queue");
    let forward = child(spans, image, "forward");
    let facts = attributes(&forward.attributes);
    assert_eq!((facts["sidelens.batch.size"].as_str(), facts["sidelens.device"].as_str()), ("1", "cpu"));
    for pair in [fetch, decode, queue, forward].windows(2) {
        let [before, after] = pair else { unreachable!("windows of two") };
        assert!(before.end_time_unix_nano <= after.start_time_unix_nano, "{}, {}", before.name, after.name);
    }
    let text = child(spans, request, "text");
    assert_ne!(
        attributes(&child(spans, text, "forward").attributes)["sidelens.batch.id"],
        facts["sidelens.batch.id"]
    );
    child(spans, text, "queue");

    let said = format!("{spans:?}{:?}", taken.resource);
    assert!(!said.contains("hunter2") && !said.contains("a red house") && !said.contains(".png"), "{said}");
    assert_eq!(taken.resource["service.name"], "pictures-of-the-shop");
    assert_eq!(taken.resource["deployment.environment.name"], "tests");
    assert_eq!(taken.headers["authorization"], "Bearer hunter2-token");
    assert_eq!(taken.headers.get("x-other"), None);

    let line = log.lines().find(|line| line.contains("embedded")).expect("a line for the first request");
    assert!(line.contains(TRACE) && line.contains("key=\"key-1\""), "{line}");
    assert_eq!(log.matches(TRACE).count(), log.lines().filter(|line| line.contains(TRACE)).count(), "{log}");
    assert!(!log.contains("sidelens.index") && !log.contains("hunter2"), "{log}");
}

#[tokio::test]
async fn what_fails_is_marked() {
    let (collector, pictures) = (Collector::start(), PictureServer::start("tests/fixtures/images"));
    let endpoint = setting("traces.endpoint", collector.url());
    let networks = setting("fetch.allow_networks", "[\"127.0.0.1/32\"]");
    let served = Served::start(&[endpoint, networks], |_| {}).await;
    let (status, _) = served.embed(json!([{ "image_url": pictures.url("nowhere.png") }]), None).await;
    assert_eq!(status, 400);
    served.stop().await;
    let spans = collector.taken().spans;
    let [request] = named(&spans, "POST /embed")[..] else { panic!("one request") };
    assert!(request.parent_span_id.is_empty() && request.trace_id != [0; 16]);
    assert_eq!(attributes(&request.attributes)["http.response.status_code"], "400");
    let image = child(&spans, request, "image");
    let fetch = child(&spans, image, "fetch");
    for span in [image, fetch] {
        assert_eq!(attributes(&span.attributes)["error.type"], "not_found", "{}", span.name);
        let status = span.status.as_ref().expect("a status");
        assert_eq!(status.code(), StatusCode::Error);
    }
    assert_eq!(attributes(&fetch.attributes)["http.response.status_code"], "404");
}

#[tokio::test]
async fn nothing_is_sent_unasked() {
    let collector = Collector::start();
    let others = |command: &mut Command| _ = command.env("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url());
    let served = Served::start(&[], others).await;
    assert_eq!(served.embed(json!(["a"]), Some(&caller(TRACE, "01"))).await.0, 200);
    served.stop().await;
    assert_eq!(collector.taken().spans.len(), 0, "off");

    let settings = [setting("traces.endpoint", collector.url()), setting("traces.sample_ratio", 0)];
    let served = Served::start(&settings, |_| {}).await;
    assert_eq!(served.embed(json!(["a"]), None).await.0, 200);
    assert_eq!(served.embed(json!(["b"]), Some(&caller(&TRACE.replace('0', "1"), "00"))).await.0, 200);
    // The caller's word holds for its own requests.
    assert_eq!(served.embed(json!(["c"]), Some(&caller(TRACE, "01"))).await.0, 200);
    served.stop().await;
    let spans = collector.taken().spans;
    assert!(!spans.is_empty() && spans.iter().all(|span| hex(&span.trace_id) == TRACE));
}

#[tokio::test]
async fn a_collector_that_is_away_harms_nobody() {
    let closed = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address");
    // Accepts, by its backlog, and never answers.
    let silent = TcpListener::bind("127.0.0.1:0").expect("a port");
    let silent_address = silent.local_addr().expect("an address");
    for (address, message) in
        [(closed, "the collector did not take traces"), (silent_address, "the last traces were lost")]
    {
        let settings =
            [setting("traces.endpoint", format!("http://{address}")), setting("traces.timeout_ms", 60_000)];
        let served = Served::start(&settings, |_| {}).await;
        for text in ["a", "b"] {
            assert_eq!(served.embed(json!([text]), None).await.0, 200);
        }
        let stopped_at = Instant::now();
        let log = served.stop().await;
        // The collector alone would take a minute.
        assert!(stopped_at.elapsed() < Duration::from_secs(30), "{log}");
        assert_eq!(log.matches(message).count(), 1, "{log}");
    }
}
