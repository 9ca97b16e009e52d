//! One request as Meilisearch sends it, and whether the answer is one.

use std::{
    io::Read,
    sync::{Arc, OnceLock},
};

use bytes::Bytes;
use flate2::read::GzDecoder;
use futures_util::{future, stream};
use reqwest::{
    Body, Client, ClientBuilder,
    header::{ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderValue},
};
use rustls::{ClientConfig, RootCertStore};
use url::Url;

use super::{
    answer::{Vectors, vectors},
    inputs::{Inputs, Length},
    template::{Frame, Template, TemplateError},
};
use crate::domain::{Modality, root_cause};

/// Characters of a refusal that are kept.
const MAX_REFUSAL: usize = 1000;
const JSON: HeaderValue = HeaderValue::from_static("application/json");
const BOUNDARY: &str = "sidelens-7f1c9d3ab52e";

/// A client that reaches what Meilisearch reaches, the way it does: HTTP/1.1, a new connection for each request,
/// Mozilla's certificates, no proxy.
pub fn http_client() -> ClientBuilder {
    http_client_trusting(RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() })
}

/// The same, with other authorities than Mozilla's.
pub fn http_client_trusting(roots: RootCertStore) -> ClientBuilder {
    let tls = ClientConfig::builder_with_provider(rustls::crypto::ring::default_provider().into())
        .with_safe_default_protocol_versions()
        .expect("ring speaks TLS 1.2 and 1.3")
        .with_root_certificates(roots)
        .with_no_client_auth();
    Client::builder().tls_backend_preconfigured(tls).http1_only().no_proxy().pool_max_idle_per_host(0)
}

/// How inputs are written.
#[derive(Debug, Clone)]
pub enum Form {
    /// All in one JSON body.
    Json(Template),
    /// Each picture as an upload of its own, in the field `file` of `multipart/form-data`. Whoever puts such a
    /// service behind Meilisearch turns each of its requests into as many uploads, side by side; so that is what
    /// one request is here, and it is answered when all of them are.
    Multipart,
}

impl Form {
    /// What its inputs are.
    pub fn modality(&self) -> Modality {
        match self {
            Self::Json(template) => template.modality(),
            Self::Multipart => Modality::Image,
        }
    }
}

/// A route, and what it takes.
#[derive(Debug, Clone)]
pub struct Target {
    /// Where to post.
    pub url: Url,
    /// How inputs are written.
    pub form: Form,
}

/// Why a request was not answered as it should.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Another status than 200.
    #[error("{status}: {body}")]
    Status {
        /// The status.
        status: u16,
        /// The beginning of the body.
        body: String,
    },
    /// Too late.
    #[error("no whole answer in time")]
    Timeout,
    /// No connection.
    #[error("no connection: {0}")]
    Connect(String),
    /// The connection broke.
    #[error("the connection broke: {0}")]
    Broken(String),
    /// Not the vectors that were asked for.
    #[error("{0}")]
    Answer(String),
}

impl Failure {
    /// Of a status, with the beginning of the body.
    pub fn refused(status: u16, body: &[u8]) -> Self {
        Self::Status { status, body: String::from_utf8_lossy(body).chars().take(MAX_REFUSAL).collect() }
    }

    /// What it is counted under: the status, or `timeout`, `connect`, `broken`, `answer`.
    pub fn kind(&self) -> String {
        match self {
            Self::Status { status, .. } => return status.to_string(),
            Self::Timeout => "timeout",
            Self::Connect(_) => "connect",
            Self::Broken(_) => "broken",
            Self::Answer(_) => "answer",
        }
        .into()
    }
}

impl From<reqwest::Error> for Failure {
    fn from(error: reqwest::Error) -> Self {
        let cause = root_cause(&error).to_string();
        match () {
            () if error.is_timeout() => Self::Timeout,
            () if error.is_connect() => Self::Connect(cause),
            () => Self::Broken(cause),
        }
    }
}

/// Posts a request for one new input, and gives the answer's body, whatever it holds.
///
/// # Errors
/// [`Failure`], unless the status is 200.
pub async fn ask(client: &Client, url: Url, template: &Template, inputs: &Inputs) -> Result<Bytes, Failure> {
    let frame = template.frame(1).expect("one input fits into every template");
    exchange(client, url, JSON, frame.fill(inputs, Length::Query)).await
}

/// Posts one body; gives the answer's, unzipped.
async fn exchange(
    client: &Client,
    url: Url,
    content_type: HeaderValue,
    body: Vec<Bytes>,
) -> Result<Bytes, Failure> {
    let n_bytes: usize = body.iter().map(Bytes::len).sum();
    // In pieces, since most of a body is shared with all others. The length makes it a plain body, not a
    // chunked one.
    let pieces = stream::iter(body.into_iter().map(Ok::<_, std::convert::Infallible>));
    let request = client.post(url).header(CONTENT_TYPE, content_type).header(CONTENT_LENGTH, n_bytes);
    let response = request.body(Body::wrap_stream(pieces)).send().await?;
    let status = response.status().as_u16();
    let zipped = response.headers().get(CONTENT_ENCODING).is_some_and(|encoding| encoding == "gzip");
    let mut body = response.bytes().await?;
    if zipped {
        let mut plain = Vec::new();
        GzDecoder::new(&*body)
            .read_to_end(&mut plain)
            .map_err(|error| Failure::Answer(format!("the answer's gzip: {error}")))?;
        body = plain.into();
    }
    if status != 200 {
        return Err(Failure::refused(status, &body));
    }
    Ok(body)
}

/// The server under load, and what is sent to it.
#[derive(Debug)]
pub struct Peer {
    client: Client,
    inputs: Inputs,
    /// Of the first answer; all others are held to it.
    dimensions: OnceLock<usize>,
}

impl Peer {
    /// Sends `inputs` by this client, each request with `headers`.
    ///
    /// # Errors
    /// When the system has no resources for a client.
    pub fn new(client: ClientBuilder, inputs: Inputs, mut headers: HeaderMap) -> reqwest::Result<Arc<Self>> {
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("gzip"));
        let client = client.default_headers(headers).build()?;
        Ok(Arc::new(Self { client, inputs, dimensions: OnceLock::new() }))
    }

    /// What is sent.
    pub fn inputs(&self) -> &Inputs {
        &self.inputs
    }

    /// Components of a vector, once one was answered.
    pub fn dimensions(&self) -> Option<usize> {
        self.dimensions.get().copied()
    }

    /// Prepares for requests of `n_inputs`.
    ///
    /// # Errors
    /// [`TemplateError::OneInput`].
    pub fn lane(
        self: &Arc<Self>,
        target: &Target,
        n_inputs: usize,
        length: Length,
    ) -> Result<Arc<Lane>, TemplateError> {
        let frame = match &target.form {
            Form::Json(template) => Some(template.frame(n_inputs)?),
            Form::Multipart => None,
        };
        Ok(Arc::new(Lane { peer: self.clone(), url: target.url.clone(), frame, n_inputs, length }))
    }

    /// Posts one body and checks that `n` vectors come back.
    async fn post(
        &self,
        url: Url,
        content_type: HeaderValue,
        body: Vec<Bytes>,
        n: usize,
    ) -> Result<(), Failure> {
        let body = exchange(&self.client, url, content_type, body).await?;
        self.check(vectors(&body).map_err(Failure::Answer)?, n)
    }

    fn check(&self, found: Vectors, n: usize) -> Result<(), Failure> {
        if found.n != n {
            return Err(Failure::Answer(format!("{} vectors for {n} inputs", found.n)));
        }
        let known = *self.dimensions.get_or_init(|| found.dimensions);
        if known != found.dimensions {
            let said = format!("vectors of {} components, the first had {known}", found.dimensions);
            return Err(Failure::Answer(said));
        }
        Ok(())
    }
}

/// Requests of one kind to one route.
#[derive(Debug)]
pub struct Lane {
    peer: Arc<Peer>,
    url: Url,
    /// None for uploads.
    frame: Option<Frame>,
    n_inputs: usize,
    length: Length,
}

impl Lane {
    /// Inputs of one request.
    pub fn n_inputs(&self) -> usize {
        self.n_inputs
    }

    /// Sends one request with the next inputs, and checks the answer.
    ///
    /// # Errors
    /// [`Failure`]; for uploads the first.
    ///
    /// # Cancel safety
    /// Dropped half-way it closes the connection; its inputs are not sent again.
    pub async fn send(&self) -> Result<(), Failure> {
        let Self { peer, url, n_inputs, .. } = self;
        match &self.frame {
            Some(frame) => {
                let body = frame.fill(&peer.inputs, self.length);
                peer.post(url.clone(), JSON, body, *n_inputs).await
            }
            None => {
                let uploads = (0..*n_inputs).map(|_| {
                    let (content_type, body) = upload(&peer.inputs);
                    peer.post(url.clone(), content_type, body, 1)
                });
                future::try_join_all(uploads).await.map(|_| ())
            }
        }
    }
}

/// One picture as `multipart/form-data` (RFC 7578).
fn upload(inputs: &Inputs) -> (HeaderValue, Vec<Bytes>) {
    let head = format!(
        "--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"file\"; filename=\"photo.jpg\"\r\n\
         Content-Type: image/jpeg\r\n\r\n"
    );
    let mut body = vec![Bytes::from(head)];
    body.extend(inputs.file(inputs.draw()));
    body.push(format!("\r\n--{BOUNDARY}--\r\n").into());
    let content_type = format!("multipart/form-data; boundary={BOUNDARY}");
    (content_type.try_into().expect("it is plain ASCII"), body)
}
