//! Who may call the pods, and how many of them may be away at once.

use k8s_openapi::api::networking::v1::{
    NetworkPolicy, NetworkPolicyIngressRule, NetworkPolicyPeer, NetworkPolicyPort, NetworkPolicySpec,
};
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::{Replicas, metadata, names, of_kind};
use crate::controller::object::{Kind, Object};
use crate::controller::validate::ValidModel;

pub(super) fn network(model: &ValidModel) -> Option<Object> {
    let peers = &model.network.allow_from;
    if peers.is_empty() {
        return None;
    }
    let peers = peers.iter().map(|peer| NetworkPolicyPeer {
        pod_selector: peer.pod_selector.clone(),
        namespace_selector: peer.namespace_selector.clone(),
        ip_block: None,
    });
    Some(of_kind(
        Kind::NetworkPolicy,
        &NetworkPolicy {
            metadata: metadata(model, model.name.clone(), names::labels(&model.name)),
            spec: Some(NetworkPolicySpec {
                pod_selector: Some(LabelSelector {
                    match_labels: Some(names::selector(&model.name, names::SERVER)),
                    ..LabelSelector::default()
                }),
                policy_types: Some(vec!["Ingress".into()]),
                ingress: Some(vec![NetworkPolicyIngressRule {
                    from: Some(peers.collect()),
                    ports: Some(vec![NetworkPolicyPort {
                        port: Some(IntOrString::String("http".into())),
                        protocol: Some("TCP".into()),
                        end_port: None,
                    }]),
                }]),
                egress: None,
            }),
        },
    ))
}

/// From two replicas on. Not where all pods share a volume's node: a drain of that node
/// has to move all of them, and a budget would hold it up for ever.
pub(super) fn disruption_budget(model: &ValidModel, replicas: Replicas) -> Option<Object> {
    let least = match (replicas, &model.autoscaling) {
        (Replicas::Held(number) | Replicas::Wanted(number), _) => number,
        (Replicas::Autoscaled, autoscaling) => autoscaling.as_ref().map_or(1, |it| it.min_replicas),
    };
    if least < 2 || model.on_one_node() {
        return None;
    }
    Some(of_kind(
        Kind::PodDisruptionBudget,
        &PodDisruptionBudget {
            metadata: metadata(model, model.name.clone(), names::labels(&model.name)),
            spec: Some(PodDisruptionBudgetSpec {
                max_unavailable: Some(IntOrString::Int(1)),
                selector: Some(LabelSelector {
                    match_labels: Some(names::selector(&model.name, names::SERVER)),
                    ..LabelSelector::default()
                }),
                // A pod that is broken anyway must not hold up a drain.
                unhealthy_pod_eviction_policy: Some("AlwaysAllow".into()),
                min_available: None,
            }),
            status: None,
        },
    ))
}
