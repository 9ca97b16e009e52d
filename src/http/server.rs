//! Listener, workers, timeouts.

use std::{io, net::TcpListener, time::Duration};

use actix_web::{App, HttpServer, dev::Server, middleware::from_fn};
use tracing_actix_web::TracingLogger;

use super::{
    HttpState, configure,
    observe::{RequestSpan, observe},
};

/// Connections that one worker holds; far above the 40 of Meilisearch, far below usual descriptor limits.
const MAX_CONNECTIONS: usize = 4096;
/// For a request's head. Bodies are bounded by the deadline of requests.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// For an idle connection; Meilisearch uses each for one request only.
const KEEP_ALIVE: Duration = Duration::from_secs(30);
/// For a caller that still sends after it was refused: closing at once would hide the answer behind a
/// connection reset, which Meilisearch takes for an outage and tries again for minutes.
const LINGER: Duration = Duration::from_secs(10);

/// Serves on a listener that is bound already (its backlog is the binder's matter), until the returned
/// server is stopped through its handle. Signals are left to the caller.
///
/// A stop accepts nothing more, and lets requests finish for `server.shutdown_timeout_s` seconds.
///
/// # Errors
/// When the listener cannot be used.
pub fn serve(listener: TcpListener, state: HttpState) -> io::Result<Server> {
    let config = state.config.server.clone();
    let mut server = HttpServer::new(move || {
        App::new()
            .configure(configure(state.clone()))
            .wrap(from_fn(observe))
            // Outermost, as it makes the id that `observe` sends back.
            .wrap(TracingLogger::<RequestSpan>::new())
    })
    .max_connections(MAX_CONNECTIONS)
    .client_request_timeout(HEAD_TIMEOUT)
    .client_disconnect_timeout(LINGER)
    .keep_alive(KEEP_ALIVE)
    .tcp_nodelay(true)
    // A caller that hangs up has its request dropped, so that its inputs leave the queue.
    .h1_allow_half_closed(false)
    .shutdown_timeout(config.shutdown_timeout_s)
    .disable_signals();
    if config.workers > 0 {
        server = server.workers(config.workers);
    }
    Ok(server.listen(listener)?.run())
}
