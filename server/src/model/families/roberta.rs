//! `RoBERTa` (Liu et al., 2019) and XLM-RoBERTa (Conneau et al., 2019): BERT with other positions.

use super::bert::{self, Sizes};
use super::fields::{Fields, most};
use crate::model::encoder::{Encoder, Learned, Names};

const NAMES: Names = Names { prefixes: &["", "roberta.", "xlm_roberta.", "camembert."], ..bert::NAMES };

pub(super) fn read(fields: Fields<'_>) -> Result<Encoder, String> {
    fields.only("position_embedding_type", &["absolute".into()])?;
    if fields.flag_or("is_decoder", false)? {
        return Err("a decoder (is_decoder: true) makes no embeddings".into());
    }
    let learned = learned(fields)?;
    Ok(Encoder {
        architecture: if fields.text_or("model_type", "")? == "roberta" { "roberta" } else { "xlm-roberta" },
        learned: Some(learned),
        segments: fields.size_or("type_vocab_size", most::SEGMENTS, 2)?,
        activation: fields.activation("hidden_act", "gelu")?,
        ..bert::plain(Sizes::read(fields, "layer_norm_eps", 1e-12)?, &NAMES)?
    })
}

/// Positions that begin behind the padding token's id.
pub(super) fn learned(fields: Fields<'_>) -> Result<Learned, String> {
    let rows = fields.size("max_position_embeddings", most::POSITIONS)?;
    // 0 is an id, too.
    let padding = fields.number_or("pad_token_id", 1.0)?;
    if padding.fract() != 0.0 || padding + 2.0 > rows as f64 {
        return Err(format!("pad_token_id is {padding}, which leaves no room in {rows} positions"));
    }
    Ok(Learned { rows, padding: Some(padding as i64) })
}
