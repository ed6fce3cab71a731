//! The control plane that the other tests run on: that it is real, and that controllers work on
//! it through the nodes and volumes that are not.
#![allow(missing_docs, reason = "tests say what they test by their names")]

mod support;

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaim, Pod};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{DeleteParams, ListParams, LogParams, Patch, PatchParams, PostParams};
use kube::runtime::conditions::is_crd_established;
use kube::runtime::wait::Condition as _;
use kube::{Api, ResourceExt as _};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use support::cluster::ControlPlane;
use support::kubelet::{FakeNode, Play};
use support::volumes::Provisioner;
use support::wait::{wait_for, wait_for_object, wait_until_gone};

const PATIENCE: Duration = Duration::from_secs(30);

async fn create<K>(api: &Api<K>, object: Value) -> K
where
    K: Clone + std::fmt::Debug + DeserializeOwned + Serialize,
{
    let object: K = serde_json::from_value(object).expect("an object of this kind");
    api.create(&PostParams::default(), &object).await.expect("it can be created")
}

fn deployment(replicas: u32) -> Value {
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "server"},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": "server"}},
            "template": {
                "metadata": {"labels": {"app": "server"}},
                "spec": {
                    "terminationGracePeriodSeconds": 1,
                    "containers": [{"name": "server", "image": "example.test/server:1"}],
                },
            },
        },
    })
}

fn job(volumes: &Value) -> Value {
    json!({
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "work"},
        "spec": {"backoffLimit": 0, "template": {"spec": {
            "restartPolicy": "Never",
            "initContainers": [{"name": "fetch", "image": "example.test/fetch:1"}],
            "containers": [{"name": "work", "image": "example.test/work:1"}],
            "volumes": volumes,
        }}},
    })
}

async fn only_pod(pods: &Api<Pod>) -> Pod {
    let mut items = pods.list(&ListParams::default()).await.expect("a list").items;
    assert_eq!(items.len(), 1, "{:?}", items.iter().map(kube::ResourceExt::name_any).collect::<Vec<_>>());
    items.remove(0)
}

/// The first container's state of a kind in YAML's words, like `terminated`.
fn state(pod: &Pod, kind: &str) -> Value {
    let pod = serde_json::to_value(pod).expect("JSON");
    pod["status"]["containerStatuses"][0]["state"][kind].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_api_server_is_real_and_of_the_pinned_version() {
    let plane = ControlPlane::get().await;
    assert!(plane.version().starts_with("v1.37."), "{}", plane.version());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deployment_becomes_available_and_its_pods_end_with_it() {
    let plane = ControlPlane::get().await;
    let namespace = plane.namespace("deployment").await;
    let _node = FakeNode::builder().start(plane, &namespace).await;
    let deployments: Api<Deployment> = Api::namespaced(plane.client(), &namespace);
    create(&deployments, deployment(2)).await;

    let available = |deployment: &Deployment| {
        let status = deployment.status.as_ref();
        status.and_then(|status| status.available_replicas) == Some(2)
    };
    wait_for_object(&deployments, "server", "two available replicas", PATIENCE, available).await;
    let pods: Api<Pod> = Api::namespaced(plane.client(), &namespace);
    let pod = &pods.list(&ListParams::default()).await.unwrap().items[0];
    assert!(state(pod, "running").is_object());

    deployments.delete("server", &DeleteParams::foreground()).await.unwrap();
    wait_until_gone(&deployments, "server", PATIENCE).await;
    assert!(pods.list(&ListParams::default()).await.unwrap().items.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_completes_with_messages_once_its_volume_is_bound() {
    let plane = ControlPlane::get().await;
    let namespace = plane.namespace("job").await;
    let script = |_: &Pod| Some(Play::succeed("384 dimensions").after_init("fetched"));
    let _node = FakeNode::builder().script(script).start(plane, &namespace).await;
    let _provisioner = Provisioner::start(plane, &namespace).await;
    let jobs: Api<Job> = Api::namespaced(plane.client(), &namespace);
    create(&jobs, job(&json!([{"name": "models", "persistentVolumeClaim": {"claimName": "models"}}]))).await;
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(plane.client(), &namespace);
    let claim = json!({
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "models"},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
    });
    create(&claims, claim).await;

    let succeeded = |job: &Job| job.status.as_ref().and_then(|status| status.succeeded) == Some(1);
    wait_for_object(&jobs, "work", "one success", PATIENCE, succeeded).await;
    let bound = |claim: &PersistentVolumeClaim| {
        claim.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Bound")
    };
    wait_for_object(&claims, "models", "a bound claim", PATIENCE, bound).await;
    let pod = only_pod(&Api::namespaced(plane.client(), &namespace)).await;
    assert_eq!(state(&pod, "terminated")["message"], "384 dimensions");
    let pod = serde_json::to_value(&pod).unwrap();
    assert_eq!(pod["status"]["initContainerStatuses"][0]["state"]["terminated"]["message"], "fetched");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_whose_pod_is_killed_for_its_memory_fails() {
    let plane = ControlPlane::get().await;
    let namespace = plane.namespace("oom").await;
    let _node = FakeNode::builder().script(|_| Some(Play::OomKill)).start(plane, &namespace).await;
    let jobs: Api<Job> = Api::namespaced(plane.client(), &namespace);
    create(&jobs, job(&json!([]))).await;

    let failed = |job: &Job| {
        let conditions = job.status.as_ref().and_then(|status| status.conditions.as_ref());
        conditions.into_iter().flatten().any(|condition| condition.type_ == "Failed")
    };
    wait_for_object(&jobs, "work", "a failed Job", PATIENCE, failed).await;
    let pod = only_pod(&Api::namespaced(plane.client(), &namespace)).await;
    assert_eq!(state(&pod, "terminated")["reason"], "OOMKilled");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_fails_in_every_way_by_its_script_and_recovers() {
    let plane = ControlPlane::get().await;
    let namespace = plane.namespace("failing").await;
    let script =
        |_: &Pod| Some(Play::unschedulable("0/1 nodes are available: 1 Insufficient nvidia.com/gpu."));
    let node =
        FakeNode::builder().allocatable("nvidia.com/gpu", "1").script(script).start(plane, &namespace).await;
    let deployments: Api<Deployment> = Api::namespaced(plane.client(), &namespace);
    create(&deployments, deployment(1)).await;
    let pods: Api<Pod> = Api::namespaced(plane.client(), &namespace);
    let unschedulable = async || {
        let pods = pods.list(&ListParams::default()).await.unwrap().items;
        let pod = pods.into_iter().next().ok_or("no pod")?;
        let conditions = pod.status.clone().unwrap_or_default().conditions.unwrap_or_default();
        let is = conditions.iter().any(|condition| condition.reason.as_deref() == Some("Unschedulable"));
        if is { Ok(pod.name_any()) } else { Err("it has no such condition") }
    };
    let name = wait_for("an unschedulable pod", PATIENCE, unschedulable).await;

    let waits = |reason: &'static str| move |pod: &Pod| state(pod, "waiting")["reason"] == reason;
    for (play, reason) in [
        (Play::ImagePullBackOff, "ImagePullBackOff"),
        (Play::ConfigError("secret \"token\" not found".to_owned()), "CreateContainerConfigError"),
        (Play::CrashLoop { exit_code: 1 }, "CrashLoopBackOff"),
    ] {
        node.play(&name, play);
        wait_for_object(&pods, &name, reason, PATIENCE, waits(reason)).await;
    }
    let restarted = |pod: &Pod| {
        let pod = serde_json::to_value(pod).unwrap();
        let container = &pod["status"]["containerStatuses"][0];
        container["restartCount"].as_u64() >= Some(1) && container["lastState"]["terminated"]["exitCode"] == 1
    };
    wait_for_object(&pods, &name, "a restarted container", PATIENCE, restarted).await;

    node.play(&name, Play::NeverReady);
    let running = |pod: &Pod| state(pod, "running").is_object();
    wait_for_object(&pods, &name, "a running container", PATIENCE, running).await;
    let ready = |deployment: &Deployment| {
        deployment.status.as_ref().and_then(|status| status.ready_replicas) == Some(1)
    };
    assert!(!ready(&deployments.get("server").await.unwrap()));
    node.play(&name, Play::ready());
    wait_for_object(&deployments, "server", "a ready replica", PATIENCE, ready).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_logs_of_a_running_pod_are_what_its_node_was_told() {
    let plane = ControlPlane::get().await;
    let namespace = plane.namespace("logs").await;
    let node = FakeNode::builder().start(plane, &namespace).await;
    let deployments: Api<Deployment> = Api::namespaced(plane.client(), &namespace);
    create(&deployments, deployment(1)).await;
    let ready = |deployment: &Deployment| {
        deployment.status.as_ref().and_then(|status| status.ready_replicas) == Some(1)
    };
    wait_for_object(&deployments, "server", "a ready replica", PATIENCE, ready).await;
    let pods: Api<Pod> = Api::namespaced(plane.client(), &namespace);
    let name = only_pod(&pods).await.name_any();

    let all = LogParams { container: Some("server".to_owned()), ..LogParams::default() };
    let last = LogParams { tail_lines: Some(1), ..all.clone() };
    let unknown = pods.logs(&name, &last).await.unwrap_err();
    assert!(matches!(&unknown, kube::Error::Api(status) if status.code == 404), "{unknown}");
    node.logs("other-", "not this\n");
    node.logs("server-", "loading\n{\"progress\": 0.5}\n");
    assert_eq!(pods.logs(&name, &last).await.unwrap(), "{\"progress\": 0.5}\n");
    assert_eq!(pods.logs(&name, &all).await.unwrap(), "loading\n{\"progress\": 0.5}\n");
    node.logs("server-", "loading\nready");
    assert_eq!(pods.logs(&name, &last).await.unwrap(), "ready");
    node.logs(&name, "of this pod alone\n");
    assert_eq!(pods.logs(&name, &last).await.unwrap(), "of this pod alone\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_definition_can_be_applied_and_used() {
    let plane = ControlPlane::get().await;
    let definitions: Api<CustomResourceDefinition> = Api::all(plane.client());
    let definition = json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "things.example.test"},
        "spec": {
            "group": "example.test",
            "scope": "Namespaced",
            "names": {"kind": "Thing", "plural": "things", "singular": "thing"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {"type": "object"}}}],
        },
    });
    let how = PatchParams::apply("test");
    definitions.patch("things.example.test", &how, &Patch::Apply(&definition)).await.unwrap();
    let established =
        |definition: &CustomResourceDefinition| is_crd_established().matches_object(Some(definition));
    wait_for_object(&definitions, "things.example.test", "established", PATIENCE, established).await;
    let listed = plane.kubectl(&["get", "things.example.test", "--all-namespaces"]).await;
    assert!(listed.status.success(), "{listed:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_are_counted_by_user_and_agent() {
    let plane = ControlPlane::get().await;
    let namespace = plane.namespace("audit").await;
    let began = Timestamp::now();
    let mut config = plane.config_as("somebody", &["system:masters", "others"]);
    config.headers.push((http::header::USER_AGENT, http::HeaderValue::from_static("smoke/1")));
    let maps: Api<ConfigMap> = Api::namespaced(kube::Client::try_from(config).unwrap(), &namespace);
    for _ in 0..3 {
        maps.get_opt("none").await.unwrap();
    }

    wait_for("three requests in the audit log", PATIENCE, async || {
        let seen = plane.audit().since(began).user("somebody").user_agent("smoke/").of("get", "configmaps");
        if seen.len() == 3 { Ok(()) } else { Err(format!("{seen:?}")) }
    })
    .await;
    let entry = plane.audit().user("somebody").0.remove(0);
    assert_eq!((entry.status.code, entry.object.namespace.as_str()), (404, &*namespace));
    assert!(entry.user.groups.contains(&"others".to_owned()), "{:?}", entry.user);
}

#[tokio::test(flavor = "multi_thread")]
async fn kubectl_and_service_accounts_work_and_rbac_holds() {
    let plane = ControlPlane::get().await;
    let namespace = plane.namespace("access").await;
    let map =
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"key": "value"}});
    let applied =
        plane.kubectl_with(&["apply", "--namespace", &namespace, "--filename", "-"], &map.to_string()).await;
    assert!(applied.status.success(), "{applied:?}");
    assert_eq!(String::from_utf8_lossy(&applied.stdout), "configmap/a created\n");

    let client = plane.client_of_service_account(&namespace, "default").await;
    let maps: Api<ConfigMap> = Api::namespaced(client, &namespace);
    let refused = maps.get("a").await.unwrap_err();
    assert!(matches!(&refused, kube::Error::Api(status) if status.code == 403), "{refused}");
    let binding = ["create", "rolebinding", "view", "--clusterrole=view", "--namespace", &namespace];
    let account = format!("--serviceaccount={namespace}:default");
    let bound = plane.kubectl(&[&binding[..], &[&account]].concat()).await;
    assert!(bound.status.success(), "{bound:?}");
    wait_for_object(&maps, "a", "permission", PATIENCE, |_| true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_plane_survives_a_restart_of_its_api_server() {
    let plane = ControlPlane::start(std::path::Path::new("no definitions")).await;
    let namespace = plane.namespace("restart").await;
    let _node = FakeNode::builder().start(&plane, &namespace).await;
    let deployments: Api<Deployment> = Api::namespaced(plane.client(), &namespace);
    create(&deployments, deployment(1)).await;
    plane.restart_api_server().await;
    let ready = |deployment: &Deployment| {
        deployment.status.as_ref().and_then(|status| status.ready_replicas) == Some(1)
    };
    wait_for_object(&deployments, "server", "a ready replica", PATIENCE, ready).await;
}
