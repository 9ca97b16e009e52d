//! Flags that are settings, addresses, keys, authorities, and files.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use clap::Args;
use reqwest::ClientBuilder;
use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, pem::PemObject},
};
use url::Url;

use crate::{
    config::{Config, ConfigError, holds_credentials},
    load::{http_client, http_client_trusting},
};

/// The next step where a certificate is what keeps a connection from being made.
pub(super) const FOR_A_CERTIFICATE: &str =
    "a private authority's certificate is given with `--ca`, the name that it was issued for with the URL";

/// The config file, and settings that win over it.
#[derive(Debug, Clone, Args)]
pub struct ConfigArgs {
    /// A TOML file with settings; `sidelens config` prints all there are.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Address and port to listen on; port 0 picks a free one and prints it.
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<String>,
    /// `demo`, a directory in Hugging Face layout, or a model of the hub as `org/name[@revision]`.
    #[arg(long, value_name = "demo|DIR|NAME")]
    model: Option<String>,
    /// `auto`, `cpu`, `cuda:0`, ...
    #[arg(long)]
    device: Option<String>,
    /// `auto`, `fp32`, `bf16` or `fp16`.
    #[arg(long)]
    dtype: Option<String>,
    /// Any setting by its key, such as batch.max_batch_size=64; may be repeated.
    #[arg(long, value_name = "KEY=VALUE", value_parser = key_value)]
    set: Vec<(String, String)>,
}

impl ConfigArgs {
    /// Reads every layer of the settings, these flags last.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn load(&self) -> Result<Config, ConfigError> {
        Config::load(self.config.as_deref(), &self.sets())
    }

    /// The settings given by flags, as dotted key and value; those with a flag of their own last.
    pub fn sets(&self) -> Vec<(String, String)> {
        let named = [
            ("server.listen", &self.listen),
            ("model.source", &self.model),
            ("model.device", &self.device),
            ("model.dtype", &self.dtype),
        ];
        let named = named.into_iter().filter_map(|(key, value)| Some((key.to_string(), value.clone()?)));
        self.set.iter().cloned().chain(named).collect()
    }
}

fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.trim().is_empty() => Ok((key.trim().into(), value.into())),
        _ => Err("write it as key=value, for example batch.max_batch_size=64".into()),
    }
}

/// Reads an address. The parser's own words speak of URLs without a base.
pub(super) fn address(text: &str) -> Result<Url, String> {
    text.parse().map_err(|_| "write it as http://127.0.0.1:7800".into())
}

/// Why nobody can be asked at an address.
#[derive(Debug, thiserror::Error)]
pub enum AddressError {
    /// Not http(s), or without a host.
    #[error("`{0}` is not an http(s) address; write it as http://127.0.0.1:7800")]
    NotHttp(Url),
    /// With a name or password, which is not shown.
    #[error(
        "the service's address holds a name or password, which messages would show; leave it out: what Sidelens takes \
         are keys of `[auth]`"
    )]
    Credentials,
}

/// The address of the route behind `url`, which is `route` unless the URL has a path of its own.
///
/// # Errors
/// [`AddressError`].
pub(super) fn endpoint(url: &Url, route: &str) -> Result<Url, AddressError> {
    if holds_credentials(url) {
        return Err(AddressError::Credentials);
    }
    if !matches!(url.scheme(), "http" | "https") || url.host().is_none() {
        return Err(AddressError::NotHttp(url.clone()));
    }
    let mut endpoint = url.clone();
    if endpoint.path() == "/" {
        endpoint.set_path(route);
    }
    Ok(endpoint)
}

/// The key that is sent.
#[derive(Debug, Clone, Args)]
pub struct KeyArgs {
    /// A key of `[auth]`, for `cache` one with `admin = true`. Whoever lists this machine's processes sees it.
    #[arg(long, value_name = "KEY", conflicts_with = "key_file")]
    api_key: Option<String>,
    /// A file with one such key, which nobody sees.
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
}

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// Not a key. It is not shown.
    #[error("{0} holds no key: it must be one line of visible ASCII, as the key stands in `[auth]`")]
    Key(String),
}

impl KeyArgs {
    /// The key, if there is one.
    ///
    /// # Errors
    /// [`KeyError`].
    pub(super) fn key(&self) -> Result<Option<String>, KeyError> {
        let (content, place) = match (&self.key_file, &self.api_key) {
            (Some(file), _) => (read(file)?, file.display().to_string()),
            (None, Some(key)) => (key.clone().into_bytes(), "`--api-key`".into()),
            (None, None) => return Ok(None),
        };
        let key = content.trim_ascii();
        let is_key = !key.is_empty() && key.iter().all(u8::is_ascii_graphic);
        let key = str::from_utf8(key).ok().filter(|_| is_key);
        key.map(|key| Some(key.to_owned())).ok_or(KeyError::Key(place))
    }

    /// Whether it comes from a file.
    pub(super) fn is_of_file(&self) -> bool {
        self.key_file.is_some()
    }
}

/// Whose word on the service's certificate is taken.
#[derive(Debug, Clone, Args)]
pub struct TrustArgs {
    /// A PEM file with the authority of the service's certificate, instead of Mozilla's list, which is Meilisearch's.
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
}

/// Why nobody is trusted.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// The file cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// No authority.
    #[error("{} holds no whole certificate in PEM: `--ca` takes that of the authority, often called ca.crt", .0.display())]
    Ca(PathBuf),
}

impl TrustArgs {
    /// A client that reaches what Meilisearch reaches, and trusts as these flags say.
    ///
    /// # Errors
    /// [`TrustError`].
    pub(super) fn client(&self) -> Result<ClientBuilder, TrustError> {
        let Some(file) = &self.ca else { return Ok(http_client()) };
        let content = read(file)?;
        let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&content).collect();
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(certificates.unwrap_or_default());
        match roots.is_empty() {
            true => Err(TrustError::Ca(file.clone())),
            false => Ok(http_client_trusting(roots)),
        }
    }
}

/// A file that is named cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("{}: {source}", file.display())]
pub struct FileError {
    /// The file.
    file: PathBuf,
    /// What the system says.
    source: io::Error,
}

/// The content of a file.
///
/// # Errors
/// [`FileError`].
pub(super) fn read(file: &Path) -> Result<Vec<u8>, FileError> {
    fs::read(file).map_err(|source| FileError { file: file.into(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adds_the_route_unless_there_is_a_path() {
        let check = |url: &str, expected| {
            let endpoint = endpoint(&url.parse().unwrap(), "/embed").ok();
            assert_eq!(endpoint.as_ref().map(Url::as_str), expected, "{url}");
        };
        check("http://localhost:7800", Some("http://localhost:7800/embed"));
        check("http://localhost:7800/v1/embeddings", Some("http://localhost:7800/v1/embeddings"));
        check("ftp://localhost", None);
        check("localhost:7800", None);
    }

    #[test]
    fn a_password_in_an_address_is_refused_and_not_shown() {
        for url in ["http://me:hunter2@localhost", "https://hunter2@localhost", "ftp://:hunter2@localhost"] {
            let refused = endpoint(&url.parse().unwrap(), "/embed").unwrap_err().to_string();
            assert!(refused.contains("name or password") && !refused.contains("hunter2"), "{refused}");
        }
    }
}
