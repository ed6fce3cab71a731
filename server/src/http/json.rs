//! Reading a JSON body, with an error for everything that can be wrong with it.

use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::http::header;
use axum::http::request::Parts;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::{DeserializeOwned, IgnoredAny};
use tokio::time::{Instant, timeout_at};

use super::error::ApiError;

/// A client that sends nothing for so long has gone, or wants to occupy a place. One that
/// sends slowly has the time of a whole request, which `observe` bounds.
const BODY_IDLE: Duration = Duration::from_mins(1);

/// Reads the request's body as JSON into `T`; with the request's head.
pub(super) async fn read<T: DeserializeOwned>(
    request: Request,
    max_bytes: usize,
) -> Result<(Parts, T), ApiError> {
    let (head, bytes) = bytes(request, max_bytes).await?;
    Ok((head, parse(&bytes)?))
}

/// The same, for an API whose clients may leave the content type out, or send any.
pub(super) async fn read_of_any_type<T: DeserializeOwned>(
    request: Request,
    max_bytes: usize,
) -> Result<(Parts, T), ApiError> {
    let (head, bytes) = any_bytes(request, max_bytes).await?;
    Ok((head, parse(&bytes)?))
}

/// The request's head, and its body, which claims to be JSON.
pub(super) async fn bytes(request: Request, max_bytes: usize) -> Result<(Parts, Vec<u8>), ApiError> {
    check_content_type(&request)?;
    any_bytes(request, max_bytes).await
}

async fn any_bytes(request: Request, max_bytes: usize) -> Result<(Parts, Vec<u8>), ApiError> {
    let announced = request
        .headers()
        .get(header::CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.parse::<u64>().ok());
    if announced.is_some_and(|length| length > max_bytes as u64) {
        return Err(ApiError::body_too_large(max_bytes));
    }
    let (head, body) = request.into_parts();
    Ok((head, collect(body, max_bytes, BODY_IDLE).await?))
}

fn check_content_type(request: &Request) -> Result<(), ApiError> {
    let Some(value) = request.headers().get(header::CONTENT_TYPE) else {
        return Err(ApiError::unsupported_media_type("missing"));
    };
    let text = value.to_str().unwrap_or("not readable");
    let essence = text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    if essence == "application/json" || (essence.starts_with("application/") && essence.ends_with("+json")) {
        Ok(())
    } else {
        Err(ApiError::unsupported_media_type(&format!("\"{text}\"")))
    }
}

async fn collect(body: Body, max_bytes: usize, idle: Duration) -> Result<Vec<u8>, ApiError> {
    let mut body = Limited::new(body, max_bytes);
    let mut collected = Vec::new();
    let mut deadline = Instant::now() + idle;
    while let Some(frame) =
        timeout_at(deadline, body.frame()).await.map_err(|_| ApiError::body_timeout(idle.as_secs()))?
    {
        let frame = frame.map_err(|error| {
            if error.is::<LengthLimitError>() {
                ApiError::body_too_large(max_bytes)
            } else {
                ApiError::bad_request("unreadable_body", format!("the request body cannot be read: {error}"))
            }
        })?;
        // Frames without data keep nobody waiting for longer.
        if let Some(data) = frame.data_ref().filter(|data| !data.is_empty()) {
            collected.extend_from_slice(data);
            deadline = Instant::now() + idle;
        }
    }
    Ok(collected)
}

/// A JSON object as `T`.
pub(super) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let message =
            format!("the request body is not valid UTF-8: byte {} begins no character", error.valid_up_to());
        ApiError::bad_request("invalid_utf8", message)
    })?;
    // serde would take an array for a struct's fields in order.
    if !text.trim_ascii_start().starts_with('{') {
        return Err(serde_json::from_str::<IgnoredAny>(text).map_or_else(
            |error| not_json(&error),
            |_| ApiError::bad_request("invalid_field", "the request body must be a JSON object"),
        ));
    }
    match serde_json::from_str(text) {
        Ok(value) => Ok(value),
        // A second look, because keeping track of the path costs time that requests
        // without a mistake need not pay.
        Err(error) => Err(explain::<T>(text, &error)),
    }
}

fn not_json(error: &serde_json::Error) -> ApiError {
    ApiError::bad_request("invalid_json", format!("the request body is not valid JSON: {error}"))
}

fn explain<T: DeserializeOwned>(text: &str, error: &serde_json::Error) -> ApiError {
    if !error.is_data() {
        return not_json(error);
    }
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let path = serde_path_to_error::deserialize::<_, T>(&mut deserializer)
        .err()
        .map(|error| error.path().to_string())
        .unwrap_or_default();
    let message = error.to_string();
    let named = message.split('`').nth(1).map(str::to_owned);
    match named {
        Some(field) if message.starts_with("unknown field") => ApiError::bad_field(&field, message),
        Some(field) if message.starts_with("missing field") => ApiError::bad_field(&field, message),
        _ if path.is_empty() || path == "." => ApiError::bad_request("invalid_field", message),
        _ => ApiError::bad_field(&path, format!("{path}: {message}")),
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use futures_util::stream;
    use serde::Deserialize;

    use super::*;

    /// A body that comes in `parts` with `pause` before each, and then never ends.
    fn slow(parts: usize, part: &'static str, pause: Duration) -> Body {
        Body::from_stream(stream::unfold(0, move |sent| async move {
            if sent == parts {
                std::future::pending::<()>().await;
            }
            tokio::time::sleep(pause).await;
            Some((Ok::<_, Infallible>(part), sent + 1))
        }))
    }

    #[tokio::test]
    async fn a_body_may_come_slowly_but_not_stop() {
        let (pause, idle) = (Duration::from_millis(100), Duration::from_secs(1));
        // Its twelve parts take longer than the idle limit; the limit of bytes shows that all came.
        let error = collect(slow(12, "a", pause), 11, idle).await.unwrap_err();
        assert_eq!(error.code(), "body_too_large");
        let begun = Instant::now();
        assert_eq!(collect(slow(3, "a", pause), 11, idle).await.unwrap_err().code(), "body_timeout");
        assert!(begun.elapsed() >= pause * 3 + idle, "{:?}", begun.elapsed());
        // Frames with nothing in them are no sign of life.
        let begun = Instant::now();
        assert_eq!(collect(slow(30, "", pause), 11, idle).await.unwrap_err().code(), "body_timeout");
        assert!(begun.elapsed() < pause * 20, "{:?}", begun.elapsed());
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Example {
        #[serde(rename = "texts")]
        _texts: Vec<String>,
    }

    #[test]
    fn every_mistake_has_its_message() {
        let deep = format!("{{\"texts\":{}", "[".repeat(100_000));
        let table: [(&[u8], &str, Option<&str>); 8] = [
            (
                b"{\"texts\":",
                "the request body is not valid JSON: EOF while parsing a value at line 1 column 9",
                None,
            ),
            (
                deep.as_bytes(),
                "texts[0]: invalid type: sequence, expected a string at line 1 column 10",
                Some("texts[0]"),
            ),
            (b"{}", "missing field `texts` at line 1 column 2", Some("texts")),
            (
                b"{\"texts\":[],\"txt\":1}",
                "unknown field `txt`, expected `texts` at line 1 column 17",
                Some("txt"),
            ),
            (
                b"{\"texts\":[\"a\",3]}",
                "texts[1]: invalid type: integer `3`, expected a string at line 1 column 15",
                Some("texts[1]"),
            ),
            (
                b"{\"texts\":\"a\"}",
                "texts: invalid type: string \"a\", expected a sequence at line 1 column 12",
                Some("texts"),
            ),
            (b"[[\"a\"]]", "the request body must be a JSON object", None),
            (
                b"{\"texts\":[\"\xff\"]}",
                "the request body is not valid UTF-8: byte 11 begins no character",
                None,
            ),
        ];
        for (body, message, param) in table {
            let error = parse::<Example>(body).unwrap_err();
            let shown = format!("{error:?}");
            assert!(shown.contains(&format!("message: {message:?}")), "{shown}\nwanted {message:?}");
            assert!(shown.contains(&format!("param: {:?}", param.map(str::to_owned))), "{shown}");
        }
    }
}
