//! A folder of a bucket that the operator has us write to.

use std::{io, sync::Arc, time::Duration};

use bytes::Bytes;
use object_store::{Error, ObjectStore, ObjectStoreExt, RetryConfig, path::Path};

use super::{FetchSetupError, buckets, client};
use crate::config::{BucketConfig, FetchConfig, ObjectUrl};

/// How long one request may take, bodies of tens of megabytes included.
const TIMEOUT: Duration = Duration::from_secs(300);

/// The folder. Cheap to clone.
#[derive(Clone)]
pub struct BucketFolder {
    store: Arc<dyn ObjectStore>,
    prefix: Path,
}

impl BucketFolder {
    /// The folder at `url`. A bucket that is listed in `fetch.buckets`, whatever part of it, is reached as that entry
    /// says; any other with what the environment and the machine's own identity give. Reaches nothing yet.
    ///
    /// # Errors
    /// [`FetchSetupError`] when the settings do not do.
    pub fn open(url: &ObjectUrl, config: &FetchConfig) -> Result<Self, FetchSetupError> {
        let wrong = |source| FetchSetupError::Folder { url: url.to_string(), source };
        let is_same =
            |bucket: &&BucketConfig| (bucket.url.service, &bucket.url.bucket) == (url.service, &url.bucket);
        let unlisted = || BucketConfig {
            url: url.clone(),
            endpoint: String::new(),
            region: String::new(),
            options: Default::default(),
            through_proxy: true,
        };
        let bucket = config.buckets.iter().find(is_same).cloned().unwrap_or_else(unlisted);
        let client = client::for_bucket(config, &bucket)?.timeout(TIMEOUT).build()?;
        let store = buckets::open(&bucket, client, &RetryConfig::default()).map_err(wrong)?;
        let prefix = Path::parse(&url.key).map_err(|error| wrong(error.into()))?;
        Ok(Self { store, prefix })
    }

    /// The content of an object; `None` if there is none.
    ///
    /// # Errors
    /// When the object store does not deliver.
    pub async fn get(&self, name: &str) -> io::Result<Option<Bytes>> {
        match self.store.get(&self.at(name)).await {
            Ok(object) => Ok(Some(object.bytes().await?)),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Writes an object, in the place of any of this name.
    ///
    /// # Errors
    /// When the object store does not take it.
    pub async fn put(&self, name: &str, content: Bytes) -> io::Result<()> {
        self.store.put(&self.at(name), content.into()).await?;
        Ok(())
    }

    fn at(&self, name: &str) -> Path {
        self.prefix.clone().join(name)
    }
}
