//! A text has the tokens that the tokenizers library gives it, and a long one costs no
//! more than what a model can look at.
#![allow(clippy::unwrap_used, reason = "a test that unwraps in vain fails, as it should")]

mod support;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use embedding_server::model::Directory;
use embedding_server::tokenize::{Encode, Error, How, Input, Pool, Token, Tokenizer, Tokens};
use serde_json::json;
use support::minilm;
use support::process::Memory;
use tokenizers::{TruncationDirection, TruncationParams, TruncationStrategy};

/// How long a text is that fills a body of the largest size allowed.
const HUGE: usize = 31_000_000;

/// A tokenizer, and the library's own truncation to compare it with.
struct Compared {
    ours: Tokenizer,
    oracle: tokenizers::Tokenizer,
}

impl Compared {
    fn new(path: &Path, max_tokens: usize) -> Self {
        let directory =
            Directory { max_tokens, path: path.to_owned(), ..Directory::read(&minilm()).unwrap() };
        let mut oracle = tokenizers::Tokenizer::from_file(path.join("tokenizer.json")).unwrap();
        oracle.with_padding(None);
        oracle
            .with_truncation(Some(TruncationParams {
                max_length: max_tokens,
                direction: TruncationDirection::Right,
                strategy: TruncationStrategy::LongestFirst,
                stride: 0,
            }))
            .unwrap();
        Self { ours: Tokenizer::load(&directory, 30_522).unwrap(), oracle }
    }

    fn check(&self, text: &str) {
        let encoding = self.oracle.encode(text, true).unwrap();
        let whole = Tokens {
            pieces: vec![encoding.get_ids().to_vec().into()],
            truncated: !encoding.get_overflowing().is_empty(),
            had_prompt: false,
        };
        let ours = self.ours.encode(text, &How::default()).unwrap();
        assert_eq!(ours, whole, "{} bytes: {:.300?}", text.len(), text);
    }
}

/// Of which texts are made: what splits words, what is dropped, what combines, and
/// what is, or nearly is, an added token.
const PARTS: [&str; 34] = [
    "the",
    "embedding",
    "x",
    " ",
    " ",
    " ",
    " ",
    "\n",
    "\r\n",
    "\t",
    ".",
    "a.a",
    "日本語",
    "ひらがな",
    "สวัสดี",
    "é",
    "e\u{301}",
    "\u{301}\u{316}\u{301}",
    "[MASK]",
    "[MA",
    "SK]",
    "[",
    "]",
    "\u{0}",
    "\u{200b}",
    "ΑΣ",
    "\u{600}",
    "👩‍👩‍👧",
    "👍🏽",
    "\u{a0}",
    "\u{3000}",
    "한국어",
    "İ",
    "\u{fffd}",
];

/// A text of about so many bytes, with runs of one part here and there.
fn generated(seed: u32, length: usize) -> String {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(12_345);
    let mut next = |below: usize| {
        // A linear congruential generator (Numerical Recipes).
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as usize % below
    };
    let mut text = String::new();
    let favourite = next(PARTS.len());
    while text.len() < length {
        let part = PARTS[next(PARTS.len())];
        match next(40) {
            0 => text.push_str(&part.repeat(next(300))),
            1 => text.push_str(&part.repeat(next(4000))),
            2..=12 => text.push_str(&PARTS[favourite].repeat(1 + next(40))),
            _ => text.push_str(part),
        }
    }
    text
}

#[test]
fn tokens_are_those_of_the_librarys_own_truncation() {
    let texts: Vec<String> = serde_json::from_str(include_str!("parity/texts.json")).unwrap();
    let long = texts.join(" ");
    for max_tokens in [3, 5, 64, 256, 512] {
        let compared = Compared::new(&minilm(), max_tokens);
        for text in &texts {
            compared.check(text);
        }
        compared.check(&long);
        for seed in 0..40 {
            compared.check(&generated(seed, 200));
            compared.check(&generated(seed + 1000, 20_000));
        }
    }
}

#[test]
fn what_comes_late_in_a_long_text_is_found() {
    let compared = Compared::new(&minilm(), 16);
    for filler in ["x", "0", " ", "\n", "\u{0}", "\u{301}", "\u{200b}", "é", "ส"] {
        for length in [8_100, 8_192, 50_000, 150_000] {
            let filler = filler.repeat(length / filler.len());
            for (before, after) in [
                ("", ""),
                ("", " "),
                ("", "b"),
                ("a", "b"),
                ("a ", " b"),
                ("[", "MASK]"),
                ("[MASK]", "[MASK]"),
                ("hello wor", "ld. hello world. 日本語 "),
                ("a", " 1 2 3 4 5 6 7 8 9 10 11 12 13"),
                ("a", " 1 2 3 4 5 6 7 8 9 10 11 12 13 14"),
            ] {
                compared.check(&format!("{before}{filler}{after}"));
            }
        }
    }
}

#[test]
fn a_text_is_cut_anywhere_with_the_same_tokens() {
    let compared = Compared::new(&minilm(), 8);
    for tail in ["[MASK] [MASK]", "e\u{301}\u{316}e\u{301}", "日本語日本語", "unbelievably", ". . . .", "👩‍👩‍👧"]
    {
        for shift in 0..20 {
            // The cut is at 8 KiB; what the model looks at is just before it.
            let space = " ".repeat(8_192 - shift);
            let odd = "\u{0}".repeat(8_192 - shift);
            compared.check(&format!("{space}{}", tail.repeat(50)));
            compared.check(&format!("{odd}{}", tail.repeat(50)));
        }
    }
}

#[test]
fn a_word_is_not_judged_before_it_has_ended() {
    let compared = Compared::new(&minilm(), 8);
    // Unknown, because it is too long. Cut before its hundredth letter, it would have many
    // tokens, more than are asked for.
    let word = "é".repeat(150);
    for shift in (0..300).step_by(10) {
        let before = "\u{0}".repeat(8_192 - shift);
        compared.check(&format!("{before}{word} and more"));
        compared.check(&format!("{before}{word}"));
    }
}

/// A directory with a tokenizer that is not BERT's.
fn written(tokenizer: &serde_json::Value) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    directory
}

fn special() -> serde_json::Value {
    json!({"type": "RobertaProcessing", "sep": ["</s>", 1], "cls": ["<s>", 0], "trim_offsets": true,
           "add_prefix_space": false})
}

fn added() -> serde_json::Value {
    let token = |id: u32, content: &str, lstrip: bool| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": lstrip, "rstrip": false,
               "normalized": false, "special": true})
    };
    json!([token(0, "<s>", false), token(1, "</s>", false), token(2, "[MASK]", true)])
}

#[test]
fn pieces_of_sentencepiece_are_the_same() {
    let mut vocabulary =
        vec![json!(["<s>", 0.0]), json!(["</s>", 0.0]), json!(["[MASK]", 0.0]), json!(["<unk>", 0.0])];
    let pieces = [
        "▁", "▁the", "the", "▁e", "mbed", "ding", "embed", "d", "e", "x", "xx", "xxx", "▁a", ".", "a", "日",
        "本語", "日本", "語", "é", "[", "MA", "ΑΣ",
    ];
    vocabulary.extend(pieces.iter().zip(1u8..).map(|(piece, rank)| json!([piece, -0.37 * f64::from(rank)])));
    let written = written(&json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added(),
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "NFKC"}, {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}]},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"},
            {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true}]},
        "post_processor": special(), "decoder": null,
        "model": {"type": "Unigram", "unk_id": 3, "vocab": vocabulary, "byte_fallback": false},
    }));
    check_long_texts(written.path());
}

/// Generated texts and repeated parts, for limits small and large.
fn check_long_texts(path: &Path) {
    for max_tokens in [8, 256, 512] {
        let compared = Compared::new(path, max_tokens);
        for seed in 0..40 {
            compared.check(&generated(seed, 30_000));
        }
        for part in PARTS {
            compared.check(&part.repeat(40_000 / part.len()));
        }
    }
}

#[test]
fn tokens_of_bytes_are_the_same() {
    // The alphabet of GPT-2: printable bytes are themselves, others follow from U+0100.
    let printable = |byte: u32| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let mut others = 0x100..;
    let alphabet = (0..256).map(|byte| if printable(byte) { byte } else { others.next().unwrap() });
    let mut vocabulary: Vec<String> = ["<s>", "</s>", "[MASK]"].map(str::to_owned).into();
    vocabulary.extend(alphabet.map(|code| char::from_u32(code).unwrap().to_string()));
    vocabulary.extend(["th", "the", "Ġthe", "xx", "xxxx", "ĠĠ"].map(str::to_owned));
    let ids: serde_json::Map<String, serde_json::Value> =
        vocabulary.iter().zip(0u32..).map(|(token, id)| (token.clone(), json!(id))).collect();
    let written = written(&json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added(), "normalizer": null,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "post_processor": special(), "decoder": null,
        "model": {"type": "BPE", "vocab": ids, "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "merges": [["t", "h"], ["th", "e"], ["Ġ", "the"], ["x", "x"], ["xx", "xx"], ["Ġ", "Ġ"]]},
    }));
    check_long_texts(written.path());
}

/// The most memory that this process has had at once, in MiB, since the last call.
fn peak() -> u64 {
    let Memory { peak, .. } = Memory::of("self");
    Memory::forget_peak("self");
    peak
}

#[test]
fn a_text_as_long_as_a_body_may_be_costs_little() {
    let compared = Compared::new(&minilm(), 256);
    // What it is made of, how many tokens it has, and whether it was cut.
    for (part, tokens, truncated) in [
        ("a.", 256, true),
        ("word ", 256, true),
        ("日", 256, true),
        ("[MASK]", 256, true),
        // One word, which is unknown.
        ("a", 3, false),
        (" ", 2, false),
        (" \r\n", 2, false),
        // One word too, but its end was not looked for.
        ("ส", 3, true),
        ("\u{301}", 2, true),
        ("\u{0}", 2, true),
    ] {
        let text = part.repeat(HUGE / part.len());
        peak();
        let begun = Instant::now();
        let found = compared.ours.encode(&text, &How::default()).unwrap();
        let took = begun.elapsed();
        let peak = peak();
        println!("{part:?}: {took:?}, at most {peak} MiB");
        assert_eq!((found.len(), found.truncated), (tokens, truncated), "{part:?}");
        assert!(took < Duration::from_secs(8), "{part:?}: {took:?}");
        // The texts of other tests are counted too; all of this one's tokens would take gigabytes.
        assert!(peak < 1500, "{part:?}: {peak} MiB");
    }
}

/// What is done with each text by what stands in for a tokenizer.
trait OneToken: std::fmt::Debug + Send + Sync {
    fn token(&self, text: &str) -> u32;
}

/// Stands in for a tokenizer.
#[derive(Debug, Default)]
struct StandIn<T>(T);

impl<T: OneToken> Encode for StandIn<T> {
    fn encode(&self, text: &str, _how: &How) -> Result<Tokens, Error> {
        let pieces = vec![vec![self.0.token(text)].into()];
        Ok(Tokens { pieces, truncated: false, had_prompt: false })
    }

    fn encode_pair(&self, first: &str, _second: &str, how: &How) -> Result<Tokens, Error> {
        self.encode(first, how)
    }

    fn tokens(&self, _text: &str, _how: &How, _special: bool) -> Result<Vec<Token>, Error> {
        Ok(Vec::new())
    }

    fn decode(&self, _ids: &[u32], _skip_special: bool) -> Result<String, Error> {
        Ok(String::new())
    }
}

/// Counts the texts that it is given, slowly.
#[derive(Debug, Default)]
struct Slow(AtomicUsize);

impl OneToken for Slow {
    fn token(&self, _text: &str) -> u32 {
        self.0.fetch_add(1, Ordering::Relaxed);
        std::thread::sleep(Duration::from_millis(20));
        1
    }
}

#[tokio::test]
async fn the_texts_of_a_caller_who_has_left_are_not_tokenised() {
    for count in [7, 70] {
        let (pool, slow) = (Pool::new(1).unwrap(), Arc::new(StandIn(Slow::default())));
        let inputs = vec![Input::Text("text".to_owned()); count];
        let encoding = pool.encode(slow.clone(), inputs, How::default());
        let left = tokio::time::timeout(Duration::from_millis(30), encoding).await;
        assert!(left.is_err());
        // The pool has one thread, so this is done after what is left of the first; and it is too many texts
        // to be done by who brings them.
        let others = vec![Input::Text("text".to_owned()); 5];
        pool.encode(slow.clone(), others, How::default()).await.unwrap();
        let done = slow.0.0.load(Ordering::Relaxed) - 5;
        assert!(done < 6, "{done} of {count}");
    }
}

#[tokio::test]
async fn the_pool_takes_only_so_many_bytes_at_once() {
    let (pool, slow) = (Pool::new(1).unwrap(), Arc::new(StandIn(Slow::default())));
    let encode = |megabytes: usize| {
        pool.encode(slow.clone(), vec![Input::Text("x".repeat(megabytes << 20))], How::default())
    };
    let (first, second) = tokio::join!(encode(150), encode(150));
    assert!(first.is_ok());
    assert!(matches!(second, Err(Error::Busy)), "{second:?}");
    assert!(encode(150).await.is_ok());
    // One that is larger than all that is allowed together is tokenised when it is alone.
    assert!(encode(300).await.is_ok());
}

/// Writes down which texts it is given, in order.
#[derive(Debug, Default)]
struct Listed(std::sync::Mutex<Vec<String>>);

impl OneToken for Listed {
    fn token(&self, text: &str) -> u32 {
        self.0.lock().unwrap().push(text.to_owned());
        text.parse().unwrap_or(0)
    }
}

#[tokio::test]
async fn a_request_of_many_texts_holds_up_no_other_and_keeps_its_order() {
    let (pool, listed) = (Pool::new(1).unwrap(), Arc::new(StandIn(Listed::default())));
    let many = (0..20_000).map(|number| Input::Text(number.to_string())).collect();
    let long = vec![Input::Text("x".repeat(60_000)); 20];
    // Each is in the pool's line before the thread can be through with what it has of the one before.
    let (many, long, five) = tokio::join!(
        pool.encode(listed.clone(), many, How::default()),
        pool.encode(listed.clone(), long, How::default()),
        pool.encode(listed.clone(), vec![Input::Text("five".to_owned()); 5], How::default()),
    );
    let ids: Vec<u32> = many.unwrap().into_iter().map(|text| text.pieces[0].ids[0]).collect();
    assert!(ids.iter().copied().eq(0..20_000));
    assert_eq!((long.unwrap().len(), five.unwrap().len()), (20, 5));
    let before = listed.0.0.lock().unwrap().iter().position(|text| text == "five").unwrap();
    assert!(before <= 256 + 2, "{before} texts went before them");
}

/// Panics.
#[derive(Debug)]
struct Broken;

impl OneToken for Broken {
    fn token(&self, text: &str) -> u32 {
        panic!("a tokenizer that is broken got {text}")
    }
}

#[tokio::test]
async fn a_tokenizer_that_panics_fails_the_request_and_nothing_else() {
    let pool = Pool::new(1).unwrap();
    // By who brings them, and by the pool.
    for count in [1, 300] {
        let texts = vec![Input::Text("text".to_owned()); count];
        let error = pool.encode(Arc::new(StandIn(Broken)), texts, How::default()).await.unwrap_err();
        assert_eq!(error.to_string(), "the tokenizer failed: it panicked on this text", "{count}");
    }
    let texts = vec![Input::Text("1".to_owned()); 300];
    assert_eq!(
        pool.encode(Arc::new(StandIn(Listed::default())), texts, How::default()).await.unwrap().len(),
        300
    );
}
