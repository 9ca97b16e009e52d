//! How much of the CPU searches may take while bulk is in the house.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

/// The part of the time that searches are computed, at most, where they never end. What they leave is bulk's, which
/// steps back behind them: the kernel alone would let it starve.
const SEARCHES: f64 = 0.75;

/// So much is computed at once before that counts: a picture's pass, or a dozen searches that come together, are no load.
const BURST: Duration = Duration::from_millis(500);

/// What the engines of all models that compute searches alone have had of the CPU, beside the bulk that waits for it.
#[derive(Debug, Default)]
pub struct CpuShare {
    bulk_requests: AtomicUsize,
    searches: Mutex<Spent>,
}

/// A leaky bucket.
#[derive(Debug, Default)]
struct Spent {
    /// What was computed, less what has been allowed for until `leaked_at`.
    level: Duration,
    leaked_at: Option<Instant>,
    /// What was computed before is in the level.
    counted_to: Option<Instant>,
}

/// One request of bulk that is in the house, until dropped.
#[derive(Debug)]
pub struct BulkRequest(Arc<CpuShare>);

impl CpuShare {
    /// A request of bulk comes in.
    pub fn bulk_comes(self: &Arc<Self>) -> BulkRequest {
        self.bulk_requests.fetch_add(1, Ordering::Relaxed);
        BulkRequest(self.clone())
    }

    /// Whether a request of bulk is in the house.
    pub fn is_bulk_here(&self) -> bool {
        self.bulk_requests.load(Ordering::Relaxed) > 0
    }

    /// When the next search may be computed: none for at once.
    pub(super) fn searches_rest_until(&self, now: Instant) -> Option<Instant> {
        if !self.is_bulk_here() {
            return None;
        }
        let mut searches = self.searches.lock().unwrap_or_else(PoisonError::into_inner);
        searches.leak(now);
        let excess = searches.level.saturating_sub(BURST);
        (!excess.is_zero()).then(|| now + excess.div_f64(SEARCHES))
    }

    /// Searches were computed from `start` to `end`. Where models take turns, one has waited for the other meanwhile:
    /// no time counts twice.
    pub(super) fn spend(&self, start: Instant, end: Instant) {
        let mut searches = self.searches.lock().unwrap_or_else(PoisonError::into_inner);
        searches.leak(end);
        let start = searches.counted_to.map_or(start, |to| to.max(start));
        searches.level += end.saturating_duration_since(start);
        searches.counted_to = searches.counted_to.max(Some(end));
        if !self.is_bulk_here() {
            // It took nothing from anybody, so there is nothing to make good for when bulk comes.
            searches.level = searches.level.min(BURST);
        }
    }
}

impl Spent {
    fn leak(&mut self, now: Instant) {
        let since = self.leaked_at.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        self.level = self.level.saturating_sub(since.mul_f64(SEARCHES));
        self.leaked_at = self.leaked_at.max(Some(now));
    }
}

impl Drop for BulkRequest {
    fn drop(&mut self) {
        self.0.bulk_requests.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASS: Duration = Duration::from_millis(100);

    /// The part of ten seconds in which searches are computed, pass after pass, by one engine after another.
    fn part_of_ten_seconds(share: &CpuShare) -> f64 {
        let start = Instant::now();
        let (mut now, mut computed) = (start, Duration::ZERO);
        while now < start + Duration::from_secs(10) {
            if let Some(rested) = share.searches_rest_until(now) {
                assert!(
                    rested > now && rested < now + PASS,
                    "the rest is for what the last pass was too long"
                );
                now = rested;
            }
            share.spend(now, now + PASS);
            now += PASS;
            computed += PASS;
        }
        computed.as_secs_f64() / 10.0
    }

    #[test]
    fn searches_leave_a_quarter_to_bulk() {
        let share = Arc::new(CpuShare::default());
        let bulk = share.bulk_comes();
        let part = part_of_ten_seconds(&share);
        assert!((0.75..0.85).contains(&part), "{part}");
        drop(bulk);
    }

    #[test]
    fn searches_have_all_where_no_bulk_is_and_make_good_for_nothing() {
        let share = Arc::new(CpuShare::default());
        drop(share.bulk_comes());
        assert!(part_of_ten_seconds(&share) >= 1.0);
        let _bulk = share.bulk_comes();
        assert_eq!(share.searches_rest_until(Instant::now() + PASS), None);
    }

    #[test]
    fn a_burst_of_searches_waits_for_nothing() {
        let share = Arc::new(CpuShare::default());
        let _bulk = share.bulk_comes();
        let start = Instant::now();
        share.spend(start, start + BURST);
        let burst_ends = start + BURST;
        assert_eq!(share.searches_rest_until(burst_ends), None);
        let more_ends = burst_ends + PASS * 3;
        share.spend(burst_ends, more_ends);
        // Three quarters of the time were theirs; the last quarter has to pass for that.
        assert_eq!(share.searches_rest_until(more_ends), Some(more_ends + PASS));
        assert_eq!(share.searches_rest_until(more_ends + PASS), None);
    }

    #[test]
    fn time_that_models_share_counts_once() {
        let share = Arc::new(CpuShare::default());
        let _bulk = share.bulk_comes();
        let start = Instant::now();
        share.spend(start, start + BURST);
        assert_eq!(share.searches_rest_until(start + BURST), None);
        share.spend(start, start + BURST);
        assert_eq!(share.searches_rest_until(start + BURST), None);
    }
}
