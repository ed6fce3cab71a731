//! Whom we compare with in process: rust-bert's own pipeline, and libraries of Python.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Instant;

use anyhow::{Context, bail, ensure};
use embedding_server::model;
use rust_bert::pipelines::common::ModelType;
use rust_bert::pipelines::sentence_embeddings::{SentenceEmbeddingsConfig, SentenceEmbeddingsModel};
use rust_bert::resources::LocalResource;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::corpus::Class;
use super::{Contestant, LeftOut, Run, machine, manifest_dir};

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
    /// How it is called in the tables.
    pub(crate) const NAME: &str = "rust-bert pipeline float32";

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
        Self::NAME
    }

    fn dtype(&self) -> &'static str {
        "float32"
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

/// Whom everybody's vectors are compared with, if it is there.
pub(crate) const REFERENCE: &str = "sentence-transformers float32";

/// What `scripts/bench_peers.py` knows: a library, how it is called here, a number format.
pub(crate) type Library = (&'static str, &'static str, &'static str);

/// On CPUs.
pub(crate) const ON_CPUS: &[Library] = &[
    ("sentence-transformers", "sentence-transformers", "float32"),
    ("sentence-transformers", "sentence-transformers", "bfloat16"),
    ("ONNX-Runtime", "ONNX Runtime", "float32"),
    ("OpenVINO", "OpenVINO", "float32"),
    ("OpenVINO", "OpenVINO", "bfloat16"),
];

/// On a GPU.
pub(crate) const ON_A_GPU: &[Library] = &[
    ("sentence-transformers-cuda", "sentence-transformers", "float32"),
    ("sentence-transformers-cuda", "sentence-transformers", "bfloat16"),
    ("sentence-transformers-cuda", "sentence-transformers", "float16"),
];

/// The Python peers, and what they read.
pub(crate) struct Python {
    /// Those that can take part.
    pub(crate) peers: Vec<Peer>,
    /// The versions of their packages.
    pub(crate) versions: BTreeMap<String, String>,
    /// Who cannot take part.
    pub(crate) left_out: Vec<LeftOut>,
    /// Holds the texts, and the model as ONNX if it could be exported.
    scratch: TempDir,
}

impl Python {
    /// Starts a process for each of `libraries` whose name is `wanted`; `BENCH_PYTHON` names the
    /// interpreter.
    pub(crate) fn start(
        directory: &Path,
        classes: &[Class],
        libraries: &[Library],
        wanted: impl Fn(&str) -> bool,
    ) -> anyhow::Result<Self> {
        let scratch = tempfile::tempdir()?;
        let texts = scratch.path().join("texts.json");
        let by_class: BTreeMap<&str, &[String]> =
            classes.iter().map(|class| (class.name, class.texts.as_slice())).collect();
        fs::write(&texts, serde_json::to_string(&by_class)?)?;
        let interpreter = std::env::var_os("BENCH_PYTHON").filter(|name| !name.is_empty());
        let mut python = Self { peers: Vec::new(), versions: BTreeMap::new(), left_out: Vec::new(), scratch };
        if let Some(interpreter) = interpreter.as_ref().filter(|_| libraries == ON_CPUS) {
            let mut script = Script::start(interpreter, |command| {
                command.arg("export").arg(directory).arg(python.scratch.path());
            })?;
            if let Err(why) = script.ready()? {
                python.left_out.push(LeftOut::new("the model as ONNX", why));
            }
        }
        for &(library, called, dtype) in libraries {
            let name = format!("{called} {dtype}");
            if !wanted(&name) {
                continue;
            }
            let Some(interpreter) = &interpreter else {
                python.left_out.push(LeftOut::new(name, "BENCH_PYTHON names no interpreter"));
                continue;
            };
            let mut script = Script::start(interpreter, |command| {
                command.args([library, dtype]).arg(directory).arg(&texts);
                command.arg(machine::cpus().to_string()).arg(python.scratch.path());
            })?;
            match script.ready().with_context(|| name.clone())? {
                Ok(versions) => {
                    python.versions.extend(versions);
                    let vectors = python.scratch.path().join(format!("{library} {dtype}"));
                    python.peers.push(Peer { script, name, dtype, vectors });
                }
                Err(why) => python.left_out.push(LeftOut::new(name, why)),
            }
        }
        Ok(python)
    }

    /// The model as ONNX, its operators fused; `None` if that could not be made.
    pub(crate) fn fused_onnx(&self) -> Option<PathBuf> {
        Some(self.scratch.path().join("fused.onnx")).filter(|path| path.exists())
    }
}

/// A process of `scripts/bench_peers.py`.
struct Script {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Script {
    fn start(python: &OsStr, arguments: impl FnOnce(&mut Command)) -> anyhow::Result<Self> {
        let mut command = Command::new(python);
        command.arg(manifest_dir().join("../scripts/bench_peers.py"));
        arguments(&mut command);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {}", python.display()))?;
        let input = child.stdin.take().context("the child has no input")?;
        let output = BufReader::new(child.stdout.take().context("the child has no output")?);
        Ok(Self { child, input, output })
    }

    fn answer(&mut self) -> anyhow::Result<Value> {
        let mut line = String::new();
        if self.output.read_line(&mut line)? == 0 {
            bail!("the Python peer has died: {}", self.child.wait()?);
        }
        serde_json::from_str(&line).with_context(|| format!("the Python peer said {line:?}"))
    }

    /// The versions of its packages, or why it is left out.
    fn ready(&mut self) -> anyhow::Result<Result<BTreeMap<String, String>, String>> {
        let mut answer = self.answer()?;
        if let Some(why) = answer["left_out"].as_str() {
            return Ok(Err(why.to_owned()));
        }
        Ok(Ok(serde_json::from_value::<Option<_>>(answer["versions"].take())?.unwrap_or_default()))
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        // A child that has ended by itself is as good as one that was ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A Python library in one number format, in a process of its own.
pub(crate) struct Peer {
    script: Script,
    name: String,
    dtype: &'static str,
    /// Where it leaves its vectors.
    vectors: PathBuf,
}

impl Contestant for Peer {
    fn name(&self) -> &str {
        &self.name
    }

    fn dtype(&self) -> &str {
        self.dtype
    }

    fn embed(&mut self, class: &Class, per_call: usize) -> anyhow::Result<Run> {
        let command = json!({"class": class.name, "per_call": per_call, "vectors": &self.vectors});
        writeln!(self.script.input, "{command}")?;
        self.script.input.flush()?;
        let answer = self.script.answer().with_context(|| self.name.clone())?;
        let calls: Vec<f64> = serde_json::from_value(answer["calls"].clone())?;
        let bytes = fs::read(&self.vectors)?;
        let values: Vec<f32> =
            bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        let dimensions = values.len() / class.texts.len().max(1);
        let vectors = values.chunks(dimensions.max(1)).map(<[f32]>::to_vec).collect();
        let note = answer["note"].as_str().unwrap_or_default().to_owned();
        Ok(Run { calls, vectors, note })
    }
}
