//! The operator against a real API server and its real controllers; only nodes and volumes
//! are played.
#![allow(missing_docs, reason = "tests say what they test by their names")]

mod support;

use std::time::Duration;

use kube::api::{Patch, PatchParams};
use serde_json::json;
use support::cluster::ControlPlane;
use support::kubelet::FakeNode;
use support::operator::{
    COMMIT, Operator, SUMMARY, USER, condition, config, create, hub, is, models, wait_until_ready,
};
use support::volumes::Provisioner;

#[tokio::test(flavor = "multi_thread")]
async fn an_applied_model_becomes_ready_and_then_nothing_is_written_any_more() {
    let plane = ControlPlane::get().await;
    let namespace = plane.namespace("ready").await;
    let _node = FakeNode::builder().job_message(SUMMARY).start(plane, &namespace).await;
    let _volumes = Provisioner::start(plane, &namespace).await;
    let operator = Operator::start(plane, &namespace, config());
    let models = models(plane, &namespace);
    create(&models, "minilm", json!({"source": hub(), "replicas": 2})).await;

    let model = wait_until_ready(&models, "minilm").await;
    let status = model.status.clone().unwrap();
    assert_eq!((status.replicas, status.ready_replicas), (2, 2));
    assert_eq!(status.endpoint, Some(format!("http://minilm.{}.svc", &*namespace)));
    let about = status.model.unwrap();
    assert_eq!(about.resolved_revision.as_deref(), Some(COMMIT));
    assert_eq!((about.dimensions, about.max_tokens, about.bytes), (Some(384), Some(256), Some(91_336_405)));
    for (type_, status, reason) in [
        ("ModelCached", "True", "Cached"),
        ("Available", "True", "Ready"),
        ("Progressing", "False", "Reconciled"),
        ("UpdateAvailable", "False", "UpToDate"),
        ("Degraded", "False", "Healthy"),
    ] {
        assert!(is(&model, type_, status, reason), "{type_}: {:?}", condition(&model, type_));
    }

    // Let what is under way end, then count.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let settled = jiff::Timestamp::now();
    let touch = json!({"metadata": {"annotations": {"example.com/touched": "yes"}}});
    models.patch("minilm", &PatchParams::default(), &Patch::Merge(&touch)).await.unwrap();
    tokio::time::sleep(Duration::from_secs(3)).await;
    let seen = plane.audit().user(USER).namespace(&namespace).since(settled);
    let writes: Vec<String> = seen
        .0
        .iter()
        .filter(|entry| !["get", "list", "watch"].contains(&entry.verb.as_str()))
        .map(|entry| format!("{} {}", entry.verb, entry.uri))
        .collect();
    assert!(!seen.is_empty(), "the operator has looked");
    assert!(writes.is_empty(), "{writes:#?}");
    operator.stop().await;
}
