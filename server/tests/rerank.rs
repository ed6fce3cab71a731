//! Rankings in the shapes of Cohere and Jina, of a fake cross-encoder; and the scores of a real one,
//! by every path that has them.
#![allow(clippy::unwrap_used, reason = "a test that unwraps in vain fails, as it should")]

mod support;

use std::sync::Arc;

use embedding_server::http::Shared;
use embedding_server::model::{Directory, Dtype, Preference};
use embedding_server::models::{self, Manner};
use serde_json::{Value, json};
use support::ask::{post, server};
use support::{cross_encoder, loaded_scoring, python, settings};

fn fake() -> Arc<Shared> {
    server(vec![("org/ranker", loaded_scoring(&["relevant"]))])
}

/// A request for a ranking, with more fields.
fn ask(more: &Value) -> Value {
    let mut body = json!({"model": "org/ranker", "query": "a b c", "documents": ["x", "c b a", "c"]});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

/// As it is written: the shortest decimals that are this f32.
fn sigmoid(logit: f32) -> Value {
    serde_json::from_str(&(1.0 / (1.0 + (-logit).exp())).to_string()).unwrap()
}

#[tokio::test]
async fn cohere_gets_its_shape() {
    let answer = post(&fake(), "/v2/rerank", ask(&json!({"priority": 1}))).await;
    assert_eq!(answer.header("x-truncated-inputs"), "0");
    assert_eq!(answer.header("x-embedding-space"), "", "scores are no vectors");
    let mut body = answer.ok();
    let id = body.as_object_mut().unwrap().remove("id").unwrap();
    assert_eq!(id.as_str().unwrap().len(), 36);
    assert_eq!(
        body,
        json!({
            "results": [
                {"index": 1, "relevance_score": sigmoid(3.0)},
                {"index": 2, "relevance_score": sigmoid(1.0)},
                {"index": 0, "relevance_score": 0.5},
            ],
            "meta": {"api_version": {"version": "2"}, "tokens": {"input_tokens": 20}},
        })
    );
    let top = ask(&json!({"top_n": 1, "return_documents": true}));
    let body = post(&fake(), "/v2/rerank", top).await.ok();
    let best = json!([{"index": 1, "relevance_score": sigmoid(3.0), "document": {"text": "c b a"}}]);
    assert_eq!(body["results"], best);
}

#[tokio::test]
async fn jina_gets_its_shape_and_so_does_who_has_lost_the_version_in_the_path() {
    let shared = fake();
    let documents = json!({"documents": ["x", {"text": "c b a", "title": "it"}], "top_n": 9});
    let expected = json!({
        "model": "org/ranker",
        "object": "list",
        "usage": {"prompt_tokens": 14, "total_tokens": 14, "truncated_inputs": 0},
        "results": [
            {"index": 1, "relevance_score": sigmoid(3.0), "document": {"text": "c b a", "title": "it"}},
            {"index": 0, "relevance_score": 0.5, "document": {"text": "x"}},
        ],
    });
    for path in ["/v1/rerank", "/rerank", "/models/org/ranker/rerank"] {
        assert_eq!(post(&shared, path, ask(&documents)).await.ok(), expected, "{path}");
    }
    let bare = post(&shared, "/v1/rerank", ask(&json!({"return_documents": false, "top_n": 1}))).await.ok();
    assert_eq!(bare["results"], json!([{"index": 1, "relevance_score": sigmoid(3.0)}]));
}

#[tokio::test]
async fn a_document_can_be_cut_before_it_meets_the_query_and_is_told_to_be() {
    let shared = fake();
    let long = "x x x a b c";
    let plain = post(&shared, "/v2/rerank", ask(&json!({"documents": [long, "a"]}))).await;
    assert_eq!(plain.header("x-truncated-inputs"), "0");
    assert_eq!(plain.ok()["results"][0], json!({"index": 0, "relevance_score": sigmoid(3.0)}));
    for (path, field) in [("/v2/rerank", "max_tokens_per_doc"), ("/v1/rerank", "max_doc_length")] {
        let cut = ask(&json!({"documents": [long, "a"], field: 4, "return_documents": false}));
        let answer = post(&shared, path, cut).await;
        assert_eq!(answer.header("x-truncated-inputs"), "1", "{path}");
        let body = answer.ok();
        let equal = json!([
            {"index": 0, "relevance_score": sigmoid(1.0)}, {"index": 1, "relevance_score": sigmoid(1.0)},
        ]);
        assert_eq!(body["results"], equal, "{path}");
        if path == "/v2/rerank" {
            let warnings = &body["meta"]["warnings"];
            assert!(warnings[0].as_str().unwrap().ends_with("were cut: 0"), "{warnings}");
        } else {
            assert_eq!(body["usage"]["truncated_inputs"], 1);
        }
    }
    let refused = ask(&json!({"documents": ["x ".repeat(30)], "truncation": false}));
    let refused = post(&shared, "/v1/rerank", refused).await;
    let message = "text 0 is longer than 12 tokens, which is all that the model takes";
    assert_eq!((refused.status.as_u16(), refused.body), (400, json!({"detail": message})));
}

#[tokio::test]
async fn what_cannot_be_done_is_refused_in_the_shape_of_each() {
    let shared = fake();
    for (more, status, message) in [
        (json!({"documents": []}), 400, "documents is empty: send at least one"),
        (json!({"query": null}), 400, "query: invalid type: null"),
        (json!({"documents": [1]}), 400, "expected a string, or an object whose `text` is one"),
        (json!({"documents": [{"title": "a"}]}), 400, "expected a string, or an object whose `text` is one"),
        (json!({"top_n": 0}), 400, "top_n must be at least 1"),
        (json!({"max_tokens_per_doc": 0}), 400, "max_tokens_per_doc must be at least 1"),
        (json!({"rank_fields": ["title"]}), 400, "rank_fields: documents are ranked by their text alone"),
        (json!({"max_chunks_per_doc": 10}), 400, "max_chunks_per_doc: documents are not cut into chunks"),
        (json!({"return_embeddings": true}), 400, "return_embeddings: a cross-encoder makes no vectors"),
        (json!({"model": "nobody"}), 404, "model \"nobody\" is not served here; served: org/ranker"),
        (json!({"query": "!fail"}), 500, "a fake failure"),
    ] {
        for (path, field) in [("/v1/rerank", "detail"), ("/v2/rerank", "message")] {
            let answer = post(&shared, path, ask(&more)).await;
            assert_eq!(answer.status, status, "{path} {more}: {}", answer.body);
            let found = answer.body[field].as_str().unwrap();
            assert!(found.contains(message), "{path} {more}: {found}");
        }
    }
    let fields =
        json!({"rank_fields": ["text"], "max_chunks_per_doc": 1, "return_embeddings": false, "model": null});
    post(&shared, "/v1/rerank", ask(&fields)).await.ok();
    let many = ask(&json!({"documents": vec!["a"; 101]}));
    let answer = post(&shared, "/v2/rerank", many.clone()).await;
    assert_eq!(answer.status, 400, "as Cohere has it");
    assert_eq!(post(&shared, "/v1/rerank", many).await.status, 413);
}

/// A server of the small real cross-encoder of that name.
fn real(name: &str) -> Arc<Shared> {
    let preference = Preference { dtype: Some(Dtype::Float32), ..settings().preference };
    let directory = Directory::read(&cross_encoder(name)).unwrap();
    server(vec![(name, models::load(directory, "test".into(), preference, &Manner::default()).unwrap())])
}

/// The pairs of the fixture, by their query, with the place of each.
fn queries() -> Vec<(String, Vec<(usize, String)>)> {
    let pairs: Vec<(String, String)> = serde_json::from_value(python()["pairs"].clone()).unwrap();
    let mut queries: Vec<(String, Vec<(usize, String)>)> = Vec::new();
    for (place, (query, document)) in pairs.into_iter().enumerate() {
        match queries.iter_mut().find(|(known, _)| *known == query) {
            Some((_, documents)) => documents.push((place, document)),
            None => queries.push((query, vec![(place, document)])),
        }
    }
    queries
}

#[tokio::test]
async fn a_real_cross_encoders_scores_are_pythons_by_every_path_that_has_them() {
    let shared = real("one");
    let python = python();
    let expected = |place: usize| python["one"]["scores"][place].as_f64().unwrap();
    let logit = |place: usize| python["one"]["logits"][place][0].as_f64().unwrap();
    for (query, documents) in queries() {
        let texts: Vec<_> = documents.iter().map(|(_, text)| text).collect();
        let place = |row: &Value| documents[usize::try_from(row["index"].as_u64().unwrap()).unwrap()].0;
        for (path, field, results, score) in [
            ("/v1/rerank", "documents", "/results", "relevance_score"),
            ("/v2/rerank", "documents", "/results", "relevance_score"),
            ("/rerank", "texts", "", "score"),
        ] {
            let body = post(&shared, path, json!({"query": query, field: texts})).await.ok();
            let rows = body.pointer(results).unwrap().as_array().unwrap();
            assert_eq!(rows.len(), texts.len());
            let scores: Vec<f64> = rows.iter().map(|row| row[score].as_f64().unwrap()).collect();
            assert!(scores.is_sorted_by(|one, other| one >= other), "{path}: {scores:?}");
            for (row, score) in rows.iter().zip(scores) {
                assert!((score - expected(place(row))).abs() < 1e-4, "{path} {query}: {row}");
            }
        }
        let raw = json!({"query": query, "texts": texts, "raw_scores": true});
        for row in post(&shared, "/rerank", raw).await.ok().as_array().unwrap() {
            assert!((row["score"].as_f64().unwrap() - logit(place(row))).abs() < 1e-4, "{query}: {row}");
        }
    }
}

#[tokio::test]
async fn a_real_classifiers_scores_are_pythons() {
    let shared = real("several");
    let python = python();
    let logits: Vec<Vec<f64>> = serde_json::from_value(python["several"]["logits"].clone()).unwrap();
    let labels = ["contradiction", "entailment", "neutral"];
    for (first, some) in python["pairs"].as_array().unwrap().chunks(10).enumerate() {
        let body = json!({"inputs": some, "raw_scores": true, "truncate": true});
        let answer = post(&shared, "/predict", body).await.ok();
        for (place, row) in answer.as_array().unwrap().iter().enumerate() {
            for (label, expected) in labels.iter().zip(&logits[first * 10 + place]) {
                let found = row.as_array().unwrap().iter().find(|entry| entry["label"] == *label).unwrap();
                assert!((found["score"].as_f64().unwrap() - expected).abs() < 1e-4, "{found}");
            }
        }
    }
    let left: Vec<Vec<f64>> = serde_json::from_value(python["several"]["logits_from_left"].clone()).unwrap();
    let last = python["pairs"].as_array().unwrap().len() - 1;
    let body = json!({"inputs": python["pairs"][last], "raw_scores": true, "truncation_direction": "Left"});
    let answer = post(&shared, "/predict", body).await.ok();
    let best = left[last].iter().copied().fold(f64::NEG_INFINITY, f64::max);
    assert!((answer[0]["score"].as_f64().unwrap() - best).abs() < 1e-4);
}
