//! The composition root: the one place that knows every room and joins them.
//!
//! Start: [`bind`] takes the address, and [`Foundation::lay`] sets up whatever needs no model, so that a busy port or a file
//! that is not there fails before a model is read. [`load_models`] reads the models while connections are refused,
//! [`Foundation::build`] joins the rooms around the opened listener, and [`App::run_until_stopped`] serves. `/health`
//! answers from then on; `/ready` and the embedding routes answer 503 until the warm-up has ended. A liveness probe needs
//! a start-up allowance that covers reading the weights.
//!
//! Stop: the listener closes, requests under way are answered for up to `server.shutdown_timeout_s`,
//! then the batcher and its device thread end, and `cache.file` is written.

use std::{
    future::{Future, pending},
    io,
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use futures_util::FutureExt;
use tokio::{
    net::TcpSocket,
    task::{JoinError, spawn_blocking},
    time::{sleep, timeout},
};

use crate::{
    config::{Config, HubConfig, ModelConfig, ServerConfig},
    domain::EmbedError,
    embedder::{EmbedderSetupError, Models, Shared},
    fetch::{FetchSetupError, Fetcher},
    http::{Edge, FilesError, HttpState, Listeners, Servers, serve},
    hub::{self, HubError},
    imaging::WorkerCommand,
    runtime::{LoadedModel, open_cuda_for},
    telemetry::Metrics,
};

/// So long before requests are cut off they are counted.
const BEFORE_CUT: Duration = Duration::from_millis(100);
/// For what the bounded stop itself takes: closing threads, a last forward pass.
const STOP_GRACE: Duration = Duration::from_secs(5);

/// Why the service does not run, or no longer.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// The address is taken, or not this machine's.
    #[error("cannot listen on {address}: {source}; choose another with `{flag}`, port 0 picks a free one")]
    Listen {
        /// `server.listen`, or `server.admin_listen`.
        address: SocketAddr,
        /// What sets it.
        flag: &'static str,
        /// What the system says.
        source: io::Error,
    },
    /// No signal handlers, no threads.
    #[error("cannot start: {0}")]
    Start(#[from] io::Error),
    /// Keys or certificate cannot be used.
    #[error(transparent)]
    Files(#[from] FilesError),
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

/// Addresses that are ours, not yet open: connections are refused, and Meilisearch tries again at once.
pub struct Bound {
    main: BoundSocket,
    admin: Option<BoundSocket>,
}

struct BoundSocket {
    socket: TcpSocket,
    address: SocketAddr,
    flag: &'static str,
    backlog: u32,
}

/// Takes `server.listen`, and `server.admin_listen` where there is one. Needs a tokio runtime around it.
///
/// # Errors
/// [`AppError::Listen`].
pub fn bind(config: &ServerConfig) -> Result<Bound, AppError> {
    let ServerConfig { listen, admin_listen, backlog, client_timeout_ms, .. } = *config;
    let bind = |address, flag| BoundSocket::new(address, flag, backlog, client_timeout_ms);
    let admin = |address| bind(address, "--set server.admin_listen=ADDRESS:PORT");
    Ok(Bound { main: bind(listen, "--listen")?, admin: admin_listen.map(admin).transpose()? })
}

impl BoundSocket {
    fn new(
        address: SocketAddr,
        flag: &'static str,
        backlog: u32,
        client_timeout_ms: u64,
    ) -> Result<Self, AppError> {
        let bind = || {
            let socket = match address {
                SocketAddr::V4(_) => TcpSocket::new_v4(),
                SocketAddr::V6(_) => TcpSocket::new_v6(),
            }?;
            // A restart must not wait for the old connections' minutes in TIME_WAIT.
            socket.set_reuseaddr(true)?;
            drop_when_stuck(&socket, client_timeout_ms)?;
            socket.bind(address)?;
            Ok(socket)
        };
        let socket = bind().map_err(|source| AppError::Listen { address, flag, source })?;
        Ok(Self { socket, address, flag, backlog })
    }

    fn listen(self) -> Result<std::net::TcpListener, AppError> {
        let Self { socket, address, flag, backlog } = self;
        let listener = socket.listen(backlog).and_then(tokio::net::TcpListener::into_std);
        listener.map_err(|source| AppError::Listen { address, flag, source })
    }
}

/// Has the system end connections that this socket accepts once their callers take nothing for so long: the answer
/// would be held for ever. Where the system cannot, nothing happens.
fn drop_when_stuck(socket: &TcpSocket, timeout_ms: u64) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    rustix::net::sockopt::set_tcp_user_timeout(socket, u32::try_from(timeout_ms).unwrap_or(u32::MAX))?;
    #[cfg(not(target_os = "linux"))]
    let _ = (socket, timeout_ms);
    Ok(())
}

impl Bound {
    /// Opens the addresses, each with its backlog.
    ///
    /// # Errors
    /// [`AppError::Listen`].
    pub fn listen(self) -> Result<Listeners, AppError> {
        let admin = self.admin.map(BoundSocket::listen).transpose()?;
        Ok(Listeners { main: self.main.listen()?, admin })
    }
}

/// Reads every model that the settings name, in their order, each downloaded first if need be. Reading takes
/// seconds for a large one, and downloading what the line gives; other tasks go on meanwhile.
///
/// # Errors
/// [`AppError::Hub`], naming the model or file that cannot be had; [`AppError::Model`], naming the file, tensor or device at fault.
pub async fn load_models(config: &Config) -> Result<Vec<LoadedModel>, AppError> {
    let failed = |panic: JoinError| AppError::Model(format!("loading the model failed: {panic}"));
    let served = config.served();
    let choices: Vec<_> = served.iter().map(|served| served.model.device).collect();
    spawn_blocking(move || open_cuda_for(&choices)).await.map_err(failed)?;
    let mut models = Vec::new();
    for served in served {
        let hub = config.hub.clone();
        models.push(spawn_blocking(move || find_and_load(served.model, &hub)).await.map_err(failed)??);
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

/// The rooms behind the edge that need no model.
pub struct Rooms {
    shared: Shared,
    metrics: Arc<Metrics>,
}

impl Rooms {
    /// Sets them up: all files but the models' that they need are read. `decode_worker` starts a process that decodes.
    /// Needs a tokio runtime around it.
    ///
    /// # Errors
    /// [`AppError`] when a room cannot be set up.
    pub fn open(config: &Config, decode_worker: WorkerCommand) -> Result<Self, AppError> {
        let metrics = Metrics::new();
        let fetcher = Fetcher::new(&config.fetch, metrics.clone())?;
        let shared = Shared::new(config, fetcher, decode_worker, metrics.clone()).map_err(no_service)?;
        Ok(Self { shared, metrics })
    }

    /// Joins them around `models`, as [`load_models`] gave them for this `config`: all that embeds, without an address.
    ///
    /// # Errors
    /// [`AppError::Model`] when one cannot be put into service.
    pub fn join(&self, config: &Config, models: Vec<LoadedModel>) -> Result<Models, AppError> {
        models.iter().for_each(log_model);
        let batches = config.served().into_iter().map(|served| served.batch);
        Models::new(models.into_iter().zip(batches).collect(), &self.shared).map_err(no_service)
    }
}

fn no_service(error: EmbedderSetupError) -> AppError {
    AppError::Model(error.to_string())
}

/// A service that lacks its models.
pub struct Foundation {
    config: Config,
    rooms: Rooms,
    edge: Edge,
}

impl Foundation {
    /// Reads the files that the settings name, but for the models'. `decode_worker` starts a process that decodes. Needs a
    /// tokio runtime around it.
    ///
    /// # Errors
    /// [`AppError`] when a room cannot be set up.
    pub fn lay(config: Config, decode_worker: WorkerCommand) -> Result<Self, AppError> {
        let rooms = Rooms::open(&config, decode_worker)?;
        let edge = Edge::new(&config, &rooms.metrics)?;
        Ok(Self { config, rooms, edge })
    }

    /// The settings that it was laid for.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Joins the rooms around `models`, as [`load_models`] gave them for these settings; `listeners` are open already.
    /// Needs a tokio runtime around it.
    ///
    /// # Errors
    /// [`AppError`] when a model or a socket cannot be used.
    pub fn build(self, models: Vec<LoadedModel>, listeners: Listeners) -> Result<App, AppError> {
        let Self { config, rooms, edge } = self;
        let address = listeners.main.local_addr()?;
        let admin_address = listeners.admin.as_ref().map(|admin| admin.local_addr()).transpose()?;
        let scheme = if config.server.tls_cert.is_some() { "https" } else { "http" };
        let shutdown_timeout = Duration::from_secs(config.server.shutdown_timeout_s);
        let models = rooms.join(&config, models)?;
        let metrics = rooms.metrics;
        let state = HttpState::new(models.clone(), metrics.clone(), Arc::new(config), edge);
        let servers = serve(listeners, state)?;
        Ok(App { address, admin_address, scheme, models, servers, metrics, shutdown_timeout })
    }
}

/// The rooms, joined and ready to serve.
pub struct App {
    address: SocketAddr,
    admin_address: Option<SocketAddr>,
    scheme: &'static str,
    models: Models,
    servers: Servers,
    metrics: Arc<Metrics>,
    shutdown_timeout: Duration,
}

impl App {
    /// Where it listens, with the port that was picked for port 0.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The port it listens on.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// Where `/metrics` and `/admin` are, if not there.
    pub fn admin_address(&self) -> Option<SocketAddr> {
        self.admin_address
    }

    /// The address as a URL.
    pub fn url(&self) -> String {
        format!("{}://{}", self.scheme, self.address)
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
        let Self { models, servers, metrics, shutdown_timeout, .. } = self;
        let handle = servers.main.handle();
        let mut serving = tokio::spawn(servers.main);
        let mut admin = servers.admin.map(|admin| (admin.handle(), tokio::spawn(admin)));
        let outcome = tokio::select! {
            () = stop => Ok(()),
            cause = models.device_lost() => Err(AppError::DeviceLost(cause)),
            error = failed_warm_up(&models) => Err(error),
            ended = &mut serving => Err(ended_unasked(ended)),
            ended = async {
                match &mut admin {
                    Some((_, serving)) => serving.await,
                    None => pending().await,
                }
            } => Err(ended_unasked(ended)),
        };
        // What the server cuts off it does not tell, and then nobody counts it any more.
        let tell_of_cut = async {
            sleep(shutdown_timeout.saturating_sub(BEFORE_CUT)).await;
            let n_requests = metrics.requests_in_flight.get();
            if n_requests > 0 {
                let limit_s = shutdown_timeout.as_secs();
                tracing::warn!(
                    n_requests,
                    "cut off, without an answer within `server.shutdown_timeout_s` {limit_s}"
                );
            }
            pending().await
        };
        let finish = async {
            tokio::select! {
                () = handle.stop(true) => (),
                () = tell_of_cut => (),
            }
            // Only now: the requests that were just answered needed it.
            models.shut_down().await;
            // Last, so that the stop can be watched.
            if let Some((admin, _)) = admin {
                admin.stop(false).await;
            }
        };
        let stop_within = shutdown_timeout + STOP_GRACE;
        if timeout(stop_within, finish).await.is_err() {
            tracing::warn!("still busy after {} s, stopping anyway", stop_within.as_secs());
        }
        // Whatever else went wrong; cut off, it leaves the file as it was.
        models.save_cache().await;
        outcome
    }
}

/// Why a server's task is over that was to go on.
fn ended_unasked(ended: Result<io::Result<()>, JoinError>) -> AppError {
    AppError::Server(match ended {
        Ok(Ok(())) => "it was stopped from outside".into(),
        Ok(Err(error)) => error.to_string(),
        Err(panic) => panic.to_string(),
    })
}

/// Ends only if the warm-up fails.
async fn failed_warm_up(models: &Models) -> AppError {
    models.warm_cache().await;
    match models.warm_up().await {
        Ok(()) => {
            tracing::info!("ready");
            pending().await
        }
        // A device that is lost meanwhile is the deeper reason, and was known before any pass was answered.
        Err(error) => {
            models.device_lost().now_or_never().map_or(AppError::WarmUp(error), AppError::DeviceLost)
        }
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
