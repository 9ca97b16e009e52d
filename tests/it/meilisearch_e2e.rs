//! A real Meilisearch indexes the sample catalogue through Sidelens and finds it by text and picture.
//!
//! Runs when `MEILISEARCH_BIN` names a Meilisearch 1.50 program, or `MEILISEARCH_URL` a running one on
//! this machine that was started with `--experimental-allowed-ip-networks 127.0.0.0/8,::1/128`
//! (`MEILISEARCH_KEY` if it has a master key). Indexes it makes are deleted before each run.

use std::{
    env, fs,
    net::TcpListener,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use base64::{Engine, prelude::BASE64_STANDARD};
use reqwest::{Client, Method};
use serde_json::{Value, json};

use crate::support::{PictureServer, Running, answer, client, say, sidelens};

/// Pictures of the sample catalogue.
const CATALOGUE: &str = "examples/catalogue";

struct Meilisearch {
    url: String,
    key: Option<String>,
    client: Client,
    /// The program and its folder, if it is ours.
    _own: Option<Own>,
}

struct Own {
    child: Child,
    _folder: tempfile::TempDir,
}

impl Drop for Own {
    fn drop(&mut self) {
        // Fails where it has ended already, which is fine.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Meilisearch {
    /// The one that the environment names, or none.
    async fn from_environment() -> Option<Self> {
        let (url, own) = if let Ok(url) = env::var("MEILISEARCH_URL") {
            (url.trim_end_matches('/').to_string(), None)
        } else if let Ok(program) = env::var("MEILISEARCH_BIN") {
            let (url, own) = start(&program);
            (url, Some(own))
        } else {
            return None;
        };
        let meilisearch = Self { url, key: env::var("MEILISEARCH_KEY").ok(), client: client(), _own: own };
        for _ in 0..600 {
            if meilisearch.client.get(format!("{}/health", meilisearch.url)).send().await.is_ok() {
                return Some(meilisearch);
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("no Meilisearch answers at {}", meilisearch.url);
    }

    async fn call(&self, method: Method, path: &str, body: Option<Value>) -> (u16, Value) {
        let mut request = self.client.request(method, format!("{}{path}", self.url));
        if let Some(key) = &self.key {
            request = request.bearer_auth(key);
        }
        if let Some(body) = body {
            request = request.json(&body);
        }
        answer(request).await
    }

    /// Enqueues a task and waits for its end; returns the finished task.
    async fn task(&self, method: Method, path: &str, body: Option<Value>) -> Value {
        let (status, enqueued) = self.call(method, path, body).await;
        assert_eq!(status, 202, "{path}: {enqueued}");
        for _ in 0..6000 {
            let (_, task) = self.call(Method::GET, &format!("/tasks/{}", enqueued["taskUid"]), None).await;
            match task["status"].as_str() {
                Some("succeeded" | "failed" | "canceled") => return task,
                _ => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
        panic!("{path}: no end after five minutes");
    }

    async fn succeed(&self, method: Method, path: &str, body: Value) {
        let task = self.task(method, path, Some(body)).await;
        assert_eq!(task["status"], "succeeded", "{task}");
    }

    /// The `id`s of the hits, best first.
    async fn search(&self, index: &str, query: Value) -> Vec<u64> {
        let (status, body) = self.call(Method::POST, &format!("/indexes/{index}/search"), Some(query)).await;
        assert_eq!(status, 200, "{body}");
        // A failed embedding in a hybrid search shows nowhere else.
        assert_ne!(body["semanticHitCount"], 0, "{body}");
        let hits = body["hits"].as_array().expect("hits");
        hits.iter().map(|hit| hit["id"].as_u64().expect("an id")).collect()
    }

    /// An empty index with what `sidelens settings` prints.
    async fn index(&self, name: &str, service: &Running, flags: &[&str]) {
        self.task(Method::DELETE, &format!("/indexes/{name}"), None).await;
        let task = self.settings(name, service, flags).await;
        assert_eq!(task["status"], "succeeded", "{task}");
    }

    /// Gives an index what `sidelens settings` prints; returns the finished task.
    async fn settings(&self, index: &str, service: &Running, flags: &[&str]) -> Value {
        let mut command = sidelens(&["settings", "--url", &service.url, "--embedder", "demo"]);
        command.args(flags);
        let output =
            tokio::task::spawn_blocking(move || command.output()).await.expect("joined").expect("runs");
        assert!(output.status.success(), "{output:?}");
        let mut settings: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        // The default of 1.5 s is for a machine that does nothing else; tests share theirs.
        settings["searchCutoffMs"] = 20_000.into();
        self.task(Method::PATCH, &format!("/indexes/{index}/settings"), Some(settings)).await
    }

    /// Runs `examples/reindex/reindex.sh`; returns its exit code and what it said.
    async fn reindex(&self, index: &str, more: &[(&str, &str)]) -> (Option<i32>, String) {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/reindex/reindex.sh");
        let mut command = Command::new("bash");
        command.arg(script).env("MEILISEARCH", &self.url).env("INDEX", index).envs(more.iter().copied());
        if let Some(key) = &self.key {
            command.env("MEILI_KEY", key);
        }
        let output =
            tokio::task::spawn_blocking(move || command.output()).await.expect("joined").expect("bash runs");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

fn start(program: &str) -> (String, Own) {
    let folder = tempfile::tempdir().expect("a folder");
    let address = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address");
    let child = Command::new(program)
        .current_dir(folder.path())
        .args(["--http-addr", &address.to_string(), "--no-analytics", "--env", "development"])
        .args(["--experimental-allowed-ip-networks", "127.0.0.0/8,::1/128"])
        // It would send our loopback calls to a proxy.
        .env_remove("HTTP_PROXY")
        .env_remove("HTTPS_PROXY")
        .env_remove("ALL_PROXY")
        .env_remove("http_proxy")
        .env_remove("https_proxy")
        .env_remove("all_proxy")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap_or_else(|error| panic!("MEILISEARCH_BIN={program} does not start: {error}"));
    (format!("http://{address}"), Own { child, _folder: folder })
}

/// The sample catalogue with absolute addresses of its pictures.
fn documents(host: &PictureServer) -> Vec<Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(CATALOGUE).join("documents.json");
    let mut documents: Vec<Value> =
        serde_json::from_str(&fs::read_to_string(path).expect("readable")).expect("JSON");
    for document in &mut documents {
        document["image"] = host.url(document["image"].as_str().expect("a file name")).into();
    }
    assert!(documents.len() >= 300, "{}", documents.len());
    documents
}

fn serve(policy: &str) -> Running {
    let policy = format!("on_item_error={policy}");
    Running::start(&[
        "--model",
        "demo",
        "--device",
        "cpu",
        "--set",
        "fetch.allow_networks=127.0.0.0/8",
        "--set",
        "log.level=error",
        "--set",
        &policy,
    ])
}

async fn started(policy: &'static str) -> Running {
    tokio::task::spawn_blocking(move || serve(policy)).await.expect("started")
}

#[cfg_attr(not(feature = "torch"), ignore = "needs the feature `torch`")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn meilisearch_finds_pictures_through_sidelens() {
    let Some(meilisearch) = Meilisearch::from_environment().await else {
        say("SKIPPED: no Meilisearch to test against; set MEILISEARCH_BIN=/path/to/meilisearch (1.50) or \
             MEILISEARCH_URL=http://127.0.0.1:7700");
        return;
    };
    let switch = json!({"multimodal": true});
    let (status, body) = meilisearch.call(Method::PATCH, "/experimental-features", Some(switch)).await;
    assert_eq!(status, 200, "{body}");
    let host = PictureServer::start(CATALOGUE);
    let documents = documents(&host);

    let service = started("fail").await;
    finds_pictures(&meilisearch, &service, &documents).await;
    finds_texts_and_fused(&meilisearch, &service, &documents).await;
    one_embedder_changes(&meilisearch, &service, &documents).await;
    an_index_is_built_anew(&meilisearch, &service, &documents).await;
    one_broken_picture_fails_the_task(&meilisearch, &service, &host).await;
    drop(service);
    let service = started("placeholder").await;
    one_broken_picture_ranks_last(&meilisearch, &service, &documents, &host).await;
}

async fn finds_pictures(meilisearch: &Meilisearch, service: &Running, documents: &[Value]) {
    let index = "sidelens-e2e-pictures";
    meilisearch.index(index, service, &["--image-field", "image"]).await;
    meilisearch.succeed(Method::POST, &format!("/indexes/{index}/documents"), json!(documents)).await;

    // By text: titles never reach the embedder here, so only the pictures can answer. Half of the pictures
    // show what the demo model never saw.
    let asked: Vec<_> = documents.iter().step_by(3).collect();
    let mut found = 0;
    for document in &asked {
        let query = json!({
            "q": document["title"], "limit": 1, "hybrid": {"embedder": "demo", "semanticRatio": 1},
        });
        let hits = meilisearch.search(index, query).await;
        found += usize::from(hits.first() == document["id"].as_u64().as_ref());
    }
    say(&format!("Meilisearch finds {found} of {} pictures first by their descriptions", asked.len()));
    assert!(found * 10 >= asked.len() * 9, "found {found} of {}", asked.len());

    // By picture, both ways: a picture finds itself.
    for document in documents.iter().step_by(15) {
        let url = document["image"].as_str().expect("a URL");
        let file = url.rsplit('/').next().expect("a name");
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(CATALOGUE).join(file);
        let data = BASE64_STANDARD.encode(fs::read(path).expect("readable"));
        for media in [json!({"url": url}), json!({"image": {"mime": "image/jpeg", "data": data}})] {
            // With `q` too: keywords beside a picture must not collide with the text fragment.
            for q in [Value::Null, json!("house")] {
                let query = json!({
                    "q": q, "media": media, "limit": 1, "hybrid": {"embedder": "demo", "semanticRatio": 1},
                });
                assert_eq!(meilisearch.search(index, query).await, [document["id"].as_u64().expect("an id")]);
            }
        }
    }

    // Hybrid: a word that no title has leaves it to the pictures.
    let query = json!({
        "q": format!("{} zzzz", documents[41]["title"].as_str().expect("a title")), "limit": 5,
        "hybrid": {"embedder": "demo", "semanticRatio": 0.9},
    });
    let hits = meilisearch.search(index, query).await;
    assert!(hits.contains(&42), "{hits:?}");
}

async fn finds_texts_and_fused(meilisearch: &Meilisearch, service: &Running, documents: &[Value]) {
    let some = &documents[..40];
    for (index, flags) in [
        ("sidelens-e2e-texts", ["--text-template", "{{doc.title}}"].as_slice()),
        ("sidelens-e2e-fused", &["--text-template", "{{doc.title}}", "--image-field", "image"]),
    ] {
        meilisearch.index(index, service, flags).await;
        meilisearch.succeed(Method::POST, &format!("/indexes/{index}/documents"), json!(some)).await;
        for document in some.iter().step_by(8) {
            let query = json!({
                "q": document["title"], "limit": 3, "hybrid": {"embedder": "demo", "semanticRatio": 1},
            });
            let hits = meilisearch.search(index, query).await;
            assert!(hits.contains(&document["id"].as_u64().expect("an id")), "{index}: {document}: {hits:?}");
        }
    }
}

/// From pictures to texts and back, each time by what `sidelens settings` prints.
async fn one_embedder_changes(meilisearch: &Meilisearch, service: &Running, documents: &[Value]) {
    let index = "sidelens-e2e-changes";
    let picture = ["--image-field", "image"];
    let text = ["--text-template", "{{doc.title}}"];
    let both = [picture, text].concat();
    meilisearch.index(index, service, &picture).await;
    let some = &documents[..20];
    meilisearch.succeed(Method::POST, &format!("/indexes/{index}/documents"), json!(some)).await;
    let task = meilisearch.settings(index, service, &text).await;
    assert_eq!(task["status"], "failed", "fragments are there still: {task}");

    let dropping = [text.as_slice(), &["--drop-fragments"]].concat();
    for flags in [&both, picture.as_slice(), &dropping, &text, &both, &dropping, &picture] {
        let task = meilisearch.settings(index, service, flags).await;
        assert_eq!(task["status"], "succeeded", "{flags:?}: {task}");
        let path = format!("/indexes/{index}/settings/embedders");
        let (_, embedders) = meilisearch.call(Method::GET, &path, None).await;
        let embedder = &embedders["demo"];
        let has_pictures = flags.contains(&"--image-field");
        let fragments = embedder["indexingFragments"].as_object();
        assert_eq!(fragments.map_or(0, |map| map.len()), usize::from(has_pictures), "{flags:?}: {embedder}");
        assert_eq!(embedder["documentTemplate"].is_string(), !has_pictures, "{flags:?}: {embedder}");

        let path = format!("/indexes/{index}/documents?limit=100&retrieveVectors=true");
        let (_, found) = meilisearch.call(Method::GET, &path, None).await;
        let found = found["results"].as_array().expect("documents");
        assert_eq!(found.len(), some.len());
        for document in found {
            let vectors = &document["_vectors"]["demo"]["embeddings"];
            assert_eq!(vectors.as_array().map(Vec::len), Some(1), "{flags:?}: {document}");
        }
    }
}

async fn one_broken_picture_fails_the_task(
    meilisearch: &Meilisearch,
    service: &Running,
    host: &PictureServer,
) {
    let index = "sidelens-e2e-fail";
    meilisearch.index(index, service, &["--image-field", "image"]).await;
    // A document without a picture, or with none for now, is no broken picture.
    let documents = json!([
        {"id": 1, "image": host.url("0001.jpg")},
        {"id": 2, "image": host.url("documents.json")},
        {"id": 3},
        {"id": 4, "image": null},
    ]);
    let path = format!("/indexes/{index}/documents");
    let task = meilisearch.task(Method::POST, &path, Some(documents)).await;
    assert_eq!(task["status"], "failed", "{task}");
    let message = task["error"]["message"].as_str().expect("a message");
    assert!(message.contains("item 1") && message.contains("not_an_image"), "{message}");
    let documents = json!([{"id": 1, "image": host.url("0001.jpg")}, {"id": 3}, {"id": 4, "image": null}]);
    meilisearch.succeed(Method::POST, &path, documents).await;
}

async fn one_broken_picture_ranks_last(
    meilisearch: &Meilisearch,
    service: &Running,
    documents: &[Value],
    host: &PictureServer,
) {
    let index = "sidelens-e2e-placeholder";
    meilisearch.index(index, service, &["--image-field", "image"]).await;
    let broken = 9999;
    let mut documents = documents.to_vec();
    documents.push(json!({"id": broken, "title": "a red house", "image": host.url("gone.jpg")}));
    meilisearch.succeed(Method::POST, &format!("/indexes/{index}/documents"), json!(documents)).await;

    let everything = |mut query: Value| {
        query["limit"] = 1000.into();
        query["hybrid"] = json!({"embedder": "demo", "semanticRatio": 1});
        query
    };
    let texts = ["a red house", "three fish at night", "gone.jpg", "a photograph of the sea", "test"];
    let texts = texts.iter().map(|text| json!({ "q": text }));
    let pictures = documents.iter().take(300).step_by(40).map(|d| json!({"media": {"url": d["image"]}}));
    for query in texts.chain(pictures) {
        let hits = meilisearch.search(index, everything(query.clone())).await;
        assert_eq!(hits.len(), documents.len());
        assert_eq!(hits.last(), Some(&broken), "{query}");
    }

    // By a picture that is broken itself: the placeholder would find that document first.
    let media = json!({"url": host.url("gone.jpg")});
    let path = format!("/indexes/{index}/search");
    let query = everything(json!({ "media": media }));
    let (status, body) = meilisearch.call(Method::POST, &path, Some(query)).await;
    assert!(status == 400 && body["message"].to_string().contains("not_found"), "{status}: {body}");
    let hybrid = json!({"embedder": "demo", "semanticRatio": 0.5});
    let query = json!({"q": documents[41]["title"], "media": media, "hybrid": hybrid});
    let (status, body) = meilisearch.call(Method::POST, &path, Some(query)).await;
    assert_eq!(
        (status, &body["semanticHitCount"], &body["hits"][0]["id"]),
        (200, &json!(0), &json!(42)),
        "{body}"
    );
}

/// `examples/reindex/reindex.sh`, with ids that are no longer exact as floating point.
async fn an_index_is_built_anew(meilisearch: &Meilisearch, service: &Running, documents: &[Value]) {
    let index = "sidelens-e2e-anew";
    let ids = [1_234_567_890_123_456_789_u64, 8_234_567_890_123_456_789];
    let some = ids.map(|id| json!({"id": id, "title": "a red house", "image": documents[0]["image"]}));
    meilisearch.index(index, service, &["--image-field", "image"]).await;
    meilisearch.succeed(Method::POST, &format!("/indexes/{index}/documents"), json!(some)).await;
    let staging = format!("/indexes/{index}_staging");
    let here = async || {
        let (_, found) = meilisearch.call(Method::GET, &format!("/indexes/{index}/documents"), None).await;
        let ids = found["results"].as_array().expect("documents").iter().map(|found| found["id"].as_u64());
        ids.map(|id| id.expect("an id")).collect::<Vec<_>>()
    };
    let (code, said) = meilisearch.reindex(index, &[]).await;
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(here().await, ids);
    meilisearch.task(Method::DELETE, &staging, None).await;

    // An embedder that gives nobody a vector, beside one that does.
    let lacking = json!({"embedders": {"lacking": {
        "source": "rest", "url": service.url.clone() + "/embed", "dimensions": 128,
        "indexingFragments": {"document": {"value": {"image": "{{doc.no_such_field}}"}}},
        "searchFragments": {"text": {"value": {"text": "{{q}}"}}},
        "request": {"inputs": ["{{fragment}}", "{{..}}"]},
        "response": {"data": [{"embedding": "{{embedding}}"}, "{{..}}"]},
    }}});
    meilisearch.succeed(Method::PATCH, &format!("/indexes/{index}/settings"), lacking).await;
    let (code, said) = meilisearch.reindex(index, &[]).await;
    assert!(code == Some(1) && said.contains("2 documents") && said.contains("\"lacking\""), "{said}");
    let (code, said) = meilisearch.reindex(index, &[("MAY_LACK", "2")]).await;
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(here().await, ids);
    meilisearch.task(Method::DELETE, &staging, None).await;
}
