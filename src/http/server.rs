//! Listeners, workers, timeouts.

use std::{io, net::TcpListener, num::NonZeroUsize, thread, time::Duration};

use actix_web::{
    App, HttpServer,
    dev::{Server, Service},
    http::KeepAlive,
    middleware::from_fn,
};
use tracing_actix_web::TracingLogger;

use super::{
    FilesError, HttpState, Listener, configure,
    head::{has_come, time_first_head},
    observe::{RequestSpan, observe},
    tls::tls_config,
};

/// For a caller that still sends after it was refused: closing at once would hide the answer behind a
/// connection reset, which Meilisearch takes for an outage and tries again for minutes.
const LINGER: Duration = Duration::from_secs(10);
/// Connections of the second listener; a probe and a scraper need two.
const ADMIN_CONNECTIONS: usize = 64;

/// Threads that a worker may have for what blocks: names, files, searches that are decoded or tokenised, large bodies.
/// actix's 512 for all workers together leave four to each on a large machine, and a dead name server or file system would
/// hold those. Each is started only when it is needed.
const BLOCKING_THREADS: usize = 512;

/// Open sockets, the backlog of each the binder's matter.
#[derive(Debug)]
pub struct Listeners {
    /// For `server.listen`.
    pub main: TcpListener,
    /// For `server.admin_listen`.
    pub admin: Option<TcpListener>,
}

/// Running servers, each until it is stopped through its handle.
pub struct Servers {
    /// Answers callers.
    pub main: Server,
    /// Answers `/metrics` and `/admin`; without it they are on the first.
    pub admin: Option<Server>,
}

/// Why nothing is served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// A socket cannot be used.
    #[error(transparent)]
    Socket(#[from] io::Error),
    /// The certificate cannot be used.
    #[error(transparent)]
    Files(#[from] FilesError),
}

/// Serves on listeners that are open already. Signals are left to the caller. Needs a tokio runtime around it.
///
/// A stop accepts nothing more, and lets requests finish for `server.shutdown_timeout_s` seconds.
///
/// # Errors
/// [`ServeError`].
pub fn serve(listeners: Listeners, state: HttpState) -> Result<Servers, ServeError> {
    let Listeners { main, admin } = listeners;
    let config = &state.config.server;
    let tls = tls_config(config, &state.metrics)?;
    let cores = || thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let workers = if config.workers == 0 { cores() } else { config.workers };
    let per_worker = config.max_connections.div_ceil(workers);

    let keep_alive = match config.keep_alive_s {
        // The first head of a connection is timed, no other.
        0 => KeepAlive::Disabled,
        seconds => KeepAlive::Timeout(Duration::from_secs(seconds)),
    };

    let start = |socket: TcpListener, listener: Listener, workers: usize, per_worker: usize| {
        let client_timeout = Duration::from_millis(config.client_timeout_ms);
        let state = state.clone();
        let server = HttpServer::new(move || {
            App::new()
                .configure(configure(state.clone(), listener))
                .wrap(from_fn(observe))
                // Around it, as it makes the id that `observe` sends back.
                .wrap(TracingLogger::<RequestSpan>::new())
                .wrap_fn(|request, service| {
                    has_come(&request);
                    service.call(request)
                })
        })
        .workers(workers)
        .worker_max_blocking_threads(BLOCKING_THREADS)
        .max_connections(per_worker)
        // actix would answer 408.
        .client_request_timeout(Duration::ZERO)
        .on_connect(time_first_head(client_timeout))
        .tls_handshake_timeout(client_timeout)
        .client_disconnect_timeout(LINGER)
        .keep_alive(keep_alive)
        .tcp_nodelay(true)
        // A caller that hangs up has its request dropped, so that its inputs leave the queue.
        .h1_allow_half_closed(false)
        .shutdown_timeout(config.shutdown_timeout_s)
        .disable_signals();
        let server = match tls.clone() {
            Some(tls) => server.listen_rustls_0_23(socket, tls)?,
            None => server.listen(socket)?,
        };
        Ok::<_, io::Error>(server.run())
    };
    let role = if admin.is_some() { Listener::Main } else { Listener::Only };
    Ok(Servers {
        main: start(main, role, workers, per_worker)?,
        admin: admin.map(|socket| start(socket, Listener::Admin, 1, ADMIN_CONNECTIONS)).transpose()?,
    })
}
