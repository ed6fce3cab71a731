//! Vectors that are kept, with a fake model: what is computed again and what is not, and that nobody
//! gets another's vector, or none.
#![allow(clippy::unwrap_used, reason = "a test that unwraps in vain fails, as it should")]

mod support;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::body::Body;
use axum::http::{Request, Response, header};
use embedding_server::embedder::Limits;
use embedding_server::http::{self, Shared};
use embedding_server::model::fake::Fake;
use embedding_server::models::Settings;
use embedding_server::space::Base;
use futures_util::future::join_all;
use http_body_util::BodyExt as _;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use serde_json::{Value, json};
use support::{http_settings, loaded, serving, settings, shared};
use tower::ServiceExt as _;

/// Enough for all vectors of a test.
const ROOM: u64 = 1 << 20;

fn server(fake: &Fake, cache_bytes: u64) -> Arc<Shared> {
    shared(&[("fake", fake.clone())], &settings(), http::Settings { cache_bytes, ..http_settings() })
}

fn slow() -> Fake {
    Fake::new(4).slow(Duration::from_millis(150))
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

/// What our own API answers, and what it says of the cache.
async fn ask(shared: &Arc<Shared>, body: Value) -> (String, Value) {
    let (head, body) = post(shared, "/embeddings", &body).await;
    assert_eq!(head.status(), 200, "{body}");
    let outcome = head.headers().get("x-cache").map_or("", |value| value.to_str().unwrap());
    (outcome.to_owned(), body)
}

/// What a server without a cache answers.
async fn expected(body: Value) -> Value {
    let (outcome, body) = ask(&server(&Fake::new(4), 0), body).await;
    assert_eq!(outcome, "", "no cache, no header");
    body
}

fn metric(shared: &Arc<Shared>, line: &str) -> u64 {
    let text = shared.metrics.encode().unwrap();
    let found = text.lines().find_map(|found| found.strip_prefix(line)?.strip_prefix(' '));
    found.unwrap_or("0").parse().unwrap()
}

fn computed(shared: &Arc<Shared>) -> u64 {
    metric(shared, "embedding_texts_total{model=\"fake\"}")
}

#[tokio::test]
async fn what_was_computed_is_kept_and_answered_as_it_was() {
    let shared = server(&Fake::new(4), ROOM);
    let long = "a b c d e f g h i j";
    // The first half, all, another order, and with something new.
    for (texts, outcome, in_all) in [
        (vec!["q: a", long], "MISS", 2),
        (vec!["q: a", long], "HIT", 2),
        (vec![long, "q: a", long], "HIT", 2),
        (vec!["new", long, "q: a", "new"], "PARTIAL", 3),
        (vec!["newer", "newer"], "MISS", 4),
    ] {
        let body = json!({"texts": texts, "input_type": "query"});
        let (found, answer) = ask(&shared, body.clone()).await;
        // Tokens, cut texts and those with the prompt are told as if they were computed.
        assert_eq!((found.as_str(), answer), (outcome, expected(body).await), "{texts:?}");
        assert_eq!(computed(&shared), in_all, "{texts:?}");
    }
    let (head, _) = post(&shared, "/embeddings", &json!({"texts": [long], "input_type": "query"})).await;
    assert_eq!(
        (&head.headers()["x-cache"], &head.headers()["x-truncated-inputs"]),
        (&"HIT".parse().unwrap(), &"1".parse().unwrap())
    );
    assert_eq!(metric(&shared, "embedding_cache_hits_total{model=\"fake\"}"), 8);
    assert_eq!(metric(&shared, "embedding_cache_misses_total{model=\"fake\"}"), 6);
    let scrape = Request::get("/metrics").body(Body::empty()).unwrap();
    http::router(Arc::clone(&shared)).oneshot(scrape).await.unwrap();
    assert_eq!(metric(&shared, "embedding_cache_entries"), 4);
    let bytes = metric(&shared, "embedding_cache_bytes");
    assert!((4 * 4 * 4..2_000).contains(&bytes), "{bytes}");
}

#[tokio::test]
async fn all_apis_share_what_is_kept() {
    let shared = server(&Fake::new(4), ROOM);
    let (_, own) = ask(&shared, json!({"texts": ["a"], "input_type": "query"})).await;
    let cohere = json!({"model": "fake", "texts": ["a"], "input_type": "search_query"});
    for (path, body, place) in [
        ("/v1/embeddings", json!({"input": "a", "model": "fake:query"}), "/data/0/embedding"),
        ("/v2/embed", cohere, "/embeddings/float/0"),
        ("/v1/embed", json!({"texts": ["a"], "input_type": "search_query"}), "/embeddings/0"),
        ("/api/embeddings", json!({"model": "fake:query", "prompt": "a"}), "/embedding"),
    ] {
        let (head, answer) = post(&shared, path, &body).await;
        assert_eq!(head.headers()["x-cache"], "HIT", "{path}");
        assert_eq!(answer.pointer(place), Some(&own["embeddings"][0]), "{path}");
    }
    // Divided by its norm, which is another space.
    let (head, _) = post(&shared, "/api/embed", &json!({"model": "fake:query", "input": "a"})).await;
    assert_eq!(head.headers()["x-cache"], "MISS");
    assert_eq!(computed(&shared), 2);
}

#[tokio::test]
async fn nothing_of_another_space_prompt_or_cut_is_answered() {
    let shared = server(&Fake::new(4), ROOM);
    let long = "a b c d e f g h i j";
    let bodies = [
        json!({"texts": [long]}),
        json!({"texts": [long], "dimensions": 2}),
        json!({"texts": [long], "input_type": "query"}),
        json!({"texts": [long], "input_type": "passage"}),
        json!({"texts": [long], "prompt": "other: "}),
        json!({"texts": [long], "on_overflow": "chunk_mean"}),
    ];
    for body in &bodies {
        let (outcome, answer) = ask(&shared, body.clone()).await;
        assert_eq!((outcome.as_str(), answer), ("MISS", expected(body.clone()).await), "{body}");
    }
    for body in &bodies {
        let (outcome, answer) = ask(&shared, body.clone()).await;
        assert_eq!((outcome.as_str(), answer), ("HIT", expected(body.clone()).await), "{body}");
    }
    // What is too long is refused, though there is a vector of what is left of it.
    let (head, _) = post(&shared, "/embeddings", &json!({"texts": [long], "on_overflow": "error"})).await;
    assert_eq!(head.status(), 400);
}

#[tokio::test]
async fn models_share_nothing_but_their_space() {
    let of_space = |(name, space)| {
        let mut model = loaded(&Fake::new(4));
        model.about.offer.space = Base::of_test(space);
        (name, [].as_slice(), model)
    };
    let spaces = [("one", "one"), ("other", "other"), ("same", "one")];
    let (models, metrics) = serving(&settings(), spaces.map(of_space));
    let shared = Shared::new(models, metrics, http::Settings { cache_bytes: ROOM, ..http_settings() });
    for (model, outcome) in [("one", "MISS"), ("other", "MISS"), ("same", "HIT"), ("other", "HIT")] {
        let (found, answer) = ask(&shared, json!({"texts": ["a"], "model": model})).await;
        assert_eq!((found.as_str(), answer["model"].as_str()), (outcome, Some(model)));
    }
}

#[tokio::test]
async fn the_same_text_at_the_same_time_is_computed_once() {
    let fake = slow();
    let shared = server(&fake, ROOM);
    let ask = || ask(&shared, json!({"texts": ["a"]}));
    let mut outcomes: Vec<_> =
        join_all((0..20).map(|_| ask())).await.into_iter().map(|(found, _)| found).collect();
    outcomes.sort_unstable();
    assert_eq!(outcomes, [vec!["HIT"; 19], vec!["MISS"]].concat());
    assert_eq!((computed(&shared), fake.batches().load(Ordering::Relaxed)), (1, 1));
}

#[tokio::test]
async fn requests_with_the_same_texts_in_another_order_do_not_wait_for_each_other_for_ever() {
    let shared = server(&slow(), ROOM);
    let texts = ["a", "b", "c", "d", "e"];
    let ask = |turn: usize| {
        let mut texts = texts.to_vec();
        texts.rotate_left(turn % 5);
        if turn.is_multiple_of(2) {
            texts.reverse();
        }
        ask(&shared, json!({"texts": texts[..3]}))
    };
    let all = join_all((0..30).map(ask));
    tokio::time::timeout(Duration::from_secs(20), all).await.unwrap();
    assert_eq!(computed(&shared), 5);
}

/// A request of its own task, once its text is being computed.
async fn leader(
    shared: &Arc<Shared>,
    fake: &Fake,
    texts: Value,
) -> tokio::task::JoinHandle<(Response<()>, Value)> {
    let before = fake.batches().load(Ordering::Relaxed);
    let asking = Arc::clone(shared);
    let leader = tokio::spawn(async move { post(&asking, "/embeddings", &json!({"texts": texts})).await });
    while fake.batches().load(Ordering::Relaxed) == before {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    leader
}

#[tokio::test]
async fn who_waits_for_a_request_whose_caller_leaves_computes_by_itself() {
    let fake = slow();
    let shared = server(&fake, ROOM);
    let first = leader(&shared, &fake, json!(["a", "b"])).await;
    let waiting: Vec<_> = (0..3)
        .map(|_| {
            let shared = Arc::clone(&shared);
            tokio::spawn(async move { ask(&shared, json!({"texts": ["b", "a"]})).await })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(50)).await;
    first.abort();
    assert!(first.await.unwrap_err().is_cancelled());
    let mut outcomes = Vec::new();
    for waiter in waiting {
        let (outcome, answer) = waiter.await.unwrap();
        assert_eq!(answer, expected(json!({"texts": ["b", "a"]})).await);
        outcomes.push(outcome);
    }
    outcomes.sort_unstable();
    assert_eq!(outcomes, ["HIT", "HIT", "MISS"]);
    // One that waits and leaves harms nobody either.
    let first = leader(&shared, &fake, json!(["c"])).await;
    let asking = Arc::clone(&shared);
    let waiter = tokio::spawn(async move { ask(&asking, json!({"texts": ["c"]})).await });
    tokio::time::sleep(Duration::from_millis(20)).await;
    waiter.abort();
    assert_eq!(first.await.unwrap().0.status(), 200);
    assert_eq!(ask(&shared, json!({"texts": ["c"]})).await.0, "HIT");
}

#[tokio::test]
async fn a_failure_is_kept_for_nobody() {
    let fake = slow();
    let shared = server(&fake, ROOM);
    let ask_bad = || async { post(&shared, "/embeddings", &json!({"texts": ["a", "!fail"]})).await };
    let good = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        ask(&shared, json!({"texts": ["a"]})).await
    };
    let (one, other, (_, answer)) = tokio::join!(ask_bad(), ask_bad(), good);
    for (head, error) in [one, other, ask_bad().await] {
        assert_eq!(head.status(), 500);
        assert_eq!(error["error"]["message"], "texts[1]: the model failed on this text: a fake failure");
        assert!(!head.headers().contains_key("x-cache"));
    }
    assert_eq!(answer, expected(json!({"texts": ["a"]})).await);
    assert_eq!(shared.cache.as_ref().unwrap().entries(), 1, "the good text");
}

#[tokio::test]
async fn limits_hold_for_what_is_asked_and_not_for_what_is_there() {
    let limits = Limits { max_texts: 10, max_waiting_texts: 10 };
    let fake = slow();
    let http = http::Settings { cache_bytes: ROOM, ..http_settings() };
    let shared = shared(&[("fake", fake.clone())], &Settings { limits, ..settings() }, http);
    let (_, known) = ask(&shared, json!({"texts": ["known"]})).await;
    let (head, error) = post(&shared, "/embeddings", &json!({"texts": vec!["known"; 11]})).await;
    assert_eq!((head.status().as_u16(), &error["error"]["code"]), (413, &json!("too_many_texts")));
    // All places are taken; what is kept needs none.
    let texts: Vec<_> = (0..10).map(|number| number.to_string()).collect();
    let busy = leader(&shared, &fake, json!(texts)).await;
    let (head, _) = post(&shared, "/embeddings", &json!({"texts": ["new"]})).await;
    assert_eq!(head.status(), 429);
    assert_eq!(ask(&shared, json!({"texts": ["known"]})).await, ("HIT".to_owned(), known));
    assert_eq!(busy.await.unwrap().0.status(), 200);
    assert_eq!(metric(&shared, "embedding_rejected_requests_total{model=\"fake\"}"), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn callers_see_what_a_server_without_a_cache_answers_whatever_happens_around_them() {
    // Room for a few vectors, so that they are thrown out all the time.
    for cache_bytes in [1, 2_000, ROOM] {
        let shared = server(&Fake::new(4).slow(Duration::from_millis(1)), cache_bytes);
        let mut random = StdRng::seed_from_u64(cache_bytes);
        let requests = (0..400).map(|_| {
            let texts: Vec<String> = (0..random.random_range(1..6))
                .map(|_| format!("word{} x", random.random_range(0..30)))
                .collect();
            let (delay, patience) = (random.random_range(0..200), random.random_range(1..40));
            let fails = random.random_range(0..10) == 0;
            let (leaves, shared) = (random.random_range(0..5) == 0, Arc::clone(&shared));
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_millis(delay)).await;
                let sent = if fails { [texts.clone(), vec!["!fail".into()]].concat() } else { texts.clone() };
                let sent = json!({"texts": sent});
                let answer = post(&shared, "/embeddings", &sent);
                let patience = if leaves { patience } else { 20_000 };
                let Ok((head, body)) = tokio::time::timeout(Duration::from_millis(patience), answer).await
                else {
                    assert!(leaves, "no answer");
                    return;
                };
                match head.status().as_u16() {
                    500 if fails => {}
                    200 if !fails => assert_eq!(body, expected(json!({"texts": texts})).await),
                    429 => {}
                    status => panic!("{status}: {body}"),
                }
                let cache = shared.cache.as_ref().unwrap();
                assert!(cache.bytes() <= cache_bytes, "{} of {cache_bytes} bytes", cache.bytes());
            })
        });
        join_all(requests).await.into_iter().for_each(Result::unwrap);
    }
}
