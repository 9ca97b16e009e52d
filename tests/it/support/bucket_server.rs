//! An object store on loopback that speaks as much of S3 as objects whole need.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use actix_web::{HttpRequest, HttpResponse, http::Method, web};
use bytes::Bytes;

use super::actix_server::ActixServer;

type Objects = Arc<Mutex<BTreeMap<String, Bytes>>>;

/// Keeps what it is sent under `/bucket/key`.
pub struct BucketServer {
    server: ActixServer,
    objects: Objects,
}

impl BucketServer {
    /// Without an object.
    pub fn start() -> Self {
        let objects = Objects::default();
        let shared = web::Data::new(objects.clone());
        let server = ActixServer::start(move |config| {
            let any_size = web::PayloadConfig::new(usize::MAX);
            config.app_data(shared.clone()).app_data(any_size).default_service(web::to(answer));
        });
        Self { server, objects }
    }

    /// Its address.
    pub fn url(&self) -> String {
        self.server.url()
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
