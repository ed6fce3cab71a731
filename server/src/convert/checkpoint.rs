//! What `torch.save` makes of a dictionary of tensors: the tensors, by name, and where in the file their numbers are.
//!
//! ```text
//! since torch 1.6   a zip archive:      NAME/data.pkl     the pickle
//!                                       NAME/byteorder    "little" or "big"; little where there is none
//!                                       NAME/data/KEY     the numbers of a storage
//! before            one after another:  a number, a version, a description of the machine (pickles)
//!                                       the pickle
//!                                       a list of the storages' keys (a pickle)
//!                                       of each key: how many numbers (64 bits), and the numbers, little-endian
//! ```
//!
//! # Guarantees
//! - Every tensor lies within the storage that it names, and every storage within the file.
//! - All tensors together have at most [`MOST_TIMES`] as many bytes as the file, and are read with at most
//!   [`MAX_READS`] reads.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt as _;

use safetensors::Dtype;

use super::Fault;
use super::layout::Layout;
use super::pickle::{self, Pickle, Storage, shown};
use super::zip::{self, Entry};

/// The number 0x1950a86a20f9469cfc6c as a pickle: before torch 1.6, files begin with it.
const OLD: &[u8] = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.";
const ZIP: &[u8] = b"PK\x03\x04";
/// What stands in a clone of a repository in the place of a large file.
const POINTER: &[u8] = b"version https://git-lfs";
/// Tensors share storages where weights are tied: T5 has one under four names.
const MOST_TIMES: u64 = 8;
/// No machine has room for larger models; a sparse file of any size costs nothing to make.
const MAX_LENGTH: u64 = 1 << 40;
/// A minute's work, or less.
const MAX_READS: u64 = 50_000_000;

/// A tensor.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Tensor {
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<usize>,
    /// Where its numbers are.
    pub(super) layout: Layout,
}

/// The tensors of a file.
#[derive(Debug)]
pub(super) struct Checkpoint {
    pub(super) tensors: BTreeMap<String, Tensor>,
    /// Whether numbers begin with their most significant byte.
    pub(super) big_endian: bool,
}

/// Bytes of a number.
pub(super) fn width(dtype: Dtype) -> u64 {
    dtype.bitsize() as u64 / 8
}

impl Checkpoint {
    pub(super) fn read(file: &File) -> Result<Self, Fault> {
        let length = file.metadata()?.len();
        if length > MAX_LENGTH {
            return Err(Fault::Refused(format!("is larger than {MAX_LENGTH} bytes: not a model")));
        }
        let mut start = vec![0; POINTER.len().min(length as usize)];
        file.read_exact_at(&mut start, 0)?;
        if start.starts_with(ZIP) {
            Self::of_zip(file, length)
        } else if start.starts_with(OLD) {
            Self::of_old(file, length)
        } else if start.starts_with(POINTER) {
            Err(Fault::Refused(
                "is a Git LFS pointer and not the file itself: get it with `git lfs pull`".to_owned(),
            ))
        } else {
            Err(Fault::Refused("is nothing that torch.save writes".to_owned()))
        }
    }

    fn of_zip(file: &File, length: u64) -> Result<Self, Fault> {
        let entries = zip::entries(file, length)?;
        // Everything is in one folder, of any name.
        let pickles: Vec<_> = entries.keys().filter_map(|name| name.strip_suffix("/data.pkl")).collect();
        let [folder] = pickles[..] else {
            return Err(Fault::Refused(format!(
                "is a zip archive that torch.save did not write: it has {} files of the name data.pkl",
                pickles.len()
            )));
        };
        let big_endian = match entries.get(&format!("{folder}/byteorder")) {
            None => false,
            Some(entry) => match small(file, *entry, 16)?.as_slice() {
                b"little" => false,
                b"big" => true,
                _ => {
                    return Err(Fault::Refused(
                        "has an order of bytes that is neither little nor big".to_owned(),
                    ));
                }
            },
        };
        let data = small(file, entries[&format!("{folder}/data.pkl")], pickle::MAX_BYTES as u64)?;
        let (pickle, _) = Pickle::read(&data)?;
        let place = |storage: &Storage<'_>| -> Result<u64, Fault> {
            let key = shown(storage.key);
            let entry = entries.get(&format!("{folder}/data/{}", storage.key));
            let Entry { start, length } = *entry
                .ok_or_else(|| Fault::Refused(format!("lacks the storage {key} that its pickle names")))?;
            match storage.numbers.checked_mul(width(storage.dtype)) {
                Some(bytes) if bytes == length => Ok(start),
                _ => Err(Fault::Refused(format!(
                    "has a storage {key} of {length} bytes, but its pickle says {} numbers of {} bytes",
                    storage.numbers,
                    width(storage.dtype)
                ))),
            }
        };
        let tensors = tensors(&pickle, length, place)?;
        Ok(Self { tensors, big_endian })
    }

    fn of_old(file: &File, length: u64) -> Result<Self, Fault> {
        // All pickles are at its beginning.
        let mut start = vec![0; length.min(2 * pickle::MAX_BYTES as u64) as usize];
        file.read_exact_at(&mut start, 0)?;
        let mut at = OLD.len();
        let mut next = || -> Result<Pickle<'_>, String> {
            let rest = &start[at..];
            let (pickle, length) = Pickle::read(&rest[..rest.len().min(pickle::MAX_BYTES)])?;
            at += length;
            Ok(pickle)
        };
        let (_version, _machine, pickle, keys) = (next()?, next()?, next()?, next()?);
        let keys = keys.texts().ok_or_else(|| Fault::Refused("has no list of its storages".to_owned()))?;
        let known: BTreeMap<&str, &Storage<'_>> =
            pickle.storages().iter().map(|storage| (storage.key, storage)).collect();
        let mut starts = BTreeMap::new();
        let mut at = at as u64;
        for key in keys {
            let storage = known.get(key);
            let storage = storage
                .ok_or_else(|| Fault::Refused(format!("has a storage {} of no tensor", shown(key))))?;
            let mut numbers = [0; 8];
            file.read_exact_at(&mut numbers, at)?;
            let (start, numbers) = (at + 8, u64::from_le_bytes(numbers));
            if numbers != storage.numbers {
                return Err(Fault::Refused(format!(
                    "has a storage {} of {numbers} numbers, but its pickle says {}",
                    shown(key),
                    storage.numbers
                )));
            }
            let end = numbers.checked_mul(width(storage.dtype)).and_then(|bytes| bytes.checked_add(start));
            at = end.filter(|end| *end <= length).ok_or_else(cut_off)?;
            if starts.insert(key, (start, **storage)).is_some() {
                return Err(Fault::Refused(format!("has the storage {} twice", shown(key))));
            }
        }
        let place = |storage: &Storage<'_>| match starts.get(storage.key) {
            Some((start, known)) if known == storage => Ok(*start),
            _ => {
                Err(Fault::Refused(format!("lacks the storage {} that its pickle names", shown(storage.key))))
            }
        };
        let tensors = tensors(&pickle, length, place)?;
        // They are little-endian on every machine.
        Ok(Self { tensors, big_endian: false })
    }
}

/// The tensors of a pickle, `place` being where the numbers of a storage begin.
fn tensors(
    pickle: &Pickle<'_>,
    length: u64,
    place: impl Fn(&Storage<'_>) -> Result<u64, Fault>,
) -> Result<BTreeMap<String, Tensor>, Fault> {
    let mut tensors = BTreeMap::new();
    let (mut bytes, mut reads) = (0u64, 0u64);
    for (name, tensor) in pickle.state_dict()? {
        let refuse = |problem: &str| Fault::Refused(format!("has a tensor {} {problem}", shown(name)));
        let storage = &pickle.storages()[tensor.storage];
        let width = width(storage.dtype);
        let start = place(storage)?;
        let beyond = || refuse("that leaves its storage");
        let first = tensor.offset.checked_mul(width).and_then(|offset| offset.checked_add(start));
        let layout = Layout::new(first.ok_or_else(beyond)?, width, &tensor.shape, &tensor.strides);
        let layout = layout.ok_or_else(beyond)?;
        let end = start + storage.numbers * width;
        if layout.end().is_none_or(|last| last > end) {
            return Err(beyond());
        }
        bytes = bytes.saturating_add(layout.bytes());
        if bytes > length.saturating_mul(MOST_TIMES) {
            return Err(Fault::Refused(format!(
                "would become more than {MOST_TIMES} times as large as it is: not a model"
            )));
        }
        reads = reads.saturating_add(layout.reads(MAX_READS));
        if reads > MAX_READS {
            return Err(Fault::Refused("has tensors that are scattered over it: not a model".to_owned()));
        }
        // Of the header of a safetensors file.
        if name == "__metadata__" {
            return Err(refuse("of a name that safetensors has for something else"));
        }
        let shape = tensor.shape.iter().map(|&size| size as usize).collect();
        if tensors.insert(name.to_owned(), Tensor { dtype: storage.dtype, shape, layout }).is_some() {
            return Err(refuse("twice"));
        }
    }
    if tensors.is_empty() {
        return Err(Fault::Refused("has no tensor".to_owned()));
    }
    Ok(tensors)
}

/// The bytes of an entry that may have at most so many.
fn small(file: &File, entry: Entry, most: u64) -> Result<Vec<u8>, Fault> {
    if entry.length > most {
        return Err(Fault::Refused(format!(
            "has a pickle or a note of {} bytes; a model's has at most {most}",
            entry.length
        )));
    }
    let mut bytes = vec![0; entry.length as usize];
    file.read_exact_at(&mut bytes, entry.start)?;
    Ok(bytes)
}

fn cut_off() -> Fault {
    Fault::Refused("ends before its last storage does: cut off?".to_owned())
}
