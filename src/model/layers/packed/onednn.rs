//! oneDNN's order.

use std::{
    ffi::{CStr, c_char, c_void},
    sync::LazyLock,
};

use tch::{Device, Kind, TchError, Tensor};

/// What went wrong, cut off behind so many bytes.
const MESSAGE_BYTES: usize = 512;

// onednn.cpp; tensors are libtorch's own `at::Tensor`, as in `tch`.
unsafe extern "C" {
    fn sidelens_onednn_pack(matrix: *const c_void, message: *mut c_char, room: usize) -> *mut c_void;
    fn sidelens_onednn_multiply(
        x: *const c_void,
        packed: *const c_void,
        bias: *const c_void,
        message: *mut c_char,
        room: usize,
    ) -> *mut c_void;
}

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
        let matrix = matrix.as_ptr().cast();
        // SAFETY: A living tensor, which is only read.
        give(|message, room| unsafe { sidelens_onednn_pack(matrix, message, room) }).map(Self)
    }

    /// `x W^T`, and `bias` `[outputs]` if there is one: `[.., inputs]` to `[.., outputs]`.
    ///
    /// # Errors
    /// When memory is exhausted.
    pub fn multiply(&self, x: &Tensor, bias: Option<&Tensor>) -> Result<Tensor, TchError> {
        let bias = bias.map_or(std::ptr::null(), |bias| bias.as_ptr().cast());
        let (x, matrix) = (x.as_ptr().cast(), self.0.as_ptr().cast());
        // SAFETY: Living tensors, which are only read; null stands for no bias.
        give(|message, room| unsafe { sidelens_onednn_multiply(x, matrix, bias, message, room) })
    }
}

/// The tensor that `operation` makes, or why it made none.
fn give(operation: impl FnOnce(*mut c_char, usize) -> *mut c_void) -> Result<Tensor, TchError> {
    let mut message = [0_u8; MESSAGE_BYTES];
    let tensor = operation(message.as_mut_ptr().cast(), message.len());
    if tensor.is_null() {
        let reason = CStr::from_bytes_until_nul(&message).unwrap_or_default();
        return Err(TchError::Torch(reason.to_string_lossy().into_owned()));
    }
    // SAFETY: An `at::Tensor` from `new`, which nobody else holds.
    Ok(unsafe { Tensor::from_ptr(tensor.cast()) })
}
