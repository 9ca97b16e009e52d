//! Every metric, its unit and its help text in one list.
//!
//! All series exist from the start, so that a rate over a counter's first step is not lost.

use std::sync::Arc;

use prometheus::{
    CounterVec, Encoder, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry, TextEncoder,
    core::{Atomic, GenericCounterVec},
};

use crate::domain::{ItemErrorKind, Modality};

/// The value of the label `route` for each route that is counted.
pub const ROUTES: [&str; 7] = ["embed", "health", "ready", "info", "metrics", "admin", "other"];
/// The values of the label `status`.
pub const STATUSES: [&str; 12] =
    ["200", "400", "401", "403", "404", "405", "413", "429", "500", "502", "503", "504"];
/// The values of the label `files`: what is read again when it changes.
pub const FILES: [&str; 2] = ["keys", "certificate"];
/// The values of the label `lane`.
pub const LANES: [&str; 2] = ["search", "bulk"];
/// The value of the label `lane` of a request that was answered before its inputs were counted, or has none.
pub const NO_LANE: &str = "none";
/// The values of the label `reason` of requests that were refused with 429 or 503: no room for its inputs, its key's
/// limit, the deadline, a body that crawled, no room for bodies, a model that is loading or lost, a stop or a loss while
/// it waited.
pub const REFUSALS: [&str; 7] =
    ["queue_full", "rate_limit", "deadline", "slow_body", "body_room", "not_ready", "stopped"];
/// The values of the label `kind` of what went wrong on a device: a batch that was too large for its memory, a device
/// that is gone, anything else.
pub const DEVICE_ERRORS: [&str; 3] = ["oom", "lost", "other"];
/// The values of the label `outcome` of fetches: downloaded, confirmed by a 304, known and fresh, shared with a download
/// under way, dead when last asked, failed.
pub const FETCH_OUTCOMES: [&str; 6] =
    ["ok", "not_modified", "fresh", "joined", "remembered_failure", "error"];
/// The values of the label `tier`, the nearest first.
pub const TIERS: [&str; 2] = ["memory", "redis"];
/// The values of the label `kind` of what went wrong with Redis.
pub const REDIS_ERRORS: [&str; 5] = ["timeout", "connection", "answer", "corrupt", "dropped"];
/// The values of the label `operation`.
const REDIS_OPERATIONS: [&str; 2] = ["get", "set"];

/// From 0.5 ms (a cached text) to the 30 s that Meilisearch waits.
const SECONDS: [f64; 16] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0];
/// Powers of two, as batches grow.
const SIZES: [f64; 9] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0];

/// Declares [`Metrics`]: the doc comment of each is its help text, too.
macro_rules! metrics {
    ($($(#[doc = $help:literal])+ $field:ident: $type:ty = $make:ident($id:literal $(, $more:expr)*);)+) => {
        /// The house's metrics. Cheap to clone.
        #[derive(Clone, Debug)]
        pub struct Metrics {
            registry: Registry,
            $($(#[doc = $help])+ pub $field: $type,)+
        }

        impl Metrics {
            fn register(registry: Registry) -> Self {
                Self { $($field: $make(&registry, $id, concat!($($help),+).trim() $(, $more)*),)+ registry }
            }
        }
    };
}

metrics! {
    /// Requests answered, by `route` and `status`.
    requests: IntCounterVec = counters("requests_total", &["route", "status"]);
    /// Seconds from a request's head to its answer, by `route` and `lane`: `search` for one input, `bulk` for more,
    /// `none` where they were not counted.
    request_seconds: HistogramVec = histograms("request_seconds", &["route", "lane"], &SECONDS);
    /// Requests answered 429 or 503, by `reason` and `lane`.
    refused_requests: IntCounterVec = counters("refused_requests_total", &["reason", "lane"]);
    /// Requests answered that came with a known key, by its name (`key`) and `status`.
    key_requests: IntCounterVec = counters("key_requests_total", &["key", "status"]);
    /// Changed files of keys and certificates, by `files` and `outcome`: `ok`, or `failed` where what held before still holds.
    reloads: IntCounterVec = counters("reloads_total", &["files", "outcome"]);
    /// 1 where the files are in force as they are on disk, 0 where their last change was refused, by `files`.
    last_reload_successful: IntGaugeVec = gauges("last_reload_successful", &["files"]);
    /// When the files that are in force were read, in seconds since 1970, by `files`; 0 where there are none.
    last_reload_success_timestamp: IntGaugeVec = gauges("last_reload_success_timestamp_seconds", &["files"]);
    /// Requests being answered.
    requests_in_flight: IntGauge = gauge("requests_in_flight");
    /// Items by `modality` (text, image) and `outcome` (`ok`, or the kind of the fault).
    items: IntCounterVec = counters("items_total", &["modality", "outcome"]);
    /// Inputs admitted and not yet answered.
    items_in_flight: IntGauge = gauge("items_in_flight");
    /// Inputs waiting in the batch queue, of both lanes.
    queue_depth: IntGauge = gauge("queue_depth");
    /// Seconds that an input waited in the batch queue, by `lane`: until its pass began, or in vain.
    queue_wait_seconds: HistogramVec = histograms("queue_wait_seconds", &["lane"], &SECONDS);
    /// Seconds of forward passes, counted for each of their inputs, by `lane`: 8 inputs in a pass of 1 s add 8. What a pass
    /// waited for those of other models counts too: with the sum of the waits these are the seconds that inputs spend here,
    /// and their rate is how many are here.
    input_compute_seconds: CounterVec = counters("input_compute_seconds_total", &["lane"]);
    /// Inputs of one forward pass, by `modality`.
    batch_size: HistogramVec = histograms("batch_size", &["modality"], &SIZES);
    /// The largest batch that fits into the device's memory, by `modality`: pictures, or tokens of texts with their
    /// padding. The smallest of all models and devices; 0 while none was too large.
    batch_size_cap: IntGaugeVec = gauges("batch_size_cap", &["modality"]);
    /// What went wrong on a device, by `kind`; each halving of a batch that did not fit is an `oom`.
    device_errors: IntCounterVec = counters("device_errors_total", &["kind"]);
    /// 1 for each model in service: its name (`model`), `fingerprint`, `dtype`, `device` and `dimensions`.
    model_info: IntGaugeVec = gauges("model_info", &["model", "fingerprint", "dtype", "device", "dimensions"]);
    /// Seconds of one forward pass, by `modality`, without what it waited for those of other models.
    inference_seconds: HistogramVec = histograms("inference_seconds", &["modality"], &SECONDS);
    /// Seconds to decode, resize and crop one picture.
    decode_seconds: Histogram = histogram("decode_seconds");
    /// Processes that decode AVIF and large lossless WebP, and did not answer for a picture: it ended them, the system did, or
    /// they got nothing done.
    decode_workers_lost: IntCounter = counter("decode_workers_lost_total");
    /// Seconds to fetch one picture that is not at hand, failed ones included.
    fetch_seconds: Histogram = histogram("fetch_seconds");
    /// Pictures asked for by http(s) address, by `outcome`.
    fetches: IntCounterVec = counters("fetches_total", &["outcome"]);
    /// Second attempts to download a picture, after a fault that passes.
    fetch_retries: IntCounter = counter("fetch_retries_total");
    /// Inputs found in the cache by `tier`; those joined to one in flight count as found in memory.
    cache_hits: IntCounterVec = counters("cache_hits_total", &["tier"]);
    /// Inputs that had to be computed.
    cache_misses: IntCounter = counter("cache_misses_total");
    /// Bytes held by the cache in memory.
    cache_bytes: IntGauge = gauge("cache_bytes");
    /// What went wrong with Redis, by `kind`: no answer in time, no connection, an answer that is an error, a value
    /// that cannot be used, a lookup for which there was no room in the queue, a value that was not written.
    redis_errors: IntCounterVec = counters("redis_errors_total", &["kind"]);
    /// Seconds of one MGET (`get`) or of one pipeline of SET (`set`), by `operation`.
    redis_seconds: HistogramVec = histograms("redis_seconds", &["operation"], &SECONDS);
    /// 1 while Redis is not asked, since it is not there or too slow, else 0.
    redis_breaker_open: IntGauge = gauge("redis_breaker_open");
    /// Texts that lost their end to the model's context length.
    truncated_texts: IntCounter = counter("truncated_texts_total");
    /// Items answered by the placeholder vector, by the `kind` of their failure.
    placeholder_vectors: IntCounterVec = counters("placeholder_vectors_total", &["kind"]);
    /// 1 once the model is warmed up, else 0.
    ready: IntGauge = gauge("ready");
}

impl Metrics {
    /// Registers every metric, all series at zero.
    pub fn new() -> Arc<Self> {
        let metrics = Self::register(Registry::new());
        metrics.touch_every_series();
        Arc::new(metrics)
    }

    fn touch_every_series(&self) {
        for lane in LANES.into_iter().chain([NO_LANE]) {
            self.request_seconds.with_label_values(&["embed", lane]);
            REFUSALS.iter().for_each(|reason| _ = self.refused_requests.with_label_values(&[*reason, lane]));
        }
        for route in ROUTES {
            self.request_seconds.with_label_values(&[route, NO_LANE]);
            for status in STATUSES {
                self.requests.with_label_values(&[route, status]);
            }
        }
        for files in FILES {
            self.last_reload_successful.with_label_values(&[files]).set(1);
            self.last_reload_success_timestamp.with_label_values(&[files]);
        }
        for (files, outcome) in FILES.into_iter().flat_map(|files| [(files, "ok"), (files, "failed")]) {
            self.reloads.with_label_values(&[files, outcome]);
        }
        for modality in Modality::ALL {
            let modality = modality.as_str();
            self.batch_size.with_label_values(&[modality]);
            self.batch_size_cap.with_label_values(&[modality]);
            self.inference_seconds.with_label_values(&[modality]);
            for outcome in ItemErrorKind::ALL.map(ItemErrorKind::as_str).into_iter().chain(["ok"]) {
                self.items.with_label_values(&[modality, outcome]);
            }
        }
        for outcome in FETCH_OUTCOMES {
            self.fetches.with_label_values(&[outcome]);
        }
        TIERS.iter().for_each(|tier| _ = self.cache_hits.with_label_values(&[tier]));
        REDIS_ERRORS.iter().for_each(|kind| _ = self.redis_errors.with_label_values(&[kind]));
        REDIS_OPERATIONS.iter().for_each(|operation| _ = self.redis_seconds.with_label_values(&[operation]));
        for lane in LANES {
            self.queue_wait_seconds.with_label_values(&[lane]);
            self.input_compute_seconds.with_label_values(&[lane]);
        }
        DEVICE_ERRORS.iter().for_each(|kind| _ = self.device_errors.with_label_values(&[kind]));
        for kind in ItemErrorKind::ALL {
            self.placeholder_vectors.with_label_values(&[kind.as_str()]);
        }
    }

    /// Makes the series of a key that is known from now on.
    pub fn touch_key(&self, name: &str) {
        for status in STATUSES {
            self.key_requests.with_label_values(&[name, status]);
        }
    }

    /// The metrics in Prometheus text format.
    pub fn render(&self) -> String {
        let mut out = Vec::new();
        TextEncoder::new()
            .encode(&self.registry.gather(), &mut out)
            .expect("writing to memory cannot fail, and every family has a name");
        String::from_utf8(out).expect("names, labels and numbers are UTF-8")
    }
}

fn name(name: &str) -> String {
    format!("sidelens_{name}")
}

fn registered<C: prometheus::core::Collector + Clone + 'static>(
    registry: &Registry,
    metric: prometheus::Result<C>,
) -> C {
    let metric = metric.expect("names and labels are constants of the right form");
    registry.register(Box::new(metric.clone())).expect("each name is registered once");
    metric
}

fn counter(registry: &Registry, id: &str, help: &str) -> IntCounter {
    registered(registry, IntCounter::with_opts(Opts::new(name(id), help)))
}

/// Of whole numbers, or of seconds.
fn counters<P: Atomic + 'static>(
    registry: &Registry,
    id: &str,
    help: &str,
    labels: &[&str],
) -> GenericCounterVec<P> {
    registered(registry, GenericCounterVec::new(Opts::new(name(id), help), labels))
}

fn gauge(registry: &Registry, id: &str, help: &str) -> IntGauge {
    registered(registry, IntGauge::with_opts(Opts::new(name(id), help)))
}

fn gauges(registry: &Registry, id: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
    registered(registry, IntGaugeVec::new(Opts::new(name(id), help), labels))
}

fn histogram(registry: &Registry, id: &str, help: &str) -> Histogram {
    registered(registry, Histogram::with_opts(HistogramOpts::new(name(id), help).buckets(SECONDS.to_vec())))
}

fn histograms(registry: &Registry, id: &str, help: &str, labels: &[&str], buckets: &[f64]) -> HistogramVec {
    registered(
        registry,
        HistogramVec::new(HistogramOpts::new(name(id), help).buckets(buckets.to_vec()), labels),
    )
}
