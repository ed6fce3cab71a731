//! text-embeddings-inference's API, as its code has it (version 1.9.3), for its clients and for those of
//! Hugging Face's inference endpoints.
//!
//! It serves one model, which no request names. Here, `/models/{name}/embed` and the like ask the model
//! of that name; without one, the only model is meant, or that of a field `model`. Names may have slashes.
//!
//! # What differs
//! - Token ids are not taken in place of texts: those of another model's tokenizer would give a wrong
//!   vector.
//! - An empty text is a text like any other.
//! - A text that is too long is cut where the server is set to, which it is by default; how many were is
//!   told in `X-Truncated-Inputs`.
//! - Mistakes in the JSON have the shape of all other errors.
//! - `/decode` refuses ids that are not the model's.
//! - `POST /` and `/rerank` know by its fields what a body is: a similarity, a ranking in Jina's words.

mod embed;
mod info;
mod paths;
mod scores;
mod tokens;
mod wire;

use std::time::Instant;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::response::Response;
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::error::ApiError;
use super::{Shared, json};
use crate::scores::Kind;
pub(super) use info::*;
pub(super) use paths::*;

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verb {
    /// What the model is there for.
    Default,
    Embed,
    EmbedAll,
    EmbedSparse,
    Similarity,
    Rerank,
    Predict,
    Tokenize,
    Decode,
}

impl Verb {
    /// By the last part of a path.
    fn named(name: &str) -> Option<Self> {
        Some(match name {
            "embed" => Self::Embed,
            "embed_all" => Self::EmbedAll,
            "embed_sparse" => Self::EmbedSparse,
            "similarity" => Self::Similarity,
            "rerank" => Self::Rerank,
            "predict" => Self::Predict,
            "tokenize" => Self::Tokenize,
            "decode" => Self::Decode,
            "" | "invocations" => Self::Default,
            _ => return None,
        })
    }
}

/// A request that was read.
struct Asked<'a> {
    shared: &'a Shared,
    head: Parts,
    /// The model, by a name of it.
    model: Option<String>,
    body: Vec<u8>,
    begun: Instant,
}

/// What tells bodies apart, and names a model where the path does not.
#[derive(Default, Deserialize)]
struct Peek {
    #[serde(default)]
    model: Option<String>,
    inputs: Option<Inputs>,
    texts: Option<IgnoredAny>,
    documents: Option<IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Inputs {
    Compared {
        #[serde(rename = "source_sentence")]
        _source_sentence: IgnoredAny,
    },
    Other(IgnoredAny),
}

impl Asked<'_> {
    /// What a request without a verb asks: text-embeddings-inference goes by its model alone, so that
    /// clients that compare sentences need a server of their own.
    fn default_verb(&self, peek: &Peek) -> Result<Verb, ApiError> {
        let embedder = self.shared.models.get(self.model.as_deref())?.embedder;
        Ok(match &embedder.about().kind {
            Kind::Embedding if matches!(peek.inputs, Some(Inputs::Compared { .. })) => Verb::Similarity,
            Kind::Embedding => Verb::Embed,
            Kind::CrossEncoder(classifier) if classifier.labels.len() == 1 => Verb::Rerank,
            Kind::CrossEncoder(_) => Verb::Predict,
        })
    }
}

async fn answer(
    shared: &Shared,
    request: Request,
    model: Option<String>,
    verb: Verb,
) -> Result<Response, ApiError> {
    let begun = Instant::now();
    let (head, body) = json::bytes(request, &shared.settings).await?;
    json::check_count(&body, &shared.settings)?;
    // What is wrong with the body is told by the verb, who knows what it should be.
    let mut peek: Peek = json::parse(&body).unwrap_or_default();
    let model = model.or_else(|| peek.model.take());
    let asked = Asked { shared, head, model, body, begun };
    let verb = if verb == Verb::Default { asked.default_verb(&peek)? } else { verb };
    match verb {
        Verb::Default | Verb::Embed => embed::embed(asked).await,
        Verb::EmbedAll => embed::embed_all(asked).await,
        Verb::EmbedSparse => embed::embed_sparse(&asked),
        Verb::Similarity => embed::similarity(asked).await,
        Verb::Rerank if peek.documents.is_some() && peek.texts.is_none() => {
            scores::rank_documents(asked).await
        }
        Verb::Rerank => scores::rerank(asked).await,
        Verb::Predict => scores::predict(asked).await,
        Verb::Tokenize => tokens::tokenize(asked).await,
        Verb::Decode => tokens::decode(asked).await,
    }
}

/// The headers in which its clients look for what an answer cost. It tells more times than are measured
/// here for a request.
fn with_costs(mut headers: HeaderMap, characters: usize, tokens: usize, begun: Instant) -> HeaderMap {
    let took = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
    headers.extend([
        (HeaderName::from_static("x-compute-type"), HeaderValue::from_static("cpu")),
        (HeaderName::from_static("x-compute-characters"), HeaderValue::from(characters)),
        (HeaderName::from_static("x-compute-tokens"), HeaderValue::from(tokens)),
        (HeaderName::from_static("x-compute-time"), HeaderValue::from(took)),
        (HeaderName::from_static("x-total-time"), HeaderValue::from(took)),
    ]);
    headers
}

/// Characters of all texts.
fn characters<'a>(texts: impl IntoIterator<Item = &'a String>) -> usize {
    texts.into_iter().map(|text| text.chars().count()).sum()
}

/// A model's name, and what is asked of it: names may have slashes, and verbs.
fn split(rest: &str) -> (&str, Verb) {
    let verb = rest.rsplit_once('/').and_then(|(name, last)| Some((name, Verb::named(last)?)));
    verb.unwrap_or((rest, Verb::Default))
}

/// What follows `/models/`, decoded.
fn rest_of(path: Result<Path<String>, PathRejection>) -> Result<String, ApiError> {
    let Path(rest) = path.map_err(|_| {
        ApiError::bad_request("invalid_utf8", "the model's name in the path is not valid UTF-8")
    })?;
    Ok(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_split_at_its_last_part_where_that_is_a_verb() {
        for (rest, name, verb) in [
            ("m/embed", "m", Verb::Embed),
            ("org/m/embed_all", "org/m", Verb::EmbedAll),
            ("org/embed/rerank", "org/embed", Verb::Rerank),
            ("org/m", "org/m", Verb::Default),
            ("m/", "m", Verb::Default),
            ("m/invocations", "m", Verb::Default),
            ("embed", "embed", Verb::Default),
        ] {
            assert_eq!(split(rest), (name, verb), "{rest}");
        }
    }
}
