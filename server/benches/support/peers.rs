//! Whom we compare with: rust-bert's own pipeline, and Python's sentence-transformers.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::rc::Rc;
use std::time::Instant;

use anyhow::{Context, bail, ensure};
use embedding_server::model;
use rust_bert::pipelines::common::ModelType;
use rust_bert::pipelines::sentence_embeddings::{SentenceEmbeddingsConfig, SentenceEmbeddingsModel};
use rust_bert::resources::LocalResource;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::corpus::Class;
use super::{Contestant, Run, machine};

/// How many texts the peers put in a batch: sentence-transformers' default.
const BATCH: usize = 32;

/// rust-bert's `SentenceEmbeddingsModel`, as its documentation uses it, with all
/// CPUs for each operator. It is fed as sentence-transformers feeds its model: longest
/// texts first, 32 at a time; unsorted, its padding would cost it more.
///
/// # Caveat
///
/// `LibTorch` keeps the number of threads per thread, but a thread that computes for the
/// first time takes the number that was set last, by whomever. So this is loaded, and
/// computes once, before [`Ours`](super::ours::Ours) starts workers, and nothing sets
/// the number on the main thread after them: they would compute with it too.
pub(crate) struct RustBert {
    model: SentenceEmbeddingsModel,
    // Holds the vocabulary.
    _scratch: TempDir,
}

impl RustBert {
    /// Loads the model from a directory of sentence-transformers.
    pub(crate) fn load(directory: &Path) -> anyhow::Result<Self> {
        let scratch = tempfile::tempdir()?;
        let vocabulary = scratch.path().join("vocab.txt");
        write_vocabulary(&directory.join("tokenizer.json"), &vocabulary)?;
        let local = |local_path| Box::new(LocalResource { local_path });
        let file = |name: &str| local(directory.join(name));
        model::set_operator_threads(machine::cpus());
        let model = SentenceEmbeddingsModel::new(SentenceEmbeddingsConfig {
            modules_config_resource: file("modules.json"),
            transformer_type: ModelType::Bert,
            transformer_config_resource: file("config.json"),
            transformer_weights_resource: file("model.safetensors"),
            pooling_config_resource: file("1_Pooling/config.json"),
            dense_config_resource: None,
            dense_weights_resource: None,
            sentence_bert_config_resource: file("sentence_bert_config.json"),
            tokenizer_config_resource: file("tokenizer_config.json"),
            tokenizer_vocab_resource: local(vocabulary),
            tokenizer_merges_resource: None,
            device: tch::Device::Cpu,
            kind: None,
        })
        .context("rust-bert's pipeline cannot load the model")?;
        model.encode(&["From here on this thread keeps its number of threads."])?;
        Ok(Self { model, _scratch: scratch })
    }

    fn encode(&self, texts: &[String]) -> anyhow::Result<Vec<Vec<f32>>> {
        let mut order: Vec<usize> = (0..texts.len()).collect();
        order.sort_by_key(|&index| std::cmp::Reverse(texts[index].len()));
        let mut vectors = vec![Vec::new(); texts.len()];
        for places in order.chunks(BATCH) {
            let batch: Vec<&str> = places.iter().map(|&place| texts[place].as_str()).collect();
            for (&place, vector) in places.iter().zip(self.model.encode(&batch)?) {
                vectors[place] = vector;
            }
        }
        Ok(vectors)
    }
}

/// rust-bert's tokenizer reads one token a line, in the order of the ids.
fn write_vocabulary(tokenizer: &Path, to: &Path) -> anyhow::Result<()> {
    let tokenizer: Value = serde_json::from_slice(
        &fs::read(tokenizer).with_context(|| format!("reading {}", tokenizer.display()))?,
    )?;
    let vocabulary =
        tokenizer["model"]["vocab"].as_object().context("tokenizer.json has no WordPiece vocabulary")?;
    let by_id: BTreeMap<u64, &str> =
        vocabulary.iter().filter_map(|(token, id)| Some((id.as_u64()?, token.as_str()))).collect();
    let lines: String = by_id.into_values().flat_map(|token| [token, "\n"]).collect();
    Ok(fs::write(to, lines)?)
}

impl Contestant for RustBert {
    fn name(&self) -> &'static str {
        "rust-bert pipeline float32"
    }

    fn embed(&mut self, class: &Class, per_call: usize) -> anyhow::Result<Run> {
        let threads = usize::try_from(tch::get_num_threads())?;
        ensure!(threads == machine::cpus(), "rust-bert would have {threads} threads");
        let mut run = Run::default();
        for texts in class.texts.chunks(per_call) {
            let begun = Instant::now();
            run.vectors.extend(self.encode(texts)?);
            run.calls.push(begun.elapsed().as_secs_f64());
        }
        Ok(run)
    }
}

/// A Python process with sentence-transformers that embeds when it is told to
/// (`scripts/bench_reference.py`).
struct Python {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    scratch: TempDir,
}

impl Python {
    fn start(python: &Path, directory: &Path, classes: &[Class]) -> anyhow::Result<(Self, Value)> {
        let scratch = tempfile::tempdir()?;
        let texts: BTreeMap<&str, &[String]> =
            classes.iter().map(|class| (class.name, class.texts.as_slice())).collect();
        fs::write(scratch.path().join("texts.json"), serde_json::to_string(&texts)?)?;
        let mut child = Command::new(python)
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/bench_reference.py"))
            .arg(directory)
            .arg(scratch.path().join("texts.json"))
            .arg(machine::cpus().to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {}", python.display()))?;
        let input = child.stdin.take().context("the child has no input")?;
        let output = BufReader::new(child.stdout.take().context("the child has no output")?);
        let mut python = Self { child, input, output, scratch };
        let versions = python.answer()?["versions"].take();
        Ok((python, versions))
    }

    fn answer(&mut self) -> anyhow::Result<Value> {
        let mut line = String::new();
        if self.output.read_line(&mut line)? == 0 {
            bail!("the Python peer has died: {}", self.child.wait()?);
        }
        serde_json::from_str(&line).with_context(|| format!("the Python peer said {line:?}"))
    }

    fn encode(&mut self, dtype: &str, class: &Class, per_call: usize) -> anyhow::Result<Run> {
        let path = self.scratch.path().join("vectors");
        let command = json!({"class": class.name, "per_call": per_call, "dtype": dtype, "vectors": &path});
        writeln!(self.input, "{command}")?;
        self.input.flush()?;
        let answer = self.answer()?;
        let calls: Vec<f64> = serde_json::from_value(answer["calls"].clone())?;
        let bytes = fs::read(&path)?;
        let values: Vec<f32> =
            bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        let dimensions = values.len() / class.texts.len().max(1);
        let vectors = values.chunks(dimensions.max(1)).map(<[f32]>::to_vec).collect();
        Ok(Run { calls, vectors })
    }
}

impl Drop for Python {
    fn drop(&mut self) {
        // A child that has ended by itself is as good as one that was ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// sentence-transformers in one number format.
pub(crate) struct SentenceTransformers {
    python: Rc<RefCell<Python>>,
    name: String,
    dtype: &'static str,
}

impl SentenceTransformers {
    /// One contestant a dtype, sharing a process, and the versions of the packages;
    /// `None` where `BENCH_PYTHON` names no interpreter.
    pub(crate) fn start(
        directory: &Path,
        classes: &[Class],
        dtypes: &[&'static str],
    ) -> anyhow::Result<Option<(Vec<Self>, Value)>> {
        let Some(python) = std::env::var_os("BENCH_PYTHON").map(PathBuf::from) else { return Ok(None) };
        let (python, versions) = Python::start(&python, directory, classes)?;
        let python = Rc::new(RefCell::new(python));
        let contestant = |&dtype: &&'static str| Self {
            python: Rc::clone(&python),
            name: format!("sentence-transformers {dtype}"),
            dtype,
        };
        Ok(Some((dtypes.iter().map(contestant).collect(), versions)))
    }
}

impl Contestant for SentenceTransformers {
    fn name(&self) -> &str {
        &self.name
    }

    fn embed(&mut self, class: &Class, per_call: usize) -> anyhow::Result<Run> {
        self.python.borrow_mut().encode(self.dtype, class, per_call)
    }
}
