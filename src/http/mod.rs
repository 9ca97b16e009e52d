//! The edge, home of actix-web: routes, bodies, keys, status codes. What a body means is the dialect
//! room's, what becomes of it the embedder's.

mod admin_cache;
mod auth;
mod body;
mod embed;
mod error;
mod observe;
mod ops;
mod server;

use std::{cmp::Reverse, sync::Arc};

use actix_web::web::{self, ServiceConfig};

pub use error::HttpError;
pub use server::serve;

use crate::{config::Config, dialect::DIALECTS, embedder::Models, telemetry::Metrics};

/// What every handler reads. Cheap to clone; all workers share one.
#[derive(Clone)]
pub struct HttpState {
    /// The one verb behind the embedding routes, for each model.
    pub models: Models,
    /// The house's metrics.
    pub metrics: Arc<Metrics>,
    /// The settings.
    pub config: Arc<Config>,
    keys: Arc<auth::Keys>,
    bodies: body::Bodies,
}

impl HttpState {
    /// Joins the edge to the rest of the house.
    pub fn new(models: Models, metrics: Arc<Metrics>, config: Arc<Config>) -> Self {
        let keys = Arc::new(auth::Keys::new(&config.auth));
        let bodies = body::Bodies::new(&config.server, &config.batch);
        Self { models, metrics, config, keys, bodies }
    }
}

/// Registers the ops routes, then each dialect's, by itself and below each model's path, with and without a
/// trailing slash: Meilisearch follows a redirect as a GET without a body, so none is ever sent.
pub fn configure(state: HttpState) -> impl FnOnce(&mut ServiceConfig) {
    move |app| {
        app.app_data(web::Data::new(state));
        ops::configure(app);
        admin_cache::configure(app);
        let mut routes: Vec<_> = DIALECTS
            .iter()
            .flat_map(|&dialect| dialect.routes().iter().map(move |r| (dialect, *r)))
            .collect();
        // A model's name may have slashes, so that `/models/{name}/embed` also fits `/models/a/tei/embed`:
        // the longer route is asked first.
        routes.sort_by_key(|(_, route)| Reverse(route.len()));
        for (dialect, route) in routes {
            let mut paths = with_slash(route);
            if route != "/" {
                paths.extend(with_slash(&format!("/models/{{model:.+}}{route}")));
            }
            app.service(
                web::resource(paths)
                    .route(
                        web::post().to(move |state, request, payload| {
                            embed::embed(dialect, state, request, payload)
                        }),
                    )
                    .default_service(web::to(|| async { HttpError::WrongMethod("POST").response() })),
            );
        }
        app.default_service(web::to(|| async { HttpError::NoRoute.response() }));
    }
}

/// The path itself, and the same with a slash at its end.
fn with_slash(path: &str) -> Vec<String> {
    let path = path.trim_end_matches('/');
    if path.is_empty() { vec!["/".into()] } else { vec![path.into(), format!("{path}/")] }
}
