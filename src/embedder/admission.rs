//! Who may come in: requests are admitted whole or refused at the door, before any work is done for them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::batch::{BulkRequest, CpuShare};
use crate::domain::{EmbedError, Lane};
use crate::telemetry::Metrics;

/// Room kept for searches above the limit for bulk, at least.
const MIN_SEARCH_RESERVE: usize = 64;

/// Counts the inputs in the house, each part of an input as one.
pub(super) struct Admission {
    in_house: AtomicUsize,
    limit: usize,
    search_reserve: usize,
    share: Arc<CpuShare>,
    metrics: Arc<Metrics>,
}

/// Holds the place of a request's inputs until dropped.
pub(super) struct Admitted {
    admission: Arc<Admission>,
    n_inputs: usize,
    _bulk: Option<BulkRequest>,
}

impl Admission {
    /// `limit` is `batch.max_queue_items`; `share` is told of bulk.
    pub fn new(limit: usize, share: Arc<CpuShare>, metrics: Arc<Metrics>) -> Self {
        let search_reserve = (limit / 8).max(MIN_SEARCH_RESERVE);
        Self { in_house: AtomicUsize::new(0), limit, search_reserve, share, metrics }
    }

    /// Lets `n_inputs` in, all or none.
    ///
    /// # Errors
    /// [`EmbedError::InvalidRequest`] for a request that could never be let in, and
    /// [`EmbedError::QueueFull`] for one that could be later.
    pub fn admit(self: &Arc<Self>, n_inputs: usize, lane: Lane) -> Result<Admitted, EmbedError> {
        let limit = match lane {
            Lane::Bulk => self.limit,
            Lane::Search => self.limit + self.search_reserve,
        };
        if n_inputs > limit {
            return Err(EmbedError::InvalidRequest(format!(
                "the request has {n_inputs} inputs, `batch.max_queue_items` is {}; send fewer at once",
                self.limit
            )));
        }
        self.in_house
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |in_house| {
                in_house.checked_add(n_inputs).filter(|sum| *sum <= limit)
            })
            .map_err(|waiting| EmbedError::QueueFull { waiting, limit: self.limit })?;
        self.metrics.items_in_flight.add(n_inputs as i64);
        let bulk = (lane == Lane::Bulk).then(|| self.share.bulk_comes());
        Ok(Admitted { admission: self.clone(), n_inputs, _bulk: bulk })
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.admission.in_house.fetch_sub(self.n_inputs, Ordering::AcqRel);
        self.admission.metrics.items_in_flight.sub(self.n_inputs as i64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_admitted_whole_and_searches_keep_a_reserve() {
        let metrics = Metrics::new();
        let admission = Arc::new(Admission::new(16, Arc::default(), metrics.clone()));
        let first = admission.admit(10, Lane::Bulk).unwrap();
        let refused = admission.admit(10, Lane::Bulk).err();
        assert_eq!(refused, Some(EmbedError::QueueFull { waiting: 10, limit: 16 }));
        let _second = admission.admit(6, Lane::Bulk).unwrap();
        let searches: Vec<_> =
            std::iter::from_fn(|| admission.admit(1, Lane::Search).ok()).take(100).collect();
        assert_eq!(searches.len(), MIN_SEARCH_RESERVE);
        drop(searches);
        assert!(admission.admit(1, Lane::Bulk).is_err());
        drop(first);
        assert_eq!(metrics.items_in_flight.get(), 6);
        assert!(admission.admit(10, Lane::Bulk).is_ok());
    }

    #[test]
    fn searches_are_told_of_bulk_while_it_is_in() {
        let share = Arc::new(CpuShare::default());
        let admission = Arc::new(Admission::new(16, share.clone(), Metrics::new()));
        let _search = admission.admit(1, Lane::Search).unwrap();
        assert!(!share.is_bulk_here());
        let bulk = admission.admit(2, Lane::Bulk).unwrap();
        assert!(share.is_bulk_here());
        assert!(admission.admit(17, Lane::Bulk).is_err());
        drop(bulk);
        assert!(!share.is_bulk_here());
    }

    #[test]
    fn a_request_that_never_fits_is_told_so() {
        let admission = Arc::new(Admission::new(16, Arc::default(), Metrics::new()));
        assert!(matches!(admission.admit(17, Lane::Bulk), Err(EmbedError::InvalidRequest(_))));
    }
}
