//! The hashes of a model's tensors, kept beside them, so that a start need not compute them.
//!
//! `fetch` writes `tensors.sha256.json` into each folder with weights. `serve` believes it while
//! the files have the size and the time of change that they had; otherwise it hashes what it reads.
//! Who can write this file can write the weights, too.

use std::collections::BTreeMap;
use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::weights::{self, Weights};
use crate::space::{self, hex};

/// The name of the file.
pub const FILE: &str = "tensors.sha256.json";

/// How a file is recognised.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Stamp {
    bytes: u64,
    modified_ns: i128,
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        let modified_ns = i128::from(metadata.mtime()) * 1_000_000_000 + i128::from(metadata.mtime_nsec());
        Self { bytes: metadata.len(), modified_ns }
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Record {
    files: BTreeMap<String, Stamp>,
    tensors: BTreeMap<String, String>,
}

/// What is known about the tensors of a folder; nothing where nothing is, or no longer.
#[derive(Debug, Default)]
pub(crate) struct Digests(BTreeMap<String, String>);

fn stamps(paths: &[PathBuf]) -> io::Result<BTreeMap<String, Stamp>> {
    let stamp = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok((name, Stamp::of(&path.metadata()?)))
    };
    paths.iter().map(stamp).collect()
}

impl Digests {
    /// Of the weights in these files of a folder.
    pub(crate) fn of(folder: &Path, paths: &[PathBuf]) -> Self {
        let read =
            || -> Option<Record> { serde_json::from_slice(&std::fs::read(folder.join(FILE)).ok()?).ok() };
        let Some(record) = read() else { return Self::default() };
        match stamps(paths) {
            Ok(stamps) if stamps == record.files => Self(record.tensors),
            _ => Self::default(),
        }
    }

    /// The sha256 of a tensor's bytes.
    pub(crate) fn get(&self, name: &str) -> Option<space::Digest> {
        let text = self.0.get(name)?;
        let byte = |at: usize| u8::from_str_radix(text.get(2 * at..2 * at + 2)?, 16).ok();
        let bytes: Option<Vec<u8>> = (0..text.len() / 2).map(byte).collect();
        bytes?.try_into().ok()
    }
}

/// Why hashes cannot be kept.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The weights cannot be read.
    #[error(transparent)]
    Weights(#[from] weights::Error),
    /// The file cannot be written.
    #[error("cannot write {path}")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Hashes the tensors in a model's directory, and in the folders in it, and keeps the hashes.
pub fn keep(directory: &Path) -> Result<(), Error> {
    let mut folders = vec![directory.to_owned()];
    let inner = std::fs::read_dir(directory).into_iter().flatten().flatten();
    folders.extend(inner.map(|entry| entry.path()).filter(|path| path.is_dir()));
    for folder in folders.into_iter().filter(|folder| Weights::are_in(folder)) {
        let weights = Weights::open(&folder)?;
        let path = folder.join(FILE);
        let write = |source| Error::Write { path: path.clone(), source };
        let tensors = weights.hash_all()?.into_iter().map(|(name, digest)| (name, hex(&digest))).collect();
        let record = Record { files: stamps(&weights.paths()).map_err(write)?, tensors };
        let text = serde_json::to_vec(&record).map_err(|error| write(error.into()))?;
        // A file that is half written is no JSON, and is not believed.
        std::fs::write(&path, text).map_err(write)?;
    }
    Ok(())
}
