//! The operator under test, and models for it.

use std::sync::Arc;
use std::time::Duration;

use embedding_operator::config::Config;
use embedding_operator::controller::{self, Context};
use embedding_operator::crd::EmbeddingModel;
use embedding_operator::metrics::Metrics;
use futures_util::FutureExt as _;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::cluster::{ControlPlane, Namespace};
use super::wait::wait_for_object;

/// How long a test waits for what must happen.
pub const PATIENCE: Duration = Duration::from_mins(1);
/// The user that the operator's requests are from.
pub const USER: &str = "embedding-operator";
/// What a fetch resolves a branch to.
pub const COMMIT: &str = "0123456789012345678901234567890123456789";
/// What a fetch says at its end.
pub const SUMMARY: &str = r#"{"commit":"0123456789012345678901234567890123456789","bytes":91336405,"architecture":"bert","dimensions":384,"max_tokens":256,"normalizes":true,"space_files":"e47a7cc12e8074716d46abb5dbdecef488981ffb12023947b7ec00cfa1e2f83f","prompts":{},"default_prompt":null}"#;

/// An operator that looks after one namespace, until it is dropped.
pub struct Operator {
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

/// How the operator under test is configured: no wait is long.
pub fn config() -> Config {
    Config {
        server_image: "registry.test/embedding-server:1".into(),
        server_cuda_image: None,
        hub_endpoint: "https://hub.test".into(),
        allowed_endpoints: Vec::new(),
        fetch_retry: Duration::from_secs(1),
    }
}

impl Operator {
    /// With all rights.
    pub fn start(plane: &ControlPlane, namespace: &Namespace, config: Config) -> Self {
        Self::start_as(plane.client_as(USER, &["system:masters"]), namespace, config)
    }

    /// With the rights of a client.
    pub fn start_as(client: Client, namespace: &Namespace, config: Config) -> Self {
        let stop = CancellationToken::new();
        let stopping = stop.clone();
        let context = Context::new(client, config, Arc::new(Metrics::new()));
        let namespaces = vec![namespace.to_string()];
        let task = tokio::spawn(async move {
            let stopped = async move { stopping.cancelled().await }.shared();
            controller::run(context, &namespaces, 8, stopped).await;
        });
        Self { stop, task }
    }

    /// Ends it at once, wherever it is.
    pub fn kill(self) {
        self.task.abort();
    }

    /// Stops it politely.
    pub async fn stop(self) {
        self.stop.cancel();
        self.task.await.expect("the operator ends well");
    }
}

/// The models of a namespace, for an administrator.
pub fn models(plane: &ControlPlane, namespace: &Namespace) -> Api<EmbeddingModel> {
    Api::namespaced(plane.client(), namespace)
}

/// Makes a model.
pub async fn create(api: &Api<EmbeddingModel>, name: &str, spec: Value) -> EmbeddingModel {
    let model = json!({
        "apiVersion": "embeddings.kagent.dev/v1alpha1",
        "kind": "EmbeddingModel",
        "metadata": {"name": name},
        "spec": spec,
    });
    let model: EmbeddingModel = serde_json::from_value(model).expect("a model");
    api.create(&PostParams::default(), &model).await.expect("the API server takes it")
}

/// The least source.
pub fn hub() -> Value {
    json!({"huggingFace": {"repo": "org/name"}})
}

/// The status and reason of a condition.
pub fn condition(model: &EmbeddingModel, type_: &str) -> (String, String) {
    let status = model.status.clone().unwrap_or_default();
    let found = status.conditions.into_iter().find(|condition| condition.type_ == type_);
    found.map(|condition| (condition.status, condition.reason)).unwrap_or_default()
}

/// Whether a condition is so.
pub fn is(model: &EmbeddingModel, type_: &str, status: &str, reason: &str) -> bool {
    condition(model, type_) == (status.to_owned(), reason.to_owned())
}

/// Whether the model is ready, of its latest generation.
pub fn is_ready(model: &EmbeddingModel) -> bool {
    let current =
        model.status.as_ref().and_then(|status| status.observed_generation) == model.metadata.generation;
    current && is(model, "Ready", "True", "Ready")
}

/// Changes a model by a merge patch.
pub async fn change(api: &Api<EmbeddingModel>, name: &str, patch: Value) -> EmbeddingModel {
    api.patch(name, &PatchParams::default(), &Patch::Merge(&patch)).await.expect("the API server takes it")
}

/// Waits until the model is ready, of its latest generation.
pub async fn wait_until_ready(api: &Api<EmbeddingModel>, name: &str) -> EmbeddingModel {
    wait_for_object(api, name, "ready", PATIENCE, is_ready).await
}

/// Waits until a condition is so.
pub async fn wait_until(
    api: &Api<EmbeddingModel>,
    name: &str,
    type_: &str,
    status: &str,
    reason: &str,
) -> EmbeddingModel {
    let what = format!("{type_} is {status} because of {reason}");
    wait_for_object(api, name, &what, PATIENCE, |model| is(model, type_, status, reason)).await
}

/// The message of a condition.
pub fn message(model: &EmbeddingModel, type_: &str) -> String {
    let status = model.status.clone().unwrap_or_default();
    let found = status.conditions.into_iter().find(|condition| condition.type_ == type_);
    found.map(|condition| condition.message).unwrap_or_default()
}
