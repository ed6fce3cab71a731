//! Hashes of files: what they should be, and what they are.

use std::fmt::Write as _;
use std::io::{self, Read};

use sha1::Sha1;
use sha2::{Digest as _, Sha256};

use super::Error;

/// The hash by which the hub knows a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Expected {
    /// A large file: SHA-256 of its bytes.
    Sha256(String),
    /// A small file: git's blob id, SHA-1 of `blob {len}\0` and its bytes.
    GitBlob(String),
    /// Only the manifest knows.
    Unknown,
}

/// A file that is hashed while it is written.
#[derive(Clone)]
pub(super) struct Hasher {
    sha256: Sha256,
    /// Gigabytes are not hashed twice for a hash that nobody compares.
    blob: Option<Sha1>,
    bytes: u64,
}

/// What a file turned out to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Sums {
    /// Length in bytes.
    pub(super) bytes: u64,
    /// SHA-256, lower case hexadecimal.
    pub(super) sha256: String,
    blob: Option<String>,
}

impl Hasher {
    /// `size` is part of git's blob id and so has to be known beforehand.
    pub(super) fn new(size: u64, expected: &Expected) -> Self {
        let blob = matches!(expected, Expected::GitBlob(_)).then(|| {
            let mut blob = Sha1::new();
            blob.update(format!("blob {size}\0"));
            blob
        });
        Self { sha256: Sha256::new(), blob, bytes: 0 }
    }

    pub(super) fn update(&mut self, bytes: &[u8]) {
        self.sha256.update(bytes);
        if let Some(blob) = &mut self.blob {
            blob.update(bytes);
        }
        self.bytes += bytes.len() as u64;
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn sums(self) -> Sums {
        Sums {
            bytes: self.bytes,
            sha256: hex(&self.sha256.finalize()),
            blob: self.blob.map(|blob| hex(&blob.finalize())),
        }
    }

    /// Continues with everything that `file` still has.
    pub(super) fn read(&mut self, file: &mut impl Read) -> io::Result<()> {
        // Large enough that system calls do not count, small enough for a cache.
        let mut buffer = vec![0; 256 * 1024];
        loop {
            match file.read(&mut buffer)? {
                0 => return Ok(()),
                n => self.update(&buffer[..n]),
            }
        }
    }
}

impl Expected {
    /// Whether `file` is what the hub says that it is.
    pub(super) fn check(&self, file: &str, sums: &Sums) -> Result<(), Error> {
        let (kind, expected, found) = match self {
            Self::Sha256(expected) => ("the hub's sha256", expected, Some(&sums.sha256)),
            Self::GitBlob(expected) => ("git blob id", expected, sums.blob.as_ref()),
            Self::Unknown => return Ok(()),
        };
        if Some(expected) == found {
            return Ok(());
        }
        Err(Error::WrongHash {
            file: file.to_owned(),
            kind,
            expected: expected.clone(),
            found: found.cloned().unwrap_or_default(),
        })
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut out, byte| {
        // Writing to a String does not fail.
        let _ = write!(out, "{byte:02x}");
        out
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sums(content: &[u8]) -> Sums {
        let blob = Expected::GitBlob(String::new());
        let mut hasher = Hasher::new(content.len() as u64, &blob);
        for piece in content.chunks(3) {
            hasher.update(piece);
        }
        hasher.sums()
    }

    #[test]
    fn the_sums_are_those_of_git_and_sha256sum() {
        // `printf 'hello\n' | git hash-object --stdin` and `… | sha256sum`.
        assert_eq!(
            sums(b"hello\n"),
            Sums {
                bytes: 6,
                sha256: "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03".to_owned(),
                blob: Some("ce013625030ba8dba906f756967f9e9ca394464a".to_owned()),
            }
        );
        assert_eq!(sums(b"").blob.as_deref(), Some("e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"));
    }

    #[test]
    fn a_wrong_hash_names_file_expected_and_found() {
        let expected = Expected::GitBlob("e69de29bb2d1d6434b8b29ae775ad8c2e48c5391".to_owned());
        assert!(expected.check("config.json", &sums(b"")).is_ok());
        let error = expected.check("config.json", &sums(b"hello\n")).expect_err("other bytes");
        assert_eq!(
            error.to_string(),
            "verifying config.json: expected git blob id e69de29bb2d1d6434b8b29ae775ad8c2e48c5391, \
             found ce013625030ba8dba906f756967f9e9ca394464a"
        );
    }
}
