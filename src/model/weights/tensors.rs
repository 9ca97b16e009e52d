//! The tensors of a checkpoint, checked and put on a device.

use std::sync::Arc;

use safetensors::Dtype;
use tch::{Device, Kind, TchError, Tensor};

use super::{Found, Index};
use crate::model::{ModelError, ModelFiles, Placement};

/// The opened weights of a checkpoint, and where its tensors go. Cloning is cheap.
///
/// On the CPU a tensor that is stored in the dtype it is served in stays in the mapped file: nothing is
/// copied. Such tensors point into the file, so whoever holds them must hold the [`ModelFiles`] too, which
/// keep it mapped.
#[derive(Debug, Clone)]
pub struct Weights {
    index: Arc<Index>,
    /// Put before every name that is asked for.
    prefix: String,
    on: Placement,
}

impl Weights {
    /// Maps the weights and reads what they hold.
    ///
    /// # Errors
    /// As [`Index::open`].
    pub fn open(files: &ModelFiles, on: Placement) -> Result<Self, ModelError> {
        Ok(Self { index: Arc::new(Index::open(files)?), prefix: String::new(), on })
    }

    /// The same weights with the names below the one tensor `anchor`, which checkpoints keep under prefixes of
    /// their own (`model.`, `bert.`): the shortest one is put before every name from then on. Where no tensor
    /// ends with `anchor` names stay as they are, and asking for one will say what is missing.
    #[must_use]
    pub fn rooted_at(&self, anchor: &str) -> Self {
        let below = self.index.names().filter_map(|name| name.strip_prefix(&self.prefix));
        let prefixes = below.filter_map(|name| name.strip_suffix(anchor));
        let whole = prefixes.filter(|prefix| prefix.is_empty() || prefix.ends_with('.'));
        let shortest = whole.min_by_key(|prefix| prefix.len()).unwrap_or_default();
        Self { prefix: format!("{}{shortest}", self.prefix), ..self.clone() }
    }

    /// Whether there is a tensor `name`.
    pub fn has(&self, name: &str) -> bool {
        self.find(name).is_some()
    }

    /// The tensor `name`, of exactly this shape, contiguous, in the served dtype, on the device.
    ///
    /// # Errors
    /// When the tensor is missing, has another shape, or has a dtype that weights do not have.
    pub fn tensor(&self, name: &str, shape: &[i64]) -> Result<Tensor, ModelError> {
        self.scaled(name, shape, 1.0)
    }

    /// As [`Self::tensor`], each entry times `factor`, rounded once.
    ///
    /// # Errors
    /// As [`Self::tensor`].
    pub fn scaled(&self, name: &str, shape: &[i64], factor: f64) -> Result<Tensor, ModelError> {
        let stored = self.stored(name, shape)?;
        let placed = self.place(&stored, factor).map_err(|e| ModelError::torch(&self.full(name), &e))?;
        // Else a file in another dtype would be in memory twice, whole, until loading has ended.
        if placed.data_ptr() != stored.data_ptr() {
            self.let_go(name);
        }
        Ok(placed)
    }

    /// The tensor `name`, of exactly this shape, as it lies in the file: in its dtype, on the CPU, perhaps with
    /// strides.
    ///
    /// # Errors
    /// As [`Self::tensor`].
    pub fn stored(&self, name: &str, shape: &[i64]) -> Result<Tensor, ModelError> {
        let found = self.find(name).ok_or_else(|| ModelError::NoTensor {
            file: self.index.place().into(),
            tensor: self.full(name),
            expected: shape.into(),
        })?;
        if found.layout.shape != shape {
            return Err(ModelError::Shape {
                file: found.file.into(),
                tensor: self.full(name),
                expected: shape.into(),
                found: found.layout.shape.clone(),
            });
        }
        let kind = match found.layout.dtype {
            Dtype::F64 => Kind::Double,
            Dtype::F32 => Kind::Float,
            Dtype::F16 => Kind::Half,
            Dtype::BF16 => Kind::BFloat16,
            other => {
                return Err(ModelError::Dtype {
                    file: found.file.into(),
                    tensor: self.full(name),
                    found: other.to_string(),
                });
            }
        };
        if self.on == Placement::NOWHERE {
            if !is_finite(found, kind) {
                return Err(ModelError::NotFinite { file: found.file.into(), tensor: self.full(name) });
            }
            found.let_go();
            let hollow = Tensor::f_zeros([], (self.on.kind, self.on.device))
                .and_then(|one| one.f_expand(shape, false));
            return hollow.map_err(|e| ModelError::torch(&self.full(name), &e));
        }
        in_file(found, kind).map_err(|e| ModelError::torch(&self.full(name), &e))
    }

    /// Where tensors go, and as what.
    pub fn placement(&self) -> Placement {
        self.on
    }

    /// Gives the memory of the tensor `name` back, once it was copied elsewhere. It comes back from the file when it is
    /// touched.
    pub fn let_go(&self, name: &str) {
        if let Some(found) = self.find(name) {
            found.let_go();
        }
    }

    fn full(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    fn find(&self, name: &str) -> Option<Found<'_>> {
        self.index.get(&self.full(name))
    }

    /// The tensor itself where nothing changes.
    fn place(&self, stored: &Tensor, factor: f64) -> Result<Tensor, TchError> {
        if self.on == Placement::NOWHERE {
            return Ok(stored.shallow_clone());
        }
        let placed = stored.f_to_device(self.on.device)?;
        let placed = match factor {
            1.0 => placed,
            factor => placed.f_to_kind(Kind::Float)?.f_mul_scalar(factor)?,
        };
        placed.f_to_kind(self.on.kind)?.f_contiguous()
    }
}

/// Whether none of a tensor's entries is infinite or no number at all: then the exponent, which ends in the last two
/// bytes, has all its bits.
fn is_finite(Found { data, .. }: Found, kind: Kind) -> bool {
    let exponent = match kind {
        Kind::Double => 0x7ff0,
        Kind::Half => 0x7c00,
        // What bf16 has of it, too.
        _ => 0x7f80,
    };
    let size = kind.elt_size_in_bytes();
    let ends = data.chunks_exact(size).map(|entry| u16::from_le_bytes([entry[size - 2], entry[size - 1]]));
    ends.fold(true, |is_finite, end| is_finite & (end & exponent != exponent))
}

/// A tensor over its place in the file.
fn in_file(Found { layout, data, .. }: Found, kind: Kind) -> Result<Tensor, TchError> {
    let size = kind.elt_size_in_bytes();
    // Files written by other hands may leave tensors unaligned; those are copied.
    if !(data.as_ptr() as usize).is_multiple_of(size) {
        let entries = Tensor::f_from_data_size(data, &[(data.len() / size) as i64], kind)?;
        return entries.f_as_strided(&layout.shape, &layout.strides, None);
    }
    // SAFETY: Every entry that shape and strides lead to lies in `data` (both formats' readers checked it), which is
    // aligned, lives as long as the files, which the engine keeps beside the tensors, and is never written: inference
    // only reads weights.
    unsafe { Tensor::f_from_blob(data.as_ptr(), &layout.shape, &layout.strides, kind, Device::Cpu) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{
        files::WEIGHTS,
        weights::{
            Format,
            tests::{fixture, good},
        },
    };

    fn file(tensors: &[(&str, Dtype, Vec<usize>, Vec<u8>)]) -> (tempfile::TempDir, ModelFiles) {
        let dir = tempfile::tempdir().unwrap();
        let views = tensors.iter().map(|(name, dtype, shape, data)| {
            (*name, safetensors::tensor::TensorView::new(*dtype, shape.clone(), data).unwrap())
        });
        let bytes = safetensors::serialize(views, None).unwrap();
        std::fs::write(dir.path().join(WEIGHTS), bytes).unwrap();
        let files = directory(dir.path());
        (dir, files)
    }

    fn directory(path: &std::path::Path) -> ModelFiles {
        ModelFiles::open(&crate::config::ModelSource::Directory(path.into())).unwrap()
    }

    fn on(kind: Kind) -> Placement {
        Placement { device: Device::Cpu, kind }
    }

    fn f32s(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|x| x.to_le_bytes()).collect()
    }

    #[test]
    fn a_tensor_in_the_served_dtype_is_not_copied() {
        let (_dir, files) = file(&[("w", Dtype::F32, vec![2, 2], f32s(&[1.0, 2.0, 3.0, 4.0]))]);
        let weights = Weights::open(&files, on(Kind::Float)).unwrap();
        let tensor = weights.tensor("w", &[2, 2]).unwrap();
        assert!(in_the_map(&weights, &tensor));
        assert_eq!(Vec::<f32>::try_from(tensor.view([-1])).unwrap(), [1.0, 2.0, 3.0, 4.0]);
        let half = Weights::open(&files, on(Kind::BFloat16)).unwrap().tensor("w", &[2, 2]).unwrap();
        assert_eq!(half.kind(), Kind::BFloat16);
    }

    fn in_the_map(weights: &Weights, tensor: &Tensor) -> bool {
        let data = tensor.data_ptr().cast_const().cast();
        weights.index.contains(data)
    }

    fn open_as(path: &std::path::Path, name: &str, kind: Kind) -> (tempfile::TempDir, Weights) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::copy(path, dir.path().join(name)).unwrap();
        let weights = Weights::open(&directory(dir.path()), on(kind)).unwrap();
        (dir, weights)
    }

    #[test]
    fn every_good_file_gives_the_numbers_that_python_saved() {
        for (path, format, expected) in good() {
            let name = if format == Format::Torch { "pytorch_model.bin" } else { WEIGHTS };
            for kind in [Kind::Float, Kind::BFloat16] {
                let (_dir, weights) = open_as(&path, name, kind);
                for (tensor, expected) in &expected {
                    let what = format!("{tensor} of {}", path.display());
                    match weights.tensor(tensor, &expected.shape) {
                        Ok(found) => {
                            assert_eq!((found.kind(), found.is_contiguous()), (kind, true), "{what}");
                            let values = Vec::<f32>::try_from(found.to_kind(Kind::Float).view([-1])).unwrap();
                            assert_eq!(values, expected.values, "{what}");
                        }
                        Err(error) => {
                            assert!(!expected.is_weight(), "{what}: {error}");
                            assert!(matches!(error, ModelError::Dtype { .. }), "{what}: {error}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn a_pickled_tensor_stays_in_the_file_unless_its_strides_or_dtype_change() {
        let (_dir, weights) = open_as(&fixture("good/views.bin"), "pytorch_model.bin", Kind::Float);
        for (name, shape, stays) in [
            ("whole", vec![4, 6], true),
            ("middle", vec![2, 6], true),
            ("row", vec![6], true),
            ("transposed", vec![6, 4], false),
            ("columns", vec![4, 2], false),
        ] {
            assert_eq!(in_the_map(&weights, &weights.tensor(name, &shape).unwrap()), stays, "{name}");
        }
        let (_dir, weights) = open_as(&fixture("good/tied.bin"), "pytorch_model.bin", Kind::Float);
        let [a, b] = ["a", "b"].map(|name| weights.tensor(name, &[5, 2]).unwrap());
        assert_eq!(a.data_ptr(), b.data_ptr());
        let (_dir, weights) = open_as(&fixture("good/tied.bin"), "pytorch_model.bin", Kind::BFloat16);
        assert!(!in_the_map(&weights, &weights.tensor("a", &[5, 2]).unwrap()));
    }

    #[test]
    fn an_unaligned_tensor_is_copied() {
        let header = br#"{"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"x":{"dtype":"F32","shape":[2,1],"data_offsets":[1,9]}}"#;
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(header);
        // One byte before the numbers puts them off their alignment.
        bytes.push(0);
        bytes.extend(f32s(&[1.0, 2.0]));
        // Mappings begin on a page, so this is where `x` lies.
        assert_ne!((bytes.len() - 8) % 4, 0);
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(WEIGHTS), bytes).unwrap();
        let files = directory(dir.path());
        let weights = Weights::open(&files, on(Kind::Float)).unwrap();
        let tensor = weights.tensor("x", &[2, 1]).unwrap();
        assert!(!in_the_map(&weights, &tensor));
        assert_eq!(Vec::<f32>::try_from(tensor.view([-1])).unwrap(), [1.0, 2.0]);
    }

    #[test]
    fn names_are_looked_up_behind_the_shortest_prefix() {
        let one = || (Dtype::F32, vec![1], f32s(&[1.0]));
        let names = [
            "ema.model.embed.weight",
            "model.embed.weight",
            "model.norm.a",
            "text.x",
            "text.deep.y",
            "noembed.weight",
        ];
        let tensors: Vec<_> = names
            .iter()
            .map(|name| {
                let (dtype, shape, data) = one();
                (*name, dtype, shape, data)
            })
            .collect();
        let (_dir, files) = file(&tensors);
        let weights = Weights::open(&files, on(Kind::Float)).unwrap();
        let model = weights.rooted_at("embed.weight");
        assert!(model.has("norm.a") && model.has("embed.weight") && !model.has("model.norm.a"));
        let message = model.tensor("norm.b", &[1]).unwrap_err().to_string();
        assert!(message.contains("`model.norm.b`"), "{message}");
        // A root within a root; no prefix at all; an anchor that is nowhere.
        assert!(weights.rooted_at("x").rooted_at("y").has("y"));
        assert!(weights.rooted_at("text.x").has("model.norm.a"));
        assert!(weights.rooted_at("nowhere").has("model.norm.a"));
    }

    #[test]
    fn errors_name_file_tensor_and_both_shapes() {
        let (_dir, files) = file(&[
            ("w", Dtype::F32, vec![2, 2], f32s(&[1.0, 2.0, 3.0, 4.0])),
            ("ids", Dtype::I64, vec![1], vec![0; 8]),
        ]);
        let weights = Weights::open(&files, on(Kind::Float)).unwrap();
        let message = weights.tensor("w", &[2, 3]).unwrap_err().to_string();
        for part in [WEIGHTS, "`w`", "[2, 2]", "[2, 3]"] {
            assert!(message.contains(part), "{message}");
        }
        let message = weights.tensor("v", &[7]).unwrap_err().to_string();
        for part in [WEIGHTS, "`v`", "[7]"] {
            assert!(message.contains(part), "{message}");
        }
        assert!(weights.tensor("ids", &[1]).unwrap_err().to_string().contains("I64"));
    }

    #[test]
    fn a_broken_file_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let files = directory(dir.path());
        assert!(matches!(Weights::open(&files, on(Kind::Float)), Err(ModelError::NoWeights { .. })));
        for bytes in [&b""[..], b"short", &[255; 64], b"\x02\0\0\0\0\0\0\0{}trailing"] {
            std::fs::write(dir.path().join(WEIGHTS), bytes).unwrap();
            assert!(matches!(
                Weights::open(&files, on(Kind::Float)),
                Err(ModelError::Weights { .. } | ModelError::Io { .. })
            ));
        }
    }
}
