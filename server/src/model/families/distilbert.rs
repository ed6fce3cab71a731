//! `DistilBERT` (Sanh et al., 2019): BERT without segments, and with names of its own.

use super::bert::{self, Sizes};
use super::fields::{Fields, most};
use crate::model::encoder::{Encoder, Learned, Names, QueryKeyValue, Up};

const NAMES: Names = Names {
    prefixes: &["", "distilbert."],
    layer: "transformer.layer.{}.",
    query_key_value: QueryKeyValue::Apart(["attention.q_lin", "attention.k_lin", "attention.v_lin"]),
    attention_output: "attention.out_lin",
    attention_norm: "sa_layer_norm",
    up: Up::Plain("ffn.lin1"),
    down: "ffn.lin2",
    feed_forward_norm: "output_layer_norm",
    ..bert::NAMES
};

pub(super) fn read(fields: Fields<'_>) -> Result<Encoder, String> {
    let sizes = Sizes {
        vocab_size: fields.size("vocab_size", most::VOCABULARY)?,
        hidden_size: fields.size("dim", most::HIDDEN)?,
        layers: fields.size("n_layers", most::LAYERS)?,
        heads: fields.size("n_heads", most::HEADS)?,
        intermediate_size: fields.size("hidden_dim", most::INTERMEDIATE)?,
        // transformers has written it into the code.
        eps: 1e-12,
    };
    let rows = fields.size("max_position_embeddings", most::POSITIONS)?;
    Ok(Encoder {
        architecture: "distilbert",
        learned: Some(Learned { rows, padding: None }),
        activation: fields.activation("activation", "gelu")?,
        ..bert::plain(sizes, &NAMES)?
    })
}
