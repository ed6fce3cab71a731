//! What is wrong, from the objects that say so: Jobs, pods, claims, and their events. Pure.

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ContainerStatus, PersistentVolumeClaim, Pod};
use kube::ResourceExt as _;

use super::build::names;
use super::object::Kind;
use super::observe::Observed;
use crate::crd::status::Reason;

/// Something that keeps the wanted state from being reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The word.
    pub reason: Reason,
    /// Which object, and what it says.
    pub message: String,
}

impl Problem {
    fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }
}

/// What is wrong with the model `name`, the most telling first: what a volume lacks
/// explains why pods wait, and what pods say explains why a rollout does not get on.
pub fn problems(name: &str, observed: &Observed) -> Vec<Problem> {
    let mut problems = Vec::new();
    problems.extend(observed.cache(name).and_then(|claim| of_claim(&claim, observed)));
    let mut pods: Vec<&Pod> =
        observed.pods.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()).collect();
    // The newest pods are of what is wanted now.
    pods.sort_by_key(|pod| std::cmp::Reverse(pod.creation_timestamp().map(|time| time.0)));
    for pod in pods {
        problems.extend(of_pod(pod, observed));
    }
    for job in observed.jobs() {
        problems.extend(of_creation(observed, "Job", &job.name_any()));
    }
    problems.extend(observed.deployment(name).and_then(|deployment| of_deployment(&deployment)));
    problems.dedup_by_key(|problem| problem.message.clone());
    problems
}

fn of_claim(claim: &PersistentVolumeClaim, observed: &Observed) -> Option<Problem> {
    let name = claim.name_any();
    let phase = claim.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or("Pending");
    if phase == "Lost" {
        return Some(Problem::new(
            Reason::VolumeFailed,
            format!(
                "PersistentVolumeClaim {name} has lost its volume: delete the claim to start with an empty one"
            ),
        ));
    }
    let event = observed.warning(Kind::PersistentVolumeClaim.resource().kind.as_str(), &name)?;
    let why = event.reason.as_deref().unwrap_or_default();
    let says = event.message.as_deref().unwrap_or_default();
    let matters = if phase == "Bound" {
        why.contains("Resize") || why.contains("Expand")
    } else {
        matches!(why, "ProvisioningFailed" | "FailedBinding" | "VolumeMismatch")
    };
    matters
        .then(|| Problem::new(Reason::VolumeFailed, format!("PersistentVolumeClaim {name}: {}", line(says))))
}

fn of_pod(pod: &Pod, observed: &Observed) -> Option<Problem> {
    let name = pod.name_any();
    let status = pod.status.as_ref()?;
    let conditions = status.conditions.as_deref().unwrap_or_default();
    let condition = |name: &str| conditions.iter().find(|condition| condition.type_ == name);
    if let Some(scheduled) = condition("PodScheduled")
        && scheduled.status == "False"
    {
        let says = scheduled.message.as_deref().unwrap_or("no node can run it");
        return Some(Problem::new(Reason::Unschedulable, format!("Pod {name}: {}", line(says))));
    }
    let containers = status.init_container_statuses.iter().chain(&status.container_statuses).flatten();
    if let Some(problem) = containers.into_iter().find_map(|container| of_container(&name, container)) {
        return Some(problem);
    }
    let ready = condition("Ready").is_some_and(|ready| ready.status == "True");
    if ready || matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")) {
        return None;
    }
    let event = observed.warning("Pod", &name)?;
    let says = line(event.message.as_deref().unwrap_or_default());
    let message = format!("Pod {name}: {says}");
    match event.reason.as_deref().unwrap_or_default() {
        "FailedMount" if says.contains("not found") => Some(Problem::new(Reason::ReferenceMissing, message)),
        "FailedMount" | "FailedAttachVolume" | "FailedMapVolume" => {
            Some(Problem::new(Reason::VolumeFailed, message))
        }
        "Unhealthy" => Some(Problem::new(Reason::ProbeFailed, message)),
        _ => None,
    }
}

fn of_container(pod: &str, container: &ContainerStatus) -> Option<Problem> {
    let waiting = container.state.as_ref().and_then(|state| state.waiting.as_ref());
    let last = container.last_state.as_ref().and_then(|state| state.terminated.as_ref());
    let at = format!("Pod {pod}, container {}", container.name);
    if let Some(waiting) = waiting {
        let says = line(waiting.message.as_deref().unwrap_or_default());
        let why = waiting.reason.as_deref().unwrap_or_default();
        match why {
            "ErrImagePull" | "ImagePullBackOff" | "InvalidImageName" | "ErrImageNeverPull" => {
                let message = format!("{at}: image {}: {why}: {says}", container.image);
                return Some(Problem::new(Reason::ImagePullFailed, message));
            }
            "CreateContainerConfigError" | "CreateContainerError" | "RunContainerError" => {
                return Some(Problem::new(Reason::ReferenceMissing, format!("{at}: {says}")));
            }
            "CrashLoopBackOff" if last.is_none() => {
                return Some(Problem::new(Reason::CrashLoop, format!("{at}: {says}")));
            }
            _ => {}
        }
    }
    let last = last.filter(|_| !container.ready)?;
    if last.reason.as_deref() == Some("OOMKilled") {
        return Some(Problem::new(
            Reason::OutOfMemory,
            format!(
                "{at} was killed because it used more memory than its limit: raise resources.limits.memory"
            ),
        ));
    }
    // One failure is no loop: what restarts it may help.
    let loops = waiting.is_some_and(|waiting| waiting.reason.as_deref() == Some("CrashLoopBackOff"));
    loops.then(|| {
        let says = last.message.as_deref().map(last_line).filter(|says| !says.is_empty());
        let says = says.map(|says| format!(": {says}")).unwrap_or_default();
        Problem::new(
            Reason::CrashLoop,
            format!("{at} ends again and again, last with exit code {}{says}", last.exit_code),
        )
    })
}

/// Pods that cannot even be made.
fn of_creation(observed: &Observed, kind: &str, name: &str) -> Option<Problem> {
    let event = observed.warning(kind, name)?;
    if event.reason.as_deref() != Some("FailedCreate") {
        return None;
    }
    let says = line(event.message.as_deref().unwrap_or_default());
    Some(Problem::new(forbidden(&says), format!("{kind} {name}: {says}")))
}

fn of_deployment(deployment: &Deployment) -> Option<Problem> {
    let name = deployment.name_any();
    let conditions = deployment.status.as_ref()?.conditions.as_deref()?;
    for condition in conditions {
        let says = line(condition.message.as_deref().unwrap_or_default());
        match (condition.type_.as_str(), condition.status.as_str(), condition.reason.as_deref()) {
            ("ReplicaFailure", "True", _) => {
                return Some(Problem::new(forbidden(&says), format!("Deployment {name}: {says}")));
            }
            ("Progressing", "False", Some("ProgressDeadlineExceeded")) => {
                return Some(Problem::new(
                    Reason::RolloutStuck,
                    format!(
                        "Deployment {name}: {says} `kubectl describe pods -l {}` tells more",
                        names::server_selector(&name)
                    ),
                ));
            }
            _ => {}
        }
    }
    None
}

fn forbidden(says: &str) -> Reason {
    if says.contains("serviceaccount") && says.contains("not found") {
        Reason::ReferenceMissing
    } else {
        // Quotas, limit ranges, pod security: all forbid pods.
        Reason::QuotaExceeded
    }
}

/// The text on one line, and not without end.
fn line(text: &str) -> String {
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if text.chars().count() <= 600 { text } else { text.chars().take(600).chain(['…']).collect() }
}

fn last_line(text: &str) -> String {
    line(text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default())
}
