//! The accept loop: connections in, requests to the router.
//!
//! `axum::serve` has no limit on how long the head of a request may take and none on
//! the number of connections; this has both, and ends connections politely. hyper's own
//! timer of a head starts when the version of HTTP is known, so what tells it, the first
//! bytes, is read here, under the same limit.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{ConnectInfo, Request};
use axum::http::HeaderValue;
use axum::http::header::CONNECTION;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use crate::metrics::Metrics;

/// How connections are treated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The most connections at once; further ones wait in the kernel's backlog.
    pub max_connections: usize,
    /// How long the head of a request may take, a connection's idle time included.
    pub header_timeout: Duration,
    /// How long requests under way get when the loop stops; half of it, at most, for the
    /// farewell before.
    pub shutdown_timeout: Duration,
}

/// How long clients that keep connections get to learn that this one ends. A connection that
/// just closes can meet a request on its way, which then fails through no fault of the client's.
const FAREWELL: Duration = Duration::from_secs(5);
/// How often is looked whether somebody is still connected, during that time.
const LOOK: Duration = Duration::from_millis(20);

/// Serves until `stop` resolves, and then ends politely. Returns whether all requests
/// under way were answered.
///
/// First every answer says that its connection ends, so that clients come back with another,
/// to another server; who connects meanwhile is still served. When nobody is connected any
/// more, or after five seconds, no new connection is taken, those without a request are
/// closed, and requests under way finish.
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
    let (leaving, closing) = (CancellationToken::new(), CancellationToken::new());
    let places = Arc::new(Semaphore::new(settings.max_connections));
    let begin = |(place, stream, peer): (OwnedSemaphorePermit, TcpStream, SocketAddr)| {
        // Answers are small and complete: waiting to fill a packet only delays them.
        drop(stream.set_nodelay(true));
        let open = metrics.begin_connection();
        let (builder, service) = (builder.clone(), service(router.clone(), peer, leaving.clone()));
        let (watcher, closing) = (graceful.watcher(), closing.clone());
        tokio::spawn(async move {
            let first = tokio::select! {
                // Nothing was asked yet: nothing is lost.
                () = closing.cancelled() => None,
                first = tokio::time::timeout(settings.header_timeout, first_bytes(stream)) => {
                    first.ok().and_then(Result::ok).flatten()
                }
            };
            if let Some((version, read, stream)) = first {
                let builder = match version {
                    Version::Http1 => builder.http1_only(),
                    Version::Http2 => builder.http2_only(),
                };
                let (reader, writer) = stream.into_split();
                let io = tokio::io::join(std::io::Cursor::new(read).chain(reader), writer);
                let connection = builder.serve_connection(TokioIo::new(io), service).into_owned();
                // A client that breaks off is no event.
                if let Err(error) = watcher.watch(connection).await {
                    tracing::debug!(%error, "connection ended");
                }
            }
            drop((place, open));
        });
    };
    tokio::pin!(stop);
    loop {
        tokio::select! {
            () = &mut stop => break,
            accepted = accept(&listener, &places) => begin(accepted),
        }
    }
    leaving.cancel();
    let end = Instant::now() + settings.shutdown_timeout;
    let farewell = tokio::time::sleep(FAREWELL.min(settings.shutdown_timeout / 2));
    tokio::pin!(farewell);
    loop {
        tokio::select! {
            biased;
            () = &mut farewell => break,
            accepted = accept(&listener, &places) => begin(accepted),
            () = tokio::time::sleep(LOOK) => {
                if places.available_permits() == settings.max_connections {
                    break;
                }
            }
        }
    }
    closing.cancel();
    drop(listener);
    tokio::time::timeout_at(end, graceful.shutdown()).await.is_ok()
}

/// The next connection, its place among those that may be open, and who is at its other end.
async fn accept(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
) -> (OwnedSemaphorePermit, TcpStream, SocketAddr) {
    loop {
        let place = Arc::clone(places).acquire_owned().await;
        match (place, listener.accept().await) {
            (Ok(place), Ok((stream, peer))) => return (place, stream, peer),
            (_, accepted) => pause_after(accepted.err()).await,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    Http1,
    Http2,
}

/// What a client of HTTP/2 that knows beforehand sends first (RFC 9113, section 3.4).
const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Reads until it is clear what the client speaks. Gives what was read too; nothing when
/// the client leaves before.
async fn first_bytes(mut stream: TcpStream) -> std::io::Result<Option<(Version, Vec<u8>, TcpStream)>> {
    let mut read = Vec::with_capacity(HTTP2_PREFACE.len());
    while read.len() < HTTP2_PREFACE.len() {
        let mut rest = (&mut stream).take((HTTP2_PREFACE.len() - read.len()) as u64);
        if rest.read_buf(&mut read).await? == 0 {
            return Ok(None);
        }
        if !HTTP2_PREFACE.starts_with(&read) {
            return Ok(Some((Version::Http1, read, stream)));
        }
    }
    Ok(Some((Version::Http2, read, stream)))
}

fn service(
    router: Router,
    peer: SocketAddr,
    leaving: CancellationToken,
) -> impl hyper::service::Service<
    Request<Incoming>,
    Response = axum::response::Response,
    Error = Infallible,
    Future = impl Future<Output = Result<axum::response::Response, Infallible>> + Send,
> + Send {
    hyper::service::service_fn(move |request: Request<Incoming>| {
        let (router, leaving) = (router.clone(), leaving.clone());
        let has_one_request_at_a_time = request.version() <= http::Version::HTTP_11;
        async move {
            let mut request = request.map(Body::new);
            // The requests of a model are shared by whom they are of.
            request.extensions_mut().insert(ConnectInfo(peer));
            let mut response = router.oneshot(request).await?;
            if has_one_request_at_a_time && leaving.is_cancelled() {
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            Ok(response)
        }
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
