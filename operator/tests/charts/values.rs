//! Each value is in values.yaml, in the schema and in the table of README.md, and no other is
//! taken.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::helm::{Helm, chart};
use super::readme::{self, pointer};
use super::render::{refusal, render, yaml};
use super::{MODELS, OPERATOR};

fn schema_of(name: &str) -> Value {
    serde_json::from_str(&std::fs::read_to_string(chart(name).join("values.schema.json")).unwrap()).unwrap()
}

pub(crate) fn values_text(name: &str) -> String {
    std::fs::read_to_string(chart(name).join("values.yaml")).unwrap()
}

/// The places of a schema that list their fields, by their paths.
fn groups(schema: &Value, path: &[String], into: &mut Vec<(Vec<String>, Value)>) {
    let Some(fields) = schema["properties"].as_object() else { return };
    into.push((path.to_owned(), schema.clone()));
    for (key, schema) in fields {
        groups(schema, &[path, std::slice::from_ref(key)].concat(), into);
    }
}

fn nested(path: &[String], value: Value) -> Value {
    path.iter().rev().fold(value, |value, key| json!({ key: value }))
}

#[test]
fn the_schema_has_the_values_and_no_others() {
    for name in [OPERATOR, MODELS] {
        let values = yaml(&values_text(name));
        let mut found = Vec::new();
        groups(&schema_of(name), &[], &mut found);
        for (path, schema) in found {
            let at = path.join(".");
            let values = values.pointer(&pointer(&path)).unwrap_or_else(|| panic!("{name}: no value {at}"));
            let keys = |value: &Value| -> BTreeSet<String> {
                value.as_object().into_iter().flat_map(serde_json::Map::keys).cloned().collect()
            };
            assert_eq!(keys(values), keys(&schema["properties"]), "{name}: {at}");
            let closed = if at == "global" { None } else { Some(&json!(false)) };
            assert_eq!(schema.get("additionalProperties"), closed, "{name}: {at}");
        }
    }
}

#[test]
fn values_that_are_not_there_are_refused_by_name() {
    let mut found = Vec::new();
    groups(&schema_of(OPERATOR), &[], &mut found);
    assert!(found.len() > 15, "{} groups of values", found.len());
    for (path, _) in found {
        let values = nested(&path, json!({"tpyo": 1}));
        if path == ["global"] {
            render(OPERATOR, &values);
            continue;
        }
        let said = refusal(OPERATOR, &values);
        assert_eq!(said.matches("tpyo").count(), Helm::all().len(), "{said}");
    }
    for (values, name) in [
        (json!({"replicas": "2"}), "replicas"),
        (json!({"image": {"tag": 1.2}}), "tag"),
        (json!({"image": {"digest": "sha256:123"}}), "digest"),
        (json!({"image": {"repository": "Upper"}}), "repository"),
        (json!({"watchNamespaces": ["a", "a"]}), "watchNamespaces"),
        (json!({"watchNamespaces": "a"}), "watchNamespaces"),
        (json!({"hub": {"endpoint": "huggingface.co"}}), "endpoint"),
        (json!({"log": {"format": "xml"}}), "format"),
        (json!({"concurrency": 257}), "concurrency"),
        (json!({"livenessProbe": {"httpGet": {}}}), "livenessProbe"),
        (json!({"podDisruptionBudget": {"maxUnavailable": 0}}), "maxUnavailable"),
        (json!({"extraEnv": [{"value": "x"}]}), "extraEnv"),
    ] {
        let said = refusal(OPERATOR, &values);
        assert!(said.matches(name).count() >= Helm::all().len(), "{values}: {said}");
    }
}

/// What is in the table is null here.
fn assert_described(at: &str, value: &Value) {
    match value.as_object() {
        Some(fields) => {
            fields.iter().for_each(|(key, value)| assert_described(&format!("{at}.{key}"), value));
        }
        None => assert!(value.is_null(), "{at} has no description"),
    }
}

#[test]
fn every_value_has_a_description_and_is_in_the_table() {
    for name in [OPERATOR, MODELS] {
        let text = values_text(name);
        let rows = readme::rows(&text);
        let mut values = yaml(&text);
        for row in &rows {
            let pointer = pointer(&row.path);
            assert_eq!(values.pointer(&pointer), Some(&row.default));
            *values.pointer_mut(&pointer).unwrap() = Value::Null;
        }
        assert_described(name, &values);
    }
}
