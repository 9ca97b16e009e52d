//! A host of pictures on loopback.

use std::{
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use actix_web::{App, HttpResponse, HttpServer, dev::ServerHandle, web};

/// Serves the files of a folder at `/NAME`, answers 404 for others, the status N at `/status/N`, and
/// never within a test's patience at `/slow`.
pub struct PictureServer {
    address: SocketAddr,
    handle: ServerHandle,
}

impl PictureServer {
    /// Serves `folder`, relative to the checkout.
    pub fn start(folder: &str) -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("an address");
        let (send, receive) = std::sync::mpsc::channel();
        thread::spawn(move || {
            actix_web::rt::System::new().block_on(async move {
                let server = HttpServer::new(move || {
                    App::new()
                        .app_data(web::Data::new(folder.clone()))
                        .route("/slow", web::get().to(slow))
                        .route("/status/{code}", web::get().to(status))
                        .route("/{file}", web::get().to(file))
                })
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

    /// The address of a file.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}/{path}", self.address)
    }
}

impl Drop for PictureServer {
    fn drop(&mut self) {
        // The returned future only waits; the order is given already.
        drop(self.handle.stop(false));
    }
}

async fn file(folder: web::Data<PathBuf>, name: web::Path<String>) -> HttpResponse {
    match std::fs::read(folder.join(name.as_str())) {
        Ok(bytes) => HttpResponse::Ok().body(bytes),
        Err(_) => HttpResponse::NotFound().finish(),
    }
}

async fn status(code: web::Path<u16>) -> HttpResponse {
    let code = actix_web::http::StatusCode::from_u16(*code).expect("a status");
    HttpResponse::build(code).finish()
}

async fn slow() -> HttpResponse {
    tokio::time::sleep(Duration::from_secs(600)).await;
    HttpResponse::Ok().finish()
}
