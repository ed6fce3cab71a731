//! The operator runs under the rules that the chart gives it, uses all of them, and says
//! what it lacks where one is missing.
#![allow(missing_docs, reason = "tests say what they test by their names")]
#![allow(clippy::unwrap_used, reason = "a test that unwraps in vain fails, as it should")]

mod support;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ControllerRevision, Deployment};
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, Secret, Service, ServiceAccount};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, PolicyRule};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::runtime::conditions::is_crd_established;
use kube::runtime::wait::Condition as _;
use kube::{Api, ResourceExt as _};
use serde_json::json;
use support::cluster::{ControlPlane, Namespace};
use support::kubelet::{FakeNode, Play};
use support::operator::{
    COMMIT, Operator, PATIENCE, SUMMARY, change, condition, config, create, hub, is, is_ready, message,
    models, wait_until, wait_until_ready,
};
use support::volumes::Provisioner;
use support::wait::{wait_for, wait_for_object, wait_until_gone};

/// API group, resource (with its subresource), verb.
type Right = (String, String, String);

const ACCOUNT: &str = "embedding-operator";

fn rules() -> Vec<PolicyRule> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts/embedding-operator/rules.yaml");
    serde_yaml::from_str(&std::fs::read_to_string(path).expect("the rules")).expect("rules")
}

fn rights(rules: &[PolicyRule]) -> BTreeSet<Right> {
    let mut rights = BTreeSet::new();
    for rule in rules {
        for group in rule.api_groups.iter().flatten() {
            for resource in rule.resources.iter().flatten() {
                for verb in &rule.verbs {
                    assert!(
                        rights.insert((group.clone(), resource.clone(), verb.clone())),
                        "granted twice: {group} {resource} {verb}"
                    );
                }
            }
        }
    }
    rights
}

/// The rules without one right.
fn without(group: &str, resource: &str, verb: &str) -> Vec<PolicyRule> {
    let is =
        |right: &Right| (right.0.as_str(), right.1.as_str(), right.2.as_str()) == (group, resource, verb);
    let (removed, kept): (Vec<Right>, Vec<Right>) = rights(&rules()).into_iter().partition(is);
    assert_eq!(removed.len(), 1, "no such right: {group} {resource} {verb}");
    let rule = |(group, resource, verb): Right| PolicyRule {
        api_groups: Some(vec![group]),
        resources: Some(vec![resource]),
        verbs: vec![verb],
        ..PolicyRule::default()
    };
    kept.into_iter().map(rule).collect()
}

/// A service account with these rules everywhere, as the chart binds them.
async fn grant(plane: &ControlPlane, namespace: &Namespace, rules: &[PolicyRule]) {
    let name = format!("{ACCOUNT}-{namespace}");
    let accounts: Api<ServiceAccount> = Api::namespaced(plane.client(), namespace);
    let account = json!({"metadata": {"name": ACCOUNT}});
    accounts.create(&PostParams::default(), &serde_json::from_value(account).unwrap()).await.unwrap();
    let cluster_roles: Api<ClusterRole> = Api::all(plane.client());
    let role = json!({"metadata": {"name": name}, "rules": rules});
    cluster_roles.create(&PostParams::default(), &serde_json::from_value(role).unwrap()).await.unwrap();
    let bindings: Api<ClusterRoleBinding> = Api::all(plane.client());
    let binding = json!({
        "metadata": {"name": name},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name},
        "subjects": [{"kind": "ServiceAccount", "name": ACCOUNT, "namespace": namespace.to_string()}],
    });
    bindings.create(&PostParams::default(), &serde_json::from_value(binding).unwrap()).await.unwrap();
}

async fn start(plane: &ControlPlane, namespace: &Namespace, rules: &[PolicyRule]) -> Operator {
    grant(plane, namespace, rules).await;
    let client = plane.client_of_service_account(namespace, ACCOUNT).await;
    Operator::start_as(client, namespace, config())
}

fn user(namespace: &Namespace) -> String {
    format!("system:serviceaccount:{namespace}:{ACCOUNT}")
}

/// What was allowed and done. An apply that made its object needed the right to create it,
/// too.
fn used(plane: &ControlPlane, namespace: &Namespace) -> BTreeSet<Right> {
    let mut rights = BTreeSet::new();
    for entry in plane.audit().user(&user(namespace)).0 {
        let object = entry.object;
        if object.resource.is_empty() || entry.status.code >= 400 && entry.status.code != 404 {
            continue;
        }
        let resource = if object.subresource.is_empty() {
            object.resource
        } else {
            format!("{}/{}", object.resource, object.subresource)
        };
        let mut right = |verb: &str| {
            rights.insert((object.api_group.clone(), resource.clone(), verb.to_owned()));
        };
        if entry.verb == "patch" && entry.status.code == 201 {
            right("create");
        }
        right(&entry.verb);
    }
    rights
}

/// The least definition under which the kind exists. It is the real one's name and scope.
async fn define_service_monitors(plane: &ControlPlane) {
    let definitions: Api<CustomResourceDefinition> = Api::all(plane.client());
    let name = "servicemonitors.monitoring.coreos.com";
    let definition = json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": name},
        "spec": {
            "group": "monitoring.coreos.com",
            "scope": "Namespaced",
            "names": {"kind": "ServiceMonitor", "plural": "servicemonitors", "singular": "servicemonitor"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {
                "type": "object",
                "properties": {"spec": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}},
            }}}],
        },
    });
    definitions.patch(name, &PatchParams::apply("test"), &Patch::Apply(&definition)).await.unwrap();
    wait_for_object(&definitions, name, "established", PATIENCE, |definition| {
        is_crd_established().matches_object(Some(definition))
    })
    .await;
    wait_for("the kind to be discovered", PATIENCE, async || {
        plane.client().list_api_group_resources("monitoring.coreos.com/v1").await.map(drop)
    })
    .await;
}

/// A hub that refuses the model `gated` for as long as a Job tries it: three times.
fn gated() -> impl Fn(&Pod) -> Option<Play> {
    let refused = AtomicUsize::new(0);
    move |pod| {
        if pod.labels().get("embeddings.kagent.dev/model").is_some_and(|model| model == "slow") {
            return Some(Play::ready());
        }
        let is = |name: &str, value: &str| pod.labels().get(name).is_some_and(|label| label == value);
        let fetches =
            is("app.kubernetes.io/component", "fetch") && is("embeddings.kagent.dev/model", "gated");
        (fetches && refused.fetch_add(1, Ordering::Relaxed) < 3)
            .then(|| Play::fail(77, "error: no right to org/name"))
    }
}

async fn exists<K>(plane: &ControlPlane, namespace: &Namespace, name: &str)
where
    K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>,
    K: Clone + std::fmt::Debug + serde::de::DeserializeOwned + serde::Serialize,
{
    let api: Api<K> = Api::namespaced(plane.client(), namespace);
    wait_for_object(&api, name, &K::kind(&()), PATIENCE, |_| true).await;
}

async fn is_gone<K>(plane: &ControlPlane, namespace: &Namespace, name: &str)
where
    K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>,
    K: Clone + std::fmt::Debug + serde::de::DeserializeOwned + serde::Serialize,
{
    let api: Api<K> = Api::namespaced(plane.client(), namespace);
    wait_until_gone(&api, name, PATIENCE).await;
}

/// Every kind of child is made, changed and pruned.
async fn a_full_life(plane: &ControlPlane, namespace: &Namespace, node: &FakeNode) {
    let models = models(plane, namespace);
    let full = json!({
        "source": hub(),
        "replicas": 2,
        "cache": {"accessModes": ["ReadWriteMany"]},
        "network": {"allowFrom": [{"podSelector": {"matchLabels": {"app": "agents"}}}]},
        "monitoring": {"serviceMonitor": true},
    });
    create(&models, "full", full).await;
    create(&models, "gated", json!({"source": hub(), "cache": {"retain": true}})).await;
    wait_until_ready(&models, "full").await;
    exists::<PodDisruptionBudget>(plane, namespace, "full").await;
    exists::<NetworkPolicy>(plane, namespace, "full").await;
    let monitors = plane.kubectl(&["get", "servicemonitors", "full", "--namespace", namespace]).await;
    assert!(monitors.status.success(), "{monitors:?}");

    // How far a download is stands in its pod's log.
    node.logs("slow-fetch", "{\"bytes\":1,\"total_bytes\":2}\n");
    create(&models, "slow", json!({"source": hub()})).await;
    wait_for_object(&models, "slow", "half of it", PATIENCE, |model| {
        let cache = model.status.clone().unwrap_or_default().cache.unwrap_or_default();
        cache.bytes == Some(1)
    })
    .await;
    models.delete("slow", &DeleteParams::foreground()).await.unwrap();

    // Each kind is written to once more: somebody meddled with it.
    for kind in [
        "serviceaccount/full",
        "persistentvolumeclaim/full-cache",
        "service/full",
        "networkpolicy/full",
        "poddisruptionbudget/full",
        "servicemonitor/full",
    ] {
        let overwritten = ["label", kind, "embeddings.kagent.dev/model=full", "app.kubernetes.io/name=other"];
        let within = ["--overwrite", "--namespace", namespace];
        let meddled = plane.kubectl(&[&overwritten[..], &within[..]].concat()).await;
        assert!(meddled.status.success(), "{meddled:?}");
    }
    let scaled = json!({"spec": {
        "autoscaling": {"minReplicas": 2, "maxReplicas": 3},
        "resources": {"requests": {"cpu": "1"}},
    }});
    change(&models, "full", scaled).await;
    exists::<HorizontalPodAutoscaler>(plane, namespace, "full").await;
    wait_until_ready(&models, "full").await;

    let bare = json!({"spec": {
        "source": {"huggingFace": {"revision": COMMIT}},
        "autoscaling": null,
        "replicas": 1,
        "cache": {"ephemeral": true},
        "network": null,
        "monitoring": null,
        "podTemplate": {"serviceAccountName": "default"},
    }});
    change(&models, "full", bare).await;
    wait_until_ready(&models, "full").await;
    is_gone::<HorizontalPodAutoscaler>(plane, namespace, "full").await;
    is_gone::<PodDisruptionBudget>(plane, namespace, "full").await;
    is_gone::<NetworkPolicy>(plane, namespace, "full").await;
    is_gone::<ServiceAccount>(plane, namespace, "full").await;
    is_gone::<PersistentVolumeClaim>(plane, namespace, "full-cache").await;
    let records: Api<ControllerRevision> = Api::namespaced(plane.client(), namespace);
    wait_for("one record of the pods that run", PATIENCE, async || {
        let ours = ListParams::default()
            .labels("embeddings.kagent.dev/model=full,embeddings.kagent.dev/record=template");
        let found = records.list(&ours).await.map_err(|error| error.to_string())?;
        let names: Vec<_> = found.iter().map(kube::ResourceExt::name_any).collect();
        if names.len() == 1 { Ok(()) } else { Err(format!("{names:?}")) }
    })
    .await;

    // The refused download was told, and tried again; its volume outlives it.
    let model = wait_until_ready(&models, "gated").await;
    models.delete("gated", &DeleteParams::foreground()).await.unwrap();
    is_gone::<Deployment>(plane, namespace, "gated").await;
    exists::<PersistentVolumeClaim>(plane, namespace, "gated-cache").await;
    create(&models, "gated", json!({"source": hub(), "cache": {"retain": true}})).await;
    wait_for_object(&models, "gated", "ready again", PATIENCE, |again| {
        again.metadata.uid != model.metadata.uid && is_ready(again)
    })
    .await;
    exists::<Service>(plane, namespace, "gated").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rights_that_are_granted_are_those_that_are_used() {
    let plane = ControlPlane::get().await;
    define_service_monitors(plane).await;
    let namespace = plane.namespace("granted").await;
    let node = FakeNode::builder().job_message(SUMMARY).script(gated()).start(plane, &namespace).await;
    let _volumes = Provisioner::start(plane, &namespace).await;
    let operator = start(plane, &namespace, &rules()).await;
    a_full_life(plane, &namespace, &node).await;

    let granted = rights(&rules());
    wait_for("all rights to be used, and no others", PATIENCE, async || {
        let used = used(plane, &namespace);
        let unused: Vec<_> = granted.difference(&used).collect();
        let more: Vec<_> = used.difference(&granted).collect();
        if unused.is_empty() && more.is_empty() {
            Ok(())
        } else {
            Err(format!("granted and not used: {unused:?}; used and not granted: {more:?}"))
        }
    })
    .await;
    operator.stop().await;
    // What was refused is in no list of what was used.
    let refused = plane.audit().user(&user(&namespace)).filter(|entry| entry.status.code == 403);
    assert!(refused.is_empty(), "{refused:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_operator_has_no_right_to_secrets_nor_to_everything() {
    for (group, resource, verb) in rights(&rules()) {
        assert!(!resource.starts_with("secrets"), "{verb} {resource}");
        assert!(![&group, &resource, &verb].contains(&&"*".to_owned()), "{group} {resource} {verb}");
    }
    let plane = ControlPlane::get().await;
    let namespace = plane.namespace("secrets").await;
    grant(plane, &namespace, &rules()).await;
    let client = plane.client_of_service_account(&namespace, ACCOUNT).await;
    let secrets: Api<Secret> = Api::namespaced(client.clone(), &namespace);
    // The rights that it has count already.
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(client, &namespace);
    wait_for("its rights", PATIENCE, async || claims.list(&ListParams::default()).await.map(drop)).await;
    let refused = [
        secrets.list(&ListParams::default()).await.map(drop).unwrap_err(),
        secrets.get("token").await.map(drop).unwrap_err(),
        secrets.delete("token", &DeleteParams::default()).await.map(drop).unwrap_err(),
    ];
    for error in refused {
        assert!(matches!(&error, kube::Error::Api(status) if status.code == 403), "{error}");
    }
}

/// The operator without one right ends in a condition that names what it may not do, and
/// goes on when it may.
async fn lacks(group: &str, resource: &str, verb: &str, says: &str) {
    let plane = ControlPlane::get().await;
    let namespace = plane.namespace("lacks").await;
    let _node = FakeNode::builder().job_message(SUMMARY).start(plane, &namespace).await;
    let _volumes = Provisioner::start(plane, &namespace).await;
    let operator = start(plane, &namespace, &without(group, resource, verb)).await;
    let models = models(plane, &namespace);
    create(&models, "minilm", json!({"source": hub()})).await;

    let model = wait_until(&models, "minilm", "Degraded", "True", "ApplyFailed").await;
    assert!(is(&model, "Ready", "False", "ApplyFailed"), "{:?}", condition(&model, "Ready"));
    let told = message(&model, "Ready");
    for part in ["forbidden", says, &format!("cannot {verb} resource \"{resource}\"")] {
        assert!(told.contains(part), "{part} is not in: {told}");
    }

    let cluster_roles: Api<ClusterRole> = Api::all(plane.client());
    let all = json!({"rules": rules()});
    let name = format!("{ACCOUNT}-{namespace}");
    cluster_roles.patch(&name, &PatchParams::default(), &Patch::Merge(&all)).await.unwrap();
    wait_until_ready(&models, "minilm").await;
    operator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_right_to_make_deployments_it_says_so() {
    lacks("apps", "deployments", "create", "Deployment minilm").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_right_to_see_pods_it_says_so() {
    lacks("", "pods", "list", "reading the model's pods").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_right_to_remove_what_is_done_it_says_so() {
    lacks("batch", "jobs", "delete", "Job minilm-fetch-").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_right_to_write_the_status_nothing_is_told_and_reconciling_fails() {
    let plane = ControlPlane::get().await;
    let namespace = plane.namespace("silent").await;
    let began = Timestamp::now();
    let rules = without("embeddings.kagent.dev", "embeddingmodels/status", "patch");
    let operator = start(plane, &namespace, &rules).await;
    let models = models(plane, &namespace);
    create(&models, "minilm", json!({"source": hub()})).await;
    wait_for("a refused status", PATIENCE, async || {
        let refused = plane.audit().since(began).user(&user(&namespace)).of("patch", "embeddingmodels");
        let refused =
            refused.filter(|entry| entry.status.code == 403 && entry.object.subresource == "status");
        if refused.is_empty() { Err("none") } else { Ok(()) }
    })
    .await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(models.get("minilm").await.unwrap().status.is_none());
    operator.stop().await;
}
