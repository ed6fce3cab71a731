//! A download that waits follows the spec.
#![allow(missing_docs, reason = "tests say what they test by their names")]

mod support;

use k8s_openapi::api::core::v1::Pod;
use serde_json::json;
use support::cluster::ControlPlane;
use support::kubelet::{FakeNode, Play};
use support::operator::{Operator, SUMMARY, change, config, create, models, wait_until, wait_until_ready};
use support::volumes::Provisioner;

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
