//! A language model that is asked whether a document answers a query ranks over HTTP, as its reference does.
#![allow(clippy::unwrap_used, reason = "a test that unwraps in vain fails, as it should")]

mod support;

use std::path::Path;

use serde_json::{Value, json};
use support::process::Server;

fn server() -> (Server, Value) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/families/qwen3-reranker");
    let reference = std::fs::read(folder.join("reference.json")).unwrap();
    let model = format!("judge={}", folder.display());
    (Server::healthy(&["--model", &model, "--dtype", "float32"]), serde_json::from_slice(&reference).unwrap())
}

#[test]
fn documents_are_ranked_by_the_answer_and_the_instruction_is_heard() {
    let (server, reference) = server();
    let entry = &reference["pairs"][1];
    let (query, document, score) =
        (&entry["pair"][0], &entry["pair"][1], entry["scores"][0].as_f64().unwrap());
    let other = reference["pairs"][2]["pair"][1].clone();
    let ask = |path: &str, more: Value| {
        let mut body = json!({"query": query, "documents": [other, document], "texts": [other, document]});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let answer = server.post(path, &body);
        assert_eq!(answer.status, 200, "{}", answer.body);
        answer.json()
    };
    let found = |answer: &Value| -> f64 {
        let ranks = answer.get("results").unwrap_or(answer).as_array().unwrap();
        let rank = ranks.iter().find(|rank| rank["index"] == 1).unwrap();
        rank.get("relevance_score").or(rank.get("score")).unwrap().as_f64().unwrap()
    };
    for path in ["/v2/rerank", "/v1/rerank", "/rerank"] {
        assert!((found(&ask(path, json!({}))) - score).abs() < 1e-4, "{path}");
        let same = ask(path, json!({"instruction": reference["instruction"]}));
        assert!((found(&same) - score).abs() < 1e-4, "{path}: its own instruction changes nothing");
        let told = ask(path, json!({"instruction": "Find what is about cats"}));
        assert!((found(&told) - score).abs() > 1e-4, "{path}: another one does");
    }
    let raw = found(&ask("/rerank", json!({"raw_scores": true})));
    let logits = entry["logits"].as_array().unwrap();
    let difference = logits[1].as_f64().unwrap() - logits[0].as_f64().unwrap();
    assert!((raw - difference).abs() < 1e-3, "{raw} for {difference}");
}

#[test]
fn a_text_alone_is_refused_and_what_is_cut_is_told() {
    let (server, _) = server();
    let alone = server.post("/predict", &json!({"inputs": "a cat"}));
    assert_eq!((alone.status, &alone.json()["error_type"]), (422, &json!("Validation")), "{}", alone.body);
    assert!(alone.body.contains("send pairs"), "{}", alone.body);
    let pair = server.post("/predict", &json!({"inputs": ["a cat", "a cat"]}));
    assert_eq!(pair.json()[0]["label"], "yes", "{}", pair.body);

    let long = "a cat sat ".repeat(200);
    let ask = |more: Value| {
        let mut body = json!({"query": "cat", "documents": ["a cat", long]});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        server.post("/v2/rerank", &body)
    };
    assert_eq!(ask(json!({})).header("x-truncated-inputs"), Some("1"));
    assert_eq!(ask(json!({"truncate": false})).status, 400, "refused where it must not be cut");
    let limited = ask(json!({"max_tokens_per_doc": 2, "truncate": false}));
    assert_eq!((limited.status, limited.header("x-truncated-inputs")), (200, Some("1")), "{}", limited.body);
    let scores: Vec<f64> = limited.json()["results"]
        .as_array()
        .unwrap()
        .iter()
        .map(|rank| rank["relevance_score"].as_f64().unwrap())
        .collect();
    assert!((scores[0] - scores[1]).abs() < 1e-6, "both begin alike: {scores:?}");
    // A query that leaves no room for a document is cut itself.
    let query = server.post("/v2/rerank", &json!({"query": long, "documents": ["a", "b"]}));
    assert_eq!((query.status, query.header("x-truncated-inputs")), (200, Some("2")), "{}", query.body);
}
