//! The real server as a process, and clients that keep it busy.
//!
//! The client is a few lines of HTTP/1.1 on one thread: it runs on the CPUs that it
//! measures, so it must cost next to nothing.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

/// How long the server may take to load its model.
const PATIENCE: Duration = Duration::from_mins(2);

/// Which API a server is asked by.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Dialect {
    /// This project's own: `{"texts": …}`.
    Native,
    /// `OpenAI`'s: `{"input": …}`.
    OpenAi,
}

/// A running server; it is killed when this is dropped.
pub(crate) struct Server {
    child: Child,
    address: SocketAddr,
    dialect: Dialect,
}

impl Drop for Server {
    fn drop(&mut self) {
        // A server that has ended by itself is as good as one that was ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    /// Starts the server with its defaults on a port that the system picks.
    pub(crate) fn start() -> anyhow::Result<Self> {
        let arguments =
            ["serve", "--host", "127.0.0.1", "--port", "0", "--log-format", "json", "--log", "info"];
        let mut child = Command::new(env!("CARGO_BIN_EXE_embedding-server"))
            .args(arguments)
            .arg("--offline")
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("starting the server")?;
        let mut log = BufReader::new(child.stderr.take().context("the server has no log")?);
        // From here on its `Drop` ends the process.
        let mut server = Self::of(child, SocketAddr::from(([127, 0, 0, 1], 0)), Dialect::Native);
        let mut line = String::new();
        while server.address.port() == 0 {
            line.clear();
            ensure!(log.read_line(&mut line)? > 0, "the server has ended before it listened");
            let event: Value = serde_json::from_str(&line).unwrap_or_default();
            if event["message"] == "listening" {
                server.address = event["address"].as_str().context("no address in the log")?.parse()?;
            }
        }
        // Read on, or the server blocks once the pipe is full.
        std::thread::spawn(move || log.lines().map_while(Result::ok).for_each(drop));
        Ok(server)
    }

    /// A server that somebody else started, and that may not listen yet.
    pub(crate) const fn of(child: Child, address: SocketAddr, dialect: Dialect) -> Self {
        Self { child, address, dialect }
    }

    /// Waits until the model can embed.
    pub(crate) async fn ready(&mut self) -> anyhow::Result<()> {
        let begun = Instant::now();
        while !self.healthy().await.unwrap_or(false) {
            ensure!(self.child.try_wait()?.is_none(), "the server has ended");
            ensure!(begun.elapsed() < PATIENCE, "the server is not healthy after {PATIENCE:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    async fn healthy(&self) -> anyhow::Result<bool> {
        let mut connection = Connection::open(self.address).await?;
        Ok(connection.send(&request("GET", "/health", b"")).await? == 200)
    }

    /// A request for the vectors of these texts.
    pub(crate) fn embeddings(&self, texts: &[String]) -> Vec<u8> {
        let body = match self.dialect {
            Dialect::Native => json!({"texts": texts}),
            Dialect::OpenAi => json!({"model": "bench", "input": texts}),
        };
        request("POST", "/embeddings", body.to_string().as_bytes())
    }

    /// The vectors of these texts, 32 a request.
    pub(crate) async fn vectors(&self, texts: &[String]) -> anyhow::Result<Vec<Vec<f32>>> {
        let mut connection = Connection::open(self.address).await?;
        let mut vectors = Vec::new();
        for texts in texts.chunks(32) {
            let status = connection.send(&self.embeddings(texts)).await?;
            let body = connection.body();
            ensure!(status == 200, "the server answers {status}: {}", String::from_utf8_lossy(body));
            let mut answer: Value = serde_json::from_slice(body)?;
            let found: Vec<Vec<f32>> = match self.dialect {
                Dialect::Native => serde_json::from_value(answer["embeddings"].take())?,
                Dialect::OpenAi => {
                    let data = answer["data"].as_array_mut().context("no data in the answer")?;
                    let each = data.iter_mut().map(|one| serde_json::from_value(one["embedding"].take()));
                    each.collect::<Result<_, _>>()?
                }
            };
            vectors.extend(found);
        }
        Ok(vectors)
    }

    /// Sends `requests` in turn, over and over, from `clients` connections that each
    /// wait for an answer before they ask again.
    pub(crate) async fn load(
        &self,
        requests: &Arc<Vec<Vec<u8>>>,
        clients: usize,
        window: Duration,
    ) -> anyhow::Result<Load> {
        let next = Arc::new(AtomicUsize::new(0));
        let mut connections = Vec::new();
        for _ in 0..clients {
            connections.push(Connection::open(self.address).await?);
        }
        let start = Instant::now();
        let until = start + window;
        let mut tasks = JoinSet::new();
        for mut connection in connections {
            let (requests, next) = (Arc::clone(requests), Arc::clone(&next));
            tasks.spawn(async move {
                let mut load = Load::default();
                let mut now = start;
                while now < until {
                    let turn = next.fetch_add(1, Ordering::Relaxed) % requests.len();
                    let begun = Instant::now();
                    let status = connection.send(&requests[turn]).await?;
                    ensure!(status == 200, "the server answers {status}");
                    now = Instant::now();
                    load.seconds.push((now - begun).as_secs_f64());
                }
                // Each client's own rate up to its own last answer: counting the answers
                // of all in one window would be coarse where answers are few.
                load.per_second = load.seconds.len() as f64 / (now - start).as_secs_f64();
                Ok(load)
            });
        }
        let mut total = Load::default();
        while let Some(load) = tasks.join_next().await {
            let load = load??;
            total.per_second += load.per_second;
            total.seconds.extend(load.seconds);
        }
        Ok(total)
    }
}

/// What came of a load.
#[derive(Debug, Default)]
pub(crate) struct Load {
    /// Requests answered in a second.
    pub(crate) per_second: f64,
    /// How long each request took.
    pub(crate) seconds: Vec<f64>,
}

fn request(method: &str, path: &str, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

/// A connection that is kept alive.
struct Connection {
    stream: TcpStream,
    /// The last answer: its head, and from `body` on its body.
    buffer: Vec<u8>,
    body: usize,
}

impl Connection {
    async fn open(address: SocketAddr) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, buffer: Vec::new(), body: 0 })
    }

    fn body(&self) -> &[u8] {
        &self.buffer[self.body..]
    }

    /// Sends a request and reads the answer; returns its status.
    async fn send(&mut self, request: &[u8]) -> anyhow::Result<u16> {
        self.stream.write_all(request).await?;
        self.buffer.clear();
        let mut head = None;
        loop {
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                bail!("the server closed the connection");
            }
            if head.is_none() {
                head = read_head(&self.buffer)?;
            }
            if let Some((status, body, length)) = head
                && self.buffer.len() >= body + length
            {
                self.body = body;
                return Ok(status);
            }
        }
    }
}

/// (status, where the body begins, its length), once the head is there.
fn read_head(buffer: &[u8]) -> anyhow::Result<Option<(u16, usize, usize)>> {
    let Some(end) = buffer.windows(4).position(|bytes| bytes == b"\r\n\r\n") else { return Ok(None) };
    let head = std::str::from_utf8(&buffer[..end])?;
    let mut lines = head.split("\r\n");
    let status = lines.next().and_then(|line| line.split(' ').nth(1)).context("no status in the answer")?;
    let length = lines
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .context("the answer has no Content-Length")?;
    Ok(Some((status.parse()?, end + 4, length.1.trim().parse()?)))
}
