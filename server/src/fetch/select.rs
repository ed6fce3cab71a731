//! Which files of a repository the server needs. Pure: it knows a repository
//! only by the question whether it has a file, so that a hub's list and a
//! local directory are chosen from by the same rules.

use std::collections::BTreeSet;

use serde::Deserialize;

use super::Error;

const NEEDED: [&str; 2] = ["config.json", "tokenizer.json"];
const OPTIONAL: [&str; 5] = [
    "tokenizer_config.json",
    "special_tokens_map.json",
    MODULES,
    "config_sentence_transformers.json",
    "sentence_bert_config.json",
];
/// The list of a sentence-transformers model's modules.
pub(super) const MODULES: &str = "modules.json";
/// Which shard holds which tensor.
pub(super) const INDEX: &str = "model.safetensors.index.json";
const WEIGHTS: &str = "model.safetensors";
const PICKLES: [&str; 2] = ["pytorch_model.bin", "pytorch_model.bin.index.json"];

#[derive(Deserialize)]
struct Module {
    #[serde(default)]
    path: String,
}

#[derive(Deserialize)]
struct Index {
    weight_map: std::collections::BTreeMap<String, String>,
}

/// The files that have to be read before [`files`] can choose the others.
pub(super) fn leads(has: impl Fn(&str) -> bool) -> Vec<&'static str> {
    let mut leads = Vec::new();
    if has(MODULES) {
        leads.push(MODULES);
    }
    if !has(WEIGHTS) && has(INDEX) {
        leads.push(INDEX);
    }
    leads
}

/// All files to take, in order of names.
///
/// `modules` and `index` are the contents of the [`leads`].
pub(super) fn files(
    repo: &str,
    has: impl Fn(&str) -> bool,
    modules: Option<&[u8]>,
    index: Option<&[u8]>,
) -> Result<BTreeSet<String>, Error> {
    let mut taken = BTreeSet::new();
    for file in NEEDED {
        if !has(file) {
            return Err(Error::MissingFile { repo: repo.to_owned(), file: file.to_owned() });
        }
        taken.insert(file.to_owned());
    }
    taken.extend(OPTIONAL.into_iter().filter(|f| has(f)).map(str::to_owned));

    if has(WEIGHTS) {
        taken.insert(WEIGHTS.to_owned());
    } else if let Some(json) = index {
        taken.insert(INDEX.to_owned());
        taken.extend(shards(repo, &has, json)?);
    } else {
        return Err(no_weights(repo, &has, ""));
    }

    for folder in modules.map_or(Ok(Vec::new()), |json| folders(repo, json))? {
        let weights = format!("{folder}/{WEIGHTS}");
        if has(&weights) {
            taken.insert(weights);
        } else if PICKLES.iter().any(|p| has(&format!("{folder}/{p}"))) {
            return Err(no_weights(repo, &has, &format!("{folder}/")));
        }
        let config = format!("{folder}/config.json");
        if has(&config) {
            taken.insert(config);
        }
    }
    Ok(taken)
}

fn shards(repo: &str, has: &impl Fn(&str) -> bool, json: &[u8]) -> Result<BTreeSet<String>, Error> {
    let index: Index = serde_json::from_slice(json).map_err(broken(repo, INDEX))?;
    let shards: BTreeSet<String> = index.weight_map.into_values().collect();
    for shard in &shards {
        check_path(shard, INDEX)?;
        if !has(shard) {
            return Err(Error::MissingShard { repo: repo.to_owned(), file: shard.clone() });
        }
        if shard.strip_suffix(".safetensors").is_none() {
            return Err(Error::PickleOnly { repo: repo.to_owned(), file: shard.clone() });
        }
    }
    if shards.is_empty() {
        return Err(no_weights(repo, has, ""));
    }
    Ok(shards)
}

/// Module folders; the module at the top has the path "".
fn folders(repo: &str, json: &[u8]) -> Result<Vec<String>, Error> {
    let modules: Vec<Module> = serde_json::from_slice(json).map_err(broken(repo, MODULES))?;
    modules
        .into_iter()
        .filter(|module| !module.path.is_empty())
        .map(|module| check_path(&module.path, MODULES).map(|()| module.path))
        .collect()
}

fn no_weights(repo: &str, has: &impl Fn(&str) -> bool, folder: &str) -> Error {
    let repo = repo.to_owned();
    match PICKLES.iter().map(|pickle| format!("{folder}{pickle}")).find(|pickle| has(pickle)) {
        Some(file) => Error::PickleOnly { repo, file },
        None => Error::MissingFile { repo, file: format!("{folder}{WEIGHTS}") },
    }
}

fn broken(repo: &str, file: &'static str) -> impl FnOnce(serde_json::Error) -> Error {
    move |source| Error::BrokenIndex { repo: repo.to_owned(), file, source }
}

/// Refuses every name that could leave the directory that it is joined to, or
/// mean something else on another system.
pub(super) fn check_path(name: &str, origin: &'static str) -> Result<(), Error> {
    if is_plain(name) {
        return Ok(());
    }
    Err(Error::UnsafePath { name: name.to_owned(), origin })
}

pub(super) fn is_plain(name: &str) -> bool {
    !name.contains(['\\', '\0', ':'])
        && !name.chars().any(char::is_control)
        && name.split('/').all(|part| !part.is_empty() && part != "." && part != "..")
}

#[cfg(test)]
mod tests {
    use super::*;

    const MODULES_JSON: &str = r#"[
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        {"idx": 2, "name": "2", "path": "2_Dense", "type": "sentence_transformers.models.Dense"},
        {"idx": 3, "name": "3", "path": "3_Normalize", "type": "sentence_transformers.models.Normalize"}
    ]"#;
    const INDEX_JSON: &str = r#"{"metadata": {"total_size": 3}, "weight_map": {
        "a": "model-00001-of-00002.safetensors",
        "b": "model-00002-of-00002.safetensors",
        "c": "model-00001-of-00002.safetensors"
    }}"#;

    /// What is taken of `repo`, or the error, as one string.
    fn choose(repo: &[&str], modules: &str, index: &str) -> String {
        let has = |file: &str| repo.contains(&file);
        let leads = leads(has);
        let read = |name: &str, json: &'static str| leads.contains(&name).then_some(json);
        let modules: &'static str = String::leak(modules.to_owned());
        let index: &'static str = String::leak(index.to_owned());
        match files(
            "org/name",
            has,
            read(super::MODULES, modules).map(str::as_bytes),
            read(super::INDEX, index).map(str::as_bytes),
        ) {
            Ok(files) => files.into_iter().collect::<Vec<_>>().join(" "),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn a_plain_model_is_its_configuration_tokenizer_and_weights() {
        let repo = [
            ".gitattributes",
            "README.md",
            "config.json",
            "tokenizer.json",
            "vocab.txt",
            "model.safetensors",
            "pytorch_model.bin",
            "onnx/model.onnx",
        ];
        assert_eq!(choose(&repo, "", ""), "config.json model.safetensors tokenizer.json");
    }

    #[test]
    fn a_sentence_transformers_model_brings_its_modules() {
        let repo = [
            "config.json",
            "tokenizer.json",
            "tokenizer_config.json",
            "special_tokens_map.json",
            "modules.json",
            "config_sentence_transformers.json",
            "sentence_bert_config.json",
            "model.safetensors",
            "1_Pooling/config.json",
            "2_Dense/config.json",
            "2_Dense/model.safetensors",
            "2_Dense/pytorch_model.bin",
            "4_Other/config.json",
        ];
        assert_eq!(
            choose(&repo, MODULES_JSON, ""),
            "1_Pooling/config.json 2_Dense/config.json 2_Dense/model.safetensors config.json \
             config_sentence_transformers.json model.safetensors modules.json \
             sentence_bert_config.json special_tokens_map.json tokenizer.json tokenizer_config.json"
        );
    }

    #[test]
    fn a_sharded_model_is_its_index_and_exactly_the_shards_it_names() {
        let repo = [
            "config.json",
            "tokenizer.json",
            "model.safetensors.index.json",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model-00003-of-00003.safetensors",
        ];
        assert_eq!(
            choose(&repo, "", INDEX_JSON),
            "config.json model-00001-of-00002.safetensors model-00002-of-00002.safetensors \
             model.safetensors.index.json tokenizer.json"
        );
    }

    #[test]
    fn one_weight_file_wins_over_an_index() {
        let repo = [
            "config.json",
            "tokenizer.json",
            "model.safetensors",
            "model.safetensors.index.json",
            "model-00001-of-00002.safetensors",
        ];
        assert_eq!(choose(&repo, "", INDEX_JSON), "config.json model.safetensors tokenizer.json");
    }

    #[test]
    fn a_repository_that_cannot_run_is_refused_with_what_it_lacks() {
        const PICKLED: &str = "no safetensors; pickled weights can run code and are not loaded: choose a revision with \
            model.safetensors (often a conversion in refs/pr/N), or convert the weights";
        let table: [(&[&str], &str, &str, String); 9] = [
            (
                &["tokenizer.json", "model.safetensors"],
                "",
                "",
                "choosing files of org/name: it has no config.json, which the server needs".into(),
            ),
            (
                &["config.json", "model.safetensors"],
                "",
                "",
                "choosing files of org/name: it has no tokenizer.json, which the server needs"
                    .into(),
            ),
            (
                &["config.json", "tokenizer.json"],
                "",
                "",
                "choosing files of org/name: it has no model.safetensors, which the server needs"
                    .into(),
            ),
            (
                &["config.json", "tokenizer.json", "pytorch_model.bin"],
                "",
                "",
                format!("choosing files of org/name: it has pytorch_model.bin but {PICKLED}"),
            ),
            (
                &[
                    "config.json",
                    "tokenizer.json",
                    "model.safetensors",
                    "modules.json",
                    "2_Dense/pytorch_model.bin",
                ],
                MODULES_JSON,
                "",
                format!(
                    "choosing files of org/name: it has 2_Dense/pytorch_model.bin but {PICKLED}"
                ),
            ),
            (
                &[
                    "config.json",
                    "tokenizer.json",
                    "model.safetensors.index.json",
                    "model-00001-of-00002.safetensors",
                ],
                "",
                INDEX_JSON,
                "choosing files of org/name: its index names model-00002-of-00002.safetensors, which it does not have"
                    .into(),
            ),
            (
                &["config.json", "tokenizer.json", "model.safetensors.index.json"],
                "",
                r#"{"weight_map": {"a": "../../evil.safetensors"}}"#,
                "taking the file name \"../../evil.safetensors\" from model.safetensors.index.json: \
                 it is not a plain relative path, refused"
                    .into(),
            ),
            (
                &["config.json", "tokenizer.json", "model.safetensors", "modules.json"],
                r#"[{"path": "/etc"}]"#,
                "",
                "taking the file name \"/etc\" from modules.json: it is not a plain relative path, refused"
                    .into(),
            ),
            (
                &["config.json", "tokenizer.json", "model.safetensors", "modules.json"],
                "{}",
                "",
                "reading modules.json of org/name".into(),
            ),
        ];
        for (repo, modules, index, expected) in table {
            assert_eq!(choose(repo, modules, index), expected, "{repo:?}");
        }
    }

    #[test]
    fn only_plain_relative_paths_are_file_names() {
        for good in ["config.json", "1_Pooling/config.json", "a..b", ".gitattributes"] {
            assert!(check_path(good, "a test").is_ok(), "{good:?}");
        }
        for bad in [
            "",
            "/",
            "/etc/passwd",
            "a/",
            "a//b",
            ".",
            "..",
            "../evil",
            "a/../../evil",
            "a\\b",
            "..\\evil",
            "C:evil",
            "a\0b",
            "a\nb",
        ] {
            assert!(check_path(bad, "a test").is_err(), "{bad:?}");
        }
    }
}
