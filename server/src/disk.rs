//! What a file system is asked beside files: how much room there is, and that a folder stays as it is.

use std::fs::File;
use std::io;
use std::path::Path;

/// How many bytes have room where `directory` is, or is to be; some network file systems do not say.
pub(crate) fn free(directory: &Path) -> Option<u64> {
    let there = directory.ancestors().find(|directory| directory.exists()).unwrap_or(directory);
    let known = rustix::fs::statvfs(there).ok().filter(|known| known.f_blocks > 0)?;
    Some(known.f_bavail.saturating_mul(known.f_frsize))
}

/// Puts the names in a folder on the disk.
pub(crate) fn sync_folder(path: &Path) -> io::Result<()> {
    use io::ErrorKind::{InvalidInput, Unsupported};
    match File::open(path).and_then(|folder| folder.sync_all()) {
        // Some network file systems sync no folders; they have no need to.
        Err(error) if matches!(error.kind(), InvalidInput | Unsupported) => Ok(()),
        result => result,
    }
}
