//! `GET /models`: what is served, how it is computed, and where it is.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use super::SharedState;
use super::refusals::{AnyErrors, Own};
use crate::kernels::cpu::InstructionSet;
use crate::models::State as ModelState;
use crate::scores::Kind;

/// What is served.
#[derive(Serialize, ToSchema)]
#[schema(as = Models)]
pub(super) struct List {
    models: Vec<Model>,
}

/// A model and where it is.
#[derive(Serialize, ToSchema)]
#[schema(as = ModelState)]
#[serde(tag = "state", rename_all = "lowercase")]
enum Model {
    /// It is being fetched or loaded.
    Loading {
        name: String,
        /// What it is at.
        reason: String,
    },
    /// It could not be fetched or loaded.
    Failed {
        name: String,
        /// Why.
        reason: String,
    },
    /// It can embed.
    Ready(Box<Ready>),
}

#[derive(Serialize, ToSchema)]
#[schema(as = ReadyModel)]
struct Ready {
    name: String,
    /// The directory, or the repository with its commit, that it is from.
    source: String,
    architecture: &'static str,
    /// `embedding`, which makes vectors, or `cross-encoder`, which scores texts and pairs.
    kind: &'static str,
    /// Of a cross-encoder: what its scores are of.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(required = false)]
    labels: Vec<String>,
    /// The length of its vectors; how many scores a cross-encoder makes.
    dimensions: usize,
    /// To which its vectors can be shortened; its own is the last.
    allowed_dimensions: Vec<usize>,
    /// Which vectors its own can be compared with.
    space: String,
    /// Names of its prompts.
    prompts: Vec<String>,
    /// The prompt of texts of which a request says nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    default_prompt: Option<String>,
    /// The longest text in tokens, special ones included.
    max_tokens: usize,
    pooling: String,
    numerics: Numerics,
}

/// How vectors are computed. It is no part of the space: it changes them by less than their
/// neighbours differ.
#[derive(Serialize, ToSchema)]
struct Numerics {
    implementation: String,
    dtype: String,
    /// With which instructions of the CPU, where the implementation is the fused one.
    #[serde(skip_serializing_if = "Option::is_none")]
    kernels: Option<&'static str>,
    /// `cpu`, or the GPUs: `cuda:0`, `cuda:0-3`.
    device: String,
}

/// What is served, where it is, and how it is computed.
#[utoipa::path(
    get,
    path = "/models",
    tag = "Models",
    operation_id = "list_models",
    responses((status = 200, description = "every model, in the order of the command line", body = List), AnyErrors<Own>),
)]
pub(super) async fn list(State(shared): SharedState) -> Response {
    let describe = |(name, state): (&str, ModelState)| {
        let name = name.to_owned();
        match state {
            ModelState::Loading { step } => Model::Loading { name, reason: step },
            ModelState::Failed { why } => Model::Failed { name, reason: why },
            ModelState::Ready(embedder) => {
                let about = embedder.about();
                Model::Ready(Box::new(Ready {
                    name,
                    source: about.source.clone(),
                    architecture: about.architecture,
                    kind: about.kind.name(),
                    labels: match &about.kind {
                        Kind::Embedding => Vec::new(),
                        Kind::CrossEncoder(classifier) => classifier.labels.clone(),
                    },
                    dimensions: about.dimensions,
                    allowed_dimensions: about.offer.dimensions.clone(),
                    space: about.space().to_string(),
                    prompts: about.offer.prompts.keys().cloned().collect(),
                    default_prompt: about.offer.default_prompt.clone(),
                    max_tokens: about.max_tokens,
                    pooling: about.pooling.clone(),
                    numerics: Numerics {
                        implementation: about.plan.implementation.to_string(),
                        dtype: about.plan.dtype.to_string(),
                        kernels: about.plan.kernels.map(InstructionSet::name),
                        device: about.plan.device.to_string(),
                    },
                }))
            }
        }
    };
    let models = shared.models.states().into_iter().map(describe).collect();
    Json(List { models }).into_response()
}
