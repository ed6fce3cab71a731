//! A load that does not wait for answers: requests begin at a fixed rate, whatever became of
//! those before, and none is tried again.

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

type Connection = SendRequest<Body>;

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
    /// Begins so many requests a second; every other one takes a connection of its own.
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
                requests.spawn(async move {
                    let (began, at) = (start.elapsed(), Instant::now());
                    let kept = pool.as_ref().and_then(|pool| pool.lock().unwrap().pop());
                    let is_kept = kept.is_some();
                    let answer = tokio::time::timeout(PATIENCE, exchange(address, path, body, kept)).await;
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
                });
            }
            requests.join_all().await
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

/// One request over a connection of its own: the status and the body.
pub(crate) async fn post(address: SocketAddr, path: &str, body: &Value) -> Result<(u16, String), String> {
    let (status, body, _) = exchange(address, path, body.to_string(), None).await?;
    Ok((status, body))
}

/// One request; and its connection, where the server keeps it.
async fn exchange(
    address: SocketAddr,
    path: &str,
    body: String,
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
    let request = Request::post(path)
        .header(header::HOST, address.to_string())
        .header(header::CONTENT_TYPE, "application/json")
        .body(Body::from(body))
        .map_err(|error| error.to_string())?;
    let answer = connection.send_request(request).await.map_err(|error| format!("sending: {error:?}"))?;
    let status = answer.status().as_u16();
    let ends = answer.headers().get(header::CONNECTION).is_some_and(|value| value == "close");
    let body =
        answer.into_body().collect().await.map_err(|error| format!("receiving: {error:?}"))?.to_bytes();
    let body = String::from_utf8_lossy(&body).into_owned();
    Ok((status, body, (!ends).then_some(connection)))
}

async fn connect(address: SocketAddr) -> Result<Connection, String> {
    let stream = TcpStream::connect(address).await.map_err(|error| format!("connecting: {error}"))?;
    let (sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|error| format!("connecting: {error}"))?;
    tokio::spawn(connection);
    Ok(sender)
}
