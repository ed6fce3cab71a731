//! What our objects are called, and how they are labelled.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use serde::Serialize;
use sha2::{Digest as _, Sha256};

/// The field manager of all that is applied.
pub const FIELD_MANAGER: &str = "embedding-operator";
/// Holds `spec.replicas` of a Deployment while its ownership changes hands.
pub const HANDOVER_MANAGER: &str = "embedding-operator-handover";

/// Names the model in the labels of everything that is made for it.
pub const MODEL_LABEL: &str = "embeddings.kagent.dev/model";
/// Tells pods that serve from pods that fetch.
pub const COMPONENT_LABEL: &str = "app.kubernetes.io/component";
/// The key of what a fetch Job or record is about: source and volume.
pub const FETCH_LABEL: &str = "embeddings.kagent.dev/fetch";
/// The key of the source that a retained claim was filled from.
pub const SOURCE_LABEL: &str = "embeddings.kagent.dev/source";
/// The uid of the model that a retained claim is of, or was of last.
pub const RETAINED_BY_ANNOTATION: &str = "embeddings.kagent.dev/retained-by";
/// Which try a fetch Job is.
pub const ATTEMPT_LABEL: &str = "embeddings.kagent.dev/attempt";
/// How a fetch Job fetches: what may be mended while the source stays the same.
pub const FETCH_WITH_LABEL: &str = "embeddings.kagent.dev/fetch-with";
/// What a `ControllerRevision` records: `template` or `fetched`.
pub const RECORD_LABEL: &str = "embeddings.kagent.dev/record";

/// The hash of what was last applied to an object: what differs is applied anew.
pub const APPLIED_ANNOTATION: &str = "embeddings.kagent.dev/applied";
/// The hash of what decides the pods' template, for whoever looks at a pod.
pub const CONFIG_ANNOTATION: &str = "embeddings.kagent.dev/config";
/// Set on an `EmbeddingModel`, to any new value: take what this version of the operator
/// would run.
pub const UPDATE_ANNOTATION: &str = "embeddings.kagent.dev/update";
/// Set on an `EmbeddingModel`: the vector space that its users' indexes are of.
pub const SPACE_ANNOTATION: &str = "embeddings.kagent.dev/space";

/// What `replicas` said while an autoscaler decided; on a Deployment.
pub const BESIDE_ANNOTATION: &str = "embeddings.kagent.dev/replicas-beside-autoscaling";
/// How many replicas ran when autoscaling was turned off; on a Deployment.
pub const HELD_ANNOTATION: &str = "embeddings.kagent.dev/held-replicas";

/// The component of pods that serve.
pub const SERVER: &str = "server";
/// The component of pods that fetch.
pub const FETCH: &str = "fetch";

/// Labels of everything that is made for the model `name`.
pub fn labels(name: &str) -> BTreeMap<String, String> {
    [
        ("app.kubernetes.io/name", "embedding-server"),
        ("app.kubernetes.io/instance", name),
        ("app.kubernetes.io/managed-by", "embedding-operator"),
        (MODEL_LABEL, name),
    ]
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .into()
}

/// Labels of the model's objects of one component.
pub fn component_labels(name: &str, component: &str) -> BTreeMap<String, String> {
    let mut labels = labels(name);
    labels.insert(COMPONENT_LABEL.into(), component.into());
    labels
}

/// Whether a pod is of that component.
pub fn is_of(pod: &Pod, component: &str) -> bool {
    pod.labels().get(COMPONENT_LABEL).is_some_and(|label| label == component)
}

/// What selects the model's pods of one component; never changes.
pub fn selector(name: &str, component: &str) -> BTreeMap<String, String> {
    [(MODEL_LABEL, name), (COMPONENT_LABEL, component)]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into()
}

/// The selector of the pods that serve, as text.
pub fn server_selector(name: &str) -> String {
    let selector = selector(name, SERVER);
    selector.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",")
}

/// The claim of the model's cache.
pub fn cache(name: &str) -> String {
    format!("{name}-cache")
}

/// The Job that fetches, by its key and try.
pub fn fetch_job(name: &str, key: &str, attempt: u32) -> String {
    format!("{name}-fetch-{}", short_hash(&(key, attempt)))
}

/// The record of what was fetched.
pub fn fetched_record(name: &str, key: &str) -> String {
    format!("{name}-fetched-{key}")
}

/// The record of a pod template, by all that is recorded: what is in a record cannot change.
pub fn template_record(name: &str, template: &impl Serialize) -> String {
    format!("{name}-template-{}", short_hash(template))
}

/// Eight hexadecimal digits that stand for `value`: for its JSON with sorted keys, so that
/// a later version of this program that has its fields in another order says the same.
///
/// # Panics
///
/// When `value` is no JSON: maps with keys that are no text. We hash none.
pub fn short_hash(value: &impl Serialize) -> String {
    let json = serde_json::to_value(value).expect("what is hashed is JSON");
    let hash = Sha256::digest(json.to_string());
    format!("{:02x}{:02x}{:02x}{:02x}", hash[0], hash[1], hash[2], hash[3])
}
