//! `/admin`: tools of whoever runs the service. Not for everybody: as soon as there is any key, one with `admin` is
//! asked for; without keys it is there on `server.admin_listen` and for callers on this machine.

use actix_web::{
    Error, HttpResponse,
    body::{BoxBody, MessageBody},
    dev::{ServiceRequest, ServiceResponse},
    http::header::{FORWARDED, X_FORWARDED_FOR},
    middleware::{Next, from_fn},
    web::{self, ServiceConfig},
};
use serde_json::{Value, json};

use super::{HttpError, HttpState, Listener, admin_cache, with_slash};

/// Registers what is below `/admin`, behind the one rule of access. A new tool is one more resource here.
pub(super) fn configure(app: &mut ServiceConfig) {
    app.service(
        web::scope("/admin")
            .wrap(from_fn(guard))
            .service(
                web::resource(with_slash("/keys"))
                    .route(web::get().to(keys))
                    .default_service(web::to(|| async { HttpError::WrongMethod("GET").response() })),
            )
            .service(admin_cache::resource())
            .service(
                web::resource(with_slash("/failures"))
                    .route(web::get().to(failures))
                    .default_service(web::to(|| async { HttpError::WrongMethod("GET").response() })),
            )
            .default_service(web::to(|| async { HttpError::NoRoute.response() })),
    );
}

/// The keys in force, by name: whether a rotation has arrived.
async fn keys(state: web::Data<HttpState>) -> HttpResponse {
    let keys = state.keys.get();
    let keys = keys.names().into_iter().map(|(name, is_admin)| json!({"name": name, "admin": is_admin}));
    HttpResponse::Ok().json(json!({"keys": keys.collect::<Vec<Value>>()}))
}

/// What failed lately, the latest first: which documents need repair.
async fn failures(state: web::Data<HttpState>) -> HttpResponse {
    HttpResponse::Ok().json(json!({"failures": state.models.failures().latest(usize::MAX)}))
}

async fn guard(
    request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<BoxBody>, Error> {
    match check(&request) {
        Ok(()) => Ok(next.call(request).await?.map_into_boxed_body()),
        Err(error) => Ok(request.into_response(error.response())),
    }
}

fn check(request: &ServiceRequest) -> Result<(), HttpError> {
    let state = request.app_data::<web::Data<HttpState>>().expect("registered beside the routes");
    let caller = state.keys.get().identify(request.request())?;
    let is_allowed = match caller.key {
        Some(_) => caller.is_admin,
        None => request.app_data() == Some(&Listener::Admin) || is_local(request),
    };
    if is_allowed { Ok(()) } else { Err(HttpError::NotAdmin { has_key: caller.key.is_some() }) }
}

/// Whether the caller is on this machine, and no proxy that speaks for others.
fn is_local(request: &ServiceRequest) -> bool {
    let is_forwarded = [FORWARDED, X_FORWARDED_FOR].iter().any(|name| request.headers().contains_key(name));
    !is_forwarded && request.peer_addr().is_some_and(|peer| peer.ip().to_canonical().is_loopback())
}

#[cfg(test)]
mod tests {
    use actix_web::test::TestRequest;

    use super::*;

    #[test]
    fn local_is_this_machine_without_a_proxy() {
        let from = |peer: &str| TestRequest::get().peer_addr(peer.parse().unwrap());
        for peer in ["127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "[::ffff:127.0.0.1]:1"] {
            assert!(is_local(&from(peer).to_srv_request()), "{peer}");
            assert!(!is_local(&from(peer).insert_header((X_FORWARDED_FOR, "8.8.8.8")).to_srv_request()));
            assert!(!is_local(&from(peer).insert_header((FORWARDED, "for=8.8.8.8")).to_srv_request()));
        }
        for peer in ["10.0.0.1:1", "192.0.2.1:1", "[::2]:1", "[::ffff:10.0.0.1]:1"] {
            assert!(!is_local(&from(peer).to_srv_request()), "{peer}");
        }
        assert!(!is_local(&TestRequest::get().to_srv_request()));
    }
}
