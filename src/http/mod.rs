//! The edge, home of actix-web: routes, bodies, keys, status codes. What a body means is the dialect
//! room's, what becomes of it the embedder's.

mod admin;
mod admin_cache;
mod answer;
mod auth;
mod body;
mod embed;
mod error;
mod exchange;
mod limit;
mod live;
mod observe;
mod ops;
mod room;
mod server;
mod socket;
mod tls;

use std::{cmp::Reverse, sync::Arc};

use actix_web::web::{self, ServiceConfig};

pub use error::HttpError;
pub use live::FilesError;
pub use server::{Listeners, Servers, serve};
pub use tls::CertificateError;

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
    edge: Edge,
    bodies: body::Bodies,
    answers: answer::Answers,
}

/// What the edge needs of files, in force as they change. Cheap to clone.
#[derive(Clone)]
pub struct Edge {
    keys: Arc<live::Live<auth::Keys>>,
    tls: Option<rustls::ServerConfig>,
}

impl Edge {
    /// Reads the keys and the certificate. Needs a tokio runtime around it.
    ///
    /// # Errors
    /// [`FilesError`] when one of them cannot be used.
    pub fn new(config: &Config, metrics: &Arc<Metrics>) -> Result<Self, FilesError> {
        let keys = Arc::new(auth::Keys::live(&config.auth, metrics)?);
        Ok(Self { keys, tls: tls::tls_config(&config.server, metrics)? })
    }
}

impl HttpState {
    /// Joins the edge to the rest of the house.
    pub fn new(models: Models, metrics: Arc<Metrics>, config: Arc<Config>, edge: Edge) -> Self {
        let bodies = body::Bodies::new(&config.server, &config.batch);
        let answers = answer::Answers::new(&config.server, &config.batch);
        Self { models, metrics, config, edge, bodies, answers }
    }
}

/// Which of the listeners a route is answered on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listener {
    /// There is one, for everything.
    Only,
    /// The first of two: everything but `/metrics` and `/admin`.
    Main,
    /// `server.admin_listen`: these two, and the probes.
    Admin,
}

impl Listener {
    /// For those who asked here for what is not here.
    fn directions(self) -> &'static str {
        match self {
            Self::Only => "vectors are at POST /embed, facts at GET /info",
            Self::Main => {
                "vectors are at POST /embed, facts at GET /info; /metrics and /admin are at `server.admin_listen`"
            }
            Self::Admin => {
                "this is `server.admin_listen`, for /metrics and /admin; vectors and /info are at `server.listen`"
            }
        }
    }
}

/// Registers what a listener answers: the ops routes, `/admin`, then each dialect's, by itself and below each model's
/// path, with and without a trailing slash: Meilisearch follows a redirect as a GET without a body, so none is ever sent.
fn configure(state: HttpState, listener: Listener) -> impl FnOnce(&mut ServiceConfig) {
    move |app| {
        app.app_data(web::Data::new(state)).app_data(listener);
        ops::configure(app, listener);
        if listener != Listener::Main {
            admin::configure(app, listener);
        }
        if listener != Listener::Admin {
            configure_dialects(app);
        }
        app.default_service(web::to(move || async move { HttpError::NoRoute(listener).response() }));
    }
}

fn configure_dialects(app: &mut ServiceConfig) {
    let mut routes: Vec<_> =
        DIALECTS.iter().flat_map(|&dialect| dialect.routes().iter().map(move |r| (dialect, *r))).collect();
    // A model's name may have slashes, so that `/models/{name}/embed` also fits `/models/a/tei/embed`:
    // the longer route is asked first.
    routes.sort_by_key(|(_, route)| Reverse(route.len()));
    let resource = |dialect, path| {
        web::resource::<String>(path)
            .route(
                web::post().to(move |state, request, payload| embed::embed(dialect, state, request, payload)),
            )
            .default_service(web::to(|| async { HttpError::WrongMethod("POST").response() }))
    };
    // One path each, and none with a name first: these are compared, while lists and names are regular expressions, asked
    // one after another.
    for (dialect, route) in &routes {
        for path in with_slash(route) {
            app.service(resource(*dialect, path));
        }
    }
    for (dialect, route) in routes.into_iter().filter(|(_, route)| *route != "/") {
        for path in with_slash(&format!("/models/{{model:.+}}{route}")) {
            app.service(resource(dialect, path));
        }
    }
}

/// The path itself, and the same with a slash at its end.
fn with_slash(path: &str) -> Vec<String> {
    let path = path.trim_end_matches('/');
    if path.is_empty() { vec!["/".into()] } else { vec![path.into(), format!("{path}/")] }
}
