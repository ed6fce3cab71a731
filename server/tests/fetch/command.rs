//! `embedding-server fetch` as a job runs it: exit codes and the summary file.

use std::path::Path;
use std::process::Output;

use serde_json::Value;

use crate::hub::{FakeHub, Tree};
use crate::support::process::command;
use crate::support::tiny::Tiny;

const REPO: &str = "org/tiny";

/// The file that Kubernetes makes before the container starts.
fn termination_log(folder: &Path) -> std::path::PathBuf {
    let path = folder.join("termination-log");
    std::fs::write(&path, "x".repeat(5000)).unwrap();
    path
}

fn fetch(endpoint: &str, folder: &Path, arguments: &[&str]) -> (Output, String) {
    let log = termination_log(folder);
    let output = command(&["fetch"])
        .args(arguments)
        .args(["--hf-endpoint", endpoint, "--retries", "0", "--log-format", "json"])
        .arg("--cache-dir")
        .arg(folder.join("cache"))
        .env("EMBEDDING_SUMMARY_FILE", &log)
        .output()
        .unwrap();
    (output, std::fs::read_to_string(log).unwrap())
}

#[test]
fn the_summary_is_written_to_the_file_too_and_the_exit_code_says_what_failed() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let hub = runtime.block_on(FakeHub::start(Tree::of_directory(REPO, Tiny::new().write().path())));
    let endpoint = hub.endpoint.as_str().to_owned();
    let folder = tempfile::tempdir().unwrap();

    let (output, told) = fetch(&endpoint, folder.path(), &[REPO]);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(String::from_utf8(output.stdout).unwrap().trim_end(), told);
    let summary: Value = serde_json::from_str(&told).unwrap();
    assert_eq!((&summary["commit"], &summary["dimensions"]), (&hub.tree().commit.into(), &16.into()));

    for (arguments, code, beginning) in [
        (vec!["org/gone"], 77, "error: asking "),
        (vec!["org/tiny@gone"], 77, "error: asking "),
        (vec!["org/tiny@gone", "--hf-endpoint", "http://127.0.0.1:9"], 69, "error: connecting to "),
        (vec!["org/gone", "--offline"], 1, "error: org/gone@main is not in the cache"),
        (vec!["org/tiny", "--keep", "org/tiny"], 1, "error: --keep org/tiny: "),
        (vec!["org/tiny", "--log", "a=b=c"], 1, "error: --log"),
    ] {
        let endpoint = if arguments.contains(&"--hf-endpoint") { "" } else { &endpoint };
        let log = termination_log(folder.path());
        let mut command = command(&["fetch", "--retries", "0", "--log-format", "json"]);
        command.args(&arguments).arg("--cache-dir").arg(folder.path().join("cache"));
        if !endpoint.is_empty() {
            command.args(["--hf-endpoint", endpoint]);
        }
        let output = command.arg("--summary-file").arg(&log).output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {stderr}");
        let told = std::fs::read_to_string(&log).unwrap();
        assert!(told.starts_with(beginning), "{arguments:?}: {told}");
        assert_eq!(stderr.lines().last(), Some(told.as_str()), "one line, as on standard error");
    }

    // A success that cannot be told is none.
    let output = command(&["fetch", REPO, "--hf-endpoint", &endpoint, "--summary-file", "/not/there/log"])
        .arg("--cache-dir")
        .arg(folder.path().join("cache"))
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.contains("error: writing the summary to /not/there/log; the model itself is"), "{stderr}");
}

#[test]
fn an_archive_is_fetched_and_served_as_a_directory() {
    let tiny = Tiny::new().write();
    let mut builder =
        tar::Builder::new(flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast()));
    builder.append_dir_all("tiny", tiny.path()).unwrap();
    let packed = builder.into_inner().unwrap().finish().unwrap();
    let tree = Tree::new(REPO).with_download("tiny.tgz", packed);
    let sha256 = tree.downloads["tiny.tgz"].sha256();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let hub = runtime.block_on(FakeHub::start(tree));
    let folder = tempfile::tempdir().unwrap();
    let url = hub.endpoint.join("downloads/tiny.tgz?signature").unwrap();
    let keep = format!("/models/archives/{}", "ab".repeat(32));
    let arguments = ["--url", url.as_str(), "--sha256", &sha256, "--keep", &keep];
    let (output, told) = fetch("http://127.0.0.1:9", folder.path(), &arguments);
    assert!(output.status.success(), "{output:?}");
    let summary: Value = serde_json::from_str(&told).unwrap();
    assert_eq!((&summary["commit"], &summary["dimensions"]), (&sha256.as_str().into(), &16.into()));
    assert_eq!(summary["repo"], url.as_str().trim_end_matches("?signature"));
    let directory = folder.path().join("cache/archives").join(&sha256);
    assert_eq!(summary["directory"], directory.to_str().unwrap());

    let model = format!("tiny={}", directory.display());
    let server = crate::support::process::Server::healthy(&["--offline", "--model", &model]);
    assert_eq!(server.get("/models").json()["models"][0]["name"], "tiny");
}
