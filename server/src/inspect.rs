//! What a model is, and what serving it would mean, without loading it.
//!
//! Nothing here decides: what is told comes from the functions that `serve` decides by, and
//! `tests/inspect.rs` compares both.

mod text;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::fetch::{Found, Glimpse, Source};
use crate::kernels::cpu::{Cpu, InstructionSet};
use crate::model::directory::{Dense, Directory, Tail};
use crate::model::families::{Example, FAMILIES, Family};
use crate::model::inventory::{self, Needed, needed};
use crate::model::memory::Memory;
use crate::model::weights::Weights;
use crate::model::{self, Implementation, Machine, Plan, Preference};
use crate::models::LoadError;
use crate::scores::Kind;
use crate::tokenize::Tokenizer;

/// What is to be looked at.
#[derive(Debug)]
pub struct Subject {
    /// What it is called: a directory, or a repository with its commit.
    pub name: String,
    directory: PathBuf,
    repository: Option<String>,
    /// Where a repository's files are.
    place: Option<Found>,
    /// Sizes of pickled weights, where there are no others yet.
    pickled: BTreeMap<String, u64>,
    downloaded_bytes: u64,
}

impl Subject {
    /// A model's directory.
    pub fn of_directory(path: &Path) -> Self {
        Self {
            name: path.display().to_string(),
            directory: path.to_owned(),
            repository: None,
            place: None,
            pickled: BTreeMap::new(),
            downloaded_bytes: 0,
        }
    }

    /// A repository, of which that was seen.
    pub fn of_repository(source: &Source, glimpse: &Glimpse) -> Self {
        Self {
            name: format!("{}@{}", source.repo, glimpse.commit),
            directory: glimpse.directory.clone(),
            repository: Some(source.repo.to_string()),
            place: Some(glimpse.place),
            pickled: glimpse.pickled.clone(),
            downloaded_bytes: glimpse.downloaded_bytes,
        }
    }
}

/// What is told of a model. What `/models` of a server tells, too, has the same name there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Facts {
    /// The directory, or the repository with its commit.
    pub source: String,
    /// Where a repository's files are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub found: Option<&'static str>,
    /// How much came over the network to tell this.
    pub downloaded_bytes: u64,
    /// What people call the architecture.
    pub family: &'static str,
    /// What the server calls it.
    pub architecture: &'static str,
    /// `embedding` or `cross-encoder`.
    pub kind: &'static str,
    /// Of a cross-encoder: what its scores are of.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<String>,
    /// Of a cross-encoder: what is made of its logits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub activation: Option<&'static str>,
    /// Of a language model that judges: what it is asked to judge, where a request does not say it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instruction: Option<&'static str>,
    /// How many numbers the model computes with.
    pub parameters: u64,
    /// The weights in the files.
    pub weights: Stored,
    /// The length of its vectors; how many scores a cross-encoder makes.
    pub dimensions: usize,
    /// To which its vectors can be shortened; its own is the last.
    pub allowed_dimensions: Vec<usize>,
    /// Whether the model divides its vectors by their norm.
    pub normalizes: bool,
    /// The longest text in tokens, special ones included.
    pub max_tokens: usize,
    /// How token states become one vector.
    pub pooling: String,
    /// Whether a prompt's tokens take part in it.
    pub include_prompt: bool,
    /// What follows the pooling, in order.
    pub modules: Vec<String>,
    /// The prompts in its files, by name.
    pub prompts: BTreeMap<String, String>,
    /// The prompt of texts of which a request says nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default_prompt: Option<String>,
    /// What its authors want before texts, where that is known and not in its files.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wanted_prompts: Option<Wanted>,
    /// Which vectors its own can be compared with, where the hashes of its weights are known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub space: Option<String>,
    /// How it would be computed on this machine.
    pub numerics: Numerics,
    /// How much memory that takes, in bytes, as an estimate.
    pub memory: Held,
    /// The implementations that would not be taken, and why.
    pub others: Vec<Other>,
    /// What of the machine is not used, and why.
    pub notes: Vec<String>,
    /// What cannot be told.
    pub unknown: Vec<String>,
}

/// Weights in files.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Stored {
    /// How many files.
    pub files: usize,
    /// Their sizes together.
    pub bytes: u64,
    /// Whether they are pickles, which `fetch` converts.
    pub pickled: bool,
    /// As what the parameters are stored: how many of each dtype.
    pub dtypes: BTreeMap<String, u64>,
    /// How many tensors in the files are not used.
    pub unused_tensors: usize,
}

/// What belongs before texts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Wanted {
    /// Before queries.
    pub query: &'static str,
    /// Before documents.
    pub document: &'static str,
}

/// How vectors are computed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Numerics {
    /// By which implementation.
    pub implementation: String,
    /// In which number format.
    pub dtype: String,
    /// With which instructions, where the implementation is the fused one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernels: Option<&'static str>,
    /// Where.
    pub device: String,
}

impl From<Plan> for Numerics {
    fn from(plan: Plan) -> Self {
        Self {
            implementation: plan.implementation.to_string(),
            dtype: plan.dtype.to_string(),
            kernels: plan.kernels.map(InstructionSet::name),
            device: plan.device.to_string(),
        }
    }
}

/// An estimate of memory, in bytes ([`Memory`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Held {
    /// The weights as the implementation holds them.
    pub weights: u64,
    /// What comes on top while they are read.
    pub loading: u64,
    /// What is there besides: the program, the tokenizer, what forwards work on.
    pub other: u64,
    /// All of it, of the machine's own memory.
    pub total: u64,
    /// The weights on each GPU, where they are there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gpu: Option<u64>,
}

impl From<Memory> for Held {
    fn from(Memory { weights, loading, total, gpu }: Memory) -> Self {
        Self { weights, loading, other: model::memory::OTHER, total, gpu }
    }
}

/// An implementation that would not be taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Other {
    /// Its name.
    pub implementation: String,
    /// Why it cannot be; nothing where it is only not the first choice.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
    /// How it would compute, if it was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub numerics: Option<Numerics>,
}

/// Looks at a model. What `serve` would refuse is the error that it would end in.
pub fn facts(subject: &Subject, preference: Preference, machine: Machine) -> Result<Facts, LoadError> {
    let directory = Directory::read(&subject.directory)?;
    // As `serve`: what is wrong with the files as such comes before what this machine lacks.
    let is_pickled = !subject.pickled.is_empty();
    if !is_pickled {
        Weights::open(&directory.path).map_err(model::Error::from)?;
    }
    let plan = Plan::decide(preference, machine)?;
    Tokenizer::load(&directory, directory.encoder.vocab_size)?;
    model::check(&directory, plan.implementation)?;
    let stored = if is_pickled {
        pickled(&subject.pickled, &directory)
    } else {
        in_files(&directory).map_err(model::Error::from)?
    };
    let known = if is_pickled { None } else { inventory::known(&directory) };
    let space = match known {
        Some(tensors) => {
            let base = directory.base(tensors)?;
            Some(base.space(directory.dimensions(), directory.normalizes()).to_string())
        }
        None => None,
    };
    let (labels, activation) = match directory.kind() {
        Kind::Embedding => (Vec::new(), None),
        Kind::CrossEncoder(classifier) => (classifier.labels, Some(classifier.activation.name())),
    };
    Ok(Facts {
        source: subject.name.clone(),
        found: subject.place.map(Found::name),
        downloaded_bytes: subject.downloaded_bytes,
        family: Family::of(&directory.encoder).map_or("", |family| family.name),
        architecture: directory.encoder.architecture,
        kind: directory.kind().name(),
        labels,
        activation,
        instruction: directory.question.map(|question| question.instruction),
        parameters: needed(&directory).iter().flat_map(|group| &group.tensors).map(Needed::elements).sum(),
        unknown: unknown(&stored, space.is_some()),
        weights: stored,
        dimensions: directory.dimensions(),
        allowed_dimensions: directory.matryoshka.clone(),
        normalizes: directory.normalizes(),
        max_tokens: directory.max_tokens,
        pooling: directory.pooling.name(),
        include_prompt: directory.pooling.include_prompt,
        modules: directory.tail.iter().map(module).collect(),
        wanted_prompts: wanted(subject.repository.as_deref(), &directory),
        space,
        numerics: plan.into(),
        memory: Memory::estimate(&directory, plan).into(),
        others: others(&directory, plan, preference, machine),
        notes: notes(preference, machine),
        prompts: directory.prompts,
        default_prompt: directory.default_prompt_name,
    })
}

/// Pickled weights, beside which modules may have others.
fn pickled(sizes: &BTreeMap<String, u64>, directory: &Directory) -> Stored {
    let mut stored = Stored { pickled: true, ..Stored::default() };
    stored.files += sizes.len();
    stored.bytes = sizes.values().fold(stored.bytes, |sum, &size| sum.saturating_add(size));
    let folders: BTreeSet<_> = needed(directory).into_iter().map(|group| group.folder).collect();
    folders.iter().filter_map(|folder| Weights::open(folder).ok()).for_each(|weights| stored.add(&weights));
    stored
}

/// Compares the weights with the configuration, and adds them up.
fn in_files(directory: &Directory) -> Result<Stored, model::weights::Error> {
    let dtypes = inventory::stored(directory)?;
    let groups = needed(directory);
    let mut stored = Stored::default();
    let tensors = groups.iter().flat_map(|group| &group.tensors);
    for (tensor, dtype) in tensors.zip(&dtypes) {
        *stored.dtypes.entry(format!("{dtype:?}")).or_default() += tensor.elements();
    }
    let folders: BTreeSet<_> = groups.iter().map(|group| &group.folder).collect();
    let mut there = 0;
    for folder in folders {
        let weights = Weights::open(folder)?;
        there += weights.count();
        stored.add(&weights);
    }
    stored.unused_tensors = there.saturating_sub(dtypes.len());
    Ok(stored)
}

impl Stored {
    /// Counts the files of a folder.
    fn add(&mut self, weights: &Weights) {
        let paths = weights.paths();
        self.files += paths.len();
        // A repository may claim any size.
        let sizes = paths.iter().filter_map(|path| path.metadata().ok()).map(|found| found.len());
        self.bytes = sizes.fold(self.bytes, u64::saturating_add);
    }
}

/// A module for people.
fn module(module: &Tail) -> String {
    match module {
        Tail::Normalize => "Normalize".to_owned(),
        Tail::LayerNorm(_) => "LayerNorm".to_owned(),
        Tail::Answer(_) => "the logit of its answer".to_owned(),
        Tail::Dense(Dense { in_features, out_features, activation, .. }) => {
            format!("Dense {in_features} to {out_features}, {}", activation.name())
        }
    }
}

/// What a repository's authors want, where its files do not have it.
fn wanted(repository: Option<&str>, directory: &Directory) -> Option<Wanted> {
    let mut examples = FAMILIES.iter().flat_map(|family| family.examples);
    let Example { query, document, .. } = *examples.find(|example| Some(example.repository) == repository)?;
    let is_there = |wanted: &str| wanted.is_empty() || directory.prompts.values().any(|it| it == wanted);
    (!(is_there(query) && is_there(document))).then_some(Wanted { query, document })
}

fn others(directory: &Directory, plan: Plan, preference: Preference, machine: Machine) -> Vec<Other> {
    let others = Implementation::ALL.into_iter().filter(|&other| other != plan.implementation);
    let other = |implementation: Implementation| {
        let wish = Preference { implementation: Some(implementation), ..preference };
        let plan = Plan::decide(wish, machine)
            .and_then(|plan| model::check(directory, implementation).map(|()| plan));
        let implementation = implementation.to_string();
        match plan {
            Ok(plan) => Other { implementation, refused: None, numerics: Some(plan.into()) },
            Err(error) => {
                // Which directory is known, and it may be a temporary one.
                let root = format!("{}/", directory.path.display());
                Other { implementation, refused: Some(error.to_string().replace(&root, "")), numerics: None }
            }
        }
    };
    others.map(other).collect()
}

/// What the machine has, or should have, and does not use.
fn notes(preference: Preference, machine: Machine) -> Vec<String> {
    let missing = machine.gpus.err().filter(|_| preference.may_be_gpus());
    let gpu = missing.map(|why| format!("no GPU is used: {why}"));
    let amx = Cpu::this().amx_refused().map(|why| format!("this CPU has AMX, and it is not used: {why}"));
    gpu.into_iter().chain(amx).collect()
}

fn unknown(stored: &Stored, space: bool) -> Vec<String> {
    let pickled = stored.pickled.then_some(
        "whether its tensors fit, and as what they are stored: they are pickled, and fetch converts them",
    );
    let finite = "whether all numbers of its weights are finite: serve reads them";
    let space =
        (!space).then_some("its vector space, which needs hashes of all weights: fetch and serve tell it");
    pickled.into_iter().chain([finite]).chain(space).map(str::to_owned).collect()
}
