//! The spans of a part in the trace of its request.

use tracing::{Span, field::Empty};

use super::pipeline::PartError;
use crate::domain::{Content, Modality, Part};
use crate::telemetry::traces::trace_span;

/// Around all that happens to one part of the input with this index.
pub(super) fn part_span(index: usize, part: &Part) -> Span {
    let modality = match part.content {
        Content::Text(_) => Modality::Text,
        Content::Image(_) => Modality::Image,
    };
    trace_span!(
        "part",
        otel.name = modality.as_str(),
        otel.status_code = Empty,
        error.r#type = Empty,
        sidelens.index = index,
        sidelens.cache = Empty,
    )
}

/// Marks the current span. What fails the request shows in the request's own status.
pub(super) fn mark_failed(error: &PartError) {
    let span = Span::current();
    span.record("otel.status_code", "error");
    if let PartError::Item(kind, _) = error {
        span.record("error.type", kind.as_str());
    }
}
