//! A provisioner of volumes that are not there: each claim of a namespace gets one of its own,
//! and the real controller manager binds the two.

use std::pin::pin;

use futures_util::StreamExt as _;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::api::{Patch, PatchParams};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client, ResourceExt as _};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::cluster::{ControlPlane, Namespace};

/// The user that its requests are from.
pub const USER: &str = "fake-provisioner";
/// The storage class that claims get which name none.
pub const STORAGE_CLASS: &str = "fake";

/// Provisions until it is dropped. Start it before claims are made: the API server gives a
/// claim its storage class when it is created.
pub struct Provisioner {
    _tasks: JoinSet<()>,
}

impl Provisioner {
    pub async fn start(plane: &ControlPlane, namespace: &Namespace) -> Self {
        let client = plane.client_as(USER, &["system:masters"]);
        let class = json!({
            "apiVersion": "storage.k8s.io/v1",
            "kind": "StorageClass",
            "metadata": {
                "name": STORAGE_CLASS,
                "annotations": {"storageclass.kubernetes.io/is-default-class": "true"},
            },
            "provisioner": "test/none",
            "volumeBindingMode": "Immediate",
        });
        let classes: Api<StorageClass> = Api::all(client.clone());
        apply(&classes, STORAGE_CLASS, &class).await.expect("the storage class can be made");
        let mut tasks = JoinSet::new();
        tasks.spawn(watch(client, namespace.to_string()));
        Self { _tasks: tasks }
    }
}

async fn watch(client: Client, namespace: String) {
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), &namespace);
    let volumes: Api<PersistentVolume> = Api::all(client);
    let mut claims = pin!(watcher(claims, watcher::Config::default()).default_backoff().applied_objects());
    while let Some(claim) = claims.next().await {
        // An error means that it watches anew, and so sees the claim again.
        let Ok(claim) = claim else { continue };
        let spec = claim.spec.clone().unwrap_or_default();
        if spec.volume_name.is_some() || claim.metadata.deletion_timestamp.is_some() {
            continue;
        }
        let name = format!("pv-{}", claim.uid().unwrap_or_default());
        let capacity = spec.resources.and_then(|resources| resources.requests);
        let volume = json!({
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": name},
            "spec": {
                "capacity": capacity,
                "accessModes": spec.access_modes,
                "volumeMode": spec.volume_mode,
                "storageClassName": spec.storage_class_name.unwrap_or_default(),
                // There is nothing that could be deleted with it.
                "persistentVolumeReclaimPolicy": "Retain",
                "hostPath": {"path": "/nonexistent"},
                "claimRef": {
                    "apiVersion": "v1",
                    "kind": "PersistentVolumeClaim",
                    "namespace": namespace,
                    "name": claim.name_any(),
                    "uid": claim.uid(),
                },
            },
        });
        if let Err(error) = apply(&volumes, &name, &volume).await {
            eprintln!("{USER}: {name}: {error}");
        }
    }
}

/// Several tests may do it at once.
async fn apply<K>(api: &Api<K>, name: &str, object: &Value) -> kube::Result<K>
where
    K: Clone + std::fmt::Debug + serde::de::DeserializeOwned,
{
    api.patch(name, &PatchParams::apply(USER).force(), &Patch::Apply(object)).await
}
