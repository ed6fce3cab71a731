//! What is there: the model's objects and what it refers to, as one value.
//!
//! Everything is asked for anew at each reconcile, by the label that all of our objects
//! carry, instead of kept in caches: what is decided upon is never older than the
//! decision's begin.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::{ControllerRevision, Deployment};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Event, PersistentVolumeClaim, Pod};
use kube::api::{ApiResource, DynamicObject, ListParams, LogParams, ObjectList};
use kube::core::TypeMeta;
use kube::{Api, Client, ResourceExt as _};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::build::names;
use super::diagnose;
use super::object::{Kind, is_owned_by};
use crate::crd::EmbeddingModel;

/// An object that could not be read.
#[derive(Debug, thiserror::Error)]
#[error("reading {what}")]
pub struct Error {
    what: String,
    source: kube::Error,
}

impl Error {
    /// Whether the next look is bound to fail, too: a right is missing.
    pub fn is_for_long(&self) -> bool {
        matches!(&self.source, kube::Error::Api(status) if status.code == 403)
    }
}

/// What is there.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// The model's own objects, by kind and name.
    pub children: BTreeMap<(Kind, String), DynamicObject>,
    /// The model's pods: those that serve and those that fetch.
    pub pods: Vec<Pod>,
    /// The claim that the source names.
    pub source_claim: Option<PersistentVolumeClaim>,
    /// Warnings about objects that are not well.
    pub events: Vec<Event>,
    /// How far a fetch that runs is, as it logged last.
    pub progress: Option<Progress>,
    /// Whether the cluster knows `ServiceMonitors`.
    pub service_monitors_exist: bool,
}

impl Observed {
    /// The object of that kind and name, as its type.
    pub fn get<K: DeserializeOwned>(&self, kind: Kind, name: &str) -> Option<K> {
        let object = self.children.get(&(kind, name.to_owned()))?;
        // What the API server sent is of the type that it was asked for.
        serde_json::to_value(object).and_then(serde_json::from_value).ok()
    }

    /// All objects of that kind.
    pub fn all<K: DeserializeOwned>(&self, kind: Kind) -> Vec<K> {
        let of_kind = self.children.iter().filter(|((found, _), _)| *found == kind);
        of_kind
            .filter_map(|(_, object)| serde_json::to_value(object).and_then(serde_json::from_value).ok())
            .collect()
    }

    /// The model's Deployment.
    pub fn deployment(&self, name: &str) -> Option<Deployment> {
        self.get(Kind::Deployment, name)
    }

    /// The claim of the model's cache.
    pub fn cache(&self, name: &str) -> Option<PersistentVolumeClaim> {
        self.get(Kind::PersistentVolumeClaim, &names::cache(name))
    }

    /// The claim of the model's cache, while it has no volume yet.
    pub fn unbound_cache(&self, name: &str) -> Option<String> {
        let claim = self.cache(name)?;
        let phase = claim.status.as_ref().and_then(|status| status.phase.as_deref());
        (phase != Some("Bound")).then(|| claim.name_any())
    }

    /// The Jobs that fetch.
    pub fn jobs(&self) -> Vec<Job> {
        self.all(Kind::Job)
    }

    /// The records of templates and fetches.
    pub fn records(&self) -> Vec<ControllerRevision> {
        self.all(Kind::ControllerRevision)
    }

    /// The latest warning about the object of that kind and name.
    pub fn warning(&self, kind: &str, name: &str) -> Option<&Event> {
        let about = |event: &&Event| {
            event.involved_object.kind.as_deref() == Some(kind)
                && event.involved_object.name.as_deref() == Some(name)
        };
        self.events.iter().filter(about).max_by_key(|event| {
            let series = event.series.as_ref().and_then(|series| series.last_observed_time.as_ref());
            let times = [series.map(|time| time.0), event.event_time.as_ref().map(|time| time.0)];
            let last = event.last_timestamp.as_ref().map(|time| time.0);
            times
                .into_iter()
                .flatten()
                .chain(last)
                .max()
                .or_else(|| event.metadata.creation_timestamp.as_ref().map(|time| time.0))
        })
    }
}

/// How far a fetch is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub struct Progress {
    /// How much of the model is there.
    pub bytes: i64,
    /// How much it has in all.
    pub total_bytes: i64,
}

/// What a fetch that runs logged last about how far it is. Its log is the only place that
/// knows; where it cannot be read, nothing is known.
pub async fn progress(client: &Client, model: &EmbeddingModel, observed: &Observed) -> Option<Progress> {
    let fetches = |pod: &&Pod| {
        names::is_of(pod, names::FETCH)
            && pod.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Running")
    };
    let pod = observed.pods.iter().find(fetches)?;
    let pods: Api<Pod> = Api::namespaced(client.clone(), &model.namespace()?);
    let last = LogParams {
        container: Some(names::FETCH.into()),
        tail_lines: Some(LINES),
        limit_bytes: Some(LINES * 1000),
        ..LogParams::default()
    };
    match pods.logs(&pod.name_any(), &last).await {
        Ok(log) => latest(&log),
        Err(error) => {
            tracing::debug!(%error, pod = pod.name_any(), "cannot read how far the fetch is");
            None
        }
    }
}

/// How many of the last lines of a fetch's log are looked at.
const LINES: i64 = 5;

fn latest(log: &str) -> Option<Progress> {
    log.lines().rev().find_map(|line| serde_json::from_str(line).ok())
}

/// Looks at everything that concerns `model`.
pub async fn observe(client: &Client, model: &EmbeddingModel) -> Result<Observed, Error> {
    let name = model.name_any();
    let namespace = model.namespace().unwrap_or_default();
    let ours = ListParams::default().labels(&format!("{}={name}", names::MODEL_LABEL));
    let mut observed = Observed::default();
    let lists = Kind::ALL.map(|kind| {
        let (client, namespace, ours) = (client.clone(), namespace.clone(), ours.clone());
        async move { Ok::<_, Error>((kind, list(&client, &namespace, kind, &ours).await?)) }
    });
    for (kind, objects) in futures_util::future::try_join_all(lists).await? {
        observed.service_monitors_exist |= kind == Kind::ServiceMonitor && objects.is_some();
        let ours = objects.into_iter().flatten().filter(|object| is_ours(kind, object, model));
        observed.children.extend(ours.map(|object| ((kind, object.name_any()), object)));
    }
    // What others took our label from is decided upon all the same.
    let deployment = (Kind::Deployment, name.clone());
    if !observed.children.contains_key(&deployment) {
        let api: Api<DynamicObject> =
            Api::namespaced_with(client.clone(), &namespace, &Kind::Deployment.resource());
        let found = api.get_opt(&name).await.map_err(failed("the model's Deployment"))?;
        let found = found.filter(|object| is_ours(Kind::Deployment, object, model));
        observed.children.extend(found.map(|object| (deployment, object)));
    }
    let pods: Api<Pod> = Api::namespaced(client.clone(), &namespace);
    observed.pods = pods.list(&ours).await.map_err(failed("the model's pods"))?.items;
    if let Some(claim) = &model.spec.source.persistent_volume_claim {
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), &namespace);
        let what = format!("PersistentVolumeClaim {}", claim.claim_name);
        observed.source_claim = claims.get_opt(&claim.claim_name).await.map_err(failed(what))?;
    }
    observed.events = warnings(client, &namespace, &observed).await?;
    Ok(observed)
}

/// Whether an object is the model's own, and not one that somebody gave our label: only by its
/// owner, or where it is a claim that outlived its model.
fn is_ours(kind: Kind, object: &DynamicObject, model: &EmbeddingModel) -> bool {
    let retained = kind == Kind::PersistentVolumeClaim && object.owner_references().is_empty();
    retained || model.uid().is_some_and(|uid| is_owned_by(object, &uid))
}

/// The model's objects of a kind; none where the cluster does not know the kind.
async fn list(
    client: &Client,
    namespace: &str,
    kind: Kind,
    ours: &ListParams,
) -> Result<Option<Vec<DynamicObject>>, Error> {
    let resource: ApiResource = kind.resource();
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, &resource);
    match api.list(ours).await {
        Ok(ObjectList { mut items, .. }) => {
            for item in &mut items {
                // Items of a list come without their type.
                item.types.get_or_insert_with(|| TypeMeta {
                    api_version: resource.api_version.clone(),
                    kind: resource.kind.clone(),
                });
            }
            Ok(Some(items))
        }
        // By the code: where the whole group is unknown, the answer is no Status.
        Err(kube::Error::Api(status)) if kind == Kind::ServiceMonitor && status.code == 404 => Ok(None),
        Err(source) => Err(failed(format!("the model's {}", resource.plural))(source)),
    }
}

/// Warnings about those of the model's objects that can be in trouble without showing it
/// in their status.
async fn warnings(client: &Client, namespace: &str, observed: &Observed) -> Result<Vec<Event>, Error> {
    let mut about: Vec<(&str, String)> = Vec::new();
    for (kind, name) in observed.children.keys() {
        match kind {
            Kind::PersistentVolumeClaim => about.push(("PersistentVolumeClaim", name.clone())),
            Kind::Job => about.push(("Job", name.clone())),
            _ => {}
        }
    }
    if let Some(claim) = &observed.source_claim {
        about.push(("PersistentVolumeClaim", claim.name_any()));
    }
    let not_running = |pod: &&Pod| {
        let status = pod.status.as_ref();
        let is = |name: &str| {
            status.and_then(|status| status.conditions.as_ref()).is_some_and(|conditions| {
                conditions.iter().any(|condition| condition.type_ == name && condition.status == "True")
            })
        };
        !is("Ready") && status.and_then(|status| status.phase.as_deref()) != Some("Succeeded")
    };
    about.extend(observed.pods.iter().filter(not_running).take(5).map(|pod| ("Pod", pod.name_any())));
    if observed.pods.iter().all(|pod| !not_running(&pod)) && observed.jobs().is_empty() {
        // All is well: nothing to ask about, except a volume that is being changed.
        about.retain(|(kind, name)| *kind == "PersistentVolumeClaim" && claim_is_changing(observed, name));
    }
    let events: Api<Event> = Api::namespaced(client.clone(), namespace);
    let mut warnings = Vec::new();
    for (kind, name) in about {
        let fields = format!("involvedObject.kind={kind},involvedObject.name={name}");
        let found = events.list(&ListParams::default().fields(&fields)).await;
        warnings.extend(found.map_err(failed(format!("events of {kind} {name}")))?.items);
    }
    // A claim without a class is told as a normal event.
    warnings.retain(|event| {
        event.type_.as_deref() == Some("Warning") || event.reason.as_deref() == Some("FailedBinding")
    });
    Ok(warnings)
}

fn claim_is_changing(observed: &Observed, name: &str) -> bool {
    let cache = observed.get(Kind::PersistentVolumeClaim, name);
    let claim: Option<PersistentVolumeClaim> = cache.or_else(|| observed.source_claim.clone());
    claim.is_some_and(|claim| {
        let phase = claim.status.as_ref().and_then(|status| status.phase.as_deref());
        phase != Some("Bound") || diagnose::is_growing(&claim)
    })
}

fn failed(what: impl Into<String>) -> impl FnOnce(kube::Error) -> Error {
    let what = what.into();
    move |source| Error { what, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_with_both_numbers_tells_how_far_a_fetch_is() {
        let log = r#"{"level":"INFO","message":"fetching model","bytes":10,"total_bytes":100}
{"level":"INFO","message":"fetching model","file":"a","percent":50,"bytes":50,"total_bytes":100,"mb_per_s":1.5}
{"level":"WARN","message":"trying again","what":"a"}
not JSON"#;
        assert_eq!(latest(log), Some(Progress { bytes: 50, total_bytes: 100 }));
        assert_eq!(latest(""), None);
    }
}
