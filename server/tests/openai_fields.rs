//! What NVIDIA's NIM, Jina and Voyage added to OpenAI's route, with a fake model.
#![allow(clippy::unwrap_used, reason = "a test that unwraps in vain fails, as it should")]

mod support;

use std::sync::Arc;

use axum::body::Body;
use axum::http::{Request, Response, header};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use embedding_server::http::{self, Shared};
use embedding_server::model::fake::Fake;
use embedding_server::quantize::{NumberType, Numbers};
use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use support::{http_settings, offer, settings, shared};
use tower::ServiceExt as _;

fn server() -> Arc<Shared> {
    shared(&[("fake", Fake::new(4))], &settings(), http_settings())
}

async fn post(shared: &Arc<Shared>, path: &str, body: &Value) -> (Response<()>, Value) {
    let request = Request::post(path).header(header::CONTENT_TYPE, "application/json");
    let request = request.body(Body::from(body.to_string())).unwrap();
    let response = http::router(Arc::clone(shared)).oneshot(request).await.unwrap();
    let (head, body) = response.into_parts();
    let bytes = body.collect().await.unwrap().to_bytes();
    let body = serde_json::from_slice(&bytes).unwrap_or_else(|error| panic!("{error}: {bytes:?}"));
    (Response::from_parts(head, ()), body)
}

/// What `/v1/embeddings` answers for one text with these fields.
async fn ask(shared: &Arc<Shared>, text: &str, fields: &Value) -> (Response<()>, Value) {
    let mut body = json!({"input": text, "model": "fake"});
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    post(shared, "/v1/embeddings", &body).await
}

/// The vector of our own API.
async fn own(shared: &Arc<Shared>, text: &str) -> Value {
    let (_, mut body) = post(shared, "/embeddings", &json!({"texts": [text]})).await;
    body["embeddings"][0].take()
}

#[tokio::test]
async fn every_apis_word_for_a_type_of_input_reaches_the_models_prompt() {
    let shared = server();
    for (fields, text) in [
        (json!({"input_type": "query"}), "q: a"),
        (json!({"input_type": "passage"}), "p: a"),
        (json!({"input_type": "document"}), "p: a"),
        (json!({"input_type": null}), "a"),
        (json!({"task": "retrieval.query"}), "q: a"),
        (json!({"task": "retrieval.passage"}), "p: a"),
        (json!({"task": "text-matching"}), "a"),
        (json!({"task": "code.passage"}), "a"),
        (json!({"task": "retrieval.query", "input_type": "query"}), "q: a"),
    ] {
        let (_, answer) = ask(&shared, "a", &fields).await;
        assert_eq!(answer["data"][0]["embedding"], own(&shared, text).await, "{fields}");
    }
}

#[tokio::test]
async fn vectors_are_written_in_the_type_that_is_asked_for() {
    use NumberType::{Binary, Float, Int8, Ubinary, Uint8};
    let shared = server();
    let vector: Vec<f32> = serde_json::from_value(own(&shared, "a").await).unwrap();
    let numbers = |kind| json!(Numbers::of(vector.clone(), kind));
    let base64 = |kind| json!(STANDARD.encode(Numbers::of(vector.clone(), kind).bytes()));
    for (fields, expected) in [
        (json!({"output_dtype": "int8"}), numbers(Int8)),
        (json!({"output_dtype": "uint8"}), numbers(Uint8)),
        (json!({"output_dtype": "binary", "encoding_format": null}), numbers(Binary)),
        (json!({"output_dtype": "ubinary", "encoding_format": "base64"}), base64(Ubinary)),
        (json!({"embedding_type": "base64"}), base64(Float)),
        (json!({"embedding_type": "ubinary", "encoding_format": "float"}), numbers(Ubinary)),
        (json!({"embedding_type": ["int8"]}), numbers(Int8)),
    ] {
        let (_, answer) = ask(&shared, "a", &fields).await;
        let row = json!([{"object": "embedding", "index": 0, "embedding": expected}]);
        assert_eq!(answer["data"], row, "{fields}");
    }
}

#[tokio::test]
async fn length_and_norm_can_be_chosen_under_their_other_names() {
    let shared = server();
    let space = |dimensions, normalized| offer().space.space(dimensions, normalized).to_string();
    for (fields, dimensions, normalized) in [
        (json!({"output_dimension": 2}), 2, false),
        (json!({"output_dimension": 2, "dimensions": 2}), 2, false),
        (json!({"normalized": true}), 4, true),
        (json!({"normalized": false}), 4, false),
    ] {
        let (head, answer) = ask(&shared, "a", &fields).await;
        assert_eq!(answer["data"][0]["embedding"].as_array().unwrap().len(), dimensions, "{fields}");
        assert_eq!(head.headers()["x-embedding-space"], space(dimensions, normalized).as_str(), "{fields}");
    }
}

#[tokio::test]
async fn what_becomes_of_long_texts_can_be_said_in_every_apis_words() {
    let shared = server();
    let long = "a b c d e f g h i j";
    for (fields, kept) in [
        (json!({"truncate": "END"}), "a b c d e f g"),
        (json!({"truncate": "START"}), "d e f g h i j"),
        (json!({"truncate": true}), "a b c d e f g"),
        (json!({"truncation": true}), "a b c d e f g"),
        (json!({"truncation": true, "truncate": "END"}), "a b c d e f g"),
        (json!({}), "a b c d e f g"),
    ] {
        let (_, answer) = ask(&shared, long, &fields).await;
        assert_eq!(answer["data"][0]["embedding"], own(&shared, kept).await, "{fields}");
        assert_eq!(answer["usage"]["truncated_inputs"], 1, "{fields}");
    }
    for fields in [json!({"truncate": "NONE"}), json!({"truncate": false}), json!({"truncation": false})] {
        let (head, answer) = ask(&shared, long, &fields).await;
        assert_eq!(
            (head.status().as_u16(), &answer["error"]["code"]),
            (400, &json!("text_too_long")),
            "{fields}"
        );
    }
}

#[tokio::test]
async fn what_contradicts_itself_or_cannot_be_done_is_refused() {
    let shared = server();
    for (fields, param, message) in [
        (
            json!({"input_type": "query", "task": "retrieval.passage"}),
            "task",
            "input_type and task say two things: leave one of them out",
        ),
        (
            json!({"dimensions": 2, "output_dimension": 4}),
            "output_dimension",
            "dimensions and output_dimension say two things: leave one of them out",
        ),
        (
            json!({"truncate": "START", "truncation": true}),
            "truncation",
            "truncate and truncation say two things: leave one of them out",
        ),
        (
            json!({"embedding_type": "int8", "output_dtype": "float"}),
            "output_dtype",
            "embedding_type and output_dtype say two things: leave one of them out",
        ),
        (
            json!({"embedding_type": "ubinary", "encoding_format": "base64"}),
            "encoding_format",
            "encoding_format base64 is of floats, which embedding_type ubinary is not: send encoding_format float",
        ),
        (
            json!({"late_chunking": true}),
            "late_chunking",
            "late_chunking cannot be done here: each text is embedded by itself",
        ),
        (
            json!({"return_multivector": true}),
            "return_multivector",
            "return_multivector cannot be done here: the models make one vector a text",
        ),
        (
            json!({"output_dtype": "fp16"}),
            "output_dtype",
            "output_dtype: unknown variant `fp16`, expected one of",
        ),
        (
            json!({"embedding_type": ["float", "int8"]}),
            "embedding_type",
            "embedding_type: invalid length 2, expected one type: send a request for each",
        ),
        (json!({"task": "banana"}), "input_type", "input type \"banana\" is not known"),
        (json!({"output_dimension": 3}), "dimensions", "dimensions must be 2 or 4, not 3"),
    ] {
        let (head, answer) = ask(&shared, "a", &fields).await;
        let error = &answer["error"];
        assert_eq!((head.status().as_u16(), &error["param"]), (400, &json!(param)), "{fields}: {error}");
        assert!(error["message"].as_str().unwrap().starts_with(message), "{fields}: {error}");
    }
}

#[tokio::test]
async fn a_text_can_be_an_object_as_jinas_clients_write_it() {
    let shared = server();
    let body = json!({"input": [{"text": "a"}, "b"], "model": "fake"});
    let (_, objects) = post(&shared, "/v1/embeddings", &body).await;
    let (_, strings) = post(&shared, "/v1/embeddings", &json!({"input": ["a", "b"], "model": "fake"})).await;
    assert_eq!(objects, strings);
    let image = json!({"input": [{"image": "data:image/png;base64,AA=="}], "model": "fake"});
    let (head, error) = post(&shared, "/v1/embeddings", &image).await;
    assert_eq!(head.status(), 400);
    assert_eq!(error["error"]["param"], "image");
}
