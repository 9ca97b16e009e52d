//! The vector of an item that has none: unit length, finite, and far from everything real.
//!
//! Meilisearch has no "no vector for this one", and ranks a zero vector first. So a broken picture gets the
//! direction whose largest cosine to a calibration set is as small as it can be made.

use crate::domain::Embedding;

/// Steps of the search; the best point of the way is kept.
const STEPS: usize = 600;

/// A direction that is far from every vector of `calibration`; `None` for an empty set.
///
/// Starts opposite the mean, then walks away from whichever vector is nearest (a sub-gradient method for
/// `min max_i <p, c_i>` on the sphere). Deterministic.
pub(super) fn placeholder(calibration: &[Embedding]) -> Option<Embedding> {
    let first = calibration.first()?;
    let mean = Embedding::weighted_mean(calibration.iter().map(|vector| (vector, 1.0)));
    let away = mean.as_ref().unwrap_or(first);
    let mut best = stepped(away, away, 2.0)?;
    let (mut best_cosine, _) = nearest(&best, calibration)?;
    let mut point = best.clone();
    for step in 0..STEPS {
        let (cosine, neighbour) = nearest(&point, calibration)?;
        if cosine < best_cosine {
            (best, best_cosine) = (point.clone(), cosine);
        }
        let length = 0.5 / ((step + 1) as f32).sqrt();
        // A step cannot land on zero unless it is as long as the point; all are shorter.
        point = stepped(&point, neighbour, length)?;
    }
    Some(best)
}

/// The vector of the set that is nearest to `point`, and its cosine.
fn nearest<'a>(point: &Embedding, calibration: &'a [Embedding]) -> Option<(f32, &'a Embedding)> {
    calibration
        .iter()
        .map(|vector| (point.cosine(vector), vector))
        .max_by(|(left, _), (right, _)| left.total_cmp(right))
}

/// `point - length * direction`, normalised.
fn stepped(point: &Embedding, direction: &Embedding, length: f32) -> Option<Embedding> {
    let moved = point.as_slice().iter().zip(direction.as_slice()).map(|(p, d)| p - length * d).collect();
    Embedding::normalized(moved).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unit(values: &[f32]) -> Embedding {
        Embedding::normalized(values.to_vec()).unwrap()
    }

    fn worst(point: &Embedding, set: &[Embedding]) -> f32 {
        nearest(point, set).unwrap().0
    }

    #[test]
    fn is_far_from_a_cone_whose_mean_is_lopsided() {
        // Many vectors on one side of the cone pull the mean; the rarest is as far in the end.
        let mut set = vec![unit(&[1.0, 1.0, 0.0]); 30];
        set.push(unit(&[1.0, -1.0, 0.1]));
        let mean = Embedding::weighted_mean(set.iter().map(|v| (v, 1.0))).unwrap();
        let opposite = unit(&mean.as_slice().iter().map(|x| -x).collect::<Vec<_>>());
        let found = placeholder(&set).unwrap();
        assert!(worst(&opposite, &set) > -0.1);
        assert!(worst(&found, &set) < -0.65, "{}", worst(&found, &set));
        assert_eq!(placeholder(&set), Some(found), "deterministic");
    }

    #[test]
    fn a_set_without_a_mean_still_gives_a_unit_vector() {
        let set = [unit(&[1.0, 0.0]), unit(&[-1.0, 0.0])];
        let found = placeholder(&set).unwrap();
        assert!(worst(&found, &set) <= 1.0);
        assert!((found.cosine(&found) - 1.0).abs() < 1e-6);
        assert!(placeholder(&[]).is_none());
    }
}
