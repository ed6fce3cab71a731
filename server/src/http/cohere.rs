//! Cohere's API: `POST /v2/embed`, and `POST /v1/embed` as its older clients call it.
//!
//! <https://docs.cohere.com/reference/embed> describes both. What differs is said where it is done;
//! unknown fields (`priority`) are ignored, as there.

use std::fmt::Write as _;

use axum::extract::{Request, State};
use axum::response::Response;
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::embed::{Call, embed};
use super::error::ApiError;
use super::refusals::{Cohere, VectorErrors};
use super::representation::{Representation, Written};
use super::truncate::Truncate;
use super::{Shared, SharedState, json};
use crate::options::Options;
use crate::quantize::NumberType;

/// How many places of texts a warning names.
const MOST_NAMED: usize = 20;

/// Texts to embed.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = CohereEmbedRequest)]
pub(super) struct EmbedRequest {
    /// A name of the model; can be left out where one is served.
    model: Option<String>,
    /// `search_query`, `search_document`, …: what the texts are. Version 2 insists on it.
    input_type: Option<String>,
    #[schema(min_items = 1)]
    texts: Option<Vec<String>>,
    /// Instead of `texts`.
    #[schema(min_items = 1)]
    inputs: Option<Vec<ContentInput>>,
    /// Refused: the models take text.
    #[schema(value_type = Option<Vec<String>>, max_items = 0)]
    images: Option<Vec<IgnoredAny>>,
    embedding_types: Option<Vec<Representation>>,
    truncate: Option<Truncate>,
    /// At least as many as the model takes.
    max_tokens: Option<u64>,
    /// The length of the vectors.
    #[schema(minimum = 1)]
    output_dimension: Option<u64>,
}

/// A text in parts.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = CohereInput)]
struct ContentInput {
    #[schema(inline, min_items = 1)]
    content: Vec<Content>,
}

#[derive(Debug, Deserialize, ToSchema)]
struct Content {
    /// `text`.
    #[serde(rename = "type")]
    kind: String,
    text: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

/// The vectors of texts.
#[derive(Serialize, ToSchema)]
#[schema(as = CohereEmbedResponse)]
pub(super) struct EmbedResponse {
    id: String,
    texts: Vec<String>,
    embeddings: Embeddings,
    meta: Meta,
    /// By this, clients of version 1 tell the two shapes of `embeddings` apart.
    response_type: &'static str,
}

/// An array of vectors where a request of version 1 names no types; else an array for each type.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
#[schema(as = CohereEmbeddings)]
enum Embeddings {
    Floats(Vec<Vec<f32>>),
    ByType(ByType),
}

#[derive(Default, Serialize, ToSchema)]
#[schema(as = CohereEmbeddingsByType)]
struct ByType {
    #[serde(skip_serializing_if = "Option::is_none")]
    float: Option<Vec<Written>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    int8: Option<Vec<Written>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    uint8: Option<Vec<Written>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    binary: Option<Vec<Written>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ubinary: Option<Vec<Written>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    base64: Option<Vec<Written>>,
}

#[derive(Serialize, ToSchema)]
#[schema(as = CohereMeta)]
struct Meta {
    #[schema(inline)]
    api_version: ApiVersion,
    #[schema(inline)]
    billed_units: BilledUnits,
    /// Which texts lost something to the model's limit.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(required = false)]
    warnings: Vec<String>,
}

#[derive(Serialize, ToSchema)]
struct ApiVersion {
    version: &'static str,
}

#[derive(Serialize, ToSchema)]
struct BilledUnits {
    input_tokens: usize,
}

impl ByType {
    fn of(vectors: &[Vec<f32>], types: &[Representation]) -> Self {
        let mut all = Self::default();
        for representation in types {
            let place = match representation {
                Representation::Numbers(NumberType::Float) => &mut all.float,
                Representation::Numbers(NumberType::Int8) => &mut all.int8,
                Representation::Numbers(NumberType::Uint8) => &mut all.uint8,
                Representation::Numbers(NumberType::Binary) => &mut all.binary,
                Representation::Numbers(NumberType::Ubinary) => &mut all.ubinary,
                Representation::Base64 => &mut all.base64,
            };
            let written = vectors.iter().map(|vector| Written::of(vector.clone(), *representation));
            *place = Some(written.collect());
        }
        all
    }
}

impl EmbedRequest {
    /// The texts, and what is wrong with what is sent instead.
    fn take_texts(&mut self) -> Result<Vec<String>, ApiError> {
        if self.images.as_ref().is_some_and(|images| !images.is_empty()) {
            return Err(ApiError::bad_field(
                "images",
                "images cannot be embedded here: the models take text",
            ));
        }
        let texts = match (self.texts.take(), self.inputs.take()) {
            (Some(_), Some(_)) => {
                return Err(ApiError::bad_field(
                    "inputs",
                    "texts and inputs are both given: send one of them",
                ));
            }
            (Some(texts), None) => texts,
            (None, Some(inputs)) => inputs.into_iter().enumerate().map(joined).collect::<Result<_, _>>()?,
            (None, None) => Vec::new(),
        };
        if texts.is_empty() {
            return Err(ApiError::bad_field("texts", "texts is empty: send at least one text"));
        }
        Ok(texts)
    }

    /// A text's type is what Cohere's models go by, and its version 2 insists on it.
    fn check_input_type(&self, version: Version) -> Result<(), ApiError> {
        match self.input_type.as_deref() {
            Some("image") => {
                let message =
                    "input_type image: images cannot be embedded here, because the models take text";
                Err(ApiError::bad_field("input_type", message))
            }
            None if version == Version::Two => {
                let message =
                    "input_type is missing: say search_query, search_document, classification or clustering";
                Err(ApiError::bad_field("input_type", message))
            }
            _ => Ok(()),
        }
    }
}

/// The text of one input: its parts, a line each.
fn joined((index, input): (usize, ContentInput)) -> Result<String, ApiError> {
    let mut parts = Vec::with_capacity(input.content.len());
    for (place, part) in input.content.into_iter().enumerate() {
        let field = format!("inputs[{index}].content[{place}]");
        match (part.kind.as_str(), part.text) {
            ("text", Some(text)) => parts.push(text),
            ("text", None) => return Err(ApiError::bad_field(&field, format!("{field} has no text"))),
            (kind, _) => {
                let message = format!(
                    "{field} is of the type {kind}, which cannot be embedded here: the models take text"
                );
                return Err(ApiError::bad_field(&field, message));
            }
        }
    }
    if parts.is_empty() {
        let field = format!("inputs[{index}].content");
        return Err(ApiError::bad_field(&field, format!("{field} is empty")));
    }
    Ok(parts.join("\n"))
}

/// A limit of tokens below the model's own could not be kept.
fn check_max_tokens(shared: &Shared, model: Option<&str>, wanted: Option<u64>) -> Result<(), ApiError> {
    let Some(wanted) = wanted else { return Ok(()) };
    let limit = shared.models.get(model)?.embedder.about().max_tokens;
    if wanted >= limit as u64 {
        return Ok(());
    }
    let message = format!(
        "max_tokens {wanted} is less than the {limit} tokens that the model takes, and texts are cut nowhere \
         else: leave it out, or send shorter texts"
    );
    Err(ApiError::bad_field("max_tokens", message))
}

/// A vector for each text, as version 1 of Cohere's API has it.
#[utoipa::path(
    post,
    path = "/v1/embed",
    tag = "Cohere",
    operation_id = "cohere_embed_v1",
    request_body(content = EmbedRequest, example = json!({"texts": ["a text"], "model": "all-minilm-l6-v2"})),
    responses((status = 200, description = "the vectors", body = EmbedResponse), VectorErrors<Cohere>),
)]
pub(super) async fn embed_v1(State(shared): SharedState, request: Request) -> Result<Response, ApiError> {
    answer(&shared, request, Version::One).await
}

/// A vector for each text, as version 2 of Cohere's API has it.
#[utoipa::path(
    post,
    path = "/v2/embed",
    tag = "Cohere",
    operation_id = "cohere_embed_v2",
    request_body(
        content = EmbedRequest,
        examples(
            ("texts" = (value = json!({
                "texts": ["a text"], "model": "all-minilm-l6-v2", "input_type": "search_document",
                "embedding_types": ["float", "ubinary"],
            }))),
            ("inputs" = (value = json!({
                "inputs": [{"content": [{"type": "text", "text": "a text"}]}], "model": "all-minilm-l6-v2",
                "input_type": "search_query",
            }))),
        ),
    ),
    responses((status = 200, description = "the vectors", body = EmbedResponse), VectorErrors<Cohere>),
)]
pub(super) async fn embed_v2(State(shared): SharedState, request: Request) -> Result<Response, ApiError> {
    answer(&shared, request, Version::Two).await
}

async fn answer(shared: &Shared, request: Request, version: Version) -> Result<Response, ApiError> {
    let (head, mut body): (_, EmbedRequest) = json::read(request, &shared.settings).await?;
    let texts = body.take_texts()?;
    body.check_input_type(version)?;
    check_max_tokens(shared, body.model.as_deref(), body.max_tokens)?;
    let options = Options {
        input_type: body.input_type,
        overflow: body.truncate.map(|Truncate(overflow)| overflow),
        dimensions: body.output_dimension,
        ..Options::default()
    };
    let call = Call::of_texts(body.model, texts.clone(), options);
    let answer = embed(shared, &head, call).await?;
    let headers = answer.headers();
    let meta = Meta {
        api_version: ApiVersion { version: if version == Version::One { "1" } else { "2" } },
        billed_units: BilledUnits { input_tokens: answer.embedded.tokens() },
        warnings: warnings(&answer.embedded.truncated()),
    };
    let numbers = answer.numbers();
    let vectors = answer.embedded.vectors;
    let types = body.embedding_types.filter(|types| !types.is_empty());
    let (embeddings, response_type) = match (types, version) {
        (None, Version::One) => (Embeddings::Floats(vectors), "embeddings_floats"),
        (types, _) => {
            let types = types.unwrap_or_else(|| vec![Representation::Numbers(NumberType::Float)]);
            (Embeddings::ByType(ByType::of(&vectors, &types)), "embeddings_by_type")
        }
    };
    let body = EmbedResponse { id: id(), texts, embeddings, meta, response_type };
    Ok(json::answer(headers, numbers, body))
}

/// What became of the texts, where Cohere's clients look for it.
pub(super) fn warnings(truncated: &[usize]) -> Vec<String> {
    if truncated.is_empty() {
        return Vec::new();
    }
    let mut warning = String::from("these texts are longer than the model takes and were cut: ");
    let places: Vec<_> = truncated.iter().take(MOST_NAMED).map(ToString::to_string).collect();
    warning.push_str(&places.join(", "));
    if truncated.len() > MOST_NAMED {
        // Writing to a String does not fail.
        let _ = write!(warning, " and {} more", truncated.len() - MOST_NAMED);
    }
    vec![warning]
}

/// A random UUID, as Cohere's answers have one.
pub(super) fn id() -> String {
    // The bits that say so: version 4 (random), variant 1.
    let bits = rand::random::<u128>() & !(0xf << 76) & !(0x3 << 62) | 0x4 << 76 | 0x2 << 62;
    let digits = format!("{bits:032x}");
    [&digits[..8], &digits[8..12], &digits[12..16], &digits[16..20], &digits[20..]].join("-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_random_uuids() {
        let (one, other) = (id(), id());
        assert_ne!(one, other);
        for id in [one, other] {
            let groups: Vec<_> = id.split('-').map(str::len).collect();
            assert_eq!(groups, [8, 4, 4, 4, 12], "{id}");
            assert_eq!(&id[14..15], "4", "{id}");
            assert!("89ab".contains(&id[19..20]), "{id}");
        }
    }
}
