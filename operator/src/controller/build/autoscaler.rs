//! The autoscaler of the Deployment.

use k8s_openapi::api::autoscaling::v2::{
    CrossVersionObjectReference, HorizontalPodAutoscaler, HorizontalPodAutoscalerSpec, MetricIdentifier,
    MetricSpec, MetricTarget, PodsMetricSource, ResourceMetricSource,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::{metadata, names, of_kind};
use crate::controller::object::{Kind, Object};
use crate::controller::validate::ValidModel;
use crate::crd::Autoscaling;

/// The tokens in line before a server's workers, as it exports them. It has one value a model,
/// and our pods serve one model each.
const WAITING_TOKENS: &str = "embedding_waiting_tokens";

pub(super) fn autoscaler(model: &ValidModel) -> Option<Object> {
    let autoscaling = model.autoscaling.as_ref()?;
    Some(of_kind(
        Kind::HorizontalPodAutoscaler,
        &HorizontalPodAutoscaler {
            metadata: metadata(model, model.name.clone(), names::labels(&model.name)),
            spec: Some(HorizontalPodAutoscalerSpec {
                behavior: autoscaling.behavior.clone(),
                max_replicas: autoscaling.max_replicas,
                metrics: Some(metrics(autoscaling)),
                min_replicas: Some(autoscaling.min_replicas),
                scale_target_ref: CrossVersionObjectReference {
                    api_version: Some("apps/v1".into()),
                    kind: "Deployment".into(),
                    name: model.name.clone(),
                },
            }),
            status: None,
        },
    ))
}

/// What is aimed at. Of several, the autoscaler follows the one that asks for most replicas.
fn metrics(autoscaling: &Autoscaling) -> Vec<MetricSpec> {
    let cpu = autoscaling.cpu_target().map(|percentage| MetricSpec {
        type_: "Resource".into(),
        resource: Some(ResourceMetricSource {
            name: "cpu".into(),
            target: MetricTarget {
                type_: "Utilization".into(),
                average_utilization: Some(percentage),
                ..MetricTarget::default()
            },
        }),
        ..MetricSpec::default()
    });
    let queue = autoscaling.target_queued_tokens_per_replica.map(|tokens| MetricSpec {
        type_: "Pods".into(),
        pods: Some(PodsMetricSource {
            metric: MetricIdentifier { name: WAITING_TOKENS.into(), selector: None },
            target: MetricTarget {
                type_: "AverageValue".into(),
                average_value: Some(Quantity(tokens.to_string())),
                ..MetricTarget::default()
            },
        }),
        ..MetricSpec::default()
    });
    cpu.into_iter().chain(queue).collect()
}
