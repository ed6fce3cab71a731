//! The Job that fetches the model into its volume.

use k8s_openapi::api::batch::v1::{
    Job, JobSpec, PodFailurePolicy, PodFailurePolicyOnExitCodesRequirement, PodFailurePolicyRule,
};
use k8s_openapi::api::core::v1::{PodSpec, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::{Template, metadata, names, of_kind, pod, records};
use crate::controller::fetched::{REFUSED, State};
use crate::controller::object::{Kind, Object};
use crate::controller::observe::Observed;
use crate::controller::validate::{Files, ValidModel};

/// Pods of one try; each takes up the download where the one before it stopped.
const BACKOFF_LIMIT: i32 = 2;

pub(super) fn job(
    model: &ValidModel,
    files: &State,
    serving: Option<&Template>,
    observed: &Observed,
) -> Option<Object> {
    let Files::Cached { download, .. } = &model.files else { return None };
    let (State::Fetching { key, attempt } | State::Failed { key, attempt, .. }) = files else { return None };
    // What pods serve now stays in the volume; what nobody serves makes room.
    let serving = serving.filter(|template| template.cached_at.is_some());
    let keep = keep(model, key, *attempt, observed);
    let mut labels = names::component_labels(&model.name, names::FETCH);
    labels.insert(names::FETCH_LABEL.into(), key.clone());
    labels.insert(names::ATTEMPT_LABEL.into(), attempt.to_string());
    labels.insert(names::FETCH_WITH_LABEL.into(), model.fetch_key.clone());
    let mut pod_labels = model.pods.labels.clone();
    pod_labels.extend(labels.clone());
    let mut volumes = vec![pod::scratch("tmp"), pod::model_volume(model)];
    volumes.extend(pod::trusted_ca(model));
    let mut placed = pod::common(model);
    if model.on_one_node()
        && let Some(running) = serving.and_then(|template| template.pods.spec.clone())
    {
        // The volume is where the pods are that run now. Where the next ones go is for the
        // rollout to decide, when the files are here.
        placed.affinity = running.affinity;
        placed.node_selector = running.node_selector;
        placed.tolerations = running.tolerations;
        placed.runtime_class_name = running.runtime_class_name;
    }
    Some(of_kind(
        Kind::Job,
        &Job {
            metadata: metadata(model, names::fetch_job(&model.name, key, *attempt), labels),
            spec: Some(JobSpec {
                backoff_limit: Some(BACKOFF_LIMIT),
                // What the hub refuses, it refuses a minute later too.
                pod_failure_policy: Some(PodFailurePolicy {
                    rules: vec![PodFailurePolicyRule {
                        action: "FailJob".into(),
                        on_exit_codes: Some(PodFailurePolicyOnExitCodesRequirement {
                            container_name: Some(names::FETCH.into()),
                            operator: "In".into(),
                            values: vec![REFUSED],
                        }),
                        on_pod_conditions: None,
                    }],
                }),
                template: PodTemplateSpec {
                    metadata: Some(ObjectMeta {
                        labels: Some(pod_labels),
                        annotations: Some(model.pods.annotations.clone()).filter(|map| !map.is_empty()),
                        ..ObjectMeta::default()
                    }),
                    spec: Some(PodSpec {
                        containers: vec![pod::fetcher(model, download, &keep)],
                        restart_policy: Some("Never".into()),
                        volumes: Some(volumes),
                        ..placed
                    }),
                },
                ..JobSpec::default()
            }),
            status: None,
        },
    ))
}

/// What has to stay in the cache. A Job that is there goes on with what it was told: what is
/// needed no longer since then is no reason to begin anew, and of the same fetch nothing joins.
fn keep(model: &ValidModel, key: &str, attempt: u32, observed: &Observed) -> Vec<String> {
    let Some(job) = observed.get::<Job>(Kind::Job, &names::fetch_job(&model.name, key, attempt)) else {
        return records::cached_at(observed).into_iter().collect();
    };
    let pods = job.spec.and_then(|spec| spec.template.spec).unwrap_or_default();
    let arguments = pods.containers.into_iter().find(|container| container.name == names::FETCH);
    let arguments = arguments.and_then(|container| container.args).unwrap_or_default();
    let kept = arguments.windows(2).filter(|pair| pair[0] == "--keep").map(|pair| pair[1].clone());
    kept.collect()
}
