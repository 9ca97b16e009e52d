//! The Q-Former: BERT's layers, where queries look at a picture and have a feed-forward of their own.

use tch::{TchError, Tensor};

use super::{Config, QFormer as QFormerConfig};
use crate::model::{
    ModelError, Weights,
    layers::{Attention, LayerNorm, Mask, Mlp},
    missing_tower,
};

/// All layers, with the parts that pictures and texts need.
pub struct QFormer {
    norm: LayerNorm,
    layers: Vec<Layer>,
}

struct Layer {
    attention: Attend,
    /// Of queries.
    cross_attention: Option<Attend>,
    /// After the attention, of queries and of texts; `None` where that side is not served.
    queries: Option<FeedForward>,
    texts: Option<FeedForward>,
}

/// `LN(x + attention(x, context))`.
struct Attend {
    attention: Attention,
    norm: LayerNorm,
}

/// `LN(x + mlp(x))`.
struct FeedForward {
    mlp: Mlp,
    norm: LayerNorm,
}

impl QFormer {
    /// Loads what `images` and `texts` need: a checkpoint may serve one of them only.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape.
    pub fn load(weights: &Weights, config: &Config, images: bool, texts: bool) -> Result<Self, ModelError> {
        let seen = config.vision.base.blocks.hidden_size;
        let config = &config.qformer;
        let QFormerConfig { blocks, cross_attention_frequency: frequency, .. } = config;
        let layer = |n: usize| -> Result<Layer, ModelError> {
            let name = |part: &str| format!("qformer.encoder.layer.{n}.{part}");
            let looks = images && n.is_multiple_of(*frequency);
            Ok(Layer {
                attention: Attend::load(weights, &name("attention"), config, blocks.hidden_size)?,
                cross_attention: looks
                    .then(|| Attend::load(weights, &name("crossattention"), config, seen))
                    .transpose()?,
                queries: images
                    .then(|| {
                        FeedForward::load(weights, [name("intermediate_query"), name("output_query")], config)
                    })
                    .transpose()?,
                texts: texts
                    .then(|| FeedForward::load(weights, [name("intermediate"), name("output")], config))
                    .transpose()?,
            })
        };
        Ok(Self {
            norm: LayerNorm::load(weights, "qformer.layernorm", blocks.hidden_size, blocks.layer_norm_eps)?,
            layers: (0..blocks.num_hidden_layers).map(layer).collect::<Result<_, _>>()?,
        })
    }

    /// What `queries` `[1, queries, hidden]` become when they look at each picture of `seen`
    /// `[batch, tokens, width]`; gives `[batch, queries, hidden]`.
    pub fn look(&self, queries: &Tensor, seen: &Tensor) -> Result<Tensor, TchError> {
        let (batch, _, _) = seen.size3()?;
        // Without positions: a query is known by its learned value.
        let x = self.norm.forward(queries)?.f_expand([batch, -1, -1], false)?;
        self.layers.iter().try_fold(x, |x, layer| {
            let x = layer.attention.forward(&x, None, Mask::None)?;
            let x = match &layer.cross_attention {
                Some(cross_attention) => cross_attention.forward(&x, Some(seen), Mask::None)?,
                None => x,
            };
            layer.queries.as_ref().ok_or_else(missing_tower)?.forward(&x)
        })
    }

    /// Reads the embedded tokens `x` `[batch, tokens, hidden]`; gives the same shape.
    pub fn read(&self, x: &Tensor, mask: Mask<'_>) -> Result<Tensor, TchError> {
        self.layers.iter().try_fold(self.norm.forward(x)?, |x, layer| {
            let x = layer.attention.forward(&x, None, mask)?;
            layer.texts.as_ref().ok_or_else(missing_tower)?.forward(&x)
        })
    }
}

impl Attend {
    fn load(
        weights: &Weights,
        prefix: &str,
        config: &QFormerConfig,
        context: i64,
    ) -> Result<Self, ModelError> {
        let blocks = &config.blocks;
        let names = ["attention.query", "attention.key", "attention.value", "output.dense"]
            .map(|part| format!("{prefix}.{part}"));
        let (names, norm) = (names.each_ref().map(String::as_str), format!("{prefix}.output.LayerNorm"));
        let (hidden, heads) = (blocks.hidden_size, blocks.num_attention_heads);
        Ok(Self {
            attention: Attention::load(weights, names, hidden, context, heads)?,
            norm: LayerNorm::load(weights, &norm, hidden, blocks.layer_norm_eps)?,
        })
    }

    fn forward(&self, x: &Tensor, context: Option<&Tensor>, mask: Mask<'_>) -> Result<Tensor, TchError> {
        self.norm.forward(&self.attention.add_to(x, x, context, mask)?)
    }
}

impl FeedForward {
    fn load(
        weights: &Weights,
        [inner, outer]: [String; 2],
        config: &QFormerConfig,
    ) -> Result<Self, ModelError> {
        let blocks = &config.blocks;
        let (hidden, intermediate) = (blocks.hidden_size, blocks.intermediate_size);
        let norm = format!("{outer}.LayerNorm");
        let [inner, outer] = [inner, outer].map(|half| format!("{half}.dense"));
        Ok(Self {
            mlp: Mlp::load(weights, [&inner, &outer], hidden, intermediate, blocks.hidden_act)?,
            norm: LayerNorm::load(weights, &norm, hidden, blocks.layer_norm_eps)?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor, TchError> {
        self.norm.forward(&self.mlp.add_to(x, x)?)
    }
}
