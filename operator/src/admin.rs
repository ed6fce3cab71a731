//! /healthz, /readyz and /metrics.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;

use crate::metrics::Metrics;

/// Whether the operator can work: it has reached the API server, and what it watches is
/// defined there. A replica that waits for the lease is ready, too: it is ready to take
/// over.
#[derive(Debug, Default)]
pub struct Ready(AtomicBool);

impl Ready {
    /// From now on.
    pub fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The paths. `/healthz` promises that the process runs and answers, and no more: one that
/// waits for an API server is healthy.
pub fn router(metrics: Arc<Metrics>, ready: Arc<Ready>) -> Router {
    let readyz = move || async move {
        if ready.0.load(Ordering::Relaxed) {
            (StatusCode::OK, "ok")
        } else {
            (StatusCode::SERVICE_UNAVAILABLE, "waiting for the API server")
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
