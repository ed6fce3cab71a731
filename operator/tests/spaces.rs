//! Vector spaces of models that change: what is rolled out, what is refused, and what is told.
#![allow(missing_docs, reason = "tests say what they test by their names")]

mod support;

use embedding_operator::controller::build::names;
use embedding_operator::controller::fetched::Summary;
use embedding_operator::controller::object::Kind;
use embedding_operator::controller::space;
use embedding_operator::crd::EmbeddingModel;
use k8s_openapi::api::core::v1::{Event, Pod};
use kube::api::{ListParams, Patch, PatchParams};
use serde_json::{Value, json};
use support::cluster::ControlPlane;
use support::kubelet::{FakeNode, Play};
use support::operator::{
    COMMIT, PATIENCE, SUMMARY, change, condition, config, create, hub, message, wait_until, wait_until_ready,
};
use support::state::World;
use support::wait::{wait_for, wait_for_object};

/// What the revision `v2` and the mirror have.
const OTHER_COMMIT: &str = "9999999999999999999999999999999999999999";

fn other_summary() -> String {
    SUMMARY.replace(COMMIT, OTHER_COMMIT).replace("e47a7cc1", "ffffffff")
}

/// A node whose fetches bring other files from `v2` and from the mirror. Those of pods that fetch
/// for themselves tell, too.
fn node() -> support::kubelet::Builder {
    FakeNode::builder().script(|pod: &Pod| {
        let arguments = pod.spec.as_ref()?.containers[0].args.as_ref()?.join(" ");
        if arguments.starts_with("fetch ") {
            let others = arguments.contains("@v2") || arguments.contains("mirror.test");
            return others.then(|| Play::succeed(&other_summary()));
        }
        let others = arguments.contains(OTHER_COMMIT);
        Some(Play::ready().after_init(&if others { other_summary() } else { SUMMARY.to_owned() }))
    })
}

/// The space of what a fetch said, with these prompts.
fn space_of(summary: &str, prompts: &[(&str, &str)]) -> String {
    let files: Summary = serde_json::from_str(summary).expect("a summary");
    let prompts = prompts.iter().map(|&(name, text)| (name.to_owned(), text.to_owned())).collect();
    space::of(&files, &prompts, None).expect("the summary tells enough")
}

fn told(model: &EmbeddingModel) -> Option<String> {
    model.status.as_ref()?.model.as_ref()?.space.clone()
}

fn changed(model: &EmbeddingModel) -> (String, String) {
    condition(model, "SpaceChanged")
}

fn is_so(status: &str, reason: &str) -> (String, String) {
    (status.to_owned(), reason.to_owned())
}

async fn arguments(world: &World<'_>) -> String {
    let deployment = world.of(Kind::Deployment).get("m").await.expect("the Deployment");
    deployment.data["spec"]["template"]["spec"]["containers"][0]["args"].to_string()
}

async fn pods(world: &World<'_>) -> Vec<String> {
    let serving = ListParams::default().labels("app.kubernetes.io/component=server");
    let pods = world.api::<Pod>().list(&serving).await.expect("pods");
    pods.items.iter().filter_map(kube::ResourceExt::uid).collect()
}

/// Waits for a warning of this reason about the model.
async fn wait_for_event(world: &World<'_>, reason: &str, says: &str) {
    let about = ListParams::default().fields(&format!("involvedObject.name=m,reason={reason},type=Warning"));
    wait_for(&format!("an event {reason}"), PATIENCE, async || {
        let events = world.api::<Event>().list(&about).await.expect("events").items;
        let told: Vec<_> = events.into_iter().filter_map(|event| event.message).collect();
        if told.iter().any(|message| message.contains(says)) { Ok(()) } else { Err(told.join("\n")) }
    })
    .await;
}

fn revision(revision: &str) -> Value {
    json!({"spec": {"source": {"huggingFace": {"revision": revision}}}})
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_space_is_rolled_out_and_told_until_users_say_that_they_know() {
    let plane = ControlPlane::get().await;
    let world = World::with(plane, "allowed", node()).await;
    let operator = world.operator(config());
    create(&world.models, "m", json!({"source": hub()})).await;
    let (a, b) = (space_of(SUMMARY, &[]), space_of(&other_summary(), &[]));
    let model = wait_until_ready(&world.models, "m").await;
    assert_eq!((told(&model), changed(&model)), (Some(a.clone()), is_so("False", "SpaceUnchanged")));

    change(&world.models, "m", revision("v2")).await;
    let model = wait_until(&world.models, "m", "SpaceChanged", "True", "SpaceChangeAllowed").await;
    assert_eq!(told(&model), Some(b.clone()));
    assert!(message(&model, "SpaceChanged").contains(&format!("space {b}, and were of {a} before")));
    wait_until_ready(&world.models, "m").await;
    assert!(arguments(&world).await.contains(OTHER_COMMIT));
    wait_for_event(&world, "SpaceChangeAllowed", &a).await;

    // It is no matter of the status, nor of the operator that saw it.
    operator.stop().await;
    let nothing = Patch::Merge(json!({"status": null}));
    world.models.patch_status("m", &PatchParams::default(), &nothing).await.expect("it can be taken away");
    let operator = world.operator(config());
    let model = wait_until_ready(&world.models, "m").await;
    assert_eq!(changed(&model), is_so("True", "SpaceChangeAllowed"));
    let before = pods(&world).await;
    change(&world.models, "m", json!({"metadata": {"annotations": {names::SPACE_ANNOTATION: b}}})).await;
    wait_until(&world.models, "m", "SpaceChanged", "False", "SpaceUnchanged").await;
    assert_eq!(pods(&world).await, before, "saying so restarts nothing");

    let prompts = json!({"prompts": {"query": "query: ", "passage": "$(HOME) "}});
    change(&world.models, "m", json!({"spec": {"inference": prompts}})).await;
    wait_until(&world.models, "m", "SpaceChanged", "True", "SpaceChangeAllowed").await;
    let model = wait_until_ready(&world.models, "m").await;
    let prompted = space_of(&other_summary(), &[("query", "query: "), ("passage", "$(HOME) ")]);
    assert_eq!(told(&model), Some(prompted));
    let arguments = arguments(&world).await;
    assert!(
        arguments.contains(r#""--prompt","passage=$$(HOME) ","--prompt","query=query: ""#),
        "{arguments}"
    );
    operator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn files_of_another_space_are_refused_and_the_old_ones_are_served_on() {
    let plane = ControlPlane::get().await;
    let world = World::with(plane, "refused", node()).await;
    let operator = world.operator(config());
    create(&world.models, "m", json!({"source": hub(), "spaceChangePolicy": "Refuse"})).await;
    let (a, b) = (space_of(SUMMARY, &[]), space_of(&other_summary(), &[]));
    wait_until_ready(&world.models, "m").await;
    let before = pods(&world).await;

    // What the API server sees it refuses.
    let result = world.models.patch("m", &PatchParams::default(), &Patch::Merge(&revision("v2"))).await;
    let refusal = result.expect_err("it is refused").to_string();
    assert!(refusal.contains("spaceChangePolicy Refuse: source decides"), "{refusal}");
    // On the mirror the branch stands for another commit.
    let mirror = json!({"spec": {"source": {"huggingFace": {"endpoint": "https://mirror.test"}}}});
    change(&world.models, "m", mirror.clone()).await;
    let model = wait_until(&world.models, "m", "SpaceChanged", "True", "SpaceChangeRefused").await;
    let says = message(&model, "SpaceChanged");
    assert!(says.contains(&format!("space {b}; those of {a} are served on")), "{says}");
    let model = wait_until_ready(&world.models, "m").await;
    assert_eq!(told(&model), Some(a.clone()));
    assert_eq!(pods(&world).await, before);
    wait_for_event(&world, "SpaceChangeRefused", &b).await;

    // The rest of the spec goes on, with the old files.
    change(&world.models, "m", json!({"spec": {"inference": {"maxBatchTokens": 77}}})).await;
    wait_for_object(&world.of(Kind::Deployment), "m", "told", PATIENCE, |deployment| {
        deployment.data["spec"]["template"].to_string().contains(r#""77""#)
    })
    .await;
    let model = wait_until_ready(&world.models, "m").await;
    assert!(arguments(&world).await.contains(&format!("org/name@{COMMIT}")));
    assert_eq!((told(&model), changed(&model)), (Some(a.clone()), is_so("True", "SpaceChangeRefused")));

    // Who goes back needs no new fetch, and is done with it.
    let serving = pods(&world).await;
    change(&world.models, "m", json!({"spec": {"source": {"huggingFace": {"endpoint": null}}}})).await;
    wait_until(&world.models, "m", "SpaceChanged", "False", "SpaceUnchanged").await;
    wait_until_ready(&world.models, "m").await;
    assert_eq!(pods(&world).await, serving);
    change(&world.models, "m", mirror).await;
    wait_until(&world.models, "m", "SpaceChanged", "True", "SpaceChangeRefused").await;

    // Prompts that come with them are not what the pods have: the model is not as the spec says.
    let both = json!({"spec": {"spaceChangePolicy": "Allow", "inference": {"prompts": {"query": "q: "}}, "paused": true}});
    change(&world.models, "m", both).await;
    wait_until(&world.models, "m", "Progressing", "False", "Paused").await;
    change(&world.models, "m", json!({"spec": {"spaceChangePolicy": "Refuse", "paused": false}})).await;
    let model = wait_until(&world.models, "m", "Ready", "False", "SpaceChangeRefused").await;
    assert_eq!(condition(&model, "Stalled"), is_so("True", "SpaceChangeRefused"));
    assert_eq!(condition(&model, "Available"), is_so("True", "Ready"));
    assert!(!arguments(&world).await.contains("--prompt"));

    // Who says that the new one is expected gets it.
    let new = space_of(&other_summary(), &[("query", "q: ")]);
    change(&world.models, "m", json!({"metadata": {"annotations": {names::SPACE_ANNOTATION: new}}})).await;
    wait_until(&world.models, "m", "SpaceChanged", "False", "SpaceUnchanged").await;
    let model = wait_until_ready(&world.models, "m").await;
    assert_eq!(told(&model), Some(new));
    assert!(arguments(&world).await.contains(OTHER_COMMIT));
    operator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_pods_told_that_fetched_for_themselves_outlives_them() {
    let plane = ControlPlane::get().await;
    let world = World::with(plane, "ephemeral", node()).await;
    let operator = world.operator(config());
    let source = |commit: &str| json!({"huggingFace": {"repo": "org/name", "revision": commit}});
    create(&world.models, "m", json!({"source": source(COMMIT), "cache": {"ephemeral": true}})).await;
    let (a, b) = (space_of(SUMMARY, &[]), space_of(&other_summary(), &[]));
    wait_until(&world.models, "m", "SpaceChanged", "False", "SpaceUnchanged").await;
    let model = wait_until_ready(&world.models, "m").await;
    assert_eq!(told(&model), Some(a.clone()));

    change(&world.models, "m", json!({"spec": {"replicas": 0}})).await;
    let model = wait_until(&world.models, "m", "Ready", "False", "ScaledToZero").await;
    wait_for("no pods", PATIENCE, async || {
        let left = pods(&world).await;
        if left.is_empty() { Ok(()) } else { Err(left.join(" ")) }
    })
    .await;
    assert_eq!((told(&model), changed(&model)), (Some(a.clone()), is_so("False", "SpaceUnchanged")));
    change(&world.models, "m", json!({"spec": {"replicas": 1, "source": source(OTHER_COMMIT)}})).await;
    let model = wait_until(&world.models, "m", "SpaceChanged", "True", "SpaceChangeAllowed").await;
    assert_eq!(told(&model), Some(b));
    assert!(message(&model, "SpaceChanged").contains(&a));
    operator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_expects_a_space_serves_no_other_from_the_beginning() {
    let plane = ControlPlane::get().await;
    let world = World::with(plane, "expected", node()).await;
    let operator = world.operator(config());
    let model: EmbeddingModel = serde_json::from_value(json!({
        "apiVersion": "embeddings.kagent.dev/v1alpha1",
        "kind": "EmbeddingModel",
        "metadata": {"name": "m", "annotations": {names::SPACE_ANNOTATION: space_of(SUMMARY, &[])}},
        "spec": {"source": {"huggingFace": {"repo": "org/name", "revision": "v2"}}, "spaceChangePolicy": "Refuse"},
    }))
    .expect("a model");
    world.models.create(&kube::api::PostParams::default(), &model).await.expect("the API server takes it");
    let model = wait_until(&world.models, "m", "Ready", "False", "SpaceChangeRefused").await;
    assert_eq!((told(&model), changed(&model)), (None, is_so("True", "SpaceChangeRefused")));
    assert!(world.of(Kind::Deployment).get_opt("m").await.expect("it can be asked for").is_none());
    let right =
        json!({"spec": {"source": {"huggingFace": {"revision": "main"}}, "spaceChangePolicy": "Allow"}});
    change(&world.models, "m", right).await;
    let model = wait_until_ready(&world.models, "m").await;
    assert_eq!(changed(&model), is_so("False", "SpaceUnchanged"));
    operator.stop().await;
}
