//! Traces of requests, sent by OTLP; off unless `traces.endpoint` is set.
//!
//! A room opens a span with `trace_span!` and adds what it learns on the way by `Span::current().record(..)`. These spans
//! have a target of their own, `TARGET`: no log shows them, and what is logged goes into no trace, so that either can be
//! switched without the other. While traces are off a span is a look at a flag.
//!
//! Spans hold names, sizes, kinds of faults and hosts; never what is embedded, nor the rest of an address.

mod collector;
mod losses;

use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::propagation::{Extractor, TextMapPropagator};
use opentelemetry::trace::{Link, SpanKind, TraceContextExt, TraceId, TracerProvider};
use opentelemetry_otlp::{ExporterBuildError, Protocol, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, Sampler, SamplingResult, SdkTracerProvider, ShouldSample,
};
use tracing::level_filters::LevelFilter;
use tracing::{Span, Subscriber};
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::{Layer, filter::Targets, registry::LookupSpan};

pub use collector::CollectorError;

use self::{collector::Collector, losses::Told};
use crate::config::TracesConfig;

/// The target of all that is traced.
pub(crate) const TARGET: &str = "sidelens::traces";

/// Spans that wait for the collector, about half a kilobyte each; more are dropped.
const MAX_QUEUED_SPANS: usize = 8192;
/// Spans of one export.
const MAX_EXPORTED_SPANS: usize = 512;
/// How long a span waits for others.
const EXPORT_DELAY: Duration = Duration::from_secs(2);
/// What a stop spends on the last spans.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(2);

/// A span of the trace, written as for `tracing::info_span!`.
macro_rules! trace_span {
    ($($arguments:tt)+) => {
        tracing::info_span!(target: $crate::telemetry::traces::TARGET, $($arguments)+)
    };
}
/// A span below another than the current one.
macro_rules! trace_span_below {
    ($parent:expr, $($arguments:tt)+) => {
        tracing::info_span!(target: $crate::telemetry::traces::TARGET, parent: $parent, $($arguments)+)
    };
}
pub(crate) use {trace_span, trace_span_below};

/// Why there are no traces.
#[derive(Debug, thiserror::Error)]
pub enum TracesError {
    /// The collector cannot be reached as the settings say.
    #[error(transparent)]
    Collector(#[from] CollectorError),
    /// The exporter refuses its settings.
    #[error("`traces.endpoint` {endpoint} cannot be used: {source}")]
    Exporter {
        /// What the setting says.
        endpoint: String,
        /// What is wrong with it.
        source: ExporterBuildError,
    },
}

/// The way of spans to the collector: a bounded queue, and a thread that empties it. Nothing waits for either.
#[derive(Debug)]
pub struct Traces(SdkTracerProvider);

impl Traces {
    /// Starts the thread, where traces are on; reaches no collector yet.
    ///
    /// # Errors
    /// [`TracesError`].
    pub fn start(config: &TracesConfig) -> Result<Option<Self>, TracesError> {
        if !config.are_on() {
            return Ok(None);
        }
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(Collector::new(config)?)
            .with_endpoint(format!("{}/v1/traces", config.endpoint.trim_end_matches('/')))
            .with_protocol(Protocol::HttpBinary)
            .with_timeout(Duration::from_millis(config.timeout_ms))
            .build()
            .map_err(|source| TracesError::Exporter { endpoint: config.endpoint.clone(), source })?;
        let batches = BatchConfigBuilder::default()
            .with_max_queue_size(MAX_QUEUED_SPANS)
            .with_max_export_batch_size(MAX_EXPORTED_SPANS)
            .with_scheduled_delay(EXPORT_DELAY)
            .build();
        let resource = Resource::builder()
            .with_service_name(config.service_name.clone())
            .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
            .build();
        let requests = Requests(Sampler::TraceIdRatioBased(config.sample_ratio));
        let provider = SdkTracerProvider::builder()
            .with_span_processor(
                BatchSpanProcessor::builder(Told::new(exporter)).with_batch_config(batches).build(),
            )
            .with_sampler(Sampler::ParentBased(Box::new(requests)))
            .with_resource(resource)
            .build();
        Ok(Some(Self(provider)))
    }

    /// What takes the spans of `TARGET` out of `tracing`.
    pub(super) fn layer<S>(&self) -> impl Layer<S> + use<S>
    where
        S: Subscriber + for<'span> LookupSpan<'span>,
    {
        tracing_opentelemetry::layer()
            .with_tracer(self.0.tracer("sidelens"))
            // Parents are found by `tracing`: nobody else here asks OpenTelemetry where it is.
            .with_context_activation(false)
            .with_tracked_inactivity(false)
            .with_location(false)
            .with_threads(false)
            .with_target(false)
            .with_filter(Targets::new().with_target(TARGET, LevelFilter::INFO))
    }

    /// Sends the last spans, for up to two seconds.
    pub fn shut_down(self) {
        if let Err(error) = self.0.shutdown_with_timeout(SHUTDOWN_TIMEOUT) {
            tracing::warn!(%error, "the last traces were lost");
        }
    }
}

/// Makes the span that the W3C headers of a request name the parent of `span`. Returns the id of the trace, if it is
/// recorded.
pub fn join(span: &Span, traceparent: Option<&str>, tracestate: Option<&str>) -> Option<String> {
    let caller = TraceContextPropagator::new().extract(&Headers { traceparent, tracestate });
    // Refused where traces are off or the span has begun; then it goes without a parent.
    let _ = span.set_parent(caller);
    let context = span.context();
    let span = context.span();
    let trace = span.span_context();
    trace.is_sampled().then(|| trace.trace_id().to_string())
}

struct Headers<'a> {
    traceparent: Option<&'a str>,
    tracestate: Option<&'a str>,
}

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        match key {
            "traceparent" => self.traceparent,
            "tracestate" => self.tracestate,
            _ => None,
        }
    }

    fn keys(&self) -> Vec<&str> {
        vec!["traceparent", "tracestate"]
    }
}

/// Begins traces at requests only: what the house does on its own account, such as warming up, is nobody's.
#[derive(Debug, Clone)]
struct Requests(Sampler);

impl ShouldSample for Requests {
    fn should_sample(
        &self,
        parent: Option<&opentelemetry::Context>,
        trace: TraceId,
        name: &str,
        kind: &SpanKind,
        attributes: &[KeyValue],
        links: &[Link],
    ) -> SamplingResult {
        let sampler = if *kind == SpanKind::Server { &self.0 } else { &Sampler::AlwaysOff };
        sampler.should_sample(parent, trace, name, kind, attributes, links)
    }
}
