//! Token ids in place of texts on OpenAI's route.
#![allow(clippy::unwrap_used, reason = "a test that unwraps in vain fails, as it should")]

mod support;

use std::sync::Arc;

use axum::body::Body;
use axum::http::{Request, Response, header};
use embedding_server::http::{self, Shared};
use embedding_server::model::Directory;
use embedding_server::model::fake::Fake;
use embedding_server::models::Loaded;
use embedding_server::token_ids::{TokenIds, Vocabulary};
use embedding_server::tokenize::{Encode, How, Tokenizer};
use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use support::{http_settings, in_service, loaded, minilm, settings, shared};
use tower::ServiceExt as _;

fn server(token_ids: TokenIds) -> Arc<Shared> {
    let http = http::Settings { token_ids, max_body_bytes: 1 << 20, ..http_settings() };
    shared(&[("fake", Fake::new(4))], &settings(), http)
}

/// A server of a fake model with a real tokenizer.
fn server_with(tokenizer: Arc<dyn Encode>) -> Arc<Shared> {
    let (models, metrics) = in_service("fake", Loaded { tokenizer, ..loaded(&Fake::new(4)) });
    Shared::new(models, metrics, http::Settings { token_ids: TokenIds::Model, ..http_settings() })
}

fn bert() -> Arc<dyn Encode> {
    let directory = Directory::read(&minilm()).unwrap();
    Arc::new(Tokenizer::load(&directory, 30_522).unwrap())
}

/// What `/v1/embeddings` answers.
async fn ask(shared: &Arc<Shared>, input: Value) -> (Response<()>, Value) {
    let request = Request::post("/v1/embeddings").header(header::CONTENT_TYPE, "application/json");
    let body = json!({"model": "fake", "input": input}).to_string();
    let response =
        http::router(Arc::clone(shared)).oneshot(request.body(Body::from(body)).unwrap()).await.unwrap();
    let (head, body) = response.into_parts();
    let bytes = body.collect().await.unwrap().to_bytes();
    let body = serde_json::from_slice(&bytes).unwrap_or_else(|error| panic!("{error}: {bytes:?}"));
    (Response::from_parts(head, ()), body)
}

/// The message of the 400 that is about this field.
async fn refused(shared: &Arc<Shared>, input: Value, param: &str) -> String {
    let (head, answer) = ask(shared, input).await;
    assert_eq!((head.status().as_u16(), &answer["error"]["param"]), (400, &json!(param)), "{answer}");
    answer["error"]["message"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn ids_are_refused_with_what_to_change_unless_the_server_knows_whose_they_are() {
    let shared = server(TokenIds::Refuse);
    for input in [json!([1, 2]), json!([[1], [2, 3]]), json!([[]])] {
        let message = refused(&shared, input, "input").await;
        assert!(message.contains("check_embedding_ctx_length=False"), "{message}");
        assert!(message.contains("--openai-token-ids"), "{message}");
    }
}

#[tokio::test]
async fn ids_of_openais_tokenizers_are_embedded_as_the_texts_that_they_are_of() {
    for (vocabulary, hello, world) in
        [(Vocabulary::Cl100kBase, 15339, 1917), (Vocabulary::O200kBase, 24912, 2375)]
    {
        let shared = server(TokenIds::Of(vocabulary));
        let (_, of_texts) = ask(&shared, json!(["hello world", "hello", ""])).await;
        let (_, of_ids) = ask(&shared, json!([[hello, world], [hello], []])).await;
        assert_eq!(of_ids, of_texts);
        let (_, of_text) = ask(&shared, json!("hello world")).await;
        assert_eq!(ask(&shared, json!([hello, world])).await.1, of_text);
    }
}

#[tokio::test]
async fn ids_that_are_none_or_of_no_text_are_named_by_their_place() {
    let shared = server(TokenIds::Of(Vocabulary::Cl100kBase));
    for (input, param, message) in [
        (json!([15339, 200_000]), "input[0][1]", "input[0][1] is no token id of cl100k_base"),
        (json!([[15339], [1917, -1]]), "input[1][1]", "input[1][1] is no token id of cl100k_base"),
        // Two of the three tokens of a character.
        (
            json!([[15339], [9468, 237]]),
            "input[1]",
            "input[1] is no text: the bytes of its tokens are not UTF-8",
        ),
        (json!(["a", [1]]), "input", "input mixes texts and token ids: send one or the other"),
        (json!([1, [1]]), "input", "input mixes texts and token ids: send one or the other"),
        (
            json!([[1.5]]),
            "input[0][0]",
            "input[0][0]: invalid type: floating point `1.5`, expected the id of a token",
        ),
    ] {
        let found = refused(&shared, input.clone(), param).await;
        assert!(found.starts_with(message), "{input}: {found}");
    }
    let (head, answer) = ask(&shared, json!(vec![[15339]; 101])).await;
    assert_eq!((head.status().as_u16(), &answer["error"]["code"]), (400, &json!("too_many_texts")));
    // A short request for a long text, which would be refused if it came as a text.
    let ids = tiktoken_rs::cl100k_base_singleton().encode_ordinary(&" ".repeat(64));
    let (head, answer) = ask(&shared, json!(ids.repeat((1 << 20) / 64 + 1))).await;
    assert_eq!(
        (head.status().as_u16(), &answer["error"]["code"]),
        (413, &json!("body_too_large")),
        "{answer}"
    );
}

#[tokio::test]
async fn ids_of_the_models_own_tokenizer_are_believed_if_it_makes_them_of_their_text() {
    let tokenizer = bert();
    let shared = server_with(Arc::clone(&tokenizer));
    for text in ["Hello, world! It's unaffable.", "a-b_c (d) 3.14", "", "日本 naïve"] {
        let (_, of_text) = ask(&shared, json!(text)).await;
        for special in [true, false] {
            let tokens = tokenizer.tokens(text, &How::default(), special).unwrap();
            let ids: Vec<_> = tokens.iter().map(|token| token.id).collect();
            let (head, of_ids) = ask(&shared, json!([ids])).await;
            assert_eq!(head.status(), 200, "{text:?}: {of_ids}");
            assert_eq!(of_ids, of_text, "{text:?} {special}");
        }
    }
    // The second part of a word (##ing) alone, and an unknown word.
    for ids in [[2075], [100]] {
        let found = refused(&shared, json!([[7592], ids]), "input[1]").await;
        let message = "input[1] holds tokens that the model's tokenizer makes of no text";
        assert!(found.starts_with(message), "{ids:?}: {found}");
    }
    let found = refused(&shared, json!([[7592], [7592, 30_522]]), "input[1][1]").await;
    assert_eq!(found, "input[1][1] is no token id of the model's tokenizer");
}
