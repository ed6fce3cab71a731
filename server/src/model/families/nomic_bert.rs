//! `NomicBERT` (Nussbaum et al., 2024): BERT with rotary positions, a gated feed-forward and no biases.
//!
//! Its authors' configuration has GPT-2's names; transformers' own has those of BERT.

use serde_json::Value;

use super::bert::{self, Sizes};
use super::fields::{Fields, most};
use super::qwen::ropes;
use crate::model::encoder::{Biases, Distances, Encoder, HiddenAct, Names, QueryKeyValue, Rope, Up};

const NAMES: Names = Names {
    prefixes: &["", "bert."],
    embedding_norm: "emb_ln",
    layer: "encoder.layers.{}.",
    query_key_value: QueryKeyValue::Joined("attn.Wqkv"),
    attention_output: "attn.out_proj",
    attention_norm: "norm1",
    up: Up::Apart(["mlp.fc12", "mlp.fc11"]),
    down: "mlp.fc2",
    feed_forward_norm: "norm2",
    ..bert::NAMES
};

pub(super) fn read(fields: Fields<'_>) -> Result<Encoder, String> {
    let (sizes, theta, longest, activation) = if fields.get("n_embd").is_some() {
        authors(fields)?
    } else {
        let rope = ropes(fields, 1000.0)?;
        if rope.factor > 1.0 {
            return Err("rope_parameters other than of type default are not supported".into());
        }
        let activation = fields.activation("hidden_act", "silu")?;
        (Sizes::read(fields, "layer_norm_eps", 1e-12)?, rope.theta, "max_position_embeddings", activation)
    };
    let rope = Some(Rope { theta, factor: 1.0 });
    let layers = sizes.layers as usize;
    Ok(Encoder {
        architecture: "nomic_bert",
        segments: fields.size_or("type_vocab_size", most::SEGMENTS, 2)?,
        max_positions: Some(fields.size(longest, most::POSITIONS)?),
        distances: vec![Distances { rope, reach: None }; layers],
        activation,
        gated: true,
        biases: Biases::NONE,
        ..bert::plain(sizes, &NAMES)?
    })
}

/// The names of GPT-2, and what no published model has otherwise.
fn authors(fields: Fields<'_>) -> Result<(Sizes, f64, &str, HiddenAct), String> {
    for (name, value) in [
        ("activation_function", Value::from("swiglu")),
        ("rotary_emb_fraction", 1.0.into()),
        ("rotary_emb_interleaved", false.into()),
        ("prenorm", false.into()),
        ("causal", false.into()),
        ("parallel_block", false.into()),
        ("use_rms_norm", false.into()),
        ("qkv_proj_bias", false.into()),
        ("mlp_fc1_bias", false.into()),
        ("mlp_fc2_bias", false.into()),
        ("scale_attn_by_inverse_layer_idx", false.into()),
    ] {
        // 1 is as good as 1.0.
        let same = fields
            .get(name)
            .is_some_and(|found| found.as_f64().is_some() && found.as_f64() == value.as_f64());
        if !same {
            fields.only(name, &[value])?;
        }
    }
    fields.only("rotary_emb_scale_base", &[])?;
    fields.only("rotary_scaling_factor", &[])?;
    let hidden_size = fields.size("n_embd", most::HIDDEN)?;
    let sizes = Sizes {
        vocab_size: fields.size("vocab_size", most::VOCABULARY)?,
        hidden_size,
        layers: fields.size("n_layer", most::LAYERS)?,
        heads: fields.size("n_head", most::HEADS)?,
        intermediate_size: fields.size_or("n_inner", most::INTERMEDIATE, 4 * hidden_size)?,
        eps: fields.number_or("layer_norm_epsilon", 1e-12)?,
    };
    Ok((sizes, fields.number_or("rotary_emb_base", 10_000.0)?, "n_positions", HiddenAct::Silu))
}
