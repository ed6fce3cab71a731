//! The resource as the API server sees it: examples, bounds, rules, defaults, kubectl.
#![allow(missing_docs, reason = "tests say what they test by their names")]
#![allow(clippy::unwrap_used, reason = "a test that unwraps in vain fails, as it should")]

mod support;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

use embedding_operator::config::Config;
use embedding_operator::controller::object::Kind;
use embedding_operator::controller::observe::Observed;
use embedding_operator::controller::validate::{Refusal, validate};
use embedding_operator::crd::rules::{HOST_MESSAGE, RULES};
use embedding_operator::crd::status::Reason;
use embedding_operator::crd::{self, EmbeddingModel};
use jiff::Timestamp;
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{ApiResource, DynamicObject, Patch, PatchParams, PostParams};
use kube::core::Status;
use kube::{Api, ResourceExt as _};
use serde_json::{Value, json};
use support::cluster::{ControlPlane, Namespace};
use support::operator::{
    PATIENCE, USER, change, create, hub, is_ready, models, wait_until, wait_until_ready,
};
use support::state::World;
use support::wait::wait_for_object;

const COMMIT: &str = "c9745ed1d9f207416be6d2e6f8de32d1f16199bf";
const SHA256: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
/// The definition's name.
const DEFINITION: &str = "embeddingmodels.embeddings.kagent.dev";

/// Objects as they are: what the types would leave out or refuse has to reach the API server.
type Raw = Api<DynamicObject>;

fn raw(plane: &ControlPlane, namespace: &Namespace) -> Raw {
    Api::namespaced_with(plane.client(), namespace, &ApiResource::erase::<EmbeddingModel>(&()))
}

fn object(name: &str, spec: &Value) -> DynamicObject {
    let object = json!({
        "apiVersion": "embeddings.kagent.dev/v1alpha1",
        "kind": "EmbeddingModel",
        "metadata": {"name": name},
        "spec": spec,
    });
    serde_json::from_value(object).unwrap()
}

/// A spec with the least source, and more.
fn spec(more: &Value) -> Value {
    let mut spec = json!({"source": {"huggingFace": {"repo": "org/name"}}});
    merge(&mut spec, more);
    spec
}

/// Nulls are put in, not taken as removals.
fn merge(into: &mut Value, more: &Value) {
    match (into, more) {
        (Value::Object(into), Value::Object(more)) => {
            for (key, value) in more {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, more) => *into = more.clone(),
    }
}

const DRY: PostParams = PostParams { dry_run: true, field_manager: None };

/// The object as it would be stored, or why it would not.
async fn try_out(api: &Raw, object: &DynamicObject) -> Result<DynamicObject, Box<Status>> {
    verdict(api.create(&DRY, object).await)
}

fn verdict<T>(result: kube::Result<T>) -> Result<T, Box<Status>> {
    match result {
        Ok(object) => Ok(object),
        Err(kube::Error::Api(status)) => Err(status),
        Err(error) => panic!("{error}"),
    }
}

/// Where and what.
fn causes(status: &Status) -> Vec<(String, String)> {
    let causes = status.details.iter().flat_map(|details| &details.causes);
    causes.map(|cause| (cause.field.clone(), cause.message.clone())).collect()
}

/// What a rule's place is called in a cause, without the numbers of items.
fn field_of(at: &str) -> String {
    at.replace("/properties/", ".").replace("/items", "[]").trim_start_matches('.').to_owned()
}

/// Which of the rules a refusal is about, by their numbers.
fn broken(status: &Status) -> BTreeSet<usize> {
    let mut broken = BTreeSet::new();
    for (field, message) in causes(status) {
        let field: String = field.chars().filter(|c| !c.is_ascii_digit()).collect();
        let field = if field == "<nil>" { String::new() } else { field };
        broken.extend(RULES.iter().enumerate().filter_map(|(number, rule)| {
            (field_of(rule.at) == field && message.ends_with(rule.message)).then_some(number)
        }));
    }
    broken
}

fn config() -> Config {
    Config { server_cuda_image: Some("registry.test/cuda:1".into()), ..support::operator::config() }
}

/// What `validate` says to an object, which is as if it were stored.
fn judge(object: &DynamicObject) -> Result<(), Refusal> {
    let object = serde_json::to_value(object).unwrap();
    let mut model: EmbeddingModel = serde_json::from_value(object).expect("the types can read it");
    model.metadata.namespace = Some("default".into());
    model.metadata.uid = Some("11111111-2222-3333-4444-555555555555".into());
    validate(&model, &beside(&model), &config()).map(drop)
}

/// The claim that the source names, as if it were there.
fn beside(model: &EmbeddingModel) -> Observed {
    let source = model.spec.source.persistent_volume_claim.as_ref();
    let claim = source.map(
        |source| json!({"metadata": {"name": source.claim_name}, "spec": {"accessModes": ["ReadOnlyMany"]}}),
    );
    let source_claim = claim.map(|claim| serde_json::from_value(claim).unwrap());
    Observed { source_claim, ..Observed::default() }
}

fn crds() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../crds")
}

/// The YAML files of a folder.
fn files(folder: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(crds().join(folder)).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> =
        entries.filter(|path| path.extension().is_some_and(|extension| extension == "yaml")).collect();
    files.sort();
    files
}

fn read<T: serde::de::DeserializeOwned>(path: &Path) -> T {
    let text = std::fs::read_to_string(path).unwrap();
    serde_yaml::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn out(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "", "no warnings");
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn refusal(output: &Output) -> String {
    assert!(!output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn words(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// In the namespace of a test.
async fn kubectl(plane: &ControlPlane, namespace: &Namespace, arguments: &[&str]) -> Output {
    plane.kubectl(&[&["--namespace", &**namespace], arguments].concat()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_examples_can_be_applied_and_built() {
    let plane = ControlPlane::get().await;
    let namespace = plane.namespace("examples").await;
    let models = models(plane, &namespace);
    let files = files("examples");
    assert!(files.len() >= 9);
    for path in &files {
        let file = path.to_str().unwrap();
        let told = path.file_name().unwrap().display();
        let dry = ["apply", "--server-side", "--dry-run=server", "--validate=strict", "-f", file];
        let output = out(&kubectl(plane, &namespace, &dry).await);
        assert!(output.contains("serverside-applied (server dry run)"), "{told}: {output}");
        let output = out(&kubectl(plane, &namespace, &["apply", "--validate=strict", "-f", file]).await);
        assert!(output.contains("created"), "{told}: {output}");
        let output = out(&kubectl(plane, &namespace, &["apply", "--validate=strict", "-f", file]).await);
        assert!(output.contains("unchanged"), "{told}: {output}");

        let written: EmbeddingModel = read(path);
        let stored = models.get(&written.name_any()).await.unwrap();
        assert_eq!(stored.spec, written.spec, "{told}: the schema's defaults are those of the types");
        let mut config = config();
        config.server_cuda_image = None;
        validate(&stored, &beside(&stored), &config).unwrap_or_else(|error| panic!("{told}: {error}"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_invalid_examples_are_refused_for_the_reason_that_they_name() {
    let plane = ControlPlane::get().await;
    let namespace = plane.namespace("invalid").await;
    let api = raw(plane, &namespace);
    for path in files("examples/invalid") {
        let told = path.file_name().unwrap().display();
        let text = std::fs::read_to_string(&path).unwrap();
        let expected = text.lines().next().unwrap().strip_prefix("# expect: ");
        let expected = expected.unwrap_or_else(|| panic!("{told} begins with `# expect: `"));
        let dry = ["apply", "--dry-run=server", "--validate=strict", "-f", path.to_str().unwrap()];
        let output = refusal(&kubectl(plane, &namespace, &dry).await);
        assert!(output.contains(expected), "{told}: {output}");

        // An unknown field is nothing to the types; what breaks a rule is refused by both.
        let object: DynamicObject = read(&path);
        let Err(status) = try_out(&api, &object).await else {
            assert!(expected.contains("unknown field"), "{told} is accepted without strict validation");
            continue;
        };
        let rules = broken(&status);
        let of_the_source = causes(&status)
            .iter()
            .all(|(field, _)| field.starts_with("spec.source") && !field.ends_with("sha256"));
        if !rules.is_empty() || of_the_source {
            let error = judge(&object).expect_err(&format!("{told}: validate refuses it"));
            assert_eq!(error.reason, Reason::InvalidSpec, "{told}");
            assert!(
                rules.is_empty() || rules.iter().any(|&rule| error.message.contains(RULES[rule].message)),
                "{told}: {error}"
            );
        }
    }
}

/// What a change comes to, of `cache` or of a spec.
struct Transition {
    from: Value,
    to: Value,
    refused: Option<&'static str>,
}

fn transitions() -> Vec<Transition> {
    const SHRINKS: Option<&str> = Some("cache.size cannot shrink");
    const CLASS: Option<&str> = Some("cache.storageClassName cannot be changed: make another EmbeddingModel");
    const MODES: Option<&str> = Some("cache.accessModes cannot be changed: make another EmbeddingModel");
    let size = |size: Value| json!({"size": size});
    let class = |class: &str| json!({"storageClassName": class});
    let modes = |modes: &[&str]| json!({"accessModes": modes});
    let both = ["ReadWriteOnce", "ReadWriteMany"];
    let nothing = Value::Null;
    [
        // One byte.
        (size(json!("1073741824")), size(json!("1073741823")), SHRINKS),
        (size(json!(1_073_741_824)), size(json!(1_073_741_823)), SHRINKS),
        (size(json!("1Gi")), size(json!("1073741823")), SHRINKS),
        (size(json!("1Gi")), size(json!(1_073_741_823)), SHRINKS),
        (size(json!("1Gi")), size(json!("1073741823999m")), SHRINKS),
        (size(json!("1Gi")), size(json!("1G")), SHRINKS),
        (size(json!("1Gi")), size(json!("1Gi")), None),
        (size(json!("1Gi")), size(json!("1024Mi")), None),
        (size(json!("1024Mi")), size(json!("1Gi")), None),
        (size(json!("1Gi")), size(json!(1_073_741_824)), None),
        (size(json!(1_073_741_824)), size(json!("1Gi")), None),
        (size(json!("1Gi")), size(json!("1073741825")), None),
        (size(json!("1Gi")), size(json!("1e10")), None),
        (size(json!("1G")), size(json!("1Gi")), None),
        // The default is 10Gi.
        (nothing.clone(), size(json!("10Gi")), None),
        (nothing.clone(), size(json!("11Gi")), None),
        (nothing.clone(), size(json!("9Gi")), SHRINKS),
        (size(json!("11Gi")), nothing.clone(), SHRINKS),
        (size(json!("11Gi")), json!({}), SHRINKS),
        (size(json!("5Gi")), nothing.clone(), None),
        (class("a"), class("b"), CLASS),
        (class("a"), nothing.clone(), CLASS),
        (class("a"), json!({}), CLASS),
        (class("a"), json!({"storageClassName": null}), CLASS),
        (nothing.clone(), class("a"), CLASS),
        (json!({}), class("a"), CLASS),
        (class("a"), class("a"), None),
        (modes(&["ReadWriteOnce"]), modes(&["ReadWriteMany"]), MODES),
        (modes(&["ReadWriteOnce"]), modes(&both), MODES),
        (modes(&both), modes(&["ReadWriteOnce"]), MODES),
        (modes(&["ReadWriteMany"]), nothing.clone(), MODES),
        (modes(&["ReadWriteMany"]), json!({}), MODES),
        (nothing.clone(), modes(&["ReadWriteMany"]), MODES),
        (modes(&["ReadWriteOnce"]), nothing.clone(), None),
        (modes(&both), modes(&["ReadWriteMany", "ReadWriteOnce"]), None),
        // The revision is a commit in all of these.
        (json!({"ephemeral": true}), json!({"ephemeral": false}), None),
        (json!({"ephemeral": true}), nothing.clone(), None),
        (nothing.clone(), json!({"ephemeral": true}), None),
        (nothing, json!({"retain": true}), None),
        (json!({"retain": true}), json!({"retain": false}), None),
        (json!({"ephemeral": true, "storageClassName": "a"}), json!({"ephemeral": true}), CLASS),
    ]
    .map(|(from, to, refused)| Transition { from, to, refused })
    .into()
}

fn with_cache(cache: &Value) -> Value {
    let mut spec = spec(&json!({"source": {"huggingFace": {"revision": COMMIT}}}));
    // Null is no field at all; a field that is null has a test of its own.
    if !cache.is_null() {
        spec["cache"] = cache.clone();
    }
    spec
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cache_can_grow_and_change_in_nothing_else() {
    let plane = ControlPlane::get().await;
    let namespace = plane.namespace("transitions").await;
    let api = raw(plane, &namespace);
    for (number, Transition { from, to, refused }) in transitions().into_iter().enumerate() {
        let name = format!("model-{number}");
        let told = format!("{from} to {to}");
        let stored = api.create(&PostParams::default(), &object(&name, &with_cache(&from))).await;
        let stored = stored.unwrap_or_else(|error| panic!("{told}: {error}"));
        let mut changed = object(&name, &with_cache(&to));
        changed.metadata.resource_version = stored.resource_version();
        let result = verdict(api.replace(&name, &DRY, &changed).await);
        match refused {
            None => assert!(result.is_ok(), "{told}: {result:?}"),
            Some(message) => {
                let status = result.err().unwrap_or_else(|| panic!("{told} is accepted"));
                let rules: Vec<_> = broken(&status).into_iter().map(|rule| RULES[rule].message).collect();
                assert_eq!(rules, [message], "{told}: {}", status.message);
            }
        }
    }
}

/// What a change of the spec of a model that refuses changes of its vector space comes to.
fn transitions_of_the_space() -> Vec<Transition> {
    const SOURCE: Option<&str> = Some(
        "spaceChangePolicy Refuse: source decides the vector space and cannot be changed; set the policy to Allow in the \
         same update, and make indexes anew",
    );
    const PROMPTS: Option<&str> = Some(
        "spaceChangePolicy Refuse: inference.prompts and inference.defaultPrompt decide the vector space and cannot be \
         changed; set the policy to Allow in the same update, and make indexes anew",
    );
    let refuse = |more: Value| {
        let mut spec = json!({"spaceChangePolicy": "Refuse"});
        merge(&mut spec, &more);
        spec
    };
    let hub = |repo: &str, more: Value| {
        let mut source = json!({"source": {"huggingFace": {"repo": repo}}});
        merge(&mut source["source"]["huggingFace"], &more);
        source
    };
    let archive = |host: &str, sha256: &str| json!({"source": {"http": {"url": format!("https://{host}/m.tgz"), "sha256": sha256}}});
    let claim = |claim: Value| json!({"source": {"persistentVolumeClaim": claim}});
    let image =
        |host: &str, digest: &str| json!({"reference": format!("{host}/m@sha256:{}", digest.repeat(64))});
    let of_image = |image: Value| json!({"source": {"image": image}});
    let prompted = |inference: Value| {
        let mut spec = hub("a/b", json!({}));
        spec["inference"] = inference;
        spec
    };
    let main = || hub("a/b", json!({}));
    let query = || prompted(json!({"prompts": {"query": "q: ", "passage": "p: "}, "defaultPrompt": "query"}));
    let other_sha256 = SHA256.replace('0', "f");
    let none = prompted(json!({}));
    let mut table = vec![
        (main(), hub("a/c", json!({})), SOURCE),
        (main(), hub("a/b", json!({"revision": "v2"})), SOURCE),
        (main(), hub("a/b", json!({"revision": COMMIT})), SOURCE),
        (main(), hub("a/b", json!({"revision": "main"})), None),
        (main(), hub("a/b", json!({"endpoint": "https://mirror.test"})), None),
        (main(), hub("a/b", json!({"tokenSecretRef": {"name": "hub"}})), None),
        (main(), archive("a.test", SHA256), SOURCE),
        (archive("a.test", SHA256), archive("b.test", SHA256), None),
        (archive("a.test", SHA256), archive("a.test", &other_sha256), SOURCE),
        (archive("a.test", SHA256), main(), SOURCE),
        (claim(json!({"claimName": "a"})), claim(json!({"claimName": "b"})), SOURCE),
        (claim(json!({"claimName": "a"})), claim(json!({"claimName": "a", "path": "p"})), SOURCE),
        (
            claim(json!({"claimName": "a", "path": "p"})),
            claim(json!({"claimName": "a", "path": "q"})),
            SOURCE,
        ),
        (claim(json!({"claimName": "a", "path": "p"})), claim(json!({"claimName": "a", "path": "p"})), None),
        (of_image(image("a.test", "0")), of_image(image("a.test", "1")), SOURCE),
        (of_image(image("a.test", "0")), of_image(image("b.test", "0")), None),
        (query(), query(), None),
        (query(), main(), PROMPTS),
        (main(), query(), PROMPTS),
        (query(), none.clone(), PROMPTS),
        (main(), none, None),
        (main(), prompted(json!({"prompts": {}, "onOverflow": "Error", "requireInputType": true})), None),
        (query(), prompted(json!({"prompts": {"query": "q: ", "passage": "p: "}})), PROMPTS),
        (query(), prompted(json!({"prompts": {"query": "q: "}, "defaultPrompt": "query"})), PROMPTS),
    ];
    for (from, to, _) in &mut table {
        (*from, *to) = (refuse(from.clone()), refuse(to.clone()));
    }
    // The policy counts that there is after the change.
    let allow = |mut spec: Value| {
        spec["spaceChangePolicy"] = json!("Allow");
        spec
    };
    table.extend([
        (refuse(main()), allow(hub("a/c", json!({}))), None),
        (refuse(main()), hub("a/c", json!({})), None),
        (refuse(query()), allow(main()), None),
        (allow(main()), query(), None),
        (allow(main()), refuse(main()), None),
        (main(), refuse(hub("a/c", json!({}))), SOURCE),
        (main(), refuse(query()), PROMPTS),
    ]);
    table.into_iter().map(|(from, to, refused)| Transition { from, to, refused }).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_decides_the_vector_space_stays_where_changes_of_it_are_refused() {
    let plane = ControlPlane::get().await;
    let namespace = plane.namespace("spaces").await;
    let api = raw(plane, &namespace);
    for (number, Transition { from, to, refused }) in transitions_of_the_space().into_iter().enumerate() {
        let name = format!("model-{number}");
        let told = format!("{from} to {to}");
        let stored = api.create(&PostParams::default(), &object(&name, &from)).await;
        let stored = stored.unwrap_or_else(|error| panic!("{told}: {error}"));
        let mut changed = object(&name, &to);
        changed.metadata.resource_version = stored.resource_version();
        let result = verdict(api.replace(&name, &DRY, &changed).await);
        let rules = result.as_ref().err().map(|status| {
            broken(status).into_iter().map(|rule| RULES[rule].message).collect::<Vec<_>>().join(", ")
        });
        assert_eq!(rules.as_deref(), refused, "{told}: {result:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn removing_the_cache_and_adding_it_again_gets_around_nothing() {
    let plane = ControlPlane::get().await;
    let namespace = plane.namespace("detour").await;
    let api = raw(plane, &namespace);
    let patch = async |name: &str, patch: Value| {
        verdict(api.patch(name, &PatchParams::default(), &Patch::Merge(&patch)).await)
    };
    let create = async |name: &str, cache: Value| {
        api.create(&PostParams::default(), &object(name, &with_cache(&cache))).await.unwrap();
    };
    // Removal is a change to the defaults: no class, 10Gi, ReadWriteOnce.
    let remove = json!({"spec": {"cache": null}});
    create("class", json!({"storageClassName": "fast"})).await;
    let status = patch("class", remove.clone()).await.unwrap_err();
    assert!(status.message.contains("cache.storageClassName cannot be changed"), "{}", status.message);
    let status = patch("class", json!({"spec": {"cache": {"storageClassName": null}}})).await.unwrap_err();
    assert!(status.message.contains("cache.storageClassName cannot be changed"), "{}", status.message);
    create("large", json!({"size": "20Gi"})).await;
    let status = patch("large", remove.clone()).await.unwrap_err();
    assert!(status.message.contains("cache.size cannot shrink"), "{}", status.message);
    create("modes", json!({"accessModes": ["ReadWriteMany"]})).await;
    let status = patch("modes", remove.clone()).await.unwrap_err();
    assert!(status.message.contains("cache.accessModes cannot be changed"), "{}", status.message);

    // What has the defaults can lose them, and gets them again; with nothing else.
    create("default", json!({"size": "5Gi"})).await;
    let removed = patch("default", remove).await.unwrap();
    assert_eq!(
        removed.data["spec"]["cache"],
        json!({"size": "10Gi", "accessModes": ["ReadWriteOnce"]}),
        "removal grows it to the default"
    );
    let status =
        patch("default", json!({"spec": {"cache": {"storageClassName": "fast"}}})).await.unwrap_err();
    assert!(status.message.contains("cache.storageClassName cannot be changed"), "{}", status.message);
    let status = patch("default", json!({"spec": {"cache": {"size": "5Gi"}}})).await.unwrap_err();
    assert!(status.message.contains("cache.size cannot shrink"), "{}", status.message);
    // Nor by the way of ephemeral.
    patch("class", json!({"spec": {"cache": {"ephemeral": true}}})).await.unwrap();
    let status = patch("class", json!({"spec": {"cache": {"storageClassName": "slow"}}})).await.unwrap_err();
    assert!(status.message.contains("cache.storageClassName cannot be changed"), "{}", status.message);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_rule_is_broken_by_an_example_or_a_transition() {
    let plane = ControlPlane::get().await;
    let namespace = plane.namespace("rules").await;
    let api = raw(plane, &namespace);
    let mut seen = BTreeSet::new();
    for path in files("examples/invalid") {
        if let Err(status) = try_out(&api, &read(&path)).await {
            seen.extend(broken(&status));
        }
    }
    for transition in transitions().into_iter().chain(transitions_of_the_space()) {
        seen.extend(RULES.iter().position(|rule| Some(rule.message) == transition.refused));
    }
    let mut missing = String::new();
    for (number, rule) in RULES.iter().enumerate() {
        if !seen.contains(&number) {
            writeln!(missing, "{}: {}", field_of(rule.at), rule.message).unwrap();
        }
    }
    assert!(missing.is_empty(), "no example in crds/examples/invalid breaks:\n{missing}");
}

fn many(count: usize, item: impl Fn(usize) -> Value) -> Value {
    (0..count).map(item).collect()
}

fn map(count: usize) -> Value {
    Value::Object((0..count).map(|number| (format!("key-{number}"), json!("value"))).collect())
}

/// What is added to the least spec, and the field that a refusal is about.
type Row<'a> = &'a mut dyn FnMut(Value, Option<&'static str>);

fn integers(row: Row<'_>) {
    // The field, what is around it, the least and the most.
    let integer: [(&'static str, fn(i64) -> Value, i64, i64); 10] = [
        ("spec.replicas", |n| json!({"replicas": n}), 0, 1000),
        ("spec.service.port", |n| json!({"service": {"port": n}}), 1, 65535),
        ("spec.gpu.count", |n| json!({"gpu": {"count": n}}), 1, 16),
        ("spec.startupTimeoutSeconds", |n| json!({"startupTimeoutSeconds": n}), 10, 86400),
        ("spec.inference.maxBatchTokens", |n| json!({"inference": {"maxBatchTokens": n}}), 1, 1_048_576),
        (
            "spec.inference.maxConcurrentRequests",
            |n| json!({"inference": {"maxConcurrentRequests": n}}),
            1,
            1_048_576,
        ),
        ("spec.inference.maxWaitingTexts", |n| json!({"inference": {"maxWaitingTexts": n}}), 1, 1_048_576),
        (
            "spec.autoscaling.minReplicas",
            |n| json!({"autoscaling": {"minReplicas": n, "maxReplicas": 1000}, "resources": {"requests": {"cpu": 1}}}),
            1,
            1000,
        ),
        (
            "spec.autoscaling.targetCPUUtilizationPercentage",
            |n| {
                json!({
                    "autoscaling": {"maxReplicas": 2, "targetCPUUtilizationPercentage": n},
                    "resources": {"limits": {"cpu": "500m"}},
                })
            },
            1,
            100,
        ),
        (
            "spec.autoscaling.targetQueuedTokensPerReplica",
            |n| json!({"autoscaling": {"maxReplicas": 2, "targetQueuedTokensPerReplica": n}}),
            1,
            10_000_000,
        ),
    ];
    for (field, around, least, most) in integer {
        row(around(least - 1), Some(field));
        row(around(least), None);
        row(around(most), None);
        row(around(most + 1), Some(field));
    }
    row(json!({"service": {"port": 80.0}}), None);
    row(json!({"replicas": 1.5}), Some("spec.replicas"));
    row(json!({"replicas": "2"}), Some("spec.replicas"));
    let autoscaling = |min: i32, max: i32| json!({"autoscaling": {"minReplicas": min, "maxReplicas": max}, "resources": {"requests": {"cpu": "1"}}});
    row(autoscaling(3, 3), None);
    row(autoscaling(4, 3), Some("spec"));
    row(autoscaling(1, 0), Some("spec.autoscaling.maxReplicas"));
    row(autoscaling(1, 1001), Some("spec.autoscaling.maxReplicas"));
    row(json!({"autoscaling": {"maxReplicas": 3}}), Some("spec"));
    row(
        json!({"autoscaling": {"maxReplicas": 3}, "resources": {"requests": {"memory": "1Gi"}}}),
        Some("spec"),
    );
    let both = json!({
        "maxReplicas": 3,
        "targetCPUUtilizationPercentage": 80,
        "targetQueuedTokensPerReplica": 1000,
    });
    row(json!({"autoscaling": both}), Some("spec"));
    row(json!({"autoscaling": both, "resources": {"requests": {"cpu": "1"}}}), None);
}

fn strings(row: Row<'_>) {
    let hub = |field: &str, value: String| json!({"source": {"huggingFace": {field: value}}});
    row(json!({"modelName": ""}), Some("spec.modelName"));
    row(json!({"modelName": "m".repeat(63)}), None);
    row(json!({"modelName": "m".repeat(64)}), Some("spec.modelName"));
    for bad in ["-m", "m-", "m m", "m/n", "m\n", "ü"] {
        row(json!({"modelName": bad}), Some("spec.modelName"));
    }
    row(hub("revision", String::new()), Some("spec.source.huggingFace.revision"));
    row(hub("revision", "r".repeat(240)), None);
    row(hub("revision", "r".repeat(241)), Some("spec.source.huggingFace.revision"));
    row(hub("revision", "refs/pr/1".into()), None);
    for bad in ["-b", "a b", "a;b", "a$b", "/a", "a/", "a.", "a\n"] {
        row(hub("revision", bad.into()), Some("spec.source.huggingFace.revision"));
    }
    for bad in ["a..b", "a//b", "a/.b"] {
        row(hub("revision", bad.into()), Some("spec.source.huggingFace"));
    }
    let name = |length: usize| "n".repeat(length);
    row(hub("repo", format!("{}/{}", name(96), name(96))), None);
    row(hub("repo", format!("{}/{}", name(96), name(97))), Some("spec.source.huggingFace.repo"));
    row(hub("repo", format!("{}/{}", name(97), name(96))), Some("spec.source.huggingFace.repo"));
    row(hub("repo", "gpt2".into()), None);
    row(hub("repo", "org/a.gitx".into()), None);
    for bad in [
        "",
        "/name",
        "org/",
        "a/b/c",
        "../name",
        "org/.name",
        "org/-name",
        "org/na me",
        "org/$(id)",
        "org/n`",
    ] {
        row(hub("repo", bad.into()), Some("spec.source.huggingFace.repo"));
    }
    for bad in ["org/a..b", "org/a--b", "org/name.git"] {
        row(hub("repo", bad.into()), Some("spec.source.huggingFace"));
    }
    let archive = |sha256: String| json!({"source": {"huggingFace": null, "http": {"url": "https://a.example/m.tgz", "sha256": sha256}}});
    row(archive("0".repeat(64)), None);
    for bad in ["0".repeat(63), "0".repeat(65), "A".repeat(64), "g".repeat(64)] {
        row(archive(bad), Some("spec.source.http.sha256"));
    }
    let claim = |path: &str| json!({"source": {"huggingFace": null, "persistentVolumeClaim": {"claimName": "c", "path": path}}});
    row(claim(&"p".repeat(512)), None);
    row(claim(&"p".repeat(513)), Some("spec.source.persistentVolumeClaim.path"));
    row(claim("a/b.c/d-e"), None);
    for bad in
        ["", "/a", "a/", "a//b", ".", "..", "a/..", "a/../b", "a/.b", "-a", "a b", "a\\b", "a:b", "a\n"]
    {
        row(claim(bad), Some("spec.source.persistentVolumeClaim.path"));
    }
    let prompt = |name: &str, text: &str| json!({"inference": {"prompts": {name: text}}});
    row(prompt("query", &"t".repeat(2048)), None);
    row(prompt("query", &"t".repeat(2049)), Some("spec.inference.prompts.query"));
    row(prompt("query", ""), None);
    row(prompt("query", "Instruct: $(X), a=b:\t„c“ "), None);
    row(prompt("query", "Instruct: a\nQuery: "), Some("spec.inference.prompts.query"));
    let default = |name: &str| json!({"inference": {"defaultPrompt": name}});
    for good in ["query", "retrieval.query", "text-matching", "_1", &"n".repeat(63)] {
        row(prompt(good, "q: "), None);
        row(default(good), None);
    }
    for bad in ["", "-q", "m:query", "a=b", "a,b", "a b", "q\n", "ä", &"n".repeat(64)] {
        row(prompt(bad, "q: "), Some("spec.inference.prompts"));
        row(default(bad), Some("spec.inference.defaultPrompt"));
    }
    row(json!({"image": "i".repeat(512)}), None);
    row(json!({"image": "i".repeat(513)}), Some("spec.image"));
    row(json!({"image": "--privileged"}), Some("spec.image"));
}

fn with_an_ephemeral_cache(row: Row<'_>) {
    let ephemeral = |revision: &str| json!({"source": {"huggingFace": {"revision": revision}}, "cache": {"ephemeral": true}});
    row(ephemeral(COMMIT), None);
    row(ephemeral(&COMMIT[1..]), Some("spec"));
    row(ephemeral(&format!("{COMMIT}0")), Some("spec"));
    row(ephemeral(&COMMIT.to_uppercase()), Some("spec"));
    row(ephemeral("main"), Some("spec"));
    row(json!({"cache": {"ephemeral": true}}), Some("spec"));
    row(json!({"cache": {"ephemeral": false}}), None);
}

fn quantities(row: Row<'_>) {
    for good in [json!(1), json!("1"), json!("1m"), json!("0.5"), json!("+1Gi"), json!("1e3"), json!(".5Gi")]
    {
        row(json!({"cache": {"size": good}}), None);
    }
    for bad in
        [json!(0), json!("0"), json!("-1"), json!(-1), json!("0Gi"), json!("0.0"), json!("-0"), json!("0e3")]
    {
        row(json!({"cache": {"size": bad}}), Some("spec"));
    }
    for bad in [json!("1 Gi"), json!("1GiB"), json!("much"), json!(""), json!(0.5)] {
        row(json!({"cache": {"size": bad}}), Some("spec.cache.size"));
    }
    row(
        json!({"resources": {"requests": {"cpu": 1}, "limits": {"cpu": "2", "memory": 1_073_741_824}}}),
        None,
    );
    row(json!({"resources": {"requests": {"cpu": "one"}}}), Some("spec.resources.requests.cpu"));
}

fn lists_and_maps(row: Row<'_>) {
    let pods = |field: &str, value: Value| json!({"podTemplate": {field: value}});
    let mut list =
        |field: &'static str, around: &dyn Fn(Value) -> Value, most: usize, item: &dyn Fn(usize) -> Value| {
            row(around(many(most, item)), None);
            row(around(many(most + 1, item)), Some(field));
        };
    let volume = |n| json!({"name": format!("v{n}"), "emptyDir": {}});
    list("spec.podTemplate.volumes", &|items| pods("volumes", items), 16, &volume);
    list(
        "spec.podTemplate.tolerations",
        &|items| pods("tolerations", items),
        32,
        &|n| json!({"key": format!("k{n}"), "operator": "Exists"}),
    );
    list(
        "spec.podTemplate.env",
        &|items| pods("env", items),
        64,
        &|n| json!({"name": format!("N{n}"), "value": "v"}),
    );
    list(
        "spec.podTemplate.imagePullSecrets",
        &|items| pods("imagePullSecrets", items),
        16,
        &|n| json!({"name": format!("s{n}")}),
    );
    list(
        "spec.podTemplate.topologySpreadConstraints",
        &|items| pods("topologySpreadConstraints", items),
        16,
        &|n| json!({"maxSkew": 1, "topologyKey": format!("k{n}"), "whenUnsatisfiable": "ScheduleAnyway"}),
    );
    list(
        "spec.podTemplate.volumeMounts",
        &|items| json!({"podTemplate": {"volumes": [{"name": "v", "emptyDir": {}}], "volumeMounts": items}}),
        16,
        &|n| json!({"name": "v", "mountPath": format!("/m/{n}")}),
    );
    list(
        "spec.network.allowFrom",
        &|items| json!({"network": {"allowFrom": items}}),
        32,
        &|n| json!({"podSelector": {"matchLabels": {"app": format!("a{n}")}}}),
    );
    row(json!({"cache": {"accessModes": []}}), Some("spec.cache.accessModes"));
    row(json!({"cache": {"accessModes": ["ReadOnlyMany"]}}), Some("spec.cache.accessModes[0]"));
    row(
        json!({"cache": {"accessModes": ["ReadWriteOnce", "ReadWriteOnce"]}}),
        Some("spec.cache.accessModes[1]"),
    );
    row(pods("volumes", json!([volume(1), volume(1)])), Some("spec.podTemplate.volumes[1]"));
    row(pods("volumes", json!([null])), Some("spec.podTemplate.volumes[0]"));

    // Maps.
    for (field, most) in [("labels", 64), ("annotations", 64), ("nodeSelector", 64)] {
        let name: &'static str = match field {
            "labels" => "spec.podTemplate.labels",
            "annotations" => "spec.podTemplate.annotations",
            _ => "spec.podTemplate.nodeSelector",
        };
        row(pods(field, map(most)), None);
        row(pods(field, map(most + 1)), Some(name));
    }
    row(json!({"service": {"annotations": map(64)}}), None);
    row(json!({"service": {"annotations": map(65)}}), Some("spec.service.annotations"));
    row(json!({"monitoring": {"labels": map(64)}}), None);
    row(json!({"monitoring": {"labels": map(65)}}), Some("spec.monitoring.labels"));
    row(json!({"inference": {"prompts": map(32)}}), None);
    row(json!({"inference": {"prompts": map(33)}}), Some("spec.inference.prompts"));
    row(pods("labels", json!({"key": "v".repeat(63)})), None);
    row(pods("labels", json!({"key": "v".repeat(64)})), Some("spec.podTemplate.labels.key"));
}

fn enums(row: Row<'_>) {
    row(json!({"inference": {"device": "CPU", "dtype": "Float32"}}), None);
    row(json!({"inference": {"device": "cpu"}}), Some("spec.inference.device"));
    row(json!({"gpu": {"count": 1}, "inference": {"dtype": "Float16"}}), None);
    for good in ["Truncate", "Error", "ChunkMean"] {
        row(json!({"inference": {"onOverflow": good, "requireInputType": true}}), None);
    }
    row(json!({"inference": {"onOverflow": "chunk_mean"}}), Some("spec.inference.onOverflow"));
    row(json!({"spaceChangePolicy": "Allow"}), None);
    row(json!({"spaceChangePolicy": "Refuse"}), None);
    row(json!({"spaceChangePolicy": "Forbid"}), Some("spec.spaceChangePolicy"));
    row(json!({"service": {"type": "ExternalName"}}), Some("spec.service.type"));
}

#[tokio::test(flavor = "multi_thread")]
async fn each_bound_holds_to_the_last() {
    let plane = ControlPlane::get().await;
    let namespace = plane.namespace("bounds").await;
    let api = raw(plane, &namespace);
    let shown = |more: &Value| {
        let mut text = more.to_string();
        text.truncate(200);
        text
    };
    let mut bounds = Vec::new();
    let mut row = |more, refused| bounds.push((more, refused));
    for rows in [integers, strings, with_an_ephemeral_cache, quantities, lists_and_maps, enums] {
        rows(&mut row);
    }
    for (more, refused) in bounds {
        let result = try_out(&api, &object("model", &spec(&more))).await;
        match (result, refused) {
            (Ok(stored), None) => {
                judge(&stored).unwrap_or_else(|error| panic!("{}: validate: {error}", shown(&more)));
            }
            (Ok(_), Some(_)) => panic!("{} is accepted", shown(&more)),
            (Err(status), None) => panic!("{}: {}", shown(&more), status.message),
            (Err(status), Some(field)) => {
                let causes = causes(&status);
                assert!(causes.iter().any(|(at, _)| at == field), "{}: {causes:?}", shown(&more));
                if !broken(&status).is_empty() {
                    assert!(judge(&object("model", &spec(&more))).is_err(), "{}: validate", shown(&more));
                }
            }
        }
    }
    let long = "n".repeat(48);
    for good in [long.as_str(), "n", "n-1", "a--b"] {
        let stored = try_out(&api, &object(good, &spec(&json!({})))).await;
        judge(&stored.unwrap_or_else(|status| panic!("{good}: {}", status.message))).unwrap();
    }
    let long = "n".repeat(49);
    for bad in [long.as_str(), "1n", "1", "a.b", "bge-small-en-v1.5"] {
        let object = object(bad, &spec(&json!({})));
        let status = try_out(&api, &object).await.expect_err(bad);
        assert_eq!(broken(&status), BTreeSet::from([0]), "{bad}: {}", status.message);
        assert!(judge(&object).unwrap_err().message.contains(RULES[0].message), "{bad}");
    }
}

/// Addresses up to their path.
const ADDRESSES: &[(&str, bool)] = &[
    // Hosts as they are meant.
    ("https://huggingface.co", true),
    ("http://hub.company.example:8443", true),
    ("https://HUB.Example", true),
    ("https://hub", true),
    ("http://mirror.models.svc", true),
    ("http://mirror.models.svc.cluster.local:8080", true),
    ("http://my_mirror.example", true),
    ("https://localhost.example", true),
    ("https://mylocalhost", true),
    ("https://metadata.example", true),
    ("https://0x7f.example", true),
    ("http://10.0.0.1", true),
    ("http://10.0.0.1:8080", true),
    ("http://172.16.5.4", true),
    ("http://192.168.1.1", true),
    ("http://100.64.0.1", true),
    ("http://1.2.3.4", true),
    ("http://126.255.255.255", true),
    ("http://128.0.0.0", true),
    ("http://169.253.255.255", true),
    ("http://169.255.0.0", true),
    ("http://255.255.255.254", true),
    ("http://100.100.100.201", true),
    ("http://[fd12:3456::1]", true),
    ("http://[2001:db8::1]:8080", true),
    ("http://[2001:db8:1:2:3:4:5:6]", true),
    ("http://[fec0::1]", true),
    // Loopback.
    ("http://127.0.0.1", false),
    ("http://127.0.0.1:8080", false),
    ("http://127.255.255.255", false),
    ("http://localhost", false),
    ("http://localhost:8080", false),
    ("http://LOCALHOST", false),
    ("http://LocalHost:80", false),
    ("http://hub.localhost", false),
    ("http://HUB.LocalHost:80", false),
    ("http://localhost.localdomain", false),
    ("http://ip6-localhost", false),
    ("http://ip6-loopback:80", false),
    ("http://localhost.", false),
    ("http://[::1]", false),
    ("http://[::1]:8080", false),
    ("http://[0:0:0:0:0:0:0:1]", false),
    ("http://[0000::1]", false),
    ("http://[::ffff:127.0.0.1]", false),
    ("http://[::FFFF:7f00:1]", false),
    ("http://[0:0:0:0:0:ffff:127.0.0.1]", false),
    ("http://[0:0::ffff:7f00:1]", false),
    ("http://[::127.0.0.1]", false),
    // There are name servers that answer such names with the address in them.
    ("http://127.0.0.1.nip.example", false),
    ("http://169.254.169.254.nip.example", false),
    // Forms of it that programs understand.
    ("http://2130706433", false),
    ("http://017700000001", false),
    ("http://0x7f000001", false),
    ("http://0X7F.0.0.1", false),
    ("http://0x7f.1", false),
    ("http://127.1", false),
    ("http://127.0.1", false),
    ("http://0177.0.0.1", false),
    ("http://127.0.0.01", false),
    ("http://010.0.0.1", false),
    ("http://1.2.3", false),
    ("http://127.0.0.1.", false),
    ("http://hub.example.0x7f", false),
    // Nowhere in particular.
    ("http://0.0.0.0", false),
    ("http://0", false),
    ("http://0.1.2.3", false),
    ("http://[::]", false),
    ("http://[0::]", false),
    // Of the link, and where clouds keep their metadata.
    ("http://169.254.1.1", false),
    ("http://169.254.169.254", false),
    ("http://169.254.169.254:80", false),
    ("http://2852039166", false),
    ("http://0xa9fea9fe", false),
    ("http://100.100.100.200", false),
    ("http://168.63.129.16", false),
    ("http://192.0.0.192:80", false),
    ("http://[fe80::1]", false),
    ("http://[FE80::1]", false),
    ("http://[febf::1]", false),
    ("http://[fe80::1%25eth0]", false),
    ("http://[::ffff:169.254.169.254]", false),
    ("http://[fd00:ec2::254]", false),
    ("http://[fd00:0EC2::254]", false),
    ("http://[fd20:ce::254]", false),
    ("http://metadata", false),
    ("http://Metadata.Google.Internal", false),
    ("http://metadata.google.internal.", false),
    ("http://metadata.goog", false),
    ("http://instance-data.ec2.internal", false),
    // A user and a password, whoever the host is.
    ("http://user@hub.example", false),
    ("http://user:secret@hub.example", false),
    ("http://hub.example@127.0.0.1", false),
    ("http://hub.example:80@127.0.0.1", false),
    // Dots, ports and what else is wrong.
    ("http://hub.example.", false),
    ("http://.hub.example", false),
    ("http://hub..example", false),
    ("http://hub.example:1", true),
    ("http://hub.example:65535", true),
    ("http://hub.example:0", false),
    ("http://hub.example:65536", false),
    ("http://hub.example:99999", false),
    ("http://hub.example:080", false),
    ("http://hub.example:", false),
    ("http://hub.example:x", false),
    ("http://256.1.1.1", false),
    ("http://1.2.3.4.5", false),
    ("http://[1:2]", false),
    ("http://[1::2::3]", false),
    ("http://[1:2:3:4:5:6:7:8:9]", false),
    ("http://[12345::1]", false),
    ("http://[127.0.0.1]", false),
    ("http://[2001:db8::1", false),
    ("http://2001:db8::1", false),
    ("http://", false),
    ("http:///", false),
    ("http:hub.example", false),
    ("//hub.example", false),
    ("hub.example", false),
    ("HTTP://hub.example", false),
    ("ftp://hub.example", false),
    ("file://hub.example", false),
    ("https://hub.example?", false),
    ("https://hub.example#", false),
    ("https://hub.example\\", false),
    ("https://hub.example\n", false),
    ("https://hub example", false),
    ("https://hübsch.example", false),
    ("https://１２７.0.0.1", false),
    ("https://127。0。0。1", false),
    ("https://%31%32%37.0.0.1", false),
    ("https://$(id).example", false),
];

/// Paths of archives, at a good host.
const PATHS: &[(&str, bool)] = &[
    ("/m.tar.gz", true),
    ("/models/m.tgz", true),
    ("/a..b/m.tar.gz", true),
    ("/.a/m.tar.gz", true),
    ("/..a/m.tar.gz", true),
    ("/a%20b/m+1,2=3@4.tar.gz", true),
    ("/@127.0.0.1/m.tar.gz", true),
    ("/m.zip", false),
    ("/", false),
    ("", false),
    ("/../m.tar.gz", false),
    ("/a/../m.tar.gz", false),
    ("/a/./m.tar.gz", false),
    ("/a/%2e%2E/m.tar.gz", false),
    ("/a/.%2e/m.tar.gz", false),
    ("/a/%2e/m.tar.gz", false),
    ("/m.tar.gz?token=x", false),
    ("/m.tar.gz#part", false),
    ("/$(id).tar.gz", false),
    ("/a b.tar.gz", false),
    ("/a\\..\\m.tar.gz", false),
    ("/m.tar.gz\n", false),
];

#[tokio::test(flavor = "multi_thread")]
async fn addresses_are_judged_alike_by_the_api_server_and_by_validate() {
    let plane = ControlPlane::get().await;
    let namespace = plane.namespace("addresses").await;
    let api = raw(plane, &namespace);
    let endpoint = |address: String| spec(&json!({"source": {"huggingFace": {"endpoint": address}}}));
    let archive = |url: String| json!({"source": {"http": {"url": url, "sha256": SHA256}}});
    let mut table = Vec::new();
    for &(address, good) in ADDRESSES {
        table.push((endpoint(address.into()), good));
        // Else these are of another host, or of none.
        if !address.ends_with(['?', '#', '/']) {
            table.push((endpoint(format!("{address}/")), good));
            table.push((endpoint(format!("{address}/mirror/hf")), good));
        }
        table.push((archive(format!("{address}/m.tar.gz")), good));
    }
    for &(path, good) in PATHS {
        table.push((archive(format!("https://files.example{path}")), good));
    }
    for (path, good) in
        [("/a/..", false), ("/../a", false), ("/a/./b", false), ("/.", false), ("/..a/b.", true)]
    {
        table.push((endpoint(format!("https://hub.example{path}")), good));
    }
    let mut wrong = String::new();
    for (spec, good) in &table {
        let object = object("model", spec);
        let answer = try_out(&api, &object).await;
        let judged = judge(&object);
        if answer.is_ok() != *good || judged.is_ok() != *good {
            writeln!(wrong, "{spec}: expected {good}, the API server: {answer:?}, validate: {judged:?}")
                .unwrap();
        }
        let (Err(status), Err(refusal)) = (answer, judged) else { continue };
        // A pattern that is broken too comes first there.
        let rules = if status.message.contains("should match") { BTreeSet::new() } else { broken(&status) };
        if !rules.is_empty() && !rules.iter().any(|&rule| refusal.message.contains(RULES[rule].message)) {
            writeln!(wrong, "{spec}: {} and {refusal}", status.message).unwrap();
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
    // The patterns alone would admit these: it is the rule that refuses them.
    let status = try_out(&api, &object("model", &endpoint("http://127.0.0.1".into()))).await.unwrap_err();
    assert!(status.message.contains(HOST_MESSAGE), "{}", status.message);
}

/// What the least spec becomes.
fn defaults() -> Value {
    json!({
        "source": {"huggingFace": {"repo": "sentence-transformers/all-MiniLM-L6-v2", "revision": COMMIT}},
        "replicas": 1,
        "cache": {"size": "10Gi", "accessModes": ["ReadWriteOnce"]},
        "service": {"type": "ClusterIP", "port": 80},
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn the_minimal_example_gets_the_documented_defaults() {
    let plane = ControlPlane::get().await;
    let namespace = plane.namespace("defaults").await;
    let api = raw(plane, &namespace);
    let minimal: DynamicObject = read(&crds().join("examples/minimal.yaml"));
    api.create(&PostParams::default(), &minimal).await.unwrap();
    let stored = api.get(&minimal.name_any()).await.unwrap();
    assert_eq!(stored.data["spec"], defaults());
    assert_eq!(stored.data.get("status"), None);
    assert_eq!(stored.metadata.generation, Some(1));
    // Others appear with what they belong to.
    let more = json!({
        "source": {"huggingFace": {"repo": "org/name", "tokenSecretRef": {"name": "hub"}}},
        "autoscaling": {"maxReplicas": 3},
        "resources": {"requests": {"cpu": 1}},
        "gpu": {},
        "network": {"trustedCA": {"configMapRef": {"name": "ca"}}},
        "cache": {},
        "service": {},
        "inference": {},
    });
    let stored = try_out(&api, &object("more", &more)).await.unwrap();
    let spec = &stored.data["spec"];
    assert_eq!(spec["source"]["huggingFace"]["revision"], "main");
    assert_eq!(spec["source"]["huggingFace"]["tokenSecretRef"], json!({"name": "hub", "key": "token"}));
    // What is aimed at depends on what else is: the operator decides.
    assert_eq!(spec["autoscaling"], json!({"minReplicas": 1, "maxReplicas": 3}));
    assert_eq!(spec["gpu"], json!({"count": 1, "resourceName": "nvidia.com/gpu"}));
    assert_eq!(spec["network"]["trustedCA"]["configMapRef"], json!({"name": "ca", "key": "ca.crt"}));
    assert_eq!(spec["cache"], defaults()["cache"]);
    assert_eq!(spec["service"], defaults()["service"]);
    // The types have the same, also what the schema leaves to them.
    let value = serde_json::to_value(&stored).unwrap();
    let typed: EmbeddingModel = serde_json::from_value(value).unwrap();
    let written: EmbeddingModel =
        serde_json::from_value(serde_json::to_value(object("more", &more)).unwrap()).unwrap();
    assert_eq!(typed.spec, written.spec);
    // What the types write the API server takes as it is.
    assert_eq!(
        try_out(&api, &object("more", &serde_json::to_value(&typed.spec).unwrap())).await.unwrap().data["spec"]
            ["gpu"],
        spec["gpu"]
    );
}

/// The object with every field that need not be there as a null, as deep as it can go.
fn nulls(schema: &Value, into: &mut Value) {
    let required: Vec<&str> =
        schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    for (name, schema) in schema["properties"].as_object().into_iter().flatten() {
        match into.get_mut(name) {
            Some(value) => nulls(schema, value),
            None if !required.contains(&name.as_str()) => into[name] = Value::Null,
            None => {}
        }
    }
}

fn schema() -> Value {
    let definition = serde_json::to_value(crd::definition()).unwrap();
    definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn nulls_are_as_if_they_were_not_there() {
    let plane = ControlPlane::get().await;
    let namespace = plane.namespace("nulls").await;
    let api = raw(plane, &namespace);
    let minimal: DynamicObject = read(&crds().join("examples/minimal.yaml"));
    let schema = schema();
    let mut spec = minimal.data["spec"].clone();
    nulls(&schema["properties"]["spec"], &mut spec);
    assert!(spec["cache"].is_null() && spec["source"]["http"].is_null(), "{spec}");
    assert_eq!(try_out(&api, &object("nulls", &spec)).await.unwrap().data["spec"], defaults());
    // Inside of what is there.
    for part in ["cache", "service", "inference", "resources", "network", "podTemplate", "monitoring"] {
        spec[part] = json!({});
        nulls(&schema["properties"]["spec"]["properties"][part], &mut spec[part]);
    }
    let mut expected = defaults();
    for part in ["inference", "resources", "network", "podTemplate", "monitoring"] {
        expected[part] = json!({});
    }
    let stored = try_out(&api, &object("nulls", &spec)).await.unwrap();
    assert_eq!(stored.data["spec"], expected);
    judge(&stored).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_fields_are_refused_when_asked_for_and_else_dropped() {
    let plane = ControlPlane::get().await;
    let namespace = plane.namespace("unknown").await;
    let api = raw(plane, &namespace);
    let spec = json!({
        "source": {"huggingFace": {"repo": "org/name", "branch": "main"}},
        "replica": 2,
        "cache": {"sise": "1Gi"},
        "podTemplate": {
            "hostNetwork": true,
            "affinity": {"nodeAffinity": {"mandatory": true}},
            "volumes": [{"name": "extra", "emptyDir": {}, "hostPath": {"path": "/"}}],
        },
    });
    let uri = format!("{}?fieldValidation=Strict", api.resource_url());
    let body = serde_json::to_vec(&object("model", &spec)).unwrap();
    let request = http::Request::post(uri).header("content-type", "application/json").body(body).unwrap();
    let status = verdict(plane.client().request::<Value>(request).await).unwrap_err();
    for field in [
        "spec.replica",
        "spec.source.huggingFace.branch",
        "spec.cache.sise",
        "spec.podTemplate.hostNetwork",
        "spec.podTemplate.affinity.nodeAffinity.mandatory",
        "spec.podTemplate.volumes[0].hostPath",
    ] {
        let told = format!("unknown field \"{field}\"");
        assert!(status.message.contains(&told), "{field}: {}", status.message);
    }
    // Server-side apply refuses them without being asked, in other words.
    let apply = PatchParams::apply("test");
    let status =
        verdict(api.patch("model", &apply, &Patch::Apply(&object("model", &spec))).await).unwrap_err();
    assert!(status.message.contains(".spec.replica: field not declared in schema"), "{}", status.message);
    api.create(&PostParams::default(), &object("model", &spec)).await.unwrap();
    let stored = api.get("model").await.unwrap();
    let expected = json!({
        "source": {"huggingFace": {"repo": "org/name", "revision": "main"}},
        "replicas": 1,
        "cache": {"size": "10Gi", "accessModes": ["ReadWriteOnce"]},
        "service": {"type": "ClusterIP", "port": 80},
        "podTemplate": {
            "affinity": {"nodeAffinity": {}},
            "volumes": [{"name": "extra", "emptyDir": {}}],
        },
    });
    assert_eq!(stored.data["spec"], expected);

    // As a user meets it: told by name, where it is, and nothing is stored.
    let mistake = |field: &str| {
        format!(
            "apiVersion: embeddings.kagent.dev/v1alpha1\nkind: EmbeddingModel\nmetadata: {{name: mistaken}}\n\
             spec: {{source: {{huggingFace: {{repo: org/name}}}}, {field}}}\n"
        )
    };
    for (field, told) in [
        ("replica: 2", r#"unknown field "spec.replica""#),
        ("cache: {storageClas: fast}", r#"unknown field "spec.cache.storageClas""#),
        (
            "podTemplate: {volumes: [{name: v, emptydir: {}}]}",
            r#"unknown field "spec.podTemplate.volumes[0].emptydir""#,
        ),
    ] {
        let arguments = ["apply", "--namespace", &*namespace, "-f", "-"];
        let output = refusal(&plane.kubectl_with(&arguments, &mistake(field)).await);
        assert!(output.contains(told), "{output}");
    }
    assert!(api.get_opt("mistaken").await.unwrap().is_none());
}

/// Fields of Kubernetes' own types, which say what they say.
const FOREIGN: &[&str] = &[
    "spec.autoscaling.behavior",
    "spec.podTemplate.affinity",
    "spec.podTemplate.tolerations",
    "spec.podTemplate.topologySpreadConstraints",
    "spec.podTemplate.imagePullSecrets",
    "spec.podTemplate.env",
    "spec.podTemplate.volumeMounts",
    "spec.podTemplate.volumes.configMap",
    "spec.podTemplate.volumes.secret",
    "spec.podTemplate.volumes.emptyDir",
    "spec.podTemplate.volumes.persistentVolumeClaim",
    "spec.network.allowFrom.podSelector",
    "spec.network.allowFrom.namespaceSelector",
    "status.conditions",
];

/// The places of our own that have fields, with the fields and what is said of them.
fn documented(at: &str, schema: &Value, into: &mut Vec<(String, Vec<(String, String)>)>) {
    let schema = if schema["items"].is_object() { &schema["items"] } else { schema };
    let Some(properties) = schema["properties"].as_object() else { return };
    let described = |(name, schema): (&String, &Value)| {
        let description = schema["description"].as_str().unwrap_or_default();
        assert!(!description.is_empty(), "{at}.{name} has no description");
        (name.clone(), words(description))
    };
    into.push((at.to_owned(), properties.iter().map(described).collect()));
    for (name, schema) in properties {
        let at = format!("{at}.{name}");
        if !FOREIGN.contains(&at.as_str()) {
            documented(&at, schema, into);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn kubectl_explain_reads_like_documentation() {
    let plane = ControlPlane::get().await;
    let mut places = Vec::new();
    for part in ["spec", "status"] {
        documented(part, &schema()["properties"][part], &mut places);
    }
    let fields: usize = places.iter().map(|(_, fields)| fields.len()).sum();
    assert!(places.len() > 20 && fields > 80, "{} places, {fields} fields", places.len());
    // Each place of the schema that has fields is asked for.
    for (place, fields) in &places {
        let output = words(&out(&plane.kubectl(&["explain", &format!("em.{place}")]).await));
        for (name, description) in fields {
            assert!(output.contains(&format!(" {name} <")), "{place}.{name}: {output}");
            assert!(output.contains(description), "{place}.{name}: {description}\n{output}");
        }
    }
    let output = out(&plane.kubectl(&["explain", "em"]).await);
    assert!(
        output.contains("An EmbeddingModel is a text embedding model that is served in the cluster"),
        "{output}"
    );
    let output = out(&plane.kubectl(&["explain", "em.spec.cache", "--recursive"]).await);
    for field in ["accessModes", "ephemeral", "retain", "size", "storageClassName"] {
        assert!(output.contains(field), "{output}");
    }
    let output = out(&plane.kubectl(&["explain", "em.spec.cache.size"]).await);
    assert!(output.contains("room for two revisions"), "{output}");
    let output = refusal(&plane.kubectl(&["explain", "em.spec.cash"]).await);
    assert!(output.contains(r#"field "cash" does not exist"#), "{output}");
}

/// A status as the operator writes it.
fn status(ready: &str, reason: &str) -> Value {
    json!({"status": {
        "observedGeneration": 1,
        "replicas": 2,
        "readyReplicas": 1,
        "selector": "app.kubernetes.io/name=embedding-server",
        "endpoint": "http://minilm.default.svc",
        "model": {
            "source": "sentence-transformers/all-MiniLM-L6-v2",
            "resolvedRevision": COMMIT,
            "architecture": "bert",
            "dimensions": 384,
            "space": "es1-1aa414ab2542e390c88904105941454b",
        },
        "conditions": [{
            "type": "Ready",
            "status": ready,
            "reason": reason,
            "message": "As the test says.",
            "lastTransitionTime": "2026-01-01T00:00:00Z",
            "observedGeneration": 1,
        }],
    }})
}

#[tokio::test(flavor = "multi_thread")]
async fn kubectl_shows_scales_and_waits() {
    let plane = ControlPlane::get().await;
    let namespace = plane.namespace("kubectl").await;
    let api = raw(plane, &namespace);
    let run = async |arguments: &[&str]| out(&kubectl(plane, &namespace, arguments).await);
    let minimal = crds().join("examples/minimal.yaml");
    run(&["apply", "-f", minimal.to_str().unwrap()]).await;

    // Before the operator has seen it.
    let output = run(&["get", "em"]).await;
    let mut lines = output.lines().map(words);
    assert_eq!(lines.next().unwrap(), "NAME READY MODEL REPLICAS AVAILABLE ENDPOINT AGE");
    assert!(lines.next().unwrap().starts_with("minilm "), "{output}");
    let arguments = ["wait", "--for=condition=Ready", "em/minilm", "--timeout=1s"];
    assert!(refusal(&kubectl(plane, &namespace, &arguments).await).contains("timed out"));

    let patch = async |status: Value| {
        api.patch_status("minilm", &PatchParams::default(), &Patch::Merge(&status)).await.unwrap()
    };
    patch(status("False", "Fetching")).await;
    let arguments = ["wait", "--for=condition=Ready", "em/minilm", "--timeout=60s"];
    let (output, ()) = tokio::join!(run(&arguments), async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        patch(status("True", "Ready")).await;
    });
    assert_eq!(output.trim(), format!("{}/minilm condition met", DEFINITION.replace("models.", "model.")));

    let output = run(&["get", "em", "-o", "wide"]).await;
    let mut lines = output.lines().map(words);
    assert_eq!(
        lines.next().unwrap(),
        "NAME READY MODEL REPLICAS AVAILABLE ENDPOINT AGE REVISION DIMENSIONS SPACE REASON"
    );
    let line = lines.next().unwrap();
    let columns: Vec<&str> = line.split(' ').collect();
    assert_eq!(
        (&columns[..6], &columns[7..]),
        (
            &[
                "minilm",
                "True",
                "sentence-transformers/all-MiniLM-L6-v2",
                "2",
                "1",
                "http://minilm.default.svc"
            ][..],
            &[COMMIT, "384", "es1-1aa414ab2542e390c88904105941454b", "Ready"][..],
        )
    );
    assert_eq!(lines.next(), None);

    let ready = r#"jsonpath={.status.conditions[?(@.type=="Ready")].status} {.status.endpoint}"#;
    assert_eq!(run(&["get", "em", "minilm", "-o", ready]).await, "True http://minilm.default.svc");
    for name in ["em", "embeddingmodel", "embeddingmodels", DEFINITION, "kagent"] {
        let output = run(&["get", name, "-o", "name"]).await;
        assert!(output.trim().ends_with("/minilm"), "{name}: {output}");
    }
    let output = run(&["describe", "em", "minilm"]).await;
    assert!(output.contains("As the test says."), "{output}");

    // Only what scaling is about changes, also beside autoscaling; the status is not its business.
    let spec = async || api.get("minilm").await.unwrap().data["spec"].clone();
    let before = spec().await;
    let output = run(&["scale", "em/minilm", "--replicas=3"]).await;
    assert!(output.contains("scaled"), "{output}");
    let mut expected = before;
    expected["replicas"] = json!(3);
    assert_eq!(spec().await, expected);
    run(&["scale", "em/minilm", "--current-replicas=3", "--replicas=0"]).await;
    assert_eq!(spec().await["replicas"], 0);
    let output = refusal(&kubectl(plane, &namespace, &["scale", "em/minilm", "--replicas=1001"]).await);
    assert!(output.contains("spec.replicas"), "{output}");
    let autoscaling =
        json!({"spec": {"autoscaling": {"maxReplicas": 4}, "resources": {"requests": {"cpu": "1"}}}});
    run(&["patch", "em", "minilm", "--type=merge", "--patch", &autoscaling.to_string()]).await;
    run(&["scale", "em/minilm", "--replicas=2"]).await;
    assert_eq!(spec().await["replicas"], 2);
    let scale = api.get_scale("minilm").await.unwrap();
    assert_eq!(scale.spec.unwrap().replicas, Some(2));
    let scale = scale.status.unwrap();
    assert_eq!(
        (scale.replicas, scale.selector.as_deref()),
        (2, Some("app.kubernetes.io/name=embedding-server"))
    );

    // Spec and status are written apart.
    let stored = patch(json!({"spec": {"replicas": 7}, "status": {"replicas": 5}})).await;
    assert_eq!(
        (&stored.data["spec"]["replicas"], &stored.data["status"]["replicas"]),
        (&json!(2), &json!(5))
    );
    let both = json!({"spec": {"replicas": 7}, "status": {"replicas": 6}});
    let stored = api.patch("minilm", &PatchParams::default(), &Patch::Merge(&both)).await.unwrap();
    assert_eq!(
        (&stored.data["spec"]["replicas"], &stored.data["status"]["replicas"]),
        (&json!(7), &json!(5))
    );
    assert!(run(&["delete", "em", "minilm"]).await.contains("deleted"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_autoscaler_of_the_tokens_that_wait_is_written_once() {
    let plane = ControlPlane::get().await;
    let world = World::new(plane, "queued").await;
    let operator = world.operator(config());
    let autoscaling = json!({"minReplicas": 2, "maxReplicas": 8, "targetQueuedTokensPerReplica": 8000});
    create(&world.models, "m", json!({"source": hub(), "autoscaling": autoscaling})).await;
    wait_until_ready(&world.models, "m").await;
    let autoscaler = world.of(Kind::HorizontalPodAutoscaler).get("m").await.unwrap();
    let metric = json!({
        "type": "Pods",
        "pods": {
            "metric": {"name": "embedding_waiting_tokens"},
            // Written as 8000.
            "target": {"type": "AverageValue", "averageValue": "8k"},
        },
    });
    assert_eq!(autoscaler.data["spec"]["metrics"], json!([metric]));

    // Let what is under way end, then count.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let settled = Timestamp::now();
    change(&world.models, "m", json!({"metadata": {"annotations": {"example.com/x": "y"}}})).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let seen = plane.audit().user(USER).namespace(&world.namespace).since(settled);
    assert!(!seen.is_empty(), "the operator has looked");
    let writes = seen.filter(|entry| !["get", "list", "watch"].contains(&entry.verb.as_str()));
    assert!(writes.is_empty(), "{writes:#?}");
    operator.stop().await;
}

/// As KEDA does it, which makes such an autoscaler and sets zero and one itself.
#[tokio::test(flavor = "multi_thread")]
async fn an_autoscaler_of_somebody_else_can_scale_the_resource_itself() {
    let plane = ControlPlane::get().await;
    let world = World::new(plane, "scaled").await;
    let operator = world.operator(config());
    create(&world.models, "m", json!({"source": hub()})).await;
    wait_until_ready(&world.models, "m").await;
    let autoscaler: HorizontalPodAutoscaler = serde_json::from_value(json!({
        "metadata": {"name": "other"},
        "spec": {
            "minReplicas": 3,
            "maxReplicas": 5,
            "scaleTargetRef":
                {"apiVersion": "embeddings.kagent.dev/v1alpha1", "kind": "EmbeddingModel", "name": "m"},
            "metrics": [{
                "type": "External",
                "external": {
                    "metric": {"name": "s0-prometheus"},
                    "target": {"type": "AverageValue", "averageValue": "8k"},
                },
            }],
        },
    }))
    .unwrap();
    let autoscalers = world.api::<HorizontalPodAutoscaler>();
    autoscalers.create(&PostParams::default(), &autoscaler).await.unwrap();
    let ready = async |number: i32| {
        let is = |model: &EmbeddingModel| {
            let runs = model.status.as_ref().is_some_and(|status| status.ready_replicas == number);
            model.spec.replicas == number && runs && is_ready(model)
        };
        wait_for_object(&world.models, "m", &format!("{number} ready"), PATIENCE, is).await
    };
    ready(3).await;
    let told = async |reason: &str| {
        wait_for_object(&autoscalers, "other", reason, PATIENCE, |autoscaler| {
            let status = autoscaler.status.clone().unwrap_or_default();
            let conditions = status.conditions.iter().flatten();
            let scales = conditions.filter(|condition| condition.type_ == "ScalingActive");
            scales.filter_map(|condition| condition.reason.as_deref()).any(|said| said == reason)
        })
        .await
    };
    // It finds the pods, and gets as far as asking for the metric, which this cluster has not.
    let status = told("FailedGetExternalMetric").await.status.unwrap();
    assert_eq!(status.current_replicas, Some(3));

    // To zero it is left alone, and from there on it goes on.
    let scale = async |number: i32| {
        let arguments = ["scale", "em/m", &format!("--replicas={number}")];
        assert!(out(&kubectl(plane, &world.namespace, &arguments).await).contains("scaled"));
    };
    scale(0).await;
    wait_until(&world.models, "m", "Ready", "False", "ScaledToZero").await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let left_alone = world.models.get("m").await.unwrap();
    assert_eq!(left_alone.spec.replicas, 0, "several looks of the autoscaler later");
    scale(1).await;
    ready(3).await;

    // Beside one of the operator's it does nothing more.
    let autoscaling = json!({"maxReplicas": 5, "targetQueuedTokensPerReplica": 8000});
    change(&world.models, "m", json!({"spec": {"autoscaling": autoscaling}})).await;
    told("AmbiguousSelector").await;
    operator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_definition_can_be_applied_in_each_way_and_again() {
    // To itself: the others live with their definition.
    let nothing = tempfile::tempdir().unwrap();
    let plane = ControlPlane::start(nothing.path()).await;
    let definitions: Api<CustomResourceDefinition> = Api::all(plane.client());
    let path = crds().join("embeddingmodels.yaml");
    let file = path.to_str().unwrap();
    let state = async || {
        let stored = definitions.get(DEFINITION).await.unwrap();
        // Controllers of the API server write its status when they like.
        (stored.uid(), stored.metadata.generation, stored.metadata.annotations, json!(stored.spec))
    };
    let established = ["wait", "--for=condition=Established", "crd", DEFINITION, "--timeout=60s"];

    let output = out(&plane.kubectl(&["apply", "-f", file]).await);
    assert!(output.contains("created"), "{output}");
    out(&plane.kubectl(&established).await);
    let stored = definitions.get(DEFINITION).await.unwrap();
    let conditions = stored.status.clone().unwrap().conditions.unwrap_or_default();
    let bad: Vec<_> =
        conditions.iter().filter(|condition| condition.type_ == "NonStructuralSchema").collect();
    assert!(bad.is_empty(), "{bad:?}");
    let last = stored.annotations()["kubectl.kubernetes.io/last-applied-configuration"].len();
    let all: usize = stored.annotations().iter().map(|(key, value)| key.len() + value.len()).sum();
    // All annotations of an object may have 262144 bytes in all.
    assert!(all < 200_000, "{all} bytes of annotations");
    let size = std::fs::metadata(&path).unwrap().len();
    assert!(size < 300_000, "{size} bytes");
    writeln!(std::io::stdout(), "definition: {size} bytes of YAML, {last} as last-applied, of 262144")
        .unwrap();

    // Again, in the same way and in the other: nothing of the spec changes.
    let first = state().await;
    let output = out(&plane.kubectl(&["apply", "-f", file]).await);
    assert!(output.contains("unchanged"), "{output}");
    assert_eq!(state().await, first);
    let output = out(&plane.kubectl(&["apply", "--server-side", "-f", file]).await);
    assert!(output.contains("serverside-applied"), "{output}");
    let second = state().await;
    assert_eq!((&second.0, second.1), (&first.0, first.1), "the same definition, of the same generation");
    let output = plane.kubectl(&["diff", "--server-side", "-f", file]).await;
    assert_eq!(out(&output), "");

    // Server-side from the beginning.
    out(&plane.kubectl(&["delete", "-f", file]).await);
    let output = out(&plane.kubectl(&["apply", "--server-side", "-f", file]).await);
    assert!(output.contains("serverside-applied"), "{output}");
    out(&plane.kubectl(&established).await);
    let first = state().await;
    out(&plane.kubectl(&["apply", "--server-side", "-f", file]).await);
    assert_eq!(state().await, first);
    // The folder as the documentation says; it is not walked into the examples.
    let output = out(&plane.kubectl(&["apply", "--server-side", "-f", crds().to_str().unwrap()]).await);
    assert_eq!(output.lines().count(), 1, "{output}");
}
