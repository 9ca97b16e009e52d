//! oneDNN's order.

use std::sync::LazyLock;

use tch::{Device, Kind, TchError, Tensor};

use crate::libtorch::{onednn_multiply, onednn_pack};

/// A matrix that only products can read.
pub struct Matrix(Tensor);

/// Whether this libtorch packs matrices of `kind` on this processor: bf16 wants AVX-512.
pub fn is_available(kind: Kind) -> bool {
    static KINDS: LazyLock<[bool; 2]> = LazyLock::new(|| {
        let packs = |kind| {
            let trial = Tensor::f_ones([1, 1], (kind, Device::Cpu)).and_then(|matrix| Matrix::new(&matrix));
            trial.is_ok()
        };
        // Nobody has tried it on others.
        [Kind::Float, Kind::BFloat16].map(|kind| cfg!(target_arch = "x86_64") && packs(kind))
    });
    match kind {
        Kind::Float => KINDS[0],
        Kind::BFloat16 => KINDS[1],
        _ => false,
    }
}

impl Matrix {
    /// Packs `matrix` `[outputs, inputs]`, on the CPU.
    ///
    /// # Errors
    /// When oneDNN cannot, or memory is exhausted.
    pub fn new(matrix: &Tensor) -> Result<Self, TchError> {
        onednn_pack(matrix).map(Self)
    }

    /// `x W^T`, and `bias` `[outputs]` if there is one: `[.., inputs]` to `[.., outputs]`.
    ///
    /// # Errors
    /// When memory is exhausted.
    pub fn multiply(&self, x: &Tensor, bias: Option<&Tensor>) -> Result<Tensor, TchError> {
        onednn_multiply(x, &self.0, bias)
    }
}
