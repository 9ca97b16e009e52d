//! Hosts by name: one, or all below one.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use url::Host;

/// `cdn.example.com`, `*.example.com` (every name below it, not itself), or an address as it stands in a URL.
///
/// Names are kept as URLs hold them: lower case, punycode, without the dot at their end.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct HostPattern {
    host: String,
    is_parent: bool,
}

impl HostPattern {
    /// Whether `host`, the host of a URL, is meant.
    pub fn matches(&self, host: &str) -> bool {
        let host = host.trim_end_matches('.');
        if self.is_parent {
            host.strip_suffix(self.host.as_str()).is_some_and(|head| head.len() > 1 && head.ends_with('.'))
        } else {
            host == self.host
        }
    }
}

impl FromStr for HostPattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parent = text.strip_prefix("*.");
        let host = Host::parse(parent.unwrap_or(text)).ok().filter(|host| match host {
            Host::Domain(name) => !name.trim_end_matches('.').is_empty() && !name.contains('*'),
            Host::Ipv4(_) | Host::Ipv6(_) => parent.is_none(),
        });
        match host {
            Some(host) => Ok(Self {
                host: host.to_string().trim_end_matches('.').to_owned(),
                is_parent: parent.is_some(),
            }),
            None => Err(format!("`{text}` is not a host such as `cdn.example.com` or `*.example.com`")),
        }
    }
}

impl TryFrom<String> for HostPattern {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<HostPattern> for String {
    fn from(pattern: HostPattern) -> Self {
        pattern.to_string()
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", if self.is_parent { "*." } else { "" }, self.host)
    }
}

#[cfg(test)]
mod tests {
    use url::Url;

    use super::*;

    #[test]
    fn matches_hosts_as_urls_hold_them() {
        for (pattern, host, expected) in [
            ("cdn.example.com", "cdn.example.com", true),
            ("cdn.example.com", "CDN.Example.COM", true),
            ("CDN.example.com.", "cdn.example.com", true),
            ("cdn.example.com", "cdn.example.com.", true),
            ("cdn.example.com", "cdn.example.com...", true),
            ("cdn.example.com", "cdn.example.com:8080", true),
            ("cdn.example.com", "a.cdn.example.com", false),
            ("cdn.example.com", "cdn.example.com.evil.test", false),
            ("*.example.com", "a.example.com", true),
            ("*.example.com", "a.b.example.com.", true),
            ("*.example.com", "example.com", false),
            ("*.example.com", "evilexample.com", false),
            ("bücher.example", "xn--bcher-kva.example", true),
            ("xn--bcher-kva.example", "BÜCHER.example", true),
            ("*.bücher.example", "www.bücher.example", true),
            ("127.0.0.1", "2130706433", true),
            ("127.0.0.1", "127.0.0.1.evil.test", false),
            ("[::1]", "[0:0:0::1]", true),
        ] {
            let url = Url::parse(&format!("http://{host}/")).unwrap();
            let found = pattern.parse::<HostPattern>().unwrap().matches(url.host_str().unwrap());
            assert_eq!(found, expected, "{pattern} {host}");
        }
    }

    #[test]
    fn refuses_what_is_no_host() {
        for text in ["", "*", "*.", ".", "a.*.com", "*.*.com", "http://a", "a/b", "a:80", "*.10.0.0.1", "::1"]
        {
            assert!(text.parse::<HostPattern>().is_err(), "{text}");
        }
    }
}
