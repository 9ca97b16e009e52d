//! HTTPS, and certificates replaced while the service runs.

use std::{
    fs,
    io::{ErrorKind, Read},
    path::Path,
    sync::Arc,
    time::Duration,
};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::CertificateDer;
use tempfile::TempDir;

use crate::support::{TestApp, sidelens};

/// An authority, and where it puts what it issues.
struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    dir: TempDir,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(vec![]).expect("parameters");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let issuer = CertifiedIssuer::self_signed(params, key).expect("an authority");
        Self { issuer, dir: tempfile::tempdir().expect("a directory") }
    }

    fn root(&self) -> CertificateDer<'static> {
        self.issuer.der().clone()
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }

    /// Issues a certificate for this machine, as `name`, into the files of the settings; gives what is sent in
    /// the handshake.
    fn issue(&self) -> CertificateDer<'static> {
        self.issue_for("localhost")
    }

    /// The same under another name than `localhost`.
    fn issue_for(&self, name: &str) -> CertificateDer<'static> {
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new(vec!["127.0.0.1".into(), name.into()]).expect("parameters");
        let cert = params.signed_by(&key, &self.issuer).expect("a certificate");
        replace(&self.path("cert.pem"), &cert.pem());
        replace(&self.path("key.pem"), &key.serialize_pem());
        cert.der().clone()
    }

    async fn spawn(&self) -> TestApp {
        TestApp::spawn_tls(self.root(), |config| {
            config.server.tls_cert = Some(self.path("cert.pem"));
            config.server.tls_key = Some(self.path("key.pem"));
        })
        .await
    }
}

fn replace(path: &Path, contents: &str) {
    fs::write(path, contents).expect("written");
}

/// The certificate that a new connection is shown.
async fn shown(app: &TestApp) -> CertificateDer<'static> {
    let response = app.client.get(app.url("/health")).send().await.expect("a trusted handshake");
    let info = response.extensions().get::<reqwest::tls::TlsInfo>().expect("asked for");
    info.peer_certificate().expect("a certificate").to_vec().into()
}

#[tokio::test]
async fn speaks_https_and_takes_new_certificates_for_new_connections() {
    let authority = Authority::new();
    let first = authority.issue();
    let app = authority.spawn().await;
    assert!(app.url("").starts_with("https://"));
    assert_eq!(app.post("/embed", r#"{"input": "red"}"#).await.0, 200);
    assert_eq!(shown(&app).await, first);

    let second = authority.issue();
    app.wait_until("the second is shown", async || shown(&app).await == second).await;

    let failures = || app.metric("sidelens_reloads_total{files=\"certificate\",outcome=\"failed\"}");
    let before = failures().await;
    // A key that is no pair with the certificate, no key, no certificate.
    let stranger = KeyPair::generate().expect("a key").serialize_pem();
    for (i, (file, contents)) in
        [("key.pem", &*stranger), ("key.pem", "hunter2"), ("cert.pem", "")].into_iter().enumerate()
    {
        replace(&authority.path(file), contents);
        app.wait_until("it was refused", async || failures().await == before + (i + 1) as f64).await;
        assert_eq!(shown(&app).await, second);
    }
    let third = authority.issue();
    app.wait_until("the third is shown", async || shown(&app).await == third).await;
}

#[tokio::test]
async fn speaks_nothing_else_then() {
    let authority = Authority::new();
    authority.issue();
    let app = authority.spawn().await;
    let plain = crate::support::client().get(app.url("/health").replace("https", "http")).send().await;
    assert!(plain.is_err(), "{plain:?}");
    // Nor to whom does not trust it: an empty store is no store.
    assert!(crate::support::client().get(app.url("/health")).send().await.is_err());
}

#[tokio::test]
async fn silence_after_the_handshake_is_cut() {
    let authority = Authority::new();
    authority.issue();
    let app = TestApp::spawn_tls(authority.root(), |config| {
        config.server.tls_cert = Some(authority.path("cert.pem"));
        config.server.tls_key = Some(authority.path("key.pem"));
        config.server.client_timeout_ms = 500;
    })
    .await;
    let mut roots = rustls::RootCertStore::empty();
    roots.add_parsable_certificates([authority.root()]);
    let tls = rustls::ClientConfig::builder_with_provider(rustls::crypto::ring::default_provider().into())
        .with_safe_default_protocol_versions()
        .expect("ring speaks TLS 1.2 and 1.3")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let address = app.address();
    let silent = tokio::task::spawn_blocking(move || {
        let mut tcp = std::net::TcpStream::connect(address).expect("accepted");
        tcp.set_read_timeout(Some(Duration::from_secs(10))).expect("set");
        let name = "localhost".try_into().expect("a name");
        let mut connection = rustls::ClientConnection::new(Arc::new(tls), name).expect("a session");
        let mut answer = Vec::new();
        let ended = rustls::Stream::new(&mut connection, &mut tcp).read_to_end(&mut answer);
        (ended.map_err(|error| error.kind()), answer)
    });
    // Cut: a farewell is for those who spoke.
    assert_eq!(silent.await.expect("joined"), (Err(ErrorKind::UnexpectedEof), Vec::new()));
    assert_eq!(app.get("/health").await.0, 200);
}

#[tokio::test]
async fn the_healthcheck_speaks_it_too() {
    let authority = Authority::new();
    authority.issue();
    let app = authority.spawn().await;
    let listen = app.address().to_string();
    let sets = ["cert", "key"]
        .map(|name| format!("server.tls_{name}={}", authority.path(&format!("{name}.pem")).display()));
    let output = tokio::task::spawn_blocking(move || {
        sidelens(&["healthcheck", "--listen", &listen, "--set", &sets[0], "--set", &sets[1]]).output()
    });
    let output = output.await.expect("joined").expect("the program runs");
    assert!(output.status.success(), "{output:?}");
}

#[tokio::test]
async fn the_check_trusts_the_authority_that_it_is_given() {
    let authority = Authority::new();
    authority.issue();
    replace(&authority.path("ca.pem"), &authority.issuer.pem());
    let app = authority.spawn().await;
    let check = async |url: String, more: &[&str]| {
        let mut command = sidelens(&["check", &url]);
        command.args(more);
        let output = tokio::task::spawn_blocking(move || command.output()).await.expect("joined");
        let output = output.expect("the program runs");
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let ca = format!("--ca={}", authority.path("ca.pem").display());
    let (passed, sentence) = check(app.url(""), &[&ca]).await;
    assert!(passed, "{sentence}");
    for command in [
        &["settings", "--image-field=poster", "--url", &app.url("")][..],
        &[
            "cache",
            "export",
            authority.path("vectors.parquet").to_str().expect("UTF-8"),
            "--url",
            &app.url(""),
        ],
    ] {
        let run = async |more: &[&str]| {
            let mut command = sidelens(command);
            command.args(more);
            let output = tokio::task::spawn_blocking(move || command.output()).await.expect("joined");
            let output = output.expect("the program runs");
            (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
        };
        let (passed, sentence) = run(&[&ca]).await;
        assert!(passed, "{sentence}");
        let (passed, sentence) = run(&[]).await;
        assert!(!passed && sentence.contains("certificate") && sentence.contains("`--ca`"), "{sentence}");
    }
    let (passed, sentence) = check(app.url(""), &[]).await;
    assert!(!passed && sentence.contains("certificate") && sentence.contains("`--ca`"), "{sentence}");
    let mut bench = sidelens(&["bench", &app.url(""), "--requests=1", "--no-search", &ca]);
    let output = tokio::task::spawn_blocking(move || bench.output()).await.expect("joined");
    assert!(output.expect("the program runs").status.success());
    let wrong = format!("--ca={}", authority.path("key.pem").display());
    assert!(check(app.url(""), &[&wrong]).await.1.contains("no whole certificate"));
    // By a name of the certificate that leads elsewhere, or nowhere.
    authority.issue_for("vectors.invalid");
    let url = format!("https://vectors.invalid:{}", app.address().port());
    app.wait_until("the new one is shown", async || {
        check(url.clone(), &[&ca, "--connect=127.0.0.1"]).await.0
    })
    .await;
    assert!(!check(url.clone(), &[&ca]).await.0);
    assert!(check(url, &["--connect=no.such.host.invalid"]).await.1.contains("has no address here"));
}
