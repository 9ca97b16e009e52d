//! Matrix product and layer norm.

use tch::{Device, Kind, TchError, Tensor};

use super::packed::Packed;
use crate::model::{ModelError, Weights};

/// `x W^T + b`.
pub struct Linear {
    weight: Matrix,
    bias: Option<Tensor>,
}

/// `W`, `[outputs, inputs]`.
enum Matrix {
    /// As it is stored.
    Stored(Tensor),
    /// As it is multiplied.
    Packed(Packed),
}

impl Matrix {
    /// The tensor `name`, `[outputs, ..]`, whose other dimensions together are the inputs, each entry times `factor`.
    fn load(weights: &Weights, name: &str, shape: &[i64], factor: f64) -> Result<Self, ModelError> {
        let failed = |error: TchError| ModelError::torch(name, &error);
        if !Linear::packs(weights) {
            let weight = weights.scaled(name, shape, factor)?;
            return weight.f_flatten(1, -1).map(Self::Stored).map_err(failed);
        }
        let stored = weights.stored(name, shape)?;
        let packed = stored.f_flatten(1, -1).and_then(|matrix| Packed::new(&matrix, factor));
        weights.let_go(name);
        packed.map(Self::Packed).map_err(failed)
    }
}

impl Linear {
    /// Whether matrices of these weights are packed.
    pub fn packs(weights: &Weights) -> bool {
        weights.stay_in_file() && Packed::is_available()
    }

    /// `{name}.weight` `[outputs, inputs]` and `{name}.bias` `[outputs]`.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape.
    pub fn load(weights: &Weights, name: &str, inputs: i64, outputs: i64) -> Result<Self, ModelError> {
        Self::load_scaled(weights, name, inputs, outputs, [1.0, 1.0])
    }

    /// As [`Self::load`], weight and bias each times a factor.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape.
    pub fn load_scaled(
        weights: &Weights,
        name: &str,
        inputs: i64,
        outputs: i64,
        [by_weight, by_bias]: [f64; 2],
    ) -> Result<Self, ModelError> {
        let bias = Some(weights.scaled(&format!("{name}.bias"), &[outputs], by_bias)?);
        let weight = Matrix::load(weights, &format!("{name}.weight"), &[outputs, inputs], by_weight)?;
        Ok(Self { weight, bias })
    }

    /// `{name}.weight` `[outputs, inputs]` alone.
    ///
    /// # Errors
    /// When the tensor is missing or has another shape.
    pub fn load_without_bias(
        weights: &Weights,
        name: &str,
        inputs: i64,
        outputs: i64,
    ) -> Result<Self, ModelError> {
        let weight = Matrix::load(weights, &format!("{name}.weight"), &[outputs, inputs], 1.0)?;
        Ok(Self { weight, bias: None })
    }

    /// Of a convolution whose stride is its kernel, the product with one patch: `{name}.weight` of this `shape`,
    /// `[outputs, channels, height, width]`, and, if `has_bias`, `{name}.bias` `[outputs]`.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape.
    pub fn load_kernel(
        weights: &Weights,
        name: &str,
        shape: [i64; 4],
        has_bias: bool,
    ) -> Result<Self, ModelError> {
        let bias = has_bias.then(|| weights.tensor(&format!("{name}.bias"), &shape[..1])).transpose()?;
        Ok(Self { weight: Matrix::load(weights, &format!("{name}.weight"), &shape, 1.0)?, bias })
    }

    /// `weight` `[outputs, inputs]` and `bias` `[outputs]`.
    ///
    /// # Errors
    /// When memory is exhausted.
    pub fn new(weight: Tensor, bias: Option<Tensor>) -> Result<Self, TchError> {
        let packs = (weight.kind(), weight.device()) == (Kind::Float, Device::Cpu) && Packed::is_available();
        let weight = if packs { Matrix::Packed(Packed::new(&weight, 1.0)?) } else { Matrix::Stored(weight) };
        Ok(Self { weight, bias })
    }

    /// Three that one matrix `weight` `[3 * outputs, inputs]` and, if there is one, one `bias` `[3 * outputs]` hold, under
    /// their full names, one after another; each packed for itself.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape, or [`Self::packs`] is not so.
    pub fn pack_three(
        weights: &Weights,
        weight: &str,
        bias: Option<&str>,
        inputs: i64,
        outputs: i64,
    ) -> Result<[Self; 3], ModelError> {
        let matrix = weights.stored(weight, &[3 * outputs, inputs])?;
        let offset = bias.map(|bias| weights.tensor(bias, &[3 * outputs])).transpose()?;
        let part = |n: i64| {
            let rows = |tensor: &Tensor| tensor.f_narrow(0, n * outputs, outputs);
            let bias = offset.as_ref().map(rows).transpose()?;
            Ok(Self { weight: Matrix::Packed(Packed::new(&rows(&matrix)?, 1.0)?), bias })
        };
        let failed = |error: TchError| ModelError::torch(weight, &error);
        let parts = [part(0).map_err(failed)?, part(1).map_err(failed)?, part(2).map_err(failed)?];
        weights.let_go(weight);
        Ok(parts)
    }

    /// The product of `parts`, which have the same inputs, one after another: one matrix product for all. All of
    /// them have a bias, or none has.
    ///
    /// # Errors
    /// When libtorch fails, or one is packed.
    pub fn stack(parts: &[Self]) -> Result<Self, TchError> {
        let matrices = parts.iter().map(Self::stored).collect::<Result<Vec<_>, _>>()?;
        let weight = Matrix::Stored(Tensor::f_cat(&matrices, 0)?);
        let biases: Vec<_> = parts.iter().filter_map(|part| part.bias.as_ref()).collect();
        debug_assert!(biases.is_empty() || biases.len() == parts.len());
        let bias = if biases.is_empty() { None } else { Some(Tensor::f_cat(&biases, 0)?) };
        Ok(Self { weight, bias })
    }

    /// The outputs from `first` on, `n` of them, without a copy.
    ///
    /// # Errors
    /// When there are not as many, or it is packed.
    pub fn narrow(&self, first: i64, n: i64) -> Result<Self, TchError> {
        let rows = |tensor: &Tensor| tensor.f_narrow(0, first, n);
        let weight = Matrix::Stored(rows(self.stored()?)?);
        Ok(Self { weight, bias: self.bias.as_ref().map(rows).transpose()? })
    }

    fn stored(&self) -> Result<&Tensor, TchError> {
        match &self.weight {
            Matrix::Stored(weight) => Ok(weight),
            Matrix::Packed(packed) => Err(TchError::Kind(format!("{packed:?} has no rows"))),
        }
    }

    /// `sum + x W^T + b`: `[.., outputs]` and `[.., inputs]` to `[.., outputs]`.
    pub fn add_to(&self, sum: &Tensor, x: &Tensor) -> Result<Tensor, TchError> {
        match &self.weight {
            Matrix::Stored(_) => self.forward(x)?.f_add_(sum),
            Matrix::Packed(weight) => weight.add_product(sum, x, self.bias.as_ref()),
        }
    }

    /// `[.., inputs]` to `[.., outputs]`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor, TchError> {
        match &self.weight {
            Matrix::Stored(weight) => x.f_linear(weight, self.bias.as_ref()),
            Matrix::Packed(weight) => weight.multiply(x, self.bias.as_ref()),
        }
    }
}

/// Layer norm over the last dimension.
pub struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    eps: f64,
}

impl LayerNorm {
    /// `{name}.weight` and `{name}.bias`, both `[size]`.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape.
    pub fn load(weights: &Weights, name: &str, size: i64, eps: f64) -> Result<Self, ModelError> {
        // Checkpoints that once were TensorFlow's kept its names.
        let parts = match weights.has(&format!("{name}.gamma")) {
            true => ["gamma", "beta"],
            false => ["weight", "bias"],
        };
        let [weight, bias] = parts.map(|part| weights.tensor(&format!("{name}.{part}"), &[size]));
        Ok(Self { weight: weight?, bias: bias?, eps })
    }

    /// `[.., size]` to the same shape.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor, TchError> {
        x.f_layer_norm(self.weight.size(), Some(&self.weight), Some(&self.bias), self.eps, true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::ModelSource,
        model::{ModelFiles, Placement},
    };
    use safetensors::{Dtype, tensor::TensorView};

    /// The bias lies in the mapped file, which a product written over it would not survive.
    #[test]
    fn bias_and_sum_are_added_to_one_row_and_to_many_and_stay_what_they_are() {
        let dir = tempfile::tempdir().unwrap();
        let bytes = |values: &[f32]| values.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<_>>();
        let (weight, bias) = (bytes(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]), bytes(&[10.0, 20.0, 30.0]));
        let tensors = [("l.weight", vec![3, 2], &weight), ("l.bias", vec![3], &bias)];
        let views =
            tensors.map(|(name, shape, data)| (name, TensorView::new(Dtype::F32, shape, data).unwrap()));
        std::fs::write(dir.path().join("model.safetensors"), safetensors::serialize(views, None).unwrap())
            .unwrap();
        let files = ModelFiles::open(&ModelSource::Directory(dir.path().into())).unwrap();
        for kind in [Kind::Float, Kind::BFloat16] {
            let weights = Weights::open(&files, Placement { device: Device::Cpu, kind }).unwrap();
            let values = |y: Tensor| Vec::<f32>::try_from(y.to_kind(Kind::Float).view([-1])).unwrap();
            for (linear, product) in [
                (Linear::load(&weights, "l", 2, 3).unwrap(), [13.0, 27.0, 41.0]),
                (Linear::load_without_bias(&weights, "l", 2, 3).unwrap(), [3.0, 7.0, 11.0]),
            ] {
                for rows in [1_i64, 1, 3] {
                    let x = Tensor::ones([1, rows, 2], (kind, Device::Cpu));
                    let sum = Tensor::ones([1, rows, 3], (kind, Device::Cpu));
                    assert_eq!(values(linear.forward(&x).unwrap()), product.repeat(rows as usize));
                    for _ in 0..2 {
                        let expected = product.map(|x| x + 1.0).repeat(rows as usize);
                        assert_eq!(values(linear.add_to(&sum, &x).unwrap()), expected);
                    }
                }
            }
        }
    }
}
