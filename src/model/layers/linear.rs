//! Matrix product and layer norm.

use tch::{TchError, Tensor};

use crate::model::{ModelError, Weights};

/// `x W^T + b`.
pub struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Linear {
    /// `weight` `[outputs, inputs]` and `bias` `[outputs]`, as they are.
    pub fn new(weight: Tensor, bias: Option<Tensor>) -> Self {
        Self { weight, bias }
    }

    /// `{name}.weight` `[outputs, inputs]` and `{name}.bias` `[outputs]`.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape.
    pub fn load(weights: &Weights, name: &str, inputs: i64, outputs: i64) -> Result<Self, ModelError> {
        let bias = Some(weights.tensor(&format!("{name}.bias"), &[outputs])?);
        Ok(Self { bias, ..Self::load_without_bias(weights, name, inputs, outputs)? })
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
        Ok(Self {
            weight: weights.scaled(&format!("{name}.weight"), &[outputs, inputs], by_weight)?,
            bias: Some(weights.scaled(&format!("{name}.bias"), &[outputs], by_bias)?),
        })
    }

    /// The product of `parts`, which have the same inputs, one after another: one matrix product for all. All of
    /// them have a bias, or none has.
    ///
    /// # Errors
    /// When libtorch fails.
    pub fn stack(parts: &[Self]) -> Result<Self, TchError> {
        let weight = Tensor::f_cat(&parts.iter().map(|part| &part.weight).collect::<Vec<_>>(), 0)?;
        let biases: Vec<_> = parts.iter().filter_map(|part| part.bias.as_ref()).collect();
        debug_assert!(biases.is_empty() || biases.len() == parts.len());
        let bias = if biases.is_empty() { None } else { Some(Tensor::f_cat(&biases, 0)?) };
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
        Ok(Self { weight: weights.tensor(&format!("{name}.weight"), &[outputs, inputs])?, bias: None })
    }

    /// The outputs from `first` on, `n` of them, without a copy.
    ///
    /// # Errors
    /// When there are not as many.
    pub fn narrow(&self, first: i64, n: i64) -> Result<Self, TchError> {
        let rows = |tensor: &Tensor| tensor.f_narrow(0, first, n);
        Ok(Self { weight: rows(&self.weight)?, bias: self.bias.as_ref().map(rows).transpose()? })
    }

    /// `[.., inputs]` to `[.., outputs]`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor, TchError> {
        x.f_linear(&self.weight, self.bias.as_ref())
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
