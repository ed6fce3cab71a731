//! Every kind of request that the API's description allows, and some that it does not, sent to the program
//! by Schemathesis: none may find a mistake of the server, or an answer that is not as described.
//!
//! `make fuzz-api` does it for long, each time in another way.
#![allow(clippy::unwrap_used, reason = "a test that unwraps in vain fails, as it should")]

mod support;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use support::cross_encoder;
use support::process::Server;
use support::tiny::Tiny;

/// The model that the examples name.
const MODEL: &str = "all-minilm-l6-v2";
/// The variable that says for how many seconds requests are sent, other ones each time.
const LONG: &str = "FUZZ_API_SECONDS";
/// How long otherwise.
const SECONDS: u64 = 48;
/// What Schemathesis looks at in each answer.
const CHECKS: &str = "not_a_server_error,status_code_conformance,content_type_conformance,\
                      response_schema_conformance,response_headers_conformance";
/// That the same requests are sent each time, as far as they get in this time.
const SEED: &str = "1";

/// How often each operation had each status.
type Statuses = BTreeMap<String, BTreeMap<u16, u64>>;

/// From the server's own metrics.
fn count(metrics: &str, statuses: &mut Statuses) {
    for line in metrics.lines().filter_map(|line| line.strip_prefix("embedding_http_requests_total{")) {
        let (labels, count) = line.split_once("} ").unwrap();
        let label = |name: &str| {
            let (_, after) = labels.split_once(&format!("{name}=\"")).unwrap();
            after.split_once('"').unwrap().0
        };
        // Of a pattern, the description has no stars.
        let operation = format!("{} {}", label("method"), label("path").replace("{*", "{"));
        let status = label("status").parse().unwrap();
        *statuses.entry(operation).or_default().entry(status).or_default() += count.parse::<u64>().unwrap();
    }
}

/// Sends requests to the operations whose path matches; all of them are as is described.
fn fuzz(server: &Server, seconds: u64, paths: &str) {
    let packages = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.python");
    assert!(packages.join("schemathesis").exists(), "Schemathesis is missing: run `make python`");
    let python = std::env::var_os("PYTHON").unwrap_or_else(|| "python3".into());
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new(python);
    command
        .args(["-m", "schemathesis.cli", "run", &format!("http://{}/openapi.json", server.address)])
        .args(["--include-path-regex", paths, "--max-time", &seconds.to_string(), "--checks", CHECKS])
        .args(["--phases", "examples,coverage,fuzzing", "--continue-on-failure"])
        .args(["--generation-database", "none", "--no-color", "--warnings", "off"])
        // Nothing of the machine's settings, no proxy, and no file beside the sources.
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("PYTHONPATH", packages)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("HOME", folder.path())
        .current_dir(folder.path());
    if std::env::var_os(LONG).is_none() {
        command.args(["--seed", SEED]);
    }
    let output = command.output().unwrap();
    eprintln!("{}", String::from_utf8_lossy(&output.stdout));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn no_request_finds_a_mistake_or_an_answer_that_is_not_described() {
    let seconds = std::env::var(LONG).map_or(SECONDS, |seconds| seconds.parse().unwrap());
    let tiny = Tiny::new().write();
    let vectors = Server::healthy(&["--model", &format!("{MODEL}={}", tiny.path().display())]);
    fuzz(&vectors, seconds * 5 / 8, ".");
    // These want another kind of model.
    let scores = Server::healthy(&["--model", &format!("{MODEL}={}", cross_encoder("one").display())]);
    fuzz(&scores, seconds / 4, "(rerank|predict|invocations)$");
    // And these another server: what is loaded here is in no cache.
    let empty = tempfile::tempdir().unwrap();
    let cache = empty.path().display().to_string();
    let options = ["--allow-model-changes", "--offline", "--cache-dir", &cache];
    let model = format!("{MODEL}={}", tiny.path().display());
    let changing = Server::healthy(&[["--model", &model].as_slice(), &options].concat());
    fuzz(&changing, seconds / 8, "^/models$");

    // Requests that are all refused would prove nothing.
    let mut statuses = Statuses::new();
    count(&vectors.get("/metrics").body, &mut statuses);
    count(&scores.get("/metrics").body, &mut statuses);
    count(&changing.get("/metrics").body, &mut statuses);
    let document: Value = vectors.get("/openapi.json").json();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, content) in item.as_object().unwrap() {
            let operation = format!("{} {path}", method.to_uppercase());
            let counts = statuses.get(&operation).cloned().unwrap_or_default();
            eprintln!("{operation}: {counts:?}");
            let can_succeed =
                content["responses"].as_object().unwrap().keys().any(|key| key.starts_with('2'));
            let succeeded = counts.keys().any(|status| (200..300).contains(status));
            assert_eq!(succeeded, can_succeed, "{operation}: {counts:?}");
        }
    }
}
