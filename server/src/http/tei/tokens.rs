//! What the tokenizer makes of texts, and of tokens: `/tokenize` and `/decode`.

use axum::Json;
use axum::response::{IntoResponse, Response};

use super::Asked;
use super::wire::{DecodeRequest, Ids, Token, TokenizeRequest};
use crate::http::error::ApiError;
use crate::http::json;
use crate::options::Options;
use crate::tokenize;

/// The most bytes of text in one request: told, each takes tens of bytes.
const MOST_BYTES: usize = 2_000_000;

/// The tokens of each text, with their places in it.
pub(super) async fn tokenize(asked: Asked<'_>) -> Result<Response, ApiError> {
    let body: TokenizeRequest = json::parse(&asked.body)?;
    let texts = body.inputs.into_all();
    if texts.is_empty() {
        return Err(ApiError::empty("inputs"));
    }
    let bytes: usize = texts.iter().map(String::len).sum();
    if bytes > MOST_BYTES {
        let message = format!(
            "{bytes} bytes of text in one request; the limit of /tokenize is {MOST_BYTES}: split them"
        );
        return Err(ApiError::bad_field("inputs", message));
    }
    let named = asked.shared.models.get(asked.model.as_deref())?;
    let options = Options {
        prompt_name: body.prompt_name,
        input_type: body.input_type,
        suffix: named.suffix,
        ..Options::default()
    };
    let how = named.embedder.about().offer.decide(&options)?.how;
    let special = body.add_special_tokens.unwrap_or(true);
    let told = named.embedder.tokens(texts, how, special).await?;
    let rows = told.into_iter().map(|tokens| tokens.into_iter().map(token).collect::<Vec<_>>());
    Ok(Json(rows.collect::<Vec<_>>()).into_response())
}

fn token(token: tokenize::Token) -> Token {
    let tokenize::Token { id, text, special, place } = token;
    let (start, stop) = place.unzip();
    Token { id, text, special, start, stop }
}

/// The text of each row of tokens.
pub(super) async fn decode(asked: Asked<'_>) -> Result<Response, ApiError> {
    let body: DecodeRequest = json::parse(&asked.body)?;
    let rows = match body.ids {
        Ids::One(ids) => vec![ids],
        Ids::Many(rows) => rows,
    };
    if rows.is_empty() || rows.iter().any(Vec::is_empty) {
        return Err(ApiError::empty("ids"));
    }
    let embedder = asked.shared.models.get(asked.model.as_deref())?.embedder;
    let texts = embedder.decode(rows, body.skip_special_tokens.unwrap_or(true)).await?;
    Ok(Json(texts).into_response())
}
