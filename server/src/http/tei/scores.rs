//! Scores: `/rerank` and `/predict`.

use axum::Json;
use axum::response::{IntoResponse, Response};

use super::wire::{Cut, PredictRequest, Predicted, Prediction, Predictions, Rank, RerankRequest};
use super::{Asked, characters, with_costs};
use crate::embedder::Text;
use crate::http::embed::{caller, count_refusal, find, headers_of};
use crate::http::error::ApiError;
use crate::http::json;
use crate::http::rerank::{Ask, in_jinas_shape, rank};
use crate::options::Options;
use crate::scores::{Classifier, probabilities, ranked};
use crate::tokenize::Input;

/// Texts in the order of how well they go with a query.
pub(super) async fn rerank(asked: Asked<'_>) -> Result<Response, ApiError> {
    let body: RerankRequest = json::parse(&asked.body)?;
    if body.texts.is_empty() {
        return Err(ApiError::empty("texts"));
    }
    let cut = Cut { truncate: body.truncate, direction: body.truncation_direction };
    let characters = body.query.chars().count() * body.texts.len() + characters(&body.texts);
    let returned = if body.return_text == Some(true) { body.texts.clone() } else { Vec::new() };
    let ask = Ask {
        model: asked.model.clone(),
        query: body.query,
        documents: body.texts,
        instruction: body.instruction,
        overflow: Some(asked.overflow(cut)?),
        most_of_document: None,
        raw: body.raw_scores.unwrap_or(false),
    };
    let ranking = rank(asked.shared, &asked.head, ask).await?;
    let headers = with_costs(ranking.headers(), characters, ranking.tokens(), asked.begun);
    let ranks = ranking.ranks.iter().map(|rank| Rank {
        index: rank.index,
        text: returned.get(rank.index).cloned(),
        score: rank.score,
    });
    Ok((headers, Json(ranks.collect::<Vec<_>>())).into_response())
}

/// The same for clients of Jina and Cohere whose base URL lacks a version.
pub(super) async fn rank_documents(asked: Asked<'_>) -> Result<Response, ApiError> {
    let body = json::parse(&asked.body)?;
    in_jinas_shape(asked.shared, &asked.head, asked.model, &body).await
}

/// A text or a pair, and what it is counted as.
fn input(mut texts: Vec<String>) -> Result<Input, ApiError> {
    match (texts.pop(), texts.pop(), texts.is_empty()) {
        (Some(text), None, _) => Ok(Input::Text(text)),
        (Some(second), Some(first), true) => Ok(Input::Pair(first.into(), second)),
        _ => Err(ApiError::bad_field("inputs", "inputs: a text, or a pair of texts, is expected of each")),
    }
}

/// The labels and their scores, the best first.
fn predictions(classifier: &Classifier, logits: &[f32], raw: bool) -> Vec<Prediction> {
    let scores = if raw { logits.to_vec() } else { probabilities(logits) };
    let ranks = ranked(scores).into_iter();
    let labelled = ranks.map(|rank| {
        let label = classifier.labels.get(rank.index).cloned().unwrap_or_default();
        Prediction { score: rank.score, label }
    });
    labelled.collect()
}

/// What each text or pair is.
pub(super) async fn predict(asked: Asked<'_>) -> Result<Response, ApiError> {
    let body: PredictRequest = json::parse(&asked.body)?;
    let (inputs, batch) = match body.inputs {
        Predicted::Text(text) => (vec![vec![text]], false),
        Predicted::Pair(texts) if texts.is_empty() => return Err(ApiError::empty("inputs")),
        Predicted::Pair(texts) => (vec![texts], false),
        Predicted::Batch(inputs) => (inputs, true),
    };
    let characters = characters(inputs.iter().flatten());
    let inputs = inputs.into_iter().map(input).collect::<Result<Vec<_>, _>>()?;
    let cut = Cut { truncate: body.truncate, direction: body.truncation_direction };
    let options = Options { overflow: Some(asked.overflow(cut)?), ..Options::default() };
    let (name, embedder, options) = find(asked.shared, &asked.head, asked.model.as_deref(), options)?;
    let (classifier, decided) = embedder.decide_scores(&options)?;
    let caller = caller(&asked.head)?;
    let scored = embedder.score(inputs, &decided.how, caller).await;
    let scored = scored.inspect_err(|error| count_refusal(asked.shared, &name, error))?;
    asked.shared.metrics.embedded(&name, &scored.texts);
    let raw = body.raw_scores.unwrap_or(false);
    let mut all = scored.logits.iter().map(|logits| predictions(classifier, logits, raw));
    let answer = if batch {
        Predictions::Batch(all.collect())
    } else {
        Predictions::One(all.next().unwrap_or_default())
    };
    let tokens = scored.texts.iter().map(|text: &Text| text.tokens).sum();
    let headers = with_costs(headers_of(&scored.texts, None), characters, tokens, asked.begun);
    Ok((headers, Json(answer)).into_response())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_alone_or_one_of_two() {
        let texts = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect();
        assert_eq!(input(texts(&["a"])).unwrap(), Input::Text("a".into()));
        assert_eq!(input(texts(&["a", "b"])).unwrap(), Input::Pair("a".into(), "b".into()));
        for wrong in [&[][..], &["a", "b", "c"]] {
            assert!(input(texts(wrong)).is_err(), "{wrong:?}");
        }
    }
}
