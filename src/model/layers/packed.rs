//! Matrices in the order in which MKL multiplies them.
//!
//! A plain product first copies its weights into that order, every time. For a text of eight tokens this takes longer
//! than the product, for eight pictures still a sixth of it (docs/benchmarks.md). Weights do not change, so here they
//! are copied once, while loading. libtorch has no tensor for that which `tch` could reach, but it hands on the functions
//! of the MKL in it. Where it is built without (ARM), products stay plain.

use std::{
    ffi::{c_float, c_int},
    fmt, io,
    sync::LazyLock,
};

use memmap2::MmapMut;
use tch::{Device, Kind, TchError, Tensor};

/// Rows that MKL chooses its order for: eight pictures of a ViT-B/32. Measured, this order serves one row as well as
/// a thousand, where the order for few rows is slow for many.
const ROWS: c_int = 400;

/// cblas.h: `CblasRowMajor`, `CblasNoTrans`, `CblasTrans`, `CblasPacked`, `CblasBMatrix`.
const ROW_MAJOR: c_int = 101;
const AS_IT_IS: c_int = 111;
const TRANSPOSED: c_int = 112;
const PACKED: c_int = 151;
const RIGHT_MATRIX: c_int = 162;

/// A matrix `[outputs, inputs]` in fp32 on the CPU, to be multiplied from the right, transposed.
pub struct Packed {
    mkl: &'static Mkl,
    inputs: c_int,
    outputs: c_int,
    /// What MKL asks for is two to five times what it writes; pages that are never touched take no memory.
    matrix: MmapMut,
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

impl Packed {
    /// Whether this libtorch can.
    pub fn is_available() -> bool {
        MKL.is_some()
    }

    /// Packs `weight` `[outputs, inputs]`, of any dtype and on the CPU, each entry times `factor`, for products of as
    /// many threads as libtorch has now. Fewer are as fast; MKL would not share a matrix out to more.
    ///
    /// # Errors
    /// When libtorch is without MKL, the tensor is no matrix on the CPU, or memory is exhausted.
    pub fn new(weight: &Tensor, factor: f64) -> Result<Self, TchError> {
        let mkl = MKL.as_ref().ok_or_else(|| TchError::Kind("libtorch is without MKL".into()))?;
        let (outputs, inputs) = weight.size2()?;
        if weight.kind() != Kind::Float || weight.device() != Device::Cpu || !weight.is_contiguous() {
            return Self::of_converted(weight, factor);
        }
        let (outputs, inputs) = (as_int(outputs)?, as_int(inputs)?);
        // SAFETY: A function of numbers.
        let mut matrix = map(unsafe { (mkl.size)(RIGHT_MATRIX, ROWS, outputs, inputs) })?;
        // SAFETY: `weight` is contiguous with `outputs * inputs` floats, `matrix` as large as MKL asks, on a page of its
        // own.
        unsafe {
            (mkl.pack)(
                ROW_MAJOR,
                RIGHT_MATRIX,
                TRANSPOSED,
                ROWS,
                outputs,
                inputs,
                factor as c_float,
                weight.data_ptr().cast_const().cast(),
                inputs,
                matrix.as_mut_ptr().cast(),
            );
        }
        Ok(Self { mkl, inputs, outputs, matrix })
    }

    /// As [`Self::new`], by way of a contiguous copy in fp32. It is not libtorch's own: one large block after another from
    /// the allocator, with small ones in between that stay, and a model would be in memory twice.
    fn of_converted(weight: &Tensor, factor: f64) -> Result<Self, TchError> {
        let size = weight.size();
        let mut scratch = map(weight.numel() * size_of::<f32>())?;
        let block = scratch.as_mut_ptr();
        // SAFETY: The block is as large as the tensor, nobody else has it, and it outlives the tensor.
        let mut copy = unsafe { Tensor::f_from_blob(block, &size, &[size[1], 1], Kind::Float, Device::Cpu)? };
        copy.f_copy_(weight)?;
        Self::new(&copy, factor)
    }

    /// `x W^T`, and `bias` `[outputs]` if there is one: `[.., inputs]` to `[.., outputs]`.
    ///
    /// # Errors
    /// When shapes do not fit, or `x` is not in fp32 on the CPU.
    pub fn multiply(&self, x: &Tensor, bias: Option<&Tensor>) -> Result<Tensor, TchError> {
        let mut into = Tensor::f_empty(self.product_size(x), (Kind::Float, Device::Cpu))?;
        let keep = match bias {
            Some(bias) => {
                // A copy even of one row: expanded, that would be the bias itself, which may lie in a file.
                into.f_copy_(bias)?;
                1.0
            }
            None => 0.0,
        };
        self.compute(x, into, keep)
    }

    /// `sum + x W^T`, and `bias` if there is one: `[.., outputs]` and `[.., inputs]` to `[.., outputs]`. The product is
    /// added where the sum is made: one pass less.
    ///
    /// # Errors
    /// As [`Self::multiply`].
    pub fn add_product(&self, sum: &Tensor, x: &Tensor, bias: Option<&Tensor>) -> Result<Tensor, TchError> {
        let into = match bias {
            Some(bias) => sum.f_add(bias)?,
            None => sum.f_detach_copy()?,
        };
        self.compute(x, into, 1.0)
    }

    fn product_size(&self, x: &Tensor) -> Vec<i64> {
        let mut size = x.size();
        if let Some(last) = size.last_mut() {
            *last = i64::from(self.outputs);
        }
        size
    }

    /// `keep * into + x W^T`, written over `into`, which was just made and which nobody else holds.
    fn compute(&self, x: &Tensor, into: Tensor, keep: c_float) -> Result<Tensor, TchError> {
        let (x, into) = (plain(x)?, plain(&into)?);
        if x.size().last() != Some(&i64::from(self.inputs)) || into.size() != self.product_size(&x) {
            let sizes = (x.size(), into.size());
            return Err(TchError::Shape(format!("{:?} times {self:?} into {:?}", sizes.0, sizes.1)));
        }
        let rows = as_int(x.size().iter().rev().skip(1).product())?;
        // SAFETY: Three contiguous blocks of floats, of the sizes given, the matrix as `new` packed it. It and `x` are only
        // read; `into` is this call's own.
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
                self.matrix.as_ptr().cast(),
                self.inputs,
                keep,
                into.data_ptr().cast(),
                self.outputs,
            );
        }
        Ok(into)
    }
}

impl fmt::Debug for Packed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a packed matrix [{}, {}]", self.outputs, self.inputs)
    }
}

/// Memory that takes no more than what is written to. With huge pages it would take a tenth more, and no product is faster.
fn map(size: usize) -> Result<MmapMut, TchError> {
    let exhausted = |error: io::Error| {
        // The words by which `runtime` knows it.
        TchError::Torch(format!("can't allocate memory: {size} bytes to pack a matrix: {error}"))
    };
    let map = MmapMut::map_anon(size.max(1)).map_err(exhausted)?;
    #[cfg(target_os = "linux")]
    drop(map.advise(memmap2::Advice::NoHugePage));
    Ok(map)
}

/// The tensor as MKL reads it: itself, or a contiguous copy.
fn plain(tensor: &Tensor) -> Result<Tensor, TchError> {
    match (tensor.kind(), tensor.device()) {
        (Kind::Float, Device::Cpu) => tensor.f_contiguous(),
        other => Err(TchError::Kind(format!("{other:?} is not fp32 on the CPU"))),
    }
}

fn as_int(n: i64) -> Result<c_int, TchError> {
    c_int::try_from(n).map_err(|_| TchError::Shape(format!("{n} is more than MKL's 32 bits count")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draw(size: &[i64]) -> Tensor {
        Tensor::rand(size, (Kind::Float, Device::Cpu)) - 0.5
    }

    fn largest_difference(a: &Tensor, b: &Tensor) -> f64 {
        (a - b).abs().max().double_value(&[])
    }

    /// Else every product silently takes a fifth longer, and those of searches twice as long.
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    #[test]
    fn the_libtorch_that_is_pinned_hands_on_mkl() {
        assert!(Packed::is_available());
    }

    #[test]
    fn products_are_those_of_the_plain_matrix() {
        if !Packed::is_available() {
            return eprintln!("skipped: this libtorch is without MKL");
        }
        for (outputs, inputs) in [(1, 1), (7, 5), (64, 64), (65, 130), (512, 768), (3, 3072)] {
            let weight = draw(&[outputs, inputs]);
            let packed = Packed::new(&weight, 1.0).unwrap();
            for size in [vec![1], vec![3], vec![2, 50], vec![9, 50], vec![0], vec![2, 3, 4]] {
                let what = format!("{size:?} rows, {outputs} x {inputs}");
                let x = draw(&[size.as_slice(), &[inputs]].concat());
                let expected = x.linear::<&Tensor>(&weight, None);
                let product = packed.multiply(&x, None).unwrap();
                assert_eq!(product.size(), expected.size(), "{what}");
                if product.numel() == 0 {
                    continue;
                }
                assert!(largest_difference(&product, &expected) < 1e-4, "{what}");
                let before = draw(&product.size());
                let sum = packed.add_product(&before, &x, None).unwrap();
                assert!(largest_difference(&sum, &(before + expected)) < 1e-4, "{what}");
            }
        }
    }

    #[test]
    fn weights_are_converted_and_scaled() {
        if !Packed::is_available() {
            return eprintln!("skipped: this libtorch is without MKL");
        }
        let x = draw(&[3, 40]);
        for kind in [Kind::Float, Kind::Half, Kind::BFloat16, Kind::Double] {
            let weight = draw(&[30, 40]).to_kind(kind);
            let expected = x.linear::<&Tensor>(&(weight.to_kind(Kind::Float) * 1.702), None);
            let product = Packed::new(&weight, 1.702).unwrap().multiply(&x, None).unwrap();
            assert!(largest_difference(&product, &expected) < 1e-5, "{kind:?}");
        }
    }

    #[test]
    fn any_layout_is_multiplied_and_what_does_not_fit_is_refused() {
        if !Packed::is_available() {
            return eprintln!("skipped: this libtorch is without MKL");
        }
        let stored = draw(&[6, 8]);
        let packed = Packed::new(&stored.transpose(0, 1), 1.0).unwrap();
        let x = draw(&[6, 4]).transpose(0, 1);
        let expected = x.matmul(&stored);
        assert!(largest_difference(&packed.multiply(&x, None).unwrap(), &expected) < 1e-5);
        // A sum, here of another layout, is not written through.
        let sum = draw(&[8, 4]).transpose(0, 1);
        let before = sum.copy();
        let added = packed.add_product(&sum, &x, None).unwrap();
        assert!(largest_difference(&added, &(&before + expected)) < 1e-5);
        assert_eq!(largest_difference(&sum, &before), 0.0);
        for (x, sum) in [(draw(&[4, 8]), draw(&[4, 8])), (draw(&[4, 6]), draw(&[5, 8]))] {
            assert!(matches!(packed.add_product(&sum, &x, None), Err(TchError::Shape(_))));
        }
        let half = draw(&[4, 6]).to_kind(Kind::BFloat16);
        assert!(matches!(packed.multiply(&half, None), Err(TchError::Kind(_))));
        assert!(Packed::new(&draw(&[6]), 1.0).is_err());
    }
}
