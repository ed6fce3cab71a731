//! A real control plane: etcd, kube-apiserver and kube-controller-manager on loopback, one for
//! all tests of a binary. There is no scheduler and no kubelet; `kubelet::FakeNode` plays both.
//! Where it matters which node a pod gets, a test starts the real scheduler beside it (`run`).
//!
//! The programs come from `scripts/kube`. Everything lies in one temporary folder, which goes
//! with the processes when the test binary ends, however it does (`process`).

pub mod audit;
mod pki;
mod process;

use std::io::Write as _;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Namespace as NamespaceObject, ServiceAccount};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{ObjectMeta, Patch, PatchParams, PostParams};
use kube::config::AuthInfo;
use kube::runtime::conditions::is_crd_established;
use kube::runtime::wait::Condition as _;
use kube::{Api, Client, Config};
use serde_json::{Value, json};
use tokio::sync::{Mutex, OnceCell};

use self::audit::Audit;
use self::pki::{Authority, Identity};
use self::process::Folder;
pub use self::process::Process;
use super::wait::wait_for_object;

/// The programs' folder, made by `scripts/kube`.
const TOOLS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../.kube-tools");
/// Definitions that the plane starts with.
const CRDS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../crds");

/// Every component is started in seconds; this is for a machine with much else to do.
const PATIENCE: Duration = Duration::from_mins(2);

static PLANE: OnceCell<Result<ControlPlane, String>> = OnceCell::const_new();

/// The control plane of this test binary. Dropping one ends it (API server before etcd: its
/// graceful stop hangs without etcd); that of `get` ends with the binary.
pub struct ControlPlane {
    // The order of these is the order in which they are dropped.
    controller_manager: Option<Process>,
    api_server: Mutex<Process>,
    _etcd: Process,
    version: String,
    port: u16,
    api_server_arguments: Vec<String>,
    authority: Authority,
    admin: Identity,
    kubeconfig: PathBuf,
    kubeconfigs: AtomicUsize,
    namespaces: AtomicUsize,
    folder: Folder,
}

/// A namespace of its own for a test. It is not deleted: the whole plane is thrown away.
#[derive(Clone, Debug)]
pub struct Namespace(String);

impl std::ops::Deref for Namespace {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for Namespace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl ControlPlane {
    /// The one of this test binary, started by the first test that asks. The definitions in
    /// `crds/` are in it: they are applied before the controller manager starts, because its
    /// garbage collector looks for new kinds only every 30 seconds.
    pub async fn get() -> &'static Self {
        let plane = PLANE.get_or_init(|| Self::try_start(Path::new(CRDS), &[])).await;
        plane.as_ref().unwrap_or_else(|error| panic!("the control plane did not start: {error}"))
    }

    /// Another one, for a test that needs one to itself, with the definitions in a folder.
    pub async fn start(crds: &Path) -> Self {
        Self::try_start(crds, &[])
            .await
            .unwrap_or_else(|error| panic!("the control plane did not start: {error}"))
    }

    /// Another one with our definitions, whose controller manager gets more arguments: they win.
    pub async fn start_with(controller_manager: &[&str]) -> Result<Self, String> {
        Self::try_start(Path::new(CRDS), controller_manager).await
    }

    async fn try_start(crds: &Path, controller_manager: &[&str]) -> Result<Self, String> {
        let tools = Path::new(TOOLS);
        if !tools.join("kube-apiserver").exists() {
            return Err("no .kube-tools at the top of the checkout; run scripts/kube".to_owned());
        }
        // A port that was free can be taken before the component listens on it.
        for _ in 0..2 {
            if let Some(plane) = Self::attempt(crds, controller_manager).await? {
                return Ok(plane);
            }
        }
        let last = Self::attempt(crds, controller_manager).await?;
        last.ok_or_else(|| "other processes took the ports, three times".to_owned())
    }

    /// Nothing where a port was taken by another process meanwhile.
    async fn attempt(crds: &Path, controller_manager: &[&str]) -> Result<Option<Self>, String> {
        let started = Instant::now();
        let folder = Folder::new();
        let [etcd_port, peer_port, port] = free_ports();
        let authority = Authority::new(&folder.path);
        let admin = authority.client("admin", &["system:masters"]);
        let kubeconfig = folder.path.join("admin.kubeconfig");
        write_kubeconfig(&kubeconfig, port, &authority, &user_of(&admin));

        let mut etcd = Process::start(&folder, &tool("etcd"), &etcd_arguments(etcd_port, peer_port));
        // The API server tries again only after a second where it finds no etcd.
        if let Err(error) = started_up(&mut etcd, async || listens(etcd_port)).await {
            return if etcd.lost_a_port() { Ok(None) } else { Err(error) };
        }
        let api_server_arguments = api_server_arguments(&folder, port, etcd_port, &authority);
        let api_server = Process::start(&folder, &tool("kube-apiserver"), &api_server_arguments);
        let mut plane = Self {
            controller_manager: None,
            api_server: Mutex::new(api_server),
            _etcd: etcd,
            version: String::new(),
            port,
            api_server_arguments,
            authority,
            admin,
            kubeconfig,
            kubeconfigs: AtomicUsize::new(0),
            namespaces: AtomicUsize::new(0),
            folder,
        };
        if let Err(error) = plane.api_server_ready().await {
            return if plane.api_server.get_mut().lost_a_port() { Ok(None) } else { Err(error) };
        }
        let version = plane.client().apiserver_version().await.map_err(|error| error.to_string())?;
        plane.version = version.git_version;
        plane.apply_crds(crds).await?;
        plane.start_controller_manager(controller_manager).await?;
        // Past the capture of the test runner: it shows that and where a real one ran.
        let _ = writeln!(
            std::io::stdout(),
            "control plane: kube-apiserver {} at https://127.0.0.1:{port}, ready in {:.1} s",
            plane.version,
            started.elapsed().as_secs_f64()
        );
        Ok(Some(plane))
    }

    /// What the API server says it is, like `v1.37.1`.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// For the administrator.
    pub fn config(&self) -> Config {
        self.config_with(auth_of(&self.admin))
    }

    /// For the administrator. A client belongs to the runtime that it is made in, which each
    /// test has to itself: make one per test.
    pub fn client(&self) -> Client {
        client(self.config())
    }

    /// The administrator's, for other programs.
    pub fn kubeconfig_file(&self) -> &Path {
        &self.kubeconfig
    }

    /// For any user, by a certificate; at most two groups.
    pub fn config_as(&self, user: &str, groups: &[&str]) -> Config {
        self.config_with(auth_of(&self.authority.client(user, groups)))
    }

    pub fn client_as(&self, user: &str, groups: &[&str]) -> Client {
        client(self.config_as(user, groups))
    }

    pub fn kubeconfig_file_as(&self, user: &str, groups: &[&str]) -> PathBuf {
        self.another_kubeconfig(&user_of(&self.authority.client(user, groups)))
    }

    /// With a token of the service account, as a pod that runs under it has one.
    pub async fn config_of_service_account(&self, namespace: &str, name: &str) -> Config {
        let token = self.token(namespace, name).await;
        self.config_with(AuthInfo { token: Some(token.into()), ..AuthInfo::default() })
    }

    pub async fn client_of_service_account(&self, namespace: &str, name: &str) -> Client {
        client(self.config_of_service_account(namespace, name).await)
    }

    pub async fn kubeconfig_file_of_service_account(&self, namespace: &str, name: &str) -> PathBuf {
        let token = self.token(namespace, name).await;
        self.another_kubeconfig(&json!({"token": token}))
    }

    /// A token of the service account, good for an hour.
    pub async fn token(&self, namespace: &str, name: &str) -> String {
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client(), namespace);
        let request = TokenRequest { spec: TokenRequestSpec::default(), ..TokenRequest::default() };
        let answer = accounts.create_token_request(name, &PostParams::default(), &request).await;
        let answer = answer.unwrap_or_else(|error| panic!("a token of {namespace}/{name}: {error}"));
        answer.status.expect("an answer has a status").token
    }

    /// A new namespace whose name begins with `prefix`, ready for pods.
    pub async fn namespace(&self, prefix: &str) -> Namespace {
        self.namespace_with(prefix, &[]).await
    }

    /// The same with labels, for example those of pod security admission.
    pub async fn namespace_with(&self, prefix: &str, labels: &[(&str, &str)]) -> Namespace {
        let name = format!("{prefix}-{}", self.namespaces.fetch_add(1, Ordering::Relaxed));
        let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let metadata = ObjectMeta { name: Some(name.clone()), labels: Some(labels), ..ObjectMeta::default() };
        let namespaces: Api<NamespaceObject> = Api::all(self.client());
        let object = NamespaceObject { metadata, ..NamespaceObject::default() };
        namespaces
            .create(&PostParams::default(), &object)
            .await
            .unwrap_or_else(|error| panic!("creating the namespace {name}: {error}"));
        // Pods are refused before.
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client(), &name);
        wait_for_object(&accounts, "default", "the service account of a namespace", PATIENCE, |_| true).await;
        Namespace(name)
    }

    /// All requests so far, for counting them.
    pub fn audit(&self) -> Audit {
        let path = self.folder.path.join("audit.log");
        let log =
            std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        Audit::parse(&log)
    }

    /// Runs kubectl as the administrator.
    pub async fn kubectl(&self, arguments: &[&str]) -> Output {
        self.kubectl_with(arguments, "").await
    }

    /// Runs kubectl as the administrator with an input, for `--filename -`.
    pub async fn kubectl_with(&self, arguments: &[&str], input: &str) -> Output {
        let mut command = Command::new(tool("kubectl"));
        command
            .args(arguments)
            .env("KUBECONFIG", &self.kubeconfig)
            // Its cache of what the API server offers lies there.
            .env("HOME", &self.folder.path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let input = input.to_owned();
        // A fake node of the same test has to go on meanwhile.
        let run = move || {
            let mut child = command.spawn()?;
            // It fails where kubectl ends without reading it all; then the output says why.
            let _ = child.stdin.take().expect("a pipe").write_all(input.as_bytes());
            child.wait_with_output()
        };
        tokio::task::spawn_blocking(run).await.expect("no panic").expect("kubectl")
    }

    /// Starts another program of `scripts/kube`, which runs until it is dropped.
    pub fn run(&self, program: &str, arguments: &[String]) -> Result<Process, String> {
        let path = tool(program);
        if path.exists() {
            Ok(Process::start(&self.folder, &path, arguments))
        } else {
            Err(format!("no {program} in .kube-tools at the top of the checkout; run scripts/kube"))
        }
    }

    /// Writes a file that other programs read.
    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.folder.path.join(name);
        std::fs::write(&path, text).expect("a file in the folder");
        path
    }

    /// Stops the API server and starts it anew, at the same address with the same data. All
    /// tests of the binary feel it.
    pub async fn restart_api_server(&self) {
        self.restart_api_server_after(async {}).await;
    }

    /// The same, with something to do while there is none.
    pub async fn restart_api_server_after(&self, meanwhile: impl Future<Output = ()>) {
        let mut api_server = self.api_server.lock().await;
        api_server.stop(Duration::from_secs(20)).await;
        meanwhile.await;
        *api_server = Process::start(&self.folder, &tool("kube-apiserver"), &self.api_server_arguments);
        drop(api_server);
        self.api_server_ready()
            .await
            .unwrap_or_else(|error| panic!("the API server did not come back: {error}"));
    }

    async fn api_server_ready(&self) -> Result<(), String> {
        let client = self.client();
        let mut api_server = self.api_server.lock().await;
        started_up(&mut api_server, async || {
            let request = http::Request::get("/readyz").body(Vec::new()).expect("a request");
            client.request_text(request).await.is_ok_and(|body| body == "ok")
        })
        .await
    }

    async fn apply_crds(&self, folder: &Path) -> Result<(), String> {
        let definitions: Api<CustomResourceDefinition> = Api::all(self.client());
        for entry in folder.read_dir().into_iter().flatten() {
            let path = entry.map_err(|error| error.to_string())?.path();
            if path.extension().is_none_or(|extension| extension != "yaml") {
                continue;
            }
            let told = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
            let text = std::fs::read_to_string(&path).map_err(|error| told(&error))?;
            let definition: Value = serde_yaml::from_str(&text).map_err(|error| told(&error))?;
            let name = definition["metadata"]["name"].as_str().ok_or_else(|| told(&"no name"))?;
            let how = PatchParams::apply("control-plane").force();
            match definitions.patch(name, &how, &Patch::Apply(&definition)).await {
                Ok(_) => {}
                // Its other words say the same twice.
                Err(kube::Error::Api(status)) => return Err(told(&status.message)),
                Err(error) => return Err(told(&error)),
            }
            wait_for_object(&definitions, name, "an established definition", PATIENCE, |definition| {
                is_crd_established().matches_object(Some(definition))
            })
            .await;
        }
        Ok(())
    }

    async fn start_controller_manager(&mut self, more: &[&str]) -> Result<(), String> {
        let identity = self.authority.client("system:kube-controller-manager", &[]);
        let kubeconfig = self.folder.path.join("controller-manager.kubeconfig");
        write_kubeconfig(&kubeconfig, self.port, &self.authority, &user_of(&identity));
        let mut arguments = controller_manager_arguments(&self.folder, &kubeconfig, &self.authority);
        arguments.extend(more.iter().map(ToString::to_string));
        let process = Process::start(&self.folder, &tool("kube-controller-manager"), &arguments);
        let process = self.controller_manager.insert(process);
        // It serves nothing that could be asked; this is its first deed that everything needs.
        let accounts: Api<ServiceAccount> =
            Api::namespaced(client(config(self.port, &self.authority, auth_of(&self.admin))), "default");
        started_up(process, async || accounts.get("default").await.is_ok()).await
    }

    fn config_with(&self, auth: AuthInfo) -> Config {
        config(self.port, &self.authority, auth)
    }

    fn another_kubeconfig(&self, user: &Value) -> PathBuf {
        let number = self.kubeconfigs.fetch_add(1, Ordering::Relaxed);
        let path = self.folder.path.join(format!("{number}.kubeconfig"));
        write_kubeconfig(&path, self.port, &self.authority, user);
        path
    }
}

fn tool(name: &str) -> PathBuf {
    Path::new(TOOLS).join(name)
}

/// Different ones: all are held until the last is found.
fn free_ports<const N: usize>() -> [u16; N] {
    let listeners: [_; N] = std::array::from_fn(|_| {
        TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port on loopback")
    });
    listeners.map(|listener| listener.local_addr().expect("an address").port())
}

fn listens(port: u16) -> bool {
    TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok()
}

/// Waits until a component works. If it ends or does not get there, its log's end is the error.
async fn started_up(process: &mut Process, mut works: impl AsyncFnMut() -> bool) -> Result<(), String> {
    let started = Instant::now();
    loop {
        // Asked first: on its port another program may answer.
        if let Some(status) = process.ended() {
            return Err(format!("it ended with {status}\n{}", process.log_tail()));
        }
        let left = PATIENCE.saturating_sub(started.elapsed());
        if left.is_zero() {
            return Err(format!("it did not work after {PATIENCE:?}\n{}", process.log_tail()));
        }
        if tokio::time::timeout(left, works()).await == Ok(true) {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn etcd_arguments(port: u16, peer_port: u16) -> Vec<String> {
    let (url, peer_url) = (format!("http://127.0.0.1:{port}"), format!("http://127.0.0.1:{peer_port}"));
    vec![
        "--data-dir=etcd".to_owned(),
        "--name=default".to_owned(),
        format!("--listen-client-urls={url}"),
        format!("--advertise-client-urls={url}"),
        format!("--listen-peer-urls={peer_url}"),
        format!("--initial-advertise-peer-urls={peer_url}"),
        format!("--initial-cluster=default={peer_url}"),
        // The data is thrown away; waiting for the disk would be the slowest part of the tests.
        "--unsafe-no-fsync".to_owned(),
        "--log-level=warn".to_owned(),
    ]
}

fn api_server_arguments(folder: &Folder, port: u16, etcd_port: u16, authority: &Authority) -> Vec<String> {
    let serving = authority.server(&["127.0.0.1", "10.96.0.1", "localhost", "kubernetes.default.svc"]);
    let (private, public) = pki::signing_key(&folder.path, "service-account");
    let policy = folder.path.join("audit-policy.json");
    std::fs::write(&policy, audit::POLICY).expect("a file in the folder");
    vec![
        "--bind-address=127.0.0.1".to_owned(),
        "--advertise-address=127.0.0.1".to_owned(),
        // No endpoints of the service `kubernetes`: loopback is no address for them.
        "--endpoint-reconciler-type=none".to_owned(),
        format!("--secure-port={port}"),
        format!("--etcd-servers=http://127.0.0.1:{etcd_port}"),
        format!("--tls-cert-file={}", serving.certificate.display()),
        format!("--tls-private-key-file={}", serving.key.display()),
        format!("--client-ca-file={}", authority.certificate().display()),
        format!("--service-account-key-file={}", public.display()),
        format!("--service-account-signing-key-file={}", private.display()),
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local".to_owned(),
        "--service-cluster-ip-range=10.96.0.0/16".to_owned(),
        "--authorization-mode=Node,RBAC".to_owned(),
        // An annotation gives a namespace nodes of its own; without one it does nothing.
        "--enable-admission-plugins=PodNodeSelector".to_owned(),
        "--allow-privileged".to_owned(),
        "--profiling=false".to_owned(),
        // Else its stop waits a minute for watches to end by themselves.
        "--shutdown-send-retry-after".to_owned(),
        format!("--audit-policy-file={}", policy.display()),
        format!("--audit-log-path={}", folder.path.join("audit.log").display()),
        // One file holds all.
        "--audit-log-maxsize=0".to_owned(),
    ]
}

fn controller_manager_arguments(folder: &Folder, kubeconfig: &Path, authority: &Authority) -> Vec<String> {
    let kubeconfig = kubeconfig.display();
    let mut arguments = vec![
        format!("--kubeconfig={kubeconfig}"),
        format!("--authentication-kubeconfig={kubeconfig}"),
        format!("--authorization-kubeconfig={kubeconfig}"),
        // Nothing asks it for health or metrics, and a port that is not there cannot be taken.
        "--secure-port=0".to_owned(),
        "--leader-elect=false".to_owned(),
        "--profiling=false".to_owned(),
        "--use-service-account-credentials".to_owned(),
        format!("--service-account-private-key-file={}", folder.path.join("service-account.key").display()),
        format!("--root-ca-file={}", authority.certificate().display()),
        format!("--cluster-signing-cert-file={}", authority.certificate().display()),
        format!("--cluster-signing-key-file={}", authority.key().display()),
        // Its clients would wait where tests run in parallel.
        "--kube-api-qps=1000".to_owned(),
        "--kube-api-burst=2000".to_owned(),
        // A test that ended renews its node's lease no more, and a busy machine does so late.
        "--node-monitor-grace-period=1h".to_owned(),
        "--endpointslice-updates-batch-period=0".to_owned(),
        "--horizontal-pod-autoscaler-sync-period=1s".to_owned(),
        "--horizontal-pod-autoscaler-initial-readiness-delay=1s".to_owned(),
        "--pvclaimbinder-sync-period=1s".to_owned(),
    ];
    let kinds = ["deployment", "replicaset", "job", "cron-job", "horizontal-pod-autoscaler", "namespace"];
    arguments.extend(kinds.map(|kind| format!("--concurrent-{kind}-syncs=10")));
    arguments
}

fn config(port: u16, authority: &Authority, auth_info: AuthInfo) -> Config {
    let url = format!("https://127.0.0.1:{port}").parse().expect("a URL");
    let mut config = Config::new(url);
    config.root_cert = Some(vec![authority.der()]);
    config.auth_info = auth_info;
    config
}

fn client(config: Config) -> Client {
    Client::try_from(config).expect("the certificates are good")
}

fn auth_of(identity: &Identity) -> AuthInfo {
    AuthInfo {
        client_certificate: Some(identity.certificate.display().to_string()),
        client_key: Some(identity.key.display().to_string()),
        ..AuthInfo::default()
    }
}

/// The same in a kubeconfig.
fn user_of(identity: &Identity) -> Value {
    json!({"client-certificate": identity.certificate, "client-key": identity.key})
}

fn write_kubeconfig(path: &Path, port: u16, authority: &Authority, user: &Value) {
    let server = format!("https://127.0.0.1:{port}");
    let kubeconfig = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "test", "cluster": {"server": server, "certificate-authority": authority.certificate()}}],
        "users": [{"name": "test", "user": user}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        "current-context": "test",
    });
    std::fs::write(path, kubeconfig.to_string()).expect("a file in the folder");
}
