//! A model as an archive at any address, known by its sha256.
//!
//! # Flow
//! The archive comes as a repository's files do: resumed, retried, verified. Then it is
//! unpacked beside itself, pickled weights are converted, and only what comes of that moves to the final name.
//!
//! # Guarantees
//! - No byte is unpacked before the archive's hash is verified.
//! - No token goes along, and the address's query, which may be a signature, is in no error,
//!   log line or record.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::Path;

use url::Url;

use super::arrivals::Arrivals;
use super::cache::{Cache, Kept, Partial, Record};
use super::client::Client;
use super::digest::Expected;
use super::download::{Downloader, Origin};
use super::list::Wanted;
use super::place::{Place, is_sha256};
use super::select::Chosen;
use super::tarball::{LIMITS, Tarball};
use super::{Error, Fetched, Hub, Progress, blocking};

/// The archive's own name while it is here. No file of a model has it.
const PACKED: &str = ".archive.tar.gz";

/// A gzipped tar archive of a model's directory.
#[derive(Clone, PartialEq, Eq)]
pub struct Archive {
    url: Url,
    sha256: String,
}

impl Archive {
    /// Checks the address and the hash.
    pub fn new(url: &str, sha256: &str) -> Result<Self, Error> {
        let wrong = |why| Error::ArchiveAddress { why };
        let url: Url = url.parse().map_err(|_| wrong("it is not a URL"))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(wrong("it has to start with https:// or http://"));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(wrong("it has a user name or password in it, which would be seen by others"));
        }
        let sha256 = sha256.to_ascii_lowercase();
        if !is_sha256(&sha256) {
            return Err(Error::ArchiveHash { sha256 });
        }
        Ok(Self { url, sha256 })
    }

    pub(super) fn url(&self) -> &Url {
        &self.url
    }

    /// The address as it may be shown: a query is often a signature.
    pub fn name(&self) -> String {
        self.shown().to_string()
    }

    /// The archive's sha256.
    pub fn sha256(&self) -> &str {
        &self.sha256
    }

    pub(super) fn place(&self) -> Place {
        Place::archive(&self.sha256)
    }

    fn shown(&self) -> Url {
        let mut url = self.url.clone();
        url.set_query(None);
        url.set_fragment(None);
        url
    }
}

impl fmt::Debug for Archive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Archive").field("url", &self.name()).field("sha256", &self.sha256).finish()
    }
}

/// Makes sure that the archive's files are in the cache. Of `hub`, only the way there counts:
/// proxies, certificates, patience.
///
/// Safe to drop at any point, and to run in several processes at once.
pub async fn fetch_archive(
    cache: &Cache,
    archive: &Archive,
    hub: &Hub,
    progress: &mut dyn Progress,
) -> Result<Fetched, Error> {
    let fetched = find_or_download(cache, archive, hub, progress).await?;
    progress.finished(&fetched);
    Ok(fetched)
}

async fn find_or_download(
    cache: &Cache,
    archive: &Archive,
    hub: &Hub,
    progress: &mut dyn Progress,
) -> Result<Fetched, Error> {
    let place = archive.place();
    cache.make_room(&place);
    if let Some(found) = cache.lookup_archive(archive)? {
        return Ok(found);
    }
    let hub = Hub { endpoint: archive.shown(), token: None, ..hub.clone() };
    let client = Client::new(&hub)?;
    let partial = cache.claim(&place).await?;
    // Whoever held the claim before may have brought it.
    if let Some(found) = cache.lookup_archive(archive)? {
        return Ok(found);
    }
    let mut downloader = Downloader {
        client: &client,
        hub: &hub,
        origin: Origin::Archive(archive),
        directory: partial.directory(),
        manifest: None,
        received: 0,
    };
    let wanted =
        Wanted { path: PACKED.to_owned(), size: None, expected: Expected::Sha256(archive.sha256.clone()) };
    downloader.take(&wanted, progress).await.map_err(|error| match error {
        Error::WrongHash { expected, found, .. } => {
            Error::WrongArchive { url: archive.name(), expected, found }
        }
        error => error,
    })?;
    let received = downloader.received;
    let name = archive.name();
    let owned = name.clone();
    // The claim goes along: nobody else unpacks there, even if the caller no longer waits.
    let (partial, unpacked) = blocking(move || {
        let unpacked = unpack(&partial, &owned);
        (partial, unpacked)
    })
    .await;
    let arrived = match unpacked {
        Ok((chosen, files)) => arrive(&partial, &name, &chosen, files, progress).await,
        Err(error) => Err(error),
    };
    let files = arrived.or_else(|error| {
        // It will not be better next time; a disk that is full may be.
        if !matches!(error, Error::Io { .. } | Error::DiskFull { .. } | Error::NoRoom { .. }) {
            empty_but_for(partial.directory(), &[])?;
        }
        Err(error)
    })?;
    let record = Record { repo: name, commit: archive.sha256.clone(), files };
    let (directory, record) = blocking(move || Ok((partial.finish(&record)?, record))).await?;
    Ok(Fetched::of_archive(archive, directory, &record, received))
}

fn unpack(partial: &Partial, name: &str) -> Result<(Chosen, BTreeMap<String, Kept>), Error> {
    let directory = partial.directory();
    // What an earlier run unpacked before it was interrupted.
    empty_but_for(directory, &[PACKED])?;
    Tarball { packed: &directory.join(PACKED), name, limits: LIMITS }.unpack(directory)
}

async fn arrive(
    partial: &Partial,
    name: &str,
    chosen: &Chosen,
    files: BTreeMap<String, Kept>,
    progress: &mut dyn Progress,
) -> Result<BTreeMap<String, Kept>, Error> {
    let mut arrivals = Arrivals::new(partial.directory(), name, chosen);
    for (file, kept) in files {
        arrivals.add(&file, kept, progress).await?;
    }
    arrivals.into_files()
}

fn empty_but_for(directory: &Path, kept: &[&str]) -> Result<(), Error> {
    for entry in fs::read_dir(directory).map_err(Error::io("listing", directory))? {
        let entry = entry.map_err(Error::io("listing", directory))?;
        if kept.iter().any(|kept| entry.file_name() == *kept) {
            continue;
        }
        let path = entry.path();
        let is_folder = entry.file_type().map_err(Error::io("reading the type of", &path))?.is_dir();
        if is_folder { fs::remove_dir_all(&path) } else { fs::remove_file(&path) }
            .map_err(Error::io("removing", &path))?;
    }
    Ok(())
}
