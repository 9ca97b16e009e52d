//! Bearer keys.

use actix_web::http::header::{AUTHORIZATION, HeaderMap};
use subtle::{Choice, ConstantTimeEq};

use super::HttpError;
use crate::config::AuthConfig;

/// The keys that may call, as digests: comparing digests hides the length of a key too.
pub(super) struct Keys(Vec<[u8; 32]>);

impl Keys {
    /// The keys of the settings; none lets everybody in.
    pub(super) fn new(config: &AuthConfig) -> Self {
        Self(config.api_keys.iter().map(|key| digest(key.expose().as_bytes())).collect())
    }

    /// Lets a request in that carries one of the keys. Meilisearch appends the `headers` of its settings
    /// to its own, so `Authorization` may come twice; any of them may match.
    ///
    /// # Errors
    /// [`HttpError::Unauthorized`].
    pub(super) fn check(&self, headers: &HeaderMap) -> Result<(), HttpError> {
        if self.0.is_empty() {
            return Ok(());
        }
        let mut known = Choice::from(0);
        for given in headers.get_all(AUTHORIZATION).filter_map(|value| bearer(value.as_bytes())) {
            let given = digest(given);
            // All keys are compared, whichever matches.
            for key in &self.0 {
                known |= key.ct_eq(&given);
            }
        }
        if bool::from(known) { Ok(()) } else { Err(HttpError::Unauthorized) }
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

    fn allowed(keys: &[&str], headers: &[&str]) -> bool {
        let keys = Keys::new(&AuthConfig { api_keys: keys.iter().map(|&key| key.into()).collect() });
        let mut request = TestRequest::post();
        for &header in headers {
            request = request.append_header((AUTHORIZATION, header));
        }
        keys.check(request.to_http_request().headers()).is_ok()
    }

    #[test]
    fn without_keys_everybody_is_let_in() {
        assert!(allowed(&[], &[]) && allowed(&[], &["Bearer whatever"]));
    }

    #[test]
    fn any_key_in_any_header_is_enough() {
        assert!(allowed(&["one", "two"], &["Bearer two"]));
        assert!(allowed(&["one"], &["bearer  one "]));
        assert!(allowed(&["one"], &["Bearer wrong", "Basic abc", "Bearer one"]));
    }

    #[test]
    fn everything_else_is_not() {
        for headers in
            [&[][..], &["Bearer"], &["Bearer "], &["one"], &["Basic one"], &["Bearer onex"], &["Bearer on"]]
        {
            assert!(!allowed(&["one"], headers), "{headers:?}");
        }
    }
}
