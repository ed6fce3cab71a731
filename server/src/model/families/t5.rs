//! The encoder of T5 (Raffel et al., 2019): no embeddings of positions, but a learned bias by distance that all
//! layers share; `RMSNorm` first; no biases; scores of attention that are not scaled.

use super::bert::{self, Sizes};
use super::fields::{Fields, most};
use crate::model::encoder::{
    Bias, Biases, Encoder, Heads, HiddenAct, Names, Norm, NormKind, Order, QueryKeyValue, Up,
};

const NAMES: Names = Names {
    prefixes: &["", "transformer."],
    // The same, which older files have twice.
    words: &["shared", "encoder.embed_tokens"],
    embedding_norm: "",
    buckets: "encoder.block.0.layer.0.SelfAttention.relative_attention_bias",
    layer: "encoder.block.{}.",
    query_key_value: QueryKeyValue::Apart([
        "layer.0.SelfAttention.q",
        "layer.0.SelfAttention.k",
        "layer.0.SelfAttention.v",
    ]),
    attention_output: "layer.0.SelfAttention.o",
    attention_norm: "layer.0.layer_norm",
    up: Up::Plain("layer.1.DenseReluDense.wi"),
    down: "layer.1.DenseReluDense.wo",
    feed_forward_norm: "layer.1.layer_norm",
    final_norm: "encoder.final_layer_norm",
    ..bert::NAMES
};

const GATED: Names =
    Names { up: Up::Apart(["layer.1.DenseReluDense.wi_0", "layer.1.DenseReluDense.wi_1"]), ..NAMES };

/// How many classes of distances: an even number of 4 or more, or they cannot be told apart.
pub(super) fn buckets(fields: Fields<'_>) -> Result<i64, String> {
    let count = fields.size_or("relative_attention_num_buckets", 1 << 16, 32)?;
    if count >= 4 && count % 4 == 0 {
        Ok(count)
    } else {
        Err(format!("relative_attention_num_buckets is {count}, and no multiple of 4"))
    }
}

pub(super) fn read(fields: Fields<'_>) -> Result<Encoder, String> {
    let heads = fields.size("num_heads", most::HEADS)?;
    let size = fields.size("d_kv", most::HIDDEN)?;
    let count = buckets(fields)?;
    let max_distance = fields.size_or("relative_attention_max_distance", 1 << 20, 128)?;
    // Beyond those that have a class of their own.
    if max_distance <= count / 4 {
        return Err(format!("relative_attention_max_distance is {max_distance}, not over {}", count / 4));
    }
    let projection = fields.text_or("feed_forward_proj", "relu")?;
    let (gated, activation) = match projection {
        "relu" => (false, HiddenAct::Relu),
        "gelu" => (false, HiddenAct::Gelu),
        "gated-relu" => (true, HiddenAct::Relu),
        // transformers reads this one as the approximation, which T5 v1.1 was trained with.
        "gated-gelu" => (true, HiddenAct::GeluTanh),
        "gated-silu" => (true, HiddenAct::Silu),
        other => {
            return Err(format!(
                "feed_forward_proj \"{other}\" is not supported; supported: relu, gelu, gated-relu, gated-gelu, gated-silu"
            ));
        }
    };
    let hidden_size = fields.size("d_model", most::HIDDEN)?;
    let sizes = Sizes {
        vocab_size: fields.size("vocab_size", most::VOCABULARY)?,
        hidden_size,
        layers: fields.size("num_layers", most::LAYERS)?,
        heads: 1,
        intermediate_size: fields.size("d_ff", most::INTERMEDIATE)?,
        eps: fields.number_or("layer_norm_epsilon", 1e-6)?,
    };
    let plain = bert::plain(sizes, if gated { &GATED } else { &NAMES })?;
    Ok(Encoder {
        architecture: "t5",
        // Together they may be wider than a state.
        heads: Heads { query: heads, key_value: heads, size },
        score_scale: Some(1.0),
        embedding_norm: false,
        bias: Some(Bias::Buckets { count, max_distance }),
        norm: Norm { kind: NormKind::Rms, bias: false, ..plain.norm },
        order: Order::Pre,
        activation,
        gated,
        biases: Biases::NONE,
        ..plain
    })
}
