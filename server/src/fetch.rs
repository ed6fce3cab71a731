//! Brings a model from a hub, or as an archive from any address, into the cache. The only
//! module that opens outbound connections.
//!
//! ```text
//!  Source ──► hub: file list ──► select ──► download ──► verify ──► rename
//!             (commit, hashes)              .partial-…              {commit}/
//! ```
//!
//! # Flow
//! [`fetch`] resolves the revision to a commit, chooses the files that the
//! server needs, downloads them one after the other into a partial directory,
//! and gives that its final name when every file is verified. Weights that there
//! are only as pickles are [converted](crate::convert) as they arrive. What the cache
//! of Hugging Face's own libraries has ([`Cache::reading`]) is taken from there instead.
//! [`import`] does the same from a local directory, and [`fetch_archive`] from a gzipped
//! tar archive. [`fetch_offline`] does with what is on this machine, and [`Cache::find`]
//! only looks. [`glimpse()`] brings what is small into a temporary directory.
//!
//! # Guarantees
//! - A final directory is complete: each file, or the pickle that it was made of, had
//!   the hash that the hub gave for the commit, and that of the [`Manifest`] if there is one.
//! - Interrupted at any point, the next fetch goes on where this one stopped.
//! - Two processes that fetch the same commit download it once.
//! - The token goes to the endpoint's origin only; neither it nor a signed
//!   address is in any error or log line.
//! - What is fetched takes the place of nothing, unless the cache was told what to keep
//!   ([`Cache::keeping`]).
//! - A commit that is here needs no network. A branch or tag is resolved anew,
//!   or stands for what it last did when the hub does not answer. All of that goes for
//!   what the other cache has all of by the hub's list or by the manifest. What it has all of
//!   by its own notes serves while nobody can be asked, and is found by no look-up here.
//!
//! # Assumptions
//! The cache is on a file system with advisory locks and atomic renames, and
//! nobody changes a final directory.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use std::collections::BTreeMap;

mod archive;
mod arrivals;
mod bring;
mod cache;
mod client;
mod digest;
mod download;
mod error;
mod glimpse;
mod hf_cache;
mod hub;
mod list;
mod manifest;
mod place;
mod progress;
mod retry;
mod room;
mod select;
mod source;
mod tarball;

pub use archive::{Archive, fetch_archive};
pub use cache::Cache;
pub use error::Error;
pub use glimpse::{Found, Glimpse, glimpse};
pub use hub::{Hub, ProxySettings, Token};
pub use manifest::Manifest;
pub use place::Place;
pub use progress::{Bar, Log, Progress, stderr_progress};
pub use source::{Repo, Source};

use arrivals::Arrivals;
use bring::{Supply, bring};
use cache::{Kept, Record};
use client::Client;
use digest::{Expected, Hasher};
use hf_cache::Snapshot;
use list::Wanted;
use select::Chosen;

/// A model that is here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetched {
    /// Its files.
    pub directory: PathBuf,
    /// The repository, or the archive's address without its query.
    pub repo: String,
    /// The revision that was asked for; of an archive, its sha256.
    pub revision: String,
    /// The commit that the revision stands for; of an archive, its sha256.
    pub commit: String,
    /// How many files.
    pub files: usize,
    /// Their sizes together.
    pub bytes: u64,
    /// How many bytes of files came over the network for this call.
    pub downloaded_bytes: u64,
}

impl Fetched {
    fn of(source: &Source, directory: PathBuf, record: &Record, downloaded_bytes: u64) -> Self {
        Self {
            directory,
            repo: source.repo.to_string(),
            revision: source.revision().to_owned(),
            commit: record.commit.clone(),
            files: record.files.len(),
            bytes: record.files.values().map(|kept| kept.size).sum(),
            downloaded_bytes,
        }
    }

    fn of_archive(archive: &Archive, directory: PathBuf, record: &Record, downloaded_bytes: u64) -> Self {
        Self {
            directory,
            repo: archive.name(),
            revision: archive.sha256().to_owned(),
            commit: record.commit.clone(),
            files: record.files.len(),
            bytes: record.files.values().map(|kept| kept.size).sum(),
            downloaded_bytes,
        }
    }
}

/// Makes sure that `source` is in the cache, from the hub where needed.
///
/// Safe to drop at any point, and to run in several processes at once.
pub async fn fetch(
    cache: &Cache,
    source: &Source,
    hub: &Hub,
    manifest: Option<&Manifest>,
    progress: &mut dyn Progress,
) -> Result<Fetched, Error> {
    let fetched = find_or_download(cache, source, hub, manifest, progress).await?;
    progress.finished(&fetched);
    Ok(fetched)
}

async fn find_or_download(
    cache: &Cache,
    source: &Source,
    hub: &Hub,
    manifest: Option<&Manifest>,
    progress: &mut dyn Progress,
) -> Result<Fetched, Error> {
    if let Some(commit) = source.commit()
        && let Some(found) = cache.lookup(source, manifest)?
    {
        cache.make_room(&Place::commit(&source.repo, commit));
        return Ok(found);
    }
    let client = Client::new(hub)?;
    let list = match client.list(source, hub, progress).await {
        Ok(list) => list,
        Err(error) => return last_known(cache, source, manifest, error, progress).await,
    };
    if let Some(manifest) = manifest {
        manifest.check_exists(source.repo.as_str(), |file| list.has(file))?;
    }
    let pinned = Source::new(source.repo.clone(), &list.commit)?;
    cache.make_room(&Place::commit(&pinned.repo, &list.commit));
    let mut fetched = if let Some(found) = cache.lookup(&pinned, manifest)? {
        found
    } else {
        let snapshot = cache.snapshot(&pinned.repo, &list.commit);
        let supply = Supply { hub: Some((&client, hub)), snapshot };
        bring(cache, &pinned, &list, supply, manifest, progress).await?
    };
    // The model is here; the note is for the day that the hub does not answer.
    if let Err(error) = cache.write_ref(source, &list.commit) {
        tracing::warn!(
            error = &error as &dyn std::error::Error,
            repo = %source.repo,
            revision = source.revision(),
            commit = list.commit,
            "cannot note which commit the revision stands for"
        );
    }
    source.revision().clone_into(&mut fetched.revision);
    Ok(fetched)
}

/// What a branch or tag last stood for, when nobody can say what it does now; or a commit that only another cache has.
async fn last_known(
    cache: &Cache,
    source: &Source,
    manifest: Option<&Manifest>,
    error: Error,
    progress: &mut dyn Progress,
) -> Result<Fetched, Error> {
    if error.is_passing()
        && let Some(found) = find(cache, source, manifest, progress).await?
    {
        tracing::warn!(
            error = &error as &dyn std::error::Error,
            repo = %source.repo,
            revision = source.revision(),
            commit = found.commit,
            "hub does not answer, using the commit that the revision last stood for"
        );
        return Ok(found);
    }
    Err(error)
}

/// What is on this machine of `source`: in the cache, or else in that of Hugging Face's own libraries, from where it is
/// taken into the cache. Asks nobody.
pub async fn fetch_offline(
    cache: &Cache,
    source: &Source,
    manifest: Option<&Manifest>,
    progress: &mut dyn Progress,
) -> Result<Option<Fetched>, Error> {
    let found = find(cache, source, manifest, progress).await?;
    if let Some(found) = &found {
        progress.finished(found);
    }
    Ok(found)
}

async fn find(
    cache: &Cache,
    source: &Source,
    manifest: Option<&Manifest>,
    progress: &mut dyn Progress,
) -> Result<Option<Fetched>, Error> {
    if let Some(found) = cache.lookup(source, manifest)? {
        return Ok(Some(found));
    }
    let Some(snapshot) = cache.snapshot_of(source) else { return Ok(None) };
    Ok(hf_cache::if_of_use(source, take_snapshot(cache, source, snapshot, manifest, progress).await))
}

async fn take_snapshot(
    cache: &Cache,
    source: &Source,
    snapshot: Snapshot,
    manifest: Option<&Manifest>,
    progress: &mut dyn Progress,
) -> Result<Fetched, Error> {
    let pinned = Source::new(source.repo.clone(), snapshot.commit())?;
    let mut fetched = if let Some(found) = cache.lookup(&pinned, manifest)? {
        found
    } else {
        let list = snapshot.list()?;
        if let Some(manifest) = manifest {
            manifest.check_exists("the Hugging Face cache", |file| list.has(file))?;
        }
        let supply = Supply { hub: None, snapshot: Some(snapshot) };
        bring(cache, &pinned, &list, supply, manifest, progress).await?
    };
    source.revision().clone_into(&mut fetched.revision);
    Ok(fetched)
}

/// Which files to take of a repository, whose leads ([`select::leads`]) are in `directory`.
fn choose(repo: &Repo, directory: &Path, has: impl Fn(&str) -> bool) -> Result<Chosen, Error> {
    let read = |lead: &'static str| {
        let path = directory.join(lead);
        Ok((lead, fs::read(&path).map_err(Error::io("reading", &path))?))
    };
    let leads = select::leads(&has).into_iter().map(read).collect::<Result<BTreeMap<_, _>, Error>>()?;
    select::files(repo.as_str(), has, |name| leads.get(name).map(Vec::as_slice))
}

/// Runs on a thread that may block, and runs on there if the caller no longer waits.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
}

/// Takes a commit from a local directory instead of a hub: for machines
/// without a network. The manifest says what the commit's files are.
///
/// Blocks while it copies.
pub fn import(cache: &Cache, source: &Source, from: &Path, manifest: &Manifest) -> Result<Fetched, Error> {
    let repo = &source.repo;
    let commit = source.commit().ok_or_else(|| Error::NotACommit {
        repo: repo.to_string(),
        revision: source.revision().to_owned(),
    })?;
    if let Some(found) = cache.lookup(source, Some(manifest))? {
        return Ok(found);
    }
    let has = |file: &str| from.join(file).is_file();
    manifest.check_exists(&from.display().to_string(), has)?;
    let place = Place::commit(repo, commit);
    cache.make_room(&place);
    let partial = cache.claim_blocking(&place)?;
    if let Some(found) = cache.lookup(source, Some(manifest))? {
        return Ok(found);
    }
    let take = |file: &str| copy(from, partial.directory(), file, manifest);
    for lead in select::leads(has) {
        take(lead)?;
    }
    let chosen = choose(repo, partial.directory(), has)?;
    let mut arrivals = Arrivals::new(partial.directory(), repo.as_str(), &chosen);
    let mut missing = Vec::new();
    for file in &chosen.files {
        let expected = Expected::Sha256(manifest.sha256(file)?.to_owned());
        let size = fs::metadata(from.join(file)).map_or(0, |found| found.len());
        let wanted = Wanted { path: file.clone(), size: Some(size), expected };
        if !arrivals.has_converted_blocking(&wanted)? {
            missing.push((file.as_str(), size, false));
        }
    }
    room::check_space(partial.directory(), arrivals.room(missing.iter().copied()))?;
    for (file, ..) in missing {
        let kept = take(file)?;
        arrivals.add_blocking(file, kept)?;
    }
    let files = arrivals.into_files()?;
    let record = Record { repo: repo.to_string(), commit: commit.to_owned(), files };
    let directory = partial.finish(&record)?;
    Ok(Fetched::of(source, directory, &record, 0))
}

fn copy(from: &Path, to: &Path, file: &str, manifest: &Manifest) -> Result<Kept, Error> {
    let (from, to) = (from.join(file), to.join(file));
    if let Some(folder) = to.parent() {
        fs::create_dir_all(folder).map_err(Error::io("creating", folder))?;
    }
    let mut source = File::open(&from).map_err(Error::io("opening", &from))?;
    // What an earlier run left may be a link to another cache's file, which must not be written to.
    if to.exists() {
        fs::remove_file(&to).map_err(Error::io("removing", &to))?;
    }
    let mut target = File::create_new(&to).map_err(Error::io("creating", &to))?;
    let mut hasher = Hasher::new(0, &Expected::Unknown);
    let mut buffer = vec![0; 256 * 1024];
    loop {
        let n = match source.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(Error::io("reading", &from)(error)),
        };
        hasher.update(&buffer[..n]);
        target.write_all(&buffer[..n]).map_err(Error::io("writing", &to))?;
    }
    let sums = hasher.sums();
    if let Err(error) = manifest.check(file, &sums.sha256) {
        fs::remove_file(&to).map_err(Error::io("removing", &to))?;
        return Err(error);
    }
    Ok(sums.into())
}
