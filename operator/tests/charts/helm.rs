//! Runs Helm, in the versions that the charts are for.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::LazyLock;

use serde::Deserialize as _;
use serde_json::Value;

/// The oldest Kubernetes that the charts are for. Helm 3 takes the cluster to be older than
/// that when it asks none.
const KUBERNETES: &str = "1.33.0";

pub(crate) struct Helm {
    /// Its major version.
    pub(crate) version: u32,
    program: PathBuf,
}

static ALL: LazyLock<Vec<Helm>> = LazyLock::new(|| {
    let root = root();
    let mut all = vec![Helm { version: 4, program: root.join(".kube-tools/helm") }];
    assert!(all[0].program.exists(), "Helm 4 is missing: run `make kube`");
    // There is a package of Helm 3 for this machine only.
    if cfg!(all(target_arch = "x86_64", target_os = "linux")) {
        let program = root.join(".python/bin/helm");
        assert!(program.exists(), "Helm 3 is missing: remove .python and run `make python`");
        all.push(Helm { version: 3, program });
    }
    all
});

pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The folder of a chart.
pub(crate) fn chart(name: &str) -> PathBuf {
    root().join("charts").join(name)
}

impl Helm {
    pub(crate) fn all() -> &'static [Self] {
        &ALL
    }

    /// With nothing of the machine's settings, and `input` as its standard input.
    pub(crate) fn run(&self, arguments: &[&str], kubeconfig: Option<&Path>, input: &str) -> Output {
        let home = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("helm-{}", self.version));
        let mut command = Command::new(&self.program);
        command
            .args(arguments)
            .env_clear()
            .env("HOME", home)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        if let Some(kubeconfig) = kubeconfig {
            command.env("KUBECONFIG", kubeconfig);
        }
        let mut child = command.spawn().expect("Helm starts");
        // It fails where Helm ends without reading it all; then the output says why.
        let _ = child.stdin.take().expect("a pipe").write_all(input.as_bytes());
        child.wait_with_output().expect("Helm ends")
    }

    /// What the command says, or why it failed.
    pub(crate) fn says(
        &self,
        arguments: &[&str],
        kubeconfig: Option<&Path>,
        input: &str,
    ) -> Result<String, String> {
        let output = self.run(arguments, kubeconfig, input);
        let (out, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        if output.status.success() { Ok(out.into_owned()) } else { Err(format!("{out}{error}")) }
    }

    /// The objects of the release `release` of a chart in the namespace `namespace`.
    pub(crate) fn template(&self, name: &str, namespace: &str, values: &Value) -> Result<Vec<Value>, String> {
        Ok(documents(&self.manifest(name, namespace, values)?))
    }

    /// The same as Helm writes it.
    pub(crate) fn manifest(&self, name: &str, namespace: &str, values: &Value) -> Result<String, String> {
        let chart = chart(name);
        let arguments = ["template", "release", chart.to_str().expect("UTF-8")];
        let how = ["--namespace", namespace, "--kube-version", KUBERNETES, "--values", "-"];
        self.says(&[&arguments[..], &how[..]].concat(), None, &values.to_string())
    }

    pub(crate) fn lint(&self, name: &str, values: &str) -> Result<String, String> {
        let chart = chart(name);
        let arguments = ["lint", "--strict", chart.to_str().expect("UTF-8")];
        let how = ["--kube-version", KUBERNETES, "--values", "-"];
        self.says(&[&arguments[..], &how[..]].concat(), None, values)
    }
}

/// The documents of a YAML stream that are not empty.
pub(crate) fn documents(text: &str) -> Vec<Value> {
    let documents = serde_yaml::Deserializer::from_str(text);
    let documents = documents.map(|document| Value::deserialize(document).expect("YAML"));
    documents.filter(|document| !document.is_null()).collect()
}
