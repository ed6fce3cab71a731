//! What holds on every path that has vectors or scores, whatever API it is of.
#![allow(clippy::unwrap_used, reason = "a test that unwraps in vain fails, as it should")]

mod support;

use std::sync::Arc;

use embedding_server::http::Shared;
use embedding_server::model::fake::Fake;
use embedding_server::models::Loaded;
use embedding_server::options::Offer;
use serde_json::{Value, json};
use support::ask::{post, request, send, server};
use support::{loaded, loaded_scoring, offer};

/// The paths that answer vectors or what is made of them, each with a body for a model and a text.
fn with_vectors(model: &str, text: &str) -> Vec<(String, Value)> {
    let inputs = json!({"model": model, "inputs": text});
    let similar = json!({"model": model, "inputs": {"source_sentence": text, "sentences": [text]}});
    [
        ("/embeddings", json!({"model": model, "texts": [text]})),
        ("/embeddings", json!({"model": model, "input": text})),
        ("/v1/embeddings", json!({"model": model, "input": text})),
        ("/v1/embed", json!({"model": model, "texts": [text]})),
        ("/v2/embed", json!({"model": model, "texts": [text], "input_type": "query"})),
        ("/api/embed", json!({"model": model, "input": text})),
        ("/api/embeddings", json!({"model": model, "prompt": text})),
        ("/embed", inputs.clone()),
        ("/embed_all", inputs.clone()),
        ("/similarity", similar.clone()),
        ("/", inputs.clone()),
        ("/", similar),
        ("/invocations", inputs),
        (&format!("/models/{model}/embed"), json!({"inputs": text})),
    ]
    .map(|(path, body)| (path.to_owned(), body))
    .into()
}

/// The paths that answer scores, in the same way.
fn with_scores(model: &str, text: &str) -> Vec<(String, Value)> {
    let rank = json!({"model": model, "query": text, "texts": [text]});
    let documents = json!({"model": model, "query": text, "documents": [text]});
    [
        ("/rerank", rank.clone()),
        ("/rerank", documents.clone()),
        ("/v1/rerank", documents.clone()),
        ("/v2/rerank", documents),
        ("/predict", json!({"model": model, "inputs": text})),
        (&format!("/models/{model}/rerank"), rank),
    ]
    .map(|(path, body)| (path.to_owned(), body))
    .into()
}

fn vectors() -> Arc<Shared> {
    server(vec![("e5", loaded(&Fake::new(4)))])
}

fn scores() -> Arc<Shared> {
    server(vec![("ranker", loaded_scoring(&["relevant"]))])
}

/// Both kinds of server, with what can be asked of them.
fn all(model: Option<&str>, text: &str) -> [(Arc<Shared>, Vec<(String, Value)>); 2] {
    [
        (vectors(), with_vectors(model.unwrap_or("e5"), text)),
        (scores(), with_scores(model.unwrap_or("ranker"), text)),
    ]
}

#[tokio::test]
async fn an_unknown_model_is_404() {
    for (shared, asks) in all(Some("nobody"), "a") {
        for (path, body) in asks {
            let answer = post(&shared, &path, body).await;
            assert_eq!(answer.status, 404, "{path}: {}", answer.body);
            assert!(answer.body.to_string().contains("nobody"), "{path}: {}", answer.body);
        }
    }
}

#[tokio::test]
async fn nothing_is_answered_of_another_space_than_is_expected() {
    for (shared, asks) in all(None, "a") {
        for (path, body) in asks {
            let mut asked = request(&path, body.to_string());
            asked.headers_mut().insert("x-expect-embedding-space", "es1-0".parse().unwrap());
            let refused = send(&shared, asked).await;
            assert_eq!(refused.status, 412, "{path} {body}: {}", refused.body);
            assert!(refused.body.to_string().contains("es1-0"), "{path}: {}", refused.body);

            let plain = post(&shared, &path, body.clone()).await;
            let space = plain.header("x-embedding-space");
            if space.is_empty() {
                continue;
            }
            assert!(refused.body.to_string().contains(space), "{path}: both are named: {}", refused.body);
            let mut asked = request(&path, body.to_string());
            asked.headers_mut().insert("x-expect-embedding-space", space.parse().unwrap());
            assert_eq!(send(&shared, asked).await.status, 200, "{path}");
        }
    }
}

#[tokio::test]
async fn vectors_name_their_space_and_every_answer_says_how_many_texts_were_cut() {
    for (shared, asks) in all(None, "a b c d e f g h i j k l m n o") {
        for (path, body) in asks {
            let answer = post(&shared, &path, body.clone()).await;
            let cut: usize = answer.header("x-truncated-inputs").parse().unwrap();
            assert!(cut > 0, "{path} {body}");
            let scores = ["rerank", "predict"].iter().any(|end| path.ends_with(end));
            assert_eq!(answer.header("x-embedding-space").is_empty(), scores, "{path} {body}");
            answer.ok();
        }
    }
}

#[tokio::test]
async fn a_models_name_can_say_what_texts_are_where_the_server_wants_to_know() {
    let Loaded { models: handles, tokenizer, mut about } = loaded(&Fake::new(4));
    about.offer = Offer { require_input_type: true, ..offer() };
    let shared = server(vec![("e5", Loaded { models: handles, tokenizer, about })]);
    for (path, body) in with_vectors("e5", "a") {
        // Cohere's version 2 insists on it for everybody.
        let status = if path == "/v2/embed" { 200 } else { 422 };
        let answer = post(&shared, &path, body).await;
        assert_eq!(answer.status, status, "{path}: {}", answer.body);
    }
    for name in ["e5:query", "e5-query", "e5:query:latest"] {
        for (path, body) in with_vectors(name, "a") {
            let answer = post(&shared, &path, body).await;
            assert_eq!(answer.status, 200, "{name} {path}: {}", answer.body);
        }
    }
}

#[tokio::test]
async fn a_prompt_is_chosen_by_every_field_that_a_path_has_for_it() {
    let shared = vectors();
    let expected = post(&shared, "/embed", json!({"inputs": "q: a"})).await.ok();
    let vector = |path: &'static str, body: Value, place: &'static str| {
        let shared = Arc::clone(&shared);
        async move { post(&shared, path, body).await.ok().pointer(place).unwrap().clone() }
    };
    for (path, text, place) in [
        ("/embeddings", json!({"texts": ["a"]}), "/embeddings/0"),
        ("/v1/embeddings", json!({"input": "a", "normalized": true}), "/data/0/embedding"),
        ("/embed", json!({"inputs": "a"}), "/0"),
    ] {
        for (field, value) in [("input_type", "search_query"), ("prompt_name", "query"), ("prompt", "q: ")] {
            if (path, field) == ("/embed", "prompt") {
                continue;
            }
            let mut body = text.clone();
            body[field] = value.into();
            let found: Vec<f32> = serde_json::from_value(vector(path, body, place).await).unwrap();
            let expected: Vec<f32> = serde_json::from_value(expected[0].clone()).unwrap();
            assert!(support::cosine(&found, &expected) > 0.999_999, "{path} {field}");
        }
    }
    let similar = json!({
        "inputs": {"source_sentence": "a", "sentences": ["q: a"]}, "parameters": {"input_type": "query"},
    });
    let cosine = vector("/similarity", similar, "/0").await.as_f64().unwrap();
    assert!(cosine > 0.999_999, "{cosine}");
    for path in ["/tokenize", "/embed_all"] {
        let prompted = post(&shared, path, json!({"inputs": "a", "input_type": "query"})).await.ok();
        assert_eq!(prompted, post(&shared, path, json!({"inputs": "q: a"})).await.ok(), "{path}");
    }
}
