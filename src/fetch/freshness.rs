//! How long an answer may stand for its address without asking again.
//!
//! Source: RFC 9111, sections 4.2 and 5, for a private cache: what is remembered goes by the whole address, is the same
//! for whoever may ask for it, and `s-maxage` and `private` are for caches between others. Its heuristic (a tenth of the
//! picture's age, so weeks) is left out for a setting.

use std::time::{Duration, SystemTime};

use reqwest::header::{AGE, CACHE_CONTROL, DATE, EXPIRES, HeaderMap, HeaderName, PRAGMA, VARY};

/// The bounds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Freshness {
    /// Where the headers say nothing.
    pub unsaid: Duration,
    /// At most.
    pub max: Duration,
}

impl Freshness {
    /// How long an answer with these headers, received at `now`, is fresh: zero if it must be asked for again each
    /// time, none if it must not be remembered at all.
    pub fn of(&self, headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
        let (mut max_age, mut is_stale) = (None, false);
        for directive in values(headers, CACHE_CONTROL).flat_map(|value| value.split(',')) {
            let (name, value) = directive.split_once('=').unwrap_or((directive, ""));
            match name.trim().to_ascii_lowercase().as_str() {
                "no-store" => return None,
                "no-cache" => is_stale = true,
                // Of two that differ the shorter one is safe.
                "max-age" => max_age = [max_age, Some(seconds(value))].into_iter().flatten().min(),
                _ => {}
            }
        }
        let is_http_1_0 = !headers.contains_key(CACHE_CONTROL);
        is_stale |= is_http_1_0
            && values(headers, PRAGMA).any(|value| value.to_ascii_lowercase().contains("no-cache"));
        is_stale |= values(headers, VARY).any(|value| value.trim() == "*");
        let lifetime = match (is_stale, max_age) {
            (true, _) => Duration::ZERO,
            (false, Some(max_age)) => max_age.saturating_sub(age(headers)),
            (false, None) if headers.contains_key(EXPIRES) => {
                let made = date(headers, DATE).unwrap_or(now);
                // A date that cannot be read, such as `0`, has passed.
                let lifetime = date(headers, EXPIRES).and_then(|expires| expires.duration_since(made).ok());
                lifetime.unwrap_or_default().saturating_sub(age(headers))
            }
            (false, None) => self.unsaid,
        };
        Some(lifetime.min(self.max))
    }
}

fn values(headers: &HeaderMap, name: HeaderName) -> impl Iterator<Item = &str> {
    headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok())
}

fn date(headers: &HeaderMap, name: HeaderName) -> Option<SystemTime> {
    values(headers, name).next().and_then(|value| httpdate::parse_http_date(value.trim()).ok())
}

/// How long the answer has been in caches on the way.
fn age(headers: &HeaderMap) -> Duration {
    values(headers, AGE).map(seconds).max().unwrap_or_default()
}

/// A number too large is one all the same; anything else is 0.
fn seconds(text: &str) -> Duration {
    let digits = text.trim().trim_matches('"');
    let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    Duration::from_secs(if is_number { digits.parse().unwrap_or(u64::MAX) } else { 0 })
}

#[cfg(test)]
mod tests {
    use reqwest::header::HeaderValue;

    use super::*;

    #[test]
    fn goes_by_what_the_headers_say() {
        let now = httpdate::parse_http_date("Sat, 21 Nov 2026 12:00:00 GMT").unwrap();
        let freshness = Freshness { unsaid: Duration::from_secs(7), max: Duration::from_secs(10_000) };
        for (lines, expected) in [
            ("", Some(7)),
            ("last-modified: Sat, 21 Nov 2020 12:00:00 GMT", Some(7)),
            ("cache-control: public", Some(7)),
            ("cache-control: private, s-maxage=60", Some(7)),
            ("cache-control: max-age=60", Some(60)),
            ("cache-control: Public, MAX-AGE=60, immutable", Some(60)),
            ("cache-control: max-age=\"60\"", Some(60)),
            ("cache-control: max-age=60\ncache-control: max-age=50", Some(50)),
            ("cache-control: max-age=60\nage: 20", Some(40)),
            ("cache-control: max-age=60\nage: 90", Some(0)),
            ("cache-control: max-age=60\nage: 99999999999999999999", Some(0)),
            ("cache-control: max-age=31536000", Some(10_000)),
            ("cache-control: max-age=99999999999999999999", Some(10_000)),
            ("cache-control: max-age=-1", Some(0)),
            ("cache-control: max-age", Some(0)),
            ("cache-control: no-cache, max-age=60", Some(0)),
            ("cache-control: No-Store, max-age=60", None),
            ("cache-control: max-age=60\ncache-control: no-store", None),
            ("cache-control: max-age=60\nvary: *", Some(0)),
            ("cache-control: max-age=60\nvary: accept", Some(60)),
            ("pragma: no-cache", Some(0)),
            ("pragma: no-cache\ncache-control: max-age=60", Some(60)),
            ("expires: Sat, 21 Nov 2026 12:01:00 GMT", Some(60)),
            ("expires: Sat, 21 Nov 2026 12:01:00 GMT\nage: 10", Some(50)),
            ("expires: Sat, 21 Nov 2026 12:01:00 GMT\ndate: Sat, 21 Nov 2026 12:00:30 GMT", Some(30)),
            ("expires: Sat, 21 Nov 2026 11:59:00 GMT", Some(0)),
            ("expires: 0", Some(0)),
            ("expires: Sat, 21 Nov 2026 12:01:00 GMT\ncache-control: max-age=5", Some(5)),
        ] {
            let headers: HeaderMap = lines
                .lines()
                .map(|line| line.split_once(": ").unwrap())
                .map(|(name, value)| (name.parse::<HeaderName>().unwrap(), HeaderValue::from_static(value)))
                .fold(HeaderMap::new(), |mut headers, (name, value)| {
                    headers.append(name, value);
                    headers
                });
            assert_eq!(freshness.of(&headers, now), expected.map(Duration::from_secs), "{lines}");
        }
    }
}
