//! One request over HTTP through the whole service, by a new connection, on a model that costs nothing: all but
//! inference. The client's share, building the body and counting the vectors, is in it.

use std::{sync::Arc, thread, time::Duration};

use criterion::{Criterion, Throughput};
use sidelens::{
    app::{self, Foundation},
    config::{Config, DEFAULT_TOML},
    load::{Form, Inputs, Lane, Length, Peer, Picture, Target, Template, http_client},
    runtime::stub::stub_model,
};
use tokio::{runtime::Runtime, sync::oneshot};
use url::Url;

use super::decode::decode_worker;

/// As CLIP ViT-B/32.
const DIMENSIONS: usize = 512;
const PICTURE: &str =
    r#"{"inputs": [{"content": [{"type": "image_url", "image_url": "{{image}}"}]}, "{{..}}"]}"#;
const TEXT: &str = r#"{"inputs": [{"content": [{"type": "text", "text": "{{text}}"}]}, "{{..}}"]}"#;
/// Name, request, inputs, whether they are the same each time.
const REQUESTS: &[(&str, &str, usize, bool)] = &[
    ("10 pictures", PICTURE, 10, false),
    ("10 pictures, cached", PICTURE, 10, true),
    ("1 text", TEXT, 1, false),
    ("1 text, cached", TEXT, 1, true),
];

pub fn bench(criterion: &mut Criterion) {
    let runtime = Runtime::new().expect("a runtime");
    let service = Service::start(&runtime);
    let mut group = criterion.benchmark_group("end to end");
    for (name, request, n_inputs, is_cached) in REQUESTS {
        let lane = service.lane(request, *n_inputs, *is_cached);
        while runtime.block_on(lane.send()).is_err() {
            // The model is warming up, which takes some milliseconds.
            thread::sleep(Duration::from_millis(10));
        }
        group.throughput(Throughput::Elements(*n_inputs as u64));
        group.bench_function(*name, |bencher| {
            bencher.iter(|| runtime.block_on(lane.send()).expect("an answer"));
        });
    }
    group.finish();
}

/// A running service, with its own threads; stops when dropped.
struct Service {
    url: Url,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Service {
    fn start(client: &Runtime) -> Self {
        let mut config: Config = toml::from_str(DEFAULT_TOML).expect("the defaults are valid");
        config.server.listen = "127.0.0.1:0".parse().expect("an address");
        let (started, start) = oneshot::channel();
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = thread::spawn(move || {
            let serve = async {
                let listener = app::bind(&config.server)?.listen()?;
                let foundation = Foundation::lay(config, decode_worker)?;
                let app = foundation.build(vec![stub_model(DIMENSIONS)], listener)?;
                started.send(app.address()).expect("the bench waits");
                app.run_until_stopped(async { _ = stopped.await }).await
            };
            Runtime::new().expect("a runtime").block_on(serve).expect("the service runs");
        });
        let url = client.block_on(async {
            let address = start.await.expect("the service starts");
            format!("http://{address}/embed").parse().expect("an address")
        });
        Self { url, stop: Some(stop), thread: Some(thread) }
    }

    fn lane(&self, request: &str, n_inputs: usize, is_cached: bool) -> Arc<Lane> {
        let inputs = Inputs::new(vec![Picture::photo()], is_cached.then_some(n_inputs as u64));
        let peer = Peer::new(http_client(), inputs, Default::default()).expect("a client");
        let template = Template::new(serde_json::from_str(request).expect("JSON")).expect("a template");
        let target = Target { url: self.url.clone(), form: Form::Json(template) };
        peer.lane(&target, n_inputs, Length::Query).expect("it repeats")
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // Whatever happened to it, the bench's own failure is the one to see.
        let _ended = self.stop.take().map(|stop| stop.send(()));
        let _joined = self.thread.take().map(|thread| thread.join());
    }
}
