//! Files that are made from the code and committed.

use std::path::Path;

/// Compares with a committed file, or writes it when `UPDATE_GENERATED` is set.
pub(crate) fn assert_generated(path: &Path, text: &str) {
    if std::env::var_os("UPDATE_GENERATED").is_some() {
        std::fs::write(path, text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }
    let found = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        found == text,
        "{} is not up to date: run `make generate` and look at the difference",
        path.display()
    );
}
