//! The HTTP surface: the router as a value, with a fake model behind it.
#![allow(clippy::unwrap_used, reason = "a test that unwraps in vain fails, as it should")]

mod support;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::body::Body;
use axum::http::{Request, Response, header};
use embedding_server::embedder::Limits;
use embedding_server::http::{self, Shared};
use embedding_server::metrics::Metrics;
use embedding_server::model::fake::{Fake, Words};
use embedding_server::models::{Models, Settings, State};
use embedding_server::tokenize::{Encode, How};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use support::{http_settings, offer, settings, shared};
use tower::ServiceExt;

fn fake_server() -> Arc<Shared> {
    shared(&[("fake", Fake::new(4))], &settings(), http_settings())
}

/// The vector that the fake model has for a text.
fn values(text: &str) -> Vec<f32> {
    let ids = Words { max_tokens: 8 }.encode(text, &How::default()).unwrap().pieces.remove(0).ids;
    Fake::new(4).vector(&ids.iter().map(|&id| i64::from(id)).collect::<Vec<_>>())
}

/// The space of its vectors.
fn space() -> String {
    offer().space.space(4, false).to_string()
}

/// The same as it is written: the shortest decimals that are this f32.
fn vector(text: &str) -> Value {
    serde_json::from_str(&serde_json::to_string(&values(text)).unwrap()).unwrap()
}

async fn call(shared: &Arc<Shared>, request: Request<Body>) -> Response<Body> {
    http::router(Arc::clone(shared)).oneshot(request).await.unwrap()
}

async fn json_of(response: Response<Body>) -> Value {
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    serde_json::from_slice(&bytes).unwrap_or_else(|error| panic!("{error}: {bytes:?}"))
}

fn get(path: &str) -> Request<Body> {
    Request::get(path).body(Body::empty()).unwrap()
}

fn post(path: &str, body: impl Into<Body>) -> Request<Body> {
    Request::post(path).header(header::CONTENT_TYPE, "application/json").body(body.into()).unwrap()
}

fn post_json(path: &str, body: &Value) -> Request<Body> {
    post(path, body.to_string())
}

#[tokio::test]
async fn post_embeddings_answers_a_vector_for_each_text_in_order() {
    let response = call(
        &fake_server(),
        post_json("/embeddings", &json!({"texts": ["b", "", "a longer text"], "model": "fake"})),
    )
    .await;
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["content-type"], "application/json");
    assert_eq!(
        json_of(response).await,
        json!({
            "embeddings": [vector("b"), vector(""), vector("a longer text")],
            "model": "fake",
            "dimensions": 4,
            "space": space(),
            "tokens": [2, 1, 4],
            "truncated": [],
        })
    );
}

#[tokio::test]
async fn the_only_model_need_not_be_named() {
    let response = call(&fake_server(), post_json("/embeddings", &json!({"texts": ["a"]}))).await;
    assert_eq!(json_of(response).await["model"], "fake");
}

#[tokio::test]
async fn get_embeddings_has_the_same_shape_with_one_vector() {
    for (query, text) in [
        ("text=hello&model=fake", "hello"),
        ("text=two+words", "two words"),
        ("text=1%2B1", "1+1"),
        ("text=", ""),
        ("model=fake&text=%E4%BD%A0%E5%A5%BD", "你好"),
    ] {
        let response = call(&fake_server(), get(&format!("/embeddings?{query}"))).await;
        let body = json_of(response).await;
        assert_eq!(body["embeddings"], json!([vector(text)]), "{query}");
        let fields: Vec<_> = body.as_object().unwrap().keys().collect();
        assert_eq!(fields, ["dimensions", "embeddings", "model", "space", "tokens", "truncated"]);
    }
}

#[tokio::test]
async fn openai_embeddings_have_openais_shape_as_floats_and_as_base64() {
    let shared = fake_server();
    let body = json!({"input": ["a b", "c"], "model": "fake", "user": "me", "dimensions": 4});
    let response = json_of(call(&shared, post_json("/v1/embeddings", &body)).await).await;
    assert_eq!(
        response,
        json!({
            "object": "list",
            "data": [
                {"object": "embedding", "index": 0, "embedding": vector("a b")},
                {"object": "embedding", "index": 1, "embedding": vector("c")},
            ],
            "model": "fake",
            "usage": {"prompt_tokens": 5, "total_tokens": 5, "truncated_inputs": 0},
        })
    );
    let body = json!({"input": "a b", "model": "fake", "encoding_format": "base64"});
    let response = json_of(call(&shared, post_json("/v1/embeddings", &body)).await).await;
    let bytes: Vec<u8> = values("a b").iter().flat_map(|value| value.to_le_bytes()).collect();
    let base64 = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, bytes);
    assert_eq!(response["data"], json!([{"object": "embedding", "index": 0, "embedding": base64}]));
    // Some clients send null for what their caller did not choose.
    let body =
        json!({"input": "a b", "model": null, "encoding_format": null, "dimensions": null, "user": null});
    let response = json_of(call(&shared, post_json("/v1/embeddings", &body)).await).await;
    assert_eq!(response["data"][0]["embedding"], vector("a b"));
}

#[tokio::test]
async fn models_are_listed_in_our_shape_and_in_openais() {
    let shared = fake_server();
    assert_eq!(
        json_of(call(&shared, get("/models")).await).await,
        json!({"models": [{
            "name": "fake", "state": "ready", "source": "org/fake@0000", "architecture": "fake", "kind": "embedding", "dimensions": 4,
            "allowed_dimensions": [2, 4], "space": space(), "prompts": ["passage", "query"],
            "max_tokens": 8, "pooling": "mean", "numerics": {"implementation": "fake", "dtype": "float32", "device": "cpu"},
        }]})
    );
    let model = json!({"id": "fake", "object": "model", "created": 0, "owned_by": "org"});
    assert_eq!(
        json_of(call(&shared, get("/v1/models")).await).await,
        json!({"object": "list", "data": [model]})
    );
    assert_eq!(json_of(call(&shared, get("/v1/models/fake")).await).await, model);
    assert_eq!(call(&shared, get("/v1/models/org/other")).await.status(), 404);
}

#[tokio::test]
async fn with_several_models_a_request_names_one() {
    let fakes = [("a/b", Fake::new(4)), ("c", Fake::new(4))];
    let shared = shared(&fakes, &settings(), http_settings());
    let ask = |model: Value| post_json("/embeddings", &json!({"texts": ["x"], "model": model}));
    assert_eq!(json_of(call(&shared, ask(json!("a/b"))).await).await["model"], "a/b");
    assert_eq!(json_of(call(&shared, ask(json!("c"))).await).await["model"], "c");
    let response = call(&shared, ask(Value::Null)).await;
    assert_eq!(response.status(), 400);
    assert_eq!(
        json_of(response).await,
        json!({"error": {
            "message": "several models are served, so \"model\" must name one of them: a/b, c",
            "type": "invalid_request_error", "param": "model", "code": "missing_field",
        }})
    );
}

#[expect(clippy::too_many_lines, reason = "a table")]
#[tokio::test]
async fn every_mistake_gets_its_status_and_a_message_in_the_one_error_shape() {
    let shared = fake_server();
    let deep = format!("{{\"texts\":{}", "[".repeat(9_000));
    let deeper = format!("{{\"x\":{}", "[".repeat(9_000));
    let deep_openai = format!("{{\"input\":\"a\",\"other\":{}", "[".repeat(9_000));
    let many = json!({"texts": vec!["a"; 101]}).to_string();
    let own = "/embeddings";
    let openai = "/v1/embeddings";
    let table: [(Request<Body>, u16, &str, Option<&str>, &str); 42] = [
        (post(own, "{\"texts\":"), 400, "invalid_json", None, "EOF while parsing a value"),
        (post(own, ""), 400, "invalid_json", None, "EOF while parsing a value"),
        (post(own, "[[\"a\"]]"), 400, "invalid_field", None, "must be a JSON object"),
        (post(own, "{}"), 400, "invalid_field", Some("texts"), "missing field `texts`"),
        (post(own, "{\"texts\":[]}"), 400, "invalid_field", Some("texts"), "texts is empty"),
        (post(own, "{\"texts\":\"a\"}"), 400, "invalid_field", Some("texts"), "expected a sequence"),
        (post(own, "{\"texts\":[1]}"), 400, "invalid_field", Some("texts[0]"), "expected a string"),
        (post(own, "{\"texts\":[null]}"), 400, "invalid_field", Some("texts[0]"), "expected a string"),
        (
            post(own, "{\"texts\":[\"a\"],\"modle\":1}"),
            400,
            "invalid_field",
            Some("modle"),
            "unknown field `modle`",
        ),
        (
            post(own, "{\"texts\":[\"a\"],\"texts\":[]}"),
            400,
            "invalid_field",
            None,
            "duplicate field `texts`",
        ),
        (
            post(own, "{\"texts\":[\"a\"],\"model\":3}"),
            400,
            "invalid_field",
            Some("model"),
            "expected a string",
        ),
        (
            post(own, "{\"texts\":[\"a\"],\"model\":\"b\"}"),
            404,
            "model_not_found",
            Some("model"),
            "served: fake",
        ),
        (post(own, &b"{\"texts\":[\"\xff\"]}"[..]), 400, "invalid_utf8", None, "byte 11"),
        (post(own, "{\"texts\":[\"\\ud800\"]}"), 400, "invalid_json", None, "unexpected end of hex escape"),
        (post(own, deep), 400, "invalid_field", Some("texts[0]"), "expected a string"),
        (post(own, deeper), 400, "invalid_field", Some("x"), "unknown field `x`"),
        (post(own, many), 413, "too_many_texts", None, "101 texts in one request; the limit is 100"),
        (
            post(own, format!("{{\"texts\":[\"{}\"]}}", "a".repeat(10_000))),
            413,
            "body_too_large",
            None,
            "10000 bytes",
        ),
        (Request::post(own).body("{}".into()).unwrap(), 415, "unsupported_media_type", None, "missing"),
        (
            Request::post(own).header("content-type", "text/plain").body("{}".into()).unwrap(),
            415,
            "unsupported_media_type",
            None,
            "text/plain",
        ),
        (
            Request::put(own).body(Body::empty()).unwrap(),
            405,
            "method_not_allowed",
            None,
            "/embeddings has no method PUT",
        ),
        (get("/v1/embeddings"), 405, "method_not_allowed", None, "has no method GET"),
        (get("/embedding"), 404, "no_such_path", None, "/openapi.json"),
        (get(own), 400, "invalid_field", Some("text"), "missing parameter `text`"),
        (get("/embeddings?text=a&txt=b"), 400, "invalid_field", Some("txt"), "unknown parameter `txt`"),
        (get("/embeddings?text=a&text=b"), 400, "invalid_field", Some("text"), "given twice"),
        (get("/embeddings?text=%ff"), 400, "invalid_utf8", None, "the query string is not valid UTF-8"),
        (
            post(openai, "{\"input\":[],\"model\":\"fake\"}"),
            400,
            "invalid_field",
            Some("input"),
            "input is empty",
        ),
        (
            post(openai, "{\"input\":[[1,2]]}"),
            400,
            "invalid_field",
            Some("input"),
            "check_embedding_ctx_length=False",
        ),
        (
            post(openai, "{\"input\":\"a\",\"dimensions\":3}"),
            400,
            "invalid_field",
            Some("dimensions"),
            "must be 2 or 4",
        ),
        (
            post(openai, "{\"input\":\"a\",\"encoding_format\":\"int8\"}"),
            400,
            "invalid_field",
            Some("encoding_format"),
            "unknown variant `int8`",
        ),
        (
            post(openai, "{\"input\":\"a\",\"encoding_format\":3}"),
            400,
            "invalid_field",
            Some("encoding_format"),
            "invalid type: integer `3`, expected a string",
        ),
        (
            post(openai, "{\"input\":\"a\",\"encoding_format\":{\"base64\":null}}"),
            400,
            "invalid_field",
            Some("encoding_format"),
            "invalid type: map, expected a string",
        ),
        (
            post(openai, "{\"input\":\"a\",\"dimensions\":\"4\"}"),
            400,
            "invalid_field",
            Some("dimensions"),
            "invalid type: string \"4\", expected u64",
        ),
        (
            post(openai, "{\"input\":\"a\",\"model\":3}"),
            400,
            "invalid_field",
            Some("model"),
            "invalid type: integer `3`, expected a string",
        ),
        (post(openai, "{\"input\":null}"), 400, "invalid_field", Some("input"), "invalid type: null"),
        (get("/v1/models/%ff"), 400, "invalid_utf8", None, "the path is not valid UTF-8"),
        (get("/v1/models/"), 404, "no_such_path", None, "/v1/models/"),
        (get("/%ff"), 404, "no_such_path", None, "/%ff"),
        (
            Request::builder().method("CONNECT").uri("host:443").body(Body::empty()).unwrap(),
            404,
            "no_such_path",
            None,
            "no such path",
        ),
        (
            post(openai, "{\"input\":\"a\",\"model\":\"gpt\"}"),
            404,
            "model_not_found",
            Some("model"),
            "served: fake",
        ),
        (post(openai, deep_openai), 400, "invalid_json", None, "EOF while parsing a list"),
    ];
    for (request, status, code, param, message) in table {
        let shown = format!("{} {}", request.method(), request.uri());
        let response = call(&shared, request).await;
        assert_eq!(response.status(), status, "{shown} {message}");
        let body = json_of(response).await;
        let error = body["error"].as_object().unwrap_or_else(|| panic!("{shown}: {body}"));
        assert_eq!(error.keys().collect::<Vec<_>>(), ["code", "message", "param", "type"], "{shown}");
        assert_eq!(error["code"], code, "{shown}: {body}");
        assert_eq!(error["param"], json!(param), "{shown}: {body}");
        assert_eq!(error["type"], "invalid_request_error", "{shown}: {body}");
        assert!(error["message"].as_str().unwrap().contains(message), "{shown}: {body}\nwanted {message}");
    }
}

#[tokio::test]
async fn json_nested_100_000_deep_is_a_mistake_like_any_other() {
    let http = http::Settings { max_body_bytes: 1 << 20, ..http_settings() };
    let shared = shared(&[("fake", Fake::new(4))], &settings(), http);
    let deep = |open: &str, close: &str| format!("{}{}", open.repeat(100_000), close.repeat(100_000));
    for (path, body) in [
        ("/embeddings", deep("[", "]")),
        ("/embeddings", deep("{\"texts\":", "}")),
        ("/embeddings", format!("{{\"texts\":{}}}", deep("[", "]"))),
        ("/embeddings", format!("{{\"texts\":[\"a\"],\"model\":{}}}", deep("[", "]"))),
        ("/v1/embeddings", format!("{{\"input\":{}}}", deep("[", "]"))),
        ("/v1/embeddings", format!("{{\"input\":{}}}", deep("{\"a\":", "}"))),
    ] {
        let shown = format!("{path} {body:.40}");
        let response = call(&shared, post(path, body)).await;
        assert_eq!(response.status(), 400, "{shown}");
        assert!(json_of(response).await["error"]["message"].is_string(), "{shown}");
    }
    // A field that OpenAI's API ignores is ignored however deep it is.
    let body = format!("{{\"input\":\"a\",\"other\":{}}}", deep("[", "]"));
    assert_eq!(call(&shared, post("/v1/embeddings", body)).await.status(), 200);
}

#[tokio::test]
async fn a_body_over_the_limit_is_refused_with_and_without_a_length() {
    let shared = fake_server();
    let chunks = (0..20).map(|_| Ok::<_, std::io::Error>(" ".repeat(1000)));
    let stream = Body::from_stream(futures_util::stream::iter(chunks));
    assert_eq!(call(&shared, post("/embeddings", stream)).await.status(), 413);
    let announced = Request::post("/embeddings")
        .header("content-type", "application/json")
        .header("content-length", "10001")
        .body(Body::from_stream(futures_util::stream::pending::<Result<String, std::io::Error>>()))
        .unwrap();
    assert_eq!(call(&shared, announced).await.status(), 413);
}

#[tokio::test]
async fn a_long_message_is_cut() {
    let body = json!({"texts": "x".repeat(5000)}).to_string();
    let response = json_of(call(&fake_server(), post("/embeddings", body)).await).await;
    assert!(response["error"]["message"].as_str().unwrap().len() < 500);
}

#[tokio::test]
async fn cut_texts_are_reported_in_a_header_and_a_metric() {
    let shared = fake_server();
    let long = "w ".repeat(9);
    let body = json!({"texts": [&long, "short", &long]});
    let response = call(&shared, post_json("/embeddings", &body)).await;
    assert_eq!(response.headers()["x-truncated-inputs"], "2");
    let metrics = call(&shared, get("/metrics")).await;
    let text = metrics.into_body().collect().await.unwrap().to_bytes();
    let text = String::from_utf8(text.to_vec()).unwrap();
    for line in [
        "embedding_truncated_texts_total{model=\"fake\"} 2",
        "embedding_texts_total{model=\"fake\"} 3",
        "embedding_tokens_total{model=\"fake\"} 18",
        "embedding_model_ready{model=\"fake\"} 1",
        "embedding_waiting_texts{model=\"fake\"} 0",
        "embedding_http_requests_total{method=\"POST\",path=\"/embeddings\",status=\"200\"} 1",
    ] {
        assert!(text.lines().any(|found| found == line), "no {line} in\n{text}");
    }
}

#[tokio::test]
async fn one_bad_text_fails_its_request_and_no_other() {
    let shared = fake_server();
    let good = call(&shared, post_json("/embeddings", &json!({"texts": ["a", "b"]})));
    let bad = call(&shared, post_json("/embeddings", &json!({"texts": ["a", "!fail"]})));
    let panics = call(&shared, post_json("/embeddings", &json!({"texts": ["!panic"]})));
    let nan = call(&shared, post_json("/embeddings", &json!({"texts": ["!nan", "b"]})));
    let (good, bad, panics, nan) = tokio::join!(good, bad, panics, nan);
    assert_eq!(good.status(), 200);
    for (response, message) in [
        (bad, "texts[1]: the model failed on this text: a fake failure"),
        (panics, "texts[0]: the model failed on this text: panic: a fake panic"),
        (nan, "texts[0]: the model made a vector with values that are not finite for this text"),
    ] {
        assert_eq!(response.status(), 500);
        assert_eq!(
            json_of(response).await,
            json!({"error": {"message": message, "type": "server_error", "param": null, "code": "forward_failed"}})
        );
    }
}

#[tokio::test]
async fn what_is_too_much_at_once_gets_429_with_retry_after_and_room_comes_back() {
    let settings = Settings { limits: Limits { max_texts: 10, max_waiting_texts: 10 }, ..settings() };
    let fake = Fake::new(4).slow(Duration::from_millis(200));
    let shared = shared(&[("fake", fake)], &settings, http_settings());
    let ask = || post_json("/embeddings", &json!({"texts": vec!["a"; 6]}));
    let (first, second) = tokio::join!(call(&shared, ask()), call(&shared, ask()));
    assert_eq!(first.status(), 200);
    assert_eq!(second.status(), 429);
    let seconds: u64 = second.headers()["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((1..=60).contains(&seconds));
    let body = json_of(second).await;
    assert_eq!(body["error"]["type"], "rate_limit_error");
    assert_eq!(call(&shared, ask()).await.status(), 200);
}

#[tokio::test]
async fn more_requests_at_once_than_allowed_get_429_and_what_is_no_embedding_does_not_count() {
    let fake = Fake::new(4).slow(Duration::from_millis(200));
    let http = http::Settings { max_concurrent_requests: 1, ..http_settings() };
    let shared = shared(&[("fake", fake)], &settings(), http);
    let ask = |path: &str| post_json(path, &json!({"texts": ["a"], "input": "a"}));
    let health = Request::get("/health").body(Body::empty()).unwrap();
    let (first, second, health) = tokio::join!(
        call(&shared, post_json("/embeddings", &json!({"texts": ["a"]}))),
        call(&shared, ask("/v1/embeddings")),
        call(&shared, health)
    );
    assert_eq!(first.status(), 200);
    assert_eq!(second.status(), 429);
    assert_eq!(health.status(), 200);
    assert_eq!(second.headers()["retry-after"], "1");
    assert_eq!(
        json_of(second).await["error"]["message"],
        "1 requests are under way, which is the limit: try again, or send more texts in one"
    );
    assert_eq!(call(&shared, post_json("/embeddings", &json!({"texts": ["a"]}))).await.status(), 200);
}

#[tokio::test]
async fn a_caller_that_hangs_up_frees_its_place() {
    let settings = Settings {
        limits: Limits { max_texts: 10, max_waiting_texts: 10 },
        threads: embedding_server::worker::Threads { workers: 1, per_worker: 1 },
        ..settings()
    };
    let fake = Fake::new(4).slow(Duration::from_millis(300));
    let batches = fake.batches();
    let shared = shared(&[("fake", fake)], &settings, http_settings());
    let ask = |texts: usize| post_json("/embeddings", &json!({"texts": vec!["a"; texts]}));
    // The first occupies the worker, the second waits in line, then hangs up.
    let router = http::router(Arc::clone(&shared));
    let first = tokio::spawn(router.clone().oneshot(ask(2)));
    while batches.load(Ordering::Relaxed) == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let second = tokio::spawn(router.clone().oneshot(ask(8)));
    let embedder = shared.models.get(None).unwrap().embedder;
    while embedder.waiting().0 == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(call(&shared, ask(1)).await.status(), 429);
    second.abort();
    assert!(second.await.unwrap_err().is_cancelled());
    assert_eq!(embedder.waiting(), (0, 0));
    assert_eq!(call(&shared, ask(8)).await.status(), 200);
    assert_eq!(first.await.unwrap().unwrap().status(), 200);
    assert_eq!(batches.load(Ordering::Relaxed), 2, "nothing was computed for the caller who left");
}

#[tokio::test]
async fn a_request_past_its_time_gets_504() {
    let http = http::Settings { request_timeout: Duration::from_millis(50), ..http_settings() };
    let fake = Fake::new(4).slow(Duration::from_millis(400));
    let shared = shared(&[("fake", fake)], &settings(), http);
    let response = call(&shared, post_json("/embeddings", &json!({"texts": ["a"]}))).await;
    assert_eq!(response.status(), 504);
    assert_eq!(json_of(response).await["error"]["code"], "request_timeout");
    // A body that trickles in is no longer waited for either.
    let trickle = futures_util::stream::unfold((), async |()| {
        tokio::time::sleep(Duration::from_millis(5)).await;
        Some((Ok::<_, std::io::Error>(" "), ()))
    });
    let response = call(&shared, post("/embeddings", Body::from_stream(trickle))).await;
    assert_eq!(response.status(), 504);
}

#[tokio::test]
async fn health_is_unavailable_until_every_model_can_embed() {
    let models = Models::new(["a", "b"]);
    let shared = Shared::new(Arc::clone(&models), Arc::new(Metrics::new()), http_settings());
    let health = async || {
        let response = call(&shared, get("/health")).await;
        (response.status().as_u16(), json_of(response).await)
    };
    let waiting = "waiting for its turn";
    assert_eq!(
        health().await,
        (503, json!({"status": "loading", "models": [], "loading": {"a": waiting, "b": waiting}}))
    );
    models.set(&models.slot("b").unwrap(), State::Failed { why: "no network".into() });
    assert_eq!(
        health().await,
        (
            503,
            json!({"status": "failed", "models": [], "loading": {"a": waiting}, "failed": {"b": "no network"}})
        )
    );
    let ask = |model: &str| post_json("/embeddings", &json!({"texts": ["x"], "model": model}));
    for (model, code) in [("a", "model_loading"), ("b", "model_failed")] {
        let response = call(&shared, ask(model)).await;
        assert_eq!(response.status(), 503);
        let error = json_of(response).await;
        assert_eq!(error["error"]["code"], code);
        let response = call(&shared, get(&format!("/v1/models/{model}"))).await;
        assert_eq!(response.status(), 503);
        assert_eq!(json_of(response).await, error);
    }
    let ready = fake_server();
    let response = call(&ready, get("/health")).await;
    assert_eq!(response.status(), 200);
    assert_eq!(json_of(response).await, json!({"status": "healthy", "models": ["fake"]}));
    ready.stop();
    let response = call(&ready, get("/health")).await;
    assert_eq!((response.status().as_u16(), &json_of(response).await["status"]), (503, &json!("stopping")));
}

#[tokio::test]
async fn livez_fails_for_a_forward_past_its_deadline_and_not_for_a_full_line() {
    let http = http::Settings { forward_deadline: Duration::from_millis(100), ..http_settings() };
    let settings = Settings {
        threads: embedding_server::worker::Threads { workers: 1, per_worker: 1 },
        max_batch_tokens: Some(1),
        ..settings()
    };
    let quick = Fake::new(4).slow(Duration::from_millis(20));
    let shared1 = shared(&[("quick", quick)], &settings, http.clone());
    let many = tokio::spawn(
        http::router(Arc::clone(&shared1))
            .oneshot(post_json("/embeddings", &json!({"texts": vec!["a"; 20]}))),
    );
    let embedder = shared1.models.get(None).unwrap().embedder;
    let mut probes = 0;
    while !many.is_finished() {
        assert_eq!(call(&shared1, get("/livez")).await.status(), 200);
        probes += usize::from(embedder.waiting().0 > 0);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(probes > 5, "the line was never long");
    assert_eq!(many.await.unwrap().unwrap().status(), 200);

    let stuck = Fake::new(4).slow(Duration::from_millis(600));
    let shared2 = shared(&[("stuck", stuck)], &settings, http);
    let one = tokio::spawn(
        http::router(Arc::clone(&shared2)).oneshot(post_json("/embeddings", &json!({"texts": ["a"]}))),
    );
    tokio::time::sleep(Duration::from_millis(300)).await;
    let response = call(&shared2, get("/livez")).await;
    assert_eq!(response.status(), 503);
    let body = json_of(response).await;
    assert_eq!(body["status"], "stuck");
    assert!(body["stuck"][0].as_str().unwrap().starts_with("stuck: a forward on worker 0"), "{body}");
    assert_eq!(one.await.unwrap().unwrap().status(), 200);
    assert_eq!(call(&shared2, get("/livez")).await.status(), 200);
}

#[tokio::test]
async fn a_request_id_is_kept_or_made() {
    let shared = fake_server();
    let request = Request::get("/health").header("x-request-id", "mine-1").body(Body::empty()).unwrap();
    assert_eq!(call(&shared, request).await.headers()["x-request-id"], "mine-1");
    let made = call(&shared, get("/nowhere")).await;
    assert_eq!(made.headers()["x-request-id"].len(), 32);
}

#[tokio::test]
async fn browsers_may_call_and_read_the_headers() {
    let shared = fake_server();
    let preflight = Request::options("/v1/embeddings")
        .header("origin", "https://app.example")
        .header("access-control-request-method", "POST")
        .header("access-control-request-headers", "authorization,content-type,x-stainless-lang")
        .body(Body::empty())
        .unwrap();
    let response = call(&shared, preflight).await;
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["access-control-allow-origin"], "*");
    // OpenAI's client sends headers of its own.
    assert_eq!(
        response.headers()["access-control-allow-headers"],
        "authorization,content-type,x-stainless-lang"
    );
    let request =
        Request::get("/health").header("origin", "https://app.example").body(Body::empty()).unwrap();
    let exposed = call(&shared, request).await.headers()["access-control-expose-headers"].clone();
    assert_eq!(exposed, "x-request-id,x-truncated-inputs,x-embedding-space,x-cache,retry-after");

    let only = http::Settings { cors_origins: vec!["https://a.example".parse().unwrap()], ..http_settings() };
    let shared = support::shared(&[("fake", Fake::new(4))], &settings(), only);
    for (origin, allowed) in [("https://a.example", Some("https://a.example")), ("https://b.example", None)] {
        let request = Request::get("/health").header("origin", origin).body(Body::empty()).unwrap();
        let response = call(&shared, request).await;
        let found =
            response.headers().get("access-control-allow-origin").map(|value| value.to_str().unwrap());
        assert_eq!(found, allowed);
    }
}
