//! The `convert` subcommand: safetensors beside the pickled weights of a directory, and what they are.

use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::Serialize;

use crate::config::Convert;
use crate::convert::{self, BIN, BIN_INDEX, Conversion};
use crate::fetch::{Progress, stderr_progress};
use crate::model::weights::Weights;

/// What was converted; printed as one line of JSON.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// The directory.
    pub directory: String,
    /// What was made, in order of names.
    pub converted: Vec<Made>,
    /// Safetensors that were there already, beside pickled weights.
    pub unchanged: Vec<String>,
}

/// A file that was made.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Made {
    /// Of which file, in the directory.
    pub from: String,
    /// Its name, in the directory.
    pub to: String,
    /// How many tensors it has, or an index names.
    pub tensors: usize,
    /// How long it is.
    pub bytes: u64,
    /// Its sha256.
    pub sha256: String,
}

/// Converts what is pickled in the directory and in the folders in it. What was converted before an error stays.
pub fn run(config: &Convert) -> anyhow::Result<Summary> {
    let directory = &config.directory;
    let (mut converted, mut unchanged, mut has_weights) = (Vec::new(), Vec::new(), false);
    let mut progress = stderr_progress();
    for folder in folders(directory)? {
        let is_pickled = [BIN, BIN_INDEX].iter().any(|name| is_named(&folder.join(name)));
        let is_there = Weights::are_in(&folder);
        has_weights |= is_pickled || is_there;
        match (is_pickled, is_there) {
            (true, false) => convert_folder(directory, &folder, &mut converted, &mut *progress)?,
            (true, true) => {
                unchanged.extend(Weights::open(&folder)?.paths().iter().map(|path| name(directory, path)));
            }
            (false, _) => {}
        }
    }
    anyhow::ensure!(has_weights, "{}: has no {BIN}, and no safetensors either", directory.display());
    Ok(Summary { directory: directory.display().to_string(), converted, unchanged })
}

/// Whether there is anything of this name. A link that leads nowhere counts, so that an error can say what it is.
fn is_named(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

/// The directory, and what may be folders of modules. No links to folders: what is elsewhere is not the directory's.
fn folders(directory: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let listing =
        || format!("{}: cannot be listed; give the directory that the weights are in", directory.display());
    let mut folders = Vec::new();
    for entry in std::fs::read_dir(directory).with_context(listing)? {
        let entry = entry.with_context(listing)?;
        if entry.file_type().with_context(listing)?.is_dir() {
            folders.push(entry.path());
        }
    }
    folders.sort_unstable();
    folders.insert(0, directory.to_owned());
    Ok(folders)
}

fn convert_folder(
    directory: &Path,
    folder: &Path,
    converted: &mut Vec<Made>,
    progress: &mut dyn Progress,
) -> anyhow::Result<()> {
    let single = folder.join(BIN);
    if is_named(&single) {
        converted.push(convert_file(directory, &single, progress)?);
        return Ok(());
    }
    let bin_index = folder.join(BIN_INDEX);
    let mut tensors = 0;
    for shard in convert::shards(&bin_index)? {
        let made = convert_file(directory, &folder.join(shard), progress)?;
        tensors += made.tensors;
        converted.push(made);
    }
    // Last: with it, the shards are weights.
    let written = convert::write_index(&bin_index)?;
    let from = name(directory, &bin_index);
    let to = convert::target_name(&from);
    converted.push(Made { from, to, tensors, bytes: written.bytes, sha256: written.sha256 });
    Ok(())
}

fn convert_file(directory: &Path, bin: &Path, progress: &mut dyn Progress) -> Result<Made, convert::Error> {
    let from = name(directory, bin);
    let to = convert::target_name(&from);
    let conversion = Conversion::read(bin)?;
    let tensors = conversion.tensors();
    let mut writing = conversion.write_beside(&directory.join(&to))?;
    while let Some(done) = writing.step()? {
        progress.converting(&from, done, writing.size());
    }
    let written = writing.finish()?;
    Ok(Made { from, to, tensors, bytes: written.bytes, sha256: written.sha256 })
}

/// A path as it is called in the directory.
fn name(directory: &Path, path: &Path) -> String {
    path.strip_prefix(directory).unwrap_or(path).display().to_string()
}
