//! The entries of a zip archive as `torch.save` writes it: where in the file the bytes of each are.
//!
//! Read here and not with a crate, because what such a crate is for (compression, streams, names as paths) is what
//! must not be in there, and what is needed it does not say: that no name is there twice, that no two entries share
//! bytes, and that memory does not grow with what the archive promises.
//!
//! # Guarantees
//! - Every entry is stored as it is, lies within the file, before the directory, and apart from all others.
//! - Names are only compared; none becomes a path.
//!
//! # Caveats
//! Checksums are not looked at: what a file should be, its sha256 says.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt as _;

use super::Fault;
use super::pickle::shown;

/// The directory of a thousand tensors has 100 KB.
const MAX_DIRECTORY: u64 = 8 << 20;

const LOCAL: u32 = 0x0403_4b50;
const CENTRAL: u32 = 0x0201_4b50;
const END: u32 = 0x0605_4b50;
const END_64: u32 = 0x0606_4b50;
const LOCATOR_64: u32 = 0x0706_4b50;
/// Bytes of each kind of record before what varies.
const LOCAL_SIZE: usize = 30;
const CENTRAL_SIZE: usize = 46;
const END_SIZE: u64 = 22;
const END_64_SIZE: u64 = 56;
const LOCATOR_64_SIZE: u64 = 20;
/// The kind of extra field that has the sizes which 32 bits do not hold.
const EXTRA_64: u16 = 1;
/// The bit that says that an entry is encrypted.
const ENCRYPTED: u16 = 1;

/// Where the bytes of an entry are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) start: u64,
    pub(super) length: u64,
}

/// The entries of the archive in `file`, which is `length` bytes long, by their names.
pub(super) fn entries(file: &File, length: u64) -> Result<BTreeMap<String, Entry>, Fault> {
    let Directory { start, size, count } = directory(file, length)?;
    let mut bytes = vec![0; size as usize];
    file.read_exact_at(&mut bytes, start)?;
    let mut records = Fields(&bytes);
    let mut entries = BTreeMap::new();
    // Where each begins and ends, its header included.
    let mut spans = Vec::new();
    for _ in 0..count {
        let (name, header, length) = central(&mut records)?;
        let data = local(file, header, name, start)?;
        let end = data.checked_add(length).filter(|end| *end <= start);
        let end = end.ok_or_else(|| refused(format!("has {} beyond its end", shown(name))))?;
        spans.push((header, end));
        if entries.insert(name.to_owned(), Entry { start: data, length }).is_some() {
            return Err(refused(format!("has {} twice", shown(name))));
        }
    }
    spans.sort_unstable();
    if spans.windows(2).any(|pair| pair[0].1 > pair[1].0) {
        return Err(refused("has entries that share bytes".to_owned()));
    }
    Ok(entries)
}

struct Directory {
    start: u64,
    size: u64,
    count: u64,
}

fn directory(file: &File, length: u64) -> Result<Directory, Fault> {
    let cut = || refused("begins as a zip archive and does not end as one: cut off?".to_owned());
    let end_at = length.checked_sub(END_SIZE).ok_or_else(cut)?;
    let mut end = [0; END_SIZE as usize];
    file.read_exact_at(&mut end, end_at)?;
    let mut fields = Fields(&end);
    let (signature, disks) = (fields.u32()?, fields.u32()?);
    let (_, count, size, start, comment) =
        (fields.u16()?, fields.u16()?, fields.u32()?, fields.u32()?, fields.u16()?);
    if signature != END || comment != 0 {
        return Err(cut());
    }
    let mut directory = Directory { start: start.into(), size: size.into(), count: count.into() };
    let mut least_end = end_at;
    if disks == u32::MAX || count == u16::MAX || size == u32::MAX || start == u32::MAX {
        let locator_at = end_at.checked_sub(LOCATOR_64_SIZE).ok_or_else(cut)?;
        let mut locator = [0; LOCATOR_64_SIZE as usize];
        file.read_exact_at(&mut locator, locator_at)?;
        let mut fields = Fields(&locator);
        let (signature, _, end_64_at) = (fields.u32()?, fields.u32()?, fields.u64()?);
        if signature != LOCATOR_64 || end_64_at.checked_add(END_64_SIZE).is_none_or(|end| end > locator_at) {
            return Err(cut());
        }
        let mut end_64 = [0; END_64_SIZE as usize];
        file.read_exact_at(&mut end_64, end_64_at)?;
        let mut fields = Fields(&end_64);
        if fields.u32()? != END_64 {
            return Err(cut());
        }
        // Its own size, versions and disks; how many entries are on this disk.
        fields.skip(8 + 4 + 8 + 8)?;
        directory = Directory { count: fields.u64()?, size: fields.u64()?, start: fields.u64()? };
        least_end = end_64_at;
    } else if disks != 0 {
        return Err(refused("is one of several parts of an archive".to_owned()));
    }
    if directory.start.checked_add(directory.size).is_none_or(|end| end > least_end) {
        return Err(refused("has a directory that lies beyond its end".to_owned()));
    }
    if directory.size > MAX_DIRECTORY {
        let size = directory.size;
        return Err(refused(format!(
            "has a directory of {size} bytes; a model's has at most {MAX_DIRECTORY}"
        )));
    }
    Ok(directory)
}

/// The next entry of the directory: its name, where its own header is, and its length.
fn central<'a>(records: &mut Fields<'a>) -> Result<(&'a str, u64, u64), Fault> {
    let mut fields = Fields(records.take(CENTRAL_SIZE)?);
    let signature = fields.u32()?;
    fields.skip(4)?;
    let (flags, method) = (fields.u16()?, fields.u16()?);
    // Time, date, checksum.
    fields.skip(8)?;
    let (packed, length) = (fields.u32()?, fields.u32()?);
    let (name_length, extra_length, comment_length) = (fields.u16()?, fields.u16()?, fields.u16()?);
    // Disk, attributes.
    fields.skip(8)?;
    let header = fields.u32()?;
    if signature != CENTRAL {
        return Err(damaged());
    }
    let name = std::str::from_utf8(records.take(name_length.into())?)
        .map_err(|_| refused("has a name that is no UTF-8".to_owned()))?;
    let mut extras = Fields(records.take(extra_length.into())?);
    records.skip(comment_length.into())?;
    let [mut length, mut packed, mut header] = [length, packed, header].map(u64::from);
    while !extras.0.is_empty() {
        let (kind, size) = (extras.u16()?, extras.u16()?);
        let mut extra = Fields(extras.take(size.into())?);
        if kind == EXTRA_64 {
            // There for those that are full, in this order.
            for value in [&mut length, &mut packed, &mut header] {
                if *value == u64::from(u32::MAX) {
                    *value = extra.u64()?;
                }
            }
        }
    }
    if method != 0 || flags & ENCRYPTED != 0 || packed != length {
        let name = shown(name);
        return Err(refused(format!(
            "has {name} compressed or encrypted, and torch.save stores what it has as it is"
        )));
    }
    Ok((name, header, length))
}

/// Where the bytes begin of the entry whose header is there.
fn local(file: &File, header: u64, name: &str, directory: u64) -> Result<u64, Fault> {
    let beyond = || refused(format!("has {} beyond its end", shown(name)));
    if header.checked_add(LOCAL_SIZE as u64).is_none_or(|end| end > directory) {
        return Err(beyond());
    }
    let mut bytes = [0; LOCAL_SIZE];
    file.read_exact_at(&mut bytes, header)?;
    let mut fields = Fields(&bytes);
    let signature = fields.u32()?;
    // Its sizes can be those of the directory only.
    fields.skip(22)?;
    let (name_length, extra_length) = (fields.u16()?, fields.u16()?);
    let mut own_name = vec![0; name.len()];
    file.read_exact_at(&mut own_name, header + LOCAL_SIZE as u64)?;
    if signature != LOCAL || usize::from(name_length) != name.len() || own_name != name.as_bytes() {
        return Err(damaged());
    }
    Ok(header + LOCAL_SIZE as u64 + u64::from(name_length) + u64::from(extra_length))
}

fn refused(problem: String) -> Fault {
    Fault::Refused(problem)
}

fn damaged() -> Fault {
    refused("has a damaged directory of its zip archive".to_owned())
}

/// Little-endian numbers, one after the other.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], Fault> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or_else(damaged)?;
        self.0 = rest;
        Ok(taken)
    }

    fn skip(&mut self, count: usize) -> Result<(), Fault> {
        self.take(count).map(drop)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Fault> {
        self.take(N)?.try_into().map_err(|_| damaged())
    }

    fn u16(&mut self) -> Result<u16, Fault> {
        self.array().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Result<u32, Fault> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, Fault> {
        self.array().map(u64::from_le_bytes)
    }
}
