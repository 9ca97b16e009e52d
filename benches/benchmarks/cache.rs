//! Keys, and the map behind them.

use std::{
    convert::Infallible,
    future::ready,
    hint::black_box,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use criterion::{Criterion, Throughput};
use futures_util::future::join_all;
use sidelens::{
    cache::{CacheKey, CachedVector, Lookup, VectorCache},
    config::{Config, DEFAULT_TOML},
    domain::{Background, ContentDigest, Decode, Fingerprint, Icc, Lane},
    telemetry::Metrics,
};
use tokio::{join, runtime, sync::Notify};

use super::dialect::vectors;

/// Name, bytes of the encoded picture.
const PICTURES: &[(&str, usize)] = &[("key of 55 KB", 55_000), ("key of 5 MB", 5_000_000)];
/// Equal inputs that meet in flight: as many requests as Meilisearch has open.
const JOINED: usize = 40;

pub fn bench(criterion: &mut Criterion) {
    let model = Fingerprint::of(&[b"model"]);
    let mut group = criterion.benchmark_group("cache");
    for &(name, n_bytes) in PICTURES {
        let encoded = vec![7; n_bytes];
        group.throughput(Throughput::Bytes(n_bytes as u64));
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                let file = ContentDigest::of(black_box(&encoded));
                CacheKey::image(model, Decode::Fast, Background::WHITE, Icc::Ignore, &file)
            });
        });
    }

    let config: Config = toml::from_str(DEFAULT_TOML).expect("the defaults are valid");
    let runtime = runtime::Builder::new_current_thread().build().expect("a runtime");
    let cache = VectorCache::new(&config.cache, Metrics::new()).expect("only memory");
    let embedding = vectors(1, 512).remove(0);
    let value = CachedVector::of_text(embedding, 3, false);
    let lookup = |key| Lookup { key, dimensions: value.embedding.dimensions(), lane: Lane::Bulk };
    let compute = || ready(Ok::<_, Infallible>(value.clone()));
    // Keys that were not there before.
    let counter = AtomicUsize::new(0);
    let fresh = || CacheKey::text(model, &counter.fetch_add(1, Ordering::Relaxed).to_string());

    group.throughput(Throughput::Elements(1));
    let known = CacheKey::text(model, "known");
    group.bench_function("hit", |bencher| {
        bencher.iter(|| runtime.block_on(cache.get_or_compute(lookup(known), |_| compute())));
    });
    group.bench_function("insert", |bencher| {
        bencher.iter(|| runtime.block_on(cache.get_or_compute(lookup(fresh()), |_| compute())));
    });
    group.throughput(Throughput::Elements(JOINED as u64));
    group.bench_function("single flight of 40", |bencher| {
        bencher.iter(|| {
            let (key, landing) = (fresh(), Arc::new(Notify::new()));
            let slow = || {
                let (landing, value) = (landing.clone(), value.clone());
                async move {
                    landing.notified().await;
                    Ok::<_, Infallible>(value)
                }
            };
            let lookups = (0..JOINED).map(|_| cache.get_or_compute(lookup(key), |_| slow()));
            runtime.block_on(async { join!(join_all(lookups), async { landing.notify_one() }) })
        });
    });
    group.finish();
}
