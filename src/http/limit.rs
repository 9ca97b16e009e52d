//! How much a key may ask for.

use std::num::NonZeroU32;

use governor::{DefaultDirectRateLimiter, Quota};

use super::HttpError;
use crate::config::{AuthConfig, NamedKey};

/// Inputs per second, with a burst.
#[derive(Debug)]
pub(super) struct Limit {
    inputs: DefaultDirectRateLimiter,
    per_s: NonZeroU32,
    burst: NonZeroU32,
}

impl Limit {
    /// The limit of a key, or without one that of all callers together; none where the settings name none.
    pub(super) fn new(config: &AuthConfig, key: Option<&NamedKey>) -> Option<Self> {
        let own = |of: fn(&NamedKey) -> Option<u32>| key.and_then(of);
        let per_s = NonZeroU32::new(own(|key| key.max_inputs_per_s).unwrap_or(config.max_inputs_per_s))?;
        let burst = own(|key| key.max_inputs_burst).unwrap_or(config.max_inputs_burst);
        let burst = NonZeroU32::new(burst).unwrap_or(NonZeroU32::MIN);
        let quota = Quota::per_second(per_s).allow_burst(burst);
        Some(Self { inputs: DefaultDirectRateLimiter::direct(quota), per_s, burst })
    }

    /// Takes what a request of `n_inputs` costs beyond the `n_taken` inputs that it has paid for. What is above
    /// the burst is free: else such a request would never pass.
    ///
    /// # Errors
    /// [`HttpError::RateLimited`]; nothing is taken then.
    pub(super) fn take(&self, n_taken: usize, n_inputs: usize) -> Result<(), HttpError> {
        let counted = |n: usize| u32::try_from(n).unwrap_or(u32::MAX).min(self.burst.get());
        let Some(n) = NonZeroU32::new(counted(n_inputs).saturating_sub(counted(n_taken))) else {
            return Ok(());
        };
        match self.inputs.check_n(n) {
            Ok(Ok(())) => Ok(()),
            _ => Err(HttpError::RateLimited { per_s: self.per_s.get(), burst: self.burst.get() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, DEFAULT_TOML};

    fn limit(per_s: u32, burst: u32) -> Option<Limit> {
        let Config { auth, .. } = toml::from_str(DEFAULT_TOML).unwrap();
        Limit::new(&AuthConfig { max_inputs_per_s: per_s, max_inputs_burst: burst, ..auth }, None)
    }

    #[test]
    fn is_off_unless_set_and_a_key_may_have_its_own() {
        assert!(limit(0, 400).is_none());
        let Config { auth, .. } = toml::from_str(DEFAULT_TOML).unwrap();
        let key = NamedKey { max_inputs_per_s: Some(7), ..NamedKey::new("a".into(), "b".into()) };
        let own = Limit::new(&auth, Some(&key)).unwrap();
        assert_eq!((own.per_s.get(), own.burst.get()), (7, auth.max_inputs_burst));
        let free = NamedKey { max_inputs_per_s: Some(0), ..key };
        assert!(Limit::new(&AuthConfig { max_inputs_per_s: 3, ..auth }, Some(&free)).is_none());
    }

    #[test]
    fn counts_inputs_and_a_refusal_costs_nothing() {
        let limit = limit(1, 30).unwrap();
        limit.take(0, 1).unwrap();
        limit.take(1, 10).unwrap();
        let refused = limit.take(0, 25).unwrap_err().to_string();
        assert!(refused.contains("1 inputs per second") && refused.contains("30"), "{refused}");
        limit.take(0, 20).unwrap();
        assert!(limit.take(0, 1).is_err());
    }

    #[test]
    fn a_request_above_the_burst_passes_after_a_pause() {
        let limit = limit(1, 10).unwrap();
        limit.take(0, 1).unwrap();
        limit.take(1, 2048).unwrap();
        assert!(limit.take(0, 1).is_err());
    }
}
