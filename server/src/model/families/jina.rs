//! `JinaBERT` v2 (Günther et al., 2023): BERT with `ALiBi` for positions and a gated feed-forward. Its later form
//! (for code, German, Chinese …) normalises queries and keys, and has other names.
//!
//! Written from the paper and the configurations: transformers has no implementation to compare with.

use super::bert::{self, Sizes};
use super::fields::{Fields, most};
use crate::model::encoder::{Bias, Biases, Encoder, HiddenAct, Names, QueryKeyNorm, Up};

const NAMES: Names = Names {
    up: Up::GateFirst("mlp.gated_layers"),
    down: "mlp.wo",
    feed_forward_norm: "mlp.layernorm",
    ..bert::NAMES
};

const LATER: Names = Names {
    query_key_norm: ["attention.self.layer_norm_q", "attention.self.layer_norm_k"],
    attention_norm: "layer_norm_1",
    up: Up::GateSecond("mlp.up_gated_layer"),
    down: "mlp.down_layer",
    feed_forward_norm: "layer_norm_2",
    ..bert::NAMES
};

pub(super) fn read(fields: Fields<'_>) -> Result<Encoder, String> {
    // Only the code that the repository would have run tells the forms apart, by its name.
    let code = fields.get("auto_map").map(ToString::to_string).unwrap_or_default();
    let is_later = code.contains("qk-post-norm");
    let activation = match fields.text_or("feed_forward_type", "original")? {
        "geglu" => HiddenAct::Gelu,
        "reglu" => HiddenAct::Relu,
        other => {
            return Err(format!("feed_forward_type \"{other}\" is not supported; supported: geglu, reglu"));
        }
    };
    Ok(Encoder {
        architecture: "jina_bert",
        segments: fields.size_or("type_vocab_size", most::SEGMENTS, 2)?,
        max_positions: Some(fields.size("max_position_embeddings", most::POSITIONS)?),
        bias: Some(Bias::Alibi),
        query_key_norm: is_later.then_some(QueryKeyNorm::Whole),
        activation,
        gated: true,
        biases: Biases { up: false, ..Biases::ALL },
        ..bert::plain(Sizes::read(fields, "layer_norm_eps", 1e-12)?, if is_later { &LATER } else { &NAMES })?
    })
}
