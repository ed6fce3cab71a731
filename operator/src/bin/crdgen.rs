//! Writes the files that are generated from the `EmbeddingModel` types anew (`cargo crdgen`):
//! the definition in `crds/`, the operator's chart's template of it, and the schema of the
//! models' chart. With an argument, into that folder instead of the checkout.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use embedding_operator::crd;
use serde_json::{Map, Value, json};

fn main() -> anyhow::Result<()> {
    let checkout = || Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let root = std::env::args_os().nth(1).map_or_else(checkout, PathBuf::from);
    let definition = crd::yaml();
    let schema = serde_json::to_string_pretty(&models_schema()?)?;
    for (file, text) in [
        ("crds/embeddingmodels.yaml", definition.clone()),
        ("charts/embedding-operator/templates/crds.yaml", template(&definition)?),
        ("charts/embedding-models/values.schema.json", schema + "\n"),
    ] {
        let path = root.join(file);
        let folder = path.parent().context("a file lies in a folder")?;
        std::fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
        std::fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}

/// The definition as a template of the chart, with the chart's labels and annotations.
fn template(definition: &str) -> anyhow::Result<String> {
    let (head, rest) = definition.split_once("\nmetadata:\n").context("the definition has metadata")?;
    let (metadata, spec) = rest.split_once("\nspec:\n").context("the definition has a spec")?;
    let (comment, head) = head.split_once('\n').context("the definition begins with a comment")?;
    let name = metadata.strip_prefix("  name: ").filter(|name| !name.contains('\n'));
    let name = name.context("the definition's metadata is its name and nothing else")?;
    let (head, spec) = (escaped(head), escaped(spec));
    Ok(format!(
        r#"{comment}
{{{{- if .Values.crds.enabled }}}}
{{{{- $keep := ternary (dict "helm.sh/resource-policy" "keep") dict .Values.crds.keep }}}}
{head}
metadata:
  {{{{- include "embedding-operator.metadata" (dict "context" . "name" "{name}" "annotations" $keep) | nindent 2 }}}}
spec:
{spec}{{{{- end }}}}
"#
    ))
}

/// Text that a template gives out as it is.
fn escaped(text: &str) -> String {
    text.replace("{{", r#"{{ "{{" }}"#)
}

/// The schema of the values of the models' chart. It refuses fields that are not there, as
/// `kubectl` does: Helm does not always.
fn models_schema() -> anyhow::Result<Value> {
    let definition = serde_json::to_value(crd::definition())?;
    let spec = definition.pointer("/spec/versions/0/schema/openAPIV3Schema/properties/spec");
    let spec = closed(spec.context("the definition has the schema of a spec")?);
    let texts = |description: &str| {
        let values = json!({"type": ["string", "null"]});
        json!({"description": description, "type": ["object", "null"], "additionalProperties": values})
    };
    let model = json!({
        // Null takes a model out that another file of values has.
        "type": ["object", "null"],
        "additionalProperties": false,
        "required": ["spec"],
        "properties": {
            "labels": texts("Labels of the model."),
            "annotations": texts("Annotations of the model."),
            "spec": spec,
        },
    });
    Ok(json!({
        "$schema": "http://json-schema.org/draft-07/schema#",
        "$comment": "GENERATED from operator/src/crd.rs by `cargo crdgen`.",
        "type": "object",
        "additionalProperties": false,
        "properties": {
            "global": {"description": "Values of parent charts.", "type": "object"},
            "enabled": {"description": "For parent charts.", "type": "boolean"},
            "commonLabels": texts("Labels of every model."),
            "commonAnnotations": texts("Annotations of every model."),
            "models": {
                "description": "Models by their names.",
                "type": "object",
                "propertyNames": {"pattern": "^[a-z]([-a-z0-9]*[a-z0-9])?$", "maxLength": 48},
                "additionalProperties": model,
            },
        },
    }))
}

/// A schema of Kubernetes as one for values: what has fields has no others, and a null stands
/// for a field that is left out. Without what only the API server understands, and without
/// descriptions, which `kubectl explain` has.
fn closed(schema: &Value) -> Value {
    const KEPT: [&str; 12] = [
        "enum",
        "format",
        "maxItems",
        "maxLength",
        "maxProperties",
        "maximum",
        "minItems",
        "minLength",
        "minProperties",
        "minimum",
        "pattern",
        "required",
    ];
    let mut into = Map::new();
    for key in KEPT {
        if let Some(value) = schema.get(key) {
            into.insert(key.to_owned(), value.clone());
        }
    }
    let type_ = match schema.get("type") {
        Some(type_) => json!([type_, "null"]),
        None if schema["x-kubernetes-int-or-string"] == true => json!(["integer", "string", "null"]),
        None => Value::Null,
    };
    if !type_.is_null() {
        into.insert("type".to_owned(), type_);
    }
    if let Some(values) = into.get_mut("enum").and_then(Value::as_array_mut) {
        values.push(Value::Null);
    }
    if let Some(items) = schema.get("items") {
        into.insert("items".to_owned(), closed(items));
    }
    if let Some(fields) = schema.get("properties").and_then(Value::as_object) {
        let fields = fields.iter().map(|(name, schema)| (name.clone(), closed(schema)));
        into.insert("properties".to_owned(), Value::Object(fields.collect()));
        into.insert("additionalProperties".to_owned(), json!(false));
    } else if let Some(values) = schema.get("additionalProperties").filter(|values| values.is_object()) {
        into.insert("additionalProperties".to_owned(), closed(values));
    }
    Value::Object(into)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_looks_like_a_template_is_none() {
        assert_eq!(
            escaped("as in {{ .Name }} or {{{x}}}"),
            r#"as in {{ "{{" }} .Name }} or {{ "{{" }}{x}}}"#
        );
        let definition = "# GENERATED.\nkind: A\nmetadata:\n  name: a.b\nspec:\n  text: '{{ x }}'\n";
        let template = template(definition).unwrap();
        assert!(template.contains("  text: '{{ \"{{\" }} x }}'\n{{- end }}\n"), "{template}");
        assert!(template.starts_with("# GENERATED.\n{{- if .Values.crds.enabled }}\n"), "{template}");
    }

    #[test]
    fn what_has_fields_has_no_others_and_what_is_free_stays_free() {
        let schema = json!({
            "type": "object",
            "description": "d",
            "required": ["a"],
            "x-kubernetes-validations": [],
            "properties": {
                "a": {"x-kubernetes-int-or-string": true, "anyOf": [{"type": "integer"}], "maxLength": 3},
                "b": {"type": "object", "additionalProperties": {"type": "string"}},
                "c": {"type": "array", "items": {"type": "string", "enum": ["x"]}},
            },
        });
        let expected = json!({
            "type": ["object", "null"],
            "required": ["a"],
            "additionalProperties": false,
            "properties": {
                "a": {"type": ["integer", "string", "null"], "maxLength": 3},
                "b": {"type": ["object", "null"], "additionalProperties": {"type": ["string", "null"]}},
                "c": {"type": ["array", "null"], "items": {"type": ["string", "null"], "enum": ["x", null]}},
            },
        });
        assert_eq!(closed(&schema), expected);
    }
}
