//! `embedding-server convert`, as somebody runs it who has a directory.

use std::collections::BTreeMap;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Output;

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

use crate::pickles;
use crate::support::process::{Server, command};

/// A model's directory, as its authors have it: pickled.
fn model(name: &str) -> TempDir {
    fn copy(from: &Path, to: &Path) {
        for entry in std::fs::read_dir(from).unwrap() {
            let path = entry.unwrap().path();
            let target = to.join(path.file_name().unwrap());
            if path.is_dir() {
                std::fs::create_dir_all(&target).unwrap();
                copy(&path, &target);
            } else if !path.to_string_lossy().contains("safetensors") {
                std::fs::copy(path, target).unwrap();
            }
        }
    }
    let directory = tempfile::tempdir().unwrap();
    let family = pickles().join("../families").join(name);
    copy(&family, directory.path());
    copy(&pickles().join(name), directory.path());
    directory
}

fn convert(directory: &Path) -> Output {
    command(&["convert", "--log-format", "json"]).arg(directory).output().unwrap()
}

fn summary(output: &Output) -> Value {
    assert!(output.status.success(), "{output:?}");
    let text = std::str::from_utf8(&output.stdout).unwrap();
    assert_eq!(text.lines().count(), 1, "{text}");
    serde_json::from_str(text).unwrap()
}

/// The last line of an error, with DIR for the directory.
fn failure(directory: &Path) -> String {
    let output = convert(directory);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(output.stdout.is_empty());
    let text = String::from_utf8(output.stderr).unwrap();
    text.lines().last().unwrap().replace(directory.to_str().unwrap(), "DIR")
}

/// All files with weights, by their names in the directory.
fn weights(directory: &Path) -> BTreeMap<String, PathBuf> {
    let folders = [directory.to_owned(), directory.join("2_Dense")];
    let files = folders.iter().filter_map(|folder| std::fs::read_dir(folder).ok()).flatten();
    let paths = files.map(|entry| entry.unwrap().path());
    let named = paths.map(|path| (path.strip_prefix(directory).unwrap().to_str().unwrap().to_owned(), path));
    named.filter(|(name, _)| name.contains(".bin") || name.contains(".safetensors")).collect()
}

#[test]
fn a_directory_gets_safetensors_beside_its_pickles_and_is_served() {
    let directory = model("distilbert-dense");
    let before = weights(directory.path());
    let output = convert(directory.path());
    let after = weights(directory.path());
    assert!(before.keys().all(|name| after.contains_key(name)), "the pickles stay: {after:?}");
    let made = |from: &str, to: &str, tensors: usize| {
        let bytes = std::fs::read(&after[to]).unwrap();
        let sha256 = embedding_server::space::hex(&Sha256::digest(&bytes));
        json!({"from": from, "to": to, "tensors": tensors, "bytes": bytes.len(), "sha256": sha256})
    };
    let path = directory.path().to_str().unwrap();
    assert_eq!(
        summary(&output),
        json!({
            "directory": path,
            "converted": [
                made("pytorch_model.bin", "model.safetensors", 36),
                made("2_Dense/pytorch_model.bin", "2_Dense/model.safetensors", 2),
            ],
            "unchanged": [],
        })
    );
    let twin = format!("twin={}", pickles().join("../families/distilbert-dense").display());
    let converted = format!("converted={path}");
    let server = Server::healthy(&["--model", &converted, "--model", &twin]);
    let embed = |model: &str| {
        let answer = server.post("/embeddings", &json!({"texts": ["the cat sat"], "model": model})).json();
        (answer["embeddings"].clone(), answer["space"].clone())
    };
    assert_eq!(embed("converted"), embed("twin"));

    // Once more there is nothing to do.
    let times =
        || weights(directory.path()).into_values().map(|path| path.metadata().unwrap().modified().unwrap());
    let times_before: Vec<_> = times().collect();
    assert_eq!(
        summary(&convert(directory.path())),
        json!({
            "directory": path,
            "converted": [],
            "unchanged": ["model.safetensors", "2_Dense/model.safetensors"],
        })
    );
    assert!(times().eq(times_before));
}

#[test]
fn shards_are_weights_when_all_of_them_are_there() {
    let directory = model("bert-sharded");
    let last = directory.path().join("pytorch_model-00003-of-00003.bin");
    let whole = std::fs::read(&last).unwrap();
    std::fs::write(&last, &whole[..whole.len() - 1]).unwrap();
    assert_eq!(
        failure(directory.path()),
        "error: DIR/pytorch_model-00003-of-00003.bin: begins as a zip archive and does not end as one: cut off?"
    );
    let index = directory.path().join("model.safetensors.index.json");
    assert!(!index.exists() && directory.path().join("model-00001-of-00003.safetensors").exists());

    std::fs::write(&last, whole).unwrap();
    let summary = summary(&convert(directory.path()));
    let made = std::fs::read(&index).unwrap();
    let map = &serde_json::from_slice::<Value>(&made).unwrap()["weight_map"];
    let sha256 = embedding_server::space::hex(&Sha256::digest(&made));
    assert_eq!(
        summary["converted"][3],
        json!({
            "from": "pytorch_model.bin.index.json",
            "to": "model.safetensors.index.json",
            "tensors": map.as_object().unwrap().len(),
            "bytes": made.len(),
            "sha256": sha256,
        })
    );
    let targets: Vec<_> =
        summary["converted"].as_array().unwrap().iter().map(|made| made["to"].clone()).collect();
    assert_eq!(
        targets,
        [
            "model-00001-of-00003.safetensors",
            "model-00002-of-00003.safetensors",
            "model-00003-of-00003.safetensors",
            "model.safetensors.index.json"
        ]
    );
}

#[test]
fn safetensors_of_somebody_else_are_not_replaced() {
    let directory = model("bert-sharded");
    let theirs = directory.path().join("model-00002-of-00003.safetensors");
    std::fs::write(&theirs, "theirs").unwrap();
    assert_eq!(
        failure(directory.path()),
        "error: DIR/model-00002-of-00003.safetensors: is there already and is not what \
         pytorch_model-00002-of-00003.bin becomes; move one of the two away"
    );
    assert_eq!(std::fs::read(&theirs).unwrap(), b"theirs");
    assert!(!directory.path().join("model.safetensors.index.json").exists());
}

#[test]
fn folders_that_are_links_are_left_alone() {
    let (directory, elsewhere) = (model("distilbert-dense"), model("distilbert-dense"));
    symlink(elsewhere.path(), directory.path().join("3_Dense")).unwrap();
    let summary = summary(&convert(directory.path()));
    assert_eq!(summary["converted"].as_array().unwrap().len(), 2, "{summary}");
    assert!(!elsewhere.path().join("model.safetensors").exists());
}

#[test]
fn what_is_no_file_is_not_read() {
    for (what, name, problem) in [
        ("/dev/zero", "pytorch_model.bin", "cannot be read: is no regular file"),
        ("pipe", "pytorch_model.bin", "cannot be read: is no regular file"),
        ("folder", "pytorch_model.bin", "cannot be read: is no regular file"),
        ("/not/there", "pytorch_model.bin", "is a link to a file that is not there"),
        ("large", "pytorch_model.bin", "is larger than 1099511627776 bytes: not a model"),
        ("/dev/zero", "pytorch_model.bin.index.json", "cannot be read: is no regular file"),
        ("pipe", "pytorch_model.bin.index.json", "cannot be read: is no regular file"),
        (
            "/not/there",
            "pytorch_model.bin.index.json",
            "cannot be read: No such file or directory (os error 2)",
        ),
        ("large", "pytorch_model.bin.index.json", "cannot be read: is larger than 16777216 bytes"),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(name);
        match what {
            "pipe" => rustix::fs::mkfifoat(rustix::fs::CWD, &path, rustix::fs::Mode::RWXU).unwrap(),
            "folder" => std::fs::create_dir(&path).unwrap(),
            "large" => std::fs::File::create(&path).unwrap().set_len((1 << 40) + 1).unwrap(),
            to => symlink(to, &path).unwrap(),
        }
        assert_eq!(failure(directory.path()), format!("error: DIR/{name}: {problem}"), "{what}");
    }
}

#[test]
fn what_cannot_be_converted_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    assert_eq!(failure(path), "error: DIR: has no pytorch_model.bin, and no safetensors either");
    let bin = path.join("pytorch_model.bin");
    std::fs::write(&bin, b"\x80\x02cos\nsystem\n.").unwrap();
    assert_eq!(failure(path), "error: DIR/pytorch_model.bin: is nothing that torch.save writes");
    assert_eq!(
        failure(&bin),
        "error: DIR: cannot be listed; give the directory that the weights are in: Not a directory (os error 20)"
    );
    std::fs::remove_file(&bin).unwrap();
    std::fs::write(path.join("pytorch_model.bin.index.json"), r#"{"weight_map": {"a": "gone.bin"}}"#)
        .unwrap();
    assert_eq!(failure(path), "error: DIR/gone.bin: cannot be read: No such file or directory (os error 2)");

    let output = command(&["convert"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let help = command(&["convert", "--help"]).output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    assert!(help.contains("Exit codes: 0") && help.contains("Nothing in a pickle is"), "{help}");
}
