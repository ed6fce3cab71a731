//! ALBERT (Lan et al., 2019): BERT with narrow embeddings, and with one layer that is computed many times.

use super::bert::{self, Sizes};
use super::fields::{Fields, most};
use crate::model::encoder::{Encoder, Learned, Names, QueryKeyValue, Up};

const NAMES: Names = Names {
    prefixes: &["", "albert."],
    projection: "encoder.embedding_hidden_mapping_in",
    layer: "encoder.albert_layer_groups.0.albert_layers.0.",
    query_key_value: QueryKeyValue::Apart(["attention.query", "attention.key", "attention.value"]),
    attention_output: "attention.dense",
    attention_norm: "attention.LayerNorm",
    up: Up::Plain("ffn"),
    down: "ffn_output",
    feed_forward_norm: "full_layer_layer_norm",
    ..bert::NAMES
};

pub(super) fn read(fields: Fields<'_>) -> Result<Encoder, String> {
    fields.only("position_embedding_type", &["absolute".into()])?;
    // Others were never published.
    fields.only("num_hidden_groups", &[1.into()])?;
    fields.only("inner_group_num", &[1.into()])?;
    let rows = fields.size("max_position_embeddings", most::POSITIONS)?;
    Ok(Encoder {
        architecture: "albert",
        embedding_size: fields.size_or("embedding_size", most::HIDDEN, 128)?,
        shared_layer: true,
        learned: Some(Learned { rows, padding: None }),
        segments: fields.size_or("type_vocab_size", most::SEGMENTS, 2)?,
        activation: fields.activation("hidden_act", "gelu_new")?,
        ..bert::plain(Sizes::read(fields, "layer_norm_eps", 1e-12)?, &NAMES)?
    })
}
