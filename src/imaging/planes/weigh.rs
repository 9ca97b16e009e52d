//! The sums of `planes.rs`: of rows, and of columns once they are turned to rows.
//!
//! Each is written twice, plainly and for AVX2, and the same to the bit: of the plain ones the compiler makes products of
//! 32 bits, and turns one sample at a time.

/// Samples that [`rows`] sums side by side.
pub(super) const LANES: usize = 64;

/// Rows that [`columns`] sums side by side.
pub(super) const ROWS: usize = 16;

/// Fraction bits of the weights.
pub(super) const WEIGHT_BITS: u32 = 15;

/// Fraction bits of the sums of rows.
const BITS_BETWEEN: u32 = 6;

/// Fraction bits of the sums of columns.
pub(super) const BITS: u32 = BITS_BETWEEN + WEIGHT_BITS - 16;

/// By how much a sample is shifted, so that the high half of its product with a weight has [`BITS_BETWEEN`].
const SHIFT: u32 = 16 + BITS_BETWEEN - WEIGHT_BITS;

/// What a sum of so many products begins with: their high half is cut, not rounded, which takes half a unit of each.
fn lost(n_products: usize) -> i16 {
    (n_products / 2) as i16
}

/// Fills `out` with sums of samples `stride` apart, by weight, times 2^6. `out` is a multiple of [`LANES`].
pub(super) fn rows(samples: &[u8], stride: usize, weights: &[i16], out: &mut [i16]) {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has AVX2.
        return unsafe { avx2::rows(samples, stride, weights, out) };
    }
    plain::rows(samples, stride, weights, out);
}

/// Fills `out` with sums of columns `step` apart, by weight, times 2^5. `taps` has the first of them and the weights.
pub(super) fn columns<'a>(
    samples: &[[i16; ROWS]],
    step: usize,
    taps: impl Iterator<Item = (usize, &'a [i16])>,
    out: &mut [[i16; ROWS]],
) {
    for (out, (first, weights)) in out.iter_mut().zip(taps) {
        let samples = &samples[first..];
        #[cfg(target_arch = "x86_64")]
        if std::arch::is_x86_feature_detected!("avx2") {
            // SAFETY: the processor has AVX2.
            *out = unsafe { avx2::column(samples, step, weights) };
            continue;
        }
        *out = plain::column(samples, step, weights);
    }
}

/// Turns [`ROWS`] rows of `stride` samples to columns, as many as `out` has.
pub(super) fn turn(rows: &[i16], stride: usize, out: &mut [[i16; ROWS]]) {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has AVX2.
        return unsafe { avx2::turn(rows, stride, out) };
    }
    plain::turn(rows, stride, out);
}

mod plain {
    use super::{LANES, ROWS, SHIFT, lost};

    /// The high half of a product.
    fn high(sample: i16, weight: i16) -> i16 {
        ((i32::from(sample) * i32::from(weight)) >> 16) as i16
    }

    pub fn rows(samples: &[u8], stride: usize, weights: &[i16], out: &mut [i16]) {
        for (i, sums) in out.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
            sums.fill(lost(weights.len()));
            for (k, &weight) in weights.iter().enumerate() {
                for (sum, &sample) in sums.iter_mut().zip(&samples[k * stride + i * LANES..]) {
                    *sum = sum.wrapping_add(high(i16::from(sample) << SHIFT, weight));
                }
            }
        }
    }

    pub fn column(samples: &[[i16; ROWS]], step: usize, weights: &[i16]) -> [i16; ROWS] {
        let mut sums = [lost(weights.len()); ROWS];
        for (samples, &weight) in samples.iter().step_by(step).zip(weights) {
            for (sum, &sample) in sums.iter_mut().zip(samples) {
                *sum = sum.wrapping_add(high(sample, weight));
            }
        }
        sums
    }

    pub fn turn(rows: &[i16], stride: usize, out: &mut [[i16; ROWS]]) {
        for (x, out) in out.iter_mut().enumerate() {
            for (y, out) in out.iter_mut().enumerate() {
                *out = rows[y * stride + x];
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::*;

    use super::{LANES, ROWS, SHIFT, lost, plain};

    #[target_feature(enable = "avx2")]
    pub fn rows(samples: &[u8], stride: usize, weights: &[i16], out: &mut [i16]) {
        for (i, out) in out.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
            let mut sums = [_mm256_set1_epi16(lost(weights.len())); LANES / 16];
            for (k, &weight) in weights.iter().enumerate() {
                let weight = _mm256_set1_epi16(weight);
                let samples = samples[k * stride + i * LANES..][..LANES].as_chunks::<16>().0;
                for (sum, samples) in sums.iter_mut().zip(samples) {
                    // SAFETY: sixteen bytes are read, as many as there are; nothing need be aligned.
                    let samples = unsafe { _mm_loadu_si128(samples.as_ptr().cast()) };
                    let samples = _mm256_slli_epi16::<{ SHIFT as i32 }>(_mm256_cvtepu8_epi16(samples));
                    *sum = _mm256_add_epi16(*sum, _mm256_mulhi_epi16(samples, weight));
                }
            }
            for (out, sum) in out.as_chunks_mut::<16>().0.iter_mut().zip(sums) {
                store(out, sum);
            }
        }
    }

    #[target_feature(enable = "avx2")]
    pub fn column(samples: &[[i16; ROWS]], step: usize, weights: &[i16]) -> [i16; ROWS] {
        let mut sum = _mm256_set1_epi16(lost(weights.len()));
        for (samples, &weight) in samples.iter().step_by(step).zip(weights) {
            // SAFETY: thirty-two bytes are read, as many as there are; nothing need be aligned.
            let samples = unsafe { _mm256_loadu_si256(samples.as_ptr().cast()) };
            sum = _mm256_add_epi16(sum, _mm256_mulhi_epi16(samples, _mm256_set1_epi16(weight)));
        }
        let mut out = [0; ROWS];
        store(&mut out, sum);
        out
    }

    #[target_feature(enable = "avx2")]
    fn store(out: &mut [i16; 16], sum: __m256i) {
        // SAFETY: thirty-two bytes are written, as many as there are; nothing need be aligned.
        unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), sum) };
    }

    /// Eight columns of eight rows at a time: neighbours are brought together in twos, fours and eights.
    #[target_feature(enable = "avx2")]
    pub fn turn(rows: &[i16], stride: usize, out: &mut [[i16; ROWS]]) {
        let (blocks, rest) = out.as_chunks_mut::<8>();
        for (x, block) in blocks.iter_mut().enumerate() {
            for y in [0, 8] {
                let mut rows_of_8 = [_mm_setzero_si128(); 8];
                for (i, row) in rows_of_8.iter_mut().enumerate() {
                    let samples = &rows[(y + i) * stride + x * 8..][..8];
                    // SAFETY: sixteen bytes are read, as many as there are; nothing need be aligned.
                    *row = unsafe { _mm_loadu_si128(samples.as_ptr().cast()) };
                }
                let [a, b, c, d, e, f, g, h] = rows_of_8;
                let (ae, ea) = (_mm_unpacklo_epi16(a, e), _mm_unpackhi_epi16(a, e));
                let (bf, fb) = (_mm_unpacklo_epi16(b, f), _mm_unpackhi_epi16(b, f));
                let (cg, gc) = (_mm_unpacklo_epi16(c, g), _mm_unpackhi_epi16(c, g));
                let (dh, hd) = (_mm_unpacklo_epi16(d, h), _mm_unpackhi_epi16(d, h));
                // Each time what was four rows apart, then two, then one, comes side by side.
                let halves = [(ae, cg, bf, dh), (ea, gc, fb, hd)];
                for (half, (ae, cg, bf, dh)) in halves.into_iter().enumerate() {
                    let even = [_mm_unpacklo_epi16(ae, cg), _mm_unpackhi_epi16(ae, cg)];
                    let odd = [_mm_unpacklo_epi16(bf, dh), _mm_unpackhi_epi16(bf, dh)];
                    for (pair, (even, odd)) in even.into_iter().zip(odd).enumerate() {
                        let columns = [_mm_unpacklo_epi16(even, odd), _mm_unpackhi_epi16(even, odd)];
                        for (i, column) in columns.into_iter().enumerate() {
                            let out = &mut block[half * 4 + pair * 2 + i][y..][..8];
                            // SAFETY: sixteen bytes are written, as many as there are; nothing need be aligned.
                            unsafe { _mm_storeu_si128(out.as_mut_ptr().cast(), column) };
                        }
                    }
                }
            }
        }
        plain::turn(&rows[blocks.len() * 8..], stride, rest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(sums: &[i16], exact: impl Fn(usize) -> f64, n_weights: usize) {
        for (i, &sum) in sums.iter().enumerate() {
            assert!((f64::from(sum) - exact(i)).abs() <= n_weights as f64 / 2.0 + 1.0, "{sum}, {}", exact(i));
        }
    }

    #[test]
    fn sums_are_right_and_the_same_on_every_processor() {
        let mut random = fastrand::Rng::with_seed(1);
        for n_weights in [1, 7, 33] {
            let mut weight = || random.i16(..) / n_weights as i16;
            let weights: Vec<i16> = (0..n_weights).map(|_| weight()).collect();
            let unit = |bits: u32| f64::from(1 << bits);
            let stride = 2 * LANES + 5;
            let samples: Vec<u8> = (0..stride * n_weights + LANES).map(|_| random.u8(..)).collect();
            let mut sums = vec![0; 2 * LANES];
            rows(&samples, stride, &weights, &mut sums);
            let product = |k: usize, i: usize| f64::from(samples[k * stride + i]) * f64::from(weights[k]);
            let exact = |i: usize| {
                (0..n_weights).map(|k| product(k, i)).sum::<f64>() * unit(BITS_BETWEEN) / unit(WEIGHT_BITS)
            };
            check(&sums, exact, n_weights);
            let mut plain = vec![0; 2 * LANES];
            plain::rows(&samples, stride, &weights, &mut plain);
            assert_eq!(sums, plain);

            let mut sample = || random.i16(0..255 << BITS_BETWEEN);
            let samples: Vec<[i16; ROWS]> =
                (0..3 * n_weights).map(|_| std::array::from_fn(|_| sample())).collect();
            for step in [1, 3] {
                let product = |k: usize, i: usize| f64::from(samples[k * step][i]) * f64::from(weights[k]);
                let exact = |i: usize| (0..n_weights).map(|k| product(k, i)).sum::<f64>() / unit(16);
                let mut sums = [[0; ROWS]];
                columns(&samples, step, [(0, &weights[..])].into_iter(), &mut sums);
                check(&sums[0], exact, n_weights);
                assert_eq!(sums[0], plain::column(&samples, step, &weights));
            }
        }
    }

    #[test]
    fn rows_become_columns() {
        const STRIDE: usize = 23;
        let rows: Vec<i16> = (0..(ROWS * STRIDE) as i16).collect();
        for n_columns in [1, 8, 21] {
            let mut columns = vec![[0; ROWS]; n_columns];
            turn(&rows, STRIDE, &mut columns);
            for (x, column) in columns.iter().enumerate() {
                assert_eq!(*column, std::array::from_fn(|y| (y * STRIDE + x) as i16));
            }
            let mut plain = vec![[0; ROWS]; n_columns];
            plain::turn(&rows, STRIDE, &mut plain);
            assert_eq!(columns, plain);
        }
    }
}
