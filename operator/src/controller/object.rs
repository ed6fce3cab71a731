//! The kinds of objects that a model is made of, and one such object.

use kube::ResourceExt;
use kube::api::{ApiResource, DynamicObject};
use kube::core::GroupVersionKind;
use serde::Serialize;

/// A kind of object that is made for a model, in the order in which they are applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Who the pods are.
    ServiceAccount,
    /// The model's cache.
    PersistentVolumeClaim,
    /// What clients call.
    Service,
    /// Who may call.
    NetworkPolicy,
    /// Records of what was fetched and of pod templates.
    ControllerRevision,
    /// What fetches.
    Job,
    /// What serves.
    Deployment,
    /// What scales.
    HorizontalPodAutoscaler,
    /// How many may be away.
    PodDisruptionBudget,
    /// Who scrapes metrics.
    ServiceMonitor,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::ServiceAccount,
        Self::PersistentVolumeClaim,
        Self::Service,
        Self::NetworkPolicy,
        Self::ControllerRevision,
        Self::Job,
        Self::Deployment,
        Self::HorizontalPodAutoscaler,
        Self::PodDisruptionBudget,
        Self::ServiceMonitor,
    ];

    /// Where the API server has them.
    pub fn resource(self) -> ApiResource {
        let (group, version, kind) = match self {
            Self::ServiceAccount => ("", "v1", "ServiceAccount"),
            Self::PersistentVolumeClaim => ("", "v1", "PersistentVolumeClaim"),
            Self::Service => ("", "v1", "Service"),
            Self::NetworkPolicy => ("networking.k8s.io", "v1", "NetworkPolicy"),
            Self::ControllerRevision => ("apps", "v1", "ControllerRevision"),
            Self::Job => ("batch", "v1", "Job"),
            Self::Deployment => ("apps", "v1", "Deployment"),
            Self::HorizontalPodAutoscaler => ("autoscaling", "v2", "HorizontalPodAutoscaler"),
            Self::PodDisruptionBudget => ("policy", "v1", "PodDisruptionBudget"),
            Self::ServiceMonitor => ("monitoring.coreos.com", "v1", "ServiceMonitor"),
        };
        ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind))
    }
}

/// Whether the object with this unique id is an owner of `object`.
pub fn is_owned_by(object: &impl ResourceExt, uid: &str) -> bool {
    object.owner_references().iter().any(|owner| owner.uid == uid)
}

/// An object as it should be.
#[derive(Clone, Debug, PartialEq)]
pub struct Object {
    /// Its kind.
    pub kind: Kind,
    /// All of it.
    pub value: DynamicObject,
}

impl Object {
    /// From its type.
    ///
    /// # Panics
    ///
    /// When `value` is no JSON: types of Kubernetes' API are.
    pub fn new(kind: Kind, value: &impl Serialize) -> Self {
        let json = serde_json::to_value(value).expect("an API object is JSON");
        let mut value: DynamicObject = serde_json::from_value(json).expect("an API object has metadata");
        let resource = kind.resource();
        value.types = Some(kube::core::TypeMeta { api_version: resource.api_version, kind: resource.kind });
        Self { kind, value }
    }

    /// Its name.
    pub fn name(&self) -> String {
        self.value.name_any()
    }
}
