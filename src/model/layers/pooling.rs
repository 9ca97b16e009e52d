//! From token states to one vector.

use tch::{Kind, TchError, Tensor};

/// The mean of `states` `[batch, tokens, hidden]` over the tokens that are no padding (`is_token`, bool
/// `[batch, tokens]`); gives float32 `[batch, hidden]`.
pub fn mean(states: &Tensor, is_token: Option<&Tensor>) -> Result<Tensor, TchError> {
    let dim = Some([1_i64].as_slice());
    match is_token {
        None => states.f_mean_dim(dim, false, Kind::Float),
        Some(is_token) => {
            let weights = is_token.f_unsqueeze(-1)?.f_to_kind(Kind::Float)?;
            let sum = states.f_mul(&weights)?.f_sum_dim_intlist(dim, false, Kind::Float)?;
            sum.f_div(&weights.f_sum_dim_intlist(dim, false, Kind::Float)?)
        }
    }
}
