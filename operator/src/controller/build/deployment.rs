//! The Deployment, and how it replaces pods.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::{Deployment, DeploymentSpec, DeploymentStrategy, RollingUpdateDeployment};
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt as _;

use super::{Template, metadata, names, of_kind, rolled_out};
use crate::controller::object::{Kind, Object};
use crate::controller::same;
use crate::controller::validate::{Reach, ValidModel};
use crate::crd::status::{RolloutStatus, Strategy};

/// How much longer than a start a rollout may stand still before it counts as stuck: for
/// scheduling and pulling images.
const SLACK: i64 = 300;

/// How long the scheduler may look for a place before another way is tried: a pod that
/// goes just then, or the one that fetched, may leave it one.
const PATIENCE: SignedDuration = SignedDuration::from_secs(30);

/// How pods are replaced, and why in this way.
pub(super) fn rollout(
    model: &ValidModel,
    template: Option<&Template>,
    deployed: Option<&Deployment>,
    pods: &[Pod],
    now: Timestamp,
) -> RolloutStatus {
    let room = match (template, deployed) {
        (Some(template), Some(deployed)) if model.reach() == Reach::OneNode => {
            room(template, deployed, pods, now)
        }
        _ => Room::Enough,
    };
    let (strategy, because) = match model.reach() {
        Reach::OnePod => (Strategy::Recreate, "one pod at a time can mount the volume (ReadWriteOncePod)"),
        Reach::OneNode if room == Room::Elsewhere => (
            Strategy::Recreate,
            "the node that has the volume (ReadWriteOnce) has no room for a new pod, and another has: the volume can \
             only follow when all have left",
        ),
        Reach::OneNode if moves(template, deployed) => (
            Strategy::Recreate,
            "the pods may have to go to another node, and the volume (ReadWriteOnce) can only follow when all have left",
        ),
        _ if model.gpu.is_some() => (Strategy::NoSurge, "a pod more would need GPUs more than the model has"),
        Reach::OneNode if room == Room::InPlace => (
            Strategy::NoSurge,
            "the node that has the volume (ReadWriteOnce) has no room for a pod more: an old one goes before a new one \
             comes",
        ),
        Reach::OneNode => (
            Strategy::Surge,
            "a new pod starts beside the old ones, on the node that has the volume (ReadWriteOnce)",
        ),
        Reach::ManyNodes => (Strategy::Surge, "a new pod becomes ready on any node before an old one goes"),
    };
    RolloutStatus { strategy, because: because.into() }
}

/// Where there is room for the pods of a rollout that are to join the old ones on one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Room {
    /// Beside them, as far as is known.
    Enough,
    /// Where an old pod is, when it goes.
    InPlace,
    /// On another node.
    Elsewhere,
}

/// Where there is room, from what the scheduler says of new pods.
///
/// The scheduler tells of each node the first of its filters that refuses it, and that of pod
/// affinity is the last that concerns us: a node that "didn't match pod affinity rules" could
/// run the pod and reach its volume, were it not for the old pods elsewhere. So all may
/// leave without fear. In place of an old pod a new one has room when it asks for no more.
/// Where neither is sure, the old pods go on serving.
fn room(template: &Template, deployed: &Deployment, pods: &[Pod], now: Timestamp) -> Room {
    let (new, old): (Vec<&Pod>, Vec<&Pod>) = pods
        .iter()
        .filter(|pod| pod.metadata.deletion_timestamp.is_none())
        .filter(|pod| pod.labels().get(names::COMPONENT_LABEL).is_some_and(|it| it == names::SERVER))
        .partition(|pod| pod.annotations().get(names::CONFIG_ANNOTATION) == Some(&template.key));
    if old.is_empty() {
        return Room::Enough;
    }
    // Until all are replaced: the next one would wait as this one did.
    let strategy = deployed.spec.as_ref().and_then(|spec| spec.strategy.as_ref());
    let surge = strategy.and_then(|strategy| strategy.rolling_update.as_ref()?.max_surge.clone());
    if surge == Some(IntOrString::Int(0)) && !rolled_out(deployed) {
        return Room::InPlace;
    }
    let waiting = new.iter().filter_map(|pod| Some((*pod, refusal(pod, now)?)));
    for (pod, says) in waiting {
        if says.contains("didn't match pod affinity rules") {
            return Room::Elsewhere;
        }
        let is_full = says.contains("Insufficient") && !says.contains("were unschedulable");
        if is_full && old.iter().any(|old| asks_no_more(pod, old)) {
            return Room::InPlace;
        }
    }
    Room::Enough
}

/// What the scheduler says of each node, to a pod that has waited for long.
fn refusal(pod: &Pod, now: Timestamp) -> Option<&str> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    let scheduled = conditions.iter().find(|condition| condition.type_ == "PodScheduled")?;
    let since = scheduled.last_transition_time.as_ref()?.0;
    if scheduled.status != "False" || now.duration_since(since) < PATIENCE {
        return None;
    }
    // What it says of preemption repeats the same words about other pods.
    scheduled.message.as_deref()?.split(" preemption:").next()
}

/// Whether a pod asks for at most what the other one has.
fn asks_no_more(pod: &Pod, other: &Pod) -> bool {
    let (wanted, has) = (requests(pod), requests(other));
    wanted.iter().all(|(resource, wanted)| has.get(resource).is_some_and(|has| !same::is_more(wanted, has)))
}

/// What the scheduler sets aside for the server: a limit alone is a request, too.
fn requests(pod: &Pod) -> BTreeMap<String, Quantity> {
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    let server = containers.filter(|container| container.name == names::SERVER);
    let resources: Vec<_> = server.filter_map(|container| container.resources.clone()).collect();
    let limits = resources.iter().flat_map(|resources| resources.limits.clone().unwrap_or_default());
    let requests = resources.iter().flat_map(|resources| resources.requests.clone().unwrap_or_default());
    limits.chain(requests).collect()
}

/// Whether the pods' next template could put them on another node than the last. True
/// until all have moved: a strategy that changes on the way would strand the rest.
fn moves(template: Option<&Template>, deployed: Option<&Deployment>) -> bool {
    let (Some(template), Some(deployed)) = (template, deployed) else { return false };
    let Some(spec) = &deployed.spec else { return false };
    let recreating =
        spec.strategy.as_ref().and_then(|strategy| strategy.type_.as_deref()) == Some("Recreate");
    if recreating && !rolled_out(deployed) {
        return true;
    }
    placement(&spec.template) != placement(&template.pods)
}

/// What decides on which node a pod can run.
fn placement(pods: &PodTemplateSpec) -> serde_json::Value {
    let spec = pods.spec.clone().unwrap_or_default();
    serde_json::json!({
        "nodeSelector": spec.node_selector.unwrap_or_default(),
        "affinity": spec.affinity,
        "tolerations": spec.tolerations.unwrap_or_default(),
        "runtimeClassName": spec.runtime_class_name,
    })
}

/// How many replicas the Deployment gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replicas {
    /// As many as the autoscaler says.
    Autoscaled,
    /// As many as ran when autoscaling was turned off: `replicas` has not been set anew since.
    Held(i32),
    /// As many as `replicas` says.
    Wanted(i32),
}

/// How many replicas the Deployment gets. Beside autoscaling `replicas` means nothing, so what
/// it says is no wish about the time after it, until it is changed: turning autoscaling
/// off must not take four of five replicas away under load.
pub(super) fn replicas(model: &ValidModel, deployed: Option<&Deployment>) -> Replicas {
    if model.autoscaling.is_some() {
        return Replicas::Autoscaled;
    }
    let noted = |name: &str| deployed?.annotations().get(name)?.parse::<i32>().ok();
    if noted(names::BESIDE_ANNOTATION) != Some(model.replicas) {
        return Replicas::Wanted(model.replicas);
    }
    let runs = || deployed?.spec.as_ref()?.replicas;
    match noted(names::HELD_ANNOTATION).or_else(runs) {
        Some(held) if held > 0 => Replicas::Held(held),
        _ => Replicas::Wanted(model.replicas),
    }
}

pub(super) fn deployment(
    model: &ValidModel,
    template: &Template,
    strategy: Strategy,
    replicas: Replicas,
) -> Object {
    let mut metadata =
        metadata(model, model.name.clone(), names::component_labels(&model.name, names::SERVER));
    let note = |name: &str, number: i32| (name.to_owned(), number.to_string());
    metadata.annotations = match replicas {
        Replicas::Autoscaled => Some([note(names::BESIDE_ANNOTATION, model.replicas)].into()),
        Replicas::Held(held) => {
            Some([note(names::BESIDE_ANNOTATION, model.replicas), note(names::HELD_ANNOTATION, held)].into())
        }
        Replicas::Wanted(_) => None,
    };
    let rolling = |surge: i32, unavailable: i32| DeploymentStrategy {
        type_: Some("RollingUpdate".into()),
        rolling_update: Some(RollingUpdateDeployment {
            max_surge: Some(IntOrString::Int(surge)),
            max_unavailable: Some(IntOrString::Int(unavailable)),
        }),
    };
    of_kind(
        Kind::Deployment,
        &Deployment {
            metadata,
            spec: Some(DeploymentSpec {
                progress_deadline_seconds: Some(
                    i32::try_from(template.startup_seconds + SLACK).unwrap_or(i32::MAX),
                ),
                // The autoscaler's business where there is one.
                replicas: match replicas {
                    Replicas::Autoscaled => None,
                    Replicas::Held(number) | Replicas::Wanted(number) => Some(number),
                },
                revision_history_limit: Some(2),
                selector: LabelSelector {
                    match_labels: Some(names::selector(&model.name, names::SERVER)),
                    ..LabelSelector::default()
                },
                strategy: Some(match strategy {
                    Strategy::Surge => rolling(1, 0),
                    Strategy::NoSurge => rolling(0, 1),
                    Strategy::Recreate => {
                        DeploymentStrategy { type_: Some("Recreate".into()), rolling_update: None }
                    }
                }),
                template: template.pods.clone(),
                ..DeploymentSpec::default()
            }),
            status: None,
        },
    )
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::super::observe::Observed;
    use super::super::super::validate::validate;
    use super::*;
    use crate::config::Config;
    use crate::crd::EmbeddingModel;

    const AFFINITY: &str = "node(s) didn't match pod affinity rules";

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + seconds).unwrap()
    }

    fn model(more: &Value) -> ValidModel {
        let mut spec = json!({"source": {"huggingFace": {"repo": "org/name"}}});
        for (field, value) in more.as_object().unwrap() {
            spec[field] = value.clone();
        }
        let model: EmbeddingModel = serde_json::from_value(json!({
            "apiVersion": "embeddings.kagent.dev/v1alpha1",
            "kind": "EmbeddingModel",
            "metadata": {"name": "m", "namespace": "default", "uid": "u"},
            "spec": spec,
        }))
        .unwrap();
        validate(&model, &Observed::default(), &Config::for_tests()).unwrap()
    }

    fn template() -> Template {
        serde_json::from_value(json!({
            "key": "new",
            "pods": {"spec": {"containers": []}},
            "startup_seconds": 300,
            "summary": {"commit": "c"},
        }))
        .unwrap()
    }

    /// Of the template, on its way.
    fn deployed(strategy: &Value, annotations: &Value, replicas: i32) -> Deployment {
        serde_json::from_value(json!({
            "metadata": {"name": "m", "generation": 2, "annotations": annotations},
            "spec": {
                "replicas": replicas,
                "selector": {},
                "strategy": strategy,
                "template": {"spec": {"containers": []}},
            },
        }))
        .unwrap()
    }

    /// A pod of the server; one that has no place says so since the second 0.
    fn pod(key: &str, resources: &Value, refused: Option<&str>) -> Pod {
        let conditions = refused.map(|says| {
            json!([{"type": "PodScheduled", "status": "False", "message": says, "lastTransitionTime": at(0)}])
        });
        serde_json::from_value(json!({
            "metadata": {
                "name": key,
                "labels": names::component_labels("m", names::SERVER),
                "annotations": {names::CONFIG_ANNOTATION: key},
            },
            "spec": {"containers": [{"name": "server", "resources": resources}]},
            "status": {"conditions": conditions.unwrap_or_default()},
        }))
        .unwrap()
    }

    #[test]
    fn a_rollout_without_room_beside_the_volume_takes_the_way_that_is_sure() {
        let surging = json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}});
        let (one, two) = (json!({"requests": {"cpu": "1"}}), json!({"limits": {"cpu": "2"}}));
        let full = "0/2 nodes are available: 2 Insufficient cpu.";
        let elsewhere = format!("0/2 nodes are available: 1 Insufficient cpu, 1 {AFFINITY}.");
        let only_by_preemption = format!("{full} preemption: 0/2 nodes are available: 1 {AFFINITY}.");
        let cordoned = "0/2 nodes are available: 1 Insufficient cpu, 1 node(s) were unschedulable.";
        let table = [
            (&elsewhere[..], &one, &one, 30, Strategy::Recreate),
            (&elsewhere, &two, &one, 30, Strategy::Recreate),
            (&elsewhere, &one, &one, 29, Strategy::Surge),
            (full, &one, &one, 30, Strategy::NoSurge),
            (full, &one, &two, 30, Strategy::NoSurge),
            // Where it would not fit either, the old one stays.
            (full, &two, &one, 30, Strategy::Surge),
            (&only_by_preemption, &two, &one, 30, Strategy::Surge),
            (cordoned, &one, &one, 30, Strategy::Surge),
            ("no PersistentVolume", &one, &one, 30, Strategy::Surge),
        ];
        let plain = model(&json!({}));
        for (says, new, old, seconds, expected) in table {
            let pods = [pod("new", new, Some(says)), pod("old", old, None)];
            let deployed = deployed(&surging, &json!({}), 1);
            let told = |model: &ValidModel, pods: &[Pod]| {
                rollout(model, Some(&template()), Some(&deployed), pods, at(seconds))
            };
            let rolled = told(&plain, &pods);
            assert_eq!(rolled.strategy, expected, "{says} {new} {old}: {}", rolled.because);
            assert_eq!(
                rolled.because.contains("no room"),
                expected != Strategy::Surge,
                "{says}: {}",
                rolled.because
            );
            // Nothing is to be moved: the first pods.
            assert_eq!(told(&plain, &pods[..1]).strategy, Strategy::Surge);
            // On many nodes, and with an autoscaler of nodes, there may be room soon.
            let many = model(&json!({"cache": {"accessModes": ["ReadWriteMany"]}}));
            assert_eq!(told(&many, &pods).strategy, Strategy::Surge);
        }
    }

    #[test]
    fn a_rollout_goes_on_in_the_way_in_which_it_got_on() {
        let in_place =
            json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}});
        let pods = [pod("new", &json!({}), None), pod("old", &json!({}), None)];
        let plain = model(&json!({}));
        let told = |deployed: &Deployment, pods: &[Pod]| {
            rollout(&plain, Some(&template()), Some(deployed), pods, at(60)).strategy
        };
        let mut halfway = deployed(&in_place, &json!({}), 2);
        assert_eq!(told(&halfway, &pods), Strategy::NoSurge);
        assert_eq!(told(&halfway, &pods[..1]), Strategy::Surge);
        let done = json!({
            "observedGeneration": 2, "replicas": 2, "updatedReplicas": 2, "availableReplicas": 2,
        });
        halfway.status = serde_json::from_value(done).unwrap();
        assert_eq!(told(&halfway, &pods), Strategy::Surge);
        let recreating = deployed(&json!({"type": "Recreate"}), &json!({}), 1);
        assert_eq!(told(&recreating, &pods), Strategy::Recreate);
    }

    #[test]
    fn the_number_that_ran_stays_when_autoscaling_is_turned_off_until_replicas_is_changed() {
        let beside = |number: i32| json!({names::BESIDE_ANNOTATION: number.to_string()});
        let held =
            |number: i32| json!({names::BESIDE_ANNOTATION: "1", names::HELD_ANNOTATION: number.to_string()});
        let replicas_of = |number: i32, annotations: &Value, runs: i32| {
            let found = deployed(&json!({}), annotations, runs);
            replicas(&model(&json!({"replicas": number})), Some(&found))
        };
        let table = [
            (replicas_of(1, &json!({}), 5), Replicas::Wanted(1)),
            (replicas_of(1, &beside(1), 5), Replicas::Held(5)),
            (replicas_of(2, &beside(1), 5), Replicas::Wanted(2)),
            // What somebody writes into the Deployment does not last.
            (replicas_of(1, &held(5), 9), Replicas::Held(5)),
            (replicas_of(3, &held(5), 5), Replicas::Wanted(3)),
            (replicas_of(1, &beside(1), 0), Replicas::Wanted(1)),
            (replicas(&model(&json!({})), None), Replicas::Wanted(1)),
        ];
        for (number, (found, expected)) in table.into_iter().enumerate() {
            assert_eq!(found, expected, "case {number}");
        }
        let scaling = json!({"autoscaling": {"maxReplicas": 3}, "resources": {"requests": {"cpu": "1"}}});
        let found = deployed(&json!({}), &held(5), 5);
        assert_eq!(replicas(&model(&scaling), Some(&found)), Replicas::Autoscaled);
    }
}
