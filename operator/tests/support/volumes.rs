//! A provisioner of volumes that are not there: each claim of a namespace gets one of its own,
//! and the real controller manager binds the two. Where the volumes lie somewhere, the real
//! scheduler says where.

use std::pin::pin;

use futures_util::StreamExt as _;
use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim};
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

/// Set by the scheduler on a claim whose volume is to lie where a pod can run.
const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";

/// Provisions until it is dropped. Start it before claims are made: the API server gives a
/// claim its storage class when it is created.
pub struct Provisioner {
    _tasks: JoinSet<()>,
}

impl Provisioner {
    /// Volumes that all nodes reach.
    pub async fn start(plane: &ControlPlane, namespace: &Namespace) -> Self {
        Self::serve(plane, namespace, STORAGE_CLASS, None).await
    }

    /// Volumes that the nodes reach which have the same value of a label as the one where the
    /// first pod goes: those of its zone, or only itself. Claims have to name the class.
    pub async fn start_near(
        plane: &ControlPlane,
        namespace: &Namespace,
        class: &str,
        label: &'static str,
    ) -> Self {
        Self::serve(plane, namespace, class, Some(label)).await
    }

    async fn serve(
        plane: &ControlPlane,
        namespace: &Namespace,
        class: &str,
        near: Option<&'static str>,
    ) -> Self {
        let client = plane.client_as(USER, &["system:masters"]);
        let is_default = near.is_none().to_string();
        let object = json!({
            "apiVersion": "storage.k8s.io/v1",
            "kind": "StorageClass",
            "metadata": {
                "name": class,
                "annotations": {"storageclass.kubernetes.io/is-default-class": is_default},
            },
            "provisioner": "test/none",
            "volumeBindingMode": if near.is_some() { "WaitForFirstConsumer" } else { "Immediate" },
        });
        let classes: Api<StorageClass> = Api::all(client.clone());
        apply(&classes, class, &object).await.expect("the storage class can be made");
        let mut tasks = JoinSet::new();
        tasks.spawn(watch(client, namespace.to_string(), near));
        Self { _tasks: tasks }
    }
}

async fn watch(client: Client, namespace: String, near: Option<&'static str>) {
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), &namespace);
    let mut claims = pin!(watcher(claims, watcher::Config::default()).default_backoff().applied_objects());
    while let Some(claim) = claims.next().await {
        // An error means that it watches anew, and so sees the claim again.
        let Ok(claim) = claim else { continue };
        let has_one = claim.spec.as_ref().is_some_and(|spec| spec.volume_name.is_some());
        if has_one || claim.metadata.deletion_timestamp.is_some() {
            continue;
        }
        let node = claim.annotations().get(SELECTED_NODE).cloned();
        let affinity = match (near, node) {
            (None, _) => None,
            // The scheduler changes the claim when it has a node for a pod.
            (Some(_), None) => continue,
            (Some(label), Some(node)) => Some(affinity(&client, &node, label).await),
        };
        provision(&client, &namespace, claim, affinity).await;
    }
}

/// The nodes that have the same value of a label as this one, in the words of a volume.
async fn affinity(client: &Client, node: &str, label: &str) -> Value {
    let nodes: Api<Node> = Api::all(client.clone());
    let node = nodes.get(node).await.expect("the node that the scheduler selected");
    let expression = json!({"key": label, "operator": "In", "values": [node.labels()[label]]});
    json!({"required": {"nodeSelectorTerms": [{"matchExpressions": [expression]}]}})
}

async fn provision(client: &Client, namespace: &str, claim: PersistentVolumeClaim, affinity: Option<Value>) {
    let volumes: Api<PersistentVolume> = Api::all(client.clone());
    let (name, uid, claim_name) =
        (format!("pv-{}", claim.uid().unwrap_or_default()), claim.uid(), claim.name_any());
    let spec = claim.spec.unwrap_or_default();
    let capacity = spec.resources.and_then(|resources| resources.requests);
    let mut volume = json!({
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
                "name": claim_name,
                "uid": uid,
            },
        },
    });
    if let Some(affinity) = affinity {
        volume["spec"]["nodeAffinity"] = affinity;
    }
    if let Err(error) = apply(&volumes, &name, &volume).await {
        eprintln!("{USER}: {name}: {error}");
    }
}

/// Several tests may do it at once.
async fn apply<K>(api: &Api<K>, name: &str, object: &Value) -> kube::Result<K>
where
    K: Clone + std::fmt::Debug + serde::de::DeserializeOwned,
{
    api.patch(name, &PatchParams::apply(USER).force(), &Patch::Apply(object)).await
}
