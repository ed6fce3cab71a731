//! Two texts have the tokens that the tokenizers library gives them together, and what a tokenizer tells
//! of texts and tokens is what it computes with.
#![allow(clippy::unwrap_used, reason = "a test that unwraps in vain fails, as it should")]

mod support;

use embedding_server::model::Directory;
use embedding_server::tokenize::{Encode, Error, First, How, Overflow, Token, Tokenizer};
use support::minilm;
use tokenizers::utils::truncation::{TruncationDirection, TruncationParams, truncate_encodings};

fn tokenizer(max_tokens: usize) -> Tokenizer {
    let directory = Directory { max_tokens, ..Directory::read(&minilm()).unwrap() };
    Tokenizer::load(&directory, 30_522).unwrap()
}

/// The library's tokens of two texts, all of them and then truncated by it: ids, where the second begins,
/// and whether any are lost. Asked to truncate as it tokenises, it would not count all of long texts.
fn expected(
    library: &tokenizers::Tokenizer,
    (first, second): (&str, &str),
    max_tokens: usize,
    direction: TruncationDirection,
) -> (Vec<u32>, usize, bool) {
    let [first, second] = [first, second].map(|text| library.encode(text, false).unwrap());
    let all = first.len() + second.len();
    let params = TruncationParams { max_length: max_tokens - 3, direction, ..TruncationParams::default() };
    let (mut first, mut second) = truncate_encodings(first, Some(second), &params).unwrap();
    // What is cut off, which would be combined with all that is cut off of the other.
    first.take_overflowing();
    second.as_mut().unwrap().take_overflowing();
    let kept = first.len() + second.as_ref().unwrap().len();
    let begins = first.len() + 2;
    let ids = library.post_process(first, second, true).unwrap().get_ids().to_vec();
    (ids, begins, kept < all)
}

fn at(overflow: Overflow) -> How {
    How { overflow, ..nothing() }
}

fn nothing() -> How {
    How::default()
}

#[test]
fn pairs_are_cut_as_the_library_cuts_them_however_long_they_are() {
    let words = |count: usize, word: &str| format!("{word} ").repeat(count);
    let lengths = [0, 1, 3, 5, 6, 8, 41, 700];
    let mut library = tokenizers::Tokenizer::from_file(minilm().join("tokenizer.json")).unwrap();
    library.with_padding(None).with_truncation(None).unwrap();
    for max_tokens in [24, 25] {
        let ours = tokenizer(max_tokens);
        for (overflow, direction) in [
            (Overflow::TruncateEnd, TruncationDirection::Right),
            (Overflow::TruncateStart, TruncationDirection::Left),
        ] {
            for (first, second) in
                lengths.iter().flat_map(|&first| lengths.iter().map(move |&second| (first, second)))
            {
                // Words of four tokens, and of three and of one.
                let one = words(first, "embeddings");
                let other = words(second, "unaffable cat").repeat(1 + second % 2);
                let found = ours.encode_pair(&one, &other, &at(overflow)).unwrap();
                let piece = &found.pieces[0];
                let found = (piece.ids.clone(), piece.second, found.truncated);
                let expected = expected(&library, (&one, &other), max_tokens, direction);
                assert_eq!(found, expected, "{first} and {second} in {max_tokens}");
            }
        }
    }
}

#[test]
fn a_pair_that_is_not_to_be_cut_is_refused_and_a_second_text_can_be_cut_on_its_own() {
    let ours = tokenizer(16);
    let long = "a cat sat on the mat and the other cat sat on the other mat";
    let refused = ours.encode_pair("a cat", long, &at(Overflow::Error)).unwrap_err();
    assert_eq!(refused.to_string(), "text 0 is longer than 16 tokens, which is all that the model takes");
    let short = How { most_of_second: Some(3), ..at(Overflow::Error) };
    let found = ours.encode_pair("a cat", long, &short).unwrap();
    let whole = ours.encode_pair("a cat", "a cat sat", &nothing()).unwrap();
    assert_eq!((found.pieces, found.truncated, whole.truncated), (whole.pieces, true, false));
    let enough = How { most_of_second: Some(30), ..nothing() };
    assert_eq!(
        ours.encode_pair("a", long, &enough).unwrap(),
        ours.encode_pair("a", long, &nothing()).unwrap()
    );
}

#[test]
fn what_is_known_of_a_first_text_holds_for_every_pair_that_it_is_in() {
    let words = |count: usize| "unaffable cat ".repeat(count);
    for max_tokens in [24, 25] {
        let ours = tokenizer(max_tokens);
        for overflow in [Overflow::TruncateEnd, Overflow::TruncateStart] {
            let how = How { prompt: "query: ".into(), ..at(overflow) };
            for query in [words(0), words(1), words(3), words(5000), "query: a cat".to_owned()] {
                let first = First::new(query.as_str().into());
                for count in [0, 1, 2, 4, 3000] {
                    let second = words(count);
                    let alone = ours.encode_pair(&query, &second, &how).unwrap();
                    let found = ours.encode_pair_of(&first, &second, &how).unwrap();
                    assert_eq!(found, alone, "{query:.40} and {count} in {max_tokens}");
                }
            }
        }
    }
}

#[test]
fn a_prompt_stands_before_the_first_text_of_a_pair_once() {
    let ours = tokenizer(64);
    let how = How { prompt: "query: ".into(), ..nothing() };
    let plain = ours.encode_pair("query: a cat", "a dog", &nothing()).unwrap();
    let prompted = ours.encode_pair("a cat", "a dog", &how).unwrap();
    assert_eq!((&prompted.pieces, prompted.had_prompt), (&plain.pieces, false));
    let again = ours.encode_pair("query: a cat", "a dog", &how).unwrap();
    assert_eq!((&again.pieces, again.had_prompt), (&plain.pieces, true));
}

#[test]
fn tokens_are_told_with_their_places_and_their_text_can_be_told_again() {
    let ours = tokenizer(8);
    let text = "The embedding café";
    let how = How { prompt: "q: ".into(), ..nothing() };
    let told = ours.tokens(text, &how, true).unwrap();
    let special = |id, text: &str| Token { id, text: text.into(), special: true, place: None };
    let token = |id, text: &str, start, stop| Token {
        id,
        text: text.into(),
        special: false,
        place: Some((start, stop)),
    };
    assert_eq!(
        told,
        [
            special(101, "[CLS]"),
            token(1053, "q", 0, 1),
            token(1024, ":", 1, 2),
            token(1996, "The", 3, 6),
            token(7861, "em", 7, 9),
            token(8270, "bed", 9, 12),
            token(4667, "ding", 12, 16),
            token(7668, "café", 17, 22),
            special(102, "[SEP]"),
        ]
    );
    // More than the model takes: nothing is cut here.
    assert_eq!(ours.tokens(&"cat ".repeat(100), &nothing(), false).unwrap().len(), 100);
    assert!(matches!(
        ours.tokens(&"a".repeat(2001), &nothing(), true),
        Err(Error::TooMuchToTell { index: 0, most: 2000 })
    ));

    let ids: Vec<u32> = told.iter().map(|token| token.id).collect();
    assert_eq!(ours.decode(&ids, true).unwrap(), "q : the embedding cafe");
    assert_eq!(ours.decode(&ids, false).unwrap(), "[CLS] q : the embedding cafe [SEP]");
    assert!(matches!(ours.decode(&[101, 30_522], true), Err(Error::NoSuchId { id: 30_522 })));
}
