//! `preprocessor_config.json`, or the part of `processor_config.json` that says the same: how pictures are
//! prepared.

use serde::{Deserialize, Deserializer};

use super::{ModelError, ModelFiles};
use crate::domain::{Filter, ImageSpec, Resize};

const FILE: &str = "preprocessor_config.json";
/// Where transformers 5 puts all but the tokenizer of a model for pictures and texts.
const WHOLE: &str = "processor_config.json";

/// The file, in both of its styles: OpenAI's old one has bare integers and leaves most keys out.
#[derive(Debug, Deserialize)]
struct Preprocessor {
    /// The Python class; old files have the second.
    image_processor_type: Option<String>,
    feature_extractor_type: Option<String>,
    #[serde(default = "yes", deserialize_with = "null_is_no")]
    do_resize: bool,
    #[serde(default)]
    size: Option<Size>,
    #[serde(default)]
    resample: Option<u8>,
    #[serde(default, deserialize_with = "some_null_is_no")]
    do_center_crop: Option<bool>,
    #[serde(default)]
    crop_size: Option<Size>,
    #[serde(default = "yes", deserialize_with = "null_is_no")]
    do_rescale: bool,
    #[serde(default = "one_by_255")]
    rescale_factor: f64,
    #[serde(default = "yes", deserialize_with = "null_is_no")]
    do_normalize: bool,
    #[serde(default)]
    image_mean: Option<[f32; 3]>,
    #[serde(default)]
    image_std: Option<[f32; 3]>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(
    untagged,
    deny_unknown_fields,
    expecting = "a size is a number, `shortest_edge` alone, or `height` and `width`"
)]
enum Size {
    Number(u32),
    ShortestEdge { shortest_edge: u32 },
    Exact { height: u32, width: u32 },
}

fn yes() -> bool {
    true
}

/// Python takes a null for no, though not a key that is absent.
fn null_is_no<'de, D: Deserializer<'de>>(value: D) -> Result<bool, D::Error> {
    Ok(Option::deserialize(value)?.unwrap_or(false))
}

fn some_null_is_no<'de, D: Deserializer<'de>>(value: D) -> Result<Option<bool>, D::Error> {
    null_is_no(value).map(Some)
}

/// `rescale_factor` of every image processor that does not say its own.
pub fn one_by_255() -> f64 {
    1.0 / 255.0
}

/// `image_mean` of CLIP, DINOv2 and BLIP-2.
const CLIP_MEAN: [f32; 3] = [0.48145466, 0.4578275, 0.40821073];
/// `image_std` of CLIP, DINOv2 and BLIP-2.
const CLIP_STD: [f32; 3] = [0.26862954, 0.261_302_6, 0.275_777_1];

const BICUBIC: u8 = 3;
const BILINEAR: u8 = 2;

/// What an image processor does where the file is silent.
///
/// Source: transformers 5.23.0, `models/*/image_processing_*.py`.
pub struct Processor {
    /// The Python class, without `ImageProcessor`.
    name: &'static str,
    /// Whether there is a centre crop, to 224x224. With one `size` is the shortest edge, without it both.
    center_crop: bool,
    /// Pixels of that edge or those edges.
    size: u32,
    /// Whether an integer as `size` means both edges, or the shortest.
    square: bool,
    resample: u8,
    mean: [f32; 3],
    std: [f32; 3],
}

/// CLIP's.
pub const CLIP: Processor = Processor {
    name: "CLIP",
    center_crop: true,
    size: 224,
    square: false,
    resample: BICUBIC,
    mean: CLIP_MEAN,
    std: CLIP_STD,
};

/// DINOv2's.
pub const BIT: Processor = Processor { name: "Bit", ..CLIP };

/// SigLIP's.
pub const SIGLIP: Processor =
    Processor { name: "Siglip", center_crop: false, mean: [0.5; 3], std: [0.5; 3], ..CLIP };

/// BLIP-2's.
pub const BLIP: Processor = Processor { name: "Blip", center_crop: false, size: 384, square: true, ..CLIP };

/// ViT's, which some checkpoints name in place of their family's.
const VIT: Processor = Processor { name: "ViT", square: true, resample: BILINEAR, ..SIGLIP };

impl Processor {
    /// Where the file does not give `size`.
    fn resize(&self) -> Resize {
        match self.center_crop {
            true => Resize::ShortestEdge(self.size),
            false => Resize::Exact { height: self.size, width: self.size },
        }
    }
}

/// Reads the file for an image tower with square input of `image_size` pixels; `None` for a tower that takes
/// any size. `family` is the family's image processor; the file may name another. Where both files speak of
/// pictures, the one of the whole processor counts.
///
/// # Errors
/// When the file is missing, names a processor that is not known, or prepares pictures in a way that does not
/// give the tower its input size.
///
/// Source: transformers 5.23.0, `image_processing_base.py`, `get_image_processor_dict`.
pub fn image_spec(
    files: &ModelFiles,
    image_size: Option<u32>,
    family: &Processor,
) -> Result<ImageSpec, ModelError> {
    let (name, file): (_, Preprocessor) = match files.json_key(WHOLE, "image_processor")? {
        Some(file) => (WHOLE, file),
        None => (FILE, files.json(FILE)?),
    };
    let unsupported =
        |key, found: String, expected| ModelError::Unsupported { file: name.into(), key, found, expected };
    if !file.do_resize {
        return Err(unsupported("do_resize", "false".into(), "pictures of any size must be resized"));
    }
    let (key, class) = match (file.image_processor_type, file.feature_extractor_type) {
        (None, class) => ("feature_extractor_type", class),
        (class, _) => ("image_processor_type", class),
    };
    let defaults = match class {
        None => family,
        Some(class) => match named(&class) {
            Some(processor) => processor,
            None => {
                let expected = "Sidelens has the image processors CLIP, Siglip, Bit, Blip and ViT";
                return Err(unsupported(key, format!("`{class}`"), expected));
            }
        },
    };
    let filter = match file.resample.unwrap_or(defaults.resample) {
        BILINEAR => Filter::Bilinear,
        BICUBIC => Filter::Bicubic,
        other => {
            return Err(unsupported(
                "resample",
                other.to_string(),
                "Sidelens has 2 (bilinear) and 3 (bicubic)",
            ));
        }
    };
    let resize = match file.size {
        None => defaults.resize(),
        Some(Size::Number(n)) if defaults.square => Resize::Exact { height: n, width: n },
        Some(Size::Number(n) | Size::ShortestEdge { shortest_edge: n }) => Resize::ShortestEdge(n),
        Some(Size::Exact { height, width }) => Resize::Exact { height, width },
    };
    let crop = match (file.do_center_crop.unwrap_or(defaults.center_crop), file.crop_size) {
        (false, _) => None,
        (true, None) => Some([224; 2]),
        (true, Some(Size::Number(n) | Size::ShortestEdge { shortest_edge: n })) => Some([n, n]),
        (true, Some(Size::Exact { height, width })) => Some([height, width]),
    };
    let output = match (crop, resize) {
        (Some(size), _) => Some(size),
        (None, Resize::Exact { height, width }) => Some([height, width]),
        (None, Resize::ShortestEdge(_)) => None,
    };
    // Pictures of one batch need one size.
    let fits = output.is_some() && image_size.is_none_or(|n| output == Some([n; 2]));
    if !fits {
        return Err(unsupported(
            "crop_size",
            output.map_or("absent".into(), |[h, w]| format!("{h}x{w}")),
            "it must give the `image_size` of config.json",
        ));
    }
    let (mean, std) = match file.do_normalize {
        true => (file.image_mean.unwrap_or(defaults.mean), file.image_std.unwrap_or(defaults.std)),
        false => ([0.0; 3], [1.0; 3]),
    };
    let rescale_factor = if file.do_rescale { file.rescale_factor } else { 1.0 };
    Ok(ImageSpec { resize, crop, filter, rescale_factor, mean, std })
}

/// The image processor of this Python class, in any of its forms.
fn named(class: &str) -> Option<&'static Processor> {
    let class = ["Fast", "Pil"].iter().find_map(|form| class.strip_suffix(form)).unwrap_or(class);
    let name = ["ImageProcessor", "FeatureExtractor"].iter().find_map(|kind| class.strip_suffix(kind))?;
    [&CLIP, &SIGLIP, &BIT, &BLIP, &VIT].into_iter().find(|processor| processor.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory(contents: &[(&str, &str)]) -> (tempfile::TempDir, ModelFiles) {
        let dir = tempfile::tempdir().unwrap();
        for (name, json) in contents {
            std::fs::write(dir.path().join(name), json).unwrap();
        }
        let files = ModelFiles::open(&crate::config::ModelSource::Directory(dir.path().into())).unwrap();
        (dir, files)
    }

    fn read(json: &str, image_size: u32) -> Result<ImageSpec, ModelError> {
        let (_dir, files) = directory(&[(FILE, json)]);
        image_spec(&files, Some(image_size), &CLIP)
    }

    #[test]
    fn reads_both_styles() {
        let old =
            read(r#"{"size": 224, "crop_size": 224, "resample": 3, "image_mean": [0.1, 0.2, 0.3]}"#, 224);
        let new = read(
            r#"{"size": {"shortest_edge": 224}, "crop_size": {"height": 224, "width": 224}, "do_rescale": true,
                "rescale_factor": 0.00392156862745098, "image_mean": [0.1, 0.2, 0.3]}"#,
            224,
        );
        let old = old.unwrap();
        assert_eq!(old.resize, Resize::ShortestEdge(224));
        assert_eq!((old.crop, old.mean, old.std), (Some([224; 2]), [0.1, 0.2, 0.3], CLIP_STD));
        assert_eq!(old, new.unwrap());
    }

    #[test]
    fn refuses_what_does_not_fit_the_tower() {
        for (json, word) in [
            (r#"{"size": 224, "crop_size": 200}"#, "200x200"),
            (r#"{"size": 224, "do_center_crop": false}"#, "absent"),
            (r#"{"size": 224, "resample": 1}"#, "resample"),
            (r#"{"size": 224, "do_resize": false}"#, "do_resize"),
            (r#"{"size": 224, "do_resize": null}"#, "do_resize"),
            (r#"{"size": 224, "do_center_crop": null}"#, "absent"),
            (r#"{"size": {"shortest_edge": 224, "longest_edge": 300}}"#, "`shortest_edge` alone"),
            (r#"{"image_processor_type": "ConvNextImageProcessor"}"#, "image_processor_type"),
            (r#"{"feature_extractor_type": "DeiTFeatureExtractor"}"#, "`DeiTFeatureExtractor`"),
            // That is the shortest edge there.
            (r#"{"image_processor_type": "SiglipImageProcessor", "size": 224}"#, "crop_size"),
        ] {
            let message = read(json, 224).unwrap_err().to_string();
            assert!(message.contains(word) && message.contains(FILE), "{message}");
        }
    }

    #[test]
    fn null_is_no() {
        let of =
            |word: &str| read(&format!(r#"{{"do_rescale": {word}, "do_normalize": {word}}}"#), 224).unwrap();
        assert_eq!(of("null"), of("false"));
        assert_eq!((of("null").rescale_factor, of("null").mean), (1.0, [0.0; 3]));
    }

    #[test]
    fn sparse_files_mean_the_defaults_of_the_class() {
        let clip = read(r#"{"image_processor_type": "CLIPImageProcessorFast"}"#, 224).unwrap();
        assert_eq!((clip.resize, clip.crop), (Resize::ShortestEdge(224), Some([224; 2])));
        assert_eq!((clip.filter, clip.mean, clip.std), (Filter::Bicubic, CLIP_MEAN, CLIP_STD));
        assert_eq!(read(r#"{"feature_extractor_type": "BitFeatureExtractor"}"#, 224).unwrap(), clip);
        let vit = read(r#"{"image_processor_type": "ViTImageProcessor"}"#, 224).unwrap();
        assert_eq!((vit.resize, vit.crop), (Resize::Exact { height: 224, width: 224 }, None));
        assert_eq!((vit.filter, vit.mean, vit.std), (Filter::Bilinear, [0.5; 3], [0.5; 3]));
        let siglip = read(r#"{"image_processor_type": "SiglipImageProcessorPil"}"#, 224).unwrap();
        assert_eq!(siglip, ImageSpec { filter: Filter::Bicubic, ..vit });
        let blip = read(r#"{"image_processor_type": "BlipImageProcessor", "size": 64}"#, 64).unwrap();
        assert_eq!((blip.size(), blip.crop, blip.mean), ([64; 2], None, CLIP_MEAN));
        // Whatever edge is resized to, the crop is the class's.
        assert!(read(r#"{"image_processor_type": "CLIPImageProcessor", "size": 64}"#, 64).is_err());
    }

    #[test]
    fn what_the_file_of_the_whole_processor_says_comes_first() {
        let old = (FILE, r#"{"size": 224, "image_mean": [0.1, 0.2, 0.3]}"#);
        let nested = (
            WHOLE,
            r#"{"image_processor": {"size": {"shortest_edge": 224}, "image_mean": [0.4, 0.5, 0.6]},
                "processor_class": "CLIPProcessor"}"#,
        );
        // As checkpoints of BLIP-2 have it: nothing of it is about pictures.
        let flat = (WHOLE, r#"{"num_query_tokens": 32, "processor_class": "Blip2Processor"}"#);
        let null = (WHOLE, r#"{"image_processor": null}"#);
        let of = |contents: &[(&str, &str)]| {
            let (_dir, files) = directory(contents);
            let mean = image_spec(&files, Some(224), &CLIP).unwrap().mean;
            (mean, files.digest().unwrap())
        };
        let (only_old, only_nested) = (of(&[old]), of(&[nested]));
        assert_eq!((only_old.0, only_nested.0), ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6]));
        assert_eq!(of(&[old, nested]), only_nested);
        // A file that says nothing here leaves the fingerprint as it was.
        assert_eq!((of(&[old, flat]), of(&[old, null])), (only_old, only_old));
        assert!(only_old.1 != only_nested.1);

        let (_dir, files) = directory(&[flat]);
        let message = image_spec(&files, Some(224), &CLIP).unwrap_err().to_string();
        assert!(message.contains(FILE), "{message}");
        let (_dir, files) = directory(&[(WHOLE, r#"{"image_processor": {"size": 200, "crop_size": 200}}"#)]);
        let message = image_spec(&files, Some(224), &CLIP).unwrap_err().to_string();
        assert!(message.contains("200x200") && message.contains(WHOLE), "{message}");
    }
}
