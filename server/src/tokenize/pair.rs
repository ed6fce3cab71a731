//! Two texts as one sequence of tokens, as cross-encoders are trained on them:
//! `[CLS] first [SEP] second [SEP]`.
//!
//! What is cut of a pair that is too long is what the tokenizers library's `LongestFirst` cuts of all its
//! tokens, as transformers and sentence-transformers have it; but without tokenising more of the texts than
//! matters. (The library itself, asked to truncate, may stop to count within either text.)

use std::sync::{Arc, OnceLock};

use tokenizers::{Encoding, PostProcessor as _};

use super::{Error, How, Overflow, Tokenizer, Tokens};
use crate::model::Sequence;

/// The first text of pairs, with what a tokenizer has found out about it: the same for each of them, and costly
/// where it is long. It is of one tokenizer and one [`How`].
#[derive(Debug)]
pub struct First {
    pub(super) text: Arc<str>,
    pub(super) known: OnceLock<Known>,
}

#[derive(Debug)]
pub(super) struct Known {
    pub(super) side: Side,
    had_prompt: bool,
}

impl Known {
    /// Of a text to which no prompt was put.
    pub(super) const fn without_prompt(side: Side) -> Self {
        Self { side, had_prompt: false }
    }
}

impl First {
    /// Nothing is known of it yet.
    pub const fn new(text: Arc<str>) -> Self {
        Self { text, known: OnceLock::new() }
    }
}

/// What is made once. Two threads that come at the same time may both make it.
pub(super) fn once<T>(cell: &OnceLock<T>, make: impl FnOnce() -> Result<T, Error>) -> Result<&T, Error> {
    if let Some(value) = cell.get() {
        return Ok(value);
    }
    let value = make()?;
    Ok(cell.get_or_init(|| value))
}

/// One text of a pair.
#[derive(Debug)]
pub(super) struct Side {
    pub(super) text: String,
    /// Its first tokens, without special ones.
    pub(super) ids: Vec<u32>,
    /// Whether it has more of them.
    pub(super) cut: bool,
    /// Its last tokens, as many as there could be room for, where they were asked for.
    last: OnceLock<Vec<u32>>,
    /// How many tokens it has in all, where that was asked for.
    count: OnceLock<usize>,
}

impl Side {
    /// Its number of tokens; where it has more than were looked at, one more than these.
    const fn len(&self) -> usize {
        self.ids.len() + self.cut as usize
    }
}

/// How many tokens of two texts are kept where there is room for so many: all of the shorter one while
/// that is less than half, else half of either; where a half is no number, the longer one has the one
/// more, and the second of two that are equally long.
fn shares(first: usize, second: usize, room: usize) -> (usize, usize) {
    if first + second <= room {
        return (first, second);
    }
    let less = first.min(second).min(room / 2);
    if first > second { (room - less, less) } else { (less, room - less) }
}

impl Tokenizer {
    /// See [`super::Encode::encode_pair`].
    pub(super) fn pair(&self, first: &First, second: &str, how: &How) -> Result<Tokens, Error> {
        if let Some(question) = &self.question {
            return self.asked(question, first, second, how);
        }
        let failed = |error: tokenizers::Error| Error::Encode(error.to_string());
        let known = once(&first.known, || {
            let (prompt, rest, had_prompt) = self.prompted(&first.text, how);
            Ok(Known { side: self.side([prompt, rest].concat())?, had_prompt })
        })?;
        let (first, had_prompt) = (&known.side, known.had_prompt);
        let second = if self.lowercase { second.to_lowercase() } else { second.to_owned() };
        let mut second = self.side(second)?;
        let mut truncated = false;
        if let Some(most) = how.most_of_second.filter(|&most| most < second.len()) {
            second.ids.truncate(most);
            (second.cut, truncated) = (false, true);
        }
        let special = self.inner.get_post_processor().map_or(0, |processor| processor.added_tokens(true));
        let room = self.max_tokens.saturating_sub(special);
        if first.len() + second.len() > room {
            if how.overflow == Overflow::Error {
                return Err(Error::TooLong { index: 0, max_tokens: self.max_tokens, limit: None });
            }
            truncated = true;
        }
        let from_end = how.overflow == Overflow::TruncateStart;
        let (of_first, of_second) = self.shares(first, &second, room)?;
        let first = self.kept(first, of_first, from_end)?;
        let second = self.kept(&second, of_second, from_end)?;
        let pair = self.inner.post_process(first, Some(second), true).map_err(failed)?;
        let begins = pair.get_type_ids().iter().position(|&segment| segment == 1);
        let ids = pair.get_ids().to_vec();
        if ids.is_empty() {
            return Err(Error::NoTokens { index: 0 });
        }
        let piece = Sequence { unpooled: 0, second: begins.unwrap_or(ids.len()), ids };
        Ok(Tokens { pieces: vec![piece], truncated, had_prompt })
    }

    pub(super) fn side(&self, text: String) -> Result<Side, Error> {
        let (ids, cut) = self.first(&text).map_err(|error| Error::Encode(error.to_string()))?;
        Ok(Side { text, ids, cut, last: OnceLock::new(), count: OnceLock::new() })
    }

    /// How many tokens of either are kept. What `Side::len` says is enough for it, unless both are
    /// longer than the room, which is odd: then it matters which is the longer one. Of very long texts, it
    /// is the one with more bytes.
    fn shares(&self, first: &Side, second: &Side, room: usize) -> Result<(usize, usize), Error> {
        let (mut of_first, mut of_second) = (first.len(), second.len());
        if first.cut && second.cut && room % 2 == 1 {
            (of_first, of_second) = (first.text.len(), second.text.len());
            if of_first.max(of_second) <= self.most() {
                let all = |side: &Side| {
                    let ids = self.parts(&side.text).map_err(|error| Error::Encode(error.to_string()))?;
                    Ok(ids.len())
                };
                let count = |side: &Side| once(&side.count, || all(side)).copied();
                (of_first, of_second) = (count(first)?, count(second)?);
            }
        }
        Ok(shares(of_first, of_second, room))
    }

    /// So many of its tokens, for the library to put special ones around.
    fn kept(&self, side: &Side, count: usize, from_end: bool) -> Result<Encoding, Error> {
        let last = || self.last(&side.text, self.room).map_err(|error| Error::Encode(error.to_string()));
        let ids = if from_end && side.cut { once(&side.last, last)? } else { &side.ids };
        let count = count.min(ids.len());
        let ids = if from_end { &ids[ids.len() - count..] } else { &ids[..count] };
        Ok(ids.iter().map(|&id| (id, String::new(), (0, 0), None, 0)).collect())
    }
}

#[cfg(test)]
mod tests {
    use tokenizers::utils::truncation::{TruncationParams, truncate_encodings};

    use super::*;

    #[test]
    fn shares_are_those_of_the_library() {
        let encoding = |length: usize| -> Encoding {
            (0..length).map(|id| (id as u32, String::new(), (0, 0), None, 0)).collect()
        };
        for room in 0..8 {
            let params = TruncationParams { max_length: room, ..TruncationParams::default() };
            for (first, second) in (0..12).flat_map(|first| (0..12).map(move |second| (first, second))) {
                let (one, other) =
                    truncate_encodings(encoding(first), Some(encoding(second)), &params).unwrap();
                let expected = (one.len(), other.unwrap().len());
                assert_eq!(shares(first, second, room), expected, "{first} and {second} in {room}");
            }
        }
    }
}
