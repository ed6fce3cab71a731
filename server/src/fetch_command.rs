//! The `fetch` subcommand: a model into the cache, and what it is.
//!
//! Who runs it as a job hears of the end in three ways: by the exit code ([`exit_code`]), by
//! the standard streams, and by a file ([`tell`]).

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write as _};
use std::path::Path;

use anyhow::Context;
use serde::Serialize;

use crate::config::{Fetch, What};
use crate::fetch::{self, Fetched};
use crate::model::{Directory, inventory};
use crate::models::one_line;

/// `EX_UNAVAILABLE` of sysexits.h: the hub cannot be reached, so something else may
/// be tried; other failures are not cured by that.
const UNREACHABLE: i32 = 69;
/// `EX_NOPERM` of sysexits.h: the hub refuses, and will refuse again.
const REFUSED: i32 = 77;
/// Kubernetes reads 4096 bytes of a termination message.
const MAX_FAILURE: usize = 4000;
/// How many bytes of prompts, as JSON, fit in there beside the rest.
const MOST_PROMPTS: usize = 2000;

/// What was fetched; printed as one line of JSON.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// The repository, or the archive's address without its query.
    pub repo: String,
    /// What was asked for; of an archive, its sha256.
    pub revision: String,
    /// The commit it stands for; of an archive, its sha256.
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
    /// Whether the model divides its vectors by their norm.
    pub normalizes: bool,
    /// The fingerprint of the files, of which that of the vector space is made with the prompts: the
    /// server may be told others.
    pub space_files: String,
    /// The prompts in the files by name; none where they would not fit into a termination message.
    pub prompts: Option<BTreeMap<String, String>>,
    /// The name of the prompt of texts of which nothing is said.
    pub default_prompt: Option<String>,
}

/// Fetches, reads the model's configuration, and sums up. A repository that the server
/// could not serve is an error here already.
pub fn run(config: &Fetch) -> anyhow::Result<Summary> {
    let fetched = bring(config)?;
    let directory = Directory::read(&fetched.directory)?;
    Ok(Summary {
        repo: fetched.repo,
        revision: fetched.revision,
        commit: fetched.commit,
        directory: fetched.directory.display().to_string(),
        files: fetched.files,
        bytes: fetched.bytes,
        downloaded_bytes: fetched.downloaded_bytes,
        architecture: directory.encoder.architecture,
        dimensions: directory.dimensions(),
        max_tokens: directory.max_tokens,
        normalizes: directory.normalizes(),
        space_files: directory.fingerprint(inventory::tensors(&directory)?)?.to_string(),
        prompts: Some(directory.prompts).filter(|prompts| size(prompts) <= MOST_PROMPTS),
        default_prompt: directory.default_prompt_name,
    })
}

/// Bytes of all prompts together, as they are written.
fn size(prompts: &BTreeMap<String, String>) -> usize {
    serde_json::to_string(prompts).map_or(usize::MAX, |json| json.len())
}

fn bring(config: &Fetch) -> anyhow::Result<Fetched> {
    let Fetch { what, sources } = config;
    let (source, manifest, from) = match what {
        What::Repository { source, manifest, from } => (source, manifest, from),
        What::Archive(archive) => {
            let Some(hub) = &sources.hub else {
                return sources.cache.lookup_archive(archive)?.with_context(|| {
                    format!("{} is not in the cache, and --offline forbids to fetch it", archive.name())
                });
            };
            let mut progress = fetch::stderr_progress();
            let fetching = fetch::fetch_archive(&sources.cache, archive, hub, &mut *progress);
            return Ok(block_on(fetching)??);
        }
    };
    if let (Some(from), Some(manifest)) = (from, manifest) {
        return Ok(fetch::import(&sources.cache, source, from, manifest)?);
    }
    let mut progress = fetch::stderr_progress();
    let Some(hub) = &sources.hub else {
        let found = fetch::fetch_offline(&sources.cache, source, manifest.as_ref(), &mut *progress);
        return block_on(found)??.with_context(|| {
            format!(
                "{}@{} is not in the cache, and --offline forbids to fetch it",
                source.repo,
                source.revision()
            )
        });
    };
    Ok(block_on(fetch::fetch(&sources.cache, source, hub, manifest.as_ref(), &mut *progress))??)
}

/// The code that says what kind of failure this is.
pub fn exit_code(error: &anyhow::Error) -> i32 {
    match error.downcast_ref::<fetch::Error>() {
        Some(error) if error.is_unreachable() => UNREACHABLE,
        Some(error) if error.is_refused() => REFUSED,
        _ => 1,
    }
}

/// A failure as it is told on standard error.
pub fn failure(error: &anyhow::Error) -> String {
    format!("error: {}", one_line(&**error))
}

/// Writes the summary, or how it failed, to `file` too.
pub fn tell(file: Option<&Path>, outcome: anyhow::Result<String>) -> anyhow::Result<()> {
    let Some(file) = file else { return outcome.map(drop) };
    match outcome {
        Ok(summary) => write(file, &summary).with_context(|| {
            format!("writing the summary to {}; the model itself is in the cache", file.display())
        }),
        Err(error) => {
            let line = failure(&error);
            if let Err(why) = write(file, &line[..line.floor_char_boundary(MAX_FAILURE)]) {
                tracing::warn!(
                    error = &why as &dyn std::error::Error,
                    file = %file.display(),
                    "cannot write what went wrong"
                );
            }
            Err(error)
        }
    }
}

/// Into the file itself: in a container it is mounted, and cannot be replaced.
fn write(path: &Path, text: &str) -> io::Result<()> {
    File::create(path)?.write_all(text.as_bytes())
}

/// Runs `future` to its end, and waits for nothing that it has left behind: a name that
/// is being looked up takes as long as the system's resolver likes, on a thread that
/// cannot be stopped.
pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> anyhow::Result<T> {
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
    fn a_failure_is_cut_where_a_character_ends() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("termination-log");
        std::fs::write(&file, "x".repeat(10_000)).unwrap();
        // The second of each pair of bytes begins no character.
        let error = tell(Some(&file), Err(anyhow::anyhow!("ä".repeat(3000)))).unwrap_err();
        assert_eq!(error.to_string(), "ä".repeat(3000));
        let written = std::fs::read_to_string(&file).unwrap();
        assert_eq!(written, format!("error: {}", "ä".repeat(1996)));
        tell(Some(&file), Ok("{}".to_owned())).unwrap();
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "{}");
    }

    #[test]
    fn a_file_that_cannot_be_written_spoils_a_success_and_no_failure() {
        let nowhere = Path::new("/not/there/termination-log");
        let error = tell(Some(nowhere), Ok("{}".to_owned())).unwrap_err();
        assert_eq!(
            format!("{error:#}"),
            "writing the summary to /not/there/termination-log; the model itself is in the cache: No such \
             file or directory (os error 2)"
        );
        let error = tell(Some(nowhere), Err(anyhow::anyhow!("the cause"))).unwrap_err();
        assert_eq!(error.to_string(), "the cause");
        assert!(tell(None, Ok("{}".to_owned())).is_ok());
    }

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
