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
//! are only as pickles are [converted](crate::convert) as they arrive. [`import`] does
//! the same from a local directory, and [`fetch_archive`] from a gzipped tar archive.
//! [`Cache::find`] only looks.
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
//!   or stands for what it last did when the hub does not answer.
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
mod cache;
mod client;
mod digest;
mod download;
mod error;
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
pub use hub::{Hub, ProxySettings, Token};
pub use manifest::Manifest;
pub use place::Place;
pub use progress::{Bar, Log, Progress, stderr_progress};
pub use source::{Repo, Source};

use arrivals::Arrivals;
use cache::{Kept, Record};
use client::Client;
use digest::{Expected, Hasher};
use download::{Downloader, Origin};
use list::{List, Wanted};
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
        Err(error) => return last_known(cache, source, manifest, error),
    };
    if let Some(manifest) = manifest {
        manifest.check_exists(source.repo.as_str(), |file| list.has(file))?;
    }
    let pinned = Source::new(source.repo.clone(), &list.commit)?;
    cache.make_room(&Place::commit(&pinned.repo, &list.commit));
    let mut fetched = match cache.lookup(&pinned, manifest)? {
        Some(found) => found,
        None => download(cache, &pinned, &client, hub, &list, manifest, progress).await?,
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

/// What a branch or tag last stood for, when nobody can say what it does now.
fn last_known(
    cache: &Cache,
    source: &Source,
    manifest: Option<&Manifest>,
    error: Error,
) -> Result<Fetched, Error> {
    if error.is_passing()
        && let Some(found) = cache.lookup(source, manifest)?
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

async fn download(
    cache: &Cache,
    pinned: &Source,
    client: &Client,
    hub: &Hub,
    list: &List,
    manifest: Option<&Manifest>,
    progress: &mut dyn Progress,
) -> Result<Fetched, Error> {
    let repo = &pinned.repo;
    let host = client::origin(&hub.endpoint);
    let partial = cache.claim(&Place::commit(repo, &list.commit)).await?;
    // Whoever held the claim before may have brought it.
    if let Some(found) = cache.lookup(pinned, manifest)? {
        return Ok(found);
    }
    let mut downloader = Downloader {
        client,
        hub,
        origin: Origin::Commit(repo, &list.commit),
        directory: partial.directory(),
        manifest,
        received: 0,
    };
    let has = |file: &str| list.has(file);
    let mut leads = BTreeMap::new();
    for lead in select::leads(has) {
        let wanted = list.wanted(lead, &host)?;
        // Not told to `progress`, which does not know the total yet.
        downloader.take(&wanted, &mut Unresolved(progress)).await?;
        leads.insert(lead, read(&partial.directory().join(lead))?);
    }
    let chosen = choose(repo, has, &leads)?;
    let wanted = chosen.files.iter().map(|file| list.wanted(file, &host)).collect::<Result<Vec<_>, _>>()?;
    check_before(&wanted, manifest)?;
    let mut arrivals = Arrivals::new(partial.directory(), repo.as_str(), &chosen);
    let mut missing = Vec::new();
    for file in wanted {
        if !arrivals.has_converted(&file).await? {
            missing.push(file);
        }
    }
    // What a small file is refused for should not cost gigabytes first.
    missing.sort_by_key(|file| file.size);
    let size = |file: &Wanted| file.size.unwrap_or_default();
    let needed = arrivals.room(missing.iter().map(|file| (file.path.as_str(), size(file))));
    room::check_space(partial.directory(), needed)?;
    progress.resolved(&list.commit, chosen.files.len(), missing.iter().map(size).sum());
    for file in missing {
        let kept = downloader.take(&file, progress).await?;
        arrivals.add(&file.path, kept, progress).await?;
    }
    let received = downloader.received;
    let files = arrivals.into_files()?;
    let record = Record { repo: repo.to_string(), commit: list.commit.clone(), files };
    let (directory, record) = blocking(move || Ok((partial.finish(&record)?, record))).await?;
    Ok(Fetched::of(pinned, directory, &record, received))
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
    let mut leads = BTreeMap::new();
    for lead in select::leads(has) {
        take(lead)?;
        leads.insert(lead, read(&partial.directory().join(lead))?);
    }
    let chosen = choose(repo, has, &leads)?;
    let mut arrivals = Arrivals::new(partial.directory(), repo.as_str(), &chosen);
    let mut missing = Vec::new();
    for file in &chosen.files {
        let expected = Expected::Sha256(manifest.sha256(file)?.to_owned());
        let size = fs::metadata(from.join(file)).map_or(0, |found| found.len());
        let wanted = Wanted { path: file.clone(), size: Some(size), expected };
        if !arrivals.has_converted_blocking(&wanted)? {
            missing.push((file.as_str(), size));
        }
    }
    room::check_space(partial.directory(), arrivals.room(missing.iter().copied()))?;
    for (file, _) in missing {
        let kept = take(file)?;
        arrivals.add_blocking(file, kept)?;
    }
    let files = arrivals.into_files()?;
    let record = Record { repo: repo.to_string(), commit: commit.to_owned(), files };
    let directory = partial.finish(&record)?;
    Ok(Fetched::of(source, directory, &record, 0))
}

fn choose(repo: &Repo, has: impl Fn(&str) -> bool, leads: &BTreeMap<&str, Vec<u8>>) -> Result<Chosen, Error> {
    select::files(repo.as_str(), has, |name| leads.get(name).map(Vec::as_slice))
}

/// What the manifest will refuse is refused before gigabytes are downloaded.
fn check_before(wanted: &[Wanted], manifest: Option<&Manifest>) -> Result<(), Error> {
    let Some(manifest) = manifest else {
        return Ok(());
    };
    for file in wanted {
        match &file.expected {
            Expected::Sha256(sha256) => manifest.check(&file.path, sha256)?,
            Expected::GitBlob(_) | Expected::Unknown => {
                manifest.sha256(&file.path)?;
            }
        }
    }
    Ok(())
}

fn copy(from: &Path, to: &Path, file: &str, manifest: &Manifest) -> Result<Kept, Error> {
    let (from, to) = (from.join(file), to.join(file));
    if let Some(folder) = to.parent() {
        fs::create_dir_all(folder).map_err(Error::io("creating", folder))?;
    }
    let mut source = File::open(&from).map_err(Error::io("opening", &from))?;
    let mut target = File::create(&to).map_err(Error::io("creating", &to))?;
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

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    fs::read(path).map_err(Error::io("reading", path))
}

/// Passes on only what can be told before the total is known.
struct Unresolved<'a>(&'a mut dyn Progress);

impl Progress for Unresolved<'_> {
    fn resolved(&mut self, _commit: &str, _files: usize, _total_bytes: u64) {}
    fn started(&mut self, _file: &str, _have: u64) {}
    fn advanced(&mut self, _file: &str, _have: u64) {}
    fn retrying(&mut self, what: &str, why: &Error, pause: std::time::Duration) {
        self.0.retrying(what, why, pause);
    }
    fn converting(&mut self, _file: &str, _done: u64, _total: u64) {}
    fn finished(&mut self, _fetched: &Fetched) {}
}
