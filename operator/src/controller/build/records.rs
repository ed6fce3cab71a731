//! What has to outlive pods and Jobs, in `ControllerRevisions`: immutable, owned by the model,
//! and nobody else's business, unlike a status or an annotation.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::apps::v1::{ControllerRevision, Deployment};
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::runtime::RawExtension;
use kube::ResourceExt as _;
use serde::{Deserialize, Serialize};

use super::{metadata, names, of_kind, rolled_out};
use crate::controller::fetched::{State, Summary};
use crate::controller::object::{Kind, Object};
use crate::controller::observe::Observed;
use crate::controller::space;
use crate::controller::validate::ValidModel;

/// The pods of a model, as they were decided once.
///
/// An upgrade of the operator builds other pods from the same spec. Those that run are
/// not replaced for it: what was decided is recorded, and stays until the spec changes or
/// the user asks for the update.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Template {
    /// What decided it: the user's wishes and what was fetched.
    pub key: String,
    /// The pods.
    pub pods: PodTemplateSpec,
    /// Seconds that a start may take.
    pub startup_seconds: i64,
    /// What was learned about the model's files.
    pub summary: Summary,
    /// Where they are in the model's cache, as the server's `--model` says it; none when
    /// they are not from there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cached_at: Option<String>,
    /// What the fetch was about that brought them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fetch: Option<String>,
    /// The branch, tag or commit that the spec asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// The prompts that the pods are given beside those of the files.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub prompts: BTreeMap<String, String>,
    /// The name of the default prompt that they are given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_prompt: Option<String>,
    /// The last vector space that was known, and another one, when this was decided upon.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub space_before: Option<String>,
}

impl Template {
    /// The vector space of the pods, as far as it was known when this was decided upon.
    pub fn space(&self) -> Option<String> {
        self.space_with(&self.summary)
    }

    /// The same, with what was learned of the files meanwhile.
    pub fn space_with(&self, files: &Summary) -> Option<String> {
        space::of(files, &self.prompts, self.default_prompt.as_deref())
    }
}

/// How many templates that were not rolled out are remembered, besides those that pods are of.
const MOST_BEFORE: usize = 20;

const FETCHED: &str = "fetched";
const TEMPLATE: &str = "template";

fn is(record: &ControllerRevision, what: &str) -> bool {
    record.labels().get(names::RECORD_LABEL).is_some_and(|label| label == what)
}

/// The template that was decided upon last.
pub(super) fn newest(observed: &Observed) -> Option<Template> {
    let mut records: Vec<_> = observed.records().into_iter().filter(|record| is(record, TEMPLATE)).collect();
    records.sort_by_key(|record| Reverse(record.revision));
    // One that cannot be read is of a version that knew more: decide anew.
    serde_json::from_value(records.into_iter().next()?.data?.0).ok()
}

/// What is known about fetched files from the pods that were decided upon for them: the record
/// of a fetch can get lost, and a branch must not be resolved a second time for that.
pub fn served(observed: &Observed, key: &str) -> Option<Summary> {
    newest(observed)
        .filter(|template| template.fetch.as_deref() == Some(key))
        .map(|template| template.summary)
}

/// The records of what was fetched that are still of use: of the wanted files, and of
/// those that the pods serve.
pub(super) fn fetched(
    model: &ValidModel,
    files: &State,
    observed: &Observed,
    template: Option<&Template>,
) -> Vec<Object> {
    let mut records = Vec::new();
    if let State::Here(here) = files
        && let Some(key) = &here.key
    {
        records.push(record(model, names::fetched_record(&model.name, key), FETCHED, 1, &here.summary));
    }
    // Of every recorded template: pods may run of each, or go back to it.
    let mut of_pods: BTreeSet<String> = recorded(observed).filter_map(|template| template.fetch).collect();
    of_pods.extend(template.and_then(|template| template.fetch.clone()));
    let of_pods: BTreeSet<_> = of_pods.iter().map(|key| names::fetched_record(&model.name, key)).collect();
    for old in observed.records().into_iter().filter(|record| is(record, FETCHED)) {
        let name = old.name_any();
        if of_pods.contains(&name) && !records.iter().any(|record| record.name() == name) {
            records.extend(again(model, &old, FETCHED));
        }
    }
    records
}

/// The template that the Deployment's pods are of.
pub(super) fn of_deployed(observed: &Observed, deployed: &Deployment) -> Option<Template> {
    recorded(observed).find(|template| is_of(deployed, template))
}

/// Where in the model's cache the files of recorded templates are: pods may serve any of
/// them until the newest is rolled out.
pub(super) fn cached_at(observed: &Observed) -> BTreeSet<String> {
    recorded(observed).filter_map(|template| template.cached_at).collect()
}

/// All templates that are recorded.
fn recorded(observed: &Observed) -> impl Iterator<Item = Template> {
    let records = observed.records().into_iter().filter(|record| is(record, TEMPLATE));
    records.filter_map(|record| serde_json::from_value(record.data?.0).ok())
}

/// The records of templates: the newest, and until it is rolled out those before, of which
/// pods may still run.
pub(super) fn templates(
    model: &ValidModel,
    observed: &Observed,
    template: Option<&Template>,
    deployed: Option<&Deployment>,
) -> Vec<Object> {
    let Some(template) = template else { return Vec::new() };
    let mut old: Vec<_> = observed.records().into_iter().filter(|record| is(record, TEMPLATE)).collect();
    old.sort_by_key(|record| Reverse(record.revision));
    let name = names::template_record(&model.name, template);
    let last = old.first().map_or(0, |record| record.revision);
    let revision = match old.first() {
        Some(newest) if newest.name_any() == name => newest.revision,
        _ => last + 1,
    };
    let mut records = vec![record(model, name.clone(), TEMPLATE, revision, template)];
    // The Deployment that is there may still be the last one's, and settled.
    if !deployed.is_some_and(|deployed| is_of(deployed, template) && rolled_out(deployed)) {
        let runs = |record: &ControllerRevision| {
            let key = record.data.as_ref().and_then(|data| data.0["key"].as_str());
            let of = |pod: &Pod| pod.annotations().get(names::CONFIG_ANNOTATION).map(String::as_str) == key;
            observed.pods.iter().any(of)
        };
        let before = old.iter().filter(|record| record.name_any() != name).enumerate();
        let kept = before.filter(|(age, record)| *age < MOST_BEFORE || runs(record));
        records.extend(kept.filter_map(|(_, record)| again(model, record, TEMPLATE)));
    }
    records
}

/// Whether the Deployment's pods are those of the template.
fn is_of(deployed: &Deployment, template: &Template) -> bool {
    let annotations =
        deployed.spec.as_ref().and_then(|spec| spec.template.metadata.as_ref()?.annotations.as_ref());
    annotations.and_then(|annotations| annotations.get(names::CONFIG_ANNOTATION)) == Some(&template.key)
}

/// A record that is there, as it should stay.
fn again(model: &ValidModel, old: &ControllerRevision, what: &str) -> Option<Object> {
    Some(record(model, old.name_any(), what, old.revision, &old.data.as_ref()?.0))
}

fn record(model: &ValidModel, name: String, what: &str, revision: i64, data: &impl Serialize) -> Object {
    let mut labels = names::labels(&model.name);
    labels.insert(names::RECORD_LABEL.into(), what.into());
    let data = serde_json::to_value(data).unwrap_or_default();
    of_kind(
        Kind::ControllerRevision,
        &ControllerRevision {
            metadata: metadata(model, name, labels),
            data: Some(RawExtension(data)),
            revision,
        },
    )
}
