//! The files that have come into a partial directory, and what they become: weights that come pickled are made
//! safetensors, everything else stays as it is.
//!
//! # Flow
//! Pickled weights are converted as soon as they are here and verified, and removed: of several shards only one is
//! here in both forms at a time. What was made of which file is noted before the file goes.
//!
//! # Guarantees
//! - Interrupted at any point, the next run goes on: what was converted is neither fetched nor converted again, if it
//!   still is what it was.
//! - The record says of which file, by its sha256, each converted one was made, so that a manifest holds for it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::path::Path;

use super::cache::{Kept, Pickled};
use super::digest::{Expected, Hasher};
use super::list::Wanted;
use super::select::{BIN_INDEX, Chosen};
use super::{Error, Progress, blocking};
use crate::convert::{self, Conversion, Writing, Written};

/// What was converted here, until the directory is complete. No file of a model has its name.
const NOTES: &str = ".converted.json";

/// Files on their way into the record.
pub(super) struct Arrivals<'a> {
    directory: &'a Path,
    /// What errors call the model.
    name: &'a str,
    /// Which files hold pickled weights.
    pickled: &'a BTreeSet<String>,
    files: BTreeMap<String, Kept>,
    /// Of pickled weights in several files.
    index: Option<Kept>,
    notes: BTreeMap<String, Kept>,
}

impl<'a> Arrivals<'a> {
    pub(super) fn new(directory: &'a Path, name: &'a str, chosen: &'a Chosen) -> Self {
        // Half a note is no JSON, and is not believed.
        let notes = fs::read(directory.join(NOTES)).ok().and_then(|json| serde_json::from_slice(&json).ok());
        let notes = notes.unwrap_or_default();
        Self { directory, name, pickled: &chosen.pickled, files: BTreeMap::new(), index: None, notes }
    }

    /// Whether an earlier run has made of `wanted` what is still here: then it need not come again.
    pub(super) async fn has_converted(&mut self, wanted: &Wanted) -> Result<bool, Error> {
        let Some((target, kept)) = self.noted(wanted) else { return Ok(false) };
        let path = self.directory.join(&target);
        // It only reads, so it does no harm if it runs on after the caller was dropped.
        let found = blocking(move || sha256(&path)).await?;
        Ok(self.take_noted(target, kept, found))
    }

    /// The same, and blocks.
    pub(super) fn has_converted_blocking(&mut self, wanted: &Wanted) -> Result<bool, Error> {
        let Some((target, kept)) = self.noted(wanted) else { return Ok(false) };
        let found = sha256(&self.directory.join(&target))?;
        Ok(self.take_noted(target, kept, found))
    }

    fn noted(&self, wanted: &Wanted) -> Option<(String, Kept)> {
        let Expected::Sha256(expected) = &wanted.expected else { return None };
        let target = convert::target_name(&wanted.path);
        let kept = self.notes.get(&target).filter(|_| self.pickled.contains(&wanted.path))?;
        let pickled = Pickled { file: wanted.path.clone(), sha256: expected.clone() };
        (kept.converted_from == Some(pickled)).then(|| (target, kept.clone()))
    }

    fn take_noted(&mut self, target: String, kept: Kept, found: Option<String>) -> bool {
        let is_same = found.is_some_and(|sha256| sha256 == kept.sha256);
        if is_same {
            self.files.insert(target, kept);
        }
        is_same
    }

    /// Room that is needed for these files, of so many bytes each; `true` for those that are as good as here.
    pub(super) fn room<'f>(&self, files: impl Iterator<Item = (&'f str, u64, bool)>) -> u64 {
        let (mut stays, mut goes) = (0u64, 0);
        for (file, size, is_here) in files {
            let here = fs::metadata(self.directory.join(file)).map_or(0, |found| found.len());
            let missing = if is_here { 0 } else { size.saturating_sub(here) };
            if self.pickled.contains(file) {
                // What it becomes is as large, to a few bytes.
                stays = stays.saturating_add(size);
                goes = missing.max(goes);
            } else {
                stays = stays.saturating_add(missing);
            }
        }
        stays.saturating_add(goes)
    }

    /// Takes a file that is here and verified.
    pub(super) async fn add(
        &mut self,
        file: &str,
        kept: Kept,
        progress: &mut dyn Progress,
    ) -> Result<(), Error> {
        let Some(mut writing) = self.begin(file, &kept)? else { return Ok(()) };
        // Here and not on a thread of its own: dropped, it ends at the next step, and nobody writes on into a
        // directory that is no longer claimed.
        while let Some(done) = self.step(&mut writing, file)? {
            progress.converting(file, done, writing.size());
            tokio::task::yield_now().await;
        }
        self.end(file, kept, writing)
    }

    /// The same, and blocks.
    pub(super) fn add_blocking(&mut self, file: &str, kept: Kept) -> Result<(), Error> {
        match self.begin(file, &kept)? {
            None => Ok(()),
            Some(writing) => self.end(file, kept, writing),
        }
    }

    /// Nothing where the file stays what it is.
    fn begin(&mut self, file: &str, kept: &Kept) -> Result<Option<Writing>, Error> {
        if file == BIN_INDEX {
            self.index = Some(kept.clone());
            return Ok(None);
        }
        if !self.pickled.contains(file) {
            self.files.insert(file.to_owned(), kept.clone());
            return Ok(None);
        }
        let conversion = Conversion::read(&self.directory.join(file)).map_err(self.failed(file))?;
        let target = self.directory.join(convert::target_name(file));
        conversion.write(&target).map(Some).map_err(self.failed(file))
    }

    fn step(&self, writing: &mut Writing, file: &str) -> Result<Option<u64>, Error> {
        writing.step().map_err(self.failed(file))
    }

    fn end(&mut self, file: &str, kept: Kept, writing: Writing) -> Result<(), Error> {
        let written = writing.finish().map_err(self.failed(file))?;
        let (target, made) = self.insert(file, kept.sha256, written);
        self.notes.insert(target, made);
        let notes = self.directory.join(NOTES);
        serde_json::to_vec(&self.notes)
            .map_err(std::io::Error::other)
            .and_then(|json| fs::write(&notes, json))
            .map_err(Error::io("writing", &notes))?;
        let pickle = self.directory.join(file);
        fs::remove_file(&pickle).map_err(Error::io("removing", &pickle))
    }

    /// What `file` of this sha256 has become.
    fn insert(&mut self, file: &str, sha256: String, written: Written) -> (String, Kept) {
        let pickled = Pickled { file: file.to_owned(), sha256 };
        let made = Kept { size: written.bytes, sha256: written.sha256, converted_from: Some(pickled) };
        let target = convert::target_name(file);
        self.files.insert(target.clone(), made.clone());
        (target, made)
    }

    /// All that the directory holds now.
    pub(super) fn into_files(mut self) -> Result<BTreeMap<String, Kept>, Error> {
        if let Some(Kept { sha256, .. }) = self.index.take() {
            let written =
                convert::write_index(&self.directory.join(BIN_INDEX)).map_err(self.failed(BIN_INDEX))?;
            self.insert(BIN_INDEX, sha256, written);
        }
        Ok(self.files)
    }

    /// What the disk does is told as it is everywhere else.
    fn failed(&self, file: &str) -> impl FnOnce(convert::Error) -> Error {
        let (name, file) = (self.name.to_owned(), file.to_owned());
        move |error| match error {
            convert::Error::Read { path, source } => Error::io("reading", &path)(source),
            convert::Error::Write { path, source } => Error::io("writing", &path)(source),
            convert::Error::NoRoom { path, needed, free } => {
                Error::NoRoom { directory: path.parent().unwrap_or(&path).to_owned(), needed, free }
            }
            source => Error::Convert { repo: name, file, source: Box::new(source) },
        }
    }
}

/// Of a file, if there is one.
fn sha256(path: &Path) -> Result<Option<String>, Error> {
    let mut hasher = Hasher::new(0, &Expected::Unknown);
    match File::open(path).and_then(|mut file| hasher.read(&mut file)) {
        Ok(()) => Ok(Some(hasher.sums().sha256)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io("reading", path)(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pickled_weights_need_room_for_themselves_and_for_one_pickle_at_a_time() {
        let directory = tempfile::tempdir().unwrap();
        let pickled = ["a.bin", "b.bin"].map(str::to_owned).into();
        let chosen = Chosen { pickled, ..Chosen::default() };
        let arrivals = Arrivals::new(directory.path(), "org/name", &chosen);
        let room = |files: &[(&'static str, u64)]| {
            arrivals.room(files.iter().map(|&(file, size)| (file, size, false)))
        };
        assert_eq!(room(&[("config.json", 10), ("model.safetensors", 1000)]), 1010);
        assert_eq!(room(&[("config.json", 10), ("a.bin", 1000)]), 2010);
        assert_eq!(room(&[("a.bin", 1000), ("b.bin", 300)]), 2300);
        // What is here of a pickle takes no more room; what it becomes does.
        fs::write(directory.path().join("a.bin"), [0; 900]).unwrap();
        fs::write(directory.path().join("config.json"), [0; 10]).unwrap();
        assert_eq!(room(&[("config.json", 10), ("a.bin", 1000)]), 1100);
        assert_eq!(room(&[("a.bin", u64::MAX), ("b.bin", 300)]), u64::MAX);
        let linked = [("config.json", 99, true), ("b.bin", 300, true), ("model.safetensors", 9, false)];
        assert_eq!(arrivals.room(linked.into_iter()), 309);
    }
}
