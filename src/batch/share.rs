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

/// For so long searches are computed without a rest before that counts: some pictures' passes, or dozens of searches that
/// come together, are no load.
const BURST: Duration = Duration::from_secs(1);

/// No rest is longer, whatever was computed before: somebody waits for the search behind it.
const MAX_REST: Duration = Duration::from_millis(500);

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
        let excess = searches.level.saturating_sub(allowed());
        (!excess.is_zero()).then(|| now + excess.div_f64(SEARCHES))
    }

    /// Searches were computed from `start` to `end`. Where models take turns, one has waited for the other meanwhile:
    /// no time counts twice.
    pub(super) fn spend(&self, start: Instant, end: Instant) {
        let mut searches = self.searches.lock().unwrap_or_else(PoisonError::into_inner);
        let start = searches.counted_to.map_or(start, |to| to.max(start));
        // What is allowed for while they are computed must not be lost before they count.
        searches.leak(start);
        searches.level += end.saturating_duration_since(start);
        searches.leak(end);
        searches.counted_to = searches.counted_to.max(Some(end));
        let most = match self.is_bulk_here() {
            true => allowed() + MAX_REST.mul_f64(SEARCHES),
            // It took nothing from anybody, so there is nothing to make good for when bulk comes.
            false => allowed(),
        };
        searches.level = searches.level.min(most);
    }
}

/// The level after a [`BURST`].
fn allowed() -> Duration {
    BURST.mul_f64(1.0 - SEARCHES)
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

    /// The part of a hundred seconds in which searches are computed, each pass so long, and the longest rest.
    fn part_and_rest(share: &CpuShare, pass: Duration) -> (f64, Duration) {
        let start = Instant::now();
        let (mut now, mut computed, mut longest) = (start, Duration::ZERO, Duration::ZERO);
        while now < start + Duration::from_secs(100) {
            if let Some(rested) = share.searches_rest_until(now) {
                longest = longest.max(rested - now);
                now = rested;
            }
            share.spend(now, now + pass);
            now += pass;
            computed += pass;
        }
        (computed.as_secs_f64() / (now - start).as_secs_f64(), longest)
    }

    #[test]
    fn searches_leave_a_quarter_to_bulk_however_long_their_passes_are() {
        for pass_ms in [10, 100, 500, 900, 1200] {
            let share = Arc::new(CpuShare::default());
            let _bulk = share.bulk_comes();
            let pass = Duration::from_millis(pass_ms);
            let (part, rest) = part_and_rest(&share, pass);
            assert!((0.745..0.765).contains(&part), "{pass:?}: {part}");
            assert!(rest <= (pass / 3).max(Duration::from_millis(400)) + PASS / 100, "{pass:?}: {rest:?}");
        }
    }

    #[test]
    fn a_search_waits_for_half_a_second_at_most() {
        let share = Arc::new(CpuShare::default());
        let _bulk = share.bulk_comes();
        let (part, rest) = part_and_rest(&share, Duration::from_secs(5));
        assert!(part > 0.9 && rest <= MAX_REST, "{part}, {rest:?}");
    }

    #[test]
    fn searches_have_all_where_no_bulk_is_and_make_good_for_nothing() {
        let share = Arc::new(CpuShare::default());
        drop(share.bulk_comes());
        assert_eq!(part_and_rest(&share, PASS), (1.0, Duration::ZERO));
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
