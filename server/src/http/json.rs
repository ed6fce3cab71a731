//! Reading a JSON body, with an error for everything that can be wrong with it.

use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::Request;
use axum::http::request::Parts;
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::Serialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::time::{Instant, timeout_at};

use super::Settings;
use super::error::ApiError;
use crate::embedder;

/// A client that sends nothing for so long has gone, or wants to occupy a place. One that
/// sends slowly has the time of a whole request, which `observe` bounds.
const BODY_IDLE: Duration = Duration::from_mins(1);
/// More bytes of JSON than this are read and written where other requests do not wait for it: a
/// thread is through with so many in a millisecond.
const LARGE: usize = 256 * 1024;
/// How deep arrays of texts are in any API, and some more.
const DEEPEST: usize = 8;
/// The fewest bytes that a text takes in an array: `"",`.
const LEAST: usize = 3;

/// Reads the request's body as JSON into `T`; with the request's head.
pub(super) async fn read<T: DeserializeOwned>(
    request: Request,
    settings: &Settings,
) -> Result<(Parts, T), ApiError> {
    let (head, bytes) = bytes(request, settings).await?;
    check_count(&bytes, settings)?;
    Ok((head, parse(&bytes)?))
}

/// The same, for an API whose clients may leave the content type out, or send any.
pub(super) async fn read_of_any_type<T: DeserializeOwned>(
    request: Request,
    settings: &Settings,
) -> Result<(Parts, T), ApiError> {
    let (head, bytes) = any_bytes(request, settings).await?;
    check_count(&bytes, settings)?;
    Ok((head, parse(&bytes)?))
}

/// The request's head, and its body, which claims to be JSON. [`check_count`] is to follow.
pub(super) async fn bytes(request: Request, settings: &Settings) -> Result<(Parts, Vec<u8>), ApiError> {
    check_content_type(&request)?;
    any_bytes(request, settings).await
}

async fn any_bytes(request: Request, settings: &Settings) -> Result<(Parts, Vec<u8>), ApiError> {
    let max_bytes = settings.max_body_bytes;
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

/// Refuses what has more texts than a request may have, before each of them takes a place in memory: an empty one
/// is three bytes of JSON, and takes a hundred.
pub(super) fn check_count(json: &[u8], settings: &Settings) -> Result<(), ApiError> {
    let limit = settings.max_texts;
    if json.len() / LEAST <= limit {
        return Ok(());
    }
    let found = at_length(json.len(), || most_texts(json));
    if found > limit { Err(embedder::Error::TooManyTexts { found, limit }.into()) } else { Ok(()) }
}

/// How many strings, arrays and objects the array has that has the most of them. Of what is no JSON, any number.
fn most_texts(json: &[u8]) -> usize {
    // What the arrays have so far that are open, by their depth; nothing for an object.
    let mut open = [None; DEEPEST];
    let (mut depth, mut most) = (0, 0);
    let mut bytes = json.iter();
    while let Some(byte) = bytes.next() {
        if matches!(byte, b'"' | b'[' | b'{')
            && let Some(Some(count)) = open.get_mut(depth)
        {
            *count += 1;
            most = most.max(*count);
        }
        match byte {
            b'"' => {
                while let Some(byte) = bytes.next().filter(|byte| **byte != b'"') {
                    if *byte == b'\\' {
                        bytes.next();
                    }
                }
            }
            b'[' | b'{' => {
                depth += 1;
                if let Some(place) = open.get_mut(depth) {
                    *place = (*byte == b'[').then_some(0);
                }
            }
            b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    most
}

/// Does what takes long where there are many bytes, and then without other requests waiting for this thread.
fn at_length<T>(bytes: usize, work: impl FnOnce() -> T) -> T {
    let others = || Handle::try_current().is_ok_and(|it| it.runtime_flavor() == RuntimeFlavor::MultiThread);
    if bytes > LARGE && others() { tokio::task::block_in_place(work) } else { work() }
}

/// An answer with so many numbers.
pub(super) fn answer(headers: HeaderMap, numbers: usize, body: impl Serialize) -> Response {
    // Written, each takes about so many bytes.
    at_length(numbers.saturating_mul(12), || (headers, Json(body)).into_response())
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
    at_length(bytes.len(), || parse_now(bytes))
}

fn parse_now<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
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

    #[test]
    fn texts_are_counted_before_they_are_read() {
        for (json, count) in [
            ("", 0),
            (r#"{"texts":[]}"#, 0),
            (r#"{"texts":["a"]}"#, 1),
            (r#"{"texts":["a", "b,\"[],c\\\\", "\\"], "model": "m"}"#, 3),
            (r#"{"a": ["x"], "texts": ["a", {"text": "b", "c": []}, ["d", "e"]], "b": "c"}"#, 3),
            (r#"{"inputs": [["a", "b", "c"], ["d"]]}"#, 3),
            (r#"{"inputs": {"sentences": ["a", "b"]}}"#, 2),
            // Numbers are no texts.
            (r#"{"input": [1, 2, 3, 4]}"#, 0),
            (r#"{"input": [[1, 2], [3, 4], []]}"#, 3),
            // No JSON, and deeper than any.
            (r#"]]}{"texts":["a","b"#, 2),
            (&"[".repeat(1000), 1),
        ] {
            assert_eq!(most_texts(json.as_bytes()), count, "{json:.80}");
        }
    }

    #[test]
    fn a_large_body_leaves_the_thread_to_others() {
        // One thread: nothing else runs while it is held up.
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
        let (send, receive) = std::sync::mpsc::channel();
        let long = runtime.spawn(async move {
            at_length(LARGE + 1, || receive.recv_timeout(Duration::from_secs(20)).is_ok())
        });
        let other = runtime.spawn(async move { send.send(()).is_ok() });
        assert!(runtime.block_on(long).unwrap() && runtime.block_on(other).unwrap());
        // Where there is but the one thread of a test, and without any runtime.
        let alone = tokio::runtime::Builder::new_current_thread().build().unwrap();
        assert_eq!(alone.block_on(async { at_length(LARGE + 1, || 1) }) + at_length(LARGE + 1, || 1), 2);
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
