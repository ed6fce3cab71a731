//! Qwen2 and Qwen3 decoders that were trained to embed: the state of the last token is the vector.

use serde_json::Value;

use super::bert::{self, Sizes};
use super::fields::{Fields, most};
use crate::model::encoder::{
    Biases, Distances, Encoder, Heads, Names, Norm, NormKind, Order, QueryKeyNorm, QueryKeyValue, Rope, Up,
};

pub(super) const NAMES: Names = Names {
    prefixes: &["", "model."],
    words: &["embed_tokens"],
    embedding_norm: "",
    layer: "layers.{}.",
    query_key_value: QueryKeyValue::Apart(["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]),
    query_key_norm: ["self_attn.q_norm", "self_attn.k_norm"],
    attention_output: "self_attn.o_proj",
    attention_norm: "input_layernorm",
    up: Up::Apart(["mlp.gate_proj", "mlp.up_proj"]),
    down: "mlp.down_proj",
    feed_forward_norm: "post_attention_layernorm",
    final_norm: "norm",
    ..bert::NAMES
};

/// What Qwen's and Gemma's decoders have in common.
pub(super) fn decoder(fields: Fields<'_>, names: &'static Names) -> Result<Encoder, String> {
    let sizes = Sizes::read(fields, "rms_norm_eps", 1e-6)?;
    let query = sizes.heads;
    let key_value = fields.size_or("num_key_value_heads", most::HEADS, query)?;
    if query % key_value != 0 {
        return Err(format!("num_attention_heads {query} is no multiple of num_key_value_heads {key_value}"));
    }
    let size = match fields.get("head_dim") {
        Some(_) => fields.size("head_dim", most::HIDDEN)?,
        None => Fields::head_size(sizes.hidden_size, "num_attention_heads", query)?,
    };
    if size % 2 != 0 {
        return Err(format!("head_dim is {size}, and rotary positions need an even one"));
    }
    let plain = bert::plain(Sizes { heads: 1, ..sizes }, names)?;
    Ok(Encoder {
        // Together they may be wider than a state.
        heads: Heads { query, key_value, size },
        max_positions: Some(fields.size("max_position_embeddings", most::POSITIONS)?),
        embedding_norm: false,
        norm: Norm { kind: NormKind::Rms, bias: false, ..plain.norm },
        order: Order::Pre,
        gated: true,
        biases: Biases::NONE,
        ..plain
    })
}

pub(super) fn read(fields: Fields<'_>) -> Result<Encoder, String> {
    fields.only("use_sliding_window", &[false.into()])?;
    let is_qwen3 = fields.text_or("model_type", "")? == "qwen3";
    let decoder = decoder(fields, &NAMES)?;
    if layer_kinds(fields, decoder.layers)?.is_some_and(|kinds| kinds.contains(&true)) {
        return Err("layer_types with sliding_attention are not supported".into());
    }
    let rope = Some(ropes(fields, 10_000.0)?);
    let attention_bias = fields.flag_or("attention_bias", false)?;
    Ok(Encoder {
        architecture: if is_qwen3 { "qwen3" } else { "qwen2" },
        distances: vec![Distances { rope, reach: None }; decoder.layers as usize],
        // gte-Qwen2 and others were trained to see all of a text.
        causal: fields.flag_or("is_causal", true)?,
        query_key_norm: is_qwen3.then_some(QueryKeyNorm::Head),
        activation: fields.activation("hidden_act", "silu")?,
        biases: Biases {
            query_key_value: !is_qwen3 || attention_bias,
            attention_output: is_qwen3 && attention_bias,
            ..Biases::NONE
        },
        ..decoder
    })
}

/// Rotary positions that all layers share: those of transformers 5 (`rope_parameters`), or of those before it.
pub(super) fn ropes(fields: Fields<'_>, default_theta: f64) -> Result<Rope, String> {
    if let Some(parameters) = fields.get("rope_parameters") {
        return rope(Fields(parameters), default_theta)
            .map_err(|problem| format!("rope_parameters: {problem}"));
    }
    fields.only("rope_scaling", &[])?;
    Ok(Rope { theta: fields.number_or("rope_theta", default_theta)?, factor: 1.0 })
}

/// Rotary positions of layers of one kind (`rope_parameters.KIND`), as transformers 5 has them.
pub(super) fn rope_of(fields: Fields<'_>, kind: &str) -> Result<Option<Rope>, String> {
    let Some(parameters) = fields.get("rope_parameters").and_then(|all| all.get(kind)) else {
        return Ok(None);
    };
    rope(Fields(parameters), 10_000.0)
        .map(Some)
        .map_err(|problem| format!("rope_parameters.{kind}: {problem}"))
}

fn rope(parameters: Fields<'_>, default_theta: f64) -> Result<Rope, String> {
    parameters.only("rope_type", &["default".into(), "linear".into()])?;
    parameters.only("partial_rotary_factor", &[1.0.into(), 1.into()])?;
    let is_linear = parameters.text_or("rope_type", "default")? == "linear";
    let factor = if is_linear { parameters.number_or("factor", 1.0)? } else { 1.0 };
    let theta = parameters.number_or("rope_theta", default_theta)?;
    if factor > 0.0 && theta > 0.0 { Ok(Rope { theta, factor }) } else { Err("a number is 0".into()) }
}

/// Whether each layer sees only what is near (`layer_types`), where that is said.
pub(super) fn layer_kinds(fields: Fields<'_>, layers: i64) -> Result<Option<Vec<bool>>, String> {
    let Some(kinds) = fields.get("layer_types") else { return Ok(None) };
    let kinds = kinds.as_array().ok_or("layer_types is no list")?;
    if kinds.len() as i64 != layers {
        return Err(format!("layer_types names {} layers, and num_hidden_layers is {layers}", kinds.len()));
    }
    let is_local = |kind: &Value| match kind.as_str() {
        Some("sliding_attention") => Ok(true),
        Some("full_attention") => Ok(false),
        _ => Err(format!(
            "layer_types has {kind}, which is not supported; supported: full_attention, sliding_attention"
        )),
    };
    kinds.iter().map(is_local).collect::<Result<_, _>>().map(Some)
}
