//! The engine on a GPU against sentence-transformers on the same one: texts to vectors, tokenising included.
//!
//! `scripts/gpu-check` runs this, for models of several sizes. Contestants take turns, round after round;
//! sentence-transformers has the size of batches that is best for it.

mod support;

use std::io::Write;
use std::sync::Arc;

use anyhow::ensure;
use embedding_server::model::gpus;
use serde_json::{Value, json};
use support::corpus::{self, Class};
use support::figures::{cosine, median, min_cosine, number, quantile, ratio, spread, table, times};
use support::ours::{self, Ours};
use support::peers::{ON_A_GPU, Python, REFERENCE};
use support::{Contestant, LeftOut, Options, machine};

/// Of our own vectors in bfloat16 with the reference's.
const LEAST_COSINE: f64 = 0.999;
/// Whom we want to beat.
const PEER: &str = "sentence-transformers bfloat16";

fn main() -> anyhow::Result<()> {
    let Some(options) = Options::parse()? else { return Ok(()) };
    let rounds = if options.quick { 2 } else { 5 };
    let part = if options.quick { 4 } else { 1 };
    let classes = [corpus::short(32_768 / part), corpus::mixed(16_384 / part), corpus::long(4096 / part)];
    // One text a call.
    let mut lone = corpus::short(300);
    lone.name = "lone";
    let directory = ours::model_directory()?;
    let all = [classes.as_slice(), std::slice::from_ref(&lone)].concat();
    let mut python = Python::start(&directory, &all, ON_A_GPU, |_| true)?;
    let Python { peers, versions, left_out, .. } = &mut python;
    let runtime = Arc::new(tokio::runtime::Builder::new_multi_thread().worker_threads(1).build()?);
    let mut contestants: Vec<Box<dyn Contestant>> = Vec::new();
    for dtype in ["bfloat16", "float16", "float32"] {
        let much = ["--max-texts", "100000", "--max-waiting-texts", "100000"];
        let options = [["--device", "cuda:0", "--dtype", dtype], much].concat();
        match Ours::if_possible(&runtime, &options)? {
            Ok(ours) => contestants.push(Box::new(ours)),
            Err(why) => left_out.push(why),
        }
    }
    ensure!(!contestants.is_empty(), "there is no GPU to measure: {}", LeftOut::sentence(left_out));
    contestants.extend(peers.drain(..).map(|peer| Box::new(peer) as Box<dyn Contestant>));

    let mut out = std::io::stdout();
    let gpus: Vec<&str> = gpus::load().unwrap_or_default().iter().map(|gpu| gpu.name.as_str()).collect();
    let machine = machine::describe();
    writeln!(out, "## {}\n\nGPU: {}.", directory.display(), gpus.join(", "))?;
    write!(out, "{}{}", machine::paragraph(&machine, versions), LeftOut::sentence(left_out))?;
    let mut report = Vec::new();
    for class in &classes {
        report.push(throughput(&mut out, &mut contestants, class, rounds)?);
        out.flush()?;
    }
    report.push(latency(&mut out, &mut contestants, &lone)?);
    options.write_json(&json!({
        "machine": machine, "gpus": gpus, "versions": versions, "quick": options.quick, "rounds": rounds,
        "left_out": LeftOut::to_json(left_out), "classes": report,
    }))
}

fn throughput(
    out: &mut impl Write,
    contestants: &mut [Box<dyn Contestant>],
    class: &Class,
    rounds: usize,
) -> anyhow::Result<Value> {
    let count = class.texts.len();
    // Nobody's first time counts.
    let mut first = Vec::new();
    for contestant in contestants.iter_mut() {
        first.push(contestant.embed(class, count)?);
    }
    let place = |name: &str| contestants.iter().position(|contestant| contestant.name() == name);
    let (peer, reference) = (place(PEER), place(REFERENCE));
    let expected = reference.map_or(&[] as &[_], |at| &first[at].vectors);
    let cosines: Vec<f64> = first.iter().map(|run| min_cosine(&run.vectors, expected)).collect();
    // A speed is worth nothing with other vectors.
    for (contestant, least) in contestants.iter().zip(&cosines) {
        let is_theirs = contestant.name().starts_with("sentence-transformers");
        anyhow::ensure!(
            is_theirs || reference.is_none() || *least >= LEAST_COSINE,
            "{}: a vector's cosine with {REFERENCE} is {least}, and has to be {LEAST_COSINE} at least",
            contestant.name()
        );
    }
    let names: Vec<String> =
        contestants.iter().zip(&first).map(|(contestant, run)| run.named(contestant.name())).collect();
    let mut rates = vec![Vec::new(); contestants.len()];
    for round in 0..rounds {
        for turn in 0..contestants.len() {
            // Another one begins each round.
            let index = (turn + round) % contestants.len();
            let run = contestants[index].embed(class, count)?;
            rates[index].push(count as f64 / run.seconds());
        }
    }
    let theirs = peer.map_or_else(Vec::new, |at| rates[at].clone());
    let rows: Vec<Vec<String>> = names
        .iter()
        .zip(&rates)
        .zip(&cosines)
        .map(|((name, rate), least)| {
            vec![name.clone(), spread(rate), times(ratio(rate, &theirs)), cosine(*least)]
        })
        .collect();
    writeln!(out, "\n**{}**: {count} texts; {rounds} rounds\n", class.name)?;
    table(out, &["engine", "texts/s (min–max)", &format!("to {PEER}"), "min cosine"], &rows)?;
    Ok(
        json!({"class": class.name, "texts": count, "engines": names, "texts_per_second": rates, "min_cosine": cosines}),
    )
}

fn latency(
    out: &mut impl Write,
    contestants: &mut [Box<dyn Contestant>],
    lone: &Class,
) -> anyhow::Result<Value> {
    let (mut rows, mut report) = (Vec::new(), Vec::new());
    for contestant in contestants {
        contestant.embed(lone, 1)?;
        let calls = contestant.embed(lone, 1)?.calls;
        let ms: Vec<f64> = calls.iter().map(|seconds| seconds * 1e3).collect();
        let p99 = quantile(&ms, 0.99);
        rows.push(vec![contestant.name().to_owned(), number(median(&ms)), number(p99)]);
        report.push(json!({"engine": contestant.name(), "ms": ms}));
    }
    writeln!(out, "\n**a lone short text**: {} calls\n", lone.texts.len())?;
    table(out, &["engine", "p50 ms", "p99 ms"], &rows)?;
    Ok(json!({"class": lone.name, "engines": report}))
}
