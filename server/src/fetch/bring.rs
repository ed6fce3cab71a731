//! The files of a commit into the cache, each from the nearest place that has it.

use std::fs;
use std::path::Path;

use super::arrivals::Arrivals;
use super::cache::{Cache, Kept, Record, read_record};
use super::client::{self, Client};
use super::digest::{Expected, Hasher};
use super::download::{Downloader, Origin};
use super::hf_cache::Snapshot;
use super::list::{List, Wanted};
use super::{Error, Fetched, Hub, Manifest, Place, Progress, Repo, Source, blocking, choose, room, select};

/// More than the list of a model's modules or the index of its weights has: they are read into memory.
pub(super) const MAX_LEAD: u64 = 64 << 20;

/// Where the files of a commit come from.
pub(super) struct Supply<'a> {
    pub(super) hub: Option<(&'a Client, &'a Hub)>,
    /// Asked first: it costs no network.
    pub(super) snapshot: Option<Snapshot>,
}

/// Makes sure that the commit of `list` is in the cache.
pub(super) async fn bring(
    cache: &Cache,
    pinned: &Source,
    list: &List,
    supply: Supply<'_>,
    manifest: Option<&Manifest>,
    progress: &mut dyn Progress,
) -> Result<Fetched, Error> {
    let repo = &pinned.repo;
    let Supply { hub, snapshot } = supply;
    let host = hub.map_or("the Hugging Face cache".to_owned(), |(_, hub)| client::origin(&hub.endpoint));
    let place = Place::commit(repo, &list.commit);
    let partial = cache.claim(&place).await?;
    // Whoever held the claim before may have brought it.
    if let Some(found) = cache.lookup(pinned, manifest)? {
        return Ok(found);
    }
    let directory = partial.directory();
    let origin = Origin::Commit(repo, &list.commit);
    let mut courier = Courier {
        repo,
        directory,
        manifest,
        snapshot,
        taken: (0, 0),
        downloader: hub.map(|(client, hub)| Downloader {
            client,
            hub,
            origin,
            directory,
            manifest,
            received: 0,
        }),
    };
    let has = |file: &str| list.has(file);
    for lead in select::leads(has) {
        let wanted = list.wanted(lead, &host)?;
        wanted.check_size(MAX_LEAD, "that such a file may have", &host)?;
        // Not told to `progress`, which does not know the total yet.
        courier.take(&wanted, &mut Unresolved(progress)).await?;
    }
    // They come once more with the others, and count then.
    courier.taken = (0, 0);
    let chosen = choose(repo, directory, has)?;
    let wanted = chosen.files.iter().map(|file| list.wanted(file, &host)).collect::<Result<Vec<_>, _>>()?;
    check_before(&wanted, manifest)?;
    // As for an import, a manifest says what there is where no hub has.
    let is_whole = list.is_whole || manifest.is_some();
    let known_as = if is_whole { list.commit.clone() } else { unlisted(&list.commit, &wanted) };
    if !is_whole && let Some(found) = taken_before(pinned, &place.complete(cache.root()), &known_as) {
        for lead in select::leads(has) {
            // What stays is found by the next fetch.
            drop(fs::remove_file(directory.join(lead)));
        }
        drop(fs::remove_dir(directory));
        return Ok(found);
    }
    let mut arrivals = Arrivals::new(directory, repo.as_str(), &chosen);
    let mut missing = Vec::new();
    for file in wanted {
        if !arrivals.has_converted(&file).await? {
            let is_near = courier.has_near(&file)?;
            missing.push((file, is_near));
        }
    }
    if hub.is_none() {
        // Not before it is known that all is there.
        cache.make_room(&place);
    }
    // What a small file is refused for should not cost gigabytes first.
    missing.sort_by_key(|(file, _)| file.size);
    let size = |file: &Wanted| file.size.unwrap_or_default();
    let needed = missing.iter().map(|(file, is_near)| (file.path.as_str(), size(file), *is_near));
    room::check_space(directory, arrivals.room(needed))?;
    let far = missing.iter().filter(|(_, is_near)| !is_near);
    progress.resolved(
        &list.commit,
        chosen.files.len(),
        far.fold(0, |sum: u64, (file, _)| sum.saturating_add(size(file))),
    );
    for (file, _) in missing {
        let kept = courier.take(&file, progress).await?;
        arrivals.add(&file.path, kept, progress).await?;
    }
    let files = arrivals.into_files()?;
    if let (None, Some(snapshot)) = (&courier.downloader, &courier.snapshot) {
        snapshot.check_complete(directory)?;
    }
    if let (files @ 1.., bytes) = courier.taken {
        tracing::info!(files, bytes, "taken from the Hugging Face cache");
    }
    let received = courier.downloader.map_or(0, |downloader| downloader.received);
    let record = Record { repo: repo.to_string(), commit: known_as, files };
    let (directory, record) = blocking(move || Ok((partial.finish(&record)?, record))).await?;
    Ok(Fetched::of(pinned, directory, &Record { commit: list.commit.clone(), ..record }, received))
}

/// What a record says in place of the commit where no hub has said which files there are. The commit itself is then
/// not found in the cache: who has a hub asks it, and who has none looks at the other cache again.
fn unlisted(commit: &str, wanted: &[Wanted]) -> String {
    let mut hasher = Hasher::new(0, &Expected::Unknown);
    for file in wanted {
        let (Expected::Sha256(hash) | Expected::GitBlob(hash)) = &file.expected else { continue };
        hasher.update(format!("{}\n{hash}\n", file.path).as_bytes());
    }
    format!("{commit} as {}", hasher.sums().sha256)
}

/// What the same files have become before, so that nothing is moved away under a server that reads it.
fn taken_before(pinned: &Source, directory: &Path, known_as: &str) -> Option<Fetched> {
    let record = read_record(directory).ok()??;
    let is_it = record.repo == pinned.repo.as_str() && record.commit == known_as;
    let record = Record { commit: pinned.revision().to_owned(), ..record };
    is_it.then(|| Fetched::of(pinned, directory.to_owned(), &record, 0))
}

/// Brings files of a commit from the nearest place that has them.
struct Courier<'a> {
    repo: &'a Repo,
    directory: &'a Path,
    manifest: Option<&'a Manifest>,
    snapshot: Option<Snapshot>,
    /// Files and bytes that came from the snapshot.
    taken: (usize, u64),
    downloader: Option<Downloader<'a>>,
}

impl Courier<'_> {
    /// Whether `wanted` is likely to need no network. An error if it is nowhere to be had.
    fn has_near(&self, wanted: &Wanted) -> Result<bool, Error> {
        let is_near = self.snapshot.as_ref().is_some_and(|snapshot| snapshot.may_have(wanted));
        if is_near || self.downloader.is_some() { Ok(is_near) } else { Err(self.lacks(wanted)) }
    }

    async fn take(&mut self, wanted: &Wanted, progress: &mut dyn Progress) -> Result<Kept, Error> {
        if let Some(snapshot) = &self.snapshot
            && let Some(kept) = snapshot.take(wanted, self.directory, self.manifest).await?
        {
            self.taken = (self.taken.0 + 1, self.taken.1 + kept.size);
            return Ok(kept);
        }
        match &mut self.downloader {
            Some(downloader) => downloader.take(wanted, progress).await,
            None => Err(self.lacks(wanted)),
        }
    }

    fn lacks(&self, wanted: &Wanted) -> Error {
        let why = format!("{} is not there, or damaged", wanted.path);
        Error::HfCache { repo: self.repo.to_string(), why }
    }
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

/// Passes on only what can be told before the total is known.
pub(super) struct Unresolved<'a>(pub(super) &'a mut dyn Progress);

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
