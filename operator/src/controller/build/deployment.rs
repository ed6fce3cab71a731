//! The Deployment, and how it replaces pods.

use k8s_openapi::api::apps::v1::{Deployment, DeploymentSpec, DeploymentStrategy, RollingUpdateDeployment};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::{Template, metadata, names, of_kind, rolled_out};
use crate::controller::object::{Kind, Object};
use crate::controller::validate::ValidModel;
use crate::crd::status::{RolloutStatus, Strategy};

/// How much longer than a start a rollout may stand still before it counts as stuck: for
/// scheduling and pulling images.
const SLACK: i64 = 300;

/// How pods are replaced, and why in this way.
pub(super) fn rollout(
    model: &ValidModel,
    template: Option<&Template>,
    deployed: Option<&Deployment>,
) -> RolloutStatus {
    let (strategy, because) = if model.on_one_node() && moves(template, deployed) {
        (
            Strategy::Recreate,
            "the pods may have to go to another node, and the volume (ReadWriteOnce) can only follow when all have left",
        )
    } else if model.gpu.is_some() {
        (Strategy::NoSurge, "a pod more would need GPUs more than the model has")
    } else if model.on_one_node() {
        (
            Strategy::Surge,
            "a new pod starts beside the old ones, on the node that has the volume (ReadWriteOnce)",
        )
    } else {
        (Strategy::Surge, "a new pod becomes ready on any node before an old one goes")
    };
    RolloutStatus { strategy, because: because.into() }
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

pub(super) fn deployment(model: &ValidModel, template: &Template, strategy: Strategy) -> Object {
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
            metadata: metadata(
                model,
                model.name.clone(),
                names::component_labels(&model.name, names::SERVER),
            ),
            spec: Some(DeploymentSpec {
                progress_deadline_seconds: Some(
                    i32::try_from(template.startup_seconds + SLACK).unwrap_or(i32::MAX),
                ),
                // The autoscaler's business where there is one.
                replicas: model.autoscaling.is_none().then_some(model.replicas),
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
