//! What the model's tokenizer has to say: tokens of texts, and texts of tokens. No model computes.

use std::sync::Arc;

use super::{Embedder, Error};
use crate::tokenize::{self, How, Token};

/// The most tokens whose text is told at once. On the way each takes a hundred bytes and more, fifty times what it
/// takes in a request.
const MOST_IDS: usize = 500_000;

impl Embedder {
    /// The tokens of each text, as they would be embedded, but for what is cut then.
    pub async fn tokens(
        &self,
        texts: Vec<String>,
        how: How,
        special: bool,
    ) -> Result<Vec<Vec<Token>>, Error> {
        self.check_count(texts.len())?;
        let tokens = self.pool.tokens(Arc::clone(&self.tokenizer), texts, how, special).await;
        tokens.map_err(|error| self.of_tokenizer(error))
    }

    /// The text of each row of tokens.
    pub async fn decode(&self, rows: Vec<Vec<u32>>, skip_special: bool) -> Result<Vec<String>, Error> {
        self.check_count(rows.len())?;
        let found = rows.iter().map(Vec::len).sum();
        if found > MOST_IDS {
            return Err(Error::NotTold(tokenize::Error::TooManyIds { found, most: MOST_IDS }));
        }
        let texts = self.pool.decode(Arc::clone(&self.tokenizer), rows, skip_special).await;
        texts.map_err(|error| self.of_tokenizer(error))
    }

    /// On how many threads texts are tokenised, of all models together.
    pub fn tokenizer_threads(&self) -> usize {
        self.pool.threads()
    }
}
