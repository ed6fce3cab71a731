//! Releases in a real control plane: installed, used, upgraded, uninstalled.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{Api, ResourceExt as _};
use serde_json::{Value, json};
use tempfile::NamedTempFile;

use super::helm::{Helm, chart, root};
use super::support::cluster::{ControlPlane, Namespace};
use super::support::kubelet::FakeNode;
use super::support::operator::{PATIENCE, SUMMARY, change, is, models, wait_until_ready};
use super::support::volumes::Provisioner;
use super::support::wait::{wait_for_object, wait_until_gone};
use super::{MODELS, OPERATOR};

const DEFINITION: &str = "embeddingmodels.embeddings.kagent.dev";

/// The program as a pod of the Deployment runs it, under the release's account; killed when
/// dropped. What it logs is shown where a test fails.
struct Program {
    child: Child,
    log: NamedTempFile,
}

impl Program {
    fn start(deployment: &Deployment, kubeconfig: &Path) -> Self {
        let pod = deployment.spec.as_ref().unwrap().template.spec.as_ref().unwrap();
        let arguments = pod.containers[0].args.clone().unwrap_or_default();
        // No fixed port: other tests run on this machine.
        let arguments = arguments.iter().map(|argument| {
            if argument.starts_with("--admin-address=") { "--admin-address=127.0.0.1:0" } else { argument }
        });
        let log = NamedTempFile::new().unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_embedding-operator"))
            .args(arguments)
            .env_clear()
            .env("KUBECONFIG", kubeconfig)
            .env("POD_NAME", "first")
            .env("POD_NAMESPACE", deployment.namespace().unwrap())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log.reopen().unwrap())
            .spawn()
            .unwrap();
        Self { child, log }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.log.path()).unwrap_or_default();
            eprintln!("--- the log of the program:\n{log}");
        }
    }
}

/// Helm for one cluster.
struct Releases<'a> {
    helm: &'static Helm,
    plane: &'a ControlPlane,
}

impl Releases<'_> {
    /// A command about the release `name`; a real cluster's nodes would go on meanwhile.
    async fn says(
        &self,
        arguments: &[&str],
        namespace: &Namespace,
        values: &Value,
    ) -> Result<String, String> {
        let helm = self.helm;
        let kubeconfig: PathBuf = self.plane.kubeconfig_file().to_owned();
        let mut arguments: Vec<String> = arguments.iter().map(|&argument| argument.to_owned()).collect();
        arguments.extend(["--namespace".to_owned(), namespace.to_string()]);
        let values = values.to_string();
        let run = move || {
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            helm.says(&arguments, Some(&kubeconfig), &values)
        };
        tokio::task::spawn_blocking(run).await.unwrap()
    }

    async fn upgrade(
        &self,
        name: &str,
        of: &str,
        namespace: &Namespace,
        values: &Value,
    ) -> Result<String, String> {
        self.upgrade_with(name, of, namespace, values, &[]).await
    }

    async fn upgrade_with(
        &self,
        name: &str,
        of: &str,
        namespace: &Namespace,
        values: &Value,
        more: &[&str],
    ) -> Result<String, String> {
        let chart = chart(of);
        let arguments = ["upgrade", "--install", name, chart.to_str().unwrap(), "--values", "-", "--wait"];
        self.says(&[&arguments[..], &["--timeout", "60s"], more].concat(), namespace, values).await
    }

    async fn uninstall(&self, name: &str, namespace: &Namespace) -> String {
        self.says(&["uninstall", name, "--wait"], namespace, &json!({})).await.unwrap()
    }
}

/// From the first install to the last trace gone.
async fn a_life(plane: &ControlPlane, helm: &'static Helm, namespaced: bool) {
    let releases = Releases { helm, plane };
    let ops = plane.namespace("ops").await;
    let home = plane.namespace("models").await;
    let _nodes = [
        FakeNode::builder().start(plane, &ops).await,
        FakeNode::builder().job_message(SUMMARY).start(plane, &home).await,
    ];
    let _volumes = Provisioner::start(plane, &home).await;
    let definitions: Api<CustomResourceDefinition> = Api::all(plane.client());
    let mut values = json!({"watchNamespaces": if namespaced { vec![home.to_string()] } else { Vec::new() }});

    // A definition that was there before is taken over only by somebody who says so.
    let crds = root().join("crds");
    let applied = plane.kubectl(&["apply", "--filename", crds.to_str().unwrap()]).await;
    assert!(applied.status.success(), "{applied:?}");
    let error = releases.upgrade("embeddings", OPERATOR, &ops, &values).await.unwrap_err();
    assert!(error.contains(DEFINITION) && error.contains("cannot be imported"), "{error}");
    let notes = releases.upgrade_with("embeddings", OPERATOR, &ops, &values, &["--take-ownership"]).await;
    let notes = notes.unwrap();
    let name = "embeddings-embedding-operator";
    for command in [
        format!("kubectl rollout status --namespace {ops} deployment/{name}"),
        "kubectl apply --filename model.yaml".to_owned(),
        format!(
            "kubectl wait --namespace {} em/minilm --for=condition=Ready --timeout=15m",
            if namespaced { &*home } else { "default" }
        ),
    ] {
        assert!(notes.contains(&command), "{notes}");
    }
    let kept = definitions.get(DEFINITION).await.unwrap();

    // The operator works with the rights that it was given, and with no others.
    let deployments: Api<Deployment> = Api::namespaced(plane.client(), &ops);
    let deployment = deployments.get(name).await.unwrap();
    let kubeconfig = plane.kubeconfig_file_of_service_account(&ops, name).await;
    let program = Program::start(&deployment, &kubeconfig);
    let model = json!({"spec": {"source": {"huggingFace": {"repo": "org/name"}}}});
    let mut kept_model = model.clone();
    kept_model["annotations"] = json!({"helm.sh/resource-policy": "keep"});
    let both = json!({"models": {"minilm": model, "kept": kept_model}});
    releases.upgrade("models", MODELS, &home, &both).await.unwrap();
    let api = models(plane, &home);
    wait_until_ready(&api, "minilm").await;
    let mut scaled = both.clone();
    scaled["models"]["minilm"]["spec"]["replicas"] = json!(2);
    releases.upgrade("models", MODELS, &home, &scaled).await.unwrap();
    wait_for_object(&api, "minilm", "two replicas", PATIENCE, |model| {
        model.status.as_ref().is_some_and(|status| status.ready_replicas == 2)
    })
    .await;

    // What the schema cannot know, the API server refuses.
    scaled["models"]["minilm"]["spec"]["source"]["http"] =
        json!({"url": "https://a.test/a.tar.gz", "sha256": "0".repeat(64)});
    let error = releases.upgrade("models", MODELS, &home, &scaled).await.unwrap_err();
    assert!(error.contains("spec.source"), "{error}");

    // An upgrade of the operator restarts no model: its pods stay what they are, also when
    // there are more of them.
    let served: Api<Deployment> = Api::namespaced(plane.client(), &home);
    let template = async || served.get("minilm").await.unwrap().spec.unwrap().template;
    let before = template().await;
    drop(program);
    values["log"] = json!({"filter": "warn"});
    values["server"] = json!({"image": {"tag": "next"}});
    releases.upgrade("embeddings", OPERATOR, &ops, &values).await.unwrap();
    let upgraded = deployments.get(name).await.unwrap();
    assert!(upgraded.metadata.generation > deployment.metadata.generation);
    let program = Program::start(&upgraded, &kubeconfig);
    wait_for_object(&api, "minilm", "told that an update is there", PATIENCE, |model| {
        is(model, "UpdateAvailable", "True", "NewPodTemplate")
    })
    .await;
    change(&api, "minilm", json!({"spec": {"replicas": 3}})).await;
    wait_for_object(&api, "minilm", "three replicas", PATIENCE, |model| {
        model.status.as_ref().is_some_and(|status| status.ready_replicas == 3)
    })
    .await;
    assert_eq!(template().await, before);

    // Without the operator models serve on, and are still there.
    drop(program);
    releases.uninstall("embeddings", &ops).await;
    wait_until_gone(&deployments, name, PATIENCE).await;
    assert_eq!(definitions.get(DEFINITION).await.unwrap().uid(), kept.uid());
    assert!(api.get_opt("minilm").await.unwrap().is_some());
    releases.uninstall("models", &home).await;
    wait_until_gone(&api, "minilm", PATIENCE).await;
    assert!(api.get_opt("kept").await.unwrap().is_some());

    // The definition that stayed is taken up again, also from a release that has it no more,
    // and goes when it may.
    releases.upgrade("embeddings", OPERATOR, &ops, &values).await.unwrap();
    values["crds"] = json!({"enabled": false});
    releases.upgrade("embeddings", OPERATOR, &ops, &values).await.unwrap();
    assert_eq!(definitions.get(DEFINITION).await.unwrap().uid(), kept.uid());
    values["crds"] = json!({"keep": false});
    releases.upgrade("embeddings", OPERATOR, &ops, &values).await.unwrap();
    assert_eq!(definitions.get(DEFINITION).await.unwrap().uid(), kept.uid());
    releases.uninstall("embeddings", &ops).await;
    wait_until_gone(&definitions, DEFINITION, PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn charts_are_installed_used_upgraded_and_uninstalled() {
    // To itself: the others live with the definition.
    let nothing = tempfile::tempdir().unwrap();
    let plane = ControlPlane::start(nothing.path()).await;
    // Each Helm, and each scope.
    for (helm, namespaced) in Helm::all().iter().cycle().zip([false, true]) {
        a_life(&plane, helm, namespaced).await;
    }
}
