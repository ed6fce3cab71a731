//! Vectors: `/embed`, `/embed_all`, `/similarity`, and what is said of `/embed_sparse`.

use axum::Json;
use axum::response::{IntoResponse, Response};

use super::wire::{Cut, EmbedAllRequest, EmbedRequest, SimilarityRequest};
use super::{Asked, characters, with_costs};
use crate::http::embed::{Answer, Call, caller, count_refusal, embed as embed_call, find, headers_of};
use crate::http::error::ApiError;
use crate::http::json;
use crate::options::Options;
use crate::tokenize::{Input, Overflow};

/// The most texts of `/embed_all`, whose answers have a vector for each token: as many as
/// text-embeddings-inference takes in any request, unless it is told otherwise.
const MOST_OF_ALL: usize = 32;

impl Asked<'_> {
    /// What becomes of texts that are too long.
    pub(super) fn overflow(&self, cut: Cut) -> Result<Overflow, ApiError> {
        let embedder = self.shared.models.get(self.model.as_deref())?.embedder;
        Ok(cut.overflow(embedder.about().offer.overflow))
    }

    async fn vectors(&self, texts: Vec<String>, options: Options) -> Result<Answer, ApiError> {
        embed_call(self.shared, &self.head, Call::of_texts(self.model.clone(), texts, options)).await
    }
}

/// A vector for each text.
pub(super) async fn embed(asked: Asked<'_>) -> Result<Response, ApiError> {
    let body: EmbedRequest = json::parse(&asked.body)?;
    let texts = body.inputs.into_all();
    if texts.is_empty() {
        return Err(ApiError::empty("inputs"));
    }
    let cut = Cut { truncate: body.truncate, direction: body.truncation_direction };
    let options = Options {
        prompt_name: body.prompt_name,
        input_type: body.input_type,
        overflow: Some(asked.overflow(cut)?),
        dimensions: body.dimensions,
        normalize: Some(body.normalize.unwrap_or(true)),
        ..Options::default()
    };
    let characters = characters(&texts);
    let answer = asked.vectors(texts, options).await?;
    let headers = with_costs(answer.headers(), characters, answer.embedded.tokens(), asked.begun);
    let numbers = answer.numbers();
    Ok(json::answer(headers, numbers, answer.embedded.vectors))
}

/// The states of each text's tokens after the encoder.
pub(super) async fn embed_all(asked: Asked<'_>) -> Result<Response, ApiError> {
    let body: EmbedAllRequest = json::parse(&asked.body)?;
    let texts = body.inputs.into_all();
    if texts.is_empty() {
        return Err(ApiError::empty("inputs"));
    }
    if texts.len() > MOST_OF_ALL {
        let message = format!(
            "{} texts in one request of /embed_all, which answers a vector for each token; the limit is \
             {MOST_OF_ALL}: split them over several requests",
            texts.len()
        );
        return Err(ApiError::bad_field("inputs", message));
    }
    let cut = Cut { truncate: body.truncate, direction: body.truncation_direction };
    let options = Options {
        prompt_name: body.prompt_name,
        input_type: body.input_type,
        overflow: Some(asked.overflow(cut)?),
        ..Options::default()
    };
    let (name, embedder, options) = find(asked.shared, &asked.head, asked.model.as_deref(), options)?;
    let decided = embedder.decide_states(&options)?;
    let caller = caller(&asked.head)?;
    let characters = characters(&texts);
    let inputs = texts.into_iter().map(Input::Text).collect();
    let states = embedder.token_states(inputs, &decided, caller).await;
    let (states, texts) = states.inspect_err(|error| count_refusal(asked.shared, &name, error))?;
    asked.shared.metrics.embedded(&name, &texts);
    let rows = |(states, tokens): (&Vec<f32>, usize)| -> Vec<Vec<f32>> {
        states.chunks_exact((states.len() / tokens.max(1)).max(1)).map(<[f32]>::to_vec).collect()
    };
    let all: Vec<_> = states.iter().zip(texts.iter().map(|text| text.tokens)).map(rows).collect();
    let tokens = texts.iter().map(|text| text.tokens).sum();
    let headers = headers_of(&texts, Some(&decided.space));
    let numbers = states.iter().map(Vec::len).sum();
    Ok(json::answer(with_costs(headers, characters, tokens, asked.begun), numbers, all))
}

/// No model here makes sparse vectors.
pub(super) fn embed_sparse(asked: &Asked<'_>) -> Result<Response, ApiError> {
    asked.shared.models.get(asked.model.as_deref())?;
    Err(ApiError::no_such_kind(
        "no model here is an embedding model with SPLADE pooling, which makes sparse vectors; /embed makes dense ones",
    ))
}

/// The cosine of a text's vector with those of others.
pub(super) async fn similarity(asked: Asked<'_>) -> Result<Response, ApiError> {
    let body: SimilarityRequest = json::parse(&asked.body)?;
    if body.inputs.sentences.is_empty() {
        return Err(ApiError::empty("inputs.sentences"));
    }
    let parameters = body.parameters.unwrap_or_default();
    let cut = Cut { truncate: parameters.truncate, direction: parameters.truncation_direction };
    let options = Options {
        prompt_name: parameters.prompt_name,
        input_type: parameters.input_type,
        overflow: Some(asked.overflow(cut)?),
        ..Options::default()
    };
    let mut texts = vec![body.inputs.source_sentence];
    texts.extend(body.inputs.sentences);
    let characters = characters(&texts);
    let answer = asked.vectors(texts, options).await?;
    let headers = with_costs(answer.headers(), characters, answer.embedded.tokens(), asked.begun);
    let mut vectors = answer.embedded.vectors.iter();
    let source = vectors.next().map(Vec::as_slice).unwrap_or_default();
    let cosines: Vec<f32> = vectors.map(|vector| cosine(source, vector)).collect();
    Ok((headers, Json(cosines)).into_response())
}

/// The cosine of the angle between two vectors; 0 where one has no direction.
fn cosine(one: &[f32], other: &[f32]) -> f32 {
    let dot = |one: &[f32], other: &[f32]| -> f64 {
        one.iter().zip(other).map(|(&one, &other)| f64::from(one) * f64::from(other)).sum()
    };
    let lengths = (dot(one, one) * dot(other, other)).sqrt();
    if lengths > 0.0 { (dot(one, other) / lengths) as f32 } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::cosine;

    #[test]
    fn a_cosine_does_not_depend_on_lengths() {
        for (one, other, expected) in [
            ([3.0, 0.0], [0.5, 0.0], 1.0),
            ([3.0, 0.0], [0.0, 2.0], 0.0),
            ([1.0, 1.0], [-2.0, -2.0], -1.0),
            ([0.0, 0.0], [1.0, 0.0], 0.0),
        ] {
            assert!((cosine(&one, &other) - expected).abs() < 1e-6, "{one:?} {other:?}");
        }
    }
}
