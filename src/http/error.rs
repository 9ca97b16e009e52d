//! Status codes, chosen by what they make Meilisearch do: it gives up on a 4xx other than 429, and tries
//! 429 and 5xx again. So no vector that may come later is ever refused by a 403, 404, 408, 413 or 422.

use actix_web::{
    HttpResponse,
    http::{
        StatusCode,
        header::{ALLOW, ContentType},
    },
};

use super::Listener;
use crate::{
    dialect::{Dialect, Failure, Meilisearch},
    domain::{EmbedError, Fault, ItemErrorKind},
};

/// Why a request was refused for now, by one of [`REFUSALS`](crate::telemetry::metrics::REFUSALS).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Refusal(pub(super) &'static str);

/// Why a request has no answer, as the edge sees it.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum HttpError {
    /// No key, or a wrong one.
    #[error(
        "missing or unknown API key: send one of `[auth]`, which is `apiKey` in the embedder's settings and `--api-key` or \
         `--key-file` of commands"
    )]
    Unauthorized,
    /// A caller that may not use `/admin`.
    #[error("{}", if *.has_key {
        "this key does not open /admin; use one with `admin = true`"
    } else {
        "without keys /admin is for programs on this machine that ask for localhost and come through no proxy; set a \
         key with `admin = true` in `[[auth.keys]]`, or `server.admin_listen` to one private address"
    })]
    NotAdmin {
        /// Whether there are keys at all.
        has_key: bool,
    },
    /// A key asks for more than it may.
    #[error(
        "more than {per_s} inputs per second, after {burst} at once: try again later, or raise \
         `auth.max_inputs_per_s` or the key's own"
    )]
    RateLimited {
        /// Inputs per second.
        per_s: u32,
        /// Inputs at once after a pause.
        burst: u32,
    },
    /// The body comes too slowly, or no more.
    #[error(
        "the body stopped or crawled after {received} bytes: `server.client_timeout_ms` is {client_timeout_ms}, \
         `server.min_body_bytes_per_s` {min_bytes_per_s}"
    )]
    SlowBody {
        /// Bytes that came.
        received: usize,
        /// Milliseconds that each part may take.
        client_timeout_ms: u64,
        /// Bytes per second that all parts together must come with.
        min_bytes_per_s: usize,
    },
    /// A model is loading, or its device is lost.
    #[error("the model is not ready: it is loading or its device is lost; try again")]
    NotReady,
    /// Too many bodies at once.
    #[error(
        "{waiting} requests wait for room to read their bodies; try again, or raise \
         `server.max_inflight_body_bytes` and `server.max_inflight_bodies`"
    )]
    NoBodyRoom {
        /// Requests that wait already.
        waiting: usize,
    },
    /// The body is larger than will ever be read.
    #[error(
        "the body is above `server.max_body_bytes` ({limit}); raise it, or send fewer or smaller pictures"
    )]
    BodyTooLarge {
        /// The limit in bytes.
        limit: usize,
    },
    /// Nothing is served at this path.
    #[error("no such route; {}", .0.directions())]
    NoRoute(Listener),
    /// The path is served, but for another method.
    #[error("wrong method; use {0}")]
    WrongMethod(&'static str),
    /// Everything behind the edge.
    #[error(transparent)]
    Embed(#[from] EmbedError),
}

impl HttpError {
    /// The status, one for every variant.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
            Self::NotAdmin { .. } => StatusCode::FORBIDDEN,
            Self::RateLimited { .. } => StatusCode::TOO_MANY_REQUESTS,
            // Not 408, which is final: a slow network may be quicker the next time.
            Self::SlowBody { .. } | Self::NotReady | Self::NoBodyRoom { .. } => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            Self::BodyTooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Self::NoRoute(_) => StatusCode::NOT_FOUND,
            Self::WrongMethod(_) => StatusCode::METHOD_NOT_ALLOWED,
            Self::Embed(error) => match error {
                EmbedError::InvalidRequest(_) | EmbedError::Dimensions { .. } => StatusCode::BAD_REQUEST,
                EmbedError::Items(items) => match EmbedError::leading(items).kind {
                    ItemErrorKind::Timeout => StatusCode::GATEWAY_TIMEOUT,
                    ItemErrorKind::HostError => StatusCode::BAD_GATEWAY,
                    ItemErrorKind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
                    ItemErrorKind::EmptyImage
                    | ItemErrorKind::UnsupportedModality
                    | ItemErrorKind::InvalidUrl
                    | ItemErrorKind::InvalidBase64
                    | ItemErrorKind::BlockedAddress
                    | ItemErrorKind::NotFound
                    | ItemErrorKind::Forbidden
                    | ItemErrorKind::TooLarge
                    | ItemErrorKind::TooManyPixels
                    | ItemErrorKind::NotAnImage
                    | ItemErrorKind::Corrupt => StatusCode::BAD_REQUEST,
                },
                EmbedError::QueueFull { .. } => StatusCode::TOO_MANY_REQUESTS,
                EmbedError::Deadline { .. } | EmbedError::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
                EmbedError::Internal(_) => StatusCode::INTERNAL_SERVER_ERROR,
            },
        }
    }

    /// Why it was refused for now, as the metrics call it: for every 429 and 503.
    fn refusal(&self) -> Option<Refusal> {
        let reason = match self {
            Self::RateLimited { .. } => "rate_limit",
            Self::SlowBody { .. } => "slow_body",
            Self::NotReady => "not_ready",
            Self::NoBodyRoom { .. } => "body_room",
            Self::Embed(EmbedError::QueueFull { .. }) => "queue_full",
            Self::Embed(EmbedError::Deadline { .. }) => "deadline",
            Self::Embed(EmbedError::Unavailable(_)) => "stopped",
            _ => return None,
        };
        Some(Refusal(reason))
    }

    /// The answer in a dialect's shape, with its [`Refusal`] for those who count. Logs the failure: this is the one place where it is handled.
    pub(super) fn response_in(&self, dialect: &dyn Dialect) -> HttpResponse {
        let status = self.status();
        self.log(status);
        let mut response = HttpResponse::build(status);
        if let Self::WrongMethod(allowed) = self {
            response.insert_header((ALLOW, allowed.replace(" or ", ", ")));
        }
        let mut response =
            response.insert_header(ContentType::json()).body(dialect.render_error(&self.failure()));
        if let Some(refusal) = self.refusal() {
            response.extensions_mut().insert(refusal);
        }
        response
    }

    /// The answer where no dialect is known.
    pub(super) fn response(&self) -> HttpResponse {
        self.response_in(&Meilisearch)
    }

    fn failure(&self) -> Failure {
        match self {
            Self::Embed(error) => error.into(),
            Self::Unauthorized => Failure::new("unauthorized", self.to_string()),
            Self::NotAdmin { .. } => Failure::new("forbidden", self.to_string()),
            Self::RateLimited { .. } | Self::SlowBody { .. } | Self::NotReady | Self::NoBodyRoom { .. } => {
                Failure::new("overloaded", self.to_string())
            }
            Self::BodyTooLarge { .. } | Self::NoRoute(_) | Self::WrongMethod(_) => {
                Failure::new("invalid_request", self.to_string())
            }
        }
    }

    fn log(&self, status: StatusCode) {
        let status = status.as_u16();
        match self {
            // A key above its limit would fill the log: Meilisearch tries again within milliseconds.
            Self::NoRoute(_) | Self::WrongMethod(_) | Self::RateLimited { .. } => {
                tracing::debug!(status, "{self}")
            }
            Self::Embed(error) if error.fault() == Fault::Bug => tracing::error!(status, "{self}"),
            _ => tracing::warn!(status, "{self}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{domain::ItemError, telemetry::metrics::REFUSALS};

    fn items(kinds: &[ItemErrorKind]) -> HttpError {
        let item = |(index, &kind)| ItemError { index, kind, message: "m".into() };
        EmbedError::Items(kinds.iter().enumerate().map(item).collect()).into()
    }

    #[test]
    fn the_status_is_what_meilisearch_should_do() {
        for kind in ItemErrorKind::ALL {
            let status = items(&[kind]).status();
            let retried = status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error();
            assert_eq!(retried, kind.fault() != Fault::Caller, "{kind}");
            assert!(retried || status == StatusCode::BAD_REQUEST, "{kind}: {status}");
        }
        let deadline = EmbedError::Deadline { deadline_ms: 1 };
        let full = EmbedError::QueueFull { waiting: 1, limit: 1 };
        let mismatch = EmbedError::Dimensions { requested: 1, actual: 2, model: "m".into() };
        for (error, expected) in [
            (items(&[ItemErrorKind::NotFound, ItemErrorKind::Timeout]), 504),
            (items(&[ItemErrorKind::Internal, ItemErrorKind::HostError]), 502),
            (items(&[ItemErrorKind::Corrupt, ItemErrorKind::Internal]), 500),
            (deadline.into(), 503),
            (full.into(), 429),
            (mismatch.into(), 400),
            (EmbedError::Unavailable("x".into()).into(), 503),
            (EmbedError::InvalidRequest("x".into()).into(), 400),
            (EmbedError::Internal("x".into()).into(), 500),
            (HttpError::Unauthorized, 401),
            (HttpError::NotAdmin { has_key: true }, 403),
            (HttpError::RateLimited { per_s: 1, burst: 1 }, 429),
            (HttpError::SlowBody { received: 1, client_timeout_ms: 1, min_bytes_per_s: 1 }, 503),
            (HttpError::NotReady, 503),
            (HttpError::NoBodyRoom { waiting: 1 }, 503),
        ] {
            assert_eq!(error.status().as_u16(), expected, "{error}");
            let reason = error.refusal().map(|Refusal(reason)| reason);
            assert_eq!(reason.is_some(), [429, 503].contains(&expected), "{error}");
            assert!(reason.is_none_or(|reason| REFUSALS.contains(&reason)), "{error}");
        }
    }

    #[test]
    fn a_wrong_method_names_the_right_one() {
        for (methods, expected) in [("POST", "POST"), ("GET or HEAD", "GET, HEAD")] {
            let response = HttpError::WrongMethod(methods).response();
            assert_eq!(response.headers().get(ALLOW).unwrap(), expected);
            assert_eq!(response.status(), StatusCode::METHOD_NOT_ALLOWED);
        }
    }
}
