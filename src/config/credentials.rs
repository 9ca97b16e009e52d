//! Names and passwords in addresses, which nobody is to see.

use url::Url;

/// Whether `url` has a name or a password in it.
pub fn holds_credentials(url: &Url) -> bool {
    !url.username().is_empty() || url.password().is_some()
}
