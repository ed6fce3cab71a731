//! Requests that want to harm: texts as long as a body, more texts than anybody sends, and what is short in
//! a request and long in the server. Each costs bounded memory and time, is answered with vectors, with
//! what was cut, or with a clear error, and other callers are answered meanwhile.
//!
//! Time is the server's processor time, compared with that of a plain request in the same run: what else the
//! machine does hardly counts.
#![allow(clippy::unwrap_used, reason = "a test that unwraps in vain fails, as it should")]
#![expect(clippy::print_stdout, reason = "a test's figures are worth seeing")]

mod support;

use std::io::Write;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use embedding_server::model::Machine;
use serde_json::{Value, json};
use support::process::{Response, Server, send};
use support::tiny::Tiny;
use support::{cosine, cross_encoder, minilm};

/// How long a text of ten megabytes is.
const LONG: usize = 10_000_000;

fn server(options: &[&str]) -> Server {
    let model = format!("m={}", minilm().display());
    // LibTorch's arithmetic is as fast in a build for tests as in any other.
    let fast = ["--implementation", "packed", "--dtype", "float32"];
    Server::healthy(&[&["--model", &model], fast.as_slice(), options].concat())
}

/// A request, what it cost the server, and how another caller fared meanwhile.
struct Outcome {
    response: Response,
    took: Duration,
    /// The server's processor time, that for the other caller included.
    computed: Duration,
    /// How much memory the server had at most, beyond what it had before; in MiB.
    grew: u64,
    /// How long each request of the other caller took that was answered before this one.
    others: Vec<Duration>,
}

/// Sends a body, and meanwhile questions of another caller, each of which is answered.
fn outcome(server: &Server, path: &str, body: &str, question: (&str, &Value)) -> Outcome {
    server.forget_peak();
    let (before, computed) = (server.memory().now, server.computed());
    let begun = Instant::now();
    let (response, took, others) = std::thread::scope(|scope| {
        let asked = scope.spawn(|| (post(server, path, body), begun.elapsed()));
        let mut others = Vec::new();
        while !asked.is_finished() {
            let begun = Instant::now();
            let answer = server.post(question.0, question.1);
            assert_eq!(answer.status, 200, "another caller: {}", answer.body);
            if !asked.is_finished() {
                others.push(begun.elapsed());
                // What is measured is not what the other caller costs.
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        let (response, took) = asked.join().unwrap();
        (response, took, others)
    });
    let computed = server.computed().saturating_sub(computed);
    let grew = server.memory().peak.saturating_sub(before);
    let slowest = others.iter().max().copied().unwrap_or_default();
    println!(
        "{path}, {} bytes: {} after {took:?}, {computed:?} computed, {grew} MiB; {} others, at most {slowest:?}",
        body.len(),
        response.status,
        others.len(),
    );
    Outcome { response, took, computed, grew, others }
}

fn post(server: &Server, path: &str, body: &str) -> Response {
    send(server.address, "POST", path, &[("Content-Type", "application/json")], body.as_bytes()).unwrap()
}

/// What a caller with a short text sends.
fn question() -> (&'static str, Value) {
    ("/embeddings", json!({"texts": ["a short text"]}))
}

fn embed(server: &Server, body: &Value) -> Outcome {
    let (path, question) = question();
    outcome(server, "/embeddings", &body.to_string(), (path, &question))
}

fn vector(response: &Response) -> Vec<f32> {
    serde_json::from_value(response.json()["embeddings"][0].clone()).unwrap()
}

#[test]
fn a_text_of_ten_megabytes_costs_little_and_has_the_vector_of_what_counts_of_it() {
    let server = server(&[]);
    // The first answer is slower than any other.
    embed(&server, &json!({"texts": ["warm"]}));
    // Three texts of each megabyte.
    let plain = embed(&server, &json!({"texts": vec!["word ".repeat(254); 30]}));
    let first_of = |part: &str, count: usize| part.repeat(count);
    for (name, text, counts, tokens, truncated) in [
        ("words", "word ".repeat(LONG / 5), first_of("word ", 254), 256, true),
        ("one word", "x".repeat(LONG), first_of("x", 101), 3, false),
        ("spaces", " ".repeat(LONG), String::new(), 2, false),
        ("dots", ".".repeat(LONG), first_of(".", 254), 256, true),
        ("200,000 dots", ".".repeat(200_000), first_of(".", 254), 256, true),
        ("200,000 marks", format!("e{}", "\u{301}".repeat(200_000)), "e".into(), 3, true),
        ("marks to be sorted", format!("e{}", "\u{301}\u{316}".repeat(100_000)), "e".into(), 3, true),
        ("marks without end", "\u{301}\u{316}".repeat(LONG / 4), String::new(), 2, true),
        ("nothing that counts", "\u{0}".repeat(LONG / 6), String::new(), 2, true),
        ("sigmas", "Σ\u{301}".repeat(LONG / 4), first_of("σ", 101), 3, true),
    ] {
        println!("{name}:");
        let long = embed(&server, &json!({"texts": [text]}));
        let answer = long.response.json();
        let cut: &[usize] = if truncated { &[0] } else { &[] };
        assert_eq!((&answer["tokens"], &answer["truncated"]), (&json!([tokens]), &json!(cut)), "{name}");
        let short = server.post("/embeddings", &json!({"texts": [counts]}));
        assert!(cosine(&vector(&long.response), &vector(&short)) > 0.9999, "{name}");
        assert!(long.grew < 250, "{name}: {} MiB", long.grew);
        assert!(long.computed < plain.computed * 2, "{name}: {:?}", long.computed);

        let refused = server.post("/embeddings", &json!({"texts": [text], "on_overflow": "error"}));
        let expected = if truncated { (400, json!("text_too_long")) } else { (200, Value::Null) };
        assert_eq!((refused.status, refused.json()["error"]["code"].clone()), expected, "{name}");
    }
    // Not in pieces either, of which it would have thousands.
    let body = json!({"texts": [".".repeat(LONG)], "on_overflow": "chunk_mean"});
    let pieces = embed(&server, &body);
    assert_eq!(pieces.response.status, 400);
    assert!(pieces.response.body.contains("the 4194304 bytes that are cut into pieces"));
    assert!(pieces.grew < 250 && pieces.computed < plain.computed * 2);
}

#[test]
fn a_million_texts_are_refused_before_they_take_memory() {
    let server = server(&[]);
    let texts = |field: &str, text: &str, count: usize| {
        format!("{{\"{field}\":[{}{text}]}}", format!("{text},").repeat(count - 1))
    };
    let (path, question) = question();
    // The last are as many as there can be in a body.
    for (on, field, text, count, status) in [
        ("/embeddings", "texts", "\"a\"", 1_000_000, 413),
        ("/embeddings", "input", "\"a\"", 1_000_000, 400),
        ("/v1/embeddings", "input", "\"a\"", 1_000_000, 400),
        ("/v1/embeddings", "input", "[]", 11_000_000, 400),
        ("/v1/embeddings", "input", "{\"text\":\"\"}", 2_000_000, 400),
        ("/embed", "inputs", "\"\"", 11_000_000, 422),
        ("/api/embed", "input", "\"\"", 11_000_000, 413),
        ("/embeddings", "texts", "\"\"", 11_000_000, 413),
    ] {
        let body = texts(field, text, count);
        let refused = outcome(&server, on, &body, (path, &question));
        assert_eq!(refused.response.status, status, "{on} {field}: {}", refused.response.body);
        let message =
            format!("{count} texts in one request; the limit is 10000: split them over several requests");
        assert!(refused.response.body.contains(&message), "{on} {field}: {}", refused.response.body);
        // What was sent, twice while it grows, and something for the other caller.
        let most = 64 + 3 * (body.len() as u64 >> 20);
        assert!(refused.grew < most, "{on} {field}: {} of {most} MiB", refused.grew);
    }
    assert_eq!(post(&server, "/embeddings", &texts("texts", "\"\"", 10_001)).status, 413);
}

#[test]
fn ten_thousand_texts_cost_ten_times_what_a_thousand_do_and_hold_nobody_up() {
    let server = server(&[]);
    let texts = |count: usize| json!({"texts": vec!["a short text"; count]});
    embed(&server, &texts(100));
    let thousand = embed(&server, &texts(1000)).computed;
    let many = embed(&server, &texts(10_000));
    assert!(many.computed < thousand * 15, "{thousand:?} and {:?}", many.computed);
    assert_eq!(many.response.json()["embeddings"].as_array().unwrap().len(), 10_000);
    // What is answered is 50 MB of JSON.
    assert!(many.grew < 300, "{} MiB", many.grew);
    let slowest = many.others.iter().max().unwrap();
    assert!(many.others.len() >= 5 && *slowest < many.took / 3, "{slowest:?} of {:?}", many.took);
}

#[test]
fn a_million_texts_that_are_allowed_leave_room_for_others_and_go_with_their_caller() {
    let tiny = Tiny::new().write();
    let model = format!("m={}", tiny.path().display());
    let server =
        Server::healthy(&["--model", &model, "--max-texts", "1000000", "--max-waiting-texts", "2000000"]);
    let (path, question) = question();
    server.forget_peak();
    let before = server.memory().now;
    let body = json!({"texts": vec!["a"; 1_000_000]}).to_string();
    let mut caller = TcpStream::connect(server.address).unwrap();
    let head = format!(
        "POST /embeddings HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    caller.write_all(head.as_bytes()).unwrap();
    caller.write_all(body.as_bytes()).unwrap();
    let waiting = || {
        let metrics = server.get("/metrics").body;
        let line =
            metrics.lines().find_map(|line| line.strip_prefix("embedding_waiting_texts{model=\"m\"} "));
        line.map_or(0, |count| count.parse::<usize>().unwrap())
    };
    let until = |is: &dyn Fn() -> bool, what: &str| {
        let begun = Instant::now();
        while !is() {
            assert!(begun.elapsed() < Duration::from_mins(1), "{what}");
            assert_eq!(server.post(path, &question).status, 200, "another caller");
        }
    };
    until(&|| waiting() > 100_000, "they do not get into line");
    let grew = server.memory().peak - before;
    println!("a million texts in line: {grew} MiB");
    assert!(grew < 1500, "{grew} MiB");
    drop(caller);
    until(&|| waiting() == 0, "they stay in line though nobody waits for them");
    // Nothing goes on in secret.
    std::thread::sleep(Duration::from_millis(200));
    let before = server.computed();
    std::thread::sleep(Duration::from_secs(1));
    let after = server.computed().saturating_sub(before);
    assert!(after < Duration::from_millis(300), "{after:?} computed for nobody");
}

#[test]
fn what_stands_before_every_text_does_not_cost_as_if_it_were_sent_with_each() {
    let server = server(&[]);
    let prompt = "word ".repeat(LONG / 5);
    let refused = embed(&server, &json!({"texts": vec!["a"; 1000], "prompt": prompt}));
    assert_eq!(refused.response.status, 400);
    assert_eq!(refused.response.json()["error"]["message"], "prompt has 10000000 bytes; the limit is 65536");
    assert!(refused.grew < 100, "{} MiB", refused.grew);
    let prompt = "word ".repeat(60_000 / 5);
    let allowed = embed(&server, &json!({"texts": vec!["a"; 50], "prompt": prompt}));
    assert_eq!(allowed.response.status, 200);
    let slowest = allowed.others.iter().max().unwrap();
    assert!(*slowest < allowed.took / 3, "{slowest:?} of {:?}", allowed.took);

    // A field's name is told in the error, but not all of it.
    let body = json!({"x".repeat(LONG): 1, "texts": ["a"]}).to_string();
    let refused = post(&server, "/embeddings", &body);
    assert_eq!(refused.status, 400);
    assert!(
        refused.body.starts_with("{\"error\":{\"message\":\"unknown field `xxx") && refused.body.len() < 2000
    );
}

#[test]
fn a_query_of_megabytes_is_tokenised_once_for_all_documents() {
    let model = format!("m={}", cross_encoder("one").display());
    let server = Server::healthy(&["--model", &model]);
    let question = ("/rerank", json!({"query": "a", "texts": ["b"]}));
    let rerank = |query: String, truncate: &str| {
        let body = json!({"query": query, "documents": vec!["a"; 500], "truncate": truncate}).to_string();
        let answer = outcome(&server, "/v2/rerank", &body, (question.0, &question.1));
        assert_eq!(answer.response.status, 200, "{}", answer.response.body);
        answer
    };
    // One that fills what the model takes.
    rerank("word ".repeat(1000), "END");
    for truncate in ["END", "START"] {
        let short = rerank("word ".repeat(1000), truncate);
        let long = rerank("word ".repeat(1_000_000), truncate);
        let scores = |answer: &Outcome| answer.response.json()["results"].clone();
        assert_eq!(scores(&long), scores(&short), "{truncate}");
        assert!(long.grew < 250, "{} MiB", long.grew);
        let most = short.computed * 4 + Duration::from_secs(1);
        assert!(long.computed < most, "{truncate}: {:?} of {most:?}", long.computed);
    }
}

#[test]
fn a_model_of_odd_sizes_is_served_and_weights_that_overflow_harm_no_other_text() {
    let odd = Tiny::sized(45, 5, 50).write();
    // Weights that are not finite are refused where they are read; with these, sums are not.
    let mut huge = Tiny::new();
    let words = huge.tensors.get_mut("embeddings.word_embeddings.weight").unwrap();
    // The token of "cat" alone: what does not have it has a vector.
    let cat = 4937 * words.shape[1];
    words.values[cat..cat + words.shape[1]].fill(f32::MAX);
    let huge = huge.write();
    let model = |name: &str, path: &std::path::Path| format!("{name}={}", path.display());
    let (odd, huge) = (model("odd", odd.path()), model("huge", huge.path()));
    let by_itself = if Machine::detect().kernels.is_empty() { "packed" } else { "fused" };
    for (chosen, implementation) in [("auto", by_itself), ("packed", "packed")] {
        let server = Server::healthy(&["--implementation", chosen, "--model", &odd, "--model", &huge]);
        let about = server.get("/models").json();
        for model in about["models"].as_array().unwrap() {
            assert_eq!(model["numerics"]["implementation"], implementation, "{model}");
        }
        let ask =
            |model: &str, text: &str| server.post("/embeddings", &json!({"texts": [text], "model": model}));
        for _ in 0..2 {
            assert_eq!(ask("odd", "a cat").status, 200);
            assert_eq!(ask("huge", "a dog").status, 200);
            let failed = ask("huge", "a cat");
            assert_eq!((failed.status, &failed.json()["error"]["code"]), (500, &json!("forward_failed")));
            assert!(failed.body.contains("values that are not finite"), "{}", failed.body);
        }
    }
}
