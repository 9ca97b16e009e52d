//! Models by name, through the real program and a stand-in for the hub.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    process::Stdio,
    thread,
    time::{Duration, Instant},
};

#[cfg(feature = "torch")]
use safetensors::{Dtype, SafeTensors, tensor::TensorView};

use crate::support::{COMMIT, Faults, HubServer, Machine, SIGNATURE, TOKEN, directory, refusal};

const WEIGHTS: &str = "model.safetensors";
/// What a family reads of the demo model.
const NEEDED: [&str; 6] = [
    "config.json",
    WEIGHTS,
    "preprocessor_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
];

fn check_content(dir: &Path, server: &HubServer, files: &[&str]) {
    let mut found: Vec<_> = fs::read_dir(dir)
        .expect("a directory")
        .map(|entry| entry.expect("readable").file_name().into_string().expect("UTF-8"))
        .collect();
    found.sort();
    assert_eq!(found, files);
    for file in files {
        assert!(fs::read(dir.join(file)).expect("readable") == server.content(file), "{file} differs");
    }
}

#[test]
fn a_program_of_the_hub_is_fetched_only_for_whoever_trusts_it() {
    let server = HubServer::start(&[("sidelens.toml", b"file = \"model.pt\"\n"), ("model.pt", b"PK")]);
    let machine = Machine::new(server.url());
    let message = refusal(&machine.run(&["download", "demo/clip"]));
    assert!(message.contains("`hub.trust_remote_code = true`"), "{message}");
    let asked = server.take_asked();
    assert!(!asked.iter().any(|it| it.path.ends_with(".pt") || it.path.ends_with(".toml")), "{asked:?}");

    let trusting = ["download", "demo/clip", "--set", "hub.trust_remote_code=true"];
    assert!(machine.run(&trusting).status.success());
    assert!(server.take_asked().iter().any(|it| it.path.ends_with("model.pt")));
    // Now it is in the cache, where another tool could have put it as well.
    let offline = ["download", "demo/clip", "--set", "hub.offline=true"];
    assert!(refusal(&machine.run(&offline)).contains("trust_remote_code"));
}

#[test]
fn downloads_what_is_needed_and_only_once() {
    let other: [(&str, &[u8]); 5] = [
        ("README.md", b"# A model"),
        ("model.fp16.safetensors", b"other"),
        ("onnx/model.onnx", b"other"),
        ("pytorch_model.bin", b"other"),
        ("tf_model.h5", b"other"),
    ];
    let server = HubServer::start(&other);
    let machine = Machine::new(server.url());
    let dir = machine.download();
    assert_eq!(dir, machine.snapshot());
    check_content(&dir, &server, &NEEDED);
    assert_eq!(fs::read_to_string(machine.folder().join("refs/main")).expect("readable"), COMMIT);
    let asked = server.take_asked();
    assert!(!asked.iter().any(|it| other.iter().any(|(name, _)| it.path.ends_with(name))), "{asked:?}");

    assert_eq!(machine.download(), dir);
    let asked: Vec<_> = server.take_asked().into_iter().map(|it| it.path).collect();
    assert_eq!(asked, ["/api/models/demo/clip"]);
}

#[test]
fn a_revision_and_an_old_name_lead_to_the_commit() {
    let server = HubServer::start(&[]);
    let machine = Machine::new(server.url());
    let at = |name: &str| directory(&machine.run(&["download", name]));
    assert_eq!(at("demo/clip@v1"), machine.snapshot());
    assert_eq!(fs::read_to_string(machine.folder().join("refs/v1")).expect("readable"), COMMIT);
    assert_eq!(at(&format!("demo/clip@{COMMIT}")), machine.snapshot());
    let renamed = machine.home.path().join("hub/models--old--clip/snapshots").join(COMMIT);
    assert_eq!(at("old/clip"), renamed);
    check_content(&renamed, &server, &NEEDED);
}

#[test]
fn shards_are_found_by_their_index() {
    let weights = fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/demo-model/model.safetensors"));
    let index = r#"{"weight_map": {"a": "model-1.safetensors", "b": "parts/model-2.safetensors"}}"#;
    let files = BTreeMap::from([
        ("config.json".to_owned(), b"{}".to_vec()),
        ("model-1.safetensors".to_owned(), weights.expect("readable")),
        ("parts/model-2.safetensors".to_owned(), b"second".to_vec()),
        ("model.safetensors.index.json".to_owned(), index.as_bytes().to_vec()),
        ("stray.safetensors".to_owned(), b"other".to_vec()),
    ]);
    let server = HubServer::with(files);
    let machine = Machine::new(server.url());
    let dir = machine.download();
    assert_eq!(fs::read(dir.join("parts/model-2.safetensors")).expect("readable"), b"second");
    assert!(dir.join("model-1.safetensors").exists() && !dir.join("stray.safetensors").exists());
}

#[test]
fn a_body_that_breaks_off_is_resumed() {
    let server = HubServer::start(&[]);
    server.faults().cut = Some((1_000_000, 1));
    let machine = Machine::new(server.url());
    check_content(&machine.download(), &server, &NEEDED);
    let ranges: Vec<_> =
        server.take_asked().into_iter().filter_map(|it| it.headers.get("range").cloned()).collect();
    let last = server.content(WEIGHTS).len() - 1;
    // Once at the hub, once where it redirects to.
    assert_eq!(ranges, [format!("bytes=1000000-{last}"), format!("bytes=1000000-{last}")]);
    assert!(machine.blobs(".incomplete").is_empty());
}

#[test]
fn a_server_without_ranges_sends_all_of_it_again() {
    let server = HubServer::start(&[]);
    *server.faults() = Faults { cut: Some((1_000_000, 1)), no_ranges: true, ..Default::default() };
    let machine = Machine::new(server.url());
    check_content(&machine.download(), &server, &NEEDED);
    // The first was cut, the second asked for the rest and was given all, so the third asks for that.
    let asked = server.take_asked().into_iter();
    let asked: Vec<_> = asked.filter(|it| it.method == "GET" && it.path.starts_with("/storage/")).collect();
    let ranges: Vec<_> = asked.iter().map(|it| it.headers.contains_key("range")).collect();
    assert_eq!(ranges, [false, true, false], "{asked:?}");
}

#[test]
fn a_body_that_always_breaks_off_is_an_error_and_no_model() {
    let server = HubServer::start(&[]);
    server.faults().cut = Some((1_000_000, usize::MAX));
    let machine = Machine::new(server.url());
    let message = refusal(&machine.run(&["download", "demo/clip"]));
    assert!(message.contains("`model.safetensors` broke off at 1000000 of 3158242 bytes"), "{message}");
    assert!(!machine.snapshot().exists());
    server.faults().cut = None;
    server.take_asked();
    check_content(&machine.download(), &server, &NEEDED);
    let small = server.take_asked().into_iter().filter(|it| it.method == "GET" && it.path.ends_with(".json"));
    assert_eq!(small.count(), 0, "what had arrived is not asked for again");
}

#[test]
fn a_killed_download_leaves_no_model_and_is_resumed() {
    let server = HubServer::start(&[]);
    server.faults().stall = Some(2_000_000);
    let machine = Machine::new(server.url());
    let mut child =
        machine.command(&["download", "demo/clip"]).stderr(Stdio::null()).spawn().expect("starts");
    let arrived =
        || machine.blobs(".incomplete").first().and_then(|path| path.metadata().ok()).map(|it| it.len());
    for _ in 0..2000 {
        if arrived() == Some(2_000_000) {
            break;
        }
        thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(arrived(), Some(2_000_000));
    child.kill().expect("killed");
    child.wait().expect("ended");
    assert!(!machine.snapshot().exists());
    let offline = machine.command(&["verify", "demo/clip"]).output().expect("runs");
    assert!(refusal(&offline).contains("`demo/clip` is not downloaded"));

    server.faults().stall = None;
    server.take_asked();
    check_content(&machine.download(), &server, &NEEDED);
    let asked = server.take_asked();
    let ranges: Vec<_> = asked.iter().filter_map(|it| it.headers.get("range")).collect();
    assert!(
        ranges.iter().all(|range| range.starts_with("bytes=2000000-")) && ranges.len() == 2,
        "{ranges:?}"
    );
}

#[test]
fn other_content_than_announced_is_refused() {
    let server = HubServer::start(&[]);
    let machine = Machine::new(server.url());
    server.faults().corrupt = true;
    let message = refusal(&machine.run(&["download", "demo/clip"]));
    assert!(message.contains("`model.safetensors` is not what the hub announced"), "{message}");
    assert!(!machine.snapshot().exists() && machine.blobs(".incomplete").is_empty());
    assert_eq!(machine.blobs("").len(), NEEDED.len() - 1, "the others are sound");
}

#[test]
fn another_size_than_announced_is_refused() {
    for (size, expected) in [
        (3_000_000, "`model.safetensors` is longer than the 3000000 bytes"),
        (4_000_000, "`model.safetensors`: it is shorter than announced"),
    ] {
        let server = HubServer::start(&[]);
        let machine = Machine::new(server.url());
        server.faults().size = Some(size);
        let message = refusal(&machine.run(&["download", "demo/clip"]));
        assert!(message.contains(expected), "{message}");
        assert!(!machine.snapshot().exists());
        server.faults().size = None;
        check_content(&machine.download(), &server, &NEEDED);
    }
}

#[test]
fn a_spoilt_beginning_is_downloaded_anew() {
    let server = HubServer::start(&[]);
    server.faults().stall = Some(1000);
    let machine = Machine::new(server.url());
    let mut child =
        machine.command(&["download", "demo/clip"]).stderr(Stdio::null()).spawn().expect("starts");
    while machine.blobs(".incomplete").is_empty() {
        thread::sleep(Duration::from_millis(10));
    }
    child.kill().expect("killed");
    child.wait().expect("ended");
    fs::write(&machine.blobs(".incomplete")[0], [7; 5000]).expect("written");
    server.faults().stall = None;
    check_content(&machine.download(), &server, &NEEDED);
}

#[test]
fn a_gated_model_names_the_next_step_and_opens_with_a_token() {
    let server = HubServer::start(&[]);
    server.faults().gated = true;
    let machine = Machine::new(server.url());
    let message = refusal(&machine.run(&["download", "demo/clip"]));
    assert!(message.contains("`demo/clip` is gated or private"), "{message}");
    assert!(message.contains(&format!("accept its terms at {}/demo/clip", server.url())), "{message}");
    assert!(message.contains("HF_TOKEN"), "{message}");
    let wrong =
        machine.command(&["download", "demo/clip"]).env("HF_TOKEN", "hf_wrong").output().expect("runs");
    let message = refusal(&wrong);
    assert!(message.contains("the token that was sent") && !message.contains("hf_wrong"), "{message}");

    server.take_asked();
    let set = format!("hub.token={TOKEN}");
    let output =
        machine.command(&["download", "demo/clip", "--set", &set]).env("HF_TOKEN", "hf_wrong").output();
    let output = output.expect("runs");
    check_content(&directory(&output), &server, &NEEDED);
    assert!(!String::from_utf8_lossy(&output.stderr).contains(TOKEN));
    let asked = server.take_asked();
    let (storage, hub): (Vec<_>, Vec<_>) = asked.iter().partition(|it| it.path.starts_with("/storage"));
    assert!(!storage.is_empty() && storage.iter().all(|it| !it.headers.contains_key("authorization")));
    assert!(hub.iter().all(|it| it.headers.get("authorization") == Some(&format!("Bearer {TOKEN}"))));
}

#[test]
fn a_password_in_the_hubs_address_is_never_shown() {
    let server = HubServer::start(&[]);
    let endpoint = server.url().replace("http://", "http://me:hunter2@");
    let message = refusal(&Machine::new(endpoint).run(&["download", "demo/clop"]));
    assert!(message.contains("HF_ENDPOINT") && !message.contains("hunter2"), "{message}");
}

#[test]
fn a_signed_address_is_never_shown() {
    let server = HubServer::start(&[]);
    server.faults().is_busy = true;
    let output = Machine::new(server.url()).run(&["download", "demo/clip"]);
    assert!(server.take_asked().iter().any(|it| it.path.ends_with(SIGNATURE)));
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(log.contains("it answers 503") && !log.contains(SIGNATURE), "{log}");
}

#[test]
fn a_commit_that_is_none_is_refused() {
    let server = HubServer::start(&[]);
    let machine = Machine::new(server.url());
    for commit in ["../../../../evil", "/evil", "", "main"] {
        server.faults().commit = Some(commit.into());
        let message = refusal(&machine.run(&["download", "demo/clip"]));
        assert!(message.contains(&server.url()) && message.contains("no commit"), "{message}");
    }
    assert!(!machine.folder().exists(), "nothing is written before");
}

#[test]
fn what_is_not_there_is_named() {
    let server = HubServer::start(&[]);
    let machine = Machine::new(server.url());
    let refused = |name: &str| refusal(&machine.run(&["download", name]));
    let message = refused("demo/clop");
    assert!(message.contains("no model `demo/clop`") && message.contains(&server.url()), "{message}");
    let message = refused("demo/clop@v1");
    assert!(message.contains("no model `demo/clop`"), "{message}");
    let message = refused("demo/clip@v2");
    assert!(message.contains("`demo/clip` has no revision `v2`"), "{message}");
    server.faults().ghost = Some("tokenizer.json".into());
    let message = refused("demo/clip");
    assert!(
        message.contains("`demo/clip` has no file `tokenizer.json`") && message.contains(COMMIT),
        "{message}"
    );

    let server = HubServer::with([("config.json".to_owned(), b"{}".to_vec())].into());
    let message = refusal(&Machine::new(server.url()).run(&["download", "demo/clip"]));
    assert!(message.contains("lacks weights"), "{message}");
    assert_eq!(server.take_asked().len(), 1, "nothing is downloaded of what cannot be served");

    let output = machine.run(&["download", "clip"]);
    assert!(!output.status.success() && output.stdout.is_empty());
}

#[test]
fn two_processes_share_a_cache() {
    let server = HubServer::start(&[]);
    server.faults().delay = Duration::from_millis(500);
    let machine = Machine::new(server.url());
    let start = || {
        let mut command = machine.command(&["download", "demo/clip"]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("starts")
    };
    for child in [start(), start(), start()] {
        check_content(&directory(&child.wait_with_output().expect("ended")), &server, &NEEDED);
    }
    let asked = server.take_asked();
    let n_bodies = asked.iter().filter(|it| it.method == "GET" && it.path.starts_with("/storage")).count();
    assert_eq!(n_bodies, 1, "whoever came later took what was there");
}

#[test]
fn offline_uses_what_is_here() {
    let server = HubServer::start(&[]);
    let machine = Machine::new(server.url());
    let offline = |args: &[&str]| machine.command(args).env("HF_HUB_OFFLINE", "1").output().expect("runs");
    let message = refusal(&offline(&["download", "demo/clip"]));
    assert!(
        message.contains("`demo/clip` is not downloaded") && message.contains("HF_HUB_OFFLINE"),
        "{message}"
    );
    assert!(server.take_asked().is_empty());

    let dir = machine.download();
    server.take_asked();
    assert_eq!(directory(&offline(&["download", "demo/clip"])), dir);
    assert_eq!(directory(&machine.run(&["download", "demo/clip", "--set", "hub.offline=true"])), dir);
    assert!(server.take_asked().is_empty());

    fs::remove_file(dir.join(WEIGHTS)).expect("removed");
    let message = refusal(&offline(&["download", "demo/clip"]));
    assert!(message.contains("lacks weights"), "{message}");
}

#[test]
fn an_unreachable_hub_is_no_matter_where_the_model_is_here() {
    let server = HubServer::start(&[]);
    let machine = Machine::new(server.url());
    let dir = machine.download();
    // Nobody listens there.
    let away = ["download", "demo/clip", "--set", "hub.endpoint=http://127.0.0.1:9"];
    let output = machine.run(&away);
    assert_eq!(directory(&output), dir);
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(log.contains("WARN") && log.contains("using what is downloaded"), "{log}");
    let message = refusal(&Machine::new(server.url()).run(&away));
    assert!(message.contains("http://127.0.0.1:9 cannot be reached"), "{message}");
}

#[test]
fn a_silent_hub_is_not_waited_for_where_the_model_is_here() {
    let server = HubServer::start(&[]);
    let machine = Machine::new(server.url());
    let dir = machine.download();
    server.faults().is_silent = true;
    let asked = Instant::now();
    let output = machine.run(&["download", "demo/clip"]);
    assert_eq!(directory(&output), dir);
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(log.contains("WARN") && log.contains("using what is downloaded"), "{log}");
    // Ten seconds, on a machine that may be busy; four minutes where nothing is here.
    assert!(asked.elapsed() < Duration::from_secs(50), "{:?}", asked.elapsed());
}

#[test]
fn a_cache_directory_of_its_own() {
    let server = HubServer::start(&[]);
    let machine = Machine::new(server.url());
    let cache = tempfile::tempdir().expect("a directory");
    let set = format!("hub.cache_dir={}", cache.path().display());
    let dir = directory(&machine.run(&["download", "demo/clip", "--set", &set]));
    assert!(dir.starts_with(cache.path()) && !machine.folder().exists());
    let dir = machine.command(&["download", "demo/clip"]).env("HF_HUB_CACHE", cache.path()).output();
    assert!(directory(&dir.expect("runs")).starts_with(cache.path()));
}

#[test]
fn a_log_tells_how_far_it_is() {
    let server = HubServer::start(&[]);
    let output = Machine::new(server.url()).run(&["download", "demo/clip"]);
    let log = String::from_utf8_lossy(&output.stderr);
    let n_lines = log.lines().filter(|line| line.contains("downloading demo/clip: ")).count();
    assert!((5..=10).contains(&n_lines), "{log}");
    for part in ["3.05 MiB of 3.05 MiB, 100%", "model resolved", COMMIT] {
        assert!(log.contains(part), "no `{part}` in {log}");
    }
}

#[test]
fn verify_finds_what_is_wrong() {
    let server = HubServer::start(&[]);
    let machine = Machine::new(server.url());
    let dir = machine.download();
    let verify = |what: &str| machine.run(&["verify", what]);
    let sound = verify("demo/clip");
    let line = String::from_utf8(sound.stdout.clone()).expect("UTF-8");
    assert!(sound.status.success(), "{sound:?}");
    assert_eq!(line.trim_end(), "demo/clip: sound, clip, 128 dimensions, 6 files, 6 digests verified");
    assert!(verify("demo").status.success() && verify(&dir.display().to_string()).status.success());

    // One byte of the weights.
    let blob = fs::canonicalize(dir.join(WEIGHTS)).expect("linked");
    let mut content = fs::read(&blob).expect("readable");
    content[2_000_000] ^= 1;
    fs::write(&blob, &content).expect("written");
    let message = refusal(&verify("demo/clip"));
    assert!(message.contains(WEIGHTS) && message.contains("its digest is"), "{message}");

    // A directory has no digests, but files that say how long they are.
    let copy = tempfile::tempdir().expect("a directory");
    let of_copy = || refusal(&verify(&copy.path().display().to_string()));
    assert!(of_copy().contains("lacks weights"));
    for file in NEEDED {
        fs::copy(dir.join(file), copy.path().join(file)).expect("copied");
    }
    assert!(verify(&copy.path().display().to_string()).status.success());
    fs::write(copy.path().join(WEIGHTS), &content[..3_000_000]).expect("written");
    assert!(of_copy().contains("model.safetensors holds no weights"));
    fs::write(copy.path().join(WEIGHTS), &content).expect("written");
    fs::write(copy.path().join("tokenizer.json"), "{").expect("written");
    assert!(of_copy().contains("tokenizer.json of `"));
    fs::write(copy.path().join("config.json"), r#"{"model_type": "eva"}"#).expect("written");
    assert!(of_copy().contains("EVA-CLIP"));
}

#[cfg(feature = "torch")]
#[test]
fn verify_looks_at_every_tensor() {
    const TENSOR: &str = "visual_projection.weight";
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/demo-model");
    let dir = tempfile::tempdir().expect("a directory");
    for file in NEEDED {
        fs::copy(demo.join(file), dir.path().join(file)).expect("copied");
    }
    let bytes = fs::read(demo.join(WEIGHTS)).expect("readable");
    let weights = SafeTensors::deserialize(&bytes).expect("whole");
    let tensor = weights.tensor(TENSOR).expect("there");
    let (dtype, shape) = (tensor.dtype(), tensor.shape().to_vec());
    let n_entries = shape.iter().product();
    let of_nan = vec![0xff; tensor.data().len()];
    let view = |dtype, shape: &[usize], data| TensorView::new(dtype, shape.to_vec(), data).expect("it fits");
    let half = [shape[0] / 2, shape[1]];
    let server = HubServer::start(&[]);
    let machine = Machine::new(server.url());
    let verify = |instead: Option<TensorView<'_>>| {
        let others = weights.tensors().into_iter().filter(|(name, _)| name != TENSOR);
        let all = others.chain(instead.map(|tensor| (TENSOR.to_owned(), tensor)));
        fs::write(dir.path().join(WEIGHTS), safetensors::serialize(all, None).expect("bytes"))
            .expect("written");
        machine.run(&["verify", &dir.path().display().to_string()])
    };
    for (instead, reason) in [
        (None, "holds no tensor"),
        (Some(view(dtype, &half, &tensor.data()[..tensor.data().len() / 2])), "but config.json asks for"),
        (Some(view(Dtype::I8, &shape, &tensor.data()[..n_entries])), "is I8"),
        (Some(view(Dtype::F8_E4M3, &shape, &tensor.data()[..n_entries])), "is F8_E4M3"),
        (Some(view(dtype, &shape, &of_nan)), "no finite numbers"),
    ] {
        let message = refusal(&verify(instead));
        assert!(message.contains(TENSOR) && message.contains(reason), "{message}");
    }
    assert!(verify(Some(tensor.clone())).status.success());
}

#[test]
fn verify_looks_for_the_tokenizer_where_the_model_is() {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/models/clip/sparse");
    let dir = tempfile::tempdir().expect("a directory");
    let inner = dir.path().join("0_CLIPModel");
    fs::create_dir(&inner).expect("made");
    for file in ["config.json", WEIGHTS, "preprocessor_config.json"] {
        fs::copy(fixture.join(file), inner.join(file)).expect("copied");
    }
    let write = |file: &str, text: &str| fs::write(dir.path().join(file), text).expect("written");
    write(
        "modules.json",
        r#"[{"idx": 0, "path": "0_CLIPModel", "type": "sentence_transformers.models.CLIPModel"}]"#,
    );
    let server = HubServer::start(&[]);
    let machine = Machine::new(server.url());
    let verify = || machine.run(&["verify", &dir.path().display().to_string()]);
    assert!(refusal(&verify()).contains("tokenizer.json"));
    write("0_CLIPModel/vocab.json", r#"{"<|startoftext|>": 0, "<|endoftext|>": 1, "a</w>": 2}"#);
    assert!(refusal(&verify()).contains("merges.txt"));
    write("0_CLIPModel/merges.txt", "#version: 0.2\nb c");
    assert!(refusal(&verify()).contains("merges.txt cannot be read"));
    write("0_CLIPModel/merges.txt", "#version: 0.2\n");
    assert!(verify().status.success());
}

#[cfg(feature = "torch")]
#[tokio::test]
async fn serves_a_model_by_its_name() {
    use crate::support::{Running, answer, client};

    let server = HubServer::start(&[]);
    let machine = Machine::new(server.url());
    let command = machine.command(&["serve", "--model", "demo/clip", "--device", "cpu"]);
    let start = || Running::start_command(command);
    let running = tokio::task::spawn_blocking(start).await.expect("started");
    let client = client();
    let mut last = (0, serde_json::Value::Null);
    for _ in 0..600 {
        last =
            answer(client.post(format!("{}/embed", running.url)).body(r#"{"input": "a red house"}"#)).await;
        if last.0 != 503 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(last.0, 200, "{}", last.1);
    let (_, info) = answer(client.get(format!("{}/info", running.url))).await;
    assert_eq!(info["model"], "demo/clip");
    assert_eq!(info["family"], "clip");
}
