//! What makes two loaded models the same.

use crate::domain::{Fingerprint, Pooling, Poolings};

/// How Sidelens itself turns a file or a text into a vector. To be raised with every change to `imaging`, `text`,
/// `model` or `runtime/torch.rs` after which the same input and the same checkpoint give another vector: vectors
/// computed before are then never found again, in no tier of the cache.
const REVISION: u32 = 3;

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
        model::Checkpoint,
    };

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
