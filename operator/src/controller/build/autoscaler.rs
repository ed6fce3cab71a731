//! The autoscaler of the Deployment.

use k8s_openapi::api::autoscaling::v2::{
    CrossVersionObjectReference, HorizontalPodAutoscaler, HorizontalPodAutoscalerSpec, MetricSpec,
    MetricTarget, ResourceMetricSource,
};

use super::{metadata, names, of_kind};
use crate::controller::object::{Kind, Object};
use crate::controller::validate::ValidModel;

pub(super) fn autoscaler(model: &ValidModel) -> Option<Object> {
    let autoscaling = model.autoscaling.as_ref()?;
    Some(of_kind(
        Kind::HorizontalPodAutoscaler,
        &HorizontalPodAutoscaler {
            metadata: metadata(model, model.name.clone(), names::labels(&model.name)),
            spec: Some(HorizontalPodAutoscalerSpec {
                behavior: autoscaling.behavior.clone(),
                max_replicas: autoscaling.max_replicas,
                metrics: Some(vec![MetricSpec {
                    type_: "Resource".into(),
                    resource: Some(ResourceMetricSource {
                        name: "cpu".into(),
                        target: MetricTarget {
                            type_: "Utilization".into(),
                            average_utilization: Some(autoscaling.target_cpu_utilization_percentage),
                            ..MetricTarget::default()
                        },
                    }),
                    ..MetricSpec::default()
                }]),
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
