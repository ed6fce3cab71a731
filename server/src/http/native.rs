//! The project's own API: `POST /embeddings` and `GET /embeddings`.

use std::sync::Arc;

use axum::Json;
use axum::extract::{RawQuery, Request, State};
use axum::http::{HeaderMap, HeaderValue};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};

use super::error::ApiError;
use super::{Shared, SharedState, TRUNCATED_INPUTS, json};
use crate::embedder::Embedded;

// Unknown fields are refused: a misspelt field of our own API should not be lost in
// silence, and no client of it can have learnt to send others'.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct EmbedRequest {
    texts: Vec<String>,
    model: Option<String>,
}

#[derive(Debug, Serialize)]
struct EmbedResponse<'a> {
    embeddings: Vec<Vec<f32>>,
    model: &'a str,
    dimensions: usize,
}

/// `POST /embeddings`: `{"texts": […], "model": "…"}` → a vector a text, in order.
pub(super) async fn post_embeddings(
    State(shared): SharedState,
    request: Request,
) -> Result<Response, ApiError> {
    let body: EmbedRequest = json::read(request, shared.settings.max_body_bytes).await?;
    if body.texts.is_empty() {
        return Err(ApiError::bad_field("texts", "texts is empty: send at least one text"));
    }
    answer(&shared, body.texts, body.model.as_deref()).await
}

/// `GET /embeddings?text=…&model=…` → the same shape with one vector.
pub(super) async fn get_embeddings(
    State(shared): SharedState,
    RawQuery(query): RawQuery,
) -> Result<Response, ApiError> {
    let query = query.unwrap_or_default();
    let (mut text, mut model) = (None, None);
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let (name, value) = (decode(name)?, decode(value)?);
        let field = match name.as_str() {
            "text" => &mut text,
            "model" => &mut model,
            _ => {
                return Err(ApiError::bad_field(
                    &name,
                    format!("unknown parameter `{name}`, expected `text` or `model`"),
                ));
            }
        };
        if field.replace(value).is_some() {
            return Err(ApiError::bad_field(
                &name,
                format!("parameter `{name}` is given twice; POST takes several texts"),
            ));
        }
    }
    let text =
        text.ok_or_else(|| ApiError::bad_field("text", "missing parameter `text`: GET /embeddings?text=…"))?;
    answer(&shared, vec![text], model.as_deref()).await
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

async fn answer(shared: &Arc<Shared>, texts: Vec<String>, model: Option<&str>) -> Result<Response, ApiError> {
    let (name, embedded, dimensions) = embed(shared, texts, model).await?;
    let headers = headers(&embedded);
    let body = EmbedResponse { embeddings: embedded.vectors, model: name, dimensions };
    Ok((headers, Json(body)).into_response())
}

/// Embeds and counts; what every surface does between its two wire types. Returns
/// the model's name, the vectors, and their length.
pub(super) async fn embed<'a>(
    shared: &'a Shared,
    texts: Vec<String>,
    model: Option<&str>,
) -> Result<(&'a str, Embedded, usize), ApiError> {
    let (name, front_door) = shared.models.get(model)?;
    let embedded = front_door.embed(texts).await.inspect_err(|error| {
        if matches!(error, crate::embedder::Error::Overloaded { .. }) {
            shared.metrics.rejected(name);
        }
    })?;
    shared.metrics.embedded(name, &embedded);
    Ok((name, embedded, front_door.about().dimensions))
}

/// What a vector response says about itself in its headers.
pub(super) fn headers(embedded: &Embedded) -> HeaderMap {
    HeaderMap::from_iter([(TRUNCATED_INPUTS, HeaderValue::from(embedded.truncated.len()))])
}
