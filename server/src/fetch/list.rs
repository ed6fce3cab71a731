//! The hub's description of a repository at a revision.

use std::collections::BTreeMap;

use indicatif::BinaryBytes;
use serde::Deserialize;

use super::digest::Expected;
use super::source::is_commit;
use super::{Error, Source, select};

/// A commit and its files.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct List {
    pub(super) commit: String,
    pub(super) files: BTreeMap<String, Entry>,
    /// Whether it is the hub's, so that what is not in it is not in the commit.
    pub(super) is_whole: bool,
}

/// What the hub says about a file. Only files that are taken need all of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) size: Option<u64>,
    pub(super) expected: Expected,
}

/// A file to take, with all that is known of it beforehand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) path: String,
    /// `None`: the answer will tell, if anything does.
    pub(super) size: Option<u64>,
    pub(super) expected: Expected,
}

impl Wanted {
    /// Refuses what has more bytes than that, which is what `limit` says.
    pub(super) fn check_size(&self, most: u64, limit: &str, host: &str) -> Result<(), Error> {
        match self.size {
            Some(size) if size > most => {
                let (size, most) = (BinaryBytes(size), BinaryBytes(most));
                let why = format!("{} has {size}, more than the {most} {limit}", self.path);
                Err(Error::InvalidList { host: host.to_owned(), why })
            }
            _ => Ok(()),
        }
    }
}

#[derive(Deserialize)]
struct ModelInfo {
    sha: String,
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    #[serde(rename = "blobId")]
    blob_id: Option<String>,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    sha256: String,
    size: u64,
}

pub(super) fn parse(json: &[u8], host: &str, source: &Source) -> Result<List, Error> {
    let invalid = |why: String| Error::InvalidList { host: host.to_owned(), why };
    let ModelInfo { sha, siblings } = serde_json::from_slice(json)
        .map_err(|source| Error::InvalidJson { host: host.to_owned(), source })?;
    // It becomes a directory's name.
    if !is_commit(&sha) {
        return Err(invalid(format!("{sha:?} is not a commit")));
    }
    if source.commit().is_some_and(|asked| asked != sha) {
        return Err(invalid(format!("commit {} was asked for, {sha} answered", source.revision())));
    }
    let mut files = BTreeMap::new();
    for sibling in siblings {
        let Sibling { rfilename, size, blob_id, lfs } = sibling;
        // Passed over and not refused: there are repositories with backslashes
        // or colons in the names of files that no server needs.
        if !select::is_plain(&rfilename) {
            continue;
        }
        let entry = match (lfs, blob_id) {
            (Some(lfs), _) => {
                Entry { size: Some(lfs.size), expected: Expected::Sha256(lfs.sha256.to_ascii_lowercase()) }
            }
            (None, Some(blob)) => Entry { size, expected: Expected::GitBlob(blob.to_ascii_lowercase()) },
            (None, None) => Entry { size, expected: Expected::Unknown },
        };
        files.insert(rfilename, entry);
    }
    Ok(List { commit: sha, files, is_whole: true })
}

impl List {
    pub(super) fn has(&self, file: &str) -> bool {
        self.files.contains_key(file)
    }

    /// All about `file`; an error if the hub did not say enough to verify it.
    pub(super) fn wanted(&self, file: &str, host: &str) -> Result<Wanted, Error> {
        match self.files.get(file) {
            Some(Entry {
                size: size @ Some(_),
                expected: expected @ (Expected::Sha256(_) | Expected::GitBlob(_)),
            }) => Ok(Wanted { path: file.to_owned(), size: *size, expected: expected.clone() }),
            _ => Err(Error::InvalidList {
                host: host.to_owned(),
                why: format!("it gives no size or no hash of {file}, which could not be verified"),
            }),
        }
    }
}
