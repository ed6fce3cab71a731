//! The program itself: started, asked, stopped; under the rights that the chart gives it.
#![allow(missing_docs, reason = "tests say what they test by their names")]
#![allow(clippy::unwrap_used, reason = "a test that unwraps in vain fails, as it should")]

mod support;

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use clap::CommandFactory as _;
use embedding_operator::config::Cli;
use k8s_openapi::api::coordination::v1::Lease;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::{Value, json};
use support::cluster::{ControlPlane, Namespace};
use support::kubelet::FakeNode;
use support::operator::{PATIENCE, SUMMARY, change, models, wait_until_ready};
use support::volumes::Provisioner;
use support::wait::wait_for;

const ACCOUNT: &str = "embedding-operator";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The program with nothing of this process' environment.
fn program(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_embedding-operator"));
    command.args(arguments).env_clear().stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

/// The program while it runs; it is killed when dropped.
struct Program {
    child: Child,
    log: Arc<Mutex<Vec<String>>>,
}

impl Program {
    /// With JSON logs, and /healthz at a port of its own.
    fn start(kubeconfig: &Path, arguments: &[&str]) -> Self {
        let arguments = [&["--admin-address", "127.0.0.1:0", "--log-format", "json"], arguments].concat();
        let mut child = program(&arguments).env("KUBECONFIG", kubeconfig).spawn().unwrap();
        let log = Arc::new(Mutex::new(Vec::new()));
        let (lines, into) = (BufReader::new(child.stderr.take().unwrap()).lines(), Arc::clone(&log));
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                into.lock().unwrap_or_else(PoisonError::into_inner).push(line);
            }
        });
        Self { child, log }
    }

    fn log(&self) -> Vec<String> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The line of the log with this message.
    async fn says(&self, message: &str) -> Value {
        wait_for(&format!("the log to say {message:?}"), PATIENCE, async || {
            let log = self.log();
            let lines = log.iter().filter_map(|line| serde_json::from_str::<Value>(line).ok());
            lines.into_iter().find(|line| line["message"] == message).ok_or(log.join("\n"))
        })
        .await
    }

    async fn address(&self) -> SocketAddr {
        let address: SocketAddr = self.says("started").await["address"].as_str().unwrap().parse().unwrap();
        assert_ne!(address.port(), 0);
        address
    }

    /// Status and body.
    async fn get(&self, path: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(self.address().await).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: operator\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }

    async fn is_ready(&self) {
        wait_for("/readyz", PATIENCE, async || match self.get("/readyz").await {
            (200, _) => Ok(()),
            other => Err(format!("{other:?}")),
        })
        .await;
    }

    /// Waits until /readyz says why not.
    async fn waits(&self, why: &str) {
        wait_for("/readyz to say why not", PATIENCE, async || match self.get("/readyz").await {
            (503, body) if body.contains(why) => Ok(()),
            other => Err(format!("{other:?}")),
        })
        .await;
        assert_eq!(self.get("/healthz").await.0, 200, "it is healthy nevertheless");
    }

    /// A sample of /metrics, by its name and labels.
    async fn metric(&self, sample: &str) -> Option<f64> {
        let (status, text) = self.get("/metrics").await;
        assert_eq!(status, 200);
        text.lines().find_map(|line| line.strip_prefix(sample)?.trim().parse().ok())
    }

    async fn leads(&self, leads: bool, patience: Duration) {
        let sample = "leader_election_master_status{name=\"embedding-operator\"}";
        let wanted = if leads { 1.0 } else { 0.0 };
        wait_for("who leads", patience, async || {
            let value = self.metric(sample).await;
            if value == Some(wanted) { Ok(()) } else { Err(format!("{value:?}")) }
        })
        .await;
    }

    fn terminate(&self) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    }

    async fn ends(&mut self, patience: Duration) -> ExitStatus {
        wait_for("the program to end", patience, async || self.child.try_wait().unwrap().ok_or("it runs"))
            .await
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- the log of the program:\n{}", self.log().join("\n"));
        }
    }
}

/// What the chart gives the operator: its rules everywhere, and those of the lease in its
/// own namespace.
async fn grant(plane: &ControlPlane, namespace: &Namespace, rules: &str) {
    let name = format!("{ACCOUNT}-{namespace}");
    let own: &str = namespace;
    let rules: Value = serde_yaml::from_str(rules).unwrap();
    let lease_rules: Value =
        serde_yaml::from_str(&read("charts/embedding-operator/lease-rules.yaml")).unwrap();
    let api = "rbac.authorization.k8s.io";
    let version = format!("{api}/v1");
    let subjects = json!([{"kind": "ServiceAccount", "name": ACCOUNT, "namespace": own}]);
    let list = json!({"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": ACCOUNT, "namespace": own}},
        {"apiVersion": version, "kind": "ClusterRole", "metadata": {"name": name}, "rules": rules},
        {"apiVersion": version, "kind": "ClusterRoleBinding", "metadata": {"name": name},
         "roleRef": {"apiGroup": api, "kind": "ClusterRole", "name": name}, "subjects": subjects},
        {"apiVersion": version, "kind": "Role", "metadata": {"name": ACCOUNT, "namespace": own},
         "rules": lease_rules},
        {"apiVersion": version, "kind": "RoleBinding", "metadata": {"name": ACCOUNT, "namespace": own},
         "roleRef": {"apiGroup": api, "kind": "Role", "name": ACCOUNT}, "subjects": subjects},
    ]});
    let applied = plane.kubectl_with(&["apply", "--filename", "-"], &list.to_string()).await;
    assert!(applied.status.success(), "{applied:?}");
}

fn lease_rights_used(plane: &ControlPlane, namespace: &Namespace) -> BTreeSet<String> {
    let user = format!("system:serviceaccount:{namespace}:{ACCOUNT}");
    let asked = plane.audit().user(&user).filter(|entry| entry.object.resource == "leases");
    assert!(asked.0.iter().all(|entry| entry.object.namespace == **namespace));
    asked.0.into_iter().map(|entry| entry.verb).collect()
}

async fn held_by(plane: &ControlPlane, namespace: &Namespace) -> Option<String> {
    let leases: Api<Lease> = Api::namespaced(plane.client(), namespace);
    leases.get("embedding-operator").await.unwrap().spec.unwrap().holder_identity
}

#[tokio::test(flavor = "multi_thread")]
async fn it_leads_works_releases_and_another_takes_over() {
    let plane = ControlPlane::get().await;
    let namespace = plane.namespace("program").await;
    let _node = FakeNode::builder().job_message(SUMMARY).start(plane, &namespace).await;
    let _volumes = Provisioner::start(plane, &namespace).await;
    grant(plane, &namespace, &read("charts/embedding-operator/rules.yaml")).await;
    let kubeconfig = plane.kubeconfig_file_of_service_account(&namespace, ACCOUNT).await;
    let token = read(kubeconfig.to_str().unwrap());
    let token: Value = serde_json::from_str(&token).unwrap();
    let token = token["users"][0]["user"]["token"].as_str().unwrap().to_owned();

    let own: &str = &namespace;
    let arguments = ["--lease-namespace", own, "--log", "debug", "--identity"];
    let mut first = Program::start(&kubeconfig, &[&arguments[..], &["first"]].concat());
    first.leads(true, PATIENCE).await;
    assert_eq!(first.get("/healthz").await, (200, "ok".to_owned()));
    assert_eq!(first.get("/readyz").await, (200, "ok".to_owned()));
    assert_eq!(first.get("/nothing").await.0, 404);
    let mut second = Program::start(&kubeconfig, &[&arguments[..], &["second"]].concat());
    second.is_ready().await;
    second.leads(false, PATIENCE).await;

    let example = root().join("crds/examples/minimal.yaml");
    let applied =
        plane.kubectl(&["apply", "--namespace", own, "--filename", example.to_str().unwrap()]).await;
    assert!(applied.status.success(), "{applied:?}");
    let models = models(plane, &namespace);
    wait_until_ready(&models, "minilm").await;
    let table = plane.kubectl(&["get", "em", "--namespace", own, "--output", "wide"]).await;
    let table = String::from_utf8(table.stdout).unwrap();
    for part in ["READY", "True", "sentence-transformers/all-MiniLM-L6-v2", "http://minilm.", "384"] {
        assert!(table.contains(part), "{part} is not in\n{table}");
    }
    let (_, metrics) = first.get("/metrics").await;
    for name in [
        "controller_runtime_reconcile_total{controller=\"embeddingmodel\",result=\"success\"}",
        "controller_runtime_reconcile_errors_total{controller=\"embeddingmodel\",step=\"apply\"}",
        "controller_runtime_active_workers{controller=\"embeddingmodel\"}",
        "controller_runtime_max_concurrent_reconciles{controller=\"embeddingmodel\"} 8",
        "controller_runtime_reconcile_time_seconds_bucket{le=\"0.005\",controller=\"embeddingmodel\"}",
    ] {
        assert!(metrics.contains(name), "{name} is not in\n{metrics}");
    }
    let requeued =
        "controller_runtime_reconcile_total{controller=\"embeddingmodel\",result=\"requeue_after\"}";
    assert!(first.metric(requeued).await > Some(1.0));
    assert_eq!(second.metric(requeued).await, Some(0.0), "only the leader works");
    let ready =
        format!("embedding_operator_model_condition{{namespace=\"{own}\",name=\"minilm\",type=\"Ready\"}}");
    assert_eq!((first.metric(&ready).await, second.metric(&ready).await), (Some(1.0), None));

    assert_eq!(held_by(plane, &namespace).await.as_deref(), Some("first"));
    first.terminate();
    let asked = Instant::now();
    let ended = first.ends(Duration::from_secs(10)).await;
    assert_eq!(ended.code(), Some(0));
    assert!(asked.elapsed() < Duration::from_secs(5), "{:?}", asked.elapsed());
    first.says("released the lease").await;
    second.leads(true, Duration::from_secs(3)).await;
    change(&models, "minilm", json!({"spec": {"replicas": 2}})).await;
    wait_until_ready(&models, "minilm").await;
    assert!(second.metric(requeued).await > Some(0.0));

    // No metric outlives its model.
    models.delete("minilm", &DeleteParams::default()).await.unwrap();
    wait_for("the model forgotten", Duration::from_secs(5), async || match second.metric(&ready).await {
        None => Ok(()),
        value => Err(format!("{value:?}")),
    })
    .await;

    // Somebody else has it: this one must not work on, and says so to who starts it anew.
    let leases: Api<Lease> = Api::namespaced(plane.client(), &namespace);
    let stolen = json!({"spec": {"holderIdentity": "thief"}});
    leases.patch("embedding-operator", &PatchParams::default(), &Patch::Merge(&stolen)).await.unwrap();
    assert_eq!(second.ends(Duration::from_secs(10)).await.code(), Some(1));
    let log = second.log();
    let last = log.last().unwrap();
    assert_eq!(last, "error: lost the lease embedding-operator: ending, to be started anew");

    // Each line is JSON for machines, at the level of debug, too; the token is in none.
    for line in first.log().iter().chain(&log[..log.len() - 1]) {
        let line: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        assert!(line["timestamp"].is_string() && line["level"].is_string(), "{line}");
    }
    assert!(!first.log().iter().chain(&log).any(|line| line.contains(&token)), "a token in the log");

    let granted: Value = serde_yaml::from_str(&read("charts/embedding-operator/lease-rules.yaml")).unwrap();
    assert_eq!(granted.as_array().unwrap().len(), 1);
    assert_eq!(granted[0]["resources"], json!(["leases"]));
    let granted: BTreeSet<String> = serde_json::from_value(granted[0]["verbs"].clone()).unwrap();
    assert_eq!(lease_rights_used(plane, &namespace), granted);
}

#[tokio::test(flavor = "multi_thread")]
async fn it_ends_when_told_so_right_after_its_start_and_without_a_lease() {
    let plane = ControlPlane::get().await;
    let namespace = plane.namespace("alone").await;
    let kubeconfig = plane.kubeconfig_file();
    let own: &str = &namespace;
    let mut program = Program::start(kubeconfig, &["--leader-election", "false", "--namespaces", own]);
    program.is_ready().await;
    program.terminate();
    assert_eq!(program.ends(Duration::from_secs(5)).await.code(), Some(0));
    let leases: Api<Lease> = Api::namespaced(plane.client(), &namespace);
    assert!(leases.get_opt("embedding-operator").await.unwrap().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_right_to_see_models_it_waits_and_says_so() {
    let plane = ControlPlane::get().await;
    let namespace = plane.namespace("blind").await;
    grant(plane, &namespace, "[]").await;
    let kubeconfig = plane.kubeconfig_file_of_service_account(&namespace, ACCOUNT).await;
    let program = Program::start(&kubeconfig, &["--lease-namespace", &namespace]);
    program.waits("cannot list resource \"embeddingmodels\"").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_definition_it_waits_and_says_what_to_do() {
    let empty = tempfile::tempdir().unwrap();
    let plane = ControlPlane::start(empty.path()).await;
    let program = Program::start(plane.kubeconfig_file(), &[]);
    program.waits("kubectl apply -f crds/").await;
    let warning = program.says("waiting for the API server").await;
    assert!(warning["reason"].as_str().unwrap().contains("kubectl apply -f crds/"), "{warning}");
    let crds = root().join("crds");
    let applied = plane.kubectl(&["apply", "--filename", crds.to_str().unwrap()]).await;
    assert!(applied.status.success(), "{applied:?}");
    program.is_ready().await;
    program.leads(true, PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unreachable_cluster_is_told_and_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let kubeconfig = folder.path().join("kubeconfig");
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "gone", "cluster": {"server": "http://127.0.0.1:1"}}],
        "users": [{"name": "me", "user": {"token": "not-to-be-told"}}],
        "contexts": [{"name": "gone", "context": {"cluster": "gone", "user": "me"}}],
        "current-context": "gone",
    });
    std::fs::write(&kubeconfig, config.to_string()).unwrap();
    let mut program = Program::start(&kubeconfig, &["--log", "trace"]);
    program.waits("Connection refused").await;
    let warning = program.says("waiting for the API server").await;
    assert!(warning["reason"].as_str().unwrap().contains("Connection refused"), "{warning}");
    program.terminate();
    assert_eq!(program.ends(Duration::from_secs(5)).await.code(), Some(0));
    let log = program.log().join("\n");
    assert!(!log.contains("not-to-be-told"), "{log}");
}

fn run(arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    let mut command = program(arguments);
    command.envs(environment.iter().copied()).stdout(Stdio::piped());
    command.output().unwrap()
}

#[test]
fn what_is_wrong_is_told_on_one_line() {
    let table: [(&[&str], &[(&str, &str)], i32, &str); 11] = [
        (&["--concurrency", "0"], &[], 2, "--concurrency"),
        (&["--concurrency", "many"], &[], 2, "--concurrency"),
        (&[], &[("EMBEDDING_CONCURRENCY", "257")], 2, "--concurrency"),
        (&["--no-such-flag"], &[], 2, "--no-such-flag"),
        (&["--leader-election"], &[], 2, "--leader-election"),
        (&["--admin-address", "localhost"], &[], 2, "--admin-address"),
        (&["--hub-endpoint", "huggingface.co"], &[], 2, "--hub-endpoint"),
        (&["--allowed-endpoints", "https://a.example,file:///etc"], &[], 2, "--allowed-endpoints"),
        (&["--server-image", ""], &[], 2, "--server-image"),
        (&["--log", "no=such=level"], &[], 1, "--log"),
        (
            &[],
            &[
                ("KUBECONFIG", "/nonexistent/config"),
                ("EMBEDDING_ADMIN_ADDRESS", "127.0.0.1:0"),
                ("RUST_LOG", "off"),
            ],
            1,
            "kubeconfig",
        ),
    ];
    for (arguments, environment, code, part) in table {
        let output = run(arguments, environment);
        let told = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{arguments:?} {environment:?}: {told}");
        assert_eq!(told.lines().count(), 1, "{told}");
        assert!(told.starts_with("error: ") && told.contains(part), "{told}");
    }
}

#[test]
fn an_empty_variable_is_an_unset_one() {
    let cli = Cli::command();
    let variables: Vec<String> =
        cli.get_arguments().filter_map(|argument| Some(argument.get_env()?.to_str()?.to_owned())).collect();
    let mut environment: Vec<(&str, &str)> = variables.iter().map(|name| (name.as_str(), "")).collect();
    environment.push(("KUBECONFIG", "/nonexistent/config"));
    let output = run(&["--admin-address", "127.0.0.1:0"], &environment);
    let told = String::from_utf8(output.stderr).unwrap();
    // It came to look for a cluster: nothing was wrong with the rest.
    assert!(told.contains("error: cannot find a cluster"), "{told}");
}

#[test]
fn the_help_names_every_variable() {
    let output = run(&["--help"], &[]);
    assert_eq!(output.status.code(), Some(0));
    let help = String::from_utf8(output.stdout).unwrap();
    let mut variables = 0;
    for argument in Cli::command().get_arguments() {
        let Some(variable) = argument.get_env() else { continue };
        variables += 1;
        let variable = variable.to_str().unwrap();
        assert!(help.contains(&format!("[env: {variable}=")), "{variable}");
        assert!(argument.get_help().is_some(), "{variable}");
    }
    assert!(variables >= 14, "{variables}");
    assert!(help.contains("KUBECONFIG"), "{help}");
    let version = run(&["--version"], &[]);
    assert_eq!(
        String::from_utf8(version.stdout).unwrap(),
        format!("embedding-operator {}\n", env!("CARGO_PKG_VERSION"))
    );
}
