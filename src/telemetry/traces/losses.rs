//! Tells of spans that the collector did not take, once a minute.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{SpanData, SpanExporter};

/// From one warning to the next.
const PAUSE: Duration = Duration::from_secs(60);

/// An exporter whose failures are logged.
#[derive(Debug)]
pub(super) struct Told<E> {
    exporter: E,
    losses: Mutex<Losses>,
}

#[derive(Debug, Default)]
struct Losses {
    n_spans: usize,
    told_at: Option<Instant>,
}

impl<E> Told<E> {
    pub fn new(exporter: E) -> Self {
        Self { exporter, losses: Mutex::default() }
    }
}

impl Losses {
    /// How many spans to tell of, if it is time to.
    fn add(&mut self, n_spans: usize, now: Instant) -> Option<usize> {
        self.n_spans += n_spans;
        if self.told_at.is_some_and(|told_at| now < told_at + PAUSE) {
            return None;
        }
        self.told_at = Some(now);
        Some(std::mem::take(&mut self.n_spans))
    }
}

impl<E: SpanExporter> SpanExporter for Told<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let n_spans = batch.len();
        let result = self.exporter.export(batch).await;
        if let Err(error) = &result {
            let mut losses = self.losses.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(n_spans) = losses.add(n_spans, Instant::now()) {
                tracing::warn!(%error, n_spans, "the collector did not take traces; the level debug says why");
            }
        }
        result
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_warning_a_minute_counts_all() {
        let start = Instant::now();
        let mut losses = Losses::default();
        let mut at = |s| losses.add(10, start + Duration::from_secs(s));
        assert_eq!([at(0), at(1), at(59), at(60), at(61)], [Some(10), None, None, Some(30), None]);
    }
}
