//! The directory of models.
//!
//! ```text
//! models--org--name/
//!   0123…cdef/            one commit, complete and verified; never changed again
//!     .fetched.json       what it holds: written last, before the move to this name
//!   refs/main             the commit that a branch or tag last stood for
//!   .partial-0123…cdef/   on its way; kept when interrupted, and resumed
//!   .lock-0123…cdef       held by the one process that writes to it
//! archives/
//!   89ab…4567/            the same for an archive, by its sha256
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, TryLockError};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::digest::Sums;
use super::hf_cache::{HfCache, Snapshot};
use super::source::is_commit;
use super::{Archive, Error, Fetched, Manifest, Place, Repo, Source, room, select};
use crate::disk;
use crate::model::digests;

const RECORD: &str = ".fetched.json";
/// A record has 200 bytes for each file.
const MAX_RECORD: u64 = 64 << 20;
/// How often a waiting process looks whether the other one is done.
const LOCK_POLL: Duration = Duration::from_millis(100);

/// The root directory of the models that are here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cache {
    root: PathBuf,
    /// What stays when something else is fetched; `None`: everything.
    keep: Option<BTreeSet<Place>>,
    /// Another cache, of which files are taken.
    hf: Option<HfCache>,
}

/// What a complete directory holds.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) repo: String,
    pub(super) commit: String,
    pub(super) files: BTreeMap<String, Kept>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Kept {
    pub(super) size: u64,
    pub(super) sha256: String,
    /// What was fetched in its place, where that was pickled weights.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) converted_from: Option<Pickled>,
}

/// A file that was fetched and verified, and of which only what was made of it is here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Pickled {
    pub(super) file: String,
    pub(super) sha256: String,
}

impl From<Sums> for Kept {
    fn from(sums: Sums) -> Self {
        Self { size: sums.bytes, sha256: sums.sha256, converted_from: None }
    }
}

impl Kept {
    /// Whether this, which is called `file` here, is what the manifest wants.
    fn check(&self, file: &str, manifest: &Manifest) -> Result<(), Error> {
        match &self.converted_from {
            Some(pickled) => manifest.check(&pickled.file, &pickled.sha256),
            None => manifest.check(file, &self.sha256),
        }
    }
}

/// A commit on its way into the cache. Nobody else writes to it meanwhile.
pub(super) struct Partial {
    directory: PathBuf,
    destination: PathBuf,
    /// Unlocks when it is closed, also when the process dies.
    _lock: File,
}

impl Cache {
    /// A cache in `root`, which is made when it is first needed.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into(), keep: None, hf: None }
    }

    /// The same cache, which only keeps these models beside the one that is fetched: all
    /// others are removed before anything is downloaded.
    #[must_use]
    pub fn keeping(self, keep: impl IntoIterator<Item = Place>) -> Self {
        Self { keep: Some(keep.into_iter().collect()), ..self }
    }

    /// The same cache, which takes what it lacks from that of Hugging Face's own libraries, at this root, where it
    /// is there. That is only read.
    #[must_use]
    pub fn reading(self, hf: impl Into<PathBuf>) -> Self {
        Self { hf: Some(HfCache::new(hf.into())), ..self }
    }

    /// What the other cache has of a commit.
    pub(super) fn snapshot(&self, repo: &Repo, commit: &str) -> Option<Snapshot> {
        self.hf.as_ref()?.snapshot(repo, commit)
    }

    /// What the other cache has of what it takes the revision for.
    pub(super) fn snapshot_of(&self, source: &Source) -> Option<Snapshot> {
        self.hf.as_ref()?.snapshot_of(source)
    }

    /// The root directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where an archive's files are when they are here.
    pub fn directory_of(&self, archive: &Archive) -> PathBuf {
        archive.place().complete(&self.root)
    }

    /// The complete directory of this commit, or of the commit that this
    /// branch or tag stood for when it was last fetched. Asks nobody.
    pub fn find(&self, source: &Source) -> Result<Option<PathBuf>, Error> {
        Ok(self.lookup(source, None)?.map(|found| found.directory))
    }

    /// Like [`Cache::find`], with all that is known about it. With a manifest,
    /// the hashes that were recorded have to match: an error if not.
    pub fn lookup(&self, source: &Source, manifest: Option<&Manifest>) -> Result<Option<Fetched>, Error> {
        let commit = match source.commit() {
            Some(commit) => commit.to_owned(),
            None => match self.read_ref(source)? {
                Some(commit) => commit,
                None => return Ok(None),
            },
        };
        let directory = Place::commit(&source.repo, &commit).complete(&self.root);
        let Some(record) = read_record(&directory)? else {
            return Ok(None);
        };
        if record.repo != source.repo.as_str() || record.commit != commit {
            return Ok(None);
        }
        if let Some(manifest) = manifest {
            for (file, kept) in &record.files {
                kept.check(file, manifest)?;
            }
        }
        Ok(Some(Fetched::of(source, directory, &record, 0)))
    }

    /// The files of this archive, from whatever address they came. Asks nobody.
    pub fn lookup_archive(&self, archive: &Archive) -> Result<Option<Fetched>, Error> {
        let directory = self.directory_of(archive);
        let record = read_record(&directory)?.filter(|record| record.commit == archive.sha256());
        Ok(record.map(|record| Fetched::of_archive(archive, directory, &record, 0)))
    }

    /// Before something comes: what this cache is not to keep goes.
    pub(super) fn make_room(&self, wanted: &Place) {
        if let Some(keep) = &self.keep {
            room::make(&self.root, keep, wanted);
        }
    }

    /// Waits until no other process brings the same model, then claims it.
    pub(super) async fn claim(&self, place: &Place) -> Result<Partial, Error> {
        let mut told = false;
        loop {
            if let Some(partial) = self.try_claim(place)? {
                return Ok(partial);
            }
            if !told {
                let directory = place.complete(&self.root);
                tracing::info!(directory = %directory.display(), "waiting for another process that fetches the same model");
                told = true;
            }
            // Polled, because a thread that blocks in a lock cannot be dropped.
            tokio::time::sleep(LOCK_POLL).await;
        }
    }

    /// Like `claim`, and blocks.
    pub(super) fn claim_blocking(&self, place: &Place) -> Result<Partial, Error> {
        loop {
            if let Some(partial) = self.try_claim(place)? {
                return Ok(partial);
            }
            std::thread::sleep(LOCK_POLL);
        }
    }

    fn try_claim(&self, place: &Place) -> Result<Option<Partial>, Error> {
        let group = place.group(&self.root);
        fs::create_dir_all(&group).map_err(Error::io("creating", &group))?;
        // Beside the directory and not in it, because the directory is renamed
        // while the lock is held. It stays: removing a lock file is a race.
        let path = place.lock(&self.root);
        let lock =
            File::options().create(true).append(true).open(&path).map_err(Error::io("creating", &path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => return Err(Error::io("locking", &path)(error)),
        }
        Ok(Some(Partial {
            directory: place.partial(&self.root),
            destination: place.complete(&self.root),
            _lock: lock,
        }))
    }

    /// Notes what a branch or tag stands for now. A commit needs no note.
    pub(super) fn write_ref(&self, source: &Source, commit: &str) -> Result<(), Error> {
        if source.commit().is_some() {
            return Ok(());
        }
        // A cache that is up to date may be read-only. What cannot be read is written anew.
        if self.read_ref(source).is_ok_and(|noted| noted.as_deref() == Some(commit)) {
            return Ok(());
        }
        let refs = self.refs(source);
        fs::create_dir_all(&refs).map_err(Error::io("creating", &refs))?;
        let path = refs.join(source.ref_file());
        // A name of its own, so that two processes do not write into one file.
        let mut temporary = tempfile::NamedTempFile::new_in(&refs).map_err(Error::io("writing to", &refs))?;
        temporary.write_all(commit.as_bytes()).map_err(Error::io("writing", &path))?;
        temporary.persist(&path).map_err(|error| Error::io("writing", &path)(error.error))?;
        Ok(())
    }

    fn read_ref(&self, source: &Source) -> Result<Option<String>, Error> {
        let path = self.refs(source).join(source.ref_file());
        match fs::read_to_string(&path) {
            // A damaged note is no note: the hub is asked again.
            Ok(commit) => Ok(Some(commit.trim().to_owned()).filter(|c| is_commit(c))),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io("reading", &path)(error)),
        }
    }

    fn refs(&self, source: &Source) -> PathBuf {
        self.root.join(source.repo.directory()).join("refs")
    }
}

impl Partial {
    /// Where the files go.
    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Writes the record and moves the directory to its final name, all of it
    /// on the disk before that. Blocks. Takes the lock along: nobody else can
    /// come in between even if the caller no longer waits.
    pub(super) fn finish(self, record: &Record) -> Result<PathBuf, Error> {
        let json = serde_json::to_vec_pretty(record).map_err(std::io::Error::other);
        let path = self.directory.join(RECORD);
        json.and_then(|json| fs::write(&path, json)).map_err(Error::io("writing", &path))?;
        remove_others(&self.directory, Path::new(""), record)?;
        // It only saves time at each start; what is wrong with weights is said then.
        if let Err(error) = digests::keep(&self.directory) {
            tracing::debug!(
                error = &error as &dyn std::error::Error,
                "the hashes of the tensors are not kept"
            );
        }
        let mut synced = BTreeSet::new();
        for file in record.files.keys().map(String::as_str).chain([RECORD]) {
            sync(&self.directory.join(file))?;
            synced.extend(Path::new(file).ancestors().skip(1).map(Path::to_owned));
        }
        for folder in synced {
            sync_folder(&self.directory.join(folder))?;
        }
        if self.destination.exists() {
            // Its record is missing or wrong, or this commit would have been found.
            fs::remove_dir_all(&self.destination)
                .map_err(Error::io("removing the damaged", &self.destination))?;
        }
        fs::rename(&self.directory, &self.destination)
            .map_err(Error::io("moving the complete model to", &self.destination))?;
        if let Some(model) = self.destination.parent() {
            sync_folder(model)?;
        }
        Ok(self.destination)
    }
}

/// What an older version of this program took, or half took, is not part of the model.
fn remove_others(root: &Path, below: &Path, record: &Record) -> Result<(), Error> {
    let folder = root.join(below);
    let entries = fs::read_dir(&folder).map_err(Error::io("listing", &folder))?;
    for entry in entries {
        let entry = entry.map_err(Error::io("listing", &folder))?;
        let name = below.join(entry.file_name());
        let path = entry.path();
        let is_folder = entry.file_type().map_err(Error::io("reading the type of", &path))?.is_dir();
        let kept = |file: &str| {
            let file = Path::new(file);
            if is_folder { file.starts_with(&name) } else { file == name }
        };
        if record.files.keys().map(String::as_str).chain([RECORD]).any(kept) {
            if is_folder {
                remove_others(root, &name, record)?;
            }
        } else if is_folder {
            fs::remove_dir_all(&path).map_err(Error::io("removing", &path))?;
        } else {
            fs::remove_file(&path).map_err(Error::io("removing", &path))?;
        }
    }
    Ok(())
}

fn sync(path: &Path) -> Result<(), Error> {
    File::open(path).and_then(|file| file.sync_all()).map_err(Error::io("syncing", path))
}

fn sync_folder(path: &Path) -> Result<(), Error> {
    disk::sync_folder(path).map_err(Error::io("syncing", path))
}

/// The record of a directory that has all that it lists, in the sizes listed.
pub(super) fn read_record(directory: &Path) -> Result<Option<Record>, Error> {
    let path = directory.join(RECORD);
    let json = match disk::read_small(&path, MAX_RECORD) {
        Ok(json) => json,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io("reading", &path)(error)),
    };
    let Ok(record) = serde_json::from_slice::<Record>(&json) else {
        return Ok(None);
    };
    let complete = record.files.iter().all(|(file, kept)| {
        select::is_plain(file)
            && fs::metadata(directory.join(file))
                .is_ok_and(|found| found.is_file() && found.len() == kept.size)
    });
    Ok(complete.then_some(record))
}
