//! Committed files that are made from the code equal what the code makes.
//!
//! `make generate` writes them anew.
#![allow(clippy::unwrap_used, reason = "a test that unwraps in vain fails, as it should")]

use std::fmt::Write;
use std::path::{Path, PathBuf};

use clap::{Arg, CommandFactory};
use embedding_server::config::Cli;
use embedding_server::http;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn check(file: &str, content: &str) {
    let path = root().join(file);
    if std::env::var_os("UPDATE_GENERATED").is_some() {
        std::fs::write(&path, content).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(committed == content, "{file} is not what the code makes: run `make generate` and commit it");
}

fn row(table: &mut String, argument: &Arg) {
    let values: Vec<_> =
        argument.get_possible_values().iter().map(|value| value.get_name().to_owned()).collect();
    let name = match (argument.get_long(), argument.get_value_names()) {
        (None, Some([value, ..])) => format!("`{value}`"),
        (long, _) if !argument.get_action().takes_values() => format!("`--{}`", long.unwrap_or_default()),
        (long, _) if !values.is_empty() => format!("`--{}` {}", long.unwrap_or_default(), values.join(", ")),
        (long, Some([value, ..])) => format!("`--{} {value}`", long.unwrap_or_default()),
        (long, _) => format!("`--{}`", long.unwrap_or_default()),
    };
    let variable = argument.get_env().map(|name| format!("`{}`", name.to_string_lossy())).unwrap_or_default();
    let default: Vec<_> =
        argument.get_default_values().iter().map(|value| format!("`{}`", value.to_string_lossy())).collect();
    let default = if argument.get_action().takes_values() { default.join(", ") } else { String::new() };
    let help = argument.get_long_help().or(argument.get_help()).map(ToString::to_string).unwrap_or_default();
    let help = help.replace('\n', " ").replace('|', "\\|").replace('<', "\\<");
    writeln!(table, "| {name} | {variable} | {default} | {help} |").unwrap();
}

#[test]
fn the_configuration_reference() {
    let mut text = String::from(
        "# Configuration\n\n<!-- GENERATED from the code by `make generate`. -->\n\n\
         Every option of `embedding-server` is a flag and, where it has one, an environment variable; the flag\n\
         wins. An empty variable counts as unset. `embedding-server SUBCOMMAND --help` says the same.\n",
    );
    for command in Cli::command().get_subcommands() {
        let about = command.get_about().map(ToString::to_string).unwrap_or_default();
        write!(text, "\n## embedding-server {}\n\n{about}\n\n", command.get_name()).unwrap();
        text.push_str("| option | variable | default | |\n|---|---|---|---|\n");
        let arguments = command.get_arguments().filter(|argument| argument.get_id() != "help");
        arguments.for_each(|argument| row(&mut text, argument));
    }
    check("docs/configuration.md", &text);
}

#[test]
fn the_description_of_the_api() {
    check("docs/openapi.json", &http::document());
}
