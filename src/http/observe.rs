//! What every request leaves behind: a span with its id, the id in the answer, metrics, and a trace.

use std::{sync::Arc, time::Instant};

use actix_web::{
    Error, HttpMessage,
    body::MessageBody,
    dev::{ServiceRequest, ServiceResponse},
    http::{
        StatusCode,
        header::{HeaderName, HeaderValue},
    },
    middleware::Next,
    web,
};
use prometheus::IntGauge;
use tracing::{Instrument, Span, field::Empty};
use tracing_actix_web::{RequestId, RootSpanBuilder};

use super::{HttpState, auth::Caller, error::Refusal};
use crate::{
    dialect::DIALECTS,
    domain::Lane,
    telemetry::{
        metrics::{NO_LANE, STATUSES},
        traces::{self, trace_span},
    },
};

/// The header that carries the request's id back.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Counts and times a request, and names it in its answer.
pub(super) async fn observe(
    request: ServiceRequest,
    next: Next<impl MessageBody>,
) -> Result<ServiceResponse<impl MessageBody>, Error> {
    let state = request.app_data::<web::Data<HttpState>>().cloned();
    let id = request.extensions().get::<RequestId>().map(ToString::to_string);
    let route = route_label(request.path());
    let started = Instant::now();
    let _in_flight = state.as_ref().map(|state| InFlight::new(&state.metrics.requests_in_flight));

    let trace = if route == "embed" { begin_trace(&request, id.as_deref()) } else { Span::none() };
    let response = next.call(request).instrument(trace.clone()).await;
    end_trace(&trace, &response);
    let mut response = response?;

    if let Some(value) = id.and_then(|id| HeaderValue::try_from(id).ok()) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    if let Some(state) = state {
        let status = status_label(response.status());
        state.metrics.requests.with_label_values(&[route, status]).inc();
        if let Some(caller) = response.request().extensions().get::<Arc<Caller>>()
            && let Some(key) = &caller.key
        {
            state.metrics.key_requests.with_label_values(&[key, status]).inc();
        }
        let lane = response.request().extensions().get::<Lane>().map_or(NO_LANE, |lane| lane.as_str());
        let seconds = state.metrics.request_seconds.with_label_values(&[route, lane]);
        seconds.observe(started.elapsed().as_secs_f64());
        if let Some(Refusal(reason)) = response.response().extensions().get() {
            state.metrics.refused_requests.with_label_values(&[*reason, lane]).inc();
        }
    }
    Ok(response)
}

/// The span around an embedding request, below the caller's if it sent one. Where it is recorded, the log names its trace.
fn begin_trace(request: &ServiceRequest, id: Option<&str>) -> Span {
    let span = trace_span!(
        "request",
        otel.name = Empty,
        otel.kind = "server",
        otel.status_code = Empty,
        http.request.method = request.method().as_str(),
        http.route = Empty,
        http.response.status_code = Empty,
        sidelens.request_id = id,
        sidelens.model = Empty,
        sidelens.lane = Empty,
        sidelens.inputs = Empty,
    );
    if span.is_disabled() {
        return span;
    }
    let route = request.match_pattern();
    let route = route.as_deref().unwrap_or("other");
    span.record("otel.name", format!("{} {route}", request.method())).record("http.route", route);
    let header = |name: &str| request.headers().get(name).and_then(|value| value.to_str().ok());
    if let Some(id) = traces::join(&span, header("traceparent"), header("tracestate")) {
        Span::current().record("trace_id", id);
    }
    span
}

fn end_trace<B>(span: &Span, outcome: &Result<ServiceResponse<B>, Error>) {
    if span.is_disabled() {
        return;
    }
    let status = status_of(outcome);
    span.record("http.response.status_code", status.as_u16());
    if status.is_server_error() {
        span.record("otel.status_code", "error");
    }
}

fn status_of<B>(outcome: &Result<ServiceResponse<B>, Error>) -> StatusCode {
    match outcome {
        Ok(response) => response.status(),
        Err(error) => error.as_response_error().status_code(),
    }
}

/// Counts a request for as long as it lives, also when it is dropped half-way.
struct InFlight(IntGauge);

impl InFlight {
    fn new(gauge: &IntGauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// The label of a path; unknown ones share `other`, so that a scanner cannot grow the metrics.
fn route_label(path: &str) -> &'static str {
    let path = match path.trim_end_matches('/') {
        "" => "/",
        path => path,
    };
    match path {
        "/health" => "health",
        "/ready" => "ready",
        "/info" | "/v1/models" => "info",
        "/metrics" => "metrics",
        path if path == "/admin" || path.starts_with("/admin/") => "admin",
        path if is_route(path) => "embed",
        path if path.starts_with("/models/") && path.ends_with("/info") => "info",
        path if path.starts_with("/models/") && is_below_model(path) => "embed",
        _ => "other",
    }
}

fn is_route(path: &str) -> bool {
    DIALECTS.iter().any(|dialect| dialect.routes().contains(&path))
}

fn is_below_model(path: &str) -> bool {
    DIALECTS.iter().flat_map(|dialect| dialect.routes()).any(|route| *route != "/" && path.ends_with(route))
}

/// The label of a status: its code, or where that has no series the plainest code of its class.
fn status_label(status: StatusCode) -> &'static str {
    let listed = STATUSES.into_iter().find(|label| *label == status.as_str());
    listed.unwrap_or(match status.as_u16() / 100 {
        2 => "200",
        4 => "400",
        _ => "500",
    })
}

/// The span around a request. At the level `error`, so that even the tersest log names the request.
pub(super) struct RequestSpan;

impl RootSpanBuilder for RequestSpan {
    fn on_request_start(request: &ServiceRequest) -> Span {
        let id = request.extensions().get::<RequestId>().copied();
        let id = id.map(|id| id.to_string());
        tracing::error_span!(
            "request",
            id = id.as_deref(),
            method = %request.method(),
            // Without the query: nobody knows what is in there.
            path = request.path(),
            key = Empty,
            status = Empty,
            trace_id = Empty,
        )
    }

    fn on_request_end<B: MessageBody>(span: Span, outcome: &Result<ServiceResponse<B>, Error>) {
        span.record("status", status_of(outcome).as_u16());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::metrics::ROUTES;

    #[test]
    fn labels_are_those_of_the_metrics() {
        for (path, expected) in [
            ("/", "embed"),
            ("/embed", "embed"),
            ("/v1/embeddings/", "embed"),
            ("/tei/embed", "embed"),
            ("/models/org/clip/embed", "embed"),
            ("/models/org/clip/info", "info"),
            ("/models/org/clip", "other"),
            ("/v1/models", "info"),
            ("/health/", "health"),
            ("/metrics", "metrics"),
            ("/admin/keys/", "admin"),
            ("/administrator", "other"),
            ("/embed/more", "other"),
            ("/.env", "other"),
        ] {
            assert_eq!(route_label(path), expected, "{path}");
            assert!(ROUTES.contains(&expected));
        }
        for (status, expected) in [(200, "200"), (204, "200"), (413, "413"), (418, "400"), (599, "500")] {
            assert_eq!(status_label(StatusCode::from_u16(status).unwrap()), expected);
        }
    }
}
