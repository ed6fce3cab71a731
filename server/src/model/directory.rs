//! A model directory as its authors publish it on Hugging Face, read and checked.
//!
//! ```text
//! config.json                          the encoder's architecture
//! tokenizer.json                       text → ids (its padding and truncation do not count)
//! model.safetensors                    weights, or an index of shards
//! modules.json                         which modules follow the encoder
//! 1_Pooling/config.json, 2_Dense/…     their settings
//! sentence_bert_config.json            max_seq_length, do_lower_case
//! config_sentence_transformers.json    prompts
//! ```
//!
//! Meanings follow sentence-transformers, whose vectors the server reproduces. A
//! directory without `modules.json` gets what sentence-transformers gives it: mean
//! pooling, no normalisation; or it is a cross-encoder ([`classifier`]).

mod classifier;
mod judge;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use sha2::{Digest as _, Sha256};

use super::encoder::{Encoder, HiddenAct};
use super::families;
use super::pooling::Pooling;
use crate::disk;
use crate::scores::{Classifier, Kind};
use crate::space;
pub use classifier::classes;
pub use judge::Question;

/// Why a directory cannot be served: the file, and what is wrong with it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The directory is not there.
    #[error("{0}: no such directory")]
    NoDirectory(PathBuf),
    /// A file that every model needs is not there.
    #[error("{path}: no such file; {hint}")]
    NoFile {
        /// The file.
        path: PathBuf,
        /// What to do.
        hint: &'static str,
    },
    /// A file cannot be read.
    #[error("{path}: cannot be read")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file is not the JSON it should be.
    #[error("{path}: not a valid configuration")]
    Json {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: serde_json::Error,
    },
    /// A file says something that cannot be served.
    #[error("{path}: {problem}")]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// What, and what would do.
        problem: String,
    },
}

/// A linear module after pooling (`sentence_transformers.models.Dense`), or one of a classifier's head.
#[derive(Clone, Debug, PartialEq)]
pub struct Dense {
    /// The folder of its weights.
    pub path: PathBuf,
    /// What its tensors are called there, before `.weight` and `.bias`.
    pub tensors: &'static str,
    /// Width in.
    pub in_features: i64,
    /// Width out.
    pub out_features: i64,
    /// Whether it adds a bias.
    pub bias: bool,
    /// What follows it.
    pub activation: DenseActivation,
}

/// The activation of a [`Dense`] module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DenseActivation {
    /// None.
    Identity,
    /// tanh.
    Tanh,
    /// One that feed-forwards have, too.
    Hidden(HiddenAct),
}

impl DenseActivation {
    /// By the names of their classes in PyTorch.
    const CLASSES: [(&'static str, Self); 5] = [
        ("Identity", Self::Identity),
        ("Tanh", Self::Tanh),
        ("ReLU", Self::Hidden(HiddenAct::Relu)),
        ("GELU", Self::Hidden(HiddenAct::Gelu)),
        ("SiLU", Self::Hidden(HiddenAct::Silu)),
    ];

    /// Its name, which is hashed: it is never to change.
    pub fn name(self) -> &'static str {
        match self {
            Self::Identity => "identity",
            Self::Tanh => "tanh",
            Self::Hidden(act) => act.name(),
        }
    }
}

/// A `LayerNorm` after the pooling (`sentence_transformers.models.LayerNorm`), or in a classifier's head.
#[derive(Clone, Debug, PartialEq)]
pub struct VectorNorm {
    /// The folder of its weights.
    pub path: PathBuf,
    /// What its tensors are called there, before `.weight` and `.bias`.
    pub tensors: &'static str,
    /// How wide a vector is.
    pub width: i64,
    /// Added to the variance.
    pub eps: f64,
    /// Whether it adds a bias.
    pub bias: bool,
}

/// The logit of one token less that of another, of the layer that predicts the next token.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// The folder of its weights.
    pub path: PathBuf,
    /// The token that counts for it.
    pub yes: u32,
    /// The one that counts against it.
    pub no: Option<u32>,
    /// Whether the layer's weight is the table of token ids.
    pub tied: bool,
}

impl Answer {
    /// The layer's weight, where it is a tensor of its own.
    pub(super) const TENSOR: &str = "lm_head.weight";
}

/// One module after the encoder and the pooling, in order.
#[derive(Clone, Debug, PartialEq)]
pub enum Tail {
    /// A linear layer.
    Dense(Dense),
    /// Normalisation by mean and variance.
    LayerNorm(VectorNorm),
    /// A language model's answer.
    Answer(Answer),
    /// Division by the Euclidean norm.
    Normalize,
}

/// A directory whose configuration was read; its weights were not.
#[derive(Clone, Debug, PartialEq)]
pub struct Directory {
    /// Where it is.
    pub path: PathBuf,
    /// The encoder's architecture and sizes.
    pub encoder: Encoder,
    /// How token states become one vector.
    pub pooling: Pooling,
    /// What follows the pooling.
    pub tail: Vec<Tail>,
    /// What its numbers are of, where they are no vectors.
    pub classifier: Option<Classifier>,
    /// What it is asked about pairs of texts, where it answers.
    pub question: Option<Question>,
    /// The longest input in tokens, special tokens included.
    pub max_tokens: usize,
    /// Whether texts are lowercased before they are tokenised.
    pub do_lower_case: bool,
    /// A token that the repository's own code puts behind every text, where `tokenizer.json` does not.
    pub end: Option<String>,
    /// Prompts by name.
    pub prompts: BTreeMap<String, String>,
    /// The name of the prompt of texts of which nothing is said.
    pub default_prompt_name: Option<String>,
    /// Lengths to which the model was trained to have its vectors shortened (Matryoshka), in order;
    /// its own is the last.
    pub matryoshka: Vec<usize>,
}

#[derive(Deserialize)]
struct Module {
    #[serde(rename = "type")]
    class: String,
    path: String,
}

#[derive(Default, Deserialize)]
struct SentenceBertConfig {
    max_seq_length: Option<usize>,
    #[serde(default)]
    do_lower_case: bool,
}

#[derive(Default, Deserialize)]
struct TokenizerConfig {
    // transformers writes 1e30 for "no limit", which is no usize.
    model_max_length: Option<f64>,
    #[serde(default)]
    add_eos_token: bool,
    eos_token: Option<Special>,
    #[serde(default)]
    auto_map: serde_json::Value,
}

/// A special token: its text, or an object with it.
#[derive(Deserialize)]
#[serde(untagged)]
enum Special {
    Text(String),
    Token { content: String },
}

/// The code of gte-Qwen2 and the models after it.
const QWEN_CODE: &str = "tokenization_qwen.";

impl TokenizerConfig {
    /// The token that `tokenization_qwen.py` of the repository puts behind every text. It is not run, as nothing in a
    /// repository is; the class of that name in transformers pays no heed to `add_eos_token`.
    fn end(self) -> Option<String> {
        let is_qwens = self.auto_map["AutoTokenizer"].as_array().is_some_and(|classes| {
            classes.iter().any(|class| class.as_str().is_some_and(|class| class.starts_with(QWEN_CODE)))
        });
        let (Special::Text(text) | Special::Token { content: text }) = self.eos_token?;
        (is_qwens && self.add_eos_token).then_some(text)
    }
}

#[derive(Default, Deserialize)]
struct SentenceTransformersConfig {
    #[serde(default)]
    prompts: BTreeMap<String, String>,
    default_prompt_name: Option<String>,
}

#[derive(Default, Deserialize)]
struct MatryoshkaConfig {
    // As jina-embeddings and others have it.
    #[serde(default)]
    matryoshka_dimensions: Vec<usize>,
}

#[derive(Deserialize)]
struct DenseConfig {
    in_features: i64,
    out_features: i64,
    #[serde(default = "yes")]
    bias: bool,
    #[serde(default)]
    activation_function: String,
    module_input_name: Option<String>,
    module_output_name: Option<String>,
}

#[derive(Deserialize)]
struct NormConfig {
    dimension: i64,
}

const fn yes() -> bool {
    true
}

impl Directory {
    /// Reads the configuration files of the model in `path`.
    pub fn read(path: &Path) -> Result<Self, Error> {
        if !path.is_dir() {
            return Err(Error::NoDirectory(path.to_owned()));
        }
        let encoder = read_encoder(&path.join("config.json"))?;
        if !path.join("tokenizer.json").is_file() {
            return Err(Error::NoFile {
                path: path.join("tokenizer.json"),
                hint: "the model needs a tokenizer in the tokenizers library's format",
            });
        }
        let sentence_bert: SentenceBertConfig =
            json_if_there(&path.join("sentence_bert_config.json"))?.unwrap_or_default();
        let tokenizer: TokenizerConfig =
            json_if_there(&path.join("tokenizer_config.json"))?.unwrap_or_default();
        let prompts: SentenceTransformersConfig =
            json_if_there(&path.join("config_sentence_transformers.json"))?.unwrap_or_default();
        let (classifier, question, (pooling, tail)) =
            if let Some((classifier, question, answer)) = judge::read(path, &encoder)? {
                (Some(classifier), Some(question), (judge::pooling(), vec![answer]))
            } else if let Some((classifier, head)) = classifier::read(path, &encoder)? {
                (Some(classifier), None, head)
            } else {
                (None, None, read_modules(path, &encoder)?)
            };
        let matryoshka: MatryoshkaConfig = json_if_there(&path.join("config.json"))?.unwrap_or_default();

        if let Some(name) = &prompts.default_prompt_name {
            let file = path.join("config_sentence_transformers.json");
            if !prompts.prompts.contains_key(name) {
                return Err(unsupported(
                    &file,
                    format!("default_prompt_name \"{name}\" is not among its prompts"),
                ));
            }
        }
        let longest = encoder.longest().and_then(|tokens| usize::try_from(tokens).ok());
        let max_tokens = sentence_bert
            .max_seq_length
            .or_else(|| {
                tokenizer.model_max_length.filter(|&n| n >= 1.0 && n <= LONGEST as f64).map(|n| n as usize)
            })
            .into_iter()
            .chain(longest)
            .min()
            .unwrap_or(UNLIMITED);
        // Without a limit of its own (T5), a model would have tables made for as many.
        if max_tokens > LONGEST {
            return Err(unsupported(
                &path.join("sentence_bert_config.json"),
                format!("max_seq_length {max_tokens} is more than {LONGEST}, beyond which no model goes"),
            ));
        }
        if max_tokens < 3 {
            return Err(unsupported(
                &path.join("sentence_bert_config.json"),
                format!("max_seq_length {max_tokens} leaves no room for text between the special tokens"),
            ));
        }
        Ok(Self {
            path: path.to_owned(),
            encoder,
            pooling,
            tail,
            classifier,
            question,
            max_tokens,
            do_lower_case: sentence_bert.do_lower_case,
            end: tokenizer.end(),
            prompts: prompts.prompts,
            default_prompt_name: prompts.default_prompt_name,
            matryoshka: Vec::new(),
        }
        .with_matryoshka(matryoshka.matryoshka_dimensions))
    }

    /// The same, with vectors that can be shortened to these lengths; others than shorter ones
    /// are no news.
    #[must_use]
    pub fn with_matryoshka(mut self, mut lengths: Vec<usize>) -> Self {
        let own = self.dimensions();
        lengths.retain(|&length| length > 0 && length < own);
        lengths.push(own);
        lengths.sort_unstable();
        lengths.dedup();
        self.matryoshka = lengths;
        self
    }

    /// The length of the vectors that the model makes.
    pub fn dimensions(&self) -> usize {
        let width = self.tail.iter().rev().find_map(|module| match module {
            Tail::Dense(dense) => Some(dense.out_features),
            Tail::Answer(_) => Some(1),
            Tail::LayerNorm(_) | Tail::Normalize => None,
        });
        let pooled = self.pooling.width(self.encoder.hidden_size);
        usize::try_from(width.unwrap_or(pooled)).unwrap_or(0)
    }

    /// The fingerprint of what decides the space of vectors that are computed with `tensors`, but for
    /// the prompts.
    pub fn fingerprint(&self, tensors: Vec<space::Tensor>) -> Result<space::Files, Error> {
        let path = self.path.join("tokenizer.json");
        let tokenizer =
            disk::read_small(&path, MAX_TOKENIZER).map_err(|source| Error::Read { path, source })?;
        let mode = self.pooling.name();
        let pooling = format!("pooling {mode} include_prompt={}", self.pooling.include_prompt);
        let tail = self.unnormalized_tail().iter().map(|module| match module {
            Tail::Normalize => "normalize".to_owned(),
            Tail::LayerNorm(norm) => format!("layernorm {}", norm.eps),
            Tail::Answer(Answer { yes, no: Some(no), .. }) => format!("answer {yes} {no}"),
            Tail::Answer(Answer { yes, no: None, .. }) => format!("answer {yes}"),
            Tail::Dense(dense) => {
                format!("dense {}", dense.activation.name())
            }
        });
        let parts = space::Parts {
            tensors,
            tokenizer: Sha256::digest(&tokenizer).into(),
            lowercase: self.do_lower_case,
            architecture: self.encoder.decides(),
            modules: self.end.iter().map(|end| format!("end {end}")).chain([pooling]).chain(tail).collect(),
            max_tokens: self.max_tokens,
        };
        Ok(parts.files())
    }

    /// The same with its prompts.
    pub fn base(&self, tensors: Vec<space::Tensor>) -> Result<space::Base, Error> {
        Ok(self.fingerprint(tensors)?.with_prompts(&self.prompts, self.default_prompt_name.as_deref()))
    }

    /// What its numbers are.
    pub fn kind(&self) -> Kind {
        self.classifier.clone().map_or(Kind::Embedding, Kind::CrossEncoder)
    }

    /// Whether the last of its modules divides vectors by their norm.
    pub fn normalizes(&self) -> bool {
        self.tail.last() == Some(&Tail::Normalize)
    }

    /// The modules after the pooling, but not a normalisation that comes last.
    pub fn unnormalized_tail(&self) -> &[Tail] {
        &self.tail[..self.tail.len() - usize::from(self.normalizes())]
    }
}

fn unsupported(path: &Path, problem: String) -> Error {
    Error::Unsupported { path: path.to_owned(), problem }
}

fn json<T: DeserializeOwned>(path: &Path, hint: &'static str) -> Result<T, Error> {
    match json_if_there(path)? {
        Some(value) => Ok(value),
        None => Err(Error::NoFile { path: path.to_owned(), hint }),
    }
}

fn json_if_there<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, Error> {
    let bytes = match disk::read_small(path, MAX_SETTINGS) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(Error::Read { path: path.to_owned(), source }),
    };
    serde_json::from_slice(&bytes).map(Some).map_err(|source| Error::Json { path: path.to_owned(), source })
}

/// The largest file of settings: what has a line for each of many labels has some hundred kilobytes, and large
/// vocabularies have a `tokenizer_config.json` of more than 1 MB.
pub(crate) const MAX_SETTINGS: u64 = 16 << 20;
/// The largest `tokenizer.json`: those of 256,000 tokens have some 35 MB.
pub(crate) const MAX_TOKENIZER: u64 = 512 << 20;
const MODULES: &str = "modules.json";
/// The longest text of a model that has no limit of its own, where no file sets one: T5 was trained with 512.
const UNLIMITED: usize = 512;
/// The longest text of any model.
const LONGEST: usize = 1 << 20;
const NOT_A_MODEL: &str = "is this the directory of a Hugging Face model?";

fn read_encoder(path: &Path) -> Result<Encoder, Error> {
    let value: serde_json::Value = json(path, NOT_A_MODEL)?;
    families::read(&value).map_err(|problem| unsupported(path, problem))
}

/// A module's folder, which must lie inside the model's: `modules.json`, the `file`, is untrusted.
fn inside(root: &Path, file: &Path, module: &str) -> Result<PathBuf, Error> {
    let folder = Path::new(module);
    if folder.components().all(|part| matches!(part, std::path::Component::Normal(_))) {
        return Ok(root.join(folder));
    }
    Err(unsupported(file, format!("module path \"{module}\" leads out of the directory")))
}

fn read_modules(root: &Path, encoder: &Encoder) -> Result<(Pooling, Vec<Tail>), Error> {
    let file = root.join(MODULES);
    let Some(modules) = json_if_there::<Vec<Module>>(&file)? else {
        tracing::warn!(directory = %root.display(), "no modules.json: mean pooling without normalisation, as sentence-transformers does");
        return Ok((Pooling::default(), Vec::new()));
    };
    let mut pooling = None;
    let mut tail = Vec::new();
    let mut width = encoder.hidden_size;
    for (index, module) in modules.iter().enumerate() {
        let folder = inside(root, &file, &module.path)?;
        // The class's package moved between releases; its last name did not.
        let class = module.class.rsplit('.').next().unwrap_or_default();
        match (index, class) {
            (0, "Transformer") if module.path.is_empty() => {}
            (0, _) => {
                return Err(unsupported(
                    &file,
                    format!("first module \"{}\" is no Transformer at \"\"", module.class),
                ));
            }
            (_, "Pooling") if pooling.is_none() && tail.is_empty() => {
                let config = folder.join("config.json");
                let value = json(&config, "the pooling module has no configuration")?;
                let read =
                    Pooling::from_json(&value, width).map_err(|problem| unsupported(&config, problem))?;
                width = read.width(width);
                pooling = Some(read);
            }
            (_, "Dense") if pooling.is_some() => {
                let dense = read_dense(&folder, width)?;
                width = dense.out_features;
                tail.push(Tail::Dense(dense));
            }
            (_, "LayerNorm") if pooling.is_some() => tail.push(Tail::LayerNorm(read_norm(&folder, width)?)),
            (_, "Normalize") if pooling.is_some() => tail.push(Tail::Normalize),
            // It does nothing but in training.
            (_, "Dropout") if pooling.is_some() => {}
            _ => {
                return Err(unsupported(
                    &file,
                    format!(
                        "module {index} \"{}\" is not supported there; supported: Transformer, Pooling, then Dense, LayerNorm, Normalize and Dropout",
                        module.class
                    ),
                ));
            }
        }
    }
    let pooling = pooling.ok_or_else(|| unsupported(&file, "names no Pooling module".into()))?;
    Ok((pooling, tail))
}

fn read_dense(folder: &Path, width: i64) -> Result<Dense, Error> {
    let path = folder.join("config.json");
    let config: DenseConfig = json(&path, "the dense module has no configuration")?;
    // sentence-transformers' default where the file names none.
    let class = Some(config.activation_function.as_str()).filter(|class| !class.is_empty()).unwrap_or("Tanh");
    let known = DenseActivation::CLASSES;
    let activation = known.iter().find(|(name, _)| class.rsplit('.').next() == Some(name));
    let Some(&(_, activation)) = activation else {
        let names = known.map(|(name, _)| name).join(", ");
        let problem = format!("activation_function \"{class}\" is not supported; supported: {names}");
        return Err(unsupported(&path, problem));
    };
    for (field, said) in
        [("module_input_name", config.module_input_name), ("module_output_name", config.module_output_name)]
    {
        if let Some(said) = said.filter(|said| said != "sentence_embedding") {
            return Err(unsupported(
                &path,
                format!("{field} \"{said}\" is not supported; supported: sentence_embedding"),
            ));
        }
    }
    if config.in_features != width || !(1..=1 << 16).contains(&config.out_features) {
        return Err(unsupported(
            &path,
            format!(
                "maps {} to {} features, but the module before it makes {width}",
                config.in_features, config.out_features
            ),
        ));
    }
    Ok(Dense {
        path: folder.to_owned(),
        tensors: "linear",
        in_features: config.in_features,
        out_features: config.out_features,
        bias: config.bias,
        activation,
    })
}

fn read_norm(folder: &Path, width: i64) -> Result<VectorNorm, Error> {
    let path = folder.join("config.json");
    let NormConfig { dimension } = json(&path, "the normalisation has no configuration")?;
    if dimension != width {
        let problem =
            format!("normalises vectors of {dimension} dimensions, but the module before it makes {width}");
        return Err(unsupported(&path, problem));
    }
    // PyTorch's default, which the module does not change.
    Ok(VectorNorm { path: folder.to_owned(), tensors: "norm", width, eps: 1e-5, bias: true })
}
