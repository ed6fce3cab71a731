//! BERT (Devlin et al., 2018), as transformers' `BertModel` computes it: `MiniLM`, BGE (en), E5 (en), GTE
//! (first), multi-qa …

use super::fields::{Fields, most};
use crate::model::encoder::{
    Biases, Distances, Encoder, Heads, HiddenAct, Learned, Names, Norm, NormKind, Order, QueryKeyValue, Up,
};

pub(super) const NAMES: Names = Names {
    prefixes: &["", "bert."],
    words: &["embeddings.word_embeddings"],
    positions: "embeddings.position_embeddings",
    segments: "embeddings.token_type_embeddings",
    embedding_norm: "embeddings.LayerNorm",
    projection: "",
    buckets: "",
    layer: "encoder.layer.{}.",
    query_key_value: QueryKeyValue::Apart([
        "attention.self.query",
        "attention.self.key",
        "attention.self.value",
    ]),
    query_key_norm: ["", ""],
    attention_output: "attention.output.dense",
    attention_norm: "attention.output.LayerNorm",
    attention_output_norm: "",
    up: Up::Plain("intermediate.dense"),
    down: "output.dense",
    feed_forward_norm: "output.LayerNorm",
    feed_forward_output_norm: "",
    final_norm: "",
};

/// A post-norm encoder of these sizes that sees all of a text, has biases everywhere, and nothing special; what
/// is different in a family, its reader says.
pub(super) fn plain(sizes: Sizes, names: &'static Names) -> Result<Encoder, String> {
    let Sizes { vocab_size, hidden_size, layers, heads, intermediate_size, eps } = sizes;
    let size = Fields::head_size(hidden_size, "num_attention_heads", heads)?;
    Ok(Encoder {
        architecture: "bert",
        vocab_size,
        hidden_size,
        embedding_size: hidden_size,
        intermediate_size,
        layers,
        shared_layer: false,
        heads: Heads { query: heads, key_value: heads, size },
        embedding_scale: None,
        embedding_norm: true,
        segments: 0,
        learned: None,
        max_positions: None,
        bias: None,
        distances: vec![Distances::default(); layers as usize],
        causal: false,
        score_scale: None,
        query_key_norm: None,
        norm: Norm { kind: NormKind::Layer, eps, bias: true },
        order: Order::Post,
        first_norm: true,
        activation: HiddenAct::Gelu,
        gated: false,
        biases: Biases::ALL,
        names,
    })
}

/// The sizes that every encoder has.
#[derive(Clone, Copy)]
pub(super) struct Sizes {
    pub vocab_size: i64,
    pub hidden_size: i64,
    pub layers: i64,
    pub heads: i64,
    pub intermediate_size: i64,
    pub eps: f64,
}

impl Sizes {
    /// By the names that most families have for them.
    pub(super) fn read(fields: Fields<'_>, eps: &str, default_eps: f64) -> Result<Self, String> {
        Ok(Self {
            vocab_size: fields.size("vocab_size", most::VOCABULARY)?,
            hidden_size: fields.size("hidden_size", most::HIDDEN)?,
            layers: fields.size("num_hidden_layers", most::LAYERS)?,
            heads: fields.size("num_attention_heads", most::HEADS)?,
            intermediate_size: fields.size("intermediate_size", most::INTERMEDIATE)?,
            eps: fields.number_or(eps, default_eps)?,
        })
    }
}

pub(super) fn read(fields: Fields<'_>) -> Result<Encoder, String> {
    fields.only("position_embedding_type", &["absolute".into()])?;
    if fields.flag_or("is_decoder", false)? {
        return Err("a BERT decoder (is_decoder: true) makes no embeddings".into());
    }
    let rows = fields.size("max_position_embeddings", most::POSITIONS)?;
    Ok(Encoder {
        learned: Some(Learned { rows, padding: None }),
        segments: fields.size_or("type_vocab_size", most::SEGMENTS, 2)?,
        activation: fields.activation("hidden_act", "gelu")?,
        ..plain(Sizes::read(fields, "layer_norm_eps", 1e-12)?, &NAMES)?
    })
}
