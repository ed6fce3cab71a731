//! The documentation says what the code says: files that are made from it, and tables that
//! have to be complete.
//!
//! `make generate` writes the files anew.
#![allow(clippy::unwrap_used, reason = "a test that unwraps in vain fails, as it should")]

#[path = "support/generated.rs"]
mod generated;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use clap::{Arg, CommandFactory as _};
use embedding_operator::config::Cli;
use embedding_operator::controller::build::names;
use embedding_operator::crd::status::{ConditionType, Reason};

use generated::assert_generated;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn row(table: &mut String, argument: &Arg) {
    let values: Vec<_> =
        argument.get_possible_values().iter().map(|value| value.get_name().to_owned()).collect();
    let long = argument.get_long().unwrap();
    let value = match argument.get_value_names() {
        _ if !values.is_empty() && values != ["true", "false"] => format!("` {}", values.join(", ")),
        Some([value, ..]) => format!(" {value}`"),
        _ => "`".to_owned(),
    };
    let variable = argument.get_env().map(|name| format!("`{}`", name.to_string_lossy())).unwrap_or_default();
    let default: Vec<_> =
        argument.get_default_values().iter().map(|value| format!("`{}`", value.to_string_lossy())).collect();
    let help = argument.get_long_help().or(argument.get_help()).map(ToString::to_string).unwrap_or_default();
    let help = help.replace('\n', " ").replace('|', "\\|").replace('<', "\\<");
    writeln!(table, "| `--{long}{value} | {variable} | {} | {help} |", default.join(", ")).unwrap();
}

#[test]
fn the_configuration_reference() {
    let mut text = String::from(
        "# Configuration of the operator\n\n<!-- GENERATED from the code by `make generate`. -->\n\n\
         Every option of `embedding-operator` is a flag and an environment variable; the flag wins. An empty\n\
         variable counts as unset. `embedding-operator --help` says the same.\n\n\
         | option | variable | default | |\n|---|---|---|---|\n",
    );
    let cli = Cli::command();
    cli.get_arguments()
        .filter(|argument| argument.get_long().is_some())
        .for_each(|argument| row(&mut text, argument));
    assert_generated(&root().join("docs/operator-configuration.md"), &text);
}

#[test]
fn every_condition_and_reason_is_explained_once_and_no_others() {
    let text = std::fs::read_to_string(root().join("docs/operations.md")).unwrap();
    let rows_of = |heading: &str| -> Vec<String> {
        let (_, section) =
            text.split_once(&format!("\n## {heading}\n")).unwrap_or_else(|| panic!("no {heading}"));
        let section = section.split("\n## ").next().unwrap();
        let rows = section.lines().filter_map(|line| line.strip_prefix("| `"));
        rows.map(|row| {
            let (name, rest) = row.split_once('`').unwrap();
            assert!(rest.split('|').skip(1).all(|cell| cell.is_empty() || cell.trim().len() > 3), "{row}");
            name.to_owned()
        })
        .collect()
    };
    assert_eq!(rows_of("Conditions"), ConditionType::ALL.map(|type_| type_.name().to_owned()));
    let mut reasons: Vec<String> = Reason::ALL.map(Reason::name).into();
    let mut explained = rows_of("Reasons");
    reasons.sort_unstable();
    explained.sort_unstable();
    assert_eq!(explained, reasons);
}

#[test]
fn the_labels_and_annotations_that_users_touch_are_named_as_they_are() {
    let text = std::fs::read_to_string(root().join("docs/operator.md")).unwrap();
    for name in [names::UPDATE_ANNOTATION, names::SPACE_ANNOTATION, names::MODEL_LABEL, names::SOURCE_LABEL] {
        assert!(text.contains(&format!("`{name}")), "{name}");
    }
}
