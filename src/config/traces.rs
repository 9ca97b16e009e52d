//! Traces.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::validate::{at_least, at_most, http_or_empty, out_of_range};
use super::{ApiKey, ConfigError, fetch::header_fault};

/// A collector that takes longer than this is no collector.
const MAX_TIMEOUT_MS: u64 = 60_000;

/// Where the traces of requests go, and of how many.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct TracesConfig {
    /// The collector's address, without `/v1/traces`; empty for no traces.
    pub endpoint: String,
    /// Headers for the collector by name; the values are secrets.
    pub headers: BTreeMap<String, ApiKey>,
    /// A PEM file with the certificates that sign the collector's; empty for Mozilla's.
    pub ca_file: String,
    /// The part of the requests that is traced where the caller does not say, 0 to 1.
    pub sample_ratio: f64,
    /// What the service is called in the traces.
    pub service_name: String,
    /// Milliseconds that the collector may take to accept a batch of spans.
    pub timeout_ms: u64,
}

impl TracesConfig {
    /// Whether traces are sent.
    pub fn are_on(&self) -> bool {
        !self.endpoint.is_empty()
    }

    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        http_or_empty("traces.endpoint", &self.endpoint, "traces.headers")?;
        if self.endpoint.trim_end_matches('/').ends_with("/v1/traces") {
            let limit = "must end before `/v1/traces`, which is added".into();
            return Err(out_of_range("traces.endpoint", &self.endpoint, limit));
        }
        for (name, value) in &self.headers {
            if let Some(limit) = header_fault(name, value) {
                let place = format!("a table with the header `{name}`");
                return Err(out_of_range("traces.headers", place, limit.into()));
            }
        }
        // Written so that it refuses NaN as well.
        if !(0.0..=1.0).contains(&self.sample_ratio) {
            return Err(out_of_range("traces.sample_ratio", self.sample_ratio, "must be from 0 to 1".into()));
        }
        if self.service_name.trim().is_empty() {
            return Err(out_of_range("traces.service_name", "empty", "needs a name".into()));
        }
        at_least("traces.timeout_ms", self.timeout_ms, 1)?;
        at_most("traces.timeout_ms", self.timeout_ms, MAX_TIMEOUT_MS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, DEFAULT_TOML};

    fn refusal(tweak: impl FnOnce(&mut TracesConfig)) -> String {
        let mut config: Config = toml::from_str(DEFAULT_TOML).unwrap();
        config.validate().unwrap();
        tweak(&mut config.traces);
        config.validate().unwrap_err().to_string()
    }

    #[test]
    fn they_are_off_by_default() {
        let config: Config = toml::from_str(DEFAULT_TOML).unwrap();
        assert!(!config.traces.are_on());
    }

    #[test]
    fn ranges_are_kept() {
        for ratio in [-0.1, 1.1, f64::NAN] {
            let expected = format!("`traces.sample_ratio` is {ratio}, but must be from 0 to 1");
            assert_eq!(refusal(|traces| traces.sample_ratio = ratio), expected);
        }
        assert_eq!(
            refusal(|traces| traces.timeout_ms = 60_001),
            "`traces.timeout_ms` is 60001, but must be 60000 or less"
        );
        assert_eq!(
            refusal(|traces| traces.service_name = " ".into()),
            "`traces.service_name` is empty, but needs a name"
        );
    }

    #[test]
    fn the_collector_is_an_address_and_its_headers_are_secret() {
        assert_eq!(
            refusal(|traces| traces.endpoint = "collector:4318".into()),
            "`traces.endpoint` is collector:4318, but must be an http(s) address"
        );
        for whole in ["http://collector:4318/v1/traces", "http://collector/otlp/v1/traces/"] {
            assert_eq!(
                refusal(|traces| traces.endpoint = whole.into()),
                format!("`traces.endpoint` is {whole}, but must end before `/v1/traces`, which is added")
            );
        }
        let message = refusal(|traces| traces.endpoint = "https://me:secret@collector".into());
        assert!(message.contains("traces.headers") && !message.contains("secret"), "{message}");
        for (name, value) in [("Authorization", "***"), ("X Key", "secret"), ("Host", "secret")] {
            let message = refusal(|traces| _ = traces.headers.insert(name.into(), value.into()));
            assert!(message.contains(name) && !message.contains("secret"), "{message}");
        }
    }
}
