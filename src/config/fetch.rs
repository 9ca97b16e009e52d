//! Pictures that are elsewhere.

use std::collections::BTreeMap;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use url::Url;

use super::validate::{at_least, at_most, no_more_than, out_of_range};
use super::{ApiKey, BucketConfig, ConfigError, HostPattern, holds_credentials};

/// What the connection and the client themselves have to say: set by hand it would break the request, or make
/// its answer mean something else.
const OWN_HEADERS: [&str; 17] = [
    "connection",
    "content-length",
    "expect",
    "host",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-range",
    "if-unmodified-since",
    "keep-alive",
    "proxy-authorization",
    "proxy-connection",
    "range",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];
/// Downloads at once; one address has no more ports to come from.
const MAX_CONCURRENT: usize = 65_536;
/// Remembered addresses; more would be gigabytes.
const MAX_REMEMBERED_URLS: usize = 10_000_000;
/// A year in seconds, the longest that a host may ask for.
const MAX_FRESH_S: u64 = 31_536_000;

/// How pictures are fetched, and from where.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct FetchConfig {
    /// Milliseconds for one picture, from connecting to its last byte, a second attempt included.
    pub timeout_ms: u64,
    /// Milliseconds to connect.
    pub connect_timeout_ms: u64,
    /// Milliseconds until a host begins its answer, connecting included.
    pub first_byte_timeout_ms: u64,
    /// Fewest bytes per second of a body, measured over two seconds; 0 for no limit.
    pub min_bytes_per_s: u64,
    /// Largest picture in bytes, counted on the stream, after decompression.
    pub max_bytes: usize,
    /// Redirects followed.
    pub max_redirects: usize,
    /// Private networks that pictures may come from.
    pub allow_networks: Vec<IpNet>,
    /// Networks that pictures may not come from, whatever else allows them.
    pub deny_networks: Vec<IpNet>,
    /// The only hosts that pictures may come from; empty for all.
    pub allow_hosts: Vec<HostPattern>,
    /// Hosts that pictures may not come from, whatever else allows them.
    pub deny_hosts: Vec<HostPattern>,
    /// Headers for protected hosts.
    pub hosts: Vec<FetchHost>,
    /// What relative paths in documents are relative to; empty refuses them.
    pub base_url: String,
    /// The proxy that dials; empty for none. May hold a password.
    pub proxy: ApiKey,
    /// Pictures fetched at once, over all requests, beside some for searches: downloads, objects of buckets, and files, up
    /// to half of it.
    pub max_concurrent: usize,
    /// Downloads at once from one host, beside some for searches.
    pub max_concurrent_per_host: usize,
    /// Bytes of pictures that were fetched and wait to be decoded, over all requests, beside what is being downloaded.
    pub max_inflight_bytes: usize,
    /// Addresses remembered with what they led to; 0 remembers none.
    pub remembered_urls: usize,
    /// Seconds for which a picture is not asked for again where its host does not say.
    pub fresh_s: u64,
    /// Most seconds for which a picture is not asked for again, whatever its host says.
    pub max_fresh_s: u64,
    /// Seconds for which a dead address is not asked for again; 0 asks every time.
    pub dead_url_ttl_s: u64,
    /// The directory that files are read below; empty for none.
    pub files_root: String,
    /// Buckets of object stores that pictures may come from.
    pub buckets: Vec<BucketConfig>,
}

/// What one host, or several of one domain, are sent beside the usual.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct FetchHost {
    /// Which.
    pub host: HostPattern,
    /// Headers by name; the values are secrets.
    pub headers: BTreeMap<String, ApiKey>,
    /// Whether they go over plain http as well, where anybody on the way can read them.
    #[serde(default)]
    pub plain_http: bool,
}

impl FetchConfig {
    /// The schemes of addresses that pictures are taken from.
    pub fn schemes(&self) -> Vec<&'static str> {
        let mut schemes = vec!["data", "http", "https"];
        schemes.extend((!self.files_root.is_empty()).then_some("file"));
        let mut services: Vec<_> = self.buckets.iter().map(|bucket| bucket.url.service.scheme()).collect();
        services.sort_unstable();
        services.dedup();
        schemes.extend(services);
        schemes
    }

    /// [`base_url`](Self::base_url) as a folder: with a slash at its end.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn base(&self) -> Result<Option<Url>, &'static str> {
        if self.base_url.is_empty() {
            return Ok(None);
        }
        let mut url = Url::parse(&self.base_url).map_err(|_| "must be an http(s) address")?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err("must be an http(s) address");
        }
        if holds_credentials(&url) {
            return Err("must not hold credentials: they belong in the headers of `fetch.hosts`");
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err("must end with its path");
        }
        if !url.path().ends_with('/') {
            url.set_path(&format!("{}/", url.path()));
        }
        Ok(Some(url))
    }

    /// [`proxy`](Self::proxy) as an address.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn proxy_url(&self) -> Result<Option<Url>, &'static str> {
        let text = self.proxy.expose();
        if text.is_empty() {
            return Ok(None);
        }
        let limit =
            "must be an address such as `http://proxy:3128`, `https://proxy` or `socks5://proxy:1080`";
        let url = Url::parse(text).map_err(|_| limit)?;
        let is_known = matches!(url.scheme(), "http" | "https" | "socks5");
        if is_known && url.host_str().is_some_and(|host| !host.is_empty()) {
            Ok(Some(url))
        } else {
            Err(limit)
        }
    }

    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        at_least("fetch.connect_timeout_ms", self.connect_timeout_ms, 1)?;
        at_least("fetch.timeout_ms", self.timeout_ms, 1)?;
        no_more_than(
            "fetch.connect_timeout_ms",
            self.connect_timeout_ms,
            "fetch.timeout_ms",
            self.timeout_ms,
        )?;
        at_least("fetch.first_byte_timeout_ms", self.first_byte_timeout_ms, 1)?;
        at_least("fetch.max_bytes", self.max_bytes, 1)?;
        at_most("fetch.max_redirects", self.max_redirects, 20)?;
        at_least("fetch.max_concurrent", self.max_concurrent, 1)?;
        at_most("fetch.max_concurrent", self.max_concurrent, MAX_CONCURRENT)?;
        at_least("fetch.max_concurrent_per_host", self.max_concurrent_per_host, 1)?;
        at_most("fetch.max_concurrent_per_host", self.max_concurrent_per_host, MAX_CONCURRENT)?;
        at_least("fetch.max_inflight_bytes", self.max_inflight_bytes, 1)?;
        at_most("fetch.remembered_urls", self.remembered_urls, MAX_REMEMBERED_URLS)?;
        no_more_than("fetch.fresh_s", self.fresh_s, "fetch.max_fresh_s", self.max_fresh_s)?;
        at_most("fetch.max_fresh_s", self.max_fresh_s, MAX_FRESH_S)?;
        at_most("fetch.dead_url_ttl_s", self.dead_url_ttl_s, 3600)?;
        self.base().map_err(|limit| out_of_range("fetch.base_url", "not one", limit.into()))?;
        self.proxy_url().map_err(|limit| out_of_range("fetch.proxy", "not one", limit.into()))?;
        for FetchHost { host, headers, .. } in &self.hosts {
            for (name, value) in headers {
                if let Some(limit) = header_fault(name, value) {
                    let place = format!("a list whose entry `{host}` has the header `{name}`");
                    return Err(out_of_range("fetch.hosts", place, limit.into()));
                }
            }
        }
        if !self.files_root.is_empty() && !self.base_url.is_empty() {
            let limit = "must be left out then: a relative path is one or the other's";
            return Err(out_of_range("fetch.base_url", "set beside `fetch.files_root`", limit.into()));
        }
        self.buckets.iter().try_for_each(BucketConfig::validate)
    }
}

/// What keeps a header out of the settings, if anything does.
pub(super) fn header_fault(name: &str, value: &ApiKey) -> Option<&'static str> {
    let value = value.expose();
    if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b)) {
        Some("a name is letters, digits, `-` and `_`")
    } else if OWN_HEADERS.contains(&name.to_ascii_lowercase().as_str()) {
        Some("that one is not for settings")
    } else if value.is_empty() || value == "***" || !value.bytes().all(|b| (b' '..=b'~').contains(&b)) {
        Some("a value is visible ASCII, and `***` only stands for a hidden one")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, DEFAULT_TOML};

    fn fetch(tweak: impl FnOnce(&mut FetchConfig)) -> FetchConfig {
        let mut config: Config = toml::from_str(DEFAULT_TOML).unwrap();
        tweak(&mut config.fetch);
        config.fetch
    }

    fn refusal(tweak: impl FnOnce(&mut FetchConfig)) -> String {
        fetch(tweak).validate().unwrap_err().to_string()
    }

    #[test]
    fn a_base_is_a_folder() {
        let base = |text: &str| fetch(|fetch| fetch.base_url = text.into()).base();
        assert_eq!(base(""), Ok(None));
        for text in ["https://cdn.example.com/images", "https://cdn.example.com/images/"] {
            let url = base(text).unwrap().unwrap();
            assert_eq!(url.join("1.jpg").unwrap().as_str(), "https://cdn.example.com/images/1.jpg");
        }
        for text in ["images", "ftp://a/", "https://u:secret@a/", "https://a/?b", "https://a/#b"] {
            let message = refusal(|fetch| fetch.base_url = text.into());
            assert!(message.starts_with("`fetch.base_url` is not one, but must "), "{message}");
            assert!(!message.contains("secret"), "{message}");
        }
    }

    #[test]
    fn a_relative_path_is_of_one_place() {
        let message = refusal(|fetch| {
            fetch.files_root = "/srv/photos".into();
            fetch.base_url = "https://cdn.example.com".into();
        });
        assert!(message.starts_with("`fetch.base_url` is set beside `fetch.files_root`"), "{message}");
    }

    #[test]
    fn proxies_are_of_three_kinds_and_secret() {
        for text in ["http://u:secret@proxy:3128", "https://proxy", "socks5://10.0.0.1:1080"] {
            let fetch = fetch(|fetch| fetch.proxy = text.into());
            fetch.validate().unwrap();
            assert!(!format!("{fetch:?}").contains("secret"));
        }
        for text in ["secret", "ftp://secret", "socks5://", "***"] {
            let message = refusal(|fetch| fetch.proxy = text.into());
            assert!(
                message.starts_with("`fetch.proxy` is not one") && !message.contains("secret"),
                "{message}"
            );
        }
    }

    #[test]
    fn headers_are_checked_without_showing_them() {
        let host = |name: &str, value: &str| FetchHost {
            host: "*.example.com".parse().unwrap(),
            headers: BTreeMap::from([(name.to_owned(), value.into())]),
            plain_http: false,
        };
        let shown = fetch(|fetch| fetch.hosts = vec![host("Authorization", "Bearer secret")]);
        shown.validate().unwrap();
        let shown = format!("{shown:?} {}", toml::to_string(&shown).unwrap());
        assert!(!shown.contains("secret") && shown.contains("***"), "{shown}");
        for (name, value) in [
            ("Host", "secret"),
            ("content-length", "5"),
            ("Connection", "secret"),
            ("If-None-Match", "secret"),
            ("X Key", "secret"),
            ("", "secret"),
            ("X-Key", ""),
            ("X-Key", "***"),
            ("X-Key", "secret\r\nHost: evil"),
            ("X-Key", "sécret"),
        ] {
            let message = refusal(|fetch| fetch.hosts = vec![host(name, value)]);
            assert!(message.contains("*.example.com") && !message.contains("ecret"), "{message}");
        }
    }
}
