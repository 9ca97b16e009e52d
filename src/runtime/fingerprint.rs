//! What makes two loaded models the same.

use crate::domain::{Fingerprint, Pooling, Poolings};

/// How Sidelens itself turns a file or a text into a vector. To be raised with every change to `imaging`, `text`,
/// `model` or `runtime/torch.rs` after which the same input and the same checkpoint give another vector: vectors
/// computed before are then never found again, in no tier of the cache. A test holds it to the pixels of some pictures.
const REVISION: u32 = 6;

/// The fingerprint of a model. `files` is the digest over every file of the checkpoint that was read: weights,
/// configuration, tokenizer, preprocessing. What is chosen per input, or by settings that any model shares
/// (modality, decode mode, background), is in the content's digest instead.
pub(super) fn fingerprint(files: &blake3::Hash, pooling: &Poolings, dtype: &str) -> Fingerprint {
    of_revision(REVISION, files, pooling, dtype)
}

fn of_revision(revision: u32, files: &blake3::Hash, pooling: &Poolings, dtype: &str) -> Fingerprint {
    let [image, text] = [pooling.image, pooling.text].map(|pooling| pooling.map_or("", Pooling::as_str));
    Fingerprint::of(&[
        &revision.to_le_bytes(),
        dtype.as_bytes(),
        image.as_bytes(),
        text.as_bytes(),
        files.as_bytes(),
    ])
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fs};

    use super::*;
    use crate::{
        config::{ModelParts, ModelSource},
        domain::{Decode, Filter, ImageSpec, Resize},
        imaging::{ImagingOptions, prepare},
        model::Checkpoint,
    };

    /// The revision, and the digest of the pixels that it gives.
    const PIXELS: (u32, &str) = (6, "f643b5be41d4235f4912ef20f2db3c205f5dc8155bcab52a56ea0edcd237cc04");

    /// JPEGs of every kind that is left in planes or reduced, and files of other decoders.
    const PICTURES: [&str; 11] = [
        "photo_baseline_420.jpg",
        "photo_progressive_420.jpg",
        "photo_422_odd.jpg",
        "photo_444_odd.jpg",
        "photo_exif6.jpg",
        "photo_gray.jpg",
        "photo_cmyk.jpg",
        "photo_large.jpg",
        "photo_lossy.webp",
        "cutout_rgba.png",
        "gray16.png",
    ];

    /// All arithmetic between a file and its pixels is of whole numbers, or the same on every processor; that what AVX2 does
    /// is what is done without it has tests of its own.
    #[test]
    fn a_revision_has_its_pixels() {
        let spec = ImageSpec::centred;
        let specs = [
            spec(Resize::ShortestEdge(224), Some([224, 224]), Filter::Bicubic),
            spec(Resize::ShortestEdge(50), Some([50, 50]), Filter::Bicubic),
            spec(Resize::Exact { height: 70, width: 60 }, None, Filter::Bilinear),
        ];
        let mut digest = blake3::Hasher::new();
        for file in PICTURES {
            let path = format!("{}/tests/fixtures/images/{file}", env!("CARGO_MANIFEST_DIR"));
            let encoded = fs::read(path).unwrap();
            for spec in &specs {
                for decode in [Decode::Exact, Decode::Fast] {
                    let options = ImagingOptions { decode, ..ImagingOptions::REFERENCE };
                    digest.update(&prepare(&encoded, spec, &options).unwrap().rgb8);
                }
            }
        }
        let digest = digest.finalize().to_hex();
        assert_eq!(
            (REVISION, digest.as_str()),
            PIXELS,
            "pictures are not prepared as they were. Where that is meant, raise REVISION, so that no vectors of before come \
             out of a cache, write it down in PIXELS with this digest, and name it in the changelog: vectors changed. Never \
             change the digest alone"
        );
    }

    #[test]
    fn each_circumstance_counts() {
        let files = blake3::hash(b"files");
        let pooling = |image, text| Poolings { image, text };
        let cls = pooling(Some(Pooling::Cls), None);
        let fingerprints = BTreeSet::from([
            fingerprint(&files, &cls, "fp32"),
            fingerprint(&files, &cls, "bf16"),
            fingerprint(&files, &pooling(Some(Pooling::Mean), None), "fp32"),
            fingerprint(&files, &pooling(None, Some(Pooling::Cls)), "fp32"),
            fingerprint(&blake3::hash(b"others"), &cls, "fp32"),
            of_revision(REVISION + 1, &files, &cls, "fp32"),
        ]);
        assert_eq!(fingerprints.len(), 6);
    }

    /// Without libtorch: the files that say how inputs are prepared. Weights are changed in `torch.rs`.
    #[test]
    fn each_file_that_prepares_inputs_counts() {
        let demo = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/demo-model");
        let of = |changed: Option<(&str, &str, &str)>| {
            let dir = tempfile::tempdir().unwrap();
            for file in ["config.json", "preprocessor_config.json", "tokenizer.json"] {
                let mut text = fs::read_to_string(format!("{demo}/{file}")).unwrap();
                if let Some((_, from, to)) = changed.filter(|(changed, ..)| *changed == file) {
                    assert!(text.contains(from), "{file} has no {from}");
                    text = text.replacen(from, to, 1);
                }
                fs::write(dir.path().join(file), text).unwrap();
            }
            let source = ModelSource::Directory(dir.path().into());
            let checkpoint = Checkpoint::open(&ModelParts::One(source)).unwrap();
            let spec = checkpoint.spec(None).unwrap();
            checkpoint.tokenizer(&spec).unwrap();
            fingerprint(&checkpoint.digest().unwrap(), &spec.pooling, "fp32")
        };
        assert_eq!(of(None), of(None));
        let changes = [
            None,
            Some(("preprocessor_config.json", "0.", "0.1")),
            Some(("tokenizer.json", "\"version\"", "\"version\" ")),
            Some(("config.json", "{", "{ ")),
        ];
        let distinct: BTreeSet<_> = changes.map(of).into();
        assert_eq!(distinct.len(), changes.len());
    }
}
