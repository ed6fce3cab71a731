//! The engine alone against its peers: texts to vectors, without HTTP.
//!
//! Every contestant embeds the same texts, tokenising included, on all CPUs. They
//! take turns, round after round, so that a machine that is slow for a while is so for
//! all; figures are medians over the rounds, ratios are medians of the rounds'
//! ratios. What the CPU could do is measured in the same rounds. `scripts/bench` runs this; `docs/benchmarks.md` explains the tables.

mod support;

use std::io::Write;
use std::sync::Arc;

use anyhow::ensure;
use serde_json::{Value, json};
use support::corpus::{self, Class};
use support::figures::{cosine, median, min_cosine, number, percent, ratio, spread, table, times};
use support::ours::{self, Ours};
use support::peers::{ON_CPUS, Python, REFERENCE, RustBert};
use support::roofline::{self, Roofline, Sizes};
use support::{Contestant, LeftOut, Options, machine};

/// Ours, the fastest first.
const OURS: [(&str, &str); 5] = [
    ("fused", "bfloat16"),
    ("fused", "float32"),
    ("packed", "bfloat16"),
    ("packed", "float32"),
    ("rust_bert", "float32"),
];

/// What `--quick` goes without.
const NOT_QUICK: [&str; 2] = ["rust_bert float32", "sentence-transformers bfloat16"];

fn main() -> anyhow::Result<()> {
    let Some(options) = Options::parse()? else { return Ok(()) };
    let rounds = if options.quick { 2 } else { 5 };
    let wanted = |name: &str| {
        if options.alone { name.starts_with("fused") } else { !options.quick || !NOT_QUICK.contains(&name) }
    };
    let classes = corpus::classes(options.quick);
    let machine = machine::describe();
    let directory = ours::model_directory()?;
    let sizes = Sizes::read(&directory)?;

    let mut python = Python::start(&directory, &classes, ON_CPUS, wanted)?;
    let Python { peers, versions, left_out, .. } = &mut python;
    let runtime = Arc::new(tokio::runtime::Builder::new_multi_thread().worker_threads(1).build()?);
    // First, or our workers would take over its number of threads.
    let pipeline = if options.alone { None } else { Some(RustBert::load(&directory)?) };
    let mut contestants: Vec<Box<dyn Contestant>> = Vec::new();
    let mut counts: Vec<Vec<usize>> = Vec::new();
    for (implementation, dtype) in OURS {
        if !wanted(&format!("{implementation} {dtype}")) {
            continue;
        }
        match Ours::if_possible(&runtime, &["--implementation", implementation, "--dtype", dtype])? {
            Ok(ours) => {
                let count = |class: &Class| ours.token_counts(&class.texts);
                counts = classes.iter().map(count).collect::<Result<_, _>>()?;
                contestants.push(Box::new(ours));
            }
            Err(why) => left_out.push(why),
        }
    }
    ensure!(!contestants.is_empty(), "none of our implementations runs here: {left_out:?}");
    if let Some(pipeline) = pipeline {
        contestants.push(Box::new(pipeline));
    }
    for peer in peers.drain(..) {
        contestants.push(Box::new(peer));
    }
    if options.quick {
        left_out.extend(NOT_QUICK.map(|name| LeftOut::new(name, "--quick")));
    }

    let mut out = std::io::stdout();
    write!(out, "## Engine\n\n{}{}", machine::paragraph(&machine, versions), LeftOut::sentence(left_out))?;
    let mut report = Vec::new();
    for (class, counts) in classes.iter().zip(&counts) {
        let measured = measure(&mut contestants, class, rounds, sizes, machine::has_bf16(&machine))?;
        let work = Work::of(counts, sizes);
        write_table(&mut out, class, counts, &work, &measured)?;
        out.flush()?;
        report.push(measured.to_json(class, &work));
    }
    let compared =
        if contestants.iter().any(|one| one.name() == REFERENCE) { REFERENCE } else { RustBert::NAME };
    writeln!(
        out,
        "\nto OpenVINO: in the same number format. of the products: of the rate of LibTorch's matrix products in \
         the same number format, if nothing else were done. of the peak: of the CPU's fastest bfloat16 \
         instruction. min cosine: the least agreement of a text's vector with that of {compared}."
    )?;
    options.write_json(&json!({
        "machine": machine, "versions": versions, "quick": options.quick, "rounds": rounds,
        "instruction": roofline::instruction().map(|(name, _)| name),
        "left_out": LeftOut::to_json(left_out), "classes": report,
    }))
}

/// What there is to do for a class.
struct Work {
    tokens: usize,
    /// A text's in the mean.
    tokens_per_text: f64,
    /// A text's in the mean.
    operations_per_text: f64,
}

impl Work {
    fn of(counts: &[usize], sizes: Sizes) -> Self {
        let texts = counts.len() as f64;
        let tokens: usize = counts.iter().sum();
        let operations: f64 = counts.iter().map(|&count| sizes.operations(count)).sum();
        Self { tokens, tokens_per_text: tokens as f64 / texts, operations_per_text: operations / texts }
    }
}

fn write_table(
    out: &mut impl Write,
    class: &Class,
    counts: &[usize],
    work: &Work,
    measured: &Measured,
) -> std::io::Result<()> {
    let Measured { samples, rooflines } = measured;
    writeln!(
        out,
        "\n**{}**: {} texts of {} tokens in the mean, {} at most; {} rounds\n",
        class.name,
        class.texts.len(),
        number(work.tokens_per_text),
        counts.iter().max().unwrap_or(&0),
        rooflines.len(),
    )?;
    // Texts a second if nothing else were computed, round by round.
    let limit = |rate: &dyn Fn(&Roofline) -> f64| -> Vec<f64> {
        rooflines.iter().map(|roofline| rate(roofline) / work.operations_per_text).collect()
    };
    let rows: Vec<Vec<String>> = samples
        .iter()
        .map(|sample| {
            let Sample { dtype, texts_per_second: rate, .. } = sample;
            let peak = |roofline: &Roofline| if dtype == "bfloat16" { roofline.peak } else { f64::NAN };
            vec![
                sample.name.clone(),
                spread(rate),
                number(median(rate) * work.tokens_per_text),
                times(ratio(rate, measured.rate_of(REFERENCE))),
                times(ratio(rate, measured.rate_of(RustBert::NAME))),
                times(ratio(rate, measured.rate_of(&format!("OpenVINO {dtype}")))),
                percent(ratio(rate, &limit(&|roofline| roofline.of(dtype)))),
                percent(ratio(rate, &limit(&peak))),
                cosine(sample.min_cosine),
            ]
        })
        .collect();
    let head = [
        "engine",
        "texts/s (min–max)",
        "tokens/s",
        "to sentence-transformers fp32",
        "to rust-bert's pipeline",
        "to OpenVINO",
        "of the products",
        "of the peak",
        "min cosine",
    ];
    table(out, &head, &rows)?;
    let told = |rate: &dyn Fn(&Roofline) -> f64| {
        let rates: Vec<f64> = rooflines.iter().map(|roofline| rate(roofline) / 1e12).collect();
        format!("{} TFLOPS, {} texts/s", spread(&rates), number(median(&limit(rate))))
    };
    let mut lines = Vec::new();
    let bf16 = |roofline: &Roofline| roofline.bf16;
    if rooflines.iter().all(|roofline| roofline.bf16.is_finite()) {
        lines.push(format!("LibTorch's products in bfloat16 {}", told(&bf16)));
    }
    lines.push(format!("LibTorch's products in float32 {}", told(&|roofline| roofline.f32)));
    if let Some((name, _)) = roofline::instruction() {
        lines.push(format!("`{name}` {}", told(&|roofline| roofline.peak)));
    }
    writeln!(out, "\nNothing but products, on all CPUs: {}.", lines.join("; "))
}

/// What one contestant did with one class.
struct Sample {
    /// Who it was, and how it was done.
    name: String,
    /// Who it was.
    who: String,
    dtype: String,
    ours: bool,
    min_cosine: f64,
    /// One a round.
    texts_per_second: Vec<f64>,
}

/// What came of a class.
struct Measured {
    samples: Vec<Sample>,
    /// One a round.
    rooflines: Vec<Roofline>,
}

impl Measured {
    /// Texts a second round by round; none of somebody who was left out.
    fn rate_of(&self, who: &str) -> &[f64] {
        self.samples.iter().find(|sample| sample.who == who).map_or(&[], |sample| &sample.texts_per_second)
    }

    fn to_json(&self, class: &Class, work: &Work) -> Value {
        let Self { samples, rooflines } = self;
        let engines: Vec<Value> = samples
            .iter()
            .map(|Sample { name, who, dtype, ours, min_cosine, texts_per_second }| {
                json!({
                    "engine": name, "who": who, "dtype": dtype, "ours": ours,
                    "min_cosine": min_cosine, "texts_per_second": texts_per_second,
                })
            })
            .collect();
        let operations: Vec<Value> =
            rooflines.iter().map(|Roofline { bf16, f32, peak }| json!([bf16, f32, peak])).collect();
        json!({
            "class": class.name, "texts": class.texts.len(), "tokens": work.tokens,
            "operations_per_text": work.operations_per_text, "engines": engines,
            "roofline": {"columns": ["bfloat16", "float32", "instruction"], "operations_per_second": operations},
        })
    }
}

fn measure(
    contestants: &mut [Box<dyn Contestant>],
    class: &Class,
    rounds: usize,
    sizes: Sizes,
    native_bf16: bool,
) -> anyhow::Result<Measured> {
    let count = class.texts.len();
    // Nobody's first time counts: oneDNN compiles kernels, allocators grow, OpenVINO is tuned.
    let mut first = Vec::new();
    for contestant in contestants.iter_mut() {
        first.push(contestant.embed(class, count)?);
    }
    let place = |name| contestants.iter().position(|contestant| contestant.name() == name);
    let expected =
        place(REFERENCE).or_else(|| place(RustBert::NAME)).map_or(&[] as &[_], |it| &first[it].vectors);
    let mut samples: Vec<Sample> = contestants
        .iter()
        .zip(&first)
        .map(|(contestant, run)| Sample {
            name: run.named(contestant.name()),
            who: contestant.name().to_owned(),
            dtype: contestant.dtype().to_owned(),
            ours: contestant.ours(),
            min_cosine: min_cosine(&run.vectors, expected),
            texts_per_second: Vec::new(),
        })
        .collect();
    let mut rooflines = Vec::new();
    for round in 0..rounds {
        rooflines.push(Roofline::measure(sizes, native_bf16));
        for turn in 0..contestants.len() {
            // Another one begins each round, so that nobody always follows the same.
            let index = (turn + round) % contestants.len();
            let run = contestants[index].embed(class, count)?;
            samples[index].texts_per_second.push(count as f64 / run.seconds());
        }
    }
    Ok(Measured { samples, rooflines })
}
