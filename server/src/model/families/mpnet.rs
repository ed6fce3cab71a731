//! `MPNet` (Song et al., 2020): BERT without segments, with fairseq's positions, and with a learned bias by
//! distance that all layers share.

use super::bert::{self, Sizes};
use super::fields::Fields;
use super::{roberta, t5};
use crate::model::encoder::{Bias, Encoder, Names, QueryKeyValue, Up};

const NAMES: Names = Names {
    prefixes: &["", "mpnet."],
    buckets: "encoder.relative_attention_bias",
    query_key_value: QueryKeyValue::Apart(["attention.attn.q", "attention.attn.k", "attention.attn.v"]),
    attention_output: "attention.attn.o",
    attention_norm: "attention.LayerNorm",
    up: Up::Plain("intermediate.dense"),
    ..bert::NAMES
};

pub(super) fn read(fields: Fields<'_>) -> Result<Encoder, String> {
    let learned = roberta::learned(fields)?;
    Ok(Encoder {
        architecture: "mpnet",
        learned: Some(learned),
        // transformers takes 128 for the greatest distance, whatever the configuration says.
        bias: Some(Bias::Buckets { count: t5::buckets(fields)?, max_distance: 128 }),
        activation: fields.activation("hidden_act", "gelu")?,
        ..bert::plain(Sizes::read(fields, "layer_norm_eps", 1e-12)?, &NAMES)?
    })
}
