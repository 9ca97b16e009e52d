//! TorchScript: any module exported from PyTorch, beside a `sidelens.toml` that says how to feed it.
//!
//! A module is a program: libtorch's interpreter runs what the file says, with the rights of this process. A
//! `.pt` must be trusted as one trusts a program, and is loaded only where its `sidelens.toml` names it: no
//! other checkpoint's files are ever run.
//!
//! `examples/torchscript` has a commented `sidelens.toml` and a script that exports a module.

#[cfg(feature = "torch")]
mod tower;

use serde::Deserialize;

use super::{Family, ModelError, ModelFiles, config::ConfigJson, preprocessor::one_by_255};
use crate::domain::{Filter, ImageSpec, ModelSpec, Pooling, Poolings, Prompts, Resize, TextSpec};

/// The file beside the module.
const FILE: &str = "sidelens.toml";

/// The family.
pub struct TorchScript;

impl Family for TorchScript {
    fn name(&self) -> &'static str {
        "torchscript"
    }

    fn matches(&self, files: &ModelFiles, _: &ConfigJson) -> bool {
        files.has(FILE)
    }

    /// What `sidelens.toml` says stands unless the setting does.
    fn poolings(&self) -> &'static [Pooling] {
        &[Pooling::None, Pooling::Cls, Pooling::Mean]
    }

    fn spec(&self, files: &ModelFiles, pooling: Option<Pooling>) -> Result<ModelSpec, ModelError> {
        let config = Config::read(files)?;
        let pooling = Some(pooling.unwrap_or(config.pooling));
        Ok(ModelSpec {
            name: files.name(),
            family: self.name().into(),
            dimensions: config.dimensions,
            pooling: Poolings {
                image: config.image.as_ref().and(pooling),
                text: config.text.as_ref().and(pooling),
            },
            image: config.image.map(|image| image.spec()),
            text: config.text.map(|text| text.spec()),
        })
    }

    #[cfg(feature = "torch")]
    fn load(
        &self,
        files: &ModelFiles,
        spec: &ModelSpec,
        on: super::Placement,
    ) -> Result<Box<dyn super::Towers>, ModelError> {
        let config = Config::read(files)?;
        let file = config.file.clone();
        // libtorch reads the file by itself; mapped, it counts for the fingerprint.
        files.map(&file)?;
        tower::Module::load(&files.path(&file)?, config, spec, on)
            .map(|module| Box::new(module) as _)
            .map_err(|reason| ModelError::Module { dir: files.place(), file, reason })
    }

    /// Its file says nothing of its tensors before it is loaded, which takes the memory that it takes.
    #[cfg(feature = "torch")]
    fn check(&self, _: &ModelFiles, _: &ModelSpec) -> Result<(), ModelError> {
        Ok(())
    }
}

/// `sidelens.toml`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    /// The module.
    file: String,
    /// Components of a vector.
    dimensions: usize,
    /// Which of several outputs counts.
    #[serde(default)]
    output: Output,
    /// How that output becomes one vector.
    #[serde(default = "as_it_is")]
    pooling: Pooling,
    /// For a module that takes pictures.
    image: Option<ImageConfig>,
    /// For a module that takes texts.
    text: Option<TextConfig>,
}

/// One output of several.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged, expecting = "`output` is an index (0, 1, ...) into a tuple, or a key of a dict")]
enum Output {
    Index(usize),
    Key(String),
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct ImageConfig {
    /// Rows and columns of the module's input.
    size: [u32; 2],
    /// What the short side becomes before the centre is cropped to `size`; without it, pictures are resized to
    /// `size` whatever their shape.
    shortest_edge: Option<u32>,
    resample: Filter,
    #[serde(default = "one_by_255")]
    rescale_factor: f64,
    mean: [f32; 3],
    std: [f32; 3],
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct TextConfig {
    /// Most tokens of a text.
    max_length: usize,
    /// Fills short texts up.
    #[serde(default)]
    pad_id: u32,
    #[serde(default)]
    pad_to: PadTo,
    /// What the module is called with, in order.
    inputs: Vec<Input>,
    #[serde(default)]
    query_prompt: String,
    #[serde(default)]
    document_prompt: String,
}

/// How far texts are padded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum PadTo {
    /// To the longest of the batch.
    #[default]
    Longest,
    /// To `max_length`, for modules that were traced at that length.
    MaxLength,
}

/// An argument of a text module: int64 `[batch, tokens]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Input {
    InputIds,
    /// 1 for tokens, 0 for padding.
    AttentionMask,
}

impl Default for Output {
    fn default() -> Self {
        Self::Index(0)
    }
}

fn as_it_is() -> Pooling {
    Pooling::None
}

impl Config {
    fn read(files: &ModelFiles) -> Result<Self, ModelError> {
        let text = files.read(FILE)?;
        let config: Self = toml::from_str(&String::from_utf8_lossy(&text)).map_err(|source| {
            ModelError::Toml { dir: files.place(), file: FILE, source: Box::new(source) }
        })?;
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), ModelError> {
        let wrong = |key, found: String, expected| {
            Err(ModelError::Unsupported { file: FILE.into(), key, found, expected })
        };
        if !TorchScript.poolings().contains(&self.pooling) {
            return wrong("pooling", self.pooling.to_string(), "it is `none`, `cls` or `mean`");
        }
        if self.dimensions == 0 {
            return wrong("dimensions", "0".into(), "vectors have at least one component");
        }
        match (&self.image, &self.text) {
            (Some(image), None) if image.size.contains(&0) || image.shortest_edge == Some(0) => {
                wrong("size", format!("{:?}", image.size), "pictures have at least one pixel")
            }
            (Some(image), None) if image.std.contains(&0.0) => {
                wrong("std", format!("{:?}", image.std), "it is divided by")
            }
            (None, Some(text)) if text.max_length == 0 => {
                wrong("max_length", "0".into(), "a text has at least one token")
            }
            (None, Some(text)) if text.inputs.is_empty() => {
                wrong("inputs", "[]".into(), "a text module takes at least `input_ids`")
            }
            (Some(_), None) | (None, Some(_)) => Ok(()),
            (None, None) => wrong("[image]", "absent".into(), "give one of [image] and [text]"),
            (Some(_), Some(_)) => {
                wrong("[text]", "beside [image]".into(), "a module takes one of them; make two directories")
            }
        }
    }
}

impl ImageConfig {
    fn spec(&self) -> ImageSpec {
        let [height, width] = self.size;
        let (resize, crop) = match self.shortest_edge {
            Some(edge) => (Resize::ShortestEdge(edge), Some(self.size)),
            None => (Resize::Exact { height, width }, None),
        };
        let Self { resample: filter, rescale_factor, mean, std, .. } = *self;
        ImageSpec { resize, crop, filter, rescale_factor, mean, std }
    }
}

impl TextConfig {
    fn spec(self) -> TextSpec {
        let prompts =
            Prompts { query: self.query_prompt, document: self.document_prompt, default: String::new() };
        TextSpec { prompts, ..TextSpec::new(self.max_length) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ModelSource;

    const EXAMPLE: &str = include_str!("../../../examples/torchscript/sidelens.toml");
    const TEXT: &str = "file = 'model.pt'\ndimensions = 8\n[text]\nmax_length = 16\ninputs = ['input_ids', 'attention_mask']\n";

    fn spec(text: &str) -> Result<ModelSpec, ModelError> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(FILE), text).unwrap();
        let files = ModelFiles::open(&ModelSource::Directory(dir.path().into())).unwrap();
        TorchScript.spec(&files, None)
    }

    #[test]
    fn the_example_is_as_its_comments_say() {
        let spec = spec(EXAMPLE).unwrap();
        let image = spec.image.unwrap();
        assert_eq!((image.resize, image.crop), (Resize::ShortestEdge(256), Some([224, 224])));
        assert_eq!((spec.dimensions, spec.pooling.image), (512, Some(Pooling::Mean)));
        assert!(spec.text.is_none());
        // The table in its comments is a valid one.
        let (before, text) = EXAMPLE.split_once("# [text]").unwrap();
        let head = before.split_once("[image]").unwrap().0;
        let text = text.lines().map(|line| line.strip_prefix("# ").unwrap_or(line));
        let text = format!("{head}[text]\n{}", text.collect::<Vec<_>>().join("\n"));
        assert_eq!(self::spec(&text).unwrap().text.unwrap().max_length, 128);
    }

    #[test]
    fn without_a_shortest_edge_pictures_are_resized_to_the_size() {
        let text = EXAMPLE.replace("shortest_edge = 256", "");
        let image = spec(&text).unwrap().image.unwrap();
        assert_eq!((image.resize, image.crop), (Resize::Exact { height: 224, width: 224 }, None));
    }

    #[test]
    fn texts_have_prompts() {
        let spec = spec(&format!("{TEXT}query_prompt = 'query: '\n")).unwrap();
        assert_eq!(spec.text.unwrap().prompts.query, "query: ");
        assert_eq!((spec.image, spec.pooling.text), (None, Some(Pooling::None)));
    }

    #[test]
    fn mistakes_are_named() {
        for (text, word) in [
            (EXAMPLE.replace("= \"bilinear\"", "= \"lanczos\""), "expected `bilinear` or `bicubic`"),
            (EXAMPLE.replace("= \"bilinear\"", "= \"nearest\""), "expected `bilinear` or `bicubic`"),
            (EXAMPLE.replace("output = 0", "output = -1"), "an index (0, 1, ...)"),
            (EXAMPLE.replace("pooling = \"mean\"", "pooling = \"itc_mean\""), "`none`, `cls` or `mean`"),
            (EXAMPLE.replace("mean = [", "average = ["), "`average`"),
            (EXAMPLE.replace("std = [0.229", "std = [0.0"), "divided by"),
            (format!("{EXAMPLE}\n[text]\nmax_length = 1\ninputs = ['input_ids']"), "one of them"),
            ("file = 'model.pt'\ndimensions = 8".into(), "[image]"),
            ("dimensions = 8".into(), "`file`"),
            (TEXT.replace("16", "0"), "max_length"),
            (TEXT.replace("'input_ids', 'attention_mask'", ""), "inputs"),
        ] {
            let message = match spec(&text) {
                Err(error) => error.to_string(),
                Ok(_) => panic!("passes, but should say {word}"),
            };
            assert!(message.contains(word) && message.contains(FILE), "{message}");
        }
    }
}
