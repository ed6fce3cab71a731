//! The real server as a process, over real HTTP on a port that the system picks.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;

/// How long a test waits for what must happen before it calls it a failure.
const PATIENCE: Duration = Duration::from_mins(1);

/// The program, without the environment of whoever runs the tests.
pub fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_embedding-server"));
    let keep = ["HOME", "PATH", "RUSTBERT_CACHE"];
    let kept: Vec<_> = std::env::vars_os().filter(|(name, _)| keep.iter().any(|keep| name == keep)).collect();
    command.env_clear().envs(kept).args(arguments);
    command
}

/// A running server; it is killed when this is dropped.
pub struct Server {
    child: Child,
    pub address: SocketAddr,
    log: Arc<Mutex<String>>,
}

/// What a process has of memory, in MiB.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    pub now: u64,
    /// The most that it had at once.
    pub peak: u64,
}

impl Memory {
    /// Of a process by its number, or of `self`.
    pub fn of(process: impl std::fmt::Display) -> Self {
        let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
        let mib = |field: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
            line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() / 1024
        };
        Self { now: mib("VmRSS:"), peak: mib("VmHWM:") }
    }

    /// The peak is counted anew from what the process has now, where that is allowed.
    pub fn forget_peak(process: impl std::fmt::Display) {
        drop(std::fs::write(format!("/proc/{process}/clear_refs"), "5"));
    }
}

/// An HTTP response.
#[derive(Debug)]
pub struct Response {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Response {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }

    /// The value of a header, by its name in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        let headers = self.head.lines().filter_map(|line| line.split_once(':'));
        headers
            .map(|(found, value)| (found.to_lowercase(), value.trim()))
            .find(|(found, _)| found == name)
            .map(|(_, value)| value)
    }
}

impl Server {
    /// Starts the server and waits until it listens.
    pub fn start(arguments: &[&str]) -> Self {
        let mut all = vec!["serve", "--host", "127.0.0.1", "--port", "0", "--log-format", "json"];
        all.extend(arguments);
        Self::spawn(&mut command(&all))
    }

    /// The same for a command that was made by hand; it must log as JSON.
    pub fn spawn(command: &mut Command) -> Self {
        Self::spawn_writing(command, Stdio::null())
    }

    /// The same, with standard output somewhere, to which the server itself writes nothing.
    pub fn spawn_writing(command: &mut Command, stdout: Stdio) -> Self {
        let mut child = command.stderr(Stdio::piped()).stdout(stdout).spawn().unwrap();
        let log = Arc::new(Mutex::new(String::new()));
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let sink = Arc::clone(&log);
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                let mut log = sink.lock().unwrap();
                log.push_str(&line);
                log.push('\n');
            }
        });
        let mut server = Self { child, address: SocketAddr::from(([127, 0, 0, 1], 0)), log };
        server.address = server
            .wait_for(|server| {
                let log = server.log();
                let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
                lines
                    .filter(|line| line["message"] == "listening")
                    .find_map(|line| line["address"].as_str().and_then(|address| address.parse().ok()))
            })
            .unwrap_or_else(|| panic!("the server does not listen:\n{}", server.log()));
        server
    }

    /// What the server has logged so far.
    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// Polls until `f` gives something; `None` when the server died or patience is over.
    fn wait_for<T>(&mut self, mut f: impl FnMut(&Self) -> Option<T>) -> Option<T> {
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE {
            if let Some(value) = f(self) {
                return Some(value);
            }
            if self.child.try_wait().unwrap().is_some() {
                std::thread::sleep(Duration::from_millis(50));
                return f(self);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        None
    }

    /// Waits until `/health` answers with this status; returns its body.
    pub fn wait_for_health(&mut self, status: &str) -> Value {
        let health = self.wait_for(|server| {
            let health = server.try_get("/health")?.json();
            (health["status"] == status).then_some(health)
        });
        health.unwrap_or_else(|| panic!("/health does not become {status}:\n{}", self.log()))
    }

    /// Starts the server and waits until it is healthy.
    pub fn healthy(arguments: &[&str]) -> Self {
        let mut server = Self::start(arguments);
        server.wait_for_health("healthy");
        server
    }

    fn try_get(&self, path: &str) -> Option<Response> {
        send(self.address, "GET", path, &[], b"").ok()
    }

    pub fn get(&self, path: &str) -> Response {
        send(self.address, "GET", path, &[], b"").unwrap()
    }

    pub fn post(&self, path: &str, body: &Value) -> Response {
        let headers = [("Content-Type", "application/json")];
        send(self.address, "POST", path, &headers, body.to_string().as_bytes()).unwrap()
    }

    /// Sends SIGTERM.
    pub fn terminate(&self) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    }

    /// Waits for the process to end.
    pub fn wait(mut self) -> (ExitStatus, String) {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                std::thread::sleep(Duration::from_millis(50));
                return (status, self.log());
            }
            assert!(begun.elapsed() < PATIENCE, "the server does not end:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// The memory of the process.
    pub fn memory(&self) -> Memory {
        Memory::of(self.child.id())
    }

    /// Its peak is counted anew from what it has now, where that is allowed.
    pub fn forget_peak(&self) {
        Memory::forget_peak(self.child.id());
    }

    /// How much processor time it has had.
    pub fn computed(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        // After the name, which may have spaces; in hundredths of a second on every Linux.
        let (_, fields) = stat.rsplit_once(')').unwrap();
        let ticks = fields.split_whitespace().skip(11).take(2).map(|ticks| ticks.parse::<u64>().unwrap());
        Duration::from_millis(10 * ticks.sum::<u64>())
    }

    /// The names of the process's threads.
    pub fn threads(&self) -> Vec<String> {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap();
        tasks
            .filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok())
            .map(|name| name.trim().to_owned())
            .collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// One request on a connection of its own.
pub fn send(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> std::io::Result<Response> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut head = format!(
        "{method} {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\nContent-Length: {}\r\n",
        body.len()
    );
    for (name, value) in headers {
        write!(head, "{name}: {value}\r\n").expect("a string takes everything");
    }
    head.push_str("\r\n");
    // A server that refuses a large body answers before it has read it.
    let written = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body));
    let mut answer = Vec::new();
    if let Err(error) = stream.read_to_end(&mut answer)
        && answer.is_empty()
    {
        return Err(error);
    }
    if answer.is_empty() {
        written?;
        return Err(std::io::Error::other("no answer"));
    }
    let answer = String::from_utf8(answer).expect("the answer is UTF-8");
    let (head, body) = answer.split_once("\r\n\r\n").expect("an HTTP head");
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    let chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
    assert!(!chunked, "answers have a length");
    Ok(Response { status, head: head.to_owned(), body: body.to_owned() })
}
