//! Inputs through the queue and back, with engines that take no time: what batching itself costs.

use std::sync::Arc;

use criterion::{BenchmarkId, Criterion, Throughput};
use futures_util::future::join_all;
use sidelens::{
    batch::{BatchPolicy, Batcher, Device},
    config::{Config, DEFAULT_TOML},
    domain::{Embedding, Lane, Lanes, Prepared, Tokens},
    runtime::{BackendError, Results},
    telemetry::Metrics,
};
use tokio::{
    runtime::Runtime,
    time::{Duration, Instant},
};

/// Inputs that wait at once: a request, Meilisearch's usual load, the most that is let in.
const WAITING: &[usize] = &[10, 400, 8192];

/// Answers every input with the same vector, at once.
struct Instantly(Embedding);

impl Device for Instantly {
    async fn embed(&mut self, batch: Vec<Prepared>) -> Results {
        vec![Ok(self.0.clone()); batch.len()]
    }

    async fn warm_up(&mut self, _: Arc<Prepared>, _: usize) -> Result<(), BackendError> {
        Ok(())
    }
}

pub fn bench(criterion: &mut Criterion) {
    let runtime = Runtime::new().expect("a runtime");
    let config: Config = toml::from_str(DEFAULT_TOML).expect("the defaults are readable");
    let policy = BatchPolicy { max_queue_delay: Duration::ZERO, ..BatchPolicy::new(&config.batch, "cpu") };
    let vector = Embedding::normalized(vec![1.0; 512]).expect("a direction");
    let engine = |lane| (Instantly(vector.clone()), Lanes::Only(lane));
    let engines = vec![engine(Lane::Search), engine(Lane::Bulk), engine(Lane::Bulk)];
    let batcher = {
        let _inside = runtime.enter();
        Arc::new(Batcher::spawn(engines, policy, Arc::default(), Metrics::new()))
    };
    let mut group = criterion.benchmark_group("queue");
    for &n in WAITING {
        group.throughput(Throughput::Elements(n as u64));
        group.bench_function(BenchmarkId::new("inputs", n), |bencher| {
            bencher.iter(|| {
                let deadline = Instant::now() + Duration::from_secs(60);
                let inputs = (0..n).map(|i| {
                    let ids = vec![i as u32; 1 + i % 70];
                    let tokens = Tokens { n_tokens: ids.len(), ids, truncated: false };
                    batcher.submit(Prepared::Tokens(tokens), Lane::Bulk, deadline)
                });
                runtime.block_on(join_all(inputs))
            });
        });
    }
    group.finish();
}
