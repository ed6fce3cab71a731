//! `/models`: what is served, how it is computed, and where it is; and other models, where that is allowed.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::error::ApiError;
use super::refusals::{AnyErrors, ChangeErrors, Own};
use super::{SharedState, json};
use crate::embedder::About;
use crate::kernels::cpu::InstructionSet;
use crate::models::{Manner, Models, Spec, State as ModelState, Status};
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
    responses((status = 200, description = "every model: in the order of the command line, and then in that in which they came", body = List), AnyErrors<Own>),
)]
pub(super) async fn list(State(shared): SharedState) -> Response {
    Json(List::of(&shared.models)).into_response()
}

impl List {
    fn of(models: &Models) -> Self {
        Self { models: models.states().into_iter().map(Model::new).collect() }
    }
}

impl Model {
    fn new(status: Status) -> Self {
        let name = status.name.to_string();
        match status.state {
            ModelState::Loading { step } => Self::Loading { name, reason: step },
            ModelState::Failed { why } => Self::Failed { name, reason: why },
            ModelState::Ready(embedder) => Self::Ready(Box::new(Ready::new(name, embedder.about()))),
        }
    }
}

impl Ready {
    fn new(name: String, about: &About) -> Self {
        Self {
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
        }
    }
}

/// A model to load, or one to unload. What is set besides its place is as the option of that name.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ModelChange {
    /// The model to load: `[NAME=]DIRECTORY` or `[NAME=]REPOSITORY[@REVISION]`, as for `--model`.
    load: Option<String>,
    /// The name of the model to unload.
    unload: Option<String>,
    /// Other names that the model to load answers to.
    #[serde(default)]
    aliases: Vec<String>,
    /// Prompts of the model to load, by name; they win over those of its files.
    #[serde(default)]
    prompts: BTreeMap<String, String>,
    /// The name of the prompt of texts of which a request says nothing.
    default_prompt: Option<String>,
    /// What becomes of texts that are too long: `truncate`, `error` or `chunk_mean`.
    on_overflow: Option<String>,
    /// Whether a request has to say what its texts are.
    #[serde(default)]
    require_input_type: bool,
    /// Lengths to which its vectors can be shortened, besides those in its files.
    #[serde(default)]
    matryoshka: Vec<usize>,
}

impl ModelChange {
    /// The model to load.
    fn spec(self, place: &str) -> Result<Spec, ApiError> {
        let overflow = self.on_overflow.as_deref().map(str::parse).transpose();
        let overflow = overflow.map_err(|why: String| ApiError::bad_field("on_overflow", why))?;
        // Who asks has another home.
        let spec = Spec::parse(place, None).map_err(|why| ApiError::bad_field("load", why))?;
        if self.aliases.iter().any(String::is_empty) {
            return Err(ApiError::bad_field("aliases", "an alias is empty"));
        }
        if self.matryoshka.contains(&0) {
            return Err(ApiError::bad_field("matryoshka", "a length is 0"));
        }
        let manner = Manner {
            prompts: self.prompts,
            default_prompt: self.default_prompt,
            overflow: overflow.unwrap_or_default(),
            require_input_type: self.require_input_type,
            matryoshka: self.matryoshka,
        };
        Ok(Spec { aliases: self.aliases, manner, ..spec })
    }
}

/// Loads a model, or unloads one; only with `--allow-model-changes`.
///
/// A model to load is fetched where it is needed, and then loaded, after those that came before it: the answer does not
/// wait for that. `GET /models` tells where it is. A model that is unloaded is not found any more, requests under way
/// get their answers, and then its memory is free: the answer waits for that.
#[utoipa::path(
    post,
    path = "/models",
    tag = "Models",
    operation_id = "change_models",
    request_body(content = ModelChange, example = json!({"load": "e5=intfloat/e5-small-v2", "default_prompt": "query", "prompts": {"query": "query: "}})),
    responses(
        (status = 200, description = "the model is gone; every other one", body = List),
        (status = 202, description = "the model will be loaded; every model", body = List),
        ChangeErrors<Own>,
    ),
)]
pub(super) async fn change(State(shared): SharedState, request: Request) -> Result<Response, ApiError> {
    // A page that somebody visits must not reach into the servers of his network.
    if request.headers().contains_key(header::ORIGIN) {
        return Err(ApiError::not_for_browsers());
    }
    let (_, mut change): (_, ModelChange) = json::read(request, &shared.settings).await?;
    match (change.load.take(), change.unload.take()) {
        (Some(place), None) => {
            tracing::info!(load = place, "asked to load a model");
            shared.models.add(change.spec(&place)?)?;
            Ok((StatusCode::ACCEPTED, Json(List::of(&shared.models))).into_response())
        }
        (None, Some(name)) => {
            let models = Arc::clone(&shared.models);
            let removing = tokio::task::spawn_blocking(move || models.remove(&name).map(|()| name));
            let removed = removing.await;
            let name =
                removed.map_err(|error| ApiError::internal(format!("unloading failed: {error}")))??;
            tracing::info!(unload = name, "unloaded a model");
            Ok(Json(List::of(&shared.models)).into_response())
        }
        _ => Err(ApiError::bad_field("load", "give load or unload: one of them")),
    }
}
