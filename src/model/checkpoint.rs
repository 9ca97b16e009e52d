//! A model as it is served: one checkpoint, or the image tower of one beside the text tower of another.

use serde::Deserialize;
#[cfg(feature = "torch")]
use tch::{TchError, Tensor};

use super::{Family, ModelError, ModelFiles, clip::Clip, family_of, modules};
#[cfg(feature = "torch")]
use super::{Placement, Towers};
use crate::{
    config::ModelParts,
    domain::{CleanUp, ModelSpec, Pooling, Poolings, TokenizerFile},
};

/// SentencePiece models, by the names that checkpoints give them.
const SENTENCE_PIECE: [&str; 3] = ["spiece.model", "sentencepiece.bpe.model", "tokenizer.model"];

/// The vocabulary of BERT's tokenizer.
const WORD_PIECE: &str = "vocab.txt";

/// The vocabulary of CLIP's tokenizer, with `merges.txt` beside it.
const BYTE_PAIR: &str = "vocab.json";

/// The files of a model whose families are known.
pub enum Checkpoint {
    /// One checkpoint.
    One(Part),
    /// Two whose towers share one space.
    Pair {
        /// Gives the image tower.
        image: Part,
        /// Gives the text tower.
        text: Part,
    },
}

/// One checkpoint and what can read it.
#[derive(Clone)]
pub struct Part {
    files: ModelFiles,
    family: &'static dyn Family,
}

impl Part {
    fn open(files: ModelFiles) -> Result<Self, ModelError> {
        let files = modules::first_step(files)?;
        Ok(Self { family: family_of(&files)?, files })
    }

    fn spec(&self, pooling: Option<Pooling>) -> Result<ModelSpec, ModelError> {
        if let Some(found) = pooling.filter(|pooling| !self.family.poolings().contains(pooling)) {
            let (family, known) = (self.family.name(), self.family.poolings());
            return Err(ModelError::Pooling { family, found, known });
        }
        self.family.spec(&self.files, pooling)
    }
}

impl Checkpoint {
    /// Finds the files and their families.
    ///
    /// # Errors
    /// When a place is empty or holds a checkpoint of no known family.
    pub fn open(parts: &ModelParts) -> Result<Self, ModelError> {
        let part = |source| Part::open(ModelFiles::open(source)?);
        Ok(match parts {
            ModelParts::One(source) => Self::One(part(source)?),
            ModelParts::Pair { image, text } => Self::Pair { image: part(image)?, text: part(text)? },
        })
    }

    /// The facts of the model, from configuration files alone: no weights, no libtorch. `pooling` is the
    /// setting; in a pair it is the image tower's, as text checkpoints say theirs.
    ///
    /// # Errors
    /// When a file is missing or unreadable, describes a model that cannot be served, or the two of a pair
    /// do not fit together.
    pub fn spec(&self, pooling: Option<Pooling>) -> Result<ModelSpec, ModelError> {
        let (image, text) = match self {
            Self::One(part) => return part.spec(pooling),
            Self::Pair { image, text } => (image.spec(pooling)?, text.spec(None)?),
        };
        let does_not_fit =
            |reason| ModelError::Pair { image: image.name.clone(), text: text.name.clone(), reason };
        if image.dimensions != text.dimensions {
            let reason = format!("{} and {} dimensions are no one space", image.dimensions, text.dimensions);
            return Err(does_not_fit(reason));
        }
        match (&image.image, &text.text) {
            (None, _) => Err(does_not_fit("the first has no image tower".into())),
            (_, None) => Err(does_not_fit("the second has no text tower".into())),
            (Some(_), Some(_)) => Ok(ModelSpec {
                name: text.name,
                family: format!("{}+{}", image.family, text.family),
                dimensions: image.dimensions,
                image: image.image,
                text: text.text,
                pooling: Poolings { image: image.pooling.image, text: text.pooling.text },
            }),
        }
    }

    /// The tokenizer of the text tower, if `spec` has one.
    ///
    /// # Errors
    /// When there is none that can be read.
    pub fn tokenizer(&self, spec: &ModelSpec) -> Result<Option<TokenizerFile>, ModelError> {
        let Part { files, family } = match self {
            _ if spec.text.is_none() => return Ok(None),
            Self::One(part) | Self::Pair { text: part, .. } => part,
        };
        if !files.has("tokenizer.json") {
            if files.has(WORD_PIECE) {
                return word_piece(files).map(Some);
            }
            // RoBERTa has files of these names too, to be read by other rules.
            if files.has(BYTE_PAIR) && family.name() == Clip.name() {
                let [vocab, merges] = [BYTE_PAIR, "merges.txt"].map(|file| files.read(file));
                let (vocab, merges) = (vocab?.into_owned(), merges?.into_owned());
                return Ok(Some(TokenizerFile::BytePair { vocab, merges }));
            }
        }
        let sentence_piece = SENTENCE_PIECE.into_iter().find(|file| files.has(file));
        // SigLIP's Python class reads its SentencePiece model whatever lies beside it.
        let clean_up = spec.text.as_ref().map(|text| text.clean_up);
        let is_siglip = matches!(clean_up, Some(CleanUp::Siglip { .. }));
        match sentence_piece.filter(|_| is_siglip || !files.has("tokenizer.json")) {
            Some(file) => Ok(Some(TokenizerFile::SentencePiece(files.read(file)?.into_owned()))),
            None => Ok(Some(TokenizerFile::Json(files.read("tokenizer.json")?.into_owned()))),
        }
    }

    /// A digest over every file that was read so far.
    ///
    /// # Errors
    /// When one cannot be read again.
    pub fn digest(&self) -> Result<blake3::Hash, ModelError> {
        match self {
            Self::One(part) => part.files.digest(),
            Self::Pair { image, text } => {
                let both = [image.files.digest()?, text.files.digest()?].map(|hash| *hash.as_bytes());
                Ok(blake3::hash(&both.concat()))
            }
        }
    }

    /// Builds the forward passes of the towers that `spec` has. The towers' tensors point into mapped files,
    /// so this checkpoint must live as long as they do.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape than the configuration says.
    #[cfg(feature = "torch")]
    pub fn load(&self, spec: &ModelSpec, on: Placement) -> Result<Box<dyn Towers>, ModelError> {
        let (image, text) = match self {
            Self::One(part) => return part.family.load(&part.files, spec, on),
            Self::Pair { image, text } => (image, text),
        };
        let [images, texts] = halves(spec);
        Ok(Box::new(Pair {
            image: image.family.load(&image.files, &images, on)?,
            text: text.family.load(&text.files, &texts, on)?,
        }))
    }

    /// Whether [`Self::load`] would find all that it needs, without the memory that it takes. A TorchScript module is
    /// not looked into.
    ///
    /// # Errors
    /// As there, and when a tensor holds what is no finite number.
    #[cfg(feature = "torch")]
    pub fn check(&self, spec: &ModelSpec) -> Result<(), ModelError> {
        let (image, text) = match self {
            Self::One(part) => return part.family.check(&part.files, spec),
            Self::Pair { image, text } => (image, text),
        };
        let [images, texts] = halves(spec);
        image.family.check(&image.files, &images)?;
        text.family.check(&text.files, &texts)
    }
}

/// The facts of a pair as each of the two is to know them.
#[cfg(feature = "torch")]
fn halves(spec: &ModelSpec) -> [ModelSpec; 2] {
    [ModelSpec { text: None, ..spec.clone() }, ModelSpec { image: None, ..spec.clone() }]
}

/// BERT's tokenizer as old checkpoints have it, with the defaults of transformers' `BertTokenizer`.
fn word_piece(files: &ModelFiles) -> Result<TokenizerFile, ModelError> {
    #[derive(Default, Deserialize)]
    struct Config {
        do_lower_case: Option<bool>,
        strip_accents: Option<bool>,
        tokenize_chinese_chars: Option<bool>,
    }
    let config: Config = files.json_if_there("tokenizer_config.json")?.unwrap_or_default();
    Ok(TokenizerFile::WordPiece {
        vocab: files.read(WORD_PIECE)?.into_owned(),
        lowercase: config.do_lower_case.unwrap_or(true),
        strip_accents: config.strip_accents,
        split_chinese: config.tokenize_chinese_chars.unwrap_or(true),
    })
}

#[cfg(feature = "torch")]
struct Pair {
    image: Box<dyn Towers>,
    text: Box<dyn Towers>,
}

#[cfg(feature = "torch")]
impl Towers for Pair {
    fn encode_images(&self, pixel_values: &Tensor) -> Result<Tensor, TchError> {
        self.image.encode_images(pixel_values)
    }

    fn encode_texts(&self, texts: &[&[u32]]) -> Result<Tensor, TchError> {
        self.text.encode_texts(texts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{config::ModelSource, domain::TextSpec};

    #[test]
    fn siglip_alone_prefers_its_sentence_piece_model() {
        let dir = tempfile::tempdir().unwrap();
        for (file, text) in [
            ("config.json", r#"{"model_type": "siglip_text_model"}"#),
            ("spiece.model", "pieces"),
            ("tokenizer.json", "json"),
        ] {
            std::fs::write(dir.path().join(file), text).unwrap();
        }
        let source = ModelSource::Directory(dir.path().into());
        let checkpoint = Checkpoint::One(Part::open(ModelFiles::open(&source).unwrap()).unwrap());
        let mut spec = checkpoint.spec(None).unwrap();
        let (pieces, json) =
            (TokenizerFile::SentencePiece(b"pieces".into()), TokenizerFile::Json(b"json".into()));
        for (clean_up, expected) in [
            (CleanUp::Siglip { lowercase: true }, &pieces),
            (CleanUp::Lowercase, &json),
            (CleanUp::None, &json),
        ] {
            spec.text = Some(TextSpec { clean_up, ..TextSpec::new(64) });
            assert_eq!(checkpoint.tokenizer(&spec).unwrap().as_ref(), Some(expected), "{clean_up:?}");
        }
    }

    #[cfg(feature = "torch")]
    #[test]
    fn what_can_be_loaded_passes_the_check() {
        let fixtures = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/models");
        let here = |place: &str| ModelSource::Directory(fixtures.join(place));
        let one = [
            "blip2/generation",
            "blip2/retrieval",
            "blip2/sparse",
            "clip/laion",
            "clip/sparse",
            "dinov2/classifier",
            "dinov2/giant",
            "dinov2/registers",
            "sentence-transformers/roberta-pad",
            "sentence-transformers/xlm-roberta",
            "siglip/siglip2",
            "siglip/sparse",
            "siglip/vision",
            "siglip/wide",
            "torchscript/texts",
        ];
        let pair = ModelParts::Pair { image: here("clip/laion"), text: here("clip/laion") };
        for parts in one.iter().map(|place| ModelParts::One(here(place))).chain([pair]) {
            let checkpoint = Checkpoint::open(&parts).unwrap();
            let spec = checkpoint.spec(None).unwrap();
            checkpoint.check(&spec).unwrap_or_else(|error| panic!("{parts:?}: {error}"));
        }
    }

    #[test]
    fn clip_alone_has_byte_pairs() {
        let (vocab, merges) = (("vocab.json", "ids"), ("merges.txt", "pairs"));
        let tokenizer = |model_type: &str, contents: &[(&str, &str)]| {
            let dir = tempfile::tempdir().unwrap();
            let config = format!(r#"{{"model_type": "{model_type}"}}"#);
            for (file, text) in [&[("config.json", config.as_str())], contents].concat() {
                std::fs::write(dir.path().join(file), text).unwrap();
            }
            let source = ModelSource::Directory(dir.path().into());
            let checkpoint = Checkpoint::One(Part::open(ModelFiles::open(&source).unwrap()).unwrap());
            let spec = checkpoint.spec(None).map_err(|error| error.to_string())?;
            checkpoint.tokenizer(&spec).map_err(|error| error.to_string())
        };
        let pairs = TokenizerFile::BytePair { vocab: b"ids".into(), merges: b"pairs".into() };
        assert_eq!(tokenizer("clip_text_model", &[vocab, merges]), Ok(Some(pairs)));
        let json = TokenizerFile::Json(b"json".into());
        assert_eq!(
            tokenizer("clip_text_model", &[vocab, merges, ("tokenizer.json", "json")]),
            Ok(Some(json))
        );
        for (model_type, contents, missing) in
            [("clip_text_model", &[vocab][..], "merges.txt"), ("roberta", &[vocab, merges], "tokenizer.json")]
        {
            let message = tokenizer(model_type, contents).unwrap_err();
            assert!(message.contains(missing), "{message}");
        }
    }
}
