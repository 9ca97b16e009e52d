//! What was answered in one lane, and how fast.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use serde::Serialize;

use super::Failure;

/// Answers so far.
#[derive(Debug, Default)]
pub(super) struct Tally {
    latencies: Vec<Duration>,
    n_inputs: u64,
    errors: BTreeMap<String, Errors>,
    /// When the latest good answer came.
    pub last_answer: Option<Instant>,
}

/// Failures of one kind.
#[derive(Debug, Clone, Serialize)]
pub struct Errors {
    /// How many.
    pub n: u64,
    /// The first of them in words.
    pub first: String,
}

impl Tally {
    /// Notes the outcome of a request of `n_inputs` that was due at `due`.
    pub fn note(&mut self, due: Instant, n_inputs: usize, outcome: Result<(), Failure>) {
        match outcome {
            Ok(()) => {
                let now = Instant::now();
                self.latencies.push(now - due);
                self.n_inputs += n_inputs as u64;
                self.last_answer = Some(now);
            }
            Err(failure) => {
                let first = || Errors { n: 0, first: failure.to_string() };
                self.errors.entry(failure.kind()).or_insert_with(first).n += 1;
            }
        }
    }

    /// Takes in what another noted.
    pub fn merge(&mut self, other: Self) {
        self.latencies.extend(other.latencies);
        self.n_inputs += other.n_inputs;
        self.last_answer = self.last_answer.max(other.last_answer);
        for (kind, errors) in other.errors {
            self.errors.entry(kind).or_insert(Errors { n: 0, first: errors.first }).n += errors.n;
        }
    }

    pub fn report(mut self) -> LaneReport {
        self.latencies.sort_unstable();
        let rank = |share| percentile(&self.latencies, share).map(|latency| latency.as_secs_f64() * 1000.0);
        LaneReport {
            n: self.latencies.len(),
            n_inputs: self.n_inputs,
            p50_ms: rank(0.5),
            p95_ms: rank(0.95),
            p99_ms: rank(0.99),
            max_ms: rank(1.0),
            errors: self.errors,
        }
    }
}

/// The smallest latency that `share` of all do not exceed.
fn percentile(sorted: &[Duration], share: f64) -> Option<Duration> {
    let rank = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied()
}

/// One lane's answers. Latencies are those of good answers; they are `null` where there was none.
#[derive(Debug, Clone, Serialize)]
pub struct LaneReport {
    /// Requests answered.
    pub n: usize,
    /// Inputs of these.
    pub n_inputs: u64,
    /// Half of the answers took no longer, in milliseconds.
    pub p50_ms: Option<f64>,
    /// 95 of 100.
    pub p95_ms: Option<f64>,
    /// 99 of 100.
    pub p99_ms: Option<f64>,
    /// None took longer.
    pub max_ms: Option<f64>,
    /// Requests that failed, by [`Failure::kind`].
    pub errors: BTreeMap<String, Errors>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn percentiles_are_latencies_that_were_seen() {
        let sorted: Vec<_> = (1..=200).map(ms).collect();
        for (share, expected) in [(0.5, 100), (0.95, 190), (0.99, 198), (1.0, 200)] {
            assert_eq!(percentile(&sorted, share), Some(ms(expected)));
        }
        assert_eq!(percentile(&[ms(7)], 0.5), Some(ms(7)));
        assert_eq!(percentile(&[], 0.5), None);
    }

    #[test]
    fn failures_are_counted_by_kind_and_have_no_latency() {
        let mut tallies = [(); 2].map(|()| Tally::default());
        for tally in &mut tallies {
            tally.note(Instant::now(), 10, Ok(()));
            tally.note(Instant::now(), 10, Err(Failure::Status { status: 503, body: "full".into() }));
            tally.note(Instant::now(), 10, Err(Failure::Timeout));
        }
        let [mut all, other] = tallies;
        all.merge(other);
        let report = all.report();
        assert_eq!((report.n, report.n_inputs), (2, 20));
        let errors: Vec<_> = report.errors.iter().map(|(kind, errors)| (kind.as_str(), errors.n)).collect();
        assert_eq!(errors, [("503", 2), ("timeout", 2)]);
        assert_eq!(report.errors["503"].first, "503: full");
    }
}
