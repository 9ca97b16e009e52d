//! The time that a connection has for its first head.
//!
//! actix's own clock answers 408, which is final for Meilisearch, and is asked before the socket is: a request that
//! came whole while the process stood still would be given up for good. Here a connection that is late ends without an
//! answer, and Meilisearch tries again.

use std::{
    any::Any,
    cell::Cell,
    os::fd::{AsRawFd, BorrowedFd},
    time::Duration,
};

use actix_tls::accept::rustls_0_23::TlsStream;
use actix_web::{
    dev::{Extensions, ServiceRequest},
    rt::{self, net::TcpStream},
};
use rustix::net::{Shutdown, shutdown};
use tokio::{sync::oneshot, task::yield_now, time::timeout};

/// Lies beside a connection as long as it is open. Its clock stops when the sender is dropped.
struct FirstHead(Cell<Option<oneshot::Sender<()>>>);

/// Starts the clock of every new connection: for `HttpServer::on_connect`.
pub(super) fn time_first_head(time: Duration) -> impl Fn(&dyn Any, &mut Extensions) + Send + Sync {
    move |connection, beside| {
        let plain = connection.downcast_ref::<TcpStream>();
        let tcp = plain
            .or_else(|| Some(connection.downcast_ref::<TlsStream<TcpStream>>()?.get_ref().0))
            .expect("a connection is plain or TLS");
        let socket = tcp.as_raw_fd();
        let (sender, mut stopped) = oneshot::channel::<()>();
        beside.insert(FirstHead(Cell::new(Some(sender))));
        rt::spawn(async move {
            if timeout(time, &mut stopped).await.is_ok() {
                return;
            }
            // After a pause of the process what has come meanwhile is read first.
            yield_now().await;
            if stopped.try_recv() != Err(oneshot::error::TryRecvError::Empty) {
                return;
            }
            // SAFETY: The socket is open: the sender still lies beside its connection, which drops both at once, and
            // does so on this thread, which is busy here. No request holds the sender, as there was none yet.
            let socket = unsafe { BorrowedFd::borrow_raw(socket) };
            tracing::debug!("no whole head in `server.client_timeout_ms`: the connection ends");
            // actix reads the end of the stream and closes. An error means that the caller has closed already.
            let _closed = shutdown(socket, Shutdown::Read);
        });
    }
}

/// Stops the clock of the request's connection. To be called as soon as the request is there, before its future is polled:
/// HTTP/2 may close the connection before that.
pub(super) fn has_come(request: &ServiceRequest) {
    if let Some(FirstHead(sender)) = request.conn_data() {
        sender.take();
    }
}
