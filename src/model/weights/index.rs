//! Where every tensor of a checkpoint lies, whatever format it was saved in. Needs no libtorch.

use std::{collections::BTreeMap, ops::Range, sync::Arc};

use safetensors::Dtype;

use super::{safetensors as safe, shards, torch_zip};
use crate::model::{FileBytes, ModelError, ModelFiles, files::WEIGHTS};

/// The files that weights come in, the best first.
const CHOICES: [(&str, Format, Spread); 4] = [
    (WEIGHTS, Format::Safetensors, Spread::Single),
    ("model.safetensors.index.json", Format::Safetensors, Spread::Sharded),
    ("pytorch_model.bin", Format::Torch, Spread::Single),
    ("pytorch_model.bin.index.json", Format::Torch, Spread::Sharded),
];

/// Whether the file holds the tensors, or says which files do.
#[derive(Clone, Copy)]
enum Spread {
    Single,
    Sharded,
}

/// A file format that tensors are stored in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// <https://github.com/huggingface/safetensors>
    Safetensors,
    /// What `torch.save` writes since 1.6: a zip archive with a pickle.
    Torch,
}

impl Format {
    /// The tensors in `bytes`, the whole of a file; `place` names it in errors.
    ///
    /// # Errors
    /// [`ModelError::Weights`] when the file is broken, [`ModelError::Code`] when it asks to run code.
    pub fn read(self, bytes: &[u8], place: &str) -> Result<Layouts, ModelError> {
        if bytes.starts_with(b"version https://git-lfs") {
            let reason = "it is a Git LFS pointer; fetch the file itself with `git lfs pull`".into();
            return Err(ModelError::Weights { file: place.into(), reason });
        }
        match self {
            Self::Safetensors => safe::read(bytes, place),
            Self::Torch => torch_zip::read(bytes, place),
        }
    }
}

/// The tensors of one file, by name.
pub type Layouts = BTreeMap<String, Layout>;

/// How a tensor lies in its file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// The number format.
    pub dtype: Dtype,
    /// Entries per dimension.
    pub shape: Vec<i64>,
    /// From one entry of a dimension to the next, in entries; never negative.
    pub strides: Vec<i64>,
    /// From the first byte of the first entry to the last of the last, in the file; checked to lie in it.
    pub bytes: Range<usize>,
}

/// Every tensor of a checkpoint.
#[derive(Debug)]
pub struct Index {
    /// The file that was found first; the shards follow it, in the order of their names.
    files: Vec<(String, Arc<FileBytes>)>,
    /// A tensor's file and how it lies there.
    tensors: BTreeMap<String, (usize, Layout)>,
}

/// A tensor that was looked up.
#[derive(Debug, Clone, Copy)]
pub struct Found<'a> {
    /// How it lies in `data`'s file.
    pub layout: &'a Layout,
    /// The bytes of [`Layout::bytes`].
    pub data: &'a [u8],
    /// The file, for messages.
    pub file: &'a str,
    #[cfg(feature = "torch")]
    mapped: &'a FileBytes,
}

#[cfg(feature = "torch")]
impl Found<'_> {
    /// Gives the tensor's memory back, once it was copied elsewhere.
    pub(super) fn let_go(&self) {
        self.mapped.let_go(self.layout.bytes.start, self.layout.bytes.len());
    }
}

impl Index {
    /// Maps the weights of a checkpoint and reads what they hold; no tensor's data is touched.
    ///
    /// # Errors
    /// [`ModelError`], naming the file: no weights, a broken or missing file, or one that asks to run code.
    pub fn open(files: &ModelFiles) -> Result<Self, ModelError> {
        for (name, format, spread) in CHOICES {
            let bytes = match files.map(name) {
                Err(ModelError::NoFile { .. }) => continue,
                bytes => bytes?,
            };
            let place = files.place_of(name);
            return match spread {
                Spread::Single => {
                    let layouts = format.read(&bytes, &place)?;
                    let tensors = layouts.into_iter().map(|(name, layout)| (name, (0, layout))).collect();
                    Ok(Self { files: vec![(place, bytes)], tensors })
                }
                Spread::Sharded => {
                    let (shards, tensors) = shards::read(files, &place, &bytes, format)?;
                    let files = std::iter::once((place, bytes)).chain(shards).collect();
                    Ok(Self { files, tensors })
                }
            };
        }
        Err(ModelError::NoWeights { dir: files.place(), known: CHOICES.map(|(name, ..)| name).to_vec() })
    }

    /// For each of two towers, by a tensor that it always has, whether the weights hold it: a file may have one
    /// of the two that the configuration describes. Both, where there are no weights to tell, or neither is
    /// found: then loading says what is missing.
    pub fn towers(files: &ModelFiles, anchors: [&str; 2]) -> [bool; 2] {
        let Ok(index) = Self::open(files) else { return [true; 2] };
        let held = anchors.map(|anchor| index.names().any(|name| name.ends_with(anchor)));
        if held == [false; 2] { [true; 2] } else { held }
    }

    /// The tensor of that name.
    pub fn get(&self, name: &str) -> Option<Found<'_>> {
        let (file, layout) = self.tensors.get(name)?;
        let (place, bytes) = &self.files[*file];
        Some(Found {
            layout,
            data: &bytes[layout.bytes.clone()],
            file: place,
            #[cfg(feature = "torch")]
            mapped: bytes,
        })
    }

    /// The names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// How many files were opened.
    #[cfg(test)]
    pub(super) fn n_files(&self) -> usize {
        self.files.len()
    }

    /// Whether `data` points into one of the files.
    #[cfg(all(test, feature = "torch"))]
    pub(super) fn contains(&self, data: *const u8) -> bool {
        self.files.iter().any(|(_, bytes)| bytes.as_ptr_range().contains(&data))
    }

    /// The file that was opened, or the index of the shards, for messages.
    pub fn place(&self) -> &str {
        &self.files[0].0
    }
}

/// The strides of a contiguous tensor; none when they do not fit.
pub(super) fn contiguous(shape: &[i64]) -> Option<Vec<i64>> {
    let mut strides = vec![1_i64; shape.len()];
    for i in (1..shape.len()).rev() {
        strides[i - 1] = strides[i].checked_mul(shape[i])?;
    }
    Some(strides)
}
