//! What requests may ask of their vectors, on the routes of the project's own API and OpenAI's.
#![allow(clippy::unwrap_used, reason = "a test that unwraps in vain fails, as it should")]

mod support;

use std::sync::Arc;

use axum::body::Body;
use axum::http::{Request, Response, header};
use embedding_server::http::{self, Shared};
use embedding_server::model::fake::Fake;
use embedding_server::options::Offer;
use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use support::{cosine, http_settings, loaded, offer, serving, settings};
use tower::ServiceExt as _;

/// A server of the fake model, called `e5`, with this offer.
fn server(offer: Offer) -> Arc<Shared> {
    let aliases = ["org/e5".to_owned(), "e5:exact".to_owned()];
    let mut model = loaded(&Fake::new(4));
    model.about.offer = offer;
    let (models, metrics) = serving(&settings(), [("e5", aliases.as_slice(), model)]);
    Shared::new(models, metrics, http_settings())
}

async fn send(shared: &Arc<Shared>, request: Request<Body>) -> (Response<()>, Value) {
    let response = http::router(Arc::clone(shared)).oneshot(request).await.unwrap();
    let (head, body) = response.into_parts();
    let bytes = body.collect().await.unwrap().to_bytes();
    let body = serde_json::from_slice(&bytes).unwrap_or_else(|error| panic!("{error}: {bytes:?}"));
    (Response::from_parts(head, ()), body)
}

fn request(path: &str, body: &Value) -> Request<Body> {
    let request = Request::post(path).header(header::CONTENT_TYPE, "application/json");
    request.body(Body::from(body.to_string())).unwrap()
}

async fn post(shared: &Arc<Shared>, path: &str, body: Value) -> (Response<()>, Value) {
    send(shared, request(path, &body)).await
}

/// The vector that it answers in our shape.
async fn vector(shared: &Arc<Shared>, body: Value) -> Vec<f32> {
    let (head, body) = post(shared, "/embeddings", body).await;
    assert_eq!(head.status(), 200, "{body}");
    serde_json::from_value(body["embeddings"][0].clone()).unwrap()
}

#[tokio::test]
async fn a_type_of_input_reaches_the_models_prompt_by_every_way_there_is() {
    let shared = server(offer());
    let query = vector(&shared, json!({"texts": ["q: who"]})).await;
    let plain = vector(&shared, json!({"texts": ["who"]})).await;
    assert_ne!(query, plain);
    for body in [
        json!({"texts": ["who"], "input_type": "query"}),
        json!({"texts": ["who"], "input_type": "search_query"}),
        json!({"texts": ["who"], "prompt_name": "query"}),
        json!({"texts": ["who"], "prompt": "q: "}),
        json!({"texts": ["who"], "model": "e5:query"}),
        json!({"texts": ["who"], "model": "e5-query"}),
        json!({"texts": ["who"], "model": "e5-query:latest"}),
        json!({"texts": ["who"], "model": "org/e5:query"}),
        // It has the prompt already.
        json!({"texts": ["q: who"], "model": "e5:query"}),
    ] {
        assert_eq!(vector(&shared, body.clone()).await, query, "{body}");
    }
    for model in ["e5", "org/e5", "e5:latest", "e5:exact", "e5:exact:latest"] {
        assert_eq!(vector(&shared, json!({"texts": ["who"], "model": model})).await, plain, "{model}");
    }
    let passage = json!({"input": "who", "model": "e5", "input_type": "passage"});
    let (_, body) = post(&shared, "/v1/embeddings", passage).await;
    let passage: Vec<f32> = serde_json::from_value(body["data"][0]["embedding"].clone()).unwrap();
    assert_eq!(passage, vector(&shared, json!({"texts": ["p: who"]})).await);

    let (_, body) =
        post(&shared, "/embeddings", json!({"texts": ["q: a", "b"], "input_type": "query"})).await;
    assert_eq!(body["prompt_name"], "query");
    assert_eq!(body["had_prompt"], json!([0]));
    let metrics = shared.metrics.encode().unwrap();
    assert!(metrics.contains("embedding_texts_with_prompt_total{model=\"e5\"} 2"), "{metrics}");

    for model in ["e5:banana", "e5-latest", "other:query", "e5:query:query", ":query"] {
        let (head, body) = post(&shared, "/embeddings", json!({"texts": ["who"], "model": model})).await;
        assert_eq!(head.status(), 404, "{model}: {body}");
    }
}

#[tokio::test]
async fn what_becomes_of_a_long_text_can_be_chosen_and_is_told() {
    let shared = server(Offer { normalizes: true, ..offer() });
    let long = "a b c d e f g h i j k l";
    let ask = |how: &str| json!({"texts": ["short", long], "on_overflow": how});
    let (head, cut) = post(&shared, "/embeddings", ask("truncate")).await;
    assert_eq!((&cut["truncated"], &cut["tokens"]), (&json!([1]), &json!([2, 8])));
    assert_eq!(head.headers()["x-truncated-inputs"], "1");
    let (_, default) = post(&shared, "/embeddings", json!({"texts": ["short", long]})).await;
    assert_eq!(default, cut);

    let (head, error) = post(&shared, "/embeddings", ask("error")).await;
    assert_eq!((head.status().as_u16(), &error["error"]["code"]), (400, &json!("text_too_long")));
    let message = error["error"]["message"].as_str().unwrap();
    assert_eq!(message, "text 1 is longer than 8 tokens, which is all that the model takes");

    let (head, pieces) = post(&shared, "/embeddings", ask("chunk_mean")).await;
    assert_eq!((&pieces["truncated"], &pieces["chunked"]), (&json!([]), &json!([1])));
    assert_eq!(head.headers()["x-truncated-inputs"], "0");
    // Two pieces: seven words and five, each with the special token.
    assert_eq!(pieces["tokens"], json!([2, 14]));
    let one = vector(&shared, json!({"texts": ["a b c d e f g"]})).await;
    let other = vector(&shared, json!({"texts": ["h i j k l"]})).await;
    let mean: Vec<f32> = one.iter().zip(&other).map(|(a, b)| 8.0 * a + 6.0 * b).collect();
    let found: Vec<f32> = serde_json::from_value(pieces["embeddings"][1].clone()).unwrap();
    assert!(cosine(&mean, &found) > 0.999_999);
    assert!((found.iter().map(|value| value * value).sum::<f32>() - 1.0).abs() < 1e-5);

    let (_, usage) = post(&shared, "/v1/embeddings", json!({"input": ["short", long]})).await;
    assert_eq!(usage["usage"], json!({"prompt_tokens": 10, "total_tokens": 10, "truncated_inputs": 1}));
    let metrics = shared.metrics.encode().unwrap();
    assert!(metrics.contains("embedding_chunked_texts_total{model=\"e5\"} 1"), "{metrics}");
    let (head, body) = post(&shared, "/embeddings", ask("cut")).await;
    assert_eq!((head.status().as_u16(), &body["error"]["param"]), (400, &json!("on_overflow")), "{body}");
}

#[tokio::test]
async fn every_answer_with_vectors_names_its_space_and_none_is_of_another_than_expected() {
    let shared = server(Offer { normalizes: true, ..offer() });
    let (head, body) = post(&shared, "/embeddings", json!({"texts": ["a"]})).await;
    let space = body["space"].as_str().unwrap();
    assert_eq!(head.headers()["x-embedding-space"], space);
    let (head, _) = post(&shared, "/v1/embeddings", json!({"input": "a"})).await;
    assert_eq!(head.headers()["x-embedding-space"], space);
    let (head, _) = post(&shared, "/v1/embeddings", json!({"input": "a", "dimensions": 2})).await;
    let shorter = head.headers()["x-embedding-space"].to_str().unwrap();
    assert_ne!(shorter, space);

    for path in ["/embeddings", "/v1/embeddings"] {
        let body = if path == "/embeddings" { json!({"texts": ["a"]}) } else { json!({"input": "a"}) };
        for (expected, status) in [(space, 200), (shorter, 412), ("es1-0", 412)] {
            let mut request = request(path, &body);
            request.headers_mut().insert("x-expect-embedding-space", expected.parse().unwrap());
            let (head, body) = send(&shared, request).await;
            assert_eq!(head.status(), status, "{path} {expected}: {body}");
            if status == 412 {
                let error = body["error"]["message"].as_str().unwrap();
                assert!(error.contains(space) && error.contains(expected), "{error}");
            }
        }
    }
    let (head, _) = post(&shared, "/embeddings", json!({"texts": ["a"], "expected_space": "es1-0"})).await;
    assert_eq!(head.status(), 412);
}

#[tokio::test]
async fn shortened_vectors_have_length_one_again() {
    let shared = server(Offer { normalizes: true, ..offer() });
    let whole = vector(&shared, json!({"texts": ["a"]})).await;
    let half = vector(&shared, json!({"texts": ["a"], "dimensions": 2})).await;
    assert!(cosine(&half, &whole[..2]) > 0.999_999);
    assert!((half.iter().map(|value| value * value).sum::<f32>() - 1.0).abs() < 1e-6);
}

#[tokio::test]
async fn a_client_whose_base_url_lacks_v1_gets_openais_shape() {
    let shared = server(offer());
    let body = json!({"input": ["a", "b"], "model": "e5", "user": "me"});
    let (_, with) = post(&shared, "/v1/embeddings", body.clone()).await;
    let (_, without) = post(&shared, "/embeddings", body).await;
    assert_eq!((&with, with["object"].as_str()), (&without, Some("list")));
    let (head, _) = post(&shared, "/embeddings", json!({"input": "a", "texts": ["a"]})).await;
    assert_eq!(head.status(), 400);
    // And OpenAI's status, which is another one than ours.
    for path in ["/v1/embeddings", "/embeddings"] {
        let (head, error) = post(&shared, path, json!({"input": vec!["a"; 101]})).await;
        assert_eq!(
            (head.status().as_u16(), &error["error"]["code"]),
            (400, &json!("too_many_texts")),
            "{path}"
        );
    }
}

#[tokio::test]
async fn a_server_that_wants_to_know_what_texts_are_refuses_those_of_which_nothing_is_said() {
    let shared = server(Offer { require_input_type: true, ..offer() });
    let (head, body) = post(&shared, "/v1/embeddings", json!({"input": "a"})).await;
    assert_eq!((head.status().as_u16(), &body["error"]["code"]), (422, &json!("input_type_missing")));
    let (head, _) = post(&shared, "/v1/embeddings", json!({"input": "a", "model": "e5:query"})).await;
    assert_eq!(head.status(), 200);
}
