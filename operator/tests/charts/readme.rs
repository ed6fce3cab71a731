//! The table of values in a chart's README.md, from the comments in its values.yaml.

use std::fmt::Write as _;

use serde_json::Value;

/// A value that a user may set.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) path: Vec<String>,
    pub(crate) default: Value,
    description: String,
}

/// Where JSON has what has this path.
pub(crate) fn pointer(path: &[String]) -> String {
    path.iter().flat_map(|key| ["/", key]).collect()
}

/// Every key with a comment right above it, with what is beneath it; keys without one are
/// groups of such.
///
/// # Panics
///
/// Where a key that is no group has no comment.
pub(crate) fn rows(text: &str) -> Vec<Row> {
    let values: Value = serde_yaml::from_str(text).expect("values are YAML");
    let mut rows: Vec<Row> = Vec::new();
    // The keys above, each with its indentation.
    let mut above: Vec<(usize, String)> = Vec::new();
    let mut comment: Vec<&str> = Vec::new();
    // What is deeper belongs to the default of the last row.
    let mut within = usize::MAX;
    for line in text.lines() {
        let trimmed = line.trim_start();
        let indentation = line.len() - trimmed.len();
        if let Some(text) = trimmed.strip_prefix('#') {
            comment.push(text.trim());
            continue;
        }
        let described = std::mem::take(&mut comment).join(" ");
        let Some((key, rest)) = trimmed.split_once(':').filter(|_| indentation <= within) else { continue };
        above.retain(|(at, _)| *at < indentation);
        above.push((indentation, key.to_owned()));
        let path: Vec<String> = above.iter().map(|(_, key)| key.clone()).collect();
        if described.is_empty() {
            assert!(rest.is_empty(), "{} has no comment", path.join("."));
            within = usize::MAX;
            continue;
        }
        within = indentation;
        let default = values.pointer(&pointer(&path));
        let default = default.unwrap_or_else(|| panic!("no value at {}", path.join("."))).clone();
        rows.push(Row { path, default, description: described });
    }
    rows
}

/// As in the other references.
pub(crate) fn table(text: &str) -> String {
    let mut table = String::from("| value | default | |\n|---|---|---|\n");
    for Row { path, default, description } in rows(text) {
        let description = description.replace('|', "\\|").replace('<', "\\<");
        let default = default.to_string().replace('|', "\\|");
        writeln!(table, "| `{}` | `{default}` | {description} |", path.join(".")).expect("a string takes it");
    }
    table
}
