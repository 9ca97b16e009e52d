//! `/admin`: tools of whoever runs the service. Not for everybody: as soon as there is any key, one with `admin` is
//! asked for; without keys it is there for callers on this machine, and on a `server.admin_listen` that is kept private.

use std::net::{IpAddr, SocketAddr};

use actix_web::{
    Error, HttpResponse,
    body::{BoxBody, MessageBody},
    dev::{ServiceRequest, ServiceResponse},
    http::{
        header::{FORWARDED, HOST, HeaderName, ORIGIN, VIA, X_FORWARDED_FOR},
        uri::Authority,
    },
    middleware::{Next, from_fn},
    web::{self, ServiceConfig},
};
use serde_json::{Value, json};

use super::{HttpError, HttpState, Listener, admin_cache, with_slash};

/// Headers of those who are on this machine and speak for others: proxies, and the pages in a browser.
const FOR_OTHERS: [HeaderName; 5] =
    [FORWARDED, X_FORWARDED_FOR, HeaderName::from_static("x-real-ip"), VIA, ORIGIN];

/// Registers what is below `/admin`, behind the one rule of access. A new tool is one more resource here.
pub(super) fn configure(app: &mut ServiceConfig, listener: Listener) {
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
            .default_service(web::to(move || async move { HttpError::NoRoute(listener).response() })),
    );
}

/// The keys in force, by name: whether a rotation has arrived.
async fn keys(state: web::Data<HttpState>) -> HttpResponse {
    let keys = state.edge.keys.get();
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
    let caller = state.edge.keys.get().identify(request.request())?;
    let is_allowed = match caller.key {
        Some(_) => caller.is_admin,
        None => is_kept_private(request, state.config.server.admin_listen) || is_local(request),
    };
    if is_allowed { Ok(()) } else { Err(HttpError::NotAdmin { has_key: caller.key.is_some() }) }
}

/// Whether the listener is that of the operator, on one address. On every address, as where probes need it, others may reach
/// it, too.
fn is_kept_private(request: &ServiceRequest, admin_listen: Option<SocketAddr>) -> bool {
    let is_one_address = admin_listen.is_some_and(|address| !address.ip().to_canonical().is_unspecified());
    request.app_data() == Some(&Listener::Admin) && is_one_address
}

/// Whether the caller is on this machine, and no proxy or page that speaks for others. Not all of those say so; but most
/// have been asked for another name than this machine's.
fn is_local(request: &ServiceRequest) -> bool {
    let is_here = request.peer_addr().is_some_and(|peer| peer.ip().to_canonical().is_loopback());
    let is_for_others = FOR_OTHERS.iter().any(|name| request.headers().contains_key(name));
    let mut hosts = request.headers().get_all(HOST).map(|host| host.to_str().unwrap_or_default()).peekable();
    let target = request.uri().authority().map(Authority::as_str);
    is_here && !is_for_others && hosts.peek().is_some() && hosts.chain(target).all(is_loopback)
}

/// Whether a host, with or without a port, is this machine whoever looks it up.
fn is_loopback(host: &str) -> bool {
    let Ok(authority) = host.parse::<Authority>() else { return false };
    let host = authority.host();
    let address = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    host.eq_ignore_ascii_case("localhost")
        || address.parse::<IpAddr>().is_ok_and(|address| address.to_canonical().is_loopback())
}

#[cfg(test)]
mod tests {
    use actix_web::test::TestRequest;

    use super::*;

    #[test]
    fn local_is_this_machine_without_a_proxy() {
        let from = |peer: &str| {
            TestRequest::get().peer_addr(peer.parse().unwrap()).insert_header((HOST, "localhost"))
        };
        for peer in ["127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "[::ffff:127.0.0.1]:1"] {
            assert!(is_local(&from(peer).to_srv_request()), "{peer}");
            for name in FOR_OTHERS {
                assert!(!is_local(&from(peer).insert_header((name, "x")).to_srv_request()));
            }
        }
        for peer in ["10.0.0.1:1", "192.0.2.1:1", "[::2]:1", "[::ffff:10.0.0.1]:1"] {
            assert!(!is_local(&from(peer).to_srv_request()), "{peer}");
        }
        assert!(!is_local(&TestRequest::get().insert_header((HOST, "localhost")).to_srv_request()));
    }

    #[test]
    fn local_is_asked_for_by_its_own_name() {
        let here = || TestRequest::get().peer_addr("127.0.0.1:1".parse().unwrap());
        assert!(!is_local(&here().to_srv_request()));
        for (host, expected) in [
            ("localhost", true),
            ("LocalHost:7800", true),
            ("127.0.0.1:7800", true),
            ("[::1]:7800", true),
            ("[::1]", true),
            ("", false),
            ("evil.example", false),
            ("localhost.evil.example:7800", false),
            ("127.0.0.1.evil.example", false),
            ("10.0.0.1", false),
            ("[::2]:7800", false),
        ] {
            assert_eq!(is_local(&here().insert_header((HOST, host)).to_srv_request()), expected, "{host}");
        }
        let two = here().insert_header((HOST, "localhost")).append_header((HOST, "evil.example"));
        assert!(!is_local(&two.to_srv_request()));
        let target = here().uri("http://evil.example/admin/keys").insert_header((HOST, "localhost"));
        assert!(!is_local(&target.to_srv_request()));
    }
}
