//! `config.json`: sparse in published checkpoints, so each family brings the defaults of transformers.

use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Map, Value};

use super::{ModelError, ModelFiles};

/// The file.
pub const CONFIG: &str = "config.json";

/// `config.json` of one checkpoint.
pub struct ConfigJson {
    value: Value,
    place: String,
}

impl ConfigJson {
    /// Reads the file.
    ///
    /// # Errors
    /// When it is missing or no JSON.
    pub fn read(files: &ModelFiles) -> Result<Self, ModelError> {
        Ok(Self { value: files.json(CONFIG)?, place: files.place() })
    }

    /// As [`Self::read`], empty where there is no such file.
    ///
    /// # Errors
    /// When it is no JSON.
    pub fn read_if_there(files: &ModelFiles) -> Result<Self, ModelError> {
        let value = files.json_if_there(CONFIG)?.unwrap_or_default();
        Ok(Self { value, place: files.place() })
    }

    /// The file with the top-level keys of a family under the names that others use: `(others', its)`.
    pub fn renamed(mut self, names: &[(&str, &str)]) -> Self {
        if let Some(config) = self.value.as_object_mut() {
            for (usual, here) in names {
                if let Some(value) = config.remove(*here) {
                    config.insert((*usual).into(), value);
                }
            }
        }
        self
    }

    /// `model_type`, which names the family in most checkpoints.
    pub fn model_type(&self) -> &str {
        self.value["model_type"].as_str().unwrap_or("none")
    }

    /// The value under `key`; null where there is none.
    pub fn get(&self, key: &str) -> &Value {
        &self.value[key]
    }

    /// The classes that `architectures` names.
    pub fn architectures(&self) -> impl Iterator<Item = &str> {
        self.value["architectures"].as_array().into_iter().flatten().filter_map(Value::as_str)
    }

    /// Whether `architectures` names this class.
    pub fn is_architecture(&self, class: &str) -> bool {
        self.architectures().any(|name| name == class)
    }

    /// The top level over `defaults`.
    ///
    /// # Errors
    /// When a value has another type than its default.
    pub fn top<T: DeserializeOwned>(&self, defaults: Value) -> Result<T, ModelError> {
        self.over(defaults, &self.value)
    }

    /// The sub-configuration under `key` over `defaults`.
    ///
    /// # Errors
    /// When a value has another type than its default.
    pub fn part<T: DeserializeOwned>(&self, key: &str, defaults: Value) -> Result<T, ModelError> {
        self.over(defaults, &self.value[key])
    }

    /// Old files of CLIP have its sub-configurations under `{key}_dict` too. There it counts alone: in
    /// transformers even its defaults win over what stands under `key`.
    pub fn with_old_parts(mut self) -> Self {
        if let Some(config) = self.value.as_object_mut() {
            for key in ["text_config", "vision_config"] {
                if let Some(old) = config.remove(&format!("{key}_dict")).filter(Value::is_object) {
                    config.insert(key.into(), old);
                }
            }
        }
        self
    }

    /// The text and the image tower of `family`, each over its defaults. A tower that was saved alone, as
    /// `{family}_text_model` or `{family}_vision_model`, has its configuration at the top.
    ///
    /// # Errors
    /// When a value has another type than its default.
    pub fn towers<T: DeserializeOwned, V: DeserializeOwned>(
        &self,
        family: &str,
        text: Value,
        vision: Value,
    ) -> Result<(Option<T>, Option<V>), ModelError> {
        Ok(match self.model_type().strip_prefix(family) {
            Some("_text_model") => (Some(self.top(text)?), None),
            Some("_vision_model") => (None, Some(self.top(vision)?)),
            _ => (Some(self.part("text_config", text)?), Some(self.part("vision_config", vision)?)),
        })
    }

    fn over<T: DeserializeOwned>(&self, defaults: Value, layer: &Value) -> Result<T, ModelError> {
        let mut merged: Map<String, Value> = match defaults {
            Value::Object(defaults) => defaults,
            _ => Map::new(),
        };
        if let Some(layer) = layer.as_object() {
            // A null stands for the default.
            merged.extend(layer.iter().filter(|(_, v)| !v.is_null()).map(|(k, v)| (k.clone(), v.clone())));
        }
        serde_json::from_value(Value::Object(merged)).map_err(|source| ModelError::Json {
            dir: self.place.clone(),
            file: CONFIG.into(),
            source,
        })
    }
}

/// The sizes of a stack of transformer blocks.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct TransformerConfig {
    /// Width of the residual stream.
    pub hidden_size: i64,
    /// Width inside the MLP.
    pub intermediate_size: i64,
    /// Blocks.
    pub num_hidden_layers: usize,
    /// Attention heads; `hidden_size` is a multiple of it.
    pub num_attention_heads: i64,
    /// Between the halves of the MLP.
    pub hidden_act: Activation,
    /// Layer norm epsilon.
    pub layer_norm_eps: f64,
}

/// An image tower over square patches.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct VisionConfig {
    /// Its blocks.
    #[serde(flatten)]
    pub blocks: TransformerConfig,
    /// Rows and columns of the input.
    pub image_size: u32,
    /// Rows and columns of a patch.
    pub patch_size: u32,
    /// Colour channels.
    #[serde(default = "three")]
    pub num_channels: u32,
}

fn three() -> u32 {
    3
}

/// The function between the two halves of an MLP, by its transformers name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// `x * sigmoid(1.702 x)`: OpenAI's CLIP.
    QuickGelu,
    /// The exact one, by erf.
    #[serde(alias = "gelu_python")]
    Gelu,
    /// The one by tanh: SigLIP.
    #[serde(rename = "gelu_pytorch_tanh", alias = "gelu_new", alias = "gelu_fast")]
    GeluTanh,
    /// `max(x, 0)`.
    Relu,
    /// `x * sigmoid(x)`.
    #[serde(alias = "swish")]
    Silu,
    /// The hyperbolic tangent: poolers.
    Tanh,
    /// What comes in.
    #[serde(rename = "linear")]
    Identity,
    /// `silu(a) * b` for the two halves `a` and `b` of the input: DINOv2 giant. No checkpoint names it.
    #[serde(skip)]
    SwiGlu,
}

impl TransformerConfig {
    /// Refuses what would fail, or divide by zero, only later.
    ///
    /// # Errors
    /// [`ModelError::Unsupported`].
    pub fn check(&self) -> Result<(), ModelError> {
        let Self { hidden_size: hidden, num_attention_heads: heads, .. } = *self;
        if heads <= 0 || hidden <= 0 || hidden % heads != 0 {
            let found = format!("{heads} (hidden_size {hidden})");
            return Err(unsupported("num_attention_heads", found, "it must divide hidden_size"));
        }
        Ok(())
    }
}

impl VisionConfig {
    /// Refuses what would fail, or divide by zero, only later.
    ///
    /// # Errors
    /// [`ModelError::Unsupported`].
    pub fn check(&self) -> Result<(), ModelError> {
        self.blocks.check()?;
        if self.num_channels != 3 {
            let found = self.num_channels.to_string();
            return Err(unsupported("num_channels", found, "pictures have 3 channels"));
        }
        if self.patch_size == 0 || self.image_size < self.patch_size {
            let found = self.patch_size.to_string();
            return Err(unsupported("patch_size", found, "it must lie between 1 and image_size"));
        }
        Ok(())
    }

    /// Patches of a picture; a remainder at the right and bottom edge is no patch.
    #[cfg(any(test, feature = "torch"))]
    pub fn n_patches(&self) -> i64 {
        i64::from(self.image_size / self.patch_size).pow(2)
    }
}

/// `key` of `config.json` is `found`, which is of no use here; `expected` says what would be.
pub fn unsupported(key: &'static str, found: String, expected: &'static str) -> ModelError {
    ModelError::Unsupported { file: CONFIG.into(), key, found, expected }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(json: &str) -> ConfigJson {
        ConfigJson { value: serde_json::from_str(json).unwrap(), place: "here".into() }
    }

    #[derive(Debug, PartialEq, Deserialize)]
    struct Sizes {
        a: u32,
        b: u32,
    }

    #[test]
    fn sparse_parts_take_the_defaults() {
        let config = read(r#"{"t": {"a": 1, "b": null}, "t_dict": {"a": 2}}"#);
        let defaults = || json!({"a": 7, "b": 8});
        assert_eq!(config.part::<Sizes>("t", defaults()).unwrap(), Sizes { a: 1, b: 8 });
        assert_eq!(config.part::<Sizes>("u", defaults()).unwrap(), Sizes { a: 7, b: 8 });
    }

    #[test]
    fn old_parts_count_alone() {
        let config = read(
            r#"{"text_config": {"a": 1, "b": 1}, "text_config_dict": {"a": 2},
                "vision_config": {"a": 3}, "vision_config_dict": null}"#,
        );
        let config = config.with_old_parts();
        let part = |key| config.part::<Sizes>(key, json!({"a": 7, "b": 8})).unwrap();
        assert_eq!(part("text_config"), Sizes { a: 2, b: 8 });
        assert_eq!(part("vision_config"), Sizes { a: 3, b: 8 });
    }

    #[test]
    fn wrong_types_name_the_file() {
        let message = read(r#"{"a": "wide", "b": 1}"#).top::<Sizes>(json!({})).unwrap_err().to_string();
        assert!(
            message.contains("wide") && message.contains(CONFIG) && message.contains("here"),
            "{message}"
        );
    }
}
