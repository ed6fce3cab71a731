//! What text-embeddings-inference's requests and answers look like.
//!
//! Unknown fields are ignored, as there; `null` is as good as leaving an optional field out.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::openapi::schema::{ObjectBuilder, Type};
use utoipa::openapi::{RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

use crate::tokenize::Overflow;

/// A string, or an array of strings.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(
    untagged,
    expecting = "expected a string or an array of strings (token ids are not taken: /decode has their text)"
)]
pub(super) enum Texts {
    /// One text.
    One(String),
    /// Several.
    Many(Vec<String>),
}

impl Texts {
    /// All of them.
    pub(super) fn into_all(self) -> Vec<String> {
        match self {
            Self::One(text) => vec![text],
            Self::Many(texts) => texts,
        }
    }
}

/// At which end a text loses what is too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    Left,
    Right,
}

// Not derived: serde_json calls anything but a string there a mistake in the JSON.
impl<'de> Deserialize<'de> for Direction {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match String::deserialize(deserializer)?.as_str() {
            "left" | "Left" => Ok(Self::Left),
            "right" | "Right" => Ok(Self::Right),
            other => Err(D::Error::unknown_variant(other, &["Left", "Right"])),
        }
    }
}

impl PartialSchema for Direction {
    fn schema() -> RefOr<Schema> {
        let schema = ObjectBuilder::new().schema_type(Type::String).enum_values(Some(["Left", "Right"]));
        schema.description(Some("At which end a text loses what is too long.")).into()
    }
}

impl ToSchema for Direction {}

/// What a request says about texts that are too long.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Cut {
    pub(super) truncate: Option<bool>,
    pub(super) direction: Option<Direction>,
}

impl Cut {
    /// What becomes of them where `own` is what the model is set to.
    pub(super) fn overflow(self, own: Overflow) -> Overflow {
        let cut = |direction| match direction {
            Direction::Left => Overflow::TruncateStart,
            Direction::Right => Overflow::TruncateEnd,
        };
        match (self.truncate, self.direction) {
            (Some(false), _) => Overflow::Error,
            (Some(true), direction) => cut(direction.unwrap_or(Direction::Right)),
            // What cuts nothing has no direction.
            (None, Some(direction)) if matches!(own, Overflow::TruncateEnd | Overflow::TruncateStart) => {
                cut(direction)
            }
            (None, _) => own,
        }
    }
}

/// Texts to be embedded.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = TeiEmbedRequest)]
pub(super) struct EmbedRequest {
    pub(super) inputs: Texts,
    /// Whether texts that are too long are cut; otherwise as the server is set, which cuts them by default.
    /// `X-Truncated-Inputs` says how many were.
    pub(super) truncate: Option<bool>,
    pub(super) truncation_direction: Option<Direction>,
    /// The name of a prompt of the model; otherwise its default one, if it has one.
    pub(super) prompt_name: Option<String>,
    /// Ours: what the texts are (`query`, `document`, …), which chooses the prompt.
    pub(super) input_type: Option<String>,
    /// Whether vectors are divided by their norm; they are unless it is said.
    #[schema(default = true)]
    pub(super) normalize: Option<bool>,
    /// The length of the vectors: the model's own, or one that it was trained to be shortened to.
    pub(super) dimensions: Option<u64>,
}

/// Texts whose tokens are to be embedded.
#[derive(Debug, Deserialize, ToSchema)]
pub(super) struct EmbedAllRequest {
    pub(super) inputs: Texts,
    /// Whether texts that are too long are cut; otherwise as the server is set, which cuts them by default.
    /// `X-Truncated-Inputs` says how many were.
    pub(super) truncate: Option<bool>,
    pub(super) truncation_direction: Option<Direction>,
    /// The name of a prompt of the model; otherwise its default one, if it has one.
    pub(super) prompt_name: Option<String>,
    /// Ours: what the texts are (`query`, `document`, …), which chooses the prompt.
    pub(super) input_type: Option<String>,
}

/// A text, and others that it is compared with.
#[derive(Debug, Deserialize, ToSchema)]
pub(super) struct SimilarityRequest {
    pub(super) inputs: SimilarityInputs,
    pub(super) parameters: Option<SimilarityParameters>,
}

/// A text, and others that it is compared with.
#[derive(Debug, Deserialize, ToSchema)]
pub(super) struct SimilarityInputs {
    pub(super) source_sentence: String,
    pub(super) sentences: Vec<String>,
}

/// How texts are compared.
#[derive(Debug, Default, Deserialize, ToSchema)]
pub(super) struct SimilarityParameters {
    /// Whether texts that are too long are cut; otherwise as the server is set, which cuts them by default.
    /// `X-Truncated-Inputs` says how many were.
    pub(super) truncate: Option<bool>,
    pub(super) truncation_direction: Option<Direction>,
    /// The name of a prompt of the model; otherwise its default one, if it has one.
    pub(super) prompt_name: Option<String>,
    /// Ours: what the texts are (`query`, `document`, …), which chooses the prompt.
    pub(super) input_type: Option<String>,
}

/// A query and texts.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = TeiRerankRequest)]
pub(super) struct RerankRequest {
    pub(super) query: String,
    pub(super) texts: Vec<String>,
    /// Ours: what makes a text a good one, for models that were trained to be told (Qwen3-Reranker); it is put before
    /// the query of others. Otherwise the model's own.
    pub(super) instruction: Option<String>,
    /// Whether texts that are too long are cut; otherwise as the server is set, which cuts them by default.
    /// `X-Truncated-Inputs` says how many were.
    pub(super) truncate: Option<bool>,
    pub(super) truncation_direction: Option<Direction>,
    /// Whether scores are logits and not their sigmoid.
    #[schema(default = false)]
    pub(super) raw_scores: Option<bool>,
    /// Whether to answer the texts with their scores.
    #[schema(default = false)]
    pub(super) return_text: Option<bool>,
}

/// A text's place, and how well it goes with the query.
#[derive(Serialize, ToSchema)]
pub(super) struct Rank {
    /// Its place in the request.
    pub(super) index: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) text: Option<String>,
    pub(super) score: f32,
}

/// A text or a pair of texts, or an array of arrays with one or two texts each.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(untagged, expecting = "expected a string, a pair of strings, or an array of arrays with one or two")]
pub(super) enum Predicted {
    /// One text.
    Text(String),
    /// One text, or a pair of texts.
    Pair(Vec<String>),
    /// Several.
    Batch(Vec<Vec<String>>),
}

/// Texts or pairs to be classified.
#[derive(Debug, Deserialize, ToSchema)]
pub(super) struct PredictRequest {
    pub(super) inputs: Predicted,
    /// Whether texts that are too long are cut; otherwise as the server is set, which cuts them by default.
    /// `X-Truncated-Inputs` says how many were.
    pub(super) truncate: Option<bool>,
    pub(super) truncation_direction: Option<Direction>,
    /// Whether scores are logits; otherwise they are the sigmoid of one, or the softmax of several.
    #[schema(default = false)]
    pub(super) raw_scores: Option<bool>,
}

/// A label, and how well it fits.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Prediction {
    pub(super) score: f32,
    pub(super) label: String,
}

/// All labels, the best first; an array of that for an array of texts.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
pub(super) enum Predictions {
    /// Of one text or pair.
    One(Vec<Prediction>),
    /// Of several.
    Batch(Vec<Vec<Prediction>>),
}

/// Texts whose tokens are to be told.
#[derive(Debug, Deserialize, ToSchema)]
pub(super) struct TokenizeRequest {
    pub(super) inputs: Texts,
    /// Whether the model's special tokens are told with them; they are unless it is said.
    #[schema(default = true)]
    pub(super) add_special_tokens: Option<bool>,
    /// The name of a prompt of the model; otherwise its default one, if it has one.
    pub(super) prompt_name: Option<String>,
    /// Ours: what the texts are (`query`, `document`, …), which chooses the prompt.
    pub(super) input_type: Option<String>,
}

/// A token of a text.
#[derive(Serialize, ToSchema)]
pub(super) struct Token {
    pub(super) id: u32,
    /// What it is of the text; of a special token, its name.
    pub(super) text: String,
    pub(super) special: bool,
    /// Where it begins in the text after its prompt, in bytes; null for a special token.
    #[schema(required)]
    pub(super) start: Option<usize>,
    /// Where it ends.
    #[schema(required)]
    pub(super) stop: Option<usize>,
}

/// Tokens whose text is to be told.
#[derive(Debug, Deserialize, ToSchema)]
pub(super) struct DecodeRequest {
    pub(super) ids: Ids,
    /// Whether special tokens are left out; they are unless it is said.
    #[schema(default = true)]
    pub(super) skip_special_tokens: Option<bool>,
}

/// Token ids, or an array of arrays of them.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(untagged, expecting = "expected an array of token ids, or an array of such arrays")]
pub(super) enum Ids {
    /// Of one text.
    One(Vec<u32>),
    /// Of several.
    Many(Vec<Vec<u32>>),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_becomes_of_a_long_text_is_as_the_request_says_and_else_as_the_model_is_set() {
        use Overflow::{ChunkMean, Error, TruncateEnd, TruncateStart};
        let (left, right) = (Some(Direction::Left), Some(Direction::Right));
        for (truncate, direction, own, expected) in [
            (None, None, TruncateEnd, TruncateEnd),
            (None, None, Error, Error),
            (None, None, ChunkMean, ChunkMean),
            (Some(true), None, Error, TruncateEnd),
            (Some(true), left, Error, TruncateStart),
            (Some(false), None, TruncateEnd, Error),
            (Some(false), left, TruncateEnd, Error),
            (None, left, TruncateEnd, TruncateStart),
            (None, right, TruncateStart, TruncateEnd),
            (None, left, Error, Error),
            (None, left, ChunkMean, ChunkMean),
        ] {
            let cut = Cut { truncate, direction };
            assert_eq!(cut.overflow(own), expected, "{cut:?} {own:?}");
        }
    }

    #[test]
    fn a_direction_is_written_as_its_clients_write_it() {
        for (json, expected) in [("\"Left\"", Direction::Left), ("\"right\"", Direction::Right)] {
            assert_eq!(serde_json::from_str::<Direction>(json).unwrap(), expected);
        }
        assert!(serde_json::from_str::<Direction>("\"up\"").is_err());
    }
}
