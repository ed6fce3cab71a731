//! What others see of the model: its Service, who its pods are, and its metrics.

use k8s_openapi::api::core::v1::{Service, ServiceAccount, ServicePort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::json;

use super::{metadata, names, of_kind};
use crate::controller::object::{Kind, Object};
use crate::controller::validate::ValidModel;

pub(super) fn service(model: &ValidModel) -> Object {
    let mut metadata =
        metadata(model, model.name.clone(), names::component_labels(&model.name, names::SERVER));
    metadata.annotations = Some(model.service.annotations.clone()).filter(|map| !map.is_empty());
    of_kind(
        Kind::Service,
        &Service {
            metadata,
            spec: Some(ServiceSpec {
                type_: Some(format!("{:?}", model.service.kind)),
                selector: Some(names::selector(&model.name, names::SERVER)),
                ports: Some(vec![ServicePort {
                    app_protocol: Some("http".into()),
                    name: Some("http".into()),
                    port: model.service.port,
                    protocol: Some("TCP".into()),
                    target_port: Some(IntOrString::String("http".into())),
                    ..ServicePort::default()
                }]),
                ..ServiceSpec::default()
            }),
            status: None,
        },
    )
}

/// Without any rights, and not even a token of it is mounted.
pub(super) fn account(model: &ValidModel) -> Object {
    of_kind(
        Kind::ServiceAccount,
        &ServiceAccount {
            metadata: metadata(model, model.name.clone(), names::labels(&model.name)),
            automount_service_account_token: Some(false),
            ..ServiceAccount::default()
        },
    )
}

pub(super) fn monitor(model: &ValidModel) -> Option<Object> {
    if !model.monitoring.service_monitor {
        return None;
    }
    let mut labels = model.monitoring.labels.clone();
    labels.extend(names::labels(&model.name));
    Some(of_kind(
        Kind::ServiceMonitor,
        &json!({
            "metadata": metadata(model, model.name.clone(), labels),
            "spec": {
                "endpoints": [{"port": "http", "path": "/metrics"}],
                "selector": {"matchLabels": names::selector(&model.name, names::SERVER)},
            },
        }),
    ))
}
