//! One file from the hub into a directory, whatever happens on the way.
//!
//! # Flow
//! What an earlier run left is hashed again, the rest is asked for from there
//! on (`Range`), and every byte is hashed as it is written. A connection that
//! breaks is taken up where it broke.
//!
//! # Guarantees
//! - A file that is `take`n has the size and the hash that the hub gave, and
//!   that of the manifest. One that does not is deleted.
//! - Dropping the future leaves a file that a later run goes on with: bytes are
//!   written where they arrive, not by a thread that may run on.
//!
//! # Caveats
//! Writing blocks the runtime's thread for the time of a copy to the page
//! cache, 16 KiB or so at a time.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::{StatusCode, header};

use super::cache::Kept;
use super::client::{Client, origin};
use super::digest::{Expected, Hasher, Sums};
use super::list::Wanted;
use super::retry::Patience;
use super::{Archive, Error, Hub, Manifest, Progress, Repo, blocking, room};

/// No file of a model is larger, whatever is sent.
const MAX_BYTES: u64 = 1 << 40;

/// What files are taken of.
#[derive(Clone, Copy)]
pub(super) enum Origin<'a> {
    /// The files of a commit.
    Commit(&'a Repo, &'a str),
    /// One file.
    Archive(&'a Archive),
}

/// Takes files of one origin into one directory.
pub(super) struct Downloader<'a> {
    pub(super) client: &'a Client,
    pub(super) hub: &'a Hub,
    pub(super) origin: Origin<'a>,
    pub(super) directory: &'a Path,
    pub(super) manifest: Option<&'a Manifest>,
    /// Bytes of files that came over the network.
    pub(super) received: u64,
}

/// A file that is not whole yet.
struct Unfinished {
    path: PathBuf,
    file: File,
    hasher: Hasher,
    /// `None` until an answer tells.
    size: Option<u64>,
    expected: Expected,
}

/// How a single request went that did not fail.
enum Step {
    /// The answer was read to its end.
    Read,
    /// Asking for a part does not work here, or the part is not there.
    NoRanges,
}

impl Downloader<'_> {
    /// Brings `wanted` here, verified. A wrong hash is believed the second time.
    pub(super) async fn take(&mut self, wanted: &Wanted, progress: &mut dyn Progress) -> Result<Kept, Error> {
        let path = self.directory.join(&wanted.path);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(Error::io("creating", folder))?;
        }
        let mut rejected = false;
        loop {
            let error = match self.verified(wanted, &path, progress).await {
                Ok(kept) => return Ok(kept),
                Err(error) => error,
            };
            if !error.is_wrong_content() {
                return Err(error);
            }
            fs::remove_file(&path).map_err(Error::io("removing", &path))?;
            if rejected {
                return Err(error);
            }
            rejected = true;
            progress.retrying(&wanted.path, &error, Duration::ZERO);
        }
    }

    async fn verified(
        &mut self,
        wanted: &Wanted,
        path: &Path,
        progress: &mut dyn Progress,
    ) -> Result<Kept, Error> {
        let sums = self.whole(wanted, path, progress).await?;
        wanted.expected.check(&wanted.path, &sums)?;
        if let Some(manifest) = self.manifest {
            manifest.check(&wanted.path, &sums.sha256)?;
        }
        Ok(sums.into())
    }

    /// Asks until all bytes are here.
    async fn whole(
        &mut self,
        wanted: &Wanted,
        path: &Path,
        progress: &mut dyn Progress,
    ) -> Result<Sums, Error> {
        let mut file = Unfinished::open(path.to_owned(), wanted).await?;
        if file.size.is_some() {
            progress.started(&wanted.path, file.have());
        }
        let mut patience = Patience::new(self.hub);
        // What has been reached once is no progress when it is reached again,
        // or a server that never gets past a byte would be asked for ever.
        let mut furthest = file.have();
        let mut ranges = true;
        while !file.is_whole() {
            let result = self.read_once(wanted, &mut file, ranges, progress).await;
            if file.have() > furthest {
                furthest = file.have();
                patience.got_further();
            }
            match result {
                Ok(Step::Read) => {}
                Ok(Step::NoRanges) => {
                    ranges = false;
                    file.restart()?;
                    progress.started(&wanted.path, 0);
                }
                Err(error) if self.client.worth_retrying(&error) => {
                    patience.next_try(&wanted.path, error, progress).await?;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(file.hasher.sums())
    }

    /// One request, its answer appended to the file.
    async fn read_once(
        &mut self,
        wanted: &Wanted,
        file: &mut Unfinished,
        ranges: bool,
        progress: &mut dyn Progress,
    ) -> Result<Step, Error> {
        if !ranges && file.have() > 0 {
            file.restart()?;
            progress.started(&wanted.path, 0);
        }
        let from = (file.have() > 0).then(|| file.have());
        let mut response = match self.origin {
            Origin::Commit(repo, commit) => self.client.file(repo, commit, &wanted.path, from).await?,
            Origin::Archive(archive) => self.client.archive(archive, from).await?,
        };
        let host = origin(response.url());
        match (response.status(), from) {
            (StatusCode::PARTIAL_CONTENT, Some(from)) => {
                let range =
                    response.headers().get(header::CONTENT_RANGE).and_then(|value| value.to_str().ok());
                if !is_rest(range, from, file.size) {
                    return Ok(Step::NoRanges);
                }
                self.learn(file, range.and_then(total), wanted, progress)?;
            }
            (StatusCode::RANGE_NOT_SATISFIABLE, Some(_)) => return Ok(Step::NoRanges),
            (StatusCode::OK, Some(_)) => {
                // All of it comes again: the server does not do ranges.
                file.restart()?;
                progress.started(&wanted.path, 0);
                self.learn(file, response.content_length(), wanted, progress)?;
            }
            (StatusCode::OK, None) => self.learn(file, response.content_length(), wanted, progress)?,
            (status, _) => {
                return Err(Error::UnexpectedStatus { host, status: status.as_u16() });
            }
        }
        while let Some(chunk) = self.client.chunk(&mut response).await? {
            self.received += chunk.len() as u64;
            file.append(&chunk, &wanted.path)?;
            progress.advanced(&wanted.path, file.have());
        }
        // Where nobody told the size, the end is the end; the hash decides.
        let size = *file.size.get_or_insert(file.hasher.bytes());
        if file.have() < size {
            return Err(Error::Truncated { file: wanted.path.clone(), host, have: file.have(), size });
        }
        Ok(Step::Read)
    }

    /// The size of a file of which nobody had told it before.
    fn learn(
        &self,
        file: &mut Unfinished,
        size: Option<u64>,
        wanted: &Wanted,
        progress: &mut dyn Progress,
    ) -> Result<(), Error> {
        let (None, Some(size), Origin::Archive(archive)) = (file.size, size, self.origin) else {
            return Ok(());
        };
        room::check_space(self.directory, size.saturating_sub(file.have()))?;
        file.size = Some(size);
        progress.resolved(archive.sha256(), 1, size);
        progress.started(&wanted.path, file.have());
        Ok(())
    }
}

impl Unfinished {
    /// Opens what is here of the file and hashes it again.
    async fn open(path: PathBuf, wanted: &Wanted) -> Result<Self, Error> {
        let (size, expected) = (wanted.size, wanted.expected.clone());
        // Gigabytes are hashed, so not on the runtime's thread; it only reads,
        // so it does no harm if it runs on after the caller was dropped.
        let (mut file, here) = blocking(move || {
            let open = || -> io::Result<_> {
                // Of what has another name, too, in another cache, nothing may be written.
                if fs::metadata(&path).is_ok_and(|found| found.nlink() > 1 && Some(found.len()) != size) {
                    fs::remove_file(&path)?;
                }
                let mut file = OpenOptions::new().create(true).read(true).append(true).open(&path)?;
                let mut hasher = Hasher::new(size.unwrap_or_default(), &expected);
                let here = file.metadata()?.len();
                // Longer than the file can be: of no use.
                if here <= size.unwrap_or(MAX_BYTES) {
                    hasher.read(&mut (&mut file).take(here))?;
                }
                Ok((file, hasher, here))
            };
            let (file, hasher, here) = open().map_err(Error::io("opening", &path))?;
            Ok((Self { path, file, hasher, size, expected }, here))
        })
        .await?;
        if here > file.have() {
            file.restart()?;
        }
        Ok(file)
    }

    fn have(&self) -> u64 {
        self.hasher.bytes()
    }

    fn is_whole(&self) -> bool {
        match self.size {
            Some(size) => self.have() >= size,
            None => self.expected.check("", &self.hasher.clone().sums()).is_ok(),
        }
    }

    fn restart(&mut self) -> Result<(), Error> {
        self.file.set_len(0).map_err(Error::io("truncating", &self.path))?;
        self.hasher = Hasher::new(self.size.unwrap_or_default(), &self.expected);
        Ok(())
    }

    fn append(&mut self, bytes: &[u8], name: &str) -> Result<(), Error> {
        let found = self.have() + bytes.len() as u64;
        let most = self.size.unwrap_or(MAX_BYTES);
        if found > most {
            return Err(Error::WrongSize { file: name.to_owned(), expected: most, found });
        }
        self.file.write_all(bytes).map_err(Error::io("writing", &self.path))?;
        self.hasher.update(bytes);
        Ok(())
    }
}

/// Whether `Content-Range` says that the rest from byte `from` on is coming:
/// `bytes 5-9/10`, or `bytes 5-9/*`.
fn is_rest(range: Option<&str>, from: u64, size: Option<u64>) -> bool {
    let parsed = || {
        let (bounds, total) = range?.strip_prefix("bytes ")?.split_once('/')?;
        let (first, last) = bounds.split_once('-')?;
        let first: u64 = first.trim().parse().ok()?;
        let last: u64 = last.trim().parse().ok()?;
        let total_fits = total.trim() == "*" || size.is_none_or(|size| total.trim().parse() == Ok(size));
        Some(first == from && size.is_none_or(|size| last < size) && total_fits)
    };
    parsed().unwrap_or(false)
}

/// What `Content-Range` says about the size of all.
fn total(range: &str) -> Option<u64> {
    range.rsplit_once('/')?.1.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_rest_of_the_same_file_is_appended() {
        let table = [
            (Some("bytes 5-9/10"), true),
            (Some("bytes 5-9/*"), true),
            (Some("bytes 5-7/10"), true),
            (Some("bytes 4-9/10"), false),
            (Some("bytes 0-9/10"), false),
            (Some("bytes 5-9/11"), false),
            (Some("bytes 5-10/*"), false),
            (Some("bytes */10"), false),
            (Some("items 5-9/10"), false),
            (Some("nonsense"), false),
            (None, false),
        ];
        assert!(is_rest(Some("bytes 5-9/10"), 5, None) && !is_rest(Some("bytes 4-9/10"), 5, None));
        assert_eq!((total("bytes 5-9/10"), total("bytes 5-9/*")), (Some(10), None));
        for (range, expected) in table {
            assert_eq!(is_rest(range, 5, Some(10)), expected, "{range:?}");
        }
    }
}
