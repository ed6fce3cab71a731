//! Which files of a repository the server needs. Pure: it knows a repository
//! only by the question whether it has a file, so that a hub's list and a
//! local directory are chosen from by the same rules.

use std::collections::BTreeSet;

use serde::Deserialize;

use super::Error;
pub(super) use crate::convert::BIN_INDEX;
use crate::convert::{BIN, Index};

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
const INDEX: &str = "model.safetensors.index.json";
const WEIGHTS: &str = "model.safetensors";
/// What decides on the vectors of a sentence-transformers model beside its weights and its modules' own settings.
pub(super) const DECISIVE: [&str; 3] =
    [MODULES, "config_sentence_transformers.json", "sentence_bert_config.json"];
/// What may have to be read before it is known what else is needed.
pub(super) const LEADS: [&str; 3] = [MODULES, INDEX, BIN_INDEX];

#[derive(Deserialize)]
struct Module {
    #[serde(default)]
    path: String,
}

/// What to take.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Chosen {
    /// All files, in order of names.
    pub(super) files: BTreeSet<String>,
    /// Those of them that hold pickled weights, where there is nothing else.
    pub(super) pickled: BTreeSet<String>,
}

/// The files that have to be read before [`files`] can choose the others.
pub(super) fn leads(has: impl Fn(&str) -> bool) -> Vec<&'static str> {
    let mut leads = Vec::new();
    if has(MODULES) {
        leads.push(MODULES);
    }
    // The first of these that there is.
    let weights = [WEIGHTS, INDEX, BIN, BIN_INDEX].into_iter().find(|file| has(file));
    leads.extend(weights.filter(|file| LEADS.contains(file)));
    leads
}

/// Chooses by the contents of the [`leads`].
pub(super) fn files<'a>(
    repo: &str,
    has: impl Fn(&str) -> bool,
    lead: impl Fn(&str) -> Option<&'a [u8]>,
) -> Result<Chosen, Error> {
    let (mut taken, mut pickled) = (BTreeSet::new(), BTreeSet::new());
    for file in NEEDED {
        if !has(file) {
            return Err(Error::MissingFile { repo: repo.to_owned(), file: file.to_owned() });
        }
        taken.insert(file.to_owned());
    }
    taken.extend(OPTIONAL.into_iter().filter(|f| has(f)).map(str::to_owned));

    if has(WEIGHTS) {
        taken.insert(WEIGHTS.to_owned());
    } else if let Some(json) = lead(INDEX) {
        taken.insert(INDEX.to_owned());
        taken.extend(shards(repo, &has, INDEX, ".safetensors", json)?);
    } else if has(BIN) {
        pickled.insert(BIN.to_owned());
    } else if let Some(json) = lead(BIN_INDEX) {
        taken.insert(BIN_INDEX.to_owned());
        pickled.extend(shards(repo, &has, BIN_INDEX, ".bin", json)?);
    } else {
        return Err(no_weights(repo));
    }

    for folder in lead(MODULES).map_or(Ok(Vec::new()), |json| folders(repo, json))? {
        let [weights, bin] = [WEIGHTS, BIN].map(|file| format!("{folder}/{file}"));
        if has(&weights) {
            taken.insert(weights);
        } else if has(&bin) {
            pickled.insert(bin);
        }
        let config = format!("{folder}/config.json");
        if has(&config) {
            taken.insert(config);
        }
    }
    taken.extend(pickled.iter().cloned());
    Ok(Chosen { files: taken, pickled })
}

/// The files that an index names, all with this end.
fn shards(
    repo: &str,
    has: &impl Fn(&str) -> bool,
    index: &'static str,
    end: &'static str,
    json: &[u8],
) -> Result<BTreeSet<String>, Error> {
    let Index { weight_map } = serde_json::from_slice(json).map_err(broken(repo, index))?;
    let shards: BTreeSet<String> = weight_map.into_values().collect();
    for shard in &shards {
        check_path(shard, index)?;
        if !has(shard) {
            return Err(Error::MissingShard { repo: repo.to_owned(), file: shard.clone() });
        }
        // Beside the index: so do those who read them want it.
        if shard.contains('/') || shard.strip_suffix(end).is_none() {
            return Err(Error::StrangeShard { repo: repo.to_owned(), file: shard.clone(), end });
        }
    }
    if shards.is_empty() {
        return Err(no_weights(repo));
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

fn no_weights(repo: &str) -> Error {
    Error::MissingFile { repo: repo.to_owned(), file: format!("{WEIGHTS} or {BIN}") }
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

    /// What is taken of `repo`, with a star at what is pickled, or the error, as one string.
    fn choose(repo: &[&str], modules: &str, index: &str) -> String {
        let has = |file: &str| repo.contains(&file);
        let leads = leads(has);
        let read = |name: &str| {
            let json = if name == super::MODULES { modules } else { index };
            leads.contains(&name).then_some(json.as_bytes())
        };
        match files("org/name", has, read) {
            Ok(Chosen { files, pickled }) => {
                assert!(pickled.is_subset(&files));
                let shown = |file: String| if pickled.contains(&file) { file + "*" } else { file };
                files.into_iter().map(shown).collect::<Vec<_>>().join(" ")
            }
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
    fn pickled_weights_are_taken_where_there_is_nothing_else() {
        let bins = r#"{"weight_map": {"a": "pytorch_model-1.bin", "b": "pytorch_model-2.bin"}}"#;
        let plain = ["config.json", "tokenizer.json"];
        let with = |files: &[&'static str]| [plain.as_slice(), files].concat();
        for (repo, modules, index, expected) in [
            (with(&["pytorch_model.bin"]), "", "", "config.json pytorch_model.bin* tokenizer.json"),
            (
                with(&["pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-1.bin"]),
                "",
                "",
                "config.json pytorch_model.bin* tokenizer.json",
            ),
            (
                with(&[
                    "pytorch_model.bin.index.json",
                    "pytorch_model-1.bin",
                    "pytorch_model-2.bin",
                    "x.bin",
                ]),
                "",
                bins,
                "config.json pytorch_model-1.bin* pytorch_model-2.bin* pytorch_model.bin.index.json tokenizer.json",
            ),
            (
                with(&[
                    "model.safetensors.index.json",
                    "model-00001-of-00002.safetensors",
                    "model-00002-of-00002.safetensors",
                    "pytorch_model.bin",
                ]),
                "",
                INDEX_JSON,
                "config.json model-00001-of-00002.safetensors model-00002-of-00002.safetensors \
                 model.safetensors.index.json tokenizer.json",
            ),
            // Each folder for itself.
            (
                with(&[
                    "model.safetensors",
                    "modules.json",
                    "2_Dense/config.json",
                    "2_Dense/pytorch_model.bin",
                ]),
                MODULES_JSON,
                "",
                "2_Dense/config.json 2_Dense/pytorch_model.bin* config.json model.safetensors modules.json \
                 tokenizer.json",
            ),
            (
                with(&[
                    "pytorch_model.bin",
                    "modules.json",
                    "2_Dense/model.safetensors",
                    "2_Dense/pytorch_model.bin",
                ]),
                MODULES_JSON,
                "",
                "2_Dense/model.safetensors config.json modules.json pytorch_model.bin* tokenizer.json",
            ),
        ] {
            assert_eq!(choose(&repo, modules, index), expected, "{repo:?}");
        }
    }

    #[test]
    fn a_repository_that_cannot_run_is_refused_with_what_it_lacks() {
        let table: [(&[&str], &str, &str, String); 10] = [
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
                "choosing files of org/name: it has no model.safetensors or pytorch_model.bin, which the server needs"
                    .into(),
            ),
            (
                &["config.json", "tokenizer.json", "model.safetensors.index.json", "a.bin"],
                "",
                r#"{"weight_map": {"a": "a.bin"}}"#,
                "choosing files of org/name: its index names a.bin, which is no *.safetensors file beside it".into(),
            ),
            (
                &["config.json", "tokenizer.json", "pytorch_model.bin.index.json", "a.safetensors"],
                "",
                r#"{"weight_map": {"a": "a.safetensors"}}"#,
                "choosing files of org/name: its index names a.safetensors, which is no *.bin file beside it".into(),
            ),
            (
                &["config.json", "tokenizer.json", "pytorch_model.bin.index.json", "a/b.bin"],
                "",
                r#"{"weight_map": {"a": "a/b.bin"}}"#,
                "choosing files of org/name: its index names a/b.bin, which is no *.bin file beside it".into(),
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
