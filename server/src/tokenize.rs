//! Text → token ids, on a bounded pool of threads.
//!
//! Truncation is decided and reported here. The padding and truncation that a
//! `tokenizer.json` brings along are ignored, as sentence-transformers does: they
//! are what its author's last export happened to use.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rayon::prelude::*;
use tokenizers::{TruncationDirection, TruncationParams, TruncationStrategy};

use crate::model::Directory;

/// Why a tokenizer cannot be loaded or a text cannot be tokenised.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// `tokenizer.json` cannot be used.
    #[error("{path}: not a tokenizer that can be used: {problem}")]
    Load {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The tokenizer failed on a text.
    #[error("the tokenizer failed: {0}")]
    Encode(String),
    /// The pool's threads could not be started.
    #[error("cannot start tokenizer threads")]
    Threads(#[from] rayon::ThreadPoolBuildError),
}

/// The tokens of one text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tokens {
    /// Ids, special tokens included; never empty, never more than the model's limit.
    pub ids: Vec<u32>,
    /// Whether the text was longer than the model's limit and was cut.
    pub truncated: bool,
}

/// Text → tokens. The one real implementation is [`Tokenizer`]; tests have another.
pub trait Encode: std::fmt::Debug + Send + Sync {
    /// The tokens of `text`.
    fn encode(&self, text: &str) -> Result<Tokens, Error>;
}

/// A model's tokenizer.
#[derive(Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    prompt: String,
    lowercase: bool,
}

impl Tokenizer {
    /// Loads the tokenizer of a model directory. `vocabulary` is the number of rows
    /// of the model's embedding table: a tokenizer with ids beyond it is another
    /// model's.
    pub fn load(directory: &Directory, vocabulary: i64) -> Result<Self, Error> {
        let path = directory.path.join("tokenizer.json");
        let tokenizer = Self::open(
            &path,
            directory.max_tokens,
            directory.default_prompt().to_owned(),
            directory.do_lower_case,
        )?;
        let largest = tokenizer.inner.get_vocab(true).into_values().max().unwrap_or(0);
        if i64::from(largest) >= vocabulary {
            return Err(Error::Load {
                path,
                problem: format!(
                    "it makes ids up to {largest}, but the model has embeddings for {vocabulary}: is it another model's?"
                ),
            });
        }
        Ok(tokenizer)
    }

    fn open(path: &Path, max_tokens: usize, prompt: String, lowercase: bool) -> Result<Self, Error> {
        let problem =
            |error: tokenizers::Error| Error::Load { path: path.to_owned(), problem: error.to_string() };
        let mut inner = tokenizers::Tokenizer::from_file(path).map_err(problem)?;
        inner.with_padding(None);
        inner
            .with_truncation(Some(TruncationParams {
                max_length: max_tokens,
                direction: TruncationDirection::Right,
                strategy: TruncationStrategy::LongestFirst,
                stride: 0,
            }))
            .map_err(problem)?;
        let tokenizer = Self { inner, prompt, lowercase };
        // An empty text must have a vector, as any other: it is its special tokens.
        let empty = tokenizer
            .encode("")
            .map_err(|error| Error::Load { path: path.to_owned(), problem: error.to_string() })?;
        if empty.ids.is_empty() {
            return Err(Error::Load {
                path: path.to_owned(),
                problem: "it adds no special tokens, so that an empty text has no tokens".into(),
            });
        }
        Ok(tokenizer)
    }
}

impl Encode for Tokenizer {
    /// The tokens of `text`, with the model's default prompt before it.
    fn encode(&self, text: &str) -> Result<Tokens, Error> {
        let prompted;
        let text = if self.prompt.is_empty() {
            text
        } else {
            prompted = format!("{}{text}", self.prompt);
            &prompted
        };
        let lowered;
        let text = if self.lowercase {
            lowered = text.to_lowercase();
            &lowered
        } else {
            text
        };
        let encoding =
            self.inner.encode_fast(text, true).map_err(|error| Error::Encode(error.to_string()))?;
        Ok(Tokens { ids: encoding.get_ids().to_vec(), truncated: !encoding.get_overflowing().is_empty() })
    }
}

/// The threads on which texts are tokenised; shared by all models.
#[derive(Debug)]
pub struct Pool(rayon::ThreadPool);

impl Pool {
    /// A pool of `threads` threads.
    pub fn new(threads: usize) -> Result<Self, Error> {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads.max(1))
            .thread_name(|index| format!("tokenize-{index}"))
            // Without one, rayon ends the process; the caller's channel closes and
            // it gets an error.
            .panic_handler(|_| tracing::error!("a tokenizer panicked"))
            .build()?;
        Ok(Self(pool))
    }

    /// Tokenises `texts` in parallel; results are in their order.
    pub async fn encode(&self, tokenizer: Arc<dyn Encode>, texts: Vec<String>) -> Result<Vec<Tokens>, Error> {
        let (send, receive) = tokio::sync::oneshot::channel();
        self.0.spawn(move || {
            // A caller who has left before its turn costs nothing.
            if send.is_closed() {
                return;
            }
            let encode = |text: &String| tokenizer.encode(text);
            // Handing one text to another thread costs more than tokenising it.
            let tokens = if texts.len() < 8 {
                texts.iter().map(encode).collect()
            } else {
                texts.par_iter().with_min_len(4).map(encode).collect()
            };
            drop(send.send(tokens));
        });
        receive.await.unwrap_or_else(|_| Err(Error::Encode("it panicked on this text".into())))
    }
}
