//! The status: what was seen and done, and what it means. Pure, but for the one write of
//! it, in [`super`].
//!
//! # What `Ready` means
//!
//! An embed through the Service succeeds now, for this generation: the files of the wanted
//! source are here, every pod is of the wanted template, all of them can embed, and nothing
//! is left to be written.

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::ResourceExt as _;

use super::build::{self, Desired, Replicas, names};
use super::diagnose::{self, Problem};
use super::fetched::{self, State};
use super::object::{Kind, Object, is_owned_by};
use super::observe::Observed;
use super::same;
use super::validate::{Files, Refusal, ValidModel};
use crate::crd::EmbeddingModel;
use crate::crd::status::{CacheStatus, ConditionType, EmbeddingModelStatus, ModelStatus, Reason};

/// How a reconcile went.
#[derive(Debug)]
pub enum Outcome<'a> {
    /// The spec cannot be built.
    Refused(&'a Refusal),
    /// Something could not be read or written; the rest as far as it is known.
    Failed {
        /// The word.
        reason: Reason,
        /// What failed, and why.
        message: String,
        /// What should have been.
        wanted: Option<(&'a ValidModel, &'a Desired)>,
    },
    /// All is as it should be, as far as it is up to us.
    Applied {
        /// The model.
        model: &'a ValidModel,
        /// What should be.
        desired: &'a Desired,
        /// How many objects had to be written.
        writes: usize,
    },
}

type Verdict = (bool, Reason, String);

/// Whether two statuses say the same: conditions of others do not count.
pub fn is_same(old: Option<&EmbeddingModelStatus>, new: &EmbeddingModelStatus) -> bool {
    old.is_some_and(|old| {
        let mut old = old.clone();
        old.conditions
            .retain(|condition| ConditionType::ALL.iter().any(|type_| type_.name() == condition.type_));
        old == *new
    })
}

/// The status of `model` after a reconcile. `observed` is `None` when nothing could be seen:
/// then what was known stays.
pub fn status(
    model: &EmbeddingModel,
    observed: Option<&Observed>,
    outcome: &Outcome<'_>,
    now: Timestamp,
) -> EmbeddingModelStatus {
    let name = model.name_any();
    let old = model.status.clone().unwrap_or_default();
    // One of somebody else may have our label.
    let is_ours = |deployment: &Deployment| model.uid().is_some_and(|uid| is_owned_by(deployment, &uid));
    let deployment = observed.and_then(|observed| observed.deployment(&name)).filter(is_ours);
    let unbound = observed.and_then(|observed| observed.unbound_cache(&name));
    let problems = observed.map(|observed| diagnose::problems(&name, observed)).unwrap_or_default();
    let mut status = EmbeddingModelStatus {
        observed_generation: model.metadata.generation,
        selector: Some(names::server_selector(&name)),
        endpoint: old.endpoint.clone(),
        model: old.model.clone(),
        cache: old.cache.clone(),
        rollout: old.rollout.clone(),
        ..EmbeddingModelStatus::default()
    };
    if observed.is_none() {
        (status.replicas, status.ready_replicas) = (old.replicas, old.ready_replicas);
    }
    if let Some(deployed) = deployment.as_ref().and_then(|deployment| deployment.status.as_ref()) {
        status.replicas = deployed.replicas.unwrap_or(0);
        status.ready_replicas = deployed.ready_replicas.unwrap_or(0);
    }
    let wanted = match outcome {
        Outcome::Refused(_) => None,
        Outcome::Failed { wanted, .. } => *wanted,
        Outcome::Applied { model, desired, .. } => Some((*model, *desired)),
    };
    if let Some((valid, desired)) = wanted {
        status.endpoint = Some(endpoint(valid));
        status.model = Some(model_of(desired, old.model.as_ref()));
        status.cache = cache(valid, desired, observed);
        status.rollout = Some(desired.rollout.clone());
    }
    let generation = model.metadata.generation;
    let seen = Seen {
        deployment: deployment.as_ref(),
        problems: &problems,
        unbound: unbound.as_deref(),
        observed,
        was_ready: old.observed_generation == generation && old.holds(ConditionType::Ready),
    };
    let judged = judge(outcome, wanted, &seen, &old);
    let condition = |type_: ConditionType, (holds, reason, message): Verdict| {
        condition(&old, type_, holds, reason, message, generation, now)
    };
    status.conditions = vec![
        condition(ConditionType::Ready, judged.ready.clone()),
        condition(ConditionType::ModelCached, judged.cached),
        condition(
            ConditionType::Available,
            match observed {
                Some(_) => available(deployment.as_ref()),
                None => keep(&old, ConditionType::Available, outcome),
            },
        ),
        condition(ConditionType::Progressing, judged.progressing.clone()),
        condition(
            ConditionType::UpdateAvailable,
            match wanted {
                Some((_, desired)) => update(desired),
                None => keep(&old, ConditionType::UpdateAvailable, outcome),
            },
        ),
        condition(
            ConditionType::SpaceChanged,
            match wanted {
                Some((_, desired)) => space_changed(desired, status.model.as_ref()),
                None => keep(&old, ConditionType::SpaceChanged, outcome),
            },
        ),
        condition(ConditionType::Degraded, judged.degraded.clone()),
    ];
    // For kstatus: only while they hold.
    if judged.degraded.0 && !judged.progressing.0 && !judged.ready.0 {
        status.conditions.push(condition(ConditionType::Stalled, judged.degraded));
    } else if judged.progressing.0 {
        status.conditions.push(condition(ConditionType::Reconciling, judged.progressing));
    }
    status
}

/// What is known about the model. What pods learned that fetch for themselves outlives them; their
/// vector space, which prompts are part of, in their record.
fn model_of(desired: &Desired, old: Option<&ModelStatus>) -> ModelStatus {
    let now = desired.model.clone();
    let same =
        |old: &&ModelStatus| old.source == now.source && old.resolved_revision == now.resolved_revision;
    let old = old.filter(same).cloned().unwrap_or_default();
    ModelStatus {
        architecture: now.architecture.or(old.architecture),
        dimensions: now.dimensions.or(old.dimensions),
        space: now.space,
        max_tokens: now.max_tokens.or(old.max_tokens),
        bytes: now.bytes.or(old.bytes),
        source: now.source,
        resolved_revision: now.resolved_revision,
    }
}

struct Judged {
    ready: Verdict,
    cached: Verdict,
    progressing: Verdict,
    degraded: Verdict,
}

/// What the verdicts are about.
struct Seen<'a> {
    deployment: Option<&'a Deployment>,
    problems: &'a [Problem],
    /// The claim of the cache, while it has no volume.
    unbound: Option<&'a str>,
    observed: Option<&'a Observed>,
    /// Whether this generation of the model was ready at the last look.
    was_ready: bool,
}

fn judge(
    outcome: &Outcome<'_>,
    wanted: Option<(&ValidModel, &Desired)>,
    seen: &Seen<'_>,
    old: &EmbeddingModelStatus,
) -> Judged {
    let problems = seen.problems;
    let cached = match wanted {
        Some((_, desired)) => cached(desired, seen.unbound),
        None => keep(old, ConditionType::ModelCached, outcome),
    };
    let not_ready = |reason: Reason, message: String| (false, reason, message);
    let bad = |reason: Reason, message: &str| (true, reason, message.to_owned());
    let healthy = || (false, Reason::Healthy, "nothing is wrong".to_owned());
    match outcome {
        Outcome::Refused(Refusal { reason, message }) => Judged {
            ready: not_ready(*reason, message.clone()),
            cached,
            progressing: (false, *reason, "waiting for the spec, or what it refers to, to change".into()),
            degraded: bad(*reason, message),
        },
        Outcome::Failed { reason: reason @ Reason::WaitingForDeletion, message, .. } => Judged {
            ready: not_ready(*reason, message.clone()),
            cached,
            progressing: (true, *reason, message.clone()),
            degraded: healthy(),
        },
        Outcome::Failed { reason, message, .. } => Judged {
            ready: not_ready(*reason, message.clone()),
            cached,
            progressing: (
                *reason == Reason::ApplyFailed,
                *reason,
                "what failed is tried again, less and less often".into(),
            ),
            degraded: bad(*reason, message),
        },
        Outcome::Applied { model, desired, writes } => {
            let problem = problems.first();
            let space_refused = space_refused(desired);
            let degraded = match (&desired.files, problem) {
                (State::Failed { why, refused, .. }, _) => {
                    bad(fetched::reason(*refused), &fetch_failed(desired, why))
                }
                (_, Some(problem)) => bad(problem.reason, &problem.message),
                (State::Fetching { attempt, .. }, None) if *attempt > 1 => still_failing(old, healthy()),
                (_, None) => match &space_refused {
                    Some(message) => bad(Reason::SpaceChangeRefused, message),
                    None => healthy(),
                },
            };
            let goal = goal(model, desired, *writes, seen);
            if model.paused {
                let reached = goal.is_none();
                let message = "paused: objects are left as they are".to_owned();
                return Judged {
                    ready: if reached {
                        (true, Reason::Ready, all_embed(desired))
                    } else {
                        not_ready(Reason::Paused, message.clone())
                    },
                    cached,
                    progressing: (false, Reason::Paused, message),
                    degraded,
                };
            }
            match goal {
                None => Judged {
                    ready: (true, Reason::Ready, all_embed(desired)),
                    cached,
                    progressing: (false, Reason::Reconciled, reached(model, seen)),
                    // Pods that were replaced may still be going; a volume that cannot grow,
                    // or is lost, tells of itself only later.
                    degraded: problems
                        .iter()
                        .find(|problem| problem.reason == Reason::VolumeFailed)
                        .map_or_else(healthy, |problem| bad(problem.reason, &problem.message)),
                },
                Some((reason @ Reason::ScaledToZero, message)) => Judged {
                    ready: not_ready(reason, message.clone()),
                    cached,
                    progressing: (false, Reason::Reconciled, reached(model, seen)),
                    degraded: healthy(),
                },
                Some((reason, message)) => {
                    let stuck = matches!(desired.files, State::Failed { .. })
                        || space_refused.is_some()
                        || problems.iter().any(|problem| needs_help(problem.reason));
                    let fetches = matches!(desired.files, State::Fetching { .. });
                    let (ready, progressing) = if degraded.0 && fetches && problem.is_none() {
                        (not_ready(reason, message.clone()), (true, reason, message))
                    } else if degraded.0 {
                        (not_ready(degraded.1, degraded.2.clone()), (!stuck, degraded.1, message))
                    } else {
                        (not_ready(reason, message.clone()), (true, reason, message))
                    };
                    Judged { ready, cached, progressing, degraded }
                }
            }
        }
    }
}

fn all_embed(desired: &Desired) -> String {
    match desired.replicas {
        Replicas::Held(number) => format!(
            "every replica can embed; {number} run as when autoscaling was turned off, until replicas is changed"
        ),
        Replicas::Autoscaled | Replicas::Wanted(_) => "every replica can embed".into(),
    }
}

fn reached(model: &ValidModel, seen: &Seen<'_>) -> String {
    let unknown = seen.observed.is_some_and(|observed| !observed.service_monitors_exist);
    if model.monitoring.service_monitor && unknown {
        "the wanted state is reached, but for the ServiceMonitor: the cluster does not know monitoring.coreos.com/v1"
            .into()
    } else {
        "the wanted state is reached".into()
    }
}

/// While a download that failed is tried again, that it failed stays told.
fn still_failing(old: &EmbeddingModelStatus, healthy: Verdict) -> Verdict {
    failing_download(old).map_or(healthy, |(reason, says)| (true, reason, says.to_owned()))
}

/// The word for a download that fails, and the cause without the time of the next try.
pub fn failing_download(status: &EmbeddingModelStatus) -> Option<(Reason, &str)> {
    let degraded = status.condition(ConditionType::Degraded).filter(|it| it.status == "True")?;
    let mut reasons = [Reason::FetchFailed, Reason::SourceRefused].into_iter();
    let reason = reasons.find(|reason| reason.name() == degraded.reason)?;
    Some((reason, degraded.message.split(NEXT_TRY).next().unwrap_or_default()))
}

/// What comes before the time of the next try.
const NEXT_TRY: &str = "; next try at ";

/// Whether somebody has to do something. The others may go away by themselves.
fn needs_help(reason: Reason) -> bool {
    !matches!(reason, Reason::ProbeFailed)
}

/// What is still missing until `Ready`, if anything is.
fn goal(model: &ValidModel, desired: &Desired, writes: usize, seen: &Seen<'_>) -> Option<(Reason, String)> {
    match &desired.files {
        State::Here(_) => {}
        State::NoVolume => {
            let claim = seen.observed.and_then(|observed| observed.cache(&model.name));
            let message = claim.map_or_else(
                || "the volume for the model's files is being made".to_owned(),
                |claim| {
                    format!(
                        "PersistentVolumeClaim {} is being deleted, and a new one is made when no pod uses it any more",
                        claim.name_any()
                    )
                },
            );
            return Some((Reason::WaitingForVolume, message));
        }
        State::Fetching { .. } if seen.unbound.is_some() => {
            return Some((Reason::WaitingForVolume, waits_for(seen.unbound)));
        }
        State::Fetching { attempt, .. } => {
            let what = desired.model.source.clone().unwrap_or_default();
            let again = if *attempt > 1 { format!(", try {attempt}") } else { String::new() };
            return Some((Reason::Fetching, format!("{what} is being fetched{again}")));
        }
        State::Failed { why, refused, .. } => {
            return Some((fetched::reason(*refused), fetch_failed(desired, why)));
        }
    }
    if let Some(message) = space_refused(desired) {
        return Some((Reason::SpaceChangeRefused, message));
    }
    let Some(deployment) = seen.deployment else {
        return Some((Reason::RollingOut, "the first pods are being made".into()));
    };
    let replicas = deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
    let status = deployment.status.clone().unwrap_or_default();
    let ready = status.available_replicas.unwrap_or(0);
    let updated = status.updated_replicas.unwrap_or(0);
    let settled =
        if model.paused { serves_as_wanted(deployment, desired, seen.observed) } else { writes == 0 };
    // After `Ready`, a Deployment that its controller has not looked at yet was changed by others:
    // an annotation is enough.
    let rolled_out = build::rolled_out(deployment) || (seen.was_ready && build::is_complete(deployment));
    if !settled || !desired.template_is_current || !rolled_out {
        if replicas > 0 && settled && updated == replicas && ready < replicas {
            return Some((
                if ready == 0 { Reason::RollingOut } else { Reason::ReplicasUnavailable },
                format!("{ready} of {replicas} replicas can embed"),
            ));
        }
        return Some((
            Reason::RollingOut,
            format!("{updated} of {replicas} replicas are of the wanted version, {ready} can embed"),
        ));
    }
    if replicas == 0 {
        return Some((Reason::ScaledToZero, "no replica is wanted: replicas is 0".into()));
    }
    None
}

/// Whether what clients and pods see of a paused model is what the spec says. That a newer
/// operator would write other details is not what a pause keeps from the user.
fn serves_as_wanted(deployment: &Deployment, desired: &Desired, observed: Option<&Observed>) -> bool {
    let runs = deployment.spec.as_ref().and_then(|spec| spec.replicas);
    let enough = match desired.replicas {
        Replicas::Autoscaled => true,
        Replicas::Held(number) | Replicas::Wanted(number) => runs == Some(number),
    };
    let access = [Kind::Service, Kind::NetworkPolicy];
    let is_there = |object: &Object| {
        let found = observed.and_then(|observed| observed.children.get(&(object.kind, object.name())));
        found.is_some_and(|found| same::covers(&object.value.data, &found.data))
    };
    let wanted: Vec<_> = desired.objects.iter().filter(|object| access.contains(&object.kind)).collect();
    let found = observed.map(|observed| observed.children.keys().filter(|(kind, _)| access.contains(kind)));
    let no_more = found.is_some_and(|found| found.count() <= wanted.len());
    enough
        && no_more
        && build::has_pods_of(deployment, desired.template.as_ref())
        && wanted.into_iter().all(is_there)
}

fn waits_for(claim: Option<&str>) -> String {
    format!("PersistentVolumeClaim {} has no volume yet", claim.unwrap_or_default())
}

fn fetch_failed(desired: &Desired, why: &str) -> String {
    let what = desired.model.source.clone().unwrap_or_default();
    match &desired.files {
        State::Failed { retry_at, .. } => {
            format!("fetching {what}: {why}{NEXT_TRY}{}", whole_seconds(*retry_at))
        }
        _ => format!("fetching {what}: {why}"),
    }
}

fn whole_seconds(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

fn cached(desired: &Desired, unbound: Option<&str>) -> Verdict {
    match &desired.files {
        State::Here(_) => (true, Reason::Cached, "the model's files are in the cluster".into()),
        State::NoVolume => (false, Reason::WaitingForVolume, "the volume is being made".into()),
        State::Fetching { .. } if unbound.is_some() => (false, Reason::WaitingForVolume, waits_for(unbound)),
        State::Fetching { .. } => (false, Reason::Fetching, "the model's files are being fetched".into()),
        State::Failed { why, refused, .. } => (false, fetched::reason(*refused), fetch_failed(desired, why)),
    }
}

fn available(deployment: Option<&Deployment>) -> Verdict {
    let replicas = deployment.and_then(|deployment| deployment.spec.as_ref()?.replicas).unwrap_or(0);
    let ready = deployment.and_then(|deployment| deployment.status.as_ref()?.available_replicas).unwrap_or(0);
    let message = format!("{ready} of {replicas} replicas can embed");
    match (ready, replicas) {
        (0, 0) if deployment.is_some() => (false, Reason::ScaledToZero, message),
        (0, _) => (false, Reason::Unavailable, message),
        _ => (true, Reason::Ready, message),
    }
}

fn update(desired: &Desired) -> Verdict {
    if desired.update_available {
        let message = format!(
            "this version of the operator would run other pods: set the annotation {} to any new value to take them",
            names::UPDATE_ANNOTATION
        );
        (true, Reason::NewPodTemplate, message)
    } else {
        (false, Reason::UpToDate, "the pods are what this version of the operator would make".into())
    }
}

/// Why the spec is not carried out, where that is for its vector space. Where only files of the
/// same source are refused, pods are as the spec says.
fn space_refused(desired: &Desired) -> Option<String> {
    if desired.template_is_current { None } else { desired.spaces.refusal() }
}

/// What became of the vector space.
fn space_changed(desired: &Desired, model: Option<&ModelStatus>) -> Verdict {
    let served = model.and_then(|model| model.space.as_deref());
    desired.spaces.verdict(served, desired.template.is_some())
}

/// What was known before; where nothing was, why nothing is.
fn keep(old: &EmbeddingModelStatus, type_: ConditionType, outcome: &Outcome<'_>) -> Verdict {
    let was = old.condition(type_);
    let reason = was.and_then(|was| Reason::ALL.into_iter().find(|reason| reason.name() == was.reason));
    match (was, reason) {
        (Some(was), Some(reason)) => (was.status == "True", reason, was.message.clone()),
        _ => match outcome {
            Outcome::Refused(Refusal { reason, .. }) | Outcome::Failed { reason, .. } => {
                (false, *reason, "nothing was made yet".into())
            }
            Outcome::Applied { .. } => (false, Reason::Healthy, String::new()),
        },
    }
}

fn condition(
    old: &EmbeddingModelStatus,
    type_: ConditionType,
    holds: bool,
    reason: Reason,
    message: String,
    generation: Option<i64>,
    now: Timestamp,
) -> Condition {
    let status = if holds { "True" } else { "False" };
    let was = old.condition(type_);
    let since = was.filter(|was| was.status == status).map(|was| was.last_transition_time.clone());
    Condition {
        type_: type_.name().into(),
        status: status.into(),
        reason: reason.name(),
        message,
        observed_generation: generation,
        last_transition_time: since.unwrap_or_else(|| Time(whole_seconds(now))),
    }
}

fn endpoint(model: &ValidModel) -> String {
    let port = if model.service.port == 80 { String::new() } else { format!(":{}", model.service.port) };
    format!("http://{}.{}.svc{port}", model.name, model.namespace)
}

fn cache(model: &ValidModel, desired: &Desired, observed: Option<&Observed>) -> Option<CacheStatus> {
    let claim_name = match &model.files {
        Files::Cached { .. } => Some(names::cache(&model.name)),
        Files::Claim { claim, .. } => Some(claim.claim_name.clone()),
        Files::Ephemeral(_) | Files::Image(_) => None,
    }?;
    let progress = observed.and_then(|observed| observed.progress);
    let (bytes, total_bytes) = match &desired.files {
        State::Here(here) => (here.summary.bytes, here.summary.bytes),
        _ => (progress.map(|progress| progress.bytes), progress.map(|progress| progress.total_bytes)),
    };
    Some(CacheStatus { claim_name: Some(claim_name), bytes, total_bytes })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::{Value, json};

    use super::super::apply;
    use super::super::diagnose::tests::{observed, table};
    use super::super::validate::validate;
    use super::*;
    use crate::config::Config;
    use crate::crd::SpaceChangePolicy;

    const COMMIT: &str = "0123456789012345678901234567890123456789";
    const SUMMARY: &str = r#"{"commit":"0123456789012345678901234567890123456789","bytes":9,"dimensions":384,"normalizes":true,"space_files":"e47a","prompts":{}}"#;

    fn now() -> Timestamp {
        "2026-01-01T00:00:00Z".parse().unwrap()
    }

    /// A model of the least source, with this in its spec, too.
    fn model(more: &Value) -> EmbeddingModel {
        let mut spec = json!({"source": {"huggingFace": {"repo": "org/name"}}});
        for (field, value) in more.as_object().unwrap() {
            spec[field] = value.clone();
        }
        serde_json::from_value(json!({
            "apiVersion": "embeddings.kagent.dev/v1alpha1",
            "kind": "EmbeddingModel",
            "metadata": {"name": "minilm", "namespace": "default", "uid": "m", "generation": 3},
            "spec": spec,
        }))
        .unwrap()
    }

    /// The status after a reconcile in which nothing failed.
    fn applied(model: &EmbeddingModel, observed: &Observed, writes: usize) -> EmbeddingModelStatus {
        match validate(model, observed, &Config::for_tests()) {
            Ok(valid) => {
                let desired = build::build(&valid, observed, &Config::for_tests(), now());
                let outcome = Outcome::Applied { model: &valid, desired: &desired, writes };
                status(model, Some(observed), &outcome, now())
            }
            Err(refusal) => status(model, Some(observed), &Outcome::Refused(&refusal), now()),
        }
    }

    /// What was seen, with everything that the operator makes of it.
    fn made(model: &EmbeddingModel, mut seen: Observed) -> Observed {
        let valid = validate(model, &Observed::default(), &Config::for_tests()).unwrap();
        for object in build::build(&valid, &seen, &Config::for_tests(), now()).objects {
            let key = (object.kind, object.name());
            let mut value = object.value;
            if let Some(old) = seen.children.get(&key) {
                value.data["status"] = old.data["status"].clone();
            }
            value.metadata.uid = Some(format!("{}-uid", key.1));
            value.metadata.generation = Some(1);
            seen.children.insert(key, value);
        }
        seen
    }

    fn bound(model: &EmbeddingModel) -> Observed {
        let mut seen = made(model, Observed::default());
        cache_of(&mut seen)["status"] = json!({"phase": "Bound", "capacity": {"storage": "10Gi"}});
        seen
    }

    /// With a fetch that ended so.
    fn fetched(model: &EmbeddingModel, condition: &str, code: i32, message: &str) -> Observed {
        let mut seen = made(model, bound(model));
        let ((_, name), job) =
            seen.children.iter_mut().find(|((kind, _), _)| *kind == Kind::Job).expect("it is fetched");
        job.data["status"] =
            json!({"conditions": [{"type": condition, "status": "True", "lastTransitionTime": now()}]});
        let owner = json!({"apiVersion": "batch/v1", "kind": "Job", "name": name, "uid": job.metadata.uid});
        let ended = json!({"terminated": {"exitCode": code, "message": message}});
        let container = json!({"name": "fetch", "image": "server", "imageID": "", "ready": false, "restartCount": 0, "state": ended});
        let pod = json!({
            "metadata": {"name": "minilm-fetch-1", "ownerReferences": [owner]},
            "status": {"phase": "Failed", "containerStatuses": [container]},
        });
        seen.pods.push(serde_json::from_value(pod).unwrap());
        seen
    }

    /// With a Deployment of which so many replicas are available.
    fn deployed(model: &EmbeddingModel, available: i32) -> Observed {
        let mut seen = made(model, fetched(model, "Complete", 0, SUMMARY));
        set_available(&mut seen, available);
        seen
    }

    fn set_available(seen: &mut Observed, available: i32) {
        let deployment = seen.children.get_mut(&(Kind::Deployment, "minilm".to_owned())).unwrap();
        let replicas = deployment.data["spec"]["replicas"].clone();
        deployment.data["status"] = json!({
            "observedGeneration": 1,
            "replicas": replicas,
            "updatedReplicas": replicas,
            "readyReplicas": available,
            "availableReplicas": available,
        });
    }

    /// The conditions, as `Type Status Reason`; not of the vector space, which has tests of its own.
    fn told(status: &EmbeddingModelStatus) -> Vec<String> {
        let conditions = status.conditions.iter().filter(|it| it.type_ != "SpaceChanged");
        conditions.map(|it| format!("{} {} {}", it.type_, it.status, it.reason)).collect()
    }

    fn get<'a>(status: &'a EmbeddingModelStatus, type_: &str) -> &'a Condition {
        status.conditions.iter().find(|condition| condition.type_ == type_).unwrap()
    }

    /// A status, and its conditions: Ready, `ModelCached`, Available, Progressing,
    /// `UpdateAvailable`, Degraded, and what else there is.
    type Told = (EmbeddingModelStatus, &'static str);

    const GOOD: &str = "True Ready, True Cached, True Ready, False Reconciled, False UpToDate, False Healthy";

    fn while_files_come() -> Vec<Told> {
        let plain = model(&json!({}));
        let mut unbound = bound(&plain);
        cache_of(&mut unbound)["status"] = json!({"phase": "Pending"});
        let waits = "False WaitingForVolume, False WaitingForVolume, False Unavailable, True WaitingForVolume, \
                     False UpToDate, False Healthy, Reconciling True WaitingForVolume";
        let fetches = "False Fetching, False Fetching, False Unavailable, True Fetching, False UpToDate, \
                       False Healthy, Reconciling True Fetching";
        let mut again = fetched(&plain, "Failed", 1, "x");
        for job in again.children.values_mut().filter(|child| !child.data["status"]["conditions"].is_null()) {
            job.data["status"]["conditions"][0]["lastTransitionTime"] = json!("2025-12-31T00:00:00Z");
        }
        let mut changed = plain.clone();
        changed.spec.source.hugging_face.as_mut().unwrap().revision = "v2".into();
        vec![
            (applied(&plain, &Observed::default(), 3), waits),
            (applied(&plain, &unbound, 0), waits),
            (applied(&plain, &bound(&plain), 1), fetches),
            (
                applied(&plain, &fetched(&plain, "Failed", 1, "error: no room"), 0),
                "False FetchFailed, False FetchFailed, False Unavailable, False FetchFailed, False UpToDate, \
                 True FetchFailed, Stalled True FetchFailed",
            ),
            (
                applied(&plain, &fetched(&plain, "Failed", 77, "error: 401"), 0),
                "False SourceRefused, False SourceRefused, False Unavailable, False SourceRefused, \
                 False UpToDate, True SourceRefused, Stalled True SourceRefused",
            ),
            (applied(&plain, &again, 0), fetches),
            (
                applied(&changed, &deployed(&plain, 1), 1),
                "False Fetching, False Fetching, True Ready, True Fetching, False UpToDate, False Healthy, \
                 Reconciling True Fetching",
            ),
            (
                failed(&plain, &bound(&plain), &refusal(Kind::Job, "exceeded quota: q")),
                "False QuotaExceeded, False Fetching, False Unavailable, False QuotaExceeded, False UpToDate, \
                 True QuotaExceeded, Stalled True QuotaExceeded",
            ),
        ]
    }

    fn while_pods_come() -> Vec<Told> {
        let plain = model(&json!({}));
        let gone = apply::Error::Predecessor { kind: Kind::Deployment, name: "minilm".into() };
        let two = model(&json!({"replicas": 2}));
        let rolls = "False RollingOut, True Cached, False Unavailable, True RollingOut, False UpToDate, \
                     False Healthy, Reconciling True RollingOut";
        let mut theirs = deployed(&plain, 1);
        let deployment = (Kind::Deployment, "minilm".to_owned());
        theirs.children.get_mut(&deployment).unwrap().metadata.owner_references = None;
        let conflict = apply::Error::NameConflict { kind: Kind::Deployment, name: "minilm".into() };
        vec![
            (applied(&plain, &fetched(&plain, "Complete", 0, SUMMARY), 2), rolls),
            (applied(&plain, &deployed(&plain, 0), 0), rolls),
            (
                applied(&two, &deployed(&two, 1), 0),
                "False ReplicasUnavailable, True Cached, True Ready, True ReplicasUnavailable, False UpToDate, \
                 False Healthy, Reconciling True ReplicasUnavailable",
            ),
            (
                applied(&two, &deployed(&two, 2), 1),
                "False RollingOut, True Cached, True Ready, True RollingOut, False UpToDate, False Healthy, \
                 Reconciling True RollingOut",
            ),
            // Somebody else's Deployment serves something else.
            (
                failed(&plain, &theirs, &conflict),
                "False NameConflict, True Cached, False Unavailable, False NameConflict, False UpToDate, \
                 True NameConflict, Stalled True NameConflict",
            ),
            (
                failed(&plain, &theirs, &gone),
                "False WaitingForDeletion, True Cached, False Unavailable, True WaitingForDeletion, \
                 False UpToDate, False Healthy, Reconciling True WaitingForDeletion",
            ),
            (
                failed(&plain, &deployed(&plain, 1), &refusal(Kind::Deployment, "no")),
                "False ApplyFailed, True Cached, True Ready, True ApplyFailed, False UpToDate, \
                 True ApplyFailed, Reconciling True ApplyFailed",
            ),
        ]
    }

    fn while_it_is_served() -> Vec<Told> {
        let plain = model(&json!({}));
        let (none, two) = (model(&json!({"replicas": 0})), model(&json!({"replicas": 2})));
        let mut paused = plain.clone();
        paused.spec.paused = true;
        let mut moved = paused.clone();
        moved.spec.service.port = 8080;
        let mut more = paused.clone();
        more.spec.replicas = 2;
        let waits = "False Paused, True Cached, True Ready, False Paused, False UpToDate, False Healthy";
        let mut updated = deployed(&plain, 1);
        for ((kind, name), record) in &mut updated.children {
            if *kind == Kind::ControllerRevision && name.contains("template") {
                record.data["data"]["pods"]["spec"]["containers"][0]["image"] = json!("server:0");
            }
        }
        let updated = made(&plain, updated);
        let mut lost = deployed(&plain, 1);
        cache_of(&mut lost)["status"] = json!({"phase": "Lost"});
        vec![
            (applied(&two, &deployed(&two, 2), 0), GOOD),
            (
                applied(&none, &deployed(&none, 0), 0),
                "False ScaledToZero, True Cached, False ScaledToZero, False Reconciled, False UpToDate, \
                 False Healthy",
            ),
            (
                applied(&plain, &updated, 0),
                "True Ready, True Cached, True Ready, False Reconciled, True NewPodTemplate, False Healthy",
            ),
            (
                applied(&paused, &deployed(&plain, 1), 0),
                "True Ready, True Cached, True Ready, False Paused, False UpToDate, False Healthy",
            ),
            (
                applied(&paused, &deployed(&plain, 0), 0),
                "False Paused, True Cached, False Unavailable, False Paused, False UpToDate, False Healthy",
            ),
            (applied(&moved, &deployed(&plain, 1), 0), waits),
            (applied(&more, &deployed(&plain, 1), 0), waits),
            // It serves, and will not when its pods go.
            (
                applied(&plain, &lost, 0),
                "True Ready, True Cached, True Ready, False Reconciled, False UpToDate, True VolumeFailed",
            ),
            (
                failed(&plain, &deployed(&plain, 1), &refusal(Kind::PersistentVolumeClaim, "cannot grow")),
                "False VolumeFailed, True Cached, True Ready, False VolumeFailed, False UpToDate, \
                 True VolumeFailed, Stalled True VolumeFailed",
            ),
        ]
    }

    fn while_the_space_changes() -> Vec<Told> {
        let plain = model(&json!({}));
        let changed = model(&json!({"inference": {"prompts": {"query": "q: "}}}));
        let mut refused = changed.clone();
        refused.spec.space_change_policy = SpaceChangePolicy::Refuse;
        let there = deployed(&plain, 1);
        let mut rolled_out = made(&changed, there.clone());
        set_available(&mut rolled_out, 1);
        vec![
            (applied(&plain, &bound(&plain), 1), "False SpaceUnknown"),
            (applied(&plain, &there, 0), "False SpaceUnchanged"),
            (applied(&changed, &rolled_out, 0), "True SpaceChangeAllowed"),
            (applied(&refused, &there, 0), "True SpaceChangeRefused"),
        ]
    }

    #[test]
    fn a_change_of_the_vector_space_is_told() {
        for (status, expected) in while_the_space_changes() {
            let condition = get(&status, "SpaceChanged");
            assert_eq!(format!("{} {}", condition.status, condition.reason), expected);
        }
        let statuses: Vec<_> = while_the_space_changes().into_iter().map(|(status, _)| status).collect();
        let space = |status: &EmbeddingModelStatus| status.model.as_ref().unwrap().space.clone();
        let spaces: Vec<_> = statuses.iter().map(space).collect();
        assert_eq!((spaces[0].as_ref(), &spaces[3]), (None, &spaces[1]));
        let message = &get(&statuses[2], "SpaceChanged").message;
        let [before, after] = [&spaces[1], &spaces[2]].map(|space| space.clone().unwrap());
        assert!(
            message.starts_with(&format!("vectors are of the space {after}, and were of {before}")),
            "{message}"
        );
        // The spec asks for prompts that the pods do not have.
        assert_eq!(
            told(&statuses[3]),
            [
                "Ready False SpaceChangeRefused",
                "ModelCached True Cached",
                "Available True Ready",
                "Progressing False SpaceChangeRefused",
                "UpdateAvailable False UpToDate",
                "Degraded True SpaceChangeRefused",
                "Stalled True SpaceChangeRefused",
            ]
        );
    }

    /// With another fetch that ended well, and said this.
    fn fetched_again(model: &EmbeddingModel, seen: Observed, message: &str) -> Observed {
        let known: Vec<_> = seen.children.keys().cloned().collect();
        let mut seen = made(model, seen);
        let new = |key: &(Kind, String)| key.0 == Kind::Job && !known.contains(key);
        let ((_, name), job) = seen.children.iter_mut().find(|(key, _)| new(key)).expect("it is fetched");
        job.data["status"] =
            json!({"conditions": [{"type": "Complete", "status": "True", "lastTransitionTime": now()}]});
        let owner = json!({"apiVersion": "batch/v1", "kind": "Job", "name": name, "uid": job.metadata.uid});
        let ended = json!({"terminated": {"exitCode": 0, "message": message}});
        let container = json!({"name": "fetch", "image": "server", "imageID": "", "ready": false, "restartCount": 0, "state": ended});
        let pod = json!({
            "metadata": {"name": "minilm-fetch-2", "ownerReferences": [owner]},
            "status": {"phase": "Succeeded", "containerStatuses": [container]},
        });
        seen.pods.push(serde_json::from_value(pod).unwrap());
        seen
    }

    #[test]
    fn a_model_whose_new_files_are_refused_stays_ready() {
        let plain = model(&json!({"spaceChangePolicy": "Refuse"}));
        let there = deployed(&plain, 1);
        let before = applied(&plain, &there, 0);
        let mut moved = plain.clone();
        moved.spec.source.hugging_face.as_mut().unwrap().endpoint = Some("https://hub.test/mirror".into());
        let other = SUMMARY.replace("0123", "3210").replace("e47a", "b00b");
        let after = applied(&moved, &fetched_again(&moved, there.clone(), &other), 0);
        assert_eq!((told(&after), &after.model), (told(&before), &before.model));
        assert_eq!(get(&after, "SpaceChanged").reason, "SpaceChangeRefused");

        // What came while it was allowed, and was fetched when it no longer was.
        let mut revised = plain.clone();
        revised.spec.source.hugging_face.as_mut().unwrap().revision = "v2".into();
        let after = applied(&revised, &fetched_again(&revised, there.clone(), &other), 0);
        assert_eq!(told(&after)[0], "Ready False SpaceChangeRefused");
        assert_eq!(get(&after, "Available").status, "True");
        assert_eq!(after.model.as_ref().unwrap().space, before.model.as_ref().unwrap().space);

        let same = SUMMARY.replace("0123", "3210");
        let after = applied(&moved, &fetched_again(&moved, there, &same), 1);
        assert_eq!(get(&after, "SpaceChanged").reason, "SpaceUnchanged");
        assert!(after.model.unwrap().resolved_revision.unwrap().starts_with("3210"));
    }

    #[test]
    fn the_space_of_pods_that_fetched_for_themselves_outlives_them() {
        let mut plain = model(&json!({
            "source": {"huggingFace": {"repo": "org/name", "revision": COMMIT}},
            "cache": {"ephemeral": true},
        }));
        let space = |status: &EmbeddingModelStatus| status.model.as_ref().unwrap().space.clone();
        let mut seen = made(&plain, Observed::default());
        assert_eq!(space(&applied(&plain, &seen, 1)), None);
        let ended = json!({"terminated": {"exitCode": 0, "message": SUMMARY}});
        let init = json!([{"name": "fetch", "image": "server", "imageID": "", "ready": true, "restartCount": 0, "state": ended}]);
        let pod = json!({"metadata": {"name": "minilm-1"}, "status": {"initContainerStatuses": init}});
        seen.pods.push(serde_json::from_value(pod).unwrap());
        let known = space(&applied(&plain, &seen, 1));
        assert!(known.is_some());
        let mut seen = made(&plain, seen);
        seen.pods.clear();
        // Also where there is no pod because the spec says so.
        plain.metadata.generation = Some(4);
        plain.spec.replicas = 0;
        assert_eq!(space(&applied(&plain, &seen, 1)), known);
        plain.spec.inference.default_prompt = Some("query".into());
        assert_ne!(space(&applied(&plain, &seen, 1)), known);
    }

    fn refused() -> Vec<(EmbeddingModelStatus, &'static str)> {
        [
            (json!({"inference": {"device": "CUDA"}}), "InvalidSpec"),
            (json!({"source": {"huggingFace": {"repo": "a/b", "endpoint": "https://x.test"}}}), "NotAllowed"),
            (json!({"gpu": {}}), "NoCudaImage"),
            (json!({"source": {"persistentVolumeClaim": {"claimName": "x"}}}), "ReferenceMissing"),
        ]
        .map(|(more, reason)| (applied(&model(&more), &Observed::default(), 0), reason))
        .into()
    }

    fn cache_of(seen: &mut Observed) -> &mut Value {
        let key = (Kind::PersistentVolumeClaim, "minilm-cache".to_owned());
        &mut seen.children.get_mut(&key).unwrap().data
    }

    fn refusal(kind: Kind, message: &str) -> apply::Error {
        let status =
            kube::core::Status { message: message.into(), code: 403, ..kube::core::Status::default() };
        let source = kube::Error::Api(Box::new(status));
        apply::Error::Write { verb: "applying", kind, name: "x".into(), source }
    }

    fn failed(model: &EmbeddingModel, seen: &Observed, error: &apply::Error) -> EmbeddingModelStatus {
        let valid = validate(model, &Observed::default(), &Config::for_tests()).unwrap();
        let desired = build::build(&valid, seen, &Config::for_tests(), now());
        let outcome = Outcome::Failed {
            reason: error.reason(),
            message: error.to_string(),
            wanted: Some((&valid, &desired)),
        };
        status(model, Some(seen), &outcome, now())
    }

    #[test]
    fn each_state_is_told_in_its_conditions() {
        let types = ["Ready ", "ModelCached ", "Available ", "Progressing ", "UpdateAvailable ", "Degraded "];
        let types = types.into_iter().chain(std::iter::repeat(""));
        for (status, expected) in [while_files_come(), while_pods_come(), while_it_is_served()].concat() {
            let expected: Vec<String> = types
                .clone()
                .zip(expected.split(", "))
                .map(|(type_, rest)| format!("{type_}{rest}"))
                .collect();
            assert_eq!(told(&status), expected, "{status:#?}");
            for condition in &status.conditions {
                assert_eq!(condition.observed_generation, Some(3));
                assert!(!condition.message.is_empty(), "{condition:?}");
            }
        }
    }

    #[test]
    fn a_refusal_is_told_of_everything_that_it_keeps_from_being() {
        for (status, reason) in refused() {
            for (type_, holds) in [("Ready", "False"), ("ModelCached", "False"), ("Stalled", "True")] {
                let condition = get(&status, type_);
                assert_eq!((condition.status.as_str(), condition.reason.as_str()), (holds, reason));
            }
        }
    }

    /// What is wrong with a model whose pods are on their way.
    fn in_trouble(there: &Value) -> EmbeddingModelStatus {
        let plain = model(&json!({}));
        let mut seen = deployed(&plain, 0);
        let trouble = observed(there);
        for (key, mut child) in trouble.children {
            if let Some(ours) = seen.children.get_mut(&key) {
                for (field, value) in child.data["status"].as_object().unwrap() {
                    ours.data["status"][field] = value.clone();
                }
            } else {
                child.metadata.labels = None;
                seen.children.insert(key, child);
            }
        }
        seen.pods.extend(trouble.pods);
        seen.events.extend(trouble.events);
        seen.source_claim = trouble.source_claim;
        applied(&plain, &seen, 0)
    }

    #[test]
    fn what_is_wrong_is_why_it_is_not_ready() {
        for (there, expected) in table() {
            let Some((reason, says)) = expected else { continue };
            // Of a claim that asks for no more than it has, growing is not told.
            if there.to_string().contains("VolumeResizeFailed") {
                continue;
            }
            let status = in_trouble(&there);
            for (type_, holds) in [("Ready", "False"), ("Degraded", "True")] {
                let condition = get(&status, type_);
                assert_eq!(
                    (condition.status.as_str(), &condition.reason),
                    (holds, &reason.name()),
                    "{there}"
                );
                assert!(condition.message.contains(says), "{condition:?}");
            }
            let stalled = status.conditions.iter().any(|condition| condition.type_ == "Stalled");
            assert_eq!(stalled, reason != Reason::ProbeFailed, "{there}");
        }
    }

    #[test]
    fn every_reason_is_told_of_something() {
        let states = [
            while_files_come(),
            while_pods_come(),
            while_it_is_served(),
            while_the_space_changes(),
            refused(),
        ]
        .concat();
        let of_states = states.into_iter().map(|(status, _)| status);
        let of_trouble = table().into_iter().map(|(there, _)| in_trouble(&there));
        let told: BTreeSet<String> = of_states
            .chain(of_trouble)
            .flat_map(|status| status.conditions)
            .map(|condition| condition.reason)
            .collect();
        let all: BTreeSet<String> = Reason::ALL.into_iter().map(Reason::name).collect();
        assert_eq!(told, all);
    }

    #[test]
    fn a_download_that_failed_stays_told_while_it_is_tried_again() {
        let mut plain = model(&json!({}));
        let failed = fetched(&plain, "Failed", 77, "error: 401");
        plain.status = Some(applied(&plain, &failed, 0));
        let mut due = failed;
        for job in due.children.values_mut().filter(|child| !child.data["status"]["conditions"].is_null()) {
            job.data["status"]["conditions"][0]["lastTransitionTime"] = json!("2025-12-31T00:00:00Z");
        }
        let again = applied(&plain, &due, 1);
        assert_eq!(get(&again, "Ready").reason, "Fetching");
        let degraded = get(&again, "Degraded");
        assert_eq!((degraded.status.as_str(), degraded.reason.as_str()), ("True", "SourceRefused"));
        assert_eq!(degraded.message, "fetching org/name: 401");
        assert_eq!(
            degraded.last_transition_time,
            get(plain.status.as_ref().unwrap(), "Degraded").last_transition_time
        );
        assert!(again.conditions.iter().any(|condition| condition.type_ == "Reconciling"));
        assert!(again.conditions.iter().all(|condition| condition.type_ != "Stalled"));
        // The first try of another source has not failed.
        plain.spec.source.hugging_face.as_mut().unwrap().repo = "org/other".into();
        assert_eq!(get(&applied(&plain, &due, 1), "Degraded").reason, "Healthy");
    }

    #[test]
    fn what_is_not_as_a_user_expects_is_told_where_all_is_well() {
        let monitored = model(&json!({"monitoring": {"serviceMonitor": true}}));
        let mut seen = deployed(&monitored, 1);
        let told = get(&applied(&monitored, &seen, 0), "Progressing").message.clone();
        assert!(told.contains("does not know monitoring.coreos.com/v1"), "{told}");
        seen.service_monitors_exist = true;
        let told = get(&applied(&monitored, &seen, 0), "Progressing").message.clone();
        assert_eq!(told, "the wanted state is reached");

        let scaling = json!({"autoscaling": {"maxReplicas": 9}, "resources": {"requests": {"cpu": "1"}}});
        let mut scaled = deployed(&model(&scaling), 0);
        let deployment = scaled.children.get_mut(&(Kind::Deployment, "minilm".to_owned())).unwrap();
        deployment.data["spec"]["replicas"] = json!(5);
        let one = model(&json!({"resources": {"requests": {"cpu": "1"}}}));
        let mut held = made(&one, scaled);
        set_available(&mut held, 5);
        let told = get(&applied(&one, &held, 0), "Ready").message.clone();
        assert!(
            told.starts_with("every replica can embed; 5 run as when autoscaling was turned off"),
            "{told}"
        );
    }

    #[test]
    fn times_change_with_a_status_and_not_with_a_reason() {
        let mut plain = model(&json!({}));
        let first = applied(&plain, &bound(&plain), 0);
        plain.status = Some(first.clone());
        let later = now() + jiff::SignedDuration::from_secs(60);
        let valid = validate(&plain, &Observed::default(), &Config::for_tests()).unwrap();
        let seen = fetched(&plain, "Complete", 0, SUMMARY);
        let desired = build::build(&valid, &seen, &Config::for_tests(), later);
        let outcome = Outcome::Applied { model: &valid, desired: &desired, writes: 1 };
        let second = status(&plain, Some(&seen), &outcome, later);
        assert_eq!(get(&second, "Ready").reason, "RollingOut");
        assert_eq!(get(&second, "Ready").last_transition_time.0, now());
        assert_eq!(get(&second, "ModelCached").last_transition_time.0, later);
        assert!(!is_same(Some(&first), &second) && is_same(Some(&second), &second));
        // A condition of somebody else is nothing that we would change.
        let mut with_another = second.clone();
        with_another
            .conditions
            .push(Condition { type_: "example.com/Theirs".into(), ..second.conditions[0].clone() });
        assert!(is_same(Some(&with_another), &second));
        assert!(!is_same(None, &second));
    }

    #[test]
    fn what_was_known_stays_while_nothing_can_be_seen() {
        let mut plain = model(&json!({"replicas": 2}));
        let before = applied(&plain, &deployed(&plain, 2), 0);
        plain.status = Some(before.clone());
        let outcome =
            Outcome::Failed { reason: Reason::ApplyFailed, message: "no answer".into(), wanted: None };
        let after = status(&plain, None, &outcome, now());
        assert_eq!((after.replicas, after.ready_replicas), (2, 2));
        assert_eq!(
            (&after.model, &after.cache, &after.endpoint),
            (&before.model, &before.cache, &before.endpoint)
        );
        for type_ in ["ModelCached", "Available", "UpdateAvailable"] {
            assert_eq!(get(&after, type_), get(&before, type_));
        }
        assert_eq!(get(&after, "Ready").reason, "ApplyFailed");
    }
}
