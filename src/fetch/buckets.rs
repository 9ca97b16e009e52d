//! Objects in the buckets that the operator lists: `s3://`, `gs://`, `az://`.
//!
//! The `object_store` crate speaks with each service, through a client of ours. Where a service is says
//! the operator, never a caller, so the guard against private addresses has no part in it.

use std::{sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use futures_util::{TryStreamExt, future::BoxFuture};
use object_store::{
    ClientOptions, GetOptions, ObjectStore, RetryConfig,
    aws::AmazonS3Builder,
    azure::MicrosoftAzureBuilder,
    client::{HttpClient, HttpConnector, HttpError, HttpErrorKind},
    gcp::GoogleCloudStorageBuilder,
    path::Path,
};
use reqwest::Client;
use tokio::time::timeout;

use super::{
    FetchError, FetchSetupError, Fetched, HostFailure, Source, backlog::Backlog, client, places::Places,
};
use crate::config::{BucketConfig, FetchConfig, ObjectService, ObjectUrl};
use crate::domain::{ContentDigest, Lane, causes, root_cause};

/// The longest key: Azure's 1024 characters, of four bytes at most.
const MAX_KEY_BYTES: usize = 4096;

/// The buckets and their limits.
pub(super) struct Buckets {
    buckets: Vec<Bucket>,
    max_bytes: usize,
    timeout_ms: u64,
    connect_timeout_ms: u64,
    places: Places,
    backlog: Backlog,
}

struct Bucket {
    service: ObjectService,
    name: String,
    prefix: Path,
    store: Arc<dyn ObjectStore>,
}

impl Buckets {
    pub(super) fn new(
        config: &FetchConfig,
        places: Places,
        backlog: Backlog,
    ) -> Result<Self, FetchSetupError> {
        let retry = RetryConfig {
            max_retries: 1,
            retry_timeout: Duration::from_millis(config.timeout_ms),
            ..RetryConfig::default()
        };
        let open = |bucket: &BucketConfig| {
            let wrong = |source| FetchSetupError::Bucket { bucket: bucket.url.bucket_url(), source };
            let client = client::for_bucket(config, bucket)?.build()?;
            Ok(Bucket {
                service: bucket.url.service,
                name: bucket.url.bucket.clone(),
                prefix: Path::parse(&bucket.url.key).map_err(|error| wrong(error.into()))?,
                store: open(bucket, client, &retry).map_err(wrong)?,
            })
        };
        Ok(Self {
            buckets: config.buckets.iter().map(open).collect::<Result<_, FetchSetupError>>()?,
            max_bytes: config.max_bytes,
            timeout_ms: config.timeout_ms,
            connect_timeout_ms: config.connect_timeout_ms,
            places,
            backlog,
        })
    }

    async fn get(&self, address: &str, lane: Lane) -> Result<Bytes, FetchError> {
        let url: ObjectUrl = address.parse().map_err(|_| FetchError::ObjectUrl)?;
        let host = url.bucket_url();
        let key = Path::parse(&url.key).map_err(|_| FetchError::ObjectUrl)?;
        if key.is_root() {
            return Err(FetchError::ObjectUrl);
        }
        if url.key.len() > MAX_KEY_BYTES {
            return Err(FetchError::UrlLength);
        }
        let allows = |bucket: &&Bucket| {
            bucket.service == url.service && bucket.name == url.bucket && key.prefix_matches(&bucket.prefix)
        };
        let bucket =
            self.buckets.iter().find(allows).ok_or_else(|| FetchError::Bucket { bucket: host.clone() })?;
        let _place = self.places.take(lane).await;
        let share = self.backlog.share(lane).await;
        let limit_ms = self.timeout_ms;
        timeout(Duration::from_millis(limit_ms), self.object(&*bucket.store, &key, &host))
            .await
            .unwrap_or(Err(FetchError::Timeout { host, limit_ms }))
            .map(|bytes| share.hold(bytes))
    }

    /// Reads the body only if its size is within the limit, and no further than that.
    async fn object(&self, store: &dyn ObjectStore, key: &Path, host: &str) -> Result<Bytes, FetchError> {
        let failed = |error| self.failure(host, error);
        let too_large = || FetchError::TooLarge { host: Some(host.to_owned()), limit: self.max_bytes };
        let object = store.get_opts(key, GetOptions::default()).await.map_err(failed)?;
        let announced = usize::try_from(object.meta.size).map_err(|_| too_large())?;
        if announced > self.max_bytes {
            return Err(too_large());
        }
        let mut body = BytesMut::with_capacity(announced);
        let mut chunks = object.into_stream();
        while let Some(chunk) = chunks.try_next().await.map_err(failed)? {
            if chunk.len() > self.max_bytes - body.len() {
                return Err(too_large());
            }
            body.extend_from_slice(&chunk);
        }
        match body.is_empty() {
            true => Err(FetchError::NoBytes { host: host.to_owned() }),
            false => Ok(body.freeze()),
        }
    }

    /// The caller learns the kind of failure; its details, which may quote the service, go to the log.
    fn failure(&self, host: &str, error: object_store::Error) -> FetchError {
        use object_store::Error::{NotFound, PermissionDenied, Unauthenticated};

        let host = host.to_owned();
        let kind = causes(&error).find_map(|cause| cause.downcast_ref::<HttpError>()).map(HttpError::kind);
        let failure = match (&error, kind) {
            (NotFound { .. }, _) => return FetchError::NotFound { host, status: 404 },
            (PermissionDenied { .. }, _) => return FetchError::Refused { host, status: 403 },
            (Unauthenticated { .. }, _) => return FetchError::Refused { host, status: 401 },
            // The client has no other timeout.
            (_, Some(HttpErrorKind::Timeout)) => {
                return FetchError::ConnectTimeout { host, limit_ms: self.connect_timeout_ms };
            }
            (_, Some(HttpErrorKind::Connect)) => HostFailure::Connect,
            (_, Some(_)) => HostFailure::Body,
            (_, None) => HostFailure::Store,
        };
        tracing::debug!(%host, %failure, cause = %root_cause(&error), "a picture's object store failed");
        FetchError::Host { host, failure }
    }
}

impl Source for Buckets {
    fn fetch<'a>(
        &'a self,
        address: &'a str,
        _held: Option<ContentDigest>,
        lane: Lane,
    ) -> BoxFuture<'a, Result<Fetched, FetchError>> {
        Box::pin(async move { Ok(self.get(address, lane).await?.into()) })
    }
}

/// Reaches nothing yet. The environment first, then the settings over it, then what was checked.
pub(super) fn open(
    bucket: &BucketConfig,
    client: Client,
    retry: &RetryConfig,
) -> object_store::Result<Arc<dyn ObjectStore>> {
    // The builders have the same methods, but no trait.
    macro_rules! build {
        ($builder:ty, $endpoint:literal, $with_bucket:ident) => {{
            let mut builder = <$builder>::from_env();
            for (key, value) in [($endpoint, &bucket.endpoint), ("region", &bucket.region)] {
                if !value.is_empty() {
                    builder = builder.with_config(key.parse()?, value);
                }
            }
            for (key, value) in &bucket.options {
                builder = builder.with_config(key.parse()?, value.expose());
            }
            builder
                .$with_bucket(&bucket.url.bucket)
                .with_retry(retry.clone())
                .with_http_connector(OurClient(client))
                .build()
                .map(|store| Arc::new(store) as Arc<dyn ObjectStore>)
        }};
    }
    match bucket.url.service {
        ObjectService::S3 => build!(AmazonS3Builder, "endpoint", with_bucket_name),
        ObjectService::Gs => build!(GoogleCloudStorageBuilder, "base_url", with_bucket_name),
        ObjectService::Az => build!(MicrosoftAzureBuilder, "endpoint", with_container_name),
    }
}

/// Has a store speak through our client, with its TLS, timeouts and proxy; the store's own options of that kind never get
/// as far as this.
#[derive(Debug)]
struct OurClient(Client);

impl HttpConnector for OurClient {
    fn connect(&self, _options: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(self.0.clone()))
    }
}

#[cfg(test)]
#[path = "buckets_tests.rs"]
mod tests;
