//! What libtorch has for C++ alone, so that `tch` does not reach it: `libtorch.cpp`.

use std::ffi::{CStr, c_char, c_void};

use tch::{TchError, Tensor};

/// What went wrong, cut off behind so many bytes.
const MESSAGE_BYTES: usize = 512;

// Tensors are libtorch's own `at::Tensor`, as in `tch`.
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

/// `matrix` `[outputs, inputs]`, on the CPU, in oneDNN's order.
///
/// # Errors
/// When oneDNN has none for it on this processor, or memory is exhausted.
pub fn onednn_pack(matrix: &Tensor) -> Result<Tensor, TchError> {
    let matrix = matrix.as_ptr().cast();
    // SAFETY: A living tensor, which is only read.
    give(|message, room| unsafe { sidelens_onednn_pack(matrix, message, room) })
}

/// `x W^T` of `x` `[.., inputs]` and the `packed` W, and `bias` `[outputs]` if there is one: `[.., outputs]`.
///
/// # Errors
/// When memory is exhausted.
pub fn onednn_multiply(x: &Tensor, packed: &Tensor, bias: Option<&Tensor>) -> Result<Tensor, TchError> {
    let bias = bias.map_or(std::ptr::null(), |bias| bias.as_ptr().cast());
    let (x, packed) = (x.as_ptr().cast(), packed.as_ptr().cast());
    // SAFETY: Living tensors, which are only read; null stands for no bias.
    give(|message, room| unsafe { sidelens_onednn_multiply(x, packed, bias, message, room) })
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
