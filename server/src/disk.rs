//! What a file system is asked beside files: how much room there is, and that a folder stays as it is. And files that
//! somebody else has put there: whatever they are, to open them does not wait, and to read them takes bounded memory.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
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

/// Opens a file to read it, following links. Refuses what is no file: a pipe would never come to an end.
pub(crate) fn open_regular(path: &Path) -> io::Result<File> {
    // Without O_NONBLOCK, to open a pipe waits for somebody who writes into it. To files it says nothing.
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "is no regular file"));
    }
    Ok(file)
}

/// All of a file that has at most so many bytes.
pub(crate) fn read_small(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let file = open_regular(path)?;
    let mut bytes = Vec::new();
    // Not what its size says: it may grow meanwhile.
    file.take(most.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("is larger than {most} bytes")));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn only_files_are_read_and_no_more_of_them_than_was_asked_for() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        std::fs::write(at("file"), "1234").unwrap();
        symlink("file", at("link")).unwrap();
        symlink("/dev/zero", at("zeros")).unwrap();
        std::fs::create_dir(at("folder")).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, at("pipe"), rustix::fs::Mode::RWXU).unwrap();
        for (name, most, expected) in [
            ("file", 4, Ok(b"1234".to_vec())),
            ("file", u64::MAX, Ok(b"1234".to_vec())),
            ("link", 4, Ok(b"1234".to_vec())),
            ("file", 3, Err("is larger than 3 bytes")),
            ("zeros", 3, Err("is no regular file")),
            ("folder", 3, Err("is no regular file")),
            ("pipe", 3, Err("is no regular file")),
        ] {
            let found = read_small(&at(name), most).map_err(|error| error.to_string());
            assert_eq!(found, expected.map_err(str::to_owned), "{name} {most}");
        }
        assert_eq!(read_small(&at("gone"), 3).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
