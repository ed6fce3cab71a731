//! `GET /models`: what is served, how it is computed, and where it is.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::SharedState;
use crate::models::State as ModelState;

#[derive(Serialize)]
struct List {
    models: Vec<Model>,
}

#[derive(Default, Serialize)]
struct Model {
    name: String,
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(flatten)]
    about: Option<About>,
}

#[derive(Serialize)]
struct About {
    source: String,
    architecture: &'static str,
    dimensions: usize,
    max_tokens: usize,
    pooling: &'static str,
    implementation: String,
    dtype: String,
    device: &'static str,
}

/// `GET /models`.
pub(super) async fn list(State(shared): SharedState) -> Response {
    let describe = |(name, state): (&str, ModelState)| {
        let name = name.to_owned();
        match state {
            ModelState::Loading { step } => Model { name, state: "loading", reason: Some(step), about: None },
            ModelState::Failed { why } => Model { name, state: "failed", reason: Some(why), about: None },
            ModelState::Ready(embedder) => {
                let about = embedder.about();
                Model {
                    name,
                    state: "ready",
                    reason: None,
                    about: Some(About {
                        source: about.source.clone(),
                        architecture: about.architecture,
                        dimensions: about.dimensions,
                        max_tokens: about.max_tokens,
                        pooling: about.pooling,
                        implementation: about.plan.implementation.to_string(),
                        dtype: about.plan.dtype.to_string(),
                        device: "cpu",
                    }),
                }
            }
        }
    };
    let models = shared.models.states().into_iter().map(describe).collect();
    Json(List { models }).into_response()
}
