//! `/health`, `/livez` and `/metrics`.
//!
//! - `/health` promises that every model that the server was started with can embed now, and
//!   one at least: each has embedded once since it was loaded. A model that is loaded later
//!   takes nothing out of service while it loads. It does not promise that a request will be admitted: a full line
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
use utoipa::ToSchema;

use super::SharedState;
use super::error::ApiError;
use super::refusals::{AnyErrors, Own};
use crate::metrics::ModelStatus;
use crate::models::{State as ModelState, Status, lacking};

/// Whether every model can embed.
#[derive(Debug, PartialEq, Eq, Serialize, ToSchema)]
pub(super) struct Health {
    /// `healthy`, `loading`, `failed`, `stopping`, or `empty` where every model was unloaded.
    status: &'static str,
    /// The models that can embed.
    models: Vec<String>,
    /// What each model that loads is at.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schema(required = false)]
    loading: BTreeMap<String, String>,
    /// Why each model that failed did.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schema(required = false)]
    failed: BTreeMap<String, String>,
}

fn judge(states: Vec<Status>, stopping: bool) -> Health {
    let mut health =
        Health { status: "", models: Vec::new(), loading: BTreeMap::new(), failed: BTreeMap::new() };
    let failed = lacking(&states).any(|model| matches!(model.state, ModelState::Failed { .. }));
    health.status = if stopping {
        "stopping"
    } else if failed {
        "failed"
    } else if lacking(&states).next().is_some() {
        "loading"
    } else if states.is_empty() {
        "empty"
    } else {
        "healthy"
    };
    for Status { name, state, .. } in states {
        let name = name.to_string();
        match state {
            ModelState::Ready(_) => health.models.push(name),
            ModelState::Loading { step } => drop(health.loading.insert(name, step)),
            ModelState::Failed { why } => drop(health.failed.insert(name, why)),
        }
    }
    health
}

/// Whether every model that the server was started with can embed; of all, which cannot, and why.
#[utoipa::path(
    get,
    path = "/health",
    tag = "Operations",
    responses(
        AnyErrors<Own>,
        (status = 200, description = "every model that the server was started with can embed, and one at least", body = Health),
        (status = 503, description = "a model loads or failed to, none is left, or the server stops", body = Health),
    ),
)]
pub(super) async fn health(State(shared): SharedState) -> Response {
    let health = judge(shared.models.states(), shared.stopping.load(Ordering::Relaxed));
    let status = if health.status == "healthy" { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(health)).into_response()
}

/// Whether forwards end.
#[derive(Serialize, ToSchema)]
pub(super) struct Liveness {
    /// `alive` or `stuck`.
    status: &'static str,
    /// Which forward does not end.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(required = false)]
    stuck: Vec<String>,
}

/// Whether no forward has been running for longer than its deadline.
#[utoipa::path(
    get,
    path = "/livez",
    tag = "Operations",
    responses(
        AnyErrors<Own>,
        (status = 200, description = "no forward is past its deadline", body = Liveness),
        (status = 503, description = "a forward is past its deadline: only a restart helps", body = Liveness),
    ),
)]
pub(super) async fn livez(State(shared): SharedState) -> Response {
    let stuck = shared.models.stuck(Instant::now(), shared.settings.forward_deadline);
    if stuck.is_empty() {
        Json(Liveness { status: "alive", stuck }).into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, Json(Liveness { status: "stuck", stuck })).into_response()
    }
}

/// The content type of the OpenMetrics text format.
const METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Metrics, in the OpenMetrics text format.
#[utoipa::path(
    get,
    path = "/metrics",
    tag = "Operations",
    responses(
        (status = 200, description = "metrics", body = String, content_type = METRICS),
        AnyErrors<Own>,
    ),
)]
pub(super) async fn metrics(State(shared): SharedState) -> Result<Response, ApiError> {
    let states = shared.models.states();
    let models = states.iter().map(|Status { name, state, .. }| match state {
        ModelState::Ready(embedder) => ModelStatus { name, ready: true, waiting: embedder.waiting_by_lane() },
        _ => ModelStatus { name, ready: false, waiting: [(0, 0); 2] },
    });
    shared.metrics.models(&models.collect::<Vec<_>>());
    if let Some(cache) = &shared.cache {
        shared.metrics.cache(cache.entries(), cache.bytes());
    }
    let text = shared
        .metrics
        .encode()
        .map_err(|error| ApiError::internal(format!("metrics cannot be written: {error}")))?;
    Ok(([(header::CONTENT_TYPE, METRICS)], text).into_response())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_state_decides_and_is_explained() {
        let status = |name: &str, is_needed, state| Status { name: name.into(), is_needed, state };
        let loading =
            |name, is_needed| status(name, is_needed, ModelState::Loading { step: "fetching".into() });
        let failed =
            |name, is_needed| status(name, is_needed, ModelState::Failed { why: "no network".into() });
        for (states, stopping, expected) in [
            (vec![], false, "empty"),
            (vec![loading("a", true)], false, "loading"),
            (vec![failed("a", true)], false, "failed"),
            (vec![loading("a", true), failed("b", true)], false, "failed"),
            (vec![loading("a", true), failed("b", false)], false, "failed"),
            (vec![loading("a", false)], false, "loading"),
            (vec![failed("a", false)], false, "failed"),
            (vec![loading("a", true)], true, "stopping"),
        ] {
            let count = states.len();
            let health = judge(states, stopping);
            assert_eq!(health.status, expected);
            assert_eq!(health.loading.len() + health.failed.len(), count);
        }
    }
}
