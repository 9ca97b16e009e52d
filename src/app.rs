//! The composition root: the one place that knows every room and joins them.
//!
//! Start: [`bind`] takes the address (a busy port fails before a model is read), [`load_models`] reads the
//! models while connections are refused, [`App::build`] joins the rooms around the opened listener, and
//! [`App::run_until_stopped`] serves. `/health` answers from then on; `/ready` and the embedding
//! routes answer 503 until the warm-up has ended. A liveness probe needs a start-up allowance that covers
//! reading the weights.
//!
//! Stop: the listener closes, requests under way are answered for up to `server.shutdown_timeout_s`,
//! then the batcher and its device thread end, and `cache.file` is written.

use std::{
    future::Future,
    io,
    net::{SocketAddr, TcpListener},
    sync::Arc,
    time::Duration,
};

use actix_web::dev::Server;
use tokio::{net::TcpSocket, time::timeout};

use crate::{
    config::{Config, HubConfig, ModelConfig, ServerConfig},
    domain::EmbedError,
    embedder::{EmbedderSetupError, Models, Shared},
    fetch::{FetchSetupError, Fetcher},
    http::{HttpState, serve},
    hub::{self, HubError},
    runtime::LoadedModel,
    telemetry::Metrics,
};

/// For what the bounded stop itself takes: closing threads, a last forward pass.
const STOP_GRACE: Duration = Duration::from_secs(5);

/// Why the service does not run, or no longer.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// The address is taken, or not this machine's.
    #[error("cannot listen on {address}: {source}; choose another with `--listen`, port 0 picks a free one")]
    Listen {
        /// `server.listen`.
        address: SocketAddr,
        /// What the system says.
        source: io::Error,
    },
    /// No signal handlers, no threads.
    #[error("cannot start: {0}")]
    Start(#[from] io::Error),
    /// The model cannot be had by its name.
    #[error(transparent)]
    Hub(#[from] HubError),
    /// The model has no vectors to give.
    #[error("{0}")]
    Model(String),
    /// Pictures could not be fetched.
    #[error("cannot set up the fetching of pictures: {0}")]
    Fetch(#[from] FetchSetupError),
    /// The model's first passes failed.
    #[error("the model does not work: {0}")]
    WarmUp(#[source] EmbedError),
    /// The HTTP server ended unasked.
    #[error("the HTTP server ended: {0}")]
    Server(String),
    /// The device is gone, and with it the model. A restart may bring it back.
    #[error("{0}")]
    DeviceLost(String),
}

impl AppError {
    /// The exit status of the process: 70 (`EX_SOFTWARE`) for a lost device, so that a supervisor can
    /// tell it from a wrong setting, which is 1.
    pub fn exit_status(&self) -> u8 {
        match self {
            Self::DeviceLost(_) => 70,
            _ => 1,
        }
    }
}

/// An address that is ours, not yet open: connections are refused, and Meilisearch tries again at once.
pub struct Bound {
    socket: TcpSocket,
    address: SocketAddr,
    backlog: u32,
}

/// Takes `server.listen`. Needs a tokio runtime around it.
///
/// # Errors
/// [`AppError::Listen`].
pub fn bind(config: &ServerConfig) -> Result<Bound, AppError> {
    let ServerConfig { listen: address, backlog, .. } = *config;
    let bind = || {
        let socket = match address {
            SocketAddr::V4(_) => TcpSocket::new_v4(),
            SocketAddr::V6(_) => TcpSocket::new_v6(),
        }?;
        // A restart must not wait for the old connections' minutes in TIME_WAIT.
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        Ok(socket)
    };
    let socket = bind().map_err(|source| AppError::Listen { address, source })?;
    Ok(Bound { socket, address, backlog })
}

impl Bound {
    /// Opens the address, with its backlog.
    ///
    /// # Errors
    /// [`AppError::Listen`].
    pub fn listen(self) -> Result<TcpListener, AppError> {
        let Self { socket, address, backlog } = self;
        let listener = socket.listen(backlog).and_then(tokio::net::TcpListener::into_std);
        listener.map_err(|source| AppError::Listen { address, source })
    }
}

/// Reads every model that the settings name, in their order, each downloaded first if need be. Reading takes
/// seconds for a large one, and downloading what the line gives; other tasks go on meanwhile.
///
/// # Errors
/// [`AppError::Hub`], naming the model or file that cannot be had; [`AppError::Model`], naming the file, tensor or device at fault.
pub async fn load_models(config: &Config) -> Result<Vec<LoadedModel>, AppError> {
    let mut models = Vec::new();
    for served in config.served() {
        let hub = config.hub.clone();
        let model = tokio::task::spawn_blocking(move || find_and_load(served.model, &hub))
            .await
            .map_err(|panic| AppError::Model(format!("loading the model failed: {panic}")))?;
        models.push(model?);
    }
    Ok(models)
}

fn find_and_load(model: ModelConfig, hub: &HubConfig) -> Result<LoadedModel, AppError> {
    load_blocking(&model.located(|source| hub::resolve(source, hub))?)
}

#[cfg(feature = "torch")]
fn load_blocking(config: &ModelConfig) -> Result<LoadedModel, AppError> {
    crate::runtime::load(config).map_err(|error| AppError::Model(error.to_string()))
}

#[cfg(not(feature = "torch"))]
fn load_blocking(_config: &ModelConfig) -> Result<LoadedModel, AppError> {
    Err(AppError::Model("this binary was built without the feature `torch`, so it has no engine".into()))
}

/// The rooms, joined and ready to serve.
pub struct App {
    address: SocketAddr,
    models: Models,
    server: Server,
    stop_within: Duration,
}

impl App {
    /// Joins the rooms around `models`, as [`load_models`] gave them for this `config`; `listener` is bound
    /// already. Needs a tokio runtime around it.
    ///
    /// # Errors
    /// [`AppError`] when a room cannot be set up.
    pub fn build(config: Config, models: Vec<LoadedModel>, listener: TcpListener) -> Result<Self, AppError> {
        let address = listener.local_addr()?;
        let stop_within = Duration::from_secs(config.server.shutdown_timeout_s) + STOP_GRACE;
        models.iter().for_each(log_model);
        let metrics = Metrics::new();
        let wrong = |error: EmbedderSetupError| AppError::Model(error.to_string());
        let shared = Shared::new(&config, Fetcher::new(&config.fetch)?, metrics.clone()).map_err(wrong)?;
        let batches = config.served().into_iter().map(|served| served.batch);
        let models = Models::new(models.into_iter().zip(batches).collect(), &shared).map_err(wrong)?;
        let state = HttpState::new(models.clone(), metrics, Arc::new(config));
        Ok(Self { address, models, server: serve(listener, state)?, stop_within })
    }

    /// Where it listens, with the port that was picked for port 0.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The port it listens on.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// The models behind the routes.
    pub fn models(&self) -> &Models {
        &self.models
    }

    /// Serves until `stop` ends, then answers what is under way and returns.
    ///
    /// # Errors
    /// [`AppError::DeviceLost`] after every waiting request was answered; [`AppError::WarmUp`];
    /// [`AppError::Server`].
    ///
    /// # Cancel safety
    /// Dropped half-way it leaves the server's threads to end with the runtime; let `stop` end instead.
    pub async fn run_until_stopped(self, stop: impl Future<Output = ()>) -> Result<(), AppError> {
        let Self { models, server, stop_within, .. } = self;
        let handle = server.handle();
        let mut serving = tokio::spawn(server);
        let outcome = tokio::select! {
            () = stop => Ok(()),
            cause = models.device_lost() => Err(AppError::DeviceLost(cause)),
            error = failed_warm_up(&models) => Err(error),
            ended = &mut serving => Err(AppError::Server(match ended {
                Ok(Ok(())) => "it was stopped from outside".into(),
                Ok(Err(error)) => error.to_string(),
                Err(panic) => panic.to_string(),
            })),
        };
        let finish = async {
            handle.stop(true).await;
            // Only now: the requests that were just answered needed it.
            models.shut_down().await;
        };
        if timeout(stop_within, finish).await.is_err() {
            tracing::warn!("still busy after {} s, stopping anyway", stop_within.as_secs());
        }
        // Whatever else went wrong; cut off, it leaves the file as it was.
        models.save_cache().await;
        outcome
    }
}

/// Ends only if the warm-up fails.
async fn failed_warm_up(models: &Models) -> AppError {
    models.warm_cache().await;
    match models.warm_up().await {
        Ok(()) => {
            tracing::info!("ready");
            std::future::pending().await
        }
        Err(error) => AppError::WarmUp(error),
    }
}

fn log_model(model: &LoadedModel) {
    let LoadedModel { spec, fingerprint, device, dtype, is_demo, .. } = model;
    tracing::info!(model = spec.name, family = spec.family, dimensions = spec.dimensions, %fingerprint, %device, %dtype, "model loaded");
    if *is_demo {
        tracing::warn!(
            "this is the demo model, which only knows its own drawn pictures; \
             for real ones: sidelens --model org/name (a model of the hub), or a directory"
        );
    }
}
