//! What the settings say of hosts by their names: which may be asked, and which are sent headers of their own.

use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use url::Url;

use super::FetchSetupError;
use crate::config::{FetchConfig, FetchHost, HostPattern};

/// The rules.
pub(super) struct Hosts {
    allow: Vec<HostPattern>,
    deny: Vec<HostPattern>,
    entries: Vec<Entry>,
}

struct Entry {
    host: HostPattern,
    plain_http: bool,
    headers: HeaderMap,
}

impl Hosts {
    pub fn new(config: &FetchConfig) -> Result<Self, FetchSetupError> {
        let entries = config.hosts.iter().map(Entry::new).collect::<Result<_, _>>()?;
        Ok(Self { allow: config.allow_hosts.clone(), deny: config.deny_hosts.clone(), entries })
    }

    /// Whether the host of `url` may be asked, as far as its name goes.
    pub fn permit(&self, url: &Url) -> bool {
        let host = url.host_str().unwrap_or_default();
        let is_in = |patterns: &[HostPattern]| patterns.iter().any(|pattern| pattern.matches(host));
        !is_in(&self.deny) && (self.allow.is_empty() || is_in(&self.allow))
    }

    /// What the host of `url`, and no other, is to be sent.
    pub fn headers(&self, url: &Url) -> HeaderMap {
        let host = url.host_str().unwrap_or_default();
        let is_private = url.scheme() == "https";
        let mut headers = HeaderMap::new();
        for entry in &self.entries {
            if entry.host.matches(host) && (is_private || entry.plain_http) {
                headers.extend(entry.headers.clone());
            }
        }
        headers
    }
}

impl Entry {
    fn new(FetchHost { host, headers, plain_http }: &FetchHost) -> Result<Self, FetchSetupError> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            let limit = "has a header whose name or value cannot be sent";
            let unsendable = FetchSetupError::Setting { key: "fetch.hosts", limit };
            let name = HeaderName::try_from(name).ok();
            let value = HeaderValue::try_from(value.expose()).ok();
            let (name, mut value) = name.zip(value).ok_or(unsendable)?;
            // Neither printed, nor kept in the compression state of an HTTP/2 connection.
            value.set_sensitive(true);
            map.insert(name, value);
        }
        Ok(Self { host: host.clone(), plain_http: *plain_http, headers: map })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::test_server::config;
    use super::*;

    fn hosts(tweak: impl FnOnce(&mut FetchConfig)) -> Hosts {
        let mut config = config();
        tweak(&mut config);
        Hosts::new(&config).unwrap()
    }

    fn url(text: &str) -> Url {
        Url::parse(text).unwrap()
    }

    #[test]
    fn deny_wins_over_allow() {
        let patterns = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
        let permits = |allow: &[&str], deny: &[&str], host: &str| {
            hosts(|config| (config.allow_hosts, config.deny_hosts) = (patterns(allow), patterns(deny)))
                .permit(&url(&format!("https://{host}/")))
        };
        assert!(permits(&[], &[], "a.example"));
        assert!(permits(&["*.example"], &[], "A.Example."));
        assert!(!permits(&["*.example"], &[], "a.test"));
        assert!(!permits(&["*.example"], &[], "1.1.1.1"));
        assert!(!permits(&[], &["a.example"], "a.EXAMPLE."));
        assert!(permits(&[], &["a.example"], "b.example"));
        assert!(!permits(&["*.example"], &["a.example"], "a.example"));
        assert!(!permits(&[], &["*.bücher.example"], "a.xn--bcher-kva.example"));
    }

    #[test]
    fn headers_go_to_their_host_and_in_private() {
        let entry = |host: &str, key: &str, plain_http| FetchHost {
            host: host.parse().unwrap(),
            headers: BTreeMap::from([("X-Key".to_owned(), key.into())]),
            plain_http,
        };
        let hosts = hosts(|config| {
            config.hosts = vec![entry("*.example", "all", false), entry("plain.example", "plain", true)];
        });
        let key =
            |text: &str| hosts.headers(&url(text)).get("x-key").map(|key| key.to_str().unwrap().to_owned());
        assert_eq!(key("https://a.example/").as_deref(), Some("all"));
        assert_eq!(key("https://PLAIN.example./").as_deref(), Some("plain"));
        assert_eq!(key("http://plain.example:8080/").as_deref(), Some("plain"));
        assert_eq!(key("http://a.example/"), None);
        assert_eq!(key("https://example/"), None);
        assert_eq!(key("https://a.example.evil.test/"), None);
        assert!(!format!("{:?}", hosts.headers(&url("https://a.example/"))).contains("all"));
    }
}
