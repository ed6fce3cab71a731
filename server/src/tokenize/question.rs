//! Pairs of texts as a question to a language model ([`Question`]), which answers with its next token:
//!
//! ```text
//! before <Instruct>: the prompt <Query>: the first text <Document>: the second text after
//! ```
//!
//! What is before and after them always stays; of a pair that is too long the end of the document goes, as in the
//! model's own code, or its beginning, where that is wanted.

use std::path::Path;

use super::pair::{First, Known, once};
use super::{Error, How, Overflow, Tokenizer, Tokens};
use crate::model::Sequence;
use crate::model::directory::Question;

/// A question, and the tokens of what is the same in each.
#[derive(Debug)]
pub(super) struct Asked {
    question: Question,
    before: Vec<u32>,
    after: Vec<u32>,
}

impl Tokenizer {
    /// From now on pairs are put into this question. `path` is that of the tokenizer.
    pub(super) fn ask(&mut self, question: Question, path: &Path) -> Result<(), Error> {
        let problem = |problem: String| Error::Load { path: path.to_owned(), problem };
        let ids = |text: &str| self.all(text).map_err(|error| problem(error.to_string()));
        let (before, after) = (ids(question.before)?, ids(question.after)?);
        let around = before.len() + after.len();
        let room = self.max_tokens.checked_sub(around).filter(|&room| room > 0).ok_or_else(|| {
            problem(format!(
                "its question has {around} tokens, but the model takes {} tokens",
                self.max_tokens
            ))
        })?;
        self.room = room;
        self.question = Some(Asked { question, before, after });
        Ok(())
    }

    /// The tokens of the question about two texts.
    pub(super) fn asked(
        &self,
        asked: &Asked,
        first: &First,
        second: &str,
        how: &How,
    ) -> Result<Tokens, Error> {
        let failed = |error: tokenizers::Error| Error::Encode(error.to_string());
        let Question { parts, instruction, .. } = asked.question;
        let head = once(&first.known, || {
            let instruction = if how.prompt.is_empty() { instruction } else { &*how.prompt };
            let text = [parts[0], instruction, parts[1], &first.text, parts[2].trim_end()].concat();
            Ok(Known::without_prompt(self.side(text)?))
        })?;
        let head = &head.side;
        // The space belongs to the word behind it; before it, words end.
        let spaces = &parts[2][parts[2].trim_end().len()..];
        let document = self.side([spaces, second].concat())?;
        let mut ids = document.ids;
        let limit = how.most_of_second.filter(|&most| most < ids.len());
        ids.truncate(limit.unwrap_or(usize::MAX));
        let room = self.room - head.ids.len();
        let too_long = ids.len() > room || document.cut && limit.is_none() || head.cut;
        if too_long && how.overflow == Overflow::Error {
            return Err(Error::TooLong { index: 0, max_tokens: self.max_tokens, limit: None });
        }
        if too_long && how.overflow == Overflow::TruncateStart && limit.is_none() {
            ids = self.last(&document.text, room).map_err(failed)?;
        }
        ids.truncate(room);
        let ids = [&asked.before, &head.ids, &ids, &asked.after].into_iter().flatten().copied();
        let ids: Vec<u32> = ids.collect();
        let piece = Sequence { unpooled: 0, second: ids.len(), ids };
        Ok(Tokens { pieces: vec![piece], truncated: too_long || limit.is_some(), had_prompt: false })
    }
}
