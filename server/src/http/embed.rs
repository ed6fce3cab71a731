//! What every surface does between its two wire types: find the model, decide, embed, count; and
//! what an answer with vectors says about itself in its headers.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::ConnectInfo;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue};

use super::Shared;
use super::error::ApiError;
use crate::batcher::Client;
use crate::cache::{Found, Outcome};
use crate::embedder::{self, Caller, Embedded, Embedder, Text};
use crate::options::{Decided, Options};
use crate::space::Space;
use crate::tokenize::Input;

/// The header that says how many texts of the request lost something to the model's limit.
pub const TRUNCATED_INPUTS: HeaderName = HeaderName::from_static("x-truncated-inputs");
/// The header that says which space the vectors are of.
pub const SPACE: HeaderName = HeaderName::from_static("x-embedding-space");
/// The header that says whether the vectors were kept from before, where any are: `HIT`, `MISS` or, of
/// several texts, `PARTIAL`.
pub const CACHE: HeaderName = HeaderName::from_static("x-cache");
/// The header in which a caller says which space it expects.
pub const EXPECTED_SPACE: HeaderName = HeaderName::from_static("x-expect-embedding-space");

/// The header in which a caller says how urgent it is: `interactive` or `bulk`.
pub const PRIORITY: HeaderName = HeaderName::from_static("x-priority");

/// A request for vectors, whatever API it came by.
#[derive(Debug)]
pub(super) struct Call {
    /// The model, by a name of it; none where there is one only.
    pub(super) model: Option<String>,
    /// What is to be embedded.
    pub(super) inputs: Vec<Input>,
    /// How.
    pub(super) options: Options,
}

impl Call {
    /// One for texts.
    pub(super) fn of_texts(model: Option<String>, texts: Vec<String>, options: Options) -> Self {
        Self { model, inputs: texts.into_iter().map(Input::Text).collect(), options }
    }
}

/// Its vectors.
#[derive(Debug)]
pub(super) struct Answer {
    /// The model's own name.
    pub(super) name: Arc<str>,
    /// The vectors, and what became of the texts.
    pub(super) embedded: Embedded,
    /// What the options came to.
    pub(super) decided: Decided,
    /// Whether the vectors were there, if any are kept.
    pub(super) cached: Option<Outcome>,
}

impl Answer {
    /// How many numbers its vectors have, all together.
    pub(super) fn numbers(&self) -> usize {
        self.embedded.vectors.len() * self.decided.dimensions
    }

    /// What it says about itself in its headers.
    pub(super) fn headers(&self) -> HeaderMap {
        let mut headers = headers_of(&self.embedded.texts, Some(&self.decided.space));
        if let Some(outcome) = self.cached {
            headers.insert(CACHE, HeaderValue::from_static(outcome.name()));
        }
        headers
    }
}

/// What an answer says about itself in its headers: what became of its texts, and the space of its vectors,
/// if it has any.
pub(super) fn headers_of(texts: &[Text], space: Option<&Space>) -> HeaderMap {
    let truncated = texts.iter().filter(|text| text.truncated).count();
    let mut headers = HeaderMap::from_iter([(TRUNCATED_INPUTS, HeaderValue::from(truncated))]);
    if let Some(Ok(space)) = space.map(|space| HeaderValue::from_str(&space.to_string())) {
        headers.insert(SPACE, space);
    }
    headers
}

/// Who asks, by the address at the other end of the connection, and how urgently.
///
/// `X-Forwarded-For` is not looked at, because anybody can send it and be somebody else with each request.
pub(super) fn caller(head: &Parts) -> Result<Caller, ApiError> {
    let address = head.extensions.get::<ConnectInfo<SocketAddr>>();
    let client = address.map_or(Client::Unknown, |ConnectInfo(address)| {
        // One host is one client, by whichever kind of socket it comes.
        Client::Address(address.ip().to_canonical())
    });
    let lane = head.headers.get(PRIORITY).map(|value| value.to_str().unwrap_or_default().trim().parse());
    let unknown = |()| ApiError::bad_field("X-Priority", "X-Priority must be interactive or bulk");
    Ok(Caller { client, lane: lane.transpose().map_err(unknown)? })
}

/// The model that is meant, and all that is said of what is wanted of it.
pub(super) fn find(
    shared: &Shared,
    head: &Parts,
    model: Option<&str>,
    mut options: Options,
) -> Result<(Arc<str>, Arc<Embedder>, Options), ApiError> {
    let named = shared.models.get(model)?;
    options.suffix = named.suffix;
    if let Some(expected) = head.headers.get(EXPECTED_SPACE) {
        let expected = expected.to_str().unwrap_or("(unreadable)").trim();
        if options.expected_space.as_deref().is_some_and(|other| other != expected) {
            let message = "expected_space and the header X-Expect-Embedding-Space name two spaces";
            return Err(ApiError::bad_field("expected_space", message));
        }
        options.expected_space = Some(expected.to_owned());
    }
    Ok((named.name, named.embedder, options))
}

/// The model and what is to be done, before any work is.
pub(super) fn decide(
    shared: &Shared,
    head: &Parts,
    model: Option<&str>,
    options: Options,
) -> Result<(Arc<str>, Arc<Embedder>, Decided), ApiError> {
    let (name, embedder, options) = find(shared, head, model, options)?;
    let decided = embedder.decide(&options)?;
    Ok((name, embedder, decided))
}

/// Embeds and counts.
pub(super) async fn embed(shared: &Shared, head: &Parts, call: Call) -> Result<Answer, ApiError> {
    let (name, front_door, decided) = decide(shared, head, call.model.as_deref(), call.options)?;
    let caller = caller(head)?;
    let Some(cache) = &shared.cache else {
        let result = front_door.embed(call.inputs, &decided, caller).await;
        let embedded = result.inspect_err(|error| count_refusal(shared, &name, error))?;
        shared.metrics.embedded(&name, &embedded.texts);
        return Ok(Answer { name, embedded, decided, cached: None });
    };
    let result = cache.embed(&front_door, call.inputs, &decided, caller).await;
    let found = result.inspect_err(|error| count_refusal(shared, &name, error))?;
    let cached = Some(found.outcome());
    let Found { embedded, computed, hits } = found;
    shared.metrics.embedded(&name, &computed);
    shared.metrics.looked_up(&name, hits, embedded.texts.len() - hits);
    Ok(Answer { name, embedded, decided, cached })
}

/// Counts a request that was refused because too much waits.
pub(super) fn count_refusal(shared: &Shared, name: &str, error: &embedder::Error) {
    if matches!(error, embedder::Error::Overloaded { .. }) {
        shared.metrics.rejected(name);
    }
}
