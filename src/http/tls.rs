//! TLS by rustls, with a certificate that may be replaced on disk.

use std::sync::Arc;

use rustls::{
    ServerConfig as TlsConfig,
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};

use super::{FilesError, live::Live};
use crate::{config::ServerConfig, telemetry::Metrics};

/// What is wrong with a certificate and its key.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// No whole certificate in the file.
    #[error("there is no whole certificate in PEM in the first file")]
    NoCertificate,
    /// No whole key in the file.
    #[error("there is no whole private key in PEM in the second file")]
    NoKey,
    /// They are no pair, or of a kind that is not spoken.
    #[error(transparent)]
    Pair(#[from] rustls::Error),
}

/// TLS as the settings have it; none without a certificate. Needs a tokio runtime around it.
///
/// # Errors
/// [`FilesError`] when certificate or key cannot be used.
pub(super) fn tls_config(
    config: &ServerConfig,
    metrics: &Arc<Metrics>,
) -> Result<Option<TlsConfig>, FilesError> {
    let (Some(cert), Some(key)) = (config.tls_cert.clone(), config.tls_key.clone()) else { return Ok(None) };
    let provider = Arc::new(ring::default_provider());
    let files = vec![("server.tls_cert", cert.clone()), ("server.tls_key", key.clone())];
    let make = {
        let provider = provider.clone();
        move |contents: &[Vec<u8>]| {
            let pair = certified_key(&contents[0], &contents[1], &provider);
            pair.map_err(|source| FilesError::Certificate { cert: cert.clone(), key: key.clone(), source })
        }
    };
    let certificate = Live::of_files("certificate", files, metrics.clone(), make)?;
    let tls = TlsConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("ring speaks TLS 1.2 and 1.3")
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(Certificate(certificate)));
    Ok(Some(tls))
}

fn certified_key(
    cert: &[u8],
    key: &[u8],
    provider: &CryptoProvider,
) -> Result<CertifiedKey, CertificateError> {
    let chain = CertificateDer::pem_slice_iter(cert).collect::<Result<Vec<_>, _>>();
    let chain = chain.ok().filter(|chain| !chain.is_empty()).ok_or(CertificateError::NoCertificate)?;
    // The reason is left out: it may quote the file.
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| CertificateError::NoKey)?;
    Ok(CertifiedKey::from_der(chain, key, provider)?)
}

/// The certificate in force, whatever name the caller asks for.
#[derive(Debug)]
struct Certificate(Live<CertifiedKey>);

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.get())
    }
}
