//! /healthz, /readyz and /metrics.

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;

use crate::metrics::Metrics;
use crate::mutex::lock;

/// Whether the operator can work: it has reached the API server, and what it watches is
/// defined there. A replica that waits for the lease is ready, too: it is ready to take
/// over.
#[derive(Debug)]
pub struct Ready(Mutex<Option<String>>);

impl Default for Ready {
    fn default() -> Self {
        Self(Mutex::new(Some("waiting for the API server".into())))
    }
}

impl Ready {
    /// From now on.
    pub fn set(&self) {
        *lock(&self.0) = None;
    }

    /// Not yet, and why.
    pub fn waits(&self, why: &str) {
        *lock(&self.0) = Some(why.to_owned());
    }

    /// Why not.
    fn missing(&self) -> Option<String> {
        lock(&self.0).clone()
    }
}

/// The paths. `/healthz` promises that the process runs and answers, and no more: one that
/// waits for an API server is healthy.
pub fn router(metrics: Arc<Metrics>, ready: Arc<Ready>) -> Router {
    let readyz = move || async move {
        match ready.missing() {
            None => (StatusCode::OK, "ok".to_owned()),
            Some(why) => (StatusCode::SERVICE_UNAVAILABLE, why),
        }
    };
    let text = move || async move {
        let kind = [(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")];
        (kind, metrics.text()).into_response()
    };
    Router::new()
        .route("/healthz", get(|| async { "ok" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(text))
}
