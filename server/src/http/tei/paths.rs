//! The paths of these requests: each names a verb, and those below `/models/` a model, too.

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::response::{IntoResponse, Response};

use super::info::Info;
use super::wire::{
    DecodeRequest, EmbedAllRequest, EmbedRequest, PredictRequest, Predictions, Rank, RerankRequest,
    SimilarityRequest, Token, TokenizeRequest,
};
use super::{Verb, answer, rest_of, split};
use crate::http::SharedState;
use crate::http::error::ApiError;
use crate::http::refusals::{BodyErrors, ModelErrors, Tei, VectorErrors};

type Answered = Result<Response, ApiError>;

/// What the model is there for: as `/embed`, `/rerank` or `/predict`.
///
/// A body with a `source_sentence` is answered as `/similarity`.
#[utoipa::path(
    post,
    path = "/",
    tag = "text-embeddings-inference",
    operation_id = "tei_default",
    request_body(content = Object, example = json!({"inputs": "a text"})),
    responses((status = 200, description = "as the path that it stands for", body = Value), VectorErrors<Tei>),
)]
pub(in crate::http) async fn default(State(shared): SharedState, request: Request) -> Answered {
    answer(&shared, request, None, Verb::Default).await
}

/// The same, as Amazon `SageMaker` asks.
#[utoipa::path(
    post,
    path = "/invocations",
    tag = "text-embeddings-inference",
    operation_id = "tei_invocations",
    request_body(content = Object, example = json!({"inputs": "a text"})),
    responses((status = 200, description = "as the path that it stands for", body = Value), VectorErrors<Tei>),
)]
pub(in crate::http) async fn invocations(State(shared): SharedState, request: Request) -> Answered {
    answer(&shared, request, None, Verb::Default).await
}

/// A vector for each text, in order.
#[utoipa::path(
    post,
    path = "/embed",
    tag = "text-embeddings-inference",
    operation_id = "tei_embed",
    request_body(content = EmbedRequest, example = json!({"inputs": ["a text", "another"]})),
    responses((status = 200, description = "a vector for each text", body = Vec<Vec<f32>>), VectorErrors<Tei>),
)]
pub(in crate::http) async fn embed(State(shared): SharedState, request: Request) -> Answered {
    answer(&shared, request, None, Verb::Embed).await
}

/// A vector for each token of each text: its state after the encoder, not divided by its norm.
///
/// They are of a space of their own.
#[utoipa::path(
    post,
    path = "/embed_all",
    tag = "text-embeddings-inference",
    operation_id = "tei_embed_all",
    request_body(content = EmbedAllRequest, example = json!({"inputs": "a text"})),
    responses(
        (status = 200, description = "a vector for each token of each text", body = Vec<Vec<Vec<f32>>>),
        VectorErrors<Tei>,
    ),
)]
pub(in crate::http) async fn embed_all(State(shared): SharedState, request: Request) -> Answered {
    answer(&shared, request, None, Verb::EmbedAll).await
}

/// Refused (424): no model here makes sparse vectors.
#[utoipa::path(
    post,
    path = "/embed_sparse",
    tag = "text-embeddings-inference",
    operation_id = "tei_embed_sparse",
    request_body(content = Object),
    responses(BodyErrors<Tei>),
)]
pub(in crate::http) async fn embed_sparse(State(shared): SharedState, request: Request) -> Answered {
    answer(&shared, request, None, Verb::EmbedSparse).await
}

/// The cosine of the angle between a text's vector and that of each of others.
#[utoipa::path(
    post,
    path = "/similarity",
    tag = "text-embeddings-inference",
    operation_id = "tei_similarity",
    request_body(
        content = SimilarityRequest,
        example = json!({"inputs": {"source_sentence": "a text", "sentences": ["another", "a third"]}}),
    ),
    responses((status = 200, description = "between -1 and 1 for each", body = Vec<f32>), VectorErrors<Tei>),
)]
pub(in crate::http) async fn similarity(State(shared): SharedState, request: Request) -> Answered {
    answer(&shared, request, None, Verb::Similarity).await
}

/// Texts in the order of how well they go with a query; by a cross-encoder with one label.
///
/// A body with `documents` instead of `texts` is answered as `POST /v1/rerank`, for clients whose base URL
/// lacks `/v1`.
#[utoipa::path(
    post,
    path = "/rerank",
    tag = "text-embeddings-inference",
    operation_id = "tei_rerank",
    request_body(content = RerankRequest, example = json!({"query": "a cat", "texts": ["a dog", "a tomcat"]})),
    responses((status = 200, description = "the best first", body = Vec<Rank>), VectorErrors<Tei>),
)]
pub(in crate::http) async fn rerank(State(shared): SharedState, request: Request) -> Answered {
    answer(&shared, request, None, Verb::Rerank).await
}

/// What texts or pairs of texts are; by a cross-encoder.
#[utoipa::path(
    post,
    path = "/predict",
    tag = "text-embeddings-inference",
    operation_id = "tei_predict",
    request_body(content = PredictRequest, example = json!({"inputs": [["a text"], ["a text", "another"]]})),
    responses((status = 200, description = "all labels, the best first", body = Predictions), VectorErrors<Tei>),
)]
pub(in crate::http) async fn predict(State(shared): SharedState, request: Request) -> Answered {
    answer(&shared, request, None, Verb::Predict).await
}

/// The tokens of each text, with their places in it.
#[utoipa::path(
    post,
    path = "/tokenize",
    tag = "text-embeddings-inference",
    operation_id = "tei_tokenize",
    request_body(content = TokenizeRequest, example = json!({"inputs": "a text"})),
    responses((status = 200, description = "the tokens of each text", body = Vec<Vec<Token>>), BodyErrors<Tei>),
)]
pub(in crate::http) async fn tokenize(State(shared): SharedState, request: Request) -> Answered {
    answer(&shared, request, None, Verb::Tokenize).await
}

/// The text of tokens.
#[utoipa::path(
    post,
    path = "/decode",
    tag = "text-embeddings-inference",
    operation_id = "tei_decode",
    request_body(content = DecodeRequest, example = json!({"ids": [[101, 102], [101]]})),
    responses((status = 200, description = "the text of each row", body = Vec<String>), BodyErrors<Tei>),
)]
pub(in crate::http) async fn decode(State(shared): SharedState, request: Request) -> Answered {
    answer(&shared, request, None, Verb::Decode).await
}

/// Any of these requests to the model of that name: `/models/{name}/embed`, and so on.
#[utoipa::path(
    post,
    path = "/models/{rest}",
    tag = "text-embeddings-inference",
    operation_id = "tei_of_model",
    params(("rest" = String, Path, description = "the name, which may have slashes, and the path", example = "all-minilm-l6-v2/embed")),
    request_body(content = Object, example = json!({"inputs": "a text"})),
    responses((status = 200, description = "as the path without the name", body = Value), VectorErrors<Tei>),
)]
pub(in crate::http) async fn of_model(
    State(shared): SharedState,
    path: Result<Path<String>, PathRejection>,
    request: Request,
) -> Answered {
    let rest = rest_of(path)?;
    let (name, verb) = split(&rest);
    answer(&shared, request, Some(name.to_owned()), verb).await
}

/// What there is to say about the model of that name (`/models/{name}/info`), and whether it can do its
/// work (`/models/{name}/ping`).
#[utoipa::path(
    get,
    path = "/models/{rest}",
    tag = "text-embeddings-inference",
    operation_id = "tei_about_model",
    params(("rest" = String, Path, description = "the name, which may have slashes, and the path", example = "all-minilm-l6-v2/info")),
    responses((status = 200, description = "what there is to say, or nothing", body = Info), ModelErrors<Tei>),
)]
pub(in crate::http) async fn about_model(
    State(shared): SharedState,
    path: Result<Path<String>, PathRejection>,
) -> Answered {
    let rest = rest_of(path)?;
    match rest.rsplit_once('/') {
        Some((name, "info" | "")) => Info::response(&shared, Some(name)),
        Some((name, "ping" | "health")) => {
            shared.models.get(Some(name))?;
            Ok(().into_response())
        }
        _ => Info::response(&shared, Some(&rest)),
    }
}
