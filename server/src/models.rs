//! The served models by name, and where each one is: loading, ready or failed.
//!
//! # Flow
//!
//! Models load one after the other on a thread of their own while the server
//! already listens. A model from a hub that cannot be fetched is retried, so that it
//! recovers by itself when the hub does; a directory that cannot be served ends the
//! process ([`Models::load_all`] returns the error), because only its owner can mend it.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use crate::batcher::Policy;
use crate::embedder::{About, Embedder, Limits, Parts, Rate};
use crate::metrics::Metrics;
use crate::model::directory::Encoder;
use crate::model::{self, Directory, Implementation, Machine, Plan, Preference, TokenBatch};
use crate::tokenize::{self, Encode, Pool, Tokenizer};
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
    /// Where its files come from.
    pub origin: Origin,
}

/// How models are computed and how much they take on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Implementation, dtype, device.
    pub preference: Preference,
    /// Worker threads.
    pub threads: Threads,
    /// The most tokens of a batch.
    pub max_batch_tokens: usize,
    /// How much a model takes on.
    pub limits: Limits,
}

#[derive(Debug)]
struct Entry {
    name: String,
    state: RwLock<State>,
}

/// The served models. See the module.
#[derive(Debug)]
pub struct Models {
    entries: Vec<Entry>,
    workers: Mutex<Vec<Workers>>,
    heartbeats: RwLock<Vec<(String, Arc<Heartbeats>)>>,
}

/// Why a model could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The model's files.
    #[error(transparent)]
    Model(#[from] model::Error),
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
    /// All of them loading.
    pub fn new<'a>(names: impl IntoIterator<Item = &'a str>) -> Arc<Self> {
        let entries = names
            .into_iter()
            .map(|name| Entry {
                name: name.to_owned(),
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
    pub fn get(&self, name: Option<&str>) -> Result<(&str, Arc<Embedder>), Error> {
        let entry = match (name, self.entries.as_slice()) {
            (Some(name), entries) => entries
                .iter()
                .find(|entry| entry.name == name)
                .ok_or_else(|| Error::Unknown { name: name.to_owned(), served: self.names() })?,
            (None, [only]) => only,
            (None, _) => return Err(Error::Unnamed { served: self.names() }),
        };
        let name = entry.name.as_str();
        match &*entry.state.read().unwrap_or_else(PoisonError::into_inner) {
            State::Ready(embedder) => Ok((name, Arc::clone(embedder))),
            State::Loading { step } => Err(Error::Loading { name: name.to_owned(), step: step.clone() }),
            State::Failed { why } => Err(Error::Failed { name: name.to_owned(), why: why.clone() }),
        }
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
        let Loaded { model, tokenizer, about } = loaded;
        let queue = Queue::new(Policy {
            max_tokens: settings.max_batch_tokens,
            padded: about.plan.implementation == Implementation::RustBert,
            min_share: MIN_SHARE,
        });
        let rate = Arc::new(Rate::default());
        let on_batch: OnBatch = {
            let (rate, metrics, name) = (Arc::clone(&rate), Arc::clone(metrics), name.to_owned());
            Arc::new(move |report| {
                rate.record(&report);
                metrics.batch(&name, &report);
            })
        };
        let workers = Workers::start(name, model, about.dimensions, &queue, settings.threads, &on_batch)?;
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
            workers: settings.threads.workers,
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

/// A model with its tokenizer, before its workers are started.
pub struct Loaded {
    /// The model.
    pub model: Box<dyn model::Model>,
    /// Its tokenizer.
    pub tokenizer: Arc<dyn Encode>,
    /// Its description.
    pub about: About,
}

/// Loads the model in `directory` and makes it embed once: a model is ready when it
/// can do its work, not when its files were read.
pub fn load(directory: &Directory, source: String, preference: Preference) -> Result<Loaded, LoadError> {
    let plan = Plan::decide(preference, Machine::detect())?;
    let Encoder::Bert(config) = &directory.encoder;
    let tokenizer = Tokenizer::load(directory, config.vocab_size)?;
    let mut model = model::load(directory, plan)?;
    let about = About {
        architecture: directory.encoder.architecture(),
        plan,
        dimensions: directory.dimensions(),
        max_tokens: directory.max_tokens,
        pooling: directory.pooling.name(),
        source,
    };
    let hello = tokenizer.encode("hello")?;
    let vector = model
        .embed(&TokenBatch::from_iter([hello.ids.as_slice()]))
        .map_err(|error| LoadError::FirstForward(error.to_string()))?;
    if vector.len() != about.dimensions || !vector.iter().all(|value| value.is_finite()) {
        return Err(LoadError::FirstForward(format!(
            "its first vector has {} values, {} expected, or some are not finite",
            vector.len(),
            about.dimensions
        )));
    }
    Ok(Loaded { model, tokenizer: Arc::new(tokenizer), about })
}
