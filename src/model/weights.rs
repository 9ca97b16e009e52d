//! The tensors of a safetensors file, checked and put on a device.

use std::sync::Arc;

use safetensors::{Dtype, SafeTensors, tensor::TensorInfo};
use tch::{Device, Kind, Tensor};

use super::{
    ModelError, ModelFiles, Placement,
    files::{FileBytes, WEIGHTS},
};

#[derive(Clone)]
/// An opened weights file, and where its tensors go.
///
/// On the CPU a tensor that is stored in the dtype it is served in stays in the mapped file: nothing is
/// copied. Such tensors point into the file, so whoever holds them must hold [`Self::bytes`] too.
pub struct Weights {
    bytes: Arc<FileBytes>,
    /// Where the tensors' data starts in the file.
    data_start: usize,
    metadata: Arc<safetensors::tensor::Metadata>,
    place: String,
    device: Device,
    kind: Kind,
}

impl Weights {
    /// Maps the file and reads its header.
    ///
    /// # Errors
    /// When the file is missing or is no safetensors file.
    pub fn open(files: &ModelFiles, Placement { device, kind }: Placement) -> Result<Self, ModelError> {
        let bytes = files.map(WEIGHTS)?;
        let place = format!("{WEIGHTS} of {}", files.place());
        let (header, metadata) = SafeTensors::read_metadata(&bytes)
            .map_err(|e| ModelError::Weights { file: place.clone(), reason: e.to_string() })?;
        // Eight bytes hold the header's length.
        Ok(Self { bytes, data_start: header + 8, metadata: Arc::new(metadata), place, device, kind })
    }

    /// Whether there is a tensor `name`.
    pub fn has(&self, name: &str) -> bool {
        self.metadata.info(name).is_some()
    }

    /// These weights, with names looked up behind the prefix that `anchor` has in the file.
    pub fn rooted_at(&self, _anchor: &str) -> Self {
        self.clone()
    }

    /// The tensor `name`, of exactly this shape, in the served dtype, on the device.
    ///
    /// # Errors
    /// When the tensor is missing, has another shape, or has a dtype that weights do not have.
    pub fn tensor(&self, name: &str, shape: &[i64]) -> Result<Tensor, ModelError> {
        let info = self.info(name, shape)?;
        let stored = match info.dtype {
            Dtype::F32 => Kind::Float,
            Dtype::F16 => Kind::Half,
            Dtype::BF16 => Kind::BFloat16,
            other => {
                return Err(ModelError::Dtype {
                    file: self.place.clone(),
                    tensor: name.into(),
                    found: format!("{other:?}"),
                });
            }
        };
        let (start, end) = info.data_offsets;
        let data = &self.bytes[self.data_start + start..self.data_start + end];
        self.place(data, shape, stored)
            .map_err(|e| ModelError::Torch { tensor: name.into(), reason: e.to_string() })
    }

    fn info(&self, name: &str, shape: &[i64]) -> Result<&TensorInfo, ModelError> {
        let (file, tensor, expected) = (|| self.place.clone(), || name.to_owned(), || shape.to_vec());
        let info = self.metadata.info(name).ok_or_else(|| ModelError::NoTensor {
            file: file(),
            tensor: tensor(),
            expected: expected(),
        })?;
        let found: Vec<i64> = info.shape.iter().map(|&n| n as i64).collect();
        match found == shape {
            true => Ok(info),
            false => Err(ModelError::Shape { file: file(), tensor: tensor(), expected: expected(), found }),
        }
    }

    fn place(&self, data: &[u8], shape: &[i64], stored: Kind) -> Result<Tensor, tch::TchError> {
        // Files written by other hands may leave tensors unaligned; those are copied.
        if !(data.as_ptr() as usize).is_multiple_of(stored.elt_size_in_bytes()) {
            let copy = Tensor::f_from_data_size(data, shape, stored)?;
            return copy.f_to_device(self.device)?.f_to_kind(self.kind);
        }
        // SAFETY: `data` holds shape x dtype bytes (safetensors checked it when it read the header), is
        // aligned, lives as long as `self.bytes`, which the model keeps beside its tensors, and is never
        // written: inference only reads weights.
        let mapped =
            unsafe { Tensor::f_from_blob(data.as_ptr(), shape, &contiguous(shape), stored, Device::Cpu)? };
        // Both are the tensor itself where nothing changes.
        mapped.f_to_device(self.device)?.f_to_kind(self.kind)
    }
}

/// The strides of a contiguous tensor.
fn contiguous(shape: &[i64]) -> Vec<i64> {
    let mut strides = vec![1; shape.len()];
    for i in (1..shape.len()).rev() {
        strides[i - 1] = strides[i] * shape[i];
    }
    strides
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(tensors: &[(&str, Dtype, Vec<usize>, Vec<u8>)]) -> (tempfile::TempDir, ModelFiles) {
        let dir = tempfile::tempdir().unwrap();
        let views = tensors.iter().map(|(name, dtype, shape, data)| {
            (*name, safetensors::tensor::TensorView::new(*dtype, shape.clone(), data).unwrap())
        });
        let bytes = safetensors::serialize(views, None).unwrap();
        std::fs::write(dir.path().join(WEIGHTS), bytes).unwrap();
        let files = ModelFiles::open(&crate::config::ModelSource::Directory(dir.path().into())).unwrap();
        (dir, files)
    }

    fn f32s(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|x| x.to_le_bytes()).collect()
    }

    #[test]
    fn a_tensor_in_the_served_dtype_is_not_copied() {
        let (_dir, files) = file(&[("w", Dtype::F32, vec![2, 2], f32s(&[1.0, 2.0, 3.0, 4.0]))]);
        let weights = Weights::open(&files, Placement { device: Device::Cpu, kind: Kind::Float }).unwrap();
        let tensor = weights.tensor("w", &[2, 2]).unwrap();
        let map = weights.bytes.as_ptr_range();
        assert!(map.contains(&tensor.data_ptr().cast_const().cast()), "the tensor lies outside the map");
        assert_eq!(Vec::<f32>::try_from(tensor.view([-1])).unwrap(), [1.0, 2.0, 3.0, 4.0]);
        let half = Weights::open(&files, Placement { device: Device::Cpu, kind: Kind::BFloat16 })
            .unwrap()
            .tensor("w", &[2, 2])
            .unwrap();
        assert_eq!(half.kind(), Kind::BFloat16);
    }

    #[test]
    fn errors_name_file_tensor_and_both_shapes() {
        let (_dir, files) = file(&[
            ("w", Dtype::F32, vec![2, 2], f32s(&[1.0, 2.0, 3.0, 4.0])),
            ("ids", Dtype::I64, vec![1], vec![0; 8]),
        ]);
        let weights = Weights::open(&files, Placement { device: Device::Cpu, kind: Kind::Float }).unwrap();
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
        let files = ModelFiles::open(&crate::config::ModelSource::Directory(dir.path().into())).unwrap();
        assert!(matches!(
            Weights::open(&files, Placement { device: Device::Cpu, kind: Kind::Float }),
            Err(ModelError::NoFile { .. })
        ));
        for bytes in [&b"short"[..], &[255; 64], b"\x02\0\0\0\0\0\0\0{}trailing"] {
            std::fs::write(dir.path().join(WEIGHTS), bytes).unwrap();
            assert!(matches!(
                Weights::open(&files, Placement { device: Device::Cpu, kind: Kind::Float }),
                Err(ModelError::Weights { .. } | ModelError::Io { .. })
            ));
        }
    }
}
