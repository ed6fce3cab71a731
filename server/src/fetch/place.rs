//! Where in the cache a model is: by its content, whatever it is called outside.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::source::is_commit;
use super::{Error, Repo};

/// The folder of all archives.
const ARCHIVES: &str = "archives";
const MODELS: &str = "models--";

/// A commit's directory, or an archive's. Written as `org/name@COMMIT` or as the path
/// `…/archives/SHA256`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    group: String,
    name: String,
}

impl Place {
    pub(super) fn commit(repo: &Repo, commit: &str) -> Self {
        Self { group: repo.directory(), name: commit.to_owned() }
    }

    pub(super) fn archive(sha256: &str) -> Self {
        Self { group: ARCHIVES.to_owned(), name: sha256.to_owned() }
    }

    /// The place of an entry of the cache with this name, which may be that of a partial
    /// directory. What is not named like ours is not ours.
    pub(super) fn of_entry(group: &str, entry: &str) -> Option<Self> {
        let name = entry.strip_prefix(".partial-").unwrap_or(entry);
        let ours = match group {
            ARCHIVES => is_sha256(name),
            _ => group.starts_with(MODELS) && is_commit(name),
        };
        ours.then(|| Self { group: group.to_owned(), name: name.to_owned() })
    }

    /// What the directory is named after: the commit, or the archive's sha256.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// The folder that has it, in a cache at `root`.
    pub(super) fn group(&self, root: &Path) -> PathBuf {
        root.join(&self.group)
    }

    pub(super) fn complete(&self, root: &Path) -> PathBuf {
        self.group(root).join(&self.name)
    }

    pub(super) fn partial(&self, root: &Path) -> PathBuf {
        self.group(root).join(format!(".partial-{}", self.name))
    }

    pub(super) fn lock(&self, root: &Path) -> PathBuf {
        self.group(root).join(format!(".lock-{}", self.name))
    }
}

impl FromStr for Place {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let archive = || {
            let (folder, sha256) = text.rsplit_once('/')?;
            let is_archive = Path::new(folder).ends_with(ARCHIVES) && is_sha256(sha256);
            is_archive.then(|| Self::archive(sha256))
        };
        let commit = || {
            let (repo, commit) = text.split_once('@')?;
            is_commit(commit).then(|| repo.parse().ok()).flatten().map(|repo| Self::commit(&repo, commit))
        };
        archive().or_else(commit).ok_or(Error::Place)
    }
}

pub(super) fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_a_commit_or_an_archive_and_nothing_else() {
        let (commit, sha256) = ("01".repeat(20), "ab".repeat(32));
        let root = Path::new("/models");
        for (text, directory) in [
            (format!("org/name@{commit}"), format!("/models/models--org--name/{commit}")),
            (format!("name@{commit}"), format!("/models/models--name/{commit}")),
            (format!("/models/archives/{sha256}"), format!("/models/archives/{sha256}")),
            (format!("/elsewhere/archives/{sha256}"), format!("/models/archives/{sha256}")),
            (format!("archives/{sha256}"), format!("/models/archives/{sha256}")),
        ] {
            assert_eq!(text.parse::<Place>().unwrap().complete(root), Path::new(&directory), "{text}");
        }
        for text in [
            "org/name@main".to_owned(),
            "org/name".to_owned(),
            format!("org/name@{sha256}"),
            format!("a/b/c@{commit}"),
            format!("/models/archive/{sha256}"),
            format!("/models/archives/{commit}"),
            sha256,
            String::new(),
        ] {
            assert!(text.parse::<Place>().is_err(), "{text}");
        }
    }

    #[test]
    fn only_what_is_named_like_ours_is_ours() {
        let (commit, sha256) = ("01".repeat(20), "ab".repeat(32));
        for (group, entry, ours) in [
            ("models--org--name", commit.clone(), true),
            ("models--org--name", format!(".partial-{commit}"), true),
            ("models--org--name", format!(".lock-{commit}"), false),
            ("models--org--name", "refs".to_owned(), false),
            ("archives", sha256.clone(), true),
            ("archives", format!(".partial-{sha256}"), true),
            ("archives", commit.clone(), false),
            ("lost+found", commit, false),
        ] {
            let place = Place::of_entry(group, &entry);
            assert_eq!(place.is_some(), ours, "{group}/{entry}");
        }
    }
}
