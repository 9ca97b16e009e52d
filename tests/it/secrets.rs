//! No secret leaves the house: not by `sidelens config`, not by a log at the finest level, not by an answer.

use std::{fs, process::Command};

use serde_json::json;
use sidelens::{
    config::{Config, DEFAULT_TOML, LogConfig, LogFormat, NamedKey},
    telemetry::logging,
};

use crate::support::{TestApp, answer, sidelens};

/// A part of every secret in these tests.
const SECRET: &str = "hunter2";

/// Settings with a secret wherever one may stand.
fn settings() -> Config {
    let mut config: Config = toml::from_str(DEFAULT_TOML).expect("the defaults are valid");
    config.auth.api_keys = vec!["hunter2-plain".into()];
    let boss = NamedKey { admin: true, ..NamedKey::new("boss".into(), "hunter2-boss".into()) };
    config.auth.keys = vec![boss, NamedKey::new("shop".into(), "hunter2-shop".into())];
    config.hub.token = "hunter2-token".into();
    config.traces.headers.insert("Authorization".into(), "hunter2-collector".into());
    config
}

#[test]
fn settings_show_no_secret() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("sidelens.toml");
    let text = "[auth]\napi_keys = [\"hunter2-plain\"]\n[[auth.keys]]\nname = \"boss\"\nkey = \"hunter2-boss\"\n\
                [hub]\ntoken = \"hunter2-token\"\n";
    fs::write(&file, text).expect("written");
    let config = ["config", "--config", file.to_str().expect("UTF-8")];
    let output = sidelens(&config).output().expect("runs");
    let shown = String::from_utf8(output.stdout).expect("UTF-8");
    assert!(output.status.success() && shown.matches("***").count() == 3, "{shown}");
    assert!(!shown.contains(SECRET), "{shown}");
    // An address shows in messages, so it must not hold a password.
    let output =
        sidelens(&config).args(["--set", "hub.endpoint=https://me:hunter2@hub"]).output().expect("runs");
    let refusal = String::from_utf8(output.stderr).expect("UTF-8");
    assert!(!output.status.success() && refusal.contains("hub.endpoint"), "{refusal}");
    assert!(!refusal.contains(SECRET), "{refusal}");

    let debug = format!("{:?}", settings());
    assert!(debug.contains("boss") && !debug.contains(SECRET), "{debug}");
}

#[test]
fn a_serving_process_shows_no_secret() {
    for format in ["pretty", "json"] {
        // In a process of its own, since logging is set up once for all of a process.
        let mut inner = Command::new(std::env::current_exe().expect("this program"));
        inner.args([
            "secrets::serves_with_secrets",
            "--exact",
            "--ignored",
            "--nocapture",
            "--test-threads=1",
        ]);
        let output = inner.env("SECRETS_TEST_LOG", format).output().expect("runs");
        let shown = [output.stdout, output.stderr].concat();
        let shown = String::from_utf8_lossy(&shown);
        let ran = output.status.success() && shown.contains("1 passed");
        assert!(ran, "{}", &shown[shown.len().saturating_sub(4000)..]);
        // What it is to show: names, and what happened.
        let key = if format == "json" { r#""key":"shop""# } else { r#"key="shop""# };
        for fact in [key, "TRACE", "line 1 is not as expected", "changed on disk", "sidelens_requests_total"]
        {
            assert!(shown.contains(fact), "{format}: no {fact}");
        }
        let leaks: Vec<_> = shown.lines().filter(|line| line.contains(SECRET)).take(10).collect();
        assert!(leaks.is_empty(), "{format}: {leaks:#?}");
    }
}

#[tokio::test]
#[ignore = "the process that `a_serving_process_shows_no_secret` looks at"]
async fn serves_with_secrets() {
    let json = std::env::var("SECRETS_TEST_LOG").is_ok_and(|format| format == "json");
    let format = if json { LogFormat::Json } else { LogFormat::Pretty };
    logging::init(&LogConfig { format, level: "trace".into() }, None).expect("a level");
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("keys.toml");
    let keys = |name: &str| format!("[[keys]]\nname = \"{name}\"\nkey = \"hunter2-{name}\"\n");
    fs::write(&path, keys("file")).expect("written");
    let app = TestApp::spawn(|config| {
        let Config { auth, hub, .. } = settings();
        (config.auth, config.hub) = (auth, hub);
        config.auth.keys_file = Some(path.clone());
    })
    .await;

    let get = |path: &str| app.client.get(app.url(path));
    let post = |body: String| app.client.post(app.url("/embed?key=hunter2-query")).body(body);
    let failed = async || app.metric("sidelens_reloads_total{files=\"keys\",outcome=\"failed\"}").await;
    fs::write(&path, "hunter2-broken").expect("written");
    app.wait_until("the broken file was seen", async || failed().await == 1.0).await;
    fs::write(&path, keys("other")).expect("written");
    let embed = |key: &str, input: serde_json::Value| {
        answer(post(json!({ "input": [input] }).to_string()).bearer_auth(key))
    };
    app.wait_until("the new key is known", async || embed("hunter2-other", json!("red")).await.0 == 200)
        .await;

    let mut answers = Vec::new();
    for path in ["/info", "/v1/models", "/metrics", "/health", "/ready", "/nowhere/x?key=hunter2"] {
        answers.push(answer(get(path)).await);
    }
    answers.push(answer(get("/admin/keys").bearer_auth("hunter2-boss")).await);
    answers.push(answer(get("/admin/keys").bearer_auth("hunter2-wrong")).await);
    answers.push(embed("hunter2-wrong", json!("red")).await);
    answers.push(embed("hunter2-shop", json!("red")).await);
    for url in ["http://me:hunter2@127.0.0.1/hunter2.jpg?sig=hunter2", "ftp://me:hunter2@example.com/hunter2"]
    {
        answers.push(embed("hunter2-shop", json!({ "image_url": url })).await);
    }
    for (status, body) in answers {
        println!("{status} {body}");
    }
}
