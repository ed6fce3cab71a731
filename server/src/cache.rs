//! Vectors that were made before, so that the same text is not computed again.
//!
//! ```text
//! texts ─ keys ─┬─ there ─────────────────────────────▶ vector
//!               ├─ nobody computes it ─ embed ─ keep ─▶ vector
//!               └─ another request does ─ wait ─┬─────▶ vector
//!                                               └─ it failed, or its caller left: begin again
//! ```
//!
//! A vector is kept under the hash of everything that decides it: its space (which is of its length
//! and norm, too), the prompt, what becomes of long texts, and the text. Texts are not kept. Only a
//! vector that was made is: no error is.
//!
//! Nobody waits while others wait for him: a request first computes all that it has to, and then waits
//! for what others compute. So two requests with the same texts in two orders do not block each other.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use quick_cache::sync::{Cache as Store, GuardResult, PlaceholderGuard};
use quick_cache::{DefaultHashBuilder, OptionsBuilder, Weighter};
use sha2::{Digest as _, Sha256};

use crate::embedder::{Caller, Embedded, Embedder, Error, Text};
use crate::options::Decided;
use crate::tokenize::{self, Input, Overflow};

/// What is hashed comes first, so that another version of this would not meet the same keys.
const VERSION: &[u8] = b"embedding-cache 1";
/// What a vector costs besides its values: its key, its counts, and its place in the store.
const OVERHEAD: u64 = 192;
/// Parts of the store that lock by themselves.
const SHARDS: u64 = 16;
/// About what a vector takes, for the store to know how many there will be: one of 384 values.
const USUAL: u64 = 384 * 4 + OVERHEAD;

type Key = [u8; 32];

/// A vector, and what became of its text.
#[derive(Clone, Debug)]
struct Entry {
    vector: Arc<[f32]>,
    text: Text,
}

#[derive(Clone, Debug)]
struct Bytes;

impl Weighter<Key, Entry> for Bytes {
    fn weight(&self, _: &Key, entry: &Entry) -> u64 {
        size_of_val(&*entry.vector) as u64 + OVERHEAD
    }
}

type Guard<'a> = PlaceholderGuard<'a, Key, Entry, Bytes, DefaultHashBuilder, Lifecycle>;
type Lifecycle = quick_cache::sync::DefaultLifecycle<Key, Entry>;

/// Vectors by what they are of.
#[derive(Debug)]
pub struct Cache {
    store: Store<Key, Entry, Bytes>,
}

/// Whether a request's vectors were there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All of them were, or another request made them.
    Hit,
    /// None was.
    Miss,
    /// Some were.
    Partial,
}

impl Outcome {
    /// As it is told.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Hit => "HIT",
            Self::Miss => "MISS",
            Self::Partial => "PARTIAL",
        }
    }
}

/// A request's vectors.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// The vectors, and what became of the texts.
    pub embedded: Embedded,
    /// What became of the texts that were computed for this request; each once.
    pub computed: Vec<Text>,
    /// How many of the texts had a vector without that.
    pub hits: usize,
}

impl Found {
    /// Whether its vectors were there.
    pub fn outcome(&self) -> Outcome {
        match self.hits {
            0 => Outcome::Miss,
            hits if hits == self.embedded.texts.len() => Outcome::Hit,
            _ => Outcome::Partial,
        }
    }
}

/// A text of a request, and every place where it is; each text is there once.
struct Wanted {
    key: Key,
    /// Taken when it is computed.
    text: String,
    /// The first of its places.
    place: usize,
    entry: Option<Entry>,
    computed: bool,
}

fn key(decided: &Decided, text: &str) -> Key {
    let overflow = match decided.how.overflow {
        Overflow::TruncateEnd => 0u8,
        Overflow::TruncateStart => 1,
        Overflow::Error => 2,
        Overflow::ChunkMean => 3,
    };
    let mut hash = Sha256::new();
    let space = decided.space.to_string();
    for part in [VERSION, space.as_bytes(), decided.how.prompt.as_bytes()] {
        // With its length, so that no end of one can be a beginning of the next.
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hash.update([overflow, u8::from(decided.how.unpooled_prompt)]);
    hash.update(text.as_bytes());
    hash.finalize().into()
}

/// An error of some of a request's texts as one of the request.
fn of_request(error: Error, places: &[usize]) -> Error {
    let place = |index: usize| places.get(index).copied().unwrap_or(index);
    match error {
        Error::Text { index, source } => Error::Text { index: place(index), source },
        Error::TooLong(tokenize::Error::TooLong { index, max_tokens, limit }) => {
            Error::TooLong(tokenize::Error::TooLong { index: place(index), max_tokens, limit })
        }
        Error::NotTold(tokenize::Error::NoTokens { index }) => {
            Error::NotTold(tokenize::Error::NoTokens { index: place(index) })
        }
        error => error,
    }
}

impl Cache {
    /// An empty one that holds at most so many bytes.
    #[expect(clippy::missing_panics_doc, reason = "the numbers without which there are no options are given")]
    pub fn new(bytes: u64) -> Self {
        let options = OptionsBuilder::new()
            .shards(SHARDS as usize)
            .estimated_items_capacity(usize::try_from(bytes / USUAL).unwrap_or(usize::MAX))
            // A part of the store gets as much as any other, and rounds up.
            .weight_capacity(bytes / SHARDS * SHARDS)
            .build();
        let options = options.expect("the two numbers that can be missing are set");
        Self {
            store: Store::with_options(options, Bytes, DefaultHashBuilder::default(), Lifecycle::default()),
        }
    }

    /// How many vectors it holds.
    pub fn entries(&self) -> usize {
        self.store.len()
    }

    /// How many bytes it holds, about.
    pub fn bytes(&self) -> u64 {
        self.store.weight()
    }

    /// The vectors of `inputs`, in order, as was decided; all of them or an error. Pairs are computed.
    pub async fn embed(
        &self,
        embedder: &Embedder,
        inputs: Vec<Input>,
        decided: &Decided,
        caller: Caller,
    ) -> Result<Found, Error> {
        // Before anything is looked up, so that what a request may have does not depend on that.
        embedder.check_count(inputs.len())?;
        let texts: Result<Vec<String>, Vec<Input>> = texts(inputs);
        let texts = match texts {
            Ok(texts) => texts,
            Err(inputs) => {
                let made = embedder.embed(inputs, decided, caller).await?;
                return Ok(Found { computed: made.texts.clone(), embedded: made, hits: 0 });
            }
        };
        let (mut wanted, of) = distinct(texts, decided);
        self.fill(embedder, decided, caller, &mut wanted).await?;
        Ok(found(&wanted, &of))
    }

    /// Finds, makes or waits for each entry.
    async fn fill(
        &self,
        embedder: &Embedder,
        decided: &Decided,
        caller: Caller,
        wanted: &mut [Wanted],
    ) -> Result<(), Error> {
        let mut missing: Vec<usize> = (0..wanted.len()).collect();
        let mut ours: Vec<(usize, Guard<'_>)> = Vec::new();
        loop {
            let mut theirs = Vec::new();
            for place in missing {
                match self.store.get_value_or_guard(&wanted[place].key, Some(Duration::ZERO)) {
                    GuardResult::Value(entry) => wanted[place].entry = Some(entry),
                    GuardResult::Guard(guard) => ours.push((place, guard)),
                    GuardResult::Timeout => theirs.push(place),
                }
            }
            if !ours.is_empty() {
                compute(embedder, decided, caller, wanted, std::mem::take(&mut ours)).await?;
            }
            // We hold no guard while we wait.
            let mut theirs = theirs.into_iter();
            for place in theirs.by_ref() {
                match self.store.get_value_or_guard_async(&wanted[place].key).await {
                    Ok(entry) => wanted[place].entry = Some(entry),
                    // Whoever was at it failed, or left; most likely at the others, too.
                    Err(guard) => {
                        ours.push((place, guard));
                        break;
                    }
                }
            }
            missing = theirs.collect();
            if missing.is_empty() && ours.is_empty() {
                return Ok(());
            }
        }
    }
}

/// Computes the entries that are ours to compute. Each is kept as soon as it is there; those that are
/// not there when it fails, or when the caller leaves, are given up, and others may compute them.
async fn compute(
    embedder: &Embedder,
    decided: &Decided,
    caller: Caller,
    wanted: &mut [Wanted],
    ours: Vec<(usize, Guard<'_>)>,
) -> Result<(), Error> {
    let mut inputs = Vec::with_capacity(ours.len());
    let mut places = Vec::with_capacity(ours.len());
    for (index, _) in &ours {
        inputs.push(Input::Text(std::mem::take(&mut wanted[*index].text)));
        places.push(wanted[*index].place);
    }
    let mut ours = ours.into_iter();
    let keep = |text: Text, vector: Vec<f32>| {
        let Some((index, guard)) = ours.next() else { return };
        let entry = Entry { vector: vector.into(), text };
        // Those who wait get it also if there is no room for it.
        let _ = guard.insert(entry.clone());
        wanted[index].entry = Some(entry);
        wanted[index].computed = true;
    };
    embedder.embed_each(inputs, decided, caller, keep).await.map_err(|error| of_request(error, &places))
}

/// The texts, if all inputs are.
fn texts(inputs: Vec<Input>) -> Result<Vec<String>, Vec<Input>> {
    if inputs.iter().any(|input| matches!(input, Input::Pair(..))) {
        return Err(inputs);
    }
    let text = |input| match input {
        Input::Text(text) => Some(text),
        Input::Pair(..) => None,
    };
    Ok(inputs.into_iter().filter_map(text).collect())
}

/// Each text once, and for each place of the request which one of them is there.
fn distinct(texts: Vec<String>, decided: &Decided) -> (Vec<Wanted>, Vec<usize>) {
    let mut wanted = Vec::with_capacity(texts.len());
    let mut by_key = HashMap::with_capacity(texts.len());
    let of = |(place, text): (usize, String)| {
        let key = key(decided, &text);
        *by_key.entry(key).or_insert_with(|| {
            wanted.push(Wanted { key, text, place, entry: None, computed: false });
            wanted.len() - 1
        })
    };
    let of = texts.into_iter().enumerate().map(of).collect();
    (wanted, of)
}

fn found(wanted: &[Wanted], of: &[usize]) -> Found {
    let entries = || of.iter().filter_map(|&index| wanted[index].entry.as_ref());
    let computed = wanted.iter().filter(|wanted| wanted.computed);
    Found {
        embedded: Embedded {
            vectors: entries().map(|entry| entry.vector.to_vec()).collect(),
            texts: entries().map(|entry| entry.text).collect(),
        },
        computed: computed.filter_map(|wanted| wanted.entry.as_ref().map(|entry| entry.text)).collect(),
        hits: of.iter().filter(|&&index| !wanted[index].computed).count(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::{Offer, Options};
    use crate::space::Base;

    fn offer(name: &str) -> Offer {
        Offer {
            prompts: [("query".to_owned(), "q: ".to_owned())].into(),
            default_prompt: None,
            include_prompt: true,
            require_input_type: false,
            overflow: Overflow::TruncateEnd,
            dimensions: vec![2, 4],
            normalizes: true,
            space: Base::of_test(name),
        }
    }

    #[test]
    fn a_key_is_of_everything_that_decides_a_vector() {
        let of = |offer: &Offer, options: &Options, text: &str| key(&offer.decide(options).unwrap(), text);
        let (model, plain) = (offer("a"), Options::default());
        let query = Options { input_type: Some("query".into()), ..Options::default() };
        let mut seen = std::collections::HashSet::from([of(&model, &plain, "x")]);
        assert!(!seen.insert(of(&model, &plain, "x")));
        for (what, key) in [
            ("the text", of(&model, &plain, "y")),
            ("the model", of(&offer("b"), &plain, "x")),
            ("the prompt", of(&model, &query, "x")),
            ("text that looks like a prompt", of(&model, &plain, "q: x")),
            ("an empty text after a prompt", of(&model, &query, "")),
            ("whether the prompt is pooled", of(&Offer { include_prompt: false, ..offer("a") }, &plain, "x")),
            ("the length", of(&model, &Options { dimensions: Some(2), ..Options::default() }, "x")),
            ("the norm", of(&model, &Options { normalize: Some(false), ..Options::default() }, "x")),
            (
                "what is cut",
                of(&model, &Options { overflow: Some(Overflow::TruncateStart), ..Options::default() }, "x"),
            ),
            (
                "nothing is cut",
                of(&model, &Options { overflow: Some(Overflow::Error), ..Options::default() }, "x"),
            ),
            (
                "pieces",
                of(&model, &Options { overflow: Some(Overflow::ChunkMean), ..Options::default() }, "x"),
            ),
        ] {
            assert!(seen.insert(key), "{what}");
        }
    }

    #[test]
    fn it_holds_no_more_bytes_than_it_may_whatever_is_put_in() {
        for bytes in [0u64, 1, 500, 10_000, 100_000, 5_000_000] {
            let cache = Cache::new(bytes);
            for number in 0..5_000u32 {
                let values = [1, 4, 384, 4096][number as usize % 4];
                let entry = Entry { vector: vec![0.0; values].into(), text: Text::default() };
                cache.store.insert(Sha256::digest(number.to_le_bytes()).into(), entry);
                assert!(cache.bytes() <= bytes, "{} of {bytes} bytes", cache.bytes());
            }
            assert_eq!(cache.entries() == 0, bytes < 500, "{bytes} bytes");
        }
    }

    #[test]
    fn errors_name_the_texts_place_in_the_request() {
        let source = crate::worker::Error::NotFinite;
        let error = of_request(Error::Text { index: 1, source }, &[3, 7]);
        assert!(error.to_string().starts_with("texts[7]: "), "{error}");
        let error = tokenize::Error::TooLong { index: 0, max_tokens: 8, limit: None };
        let error = of_request(Error::TooLong(error), &[3, 7]);
        assert!(error.to_string().starts_with("text 3 is longer"), "{error}");
    }
}
