//! MKL's order.

use std::{
    ffi::{c_float, c_int},
    sync::LazyLock,
};

use memmap2::MmapMut;
use tch::{TchError, Tensor};

use super::map;

/// Rows that MKL chooses its order for: eight pictures of a ViT-B/32. Measured, this order serves one row as well as
/// a thousand, where the order for few rows is slow for many.
const ROWS: c_int = 400;

/// cblas.h: `CblasRowMajor`, `CblasNoTrans`, `CblasTrans`, `CblasPacked`, `CblasBMatrix`.
const ROW_MAJOR: c_int = 101;
const AS_IT_IS: c_int = 111;
const TRANSPOSED: c_int = 112;
const PACKED: c_int = 151;
const RIGHT_MATRIX: c_int = 162;

/// A matrix `[outputs, inputs]` in fp32, to be multiplied from the right, transposed.
pub struct Matrix {
    mkl: &'static Mkl,
    inputs: c_int,
    outputs: c_int,
    /// What MKL asks for is two to five times what it writes; pages that are never touched take no memory.
    packed: MmapMut,
}

/// MKL's functions, in its 32-bit interface.
struct Mkl {
    size: unsafe extern "C" fn(c_int, c_int, c_int, c_int) -> usize,
    pack: unsafe extern "C" fn(
        c_int,
        c_int,
        c_int,
        c_int,
        c_int,
        c_int,
        c_float,
        *const c_float,
        c_int,
        *mut c_float,
    ),
    compute: unsafe extern "C" fn(
        c_int,
        c_int,
        c_int,
        c_int,
        c_int,
        c_int,
        *const c_float,
        c_int,
        *const c_float,
        c_int,
        c_float,
        *mut c_float,
        c_int,
    ),
}

static MKL: LazyLock<Option<Mkl>> = LazyLock::new(|| {
    #[cfg(unix)]
    {
        let process = libloading::os::unix::Library::this();
        // SAFETY: These are the functions of mkl_cblas.h with these names, as libtorch is linked with its 32-bit
        // interface (`mkl_intel_lp64`). They stay loaded as long as libtorch, whose dependants never unload it.
        unsafe {
            Some(Mkl {
                size: *process.get(c"cblas_sgemm_pack_get_size").ok()?,
                pack: *process.get(c"cblas_sgemm_pack").ok()?,
                compute: *process.get(c"cblas_sgemm_compute").ok()?,
            })
        }
    }
    #[cfg(not(unix))]
    None
});

/// Whether this libtorch hands on the MKL in it.
pub fn is_available() -> bool {
    MKL.is_some()
}

impl Matrix {
    /// Packs `matrix` `[outputs, inputs]`, contiguous, in fp32 and on the CPU, for products of as many threads as
    /// libtorch has now. Fewer are as fast; MKL would not share a matrix out to more.
    ///
    /// # Errors
    /// When libtorch is without MKL, or memory is exhausted.
    pub fn new(matrix: &Tensor) -> Result<Self, TchError> {
        let mkl = MKL.as_ref().ok_or_else(|| TchError::Kind("libtorch is without MKL".into()))?;
        let (outputs, inputs) = matrix.size2()?;
        let (outputs, inputs) = (as_int(outputs)?, as_int(inputs)?);
        // SAFETY: A function of numbers.
        let mut packed = map(unsafe { (mkl.size)(RIGHT_MATRIX, ROWS, outputs, inputs) })?;
        // SAFETY: `matrix` is contiguous with `outputs * inputs` floats, `packed` as large as MKL asks, on a page of
        // its own.
        unsafe {
            (mkl.pack)(
                ROW_MAJOR,
                RIGHT_MATRIX,
                TRANSPOSED,
                ROWS,
                outputs,
                inputs,
                1.0,
                matrix.data_ptr().cast_const().cast(),
                inputs,
                packed.as_mut_ptr().cast(),
            );
        }
        Ok(Self { mkl, inputs, outputs, packed })
    }

    /// `keep * into + x W^T`, written over `into`.
    ///
    /// # Errors
    /// When there are more rows than MKL counts.
    ///
    /// # Safety
    /// `x` is `[.., inputs]` and `into` `[.., outputs]`, of as many rows, both contiguous, in fp32 and on the CPU. Nobody
    /// else holds `into`.
    pub unsafe fn multiply(&self, x: &Tensor, into: &Tensor, keep: c_float) -> Result<(), TchError> {
        let rows = as_int(x.size().iter().rev().skip(1).product())?;
        // SAFETY: Three blocks of floats, of the sizes given, the matrix as `new` packed it. It and `x` are only read.
        unsafe {
            (self.mkl.compute)(
                ROW_MAJOR,
                AS_IT_IS,
                PACKED,
                rows,
                self.outputs,
                self.inputs,
                x.data_ptr().cast_const().cast(),
                self.inputs,
                self.packed.as_ptr().cast(),
                self.inputs,
                keep,
                into.data_ptr().cast(),
                self.outputs,
            );
        }
        Ok(())
    }
}

fn as_int(n: i64) -> Result<c_int, TchError> {
    c_int::try_from(n).map_err(|_| TchError::Shape(format!("{n} is more than MKL's 32 bits count")))
}
