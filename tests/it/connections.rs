//! Connections that misbehave: each is ended or made to wait, and nobody else notices.

use std::{
    fs,
    io::{ErrorKind, Read, Seek},
    process::Command,
    time::Duration,
};

use futures_util::future::{join, join_all};
use serde_json::json;
use sidelens::runtime::stub::stub_model;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    time::{Instant, sleep, timeout},
};

use crate::support::{PictureServer, Running, STUB_DIMENSIONS, TestApp, sidelens, slow_model};

/// What the service may take to end a connection in these tests.
const PATIENCE: Duration = Duration::from_secs(15);

async fn connect(app: &TestApp) -> TcpStream {
    TcpStream::connect(app.address()).await.expect("accepted")
}

/// Everything that the service sends until it ends the connection.
async fn rest(connection: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    let ended = timeout(PATIENCE, connection.read_to_end(&mut answer)).await.expect("the service ends it");
    // A reset ends it as well.
    let _reset = ended;
    String::from_utf8(answer).expect("UTF-8")
}

/// Reads one answer's head and what came with it.
async fn head(connection: &mut TcpStream) -> String {
    let mut buffer = [0; 4096];
    let n = timeout(PATIENCE, connection.read(&mut buffer)).await.expect("in time").expect("an answer");
    String::from_utf8_lossy(&buffer[..n]).into_owned()
}

#[tokio::test]
async fn a_slow_head_is_cut() {
    let app = TestApp::spawn(|config| config.server.client_timeout_ms = 1500).await;
    let mut connection = connect(&app).await;
    let begin = Instant::now();
    let (mut reading, mut writing) = connection.split();
    let drip = async {
        // Each part in time, the whole never.
        for part in
            ["GET /health HTTP/1.1\r\n", "Host: x\r\n"].into_iter().chain(std::iter::repeat("X-More: 1\r\n"))
        {
            if writing.write_all(part.as_bytes()).await.is_err() {
                break;
            }
            sleep(Duration::from_millis(100)).await;
        }
    };
    let mut answer = Vec::new();
    tokio::select! {
        ended = timeout(PATIENCE, reading.read_to_end(&mut answer)) => { _ = ended.expect("it is ended"); }
        () = drip => {}
    }
    assert!(begin.elapsed() >= Duration::from_millis(1400), "{:?}", begin.elapsed());
    // An answer would be 408, which Meilisearch takes for the last word.
    assert_eq!(String::from_utf8_lossy(&answer), "");
    assert_eq!(app.get("/health").await.0, 200);
}

#[tokio::test]
async fn silence_is_cut_on_the_second_listener_too() {
    let app = TestApp::spawn(|config| {
        config.server.client_timeout_ms = 300;
        config.server.admin_listen = Some("127.0.0.1:0".parse().expect("an address"));
    })
    .await;
    let address = app.admin_url("").replace("http://", "");
    let mut connection = TcpStream::connect(address).await.expect("accepted");
    assert_eq!(rest(&mut connection).await, "");
}

#[tokio::test]
async fn a_head_in_time_stops_the_clock() {
    let (model, brake) = slow_model(STUB_DIMENSIONS);
    let app = TestApp::spawn_with(model, |config| config.server.client_timeout_ms = 300).await;
    brake.set(Duration::from_millis(1000));
    assert_eq!(app.post("/embed", r#"{"input": "red"}"#).await.0, 200);
}

/// The program with the demo model, which is warm.
async fn ready(settings: &[&str]) -> Running {
    let service = Running::start(&[&["--model", "demo"], settings].concat());
    let url = format!("{}/ready", service.url);
    while crate::support::answer(crate::support::client().get(&url)).await.0 != 200 {
        sleep(Duration::from_millis(50)).await;
    }
    service
}

/// Such as a scan of ports, a probe, or TLS where none is spoken.
#[cfg_attr(not(feature = "torch"), ignore = "needs the feature `torch`")]
#[tokio::test]
async fn what_is_no_http_is_no_error_of_the_service() {
    let mut said = tempfile::tempfile().expect("a file");
    let mut command = sidelens(&["serve", "--model", "demo"]);
    command.stderr(said.try_clone().expect("a descriptor"));
    let mut service = Running::start_command(command);
    let address = service.url.strip_prefix("http://").expect("plain");
    for stranger in ["\x16\x03\x01\x02\0\x01\0", "GET / HTTP/9.9\r\n\r\n", "SSH-2.0-scanner\r\n\r\n"] {
        let mut connection = TcpStream::connect(address).await.expect("accepted");
        connection.write_all(stranger.as_bytes()).await.expect("sent");
        assert!(rest(&mut connection).await.starts_with("HTTP/1.1 400"), "{stranger:?}");
    }
    service.signal("TERM");
    service.ended();
    let mut log = String::new();
    said.rewind().and_then(|()| said.read_to_string(&mut log)).expect("text");
    assert!(log.contains("INFO") && !log.contains("ERROR"), "{log}");
}

/// As on a machine that sleeps, or in a container that is frozen.
#[cfg_attr(not(feature = "torch"), ignore = "needs the feature `torch`")]
#[tokio::test]
async fn a_request_that_came_during_a_pause_is_answered() {
    let limits = ["server.client_timeout_ms=2000", "server.min_body_bytes_per_s=10000000"];
    let service = ready(&["--set", limits[0], "--set", limits[1]]).await;
    let address = service.url.strip_prefix("http://").expect("plain");
    // All of it, the end of its body, or several parts of a large one.
    for (padding, n_during) in [(0, usize::MAX), (0, 3), (200_000, 150_000)] {
        // It is answered later than it is read.
        let body = format!("{{\"input\": \"red\"{}}}", " ".repeat(padding));
        let head = format!("POST /embed HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", body.len());
        let request = head + &body;
        let (before, during) = request.split_at(request.len().saturating_sub(n_during));
        let mut connections = Vec::new();
        for _ in 0..20 {
            let mut connection = TcpStream::connect(address).await.expect("accepted");
            connection.write_all(before.as_bytes()).await.expect("sent");
            connections.push(connection);
        }
        // The clocks of all of them are running.
        sleep(Duration::from_millis(200)).await;
        service.signal("STOP");
        for connection in &mut connections {
            connection.write_all(during.as_bytes()).await.expect("sent");
        }
        sleep(Duration::from_millis(3000)).await;
        service.signal("CONT");
        for connection in &mut connections {
            let answer = rest(connection).await;
            assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        }
    }
}

#[tokio::test]
async fn there_is_no_second_head_to_be_slow_with() {
    let app = TestApp::spawn(|_| {}).await;
    let mut connection = connect(&app).await;
    connection.write_all(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\nGET /health HT").await.expect("sent");
    let answer = rest(&mut connection).await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("connection: close"), "{answer}");
}

#[tokio::test]
async fn an_idle_connection_is_kept_for_a_while_if_wanted() {
    let app = TestApp::spawn(|config| config.server.keep_alive_s = 1).await;
    let mut connection = connect(&app).await;
    for _ in 0..2 {
        connection.write_all(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n").await.expect("sent");
        assert!(head(&mut connection).await.starts_with("HTTP/1.1 200"));
    }
    assert_eq!(rest(&mut connection).await, "");
}

#[tokio::test]
async fn an_answer_ends_the_wait_for_a_body_of_unknown_length() {
    let app = TestApp::spawn(|config| {
        config.server.client_timeout_ms = 500;
        config.auth.api_keys = vec!["key".into()];
    })
    .await;
    let early = [
        ("POST /nowhere", "", "404"),
        ("GET /health", "", "200"),
        ("GET /embed", "", "405"),
        ("POST /embed", "", "401"),
        ("POST /embed", "Authorization: Bearer key\r\n", "503"),
        ("POST /embed", "Upgrade: websocket\r\n", "401"),
    ];
    let ends = early.map(|(what, header, status)| {
        let app = &app;
        async move {
            let mut connection = connect(app).await;
            let head = format!("{what} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n{header}\r\n");
            connection.write_all(head.as_bytes()).await.expect("sent");
            let answer = rest(&mut connection).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{what}: {answer}");
        }
    });
    join_all(ends).await;
}

#[tokio::test]
async fn a_body_above_its_content_length_is_refused() {
    let app = TestApp::spawn(|_| {}).await;
    let mut connection = connect(&app).await;
    // To actix it ends with the connection.
    let head = "POST /embed HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nContent-Length: 10\r\n\r\n";
    connection.write_all(head.as_bytes()).await.expect("sent");
    connection.write_all(&[b' '; 100]).await.expect("sent");
    let answer = self::head(&mut connection).await;
    assert!(answer.starts_with("HTTP/1.1 400") && answer.contains("Content-Length"), "{answer}");
}

#[tokio::test]
async fn a_request_that_asks_for_another_protocol_is_answered_in_this_one() {
    let body = r#"{"input": "red"}"#;
    for keep_alive_s in [0, 30] {
        let app = TestApp::spawn(|config| config.server.keep_alive_s = keep_alive_s).await;
        for upgrade in [
            "Upgrade: websocket",
            "Connection: Upgrade\r\nUpgrade: websocket",
            "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA",
        ] {
            let mut connection = connect(&app).await;
            let length = body.len();
            let request = format!(
                "POST /embed HTTP/1.1\r\nHost: x\r\n{upgrade}\r\nContent-Length: {length}\r\n\r\n{body}"
            );
            connection.write_all(request.as_bytes()).await.expect("sent");
            let answer = rest(&mut connection).await;
            assert!(answer.starts_with("HTTP/1.1 200"), "{upgrade}: {answer}");
            assert!(answer.contains("connection: close\r\n"), "{upgrade}: {answer}");
        }
    }
}

/// `n` requests of a few bytes each.
fn small(n: usize) -> Vec<u8> {
    b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n".repeat(n)
}

/// Waits for a moment in which a process does nothing. Needs Linux.
async fn rest_of(service: &Running) {
    let ticks = || {
        let stat = fs::read_to_string(format!("/proc/{}/stat", service.pid())).expect("it lives");
        let fields: Vec<_> = stat.rsplit(')').next().expect("fields").split_whitespace().collect();
        (fields[11].to_owned(), fields[12].to_owned())
    };
    let quiet = async {
        loop {
            let before = ticks();
            sleep(Duration::from_millis(300)).await;
            if ticks() == before {
                break;
            }
        }
    };
    timeout(PATIENCE, quiet).await.expect("it rests");
}

#[cfg_attr(not(all(feature = "torch", target_os = "linux")), ignore = "needs Linux and the feature `torch`")]
#[tokio::test]
async fn what_waits_behind_a_request_costs_no_time() {
    let host = PictureServer::start("tests/fixtures/images");
    let networks = "fetch.allow_networks=[\"127.0.0.0/8\"]";
    let timeouts = ["fetch.timeout_ms=20000", "fetch.first_byte_timeout_ms=20000"];
    let service = ready(&["--set", networks, "--set", timeouts[0], "--set", timeouts[1]]).await;
    rest_of(&service).await;
    let address = service.url.strip_prefix("http://").expect("plain");
    let body = json!({ "image_url": host.url("slow") }).to_string();
    let request = format!("POST /embed HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    let mut connection = TcpStream::connect(address).await.expect("accepted");
    connection.write_all(request.as_bytes()).await.expect("sent");
    // As much as the system takes.
    let sent = timeout(Duration::from_secs(1), connection.write_all(&small(8000))).await;
    assert!(sent.is_err() || sent.is_ok_and(|sent| sent.is_ok()), "the connection ended");
    rest_of(&service).await;
}

#[tokio::test]
async fn what_waits_behind_a_request_is_answered_after_it() {
    let (model, brake) = slow_model(STUB_DIMENSIONS);
    let app = TestApp::spawn_with(model, |config| config.server.keep_alive_s = 30).await;
    brake.set(Duration::from_millis(500));
    let post = |padding: usize| {
        let body = format!("{{\"input\": [\"{padding}\", \"house\"]{}}}", " ".repeat(padding));
        format!("POST /embed HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{body}", body.len())
            .into_bytes()
    };
    let mut connection = connect(&app).await;
    let (mut reading, mut writing) = connection.split();
    let requests =
        [post(10), small(8000), post(500_000), post(20), small(40), post(90_000), post(30)].concat();
    let send = async {
        writing.write_all(&requests).await.expect("sent");
        writing
            .write_all(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            .await
            .expect("sent");
    };
    let mut answers = Vec::new();
    let (ended, ()) = join(timeout(PATIENCE * 2, reading.read_to_end(&mut answers)), send).await;
    ended.expect("in time").expect("read");
    assert_eq!(String::from_utf8_lossy(&answers).matches("HTTP/1.1 200").count(), 8046);
}

#[tokio::test]
async fn large_answers_wait_for_those_that_nobody_takes() {
    let app = TestApp::spawn_with(stub_model(1024), |config| {
        config.server.max_body_bytes = 1 << 20;
        config.server.max_inflight_body_bytes = 8 << 20;
        config.fetch.connect_timeout_ms = 1000;
        config.fetch.timeout_ms = 1000;
        config.batch.deadline_ms = 3000;
    })
    .await;
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_recv_buffer_size(4096).expect("set");
    let mut connection = socket.connect(app.address()).await.expect("accepted");
    // 6 MB of answer, more than the system keeps for one connection.
    let large = json!({ "input": vec!["red"; 512] }).to_string();
    let head = format!("POST /embed HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{large}", large.len());
    connection.write_all(head.as_bytes()).await.expect("sent");
    let answered = "sidelens_requests_total{route=\"embed\",status=\"200\"}";
    app.wait_until("it is answered", async || app.metric(answered).await == 1.0).await;
    let (status, body) = app.post("/embed", large.clone()).await;
    assert_eq!(status, 503, "{body}");
    let refused = json!({ "input": vec!["red"; 512], "dimensions": 7 }).to_string();
    assert_eq!(app.post("/embed", refused).await.0, 400, "whatever room there is");
    assert_eq!(app.post("/embed", r#"{"input": ["red", "house"]}"#).await.0, 200);
    rest(&mut connection).await;
    assert_eq!(app.post("/embed", large).await.0, 200);
}

#[tokio::test]
async fn an_answer_that_nobody_takes_is_dropped() {
    let app = TestApp::spawn_with(stub_model(1024), |config| config.server.client_timeout_ms = 2000).await;
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_recv_buffer_size(4096).expect("set");
    let mut connection = socket.connect(app.address()).await.expect("accepted");
    // 6 MB of answer, more than the system keeps for one connection.
    let body = json!({ "input": vec!["red"; 512] }).to_string();
    let head = format!("POST /embed HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    connection.write_all(head.as_bytes()).await.expect("sent");
    let answered = "sidelens_requests_total{route=\"embed\",status=\"200\"}";
    app.wait_until("it is answered", async || app.metric(answered).await == 1.0).await;
    // A connection that is alive would be closed as it should be, after all of its answer.
    sleep(Duration::from_secs(6)).await;
    let end = timeout(PATIENCE, connection.read_to_end(&mut Vec::new())).await.expect("it has an end");
    assert_eq!(end.expect_err("cut").kind(), ErrorKind::ConnectionReset);
}

async fn announce(app: &TestApp, bytes: usize) -> TcpStream {
    let mut connection = connect(app).await;
    let head = format!("POST /embed HTTP/1.1\r\nHost: x\r\nContent-Length: {bytes}\r\n\r\n{{");
    connection.write_all(head.as_bytes()).await.expect("sent");
    connection
}

#[tokio::test]
async fn a_body_that_stops_is_cut_and_gives_its_room_back() {
    let app = TestApp::spawn(|config| {
        config.server.client_timeout_ms = 500;
        config.server.max_body_bytes = 1 << 20;
        config.server.max_inflight_body_bytes = 1 << 20;
    })
    .await;
    let mut stopped = announce(&app, 1 << 20).await;
    stopped.write_all(&[b' '; 800_000]).await.expect("sent");
    app.wait_until("it is read", async || app.metric("sidelens_requests_in_flight").await == 2.0).await;
    // A search passes at once; bulk waits for the room, and has it as soon as the other is cut.
    assert_eq!(app.post("/embed", r#"{"input": "red"}"#).await.0, 200);
    let bulk = format!("{{\"input\": \"red\", \"x\": \"{}\"}}", "a".repeat(500_000));
    assert_eq!(app.post("/embed", bulk).await.0, 200);
    let answer = head(&mut stopped).await;
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("after 800001 bytes"), "{answer}");
}

#[tokio::test]
async fn what_is_announced_and_not_sent_keeps_nobody_waiting() {
    let app = TestApp::spawn(|config| {
        config.server.max_body_bytes = 16 << 20;
        config.server.max_inflight_body_bytes = 20 << 20;
    })
    .await;
    let mut stalled = Vec::new();
    for _ in 0..20 {
        stalled.push(announce(&app, 16 << 20).await);
    }
    app.wait_until("they are read", async || app.metric("sidelens_requests_in_flight").await == 21.0).await;
    let begin = Instant::now();
    for bytes in [1_000_000, 2_000_000] {
        let normal = format!("{{\"input\": \"red\", \"x\": \"{}\"}}", "a".repeat(bytes));
        assert_eq!(app.post("/embed", normal).await.0, 200);
    }
    // They are cut after ten.
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
}

#[tokio::test]
async fn bodies_of_unknown_length_are_answered_together() {
    let (model, brake) = slow_model(STUB_DIMENSIONS);
    let app = TestApp::spawn_with(model, |config| {
        config.server.max_body_bytes = 16 << 20;
        config.server.max_inflight_body_bytes = 16 << 20;
    })
    .await;
    brake.set(Duration::from_millis(1000));
    let mut connections = Vec::new();
    for padding in [0, 100_000].repeat(20) {
        let mut connection = connect(&app).await;
        let body = format!("{{\"input\": [\"red\", \"house\"]{}}}", " ".repeat(padding));
        let head = "POST /embed HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n";
        let request = format!("{head}{:x}\r\n{body}\r\n0\r\n\r\n", body.len());
        connection.write_all(request.as_bytes()).await.expect("sent");
        connections.push(connection);
    }
    app.wait_until("all are read", async || app.metric("sidelens_items_in_flight").await == 80.0).await;
    for connection in &mut connections {
        let answer = head(connection).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
}

#[tokio::test]
async fn a_body_of_unknown_length_may_be_large() {
    let app = TestApp::spawn(|config| {
        config.server.max_body_bytes = 8 << 20;
        config.server.max_inflight_body_bytes = 8 << 20;
    })
    .await;
    let posts = (0..6).map(|_| async {
        let mut connection = connect(&app).await;
        let head = "POST /embed HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n";
        connection.write_all(head.as_bytes()).await.expect("sent");
        // 6 MB, of which the room has one at a time.
        for _ in 0..6 {
            let part = format!("{:x}\r\n{}\r\n", 1_000_000, " ".repeat(1_000_000));
            connection.write_all(part.as_bytes()).await.expect("sent");
        }
        connection.write_all(b"10\r\n{\"input\": \"red\"}\r\n0\r\n\r\n").await.expect("sent");
        let answer = self::head(&mut connection).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    });
    join_all(posts).await;
}

#[tokio::test]
async fn a_body_that_crawls_is_cut() {
    let app = TestApp::spawn(|config| {
        config.server.client_timeout_ms = 400;
        config.server.min_body_bytes_per_s = 1000;
    })
    .await;
    let mut connection = announce(&app, 1 << 20).await;
    let (mut reading, mut writing) = connection.split();
    let drip = async {
        // 100 bytes a second, without a pause.
        while writing.write_all(b" ").await.is_ok() {
            sleep(Duration::from_millis(10)).await;
        }
    };
    let mut buffer = [0; 4096];
    let n = tokio::select! {
        read = timeout(PATIENCE, reading.read(&mut buffer)) => read.expect("in time").expect("an answer"),
        () = drip => panic!("closed without an answer"),
    };
    let answer = String::from_utf8_lossy(&buffer[..n]);
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("min_body_bytes_per_s"), "{answer}");
}

#[tokio::test]
async fn a_body_in_steady_parts_is_read() {
    let app = TestApp::spawn(|config| {
        config.server.client_timeout_ms = 500;
        config.server.min_body_bytes_per_s = 100;
    })
    .await;
    let body = format!("{{\"input\": \"red\"{}}}", " ".repeat(2000));
    let mut connection = connect(&app).await;
    let head_bytes = format!("POST /embed HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", body.len());
    connection.write_all(head_bytes.as_bytes()).await.expect("sent");
    // Longer than client_timeout_ms on the whole.
    for part in body.as_bytes().chunks(300) {
        connection.write_all(part).await.expect("sent");
        sleep(Duration::from_millis(150)).await;
    }
    assert!(head(&mut connection).await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn a_huge_head_is_refused_and_never_held() {
    let app = TestApp::spawn(|_| {}).await;
    let line = format!("X-Filler: {}\r\n", "a".repeat(8000));
    let many = "X-More: 1\r\n".repeat(97);
    for (what, fill, n) in [("bytes", &line, 100), ("headers", &many, 1)] {
        let mut connection = connect(&app).await;
        connection.write_all(b"GET /health HTTP/1.1\r\nHost: x\r\n").await.expect("sent");
        for _ in 0..n {
            // Ends early where the service closes before all is sent.
            if connection.write_all(fill.as_bytes()).await.is_err() {
                break;
            }
        }
        let _closed = connection.write_all(b"\r\n").await;
        let answer = rest(&mut connection).await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{what}: {answer}");
    }
    // A head within the limits is none.
    let large = app.client.get(app.url("/health")).header("X-Filler", "a".repeat(60_000));
    assert_eq!(crate::support::answer(large).await.0, 200);
    assert_eq!(app.get("/health").await.0, 200);
}

#[tokio::test]
async fn above_the_cap_connections_wait_their_turn() {
    let app = TestApp::spawn(|config| {
        config.server.workers = 1;
        config.server.max_connections = 4;
        config.server.client_timeout_ms = 1000;
        config.server.admin_listen = Some("127.0.0.1:0".parse().expect("an address"));
    })
    .await;
    let mut silent = Vec::new();
    for _ in 0..8 {
        silent.push(connect(&app).await);
    }
    // Those who look after the service are not in this queue.
    let probe = app.client.get(app.admin_url("/health"));
    assert_eq!(
        timeout(Duration::from_millis(700), crate::support::answer(probe)).await.expect("at once").0,
        200
    );
    // The silent ones are cut after a second each, four at a time; then it is the caller's turn.
    let begin = Instant::now();
    assert_eq!(app.post("/embed", r#"{"input": "red"}"#).await.0, 200);
    assert!(begin.elapsed() > Duration::from_millis(700), "nobody waited: {:?}", begin.elapsed());
}

/// The caller's patience began with its first byte, so the deadline does: half of it is spent on the body, and more than
/// the other half would be on the vector.
#[tokio::test]
async fn the_time_that_a_body_takes_counts() {
    let (model, brake) = slow_model(STUB_DIMENSIONS);
    let app = TestApp::spawn_with(model, |config| {
        config.fetch.connect_timeout_ms = 100;
        config.fetch.timeout_ms = 100;
        config.batch.deadline_ms = 2000;
    })
    .await;
    brake.set(Duration::from_millis(1500));
    let mut connection = connect(&app).await;
    let begin = Instant::now();
    let (head, body) = (r#"{"inp"#, r#"ut": "a"}"#);
    let length = head.len() + body.len();
    let start = format!("POST /embed HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n{head}");
    connection.write_all(start.as_bytes()).await.expect("sent");
    sleep(Duration::from_millis(1000)).await;
    connection.write_all(body.as_bytes()).await.expect("sent");
    let answer = rest(&mut connection).await;
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("batch.deadline_ms"), "{answer}");
    assert!(begin.elapsed() < Duration::from_millis(2400), "{:?}", begin.elapsed());
}

#[cfg_attr(not(all(feature = "torch", target_os = "linux")), ignore = "needs Linux and the feature `torch`")]
#[tokio::test]
async fn the_program_takes_all_the_descriptors_that_it_may_have() {
    let start = || {
        let program = sidelens(&["serve", "--model", "demo", "--device", "cpu"]);
        let mut command = Command::new("sh");
        command.args(["-c", r#"ulimit -Sn 300 && ulimit -Hn 700 && exec "$0" "$@""#]);
        command.arg(program.get_program()).args(program.get_args());
        program.get_envs().for_each(|(removed, _)| _ = command.env_remove(removed));
        Running::start_command(command)
    };
    let running = tokio::task::spawn_blocking(start).await.expect("started");
    let limits = fs::read_to_string(format!("/proc/{}/limits", running.pid())).expect("it lives");
    let files = limits.lines().find(|line| line.starts_with("Max open files")).expect("Linux tells");
    assert_eq!(files.split_whitespace().skip(3).take(2).collect::<Vec<_>>(), ["700", "700"], "{files}");
}
