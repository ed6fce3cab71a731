//! What a request can be refused with, for the API's description: by what it asks for, in the shape of its
//! API.
//!
//! ```text
//! #[utoipa::path(…, responses((status = 200, …), VectorErrors<Own>))]
//! ```
//!
//! Each refusal is an error as the code makes it, so that the status, and whether `Retry-After` comes
//! with it, are those that clients of that API get.

use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::time::Duration;

use axum::http::header;
use utoipa::openapi::header::HeaderBuilder;
use utoipa::openapi::schema::{ObjectBuilder, Type};
use utoipa::openapi::{ContentBuilder, Ref, RefOr, Response, ResponseBuilder};
use utoipa::{IntoResponses, ToSchema};

use super::error::{ApiError, Body, CohereBody, JinaBody, OllamaBody, Shape, TeiBody};
use crate::{embedder, models, options, tokenize, worker};

/// An API with a shape of errors of its own.
pub(super) trait Api {
    /// The shape.
    const SHAPE: Shape;
    /// The shape as the API's description has it.
    type Error: ToSchema;
}

macro_rules! apis {
    ($($(#[$doc:meta])* $api:ident: $error:ty;)*) => {$(
        $(#[$doc])*
        pub(super) enum $api {}

        impl Api for $api {
            const SHAPE: Shape = Shape::$api;
            type Error = $error;
        }
    )*};
}

apis! {
    /// Our own.
    Own: Body<'static>;
    /// OpenAI's.
    OpenAi: Body<'static>;
    /// text-embeddings-inference's.
    Tei: TeiBody<'static>;
    /// Cohere's.
    Cohere: CohereBody<'static>;
    /// Ollama's.
    Ollama: OllamaBody<'static>;
    /// Jina's.
    Jina: JinaBody<'static>;
}

/// What refuses any request.
pub(super) struct AnyErrors<A>(PhantomData<A>);
/// What refuses a request that names a model.
pub(super) struct ModelErrors<A>(PhantomData<A>);
/// What refuses a request with a body that names a model, and wants no vectors.
pub(super) struct BodyErrors<A>(PhantomData<A>);
/// What refuses a request for another model to be served.
pub(super) struct ChangeErrors<A>(PhantomData<A>);
/// What refuses a request without a body for vectors.
pub(super) struct QueryErrors<A>(PhantomData<A>);
/// What refuses a request with a body for vectors, or for what is made of them.
pub(super) struct VectorErrors<A>(PhantomData<A>);

impl<A: Api> IntoResponses for AnyErrors<A> {
    fn responses() -> Responses {
        responses::<A>([any()])
    }
}

impl<A: Api> IntoResponses for ModelErrors<A> {
    fn responses() -> Responses {
        responses::<A>([any(), model()])
    }
}

impl<A: Api> IntoResponses for BodyErrors<A> {
    fn responses() -> Responses {
        responses::<A>([any(), model(), body(), nothing::<A>()])
    }
}

impl<A: Api> IntoResponses for ChangeErrors<A> {
    fn responses() -> Responses {
        responses::<A>([any(), change(), received(), texts()])
    }
}

impl<A: Api> IntoResponses for QueryErrors<A> {
    fn responses() -> Responses {
        responses::<A>([any(), model(), vectors()])
    }
}

impl<A: Api> IntoResponses for VectorErrors<A> {
    fn responses() -> Responses {
        responses::<A>([any(), model(), vectors(), body(), nothing::<A>(), texts()])
    }
}

type Responses = BTreeMap<String, RefOr<Response>>;

/// An error, and when it comes.
type Refusal = (ApiError, &'static str);

fn any() -> Vec<Refusal> {
    vec![
        (ApiError::internal(""), "a mistake of the server"),
        (ApiError::request_timeout(0), "the request took longer than `--request-timeout`"),
    ]
}

const WRONG_FIELD: &str = "a field is missing, unknown, empty or of the wrong type";
const NOT_UTF8: &str = "what was sent is not UTF-8";
const UNKNOWN: &str = "no model has this name";
const OVERLOADED: &str = "too many texts wait, or too many requests are under way";

fn model() -> Vec<Refusal> {
    let (name, served) = (String::new(), Vec::new());
    let unnamed = models::Error::Unnamed { served: served.clone() };
    let unknown = models::Error::Unknown { name: name.clone(), served };
    let loading = models::Error::Loading { name: name.clone(), step: String::new() };
    let failed = models::Error::Failed { name, why: String::new() };
    vec![
        (ApiError::bad_field("", ""), WRONG_FIELD),
        (ApiError::bad_request("invalid_utf8", ""), NOT_UTF8),
        (unnamed.into(), "several models are served, and the request names none"),
        (unknown.into(), UNKNOWN),
        (loading.into(), "the model is not ready yet"),
        (failed.into(), "the model could not be loaded"),
        (models::Error::Empty.into(), "every model was unloaded"),
        (ApiError::no_such_kind(""), "the model is of a kind that does not do this"),
    ]
}

fn change() -> Vec<Refusal> {
    let unknown = models::Error::Unknown { name: String::new(), served: Vec::new() };
    vec![
        (ApiError::bad_field("", ""), WRONG_FIELD),
        (ApiError::bad_request("invalid_utf8", ""), NOT_UTF8),
        (models::Error::Fixed.into(), "the server was started without `--allow-model-changes`"),
        (ApiError::not_for_browsers(), "the request has an `Origin`"),
        (unknown.into(), UNKNOWN),
        (
            models::Error::Taken { name: String::new() }.into(),
            "another model answers to the name, or to an alias",
        ),
        (models::Error::TooMany.into(), "there are as many models as there may be"),
        (models::Error::Stopping.into(), "the server is stopping"),
    ]
}

fn body() -> Vec<Refusal> {
    let mut body = received();
    body.push((ApiError::too_many_requests(0), OVERLOADED));
    body
}

fn received() -> Vec<Refusal> {
    vec![
        (ApiError::bad_request("invalid_json", ""), "the body is not JSON"),
        (ApiError::bad_request("unreadable_body", ""), "the connection broke off inside the body"),
        (ApiError::body_timeout(0), "nothing of the body arrived for 60 s"),
        (ApiError::body_too_large(0), "the body is larger than `--max-body-bytes`"),
        (ApiError::unsupported_media_type(""), "the content type is not JSON"),
    ]
}

/// Our own API and OpenAI's call it a wrong field.
fn nothing<A: Api>() -> Vec<Refusal> {
    match A::SHAPE {
        Shape::Own | Shape::OpenAi => Vec::new(),
        _ => vec![(ApiError::empty(""), "nothing to be worked on")],
    }
}

fn vectors() -> Vec<Refusal> {
    let too_long = tokenize::Error::TooLong { index: 0, max_tokens: 0, limit: None };
    let forward = embedder::Error::Text { index: 0, source: worker::Error::Failed(String::new()) };
    let too_large = embedder::Error::Text { index: 0, source: worker::Error::TooLarge { tokens: 0 } };
    let overloaded = embedder::Error::Overloaded { retry_after: Duration::ZERO };
    vec![
        (embedder::Error::TooLong(too_long).into(), "a text is too long, and was not to be cut"),
        (ApiError::other_space(""), "the vectors would be of another space than the expected one"),
        (options::Error::InputTypeMissing.into(), "`--require-input-type`, and the request does not say it"),
        (overloaded.into(), OVERLOADED),
        (too_large.into(), "a text alone is more than the GPU has memory for"),
        (forward.into(), "the model failed on a text"),
        (embedder::Error::Stopping.into(), "the server is stopping, or the model was unloaded"),
    ]
}

fn texts() -> Vec<Refusal> {
    let too_many = embedder::Error::TooManyTexts { found: 0, limit: 0 };
    vec![(too_many.into(), "more texts than `--max-texts`")]
}

/// One response a status, in its API's shape.
fn responses<A: Api>(refusals: impl IntoIterator<Item = Vec<Refusal>>) -> Responses {
    let mut statuses: BTreeMap<String, (bool, Vec<String>)> = BTreeMap::new();
    for (error, when) in refusals.into_iter().flatten() {
        let line = match A::SHAPE {
            Shape::Own | Shape::OpenAi => format!("`{}`: {when}", error.code()),
            _ => when.to_owned(),
        };
        let made = error.response(A::SHAPE);
        let (later, lines) = statuses.entry(made.status().as_str().to_owned()).or_default();
        *later |= made.headers().contains_key(header::RETRY_AFTER);
        if !lines.contains(&line) {
            lines.push(line);
        }
    }
    let response = |(status, (later, lines)): (String, (bool, Vec<String>))| {
        let schema = Ref::from_schema_name(A::Error::name());
        let content = ContentBuilder::new().schema(Some(schema)).build();
        let mut response =
            ResponseBuilder::new().description(lines.join("; ")).content("application/json", content);
        if later {
            response = response.header("Retry-After", retry_after());
        }
        (status, response.build().into())
    };
    statuses.into_iter().map(response).collect()
}

fn retry_after() -> utoipa::openapi::Header {
    let seconds = ObjectBuilder::new().schema_type(Type::Integer).minimum(Some(1));
    HeaderBuilder::new()
        .schema(seconds)
        .description(Some("seconds after which another try is worth it; not with every one of these"))
        .build()
}
