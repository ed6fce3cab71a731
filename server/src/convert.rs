//! Weights that `torch.save` wrote (`pytorch_model.bin`) become safetensors, without Python and without running
//! anything.
//!
//! ```text
//! .bin ─▶ checkpoint ─▶ layout ─▶ model.safetensors
//!         zip, pickle   numbers
//! ```
//!
//! # Flow
//! [`Conversion::read`] tells all about a file's tensors: it reads its directory and its pickle, of which
//! [`pickle`] runs those instructions that make tensors. [`Conversion::write`] then brings the numbers over, one
//! [`Writing::step`] of some megabytes after the other, so that whoever drives it can stop in between, and say how
//! far it is. Shards are converted one by one; [`write_index`] makes the index of them.
//!
//! # Guarantees
//! - The same tensors make the same bytes, on every machine and with every version of `torch.save`: those that
//!   `safetensors.torch.save_file` writes.
//! - The target's name is there when all of it is on the disk, and not before.
//! - Nothing is written through a link, whether it has the target's name or that of the unfinished file.
//! - Any bytes at all are safe to read: they cost bounded memory and time, and end in an [`Error`] of one line.
//!
//! # Caveats
//! Tied weights, which are one storage under several names, are written once for each name.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File, TryLockError};
use std::io::{self, Write as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use indicatif::DecimalBytes;
use safetensors::tensor::{Metadata, TensorInfo};
use serde::Deserialize;
use serde_json::json;
use sha2::{Digest as _, Sha256};
use tempfile::TempPath;

use crate::disk;
use crate::space::hex;

mod checkpoint;
mod layout;
mod pickle;
mod zip;

use checkpoint::{Checkpoint, Tensor, width};
use pickle::shown;

/// What a model's pickled weights are called.
pub const BIN: &str = "pytorch_model.bin";
/// Which shard holds which tensor, where there are several.
pub const BIN_INDEX: &str = "pytorch_model.bin.index.json";

/// Which file has which tensor, where there are several files; the same of pickled weights and of safetensors.
#[derive(Deserialize)]
pub(crate) struct Index {
    pub(crate) weight_map: BTreeMap<String, String>,
}

/// A safetensors file's header is limited to this by its specification.
const MAX_HEADER: usize = 100_000_000;
/// The names of a hundred thousand tensors, and their files, take some 10 MB.
const MAX_INDEX: u64 = 16 << 20;

/// Why a file is not converted: the file, and what is wrong with it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It holds something else than tensors, or is damaged.
    #[error("{}: {problem}", path.display())]
    Refused {
        /// The file.
        path: PathBuf,
        /// What it holds.
        problem: String,
    },
    /// It cannot be read.
    #[error("{}: cannot be read", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// What it is to become cannot be written.
    #[error("{}: cannot be written", path.display())]
    Write {
        /// The target.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// There is too little room for what it is to become.
    #[error("{}: takes {needed}, and only {free} are free there; make room", path.display())]
    NoRoom {
        /// The target.
        path: PathBuf,
        /// How much it takes.
        needed: String,
        /// How much room there is.
        free: String,
    },
    /// Somebody else converts it at this moment.
    #[error("{}: another process is writing it", path.display())]
    Busy {
        /// The target.
        path: PathBuf,
    },
}

impl Error {
    /// Whether the file itself is the reason, so that trying again does not help.
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Refused { .. })
    }
}

/// What stops reading a file, before it is said which one.
#[derive(Debug)]
enum Fault {
    Refused(String),
    Io(io::Error),
}

impl From<String> for Fault {
    fn from(problem: String) -> Self {
        Self::Refused(problem)
    }
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Self::Refused("ends too early: cut off?".to_owned()),
            _ => Self::Io(error),
        }
    }
}

impl Fault {
    fn of(self, path: &Path) -> Error {
        let path = path.to_owned();
        match self {
            Self::Refused(problem) => Error::Refused { path, problem },
            Self::Io(source) => Error::Read { path, source },
        }
    }
}

/// The name of what pickled weights become, in the same folder: `model.safetensors` of `pytorch_model.bin`, and so
/// with shards and with the index.
pub fn target_name(bin: &str) -> String {
    let (folder, name) = bin.rsplit_once('/').map_or(("", bin), |(folder, name)| (folder, name));
    let name = name.strip_prefix("pytorch_").unwrap_or(name);
    let name = match (name.strip_suffix(".bin.index.json"), name.strip_suffix(".bin")) {
        (Some(stem), _) => format!("{stem}.safetensors.index.json"),
        (None, Some(stem)) => format!("{stem}.safetensors"),
        (None, None) => format!("{name}.safetensors"),
    };
    if folder.is_empty() { name } else { format!("{folder}/{name}") }
}

/// The same of a path.
fn target_of(bin: &Path) -> PathBuf {
    bin.with_file_name(target_name(&bin.file_name().unwrap_or_default().to_string_lossy()))
}

/// A file that can be converted.
#[derive(Debug)]
pub struct Conversion {
    path: PathBuf,
    file: File,
    big_endian: bool,
    /// In the order in which they are written.
    tensors: Vec<Tensor>,
    header: Vec<u8>,
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// How long it is.
    pub bytes: u64,
    /// Its sha256.
    pub sha256: String,
}

impl Conversion {
    /// Reads which tensors `path` has, and none of their numbers.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let read = || -> Result<_, Fault> {
            let file = disk::open_regular(path).map_err(|error| match fs::read_link(path) {
                Ok(_) if error.kind() == io::ErrorKind::NotFound => {
                    Fault::Refused("is a link to a file that is not there".to_owned())
                }
                _ => error.into(),
            })?;
            let Checkpoint { tensors, big_endian } = Checkpoint::read(&file)?;
            // As `safetensors.torch.save_file` does: wide numbers first, so that all are aligned.
            let mut tensors: Vec<_> = tensors.into_iter().collect();
            tensors.sort_by(|(name, tensor), (other_name, other)| {
                other.dtype.cmp(&tensor.dtype).then_with(|| name.cmp(other_name))
            });
            let header = header(&tensors)?;
            let tensors = tensors.into_iter().map(|(_, tensor)| tensor).collect();
            Ok(Self { path: path.to_owned(), file, big_endian, tensors, header })
        };
        read().map_err(|fault| fault.of(path))
    }

    /// How many tensors it has.
    pub fn tensors(&self) -> usize {
        self.tensors.len()
    }

    /// How long the safetensors file will be.
    pub fn size(&self) -> u64 {
        self.header.len() as u64 + self.tensors.iter().map(|tensor| tensor.layout.bytes()).sum::<u64>()
    }

    /// Begins to write it to `target`, under another name until all is there. Replaces what has the target's name.
    pub fn write(self, target: &Path) -> Result<Writing, Error> {
        self.begin(target, None)
    }

    /// The same, and replaces nothing but what an earlier run has made of the same tensors.
    pub fn write_beside(self, target: &Path) -> Result<Writing, Error> {
        let there = match disk::open_regular(target) {
            Ok(file) => Some(file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(source) => return Err(Error::Write { path: target.to_owned(), source }),
        };
        self.begin(target, there)
    }

    fn begin(self, target: &Path, there: Option<File>) -> Result<Writing, Error> {
        if let Some(there) = &there {
            let failed = |source| Error::Read { path: target.to_owned(), source };
            if there.metadata().map_err(failed)?.len() != self.size() {
                return Err(other(target, &self.path));
            }
        }
        let (out, temporary) = claim(target)?;
        if let Some(free) = disk::free(&temporary).filter(|free| *free < self.size()) {
            let [needed, free] = [self.size(), free].map(|bytes| DecimalBytes(bytes).to_string());
            return Err(Error::NoRoom { path: target.to_owned(), needed, free });
        }
        let mut writing = Writing {
            size: self.size(),
            conversion: self,
            target: target.to_owned(),
            there,
            temporary,
            out,
            hasher: Sha256::new(),
            written: 0,
            next: (0, 0),
            buffer: Vec::new(),
        };
        let header = std::mem::take(&mut writing.conversion.header);
        writing.put(&header)?;
        Ok(writing)
    }
}

/// The target is there, and nothing that its pickle becomes.
fn other(target: &Path, bin: &Path) -> Error {
    let bin = shown(&bin.file_name().unwrap_or_default().to_string_lossy());
    let problem = format!("is there already and is not what {bin} becomes; move one of the two away");
    Error::Refused { path: target.to_owned(), problem }
}

/// Opens the file that is to become `target`, empty, for nobody else. What an interrupted run has left is written
/// over; what else has its name, and may lead to somebody's file, is not.
fn claim(target: &Path) -> Result<(File, TempPath), Error> {
    let name = target.file_name().unwrap_or_default().to_string_lossy();
    let temporary = target.with_file_name(format!(".{name}.partial"));
    let failed = |source| Error::Write { path: target.to_owned(), source };
    let busy = || Error::Busy { path: target.to_owned() };
    let unfit =
        || failed(io::Error::other(format!(".{name}.partial, beside it, is no plain file; remove it")));
    // Follows no link, and waits for no reader of a pipe.
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let mut options = File::options();
    options.create(true).write(true).truncate(false).custom_flags(flags);
    let out = options.open(&temporary).map_err(|error| match fs::symlink_metadata(&temporary) {
        Ok(there) if !there.is_file() => unfit(),
        _ => failed(error),
    })?;
    // Under another name it is somebody's file. None is what it has when its writer has just given up.
    let own = out.metadata().map_err(failed)?;
    if !own.is_file() || own.nlink() > 1 {
        return Err(unfit());
    }
    match out.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(busy()),
        Err(TryLockError::Error(error)) => return Err(failed(error)),
    }
    // Whoever had the lock before may have given the file its final name.
    let same = |there: fs::Metadata| (own.dev(), own.ino()) == (there.dev(), there.ino());
    if !fs::symlink_metadata(&temporary).is_ok_and(same) {
        return Err(busy());
    }
    out.set_len(0).map_err(failed)?;
    let temporary = TempPath::try_from_path(temporary).map_err(failed)?;
    Ok((out, temporary))
}

/// Gives what is on the disk its name. A link of that name is replaced, and not followed.
fn release(temporary: TempPath, target: &Path) -> Result<(), Error> {
    let failed = |source| Error::Write { path: target.to_owned(), source };
    temporary.persist(target).map_err(|error| failed(error.error))?;
    let folder = target.parent().filter(|folder| !folder.as_os_str().is_empty());
    disk::sync_folder(folder.unwrap_or(Path::new("."))).map_err(failed)
}

/// A safetensors file that is not whole yet.
#[derive(Debug)]
pub struct Writing {
    conversion: Conversion,
    target: PathBuf,
    /// What has the target's name, if it has to be the same.
    there: Option<File>,
    /// Removed where it does not become the target.
    temporary: TempPath,
    /// Locked as long as it is open.
    out: File,
    hasher: Sha256,
    written: u64,
    size: u64,
    /// Which tensor, and how many of its bytes are written.
    next: (usize, u64),
    buffer: Vec<u8>,
}

impl Writing {
    /// How long it will be.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Writes some more. How much there is then; `None` when there is nothing more to write.
    pub fn step(&mut self) -> Result<Option<u64>, Error> {
        let Conversion { path, file, big_endian, tensors, .. } = &self.conversion;
        let (mut place, mut done) = self.next;
        let mut buffer = std::mem::take(&mut self.buffer);
        loop {
            let Some(Tensor { dtype, layout, .. }) = tensors.get(place) else { return Ok(None) };
            layout.read(file, done, &mut buffer).map_err(|error| Fault::from(error).of(path))?;
            if !buffer.is_empty() {
                if *big_endian {
                    buffer.chunks_exact_mut(width(*dtype) as usize).for_each(<[u8]>::reverse);
                }
                break;
            }
            (place, done) = (place + 1, 0);
        }
        self.next = (place, done + buffer.len() as u64);
        self.put(&buffer)?;
        self.buffer = buffer;
        Ok(Some(self.written))
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), Error> {
        if let Some(there) = &self.there {
            let mut found = vec![0; bytes.len()];
            let read = there.read_exact_at(&mut found, self.written);
            if read.is_err() || found != bytes {
                return Err(other(&self.target, &self.conversion.path));
            }
        }
        let failed = |source| Error::Write { path: self.target.clone(), source };
        self.out.write_all(bytes).map_err(failed)?;
        self.hasher.update(bytes);
        self.written += bytes.len() as u64;
        Ok(())
    }

    /// Writes what is left, and gives the file its name.
    pub fn finish(mut self) -> Result<Written, Error> {
        while self.step()?.is_some() {}
        let Self { target, temporary, out, hasher, written, .. } = self;
        let failed = |source| Error::Write { path: target.clone(), source };
        out.sync_all().map_err(failed)?;
        release(temporary, &target)?;
        Ok(Written { bytes: written, sha256: hex(&hasher.finalize()) })
    }
}

/// What precedes the numbers of these tensors, its own length included.
fn header(tensors: &[(String, Tensor)]) -> Result<Vec<u8>, String> {
    let mut end = 0;
    let infos = tensors.iter().map(|(name, Tensor { dtype, shape, layout })| {
        let start = end;
        end += layout.bytes() as usize;
        (name.clone(), TensorInfo { dtype: *dtype, shape: shape.clone(), data_offsets: (start, end) })
    });
    // Without it, some versions of transformers refuse the file.
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let unfit = |why: String| format!("has tensors that no safetensors file can hold: {}", shown(&why));
    let metadata =
        Metadata::new(Some(metadata), infos.collect()).map_err(|error| unfit(error.to_string()))?;
    let mut json = serde_json::to_vec(&metadata).map_err(|error| unfit(error.to_string()))?;
    json.resize(json.len().next_multiple_of(8), b' ');
    if json.len() > MAX_HEADER {
        return Err(unfit(format!("their names and shapes take {} bytes", json.len())));
    }
    let mut header = (json.len() as u64).to_le_bytes().to_vec();
    header.append(&mut json);
    Ok(header)
}

/// Names of the tensors in a safetensors file of ours.
fn names(path: &Path) -> Result<(Vec<String>, u64), Error> {
    let read = || -> Result<_, Fault> {
        let file = disk::open_regular(path)?;
        let mut length = [0; 8];
        file.read_exact_at(&mut length, 0)?;
        let length = u64::from_le_bytes(length);
        if length > MAX_HEADER as u64 {
            return Err(Fault::Refused("is no safetensors file".to_owned()));
        }
        let mut json = vec![0; length as usize];
        file.read_exact_at(&mut json, 8)?;
        let metadata: Metadata =
            serde_json::from_slice(&json).map_err(|_| Fault::Refused("is no safetensors file".to_owned()))?;
        Ok((metadata.offset_keys(), metadata.data_len() as u64))
    };
    read().map_err(|fault| fault.of(path))
}

/// The shards that an index of pickled weights names.
pub fn shards(path: &Path) -> Result<Vec<String>, Error> {
    let index = read_index(path)?;
    let refused = |problem| Err(Error::Refused { path: path.to_owned(), problem });
    let mut shards: Vec<String> = index.weight_map.into_values().collect();
    shards.sort_unstable();
    shards.dedup();
    if shards.is_empty() {
        return refused("names no file".to_owned());
    }
    // Names come to terminals, as parts of paths.
    let is_plain = |name: &str| !name.contains(['/', '\\']) && !name.contains(char::is_control);
    let mut targets = BTreeMap::new();
    for name in &shards {
        if !is_plain(name) || name.strip_suffix(".bin").is_none() {
            return refused(format!("names {}, which is no .bin file beside it", shown(name)));
        }
        if let Some(other) = targets.insert(target_name(name), name) {
            let target = shown(&target_name(name));
            let [other, name] = [other, name].map(|name| shown(name));
            return refused(format!("names {other} and {name}, and both would become {target}"));
        }
    }
    Ok(shards)
}

fn read_index(path: &Path) -> Result<Index, Error> {
    let json =
        disk::read_small(path, MAX_INDEX).map_err(|source| Error::Read { path: path.to_owned(), source })?;
    serde_json::from_slice(&json).map_err(|error| Error::Refused {
        path: path.to_owned(),
        problem: format!("not a valid index: {error}"),
    })
}

/// Writes the index of the safetensors files that the shards of the index `bin_index` have become, beside it.
///
/// The tensors are those that the shards have. What the old index says of them has to be so.
pub fn write_index(bin_index: &Path) -> Result<Written, Error> {
    let json = index(bin_index)?;
    let target = target_of(bin_index);
    let failed = |source| Error::Write { path: target.clone(), source };
    let (mut out, temporary) = claim(&target)?;
    out.write_all(&json).and_then(|()| out.sync_all()).map_err(failed)?;
    release(temporary, &target)?;
    Ok(Written { bytes: json.len() as u64, sha256: hex(&Sha256::digest(&json)) })
}

fn index(bin_index: &Path) -> Result<Vec<u8>, Error> {
    let refused = |problem| Error::Refused { path: bin_index.to_owned(), problem };
    let mut weight_map: BTreeMap<String, String> = BTreeMap::new();
    let mut total_size = 0;
    for shard in shards(bin_index)? {
        let target = target_name(&shard);
        let (names, bytes) = names(&bin_index.with_file_name(&target))?;
        total_size += bytes;
        for name in names {
            if let Some(other) = weight_map.insert(name.clone(), target.clone()) {
                let problem = format!("names two files with the tensor {}: {other}, {target}", shown(&name));
                return Err(refused(problem));
            }
        }
    }
    for (name, shard) in read_index(bin_index)?.weight_map {
        if weight_map.get(&name) != Some(&target_name(&shard)) {
            let problem =
                format!("says that {} is in {}, which does not have it", shown(&name), shown(&shard));
            return Err(refused(problem));
        }
    }
    let index = json!({"metadata": {"total_size": total_size}, "weight_map": weight_map});
    serde_json::to_vec_pretty(&index).map_err(|error| refused(error.to_string()))
}
