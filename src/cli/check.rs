//! `sidelens check`: whether a running service gives vectors as Meilisearch needs them, seen from outside.
//!
//! A text and a picture go through the route that Meilisearch uses, the picture twice: each time as a file that no
//! cache has seen, so that the model itself must give the same vector again.

mod judge;

use std::{io, time::Duration};

use clap::Args;
use reqwest::{
    Client,
    header::{AUTHORIZATION, HeaderMap, HeaderValue},
};
use serde::Deserialize;
use url::Url;

use self::judge::{Judge, vector, wrong_dimensions};
use super::{
    CliError,
    args::{AddressError, FOR_A_CERTIFICATE, KeyArgs, KeyError, TrustArgs, TrustError, address, endpoint},
    meilisearch::{fragment, fragments_request, picture_part, text_part},
    settings::{ROUTE, info_path},
};
use crate::{
    domain::Modality,
    load::{self, Failure, Inputs, Picture, Template},
};

/// Which service, and what to expect of it.
#[derive(Debug, Clone, Args)]
pub struct CheckArgs {
    /// Where Meilisearch reaches Sidelens, such as http://127.0.0.1:7800.
    #[arg(value_parser = address)]
    url: Url,
    /// Dimensions that Meilisearch is told; without it, those that the service itself reports.
    #[arg(long, value_name = "N")]
    dimensions: Option<usize>,
    #[command(flatten)]
    key: KeyArgs,
    #[command(flatten)]
    trust: TrustArgs,
    /// One of several models; without it, the default one.
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
    /// Connects to this host instead of the URL's, whose name then only stands in the request and in the certificate.
    #[arg(long, value_name = "HOST")]
    connect: Option<String>,
    /// How long an answer may take. Meilisearch gives up after 30 s too.
    #[arg(long, value_name = "S", default_value = "30")]
    timeout_s: u64,
}

/// Why the service does not pass.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// The address is none.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// The key is none.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The authority is none.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// The name has no address.
    #[error("`--connect` names `{host}`, which has no address here: {source}")]
    Resolve {
        /// The name.
        host: String,
        /// What the system says.
        source: io::Error,
    },
    /// No client.
    #[error("cannot set up connections: {0}")]
    Client(#[from] reqwest::Error),
    /// Something is not as it should be.
    #[error("{n_failed} of {n} checks of {url} failed; {first}")]
    Failed {
        /// Where.
        url: String,
        /// Checks that failed.
        n_failed: usize,
        /// All checks.
        n: usize,
        /// The first that failed, and the next step.
        first: String,
    },
}

/// What the service says of its model.
#[derive(Debug, Deserialize)]
struct Facts {
    model: String,
    dimensions: usize,
    modalities: Vec<String>,
    fingerprint: String,
}

/// Asks, prints a line for each check, and sums up.
pub(super) fn run(args: &CheckArgs) -> Result<(), CliError> {
    let url = endpoint(&args.url, ROUTE).map_err(CheckError::Address)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let judge = runtime.block_on(async {
        let client = args.client(&url).await?;
        let mut judge = Judge::default();
        // Whoever cannot be reached cannot be judged further.
        if let Ok(facts) = args.facts(&client, &url, &mut judge).await {
            args.vectors(&client, &url, facts, &mut judge).await;
        }
        Ok::<_, CheckError>(judge)
    })?;
    let Judge { n, failed } = judge;
    match failed.first() {
        Some(first) => {
            let (n_failed, first) = (failed.len(), first.clone());
            Err(CheckError::Failed { url: url.into(), n_failed, n, first }.into())
        }
        None => {
            println!("all {n} checks passed: {url} gives vectors as Meilisearch needs them");
            Ok(())
        }
    }
}

impl CheckArgs {
    async fn client(&self, url: &Url) -> Result<Client, CheckError> {
        let mut headers = HeaderMap::new();
        if let Some(key) = self.key.key()? {
            let mut bearer = HeaderValue::try_from(format!("Bearer {key}")).expect("a key is visible ASCII");
            bearer.set_sensitive(true);
            headers.insert(AUTHORIZATION, bearer);
        }
        let mut client = self.trust.client()?;
        if let Some(host) = &self.connect {
            let found = tokio::net::lookup_host((host.as_str(), 0)).await;
            let found = found.map_err(|source| CheckError::Resolve { host: host.clone(), source })?;
            let addresses: Vec<_> = found.collect();
            client = client.resolve_to_addrs(url.host_str().unwrap_or_default(), &addresses);
        }
        Ok(client.default_headers(headers).timeout(Duration::from_secs(self.timeout_s)).build()?)
    }

    /// What the service says of its model; nothing where `/info` is not led through to it. `Err` once it cannot be
    /// reached, or has no such model.
    async fn facts(&self, client: &Client, url: &Url, judge: &mut Judge) -> Result<Option<Facts>, ()> {
        let path = match &self.model {
            Some(name) => format!("/models/{name}/info"),
            None => info_path(url),
        };
        let mut info = url.clone();
        info.set_path(&path);
        let answer = async {
            let response = client.get(info).send().await?;
            Ok::<_, reqwest::Error>((response.status().as_u16(), response.bytes().await?))
        };
        let (status, body) = match answer.await.map_err(Failure::from) {
            Ok(answer) => answer,
            Err(failure) => {
                judge.note("/info", Err(self.explain(&failure)));
                return Err(());
            }
        };
        if status == 400 {
            judge.note("/info", Err(self.explain(&Failure::refused(status, &body))));
            return Err(());
        }
        let facts = serde_json::from_slice::<Facts>(&body).ok().filter(|_| status == 200);
        let Some(facts) = facts else {
            judge.skip("/info", &format!("is not to be had here (status {status})"));
            return Ok(None);
        };
        let Facts { model, dimensions, modalities, fingerprint } = &facts;
        let (kinds, told) = (modalities.join(" and "), self.dimensions.unwrap_or(*dimensions));
        judge.note(
            "/info",
            if told == *dimensions {
                Ok(format!("{model}, {dimensions} dimensions, {kinds}, fingerprint {fingerprint}"))
            } else {
                Err(format!("{model} has {}", wrong_dimensions(*dimensions, told)))
            },
        );
        Ok(Some(facts))
    }

    async fn vectors(&self, client: &Client, url: &Url, facts: Option<Facts>, judge: &mut Judge) {
        let inputs = Inputs::new(vec![Picture::photo()], None);
        let model = self.model.as_deref().or(facts.as_ref().map(|facts| facts.model.as_str()));
        let template = |modality| {
            let part = match modality {
                Modality::Text => text_part("{{text}}"),
                Modality::Image => picture_part("{{image}}"),
            };
            Template::new(fragments_request(model.unwrap_or("default"), fragment(vec![part])))
                .expect("there is one placeholder")
        };
        let mut dimensions = self.dimensions.or(facts.as_ref().map(|facts| facts.dimensions));
        let mut found: [Option<Vec<f64>>; 3] = [None, None, None];
        let asked =
            [("text", Modality::Text), ("picture", Modality::Image), ("same picture", Modality::Image)];
        for (slot, (what, modality)) in found.iter_mut().zip(asked) {
            let is_served = |facts: &Facts| facts.modalities.iter().any(|served| served == modality.as_str());
            if !facts.as_ref().is_none_or(is_served) {
                judge.skip(what, "is not for this model");
                continue;
            }
            match load::ask(client, url.clone(), &template(modality), &inputs).await {
                Ok(body) => *slot = vector(what, &body, &mut dimensions, judge),
                Err(Failure::Status { status: 400, body })
                    if facts.is_none() && body.contains("unsupported_modality") =>
                {
                    judge.skip(what, "is not for this model");
                }
                Err(failure) => judge.note(what, Err(self.explain(&failure))),
            }
        }
        let [text, picture, again] = found;
        if let (Some(picture), Some(again)) = (&picture, &again) {
            judge.same(picture, again);
        }
        if let (Some(text), Some(picture)) = (&text, &picture) {
            judge.different(text, picture);
        }
        if judge.n == 0 {
            judge.note("the model", Err("takes neither texts nor pictures: is this Sidelens?".into()));
        }
    }

    /// What a failure means, and the next step.
    fn explain(&self, failure: &Failure) -> String {
        let next = match failure {
            Failure::Status { status: 401 | 403, .. } if self.key.is_of_file() => {
                "put a key of `[auth]` into the file of `--key-file`"
            }
            Failure::Status { status: 401 | 403, .. } => "give a key of `[auth]` with `--key-file`",
            Failure::Status { status: 404, body } if is_no_route(body) => {
                "give the address that Meilisearch has"
            }
            Failure::Status { status: 404 | 405, .. } => {
                "give the address that Meilisearch has; is it Sidelens that answers there?"
            }
            Failure::Status { status: 429, .. } => "try again when there is less load",
            Failure::Status { status: 503, .. } => "try again once /ready answers 200",
            Failure::Status { status: 500, .. } => "the service's log says more",
            Failure::Status { status: 400, .. } => {
                "that is what to change here, or in the service's settings"
            }
            Failure::Status { .. } => "what answers is perhaps a proxy in front of Sidelens",
            Failure::Timeout => "look at the load of the service, or give it more time with `--timeout-s`",
            Failure::Connect(cause) if cause.contains("certificate") => FOR_A_CERTIFICATE,
            Failure::Connect(_) => {
                "is the service running, and is the way open, through a NetworkPolicy too?"
            }
            Failure::Broken(_) => "http and https may be mixed up, or the service ended; its log says more",
            Failure::Answer(_) => "is it Sidelens that answers there?",
        };
        let what = match failure {
            Failure::Status { status, body } => format!("status {status}: {}", message(body)),
            Failure::Timeout => format!("no whole answer within {} s", self.timeout_s),
            other => other.to_string(),
        };
        format!("{what}; {next}")
    }
}

/// Whether it is Sidelens that has nothing at a path; it then says what is where.
pub(super) fn is_no_route(body: &str) -> bool {
    message(body).starts_with("no such route; ")
}

/// The message in the body of a refusal, which may be cut off, or the body itself.
pub(super) fn message(body: &str) -> &str {
    let said = body.split_once(r#""message":""#).map_or(body, |(_, rest)| rest);
    let end = said.find(r#"","type""#).unwrap_or(said.len());
    said[..end].trim()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_its_message() {
        let check = |body, expected| assert_eq!(message(body), expected);
        check(r#"{"error":{"message":"no key","type":"unauthorized"}}"#, "no key");
        check(r#"{"error":{"message":"cut o"#, "cut o");
        check("<html>\n", "<html>");
        check("", "");
    }
}
