//! The server over HTTP: the real binary, and infinity, driven by the same clients.
//!
//! The clients share the CPUs with the server, so the figures are those of the pair.
//! Libraries have no server: they are called in this process, one call after the other,
//! with as many texts a call as a request has. Our engine is also given all texts at once,
//! which tells what HTTP and the lack of other texts to batch with cost. Everything takes
//! turns, round after round. `scripts/bench` runs this; `docs/benchmarks.md` explains the
//! tables.

mod support;

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use support::corpus::{self, Class};
use support::figures::{cosine, median, min_cosine, number, percent, quantile, ratio, spread, table, times};
use support::infinity::{Engine, Infinity};
use support::load::{Load, Server};
use support::ours::{self, Ours};
use support::peers::{ON_CPUS, Python, REFERENCE, RustBert};
use support::{Contestant, LeftOut, Options, machine};
use tokio::runtime::Runtime;

/// A shape of request, and who sends it how often at once.
struct Shape {
    title: &'static str,
    class: Class,
    /// More texts of the same kind, for the engine alone.
    many: Class,
    per_call: usize,
    clients: &'static [usize],
}

/// Whoever is measured.
struct Field {
    runtime: Arc<Runtime>,
    server: Server,
    infinities: Vec<Infinity>,
    ours: Ours,
    peers: Vec<Box<dyn Contestant>>,
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
            many: corpus::short(1024 / part),
            per_call: 1,
            clients: &[1, 8, 64],
        },
        Shape {
            title: "32 mixed texts a request",
            class: corpus::mixed(128 / part),
            many: corpus::mixed(256 / part),
            per_call: 32,
            clients: &[1, 4],
        },
    ];
    let machine = machine::describe();
    let directory = ours::model_directory()?;
    let classes: Vec<Class> = shapes.iter().map(|shape| shape.class.clone()).collect();
    let mut python = Python::start(&directory, &classes, ON_CPUS, |name| name == REFERENCE)?;
    let runtime =
        Arc::new(tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?);
    // First, or our workers would take over its number of threads.
    let pipeline = RustBert::load(&directory)?;
    let ours = Ours::start(&runtime, &[])?;
    let counts: Vec<usize> = shapes
        .iter()
        .map(|shape| Ok(ours.token_counts(&shape.class.texts)?.iter().sum()))
        .collect::<anyhow::Result<_>>()?;
    let mut peers: Vec<Box<dyn Contestant>> = vec![Box::new(pipeline)];
    for peer in python.peers.drain(..) {
        peers.push(Box::new(peer));
    }
    let mut server = Server::start()?;
    runtime.block_on(server.ready())?;
    let mut infinities = Vec::new();
    for engine in Engine::best(machine::has_bf16(&machine)) {
        match Infinity::start(&runtime, engine, &directory, python.fused_onnx().as_deref())? {
            Ok(infinity) => infinities.push(infinity),
            Err(why) => python.left_out.push(why),
        }
    }
    let Python { mut versions, left_out, .. } = python;
    if let Some(version) = Infinity::version() {
        versions.insert("infinity-emb".to_owned(), version);
    }

    let mut out = std::io::stdout();
    write!(out, "## HTTP\n\n{}{}", machine::paragraph(&machine, &versions), LeftOut::sentence(&left_out))?;
    writeln!(
        out,
        "\nServers with their defaults on the loopback; clients on the same CPUs; {rounds} rounds of {} s.",
        window.as_secs()
    )?;
    let mut field = Field { runtime, server, infinities, ours, peers };
    let mut report = Vec::new();
    for (shape, &tokens) in shapes.iter().zip(&counts) {
        let samples = measure(&mut field, shape, rounds, window)?;
        write_table(&mut out, shape, tokens, &samples)?;
        out.flush()?;
        report.push(json!({
            "shape": shape.title, "texts_per_request": shape.per_call, "texts": shape.class.texts.len(), "tokens": tokens,
            "rows": samples.iter().map(Sample::to_json).collect::<Vec<_>>(),
        }));
    }
    writeln!(
        out,
        "\nin process: no HTTP, one call after the other. to infinity: to the faster of its engines with as many \
         clients. of the engine: texts/s as a share of those of the engine alone, which gets {} and {} texts in one \
         call. min cosine: with {}.",
        shapes[0].many.texts.len(),
        shapes[1].many.texts.len(),
        if versions.contains_key("sentence-transformers") { REFERENCE } else { RustBert::NAME }
    )?;
    options.write_json(&json!({
        "machine": machine, "versions": versions, "quick": options.quick,
        "left_out": LeftOut::to_json(&left_out), "shapes": report,
    }))
}

/// Who a row of a table is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    /// Our server, with so many clients.
    Server(usize),
    /// One of infinity's engines, with so many clients.
    Infinity(usize),
    /// Our engine with all texts in a call.
    Engine,
    /// Somebody in this process.
    InProcess,
}

fn write_table(
    out: &mut impl Write,
    shape: &Shape,
    tokens: usize,
    samples: &[Sample],
) -> std::io::Result<()> {
    let tokens_per_text = tokens as f64 / shape.class.texts.len() as f64;
    writeln!(out, "\n**{}**, of {} tokens a text in the mean\n", shape.title, number(tokens_per_text))?;
    let rate_of = |wanted: &dyn Fn(&Sample) -> bool| {
        let found = samples.iter().filter(|sample| wanted(sample));
        let best = found.max_by(|a, b| median(&a.per_second).total_cmp(&median(&b.per_second)));
        best.map_or(&[] as &[f64], |sample| &sample.per_second)
    };
    let python = rate_of(&|sample| sample.name.ends_with(REFERENCE));
    let engine = rate_of(&|sample| sample.who == Who::Engine);
    let rows: Vec<Vec<String>> = samples
        .iter()
        .map(|sample| {
            let rate = &sample.per_second;
            let texts = median(rate) * shape.per_call as f64;
            let infinity = match sample.who {
                Who::Server(clients) => rate_of(&|other| other.who == Who::Infinity(clients)),
                _ => &[],
            };
            let of_engine = if matches!(sample.who, Who::Server(_)) { ratio(rate, engine) } else { f64::NAN };
            let milliseconds = |share| number(quantile(&sample.seconds, share) * 1e3);
            vec![
                sample.name.clone(),
                if sample.who == Who::Engine { "–".to_owned() } else { spread(rate) },
                number(texts),
                number(texts * tokens_per_text),
                milliseconds(0.5),
                milliseconds(0.99),
                times(ratio(rate, infinity)),
                times(ratio(rate, python)),
                percent(of_engine),
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
        "to infinity",
        "to sentence-transformers fp32",
        "of the engine",
        "min cosine",
    ];
    table(out, &head, &rows)
}

/// What one row of a table is made of.
struct Sample {
    who: Who,
    name: String,
    min_cosine: f64,
    /// Requests or calls of [`Shape::per_call`] texts a second, one a round.
    per_second: Vec<f64>,
    /// One a call, of all rounds.
    seconds: Vec<f64>,
}

impl Sample {
    fn new(who: Who, name: impl Into<String>, min_cosine: f64) -> Self {
        Self { who, name: name.into(), min_cosine, per_second: Vec::new(), seconds: Vec::new() }
    }

    fn to_json(&self) -> Value {
        json!({
            "who": self.name,
            "ours": matches!(self.who, Who::Server(_)),
            "clients": match self.who { Who::Server(clients) | Who::Infinity(clients) => Some(clients), _ => None },
            "min_cosine": self.min_cosine,
            "requests_per_second": self.per_second,
            "p50_ms": quantile(&self.seconds, 0.5) * 1e3,
            "p99_ms": quantile(&self.seconds, 0.99) * 1e3,
        })
    }
}

/// The servers' samples, one for each number of clients; then our engine's; then those of whoever
/// is in this process.
fn measure(field: &mut Field, shape: &Shape, rounds: usize, window: Duration) -> anyhow::Result<Vec<Sample>> {
    let Shape { class, many, per_call, clients, .. } = shape;
    let Field { runtime, server, infinities, ours, peers } = field;
    // The first time warms everybody up, and tells whether the vectors are right.
    let mut vectors = Vec::new();
    for peer in peers.iter_mut() {
        vectors.push(peer.embed(class, *per_call)?.vectors);
    }
    // sentence-transformers is the last one, if it is there.
    let expected = vectors.last().map_or(&[] as &[_], |vectors| vectors);
    let mut samples = Vec::new();
    let mut servers = vec![("server", &*server, Who::Server as fn(usize) -> Who)];
    servers.extend(infinities.iter().map(|it| (it.engine.name, &it.server, Who::Infinity as _)));
    let mut loads = Vec::new();
    for (name, server, who) in servers {
        let agreement = min_cosine(&runtime.block_on(server.vectors(&class.texts))?, expected);
        let requests: Arc<Vec<Vec<u8>>> =
            Arc::new(class.texts.chunks(*per_call).map(|texts| server.embeddings(texts)).collect());
        for &clients in *clients {
            runtime.block_on(server.load(&requests, clients, window / 4))?;
            let plural = if clients == 1 { "" } else { "s" };
            samples.push(Sample::new(who(clients), format!("{name}, {clients} client{plural}"), agreement));
            loads.push((server, Arc::clone(&requests), clients));
        }
    }
    let warm = ours.embed(class, *per_call)?.vectors;
    ours.embed(many, many.texts.len())?;
    let agreement = min_cosine(&warm, expected);
    samples.push(Sample::new(Who::Engine, format!("engine alone: {}", ours.name()), agreement));
    samples.push(Sample::new(Who::InProcess, format!("in process: {}", ours.name()), agreement));
    for (peer, vectors) in peers.iter().zip(&vectors) {
        let name = format!("in process: {}", peer.name());
        samples.push(Sample::new(Who::InProcess, name, min_cosine(vectors, expected)));
    }
    for _ in 0..rounds {
        let mut places = samples.iter_mut();
        for ((server, requests, clients), sample) in loads.iter().zip(places.by_ref()) {
            let Load { per_second, seconds } = runtime.block_on(server.load(requests, *clients, window))?;
            sample.per_second.push(per_second);
            sample.seconds.extend(seconds);
        }
        for sample in places.by_ref().take(1) {
            let run = ours.embed(many, many.texts.len())?;
            let texts_per_second = many.texts.len() as f64 / run.seconds();
            sample.per_second.push(texts_per_second / *per_call as f64);
        }
        let in_process = std::iter::once(&mut *ours as &mut dyn Contestant);
        for (contestant, sample) in in_process.chain(peers.iter_mut().map(|peer| &mut **peer)).zip(places) {
            let run = contestant.embed(class, *per_call)?;
            sample.per_second.push(run.calls.len() as f64 / run.seconds());
            sample.seconds.extend(run.calls);
        }
    }
    Ok(samples)
}
