//! `preprocessor_config.json`, or the part of `processor_config.json` that says the same: how pictures are
//! prepared.

use serde::Deserialize;

use super::{ModelError, ModelFiles};
use crate::domain::{Filter, ImageSpec, Resize};

const FILE: &str = "preprocessor_config.json";
/// Where transformers 5 puts all but the tokenizer of a model for pictures and texts.
const WHOLE: &str = "processor_config.json";

/// The file, in both of its styles: OpenAI's old one has bare integers and leaves most keys out.
#[derive(Debug, Deserialize)]
struct Preprocessor {
    #[serde(default = "yes")]
    do_resize: bool,
    size: Size,
    #[serde(default = "bicubic")]
    resample: u8,
    #[serde(default)]
    do_center_crop: Option<bool>,
    #[serde(default)]
    crop_size: Option<Size>,
    #[serde(default = "yes")]
    do_rescale: bool,
    #[serde(default = "one_by_255")]
    rescale_factor: f64,
    #[serde(default = "yes")]
    do_normalize: bool,
    #[serde(default)]
    image_mean: Option<[f32; 3]>,
    #[serde(default)]
    image_std: Option<[f32; 3]>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(untagged)]
enum Size {
    Number(u32),
    ShortestEdge { shortest_edge: u32 },
    Exact { height: u32, width: u32 },
}

fn yes() -> bool {
    true
}

fn bicubic() -> u8 {
    3
}

/// `rescale_factor` of every image processor that does not say its own.
pub fn one_by_255() -> f64 {
    1.0 / 255.0
}

/// `image_mean` of CLIP and BLIP-2.
pub const CLIP_MEAN: [f32; 3] = [0.48145466, 0.4578275, 0.40821073];
/// `image_std` of CLIP and BLIP-2.
pub const CLIP_STD: [f32; 3] = [0.26862954, 0.261_302_6, 0.275_777_1];

/// What a family's image processor does where the file is silent.
pub struct Defaults {
    /// Whether an integer `size` means the shortest edge (CLIP) or a square.
    pub shortest_edge: bool,
    /// Whether there is a centre crop.
    pub center_crop: bool,
    /// `image_mean`.
    pub mean: [f32; 3],
    /// `image_std`.
    pub std: [f32; 3],
}

/// Reads the file for an image tower with square input of `image_size` pixels; `None` for a tower that takes
/// any size. Where both files speak of pictures, the one of the whole processor counts.
///
/// # Errors
/// When the file is missing, or prepares pictures in a way that does not give the tower its input size.
///
/// Source: transformers 5.23.0, `image_processing_base.py`, `get_image_processor_dict`.
pub fn image_spec(
    files: &ModelFiles,
    image_size: Option<u32>,
    defaults: &Defaults,
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
    let filter = match file.resample {
        2 => Filter::Bilinear,
        3 => Filter::Bicubic,
        other => {
            return Err(unsupported(
                "resample",
                other.to_string(),
                "Sidelens has 2 (bilinear) and 3 (bicubic)",
            ));
        }
    };
    let resize = match file.size {
        Size::Number(n) if defaults.shortest_edge => Resize::ShortestEdge(n),
        Size::Number(n) => Resize::Exact { height: n, width: n },
        Size::ShortestEdge { shortest_edge } => Resize::ShortestEdge(shortest_edge),
        Size::Exact { height, width } => Resize::Exact { height, width },
    };
    let crop = match (file.do_center_crop.unwrap_or(defaults.center_crop), file.crop_size) {
        (false, _) => None,
        (true, None) => image_size.map(|n| [n; 2]),
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

#[cfg(test)]
mod tests {
    use super::*;

    const CLIP: Defaults =
        Defaults { shortest_edge: true, center_crop: true, mean: [0.5; 3], std: [0.25; 3] };

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
        assert_eq!((old.crop, old.mean, old.std), (Some([224; 2]), [0.1, 0.2, 0.3], [0.25; 3]));
        assert_eq!(old, new.unwrap());
    }

    #[test]
    fn refuses_what_does_not_fit_the_tower() {
        for (json, word) in [
            (r#"{"size": 224, "crop_size": 200}"#, "200x200"),
            (r#"{"size": 224, "do_center_crop": false}"#, "absent"),
            (r#"{"size": 224, "resample": 1}"#, "resample"),
            (r#"{"size": 224, "do_resize": false}"#, "do_resize"),
            (r#"{}"#, "size"),
        ] {
            let message = read(json, 224).unwrap_err().to_string();
            assert!(message.contains(word) && message.contains(FILE), "{message}");
        }
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
