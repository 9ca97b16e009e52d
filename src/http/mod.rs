//! The edge, home of actix-web: routes, bodies, keys, status codes. What a body means is the dialect
//! room's, what becomes of it the embedder's.

mod auth;
mod body;
mod embed;
mod error;
mod observe;
mod ops;
mod server;

use std::sync::Arc;

use actix_web::web::{self, ServiceConfig};

pub use error::HttpError;
pub use server::serve;

use crate::{config::Config, dialect::DIALECTS, embedder::Embedder, telemetry::Metrics};

/// What every handler reads. Cheap to clone; all workers share one.
#[derive(Clone)]
pub struct HttpState {
    /// The one verb behind the embedding routes.
    pub embedder: Embedder,
    /// The house's metrics.
    pub metrics: Arc<Metrics>,
    /// The settings.
    pub config: Arc<Config>,
    keys: Arc<auth::Keys>,
    bodies: body::Bodies,
}

impl HttpState {
    /// Joins the edge to the rest of the house.
    pub fn new(embedder: Embedder, metrics: Arc<Metrics>, config: Arc<Config>) -> Self {
        let keys = Arc::new(auth::Keys::new(&config.auth));
        let bodies = body::Bodies::new(&config.server, &config.batch);
        Self { embedder, metrics, config, keys, bodies }
    }
}

/// Registers the ops routes, then each dialect's, with and without a trailing slash: Meilisearch follows a
/// redirect as a GET without a body, so none is ever sent.
pub fn configure(state: HttpState) -> impl FnOnce(&mut ServiceConfig) {
    move |app| {
        app.app_data(web::Data::new(state));
        ops::configure(app);
        for &dialect in &DIALECTS {
            for &route in dialect.routes() {
                app.service(
                    web::resource(with_slash(route))
                        .route(web::post().to(move |state, request, payload| {
                            embed::embed(dialect, state, request, payload)
                        }))
                        .default_service(web::to(|| async { HttpError::WrongMethod("POST").response() })),
                );
            }
        }
        app.default_service(web::to(|| async { HttpError::NoRoute.response() }));
    }
}

/// The path itself, and the same with a slash at its end.
fn with_slash(path: &str) -> Vec<String> {
    let path = path.trim_end_matches('/');
    if path.is_empty() { vec!["/".into()] } else { vec![path.into(), format!("{path}/")] }
}
