//! Which files of a model are needed: those that a family reads, in one format, and no others.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;
use serde_json::Value;

use super::HubError;

/// Lists a sentence-transformers model's parts, each in a directory of its own.
const MODULES: &str = "modules.json";
/// Describes a TorchScript model and names its file.
pub(super) const SIDELENS: &str = "sidelens.toml";
/// Describes every other model.
const CONFIG: &str = "config.json";
/// Small files, taken from every directory of the model where they are.
const SMALL: [&str; 17] = [
    CONFIG,
    "preprocessor_config.json",
    "processor_config.json",
    TOKENIZER,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "spiece.model",
    "sentencepiece.bpe.model",
    "vocab.txt",
    MODULES,
    "sentence_bert_config.json",
    "sentence_roberta_config.json",
    "sentence_distilbert_config.json",
    "sentence_camembert_config.json",
    "sentence_xlm-roberta_config.json",
    "config_sentence_transformers.json",
    SIDELENS,
];
/// A tokenizer in one file, with all its settings.
const TOKENIZER: &str = "tokenizer.json";
/// CLIP's tokenizer as older checkpoints have it. Most have a [`TOKENIZER`] too, which says the same.
const BYTE_PAIR: [&str; 2] = ["vocab.json", "merges.txt"];
/// Weights by preference; an index names its shards. Other files of weights hold the same in other formats.
const WEIGHTS: [&str; 4] = [
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
];

/// The files that a model needs.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Plan {
    /// The files, weights among them. May name a shard that is not listed.
    pub files: BTreeSet<String>,
    /// Files that must be read before the plan is whole.
    pub unread: Vec<String>,
    /// What a model needs and this one has not.
    pub missing: Vec<String>,
}

#[derive(Deserialize)]
struct Module {
    path: String,
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl Plan {
    /// Plans with the names that are listed, and with the contents of [`Self::unread`] so far, by name.
    ///
    /// # Errors
    /// [`HubError::Malformed`] when a content is not what its name says.
    pub(super) fn new(
        listed: &BTreeSet<String>,
        contents: &BTreeMap<String, Vec<u8>>,
    ) -> Result<Self, HubError> {
        let mut plan = Self::default();
        plan.take_small("", listed);
        if listed.contains(SIDELENS) {
            match contents.get(SIDELENS) {
                None => plan.unread.push(SIDELENS.into()),
                Some(content) => plan.files.extend(torchscripts(content)?),
            }
        } else if listed.contains(MODULES) {
            match contents.get(MODULES) {
                None => plan.unread.push(MODULES.into()),
                Some(content) => {
                    let modules: Vec<Module> = json(MODULES, content)?;
                    for module in modules {
                        plan.take_small(&module.path, listed);
                        plan.take_weights(&module.path, listed, contents)?;
                    }
                }
            }
        } else {
            plan.take_weights("", listed, contents)?;
        }
        if !plan.unread.is_empty() {
            return Ok(plan);
        }
        if let Some(unsafe_name) = plan.files.iter().find(|name| !is_inside(name)) {
            let reason = format!("it leads to `{unsafe_name}`, outside the model");
            return Err(HubError::Malformed { file: "a file of the model".into(), reason });
        }
        plan.missing = plan.files.iter().filter(|file| !listed.contains(*file)).cloned().collect();
        if !plan.files.iter().any(|file| is_weights(file)) {
            plan.missing.push("weights (model.safetensors or pytorch_model.bin, whole or in shards)".into());
        }
        Ok(plan)
    }

    fn take_small(&mut self, dir: &str, listed: &BTreeSet<String>) {
        let older = if listed.contains(&join(dir, TOKENIZER)) { &[] } else { &BYTE_PAIR[..] };
        let names = SMALL.iter().chain(older);
        self.files.extend(names.map(|name| join(dir, name)).filter(|path| listed.contains(path)));
    }

    fn take_weights(
        &mut self,
        dir: &str,
        listed: &BTreeSet<String>,
        contents: &BTreeMap<String, Vec<u8>>,
    ) -> Result<(), HubError> {
        let Some(weights) = WEIGHTS.iter().map(|name| join(dir, name)).find(|path| listed.contains(path))
        else {
            return Ok(());
        };
        // Weights are of no use without the file that says what they are.
        self.files.insert(join(dir, CONFIG));
        if weights.ends_with(".json") {
            match contents.get(&weights) {
                None => self.unread.push(weights.clone()),
                Some(content) => {
                    let index: Index = json(&weights, content)?;
                    self.files.extend(index.weight_map.values().map(|shard| join(dir, shard)));
                }
            }
        }
        self.files.insert(weights);
        Ok(())
    }

    /// The files in the order to link them: what makes a directory a model comes last, so that one that was
    /// not finished does not pass for one.
    pub(super) fn in_order(&self) -> impl Iterator<Item = &String> {
        let comes_last = |file: &&String| [CONFIG, MODULES, SIDELENS].iter().any(|name| file.ends_with(name));
        let (last, first): (Vec<_>, Vec<_>) = self.files.iter().partition(comes_last);
        first.into_iter().chain(last.into_iter().rev())
    }
}

/// Whether a file holds weights, by its name.
pub(super) fn is_weights(file: &str) -> bool {
    [".safetensors", ".bin", ".pt"].iter().any(|ending| file.ends_with(ending))
}

/// Every name that ends in `.pt`, wherever it stands in the file.
fn torchscripts(content: &[u8]) -> Result<Vec<String>, HubError> {
    let malformed = |reason| HubError::Malformed { file: SIDELENS.into(), reason };
    let text = std::str::from_utf8(content).map_err(|error| malformed(error.to_string()))?;
    let value: Value = toml::from_str(text).map_err(|error| malformed(error.message().to_owned()))?;
    let mut names = Vec::new();
    collect(&value, &mut names);
    Ok(names)
}

fn collect(value: &Value, names: &mut Vec<String>) {
    match value {
        Value::String(text) if text.ends_with(".pt") => names.push(text.clone()),
        Value::Array(items) => items.iter().for_each(|item| collect(item, names)),
        Value::Object(map) => map.values().for_each(|item| collect(item, names)),
        _ => {}
    }
}

fn json<T: for<'a> Deserialize<'a>>(file: &str, content: &[u8]) -> Result<T, HubError> {
    serde_json::from_slice(content)
        .map_err(|error| HubError::Malformed { file: file.into(), reason: error.to_string() })
}

fn join(dir: &str, name: &str) -> String {
    match dir.trim_matches('/') {
        "" => name.into(),
        dir => format!("{dir}/{name}"),
    }
}

/// Whether a name from elsewhere stays inside the directory that it is put in.
fn is_inside(name: &str) -> bool {
    name.split('/').all(|part| !part.is_empty() && part != "." && part != ".." && !part.contains('\\'))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The plan of a listing and of contents given as `name: content`.
    fn plan(listed: &[&str], contents: &[(&str, &str)]) -> Plan {
        let listed = listed.iter().map(ToString::to_string).collect();
        let contents =
            contents.iter().map(|(name, content)| (name.to_string(), content.as_bytes().to_vec())).collect();
        Plan::new(&listed, &contents).unwrap()
    }

    fn files(plan: &Plan) -> Vec<&str> {
        plan.files.iter().map(String::as_str).collect()
    }

    #[test]
    fn takes_one_format_and_no_other() {
        let listed = [
            ".gitattributes",
            "README.md",
            "config.json",
            "flax_model.msgpack",
            "model.fp16.safetensors",
            "model.safetensors",
            "model.safetensors.index.json",
            "onnx/model.onnx",
            "onnx/config.json",
            "pytorch_model.bin",
            "tf_model.h5",
            "tokenizer.json",
            "training_args.bin",
        ];
        let whole = plan(&listed, &[]);
        assert_eq!(files(&whole), ["config.json", "model.safetensors", "tokenizer.json"]);
        assert_eq!((whole.unread.len(), whole.missing.len()), (0, 0));
        let older = plan(&["config.json", "pytorch_model.bin", "rust_model.ot"], &[]);
        assert_eq!(files(&older), ["config.json", "pytorch_model.bin"]);
    }

    #[test]
    fn shards_come_from_the_index() {
        let listed = ["config.json", "a-1.safetensors", "model.safetensors.index.json", "pytorch_model.bin"];
        let index = (
            "model.safetensors.index.json",
            r#"{"weight_map": {"x": "a-1.safetensors", "y": "a-2.safetensors"}}"#,
        );
        assert_eq!(plan(&listed, &[]).unread, [index.0]);
        let whole = plan(&listed, &[index]);
        assert_eq!(
            files(&whole),
            ["a-1.safetensors", "a-2.safetensors", "config.json", "model.safetensors.index.json"]
        );
        assert_eq!(whole.missing, ["a-2.safetensors"]);
    }

    #[test]
    fn modules_are_followed() {
        let listed = [
            "modules.json",
            "model.safetensors",
            "0_CLIPModel/config.json",
            "0_CLIPModel/pytorch_model.bin",
            "1_Pooling/config.json",
            "2_Dense/config.json",
            "2_Dense/model.safetensors",
            "2_Dense/pytorch_model.bin",
            "3_Other/config.json",
        ];
        let modules = r#"[{"path": "0_CLIPModel"}, {"path": "1_Pooling"}, {"path": "2_Dense"}, {"path": "4_Normalize"}]"#;
        let whole = plan(&listed, &[("modules.json", modules)]);
        assert_eq!(
            files(&whole),
            [
                "0_CLIPModel/config.json",
                "0_CLIPModel/pytorch_model.bin",
                "1_Pooling/config.json",
                "2_Dense/config.json",
                "2_Dense/model.safetensors",
                "modules.json"
            ]
        );
        assert_eq!(whole.in_order().last().map(String::as_str), Some("0_CLIPModel/config.json"));
        assert_eq!(whole.in_order().next().map(String::as_str), Some("0_CLIPModel/pytorch_model.bin"));
    }

    #[test]
    fn both_files_about_pictures_are_taken() {
        let listed =
            ["config.json", "model.safetensors", "preprocessor_config.json", "processor_config.json"];
        assert_eq!(files(&plan(&listed, &[])), listed);
    }

    #[test]
    fn byte_pairs_stand_in_for_a_tokenizer() {
        let listed =
            ["config.json", "merges.txt", "model.safetensors", "tokenizer_config.json", "vocab.json"];
        assert_eq!(files(&plan(&listed, &[])), listed);
        // What tokenizer.json says in one file is not fetched again.
        let newer = plan(&[&listed[..], &["tokenizer.json"]].concat(), &[]);
        assert!(newer.files.contains("tokenizer.json"));
        assert!(!newer.files.contains("vocab.json") && !newer.files.contains("merges.txt"));
        // Directory by directory.
        let listed = [
            "0_CLIPModel/config.json",
            "0_CLIPModel/merges.txt",
            "0_CLIPModel/pytorch_model.bin",
            "0_CLIPModel/vocab.json",
            "modules.json",
            "tokenizer.json",
        ];
        let modules = ("modules.json", r#"[{"path": "0_CLIPModel"}]"#);
        assert_eq!(files(&plan(&listed, &[modules])), listed);
    }

    #[test]
    fn torchscript_is_named_by_its_description() {
        let listed = ["sidelens.toml", "resnet.pt", "other.pt", "model.safetensors"];
        let whole = plan(&listed, &[("sidelens.toml", "[model]\nfile = \"resnet.pt\"\nmean = [0.5]")]);
        assert_eq!(files(&whole), ["resnet.pt", "sidelens.toml"]);
    }

    #[test]
    fn says_what_is_missing() {
        assert_eq!(plan(&["model.safetensors"], &[]).missing, ["config.json"]);
        let no_weights = plan(&["config.json", "model.gguf"], &[]).missing;
        assert!(no_weights.len() == 1 && no_weights[0].starts_with("weights"), "{no_weights:?}");
    }

    #[test]
    fn refuses_names_that_lead_outside() {
        let listed = ["config.json", "model.safetensors.index.json"].map(String::from).into();
        for name in ["../../x.safetensors", "/etc/x.safetensors", "a//b.bin"] {
            let index = format!(r#"{{"weight_map": {{"x": "{name}"}}}}"#);
            let contents = [("model.safetensors.index.json".to_string(), index.into_bytes())].into();
            let message = Plan::new(&listed, &contents).unwrap_err().to_string();
            assert!(message.contains(name), "{message}");
        }
    }
}
