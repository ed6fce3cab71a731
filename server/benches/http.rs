//! The server over HTTP: the real binary, driven by clients on the same machine.
//!
//! The client shares the CPUs with the server, so the figures are those of the pair.
//! No peer has a server: they are called in this process, one call after the other,
//! with as many texts a call as a request has. Everything takes turns, round after
//! round. `scripts/bench` runs this; `docs/benchmarks.md` explains the tables.

mod support;

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use support::corpus::{self, Class};
use support::figures::{cosine, median, min_cosine, number, quantile, ratio, spread, table, times};
use support::load::{self, Load, Server};
use support::ours::{self, Ours};
use support::peers::{RustBert, SentenceTransformers};
use support::{Contestant, Options, machine};
use tokio::runtime::Runtime;

/// A shape of request, and who sends it how often at once.
struct Shape {
    title: &'static str,
    class: Class,
    per_call: usize,
    clients: &'static [usize],
}

fn main() -> anyhow::Result<()> {
    let Some(options) = Options::parse()? else { return Ok(()) };
    let (rounds, window) =
        if options.quick { (2, Duration::from_secs(1)) } else { (4, Duration::from_secs(3)) };
    let part = if options.quick { 2 } else { 1 };
    let shapes = [
        Shape {
            title: "one short text a request",
            class: corpus::short(192 / part),
            per_call: 1,
            clients: &[1, 8, 64],
        },
        Shape {
            title: "32 mixed texts a request",
            class: corpus::mixed(128 / part),
            per_call: 32,
            clients: &[1, 4],
        },
    ];
    let machine = machine::describe();
    let directory = ours::model_directory()?;
    let classes: Vec<Class> = shapes.iter().map(|shape| shape.class.clone()).collect();
    let python = SentenceTransformers::start(&directory, &classes, &["float32"])?;
    let (python, versions) = python.unzip();
    let runtime =
        Arc::new(tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?);
    // First, or our workers would take over its number of threads.
    let pipeline = RustBert::load(&directory)?;
    let ours = Ours::start(&runtime, &[])?;
    let counts: Vec<usize> = shapes
        .iter()
        .map(|shape| Ok(ours.token_counts(&shape.class.texts)?.iter().sum()))
        .collect::<anyhow::Result<_>>()?;
    let mut contestants: Vec<Box<dyn Contestant>> = vec![Box::new(ours), Box::new(pipeline)];
    let rust_bert = 1;
    for peer in python.into_iter().flatten() {
        contestants.push(Box::new(peer));
    }
    let reference = contestants.len() - 1;

    let mut out = std::io::stdout();
    writeln!(out, "## HTTP\n\n{}", machine::paragraph(&machine, versions.as_ref()))?;
    writeln!(
        out,
        "Server with its defaults on the loopback; clients on the same CPUs; {rounds} rounds of {} s.",
        window.as_secs()
    )?;
    let mut server = Server::start()?;
    runtime.block_on(server.ready())?;

    let mut report = Vec::new();
    for (shape, &tokens) in shapes.iter().zip(&counts) {
        let samples = measure(&runtime, &server, &mut contestants, shape, rounds, window, reference)?;
        let peers = &samples[samples.len() - contestants.len()..];
        let python = versions.is_some().then(|| &peers[reference]);
        write_table(&mut out, shape, tokens, &samples, &peers[rust_bert], python)?;
        out.flush()?;
        report.push(json!({
            "shape": shape.title, "texts_per_request": shape.per_call, "texts": shape.class.texts.len(), "tokens": tokens,
            "rows": samples.iter().map(Sample::to_json).collect::<Vec<_>>(),
        }));
    }
    writeln!(
        out,
        "\nin process: no HTTP, one call after the other. min cosine: with {}.",
        if versions.is_some() { "sentence-transformers in float32" } else { "rust-bert's pipeline" }
    )?;
    options.write_json(
        &json!({"machine": machine, "versions": versions, "quick": options.quick, "shapes": report}),
    )
}

fn write_table(
    out: &mut impl Write,
    shape: &Shape,
    tokens: usize,
    samples: &[Sample],
    rust_bert: &Sample,
    python: Option<&Sample>,
) -> std::io::Result<()> {
    let tokens_per_text = tokens as f64 / shape.class.texts.len() as f64;
    writeln!(out, "\n**{}**, of {} tokens a text in the mean\n", shape.title, number(tokens_per_text))?;
    let rows: Vec<Vec<String>> = samples
        .iter()
        .map(|sample| {
            let rate = &sample.calls_per_second;
            let texts = median(rate) * shape.per_call as f64;
            vec![
                sample.name.clone(),
                spread(rate),
                number(texts),
                number(texts * tokens_per_text),
                number(quantile(&sample.seconds, 0.5) * 1e3),
                number(quantile(&sample.seconds, 0.99) * 1e3),
                times(ratio(rate, &rust_bert.calls_per_second)),
                times(python.map_or(f64::NAN, |python| ratio(rate, &python.calls_per_second))),
                cosine(sample.min_cosine),
            ]
        })
        .collect();
    let head = [
        "who",
        "requests/s (min–max)",
        "texts/s",
        "tokens/s",
        "p50 ms",
        "p99 ms",
        "to rust-bert's pipeline",
        "to sentence-transformers fp32",
        "min cosine",
    ];
    table(out, &head, &rows)
}

/// What one row of a table is made of.
struct Sample {
    name: String,
    min_cosine: f64,
    /// One a round.
    calls_per_second: Vec<f64>,
    /// One a call, of all rounds.
    seconds: Vec<f64>,
}

impl Sample {
    fn new(name: String, min_cosine: f64) -> Self {
        Self { name, min_cosine, calls_per_second: Vec::new(), seconds: Vec::new() }
    }

    fn to_json(&self) -> Value {
        json!({
            "who": self.name,
            "min_cosine": self.min_cosine,
            "requests_per_second": self.calls_per_second,
            "p50_ms": quantile(&self.seconds, 0.5) * 1e3,
            "p99_ms": quantile(&self.seconds, 0.99) * 1e3,
        })
    }
}

/// The server's samples, one for each number of clients, then the contestants'.
fn measure(
    runtime: &Runtime,
    server: &Server,
    contestants: &mut [Box<dyn Contestant>],
    shape: &Shape,
    rounds: usize,
    window: Duration,
    reference: usize,
) -> anyhow::Result<Vec<Sample>> {
    let Shape { class, per_call, clients, .. } = shape;
    let requests: Arc<Vec<Vec<u8>>> = Arc::new(class.texts.chunks(*per_call).map(load::embeddings).collect());
    // The first time warms everybody up, and tells whether the vectors are right.
    let mut vectors = Vec::new();
    for contestant in contestants.iter_mut() {
        vectors.push(contestant.embed(class, *per_call)?.vectors);
    }
    let expected = &vectors[reference];
    let agreement = min_cosine(&runtime.block_on(server.vectors(&class.texts))?, expected);
    let mut samples = Vec::new();
    for &clients in *clients {
        runtime.block_on(server.load(&requests, clients, window / 4))?;
        let plural = if clients == 1 { "" } else { "s" };
        samples.push(Sample::new(format!("server, {clients} client{plural}"), agreement));
    }
    for (contestant, vectors) in contestants.iter().zip(&vectors) {
        let name = format!("in process: {}", contestant.name());
        samples.push(Sample::new(name, min_cosine(vectors, expected)));
    }
    for _ in 0..rounds {
        let mut places = samples.iter_mut();
        for (&clients, sample) in clients.iter().zip(places.by_ref()) {
            let Load { per_second, seconds } = runtime.block_on(server.load(&requests, clients, window))?;
            sample.calls_per_second.push(per_second);
            sample.seconds.extend(seconds);
        }
        for (contestant, sample) in contestants.iter_mut().zip(places) {
            let run = contestant.embed(class, *per_call)?;
            sample.calls_per_second.push(run.calls.len() as f64 / run.seconds());
            sample.seconds.extend(run.calls);
        }
    }
    Ok(samples)
}
