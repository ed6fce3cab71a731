//! Documents in the order of how well they go with a query: for every surface ([`rank`]), and in the
//! shapes of Cohere (`POST /v2/rerank`) and of Jina (`POST /v1/rerank`).
//!
//! `relevance_score` is the sigmoid of the model's logit, as both have it between 0 and 1, whatever
//! activation the model is configured with; the sigmoid keeps the order.
//! text-embeddings-inference's `/rerank` gives the logits, too (`raw_scores`).
//!
//! <https://docs.cohere.com/reference/rerank> and <https://jina.ai/reranker> describe them. Cohere's
//! older clients call `/v1/rerank`, too: Jina's answer has all that they read. Unknown fields (`priority`)
//! are ignored, as there.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use axum::http::HeaderMap;
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::cohere::{id, warnings};
use super::embed::{caller, count_refusal, find, headers_of};
use super::error::ApiError;
use super::refusals::{Cohere, Jina, VectorErrors};
use super::truncate::Truncate;
use super::{Shared, SharedState, json};
use crate::embedder::Text;
use crate::options::Options;
use crate::scores::{Rank, probabilities, ranked};
use crate::tokenize::{How, Input, Overflow};

/// A query and documents, whatever API they came by.
#[derive(Debug)]
pub(super) struct Ask {
    /// The model, by a name of it; none where there is one only.
    pub(super) model: Option<String>,
    /// What is looked for.
    pub(super) query: String,
    /// Where it is looked for.
    pub(super) documents: Vec<String>,
    /// What makes a document a good one, in place of the model's default prompt.
    pub(super) instruction: Option<String>,
    /// What becomes of documents that are too long; otherwise as the model says.
    pub(super) overflow: Option<Overflow>,
    /// The most tokens of a document.
    pub(super) most_of_document: Option<usize>,
    /// Whether scores are logits and not their sigmoid.
    pub(super) raw: bool,
}

/// Documents in order.
#[derive(Debug)]
pub(super) struct Ranking {
    /// The model's own name.
    pub(super) name: Arc<str>,
    /// The best first.
    pub(super) ranks: Vec<Rank>,
    /// What became of each document with its query, in the order of the request.
    pub(super) texts: Vec<Text>,
}

impl Ranking {
    /// What it says about itself in its headers.
    pub(super) fn headers(&self) -> HeaderMap {
        headers_of(&self.texts, None)
    }

    /// Tokens of all documents, each with its query.
    pub(super) fn tokens(&self) -> usize {
        self.texts.iter().map(|text| text.tokens).sum()
    }

    fn truncated(&self) -> Vec<usize> {
        let texts = self.texts.iter().enumerate();
        texts.filter(|(_, text)| text.truncated).map(|(place, _)| place).collect()
    }
}

/// Ranks and counts.
pub(super) async fn rank(shared: &Shared, head: &Parts, ask: Ask) -> Result<Ranking, ApiError> {
    let options = Options { overflow: ask.overflow, prompt: ask.instruction, ..Options::default() };
    let (name, embedder, options) = find(shared, head, ask.model.as_deref(), options)?;
    let decided = embedder.decide_ranking(&options)?;
    let caller = caller(head)?;
    let query: Arc<str> = ask.query.into();
    let pair = |document| Input::Pair(Arc::clone(&query), document);
    let pairs = ask.documents.into_iter().map(pair).collect();
    let how = How { most_of_second: ask.most_of_document, ..decided.how };
    let scored = embedder.score(pairs, &how, caller).await;
    let scored = scored.inspect_err(|error| count_refusal(shared, &name, error))?;
    shared.metrics.embedded(&name, &scored.texts);
    let score = |logits: &Vec<f32>| {
        let values = if ask.raw { logits.clone() } else { probabilities(logits) };
        values.first().copied().unwrap_or(f32::NEG_INFINITY)
    };
    Ok(Ranking { name, ranks: ranked(scored.logits.iter().map(score)), texts: scored.texts })
}

/// A document: its text, or an object with a `text`, whose other fields are given back with it.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
#[serde(untagged, expecting = "expected a string, or an object whose `text` is one")]
enum Document {
    /// The text.
    Text(String),
    /// An object with the text.
    Object {
        text: String,
        #[serde(flatten)]
        #[schema(value_type = Object)]
        rest: Map<String, Value>,
    },
}

impl Document {
    fn text(&self) -> &str {
        match self {
            Self::Text(text) | Self::Object { text, .. } => text,
        }
    }

    /// As an object.
    fn object(&self) -> Self {
        let rest = match self {
            Self::Text(_) => Map::new(),
            Self::Object { rest, .. } => rest.clone(),
        };
        Self::Object { text: self.text().to_owned(), rest }
    }
}

/// A query and documents.
#[derive(Debug, Deserialize, ToSchema)]
pub(super) struct RerankRequest {
    /// A cross-encoder with one label; can be left out when one model is served.
    model: Option<String>,
    query: String,
    documents: Vec<Document>,
    /// What makes a document a good one, for models that were trained to be told (Qwen3-Reranker); it is put before the
    /// query of others. Otherwise the model's own.
    #[serde(alias = "instruct")]
    instruction: Option<String>,
    /// How many of the best to answer; otherwise all.
    #[schema(minimum = 1)]
    top_n: Option<u64>,
    /// Whether to answer documents with their scores.
    return_documents: Option<bool>,
    /// The most tokens of a document, whose end is left away; otherwise what the model takes with the query.
    #[serde(alias = "max_doc_length")]
    #[schema(minimum = 1)]
    max_tokens_per_doc: Option<u64>,
    /// Whether documents that are too long with their query are cut; otherwise as the server is set.
    #[serde(alias = "truncation")]
    #[schema(value_type = Option<bool>)]
    truncate: Option<Truncate>,
    // What other values would change is not done here, and not left undone in silence.
    #[schema(ignore)]
    rank_fields: Option<Vec<String>>,
    #[schema(ignore)]
    max_chunks_per_doc: Option<u64>,
    #[schema(ignore)]
    return_embeddings: Option<bool>,
}

impl RerankRequest {
    /// What is asked, and how many of the best are wanted.
    fn ask(&self) -> Result<(Ask, usize), ApiError> {
        if self.documents.is_empty() {
            return Err(ApiError::empty("documents"));
        }
        let least_one = |field: &str, value: Option<u64>| match value {
            Some(0) => Err(ApiError::bad_field(field, format!("{field} must be at least 1"))),
            value => Ok(value.map(|value| usize::try_from(value).unwrap_or(usize::MAX))),
        };
        if self.rank_fields.as_ref().is_some_and(|fields| *fields != ["text"]) {
            let message = "rank_fields: documents are ranked by their text alone: put what matters into it";
            return Err(ApiError::bad_field("rank_fields", message));
        }
        if self.max_chunks_per_doc.is_some_and(|most| most != 1) {
            let message =
                "max_chunks_per_doc: documents are not cut into chunks here, but at the model's limit";
            return Err(ApiError::bad_field("max_chunks_per_doc", message));
        }
        if self.return_embeddings == Some(true) {
            let message = "return_embeddings: a cross-encoder makes no vectors";
            return Err(ApiError::bad_field("return_embeddings", message));
        }
        let top = least_one("top_n", self.top_n)?.unwrap_or(usize::MAX);
        let ask = Ask {
            model: self.model.clone(),
            query: self.query.clone(),
            documents: self.documents.iter().map(|document| document.text().to_owned()).collect(),
            instruction: self.instruction.clone(),
            overflow: self.truncate.map(|Truncate(overflow)| overflow),
            most_of_document: least_one("max_tokens_per_doc", self.max_tokens_per_doc)?,
            raw: false,
        };
        Ok((ask, top))
    }

    /// The best of them, as they are written.
    fn results(&self, ranking: &Ranking, top: usize, with_documents: bool) -> Vec<Ranked> {
        let document = |index: usize| self.documents.get(index).map(Document::object);
        let result = |rank: &Rank| Ranked {
            index: rank.index,
            relevance_score: rank.score,
            document: with_documents.then(|| document(rank.index)).flatten(),
        };
        ranking.ranks.iter().take(top).map(result).collect()
    }
}

/// A document's place, and how well it goes with the query.
#[derive(Serialize, ToSchema)]
struct Ranked {
    /// Its place in the request.
    index: usize,
    /// Between 0 and 1: the sigmoid of the model's logit.
    relevance_score: f32,
    #[serde(skip_serializing_if = "Option::is_none")]
    document: Option<Document>,
}

/// Documents in order, as Cohere's clients read them.
#[derive(Serialize, ToSchema)]
pub(super) struct CohereRanking {
    /// Of the answer.
    id: String,
    /// The best first.
    results: Vec<Ranked>,
    #[schema(inline)]
    meta: Meta,
}

#[derive(Serialize, ToSchema)]
struct Meta {
    #[schema(inline)]
    api_version: ApiVersion,
    #[schema(inline)]
    tokens: Tokens,
    /// What became of documents that are too long.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(required = false)]
    warnings: Vec<String>,
}

#[derive(Serialize, ToSchema)]
struct ApiVersion {
    version: &'static str,
}

#[derive(Serialize, ToSchema)]
struct Tokens {
    /// Of all documents, each with its query.
    input_tokens: usize,
}

/// Documents in the order of how well they go with the query, as Cohere has it.
#[utoipa::path(
    post,
    path = "/v2/rerank",
    tag = "Reranking",
    operation_id = "cohere_rerank",
    request_body(content = RerankRequest, example = json!({"query": "a cat", "documents": ["a dog", "a tomcat"]})),
    responses((status = 200, description = "the best first", body = CohereRanking), VectorErrors<Cohere>),
)]
pub(super) async fn cohere(State(shared): SharedState, request: Request) -> Result<Response, ApiError> {
    let (head, body): (_, RerankRequest) = json::read(request, &shared.settings).await?;
    let (ask, top) = body.ask()?;
    let ranking = rank(&shared, &head, ask).await?;
    let answer = CohereRanking {
        id: id(),
        results: body.results(&ranking, top, body.return_documents.unwrap_or(false)),
        meta: Meta {
            api_version: ApiVersion { version: "2" },
            tokens: Tokens { input_tokens: ranking.tokens() },
            warnings: warnings(&ranking.truncated()),
        },
    };
    Ok((ranking.headers(), Json(answer)).into_response())
}

/// Documents in order, as Jina's clients read them.
#[derive(Serialize, ToSchema)]
pub(super) struct JinaRanking {
    /// The model's own name.
    model: String,
    object: &'static str,
    #[schema(inline)]
    usage: Usage,
    /// The best first.
    results: Vec<Ranked>,
}

#[derive(Serialize, ToSchema)]
#[schema(as = RerankUsage)]
struct Usage {
    prompt_tokens: usize,
    /// Of all documents, each with its query.
    total_tokens: usize,
    /// How many documents lost something to the model's limit, or to one of the request.
    truncated_inputs: usize,
}

/// Documents in the order of how well they go with the query, as Jina has it.
#[utoipa::path(
    post,
    path = "/v1/rerank",
    tag = "Reranking",
    operation_id = "jina_rerank",
    request_body(content = RerankRequest, example = json!({"query": "a cat", "documents": ["a dog", "a tomcat"]})),
    responses((status = 200, description = "the best first", body = JinaRanking), VectorErrors<Jina>),
)]
pub(super) async fn jina(State(shared): SharedState, request: Request) -> Result<Response, ApiError> {
    let (head, body): (_, RerankRequest) = json::read(request, &shared.settings).await?;
    in_jinas_shape(&shared, &head, None, &body).await
}

/// The same, on whatever path it came, which may name the model.
pub(super) async fn in_jinas_shape(
    shared: &Shared,
    head: &Parts,
    model: Option<String>,
    body: &RerankRequest,
) -> Result<Response, ApiError> {
    let (ask, top) = body.ask()?;
    let ask = Ask { model: model.or(ask.model), ..ask };
    let ranking = rank(shared, head, ask).await?;
    let tokens = ranking.tokens();
    let answer = JinaRanking {
        model: ranking.name.to_string(),
        object: "list",
        usage: Usage {
            prompt_tokens: tokens,
            total_tokens: tokens,
            truncated_inputs: ranking.truncated().len(),
        },
        results: body.results(&ranking, top, body.return_documents.unwrap_or(true)),
    };
    Ok((ranking.headers(), Json(answer)).into_response())
}
