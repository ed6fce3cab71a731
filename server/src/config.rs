//! Flags and environment → what the program needs. The only reader of either.
//!
//! What was typed is one set of structs ([`Cli`] and its parts), what the program
//! needs another ([`Serve`], [`Fetch`], [`Convert`], [`Inspect`], [`Healthcheck`]); between them everything is checked.

mod compute;
mod inspect;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use axum::http::HeaderValue;
use clap::builder::FalseyValueParser;
use clap::{Arg, ArgAction, Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use serde::Deserialize;
use url::Url;

use crate::embedder::Limits;
use crate::fetch::{Archive, Cache, Hub, Manifest, Place, ProxySettings, Source, Token};
use crate::http;
use crate::models::{self, Origin, Spec};
use crate::token_ids::{TokenIds, Vocabulary};
use crate::worker::Threads;

use compute::ComputeArgs;
pub use inspect::{Inspect, InspectArgs};

/// Why the configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A value of an option.
    #[error("--{option} {value}: {problem}")]
    Option {
        /// The option's name.
        option: &'static str,
        /// What was given.
        value: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The model cache has no place.
    #[error("no home directory to keep models in: set --cache-dir or RUSTBERT_CACHE")]
    NoCache,
    /// The archive.
    #[error(transparent)]
    Archive(crate::fetch::Error),
    /// The manifest.
    #[error("--manifest {path}")]
    Manifest {
        /// Its file.
        path: PathBuf,
        /// What is wrong with it.
        source: crate::fetch::Error,
    },
}

fn bad(option: &'static str, value: &str, problem: impl Into<String>) -> Error {
    Error::Option { option, value: value.to_string(), problem: problem.into() }
}

/// Text embeddings over HTTP from Hugging Face models.
#[derive(Debug, Parser)]
#[command(
    name = "embedding-server",
    version,
    after_help = "Without a subcommand, the server is started: `embedding-server --port 8080` is \
                  `embedding-server serve --port 8080`."
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve models over HTTP (the default).
    Serve(Box<ServeArgs>),
    /// Fetch a model from a Hugging Face hub into the cache, and print a summary as JSON.
    Fetch(Box<FetchArgs>),
    /// Make safetensors of a directory's pickled weights, and print a summary as JSON.
    Convert(ConvertArgs),
    /// Say what a model is, and what serving it here would mean, without loading it.
    Inspect(Box<InspectArgs>),
    /// Ask a running server whether it is healthy, and end with the exit code that says so.
    Healthcheck(HealthcheckArgs),
}

impl Cli {
    /// Parses a command line; where it names no subcommand, `serve` is meant.
    pub fn parse_with_default(arguments: impl IntoIterator<Item = std::ffi::OsString>) -> Self {
        let mut arguments: Vec<_> = arguments.into_iter().collect();
        let first = arguments.get(1).map(|argument| argument.to_string_lossy().into_owned());
        let is_flag = first.as_deref().is_none_or(|first| first.starts_with('-'));
        if is_flag && !matches!(first.as_deref(), Some("-h" | "--help" | "-V" | "--version")) {
            arguments.insert(arguments.len().min(1), "serve".into());
        }
        let mut matches = without_empty_variables(Self::command()).get_matches_from(arguments);
        Self::from_arg_matches_mut(&mut matches)
            .map_err(|error| error.format(&mut Self::command()))
            .unwrap_or_else(|error| error.exit())
    }
}

/// An empty variable counts as unset, for every option: that is how deployments, which
/// often cannot leave one out, say that they have no value for it.
fn without_empty_variables(command: clap::Command) -> clap::Command {
    let is_empty =
        |argument: &Arg| argument.get_env().and_then(std::env::var_os).is_some_and(|value| value.is_empty());
    command.mut_subcommands(|command| {
        command.mut_args(|argument| if is_empty(&argument) { argument.env(None::<&str>) } else { argument })
    })
}

/// Where the model cache is and how a hub is reached.
#[derive(Debug, Args)]
pub struct HubArgs {
    /// Where fetched models are kept [default: ~/.cache/.rustbert]
    #[arg(long, env = "RUSTBERT_CACHE", value_name = "DIR")]
    pub cache_dir: Option<PathBuf>,
    /// The cache of Hugging Face's own libraries, which is read and never written: what it has of a model is
    /// verified and taken from there, by a link where that is possible; where all of the model is in it, no network is
    /// needed. By default it is where these libraries have it: the first of `HUGGINGFACE_HUB_CACHE`, `HF_HOME`/hub,
    /// `XDG_CACHE_HOME`/huggingface/hub and ~/.cache/huggingface/hub of which the variable is set. Empty, as a flag:
    /// none is read.
    #[arg(long, env = "HF_HUB_CACHE", value_name = "DIR")]
    pub hf_cache: Option<OsString>,
    /// The hub to fetch from.
    #[arg(long, env = "HF_ENDPOINT", value_name = "URL", default_value = "https://huggingface.co")]
    pub hf_endpoint: String,
    /// An access token for private and gated repositories; better given by its variable,
    /// because command lines can be read by others. It is sent to the hub and to nobody else.
    #[arg(long, env = "HF_TOKEN", value_name = "TOKEN", hide_env_values = true)]
    pub hf_token: Option<Token>,
    /// Never connect to a hub: use what is in the cache.
    #[arg(long, env = "HF_HUB_OFFLINE", action = ArgAction::SetTrue, value_parser = FalseyValueParser::new())]
    pub offline: bool,
    /// A proxy for https:// (lower-case `https_proxy` counts too).
    #[arg(long, env = "HTTPS_PROXY", value_name = "URL", hide_env_values = true)]
    pub https_proxy: Option<String>,
    /// A proxy for http:// (lower-case `http_proxy` counts too).
    #[arg(long, env = "HTTP_PROXY", value_name = "URL", hide_env_values = true)]
    pub http_proxy: Option<String>,
    /// Hosts that are reached without the proxy (lower-case `no_proxy` counts too).
    #[arg(long, env = "NO_PROXY", value_name = "HOSTS")]
    pub no_proxy: Option<String>,
    /// A PEM file of certificate authorities to trust besides the usual ones.
    #[arg(long, env = "EMBEDDING_CA_FILE", value_name = "FILE")]
    pub ca_file: Option<PathBuf>,
    /// Seconds until a connection to the hub must stand.
    #[arg(long, env = "EMBEDDING_CONNECT_TIMEOUT", value_name = "SECONDS", default_value_t = 10,
          value_parser = clap::value_parser!(u64).range(1..=600))]
    pub connect_timeout: u64,
    /// Seconds that the hub may send nothing before the transfer is begun again where it stopped.
    #[arg(long, env = "EMBEDDING_READ_TIMEOUT", value_name = "SECONDS", default_value_t = 30,
          value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub read_timeout: u64,
    /// How often in a row a transfer is tried again without getting further.
    #[arg(long, env = "EMBEDDING_RETRIES", value_name = "COUNT", default_value_t = 5)]
    pub retries: u32,
}

/// How logs are written.
#[derive(Clone, Debug, Args)]
pub struct LogArgs {
    /// What is logged, to standard error: a level, or levels by module
    /// (`info,embedding_server::http=debug`).
    #[arg(long, env = "RUST_LOG", value_name = "FILTER", default_value = "info")]
    pub log: String,
    /// How it is logged.
    #[arg(long, env = "EMBEDDING_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line, for machines.
    Json,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum TokenIdsArg {
    /// 400, with what to change.
    Refuse,
    /// The tokenizer of text-embedding-ada-002 and text-embedding-3.
    #[value(name = "cl100k_base")]
    Cl100kBase,
    /// The tokenizer of newer models of OpenAI's.
    #[value(name = "o200k_base")]
    O200kBase,
    /// The tokenizer of the model that is asked for.
    Model,
}

/// Options of `serve`.
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// A model to serve: `[NAME=]DIRECTORY` or `[NAME=]REPOSITORY[@REVISION]`. A directory begins with
    /// `/`, `.` or `~`; anything else is a repository of the hub, fetched into the cache when it is not
    /// there. Without NAME, the last part in lower case is the name. Repeatable; in the variable,
    /// separated by commas. [default: all-minilm-l6-v2=sentence-transformers/all-MiniLM-L6-v2 at a fixed
    /// commit]
    #[arg(long = "model", env = "EMBEDDING_MODEL", value_name = "MODEL", value_delimiter = ',')]
    models: Vec<String>,
    /// Another name for a model, which `/models` does not list. The repository that a model is from is such a
    /// name without being told. Repeatable; in the variable, separated by commas.
    #[arg(
        long = "alias",
        env = "EMBEDDING_ALIASES",
        value_name = "NAME=MODEL",
        value_delimiter = ',',
        help_heading = "Texts"
    )]
    aliases: Vec<String>,
    /// A prompt of a model, which wins over one of that name in the model's files. It is put before each text
    /// that a request calls so (`input_type`, `prompt_name`, `MODEL:PROMPT`), unless the text begins with it.
    /// MODEL can be left out where one is served. Repeatable; in the variable, a line each.
    #[arg(
        long = "prompt",
        env = "EMBEDDING_PROMPTS",
        value_name = "[MODEL:]PROMPT=TEXT",
        value_delimiter = '\n',
        help_heading = "Texts"
    )]
    prompts: Vec<String>,
    /// The prompt of texts of which a request says nothing. Repeatable; in the variable, separated by commas.
    #[arg(
        long = "default-prompt",
        env = "EMBEDDING_DEFAULT_PROMPTS",
        value_name = "[MODEL=]PROMPT",
        value_delimiter = ',',
        help_heading = "Texts"
    )]
    default_prompts: Vec<String>,
    /// What becomes of a text that is longer than its model takes: `truncate` leaves its end away and says so,
    /// `error` refuses it, `chunk_mean` embeds it in pieces and answers their mean. A request can say it, too.
    /// Repeatable; in the variable, separated by commas. [default: truncate]
    #[arg(
        long = "on-overflow",
        env = "EMBEDDING_ON_OVERFLOW",
        value_name = "[MODEL=]WHAT",
        value_delimiter = ',',
        help_heading = "Texts"
    )]
    on_overflow: Vec<String>,
    /// Refuse requests that do not say what their texts are (query, document, …) with 422: a forgotten prompt
    /// costs quality in silence.
    #[arg(long, env = "EMBEDDING_REQUIRE_INPUT_TYPE", action = ArgAction::SetTrue, value_parser = FalseyValueParser::new(), help_heading = "Texts")]
    require_input_type: bool,
    /// What OpenAI's API does with token ids in place of texts (`input`): `refuse` them, because ids of another
    /// tokenizer make a wrong vector, or decode them to the text that they came from, as ids of `cl100k_base` (which
    /// langchain-openai sends), of `o200k_base`, or of the `model`'s own tokenizer.
    #[arg(long, env = "EMBEDDING_OPENAI_TOKEN_IDS", value_enum, default_value_t = TokenIdsArg::Refuse, help_heading = "Texts")]
    openai_token_ids: TokenIdsArg,
    /// Lengths to which a model was trained to have its vectors shortened (Matryoshka), which `dimensions` may
    /// ask for besides those in its files: `64/128/256`. Repeatable; in the variable, separated by commas.
    #[arg(
        long = "matryoshka",
        env = "EMBEDDING_MATRYOSHKA",
        value_name = "[MODEL=]LENGTHS",
        value_delimiter = ',',
        help_heading = "Texts"
    )]
    matryoshka: Vec<String>,
    /// The address to listen on.
    #[arg(long, env = "EMBEDDING_HOST", default_value = "0.0.0.0", help_heading = "HTTP")]
    host: String,
    /// The port to listen on; 0 lets the system choose one, which the log tells.
    #[arg(long, env = "PORT", default_value_t = 9000, help_heading = "HTTP")]
    port: u16,
    #[command(flatten)]
    compute: ComputeArgs,
    /// Forwards that run at once for each model, on GPUs for each of them; 0: as many as the CPU limit allows, and 2 on a
    /// GPU.
    #[arg(long, env = "EMBEDDING_WORKERS", default_value_t = 0, help_heading = "Computing",
          value_parser = clap::value_parser!(u16).range(0..=1024))]
    workers: u16,
    /// Threads of one forward; 0: the CPU limit divided by the workers. Where it is fused, there are so
    /// many times more workers instead, and one that computes takes the threads of those that are idle.
    #[arg(long, env = "EMBEDDING_THREADS_PER_WORKER", default_value_t = 0, help_heading = "Computing",
          value_parser = clap::value_parser!(u16).range(0..=1024))]
    threads_per_worker: u16,
    /// The most tokens in one forward; 0: 1024 on CPUs, where more would not fit into caches, and 32768 on GPUs.
    #[arg(long, env = "EMBEDDING_MAX_BATCH_TOKENS", default_value_t = 0, help_heading = "Limits",
          value_parser = clap::value_parser!(u32).range(0..=1_048_576))]
    max_batch_tokens: u32,
    /// The most texts in one request; more are refused with 413.
    #[arg(long, env = "EMBEDDING_MAX_TEXTS", default_value_t = 10_000, help_heading = "Limits",
          value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    max_texts: u32,
    /// The most texts of all requests under way, for each model; what is over it is refused with 429. An eighth of them
    /// is not for bulk.
    #[arg(long, env = "EMBEDDING_MAX_WAITING_TEXTS", default_value_t = 20_000, help_heading = "Limits",
          value_parser = clap::value_parser!(u32).range(1..=100_000_000))]
    max_waiting_texts: u32,
    /// The most requests for vectors under way at once; what is over it is refused with 429. 0: no limit
    /// but that of texts.
    #[arg(long, env = "EMBEDDING_MAX_CONCURRENT_REQUESTS", default_value_t = 0, help_heading = "Limits",
          value_parser = clap::value_parser!(u32).range(0..=10_000_000))]
    max_concurrent_requests: u32,
    /// The largest request body in bytes; larger ones are refused with 413.
    #[arg(long, env = "EMBEDDING_MAX_BODY_BYTES", default_value_t = 32 << 20, help_heading = "Limits",
          value_parser = clap::value_parser!(u64).range(1..=1 << 40))]
    max_body_bytes: u64,
    /// The most bytes of memory for vectors that are kept, so that the same text is not computed again; 0: none are
    /// kept. A vector of 384 values takes about 1.7 KB.
    #[arg(long, env = "EMBEDDING_CACHE_BYTES", value_name = "BYTES", default_value_t = 0, help_heading = "Limits",
          value_parser = clap::value_parser!(u64).range(0..=1 << 40))]
    cache_bytes: u64,
    /// The most connections at once; further ones wait to be accepted.
    #[arg(long, env = "EMBEDDING_MAX_CONNECTIONS", default_value_t = 8192, help_heading = "Limits",
          value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    max_connections: u32,
    /// Seconds that a request may take in all.
    #[arg(long, env = "EMBEDDING_REQUEST_TIMEOUT", value_name = "SECONDS", default_value_t = 300,
          help_heading = "Limits", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    request_timeout: u64,
    /// Seconds in which the head of a request must arrive.
    #[arg(long, env = "EMBEDDING_HEADER_TIMEOUT", value_name = "SECONDS", default_value_t = 30,
          help_heading = "Limits", value_parser = clap::value_parser!(u64).range(1..=3600))]
    header_timeout: u64,
    /// Seconds that one forward may take before /livez fails.
    #[arg(long, env = "EMBEDDING_FORWARD_DEADLINE", value_name = "SECONDS", default_value_t = 120,
          help_heading = "Limits", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    forward_deadline: u64,
    /// Seconds that requests under way get to finish when the server is told to stop.
    #[arg(long, env = "EMBEDDING_SHUTDOWN_TIMEOUT", value_name = "SECONDS", default_value_t = 25,
          help_heading = "Limits", value_parser = clap::value_parser!(u64).range(0..=3600))]
    shutdown_timeout: u64,
    /// Origins from which browsers may call, separated by commas; * is any.
    #[arg(
        long,
        env = "EMBEDDING_CORS_ORIGINS",
        value_name = "ORIGINS",
        value_delimiter = ',',
        default_value = "*",
        help_heading = "HTTP"
    )]
    cors_origins: Vec<String>,
    /// Let requests load and unload models (`POST /models`). Whoever reaches the server can then have it fetch any
    /// repository, and read any directory that it can: only where all of them may.
    #[arg(long, env = "EMBEDDING_ALLOW_MODEL_CHANGES", action = ArgAction::SetTrue, value_parser = FalseyValueParser::new(), help_heading = "HTTP")]
    allow_model_changes: bool,
    /// Without the pages for people, `/` and `/docs`.
    #[arg(long, env = "EMBEDDING_NO_UI", action = ArgAction::SetTrue, value_parser = FalseyValueParser::new(), help_heading = "HTTP")]
    no_ui: bool,
    #[command(flatten, next_help_heading = "Hub")]
    hub: HubArgs,
    /// How logs are written.
    #[command(flatten, next_help_heading = "Logging")]
    pub logging: LogArgs,
}

/// Options of `fetch`.
#[derive(Debug, Args)]
#[command(
    after_help = "Exit codes: 0 the model is in the cache; 69 the hub cannot be reached; 77 the hub refuses, or \
                  has no such repository or revision, which waiting does not cure; 2 the command line is \
                  wrong; 1 anything else."
)]
pub struct FetchArgs {
    /// The repository, and the commit, tag or branch [default: the default model at its fixed commit;
    /// REVISION's default: main]
    #[arg(value_name = "REPOSITORY[@REVISION]")]
    model: Option<String>,
    /// Instead of a repository, a gzipped tar archive of a model's directory. It is unpacked to
    /// archives/SHA256 in the cache, which `serve --model NAME=DIRECTORY` serves. No token is sent.
    #[arg(long, value_name = "URL", requires = "sha256", conflicts_with_all = ["model", "manifest", "from"])]
    url: Option<String>,
    /// The archive's sha256, as sha256sum prints it.
    #[arg(long, value_name = "HEX", requires = "url")]
    sha256: Option<String>,
    /// A JSON file that lists the sha256 of every file: {"files": {"model.safetensors": "…"}}.
    #[arg(long, value_name = "FILE")]
    manifest: Option<PathBuf>,
    /// Take the files from a directory instead of a hub; it needs a manifest and a full commit.
    #[arg(long, value_name = "DIR")]
    from: Option<PathBuf>,
    /// Before anything is downloaded, remove every model from the cache but the one that is fetched and
    /// those named so: REPOSITORY@COMMIT, or an archive's path (…/archives/SHA256). What another process
    /// is fetching stays. Repeatable; without it, nothing is removed.
    #[arg(long = "keep", value_name = "MODEL")]
    keep: Vec<String>,
    /// The same, also where nothing is named: only what is fetched stays.
    #[arg(long)]
    keep_nothing_else: bool,
    /// Also write the summary to this file, or what went wrong as one line. Of a Kubernetes container:
    /// /dev/termination-log.
    #[arg(long, env = "EMBEDDING_SUMMARY_FILE", value_name = "FILE")]
    pub summary_file: Option<PathBuf>,
    #[command(flatten, next_help_heading = "Hub")]
    hub: HubArgs,
    /// How logs are written.
    #[command(flatten, next_help_heading = "Logging")]
    pub logging: LogArgs,
}

/// Options of `convert`.
#[derive(Debug, Args)]
#[command(
    after_help = "serve reads safetensors only, because a pickle is a program. convert writes model.safetensors \
                  beside each pytorch_model.bin, in the directory and in the folders of its modules, and leaves the \
                  .bin as it is; of several files with an index it makes as many, and an index. Nothing in a pickle is \
                  run: tensors are read, as torch.save writes them, and a file that holds or names anything else is \
                  refused with what that is. Where model.safetensors is there already, nothing is done. fetch does the \
                  same by itself with repositories that have no safetensors.\n\n\
                  Exit codes: 0 all weights of the directory are safetensors; 2 the command line is wrong; 1 anything \
                  else."
)]
pub struct ConvertArgs {
    /// A model's directory.
    directory: PathBuf,
    /// How logs are written.
    #[command(flatten, next_help_heading = "Logging")]
    pub logging: LogArgs,
}

/// Options of `healthcheck`.
#[derive(Debug, Args)]
#[command(
    after_help = "Exit codes: 0 the answer's status is 2xx; 1 it is another, or there is no answer, and standard \
                  error says which; 2 the command line is wrong. No proxy is used."
)]
pub struct HealthcheckArgs {
    /// What to ask, instead of /health at the host and port that `serve` listens on.
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// The address that `serve` listens on; of 0.0.0.0 and ::, which are all addresses, the loopback
    /// address is asked.
    #[arg(long, env = "EMBEDDING_HOST", default_value = "0.0.0.0")]
    host: String,
    /// The port that `serve` listens on.
    #[arg(long, env = "PORT", default_value_t = 9000)]
    port: u16,
    /// Seconds until the answer must be there.
    #[arg(long, value_name = "SECONDS", default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..=600))]
    timeout: u64,
}

/// What `serve` needs.
#[derive(Debug)]
pub struct Serve {
    /// The address to listen on.
    pub host: String,
    /// The port to listen on.
    pub port: u16,
    /// The models to serve.
    pub models: Vec<Spec>,
    /// How they are computed and how much they take on.
    pub settings: models::Settings,
    /// What the HTTP surface allows.
    pub http: http::Settings,
    /// The most connections at once.
    pub max_connections: usize,
    /// How long the head of a request may take.
    pub header_timeout: Duration,
    /// How long requests under way get when the server stops.
    pub shutdown_timeout: Duration,
    /// Threads for everything that is not a forward: the container's CPU limit.
    pub cpus: usize,
    /// Where models come from.
    pub sources: Sources,
    /// Whether requests may load and unload models.
    pub allow_model_changes: bool,
}

/// What `fetch` needs.
#[derive(Debug)]
pub struct Fetch {
    /// What to fetch.
    pub what: What,
    /// Where models come from, and to.
    pub sources: Sources,
}

/// What `convert` needs.
#[derive(Debug)]
pub struct Convert {
    /// A model's directory.
    pub directory: PathBuf,
}

/// What `healthcheck` needs.
#[derive(Debug, PartialEq, Eq)]
pub struct Healthcheck {
    /// What to ask; it begins with `http://` and has a host.
    pub url: Url,
    /// How long that may take.
    pub timeout: Duration,
}

/// What to fetch.
#[derive(Debug)]
pub enum What {
    /// A repository's files.
    Repository {
        /// The repository at a revision.
        source: Source,
        /// Hashes to verify by.
        manifest: Option<Manifest>,
        /// A directory to take the files from.
        from: Option<PathBuf>,
    },
    /// An archive's files.
    Archive(Archive),
}

/// Where models come from.
#[derive(Clone, Debug)]
pub struct Sources {
    /// Where fetched models are kept.
    pub cache: Cache,
    /// The hub; `None` when it must not be asked.
    pub hub: Option<Hub>,
}

/// The model that is served when none is named, with the hashes of its files.
#[derive(Debug, Deserialize)]
pub struct DefaultModel {
    name: String,
    repo: String,
    revision: String,
}

const DEFAULT_MODEL: &str = include_str!("../default-model.json");

impl DefaultModel {
    fn get() -> Self {
        serde_json::from_str(DEFAULT_MODEL).expect("the file is part of the program, and a test reads it")
    }

    fn source(&self) -> Source {
        source("model", &format!("{}@{}", self.repo, self.revision)).expect("a test reads it")
    }

    /// The manifest of the default model, if `source` is that.
    #[expect(clippy::missing_panics_doc, reason = "the file is part of the program, and a test reads it")]
    pub fn manifest(source: &Source) -> Option<Manifest> {
        (*source == Self::get().source()).then(|| Manifest::from_str(DEFAULT_MODEL).expect("a test reads it"))
    }
}

fn source(option: &'static str, text: &str) -> Result<Source, Error> {
    models::source(text).map_err(|problem| bad(option, text, problem))
}

/// Parses one `--model`. `home` stands for `~`.
fn spec(text: &str, home: Option<&Path>) -> Result<Spec, Error> {
    Spec::parse(text, home).map_err(|problem| bad("model", text, problem))
}

/// The model that an option is about, and what it says about it: `MODEL=WHAT`, or `WHAT` for all.
fn about<'a>(
    models: &'a mut [Spec],
    option: &'static str,
    text: &'a str,
    separator: char,
) -> Result<(Vec<&'a mut Spec>, &'a str), Error> {
    let Some((name, what)) = text.rsplit_once(separator) else {
        return Ok((models.iter_mut().collect(), text));
    };
    let served: Vec<_> = models.iter().map(|model| model.name.clone()).collect();
    let model = models.iter_mut().find(|model| model.name == name);
    let unknown =
        || bad(option, text, format!("no model is called \"{name}\"; served: {}", served.join(", ")));
    Ok((vec![model.ok_or_else(unknown)?], what))
}

impl HubArgs {
    fn resolve(self) -> Result<Sources, Error> {
        let root = self
            .cache_dir
            .or_else(|| std::env::home_dir().map(|home| home.join(".cache/.rustbert")))
            .ok_or(Error::NoCache)?;
        let endpoint: Url = self
            .hf_endpoint
            .parse()
            .map_err(|error| bad("hf-endpoint", &self.hf_endpoint, format!("not a URL: {error}")))?;
        // clap knows one variable for each flag; the lower-case ones are as common. What is
        // empty here was given as a flag, or in lower case, and means none.
        let lower = |value: Option<String>, name: &str| value.or_else(|| std::env::var(name).ok());
        let proxy = ProxySettings {
            https: lower(self.https_proxy, "https_proxy").filter(|value| !value.is_empty()),
            http: lower(self.http_proxy, "http_proxy").filter(|value| !value.is_empty()),
            no_proxy: lower(self.no_proxy, "no_proxy").filter(|value| !value.is_empty()),
        };
        let hub = Hub {
            token: self.hf_token,
            proxy,
            ca_file: self.ca_file,
            connect_timeout: Duration::from_secs(self.connect_timeout),
            read_timeout: Duration::from_secs(self.read_timeout),
            retries: self.retries,
            ..Hub::new(endpoint)
        };
        let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        let cache = match hf_cache(self.hf_cache, variable, std::env::home_dir().as_deref()) {
            Some(hf_cache) => Cache::new(root).reading(hf_cache),
            None => Cache::new(root),
        };
        Ok(Sources { cache, hub: (!self.offline).then_some(hub) })
    }
}

/// Where Hugging Face's own libraries keep what they have fetched, as they find it. `given` is `HF_HUB_CACHE`, too.
fn hf_cache(
    given: Option<OsString>,
    variable: impl Fn(&str) -> Option<OsString>,
    home: Option<&Path>,
) -> Option<PathBuf> {
    // Whoever writes a variable where no shell reads it may write `~`.
    let expanded = |path: OsString| match (Path::new(&path).strip_prefix("~"), home) {
        (Ok(rest), Some(home)) => home.join(rest),
        _ => PathBuf::from(path),
    };
    if let Some(path) = given.or_else(|| variable("HUGGINGFACE_HUB_CACHE")) {
        return Some(expanded(path)).filter(|path| !path.as_os_str().is_empty());
    }
    let all = variable("HF_HOME").map(expanded).or_else(|| {
        let caches = variable("XDG_CACHE_HOME").map(PathBuf::from).or(home.map(|home| home.join(".cache")));
        caches.map(|caches| caches.join("huggingface"))
    });
    all.map(|all| all.join("hub"))
}

/// How many threads compute, on `cpus` CPUs; zeros are for us to choose.
///
/// Many forwards of one thread each do more than one forward of many threads:
/// 10 to 24 % on two cores (docs/benchmarks.md).
fn threads(workers: usize, per_worker: usize, cpus: usize) -> Threads {
    match (workers, per_worker) {
        (0, 0) => Threads { workers: cpus, per_worker: 1 },
        (0, per_worker) => Threads { workers: (cpus / per_worker).max(1), per_worker },
        (workers, 0) => Threads { workers, per_worker: (cpus / workers).max(1) },
        (workers, per_worker) => Threads { workers, per_worker },
    }
}

impl ServeArgs {
    /// What is set about models, besides where they are.
    fn manners(&self, models: &mut [Spec]) -> Result<(), Error> {
        for text in &self.on_overflow {
            let (models, what) = about(models, "on-overflow", text, '=')?;
            let overflow = what.parse().map_err(|problem: String| bad("on-overflow", text, problem))?;
            for model in models {
                model.manner.overflow = overflow;
            }
        }
        for text in &self.default_prompts {
            for model in about(models, "default-prompt", text, '=')?.0 {
                let name = text.rsplit_once('=').map_or(text.as_str(), |(_, name)| name);
                model.manner.default_prompt = Some(name.to_owned());
            }
        }
        for text in &self.matryoshka {
            let (models, what) = about(models, "matryoshka", text, '=')?;
            let length = |length: &str| length.parse().ok().filter(|&length: &usize| length > 0);
            let lengths: Option<Vec<usize>> = what.split('/').map(length).collect();
            let problem = || bad("matryoshka", text, "lengths are numbers above 0 with / between them");
            let lengths = lengths.ok_or_else(problem)?;
            for model in models {
                model.manner.matryoshka.extend(&lengths);
            }
        }
        for text in &self.prompts {
            let problem = || bad("prompt", text, "write PROMPT=TEXT or MODEL:PROMPT=TEXT");
            let (place, prompt) = text.split_once('=').ok_or_else(problem)?;
            let (models, name) = about(models, "prompt", place, ':')?;
            if name.is_empty() {
                return Err(problem());
            }
            for model in models {
                model.manner.prompts.insert(name.to_owned(), prompt.to_owned());
            }
        }
        for model in models.iter_mut() {
            model.manner.require_input_type = self.require_input_type;
        }
        self.add_aliases(models)
    }

    /// No name may lead to two models.
    fn add_aliases(&self, models: &mut [Spec]) -> Result<(), Error> {
        let mut names: BTreeSet<String> = models.iter().map(|model| model.name.clone()).collect();
        for text in &self.aliases {
            let (alias, name) =
                text.split_once('=').ok_or_else(|| bad("alias", text, "write ALIAS=MODEL"))?;
            let served: Vec<_> = models.iter().map(|model| model.name.clone()).collect();
            let model = models.iter_mut().find(|model| model.name == name).ok_or_else(|| {
                bad("alias", text, format!("no model is called \"{name}\"; served: {}", served.join(", ")))
            })?;
            if alias.is_empty() {
                return Err(bad("alias", text, "write ALIAS=MODEL"));
            }
            if !names.insert(alias.to_owned()) {
                return Err(bad("alias", text, "the name is taken; choose another"));
            }
            model.aliases.push(alias.to_owned());
        }
        // Two models of one repository (at two revisions) leave its name to neither.
        let repositories: Vec<_> = models.iter().map(Spec::repository).collect();
        for model in models {
            if let Some(repo) = model.repository()
                && repositories.iter().flatten().filter(|other| **other == repo).count() == 1
                && names.insert(repo.clone())
            {
                model.aliases.push(repo);
            }
        }
        Ok(())
    }

    /// Checks everything that can be checked without I/O.
    pub fn resolve(self) -> Result<Serve, Error> {
        let home = std::env::home_dir();
        let mut models = if self.models.is_empty() {
            let default = DefaultModel::get();
            vec![Spec::new(default.name.clone(), Origin::Repository(default.source()))]
        } else {
            self.models.iter().map(|text| spec(text, home.as_deref())).collect::<Result<Vec<_>, _>>()?
        };
        let mut names = BTreeSet::new();
        for model in &models {
            if !names.insert(model.name.clone()) {
                return Err(bad("model", &model.name, "two models have this name; give one of them another"));
            }
        }
        self.manners(&mut models)?;
        let cors_origins = if self.cors_origins.iter().any(|origin| origin == "*") {
            Vec::new()
        } else {
            self.cors_origins
                .iter()
                .map(|origin| {
                    let url =
                        Url::parse(origin).ok().filter(|url| url.origin().ascii_serialization() == *origin);
                    url.and_then(|_| HeaderValue::from_str(origin).ok()).ok_or_else(|| {
                        bad("cors-origins", origin, "not an origin (https://example.com, without a path)")
                    })
                })
                .collect::<Result<_, _>>()?
        };
        // Follows the container's CPU limit (cgroup quota) and the thread's affinity.
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        Ok(Serve {
            host: self.host,
            port: self.port,
            models,
            settings: models::Settings {
                preference: self.compute.preference(),
                threads: threads(self.workers.into(), self.threads_per_worker.into(), cpus),
                forwards_on_gpu: if self.workers == 0 {
                    models::FORWARDS_ON_GPU
                } else {
                    self.workers.into()
                },
                max_batch_tokens: Some(self.max_batch_tokens as usize).filter(|&tokens| tokens > 0),
                limits: Limits {
                    max_texts: self.max_texts as usize,
                    max_waiting_texts: self.max_waiting_texts as usize,
                },
            },
            http: http::Settings {
                max_body_bytes: usize::try_from(self.max_body_bytes).unwrap_or(usize::MAX),
                max_texts: self.max_texts as usize,
                max_concurrent_requests: self.max_concurrent_requests as usize,
                request_timeout: Duration::from_secs(self.request_timeout),
                cache_bytes: self.cache_bytes,
                token_ids: match self.openai_token_ids {
                    TokenIdsArg::Refuse => TokenIds::Refuse,
                    TokenIdsArg::Cl100kBase => TokenIds::Of(Vocabulary::Cl100kBase),
                    TokenIdsArg::O200kBase => TokenIds::Of(Vocabulary::O200kBase),
                    TokenIdsArg::Model => TokenIds::Model,
                },
                forward_deadline: Duration::from_secs(self.forward_deadline),
                cors_origins,
                pages: !self.no_ui,
            },
            max_connections: self.max_connections as usize,
            header_timeout: Duration::from_secs(self.header_timeout),
            shutdown_timeout: Duration::from_secs(self.shutdown_timeout),
            cpus,
            sources: self.hub.resolve()?,
            allow_model_changes: self.allow_model_changes,
        })
    }
}

impl FetchArgs {
    /// Checks everything that can be checked without a network.
    pub fn resolve(self) -> Result<Fetch, Error> {
        let mut sources = self.hub.resolve()?;
        if self.keep_nothing_else || !self.keep.is_empty() {
            let place =
                |text: &String| text.parse::<Place>().map_err(|error| bad("keep", text, error.to_string()));
            let keep = self.keep.iter().map(place).collect::<Result<Vec<_>, _>>()?;
            sources.cache = sources.cache.keeping(keep);
        }
        if let (Some(url), Some(sha256)) = (&self.url, &self.sha256) {
            let archive = Archive::new(url, sha256).map_err(Error::Archive)?;
            return Ok(Fetch { what: What::Archive(archive), sources });
        }
        let source = match &self.model {
            Some(text) => source("model", text)?,
            None => DefaultModel::get().source(),
        };
        let manifest = match self.manifest {
            Some(path) => Some(Manifest::read(&path).map_err(|source| Error::Manifest { path, source })?),
            None => DefaultModel::manifest(&source),
        };
        if self.from.is_some() && manifest.is_none() {
            return Err(bad("from", "DIR", "needs --manifest FILE, so that the files can be verified"));
        }
        Ok(Fetch { what: What::Repository { source, manifest, from: self.from }, sources })
    }
}

impl ConvertArgs {
    /// There is nothing to check but what reading the directory checks.
    pub fn resolve(self) -> Convert {
        Convert { directory: self.directory }
    }
}

impl HealthcheckArgs {
    /// Checks everything that can be checked without a network.
    pub fn resolve(self) -> Result<Healthcheck, Error> {
        let timeout = Duration::from_secs(self.timeout);
        let url = if let Some(text) = self.url {
            let url = Url::parse(&text).map_err(|error| bad("url", &text, format!("not a URL: {error}")))?;
            if url.scheme() != "http" {
                return Err(bad("url", &text, "has to begin with http://: `serve` speaks no other"));
            }
            url
        } else {
            let host = match self.host.as_str() {
                "0.0.0.0" => "127.0.0.1".to_owned(),
                "::" | "[::]" => "[::1]".to_owned(),
                // A bare IPv6 address, which a URL has in brackets.
                host if host.contains(':') && !host.starts_with('[') => format!("[{host}]"),
                host => host.to_owned(),
            };
            let text = format!("http://{host}:{}/health", self.port);
            Url::parse(&text).map_err(|error| bad("host", &self.host, error.to_string()))?
        };
        Ok(Healthcheck { url, timeout })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent_and_every_option_has_a_variable() {
        let command = Cli::command();
        command.clone().debug_assert();
        let serve = command.find_subcommand("serve").unwrap();
        for argument in serve.get_arguments().filter(|argument| argument.get_id() != "help") {
            assert!(argument.get_env().is_some(), "{} has no environment variable", argument.get_id());
            assert!(argument.get_help().is_some(), "{} has no help", argument.get_id());
        }
    }

    fn parse(arguments: &[&str]) -> Cli {
        let arguments = std::iter::once("embedding-server").chain(arguments.iter().copied());
        Cli::parse_with_default(arguments.map(Into::into))
    }

    fn serve(arguments: &[&str]) -> Result<Serve, Error> {
        match parse(arguments).command {
            Command::Serve(args) => args.resolve(),
            other => panic!("serve expected: {other:?}"),
        }
    }

    #[test]
    fn serve_is_the_default_subcommand() {
        assert_eq!(serve(&["--port", "1"]).unwrap().port, 1);
        assert_eq!(serve(&["serve", "--port", "2"]).unwrap().port, 2);
        assert!(matches!(parse(&["fetch"]).command, Command::Fetch(_)));
    }

    #[test]
    fn an_empty_variable_counts_as_unset() {
        const INNER: &str = "EMBEDDING_TEST_OF_EMPTY_VARIABLES";
        if std::env::var_os(INNER).is_none() {
            // Variables belong to the process, and other tests run in this one.
            let command = Cli::command();
            let arguments = command.get_subcommands().flat_map(clap::Command::get_arguments);
            let output = std::process::Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "config::tests::an_empty_variable_counts_as_unset"])
                .envs(arguments.filter_map(|argument| Some((argument.get_env()?, ""))))
                .envs([(INNER, "1"), ("https_proxy", "http://proxy:1"), ("http_proxy", "")])
                .output()
                .unwrap();
            assert!(output.status.success(), "{output:?}");
            return;
        }
        let config = serve(&[]).unwrap();
        assert_eq!((config.port, config.host.as_str(), config.models.len()), (9000, "0.0.0.0", 1));
        assert!(config.sources.cache.root().ends_with(".cache/.rustbert"), "{:?}", config.sources.cache);
        let hub = config.sources.hub.unwrap();
        assert_eq!(hub.endpoint.as_str(), "https://huggingface.co/");
        assert!(hub.token.is_none() && hub.ca_file.is_none());
        assert_eq!(hub.proxy.https.as_deref(), Some("http://proxy:1"));
        assert_eq!((hub.proxy.http, hub.proxy.no_proxy), (None, None));
        let Command::Fetch(args) = parse(&["fetch"]).command else { panic!("fetch expected") };
        assert!(args.resolve().is_ok());
        // A flag wins over the variable, with nothing too.
        assert_eq!(serve(&["--https-proxy", ""]).unwrap().sources.hub.unwrap().proxy.https, None);
    }

    #[test]
    fn the_default_model_is_pinned_by_commit_and_by_every_files_hash() {
        let config = serve(&[]).unwrap();
        let [Spec { name, origin: Origin::Repository(source), .. }] = config.models.as_slice() else {
            panic!("{:?}", config.models)
        };
        assert_eq!(name, "all-minilm-l6-v2");
        assert_eq!(source.repo.as_str(), "sentence-transformers/all-MiniLM-L6-v2");
        assert_eq!(source.commit().map(str::len), Some(40));
        assert!(DefaultModel::manifest(source).is_some());
        let other = super::source("model", "sentence-transformers/all-MiniLM-L6-v2@main").unwrap();
        assert!(DefaultModel::manifest(&other).is_none());
    }

    #[test]
    fn a_model_is_a_directory_or_a_repository_with_or_without_a_name() {
        let repository = |text: &str| Origin::Repository(source("model", text).unwrap());
        let directory = |text: &str| Origin::Directory(text.into());
        for (text, name, origin) in [
            ("/models/BGE-small", "bge-small", directory("/models/BGE-small")),
            ("./m=1", "m=1", directory("./m=1")),
            ("a=/models/x=y", "a", directory("/models/x=y")),
            ("a=~/m", "a", directory("/home/me/m")),
            ("BAAI/bge-small-en-v1.5", "bge-small-en-v1.5", repository("BAAI/bge-small-en-v1.5@main")),
            ("org/bge=BAAI/bge-small@refs/pr/1", "org/bge", repository("BAAI/bge-small@refs/pr/1")),
        ] {
            let got = spec(text, Some(Path::new("/home/me")));
            if name == "m=1" {
                assert!(got.unwrap_err().to_string().contains("write NAME=./m=1"));
                continue;
            }
            assert_eq!(got.unwrap(), Spec::new(name.into(), origin), "{text}");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (arguments, message) in [
            (
                vec!["--model", "a b=x/y"],
                "--model a b=x/y: the name \"a b\" must be 1 to 128 of a-z, A-Z, 0-9 and -_./: (write NAME=x/y)",
            ),
            (
                vec!["--model", "a=x/y", "--model", "a=/z"],
                "--model a: two models have this name; give one of them another",
            ),
            (
                vec!["--cors-origins", "example.com/x"],
                "--cors-origins example.com/x: not an origin (https://example.com, without a path)",
            ),
            (
                vec!["--hf-endpoint", "nowhere"],
                "--hf-endpoint nowhere: not a URL: relative URL without a base",
            ),
        ] {
            assert_eq!(serve(&arguments).unwrap_err().to_string(), message);
        }
    }

    #[test]
    fn a_model_answers_to_its_repository_and_no_name_leads_to_two() {
        let aliases = |arguments: &[&str]| -> Vec<Vec<String>> {
            serve(arguments).unwrap().models.into_iter().map(|model| model.aliases).collect()
        };
        assert_eq!(
            aliases(&["--model", "a=x/y", "--alias", "text-embedding-3-small=a"]),
            [["text-embedding-3-small", "x/y"]]
        );
        // Of two revisions neither has the repository's name.
        assert_eq!(aliases(&["--model", "a=x/y@v1", "--model", "b=x/y@v2"]), [[""; 0], []]);
        assert_eq!(aliases(&["--model", "a=x/y", "--model", "x/y=v/w"]), [vec![], vec!["v/w"]]);
        for (alias, problem) in [
            ("b=a", "the name is taken; choose another"),
            ("=a", "write ALIAS=MODEL"),
            ("c=d", "no model is called \"d\"; served: a, b"),
            ("c", "write ALIAS=MODEL"),
        ] {
            let error = serve(&["--model", "a=/m", "--model", "b=/n", "--alias", alias]).unwrap_err();
            assert_eq!(error.to_string(), format!("--alias {alias}: {problem}"));
        }
    }

    #[test]
    fn a_fetch_is_of_a_repository_or_of_an_archive() {
        let fetch = |arguments: &[&str]| {
            let all = std::iter::once("fetch").chain(arguments.iter().copied());
            match parse(&all.collect::<Vec<_>>()).command {
                Command::Fetch(args) => args.resolve(),
                other => panic!("fetch expected: {other:?}"),
            }
        };
        let (commit, sha256) = ("01".repeat(20), "ab".repeat(32));
        let caches = ["--cache-dir", "/models", "--hf-cache", "/hf"];
        let keep = format!("org/name@{commit}");
        let config = fetch(&[["org/name", "--keep", &keep].as_slice(), &caches].concat()).unwrap();
        let What::Repository { source, .. } = &config.what else { panic!("{config:?}") };
        assert_eq!(source.repo.as_str(), "org/name");
        assert_eq!(
            config.sources.cache,
            Cache::new("/models").reading("/hf").keeping([format!("org/name@{commit}").parse().unwrap()])
        );
        let cache = || Cache::new("/models");
        let plain = ["--cache-dir", "/models", "--hf-cache", ""];
        let config = fetch(&[["org/name"].as_slice(), &plain, &["--keep-nothing-else"]].concat()).unwrap();
        assert_eq!(config.sources.cache, cache().keeping([]));
        let archive = ["--url", "https://host.test/m.tgz?secret", "--sha256", &sha256];
        let config = fetch(&[archive.as_slice(), &plain].concat()).unwrap();
        let What::Archive(archive) = &config.what else { panic!("{config:?}") };
        assert_eq!((archive.name().as_str(), archive.sha256()), ("https://host.test/m.tgz", sha256.as_str()));
        assert_eq!(config.sources.cache, cache());
        assert!(!format!("{config:?}").contains("secret"));
        for (arguments, message) in [
            (
                ["--url", "ftp://host.test/m.tgz", "--sha256", &sha256],
                "using the address of --url: it has to start with https:// or http://",
            ),
            (
                ["--url", "https://me:secret@host.test/m.tgz", "--sha256", &sha256],
                "using the address of --url: it has a user name or password in it, which would be seen by others",
            ),
            (
                ["--url", "https://host.test/m.tgz", "--sha256", "ab"],
                "using --sha256 ab: it has to be 64 hexadecimal digits, as `sha256sum FILE` prints them",
            ),
            (
                ["org/name", "--keep", "org/name@main", "--offline"],
                "--keep org/name@main: write REPOSITORY@COMMIT with a full commit (40 hexadecimal digits in \
                 lower case), or the path of an archive (…/archives/SHA256)",
            ),
        ] {
            assert_eq!(fetch(&arguments).unwrap_err().to_string(), message);
        }
        for arguments in [
            vec!["fetch", "--url", "https://host.test/m.tgz"],
            vec!["fetch", "--sha256", &sha256],
            vec!["fetch", "org/name", "--url", "https://host.test/m.tgz", "--sha256", &sha256],
        ] {
            let all = std::iter::once("embedding-server").chain(arguments.iter().copied());
            assert!(Cli::try_parse_from(all).is_err(), "{arguments:?}");
        }
    }

    #[test]
    fn the_other_cache_is_where_its_libraries_look_for_it() {
        let home = Some(Path::new("/home/me"));
        for (given, variables, expected) in [
            (None, vec![], Some("/home/me/.cache/huggingface/hub")),
            (None, vec![("XDG_CACHE_HOME", "/xdg")], Some("/xdg/huggingface/hub")),
            (None, vec![("XDG_CACHE_HOME", "/xdg"), ("HF_HOME", "/hf")], Some("/hf/hub")),
            (None, vec![("HF_HOME", "~/hf")], Some("/home/me/hf/hub")),
            (None, vec![("HF_HOME", "/hf"), ("HUGGINGFACE_HUB_CACHE", "/old")], Some("/old")),
            (Some("/given"), vec![("HF_HOME", "/hf"), ("HUGGINGFACE_HUB_CACHE", "/old")], Some("/given")),
            (Some("~/given"), vec![], Some("/home/me/given")),
            (Some("~other/given"), vec![], Some("~other/given")),
            (Some(""), vec![("HF_HOME", "/hf")], None),
        ] {
            let variable = |name: &str| {
                variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into())
            };
            let found = hf_cache(given.map(Into::into), variable, home);
            assert_eq!(found.as_deref(), expected.map(Path::new), "{given:?} {variables:?}");
        }
        assert_eq!(hf_cache(None, |_| None, None), None);
    }

    #[test]
    fn a_health_check_asks_where_serve_listens() {
        let resolve = |arguments: &[&str]| {
            let all = std::iter::once("healthcheck").chain(arguments.iter().copied());
            match parse(&all.collect::<Vec<_>>()).command {
                Command::Healthcheck(args) => args.resolve(),
                other => panic!("healthcheck expected: {other:?}"),
            }
        };
        for (arguments, url) in [
            (vec![], "http://127.0.0.1:9000/health"),
            (vec!["--port", "3000"], "http://127.0.0.1:3000/health"),
            (vec!["--host", "::"], "http://[::1]:9000/health"),
            (vec!["--host", "fd00::1"], "http://[fd00::1]:9000/health"),
            (vec!["--host", "localhost", "--port", "80"], "http://localhost/health"),
            (vec!["--url", "http://host.test/livez"], "http://host.test/livez"),
        ] {
            assert_eq!(resolve(&arguments).unwrap().url.as_str(), url, "{arguments:?}");
        }
        for (arguments, message) in [
            (["--url", "host"], "--url host: not a URL: relative URL without a base"),
            (
                ["--url", "https://host.test/"],
                "--url https://host.test/: has to begin with http://: `serve` speaks no other",
            ),
            (["--host", "a b"], "--host a b: invalid international domain name"),
        ] {
            assert_eq!(resolve(&arguments).unwrap_err().to_string(), message);
        }
    }

    #[test]
    fn threads_follow_the_cpu_limit_unless_told_otherwise() {
        for (workers, per_worker, cpus, expected) in [
            (0, 0, 4, (4, 1)),
            (2, 0, 4, (2, 2)),
            (0, 2, 4, (2, 2)),
            (3, 5, 4, (3, 5)),
            (9, 0, 4, (9, 1)),
            (0, 9, 4, (1, 9)),
        ] {
            let threads = threads(workers, per_worker, cpus);
            assert_eq!((threads.workers, threads.per_worker), expected, "{workers} {per_worker} {cpus}");
        }
    }

    #[test]
    fn the_token_is_never_shown() {
        let cli = parse(&["--hf-token", "hf_secret"]);
        assert!(!format!("{cli:?}").contains("hf_secret"));
    }
}
