//! Unit vectors.

use std::sync::Arc;

/// A finite vector of length one. Cheap to clone: caches and responses share one allocation.
#[derive(Clone, PartialEq)]
pub struct Embedding(Arc<[f32]>);

/// Why some numbers are not an embedding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EmbeddingError {
    /// A component is NaN or infinite.
    #[error("component {0} of the vector is not finite")]
    NotFinite(usize),
    /// The vector has no direction.
    #[error("the vector is zero, so it has no direction")]
    Zero,
    /// It should be of length one, and is not.
    #[error("the vector is not of length one")]
    NotUnit,
    /// Vectors that are to become one are of several lengths.
    #[error("a vector has {found} components, and another {expected}")]
    Lengths {
        /// Components of the first.
        expected: usize,
        /// Components of one that differs.
        found: usize,
    },
}

impl Embedding {
    /// Scales `values` to length one.
    ///
    /// Meilisearch ranks a zero vector first for every query, so neither it nor a non-finite one is
    /// ever let through.
    ///
    /// # Errors
    /// [`EmbeddingError`] when a component is not finite, or when all are zero (or none are there).
    pub fn normalized(values: Vec<f32>) -> Result<Self, EmbeddingError> {
        if let Some(i) = values.iter().position(|x| !x.is_finite()) {
            return Err(EmbeddingError::NotFinite(i));
        }
        let norm = norm(&values);
        if norm == 0.0 {
            return Err(EmbeddingError::Zero);
        }
        Ok(Self(values.iter().map(|&x| (f64::from(x) / norm) as f32).collect()))
    }

    /// Takes what [`Self::as_slice`] once gave, to the bit.
    ///
    /// # Errors
    /// [`EmbeddingError`] when a component is not finite, or the length is further from one than rounding puts it.
    pub fn restored(values: Arc<[f32]>) -> Result<Self, EmbeddingError> {
        if let Some(i) = values.iter().position(|x| !x.is_finite()) {
            return Err(EmbeddingError::NotFinite(i));
        }
        if (norm(&values) - 1.0).abs() > 1e-3 {
            return Err(EmbeddingError::NotUnit);
        }
        Ok(Self(values))
    }

    /// The normalised weighted mean of unit vectors of one length.
    ///
    /// # Errors
    /// [`EmbeddingError::Zero`] when the parts cancel each other out, or when there are none; [`EmbeddingError::Lengths`]
    /// when they differ in length.
    pub fn weighted_mean<'a>(
        parts: impl IntoIterator<Item = (&'a Embedding, f32)>,
    ) -> Result<Self, EmbeddingError> {
        let mut sum: Vec<f32> = Vec::new();
        for (part, weight) in parts {
            if sum.is_empty() {
                sum.resize(part.0.len(), 0.0);
            }
            if sum.len() != part.0.len() {
                return Err(EmbeddingError::Lengths { expected: sum.len(), found: part.0.len() });
            }
            sum.iter_mut().zip(part.0.iter()).for_each(|(sum, x)| *sum += weight * x);
        }
        Self::normalized(sum)
    }

    /// The components; their squares add up to one.
    pub fn as_slice(&self) -> &[f32] {
        &self.0
    }

    /// The number of components.
    pub fn dimensions(&self) -> usize {
        self.0.len()
    }

    /// The cosine of the angle to another unit vector of the same length, -1 to 1.
    pub fn cosine(&self, other: &Self) -> f32 {
        self.0.iter().zip(other.0.iter()).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>() as f32
    }
}

/// In f64 neither the squares of large components overflow nor those of small ones vanish.
fn norm(values: &[f32]) -> f64 {
    values.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt()
}

impl std::fmt::Debug for Embedding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Embedding({} dimensions)", self.0.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_to_length_one_at_any_magnitude() {
        for scale in [1e-30_f32, 1.0, 1e30] {
            let e = Embedding::normalized(vec![3.0 * scale, 4.0 * scale]).unwrap();
            assert!((e.as_slice()[0] - 0.6).abs() < 1e-6 && (e.as_slice()[1] - 0.8).abs() < 1e-6);
        }
    }

    #[test]
    fn refuses_what_meilisearch_would_rank_first() {
        assert_eq!(Embedding::normalized(vec![0.0, 0.0]), Err(EmbeddingError::Zero));
        assert_eq!(Embedding::normalized(vec![]), Err(EmbeddingError::Zero));
        assert_eq!(Embedding::normalized(vec![1.0, f32::NAN]), Err(EmbeddingError::NotFinite(1)));
        assert_eq!(Embedding::normalized(vec![f32::INFINITY]), Err(EmbeddingError::NotFinite(0)));
    }

    #[test]
    fn restores_to_the_bit_what_is_a_unit_vector() {
        let e = Embedding::normalized(vec![0.1, 0.2, 0.3]).unwrap();
        assert_eq!(Embedding::restored(e.as_slice().into()), Ok(e));
        assert_eq!(Embedding::restored([3.0, 4.0].into()), Err(EmbeddingError::NotUnit));
        assert_eq!(Embedding::restored([].into()), Err(EmbeddingError::NotUnit));
        assert_eq!(Embedding::restored([1.0, f32::NAN].into()), Err(EmbeddingError::NotFinite(1)));
    }

    #[test]
    fn averages_by_weight() {
        let x = Embedding::normalized(vec![1.0, 0.0]).unwrap();
        let y = Embedding::normalized(vec![0.0, 1.0]).unwrap();
        let mean = Embedding::weighted_mean([(&x, 3.0), (&y, 4.0)]).unwrap();
        assert!((mean.as_slice()[0] - 0.6).abs() < 1e-6);
        let back = Embedding::normalized(vec![-1.0, 0.0]).unwrap();
        assert_eq!(Embedding::weighted_mean([(&x, 1.0), (&back, 1.0)]), Err(EmbeddingError::Zero));
    }

    #[test]
    fn vectors_of_several_lengths_have_no_mean() {
        let short = Embedding::normalized(vec![1.0, 0.0]).unwrap();
        let long = Embedding::normalized(vec![0.0, 1.0, 0.0]).unwrap();
        for (parts, expected, found) in [([&short, &long], 2, 3), ([&long, &short], 3, 2)] {
            let mean = Embedding::weighted_mean(parts.map(|part| (part, 1.0)));
            assert_eq!(mean, Err(EmbeddingError::Lengths { expected, found }));
        }
    }
}
