//! Whatever is done to a model or to its objects, what the operator manages ends as the spec says.
#![allow(missing_docs, reason = "tests say what they test by their names")]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use embedding_operator::config::Config;
use embedding_operator::controller::build::names;
use embedding_operator::controller::object::Kind;
use embedding_operator::crd::EmbeddingModel;
use futures_util::StreamExt as _;
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::api::{
    DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams,
};
use kube::{Api, ResourceExt as _};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use serde_json::{Value, json};
use support::cluster::ControlPlane;
use support::kubelet::{FakeNode, Play};
use support::operator::{
    COMMIT, PATIENCE, USER, change, condition, config, create, hub, is, is_ready, message, wait_until,
    wait_until_ready,
};
use support::state::{
    Step, World, differences, index_of, is_settled, owned, value_at, value_at_mut, wait_until_settled,
};
use support::wait::{wait_for, wait_for_object, wait_until_gone};

/// A manager of fields that is neither the operator nor a controller.
const OTHER: &str = "somebody-else";

/// A model that has an object of every kind.
fn full() -> Value {
    json!({
        "source": hub(),
        "replicas": 2,
        "cache": {"accessModes": ["ReadWriteMany"]},
        "resources": {"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"memory": "2Gi"}},
        // The API server rewrites the amount, to 4k.
        "autoscaling": {
            "minReplicas": 2,
            "maxReplicas": 8,
            "targetCPUUtilizationPercentage": 70,
            "targetQueuedTokensPerReplica": 4000,
        },
        "service": {"annotations": {"example.com/mesh": "in"}},
        "network": {"allowFrom": [{"podSelector": {"matchLabels": {"app": "search"}}}]},
        "podTemplate": {
            "labels": {"team": "search"},
            "annotations": {"example.com/note": "a"},
            "nodeSelector": {"kubernetes.io/os": "linux"},
            "tolerations": [{"key": "dedicated", "operator": "Exists"}],
            "topologySpreadConstraints":
                [{"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway"}],
            "env": [{"name": "A", "value": "1"}],
            "volumes": [{"name": "extra", "emptyDir": {}}],
            "volumeMounts": [{"name": "extra", "mountPath": "/extra"}],
            "imagePullSecrets": [{"name": "registry"}],
        },
    })
}

async fn template(world: &World<'_>, model: &str) -> Value {
    let deployment = world.of(Kind::Deployment).get(model).await.expect("the Deployment");
    deployment.data["spec"]["template"].clone()
}

async fn pods(world: &World<'_>) -> BTreeSet<String> {
    let serving = ListParams::default().labels("app.kubernetes.io/component=server");
    let pods = world.api::<Pod>().list(&serving).await.expect("pods");
    let staying = pods.items.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none());
    staying.filter_map(kube::ResourceExt::uid).collect()
}

async fn wait_for_another(api: &Api<DynamicObject>, name: &str, uid: Option<String>) -> DynamicObject {
    wait_for_object(api, name, "made anew", PATIENCE, |new| {
        new.uid() != uid && new.metadata.deletion_timestamp.is_none()
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn every_child_that_is_deleted_comes_back() {
    let plane = ControlPlane::get().await;
    let world = World::new(plane, "deleted").await;
    let operator = world.operator(config());
    create(&world.models, "m", full()).await;
    wait_until_ready(&world.models, "m").await;
    let (before, pods_before) = (template(&world, "m").await, pods(&world).await);
    let mut kinds = BTreeSet::new();
    for (kind, child) in world.children("m").await {
        if !kinds.insert((kind, child.name_any())) || kind == Kind::PersistentVolumeClaim {
            continue;
        }
        if kind == Kind::Deployment {
            assert_eq!(pods(&world).await, pods_before, "no pod had to go for what was deleted so far");
        }
        let api = world.of(kind);
        api.delete(&child.name_any(), &DeleteParams::default()).await.expect("it can be deleted");
        wait_for_another(&api, &child.name_any(), child.uid()).await;
        wait_until_ready(&world.models, "m").await;
    }
    let all: BTreeSet<Kind> = kinds.iter().map(|(kind, _)| *kind).collect();
    assert_eq!(all.len(), Kind::ALL.len() - 2, "all but Jobs and ServiceMonitors: {all:?}");
    assert_eq!(template(&world, "m").await, before);

    // The claim goes with the last pod, and a new volume is empty.
    let claims = world.of(Kind::PersistentVolumeClaim);
    let claim = claims.get("m-cache").await.expect("the claim");
    change(&world.models, "m", json!({"spec": {"autoscaling": null, "replicas": 0}})).await;
    wait_until(&world.models, "m", "Ready", "False", "ScaledToZero").await;
    wait_for("no pods", PATIENCE, async || {
        let left = pods(&world).await;
        if left.is_empty() { Ok(()) } else { Err(left.len()) }
    })
    .await;
    let fetches = || plane.audit().user(USER).namespace(&world.namespace).of("patch", "jobs").len();
    let before = fetches();
    claims.delete("m-cache", &DeleteParams::default()).await.expect("it can be deleted");
    wait_for_another(&claims, "m-cache", claim.uid()).await;
    change(&world.models, "m", json!({"spec": {"replicas": 1}})).await;
    wait_until_ready(&world.models, "m").await;
    wait_for("another fetch", PATIENCE, async || if fetches() > before { Ok(()) } else { Err(fetches()) })
        .await;
    operator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fetch_that_is_deleted_or_unlabelled_comes_back() {
    let plane = ControlPlane::get().await;
    let done = Arc::new(AtomicBool::new(false));
    let may_end = Arc::clone(&done);
    let node = FakeNode::builder().script(move |pod| {
        let fetches = pod.owner_references().iter().any(|owner| owner.kind == "Job");
        (fetches && !may_end.load(Ordering::SeqCst)).then(Play::ready)
    });
    let world = World::with(plane, "fetch", node).await;
    let operator = world.operator(config());
    create(&world.models, "m", json!({"source": hub()})).await;
    wait_until(&world.models, "m", "ModelCached", "False", "Fetching").await;
    let jobs = world.of(Kind::Job);
    let job = wait_for("the Job", PATIENCE, async || {
        jobs.list(&ListParams::default()).await.expect("Jobs").items.pop().ok_or("none")
    })
    .await;
    let name = job.name_any();
    // What we find it by.
    let labels = json!({"metadata": {"labels": {names::MODEL_LABEL: null, names::FETCH_LABEL: null}}});
    jobs.patch(&name, &PatchParams::default(), &Patch::Merge(&labels)).await.expect("it can be unlabelled");
    let again =
        wait_for_object(&jobs, &name, "labelled again", PATIENCE, |job| job.labels().len() >= 7).await;
    assert_eq!((again.uid(), again.labels()), (job.uid(), job.labels()));
    // What can be changed of a Job.
    let limit = json!({"spec": {"backoffLimit": 7}});
    jobs.patch(&name, &PatchParams::default(), &Patch::Merge(&limit)).await.expect("it can be edited");
    wait_for_object(&jobs, &name, "as it was", PATIENCE, |job| job.data["spec"]["backoffLimit"] == 2).await;
    done.store(true, Ordering::SeqCst);
    jobs.delete(&name, &DeleteParams::background()).await.expect("it can be deleted");
    wait_until_ready(&world.models, "m").await;
    operator.stop().await;
}

/// Other values for a field, the likeliest to be valid first.
fn candidates(value: &Value) -> Vec<Value> {
    match value {
        Value::Bool(is) => vec![json!(!is)],
        Value::Number(number) => {
            let number = number.as_i64().unwrap_or(0);
            vec![json!(number + 1), json!(number - 1)]
        }
        Value::String(text) => {
            let other = match text.as_str() {
                "ClusterIP" => "NodePort",
                "TCP" => "UDP",
                "ScheduleAnyway" => "DoNotSchedule",
                "DoNotSchedule" => "ScheduleAnyway",
                "FallbackToLogsOnError" => "File",
                "AlwaysAllow" => "IfHealthyBudget",
                "RuntimeDefault" => "Unconfined",
                "OnRootMismatch" => "Always",
                "Exists" => "Equal",
                _ => "",
            };
            [other.to_owned(), format!("{text}x"), "3Gi".to_owned(), "3".to_owned(), format!("{text}/x")]
                .into_iter()
                .filter(|other| !other.is_empty())
                .map(Value::String)
                .collect()
        }
        Value::Object(map) => {
            let mut others: Vec<Value> = Vec::new();
            for (name, extra) in [("example.com/other", json!("x")), ("matchLabels", json!({"x": "y"}))] {
                let mut other = map.clone();
                if other.insert(name.to_owned(), extra).is_none() {
                    others.push(Value::Object(other));
                }
            }
            for (name, value) in map {
                for changed in candidates(value) {
                    let mut other = map.clone();
                    other.insert(name.clone(), changed);
                    others.push(Value::Object(other));
                }
            }
            others
        }
        Value::Array(items) => {
            let mut others = Vec::new();
            for (index, value) in items.iter().enumerate() {
                for changed in candidates(value) {
                    let mut other = items.clone();
                    other[index] = changed;
                    others.push(Value::Array(other));
                }
            }
            others.push(Value::Array(items.iter().chain(items.first()).cloned().collect()));
            others.push(Value::Array(items.iter().skip(1).cloned().collect()));
            others
        }
        Value::Null => Vec::new(),
    }
}

/// What is not edited by the test below.
fn left_out(kind: Kind, path: &[Step], last: &Step) -> Option<&'static str> {
    let text = path.iter().map(ToString::to_string).collect::<String>();
    match last {
        _ if text.contains("ownerReferences") => Some("an object without our owner is not ours"),
        Step::Field(name) if path.len() > 1 => {
            let Step::Key(key) = &path[path.len() - 2] else { return None };
            key.get(name).map(|_| "another key is another element; whole elements are removed instead")
        }
        _ if kind == Kind::ControllerRevision && text == ".revision" => Some("only orders records"),
        _ => None,
    }
}

/// Puts something else where the path leads. Nothing where the API server refuses all that was
/// thought of.
async fn edit(api: &Api<DynamicObject>, name: &str, path: &[Step], nth: usize) -> Option<Value> {
    let how = PostParams { field_manager: Some(OTHER.into()), ..PostParams::default() };
    let mut skip = nth;
    let mut tried = 0;
    loop {
        let mut object = serde_json::to_value(api.get(name).await.expect("it is there")).expect("JSON");
        let old = value_at(&object, path)?.clone();
        let other = if let Some(Step::Key(_)) = path.last() {
            if nth + tried > 0 {
                return None;
            }
            let list = value_at_mut(&mut object, &path[..path.len() - 1])?;
            let index = index_of(list, path.last()?)?;
            list.as_array_mut()?.remove(index);
            Value::Null
        } else {
            let other = candidates(&old).into_iter().nth(tried)?;
            *value_at_mut(&mut object, path)? = other.clone();
            other
        };
        let object: DynamicObject = serde_json::from_value(object).expect("an object");
        match api.replace(name, &how, &object).await {
            Ok(new) => {
                let new = serde_json::to_value(new).expect("JSON");
                if value_at(&new, path) == Some(&old) {
                    // The API server does not store it.
                    tried += 1;
                } else if skip > 0 {
                    skip -= 1;
                    tried += 1;
                    wait_until_restored(api, name, path, &old, &other).await;
                } else {
                    wait_until_restored(api, name, path, &old, &other).await;
                    return Some(other);
                }
            }
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            Err(kube::Error::Api(_)) => tried += 1,
            Err(error) => panic!("{name}: {error}"),
        }
    }
}

async fn wait_until_restored(
    api: &Api<DynamicObject>,
    name: &str,
    path: &[Step],
    old: &Value,
    other: &Value,
) {
    let place = path.iter().map(ToString::to_string).collect::<String>();
    wait_for(&format!("{name} {place}: {other} to be {old} again"), PATIENCE, async || {
        let object = serde_json::to_value(api.get(name).await.expect("it is there")).expect("JSON");
        match value_at(&object, path) {
            Some(now) if now == old => Ok(()),
            now => Err(format!("{now:?}")),
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_managed_field_that_is_edited_comes_back() {
    let plane = ControlPlane::get().await;
    let world = World::new(plane, "edited").await;
    let operator = world.operator(config());
    // Without pods edits of their template are quick.
    let mut idle = full();
    idle["autoscaling"] = Value::Null;
    idle["replicas"] = json!(0);
    create(&world.models, "idle", idle).await;
    create(&world.models, "busy", full()).await;
    wait_until_settled(&world.models, "idle").await;
    wait_until_ready(&world.models, "busy").await;
    let mut edits = Vec::new();
    for (model, kinds) in [
        ("idle", [Kind::Deployment].as_slice()),
        (
            "busy",
            &[
                Kind::ServiceAccount,
                Kind::PersistentVolumeClaim,
                Kind::Service,
                Kind::NetworkPolicy,
                Kind::ControllerRevision,
                Kind::HorizontalPodAutoscaler,
                Kind::PodDisruptionBudget,
            ],
        ),
    ] {
        for (kind, child) in world.children(model).await.into_iter().filter(|(kind, _)| kinds.contains(kind))
        {
            let mut paths = owned(&child);
            // Elements of lists as a whole, too.
            let elements: Vec<_> = paths
                .iter()
                .filter_map(|path| {
                    let key = path.iter().rposition(|step| matches!(step, Step::Key(_)))?;
                    Some(path[..=key].to_vec())
                })
                .collect();
            for element in elements {
                if !paths.contains(&element) {
                    paths.push(element);
                }
            }
            edits.push((kind, child.name_any(), paths));
        }
    }
    let runs = edits.into_iter().map(|(kind, name, paths)| {
        let api = world.of(kind);
        async move {
            let (mut done, mut refused) = (0, Vec::new());
            for path in paths {
                let written = path.iter().map(ToString::to_string).collect::<String>();
                if left_out(kind, &path, path.last().expect("a step")).is_some() {
                    continue;
                }
                // Of what is replaced as a whole, more than one thing can be changed.
                let object = serde_json::to_value(api.get(&name).await.expect("it is there")).expect("JSON");
                let composed =
                    value_at(&object, &path).is_some_and(|value| value.is_object() || value.is_array());
                let mut edited = 0;
                for nth in 0..if composed { 2 } else { 1 } {
                    edited += usize::from(edit(&api, &name, &path, nth).await.is_some());
                }
                done += edited;
                if edited == 0 {
                    refused.push(written);
                }
            }
            println!("{kind:?} {name}: {done} edits came back; refused by the API server: {refused:?}");
            (kind, done)
        }
    });
    let done: BTreeMap<Kind, usize> = futures_util::future::join_all(runs).await.into_iter().collect();
    let few = done.iter().filter(|(_, done)| **done < 5).collect::<Vec<_>>();
    assert!(few.is_empty() && done[&Kind::Deployment] > 60, "{done:?}");
    wait_until_ready(&world.models, "busy").await;
    operator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_child_that_lost_the_label_it_is_found_by_gets_it_back() {
    let plane = ControlPlane::get().await;
    let world = World::new(plane, "unlabelled").await;
    let operator = world.operator(config());
    let mut spec = full();
    spec["cache"]["retain"] = json!(true);
    create(&world.models, "m", spec).await;
    wait_until_ready(&world.models, "m").await;
    let before = (template(&world, "m").await, pods(&world).await);
    for (kind, child) in world.children("m").await {
        let (api, name) = (world.of(kind), child.name_any());
        let patch = json!({"metadata": {"labels": {names::MODEL_LABEL: null}}});
        api.patch(&name, &PatchParams::default(), &Patch::Merge(&patch)).await.expect("it can be unlabelled");
        wait_for_object(&api, &name, "labelled again", PATIENCE, |object| {
            object.labels().contains_key(names::MODEL_LABEL)
        })
        .await;
    }
    wait_until_ready(&world.models, "m").await;
    assert_eq!((template(&world, "m").await, pods(&world).await), before);
    operator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fields_of_others_stay() {
    let plane = ControlPlane::get().await;
    let world = World::new(plane, "foreign").await;
    let operator = world.operator(config());
    create(&world.models, "m", full()).await;
    wait_until_ready(&world.models, "m").await;
    let how = PatchParams { field_manager: Some(OTHER.into()), ..PatchParams::default() };
    let marks =
        json!({"metadata": {"annotations": {"example.com/a": "b"}, "labels": {"example.com/l": "m"}}});
    for (kind, child) in world.children("m").await {
        let patch = Patch::Merge(&marks);
        world.of(kind).patch(&child.name_any(), &how, &patch).await.expect("anyone may mark");
    }
    let injected = json!({
        "metadata": {"annotations": {"example.com/pod": "x"}},
        "spec": {
            "containers": [
                {"name": "sidecar", "image": "proxy:1"},
                {
                    "name": "server",
                    "env": [{"name": "INJECTED", "value": "1"}],
                    "ports": [{"containerPort": 15090, "name": "mesh", "protocol": "TCP"}],
                    "volumeMounts": [{"name": "agent", "mountPath": "/agent"}],
                },
            ],
            "initContainers": [{"name": "setup", "image": "proxy:1"}],
            "volumes": [{"name": "agent", "emptyDir": {}}],
        },
    });
    let patch = json!({"apiVersion": "apps/v1", "kind": "Deployment", "spec": {"template": injected}});
    let deployments = world.of(Kind::Deployment);
    deployments.patch("m", &how, &Patch::Strategic(&patch)).await.expect("a webhook's work");
    let port =
        json!({"spec": {"ports": [{"name": "mesh", "port": 15090, "protocol": "TCP", "targetPort": 15090}]}});
    world.of(Kind::Service).patch("m", &how, &Patch::Strategic(&port)).await.expect("another port");
    wait_until_ready(&world.models, "m").await;
    let scaled = plane.kubectl(&["scale", "deployment/m", "--replicas=3", "-n", &world.namespace]).await;
    assert!(scaled.status.success(), "{scaled:?}");
    wait_for_object(&world.models, "m", "3 ready", PATIENCE, |model| {
        is_ready(model) && model.status.as_ref().is_some_and(|status| status.ready_replicas == 3)
    })
    .await;

    // Through a change of everything, too.
    let change_all = json!({"spec": {
        "inference": {"maxBatchTokens": 1024},
        "service": {"port": 8080},
        "autoscaling": {"maxReplicas": 9},
        "network": {"allowFrom": [{"podSelector": {"matchLabels": {"app": "other"}}}]},
    }});
    change(&world.models, "m", change_all).await;
    wait_until_ready(&world.models, "m").await;
    for (kind, child) in world.children("m").await {
        // Made anew by the change.
        if kind == Kind::ControllerRevision {
            continue;
        }
        let marks = (child.annotations().get("example.com/a"), child.labels().get("example.com/l"));
        assert_eq!(marks, (Some(&"b".to_owned()), Some(&"m".to_owned())), "{kind:?} {}", child.name_any());
    }
    let template = template(&world, "m").await;
    let find =
        |list: &Value, name: &str| list.as_array().unwrap().iter().find(|e| e["name"] == name).cloned();
    let server = find(&template["spec"]["containers"], "server").unwrap();
    assert!(server["args"].to_string().contains("1024"), "{server}");
    assert!(find(&template["spec"]["containers"], "sidecar").is_some(), "{template}");
    assert!(find(&template["spec"]["initContainers"], "setup").is_some(), "{template}");
    assert!(find(&template["spec"]["volumes"], "agent").is_some(), "{template}");
    for list in ["env", "ports", "volumeMounts"] {
        assert!(server[list].as_array().unwrap().len() > 1, "{list}: {server}");
    }
    assert_eq!(template["metadata"]["annotations"]["example.com/pod"], "x");
    let service = world.of(Kind::Service).get("m").await.unwrap();
    assert_eq!(service.data["spec"]["ports"].as_array().unwrap().len(), 2);
    let deployment = deployments.get("m").await.unwrap();
    assert_eq!(deployment.data["spec"]["replicas"], 3);

    // And nothing is fought over.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let settled = Timestamp::now();
    change(&world.models, "m", json!({"metadata": {"annotations": {"example.com/x": "y"}}})).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let seen = plane.audit().user(USER).namespace(&world.namespace).since(settled);
    assert!(!seen.is_empty());
    let writes = seen.filter(|entry| !["get", "list", "watch"].contains(&entry.verb.as_str()));
    assert!(writes.is_empty(), "{writes:#?}");
    operator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_running_number_never_moves_when_autoscaling_is_turned_on_or_off() {
    let plane = ControlPlane::get().await;
    let world = World::new(plane, "handover").await;
    let operator = world.operator(config());
    let spec = json!({"source": hub(), "replicas": 5, "resources": {"requests": {"cpu": "1"}}});
    create(&world.models, "m", spec).await;
    wait_until_ready(&world.models, "m").await;

    let (deployments, autoscalers) = (world.api::<Deployment>(), world.api::<HorizontalPodAutoscaler>());
    let version = deployments.list(&ListParams::default()).await.unwrap().metadata.resource_version.unwrap();
    let numbers = deployments.watch(&WatchParams::default(), &version).await.unwrap();
    let scalers = autoscalers.watch(&WatchParams::default(), &version).await.unwrap();
    let seen = tokio::spawn(async move {
        let mut numbers = numbers.boxed();
        let (mut seen, mut ours_at) = (Vec::new(), Vec::new());
        while let Ok(Some(Ok(event))) = tokio::time::timeout(Duration::from_secs(20), numbers.next()).await {
            let (WatchEvent::Added(deployment) | WatchEvent::Modified(deployment)) = event else { continue };
            seen.push(deployment.spec.as_ref().unwrap().replicas.unwrap());
            let ours = deployment.managed_fields().iter().any(|entry| {
                entry.manager.as_deref() == Some(names::FIELD_MANAGER)
                    && entry.fields_v1.as_ref().unwrap().0["f:spec"]["f:replicas"].is_object()
            });
            ours_at.push((deployment.resource_version().unwrap().parse::<u64>().unwrap(), ours));
        }
        (seen, ours_at)
    });
    let gone = tokio::spawn(async move {
        let mut scalers = scalers.boxed();
        while let Some(event) = scalers.next().await {
            if let Ok(WatchEvent::Deleted(scaler)) = event {
                return scaler.resource_version().unwrap().parse::<u64>().unwrap();
            }
        }
        panic!("the watch ended");
    });
    for minimum in [1, 5] {
        // Beside autoscaling `replicas` means nothing, and is no wish about the time after it.
        let on = json!({"spec": {"autoscaling": {"minReplicas": minimum, "maxReplicas": 10}, "replicas": 1}});
        change(&world.models, "m", on).await;
        wait_for_object(&autoscalers, "m", "there", PATIENCE, |_| true).await;
        wait_until_ready(&world.models, "m").await;
        // The autoscaler has looked.
        tokio::time::sleep(Duration::from_secs(3)).await;
        change(&world.models, "m", json!({"spec": {"autoscaling": null}})).await;
        wait_until_gone(&autoscalers, "m", PATIENCE).await;
        wait_until_ready(&world.models, "m").await;
    }
    change(&world.models, "m", json!({"metadata": {"annotations": {"a": "b"}}})).await;
    let gone = tokio::time::timeout(PATIENCE, gone).await.expect("in time").unwrap();
    let (seen, ours_at) = seen.await.unwrap();
    assert!(seen.len() >= 4, "{seen:?}");
    assert!(seen.iter().all(|number| *number == 5), "{seen:?}");
    // Once it was not ours; when it was again, the autoscaler had gone.
    let given = ours_at.iter().position(|(_, ours)| !ours).expect("it was given away");
    let (taken, _) = ours_at[given..].iter().find(|(_, ours)| *ours).expect("it was taken back");
    assert!(gone < *taken, "gone at {gone}, taken at {taken}");

    let model = world.models.get("m").await.unwrap();
    let told = support::operator::message(&model, "Ready");
    assert!(told.contains("5 run as when autoscaling was turned off"), "{told}");
    // What is written past the model does not last; what the model says anew does.
    let past = Patch::Merge(json!({"spec": {"replicas": 2}}));
    deployments.patch("m", &PatchParams::default(), &past).await.unwrap();
    wait_for_object(&deployments, "m", "5 again", PATIENCE, |deployment| {
        deployment.metadata.generation > Some(1)
            && deployment.spec.as_ref().and_then(|spec| spec.replicas) == Some(5)
    })
    .await;
    change(&world.models, "m", json!({"spec": {"replicas": 3}})).await;
    wait_for_object(&world.models, "m", "3 ready", PATIENCE, |model| {
        is_ready(model) && model.status.as_ref().is_some_and(|status| status.ready_replicas == 3)
    })
    .await;
    operator.stop().await;
}

/// Whether the operator owns fields of an object other than by applying.
fn is_shared(object: &DynamicObject) -> bool {
    object.managed_fields().iter().any(|entry| {
        entry.manager.as_deref() == Some(names::FIELD_MANAGER) && entry.operation.as_deref() == Some("Update")
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_made_invalid_beside_ours_goes_and_leaves_no_trace() {
    let plane = ControlPlane::get().await;
    let world = World::new(plane, "invalid").await;
    let operator = world.operator(config());
    create(&world.models, "m", json!({"source": hub(), "replicas": 0})).await;
    wait_until(&world.models, "m", "Ready", "False", "ScaledToZero").await;
    let deployments = world.of(Kind::Deployment);
    wait_for("the edit", PATIENCE, async || {
        let mut theirs = deployments.get("m").await.expect("it is there");
        let volume = &mut theirs.data["spec"]["template"]["spec"]["volumes"][0];
        assert_eq!(volume["name"], "tmp");
        *volume = json!({"name": "tmp", "configMap": {"name": "x"}});
        deployments.replace("m", &PostParams::default(), &theirs).await
    })
    .await;
    wait_for_object(&deployments, "m", "as it was, and by applying alone", PATIENCE, |deployment| {
        let volume = &deployment.data["spec"]["template"]["spec"]["volumes"][0];
        volume["emptyDir"].is_object() && volume["configMap"].is_null() && !is_shared(deployment)
    })
    .await;
    operator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_label_as_a_models_is_not_believed() {
    let plane = ControlPlane::get().await;
    let world = World::new(plane, "forged").await;
    let operator = world.operator(config());
    create(&world.models, "m", json!({"source": hub()})).await;
    wait_until_ready(&world.models, "m").await;
    let before = (template(&world, "m").await, pods(&world).await);
    let records = world.of(Kind::ControllerRevision);
    for (_, mut record) in
        world.children("m").await.into_iter().filter(|(kind, _)| *kind == Kind::ControllerRevision)
    {
        record.metadata = kube::api::ObjectMeta {
            name: Some(format!("forged-{}", record.name_any())),
            labels: record.metadata.labels,
            ..kube::api::ObjectMeta::default()
        };
        record.data["revision"] = json!(1000);
        if record.data["data"]["pods"].is_object() {
            record.data["data"]["pods"]["spec"]["containers"][0]["image"] = json!("registry.test/theirs:1");
        }
        records.create(&PostParams::default(), &record).await.expect("it can be made");
    }
    change(&world.models, "m", json!({"spec": {"replicas": 2}})).await;
    wait_for_object(&world.models, "m", "2 ready", PATIENCE, |model| {
        is_ready(model) && model.status.as_ref().is_some_and(|status| status.ready_replicas == 2)
    })
    .await;
    assert_eq!(template(&world, "m").await, before.0);
    assert!(pods(&world).await.is_superset(&before.1));
    // It is nobody's of ours to remove.
    let left = records.list(&ListParams::default()).await.expect("records").items;
    assert_eq!(left.iter().filter(|record| record.name_any().starts_with("forged-")).count(), 2);
    operator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_autoscaled_model_that_somebody_scales_to_zero_comes_back() {
    let plane = ControlPlane::get().await;
    let world = World::new(plane, "halted").await;
    let operator = world.operator(config());
    let spec = json!({
        "source": hub(),
        "resources": {"requests": {"cpu": "1"}},
        "autoscaling": {"minReplicas": 2, "maxReplicas": 4},
    });
    create(&world.models, "m", spec).await;
    let at_two = |model: &EmbeddingModel| {
        is_ready(model) && model.status.as_ref().is_some_and(|status| status.ready_replicas == 2)
    };
    wait_for_object(&world.models, "m", "2 ready", PATIENCE, at_two).await;
    let gone = plane.kubectl(&["scale", "deployment/m", "--replicas=0", "-n", &world.namespace]).await;
    assert!(gone.status.success(), "{}", String::from_utf8_lossy(&gone.stderr));
    wait_for_object(&world.models, "m", "not ready", PATIENCE, |model| !is_ready(model)).await;
    wait_for_object(&world.models, "m", "2 ready again", PATIENCE, at_two).await;
    operator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn autoscaling_of_a_model_without_replicas_brings_it_up() {
    let plane = ControlPlane::get().await;
    let world = World::new(plane, "fromzero").await;
    let operator = world.operator(config());
    let spec = json!({"source": hub(), "replicas": 0, "resources": {"requests": {"cpu": "1"}}});
    create(&world.models, "m", spec).await;
    wait_until(&world.models, "m", "Ready", "False", "ScaledToZero").await;
    let on = json!({"spec": {"autoscaling": {"minReplicas": 2, "maxReplicas": 4}}});
    change(&world.models, "m", on).await;
    wait_for_object(&world.models, "m", "2 ready", PATIENCE, |model| {
        is_ready(model) && model.status.as_ref().is_some_and(|status| status.ready_replicas == 2)
    })
    .await;
    operator.stop().await;
}

/// What may differ between a model that was edited and a fresh one of the same spec: where it
/// begins, for which specs, and why.
type Exception = (&'static str, fn(&Value) -> bool, &'static str);

const EXCEPTIONS: &[Exception] = &[
    (
        "status replicas",
        |spec| spec["autoscaling"].is_object(),
        "the running number is the autoscaler's, and turning it on does not move it",
    ),
    ("status readyReplicas", |spec| spec["autoscaling"].is_object(), "the same"),
    (
        "status model",
        |spec| spec["cache"]["ephemeral"] == true,
        "what was learned about the same commit stays known, while a fresh one waits for its first pod",
    ),
    ("status \"SpaceChanged\"", |_| true, "what has just been made has not changed"),
];

fn pick<'a>(random: &mut StdRng, of: &[&'a str]) -> &'a str {
    of[random.random_range(0..of.len())]
}

/// What cannot be changed is the same in both specs of a pair, or the API server refuses the edit.
fn random_spec(random: &mut StdRng, modes: &Value) -> Value {
    let digest = "0123456789abcdef".repeat(4);
    let repo = |random: &mut StdRng, revision: &str| {
        let mut repo = json!({"repo": pick(random, &["org/name", "org/other"]), "revision": revision});
        if random.random_bool(0.3) {
            repo["tokenSecretRef"] = json!({"name": "hub"});
        }
        if random.random_bool(0.2) {
            repo["endpoint"] = json!("https://mirror.test");
        }
        repo
    };
    let mut cache = json!({"accessModes": modes});
    let source = match random.random_range(0..8) {
        0 => json!({"http": {"url": "https://files.test/m.tar.gz", "sha256": digest}}),
        1 => json!({"image": {"reference": format!("registry.test/m@sha256:{digest}")}}),
        2 => json!({"persistentVolumeClaim": {"claimName": pick(random, &["one", "many"]), "path": "a/b"}}),
        3 => {
            cache["ephemeral"] = json!(true);
            json!({"huggingFace": repo(random, COMMIT)})
        }
        _ => {
            let revision = pick(random, &["main", "v2", COMMIT]);
            json!({"huggingFace": repo(random, revision)})
        }
    };
    let mut spec = json!({
        "source": source,
        "cache": cache,
        "replicas": random.random_range(0..4),
        "resources": {"requests": {"cpu": pick(random, &["1", "500m", "0.25"])}},
    });
    let options: [(&str, f64, Value); 16] = [
        ("/modelName", 0.3, json!("other-name")),
        ("/inference", 0.4, json!({"dtype": "Float32", "maxBatchTokens": random.random_range(1..5000)})),
        ("/inference/prompts", 0.3, json!({"query": pick(random, &["q: ", "$(A) ", ""])})),
        ("/inference/onOverflow", 0.3, json!("Error")),
        ("/autoscaling", 0.3, json!({"minReplicas": random.random_range(1..4), "maxReplicas": 6})),
        (
            "/resources",
            0.4,
            json!({"requests": {"cpu": "2", "memory": "1024Mi"}, "limits": {"cpu": "2000m", "memory": "1Gi"}}),
        ),
        (
            "/service",
            0.4,
            json!({
                "type": pick(random, &["ClusterIP", "NodePort", "LoadBalancer"]),
                "port": 80 + 8000 * random.random_range(0..2),
                "annotations": {"example.com/a": random.random_range(0..3).to_string()},
            }),
        ),
        (
            "/network",
            0.4,
            json!({
                "allowFrom": [{"podSelector": {"matchLabels": {"app": "a"}}}, {"namespaceSelector": {}}],
                "proxy": {"httpsProxy": "http://proxy.test:3128", "noProxy": ".cluster.local"},
                "trustedCA": {"configMapRef": {"name": "ca"}},
            }),
        ),
        ("/image", 0.2, json!("registry.test/mine:7")),
        ("/startupTimeoutSeconds", 0.3, json!(random.random_range(10..2000))),
        ("/podTemplate/labels", 0.3, json!({"team": "a"})),
        ("/podTemplate/nodeSelector", 0.3, json!({"kubernetes.io/os": "linux"})),
        ("/podTemplate/tolerations", 0.3, json!([{"key": "dedicated", "operator": "Exists"}])),
        (
            "/podTemplate/affinity",
            0.3,
            json!({"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{
                "weight": 1, "podAffinityTerm": {"topologyKey": "zone", "labelSelector": {"matchLabels": {"a": "b"}}},
            }]}}),
        ),
        (
            "/podTemplate/env",
            0.3,
            json!([
                {"name": "A", "value": random.random_range(0..9).to_string()},
                {"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
            ]),
        ),
        ("/podTemplate/volumes", 0.3, json!([{"name": "extra", "configMap": {"name": "extra"}}])),
    ];
    spec["podTemplate"] = json!({});
    spec["inference"] = json!({});
    for (place, odds, value) in options {
        if random.random_bool(odds) {
            let (parent, name) = place.rsplit_once('/').expect("a pointer");
            spec.pointer_mut(parent).expect("it is there")[name] = value;
        }
    }
    if spec["podTemplate"]["volumes"].is_array() {
        spec["podTemplate"]["volumeMounts"] =
            json!([{"name": "extra", "mountPath": "/extra", "readOnly": true}]);
    }
    if random.random_bool(0.2) {
        spec["podTemplate"]["serviceAccountName"] = json!("default");
    }
    spec
}

#[tokio::test(flavor = "multi_thread")]
async fn any_spec_edited_to_another_ends_as_a_fresh_one() {
    const PAIRS: usize = 24;
    const BUDGET: Duration = Duration::from_secs(90);
    let seed =
        std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(rand::random::<u64>);
    println!("random pairs: SEED={seed}");
    let plane = ControlPlane::get().await;
    let (edited, fresh) = (World::new(plane, "pairs").await, World::new(plane, "fresh").await);
    let operators = [edited.operator(config()), fresh.operator(config())];
    for world in [&edited, &fresh] {
        for (name, mode) in [("one", "ReadWriteOnce"), ("many", "ReadOnlyMany")] {
            let claim: PersistentVolumeClaim = serde_json::from_value(json!({
                "metadata": {"name": name},
                "spec": {"accessModes": [mode], "resources": {"requests": {"storage": "1Gi"}}},
            }))
            .unwrap();
            world.api().create(&PostParams::default(), &claim).await.unwrap();
        }
    }
    let begun = Instant::now();
    let mut random = StdRng::seed_from_u64(seed);
    let pairs: Vec<(Value, Value)> = (0..PAIRS)
        .map(|_| {
            let modes =
                [json!(["ReadWriteOnce"]), json!(["ReadWriteMany"])][random.random_range(0..2)].clone();
            let mut pair = (random_spec(&mut random, &modes), random_spec(&mut random, &modes));
            // What the API server must refuse: another mode.
            if random.random_bool(0.1) {
                pair.1["cache"]["accessModes"] = json!(["ReadWriteOnce", "ReadWriteMany"]);
            }
            // Without autoscaling, what ran with it stays as long as `replicas` is what it was.
            let scaled = |spec: &Value| spec["autoscaling"].is_object();
            if scaled(&pair.0) && !scaled(&pair.1) && pair.0["replicas"] == pair.1["replicas"] {
                pair.1["replicas"] = json!(4);
            }
            pair
        })
        .collect();
    let outcomes = futures_util::stream::iter(pairs.into_iter().enumerate())
        .map(|(number, (a, b))| {
            let (edited, fresh) = (&edited, &fresh);
            async move {
                if begun.elapsed() > BUDGET {
                    return "no time";
                }
                let name = format!("m{number}");
                create(&edited.models, &name, a.clone()).await;
                wait_until_settled(&edited.models, &name).await;
                let patch = json!([{"op": "replace", "path": "/spec", "value": b}]);
                let request = http::Request::patch(format!(
                    "/apis/embeddings.kagent.dev/v1alpha1/namespaces/{}/embeddingmodels/{name}",
                    edited.namespace
                ))
                .header("Content-Type", "application/json-patch+json")
                .body(patch.to_string().into_bytes())
                .unwrap();
                match edited.client.request::<EmbeddingModel>(request).await {
                    Ok(_) => {}
                    Err(kube::Error::Api(status)) if status.code == 422 => {
                        assert!(status.message.contains("cannot"), "{}", status.message);
                        return "refused";
                    }
                    Err(error) => panic!("{error}"),
                }
                create(&fresh.models, &name, b.clone()).await;
                wait_until_settled(&fresh.models, &name).await;
                let story = format!("SEED={seed}, pair {number}:\n{a}\n{b}\nedited | fresh");
                wait_for(&story, PATIENCE, async || {
                    let mut different = differences(&edited.state(&name).await, &fresh.state(&name).await);
                    different.retain(|line| {
                        !EXCEPTIONS.iter().any(|(what, holds, _)| line.starts_with(what) && holds(&b))
                    });
                    if different.is_empty() { Ok(()) } else { Err(different.join("\n")) }
                })
                .await;
                for world in [edited, fresh] {
                    world.models.delete(&name, &DeleteParams::default()).await.unwrap();
                }
                "equal"
            }
        })
        .buffer_unordered(4)
        .collect::<Vec<_>>()
        .await;
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for outcome in outcomes {
        *counts.entry(outcome).or_default() += 1;
    }
    println!("random pairs: {counts:?} in {:.0?}", begun.elapsed());
    assert!(counts["equal"] >= 4, "{counts:?}");
    for operator in operators {
        operator.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_deleted_in_the_middle_of_a_rollout_leaves_nothing_but_a_retained_claim() {
    let plane = ControlPlane::get().await;
    let node = FakeNode::builder().script(|pod| {
        let second = pod.spec.as_ref()?.containers[0].args.as_ref()?.contains(&"1024".to_owned());
        second.then_some(Play::NeverReady)
    });
    let world = World::with(plane, "leaves", node).await;
    let operator = world.operator(config());
    for (name, retain) in [("gone", false), ("kept", true)] {
        let mut spec = full();
        spec["cache"]["retain"] = json!(retain);
        create(&world.models, name, spec).await;
    }
    for name in ["gone", "kept"] {
        wait_until_ready(&world.models, name).await;
        change(&world.models, name, json!({"spec": {"inference": {"maxBatchTokens": 1024}}})).await;
        wait_until(&world.models, name, "Ready", "False", "RollingOut").await;
    }
    let claim = world.of(Kind::PersistentVolumeClaim).get("kept-cache").await.unwrap();
    for name in ["gone", "kept"] {
        world.models.delete(name, &DeleteParams::default()).await.unwrap();
    }
    wait_for("all of it to go", PATIENCE, async || {
        let mut left: Vec<String> = Vec::new();
        for name in ["gone", "kept"] {
            let children = world.children(name).await;
            left.extend(children.iter().map(|(kind, child)| format!("{kind:?} {}", child.name_any())));
        }
        left.extend(
            world
                .api::<Pod>()
                .list(&ListParams::default())
                .await
                .unwrap()
                .iter()
                .map(kube::ResourceExt::name_any),
        );
        if left == ["PersistentVolumeClaim kept-cache"] { Ok(()) } else { Err(format!("{left:?}")) }
    })
    .await;

    // A model of the same name and another source does not get it.
    let mut other = full();
    other["source"] = json!({"huggingFace": {"repo": "org/other"}});
    for retain in [true, false] {
        other["cache"]["retain"] = json!(retain);
        create(&world.models, "kept", other.clone()).await;
        // Before, what is left of the last one has to go.
        wait_for_object(&world.models, "kept", "refused the claim", PATIENCE, |model| {
            is(model, "Ready", "False", "NameConflict") && message(model, "Ready").contains("kept-cache")
        })
        .await;
        world.models.delete("kept", &DeleteParams::default()).await.unwrap();
        wait_until_gone(&world.models, "kept", PATIENCE).await;
    }
    // One of the same source does, and keeps it whatever its source becomes.
    let mut same = full();
    same["cache"]["retain"] = json!(true);
    create(&world.models, "kept", same).await;
    wait_until_ready(&world.models, "kept").await;
    change(&world.models, "kept", json!({"spec": {"source": {"huggingFace": {"revision": "v2"}}}})).await;
    wait_until_ready(&world.models, "kept").await;
    let adopted = world.of(Kind::PersistentVolumeClaim).get("kept-cache").await.unwrap();
    assert_eq!(adopted.uid(), claim.uid());
    assert!(adopted.owner_references().is_empty());
    change(&world.models, "kept", json!({"spec": {"cache": {"retain": false}}})).await;
    wait_for_object(&world.of(Kind::PersistentVolumeClaim), "kept-cache", "owned", PATIENCE, |claim| {
        claim.owner_references().len() == 1 && !claim.labels().contains_key(names::SOURCE_LABEL)
    })
    .await;
    operator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_access_mode_decides() {
    let plane = ControlPlane::get().await;
    let world = World::new(plane, "modes").await;
    let mut config = config();
    config.server_cuda_image = Some("registry.test/embedding-server-cuda:1".into());
    let operator = world.operator(config);
    create(&world.models, "one", json!({"source": hub(), "replicas": 2})).await;
    let many = json!({"source": hub(), "replicas": 2, "cache": {"accessModes": ["ReadWriteMany"]}});
    create(&world.models, "many", many).await;
    create(&world.models, "gpu", json!({"source": hub(), "gpu": {}})).await;
    for name in ["one", "many", "gpu"] {
        wait_until_ready(&world.models, name).await;
    }
    let rollout = async |name: &str| world.models.get(name).await.unwrap().status.unwrap().rollout.unwrap();
    let strategy = async |name: &str| {
        world.of(Kind::Deployment).get(name).await.unwrap().data["spec"]["strategy"].clone()
    };
    let budgets = world.api::<PodDisruptionBudget>();
    let pods_of = async |name: &str| {
        let of = ListParams::default().labels(&format!("{}={name}", names::MODEL_LABEL));
        world.api::<Pod>().list(&of).await.unwrap().items
    };

    // ReadWriteOnce: together, and no budget that a drain could wait for.
    let surge = strategy("one").await;
    for pod in pods_of("one").await {
        let spec = pod.spec.unwrap();
        let terms = spec.affinity.unwrap().pod_affinity.unwrap();
        let terms = terms.required_during_scheduling_ignored_during_execution.unwrap();
        assert_eq!(terms[0].topology_key, "kubernetes.io/hostname");
        assert!(spec.topology_spread_constraints.is_none());
    }
    assert!(budgets.get_opt("one").await.unwrap().is_none());
    assert_eq!(json!(rollout("one").await.strategy), "Surge");
    assert!(rollout("one").await.because.contains("ReadWriteOnce"));
    change(
        &world.models,
        "one",
        json!({"spec": {"podTemplate": {"nodeSelector": {"kubernetes.io/os": "linux"}}}}),
    )
    .await;
    let moving = wait_for_object(&world.models, "one", "moving", PATIENCE, |model| {
        let rollout = model.status.as_ref().and_then(|status| status.rollout.clone()).unwrap_or_default();
        json!(rollout.strategy) == "Recreate"
    })
    .await;
    let because = moving.status.unwrap().rollout.unwrap().because;
    assert!(because.contains("another node") && because.contains("ReadWriteOnce"), "{because}");
    wait_until_ready(&world.models, "one").await;
    wait_for("the usual strategy", PATIENCE, async || {
        let now = strategy("one").await;
        if now == surge { Ok(()) } else { Err(now) }
    })
    .await;
    let sets =
        world.api::<k8s_openapi::api::apps::v1::ReplicaSet>().list(&ListParams::default()).await.unwrap();
    assert_eq!(sets.iter().filter(|set| set.labels()[names::MODEL_LABEL] == "one").count(), 2);
    wait_for_object(&world.models, "one", "told", PATIENCE, |model| {
        json!(model.status.as_ref().unwrap().rollout.as_ref().unwrap().strategy) == "Surge" && is_ready(model)
    })
    .await;

    // ReadWriteMany: apart, and one at a time may be away.
    for pod in pods_of("many").await {
        let spec = pod.spec.unwrap();
        assert!(spec.affinity.is_none());
        assert_eq!(spec.topology_spread_constraints.unwrap()[0].when_unsatisfiable, "ScheduleAnyway");
    }
    let budget = budgets.get("many").await.unwrap().spec.unwrap();
    assert_eq!(budget.unhealthy_pod_eviction_policy.as_deref(), Some("AlwaysAllow"));
    change(&world.models, "many", json!({"spec": {"replicas": 1}})).await;
    wait_until_gone(&budgets, "many", PATIENCE).await;

    assert_eq!(json!(rollout("gpu").await.strategy), "NoSurge");
    assert_eq!(strategy("gpu").await["rollingUpdate"], json!({"maxSurge": 0, "maxUnavailable": 1}));
    operator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_of_the_operator_restarts_no_pod() {
    let plane = ControlPlane::get().await;
    let world = World::new(plane, "upgrade").await;
    let operator = world.operator(config());
    for name in ["m", "changed"] {
        create(&world.models, name, json!({"source": hub()})).await;
        wait_until_ready(&world.models, name).await;
    }
    let (before, pods_before) = (template(&world, "m").await, pods(&world).await);
    operator.stop().await;

    let upgraded = Config { server_image: "registry.test/embedding-server:2".into(), ..config() };
    let operator = world.operator(upgraded);
    for name in ["m", "changed"] {
        wait_until(&world.models, name, "UpdateAvailable", "True", "NewPodTemplate").await;
        assert!(is_ready(&world.models.get(name).await.unwrap()));
    }
    // What a restore from a backup without statuses does.
    let nothing = Patch::Merge(json!({"status": null}));
    world.models.patch_status("m", &PatchParams::default(), &nothing).await.unwrap();
    wait_until_ready(&world.models, "m").await;
    wait_until(&world.models, "m", "UpdateAvailable", "True", "NewPodTemplate").await;
    // What has nothing to do with pods.
    change(&world.models, "m", json!({"spec": {"service": {"port": 8080}}})).await;
    wait_until_ready(&world.models, "m").await;
    change(&world.models, "m", json!({"metadata": {"annotations": {"example.com/a": "b"}}})).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(template(&world, "m").await, before);
    assert_eq!(pods(&world).await, pods_before);

    change(&world.models, "m", json!({"metadata": {"annotations": {names::UPDATE_ANNOTATION: "1"}}})).await;
    change(&world.models, "changed", json!({"spec": {"inference": {"maxBatchTokens": 1024}}})).await;
    for name in ["m", "changed"] {
        wait_until(&world.models, name, "UpdateAvailable", "False", "UpToDate").await;
        wait_until_ready(&world.models, name).await;
        let now = template(&world, name).await;
        assert_eq!(now["spec"]["containers"][0]["image"], "registry.test/embedding-server:2");
    }
    operator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_without_replicas_is_not_ready_and_comes_up_again() {
    let plane = ControlPlane::get().await;
    let world = World::new(plane, "zero").await;
    let operator = world.operator(config());
    create(&world.models, "m", json!({"source": hub(), "replicas": 0})).await;
    let model = wait_until(&world.models, "m", "Ready", "False", "ScaledToZero").await;
    assert!(is(&model, "ModelCached", "True", "Cached"), "{:?}", condition(&model, "ModelCached"));
    assert!(is(&model, "Degraded", "False", "Healthy"), "{:?}", condition(&model, "Degraded"));
    assert!(is(&model, "Progressing", "False", "Reconciled"), "{:?}", condition(&model, "Progressing"));
    for number in ["2", "0", "1"] {
        let scale =
            plane.kubectl(&["scale", "embeddingmodel/m", "--replicas", number, "-n", &world.namespace]).await;
        assert!(scale.status.success(), "{scale:?}");
        let model = wait_until_settled(&world.models, "m").await;
        let ready = model.status.unwrap().ready_replicas;
        assert_eq!(ready.to_string(), number);
    }
    operator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_model_is_left_alone() {
    let plane = ControlPlane::get().await;
    let world = World::new(plane, "paused").await;
    let operator = world.operator(config());
    create(&world.models, "m", json!({"source": hub()})).await;
    wait_until_ready(&world.models, "m").await;
    change(&world.models, "m", json!({"spec": {"paused": true}})).await;
    wait_until(&world.models, "m", "Progressing", "False", "Paused").await;
    let (services, deployments) = (world.of(Kind::Service), world.of(Kind::Deployment));
    let edit = json!({"spec": {"ports": [{"name": "http", "port": 81, "targetPort": "http"}]}});
    services.patch("m", &PatchParams::default(), &Patch::Merge(&edit)).await.unwrap();
    let image =
        json!({"spec": {"template": {"spec": {"containers": [{"name": "server", "image": "mine:1"}]}}}});
    deployments.patch("m", &PatchParams::default(), &Patch::Strategic(&image)).await.unwrap();
    // Other pods than the spec's are no readiness, and the numbers go on being told.
    wait_until(&world.models, "m", "Ready", "False", "Paused").await;
    let two = json!({"spec": {"replicas": 2}});
    deployments.patch("m", &PatchParams::default(), &Patch::Merge(&two)).await.unwrap();
    wait_for_object(&world.models, "m", "2 replicas", PATIENCE, |model| {
        model.status.as_ref().is_some_and(|status| status.ready_replicas == 2)
    })
    .await;
    change(&world.models, "m", json!({"spec": {"service": {"port": 8080}}})).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(services.get("m").await.unwrap().data["spec"]["ports"][0]["port"], 81);
    assert!(!is_settled(&world.models.get("m").await.unwrap()));
    // Together with what we want it would be invalid.
    let other = json!([{"name": "tmp", "emptyDir": null, "configMap": {"name": "x"}}]);
    let volume = json!({"spec": {"template": {"spec": {"volumes": other}}}});
    deployments.patch("m", &PatchParams::default(), &Patch::Strategic(&volume)).await.unwrap();
    change(&world.models, "m", json!({"spec": {"paused": false}})).await;
    wait_until_ready(&world.models, "m").await;
    assert_eq!(services.get("m").await.unwrap().data["spec"]["ports"][0]["port"], 8080);
    let deployment = deployments.get("m").await.unwrap();
    assert_eq!(deployment.data["spec"]["replicas"], 1);
    assert_eq!(
        deployment.data["spec"]["template"]["spec"]["containers"][0]["image"],
        "registry.test/embedding-server:1"
    );
    operator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_branch_is_resolved_once() {
    let plane = ControlPlane::get().await;
    let world = World::new(plane, "branch").await;
    let operator = world.operator(config());
    create(&world.models, "m", json!({"source": hub()})).await;
    wait_until_ready(&world.models, "m").await;
    let before = template(&world, "m").await;
    assert!(before["spec"]["containers"][0]["args"].to_string().contains(&format!("org/name@{COMMIT}")));
    let jobs = world.api::<Job>();
    jobs.delete_collection(&DeleteParams::background(), &ListParams::default()).await.unwrap();
    wait_for("no Jobs", PATIENCE, async || {
        let left = jobs.list(&ListParams::default()).await.unwrap().items.len();
        if left == 0 { Ok(()) } else { Err(left) }
    })
    .await;
    let fetches = || plane.audit().user(USER).namespace(&world.namespace).of("patch", "jobs").len();
    let made = fetches();
    let pods = world.api::<Pod>();
    pods.delete_collection(&DeleteParams::default(), &ListParams::default()).await.unwrap();
    // The record of the fetch goes, too, and while no operator looks.
    operator.stop().await;
    let records = world.of(Kind::ControllerRevision);
    let of_fetches = ListParams::default().labels(&format!("{}=fetched", names::RECORD_LABEL));
    records.delete_collection(&DeleteParams::default(), &of_fetches).await.unwrap();
    let operator = world.operator(config());
    wait_for("a record again", PATIENCE, async || {
        records.list(&of_fetches).await.unwrap().items.pop().ok_or("none")
    })
    .await;
    wait_until_ready(&world.models, "m").await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(template(&world, "m").await, before);
    assert_eq!(fetches(), made, "nothing was fetched again");
    operator.stop().await;
}
