//! Downloads over http and https: none that is not needed, none twice at once, each within its budget.
//!
//! `memory` knows what an address led to and for how long that holds (`freshness`), `flights` joins those who ask for
//! the same at once, `places` bounds how many go out, and `hop` goes.

use std::sync::Arc;
use std::time::{Duration, Instant as Moment};

use futures_util::future::BoxFuture;
use reqwest::dns::Resolve;
use tokio::time::{Instant, sleep, timeout_at};
use tracing::{Instrument, Span};
use url::Url;

use super::backlog::Backlog;
use super::body::BodyLimits;
use super::client::{client, proxy_url};
use super::flights::Flights;
use super::freshness::Freshness;
use super::guard::Guard;
use super::hop::{Answer, Hops, checked, host_of};
use super::hosts::Hosts;
use super::memory::{Known, Memory, UrlKey};
use super::places::Places;
use super::resolve::{GuardedNames, SystemNames};
use super::{FetchError, FetchSetupError, Fetched, Source};
use crate::config::FetchConfig;
use crate::domain::{ContentDigest, Fault, Lane};
use crate::telemetry::Metrics;

/// The pause before a second attempt, in milliseconds: long enough for a host that drops connections to have room
/// again, and never the same for all the pictures that it dropped at once.
const PAUSE_MS: std::ops::Range<u64> = 100..300;

/// The client, its guard, its limits and its memory. Cheap to clone; clones share all of it.
#[derive(Clone)]
pub(super) struct Downloads {
    inner: Arc<Inner>,
    /// By address, and by the file that the host is asked to confirm: those who do not hold it need more than that. By
    /// lane, as what bulk began may still wait for its place.
    flights: Flights<(UrlKey, Option<ContentDigest>, Lane), Result<Fetched, FetchError>>,
}

struct Inner {
    hops: Hops,
    places: Places,
    backlog: Backlog,
    memory: Memory,
    base: Option<Url>,
    timeout_ms: u64,
    metrics: Arc<Metrics>,
}

impl Downloads {
    pub(super) fn new(
        config: &FetchConfig,
        places: Places,
        backlog: Backlog,
        metrics: Arc<Metrics>,
    ) -> Result<Self, FetchSetupError> {
        Self::with_names(config, places, backlog, metrics, Arc::new(SystemNames))
    }

    fn with_names(
        config: &FetchConfig,
        places: Places,
        backlog: Backlog,
        metrics: Arc<Metrics>,
        names: Arc<dyn Resolve>,
    ) -> Result<Self, FetchSetupError> {
        let names = GuardedNames {
            guard: Guard::new(&config.allow_networks, &config.deny_networks),
            names,
            proxy_host: proxy_url(config)?.and_then(|url| url.host_str().map(Into::into)),
        };
        let base =
            config.base().map_err(|limit| FetchSetupError::Setting { key: "fetch.base_url", limit })?;
        let FetchConfig { max_bytes, min_bytes_per_s, .. } = *config;
        let hops = Hops {
            client: client(config, names.clone())?,
            names,
            hosts: Hosts::new(config)?,
            body: BodyLimits { max_bytes, min_bytes_per_s },
            freshness: Freshness {
                unsaid: Duration::from_secs(config.fresh_s),
                max: Duration::from_secs(config.max_fresh_s),
            },
            connect_timeout_ms: config.connect_timeout_ms,
            first_byte_timeout_ms: config.first_byte_timeout_ms,
            max_redirects: config.max_redirects,
        };
        let inner = Inner {
            hops,
            places,
            backlog,
            memory: Memory::new(config.remembered_urls, Duration::from_secs(config.dead_url_ttl_s)),
            base,
            timeout_ms: config.timeout_ms,
            metrics,
        };
        Ok(Self { inner: Arc::new(inner), flights: Flights::new() })
    }

    /// What is behind `text`, an http(s) URL, after at most `max_redirects` redirects; nothing is brought that is
    /// `held` already.
    ///
    /// # Cancel safety
    /// Others who ask for the same at that moment still get it.
    async fn get(&self, text: &str, held: Option<ContentDigest>, lane: Lane) -> Result<Fetched, FetchError> {
        let url = self.inner.parse(text)?;
        Span::current().record("server.address", host_of(&url));
        let (key, now) = (UrlKey::of(&url), Moment::now());
        let known = match self.inner.memory.recall(&key, now) {
            Ok(known) => known.filter(|known| held == Some(known.digest)),
            Err(error) => {
                self.inner.count("remembered_failure");
                return Err(error);
            }
        };
        if known.as_ref().is_some_and(|known| now < known.fresh_until) {
            self.inner.count("fresh");
            return Ok(Fetched::Unchanged);
        }
        let known = known.filter(|known| known.validator.is_some());
        let to_confirm = known.as_ref().map(|known| known.digest);
        let inner = self.inner.clone();
        // Whoever's turn it is to drive it, it belongs to the trace that began it.
        let download = async move { inner.download(url, key, known, lane).await }.in_current_span();
        let (result, was_joined) = self.flights.join((key, to_confirm, lane), download).await;
        if was_joined {
            self.inner.count("joined");
        }
        result
    }
}

impl Source for Downloads {
    fn fetch<'a>(
        &'a self,
        address: &'a str,
        held: Option<ContentDigest>,
        lane: Lane,
    ) -> BoxFuture<'a, Result<Fetched, FetchError>> {
        Box::pin(self.get(address, held, lane))
    }

    fn recall(&self, address: &str) -> Option<ContentDigest> {
        let url = self.inner.parse(address).ok()?;
        let known = self.inner.memory.recall(&UrlKey::of(&url), Moment::now()).ok().flatten();
        known.map(|known| known.digest)
    }
}

impl Inner {
    fn parse(&self, text: &str) -> Result<Url, FetchError> {
        checked(Url::options().base_url(self.base.as_ref()).parse(text)?)
    }

    fn count(&self, outcome: &str) {
        Span::current().record("sidelens.outcome", outcome);
        self.metrics.fetches.with_label_values(&[outcome]).inc();
    }

    async fn download(
        &self,
        url: Url,
        key: UrlKey,
        known: Option<Known>,
        lane: Lane,
    ) -> Result<Fetched, FetchError> {
        // The clock starts with place and share: a picture is not to blame for those before it, and the
        // request as a whole has its own deadline.
        let place = self.places.take_at(&host_of(&url), lane).await;
        let share = self.backlog.share(lane).await;
        let result = self.attempts(&url, known.as_ref()).await;
        drop(place);
        let now = Moment::now();
        let remember = |digest, validator, lifetime| match lifetime {
            None => self.memory.forget(&key),
            Some(lifetime) => {
                let fresh_until = now + lifetime;
                self.memory.remember(key, Known { digest, validator, lifetime, fresh_until });
            }
        };
        match result {
            Ok(Answer::File { bytes, digest, validator, lifetime }) => {
                self.count("ok");
                remember(digest, validator, lifetime);
                Ok(Fetched::File { bytes: share.hold(bytes), digest: Some(digest) })
            }
            Ok(Answer::NotModified { lifetime }) => {
                self.count("not_modified");
                let Known { digest, validator, .. } =
                    known.expect("a host is asked what changed by what is known");
                remember(digest, validator, lifetime);
                Ok(Fetched::Unchanged)
            }
            Err(error) => {
                self.count("error");
                // What passes by itself may have passed by the next time.
                if error.kind().fault() == Fault::Caller {
                    self.memory.bury(key, error.clone(), now);
                }
                Err(error)
            }
        }
    }

    /// At most two, within one budget.
    async fn attempts(&self, url: &Url, known: Option<&Known>) -> Result<Answer, FetchError> {
        let deadline = Instant::now() + Duration::from_millis(self.timeout_ms);
        let attempt = || timeout_at(deadline, self.hops.follow(url, known));
        let Ok(first) = attempt().await else {
            return Err(FetchError::Timeout { host: host_of(url), limit_ms: self.timeout_ms });
        };
        let pause = Duration::from_millis(fastrand::u64(PAUSE_MS));
        match first {
            Err(error) if error.passes_soon() && Instant::now() + pause < deadline => {
                sleep(pause).await;
                self.metrics.fetch_retries.inc();
                // The first fault says more than that no time was left for the second attempt.
                attempt().await.unwrap_or(Err(error))
            }
            other => other,
        }
    }
}

#[cfg(test)]
#[path = "http_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "guard_tests.rs"]
mod guard_tests;

#[cfg(test)]
#[path = "again_tests.rs"]
mod again_tests;
