//! Who calls: bearer keys with names.

use std::sync::Arc;

use actix_web::{
    HttpMessage, HttpRequest,
    http::header::{AUTHORIZATION, HeaderMap},
};
use subtle::{Choice, ConditionallySelectable, ConstantTimeEq};
use tracing_actix_web::RootSpan;

use super::{FilesError, HttpError, limit::Limit, live::Live};
use crate::{
    config::{AuthConfig, NamedKey, read_keys},
    telemetry::Metrics,
};

/// Who sent a request: one of the keys, or where there are none everybody.
#[derive(Debug)]
pub(super) struct Caller {
    /// The name of the key; none where there are no keys.
    pub(super) key: Option<String>,
    /// Whether the key opens `/admin`.
    pub(super) is_admin: bool,
    limit: Option<Limit>,
}

impl Caller {
    fn new(config: &AuthConfig, key: Option<&NamedKey>) -> Arc<Self> {
        Arc::new(Self {
            key: key.map(|key| key.name.clone()),
            is_admin: key.is_some_and(|key| key.admin),
            limit: Limit::new(config, key),
        })
    }

    /// As [`Limit::take`], where there is a limit.
    ///
    /// # Errors
    /// [`HttpError::RateLimited`].
    pub(super) fn take(&self, n_taken: usize, n_inputs: usize) -> Result<(), HttpError> {
        self.limit.as_ref().map_or(Ok(()), |limit| limit.take(n_taken, n_inputs))
    }
}

/// The keys in force.
#[derive(Debug)]
pub(super) enum Keys {
    /// None: everybody is let in.
    Open(Arc<Caller>),
    /// Digests of keys, and whose they are. Comparing digests hides the length of a key too.
    Closed(Vec<([u8; 32], Arc<Caller>)>),
}

impl Keys {
    /// The keys of the settings, and those of their file, which is followed from now on. Needs a tokio runtime
    /// around it where there is a file.
    ///
    /// # Errors
    /// [`FilesError`] when the file cannot be used.
    pub(super) fn live(config: &AuthConfig, metrics: &Arc<Metrics>) -> Result<Live<Self>, FilesError> {
        let listed: Vec<_> = config.listed().collect();
        let Some(path) = config.keys_file.clone() else {
            return Ok(Live::fixed(Self::new(config, listed, metrics)));
        };
        let files = vec![("auth.keys_file", path.clone())];
        let (config, own_metrics) = (config.clone(), metrics.clone());
        let make = move |contents: &[Vec<u8>]| {
            let more = read_keys(&contents[0], &listed);
            let more = more.map_err(|source| FilesError::Keys { path: path.clone(), source })?;
            // Limits start afresh: every key may send a burst.
            Ok(Self::new(&config, listed.iter().cloned().chain(more).collect(), &own_metrics))
        };
        Live::of_files("keys", files, metrics.clone(), make)
    }

    fn new(config: &AuthConfig, keys: Vec<NamedKey>, metrics: &Metrics) -> Self {
        if keys.is_empty() {
            return Self::Open(Caller::new(config, None));
        }
        let closed = keys.iter().map(|key| {
            metrics.touch_key(&key.name);
            (digest(key.key.expose().as_bytes()), Caller::new(config, Some(key)))
        });
        Self::Closed(closed.collect())
    }

    /// Finds whose key a request carries, notes the name in its span, and leaves the caller with the request for
    /// those who count. Meilisearch appends the `headers` of its settings to its own, so `Authorization` may come
    /// twice; any of them may match.
    ///
    /// # Errors
    /// [`HttpError::Unauthorized`].
    pub(super) fn identify(&self, request: &HttpRequest) -> Result<Arc<Caller>, HttpError> {
        let caller = self.find(request.headers()).ok_or(HttpError::Unauthorized)?;
        if let Some(name) = &caller.key
            && let Some(span) = request.extensions().get::<RootSpan>()
        {
            span.record("key", name);
        }
        request.extensions_mut().insert(caller.clone());
        Ok(caller)
    }

    /// The names of the keys, and whether each opens `/admin`.
    pub(super) fn names(&self) -> Vec<(&str, bool)> {
        let Self::Closed(keys) = self else { return Vec::new() };
        keys.iter().filter_map(|(_, caller)| Some((caller.key.as_deref()?, caller.is_admin))).collect()
    }

    fn find(&self, headers: &HeaderMap) -> Option<Arc<Caller>> {
        let keys = match self {
            Self::Open(everybody) => return Some(everybody.clone()),
            Self::Closed(keys) => keys,
        };
        // All keys are compared, whichever matches, and nothing branches on a match before the end.
        let mut found = u32::MAX;
        for given in headers.get_all(AUTHORIZATION).filter_map(|value| bearer(value.as_bytes())) {
            let given = digest(given);
            for (i, (key, _)) in (0..).zip(keys) {
                let is_first: Choice = key.ct_eq(&given) & found.ct_eq(&u32::MAX);
                found.conditional_assign(&i, is_first);
            }
        }
        keys.get(found as usize).map(|(_, caller)| caller.clone())
    }
}

fn digest(key: &[u8]) -> [u8; 32] {
    *blake3::hash(key).as_bytes()
}

/// The token of a `Bearer` header.
fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = value.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| token.trim_ascii())
}

#[cfg(test)]
mod tests {
    use actix_web::test::TestRequest;

    use super::*;
    use crate::config::{Config, DEFAULT_TOML};

    fn found(keys: &[&str], headers: &[&str]) -> Option<Option<String>> {
        let Config { mut auth, .. } = toml::from_str(DEFAULT_TOML).unwrap();
        auth.api_keys = keys.iter().map(|&key| key.into()).collect();
        auth.keys = vec![NamedKey { admin: true, ..NamedKey::new("boss".into(), "root".into()) }];
        if keys.is_empty() {
            auth.keys.clear();
        }
        let keys = Keys::live(&auth, &Metrics::new()).unwrap();
        let mut request = TestRequest::post();
        for &header in headers {
            request = request.append_header((AUTHORIZATION, header));
        }
        let request = request.to_http_request();
        let caller = keys.get().identify(&request).ok()?;
        assert!(Arc::ptr_eq(request.extensions().get::<Arc<Caller>>().unwrap(), &caller));
        assert_eq!(caller.is_admin, caller.key.as_deref() == Some("boss"));
        Some(caller.key.clone())
    }

    #[test]
    fn without_keys_everybody_is_let_in() {
        assert_eq!(found(&[], &[]), Some(None));
        assert_eq!(found(&[], &["Bearer whatever"]), Some(None));
    }

    #[test]
    fn any_key_in_any_header_is_enough() {
        let named = |name: &str| Some(Some(name.to_owned()));
        assert_eq!(found(&["one", "two"], &["Bearer two"]), named("key-2"));
        assert_eq!(found(&["one"], &["bearer  one "]), named("key-1"));
        assert_eq!(found(&["one"], &["Bearer wrong", "Basic abc", "Bearer one"]), named("key-1"));
        assert_eq!(found(&["one"], &["Bearer root"]), named("boss"));
        // The same key under two names, as while it moves into a file: the first.
        assert_eq!(found(&["root"], &["Bearer root"]), named("key-1"));
    }

    #[test]
    fn everything_else_is_not() {
        for headers in
            [&[][..], &["Bearer"], &["Bearer "], &["one"], &["Basic one"], &["Bearer onex"], &["Bearer on"]]
        {
            assert_eq!(found(&["one"], headers), None, "{headers:?}");
        }
    }
}
