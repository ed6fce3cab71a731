//! The served models by name, and where each one is: loading, ready or failed.
//!
//! # Flow
//!
//! Models load one after the other on a thread of their own while the server
//! already listens. A model from a hub that cannot be fetched is retried, so that it
//! recovers by itself when the hub does; a directory that cannot be served ends the
//! process, because only its owner can mend it. Where that is allowed, models come and go
//! while the server runs ([`Models::add`], [`Models::remove`]); of these, none ends it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tokio_util::sync::CancellationToken;

use crate::batcher::Policy;
use crate::embedder::{About, Embedder, Limits, Parts, Rate};
use crate::fetch::Source;
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
    /// A model that is to be served has a name that leads to another.
    #[error(
        "a model that is served here answers to \"{name}\" already: choose another name, or unload that model"
    )]
    Taken {
        /// The name.
        name: String,
    },
    /// All models were unloaded.
    #[error("no model is served any more: load one with POST /models")]
    Empty,
    /// Models do not come and go here.
    #[error(
        "the models of this server are fixed: start it with --allow-model-changes, or change the models that it is \
         started with"
    )]
    Fixed,
    /// The server ends.
    #[error("the server is stopping")]
    Stopping,
    /// There are as many models as there may be.
    #[error("{MOST} models are served here, which is the limit: unload one")]
    TooMany,
}

/// The most models at once: each has threads of its own.
pub const MOST: usize = 256;

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

impl State {
    /// The front door of the model of that name, or why there is none.
    fn embedder(&self, name: &str) -> Result<Arc<Embedder>, Error> {
        let name = || name.to_owned();
        match self {
            Self::Ready(embedder) => Ok(Arc::clone(embedder)),
            Self::Loading { step } => Err(Error::Loading { name: name(), step: step.clone() }),
            Self::Failed { why } => Err(Error::Failed { name: name(), why: why.clone() }),
        }
    }
}

/// Where a model's files come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A directory.
    Directory(PathBuf),
    /// A repository of a hub, fetched into the cache when it is not there.
    Repository(Source),
}

fn is_directory(text: &str) -> bool {
    text.starts_with(['/', '.', '~'])
}

impl Origin {
    /// Of `DIRECTORY` or `REPOSITORY[@REVISION]`; `home` stands for `~`. The error says what is wrong with the text.
    pub fn parse(text: &str, home: Option<&Path>) -> Result<Self, String> {
        if is_directory(text) {
            let path = match (text.strip_prefix("~/"), home) {
                (Some(rest), Some(home)) => home.join(rest),
                _ => PathBuf::from(text),
            };
            return Ok(Self::Directory(path));
        }
        if Path::new(text).is_dir() {
            tracing::warn!(
                "{text} is taken for a repository; for the directory of that name, write ./{text}"
            );
        }
        source(text).map(Self::Repository)
    }
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

    /// Of `[NAME=]DIRECTORY` or `[NAME=]REPOSITORY[@REVISION]`; `home` stands for `~`. The error says what is wrong
    /// with the text.
    pub fn parse(text: &str, home: Option<&Path>) -> Result<Self, String> {
        // A directory may have '=' in its name; a model's name begins with no '/', '.' or '~'.
        let (name, place) = match text.split_once('=') {
            Some((name, place)) if !is_directory(text) => (Some(name), place),
            _ => (None, text),
        };
        let origin = Origin::parse(place, home)?;
        let name = match (name, &origin) {
            (Some(name), _) => name.to_owned(),
            (None, Origin::Directory(path)) => {
                path.file_name().map(|name| name.to_string_lossy().to_lowercase()).unwrap_or_default()
            }
            (None, Origin::Repository(source)) => {
                source.repo.as_str().rsplit('/').next().unwrap_or_default().to_lowercase()
            }
        };
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:".contains(c);
        if name.is_empty() || name.len() > 128 || !name.chars().all(plain) {
            return Err(format!(
                "the name \"{name}\" must be 1 to 128 of a-z, A-Z, 0-9 and -_./: (write NAME={place})"
            ));
        }
        Ok(Self::new(name, origin))
    }

    /// The repository that it is from.
    pub fn repository(&self) -> Option<String> {
        match &self.origin {
            Origin::Repository(source) => Some(source.repo.as_str().to_owned()),
            Origin::Directory(_) => None,
        }
    }
}

/// Of `REPOSITORY[@REVISION]`.
pub fn source(text: &str) -> Result<Source, String> {
    let (repo, revision) = text.split_once('@').unwrap_or((text, "main"));
    let repo = repo.parse().map_err(|error: crate::fetch::Error| error.to_string())?;
    Source::new(repo, revision).map_err(|error| error.to_string())
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

/// A model's place among those that are served, for who loads it.
#[derive(Clone, Debug)]
pub struct Slot {
    /// Names can be given again, when a model is gone; this cannot.
    id: u64,
    /// Cancelled when the model is not wanted any more.
    unwanted: CancellationToken,
}

impl Slot {
    /// Cancelled when the model is not wanted any more.
    pub const fn unwanted(&self) -> &CancellationToken {
        &self.unwanted
    }
}

#[derive(Debug)]
struct Entry {
    slot: Slot,
    name: Arc<str>,
    aliases: Vec<String>,
    /// Whether the server was started with it: without it, it is not healthy.
    is_needed: bool,
    state: State,
}

impl Entry {
    fn answers_to(&self, name: &str) -> bool {
        &*self.name == name || self.aliases.iter().any(|alias| alias == name)
    }

    fn embedder(&self) -> Result<Arc<Embedder>, Error> {
        self.state.embedder(&self.name)
    }
}

/// The model that a request names.
#[derive(Clone, Debug)]
pub struct Named {
    /// Its own name.
    pub name: Arc<str>,
    /// What the name that was used says about the texts (`e5:query`).
    pub suffix: Option<String>,
    /// Its front door.
    pub embedder: Arc<Embedder>,
}

/// A model and where it is.
#[derive(Clone, Debug)]
pub struct Status {
    /// Its name.
    pub name: Arc<str>,
    /// Whether the server was started with it.
    pub is_needed: bool,
    /// Where it is.
    pub state: State,
}

impl Status {
    /// Its front door, or why there is none.
    pub fn embedder(&self) -> Result<Arc<Embedder>, Error> {
        self.state.embedder(&self.name)
    }
}

/// Those for which a server is out of service: that it was started with and cannot embed; of others, only where no
/// model can.
pub fn lacking(models: &[Status]) -> impl Iterator<Item = &Status> {
    let is_ready = |model: &&Status| matches!(model.state, State::Ready(_));
    let none = !models.iter().any(|model| is_ready(&model));
    models.iter().filter(move |model| !is_ready(model) && (model.is_needed || none))
}

/// A model's threads. They are watched until they have ended, also when the model is not served any more.
#[derive(Debug)]
struct Running {
    id: u64,
    name: Arc<str>,
    heartbeats: Arc<Heartbeats>,
    /// Nothing while somebody waits for their end.
    workers: Option<Workers>,
}

/// The served models. See the module.
#[derive(Debug)]
pub struct Models {
    entries: RwLock<Vec<Entry>>,
    running: Mutex<Vec<Running>>,
    next_id: AtomicU64,
    /// To who loads models; nothing where those of the command line stay.
    changes: RwLock<Option<UnboundedSender<(Slot, Spec)>>>,
}

/// Models that came while the server runs. There are no more of them at once than [`MOST`].
pub type Added = UnboundedReceiver<(Slot, Spec)>;

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
        let entries = names.into_iter().zip(0..).map(|((name, aliases), id)| entry(id, name, aliases, true));
        let entries: Vec<_> = entries.collect();
        let next_id = AtomicU64::new(entries.len() as u64);
        Arc::new(Self {
            entries: RwLock::new(entries),
            running: Mutex::default(),
            next_id,
            changes: RwLock::default(),
        })
    }

    fn entries(&self) -> RwLockReadGuard<'_, Vec<Entry>> {
        self.entries.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn entries_mut(&self) -> RwLockWriteGuard<'_, Vec<Entry>> {
        self.entries.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn running(&self) -> MutexGuard<'_, Vec<Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Every model and where it is: in the order of the command line, and then in that in which they came.
    pub fn states(&self) -> Vec<Status> {
        let status = |entry: &Entry| Status {
            name: Arc::clone(&entry.name),
            is_needed: entry.is_needed,
            state: entry.state.clone(),
        };
        self.entries().iter().map(status).collect()
    }

    /// The place of the model of that name.
    pub fn slot(&self, name: &str) -> Option<Slot> {
        self.entries().iter().find(|entry| &*entry.name == name).map(|entry| entry.slot.clone())
    }

    fn name(&self, slot: &Slot) -> Option<Arc<str>> {
        let entries = self.entries();
        let entry = entries.iter().find(|entry| entry.slot.id == slot.id)?;
        Some(Arc::clone(&entry.name))
    }

    /// Lets models come and go from now on; who loads them gets those that come.
    pub fn allow_changes(&self) -> Added {
        let (sender, added) = mpsc::unbounded_channel();
        *self.changes.write().unwrap_or_else(PoisonError::into_inner) = Some(sender);
        added
    }

    fn changes(&self) -> Result<UnboundedSender<(Slot, Spec)>, Error> {
        self.changes.read().unwrap_or_else(PoisonError::into_inner).clone().ok_or(Error::Fixed)
    }

    /// One more model, which then loads. No other may answer to one of its names; its repository's name is one of them
    /// where no other has it.
    pub fn add(&self, mut spec: Spec) -> Result<(), Error> {
        let changes = self.changes()?;
        let mut entries = self.entries_mut();
        let is_taken = |name: &str| entries.iter().any(|entry| entry.answers_to(name));
        if let Some(name) = std::iter::once(&spec.name).chain(&spec.aliases).find(|name| is_taken(name)) {
            return Err(Error::Taken { name: name.clone() });
        }
        spec.aliases.extend(spec.repository().filter(|name| !is_taken(name)));
        if entries.len() >= MOST {
            return Err(Error::TooMany);
        }
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let added = entry(id, &spec.name, &spec.aliases, false);
        // Under the lock, so that models are loaded in the order in which they are listed.
        changes.send((added.slot.clone(), spec)).map_err(|_| Error::Stopping)?;
        entries.push(added);
        Ok(())
    }

    /// Serves a model, by any of its names, no more: who asks from now on does not find it, what is in line is still
    /// embedded, and what loads it lets go as soon as it can. Returns when its threads have ended, which may be a while.
    pub fn remove(&self, name: &str) -> Result<(), Error> {
        self.changes()?;
        let mut entries = self.entries_mut();
        let Some(place) = entries.iter().position(|entry| entry.answers_to(name)) else {
            return Err(Error::Unknown { name: name.to_owned(), served: names(&entries) });
        };
        let Entry { slot, state, .. } = entries.remove(place);
        drop(entries);
        slot.unwanted.cancel();
        let device = match state {
            State::Ready(embedder) => {
                embedder.close();
                embedder.about().plan.device
            }
            State::Loading { .. } | State::Failed { .. } => Device::Cpu,
        };
        let workers = self.running().iter_mut().find(|it| it.id == slot.id).and_then(|it| it.workers.take());
        if let Some(workers) = workers {
            workers.join();
            self.running().retain(|it| it.id != slot.id);
            if let Err(error) = model::release_memory(device) {
                tracing::warn!(%error, "memory of GPUs is kept for later models");
            }
        }
        Ok(())
    }

    /// Changes a model's state, if it is still wanted.
    pub fn set(&self, slot: &Slot, state: State) {
        if let Some(entry) = self.entries_mut().iter_mut().find(|entry| entry.slot.id == slot.id) {
            entry.state = state;
        }
    }

    /// The model of that name; the only one when no name is given.
    ///
    /// A model's own name and its aliases win over any reading of their parts. Otherwise
    /// `NAME:latest` is NAME, as Ollama's clients have it, and `NAME:query` and `NAME-query` are
    /// NAME with what it says about the texts.
    pub fn get(&self, name: Option<&str>) -> Result<Named, Error> {
        let entries = self.entries();
        let named = |entry: &Entry, suffix| {
            Ok(Named { name: Arc::clone(&entry.name), suffix, embedder: entry.embedder()? })
        };
        let Some(name) = name else {
            return match entries.as_slice() {
                [only] => named(only, None),
                [] => Err(Error::Empty),
                _ => Err(Error::Unnamed { served: names(&entries) }),
            };
        };
        let find = |wanted: &str| entries.iter().find(|entry| entry.answers_to(wanted));
        // The tag that some clients put behind any name (`e5-query:latest`).
        let untagged = name.strip_suffix(":latest").unwrap_or(name);
        if let Some(entry) = find(name).or_else(|| find(untagged)) {
            return named(entry, None);
        }
        for (base, word) in [untagged.rsplit_once(':'), untagged.rsplit_once('-')].into_iter().flatten() {
            let Some(entry) = find(base) else { continue };
            let named = named(entry, Some(word.to_owned()))?;
            if options::is_input_type(word, &named.embedder.about().offer.prompts) {
                return Ok(named);
            }
        }
        Err(Error::Unknown { name: name.to_owned(), served: names(&entries) })
    }

    /// What the watchdog has to say at `now`, a line for each model in trouble.
    pub fn stuck(&self, now: Instant, deadline: Duration) -> Vec<String> {
        let why = |it: &Running| it.heartbeats.stuck(now, deadline).map(|why| format!("{}: {why}", it.name));
        self.running().iter().filter_map(why).collect()
    }

    /// Takes a model into service, if it is still wanted: starts its workers and marks it ready. Whether it was.
    pub fn serve(
        &self,
        slot: &Slot,
        loaded: Loaded,
        settings: &Settings,
        pool: &Arc<Pool>,
        metrics: &Arc<Metrics>,
    ) -> Result<bool, LoadError> {
        let Loaded { models, tokenizer, about } = loaded;
        let Some(name) = self.name(slot) else { return Ok(false) };
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
            let (rate, metrics, name) = (Arc::clone(&rate), Arc::clone(metrics), Arc::clone(&name));
            Arc::new(move |report| {
                rate.record(&report);
                metrics.batch(&name, &report);
            })
        };
        let count = threads.workers * models.len();
        let workers = Workers::start(&name, models, about.dimensions, &queue, threads, &on_batch)?;
        let embedder = Embedder::new(Parts {
            about,
            tokenizer,
            pool: Arc::clone(pool),
            queue,
            limits: settings.limits,
            rate,
            workers: count,
        });
        let mut entries = self.entries_mut();
        let Some(entry) = entries.iter_mut().find(|entry| entry.slot.id == slot.id) else {
            // Removed meanwhile. Nothing is in line: the threads end at once.
            drop(entries);
            embedder.close();
            workers.join();
            return Ok(false);
        };
        let heartbeats = workers.heartbeats();
        self.running().push(Running { id: slot.id, name, heartbeats, workers: Some(workers) });
        entry.state = State::Ready(Arc::new(embedder));
        Ok(true)
    }

    /// Takes no new texts and waits until what is in line was embedded.
    pub fn stop(&self) {
        for Status { state, .. } in self.states() {
            if let State::Ready(embedder) = state {
                embedder.close();
            }
        }
        let workers: Vec<_> = self.running().iter_mut().filter_map(|it| it.workers.take()).collect();
        workers.into_iter().for_each(Workers::join);
    }
}

fn entry(id: u64, name: &str, aliases: &[String], is_needed: bool) -> Entry {
    Entry {
        slot: Slot { id, unwanted: CancellationToken::new() },
        name: name.into(),
        aliases: aliases.to_vec(),
        is_needed,
        state: State::Loading { step: "waiting for its turn".into() },
    }
}

fn names(entries: &[Entry]) -> Vec<String> {
    entries.iter().map(|entry| entry.name.to_string()).collect()
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
    let plan = Plan::decide(preference, Machine::for_choice(preference))?;
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
        space: directory.base(tensors)?,
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
