//! The engine alone against its peers: texts to vectors, without HTTP.
//!
//! Every contestant embeds the same texts, tokenising included, on all CPUs. They
//! take turns, round after round, so that a machine that is slow for a while is so for
//! all; figures are medians over the rounds, ratios are medians of the rounds'
//! ratios. `scripts/bench` runs this; `docs/benchmarks.md` explains the tables.

mod support;

use std::io::Write;
use std::sync::Arc;

use serde_json::{Value, json};
use support::corpus::{self, Class};
use support::figures::{cosine, median, min_cosine, number, ratio, spread, table, times};
use support::ours::{self, Ours};
use support::peers::{RustBert, SentenceTransformers};
use support::{Contestant, Options, machine};

fn main() -> anyhow::Result<()> {
    let Some(options) = Options::parse()? else { return Ok(()) };
    let rounds = if options.quick { 2 } else { 5 };
    let classes = corpus::classes(options.quick);
    let machine = machine::describe();
    let directory = ours::model_directory()?;
    let mut out = std::io::stdout();

    let peer_dtypes: &[_] = if options.quick { &["float32"] } else { &["float32", "bfloat16"] };
    let python = SentenceTransformers::start(&directory, &classes, peer_dtypes)?;
    let (python, versions) = python.unzip();
    let runtime = Arc::new(tokio::runtime::Builder::new_multi_thread().worker_threads(1).build()?);
    let ours = |implementation, dtype| {
        Ours::start(&runtime, &["--implementation", implementation, "--dtype", dtype])
    };
    // First, or our workers would take over its number of threads.
    let pipeline = RustBert::load(&directory)?;
    let bf16 = ours("packed", "bfloat16")?;
    let fused = ours("fused", "bfloat16")?;
    let counts: Vec<Vec<usize>> =
        classes.iter().map(|class| bf16.token_counts(&class.texts)).collect::<Result<_, _>>()?;
    let mut contestants: Vec<Box<dyn Contestant>> =
        vec![Box::new(fused), Box::new(bf16), Box::new(ours("packed", "float32")?)];
    if !options.quick {
        contestants.push(Box::new(ours("rust_bert", "float32")?));
    }
    let rust_bert = contestants.len();
    contestants.push(Box::new(pipeline));
    let reference = python.as_ref().map(|_| contestants.len());
    for peer in python.into_iter().flatten() {
        contestants.push(Box::new(peer));
    }

    write!(out, "## Engine\n\n{}", machine::paragraph(&machine, versions.as_ref()))?;
    let mut report = Vec::new();
    for (class, counts) in classes.iter().zip(&counts) {
        let samples = measure(&mut contestants, class, rounds, reference.unwrap_or(rust_bert))?;
        let tokens: usize = counts.iter().sum();
        let count = class.texts.len();
        writeln!(
            out,
            "\n**{}**: {count} texts of {} tokens in the mean, {} at most; {rounds} rounds\n",
            class.name,
            number(tokens as f64 / count as f64),
            counts.iter().max().unwrap_or(&0),
        )?;
        let peer =
            |index: Option<usize>| index.map_or(&[] as &[f64], |index| &samples[index].texts_per_second);
        let rows: Vec<Vec<String>> = samples
            .iter()
            .map(|sample| {
                let rate = &sample.texts_per_second;
                vec![
                    sample.name.clone(),
                    spread(rate),
                    number(median(rate) * tokens as f64 / count as f64),
                    times(ratio(rate, peer(Some(rust_bert)))),
                    times(ratio(rate, peer(reference))),
                    cosine(sample.min_cosine),
                ]
            })
            .collect();
        let head = [
            "engine",
            "texts/s (min–max)",
            "tokens/s",
            "to rust-bert's pipeline",
            "to sentence-transformers fp32",
            "min cosine",
        ];
        table(&mut out, &head, &rows)?;
        out.flush()?;
        report.push(json!({
            "class": class.name, "texts": count, "tokens": tokens,
            "engines": samples.iter().map(Sample::to_json).collect::<Vec<_>>(),
        }));
    }
    writeln!(
        out,
        "\nmin cosine: the least agreement of a text's vector with that of {}.",
        reference.map_or("rust-bert's pipeline", |_| "sentence-transformers in float32")
    )?;
    options.write_json(&json!({
        "machine": machine, "versions": versions, "quick": options.quick, "classes": report,
    }))
}

/// What one contestant did with one class.
struct Sample {
    name: String,
    min_cosine: f64,
    /// One a round.
    texts_per_second: Vec<f64>,
}

impl Sample {
    fn to_json(&self) -> Value {
        json!({"engine": self.name, "min_cosine": self.min_cosine, "texts_per_second": self.texts_per_second})
    }
}

fn measure(
    contestants: &mut [Box<dyn Contestant>],
    class: &Class,
    rounds: usize,
    reference: usize,
) -> anyhow::Result<Vec<Sample>> {
    let count = class.texts.len();
    // Nobody's first time counts: oneDNN compiles kernels, allocators grow.
    let mut vectors = Vec::new();
    for contestant in contestants.iter_mut() {
        vectors.push(contestant.embed(class, count)?.vectors);
    }
    let expected = &vectors[reference];
    let mut samples: Vec<Sample> = contestants
        .iter()
        .zip(&vectors)
        .map(|(contestant, vectors)| Sample {
            name: contestant.name().to_owned(),
            min_cosine: min_cosine(vectors, expected),
            texts_per_second: Vec::new(),
        })
        .collect();
    for round in 0..rounds {
        for turn in 0..contestants.len() {
            // Another one begins each round, so that nobody always follows the same.
            let index = (turn + round) % contestants.len();
            let run = contestants[index].embed(class, count)?;
            samples[index].texts_per_second.push(count as f64 / run.seconds());
        }
    }
    Ok(samples)
}
