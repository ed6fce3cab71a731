//! Repositories whose weights are pickles only: they become what their twins with safetensors are.

use std::path::{Path, PathBuf};

use embedding_server::fetch::{Cache, Error, Source, import};
use embedding_server::model::{Directory, inventory};
use embedding_server::space;
use serde_json::{Value, json};

use crate::hub::{FakeHub, Tree};
use crate::support::process::{Server, command};
use crate::{Bench, Manifest, REPO, Recorder, contents, manifest, ranges, size, source, told};

const BIN: &str = "pytorch_model.bin";
const DENSE: &str = "2_Dense/pytorch_model.bin";
const SHARDS: [&str; 3] = [
    "pytorch_model-00001-of-00003.bin",
    "pytorch_model-00002-of-00003.bin",
    "pytorch_model-00003-of-00003.bin",
];

fn tests() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests")
}

/// What is in the directory of this model that a server needs.
pub(crate) fn twin(model: &str) -> PathBuf {
    tests().join("families").join(model)
}

/// The repository of that model, without safetensors.
pub(crate) fn repository(model: &str) -> Tree {
    let mut tree = Tree::of_directory(REPO, &twin(model));
    tree.files.retain(|file, _| !file.contains("safetensors"));
    for (file, bytes) in contents(&tests().join("pickles").join(model)) {
        tree = if file.strip_suffix(".bin").is_some() {
            tree.with_lfs(&file, bytes)
        } else {
            tree.with(&file, bytes)
        };
    }
    tree
}

/// The fingerprint of the space of a directory's vectors.
pub(crate) fn fingerprint(directory: &Path) -> space::Files {
    let directory = Directory::read(directory).unwrap();
    directory.fingerprint(inventory::tensors(&directory).unwrap()).unwrap()
}

fn record(directory: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(directory.join(".fetched.json")).unwrap()).unwrap()
}

fn names(directory: &Path) -> Vec<String> {
    contents(directory).into_keys().collect()
}

#[tokio::test]
async fn pickled_weights_arrive_as_safetensors_and_make_the_same_space() {
    for (model, weights) in [
        ("distilbert-dense", ["2_Dense/model.safetensors", "model.safetensors"].as_slice()),
        (
            "bert-sharded",
            &[
                "model-00001-of-00003.safetensors",
                "model-00002-of-00003.safetensors",
                "model-00003-of-00003.safetensors",
                "model.safetensors.index.json",
            ],
        ),
    ] {
        let bench = Bench::new(repository(model)).await;
        let tree = bench.hub.tree();
        let mut recorder = Recorder::default();
        let fetched = bench.fetch_telling("main", &mut recorder).await.unwrap();
        let found = names(&fetched.directory);
        assert!(!found.iter().any(|name| name.contains("pytorch") || name.contains("partial")), "{found:?}");
        let of_weights: Vec<_> = found.iter().filter(|name| name.contains("safetensors")).collect();
        assert_eq!(of_weights, weights);
        assert_eq!(fingerprint(&fetched.directory), fingerprint(&twin(model)));

        // What was made of what is in the record; everything else is as it always was.
        let files = record(&fetched.directory)["files"].as_object().unwrap().clone();
        for (file, kept) in &files {
            let from = file
                .replace("model-", "pytorch_model-")
                .replace("model.safetensors", "pytorch_model.safetensors");
            let expected = match from.replace(".safetensors", ".bin") {
                bin if bin == *file => json!(null),
                bin => json!({"file": bin, "sha256": tree.sha256(&bin)}),
            };
            assert_eq!(kept["converted_from"], expected, "{file}");
        }
        assert_eq!(fetched.files, files.len());
        assert_eq!(fetched.bytes, files.values().map(|kept| kept["size"].as_u64().unwrap()).sum::<u64>());
        let downloaded: Vec<_> = tree
            .files
            .keys()
            .map(String::as_str)
            .filter(|file| !file.contains("reference") && !file.contains("mutations"))
            .collect();
        assert_eq!(fetched.downloaded_bytes, size(&tree, &downloaded));
        let converted = recorder.events.iter().filter(|event| event.starts_with("converted "));
        assert_eq!(
            converted.count(),
            tree.files.keys().filter(|file| file.strip_suffix(".bin").is_some()).count()
        );

        // To the byte, whenever and wherever.
        let other = Bench::new(repository(model)).await;
        let again = other.fetch("main").await.unwrap();
        assert_eq!(record(&again.directory), record(&fetched.directory));
    }
}

#[test]
fn a_server_makes_the_vectors_of_the_twin() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let folder = tempfile::tempdir().unwrap();
    for model in ["distilbert-dense", "bert-sharded"] {
        let hub = runtime.block_on(FakeHub::start(repository(model)));
        let [fetched, twin] = [format!("fetched={REPO}"), format!("twin={}", twin(model).display())];
        let cache = folder.path().join(model);
        let server = Server::healthy(&[
            "--model",
            &fetched,
            "--model",
            &twin,
            "--hf-endpoint",
            hub.endpoint.as_str(),
            "--cache-dir",
            cache.to_str().unwrap(),
            "--dtype",
            "float32",
        ]);
        let embed = |model: &str| {
            let texts = ["the cat sat", "a long river is not a table", "x"];
            let answer = server.post("/embeddings", &json!({"texts": texts, "model": model}));
            assert_eq!(answer.status, 200, "{answer:?}");
            let answer = answer.json();
            (answer["embeddings"].clone(), answer["space"].clone())
        };
        assert_eq!(embed("fetched"), embed("twin"), "{model}");
        assert!(embed("twin").0[0][0].is_number());
    }
}

#[tokio::test]
async fn a_manifest_holds_for_the_pickle_that_was_fetched() {
    let mut bench = Bench::new(repository("distilbert-dense")).await;
    let tree = bench.hub.tree();
    let whole = |other: Option<(&str, String)>| -> Manifest {
        let needed =
            tree.files.keys().filter(|file| !file.contains("reference") && !file.contains("mutations"));
        let mut hashes: Vec<_> = needed.map(|file| (file.as_str(), tree.sha256(file))).collect();
        hashes.retain(|(file, _)| other.as_ref().is_none_or(|(name, _)| name != file));
        hashes.extend(other);
        manifest(&hashes)
    };
    let wrong = whole(Some((DENSE, "0".repeat(64))));
    let message = format!(
        "verifying {DENSE}: expected the manifest's sha256 {}, found {}",
        "0".repeat(64),
        tree.sha256(DENSE)
    );
    bench.manifest = Some(wrong.clone());
    assert_eq!(bench.failure("main").await, message);
    assert_eq!(ranges(&bench.hub.requests(), BIN), [], "refused before the weights");

    bench.manifest = Some(whole(None));
    let fetched = bench.fetch("main").await.unwrap();
    // And for what is here already.
    assert_eq!(bench.fetch(&tree.commit).await.unwrap().directory, fetched.directory);
    bench.manifest = Some(wrong);
    assert_eq!(bench.failure(&tree.commit).await, message);
}

#[test]
fn a_directory_with_pickled_weights_is_imported() {
    for model in ["distilbert-dense", "bert-sharded"] {
        let tree = repository(model);
        let directory = tempfile::tempdir().unwrap();
        let from = directory.path().join("from");
        crate::write_tree(&tree, &from);
        let hashes: Vec<_> = tree.files.keys().map(|file| (file.as_str(), tree.sha256(file))).collect();
        let cache = Cache::new(directory.path().join("cache"));
        let pinned: Source = source(REPO, &tree.commit);
        let imported = import(&cache, &pinned, &from, &manifest(&hashes)).unwrap();
        assert_eq!(fingerprint(&imported.directory), fingerprint(&twin(model)));
        assert!(from.join(hashes[hashes.len() / 2].0).exists(), "the directory stays as it was");
        let again = import(&cache, &pinned, Path::new("/not/there"), &manifest(&hashes)).unwrap();
        assert_eq!(again, imported);
    }
}

/// Drops a fetch when so much of this file is converted.
async fn drop_while_converting(bench: &Bench, file: &'static str) {
    let (reached, mut wait) = tokio::sync::mpsc::channel(1);
    let mut recorder = Recorder {
        on_converting: Some(Box::new(move |converting, _| {
            if converting == file {
                let _ = reached.try_send(());
            }
        })),
        ..Recorder::default()
    };
    tokio::select! {
        biased;
        () = async { wait.recv().await.unwrap() } => {}
        _ = bench.fetch_telling("main", &mut recorder) => panic!("it was to be dropped"),
    }
}

#[tokio::test]
async fn a_conversion_that_is_dropped_leaves_nothing_half_and_is_taken_up() {
    let bench = Bench::new(repository("distilbert-dense")).await;
    drop_while_converting(&bench, BIN).await;
    let left = names(&bench.partial(""));
    assert!(left.contains(&BIN.to_owned()), "{left:?}");
    assert!(left.contains(&"2_Dense/model.safetensors".to_owned()), "{left:?}");
    assert!(!left.iter().any(|name| name.ends_with(".partial") || name == "model.safetensors"), "{left:?}");
    assert_eq!(bench.cache.find(&source(REPO, &bench.hub.tree().commit)).unwrap(), None);
    bench.hub.requests();

    // As if the power had failed, instead.
    std::fs::write(bench.partial(".model.safetensors.partial"), "half").unwrap();
    let fetched = bench.fetch("main").await.unwrap();
    assert_eq!(fetched.downloaded_bytes, 0);
    assert_eq!(fingerprint(&fetched.directory), fingerprint(&twin("distilbert-dense")));
    assert!(
        !names(&fetched.directory).iter().any(|name| name.contains("partial") || name.contains("converted"))
    );
}

#[tokio::test]
async fn a_shard_that_was_converted_is_fetched_again_only_if_it_is_damaged() {
    for damaged in [false, true] {
        let bench = Bench::new(repository("bert-sharded")).await;
        // They come from the smallest to the largest.
        drop_while_converting(&bench, SHARDS[1]).await;
        let left = names(&bench.partial(""));
        assert!(left.contains(&"model-00001-of-00003.safetensors".to_owned()), "{left:?}");
        assert!(!left.contains(&SHARDS[0].to_owned()) && left.contains(&SHARDS[1].to_owned()), "{left:?}");
        if damaged {
            let path = bench.partial("model-00001-of-00003.safetensors");
            let mut bytes = std::fs::read(&path).unwrap();
            *bytes.last_mut().unwrap() ^= 1;
            std::fs::write(&path, bytes).unwrap();
        }
        bench.hub.requests();
        let fetched = bench.fetch("main").await.unwrap();
        let requests = bench.hub.requests();
        let asked = SHARDS.map(|shard| ranges(&requests, shard).len());
        assert_eq!(asked, [usize::from(damaged), 0, 0]);
        assert_eq!(fingerprint(&fetched.directory), fingerprint(&twin("bert-sharded")));
    }
}

#[tokio::test]
async fn a_pickle_that_lies_is_named_and_no_model_comes_of_it() {
    let evil = b"\x80\x02cos\nsystem\nX\x02\x00\x00\x00id\x85R.";
    let magic = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.\x80\x02}.";
    let whole = repository("distilbert-dense").files[BIN].bytes.to_vec();
    for (bytes, why) in [
        ([magic.as_slice(), evil].concat(), "names os.system, which is no part of a tensor"),
        (evil.to_vec(), "is nothing that torch.save writes"),
        (whole[..whole.len() - 1000].to_vec(), "begins as a zip archive and does not end as one: cut off?"),
    ] {
        let bench = Bench::new(repository("distilbert-dense").with_lfs(BIN, bytes)).await;
        let error = bench.fetch("main").await.unwrap_err();
        let partial = bench.partial(BIN);
        assert_eq!(
            told(&error),
            format!("converting {BIN} of {REPO} to safetensors: {}: {why}", partial.display())
        );
        assert!(error.is_lasting() && !error.is_refused() && !error.is_unreachable());
        assert_eq!(bench.cache.find(&source(REPO, &bench.hub.tree().commit)).unwrap(), None);
        // Once more: it is not fetched again for that.
        bench.hub.requests();
        let error = bench.fetch("main").await.unwrap_err();
        assert!(matches!(error, Error::Convert { .. }), "{error:?}");
        assert_eq!(ranges(&bench.hub.requests(), BIN), []);
    }
    // An index that says something else than the shards.
    let tree = repository("bert-sharded");
    let index = String::from_utf8(tree.files["pytorch_model.bin.index.json"].bytes.to_vec()).unwrap();
    let lying = index.replace("embeddings.LayerNorm.weight", "embeddings.LayerNorm.other");
    let bench = Bench::new(tree.with("pytorch_model.bin.index.json", lying)).await;
    let error = told(&bench.fetch("main").await.unwrap_err());
    assert!(error.contains("pytorch_model.bin.index.json: says that "), "{error}");
    assert!(error.ends_with("which does not have it"), "{error}");
}

#[test]
fn a_server_says_what_is_wrong_with_a_pickle_and_serves_the_rest() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let hub = runtime.block_on(FakeHub::start(repository("distilbert-dense").with_lfs(DENSE, "no pickle")));
    let folder = tempfile::tempdir().unwrap();
    let good = format!("good={}", twin("bert-sharded").display());
    let cache = folder.path().to_str().unwrap();
    let arguments =
        ["--model", &good, "--model", "bad=test-org/tiny-model", "--hf-endpoint", hub.endpoint.as_str()];
    let mut server = Server::start(&[arguments.as_slice(), &["--cache-dir", cache]].concat());
    let health = server.wait_for_health("failed").to_string();
    assert!(health.contains("2_Dense/pytorch_model.bin: is nothing that torch.save writes"), "{health}");
    assert_eq!(server.post("/embeddings", &json!({"texts": ["a cat"], "model": "good"})).status, 200);
    let log = server.log();
    assert!(log.contains("cannot be served") && !log.contains("retry_in_s"), "{log}");

    let output =
        command(&["fetch", REPO, "--hf-endpoint", hub.endpoint.as_str(), "--cache-dir", cache]).output();
    let output = output.unwrap();
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8(output.stderr).unwrap();
    let last = stderr.lines().last().unwrap();
    assert!(
        last.starts_with("error: converting 2_Dense/pytorch_model.bin of test-org/tiny-model to"),
        "{stderr}"
    );
}
