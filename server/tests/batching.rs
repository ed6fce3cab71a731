//! Who waits for whom: requests of several clients in one line, before a model whose forwards are let
//! through one by one.
#![allow(clippy::unwrap_used, reason = "a test that unwraps in vain fails, as it should")]

mod support;

use std::net::SocketAddr;
use std::sync::{Arc, Condvar, Mutex};

use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::http::{Request, StatusCode};
use embedding_server::embedder::{Caller, Embedder, Limits};
use embedding_server::http::Shared;
use embedding_server::model::fake::{Fake, Words};
use embedding_server::model::{Error, Model, TokenBatch};
use embedding_server::models::{Loaded, Settings};
use embedding_server::options::Options;
use embedding_server::tokenize::{Encode, How, Input};
use embedding_server::worker::Threads;
use proptest::prelude::*;
use serde_json::{Value, json};
use support::ask::{self, Answer, send};
use support::{http_settings, loaded, serving, settings};
use tokio::task::JoinHandle;

/// A model that makes the fake's vectors when it is let through.
#[derive(Clone, Default)]
struct Gate(Arc<(Mutex<Passed>, Condvar)>);

#[derive(Default)]
struct Passed {
    allowed: usize,
    begun: usize,
    /// The first tokens behind the special one of the texts of each forward.
    forwards: Vec<Vec<i64>>,
}

impl Gate {
    fn allow(&self, forwards: usize) {
        self.0.0.lock().unwrap().allowed += forwards;
        self.0.1.notify_all();
    }

    fn begun(&self) -> usize {
        self.0.0.lock().unwrap().begun
    }

    /// In which forward a text was.
    fn forward_of(&self, text: &str) -> usize {
        let id = first_id(text);
        self.0.0.lock().unwrap().forwards.iter().position(|texts| texts.contains(&id)).unwrap()
    }
}

impl Model for Gate {
    fn embed(&mut self, batch: &TokenBatch) -> Result<Vec<f32>, Error> {
        let mut passed = self.0.0.lock().unwrap();
        passed.begun += 1;
        while passed.allowed == 0 {
            passed = self.0.1.wait(passed).unwrap();
        }
        passed.allowed -= 1;
        let mut rest = batch.ids();
        let mut firsts = Vec::new();
        for &length in batch.lengths() {
            let (own, others) = rest.split_at(length as usize);
            firsts.push(own.get(1).copied().unwrap_or(0));
            rest = others;
        }
        passed.forwards.push(firsts);
        drop(passed);
        Fake::new(4).embed(batch)
    }

    fn states(&mut self, batch: &TokenBatch) -> Result<Vec<f32>, Error> {
        Fake::new(4).states(batch)
    }

    fn share(&self) -> Result<Box<dyn Model>, Error> {
        Ok(Box::new(self.clone()))
    }
}

fn ids(text: &str) -> Vec<i64> {
    let tokens = Words { max_tokens: 8 }.encode(text, &How::default()).unwrap();
    tokens.pieces[0].ids.iter().map(|&id| i64::from(id)).collect()
}

fn first_id(text: &str) -> i64 {
    ids(text)[1]
}

/// A server with one worker, whose batches have ten texts of two tokens.
fn server(limits: Limits) -> (Arc<Shared>, Gate) {
    let gate = Gate::default();
    let settings = Settings {
        threads: Threads { workers: 1, per_worker: 1 },
        max_batch_tokens: Some(20),
        limits,
        ..settings()
    };
    let model = Loaded { models: vec![Box::new(gate.clone())], ..loaded(&Fake::new(4)) };
    let (models, metrics) = serving(&settings, [("fake", [].as_slice(), model)]);
    (Shared::new(models, metrics, http_settings()), gate)
}

const WIDE: Limits = Limits { max_texts: 1000, max_waiting_texts: 2000 };

/// A request as it comes from an address, with a priority where that is not empty.
fn from(address: &str, priority: &str, texts: &[String]) -> Request<Body> {
    let mut request = ask::request("/embeddings", json!({"texts": texts}).to_string());
    let peer = SocketAddr::new(address.parse().unwrap(), 1234);
    request.extensions_mut().insert(ConnectInfo(peer));
    if !priority.is_empty() {
        request.headers_mut().insert("x-priority", priority.parse().unwrap());
    }
    request
}

fn texts(name: &str, count: usize) -> Vec<String> {
    vec![name.to_owned(); count]
}

/// Sends a request, and goes on when it is in line.
async fn in_line(shared: &Arc<Shared>, request: Request<Body>) -> JoinHandle<Answer> {
    let embedder = shared.models.get(None).unwrap().embedder;
    let before = embedder.waiting().0;
    let shared = Arc::clone(shared);
    let sent = tokio::spawn(async move { send(&shared, request).await });
    until(|| embedder.waiting().0 > before).await;
    sent
}

async fn until(is_so: impl Fn() -> bool) {
    while !is_so() {
        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    }
}

/// A flood of a client is in line, of which the first forward has begun.
async fn flooded(priority: &str) -> (Arc<Shared>, Gate, JoinHandle<Answer>) {
    let (shared, gate) = server(WIDE);
    let flood = in_line(&shared, from("10.0.0.1", priority, &texts("flood", 500))).await;
    let embedder = shared.models.get(None).unwrap().embedder;
    until(|| gate.begun() == 1 && embedder.waiting().0 == 490).await;
    (shared, gate, flood)
}

#[tokio::test]
async fn a_flood_of_one_client_holds_up_the_one_text_of_another_for_a_forward() {
    // (priority of the flood, of the others, who asks, in which forward he is)
    let table = [
        ("", "", "10.0.0.2", 1),
        ("", "", "10.0.0.1", 1),
        ("bulk", "bulk", "10.0.0.2", 1),
        ("interactive", "interactive", "10.0.0.2", 1),
        ("interactive", "", "::ffff:10.0.0.2", 1),
        // Of one client they go one after the other.
        ("bulk", "bulk", "10.0.0.1", 50),
        ("bulk", "bulk", "::ffff:10.0.0.1", 50),
    ];
    for (of_flood, of_one, address, forward) in table {
        let what = format!("{of_flood} {of_one} {address}");
        let (shared, gate, flood) = flooded(of_flood).await;
        let one = in_line(&shared, from(address, of_one, &texts("one", 1))).await;
        gate.allow(usize::MAX / 2);
        assert_eq!(one.await.unwrap().status, StatusCode::OK, "{what}");
        assert_eq!(flood.await.unwrap().status, StatusCode::OK, "{what}");
        assert_eq!(gate.forward_of("one"), forward, "{what}");
    }
}

#[tokio::test]
async fn a_caller_who_leaves_takes_his_texts_out_of_the_line() {
    let (shared, gate, flood) = flooded("").await;
    let other = in_line(&shared, from("10.0.0.2", "", &texts("other", 30))).await;
    flood.abort();
    assert!(flood.await.unwrap_err().is_cancelled());
    assert_eq!(shared.models.get(None).unwrap().embedder.waiting(), (30, 60));
    gate.allow(usize::MAX / 2);
    assert_eq!(other.await.unwrap().status, StatusCode::OK);
    assert_eq!(gate.forward_of("other"), 1);
}

#[tokio::test]
async fn bulk_leaves_room_for_questions() {
    let (shared, gate) = server(Limits { max_texts: 800, max_waiting_texts: 800 });
    let ask = |address, name, count| from(address, "", &texts(name, count));
    let first = in_line(&shared, ask("10.0.0.1", "bulk", 690)).await;
    // An eighth of 800 is not for bulk.
    let refused = send(&shared, ask("10.0.0.2", "bulk", 11)).await;
    assert_eq!(refused.status, StatusCode::TOO_MANY_REQUESTS);
    let question = in_line(&shared, ask("10.0.0.2", "question", 8)).await;
    gate.allow(usize::MAX / 2);
    assert_eq!(question.await.unwrap().status, StatusCode::OK);
    assert_eq!(first.await.unwrap().status, StatusCode::OK);
    // As much as is allowed at all is admitted where there is nothing else.
    assert_eq!(send(&shared, ask("10.0.0.2", "bulk", 800)).await.status, StatusCode::OK);
}

#[tokio::test]
async fn what_waits_is_told_by_lane() {
    let (shared, gate, flood) = flooded("").await;
    let one = in_line(&shared, from("10.0.0.2", "", &texts("one", 1))).await;
    let metrics = || async {
        let request = Request::get("/metrics").body(Body::empty()).unwrap();
        let response =
            tower::ServiceExt::oneshot(embedding_server::http::router(Arc::clone(&shared)), request);
        let body = response.await.unwrap().into_body();
        let bytes = http_body_util::BodyExt::collect(body).await.unwrap().to_bytes();
        String::from_utf8(bytes.to_vec()).unwrap()
    };
    let text = metrics().await;
    for line in [
        "embedding_waiting_texts{model=\"fake\"} 491",
        "embedding_waiting_tokens{model=\"fake\"} 982",
        "embedding_lane_waiting_texts{model=\"fake\",lane=\"interactive\"} 1",
        "embedding_lane_waiting_texts{model=\"fake\",lane=\"bulk\"} 490",
        "embedding_lane_waiting_tokens{model=\"fake\",lane=\"bulk\"} 980",
    ] {
        assert!(text.lines().any(|found| found == line), "no {line} in\n{text}");
    }
    gate.allow(usize::MAX / 2);
    drop((one.await.unwrap(), flood.await.unwrap()));
    let text = metrics().await;
    for (lane, batches) in [("interactive", 1), ("bulk", 50)] {
        let line =
            format!("embedding_batch_waited_seconds_count{{model=\"fake\",lane=\"{lane}\"}} {batches}");
        assert!(text.lines().any(|found| found == line), "no {line} in\n{text}");
    }
    assert!(!text.contains("10.0.0."), "no client is a label");
}

#[tokio::test]
async fn a_priority_that_is_none_is_refused_on_every_path() {
    let vectors = ask::server(vec![("fake", loaded(&Fake::new(4)))]);
    let scores = ask::server(vec![("fake", support::loaded_scoring(&["relevant"]))]);
    let pair = json!({"query": "a", "documents": ["a"], "texts": ["a"]});
    let similarity = json!({"inputs": {"source_sentence": "a", "sentences": ["b"]}});
    let paths: [(&Arc<Shared>, &str, Value); 11] = [
        (&vectors, "/embeddings", json!({"texts": ["a"]})),
        (&vectors, "/v1/embeddings", json!({"input": "a"})),
        (&vectors, "/v2/embed", json!({"texts": ["a"], "input_type": "search_query"})),
        (&vectors, "/api/embed", json!({"input": "a"})),
        (&vectors, "/api/embeddings", json!({"prompt": "a"})),
        (&vectors, "/embed", json!({"inputs": "a"})),
        (&vectors, "/embed_all", json!({"inputs": "a"})),
        (&vectors, "/similarity", similarity),
        (&scores, "/v2/rerank", pair.clone()),
        (&scores, "/rerank", json!({"query": "a", "texts": ["a"]})),
        (&scores, "/predict", json!({"inputs": "a"})),
    ];
    for (shared, path, body) in paths {
        for (priority, accepted) in [("bulk", true), (" interactive ", true), ("high", false), ("", false)] {
            let mut request = ask::request(path, body.to_string());
            request.headers_mut().insert("x-priority", priority.parse().unwrap());
            let answer = send(shared, request).await;
            assert_eq!(answer.status.is_success(), accepted, "{path} {priority}: {}", answer.body);
            let message = "X-Priority must be interactive or bulk";
            assert!(accepted || answer.body.to_string().contains(message), "{path}: {}", answer.body);
            assert!(accepted || answer.status.is_client_error(), "{path}: {}", answer.status);
        }
    }
    let request =
        Request::get("/embeddings?text=a").header("x-priority", "high").body(Body::empty()).unwrap();
    let answer = send(&vectors, request).await;
    assert_eq!(
        (answer.status, &answer.body["error"]["param"]),
        (StatusCode::BAD_REQUEST, &json!("X-Priority"))
    );
}

/// A front door with three workers, whose batches are small.
fn embedder() -> Arc<Embedder> {
    let settings = Settings {
        threads: Threads { workers: 3, per_worker: 1 },
        max_batch_tokens: Some(30),
        limits: Limits { max_texts: 10_000, max_waiting_texts: 100_000 },
        ..settings()
    };
    support::shared(&[("fake", Fake::new(4))], &settings, http_settings()).models.get(None).unwrap().embedder
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(30))]

    /// Requests of many clients at once, of which some leave: each of the others gets its own vectors, in the order
    /// of its texts.
    #[test]
    fn order_is_restored_whatever_else_is_in_line(
        requests in prop::collection::vec((1usize..600, 0usize..7, 0usize..4, any::<bool>()), 1..12),
    ) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async {
            let embedder = embedder();
            let decided = embedder.decide(&Options::default()).unwrap();
            let mut answers = Vec::new();
            for (number, (count, words, client, leaves)) in requests.into_iter().enumerate() {
                let text = move |text: usize| format!("{number} {text}{}", " w".repeat((text * 5 + words) % 7));
                let (embedder, decided) = (Arc::clone(&embedder), decided.clone());
                let task = tokio::spawn(async move {
                    let inputs = (0..count).map(|index| Input::Text(text(index))).collect();
                    let address = std::net::Ipv4Addr::from(client as u32);
                    let client = embedding_server::batcher::Client::Address(address.into());
                    let made = embedder.embed(inputs, &decided, Caller { client, lane: None }).await.unwrap();
                    let vector = |index| Fake::new(4).vector(&ids(&text(index)));
                    assert!(made.vectors.into_iter().eq((0..count).map(vector)), "request {number}");
                });
                if leaves && number % 2 == 1 {
                    task.abort();
                } else {
                    answers.push(task);
                }
            }
            for answer in answers {
                answer.await.unwrap();
            }
            until(|| embedder.waiting() == (0, 0)).await;
        });
    }
}
