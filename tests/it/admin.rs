//! `/metrics` and `/admin`: where they are answered, and to whom.

use serde_json::json;
use sidelens::config::NamedKey;

use crate::support::{TestApp, answer};

#[tokio::test]
async fn without_keys_this_machine_may() {
    let app = TestApp::spawn(|_| {}).await;
    assert_eq!(app.get("/admin/keys").await, (200, json!({"keys": []})));
    assert_eq!(app.get("/admin/keys/").await.0, 200);
    let behind_proxy = app.client.get(app.url("/admin/keys")).header("X-Forwarded-For", "192.0.2.1");
    let (status, body) = answer(behind_proxy).await;
    assert_eq!((status, &body["error"]["type"]), (403, &json!("forbidden")), "{body}");
    assert!(body.to_string().contains("server.admin_listen"), "{body}");
    let (status, body) = app.get("/admin/nothing").await;
    assert_eq!(status, 404);
    assert!(body.to_string().ends_with(r#"facts at GET /info","type":"invalid_request"}}"#), "{body}");
    assert_eq!(app.post("/admin/keys", "").await.0, 405);
    assert_eq!(app.metric("sidelens_requests_total{route=\"admin\",status=\"403\"}").await, 1.0);
}

#[tokio::test]
async fn a_page_in_a_browser_of_this_machine_may_not() {
    let app = TestApp::spawn(|_| {}).await;
    let post = || app.client.post(app.url("/admin/cache")).header("Content-Type", "text/plain").body("x");
    for (name, value) in [
        ("Host", "evil.example"),
        ("Origin", "http://evil.example"),
        ("Origin", "null"),
        ("Via", "1.1 proxy"),
        ("X-Real-IP", "192.0.2.1"),
    ] {
        let (status, body) = answer(post().header(name, value)).await;
        assert_eq!(status, 403, "{name}: {body}");
        assert!(body.to_string().contains("set a key with `admin = true`"), "{body}");
    }
    // No table, but looked at.
    assert_eq!(answer(post()).await.0, 400);
}

#[tokio::test]
async fn whoever_asks_for_the_head_gets_no_more() {
    let app = TestApp::spawn(|_| {}).await;
    for path in ["/health", "/ready", "/metrics", "/info"] {
        assert_eq!(answer(app.client.head(app.url(path))).await, (200, json!("")), "{path}");
    }
    assert_eq!(app.post("/health", "").await.0, 405);
    assert_eq!(answer(app.client.head(app.url("/nowhere"))).await.0, 404);
}

#[tokio::test]
async fn with_keys_only_one_for_it_opens_it() {
    let app = TestApp::spawn(|config| {
        config.auth.api_keys = vec!["plain".into()];
        config.auth.keys = vec![NamedKey { admin: true, ..NamedKey::new("boss".into(), "root".into()) }];
    })
    .await;
    let get = |key: &str| answer(app.client.get(app.url("/admin/keys")).bearer_auth(key));
    assert_eq!(app.get("/admin/keys").await.0, 401);
    assert_eq!(get("wrong").await.0, 401);
    assert_eq!(get("plain").await.0, 403);
    let listed = json!({"keys": [{"name": "key-1", "admin": false}, {"name": "boss", "admin": true}]});
    assert_eq!(get("root").await, (200, listed));
    // Not even what is there is told without a key.
    assert_eq!(app.get("/admin/nothing").await.0, 401);
}

#[tokio::test]
async fn a_listener_of_their_own_takes_them_away_from_the_first() {
    let app = TestApp::spawn(|config| {
        config.server.admin_listen = Some("127.0.0.1:0".parse().expect("an address"))
    })
    .await;
    let admin = |path: &str| answer(app.client.get(app.admin_url(path)));
    for path in ["/metrics", "/admin/keys", "/health", "/ready"] {
        assert_eq!(admin(path).await.0, 200, "{path}");
    }
    for path in ["/metrics", "/admin/keys"] {
        let (status, body) = app.get(path).await;
        assert_eq!(status, 404, "{path}");
        assert!(body.to_string().contains("/metrics and /admin are at `server.admin_listen`"), "{body}");
    }
    assert_eq!(app.get("/health").await.0, 200);
    assert_eq!(app.post("/embed", r#"{"input": "red"}"#).await.0, 200);
    let embed = app.client.post(app.admin_url("/embed")).body(r#"{"input": "red"}"#);
    let elsewhere = [answer(embed).await, admin("/info").await, admin("/admin/nothing").await];
    for (status, body) in elsewhere {
        assert_eq!(status, 404, "{body}");
        assert!(body.to_string().contains("vectors and /info are at `server.listen`"), "{body}");
    }
    // Both count into the same metrics.
    let (_, metrics) = admin("/metrics").await;
    let metrics = metrics.as_str().expect("text");
    assert!(metrics.contains("\nsidelens_requests_total{route=\"embed\",status=\"200\"} 1\n"), "{metrics}");
}

#[tokio::test]
async fn a_second_listener_on_every_address_is_not_kept_private() {
    for (address, status_of_others) in [("0.0.0.0:0", 403), ("127.0.0.1:0", 200)] {
        let app = TestApp::spawn(|config| {
            config.server.admin_listen = Some(address.parse().expect("an address"));
        })
        .await;
        let url = app.admin_url("/admin/keys").replace("0.0.0.0", "127.0.0.1");
        assert_eq!(answer(app.client.get(&url)).await.0, 200, "{address}");
        let (status, body) = answer(app.client.get(&url).header("X-Forwarded-For", "192.0.2.1")).await;
        assert_eq!(status, status_of_others, "{address}: {body}");
        let metrics = url.replace("/admin/keys", "/metrics");
        assert_eq!(answer(app.client.get(metrics).header("Host", "sidelens.search.svc")).await.0, 200);
    }
}

#[tokio::test]
async fn the_second_listener_asks_for_keys_too() {
    let app = TestApp::spawn(|config| {
        config.server.admin_listen = Some("127.0.0.1:0".parse().expect("an address"));
        config.auth.api_keys = vec!["plain".into()];
    })
    .await;
    let admin = |path: &str| answer(app.client.get(app.admin_url(path)));
    assert_eq!(admin("/admin/keys").await.0, 401);
    assert_eq!(admin("/metrics").await.0, 200);
}
