//! The one error body, and the one place that maps domain errors to HTTP.
//!
//! ```json
//! {"error": {"message": "…", "type": "invalid_request_error", "param": "texts", "code": "invalid_field"}}
//! ```
//!
//! It is OpenAI's shape on every path, because the clients that agents use turn it
//! into typed exceptions, and one shape is easier to handle than two.

use axum::Json;
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use crate::{embedder, models, worker};

/// An error as the client gets it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiError {
    status: StatusCode,
    code: &'static str,
    message: String,
    param: Option<String>,
    retry_after: Option<u64>,
}

#[derive(Serialize)]
struct Body<'a> {
    error: Inner<'a>,
}

#[derive(Serialize)]
struct Inner<'a> {
    message: &'a str,
    #[serde(rename = "type")]
    kind: &'static str,
    param: Option<&'a str>,
    code: &'static str,
}

/// A message is for reading; serde quotes whole values in its own.
const MAX_MESSAGE: usize = 400;

impl ApiError {
    fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        let mut message = message.into();
        if message.len() > MAX_MESSAGE {
            let cut = message.floor_char_boundary(MAX_MESSAGE);
            message.truncate(cut);
            message.push('…');
        }
        Self { status, code, message, param: None, retry_after: None }
    }

    fn param(mut self, param: impl Into<String>) -> Self {
        self.param = Some(param.into());
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
            format!(
                "no such path: {path}; there are /embeddings, /models, /v1/embeddings, /v1/models, /health, /livez and /metrics"
            ),
        )
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

    /// The error's code, for logs.
    pub(super) const fn code(&self) -> &'static str {
        self.code
    }

    fn kind(&self) -> &'static str {
        match self.status {
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            status if status.is_server_error() => "server_error",
            _ => "invalid_request_error",
        }
    }
}

/// Lets the middleware log the code of an error that a handler returned.
#[derive(Clone, Copy, Debug)]
pub(super) struct ErrorCode(pub(super) &'static str);

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let error = Inner {
            message: &self.message,
            kind: self.kind(),
            param: self.param.as_deref(),
            code: self.code,
        };
        let mut response = (self.status, Json(Body { error })).into_response();
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response.extensions_mut().insert(ErrorCode(self.code()));
        response
    }
}

impl From<models::Error> for ApiError {
    fn from(error: models::Error) -> Self {
        let message = error.to_string();
        match error {
            models::Error::Unknown { .. } => {
                Self::new(StatusCode::NOT_FOUND, "model_not_found", message).param("model")
            }
            models::Error::Unnamed { .. } => {
                Self::new(StatusCode::BAD_REQUEST, "missing_field", message).param("model")
            }
            models::Error::Loading { .. } => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "model_loading", message).retry_after(1)
            }
            models::Error::Failed { .. } => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "model_failed", message)
            }
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
            embedder::Error::Tokenize(_) => Self::internal(message),
            embedder::Error::Text { source: worker::Error::Stopping, .. } | embedder::Error::Stopping => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "stopping", "the server is stopping")
            }
            embedder::Error::Text { .. } => {
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, "forward_failed", error.to_string())
            }
        }
    }
}
