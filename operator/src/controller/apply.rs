//! The objects that should be become those that are, with as few writes as can be: none
//! when nothing differs.
//!
//! # Guarantees
//!
//! - Every write is a server-side apply of the whole object as we want it, so fields of
//!   others stay, and what we no longer want goes.
//! - An object that is not ours is never written to nor deleted.
//! - Objects are applied in the order of [`Kind`], so each finds what it needs.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ManagedFieldsEntry;
use kube::api::{Api, DeleteParams, DynamicObject, Patch, PatchParams, Preconditions, PropagationPolicy};
use kube::{Client, ResourceExt as _};
use serde::Serialize;
use serde_json::{Value, json};

use super::build::{self, Desired, names};
use super::object::{Kind, Object, is_owned_by};
use super::observe::Observed;
use super::same;
use super::validate::{Files, ValidModel};
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
    /// An object of that name goes with a model of our name that was deleted before.
    #[error(
        "{kind} {name} goes with an EmbeddingModel of this name that was deleted, and is still there",
        kind = .kind.resource().kind
    )]
    Predecessor {
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
            Self::Predecessor { .. } => return Reason::WaitingForDeletion,
            Self::Write { source: kube::Error::Api(status), .. } => &status.message,
            Self::Write { .. } => return Reason::ApplyFailed,
        };
        match self {
            _ if message.contains("exceeded quota") || message.contains("status unknown for quota") => {
                Reason::QuotaExceeded
            }
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
    // An autoscaler that is not wanted any more would undo the number that is applied next; and
    // only when it is gone the number that it left is known.
    writes += prune(client, model, observed, desired, |kind| kind == Kind::HorizontalPodAutoscaler).await?;
    if writes > 0 {
        return Ok(writes);
    }
    let mut refused = None;
    for object in &desired.objects {
        match apply_one(client, model, observed, object).await {
            Ok(written) => writes += written,
            // A volume that cannot grow holds up nothing else, since it can be used as it is; nor
            // does a download that cannot begin: what serves can be changed meanwhile.
            Err(error @ Error::Write { kind: Kind::PersistentVolumeClaim, .. })
                if observed.cache(&model.name).is_some() =>
            {
                refused.get_or_insert(error);
            }
            Err(error @ Error::Write { kind: Kind::Job, .. }) => {
                refused.get_or_insert(error);
            }
            Err(error) => return Err(error),
        }
    }
    writes += prune(client, model, observed, desired, |kind| kind != Kind::HorizontalPodAutoscaler).await?;
    refused.map_or(Ok(writes), Err)
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
        // Without records (somebody deleted them) it is not known what pods should be, until
        // the model is fetched again. What serves goes on meanwhile, and only goes with its model.
        if matches!(kind, Kind::Service | Kind::Deployment) {
            continue;
        }
        // Pods of the last template may still need it.
        let needed = matches!(kind, Kind::PersistentVolumeClaim | Kind::ServiceAccount);
        if needed && !is_rolled_out(observed, model, desired) {
            continue;
        }
        delete(client, model, *kind, found, PropagationPolicy::Background).await?;
        writes += 1;
    }
    Ok(writes)
}

/// Whether an object goes with the model.
fn is_ours(found: &DynamicObject, model: &ValidModel) -> bool {
    is_owned_by(found, &model.uid)
}

/// Whether an object goes with a model of this name that is gone: the cluster removes it soon.
fn is_of_predecessor(found: &DynamicObject, model: &ValidModel) -> bool {
    found.owner_references().iter().any(|owner| {
        (&owner.api_version, &owner.kind, &owner.name)
            == (&model.owner.api_version, &model.owner.kind, &model.name)
    })
}

/// A retained claim has no owner. It is this model's when the annotation says so, and is taken
/// up again when its labels are of the same name and source.
fn is_retained(found: &DynamicObject, model: &ValidModel) -> bool {
    let Files::Cached { download, .. } = &model.files else { return false };
    let labels = found.labels();
    let is = |name: &str, value: &str| labels.get(name).is_some_and(|label| label == value);
    let same = || {
        is(names::SOURCE_LABEL, &download.key())
            && names::labels(&model.name).iter().all(|(name, value)| is(name, value))
    };
    found.owner_references().is_empty()
        && (found.annotations().get(names::RETAINED_BY_ANNOTATION) == Some(&model.uid) || same())
}

/// Whether no pod is left but those of the wanted template.
fn is_rolled_out(observed: &Observed, model: &ValidModel, desired: &Desired) -> bool {
    observed.deployment(&model.name).is_none_or(|deployed| {
        desired.template_is_current
            && build::has_pods_of(&deployed, desired.template.as_ref())
            && build::rolled_out(&deployed)
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
        let retained = kind == Kind::PersistentVolumeClaim && is_retained(found, model);
        if !is_ours(found, model) && !retained {
            return Err(if is_of_predecessor(found, model) {
                Error::Predecessor { kind, name }
            } else {
                Error::NameConflict { kind, name }
            });
        }
        // What takes its place from now on is not written to.
        wanted.metadata.uid.clone_from(&found.metadata.uid);
        // What is going comes back when it is gone.
        if found.metadata.deletion_timestamp.is_some() {
            return Ok(0);
        }
        let shares = kind != Kind::Job && found.managed_fields().iter().any(is_of_overwrite);
        let halted = kind == Kind::Deployment && is_halted(found, &wanted);
        if !shares && !halted && is_same(found, &wanted) {
            return Ok(0);
        }
        // A Job is what it was made as; but we have to find it. One that waits for what the
        // spec names no longer, a Secret perhaps, gives way to another: in the foreground, so
        // that no two pods fetch into the volume. What else has changed since is no reason to
        // begin a download anew.
        if kind == Kind::Job && applied(found) != Some(&hash) {
            let with = |job: &DynamicObject| job.labels().get(names::FETCH_WITH_LABEL).cloned();
            if !is_over(found) && with(found) != with(&wanted) {
                delete(client, model, kind, found, PropagationPolicy::Foreground).await?;
                return Ok(1);
            }
            return relabel(&api, found, &wanted).await.map_err(failed("labelling"));
        }
        if shares {
            disown_overwrite(&api, found).await.map_err(failed("disowning fields of"))?;
        }
        if halted || (kind == Kind::Deployment && gives_up_replicas(found, &wanted)) {
            hand_over_replicas(&api, found).await.map_err(failed("handing over the replicas of"))?;
        }
    }
    let force = PatchParams::apply(names::FIELD_MANAGER).force();
    match (api.patch(&name, &force, &Patch::Apply(&wanted)).await, found) {
        // It says what it said before: the API server leaves out what is empty, or somebody
        // changes it on its way in. That is no write, and would never end.
        (Ok(applied), Some(found)) if applied.resource_version() == found.resource_version() => return Ok(0),
        (Ok(_), _) => {}
        // Somebody changed it on its way in, which cannot be taken back.
        (Err(error), Some(_)) if is_invalid(&error) && kind == Kind::Job => return Ok(0),
        (Err(error), Some(found)) if is_invalid(&error) && overwrite(&api, &found, &wanted).await => {
            api.patch(&name, &force, &Patch::Apply(&wanted)).await.map_err(failed("applying"))?;
        }
        (Err(error), _) => return Err(failed("applying")(error)),
    }
    Ok(1)
}

fn is_invalid(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 422)
}

/// What others put beside our fields can make both together invalid: another port of the same
/// name, another source of the same volume. Then lists become ours as a whole. Whether that
/// went well; if not, what is wanted is invalid in itself.
async fn overwrite(api: &Api<DynamicObject>, found: &DynamicObject, wanted: &DynamicObject) -> bool {
    let mut spec = wanted.data["spec"].clone();
    if spec["strategy"]["type"] == "Recreate" {
        spec["strategy"]["rollingUpdate"] = Value::Null;
    }
    let patch = json!({
        "metadata": {"uid": found.uid(), "resourceVersion": found.resource_version()},
        "spec": spec,
    });
    merge(api, found, &patch).await.is_ok()
}

/// Whether a manager's entry is ours of an [`overwrite`]. It makes us an owner a second time,
/// of fields that a later apply could not take away.
fn is_of_overwrite(entry: &ManagedFieldsEntry) -> bool {
    entry.manager.as_deref() == Some(names::FIELD_MANAGER) && entry.operation.as_deref() == Some("Update")
}

/// Takes such entries away, at the look after: whatever happens in between, they are found
/// again.
async fn disown_overwrite(api: &Api<DynamicObject>, found: &DynamicObject) -> Result<(), kube::Error> {
    let mut kept = found.managed_fields().to_vec();
    kept.retain(|entry| !is_of_overwrite(entry));
    let patch = json!({"metadata": {
        "uid": found.uid(),
        "resourceVersion": found.resource_version(),
        "managedFields": kept,
    }});
    merge(api, found, &patch).await
}

/// Changes some fields of an object that is there, outside of what is applied.
async fn merge(api: &Api<DynamicObject>, found: &DynamicObject, patch: &Value) -> Result<(), kube::Error> {
    let parameters =
        PatchParams { field_manager: Some(names::FIELD_MANAGER.into()), ..PatchParams::default() };
    api.patch(&found.name_any(), &parameters, &Patch::Merge(patch)).await.map(drop)
}

/// Whether applying `wanted` would change nothing: it is what was applied last, and all of
/// its fields are still as it says.
fn is_same(found: &DynamicObject, wanted: &DynamicObject) -> bool {
    applied(found) == applied(wanted) && same::covers(&json(wanted), &json(found))
}

/// The hash of what was applied last.
fn applied(object: &DynamicObject) -> Option<&String> {
    object.annotations().get(names::APPLIED_ANNOTATION)
}

/// Whether a Job has ended.
fn is_over(job: &DynamicObject) -> bool {
    let conditions = job.data["status"]["conditions"].as_array();
    let ended = |condition: &Value| {
        (condition["type"] == "Complete" || condition["type"] == "Failed") && condition["status"] == "True"
    };
    conditions.into_iter().flatten().any(ended)
}

/// Gives an object that must not be applied anew its labels back, where it lost some.
async fn relabel(
    api: &Api<DynamicObject>,
    found: &DynamicObject,
    wanted: &DynamicObject,
) -> Result<usize, kube::Error> {
    if wanted.labels().iter().all(|(name, value)| found.labels().get(name) == Some(value)) {
        return Ok(0);
    }
    let labels = json!({"metadata": {"uid": found.uid(), "labels": wanted.labels()}});
    merge(api, found, &labels).await?;
    Ok(1)
}

/// Whether the Deployment that is applied next leaves `replicas` to the autoscaler, while
/// the last one did not: the API server would set a field without owners to its default.
fn gives_up_replicas(found: &DynamicObject, wanted: &DynamicObject) -> bool {
    let owned = |manager: &str| {
        found.managed_fields().iter().any(|entry| {
            entry.manager.as_deref() == Some(manager)
                && entry.operation.as_deref() == Some("Apply")
                && entry.fields_v1.as_ref().is_some_and(|fields| fields.0["f:spec"]["f:replicas"].is_object())
        })
    };
    wanted.data["spec"]["replicas"].is_null()
        && owned(names::FIELD_MANAGER)
        && !owned(names::HANDOVER_MANAGER)
}

/// Whether an autoscaler is to decide and cannot: it leaves a Deployment alone that has no
/// replicas.
fn is_halted(found: &DynamicObject, wanted: &DynamicObject) -> bool {
    wanted.data["spec"]["replicas"].is_null() && found.data["spec"]["replicas"] == 0
}

/// Another manager says the same number, so that it stays when we let go of it. The
/// autoscaler takes it from there; only from zero it would never rise.
async fn hand_over_replicas(api: &Api<DynamicObject>, found: &DynamicObject) -> Result<(), kube::Error> {
    let resource = Kind::Deployment.resource();
    let holding = json!({
        "apiVersion": resource.api_version,
        "kind": resource.kind,
        "metadata": {"name": found.name_any()},
        "spec": {"replicas": found.data["spec"]["replicas"].as_i64().unwrap_or(1).max(1)},
    });
    let force = PatchParams::apply(names::HANDOVER_MANAGER).force();
    api.patch(&found.name_any(), &force, &Patch::Apply(&holding)).await.map(drop)
}

async fn delete(
    client: &Client,
    model: &ValidModel,
    kind: Kind,
    found: &DynamicObject,
    propagation: PropagationPolicy,
) -> Result<(), Error> {
    let name = found.name_any();
    let parameters = DeleteParams {
        propagation_policy: Some(propagation),
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

fn json(value: &impl Serialize) -> Value {
    // It came as JSON.
    serde_json::to_value(value).unwrap_or_default()
}
