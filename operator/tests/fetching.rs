//! A download on its way: how far it is, and that one that waits follows the spec.
#![allow(missing_docs, reason = "tests say what they test by their names")]

mod support;

use std::time::{Duration, Instant};

use embedding_operator::crd::EmbeddingModel;
use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use kube::{Api, ResourceExt as _};
use serde_json::json;
use support::cluster::ControlPlane;
use support::kubelet::{FakeNode, Play};
use support::operator::{
    Operator, PATIENCE, SUMMARY, change, config, create, models, wait_until, wait_until_ready,
};
use support::volumes::Provisioner;
use support::wait::wait_for_object;

/// A kubelet where only the Secret `right` is.
fn secrets(pod: &Pod) -> Option<Play> {
    let spec = serde_json::to_value(pod.spec.as_ref()?).ok()?;
    let name = spec["containers"][0]["env"][0]["valueFrom"]["secretKeyRef"]["name"].as_str()?;
    (name != "right").then(|| Play::ConfigError(format!("secret \"{name}\" not found")))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_download_that_waits_for_a_secret_goes_on_when_the_spec_names_another() {
    let plane = ControlPlane::get().await;
    let namespace = plane.namespace("secret").await;
    let _node = FakeNode::builder().job_message(SUMMARY).script(secrets).start(plane, &namespace).await;
    let _volumes = Provisioner::start(plane, &namespace).await;
    let operator = Operator::start(plane, &namespace, config());
    let models = models(plane, &namespace);
    let source =
        |secret: &str| json!({"huggingFace": {"repo": "org/name", "tokenSecretRef": {"name": secret}}});
    create(&models, "minilm", json!({"source": source("wrong")})).await;
    wait_until(&models, "minilm", "Ready", "False", "ReferenceMissing").await;
    change(&models, "minilm", json!({"spec": {"source": source("right")}})).await;
    wait_until_ready(&models, "minilm").await;
    operator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_status_tells_how_far_a_download_is_and_not_too_often() {
    let plane = ControlPlane::get().await;
    let namespace = plane.namespace("progress").await;
    let fetching = |pod: &Pod| {
        let component = pod.labels().get("app.kubernetes.io/component");
        component.is_some_and(|component| component == "fetch").then(Play::ready)
    };
    let node = FakeNode::builder().script(fetching).start(plane, &namespace).await;
    let _volumes = Provisioner::start(plane, &namespace).await;
    let line = |bytes: u64| {
        format!(
            "{{\"level\":\"INFO\",\"message\":\"fetching model\",\"bytes\":{bytes},\"total_bytes\":100}}\n"
        )
    };
    node.logs("minilm-fetch", &line(10));
    let operator = Operator::start(plane, &namespace, config());
    let models = models(plane, &namespace);
    create(&models, "minilm", json!({"source": {"huggingFace": {"repo": "org/name"}}})).await;
    let is_at = |bytes: i64| {
        move |model: &EmbeddingModel| {
            let cache = model.status.clone().unwrap_or_default().cache.unwrap_or_default();
            (cache.bytes, cache.total_bytes) == (Some(bytes), Some(100))
        }
    };
    wait_for_object(&models, "minilm", "at 10 of 100", PATIENCE, is_at(10)).await;
    let told = Instant::now();
    node.logs("minilm-fetch", &line(60));
    // However often the model is looked at.
    for touch in 0..20 {
        change(&models, "minilm", json!({"metadata": {"annotations": {"touch": touch.to_string()}}})).await;
    }
    wait_for_object(&models, "minilm", "at 60 of 100", PATIENCE, is_at(60)).await;
    assert!(told.elapsed() > Duration::from_secs(8), "{:?}", told.elapsed());

    let pods: Api<Pod> = Api::namespaced(plane.client(), &namespace);
    let fetch = pods.list(&ListParams::default()).await.expect("pods").items.remove(0);
    node.play(&fetch.name_any(), Play::succeed(SUMMARY));
    let model = wait_until_ready(&models, "minilm").await;
    let cache = model.status.unwrap_or_default().cache.unwrap_or_default();
    assert_eq!((cache.bytes, cache.total_bytes), (Some(91_336_405), Some(91_336_405)));
    operator.stop().await;
}
