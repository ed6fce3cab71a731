//! Values in each combination of two: what is so for all of them, and that a real API server
//! and kubeconform take what is made of them.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use embedding_operator::config::LogFormat;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{ApiResource, DynamicObject, GroupVersionKind, Patch, PatchParams, PostParams};
use kube::discovery::{ApiCapabilities, Scope, pinned_kind};
use kube::runtime::conditions::is_crd_established;
use kube::runtime::wait::Condition as _;
use kube::{Api, Client};
use serde_json::{Value, json};

use super::conform::Schemas;
use super::render::{Rendered, all, container, of, one, rendered, settings, yaml};
use super::support::cluster::ControlPlane;
use super::support::operator::PATIENCE;
use super::support::wait::{wait_for, wait_for_object};
use super::{MODELS, OPERATOR, example_models, pairs, read};

const FACTORS: &str = include_str!("factors.yaml");
const FACTORS_OF_MODELS: &str = include_str!("factors-models.yaml");

/// The values of a case.
fn values_of(factors: &[Vec<Value>], case: &[usize]) -> Value {
    let mut values = serde_json::Map::new();
    for (levels, &level) in factors.iter().zip(case) {
        for (key, value) in levels[level].as_object().unwrap() {
            assert!(values.insert(key.clone(), value.clone()).is_none(), "two factors have {key}");
        }
    }
    Value::Object(values)
}

/// What is made of a chart's values in each case.
fn renders(name: &str, factors: &str) -> Vec<(Value, Rendered)> {
    let factors: Vec<Vec<Value>> = serde_json::from_value(yaml(factors)).unwrap();
    let levels: Vec<usize> = factors.iter().map(Vec::len).collect();
    let cases = pairs::cases(&levels);
    assert!(cases.len() < 40, "{} cases", cases.len());
    cases.iter().map(|case| with_values(name, values_of(&factors, case))).collect()
}

fn with_values(name: &str, values: Value) -> (Value, Rendered) {
    let rendered = rendered(name, &values);
    (values, rendered)
}

fn is_within(part: &Value, whole: &Value) -> bool {
    part.as_object().unwrap().iter().all(|(key, value)| &whole[key] == value)
}

/// What is so for all values.
pub(crate) fn check(values: &Value, objects: &[Value]) {
    let about = || format!("of {values}");
    assert_eq!(objects.iter().map(of).collect::<BTreeSet<_>>().len(), objects.len(), "{}", about());
    let cluster = ["CustomResourceDefinition", "ClusterRole", "ClusterRoleBinding"];
    for object in objects {
        let (kind, namespace, name) = of(object);
        assert_eq!(namespace.is_empty(), cluster.contains(&kind.as_str()), "{kind} {}", about());
        assert!(name.len() <= 63 || kind == "CustomResourceDefinition", "{name}");
        let labels = &object["metadata"]["labels"];
        assert_eq!(labels["app.kubernetes.io/instance"], "release", "{kind} {}", about());
        assert_eq!(labels["app.kubernetes.io/managed-by"], "Helm", "{kind} {}", about());
        if let Some(more) = values.get("commonAnnotations") {
            assert!(is_within(more, &object["metadata"]["annotations"]), "{kind} {}", about());
        }
    }

    let deployment = one(objects, "Deployment");
    let template = &deployment["spec"]["template"];
    let labels = &template["metadata"]["labels"];
    let selector = &deployment["spec"]["selector"]["matchLabels"];
    assert_eq!(selector.as_object().unwrap().len(), 2);
    assert!(is_within(selector, labels), "{}", about());
    assert!(labels.get("helm.sh/chart").is_none(), "a new chart would restart the pods");
    let pod = &template["spec"];
    assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
    assert_eq!(pod["securityContext"]["seccompProfile"], json!({"type": "RuntimeDefault"}));
    let own_user = values["podSecurityContext"].get("runAsUser").is_none();
    assert_eq!(pod["securityContext"].get("runAsUser").is_some(), own_user, "{}", about());
    let container = container(objects);
    assert_eq!(container["securityContext"]["readOnlyRootFilesystem"], true);
    assert_eq!(container["securityContext"]["allowPrivilegeEscalation"], false);
    assert_eq!(container["securityContext"]["capabilities"], json!({"drop": ["ALL"]}));
    assert_eq!(container.get("command"), None, "the image says what runs, and it has no shell");
    for (probe, path) in [("livenessProbe", "/healthz"), ("readinessProbe", "/readyz")] {
        assert_eq!(container[probe]["httpGet"], json!({"path": path, "port": "admin"}));
    }
    let replicas = deployment["spec"]["replicas"].as_i64().unwrap();
    let names = |list: &Value| -> BTreeSet<String> {
        let all = list.as_array().into_iter().flatten();
        all.map(|secret| secret["name"].as_str().unwrap().to_owned()).collect()
    };
    let mut wanted = names(&values["imagePullSecrets"]);
    if values.get("global").is_some() {
        wanted.extend(["one", "two"].map(str::to_owned));
    }
    assert_eq!(names(&pod["imagePullSecrets"]), wanted, "{}", about());
    for constraint in pod["topologySpreadConstraints"].as_array().into_iter().flatten() {
        assert!(constraint["labelSelector"]["matchLabels"].is_object(), "{constraint}");
    }

    // What selects the pods selects them.
    for (kind, pointer) in [
        ("Service", "/spec/selector"),
        ("PodDisruptionBudget", "/spec/selector/matchLabels"),
        ("NetworkPolicy", "/spec/podSelector/matchLabels"),
    ] {
        for object in all(objects, kind) {
            assert_eq!(object.pointer(pointer), Some(selector), "{kind} {}", about());
        }
    }
    for monitor in all(objects, "ServiceMonitor") {
        let service = one(objects, "Service");
        assert!(is_within(&monitor["spec"]["selector"]["matchLabels"], &service["metadata"]["labels"]));
        assert_eq!(monitor["spec"]["endpoints"][0]["port"], service["spec"]["ports"][0]["name"]);
    }
    let budgets = all(objects, "PodDisruptionBudget").len();
    let wanted = replicas > 1 && values["podDisruptionBudget"]["enabled"] != false;
    assert_eq!(budgets, usize::from(wanted), "{}", about());

    check_rights(values, objects);
    check_settings(values, objects);
    check_definition(values, objects);
}

/// Rights are those of the files, for the operator's account, where it looks after models.
fn check_rights(values: &Value, objects: &[Value]) {
    let rules = yaml(&read("charts/embedding-operator/rules.yaml"));
    let lease_rules = yaml(&read("charts/embedding-operator/lease-rules.yaml"));
    let pod = &one(objects, "Deployment")["spec"]["template"]["spec"];
    let account = pod["serviceAccountName"].as_str().unwrap();
    let accounts = all(objects, "ServiceAccount");
    assert_eq!(accounts.len(), usize::from(values["serviceAccount"]["create"] != false));
    for object in accounts {
        assert_eq!(object["metadata"]["name"], account);
        assert_eq!(object["automountServiceAccountToken"], false);
    }
    assert_eq!(pod["automountServiceAccountToken"], true);

    let mut granted: Vec<(String, &Value)> = Vec::new();
    for (bindings, roles) in [("ClusterRoleBinding", "ClusterRole"), ("RoleBinding", "Role")] {
        for binding in all(objects, bindings) {
            let (_, namespace, _) = of(binding);
            let subjects = json!([{"kind": "ServiceAccount", "name": account, "namespace": "ops"}]);
            assert_eq!(binding["subjects"], subjects);
            assert_eq!(binding["roleRef"]["kind"], roles);
            let role = all(objects, roles).into_iter().find(|role| {
                of(role).1 == namespace && role["metadata"]["name"] == binding["roleRef"]["name"]
            });
            granted.push((namespace, &role.unwrap_or_else(|| panic!("no role of {binding}"))["rules"]));
        }
    }
    let made = all(objects, "ClusterRole").len() + all(objects, "Role").len();
    assert_eq!(made, granted.len(), "a role that is not bound");
    let mut wanted: Vec<(String, &Value)> = Vec::new();
    if values["rbac"]["create"] != false {
        match values["watchNamespaces"].as_array() {
            Some(namespaces) => wanted
                .extend(namespaces.iter().map(|namespace| (namespace.as_str().unwrap().to_owned(), &rules))),
            None => wanted.push((String::new(), &rules)),
        }
        if values["leaderElection"]["enabled"] != false {
            wanted.push(("ops".to_owned(), &lease_rules));
        }
    }
    for list in [&mut granted, &mut wanted] {
        list.sort_by_key(|(namespace, rules)| (namespace.clone(), rules.to_string()));
    }
    assert_eq!(granted, wanted, "of {values}");
}

/// The program understands its arguments, and they say what the values say.
fn check_settings(values: &Value, objects: &[Value]) {
    let mut objects = objects.to_vec();
    let deployment = objects.iter_mut().find(|object| object["kind"] == "Deployment").unwrap();
    let arguments = deployment.pointer_mut("/spec/template/spec/containers/0/args").unwrap();
    if values.get("extraArgs").is_some() {
        assert_eq!(arguments.as_array_mut().unwrap().pop(), Some(json!("--new-flag=1")));
    }
    let settings = settings(&objects);
    assert_eq!(json!(settings.namespaces()), *values.get("watchNamespaces").unwrap_or(&json!([])));
    assert_eq!(json!(settings.leader_election), values["leaderElection"]["enabled"] != false);
    let name = of(one(&objects, "Deployment")).2;
    let lease = values["leaderElection"]["leaseName"].as_str().unwrap_or(&name);
    assert_eq!(settings.lease_name, lease);
    let port = container(&objects)["ports"][0]["containerPort"].as_u64().unwrap();
    assert_eq!(u64::from(settings.admin_address.port()), port);
    assert_eq!(settings.admin_address.is_ipv6(), values.get("admin").is_some());
    assert_eq!(settings.server_cuda_image.is_some(), values["server"].get("cudaImage").is_some());
    if values.get("hub").is_some() {
        assert_eq!(settings.hub_endpoint, "https://hub.test/mirror");
        assert_eq!(settings.allowed_endpoints, ["https://a.test", "http://b.test/c"]);
        assert_eq!((settings.fetch_retry, settings.concurrency), (86400, 256));
        assert_eq!((settings.log.as_str(), settings.log_format), ("info,kube=debug", LogFormat::Text));
    }
}

/// The definition is that of `crds/`, and stays when the chart goes unless it may go.
fn check_definition(values: &Value, objects: &[Value]) {
    let found = all(objects, "CustomResourceDefinition");
    assert_eq!(found.len(), usize::from(values["crds"]["enabled"] != false));
    let wanted = yaml(&read("crds/embeddingmodels.yaml"));
    for definition in found {
        assert_eq!(definition["spec"], wanted["spec"]);
        assert_eq!(definition["metadata"]["name"], wanted["metadata"]["name"]);
        let policy = definition["metadata"]["annotations"].get("helm.sh/resource-policy");
        assert_eq!(policy.is_some_and(|policy| policy == "keep"), values["crds"]["keep"] != false);
    }
}

/// Kinds by group, version and kind, as the API server has them.
struct Kinds(HashMap<GroupVersionKind, (ApiResource, ApiCapabilities)>);

impl Kinds {
    /// The API to which the object belongs.
    async fn api(&mut self, client: &Client, object: &DynamicObject) -> Api<DynamicObject> {
        let kind = GroupVersionKind::try_from(object.types.clone().unwrap()).unwrap();
        if !self.0.contains_key(&kind) {
            let found = pinned_kind(client, &kind).await;
            let found = found.unwrap_or_else(|error| panic!("the API server knows no {kind:?}: {error}"));
            self.0.insert(kind.clone(), found);
        }
        let (resource, capabilities) = &self.0[&kind];
        match (&capabilities.scope, &object.metadata.namespace) {
            (Scope::Cluster, _) => Api::all_with(client.clone(), resource),
            (Scope::Namespaced, Some(namespace)) => Api::namespaced_with(client.clone(), namespace, resource),
            (Scope::Namespaced, None) => panic!("no namespace: {object:?}"),
        }
    }
}

/// The API server takes each object as it is, without a field that it does not know; and a pod
/// of each Deployment where only pods without any privilege may run. Nothing is stored.
async fn dry_run(plane: &ControlPlane, restricted: &str, renders: &[(Value, Rendered)]) {
    let client = plane.client();
    // Many are the same in several cases.
    let mut distinct: BTreeMap<String, &Value> = BTreeMap::new();
    for (values, rendered) in renders {
        distinct.extend(rendered.objects.iter().map(|object| (object.to_string(), values)));
    }
    let mut kinds = Kinds(HashMap::new());
    let strict = PatchParams::apply("charts").dry_run().force().validation_strict();
    for (text, values) in &distinct {
        let object: DynamicObject = serde_json::from_str(text).unwrap();
        let api = kinds.api(&client, &object).await;
        let name = object.metadata.name.clone().unwrap();
        let answer = api.patch(&name, &strict, &Patch::Apply(&object)).await;
        answer.unwrap_or_else(|error| panic!("{error}\n{text}\nof {values}"));
        if object.types.as_ref().is_some_and(|types| types.kind == "Deployment") {
            let mut pod = object.data["spec"]["template"].clone();
            pod["metadata"]["name"] = json!("operator");
            // It has to be there, and is not: nothing is stored.
            pod["spec"]["serviceAccountName"] = json!("default");
            let pods: Api<Pod> = Api::namespaced(client.clone(), restricted);
            let dry = PostParams { dry_run: true, field_manager: None };
            let answer = pods.create(&dry, &serde_json::from_value(pod).unwrap()).await;
            answer.unwrap_or_else(|error| panic!("{error}\n{text}\nof {values}"));
        }
    }
}

/// The kinds of the Prometheus operator, with the fields of theirs that charts use. What is
/// not among them is refused, as by the real ones.
async fn define_monitoring(plane: &ControlPlane) {
    let duration = json!({
        "type": "string",
        "pattern": "^(0|(([0-9]+)y)?(([0-9]+)w)?(([0-9]+)d)?(([0-9]+)h)?(([0-9]+)m)?(([0-9]+)s)?(([0-9]+)ms)?)$",
    });
    let text = json!({"type": "string"});
    let texts = json!({"type": "object", "additionalProperties": text});
    let list = |items: Value| json!({"type": "array", "items": items});
    let relabelings = list(json!({"type": "object", "properties": {
        "action": {"type": "string", "enum": ["replace", "keep", "drop", "hashmod", "labelmap", "labeldrop", "labelkeep"]},
        "modulus": {"type": "integer"}, "regex": text, "replacement": text, "separator": text,
        "sourceLabels": list(text.clone()), "targetLabel": text,
    }}));
    let endpoint = json!({"type": "object", "properties": {
        "port": text, "path": text, "scheme": text, "interval": duration, "scrapeTimeout": duration,
        "honorLabels": {"type": "boolean"}, "relabelings": relabelings, "metricRelabelings": relabelings,
    }});
    let selector = json!({"type": "object", "properties": {
        "matchLabels": texts,
        "matchExpressions": list(json!({"type": "object", "required": ["key", "operator"], "properties": {
            "key": text, "operator": text, "values": list(text.clone()),
        }})),
    }});
    let monitor = json!({"type": "object", "required": ["endpoints", "selector"], "properties": {
        "selector": selector, "endpoints": list(endpoint), "jobLabel": text,
        "namespaceSelector": {"type": "object", "properties": {
            "any": {"type": "boolean"}, "matchNames": list(text.clone()),
        }},
    }});
    let rule = json!({"type": "object", "required": ["expr"], "properties": {
        "alert": text, "record": text, "for": duration, "keep_firing_for": duration,
        "expr": {"x-kubernetes-int-or-string": true, "anyOf": [{"type": "integer"}, {"type": "string"}]},
        "labels": texts, "annotations": texts,
    }});
    let rules = json!({"type": "object", "properties": {
        "groups": list(json!({"type": "object", "required": ["name"], "properties": {
            "name": {"type": "string", "minLength": 1}, "interval": duration, "rules": list(rule),
        }})),
    }});
    let definitions: Api<CustomResourceDefinition> = Api::all(plane.client());
    for (kind, spec) in [("ServiceMonitor", monitor), ("PrometheusRule", rules)] {
        let singular = kind.to_lowercase();
        let name = format!("{singular}s.monitoring.coreos.com");
        let definition = json!({
            "apiVersion": "apiextensions.k8s.io/v1",
            "kind": "CustomResourceDefinition",
            "metadata": {"name": name},
            "spec": {
                "group": "monitoring.coreos.com",
                "scope": "Namespaced",
                "names": {"kind": kind, "plural": format!("{singular}s"), "singular": singular},
                "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {
                    "type": "object", "required": ["spec"], "properties": {"spec": spec},
                }}}],
            },
        });
        definitions.patch(&name, &PatchParams::apply("test"), &Patch::Apply(&definition)).await.unwrap();
        wait_for_object(&definitions, &name, "established", PATIENCE, |definition| {
            is_crd_established().matches_object(Some(definition))
        })
        .await;
        wait_for("the kind to be discovered", PATIENCE, async || {
            let found = plane.client().list_api_group_resources("monitoring.coreos.com/v1").await;
            let found = found.map_err(|error| error.to_string())?;
            let is_there = found.resources.iter().any(|resource| resource.kind == kind);
            if is_there { Ok(()) } else { Err("not yet".to_owned()) }
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_the_values_the_api_server_takes_what_is_made_of_them() {
    let plane = ControlPlane::get().await;
    define_monitoring(plane).await;
    let restricted = [("pod-security.kubernetes.io/enforce", "restricted")];
    let restricted = plane.namespace_with("restricted", &restricted).await;
    for namespace in ["ops", "watched-a", "watched-b"] {
        plane.kubectl(&["create", "namespace", namespace]).await;
    }
    let mut all = renders(OPERATOR, FACTORS);
    for (values, rendered) in &all {
        check(values, &rendered.objects);
    }
    let mut of_models = renders(MODELS, FACTORS_OF_MODELS);
    let examples = yaml(&read("charts/embedding-models/examples/values.yaml"));
    of_models.extend([examples, example_models()].map(|values| with_values(MODELS, values)));
    for (values, rendered) in &of_models {
        let models = values["models"].as_object().into_iter().flat_map(serde_json::Map::values);
        let models = models.filter(|model| !model.is_null()).count();
        assert_eq!(rendered.objects.len(), models, "of {values}");
    }
    all.extend(of_models);

    dry_run(plane, &restricted, &all).await;
    Schemas::of(plane).await.assert_conform(&all);
}
