//! Every path, and every layer around it.
//!
//! ```text
//! request ─▶ observe (request id, log, metrics, timeout) ─▶ catch panics ─▶ CORS ─▶ route
//! ```
//!
//! Handlers live in `http/`, one file a surface; each turns wire types into a call
//! of [`Embedder::embed`](crate::embedder::Embedder::embed) and back, and nothing else.

mod cohere;
mod embed;
mod error;
mod health;
mod json;
mod leftover;
mod limit;
mod models;
mod native;
mod observe;
mod ollama;
mod openai;
mod openapi;
mod pages;
mod refusals;
mod representation;
mod rerank;
mod tei;
mod truncate;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::http::{HeaderName, HeaderValue, Method, header};
use axum::middleware;
use axum::response::IntoResponse;
use axum::routing::{MethodRouter, get, post};
use tokio::sync::Semaphore;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};

use crate::cache::Cache;
use crate::metrics::Metrics;
use crate::models::Models;
use crate::token_ids::TokenIds;
pub use embed::{CACHE, EXPECTED_SPACE, PRIORITY, SPACE, TRUNCATED_INPUTS};
pub use error::ApiError;
pub use openapi::document;

/// The header that carries a request's id, in and out.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// What the surface allows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The largest request body, in bytes.
    pub max_body_bytes: usize,
    /// The most texts of one request.
    pub max_texts: usize,
    /// The most requests for vectors under way at once; 0: no limit but that of texts.
    pub max_concurrent_requests: usize,
    /// How long a request may take in all.
    pub request_timeout: Duration,
    /// How long a forward may take before `/livez` fails.
    pub forward_deadline: Duration,
    /// The most bytes of vectors that are kept for when their texts come again; 0: none are.
    pub cache_bytes: u64,
    /// Whose ids token ids are, which OpenAI's API takes in place of texts.
    pub token_ids: TokenIds,
    /// Origins that browsers may call from; empty: any.
    pub cors_origins: Vec<HeaderValue>,
    /// Whether there are pages for people.
    pub pages: bool,
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
    /// Vectors that were made before, where they are kept.
    pub cache: Option<Cache>,
    /// A place for each request for vectors that may be under way.
    places: Option<Semaphore>,
}

impl Shared {
    /// A server that is not stopping.
    pub fn new(models: Arc<Models>, metrics: Arc<Metrics>, settings: Settings) -> Arc<Self> {
        let most = settings.max_concurrent_requests;
        let places = (most > 0).then(|| Semaphore::new(most.min(Semaphore::MAX_PERMITS)));
        let cache = (settings.cache_bytes > 0).then(|| Cache::new(settings.cache_bytes));
        Arc::new(Self { models, metrics, settings, stopping: AtomicBool::new(false), cache, places })
    }

    /// `/health` fails from now on.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }
}

type SharedState = axum::extract::State<Arc<Shared>>;

/// All routes, and the layers around them.
pub fn router(shared: Arc<Shared>) -> Router {
    let router =
        routes(&shared).router.fallback(no_such_path).method_not_allowed_fallback(method_not_allowed);
    layers(router, &shared).with_state(shared)
}

/// The pattern of every route.
pub fn patterns(shared: &Arc<Shared>) -> BTreeSet<&'static str> {
    routes(shared).patterns
}

/// Routes, of which axum does not tell the patterns.
#[derive(Default)]
struct Routes {
    router: Router<Arc<Shared>>,
    patterns: BTreeSet<&'static str>,
}

impl Routes {
    fn route(mut self, pattern: &'static str, methods: MethodRouter<Arc<Shared>>) -> Self {
        self.patterns.insert(pattern);
        Self { router: self.router.route(pattern, methods), ..self }
    }

    /// As many requests as allowed at once for those that there are so far.
    fn limited(self, shared: &Arc<Shared>) -> Self {
        let limit = middleware::from_fn_with_state(Arc::clone(shared), limit::concurrency);
        Self { router: self.router.route_layer(limit), ..self }
    }
}

fn routes(shared: &Arc<Shared>) -> Routes {
    Routes::default()
        // Ours.
        .route("/embeddings", post(native::post_embeddings).get(native::get_embeddings))
        // OpenAI's.
        .route("/v1/embeddings", post(openai::embeddings))
        // Cohere's.
        .route("/v1/embed", post(cohere::embed_v1))
        .route("/v2/embed", post(cohere::embed_v2))
        // Ollama's.
        .route("/api/embed", post(ollama::embed_texts))
        .route("/api/embeddings", post(ollama::embed_prompt))
        // Cohere's and Jina's rankings.
        .route("/v1/rerank", post(rerank::jina))
        .route("/v2/rerank", post(rerank::cohere))
        // text-embeddings-inference's.
        .route("/", post(tei::default))
        .route("/invocations", post(tei::invocations))
        .route("/embed", post(tei::embed))
        .route("/embed_all", post(tei::embed_all))
        .route("/embed_sparse", post(tei::embed_sparse))
        .route("/similarity", post(tei::similarity))
        .route("/rerank", post(tei::rerank))
        .route("/predict", post(tei::predict))
        .route("/tokenize", post(tei::tokenize))
        .route("/decode", post(tei::decode))
        .route("/models/{*rest}", post(tei::of_model))
        // All above.
        .limited(shared)
        .route("/info", get(tei::info))
        .route("/ping", get(tei::ping))
        .route("/models/{*rest}", get(tei::about_model))
        .route("/models", get(models::list).post(models::change))
        .route("/v1/models", get(openai::models))
        .route("/v1/models/{*id}", get(openai::model))
        .route("/api/tags", get(ollama::tags))
        .route("/api/show", post(ollama::show))
        .route("/api/version", get(ollama::version))
        // Operations.
        .route("/health", get(health::health))
        .route("/livez", get(health::livez))
        .route("/metrics", get(health::metrics))
        // For people, and for programs that read what there is.
        .route("/", get(pages::start))
        .route("/docs", get(pages::docs))
        .route("/openapi.json", get(openapi::json))
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
        // Clients in browsers send headers of their own (OpenAI's has x-stainless-*), and are stopped by one that
        // is not allowed. No wildcard: it does not cover Authorization.
        .allow_headers(AllowHeaders::mirror_request())
        // What is not exposed, a browser's script cannot read.
        .expose_headers([REQUEST_ID, TRUNCATED_INPUTS, SPACE, CACHE, header::RETRY_AFTER])
        .max_age(Duration::from_hours(1));
    router
        .layer(cors)
        // Inside of `observe`, so that a panic is counted and has a request id.
        .layer(CatchPanicLayer::custom(|_| ApiError::internal("the server made a mistake").into_response()))
        .layer(middleware::from_fn_with_state(Arc::clone(shared), observe::observe))
}
