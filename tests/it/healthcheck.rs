//! `sidelens healthcheck`, as a container engine runs it beside the service.

use std::process::Output;

use tokio::{net::TcpStream, task::spawn_blocking};

use crate::support::{TestApp, sidelens};

async fn healthcheck(listen: String, sets: Vec<String>) -> Output {
    let run = move || {
        let mut command = sidelens(&["healthcheck", "--listen", &listen]);
        sets.iter().for_each(|set| _ = command.args(["--set", set]));
        command.output().expect("the program runs")
    };
    spawn_blocking(run).await.expect("joined")
}

#[tokio::test]
async fn a_service_that_is_ready_is_healthy() {
    let app = TestApp::spawn(|_| {}).await;
    let output = healthcheck(app.address().to_string(), vec![]).await;
    assert!(output.status.success(), "{output:?}");
}

#[tokio::test]
async fn a_service_is_healthy_however_many_hold_it() {
    let app = TestApp::spawn(|config| {
        config.server.admin_listen = Some("127.0.0.1:0".parse().expect("an address"));
        (config.server.workers, config.server.max_connections) = (1, 1);
        config.server.client_timeout_ms = 600_000;
    })
    .await;
    // Says nothing, for longer than this test takes.
    let _held = TcpStream::connect(app.address()).await.expect("accepted");
    let asked = |sets| healthcheck(app.address().to_string(), sets);
    let admin = format!("server.admin_listen={}", app.admin_url("").trim_start_matches("http://"));
    let output = asked(vec![admin]).await;
    assert!(output.status.success(), "{output:?}");
    // By itself the first one would be called dead.
    assert_eq!(asked(vec![]).await.status.code(), Some(1));
    let output = asked(vec!["server.admin_listen=127.0.0.1:0".into()]).await;
    assert!(String::from_utf8_lossy(&output.stderr).contains("`server.admin_listen` is "), "{output:?}");
}

#[tokio::test]
async fn nobody_is_not_healthy() {
    // A port that was free a moment ago.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    drop(listener);
    for (listen, word) in [(address.to_string(), "refused"), ("127.0.0.1:0".into(), "fixed one")] {
        let output = healthcheck(listen, vec![]).await;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(word), "{said}");
    }
}
