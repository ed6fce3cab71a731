//! What a text's tokens are, for those who want to see them, and what text tokens are of.

use std::sync::Arc;

use super::{Encode, Error, How, Pool, Tokenizer};

/// How many characters for each token that the model takes a text may have to be told its tokens; as
/// text-embeddings-inference has it.
const CHARACTERS_A_TOKEN: usize = 250;

/// A token of a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// Its id.
    pub id: u32,
    /// What it is of the text; of a special token, its name.
    pub text: String,
    /// Whether it is in no text, but added to each.
    pub special: bool,
    /// Where it begins and ends in the text as it is tokenised: after its prompt, and lowercased where
    /// the model wants that. In bytes; nothing for a special token.
    pub place: Option<(usize, usize)>,
}

impl Tokenizer {
    /// See [`super::Encode::tokens`].
    pub(super) fn inspect(&self, text: &str, how: &How, special: bool) -> Result<Vec<Token>, Error> {
        let most = self.max_tokens.saturating_mul(CHARACTERS_A_TOKEN);
        if text.chars().count() > most {
            return Err(Error::TooMuchToTell { index: 0, most });
        }
        let (prompt, text, _) = self.prompted(text, how);
        let text = [prompt, text].concat();
        let encoding =
            self.inner.encode(text.as_str(), special).map_err(|error| Error::Encode(error.to_string()))?;
        let tokens = encoding.get_ids().iter().zip(encoding.get_tokens());
        let places = encoding.get_offsets().iter().zip(encoding.get_special_tokens_mask());
        let token =
            |((&id, name), (&(start, stop), &special)): ((&u32, &String), (&(usize, usize), &u32))| {
                if special == 1 {
                    return Token { id, text: name.clone(), special: true, place: None };
                }
                // A token of some tokenizers is a part of a character.
                let part = text.as_bytes().get(start..stop).unwrap_or_default();
                let part = String::from_utf8_lossy(part).into_owned();
                Token { id, text: part, special: false, place: Some((start, stop)) }
            };
        Ok(tokens.zip(places).map(token).collect())
    }

    /// See [`super::Encode::decode`].
    pub(super) fn text_of(&self, ids: &[u32], skip_special: bool) -> Result<String, Error> {
        // The library leaves them out in silence.
        if let Some(&id) = ids.iter().find(|&&id| self.inner.id_to_token(id).is_none()) {
            return Err(Error::NoSuchId { id });
        }
        self.inner.decode(ids, skip_special).map_err(|error| Error::Encode(error.to_string()))
    }
}

impl Pool {
    /// The tokens of each text.
    pub async fn tokens(
        &self,
        tokenizer: Arc<dyn Encode>,
        texts: Vec<String>,
        how: How,
        special: bool,
    ) -> Result<Vec<Vec<Token>>, Error> {
        let all = texts.iter().map(String::len).sum();
        self.each(texts, all, String::len, move |text| tokenizer.tokens(text, &how, special)).await
    }

    /// The text of each row of tokens.
    pub async fn decode(
        &self,
        tokenizer: Arc<dyn Encode>,
        rows: Vec<Vec<u32>>,
        skip_special: bool,
    ) -> Result<Vec<String>, Error> {
        let bytes = |row: &Vec<u32>| size_of_val(row.as_slice());
        let all = rows.iter().map(bytes).sum();
        self.each(rows, all, bytes, move |row| tokenizer.decode(row, skip_special)).await
    }
}
