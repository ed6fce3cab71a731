//! The `healthcheck` subcommand: asks a running server how it is, for containers that have
//! no other program to ask with.
//!
//! It speaks as much HTTP as that takes: a client that knows proxies could ask one of them
//! instead of the server beside it.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use url::{Position, Url};

use crate::config::Healthcheck;

/// What is read of an answer at most; /health has a line for each model.
const MAX_ANSWER: usize = 64 << 10;

/// Why a server does not count as healthy.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody answers in time.
    #[error("no answer from {url}, where a server should listen")]
    NoAnswer {
        /// Who was asked.
        url: Url,
        /// How that failed.
        source: io::Error,
    },
    /// Something answers that is no HTTP.
    #[error("{url} answers with no HTTP: {start:?}")]
    NoHttp {
        /// Who was asked.
        url: Url,
        /// How the answer begins.
        start: String,
    },
    /// The answer is a no.
    #[error("{url} answers with {status}: {body}")]
    Unhealthy {
        /// Who was asked.
        url: Url,
        /// The answer's status.
        status: u16,
        /// What it says.
        body: String,
    },
}

/// Asks once; an answer with a status of 2xx is a yes.
pub fn run(config: &Healthcheck) -> Result<(), Error> {
    let url = &config.url;
    let answer = ask(config).map_err(|source| Error::NoAnswer { url: url.clone(), source })?;
    let answer = String::from_utf8_lossy(&answer);
    match status(&answer) {
        Some(200..=299) => Ok(()),
        Some(status) => {
            let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body).to_owned();
            Err(Error::Unhealthy { url: url.clone(), status, body })
        }
        None => Err(Error::NoHttp { url: url.clone(), start: answer.chars().take(80).collect() }),
    }
}

fn status(answer: &str) -> Option<u16> {
    let (version, rest) = answer.split_once(' ')?;
    version.starts_with("HTTP/1.").then(|| rest.get(..3)?.parse().ok())?
}

/// The answer's bytes, head and body.
fn ask(config: &Healthcheck) -> io::Result<Vec<u8>> {
    let url = &config.url;
    let deadline = Instant::now() + config.timeout;
    let mut stream = connect(&url.socket_addrs(|| None)?, deadline)?;
    stream.set_write_timeout(Some(left(deadline)?))?;
    let (target, host) =
        (&url[Position::BeforePath..Position::AfterQuery], &url[Position::BeforeHost..Position::AfterPort]);
    stream.write_all(
        format!("GET {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").as_bytes(),
    )?;
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    while answer.len() < MAX_ANSWER {
        stream.set_read_timeout(Some(left(deadline)?))?;
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => answer.extend_from_slice(&buffer[..read]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(answer)
}

/// A connection to the first of the addresses that takes one.
fn connect(addresses: &[SocketAddr], deadline: Instant) -> io::Result<TcpStream> {
    let mut why = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for address in addresses {
        match TcpStream::connect_timeout(address, left(deadline)?) {
            Ok(stream) => return Ok(stream),
            Err(error) => why = error,
        }
    }
    Err(why)
}

fn left(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    /// What comes of a server that answers so, or keeps silent.
    fn outcome(answer: Option<&'static str>) -> Result<(), String> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 1024];
            let read = stream.read(&mut request).unwrap();
            if let Some(answer) = answer {
                stream.write_all(answer.as_bytes()).unwrap();
            } else {
                // Until the other side has had enough.
                assert_eq!(stream.read(&mut request[read..]).unwrap(), 0);
            }
            String::from_utf8(request[..read].to_vec()).unwrap()
        });
        let url = format!("http://{address}/health?a=b").parse().unwrap();
        let outcome = run(&Healthcheck { url, timeout: Duration::from_millis(500) });
        let request = server.join().unwrap();
        let expected = format!("GET /health?a=b HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
        assert_eq!(request, expected);
        outcome.map_err(|error| error.to_string().replace(&address.to_string(), "HOST"))
    }

    #[test]
    fn a_status_of_2xx_is_a_yes_and_everything_else_is_told() {
        for (answer, expected) in [
            (Some("HTTP/1.1 200 OK\r\n\r\n{}"), Ok(())),
            (Some("HTTP/1.0 204 No Content\r\n\r\n"), Ok(())),
            (
                Some("HTTP/1.1 503 Service Unavailable\r\nA: b\r\n\r\n{\"status\":\"loading\"}"),
                Err("http://HOST/health?a=b answers with 503: {\"status\":\"loading\"}"),
            ),
            (
                Some("SSH-2.0-OpenSSH_9.2\r\n"),
                Err("http://HOST/health?a=b answers with no HTTP: \"SSH-2.0-OpenSSH_9.2\\r\\n\""),
            ),
            (Some(""), Err("http://HOST/health?a=b answers with no HTTP: \"\"")),
            (None, Err("no answer from http://HOST/health?a=b, where a server should listen")),
        ] {
            assert_eq!(outcome(answer), expected.map_err(str::to_owned), "{answer:?}");
        }
    }
}
