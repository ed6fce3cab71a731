//! The cache of Hugging Face's own libraries: what it has of a model need not come over the network.
//!
//! ```text
//! models--org--name/
//!   refs/main                    the commit that a branch or tag last stood for
//!   snapshots/0123…cdef/FILE     a link to a blob, or the file itself
//!   blobs/HASH                   named by the sha256 of large files, by git's id of others
//!   trees/0123…cdef.json         what the hub listed of the commit, where a newer library asked for all of it
//!   .no_exist/0123…cdef/FILE     empty: somebody asked for this file, and there is none
//! ```
//!
//! # Guarantees
//! - It is read and never written: what is linked into our cache is never opened for writing there.
//! - A file is taken by the hash that the hub gives, or, where nobody can be asked, by that in its blob's name.
//! - Links that lead out of it are not followed.
//! - Without the hub, it is believed to have all of a model only where it says so: by the hub's list, or of each file
//!   that decides by the file itself or by the note that there is none. A library that reads the weights alone, or a
//!   download that was interrupted, leaves a snapshot without `modules.json`, which would be another model.
//!
//! # Assumptions
//! Nobody writes into blobs: its libraries replace them. Small files, which people edit, are copied.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::cache::Kept;
use super::digest::{Expected, Hasher};
use super::list::{Entry, List, Wanted};
use super::place::is_sha256;
use super::source::is_commit;
use super::{Error, Manifest, Repo, Source, room, select};
use crate::disk;
use crate::model::directory::{Directory, Tail};
use crate::model::weights::Weights;

/// From so many bytes on, a file is linked and not copied.
const LINKED: u64 = 1 << 20;
/// What is read before others get their turn.
const STEP: usize = 1 << 20;
/// The list of the largest repository has 10 MB.
const MAX_TREE: u64 = 64 << 20;
/// More files and folders than a model has.
const MAX_ENTRIES: usize = 10_000;
/// A commit, and a line's end.
const MAX_REF: u64 = 100;
/// Says how long texts may be, and more; the libraries ask for it with or without modules.
const TOKENIZER_CONFIG: &str = "tokenizer_config.json";

/// The root of such a cache, which need not be there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct HfCache {
    root: PathBuf,
}

/// What it has of a commit.
#[derive(Debug, Clone)]
pub(super) struct Snapshot {
    /// The cache's root without links: what is not below it is not followed.
    root: PathBuf,
    /// The repository's folder.
    model: PathBuf,
    repo: Repo,
    commit: String,
}

#[derive(Deserialize)]
struct Tree {
    format_version: u32,
    files: BTreeMap<String, Leaf>,
}

#[derive(Deserialize)]
struct Leaf {
    size: u64,
    blob_id: String,
    lfs_sha256: Option<String>,
    lfs_size: Option<u64>,
}

impl HfCache {
    pub(super) fn new(root: PathBuf) -> Self {
        Self { root }
    }

    /// What there is of this commit, if there is anything of the repository.
    pub(super) fn snapshot(&self, repo: &Repo, commit: &str) -> Option<Snapshot> {
        let root = fs::canonicalize(&self.root).ok()?;
        let model = inside(&root, &root.join(repo.directory()))?;
        Some(Snapshot { root, model, repo: repo.clone(), commit: commit.to_owned() })
    }

    /// The snapshot of what the revision is, or was when it was last asked for.
    pub(super) fn snapshot_of(&self, source: &Source) -> Option<Snapshot> {
        let commit = source.commit().map(str::to_owned).or_else(|| self.noted(source))?;
        let snapshot = self.snapshot(&source.repo, &commit)?;
        inside(&snapshot.root, &snapshot.folder())?.is_dir().then_some(snapshot)
    }

    fn noted(&self, source: &Source) -> Option<String> {
        let root = fs::canonicalize(&self.root).ok()?;
        // Here a branch with a slash is a folder with a file.
        let note = root.join(source.repo.directory()).join("refs").join(source.revision());
        let note = disk::read_small(&inside(&root, &note)?, MAX_REF).ok()?;
        let commit = str::from_utf8(&note).ok()?.trim();
        is_commit(commit).then(|| commit.to_owned())
    }
}

impl Snapshot {
    pub(super) fn commit(&self) -> &str {
        &self.commit
    }

    fn folder(&self) -> PathBuf {
        self.model.join("snapshots").join(&self.commit)
    }

    pub(super) fn error(&self, why: impl Into<String>) -> Error {
        Error::HfCache { repo: self.repo.to_string(), why: why.into() }
    }

    /// Where `wanted` may be: in the snapshot, or among the blobs of whatever commit.
    pub(super) fn find(&self, wanted: &Wanted) -> Option<PathBuf> {
        let blob = match &wanted.expected {
            Expected::Sha256(hash) | Expected::GitBlob(hash) => Some(self.model.join("blobs").join(hash)),
            Expected::Unknown => None,
        };
        let candidates = [Some(self.folder().join(&wanted.path)), blob];
        let is_it = |path: &PathBuf| {
            fs::metadata(path).is_ok_and(|found| found.is_file() && Some(found.len()) == wanted.size)
        };
        candidates.into_iter().flatten().filter_map(|path| inside(&self.root, &path)).find(is_it)
    }

    /// Whether a file of this name and size is there; what it is, [`Self::take`] finds out.
    pub(super) fn may_have(&self, wanted: &Wanted) -> bool {
        self.find(wanted).is_some()
    }

    /// Brings `wanted` into `directory`, verified. Nothing where it is not there, or another.
    pub(super) async fn take(
        &self,
        wanted: &Wanted,
        directory: &Path,
        manifest: Option<&Manifest>,
    ) -> Result<Option<Kept>, Error> {
        let Some(from) = self.find(wanted) else { return Ok(None) };
        let to = directory.join(&wanted.path);
        // Beside it, because what is there may be the half of a download, which another file must not cost.
        let arriving =
            to.with_file_name(format!(".{}.arriving", to.file_name().unwrap_or_default().display()));
        let unreadable = |error: io::Error| {
            tracing::warn!(path = %from.display(), %error, "cannot read a file of the Hugging Face cache");
        };
        let size = wanted.size.unwrap_or_default();
        let mut target = place(&from, &arriving, size)?;
        // Of a link, what it is now is hashed: its blob may be another by then.
        let opened = if target.is_some() { disk::open_regular(&from) } else { open_linked(&arriving) };
        let Ok(source) = opened.map_err(unreadable) else {
            remove(&arriving)?;
            return Ok(None);
        };
        // It may grow; one byte too many is seen by the hash.
        let mut source = source.take(size.saturating_add(1));
        let mut hasher = Hasher::new(size, &wanted.expected);
        let mut buffer = vec![0; STEP];
        loop {
            match source.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => {
                    hasher.update(&buffer[..read]);
                    if let Some(target) = &mut target {
                        target.write_all(&buffer[..read]).map_err(Error::io("writing", &arriving))?;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    unreadable(error);
                    remove(&arriving)?;
                    return Ok(None);
                }
            }
            // Dropped, it ends here; nobody writes on.
            tokio::task::yield_now().await;
        }
        let sums = hasher.sums();
        let checked = wanted
            .expected
            .check(&wanted.path, &sums)
            .and_then(|()| manifest.map_or(Ok(()), |manifest| manifest.check(&wanted.path, &sums.sha256)));
        if let Err(error) = checked {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                path = %from.display(),
                "a file of the Hugging Face cache is not what it should be: not used"
            );
            remove(&arriving)?;
            return Ok(None);
        }
        fs::rename(&arriving, &to).map_err(Error::io("moving what was taken to", &to))?;
        Ok(Some(sums.into()))
    }

    /// The files of the commit, without asking the hub: what it once listed, or else what is in the snapshot, where
    /// that is known to be all that matters.
    pub(super) fn list(&self) -> Result<List, Error> {
        let (files, is_whole) = match self.tree() {
            Some(files) => (files, true),
            None => (self.walk()?, false),
        };
        Ok(List { commit: self.commit.clone(), files, is_whole })
    }

    fn tree(&self) -> Option<BTreeMap<String, Entry>> {
        let path = inside(&self.root, &self.model.join("trees").join(format!("{}.json", self.commit)))?;
        let json = disk::read_small(&path, MAX_TREE).ok()?;
        let Tree { files, .. } =
            serde_json::from_slice(&json).ok().filter(|tree: &Tree| tree.format_version == 1)?;
        let entry = |(path, leaf): (String, Leaf)| {
            let mut entry = match leaf.lfs_sha256 {
                Some(sha256) => {
                    Entry { size: leaf.lfs_size.or(Some(leaf.size)), expected: Expected::Sha256(sha256) }
                }
                None => Entry { size: Some(leaf.size), expected: Expected::GitBlob(leaf.blob_id) },
            };
            // The hashes become names of files.
            let is_hash = match &entry.expected {
                Expected::Sha256(hash) => is_sha256(hash),
                Expected::GitBlob(hash) => is_commit(hash),
                Expected::Unknown => false,
            };
            // A file that cannot be verified is there nevertheless: without it, this would be another model.
            if !is_hash {
                entry.expected = Expected::Unknown;
            }
            select::is_plain(&path).then_some((path, entry))
        };
        Some(files.into_iter().filter_map(entry).collect())
    }

    fn walk(&self) -> Result<BTreeMap<String, Entry>, Error> {
        let mut files = BTreeMap::new();
        let mut folders = vec![String::new()];
        let mut entries = 0;
        while let Some(folder) = folders.pop() {
            let path = self.folder().join(&folder);
            for entry in fs::read_dir(&path).map_err(Error::io("listing", &path))? {
                entries += 1;
                if entries > MAX_ENTRIES {
                    return Err(self.error(format!("it has more than {MAX_ENTRIES} files: not a model")));
                }
                let entry = entry.map_err(Error::io("listing", &path))?;
                let Ok(name) = entry.file_name().into_string() else { continue };
                let name = if folder.is_empty() { name } else { format!("{folder}/{name}") };
                // Of the entry itself: a link to a folder is none.
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    folders.push(name);
                } else if let Some(found) = inside(&self.root, &entry.path()).filter(|found| found.is_file())
                {
                    let size = fs::metadata(&found).map_err(Error::io("reading the size of", &found))?.len();
                    files.insert(name, Entry { size: Some(size), expected: named_by(&found) });
                }
            }
        }
        self.check_known(&files)?;
        Ok(files)
    }

    /// Whether it is known of each file that decides on the vectors that it is there, or that there is none.
    fn check_known(&self, files: &BTreeMap<String, Entry>) -> Result<(), Error> {
        let is_known = |file: &str| {
            files.contains_key(file) || self.model.join(".no_exist").join(&self.commit).join(file).is_file()
        };
        // Without a list of modules the others say nothing to the libraries that fill this cache.
        let decisive = if files.contains_key(select::MODULES) {
            select::DECISIVE.as_slice()
        } else {
            &[select::MODULES]
        };
        match decisive.iter().chain([&TOKENIZER_CONFIG]).find(|file| !is_known(file)) {
            None => Ok(()),
            Some(file) => Err(self.error(format!(
                "its snapshot may lack {file}, which decides on the vectors; get all of the repository \
                 (`hf download {}`, with huggingface_hub 1.22 or newer), or fetch it with a network",
                self.repo
            ))),
        }
    }

    /// Whether what was taken without the hub's list is a model.
    pub(super) fn check_complete(&self, directory: &Path) -> Result<(), Error> {
        let model = Directory::read(directory).map_err(|error| self.error(error.to_string()))?;
        for module in &model.tail {
            let folder = match module {
                Tail::Dense(dense) => &dense.path,
                Tail::LayerNorm(norm) => &norm.path,
                // An answer is among the encoder's weights.
                Tail::Answer(_) | Tail::Normalize => continue,
            };
            if !Weights::are_in(folder) {
                let name = folder.strip_prefix(directory).unwrap_or(folder).display();
                return Err(self.error(format!("its snapshot lacks the weights of {name}")));
            }
        }
        Ok(())
    }
}

/// What was made of a snapshot of `source`. Why nothing could be, is told; it is no error, as the cache is another's.
pub(super) fn if_of_use<T>(source: &Source, made: Result<T, Error>) -> Option<T> {
    let told = |error: &Error| {
        tracing::warn!(
            error = error as &dyn std::error::Error,
            repo = %source.repo,
            revision = source.revision(),
            "the Hugging Face cache is of no use"
        );
    };
    made.inspect_err(told).ok()
}

/// What `path` leads to, if that is below `root`.
fn inside(root: &Path, path: &Path) -> Option<PathBuf> {
    let found = fs::canonicalize(path).ok()?;
    if !found.starts_with(root) {
        tracing::warn!(path = %path.display(), "a link leads out of the Hugging Face cache: not followed");
        return None;
    }
    Some(found)
}

/// Puts a link in its place, or an empty file to be written.
fn place(from: &Path, to: &Path, size: u64) -> Result<Option<File>, Error> {
    if let Some(folder) = to.parent() {
        fs::create_dir_all(folder).map_err(Error::io("creating", folder))?;
    }
    remove(to)?;
    // It fails between file systems, and where the system forbids links to what others own.
    if size >= LINKED && fs::hard_link(from, to).is_ok() {
        return Ok(None);
    }
    room::check_space(to.parent().unwrap_or(to), size)?;
    File::create_new(to).map(Some).map_err(Error::io("creating", to))
}

/// Opens what was linked; a link to a name that stood in its place is not followed.
fn open_linked(path: &Path) -> io::Result<File> {
    if !fs::symlink_metadata(path)?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "is no regular file"));
    }
    disk::open_regular(path)
}

fn remove(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::io("removing", path)(error)),
        _ => Ok(()),
    }
}

/// What a blob should be, by its name.
fn named_by(blob: &Path) -> Expected {
    let name = blob.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    if is_sha256(name) {
        Expected::Sha256(name.to_owned())
    } else if is_commit(name) {
        Expected::GitBlob(name.to_owned())
    } else {
        Expected::Unknown
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_that_was_put_in_a_blobs_place_is_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::write(at("elsewhere"), vec![1; 2 << 20]).unwrap();
        std::os::unix::fs::symlink(at("elsewhere"), at("blob")).unwrap();
        // The link itself is what gets another name.
        assert!(place(&at("blob"), &at("arriving"), 2 << 20).unwrap().is_none());
        assert!(fs::symlink_metadata(at("arriving")).unwrap().is_symlink());
        assert!(open_linked(&at("arriving")).is_err());
        assert!(place(&at("elsewhere"), &at("arriving"), 2 << 20).unwrap().is_none());
        assert!(open_linked(&at("arriving")).is_ok());
    }
}
