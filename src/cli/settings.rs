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
use serde::Deserialize;
use url::{Host, Url};

use super::{
    CliError, ConfigArgs,
    args::{AddressError, endpoint},
    meilisearch::{Embedder, index_settings, picture_template},
};
use crate::{
    config::{HubConfig, ModelConfig, ModelSource},
    hub,
    load::http_client,
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
    #[arg(long)]
    url: Url,
    /// The field of a document with its picture's URL, such as poster, or a Liquid template of it.
    #[arg(long, value_name = "FIELD|TEMPLATE")]
    image_field: Option<String>,
    /// A Liquid template of a document's text, such as "{{doc.title}}. {{doc.overview}}".
    #[arg(long, value_name = "TEMPLATE")]
    text_template: Option<String>,
    /// Take the fragments out of an embedder that had pictures and is to have texts alone. Not for every day: each time,
    /// Meilisearch computes all vectors anew.
    #[arg(long, conflicts_with = "image_field")]
    drop_fragments: bool,
    /// The embedder's name in the index.
    #[arg(long, value_name = "NAME", default_value = "sidelens")]
    embedder: String,
    /// A key of `[auth]`, for Meilisearch to send.
    #[arg(long, value_name = "KEY")]
    api_key: Option<String>,
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
    /// Neither a field nor a template.
    #[error("`--image-field`: {0}")]
    ImageField(String),
    /// Every document would have the same vector.
    #[error(
        "`--text-template` is `{0}`, which names no field of the document; write it as {{{{doc.title}}}}"
    )]
    TextTemplate(String),
    /// Nobody knows the model's dimensions.
    #[error(
        "{asked}, and the model's own files say nothing either: {model}; start Sidelens first, or \
             give its `--model`"
    )]
    Model {
        /// Why the service did not tell.
        asked: String,
        /// Why the files did not.
        model: String,
    },
}

/// The facts that stand in the settings.
#[derive(Debug, Deserialize, PartialEq)]
struct ModelFacts {
    model: String,
    dimensions: usize,
}

/// Prints the settings.
pub(super) fn run(args: &SettingsArgs) -> Result<(), CliError> {
    let endpoint = endpoint(&args.url, ROUTE).map_err(SettingsError::Address)?;
    if let Some(template) =
        args.text_template.as_ref().filter(|t| !t.contains("doc.") && !t.contains("fields"))
    {
        return Err(SettingsError::TextTemplate(template.clone()).into());
    }
    let picture = args.image_field.as_deref().map(picture_template).transpose();
    let picture = picture.map_err(SettingsError::ImageField)?;
    let config = args.config.load()?;

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let facts = match runtime.block_on(ask(&endpoint)) {
        Ok(facts) => {
            eprintln!(
                "# Model `{}`, {} dimensions, says the service at {endpoint}.",
                facts.model, facts.dimensions
            );
            facts
        }
        Err(asked) => {
            let facts = read(&config.served().remove(0).model, &config.hub)
                .map_err(|model| SettingsError::Model { asked: asked.clone(), model })?;
            eprintln!(
                "# {asked}, so this is for the configured model, `{}` with {} dimensions.",
                facts.model, facts.dimensions
            );
            facts
        }
    };
    let settings = index_settings(&Embedder {
        name: &args.embedder,
        url: endpoint.as_str(),
        api_key: args.api_key.as_deref(),
        model: &facts.model,
        dimensions: facts.dimensions,
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
    if args.api_key.is_none() && config.auth.asks_for_key() {
        eprintln!("# This configuration asks for a key: add --api-key, or Meilisearch is answered 401.");
    }
    Ok(())
}

/// The path with the facts of the model that the endpoint's path chooses.
pub(super) fn info_path(endpoint: &Url) -> String {
    let below = endpoint.path().strip_prefix("/models/");
    match below.and_then(|below| below.trim_end_matches('/').strip_suffix("/embed")) {
        Some(name) => format!("/models/{name}/info"),
        None => "/info".into(),
    }
}

/// Asks the running service for its model; the error is half a sentence.
async fn ask(endpoint: &Url) -> Result<ModelFacts, String> {
    let info =
        endpoint.join(&info_path(endpoint)).map_err(|error| format!("{endpoint} has no /info: {error}"))?;
    let client =
        http_client().timeout(INFO_TIMEOUT).build().map_err(|error| format!("cannot ask {info}: {error}"))?;
    let silent = |_| format!("{info} does not answer from here");
    let response = client.get(info.clone()).send().await.map_err(silent)?;
    let body = response.bytes().await.map_err(silent)?;
    serde_json::from_slice(&body).map_err(|_| format!("{info} answers, but not as Sidelens does"))
}

fn read(model: &ModelConfig, hub: &HubConfig) -> Result<ModelFacts, String> {
    let downloaded = |source: &ModelSource| match source {
        ModelSource::Hub(model) => hub::cached(model, hub).map(|found| ModelSource::Directory(found.dir)),
        here => Ok(here.clone()),
    };
    let model = model.clone().located(downloaded).map_err(|error| error.to_string())?;
    let spec = crate::model::spec(&model).map_err(|error| error.to_string())?;
    Ok(ModelFacts { model: spec.name, dimensions: spec.dimensions })
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
            ("http://a/v1/embeddings", "/info"),
        ] {
            assert_eq!(info_path(&Url::parse(endpoint).unwrap()), expected, "{endpoint}");
        }
    }
}
