//! Matrix product and layer norm.

use std::ops::Range;

use tch::{TchError, Tensor};

use super::packed::Packed;
use crate::model::{ModelError, Placement, Weights};

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
    /// The tensors `names`, each `[outputs, ..]`, whose other dimensions together are the inputs, one below another, each
    /// entry times `factor`.
    fn load(weights: &Weights, names: &[String], shape: &[i64], factor: f64) -> Result<Self, ModelError> {
        let failed = |error: TchError| ModelError::torch(&names[0], &error);
        let flat = |stored: Tensor| stored.f_flatten(1, -1).map_err(failed);
        let matrix = if Linear::packs(weights) {
            let parts = names.iter().map(|name| flat(weights.stored(name, shape)?));
            let parts = parts.collect::<Result<Vec<_>, _>>()?;
            Self::Packed(Packed::new(&parts, factor, weights.placement().kind).map_err(failed)?)
        } else {
            let parts = names.iter().map(|name| flat(weights.scaled(name, shape, factor)?));
            let mut parts = parts.collect::<Result<Vec<_>, _>>()?;
            if parts.len() == 1 || weights.placement() == Placement::NOWHERE {
                return Ok(Self::Stored(parts.remove(0)));
            }
            Self::Stored(Tensor::f_cat(&parts, 0).map_err(failed)?)
        };
        names.iter().for_each(|name| weights.let_go(name));
        Ok(matrix)
    }
}

impl Linear {
    /// Whether matrices of these weights are packed.
    pub fn packs(weights: &Weights) -> bool {
        Packed::is_available(weights.placement())
    }

    /// `{name}.weight` `[outputs, inputs]` and `{name}.bias` `[outputs]`.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape.
    pub fn load(weights: &Weights, name: &str, inputs: i64, outputs: i64) -> Result<Self, ModelError> {
        Self::load_stacked(weights, &[name], true, inputs, outputs)
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
        let weight = Matrix::load(weights, &[format!("{name}.weight")], &[outputs, inputs], by_weight)?;
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
        Self::load_stacked(weights, &[name], false, inputs, outputs)
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
        Ok(Self { weight: Matrix::load(weights, &[format!("{name}.weight")], &shape, 1.0)?, bias })
    }

    /// Several with the same inputs, one after another in one product: of each of the `names` `{name}.weight`
    /// `[outputs, inputs]` and, if `has_bias`, `{name}.bias` `[outputs]`.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape.
    pub fn load_stacked(
        weights: &Weights,
        names: &[&str],
        has_bias: bool,
        inputs: i64,
        outputs: i64,
    ) -> Result<Self, ModelError> {
        let tensors = |part: &str| names.iter().map(|name| format!("{name}.{part}")).collect::<Vec<_>>();
        let biases = if has_bias { tensors("bias") } else { Vec::new() };
        let biases = biases.iter().map(|name| weights.tensor(name, &[outputs]));
        let mut biases = biases.collect::<Result<Vec<_>, _>>()?;
        let bias = match biases.len() {
            0 | 1 => biases.pop(),
            _ => Some(Tensor::f_cat(&biases, 0).map_err(|error| ModelError::torch(names[0], &error))?),
        };
        Ok(Self { weight: Matrix::load(weights, &tensors("weight"), &[outputs, inputs], 1.0)?, bias })
    }

    /// The outputs `rows` of the matrix `weight` of this `shape`, `[outputs, inputs]`, and, if there is one, of `bias`
    /// `[outputs]`, under their full names.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape.
    pub fn load_rows(
        weights: &Weights,
        weight: &str,
        bias: Option<&str>,
        shape: [i64; 2],
        rows: Range<i64>,
    ) -> Result<Self, ModelError> {
        let failed = |error: TchError| ModelError::torch(weight, &error);
        let rows = |tensor: &Tensor| tensor.f_narrow(0, rows.start, rows.end - rows.start).map_err(failed);
        let bias = bias.map(|bias| rows(&weights.tensor(bias, &shape[..1])?)).transpose()?;
        let weight = if Self::packs(weights) {
            let part = rows(&weights.stored(weight, &shape)?)?;
            let packed = Packed::new(&[part], 1.0, weights.placement().kind).map_err(failed)?;
            weights.let_go(weight);
            Matrix::Packed(packed)
        } else {
            Matrix::Stored(rows(&weights.tensor(weight, &shape)?)?)
        };
        Ok(Self { weight, bias })
    }

    /// `weight` `[outputs, inputs]` and `bias` `[outputs]`.
    ///
    /// # Errors
    /// When memory is exhausted.
    pub fn new(weight: Tensor, bias: Option<Tensor>) -> Result<Self, TchError> {
        let on = Placement { device: weight.device(), kind: weight.kind() };
        let weight = match Packed::is_available(on) {
            true => Matrix::Packed(Packed::new(&[weight], 1.0, on.kind)?),
            false => Matrix::Stored(weight),
        };
        Ok(Self { weight, bias })
    }

    /// The outputs from `first` on, `n` of them, without a copy.
    ///
    /// # Errors
    /// When there are not as many, or it is packed.
    pub fn narrow(&self, first: i64, n: i64) -> Result<Self, TchError> {
        let rows = |tensor: &Tensor| tensor.f_narrow(0, first, n);
        match &self.weight {
            Matrix::Stored(weight) => {
                let bias = self.bias.as_ref().map(rows).transpose()?;
                Ok(Self { weight: Matrix::Stored(rows(weight)?), bias })
            }
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
    use crate::{config::ModelSource, model::ModelFiles};
    use safetensors::{Dtype, tensor::TensorView};
    use tch::{Device, Kind};

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
