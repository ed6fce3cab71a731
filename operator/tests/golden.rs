//! Each example, and the objects that it becomes: whole, as they are applied.
#![allow(clippy::unwrap_used, reason = "a test that unwraps in vain fails, as it should")]

#[path = "support/generated.rs"]
mod generated;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use embedding_operator::config::Config;
use embedding_operator::controller::build::{self, Desired};
use embedding_operator::controller::fetched::State;
use embedding_operator::controller::object::{Kind, Object};
use embedding_operator::controller::observe::Observed;
use embedding_operator::controller::validate::validate;
use embedding_operator::crd::{self, EmbeddingModel};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::ResourceExt as _;
use serde_json::json;

use generated::assert_generated;

const SUMMARY: &str = r#"{"repo":"org/name","revision":"main","commit":"0123456789012345678901234567890123456789","directory":"/models/x","files":9,"bytes":91336405,"downloaded_bytes":91336405,"architecture":"bert","dimensions":384,"max_tokens":256,"normalizes":true,"space_files":"e47a7cc12e8074716d46abb5dbdecef488981ffb12023947b7ec00cfa1e2f83f","prompts":{},"default_prompt":null}"#;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn config() -> Config {
    Config {
        server_image: "registry.example.com/embedding-server:0.1.0".into(),
        server_cuda_image: None,
        hub_endpoint: "https://huggingface.co".into(),
        allowed_endpoints: Vec::new(),
        fetch_retry: Duration::from_mins(1),
    }
}

fn now() -> Timestamp {
    "2026-01-01T00:00:00Z".parse().unwrap()
}

/// The examples by name, as the API server would hand them out.
fn examples() -> BTreeMap<String, EmbeddingModel> {
    let mut examples = BTreeMap::new();
    for entry in std::fs::read_dir(root().join("crds/examples")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "yaml") {
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        let mut model: EmbeddingModel =
            serde_yaml::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        model.metadata.namespace = Some("default".into());
        model.metadata.uid = Some("11111111-2222-3333-4444-555555555555".into());
        model.metadata.generation = Some(1);
        examples.insert(path.file_stem().unwrap().to_str().unwrap().to_owned(), model);
    }
    examples
}

/// What a cluster would make of applied objects: what the operator looks at.
fn cluster(desired: &Desired, model: &EmbeddingModel) -> Observed {
    let mut observed = Observed { service_monitors_exist: true, ..Observed::default() };
    for Object { kind, value } in &desired.objects {
        let mut value = value.clone();
        value.metadata.uid = Some(format!("uid-of-{}", value.name_any()));
        if *kind == Kind::Job {
            value.data["status"] = json!({"conditions": [
                {"type": "Complete", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"},
            ]});
            let pod: Pod = serde_json::from_value(json!({
                "metadata": {
                    "name": "fetch",
                    "ownerReferences": [
                        {"apiVersion": "batch/v1", "kind": "Job", "name": value.name_any(), "uid": value.uid()},
                    ],
                },
                "status": {"containerStatuses": [{
                    "name": "fetch", "image": "", "imageID": "", "ready": false, "restartCount": 0,
                    "state": {"terminated": {"exitCode": 0, "message": SUMMARY}},
                }]},
            }))
            .unwrap();
            observed.pods.push(pod);
        }
        observed.children.insert((*kind, value.name_any()), value);
    }
    observed.source_claim = source_claim(model);
    observed
}

fn source_claim(model: &EmbeddingModel) -> Option<PersistentVolumeClaim> {
    let source = model.spec.source.persistent_volume_claim.as_ref()?;
    let claim = json!({"metadata": {"name": source.claim_name}, "spec": {"accessModes": ["ReadOnlyMany"]}});
    Some(serde_json::from_value(claim).unwrap())
}

/// The stages that a model goes through when all goes well, by name.
fn stages(model: &EmbeddingModel) -> Vec<(&'static str, Desired)> {
    let build = |observed: &Observed| {
        let valid = validate(model, observed, &config()).unwrap();
        build::build(&valid, observed, &config(), now())
    };
    let nothing =
        Observed { service_monitors_exist: true, source_claim: source_claim(model), ..Observed::default() };
    let first = build(&nothing);
    if first.template.is_some() {
        return vec![("serving", first)];
    }
    assert_eq!(first.files, State::NoVolume);
    let fetching = build(&cluster(&first, model));
    let fetched = build(&cluster(&fetching, model));
    // The Job has done its work, and its record is what stays of it.
    let serving = build(&cluster(&fetched, model));
    assert_eq!(fetched, serving, "what is applied once is what should be");
    vec![("fetching", fetching), ("serving", serving)]
}

#[test]
fn each_example_becomes_the_objects_of_its_golden_file() {
    let examples = examples();
    assert!(examples.len() >= 9);
    for (name, model) in &examples {
        let mut text = String::new();
        let mut last: Vec<Object> = Vec::new();
        for (stage, desired) in stages(model) {
            for object in &desired.objects {
                if last.contains(object) {
                    continue;
                }
                let yaml = serde_yaml::to_string(&object.value).unwrap();
                writeln!(text, "---\n# {stage}\n{}", yaml.trim_end()).unwrap();
            }
            last = desired.objects;
        }
        assert_generated(&root().join(format!("operator/tests/golden/{name}.yaml")), &text);
    }
    let golden = std::fs::read_dir(root().join("operator/tests/golden")).unwrap().count();
    assert_eq!(golden, examples.len(), "a golden file without its example");
}

#[test]
fn the_metric_that_an_autoscaler_asks_for_is_one_that_the_server_exports() {
    let model = examples().remove("autoscaling-queue").unwrap();
    let (_, desired) = stages(&model).pop().unwrap();
    let autoscaler = desired.objects.iter().find(|it| it.kind == Kind::HorizontalPodAutoscaler).unwrap();
    let metric = &autoscaler.value.data["spec"]["metrics"][0]["pods"]["metric"]["name"];
    let name = metric.as_str().unwrap().strip_prefix("embedding_").unwrap();
    let server = std::fs::read_to_string(root().join("server/src/metrics.rs")).unwrap();
    assert!(server.contains(r#"with_prefix("embedding")"#));
    assert!(server.contains(&format!(r#"registry.register("{name}","#)), "{name}");
}

#[test]
fn no_object_has_nulls_and_all_have_an_owner_or_are_retained_claims() {
    fn no_nulls(value: &serde_json::Value, at: &str) {
        match value {
            serde_json::Value::Null => panic!("{at} is null"),
            serde_json::Value::Object(map) => {
                map.iter().for_each(|(key, value)| no_nulls(value, &format!("{at}.{key}")));
            }
            serde_json::Value::Array(items) => items.iter().for_each(|value| no_nulls(value, at)),
            _ => {}
        }
    }
    for (name, model) in examples() {
        for (_, desired) in stages(&model) {
            for object in &desired.objects {
                no_nulls(
                    &serde_json::to_value(&object.value).unwrap(),
                    &format!("{name}: {}", object.name()),
                );
                let owned = object
                    .value
                    .owner_references()
                    .iter()
                    .any(|owner| Some(&owner.uid) == model.uid().as_ref());
                let retained = object.kind == Kind::PersistentVolumeClaim && model.spec.cache.retain;
                assert_eq!(owned, !retained, "{name}: {}", object.name());
                assert!(object.name().len() <= 63, "{}", object.name());
            }
        }
    }
}

#[test]
fn the_definition_in_crds_is_that_of_the_types() {
    let yaml = crd::yaml();
    assert_generated(&root().join("crds/embeddingmodels.yaml"), &yaml);
    // What `kubectl apply` stores beside it, as an annotation, has a limit.
    let json = serde_json::to_string(&crd::definition()).unwrap();
    assert!(json.len() < 200_000, "kubectl apply can store 262144 bytes; the definition has {}", json.len());
}

#[test]
fn every_field_of_ours_is_described_and_bounded() {
    let definition = serde_json::to_value(crd::definition()).unwrap();
    let schema = &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"];
    let mut fields = 0;
    for part in ["spec", "status"] {
        check(&schema[part], part, &mut fields);
    }
    assert!(fields > 80, "{fields} fields");
}

/// Types of Kubernetes' own API, which are what they are.
fn is_foreign(at: &str) -> bool {
    let foreign = [
        ".behavior",
        ".affinity",
        ".tolerations",
        ".topologySpreadConstraints",
        ".imagePullSecrets",
        ".env",
        ".volumeMounts",
        ".podSelector",
        ".namespaceSelector",
        ".conditions",
        ".configMap",
        ".secret",
        ".emptyDir",
        "volumes.persistentVolumeClaim",
    ];
    foreign.iter().any(|end| at.ends_with(end))
}

fn check(schema: &serde_json::Value, at: &str, fields: &mut usize) {
    *fields += 1;
    assert!(schema["description"].as_str().is_some_and(|text| !text.is_empty()), "{at} has no description");
    assert!(schema.get("nullable").is_none(), "{at} is nullable");
    if is_foreign(at) {
        return;
    }
    match schema["type"].as_str() {
        Some("string") => assert!(
            schema.get("maxLength").is_some() || schema.get("enum").is_some(),
            "{at} is a string without a bound"
        ),
        Some("array") => {
            assert!(schema.get("maxItems").is_some(), "{at} is a list without a bound");
            assert!(schema.get("x-kubernetes-list-type").is_some(), "{at} has no list type");
            if let Some(properties) = schema["items"]["properties"].as_object() {
                for (name, schema) in properties {
                    check(schema, &format!("{at}.{name}"), fields);
                }
            }
        }
        Some("integer") => {
            let format = schema["format"].as_str();
            let bounded = schema.get("minimum").is_some() && schema.get("maximum").is_some();
            assert!(
                at.starts_with("status") || (format == Some("int32") && bounded),
                "{at} is an integer of format {format:?} without bounds"
            );
        }
        Some("number") => panic!("{at} is a float"),
        Some("object") if schema.get("properties").is_none() => {
            assert!(schema.get("maxProperties").is_some(), "{at} is a map without a bound");
        }
        _ => {}
    }
    for (name, schema) in schema["properties"].as_object().into_iter().flatten() {
        check(schema, &format!("{at}.{name}"), fields);
    }
}

/// The Deployment has done what it was told.
fn settle(observed: &mut Observed) {
    for ((kind, _), object) in &mut observed.children {
        if *kind == Kind::Deployment {
            object.metadata.generation = Some(1);
            let replicas = object.data["spec"]["replicas"].clone();
            object.data["status"] = json!({
                "observedGeneration": 1, "replicas": replicas, "updatedReplicas": replicas,
                "readyReplicas": replicas, "availableReplicas": replicas,
            });
        }
    }
}

#[test]
fn what_pods_serve_stays_recorded_and_in_the_cache_until_the_next_is_rolled_out() {
    let mut model = examples().remove("minimal").unwrap();
    let build = |model: &EmbeddingModel, observed: &Observed| {
        build::build(&validate(model, &Observed::default(), &config()).unwrap(), observed, &config(), now())
    };
    let templates = |desired: &Desired| {
        let of = |object: &&Object| object.name().starts_with("minilm-template-");
        desired.objects.iter().filter(of).count()
    };
    let (_, serving) = stages(&model).pop().unwrap();
    let mut settled = cluster(&serving, &model);
    settle(&mut settled);
    assert_eq!(templates(&build(&model, &settled)), 1);

    // The next template is decided upon while the Deployment is the last one's, and settled.
    model.spec.inference.max_batch_tokens = Some(512);
    let next = build(&model, &settled);
    assert_eq!(templates(&next), 2);
    let mut rolling = cluster(&next, &model);
    assert_eq!(templates(&build(&model, &rolling)), 2, "it is not rolled out");

    // It does not get on, and another revision is wanted: nothing that is served goes.
    model.spec.source.hugging_face.as_mut().unwrap().repo = "org/other".into();
    let stuck = build(&model, &rolling);
    let fetch = stuck.objects.iter().find(|object| object.kind == Kind::Job).unwrap();
    let arguments = fetch.value.data["spec"]["template"]["spec"]["containers"][0]["args"].to_string();
    let served = "sentence-transformers/all-MiniLM-L6-v2@0123456789012345678901234567890123456789";
    assert!(arguments.contains(&format!("\"--keep\",\"{served}\"")), "{arguments}");
    model.spec.source.hugging_face.as_mut().unwrap().repo = "sentence-transformers/all-MiniLM-L6-v2".into();
    settle(&mut rolling);
    assert_eq!(templates(&build(&model, &rolling)), 1, "it is rolled out");
}
