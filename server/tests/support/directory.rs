//! The tiny models of every architecture, and copies of them that can be changed.

use std::fs;
use std::path::{Path, PathBuf};

/// The directories of all of them, in order of names.
pub fn families() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/families");
    let mut families: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    families.sort();
    assert!(families.len() > 20, "{families:?}");
    families
}

/// Copies a directory to where there is none, or an empty one.
pub fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap().path();
        let target = to.join(entry.file_name().unwrap());
        if entry.is_dir() {
            copy(&entry, &target);
        } else {
            fs::copy(&entry, &target).unwrap();
        }
    }
}

/// A copy of a directory, of another name.
pub fn copied(path: &Path) -> tempfile::TempDir {
    let copied = tempfile::tempdir().unwrap();
    copy(path, copied.path());
    copied
}
