//! What the API server asks a kubelet for when somebody reads the logs of a container.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::extract::{Path, RawQuery, State};
use axum::routing::get;
use axum::serve::Listener;
use http::StatusCode;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::PrivatePkcs8KeyDer;
use tokio_rustls::server::TlsStream;

/// Nobody else is served until a client that has connected has shaken hands.
const HANDSHAKE: Duration = Duration::from_secs(5);

/// The logs of pods by what their names begin with.
#[derive(Clone, Default)]
pub(super) struct Logs(Arc<Mutex<BTreeMap<String, String>>>);

impl Logs {
    pub(super) fn set(&self, pod: &str, text: &str) {
        self.texts().insert(pod.to_owned(), text.to_owned());
    }

    fn of(&self, pod: &str) -> Option<String> {
        // Of several beginnings of one name the longest is the last.
        self.texts().iter().rfind(|(prefix, _)| pod.starts_with(*prefix)).map(|(_, text)| text.clone())
    }

    fn texts(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Answers for the pods of a namespace as long as the future is polled.
    pub(super) async fn serve(self, namespace: &str, port: Port) {
        let path = format!("/containerLogs/{namespace}/{{pod}}/{{container}}");
        let routes = Router::new().route(&path, get(read)).with_state(self);
        axum::serve(port, routes).await.expect("it does not end");
    }
}

async fn read(
    State(logs): State<Logs>,
    Path((pod, _container)): Path<(String, String)>,
    RawQuery(query): RawQuery,
) -> Result<String, StatusCode> {
    let text = logs.of(&pod).ok_or(StatusCode::NOT_FOUND)?;
    let query = query.unwrap_or_default();
    let lines = url::form_urlencoded::parse(query.as_bytes()).find(|(name, _)| name == "tailLines");
    match lines {
        None => Ok(text),
        Some((_, lines)) => Ok(tail(&text, lines.parse().map_err(|_| StatusCode::BAD_REQUEST)?)),
    }
}

fn tail(text: &str, lines: usize) -> String {
    let all: Vec<_> = text.split_inclusive('\n').collect();
    all[all.len().saturating_sub(lines)..].concat()
}

/// A port on loopback that speaks TLS. The API server does not check a kubelet's certificate
/// unless it is told an authority for them.
pub(super) struct Port {
    listener: TcpListener,
    acceptor: TlsAcceptor,
}

impl Port {
    pub(super) async fn open() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port on loopback");
        let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).expect("a certificate");
        let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("versions that the provider can do")
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key.into())
            .expect("the key is that of the certificate");
        Self { listener, acceptor: TlsAcceptor::from(Arc::new(config)) }
    }

    pub(super) fn number(&self) -> u16 {
        self.listener.local_addr().expect("an address").port()
    }
}

impl Listener for Port {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            let (stream, from) = Listener::accept(&mut self.listener).await;
            if let Ok(Ok(stream)) = tokio::time::timeout(HANDSHAKE, self.acceptor.accept(stream)).await {
                return (stream, from);
            }
        }
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.listener.local_addr()
    }
}
