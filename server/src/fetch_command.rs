//! The `fetch` subcommand: a model into the cache, and what it is.

use anyhow::Context;
use serde::Serialize;

use crate::config::Fetch;
use crate::fetch::{self, Fetched};
use crate::model::Directory;

/// What was fetched; printed as one line of JSON.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// The repository.
    pub repo: String,
    /// What was asked for.
    pub revision: String,
    /// The commit it stands for.
    pub commit: String,
    /// Where it is.
    pub directory: String,
    /// How many files it has.
    pub files: usize,
    /// Their size together.
    pub bytes: u64,
    /// How much of that came over the network now.
    pub downloaded_bytes: u64,
    /// The architecture's name.
    pub architecture: &'static str,
    /// Length of the vectors.
    pub dimensions: usize,
    /// The longest input in tokens.
    pub max_tokens: usize,
}

/// Fetches, reads the model's configuration, and sums up. A repository that the server
/// could not serve is an error here already.
pub fn run(config: &Fetch) -> anyhow::Result<Summary> {
    let fetched = bring(config)?;
    let directory = Directory::read(&fetched.directory)?;
    Ok(Summary {
        repo: fetched.repo.to_string(),
        revision: fetched.revision,
        commit: fetched.commit,
        directory: fetched.directory.display().to_string(),
        files: fetched.files,
        bytes: fetched.bytes,
        downloaded_bytes: fetched.downloaded_bytes,
        architecture: directory.encoder.architecture(),
        dimensions: directory.dimensions(),
        max_tokens: directory.max_tokens,
    })
}

fn bring(config: &Fetch) -> anyhow::Result<Fetched> {
    let Fetch { source, manifest, from, sources } = config;
    if let (Some(from), Some(manifest)) = (from, manifest) {
        return Ok(fetch::import(&sources.cache, source, from, manifest)?);
    }
    let Some(hub) = &sources.hub else {
        return sources.cache.lookup(source, manifest.as_ref())?.with_context(|| {
            format!(
                "{}@{} is not in the cache, and --offline forbids to fetch it",
                source.repo,
                source.revision()
            )
        });
    };
    let mut progress = fetch::stderr_progress();
    Ok(block_on(fetch::fetch(&sources.cache, source, hub, manifest.as_ref(), &mut *progress))??)
}

/// Runs `future` to its end, and waits for nothing that it has left behind: a name that
/// is being looked up takes as long as the system's resolver likes, on a thread that
/// cannot be stopped.
fn block_on<T>(future: impl Future<Output = T>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start a runtime for the download")?;
    let output = runtime.block_on(future);
    runtime.shutdown_background();
    Ok(output)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn the_end_does_not_wait_for_a_resolver_that_is_silent() {
        let begun = Instant::now();
        let given_up = block_on(async {
            // As a look-up of a name is run.
            let silent = tokio::task::spawn_blocking(|| std::thread::sleep(Duration::from_secs(20)));
            tokio::time::timeout(Duration::from_millis(50), silent).await.is_err()
        });
        assert!(given_up.unwrap());
        assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    }
}
