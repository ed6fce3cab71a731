//! What happens around every request: its id, its time limit, its log line, its
//! metrics.
//!
//! Inputs are never logged. The path is logged as its route's pattern, and the query
//! string, which carries the text of `GET /embeddings`, not at all.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderValue, Method, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tracing::Instrument;

use super::error::{ApiError, Shape};
use super::leftover::Leftover;
use super::{REQUEST_ID, Shared};

/// The outermost layer.
pub(super) async fn observe(State(shared): State<Arc<Shared>>, request: Request, next: Next) -> Response {
    let begun = Instant::now();
    let _in_flight = shared.metrics.begin_request();
    let id = request_id(request.headers().get(REQUEST_ID));
    let method = method_label(request.method());
    let path =
        request.extensions().get::<MatchedPath>().map_or("(no such path)", MatchedPath::as_str).to_owned();
    let span = tracing::info_span!("request", id = id.to_str().unwrap_or_default(), method, path);

    let limit = shared.settings.request_timeout;
    let (request, leftover) = Leftover::of(request);
    let mut response = match tokio::time::timeout(limit, next.run(request).instrument(span.clone())).await {
        Ok(response) => response,
        Err(_) => ApiError::request_timeout(limit.as_secs()).into_response(),
    };
    let error = response.extensions().get::<ApiError>().cloned();
    let shape = Shape::of(&path);
    if let Some(error) = error.clone().filter(|_| shape != Shape::Own) {
        let (head, _) = response.into_parts();
        response = error.response(shape);
        // What layers have added since: CORS, Allow.
        for (name, value) in head.headers.iter().filter(|(name, _)| *name != header::CONTENT_LENGTH) {
            response.headers_mut().insert(name, value.clone());
        }
    }
    response.headers_mut().insert(REQUEST_ID, id);
    leftover.clear(&mut response).await;

    let status = response.status();
    let took = begun.elapsed();
    shared.metrics.request(method, &path, status.as_u16(), took);
    let code = error.map_or("", |error| error.code());
    let ms = took.as_secs_f64() * 1e3;
    let _entered = span.enter();
    if matches!(path.as_str(), "/health" | "/livez" | "/metrics") {
        // Probes come every few seconds; what they find is logged where it happens.
        tracing::debug!(status = status.as_u16(), ms, "answered");
    } else if status.is_server_error() {
        tracing::warn!(status = status.as_u16(), code, ms, "answered");
    } else {
        tracing::info!(status = status.as_u16(), code, ms, "answered");
    }
    response
}

/// The caller's id where it is one that can stand in a log, else a new one.
fn request_id(given: Option<&HeaderValue>) -> HeaderValue {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.:/+=".contains(byte);
    match given {
        Some(id) if (1..=128).contains(&id.len()) && id.as_bytes().iter().all(plain) => id.clone(),
        _ => {
            let text = format!("{:032x}", rand::random::<u128>());
            HeaderValue::from_str(&text).unwrap_or(HeaderValue::from_static("none"))
        }
    }
}

/// Methods are free text on the wire, and labels must be few.
fn method_label(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::HEAD => "HEAD",
        Method::OPTIONS => "OPTIONS",
        _ => "other",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_callers_id_is_kept_unless_it_could_forge_a_log_line() {
        let keep = HeaderValue::from_static("req-1.a:b/c+d=e_f");
        assert_eq!(request_id(Some(&keep)), keep);
        for bad in ["", "a b", "a\tb", &"x".repeat(129), "a{b}"] {
            let bad = HeaderValue::from_str(bad).unwrap();
            assert_ne!(request_id(Some(&bad)), bad);
        }
        assert_eq!(request_id(None).len(), 32);
    }
}
