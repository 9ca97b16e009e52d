//! Listeners, workers, timeouts.

use std::{
    io,
    net::{SocketAddr, TcpListener},
    num::NonZeroUsize,
    thread,
    time::Duration,
};

use actix_http::{HttpService, error::DispatchError};
use actix_server::GracefulShutdownSignal;
use actix_service::{ServiceFactory, ServiceFactoryExt, fn_service, map_config};
use actix_tls::accept::{
    TlsError,
    rustls_0_23::{Acceptor, TlsStream},
};
use actix_web::{
    App,
    dev::{AppConfig, Server, Service},
    http::{ConnectionType, KeepAlive},
    middleware::from_fn,
    rt::net::TcpStream,
};
use rustls::ServerConfig as TlsConfig;
use tracing_actix_web::TracingLogger;

use super::{
    HttpState, Listener, configure,
    exchange::Exchange,
    observe::{RequestSpan, observe},
    socket::{Carrier, Socket},
};
use crate::config::MAX_WORKERS;

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

/// Serves on listeners that are open already. Signals are left to the caller. Needs a tokio runtime around it.
///
/// A stop accepts nothing more, and lets requests finish for `server.shutdown_timeout_s` seconds.
///
/// # Errors
/// When a socket cannot be used.
pub fn serve(listeners: Listeners, state: HttpState) -> io::Result<Servers> {
    let Listeners { main, admin } = listeners;
    let config = &state.config.server;
    let cores = || thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let workers = if config.workers == 0 { cores().min(MAX_WORKERS) } else { config.workers };
    let per_worker = config.max_connections.div_ceil(workers);

    let start = |socket: TcpListener, listener: Listener, workers: usize, per_worker: usize| {
        let builder = Server::build()
            .workers(workers)
            .worker_max_blocking_threads(BLOCKING_THREADS)
            .max_concurrent_connections(per_worker)
            .shutdown_timeout(config.shutdown_timeout_s)
            .disable_signals();
        let stop = builder.graceful_shutdown_signal();
        let (state, tls) = (state.clone(), state.edge.tls.clone());
        let server = match tls {
            None => {
                let connect = move || plain().and_then(http(state.clone(), listener, stop.clone()));
                builder.listen("http", socket, connect)?
            }
            Some(tls) => {
                let time = Duration::from_millis(config.client_timeout_ms);
                let connect = move || {
                    secure(tls.clone(), time)
                        .and_then(http(state.clone(), listener, stop.clone()).map_err(TlsError::Service))
                };
                builder.listen("https", socket, connect)?
            }
        };
        Ok::<_, io::Error>(server.run())
    };
    let role = if admin.is_some() { Listener::Main } else { Listener::Only };
    Ok(Servers {
        main: start(main, role, workers, per_worker)?,
        admin: admin.map(|socket| start(socket, Listener::Admin, 1, ADMIN_CONNECTIONS)).transpose()?,
    })
}

/// A socket, or TLS over one, and whose it is.
type Connection<T> = (T, Option<SocketAddr>);

/// Connections as they were accepted.
fn plain() -> impl ServiceFactory<
    TcpStream,
    Config = (),
    Response = Connection<Socket>,
    Error = DispatchError,
    InitError = (),
> {
    fn_service(|tcp| async { Ok(with_peer(Socket::new(tcp))) })
}

/// Connections that have shaken hands within `time`.
fn secure(
    mut tls: TlsConfig,
    time: Duration,
) -> impl ServiceFactory<
    TcpStream,
    Config = (),
    Response = Connection<TlsStream<Socket>>,
    Error = TlsError<io::Error, DispatchError>,
    InitError = (),
> {
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    let mut acceptor = Acceptor::new(tls);
    acceptor.set_handshake_timeout(time);
    fn_service(|tcp| async { Ok(Socket::new(tcp)) })
        .and_then(acceptor.map_err(TlsError::into_service_error))
        .map(with_peer)
}

fn with_peer<T: Carrier>(carrier: T) -> Connection<T> {
    let peer = carrier.socket().peer();
    (carrier, peer)
}

/// The house behind a connection.
fn http<T: Carrier>(
    state: HttpState,
    listener: Listener,
    stop: GracefulShutdownSignal,
) -> impl ServiceFactory<Connection<T>, Config = (), Response = (), Error = DispatchError, InitError = ()> {
    let config = &state.config.server;
    let keep_alive = match config.keep_alive_s {
        // The first head of a connection is timed, no other.
        0 => KeepAlive::Disabled,
        seconds => KeepAlive::Timeout(Duration::from_secs(seconds)),
    };
    let client_timeout = Duration::from_millis(config.client_timeout_ms);
    let app = App::new()
        .configure(configure(state, listener))
        .wrap(from_fn(observe))
        // Around it, as it makes the id that `observe` sends back.
        .wrap(TracingLogger::<RequestSpan>::new())
        .wrap_fn(|mut request, service| {
            let exchange = Exchange::begin(&mut request);
            // Nothing else is spoken here. actix ends such a connection with the answer, and would not say so.
            let asks_for_upgrade = request.head().connection_type() == ConnectionType::Upgrade;
            let answered = service.call(request);
            async move {
                let mut answered = answered.await?;
                if asks_for_upgrade {
                    answered.response_mut().head_mut().set_connection_type(ConnectionType::Close);
                }
                Ok(answered.map_body(|_, answer| exchange.until_sent(answer)))
            }
        });
    HttpService::build()
        // Connections that are kept alive end with a stop.
        .graceful_shutdown_signal(move || {
            let stop = stop.clone();
            async move { stop.notified().await }
        })
        // actix would answer 408.
        .client_request_timeout(Duration::ZERO)
        .client_disconnect_timeout(LINGER)
        .keep_alive(keep_alive)
        // A caller that hangs up has its request dropped, so that its inputs leave the queue.
        .h1_allow_half_closed(false)
        .on_connect_ext(move |carrier: &T, beside| carrier.socket().serve(client_timeout, beside))
        // Nobody here asks what address or scheme the app is served under.
        .h1(map_config(app, |()| AppConfig::default()))
}
