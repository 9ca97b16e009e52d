//! From token ids to vectors.

use tch::{Device, Kind, TchError, Tensor};

use crate::model::{ModelError, Weights};

/// Texts of one batch, padded to the longest.
pub struct TokenBatch {
    /// Ids `[batch, longest]`, int64.
    pub ids: Tensor,
    /// Where a token is no padding: bool `[batch, longest]`; `None` where there is no padding at all.
    pub is_token: Option<Tensor>,
    /// The largest of the ids.
    largest: i64,
    /// Rows.
    pub batch: i64,
    /// Columns.
    pub longest: i64,
}

impl TokenBatch {
    /// Pads with `pad_id`; what it is matters only to a tower that looks at its padding.
    pub fn new(texts: &[&[u32]], pad_id: u32, device: Device) -> Result<Self, TchError> {
        Self::of_length(texts.iter().map(|ids| ids.len()).max().unwrap_or(0), texts, pad_id, device)
    }

    /// As [`Self::new`], padded to `longest` columns, which no text is longer than.
    pub fn of_length(
        longest: usize,
        texts: &[&[u32]],
        pad_id: u32,
        device: Device,
    ) -> Result<Self, TchError> {
        let shortest = texts.iter().map(|ids| ids.len()).min().unwrap_or(0);
        let size = [texts.len() as i64, longest as i64];
        let mut padded = Vec::with_capacity(texts.len() * longest);
        for (row, ids) in texts.iter().enumerate() {
            padded.extend(ids.iter().map(|&id| i64::from(id)));
            padded.resize((row + 1) * longest, i64::from(pad_id));
        }
        let is_token = if shortest < longest {
            let row = |ids: &&[u32]| (0..longest).map(|i| i < ids.len()).collect::<Vec<_>>();
            let is_token = texts.iter().flat_map(row).collect::<Vec<_>>();
            Some(Tensor::f_from_slice(&is_token)?.f_view(size)?.f_to_device(device)?)
        } else {
            None
        };
        let largest = padded.iter().copied().max().unwrap_or(0);
        let ids = Tensor::f_from_slice(&padded)?.f_view(size)?.f_to_device(device)?;
        Ok(Self { ids, is_token, largest, batch: size[0], longest: size[1] })
    }

    /// The mask for an attention that must not see padding: bool `[batch, 1, 1, longest]`.
    pub fn attention_mask(&self) -> Result<Option<Tensor>, TchError> {
        self.is_token.as_ref().map(|is_token| is_token.f_view([self.batch, 1, 1, self.longest])).transpose()
    }
}

/// A vector per token id plus one per position.
pub struct TokenEmbedding {
    tokens: Tensor,
    positions: Tensor,
    token_type: Option<Tensor>,
    counts_after: Option<i64>,
}

impl TokenEmbedding {
    /// The tensors `tokens` `[vocab_size, hidden]` and `positions` `[n_positions, hidden]`, by full name.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape.
    pub fn load(
        weights: &Weights,
        [tokens, positions]: [&str; 2],
        vocab_size: i64,
        n_positions: i64,
        hidden: i64,
    ) -> Result<Self, ModelError> {
        Ok(Self {
            tokens: weights.tensor(tokens, &[vocab_size, hidden])?,
            positions: weights.tensor(positions, &[n_positions, hidden])?,
            token_type: None,
            counts_after: None,
        })
    }

    /// Adds `token_type` `[hidden]` to every token, as BERT does.
    pub fn with_token_type(self, token_type: Tensor) -> Self {
        Self { token_type: Some(token_type), ..self }
    }

    /// Counts positions as RoBERTa does: from `pad_id` + 1 on, where tokens `pad_id`, which a text may hold
    /// too, all have the position `pad_id` and do not count.
    pub fn counting_after(self, pad_id: u32) -> Self {
        Self { counts_after: Some(i64::from(pad_id)), ..self }
    }

    /// Where the tensors are.
    pub fn device(&self) -> Device {
        self.tokens.device()
    }

    /// The vectors `[batch, longest, hidden]` of the batch's tokens.
    ///
    /// # Errors
    /// Also for an id beyond the table: a GPU would be lost to the whole process by that.
    pub fn forward(&self, texts: &TokenBatch) -> Result<Tensor, TchError> {
        let (n_tokens, hidden) = self.tokens.size2()?;
        if texts.largest >= n_tokens {
            let largest = texts.largest;
            return Err(TchError::Shape(format!(
                "the tokenizer gave token {largest}, but the model has {n_tokens}: they do not belong together"
            )));
        }
        let x = self.tokens.f_index_select(0, &texts.ids.f_view([-1])?)?;
        let mut x = x.f_view([texts.batch, texts.longest, hidden])?;
        if let Some(token_type) = &self.token_type {
            x = x.f_add(token_type)?;
        }
        let positions = match self.counts_after {
            None => self.positions.f_narrow(0, 0, texts.longest)?,
            Some(pad_id) => {
                let counts = texts.ids.f_ne(pad_id)?.f_to_kind(Kind::Int64)?;
                let places = counts.f_cumsum(1, Kind::Int64)?.f_mul(&counts)?.f_add_scalar(pad_id)?;
                let rows = self.positions.f_index_select(0, &places.f_view([-1])?)?;
                rows.f_view([texts.batch, texts.longest, hidden])?
            }
        };
        x.f_add(&positions)
    }
}
