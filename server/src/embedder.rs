//! The front door of a model: texts in, vectors out, in order.
//!
//! ```text
//! decide(options) ─ embed(texts) ─ admit or Overloaded ─ tokenise ─ queue.submit ─ await each ─▶ Embedded
//! ```
//!
//! A caller that goes away (its future is dropped) frees its place in line.

mod inspect;
mod pieces;
mod score;
mod states;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit};

use crate::batcher::{Client, Lane};
use crate::model::{Implementation, Plan};
use crate::options::{self, Decided, Offer, Options};
use crate::scores::Kind;
use crate::space::Space;
use crate::tokenize::{self, Encode, How, Input, Pool, Tokens};
use crate::worker::{self, Output, Queue, Report};
use pieces::{Piece, finished, mean};
pub use score::Scored;

/// Why texts have no vectors.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// More texts than a request may have.
    #[error("{found} texts in one request; the limit is {limit}: split them over several requests")]
    TooManyTexts {
        /// How many there are.
        found: usize,
        /// How many there may be.
        limit: usize,
    },
    /// Too many texts wait already.
    #[error("too many texts are waiting; try again in {} s", retry_after.as_secs())]
    Overloaded {
        /// When there should be room, at the present rate.
        retry_after: Duration,
    },
    /// The request asks for what the model cannot do.
    #[error(transparent)]
    Options(#[from] options::Error),
    /// A text is longer than the model takes, and was not to be cut.
    #[error("{0}")]
    TooLong(tokenize::Error),
    /// A text's tokens or tokens' text are not told.
    #[error("{0}")]
    NotTold(tokenize::Error),
    /// The tokenizer failed.
    #[error("tokenising failed")]
    Tokenize(tokenize::Error),
    /// The model failed on one text.
    #[error("texts[{index}]: {source}")]
    Text {
        /// The text's place in the request.
        index: usize,
        /// What happened.
        source: worker::Error,
    },
    /// The server is shutting down, or the model was unloaded.
    #[error("the server is stopping, or the model was unloaded")]
    Stopping,
}

/// What became of one text on its way to the model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Text {
    /// Its tokens, special tokens and the prompt's included, after truncation.
    pub tokens: usize,
    /// Whether something of it was left away.
    pub truncated: bool,
    /// In how many pieces it was embedded.
    pub pieces: usize,
    /// Whether it began with the prompt already, which then was not put before it again.
    pub had_prompt: bool,
}

/// The vectors of a request's texts.
#[derive(Clone, Debug, PartialEq)]
pub struct Embedded {
    /// One vector a text, in the texts' order.
    pub vectors: Vec<Vec<f32>>,
    /// What became of each text.
    pub texts: Vec<Text>,
}

impl Embedded {
    /// Tokens of all texts.
    pub fn tokens(&self) -> usize {
        self.texts.iter().map(|text| text.tokens).sum()
    }

    /// Places of the texts of which something was left away.
    pub fn truncated(&self) -> Vec<usize> {
        let cut = self.texts.iter().enumerate().filter(|(_, text)| text.truncated);
        cut.map(|(place, _)| place).collect()
    }
}

/// What a caller may want to know about a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct About {
    /// The architecture's name.
    pub architecture: &'static str,
    /// Whether it makes vectors or scores.
    pub kind: Kind,
    /// How it is computed.
    pub plan: Plan,
    /// Length of its vectors; how many scores a cross-encoder makes.
    pub dimensions: usize,
    /// The longest input in tokens.
    pub max_tokens: usize,
    /// The pooling's name.
    pub pooling: String,
    /// Where it came from: a directory, or a repository with its commit.
    pub source: String,
    /// What requests may ask of it.
    pub offer: Offer,
}

impl About {
    /// What its vectors can be compared with, where a request asks for nothing special.
    pub fn space(&self) -> Space {
        self.offer.space.space(self.offer.native(), self.offer.normalizes)
    }

    /// What the states of its tokens can be compared with: others of this model.
    pub fn space_of_states(&self) -> Space {
        self.offer.space.of_states()
    }
}

/// How much a model takes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The most texts of one request.
    pub max_texts: usize,
    /// The most texts of all requests that are under way at once.
    pub max_waiting_texts: usize,
}

impl Limits {
    /// What of [`Limits::max_waiting_texts`] is for interactive requests: an eighth. Bulk fills what it may, and
    /// would have everybody's questions refused.
    const fn kept_from_bulk(&self) -> usize {
        self.max_waiting_texts / 8
    }
}

/// Who asks, and how urgently.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Caller {
    /// Who.
    pub client: Client,
    /// The lane that was asked for; otherwise it goes by how many texts there are.
    pub lane: Option<Lane>,
}

impl Caller {
    fn lane(&self, texts: usize) -> Lane {
        self.lane.unwrap_or(Lane::of(texts))
    }
}

/// How fast the workers are, as a moving average.
#[derive(Debug, Default)]
pub struct Rate {
    // The bits of an f64, in tokens per second of one worker; 0 is "not known yet".
    per_worker: AtomicU64,
}

impl Rate {
    /// Takes a finished batch into account.
    pub fn record(&self, report: &Report) {
        let seconds = report.took.as_secs_f64();
        if seconds <= 0.0 {
            return;
        }
        let now = report.tokens as f64 / seconds;
        let before = f64::from_bits(self.per_worker.load(Ordering::Relaxed));
        let next = if before > 0.0 { 0.8 * before + 0.2 * now } else { now };
        // Two workers that race lose one sample of an average.
        self.per_worker.store(next.to_bits(), Ordering::Relaxed);
    }

    /// Tokens per second of one worker; 0 when not known.
    pub fn per_worker(&self) -> f64 {
        f64::from_bits(self.per_worker.load(Ordering::Relaxed))
    }
}

/// When a refused caller should come back: once what waits has been done, in whole
/// seconds, between 1 and 60.
fn retry_after(waiting_tokens: usize, tokens_per_second: f64) -> Duration {
    let seconds =
        if tokens_per_second > 0.0 { (waiting_tokens as f64 / tokens_per_second).ceil() } else { 1.0 };
    Duration::from_secs(seconds.clamp(1.0, 60.0) as u64)
}

/// The front door of one model.
#[derive(Debug)]
pub struct Embedder {
    about: About,
    tokenizer: Arc<dyn Encode>,
    pool: Arc<Pool>,
    queue: Arc<Queue>,
    limits: Limits,
    places: Semaphore,
    /// Of those, what bulk may have.
    places_of_bulk: Semaphore,
    rate: Arc<Rate>,
    workers: usize,
}

/// What an [`Embedder`] is made of.
#[derive(Debug)]
pub struct Parts {
    /// The model's description.
    pub about: About,
    /// Its tokenizer.
    pub tokenizer: Arc<dyn Encode>,
    /// The threads to tokenise on.
    pub pool: Arc<Pool>,
    /// The line before its workers.
    pub queue: Arc<Queue>,
    /// How much it takes on.
    pub limits: Limits,
    /// How fast its workers are.
    pub rate: Arc<Rate>,
    /// How many workers it has.
    pub workers: usize,
}

/// Takes a request's texts out of line when its caller goes away.
struct Ticket<'a> {
    queue: &'a Queue,
    request: Option<u64>,
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        if let Some(request) = self.request {
            self.queue.cancel(request);
        }
    }
}

impl Text {
    fn of(tokens: &Tokens) -> Self {
        Self {
            tokens: tokens.len(),
            truncated: tokens.truncated,
            pieces: tokens.pieces.len(),
            had_prompt: tokens.had_prompt,
        }
    }
}

impl Embedder {
    /// Puts the parts together.
    pub fn new(parts: Parts) -> Self {
        let Parts { about, tokenizer, pool, queue, limits, rate, workers } = parts;
        let places = |most: usize| Semaphore::new(most.min(Semaphore::MAX_PERMITS));
        let places_of_bulk = places(limits.max_waiting_texts - limits.kept_from_bulk());
        let places = places(limits.max_waiting_texts);
        Self { about, tokenizer, pool, queue, limits, places, places_of_bulk, rate, workers }
    }

    /// The model's description.
    pub const fn about(&self) -> &About {
        &self.about
    }

    /// (texts, tokens) in line before the workers.
    pub fn waiting(&self) -> (usize, usize) {
        self.queue.waiting()
    }

    /// The same in each of [`Lane::ALL`].
    pub fn waiting_by_lane(&self) -> [(usize, usize); 2] {
        self.queue.waiting_by_lane()
    }

    /// Takes no new texts; what is in line is still embedded.
    pub fn close(&self) {
        self.queue.close();
    }

    /// How much it takes on.
    pub const fn limits(&self) -> Limits {
        self.limits
    }

    /// The most tokens of a batch.
    pub fn max_batch_tokens(&self) -> usize {
        self.queue.policy().max_tokens
    }

    /// What a request's options come to, where it wants vectors.
    pub fn decide(&self, options: &Options) -> Result<Decided, options::Error> {
        match &self.about.kind {
            Kind::Embedding => self.about.offer.decide(options),
            Kind::CrossEncoder(_) => Err(options::Error::NoVectors),
        }
    }

    /// The vectors of texts of which nothing is said.
    pub async fn embed_texts(&self, texts: Vec<String>) -> Result<Embedded, Error> {
        let decided = self.decide(&Options::default())?;
        self.embed(texts.into_iter().map(Input::Text).collect(), &decided, Caller::default()).await
    }

    /// The vectors of `inputs`, in order, as was decided; all of them or an error.
    pub async fn embed(
        &self,
        inputs: Vec<Input>,
        decided: &Decided,
        caller: Caller,
    ) -> Result<Embedded, Error> {
        let (mut vectors, mut texts) = (Vec::with_capacity(inputs.len()), Vec::with_capacity(inputs.len()));
        let each = |text, vector| {
            texts.push(text);
            vectors.push(vector);
        };
        self.embed_each(inputs, decided, caller, each).await?;
        Ok(Embedded { vectors, texts })
    }

    /// The same, but each vector is told as soon as it and those before it are there.
    pub async fn embed_each(
        &self,
        inputs: Vec<Input>,
        decided: &Decided,
        caller: Caller,
        mut each: impl FnMut(Text, Vec<f32>) + Send,
    ) -> Result<(), Error> {
        let each = |text, pieces| each(text, finished(mean(pieces), decided.dimensions, decided.normalize));
        self.run_each(inputs, decided.how.clone(), Output::Vector, caller, each).await
    }

    /// What the model makes of each piece of each text, in order.
    async fn run(
        &self,
        inputs: Vec<Input>,
        how: How,
        output: Output,
        caller: Caller,
    ) -> Result<(Vec<Text>, Vec<Piece>), Error> {
        let (mut texts, mut all) = (Vec::with_capacity(inputs.len()), Vec::with_capacity(inputs.len()));
        let each = |text, pieces| {
            texts.push(text);
            all.extend(pieces);
        };
        self.run_each(inputs, how, output, caller, each).await?;
        Ok((texts, all))
    }

    /// The same, but each text's pieces are told as soon as they and those before them are there.
    async fn run_each(
        &self,
        inputs: Vec<Input>,
        how: How,
        output: Output,
        caller: Caller,
        mut each: impl FnMut(Text, Vec<Piece>) + Send,
    ) -> Result<(), Error> {
        let count = inputs.len();
        self.check_count(count)?;
        let _places = self.admit(count, caller.lane(count))?;
        let tokens = self.pool.encode(Arc::clone(&self.tokenizer), inputs, how).await;
        let tokens = tokens.map_err(|error| self.of_tokenizer(error))?;
        let texts: Vec<Text> = tokens.iter().map(Text::of).collect();
        let mut sequences = Vec::with_capacity(count);
        let mut lengths = Vec::with_capacity(count);
        for text in tokens {
            lengths.extend(text.pieces.iter().map(|piece| piece.ids.len()));
            sequences.extend(text.pieces);
        }
        // By what there is to be done: a text can be a thousand pieces.
        let lane = caller.lane(sequences.len());
        let submitted = self.queue.submit(sequences, output, caller.client, lane);
        let (request, receivers) = submitted.map_err(|_| Error::Stopping)?;
        let mut ticket = Ticket { queue: &self.queue, request: Some(request) };
        let mut receivers = receivers.into_iter().zip(lengths);
        for (index, text) in texts.into_iter().enumerate() {
            let mut pieces = Vec::with_capacity(text.pieces);
            for (receiver, tokens) in receivers.by_ref().take(text.pieces) {
                let values = receiver
                    .await
                    .unwrap_or_else(|_| Err(worker::Error::Failed("its worker thread has died".into())))
                    .map_err(|source| Error::Text { index, source })?;
                pieces.push(Piece { values, tokens });
            }
            each(text, pieces);
        }
        ticket.request = None;
        Ok(())
    }

    /// Places for a request's texts.
    fn admit(&self, texts: usize, lane: Lane) -> Result<[SemaphorePermit<'_>; 2], Error> {
        // A request of more than bulk may have is admitted where there is nothing else.
        let most_of_bulk = self.limits.max_waiting_texts - self.limits.kept_from_bulk();
        let of_bulk = if lane == Lane::Bulk { texts.min(most_of_bulk) } else { 0 };
        Ok([self.places_among(&self.places_of_bulk, of_bulk)?, self.places_among(&self.places, texts)?])
    }

    fn places_among<'a>(&self, all: &'a Semaphore, count: usize) -> Result<SemaphorePermit<'a>, Error> {
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        all.try_acquire_many(count).map_err(|_| self.overloaded())
    }

    /// Whether a request may have so many texts.
    pub(crate) fn check_count(&self, count: usize) -> Result<(), Error> {
        let limit = self.limits.max_texts.min(self.limits.max_waiting_texts);
        if count > limit { Err(Error::TooManyTexts { found: count, limit }) } else { Ok(()) }
    }

    fn of_tokenizer(&self, error: tokenize::Error) -> Error {
        match error {
            tokenize::Error::Busy => self.overloaded(),
            error @ tokenize::Error::TooLong { .. } => Error::TooLong(error),
            error @ (tokenize::Error::TooMuchToTell { .. }
            | tokenize::Error::TooManyIds { .. }
            | tokenize::Error::NoTokens { .. }
            | tokenize::Error::Alone { .. }
            | tokenize::Error::NoSuchId { .. }) => Error::NotTold(error),
            error => Error::Tokenize(error),
        }
    }

    fn overloaded(&self) -> Error {
        let rate = self.rate.per_worker() * self.workers as f64;
        Error::Overloaded { retry_after: retry_after(self.queue.waiting().1, rate) }
    }

    /// Whether its vectors come from the stand-in of the tests.
    pub fn is_fake(&self) -> bool {
        self.about.plan.implementation == Implementation::Fake
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batcher::Why;

    #[test]
    fn a_refused_caller_is_told_when_there_should_be_room() {
        for (tokens, rate, seconds) in
            [(0, 0.0, 1), (0, 100.0, 1), (1000, 100.0, 10), (1001, 100.0, 11), (1_000_000, 1.0, 60)]
        {
            assert_eq!(retry_after(tokens, rate), Duration::from_secs(seconds), "{tokens} at {rate}/s");
        }
    }

    #[test]
    fn the_rate_is_a_moving_average_that_starts_with_the_first_batch() {
        let rate = Rate::default();
        let batch = |tokens, took| Report {
            texts: 1,
            tokens,
            why: Why::Drained,
            lane: Lane::Interactive,
            waited: Duration::ZERO,
            took: Duration::from_millis(took),
        };
        assert!(rate.per_worker().abs() < 1e-9);
        rate.record(&batch(100, 1000));
        assert!((rate.per_worker() - 100.0).abs() < 1e-9);
        rate.record(&batch(200, 1000));
        assert!((rate.per_worker() - 120.0).abs() < 1e-9);
        rate.record(&batch(200, 0));
        assert!((rate.per_worker() - 120.0).abs() < 1e-9);
    }
}
