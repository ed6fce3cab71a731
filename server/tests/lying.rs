//! Directories that lie: each setting of each architecture's files changed, each tensor taken away or of another
//! shape, files of other models. What cannot be served is refused in one line that names the file; nothing panics,
//! and what is served makes numbers.
#![allow(clippy::unwrap_used, reason = "a test that unwraps in vain fails, as it should")]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::Command;

use embedding_server::kernels::cpu::{Cpu, InstructionSet};
use embedding_server::model::{DeviceChoice, Directory, Dtype, Implementation, Preference, TokenBatch};
use embedding_server::models::{self, Loaded, Manner, one_line};
use embedding_server::tokenize::How;
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};
use support::directory::{copy, families};

/// The implementations that are to be lied to: on this CPU all that serve every architecture.
fn implementations() -> Vec<Implementation> {
    let fused = Cpu::this().sets().contains(&InstructionSet::Avx512F32);
    let fused = fused.then_some(Implementation::Fused);
    [Implementation::Packed].into_iter().chain(fused).collect()
}

fn load(path: &Path, implementation: Implementation) -> Result<Loaded, String> {
    let preference = Preference {
        implementation: Some(implementation),
        dtype: Some(Dtype::Float32),
        device: DeviceChoice::Cpu,
        kernels: None,
    };
    let directory = Directory::read(path).map_err(|error| one_line(&error))?;
    let loaded = models::load(directory, String::new(), preference, &Manner::default());
    loaded.map_err(|error| one_line(&error))
}

/// A model's directory that can be changed, of the same name: some tell by it what they are.
struct Copy {
    path: PathBuf,
    name: String,
    _folder: tempfile::TempDir,
}

impl Copy {
    fn of(family: &Path) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let name = family.file_name().unwrap().display().to_string();
        let path = folder.path().join(&name);
        copy(family, &path);
        Self { path, name, _folder: folder }
    }
}

/// What becomes of a directory: nothing where it is served, else why not.
fn fate(path: &Path, implementation: Implementation, lie: &str) -> Option<String> {
    let attempt = || {
        let mut loaded = load(path, implementation)?;
        let tokens = match loaded.tokenizer.encode_pair("two of a kind", "one", &How::default()) {
            Ok(tokens) if loaded.about.kind != embedding_server::scores::Kind::Embedding => tokens,
            _ => loaded.tokenizer.encode("two of a kind", &How::default()).unwrap(),
        };
        let batch: TokenBatch = tokens.pieces.iter().collect();
        let numbers = loaded.models[0].embed(&batch).map_err(|error| one_line(&error))?;
        assert_eq!(numbers.len(), batch.len() * loaded.about.dimensions, "{lie}");
        Ok::<(), String>(())
    };
    let attempted = catch_unwind(AssertUnwindSafe(attempt));
    let why = attempted.unwrap_or_else(|_| panic!("{implementation}: {lie}: it panicked")).err()?;
    assert!(!why.contains('\n') && why.len() < 1000, "{lie}: {why}");
    Some(why)
}

/// Asserts that it is refused, and that its own file is named for it.
fn refused(path: &Path, implementation: Implementation, lie: &str) -> String {
    let why = fate(path, implementation, lie);
    let why = why.unwrap_or_else(|| panic!("{implementation}: {lie}: it is served"));
    let relative = why.strip_prefix(&format!("{}/", path.display()));
    relative.unwrap_or_else(|| panic!("{implementation}: {lie}: no file of it is named: {why}")).to_owned()
}

/// The settings of a JSON file that are numbers, by their JSON pointers.
fn numbers(value: &Value, pointer: &str, found: &mut Vec<(String, f64)>) {
    match value {
        Value::Number(number) => found.push((pointer.to_owned(), number.as_f64().unwrap())),
        Value::Object(fields) => {
            for (name, value) in fields {
                numbers(value, &format!("{pointer}/{name}"), found);
            }
        }
        Value::Array(values) => {
            for (place, value) in values.iter().enumerate().take(2) {
                numbers(value, &format!("{pointer}/{place}"), found);
            }
        }
        _ => {}
    }
}

/// The JSON files of a directory and of its modules' folders, but for the tokenizer's.
fn settings(path: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(path).unwrap() {
        let entry = entry.unwrap().path();
        if entry.is_dir() {
            files.extend(settings(&entry));
        } else if entry.extension().is_some_and(|end| end == "json")
            && !["tokenizer.json", "reference.json", "mutations.json"]
                .iter()
                .any(|name| entry.ends_with(name))
        {
            files.push(entry);
        }
    }
    files.sort();
    files
}

fn every_number_lies(part: impl Fn(usize) -> bool) {
    let implementations = implementations();
    for (_, family) in families().into_iter().enumerate().filter(|(place, _)| part(*place)) {
        let copy = Copy::of(&family);
        for file in settings(&copy.path) {
            let original = fs::read(&file).unwrap();
            let Ok(truth) = serde_json::from_slice::<Value>(&original) else { continue };
            let mut found = Vec::new();
            numbers(&truth, "", &mut found);
            for (pointer, number) in found {
                let lies = [
                    json!(0),
                    json!(-1),
                    json!(number * 2.0 + 1.0),
                    json!((number as i64).saturating_add(1)),
                ];
                let large = [json!(1u64 << 40), json!(i64::MAX), json!(1e300), json!("7"), json!(null)];
                for (round, lie) in lies.into_iter().chain(large).enumerate() {
                    let mut config = truth.clone();
                    *config.pointer_mut(&pointer).unwrap() = lie.clone();
                    fs::write(&file, config.to_string()).unwrap();
                    let name = &copy.name;
                    let what = format!(
                        "{name}: {}{pointer} = {lie}",
                        file.strip_prefix(&copy.path).unwrap().display()
                    );
                    // All are lied to in turns.
                    fate(&copy.path, implementations[round % implementations.len()], &what);
                }
            }
            fs::write(&file, original).unwrap();
        }
    }
}

#[test]
fn a_number_that_lies_is_refused_or_does_no_harm() {
    every_number_lies(|place| place % 2 == 0);
}

#[test]
fn a_number_that_lies_is_refused_or_does_no_harm_in_the_other_half() {
    every_number_lies(|place| place % 2 == 1);
}

/// The safetensors files of a directory and of its modules' folders.
fn weights(path: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(path).unwrap() {
        let entry = entry.unwrap().path();
        if entry.is_dir() {
            files.extend(weights(&entry));
        } else if entry.file_name().unwrap().display().to_string().starts_with("model")
            && entry.extension().is_some_and(|end| end == "safetensors")
        {
            files.push(entry);
        }
    }
    files
}

/// The last part of the module's name that a tensor is of: old names of tensors are told by the new ones.
fn module(tensor: &str) -> &str {
    let module = tensor.rsplit_once('.').map_or(tensor, |(module, _)| module);
    module.rsplit_once('.').map_or(module, |(_, last)| last)
}

/// Lies about one tensor after the other; those without which a model is served all the same.
fn lie_about_tensors(
    change: impl Fn(&mut BTreeMap<String, TensorView<'_>>, &str),
) -> BTreeMap<String, String> {
    let mut served = BTreeMap::new();
    let implementations = implementations();
    for family in families() {
        let copy = Copy::of(&family);
        for file in weights(&copy.path) {
            let original = fs::read(&file).unwrap();
            let tensors = SafeTensors::deserialize(&original).unwrap();
            for (place, name) in tensors.names().into_iter().enumerate() {
                let mut changed: BTreeMap<_, _> =
                    tensors.iter().map(|(name, view)| (name.to_owned(), view)).collect();
                change(&mut changed, name);
                fs::write(&file, safetensors::serialize(&changed, None).unwrap()).unwrap();
                let what = format!("{}: {name}", copy.name);
                let implementation = implementations[place % implementations.len()];
                match fate(&copy.path, implementation, &what) {
                    Some(_) => {
                        let why = refused(&copy.path, implementation, &what);
                        let own = module(name);
                        assert!(why.contains(".safetensors: ") && why.contains(own), "{what}: {why}");
                    }
                    None => drop(served.insert(what, name.to_owned())),
                }
            }
            fs::write(&file, &original).unwrap();
        }
    }
    served
}

/// Heads that were trained with the model and make no vectors, what is made anew from the configuration, and T5's
/// table, which some files have under two names.
fn is_of_no_use(name: &str) -> bool {
    let twice = ["shared.weight", "encoder.embed_tokens.weight"];
    let heads = ["pooler.", "cls.", "lm_head.", "predictions.", "decoder.", "head."];
    let made_anew = ["position_ids", "inv_freq"];
    twice.contains(&name) || heads.iter().chain(&made_anew).any(|part| name.contains(part))
}

#[test]
fn a_tensor_that_is_missing_is_named() {
    let served = lie_about_tensors(|tensors, name| drop(tensors.remove(name)));
    let needed: Vec<_> =
        served.iter().filter(|(_, name)| !is_of_no_use(name)).map(|(what, _)| what).collect();
    assert!(needed.is_empty(), "served without {needed:?}");
}

#[test]
fn a_tensor_of_another_shape_is_named() {
    // One row less, or one value.
    let served = lie_about_tensors(|tensors, name| {
        let view = &tensors[name];
        let mut shape = view.shape().to_vec();
        if let Some(rows) = shape.first_mut() {
            *rows -= 1;
            let bytes = view.data().len() / (*rows + 1) * *rows;
            let less = TensorView::new(view.dtype(), shape, &view.data()[..bytes]).unwrap();
            tensors.insert(name.to_owned(), less);
        } else {
            tensors.remove(name);
        }
    });
    let needed: Vec<_> =
        served.iter().filter(|(_, name)| !is_of_no_use(name)).map(|(what, _)| what).collect();
    assert!(needed.is_empty(), "served with {needed:?} cut");
}

#[test]
fn a_shard_that_is_missing_or_another_ones_is_named() {
    let family = families().into_iter().find(|path| path.ends_with("bert-sharded")).unwrap();
    for implementation in implementations() {
        let copy = Copy::of(&family);
        let shards = weights(&copy.path);
        assert!(shards.len() > 1);
        let gone = shards.iter().max().unwrap();
        fs::remove_file(gone).unwrap();
        let why = refused(&copy.path, implementation, "without a shard");
        let name = gone.file_name().unwrap().display().to_string();
        assert_eq!(why, format!("{name}: no such file"));

        // The same bytes under two names: tensors that the index has elsewhere.
        fs::copy(shards.iter().min().unwrap(), gone).unwrap();
        let why = refused(&copy.path, implementation, "with a shard twice");
        assert!(why.contains("tensor"), "{why}");
    }
}

#[test]
fn a_tokenizer_of_another_model_is_refused_where_its_ids_are_beyond_the_table() {
    for family in families() {
        let copy = Copy::of(&family);
        let path = copy.path.join("tokenizer.json");
        let mut tokenizer: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        let config: Value =
            serde_json::from_slice(&fs::read(copy.path.join("config.json")).unwrap()).unwrap();
        let rows = config["vocab_size"].as_u64().unwrap();
        // So many that some are beyond, also where the library numbers them anew from the last one of the vocabulary.
        let token = |place: u64| {
            json!({
                "id": rows + place, "content": format!("beyond{place}"), "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": false,
            })
        };
        tokenizer["added_tokens"].as_array_mut().unwrap().extend((0..=rows).map(token));
        fs::write(&path, tokenizer.to_string()).unwrap();
        let name = &copy.name;
        for implementation in implementations() {
            let why = refused(&copy.path, implementation, name);
            assert!(why.starts_with("tokenizer.json: "), "{name}: {why}");
            assert!(why.contains(&rows.to_string()), "{name}: {why}");
        }
    }
}

/// Puts something in the place of a file.
type Lie<'a> = &'a dyn Fn(&Path);

#[test]
fn what_is_no_file_or_no_model_is_told_and_does_not_hold_up() {
    let family = families().into_iter().find(|path| path.ends_with("bert-sharded")).unwrap();
    let index = "model.safetensors.index.json";
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n";
    let mut long = (17u64 << 20).to_le_bytes().to_vec();
    long.resize(8 + (17 << 20), b' ');
    let text = |text: &'static str| move |path: &Path| fs::write(path, text).unwrap();
    let pipe = |path: &Path| {
        assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
    };
    let endless = |path: &Path| std::os::unix::fs::symlink("/dev/zero", path).unwrap();
    let lies: [(&str, Lie<'_>, &str); 9] = [
        ("config.json", &pipe, "cannot be read: is no regular file"),
        ("modules.json", &endless, "cannot be read: is no regular file"),
        ("tokenizer.json", &endless, "no such file; the model needs a tokenizer"),
        (index, &endless, "cannot be read: is no regular file"),
        (index, &text(r#"{"weight_map": {}}"#), "names no file with weights"),
        (
            index,
            &text("{\"weight_map\": {\"a\": \"\\u001b[31m\"}}"),
            r#"shard name "\u{1b}[31m" is no plain file name"#,
        ),
        ("model-00001-of-00003.safetensors", &pipe, "cannot be read: is no regular file"),
        ("model-00001-of-00003.safetensors", &text(pointer), "is a pointer of Git LFS, and not the weights"),
        (
            "model-00001-of-00003.safetensors",
            &|path| fs::write(path, &long).unwrap(),
            "promise a header of 17825792 bytes",
        ),
    ];
    for (file, lie, expected) in lies {
        let copy = Copy::of(&family);
        let path = copy.path.join(file);
        fs::remove_file(&path).unwrap();
        lie(&path);
        let why = refused(&copy.path, Implementation::Packed, file);
        assert!(why.starts_with(&format!("{file}: ")) && why.contains(expected), "{why}");
    }
}
