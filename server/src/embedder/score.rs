//! What a cross-encoder's front door does: texts in, scores out, in order.

use super::states::in_one_piece;
use super::{Caller, Embedder, Error, Text};
use crate::options::{self, Decided, Options};
use crate::scores::{Classifier, Kind};
use crate::tokenize::{How, Input};
use crate::worker::Output;

/// The scores of a request's texts.
#[derive(Clone, Debug, PartialEq)]
pub struct Scored {
    /// A logit a label for each text or pair, in order.
    pub logits: Vec<Vec<f32>>,
    /// What became of each text or pair.
    pub texts: Vec<Text>,
}

impl Embedder {
    /// What the model's scores are of, and what a request's options come to, where it wants scores.
    pub fn decide_scores(&self, options: &Options) -> Result<(&Classifier, Decided), options::Error> {
        match &self.about.kind {
            Kind::CrossEncoder(classifier) => Ok((classifier, self.about.offer.decide(options)?)),
            Kind::Embedding => Err(options::Error::NoScores),
        }
    }

    /// The same, where it wants documents in order, which only a score of its own allows.
    pub fn decide_ranking(&self, options: &Options) -> Result<Decided, options::Error> {
        let (classifier, decided) = self.decide_scores(options)?;
        match classifier.labels.as_slice() {
            [_] => Ok(decided),
            labels => Err(options::Error::NoRanking { labels: labels.len() }),
        }
    }

    /// The scores of `inputs`, in order; all of them or an error. Texts are not cut into pieces.
    pub async fn score(&self, inputs: Vec<Input>, how: &How, caller: Caller) -> Result<Scored, Error> {
        let (texts, scores) = self.run(inputs, in_one_piece(how), Output::Vector, caller).await?;
        Ok(Scored { logits: scores.into_iter().map(|piece| piece.values).collect(), texts })
    }
}
