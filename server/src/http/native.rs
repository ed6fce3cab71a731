//! The project's own API: `POST /embeddings` and `GET /embeddings`.
//!
//! Clients of OpenAI's API whose base URL lacks `/v1` come here, too, and are known by their
//! `input`.

use std::sync::Arc;

use axum::extract::{RawQuery, Request, State};
use axum::http::request::Parts;
use axum::response::Response;
use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ObjectBuilder, Schema, Type};
use utoipa::{PartialSchema, ToSchema};

use super::embed::{Answer, Call, embed};
use super::error::{ApiError, Shape};
use super::refusals::{Own, QueryErrors, VectorErrors};
use super::{Shared, SharedState, json, openai};
use crate::options::Options;
use crate::tokenize::Overflow;

/// Which API a body is of.
#[derive(Default, Deserialize)]
struct Peek {
    input: Option<IgnoredAny>,
    texts: Option<IgnoredAny>,
}

impl Peek {
    fn of(body: &[u8]) -> Self {
        json::parse(body).unwrap_or_default()
    }

    const fn is_openais(&self) -> bool {
        self.input.is_some() && self.texts.is_none()
    }
}

/// Texts to embed.
// Unknown fields are refused: a misspelt field of our own API should not be lost in
// silence, and no client of it can have learnt to send others'.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct EmbedRequest {
    /// What is to be embedded.
    #[schema(min_items = 1)]
    texts: Vec<String>,
    /// A name of the model; can be left out where one is served.
    model: Option<String>,
    /// What the texts are: `query` or `document`, or what other APIs call these; chooses the prompt.
    input_type: Option<String>,
    /// A prompt of the model by its name.
    prompt_name: Option<String>,
    /// The prompt itself.
    prompt: Option<String>,
    on_overflow: Option<OnOverflow>,
    /// The length of the vectors: the model's own, or one that it was trained to be shortened to.
    #[schema(minimum = 1)]
    dimensions: Option<u64>,
    /// The space that the vectors must be of, as `X-Expect-Embedding-Space`.
    expected_space: Option<String>,
}

/// What becomes of texts that are too long, as it is written in requests and options.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct OnOverflow(pub(super) Overflow);

// Not derived: serde_json calls anything but a string there a mistake in the JSON.
impl<'de> Deserialize<'de> for OnOverflow {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map(Self).map_err(serde::de::Error::custom)
    }
}

impl PartialSchema for OnOverflow {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new()
            .schema_type(Type::String)
            .enum_values(Some(OVERFLOWS))
            .description(Some("What becomes of a text that is longer than the model takes."))
            .into()
    }
}

impl ToSchema for OnOverflow {}

/// As [`Overflow`] takes them from a request.
const OVERFLOWS: [&str; 3] = ["truncate", "error", "chunk_mean"];

/// A vector for each text, in order.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct EmbedResponse<'a> {
    embeddings: Vec<Vec<f32>>,
    /// The model's own name.
    model: &'a str,
    /// The length of the vectors.
    dimensions: usize,
    /// As `X-Embedding-Space`.
    space: String,
    /// The prompt that was put before the texts, if it has a name.
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_name: Option<String>,
    /// Of each text, special tokens and the prompt's included.
    tokens: Vec<usize>,
    /// Places of the texts of which something was left away.
    truncated: Vec<usize>,
    /// Places of the texts that were embedded in several pieces.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(required = false)]
    chunked: Vec<usize>,
    /// Places of the texts that began with the prompt, which was not put before them again.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(required = false)]
    had_prompt: Vec<usize>,
}

/// A body of our own API, or of OpenAI's.
#[derive(ToSchema)]
#[serde(untagged)]
#[schema(as = EitherEmbedRequest)]
pub(super) enum Either {
    Ours(EmbedRequest),
    OpenAis(openai::EmbedRequest),
}

/// What is answered, by the API that the request's body is of.
#[derive(ToSchema)]
#[serde(untagged)]
#[schema(as = EitherEmbedResponse)]
#[expect(dead_code, reason = "for the API's description")]
pub(super) enum EitherResponse<'a> {
    Ours(EmbedResponse<'a>),
    OpenAis(openai::EmbedResponse<'a>),
}

impl Either {
    fn parse(body: &[u8]) -> Result<Self, ApiError> {
        if Peek::of(body).is_openais() {
            json::parse(body).map(Self::OpenAis)
        } else {
            json::parse(body).map(Self::Ours)
        }
    }
}

/// A vector for each text, in order.
///
/// A body with `input` instead of `texts` is answered as `POST /v1/embeddings`, for clients whose base URL
/// lacks `/v1`.
#[utoipa::path(
    post,
    path = "/embeddings",
    tag = "Embeddings",
    request_body(
        content = Either,
        examples(
            ("plain" = (value = json!({"texts": ["first text", "second text"], "model": "all-minilm-l6-v2"}))),
            ("strict" = (value = json!({"texts": ["a text"], "on_overflow": "error"}))),
            ("with input" = (value = json!({"input": "a text", "model": "all-minilm-l6-v2"}))),
        ),
    ),
    responses((status = 200, description = "the vectors", body = EitherResponse<'_>), VectorErrors<Own>),
)]
pub(super) async fn post_embeddings(
    State(shared): SharedState,
    request: Request,
) -> Result<Response, ApiError> {
    let (head, body) = json::bytes(request, &shared.settings).await?;
    // The path is ours, and so would be the status of an error.
    let of_openai = |error: ApiError| Ok(error.response(Shape::OpenAi));
    if let Err(error) = json::check_count(&body, &shared.settings) {
        return if Peek::of(&body).is_openais() { of_openai(error) } else { Err(error) };
    }
    match Either::parse(&body)? {
        Either::Ours(body) => answer(&shared, &head, body).await,
        Either::OpenAis(body) => openai::answer(&shared, &head, body).await.or_else(of_openai),
    }
}

/// The vector of one text.
///
/// The text is part of the URL, which proxies may log and which may not be long: prefer POST.
#[utoipa::path(
    get,
    path = "/embeddings",
    tag = "Embeddings",
    params(
        ("text" = String, Query, description = "what is to be embedded", example = "first text"),
        ("model" = Option<String>, Query, description = "a name of the model", example = "all-minilm-l6-v2"),
        ("input_type" = Option<String>, Query, description = "what the text is: query, document, …"),
        ("prompt_name" = Option<String>, Query, description = "a prompt of the model by its name"),
        ("prompt" = Option<String>, Query, description = "the prompt itself"),
        ("on_overflow" = Option<OnOverflow>, Query, description = "what becomes of a text that is too long"),
        ("dimensions" = Option<u64>, Query, minimum = 1, description = "the length of the vector"),
        ("expected_space" = Option<String>, Query, description = "the space that the vector must be of"),
    ),
    responses((status = 200, description = "the vector", body = EmbedResponse<'_>), QueryErrors<Own>),
)]
pub(super) async fn get_embeddings(
    State(shared): SharedState,
    head: Parts,
    RawQuery(query): RawQuery,
) -> Result<Response, ApiError> {
    answer(&shared, &head, from_query(&query.unwrap_or_default())?).await
}

const PARAMETERS: &str =
    "`text`, `model`, `input_type`, `prompt_name`, `prompt`, `on_overflow`, `dimensions` or `expected_space`";

fn from_query(query: &str) -> Result<EmbedRequest, ApiError> {
    let mut request = EmbedRequest::default();
    let (mut text, mut on_overflow, mut dimensions) = (None, None, None);
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let (name, value) = (decode(name)?, decode(value)?);
        let field = match name.as_str() {
            "text" => &mut text,
            "model" => &mut request.model,
            "input_type" => &mut request.input_type,
            "prompt_name" => &mut request.prompt_name,
            "prompt" => &mut request.prompt,
            "expected_space" => &mut request.expected_space,
            "on_overflow" => &mut on_overflow,
            "dimensions" => &mut dimensions,
            _ => {
                let message = format!("unknown parameter `{name}`, expected {PARAMETERS}");
                return Err(ApiError::bad_field(&name, message));
            }
        };
        if field.replace(value).is_some() {
            return Err(ApiError::bad_field(
                &name,
                format!("parameter `{name}` is given twice; POST takes several texts"),
            ));
        }
    }
    let missing = || ApiError::bad_field("text", "missing parameter `text`: GET /embeddings?text=…");
    request.texts = vec![text.ok_or_else(missing)?];
    if let Some(text) = on_overflow {
        let overflow = text.parse().map_err(|problem: String| ApiError::bad_field("on_overflow", problem))?;
        request.on_overflow = Some(OnOverflow(overflow));
    }
    if let Some(text) = dimensions {
        let problem = |_| ApiError::bad_field("dimensions", "dimensions must be a number");
        request.dimensions = Some(text.parse().map_err(problem)?);
    }
    Ok(request)
}

/// Decodes a part of a query string as HTML forms encode it, but refuses what is
/// no UTF-8 rather than replacing it.
fn decode(part: &str) -> Result<String, ApiError> {
    let spaced = part.replace('+', " ");
    percent_encoding::percent_decode_str(&spaced)
        .decode_utf8()
        .map(std::borrow::Cow::into_owned)
        .map_err(|_| ApiError::bad_request("invalid_utf8", "the query string is not valid UTF-8"))
}

async fn answer(shared: &Arc<Shared>, head: &Parts, request: EmbedRequest) -> Result<Response, ApiError> {
    if request.texts.is_empty() {
        return Err(ApiError::bad_field("texts", "texts is empty: send at least one text"));
    }
    let options = Options {
        input_type: request.input_type,
        prompt_name: request.prompt_name,
        prompt: request.prompt,
        overflow: request.on_overflow.map(|OnOverflow(overflow)| overflow),
        dimensions: request.dimensions,
        expected_space: request.expected_space,
        ..Options::default()
    };
    let answer = embed(shared, head, Call::of_texts(request.model, request.texts, options)).await?;
    let (headers, numbers) = (answer.headers(), answer.numbers());
    let Answer { name, embedded, decided, .. } = answer;
    let places = |is: &dyn Fn(&crate::embedder::Text) -> bool| {
        let texts = embedded.texts.iter().enumerate();
        texts.filter(|(_, text)| is(text)).map(|(place, _)| place).collect()
    };
    let body = EmbedResponse {
        model: &name,
        dimensions: decided.dimensions,
        space: decided.space.to_string(),
        prompt_name: decided.prompt_name,
        tokens: embedded.texts.iter().map(|text| text.tokens).collect(),
        truncated: embedded.truncated(),
        chunked: places(&|text| text.pieces > 1),
        had_prompt: places(&|text| text.had_prompt),
        embeddings: embedded.vectors,
    };
    Ok(json::answer(headers, numbers, body))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_described_of_long_texts_is_what_is_understood() {
        for name in OVERFLOWS {
            assert!(name.parse::<Overflow>().is_ok(), "{name}");
        }
    }
}
