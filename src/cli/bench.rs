//! `sidelens bench`: throughput and latency of an embedding server under a load like Meilisearch's.

use std::{
    num::NonZeroU64,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{Args, ValueEnum};
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use serde_json::{Value, json};
use url::Url;

use super::{
    CliError,
    args::{AddressError, FileError, TrustArgs, TrustError, address, endpoint, read},
    meilisearch::{fragment, fragments_request, picture_part, text_part},
    settings,
};
use crate::{
    domain::Modality,
    load::{self, Form, Inputs, LoadError, Peer, Picture, Plan, Target, Template, TemplateError, Until},
};

/// What to ask of which server.
///
/// Sends bulk requests like Meilisearch's and searches beside them, and prints what was answered. Unlike
/// Meilisearch it never asks again: what fails is counted. Meant for servers of your own.
#[derive(Debug, Clone, Args)]
pub struct BenchArgs {
    /// The server, such as http://127.0.0.1:7800; a path wins over that of the shape.
    #[arg(value_parser = address)]
    url: Url,
    /// What the server understands: as `sidelens settings` sets it up, as OpenAI with Infinity's `modality`
    /// (/embeddings), or as text-embeddings-inference (/embed).
    #[arg(long, value_enum, default_value_t = Shape::Sidelens)]
    shape: Shape,
    /// The model's name in the requests.
    #[arg(long, value_name = "NAME", default_value = "default")]
    model: String,
    /// The bulk's `request` template, as in Meilisearch's settings, with "{{image}}" (a data URI), "{{base64}}" or
    /// "{{text}}" for an input and "{{..}}" behind it; instead of a shape.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["multipart", "texts"])]
    request: Option<PathBuf>,
    /// The template of single texts, with "{{text}}".
    #[arg(long, value_name = "FILE")]
    search_request: Option<PathBuf>,
    /// Uploads each picture as multipart/form-data in the field `file`, all of one request side by side.
    #[arg(long, conflicts_with = "texts")]
    multipart: bool,
    /// Where single texts go, if not where the bulk goes.
    #[arg(long, value_name = "URL", value_parser = address)]
    search_url: Option<Url>,
    /// Bulk requests in flight.
    #[arg(long, value_name = "N", default_value = "40")]
    connections: NonZeroU64,
    /// Inputs of a bulk request.
    #[arg(long, value_name = "N", default_value = "10")]
    inputs: NonZeroU64,
    /// How long bulk requests start; those under way are waited for.
    #[arg(long, value_name = "S", default_value = "30")]
    seconds: u64,
    /// So many bulk requests, instead of a time.
    #[arg(long, value_name = "N", conflicts_with = "seconds")]
    requests: Option<u64>,
    /// JPEG files to send, instead of a photo of 640 x 480 pixels.
    #[arg(long, value_name = "FILE", num_args = 1..)]
    image: Vec<PathBuf>,
    /// The bulk is texts of about 250 characters, instead of pictures.
    #[arg(long)]
    texts: bool,
    /// A search, a single short text, each so often beside the bulk; it does not wait for the one before.
    #[arg(long, value_name = "MS", default_value = "200")]
    search_every_ms: NonZeroU64,
    /// No searches beside the bulk.
    #[arg(long, conflicts_with = "search_every_ms")]
    no_search: bool,
    /// First measures so many single texts and single pictures, one after another.
    #[arg(long, value_name = "N", default_value = "0")]
    idle: u64,
    /// Sends only N distinct inputs, over and over, after a first round that does not count: cache hits.
    #[arg(long, value_name = "N", num_args = 0..=1, require_equals = true, default_missing_value = "400")]
    repeat: Option<NonZeroU64>,
    /// How long an answer may take. Meilisearch gives up after 30 s too.
    #[arg(long, value_name = "S", default_value = "30")]
    timeout_s: u64,
    /// A header of each request; may be repeated.
    #[arg(long, value_name = "NAME: VALUE", value_parser = header)]
    header: Vec<(HeaderName, HeaderValue)>,
    #[command(flatten)]
    trust: TrustArgs,
    /// The server's process on this machine, whose memory is read before and after.
    #[arg(long)]
    pid: Option<u32>,
    /// Prints one JSON object instead of a table.
    #[arg(long)]
    json: bool,
}

/// Why there are no figures.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// An address is none.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// The authority is none.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// A file cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// Only JPEG files can be made unlike without encoding them anew.
    #[error("{}: it is no JPEG file, the only kind of picture that can be sent", .0.display())]
    NotJpeg(PathBuf),
    /// A template is no JSON.
    #[error("{}: {source}", file.display())]
    Json {
        /// The file.
        file: PathBuf,
        /// Where it goes wrong.
        source: serde_json::Error,
    },
    /// A template makes no request.
    #[error("{}: {source}", file.display())]
    Template {
        /// The file.
        file: PathBuf,
        /// Why.
        source: TemplateError,
    },
    /// Nothing says how a text is written.
    #[error("how is a search written? give its template with `--search-request`, or `--no-search`")]
    NoSearchRequest,
    /// The load does not hold together.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// No client.
    #[error("cannot set up connections: {0}")]
    Client(#[from] reqwest::Error),
    /// The server gave not one good answer.
    #[error("not one bulk request was answered as it should be")]
    NothingAnswered,
}

/// What a server understands.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Shape {
    /// The block that `sidelens settings` prints.
    Sidelens,
    /// OpenAI's `input`, with the `modality` of Infinity.
    Openai,
    /// The `inputs` of text-embeddings-inference.
    Tei,
}

impl Shape {
    fn route(self) -> &'static str {
        match self {
            Self::Sidelens => settings::ROUTE,
            Self::Openai => "/embeddings",
            Self::Tei => "/embed",
        }
    }

    fn request(self, modality: Modality, model: &str) -> Value {
        let input = match modality {
            Modality::Text => "{{text}}",
            Modality::Image => "{{image}}",
        };
        match self {
            Self::Sidelens => {
                let part = match modality {
                    Modality::Text => text_part(input),
                    Modality::Image => picture_part(input),
                };
                fragments_request(model, fragment(vec![part]))
            }
            Self::Openai => {
                json!({"model": model, "input": [input, "{{..}}"], "modality": modality.as_str()})
            }
            Self::Tei => json!({"inputs": [input, "{{..}}"]}),
        }
    }

    fn form(self, modality: Modality, model: &str) -> Form {
        Form::Json(Template::new(self.request(modality, model)).expect("a test makes a template of each"))
    }
}

/// Measures and prints.
pub(super) fn run(args: &BenchArgs) -> Result<(), CliError> {
    let plan = args.plan()?;
    let pictures = args.pictures()?;
    let inputs = Inputs::new(pictures, args.repeat.map(NonZeroU64::get));
    let headers = HeaderMap::from_iter(args.header.iter().cloned());
    let timeout = Duration::from_secs(args.timeout_s);
    let client = args.trust.client().map_err(BenchError::Trust)?.timeout(timeout);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let report = runtime.block_on(async {
        let peer = Peer::new(client, inputs, headers).map_err(BenchError::Client)?;
        load::run(&peer, &plan).await.map_err(BenchError::Load)
    })?;
    match args.json {
        true => println!("{}", json!(report)),
        false => print!("{report}"),
    }
    match report.lanes.bulk.n {
        0 => Err(BenchError::NothingAnswered.into()),
        _ => Ok(()),
    }
}

impl BenchArgs {
    fn plan(&self) -> Result<Plan, BenchError> {
        let at = |url: &Url| endpoint(url, self.shape.route());
        let url = at(&self.url)?;
        let form = match &self.request {
            Some(file) => read_template(file)?,
            None if self.multipart => Form::Multipart,
            None if self.texts => self.shape.form(Modality::Text, &self.model),
            None => self.shape.form(Modality::Image, &self.model),
        };
        let search_form = match &self.search_request {
            Some(file) => Some(read_template(file)?),
            None if self.request.is_none() && !self.multipart => {
                Some(self.shape.form(Modality::Text, &self.model))
            }
            None => Some(form.clone()).filter(|form| form.modality() == Modality::Text),
        };
        if search_form.is_none() && !self.no_search {
            return Err(BenchError::NoSearchRequest);
        }
        let search_url = self.search_url.as_ref().map(at).transpose()?.unwrap_or_else(|| url.clone());
        Ok(Plan {
            bulk: Target { url, form },
            search: search_form.map(|form| Target { url: search_url, form }),
            search_every: (!self.no_search).then(|| Duration::from_millis(self.search_every_ms.get())),
            n_connections: self.connections.get() as usize,
            n_inputs: self.inputs.get() as usize,
            until: match self.requests {
                Some(n) => Until::Requests(n),
                None => Until::Elapsed(Duration::from_secs(self.seconds)),
            },
            n_idle: self.idle,
            pid: self.pid,
        })
    }

    fn pictures(&self) -> Result<Vec<Picture>, BenchError> {
        if self.image.is_empty() {
            return Ok(vec![Picture::photo()]);
        }
        let read = |file: &PathBuf| {
            let content = read(file)?;
            Picture::from_jpeg(&content).ok_or_else(|| BenchError::NotJpeg(file.clone()))
        };
        self.image.iter().map(read).collect()
    }
}

fn read_template(file: &Path) -> Result<Form, BenchError> {
    let request = serde_json::from_slice(&read(file)?)
        .map_err(|source| BenchError::Json { file: file.into(), source })?;
    let template =
        Template::new(request).map_err(|source| BenchError::Template { file: file.into(), source })?;
    Ok(Form::Json(template))
}

fn header(line: &str) -> Result<(HeaderName, HeaderValue), String> {
    let (name, value) = line.split_once(':').ok_or("write it as 'Name: value'")?;
    let name = HeaderName::try_from(name.trim()).map_err(|error| format!("`{name}`: {error}"))?;
    let value =
        HeaderValue::try_from(value.trim()).map_err(|error| format!("the value of `{name}`: {error}"))?;
    Ok((name, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shape_makes_requests_of_either_kind() {
        for shape in Shape::value_variants() {
            for modality in Modality::ALL {
                assert_eq!(shape.form(modality, "m").modality(), modality, "{shape:?}");
            }
        }
    }

    #[test]
    fn headers_are_read_as_curl_reads_them() {
        let (name, value) = header("Authorization: Bearer a:b").unwrap();
        assert_eq!((name.as_str(), value.to_str().unwrap()), ("authorization", "Bearer a:b"));
        assert!(header("no colon").is_err() && header("a b: c").is_err() && header("a: b\n").is_ok());
    }
}
