//! Object stores: what names an object, and which buckets pictures may come from.

use std::{collections::BTreeMap, fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use super::validate::{http_or_empty, out_of_range};
use super::{ApiKey, ConfigError};

/// The longest name of a bucket, which is Google's.
const MAX_BUCKET: usize = 222;

/// A bucket, or the part of it below a prefix, that pictures may come from.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct BucketConfig {
    /// `s3://bucket/prefix`: the keys allowed, the prefix ending where a segment does. Without one all are.
    pub url: ObjectUrl,
    /// Address of the service; empty means the vendor's own, or the one in its usual variable. Named by the
    /// operator, so that it may be on any network.
    #[serde(default)]
    pub endpoint: String,
    /// Region of S3; empty means `AWS_REGION`, or us-east-1.
    #[serde(default)]
    pub region: String,
    /// Credentials and further settings, by the names of the `object_store` crate. What is left out comes
    /// from the vendor's usual variables, then from the machine's own identity.
    #[serde(default)]
    pub options: BTreeMap<String, ApiKey>,
    /// Whether `fetch.proxy` dials, where there is one; not for a service beside us.
    #[serde(default = "yes")]
    pub through_proxy: bool,
}

fn yes() -> bool {
    true
}

impl BucketConfig {
    /// All but the options, which are for the object store to judge.
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        http_or_empty("fetch.buckets.endpoint", &self.endpoint, "fetch.buckets.options")?;
        if !self.region.is_empty() && self.url.service != ObjectService::S3 {
            let place = format!("set for {}", self.url.bucket_url());
            return Err(out_of_range("fetch.buckets.region", place, "is S3's alone".into()));
        }
        if self.options.values().any(|value| value.expose() == "***") {
            let limit = "that only stands for a hidden value";
            return Err(out_of_range("fetch.buckets.options", "a table with `***`", limit.into()));
        }
        Ok(())
    }
}

/// A service that keeps objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ObjectService {
    /// Amazon S3, and what speaks like it.
    S3,
    /// Google Cloud Storage.
    Gs,
    /// Azure Blob Storage, whose buckets are called containers.
    Az,
}

impl ObjectService {
    const ALL: [Self; 3] = [Self::S3, Self::Gs, Self::Az];

    /// The scheme of its URLs.
    pub fn scheme(self) -> &'static str {
        match self {
            Self::S3 => "s3",
            Self::Gs => "gs",
            Self::Az => "az",
        }
    }
}

/// `s3://bucket/key`, `gs://bucket/key` or `az://container/key`. The key stands as it is, without percent
/// encoding or a query, as in the vendors' own tools; empty for the whole bucket.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct ObjectUrl {
    /// Whose it is.
    pub service: ObjectService,
    /// The bucket: letters, digits, `-`, `_` and `.`.
    pub bucket: String,
    /// What follows the slash behind the bucket.
    pub key: String,
}

impl ObjectUrl {
    /// Without the key.
    pub fn bucket_url(&self) -> String {
        format!("{}://{}", self.service.scheme(), self.bucket)
    }
}

impl FromStr for ObjectUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || "an object's url is written as s3://bucket/key, gs://bucket/key or az://container/key";
        let (scheme, rest) = text.split_once("://").ok_or_else(wrong)?;
        let (bucket, key) = rest.split_once('/').unwrap_or((rest, ""));
        let service = ObjectService::ALL
            .into_iter()
            .find(|service| service.scheme().eq_ignore_ascii_case(scheme))
            .ok_or_else(wrong)?;
        let is_named = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if bucket.is_empty() || bucket.len() > MAX_BUCKET || !bucket.chars().all(is_named) {
            return Err(wrong().into());
        }
        Ok(Self { service, bucket: bucket.into(), key: key.into() })
    }
}

impl fmt::Display for ObjectUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.bucket_url())?;
        if self.key.is_empty() { Ok(()) } else { write!(f, "/{}", self.key) }
    }
}

impl TryFrom<String> for ObjectUrl {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<ObjectUrl> for String {
    fn from(url: ObjectUrl) -> Self {
        url.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_read_to_the_letter() {
        for (text, bucket, key) in [
            ("s3://photos", "s3://photos", ""),
            ("S3://photos/", "s3://photos", ""),
            ("gs://a-b_c.example.com/x/y z%20?a=b#c", "gs://a-b_c.example.com", "x/y z%20?a=b#c"),
            ("az://$root/x", "", ""),
            ("az://photos//x", "az://photos", "/x"),
            ("s3:///x", "", ""),
            ("s3:/photos/x", "", ""),
            ("s3a://photos/x", "", ""),
            ("s3://user@photos/x", "", ""),
            ("s3://photos:80/x", "", ""),
            ("s3://é/x", "", ""),
        ] {
            let read = text.parse::<ObjectUrl>();
            let parts = read.as_ref().map(|url| (url.bucket_url(), url.key.as_str()));
            assert_eq!(parts.unwrap_or_default(), (bucket.to_owned(), key), "{text}");
        }
        let long = |n| format!("s3://{}/x", "a".repeat(n)).parse::<ObjectUrl>();
        assert!(long(MAX_BUCKET).is_ok() && long(MAX_BUCKET + 1).is_err());
    }
}
