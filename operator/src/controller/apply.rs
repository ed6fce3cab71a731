//! The objects that should be become those that are, with as few writes as can be: none
//! when nothing differs.
//!
//! # Guarantees
//!
//! - Every write is a server-side apply of the whole object as we want it, so fields of
//!   others stay, and what we no longer want goes.
//! - An object that is not ours is never written to nor deleted.
//! - Objects are applied in the order of [`Kind`], so each finds what it needs.

use kube::api::{Api, DeleteParams, DynamicObject, Patch, PatchParams, Preconditions, PropagationPolicy};
use kube::{Client, ResourceExt as _};
use serde_json::{Value, json};

use super::build::{Desired, names};
use super::object::{Kind, Object};
use super::observe::Observed;
use super::same;
use super::validate::ValidModel;
use crate::crd::status::Reason;

/// A write that failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An object of that name is not ours.
    #[error(
        "there is a {kind} {name} already that is not of this EmbeddingModel: rename or remove one of them",
        kind = .kind.resource().kind
    )]
    NameConflict {
        /// The kind of object.
        kind: Kind,
        /// Its name.
        name: String,
    },
    /// The API server refused, or could not be reached.
    #[error("{verb} {kind} {name}", kind = .kind.resource().kind)]
    Write {
        /// What was tried.
        verb: &'static str,
        /// The kind of object.
        kind: Kind,
        /// Its name.
        name: String,
        /// Why it failed.
        source: kube::Error,
    },
}

impl Error {
    /// The word for the status.
    pub fn reason(&self) -> Reason {
        let message = match self {
            Self::NameConflict { .. } => return Reason::NameConflict,
            Self::Write { source: kube::Error::Api(status), .. } => &status.message,
            Self::Write { .. } => return Reason::ApplyFailed,
        };
        match self {
            _ if message.contains("exceeded quota") => Reason::QuotaExceeded,
            Self::Write { kind: Kind::PersistentVolumeClaim, .. } => Reason::VolumeFailed,
            _ => Reason::ApplyFailed,
        }
    }
}

/// Makes the objects what they should be. Returns how many writes that took.
pub async fn apply(
    client: &Client,
    model: &ValidModel,
    observed: &Observed,
    desired: &Desired,
) -> Result<usize, Error> {
    let mut writes = 0;
    // An autoscaler that is not wanted any more would undo the number that is applied next.
    writes += prune(client, model, observed, desired, |kind| kind == Kind::HorizontalPodAutoscaler).await?;
    for object in &desired.objects {
        writes += apply_one(client, model, observed, object).await?;
    }
    writes += prune(client, model, observed, desired, |kind| kind != Kind::HorizontalPodAutoscaler).await?;
    Ok(writes)
}

/// Deletes what is ours and not wanted any more. Returns how many deletions that took.
async fn prune(
    client: &Client,
    model: &ValidModel,
    observed: &Observed,
    desired: &Desired,
    concerns: impl Fn(Kind) -> bool,
) -> Result<usize, Error> {
    let mut writes = 0;
    for ((kind, name), found) in observed.children.iter().filter(|((kind, _), _)| concerns(*kind)) {
        let wanted = desired.objects.iter().any(|object| object.kind == *kind && object.name() == *name);
        if wanted || !is_ours(found, model) || found.metadata.deletion_timestamp.is_some() {
            continue;
        }
        // Pods of the last template may still need it.
        if *kind == Kind::PersistentVolumeClaim && !is_rolled_out(observed, model, desired) {
            continue;
        }
        delete(client, model, *kind, found).await?;
        writes += 1;
    }
    Ok(writes)
}

/// Whether an object goes with the model.
fn is_ours(found: &DynamicObject, model: &ValidModel) -> bool {
    found.owner_references().iter().any(|owner| owner.uid == model.uid)
}

/// A claim that was retained by a model of the same name and source may be taken up again:
/// it has all of our labels, and no owner.
fn is_retained(found: &DynamicObject, object: &Object) -> bool {
    let labelled = |(key, value): (&String, &String)| found.labels().get(key) == Some(value);
    object.kind == Kind::PersistentVolumeClaim
        && found.owner_references().is_empty()
        && found.labels().contains_key(names::SOURCE_LABEL)
        && object.value.labels().iter().all(labelled)
}

fn is_rolled_out(observed: &Observed, model: &ValidModel, desired: &Desired) -> bool {
    observed.deployment(&model.name).is_none_or(|deployed| {
        let pods = deployed.spec.as_ref().map(|spec| &spec.template);
        let volumes = |pods: Option<&k8s_openapi::api::core::v1::PodTemplateSpec>| {
            pods.and_then(|pods| pods.spec.as_ref()?.volumes.clone())
        };
        volumes(pods) == volumes(desired.template.as_ref().map(|template| &template.pods))
            && super::build::rolled_out(&deployed)
    })
}

async fn apply_one(
    client: &Client,
    model: &ValidModel,
    observed: &Observed,
    object: &Object,
) -> Result<usize, Error> {
    let (kind, name) = (object.kind, object.name());
    let api = api(client, model, kind);
    let failed = |verb: &'static str| {
        let name = name.clone();
        move |source| Error::Write { verb, kind, name, source }
    };
    let found = match observed.children.get(&(kind, name.clone())) {
        Some(found) => Some(found.clone()),
        // Somebody else's has not our label; or it lost it.
        None => api.get_opt(&name).await.map_err(failed("reading"))?,
    };
    let mut wanted = object.value.clone();
    let hash = names::short_hash(&wanted);
    wanted.annotations_mut().insert(names::APPLIED_ANNOTATION.into(), hash.clone());
    if let Some(found) = &found {
        if !is_ours(found, model) && !is_retained(found, object) {
            return Err(Error::NameConflict { kind, name });
        }
        // What is going comes back when it is gone. A Job is what it was made as.
        if found.metadata.deletion_timestamp.is_some() || kind == Kind::Job {
            return Ok(0);
        }
        if is_same(found, &wanted) {
            return Ok(0);
        }
        if kind == Kind::Deployment && gives_up_replicas(found, &wanted) {
            hand_over_replicas(&api, found).await.map_err(failed("handing over the replicas of"))?;
        }
    }
    let force = PatchParams::apply(names::FIELD_MANAGER).force();
    api.patch(&name, &force, &Patch::Apply(&wanted)).await.map_err(failed("applying"))?;
    Ok(1)
}

/// Whether applying `wanted` would change nothing: it is what was applied last, and all of
/// its fields are still as it says.
fn is_same(found: &DynamicObject, wanted: &DynamicObject) -> bool {
    let hash = |object: &DynamicObject| object.annotations().get(names::APPLIED_ANNOTATION).cloned();
    hash(found) == hash(wanted) && same::covers(&json(wanted), &json(found))
}

/// Whether the Deployment that is applied next leaves `replicas` to the autoscaler, while
/// the last one did not: the API server would set a field without owners to its default.
fn gives_up_replicas(found: &DynamicObject, wanted: &DynamicObject) -> bool {
    let owned = found.managed_fields().iter().any(|entry| {
        entry.manager.as_deref() == Some(names::FIELD_MANAGER)
            && entry.operation.as_deref() == Some("Apply")
            && entry.fields_v1.as_ref().is_some_and(|fields| fields.0["f:spec"]["f:replicas"].is_object())
    });
    owned && wanted.data["spec"]["replicas"].is_null()
}

/// Another manager says the same number, so that it stays when we let go of it. The
/// autoscaler takes it from there.
async fn hand_over_replicas(api: &Api<DynamicObject>, found: &DynamicObject) -> Result<(), kube::Error> {
    let resource = Kind::Deployment.resource();
    let holding = json!({
        "apiVersion": resource.api_version,
        "kind": resource.kind,
        "metadata": {"name": found.name_any()},
        "spec": {"replicas": found.data["spec"]["replicas"]},
    });
    let force = PatchParams::apply(names::HANDOVER_MANAGER).force();
    api.patch(&found.name_any(), &force, &Patch::Apply(&holding)).await.map(drop)
}

async fn delete(client: &Client, model: &ValidModel, kind: Kind, found: &DynamicObject) -> Result<(), Error> {
    let name = found.name_any();
    let parameters = DeleteParams {
        propagation_policy: Some(PropagationPolicy::Background),
        // Not one that took its place meanwhile.
        preconditions: Some(Preconditions { uid: found.uid(), resource_version: None }),
        ..DeleteParams::default()
    };
    match api(client, model, kind).delete(&name, &parameters).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
        Err(source) => Err(Error::Write { verb: "deleting", kind, name, source }),
    }
}

fn api(client: &Client, model: &ValidModel, kind: Kind) -> Api<DynamicObject> {
    Api::namespaced_with(client.clone(), &model.namespace, &kind.resource())
}

fn json(object: &DynamicObject) -> Value {
    // It came as JSON.
    serde_json::to_value(object).unwrap_or_default()
}
