//! Ollama's API with a fake model: what its clients send, and what they look for in answers.
#![allow(clippy::unwrap_used, reason = "a test that unwraps in vain fails, as it should")]

mod support;

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::{Request, Response};
use embedding_server::embedder::Limits;
use embedding_server::http::{self, Shared};
use embedding_server::model::fake::Fake;
use embedding_server::models::{Settings, State};
use embedding_server::options::Offer;
use embedding_server::scores::{Activation, Classifier, Kind};
use embedding_server::tokenize::Overflow;
use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use support::{http_settings, loaded, offer, serving, settings, shared};
use tower::ServiceExt as _;

/// A server of the fake model, called `e5`, with this offer.
fn server(offer: Offer) -> Arc<Shared> {
    server_of(Kind::Embedding, offer)
}

fn server_of(kind: Kind, offer: Offer) -> Arc<Shared> {
    let mut model = loaded(&Fake::new(4));
    (model.about.kind, model.about.offer) = (kind, offer);
    let (models, metrics) = serving(&settings(), [("e5", ["org/e5".to_owned()].as_slice(), model)]);
    Shared::new(models, metrics, http_settings())
}

async fn send(shared: &Arc<Shared>, request: Request<Body>) -> (Response<()>, Value) {
    let response = http::router(Arc::clone(shared)).oneshot(request).await.unwrap();
    let (head, body) = response.into_parts();
    let bytes = body.collect().await.unwrap().to_bytes();
    let body = serde_json::from_slice(&bytes).unwrap_or_else(|error| panic!("{error}: {bytes:?}"));
    (Response::from_parts(head, ()), body)
}

/// Without a content type, or with curl's, as Ollama's own examples send it.
async fn post(shared: &Arc<Shared>, path: &str, body: &Value) -> (Response<()>, Value) {
    send(shared, Request::post(path).body(Body::from(body.to_string())).unwrap()).await
}

async fn get(shared: &Arc<Shared>, path: &str) -> Value {
    let (head, body) = send(shared, Request::get(path).body(Body::empty()).unwrap()).await;
    assert_eq!(head.status(), 200, "{path}");
    body
}

/// The vectors of our own API, as they are written.
async fn own(shared: &Arc<Shared>, texts: &[&str]) -> Vec<Value> {
    let request = Request::post("/embeddings").header("content-type", "application/json");
    let body = json!({"texts": texts}).to_string();
    let (head, body) = send(shared, request.body(Body::from(body)).unwrap()).await;
    assert_eq!(head.status(), 200, "{body}");
    serde_json::from_value(body["embeddings"].clone()).unwrap()
}

/// The answer without its times, which are told in nanoseconds.
fn timeless(mut body: Value) -> Value {
    let fields = body.as_object_mut().unwrap();
    let total = fields.remove("total_duration").unwrap().as_u64().unwrap();
    let load = fields.remove("load_duration").unwrap().as_u64().unwrap();
    assert!(0 < load && load <= total && total < 60_000_000_000, "{load} of {total}");
    body
}

fn length(vector: &[f32]) -> f32 {
    vector.iter().map(|value| value * value).sum::<f32>().sqrt()
}

#[tokio::test]
async fn embed_takes_a_text_or_several_and_names_the_model_as_it_was_asked_for() {
    let shared = server(Offer { normalizes: true, ..offer() });
    let vectors = own(&shared, &["a b", "c"]).await;
    for (model, input, expected, tokens) in [
        (json!("e5"), json!("a b"), &vectors[..1], 3),
        (json!("e5:latest"), json!(["a b", "c"]), &vectors[..], 5),
        (json!("org/e5"), json!(["c"]), &vectors[1..], 2),
    ] {
        let body = json!({"model": model, "input": input, "keep_alive": "5m", "options": {"num_ctx": 9}});
        let (head, answer) = post(&shared, "/api/embed", &body).await;
        assert_eq!(
            timeless(answer),
            json!({"model": model, "embeddings": expected, "prompt_eval_count": tokens})
        );
        assert!(head.headers().contains_key("x-embedding-space"));
    }
    // A model's name can say what its texts are.
    let (_, query) = post(&shared, "/api/embed", &json!({"model": "e5:query", "input": "a"})).await;
    assert_eq!(query["embeddings"], json!(own(&shared, &["q: a"]).await));
    // No text asks whether the model is there.
    for input in [json!([]), json!(""), Value::Null] {
        let (head, answer) = post(&shared, "/api/embed", &json!({"model": "e5", "input": input})).await;
        assert_eq!(timeless(answer), json!({"model": "e5", "embeddings": [], "prompt_eval_count": 0}));
        assert!(head.headers().contains_key("x-embedding-space"));
    }
    for (path, body) in [("/api/embed", json!({"input": []})), ("/api/embeddings", json!({}))] {
        let ask = Request::post(path).header("x-expect-embedding-space", "es1-0");
        let (head, _) = send(&shared, ask.body(Body::from(body.to_string())).unwrap()).await;
        assert_eq!(head.status(), 412, "{path}");
    }
}

#[tokio::test]
async fn embed_answers_vectors_of_length_one_and_the_older_path_those_of_the_model() {
    // Of a model whose vectors are shortened without being made unit vectors again.
    let shared = server(offer());
    let (_, answer) =
        post(&shared, "/api/embed", &json!({"model": "e5", "input": "a", "dimensions": 2})).await;
    let shorter: Vec<f32> = serde_json::from_value(answer["embeddings"][0].clone()).unwrap();
    assert_eq!(shorter.len(), 2);
    assert!((length(&shorter) - 1.0).abs() < 1e-6);
    for dimensions in [0, -1] {
        let body = json!({"model": "e5", "input": "a", "dimensions": dimensions});
        let (_, answer) = post(&shared, "/api/embed", &body).await;
        assert_eq!(answer["embeddings"][0].as_array().unwrap().len(), 4);
    }

    let (new, _) = post(&shared, "/api/embed", &json!({"model": "e5", "input": "a"})).await;
    let (old, answer) = post(&shared, "/api/embeddings", &json!({"model": "e5", "prompt": "a"})).await;
    assert_eq!(answer, json!({"embedding": own(&shared, &["a"]).await[0]}));
    // Each says which space its vectors are of.
    let space = |normalized| offer().space.space(4, normalized).to_string();
    assert_eq!(new.headers()["x-embedding-space"], space(true).as_str());
    assert_eq!(old.headers()["x-embedding-space"], space(false).as_str());
    let (_, answer) = post(&shared, "/api/embeddings", &json!({"model": "e5", "prompt": ""})).await;
    assert_eq!(answer, json!({"embedding": []}));
}

#[tokio::test]
async fn long_texts_are_cut_unless_truncate_is_false_or_the_server_is_told_otherwise() {
    let shared = server(Offer { normalizes: true, overflow: Overflow::Error, ..offer() });
    let long = "a b c d e f g h i j";
    let (head, answer) =
        post(&shared, "/api/embed", &json!({"model": "e5", "input": long, "truncate": true})).await;
    assert_eq!(answer["embeddings"], json!(own(&shared, &["a b c d e f g"]).await));
    assert_eq!(head.headers()["x-truncated-inputs"], "1");
    for truncate in [json!(false), Value::Null] {
        let body = json!({"model": "e5", "input": long, "truncate": truncate});
        let (head, error) = post(&shared, "/api/embed", &body).await;
        assert_eq!(head.status(), 400);
        let message = "the input length exceeds the context length: text 0 is longer than 8 tokens, which is all \
                       that the model takes";
        assert_eq!(error, json!({"error": message}));
    }
}

#[tokio::test]
async fn clients_that_look_first_find_models_and_the_version() {
    let shared = server(Offer { normalizes: true, ..offer() });
    let details = json!({
        "parent_model": "", "format": "safetensors", "family": "fake", "families": ["fake"], "parameter_size": "",
        "quantization_level": "F32", "context_length": 8, "embedding_length": 4,
    });
    let mut tags = get(&shared, "/api/tags").await;
    let digest = tags["models"][0].as_object_mut().unwrap().remove("digest").unwrap();
    assert_eq!(digest.as_str().unwrap().len(), 64, "{digest}");
    assert_eq!(
        tags,
        json!({"models": [{
            "name": "e5:latest", "model": "e5:latest", "modified_at": "1970-01-01T00:00:00Z", "size": 0,
            "details": details, "capabilities": ["embedding"],
        }]})
    );
    assert_eq!(get(&shared, "/api/version").await, json!({"version": "0.11.11"}));
    for body in [json!({"model": "e5"}), json!({"name": "e5:latest"})] {
        let (_, show) = post(&shared, "/api/show", &body).await;
        assert_eq!(
            show,
            json!({
                "details": details,
                "model_info": {"general.architecture": "fake", "fake.context_length": 8, "fake.embedding_length": 4},
                "capabilities": ["embedding"],
                "modified_at": "1970-01-01T00:00:00Z",
            })
        );
    }
    shared
        .models
        .set(&shared.models.slot("e5").unwrap(), State::Loading { step: "reading its files".into() });
    assert_eq!(get(&shared, "/api/tags").await, json!({"models": []}));
    let (head, error) = post(&shared, "/api/embed", &json!({"model": "e5", "input": []})).await;
    assert_eq!(head.status(), 503);
    assert_eq!(error, json!({"error": "model \"e5\" is still loading: reading its files"}));
}

#[tokio::test]
async fn a_model_that_makes_no_vectors_is_no_model_of_this_api() {
    let classifier = Classifier { labels: vec!["LABEL_0".into()], activation: Activation::Sigmoid };
    let shared = server_of(Kind::CrossEncoder(classifier), offer());
    assert_eq!(get(&shared, "/api/tags").await, json!({"models": []}));
    for (path, body) in [
        ("/api/embed", json!({"model": "e5", "input": "a"})),
        ("/api/embed", json!({"model": "e5"})),
        ("/api/embeddings", json!({"model": "e5", "prompt": "a"})),
        ("/api/show", json!({"model": "e5"})),
    ] {
        let (head, error) = post(&shared, path, &body).await;
        assert_eq!(head.status(), 400, "{path}: {error}");
        assert!(error["error"].as_str().unwrap().contains("makes no vectors"), "{path}: {error}");
    }
}

#[tokio::test]
async fn every_mistake_is_told_in_ollamas_shape_with_its_status() {
    let shared = server(offer());
    let unknown = "model \"x:7b\" not found; this server cannot pull models, it serves e5";
    for (path, body, status, message) in [
        ("/api/embed", json!({"model": "x:7b", "input": "a"}), 404, unknown),
        ("/api/embed", json!({"model": "x:7b"}), 404, unknown),
        ("/api/embeddings", json!({"model": "x:7b"}), 404, unknown),
        ("/api/show", json!({"model": "x:7b"}), 404, unknown),
        (
            "/api/embed",
            json!({"model": "e5", "input": 1}),
            400,
            "input: invalid type: integer `1`, expected a string",
        ),
        ("/api/embed", json!({"model": "e5", "input": ["a", 1]}), 400, "input[1]: invalid type: integer `1`"),
        (
            "/api/embed",
            json!({"model": "e5", "input": "a", "dimensions": 3}),
            400,
            "dimensions must be 2 or 4, not 3",
        ),
        ("/api/embeddings", json!({"model": "e5", "prompt": ["a"]}), 400, "prompt: invalid type: sequence"),
        ("/api/embed", json!(["a"]), 400, "the request body must be a JSON object"),
        ("/api/embed", json!({"model": "e5", "input": "!fail"}), 500, "a fake failure"),
    ] {
        let (head, error) = post(&shared, path, &body).await;
        assert_eq!(head.status(), status, "{path} {body}: {error}");
        let fields: Vec<_> = error.as_object().unwrap().keys().collect();
        assert_eq!(fields, ["error"], "{path} {body}");
        assert!(error["error"].as_str().unwrap().contains(message), "{path} {body}: {error}");
    }
    // A busy server is 503 there.
    let limits = Limits { max_texts: 10, max_waiting_texts: 10 };
    let fake = Fake::new(4).slow(Duration::from_millis(200));
    let busy = shared_of(&fake, limits);
    let body = json!({"model": "fake", "input": vec!["a"; 6]});
    let (first, (head, error)) =
        tokio::join!(post(&busy, "/api/embed", &body), post(&busy, "/api/embed", &body));
    assert_eq!((first.0.status().as_u16(), head.status().as_u16()), (200, 503));
    assert_eq!(error, json!({"error": "too many texts are waiting; try again in 1 s"}));
}

fn shared_of(fake: &Fake, limits: Limits) -> Arc<Shared> {
    shared(&[("fake", fake.clone())], &Settings { limits, ..settings() }, http_settings())
}
