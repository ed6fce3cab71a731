//! What the benchmarks share: the texts, the contestants, and how figures are told.
#![allow(dead_code, reason = "each benchmark uses a part of it")]

pub(crate) mod corpus;
pub(crate) mod figures;
pub(crate) mod infinity;
pub(crate) mod load;
pub(crate) mod machine;
pub(crate) mod ours;
pub(crate) mod peers;
pub(crate) mod roofline;

use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::{Context, bail};

/// The directory of this package, also where the benchmark was built elsewhere: Cargo sets the variable, or whoever
/// runs it by hand.
pub(crate) fn manifest_dir() -> PathBuf {
    std::env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from)
}

/// The vectors of some texts, and how long it took to make them.
#[derive(Debug, Default)]
pub(crate) struct Run {
    /// The time of each call, in seconds.
    pub(crate) calls: Vec<f64>,
    /// A vector a text, in order; empty where they were not asked for.
    pub(crate) vectors: Vec<Vec<f32>>,
    /// What the tables say of how it was done; empty for nothing.
    pub(crate) note: String,
}

impl Run {
    /// The time of all calls, in seconds.
    pub(crate) fn seconds(&self) -> f64 {
        self.calls.iter().sum()
    }

    /// A contestant's name with what is said of how it was done.
    pub(crate) fn named(&self, name: &str) -> String {
        if self.note.is_empty() { name.to_owned() } else { format!("{name} ({})", self.note) }
    }
}

/// Somebody who embeds texts, tokenising included, on all CPUs.
pub(crate) trait Contestant {
    /// How it is called in the tables.
    fn name(&self) -> &str;

    /// The number format that it computes in.
    fn dtype(&self) -> &str;

    /// Whether it is a part of this project.
    fn ours(&self) -> bool {
        false
    }

    /// Embeds the texts of a class, `per_call` of them at a time, one call after the
    /// other.
    fn embed(&mut self, class: &corpus::Class, per_call: usize) -> anyhow::Result<Run>;
}

/// Somebody who was asked for and cannot take part.
#[derive(Debug)]
pub(crate) struct LeftOut {
    who: String,
    why: String,
}

impl LeftOut {
    pub(crate) fn new(who: impl Into<String>, why: impl Into<String>) -> Self {
        Self { who: who.into(), why: why.into() }
    }

    /// All of them in a line for people.
    pub(crate) fn sentence(all: &[Self]) -> String {
        let each: Vec<String> = all.iter().map(|Self { who, why }| format!("{who} ({why})")).collect();
        if each.is_empty() { String::new() } else { format!("\nLeft out: {}.\n", each.join("; ")) }
    }

    /// All of them for machines.
    pub(crate) fn to_json(all: &[Self]) -> serde_json::Value {
        all.iter().map(|Self { who, why }| serde_json::json!({"who": who, "why": why})).collect()
    }
}

/// The command line of a benchmark.
#[derive(Debug, Default)]
pub(crate) struct Options {
    /// Fewer texts and rounds.
    pub(crate) quick: bool,
    /// Nobody but us, and of us the fastest.
    pub(crate) alone: bool,
    /// Where to write every sample.
    pub(crate) json: Option<PathBuf>,
}

impl Options {
    /// `None` when Cargo runs the benchmark as if it were a test
    /// (`cargo test --all-targets`): timings mean nothing there.
    pub(crate) fn parse() -> anyhow::Result<Option<Self>> {
        let mut options = Self::default();
        let mut measure = false;
        let mut arguments = std::env::args_os().skip(1);
        while let Some(argument) = arguments.next() {
            let mut file = || -> anyhow::Result<OsString> { arguments.next().context("--json needs a file") };
            match argument.to_str() {
                Some("--bench") => measure = true,
                Some("--quick") => options.quick = true,
                Some("--alone") => options.alone = true,
                Some("--json") => options.json = Some(file()?.into()),
                _ => bail!("unknown option {}; known: --quick, --alone, --json FILE", argument.display()),
            }
        }
        Ok(measure.then_some(options))
    }

    /// Writes the report for machines, where one is wanted.
    pub(crate) fn write_json(&self, report: &serde_json::Value) -> anyhow::Result<()> {
        let Some(path) = &self.json else { return Ok(()) };
        std::fs::write(path, format!("{report:#}\n")).with_context(|| format!("writing {}", path.display()))
    }
}
