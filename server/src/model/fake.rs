//! A model of the tests: its vectors are a function of the token ids alone, so
//! that what is around a model can be tested without one, and it can be told to
//! be slow, to fail or to panic.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::{Error, Model, TokenBatch};
use crate::tokenize::{self, Encode, Tokens};

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

impl Encode for Words {
    fn encode(&self, text: &str) -> Result<Tokens, tokenize::Error> {
        let id = |word: &str| match word {
            "!fail" => FAILS,
            "!panic" => PANICS,
            "!nan" => IS_NAN,
            _ => word.bytes().fold(7, |id: u32, byte| (id * 31 + u32::from(byte)) % 800_000) + 1,
        };
        let mut ids = vec![0];
        ids.extend(text.split_whitespace().map(id));
        let truncated = ids.len() > self.max_tokens;
        ids.truncate(self.max_tokens);
        Ok(Tokens { ids, truncated })
    }
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Fake {
    dimensions: usize,
    delay: Duration,
    batches: Arc<AtomicUsize>,
}

impl Fake {
    /// Makes vectors of `dimensions` values, at once.
    pub fn new(dimensions: usize) -> Self {
        Self { dimensions, delay: Duration::ZERO, batches: Arc::default() }
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

impl Model for Fake {
    fn embed(&mut self, batch: &TokenBatch) -> Result<Vec<f32>, Error> {
        self.batches.fetch_add(1, Ordering::Relaxed);
        std::thread::sleep(self.delay);
        let mut rest = batch.ids();
        let mut values = Vec::with_capacity(batch.len() * self.dimensions);
        for &length in batch.lengths() {
            let (ids, others) = rest.split_at(length as usize);
            rest = others;
            if ids.contains(&i64::from(FAILS)) {
                return Err(Error::Unavailable("a fake failure".into()));
            }
            assert!(!ids.contains(&i64::from(PANICS)), "a fake panic");
            let mut vector = self.vector(ids);
            if ids.contains(&i64::from(IS_NAN)) {
                vector[0] = f32::NAN;
            }
            values.append(&mut vector);
        }
        Ok(values)
    }

    fn share(&self) -> Result<Box<dyn Model>, Error> {
        Ok(Box::new(self.clone()))
    }
}
