//! The API's description: put together from what stands beside each handler, and served at
//! `/openapi.json`.
//!
//! What holds for every operation of a kind is said here, once: every answer has a request id, and what
//! can be refused for its space (412) can name the space that it expects, and tells its own.

use std::sync::LazyLock;

use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use utoipa::openapi::header::{Header, HeaderBuilder};
use utoipa::openapi::path::{Operation, ParameterBuilder, ParameterIn};
use utoipa::openapi::schema::{ObjectBuilder, Type};
use utoipa::openapi::{Content, PathItem, Ref, RefOr, Required, Response};
use utoipa::{Modify, OpenApi};

use super::error::{Body, CohereBody, JinaBody, OllamaBody, TeiBody};
use super::refusals::{AnyErrors, Own};
use super::{cohere, health, models, native, ollama, openai, pages, rerank, tei};
use crate::batcher::Lane;

#[derive(OpenApi)]
#[openapi(
    info(
        title = "embedding-server",
        description = "Text embeddings over HTTP. Every answer has `X-Request-Id`: the caller's own, where it \
                       sent one of up to 128 plain characters, else a new one. What is no path or no method of a \
                       path is answered with 404 and 405, in the shape of the errors below.",
    ),
    paths(
        native::post_embeddings,
        native::get_embeddings,
        openai::embeddings,
        cohere::embed_v1,
        cohere::embed_v2,
        ollama::embed_texts,
        ollama::embed_prompt,
        rerank::cohere,
        rerank::jina,
        tei::default,
        tei::invocations,
        tei::embed,
        tei::embed_all,
        tei::embed_sparse,
        tei::similarity,
        tei::rerank,
        tei::predict,
        tei::tokenize,
        tei::decode,
        tei::of_model,
        tei::info,
        tei::ping,
        tei::about_model,
        models::list,
        models::change,
        openai::models,
        openai::model,
        ollama::tags,
        ollama::show,
        ollama::version,
        health::health,
        health::livez,
        health::metrics,
        pages::start,
        pages::docs,
        json,
    ),
    components(schemas(Body<'_>, TeiBody<'_>, CohereBody<'_>, OllamaBody<'_>, JinaBody<'_>)),
    tags(
        (name = "Embeddings", description = "Our own API."),
        (name = "OpenAI", description = "For clients of OpenAI, NIM, Jina and Voyage: their base URL is `/v1`."),
        (name = "Cohere", description = "For Cohere's clients: their base URL is `/`."),
        (name = "Ollama", description = "For Ollama's clients: their base URL is `/`."),
        (name = "Reranking", description = "Cross-encoders put documents in order, for clients of Cohere and Jina."),
        (name = "text-embeddings-inference", description = "For its clients: their base URL is `/`, or `/models/NAME` where several models are served."),
        (name = "Models", description = "What is served."),
        (name = "Operations", description = "For those who run the server."),
        (name = "Pages", description = "For people; `--no-ui` turns them off."),
    ),
    modifiers(&Headers, &Shared),
)]
struct Document;

/// The headers that come and go with every operation of a kind.
struct Headers;

impl Modify for Headers {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        for operation in document.paths.paths.values_mut().flat_map(operations) {
            let of_a_space =
                operation.responses.responses.contains_key(StatusCode::PRECONDITION_FAILED.as_str());
            if of_a_space {
                expect_space(operation);
                take_priority(operation);
            }
            for (status, response) in &mut operation.responses.responses {
                let RefOr::T(response) = response else { continue };
                response.headers.insert("X-Request-Id".into(), text("the request's id, as logs have it"));
                if of_a_space && status.starts_with('2') {
                    response.headers.insert(
                        "X-Embedding-Space".into(),
                        text("the space that the vectors are of, if there are any"),
                    );
                    response.headers.insert("X-Truncated-Inputs".into(), truncated());
                    let cache = "`HIT`, `MISS` or `PARTIAL`: whether the vectors were kept; only with `--cache-bytes`";
                    response.headers.insert("X-Cache".into(), text(cache));
                }
            }
        }
    }
}

/// What many operations answer, which is said once: without it, the description were three times as long.
struct Shared;

impl Modify for Shared {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let mut shared: Vec<(String, Response)> = Vec::new();
        for operation in document.paths.paths.values_mut().flat_map(operations) {
            for (status, response) in &mut operation.responses.responses {
                let RefOr::T(own) = &*response else { continue };
                let Some(error) = own.content.values().find_map(error_of) else { continue };
                let name = if let Some((name, _)) = shared.iter().find(|(_, other)| other == own) {
                    name.clone()
                } else {
                    let name = name_of(&format!("{error}{status}"), &shared);
                    shared.push((name.clone(), own.clone()));
                    name
                };
                *response = RefOr::Ref(Ref::from_response_name(name));
            }
        }
        let responses = shared.into_iter().map(|(name, response)| (name, response.into()));
        document.components.get_or_insert_default().responses.extend(responses);
    }
}

/// The type of a response's body, if that is an error.
fn error_of(content: &Content) -> Option<String> {
    let Some(RefOr::Ref(schema)) = &content.schema else { return None };
    let name = schema.ref_location.rsplit('/').next()?;
    name.ends_with("Error").then(|| name.to_owned())
}

/// A name that none of `taken` has: the wanted one, or that with a number.
fn name_of(wanted: &str, taken: &[(String, Response)]) -> String {
    let free = |name: &String| taken.iter().all(|(other, _)| other != name);
    let mut numbered = (2..).map(|number| format!("{wanted}-{number}"));
    Some(wanted.to_owned()).filter(free).or_else(|| numbered.find(free)).unwrap_or_default()
}

fn operations(item: &mut PathItem) -> impl Iterator<Item = &mut Operation> {
    [&mut item.get, &mut item.post].into_iter().flatten()
}

fn expect_space(operation: &mut Operation) {
    let header = ParameterBuilder::new()
        .name("X-Expect-Embedding-Space")
        .parameter_in(ParameterIn::Header)
        .required(Required::False)
        .description(Some("the space that the vectors must be of, or none are made"))
        .schema(Some(ObjectBuilder::new().schema_type(Type::String)))
        .build();
    operation.parameters.get_or_insert_default().push(header);
}

fn take_priority(operation: &mut Operation) {
    let lanes = Lane::ALL.map(Lane::name);
    let header = ParameterBuilder::new()
        .name("X-Priority")
        .parameter_in(ParameterIn::Header)
        .required(Required::False)
        .description(Some(format!(
            "how urgent the texts are; otherwise it goes by how many there are: up to {} are interactive",
            Lane::MOST_INTERACTIVE
        )))
        .schema(Some(ObjectBuilder::new().schema_type(Type::String).enum_values(Some(lanes))))
        .build();
    operation.parameters.get_or_insert_default().push(header);
}

fn text(description: &str) -> Header {
    let schema = ObjectBuilder::new().schema_type(Type::String);
    HeaderBuilder::new().schema(schema).description(Some(description)).build()
}

fn truncated() -> Header {
    let schema = ObjectBuilder::new().schema_type(Type::Integer).minimum(Some(0));
    HeaderBuilder::new()
        .schema(schema)
        .description(Some("how many texts lost something to the model's limit"))
        .build()
}

/// The API's description, as it is served.
pub fn document() -> String {
    let mut text = Document::openapi().to_pretty_json().unwrap_or_default();
    text.push('\n');
    text
}

/// This description of the API.
#[utoipa::path(
    get,
    path = "/openapi.json",
    tag = "Pages",
    operation_id = "openapi",
    responses((status = 200, description = "the description", body = Object), AnyErrors<Own>),
)]
pub(super) async fn json() -> axum::response::Response {
    static DOCUMENT: LazyLock<String> = LazyLock::new(document);
    ([(header::CONTENT_TYPE, "application/json")], DOCUMENT.as_str()).into_response()
}
