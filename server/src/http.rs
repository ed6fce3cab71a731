//! Every path, and every layer around it.
//!
//! ```text
//! request ─▶ observe (request id, log, metrics, timeout) ─▶ catch panics ─▶ CORS ─▶ route
//! ```
//!
//! Handlers live in `http/`, one file a surface; each turns wire types into a call
//! of [`Embedder::embed`](crate::embedder::Embedder::embed) and back, and nothing else.

mod error;
mod health;
mod json;
mod limit;
mod models;
mod native;
mod observe;
mod openai;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::http::{HeaderName, HeaderValue, Method, header};
use axum::middleware;
use axum::response::IntoResponse;
use axum::routing::{get, post};
use tokio::sync::Semaphore;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::cors::{AllowOrigin, CorsLayer};

use crate::metrics::Metrics;
use crate::models::Models;
pub use error::ApiError;

/// The header that carries a request's id, in and out.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// The header that says how many texts of the request were cut at the model's limit.
pub const TRUNCATED_INPUTS: HeaderName = HeaderName::from_static("x-truncated-inputs");

/// What the surface allows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The largest request body, in bytes.
    pub max_body_bytes: usize,
    /// The most requests for vectors under way at once; 0: no limit but that of texts.
    pub max_concurrent_requests: usize,
    /// How long a request may take in all.
    pub request_timeout: Duration,
    /// How long a forward may take before `/livez` fails.
    pub forward_deadline: Duration,
    /// Origins that browsers may call from; empty: any.
    pub cors_origins: Vec<HeaderValue>,
}

/// What every handler can reach.
#[derive(Debug)]
pub struct Shared {
    /// The served models.
    pub models: Arc<Models>,
    /// The exported metrics.
    pub metrics: Arc<Metrics>,
    /// What the surface allows.
    pub settings: Settings,
    /// Set when the server begins to stop: `/health` fails from then on.
    pub stopping: AtomicBool,
    /// A place for each request for vectors that may be under way.
    places: Option<Semaphore>,
}

impl Shared {
    /// A server that is not stopping.
    pub fn new(models: Arc<Models>, metrics: Arc<Metrics>, settings: Settings) -> Arc<Self> {
        let most = settings.max_concurrent_requests;
        let places = (most > 0).then(|| Semaphore::new(most.min(Semaphore::MAX_PERMITS)));
        Arc::new(Self { models, metrics, settings, stopping: AtomicBool::new(false), places })
    }

    /// `/health` fails from now on.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }
}

type SharedState = axum::extract::State<Arc<Shared>>;

/// All routes.
pub fn router(shared: Arc<Shared>) -> Router {
    let router = Router::new()
        // Ours.
        .route("/embeddings", post(native::post_embeddings).get(native::get_embeddings))
        // OpenAI's.
        .route("/v1/embeddings", post(openai::embeddings))
        // For all above.
        .route_layer(middleware::from_fn_with_state(Arc::clone(&shared), limit::concurrency))
        .route("/models", get(models::list))
        .route("/v1/models", get(openai::models))
        .route("/v1/models/{*id}", get(openai::model))
        // Operations.
        .route("/health", get(health::health))
        .route("/livez", get(health::livez))
        .route("/metrics", get(health::metrics))
        .fallback(no_such_path)
        .method_not_allowed_fallback(method_not_allowed);
    layers(router, &shared).with_state(shared)
}

async fn no_such_path(request: Request) -> ApiError {
    ApiError::no_such_path(request.uri().path())
}

async fn method_not_allowed(request: Request) -> ApiError {
    ApiError::method_not_allowed(request.method(), request.uri().path())
}

/// The layers, from the inside out.
fn layers(router: Router<Arc<Shared>>, shared: &Arc<Shared>) -> Router<Arc<Shared>> {
    let origins = &shared.settings.cors_origins;
    let origins =
        if origins.is_empty() { AllowOrigin::any() } else { AllowOrigin::list(origins.iter().cloned()) };
    let cors = CorsLayer::new()
        .allow_origin(origins)
        .allow_methods([Method::GET, Method::POST])
        // No wildcard: it does not cover Authorization, which OpenAI's clients send.
        .allow_headers([header::AUTHORIZATION, header::CONTENT_TYPE, REQUEST_ID])
        // What is not exposed, a browser's script cannot read.
        .expose_headers([REQUEST_ID, TRUNCATED_INPUTS, header::RETRY_AFTER])
        .max_age(Duration::from_hours(1));
    router
        .layer(cors)
        // Inside of `observe`, so that a panic is counted and has a request id.
        .layer(CatchPanicLayer::custom(|_| ApiError::internal("the server made a mistake").into_response()))
        .layer(middleware::from_fn_with_state(Arc::clone(shared), observe::observe))
}
