//! `/health`, `/livez` and `/metrics`.
//!
//! - `/health` promises that every model can embed now: each has embedded once since
//!   it was loaded. It does not promise that a request will be admitted: a full line
//!   is answered with 429, and is no reason to take the server out of service.
//! - `/livez` promises that no forward has been running for longer than its
//!   deadline. It does not look at models that load or fail to: a restart would not
//!   help them.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::Instant;

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::SharedState;
use super::error::ApiError;
use crate::models::State as ModelState;

#[derive(Debug, PartialEq, Eq, Serialize)]
struct Health {
    status: &'static str,
    models: Vec<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    loading: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    failed: BTreeMap<String, String>,
}

fn judge<'a>(states: impl IntoIterator<Item = (&'a str, ModelState)>, stopping: bool) -> Health {
    let mut health =
        Health { status: "", models: Vec::new(), loading: BTreeMap::new(), failed: BTreeMap::new() };
    for (name, state) in states {
        match state {
            ModelState::Ready(_) => health.models.push(name.to_owned()),
            ModelState::Loading { step } => drop(health.loading.insert(name.to_owned(), step)),
            ModelState::Failed { why } => drop(health.failed.insert(name.to_owned(), why)),
        }
    }
    health.status = if stopping {
        "stopping"
    } else if !health.failed.is_empty() {
        "failed"
    } else if !health.loading.is_empty() {
        "loading"
    } else {
        "healthy"
    };
    health
}

/// `GET /health`: 200 when every model can embed, else 503 with which cannot, and why.
pub(super) async fn health(State(shared): SharedState) -> Response {
    let health = judge(shared.models.states(), shared.stopping.load(Ordering::Relaxed));
    let status = if health.status == "healthy" { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(health)).into_response()
}

#[derive(Serialize)]
struct Liveness {
    status: &'static str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    stuck: Vec<String>,
}

/// `GET /livez`: 503 when a forward is past its deadline.
pub(super) async fn livez(State(shared): SharedState) -> Response {
    let stuck = shared.models.stuck(Instant::now(), shared.settings.forward_deadline);
    if stuck.is_empty() {
        Json(Liveness { status: "alive", stuck }).into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, Json(Liveness { status: "stuck", stuck })).into_response()
    }
}

/// `GET /metrics`, in the OpenMetrics text format.
pub(super) async fn metrics(State(shared): SharedState) -> Result<Response, ApiError> {
    for (name, state) in shared.models.states() {
        match state {
            ModelState::Ready(embedder) => shared.metrics.model(name, true, embedder.waiting()),
            _ => shared.metrics.model(name, false, (0, 0)),
        }
    }
    let text = shared
        .metrics
        .encode()
        .map_err(|error| ApiError::internal(format!("metrics cannot be written: {error}")))?;
    let content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    Ok(([(header::CONTENT_TYPE, content_type)], text).into_response())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_state_decides_and_is_explained() {
        let loading = || ModelState::Loading { step: "fetching".into() };
        let failed = || ModelState::Failed { why: "no network".into() };
        let table: [(&[(&str, ModelState)], bool, &str); 5] = [
            (&[], false, "healthy"),
            (&[("a", loading())], false, "loading"),
            (&[("a", failed())], false, "failed"),
            (&[("a", loading()), ("b", failed())], false, "failed"),
            (&[("a", loading())], true, "stopping"),
        ];
        for (states, stopping, expected) in table {
            let health = judge(states.iter().cloned(), stopping);
            assert_eq!(health.status, expected);
            assert_eq!(health.loading.len() + health.failed.len(), states.len());
        }
    }
}
