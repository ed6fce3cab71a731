//! The accept loop: connections in, requests to the router.
//!
//! `axum::serve` has no limit on how long the head of a request may take and none on
//! the number of connections; this has both, and ends connections politely.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tower::ServiceExt;

use crate::metrics::Metrics;

/// How connections are treated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The most connections at once; further ones wait in the kernel's backlog.
    pub max_connections: usize,
    /// How long the head of a request may take, a connection's idle time included.
    pub header_timeout: Duration,
    /// How long requests under way get when the loop stops.
    pub shutdown_timeout: Duration,
}

/// Serves until `stop` resolves; then takes no new connection and lets requests
/// under way finish. Returns whether all of them did.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    settings: Settings,
    metrics: Arc<Metrics>,
    stop: impl Future<Output = ()>,
) -> bool {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(settings.header_timeout);
    builder.http2().timer(TokioTimer::new()).keep_alive_interval(Some(settings.header_timeout));
    let graceful = GracefulShutdown::new();
    let places = Arc::new(Semaphore::new(settings.max_connections));
    tokio::pin!(stop);
    loop {
        let accepted = async {
            let place = Arc::clone(&places).acquire_owned().await;
            (place, listener.accept().await)
        };
        let (place, stream) = tokio::select! {
            () = &mut stop => break,
            (place, accepted) = accepted => match (place, accepted) {
                (Ok(place), Ok((stream, _))) => (place, stream),
                (_, accepted) => {
                    pause_after(accepted.err()).await;
                    continue;
                }
            },
        };
        // Answers are small and complete: waiting to fill a packet only delays them.
        drop(stream.set_nodelay(true));
        let connection = builder.serve_connection(TokioIo::new(stream), service(router.clone())).into_owned();
        let connection = graceful.watch(connection);
        let open = metrics.begin_connection();
        tokio::spawn(async move {
            // A client that breaks off is no event.
            if let Err(error) = connection.await {
                tracing::debug!(%error, "connection ended");
            }
            drop((place, open));
        });
    }
    drop(listener);
    tokio::time::timeout(settings.shutdown_timeout, graceful.shutdown()).await.is_ok()
}

fn service(
    router: Router,
) -> impl hyper::service::Service<
    Request<Incoming>,
    Response = axum::response::Response,
    Error = Infallible,
    Future = impl Future<Output = Result<axum::response::Response, Infallible>> + Send,
> + Send {
    hyper::service::service_fn(move |request: Request<Incoming>| {
        router.clone().oneshot(request.map(Body::new))
    })
}

/// A failed accept concerns one connection, or, where the process is out of file
/// descriptors, is over when some are closed: wait a little, do not spin.
async fn pause_after(error: Option<std::io::Error>) {
    use std::io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    let Some(error) = error else { return };
    if !matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset) {
        tracing::warn!(%error, "cannot accept connections");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Binds the address, with an error that says what to do.
pub async fn bind(host: &str, port: u16) -> anyhow::Result<TcpListener> {
    TcpListener::bind((host, port)).await.map_err(|error| match error.kind() {
        std::io::ErrorKind::AddrInUse => {
            anyhow::anyhow!(
                "port {port} on {host} is in use: stop what uses it, or choose another with --port or PORT"
            )
        }
        std::io::ErrorKind::PermissionDenied => {
            anyhow::anyhow!(
                "port {port} on {host} may not be used: choose one above 1023 with --port or PORT"
            )
        }
        _ => anyhow::anyhow!("cannot listen on {host}:{port}: {error}"),
    })
}
