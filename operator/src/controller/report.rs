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

use super::build::{self, Desired, names};
use super::diagnose::{self, Problem};
use super::fetched::State;
use super::observe::Observed;
use super::validate::{Files, Refusal, ValidModel};
use crate::crd::EmbeddingModel;
use crate::crd::status::{CacheStatus, ConditionType, EmbeddingModelStatus, Reason};

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
    let deployment = observed.and_then(|observed| observed.deployment(&name));
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
        status.model = Some(desired.model.clone());
        status.cache = cache(valid, desired);
        status.rollout = Some(desired.rollout.clone());
    }
    let judged = judge(outcome, wanted, deployment.as_ref(), &problems, &old);
    let generation = model.metadata.generation;
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
                None => keep(&old, ConditionType::Available),
            },
        ),
        condition(ConditionType::Progressing, judged.progressing.clone()),
        condition(
            ConditionType::UpdateAvailable,
            match wanted {
                Some((_, desired)) => update(desired),
                None => keep(&old, ConditionType::UpdateAvailable),
            },
        ),
        condition(ConditionType::Degraded, judged.degraded.clone()),
    ];
    // For kstatus: only while they hold.
    if judged.degraded.0 && !judged.progressing.0 {
        status.conditions.push(condition(ConditionType::Stalled, judged.degraded));
    } else if judged.progressing.0 {
        status.conditions.push(condition(ConditionType::Reconciling, judged.progressing));
    }
    status
}

struct Judged {
    ready: Verdict,
    cached: Verdict,
    progressing: Verdict,
    degraded: Verdict,
}

fn judge(
    outcome: &Outcome<'_>,
    wanted: Option<(&ValidModel, &Desired)>,
    deployment: Option<&Deployment>,
    problems: &[Problem],
    old: &EmbeddingModelStatus,
) -> Judged {
    let cached = match wanted {
        Some((_, desired)) => cached(desired),
        None => keep(old, ConditionType::ModelCached),
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
            let degraded = match (&desired.files, problem) {
                (State::Failed { why, refused, .. }, _) => {
                    bad(fetch_reason(*refused), &fetch_failed(desired, why))
                }
                (_, Some(problem)) => bad(problem.reason, &problem.message),
                (_, None) => healthy(),
            };
            let goal = goal(model, desired, *writes, deployment);
            if model.paused {
                let reached = goal.is_none();
                let message = "paused: objects are left as they are".to_owned();
                return Judged {
                    ready: if reached {
                        (true, Reason::Ready, "every replica can embed".into())
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
                    ready: (true, Reason::Ready, "every replica can embed".into()),
                    cached,
                    progressing: (false, Reason::Reconciled, "the wanted state is reached".into()),
                    // Pods that were replaced may still be going.
                    degraded: healthy(),
                },
                Some((reason @ Reason::ScaledToZero, message)) => Judged {
                    ready: not_ready(reason, message.clone()),
                    cached,
                    progressing: (false, Reason::Reconciled, "the wanted state is reached".into()),
                    degraded: healthy(),
                },
                Some((reason, message)) => {
                    let stuck = matches!(desired.files, State::Failed { .. })
                        || problem.is_some_and(|problem| needs_help(problem.reason));
                    let (ready, progressing) = if degraded.0 {
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

/// Whether somebody has to do something. The others may go away by themselves.
fn needs_help(reason: Reason) -> bool {
    !matches!(reason, Reason::ProbeFailed)
}

/// What is still missing until `Ready`, if anything is.
fn goal(
    model: &ValidModel,
    desired: &Desired,
    writes: usize,
    deployment: Option<&Deployment>,
) -> Option<(Reason, String)> {
    match &desired.files {
        State::Here(_) => {}
        State::NoVolume => {
            return Some((Reason::WaitingForVolume, "the volume for the model's files is being made".into()));
        }
        State::Fetching { attempt, .. } => {
            let what = desired.model.source.clone().unwrap_or_default();
            let again = if *attempt > 1 { format!(", try {attempt}") } else { String::new() };
            return Some((Reason::Fetching, format!("{what} is being fetched{again}")));
        }
        State::Failed { why, refused, .. } => {
            return Some((fetch_reason(*refused), fetch_failed(desired, why)));
        }
    }
    let Some(deployment) = deployment else {
        return Some((Reason::RollingOut, "the first pods are being made".into()));
    };
    let replicas = deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
    let status = deployment.status.clone().unwrap_or_default();
    let ready = status.available_replicas.unwrap_or(0);
    let updated = status.updated_replicas.unwrap_or(0);
    let same_pods = super::same::covers(
        &serde_json::to_value(desired.template.as_ref().map(|template| &template.pods)).unwrap_or_default(),
        &serde_json::to_value(deployment.spec.as_ref().map(|spec| &spec.template)).unwrap_or_default(),
    );
    let settled = if model.paused { same_pods } else { writes == 0 };
    if !settled || !desired.template_is_current || !build::rolled_out(deployment) {
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

fn fetch_reason(refused: bool) -> Reason {
    if refused { Reason::SourceRefused } else { Reason::FetchFailed }
}

fn fetch_failed(desired: &Desired, why: &str) -> String {
    let what = desired.model.source.clone().unwrap_or_default();
    match &desired.files {
        State::Failed { retry_at, .. } => {
            format!("fetching {what}: {why}; next try at {}", whole_seconds(*retry_at))
        }
        _ => format!("fetching {what}: {why}"),
    }
}

fn whole_seconds(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

fn cached(desired: &Desired) -> Verdict {
    match &desired.files {
        State::Here(_) => (true, Reason::Cached, "the model's files are in the cluster".into()),
        State::NoVolume => (false, Reason::WaitingForVolume, "the volume is being made".into()),
        State::Fetching { .. } => (false, Reason::Fetching, "the model's files are being fetched".into()),
        State::Failed { why, refused, .. } => (false, fetch_reason(*refused), fetch_failed(desired, why)),
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

fn keep(old: &EmbeddingModelStatus, type_: ConditionType) -> Verdict {
    let was = old.conditions.iter().find(|condition| condition.type_ == type_.name());
    let reason = was.and_then(|was| Reason::ALL.into_iter().find(|reason| reason.name() == was.reason));
    match (was, reason) {
        (Some(was), Some(reason)) => (was.status == "True", reason, was.message.clone()),
        _ => (false, Reason::InvalidSpec, "the spec was never built".into()),
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
    let was = old.conditions.iter().find(|condition| condition.type_ == type_.name());
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

fn cache(model: &ValidModel, desired: &Desired) -> Option<CacheStatus> {
    let claim_name = match &model.files {
        Files::Cached { .. } => Some(names::cache(&model.name)),
        Files::Claim { claim, .. } => Some(claim.claim_name.clone()),
        Files::Ephemeral(_) | Files::Image(_) => None,
    }?;
    let bytes = match &desired.files {
        State::Here(here) => here.summary.bytes,
        _ => None,
    };
    Some(CacheStatus { claim_name: Some(claim_name), bytes, total_bytes: bytes })
}
