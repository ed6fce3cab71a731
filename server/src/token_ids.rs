//! Texts that come as the token ids of a tokenizer: which one is believed, and what they are ids of.
//!
//! OpenAI's API takes ids in place of texts, and langchain-openai sends them by default: those of
//! `cl100k_base`. A model with another tokenizer would make a vector of any ids that are small enough,
//! and a wrong one. So whoever runs the server says whose ids they are, and they are decoded to the
//! text that they came from.

use tiktoken_rs::CoreBPE;

use crate::embedder::{self, Embedder};
use crate::tokenize::{self, How, Token};

/// How many ids are decoded before it is looked how much text there is by now.
const PART: usize = 4096;
/// How many texts are compared with their tokens at once: told, each token takes about a hundred bytes.
const COMPARED: usize = 32;

/// Whose ids token ids are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TokenIds {
    /// Nobody's that is known: they are refused.
    #[default]
    Refuse,
    /// One of OpenAI's tokenizers.
    Of(Vocabulary),
    /// The tokenizer of the model that is to embed them.
    Model,
}

/// A tokenizer of OpenAI's. Its vocabulary is part of the program, and is read when it is first used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vocabulary {
    /// `cl100k_base`: of text-embedding-ada-002 and text-embedding-3.
    Cl100kBase,
    /// `o200k_base`: of newer models.
    O200kBase,
}

/// Why token ids have no text.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No token has this id.
    #[error("input[{text}][{place}] is no token id of {tokenizer}")]
    NoSuchId {
        /// The text's place in the request.
        text: usize,
        /// The id's place in the text.
        place: usize,
        /// The tokenizer's name.
        tokenizer: &'static str,
    },
    /// The tokens are bytes of no text.
    #[error(
        "input[{text}] is no text: the bytes of its tokens are not UTF-8 from byte {byte} on, as where a \
         character's tokens are torn apart; send text (langchain-openai: check_embedding_ctx_length=False)"
    )]
    NoText {
        /// Its place in the request.
        text: usize,
        /// The first byte that begins no character.
        byte: usize,
    },
    /// The tokens are of more text than a request may have.
    #[error("input holds token ids of more than {most} bytes of text, which is the limit: split it")]
    TooMuchText {
        /// The limit.
        most: usize,
    },
    /// The model's tokenizer does not make these tokens.
    #[error(
        "input[{text}] holds tokens that the model's tokenizer makes of no text: are they of another model's, or \
         of a text that was cut within a word?"
    )]
    NotOfTheModel {
        /// Its place in the request.
        text: usize,
    },
    /// The model's tokenizer failed, or has too much to do.
    #[error(transparent)]
    Embedder(#[from] embedder::Error),
}

impl Vocabulary {
    const fn name(self) -> &'static str {
        match self {
            Self::Cl100kBase => "cl100k_base",
            Self::O200kBase => "o200k_base",
        }
    }

    fn bpe(self) -> &'static CoreBPE {
        match self {
            Self::Cl100kBase => tiktoken_rs::cl100k_base_singleton(),
            Self::O200kBase => tiktoken_rs::o200k_base_singleton(),
        }
    }

    /// The text of each row of ids, of at most so many bytes in all: an id of three digits can be of a hundred bytes.
    pub fn decode(self, rows: &[Vec<u32>], most: usize) -> Result<Vec<String>, Error> {
        let bpe = self.bpe();
        let mut room = most;
        let decode = |(text, ids): (usize, &Vec<u32>)| {
            let mut bytes = Vec::new();
            for part in ids.chunks(PART) {
                let decoded = bpe
                    .decode_bytes(part)
                    .map_err(|error| no_such_id(text, ids, error.token, self.name()))?;
                room = room.checked_sub(decoded.len()).ok_or(Error::TooMuchText { most })?;
                bytes.extend(decoded);
            }
            String::from_utf8(bytes)
                .map_err(|error| Error::NoText { text, byte: error.utf8_error().valid_up_to() })
        };
        rows.iter().enumerate().map(decode).collect()
    }
}

fn no_such_id(text: usize, ids: &[u32], id: u32, tokenizer: &'static str) -> Error {
    let place = ids.iter().position(|&other| other == id).unwrap_or(0);
    Error::NoSuchId { text, place, tokenizer }
}

/// The text of each row of ids of the model's own tokenizer.
///
/// What is decoded is tokenised again, and has to have the same tokens, with the special ones around
/// them or without: decoding alone does not tell ids of another tokenizer, or parts of words.
pub async fn decode_by_model(embedder: &Embedder, rows: Vec<Vec<u32>>) -> Result<Vec<String>, Error> {
    embedder.check_count(rows.len())?;
    let mut texts = Vec::with_capacity(rows.len());
    for some in rows.chunks(COMPARED) {
        texts.extend(decode_some(embedder, some, texts.len()).await?);
    }
    Ok(texts)
}

/// The same of a part of the rows, the first of which is at the place `begin` of the request.
async fn decode_some(embedder: &Embedder, rows: &[Vec<u32>], begin: usize) -> Result<Vec<String>, Error> {
    let texts = embedder.decode(rows.to_vec(), true).await.map_err(|error| match error {
        embedder::Error::NotTold(tokenize::Error::NoSuchId { id }) => {
            let text = rows.iter().position(|ids| ids.contains(&id)).unwrap_or(0);
            let ids = rows.get(text).map_or(&[][..], Vec::as_slice);
            no_such_id(begin + text, ids, id, "the model's tokenizer")
        }
        error => error.into(),
    })?;
    let tokens = embedder.tokens(texts.clone(), How::default(), true).await?;
    let has = |(ids, tokens): (&Vec<u32>, &Vec<Token>)| {
        let all = || tokens.iter().map(|token| token.id);
        let of_text = || tokens.iter().filter(|token| !token.special).map(|token| token.id);
        ids.iter().copied().eq(all()) || ids.iter().copied().eq(of_text())
    };
    match rows.iter().zip(&tokens).position(|pair| !has(pair)) {
        Some(text) => Err(Error::NotOfTheModel { text: begin + text }),
        None => Ok(texts),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_openais_tokenizers_are_the_texts_that_they_came_from() {
        // As tiktoken encodes them.
        for (vocabulary, ids, text) in [
            (Vocabulary::Cl100kBase, vec![15339, 1917], "hello world"),
            (Vocabulary::O200kBase, vec![24912, 2375], "hello world"),
            (Vocabulary::Cl100kBase, vec![57668, 53901], "你好"),
            (Vocabulary::Cl100kBase, vec![9468, 237, 120], "🏼"),
            (Vocabulary::Cl100kBase, vec![100_257], "<|endoftext|>"),
            (Vocabulary::Cl100kBase, vec![], ""),
        ] {
            assert_eq!(vocabulary.decode(&[ids], text.len()).unwrap(), [text]);
        }
    }

    #[test]
    fn what_is_no_id_or_no_text_is_named_by_its_place() {
        let many = vec![15339; 21];
        for (rows, message) in [
            (
                vec![many],
                "input holds token ids of more than 100 bytes of text, which is the limit: split it",
            ),
            (vec![vec![15339], vec![1917, 100_256]], "input[1][1] is no token id of cl100k_base"),
            (vec![vec![u32::MAX]], "input[0][0] is no token id of cl100k_base"),
            (
                vec![vec![15339], vec![15339, 9468, 237]],
                "input[1] is no text: the bytes of its tokens are not UTF-8 from byte 5 on, as where a \
                 character's tokens are torn apart; send text (langchain-openai: check_embedding_ctx_length=False)",
            ),
        ] {
            assert_eq!(Vocabulary::Cl100kBase.decode(&rows, 100).unwrap_err().to_string(), message);
        }
    }
}
