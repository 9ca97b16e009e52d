//! The models of one process, by name.

use std::sync::Arc;

use futures_util::future::{join_all, select_all};

use super::{Embedder, EmbedderSetupError, Failures, Shared, vectors::Store};
use crate::config::BatchConfig;
use crate::domain::EmbedError;
use crate::runtime::LoadedModel;
use crate::telemetry::Metrics;

/// Every model in service, the default first. Cheap to clone.
#[derive(Clone)]
pub struct Models {
    embedders: Arc<[Embedder]>,
    failures: Arc<Failures>,
    pub(super) store: Store,
    metrics: Arc<Metrics>,
}

impl Models {
    /// Puts every model into service, each with a thread, a queue and limits of its own. Must be called
    /// inside a tokio runtime. They refuse requests until [`Self::warm_up`] has succeeded.
    ///
    /// # Errors
    /// [`EmbedderSetupError`], also when there is no model, or two have one name.
    pub fn new(models: Vec<(LoadedModel, BatchConfig)>, shared: &Shared) -> Result<Self, EmbedderSetupError> {
        let mut embedders: Vec<Embedder> = Vec::with_capacity(models.len());
        for (model, batch) in models {
            let name = &model.spec.name;
            if embedders.iter().any(|other| other.name() == name) {
                return Err(EmbedderSetupError::SameName(name.clone()));
            }
            embedders.push(Embedder::new(model, &batch, shared)?);
        }
        if embedders.is_empty() {
            return Err(EmbedderSetupError::NoModel);
        }
        Ok(Self {
            embedders: embedders.into(),
            store: shared.store.clone(),
            failures: shared.failures.clone(),
            metrics: shared.metrics.clone(),
        })
    }

    /// The items that failed lately, of all models.
    pub fn failures(&self) -> &Failures {
        &self.failures
    }

    /// The model for requests that name none.
    pub fn default_model(&self) -> &Embedder {
        self.embedders.first().expect("there is at least one")
    }

    /// The model that a request's body names. Where only one is served, any name means it: the settings
    /// blocks of Meilisearch's guides carry names of other services.
    ///
    /// # Errors
    /// As [`Self::named`].
    pub fn choose(&self, name: Option<&str>) -> Result<&Embedder, EmbedError> {
        match name {
            Some(name) if self.embedders.len() > 1 => self.named(name),
            _ => Ok(self.default_model()),
        }
    }

    /// The model called `name`.
    ///
    /// # Errors
    /// [`EmbedError::InvalidRequest`] with the names that there are: the caller's fault, never tried again.
    pub fn named(&self, name: &str) -> Result<&Embedder, EmbedError> {
        self.iter().find(|embedder| embedder.name() == name).ok_or_else(|| {
            let known: Vec<_> = self.iter().map(|embedder| format!("`{}`", embedder.name())).collect();
            // Cut, as every bit of a request that is sent back.
            let name: String = name.chars().take(100).collect();
            EmbedError::InvalidRequest(format!(
                "there is no model `{name}`; this service has {}",
                known.join(", ")
            ))
        })
    }

    /// Every model, the default first.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Embedder> {
        self.embedders.iter()
    }

    /// Whether every model takes requests.
    pub fn is_ready(&self) -> bool {
        self.iter().all(Embedder::is_ready)
    }

    /// Warms up one model after the other, so that each has the cores to itself.
    ///
    /// # Errors
    /// As [`Embedder::warm_up`].
    pub async fn warm_up(&self) -> Result<(), EmbedError> {
        for embedder in self.iter() {
            embedder.warm_up().await?;
        }
        self.metrics.ready.set(1);
        Ok(())
    }

    /// Resolves with the reason once a device is lost, else never: with one of several models gone the
    /// process should end as well, and be started again.
    pub async fn device_lost(&self) -> String {
        let (reason, _, _) = select_all(self.iter().map(|embedder| Box::pin(embedder.device_lost()))).await;
        self.metrics.ready.set(0);
        reason
    }

    /// Finishes what is queued, takes no more, joins the devices' threads, and has the caches write what they hold back.
    pub async fn shut_down(&self) {
        join_all(self.iter().map(Embedder::shut_down)).await;
        self.store.cache.flush().await;
        self.metrics.ready.set(0);
    }
}
