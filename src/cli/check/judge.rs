//! What is said of a vector: one line for each check, and a sentence with the next step where it fails.

use serde::Deserialize;

/// How far a norm may be from 1, and a cosine from that of two equal vectors: what bf16 and batches of other sizes make
/// of one picture is far below.
const TOLERANCE: f64 = 1e-3;

/// The checks so far. Each prints its line.
#[derive(Debug, Default)]
pub(super) struct Judge {
    /// Checks, those that passed and those that did not.
    pub n: usize,
    /// What failed, in order.
    pub failed: Vec<String>,
}

impl Judge {
    /// Takes in one check: what was found, or what is wrong and what to do about it.
    pub fn note(&mut self, what: &str, finding: Result<String, String>) {
        self.n += 1;
        match finding {
            Ok(found) => println!("ok      {what}: {found}"),
            Err(fault) => {
                println!("FAILED  {what}: {fault}");
                self.failed.push(format!("{what}: {fault}"));
            }
        }
    }

    /// Tells what is not checked, and why.
    pub fn skip(&self, what: &str, why: &str) {
        println!("-       {what} {why}");
    }

    /// The vectors of one picture, computed twice, must agree.
    pub fn same(&mut self, first: &[f64], second: &[f64]) {
        let cosine = cosine(first, second);
        self.note(
            "same picture",
            if cosine >= 1.0 - TOLERANCE {
                Ok(format!("the same vector again, cosine {cosine:.6}"))
            } else {
                Err(format!(
                    "another vector the second time, cosine {cosine:.6}: replicas with different models answer, or \
                     the device computes wrongly; compare `fingerprint` in /info of each"
                ))
            },
        );
    }

    /// Two inputs must not have one vector.
    pub fn different(&mut self, text: &[f64], picture: &[f64]) {
        let cosine = cosine(text, picture);
        self.note(
            "text and picture",
            if cosine < 1.0 - TOLERANCE {
                Ok(format!("their vectors differ, cosine {cosine:.3}"))
            } else {
                Err("have the same vector, so every document would: is it a model that answers there?".into())
            },
        );
    }
}

#[derive(Deserialize)]
struct Answer {
    data: Vec<Item>,
    #[serde(default)]
    errors: Vec<ItemError>,
}

#[derive(Deserialize)]
struct Item {
    /// `null` is what JSON has for a number that is not finite.
    embedding: Vec<Option<f64>>,
}

#[derive(Deserialize)]
struct ItemError {
    #[serde(default)]
    message: String,
}

/// The one vector of an answer to one input, once every check of it has been noted; `None` where it cannot be compared
/// with others. All vectors have the `dimensions` of the first, unless they are known before.
pub(super) fn vector(
    what: &str,
    body: &[u8],
    dimensions: &mut Option<usize>,
    judge: &mut Judge,
) -> Option<Vec<f64>> {
    let Answer { mut data, errors } = match serde_json::from_slice(body) {
        Ok(answer) => answer,
        Err(error) => {
            judge.note(
                what,
                Err(format!("status 200, but not an answer of Sidelens ({error}); is it Sidelens?")),
            );
            return None;
        }
    };
    if let Some(error) = errors.first() {
        let fault = format!("only the placeholder vector: {}; the service's log says more", error.message);
        judge.note(what, Err(fault));
        return None;
    }
    if data.len() != 1 {
        let fault = format!("{} vectors for one input; is it Sidelens?", data.len());
        judge.note(what, Err(fault));
        return None;
    }
    judge.note(what, Ok("status 200, one vector".into()));
    let values = data.remove(0).embedding;

    let expected = *dimensions.get_or_insert(values.len());
    judge.note(
        what,
        if values.len() == expected {
            Ok(format!("{expected} dimensions"))
        } else {
            Err(wrong_dimensions(values.len(), expected))
        },
    );

    let n_values = values.len();
    let finite: Vec<f64> = values.into_iter().flatten().filter(|value| value.is_finite()).collect();
    if finite.len() < n_values {
        let fault = format!(
            "{} of {n_values} numbers are not finite: the device computes wrongly; restart the service, and try \
             `model.dtype = \"fp32\"`",
            n_values - finite.len()
        );
        judge.note(what, Err(fault));
        return None;
    }
    judge.note(what, Ok("every number is finite".into()));

    let norm = norm(&finite);
    judge.note(
        what,
        if (norm - 1.0).abs() <= TOLERANCE {
            Ok(format!("norm {norm:.4}"))
        } else {
            Err(format!(
                "norm {norm:.4}, not 1: it is not Sidelens that answers, or its version does not fit the model; \
                 compare /info"
            ))
        },
    );
    Some(finite).filter(|values| values.len() == expected)
}

/// Half a sentence on a model that has other dimensions than Meilisearch is told.
pub(super) fn wrong_dimensions(found: usize, told: usize) -> String {
    format!(
        "{found} dimensions, not {told}: apply the settings that `sidelens settings` prints, or serve the model that \
         the index was made with"
    )
}

fn norm(values: &[f64]) -> f64 {
    values.iter().map(|value| value * value).sum::<f64>().sqrt()
}

/// 0 where one of them is zero.
fn cosine(left: &[f64], right: &[f64]) -> f64 {
    let product: f64 = left.iter().zip(right).map(|(left, right)| left * right).sum();
    product / (norm(left) * norm(right)).max(f64::MIN_POSITIVE)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What fails of an answer where two dimensions are expected.
    fn faults(body: &str) -> Vec<String> {
        let mut judge = Judge::default();
        vector("text", body.as_bytes(), &mut Some(2), &mut judge);
        judge.failed
    }

    #[test]
    fn every_fault_of_a_vector_is_named() {
        assert_eq!(faults(r#"{"data": [{"embedding": [0.6, -0.8]}], "usage": {}}"#), [""; 0]);
        for (body, fault) in [
            (r#"{"data": [{"embedding": [3, 4]}]}"#, "norm 5.0000"),
            (r#"{"data": [{"embedding": [0, 0]}]}"#, "norm 0.0000"),
            (r#"{"data": [{"embedding": [0, 1, 0]}]}"#, "3 dimensions, not 2"),
            (r#"{"data": [{"embedding": [1, null]}]}"#, "1 of 2 numbers are not finite"),
            (r#"{"data": []}"#, "0 vectors for one input"),
            (r#"{"data": [{"embedding": [1, 0]}, {"embedding": [1, 0]}]}"#, "2 vectors for one input"),
            (
                r#"{"data": [{"embedding": [1, 0]}], "errors": [{"message": "corrupt"}]}"#,
                "placeholder vector: corrupt",
            ),
            (r#"[[1, 0]]"#, "not an answer of Sidelens"),
            ("<html>", "not an answer of Sidelens"),
        ] {
            let found = faults(body);
            assert!(found.len() == 1 && found[0].contains(fault), "{body}: {found:?}");
        }
    }

    #[test]
    fn vectors_are_compared_by_direction() {
        let failed = |judge: Judge| judge.failed.len();
        for (left, right, is_same) in [
            ([0.6, 0.8], [0.6001, 0.7999], true),
            ([0.6, 0.8], [0.8, 0.6], false),
            ([0.0, 0.0], [1.0, 0.0], false),
        ] {
            let (mut same, mut different) = (Judge::default(), Judge::default());
            same.same(&left, &right);
            different.different(&left, &right);
            assert_eq!((failed(same), failed(different)), (usize::from(!is_same), usize::from(is_same)));
        }
    }
}
