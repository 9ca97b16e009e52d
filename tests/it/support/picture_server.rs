//! A host of pictures on loopback.

use std::{
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use actix_web::{HttpRequest, HttpResponse, HttpResponseBuilder, http::header, web};

use super::actix_server::ActixServer;

/// Serves the files of a folder at `/NAME`; at `/fresh/NAME` for a minute, at `/tagged/NAME` for as long as an ETag says,
/// at `/as/TYPE/NAME` under any content type, at `/third/NAME` after two answers of 503, at `/untraced/NAME` if the request
/// tells of no trace. Answers 404 for others, the status N at `/status/N`, and never within a test's patience at `/slow`.
pub struct PictureServer(ActixServer);

impl PictureServer {
    /// Serves `folder`, relative to the checkout.
    pub fn start(folder: &str) -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
        let folder = web::Data::new(folder);
        let refused = web::Data::new(AtomicUsize::new(0));
        Self(ActixServer::start(move |config| {
            config
                .app_data(folder.clone())
                .app_data(refused.clone())
                .route("/third/{file}", web::get().to(third))
                .route("/untraced/{file}", web::get().to(untraced))
                .route("/slow", web::get().to(slow))
                .route("/status/{code}", web::get().to(status))
                .route("/fresh/{file}", web::get().to(fresh))
                .route("/tagged/{file}", web::get().to(tagged))
                .route("/as/{type}/{subtype}/{file}", web::get().to(of_type))
                .route("/{file}", web::get().to(file));
        }))
    }

    /// The address of a file.
    pub fn url(&self, path: &str) -> String {
        format!("{}/{path}", self.0.url())
    }
}

async fn file(folder: web::Data<PathBuf>, name: web::Path<String>) -> HttpResponse {
    read(&folder, &name, HttpResponse::Ok())
}

fn read(folder: &Path, name: &str, mut answer: HttpResponseBuilder) -> HttpResponse {
    match std::fs::read(folder.join(name)) {
        Ok(bytes) => answer.body(bytes),
        Err(_) => HttpResponse::NotFound().finish(),
    }
}

async fn fresh(folder: web::Data<PathBuf>, name: web::Path<String>) -> HttpResponse {
    let mut answer = HttpResponse::Ok();
    answer.insert_header((header::CACHE_CONTROL, "max-age=60"));
    read(&folder, &name, answer)
}

async fn tagged(folder: web::Data<PathBuf>, name: web::Path<String>, request: HttpRequest) -> HttpResponse {
    if request.headers().get(header::IF_NONE_MATCH).is_some_and(|known| known == "\"a\"") {
        return HttpResponse::NotModified().finish();
    }
    let mut answer = HttpResponse::Ok();
    answer.insert_header((header::ETAG, "\"a\"")).insert_header((header::CACHE_CONTROL, "no-cache"));
    read(&folder, &name, answer)
}

async fn third(
    folder: web::Data<PathBuf>,
    name: web::Path<String>,
    refused: web::Data<AtomicUsize>,
) -> HttpResponse {
    if refused.fetch_add(1, Ordering::SeqCst) < 2 {
        return HttpResponse::ServiceUnavailable().finish();
    }
    read(&folder, &name, HttpResponse::Ok())
}

async fn untraced(folder: web::Data<PathBuf>, name: web::Path<String>, request: HttpRequest) -> HttpResponse {
    if ["traceparent", "tracestate", "baggage"].iter().any(|name| request.headers().contains_key(*name)) {
        return HttpResponse::BadRequest().finish();
    }
    read(&folder, &name, HttpResponse::Ok())
}

async fn of_type(folder: web::Data<PathBuf>, path: web::Path<(String, String, String)>) -> HttpResponse {
    let (kind, subtype, name) = path.into_inner();
    let mut answer = HttpResponse::Ok();
    answer.insert_header((header::CONTENT_TYPE, format!("{kind}/{subtype}")));
    read(&folder, &name, answer)
}

async fn status(code: web::Path<u16>) -> HttpResponse {
    let code = actix_web::http::StatusCode::from_u16(*code).expect("a status");
    HttpResponse::build(code).finish()
}

async fn slow() -> HttpResponse {
    tokio::time::sleep(Duration::from_secs(600)).await;
    HttpResponse::Ok().finish()
}
