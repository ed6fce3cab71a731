//! The cluster, by the programs that its users have: kubectl and helm; and its node, where
//! `scripts/cluster` started it.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sha2::Digest as _;

use crate::hub;

/// Where `scripts/images` puts the server's image.
const SERVER: &str = "docker.io/library/embedding-server";

pub(crate) struct Cluster {
    folder: PathBuf,
    /// Where pods reach servers of the test.
    pub(crate) host_ip: String,
    node: String,
}

/// A namespace of one test. When the test fails, what is in it is told.
pub(crate) struct Namespace<'a> {
    pub(crate) cluster: &'a Cluster,
    pub(crate) name: String,
}

/// A volume of a size that holds.
pub(crate) struct SmallVolume<'a> {
    cluster: &'a Cluster,
    path: String,
    pub(crate) class: String,
}

/// The top of the checkout.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn tool(name: &str) -> PathBuf {
    root().join(".kube-tools").join(name)
}

fn run(command: &mut Command) -> Output {
    let output = command.stdin(Stdio::null()).output();
    output.unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

fn out(command: &mut Command) -> String {
    let output = run(command);
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// Tries until it is so; panics with what was wrong last.
pub(crate) fn until(what: &str, patience: Duration, mut is: impl FnMut() -> Result<(), String>) {
    let begun = Instant::now();
    while let Err(why) = is() {
        assert!(begun.elapsed() < patience, "waited {patience:?} for this: {what}; last: {why}");
        std::thread::sleep(Duration::from_millis(500));
    }
}

impl Cluster {
    /// The one that `scripts/cluster run` started.
    pub(crate) fn from_environment() -> Self {
        let folder = std::env::var_os("CLUSTER_DIR").map(PathBuf::from);
        let folder = folder.expect("no cluster: run `make e2e`, which starts one (docs/e2e.md)");
        let text = std::fs::read_to_string(folder.join("env")).unwrap();
        let env: BTreeMap<&str, &str> = text.lines().filter_map(|line| line.split_once('=')).collect();
        Self { host_ip: env["HOST_IP"].to_owned(), node: env["NODE_NAME"].to_owned(), folder }
    }

    pub(crate) fn try_kubectl(&self, arguments: &[&str]) -> Output {
        let kubeconfig = self.folder.join("kubeconfig");
        run(Command::new(tool("kubectl")).arg("--kubeconfig").arg(kubeconfig).args(arguments))
    }

    pub(crate) fn kubectl(&self, arguments: &[&str]) -> String {
        let output = self.try_kubectl(arguments);
        let says = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "kubectl {}: {says}", arguments.join(" "));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// From the top of the checkout, as users run it.
    pub(crate) fn helm(&self, arguments: &[&str]) -> String {
        let kubeconfig = self.folder.join("kubeconfig");
        let mut helm = Command::new(tool("helm"));
        out(helm.current_dir(root()).arg("--kubeconfig").arg(kubeconfig).args(arguments))
    }

    /// What commands say that users type into a shell at the top of the checkout. What they
    /// leave running ends with them.
    pub(crate) fn shell(&self, script: &str) -> String {
        let path = std::env::var("PATH").unwrap();
        let mut shell = Command::new("bash");
        shell.args(["-euc", &format!("trap 'kill $(jobs -p)' EXIT\n{script}")]);
        shell.env("PATH", format!("{}:{path}", tool("").display()));
        out(shell.current_dir(root()).env("KUBECONFIG", self.folder.join("kubeconfig")))
    }

    fn script(&self, verb: &str) -> Command {
        let mut command = Command::new(root().join("scripts/cluster"));
        command.arg(verb).arg(&self.folder);
        command
    }

    /// What a program on the node says.
    pub(crate) fn on_node(&self, arguments: &[&str]) -> String {
        out(self.script("exec").arg("--").args(arguments))
    }

    fn ctr(&self, arguments: &[&str]) -> String {
        let ctr = tool("ctr");
        self.on_node(&[&[ctr.to_str().unwrap(), "-n", "k8s.io"], arguments].concat())
    }

    /// The server's image under another name.
    pub(crate) fn server_image_again(&self) -> String {
        let again = format!("{SERVER}:again");
        self.ctr(&["images", "tag", "--force", &format!("{SERVER}:{}", env!("CARGO_PKG_VERSION")), &again]);
        again
    }

    /// Gives the node an image with the files of a model, as people make them: one layer.
    pub(crate) fn load_model_image(&self, directory: &Path) -> String {
        let hash = |bytes: &[u8]| hub::hex(&sha2::Sha256::digest(bytes));
        let mut layer = tar::Builder::new(Vec::new());
        layer.append_dir_all(".", directory).unwrap();
        let layer = layer.into_inner().unwrap();
        let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
        let config = json!({
            "architecture": architecture,
            "os": "linux",
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", hash(&layer))]},
        })
        .to_string();
        let blob = |kind: &str, bytes: &[u8]| {
            json!({
                "mediaType": format!("application/vnd.oci.image.{kind}"),
                "digest": format!("sha256:{}", hash(bytes)),
                "size": bytes.len(),
            })
        };
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": blob("config.v1+json", config.as_bytes()),
            "layers": [blob("layer.v1.tar", &layer)],
        })
        .to_string();
        let mut entry = blob("manifest.v1+json", manifest.as_bytes());
        let tag = "docker.io/library/minilm-files:1";
        entry["annotations"] =
            json!({"io.containerd.image.name": tag, "org.opencontainers.image.ref.name": "1"});
        let index = json!({"schemaVersion": 2, "manifests": [entry]}).to_string();

        let mut archive = tempfile::NamedTempFile::new().unwrap();
        let mut builder = tar::Builder::new(&mut archive);
        let mut add = |path: &str, bytes: &[u8]| {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            builder.append_data(&mut header, path, bytes).unwrap();
        };
        add("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#);
        add("index.json", index.as_bytes());
        for bytes in [&layer[..], config.as_bytes(), manifest.as_bytes()] {
            add(&format!("blobs/sha256/{}", hash(bytes)), bytes);
        }
        builder.finish().unwrap();
        drop(builder);
        archive.flush().unwrap();
        out(self.script("load").arg(archive.path()));
        let reference = format!("docker.io/library/minilm-files@sha256:{}", hash(manifest.as_bytes()));
        self.ctr(&["images", "tag", "--force", tag, &reference]);
        reference
    }

    /// Kills the server's process in a pod.
    pub(crate) fn kill_container(&self, pod_uid: &str) {
        let filter = format!(
            "labels.\"io.kubernetes.pod.uid\"=={pod_uid},labels.\"io.kubernetes.container.name\"==server"
        );
        let container = self.ctr(&["containers", "ls", "-q", &filter]);
        assert!(!container.is_empty() && !container.contains('\n'), "{container:?}");
        self.ctr(&["tasks", "kill", "--signal", "SIGKILL", &container]);
    }

    /// A volume of so many megabytes for the claim of that name.
    pub(crate) fn small_volume(
        &self,
        namespace: &Namespace<'_>,
        claim: &str,
        megabytes: u32,
    ) -> SmallVolume<'_> {
        let class = format!("small-{}", namespace.name);
        let path = format!("/var/lib/{class}");
        self.on_node(&["mkdir", "-p", &path]);
        self.on_node(&["mount", "-t", "tmpfs", "-o", &format!("size={megabytes}m"), "tmpfs", &path]);
        namespace.apply(&json!({
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": class},
            "spec": {
                "accessModes": ["ReadWriteOnce"],
                "capacity": {"storage": format!("{megabytes}Mi")},
                "claimRef": {"namespace": namespace.name, "name": claim},
                "local": {"path": path},
                "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
                    {"key": "kubernetes.io/hostname", "operator": "In", "values": [self.node]},
                ]}]}},
                "persistentVolumeReclaimPolicy": "Retain",
                "storageClassName": class,
            },
        }));
        SmallVolume { cluster: self, path, class }
    }

    /// A new namespace.
    pub(crate) fn namespace(&self, name: &str) -> Namespace<'_> {
        let name = format!("e2e-{name}-{}", std::process::id());
        self.kubectl(&["create", "namespace", &name]);
        // Server pods are made for it.
        self.kubectl(&["label", "namespace", &name, "pod-security.kubernetes.io/enforce=restricted"]);
        Namespace { cluster: self, name }
    }
}

impl SmallVolume<'_> {
    pub(crate) fn grow(&self, megabytes: u32) {
        self.cluster.on_node(&["mount", "-o", &format!("remount,size={megabytes}m"), &self.path]);
    }
}

impl Namespace<'_> {
    pub(crate) fn kubectl(&self, arguments: &[&str]) -> String {
        self.cluster.kubectl(&[&["-n", &self.name], arguments].concat())
    }

    pub(crate) fn apply(&self, object: &Value) {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(object.to_string().as_bytes()).unwrap();
        self.kubectl(&["apply", "-f", file.path().to_str().unwrap()]);
    }

    pub(crate) fn patch(&self, model: &str, patch: &Value) {
        self.kubectl(&["patch", "em", model, "--type=merge", "--patch", &patch.to_string()]);
    }

    pub(crate) fn model(&self, name: &str) -> Value {
        serde_json::from_str(&self.kubectl(&["get", "em", name, "-o", "json"])).unwrap()
    }

    fn condition(&self, name: &str) -> Value {
        let model = self.model(name);
        let conditions = model["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let mut ready = conditions.into_iter().find(|it| it["type"] == "Ready").unwrap_or_default();
        if model["status"]["observedGeneration"] != model["metadata"]["generation"] {
            ready["status"] = json!("of an older generation");
        }
        ready
    }

    pub(crate) fn is_ready(&self, name: &str) -> bool {
        self.condition(name)["status"] == "True"
    }

    pub(crate) fn message(&self, name: &str) -> String {
        self.condition(name)["message"].as_str().unwrap_or_default().to_owned()
    }

    /// Of the spec as it is now.
    pub(crate) fn until_ready(&self, name: &str, patience: Duration) {
        let begun = Instant::now();
        until(&format!("{name} is ready"), patience, || {
            if self.is_ready(name) { Ok(()) } else { Err(self.condition(name).to_string()) }
        });
        println!("{name} is ready after {:.1} s", begun.elapsed().as_secs_f64());
    }

    pub(crate) fn until_not_ready(&self, name: &str, reason: &str, says: &str, patience: Duration) {
        until(&format!("{name} tells {reason}: {says}"), patience, || {
            let ready = self.condition(name);
            let told = ready["message"].as_str().is_some_and(|message| message.contains(says));
            if ready["reason"] == reason && told { Ok(()) } else { Err(ready.to_string()) }
        });
    }

    /// As many as an autoscaler wants.
    pub(crate) fn until_replicas(&self, name: &str, number: i64, patience: Duration) {
        let begun = Instant::now();
        until(&format!("{name} has {number} replicas"), patience, || {
            let status = &self.model(name)["status"];
            if status["readyReplicas"] == number { Ok(()) } else { Err(status.to_string()) }
        });
        println!("{name}: readyReplicas is {number} after {:.0} s", begun.elapsed().as_secs_f64());
    }

    /// What the model's autoscaler says of its metrics.
    pub(crate) fn until_scaling(&self, name: &str, active: bool, says: &str, patience: Duration) {
        let wanted = if active { "True" } else { "False" };
        until(&format!("scaling is active ({wanted}) for {name}: {says}"), patience, || {
            let autoscaler: Value =
                serde_json::from_str(&self.kubectl(&["get", "hpa", name, "-o", "json"])).unwrap();
            let conditions = autoscaler["status"]["conditions"].as_array().cloned().unwrap_or_default();
            let scaling = conditions.into_iter().find(|it| it["type"] == "ScalingActive").unwrap_or_default();
            let told = scaling["message"].as_str().is_some_and(|message| message.contains(says));
            if scaling["status"] == wanted && told { Ok(()) } else { Err(autoscaler["status"].to_string()) }
        });
    }

    /// The pods that serve the model and are to stay.
    pub(crate) fn pods(&self, model: &str) -> Vec<String> {
        self.of_pods(model, "name")
    }

    pub(crate) fn pod_uids(&self, model: &str) -> Vec<String> {
        self.of_pods(model, "uid")
    }

    fn of_pods(&self, model: &str, what: &str) -> Vec<String> {
        let selector = format!("-lembeddings.kagent.dev/model={model},app.kubernetes.io/component=server");
        let list: Value =
            serde_json::from_str(&self.kubectl(&["get", "pods", &selector, "-o", "json"])).unwrap();
        let pods = list["items"].as_array().unwrap().iter();
        let pods = pods.filter(|pod| pod["metadata"]["deletionTimestamp"].is_null());
        pods.map(|pod| pod["metadata"][what].as_str().unwrap().to_owned()).collect()
    }

    pub(crate) fn restarts(&self, pod: &str) -> i64 {
        let count = "jsonpath={.status.containerStatuses[0].restartCount}";
        self.kubectl(&["get", "pod", pod, "-o", count]).parse().unwrap()
    }

    /// Where the model's Service is.
    pub(crate) fn service(&self, name: &str) -> SocketAddr {
        let ip = self.kubectl(&["get", "service", name, "-o", "jsonpath={.spec.clusterIP}"]);
        format!("{ip}:80").parse().unwrap()
    }
}

impl Drop for Namespace<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for what in [
                &["get", "em,pods,jobs,pvc", "-o", "wide"][..],
                &["get", "em", "-o", "yaml"],
                &["get", "events"],
            ] {
                let output = self.cluster.try_kubectl(&[&["-n", &self.name], what].concat());
                println!("{}", String::from_utf8_lossy(&output.stdout));
            }
        }
        self.cluster.try_kubectl(&["delete", "namespace", &self.name, "--wait=false"]);
    }
}
