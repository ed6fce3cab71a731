//! Models that come and go while the server runs, and what becomes of the others.
#![allow(clippy::unwrap_used, reason = "a test that unwraps in vain fails, as it should")]

#[path = "support/hub.rs"]
mod hub;
mod support;

use std::path::Path;
use std::time::{Duration, Instant};

use hub::{FakeHub, Fault, Tree};
use serde_json::{Value, json};
use support::minilm;
use support::process::{Response, Server, send};
use support::tiny::{Tiny, Written};

fn place(name: &str, directory: &Path) -> String {
    format!("{name}={}", directory.display())
}

/// A server that may be changed, with a tiny model called `first`.
fn changeable(first: &Written, more: &[&str]) -> Server {
    let first = place("first", first.path());
    Server::healthy(&[&["--model", &first, "--allow-model-changes", "--dtype", "float32"], more].concat())
}

fn load(server: &Server, name: &str, directory: &Path) -> Response {
    server.post("/models", &json!({"load": place(name, directory)}))
}

fn unload(server: &Server, name: &str) -> Response {
    server.post("/models", &json!({"unload": name}))
}

fn listed(server: &Server, name: &str) -> Option<Value> {
    let models = server.get("/models").json();
    models["models"].as_array().unwrap().iter().find(|model| model["name"] == name).cloned()
}

/// Waits until the model is in this state; how it is listed then.
fn until(server: &Server, name: &str, state: &str) -> Value {
    let begun = Instant::now();
    loop {
        let model = listed(server, name);
        if let Some(model) = model.filter(|model| model["state"] == state) {
            return model;
        }
        assert!(begun.elapsed() < Duration::from_mins(1), "{name} is not {state}:\n{}", server.log());
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn cpus() -> usize {
    std::thread::available_parallelism().unwrap().get()
}

fn vector(server: &Server, model: &str) -> Value {
    let response = server.post("/embeddings", &json!({"texts": ["a text"], "model": model}));
    assert_eq!(response.status, 200, "{}", response.body);
    response.json()["embeddings"][0].clone()
}

fn code(response: &Response) -> Value {
    response.json()["error"]["code"].clone()
}

/// A tiny model with wider layers, and so with other weights.
fn wider() -> Written {
    Tiny::sized(32, 4, 64).write()
}

#[test]
fn a_model_comes_serves_as_if_it_had_been_there_and_goes_with_its_memory() {
    let (tiny, other) = (Tiny::new().write(), wider());
    let server = changeable(&tiny, &[]);
    assert_eq!(vector(&server, "first").as_array().unwrap().len(), 16);

    let change = json!({
        "load": place("other", other.path()),
        "aliases": ["another"],
        "prompts": {"query": "query: "},
        "default_prompt": "query",
        "on_overflow": "error",
        "matryoshka": [8],
    });
    let response = server.post("/models", &change);
    assert_eq!(response.status, 202, "{}", response.body);
    assert_eq!(response.json()["models"].as_array().unwrap().len(), 2);
    let ready = until(&server, "other", "ready");
    assert_eq!(
        (&ready["dimensions"], &ready["default_prompt"], &ready["allowed_dimensions"]),
        (&json!(32), &json!("query"), &json!([8, 32]))
    );
    let there = Server::healthy(&[
        "--model",
        &place("other", other.path()),
        "--dtype",
        "float32",
        "--prompt",
        "query=query: ",
        "--default-prompt",
        "query",
    ]);
    assert_eq!(vector(&server, "another"), vector(&there, "other"));
    let long = json!({"texts": ["word ".repeat(2000)], "model": "other"});
    assert_eq!(code(&server.post("/embeddings", &long)), "text_too_long");
    assert_eq!(server.get("/health").json(), json!({"status": "healthy", "models": ["first", "other"]}));
    assert!(server.get("/metrics").body.contains("embedding_model_ready{model=\"other\"} 1"));

    // By any of its names.
    let response = unload(&server, "another");
    assert_eq!((response.status, &response.json()["models"][1]), (200, &Value::Null));
    assert!(!server.threads().iter().any(|name| name.starts_with("embed-other")), "{:?}", server.threads());
    let gone = server.post("/embeddings", &json!({"texts": ["a text"], "model": "another"}));
    assert_eq!((gone.status, code(&gone)), (404, json!("model_not_found")));
    assert!(!server.get("/metrics").body.contains("embedding_model_ready{model=\"other\"}"));
    assert_eq!(code(&unload(&server, "other")), "model_not_found");

    // The name is free, for another model as well: nothing of the old one is left.
    assert_eq!(load(&server, "other", tiny.path()).status, 202);
    let again = until(&server, "other", "ready");
    assert_eq!(again["space"], listed(&server, "first").unwrap()["space"]);
    assert_eq!(vector(&server, "other"), vector(&server, "first"));
}

#[test]
fn memory_of_a_model_is_free_when_it_was_unloaded() {
    let tiny = Tiny::new().write();
    let server = changeable(&tiny, &[]);
    let mut taken = Vec::new();
    for _ in 0..4 {
        assert_eq!(load(&server, "mini", &minilm()).status, 202);
        until(&server, "mini", "ready");
        vector(&server, "mini");
        let with = server.memory().now;
        assert_eq!(unload(&server, "mini").status, 200);
        taken.push((with, server.memory().now));
    }
    let log = server.log();
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let told: Vec<_> = lines.filter(|line| line["model"] == "mini").collect();
    let of = |message: &str, field: &str| {
        let line = told.iter().find(|line| line["message"] == message);
        line.and_then(|line| line[field].as_u64())
            .unwrap_or_else(|| panic!("no {field} of {message}:\n{log}"))
    };
    let (needed, taken_mib) = (of("loading", "needed_mib"), of("ready", "memory_mib"));
    assert!((80..=needed).contains(&taken_mib), "{taken_mib} of {needed} MiB");
    assert!(log.contains("resident_mib") && log.contains("limit_mib"), "{log}");

    // Its weights are 90 MB. What the first one leaves behind is the allocator's; nothing is added to it.
    let (with, after) = taken[3];
    assert!(after + 40 < with, "{taken:?}");
    assert!(after < taken[0].1 + 40, "{taken:?}");
}

#[test]
fn who_waits_in_line_gets_his_answer_before_the_model_goes() {
    let tiny = Tiny::new().write();
    let server = changeable(&tiny, &[]);
    load(&server, "mini", &minilm());
    until(&server, "mini", "ready");
    let expected = vector(&server, "mini");
    // More than is in a batch, on however many CPUs.
    let texts = vec!["a text"; 400 * cpus()];
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| server.post("/embeddings", &json!({"texts": texts, "model": "mini"})));
        let waits = |line: &str| {
            let count = line.strip_prefix("embedding_waiting_texts{model=\"mini\"} ");
            count.is_some_and(|count| count.trim() != "0")
        };
        while !server.get("/metrics").body.lines().any(waits) {
            assert!(!asking.is_finished(), "nothing was seen in line");
        }
        assert_eq!(unload(&server, "mini").status, 200);
        let answer = asking.join().unwrap();
        assert_eq!(answer.status, 200, "{}", answer.body);
        let vectors = answer.json()["embeddings"].as_array().unwrap().clone();
        assert_eq!(vectors.len(), texts.len());
        for vector in vectors {
            let near = |(a, b): (&Value, &Value)| (a.as_f64().unwrap() - b.as_f64().unwrap()).abs() < 1e-5;
            assert!(vector.as_array().unwrap().iter().zip(expected.as_array().unwrap()).all(near));
        }
    });
    vector(&server, "first");
}

#[test]
fn what_cannot_be_served_is_told_and_takes_nothing_else_out_of_service() {
    let tiny = Tiny::new().write();
    let server = changeable(&tiny, &[]);
    let mut lying = Tiny::new();
    lying.config["hidden_size"] = json!(64);
    lying.pooling["word_embedding_dimension"] = json!(64);
    let lying = lying.write();
    for (name, directory) in [("lying", lying.path()), ("nowhere", Path::new("/nowhere"))] {
        assert_eq!(load(&server, name, directory).status, 202);
        let failed = until(&server, name, "failed");
        assert!(failed["reason"].as_str().unwrap().contains(&directory.display().to_string()), "{failed}");
    }
    let health = server.get("/health");
    assert_eq!((health.status, &health.json()["status"]), (200, &json!("healthy")));
    assert_eq!(health.json()["failed"].as_object().unwrap().len(), 2, "{}", health.body);
    assert_eq!(server.get("/ping").status, 200);
    vector(&server, "first");
    assert_eq!(unload(&server, "lying").status, 200);
    assert_eq!(unload(&server, "nowhere").status, 200);
    assert_eq!(server.get("/health").json(), json!({"status": "healthy", "models": ["first"]}));

    // The last one can go, too: then nothing can be asked here, which health tells.
    assert_eq!(unload(&server, "first").status, 200);
    assert_eq!(server.get("/health").json(), json!({"status": "empty", "models": []}));
    assert_eq!((server.get("/health").status, server.get("/ping").status), (503, 503));
    assert_eq!(code(&server.post("/embeddings", &json!({"texts": ["a"]}))), "no_model");
    load(&server, "back", tiny.path());
    until(&server, "back", "ready");
    assert_eq!(server.get("/health").status, 200);
    vector(&server, "back");
}

#[test]
fn requests_that_cannot_be_followed_are_refused_and_change_nothing() {
    let tiny = Tiny::new().write();
    let first = place("first", tiny.path());
    let server = changeable(&tiny, &["--alias", "one=first"]);
    for (change, status, error) in [
        (json!({}), 400, "invalid_field"),
        (json!({"load": first, "unload": "first"}), 400, "invalid_field"),
        (json!({"load": "no place"}), 400, "invalid_field"),
        (json!({"load": first, "on_overflow": "cut"}), 400, "invalid_field"),
        (json!({"load": first, "wrong": 1}), 400, "invalid_field"),
        (json!({"load": place("x", tiny.path()), "matryoshka": [0]}), 400, "invalid_field"),
        (json!({"load": first}), 409, "model_exists"),
        (json!({"load": place("one", tiny.path())}), 409, "model_exists"),
        (json!({"load": place("x", tiny.path()), "aliases": ["first"]}), 409, "model_exists"),
        (json!({"unload": "two"}), 404, "model_not_found"),
    ] {
        let response = server.post("/models", &change);
        assert_eq!((response.status, code(&response)), (status, json!(error)), "{change} {}", response.body);
    }
    // A page in somebody's browser, which reaches what he reaches.
    let headers = [("Content-Type", "application/json"), ("Origin", "https://example.com")];
    let body = json!({"unload": "first"}).to_string();
    let response = send(server.address, "POST", "/models", &headers, body.as_bytes()).unwrap();
    assert_eq!((response.status, code(&response)), (403, json!("not_for_browsers")));
    vector(&server, "one");

    let fixed = Server::healthy(&["--model", &first]);
    for change in [json!({"load": place("x", tiny.path())}), json!({"unload": "first"})] {
        let response = fixed.post("/models", &change);
        assert_eq!((response.status, code(&response)), (403, json!("models_are_fixed")));
    }
    vector(&fixed, "first");
}

#[test]
fn a_model_that_is_being_fetched_can_be_unloaded_and_holds_nobody_up() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (tiny, other) = (Tiny::new().write(), wider());
    let hub = runtime.block_on(FakeHub::start(Tree::of_directory("org/tiny", tiny.path())));
    // The hub goes silent in the middle of the weights.
    hub.fault("cdn", "", 1, Fault::Stall(500_000));
    let cache = tempfile::tempdir().unwrap();
    let cache_dir = cache.path().display().to_string();
    let server = changeable(&tiny, &["--cache-dir", &cache_dir, "--hf-endpoint", hub.endpoint.as_str()]);
    assert_eq!(server.post("/models", &json!({"load": "slow=org/tiny@main"})).status, 202);
    assert_eq!(load(&server, "next", other.path()).status, 202);
    until(&server, "slow", "loading");
    assert_eq!(until(&server, "next", "loading")["reason"], "waiting for its turn");
    assert_eq!(unload(&server, "slow").status, 200);
    until(&server, "next", "ready");
    assert!(listed(&server, "slow").is_none());
    // What was half fetched is gone on with.
    assert_eq!(server.post("/models", &json!({"load": "org/tiny@main"})).status, 202);
    until(&server, "tiny", "ready");
    assert_eq!(vector(&server, "org/tiny"), vector(&server, "first"));
}

#[test]
fn a_model_that_is_busy_for_long_does_not_hold_up_another() {
    let tiny = Tiny::new().write();
    let server = changeable(&tiny, &["--model", &place("mini", &minilm())]);
    let texts = vec!["word ".repeat(250); 60 * cpus()];
    std::thread::scope(|scope| {
        let bulk = scope.spawn(|| server.post("/embeddings", &json!({"texts": texts, "model": "mini"})));
        // Until it computes.
        let before = server.computed();
        while server.computed() < before + Duration::from_millis(200) {
            std::thread::sleep(Duration::from_millis(10));
        }
        for _ in 0..10 {
            vector(&server, "first");
        }
        assert!(!bulk.is_finished(), "short texts of a small model waited for many long ones of another");
        assert_eq!(bulk.join().unwrap().status, 200);
    });
}
