//! A model as it is served: one checkpoint, or the image tower of one beside the text tower of another.

#[cfg(feature = "torch")]
use tch::{TchError, Tensor};

use super::{Family, ModelError, ModelFiles, family_of, modules, tokenizer};
#[cfg(feature = "torch")]
use super::{Placement, Towers};
use crate::{
    config::ModelParts,
    domain::{ModelSpec, Pooling, Poolings, TokenizerFile},
};

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
        let Some(text) = &spec.text else { return Ok(None) };
        let (Self::One(part) | Self::Pair { text: part, .. }) = self;
        tokenizer::find(&part.files, part.family, text).map(Some)
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

#[cfg(all(test, feature = "torch"))]
mod tests {
    use super::*;
    use crate::config::ModelSource;

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
}
