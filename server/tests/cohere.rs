//! Cohere's API with a fake model: what its clients send, and what they look for in answers.
#![allow(clippy::unwrap_used, reason = "a test that unwraps in vain fails, as it should")]

mod support;

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::{Request, Response, header};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use embedding_server::embedder::Limits;
use embedding_server::http::{self, Shared};
use embedding_server::model::fake::Fake;
use embedding_server::models::Settings;
use embedding_server::options::Offer;
use embedding_server::quantize::{NumberType, Numbers};
use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use support::{http_settings, in_service, loaded, offer, settings, shared};
use tower::ServiceExt as _;

fn server() -> Arc<Shared> {
    shared(&[("fake", Fake::new(4))], &settings(), http_settings())
}

/// A server of a model with this offer.
fn server_of(offer: Offer) -> Arc<Shared> {
    let mut model = loaded(&Fake::new(4));
    model.about.offer = offer;
    let (models, metrics) = in_service("fake", model);
    Shared::new(models, metrics, http_settings())
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

/// The vectors of our own API, as they are written.
async fn own(shared: &Arc<Shared>, body: Value) -> Value {
    let (head, mut body) = post(shared, "/embeddings", &body).await;
    assert_eq!(head.status(), 200, "{body}");
    body["embeddings"].take()
}

/// What has to be in every answer, and is another one in each.
fn without_id(mut body: Value) -> Value {
    let id = body.as_object_mut().unwrap().remove("id").unwrap();
    assert_eq!(id.as_str().unwrap().len(), 36, "{id}");
    body
}

#[tokio::test]
async fn version_2_answers_by_type_and_says_what_it_cost() {
    let shared = server();
    let body =
        json!({"model": "fake", "texts": ["a b", "c"], "input_type": "search_document", "priority": 3});
    let (head, answer) = post(&shared, "/v2/embed", &body).await;
    let own = own(&shared, json!({"texts": ["p: a b", "p: c"]})).await;
    assert_eq!(
        without_id(answer),
        json!({
            "texts": ["a b", "c"],
            "embeddings": {"float": own},
            "meta": {"api_version": {"version": "2"}, "billed_units": {"input_tokens": 7}},
            "response_type": "embeddings_by_type",
        })
    );
    assert_eq!(head.headers()["x-truncated-inputs"], "0");
    assert!(head.headers().contains_key("x-embedding-space"));
}

#[tokio::test]
async fn every_type_of_number_is_made_of_the_same_vector() {
    let shared = server();
    let types = json!(["float", "int8", "uint8", "binary", "ubinary", "base64"]);
    let body = json!({"model": "fake", "texts": ["a", "b"], "input_type": "classification", "embedding_types": types});
    let (_, answer) = post(&shared, "/v2/embed", &body).await;
    let own = own(&shared, json!({"texts": ["a", "b"]})).await;
    let vectors: Vec<Vec<f32>> = serde_json::from_value(own.clone()).unwrap();
    let all = |kind| vectors.iter().map(|vector| Numbers::of(vector.clone(), kind)).collect::<Vec<_>>();
    let base64 = vectors.iter().map(|vector| STANDARD.encode(Numbers::Float(vector.clone()).bytes()));
    assert_eq!(
        answer["embeddings"],
        json!({
            "float": own,
            "int8": all(NumberType::Int8),
            "uint8": all(NumberType::Uint8),
            "binary": all(NumberType::Binary),
            "ubinary": all(NumberType::Ubinary),
            "base64": base64.collect::<Vec<_>>(),
        })
    );
    // Integers of a text do not depend on what it came with.
    let alone =
        json!({"model": "fake", "texts": ["b"], "input_type": "classification", "embedding_types": ["int8"]});
    let (_, alone) = post(&shared, "/v2/embed", &alone).await;
    assert_eq!(alone["embeddings"], json!({"int8": [answer["embeddings"]["int8"][1]]}));
}

#[tokio::test]
async fn the_older_version_answers_plain_floats_unless_types_are_named() {
    let shared = server();
    let own = own(&shared, json!({"texts": ["a"]})).await;
    let (_, answer) = post(&shared, "/v1/embed", &json!({"texts": ["a"]})).await;
    assert_eq!(
        without_id(answer),
        json!({
            "texts": ["a"],
            "embeddings": own,
            "meta": {"api_version": {"version": "1"}, "billed_units": {"input_tokens": 2}},
            "response_type": "embeddings_floats",
        })
    );
    let (_, answer) =
        post(&shared, "/v1/embed", &json!({"texts": ["a"], "embedding_types": ["ubinary"]})).await;
    assert_eq!(answer["response_type"], "embeddings_by_type");
    let vector = serde_json::from_value(own[0].clone()).unwrap();
    let bits = Numbers::of(vector, NumberType::Ubinary);
    assert_eq!(answer["embeddings"], json!({"ubinary": [bits]}));
}

#[tokio::test]
async fn the_type_of_input_reaches_the_models_prompt() {
    let shared = server();
    for (input_type, text) in
        [("search_query", "q: a"), ("search_document", "p: a"), ("classification", "a"), ("clustering", "a")]
    {
        let body = json!({"model": "fake", "texts": ["a"], "input_type": input_type});
        let (_, answer) = post(&shared, "/v2/embed", &body).await;
        let expected = own(&shared, json!({"texts": [text]})).await;
        assert_eq!(answer["embeddings"]["float"], expected, "{input_type}");
    }
}

#[tokio::test]
async fn truncate_names_the_part_of_a_text_that_is_left_away() {
    let shared = server();
    let long = "a b c d e f g h i j";
    let ask = |truncate: Value| json!({"model": "fake", "texts": ["short", long], "input_type": "clustering", "truncate": truncate});
    let warning = json!(["these texts are longer than the model takes and were cut: 1"]);
    for (truncate, kept) in [("END", "a b c d e f g"), ("START", "d e f g h i j")] {
        let (head, answer) = post(&shared, "/v2/embed", &ask(json!(truncate))).await;
        assert_eq!(answer["embeddings"]["float"], own(&shared, json!({"texts": ["short", kept]})).await);
        assert_eq!(answer["meta"]["warnings"], warning, "{truncate}");
        assert_eq!(head.headers()["x-truncated-inputs"], "1");
    }
    let (_, default) = post(&shared, "/v2/embed", &ask(Value::Null)).await;
    let (_, end) = post(&shared, "/v2/embed", &ask(json!("END"))).await;
    assert_eq!(without_id(default), without_id(end));
    let (head, error) = post(&shared, "/v2/embed", &ask(json!("NONE"))).await;
    assert_eq!(head.status(), 400);
    let message = "text 1 is longer than 8 tokens, which is all that the model takes";
    assert_eq!(error, json!({"message": message}));
}

#[tokio::test]
async fn dimensions_are_those_of_the_model_and_inputs_are_texts_in_parts() {
    let shared = server();
    let body = json!({"model": "fake", "texts": ["a"], "input_type": "clustering", "output_dimension": 2, "max_tokens": 8});
    let (_, answer) = post(&shared, "/v2/embed", &body).await;
    let shorter = own(&shared, json!({"texts": ["a"], "dimensions": 2})).await;
    assert_eq!(answer["embeddings"]["float"], shorter);

    let text = |text: &str| json!({"type": "text", "text": text});
    let inputs = json!([{"content": [text("a"), text("b")]}, {"content": [text("c")]}]);
    let body = json!({"model": "fake", "inputs": inputs, "input_type": "clustering", "images": []});
    let (_, answer) = post(&shared, "/v2/embed", &body).await;
    assert_eq!(answer["texts"], json!(["a\nb", "c"]));
    assert_eq!(answer["embeddings"]["float"], own(&shared, json!({"texts": ["a\nb", "c"]})).await);
}

#[tokio::test]
async fn every_mistake_is_told_in_coheres_shape_with_its_status() {
    let shared = server();
    let valid = json!({"model": "fake", "texts": ["a"], "input_type": "search_query"});
    let image = json!({"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}});
    let table = [
        (json!({"model": "other"}), 404, "model \"other\" is not served here; served: fake"),
        (json!({"texts": []}), 400, "texts is empty: send at least one text"),
        (json!({"texts": null}), 400, "texts is empty: send at least one text"),
        (json!({"texts": "a"}), 400, "texts: invalid type: string"),
        (json!({"input_type": null}), 400, "input_type is missing: say search_query, search_document"),
        (json!({"input_type": "image"}), 400, "input_type image: images cannot be embedded here"),
        (json!({"input_type": "banana"}), 400, "input type \"banana\" is not known"),
        (json!({"images": ["data:image/png;base64,AA=="]}), 400, "images cannot be embedded here"),
        (json!({"inputs": []}), 400, "texts and inputs are both given"),
        (json!({"texts": null, "inputs": [{"content": []}]}), 400, "inputs[0].content is empty"),
        (
            json!({"texts": null, "inputs": [{"content": [{"type": "text", "text": "a"}, image]}]}),
            400,
            "inputs[0].content[1] is of the type image_url, which cannot be embedded here",
        ),
        (
            json!({"embedding_types": ["fp16"]}),
            400,
            "unknown variant `fp16`, expected one of `float`, `int8`",
        ),
        (
            json!({"truncate": "MIDDLE"}),
            400,
            "unknown variant `MIDDLE`, expected one of `NONE`, `START`, `END`",
        ),
        (json!({"output_dimension": 3}), 400, "dimensions must be 2 or 4, not 3"),
        (json!({"max_tokens": 7}), 400, "max_tokens 7 is less than the 8 tokens that the model takes"),
        // Cohere's own limit is a bad request, too.
        (json!({"texts": vec!["a"; 101]}), 400, "101 texts in one request; the limit is 100"),
        (json!({"texts": ["!fail"]}), 500, "texts[0]: the model failed on this text: a fake failure"),
    ];
    for (change, status, message) in table {
        let mut body = valid.clone();
        body.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        let (head, error) = post(&shared, "/v2/embed", &body).await;
        assert_eq!(head.status(), status, "{change}: {error}");
        let fields: Vec<_> = error.as_object().unwrap().keys().collect();
        assert_eq!(fields, ["message"], "{change}");
        assert!(error["message"].as_str().unwrap().contains(message), "{change}: {error}");
    }
    let (head, error) = post(&shared, "/v1/embed", &json!({"model": "other", "texts": ["a"]})).await;
    assert_eq!((head.status().as_u16(), error["message"].is_string()), (404, true));
}

#[tokio::test]
async fn a_server_that_is_busy_or_wants_to_know_more_says_so_with_coheres_statuses() {
    let limits = Limits { max_texts: 10, max_waiting_texts: 10 };
    let fake = Fake::new(4).slow(Duration::from_millis(200));
    let busy = shared(&[("fake", fake)], &Settings { limits, ..settings() }, http_settings());
    let body = json!({"model": "fake", "texts": vec!["a"; 6], "input_type": "search_query"});
    let (first, (head, error)) =
        tokio::join!(post(&busy, "/v2/embed", &body), post(&busy, "/v2/embed", &body));
    assert_eq!((first.0.status().as_u16(), head.status().as_u16()), (200, 429));
    assert!(head.headers().contains_key("retry-after"));
    assert_eq!(error, json!({"message": "too many texts are waiting; try again in 1 s"}));

    let strict = server_of(Offer { require_input_type: true, ..offer() });
    let (head, error) = post(&strict, "/v1/embed", &json!({"texts": ["a"]})).await;
    assert_eq!((head.status().as_u16(), error["message"].is_string()), (422, true), "{error}");

    let http = http::Settings { max_body_bytes: 10, ..http_settings() };
    let small = shared(&[("fake", Fake::new(4))], &settings(), http);
    let (head, error) = post(&small, "/v2/embed", &body).await;
    assert_eq!(head.status(), 413);
    assert_eq!(error["message"], "the request body is larger than the limit of 10 bytes: split it");
}
