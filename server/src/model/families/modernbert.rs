//! `ModernBERT` (Warner et al., 2024): rotary positions, windows of attention in two layers of three, a gated
//! feed-forward, norms first.

use super::bert::{self, Sizes};
use super::fields::{Fields, most};
use super::qwen::{layer_kinds, rope_of};
use crate::model::encoder::{Biases, Distances, Encoder, Names, Norm, Order, QueryKeyValue, Rope, Up};

const NAMES: Names = Names {
    prefixes: &["", "model."],
    words: &["embeddings.tok_embeddings"],
    embedding_norm: "embeddings.norm",
    layer: "layers.{}.",
    query_key_value: QueryKeyValue::Joined("attn.Wqkv"),
    attention_output: "attn.Wo",
    attention_norm: "attn_norm",
    up: Up::GateFirst("mlp.Wi"),
    down: "mlp.Wo",
    feed_forward_norm: "mlp_norm",
    final_norm: "final_norm",
    ..bert::NAMES
};

pub(super) fn read(fields: Fields<'_>) -> Result<Encoder, String> {
    let sizes = Sizes::read(fields, "norm_eps", 1e-5)?;
    let attention_bias = fields.flag_or("attention_bias", false)?;
    let mlp_bias = fields.flag_or("mlp_bias", false)?;
    let every = fields.size_or("global_attn_every_n_layers", most::LAYERS, 3)?;
    let is_local = layer_kinds(fields, sizes.layers)?
        .unwrap_or_else(|| (0..sizes.layers).map(|layer| layer % every != 0).collect());
    let window = fields.size_or("local_attention", most::POSITIONS, 128)?;
    let local = rope_of(fields, "sliding_attention")?
        .unwrap_or(Rope { theta: fields.number_or("local_rope_theta", 10_000.0)?, factor: 1.0 });
    let global = rope_of(fields, "full_attention")?
        .unwrap_or(Rope { theta: fields.number_or("global_rope_theta", 160_000.0)?, factor: 1.0 });
    // Half of the window lies to each side.
    let near = Distances { rope: Some(local), reach: Some(window / 2) };
    let far = Distances { rope: Some(global), reach: None };
    let distances = is_local.into_iter().map(|is_local| if is_local { near } else { far });
    let plain = bert::plain(sizes, &NAMES)?;
    Ok(Encoder {
        architecture: "modernbert",
        max_positions: Some(fields.size("max_position_embeddings", most::POSITIONS)?),
        distances: distances.collect(),
        norm: Norm { bias: fields.flag_or("norm_bias", false)?, ..plain.norm },
        order: Order::Pre,
        // Embeddings have just been normalised.
        first_norm: false,
        activation: fields.activation("hidden_activation", "gelu")?,
        gated: true,
        biases: Biases {
            query_key_value: attention_bias,
            attention_output: attention_bias,
            up: mlp_bias,
            down: mlp_bias,
        },
        ..plain
    })
}
