//! A valid model and what is there become the objects that should be: pure, and unable
//! to fail.

pub mod names;

mod autoscaler;
mod cache;
mod decision;
mod deployment;
mod fetch_job;
mod pod;
mod policy;
mod records;
mod service;

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::fetched::{self, Here, State};
use super::object::{Kind, Object};
use super::observe::Observed;
use super::same;
use super::space::Spaces;
use super::validate::{Download, Files, ValidModel};
use crate::config::Config;
use crate::crd::status::{ModelStatus, RolloutStatus};

use decision::Decision;
pub use deployment::Replicas;
pub use records::{Template, served};

/// What should be.
#[derive(Clone, Debug, PartialEq)]
pub struct Desired {
    /// The objects, in the order in which they are applied. What is ours and not among
    /// them is to go.
    pub objects: Vec<Object>,
    /// The state of the wanted files.
    pub files: State,
    /// What the pods are: of the wanted files, or of the last ones while those are on
    /// their way. `None` before the first.
    pub template: Option<Template>,
    /// Whether the template is of what the spec asks for now, but for files that are refused
    /// for their vector space.
    pub template_is_current: bool,
    /// Whether this version of the operator would make other pods of the same spec.
    pub update_available: bool,
    /// The vector spaces that are at stake.
    pub spaces: Spaces,
    /// How many pods.
    pub replicas: Replicas,
    /// How the pods are replaced.
    pub rollout: RolloutStatus,
    /// What is known about the model that the pods serve.
    pub model: ModelStatus,
}

/// What should be.
pub fn build(model: &ValidModel, observed: &Observed, config: &Config, now: Timestamp) -> Desired {
    let files = fetched::state(model, observed, config, now);
    let Decision { template, is_current, update_available, spaces } =
        decision::decide(model, &files, observed);
    let deployed = observed.deployment(&model.name);
    let rollout = deployment::rollout(model, template.as_ref(), deployed.as_ref(), observed, now);
    let replicas = deployment::replicas(model, deployed.as_ref());
    let mut objects = Vec::new();
    if model.pods.service_account_name.is_none() {
        objects.push(service::account(model));
    }
    objects.extend(cache::claim(model, observed));
    objects.push(service::service(model));
    objects.extend(policy::network(model));
    objects.extend(records::fetched(model, &files, observed, template.as_ref()));
    objects.extend(records::templates(model, observed, template.as_ref(), deployed.as_ref()));
    objects.extend(fetch_job::job(model, &files, template.as_ref(), observed));
    if let Some(template) = &template {
        objects.push(deployment::deployment(model, template, rollout.strategy, replicas));
        objects.extend(autoscaler::autoscaler(model));
        objects.extend(policy::disruption_budget(model, replicas));
        if observed.service_monitors_exist {
            objects.extend(service::monitor(model));
        }
    }
    let model = about(model, template.as_ref(), &files, &spaces);
    Desired {
        objects,
        files,
        template,
        template_is_current: is_current,
        update_available,
        spaces,
        replicas,
        rollout,
        model,
    }
}

/// What is known about the model that the pods serve, or will.
fn about(model: &ValidModel, template: Option<&Template>, files: &State, spaces: &Spaces) -> ModelStatus {
    let summary = match (template, files) {
        // Pods that fetch for themselves tell more than was known when they were decided upon.
        (Some(template), State::Here(Here { summary, .. })) if summary.commit == template.summary.commit => {
            summary.clone()
        }
        (Some(template), _) => template.summary.clone(),
        (None, State::Here(Here { summary, .. })) => summary.clone(),
        _ => fetched::Summary::default(),
    };
    ModelStatus {
        source: Some(match &model.files {
            Files::Cached { download, .. } | Files::Ephemeral(download) => download.describe(),
            Files::Claim { claim, .. } => format!("pvc/{}", claim.claim_name),
            Files::Image(image) => image.reference.clone(),
        }),
        resolved_revision: match &model.files {
            Files::Claim { .. } => None,
            _ => Some(summary.commit).filter(|commit| !commit.is_empty()),
        },
        architecture: summary.architecture,
        dimensions: summary.dimensions,
        space: spaces.served.clone(),
        max_tokens: summary.max_tokens,
        bytes: summary.bytes,
    }
}

/// Metadata of an object of the model that goes with it.
fn metadata(model: &ValidModel, name: String, labels: BTreeMap<String, String>) -> ObjectMeta {
    ObjectMeta {
        name: Some(name),
        namespace: Some(model.namespace.clone()),
        labels: Some(labels),
        owner_references: Some(vec![model.owner.clone()]),
        ..ObjectMeta::default()
    }
}

/// Where the server finds the files of a download, as its `--model` says it.
fn location(download: &Download, commit: &str) -> String {
    match download {
        Download::Hub { repo, .. } => format!("{}@{commit}", repo.repo),
        Download::Archive(archive) => format!("{}/archives/{}", pod::MODELS, archive.sha256),
    }
}

/// Whether the Deployment has the pods of the template: all that it says of them.
pub(super) fn has_pods_of(deployment: &Deployment, template: Option<&Template>) -> bool {
    let wanted = serde_json::to_value(template.map(|template| &template.pods));
    let found = serde_json::to_value(deployment.spec.as_ref().map(|spec| &spec.template));
    same::covers(&wanted.unwrap_or_default(), &found.unwrap_or_default())
}

/// Whether the Deployment has rolled out what it was last told.
pub(super) fn rolled_out(deployment: &Deployment) -> bool {
    let observed = deployment.status.as_ref().and_then(|status| status.observed_generation);
    observed == deployment.metadata.generation && is_complete(deployment)
}

/// Whether the Deployment has rolled out what its controller last looked at.
pub(super) fn is_complete(deployment: &Deployment) -> bool {
    let status = deployment.status.clone().unwrap_or_default();
    let wanted = deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
    status.updated_replicas.unwrap_or(0) == wanted
        && status.replicas.unwrap_or(0) == wanted
        && status.available_replicas.unwrap_or(0) == wanted
}

/// Whether a pod has ended, and holds nothing any more.
pub(super) fn is_over(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

fn of_kind(kind: Kind, value: &impl serde::Serialize) -> Object {
    Object::new(kind, value)
}
