//! An object store on loopback that speaks as much of S3 as objects whole need.

use std::{
    collections::BTreeMap,
    net::{SocketAddr, TcpListener},
    sync::{Arc, Mutex},
    thread,
};

use actix_web::{App, HttpRequest, HttpResponse, HttpServer, http::Method, web};
use bytes::Bytes;

type Objects = Arc<Mutex<BTreeMap<String, Bytes>>>;

/// Keeps what it is sent under `/bucket/key`; ends with the test process.
pub struct BucketServer {
    address: SocketAddr,
    objects: Objects,
}

impl BucketServer {
    /// Without an object.
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("an address");
        let objects = Objects::default();
        let shared = web::Data::new(objects.clone());
        thread::spawn(move || {
            actix_web::rt::System::new().block_on(async move {
                let app = move || {
                    let any_size = web::PayloadConfig::new(usize::MAX);
                    App::new().app_data(shared.clone()).app_data(any_size).default_service(web::to(answer))
                };
                let server = HttpServer::new(app).workers(1).disable_signals();
                server.listen(listener).expect("a listener").run().await
            })
        });
        Self { address, objects }
    }

    /// Its address.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Every object by its path, such as `bucket/key`.
    pub fn objects(&self) -> BTreeMap<String, Bytes> {
        self.objects.lock().expect("not poisoned").clone()
    }
}

async fn answer(request: HttpRequest, body: Bytes, objects: web::Data<Objects>) -> HttpResponse {
    let key = request.path().trim_start_matches('/').to_owned();
    let mut objects = objects.lock().expect("not poisoned");
    let mut ok = HttpResponse::Ok();
    ok.insert_header(("etag", "\"1\"")).insert_header(("last-modified", "Sat, 21 Nov 2026 12:00:00 GMT"));
    match *request.method() {
        Method::PUT => {
            objects.insert(key, body);
            ok.finish()
        }
        Method::GET => match objects.get(&key) {
            Some(content) => ok.body(content.clone()),
            None => HttpResponse::NotFound().finish(),
        },
        _ => HttpResponse::MethodNotAllowed().finish(),
    }
}
