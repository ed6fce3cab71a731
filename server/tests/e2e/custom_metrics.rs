//! The custom metrics API of a cluster, `custom.metrics.k8s.io`: a server of the test that the
//! API server asks on behalf of autoscalers, as it asks an adapter of Prometheus. Its values are
//! those that the pods themselves export at that moment.

use std::fmt::{self, Display, Formatter};
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::routing::get;
use axum::serve::Listener;
use axum::{Json, Router};
use base64::Engine as _;
use jiff::Timestamp;
use rustls::ServerConfig;
use rustls::pki_types::PrivatePkcs8KeyDer;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::cluster::{Cluster, Namespace};
use crate::load;

pub(crate) const WAITING_TOKENS: &str = "embedding_waiting_tokens";
/// What autoscalers take, if the cluster has it; v1beta1 is the other one that they know.
const GROUP_VERSION: &str = "custom.metrics.k8s.io/v1beta2";
pub(crate) const PATH: &str = "/apis/custom.metrics.k8s.io/v1beta2";
const API_SERVICE: &str = "v1beta2.custom.metrics.k8s.io";
const SERVICE: &str = "custom-metrics";
/// How long a pod and a TLS handshake may take.
const PATIENCE: Duration = Duration::from_secs(3);

/// The API, until it is dropped.
pub(crate) struct CustomMetrics<'a> {
    namespace: &'a Namespace<'static>,
    answers: Answers,
}

/// The values of each answer that has some.
type Answers = Arc<Mutex<Vec<Vec<u64>>>>;

#[derive(Clone)]
struct Server {
    cluster: &'static Cluster,
    answers: Answers,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Selected {
    #[serde(default)]
    label_selector: String,
}

impl<'a> CustomMetrics<'a> {
    /// Serves it, and tells the API server, which asks it by a Service of the namespace.
    pub(crate) fn start(runtime: &Runtime, namespace: &'a Namespace<'static>) -> Self {
        let cluster = namespace.cluster;
        let name = format!("{SERVICE}.{}.svc", namespace.name);
        let certificate = rcgen::generate_simple_self_signed([name]).unwrap();
        let port = runtime.block_on(Port::open(&cluster.host_ip, &certificate));
        let number = port.local_addr().unwrap().port();
        let answers = Answers::default();
        // It answers everybody: no client certificate of the API server is asked for, as the
        // numbers are no secret. Who may read them, the API server has checked before it asks.
        let router = Router::new()
            .route(PATH, get(resources))
            .route(&format!("{PATH}/namespaces/{{namespace}}/pods/{{pod}}/{WAITING_TOKENS}"), get(values))
            .with_state(Server { cluster, answers: Arc::clone(&answers) });
        runtime.spawn(async move { axum::serve(port, router).await });
        namespace.apply(&registration(namespace, number, &certificate.cert.pem()));
        Self { namespace, answers }
    }
}

impl Drop for CustomMetrics<'_> {
    /// An API that does not answer would hold up the deletion of every namespace.
    fn drop(&mut self) {
        self.namespace.cluster.try_kubectl(&["delete", "apiservice", API_SERVICE]);
    }
}

impl Display for CustomMetrics<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let answers = self.answers.lock().unwrap();
        let answers = answers.iter().map(|values| {
            let values: Vec<_> = values.iter().map(u64::to_string).collect();
            values.join("+")
        });
        f.write_str(&answers.collect::<Vec<_>>().join(" "))
    }
}

/// The API server goes to the addresses of the Service's endpoints.
fn registration(namespace: &Namespace<'_>, port: u16, authority: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "List", "items": [
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": SERVICE},
            "spec": {"ports": [{"name": "https", "port": 443, "targetPort": port}]},
        },
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {"name": SERVICE, "labels": {"kubernetes.io/service-name": SERVICE}},
            "addressType": "IPv4",
            "endpoints": [{"addresses": [namespace.cluster.host_ip]}],
            "ports": [{"name": "https", "port": port}],
        },
        {
            "apiVersion": "apiregistration.k8s.io/v1",
            "kind": "APIService",
            "metadata": {"name": API_SERVICE},
            "spec": {
                "group": "custom.metrics.k8s.io",
                "version": "v1beta2",
                "service": {"namespace": namespace.name, "name": SERVICE},
                "caBundle": base64::engine::general_purpose::STANDARD.encode(authority),
                "groupPriorityMinimum": 100,
                "versionPriority": 100,
            },
        },
    ]})
}

async fn resources() -> Json<Value> {
    Json(json!({
        "apiVersion": "v1",
        "kind": "APIResourceList",
        "groupVersion": GROUP_VERSION,
        "resources": [{
            "name": format!("pods/{WAITING_TOKENS}"),
            "singularName": "",
            "namespaced": true,
            "kind": "MetricValueList",
            "verbs": ["get"],
        }],
    }))
}

/// Of all pods that are selected, which autoscalers ask for: `pods/*`, with the asterisk as it
/// is or as %2A. As an adapter does, leaves out pods that have no value.
async fn values(
    State(server): State<Server>,
    Path((namespace, pod)): Path<(String, String)>,
    Query(selected): Query<Selected>,
) -> Result<Json<Value>, StatusCode> {
    if pod != "*" {
        return Err(StatusCode::NOT_FOUND);
    }
    let (cluster, of) = (server.cluster, namespace.clone());
    let pods = tokio::task::spawn_blocking(move || pods(cluster, &of, &selected.label_selector)).await;
    let pods = pods.ok().flatten().ok_or(StatusCode::INTERNAL_SERVER_ERROR)?;
    let (mut items, mut values) = (Vec::new(), Vec::new());
    for (pod, address) in pods {
        let Some(value) = scrape(address).await else { continue };
        values.push(value);
        items.push(json!({
            "describedObject": {"apiVersion": "/v1", "kind": "Pod", "namespace": namespace, "name": pod},
            "metric": {"name": WAITING_TOKENS, "selector": null},
            "timestamp": Timestamp::now().to_string(),
            "value": value.to_string(),
        }));
    }
    // The autoscaler of a namespace that is being deleted asks too.
    if !values.is_empty() {
        server.answers.lock().unwrap().push(values);
    }
    Ok(Json(json!({
        "apiVersion": GROUP_VERSION, "kind": "MetricValueList", "metadata": {}, "items": items,
    })))
}

/// The pods that run and match: their names, and where they export their metrics.
fn pods(cluster: &Cluster, namespace: &str, selector: &str) -> Option<Vec<(String, SocketAddr)>> {
    let running = "--field-selector=status.phase=Running";
    let output =
        cluster.try_kubectl(&["-n", namespace, "get", "pods", "-l", selector, running, "-o", "json"]);
    let list: Value = serde_json::from_slice(&output.stdout).ok()?;
    let pods = list["items"].as_array()?.iter().filter_map(|pod| {
        let ports = pod["spec"]["containers"][0]["ports"].as_array()?;
        let port = ports.iter().find(|port| port["name"] == "http")?["containerPort"].as_u64()?;
        let address = format!("{}:{port}", pod["status"]["podIP"].as_str()?).parse().ok()?;
        Some((pod["metadata"]["name"].as_str()?.to_owned(), address))
    });
    Some(pods.collect())
}

/// As the rule for prometheus-adapter has it: the largest of a pod's series.
async fn scrape(address: SocketAddr) -> Option<u64> {
    let answer = tokio::time::timeout(PATIENCE, load::get(address, "/metrics")).await;
    let (200, text) = answer.ok()?.ok()? else { return None };
    let series = format!("{WAITING_TOKENS}{{");
    let values = text.lines().filter(|line| line.starts_with(&series));
    values.filter_map(|line| line.rsplit_once(' ')?.1.parse().ok()).max()
}

/// A port that speaks TLS.
struct Port {
    listener: TcpListener,
    acceptor: TlsAcceptor,
}

impl Port {
    async fn open(ip: &str, certificate: &rcgen::CertifiedKey<rcgen::KeyPair>) -> Self {
        let key = PrivatePkcs8KeyDer::from(certificate.signing_key.serialize_der());
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.cert.der().clone()], key.into())
            .unwrap();
        let listener = TcpListener::bind(format!("{ip}:0")).await.unwrap();
        Self { listener, acceptor: TlsAcceptor::from(Arc::new(config)) }
    }
}

impl Listener for Port {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            let (stream, from) = Listener::accept(&mut self.listener).await;
            if let Ok(Ok(stream)) = tokio::time::timeout(PATIENCE, self.acceptor.accept(stream)).await {
                return (stream, from);
            }
        }
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.listener.local_addr()
    }
}
