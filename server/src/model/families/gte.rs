//! GTE v1.5 (Zhang et al., 2024; `model_type` "new"): BERT with rotary positions and a gated feed-forward.

use serde_json::Value;

use super::bert::{self, Sizes};
use super::fields::{Fields, most};
use super::qwen::ropes;
use crate::model::encoder::{Biases, Distances, Encoder, Names, QueryKeyValue, Rope, Up};

const NAMES: Names = Names {
    prefixes: &["", "new."],
    query_key_value: QueryKeyValue::Joined("attention.qkv_proj"),
    attention_output: "attention.o_proj",
    attention_norm: "attn_ln",
    up: Up::GateSecond("mlp.up_gate_proj"),
    down: "mlp.down_proj",
    feed_forward_norm: "mlp_ln",
    ..bert::NAMES
};

pub(super) fn read(fields: Fields<'_>) -> Result<Encoder, String> {
    fields.only("position_embedding_type", &["rope".into()])?;
    fields.only("pack_qkv", &[true.into()])?;
    fields.only("layer_norm_type", &["layer_norm".into()])?;
    fields.only("logn_attention_scale", &[false.into()])?;
    let sizes = Sizes::read(fields, "layer_norm_eps", 1e-12)?;
    let layers = sizes.layers as usize;
    let plain = bert::plain(sizes, &NAMES)?;
    let rope = if fields.get("rope_parameters").is_some() {
        ropes(fields, 10_000.0)?
    } else {
        ntk(fields, plain.heads.size)?
    };
    let segments = match fields.get("type_vocab_size").and_then(Value::as_i64) {
        Some(0) => 0,
        _ => fields.size_or("type_vocab_size", most::SEGMENTS, 1)?,
    };
    Ok(Encoder {
        architecture: "new",
        segments,
        max_positions: Some(fields.size("max_position_embeddings", most::POSITIONS)?),
        distances: vec![Distances { rope: Some(rope), reach: None }; layers],
        activation: fields.activation("hidden_act", "gelu")?,
        gated: true,
        biases: Biases { up: false, ..Biases::ALL },
        ..plain
    })
}

/// The authors' scaling (`ntk`): a base that is higher by the factor, and all frequencies divided by the factor's
/// power of two over the width of a head.
fn ntk(fields: Fields<'_>, head: i64) -> Result<Rope, String> {
    let theta = fields.number_or("rope_theta", 10_000.0)?;
    let Some(scaling) = fields.get("rope_scaling") else { return Ok(Rope { theta, factor: 1.0 }) };
    let scaling = Fields(scaling);
    for name in ["type", "rope_type"] {
        scaling.only(name, &["ntk".into()]).map_err(|problem| format!("rope_scaling: {problem}"))?;
    }
    scaling.only("mixed_b", &[])?;
    let factor = scaling.number_or("factor", 1.0)?;
    if factor < 1.0 {
        return Err(format!("rope_scaling.factor is {factor}, less than 1"));
    }
    Ok(Rope { theta: theta * factor, factor: factor.powf(2.0 / head as f64) })
}
