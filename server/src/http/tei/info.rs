//! What there is to say about a model and the server, and whether they can do their work: `/info`, `/ping`.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use crate::embedder::{self, Embedder};
use crate::http::error::ApiError;
use crate::http::refusals::{AnyErrors, ModelErrors, Tei};
use crate::http::{Shared, SharedState};
use crate::models;
use crate::scores::{Classifier, Kind};
use crate::tokenize::Overflow;

/// What there is to say about a model and the server.
#[derive(Serialize, ToSchema)]
pub(in crate::http) struct Info {
    /// The repository or the directory that the model is from.
    model_id: String,
    /// The repository's commit.
    #[schema(required)]
    model_sha: Option<String>,
    model_dtype: String,
    /// The name under which it is served.
    served_model_name: String,
    model_type: ModelType,
    /// The most texts that may be under way at once.
    max_concurrent_requests: usize,
    /// The longest text in tokens, special ones included.
    max_input_length: usize,
    /// The most tokens that are embedded together.
    max_batch_tokens: usize,
    /// Nothing limits the texts that are embedded together but their tokens.
    #[schema(required)]
    max_batch_requests: Option<usize>,
    /// The most texts of a request.
    max_client_batch_size: usize,
    /// Whether texts that are too long are taken where a request does not say.
    auto_truncate: bool,
    tokenization_workers: usize,
    /// This server's, not text-embeddings-inference's.
    version: &'static str,
    /// Not known.
    #[schema(required)]
    sha: Option<&'static str>,
    /// Not known.
    #[schema(required)]
    docker_label: Option<&'static str>,
}

/// What kind of model it is.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum ModelType {
    /// It makes vectors.
    Embedding { pooling: String },
    /// It makes one score, which can rank.
    Reranker(Labels),
    /// It makes several scores.
    Classifier(Labels),
}

#[derive(Serialize, ToSchema)]
struct Labels {
    id2label: BTreeMap<usize, String>,
    label2id: BTreeMap<String, usize>,
}

impl Labels {
    fn of(classifier: &Classifier) -> Self {
        let labels = || classifier.labels.iter().cloned().enumerate();
        Self { id2label: labels().collect(), label2id: labels().map(|(id, label)| (label, id)).collect() }
    }
}

impl Info {
    fn new(name: &str, embedder: &Embedder) -> Self {
        let (about, limits) = (embedder.about(), embedder.limits());
        // A repository has its commit behind an @; a directory's name may have one, too.
        let commit = about
            .source
            .rsplit_once('@')
            .filter(|(_, commit)| commit.len() >= 4 && commit.bytes().all(|byte| byte.is_ascii_hexdigit()));
        Self {
            model_id: commit.map_or(about.source.as_str(), |(repository, _)| repository).to_owned(),
            model_sha: commit.map(|(_, commit)| commit.to_owned()),
            model_dtype: about.plan.dtype.to_string(),
            served_model_name: name.to_owned(),
            model_type: match &about.kind {
                Kind::Embedding => ModelType::Embedding { pooling: about.pooling.clone() },
                Kind::CrossEncoder(classifier) if classifier.labels.len() == 1 => {
                    ModelType::Reranker(Labels::of(classifier))
                }
                Kind::CrossEncoder(classifier) => ModelType::Classifier(Labels::of(classifier)),
            },
            max_concurrent_requests: limits.max_waiting_texts,
            max_input_length: about.max_tokens,
            max_batch_tokens: embedder.max_batch_tokens(),
            max_batch_requests: None,
            max_client_batch_size: limits.max_texts.min(limits.max_waiting_texts),
            auto_truncate: about.offer.overflow != Overflow::Error,
            tokenization_workers: embedder.tokenizer_threads(),
            version: env!("CARGO_PKG_VERSION"),
            sha: None,
            docker_label: None,
        }
    }

    /// Of a model by a name of it, or of the only one.
    pub(super) fn response(shared: &Shared, model: Option<&str>) -> Result<Response, ApiError> {
        let named = shared.models.get(model)?;
        Ok(Json(Self::new(&named.name, &named.embedder)).into_response())
    }
}

/// What there is to say about the only model, and about the server.
#[utoipa::path(
    get,
    path = "/info",
    tag = "text-embeddings-inference",
    operation_id = "tei_info",
    responses((status = 200, description = "what there is to say", body = Info), ModelErrors<Tei>),
)]
pub(in crate::http) async fn info(State(shared): SharedState) -> Result<Response, ApiError> {
    Info::response(&shared, None)
}

/// Whether the models can do their work, as `/health` has it; the answer is empty.
#[utoipa::path(
    get,
    path = "/ping",
    tag = "text-embeddings-inference",
    operation_id = "tei_ping",
    responses((status = 200, description = "they can"), AnyErrors<Tei>),
)]
pub(in crate::http) async fn ping(State(shared): SharedState) -> Result<(), ApiError> {
    if shared.stopping.load(Ordering::Relaxed) {
        return Err(embedder::Error::Stopping.into());
    }
    let states = shared.models.states();
    if states.is_empty() {
        return Err(models::Error::Empty.into());
    }
    match models::lacking(&states).next() {
        Some(model) => model.embedder().map(drop).map_err(ApiError::from),
        None => Ok(()),
    }
}
