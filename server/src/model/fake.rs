//! A model of the tests: its vectors and scores are a function of the token ids alone, so
//! that what is around a model can be tested without one, and it can be told to
//! be slow, to fail or to panic.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::{Error, Model, Sequence, TokenBatch};
use crate::tokenize::{self, Encode, How, Overflow, Token, Tokens};

/// A text with this id makes the forward fail.
pub const FAILS: u32 = 900_001;
/// A text with this id makes the forward panic.
pub const PANICS: u32 = 900_002;
/// A text with this id gets NaN in its vector.
pub const IS_NAN: u32 = 900_003;

/// A tokenizer for [`Fake`]: a token a word; `!fail`, `!panic` and `!nan` are the
/// special ids; a text is cut at `max_tokens`.
#[derive(Clone, Copy, Debug)]
pub struct Words {
    /// The longest input in tokens.
    pub max_tokens: usize,
}

fn id(word: &str) -> u32 {
    match word {
        "!fail" => FAILS,
        "!panic" => PANICS,
        "!nan" => IS_NAN,
        _ => word.bytes().fold(7, |id: u32, byte| (id * 31 + u32::from(byte)) % 800_000) + 1,
    }
}

fn words(text: &str) -> Vec<u32> {
    text.split_whitespace().map(id).collect()
}

impl Words {
    const fn too_long(self) -> tokenize::Error {
        tokenize::Error::TooLong { index: 0, max_tokens: self.max_tokens, limit: None }
    }
}

impl Encode for Words {
    fn encode(&self, text: &str, how: &How) -> Result<Tokens, tokenize::Error> {
        let had_prompt = !how.prompt.is_empty() && text.starts_with(&*how.prompt);
        let prompt = if had_prompt { String::new() } else { how.prompt.to_string() };
        let ids = words(&format!("{prompt}{text}"));
        let room = self.max_tokens - 1;
        let sequence = |ids: &[u32]| Sequence::from([&[0], ids].concat());
        let cut = ids.len() > room;
        let (pieces, truncated) = match how.overflow {
            _ if !cut => (vec![sequence(&ids)], false),
            Overflow::TruncateEnd => (vec![sequence(&ids[..room])], true),
            Overflow::TruncateStart => (vec![sequence(&ids[ids.len() - room..])], true),
            Overflow::Error => return Err(self.too_long()),
            Overflow::ChunkMean => (ids.chunks(room).map(sequence).collect(), false),
        };
        Ok(Tokens { pieces, truncated, had_prompt })
    }

    fn encode_pair(&self, first: &str, second: &str, how: &How) -> Result<Tokens, tokenize::Error> {
        let had_prompt = !how.prompt.is_empty() && first.starts_with(&*how.prompt);
        let prompt = if had_prompt { "" } else { &*how.prompt };
        let mut ids = [vec![0], words(&format!("{prompt}{first}")), vec![0]].concat();
        let begins = ids.len().min(self.max_tokens);
        let second = words(second);
        let kept = how.most_of_second.map_or(second.len(), |most| most.min(second.len()));
        ids.extend(&second[..kept]);
        let too_long = ids.len() > self.max_tokens;
        if too_long && how.overflow == Overflow::Error {
            return Err(self.too_long());
        }
        ids.truncate(self.max_tokens);
        let pieces = vec![Sequence { ids, unpooled: 0, second: begins }];
        Ok(Tokens { pieces, truncated: too_long || kept < second.len(), had_prompt })
    }

    fn tokens(&self, text: &str, how: &How, special: bool) -> Result<Vec<Token>, tokenize::Error> {
        let text = format!("{}{text}", how.prompt);
        let most = self.max_tokens * 250;
        if text.len() > most {
            return Err(tokenize::Error::TooMuchToTell { index: 0, most });
        }
        let begin = Token { id: 0, text: "[BEGIN]".to_owned(), special: true, place: None };
        let word = |word: &str| {
            // A part of the text, so that it lies behind its beginning.
            let start = word.as_ptr() as usize - text.as_ptr() as usize;
            let place = Some((start, start + word.len()));
            Token { id: id(word), text: word.to_owned(), special: false, place }
        };
        Ok(special.then_some(begin).into_iter().chain(text.split_whitespace().map(word)).collect())
    }

    /// Its ids are hashes, so that the text is not words but ids.
    fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String, tokenize::Error> {
        if let Some(&id) = ids.iter().find(|&&id| id > PANICS.max(IS_NAN)) {
            return Err(tokenize::Error::NoSuchId { id });
        }
        let told = ids.iter().filter(|&&id| id > 0 || !skip_special).map(ToString::to_string);
        Ok(told.collect::<Vec<_>>().join(" "))
    }
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Fake {
    dimensions: usize,
    scores: bool,
    delay: Duration,
    batches: Arc<AtomicUsize>,
}

impl Fake {
    /// Makes vectors of `dimensions` values, at once.
    pub fn new(dimensions: usize) -> Self {
        Self { dimensions, scores: false, delay: Duration::ZERO, batches: Arc::default() }
    }

    /// Scores texts and pairs for so many labels, at once. The logit of the first label is the number
    /// of the words of the second text that are in the first one, too; that of each other label is one less
    /// than that of the label before.
    pub fn scoring(labels: usize) -> Self {
        Self { scores: true, ..Self::new(labels) }
    }

    /// The same, but each forward takes `delay`.
    #[must_use]
    pub fn slow(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }

    /// Counts the forwards of this model and all that share it.
    pub fn batches(&self) -> Arc<AtomicUsize> {
        Arc::clone(&self.batches)
    }

    /// The vector of a text: unit length, different for different ids.
    pub fn vector(&self, ids: &[i64]) -> Vec<f32> {
        let seed = ids.iter().fold(17i64, |seed, id| seed.wrapping_mul(31).wrapping_add(*id));
        let values: Vec<f32> =
            (0..self.dimensions).map(|i| ((seed % 1009) as f32 + i as f32).sin()).collect();
        let norm = values.iter().map(|v| v * v).sum::<f32>().sqrt().max(f32::EPSILON);
        values.into_iter().map(|v| v / norm).collect()
    }
}

/// See [`Fake::scoring`]. Special tokens are no words.
fn logits(ids: &[i64], segments: &[i64], labels: usize) -> Vec<f32> {
    let of = |segment| ids.iter().zip(segments).filter(move |&(&id, &own)| id > 0 && own == segment);
    let first: Vec<_> = of(0).map(|(id, _)| id).collect();
    let common = of(1).filter(|(id, _)| first.contains(id)).count();
    (0..labels).map(|label| common as f32 - label as f32).collect()
}

impl Model for Fake {
    fn embed(&mut self, batch: &TokenBatch) -> Result<Vec<f32>, Error> {
        self.batches.fetch_add(1, Ordering::Relaxed);
        std::thread::sleep(self.delay);
        let mut rest = batch.ids();
        let all_segments = batch.segments().unwrap_or_else(|| vec![0; rest.len()]);
        let mut segments = all_segments.as_slice();
        let mut values = Vec::with_capacity(batch.len() * self.dimensions);
        for &length in batch.lengths() {
            let (ids, others) = rest.split_at(length as usize);
            rest = others;
            let own;
            (own, segments) = segments.split_at(length as usize);
            if ids.contains(&i64::from(FAILS)) {
                return Err(Error::Unavailable("a fake failure".into()));
            }
            assert!(!ids.contains(&i64::from(PANICS)), "a fake panic");
            let mut vector = if self.scores { logits(ids, own, self.dimensions) } else { self.vector(ids) };
            if ids.contains(&i64::from(IS_NAN)) {
                vector[0] = f32::NAN;
            }
            values.append(&mut vector);
        }
        Ok(values)
    }

    /// Each token's vector is that of a text of this token alone.
    fn states(&mut self, batch: &TokenBatch) -> Result<Vec<f32>, Error> {
        Ok(batch.ids().iter().flat_map(|id| self.vector(&[*id])).collect())
    }

    fn share(&self) -> Result<Box<dyn Model>, Error> {
        Ok(Box::new(self.clone()))
    }
}
