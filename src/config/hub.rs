//! Models by name: what names one, and where the hub and its cache are.

use std::{env, fmt, path::Path, str::FromStr};

use serde::{Deserialize, Serialize};

use super::ApiKey;

/// The longest `org` or `name` that the hub takes.
const MAX_NAME: usize = 96;

/// The hub, and where its files are kept. An empty setting leaves the choice to the usual `HF_*` variables.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct HubConfig {
    /// Address of the hub; empty means `HF_ENDPOINT`, or <https://huggingface.co>.
    pub endpoint: String,
    /// Where downloaded files are kept; empty means `HF_HUB_CACHE`, or `hub` in `HF_HOME`.
    pub cache_dir: String,
    /// For gated and private models; empty means `HF_TOKEN`, or the token file.
    pub token: ApiKey,
    /// Never ask the hub; `HF_HUB_OFFLINE=1` says the same.
    pub offline: bool,
    /// Serve TorchScript modules of the hub, which are programs of whoever owns the repository.
    pub trust_remote_code: bool,
}

impl HubConfig {
    /// Whether the hub must not be asked, by the setting or by `HF_HUB_OFFLINE`.
    pub fn is_offline(&self) -> bool {
        let variable = env::var("HF_HUB_OFFLINE").unwrap_or_default();
        self.offline || ["1", "on", "yes", "true"].contains(&variable.to_ascii_lowercase().as_str())
    }
}

/// A model on the hub: `org/name`, or `org/name@revision`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubModel {
    /// `org/name`.
    pub repo: String,
    /// A branch, tag or commit; without one the default branch.
    pub revision: Option<String>,
}

impl HubModel {
    /// The model that a directory of the hub's cache holds: `models--org--name/snapshots/COMMIT`.
    ///
    /// The directory's own name is a commit, which tells nobody what it serves.
    pub fn of_snapshot(dir: &Path) -> Option<Self> {
        let commit = dir.file_name()?.to_str()?;
        let snapshots = dir.parent().filter(|parent| parent.ends_with("snapshots"))?;
        let folder = snapshots.parent()?.file_name()?.to_str()?;
        // Neither part of a name may hold two dashes, so the first pair is the slash.
        let name = folder.strip_prefix("models--")?.replacen("--", "/", 1);
        format!("{name}@{commit}").parse().ok()
    }
}

impl FromStr for HubModel {
    type Err = String;

    /// Reads `org/name[@revision]` by the hub's own rules for names.
    fn from_str(text: &str) -> Result<Self, String> {
        let refused =
            || format!("`{text}` names no model of the hub; write it as org/name or org/name@revision");
        let (repo, revision) = match text.split_once('@') {
            Some((repo, revision)) => (repo, Some(revision)),
            None => (text, None),
        };
        let (org, name) = repo.split_once('/').ok_or_else(refused)?;
        if !is_name(org) || !is_name(name) || name.ends_with(".git") || !revision.is_none_or(is_revision) {
            return Err(refused());
        }
        Ok(Self { repo: repo.into(), revision: revision.map(Into::into) })
    }
}

impl fmt::Display for HubModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.revision {
            Some(revision) => write!(f, "{}@{revision}", self.repo),
            None => f.write_str(&self.repo),
        }
    }
}

/// Source: `validate_repo_id` of `huggingface_hub`.
fn is_name(part: &str) -> bool {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    part.len() <= MAX_NAME
        && part.starts_with(is_word)
        && part.ends_with(is_word)
        && part.chars().all(|c| is_word(c) || c == '-' || c == '.')
        && !part.contains("--")
        && !part.contains("..")
}

/// What git takes as a branch or tag, and what is safe as a path below `refs`.
fn is_revision(text: &str) -> bool {
    text.chars().all(|c| c.is_ascii_graphic() && !r"~^:?*[\@".contains(c))
        && text.split('/').all(|part| !part.is_empty() && !part.starts_with('.') && !part.ends_with('.'))
        && !text.contains("..")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ModelSource;

    fn read(text: &str) -> Option<(String, Option<String>)> {
        text.parse::<HubModel>().ok().map(|model| (model.repo, model.revision))
    }

    #[test]
    fn reads_names_as_the_hub_does() {
        assert_eq!(read("openai/clip-vit-base-patch32"), Some(("openai/clip-vit-base-patch32".into(), None)));
        assert_eq!(read("a_b/c.d-e@refs/pr/4"), Some(("a_b/c.d-e".into(), Some("refs/pr/4".into()))));
        for text in [
            "demo",
            "42",
            "/models/clip",
            "./clip/b32",
            "../clip",
            "~/clip",
            "a/b/c",
            "a/",
            "/b",
            "a/b@",
            "a/b c",
            "-a/b",
            "a/b-",
            "a/.b",
            "a--b/c",
            "a/b..c",
            "a/b.git",
            "é/b",
            "a/b@../../x",
            "a/b@/x",
            "a/b@x//y",
            "a/b@x@y",
            "a/b@x y",
            "a/b@.x",
        ] {
            assert_eq!(read(text), None, "{text}");
        }
        assert_eq!(read(&format!("a/{}", "b".repeat(97))), None);
        assert!(read(&format!("a/{}", "b".repeat(96))).is_some());
    }

    #[test]
    fn a_source_is_the_demo_a_directory_or_a_name() {
        let source = |text: &str| ModelSource::from(text.to_owned());
        assert_eq!(source("demo"), ModelSource::Demo);
        // Tests run in the checkout, which has this directory: it wins over a model of that name.
        assert_eq!(source("assets/demo-model"), ModelSource::Directory("assets/demo-model".into()));
        for text in ["/models/clip", "./no/such", "../no", "~/no", "clip"] {
            assert_eq!(source(text), ModelSource::Directory(text.into()));
        }
        for text in ["no-such/model", "no-such/model@main"] {
            assert_eq!(source(text), ModelSource::Hub(text.parse().unwrap()));
            assert_eq!(String::from(source(text)), text);
        }
    }

    #[test]
    fn a_snapshot_tells_its_model() {
        let commit = "0123456789abcdef0123456789abcdef01234567";
        let of = |path: String| HubModel::of_snapshot(Path::new(&path)).map(|model| model.to_string());
        assert_eq!(
            of(format!("/cache/models--openai--clip-vit/snapshots/{commit}")),
            Some(format!("openai/clip-vit@{commit}"))
        );
        assert_eq!(of(format!("/cache/datasets--a--b/snapshots/{commit}")), None);
        assert_eq!(of("/models/clip".into()), None);
    }
}
