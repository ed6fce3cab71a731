//! Gemma 3 (2025) as `EmbeddingGemma` has it: a decoder that sees all of a text, in most layers only what is near.

use super::fields::{Fields, most};
use super::qwen::{self, layer_kinds, rope_of};
use crate::model::encoder::{Biases, Distances, Encoder, Names, Norm, NormKind, Order, QueryKeyNorm, Rope};

const NAMES: Names = Names {
    attention_output_norm: "post_attention_layernorm",
    feed_forward_norm: "pre_feedforward_layernorm",
    feed_forward_output_norm: "post_feedforward_layernorm",
    ..qwen::NAMES
};

pub(super) fn read(fields: Fields<'_>) -> Result<Encoder, String> {
    // Null in every embedding model that was published.
    fields.only("attn_logit_softcapping", &[])?;
    fields.only("rope_scaling", &[])?;
    let decoder = qwen::decoder(fields, &NAMES)?;
    let layers = decoder.layers;
    let every = fields.size_or("_sliding_window_pattern", most::LAYERS, 6)?;
    let is_local = layer_kinds(fields, layers)?
        .unwrap_or_else(|| (1..=layers).map(|layer| layer % every != 0).collect());
    let sees_all = fields.flag_or("use_bidirectional_attention", false)?;
    let window = fields.size_or("sliding_window", most::POSITIONS, 4096)?;
    // A window that looks both ways has half of it on each side; one that looks back counts the token itself.
    let reach = Some(if sees_all { window / 2 } else { window - 1 });
    let rope = |kind, name, theta| -> Result<Option<Rope>, String> {
        let old = Rope { theta: fields.number_or(name, theta)?, factor: 1.0 };
        Ok(Some(rope_of(fields, kind)?.unwrap_or(old)))
    };
    let local = rope("sliding_attention", "rope_local_base_freq", 10_000.0)?;
    let global = rope("full_attention", "rope_theta", 1_000_000.0)?;
    let (near, far) = (Distances { rope: local, reach }, Distances { rope: global, reach: None });
    let distances = is_local.into_iter().map(|is_local| if is_local { near } else { far });
    let scalar = fields.number_or("query_pre_attn_scalar", 256.0)?;
    if scalar <= 0.0 {
        return Err("query_pre_attn_scalar is 0".into());
    }
    let attention_bias = fields.flag_or("attention_bias", false)?;
    Ok(Encoder {
        architecture: "gemma3_text",
        embedding_scale: Some((decoder.hidden_size as f64).sqrt()),
        distances: distances.collect(),
        causal: !sees_all,
        score_scale: Some(1.0 / scalar.sqrt()),
        query_key_norm: Some(QueryKeyNorm::Head),
        norm: Norm { kind: NormKind::RmsPlusOne, ..decoder.norm },
        order: Order::Sandwich,
        activation: fields.activation("hidden_activation", "gelu_pytorch_tanh")?,
        biases: Biases { query_key_value: attention_bias, attention_output: attention_bias, ..Biases::NONE },
        ..decoder
    })
}
