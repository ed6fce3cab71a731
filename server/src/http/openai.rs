//! OpenAI's API: `POST /v1/embeddings`, `GET /v1/models`, `GET /v1/models/{id}`.
//!
//! Unknown fields are ignored, as there: its clients send some that mean nothing to
//! an embedding (`user`, for one).

use std::fmt;

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::de::{Error as _, IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use super::error::ApiError;
use super::native::{embed, headers};
use super::{SharedState, json};
use crate::embedder::Embedder;
use crate::models::State as ModelState;

#[derive(Debug, Deserialize)]
struct EmbedRequest {
    input: Input,
    model: Option<String>,
    encoding_format: Option<EncodingFormat>,
    dimensions: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum EncodingFormat {
    Float,
    Base64,
}

// Not derived: serde_json calls anything but a string there a mistake in the JSON.
impl<'de> Deserialize<'de> for EncodingFormat {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match String::deserialize(deserializer)?.as_str() {
            "float" => Ok(Self::Float),
            "base64" => Ok(Self::Base64),
            other => Err(D::Error::unknown_variant(other, &["float", "base64"])),
        }
    }
}

/// `input`: a string, an array of strings, or token ids in either nesting.
#[derive(Debug, PartialEq, Eq)]
enum Input {
    Texts(Vec<String>),
    TokenIds,
}

enum Item {
    Text(String),
    TokenIds,
}

struct ItemVisitor;

impl<'de> Visitor<'de> for ItemVisitor {
    type Value = Item;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_str<E>(self, text: &str) -> Result<Item, E> {
        Ok(Item::Text(text.to_owned()))
    }

    fn visit_string<E>(self, text: String) -> Result<Item, E> {
        Ok(Item::Text(text))
    }

    fn visit_i64<E>(self, _: i64) -> Result<Item, E> {
        Ok(Item::TokenIds)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Item, E> {
        Ok(Item::TokenIds)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Item, A::Error> {
        while items.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Item::TokenIds)
    }
}

impl<'de> Deserialize<'de> for Item {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ItemVisitor)
    }
}

struct InputVisitor;

impl<'de> Visitor<'de> for InputVisitor {
    type Value = Input;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string or an array of strings")
    }

    fn visit_str<E>(self, text: &str) -> Result<Input, E> {
        Ok(Input::Texts(vec![text.to_owned()]))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Input, A::Error> {
        let mut texts = Vec::with_capacity(items.size_hint().unwrap_or(0).min(1024));
        let mut token_ids = false;
        while let Some(item) = items.next_element()? {
            match item {
                Item::Text(text) => texts.push(text),
                Item::TokenIds => token_ids = true,
            }
        }
        Ok(if token_ids { Input::TokenIds } else { Input::Texts(texts) })
    }
}

impl<'de> Deserialize<'de> for Input {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(InputVisitor)
    }
}

#[derive(Serialize)]
struct EmbedResponse<'a> {
    object: &'static str,
    data: Vec<Row>,
    model: &'a str,
    usage: Usage,
}

#[derive(Serialize)]
struct Row {
    object: &'static str,
    index: usize,
    embedding: Encoded,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Encoded {
    Float(Vec<f32>),
    Base64(String),
}

#[derive(Serialize)]
struct Usage {
    prompt_tokens: usize,
    total_tokens: usize,
}

/// `POST /v1/embeddings`.
pub(super) async fn embeddings(State(shared): SharedState, request: Request) -> Result<Response, ApiError> {
    let body: EmbedRequest = json::read(request, shared.settings.max_body_bytes).await?;
    let texts = match body.input {
        Input::Texts(texts) if texts.is_empty() => {
            return Err(ApiError::bad_field("input", "input is empty: send at least one text"));
        }
        Input::Texts(texts) => texts,
        Input::TokenIds => {
            return Err(ApiError::bad_field(
                "input",
                "input holds token ids, and ids of another model's tokenizer would give a wrong vector: \
                 send text (langchain-openai: check_embedding_ctx_length=False)",
            ));
        }
    };
    // Before the work, not after it.
    let native = shared.models.get(body.model.as_deref())?.1.about().dimensions;
    if body.dimensions.is_some_and(|wanted| wanted != native as u64) {
        return Err(ApiError::bad_field(
            "dimensions",
            format!("dimensions must be {native}, the model's own: its vectors cannot be shortened"),
        ));
    }
    let (name, embedded, _) = embed(&shared, texts, body.model.as_deref()).await?;
    let headers = headers(&embedded);
    let usage = Usage { prompt_tokens: embedded.tokens, total_tokens: embedded.tokens };
    let data = embedded
        .vectors
        .into_iter()
        .enumerate()
        .map(|(index, vector)| Row {
            object: "embedding",
            index,
            embedding: match body.encoding_format {
                None | Some(EncodingFormat::Float) => Encoded::Float(vector),
                Some(EncodingFormat::Base64) => Encoded::Base64(base64(&vector)),
            },
        })
        .collect();
    let body = EmbedResponse { object: "list", data, model: name, usage };
    Ok((headers, Json(body)).into_response())
}

/// Little-endian f32s in standard base64, as OpenAI's clients decode them.
fn base64(vector: &[f32]) -> String {
    let bytes: Vec<u8> = vector.iter().flat_map(|value| value.to_le_bytes()).collect();
    STANDARD.encode(bytes)
}

#[derive(Serialize)]
struct ModelList {
    object: &'static str,
    data: Vec<Model>,
}

#[derive(Serialize)]
struct Model {
    id: String,
    object: &'static str,
    // Seconds since 1970. No file says when a model was made; 0 is a time nobody
    // takes for one.
    created: u64,
    owned_by: String,
}

impl Model {
    fn new(name: &str, embedder: &Embedder) -> Self {
        let owner = embedder.about().source.split('/').next().filter(|owner| !owner.is_empty());
        Self {
            id: name.to_owned(),
            object: "model",
            created: 0,
            owned_by: owner.unwrap_or("local").to_owned(),
        }
    }
}

/// `GET /v1/models`: the models that can embed now.
pub(super) async fn models(State(shared): SharedState) -> Response {
    let ready = shared.models.states().into_iter().filter_map(|(name, state)| match state {
        ModelState::Ready(embedder) => Some(Model::new(name, &embedder)),
        _ => None,
    });
    Json(ModelList { object: "list", data: ready.collect() }).into_response()
}

/// `GET /v1/models/{id}`; ids may contain slashes.
pub(super) async fn model(
    State(shared): SharedState,
    // axum's own rejection would not be in our shape.
    id: Result<Path<String>, PathRejection>,
) -> Result<Response, ApiError> {
    // One part of the path, of any text: nothing else can be wrong with it.
    let Path(id) = id.map_err(|_| {
        ApiError::bad_request("invalid_utf8", "the model's id in the path is not valid UTF-8")
    })?;
    let (name, embedder) = shared.models.get(Some(&id))?;
    Ok(Json(Model::new(name, &embedder)).into_response())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn input_takes_every_form_that_openai_documents() {
        let texts = |texts: &[&str]| Input::Texts(texts.iter().map(|&text| text.to_owned()).collect());
        for (json, expected) in [
            (r#""a""#, texts(&["a"])),
            (r#"["a","b\n"]"#, texts(&["a", "b\n"])),
            ("[]", texts(&[])),
            ("[1,2,3]", Input::TokenIds),
            ("[[1,2],[3]]", Input::TokenIds),
        ] {
            assert_eq!(serde_json::from_str::<Input>(json).unwrap(), expected, "{json}");
        }
        for json in ["null", "1", "true", "{}", "[null]", "[true]", "[{}]", r#"["a",1.5]"#] {
            assert!(serde_json::from_str::<Input>(json).is_err(), "{json}");
        }
    }

    #[test]
    fn base64_is_of_little_endian_floats() {
        assert_eq!(base64(&[1.0, -2.0]), "AACAPwAAAMA=");
    }
}
