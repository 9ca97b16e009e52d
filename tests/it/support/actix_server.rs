//! What the stand-ins that actix serves have in common.

use std::{
    net::{SocketAddr, TcpListener},
    thread,
};

use actix_web::{App, HttpServer, dev::ServerHandle, web::ServiceConfig};

/// A server on loopback, on a thread of its own until it is dropped.
pub struct ActixServer {
    address: SocketAddr,
    handle: ServerHandle,
}

impl ActixServer {
    /// Listens on a free port.
    pub fn start(configure: impl Fn(&mut ServiceConfig) + Clone + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("an address");
        let (send, receive) = std::sync::mpsc::channel();
        thread::spawn(move || {
            actix_web::rt::System::new().block_on(async move {
                let server = HttpServer::new(move || App::new().configure(configure.clone()))
                    .workers(1)
                    .disable_signals()
                    .listen(listener)
                    .expect("a listener")
                    .run();
                send.send(server.handle()).expect("somebody waits");
                server.await
            })
        });
        Self { address, handle: receive.recv().expect("the server starts") }
    }

    /// Its address, without a path.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

impl Drop for ActixServer {
    fn drop(&mut self) {
        // The returned future only waits; the order is given already.
        drop(self.handle.stop(false));
    }
}
