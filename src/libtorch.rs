//! What libtorch has for C++ alone, so that `tch` does not reach it: `libtorch.cpp`.

use std::ffi::{CStr, c_char, c_void};

use tch::{TchError, Tensor};

/// What went wrong, cut off behind so many bytes.
const MESSAGE_BYTES: usize = 512;
/// The same of what libtorch was built with, which is some two thousand.
const CONFIG_BYTES: usize = 16 << 10;

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
    fn sidelens_inference_begin() -> *mut c_void;
    fn sidelens_inference_end(mode: *mut c_void);
    fn sidelens_cuda_choose_kernels(message: *mut c_char, room: usize) -> bool;
    fn sidelens_show_config(
        text: *mut c_char,
        room: usize,
        message: *mut c_char,
        message_room: usize,
    ) -> bool;
    fn sidelens_cuda_enter(index: i8, message: *mut c_char, room: usize) -> bool;
    fn sidelens_cuda_synchronize(index: i8, message: *mut c_char, room: usize) -> bool;
    fn sidelens_cuda_empty_cache(message: *mut c_char, room: usize) -> bool;
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

/// Until dropped, what this thread computes is prepared for no gradient, which costs less than
/// [`tch::no_grad_guard`], and can only be used in the same way.
#[must_use]
pub struct Inference {
    /// libtorch's own guard, which is this thread's.
    mode: *mut c_void,
}

impl Inference {
    /// Begins.
    pub fn begin() -> Self {
        // SAFETY: It asks nothing of its caller.
        Self { mode: unsafe { sidelens_inference_begin() } }
    }
}

impl Drop for Inference {
    fn drop(&mut self) {
        // SAFETY: It was begun on this thread, which a pointer never leaves, and ends once.
        unsafe { sidelens_inference_end(self.mode) }
    }
}

/// Has CUDA compute attention without cuDNN, and convolutions of fp32 in fp32, in the whole process and from now on.
///
/// # Errors
/// When libtorch fails.
pub fn cuda_choose_kernels() -> Result<(), TchError> {
    // SAFETY: It asks nothing of its caller.
    done(|message, room| unsafe { sidelens_cuda_choose_kernels(message, room) })
}

/// What libtorch was built with, in its own words; its CUDA half included where that is open.
///
/// # Errors
/// When libtorch fails.
pub fn show_config() -> Result<String, TchError> {
    let mut text = vec![0_u8; CONFIG_BYTES];
    let (start, n) = (text.as_mut_ptr().cast(), text.len());
    // SAFETY: It writes to these bytes, and an end after what it writes.
    done(|message, room| unsafe { sidelens_show_config(start, n, message, room) })?;
    let text = CStr::from_bytes_until_nul(&text).unwrap_or_default();
    Ok(text.to_string_lossy().into_owned())
}

/// Makes the CUDA device `index` the calling thread's, and lets what the thread does there run beside what others do, once
/// all that is under way there now is done. What it copies back has to be waited for, as `to_device` does.
///
/// # Errors
/// When there is no such device, or it fails.
pub fn cuda_enter(index: usize) -> Result<(), TchError> {
    let index = device_index(index)?;
    // SAFETY: It asks nothing of its caller.
    done(|message, room| unsafe { sidelens_cuda_enter(index, message, room) })
}

/// Waits for all that is under way on the CUDA device `index`.
///
/// # Errors
/// When there is no such device, or it is lost: some errors fail every later call of the process, too.
pub fn cuda_synchronize(index: usize) -> Result<(), TchError> {
    let index = device_index(index)?;
    // SAFETY: It asks nothing of its caller.
    done(|message, room| unsafe { sidelens_cuda_synchronize(index, message, room) })
}

/// Gives the memory of CUDA devices back that libtorch keeps for later.
///
/// # Errors
/// When there is no CUDA device, or one fails.
pub fn cuda_empty_cache() -> Result<(), TchError> {
    // SAFETY: It asks nothing of its caller.
    done(|message, room| unsafe { sidelens_cuda_empty_cache(message, room) })
}

fn device_index(index: usize) -> Result<i8, TchError> {
    i8::try_from(index).map_err(|_| TchError::Torch(format!("no CUDA device has the number {index}")))
}

fn done(operation: impl FnOnce(*mut c_char, usize) -> bool) -> Result<(), TchError> {
    attempt(operation, |done| *done).map(drop)
}

/// The tensor that `operation` makes, or why it made none.
fn give(operation: impl FnOnce(*mut c_char, usize) -> *mut c_void) -> Result<Tensor, TchError> {
    let tensor = attempt(operation, |tensor| !tensor.is_null())?;
    // SAFETY: An `at::Tensor` from `new`, which nobody else holds.
    Ok(unsafe { Tensor::from_ptr(tensor.cast()) })
}

/// What `operation` gives, unless it leaves a message instead.
fn attempt<T>(
    operation: impl FnOnce(*mut c_char, usize) -> T,
    is_given: impl FnOnce(&T) -> bool,
) -> Result<T, TchError> {
    let mut message = [0_u8; MESSAGE_BYTES];
    let given = operation(message.as_mut_ptr().cast(), message.len());
    if is_given(&given) {
        return Ok(given);
    }
    let reason = CStr::from_bytes_until_nul(&message).unwrap_or_default();
    Err(TchError::Torch(reason.to_string_lossy().into_owned()))
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;
    use crate::runtime::cuda_devices;

    #[test]
    fn what_is_computed_meanwhile_is_for_no_gradient() {
        let weight = Tensor::ones([2], (Kind::Float, Device::Cpu)).set_requires_grad(true);
        let product = || (&weight * 2.0).requires_grad();
        assert!(product());
        let inference = Inference::begin();
        assert!(!product());
        drop(inference);
        assert!(product());
    }

    #[test]
    fn what_cannot_be_done_is_an_error_that_says_why() {
        let bytes = Tensor::zeros([2, 2], (Kind::Uint8, Device::Cpu));
        assert!(!onednn_pack(&bytes).unwrap_err().to_string().is_empty());
        assert!(cuda_enter(1000).unwrap_err().to_string().contains("1000"));
        let attempts = [|| cuda_enter(0), || cuda_synchronize(0), cuda_empty_cache];
        let has_cuda = cuda_devices().is_ok();
        for attempt in attempts {
            match attempt() {
                Ok(()) => assert!(has_cuda),
                Err(error) => {
                    assert!(!has_cuda && error.to_string().to_lowercase().contains("cuda"), "{error}")
                }
            }
        }
        cuda_choose_kernels().unwrap();
    }

    #[test]
    fn libtorch_says_what_it_was_built_with() {
        let config = show_config().unwrap();
        assert!(config.starts_with("PyTorch built with:") && config.contains("C++ Version"), "{config}");
    }
}
