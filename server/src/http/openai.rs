//! OpenAI's API: `POST /v1/embeddings`, `GET /v1/models`, `GET /v1/models/{id}`.
//!
//! Unknown fields are ignored, as there: its clients send some that mean nothing to
//! an embedding (`user`, for one). Those of NIM's, Jina's and Voyage's APIs, which have the same
//! route, are understood (see `request`).

mod input;
mod request;

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use super::embed::{Call, embed};
use super::error::ApiError;
use super::refusals::{AnyErrors, ModelErrors, OpenAi, VectorErrors};
use super::representation::Written;
use super::{Shared, SharedState, json};
use crate::embedder::Embedder;
use crate::models::{State as ModelState, Status};
use crate::token_ids::{TokenIds, decode_by_model};
use input::Input;
pub(super) use request::EmbedRequest;

/// A vector for each text.
#[derive(Serialize, ToSchema)]
#[schema(as = OpenAiEmbedResponse)]
pub(super) struct EmbedResponse<'a> {
    object: &'static str,
    data: Vec<Row>,
    model: &'a str,
    usage: Usage,
}

#[derive(Serialize, ToSchema)]
#[schema(as = OpenAiEmbedding)]
struct Row {
    object: &'static str,
    index: usize,
    embedding: Written,
}

#[derive(Serialize, ToSchema)]
#[schema(as = OpenAiUsage)]
struct Usage {
    prompt_tokens: usize,
    total_tokens: usize,
    /// Ours: how many texts lost something to the model's limit.
    truncated_inputs: usize,
}

/// A vector for each text, in order.
///
/// Fields of NIM's, Jina's and Voyage's APIs, which have the same path, are understood.
#[utoipa::path(
    post,
    path = "/v1/embeddings",
    tag = "OpenAI",
    operation_id = "openai_embeddings",
    request_body(
        content = EmbedRequest,
        examples(
            ("OpenAI" = (value = json!({"input": ["a text", "another"], "model": "all-minilm-l6-v2"}))),
            ("base64" = (value = json!({"input": "a text", "encoding_format": "base64"}))),
            ("Jina" = (value = json!({"input": [{"text": "a text"}], "task": "retrieval.query", "embedding_type": "ubinary"}))),
            ("NIM" = (value = json!({"input": "a text", "input_type": "passage", "truncate": "END"}))),
            ("Voyage" = (value = json!({"input": "a text", "input_type": "document", "output_dtype": "int8"}))),
        ),
    ),
    responses((status = 200, description = "the vectors", body = EmbedResponse<'_>), VectorErrors<OpenAi>),
)]
pub(super) async fn embeddings(State(shared): SharedState, request: Request) -> Result<Response, ApiError> {
    let (head, body) = json::read(request, &shared.settings).await?;
    answer(&shared, &head, body).await
}

pub(super) async fn answer(shared: &Shared, head: &Parts, body: EmbedRequest) -> Result<Response, ApiError> {
    let (options, writing) = (body.options()?, body.writing()?);
    let texts = texts(shared, body.model.as_deref(), body.input).await?;
    let answer = embed(shared, head, Call::of_texts(body.model, texts, options)).await?;
    let headers = answer.headers();
    let tokens = answer.embedded.tokens();
    let usage = Usage {
        prompt_tokens: tokens,
        total_tokens: tokens,
        truncated_inputs: answer.embedded.truncated().len(),
    };
    let numbers = answer.numbers();
    let rows = answer.embedded.vectors.into_iter().enumerate();
    let data =
        rows.map(|(index, vector)| Row { object: "embedding", index, embedding: writing.write(vector) });
    let body = EmbedResponse { object: "list", data: data.collect(), model: &answer.name, usage };
    Ok(json::answer(headers, numbers, body))
}

async fn texts(shared: &Shared, model: Option<&str>, input: Input) -> Result<Vec<String>, ApiError> {
    match input {
        Input::Texts(texts) if texts.is_empty() => {
            Err(ApiError::bad_field("input", "input is empty: send at least one text"))
        }
        Input::Texts(texts) => Ok(texts),
        Input::TokenIds(rows) => match shared.settings.token_ids {
            TokenIds::Refuse => Err(ApiError::bad_field(
                "input",
                "input holds token ids, and ids of another model's tokenizer would give a wrong vector: \
                 send text (langchain-openai: check_embedding_ctx_length=False), or start the server with \
                 --openai-token-ids",
            )),
            TokenIds::Of(vocabulary) => {
                // Reading the vocabulary takes a moment, the first time.
                let most = shared.settings.max_body_bytes;
                let texts = tokio::task::spawn_blocking(move || vocabulary.decode(&rows, most)).await;
                Ok(texts.map_err(|_| ApiError::internal("token ids could not be decoded"))??)
            }
            TokenIds::Model => Ok(decode_by_model(&shared.models.get(model)?.embedder, rows).await?),
        },
        Input::Mixed => {
            Err(ApiError::bad_field("input", "input mixes texts and token ids: send one or the other"))
        }
    }
}

/// The models that can embed now.
#[derive(Serialize, ToSchema)]
#[schema(as = OpenAiModels)]
pub(super) struct ModelList {
    object: &'static str,
    data: Vec<Model>,
}

/// A model.
#[derive(Serialize, ToSchema)]
#[schema(as = OpenAiModel)]
pub(super) struct Model {
    id: String,
    object: &'static str,
    /// 0, which nobody takes for a time: no file says when a model was made.
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

/// The models that can embed now.
#[utoipa::path(
    get,
    path = "/v1/models",
    tag = "OpenAI",
    operation_id = "openai_models",
    responses((status = 200, description = "the models", body = ModelList), AnyErrors<OpenAi>),
)]
pub(super) async fn models(State(shared): SharedState) -> Response {
    let ready = shared.models.states().into_iter().filter_map(|Status { name, state, .. }| match state {
        ModelState::Ready(embedder) => Some(Model::new(&name, &embedder)),
        _ => None,
    });
    Json(ModelList { object: "list", data: ready.collect() }).into_response()
}

/// A model, by a name of it.
#[utoipa::path(
    get,
    path = "/v1/models/{id}",
    tag = "OpenAI",
    operation_id = "openai_model",
    params(("id" = String, Path, description = "the name, which may have slashes", example = "all-minilm-l6-v2")),
    responses((status = 200, description = "the model", body = Model), ModelErrors<OpenAi>),
)]
pub(super) async fn model(
    State(shared): SharedState,
    // axum's own rejection would not be in our shape.
    id: Result<Path<String>, PathRejection>,
) -> Result<Response, ApiError> {
    // One part of the path, of any text: nothing else can be wrong with it.
    let Path(id) = id.map_err(|_| {
        ApiError::bad_request("invalid_utf8", "the model's id in the path is not valid UTF-8")
    })?;
    let named = shared.models.get(Some(&id))?;
    Ok(Json(Model::new(&named.name, &named.embedder)).into_response())
}
