//! A list of hashes that the operator of the server trusts more than the hub.

use std::collections::BTreeMap;
use std::path::Path;
use std::str::FromStr;

use serde::Deserialize;

use super::{Error, select};

/// Files and their SHA-256, from JSON: `{"files": {"config.json": "…64 hex digits…"}}`.
///
/// Every file that is taken must be listed and match. A listed file that the
/// repository does not have is an error; one that the server does not need is
/// not looked at. Other keys beside `files` are for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    files: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Written {
    files: BTreeMap<String, String>,
}

impl FromStr for Manifest {
    type Err = Error;

    fn from_str(json: &str) -> Result<Self, Error> {
        let written: Written =
            serde_json::from_str(json).map_err(|error| Error::Manifest { why: error.to_string() })?;
        let mut files = BTreeMap::new();
        for (file, sha256) in written.files {
            select::check_path(&file, "the manifest")?;
            if sha256.len() != 64 || !sha256.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(Error::Manifest {
                    why: format!("the sha256 of {file} is not 64 hexadecimal digits"),
                });
            }
            files.insert(file, sha256.to_ascii_lowercase());
        }
        if files.is_empty() {
            return Err(Error::Manifest { why: "it lists no file".to_owned() });
        }
        Ok(Self { files })
    }
}

impl Manifest {
    /// Reads a manifest from a file.
    pub fn read(path: &Path) -> Result<Self, Error> {
        std::fs::read_to_string(path).map_err(Error::io("reading the manifest", path))?.parse()
    }

    /// The hash that `file` must have.
    pub(super) fn sha256(&self, file: &str) -> Result<&str, Error> {
        self.files.get(file).map(String::as_str).ok_or_else(|| Error::NotInManifest { file: file.to_owned() })
    }

    /// Whether `file` with this hash is what the manifest wants.
    pub(super) fn check(&self, file: &str, sha256: &str) -> Result<(), Error> {
        let expected = self.sha256(file)?;
        if expected == sha256 {
            return Ok(());
        }
        Err(Error::WrongHash {
            file: file.to_owned(),
            kind: "the manifest's sha256",
            expected: expected.to_owned(),
            found: sha256.to_owned(),
        })
    }

    /// Whether everything listed exists where the files come from.
    pub(super) fn check_exists(&self, origin: &str, has: impl Fn(&str) -> bool) -> Result<(), Error> {
        match self.files.keys().find(|file| !has(file)) {
            None => Ok(()),
            Some(file) => Err(Error::OnlyInManifest { file: file.clone(), origin: origin.to_owned() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_is_refused_for_what_it_cannot_mean() {
        let hash = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03";
        let table = [
            (format!(r#"{{"files": {{"config.json": "{hash}"}}}}"#), None),
            (format!(r#"{{"model": "x", "files": {{"a/b.json": "{}"}}}}"#, hash.to_uppercase()), None),
            (
                r#"{"files": {"config.json": "abc"}}"#.to_owned(),
                Some("reading the manifest: the sha256 of config.json is not 64 hexadecimal digits"),
            ),
            (r#"{"files": {}}"#.to_owned(), Some("reading the manifest: it lists no file")),
            (
                r#"{"sums": {}}"#.to_owned(),
                Some("reading the manifest: missing field `files` at line 1 column 12"),
            ),
            (
                format!(r#"{{"files": {{"../evil": "{hash}"}}}}"#),
                Some(
                    "taking the file name \"../evil\" from the manifest: it is not a plain relative path, refused",
                ),
            ),
        ];
        for (json, expected) in table {
            let found = json.parse::<Manifest>().err().map(|e| e.to_string());
            assert_eq!(found.as_deref(), expected, "{json}");
        }
    }
}
