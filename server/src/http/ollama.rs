//! Ollama's API, as far as it is about embeddings: `POST /api/embed`, the older `POST /api/embeddings`,
//! `GET /api/tags`, `POST /api/show` and `GET /api/version`.
//!
//! <https://github.com/ollama/ollama/blob/main/docs/api.md> describes it. `options` and `keep_alive`
//! are ignored: models are loaded once, and stay.

use std::fmt;
use std::time::{Duration, Instant};

use axum::Json;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ArrayBuilder, ObjectBuilder, OneOfBuilder, Schema, Type};
use utoipa::{PartialSchema, ToSchema};

use super::embed::{Call, decide, embed, headers_of};
use super::error::ApiError;
use super::refusals::{AnyErrors, BodyErrors, Ollama, VectorErrors};
use super::truncate::Truncate;
use super::{Shared, SharedState, json};
use crate::embedder::Embedder;
use crate::models::{self, Named, State as ModelState, Status};
use crate::options::{self, Options};
use crate::scores::Kind;
use crate::space;

/// The version of Ollama whose API this is, for clients that look whether it has what they need:
/// the first one in which `/api/embed` takes `dimensions`.
const VERSION: &str = "0.11.11";
/// No file says when a model was made, and clients parse a time.
const MODIFIED_AT: &str = "1970-01-01T00:00:00Z";

/// Texts to embed.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = OllamaEmbedRequest)]
pub(super) struct EmbedRequest {
    /// A name of the model; can be left out where one is served.
    model: Option<String>,
    /// A text, or several.
    input: Option<Input>,
    /// Whether texts that are too long are cut.
    #[schema(value_type = Option<bool>)]
    truncate: Option<Truncate>,
    /// The length of the vectors.
    dimensions: Option<i64>,
}

/// A text to embed.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = OllamaEmbeddingsRequest)]
pub(super) struct EmbeddingsRequest {
    /// A name of the model; can be left out where one is served.
    model: Option<String>,
    /// The text.
    prompt: Option<String>,
}

/// Which model is asked about.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = OllamaShowRequest)]
pub(super) struct ShowRequest {
    model: Option<String>,
    /// What `model` was called.
    name: Option<String>,
}

/// A string, or an array of strings.
#[derive(Debug, PartialEq, Eq)]
struct Input(Vec<String>);

struct InputVisitor;

impl<'de> Visitor<'de> for InputVisitor {
    type Value = Input;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string or an array of strings")
    }

    // No text at all, as there: a request without one asks whether the model is loaded.
    fn visit_str<E>(self, text: &str) -> Result<Input, E> {
        Ok(Input(if text.is_empty() { Vec::new() } else { vec![text.to_owned()] }))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Input, A::Error> {
        let mut texts = Vec::with_capacity(items.size_hint().unwrap_or(0).min(1024));
        while let Some(text) = items.next_element()? {
            texts.push(text);
        }
        Ok(Input(texts))
    }
}

impl<'de> Deserialize<'de> for Input {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(InputVisitor)
    }
}

impl PartialSchema for Input {
    fn schema() -> RefOr<Schema> {
        let text = || ObjectBuilder::new().schema_type(Type::String);
        OneOfBuilder::new().item(text()).item(ArrayBuilder::new().items(text())).into()
    }
}

impl ToSchema for Input {
    fn name() -> std::borrow::Cow<'static, str> {
        "OllamaInput".into()
    }
}

/// The vectors of texts, of length 1.
#[derive(Serialize, ToSchema)]
#[schema(as = OllamaEmbedResponse)]
pub(super) struct EmbedResponse {
    /// As it was named in the request.
    model: String,
    embeddings: Vec<Vec<f32>>,
    /// In nanoseconds.
    total_duration: u64,
    /// In nanoseconds; the model was loaded before, so that it is the time to find it.
    load_duration: u64,
    prompt_eval_count: usize,
}

/// The vector of a text, as the model makes it.
#[derive(Serialize, ToSchema)]
#[schema(as = OllamaEmbeddingsResponse)]
pub(super) struct EmbeddingsResponse {
    embedding: Vec<f32>,
}

/// The models that can embed now.
#[derive(Serialize, ToSchema)]
#[schema(as = OllamaTags)]
pub(super) struct Tags {
    models: Vec<Tag>,
}

#[derive(Serialize, ToSchema)]
#[schema(as = OllamaTag)]
struct Tag {
    name: String,
    model: String,
    modified_at: &'static str,
    /// In bytes; not known.
    size: u64,
    digest: String,
    details: Details,
    capabilities: [&'static str; 1],
}

#[derive(Serialize, ToSchema)]
#[schema(as = OllamaDetails)]
struct Details {
    parent_model: &'static str,
    format: &'static str,
    family: &'static str,
    families: [&'static str; 1],
    parameter_size: &'static str,
    quantization_level: &'static str,
    context_length: usize,
    embedding_length: usize,
}

/// What there is to say about a model.
#[derive(Serialize, ToSchema)]
#[schema(as = OllamaShow)]
pub(super) struct Show {
    details: Details,
    #[schema(value_type = Object)]
    model_info: Map<String, Value>,
    capabilities: [&'static str; 1],
    modified_at: &'static str,
}

/// A version of Ollama's API.
#[derive(Serialize, ToSchema)]
#[schema(as = OllamaVersion)]
pub(super) struct Version {
    version: &'static str,
}

const CAPABILITIES: [&str; 1] = ["embedding"];

impl Details {
    fn of(embedder: &Embedder) -> Self {
        let about = embedder.about();
        Self {
            parent_model: "",
            format: "safetensors",
            family: about.architecture,
            families: [about.architecture],
            parameter_size: "",
            quantization_level: match about.plan.dtype {
                crate::model::Dtype::Float32 => "F32",
                crate::model::Dtype::BFloat16 => "BF16",
                crate::model::Dtype::Float16 => "F16",
            },
            context_length: about.max_tokens,
            embedding_length: about.dimensions,
        }
    }
}

impl Tag {
    fn new(name: &str, embedder: &Embedder) -> Self {
        // Every name has a tag there.
        let name = if name.contains(':') { name.to_owned() } else { format!("{name}:latest") };
        Self {
            model: name.clone(),
            name,
            modified_at: MODIFIED_AT,
            size: 0,
            // Two models of one space answer the same vectors, as two of one digest do there.
            digest: space::hex(&Sha256::digest(embedder.about().space().to_string().as_bytes())),
            details: Details::of(embedder),
            capabilities: CAPABILITIES,
        }
    }
}

/// The model; an unknown one is told as Ollama's clients know it.
fn find(shared: &Shared, model: Option<&str>) -> Result<Named, ApiError> {
    shared.models.get(model).map_err(|error| match &error {
        models::Error::Unknown { name, served } => ApiError::model_not_found(format!(
            "model \"{name}\" not found; this server cannot pull models, it serves {}",
            served.join(", ")
        )),
        _ => error.into(),
    })
}

fn named(model: Option<String>) -> Option<String> {
    model.filter(|name| !name.is_empty())
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// A vector for each text, of length 1.
#[utoipa::path(
    post,
    path = "/api/embed",
    tag = "Ollama",
    operation_id = "ollama_embed",
    request_body(content = EmbedRequest, example = json!({"model": "all-minilm-l6-v2", "input": ["a text", "another"]})),
    responses((status = 200, description = "the vectors", body = EmbedResponse), VectorErrors<Ollama>),
)]
pub(super) async fn embed_texts(State(shared): SharedState, request: Request) -> Result<Response, ApiError> {
    let begun = Instant::now();
    let (head, body): (_, EmbedRequest) = json::read_of_any_type(request, &shared.settings).await?;
    let model = named(body.model);
    let found = find(&shared, model.as_deref())?;
    let load_duration = nanoseconds(begun.elapsed());
    let name = model.clone().unwrap_or_else(|| found.name.to_string());
    let texts = body.input.map_or_else(Vec::new, |Input(texts)| texts);
    let options = Options {
        overflow: body.truncate.map(|Truncate(overflow)| overflow),
        // There, what is not above zero is as if nothing were said.
        dimensions: body
            .dimensions
            .and_then(|wanted| u64::try_from(wanted).ok())
            .filter(|wanted| *wanted > 0),
        normalize: Some(true),
        ..Options::default()
    };
    let response = |embeddings, prompt_eval_count| EmbedResponse {
        model: name,
        embeddings,
        total_duration: nanoseconds(begun.elapsed()),
        load_duration,
        prompt_eval_count,
    };
    if texts.is_empty() {
        let (_, _, decided) = decide(&shared, &head, model.as_deref(), options)?;
        return Ok((headers_of(&[], Some(&decided.space)), Json(response(Vec::new(), 0))).into_response());
    }
    let answer = embed(&shared, &head, Call::of_texts(model, texts, options)).await?;
    let (headers, tokens) = (answer.headers(), answer.embedded.tokens());
    let numbers = answer.numbers();
    Ok(json::answer(headers, numbers, response(answer.embedded.vectors, tokens)))
}

/// One vector, as the model makes it, and not of length 1, as there.
#[utoipa::path(
    post,
    path = "/api/embeddings",
    tag = "Ollama",
    operation_id = "ollama_embeddings",
    request_body(content = EmbeddingsRequest, example = json!({"model": "all-minilm-l6-v2", "prompt": "a text"})),
    responses((status = 200, description = "the vector", body = EmbeddingsResponse), VectorErrors<Ollama>),
)]
pub(super) async fn embed_prompt(State(shared): SharedState, request: Request) -> Result<Response, ApiError> {
    let (head, body): (_, EmbeddingsRequest) = json::read_of_any_type(request, &shared.settings).await?;
    let model = named(body.model);
    find(&shared, model.as_deref())?;
    let options = Options { normalize: Some(false), ..Options::default() };
    let Some(prompt) = body.prompt.filter(|prompt| !prompt.is_empty()) else {
        let (_, _, decided) = decide(&shared, &head, model.as_deref(), options)?;
        let empty = EmbeddingsResponse { embedding: Vec::new() };
        return Ok((headers_of(&[], Some(&decided.space)), Json(empty)).into_response());
    };
    let answer = embed(&shared, &head, Call::of_texts(model, vec![prompt], options)).await?;
    let (headers, mut vectors) = (answer.headers(), answer.embedded.vectors);
    Ok((headers, Json(EmbeddingsResponse { embedding: vectors.pop().unwrap_or_default() })).into_response())
}

/// Whether it makes vectors, which is all that this API is about here.
fn embeds(embedder: &Embedder) -> bool {
    embedder.about().kind == Kind::Embedding
}

/// The models that can embed now.
#[utoipa::path(
    get,
    path = "/api/tags",
    tag = "Ollama",
    operation_id = "ollama_tags",
    responses((status = 200, description = "the models", body = Tags), AnyErrors<Ollama>),
)]
pub(super) async fn tags(State(shared): SharedState) -> Response {
    let ready = shared.models.states().into_iter().filter_map(|Status { name, state, .. }| match state {
        ModelState::Ready(embedder) if embeds(&embedder) => Some(Tag::new(&name, &embedder)),
        _ => None,
    });
    Json(Tags { models: ready.collect() }).into_response()
}

/// What there is to say about a model.
#[utoipa::path(
    post,
    path = "/api/show",
    tag = "Ollama",
    operation_id = "ollama_show",
    request_body(content = ShowRequest, example = json!({"model": "all-minilm-l6-v2"})),
    responses((status = 200, description = "the model", body = Show), BodyErrors<Ollama>),
)]
pub(super) async fn show(State(shared): SharedState, request: Request) -> Result<Response, ApiError> {
    let (_, body): (_, ShowRequest) = json::read_of_any_type(request, &shared.settings).await?;
    let embedder = find(&shared, named(body.model.or(body.name)).as_deref())?.embedder;
    if !embeds(&embedder) {
        return Err(options::Error::NoVectors.into());
    }
    let about = embedder.about();
    let model_info = [
        ("general.architecture".to_owned(), Value::from(about.architecture)),
        (format!("{}.context_length", about.architecture), Value::from(about.max_tokens)),
        (format!("{}.embedding_length", about.architecture), Value::from(about.dimensions)),
    ];
    let details = Details::of(&embedder);
    let model_info = Map::from_iter(model_info);
    Ok(Json(Show { details, model_info, capabilities: CAPABILITIES, modified_at: MODIFIED_AT })
        .into_response())
}

/// The version of Ollama whose API this is.
#[utoipa::path(
    get,
    path = "/api/version",
    tag = "Ollama",
    operation_id = "ollama_version",
    responses((status = 200, description = "the version", body = Version), AnyErrors<Ollama>),
)]
pub(super) async fn version() -> Json<impl Serialize> {
    Json(Version { version: VERSION })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn input_takes_every_form_that_ollama_does() {
        let input = |texts: &[&str]| Input(texts.iter().map(|&text| text.to_owned()).collect());
        for (json, expected) in [
            (r#""a""#, input(&["a"])),
            (r#""""#, input(&[])),
            (r#"["a","b"]"#, input(&["a", "b"])),
            (r#"[""]"#, input(&[""])),
            ("[]", input(&[])),
        ] {
            assert_eq!(serde_json::from_str::<Input>(json).unwrap(), expected, "{json}");
        }
        for json in ["1", "[1]", "{}", "[[1]]", "true"] {
            assert!(serde_json::from_str::<Input>(json).is_err(), "{json}");
        }
    }
}
