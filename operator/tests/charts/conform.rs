//! kubeconform, with the schemas of a real API server: none of its own, and none left out.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::ListParams;
use kube::{Api, Client};
use serde::Deserialize;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::OPERATOR;
use super::helm::root;
use super::render::{Rendered, one, render};
use super::support::cluster::ControlPlane;
use super::support::operator::PATIENCE;
use super::support::wait::wait_for;

/// Where kubeconform looks for the schema of a kind. The group of the core's kinds is their
/// version: `v1/pod_v1.json`.
const PLACE: &str = "{{.Group}}/{{.ResourceKind}}_{{.ResourceAPIVersion}}.json";

/// Schemas of all kinds of an API server, in files for kubeconform.
pub(crate) struct Schemas(TempDir);

/// What kubeconform says of some files.
#[derive(Debug, Deserialize)]
struct Report {
    /// What is wrong; what is valid is only counted.
    resources: Vec<Finding>,
    summary: Summary,
}

#[derive(Debug, Deserialize)]
struct Finding {
    filename: String,
    msg: String,
}

#[derive(Debug, Default, PartialEq, Deserialize)]
struct Summary {
    valid: usize,
    invalid: usize,
    errors: usize,
    skipped: usize,
}

impl Finding {
    /// The number of the manifest that it is about.
    fn of(&self) -> usize {
        Path::new(&self.filename).file_stem().unwrap().to_str().unwrap().parse().unwrap()
    }
}

impl Schemas {
    /// Those of all groups and versions that the API server has.
    pub(crate) async fn of(plane: &ControlPlane) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let client = plane.client();
        // What a definition defines is published some time after the definition is there.
        wait_for("the schemas of all kinds", PATIENCE, async || {
            let written = write_schemas(&client, folder.path()).await?;
            let defined = defined_kinds(&client).await?;
            let missing: Vec<&String> = defined.difference(&written).collect();
            if missing.is_empty() { Ok(()) } else { Err(format!("none of {missing:?}")) }
        })
        .await;
        Self(folder)
    }

    /// Everything in these manifests is what its schema says.
    pub(crate) fn assert_conform<'a>(&self, renders: impl IntoIterator<Item = &'a (Value, Rendered)>) {
        let (mut manifests, mut objects) = (Vec::new(), 0);
        for (values, rendered) in renders {
            manifests.extend(rendered.texts.iter().map(|text| (values, text)));
            objects += rendered.texts.len() * rendered.objects.len();
        }
        let texts: Vec<&str> = manifests.iter().map(|(_, text)| text.as_str()).collect();
        let report = self.check(&texts);
        if let Some(finding) = report.resources.first() {
            panic!("{finding:?}\nof {}\n{:?}", manifests[finding.of()].0, report.summary);
        }
        assert_eq!(report.summary, Summary { valid: objects, ..Summary::default() });
    }

    fn check(&self, manifests: &[&str]) -> Report {
        let folder = tempfile::tempdir().unwrap();
        for (number, text) in manifests.iter().enumerate() {
            std::fs::write(folder.path().join(format!("{number}.yaml")), text).unwrap();
        }
        let program = root().join(".kube-tools/kubeconform");
        assert!(program.exists(), "kubeconform is missing: run `make kube`");
        let output = Command::new(program)
            .args(["-strict", "-summary", "-output", "json", "-schema-location"])
            .arg(self.0.path().join(PLACE))
            .arg(folder.path())
            .output()
            .expect("kubeconform starts");
        // What it finds is in its output, also where that makes it fail.
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
    }
}

/// Writes the schemas that are published now, and says of which kinds.
async fn write_schemas(client: &Client, folder: &Path) -> Result<BTreeSet<String>, String> {
    let mut kinds = BTreeSet::new();
    let index = get(client, "/openapi/v3").await?;
    for path in index["paths"].as_object().unwrap().keys() {
        // What has no version has no kinds.
        let Some((group, version)) = group_version(path) else { continue };
        let mut document = get(client, &format!("/openapi/v3/{path}")).await?;
        let Some(schemas) = document.pointer_mut("/components/schemas") else { continue };
        schemas.as_object_mut().unwrap().values_mut().for_each(close);
        let shared = format!("{}.json", path.replace('/', "_"));
        let text = json!({"components": {"schemas": schemas}}).to_string();
        std::fs::write(folder.join(&shared), text).unwrap();
        for (name, schema) in schemas.as_object().unwrap() {
            if let Some(kind) = kind_of(schema, group, version) {
                let schema = format!("../{shared}#/components/schemas/{name}");
                write_kind(folder, [group, version, kind], &schema);
                kinds.insert(name_of(group, version, kind));
            }
        }
    }
    Ok(kinds)
}

async fn get(client: &Client, path: &str) -> Result<Value, String> {
    let request = http::Request::get(path).body(Vec::new()).unwrap();
    client.request(request).await.map_err(|error| format!("{path}: {error}"))
}

/// Of `apis/apps/v1`, and of `api/v1`, whose group has no name.
fn group_version(path: &str) -> Option<(&str, &str)> {
    match path.split('/').collect::<Vec<_>>()[..] {
        ["api", version] => Some(("", version)),
        ["apis", group, version] => Some((group, version)),
        _ => None,
    }
}

fn name_of(group: &str, version: &str, kind: &str) -> String {
    format!("{group}/{version} {kind}")
}

/// The kind that the schema is of, where that is one of the group and version.
fn kind_of<'a>(schema: &'a Value, group: &str, version: &str) -> Option<&'a str> {
    let kinds = schema["x-kubernetes-group-version-kind"].as_array()?;
    let kind = kinds.iter().find(|kind| kind["group"] == group && kind["version"] == version)?;
    kind["kind"].as_str()
}

fn write_kind(folder: &Path, [group, version, kind]: [&str; 3], schema: &str) {
    let (group, api_version) =
        if group.is_empty() { (version, version.to_owned()) } else { (group, format!("{group}/{version}")) };
    // kubeconform looks for files in lower case, so that it finds a kind that is written so.
    let is = json!({"properties": {"apiVersion": {"enum": [api_version]}, "kind": {"enum": [kind]}}});
    let text = json!({"allOf": [{"$ref": schema}, is]}).to_string();
    std::fs::create_dir_all(folder.join(group)).unwrap();
    let file = format!("{}_{version}.json", kind.to_lowercase());
    std::fs::write(folder.join(group).join(file), text).unwrap();
}

/// Takes no field that is not among the properties, as the API server with strict validation.
///
/// What `allOf` and the like have lists only some of an object's fields, and stays as it is.
fn close(schema: &mut Value) {
    let Some(schema) = schema.as_object_mut() else { return };
    if schema.get("x-kubernetes-int-or-string") == Some(&json!(true)) {
        schema.insert("type".to_owned(), json!(["integer", "string"]));
    }
    let is_open = schema.get("x-kubernetes-preserve-unknown-fields") == Some(&json!(true));
    // An object that lists nothing may have anything in it.
    if schema.contains_key("properties") && !is_open {
        schema.entry("additionalProperties").or_insert(json!(false));
    }
    for part in ["items", "additionalProperties"] {
        schema.get_mut(part).into_iter().for_each(close);
    }
    let fields = schema.get_mut("properties").and_then(Value::as_object_mut);
    fields.into_iter().flat_map(serde_json::Map::values_mut).for_each(close);
}

/// The kinds of all definitions.
async fn defined_kinds(client: &Client) -> Result<BTreeSet<String>, String> {
    let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
    let found = definitions.list(&ListParams::default()).await.map_err(|error| error.to_string())?;
    let of = |definition: CustomResourceDefinition| {
        let spec = definition.spec;
        let served = spec.versions.into_iter().filter(|version| version.served);
        served.map(move |version| name_of(&spec.group, &version.name, &spec.names.kind))
    };
    Ok(found.into_iter().flat_map(of).collect())
}

/// A change of what was fine, and what is said of it.
type Mistake = (Value, fn(&mut Value), &'static str);

fn mistakes() -> Vec<Mistake> {
    let objects = render(OPERATOR, &json!({}));
    let [deployment, definition] =
        ["Deployment", "CustomResourceDefinition"].map(|kind| one(&objects, kind).clone());
    let model = json!({
        "apiVersion": "embeddings.kagent.dev/v1alpha1",
        "kind": "EmbeddingModel",
        "metadata": {"name": "minilm"},
        "spec": {"source": {"huggingFace": {"repo": "org/name"}}},
    });
    vec![
        (deployment.clone(), |it| it["spec"]["replica"] = json!(2), "'replica' not allowed"),
        (
            deployment.clone(),
            |it| it["spec"]["template"]["spec"]["containers"][0]["imagePulPolicy"] = json!("Always"),
            "'imagePulPolicy' not allowed",
        ),
        (deployment.clone(), |it| it["metadata"]["label"] = json!({}), "'label' not allowed"),
        (deployment.clone(), |it| it["spec"]["replicas"] = json!("2"), "got string, want integer"),
        (deployment.clone(), |it| it["spec"]["selector"] = Value::Null, "got null, want object"),
        (deployment.clone(), |it| it["spec"] = json!({"replicas": 2}), "missing properties"),
        (deployment.clone(), |it| it["kind"] = json!("Deploiment"), "could not find schema for Deploiment"),
        (deployment.clone(), |it| it["kind"] = json!("deployment"), "value must be 'Deployment'"),
        (deployment, |it| it["apiVersion"] = json!("apps/v1beta2"), "could not find schema for Deployment"),
        (
            definition,
            |it| it["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["propertys"] = json!({}),
            "'propertys' not allowed",
        ),
        (model.clone(), |it| it["spec"]["replica"] = json!(2), "'replica' not allowed"),
        (model.clone(), |it| it["metadata"]["label"] = json!({}), "'label' not allowed"),
        (model.clone(), |it| it["spec"]["replicas"] = json!("2"), "got string, want integer"),
        (
            model,
            |it| it["spec"]["resources"] = json!({"requests": {"cpu": true}}),
            "got boolean, want integer or string",
        ),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_conform_is_found() {
    let schemas = Schemas::of(ControlPlane::get().await).await;
    let mistakes = mistakes();
    let right: Vec<String> = mistakes.iter().map(|(object, ..)| object.to_string()).collect();
    let mut wrong: Vec<String> = mistakes
        .iter()
        .map(|(object, change, _)| {
            let mut object = object.clone();
            change(&mut object);
            object.to_string()
        })
        .collect();
    // The same key twice: parsers differ in which of them they take.
    wrong.push(right[0].replacen('{', r#"{"kind": "Deployment", "#, 1));
    let told = mistakes.iter().map(|(.., told)| *told).chain(["already set in map"]);

    let report = schemas.check(&right.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(report.summary, Summary { valid: right.len(), ..Summary::default() }, "{report:?}");
    let report = schemas.check(&wrong.iter().map(String::as_str).collect::<Vec<_>>());
    for (number, told) in told.enumerate() {
        let found: Vec<&Finding> = report.resources.iter().filter(|finding| finding.of() == number).collect();
        assert!(matches!(found[..], [one] if one.msg.contains(told)), "{told}: {found:?}");
    }
    let Summary { valid, invalid, errors, skipped } = report.summary;
    assert_eq!((valid, invalid + errors, skipped), (0, wrong.len(), 0));
}
