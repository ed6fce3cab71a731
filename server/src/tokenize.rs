//! Text → token ids, on a bounded pool of threads.
//!
//! Prompts are put before texts here, and what becomes of a text that is too long ([`Overflow`])
//! is done and reported here. The padding and truncation that a
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

mod inspect;
mod pair;
mod question;

use std::borrow::Cow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rayon::prelude::*;
use tokenizers::processors::sequence::Sequence as Sequences;
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{
    Encoding, ModelWrapper, NormalizerWrapper, PostProcessor as _, PostProcessorWrapper, PreTokenizerWrapper,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

pub use inspect::Token;
pub use pair::First;
use question::Asked;

use crate::disk;
use crate::model::directory::MAX_TOKENIZER;
use crate::model::{Directory, Sequence};

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
/// How many bytes of a text that is cut into pieces are tokenised at once.
const PART: usize = 64 * 1024;
/// The longest text in bytes that is cut into pieces.
const MOST_CHUNKED: usize = 4 * 1024 * 1024;
/// How many bytes of text may wait for the pool or be in it.
const MOST_WAITING: usize = 256 * 1024 * 1024;
/// How many texts of a request are tokenised before it is another request's turn, and how many bytes of them: a
/// few milliseconds of work.
const SLICE: usize = 256;
const SLICE_BYTES: usize = 64 * 1024;
/// A request of no more texts and bytes than this is tokenised where it is, in less than a tenth of a
/// millisecond: to hand it to the pool and back takes as long, and threads of the pool that wait for more
/// work spin while others could compute (a quarter of what a lone short text cost, measured).
const FEW: usize = 4;
const FEW_BYTES: usize = 2 * 1024;
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
    /// A text is longer than the model takes, and was not to be cut.
    #[error("text {index} is longer than {max_tokens} tokens, which is all that the model takes{}", too_long(*limit))]
    TooLong {
        /// Its place in the request.
        index: usize,
        /// The longest input in tokens, special ones included.
        max_tokens: usize,
        /// How many bytes may be cut into pieces, where that was wanted.
        limit: Option<usize>,
    },
    /// A text is longer than those whose tokens are told.
    #[error("text {index} has more than {most} characters: of longer ones no tokens are told")]
    TooMuchToTell {
        /// Its place in the request.
        index: usize,
        /// The most characters.
        most: usize,
    },
    /// A text is empty, and no special tokens stand for it.
    #[error("text {index} has no tokens: it is empty, and the model's tokenizer adds none of its own")]
    NoTokens {
        /// Its place in the request.
        index: usize,
    },
    /// A text stands alone, and the model only says how well two go together.
    #[error("text {index} stands alone, and the model says how well two texts go together: send pairs")]
    Alone {
        /// Its place in the request.
        index: usize,
    },
    /// There are more tokens than those whose text is told.
    #[error("{found} token ids; the limit is {most}: split them over several requests")]
    TooManyIds {
        /// How many there are.
        found: usize,
        /// How many there may be.
        most: usize,
    },
    /// No token has this id.
    #[error("token id {id} is not in the model's vocabulary: is it of another model's tokenizer?")]
    NoSuchId {
        /// The id.
        id: u32,
    },
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

fn too_long(limit: Option<usize>) -> String {
    limit.map_or_else(String::new, |bytes| format!(", and than the {bytes} bytes that are cut into pieces"))
}

/// What becomes of a text that is longer than the model takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Overflow {
    /// Its end is left away.
    #[default]
    TruncateEnd,
    /// Its beginning is left away; a prompt stays.
    TruncateStart,
    /// It is refused.
    Error,
    /// It is cut into pieces, each of which has a vector and gets the prompt; the text's vector is
    /// their mean, weighted by their tokens.
    ChunkMean,
}

impl std::str::FromStr for Overflow {
    type Err = String;

    /// As options and requests have it.
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "truncate" => Ok(Self::TruncateEnd),
            "error" => Ok(Self::Error),
            "chunk_mean" => Ok(Self::ChunkMean),
            _ => Err(format!("unknown on_overflow `{text}`, expected `truncate`, `error` or `chunk_mean`")),
        }
    }
}

/// How texts are to be made tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct How {
    /// What is put before each text that does not begin with it already.
    pub prompt: Arc<str>,
    /// Whether the prompt's tokens are left out of the pooling.
    pub unpooled_prompt: bool,
    /// What becomes of a text that is too long.
    pub overflow: Overflow,
    /// The most tokens of a pair's second text; its end is left away.
    pub most_of_second: Option<usize>,
}

impl Error {
    /// The same, of the text at a place of its request.
    fn at(self, place: usize) -> Self {
        match self {
            Self::TooLong { max_tokens, limit, .. } => Self::TooLong { index: place, max_tokens, limit },
            Self::TooMuchToTell { most, .. } => Self::TooMuchToTell { index: place, most },
            Self::NoTokens { .. } => Self::NoTokens { index: place },
            Self::Alone { .. } => Self::Alone { index: place },
            other => other,
        }
    }
}

/// What is to be made tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// A text.
    Text(String),
    /// Two texts that are compared.
    Pair(Arc<str>, String),
}

impl Input {
    fn bytes(&self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::Pair(first, second) => first.len() + second.len(),
        }
    }
}

/// How many bytes of text there are. A query is there once for all that it is compared with.
fn held(inputs: &[Input]) -> usize {
    let mut before: Option<&Arc<str>> = None;
    let mut bytes = 0;
    for input in inputs {
        bytes += match input {
            Input::Pair(first, second) if before.is_some_and(|it| Arc::ptr_eq(it, first)) => second.len(),
            _ => input.bytes(),
        };
        if let Input::Pair(first, _) = input {
            before = Some(first);
        }
    }
    bytes
}

/// The tokens of one text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tokens {
    /// Never empty, none of them longer than the model's limit; several only where a long text was
    /// cut into pieces.
    pub pieces: Vec<Sequence>,
    /// Whether the text was longer than the model's limit and something of it was left away.
    pub truncated: bool,
    /// Whether the text began with the prompt, which then was not put before it again.
    pub had_prompt: bool,
}

impl Tokens {
    /// Number of tokens, special ones included.
    pub fn len(&self) -> usize {
        self.pieces.iter().map(|piece| piece.ids.len()).sum()
    }

    /// Never: an empty text is its special tokens, and refused where there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Text → tokens. The one real implementation is [`Tokenizer`]; tests have another.
pub trait Encode: std::fmt::Debug + Send + Sync {
    /// The tokens of `text`.
    fn encode(&self, text: &str, how: &How) -> Result<Tokens, Error>;

    /// The tokens of two texts together, as models compare them. The prompt is put before the first.
    /// The longer text is cut where both are too long together, unless `overflow` is an error; pairs
    /// are not cut into pieces. Where the model is asked a question about them, the prompt is its
    /// instruction, and the second text is cut.
    fn encode_pair(&self, first: &str, second: &str, how: &How) -> Result<Tokens, Error>;

    /// The same for one of several pairs with the same first text.
    fn encode_pair_of(&self, first: &First, second: &str, how: &How) -> Result<Tokens, Error> {
        self.encode_pair(&first.text, second, how)
    }

    /// Each token of a text with its place in it, however long the text is for the model.
    fn tokens(&self, text: &str, how: &How, special: bool) -> Result<Vec<Token>, Error>;

    /// The text of tokens.
    fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String, Error>;
}

/// A model's tokenizer.
#[derive(Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    lowercase: bool,
    /// The longest input in tokens.
    max_tokens: usize,
    /// The most tokens of a text, without special ones.
    room: usize,
    /// How many special tokens stand before a text.
    before: usize,
    /// The length of the longest token that was added to the vocabulary.
    longest_added: usize,
    /// Whether long runs can be shortened.
    shortens: bool,
    /// What pairs are put into, where they are.
    question: Option<Asked>,
}

impl Tokenizer {
    /// Loads the tokenizer of a model directory. `vocabulary` is the number of rows
    /// of the model's embedding table: a tokenizer with ids beyond it is another
    /// model's.
    pub fn load(directory: &Directory, vocabulary: i64) -> Result<Self, Error> {
        let path = directory.path.join("tokenizer.json");
        let mut tokenizer =
            Self::open(&path, directory.max_tokens, directory.do_lower_case, directory.end.as_deref())?;
        if let Some(question) = directory.question {
            tokenizer.ask(question, &path)?;
        }
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

    fn open(path: &Path, max_tokens: usize, lowercase: bool, end: Option<&str>) -> Result<Self, Error> {
        let problem = |problem: String| Error::Load { path: path.to_owned(), problem };
        let bytes = disk::read_small(path, MAX_TOKENIZER).map_err(|error| problem(error.to_string()))?;
        let mut inner =
            tokenizers::Tokenizer::from_bytes(bytes).map_err(|error| problem(error.to_string()))?;
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|error| problem(error.to_string()))?;
        if let Some(end) = end {
            put_behind(&mut inner, end).map_err(|why| problem(why.to_string()))?;
        }
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
        let mut tokenizer =
            Self { inner, lowercase, max_tokens, room, before: 0, longest_added, shortens, question: None };
        let special = tokenizer.with_special(&[]).map_err(|error| problem(error.to_string()))?;
        let none = special.iter().copied().max().unwrap_or(0).wrapping_add(1);
        let around = tokenizer.with_special(&[none]).map_err(|error| problem(error.to_string()))?;
        tokenizer.before = around.iter().position(|&id| id == none).unwrap_or(0);
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

/// Has a token put behind every text, where it is not already.
fn put_behind(tokenizer: &mut tokenizers::Tokenizer, end: &str) -> Result<(), tokenizers::Error> {
    let id = tokenizer.token_to_id(end).ok_or_else(|| format!("it lacks \"{end}\", which ends texts"))?;
    if tokenizer.encode("", true)?.get_ids().last() == Some(&id) {
        return Ok(());
    }
    let template = TemplateProcessing::builder()
        .try_single(format!("$A:0 {end}:0"))?
        .try_pair(format!("$A:0 {end}:0 $B:1 {end}:1"))?
        .special_tokens(vec![(end, id)])
        .build()?;
    let before = tokenizer.get_post_processor().cloned();
    let all = before.into_iter().chain([PostProcessorWrapper::Template(template)]).collect();
    tokenizer.with_post_processor(Some(PostProcessorWrapper::Sequence(Sequences::new(all))));
    Ok(())
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

impl Tokenizer {
    /// The prompt and the text after it, as they are tokenised; and whether the text began with the
    /// prompt.
    fn prompted<'a>(&self, text: &'a str, how: &'a How) -> (Cow<'a, str>, Cow<'a, str>, bool) {
        let prompt = &*how.prompt;
        let rest = if prompt.is_empty() { None } else { text.strip_prefix(prompt) };
        let (text, had_prompt) = (rest.unwrap_or(text), rest.is_some());
        // All of it, because a sigma's lowercase depends on what follows, at any distance.
        if self.lowercase {
            return (prompt.to_lowercase().into(), text.to_lowercase().into(), had_prompt);
        }
        (prompt.into(), text.into(), had_prompt)
    }

    /// Tokens of a text with the special ones around them.
    fn with_special(&self, ids: &[u32]) -> Result<Vec<u32>, tokenizers::Error> {
        // As the library does for a text that it has truncated itself.
        let kept = ids.iter().map(|&id| (id, String::new(), (0, 0), None, 0)).collect();
        Ok(self.inner.post_process(kept, None, true)?.get_ids().to_vec())
    }

    /// All tokens of a text that is not too long for that, without special ones.
    fn all(&self, text: &str) -> Result<Vec<u32>, tokenizers::Error> {
        Ok(self.inner.encode_fast(text, false)?.get_ids().to_vec())
    }

    /// A sequence of a text's tokens, the first `prompt` of which are those of a prompt.
    fn sequence(&self, ids: &[u32], prompt: Option<usize>) -> Result<Sequence, tokenizers::Error> {
        let ids = self.with_special(ids)?;
        // Where a text is nothing but its prompt, something has to be pooled.
        let unpooled = prompt.map_or(0, |tokens| (self.before + tokens).min(ids.len() - 1));
        Ok(Sequence { unpooled, second: ids.len(), ids })
    }

    /// The last `room` tokens of a text, or of as much of its end as is looked at.
    fn last(&self, text: &str, room: usize) -> Result<Vec<u32>, tokenizers::Error> {
        let end = &text[text.ceil_char_boundary(text.len().saturating_sub(self.most()))..];
        let begin = if end.len() < text.len() { end.find(char::is_whitespace).unwrap_or(0) } else { 0 };
        let ids = self.all(&end[begin..])?;
        Ok(ids[ids.len().saturating_sub(room)..].to_vec())
    }

    /// All tokens of a long text, part by part: a tokenizer takes memory for all that it is given
    /// at once. Parts end before whitespace, where words end.
    fn parts(&self, text: &str) -> Result<Vec<u32>, tokenizers::Error> {
        let mut ids = Vec::new();
        let mut rest = text;
        while !rest.is_empty() {
            let part = &rest[..rest.floor_char_boundary(PART)];
            let part = if part.len() < rest.len() { before_a_space(part) } else { part };
            ids.extend(self.all(part)?);
            rest = &rest[part.len()..];
        }
        Ok(ids)
    }

    fn pieces(&self, text: &str, prompt: &str, how: &How) -> Result<(Vec<Sequence>, bool), Error> {
        let failed = |error: tokenizers::Error| Error::Encode(error.to_string());
        let whole: Cow<'_, str> =
            if prompt.is_empty() { Cow::Borrowed(text) } else { Cow::Owned(format!("{prompt}{text}")) };
        let (ids, cut) = self.first(&whole).map_err(failed)?;
        let of_prompt = || if prompt.is_empty() { Ok(Vec::new()) } else { self.all(prompt) };
        let unpooled = |tokens: usize| (how.unpooled_prompt && !prompt.is_empty()).then_some(tokens);
        if !cut || how.overflow == Overflow::TruncateEnd {
            let prompt = if how.unpooled_prompt { of_prompt().map_err(failed)?.len() } else { 0 };
            return Ok((vec![self.sequence(&ids, unpooled(prompt)).map_err(failed)?], cut));
        }
        let too_long = |limit| Err(Error::TooLong { index: 0, max_tokens: self.max_tokens, limit });
        if how.overflow == Overflow::Error {
            return too_long(None);
        }
        let prompt_ids = of_prompt().map_err(failed)?;
        let room = self.room.saturating_sub(prompt_ids.len());
        if room == 0 {
            return too_long(None);
        }
        let body = |ids: &[u32]| {
            let all = [&prompt_ids, ids].concat();
            self.sequence(&all, unpooled(prompt_ids.len())).map_err(failed)
        };
        if how.overflow == Overflow::TruncateStart {
            return Ok((vec![body(&self.last(text, room).map_err(failed)?)?], true));
        }
        if text.len() > MOST_CHUNKED {
            return too_long(Some(MOST_CHUNKED));
        }
        let ids = self.parts(text).map_err(failed)?;
        Ok((ids.chunks(room).map(body).collect::<Result<_, _>>()?, false))
    }
}

impl Encode for Tokenizer {
    fn encode(&self, text: &str, how: &How) -> Result<Tokens, Error> {
        if self.question.is_some() {
            return Err(Error::Alone { index: 0 });
        }
        let (prompt, text, had_prompt) = self.prompted(text, how);
        let (pieces, truncated) = self.pieces(&text, &prompt, how)?;
        if pieces.iter().any(|piece| piece.ids.is_empty()) {
            return Err(Error::NoTokens { index: 0 });
        }
        Ok(Tokens { pieces, truncated, had_prompt })
    }

    fn encode_pair(&self, first: &str, second: &str, how: &How) -> Result<Tokens, Error> {
        self.pair(&First::new(first.into()), second, how)
    }

    fn encode_pair_of(&self, first: &First, second: &str, how: &How) -> Result<Tokens, Error> {
        self.pair(first, second, how)
    }

    fn tokens(&self, text: &str, how: &How, special: bool) -> Result<Vec<Token>, Error> {
        self.inspect(text, how, special)
    }

    fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String, Error> {
        self.text_of(ids, skip_special)
    }
}

fn panicked() -> Error {
    Error::Encode("it panicked on this text".into())
}

/// The threads on which texts are tokenised; shared by all models. A few short ones are not worth a
/// change of threads, and are tokenised by who brings them.
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

    /// How many threads it has.
    pub fn threads(&self) -> usize {
        self.threads.current_num_threads()
    }

    /// Tokenises `inputs` in parallel; results are in their order. No further one is begun
    /// once the caller has left (the future is dropped).
    pub async fn encode(
        &self,
        tokenizer: Arc<dyn Encode>,
        inputs: Vec<Input>,
        how: How,
    ) -> Result<Vec<Tokens>, Error> {
        let bytes = held(&inputs);
        // A prompt is tokenised with each text.
        let prompt = how.prompt.len();
        let work = move |input: &Input| prompt + input.bytes();
        // A query comes with each of its documents.
        let query = inputs.iter().find_map(|input| match input {
            Input::Pair(first, _) => Some(First::new(Arc::clone(first))),
            Input::Text(_) => None,
        });
        let encode = move |input: &Input| match (input, &query) {
            (Input::Text(text), _) => tokenizer.encode(text, &how),
            (Input::Pair(first, second), Some(query)) if Arc::ptr_eq(first, &query.text) => {
                tokenizer.encode_pair_of(query, second, &how)
            }
            (Input::Pair(first, second), _) => tokenizer.encode_pair(first, second, &how),
        };
        self.each(inputs, bytes, work, encode).await
    }

    /// Does the work for each of `inputs`, which take `all` bytes; `bytes` tells how many are worked on for one.
    ///
    /// A slice of them at a time, at the end of the pool's line: the threads would otherwise not look at another
    /// request until one with a hundred thousand texts is through.
    async fn each<I, T>(
        &self,
        inputs: Vec<I>,
        all: usize,
        bytes: impl Fn(&I) -> usize + Send,
        work: impl Fn(&I) -> Result<T, Error> + Send + Sync + 'static,
    ) -> Result<Vec<T>, Error>
    where
        I: Send + Sync + 'static,
        T: Send + 'static,
    {
        let places = u32::try_from(all.min(MOST_WAITING) / UNIT).unwrap_or(u32::MAX);
        let places = Arc::clone(&self.places).try_acquire_many_owned(places).map_err(|_| Error::Busy)?;
        if inputs.len() <= FEW && inputs.iter().map(&bytes).sum::<usize>() <= FEW_BYTES {
            let work = |(index, input): (usize, &I)| work(input).map_err(|error| error.at(index));
            let each = || inputs.iter().enumerate().map(work).collect();
            // Tokenizers have no state that a panic could leave half-changed.
            return catch_unwind(AssertUnwindSafe(each)).unwrap_or_else(|_| Err(panicked()));
        }
        // A slice that is under way has them when the caller has left, too.
        let (places, work) = (Arc::new(places), Arc::new(work));
        let mut results = Vec::with_capacity(inputs.len());
        let mut inputs = inputs.into_iter().peekable();
        while inputs.peek().is_some() {
            let mut taken = 0;
            let slice: Vec<I> = std::iter::from_fn(|| {
                inputs.next_if(|_| taken < SLICE_BYTES).inspect(|input| taken += bytes(input))
            })
            .take(SLICE)
            .collect();
            let (places, work) = (Arc::clone(&places), Arc::clone(&work));
            results.append(&mut self.slice(slice, results.len(), places, work).await?);
        }
        Ok(results)
    }

    /// Does the work for some inputs, the first of which has this place in its request.
    async fn slice<I, T>(
        &self,
        inputs: Vec<I>,
        first: usize,
        places: Arc<OwnedSemaphorePermit>,
        work: Arc<impl Fn(&I) -> Result<T, Error> + Send + Sync + 'static>,
    ) -> Result<Vec<T>, Error>
    where
        I: Send + Sync + 'static,
        T: Send + 'static,
    {
        let (send, receive) = tokio::sync::oneshot::channel();
        self.threads.spawn_fifo(move || {
            let work = |(index, input): (usize, &I)| {
                if send.is_closed() {
                    return Err(Error::Left);
                }
                work(input).map_err(|error| error.at(first + index))
            };
            // Handing one text to another thread costs more than tokenising it.
            let results = if inputs.len() < 8 {
                inputs.iter().enumerate().map(work).collect()
            } else {
                inputs.par_iter().enumerate().with_min_len(4).map(work).collect()
            };
            // Before the caller goes on, who may come back at once.
            drop(inputs);
            drop(places);
            drop(send.send(results));
        });
        receive.await.unwrap_or_else(|_| Err(panicked()))
    }
}
