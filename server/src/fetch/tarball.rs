//! A gzipped tar archive that somebody else has packed: what of it the server needs, and
//! nothing that it could do harm with.
//!
//! # Flow
//! The archive is read twice. The first time everything is checked and nothing is written:
//! names, kinds, sizes; then [`select`] chooses as it does from a repository. The second
//! time the chosen files are written.
//!
//! # Guarantees
//! - Nothing is written outside of the target, and only regular files: an archive with an
//!   absolute path, `..`, a link or a device is refused as a whole.
//! - Not more is decompressed than [`Limits`] allow, and memory does not grow with what the
//!   archive says: long names and other headers have limits of their own. (The `tar` crate's
//!   own iterator reads those without a limit; hence only its headers are used.)
//!
//! # Caveats
//! Names that are not plain (see [`select::is_plain`]) are passed over, as in repositories.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, BufReader, Read, Write as _};
use std::path::Path;

use flate2::read::MultiGzDecoder;
use tar::{EntryType, Header, PaxExtensions};

use super::arrivals::Arrivals;
use super::cache::Kept;
use super::digest::{Expected, Hasher};
use super::select::Chosen;
use super::{Error, room, select};

const BLOCK: u64 = 512;
/// As long as a path can be on Linux.
const MAX_NAME: u64 = 4096;
/// Far more than the attributes of a file take.
const MAX_PAX: u64 = 1 << 20;
/// `modules.json` and the index of the largest models have less than 1 MiB.
const MAX_LEAD: u64 = 16 << 20;

/// What an archive may be.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Files and folders.
    pub(super) entries: usize,
    /// Bytes when unpacked, headers and all.
    pub(super) unpacked: u64,
    /// The same for each packed byte: beyond that, it was made to fill a disk.
    pub(super) ratio: u64,
}

/// No model is larger.
pub(super) const LIMITS: Limits = Limits { entries: 10_000, unpacked: 200_000_000_000, ratio: 1_000 };

pub(super) struct Tarball<'a> {
    /// Where it is.
    pub(super) packed: &'a Path,
    /// What errors call it.
    pub(super) name: &'a str,
    pub(super) limits: Limits,
}

/// What the first reading finds.
#[derive(Default)]
struct Listing {
    files: BTreeMap<String, u64>,
    /// Contents of the files that decide what else is needed.
    leads: BTreeMap<String, Vec<u8>>,
}

/// A regular file, or that there is a folder.
struct Entry {
    /// `None`: a name that no file of a model has.
    name: Option<String>,
    size: u64,
    is_folder: bool,
}

impl Tarball<'_> {
    /// Writes what a server needs into `directory`, and says what that is. A single folder that holds everything is
    /// left out of the names.
    pub(super) fn unpack(&self, directory: &Path) -> Result<(Chosen, BTreeMap<String, Kept>), Error> {
        let listing = self.list()?;
        let wrapper = wrapper(listing.files.keys());
        let inner = |name: &str| -> Option<String> {
            match &wrapper {
                None => Some(name.to_owned()),
                Some(folder) => Some(name.strip_prefix(folder.as_str())?.strip_prefix('/')?.to_owned()),
            }
        };
        let sizes: BTreeMap<_, _> =
            listing.files.iter().filter_map(|(name, size)| Some((inner(name)?, *size))).collect();
        let leads: BTreeMap<_, _> =
            listing.leads.into_iter().filter_map(|(name, json)| Some((inner(&name)?, json))).collect();
        let has = |file: &str| sizes.contains_key(file);
        let chosen = select::files(self.name, has, |name| leads.get(name).map(Vec::as_slice))?;
        let files = chosen.files.iter().map(|file| (file.as_str(), sizes[file], false));
        room::check_space(directory, Arrivals::new(directory, self.name, &chosen).room(files))?;

        let mut taken = BTreeMap::new();
        self.read(|entry, content| {
            let file = entry.name.as_deref().filter(|_| !entry.is_folder).and_then(inner);
            if let Some(file) = file.filter(|file| chosen.files.contains(file)) {
                let kept = self.write(content, entry.size, &directory.join(&file))?;
                taken.insert(file, kept);
            }
            Ok(())
        })?;
        Ok((chosen, taken))
    }

    fn list(&self) -> Result<Listing, Error> {
        let mut listing = Listing::default();
        let mut first_folder = None;
        self.read(|entry, content| {
            let (Some(name), false) = (&entry.name, entry.is_folder) else { return Ok(()) };
            let (folder, file) = name.split_once('/').map_or((None, name.as_str()), |(a, b)| (Some(a), b));
            if let Some(folder) = folder {
                first_folder.get_or_insert_with(|| folder.to_owned());
            }
            // With a second folder there is none to strip, and its leads are none.
            if (folder.is_none() || folder == first_folder.as_deref()) && select::LEADS.contains(&file) {
                listing.leads.insert(name.clone(), self.small(content, entry.size, MAX_LEAD, file)?);
            }
            if listing.files.insert(name.clone(), entry.size).is_some() {
                return Err(self.refused(format!("it has {name} twice")));
            }
            Ok(())
        })?;
        Ok(listing)
    }

    /// Calls `each` with every file and folder. What it does not read is passed over.
    fn read(&self, mut each: impl FnMut(&Entry, &mut dyn Read) -> Result<(), Error>) -> Result<(), Error> {
        let file = File::open(self.packed).map_err(Error::io("opening", self.packed))?;
        let packed = file.metadata().map_err(Error::io("reading the size of", self.packed))?.len();
        let limit = packed.saturating_mul(self.limits.ratio).min(self.limits.unpacked);
        let mut reader = MultiGzDecoder::new(BufReader::with_capacity(1 << 17, file));
        let mut header = Header::new_old();
        let (mut unpacked, mut entries) = (0u64, 0);
        let mut long_name: Option<Vec<u8>> = None;
        let mut pax = Pax::default();
        while self.next_header(&mut reader, &mut header)? {
            let kind = header.entry_type();
            let is_extension = kind.is_gnu_longname()
                || kind.is_gnu_longlink()
                || kind.is_pax_local_extensions()
                || kind.is_pax_global_extensions();
            let mut size = header.entry_size().map_err(|error| self.damaged(error))?;
            if let (Some(said), false) = (pax.size, is_extension) {
                size = said;
            }
            // Everything that is decompressed is told by headers, so counting them is enough.
            let padded = size.checked_next_multiple_of(BLOCK).unwrap_or(u64::MAX);
            unpacked = unpacked.saturating_add(BLOCK).saturating_add(padded);
            if unpacked > limit {
                return Err(self.refused(format!(
                    "it would take more than {limit} bytes, which is {} or {} times its own size: not a model",
                    self.limits.unpacked, self.limits.ratio
                )));
            }
            let mut content = (&mut reader as &mut dyn Read).take(size);
            if kind.is_gnu_longname() {
                let mut name = self.small(&mut content, size, MAX_NAME, "a name")?;
                name.truncate(name.iter().position(|byte| *byte == 0).unwrap_or(name.len()));
                long_name = Some(name);
            } else if kind.is_pax_local_extensions() {
                pax = self.pax(&self.small(&mut content, size, MAX_PAX, "a header")?)?;
            } else if !is_extension {
                entries += 1;
                if entries > self.limits.entries {
                    let most = self.limits.entries;
                    return Err(
                        self.refused(format!("it has more than {most} files and folders: not a model"))
                    );
                }
                let (long_name, pax) = (long_name.take(), std::mem::take(&mut pax));
                let raw = pax.path.or(long_name).unwrap_or_else(|| header.path_bytes().into_owned());
                each(&self.entry(kind, &raw, size)?, &mut content)?;
            }
            let rest = content.limit();
            let padding = padded - size;
            self.skip(&mut reader, rest + padding)?;
        }
        Ok(())
    }

    /// `false` at the end of the archive.
    fn next_header(&self, reader: &mut impl Read, header: &mut Header) -> Result<bool, Error> {
        let block = header.as_mut_bytes();
        let mut have = 0;
        while have < block.len() {
            match reader.read(&mut block[have..]) {
                // Some packers leave out the empty blocks at the end.
                Ok(0) if have == 0 => return Ok(false),
                Ok(0) => return Err(self.damaged(io::ErrorKind::UnexpectedEof.into())),
                Ok(n) => have += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.damaged(error)),
            }
        }
        if block.iter().all(|byte| *byte == 0) {
            return Ok(false);
        }
        // The sum of all bytes, with spaces in the place of the sum itself.
        let sum = |bytes: &[u8]| bytes.iter().map(|byte| u32::from(*byte)).sum::<u32>();
        let found = sum(&block[..148]) + 8 * u32::from(b' ') + sum(&block[156..]);
        match header.cksum() {
            Ok(said) if said == found => Ok(true),
            _ => {
                Err(self
                    .damaged(io::Error::new(io::ErrorKind::InvalidData, "no tar header where one should be")))
            }
        }
    }

    fn entry(&self, kind: EntryType, raw: &[u8], size: u64) -> Result<Entry, Error> {
        let shown = || String::from_utf8_lossy(raw).escape_debug().to_string();
        let is_folder = match kind {
            EntryType::Directory => true,
            // Before POSIX, a folder was a file whose name ends so.
            EntryType::Regular | EntryType::Continuous => raw.ends_with(b"/"),
            EntryType::Symlink | EntryType::Link => {
                return Err(self.refused(format!(
                    "it has the link \"{}\"; pack the files themselves: tar --dereference --hard-dereference",
                    shown()
                )));
            }
            _ => {
                return Err(self.refused(format!("\"{}\" is neither a plain file nor a folder", shown())));
            }
        };
        if raw.starts_with(b"/") || raw.split(|byte| *byte == b'/').any(|part| part == b"..") {
            return Err(self.refused(format!("the name \"{}\" leads out of it", shown())));
        }
        let name = std::str::from_utf8(raw).ok().map(|name| {
            let parts: Vec<_> = name.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
            parts.join("/")
        });
        Ok(Entry { name: name.filter(|name| select::is_plain(name)), size, is_folder })
    }

    fn pax(&self, bytes: &[u8]) -> Result<Pax, Error> {
        let mut pax = Pax::default();
        for extension in PaxExtensions::new(bytes) {
            let extension = extension.map_err(|error| self.damaged(error))?;
            match extension.key_bytes() {
                b"path" => pax.path = Some(extension.value_bytes().to_owned()),
                b"size" => {
                    let size = extension.value().ok().and_then(|size| size.parse().ok());
                    let broken = || io::Error::new(io::ErrorKind::InvalidData, "a size that is no number");
                    pax.size = Some(size.ok_or_else(|| self.damaged(broken()))?);
                }
                key if key.starts_with(b"GNU.sparse.") => {
                    return Err(self.refused("it has a sparse file; pack without --sparse".to_owned()));
                }
                _ => {}
            }
        }
        Ok(pax)
    }

    fn small(&self, content: &mut dyn Read, size: u64, most: u64, what: &str) -> Result<Vec<u8>, Error> {
        if size > most {
            return Err(self.refused(format!("{what} in it has more than {most} bytes")));
        }
        let mut bytes = vec![0; size as usize];
        content.read_exact(&mut bytes).map_err(|error| self.damaged(error))?;
        Ok(bytes)
    }

    fn skip(&self, reader: &mut impl Read, bytes: u64) -> Result<(), Error> {
        let skipped =
            io::copy(&mut reader.take(bytes), &mut io::sink()).map_err(|error| self.damaged(error))?;
        if skipped < bytes {
            return Err(self.damaged(io::ErrorKind::UnexpectedEof.into()));
        }
        Ok(())
    }

    fn write(&self, content: &mut dyn Read, size: u64, path: &Path) -> Result<Kept, Error> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(Error::io("creating", folder))?;
        }
        let mut file = File::create_new(path).map_err(Error::io("creating", path))?;
        let mut hasher = Hasher::new(size, &Expected::Unknown);
        let mut buffer = vec![0; 256 * 1024];
        loop {
            match content.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => {
                    hasher.update(&buffer[..n]);
                    file.write_all(&buffer[..n]).map_err(Error::io("writing", path))?;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.damaged(error)),
            }
        }
        if hasher.bytes() < size {
            return Err(self.damaged(io::ErrorKind::UnexpectedEof.into()));
        }
        Ok(hasher.sums().into())
    }

    fn refused(&self, why: String) -> Error {
        Error::ArchiveContent { url: self.name.to_owned(), why }
    }

    fn damaged(&self, source: io::Error) -> Error {
        Error::ArchiveFormat { url: self.name.to_owned(), source }
    }
}

/// What a POSIX header says about the file after it, as far as it matters here.
#[derive(Default)]
struct Pax {
    path: Option<Vec<u8>>,
    size: Option<u64>,
}

/// The folder that all files are in, as `tar czf m.tar.gz minilm/` makes it.
fn wrapper<'a>(files: impl Iterator<Item = &'a String>) -> Option<String> {
    // What macOS packs along unasked.
    let is_litter = |part: &str| part.starts_with("._") || part == ".DS_Store";
    let mut tops = BTreeSet::new();
    for file in files.filter(|file| !file.split('/').any(is_litter)) {
        tops.insert(file.split_once('/')?.0);
    }
    let [top] = *tops.into_iter().collect::<Vec<_>>().as_slice() else { return None };
    Some(top.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(names: &[&str]) -> Option<String> {
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        wrapper(names.iter())
    }

    #[test]
    fn one_folder_around_everything_is_a_wrapper() {
        let minilm = Some("minilm".to_owned());
        assert_eq!(files(&["minilm/config.json", "minilm/1_Pooling/config.json"]), minilm);
        assert_eq!(files(&["._minilm", "minilm/.DS_Store", "minilm/config.json"]), minilm);
        assert_eq!(files(&["config.json", "1_Pooling/config.json"]), None);
        assert_eq!(files(&["a/config.json", "b/config.json"]), None);
        assert_eq!(files(&[]), None);
    }
}
