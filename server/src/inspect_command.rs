//! The `inspect` subcommand: what a model is, and what serving it here would mean.

use anyhow::Context;

use crate::config::Inspect;
use crate::fetch::{self, Glimpse, Source};
use crate::fetch_command::block_on;
use crate::inspect::{self, Facts, Subject};
use crate::model::Machine;
use crate::models::{Origin, one_line};

/// Looks at the model's files and at the machine, and says what is so. What `serve` would refuse is an error.
pub fn run(config: &Inspect) -> anyhow::Result<Facts> {
    let machine = Machine::for_choice(config.preference);
    match &config.origin {
        Origin::Directory(path) => {
            let subject = Subject::of_directory(path);
            Ok(inspect::facts(&subject, config.preference, machine)?)
        }
        Origin::Repository(source) => {
            let glimpse = look(config, source)?;
            let subject = Subject::of_repository(source, &glimpse);
            inspect::facts(&subject, config.preference, machine).map_err(|error| {
                if !glimpse.is_temporary() {
                    return error.into();
                }
                // Nobody knows the directory, and it goes.
                let directory = glimpse.directory.display().to_string();
                anyhow::anyhow!(one_line(&error).replace(&directory, &subject.name))
            })
        }
    }
}

fn look(config: &Inspect, source: &Source) -> anyhow::Result<Glimpse> {
    let sources = &config.sources;
    let mut progress = fetch::stderr_progress();
    let looking = fetch::glimpse(&sources.cache, source, sources.hub.as_ref(), &mut *progress);
    block_on(looking)??.with_context(|| {
        format!(
            "{}@{} is not in the cache, and --offline forbids to ask the hub",
            source.repo,
            source.revision()
        )
    })
}
