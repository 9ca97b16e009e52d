//! How the service ends: after answering.

use std::{env, fs, os::unix::process::CommandExt, process::Command, time::Duration};

use serde_json::json;
use sidelens::{
    app::AppError,
    runtime::stub::{StubBackend, StubFault, stub_model_over},
};
use tokio::net::{TcpListener, TcpStream};

use crate::support::{Running, STUB_DIMENSIONS, TestApp, answer, client, sidelens, slow_model};

#[tokio::test]
async fn answers_what_is_queued_and_accepts_no_more() {
    let (model, brake) = slow_model(STUB_DIMENSIONS);
    let mut app = TestApp::spawn_with(model, |config| config.batch.max_batch_size = 1).await;
    brake.set(Duration::from_millis(250));
    let waiting: Vec<_> = (0..4)
        .map(|i| {
            let request =
                app.client.post(app.url("/embed")).body(json!({ "input": [i.to_string()] }).to_string());
            tokio::spawn(answer(request))
        })
        .collect();
    app.wait_until("four wait", async || app.metric("sidelens_items_in_flight").await == 4.0).await;

    app.begin_stop();
    let address = app.address();
    app.wait_until("connections are refused", async || TcpStream::connect(address).await.is_err()).await;
    for request in waiting {
        let (status, body) = request.await.expect("not cancelled");
        assert_eq!(status, 200, "{body}");
    }
    app.ended().await.expect("a clean end");
}

#[tokio::test]
async fn a_lost_device_ends_the_service_after_an_answer() {
    let mut app = TestApp::spawn(|_| {}).await;
    let (status, _) = app.post("/embed", r#"{"input": ["lose"]}"#).await;
    assert!(status >= 500, "{status}");
    match app.ended().await {
        Err(error @ AppError::DeviceLost(_)) => assert_eq!(error.exit_status(), 70),
        other => panic!("ended with {other:?}"),
    }
}

#[tokio::test]
async fn a_device_that_is_lost_while_warming_up_has_its_own_status() {
    for _ in 0..32 {
        let backend = StubBackend::new(STUB_DIMENSIONS).with_faults(|_| Some(StubFault::Lose));
        let mut app = TestApp::spawn_cold(stub_model_over(backend), |_| {}).await;
        match app.ended().await {
            Err(error @ AppError::DeviceLost(_)) => assert_eq!(error.exit_status(), 70),
            other => panic!("ended with {other:?}"),
        }
    }
}

#[cfg_attr(not(feature = "torch"), ignore = "needs the feature `torch`")]
#[tokio::test]
async fn the_program_stops_on_sigterm_with_status_0() {
    let start = || Running::start(&["--model", "demo", "--device", "cpu"]);
    let mut running = tokio::task::spawn_blocking(start).await.expect("started");
    let client = client();
    assert_eq!(answer(client.get(format!("{}/health", running.url))).await.0, 200);
    let embed = || client.post(format!("{}/embed", running.url)).body(r#"{"input": "a red house"}"#);
    // Until the warm-up is over it says 503, as it would to Meilisearch.
    let mut last = answer(embed()).await;
    for _ in 0..600 {
        if last.0 != 503 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        last = answer(embed()).await;
    }
    assert_eq!(last.0, 200, "{}", last.1);
    running.signal("TERM");
    let status = tokio::task::spawn_blocking(move || running.ended()).await.expect("joined");
    assert_eq!(status.code(), Some(0));
}

#[cfg_attr(not(feature = "torch"), ignore = "needs the feature `torch`")]
#[tokio::test]
async fn the_program_that_is_told_twice_ends_at_once() {
    let client = client();
    let start = || Running::start(&["--model", "demo", "--device", "cpu"]);
    let mut running = tokio::task::spawn_blocking(start).await.expect("started");
    let url = running.url.clone();
    while answer(client.get(format!("{url}/ready"))).await.0 != 200 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // Cut off, whatever becomes of them.
    let busy = [1, 2].map(|request| {
        let inputs: Vec<_> =
            (0..2000).map(|i| format!("{} {request} {i}", "red house ".repeat(i % 40))).collect();
        let body = json!({ "input": inputs }).to_string();
        tokio::spawn(client.post(format!("{url}/embed")).body(body).send())
    });
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(busy.iter().all(|request| !request.is_finished()), "4000 texts are no work");
    running.signal("TERM");
    tokio::time::sleep(Duration::from_millis(50)).await;
    running.signal("TERM");
    let status = tokio::task::spawn_blocking(move || running.ended()).await.expect("joined");
    assert_eq!(status.code(), Some(130), "{status}");
}

/// The service, started by one who lets SIGHUP do this.
async fn start_with_hangup(action: libc::sighandler_t) -> Running {
    let mut command = sidelens(&["serve", "--model", "demo", "--device", "cpu"]);
    // SAFETY: `signal` may be called between fork and exec.
    unsafe {
        command.pre_exec(move || {
            libc::signal(libc::SIGHUP, action);
            Ok(())
        });
    }
    tokio::task::spawn_blocking(move || Running::start_command(command)).await.expect("started")
}

#[cfg_attr(not(feature = "torch"), ignore = "needs the feature `torch`")]
#[tokio::test]
async fn a_closed_terminal_stops_the_program_as_sigterm_does() {
    let mut running = start_with_hangup(libc::SIG_DFL).await;
    // The shell's, and the system's.
    running.signal("HUP");
    running.signal("HUP");
    let status = tokio::task::spawn_blocking(move || running.ended()).await.expect("joined");
    assert_eq!(status.code(), Some(0), "{status}");
}

#[cfg_attr(not(feature = "torch"), ignore = "needs the feature `torch`")]
#[tokio::test]
async fn a_program_under_nohup_outlives_its_terminal() {
    let mut running = start_with_hangup(libc::SIG_IGN).await;
    running.signal("HUP");
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(answer(client().get(format!("{}/health", running.url))).await.0, 200);
    running.signal("TERM");
    let status = tokio::task::spawn_blocking(move || running.ended()).await.expect("joined");
    assert_eq!(status.code(), Some(0), "{status}");
}

#[cfg_attr(not(feature = "torch"), ignore = "needs the feature `torch`")]
#[tokio::test]
async fn requests_that_the_stop_cuts_off_are_told_by_their_number() {
    let host = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let picture = format!("http://{}/a.png", host.local_addr().expect("an address"));
    let log = tempfile::NamedTempFile::new().expect("a file");
    let mut command = sidelens(&["serve", "--model", "demo", "--device", "cpu"]);
    command.args(["--set", "server.shutdown_timeout_s=1", "--set", "fetch.allow_networks=127.0.0.0/8"]);
    command.stderr(log.reopen().expect("the file"));
    let mut running =
        tokio::task::spawn_blocking(move || Running::start_command(command)).await.expect("started");
    let (client, url) = (client(), running.url.clone());
    while answer(client.get(format!("{url}/ready"))).await.0 != 200 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let asked = client.post(format!("{url}/embed")).body(json!({ "image_url": picture }).to_string());
    tokio::spawn(asked.send());
    let _silent = host.accept().await.expect("the picture is asked for");
    running.signal("TERM");
    let status = tokio::task::spawn_blocking(move || running.ended()).await.expect("joined");
    assert_eq!(status.code(), Some(0), "{status}");
    let log = fs::read_to_string(log.path()).expect("the log");
    assert!(log.contains("`server.shutdown_timeout_s` 1") && log.contains("n_requests=1"), "{log}");
}

/// libtorch's destructors end the process by a segmentation fault where threads still compute.
#[test]
fn no_destructor_runs_at_the_end() {
    let child = Command::new(env::current_exe().expect("this program"))
        .args(["shutdown::child", "--exact", "--ignored", "--nocapture"])
        .output()
        .expect("it starts");
    let output = String::from_utf8_lossy(&child.stdout);
    assert_eq!(child.status.code(), Some(7), "{output}");
    assert!(output.contains("told before") && !output.contains("destructor"), "{output}");
}

#[test]
#[ignore = "a process of its own, started by the other test of this file"]
fn child() {
    extern "C" fn destructor() {
        println!("a destructor ran");
    }
    // SAFETY: The handler may be called at any exit.
    assert_eq!(unsafe { libc::atexit(destructor) }, 0);
    print!("told before");
    sidelens::shutdown::exit(7);
}
