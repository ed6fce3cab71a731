//! Which model: a repository's name and a revision of it, both checked once.

use std::fmt;
use std::str::FromStr;

use super::Error;

/// A model repository's name, `org/name` or `name`, by the hub's own rules.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Repo(String);

impl Repo {
    /// The name as the hub writes it.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name as one directory: unambiguous, because the hub allows no `--`
    /// in names.
    pub(super) fn directory(&self) -> String {
        format!("models--{}", self.0.replace('/', "--"))
    }
}

impl fmt::Display for Repo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Repo {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        match broken_name_rule(name) {
            None => Ok(Self(name.to_owned())),
            Some(why) => Err(Error::Repo { name: name.to_owned(), why }),
        }
    }
}

fn broken_name_rule(name: &str) -> Option<&'static str> {
    let parts: Vec<&str> = name.split('/').collect();
    if parts.len() > 2 {
        return Some("it has more than one '/': write org/name or name");
    }
    if name.contains("..") || name.contains("--") {
        return Some("it has '..' or '--'");
    }
    if has_suffix(name, ".git") {
        return Some("it ends in .git");
    }
    parts.into_iter().find_map(|part| {
        if part.is_empty() || part.len() > 96 {
            Some("each part needs 1 to 96 characters")
        } else if !part.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b)) {
            Some("it has characters other than letters, digits, '-', '_' and '.'")
        } else if part.starts_with(['-', '.']) || part.ends_with(['-', '.']) {
            Some("a part starts or ends with '-' or '.'")
        } else {
            None
        }
    })
}

/// Like `ends_with`, for a suffix that is not a file extension.
fn has_suffix(name: &str, suffix: &str) -> bool {
    name.strip_suffix(suffix).is_some()
}

/// A repository at a revision: a commit, a tag or a branch.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Source {
    /// The repository.
    pub repo: Repo,
    revision: String,
}

impl Source {
    /// Checks `revision` by git's rules for names, as far as they keep it from
    /// being mistaken for something else in an address or a file name.
    pub fn new(repo: Repo, revision: &str) -> Result<Self, Error> {
        match broken_revision_rule(revision) {
            None => Ok(Self { repo, revision: revision.to_owned() }),
            Some(why) => Err(Error::Revision { revision: revision.to_owned(), why }),
        }
    }

    /// The commit, tag or branch.
    pub fn revision(&self) -> &str {
        &self.revision
    }

    /// The revision, if it is a full commit: then it means the same for ever.
    pub fn commit(&self) -> Option<&str> {
        is_commit(&self.revision).then_some(self.revision.as_str())
    }

    /// The revision as one file name.
    pub(super) fn ref_file(&self) -> String {
        percent_encoded(&self.revision)
    }
}

pub(super) fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && revision.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

fn broken_revision_rule(revision: &str) -> Option<&'static str> {
    if revision.is_empty() {
        Some("it is empty")
    } else if revision.contains("..") || revision.contains("//") || revision.contains("/.") {
        Some("it has '..', '//' or '/.'")
    } else if revision.starts_with(['-', '.', '/']) || revision.ends_with(['.', '/']) {
        Some("it starts with '-', '.' or '/', or ends with '.' or '/'")
    } else if revision.chars().any(|c| c.is_control() || c.is_whitespace() || "\\~^:?*[".contains(c)) {
        Some("it has spaces, control characters or one of \\ ~ ^ : ? * [")
    } else if percent_encoded(revision).len() > 240 {
        // File systems stop at 255 bytes a name; the rest is for ".tmp" ends.
        Some("it is too long")
    } else {
        None
    }
}

fn percent_encoded(text: &str) -> String {
    use fmt::Write as _;
    text.bytes().fold(String::new(), |mut out, byte| {
        if byte.is_ascii_alphanumeric() || b"-_.".contains(&byte) {
            out.push(char::from(byte));
        } else {
            // Writing to a String does not fail.
            let _ = write!(out, "%{byte:02X}");
        }
        out
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repository_names_follow_the_hubs_rules() {
        let long = "a".repeat(97);
        let longest = format!("{0}/{0}", "a".repeat(96));
        let table = [
            ("bert", true),
            ("org/name", true),
            ("sentence-transformers/all-MiniLM-L6-v2", true),
            ("a.b_c-d/e.f_g-h", true),
            (longest.as_str(), true),
            (long.as_str(), false),
            ("", false),
            ("/", false),
            ("org/", false),
            ("/name", false),
            ("a/b/c", false),
            ("..", false),
            ("org/..", false),
            ("org/a..b", false),
            ("org/a--b", false),
            ("-org/name", false),
            ("org-/name", false),
            ("org/.name", false),
            ("org/name.", false),
            ("org/name.git", false),
            ("org/na me", false),
            ("org/na\\me", false),
            ("org/na\0me", false),
            ("org/naïve", false),
            ("org/name?x", false),
            ("org/name%2f", false),
        ];
        for (name, good) in table {
            assert_eq!(name.parse::<Repo>().is_ok(), good, "{name:?}");
        }
    }

    #[test]
    fn revisions_are_names_that_git_would_take() {
        let table = [
            ("main", true),
            ("v1.0", true),
            ("refs/pr/1", true),
            ("feature/größe", true),
            ("0123456789abcdef0123456789abcdef01234567", true),
            ("", false),
            ("../main", false),
            ("a..b", false),
            ("a//b", false),
            ("a/.b", false),
            ("/main", false),
            ("main/", false),
            (".main", false),
            ("-main", false),
            ("ma in", false),
            ("ma\nin", false),
            ("ma\0in", false),
            ("ma\\in", false),
            ("ma?in", false),
        ];
        for (revision, good) in table {
            let source = Source::new("org/name".parse().expect("a good name"), revision);
            assert_eq!(source.is_ok(), good, "{revision:?}");
        }
    }

    #[test]
    fn only_forty_lower_case_digits_are_a_commit() {
        assert!(is_commit("0123456789abcdef0123456789abcdef01234567"));
        assert!(!is_commit("0123456789ABCDEF0123456789abcdef01234567"));
        assert!(!is_commit("0123456789abcdef"));
        assert!(!is_commit("main"));
    }

    #[test]
    fn a_branch_with_slashes_is_one_file_name() {
        assert_eq!(percent_encoded("refs/pr/1"), "refs%2Fpr%2F1");
        assert_eq!(percent_encoded("a%2Fb"), "a%252Fb");
    }
}
