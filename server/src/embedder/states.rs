//! The states of texts' tokens, instead of a vector a text.

use super::{Caller, Embedder, Error, Text};
use crate::options::{self, Decided, Options};
use crate::tokenize::{How, Input, Overflow};
use crate::worker::Output;

/// The same, for what makes no sense of pieces.
pub(super) fn in_one_piece(how: &How) -> How {
    let overflow = match how.overflow {
        Overflow::ChunkMean => Overflow::TruncateEnd,
        overflow => overflow,
    };
    How { overflow, ..how.clone() }
}

impl Embedder {
    /// What a request's options come to, where it wants the states of tokens, which are of a space of their
    /// own.
    pub fn decide_states(&self, options: &Options) -> Result<Decided, options::Error> {
        let decided = self.decide(&Options { expected_space: None, ..options.clone() })?;
        let space = self.about.space_of_states();
        options::check_space(options.expected_space.as_deref(), &space)?;
        Ok(Decided { space, ..decided })
    }

    /// The states of each text's tokens after the encoder, `tokens × width` values a text, row by
    /// row. Texts are not cut into pieces for this.
    pub async fn token_states(
        &self,
        inputs: Vec<Input>,
        decided: &Decided,
        caller: Caller,
    ) -> Result<(Vec<Vec<f32>>, Vec<Text>), Error> {
        let how = in_one_piece(&decided.how);
        let (texts, states) = self.run(inputs, how, Output::TokenStates, caller).await?;
        Ok((states.into_iter().map(|piece| piece.values).collect(), texts))
    }
}
