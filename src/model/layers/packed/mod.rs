//! Matrices in the order in which they are multiplied.
//!
//! A plain product first copies its weights into that order, every time. For a text of eight tokens this takes longer
//! than the product, for eight pictures still a sixth of it (docs/benchmarks.md). Weights do not change, so here they
//! are copied once, while loading. libtorch has two libraries that do so, of which one or the other is faster; where it
//! has neither (ARM), products stay plain.

mod mkl;
mod onednn;

use std::{fmt, io};

use memmap2::MmapMut;
use tch::{Device, Kind, TchError, Tensor};

use crate::model::Placement;

/// A matrix `[outputs, inputs]` on the CPU, to be multiplied from the right, transposed.
pub struct Packed {
    matrix: Matrix,
    kind: Kind,
    inputs: i64,
    outputs: i64,
}

/// As one of the libraries has it.
enum Matrix {
    Mkl(mkl::Matrix),
    OneDnn(onednn::Matrix),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Library {
    Mkl,
    OneDnn,
}

impl Library {
    /// The one for matrices of `kind`.
    ///
    /// On its maker's processors MKL is what was measured; on others it goes without AVX-512 and takes up to twice as
    /// long as oneDNN.
    fn of(kind: Kind) -> Option<Self> {
        let [mkl, onednn] = [kind == Kind::Float && mkl::is_available(), onednn::is_available(kind)];
        match (mkl, onednn) {
            (true, true) if is_intel() => Some(Self::Mkl),
            (_, true) => Some(Self::OneDnn),
            (true, false) => Some(Self::Mkl),
            (false, false) => None,
        }
    }

    /// `matrix` is contiguous.
    fn pack(self, matrix: &Tensor) -> Result<Matrix, TchError> {
        match self {
            Self::Mkl => mkl::Matrix::new(matrix).map(Matrix::Mkl),
            Self::OneDnn => onednn::Matrix::new(matrix).map(Matrix::OneDnn),
        }
    }
}

#[cfg(target_arch = "x86_64")]
fn is_intel() -> bool {
    let leaf = std::arch::x86_64::__cpuid(0);
    [leaf.ebx, leaf.edx, leaf.ecx].map(u32::to_le_bytes).concat() == b"GenuineIntel"
}

#[cfg(not(target_arch = "x86_64"))]
fn is_intel() -> bool {
    false
}

impl Packed {
    /// Whether matrices that go there can be packed.
    pub fn is_available(on: Placement) -> bool {
        on.device == Device::Cpu && Library::of(on.kind).is_some()
    }

    /// Packs `parts` `[_, inputs]`, of any dtype and on the CPU, one below another, as `kind`, each entry times `factor`.
    ///
    /// # Errors
    /// When [`Self::is_available`] is not so, the parts do not make one matrix, or memory is exhausted.
    pub fn new(parts: &[Tensor], factor: f64, kind: Kind) -> Result<Self, TchError> {
        let library =
            Library::of(kind).ok_or_else(|| TchError::Kind(format!("{kind:?} is not packed here")))?;
        Self::by(library, parts, factor, kind)
    }

    fn by(library: Library, parts: &[Tensor], factor: f64, kind: Kind) -> Result<Self, TchError> {
        let whole = Whole::of(parts, factor, kind)?;
        let (outputs, inputs) = whole.matrix.size2()?;
        Ok(Self { matrix: library.pack(&whole.matrix)?, kind, inputs, outputs })
    }

    /// `x W^T`, and `bias` `[outputs]` if there is one: `[.., inputs]` to `[.., outputs]`.
    ///
    /// # Errors
    /// When shapes do not fit, `x` is of another dtype or not on the CPU, or memory is exhausted.
    pub fn multiply(&self, x: &Tensor, bias: Option<&Tensor>) -> Result<Tensor, TchError> {
        let x = self.plain(x, self.inputs)?;
        match &self.matrix {
            Matrix::OneDnn(matrix) => matrix.multiply(&x, bias),
            Matrix::Mkl(matrix) => {
                let mut into = Tensor::f_empty(self.product_size(&x), (self.kind, Device::Cpu))?;
                let keep = match bias {
                    Some(bias) => {
                        // A copy even of one row: expanded, that would be the bias itself, which may lie in a file.
                        into.f_copy_(bias)?;
                        1.0
                    }
                    None => 0.0,
                };
                // SAFETY: `x` is as `plain` says, `into` was made for it just now.
                unsafe { matrix.multiply(&x, &into, keep)? };
                Ok(into)
            }
        }
    }

    /// `sum + x W^T`, and `bias` if there is one: `[.., outputs]` and `[.., inputs]` to `[.., outputs]`.
    ///
    /// # Errors
    /// As [`Self::multiply`].
    pub fn add_product(&self, sum: &Tensor, x: &Tensor, bias: Option<&Tensor>) -> Result<Tensor, TchError> {
        let (x, sum) = (self.plain(x, self.inputs)?, self.plain(sum, self.outputs)?);
        if sum.size() != self.product_size(&x) {
            return Err(TchError::Shape(format!("{:?} times {self:?} to {:?}", x.size(), sum.size())));
        }
        match &self.matrix {
            Matrix::OneDnn(matrix) => matrix.multiply(&x, bias)?.f_add_(&sum),
            Matrix::Mkl(matrix) => {
                // Added to where the sum is made: one pass less.
                let into = match bias {
                    Some(bias) => sum.f_add(bias)?,
                    None => sum.f_detach_copy()?,
                };
                // SAFETY: Both are as `plain` says, of as many rows, and `into` was made just now.
                unsafe { matrix.multiply(&x, &into, 1.0)? };
                Ok(into)
            }
        }
    }

    fn product_size(&self, x: &Tensor) -> Vec<i64> {
        let mut size = x.size();
        if let Some(last) = size.last_mut() {
            *last = self.outputs;
        }
        size
    }

    /// The tensor as it is multiplied, `[.., width]` and contiguous: itself, or a copy.
    fn plain(&self, tensor: &Tensor, width: i64) -> Result<Tensor, TchError> {
        let (kind, size) = (tensor.kind(), tensor.size());
        if (kind, tensor.device()) != (self.kind, Device::Cpu) {
            return Err(TchError::Kind(format!("{kind:?} on {:?} for {self:?}", tensor.device())));
        }
        if size.last() != Some(&width) {
            return Err(TchError::Shape(format!("{size:?} for {self:?}")));
        }
        tensor.f_contiguous()
    }
}

impl fmt::Debug for Packed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a packed matrix [{}, {}] of {:?} on the CPU", self.outputs, self.inputs, self.kind)
    }
}

/// One matrix, contiguous.
struct Whole {
    matrix: Tensor,
    /// What it lies in, unless it lies where it was stored. Not memory of libtorch's own: one large block after another
    /// from the allocator, with small ones in between that stay, and a model would be in memory twice.
    _block: Option<MmapMut>,
}

impl Whole {
    fn of(parts: &[Tensor], factor: f64, kind: Kind) -> Result<Self, TchError> {
        if factor != 1.0 {
            // Rounded once.
            let mut wide = Self::copied(parts, Kind::Float)?;
            let _ = wide.matrix.f_mul_scalar_(factor)?;
            return if kind == Kind::Float {
                Ok(wide)
            } else {
                Self::copied(&[wide.matrix.shallow_clone()], kind)
            };
        }
        match parts {
            [part] if (part.kind(), part.device()) == (kind, Device::Cpu) && part.is_contiguous() => {
                Ok(Self { matrix: part.shallow_clone(), _block: None })
            }
            parts => Self::copied(parts, kind),
        }
    }

    fn copied(parts: &[Tensor], kind: Kind) -> Result<Self, TchError> {
        let sizes = parts.iter().map(Tensor::size2).collect::<Result<Vec<_>, _>>()?;
        let outputs: i64 = sizes.iter().map(|(rows, _)| rows).sum();
        let inputs = sizes.first().map_or(0, |(_, columns)| *columns);
        let mut block = map((outputs * inputs) as usize * kind.elt_size_in_bytes())?;
        // SAFETY: The block is as large as the tensor, nobody else has it, and `Whole` keeps both.
        let matrix = unsafe {
            Tensor::f_from_blob(block.as_mut_ptr(), &[outputs, inputs], &[inputs, 1], kind, Device::Cpu)?
        };
        let mut first = 0;
        for (part, (rows, _)) in parts.iter().zip(sizes) {
            matrix.f_narrow(0, first, rows)?.f_copy_(part)?;
            first += rows;
        }
        Ok(Self { matrix, _block: Some(block) })
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Every library that this processor and this libtorch have, with the dtypes that it packs.
    fn libraries() -> Vec<(Library, Kind)> {
        let kinds = [Kind::Float, Kind::BFloat16].into_iter().filter(|kind| onednn::is_available(*kind));
        let onednn = kinds.map(|kind| (Library::OneDnn, kind));
        onednn.chain(mkl::is_available().then_some((Library::Mkl, Kind::Float))).collect()
    }

    fn draw(size: &[i64], kind: Kind) -> Tensor {
        (Tensor::rand(size, (Kind::Float, Device::Cpu)) - 0.5).to_kind(kind)
    }

    /// By the largest entry; bf16 keeps eight bits.
    fn assert_near(found: &Tensor, expected: &Tensor, kind: Kind, what: &str) {
        assert_eq!((found.kind(), found.size()), (kind, expected.size()), "{what}");
        if expected.numel() == 0 {
            return;
        }
        let [found, expected] = [found, expected].map(|tensor| tensor.to_kind(Kind::Double));
        let largest = |tensor: &Tensor| tensor.abs().max().double_value(&[]);
        let tolerance = if kind == Kind::Float { 1e-5 } else { 1e-2 };
        let difference = largest(&(found - &expected));
        assert!(difference <= tolerance * largest(&expected).max(1.0), "{what}: {difference}");
    }

    /// `x W^T` in double.
    fn product(x: &Tensor, weight: &Tensor) -> Tensor {
        x.to_kind(Kind::Double).linear::<&Tensor>(&weight.to_kind(Kind::Double), None)
    }

    /// Else every product silently takes a fifth longer, and those of searches twice as long.
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    #[test]
    fn the_libtorch_that_is_pinned_packs() {
        assert!(mkl::is_available());
        assert!(onednn::is_available(Kind::Float));
        let has_bf16 = is_x86_feature_detected!("avx512bw") && is_x86_feature_detected!("avx512vl");
        assert_eq!(onednn::is_available(Kind::BFloat16), has_bf16);
        assert!(!onednn::is_available(Kind::Double));
    }

    #[test]
    fn products_are_those_of_the_plain_matrix() {
        for (library, kind) in libraries() {
            for (outputs, inputs) in [(1, 1), (7, 5), (64, 64), (65, 130), (512, 768), (3, 3072)] {
                let (weight, bias) = (draw(&[outputs, inputs], kind), draw(&[outputs], kind));
                let packed = Packed::by(library, &[weight.shallow_clone()], 1.0, kind).unwrap();
                for size in [vec![], vec![1], vec![3], vec![2, 50], vec![9, 50], vec![0], vec![2, 3, 4]] {
                    let what = format!("{library:?}, {kind:?}: {size:?} rows, {outputs} x {inputs}");
                    let x = draw(&[size.as_slice(), &[inputs]].concat(), kind);
                    let expected = product(&x, &weight);
                    assert_near(&packed.multiply(&x, None).unwrap(), &expected, kind, &what);
                    let with_bias = &expected + &bias;
                    assert_near(&packed.multiply(&x, Some(&bias)).unwrap(), &with_bias, kind, &what);
                    let before = draw(&expected.size(), kind);
                    let sum = packed.add_product(&before, &x, None).unwrap();
                    assert_near(&sum, &(&before + expected), kind, &what);
                    let sum = packed.add_product(&before, &x, Some(&bias)).unwrap();
                    assert_near(&sum, &(before + with_bias), kind, &what);
                }
            }
        }
    }

    #[test]
    fn weights_are_joined_converted_and_scaled() {
        for (library, kind) in libraries() {
            let x = draw(&[3, 40], kind);
            for stored in [Kind::Float, Kind::Half, Kind::BFloat16, Kind::Double] {
                for factor in [1.0, 1.702] {
                    // The second has its columns where others have rows.
                    let parts = [draw(&[30, 40], stored), draw(&[40, 10], stored).transpose(0, 1)];
                    let whole = Tensor::cat(&parts, 0).to_kind(Kind::Double) * factor;
                    let found =
                        Packed::by(library, &parts, factor, kind).unwrap().multiply(&x, None).unwrap();
                    let what = format!("{library:?}, {kind:?} of {stored:?} times {factor}");
                    assert_near(&found, &product(&x, &whole.to_kind(kind)), kind, &what);
                }
            }
        }
    }

    #[test]
    fn any_layout_is_multiplied_and_what_does_not_fit_is_refused() {
        for (library, kind) in libraries() {
            let what = format!("{library:?}, {kind:?}");
            let weight = draw(&[6, 8], kind).transpose(0, 1);
            let packed = Packed::by(library, &[weight.shallow_clone()], 1.0, kind).unwrap();
            let x = draw(&[6, 4], kind).transpose(0, 1);
            let expected = product(&x, &weight);
            assert_near(&packed.multiply(&x, None).unwrap(), &expected, kind, &what);
            // A sum, here of another layout, is not written through.
            let sum = draw(&[8, 4], kind).transpose(0, 1);
            let before = sum.copy();
            let added = packed.add_product(&sum, &x, None).unwrap();
            assert_near(&added, &(&before + expected), kind, &what);
            assert!(sum.equal(&before), "{what}");
            for (x, sum) in [([4, 8], [4, 8]), ([4, 6], [5, 8]), ([4, 6], [4, 6])] {
                let (x, sum) = (draw(&x, kind), draw(&sum, kind));
                assert!(matches!(packed.add_product(&sum, &x, None), Err(TchError::Shape(_))), "{what}");
            }
            assert!(matches!(packed.multiply(&draw(&[4, 8], kind), None), Err(TchError::Shape(_))), "{what}");
            let other = draw(&[4, 6], Kind::Half);
            assert!(matches!(packed.multiply(&other, None), Err(TchError::Kind(_))), "{what}");
            assert!(Packed::by(library, &[draw(&[6], kind)], 1.0, kind).is_err(), "{what}");
            let [narrow, wide] = [draw(&[2, 3], kind), draw(&[2, 4], kind)];
            assert!(Packed::by(library, &[narrow, wide], 1.0, kind).is_err(), "{what}");
        }
    }
}
