//! What is wrong, for the client: the one place that maps domain errors to HTTP.
//!
//! ```json
//! {"error": {"message": "…", "type": "invalid_request_error", "param": "texts", "code": "invalid_field"}}
//! ```
//!
//! Handlers and layers know this one error, in OpenAI's shape. On the paths of another API it leaves
//! in the shape, and with the status, that this API's clients know ([`Shape`]).

use std::borrow::Cow;

use axum::Json;
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use crate::{embedder, models, options, token_ids, worker};

/// An error as the client gets it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiError {
    status: StatusCode,
    code: &'static str,
    message: String,
    param: Option<String>,
    retry_after: Option<u64>,
}

/// An error as OpenAI's clients know it.
#[derive(Serialize, ToSchema)]
#[schema(as = OpenAiError)]
pub(super) struct Body<'a> {
    #[schema(inline)]
    error: Inner<'a>,
}

#[derive(Serialize, ToSchema)]
struct Inner<'a> {
    /// What is wrong, and what to do about it.
    message: &'a str,
    #[serde(rename = "type")]
    kind: &'static str,
    /// The field that is wrong.
    #[schema(required)]
    param: Option<&'a str>,
    /// For programs: it stays what it is.
    code: &'static str,
}

/// An error as text-embeddings-inference's clients know it.
#[derive(Serialize, ToSchema)]
#[schema(as = TeiError)]
pub(super) struct TeiBody<'a> {
    error: &'a str,
    error_type: &'static str,
}

/// An error as Cohere's clients know it.
#[derive(Serialize, ToSchema)]
#[schema(as = CohereError)]
pub(super) struct CohereBody<'a> {
    message: &'a str,
}

/// An error as Ollama's clients know it.
#[derive(Serialize, ToSchema)]
#[schema(as = OllamaError)]
pub(super) struct OllamaBody<'a> {
    error: &'a str,
}

/// An error as Jina's clients know it.
#[derive(Serialize, ToSchema)]
#[schema(as = JinaError)]
pub(super) struct JinaBody<'a> {
    detail: &'a str,
}

/// A message is for reading; serde quotes whole values in its own.
const MAX_MESSAGE: usize = 400;

/// No longer than is worth reading: a caller's field can be as long as its body.
fn readable(mut text: String) -> String {
    if text.len() > MAX_MESSAGE {
        text.truncate(text.floor_char_boundary(MAX_MESSAGE));
        text.push('…');
    }
    text
}

impl ApiError {
    fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: readable(message.into()), param: None, retry_after: None }
    }

    fn param(mut self, param: impl Into<String>) -> Self {
        self.param = Some(readable(param.into()));
        self
    }

    fn retry_after(mut self, seconds: u64) -> Self {
        self.retry_after = Some(seconds);
        self
    }

    /// 400: the request cannot be understood.
    pub(super) fn bad_request(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code, message)
    }

    /// 400: a field of the request is wrong.
    pub(super) fn bad_field(param: &str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_field", message).param(param)
    }

    /// 400: there is nothing to be done.
    pub(super) fn empty(param: &str) -> Self {
        Self::bad_request("empty", format!("{param} is empty: send at least one")).param(param)
    }

    /// 400: what is wanted is of a kind that no model here makes.
    pub(super) fn no_such_kind(message: impl Into<String>) -> Self {
        Self::bad_request("wrong_kind_of_model", message).param("model")
    }

    /// 413: the body is over the limit.
    pub(super) fn body_too_large(limit: usize) -> Self {
        let message = format!("the request body is larger than the limit of {limit} bytes: split it");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", message)
    }

    /// 415: the body is no JSON by its content type.
    pub(super) fn unsupported_media_type(found: &str) -> Self {
        let message = format!(
            "the content type is {found}; send application/json (curl: -H 'Content-Type: application/json')"
        );
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", message)
    }

    /// 408: the body stopped arriving.
    pub(super) fn body_timeout(seconds: u64) -> Self {
        let message = format!("nothing of the request body arrived for {seconds} s");
        Self::new(StatusCode::REQUEST_TIMEOUT, "body_timeout", message)
    }

    /// 404: no route.
    pub(super) fn no_such_path(path: &str) -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            "no_such_path",
            format!("no such path: {path}; those that there are: /docs, or for programs /openapi.json"),
        )
    }

    /// 412: the vectors would be of another space than the caller expects.
    pub(super) fn other_space(message: impl Into<String>) -> Self {
        Self::new(StatusCode::PRECONDITION_FAILED, "other_space", message)
    }

    /// 405: a route without this method.
    pub(super) fn method_not_allowed(method: &Method, path: &str) -> Self {
        Self::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "method_not_allowed",
            format!("{path} has no method {method}"),
        )
    }

    /// 429: as many requests as allowed are under way.
    pub(super) fn too_many_requests(limit: usize) -> Self {
        let message = format!(
            "{limit} requests are under way, which is the limit: try again, or send more texts in one"
        );
        Self::new(StatusCode::TOO_MANY_REQUESTS, "overloaded", message).retry_after(1)
    }

    /// 504: the request took too long.
    pub(super) fn request_timeout(seconds: u64) -> Self {
        let message = format!("the request was not done within {seconds} s: send fewer texts at once");
        Self::new(StatusCode::GATEWAY_TIMEOUT, "request_timeout", message)
    }

    /// 500: our fault.
    pub(super) fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal_error", message)
    }

    /// 403: not for scripts of web pages.
    pub(super) fn not_for_browsers() -> Self {
        let message = "web pages may not load and unload models: send the request without an Origin";
        Self::new(StatusCode::FORBIDDEN, "not_for_browsers", message)
    }

    /// 404: no such model, in the words of an API.
    pub(super) fn model_not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "model_not_found", message).param("model")
    }

    /// The error's code, for logs.
    pub(super) const fn code(&self) -> &'static str {
        self.code
    }

    /// The status and the type of error by which text-embeddings-inference's clients know it.
    ///
    /// Its documentation says 413 for a request of too many texts; its code says 422, as for all that it
    /// finds wrong with what it could read.
    fn of_tei(&self) -> (StatusCode, &'static str) {
        match (self.status, self.code) {
            (StatusCode::TOO_MANY_REQUESTS, _) => (self.status, "Overloaded"),
            (StatusCode::SERVICE_UNAVAILABLE, _) => (self.status, "Unhealthy"),
            (_, "forward_failed" | "wrong_kind_of_model") => (StatusCode::FAILED_DEPENDENCY, "Backend"),
            (_, "empty") => (StatusCode::BAD_REQUEST, "Empty"),
            (_, "invalid_field" | "missing_field" | "text_too_long" | "too_many_texts") => {
                (StatusCode::UNPROCESSABLE_ENTITY, "Validation")
            }
            (status, _) if status.is_server_error() => (status, "Backend"),
            (status, _) => (status, "Validation"),
        }
    }

    /// The status by which OpenAI's and Cohere's clients know it: too many texts are a bad request there, for
    /// which they have an error of their own.
    fn of_openai_and_cohere(&self) -> StatusCode {
        if self.code == "too_many_texts" { StatusCode::BAD_REQUEST } else { self.status }
    }

    /// The status and the message by which Ollama's clients know it.
    fn of_ollama(&self) -> (StatusCode, Cow<'_, str>) {
        match self.status {
            StatusCode::TOO_MANY_REQUESTS => (StatusCode::SERVICE_UNAVAILABLE, (&self.message).into()),
            // Some look for these words.
            status if self.code == "text_too_long" => {
                (status, format!("the input length exceeds the context length: {}", self.message).into())
            }
            status => (status, (&self.message).into()),
        }
    }

    fn kind(&self) -> &'static str {
        match self.status {
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            status if status.is_server_error() => "server_error",
            _ => "invalid_request_error",
        }
    }
}

impl ApiError {
    /// The error as clients of this API know it.
    pub(super) fn response(self, shape: Shape) -> Response {
        let mut response = match shape {
            Shape::Own | Shape::OpenAi => {
                let error = Inner {
                    message: &self.message,
                    kind: self.kind(),
                    param: self.param.as_deref(),
                    code: self.code,
                };
                let status = if shape == Shape::Own { self.status } else { self.of_openai_and_cohere() };
                (status, Json(Body { error })).into_response()
            }
            Shape::Tei => {
                let (status, kind) = self.of_tei();
                (status, Json(TeiBody { error: &self.message, error_type: kind })).into_response()
            }
            Shape::Cohere => {
                (self.of_openai_and_cohere(), Json(CohereBody { message: &self.message })).into_response()
            }
            Shape::Ollama => {
                let (status, message) = self.of_ollama();
                (status, Json(OllamaBody { error: &message })).into_response()
            }
            Shape::Jina => (self.status, Json(JinaBody { detail: &self.message })).into_response(),
        };
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        // For the log, and to be written in another shape.
        response.extensions_mut().insert(self);
        response
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        self.response(Shape::Own)
    }
}

/// Whose clients an error is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    /// Ours.
    Own,
    /// OpenAI's.
    OpenAi,
    /// text-embeddings-inference's.
    Tei,
    /// Cohere's.
    Cohere,
    /// Ollama's.
    Ollama,
    /// Jina's.
    Jina,
}

impl Shape {
    /// By the pattern of the route.
    pub(super) fn of(route: &str) -> Self {
        match route {
            "/" | "/embed" | "/embed_all" | "/embed_sparse" | "/rerank" | "/predict" | "/similarity"
            | "/tokenize" | "/decode" | "/info" | "/ping" | "/invocations" => Self::Tei,
            route if route.starts_with("/models/") => Self::Tei,
            "/v1/embed" => Self::Cohere,
            route if route.starts_with("/v2/") => Self::Cohere,
            route if route.starts_with("/api/") => Self::Ollama,
            "/v1/rerank" => Self::Jina,
            "/v1/embeddings" | "/v1/models" | "/v1/models/{*id}" => Self::OpenAi,
            _ => Self::Own,
        }
    }
}

impl From<models::Error> for ApiError {
    fn from(error: models::Error) -> Self {
        let message = error.to_string();
        match error {
            models::Error::Unknown { .. } => Self::model_not_found(message),
            models::Error::Unnamed { .. } => {
                Self::new(StatusCode::BAD_REQUEST, "missing_field", message).param("model")
            }
            models::Error::Loading { .. } => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "model_loading", message).retry_after(1)
            }
            models::Error::Failed { .. } => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "model_failed", message)
            }
            models::Error::Empty => Self::new(StatusCode::SERVICE_UNAVAILABLE, "no_model", message),
            models::Error::Fixed => Self::new(StatusCode::FORBIDDEN, "models_are_fixed", message),
            models::Error::Taken { .. } => Self::new(StatusCode::CONFLICT, "model_exists", message),
            models::Error::TooMany => Self::new(StatusCode::CONFLICT, "too_many_models", message),
            models::Error::Stopping => Self::new(StatusCode::SERVICE_UNAVAILABLE, "stopping", message),
        }
    }
}

impl From<options::Error> for ApiError {
    fn from(error: options::Error) -> Self {
        let message = error.to_string();
        match error {
            options::Error::UnknownPrompt { .. } => Self::bad_field("prompt_name", message),
            options::Error::UnknownInputType { .. } => Self::bad_field("input_type", message),
            options::Error::TwoPrompts { second, .. } => Self::bad_field(second, message),
            options::Error::PromptTooLong { .. } => Self::bad_field("prompt", message),
            options::Error::Dimensions { .. } => Self::bad_field("dimensions", message),
            options::Error::NoVectors | options::Error::NoScores | options::Error::NoRanking { .. } => {
                Self::no_such_kind(message)
            }
            options::Error::InputTypeMissing => {
                Self::new(StatusCode::UNPROCESSABLE_ENTITY, "input_type_missing", message).param("input_type")
            }
            options::Error::OtherSpace { .. } => Self::other_space(message),
        }
    }
}

impl From<token_ids::Error> for ApiError {
    fn from(error: token_ids::Error) -> Self {
        let message = error.to_string();
        match error {
            token_ids::Error::NoSuchId { text, place, .. } => {
                Self::bad_field(&format!("input[{text}][{place}]"), message)
            }
            token_ids::Error::NoText { text, .. } | token_ids::Error::NotOfTheModel { text } => {
                Self::bad_field(&format!("input[{text}]"), message)
            }
            token_ids::Error::TooMuchText { .. } => {
                Self::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", message).param("input")
            }
            token_ids::Error::Embedder(error) => error.into(),
        }
    }
}

impl From<embedder::Error> for ApiError {
    fn from(error: embedder::Error) -> Self {
        let message = crate::models::one_line(&error);
        match error {
            embedder::Error::TooManyTexts { .. } => {
                Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too_many_texts", message)
            }
            embedder::Error::Overloaded { retry_after } => {
                Self::new(StatusCode::TOO_MANY_REQUESTS, "overloaded", message)
                    .retry_after(retry_after.as_secs())
            }
            embedder::Error::Options(error) => error.into(),
            embedder::Error::TooLong(_) => Self::new(StatusCode::BAD_REQUEST, "text_too_long", message),
            embedder::Error::NotTold(_) => Self::new(StatusCode::BAD_REQUEST, "invalid_field", message),
            embedder::Error::Tokenize(_) => Self::internal(message),
            embedder::Error::Text { source: worker::Error::Stopping, .. } | embedder::Error::Stopping => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "stopping", embedder::Error::Stopping.to_string())
            }
            embedder::Error::Text { source: worker::Error::TooLarge { .. }, .. } => {
                Self::new(StatusCode::PAYLOAD_TOO_LARGE, "text_too_large", error.to_string())
            }
            embedder::Error::Text { .. } => {
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, "forward_failed", error.to_string())
            }
        }
    }
}
