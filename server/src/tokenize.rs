//! Text → token ids, on a bounded pool of threads.
//!
//! Truncation is decided and reported here. The padding and truncation that a
//! `tokenizer.json` brings along are ignored, as sentence-transformers does: they
//! are what its author's last export happened to use.
//!
//! # Long texts
//! A tokenizer takes hundreds of bytes of memory for a byte of text, and a model
//! looks at a few hundred tokens. So of a long text only a beginning is tokenised,
//! and a longer one for as long as the tokens that are kept might depend on what
//! comes after it (see `settled`). Two things bound it:
//!
//! - For BERT's own tokenizers, long runs of ASCII letters and digits (one `[UNK]`
//!   however long) and of whitespace (nothing) are shortened first (see
//!   `Window::fill`), which changes no token.
//! - No more than `Tokenizer::most` bytes of what is left are tokenised. A text that
//!   has fewer tokens than the model takes in as many bytes is cut there, and is
//!   reported as cut: half a megabyte of control characters, say, or of Thai
//!   without a space or a stop.
//!
//! # Assumptions
//! Whether a word has ended, and what its tokens are, does not depend on text
//! further than a few tokens behind it. That is so for every pre-tokenizer that splits
//! from left to right. One that does not split (some BPE) makes a text one
//! word that never ends, and gets all the bytes that there may be.

use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rayon::prelude::*;
use tokenizers::{Encoding, ModelWrapper, NormalizerWrapper, PostProcessor as _, PreTokenizerWrapper};
use tokio::sync::Semaphore;

use crate::model::Directory;

/// A text this long is tokenised as it is: finding out what to leave away would cost
/// more.
const SHORT: usize = 8 * 1024;
/// The least that `Tokenizer::most` is.
const MOST: usize = 256 * 1024;
/// How much stays of a long run at either end. More than the longest word that `WordPiece`
/// looks up, and than an added token.
const EDGE: usize = 1024;
/// How many more tokens than are kept there have to be: what the end of a beginning
/// does to the tokens just before it must not reach those that are kept.
const MARGIN: usize = 16;
/// How many bytes of text may wait for the pool or be in it.
const MOST_WAITING: usize = 256 * 1024 * 1024;
/// What bytes are counted in, so that their count fits a semaphore's.
const UNIT: usize = 1024;

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
    /// Too much text waits already.
    #[error("more than {} MiB of text are waiting to be tokenised", MOST_WAITING / (1024 * 1024))]
    Busy,
    /// Nobody waits for the tokens any more.
    #[error("the caller has left")]
    Left,
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
    /// The most tokens of a text, without special ones.
    room: usize,
    /// The length of the longest token that was added to the vocabulary.
    longest_added: usize,
    /// Whether long runs can be shortened.
    shortens: bool,
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
        let problem = |problem: String| Error::Load { path: path.to_owned(), problem };
        let mut inner = tokenizers::Tokenizer::from_file(path).map_err(|error| problem(error.to_string()))?;
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|error| problem(error.to_string()))?;
        let special = inner.get_post_processor().map_or(0, |processor| processor.added_tokens(false));
        let room = max_tokens.checked_sub(special).ok_or_else(|| {
            problem(format!("it adds {special} special tokens, but the model takes {max_tokens} tokens"))
        })?;
        let added = inner.get_added_tokens_decoder();
        let longest_added = added.values().map(|token| token.content.len()).max().unwrap_or(0);
        // An added token is found anywhere, within a word too; one with punctuation is
        // in none of the runs that are shortened.
        let shortens = is_bert(&inner)
            && longest_added <= EDGE
            && added.values().all(|token| token.content.contains(|c: char| c.is_ascii_punctuation()));
        let tokenizer = Self { inner, prompt, lowercase, room, longest_added, shortens };
        // An empty text must have a vector, as any other: it is its special tokens.
        let empty = tokenizer.encode("").map_err(|error| problem(error.to_string()))?;
        if empty.ids.is_empty() {
            return Err(problem("it adds no special tokens, so that an empty text has no tokens".into()));
        }
        Ok(tokenizer)
    }

    /// The most bytes of one text that are tokenised.
    const fn most(&self) -> usize {
        let enough = self.room.saturating_mul(64);
        if enough > MOST { enough } else { MOST }
    }

    /// The first tokens of a text, at most as many as there is room for, without special
    /// ones; and whether there are more.
    fn first(&self, text: &str) -> Result<(Vec<u32>, bool), tokenizers::Error> {
        let mut length = SHORT.max(self.room.saturating_mul(16));
        if text.len() <= length {
            let encoding = self.inner.encode_fast(text, false)?;
            let ids = encoding.get_ids();
            return Ok((ids[..ids.len().min(self.room)].to_vec(), ids.len() > self.room));
        }
        let mut window = Window::new(text, self.shortens);
        loop {
            length = length.min(self.most());
            window.fill(length);
            let ends = window.rest.is_empty();
            let begun = if ends { window.text.as_str() } else { before_a_space(&window.text) };
            let encoding = self.inner.encode(begun, false)?;
            let cut = encoding.len() > self.room;
            if ends || length == self.most() || settled(&encoding, self.room, MARGIN + self.longest_added) {
                // To BERT, whitespace is nothing that could be left away.
                let rest = &window.text[begun.len()..];
                let nothing =
                    self.shortens && rest.trim_ascii().is_empty() && window.rest.trim_ascii().is_empty();
                let ids = encoding.get_ids();
                let kept = ids[..ids.len().min(self.room)].to_vec();
                return Ok((kept, cut || !(ends || nothing)));
            }
            length = length.saturating_mul(4);
        }
    }
}

/// Whether what a text's beginning has as its first `room` tokens are those of the whole
/// text: the word of the last one has ended, because another has begun, and `margin`
/// more tokens came after it.
///
/// That a word has begun does not settle it alone: the `[` and `mask` that a
/// beginning ends in can be the text's `[MASK]`, and a combining character after the
/// cut can change what is before it.
fn settled(encoding: &Encoding, room: usize, margin: usize) -> bool {
    let words = encoding.get_word_ids();
    let ended = room.checked_sub(1).is_none_or(|last| words.get(last) < words.last());
    encoding.len() > room.saturating_add(margin) && ended
}

/// Whether it is BERT's: words are made of what is between whitespace, punctuation and
/// Chinese characters, and too long ones are unknown.
fn is_bert(tokenizer: &tokenizers::Tokenizer) -> bool {
    matches!(tokenizer.get_normalizer(), None | Some(NormalizerWrapper::BertNormalizer(_)))
        && matches!(tokenizer.get_pre_tokenizer(), Some(PreTokenizerWrapper::BertPreTokenizer(_)))
        && matches!(tokenizer.get_model(), ModelWrapper::WordPiece(model) if model.max_input_chars_per_word < EDGE)
}

/// `text` up to the last ASCII whitespace in its second half that follows something
/// else; all of it if there is none.
///
/// There, words end, nothing composes, and no run of whitespace is torn, so that the
/// beginning has the tokens of the text whatever the tokenizer does.
fn before_a_space(text: &str) -> &str {
    let bytes = text.as_bytes();
    let boundary = |&at: &usize| bytes[at].is_ascii_whitespace() && !bytes[at - 1].is_ascii_whitespace();
    let end = (text.len() / 2 + 1..text.len()).rev().find(boundary);
    // Before an ASCII byte is always a boundary of characters.
    &text[..end.unwrap_or(text.len())]
}

/// The beginning of a text, which grows.
struct Window<'a> {
    text: String,
    rest: &'a str,
    shortens: bool,
}

impl<'a> Window<'a> {
    const fn new(text: &'a str, shortens: bool) -> Self {
        Self { text: String::new(), rest: text, shortens }
    }

    /// Takes text until there are at least `length` bytes, or all.
    ///
    /// The middle of a long run is left away if that is allowed. BERT drops, adds and
    /// splits none of the ASCII letters and digits, so that a word with more than
    /// `max_input_chars_per_word` of them is unknown whatever else is in it.
    fn fill(&mut self, length: usize) {
        while self.text.len() < length && !self.rest.is_empty() {
            let run = if self.shortens { run(self.rest.as_bytes()) } else { 0 };
            if run > 2 * EDGE {
                self.text.push_str(&self.rest[..EDGE]);
                self.text.push_str(&self.rest[run - EDGE..run]);
                self.rest = &self.rest[run..];
            } else if run > 0 {
                self.take(run);
            } else if self.shortens {
                self.take(self.rest.chars().next().map_or(0, char::len_utf8));
            } else {
                self.take(self.rest.ceil_char_boundary(length - self.text.len()));
            }
        }
    }

    fn take(&mut self, length: usize) {
        let (taken, rest) = self.rest.split_at(length);
        self.text.push_str(taken);
        self.rest = rest;
    }
}

/// How many bytes of the beginning are all letters or digits, or all whitespace.
fn run(bytes: &[u8]) -> usize {
    // Other whitespace of ASCII is control characters to BERT, which it drops.
    let space = |byte: u8| matches!(byte, b' ' | b'\t' | b'\n' | b'\r');
    let length = |is: &dyn Fn(u8) -> bool| bytes.iter().position(|&byte| !is(byte)).unwrap_or(bytes.len());
    match bytes.first() {
        Some(&first) if space(first) => length(&space),
        Some(first) if first.is_ascii_alphanumeric() => length(&|byte| byte.is_ascii_alphanumeric()),
        _ => 0,
    }
}

impl Encode for Tokenizer {
    /// The tokens of `text`, with the model's default prompt before it.
    fn encode(&self, text: &str) -> Result<Tokens, Error> {
        let mut text = Cow::Borrowed(text);
        if !self.prompt.is_empty() {
            text = Cow::Owned(format!("{}{text}", self.prompt));
        }
        // All of it, because a sigma's lowercase depends on what follows, at any distance.
        if self.lowercase {
            text = Cow::Owned(text.to_lowercase());
        }
        let failed = |error: tokenizers::Error| Error::Encode(error.to_string());
        let (ids, truncated) = self.first(&text).map_err(failed)?;
        // As the library does for a text that it has truncated itself.
        let kept: Encoding = ids.into_iter().map(|id| (id, String::new(), (0, 0), None, 0)).collect();
        let whole = self.inner.post_process(kept, None, true).map_err(failed)?;
        Ok(Tokens { ids: whole.get_ids().to_vec(), truncated })
    }
}

/// The threads on which texts are tokenised; shared by all models.
///
/// No more than `MOST_WAITING` bytes of text are in it at once, whether they wait or are
/// being tokenised, of all requests together; or one request with more than that, if
/// whoever runs the server allows such bodies. Being tokenised takes memory for
/// `Tokenizer::most` bytes on each thread.
#[derive(Debug)]
pub struct Pool {
    threads: rayon::ThreadPool,
    /// In [`UNIT`]s.
    places: Arc<Semaphore>,
}

impl Pool {
    /// A pool of `threads` threads.
    pub fn new(threads: usize) -> Result<Self, Error> {
        let threads = rayon::ThreadPoolBuilder::new()
            .num_threads(threads.max(1))
            .thread_name(|index| format!("tokenize-{index}"))
            // Without one, rayon ends the process; the caller's channel closes and
            // it gets an error.
            .panic_handler(|_| tracing::error!("a tokenizer panicked"))
            .build()?;
        Ok(Self { threads, places: Arc::new(Semaphore::new(MOST_WAITING / UNIT)) })
    }

    /// Tokenises `texts` in parallel; results are in their order. No further text is begun
    /// once the caller has left (the future is dropped).
    pub async fn encode(&self, tokenizer: Arc<dyn Encode>, texts: Vec<String>) -> Result<Vec<Tokens>, Error> {
        let bytes: usize = texts.iter().map(String::len).sum();
        let places = u32::try_from(bytes.min(MOST_WAITING) / UNIT).unwrap_or(u32::MAX);
        let places = Arc::clone(&self.places).try_acquire_many_owned(places).map_err(|_| Error::Busy)?;
        let (send, receive) = tokio::sync::oneshot::channel();
        self.threads.spawn(move || {
            let encode =
                |text: &String| if send.is_closed() { Err(Error::Left) } else { tokenizer.encode(text) };
            // Handing one text to another thread costs more than tokenising it.
            let tokens = if texts.len() < 8 {
                texts.iter().map(encode).collect()
            } else {
                texts.par_iter().with_min_len(4).map(encode).collect()
            };
            // Before the caller goes on, who may come back at once.
            drop(texts);
            drop(places);
            drop(send.send(tokens));
        });
        receive.await.unwrap_or_else(|_| Err(Error::Encode("it panicked on this text".into())))
    }
}
