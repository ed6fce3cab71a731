//! A namespace with everything played in it, and what of a model's objects is the operator's.

use std::collections::BTreeMap;

use embedding_operator::config::Config;
use embedding_operator::controller::build::names;
use embedding_operator::controller::object::Kind;
use embedding_operator::crd::EmbeddingModel;
use kube::api::{DynamicObject, ListParams};
use kube::{Api, Client, ResourceExt as _};
use serde_json::Value;

use super::cluster::{ControlPlane, Namespace};
use super::kubelet::{Builder, FakeNode};
use super::operator::{self, Operator, SUMMARY, condition};
use super::volumes::Provisioner;
use super::wait::wait_for_object;

/// A namespace with a node and volumes.
pub struct World<'a> {
    pub plane: &'a ControlPlane,
    pub namespace: Namespace,
    pub node: FakeNode,
    pub client: Client,
    pub models: Api<EmbeddingModel>,
    _volumes: Provisioner,
}

impl<'a> World<'a> {
    /// In which all goes well.
    pub async fn new(plane: &'a ControlPlane, prefix: &str) -> Self {
        Self::with(plane, prefix, FakeNode::builder()).await
    }

    /// In which pods do what the node lets them do.
    pub async fn with(plane: &'a ControlPlane, prefix: &str, node: Builder) -> Self {
        let namespace = plane.namespace(prefix).await;
        let node = node.job_message(SUMMARY).start(plane, &namespace).await;
        let volumes = Provisioner::start(plane, &namespace).await;
        let models = operator::models(plane, &namespace);
        Self { plane, client: plane.client(), namespace, node, models, _volumes: volumes }
    }

    /// Starts an operator.
    pub fn operator(&self, config: Config) -> Operator {
        Operator::start(self.plane, &self.namespace, config)
    }

    /// Objects of a kind.
    pub fn of(&self, kind: Kind) -> Api<DynamicObject> {
        Api::namespaced_with(self.client.clone(), &self.namespace, &kind.resource())
    }

    /// Objects of a type.
    pub fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = kube::core::NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// All objects of the model.
    pub async fn children(&self, model: &str) -> Vec<(Kind, DynamicObject)> {
        let ours = ListParams::default().labels(&format!("{}={model}", names::MODEL_LABEL));
        let mut children = Vec::new();
        for kind in Kind::ALL.into_iter().filter(|kind| *kind != Kind::ServiceMonitor) {
            let list = self.of(kind).list(&ours).await.expect("an administrator may list");
            children.extend(list.items.into_iter().map(|object| (kind, object)));
        }
        children
    }

    /// All that the operator says of the model, in its objects and in its status, a line for
    /// each field. What differs between two models of the same spec is left out: uids,
    /// namespaces, times, and what is derived from them.
    pub async fn state(&self, model: &str) -> BTreeMap<String, String> {
        let mut state = BTreeMap::new();
        let object = self.models.get(model).await.expect("the model");
        let uid = object.uid().expect("a uid");
        for (kind, child) in self.children(model).await {
            let name = match child.labels().get(names::RECORD_LABEL) {
                Some(what) => format!("record of {what}"),
                None => child.name_any(),
            };
            let gone = child.metadata.deletion_timestamp.is_some();
            state.insert(format!("{kind:?} {name}"), if gone { "going" } else { "there" }.to_owned());
            let json = serde_json::to_value(&child).expect("JSON");
            for path in owned(&child) {
                let place = path.iter().map(ToString::to_string).collect::<String>();
                // It orders the templates that there were.
                if kind == Kind::ControllerRevision && place == ".revision" {
                    continue;
                }
                let mut value = value_at(&json, &path).cloned().unwrap_or_default();
                if place.ends_with(names::APPLIED_ANNOTATION) || place.ends_with(names::CONFIG_ANNOTATION) {
                    value = "HASH".into();
                }
                hide_hashes(&mut value);
                state.insert(format!("{kind:?} {name} {place}"), value.to_string());
            }
        }
        let status = serde_json::to_value(object.status.unwrap_or_default()).expect("JSON");
        for (name, value) in status.as_object().expect("a status") {
            match name.as_str() {
                "observedGeneration" => {}
                "conditions" => {
                    for condition in value.as_array().expect("conditions") {
                        let verdict = format!("{} {}", condition["status"], condition["reason"]);
                        state.insert(format!("status {}", condition["type"]), verdict);
                    }
                }
                _ => {
                    state.insert(format!("status {name}"), value.to_string());
                }
            }
        }
        let general = |text: String| text.replace(&uid, "UID").replace(&*self.namespace, "NAMESPACE");
        state.into_iter().map(|(place, value)| (general(place), general(value))).collect()
    }
}

/// In the data of records.
fn hide_hashes(value: &mut Value) {
    match value {
        Value::Object(map) => {
            // What there was before.
            map.remove("space_before");
            for (name, value) in map {
                let hash = value
                    .as_str()
                    .is_some_and(|text| text.len() == 8 && text.bytes().all(|byte| byte.is_ascii_hexdigit()));
                if hash && (name == "key" || name == "fetch" || name == names::CONFIG_ANNOTATION) {
                    *value = "HASH".into();
                } else {
                    hide_hashes(value);
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(hide_hashes),
        _ => {}
    }
}

/// What one has and the other has not, or has otherwise.
pub fn differences(left: &BTreeMap<String, String>, right: &BTreeMap<String, String>) -> Vec<String> {
    let places: std::collections::BTreeSet<_> = left.keys().chain(right.keys()).collect();
    let nothing = || "nothing".to_owned();
    places
        .into_iter()
        .filter(|place| left.get(*place) != right.get(*place))
        .map(|place| {
            let of = |state: &BTreeMap<String, String>| state.get(place).cloned().unwrap_or_else(nothing);
            format!("{place}: {} | {}", of(left), of(right))
        })
        .collect()
}

/// Waits until the operator has nothing to do for the model any more.
pub async fn wait_until_settled(api: &Api<EmbeddingModel>, name: &str) -> EmbeddingModel {
    wait_for_object(api, name, "settled", operator::PATIENCE, is_settled).await
}

/// Whether the operator has nothing to do for the model any more.
pub fn is_settled(model: &EmbeddingModel) -> bool {
    let observed = model.status.as_ref().and_then(|status| status.observed_generation);
    let (ready, reason) = condition(model, "Ready");
    observed == model.metadata.generation && (ready == "True" || reason == "ScaledToZero")
}

/// A step into an object, as managed fields tell it.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// A field.
    Field(String),
    /// The element of a list that has these fields.
    Key(Value),
    /// The element of a list that is this.
    Item(Value),
}

impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Field(name) => write!(f, ".{name}"),
            Self::Key(value) | Self::Item(value) => write!(f, "[{value}]"),
        }
    }
}

/// The fields of an object that the operator owns, down to the last leaf.
pub fn owned(object: &DynamicObject) -> Vec<Vec<Step>> {
    let mut paths = Vec::new();
    for entry in object.managed_fields() {
        let ours = entry.manager.as_deref() == Some(names::FIELD_MANAGER)
            && entry.operation.as_deref() == Some("Apply");
        if let (true, Some(fields)) = (ours, &entry.fields_v1) {
            walk(&fields.0, &mut Vec::new(), &mut paths);
        }
    }
    paths
}

fn walk(fields: &Value, at: &mut Vec<Step>, paths: &mut Vec<Vec<Step>>) {
    for (name, inner) in fields.as_object().expect("fields are an object") {
        let parse = |text: &str| serde_json::from_str(text).expect("a key is JSON");
        let step = match name.split_once(':') {
            Some(("f", name)) => Step::Field(name.to_owned()),
            Some(("k", key)) => Step::Key(parse(key)),
            Some(("v", value)) => Step::Item(parse(value)),
            _ => continue,
        };
        at.push(step);
        if inner.as_object().is_some_and(serde_json::Map::is_empty) {
            paths.push(at.clone());
        } else {
            walk(inner, at, paths);
        }
        at.pop();
    }
}

/// What is there.
pub fn value_at<'a>(object: &'a Value, path: &[Step]) -> Option<&'a Value> {
    path.iter().try_fold(object, |value, step| match step {
        Step::Field(name) => value.get(name),
        _ => value.get(index_of(value, step)?),
    })
}

/// The same, to be changed.
pub fn value_at_mut<'a>(object: &'a mut Value, path: &[Step]) -> Option<&'a mut Value> {
    path.iter().try_fold(object, |value, step| {
        if let Step::Field(name) = step {
            return value.get_mut(name);
        }
        let index = index_of(value, step)?;
        value.get_mut(index)
    })
}

/// Where in the list the element is.
pub fn index_of(list: &Value, step: &Step) -> Option<usize> {
    list.as_array()?.iter().position(|element| match step {
        Step::Key(key) => {
            key.as_object().expect("a key is an object").iter().all(|(name, value)| element[name] == *value)
        }
        Step::Item(value) => element == value,
        Step::Field(_) => false,
    })
}
