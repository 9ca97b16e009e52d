//! `sidelens settings`: what to tell Meilisearch.
//!
//! The JSON goes to stdout, ready for `curl -X PATCH $MEILI/indexes/x/settings --json @-`; the two
//! things that block newcomers, and what was assumed, go to stderr.

use std::{
    collections::BTreeSet,
    net::{IpAddr, ToSocketAddrs},
    time::Duration,
};

use clap::Args;
use ipnet::IpNet;
use reqwest::Client;
use serde::Deserialize;
use url::{Host, Url};

use super::{
    CliError, ConfigArgs,
    args::{AddressError, FOR_A_CERTIFICATE, KeyArgs, KeyError, TrustArgs, TrustError, address, endpoint},
    check::{is_no_route, message},
    meilisearch::{Embedder, index_settings, names_field, picture_template},
};
use crate::{
    config::{Config, HubConfig, ModelConfig, ModelParts, ModelSource},
    dialect::{DIALECTS, Dialect, Meilisearch},
    domain::Modality,
    hub,
    load::Failure,
};

/// The embedding route, unless the URL has a path of its own.
pub(super) const ROUTE: &str = "/embed";
/// For asking the running service; a search would not wait longer either.
const INFO_TIMEOUT: Duration = Duration::from_secs(2);
/// What `localhost` stands for: Meilisearch wants every address of a name allowed.
const LOOPBACK: [&str; 2] = ["127.0.0.0/8", "::1/128"];
/// Networks that Meilisearch closes by default, as wide as they are reserved.
const PRIVATE: [&str; 7] = [
    "10.0.0.0/8",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "100.64.0.0/10",
    "169.254.0.0/16",
    "fc00::/7",
    "fe80::/10",
];

/// What the index holds, and where Meilisearch finds Sidelens.
#[derive(Debug, Clone, Args)]
#[command(group(clap::ArgGroup::new("content").required(true).multiple(true).args(["image_field", "text_template"])))]
pub struct SettingsArgs {
    /// Where Meilisearch reaches Sidelens, such as http://127.0.0.1:7800.
    #[arg(long, value_parser = address)]
    url: Url,
    /// The field of a document with its picture's URL, such as poster, or a Liquid template of it. A document without it
    /// has no vector, nor has one where a field that the template names plainly is null or empty.
    #[arg(long, value_name = "FIELD|TEMPLATE")]
    image_field: Option<String>,
    /// A Liquid template of a document's text, such as "{{doc.title}}. {{doc.overview}}". Beside pictures, a document that
    /// lacks one of these fields has no vector; write those as {% if doc.overview %}{{doc.overview}}{% endif %}.
    #[arg(long, value_name = "TEMPLATE")]
    text_template: Option<String>,
    /// Take the fragments out of an embedder that had pictures and is to have texts alone. Not for every day: each time,
    /// Meilisearch computes all vectors anew.
    #[arg(long, conflicts_with = "image_field")]
    drop_fragments: bool,
    /// The embedder's name in the index.
    #[arg(long, value_name = "NAME", default_value = "sidelens")]
    embedder: String,
    /// Meilisearch is to send it.
    #[command(flatten)]
    key: KeyArgs,
    #[command(flatten)]
    trust: TrustArgs,
    /// Where the model is found when the service does not answer.
    #[command(flatten)]
    pub(super) config: ConfigArgs,
}

/// Why there are no settings to print.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The address is none.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// The path leads elsewhere.
    #[error(
        "`{0}` is no route whose answers are as these settings would say; end `--url` with /embed, or with \
         /models/NAME/embed for one of several models"
    )]
    Route(String),
    /// The authority is none.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// The key is none.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// No client.
    #[error("cannot set up connections: {0}")]
    Client(#[from] reqwest::Error),
    /// Neither a field nor a template.
    #[error("`--image-field`: {0}")]
    ImageField(String),
    /// Every document would have the same vector.
    #[error(
        "`--text-template` is `{0}`, which names no field of the document; write it as {{{{doc.title}}}}"
    )]
    TextTemplate(String),
    /// Every task would fail.
    #[error("model `{model}` has no {tower} tower, so leave out `{flag}`, or serve another model")]
    NoTower {
        /// The model's name.
        model: String,
        /// `text` or `image`.
        tower: &'static str,
        /// What asks for it.
        flag: &'static str,
    },
    /// Nobody knows the model's dimensions.
    #[error("{info} does not tell its model: {reason}; {next}")]
    Service {
        /// Where it was asked.
        info: String,
        /// Why it does not tell.
        reason: String,
        /// The next step.
        next: &'static str,
    },
    /// Neither does the model itself.
    #[error("{info} does not tell its model ({reason}), and the configured one is not to be had: {model}")]
    Model {
        /// Where the service was asked.
        info: String,
        /// Why it does not tell.
        reason: String,
        /// Why the files do not.
        model: String,
    },
}

/// The facts that stand in the settings.
#[derive(Debug, Deserialize, PartialEq)]
struct ModelFacts {
    model: String,
    dimensions: usize,
    modalities: Vec<String>,
}

impl ModelFacts {
    fn has(&self, modality: Modality) -> bool {
        self.modalities.iter().any(|name| name == modality.as_str())
    }
}

/// Prints the settings.
pub(super) fn run(args: &SettingsArgs) -> Result<(), CliError> {
    let endpoint = endpoint(&args.url, ROUTE).map_err(SettingsError::Address)?;
    let route = route(endpoint.path()).filter(|(_, route)| Meilisearch.routes().contains(route));
    let Some((above, _)) = route else { return Err(SettingsError::Route(endpoint.path().into()).into()) };
    if let Some(template) = args.text_template.as_ref().filter(|template| !names_field(template)) {
        return Err(SettingsError::TextTemplate(template.clone()).into());
    }
    let picture = args.image_field.as_deref().map(picture_template).transpose();
    let picture = picture.map_err(SettingsError::ImageField)?;
    let key = args.key.key().map_err(SettingsError::Key)?;
    let config = args.config.load()?;

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let client = args.trust.client().map_err(SettingsError::Trust)?.timeout(INFO_TIMEOUT);
    let client = client.build().map_err(SettingsError::Client)?;
    let mut info = endpoint.clone();
    info.set_path(&format!("{above}/info"));
    info.set_query(None);
    let facts = match runtime.block_on(ask(&client, info.clone())) {
        Ok(facts) => {
            eprintln!(
                "# Model `{}`, {} dimensions, says the service at {endpoint}.",
                facts.model, facts.dimensions
            );
            facts
        }
        // Not there yet, or not for this machine. Whatever else answers is not to be guessed about.
        Err(failure @ (Failure::Connect(_) | Failure::Timeout)) if args.names_model(&config) => {
            let name = above.split_once("/models/").map(|(_, name)| name);
            let facts = configured(&config, name).map_err(|model| SettingsError::Model {
                info: info.to_string(),
                reason: failure.to_string(),
                model,
            })?;
            eprintln!(
                "# {info} does not tell its model ({failure}), so this is for the configured one, `{}` with {} dimensions.",
                facts.model, facts.dimensions
            );
            facts
        }
        Err(failure) => return Err(SettingsError::of(&info, &failure).into()),
    };
    let asked = [
        (Modality::Image, "--image-field", args.image_field.is_some()),
        (Modality::Text, "--text-template", args.text_template.is_some()),
    ];
    for (modality, flag, is_given) in asked {
        if is_given && !facts.has(modality) {
            let (model, tower) = (facts.model, modality.as_str());
            return Err(SettingsError::NoTower { model, tower, flag }.into());
        }
    }
    let settings = index_settings(&Embedder {
        name: &args.embedder,
        url: endpoint.as_str(),
        api_key: key.as_deref(),
        model: &facts.model,
        dimensions: facts.dimensions,
        has_texts: facts.has(Modality::Text),
        picture: picture.as_deref(),
        text: args.text_template.as_deref(),
        drop_fragments: args.drop_fragments,
    });
    println!("{settings:#}");

    if picture.is_some() {
        eprintln!(
            "# Pictures need a switch in Meilisearch, once:\n\
             #   curl -X PATCH \"$MEILI_URL/experimental-features\" -H 'Content-Type: application/json' \
             -d '{{\"multimodal\": true}}'"
        );
    } else if !args.drop_fragments {
        eprintln!(
            "# If the embedder `{}` had pictures until now, the task fails: add --drop-fragments, this once.",
            args.embedder
        );
    }
    eprintln!("{}", describe_networks(&endpoint));
    if key.is_none() && config.auth.asks_for_key() {
        eprintln!("# This configuration asks for a key: add --key-file, or Meilisearch is answered 401.");
    }
    Ok(())
}

/// Splits a path into a dialect's route at its end and what stands above that: nothing, or `/models/` and a name, or a
/// proxy's own path. Of two routes the longer one, as `/tei/embed` also ends with `/embed`.
fn route(path: &str) -> Option<(&str, &str)> {
    let path = path.trim_end_matches('/');
    let routes = DIALECTS.iter().flat_map(|dialect| dialect.routes()).filter(|route| **route != "/");
    let longest = routes.filter(|route| path.ends_with(**route)).max_by_key(|route| route.len())?;
    Some(path.split_at(path.len() - longest.len()))
}

/// The path with the facts of the model that the endpoint's path chooses.
pub(super) fn info_path(endpoint: &Url) -> String {
    format!("{}/info", route(endpoint.path()).map_or("", |(above, _)| above))
}

/// Asks the running service for its model.
async fn ask(client: &Client, info: Url) -> Result<ModelFacts, Failure> {
    let response = client.get(info).send().await?;
    let status = response.status().as_u16();
    let body = response.bytes().await?;
    if status != 200 {
        return Err(Failure::refused(status, &body));
    }
    serde_json::from_slice(&body).map_err(|_| Failure::Answer("it answers, but not as Sidelens does".into()))
}

impl SettingsError {
    fn of(info: &Url, failure: &Failure) -> Self {
        let next = match failure {
            Failure::Connect(cause) if cause.contains("certificate") => FOR_A_CERTIFICATE,
            Failure::Connect(_) | Failure::Timeout => {
                "start Sidelens first, or name its model with `--model`"
            }
            Failure::Status { status: 400, .. } => "name another in the URL",
            Failure::Status { status: 404, body } if is_no_route(body) => {
                "give the address that Meilisearch has"
            }
            _ => "is it Sidelens that answers there?",
        };
        let reason = match failure {
            Failure::Status { status, body } => format!("status {status}: {}", message(body)),
            other => other.to_string(),
        };
        Self::Service { info: info.to_string(), reason, next }
    }
}

impl SettingsArgs {
    /// Whether a model is named, be it the demo, which is also what the settings have where none is.
    fn names_model(&self, config: &Config) -> bool {
        let is_demo = config.models.is_empty() && config.model.parts() == ModelParts::One(ModelSource::Demo);
        !is_demo || self.config.sets().iter().any(|(key, _)| key == "model.source")
    }
}

/// The model that the settings name; of several that of the `name` in the endpoint's path, or the first.
fn configured(config: &Config, name: Option<&str>) -> Result<ModelFacts, String> {
    for served in config.served() {
        let facts = read(&served.model, &config.hub)?;
        if name.is_none_or(|name| name == facts.model) {
            return Ok(facts);
        }
    }
    Err(format!("none is called `{}`", name.unwrap_or_default()))
}

fn read(model: &ModelConfig, hub: &HubConfig) -> Result<ModelFacts, String> {
    let downloaded = |source: &ModelSource| match source {
        ModelSource::Hub(model) => hub::cached(model, hub).map(|found| ModelSource::Directory(found.dir)),
        here => Ok(here.clone()),
    };
    let model = model.clone().located(downloaded).map_err(|error| error.to_string())?;
    let spec = crate::model::spec(&model).map_err(|error| error.to_string())?;
    let modalities = spec.modalities().into_iter().map(|modality| modality.as_str().to_owned()).collect();
    Ok(ModelFacts { model: model.name.unwrap_or(spec.name), dimensions: spec.dimensions, modalities })
}

/// What Meilisearch must be started with to reach the endpoint.
fn describe_networks(endpoint: &Url) -> String {
    const VARIABLE: &str = "MEILI_EXPERIMENTAL_ALLOWED_IP_NETWORKS";
    let host = endpoint.host_str().unwrap_or_default();
    let Some(addresses) = resolve(endpoint) else {
        return format!(
            "# Start Meilisearch with {VARIABLE} set to the network of `{host}`, which has no address here: \
             172.16.0.0/12 is usual for Docker, on Kubernetes it is the service and pod ranges."
        );
    };
    let networks = networks(&addresses);
    if networks.is_empty() {
        return format!("# `{host}` is a global address: Meilisearch reaches it without further settings.");
    }
    let networks = Vec::from_iter(networks).join(",");
    format!(
        "# Meilisearch calls no private address unless told; without this, tasks fail after minutes with \
         \"Rejected URI\":\n#   {VARIABLE}={networks} meilisearch ..."
    )
}

/// Every address of the endpoint's host, seen from here.
fn resolve(endpoint: &Url) -> Option<Vec<IpAddr>> {
    match endpoint.host()? {
        Host::Ipv4(address) => Some(vec![address.into()]),
        Host::Ipv6(address) => Some(vec![address.into()]),
        Host::Domain(name) => {
            let addresses = (name, 0).to_socket_addrs().ok()?;
            Some(addresses.map(|address| address.ip()).collect())
        }
    }
}

/// The closed networks that hold `addresses`.
fn networks(addresses: &[IpAddr]) -> BTreeSet<&'static str> {
    let mut networks = BTreeSet::new();
    for address in addresses {
        if address.is_loopback() || address.is_unspecified() {
            networks.extend(LOOPBACK);
            continue;
        }
        let holds =
            |cidr: &&&str| cidr.parse::<IpNet>().expect("the list above holds CIDRs only").contains(address);
        networks.extend(PRIVATE.iter().find(holds));
    }
    networks
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_networks(url: &str, expected: &str) {
        let endpoint = endpoint(&url.parse().unwrap(), ROUTE).unwrap();
        let networks = networks(&resolve(&endpoint).unwrap());
        assert_eq!(Vec::from_iter(networks).join(","), expected, "{url}");
    }

    #[test]
    fn names_the_networks_to_open() {
        check_networks("http://localhost:7800", "127.0.0.0/8,::1/128");
        check_networks("http://127.0.0.1:7800", "127.0.0.0/8,::1/128");
        check_networks("http://[::1]:7800", "127.0.0.0/8,::1/128");
        check_networks("http://172.17.0.1:7800", "172.16.0.0/12");
        check_networks("http://[fd00::5]", "fc00::/7");
        check_networks("http://93.184.216.34", "");
    }

    #[test]
    fn the_facts_are_those_of_the_model_in_the_path() {
        for (endpoint, expected) in [
            ("http://a/embed", "/info"),
            ("http://a/models/org/clip/embed/", "/models/org/clip/info"),
            ("http://a/models/org/clip/v1/embeddings", "/models/org/clip/info"),
            ("http://a/models/clip/tei/embed", "/models/clip/info"),
            ("http://a/models/embed/embed", "/models/embed/info"),
            ("http://a/v1/embeddings", "/info"),
            ("http://a/vectors/embed?x=y", "/vectors/info"),
            ("http://a/", "/info"),
        ] {
            assert_eq!(info_path(&Url::parse(endpoint).unwrap()), expected, "{endpoint}");
        }
    }
}
