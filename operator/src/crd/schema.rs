//! The `CustomResourceDefinition`, from the types.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt as _;
use schemars::{Schema, SchemaGenerator, json_schema};
use serde_json::{Map, Value, json};

use super::EmbeddingModel;
use super::rules::RULES;

/// The API server's own pattern for quantities.
pub const QUANTITY: &str = r"^(\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))(([KMGTPE]i)|[numkMGTPE]|([eE](\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))))?$";

/// The definition as it is applied to a cluster.
///
/// # Panics
///
/// When a rule of [`super::rules`] names a place that the schema does not have; a test
/// generates the definition.
pub fn definition() -> CustomResourceDefinition {
    let mut definition = serde_json::to_value(EmbeddingModel::crd()).expect("a definition is JSON");
    let schema = definition
        .pointer_mut("/spec/versions/0/schema/openAPIV3Schema")
        .expect("the definition has one version with a schema");
    clean(schema);
    for rule in RULES {
        let place = schema.pointer_mut(rule.at).unwrap_or_else(|| panic!("the schema has no {}", rule.at));
        let place = place.as_object_mut().expect("a schema is an object");
        let rules = place.entry("x-kubernetes-validations").or_insert_with(|| json!([]));
        rules
            .as_array_mut()
            .expect("rules are a list")
            .push(json!({"rule": rule.rule, "message": rule.message}));
    }
    serde_json::from_value(definition).expect("it was one before")
}

/// The definition as the file in `crds/`.
///
/// # Panics
///
/// As [`definition`].
pub fn yaml() -> String {
    let yaml = serde_yaml::to_string(&definition()).expect("a definition is YAML");
    format!("# GENERATED from operator/src/crd.rs by `cargo crdgen`.\n{yaml}")
}

/// Takes out what is right in Rust and wrong in Kubernetes' conventions: `nullable`
/// (the API server drops a null before it applies defaults, unless a field is nullable).
fn clean(schema: &mut Value) {
    match schema {
        Value::Object(map) => {
            map.remove("nullable");
            map.values_mut().for_each(clean);
        }
        Value::Array(items) => items.iter_mut().for_each(clean),
        _ => {}
    }
}

/// A quantity that can also be written as a number.
pub(super) fn quantity(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "x-kubernetes-int-or-string": true,
        "anyOf": [{"type": "integer"}, {"type": "string"}],
        "pattern": QUANTITY,
        "maxLength": 32,
    })
}

/// Resources by name.
pub(super) fn quantities(generator: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "maxProperties": 16,
        "additionalProperties": quantity(generator),
    })
}

/// Labels: values of at most 63 characters.
pub(super) fn labels(_: &mut SchemaGenerator) -> Schema {
    map(
        64,
        &json!({"type": "string", "maxLength": 63, "pattern": "^(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?$"}),
    )
}

/// Annotations.
pub(super) fn annotations(_: &mut SchemaGenerator) -> Schema {
    map(64, &json!({"type": "string", "maxLength": 16384}))
}

/// Prompts by name. In the server's flag a line break ends a prompt.
pub(super) fn prompts(_: &mut SchemaGenerator) -> Schema {
    map(32, &json!({"type": "string", "maxLength": 2048, "pattern": r"^[^\n\r]*$"}))
}

fn map(most: u32, values: &Value) -> Schema {
    let mut schema = Map::new();
    schema.insert("type".into(), "object".into());
    schema.insert("maxProperties".into(), most.into());
    schema.insert("additionalProperties".into(), values.clone());
    schema.into()
}
