//! text-embeddings-inference's API: the router as a value, with fake models behind it. The real scores of
//! a real cross-encoder are in `rerank.rs`.
#![allow(clippy::unwrap_used, reason = "a test that unwraps in vain fails, as it should")]

mod support;

use std::sync::Arc;

use axum::body::Body;
use axum::http::{Request, header};
use embedding_server::embedder::About;
use embedding_server::http::Shared;
use embedding_server::model::fake::{Fake, Words};
use embedding_server::models::{Loaded, State};
use embedding_server::options::Offer;
use embedding_server::tokenize::{Encode, How, Overflow};
use serde_json::{Value, json};
use support::ask::{get, post, request, send, server};
use support::{cosine, loaded, loaded_scoring, offer};

fn embedding() -> Arc<Shared> {
    server(vec![("fake", loaded(&Fake::new(4)))])
}

fn with(overflow: Overflow) -> Arc<Shared> {
    let Loaded { about, models, tokenizer } = loaded(&Fake::new(4));
    let about = About { offer: Offer { overflow, ..offer() }, ..about };
    server(vec![("fake", Loaded { about, models, tokenizer })])
}

/// The vector that the fake model has for a text, as it is written.
fn vector(text: &str) -> Value {
    let ids = Words { max_tokens: 8 }.encode(text, &How::default()).unwrap().pieces.remove(0).ids;
    let vector = Fake::new(4).vector(&ids.iter().map(|&id| i64::from(id)).collect::<Vec<_>>());
    serde_json::from_str(&serde_json::to_string(&vector).unwrap()).unwrap()
}

/// Whether numbers are nearly those: the fake's vectors are divided by their norm once more.
fn near(found: &Value, expected: &Value) -> bool {
    match (found, expected) {
        (Value::Array(found), Value::Array(expected)) => {
            found.len() == expected.len() && found.iter().zip(expected).all(|(one, other)| near(one, other))
        }
        _ => (found.as_f64().unwrap() - expected.as_f64().unwrap()).abs() < 1e-6,
    }
}

#[track_caller]
fn assert_near(found: &Value, expected: &Value) {
    assert!(near(found, expected), "{found}\nis not nearly {expected}");
}

const LONG: &str = "a b c d e f g h i j k l";

#[tokio::test]
async fn embed_answers_an_array_of_vectors_for_one_text_and_for_several() {
    let shared = embedding();
    for path in
        ["/embed", "/", "/invocations", "/models/fake/embed", "/models/fake", "/models/fake/invocations"]
    {
        let answer = post(&shared, path, json!({"inputs": "a b"})).await;
        assert_eq!(answer.header("x-embedding-space"), offer().space.space(4, true).to_string(), "{path}");
        assert_eq!(answer.header("x-truncated-inputs"), "0");
        assert_eq!(answer.header("x-compute-tokens"), "3");
        assert_eq!(answer.header("x-compute-characters"), "3");
        assert_eq!(answer.header("x-compute-type"), "cpu");
        assert_near(&answer.ok(), &json!([vector("a b")]));
    }
    let many = json!({"inputs": ["a b", "", "c"], "truncate": null, "prompt_name": null, "other": 1});
    let expected = json!([vector("a b"), vector(""), vector("c")]);
    assert_near(&post(&shared, "/embed", many).await.ok(), &expected);
}

#[tokio::test]
async fn embed_takes_what_its_clients_may_say() {
    let shared = embedding();
    let ask = |more: Value| {
        let mut body = json!({"inputs": "who"});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        post(&shared, "/embed", body)
    };
    assert_near(&ask(json!({"prompt_name": "query"})).await.ok(), &json!([vector("q: who")]));
    // Half of the fake's vector is shorter than 1, so that a division by the norm shows.
    let raw = ask(json!({"dimensions": 2, "normalize": false})).await;
    assert_eq!(raw.header("x-embedding-space"), offer().space.space(2, false).to_string());
    assert_eq!(raw.ok(), json!([vector("who").as_array().unwrap()[..2]]));
    for normal in [json!({"dimensions": 2}), json!({"dimensions": 2, "normalize": true})] {
        let vectors: Vec<Vec<f32>> = serde_json::from_value(ask(normal).await.ok()).unwrap();
        let length: f32 = vectors[0].iter().map(|value| value * value).sum();
        assert!((length - 1.0).abs() < 1e-6, "{length}");
    }
}

#[tokio::test]
async fn a_text_that_is_too_long_is_cut_as_the_request_says_and_else_as_the_server_is_set() {
    let cut = |inputs: Value, more: Value| {
        let mut body = json!({"inputs": inputs});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    let (end, start) = (vector("a b c d e f g"), vector("f g h i j k l"));
    let left = json!({"truncation_direction": "Left"});
    let (truncating, refusing) = (embedding(), with(Overflow::Error));
    for (shared, more, expected) in [
        (&truncating, json!({}), Some(&end)),
        (&truncating, left.clone(), Some(&start)),
        (&truncating, json!({"truncate": true, "truncation_direction": "left"}), Some(&start)),
        (&truncating, json!({"truncate": false}), None),
        (&refusing, json!({}), None),
        (&refusing, left, None),
        (&refusing, json!({"truncate": true}), Some(&end)),
    ] {
        let answer = post(shared, "/embed", cut(json!(["a", LONG]), more.clone())).await;
        if let Some(expected) = expected {
            assert_eq!(answer.header("x-truncated-inputs"), "1", "{more}");
            assert_near(&answer.ok(), &json!([vector("a"), expected]));
        } else {
            let message = "text 1 is longer than 8 tokens, which is all that the model takes";
            assert_eq!(answer.status, 422, "{more}");
            assert_eq!(answer.body, json!({"error": message, "error_type": "Validation"}));
        }
    }
    let info = |shared: Arc<Shared>| async move { get(&shared, "/info").await.ok()["auto_truncate"].clone() };
    assert_eq!((info(truncating).await, info(refusing).await), (json!(true), json!(false)));
}

#[tokio::test]
async fn embed_all_answers_a_vector_a_token_of_a_space_of_their_own() {
    let shared = embedding();
    let answer = post(&shared, "/embed_all", json!({"inputs": ["a b", ""]})).await;
    let space = answer.header("x-embedding-space").to_owned();
    assert_eq!(space, offer().space.of_states().to_string());
    assert_ne!(space, offer().space.space(4, false).to_string());
    let all: Vec<Vec<Vec<f32>>> = serde_json::from_value(answer.ok()).unwrap();
    assert_eq!(all.iter().map(Vec::len).collect::<Vec<_>>(), [3, 1]);
    assert!(all.iter().flatten().all(|vector| vector.len() == 4));
    assert_eq!(all[0][0], all[1][0], "of the token that begins each text");

    for (expected, status) in [(space.as_str(), 200), ("es1-0", 412)] {
        let mut request = request("/embed_all", json!({"inputs": "a"}).to_string());
        request.headers_mut().insert("x-expect-embedding-space", expected.parse().unwrap());
        assert_eq!(send(&shared, request).await.status, status, "{expected}");
    }
    let many = post(&shared, "/embed_all", json!({"inputs": vec!["a"; 33]})).await;
    assert_eq!((many.status.as_u16(), &many.body["error_type"]), (422, &json!("Validation")));
    assert_eq!(post(&shared, "/embed_all", json!({"inputs": LONG})).await.header("x-truncated-inputs"), "1");
}

#[tokio::test]
async fn similarity_is_the_cosine_with_each_sentence() {
    let shared = embedding();
    let ask = json!({
        "inputs": {"source_sentence": "a", "sentences": ["a", "b c"]},
        "parameters": {"prompt_name": "query", "truncate": true},
    });
    let row = |text: &str| -> Vec<f32> { serde_json::from_value(vector(text)).unwrap() };
    // The only path that some clients know.
    for path in ["/similarity", "/", "/models/fake/similarity"] {
        let answer = post(&shared, path, ask.clone()).await;
        assert!(answer.header("x-embedding-space").starts_with("es1-"), "{path}");
        let found: Vec<f32> = serde_json::from_value(answer.ok()).unwrap();
        let expected = [1.0, cosine(&row("q: a"), &row("q: b c")) as f32];
        assert!(
            found.iter().zip(expected).all(|(found, expected)| (found - expected).abs() < 1e-5),
            "{found:?}"
        );
    }
}

#[tokio::test]
async fn rerank_answers_the_best_text_first() {
    let shared = server(vec![("ranker", loaded_scoring(&["relevant"]))]);
    let ask = |more: Value| {
        let mut body = json!({"query": "a b c", "texts": ["x", "c b a", "c"]});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    let sigmoid =
        |logit: f32| -> Value { serde_json::from_str(&(1.0 / (1.0 + (-logit).exp())).to_string()).unwrap() };
    for path in ["/rerank", "/", "/invocations", "/models/ranker/rerank"] {
        let answer = post(&shared, path, ask(json!({}))).await;
        assert_eq!(answer.header("x-embedding-space"), "", "scores are no vectors");
        assert_eq!(answer.header("x-truncated-inputs"), "0");
        // The query of three, two separators; with one, three and one word.
        assert_eq!(answer.header("x-compute-tokens"), "20");
        let expected = json!([
            {"index": 1, "score": sigmoid(3.0)}, {"index": 2, "score": sigmoid(1.0)}, {"index": 0, "score": 0.5},
        ]);
        assert_eq!(answer.ok(), expected, "{path}");
    }
    let raw = post(&shared, "/rerank", ask(json!({"raw_scores": true, "return_text": true}))).await.ok();
    assert_eq!(
        raw,
        json!([
            {"index": 1, "text": "c b a", "score": 3.0}, {"index": 2, "text": "c", "score": 1.0},
            {"index": 0, "text": "x", "score": 0.0},
        ])
    );
    let long = json!({"query": "a", "texts": ["b", LONG]});
    assert_eq!(post(&shared, "/rerank", long).await.header("x-truncated-inputs"), "1");
    let long = json!({"query": "a", "texts": ["b", LONG], "truncate": false});
    let refused = post(&shared, "/rerank", long).await;
    assert_eq!(refused.status, 422);
    assert_eq!(refused.body["error"], "text 1 is longer than 12 tokens, which is all that the model takes");

    let metrics = shared.metrics.encode().unwrap();
    assert!(metrics.contains("embedding_texts_total{model=\"ranker\"} 17"), "{metrics}");
}

#[tokio::test]
async fn predict_answers_every_label_of_a_text_of_a_pair_and_of_a_batch_of_them() {
    let shared = server(vec![("classifier", loaded_scoring(&["yes", "no", "maybe"]))]);
    let ask = |inputs: Value| json!({"inputs": inputs, "raw_scores": true});
    let labels = |first: f64| {
        json!([
            {"score": first, "label": "yes"}, {"score": first - 1.0, "label": "no"},
            {"score": first - 2.0, "label": "maybe"},
        ])
    };
    for (inputs, expected) in [
        (json!("a b"), labels(0.0)),
        (json!(["a b"]), labels(0.0)),
        (json!(["a b", "b a"]), labels(2.0)),
        (json!([["a b"]]), json!([labels(0.0)])),
        (json!([["a b"], ["a", "a"], ["", ""]]), json!([labels(0.0), labels(1.0), labels(0.0)])),
    ] {
        for path in ["/predict", "/", "/models/classifier/predict"] {
            assert_eq!(post(&shared, path, ask(inputs.clone())).await.ok(), expected, "{path} {inputs}");
        }
    }
    let soft = post(&shared, "/predict", json!({"inputs": "a"})).await.ok();
    let scores: Vec<f64> =
        soft.as_array().unwrap().iter().map(|row| row["score"].as_f64().unwrap()).collect();
    assert!((scores.iter().sum::<f64>() - 1.0).abs() < 1e-6 && scores[0] > scores[1], "{soft}");
    for inputs in
        [json!(["a", "b", "c"]), json!([["a", "b", "c"]]), json!([[]]), json!(1), json!([1]), json!({})]
    {
        let answer = post(&shared, "/predict", ask(inputs.clone())).await;
        assert_eq!(
            (answer.status.as_u16(), &answer.body["error_type"]),
            (422, &json!("Validation")),
            "{inputs}"
        );
    }
}

#[tokio::test]
async fn tokens_are_told_and_their_text() {
    let shared = embedding();
    let id = |word: &str| Words { max_tokens: 8 }.encode(word, &How::default()).unwrap().pieces[0].ids[1];
    let token = |text: &str, start: usize| json!({"id": id(text), "text": text, "special": false, "start": start, "stop": start + text.len()});
    let begin = json!({"id": 0, "text": "[BEGIN]", "special": true, "start": null, "stop": null});
    let answer = post(&shared, "/tokenize", json!({"inputs": ["a  bc", ""]})).await.ok();
    assert_eq!(answer, json!([[begin, token("a", 0), token("bc", 3)], [begin]]));
    let ask = json!({"inputs": "a", "add_special_tokens": false, "prompt_name": "query"});
    let answer = post(&shared, "/models/fake/tokenize", ask).await.ok();
    assert_eq!(answer, json!([[token("q:", 0), token("a", 3)]]));

    assert_eq!(post(&shared, "/decode", json!({"ids": [0, 7]})).await.ok(), json!(["7"]));
    let ask = json!({"ids": [[0, 7], [8]], "skip_special_tokens": false});
    assert_eq!(post(&shared, "/decode", ask).await.ok(), json!(["0 7", "8"]));
    let unknown = post(&shared, "/decode", json!({"ids": [4_000_000_000u32]})).await;
    assert_eq!(unknown.status, 422);
    assert_eq!(
        unknown.body["error"],
        "token id 4000000000 is not in the model's vocabulary: is it of another model's tokenizer?"
    );
}

#[tokio::test]
async fn info_says_what_the_model_is_and_what_the_server_takes() {
    let shared = server(vec![
        ("org/fake", loaded(&Fake::new(4))),
        ("ranker", loaded_scoring(&["relevant"])),
        ("classifier", loaded_scoring(&["no", "yes"])),
    ]);
    let info = get(&shared, "/models/org/fake/info").await.ok();
    assert_eq!(
        info,
        json!({
            "model_id": "org/fake", "model_sha": "0000", "model_dtype": "float32", "served_model_name": "org/fake",
            "model_type": {"embedding": {"pooling": "mean"}},
            "max_concurrent_requests": 150, "max_input_length": 8, "max_batch_tokens": 1024,
            "max_batch_requests": null, "max_client_batch_size": 100, "auto_truncate": true,
            "tokenization_workers": 2, "version": env!("CARGO_PKG_VERSION"), "sha": null, "docker_label": null,
        })
    );
    let kind = |name: &str| {
        let shared = Arc::clone(&shared);
        let path = format!("/models/{name}/info");
        async move { get(&shared, &path).await.ok()["model_type"].clone() }
    };
    let labels = json!({"reranker": {"id2label": {"0": "relevant"}, "label2id": {"relevant": 0}}});
    assert_eq!(kind("ranker").await, labels);
    let labels =
        json!({"classifier": {"id2label": {"0": "no", "1": "yes"}, "label2id": {"no": 0, "yes": 1}}});
    assert_eq!(kind("classifier").await, labels);
    assert_eq!(get(&shared, "/models/org%2Ffake").await.ok(), info);
    let unnamed = get(&shared, "/info").await;
    assert_eq!(
        (unnamed.status.as_u16(), &unnamed.body["error_type"]),
        (422, &json!("Validation")),
        "several models"
    );
    assert_eq!(get(&embedding(), "/info").await.ok()["served_model_name"], "fake");

    // What the project's own list says of them.
    let listed = get(&shared, "/models").await.ok();
    let kinds = listed["models"].as_array().unwrap().iter().map(|model| [&model["kind"], &model["labels"]]);
    let expected = [
        [&json!("embedding"), &Value::Null],
        [&json!("cross-encoder"), &json!(["relevant"])],
        [&json!("cross-encoder"), &json!(["no", "yes"])],
    ];
    assert_eq!(kinds.collect::<Vec<_>>(), expected);
}

#[tokio::test]
async fn a_ping_says_whether_every_model_can_do_its_work() {
    let shared = embedding();
    for path in ["/ping", "/models/fake/ping"] {
        let answer = get(&shared, path).await;
        assert_eq!((answer.status.as_u16(), answer.body), (200, Value::Null), "{path}");
    }
    shared.models.set(&shared.models.slot("fake").unwrap(), State::Loading { step: "reading".into() });
    for path in ["/ping", "/models/fake/ping", "/info"] {
        let answer = get(&shared, path).await;
        let expected =
            json!({"error": "model \"fake\" is still loading: reading", "error_type": "Unhealthy"});
        assert_eq!((answer.status.as_u16(), answer.body), (503, expected), "{path}");
    }
    shared.stop();
    assert_eq!(
        get(&shared, "/ping").await.body["error"],
        "the server is stopping, or the model was unloaded"
    );
}

#[tokio::test]
async fn models_are_chosen_by_the_path_whatever_is_in_their_names_and_else_by_a_field() {
    let fake = || loaded(&Fake::new(4));
    let shared = server(vec![("org/embed", fake()), ("b", fake()), ("ranker", loaded_scoring(&["r"]))]);
    let ask = json!({"inputs": "a"});
    for path in [
        "/models/org/embed/embed",
        "/models/org%2Fembed/embed",
        "/models/org/embed/",
        "/models/b:query/embed",
    ] {
        let answer = post(&shared, path, ask.clone()).await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.body);
    }
    let query = post(&shared, "/models/b:query/embed", ask.clone()).await.ok();
    assert_near(&query, &json!([vector("q: a")]));
    let named = json!({"inputs": "a", "model": "b:query"});
    assert_eq!(post(&shared, "/embed", named).await.ok(), query);
    for (path, body) in [
        ("/models/nobody/embed", ask.clone()),
        ("/models/nobody/rerank", json!({"query": "a", "texts": ["b"]})),
        ("/models/nobody/embed_sparse", ask.clone()),
        ("/models/nobody/tokenize", ask.clone()),
        ("/models/nobody/decode", json!({"ids": [1]})),
        ("/models/org/embed", ask.clone()),
        ("/models/b/embeddings", ask.clone()),
        ("/predict", json!({"inputs": "a", "model": "nobody"})),
    ] {
        let answer = post(&shared, path, body).await;
        assert_eq!(
            (answer.status.as_u16(), &answer.body["error_type"]),
            (404, &json!("Validation")),
            "{path}"
        );
        let message = answer.body["error"].as_str().unwrap();
        assert!(message.ends_with("is not served here; served: org/embed, b, ranker"), "{message}");
    }
    let unnamed = post(&shared, "/embed", ask).await;
    assert_eq!(unnamed.status, 422);
}

#[tokio::test]
async fn a_model_of_the_other_kind_says_what_to_ask_instead_on_every_surface() {
    let shared = server(vec![
        ("embedder", loaded(&Fake::new(4))),
        ("ranker", loaded_scoring(&["relevant"])),
        ("classifier", loaded_scoring(&["no", "yes"])),
    ]);
    let text = |model: &str| json!({"inputs": "a", "model": model});
    let rank = |model: &str| json!({"query": "a", "texts": ["b"], "documents": ["b"], "model": model});
    let similar = json!({"inputs": {"source_sentence": "a", "sentences": ["b"]}, "model": "ranker"});
    let no_vectors = "the model is a cross-encoder: it scores texts and pairs of texts (/rerank, /v1/rerank, /v2/rerank, /predict) and makes no vectors; for vectors, name an embedding model";
    let no_scores = "the model makes vectors (/v1/embeddings, /embed, /similarity) and no scores; to rank or classify, name a cross-encoder";
    let no_ranking = "the model has 2 labels, and only one with a single label can rank; ask it at /predict";
    let no_sparse = "no model here is an embedding model with SPLADE pooling, which makes sparse vectors; /embed makes dense ones";
    for (path, body, message) in [
        ("/embed", text("ranker"), no_vectors),
        ("/embed_all", text("classifier"), no_vectors),
        ("/similarity", similar, no_vectors),
        ("/rerank", rank("embedder"), no_scores),
        ("/predict", text("embedder"), no_scores),
        ("/rerank", rank("classifier"), no_ranking),
        ("/embed_sparse", text("embedder"), no_sparse),
    ] {
        let answer = post(&shared, path, body).await;
        let expected = json!({"error": message, "error_type": "Backend"});
        assert_eq!((answer.status.as_u16(), answer.body), (424, expected), "{path}");
    }
    // Elsewhere it is the request that is wrong.
    for (path, body, message) in [
        ("/embeddings", json!({"texts": ["a"], "model": "ranker"}), no_vectors),
        ("/v1/embeddings", json!({"input": "a", "model": "ranker"}), no_vectors),
        ("/api/embed", json!({"input": "a", "model": "ranker"}), no_vectors),
        ("/v1/rerank", rank("embedder"), no_scores),
        ("/v2/rerank", rank("classifier"), no_ranking),
    ] {
        let answer = post(&shared, path, body).await;
        assert_eq!(answer.status, 400, "{path}: {}", answer.body);
        assert!(answer.body.to_string().contains(message), "{path}: {}", answer.body);
    }
}

#[tokio::test]
async fn every_mistake_has_the_status_and_the_shape_that_its_clients_know() {
    let shared = embedding();
    let long = format!("{{\"inputs\":\"{}\"}}", "a".repeat(10_000));
    let many = json!({"inputs": vec!["a"; 101]}).to_string();
    let words = json!({"inputs": "a".repeat(2001)}).to_string();
    let similar =
        |sentences: &str| format!("{{\"inputs\":{{\"source_sentence\":\"a\",\"sentences\":{sentences}}}}}");
    let table: [(&str, &str, u16, &str, &str); 25] = [
        ("/embed", "{\"inputs\":", 400, "Validation", "not valid JSON"),
        ("/embed", "", 400, "Validation", "not valid JSON"),
        ("/embed", "[]", 422, "Validation", "must be a JSON object"),
        ("/embed", "{}", 422, "Validation", "missing field `inputs`"),
        ("/embed", "{\"inputs\":[]}", 400, "Empty", "inputs is empty"),
        ("/embed_all", "{\"inputs\":[]}", 400, "Empty", "inputs is empty"),
        ("/tokenize", "{\"inputs\":[]}", 400, "Empty", "inputs is empty"),
        ("/predict", "{\"inputs\":[]}", 400, "Empty", "inputs is empty"),
        ("/decode", "{\"ids\":[]}", 400, "Empty", "ids is empty"),
        ("/decode", "{\"ids\":[[]]}", 400, "Empty", "ids is empty"),
        ("/rerank", "{\"query\":\"a\",\"texts\":[]}", 400, "Empty", "texts is empty"),
        ("/similarity", &similar("[]"), 400, "Empty", "inputs.sentences is empty"),
        ("/similarity", &similar("\"a\""), 422, "Validation", "inputs.sentences: invalid type"),
        (
            "/embed",
            "{\"inputs\":[1,2]}",
            422,
            "Validation",
            "token ids are not taken: /decode has their text",
        ),
        ("/embed", "{\"inputs\":[[1]]}", 422, "Validation", "token ids are not taken"),
        ("/embed", "{\"inputs\":\"a\",\"truncate\":1}", 422, "Validation", "truncate: invalid type"),
        (
            "/embed",
            "{\"inputs\":\"a\",\"truncation_direction\":\"up\"}",
            422,
            "Validation",
            "unknown variant `up`",
        ),
        (
            "/embed",
            "{\"inputs\":\"a\",\"prompt_name\":\"q\"}",
            422,
            "Validation",
            "no prompt \"q\"; it has passage, query",
        ),
        (
            "/embed",
            "{\"inputs\":\"a\",\"dimensions\":3}",
            422,
            "Validation",
            "dimensions must be 2 or 4, not 3",
        ),
        ("/embed", "{\"inputs\":\"!fail\"}", 424, "Backend", "a fake failure"),
        ("/embed", "{\"inputs\":\"!nan\"}", 424, "Backend", "not finite"),
        ("/embed", &many, 422, "Validation", "101 texts in one request; the limit is 100"),
        ("/embed", &long, 413, "Validation", "larger than the limit of 10000 bytes"),
        ("/tokenize", &words, 422, "Validation", "text 0 has more than 2000 characters"),
        ("/decode", "{\"ids\":\"a\"}", 422, "Validation", "expected an array of token ids"),
    ];
    for (path, body, status, kind, message) in table {
        let answer = send(&shared, request(path, body.to_owned())).await;
        assert_eq!(
            (answer.status.as_u16(), &answer.body["error_type"]),
            (status, &json!(kind)),
            "{path} {body:.60}"
        );
        let found = answer.body["error"].as_str().unwrap();
        assert!(found.contains(message), "{path} {body:.60}: {found}");
        assert_eq!(answer.body.as_object().unwrap().len(), 2, "{}", answer.body);
    }
    let text =
        Request::post("/embed").header(header::CONTENT_TYPE, "text/plain").body(Body::from("{}")).unwrap();
    let answer = send(&shared, text).await;
    assert_eq!((answer.status.as_u16(), &answer.body["error_type"]), (415, &json!("Validation")));
    for path in ["/embed", "/predict", "/decode"] {
        let answer = get(&shared, path).await;
        assert_eq!(
            (answer.status.as_u16(), &answer.body["error_type"]),
            (405, &json!("Validation")),
            "{path}"
        );
    }
}

#[tokio::test]
async fn a_server_with_too_much_to_do_says_so_in_its_words() {
    let shared = server(vec![("fake", loaded(&Fake::new(4).slow(std::time::Duration::from_millis(300))))]);
    let ask = || {
        let shared = Arc::clone(&shared);
        tokio::spawn(async move { post(&shared, "/embed", json!({"inputs": vec!["a"; 100]})).await })
    };
    let (one, other) = (ask(), ask());
    let (one, other) = (one.await.unwrap(), other.await.unwrap());
    let refused = if one.status == 200 { other } else { one };
    assert_eq!((refused.status.as_u16(), &refused.body["error_type"]), (429, &json!("Overloaded")));
    assert!(refused.header("retry-after").parse::<u64>().unwrap() >= 1);
    let metrics = shared.metrics.encode().unwrap();
    assert!(metrics.contains("embedding_rejected_requests_total{model=\"fake\"} 1"), "{metrics}");
}
