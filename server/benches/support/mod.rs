//! What the benchmarks share: the texts, the contestants, and how figures are told.
#![allow(dead_code, reason = "each benchmark uses a part of it")]

pub(crate) mod corpus;
pub(crate) mod figures;
pub(crate) mod load;
pub(crate) mod machine;
pub(crate) mod ours;
pub(crate) mod peers;

use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::{Context, bail};

/// The vectors of some texts, and how long it took to make them.
#[derive(Debug, Default)]
pub(crate) struct Run {
    /// The time of each call, in seconds.
    pub(crate) calls: Vec<f64>,
    /// A vector a text, in order; empty where they were not asked for.
    pub(crate) vectors: Vec<Vec<f32>>,
}

impl Run {
    /// The time of all calls, in seconds.
    pub(crate) fn seconds(&self) -> f64 {
        self.calls.iter().sum()
    }
}

/// Somebody who embeds texts, tokenising included, on all CPUs.
pub(crate) trait Contestant {
    /// How it is called in the tables.
    fn name(&self) -> &str;

    /// Embeds the texts of a class, `per_call` of them at a time, one call after the
    /// other.
    fn embed(&mut self, class: &corpus::Class, per_call: usize) -> anyhow::Result<Run>;
}

/// The command line of a benchmark.
#[derive(Debug, Default)]
pub(crate) struct Options {
    /// Fewer texts and rounds.
    pub(crate) quick: bool,
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
                Some("--json") => options.json = Some(file()?.into()),
                _ => bail!("unknown option {}; known: --quick, --json FILE", argument.display()),
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
