//! The `inspect` subcommand: what a model is, and what serving it here would mean.

use anyhow::{Context, bail};

use crate::config::Inspect;
use crate::fetch::{self, Glimpse, Source};
use crate::fetch_command::block_on;
use crate::inspect::{self, Facts, Subject};
use crate::model::Machine;
use crate::models::{Origin, one_line};
use crate::shutdown;

/// Looks at the model's files and at the machine, and says what is so. What `serve` would refuse is an error.
pub fn run(config: &Inspect) -> anyhow::Result<Facts> {
    let machine = Machine::for_choice(config.preference);
    match &config.origin {
        Origin::Directory(path) => {
            let subject = Subject::of_directory(path);
            Ok(inspect::facts(&subject, config.preference, machine)?)
        }
        Origin::Repository(source) => block_on(async {
            tokio::select! {
                told = of_repository(config, source, machine) => told,
                // What is dropped here removes its temporary directory; a signal's own end would not.
                signal = shutdown::requested() => {
                    let signal = signal.context("waiting for signals")?;
                    bail!("stopped by {signal}, before anything was told of {}@{}", source.repo, source.revision())
                }
            }
        })?,
    }
}

async fn of_repository(config: &Inspect, source: &Source, machine: Machine) -> anyhow::Result<Facts> {
    let glimpse = look(config, source).await?;
    let subject = Subject::of_repository(source, &glimpse);
    let (name, preference) = (subject.name.clone(), config.preference);
    // On another thread, so that a signal is still heard.
    let facts = tokio::task::spawn_blocking(move || inspect::facts(&subject, preference, machine)).await;
    let facts = facts.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()));
    facts.map_err(|error| {
        if !glimpse.is_temporary() {
            return error.into();
        }
        // Nobody knows the directory, and it goes.
        let directory = glimpse.directory.display().to_string();
        anyhow::anyhow!(one_line(&error).replace(&directory, &name))
    })
}

async fn look(config: &Inspect, source: &Source) -> anyhow::Result<Glimpse> {
    let sources = &config.sources;
    let mut progress = fetch::stderr_progress();
    let looking = fetch::glimpse(&sources.cache, source, sources.hub.as_ref(), &mut *progress);
    looking.await?.with_context(|| {
        format!(
            "{}@{} is not in the cache, and --offline forbids to ask the hub",
            source.repo,
            source.revision()
        )
    })
}
