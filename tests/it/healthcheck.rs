//! `sidelens healthcheck`, as a container engine runs it beside the service.

use std::process::Output;

use tokio::task::spawn_blocking;

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
