//! A reader of pickles that can build a state dict and nothing else.
//!
//! A pickle is a program for a small stack machine, and Python's machine imports and calls whatever the program
//! names. This one knows the opcodes that PyTorch writes for tensors, and a handful of names; they are never
//! looked up, only compared. Whatever else a file asks for ends the reading.
//!
//! Values live in flat lists and refer to each other by position, so that no nesting can exhaust the stack and
//! sharing copies nothing; strings point into the file. Memory is thus bounded by the number of opcodes.
//!
//! Source: Python's `Lib/pickletools.py` (the opcodes), PyTorch 2.11 `torch/_utils.py` and
//! `torch/serialization.py` (what is written).

mod machine;
mod names;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, ops::Range};

use safetensors::Dtype;

/// Why a pickle is not read.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum PickleError {
    /// It asks for something that Python would import, call or look up.
    #[error("it asks for {0}")]
    Code(String),
    /// It ends too early.
    #[error("it ends at byte {0}, in the middle; download the file again")]
    Truncated(usize),
    /// It is not what PyTorch writes.
    #[error("at byte {at}: {what}")]
    Malformed {
        /// The opcode's place.
        at: usize,
        /// What is wrong.
        what: String,
    },
    /// It has more opcodes than any state dict needs.
    #[error("it has more than {0} opcodes")]
    Opcodes(usize),
    /// It holds more at a time than any state dict needs.
    #[error("it stacks more than {0} values")]
    Stack(usize),
    /// It holds something else.
    #[error("it holds no state dict: no tensors by name, neither on top nor in `state_dict` or `model`")]
    NoStateDict,
}

/// A tensor as the pickle describes it; `entries` was checked to lie within the storage's claimed length.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tensor<'a> {
    /// The number format.
    pub dtype: Dtype,
    /// The name of the storage that holds the numbers.
    pub storage: &'a str,
    /// How many entries of `dtype` the storage is said to have.
    pub storage_len: i64,
    /// From the first entry to one past the last, in the storage.
    pub entries: Range<i64>,
    /// Entries per dimension.
    pub shape: Vec<i64>,
    /// From one entry of a dimension to the next, in entries; never negative.
    pub strides: Vec<i64>,
}

/// The tensors of the state dict in `pickle`, by name.
///
/// # Errors
/// [`PickleError::Code`] when it asks for anything but tensors and plain values; the others when it is broken.
pub fn read(pickle: &[u8]) -> Result<BTreeMap<&str, Tensor<'_>>, PickleError> {
    machine::Machine::new(pickle).run()
}

/// A storage that the pickle refers to.
#[derive(Debug, Clone, Copy)]
struct Storage<'a> {
    dtype: Dtype,
    key: &'a str,
    len: i64,
}

/// The tensor that `_rebuild_tensor_v2` would make; the text says what is wrong with it.
fn tensor<'a>(
    storage: Storage<'a>,
    offset: i64,
    shape: Vec<i64>,
    strides: Vec<i64>,
) -> Result<Tensor<'a>, String> {
    let outside = || {
        format!(
            "a tensor of shape {shape:?}, strides {strides:?} and offset {offset} does not fit its storage of {} \
             entries",
            storage.len
        )
    };
    let entries = extent(offset, &shape, &strides)
        .filter(|(entries, count)| entries.end <= storage.len && *count <= storage.len)
        .map(|(entries, _)| entries)
        .ok_or_else(outside)?;
    Ok(Tensor {
        dtype: storage.dtype,
        storage: storage.key,
        storage_len: storage.len,
        entries,
        shape,
        strides,
    })
}

/// The entries between a tensor's first and last, and how many it has; none when a number is negative or too
/// large to count.
fn extent(offset: i64, shape: &[i64], strides: &[i64]) -> Option<(Range<i64>, i64)> {
    if shape.len() != strides.len() || offset < 0 || shape.iter().chain(strides).any(|&n| n < 0) {
        return None;
    }
    if shape.contains(&0) {
        return Some((offset..offset, 0));
    }
    let count = shape.iter().try_fold(1_i64, |count, &n| count.checked_mul(n))?;
    let last = shape
        .iter()
        .zip(strides)
        .try_fold(offset, |last, (&n, &stride)| last.checked_add((n - 1).checked_mul(stride)?))?;
    Some((offset..last.checked_add(1)?, count))
}
