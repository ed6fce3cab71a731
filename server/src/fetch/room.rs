//! Room for what is to come: models that nobody needs any more go, and the free space is
//! looked at before gigabytes are asked for.
//!
//! # Guarantees
//! - Without a list of what to keep, nothing is removed.
//! - Only what is named like a model of ours is removed, never through a link, and never
//!   while another process writes to it.
//! - What is removed is no complete model from the first moment on.
//!
//! # Caveats
//! Whether a server reads a model is not known here: what is served has to be on the list.

use std::collections::BTreeSet;
use std::fs::{self, File, TryLockError};
use std::path::Path;

use indicatif::DecimalBytes;

use super::Error;
use super::place::Place;
use super::source::is_commit;
use crate::disk;

/// Removes every model from the cache at `root` that is neither wanted nor kept, with the
/// refs that point to it. What cannot be removed is told, and stays: whether the room is
/// enough, [`check_space`] says.
pub(super) fn make(root: &Path, keep: &BTreeSet<Place>, wanted: &Place) {
    for group in names_of_folders(root) {
        let entries = names_of_folders(&root.join(&group));
        let places: BTreeSet<_> = entries.iter().filter_map(|entry| Place::of_entry(&group, entry)).collect();
        for place in &places {
            if place != wanted && !keep.contains(place) {
                remove(root, place).unwrap_or_else(|error| {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        directory = %place.complete(root).display(),
                        "cannot remove a model that nobody needs"
                    );
                });
            }
        }
        if !places.is_empty() {
            forget_refs(&root.join(&group), wanted);
        }
    }
}

/// What cannot be listed has nothing that we could remove.
fn names_of_folders(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        // Of the entry itself: a link to a folder is none.
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect()
}

fn remove(root: &Path, place: &Place) -> Result<(), Error> {
    let path = place.lock(root);
    let lock = File::options().create(true).append(true).open(&path).map_err(Error::io("creating", &path))?;
    let (complete, partial) = (place.complete(root), place.partial(root));
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            tracing::info!(directory = %complete.display(), "another process writes to this model: it stays");
            return Ok(());
        }
        Err(TryLockError::Error(error)) => return Err(Error::io("locking", &path)(error)),
    }
    let bytes = size(&complete) + size(&partial);
    if partial.exists() {
        fs::remove_dir_all(&partial).map_err(Error::io("removing", &partial))?;
    }
    if complete.exists() {
        // Half a model must not be taken for one if this ends here.
        fs::rename(&complete, &partial).map_err(Error::io("setting aside", &complete))?;
        fs::remove_dir_all(&partial).map_err(Error::io("removing", &partial))?;
    }
    tracing::info!(directory = %complete.display(), bytes, "removed a model that nobody needs");
    Ok(())
}

/// Of a folder's files, without following links.
fn size(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => size(&entry.path()),
            Ok(metadata) => metadata.len(),
            Err(_) => 0,
        })
        .sum()
}

/// A ref to a commit that is neither here nor about to come is of no use.
fn forget_refs(model: &Path, wanted: &Place) {
    for entry in fs::read_dir(model.join("refs")).into_iter().flatten().flatten() {
        let Ok(commit) = fs::read_to_string(entry.path()) else { continue };
        let commit = commit.trim();
        if is_commit(commit) && commit != wanted.name() && !model.join(commit).exists() {
            // One that stays does no harm: it finds nothing.
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// Whether `needed` bytes have a chance to fit where `directory` is, or is to be.
pub(super) fn check_space(directory: &Path, needed: u64) -> Result<(), Error> {
    // Where nobody says, writing will tell.
    disk::free(directory).map_or(Ok(()), |free| judge(directory, needed, free))
}

fn judge(directory: &Path, needed: u64, free: u64) -> Result<(), Error> {
    if needed <= free {
        return Ok(());
    }
    Err(Error::NoRoom {
        directory: directory.to_owned(),
        needed: DecimalBytes(needed).to_string(),
        free: DecimalBytes(free).to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_little_room_names_both_numbers_and_the_directory() {
        let cache = Path::new("cache/model");
        assert!(judge(cache, 10, 10).is_ok());
        assert_eq!(
            judge(cache, 1_340_000_000, 20_000_000).unwrap_err().to_string(),
            "fetching 1.34 GB into cache/model: only 20.00 MB are free there; make room, choose a larger \
             volume, or another cache directory"
        );
        assert!(check_space(Path::new("."), 0).is_ok());
        assert!(check_space(Path::new("."), u64::MAX).is_err());
        assert!(check_space(Path::new("/not/there"), u64::MAX).is_err());
    }
}
