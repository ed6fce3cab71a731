//! The Deployment, and how it replaces pods.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::{Deployment, DeploymentSpec, DeploymentStrategy, RollingUpdateDeployment};
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt as _;
use serde_json::json;

use super::{Template, is_over, metadata, names, of_kind, pod, records, rolled_out};
use crate::controller::object::{Kind, Object};
use crate::controller::observe::Observed;
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
    observed: &Observed,
    now: Timestamp,
) -> RolloutStatus {
    let room = match (template, deployed) {
        (Some(template), Some(deployed)) if model.reach() == Reach::OneNode => {
            room(template, deployed, &observed.pods, now)
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
        Reach::OneNode if moves(template, deployed, observed) => (
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
/// A pod that goes makes room for one that asks for no more than it, where the scheduler
/// misses nothing but room on its node. And a node that "didn't match pod affinity rules"
/// has room for the pod and reaches its volume, were it not for the old pods elsewhere: the
/// scheduler tells of each node the first of its filters that refuses it, and before that of
/// affinity come those of resources, taints and volumes. That is said of one pod, so
/// only a model of one replica moves for it. Where neither is sure, the old pods go on serving.
fn room(template: &Template, deployed: &Deployment, pods: &[Pod], now: Timestamp) -> Room {
    let (new, old): (Vec<&Pod>, Vec<&Pod>) = pods
        .iter()
        .filter(|pod| pod.metadata.deletion_timestamp.is_none() && !is_over(pod))
        .filter(|pod| names::is_of(pod, names::SERVER))
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
    let alone = deployed.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1) <= 1;
    let waiting = new.iter().filter_map(|pod| Some((*pod, refusal(pod, now)?)));
    for (pod, says) in waiting {
        if lacks_only_room(says, alone) && old.iter().all(|old| asks_no_more(pod, old)) {
            return Room::InPlace;
        }
        if alone && says.contains(OTHER_AFFINITY) && !has_affinities_of_its_own(template) {
            return Room::Elsewhere;
        }
    }
    Room::Enough
}

/// What the scheduler says of a node that the other pods of the model keep a pod from.
const OTHER_AFFINITY: &str = "didn't match pod affinity rules";

/// Whether a pod could run on the volume's node but for what its predecessors use there. The
/// node is not named among those of the refusal: where the last replica is at stake, each
/// has to be full or be out of question for another reason than its state.
fn lacks_only_room(says: &str, alone: bool) -> bool {
    let is_full = |why: &str| why.contains("Insufficient ") || why.contains("Too many pods");
    let is_out = |why: &str| {
        why.contains(OTHER_AFFINITY)
            || why.contains("didn't match PersistentVolume's node affinity")
            || why.contains("volume node affinity conflict") // The same of older schedulers.
            || why.contains("node-role.kubernetes.io/control-plane")
            || (!alone && !why.contains("were unschedulable"))
    };
    let nodes = says.split_once(": ").map_or(says, |(_, nodes)| nodes);
    nodes.split(", ").any(is_full) && nodes.split(", ").all(|why| is_full(why) || is_out(why))
}

/// Whether there are other terms than ours that only come into question when that is met.
fn has_affinities_of_its_own(template: &Template) -> bool {
    let affinity = template.pods.spec.as_ref().and_then(|spec| spec.affinity.as_ref());
    let together = affinity
        .and_then(|affinity| {
            affinity.pod_affinity.as_ref()?.required_during_scheduling_ignored_during_execution.as_ref()
        })
        .map_or(0, Vec::len);
    let apart = affinity
        .and_then(|affinity| {
            affinity.pod_anti_affinity.as_ref()?.required_during_scheduling_ignored_during_execution.as_ref()
        })
        .map_or(0, Vec::len);
    together > 1 || apart > 0
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
    let at_most = |wanted: &Quantity, has: &Quantity| {
        same::is_more(has, wanted) || same::covers(&json!(wanted), &json!(has))
    };
    wanted.iter().all(|(resource, wanted)| has.get(resource).is_some_and(|has| at_most(wanted, has)))
}

/// What the scheduler sets aside for the server.
fn requests(pod: &Pod) -> BTreeMap<String, Quantity> {
    let mut containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    let server = containers.find(|container| container.name == names::SERVER);
    let resources = server.and_then(|container| container.resources.clone());
    resources.map(pod::effective_requests).unwrap_or_default()
}

/// Whether the pods' next template could put them on another node than the last. True
/// until all have moved: a strategy that changes on the way would strand the rest.
fn moves(template: Option<&Template>, deployed: Option<&Deployment>, observed: &Observed) -> bool {
    let (Some(template), Some(deployed)) = (template, deployed) else { return false };
    let Some(spec) = &deployed.spec else { return false };
    let recreating =
        spec.strategy.as_ref().and_then(|strategy| strategy.type_.as_deref()) == Some("Recreate");
    if recreating && !rolled_out(deployed) {
        return true;
    }
    // As it was decided: what a policy of the cluster added to the Deployment it adds again.
    let was = records::of_deployed(observed, deployed).map_or_else(|| spec.template.clone(), |was| was.pods);
    placement(&was) != placement(&template.pods)
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
        Some(held) if held > 0 && (held == 1 || model.reach() != Reach::OnePod) => Replicas::Held(held),
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
    use serde_json::Value;

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

    fn seen(pods: &[Pod]) -> Observed {
        Observed { pods: pods.to_vec(), ..Observed::default() }
    }

    #[test]
    fn a_rollout_without_room_beside_the_volume_takes_the_way_that_is_sure() {
        let surging = json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}});
        let (one, two) = (json!({"requests": {"cpu": "1"}}), json!({"limits": {"cpu": "2"}}));
        let odd = json!({"requests": {"cpu": "1", "example.com/odd": "?"}});
        let full = "0/2 nodes are available: 2 Insufficient cpu.";
        let elsewhere = format!("0/2 nodes are available: 1 Insufficient cpu, 1 {AFFINITY}.");
        let by_preemption = format!("{full} preemption: 0/2 nodes are available: 1 {AFFINITY}.");
        let tainted = "0/2 nodes are available: 1 Insufficient cpu, 1 node(s) had untolerated taint(s).";
        let masters = "0/2 nodes are available: 1 Too many pods, 1 node(s) had untolerated taint \
                       {node-role.kubernetes.io/control-plane: }.";
        let zonal = "0/2 nodes are available: 1 Insufficient cpu, 1 node(s) didn't match PersistentVolume's node affinity.";
        let older =
            "0/2 nodes are available: 1 Insufficient cpu, 1 node(s) had volume node affinity conflict.";
        let cordoned = "0/2 nodes are available: 1 Insufficient cpu, 1 node(s) were unschedulable.";
        let evicted = "0/2 nodes are available: 1 node(s) were unschedulable, 1 node(s) didn't match pod affinity rules.";
        // What is said, what new and old ask for, and what becomes of one replica, and of two.
        let (surge, in_place, moved) = (Strategy::Surge, Strategy::NoSurge, Strategy::Recreate);
        let table = [
            (&elsewhere[..], &one, &one, in_place, in_place),
            (&elsewhere, &two, &one, moved, surge),
            (evicted, &one, &one, moved, surge),
            (full, &one, &one, in_place, in_place),
            (full, &one, &two, in_place, in_place),
            // Where it would not fit either, the old one stays.
            (full, &two, &one, surge, surge),
            (full, &odd, &one, surge, surge),
            (full, &odd, &odd, in_place, in_place),
            (&by_preemption, &two, &one, surge, surge),
            // It may be the volume's node.
            (tainted, &one, &one, surge, in_place),
            (masters, &one, &one, in_place, in_place),
            (zonal, &one, &one, in_place, in_place),
            (zonal, &two, &one, surge, surge),
            (older, &one, &one, in_place, in_place),
            (cordoned, &one, &one, surge, surge),
            ("no PersistentVolume", &one, &one, surge, surge),
        ];
        let plain = model(&json!({}));
        let many = model(&json!({"cache": {"accessModes": ["ReadWriteMany"]}}));
        for (says, new, old, alone, together) in table {
            for (replicas, expected) in [(1, alone), (2, together)] {
                let deployed = deployed(&surging, &json!({}), replicas);
                let told = |model: &ValidModel, pods: &[Pod], seconds: i64| {
                    rollout(model, Some(&template()), Some(&deployed), &seen(pods), at(seconds))
                };
                let pods = [pod("new", new, Some(says)), pod("old", old, None)];
                let rolled = told(&plain, &pods, 30);
                assert_eq!(rolled.strategy, expected, "{says} {new} {old}: {}", rolled.because);
                assert_eq!(rolled.because.contains("no room"), expected != surge, "{}", rolled.because);
                assert_eq!(told(&plain, &pods, 29).strategy, surge, "not at once");
                assert_eq!(told(&plain, &pods[..1], 30).strategy, surge, "these are the first pods");
                assert_eq!(told(&many, &pods, 30).strategy, surge, "a node may come");
                let mut over = pods;
                over[1].status = serde_json::from_value(json!({"phase": "Failed"})).unwrap();
                assert_eq!(told(&plain, &over, 30).strategy, surge, "nothing is in the way");
            }
        }
    }

    #[test]
    fn a_model_with_affinities_of_its_own_does_not_move_on_the_schedulers_word() {
        let says = format!("0/2 nodes are available: 1 Insufficient cpu, 1 {AFFINITY}.");
        let pods = [
            pod("new", &json!({"requests": {"cpu": "2"}}), Some(&says)),
            pod("old", &json!({"requests": {"cpu": "1"}}), None),
        ];
        let deployed = deployed(&json!({}), &json!({}), 1);
        let term = json!({"topologyKey": "kubernetes.io/hostname"});
        let required = |terms: Value| json!({"requiredDuringSchedulingIgnoredDuringExecution": terms});
        for (affinity, expected) in [
            (json!({"podAffinity": required(json!([term]))}), Room::Elsewhere),
            (json!({"podAffinity": required(json!([term, term]))}), Room::Enough),
            (json!({"podAntiAffinity": required(json!([term]))}), Room::Enough),
        ] {
            let mut template = template();
            template.pods.spec.as_mut().unwrap().affinity = serde_json::from_value(affinity).unwrap();
            assert_eq!(room(&template, &deployed, &pods, at(30)), expected);
        }
    }

    #[test]
    fn a_rollout_goes_on_in_the_way_in_which_it_got_on() {
        let in_place =
            json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}});
        let pods = [pod("new", &json!({}), None), pod("old", &json!({}), None)];
        let plain = model(&json!({}));
        let told = |deployed: &Deployment, pods: &[Pod]| {
            rollout(&plain, Some(&template()), Some(deployed), &seen(pods), at(60)).strategy
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
    fn what_a_policy_of_the_cluster_adds_to_pods_is_no_move() {
        let plain = model(&json!({}));
        let mut recorded = template();
        recorded.key = "old".into();
        let record = super::super::of_kind(
            Kind::ControllerRevision,
            &json!({
                "metadata": {"name": "r", "labels": {names::RECORD_LABEL: "template"}},
                "revision": 1,
                "data": recorded,
            }),
        );
        let mut observed = Observed::default();
        observed.children.insert((Kind::ControllerRevision, "r".into()), record.value);
        let mut found = deployed(&json!({}), &json!({}), 1);
        let pods = &mut found.spec.as_mut().unwrap().template;
        pods.metadata =
            serde_json::from_value(json!({"annotations": {names::CONFIG_ANNOTATION: "old"}})).unwrap();
        pods.spec.as_mut().unwrap().node_selector = Some([("pool".to_owned(), "theirs".to_owned())].into());
        let told = |template: &Template, observed: &Observed| {
            rollout(&plain, Some(template), Some(&found), observed, at(60)).strategy
        };
        assert_eq!(told(&template(), &observed), Strategy::Surge);
        assert_eq!(told(&template(), &Observed::default()), Strategy::Recreate);
        let mut elsewhere = template();
        elsewhere.pods.spec.as_mut().unwrap().node_selector =
            Some([("pool".to_owned(), "b".to_owned())].into());
        assert_eq!(told(&elsewhere, &observed), Strategy::Recreate);
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
