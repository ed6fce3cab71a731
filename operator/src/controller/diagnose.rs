//! What is wrong, from the objects that say so: Jobs, pods, claims, and their events. Pure.

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ContainerStatus, PersistentVolumeClaim, Pod};
use kube::ResourceExt as _;

use super::build::{self, names};
use super::fetched;
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
    problems.extend(observed.source_claim.as_ref().and_then(|claim| of_claim(claim, observed)));
    let mut pods: Vec<&Pod> =
        observed.pods.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()).collect();
    // The newest pods are of what is wanted now.
    pods.sort_by_key(|pod| std::cmp::Reverse(pod.creation_timestamp().map(|time| time.0)));
    for pod in pods {
        problems.extend(of_pod(name, pod, observed));
    }
    for job in observed.jobs() {
        problems.extend(of_creation(&job, observed));
    }
    problems.extend(observed.deployment(name).and_then(|deployment| of_deployment(&deployment)));
    problems.dedup_by_key(|problem| problem.message.clone());
    problems
}

/// Whether a claim asks for more than its volume has.
pub fn is_growing(claim: &PersistentVolumeClaim) -> bool {
    let wanted = claim.spec.as_ref().and_then(|spec| spec.resources.as_ref()?.requests.as_ref());
    let has = claim.status.as_ref().and_then(|status| status.capacity.as_ref());
    has.and_then(|has| has.get("storage")) != wanted.and_then(|wanted| wanted.get("storage"))
}

fn of_claim(claim: &PersistentVolumeClaim, observed: &Observed) -> Option<Problem> {
    let name = claim.name_any();
    let phase = claim.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or("Pending");
    if phase == "Lost" {
        return Some(Problem::new(
            Reason::VolumeFailed,
            format!(
                "PersistentVolumeClaim {name} has lost its volume: delete the claim, and the pods that use it, to start \
                 with an empty one"
            ),
        ));
    }
    let event = observed.warning(Kind::PersistentVolumeClaim.resource().kind.as_str(), &name)?;
    let why = event.reason.as_deref().unwrap_or_default();
    let says = event.message.as_deref().unwrap_or_default();
    let matters = if phase == "Bound" {
        // What events tell may be over.
        is_growing(claim) && (why.contains("Resize") || why.contains("Expand"))
    } else {
        matches!(why, "ProvisioningFailed" | "FailedBinding" | "VolumeMismatch")
    };
    matters
        .then(|| Problem::new(Reason::VolumeFailed, format!("PersistentVolumeClaim {name}: {}", line(says))))
}

fn of_pod(model: &str, pod: &Pod, observed: &Observed) -> Option<Problem> {
    let name = pod.name_any();
    let status = pod.status.as_ref()?;
    if build::is_over(pod) {
        return None;
    }
    let conditions = status.conditions.as_deref().unwrap_or_default();
    let condition = |name: &str| conditions.iter().find(|condition| condition.type_ == name);
    if let Some(scheduled) = condition("PodScheduled")
        && scheduled.status == "False"
    {
        let says = line(scheduled.message.as_deref().unwrap_or("no node can run it"));
        if says.contains("unbound immediate PersistentVolumeClaims")
            && observed.unbound_cache(model).is_some()
        {
            // It waits as it should; what is wrong with the claim is told of the claim.
            return None;
        }
        let missing = says.contains("persistentvolumeclaim") && says.contains("not found");
        let reason = if missing { Reason::ReferenceMissing } else { Reason::Unschedulable };
        return Some(Problem::new(reason, format!("Pod {name}: {says}")));
    }
    let containers = status.init_container_statuses.iter().chain(&status.container_statuses).flatten();
    if let Some(problem) = containers.into_iter().find_map(|container| of_container(&name, container)) {
        return Some(problem);
    }
    let ready = condition("Ready").is_some_and(|ready| ready.status == "True");
    if ready {
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
        // Until its budget is used up and the container starts anew, that only means that
        // it has not started yet.
        "Unhealthy" if says.starts_with("Startup probe") && !was_restarted(pod) => None,
        "Unhealthy" => Some(Problem::new(Reason::ProbeFailed, message)),
        _ => None,
    }
}

fn was_restarted(pod: &Pod) -> bool {
    let containers = pod.status.as_ref().and_then(|status| status.container_statuses.as_ref());
    containers.into_iter().flatten().any(|container| container.restart_count > 0)
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
    let ended = container.state.as_ref().and_then(|state| state.terminated.as_ref()).or(last)?;
    // Where it has started since, that it ended once is over. An init container has no probe
    // that could say so.
    let fetches = container.name == names::FETCH;
    if container.ready || (container.started == Some(true) && !fetches) {
        return None;
    }
    let out_of_memory = ended.reason.as_deref() == Some("OOMKilled");
    if out_of_memory && !fetches {
        return Some(Problem::new(
            Reason::OutOfMemory,
            format!(
                "{at} was killed because it used more memory than its limit: raise resources.limits.memory"
            ),
        ));
    }
    // One failure is no loop: what restarts it may help. In a loop it runs now and then.
    let waits = waiting.is_some_and(|waiting| waiting.reason.as_deref() == Some("CrashLoopBackOff"));
    if !waits && container.restart_count < 2 {
        return None;
    }
    let says = ended.message.as_deref().map(last_line).filter(|says| !says.is_empty());
    if fetches {
        let says = says.unwrap_or_else(|| fetched::ending(ended));
        let reason = fetched::reason(ended.exit_code == fetched::REFUSED);
        return Some(Problem::new(reason, format!("{at}: {}", fetched::cause(&says))));
    }
    let says = says.map(|says| format!(": {says}")).unwrap_or_default();
    Some(Problem::new(
        Reason::CrashLoop,
        format!("{at} ends again and again, last with exit code {}{says}", ended.exit_code),
    ))
}

/// Pods that cannot even be made.
fn of_creation(job: &Job, observed: &Observed) -> Option<Problem> {
    let name = job.name_any();
    let status = job.status.clone().unwrap_or_default();
    let done = status.conditions.iter().flatten().any(|condition| {
        condition.status == "True" && matches!(condition.type_.as_str(), "Complete" | "Failed")
    });
    if done || status.active.unwrap_or(0) > 0 {
        // What events tell is over.
        return None;
    }
    let event = observed.warning("Job", &name)?;
    if event.reason.as_deref() != Some("FailedCreate") {
        return None;
    }
    let says = line(event.message.as_deref().unwrap_or_default());
    Some(Problem::new(forbidden(&says), format!("Job {name}: {says}")))
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
    if says.contains("not found") || says.contains("no PriorityClass with name") {
        // A service account, a runtime class.
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

#[cfg(test)]
pub(super) mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// What is there, from `children`, `pods`, `events` and `sourceClaim`.
    pub(in crate::controller) fn observed(json: &Value) -> Observed {
        let mut observed = Observed::default();
        let all = |field: &str| json[field].as_array().cloned().unwrap_or_default();
        for mut object in all("children") {
            let kind = Kind::ALL.into_iter().find(|kind| kind.resource().kind == object["kind"]).unwrap();
            object["apiVersion"] = json!(kind.resource().api_version);
            let object: kube::api::DynamicObject = serde_json::from_value(object).unwrap();
            observed.children.insert((kind, object.name_any()), object);
        }
        observed.pods = serde_json::from_value(json!(all("pods"))).unwrap();
        observed.events = all("events").iter().map(event).collect();
        observed.source_claim = serde_json::from_value(json["sourceClaim"].clone()).unwrap();
        observed
    }

    /// `[kind, name, reason, message]`.
    fn event(told: &Value) -> k8s_openapi::api::core::v1::Event {
        serde_json::from_value(json!({
            "metadata": {"name": "e"},
            "involvedObject": {"kind": told[0], "name": told[1]},
            "reason": told[2],
            "message": told[3],
            "type": "Warning",
        }))
        .unwrap()
    }

    fn claim(name: &str, phase: &str) -> Value {
        json!({
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": name},
            "spec": {"resources": {"requests": {"storage": "20Gi"}}},
            "status": {"phase": phase, "capacity": {"storage": "10Gi"}},
        })
    }

    /// A pod with one container.
    fn pod(container: &Value) -> Value {
        let mut status = json!({"name": "server", "image": "r/server:1", "imageID": "", "ready": false, "restartCount": 0});
        for (field, value) in container.as_object().unwrap() {
            status[field] = value.clone();
        }
        let ready = if status["ready"] == true { "True" } else { "False" };
        json!({
            "metadata": {"name": "minilm-1", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "status": {
                "phase": "Running",
                "conditions": [{"type": "PodScheduled", "status": "True"}, {"type": "Ready", "status": ready}],
                "containerStatuses": [status],
            },
        })
    }

    fn unscheduled(message: &str) -> Value {
        let scheduled = json!({"type": "PodScheduled", "status": "False", "message": message});
        json!({"metadata": {"name": "minilm-1"}, "status": {"phase": "Pending", "conditions": [scheduled]}})
    }

    fn waiting(reason: &str, message: &str) -> Value {
        json!({"state": {"waiting": {"reason": reason, "message": message}}})
    }

    fn ended(code: i32, reason: &str, message: &str) -> Value {
        json!({"terminated": {"exitCode": code, "reason": reason, "message": message}})
    }

    fn deployment(type_: &str, status: &str, reason: &str, message: &str) -> Value {
        json!({
            "kind": "Deployment",
            "metadata": {"name": "minilm"},
            "spec": {"selector": {}, "template": {}},
            "status": {"conditions": [{"type": type_, "status": status, "reason": reason, "message": message}]},
        })
    }

    /// What is there, and what is wrong with it: the word, and what is told.
    #[expect(clippy::too_many_lines, reason = "a table")]
    pub(in crate::controller) fn table() -> Vec<(Value, Option<(Reason, &'static str)>)> {
        use Reason as R;
        let runs = json!({"running": {}});
        let back_off = json!({"waiting": {"reason": "CrashLoopBackOff"}});
        let cache = "minilm-cache";
        let provisioning =
            json!(["PersistentVolumeClaim", cache, "ProvisioningFailed", "class \"x\"\nnot found"]);
        let resize = json!(["PersistentVolumeClaim", cache, "VolumeResizeFailed", "no room"]);
        let mut grown = claim(cache, "Bound");
        grown["status"]["capacity"]["storage"] = json!("20Gi");
        let job = |status: Value| json!({"kind": "Job", "metadata": {"name": "f"}, "status": status});
        let forbidden = json!(["Job", "f", "FailedCreate", "exceeded quota: q"]);
        let with_event = |pod: Value, reason: &str, message: &str| json!({"pods": [pod], "events": [["Pod", "minilm-1", reason, message]]});
        let unbound = "0/1 nodes are available: pod has unbound immediate PersistentVolumeClaims.";
        let failed = |mut pod: Value| {
            pod["status"]["phase"] = json!("Failed");
            pod
        };
        vec![
            // Claims.
            (json!({"children": [claim(cache, "Bound")]}), None),
            (json!({"children": [claim(cache, "Pending")]}), None),
            (
                json!({"children": [claim(cache, "Lost")]}),
                Some((
                    R::VolumeFailed,
                    "PersistentVolumeClaim minilm-cache has lost its volume: delete the claim, and the pods that use it, to start with an empty one",
                )),
            ),
            (
                json!({"sourceClaim": claim("mine", "Lost")}),
                Some((R::VolumeFailed, "PersistentVolumeClaim mine has lost")),
            ),
            (
                json!({"children": [claim(cache, "Pending")], "events": [provisioning]}),
                Some((R::VolumeFailed, "PersistentVolumeClaim minilm-cache: class \"x\" not found")),
            ),
            (json!({"children": [claim(cache, "Bound")], "events": [provisioning]}), None),
            (
                json!({"children": [claim(cache, "Bound")], "events": [resize]}),
                Some((R::VolumeFailed, "minilm-cache: no room")),
            ),
            (json!({"children": [grown], "events": [resize]}), None),
            // Scheduling.
            (
                json!({"pods": [unscheduled("0/1 nodes are available: 1 Insufficient nvidia.com/gpu.")]}),
                Some((
                    R::Unschedulable,
                    "Pod minilm-1: 0/1 nodes are available: 1 Insufficient nvidia.com/gpu.",
                )),
            ),
            (
                json!({"pods": [unscheduled("persistentvolumeclaim \"x\" not found")]}),
                Some((R::ReferenceMissing, "Pod minilm-1: persistentvolumeclaim \"x\" not found")),
            ),
            (json!({"pods": [unscheduled(unbound)]}), Some((R::Unschedulable, "unbound"))),
            (json!({"pods": [unscheduled(unbound)], "children": [claim(cache, "Pending")]}), None),
            // Containers that do not start.
            (json!({"pods": [pod(&waiting("ContainerCreating", ""))]}), None),
            (
                json!({"pods": [pod(&waiting("ErrImagePull", "denied"))]}),
                Some((
                    R::ImagePullFailed,
                    "Pod minilm-1, container server: image r/server:1: ErrImagePull: denied",
                )),
            ),
            (
                json!({"pods": [pod(&waiting("ImagePullBackOff", "not found"))]}),
                Some((R::ImagePullFailed, "ImagePullBackOff: not found")),
            ),
            (
                json!({"pods": [pod(&waiting("InvalidImageName", "x"))]}),
                Some((R::ImagePullFailed, "InvalidImageName")),
            ),
            (
                json!({"pods": [pod(&waiting("CreateContainerConfigError", "secret \"t\" not found"))]}),
                Some((R::ReferenceMissing, "Pod minilm-1, container server: secret \"t\" not found")),
            ),
            // Containers that end.
            (
                json!({"pods": [pod(&waiting("CrashLoopBackOff", "back-off"))]}),
                Some((R::CrashLoop, "back-off")),
            ),
            (
                json!({"pods": [pod(&json!({"state": back_off, "lastState": ended(3, "Error", "a\nb\n"), "restartCount": 1}))]}),
                Some((
                    R::CrashLoop,
                    "Pod minilm-1, container server ends again and again, last with exit code 3: b",
                )),
            ),
            (
                json!({"pods": [pod(&json!({"state": back_off, "lastState": ended(139, "Error", ""), "restartCount": 1}))]}),
                Some((R::CrashLoop, "exit code 139")),
            ),
            (
                json!({"pods": [pod(&json!({"state": runs, "lastState": ended(3, "Error", ""), "restartCount": 1}))]}),
                None,
            ),
            (json!({"pods": [pod(&json!({"state": ended(3, "Error", "")}))]}), None),
            (
                json!({"pods": [pod(&json!({"state": runs, "lastState": ended(3, "Error", "b"), "restartCount": 2, "started": false}))]}),
                Some((R::CrashLoop, "code 3: b")),
            ),
            (
                json!({"pods": [pod(&json!({"state": ended(3, "Error", "b"), "restartCount": 2, "started": false}))]}),
                Some((R::CrashLoop, "code 3: b")),
            ),
            (
                json!({"pods": [pod(&json!({"state": runs, "lastState": ended(3, "Error", "b"), "restartCount": 9, "started": true}))]}),
                None,
            ),
            (
                json!({"pods": [pod(&json!({"state": runs, "lastState": ended(3, "Error", "b"), "restartCount": 9, "started": true, "ready": true}))]}),
                None,
            ),
            (
                json!({"pods": [pod(&json!({"state": back_off, "lastState": ended(137, "OOMKilled", "")}))]}),
                Some((
                    R::OutOfMemory,
                    "Pod minilm-1, container server was killed because it used more memory than its limit: raise resources.limits.memory",
                )),
            ),
            (
                json!({"pods": [pod(&json!({"state": runs, "lastState": ended(137, "OOMKilled", ""), "restartCount": 1}))]}),
                Some((R::OutOfMemory, "")),
            ),
            (
                json!({"pods": [pod(&json!({"name": "fetch", "state": back_off, "lastState": ended(77, "Error", "error: 401")}))]}),
                Some((R::SourceRefused, "Pod minilm-1, container fetch: 401")),
            ),
            (
                json!({"pods": [pod(&json!({"name": "fetch", "state": back_off, "lastState": ended(137, "OOMKilled", "")}))]}),
                Some((
                    R::FetchFailed,
                    "container fetch: it ended with exit code 137 (OOMKilled) and said nothing",
                )),
            ),
            (
                json!({"pods": [failed(pod(&json!({"name": "fetch", "state": ended(1, "Error", "error: 401")})))]}),
                None,
            ),
            // Pods that wait, or are not healthy.
            (
                with_event(pod(&json!({})), "FailedMount", "configmap \"ca\" not found"),
                Some((R::ReferenceMissing, "Pod minilm-1: configmap \"ca\" not found")),
            ),
            (
                with_event(pod(&json!({})), "FailedAttachVolume", "Multi-Attach error"),
                Some((R::VolumeFailed, "Pod minilm-1: Multi-Attach error")),
            ),
            (
                with_event(
                    pod(&json!({"state": runs, "started": true})),
                    "Unhealthy",
                    "Readiness probe failed: 503",
                ),
                Some((R::ProbeFailed, "Pod minilm-1: Readiness probe failed: 503")),
            ),
            (with_event(pod(&json!({"state": runs})), "Unhealthy", "Startup probe failed: 503"), None),
            (
                with_event(
                    pod(&json!({"state": runs, "restartCount": 1})),
                    "Unhealthy",
                    "Startup probe failed: 503",
                ),
                Some((R::ProbeFailed, "Startup probe failed: 503")),
            ),
            (
                with_event(
                    pod(&json!({"state": runs, "ready": true})),
                    "Unhealthy",
                    "Readiness probe failed",
                ),
                None,
            ),
            (with_event(pod(&json!({})), "SomethingElse", "x"), None),
            // Pods that cannot be made.
            (
                json!({"children": [job(json!({}))], "events": [forbidden]}),
                Some((R::QuotaExceeded, "Job f: exceeded quota: q")),
            ),
            (json!({"children": [job(json!({"active": 1}))], "events": [forbidden]}), None),
            (
                json!({"children": [job(json!({"conditions": [{"type": "Complete", "status": "True"}]}))], "events": [forbidden]}),
                None,
            ),
            (
                json!({"children": [job(json!({}))], "events": [["Job", "f", "BackoffLimitExceeded", "x"]]}),
                None,
            ),
            (
                json!({"children": [deployment("ReplicaFailure", "True", "FailedCreate", "exceeded quota: q")]}),
                Some((R::QuotaExceeded, "Deployment minilm: exceeded quota: q")),
            ),
            (
                json!({"children": [deployment("ReplicaFailure", "True", "FailedCreate", "serviceaccount \"x\" not found")]}),
                Some((R::ReferenceMissing, "Deployment minilm: serviceaccount \"x\" not found")),
            ),
            (
                json!({"children": [deployment("ReplicaFailure", "True", "FailedCreate", "no PriorityClass with name p was found")]}),
                Some((R::ReferenceMissing, "PriorityClass")),
            ),
            (json!({"children": [deployment("ReplicaFailure", "False", "", "")]}), None),
            (
                json!({"children": [deployment("Progressing", "False", "ProgressDeadlineExceeded", "It timed out.")]}),
                Some((
                    R::RolloutStuck,
                    "Deployment minilm: It timed out. `kubectl describe pods -l app.kubernetes.io/component=server,embeddings.kagent.dev/model=minilm` tells more",
                )),
            ),
            (json!({"children": [deployment("Progressing", "True", "NewReplicaSetAvailable", "")]}), None),
        ]
    }

    #[test]
    fn each_trouble_has_its_word_and_names_its_object() {
        for (there, expected) in table() {
            let found = problems("minilm", &observed(&there));
            match (found.first(), expected) {
                (None, None) => {}
                (Some(problem), Some((reason, says))) => {
                    assert_eq!(problem.reason, reason, "{there}");
                    assert!(problem.message.contains(says), "{:?} of {there}", problem.message);
                }
                (found, expected) => panic!("{found:?} is not {expected:?} in {there}"),
            }
            assert!(found.len() <= 1, "{found:?}");
        }
    }

    #[test]
    fn the_most_telling_comes_first() {
        let mut old = pod(&waiting("ErrImagePull", "old"));
        old["metadata"]["creationTimestamp"] = json!("2025-01-01T00:00:00Z");
        let mut going = pod(&waiting("ErrImagePull", "going"));
        going["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        let there = observed(&json!({
            "children": [
                deployment("Progressing", "False", "ProgressDeadlineExceeded", "x"),
                claim("minilm-cache", "Lost"),
            ],
            "pods": [going, old, pod(&waiting("ErrImagePull", "new"))],
        }));
        let found = problems("minilm", &there);
        let reasons: Vec<_> = found.iter().map(|problem| problem.reason).collect();
        let (volume, image) = (Reason::VolumeFailed, Reason::ImagePullFailed);
        assert_eq!(reasons, [volume, image, image, Reason::RolloutStuck]);
        assert!(found[1].message.ends_with("new") && found[2].message.ends_with("old"), "{found:?}");
    }

    #[test]
    fn what_is_told_is_one_line_and_has_an_end() {
        assert_eq!(line(" a\n\tb  c "), "a b c");
        assert_eq!(line(&"ä".repeat(601)), format!("{}…", "ä".repeat(600)));
        assert_eq!(last_line("a\n b \n\n"), "b");
        assert_eq!(last_line(""), "");
    }
}
