//! The pages for people, in a browser: `/` and `/docs`.
#![allow(clippy::unwrap_used, reason = "a test that unwraps in vain fails, as it should")]

#[path = "pages/browser.rs"]
mod browser;
mod support;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::Request;
use browser::Browser;
use embedding_server::embedder::Limits;
use embedding_server::http::{self, Shared};
use embedding_server::metrics::Metrics;
use embedding_server::model::fake::Fake;
use embedding_server::models::{Loaded, Models, Settings, State};
use embedding_server::tokenize::Pool;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use support::process::{Server, command, send};
use support::{cosine, http_settings, loaded, offer, settings};
use tower::ServiceExt;

/// A server inside of the test, on a port that the system picks.
struct Here {
    address: SocketAddr,
    shared: Arc<Shared>,
    settings: Settings,
    _runtime: tokio::runtime::Runtime,
}

impl Here {
    /// The names are those of models that are not ready; `fakes` then are.
    fn start(names: &[&str], fakes: &[(&str, Fake)], settings: &Settings) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let models = Models::new(names.iter().copied());
        let shared = Shared::new(models, Arc::new(Metrics::new()), http_settings());
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let router = http::router(Arc::clone(&shared));
        runtime.spawn(async move { axum::serve(listener, router).await });
        let here = Self { address, shared, settings: *settings, _runtime: runtime };
        for (name, fake) in fakes {
            here.serve(name, loaded(fake));
        }
        here
    }

    /// Takes a model into service.
    fn serve(&self, name: &str, loaded: Loaded) {
        let (models, metrics) = (&self.shared.models, &self.shared.metrics);
        models
            .serve(
                &models.slot(name).unwrap(),
                loaded,
                &self.settings,
                &Arc::new(Pool::new(2).unwrap()),
                metrics,
            )
            .unwrap();
    }

    fn at(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    fn vectors(&self, body: &Value) -> Vec<Vec<f32>> {
        let headers = [("Content-Type", "application/json")];
        let answer =
            send(self.address, "POST", "/embeddings", &headers, body.to_string().as_bytes()).unwrap();
        serde_json::from_value(answer.json()["embeddings"].clone()).unwrap()
    }
}

/// The numbers of the heat map, row by row.
fn heat_map(browser: &mut Browser) -> Vec<Vec<f64>> {
    let numbers = "[...document.querySelectorAll('.heat tbody tr')].map((row) => \
                   [...row.querySelectorAll('td')].map((cell) => Number(cell.title)))";
    serde_json::from_value(browser.value(numbers)).unwrap()
}

fn assert_is_cosines(shown: &[Vec<f64>], vectors: &[Vec<f32>]) {
    assert_eq!(shown.len(), vectors.len());
    for (row, a) in shown.iter().zip(vectors) {
        let expected: Vec<_> = vectors.iter().map(|b| cosine(a, b)).collect();
        assert_eq!(row.len(), expected.len());
        assert!(row.iter().zip(&expected).all(|(x, y)| (x - y).abs() < 1e-6), "{row:?}\n{expected:?}");
    }
}

/// Of a page that has done all it wanted: it asked nobody else, and the browser has nothing against it.
fn assert_kept_to_itself(browser: &Browser, here: &Here) {
    let asked = browser.requested();
    assert!(!asked.is_empty());
    for address in asked {
        assert!(address.starts_with(&here.at("/")) || address == "data:,", "{address}");
    }
    assert_eq!(browser.complaints(), Vec::<String>::new());
}

#[test]
fn the_start_page_lists_models_and_compares_texts_by_keyboard_alone() {
    let fakes = [("first", Fake::new(4)), ("second", Fake::new(4))];
    let here = Here::start(&["first", "second", "third", "judge"], &fakes, &settings());
    here.serve("judge", support::loaded_scoring(&["relevant"]));
    here.shared.models.set(
        &here.shared.models.slot("third").unwrap(),
        State::Loading { step: "fetching 9 files, 90 MB".into() },
    );
    let mut browser = Browser::start();
    browser.open(&here.at("/"), "document.querySelectorAll('#models tbody tr').length === 4");
    let listed = browser.text("#models");
    let space = offer().space.space(4, false).to_string();
    for part in ["first", "second", "ready", "org/fake@0000", "8 tokens", "or 2", "passage, query", &space] {
        assert!(listed.contains(part), "{part} is not in\n{listed}");
    }
    assert!(listed.contains("third\tloading\tfetching 9 files, 90 MB"), "{listed}");
    assert!(listed.contains("cross-encoder, 12 tokens: scores relevant"), "{listed}");
    let choice = "[...document.querySelector('#model').options].map((option) => option.value).join()";
    assert_eq!(browser.value(choice), "first,second", "those that make vectors");

    // From the top of the page: four links, the model, the prompt, the texts, the button.
    let lines = ["one two", "three", "one", "it's longer than what this model takes at once, I fear"];
    for _ in 0..5 {
        browser.press("Tab", 9);
    }
    browser.press("ArrowDown", 40);
    browser.press("Tab", 9);
    for _ in 0..2 {
        browser.press("ArrowDown", 40);
    }
    browser.press("Tab", 9);
    browser.value("document.activeElement.select()");
    browser.write(&lines.join("\n"));
    browser.press("Tab", 9);
    browser.press("Enter", 13);
    browser.wait_for("!document.querySelector('#result').hidden");
    let asked = json!({"model": "second", "texts": lines, "prompt_name": "query"});
    let vectors = here.vectors(&asked);
    assert_is_cosines(&heat_map(&mut browser), &vectors);
    assert_ne!(vectors, here.vectors(&json!({"model": "second", "texts": lines})), "the prompt matters");
    let result = browser.text("#result");
    assert!(result.contains("Cosines of 4 vectors of 4 numbers"), "{result}");
    assert_eq!(result.matches("its end was left away").count(), 1, "{result}");
    // What is shown for the shell is the same request.
    let shell = browser.text("#curl");
    assert!(shell.starts_with(&format!("curl '{}' \\\n", here.at("/embeddings"))), "{shell}");
    let body = shell.split_once("-d '").unwrap().1.strip_suffix('\'').unwrap().replace(r"'\''", "'");
    assert_eq!(serde_json::from_str::<Value>(&body).unwrap(), asked);

    // The model that was not ready becomes so without anybody's doing.
    here.shared
        .models
        .set(&here.shared.models.slot("third").unwrap(), State::Failed { why: "no network".into() });
    browser.wait_for("document.querySelector('#models').innerText.includes('failed\\tno network')");
    assert_kept_to_itself(&browser, &here);
    for scheme in ["light", "dark"] {
        browser.prefer(scheme);
        browser.picture(&format!("start-{scheme}"));
    }
}

#[test]
fn the_start_page_shows_what_the_server_has_against_a_request() {
    // One text waits for long, and no other may.
    let settings = Settings { limits: Limits { max_texts: 3, max_waiting_texts: 3 }, ..settings() };
    let here = Here::start(&["slow"], &[("slow", Fake::new(4).slow(Duration::from_millis(300)))], &settings);
    let mut browser = Browser::start();
    browser.open(&here.at("/"), "!document.querySelector('#compare').disabled");
    let compare = |browser: &mut Browser, texts: &[&str], until: &str| {
        let texts = json!(texts.join("\n"));
        browser.value(&format!(
            "document.querySelector('#texts').value = {texts}; \
                                document.querySelector('#compare').click()"
        ));
        browser.wait_for(until);
        browser.text("#error")
    };
    let error = "!document.querySelector('#error').hidden";
    assert_eq!(compare(&mut browser, &["one"], error), "Write between 2 and 50 lines.");
    let message = compare(&mut browser, &["a", "b", "c", "d"], error);
    assert!(message.starts_with("413: 4 texts in one request; the limit is 3"), "{message}");
    assert!(message.contains(" [request "), "{message}");

    // Others leave room for one text at most, until the page has seen that.
    let (address, seen) = (here.address, Arc::new(AtomicBool::new(false)));
    let others = std::thread::spawn({
        let seen = Arc::clone(&seen);
        move || {
            let body = json!({"texts": ["a", "b"]}).to_string();
            let headers = [("Content-Type", "application/json")];
            while !seen.load(Ordering::Relaxed) {
                send(address, "POST", "/embeddings", &headers, body.as_bytes()).unwrap();
            }
        }
    });
    let begun = Instant::now();
    let message = loop {
        let answered = format!("{error} || !document.querySelector('#result').hidden");
        let message = compare(&mut browser, &["a", "b"], &answered);
        if message.starts_with("429") || begun.elapsed() > Duration::from_secs(20) {
            break message;
        }
    };
    seen.store(true, Ordering::Relaxed);
    others.join().unwrap();
    let expected = "too many texts are waiting";
    assert!(message.contains(expected) && message.contains("(try again in 1 s)"), "{message}");

    here.shared.models.set(&here.shared.models.slot("slow").unwrap(), State::Failed { why: "lost".into() });
    let message =
        compare(&mut browser, &["a", "b"], "document.querySelector('#error').innerText.includes('503')");
    assert!(message.contains("model \"slow\" failed to load: lost"), "{message}");
    browser.wait_for("document.querySelector('#compare').disabled");
}

#[test]
fn the_page_of_the_api_shows_every_operation_and_tries_one() {
    let here = Here::start(&["all-minilm-l6-v2"], &[("all-minilm-l6-v2", Fake::new(4))], &settings());
    let document: Value = serde_json::from_str(&http::document()).unwrap();
    let paths = document["paths"].as_object().unwrap();
    let count: usize = paths.values().map(|item| item.as_object().unwrap().len()).sum();
    let mut browser = Browser::start();
    // An address that names an operation opens it.
    browser.open(&here.at("/docs#tei_rerank"), "!!document.querySelector('#tei_rerank button')");
    let seen = "Math.abs(document.querySelector('#tei_rerank').getBoundingClientRect().top) < 2";
    assert_eq!(browser.value(seen), true, "it is scrolled to");
    assert_eq!(browser.value("document.querySelectorAll('#operations details').length"), count);
    browser.open(&here.at("/docs#post_embeddings"), "!!document.querySelector('#post_embeddings button')");
    browser.value("document.querySelector('#post_embeddings button').click()");
    let answer = "document.querySelector('#post_embeddings pre[role=status]').innerText";
    browser.wait_for(&format!("{answer}.startsWith('200')"));
    let shown = browser.value(answer);
    let shown = shown.as_str().unwrap();
    assert!(shown.contains("x-embedding-space: es1-") && shown.contains("\"dimensions\": 4"), "{shown}");
    for scheme in ["light", "dark"] {
        browser.prefer(scheme);
        browser.picture(&format!("docs-{scheme}"));
    }

    browser.value("for (const one of document.querySelectorAll('details')) one.open = true;");
    let forms = "document.querySelectorAll('#operations form').length";
    browser.wait_for(&format!("{forms} === {count}"));
    let text = browser.text("main");
    for (path, item) in paths {
        for (method, operation) in item.as_object().unwrap() {
            let line = format!("{} {path}", method.to_uppercase());
            assert!(text.contains(&line), "{line} is not in\n{text}");
            let summary = operation["summary"].as_str().unwrap().replace('\n', " ").replace('`', "");
            assert!(text.contains(&summary), "{line}: {summary}");
        }
    }
    let types = browser.text("#types");
    for name in document["components"]["schemas"].as_object().unwrap().keys() {
        assert!(types.contains(name.as_str()), "{name}");
    }
    // A request without a body, with what its parameters are filled in with.
    browser.value("document.querySelector('#get_embeddings button').click()");
    let answer = "document.querySelector('#get_embeddings pre[role=status]').innerText";
    browser.wait_for(&format!("{answer}.startsWith('200')"));
    assert_kept_to_itself(&browser, &here);
}

#[tokio::test]
async fn pages_say_what_a_browser_may_do() {
    let shared = support::shared(&[("fake", Fake::new(4))], &settings(), http_settings());
    for path in ["/", "/docs"] {
        let request = Request::get(path).body(Body::empty()).unwrap();
        let response = http::router(Arc::clone(&shared)).oneshot(request).await.unwrap();
        assert_eq!(response.status(), 200);
        let header = |name: &str| response.headers()[name].to_str().unwrap();
        assert_eq!(header("content-type"), "text/html; charset=utf-8");
        let policy = header("content-security-policy");
        assert!(policy.starts_with("default-src 'none'; connect-src 'self'; "), "{policy}");
        assert!(!policy.contains("unsafe") && !policy.contains('*'), "{policy}");
        let body = response.into_body().collect().await.unwrap().to_bytes();
        let body = std::str::from_utf8(&body).unwrap();
        assert!(!body.contains("http://") && !body.contains("https://"), "{path} names another place");
    }
}

#[test]
fn no_ui_turns_the_pages_off_and_nothing_else() {
    let tiny = support::tiny::Tiny::new().write();
    let model = format!("tiny={}", tiny.path().display());
    let arguments =
        ["serve", "--host", "127.0.0.1", "--port", "0", "--log-format", "json", "--model", &model];
    let server = Server::spawn(command(&arguments).env("EMBEDDING_NO_UI", "true"));
    for path in ["/", "/docs"] {
        let answer = server.get(path);
        assert_eq!(answer.status, 404, "{path}");
        assert!(answer.body.contains("no such path"), "{}", answer.body);
    }
    assert_eq!(server.get("/openapi.json").status, 200);
    let server = Server::start(&["--no-ui", "--model", &model]);
    assert_eq!(server.get("/").status, 404);
}
