//! The served models by name, and where each one is: loading, ready or failed.
//!
//! # Flow
//!
//! Models load one after the other on a thread of their own while the server
//! already listens. A model from a hub that cannot be fetched is retried, so that it
//! recovers by itself when the hub does; a directory that cannot be served ends the
//! process ([`Models::load_all`] returns the error), because only its owner can mend it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use crate::batcher::Policy;
use crate::embedder::{About, Embedder, Limits, Parts, Rate};
use crate::metrics::Metrics;
use crate::model::{self, Device, Directory, Implementation, Machine, Plan, Preference, TokenBatch};
use crate::options::{self, Offer};
use crate::tokenize::{self, Encode, How, Overflow, Pool, Tokenizer};
use crate::worker::{Heartbeats, OnBatch, Queue, Threads, Workers};

/// Why a name leads to no model that can embed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// No model has this name.
    #[error("model \"{name}\" is not served here; served: {}", served.join(", "))]
    Unknown {
        /// The name.
        name: String,
        /// The names that are served.
        served: Vec<String>,
    },
    /// No name was given, and there are several models.
    #[error("several models are served, so \"model\" must name one of them: {}", served.join(", "))]
    Unnamed {
        /// The names that are served.
        served: Vec<String>,
    },
    /// The model is not ready yet.
    #[error("model \"{name}\" is still loading: {step}")]
    Loading {
        /// The model.
        name: String,
        /// What it is at.
        step: String,
    },
    /// The model could not be loaded.
    #[error("model \"{name}\" failed to load: {why}")]
    Failed {
        /// The model.
        name: String,
        /// Why.
        why: String,
    },
}

/// Where a model is.
#[derive(Clone, Debug)]
pub enum State {
    /// It is being fetched or loaded.
    Loading {
        /// What it is at.
        step: String,
    },
    /// It can embed.
    Ready(Arc<Embedder>),
    /// It could not be loaded.
    Failed {
        /// Why.
        why: String,
    },
}

/// Where a model's files come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A directory.
    Directory(PathBuf),
    /// A repository of a hub, fetched into the cache when it is not there.
    Repository(crate::fetch::Source),
}

/// A model to serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    /// Its name in the API.
    pub name: String,
    /// Other names that it answers to.
    pub aliases: Vec<String>,
    /// Where its files come from.
    pub origin: Origin,
    /// What is set about it, besides what its files say.
    pub manner: Manner,
}

impl Spec {
    /// A model of which nothing is set.
    pub fn new(name: String, origin: Origin) -> Self {
        Self { name, aliases: Vec::new(), origin, manner: Manner::default() }
    }

    /// The repository that it is from.
    pub fn repository(&self) -> Option<String> {
        match &self.origin {
            Origin::Repository(source) => Some(source.repo.as_str().to_owned()),
            Origin::Directory(_) => None,
        }
    }
}

/// What is set about a model, besides what its files say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Manner {
    /// Prompts by name; they win over those of the model's files.
    pub prompts: BTreeMap<String, String>,
    /// The name of the prompt for texts of which nothing is said.
    pub default_prompt: Option<String>,
    /// What becomes of texts that are too long.
    pub overflow: Overflow,
    /// Whether a request has to say what its texts are.
    pub require_input_type: bool,
    /// Lengths to which its vectors can be shortened.
    pub matryoshka: Vec<usize>,
}

impl Manner {
    /// A model's directory as it is to be served.
    fn applied(&self, directory: Directory) -> Result<Directory, LoadError> {
        let mut directory = directory;
        directory.prompts.extend(self.prompts.clone());
        if let Some(name) = &self.default_prompt {
            if !directory.prompts.contains_key(name) {
                let prompts: Vec<_> = directory.prompts.into_keys().collect();
                let prompts = if prompts.is_empty() { "none".to_owned() } else { prompts.join(", ") };
                return Err(LoadError::NoSuchPrompt { name: name.clone(), prompts });
            }
            directory.default_prompt_name = Some(name.clone());
        }
        if let Some(length) = self.matryoshka.iter().find(|&&length| length > directory.dimensions()) {
            return Err(LoadError::Matryoshka { length: *length, dimensions: directory.dimensions() });
        }
        let lengths = [directory.matryoshka.clone(), self.matryoshka.clone()].concat();
        Ok(directory.with_matryoshka(lengths))
    }
}

/// How models are computed and how much they take on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Implementation, dtype, device.
    pub preference: Preference,
    /// Worker threads of a model on the CPU.
    pub threads: Threads,
    /// Forwards at once on each GPU.
    pub forwards_on_gpu: usize,
    /// The most tokens of a batch; otherwise as suits the device.
    pub max_batch_tokens: Option<usize>,
    /// How much a model takes on.
    pub limits: Limits,
}

#[derive(Debug)]
struct Entry {
    name: String,
    aliases: Vec<String>,
    state: RwLock<State>,
}

/// The model that a request names.
#[derive(Clone, Debug)]
pub struct Named<'a> {
    /// Its own name.
    pub name: &'a str,
    /// What the name that was used says about the texts (`e5:query`).
    pub suffix: Option<String>,
    /// Its front door.
    pub embedder: Arc<Embedder>,
}

/// The served models. See the module.
#[derive(Debug)]
pub struct Models {
    entries: Vec<Entry>,
    workers: Mutex<Vec<Workers>>,
    heartbeats: RwLock<Vec<(String, Arc<Heartbeats>)>>,
}

impl Entry {
    fn embedder(&self) -> Result<Arc<Embedder>, Error> {
        let name = || self.name.clone();
        match &*self.state.read().unwrap_or_else(PoisonError::into_inner) {
            State::Ready(embedder) => Ok(Arc::clone(embedder)),
            State::Loading { step } => Err(Error::Loading { name: name(), step: step.clone() }),
            State::Failed { why } => Err(Error::Failed { name: name(), why: why.clone() }),
        }
    }
}

/// Why a model could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The model's files.
    #[error(transparent)]
    Model(#[from] model::Error),
    /// The default prompt that was set is none of the model's.
    #[error("--default-prompt {name}: the model has no such prompt; it has: {prompts}")]
    NoSuchPrompt {
        /// The name.
        name: String,
        /// The names that there are.
        prompts: String,
    },
    /// The model's vectors are shorter than what they should be shortened to.
    #[error("--matryoshka {length}: the model's vectors have {dimensions} dimensions")]
    Matryoshka {
        /// The length.
        length: usize,
        /// The model's own.
        dimensions: usize,
    },
    /// The model's tokenizer.
    #[error(transparent)]
    Tokenizer(#[from] tokenize::Error),
    /// The first forward.
    #[error("the model loaded but cannot embed: {0}")]
    FirstForward(String),
}

impl From<model::directory::Error> for LoadError {
    fn from(error: model::directory::Error) -> Self {
        Self::Model(error.into())
    }
}

/// An error with its causes on one line.
pub fn one_line(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text.replace('\n', " ")
}

impl Models {
    /// Models of these names and of no others, all of them loading.
    pub fn new<'a>(names: impl IntoIterator<Item = &'a str>) -> Arc<Self> {
        Self::with_aliases(names.into_iter().map(|name| (name, [].as_slice())))
    }

    /// Models with their other names, all of them loading.
    pub fn with_aliases<'a>(names: impl IntoIterator<Item = (&'a str, &'a [String])>) -> Arc<Self> {
        let entries = names
            .into_iter()
            .map(|(name, aliases)| Entry {
                name: name.to_owned(),
                aliases: aliases.to_vec(),
                state: RwLock::new(State::Loading { step: "waiting for its turn".into() }),
            })
            .collect();
        Arc::new(Self { entries, workers: Mutex::default(), heartbeats: RwLock::default() })
    }

    /// Every model's name and state, in the order of the command line.
    pub fn states(&self) -> Vec<(&str, State)> {
        let state = |entry: &Entry| entry.state.read().unwrap_or_else(PoisonError::into_inner).clone();
        self.entries.iter().map(|entry| (entry.name.as_str(), state(entry))).collect()
    }

    fn names(&self) -> Vec<String> {
        self.entries.iter().map(|entry| entry.name.clone()).collect()
    }

    /// Changes a model's state; unknown names are ignored.
    pub fn set(&self, name: &str, state: State) {
        if let Some(entry) = self.entries.iter().find(|entry| entry.name == name) {
            *entry.state.write().unwrap_or_else(PoisonError::into_inner) = state;
        }
    }

    /// The model of that name; the only one when no name is given.
    ///
    /// A model's own name and its aliases win over any reading of their parts. Otherwise
    /// `NAME:latest` is NAME, as Ollama's clients have it, and `NAME:query` and `NAME-query` are
    /// NAME with what it says about the texts.
    pub fn get(&self, name: Option<&str>) -> Result<Named<'_>, Error> {
        let Some(name) = name else {
            let [only] = self.entries.as_slice() else {
                return Err(Error::Unnamed { served: self.names() });
            };
            return Ok(Named { name: &only.name, suffix: None, embedder: only.embedder()? });
        };
        let find = |wanted: &str| {
            let mut entries = self.entries.iter();
            entries.find(|entry| entry.name == wanted || entry.aliases.iter().any(|alias| alias == wanted))
        };
        // The tag that some clients put behind any name (`e5-query:latest`).
        let untagged = name.strip_suffix(":latest").unwrap_or(name);
        if let Some(entry) = find(name).or_else(|| find(untagged)) {
            return Ok(Named { name: &entry.name, suffix: None, embedder: entry.embedder()? });
        }
        for (base, word) in [untagged.rsplit_once(':'), untagged.rsplit_once('-')].into_iter().flatten() {
            let Some(entry) = find(base) else { continue };
            let embedder = entry.embedder()?;
            if options::is_input_type(word, &embedder.about().offer.prompts) {
                return Ok(Named { name: &entry.name, suffix: Some(word.to_owned()), embedder });
            }
        }
        Err(Error::Unknown { name: name.to_owned(), served: self.names() })
    }

    /// What the watchdog has to say at `now`, a line for each model in trouble.
    pub fn stuck(&self, now: Instant, deadline: Duration) -> Vec<String> {
        let heartbeats = self.heartbeats.read().unwrap_or_else(PoisonError::into_inner);
        heartbeats
            .iter()
            .filter_map(|(name, beats)| beats.stuck(now, deadline).map(|why| format!("{name}: {why}")))
            .collect()
    }

    /// Takes a model into service: starts its workers and marks it ready.
    pub fn serve(
        &self,
        name: &str,
        loaded: Loaded,
        settings: &Settings,
        pool: &Arc<Pool>,
        metrics: &Arc<Metrics>,
    ) -> Result<(), LoadError> {
        let Loaded { models, tokenizer, about } = loaded;
        let threads = match (about.plan.device, about.plan.implementation) {
            (Device::Cuda(..), _) => Threads { workers: settings.forwards_on_gpu, per_worker: 1 },
            // Its forwards have one thread each: as many forwards, instead, as threads were asked for.
            (_, Implementation::Fused) => Threads {
                workers: settings.threads.workers * settings.threads.per_worker.max(1),
                per_worker: 1,
            },
            _ => settings.threads,
        };
        let max_tokens = settings.max_batch_tokens.unwrap_or(match about.plan.device {
            Device::Cpu => MAX_BATCH_TOKENS,
            Device::Cuda(..) => MAX_BATCH_TOKENS_OF_GPU,
        });
        let queue = Queue::new(Policy {
            max_tokens,
            padded: about.plan.implementation == Implementation::RustBert,
            min_share: match about.plan.device {
                Device::Cpu => MIN_SHARE,
                // What two small batches would share they need twice.
                Device::Cuda(..) => max_tokens / 2,
            },
        });
        let rate = Arc::new(Rate::default());
        let on_batch: OnBatch = {
            let (rate, metrics, name) = (Arc::clone(&rate), Arc::clone(metrics), name.to_owned());
            Arc::new(move |report| {
                rate.record(&report);
                metrics.batch(&name, &report);
            })
        };
        let count = threads.workers * models.len();
        let workers = Workers::start(name, models, about.dimensions, &queue, threads, &on_batch)?;
        self.heartbeats
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .push((name.to_owned(), workers.heartbeats()));
        self.workers.lock().unwrap_or_else(PoisonError::into_inner).push(workers);
        let embedder = Embedder::new(Parts {
            about,
            tokenizer,
            pool: Arc::clone(pool),
            queue,
            limits: settings.limits,
            rate,
            workers: count,
        });
        self.set(name, State::Ready(Arc::new(embedder)));
        Ok(())
    }

    /// Takes no new texts and waits until what is in line was embedded.
    pub fn stop(&self) {
        for (_, state) in self.states() {
            if let State::Ready(embedder) = state {
                embedder.close();
            }
        }
        let workers = std::mem::take(&mut *self.workers.lock().unwrap_or_else(PoisonError::into_inner));
        workers.into_iter().for_each(Workers::join);
    }
}

/// Fewer tokens than this are not worth a second worker: waking it costs as much
/// as embedding a short text.
const MIN_SHARE: usize = 64;

/// The most tokens of a batch, where it is not said. On a CPU what lies between two products has to stay in the caches
/// (docs/benchmarks.md).
pub const MAX_BATCH_TOKENS: usize = 1024;
/// The same on a GPU, which has work to do at once for all that it can compute with.
pub const MAX_BATCH_TOKENS_OF_GPU: usize = 32 * 1024;

/// Forwards at once on a GPU, where it is not said: while one is computed, the next is made ready, and the one before
/// is read.
pub const FORWARDS_ON_GPU: usize = 2;

/// A model with its tokenizer, before its workers are started.
pub struct Loaded {
    /// The model, on each of its devices.
    pub models: Vec<Box<dyn model::Model>>,
    /// Its tokenizer.
    pub tokenizer: Arc<dyn Encode>,
    /// Its description.
    pub about: About,
}

/// Loads the model in `directory` and makes it embed once: a model is ready when it
/// can do its work, not when its files were read.
pub fn load(
    directory: Directory,
    source: String,
    preference: Preference,
    manner: &Manner,
) -> Result<Loaded, LoadError> {
    let directory = manner.applied(directory)?;
    let plan = Plan::decide(preference, Machine::for_choice(preference.device))?;
    let tokenizer = Tokenizer::load(&directory, directory.encoder.vocab_size)?;
    let (mut models, tensors) = model::load_everywhere(&directory, plan)?;
    let offer = Offer {
        prompts: directory.prompts.clone(),
        default_prompt: directory.default_prompt_name.clone(),
        include_prompt: directory.pooling.include_prompt,
        // What a cross-encoder's texts are, their place in a pair says.
        require_input_type: manner.require_input_type && directory.classifier.is_none(),
        overflow: manner.overflow,
        dimensions: directory.matryoshka.clone(),
        normalizes: directory.normalizes(),
        space: directory
            .fingerprint(tensors)?
            .with_prompts(&directory.prompts, directory.default_prompt_name.as_deref()),
    };
    let about = About {
        architecture: directory.encoder.architecture,
        kind: directory.kind(),
        plan,
        dimensions: directory.dimensions(),
        max_tokens: directory.max_tokens,
        pooling: directory.pooling.name(),
        source,
        offer,
    };
    let hello = match directory.question {
        Some(_) => tokenizer.encode_pair("hello", "hello", &How::default())?,
        None => tokenizer.encode("hello", &How::default())?,
    };
    let hello: TokenBatch = hello.pieces.iter().collect();
    for model in &mut models {
        let vector = model.embed(&hello).map_err(|error| LoadError::FirstForward(error.to_string()))?;
        if vector.len() != about.dimensions || !vector.iter().all(|value| value.is_finite()) {
            return Err(LoadError::FirstForward(format!(
                "its first vector has {} values, {} expected, or some are not finite",
                vector.len(),
                about.dimensions
            )));
        }
    }
    Ok(Loaded { models, tokenizer: Arc::new(tokenizer), about })
}
