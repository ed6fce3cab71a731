//! Committed files that are made from the code equal what the code makes.
//!
//! `make generate` writes them anew.
#![allow(clippy::unwrap_used, reason = "a test that unwraps in vain fails, as it should")]

use std::fmt::Write;
use std::path::{Path, PathBuf};

use clap::{Arg, CommandFactory};
use embedding_server::config::Cli;
use embedding_server::http;
use embedding_server::kernels::cpu::InstructionSet;
use embedding_server::model::directory::classes;
use embedding_server::model::families::{Example, FAMILIES, Family};
use embedding_server::model::pooling::Pooling;
use embedding_server::model::{
    DeviceChoice, Directory, Dtype, Gpus, Implementation, Machine, Plan, Preference,
};

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

/// A file with generated parts: each begins with a comment that names it, and ends with another one.
fn check_parts(file: &str, parts: &[(&str, String)]) {
    let mut text = std::fs::read_to_string(root().join(file)).unwrap();
    for (name, content) in parts {
        let (begin, end) = (format!("<!-- GENERATED: {name} -->\n"), "<!-- END -->");
        let from = text.find(&begin).unwrap_or_else(|| panic!("{file} has no part {name}")) + begin.len();
        let to = from + text[from..].find(end).unwrap();
        text.replace_range(from..to, content);
    }
    check(file, &text);
}

fn table(head: &str, rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let columns = head.matches('|').count() - 1;
    let row = |cells: Vec<String>| {
        let cells: Vec<_> = cells.iter().map(|cell| cell.replace('|', "\\|")).collect();
        format!("| {} |\n", cells.join(" | "))
    };
    let rows = rows.into_iter().map(row);
    format!("{head}\n|{}\n{}", "---|".repeat(columns), rows.collect::<String>())
}

fn code(words: impl IntoIterator<Item = impl std::fmt::Display>) -> String {
    words.into_iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", ")
}

/// Which implementations know a family.
fn served_by(family: &Family) -> String {
    let knows = |it: &Implementation| family.architectures.iter().any(|architecture| it.knows(architecture));
    code(Implementation::ALL.into_iter().filter(knows))
}

fn families() -> String {
    let row = |family: &Family| {
        let told = family.told_by.map(|(field, value)| format!(" with `{field}` {value}"));
        vec![
            family.name.to_owned(),
            format!("{}{}", code(family.model_types), told.unwrap_or_default()),
            served_by(family),
            code(family.examples.iter().map(|example| example.repository)),
            family.limits.to_owned(),
        ]
    };
    table("| family | `model_type` | served by | for example | to know |", FAMILIES.iter().map(row))
}

/// What each implementation computes with, as `serve` decides on a machine that has all that there is.
fn implementations() -> String {
    let all = Machine {
        native_bf16: true,
        can_bf16: true,
        kernels: &InstructionSet::ALL,
        libtorch: true,
        gpus: Ok(Gpus { count: 1, bfloat16: true }),
    };
    let can = |implementation, dtype, device, machine| {
        let wish = Preference { implementation: Some(implementation), dtype, device, kernels: None };
        Plan::decide(wish, machine).is_ok()
    };
    let row = |implementation| {
        let on = |device| {
            let dtypes = [Dtype::BFloat16, Dtype::Float16, Dtype::Float32];
            code(dtypes.into_iter().filter(|&dtype| can(implementation, Some(dtype), device, all)))
        };
        let without =
            [("AVX-512", Machine { kernels: &[], ..all }), ("LibTorch", Machine { libtorch: false, ..all })];
        let needs = without
            .into_iter()
            .filter(|&(_, machine)| !can(implementation, None, DeviceChoice::Cpu, machine));
        let needs: Vec<_> = needs.map(|(what, _)| what).collect();
        vec![
            format!("`{implementation}`"),
            on(DeviceChoice::Cpu),
            on(DeviceChoice::Cuda(None)),
            needs.join(", "),
        ]
    };
    table("| implementation | on CPUs | on GPUs | needs, on a CPU |", Implementation::ALL.map(row))
}

fn prompts() -> String {
    let examples: Vec<&Example> = FAMILIES.iter().flat_map(|family| family.examples).collect();
    let mut kinds: Vec<(&str, &str)> = Vec::new();
    for example in &examples {
        if !kinds.contains(&(example.query, example.document)) {
            kinds.push((example.query, example.document));
        }
    }
    kinds.sort_by_key(|(query, document)| (query.is_empty(), document.is_empty()));
    let shown = |text: &str| if text.is_empty() { "nothing".to_owned() } else { format!("`{text:?}`") };
    let row = |(query, document): (&str, &str)| {
        let wants = examples.iter().filter(|example| (example.query, example.document) == (query, document));
        vec![shown(query), shown(document), code(wants.map(|example| example.repository))]
    };
    table("| before queries | before documents | models |", kinds.into_iter().map(row))
}

/// What each family's vectors and scores were compared with.
fn evidence() -> String {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/families");
    let mut found = Vec::new();
    for entry in std::fs::read_dir(fixtures).unwrap() {
        let path = entry.unwrap().path();
        let family = Family::of(&Directory::read(&path).unwrap().encoder).unwrap().name;
        let reference = std::fs::read(path.join("reference.json")).unwrap();
        let reference: serde_json::Value = serde_json::from_slice(&reference).unwrap();
        let evidence = reference["evidence"].as_str().unwrap().to_owned();
        found.push((family, evidence, path.file_name().unwrap().to_string_lossy().into_owned()));
    }
    found.sort();
    let rows = FAMILIES.iter().flat_map(|family| {
        let of_family: Vec<_> = found.iter().filter(|(name, ..)| *name == family.name).collect();
        assert!(!of_family.is_empty(), "{} has no fixture", family.name);
        let groups = of_family.chunk_by(|a, b| a.1 == b.1);
        let row = |group: &[&(&str, String, String)]| {
            let folders = code(group.iter().map(|(_, _, folder)| folder));
            vec![family.name.to_owned(), group[0].1.clone(), folders]
        };
        groups.map(row).collect::<Vec<_>>()
    });
    table("| family | compared with | models in `server/tests/families/` |", rows)
}

#[test]
fn the_tables_of_models() {
    let poolings = Pooling::from_json(&serde_json::json!({"pooling_mode": "?"}), 1).unwrap_err();
    let poolings = poolings.rsplit_once(": ").unwrap().1.split(", ");
    check_parts(
        "docs/models.md",
        &[
            ("families", families()),
            ("implementations", implementations()),
            ("prompts", prompts()),
            ("poolings", format!("{}\n", code(poolings))),
            ("classes", format!("{}\n", code(classes()))),
            ("evidence", evidence()),
        ],
    );
}
