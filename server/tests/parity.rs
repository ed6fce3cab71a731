//! The vectors are those of Python's sentence-transformers.
//!
//! `scripts/parity-fixture` made the texts and their vectors.

mod support;

use std::path::Path;

use embedding_server::model::{self, Directory, Dtype, Implementation, Plan, TokenBatch};
use embedding_server::tokenize::{Tokenizer, Tokens};
use safetensors::SafeTensors;
use support::{cosine, minilm};

struct Fixture {
    texts: Vec<String>,
    vectors: Vec<Vec<f32>>,
    tokens: Vec<usize>,
}

fn fixture() -> Fixture {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/parity");
    let texts: Vec<String> =
        serde_json::from_slice(&std::fs::read(folder.join("texts.json")).unwrap()).unwrap();
    let bytes = std::fs::read(folder.join("vectors.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let halves = tensors.tensor("vectors").unwrap();
    let values: Vec<f32> = halves
        .data()
        .chunks_exact(2)
        .map(|half| half::f16::from_le_bytes([half[0], half[1]]).to_f32())
        .collect();
    let vectors = values.chunks_exact(halves.shape()[1]).map(<[f32]>::to_vec).collect();
    let tokens = tensors.tensor("tokens").unwrap();
    let tokens = tokens
        .data()
        .chunks_exact(4)
        .map(|n| i32::from_le_bytes([n[0], n[1], n[2], n[3]]) as usize)
        .collect();
    Fixture { texts, vectors, tokens }
}

fn tokenized(texts: &[String]) -> Vec<Tokens> {
    let directory = Directory::read(&minilm()).unwrap();
    let tokenizer = Tokenizer::load(&directory, 30_522).unwrap();
    texts.iter().map(|text| tokenizer.encode(text).unwrap()).collect()
}

/// The smallest cosine to the fixture over all texts, embedded in batches of
/// `size` texts in order of length.
fn smallest_cosine(implementation: Implementation, dtype: Dtype, size: usize) -> f64 {
    let fixture = fixture();
    let tokens = tokenized(&fixture.texts);
    let mut order: Vec<usize> = (0..tokens.len()).collect();
    order.sort_by_key(|&index| tokens[index].ids.len());
    let mut model = model::load_path(&minilm(), Plan { implementation, dtype }).unwrap();
    let mut smallest = f64::INFINITY;
    for chunk in order.chunks(size) {
        let batch: TokenBatch = chunk.iter().map(|&index| tokens[index].ids.as_slice()).collect();
        let values = model.embed(&batch).unwrap();
        for (vector, &index) in values.chunks_exact(384).zip(chunk) {
            let cosine = cosine(vector, &fixture.vectors[index]);
            if cosine < smallest {
                smallest = cosine;
                println!("{implementation} {dtype}: {cosine:.8} at {:.40?}", fixture.texts[index]);
            }
        }
    }
    smallest
}

#[test]
fn the_fixture_has_at_least_300_texts_and_their_vectors() {
    let fixture = fixture();
    assert!(fixture.texts.len() >= 300);
    assert_eq!(fixture.texts.len(), fixture.vectors.len());
    assert_eq!(fixture.texts.len(), fixture.tokens.len());
}

#[test]
fn every_text_has_as_many_tokens_as_in_python_and_long_ones_are_reported_as_cut() {
    let fixture = fixture();
    for ((text, python), ours) in fixture.texts.iter().zip(&fixture.tokens).zip(tokenized(&fixture.texts)) {
        assert_eq!(ours.ids.len(), *python, "{text:.60?}");
    }
    let hello = |words: usize| tokenized(&["hello ".repeat(words)]).remove(0);
    assert_eq!((hello(254).ids.len(), hello(254).truncated), (256, false));
    assert_eq!((hello(255).ids.len(), hello(255).truncated), (256, true));
}

#[test]
fn packed_fp32_vectors_are_those_of_python() {
    let smallest = smallest_cosine(Implementation::Packed, Dtype::Float32, 16);
    assert!(smallest >= 0.99999, "{smallest}");
}

#[test]
fn rust_bert_vectors_are_those_of_python() {
    let smallest = smallest_cosine(Implementation::RustBert, Dtype::Float32, 16);
    assert!(smallest >= 0.99999, "{smallest}");
}

#[test]
fn packed_bf16_vectors_are_nearly_those_of_python() {
    let smallest = smallest_cosine(Implementation::Packed, Dtype::BFloat16, 16);
    assert!(smallest >= 0.9997, "{smallest}");
}
