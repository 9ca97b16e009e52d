//! The same within this process, over models that fail as they are told.

use std::{
    process::Command,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use serde_json::json;
use sidelens::{
    app::Rooms,
    bulk::{self, End, Output, Plan, Shard, Summary},
    config::{Config, DEFAULT_TOML},
    imaging::WorkerCommand,
    runtime::{
        LoadedModel,
        stub::{StubBackend, stub_model, stub_model_over},
    },
};

use super::{Work, rows};
use crate::support::{PictureServer, STUB_DIMENSIONS, decode_worker};

/// What may be otherwise.
struct Here {
    config: Config,
    decode_worker: WorkerCommand,
    table_items: usize,
    max_in_flight: usize,
    retries: u32,
}

impl Work {
    /// Works on the list over `model`, as `adjust` says.
    async fn run_here(&self, model: LoadedModel, adjust: impl FnOnce(&mut Here)) -> (Summary, End) {
        let mut config: Config = toml::from_str(DEFAULT_TOML).expect("the defaults are valid");
        config.fetch.allow_networks = vec!["127.0.0.0/8".parse().expect("a network")];
        let mut here = Here { config, decode_worker, table_items: 2, max_in_flight: 1, retries: 0 };
        adjust(&mut here);
        let Here { config, decode_worker, table_items, max_in_flight, retries } = here;
        let rooms = Rooms::open(&config, decode_worker).expect("set up");
        let models = rooms.join(&config, vec![model]).expect("joined");
        let output = Output::new(self.output("out").to_str().expect("UTF-8"), &config.fetch).expect("a path");
        let plan = Plan {
            list: self.list.clone(),
            is_json: false,
            max_line_bytes: 1000,
            shard: Shard::WHOLE,
            claim: output.claim().expect("nobody else writes it"),
            output,
            table_items,
            max_in_flight,
            retries,
            stop_within: Duration::ZERO,
        };
        bulk::run(&plan, models.default_model(), std::future::pending()).await.expect("written")
    }
}

#[tokio::test]
async fn a_lost_device_costs_what_was_under_way() {
    let mut lines: Vec<_> = (0..5).map(|i| json!({"text": i.to_string()}).to_string()).collect();
    lines.push(json!({"text": "lose"}).to_string());
    let work = Work::new("list.jsonl", &lines);
    for new_items in [5, 0] {
        let (summary, end) = work.run_here(stub_model(STUB_DIMENSIONS), |_| {}).await;
        assert!(matches!(end, End::DeviceLost(_)), "{end:?}");
        assert_eq!((summary.record.items, summary.new_items, summary.record.complete), (5, new_items, false));
    }
    assert_eq!(rows(&work.output("out")).len(), 5);
}

#[tokio::test]
async fn a_lost_device_waits_for_no_download() {
    let host = PictureServer::start("examples/catalogue");
    let slow = json!({"image": host.url("slow")});
    let lines = [json!({"text": "a"}), slow, json!({"text": "lose"})];
    let work = Work::new("list.jsonl", &lines.map(|line| line.to_string()));
    let run = work.run_here(stub_model(STUB_DIMENSIONS), |here| {
        // The last begins once the first is done.
        here.max_in_flight = 2;
        (here.config.fetch.timeout_ms, here.config.fetch.first_byte_timeout_ms) = (600_000, 600_000);
    });
    let (summary, end) = tokio::time::timeout(Duration::from_secs(60), run).await.expect("at once");
    assert!(matches!(end, End::DeviceLost(_)), "{end:?}");
    assert_eq!(summary.record.items, 1, "what is done in front is written");
}

#[tokio::test]
async fn what_sidelens_itself_fails_at_is_tried_again() {
    static STARTED: AtomicUsize = AtomicUsize::new(0);
    let work = Work::new("list.txt", &["420_full.avif".into()]);
    let (summary, _) = work
        .run_here(stub_model(STUB_DIMENSIONS), |here| {
            here.config.fetch.files_root =
                concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/formats").into();
            here.decode_worker = || match STARTED.fetch_add(1, Ordering::SeqCst) {
                0 => Command::new("/nonexistent/sidelens"),
                _ => decode_worker(),
            };
            here.retries = 1;
        })
        .await;
    assert_eq!((summary.record.embedded, summary.record.n_failed()), (1, 0), "{summary}");
}

#[tokio::test]
async fn small_tables_make_no_small_batches() {
    let lines: Vec<_> = (0..64).map(|i| json!({"text": i.to_string()}).to_string()).collect();
    let work = Work::new("list.jsonl", &lines);
    let backend = StubBackend::new(STUB_DIMENSIONS).with_delay(Duration::from_millis(50));
    let record = backend.record();
    let (summary, _) = work
        .run_here(stub_model_over(backend), |here| {
            (here.table_items, here.max_in_flight) = (1, 32);
            here.config.batch.max_batch_size = 32;
        })
        .await;
    assert_eq!(summary.record.tables, 64);
    // The last of them have no warm-up among them.
    let largest = record.batches().iter().rev().take(8).map(Vec::len).max();
    assert!(largest > Some(3), "{largest:?}");
}
