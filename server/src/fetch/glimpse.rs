//! As much of a repository as tells what it is: its settings, its tokenizer, and the headers of its weights.
//!
//! # Guarantees
//! - Nothing is written but into a temporary directory, which goes with the [`Glimpse`].
//! - What the caches have is not fetched.
//! - Settings are verified as those of a fetch are, wherever they come from. Headers are not: the hash is of the whole
//!   file.
//! - What is taken has at most 512 MiB, and each file what its kind may have.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use indicatif::BinaryBytes;
use tempfile::TempDir;

use super::bring::{MAX_LEAD, Unresolved};
use super::client::{self, Client};
use super::download::{Downloader, Origin};
use super::hf_cache::{self, Snapshot};
use super::list::{List, Wanted};
use super::retry::Patience;
use super::select::{self, Chosen};
use super::{Cache, Error, Hub, Place, Progress, Repo, Source, choose, room};
use crate::model::Directory as ModelDirectory;
use crate::model::directory::MAX_SETTINGS;
use crate::model::weights::MAX_HEADER;

/// What is asked for of a file of weights at first; most headers are shorter.
const FIRST: u64 = 64 << 10;
/// Of all files together.
const MAX_TOTAL: u64 = 512 << 20;
/// The largest vocabulary has 40 MB.
const MAX_TOKENIZER: u64 = 256 << 20;
/// What these limits are, and what to do.
const LIMIT: &str = "that are taken to look at a model: fetch it, and it is looked at in the cache";
/// How the names of weights end that have a header.
const SAFETENSORS: &str = ".safetensors";

/// What is seen of a repository.
#[derive(Debug)]
pub struct Glimpse {
    /// Its files. Of weights that are not on this machine, those that have a header have nothing else in them.
    pub directory: PathBuf,
    /// The commit that the revision stands for.
    pub commit: String,
    /// Where they were found.
    pub place: Found,
    /// Sizes of pickled weights by name, where there are no others.
    pub pickled: BTreeMap<String, u64>,
    /// How much came over the network.
    pub downloaded_bytes: u64,
    /// Removed with this.
    temporary: Option<TempDir>,
}

/// Where a repository's files were found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// In the cache.
    Cache,
    /// In that of Hugging Face's own libraries.
    HfCache,
    /// At the hub.
    Hub,
}

impl Found {
    /// For people.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cache => "in the cache",
            Self::HfCache => "in the Hugging Face cache",
            Self::Hub => "not here: at the hub",
        }
    }
}

impl Glimpse {
    /// Whether it lies in a directory that nobody knows.
    pub const fn is_temporary(&self) -> bool {
        self.temporary.is_some()
    }
}

/// Looks at `source`: in the caches, or else at the hub. Without a hub, nothing where the caches do not have it.
pub async fn glimpse(
    cache: &Cache,
    source: &Source,
    hub: Option<&Hub>,
    progress: &mut dyn Progress,
) -> Result<Option<Glimpse>, Error> {
    let Some(hub) = hub else { return here(cache, source).await };
    if source.commit().is_some()
        && let Some(found) = here(cache, source).await?
    {
        return Ok(Some(found));
    }
    let client = Client::new(hub)?;
    let list = match client.list(source, hub, progress).await {
        Ok(list) => list,
        Err(error) if error.is_passing() => {
            let Some(found) = here(cache, source).await? else { return Err(error) };
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                commit = found.commit,
                "hub does not answer, using the commit that the revision last stood for"
            );
            return Ok(Some(found));
        }
        Err(error) => return Err(error),
    };
    let pinned = Source::new(source.repo.clone(), &list.commit)?;
    if let Some(found) = here(cache, &pinned).await? {
        return Ok(Some(found));
    }
    at_hub(&client, hub, &pinned, &list, progress).await.map(Some)
}

/// What the caches have.
async fn here(cache: &Cache, source: &Source) -> Result<Option<Glimpse>, Error> {
    if let Some(found) = cache.lookup(source, None)? {
        return Ok(Some(Glimpse {
            directory: found.directory,
            commit: found.commit,
            place: Found::Cache,
            pickled: BTreeMap::new(),
            downloaded_bytes: 0,
            temporary: None,
        }));
    }
    let Some(snapshot) = cache.snapshot_of(source) else { return Ok(None) };
    Ok(hf_cache::if_of_use(source, in_snapshot(&source.repo, &snapshot).await))
}

/// A temporary directory, named as in a cache: the name of some models decides on what they are.
fn temporary(repo: &Repo, commit: &str) -> Result<(TempDir, PathBuf), Error> {
    let root = std::env::temp_dir();
    let temporary = TempDir::new().map_err(Error::io("making a temporary directory in", &root))?;
    let directory = Place::commit(repo, commit).complete(temporary.path());
    make(&directory)?;
    Ok((temporary, directory))
}

fn make(folder: &Path) -> Result<(), Error> {
    fs::create_dir_all(folder).map_err(Error::io("creating", folder))
}

fn size(wanted: &Wanted) -> u64 {
    wanted.size.unwrap_or_default()
}

/// How many bytes such a file may have.
fn most(file: &str) -> u64 {
    match file {
        "tokenizer.json" => MAX_TOKENIZER,
        lead if select::LEADS.contains(&lead) => MAX_LEAD,
        _ => MAX_SETTINGS,
    }
}

/// What is still to be taken, and may be.
struct Budget<'a> {
    host: &'a str,
    directory: &'a Path,
    taken: u64,
}

impl<'a> Budget<'a> {
    const fn new(host: &'a str, directory: &'a Path) -> Self {
        Self { host, directory, taken: 0 }
    }

    /// Of a file that has to be read before the others are known; it counts with them.
    fn check(&self, wanted: &Wanted) -> Result<(), Error> {
        wanted.check_size(most(&wanted.path), LIMIT, self.host)?;
        room::check_space(self.directory, size(wanted))
    }

    /// Counts so many bytes of a file.
    fn add(&mut self, file: &str, bytes: u64) -> Result<(), Error> {
        self.taken = self.taken.saturating_add(bytes);
        if self.taken > MAX_TOTAL {
            let why = format!("with {file}, its files have more than the {} {LIMIT}", BinaryBytes(MAX_TOTAL));
            return Err(Error::InvalidList { host: self.host.to_owned(), why });
        }
        Ok(())
    }

    /// Before anything else comes: the files, and the beginnings of weights where those come, too.
    fn check_all(&mut self, list: &List, chosen: &Chosen, headers: bool) -> Result<(), Error> {
        for file in chosen.files.difference(&chosen.pickled) {
            let wanted = list.wanted(file, self.host)?;
            let bytes = match (file.ends_with(SAFETENSORS), headers) {
                (true, true) => FIRST.min(size(&wanted)),
                (true, false) => 0,
                (false, _) => {
                    wanted.check_size(most(file), LIMIT, self.host)?;
                    size(&wanted)
                }
            };
            self.add(file, bytes)?;
        }
        room::check_space(self.directory, self.taken)
    }
}

/// What a snapshot has: links to its weights, and of all else what was verified.
async fn in_snapshot(repo: &Repo, snapshot: &Snapshot) -> Result<Glimpse, Error> {
    let host = "the Hugging Face cache";
    let list = snapshot.list()?;
    let (temporary, directory) = temporary(repo, snapshot.commit())?;
    let mut budget = Budget::new(host, &directory);
    let lacks = |file: &str| snapshot.error(format!("{file} is not there, or damaged"));
    let take = async |wanted: &Wanted| match snapshot.take(wanted, &directory, None).await? {
        Some(_) => Ok(()),
        None => Err(lacks(&wanted.path)),
    };
    let has = |file: &str| list.has(file);
    for lead in select::leads(has) {
        let wanted = list.wanted(lead, host)?;
        budget.check(&wanted)?;
        take(&wanted).await?;
    }
    let chosen = choose(repo, &directory, has)?;
    budget.check_all(&list, &chosen, false)?;
    let mut sizes = BTreeMap::new();
    for file in &chosen.files {
        let wanted = list.wanted(file, host)?;
        let is_pickled = chosen.pickled.contains(file);
        if !is_pickled && !file.ends_with(SAFETENSORS) {
            take(&wanted).await?;
            continue;
        }
        let from = snapshot.find(&wanted).ok_or_else(|| lacks(file))?;
        if is_pickled {
            sizes.insert(file.clone(), size(&wanted));
            continue;
        }
        let to = directory.join(file);
        make(to.parent().unwrap_or(&directory))?;
        std::os::unix::fs::symlink(&from, &to).map_err(Error::io("linking", &to))?;
    }
    // What no cache could mend is told by whoever reads it.
    if sizes.is_empty() && ModelDirectory::read(&directory).is_ok() {
        snapshot.check_complete(&directory)?;
    }
    Ok(Glimpse {
        directory,
        commit: snapshot.commit().to_owned(),
        place: Found::HfCache,
        pickled: sizes,
        downloaded_bytes: 0,
        temporary: Some(temporary),
    })
}

/// Fetches what is small.
async fn at_hub(
    client: &Client,
    hub: &Hub,
    pinned: &Source,
    list: &List,
    progress: &mut dyn Progress,
) -> Result<Glimpse, Error> {
    let (repo, commit) = (&pinned.repo, list.commit.as_str());
    let (temporary, directory) = temporary(repo, commit)?;
    let host = client::origin(&hub.endpoint);
    let mut budget = Budget::new(&host, &directory);
    let mut progress = Unresolved(progress);
    let mut downloader = Downloader {
        client,
        hub,
        origin: Origin::Commit(repo, commit),
        directory: &directory,
        manifest: None,
        received: 0,
    };
    let has = |file: &str| list.has(file);
    for lead in select::leads(has) {
        let wanted = list.wanted(lead, &host)?;
        budget.check(&wanted)?;
        downloader.take(&wanted, &mut progress).await?;
    }
    let chosen = choose(repo, &directory, has)?;
    budget.check_all(list, &chosen, true)?;
    let mut sizes = BTreeMap::new();
    for file in &chosen.files {
        let wanted = list.wanted(file, &host)?;
        if chosen.pickled.contains(file) {
            sizes.insert(file.clone(), size(&wanted));
        } else if file.ends_with(SAFETENSORS) {
            let (bytes, received) = header(client, hub, pinned, &wanted, &mut progress).await?;
            downloader.received += received;
            budget.add(file, (bytes.len() as u64).saturating_sub(FIRST))?;
            write_header(&directory.join(file), &bytes, size(&wanted))?;
        } else {
            downloader.take(&wanted, &mut progress).await?;
        }
    }
    let downloaded_bytes = downloader.received;
    Ok(Glimpse {
        directory,
        commit: commit.to_owned(),
        place: Found::Hub,
        pickled: sizes,
        downloaded_bytes,
        temporary: Some(temporary),
    })
}

/// Makes a file that is as long as the weights and has their header.
fn write_header(path: &Path, header: &[u8], size: u64) -> Result<(), Error> {
    make(path.parent().unwrap_or(path))?;
    // The rest is a hole, which takes no room.
    let write = |mut file: File| file.write_all(header).and_then(|()| file.set_len(size));
    File::create(path).and_then(write).map_err(Error::io("writing", path))
}

/// The header of weights, and how much came over the network.
async fn header(
    client: &Client,
    hub: &Hub,
    pinned: &Source,
    wanted: &Wanted,
    progress: &mut dyn Progress,
) -> Result<(Vec<u8>, u64), Error> {
    let mut patience = Patience::new(hub);
    loop {
        match header_once(client, pinned, wanted).await {
            Ok(header) => return Ok(header),
            Err(error) if client.worth_retrying(&error) => {
                patience.next_try(&wanted.path, error, progress).await?;
            }
            Err(error) => return Err(error),
        }
    }
}

async fn header_once(client: &Client, pinned: &Source, wanted: &Wanted) -> Result<(Vec<u8>, u64), Error> {
    let (repo, commit) = (&pinned.repo, pinned.revision());
    let size = size(wanted);
    let bytes = client.beginning(repo, commit, &wanted.path, FIRST.min(size)).await?;
    let received = bytes.len() as u64;
    let header = bytes.first_chunk().map_or(0, |length| u64::from_le_bytes(*length));
    // What is no header, or too long for one, is told of when it is read.
    if header > MAX_HEADER || header.saturating_add(8) > size || header + 8 <= received {
        return Ok((bytes, received));
    }
    let bytes = client.beginning(repo, commit, &wanted.path, header + 8).await?;
    let received = received + bytes.len() as u64;
    Ok((bytes, received))
}
