//! Loads of requests, none of which is tried again.

use std::fmt::{self, Display, Formatter};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::body::Body;
use http::{Request, header};
use http_body_util::BodyExt as _;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio::task::{JoinHandle, JoinSet};

/// After this a request has failed.
const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) type Connection = SendRequest<Body>;

/// A load until it is ended.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    sender: JoinHandle<Vec<Outcome>>,
    runtime: &'static Runtime,
}

struct Outcome {
    began: Duration,
    took: Duration,
    kept: bool,
    failure: Option<String>,
}

/// What became of a load.
pub(crate) struct Report {
    pub(crate) sent: usize,
    /// Over connections that had answered before.
    pub(crate) over_kept: usize,
    pub(crate) failures: Vec<String>,
    /// When the last request began that failed.
    pub(crate) last_failure: Option<Duration>,
    sorted: Vec<Duration>,
}

impl Load {
    /// Begins so many requests a second, whatever became of those before; every other one takes
    /// a connection of its own.
    pub(crate) fn start(
        runtime: &'static Runtime,
        address: SocketAddr,
        path: &'static str,
        body: &Value,
        rate: u32,
    ) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopping, body) = (Arc::clone(&stop), body.to_string());
        let sender = runtime.spawn(async move {
            let pool = Arc::<Mutex<Vec<Connection>>>::default();
            let (start, mut requests) = (Instant::now(), JoinSet::new());
            let mut ticks = tokio::time::interval(Duration::from_secs(1) / rate);
            ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Burst);
            for number in 0u64.. {
                ticks.tick().await;
                if stopping.load(Ordering::SeqCst) {
                    break;
                }
                let (pool, body) = ((number % 2 == 0).then(|| Arc::clone(&pool)), body.clone());
                requests.spawn(async move { outcome(start, address, path, body, pool.as_deref()).await });
            }
            requests.join_all().await
        });
        Self { stop, sender, runtime }
    }

    /// So many clients, each of which begins a request when the one before is answered: what
    /// waits does not grow. Every request takes a connection of its own, for a Service spreads
    /// connections.
    pub(crate) fn of_clients(
        runtime: &'static Runtime,
        address: SocketAddr,
        path: &'static str,
        body: &Value,
        clients: usize,
    ) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopping, body) = (Arc::clone(&stop), body.to_string());
        let sender = runtime.spawn(async move {
            let (start, mut running) = (Instant::now(), JoinSet::new());
            for _ in 0..clients {
                let (stopping, body) = (Arc::clone(&stopping), body.clone());
                running.spawn(async move {
                    let mut outcomes = Vec::new();
                    while !stopping.load(Ordering::SeqCst) {
                        outcomes.push(outcome(start, address, path, body.clone(), None).await);
                    }
                    outcomes
                });
            }
            running.join_all().await.into_iter().flatten().collect()
        });
        Self { stop, sender, runtime }
    }

    /// Sends no more, and waits for what is under way.
    pub(crate) fn end(self) -> Report {
        self.stop.store(true, Ordering::SeqCst);
        let outcomes = self.runtime.block_on(self.sender).unwrap();
        let mut sorted: Vec<_> = outcomes.iter().map(|outcome| outcome.took).collect();
        sorted.sort_unstable();
        let failed = outcomes.iter().filter(|outcome| outcome.failure.is_some());
        Report {
            sent: outcomes.len(),
            over_kept: outcomes.iter().filter(|outcome| outcome.kept).count(),
            last_failure: failed.clone().map(|outcome| outcome.began).max(),
            failures: failed
                .map(|outcome| {
                    let over = if outcome.kept { "kept" } else { "new" };
                    let why = outcome.failure.clone().unwrap_or_default();
                    format!("at {:.1} s, {over} connection: {why}", outcome.began.as_secs_f64())
                })
                .collect(),
            sorted,
        }
    }
}

impl Display for Report {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let at = |part: f64| {
            let index = ((self.sorted.len() as f64 * part) as usize).min(self.sorted.len().saturating_sub(1));
            self.sorted.get(index).copied().unwrap_or_default().as_secs_f64() * 1000.0
        };
        write!(
            f,
            "{} requests, {} of them over kept connections: {} failed; p50 {:.0} ms, p99 {:.0} ms",
            self.sent,
            self.over_kept,
            self.failures.len(),
            at(0.5),
            at(0.99)
        )?;
        for failure in self.failures.iter().take(10) {
            write!(f, "\n  {failure}")?;
        }
        Ok(())
    }
}

/// One request of a load that began at `start`, over a connection of the pool where there is one.
async fn outcome(
    start: Instant,
    address: SocketAddr,
    path: &str,
    body: String,
    pool: Option<&Mutex<Vec<Connection>>>,
) -> Outcome {
    let (began, at) = (start.elapsed(), Instant::now());
    let kept = pool.and_then(|pool| pool.lock().unwrap().pop());
    let is_kept = kept.is_some();
    let answer = tokio::time::timeout(PATIENCE, exchange(address, to_post(path, body), kept)).await;
    let failure = match answer {
        Ok(Ok((200, _, connection))) => {
            // As pools do: one that the server ends is not kept.
            if let (Some(pool), Some(connection)) = (pool, connection) {
                pool.lock().unwrap().push(connection);
            }
            None
        }
        Ok(Ok((status, body, _))) => Some(format!("{status}: {body}")),
        Ok(Err(error)) => Some(error),
        Err(_) => Some("no answer in time".into()),
    };
    Outcome { began, took: at.elapsed(), kept: is_kept, failure }
}

/// One request over a connection of its own: the status and the body.
pub(crate) async fn post(address: SocketAddr, path: &str, body: &Value) -> Result<(u16, String), String> {
    let (status, body, _) = exchange(address, to_post(path, body.to_string()), None).await?;
    Ok((status, body))
}

/// The same without a body.
pub(crate) async fn get(address: SocketAddr, path: &str) -> Result<(u16, String), String> {
    let (status, body, _) = exchange(address, Request::get(path).body(Body::empty()).unwrap(), None).await?;
    Ok((status, body))
}

fn to_post(path: &str, body: String) -> Request<Body> {
    let request = Request::post(path).header(header::CONTENT_TYPE, "application/json");
    request.body(Body::from(body)).unwrap()
}

/// One request; and its connection, where the server keeps it.
async fn exchange(
    address: SocketAddr,
    mut request: Request<Body>,
    kept: Option<Connection>,
) -> Result<(u16, String, Option<Connection>), String> {
    let mut connection = match kept {
        Some(kept) => kept,
        None => connect(address).await?,
    };
    if connection.ready().await.is_err() {
        // It ended while it was kept: nothing was sent on it.
        connection = connect(address).await?;
    }
    request.headers_mut().insert(header::HOST, address.to_string().parse().unwrap());
    let answer = connection.send_request(request).await.map_err(|error| format!("sending: {error:?}"))?;
    let status = answer.status().as_u16();
    let ends = answer.headers().get(header::CONNECTION).is_some_and(|value| value == "close");
    let body =
        answer.into_body().collect().await.map_err(|error| format!("receiving: {error:?}"))?.to_bytes();
    let body = String::from_utf8_lossy(&body).into_owned();
    Ok((status, body, (!ends).then_some(connection)))
}

/// A connection of one's own.
pub(crate) async fn connect(address: SocketAddr) -> Result<Connection, String> {
    let stream = TcpStream::connect(address).await.map_err(|error| format!("connecting: {error}"))?;
    let (sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|error| format!("connecting: {error}"))?;
    tokio::spawn(connection);
    Ok(sender)
}
