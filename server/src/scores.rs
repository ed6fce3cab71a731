//! What a cross-encoder makes of texts: a score a label, and the order of documents by it. Pure.
//!
//! ```text
//! (query, document) ─ model ─▶ a logit a label ─ probabilities ─▶ 0..1 ─ ranked ─▶ best first
//! ```
//!
//! A model with one label says how well the two texts go together; only such a model can rank. One
//! with several says which of them fits best.

/// What a model's numbers are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A vector of a text, to be compared with others.
    Embedding,
    /// Scores of a text or of a pair of texts.
    CrossEncoder(Classifier),
}

/// What the scores of a cross-encoder are of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Classifier {
    /// The labels' names, in the order of the scores; never empty.
    pub labels: Vec<String>,
    /// What sentence-transformers makes of the logits of this model.
    pub activation: Activation,
}

/// What is made of a logit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// Nothing.
    Identity,
    /// A number between 0 and 1.
    Sigmoid,
}

impl Kind {
    /// Its name, for people and programs.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Embedding => "embedding",
            Self::CrossEncoder(_) => "cross-encoder",
        }
    }
}

impl Activation {
    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Identity => "identity",
            Self::Sigmoid => "sigmoid",
        }
    }

    /// What it makes of a logit.
    pub fn of(self, logit: f32) -> f32 {
        match self {
            Self::Identity => logit,
            Self::Sigmoid => sigmoid(logit),
        }
    }
}

fn sigmoid(logit: f32) -> f32 {
    1.0 / (1.0 + (-logit).exp())
}

/// Scores between 0 and 1: the sigmoid of a lone label, the softmax of several. It is what
/// text-embeddings-inference answers unless raw scores are asked for, whatever activation the model
/// is configured with; it keeps their order.
pub fn probabilities(logits: &[f32]) -> Vec<f32> {
    if let [logit] = logits {
        return vec![sigmoid(*logit)];
    }
    // Of the differences to the largest one, so that no exponential overflows.
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let parts: Vec<f32> = logits.iter().map(|logit| (logit - largest).exp()).collect();
    let whole: f32 = parts.iter().sum();
    parts.into_iter().map(|part| part / whole).collect()
}

/// A document's place in its request, and how well it goes with the query.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rank {
    /// The place in the request.
    pub index: usize,
    /// The score.
    pub score: f32,
}

/// The best score first; of equal ones that which was first in the request.
pub fn ranked(scores: impl IntoIterator<Item = f32>) -> Vec<Rank> {
    let mut ranks: Vec<_> =
        scores.into_iter().enumerate().map(|(index, score)| Rank { index, score }).collect();
    ranks.sort_by(|one, other| other.score.total_cmp(&one.score));
    ranks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probabilities_are_the_sigmoid_of_one_logit_and_the_softmax_of_several() {
        for (logits, expected) in [
            (vec![0.0], vec![0.5]),
            (vec![2.0], vec![0.880_797]),
            (vec![-200.0], vec![0.0]),
            (vec![200.0], vec![1.0]),
            (vec![1.0, 1.0], vec![0.5, 0.5]),
            (vec![1.0, 2.0, 3.0], vec![0.090_031, 0.244_728, 0.665_241]),
            // The exponential of the difference to the largest absolute value would overflow.
            (vec![-300.0, 10.0], vec![0.0, 1.0]),
        ] {
            let found = probabilities(&logits);
            assert_eq!(found.len(), expected.len());
            let near = found.iter().zip(&expected).all(|(found, expected)| (found - expected).abs() < 1e-6);
            assert!(near, "{logits:?}: {found:?}");
        }
    }

    #[test]
    fn an_activation_is_what_sentence_transformers_applies() {
        assert!((Activation::Sigmoid.of(2.0) - 0.880_797).abs() < 1e-6);
        assert!((Activation::Identity.of(2.0) - 2.0).abs() < f32::EPSILON);
    }

    #[test]
    fn ranks_are_in_order_of_their_scores_and_equal_ones_in_that_of_the_request() {
        let ranks = ranked([0.5, 0.9, 0.5, -1.0]);
        let expected = [(1, 0.9), (0, 0.5), (2, 0.5), (3, -1.0)].map(|(index, score)| Rank { index, score });
        assert_eq!(ranks, expected);
        assert_eq!(ranked([]), []);
    }
}
