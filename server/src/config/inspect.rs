//! Options of `inspect`.

use clap::Args;

use super::compute::ComputeArgs;
use super::{DefaultModel, Error, HubArgs, LogArgs, Sources, bad};
use crate::model::Preference;
use crate::models::Origin;

/// Options of `inspect`.
#[derive(Debug, Args)]
#[command(
    after_help = "What is printed is what `serve` would tell at /models, told by the same code from the model's files: \
                  its settings, and the names, shapes and dtypes of its tensors. No weights are read. A model that \
                  serve would refuse for these is refused here, with the same words; that numbers are finite is \
                  seen by serve alone. Of a repository that is not in the cache, a few small files are fetched and kept \
                  nowhere: the settings, the tokenizer, and the first bytes of the weights.\n\n\
                  Examples:\n  \
                  embedding-server inspect BAAI/bge-small-en-v1.5\n  \
                  embedding-server inspect ./my-model --dtype float32\n  \
                  embedding-server inspect /models/e5 --json | jq .memory.total\n\n\
                  Exit codes: 0 serve would take the model; 69 the hub cannot be reached; 77 the hub refuses, or has no \
                  such repository or revision; 2 the command line is wrong; 1 anything else, and standard error says \
                  what."
)]
pub struct InspectArgs {
    /// A directory, which begins with `/`, `.` or `~`, or a repository of the hub, with a commit, tag or branch
    /// [default: the default model at its fixed commit; REVISION's default: main]
    #[arg(value_name = "DIRECTORY or REPOSITORY[@REVISION]")]
    model: Option<String>,
    /// Print one line of JSON instead of text.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    compute: ComputeArgs,
    #[command(flatten, next_help_heading = "Hub")]
    hub: HubArgs,
    /// How logs are written.
    #[command(flatten, next_help_heading = "Logging")]
    pub logging: LogArgs,
}

/// What `inspect` needs.
#[derive(Debug)]
pub struct Inspect {
    /// The model.
    pub origin: Origin,
    /// Whether the facts are printed as JSON.
    pub json: bool,
    /// How it is to be computed.
    pub preference: Preference,
    /// Where models come from.
    pub sources: Sources,
}

impl InspectArgs {
    /// Checks everything that can be checked without I/O.
    pub fn resolve(self) -> Result<Inspect, Error> {
        let origin = match &self.model {
            Some(text) => Origin::parse(text, std::env::home_dir().as_deref())
                .map_err(|problem| bad("model", text, problem))?,
            None => Origin::Repository(DefaultModel::get().source()),
        };
        let preference = self.compute.preference();
        Ok(Inspect { origin, json: self.json, preference, sources: self.hub.resolve()? })
    }
}
